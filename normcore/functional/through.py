"""The backward of a normalization through the activation that was fused into its forward."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import check
from ..view import Lying, conform, empty, flat

Array = np.ndarray[Any, Any]


class Activated(NamedTuple):
    """What a backward needs beside its own arguments, as the kernels take it."""

    activation: int
    bias: Array | None
    residual: Array | None
    g: Array | None
    """The gradient before the activation, which is that of residual, if it is wanted."""

    def deliver(self, dresidual: Array | None, view: Lying) -> None:
        """Hand g out, if the kernel could not write it where it is wanted."""
        if self.g is not None and dresidual is not None:
            given = flat(dresidual, view)
            if not np.may_share_memory(given, self.g):
                given[...] = self.g


def activated(
    x: Array,
    view: Lying,
    dx: Array,
    bias: Array | None,
    activation: str | None,
    residual: Any,
    dresidual: Any,
    *reads: Array | None,
) -> Activated | None:
    """Check what a backward is given for an activation; None if it is given nothing.

    Parameters
    ----------
    x, view, dx
        As the kernels take them; dx is what they or the caller's `out` write.
    bias
        As the kernels take it.
    activation, residual, dresidual
        As the caller gave them.
    reads
        Further arrays that the kernels read.
    """
    number = check.activation(activation)
    if residual is not None:
        residual = conform(check.same("residual", residual, x), view)
    if number == 0 and dresidual is None:
        return None
    g = None
    if dresidual is not None:
        g = flat(_receiver(dresidual, x, (x, dx, residual, bias, *reads)), view)
        if not (g.flags.c_contiguous and g.flags.aligned):
            g = flat(empty(x.shape, x.dtype, view), view)
    return Activated(number, bias, None if residual is None else flat(residual, view), g)


def _receiver(dresidual: Any, x: Array, others: tuple[Array | None, ...]) -> Array:
    if not isinstance(dresidual, np.ndarray):
        raise TypeError(f"dresidual: expected a NumPy array, got {type(dresidual).__name__}")
    if dresidual.shape != x.shape:
        raise ValueError(f"dresidual: expected x's shape {x.shape}, got {dresidual.shape}")
    if dresidual.dtype != x.dtype:
        raise TypeError(
            f"dresidual: expected dtype {x.dtype} in native byte order, got {dresidual.dtype}"
        )
    if not dresidual.flags.writeable:
        raise ValueError("dresidual: expected a writeable array, got a read-only one")
    for other in others:
        if other is not None and np.shares_memory(dresidual, other):
            raise ValueError(
                "dresidual: expected memory of its own, got an array that overlaps another one"
            )
    return dresidual
