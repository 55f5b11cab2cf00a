"""Validation of what layer, RMS, group and instance norm say of axes: which, how long, in groups.

As in `normcore.check`: each function returns its argument ready for use, or raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from . import check

Array = np.ndarray[Any, Any]


def lengths(value: Any) -> tuple[int, ...]:
    """`normalized_shape`: one or more lengths of axes."""
    if type(value) is int and value >= 0:
        return (value,)
    if type(value) is not tuple:
        if isinstance(value, int | np.integer):
            value = (value,)
        try:
            value = tuple(value)
        except TypeError:
            raise TypeError(
                f"normalized_shape: expected an int or a sequence of int, got {value!r}"
            ) from None
    if not value:
        raise ValueError("normalized_shape: expected at least one length, got none")
    return tuple(_length(n) for n in value)


def _length(value: Any) -> int:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"normalized_shape: expected an int or a sequence of int, got {value!r}")
    if value < 0:
        raise ValueError(f"normalized_shape: expected lengths of at least 0, got {value}")
    return int(value)


def normalized_axes(
    x: Array, normalized_shape: tuple[int, ...], axis: int | Sequence[int] | None
) -> tuple[int, ...]:
    """The axes of x that layer norm normalizes over, not negative, in the order of weight's."""
    shape = x.shape
    if axis is None:
        return _last_axes(shape, normalized_shape)
    if type(axis) is int and len(normalized_shape) == 1:
        return _named_axes(shape, normalized_shape, (axis,))
    return _named_axes(shape, normalized_shape, layer_axes(axis, normalized_shape))


@lru_cache(maxsize=4096)
def _last_axes(shape: tuple[int, ...], normalized_shape: tuple[int, ...]) -> tuple[int, ...]:
    behind = len(shape) - len(normalized_shape)
    if behind < 0 or shape[behind:] != normalized_shape:
        expected = ", ".join(map(str, ("*", *normalized_shape)))
        raise ValueError(
            f"x: expected shape ({expected}) for normalized_shape {normalized_shape}, got {shape}"
        )
    return tuple(range(behind, len(shape)))


@lru_cache(maxsize=4096)
def _named_axes(
    shape: tuple[int, ...], normalized_shape: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[int, ...]:
    ndim = len(shape)
    for i in axes:
        if not -ndim <= i < ndim:
            raise ValueError(f"axis: expected axes of x of shape {shape}, got {axes}")
    found = tuple(i % ndim for i in axes)
    if len(set(found)) != len(found):
        raise ValueError(f"axis: expected different axes of x of shape {shape}, got {axes}")
    if tuple(shape[i] for i in found) != normalized_shape:
        raise ValueError(
            f"x: expected lengths {normalized_shape} along axes {axes}, got shape {shape}"
        )
    return found


def layer_axes(axis: int | Sequence[int], normalized_shape: tuple[int, ...]) -> tuple[int, ...]:
    """As many axes as `normalized_shape` has, as given."""
    if isinstance(axis, int | np.integer):
        axis = (axis,)
    try:
        axes = tuple(axis)
    except TypeError:
        raise TypeError(f"axis: expected an int, a sequence of int or None, got {axis!r}") from None
    for i in axes:
        if isinstance(i, bool) or not isinstance(i, int | np.integer):
            raise TypeError(f"axis: expected an int, a sequence of int or None, got {i!r}")
    if len(axes) != len(normalized_shape):
        raise ValueError(
            f"axis: expected as many axes as normalized_shape {normalized_shape} has, got {axis!r}"
        )
    return tuple(int(i) for i in axes)


def behind_samples(axis: Any) -> int:
    """The channel axis of a layer, whose samples lie along axis 0; as given."""
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"axis: expected an int, got {axis!r}")
    if axis == 0:
        raise ValueError("axis: expected a channel axis behind the samples' axis 0, got 0")
    return int(axis)


def group_axis(axis: int, x: Array) -> int:
    """The channel axis of x, whose samples lie along axis 0; positive."""
    return behind_samples(check.channel_axis(axis, x))


def groups(num_groups: Any, channels: int) -> int:
    """A number of groups that the channels split into evenly."""
    count = check.size("num_groups", num_groups)
    if channels % count:
        raise ValueError(
            f"num_groups: expected a divisor of the number of channels {channels}, got {count}"
        )
    return count
