"""What compiled JAX programs call: NumPy in, NumPy out.

Nothing here uses JAX: a call back into it, from the thread of XLA that waits for this one to
return, can wait for ever (https://github.com/jax-ml/jax/issues/24255).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from . import functional, shapes

Array = np.ndarray[Any, Any]
Lead = tuple[int, ...]


def _bits(*statistics: Array) -> Array:
    """Statistics behind each other, as uint32: JAX has float64 only with jax_enable_x64."""
    bits: Array = np.ascontiguousarray(np.stack(statistics, -1)).view(np.uint32)
    return bits


def _statistics(bits: Array) -> list[Array]:
    """The statistics again."""
    found = np.ascontiguousarray(bits).view(np.float64)
    return [np.ascontiguousarray(found[..., i]) for i in range(found.shape[-1])]


@dataclass(frozen=True)
class Norm:
    """A norm of `normcore.functional` with all that is no array."""

    name: str
    eps: float | None
    options: tuple[tuple[str, Any], ...]
    """Of forward and backward."""

    def forward(
        self, x: Array, weight: Array | None, bias: Array | None, *running: Array
    ) -> tuple[Array, ...]:
        """(y, bits of the statistics)."""
        parameters = {"weight": weight} if self.name == "rms" else {"weight": weight, "bias": bias}
        function = getattr(functional, f"{self.name}_norm_forward")
        y, *statistics = function(x, **parameters, eps=self.eps, **dict(self.options))
        return y, _bits(*statistics)

    def backward(self, dy: Array, x: Array, bits: Array, weight: Array | None) -> tuple[Array, ...]:
        """(dx, dweight, dbias); RMS norm has no dbias."""
        function = getattr(functional, f"{self.name}_norm_backward")
        gradients: tuple[Array, ...] = function(
            dy, x, *_statistics(bits), weight=weight, **dict(self.options)
        )
        return gradients

    def folded(self, x: Array, lead: Lead) -> Array | None:
        """X with further axes in front, as one x of which it is the same norm; None if none is."""
        if self.name in ("group", "instance"):
            return x.reshape(-1, *x.shape[len(lead) + 1 :])
        if self.name in ("layer", "rms") and dict(self.options)["axis"] is None:
            return x
        return None


@dataclass(frozen=True)
class BatchNorm(Norm):
    """Batch norm: of evaluation if momentum is None."""

    momentum: float | None

    def forward(
        self, x: Array, weight: Array | None, bias: Array | None, *running: Array
    ) -> tuple[Array, ...]:
        """(y, bits of the statistics), in training with the running mean and variance."""
        options: Any = {"eps": self.eps, **dict(self.options)}
        if self.momentum is None:
            y = functional.batch_norm(x, running[0], running[1], weight, bias, **options)
            mean, var = (values.astype(np.float64) for values in running)
            return y, _bits(mean, 1 / np.sqrt(var + self.eps))
        updated = [np.array(values) for values in running]
        y, mean, rstd = functional.batch_norm_forward(
            *(x, weight, bias, *updated), momentum=self.momentum, **options
        )
        return y, _bits(mean, rstd), *updated

    def backward(self, dy: Array, x: Array, bits: Array, weight: Array | None) -> tuple[Array, ...]:
        """(dx, dweight, dbias)."""
        mean, rstd = _statistics(bits)
        training = self.momentum is not None
        return functional.batch_norm_backward(
            dy, x, mean, rstd, weight, training=training, **dict(self.options)
        )


Given = tuple[tuple[tuple[int, ...], Any] | None, ...]
"""Shapes and dtypes of arguments, None for those that are None."""


@dataclass(frozen=True)
class Call:
    """A half of a norm, for arguments of these shapes and dtypes.

    Equal calls are equal objects, so that JAX compiles them once. `jax.vmap` puts axes in front of
    the arguments: of length 1 where one is not mapped.
    """

    norm: Norm
    half: str
    given: Given
    results: tuple[tuple[tuple[int, ...], Any], ...]

    def __call__(self, *arguments: Any) -> list[Array]:
        """The results, with axes in front if arguments have some."""
        arrays = [None if values is None else np.asarray(values) for values in arguments]
        leads: list[Lead] = [
            () if values is None or of is None else values.shape[: values.ndim - len(of[0])]
            for values, of in zip(arrays, self.given, strict=True)
        ]
        lead = np.broadcast_shapes(*leads)
        if not lead:
            return list(getattr(self.norm, self.half)(*arrays))
        if self.half == "forward" and all(n == 1 for other in leads[1:] for n in other):
            x = arrays[0]
            assert x is not None
            folded = self.norm.folded(x, lead)
            if folded is not None:
                return self._at_once(folded, arrays[1:], lead)
        return self._one_by_one(arrays, leads, lead)

    def _at_once(self, x: Array, parameters: Sequence[Array | None], lead: Lead) -> list[Array]:
        single = [
            None if values is None or of is None else values.reshape(of[0])
            for values, of in zip(parameters, self.given[1:], strict=True)
        ]
        found = self.norm.forward(x, *single)  # type: ignore[arg-type]  # no running statistics
        return [
            values.reshape(lead + shape)
            for values, (shape, _) in zip(found, self.results, strict=True)
        ]

    def _one_by_one(
        self, arrays: Sequence[Array | None], leads: Sequence[Lead], lead: Lead
    ) -> list[Array]:
        found = [np.empty(lead + shape, dtype) for shape, dtype in self.results]
        for index in np.ndindex(lead):
            ones = [
                None if values is None else values[_within(index, own)]
                for values, own in zip(arrays, leads, strict=True)
            ]
            results = getattr(self.norm, self.half)(*ones)
            for out, values in zip(found, results, strict=True):
                out[index] = values
        return found


def _within(index: Lead, own: Lead) -> Lead:
    """The index into axes of which some have length 1."""
    return tuple(i if n > 1 else 0 for i, n in zip(index, own, strict=True))


@lru_cache(maxsize=4096)
def call(norm: Norm, half: str, given: Given) -> Call:
    """The call for such arguments; it raises the errors of wrong ones already."""
    return Call(norm, half, given, tuple(shapes.results(getattr(norm, half), given)))
