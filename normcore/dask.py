"""Statistics of dask arrays: `channel_stats`. Needs dask (``pip install normcore[dask]``).

To normalize a dask array, give it to a ufunc of `normcore.gufuncs`, or a function of
`normcore.functional` and the statistics to ``map_blocks``.
"""

from __future__ import annotations

from typing import Any

try:
    import dask
    import dask.array as da
except ImportError as error:
    raise ImportError(
        "normcore.dask needs dask: pip install normcore[dask]", name=error.name
    ) from error

import numpy as np

from .check import layer_axis
from .stats import ChannelStats

__all__ = ["channel_stats"]

_TOGETHER = 8
"""Statistics that one task merges."""


def channel_stats(x: Any, axis: int = 1) -> Any:
    """`ChannelStats` of a dask array, not yet computed.

    mean = sum(x) / count, var(ddof) = sum((x - mean)^2) / (count - ddof), of each channel

    Every chunk is read once and becomes a `ChannelStats`; they merge in a tree whose shape the
    chunks define, so that the result has the same bits whatever the scheduler does. A worker holds
    one chunk and a few vectors of C numbers.

    Parameters
    ----------
    x : dask.array.Array
        Two or more axes, floating-point numbers or integers. Chunks along the channel axis are
        joined first.
    axis : int, optional
        The channel axis.

    Returns
    -------
    dask.delayed.Delayed
        ``.compute()`` gives the `ChannelStats`.

    Raises
    ------
    TypeError
        If x is no dask array.
    ValueError
        If x has no such axis, or fewer than two.

    Examples
    --------
    >>> import dask.array as da
    >>> from normcore.dask import channel_stats
    >>> channel_stats(da.ones((1000, 3, 8), chunks=(100, 3, 8))).compute()
    ChannelStats(axis=1): 8000 values in each of 3 channels
    """
    if not isinstance(x, da.Array):
        raise TypeError(f"x: expected a dask array, got {type(x).__name__}")
    if x.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions, got shape {x.shape}")
    axis = layer_axis(axis, x.ndim) % x.ndim
    blocks = x.rechunk({axis: -1}).to_delayed(optimize_graph=True).ravel()
    of_chunk, merged = dask.delayed(_of_chunk, pure=True), dask.delayed(_merged, pure=True)
    parts = [of_chunk(block, axis) for block in blocks]
    while len(parts) > 1:
        parts = [merged(parts[i : i + _TOGETHER]) for i in range(0, len(parts), _TOGETHER)]
    return parts[0]


def _of_chunk(block: Any, axis: int) -> ChannelStats:
    stats = ChannelStats(axis)
    stats.update(np.asarray(block))
    return stats


def _merged(parts: list[ChannelStats]) -> ChannelStats:
    # Into a new one: dask may still hand out those that came.
    merged = ChannelStats(parts[0].axis)
    for part in parts:
        merged.merge(part)
    return merged
