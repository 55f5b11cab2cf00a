"""Batch normalization of a batch that comes in parts: over micro-batches, threads or processes.

The forward has its halves already: `normcore.ChannelStats` takes the moments of each part and
merges them, `batch_norm` normalizes each part by what came out. Here are the halves of the
backward: sums over each part, which are added, and the gradient of each part from the total.
`normcore.ranks` does all of it for processes that send each other one message per pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import backend, check, masks
from ..view import View, batch, conform, empty, flat

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


class GradientSums(NamedTuple):
    """What the backward needs to know of the whole batch; the sums of its parts add up to it."""

    sum_dy: Array
    """(C,), float64: sum of dy, which is dbias."""
    sum_dy_xmu: Array
    """(C,), float64: sum of dy * (x - mean); times rstd it is dweight."""


def batch_norm_backward_reduce(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    *,
    axis: int = 1,
    mask: ArrayLike | None = None,
) -> GradientSums:
    """The two sums of batch normalization's backward, over one part of a batch.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y; shape and dtype of x.
    x : array_like
        A part of the batch; two or more axes.
    mean : array_like
        (C,), of the whole batch.
    axis : int, optional
        The channel axis.
    mask : array_like, optional
        As in the forward; what it keeps is copied.

    Returns
    -------
    GradientSums
        ``(sum_dy, sum_dy_xmu)``. Those of all parts are to be added.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> rng = np.random.default_rng(0)
    >>> x, dy = rng.normal(5, 2, (2, 6, 3))
    >>> parts = np.split(x, 2), np.split(dy, 2)
    >>> stats = nc.ChannelStats()
    >>> for part in parts[0]:
    ...     stats.update(part)
    >>> mean, rstd = stats.mean, 1 / np.sqrt(stats.var() + 1e-5)
    >>> y = [nc.functional.batch_norm(part, mean, stats.var()) for part in parts[0]]
    >>> bool(np.allclose(np.concatenate(y), nc.functional.batch_norm_forward(x)[0]))
    True
    >>> sums = [nc.functional.batch_norm_backward_reduce(g, part, mean)
    ...         for part, g in zip(*parts)]
    >>> sum_dy, sum_dy_xmu = np.sum(sums, axis=0)
    >>> dx = [nc.functional.batch_norm_backward_apply(
    ...           g, part, mean, rstd, sum_dy, sum_dy_xmu, stats.count)
    ...       for part, g in zip(*parts)]
    >>> whole = nc.functional.batch_norm_backward(dy, x, mean, rstd)
    >>> bool(np.allclose(np.concatenate(dx), whole.dx))
    True
    >>> bool(np.allclose(sum_dy_xmu * rstd, whole.dweight))
    True
    """
    x = check.array("x", x)
    axis = check.channel_axis(axis, x)
    dy = check.same("dy", dy, x)
    if mask is not None:
        kept = masks.positions(mask, x.shape, axis)
        x, dy, axis = masks.pack(x, kept, axis), masks.pack(dy, kept, axis), 1
    x, view = batch(x, axis)
    dy = conform(dy, view)
    channels = (view.channels,)
    mean = check.saved("mean", mean, channels)
    sum_dy, sum_dy_xmu = np.zeros(channels), np.zeros(channels)
    if x.size:
        backend.current().channels[view.family].reduce_grads(
            *(sum_dy, sum_dy_xmu, flat(dy, view), flat(x, view), mean),
            *view.sizes,
            backend.threads(x.size),
        )
    return GradientSums(sum_dy, sum_dy_xmu)


def batch_norm_backward_apply(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    sum_dy: ArrayLike,
    sum_dy_xmu: ArrayLike,
    count: float,
    weight: ArrayLike | None = None,
    *,
    axis: int = 1,
    out: Array | None = None,
    mask: ArrayLike | None = None,
) -> Array:
    """Gradient of one part of a batch, from the sums over the whole batch.

    dx = weight * rstd * (dy - sum_dy / count - (x - mean) * rstd^2 * sum_dy_xmu / count)

    Parameters
    ----------
    dy, x : array_like
        As in `batch_norm_backward_reduce`.
    mean, rstd : array_like
        (C,), of the whole batch.
    sum_dy, sum_dy_xmu : array_like
        (C,), the sums that `batch_norm_backward_reduce` gave, added over all parts.
    count : float
        Values per channel of the whole batch, positive.
    weight : array_like, optional
        (C,), as in the forward.
    axis : int, optional
        The channel axis.
    out : ndarray, optional
        Receives dx. May be dy or x.
    mask : array_like, optional
        As in the forward; dx is 0 where it is. What it keeps is copied.

    Returns
    -------
    dx : ndarray
        Shape, dtype and memory layout of x.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm_backward`, also for a count that is not positive.
    """
    x = check.array("x", x)
    axis = check.channel_axis(axis, x)
    dy = check.same("dy", dy, x)
    total = check.number("count", count)
    if not 0 < total < np.inf:
        raise ValueError(f"count: expected a positive finite number, got {count!r}")
    kept = None if mask is None else masks.positions(mask, x.shape, axis)
    x, view = batch(x, axis)
    dy = conform(dy, view)
    channels = (view.channels,)
    mean = check.saved("mean", mean, channels)
    rstd = check.saved("rstd", rstd, channels)
    sum_dy = check.saved("sum_dy", sum_dy, channels)
    sum_dy_xmu = check.saved("sum_dy_xmu", sum_dy_xmu, channels)
    weight = check.parameter("weight", weight, channels)
    dx = check.destination(out, x, view, x, dy, mean, rstd, weight, sum_dy, sum_dy_xmu)
    if kept is None:
        _apply(dx, dy, x, view, mean, rstd, weight, sum_dy, sum_dy_xmu, total)
        return check.deliver(dx, out)
    dy = masks.pack(dy, kept, axis)
    x, view = batch(masks.pack(x, kept, axis), 1)
    some = empty(x.shape, x.dtype, view)
    _apply(some, conform(dy, view), x, view, mean, rstd, weight, sum_dy, sum_dy_xmu, total)
    dx[...] = 0
    np.moveaxis(dx, axis, -1)[kept] = some
    return check.deliver(dx, out)


def _apply(
    dx: Array,
    dy: Array,
    x: Array,
    view: View,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    sum_dy: Array,
    sum_dy_xmu: Array,
    count: float,
) -> None:
    if x.size:
        backend.current().channels[view.family].apply_grads(
            *(flat(dx, view), flat(dy, view), flat(x, view), mean, rstd, weight),
            *(sum_dy, sum_dy_xmu),
            count,
            *view.sizes,
            backend.threads(x.size),
        )
