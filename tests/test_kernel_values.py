"""Data on which every kernel must do better than a tolerance: constant, huge, infinite, exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernel_cases import (
    BACKENDS,
    CHANNELS,
    DTYPES,
    EPS,
    HALVES,
    OFFSETS,
    Array,
    Backend,
    Case,
    arguments,
)
from kernel_cases import layout as layout_of
from kernel_errors import outputs
from kernel_truth import TOLERANCE, Sorted, error

from normcore import reference

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
FAMILIES = pytest.mark.parametrize("family", ["nchw", "nc", "rows", "cols"])


@BACKENDS
@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])
@FAMILIES
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6 / 3, 1e30])
def test_constant_channel_gives_exactly_bias(
    backend: Backend, family: str, dtype: str, value: float
) -> None:
    for sizes in ((3, 7, 49), (1, 1000, 6), (2, 3, 16387)):
        case = Case(family, sizes if family != "rows" else (sizes[0] * sizes[1], sizes[2]), dtype)
        if dtype == "float16":
            value = np.clip(value, -65504, 65504)
        x = np.full(np.prod(sizes), value, case.storage)
        constant = x[0].astype(np.float64)
        values = outputs(backend, case, x=x)
        bias = arguments(case)["bias"].astype(case.storage)[layout_of(case).parameter]
        assert np.array_equal(values["forward y"], bias)
        assert np.all(values["forward mean"] == constant)
        assert np.all(values["forward rstd"] == 1 / np.sqrt(EPS))
        assert not values["backward dweight"].any()
        if family in CHANNELS:
            assert np.array_equal(values["apply y"], bias)
            assert np.all(values["forward var"] == 0)
            assert np.all(values["moments mean"] == constant)
            assert np.all(values["moments m2"] == 0)
        if family == "rows":
            found = outputs(backend, case, x=x, addend=np.zeros_like(x))
            assert np.array_equal(found["add_forward y"], bias)


@BACKENDS
@EACH_DTYPE
@FAMILIES
@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-19, 1e19, 1e30, 1e38])
@pytest.mark.parametrize("signs", ["mixed", "positive", "uncentred"])
def test_extreme_magnitudes_stay_finite_and_right(
    backend: Backend, family: str, dtype: str, size: float, signs: str
) -> None:
    if family in CHANNELS and signs == "uncentred":
        signs = "positive, negative"
    sizes = (4, 30, 21) if family != "rows" else (40, 63)
    case = Case(family, sizes, dtype, weight=None, bias=None, centre=signs != "uncentred")
    random = np.random.default_rng(5)
    x = random.uniform(1 if "positive" in signs else -3, 3, np.prod(sizes)) * size
    if "negative" in signs:
        x = -x
    x = x.astype(dtype)
    view, rows = Sorted(replace(case, dtype="float32")), (1,)
    statistics = reference.moments(view.full(x), rows, centre=case.centre)
    rstd = reference.inverse_deviation(statistics.var, EPS)
    y = view.back(reference.normalize(statistics.deviation, rstd))
    found = outputs(backend, case, x=x)
    assert [name for name, values in found.items() if not np.isfinite(values).all()] == []
    for name in ("forward y", "apply y"):
        if name in found:
            assert error(found[name], y, np.abs(y).max()) <= 1e-6, name
    rstd = rstd.reshape(-1)
    assert error(found["forward rstd"], rstd, rstd) <= TOLERANCE["variance"]["float32"]
    if family in CHANNELS:
        var = statistics.var.reshape(-1)
        assert error(found["forward var"], var, var) <= TOLERANCE["variance"]["float32"]
    dy = view.full(arguments(case)["dy"])
    dx = view.back(
        reference.input_gradient(
            dy, statistics.deviation, view.statistic(rstd), rows, centre=case.centre
        )
    )
    for name in ("backward dx", "apply_grads dx"):
        # Below the smallest normal float32 its steps are 1.4e-45.
        if name in found:
            assert error(found[name], dx, np.abs(dx).max()) <= max(
                1e-6, 3e-45 / np.abs(dx).max()
            ), name


@BACKENDS
@pytest.mark.parametrize("sizes", [(1, 30, 200), (3, 30, 5)])
@pytest.mark.parametrize("huge", [[0], [66, 130], [199, 3]])
def test_huge_channels_leave_their_neighbours_alone(
    backend: Backend, sizes: tuple[int, int, int], huge: list[int]
) -> None:
    case = Case("nc", sizes, "float32", weight=None, bias=None)
    x = arguments(case)["x"].copy()
    channel = layout_of(case).statistic % sizes[2]
    hit = np.isin(channel, np.mod(huge, sizes[2]))
    clean, found = (outputs(backend, case, x=np.where(hit, x * f, x)) for f in (1, 2.0**110))
    var = clean["forward var"].repeat(sizes[1]).reshape(-1, sizes[2], sizes[1])
    eps_is_nothing = np.sqrt(1 + EPS / var.transpose(0, 2, 1).reshape(-1))
    for name in ("forward y", "apply y", "backward dx", "apply_grads dx"):
        assert error(found[name][~hit], clean[name][~hit], 1) <= 1e-6, name
        if name.endswith("y"):
            want = (clean[name] * eps_is_nothing)[hit]
            assert error(found[name][hit], want, np.abs(want).max()) <= 1e-6, name


@BACKENDS
@EACH_DTYPE
@FAMILIES
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_stay_in_their_statistic(
    backend: Backend, family: str, dtype: str, bad: float
) -> None:
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "nchw": ((3, 37, 50), (2, 9, 4099)),
        "nc": ((1, 150, 37), (1, 8198, 9)),
        "rows": ((37, 150), (9, 8198)),
        "cols": ((1, 150, 37), (2, 4099, 9)),
    }
    for sizes in shapes[family]:
        case = Case(family, sizes, dtype)
        clean = arguments(case)
        belongs = layout_of(case)
        poisoned = 5
        hit = belongs.statistic == poisoned
        for name in ("x", "dy"):
            values = clean[name].copy()
            values[np.flatnonzero(hit)[11]] = bad
            before, after = (
                outputs(backend, case, **{name: given}) for given in (clean[name], values)
            )
            for key, want in before.items():
                assert np.array_equal(
                    _elsewhere(case, key, want), _elsewhere(case, key, after[key])
                )
            if name == "x":
                assert not np.isfinite(after["forward y"][hit]).any()
                assert not np.isfinite(after["forward mean"][poisoned])
            assert not np.isfinite(after["backward dx"][hit]).any()


def _elsewhere(case: Case, key: str, values: Array) -> Array:
    """What of an output has nothing to do with statistic 5."""
    belongs = layout_of(case)
    if values.size == belongs.statistic.size:
        return values[belongs.statistic != 5]
    if key.startswith("moments"):
        channel = np.empty(case.cells, int)
        channel[belongs.cell] = belongs.statistic
        return values[channel != 5]
    if key.endswith(("dweight", "dbias")):
        mixed = np.unique(belongs.parameter[belongs.statistic == 5])
        return np.delete(values, mixed)
    return np.delete(values, 5)


@BACKENDS
@EACH_DTYPE
@FAMILIES
@pytest.mark.parametrize("offset", OFFSETS)
def test_exactly_representable_statistics_give_exact_results(
    backend: Backend, family: str, dtype: str, offset: float
) -> None:
    # oneDNN's benchdnn builds such inputs: x = offset - 2 or offset + 2, equally often, so that
    # mean = offset, var = 4, rstd = 1/2 with eps = 0 and every step is exact in any order.
    sizes = {"nchw": (8, 5, 64), "nc": (1, 512, 5), "rows": (5, 512), "cols": (1, 512, 5)}
    case = Case(family, sizes[family], dtype)
    view = Sorted(case)
    random = np.random.default_rng(3)
    signs = random.permuted(np.tile([-1.0, 1.0], (5, 256)), axis=1)
    dy = random.integers(-8, 9, (5, 512)).astype(float)
    weight = np.resize(np.array([1, 2, 0.5, -4, 8], dtype), case.parameters)
    bias = np.resize(np.array([0, 1, -1, 3, 0.25], dtype), case.parameters)

    def laid_out(values: Array) -> Any:
        return view.back(values).astype(dtype)

    scale, shift = (view.full(v[layout_of(case).parameter]) for v in (weight, bias))
    found = outputs(
        backend, case, x=laid_out(offset + 2 * signs), dy=laid_out(dy), weight=weight, bias=bias,
        eps=0.0,
    )  # fmt: skip
    scaled = dy * scale
    mean, product = (np.mean(v, 1, keepdims=True) for v in (scaled, scaled * signs))
    dx = laid_out((scaled - mean - signs * product) / 2)
    y = laid_out(signs * scale + shift)
    want = {
        "forward mean": np.full(5, offset),
        "forward rstd": np.full(5, 0.5),
        "forward y": y,
        "backward dx": dx,
        "backward dbias": view.by_parameter(dy),
        "backward dweight": view.by_parameter(dy * signs),
    }
    if family in CHANNELS:
        want |= {
            "forward var": np.full(5, 4.0),
            "apply y": y,
            "reduce_grads sum_dy": dy.sum(1),
            "reduce_grads sum_dy_xmu": 2 * (dy * signs).sum(1),
            "apply_grads dx": dx,
            "evaluation dx": laid_out(scaled / 2),
        }
    for name, values in want.items():
        assert np.array_equal(found[name], values), name
