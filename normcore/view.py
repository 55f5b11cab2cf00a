"""Which axes of an array become which sizes of a kernel: the only file that knows axes.

Each function maps (shape, memory order, axes of the layer) of an array to the canonical view of
one of the families of `normcore.kernels.table`:

* `batch`: the elements before, along and after the channel axis *in memory order* become n, c, s
  (nchw); where nothing is behind the channel axis, the array is channels-last (nc): b = 1, m
  elements per channel, c contiguous channels.
* `group`, which serves instance norm too: n = 1 and the channels of all samples counted through
  (nchw), or b samples of m positions of c channels (nc).
* `layer`: the normalized axes are last in memory (rows) or a block somewhere before (cols).

A transposed view of a contiguous array (channels-last data with the axes of channels-first, a
Fortran-ordered array) needs no copy where the family can read it as it lies: no statistic cares in
which order its axes lie. Anything else (gaps, negative strides, unaligned, byte-swapped, samples
that are not apart in memory, normalized axes that are no block) is copied once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
Order = tuple[int, ...] | None
"""Axes in memory order; None if they lie as they are numbered."""


class Lying(Protocol):
    """What all views say of the memory order."""

    @property
    def order(self) -> Order:
        """The axes of x in memory order."""


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
    if x.flags.carray and x.dtype.isnative:
        return x, contiguous(x.shape, axis)
    order = _memory_order(x)
    view = contiguous(x.shape, axis) if order is None else _permuted(x.shape, order, axis)
    return conform(x, view), view


class GroupView(NamedTuple):
    """A canonical view whose statistics belong to one sample."""

    family: str
    """"nchw" or "nc"."""
    sizes: tuple[int, int, int]
    """(1, N * C, s) or (N, m, C)."""
    order: Order
    """The axes that x must lie in."""
    channels: int
    """Length of the channel axis."""
    positions: tuple[int, ...]
    """Shape of x without the channel axis, which is that of a mask."""
    positions_order: Order
    """The axes of a mask in memory order."""


def group(x: Array, axis: int) -> tuple[Array, GroupView]:
    """x, or a copy of x that the kernels can read, and its view for group and instance norm.

    Parameters
    ----------
    x : ndarray
        Samples along axis 0; any layout, alignment and byte order.
    axis : int
        The channel axis, in range and positive.

    Examples
    --------
    >>> x = np.zeros((8, 3, 5, 5), np.float32)
    >>> group(x, 1)[1].sizes
    (1, 24, 25)
    >>> channels_last = np.zeros((8, 5, 5, 3), np.float32).transpose(0, 3, 1, 2)
    >>> same, view = group(channels_last, 1)
    >>> same is channels_last, view.family, view.sizes
    (True, 'nc', (8, 25, 3))
    """
    lies = x.flags.carray and x.dtype.isnative
    view = _grouped(x.shape, None if lies else _memory_order(x), axis)
    return x if lies and view.order is None else conform(x, view), view


@lru_cache(maxsize=4096)
def _grouped(shape: tuple[int, ...], order: Order, axis: int) -> GroupView:
    lies = range(len(shape)) if order is None else order
    # Axes of one element may be anywhere.
    long = [i for i in lies if shape[i] != 1]
    samples_first = 0 not in long or long[0] == 0
    inner = [i for i in long if i != 0]
    if samples_first and (axis not in inner or inner[0] == axis):
        last = inner == [axis]
    elif samples_first and inner[-1] == axis:
        last = True
    else:
        last = axis == len(shape) - 1
        behind = (i for i in range(1, len(shape)) if i != axis)
        order = None if last or axis == 1 else (0, axis, *behind)
    n, channels = shape[0], shape[axis]
    positions = [i for i in range(len(shape)) if i != axis]
    count = prod(shape[i] for i in positions[1:])
    return GroupView(
        "nc" if last else "nchw",
        (n, count, channels) if last else (1, n * channels, count),
        order,
        channels,
        tuple(shape[i] for i in positions),
        _order_among(positions, order),
    )


class LayerView(NamedTuple):
    """A canonical view whose statistics cover the normalized axes."""

    family: str
    """"rows" or "cols"."""
    sizes: tuple[int, ...]
    """(r, m) or (b, m, c)."""
    order: Order
    """The axes that x must lie in."""
    axes: tuple[int, ...]
    """The normalized axes, in the order of weight's axes."""
    statistics: tuple[int, ...]
    """Shape of mean and rstd: that of x without the normalized axes."""
    statistics_order: Order
    """The axes of mean and rstd in memory order."""
    parameters: tuple[int, ...]
    """Shape of weight and bias."""
    parameters_order: Order
    """The axes of weight and bias in memory order."""


def layer(x: Array, axes: tuple[int, ...], rows: bool = False) -> tuple[Array, LayerView]:
    """x, or a copy of x that the kernels can read, and its view for layer and RMS norm.

    Parameters
    ----------
    x : ndarray
        Any layout, alignment and byte order.
    axes : tuple of int
        The normalized axes, in range and not negative.
    rows : bool, optional
        Insist on the family rows, which takes a copy where the axes do not lie last.

    Examples
    --------
    >>> x = np.zeros((8, 3, 5, 5), np.float32)
    >>> layer(x, (2, 3))[1][:2], layer(x, (1,))[1][:2]
    (('rows', (24, 25)), ('cols', (8, 3, 25)))
    >>> channels_last = np.zeros((8, 5, 5, 3), np.float32).transpose(0, 3, 1, 2)
    >>> same, view = layer(channels_last, (1,))
    >>> same is channels_last, view.family, view.sizes, view.statistics
    (True, 'rows', (200, 3), (8, 5, 5))
    """
    lies = x.flags.carray and x.dtype.isnative
    view = _normalized(x.shape, None if lies else _memory_order(x), axes, rows)
    return x if lies and view.order is None else conform(x, view), view


@lru_cache(maxsize=4096)
def _normalized(
    shape: tuple[int, ...], order: Order, axes: tuple[int, ...], rows: bool
) -> LayerView:
    lies = tuple(range(len(shape))) if order is None else order
    outer = [i for i in range(len(shape)) if i not in axes]
    sizes = _block(shape, lies, axes)
    if sizes is None or (rows and sizes[2] != 1):
        order = lies = (*outer, *sorted(axes))
        sizes = (prod(shape[i] for i in outer), prod(shape[i] for i in axes), 1)
    return LayerView(
        "rows" if sizes[2] == 1 else "cols",
        sizes[:2] if sizes[2] == 1 else sizes,
        order,
        axes,
        tuple(shape[i] for i in outer),
        _order_among(outer, lies),
        tuple(shape[i] for i in axes),
        _order_among(axes, lies),
    )


def _block(
    shape: tuple[int, ...], order: Iterable[int], axes: tuple[int, ...]
) -> tuple[int, int, int] | None:
    """(b, m, c): elements before, along and behind `axes` in memory; None if they are no block."""
    # Axes of one element may be anywhere.
    long = [i for i in order if shape[i] != 1]
    inside = [place for place, i in enumerate(long) if i in axes]
    if not inside:
        return prod(shape), 1, 1
    first, end = inside[0], inside[-1] + 1
    if end - first != len(inside):
        return None
    before, along, behind = long[:first], long[first:end], long[end:]
    return (
        prod(shape[i] for i in before),
        prod(shape[i] for i in along),
        prod(shape[i] for i in behind),
    )


def _order_among(axes: Iterable[int], order: Order) -> Order:
    """The places of `axes` in memory order; None if they lie as they are listed."""
    listed = list(axes)
    if order is None:
        order = tuple(sorted(listed))
    found = tuple(listed.index(i) for i in order if i in listed)
    return None if found == tuple(range(len(listed))) else found


def _memory_order(x: Array) -> Order:
    """The axes in memory order; None for C order and for arrays with gaps or negative strides."""
    if x.flags.c_contiguous:
        return None
    order = tuple(sorted(range(x.ndim), key=lambda i: -x.strides[i]))
    return order if x.transpose(order).flags.c_contiguous else None


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in native byte order."""
    # Not newbyteorder: it makes another object, and checks of dtypes begin with identity.
    return dtype if dtype.isnative else np.dtype(dtype.type)


def in_memory(x: Array, order: Order) -> Array:
    """x with its axes in memory order."""
    return x if order is None else x.transpose(order)


def empty_in(shape: tuple[int, ...], dtype: Any, order: Order) -> Array:
    """An array of this shape whose axes lie in this order."""
    if order is None:
        return np.empty(shape, dtype)
    memory = np.empty([shape[axis] for axis in order], dtype)
    return memory.transpose(sorted(range(len(order)), key=order.__getitem__))


def flat(x: Array, view: Lying) -> Array:
    """x as the kernels take it: C-contiguous, in memory order."""
    order = view.order
    return x if order is None else x.transpose(order)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], view: Lying) -> Array:
    """An array of this shape that lies in memory as the view says."""
    return empty_in(shape, dtype, view.order)


def conform(x: Array, view: Lying) -> Array:
    """x, or a copy of x that lies in memory as the view says."""
    order = view.order
    flags = x.flags if order is None else x.transpose(order).flags
    if flags.c_contiguous and flags.aligned and x.dtype.isnative:
        return x
    copy = empty_in(x.shape, native(x.dtype), order)
    copy[...] = x
    return copy
