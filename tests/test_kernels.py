"""Every kernel of the table, in every backend and instruction set, against the oracle."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from kernel_cases import (
    EPS,
    KERNEL,
    NC_SIZES,
    NCHW_SIZES,
    OFFSETS,
    PASSES,
    TOLERANCE,
    Backend,
    Case,
    applied,
    arguments,
    backends,
    cases,
    compiled,
    dx_scale,
    elementwise_scale,
    error,
    gradient,
    sum_scale,
    truth,
)
from normcore.kernels.table import KERNELS

from normcore import reference

DTYPES = ("float32", "float64")
FAMILIES = ("nchw", "nc")
BACKENDS = pytest.mark.parametrize("backend", backends(), ids=str)

NO_WIDER_FLOAT = pytest.mark.skipif(
    np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps,
    reason="the truth of float64 kernels needs a long double that is wider than float64",
)


def _cases() -> list[Any]:
    return [
        pytest.param(case, id=str(case), marks=NO_WIDER_FLOAT if case.dtype == "float64" else ())
        for case in cases()
    ]


def _errors(backend: Backend, case: Case) -> dict[str, float]:
    """The error of every output of every pass, as a multiple of its tolerance."""
    case = compiled(backend, case)
    expected = truth(case)
    found: dict[str, float] = {}

    def run(name: str, **given: Any) -> dict[str, Any]:
        values = arguments(case, **given)
        backend.run(case.family, name, values)
        return values

    def check(name: str, kind: str, got: Any, want: Any, scale: Any) -> None:
        # A parameter's gradient may be stored in float32 beside float64 arrays.
        dtype = "float32" if got.dtype == np.float32 else case.dtype
        found[name] = error(got, want, scale) / TOLERANCE[kind][dtype]

    values = run("moments", **{name: np.full(case.cells, np.nan) for name in ("mean", "m2")})
    m2, mean = expected["cell_m2"], expected["cell_mean"]
    size = np.maximum(np.abs(mean), np.sqrt(m2 * case.cells / values["x"].size))
    check("moments mean", "mean", values["mean"], mean, size)
    check("moments m2", "variance", values["m2"], m2, m2)

    values = run("forward")
    size = np.maximum(np.abs(expected["mean"]), np.sqrt(expected["var"]))
    check("forward mean", "mean", values["mean"], expected["mean"], size)
    for name in ("var", "rstd"):
        check(f"forward {name}", "variance", values[name], expected[name], expected[name])
    check("forward y", "elementwise", values["y"], expected["y"], elementwise_scale(expected["y"]))

    mean, var, rstd = (expected[f"given_{name}"] for name in ("mean", "var", "rstd"))
    stored = {"mean": mean.astype(case.statistics), "var": var.astype(case.statistics)}
    want = applied(case, **stored)
    check("apply y", "elementwise", run("apply", **stored)["y"], want, elementwise_scale(want))

    values = run("reduce_grads", mean=mean)
    for name in ("sum_dy", "sum_dy_xmu"):
        check(name, "sums", values[name], expected[name], sum_scale(expected, name))

    sums = {name: expected[name].astype(np.float64) for name in ("sum_dy", "sum_dy_xmu")}
    want = gradient(case, mean, rstd, **sums)
    values = run("apply_grads", mean=mean, rstd=rstd, **sums)
    scale = dx_scale(case, {**expected, "dx": want})
    check("apply_grads dx", "elementwise", values["dx"], want, scale)

    for training in (True, False):
        expected = truth(case, training)
        mean, rstd = expected["given_mean"], expected["given_rstd"]
        values = run("backward", mean=mean, rstd=rstd, training=training)
        label = f"backward({training=})"
        scale = dx_scale(case, expected)
        check(f"{label} dx", "elementwise", values["dx"], expected["dx"], scale)
        for name in ("dweight", "dbias"):
            size = sum_scale(expected, name)
            check(f"{label} {name}", "sums", values[name], expected[name], size)
    return found


@BACKENDS
@pytest.mark.parametrize("case", _cases())
def test_every_pass_stays_within_its_tolerance(backend: Backend, case: Case) -> None:
    assert {name: size for name, size in _errors(backend, case).items() if size > 1} == {}


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@NO_WIDER_FLOAT
def test_every_length_up_to_70(backend: Backend, family: str, dtype: str) -> None:
    # The tails of vector loops: each remainder of every vector and unrolling width.
    lengths = range(1, 71)
    swept = [(2, 3, s) for s in lengths] if family == "nchw" else [(1, 5, c) for c in lengths]
    if family == "nc":
        swept += [(1, m, 3) for m in lengths]
    wrong = {}
    for sizes in swept:
        errors = _errors(backend, Case(family, sizes, dtype, 1e3))
        wrong |= {(sizes, name): size for name, size in errors.items() if size > 1}
    assert wrong == {}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.family}_{kernel.name}")
@BACKENDS
def test_signature_is_the_tables(backend: Backend, kernel: Any) -> None:
    function = getattr(backend.modules[kernel.family], kernel.name)
    function = getattr(function, "py_func", function)
    found = tuple(inspect.signature(function).parameters)
    if found[-1] == "sizes":  # the oracle takes all sizes and threads as *sizes
        assert backend.name == "numpy"
        found = found[:-1] + kernel.arguments[len(found) - 1 :]
    assert found == kernel.arguments
    assert kernel.family == "running" or found[-1] == "threads"


THREADED = {
    "nchw": [(5, 7, 49), (64, 9, 900), (1, 2, 100003)],
    "nc": [(1, 37, 5), (1, 20011, 33), (1, 200003, 2), (3, 4099, 17)],
}


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_any_thread_count_gives_the_same_bits(
    backend: Backend, family: str, dtype: str, offset: float
) -> None:
    for sizes in THREADED[family]:
        case = Case(family, sizes, dtype, offset)
        runs = [_outputs(backend, case, threads=threads) for threads in (1, 2, 3, 4)]
        for run in runs[1:]:
            for name, values in runs[0].items():
                assert np.array_equal(values, run[name]), (sizes, name)


def _outputs(backend: Backend, case: Case, **given: Any) -> dict[str, Any]:
    """Every output of every pass, fed by `forward` and `reduce_grads` as in a layer."""
    forward = arguments(case, **given)
    backend.run(case.family, "forward", forward)
    saved = {name: forward[name] for name in ("mean", "var", "rstd")}
    reduced = arguments(case, **{**given, **saved})
    backend.run(case.family, "reduce_grads", reduced)
    saved |= {name: reduced[name] for name in ("sum_dy", "sum_dy_xmu")}
    found = {f"forward {name}": values for name, values in saved.items()}
    found["forward y"] = forward["y"]
    cells = {name: np.full(case.cells, np.nan) for name in ("mean", "m2")}
    passes: list[tuple[str, str, dict[str, Any]]] = [
        ("moments", "moments", {**given, **cells}),
        ("apply", "apply", {**given, **saved}),
        ("apply_grads", "apply_grads", {**given, **saved}),
        ("backward", "backward training", {**given, **saved, "training": True}),
        ("backward", "backward evaluation", {**given, **saved, "training": False}),
    ]
    for name, label, values in passes:
        values = arguments(case, **values)
        backend.run(case.family, name, values)
        found |= {f"{label} {key}": values[key] for key in KERNEL[case.family, name].outputs}
    return found


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes", [("nchw", (3, 5, 49)), ("nchw", (9, 6, 4096)), ("nc", (1, 4099, 33))], ids=str
)
def test_in_place_gives_the_same_bits(
    backend: Backend, dtype: str, sizes: tuple[str, tuple[int, int, int]]
) -> None:
    case = Case(*sizes, dtype, 1e3)
    apart = _outputs(backend, case)
    saved = {name: apart[f"forward {name}"] for name in ("mean", "var", "rstd", "sum_dy",
                                                        "sum_dy_xmu")}  # fmt: skip
    for name, output, inputs, want in (
        ("forward", "y", ("x",), "forward y"),
        ("apply", "y", ("x",), "apply y"),
        ("apply_grads", "dx", ("dy", "x"), "apply_grads dx"),
        ("backward", "dx", ("dy", "x"), "backward training dx"),
    ):
        for shared in inputs:
            values = arguments(case, **saved)
            values[output] = values[shared] = values[shared].copy()
            backend.run(case.family, name, values)
            assert np.array_equal(values[output], apart[want]), (name, shared)


@pytest.mark.parametrize(
    ("backend", "read_only"),
    [
        (backend, read_only)
        for backend in backends()
        for read_only in (False, True)
        # normcore.numba_kernels hands Numba's kernels a writable alias of what is read-only.
        if not (read_only and backend.name == "numba")
    ],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_not_written(backend: Backend, read_only: bool, family: str) -> None:
    case = Case(family, (4, 9, 65), "float32", 1e3, threads=2)
    given = {name: arguments(case)[name] for name in ("x", "dy", "weight", "bias")}
    before = {name: values.copy() for name, values in given.items()}
    for values in given.values():
        values.flags.writeable = not read_only
    _outputs(backend, case, **given)
    for name, values in before.items():
        assert np.array_equal(values, given[name]), name


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6 / 3, 1e30])
def test_constant_channel_gives_exactly_bias(
    backend: Backend, family: str, dtype: str, value: float
) -> None:
    for sizes in ((3, 7, 49), (1, 1000, 6), (2, 3, 16387)):
        case = Case(family, sizes, dtype)
        constant = np.dtype(dtype).type(value)
        values = _outputs(backend, case, x=np.full(np.prod(sizes), constant))
        bias = np.broadcast_to(case.affine(arguments(case)["bias"]), sizes).reshape(-1)
        assert np.array_equal(values["forward y"], bias)
        assert np.array_equal(values["apply y"], bias)
        assert np.all(values["forward mean"] == constant)
        assert np.all(values["forward var"] == 0)
        assert np.all(values["moments mean"] == constant)
        assert np.all(values["moments m2"] == 0)
        assert not values["backward training dweight"].any()


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-19, 1e19, 1e30, 1e38])
@pytest.mark.parametrize("signs", ["mixed", "positive"])
def test_extreme_magnitudes_stay_finite_and_right(
    backend: Backend, family: str, dtype: str, size: float, signs: str
) -> None:
    case = Case(family, (4, 30, 21), dtype, weight=None, bias=None)
    random = np.random.default_rng(5)
    x = random.uniform(-3 if signs == "mixed" else 1, 3, case.sizes) * size
    x = x.astype(dtype)
    y, statistics = reference.batch_norm_forward(x, eps=EPS, axes=case.axes)
    found = _outputs(backend, case, x=x.reshape(-1))
    assert [name for name, values in found.items() if not np.isfinite(values).all()] == []
    for name in ("forward y", "apply y"):
        assert error(found[name], y.reshape(-1), np.abs(y).max()) <= 1e-6, name
    var = statistics.var.reshape(-1)
    assert error(found["forward var"], var, var) <= TOLERANCE["variance"]["float32"]
    dy = arguments(case)["dy"].reshape(case.sizes)
    dx, _, _ = reference.batch_norm_backward(dy, x, eps=EPS, axes=case.axes)
    for name in ("backward training dx", "apply_grads dx"):
        # Below the smallest normal float32 its steps are 1.4e-45.
        assert error(found[name], dx.reshape(-1), np.abs(dx).max()) <= max(
            1e-6, 3e-45 / np.abs(dx).max()
        ), name


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_stay_in_their_channel(
    backend: Backend, family: str, dtype: str, bad: float
) -> None:
    for sizes in ((3, 37, 50), (2, 9, 4099)):
        n, c, s = sizes
        case = Case(family, sizes if family == "nchw" else (1, n * s, c), dtype)
        clean = arguments(case)
        poisoned = 5
        axis = 1 if family == "nchw" else 2
        channel = [slice(None)] * 3
        channel[axis] = poisoned
        for name in ("x", "dy"):
            values = clean[name].reshape(case.sizes).copy()
            values[tuple(channel)].flat[11] = bad
            before, after = (
                _outputs(backend, case, **{name: given.reshape(-1)})
                for given in (clean[name], values)
            )
            for key, want in before.items():
                got = after[key]
                shape = case.sizes if want.size == np.prod(case.sizes) else None
                if key.startswith("moments") and family == "nchw":
                    shape = case.sizes[:2]
                where = axis if shape else 0
                want, got = (
                    np.delete(v.reshape(shape or -1), poisoned, where) for v in (want, got)
                )
                assert np.array_equal(want, got), (name, key)
            if name == "x":
                assert not np.isfinite(after["forward y"].reshape(case.sizes)[tuple(channel)]).any()
                assert not np.isfinite(after["forward var"][poisoned])
            assert not np.isfinite(
                after["backward training dx"].reshape(case.sizes)[tuple(channel)]
            ).any()


@BACKENDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("offset", OFFSETS)
def test_exactly_representable_statistics_give_exact_results(
    backend: Backend, family: str, dtype: str, offset: float
) -> None:
    # oneDNN's benchdnn builds such inputs: x = offset - 2 or offset + 2, equally often, so that
    # mean = offset, var = 4, rstd = 1/2 with eps = 0 and every step is exact in any order.
    sizes = (8, 5, 64) if family == "nchw" else (1, 512, 5)
    case = Case(family, sizes, dtype)
    random = np.random.default_rng(3)
    by_channel = random.permuted(np.tile([-1.0, 1.0], (5, 256)), axis=1)
    gradient_by_channel = random.integers(-8, 9, (5, 512)).astype(float)

    def laid_out(values: Any) -> Any:
        if family == "nchw":
            values = values.reshape(5, 8, 64).transpose(1, 0, 2)
        else:
            values = values.T
        return np.ascontiguousarray(values, dtype).reshape(-1)

    weight, bias = (np.array(v, dtype) for v in ([1, 2, 0.5, -4, 8], [0, 1, -1, 3, 0.25]))
    found = _outputs(
        backend, case, x=laid_out(offset + 2 * by_channel), dy=laid_out(gradient_by_channel),
        weight=weight, bias=bias, eps=0.0,
    )  # fmt: skip
    sums, products = gradient_by_channel.sum(1), (gradient_by_channel * by_channel).sum(1)
    dx = gradient_by_channel - (sums[:, None] + by_channel * products[:, None]) / 512
    y = laid_out(by_channel * weight[:, None] + bias[:, None])
    for name, want in {
        "forward mean": np.full(5, offset),
        "forward var": np.full(5, 4.0),
        "forward rstd": np.full(5, 0.5),
        "forward y": y,
        "apply y": y,
        "forward sum_dy": sums,
        "forward sum_dy_xmu": 2 * products,
        "backward training dbias": sums,
        "backward training dweight": products,
        "backward training dx": laid_out(dx * weight[:, None] / 2),
        "apply_grads dx": laid_out(dx * weight[:, None] / 2),
        "backward evaluation dx": laid_out(gradient_by_channel * weight[:, None] / 2),
    }.items():
        assert np.array_equal(found[name], want), name


def test_table_names_every_pass_and_size() -> None:
    assert {name for _, name in KERNEL} == {*PASSES, "update"}
    assert min(map(len, (NCHW_SIZES, NC_SIZES))) >= 20
