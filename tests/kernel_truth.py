"""What is right for a case of the kernel tests, and how close to it a kernel has to come.

The truth is computed by the formulas of `normcore.reference` in float64, for float64 arrays in long
double, on elements sorted by statistic: (statistics, elements of one). `Layout` says which those
are, element by element, so no axes are involved, and nothing is shared with the numpy backend but
the formulas.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from kernel_cases import ACTIVATIONS, EPS, HALVES, Array, Case, inputs, kept, layout

from normcore import reference

# DESIGN.md "Numerics", with what each error is measured against.
TOLERANCE = {
    # y and dx: max |err| / max(1, |ref|). Half a unit in the last place of float32 is 6e-8, of
    # float64 1.1e-16; four elementwise operations and a rounded rstd leave 4 to 5 of those units.
    # float16 and bfloat16: as float32, beside half a unit in their own last place.
    "elementwise": {"float32": 1e-6, "float64": 4e-15},
    # dweight, dbias, sum_dy, sum_dy_xmu against the L2 norm of their summands, the size that
    # independent rounding errors of the summands add up to, or the sum itself where that is
    # larger (it is rounded on its store).
    "sums": {"float32": 1e-6, "float64": 1e-14},
    # Means against max(|mean|, std). float64: some hundred deviations from a shift that is a
    # standard deviation off, added one by one, leave 1.1e-15 of a standard deviation.
    "mean": {"float32": 1e-7, "float64": 2e-15},
    # var, M2 and rstd against themselves. The bound of y, which takes half of var's error; at the
    # default momentum a tenth of it reaches the running variance. Lanes of some hundred squares
    # added one by one are off by 2e-15 to 3e-15. Halves are added as float32 in blocks: what that
    # loses stays under a unit in the last place of y, which is 500 times as large.
    "variance": {"half": 1e-6, "float32": 1e-7, "float64": 4e-15},
    # The running statistics against themselves; they are stored in their own dtype.
    "running": {"float32": 1e-7, "float64": 1e-15},
}


def wide(case: Case) -> Any:
    """The dtype in which the truth of a case is computed."""
    return np.longdouble if case.dtype == "float64" else np.float64


@cache
def _order(case: Case, index: str) -> Array:
    return np.argsort(getattr(layout(case), index), kind="stable")


class Sorted:
    """Arrays of a case as (statistics, elements of one) in its wide dtype, and back."""

    def __init__(self, case: Case, index: str = "statistic") -> None:
        self.case, self.dtype = case, wide(case)
        self.order = _order(replace(case, threads=1), index)
        self.rows = int(getattr(layout(case), index).max()) + 1

    def full(self, values: Array) -> Array:
        return values.reshape(-1)[self.order].reshape(self.rows, -1).astype(self.dtype)

    def mask(self, values: Array | None) -> Array | None:
        return None if values is None else values[self.order].reshape(self.rows, -1)

    def parameter(self, values: Array | None) -> Array | None:
        return None if values is None else self.full(values[layout(self.case).parameter])

    def statistic(self, values: Array) -> Array:
        return values.reshape(-1, 1).astype(self.dtype)

    def back(self, values: Array) -> Array:
        found = np.empty(values.size, values.dtype)
        found[self.order] = np.ascontiguousarray(values).reshape(-1)
        return found

    def by_parameter(self, values: Array) -> Array:
        """Sums over the elements of each parameter."""
        return np.sum(Sorted(self.case, "parameter").full(self.back(values)), 1)


ROWS = (1,)
"""The axis of one statistic's elements."""


@cache
def cells(case: Case) -> tuple[Array, Array]:
    """mean and m2 of `moments`."""
    view = Sorted(case, "cell")
    found = reference.moments(view.full(inputs(case)["x"]), ROWS, wide(case))
    return found.mean.reshape(-1), np.sum(found.deviation**2, 1)


@cache
def forward(case: Case, x: bytes | None = None) -> dict[str, Array]:
    """mean, var, rstd, sorted deviations, y, and z, which is y before the activation.

    x are the bytes of another array in the place of the case's.
    """
    given, view = inputs(case), Sorted(case)
    array = given["x"] if x is None else np.frombuffer(x, case.storage)
    mask = view.mask(kept(case))
    rows = view.full(array)
    found = reference.moments(rows, ROWS, wide(case), mask=mask, centre=case.centre)
    rstd = reference.inverse_deviation(found.var, EPS)
    if mask is not None:
        rstd = np.where(mask.any(1, keepdims=True), rstd, 0)
    statistics = {"mean": found.mean, "var": found.var, "rstd": rstd}
    statistics = {name: values.reshape(-1) for name, values in statistics.items()}
    return statistics | _applied(case, view, found.deviation, rstd) | {"deviation": found.deviation}


def _applied(case: Case, view: Sorted, deviation: Array, rstd: Array) -> dict[str, Array]:
    given = inputs(case)
    weight, bias = (view.parameter(given[name]) for name in ("weight", "bias"))
    z = reference.normalize(deviation, rstd, weight, bias)
    if case.residual:
        z = z + view.full(given["residual"])
    return {"y": view.back(activated(case, z)), "z": view.back(z)}


def activated(case: Case, z: Array) -> Array:
    with np.errstate(all="ignore"):  # exp(-z) beyond the range is an infinity that is divided by
        y: Array = reference.ACTIVATION[ACTIVATIONS[case.activation]](z)
    return y


def applied(case: Case, mean: Array | None, rstd: Array) -> dict[str, Array]:
    """y and z for statistics that are taken as exact."""
    view = Sorted(case)
    deviation = view.full(inputs(case)["x"])
    if mean is not None:
        deviation = deviation - view.statistic(mean)
    return _applied(case, view, deviation, view.statistic(rstd))


def renormalized(case: Case, r: Array, d: Array) -> Array:
    """y of `renorm` for r and d that are taken as exact."""
    given, view, exact = inputs(case), Sorted(case), forward(case)
    x_hat = reference.normalize(exact["deviation"], view.statistic(exact["rstd"]))
    z = reference.normalize(
        x_hat * view.statistic(r) + view.statistic(d),
        np.ones((), view.dtype),
        *(view.parameter(given[name]) for name in ("weight", "bias")),
    )
    z = z if given["residual"] is None else z + view.full(given["residual"])
    return view.back(activated(case, z))


def saved(case: Case, training: bool = True) -> dict[str, Array | None]:
    """mean and rstd as a backward is given them: float64, off the batch's in evaluation."""
    exact = forward(replace(case, threads=1))
    mean, rstd = exact["mean"].astype(np.float64), exact["rstd"].astype(np.float64)
    if not training:
        mean, rstd = mean + 0.5, rstd * 0.75
    return {"mean": mean if case.centre else None, "rstd": rstd}


@cache
def backward(case: Case, training: bool = True) -> dict[str, Array]:
    """dx, dweight, dbias, and the sizes that their errors are measured against."""
    return _backward(case, training, inputs(case)["dy"])


@cache
def activation_backward(case: Case, training: bool = True) -> dict[str, Array]:
    """The same of `activation_backward`, with g, and where rounding cannot choose its side.

    dy is 0 where it can.
    """
    g, clear = activation_gradient(case, **saved(case, training))
    if case.mask is not None:
        g = np.where(kept(case), g, 0)
    g = np.where(clear, g, 0)
    alone = replace(case, addend=False)
    exact = _backward(alone, training, g) | {"g": g, "clear": clear}
    # A slope is as exact as 1 is, however small: so are the sums of what it multiplies.
    whole = _backward(alone, training, np.where(clear, inputs(case)["dy"], 0))
    sizes = {name: np.maximum(exact[name], whole[name]) for name in exact if "size" in name}
    return exact | sizes


def _backward(case: Case, training: bool, gradient: Array) -> dict[str, Array]:
    given, view, statistics = inputs(case), Sorted(case), saved(case, training)
    rstd = view.statistic(statistics["rstd"])
    mask = view.mask(kept(case))
    weight = view.parameter(given["weight"])
    dy, x = view.full(gradient), view.full(given["x"])
    if mask is not None:
        dy, x = np.where(mask, dy, 0), np.where(mask, x, 0)
    if training:
        deviation = reference.moments(x, ROWS, view.dtype, mask=mask, centre=case.centre).deviation
    else:
        deviation = x - view.statistic(statistics["mean"])
    if mask is not None:
        deviation = np.where(mask, deviation, 0)
    scaled = dy if weight is None else dy * weight
    dx = scaled * rstd
    if training:
        dx = reference.input_gradient(scaled, deviation, rstd, ROWS, mask=mask, centre=case.centre)
    dx = dx if mask is None else np.where(mask, dx, 0)
    if case.addend:
        dx = dx + view.full(given["addend"])
    x_hat = deviation * rstd
    terms = rstd * np.abs(scaled).max(1, keepdims=True)
    count = case.count if mask is None else mask.sum(1, keepdims=True)
    # Two elements have x_hat = -1, 1 and dx = 0, as the difference of terms of size
    # weight * rstd * dy, and a small standard deviation makes all of them large. No arithmetic in
    # dx's own precision does better than their rounding.
    size = np.where((count < 16) | (rstd > 4), np.maximum(terms, np.abs(dx)), np.abs(dx))
    # A sum of few terms may happen to be of x that lie on the mean: there, too, no arithmetic does
    # better than the rounding of an x that does not.
    product = dy * (x_hat if x.size >= 16 * case.parameters else np.maximum(1, np.abs(x_hat)))
    return {
        "dx": view.back(dx),
        "dweight": view.by_parameter(dy * x_hat),
        "dbias": view.by_parameter(dy),
        "size_dx": np.maximum(1, view.back(size)),
        "size_dweight": np.sqrt(view.by_parameter(product**2)),
        "size_dbias": np.sqrt(view.by_parameter(dy**2)),
    }


@cache
def sums(case: Case) -> dict[str, Array]:
    """sum_dy, sum_dy_xmu, and the L2 norms of their summands."""
    view = Sorted(case)
    dy = view.full(inputs(case)["dy"])
    products = dy * (view.full(inputs(case)["x"]) - view.statistic(saved(case)["mean"]))
    return {
        "sum_dy": np.sum(dy, 1),
        "sum_dy_xmu": np.sum(products, 1),
        "size_sum_dy": np.sqrt(np.sum(dy**2, 1)),
        "size_sum_dy_xmu": np.sqrt(np.sum(products**2, 1)),
    }


def gradient(case: Case, mean: Array, rstd: Array, sum_dy: Array, sum_dy_xmu: Array) -> Array:
    """`apply_grads` for sums that are taken as exact."""
    given, view = inputs(case), Sorted(case)
    mean, rstd, sum_dy, sum_dy_xmu = map(view.statistic, (mean, rstd, sum_dy, sum_dy_xmu))
    x_hat = (view.full(given["x"]) - mean) * rstd
    dy = view.full(given["dy"])
    dx = rstd * (dy - sum_dy / case.count - x_hat * (sum_dy_xmu * rstd / case.count))
    weight = view.parameter(given["weight"])
    return view.back(dx if weight is None else dx * weight)


KINKS = {"relu": (0,), "relu6": (0, 6), "leaky_relu": (0,)}
"""Where the derivative of an activation jumps."""


def activation_gradient(case: Case, mean: Array | None, rstd: Array) -> tuple[Array, Array]:
    """g for statistics that are taken as exact, and where rounding cannot choose its side."""
    z = applied(case, mean, rstd)["z"]
    with np.errstate(all="ignore"):
        slope = reference.SLOPE[ACTIVATIONS[case.activation]](z)
    clear = np.ones(z.shape, bool)
    for kink in KINKS.get(case.activation or "", ()):
        clear &= np.abs(z - kink) > TOLERANCE["elementwise"]["float32"] * np.maximum(1, np.abs(z))
    return inputs(case)["dy"].astype(z.dtype) * slope, clear


def half_unit(expected: Array, dtype: np.dtype[Any]) -> Array | float:
    """Half a unit in the last place of float16 or bfloat16 at `expected`; 0 for other dtypes."""
    if dtype.itemsize != 2:
        return 0.0
    digits, least = (11, -14) if dtype == np.float16 else (8, -126)
    _, exponent = np.frexp(expected)
    return np.ldexp(0.5, np.maximum(exponent - 1, least) - digits + 1)


def error(found: Array, expected: Array, scale: Array | float) -> float:
    """max |found - expected| / scale; 0 / 0 is 0, and a NaN counts as an infinite error.

    Half a unit in the last place of a half is its rounding, and free.
    """
    found, dtype = found.reshape(-1), found.dtype
    if dtype.itemsize == 2:
        found = found.astype(np.float64)
    if not np.isfinite(found).all():
        return float("inf")
    difference = np.maximum(0, np.abs(found - expected) - half_unit(expected, dtype))
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(difference == 0, 0, difference / scale).max(initial=0))


def elementwise_scale(expected: Array) -> Array:
    return np.maximum(1, np.abs(expected))


def tolerance(kind: str, case: Case, dtype: Any) -> float:
    """Of an output of `dtype`: a parameter's gradient may be float32 beside float64 arrays."""
    if case.dtype in HALVES:
        return TOLERANCE[kind].get("half", TOLERANCE[kind]["float32"])
    return TOLERANCE[kind]["float64" if case.dtype == dtype == "float64" else "float32"]
