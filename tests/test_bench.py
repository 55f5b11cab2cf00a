"""The benchmark's numbers: its data, its oracle, what it refuses, and its memory probes."""

from dataclasses import replace

import numba
import numpy as np
import pytest
from bench_cases import ALL, DOUBLES, FAMILY, FUSED, HALVES, TINY, engine_with, slightly_off

import normcore.functional as F
from bench import bare, cases, data, engines, layout, limits, measure, problem, tasks
from bench.cases import Case
from bench.data import crops, table
from normcore.reference_kernels import FAMILIES, NCHW

each_tiny = pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
each_case = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "REST_SECONDS", 0.0)


def backends():
    found, _ = engines.available(["cython", "numba", "numpy"], 2)
    return found


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
    np.testing.assert_array_equal(x[0, 0], data.photographs()[0, :20, :30, 0])
    assert not np.array_equal(x, crops((4, 6, 20, 30), 7))


def test_table_repeats_the_digits():
    x = table((3000, 130), 0)
    np.testing.assert_array_equal(x[:1797, :64], data.digits())
    np.testing.assert_array_equal(x[1797:, :64], data.digits()[:1203])
    np.testing.assert_array_equal(x[101:1797, 64:128], data.digits()[:1696])


# The oracle, block by block


@each_case
def test_oracle_by_blocks_is_the_oracle(case, monkeypatch):
    monkeypatch.setattr(layout, "BLOCK_ELEMENTS", 1)
    made = problem.Problem(case, 2)
    for task in tasks.tasks_of(case):
        found = made.reference(task)
        given = made.given()
        for kernel in task.kernels:
            exact = {
                name: None if values is None else np.empty(values.size)
                for name, values in made.outputs(kernel).items()
            }
            given |= exact
            whole = getattr(FAMILIES[made.family], kernel.name)
            whole(*(given[name] for name in kernel.arguments))
            given["dy"] = given.get("g", given["dy"])
        assert set(found) == {name for name in task.outputs if given[name] is not None}
        for name, values in found.items():
            np.testing.assert_allclose(values, given[name], rtol=1e-12, atol=1e-12)


def test_layouts_are_those_of_the_functions():
    # The shapes that the public functions give to mean, which nothing here has computed.
    for case in FAMILY:
        x = case.values(0)
        if case.layer == "layer":
            _, mean, _ = F.layer_norm_forward(x, (case.channels,), axis=case.axis)
        elif case.layer == "group":
            _, mean, _ = F.group_norm_forward(x, case.groups, axis=case.axis)
        elif case.layer == "instance":
            _, mean, _ = F.instance_norm_forward(x, axis=case.axis)
        else:
            _, mean = F.rms_norm_forward(x, (case.channels,), axis=case.axis)
        found = layout.layout(case)
        assert found.statistics == mean.size
        made = problem.Problem(case, 1)
        if case.layer != "rms":
            np.testing.assert_allclose(made.arguments["mean"], mean.reshape(-1), rtol=1e-12)


@each_tiny
def test_sums_are_measured_against_their_summands(case):
    made = problem.Problem(case, 1)
    axes = tuple(i for i in range(len(case.shape)) if i != case.axis)
    shape = [1] * len(case.shape)
    shape[case.axis] = -1
    dy = made.shaped(made.dy).astype(np.float64)
    products = dy * (made.shaped(made.x) - made.arguments["mean"].reshape(shape))
    for name, summands in (("sum_dy", dy), ("sum_dy_xmu", products)):
        exact = made.arguments[name]
        scale = np.maximum(np.sqrt(np.sum(summands**2, axes)), np.abs(exact))
        assert made.errors({name: exact + 0.5 * scale}, {name: exact})[name] == pytest.approx(0.5)


@pytest.mark.parametrize("case", FAMILY, ids=lambda case: case.name)
def test_parameter_gradients_are_measured_against_their_summands(case):
    # Far from their sums, so that it is the summands' norm that counts.
    made = problem.Problem(case, 1)
    axis = case.axis
    others = tuple(i for i in range(len(case.shape)) if i != axis)
    norm = np.sqrt(np.sum(made.shaped(made.dy).astype(np.float64) ** 2, others))
    zero = np.zeros(case.channels)
    assert made.errors({"dbias": 0.5 * norm}, {"dbias": zero})["dbias"] == pytest.approx(0.5)


@each_case
def test_no_term_of_dx_is_large(case):
    made = problem.Problem(case, 1)
    dy, rstd = made.layout.by_statistic(made.dy.astype(np.float64), made.arguments["rstd"])
    assert 0.1 < np.abs(dy * rstd).max() <= problem.LARGEST_TERM * 1.01


def test_halves_may_be_rounded_and_no_more():
    made = problem.Problem(HALVES[0], 1)
    exact = np.linspace(-300, 300, 1001)
    rounded = exact.astype(HALVES[0].storage)
    assert made.errors({"y": rounded}, {"y": exact}) == {"y": 0.0}
    unit = 2 * problem.half_unit(exact, rounded.dtype)
    wrong = (rounded.astype(np.float64) + unit).astype(rounded.dtype)
    assert made.errors({"y": wrong}, {"y": exact})["y"] > 1e-3


def test_relu_has_no_gradient_at_its_kink():
    case = FUSED[0]
    made = problem.Problem(case, 1)
    [task] = [task for task in tasks.tasks_of(case) if task.name == "forward"]
    plain = problem.Problem(replace(case, activation=None), 1)
    z = plain.reference(task)["y"]
    near = np.abs(z) < problem.KINK
    assert np.all(made.dy[near] == 0)
    assert np.count_nonzero(made.dy) > 0.9 * z.size


def test_an_offset_moves_x_and_nothing_else():
    case = TINY[0]
    near, away = (problem.Problem(replace(case, offset=offset), 1) for offset in (0.0, 1e4))
    moved = away.x.astype(np.float64) - near.x
    assert len(np.unique(moved)) == 1
    assert moved[0] == pytest.approx(1e4 * near.x.std(), rel=1e-3)
    np.testing.assert_allclose(away.arguments["var"], near.arguments["var"], rtol=1e-12)
    np.testing.assert_array_equal(away.dy, near.dy)


def test_float64_is_float64_throughout():
    made = problem.Problem(DOUBLES[0], 1)
    [backward] = [task for task in tasks.tasks_of(made.case) if task.name == "backward"]
    found = made.outputs(backward.kernels[0])
    assert {array.dtype for array in (*found.values(), made.arguments["weight"])} == {
        np.dtype(np.float64)
    }
    assert made.tolerances["y"] < 1e-12


def test_cases_have_names_of_their_own_and_reach_from_l1_to_memory():
    names = [case.name for case in cases.CASES]
    assert len(names) == len(set(names))
    sizes = [case.nbytes for case in cases.CASES]
    assert min(sizes) <= 1 << 15
    assert max(sizes) >= 100e6
    # What is called in the cache and beyond lies well apart.
    assert not any(0.8 < size / cases.CACHED_BYTES < 1.1 for size in sizes)


# Verification


@each_case
@pytest.mark.parametrize("engine", backends(), ids=lambda engine: engine.name)
def test_every_backend_passes(case, engine):
    for comparison in measure.compare(case, [engine], threads=2, rounds=1):
        [result] = comparison.results.values()
        assert set(result.verdict.errors) == set(comparison.task.outputs) - absent(case)
        assert result.verdict.complaint == ""
        assert 0 < comparison.seconds(engine.name) < 10


def absent(case):
    return {"mean"} if case.layer == "rms" else set()


def test_rivals_take_part_where_there_is_a_promise():
    found, _ = engines.available(["cython"], 2)
    everyone = engines.with_rivals(found)
    for case in (TINY[0], HALVES[0], FUSED[0], FUSED[1], FUSED[2]):
        expected = {engine.name for engine in found}
        if found and case in HALVES:
            expected.add("cython float32")
        if found and case in FUSED:
            expected.add("cython unfused")
        for comparison in measure.compare(case, everyone, threads=1, rounds=1):
            assert set(comparison.results) == expected
            for name, result in comparison.results.items():
                assert result.verdict.worst < 1e-5
                assert result.width == (2 if name == "cython float32" else 1)


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
    comparisons = {c.task.name: c for c in measure.compare(TINY[0], [engine], 1, 1)}
    refused = comparisons["forward"].results["broken"]
    assert complaint in refused.verdict.complaint
    assert refused.timing is None
    assert comparisons["forward"].seconds("broken") is None
    # What was written to x is taken back: the other passes see clean data.
    assert comparisons["backward"].results["broken"].verdict.complaint == ""


# Limits


@pytest.mark.parametrize(
    "case",
    [
        *(Case("odd", shape, 1, table) for shape in [(40, 5), (7, 3), (64, 17)]),
        Case("relu", (7, 3), 1, table, residual=True, activation="relu"),
        Case("add", (7, 3), 1, table, "layer", addend=True),
    ],
    ids=lambda case: f"{case.name}-{case.shape[0]}",
)
def test_probes_move_every_element(case):
    made = problem.Problem(case, 2)
    given = made.arguments
    for task in tasks.tasks_of(case):
        inputs = [given[name] for name in ("x", "dy", "residual", "addend")]
        inputs = [array for array in inputs if array is not None][: task.reads]
        second = {"total", "g"} & set(task.outputs)
        for name, probe in limits.probes(made, task).items():
            outputs = [made.stream(), *(made.stream(other) for other in second)]
            for output in outputs:
                output.fill(np.nan)
            total = probe()
            if task.writes:
                assert len(outputs) == task.writes
                for output in outputs:
                    np.testing.assert_allclose(output, sum(inputs), rtol=1e-6, err_msg=name)
            else:
                factor = 1 if task.reads == 1 else made.dy
                expected = np.sum(made.x.astype(np.float64) * factor)
                assert total == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_probes_move_all_bytes_of_other_dtypes(dtype):
    made = problem.Problem(Case("other", (7, 4), 1, table, dtype=dtype), 1)
    [forward] = [task for task in tasks.tasks_of(made.case) if task.name == "forward"]
    for probe in limits.probes(made, forward).values():
        made.stream().fill(np.nan)
        probe()
        np.testing.assert_array_equal(made.stream(), made.x)


@pytest.mark.parametrize("inputs", [1, 2])
def test_only_streamed_probes_stream(inputs):
    # The probes' stores are aligned ones: an array from NumPy's allocator may fault.
    x = problem.aligned(64, np.float32)
    for name, streams in (("_move", False), ("move_streaming", True)):
        # Compiled anew, because Numba shows no code that came from its cache.
        probe = numba.njit(getattr(limits, name).py_func)
        probe((x,), (x,) * inputs, 0, 64)
        [text] = probe.inspect_llvm().values()
        assert ("!nontemporal" in text) is streams


@pytest.mark.parametrize(
    ("sizes", "blocks"),
    [
        (("nchw", (3, 4, 32), 4, True), bare.Blocks(4, 32, 3, 32, 128)),
        (("nchw", (1, 6, 32), 2, False), bare.Blocks(2, 96, 1, 96, 96)),
        (("nc", (1, 40, 16), 16, True), bare.Blocks(1, 640, 1, 640, 640)),
        (("nc", (3, 40, 16), 6, False), bare.Blocks(3, 640, 1, 640, 640)),
    ],
    ids=["batch", "group", "batch-last", "group-last"],
)
def test_bare_loops_write_every_block(sizes, blocks):
    family, shape, statistics, by_channel = sizes
    units = 3 if (family, by_channel) == ("nc", False) else statistics
    made = layout.Layout(family, shape, statistics, 4, units, by_channel)
    assert bare.blocks_of(made) == blocks
    x, dy = (problem.aligned(made.elements, np.float32) for _ in range(2))
    x[:], dy[:] = np.arange(made.elements), 1
    out = problem.aligned(made.elements, np.float32)
    ways = bare.of_blocks((x, dy), (out,), blocks, 2)
    assert len(ways) == 1 + (blocks.count >= 2)
    for run in ways.values():
        out.fill(np.nan)
        # The sums are of the bits, as integers of 8 bytes.
        with np.errstate(over="ignore"):
            assert run() == x.view(np.int64).sum() + dy.view(np.int64).sum()
        np.testing.assert_array_equal(out, x + dy)


def test_bare_loops_go_through_pieces_of_long_runs():
    blocks = bare.Blocks(2, 2 * bare.PIECE + 48, 3, 2 * bare.PIECE + 48, 4 * bare.PIECE + 96)
    x = problem.aligned(blocks.run_step * blocks.runs, np.float32)
    x[:] = np.arange(x.size)
    out = problem.aligned(x.size, np.float32)
    for run in bare.of_blocks((x,), (out,), blocks, 2).values():
        out.fill(np.nan)
        run()
        np.testing.assert_array_equal(out, x)


def test_bare_loops_are_of_statistics_beyond_the_cache():
    by_name = {case.name: case for case in cases.CASES}
    for name, some in (("nchw-7", False), ("nchw-14", True), ("ln-768", False)):
        made = problem.Problem(by_name[name], 1)
        for task in tasks.tasks_of(made.case):
            assert bool(bare.loops(made, task)) is (some and task.name != "apply"), task.name


def test_thread_counts():
    assert limits.thread_counts(1) == [1]
    assert limits.thread_counts(2) == [1, 2]
    assert limits.thread_counts(6) == [1, 2, 4, 6]
