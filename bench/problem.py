"""A case made concrete: its arrays, what the oracle says, and how an error is measured.

The oracle is `normcore.reference_kernels` in float64, on some units of the case at a time (see
`bench.layout`). Errors and tolerances are those of DESIGN.md, "Numerics": see `TOLERANCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property, partial
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from normcore.kernels.table import ACTIVATIONS, Kernel

from bench.cases import Case
from bench.layout import FULL, PARAMETERS, Layout, layout
from bench.tasks import KERNEL, Task
from normcore import reference
from normcore.backend import SERIAL_BELOW
from normcore.reference_kernels import FAMILIES

Array = np.ndarray[Any, Any]
Found = TypeVar("Found")

EPS = 1e-5
SHIFT_OF_DY = 7
"""Gradients are the same data from elsewhere, moved around 0."""
LARGEST_TERM = 4.0
"""dx is a difference of terms: dy is made less where they were larger, so that dx is about 1."""
SHIFT_OF_ADDEND = 3
"""What is added is the same data from elsewhere, too, brought to -2..2."""

INPUTS = ("x", "dy", "residual", "addend")
SUMS = ("sum_dy", "sum_dy_xmu", "dweight", "dbias")
STATISTICS = ("mean", "m2", "var", "rstd")
TOLERANCES = {
    **dict.fromkeys(FULL, 1e-6),  # |found - ref| / max(1, |ref|), a half's own rounding is free
    **dict.fromkeys(SUMS, 1e-6),  # against the L2 norm of the summands
    **dict.fromkeys(STATISTICS, 1e-12),  # relative
}
HALF_TOLERANCES = {**TOLERANCES, **dict.fromkeys(STATISTICS, 1e-6)}
# The oracle is float64 itself: what is left between the two is the rounding of both, which in sums
# of 100 thousand is up to so many units.
DOUBLE_TOLERANCES = {
    **TOLERANCES,
    **dict.fromkeys(FULL, 1e-13),
    **dict.fromkeys(SUMS, 1e-11),
}
TOLERANCES_OF = {8: DOUBLE_TOLERANCES, 4: TOLERANCES, 2: HALF_TOLERANCES}
"""Bytes of an element -> tolerances."""
KINK = 1e-4
"""An activation whose slope jumps within this of z leaves the gradient there to rounding."""

COMPARED_AT_ONCE = 1 << 17
ALIGNMENT = 4096


def aligned(size: int, dtype: Any) -> Array:
    """An uninitialized array that begins on a page, the same luck for everyone."""
    bytes_needed = size * np.dtype(dtype).itemsize
    raw = np.empty(bytes_needed + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + bytes_needed].view(dtype)


class Problem:
    """The arrays of one case, flat as kernels take them."""

    def __init__(self, case: Case, threads: int) -> None:
        self.case = case
        self.threads = threads
        self.layout = layout(case)
        self.family = self.layout.family
        self.tolerances = TOLERANCES_OF[case.storage.itemsize]
        if case.activation is not None:
            # g is rounded before it is summed. Where rows resemble each other, as the digits' do,
            # so do its errors: those of n summands grow with n, the summands' norm with its root.
            terms = case.elements // self.layout.parameters
            self.tolerances = self.tolerances | dict.fromkeys(SUMS, TOLERANCES["g"] * terms**0.5)
        x = case.values(0)
        if case.offset:
            # Whole numbers stay exact in float32 up to 1.6e7.
            x += np.rint(case.offset * x.std(dtype=np.float64)).astype(np.float32)
        self.parameter_dtype = np.dtype(np.float64 if case.dtype == "float64" else np.float32)
        parameters = partial(np.linspace, num=self.layout.parameters, dtype=self.parameter_dtype)
        dy = case.values(SHIFT_OF_DY)
        dy -= dy.max() / 2
        centred = case.layer != "rms"
        self.arguments: dict[str, Any] = {
            "x": self._filled(x),
            "dy": self._filled(dy),
            "residual": self._added() if case.residual else None,
            "addend": self._added() if case.addend else None,
            "mask": None,
            "weight": parameters(0.5, 1.5),
            "bias": parameters(-1.0, 1.0) if centred else None,
            "mean": None,
            "activation": ACTIVATIONS[case.activation],
            "eps": EPS,
            "count": float(case.elements // self.layout.statistics),
            "training": True,
            # As dispatch chooses: small arrays run serial.
            "threads": threads if case.elements >= SERIAL_BELOW else 1,
        }
        self.centred = centred
        self._buffers: dict[str, Array] = {}
        self._prepare()

    @property
    def x(self) -> Array:
        return self.arguments["x"]

    @property
    def dy(self) -> Array:
        return self.arguments["dy"]

    @property
    def nbytes(self) -> int:
        return self.x.nbytes

    def bytes_moved(self, task: Task) -> int:
        """What must be read and written."""
        return (task.reads + task.writes) * self.nbytes

    def shaped(self, array: Array) -> Array:
        return array.reshape(self.case.shape)

    def given(self, **others: Any) -> dict[str, Any]:
        """Every argument by its name in the table; sizes win over what shares their name."""
        return {**self.arguments, **others, **self.layout.named_sizes}

    @cached_property
    def untouched(self) -> dict[str, Array]:
        """Copies of all inputs of x's size, from before anybody was given them."""
        return {
            name: self.arguments[name].copy() for name in INPUTS if self.arguments[name] is not None
        }

    @cached_property
    def in_float32(self) -> Problem:
        """The same numbers as float32 arrays, with buffers of their own."""
        twin = copy(self)
        twin.__dict__.pop("untouched", None)
        twin.arguments = {
            name: self._flat(values.astype(np.float32))
            if name in FULL and values is not None
            else values
            for name, values in self.arguments.items()
        }
        twin._buffers = {}
        return twin

    def outputs(self, kernel: Kernel) -> dict[str, Array | None]:
        """Preallocated outputs of a kernel; y and dx are one buffer for all engines.

        The mean of what is not centred is None.
        """
        return {name: self._output(kernel, name) for name in kernel.outputs}

    def stream(self, name: str = "stream") -> Array:
        """The buffer behind y and dx, or another one of x's size."""
        if name not in self._buffers:
            self._buffers[name] = aligned(self.x.size, self.x.dtype)
        return self._buffers[name]

    def reference(self, task: Task) -> dict[str, Array]:
        """The oracle's outputs of a task, float64."""
        found = {
            name: np.zeros(self._size(kernel, name))
            for kernel in task.kernels
            for name in kernel.outputs
            if name in task.outputs and self._has(name)
        }

        def one(units: slice) -> dict[str, Array]:
            given = self._part(units)
            made: dict[str, Array] = {}
            for kernel in task.kernels:
                made |= self._oracle(kernel, given, units)
                given["dy"] = made.get("g", given["dy"])
            return made

        for units, made in self._each_block(one):
            for name, whole in found.items():
                part = self.layout.part(name, whole, units)
                # What all units share is summed over them.
                part += made[name].reshape(part.shape)
        return found

    def errors(self, found: Mapping[str, Array], exact: Mapping[str, Array]) -> dict[str, float]:
        """Output -> worst error in the measure of `TOLERANCES`; NaN where there is a NaN."""
        return {
            name: self._error(name, values.reshape(-1), exact[name])
            for name, values in found.items()
        }

    def _error(self, name: str, found: Array, exact: Array) -> float:
        if name in FULL:
            # Over 25 million elements this is most of a verification's time.
            with ThreadPoolExecutor(self.threads) as pool:
                starts = range(0, exact.size, COMPARED_AT_ONCE)
                return float(np.max(list(pool.map(partial(_worst, found, exact), starts))))
        if name in SUMS:
            # A float32 sum cannot be nearer than its own rounding, hence |exact|.
            scale = np.maximum(self._norms[name], np.abs(exact))
        else:
            scale = np.abs(exact)
        scale = np.where(scale == 0, 1.0, scale)
        return float(np.max(np.abs(found - exact) / scale))

    def _prepare(self) -> None:
        """The statistics of x, as a backward is given them, and the norms of all summands.

        Settles dy, too: it becomes less where the standard deviation is small, and 0 where rounding
        would choose between two slopes of the activation.
        """
        forward = KERNEL[self.family, "forward"]
        bare = {"weight": None, "bias": None, "residual": None, "activation": 0}
        slope = reference.SLOPE[self.arguments["activation"]]
        largest = float(np.abs(self.dy).max())

        def one(units: slice) -> dict[str, Array]:
            given = self._part(units)
            made = self._oracle(forward, given | bare, units)
            x_hat = made.pop("y")
            block = self.layout.block(units)
            rstd = np.maximum(made["rstd"] * (largest / LARGEST_TERM), 1)
            dy, less = block.by_statistic(given["dy"].astype(np.float64), rstd)
            dy = (dy / less).reshape(-1)
            if self.case.activation is not None:
                z = self._oracle(forward, given | {"activation": 0}, units)["y"]
                jumps = np.abs(slope(z + KINK) - slope(z - KINK)) > np.sqrt(KINK)
                dy = np.where(jumps, 0, dy)
            part = self.layout.part("dy", self.dy, units)
            part[...] = dy.reshape(part.shape)
            dy = part.astype(np.float64).reshape(-1)
            if self.case.activation is not None:
                dy *= slope(z)
            made["dbias"] = block.by_parameter(dy**2)
            made["dweight"] = block.by_parameter((dy * x_hat) ** 2)
            if self.layout.by_channel:
                made["sum_dy"] = block.by_parameter(dy)
                made["sum_dy_xmu"] = block.by_parameter(dy * x_hat) / made["rstd"]
            return made

        whole = {
            name: np.zeros(self._size(forward, name))
            for name in (*forward.outputs[1:], "dweight", "dbias")
            if self._has(name)
        }
        if self.layout.by_channel:
            whole |= {name: np.zeros(self.layout.statistics) for name in ("sum_dy", "sum_dy_xmu")}
        for units, made in self._each_block(one):
            for name, values in whole.items():
                part = self.layout.part(name, values, units)
                part += made[name].reshape(part.shape)
        self._norms = {name: np.sqrt(whole.pop(name)) for name in ("dweight", "dbias")}
        if self.layout.by_channel:
            self._norms["sum_dy"] = self._norms["dbias"]
            self._norms["sum_dy_xmu"] = self._norms["dweight"] / whole["rstd"]
        self.arguments |= whole

    def _part(self, units: slice) -> dict[str, Any]:
        """The arguments of the oracle for some of the units."""
        found = {
            name: self.layout.part(name, values, units).flatten()
            if isinstance(values, np.ndarray)
            else values
            for name, values in self.arguments.items()
        }
        return found | self.layout.block(units).named_sizes

    def _oracle(self, kernel: Kernel, given: Mapping[str, Any], units: slice) -> dict[str, Array]:
        block = self.layout.block(units)
        made = {
            name: np.empty(_length(block, kernel, name))
            for name in kernel.outputs
            if self._has(name)
        }
        taken = {**given, **made}
        getattr(FAMILIES[self.family], kernel.name)(*(taken[name] for name in kernel.arguments))
        return made

    def _each_block(self, one: Callable[[slice], Found]) -> Iterable[tuple[slice, Found]]:
        blocks = list(self.layout.blocks())
        # In groups, because the results of all blocks at once would fill the memory twice.
        with ThreadPoolExecutor(self.threads) as pool:
            for start in range(0, len(blocks), 8 * self.threads):
                some = blocks[start : start + 8 * self.threads]
                yield from zip(some, pool.map(one, some), strict=True)

    def _has(self, name: str) -> bool:
        return self.centred or name != "mean"

    def _size(self, kernel: Kernel, name: str) -> int:
        return _length(self.layout, kernel, name)

    def _output(self, kernel: Kernel, name: str) -> Array | None:
        if name in FULL:
            return self.stream("stream" if name in ("y", "dx") else name)
        if not self._has(name):
            return None
        dtype = self.parameter_dtype if name in PARAMETERS else np.float64
        return aligned(self._size(kernel, name), dtype)

    def _added(self) -> Array:
        values = self.case.values(SHIFT_OF_ADDEND)
        return self._filled(values * (4 / values.max()) - 2)

    def _filled(self, values: Array) -> Array:
        return self._flat(values.astype(self.case.storage, copy=False))

    @staticmethod
    def _flat(values: Array) -> Array:
        array = aligned(values.size, values.dtype)
        array[:] = values.reshape(-1)
        return array


def _worst(found: Array, exact: Array, start: int) -> float:
    """The worst error of some elements, against max(1, |exact|); NaN if there is one."""
    truth, values = (array[start : start + COMPARED_AT_ONCE] for array in (exact, found))
    error = np.abs(values.astype(np.float64) - truth)
    if found.dtype.itemsize == 2:
        error = np.maximum(error - half_unit(truth, found.dtype), 0)
    return float(np.max(error / np.maximum(1.0, np.abs(truth)), initial=0.0))


def _length(block: Layout, kernel: Kernel, name: str) -> int:
    if name in FULL:
        return block.elements
    if name in PARAMETERS:
        return block.parameters
    if kernel.name == "moments" and block.family == "nchw":
        return block.sizes[0] * block.sizes[1]
    return block.statistics


def half_unit(exact: Array, dtype: np.dtype[Any]) -> Array:
    """Half a unit in the last place of `dtype` at `exact`: the error of rounding once.

    Examples
    --------
    >>> half_unit(np.array([1.0, 1.99, 2.0]), np.dtype(np.float16)) * 2**11
    array([1., 1., 2.])
    """
    format = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(exact)
    return np.ldexp(0.5, np.maximum(exponent - 1, int(format.minexp)) - int(format.nmant))
