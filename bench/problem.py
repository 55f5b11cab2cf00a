"""A case made concrete: its arrays, what the oracle says, and how an error is measured.

The oracle is `normcore.reference` in float64. Batch statistics never mix channels, so it runs on
one block of channels at a time: on 25 million elements that is about three times faster than in
one go, because its float64 temporaries then stay in the cache.

Errors and tolerances are those of DESIGN.md, "Numerics": see `TOLERANCES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from normcore.kernels.table import ACTIVATIONS, KERNELS, SIZES, Kernel

from bench.cases import Case
from normcore.reference_kernels import FAMILIES

Array = np.ndarray[Any, Any]

EPS = 1e-5
SHIFT_OF_DY = 7
"""Gradients are the same data from elsewhere, moved around 0 (and so large that dx is about 1)."""

FULL = ("y", "dx")
SUMS = ("sum_dy", "sum_dy_xmu", "dweight", "dbias")
TOLERANCES = {
    **dict.fromkeys(FULL, 1e-6),  # |found - ref| / max(1, |ref|)
    **dict.fromkeys(SUMS, 1e-6),  # against the L2 norm of the summands
    **dict.fromkeys(("mean", "m2", "var", "rstd"), 1e-12),  # relative
}

BLOCK_ELEMENTS = 1 << 18
COMPARED_AT_ONCE = 1 << 16
ALIGNMENT = 4096


PASSES = ("moments", "apply", "forward", "reduce_grads", "apply_grads", "backward")
"""Those of plain batch normalization, which all engines have."""


def kernels_of(family: str) -> tuple[Kernel, ...]:
    """The kernels of a family that are compared, in the table's order."""
    return tuple(kernel for kernel in KERNELS if kernel.family == family and kernel.name in PASSES)


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
        self.family = case.view.family
        self.sizes = case.view.sizes
        self.x = self._filled(case.values(0))
        self.dy = self._filled(case.values(SHIFT_OF_DY))
        self.dy -= self.dy.max() / 2
        channels = case.channels
        self.arguments: dict[str, Any] = {
            "x": self.x,
            "dy": self.dy,
            "weight": np.linspace(0.5, 1.5, channels, dtype=np.float32),
            "bias": np.linspace(-1.0, 1.0, channels, dtype=np.float32),
            "residual": None,
            "mask": None,
            "activation": ACTIVATIONS[None],
            "eps": EPS,
            "count": float(case.view.count),
            "training": True,
            "threads": threads,
            **dict(zip(SIZES[self.family], self.sizes, strict=True)),
        }
        self._buffers: dict[str, Array] = {}
        self._save_statistics()

    @property
    def nbytes(self) -> int:
        return self.x.nbytes

    def bytes_moved(self, kernel: Kernel) -> int:
        """What the table says must be read and written."""
        return (kernel.reads + kernel.writes) * self.nbytes

    def shaped(self, array: Array) -> Array:
        return array.reshape(self.case.shape)

    def outputs(self, kernel: Kernel) -> dict[str, Array]:
        """Preallocated outputs of a kernel: y and dx, as x, are one buffer for all engines."""
        return {name: self._output(kernel, name) for name in kernel.outputs}

    def stream(self) -> Array:
        """The buffer behind y and dx."""
        if "stream" not in self._buffers:
            self._buffers["stream"] = aligned(self.x.size, self.x.dtype)
        return self._buffers["stream"]

    def reference(self, kernel: Kernel) -> dict[str, Array]:
        """The oracle's outputs of a kernel, float64."""
        found = {name: np.empty(self._size(kernel, name)) for name in kernel.outputs}

        def one(channels: slice) -> None:
            sizes = dict(zip(SIZES[self.family], self.sizes, strict=True))
            sizes["c"] = channels.stop - channels.start
            given = {**self.arguments, **sizes}
            for name in kernel.arguments:
                if isinstance(given.get(name), np.ndarray):
                    given[name] = self._part(given[name], channels).flatten()
            for name, whole in found.items():
                given[name] = np.empty(self._part(whole, channels).size)
            passes = FAMILIES[self.family]
            getattr(passes, kernel.name)(*(given[name] for name in kernel.arguments))
            for name, whole in found.items():
                part = self._part(whole, channels)
                part[...] = given[name].reshape(part.shape)

        with ThreadPoolExecutor(self.threads) as pool:
            for _ in pool.map(one, self._blocks()):
                pass
        return found

    def errors(self, found: Mapping[str, Array], exact: Mapping[str, Array]) -> dict[str, float]:
        """Output -> worst error in the measure of `TOLERANCES`; NaN where there is a NaN."""
        return {
            name: self._error(name, values.reshape(-1), exact[name])
            for name, values in found.items()
        }

    def _error(self, name: str, found: Array, exact: Array) -> float:
        if name in FULL:
            worst = [0.0]
            for start in range(0, exact.size, COMPARED_AT_ONCE):
                piece = slice(start, start + COMPARED_AT_ONCE)
                scale = np.maximum(1.0, np.abs(exact[piece]))
                worst.append(np.max(np.abs(found[piece] - exact[piece]) / scale))
            return float(np.max(worst))
        if name in SUMS:
            # A float32 sum cannot be nearer than its own rounding, hence |exact|.
            scale = np.maximum(self._norms[name], np.abs(exact))
        else:
            scale = np.abs(exact)
        scale = np.where(scale == 0, 1.0, scale)
        return float(np.max(np.abs(found - exact) / scale))

    def _save_statistics(self) -> None:
        kernels = {kernel.name: kernel for kernel in kernels_of(self.family)}
        self.arguments.update(
            (name, values)
            for name, values in self.reference(kernels["forward"]).items()
            if name != "y"
        )
        self.arguments.update(self.reference(kernels["reduce_grads"]))
        axis = 1 if self.family == "nchw" else 2
        others = tuple(i for i in range(3) if i != axis)
        sums: list[tuple[Array, Array]] = []
        for channels in self._blocks():
            dy = self._part(self.dy, channels).astype(np.float64)
            mean = np.expand_dims(self.arguments["mean"][channels], others)
            products = dy * (self._part(self.x, channels) - mean)
            sums.append((np.sum(dy**2, others), np.sum(products**2, others)))
        of_dy, of_products = (np.sqrt(np.concatenate(parts)) for parts in zip(*sums, strict=True))
        self._norms = {
            "sum_dy": of_dy,
            "dbias": of_dy,
            "sum_dy_xmu": of_products,
            "dweight": of_products * self.arguments["rstd"],
        }

    def _size(self, kernel: Kernel, name: str) -> int:
        if name in FULL:
            return self.x.size
        cells = self.sizes[0] if kernel.name == "moments" and self.family == "nchw" else 1
        return cells * self.case.channels

    def _output(self, kernel: Kernel, name: str) -> Array:
        if name in FULL:
            return self.stream()
        parameter = name in ("dweight", "dbias")
        return aligned(self._size(kernel, name), self.x.dtype if parameter else np.float64)

    def _blocks(self) -> Iterator[slice]:
        channels = self.case.channels
        # In nc, 16 neighbouring channels share a cache line.
        step = max(BLOCK_ELEMENTS * channels // self.x.size, 1 if self.family == "nchw" else 16)
        for start in range(0, channels, step):
            yield slice(start, min(start + step, channels))

    def _part(self, array: Array, channels: slice) -> Array:
        """The given channels of a full array, of one value per cell, or of one per channel."""
        if array.size == self.x.size:
            whole = array.reshape(self.sizes)
            return whole[:, channels] if self.family == "nchw" else whole[:, :, channels]
        if array.size == self.case.channels:
            return array[channels]
        return array.reshape(-1, self.case.channels)[:, channels]

    @staticmethod
    def _filled(values: Array) -> Array:
        array = aligned(values.size, values.dtype)
        array[:] = values.reshape(-1)
        return array
