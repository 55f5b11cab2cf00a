"""The gradient before a fused activation, which is that of the residual, for every layer."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from .. import backend
from ..view import Lying, flat

Array = np.ndarray[Any, Any]


class View(Lying, Protocol):
    """What the views of all families say."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that kernels take."""


def before_activation(
    passes: Any,
    view: View,
    g: Array,
    dy: Array,
    x: Array,
    residual: Array | None,
    mean: Array | None,
    rstd: Array,
    weight: Array | None,
    bias: Array | None,
    activation: int,
    kept: Array | None,
) -> None:
    """Write g = dy * activation'(z), with z = norm(x) + residual; 0 where a mask keeps nothing.

    All arrays are as the kernels take them, g, dy, x and residual with the axes of x. g may be dy.
    `kept` is boolean and broadcasts against x.
    """
    if activation:
        passes.activation_grads(
            flat(g, view),
            flat(dy, view),
            flat(x, view),
            None if residual is None else flat(residual, view),
            mean,
            rstd,
            weight,
            bias,
            activation,
            *view.sizes,
            backend.threads(x.size),
        )
    elif g is not dy:
        g[...] = dy
    if kept is not None:
        # A padded position gets no gradient, whatever is written there.
        np.copyto(g, 0, where=~kept)


def room(dx: Array, *reads: Array | None) -> Array:
    """Where to keep g until dx is computed from it: in dx, unless that is still to be read."""
    taken = any(read is not None and np.may_share_memory(dx, read) for read in reads)
    return np.empty_like(dx) if taken else dx
