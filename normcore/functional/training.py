"""What a training forward of batch (re)normalization is given, checked, and its running update."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import check, masks, reference
from ..backend import Backend
from ..view import View, batch, conform, flat

Array = np.ndarray[Any, Any]


# A NamedTuple in its place would add 1 us to each call, a fifth of what the Python layer takes.
Checked = tuple[
    Array,  # x
    View,
    Array,  # y, what the kernel writes: `out`, or an array that is delivered to it
    Array | None,  # weight
    Array | None,  # bias
    Array | None,  # residual, in memory order
    Array | None,  # mask, as bytes
    int,  # values per channel that count
    float,  # eps
    int,  # activation
]


def checked(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    eps: float,
    axis: int,
    out: Array | None,
    mask: Any,
    residual: Any,
    activation: str | None,
    part: bool = False,
) -> Checked:
    """Of the arguments of a function; raises for those that are wrong, and writes nothing.

    x may be a `part` of a batch, which may have one value per channel.
    """
    x = check.array("x", x)
    axis = check.channel_axis(axis, x)
    eps = check.eps(eps)
    given = x.shape
    x, view = batch(x, axis)
    channels = (view.channels,)
    kept = view.count
    if mask is not None:
        mask = masks.batch(mask, given, axis, view)
        kept = int(np.count_nonzero(mask))
    if kept == 1 and x.size and not part:
        by_mask = "" if mask is None else ", of which mask keeps 1 value per channel"
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {given}{by_mask}"
        )
    weight = check.parameter("weight", weight, channels)
    bias = check.parameter("bias", bias, channels)
    if (running_mean is None) is not (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(f"{missing}: expected both running statistics or neither, got None")
    if running_mean is not None:
        check.running("running_mean", running_mean, channels)
        check.running("running_var", running_var, channels)
    if residual is not None:
        residual = flat(conform(check.same("residual", residual, x), view), view)
    number = 0 if activation is None else check.activation(activation)
    y = check.destination(out, x, view, x, weight, bias, running_mean, running_var, residual, mask)
    return x, view, y, weight, bias, residual, mask, kept, eps, number


def update(
    chosen: Backend,
    running_mean: Array,
    running_var: Array,
    num_batches_tracked: Array | None,
    mean: Array,
    var: Array,
    momentum: float,
    kept: int,
    skip_nonfinite: bool,
) -> None:
    """Blend the statistics of a batch into the running ones, unless it was all masked."""
    if not kept:
        return
    # The compiled update takes no strided or byte-swapped buffers; NumPy's takes any.
    plain = check.is_plain(running_mean) and check.is_plain(running_var)
    blend = chosen.running.update if plain else reference.update
    blend(running_mean, running_var, num_batches_tracked, mean, var, momentum, kept, skip_nonfinite)
