"""The benchmark itself: on the smallest sizes, does it verify, refuse, measure and draw?"""

import json
from time import sleep
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from matplotlib.image import imread

from bench import __main__ as program
from bench import cases, engines, limits, measure, problem, targets
from bench.cases import Case, crops, table
from normcore.reference_kernels import FAMILIES, NCHW

TINY = (
    Case("tiny", (2, 3, 8, 9), 1, crops, target=True),
    Case("tiny-last", (2, 8, 9, 3), 3, crops),
    Case("tiny-nc", (40, 5), 1, table),
)

each_tiny = pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "REST_SECONDS", 0.0)


def backends():
    found, _ = engines.available(["cython", "numba", "numpy"], 2)
    return found


def engine_with(**wrong):
    """The NumPy backend with some passes of nchw replaced."""
    names = [kernel.name for kernel in problem.kernels_of("nchw")]
    passes = {name: wrong.get(name, getattr(NCHW, name)) for name in names}
    return engines.Normcore(
        "broken", SimpleNamespace(**{**FAMILIES, "nchw": SimpleNamespace(**passes)})
    )


# Data


def test_photographs_are_the_photographs():
    from sklearn.datasets import load_sample_images

    images = np.stack(load_sample_images().images)
    by_name = {case.name: case for case in cases.CASES}
    np.testing.assert_array_equal(by_name["photos-last"].values(0), images)
    np.testing.assert_array_equal(by_name["photos"].values(0), images.transpose(0, 3, 1, 2))


def test_crops_hold_pixels_and_differ_between_channels():
    x = crops((4, 6, 20, 30), 0)
    assert len({channel.tobytes() for sample in x for channel in sample}) == 24
    np.testing.assert_array_equal(x[0, 0], cases.photographs()[0, :20, :30, 0])
    assert not np.array_equal(x, crops((4, 6, 20, 30), 7))


def test_table_repeats_the_digits():
    x = table((3000, 130), 0)
    np.testing.assert_array_equal(x[:1797, :64], cases.digits())
    np.testing.assert_array_equal(x[1797:, :64], cases.digits()[:1203])
    np.testing.assert_array_equal(x[101:1797, 64:128], cases.digits()[:1696])


# The oracle, block by block


@each_tiny
def test_oracle_by_blocks_is_the_oracle(case, monkeypatch):
    monkeypatch.setattr(problem, "BLOCK_ELEMENTS", 1)
    made = problem.Problem(case, 2)
    for kernel in problem.kernels_of(made.family):
        found = made.reference(kernel)
        exact = {name: np.empty(values.size) for name, values in found.items()}
        given = {**made.arguments, **exact}
        whole = getattr(FAMILIES[made.family], kernel.name)
        whole(*(given[name] for name in kernel.arguments))
        for name, values in exact.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-12, atol=1e-12)


@each_tiny
def test_sums_are_measured_against_their_summands(case):
    made = problem.Problem(case, 1)
    shape = [1] * len(case.shape)
    shape[case.axis] = -1
    dy = made.shaped(made.dy).astype(np.float64)
    products = dy * (made.shaped(made.x) - made.arguments["mean"].reshape(shape))
    for name, summands in (("sum_dy", dy), ("sum_dy_xmu", products)):
        exact = made.arguments[name]
        scale = np.maximum(np.sqrt(np.sum(summands**2, case.axes)), np.abs(exact))
        assert made.errors({name: exact + 0.5 * scale}, {name: exact})[name] == pytest.approx(0.5)


# Verification


@each_tiny
@pytest.mark.parametrize("engine", backends(), ids=lambda engine: engine.name)
def test_every_backend_passes(case, engine):
    for comparison in measure.compare(case, [engine], threads=2, rounds=1):
        [result] = comparison.results.values()
        assert result.verdict.complaint == ""
        assert 0 < comparison.seconds(engine.name) < 10


@each_tiny
@pytest.mark.parametrize("name", ["textbook", "torch"])
def test_peers_compute_the_same(case, name):
    if name == "torch":
        pytest.importorskip("torch")
    found, missing = engines.available([name], 1)
    assert missing == {}
    comparisons = measure.compare(case, found, threads=1, rounds=1)
    assert {c.kernel.name for c in comparisons if c.results} >= {"apply", "forward", "backward"}
    for comparison in comparisons:
        for result in comparison.results.values():
            # float32 statistics: not good, and not another formula either.
            assert result.verdict.worst < 1e-3


def slightly_off(y, *rest):
    NCHW.forward(y, *rest)
    y *= np.float32(1 + 1e-5)


def one_missing(y, *rest):
    kept = y[7]
    NCHW.forward(y, *rest)
    y[7] = kept


def writes_to_x(y, mean, var, rstd, x, *rest):
    NCHW.forward(y, mean, var, rstd, x, *rest)
    x[0] += 1


def float32_statistics(y, mean, *rest):
    NCHW.forward(y, mean, *rest)
    mean[:] = mean.astype(np.float32)


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        (slightly_off, "y is off by 1.0e-05"),
        (one_missing, "y is off by nan"),
        (writes_to_x, "x was written to"),
        (float32_statistics, "mean is off by"),
    ],
)
def test_wrong_kernel_is_refused(kernel, complaint):
    engine = engine_with(forward=kernel)
    comparisons = {c.kernel.name: c for c in measure.compare(TINY[0], [engine], 1, 1)}
    refused = comparisons["forward"].results["broken"]
    assert complaint in refused.verdict.complaint
    assert refused.timing is None
    assert comparisons["forward"].seconds("broken") is None
    # What was written to x is taken back: the other passes see clean data.
    assert comparisons["backward"].results["broken"].verdict.complaint == ""


# Limits


@pytest.mark.parametrize("shape", [(40, 5), (7, 3), (64, 17)])
def test_probes_move_every_element(shape):
    made = problem.Problem(Case("odd", shape, 1, table), 2)
    for kernel in problem.kernels_of(made.family):
        for name, probe in limits.probes(made, kernel).items():
            made.stream().fill(np.nan)
            total = probe()
            if kernel.writes:
                expected = made.x if kernel.reads == 1 else made.x + made.dy
                np.testing.assert_array_equal(made.stream(), expected, err_msg=name)
            else:
                factor = 1 if kernel.reads == 1 else made.dy
                expected = np.sum(made.x.astype(np.float64) * factor)
                assert total == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize("name", ["_copy", "_triad"])
def test_only_streamed_probes_stream(name):
    # The probes' stores are aligned ones: an array from NumPy's allocator may fault.
    x = problem.aligned(64, np.float32)
    for suffix, streams in (("", False), ("_streaming", True)):
        # Compiled anew, because Numba shows no code that came from its cache.
        probe = numba.njit(getattr(limits, name + suffix).py_func)
        probe(x, x, x, 0, 64)
        [text] = probe.inspect_llvm().values()
        assert ("!nontemporal" in text) is streams


def test_thread_counts():
    assert limits.thread_counts(1) == [1]
    assert limits.thread_counts(2) == [1, 2]
    assert limits.thread_counts(6) == [1, 2, 4, 6]


# Rounds


def test_rounds_are_interleaved(monkeypatch):
    order = []
    monkeypatch.setattr(measure, "_turn", lambda run: [run() or 1e-6])
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = measure.interleave(calls, 3)
    assert order == list("abcabcabc")
    assert [timing.runs for timing in timings.values()] == [3, 3, 3]


def test_time_is_measured():
    timing = measure.interleave({"nap": lambda: sleep(0.003)}, 3)["nap"]
    assert 0.003 <= timing.best <= timing.median < 1
    assert timing.runs == 3


def test_slow_calls_drop_out(monkeypatch):
    monkeypatch.setattr(measure, "PATIENCE_SECONDS", 0.001)
    timings = measure.interleave({"slow": lambda: sleep(0.002), "fast": lambda: None}, 3)
    assert timings["slow"].runs == 1
    assert timings["fast"].runs >= 3


# Targets


def forward_comparison(seconds):
    [kernel] = [found for found in problem.kernels_of("nchw") if found.name == "forward"]
    results = {
        name: measure.Result(
            name in targets.BACKENDS,
            measure.Verdict({"y": 0.0}),
            None if best is None else measure.Timing(best, best, 1),
        )
        for name, best in seconds.items()
    }
    limit = measure.Timing(1.0, 1.0, 1)
    return measure.Comparison(TINY[0], kernel, 100, limit, "copy", results)


def test_promises_are_judged():
    made = forward_comparison({"cython": 1.5, "numba": 2.5, "torch": 6.0})
    assert [(one.engine, one.measured, one.kept) for one in targets.judge([made], [])] == [
        ("cython", "1.50 x limit", True),
        ("cython", "4.0 x torch", True),
        ("numba", "2.50 x limit", False),
        ("numba", "2.4 x torch", False),
    ]


def test_refused_kernel_breaks_its_promise():
    [judgement] = targets.judge([forward_comparison({"cython": None, "torch": 6.0})], [])
    assert (judgement.measured, judgement.kept) == ("refused", False)


# The command


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(program, "CASES", TINY)


def test_command_prints_and_writes(tiny, tmp_path, capsys):
    arguments = ["--rounds", "2", "--threads", "1", "-e", "numpy", "-e", "textbook"]
    assert program.main([*arguments, "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("tiny-last (2, 8, 9, 3)", "GB/s", "% limit", "normcore numpy", "import normcore"):
        assert words in printed

    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["machine"]["threads"] == 1
    assert content["machine"]["versions"]["numpy"] == np.__version__
    assert [entry["case"] for entry in content["kernels"][::6]] == [case.name for case in TINY]
    for entry in content["kernels"]:
        assert entry["limit"]["best"] > 0
        assert set(entry["engines"]) == {"numpy", "textbook"}
        for name, result in entry["engines"].items():
            timing = result["timing"]
            assert 0 < timing["best"] <= timing["median"]
            assert timing["runs"] >= 2
            assert max(result["errors"].values()) < (1e-6 if name == "numpy" else 1e-3)
    assert all(use["timing"]["best"] > 0 for use in content["api"])

    picture = imread(tmp_path / "bench.png")
    assert min(picture.shape[:2]) > 500
    colours = np.unique(np.rint(picture[:, :, :3] * 255).reshape(-1, 3), axis=0)
    for shown in ("a9d6c3", "9aa0a6"):  # bars of both
        assert (colours == list(bytes.fromhex(shown))).all(1).any()


def test_command_refuses_and_says_so(tiny, tmp_path, capsys, monkeypatch):
    broken = engine_with(forward=slightly_off)
    broken.name = "numpy"
    monkeypatch.setitem(engines.ENGINES, "numpy", (lambda threads: broken, ()))
    file = tmp_path / "deep" / "other.json"
    arguments = ["-c", "tiny", "--rounds", "1", "-e", "numpy", "-o", str(tmp_path)]
    assert program.main([*arguments, "--json", str(file)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "WRONG" in printed
    assert "refused: tiny forward numpy: y is off by 1.0e-05" in printed
    [entry] = [
        entry for entry in json.loads(file.read_text())["kernels"] if entry["pass"] == "forward"
    ]
    assert entry["engines"]["numpy"]["timing"] is None
    assert not (tmp_path / "bench.json").exists()


def test_missing_engine_is_named(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "torch", (engines.Torch, ("no_such_module",)))
    assert program.main(["-e", "torch", "-o", str(tmp_path)]) == 1
    assert "without torch: no_such_module is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--case", "none"], ["--rounds", "0"]])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err
