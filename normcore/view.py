"""Which axes of an array become which sizes of a kernel: the only file that knows axes.

`batch` maps (shape, strides, channel axis) of an array to the canonical view of one of the two
batch-normalization families of `normcore.kernels.table`:

* the elements before, along and after the channel axis *in memory order* become n, c, s;
* where nothing is behind the channel axis, the array is channels-last: b = 1, m elements per
  channel, c contiguous channels.

A transposed view of a contiguous array (channels-last data with the axes of channels-first, a
Fortran-ordered array) needs no copy: batch statistics do not care in which order the other axes
lie. Anything else that has no such order (gaps, negative strides, unaligned, byte-swapped) is
copied once, in C order.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class View(NamedTuple):
    """A canonical view: ``x.transpose(order)`` is C-contiguous and has these sizes."""

    family: str
    """"nchw" or "nc"."""
    sizes: tuple[int, int, int]
    """(n, c, s) or (b, m, c)."""
    order: tuple[int, ...] | None
    """The axes in memory order; None if x already lies so."""
    channels: int
    """Length of the channel axis."""
    count: int  # type: ignore[assignment]  # hides tuple.count
    """Elements per channel."""


@lru_cache(maxsize=4096)
def contiguous(shape: tuple[int, ...], axis: int) -> View:
    """The view of a C-contiguous array; `axis` is in range and not negative."""
    before, channels, after = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
    if after == 1:
        return View("nc", (1, before, channels), None, channels, before)
    return View("nchw", (before, channels, after), None, channels, before * after)


@lru_cache(maxsize=4096)
def _permuted(shape: tuple[int, ...], order: tuple[int, ...], axis: int) -> View:
    view = contiguous(tuple(shape[i] for i in order), order.index(axis))
    return view._replace(order=order)


def batch(x: Array, axis: int) -> tuple[Array, View]:
    """x, or a copy of x that the kernels can read, and its view for batch normalization.

    Parameters
    ----------
    x : ndarray
        Any layout, alignment and byte order.
    axis : int
        The channel axis, in range and not negative.

    Examples
    --------
    >>> x = np.zeros((8, 3, 5, 5), np.float32)
    >>> batch(x, 1)[1].sizes, batch(x.transpose(0, 2, 3, 1), 3)[1].sizes
    ((8, 3, 25), (8, 3, 25))
    >>> channels_last = np.zeros((8, 5, 5, 3), np.float32).transpose(0, 3, 1, 2)
    >>> same, view = batch(channels_last, 1)
    >>> same is channels_last, view.family, view.sizes
    (True, 'nc', (1, 200, 3))
    """
    flags = x.flags
    native = x.dtype.isnative
    if native and flags.carray:
        return x, contiguous(x.shape, axis)
    if native and flags.aligned:
        if flags.c_contiguous:  # and read-only
            return x, contiguous(x.shape, axis)
        order = tuple(sorted(range(x.ndim), key=lambda i: -x.strides[i]))
        if x.transpose(order).flags.c_contiguous:
            return x, _permuted(x.shape, order, axis)
    x = np.array(x, x.dtype.newbyteorder("="), order="C", copy=True)
    return x, contiguous(x.shape, axis)


def flat(x: Array, view: View) -> Array:
    """x as the kernels take it: C-contiguous, in memory order."""
    return x if view.order is None else x.transpose(view.order)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], view: View) -> Array:
    """An array of this shape that lies in memory as the view says."""
    order = view.order
    if order is None:
        return np.empty(shape, dtype)
    memory = np.empty([shape[axis] for axis in order], dtype)
    return memory.transpose(sorted(range(len(order)), key=order.__getitem__))


def conform(dy: Array, view: View) -> Array:
    """dy, or a copy of dy that lies in memory as the view of x says."""
    lies = flat(dy, view).flags
    if lies.c_contiguous and lies.aligned and dy.dtype.isnative:
        return dy
    copy = empty(dy.shape, dy.dtype.newbyteorder("="), view)
    copy[...] = dy
    return copy
