"""What compiled JAX programs call: NumPy in, NumPy out.

Nothing here uses JAX: a call back into it, from the thread of XLA that waits for this one to
return, can wait for ever (https://github.com/jax-ml/jax/issues/24255).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from . import functional, shapes
from .reference import inverse_deviation

Array = np.ndarray[Any, Any]
Lead = tuple[int, ...]


# Statistics are float64, which JAX has only with jax_enable_x64: for JAX they are uint32, two for
# each, those of one position behind each other.


def _bits(*statistics: Array) -> Array:
    bits: Array = np.stack(statistics, -1).view(np.uint32)
    return bits


def _statistics(bits: Array) -> list[Array]:
    found = bits.view(np.float64)
    return [found[..., i].copy() for i in range(found.shape[-1])]


@dataclass(frozen=True)
class Norm:
    """A norm of `normcore.functional` with all that is no array."""

    name: str
    eps: float | None
    options: tuple[tuple[str, Any], ...]
    """Of forward and backward."""

    def forward(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        *running: Array,
        out: Array | None = None,
    ) -> tuple[Array, list[Array], list[Array]]:
        """(y, statistics, running statistics); y in `out`."""
        parameters = {"weight": weight} if self.name == "rms" else {"weight": weight, "bias": bias}
        function = getattr(functional, f"{self.name}_norm_forward")
        y, *statistics = function(x, **parameters, eps=self.eps, out=out, **dict(self.options))
        return y, statistics, []

    def backward(
        self, dy: Array, x: Array, bits: Array, weight: Array | None, *, out: Array | None = None
    ) -> tuple[Array, ...]:
        """(dx, dweight, dbias), dx in `out`; RMS norm has no dbias."""
        function = getattr(functional, f"{self.name}_norm_backward")
        gradients: tuple[Array, ...] = function(
            dy, x, *_statistics(bits), weight=weight, out=out, **dict(self.options)
        )
        return gradients

    def folded(self, values: Array, lead: Lead) -> Array | None:
        """X or y with axes in front, as one array of which it is the same norm; None if none is."""
        if self.name in ("group", "instance"):
            return values.reshape(-1, *values.shape[len(lead) + 1 :])
        if self.name in ("layer", "rms") and dict(self.options)["axis"] is None:
            return values
        return None


@dataclass(frozen=True)
class BatchNorm(Norm):
    """Batch norm: of evaluation if momentum is None."""

    momentum: float | None

    def forward(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        *running: Array,
        out: Array | None = None,
    ) -> tuple[Array, list[Array], list[Array]]:
        """As of any norm; there are running statistics in training."""
        options: Any = {"eps": self.eps, "out": out, **dict(self.options)}
        if self.momentum is None:
            y = functional.batch_norm(x, running[0], running[1], weight, bias, **options)
            mean, var = (values.astype(np.float64) for values in running)
            return y, [mean, inverse_deviation(var, options["eps"])], []
        updated = [np.array(values) for values in running]
        y, mean, rstd = functional.batch_norm_forward(
            x, weight, bias, updated[0], updated[1], self.momentum, **options
        )
        return y, [mean, rstd], updated

    def backward(
        self, dy: Array, x: Array, bits: Array, weight: Array | None, *, out: Array | None = None
    ) -> tuple[Array, ...]:
        """(dx, dweight, dbias)."""
        mean, rstd = _statistics(bits)
        return functional.batch_norm_backward(
            *(dy, x, mean, rstd, weight),
            training=self.momentum is not None,
            out=out,
            **dict(self.options),
        )


Given = tuple[tuple[tuple[int, ...], Any] | None, ...]
"""Shapes and dtypes of arguments, None for those that are None."""


@dataclass(frozen=True)
class Call:
    """A half of a norm, for arguments of these shapes and dtypes.

    `jax.vmap` puts axes in front of arguments and results: of length 1 in an argument that is not
    mapped.
    """

    norm: Norm
    half: str
    given: Given
    results: tuple[tuple[tuple[int, ...], Any], ...]

    @cached_property
    def key(self) -> int:
        """A number that says all of it."""
        digest = blake2b(repr(self).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

    @property
    def arguments(self) -> list[tuple[tuple[int, ...], Any]]:
        """Shapes and dtypes of the arguments that are there."""
        return [argument for argument in self.given if argument is not None]

    def returned(self, *arguments: Any) -> list[Array]:
        """The results, for a caller that has no memory for them."""
        arrays = [np.asarray(values) for values in arguments]
        leads = [
            values.shape[: values.ndim - len(shape)]
            for values, (shape, _) in zip(arrays, self.arguments, strict=True)
        ]
        lead = np.broadcast_shapes(*leads)
        results = [np.empty(lead + shape, dtype) for shape, dtype in self.results]
        self.write(arrays, results)
        return results

    def write(self, arguments: list[Array], results: list[Array]) -> None:
        """Write the results of the arguments that are there."""
        there = iter(arguments)
        arrays = [None if argument is None else next(there) for argument in self.given]
        lead: Lead = results[0].shape[: results[0].ndim - len(self.results[0][0])]
        if not lead:
            self._write(arrays, results)
        elif self.half == "backward" or not self._write_at_once(arrays, results, lead):
            for index in np.ndindex(lead):
                ones = [
                    None if values is None or of is None else values[_within(index, values, of[0])]
                    for values, of in zip(arrays, self.given, strict=True)
                ]
                self._write(ones, [values[index] for values in results])

    def _write(self, arrays: Sequence[Array | None], results: Sequence[Array]) -> None:
        first, second, *others = results
        if self.half == "backward":
            _, *found = self.norm.backward(*arrays, out=first)  # type: ignore[arg-type]  # None
            others = [second, *others]
        else:
            _, statistics, found = self.norm.forward(*arrays, out=first)  # type: ignore[arg-type]
            self._keep(statistics, second)
        for result, values in zip(others, found, strict=True):
            result[...] = values

    @staticmethod
    def _keep(statistics: Sequence[Array], bits: Array) -> None:
        floats = bits.view(np.float64)
        for i, values in enumerate(statistics):
            floats[..., i] = values.reshape(floats.shape[:-1])

    def _write_at_once(
        self, arrays: Sequence[Array | None], results: Sequence[Array], lead: Lead
    ) -> bool:
        """A forward of which x alone is mapped, if one call can do it; could it?"""
        x, *others = arrays
        assert x is not None
        single: list[Array | None] = []
        for values, of in zip(others, self.given[1:], strict=True):
            if values is None or of is None:
                single.append(None)
            elif values.shape == (1,) * len(lead) + of[0]:
                single.append(values.reshape(of[0]))
            else:
                return False
        folded, y = self.norm.folded(x, lead), self.norm.folded(results[0], lead)
        if folded is None or y is None or folded.shape != y.shape:
            return False
        statistics = self.norm.forward(folded, *single, out=y)[1]  # type: ignore[arg-type]  # None
        self._keep(statistics, results[1])
        return True


def _within(index: Lead, values: Array, shape: tuple[int, ...]) -> Lead:
    """The index into axes in front of which some have length 1."""
    own = values.shape[: values.ndim - len(shape)]
    return tuple(i if n > 1 else 0 for i, n in zip(index, own, strict=True))


@lru_cache(maxsize=4096)
def call(norm: Norm, half: str, given: Given) -> Call:
    """The call for such arguments; it raises the errors of wrong ones already."""

    def forward(*arrays: Any) -> list[Array]:
        y, statistics, running = norm.forward(*arrays)
        return [y, _bits(*statistics), *running]

    function = forward if half == "forward" else norm.backward
    return Call(norm, half, given, tuple(shapes.results(function, given)))
