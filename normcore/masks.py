"""Which positions of an array count: a mask as users give it, and as the kernels take it.

A mask has the shape of x without the channel axis (of layer norm: without the normalized axes, or
of x), or broadcasts to it; what is 0 or False does not count. Kernels take bytes in the memory
order of x's view.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import check
from .view import GroupView, LayerView, View, in_memory

Array = np.ndarray[Any, Any]


def positions(mask: Any, shape: tuple[int, ...], axis: int) -> Array:
    """The mask as booleans, one for each position of an array of this shape and channel axis.

    Examples
    --------
    >>> positions([[1, 1, 0], [1, 0, 0]], (2, 4, 3), 1)
    array([[ True,  True, False],
           [ True, False, False]])
    """
    found = _booleans(mask)
    expected = shape[:axis] + shape[axis + 1 :]
    if found.shape == expected:
        return found
    try:
        return np.broadcast_to(found, expected)
    except ValueError:
        raise ValueError(
            f"mask: expected shape {expected}, x's {shape} without the channel axis {axis}, or "
            f"what broadcasts to it, got {found.shape}"
        ) from None


def _booleans(mask: Any) -> Array:
    found = check.plain("mask", mask)
    if found.dtype.kind not in "bui":
        raise TypeError(f"mask: expected booleans or integers, got dtype {found.dtype}")
    return found if found.dtype.kind == "b" else found != 0


def elements(mask: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """The mask of layer norm over `axes` as booleans, with the axes of x, some of length 1.

    A mask that broadcasts to the shape without `axes` is taken for one of whole statistics.

    Examples
    --------
    >>> elements([1, 0, 1], (3, 4), (1,)).shape, elements([1, 0, 1, 1], (3, 4), (1,)).shape
    ((3, 1), (1, 4))
    """
    found = _booleans(mask)
    outer = tuple(n for i, n in enumerate(shape) if i not in axes)
    if _broadcasts(found.shape, outer):
        return np.expand_dims(found.reshape(_padded(found.shape, len(outer))), axes)
    if _broadcasts(found.shape, shape):
        return found.reshape(_padded(found.shape, len(shape)))
    raise ValueError(
        f"mask: expected a shape that broadcasts to {outer} (x's without the normalized axes) or "
        f"to x's {shape}, got {found.shape}"
    )


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(a in (1, b) for a, b in pairs)


def _padded(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return (1,) * (ndim - len(shape)) + shape


def batch(mask: Any, shape: tuple[int, ...], axis: int, view: View) -> Array:
    """The mask as bytes in the memory order of the view: (n, s) or (b, m)."""
    kept = positions(mask, shape, axis)
    if view.order is not None:
        kept = kept.transpose([i - (i > axis) for i in view.order if i != axis])
    return _bytes(kept)


def group(mask: Any, shape: tuple[int, ...], axis: int, view: GroupView) -> Array:
    """The mask as bytes in the memory order of the view: (N, s) or (N, m)."""
    return _bytes(in_memory(positions(mask, shape, axis), view.positions_order))


def layer(kept: Array, shape: tuple[int, ...], view: LayerView) -> Array:
    """What `elements` returns as bytes: one for so many adjacent elements, or for a column."""
    order = tuple(range(len(shape))) if view.order is None else view.order
    kept = kept.transpose(order)
    if view.family == "cols":
        kept = kept.squeeze(tuple(place for place, i in enumerate(order) if i in view.axes))
        order = tuple(i for i in order if i not in view.axes)
    else:
        while order and kept.shape[-1] == 1 and (order[-1] in view.axes or shape[order[-1]] == 1):
            kept, order = kept[..., 0], order[:-1]
    return _bytes(np.broadcast_to(kept, [shape[i] for i in order]))


def pack(values: Array, kept: Array, axis: int) -> Array:
    """The values of the positions that count, copied: (positions, channels).

    Examples
    --------
    >>> x = np.arange(6).reshape(1, 2, 3)
    >>> pack(x, positions([1, 0, 1], (1, 2, 3), 1), 1)
    array([[0, 3],
           [2, 5]])
    """
    packed: Array = np.moveaxis(values, axis, -1)[kept]
    return packed


def _bytes(kept: Array) -> Array:
    # A byte of a boolean is 0 or 1 already, so that a plain mask is not copied.
    return np.ascontiguousarray(kept).view(np.uint8)


def clear(values: Array, mask: Any, axis: int) -> None:
    """Set the values that do not count to 0, in place."""
    kept = positions(mask, values.shape, axis)
    np.copyto(values, 0, where=~np.expand_dims(kept, axis))


def clear_elements(values: Array, mask: Any, axes: tuple[int, ...]) -> None:
    """The same by a mask of layer norm over `axes`."""
    np.copyto(values, 0, where=~elements(mask, values.shape, axes))
