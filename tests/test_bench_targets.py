"""The benchmark's promises: what is judged, against whom, and what breaks a promise."""

from dataclasses import replace

import pytest
from bench_cases import FAMILY, FUSED, HALVES, TINY

from bench import cases, engines, measure, sweeps, targets, tasks
from bench.api import Use
from bench.measure import Timing

BY_NAME = {case.name: case for case in cases.CASES}


def compared(seconds, case, task="forward", threads=2, limit=1.0):
    [found] = [one for one in tasks.tasks_of(case) if one.name == task]
    results = {
        name: measure.Result(
            name in engines.COMPILED,
            measure.Verdict({"y": 0.0}),
            None if best is None else Timing(best, best, 1),
        )
        for name, best in seconds.items()
    }
    return measure.Comparison(case, found, threads, 100, Timing(limit, limit, 1), "copy", results)


def judged(*comparisons, **series):
    return {
        (one.group, one.engine): (one.measured, one.promised, one.kept)
        for one in targets.judge(comparisons, [], **series)
    }


def test_promises_are_judged():
    made = compared({"cython": 1.2, "numba": 2.1, "torch": 6.0, "jax": 1.1}, BY_NAME["nchw-56"])
    assert judged(made) == {
        ("limit", "cython"): ("1.20 x limit", "<= 1.3 x limit", True),
        ("numba limit", "numba"): ("2.10 x limit", "<= 2 x limit", False),
        ("peers", "cython"): ("0.92 x jax", ">= 1 x jax", False),
        ("numba", "numba"): ("1.75 x cython", "<= 1.15 x cython", False),
        ("torch", "cython"): ("5.00 x torch", ">= 3 x torch", True),
        ("torch", "numba"): ("2.86 x torch", ">= 3 x torch", False),
    }


def test_bare_loops_stand_beside_what_is_promised():
    made = replace(compared({"cython": 1.6}, BY_NAME["nchw-112"]), bare=Timing(1.5, 1.5, 1))
    assert judged(made) == {
        ("limit", "cython"): ("1.60 x limit (bare loops 1.50)", "<= 1.3 x limit", False)
    }


def test_inference_may_equal_onednn():
    made = compared({"cython": 1.0, "onednn": 0.98}, BY_NAME["nchw-56"], "apply")
    assert judged(made)["peers", "cython"] == ("0.98 x onednn", ">= 0.97 x onednn", True)


def test_refused_kernel_breaks_its_promise():
    for case in (BY_NAME["ln-768"], BY_NAME["in-128"], HALVES[0]):
        found = judged(compared({"cython": None, "torch": 6.0}, case))
        assert found["limit", "cython"][::2] == ("refused", False)
        assert found["peers", "cython"][::2] == ("refused", False)
    found = judged(compared({"cython": None, "cython unfused": 1.0}, FUSED[0]))
    assert found == {("fusions", "cython"): ("refused", ">= 1.5 x unfused", False)}


def test_promises_of_halves_and_fusions_are_judged_against_ourselves():
    times = {"cython": 1.0, "cython float32": 1.6, "cython unfused": 1.4}
    halves, fused = judged(compared(times, HALVES[0])), judged(compared(times, FUSED[0]))
    assert halves["halves", "cython"] == ("0.62 x float32", "<= 0.65 x float32", True)
    assert halves["limit", "cython"] == ("1.00 x limit", "<= 1.5 x limit", True)
    assert fused == {("fusions", "cython"): ("1.40 x unfused", ">= 1.5 x unfused", False)}


def test_float64_may_take_a_tenth_more():
    assert targets.bound_of(BY_NAME["nchw-56"], "backward") == 1.25
    assert targets.bound_of(BY_NAME["nchw-56-f64"], "backward") == pytest.approx(1.375)
    assert targets.bound_of(BY_NAME["nchw-56"], "moments") is None
    assert targets.bound_of(TINY[0], "forward") is None


def test_every_promise_is_of_a_case():
    named = {name for bound in (*targets.LIMITS, *targets.OF_NUMBA) for name in bound.cases}
    assert named <= BY_NAME.keys()
    for case in cases.CASES:
        if case.dtype == "float64":
            assert targets.bound_of(case, "forward") is not None, case.name


def test_scaling_is_judged_in_the_cache():
    small, large = BY_NAME["ln-768"], BY_NAME["nchw-56"]
    threads = [
        compared({"cython": seconds}, case, threads=count)
        for case in (small, large)
        for count, seconds in ((1, 3.0), (2, 2.0))
    ]
    assert judged(threads=threads) == {
        ("scaling", "cython"): ("1.50 x 1 thread", ">= 1.7 x 1 thread", False)
    }


def test_a_cliff_is_not_linear():
    rows = [case for case in sweeps.SIZES if case.layer == "layer"]
    smooth = [compared({"cython": 2.0 * case.elements}, case, limit=case.elements) for case in rows]
    assert judged(sizes=smooth)["linear", "cython"] == ("1.00 a step", "<= 1.3 a step", True)
    cliff = [*smooth[:-1], compared({"cython": 3.0}, rows[-1])]
    assert judged(sizes=cliff)["linear", "cython"][::2] == ("1.50 a step", False)
    # What fits no promise, below 1 MiB, may be as steep as it likes.
    steep = [compared({"cython": 9.0}, rows[0]), *smooth[1:]]
    assert judged(sizes=steep)["linear", "cython"][2]


def test_uses_are_judged_by_time_and_memory():
    def use(key, seconds=None, engine="cython", extra=None):
        timing = None if seconds is None else Timing(seconds, seconds, 1)
        return Use(key, key, engine, timing, extra_bytes=extra)

    found = targets.judge(
        [],
        [
            use("inference (64, 64) layer", 2.4e-6),
            use("inference (64, 64) functional", 1.9e-6),
            use("inference (64, 64) functional", 1.0, "numba"),
            use("peak memory", engine="-", extra=1 << 20),
            use("import", 0.02, "-"),
        ],
    )
    assert [(one.what, one.kept) for one in found] == [
        ("inference (64, 64) layer", True),
        ("inference (64, 64) functional", False),
        ("peak memory", False),
        ("import", True),
    ]


def test_families_know_no_promise_of_torch():
    assert judged(compared({"cython": 2.5, "torch": 3.0}, FAMILY[0])) == {}
