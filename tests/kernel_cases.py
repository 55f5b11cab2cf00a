"""Cases, truth and tolerances of the kernel tests: which backends, which arrays, how close.

The full product of backends, sizes, dtypes, parameters, offsets and threads has a million cells.
`cases` walks the lists together instead, with periods that have no common factor, so that every
pair of choices meets somewhere and each size is seen in both dtypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import numpy as np
from normcore.kernels.table import KERNELS, SIZES

from normcore import reference

Array = np.ndarray[Any, Any]
KERNEL = {(kernel.family, kernel.name): kernel for kernel in KERNELS}
PASSES = ("moments", "apply", "forward", "reduce_grads", "apply_grads", "backward")
EPS = 1e-5

# DESIGN.md "Numerics", with what each error is measured against.
TOLERANCE = {
    # y and dx: max |err| / max(1, |ref|). Half a unit in the last place of float32 is 6e-8, of
    # float64 1.1e-16; four elementwise operations and a rounded rstd leave 4 to 5 of those units.
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
    # added one by one are off by 2e-15 to 3e-15.
    "variance": {"float32": 1e-7, "float64": 4e-15},
    # The running statistics against themselves; they are stored in their own dtype.
    "running": {"float32": 1e-7, "float64": 1e-15},
}


@dataclass(frozen=True)
class Backend:
    """A backend's kernel modules by family."""

    name: str
    modules: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name

    def run(self, family: str, name: str, values: Mapping[str, Any]) -> None:
        kernel = KERNEL[family, name]
        # The oracle is NumPy: what NaN and infinity do there is right, and is also a warning.
        with np.errstate(all="ignore"):
            getattr(self.modules[family], name)(*(values[key] for key in kernel.arguments))


@cache
def backends() -> tuple[Backend, ...]:
    """Every backend and instruction set that can run here."""
    families = {"nchw": reference.NCHW, "nc": reference.NC, "running": reference.RUNNING}
    found = [Backend("numpy", families)]
    numba = {family: import_module(f"normcore.kernels.{family}") for family in families}
    found.append(Backend("numba", numba))
    if find_spec("normcore.kernels.running_cy") is not None:
        cython = import_module("normcore.kernels.cython")
        found += [Backend(f"cython-{isa}", cython.modules(isa)) for isa in cython.available()]
    return tuple(found)


@dataclass(frozen=True)
class Case:
    """One array and everything that goes with it. weight, bias: None or "own" or "other" dtype."""

    family: str
    sizes: tuple[int, int, int]
    dtype: str = "float32"
    offset: float = 0.0
    weight: str | None = "own"
    bias: str | None = "own"
    threads: int = 1
    statistics: str = "float64"
    """dtype of mean and var in `apply`."""

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.sizes))
        affine = f"{self.weight}-{self.bias}".replace("None", "no")
        return (
            f"{self.family}-{sizes}-{self.dtype}-{self.offset:g}-{affine}-{self.statistics}"
            f"-t{self.threads}"
        )

    @property
    def channels(self) -> int:
        """Length of weight."""
        return self.sizes[1] if self.family == "nchw" else self.sizes[2]

    @property
    def cells(self) -> int:
        """Length of what `moments` gives."""
        first, second, third = self.sizes
        return first * second if self.family == "nchw" else first * third

    @property
    def groups(self) -> int:
        """Length of every other statistic."""
        return self.channels if self.family == "nchw" else self.cells

    @property
    def count(self) -> int:
        """Elements behind one statistic."""
        first, second, third = self.sizes
        return first * third if self.family == "nchw" else second

    @property
    def cell_axes(self) -> tuple[int, ...]:
        return (2,) if self.family == "nchw" else (1,)

    @property
    def axes(self) -> tuple[int, ...]:
        return (0, 2) if self.family == "nchw" else (1,)

    def affine(self, values: Array | None) -> Array | None:
        """(c,) as it broadcasts against x."""
        if values is None:
            return None
        return values.reshape((1, -1, 1) if self.family == "nchw" else (1, 1, -1))


NCHW_SIZES = (
    (1, 1, 1), (1, 5, 1), (4, 1, 1), (9, 17, 1), (1, 1, 2), (3, 7, 3), (2, 65, 5), (5, 33, 16),
    (2, 3, 49), (6, 70, 49), (32, 19, 49), (3, 4, 63), (4, 9, 65), (1, 2, 1023), (3, 2, 4097),
    (2, 3, 16385), (1, 1, 200001), (7, 1, 20000), (4001, 2, 3), (700, 11, 7), (2, 2049, 5),
    (1, 600, 49), (300, 1, 121),
)  # fmt: skip
NC_SIZES = (
    (1, 1, 1), (1, 1, 5), (1, 2, 1), (1, 4099, 1), (1, 9, 17), (1, 33, 3), (1, 7, 64),
    (1, 70, 69), (1, 3, 1000), (1, 257, 65), (1, 4097, 19), (1, 65537, 2), (1, 16385, 7),
    (1, 2, 20001), (1, 1030, 129), (3, 50, 7), (7, 1, 5), (2, 5, 1), (4, 513, 33), (600, 3, 5),
    (2, 3, 2050),
)  # fmt: skip
OFFSETS = (0.0, 1e3, 1e4, 1e6)
AFFINE = (
    ("own", "own"), (None, None), ("other", "other"), ("own", None), (None, "own"),
)  # fmt: skip
THREADS = (1, 2, 3)


@cache
def cases() -> tuple[Case, ...]:
    found = []
    for family, sizes in (("nchw", NCHW_SIZES), ("nc", NC_SIZES)):
        offsets, affine, threads = cycle(OFFSETS), cycle(AFFINE), cycle(THREADS)
        for index, shape in enumerate(sizes):
            for dtype in ("float32", "float64"):
                case = Case(family, shape, dtype, next(offsets), *next(affine), next(threads))
                if index % 7 == 3:
                    case = replace(case, statistics="float32")
                found.append(case)
            next(offsets)  # else float32 would never meet the offsets of float64
    for family, shape in (("nchw", (4, 6, 147)), ("nc", (1, 600, 37))):
        for dtype in ("float32", "float64"):
            found += [Case(family, shape, dtype, offset) for offset in OFFSETS]
    return tuple(found)


def compiled(backend: Backend, case: Case) -> Case:
    """The case, with fewer combinations of dtypes for Numba.

    Numba takes 5 s to compile `forward` or `backward` for one combination of parameter dtypes:
    it sees each array dtype with its own parameters and none, and float64 with float32 ones.
    """
    if backend.name != "numba":
        return case
    kind = case.weight if case.weight == case.bias else "own"
    kind = "own" if case.dtype == "float32" and kind == "other" else kind
    statistics = case.statistics if (case.dtype, kind) == ("float32", "own") else "float64"
    return replace(case, weight=kind, bias=kind, statistics=statistics)


def other(dtype: str) -> str:
    return "float64" if dtype == "float32" else "float32"


@cache
def _arrays(case: Case) -> dict[str, Any]:
    # Every channel its own scale, mean and gradient, so that a mixed-up channel shows.
    random = np.random.default_rng([*case.sizes, int(case.offset)])
    scale = case.affine(random.uniform(0.5, 2, case.channels))
    centre = case.affine(case.offset * random.uniform(0.8, 1.2, case.channels))
    given: dict[str, Any] = {
        "x": (random.standard_normal(case.sizes) * scale + centre).astype(case.dtype),
        "dy": (random.standard_normal(case.sizes) + 0.3).astype(case.dtype),
    }
    dtypes = {"own": case.dtype, "other": other(case.dtype)}
    for name, kind in (("weight", case.weight), ("bias", case.bias)):
        values = random.uniform(0.5, 1.5, case.channels)
        given[name] = None if kind is None else values.astype(dtypes[kind])
    for array in given.values():
        if array is not None:
            array.flags.writeable = False  # cached, so that the truth is computed once
    return given


def arguments(case: Case, **given: Any) -> dict[str, Any]:
    """All arguments of all kernels of a family, outputs filled with NaN; `given` replaces some."""
    values = {name: a if a is None else a.copy() for name, a in _arrays(case).items()}
    values |= {"eps": EPS, "threads": case.threads, "training": True, "count": float(case.count)}
    values.update(zip(SIZES[case.family], case.sizes, strict=True))
    size = values["x"].size
    parameters = case.dtype if values["weight"] is None else values["weight"].dtype
    shapes = {"y": size, "dx": size, "dweight": case.channels, "dbias": case.channels}
    dtypes = {"y": case.dtype, "dx": case.dtype, "dweight": parameters, "dbias": parameters}
    for name in ("y", "dx", "dweight", "dbias", "mean", "var", "rstd", "sum_dy", "sum_dy_xmu"):
        shape = shapes.get(name, case.groups)
        values[name] = np.full(shape, np.nan, dtypes.get(name, np.float64))
    for name in ("x", "dy"):
        values[name] = values[name].reshape(-1)
    values.update(given)
    return values


def wide(case: Case) -> Any:
    """The dtype in which the truth of a case is computed."""
    return np.float64 if case.dtype == "float32" else np.longdouble


@cache
def truth(case: Case, training: bool = True) -> dict[str, Array]:
    """What the kernels should give; the statistics that they take are float64 and exact."""
    given, dtype = _arrays(case), wide(case)
    x, dy = given["x"].astype(dtype), given["dy"].astype(dtype)
    weight, bias = (case.affine(given[name]) for name in ("weight", "bias"))
    y, statistics = reference.batch_norm_forward(x, weight, bias, EPS, case.axes, dtype)
    cell = reference.moments(x, case.cell_axes, dtype)
    scale = 1 if weight is None else weight.astype(dtype)
    found = {
        "y": y,
        "cell_mean": cell.mean,
        "cell_m2": np.sum(cell.deviation**2, case.cell_axes),
        "mean": statistics.mean,
        "var": statistics.var,
        "rstd": 1 / np.sqrt(statistics.var + EPS),
    }
    # What the kernels are given from here on: float64, off the true statistics in evaluation.
    mean, rstd = found["mean"].astype(np.float64), found["rstd"].astype(np.float64)
    if not training:
        mean, rstd = mean + 0.5, rstd * 0.75
    deviation = x - mean
    if training:
        dx, _, _ = reference.batch_norm_backward(dy, x, weight, EPS, case.axes, dtype)
        x_hat = statistics.deviation * rstd
    else:
        dx, x_hat = dy * rstd * scale, deviation * rstd
    reduced = (0, *case.cell_axes)
    found |= {
        "given_mean": mean,
        "given_rstd": rstd,
        "given_var": found["var"].astype(np.float64),
        "sum_dy": np.sum(dy, case.axes),
        "sum_dy_xmu": np.sum(dy * deviation, case.axes),
        "dx": dx,
        "dweight": np.sum(dy * x_hat, reduced),
        "dbias": np.sum(dy, reduced),
        # Sizes that errors are measured against.
        "norm_sum_dy": np.sqrt(np.sum(dy**2, case.axes)),
        "norm_sum_dy_xmu": np.sqrt(np.sum((dy * deviation) ** 2, case.axes)),
        "norm_dweight": np.sqrt(np.sum((dy * x_hat) ** 2, reduced)),
        "norm_dbias": np.sqrt(np.sum(dy**2, reduced)),
        "dx_terms": np.broadcast_to(np.abs(scale * rstd) * np.abs(dy).max(), x.shape),
    }
    return {name: values.reshape(-1) for name, values in found.items()}


def applied(case: Case, mean: Array, var: Array) -> Array:
    """`apply` for statistics that are taken as exact."""
    given, dtype = _arrays(case), wide(case)
    mean, var = (
        (case.affine(values) if case.family == "nchw" else values.reshape(case.sizes[0], 1, -1))
        .astype(dtype)
        for values in (mean, var)
    )  # fmt: skip
    weight, bias = (case.affine(given[name]) for name in ("weight", "bias"))
    return reference.normalize(given["x"].astype(dtype) - mean, var, weight, bias, EPS).reshape(-1)


def gradient(case: Case, mean: Array, rstd: Array, sum_dy: Array, sum_dy_xmu: Array) -> Array:
    """`apply_grads` for sums that are taken as exact."""
    given, dtype = _arrays(case), wide(case)
    shape = (1, -1, 1) if case.family == "nchw" else (case.sizes[0], 1, -1)
    mean, rstd, sum_dy, sum_dy_xmu = (
        values.reshape(shape).astype(dtype) for values in (mean, rstd, sum_dy, sum_dy_xmu)
    )
    x_hat = (given["x"].astype(dtype) - mean) * rstd
    dx = rstd * (given["dy"] - sum_dy / case.count - x_hat * (sum_dy_xmu * rstd / case.count))
    weight = case.affine(given["weight"])
    return (dx if weight is None else dx * weight).reshape(-1)


def error(found: Array, expected: Array, scale: Array | float) -> float:
    """max |found - expected| / scale; 0 / 0 is 0, and a NaN counts as an infinite error."""
    found = found.reshape(-1)
    if not np.isfinite(found).all():
        return float("inf")
    difference = np.abs(found - expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(difference == 0, 0, difference / scale).max(initial=0))


def elementwise_scale(expected: Array) -> Array:
    return np.maximum(1, np.abs(expected))


def sum_scale(expected: dict[str, Array], name: str) -> Array:
    return np.maximum(expected[f"norm_{name}"], np.abs(expected[name]))


def dx_scale(case: Case, expected: dict[str, Array]) -> Array:
    """max(1, |dx|); with few elements per channel, the terms that cancel in dx.

    Two elements have x_hat = -1, 1 and dx = 0, as the difference of terms of size
    weight * rstd * dy. No arithmetic in dx's own precision does better than their rounding.
    """
    scale = elementwise_scale(expected["dx"])
    return scale if case.count >= 16 else np.maximum(scale, expected["dx_terms"])
