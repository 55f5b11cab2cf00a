"""Cases of the kernel tests: which backends, which arrays, and the arguments of every kernel.

The full product of backends, sizes, dtypes, parameters, offsets and threads has a million cells.
`cases` walks the lists together instead, with periods that have no common factor, so that every
pair of choices meets somewhere and each size is seen in both dtypes. What is right, and how close
to it a kernel has to come, is in kernel_truth.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle
from math import prod
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from normcore.kernels.table import ACTIVATIONS, KERNELS, SIZES

from normcore import reference_kernels
from normcore.kernels import table

Array = np.ndarray[Any, Any]
KERNEL = {(kernel.family, kernel.name): kernel for kernel in KERNELS}
CHANNELS, LAYERS = ("nchw", "nc"), ("rows", "cols")
FULL = ("x", "y", "dy", "dx", "g", "residual", "total", "addend")
"""Arguments that hold all elements."""
EPS = 1e-5
DTYPES = ("float32", "float64")
HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Backend:
    """A backend's kernels by family."""

    name: str
    families: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name

    def run(self, family: str, name: str, values: Mapping[str, Any]) -> None:
        kernel = KERNEL[family, name]
        # The oracle is NumPy: what NaN and infinity do there is right, and is also a warning.
        with np.errstate(all="ignore"):
            getattr(self.families[family], name)(*(values[key] for key in kernel.arguments))


def _numba() -> Backend:
    kernels = import_module("normcore.numba_kernels")
    families: dict[str, Any] = {"running": import_module("normcore.kernels.running")}
    for family in table.PASSES:
        passes = {name: copy(call) for name, call in vars(kernels.passes(family)).items()}
        for call in passes.values():
            if not hasattr(call, "parallel"):
                continue  # made of others
            # Each twin takes seconds to compile: test_numba_kernels.py holds one against the other.
            call.serial = call.parallel
        families[family] = SimpleNamespace(**passes)
    return Backend("numba", families)


@cache
def backends() -> tuple[Backend, ...]:
    """Every backend and instruction set that can run here; the oracle is the first."""
    oracle = {**reference_kernels.FAMILIES, "running": reference_kernels.RUNNING}
    found = [Backend("numpy", oracle), _numba()]
    if find_spec("normcore.kernels.running_cy") is not None:
        cython = import_module("normcore.kernels.cython")
        found += [Backend(f"cython-{isa}", cython.modules(isa)) for isa in cython.available()]
    return tuple(found)


BACKENDS = pytest.mark.parametrize("backend", backends(), ids=str)


@dataclass(frozen=True)
class Case:
    """One array and everything that goes with it. weight, bias: None or "own" or "other" dtype."""

    family: str
    sizes: tuple[int, ...]
    dtype: str = "float32"
    offset: float = 0.0
    weight: str | None = "own"
    bias: str | None = "own"
    threads: int = 1
    stored: str = "float64"
    """dtype of mean and var in `apply`, which may be running statistics."""
    d: int = 1
    """Channels that share a statistic."""
    p: int = 0
    """nchw: period of the parameters; 0: each channel has its own."""
    mask: str | None = None
    """A kind of `mask_of`."""
    residual: bool = False
    addend: bool = False
    activation: str | None = None
    centre: bool = True
    """rows and cols: with a mean."""

    def __str__(self) -> str:
        parts = [self.family, "x".join(map(str, self.sizes)), self.dtype, f"{self.offset:g}"]
        parts.append(f"{self.weight}-{self.bias}".replace("None", "no"))
        given = {"d": self.d - 1 and self.d, "p": self.p, "mask-": self.mask}
        given |= {"": self.activation, "stored-": self.stored[5:] if self.stored[5:] != "64" else 0}
        parts += [f"{name}{value}" for name, value in given.items() if value]
        parts += [name for name in ("residual", "addend") if getattr(self, name)]
        return "-".join([*parts, *(() if self.centre else ("rms",)), f"t{self.threads}"])

    @property
    def storage(self) -> np.dtype[Any]:
        return np.dtype(HALVES.get(self.dtype, self.dtype))

    @property
    def statistics(self) -> int:
        """Length of mean."""
        first, second, third = (*self.sizes, 1)[:3]
        return {"nchw": second // self.d, "rows": first}.get(self.family, first * third // self.d)

    @property
    def parameters(self) -> int:
        """Length of weight."""
        return self.p or self.sizes[2 if self.family == "nc" else 1]

    @property
    def cells(self) -> int:
        """Length of what `moments` gives."""
        first, second, third = self.sizes
        return first * second if self.family == "nchw" else first * third

    @property
    def count(self) -> int:
        """Elements behind one statistic."""
        return prod(self.sizes) // self.statistics

    @property
    def passes(self) -> tuple[str, ...]:
        return tuple(table.PASSES[self.family])

    def parameter_dtype(self, kind: str | None) -> np.dtype[Any]:
        # Parameters beside halves are float32, or float64 where they are the "other" ones.
        own = np.dtype(np.float64 if self.dtype == "float64" else np.float32)
        if kind != "other":
            return own
        return np.dtype(np.float64 if own == np.float32 else np.float32)


class Layout:
    """To which statistic, parameter, cell and byte of a mask each element belongs."""

    def __init__(self, case: Case) -> None:
        at = np.indices(case.sizes).reshape(len(case.sizes), -1)
        size, self.bytes = prod(case.sizes), case.sizes[0] * case.sizes[1]
        if case.family == "nchw":
            n, i, s = at
            channels, length = case.sizes[1:]
            self.statistic, self.parameter = i // case.d, i % case.parameters
            self.cell = n * channels + i
            sample = n if case.sizes[0] > 1 else i // case.parameters
            self.byte = sample * length + s
            self.bytes = int(self.byte.max(initial=-1)) + 1
        elif case.family == "nc":
            b, _, i = at
            self.parameter, self.cell = i, b * case.sizes[2] + i
            self.statistic = self.cell // case.d
            self.byte = np.arange(size) // case.sizes[2]
        elif case.family == "rows":
            self.statistic, self.parameter = at
            # Of 2 or 3 elements a byte, where the length allows it.
            each = next(q for q in (3, 2, 1) if case.sizes[1] % q == 0)
            self.bytes //= each
            self.byte = np.arange(size) // each
        else:
            b, self.parameter, i = at
            self.statistic = self.byte = b * case.sizes[2] + i
            self.bytes = case.sizes[0] * case.sizes[2]


@cache
def layout(case: Case) -> Layout:
    shape = Case(case.family, case.sizes, d=case.d, p=case.p)
    return Layout(case) if case == shape else layout(shape)


def mask_of(case: Case) -> Array:
    """Bytes of a mask; what is not 0 counts, whatever the number."""
    size = layout(case).bytes
    random = np.random.default_rng(size)
    mask = random.integers(1, 256, size).astype(np.uint8)
    if case.mask == "random":
        mask[random.uniform(size=size) < 0.4] = 0
    elif case.mask == "tails":
        # Each sequence is padded behind a length of its own; one fills, one is empty.
        rows = mask.reshape(-1, size // _sequences(case, size))
        lengths = random.integers(0, rows.shape[1] + 1, len(rows))
        lengths[0], lengths[-1] = rows.shape[1], 0
        rows[np.arange(rows.shape[1]) >= lengths[:, None]] = 0
    elif case.mask == "one":
        rows = mask.reshape(-1, size // _sequences(case, size))
        rows[:, np.arange(rows.shape[1]) != rows.shape[1] // 2] = 0
    elif case.mask == "nothing":
        mask[:] = 0
    else:
        assert case.mask == "all"
    return mask


def _sequences(case: Case, size: int) -> int:
    return size // case.sizes[2] if case.family == "nchw" else case.sizes[0]


def kept(case: Case) -> Array | None:
    """Element by element, what counts."""
    return None if case.mask is None else _given(case)["mask"][layout(case).byte] != 0


@cache
def _given(case: Case) -> dict[str, Any]:
    # Every statistic its own scale, mean and gradient, and every parameter a shift, so that a
    # mixed-up channel shows.
    random = np.random.default_rng([*case.sizes, int(case.offset), case.d])
    belongs, size = layout(case), prod(case.sizes)
    scale = random.uniform(0.5, 2, case.statistics)
    centre = case.offset * random.uniform(0.8, 1.2, case.statistics)
    x = random.standard_normal(size) * scale[belongs.statistic] + centre[belongs.statistic]
    if case.family in LAYERS or case.d > 1:
        x += random.uniform(-0.5, 0.5, case.parameters)[belongs.parameter]
    full: dict[str, Any] = {
        "x": x,
        "dy": random.standard_normal(size) + 0.3,
        "residual": 1.5 * random.standard_normal(size) if case.residual else None,
        "addend": random.standard_normal(size) if case.addend else None,
    }
    given = {name: a if a is None else a.astype(case.storage) for name, a in full.items()}
    for name, kind in (("weight", case.weight), ("bias", case.bias)):
        values = random.uniform(0.5, 1.5, case.parameters)
        values[1::3] *= -1
        values[4::5] = 0
        given[name] = None if kind is None else values.astype(case.parameter_dtype(kind))
    stored = case.parameter_dtype("own")
    shift = scale * random.uniform(-1, 1, case.statistics)
    given["running_mean"] = (centre + shift).astype(stored)
    given["running_var"] = (scale * random.uniform(0.5, 2, case.statistics)).astype(stored) ** 2
    given["mask"] = None if case.mask is None else mask_of(case)
    for array in given.values():
        if array is not None:
            array.flags.writeable = False  # cached, so that the truth is computed once
    return given


def inputs(case: Case) -> dict[str, Any]:
    """The arrays that a case gives, read-only; None for what it has not."""
    return _given(replace(case, threads=1))


def arguments(case: Case, **given: Any) -> dict[str, Any]:
    """All arguments of all kernels of a family, outputs filled with NaN; `given` replaces some."""
    values = {name: a if a is None else a.copy() for name, a in inputs(case).items()}
    values |= {"eps": EPS, "threads": case.threads, "training": True, "count": float(case.count)}
    values |= {"activation": ACTIVATIONS[case.activation], "r_max": 1.5, "d_max": 0.5}
    values.update(zip(SIZES[case.family], case.sizes, strict=True))
    for name in ("y", "dx", "g", "total"):
        values[name] = np.full(prod(case.sizes), np.nan, case.storage)
    # In rows, r is a size.
    correction = ("r", "d") if case.family in CHANNELS else ()
    for name in ("mean", "var", "rstd", "sum_dy", "sum_dy_xmu", *correction):
        values[name] = np.full(case.statistics, np.nan)
    for name in ("dweight", "dbias"):
        values[name] = np.full(case.parameters, np.nan, case.parameter_dtype(case.weight))
    if not case.centre:
        values["mean"] = None
    values.update(given)
    return values


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
ROWS_SIZES = (
    (1, 1), (5, 1), (1, 2), (3, 3), (7, 5), (2, 16), (33, 17), (9, 64), (70, 69), (3, 127),
    (4, 256), (2049, 3), (700, 11), (64, 768), (19, 1000), (257, 129), (3, 4099), (2, 16385),
    (1, 100003), (4001, 8), (2, 65537),
)  # fmt: skip
COLS_SIZES = (
    (1, 1, 1), (1, 1, 5), (3, 2, 1), (1, 5, 1), (2, 7, 3), (1, 33, 17), (4, 16, 64), (3, 96, 49),
    (2, 768, 35), (1, 4099, 7), (2, 3, 1031), (5, 7, 196), (1, 65537, 2), (1, 2, 20001),
    (9, 33, 65), (300, 5, 4), (1, 129, 1030), (2, 257, 513), (1, 600, 1), (1, 100003, 1),
)  # fmt: skip
FAMILY_SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "nchw": NCHW_SIZES, "nc": NC_SIZES, "rows": ROWS_SIZES, "cols": COLS_SIZES,
}  # fmt: skip
OFFSETS = (0.0, 1e3, 1e4, 1e6)
AFFINE = (
    ("own", "own"), (None, None), ("other", "other"), ("own", None), (None, "own"),
)  # fmt: skip
THREADS = (1, 2, 3)


@cache
def cases(families: tuple[str, ...]) -> tuple[Case, ...]:
    found = []
    for family in families:
        offsets, affine, threads = cycle(OFFSETS), cycle(AFFINE), cycle(THREADS)
        centre = cycle((True, True, False) if family in LAYERS else (True,))
        for index, shape in enumerate(FAMILY_SIZES[family]):
            for dtype in DTYPES:
                case = Case(family, shape, dtype, next(offsets), *next(affine), next(threads))
                case = replace(case, stored="float32" if index % 7 == 3 else "float64")
                found.append(replace(case, centre=next(centre)))
            next(offsets)  # else float32 would never meet the offsets of float64
    for family, shape in (
        ("nchw", (4, 6, 147)), ("nc", (1, 600, 37)), ("rows", (37, 600)), ("cols", (3, 600, 37)),
    ):  # fmt: skip
        if family in families:
            found += [Case(family, shape, dtype, at) for dtype in DTYPES for at in OFFSETS]
    return tuple(found)


NO_WIDER_FLOAT = pytest.mark.skipif(
    np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps,
    reason="the truth of float64 kernels needs a long double that is wider than float64",
)


def each(found: Iterable[Case]) -> Any:
    """Parametrize a test by cases."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(
                case, id=str(case), marks=NO_WIDER_FLOAT if case.dtype == "float64" else ()
            )
            for case in found
        ],
    )
