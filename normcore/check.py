"""Validation of arguments: fast for what is right, then a clear error for what is not.

Each function takes the value of one argument, returns it ready for the kernels, and raises a
TypeError or ValueError that names the argument, what was expected and what came. None of them
writes to anything, so an error leaves every array as it was.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray

from .kernels import table
from .view import Lying, empty, flat

Array = ndarray[Any, Any]

# Identity with these is the fast test of a dtype; it also says native byte order.
FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)

STORED = ("float32", "float64", "float16", "bfloat16")
"""Names of the dtypes of x. bfloat16 is that of ml_dtypes, which is never imported here."""


def array(name: str, values: Any) -> Array:
    """A plain array of a dtype that kernels load and store."""
    found: Array = values if type(values) is ndarray else plain(name, values)
    dtype = found.dtype
    if dtype is not FLOAT32 and dtype is not FLOAT64 and dtype.type.__name__ not in STORED:
        raise TypeError(
            f"{name}: expected dtype {', '.join(STORED[:-1])} or {STORED[-1]}, got {dtype}"
        )
    return found


def floats(name: str, values: Any) -> Array:
    """A plain float32 or float64 array, as parameters and statistics are."""
    found: Array = values if type(values) is ndarray else plain(name, values)
    dtype = found.dtype
    if dtype is not FLOAT32 and dtype is not FLOAT64 and dtype.type not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected dtype float32 or float64, got {dtype}")
    return found


def plain(name: str, values: Any) -> Array:
    """A plain array of any dtype."""
    # Subclasses (np.matrix, MaskedArray) change what * and indexing mean: only their data counts.
    if getattr(values, "requires_grad", False) is True:
        raise TypeError(
            f"{name}: got a tensor that requires grad, which NumPy cannot read; "
            f"pass {name}.detach()"
        )
    try:
        found: Array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise TypeError(
            f"{name}: expected an array, got {type(values).__name__}, which NumPy cannot convert: "
            f"{error}"
        ) from error
    return found


def stored(name: str, values: Any) -> Array:
    """A plain array of any dtype of NumPy, as weights are stored: bfloat16 becomes float32.

    NumPy has no bfloat16: that of ml_dtypes is no floating-point type to it, and PyTorch's it
    cannot read at all.
    """
    if str(getattr(values, "dtype", "")) == "torch.bfloat16":
        values = values.float()
    found = plain(name, values)
    return found.astype(np.float32) if found.dtype.name == "bfloat16" else found


def channel_axis(axis: int, x: Array) -> int:
    """The channel axis of x, not negative."""
    ndim = x.ndim
    if type(axis) is int and 0 <= axis < ndim and ndim > 1:
        return axis
    if type(axis) is not int:
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(f"axis: expected an int, got {axis!r}")
        axis = int(axis)
    if ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions, got shape {x.shape}")
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis: expected an axis of x of shape {x.shape}, got {axis}")
    return axis + ndim if axis < 0 else axis


def same(name: str, values: Any, x: Array) -> Array:
    """An array of x's shape and dtype (in any byte order)."""
    found = array(name, values)
    if found.shape != x.shape:
        raise ValueError(f"{name}: expected x's shape {x.shape}, got {found.shape}")
    if found.dtype is not x.dtype and found.dtype.type is not x.dtype.type:
        raise TypeError(f"{name}: expected x's dtype {x.dtype}, got {found.dtype}")
    return found


def parameter(name: str, values: Any, shape: tuple[int, ...]) -> Array | None:
    """A parameter for a kernel to read, or None."""
    if values is None:
        return None
    return statistic(name, values, shape)


def statistic(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    """A statistic for a kernel to read."""
    if type(values) is ndarray and values.shape == shape and values.flags.carray:
        dtype = values.dtype
        if dtype is FLOAT32 or dtype is FLOAT64:
            return values
    return _readable(name, values, shape)


def is_plain(values: Array) -> bool:
    """Can a compiled kernel read and write these values where they are?"""
    return values.flags.carray and (values.dtype is FLOAT32 or values.dtype is FLOAT64)


def _readable(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    if values is None:
        raise ValueError(f"{name}: expected an array of shape {shape}, got None")
    values = floats(name, values)
    if values.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {values.shape}")
    return np.require(values, values.dtype.newbyteorder("="), ["C", "A"])


def saved(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    """A float64 statistic for a backward to read."""
    return statistic(name, values, shape).astype(np.float64, copy=False)


def running(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    """A running statistic, which a training forward updates in place."""
    if not isinstance(values, ndarray):
        raise TypeError(
            f"{name}: expected a NumPy array to update in place, got {type(values).__name__}"
        )
    floats(name, values)
    if values.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {values.shape}")
    if not values.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, got a read-only one")
    return values


def size(name: str, value: Any) -> int:
    """A positive int."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def layer_axis(value: Any, ndim: int) -> int:
    """The channel axis of arrays with (up to) ndim axes, as given."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"axis: expected an int, got {value!r}")
    if not -ndim <= value < ndim:
        raise ValueError(f"axis: expected an axis of a {ndim}-D array, got {value}")
    return int(value)


def layer_dtype(value: Any) -> np.dtype[Any]:
    """The dtype of a layer's parameters, float32 or float64."""
    dtype = np.dtype(value)
    if dtype.type not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")
    native: np.dtype[Any] = np.dtype(dtype.type)
    return native


def eps(value: Any) -> float:
    """A positive finite number."""
    if type(value) is float and 0.0 < value < math.inf:
        return value
    found = number("eps", value)
    if not 0.0 < found < math.inf:
        raise ValueError(f"eps: expected a positive finite number, got {value!r}")
    return found


def momentum(value: Any) -> float:
    """A number from 0 to 1."""
    if type(value) is float and 0.0 <= value <= 1.0:
        return value
    found = number("momentum", value)
    if not 0.0 <= found <= 1.0:
        raise ValueError(f"momentum: expected a number from 0 to 1, got {value!r}")
    return found


def activation(name: Any) -> int:
    """The number that kernels take for the name of an activation, or for None."""
    if isinstance(name, str | None) and name in table.ACTIVATIONS:
        return table.ACTIVATIONS[name]
    names = ", ".join(map(repr, table.ACTIVATIONS))
    raise ValueError(f"activation: expected one of {names}, got {name!r}")


def number(name: str, value: Any) -> float:
    """A number."""
    if isinstance(value, str):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None


def destination(out: Array | None, x: Array, view: Lying, *reads: Array | None) -> Array:
    """The array that a kernel writes: `out` if it lies in memory like x, else a fresh one.

    Parameters
    ----------
    out : ndarray or None
        Shape and dtype of x, native byte order, writeable. It may be one of `reads`, but not
        overlap any of them otherwise.
    x : ndarray
        What the kernel reads, with its view.
    reads : ndarray or None
        All arrays that the kernel reads.
    """
    if out is None:
        return empty(x.shape, x.dtype, view)
    if type(out) is not ndarray or out.dtype is not x.dtype or out.shape != x.shape:
        _check_out(out, x)
    # Arrays that own their memory are apart, and so are views of them: to compare the owners is
    # five times faster than to ask NumPy.
    base = out.base
    mine = out if base is None else base
    unsure = type(mine) is not ndarray or mine.base is not None
    for read in reads:
        if read is None or read is out:
            continue
        base = read.base
        if base is None:
            if unsure or read is mine:
                _check_apart(out, read)
        elif unsure or base is mine or type(base) is not ndarray or base.base is not None:
            _check_apart(out, read)
    flags = out.flags
    if view.order is None and flags.carray:
        return out
    if not flags.writeable:
        raise ValueError("out: expected a writeable array, got a read-only one")
    flags = flat(out, view).flags
    return out if flags.c_contiguous and flags.aligned else empty(x.shape, x.dtype, view)


def _check_out(out: Any, x: Array) -> None:
    if not isinstance(out, ndarray):
        raise TypeError(f"out: expected a NumPy array, got {type(out).__name__}")
    if out.shape != x.shape:
        raise ValueError(f"out: expected x's shape {x.shape}, got {out.shape}")
    if out.dtype != x.dtype:
        raise TypeError(f"out: expected dtype {x.dtype} in native byte order, got {out.dtype}")


def _check_apart(out: Array, read: Array) -> None:
    if not np.may_share_memory(out, read):
        return
    identical = (
        out.__array_interface__["data"][0] == read.__array_interface__["data"][0]
        and out.strides == read.strides
        and out.shape == read.shape
    )
    if not identical and np.shares_memory(out, read):
        raise ValueError(
            "out: expected memory of its own or exactly that of the input, got an array that "
            "overlaps an input"
        )


def deliver(result: Array, out: Array | None) -> Array:
    """`out` with the result in it, or the result where no `out` was given."""
    if out is None or result is out:
        return result
    out[...] = result
    return out
