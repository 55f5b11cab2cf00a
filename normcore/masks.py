"""Which positions of an array count: a mask as users give it, and as the kernels take it.

A mask has the shape of x without the channel axis, or broadcasts to it; what is 0 or False does
not count. Kernels take bytes in the memory order of x's view.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import check
from .view import View

Array = np.ndarray[Any, Any]


def positions(mask: Any, shape: tuple[int, ...], axis: int) -> Array:
    """The mask as booleans, one for each position of an array of this shape and channel axis.

    Examples
    --------
    >>> positions([[1, 1, 0], [1, 0, 0]], (2, 4, 3), 1)
    array([[ True,  True, False],
           [ True, False, False]])
    """
    found = check.plain("mask", mask)
    if found.dtype.kind not in "bui":
        raise TypeError(f"mask: expected booleans or integers, got dtype {found.dtype}")
    expected = shape[:axis] + shape[axis + 1 :]
    if found.dtype.kind != "b":
        found = found != 0
    if found.shape == expected:
        return found
    try:
        return np.broadcast_to(found, expected)
    except ValueError:
        raise ValueError(
            f"mask: expected shape {expected}, x's {shape} without the channel axis {axis}, or "
            f"what broadcasts to it, got {found.shape}"
        ) from None


def batch(mask: Any, shape: tuple[int, ...], axis: int, view: View) -> Array:
    """The mask as bytes in the memory order of the view: (n, s) or (b, m)."""
    kept = positions(mask, shape, axis)
    if view.order is not None:
        kept = kept.transpose([i - (i > axis) for i in view.order if i != axis])
    # A byte of a boolean is 0 or 1 already, so that a plain mask is not copied.
    return np.ascontiguousarray(kept).view(np.uint8)


def clear(values: Array, mask: Any, axis: int) -> None:
    """Set the values that do not count to 0, in place."""
    kept = positions(mask, values.shape, axis)
    np.copyto(values, 0, where=~np.expand_dims(kept, axis))
