"""The compiled kernels by pointer: from Cython without the GIL, inside ``@njit``, by ctypes.

``capi.pxd`` beside this file declares the functions, says what their arguments mean and which
status they return. In Cython they are ``cimport``-ed from here; `numba_function` and
`ctypes_function` give the same functions to Numba and to ctypes. All of them are those of the
instruction set that was chosen at import, and none needs the GIL.

The Numba kernels need nothing of this: ``normcore.kernels.rows.forward`` and the others are
``@njit`` functions, which other ``@njit`` functions call (see `normcore.kernels.table`).
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from pathlib import Path
from typing import Any

__all__ = [
    "Dtype",
    "Status",
    "address",
    "ctypes_function",
    "get_include",
    "names",
    "numba_function",
]

try:
    from .kernels import cython
except ImportError as error:
    raise ImportError(
        "normcore.capi: the Cython backend was not built here; install normcore with a C compiler "
        f"({error})"
    ) from error

# Where Cython looks for what modules cimport: it compares the signatures that the capsules hold
# with those of capi.pxd.
__pyx_capi__: dict[str, Any] = {
    f"{family}_{name.removeprefix('c_')}": capsule
    for family, module in cython.families.items()
    for name, capsule in getattr(module, "__pyx_capi__", {}).items()
}

_TYPES = {"int": ctypes.c_int, "double": ctypes.c_double, "Py_ssize_t": ctypes.c_ssize_t}


class Dtype(IntEnum):
    """What the functions take as ``dtype`` and ``parameter_dtype``; names are those of NumPy."""

    float32 = 0
    float64 = 1
    float16 = 2
    bfloat16 = 3


class Status(IntEnum):
    """What the functions return; where it is not OK, nothing has been written."""

    OK = 0
    NULL_POINTER = 1
    """For an array that is not optional."""
    BAD_DTYPE = 2
    BAD_SIZES = 3
    """Negative, more than memory holds, or statistics and parameters that do not divide."""
    BAD_ACTIVATION = 4
    BAD_THREADS = 5
    NO_MEMORY = 6


def names() -> tuple[str, ...]:
    """The functions, as ``<family>_<pass>``.

    Examples
    --------
    >>> from normcore import capi
    >>> "nchw_forward" in capi.names()
    True
    """
    return tuple(sorted(__pyx_capi__))


def get_include() -> str:
    """The folder to give Cython as ``include_path``, so that it finds ``normcore/capi.pxd``.

    Cython finds an installed package by itself; one that is installed with ``pip install -e``
    it does not.

    Examples
    --------
    >>> from pathlib import Path
    >>> from normcore import capi
    >>> (Path(capi.get_include()) / "normcore" / "capi.pxd").is_file()
    True
    """
    return str(Path(__file__).resolve().parents[1])


def _capsule(name: str) -> tuple[Any, bytes]:
    if name not in __pyx_capi__:
        raise ValueError(f"name: expected one of {', '.join(names())}, got {name!r}")
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    capsule = __pyx_capi__[name]
    return capsule, get_name(capsule)


def _arguments(name: str) -> list[str]:
    # Of b"int (int, void *, ...)": the C types, all pointers alike.
    _, signature = _capsule(name)
    inner = signature.decode().partition("(")[2].rpartition(")")[0]
    return ["pointer" if "*" in word else word for word in inner.split(", ")]


def address(name: str) -> int:
    """Where the function `name` starts.

    Raises
    ------
    ValueError
        For a name that is not one of `names`.
    """
    capsule, signature = _capsule(name)
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    found: int = get_pointer(capsule, signature)
    return found


def ctypes_function(name: str) -> Any:
    """The function `name` for ctypes, which lets the GIL go around it.

    Pointers are ``c_void_p``: give ``array.ctypes.data``, and None for one that is absent.

    Raises
    ------
    ValueError
        For a name that is not one of `names`.

    Examples
    --------
    >>> import numpy as np
    >>> from normcore import capi
    >>> moments = capi.ctypes_function("nc_moments")
    >>> x, mean, m2 = np.array([[1.0, 5.0], [3.0, 5.0]]), np.empty(2), np.empty(2)
    >>> data = [a.ctypes.data for a in (mean, m2, x)]
    >>> moments(capi.Dtype.float64, *data, 1, 2, 2, 1)
    0
    >>> mean, m2
    (array([2., 5.]), array([2., 0.]))
    """
    types: list[Any] = [_TYPES.get(word, ctypes.c_void_p) for word in _arguments(name)]
    return ctypes.CFUNCTYPE(ctypes.c_int, *types)(address(name))


def numba_function(name: str) -> Any:
    """The function `name` as a global of ``@njit`` functions, which may be cached.

    Pointers are addresses: give ``array.ctypes.data``, and 0 for one that is absent. Numba cannot
    call it from outside of ``@njit``; there is `ctypes_function` for that.

    Raises
    ------
    ValueError
        For a name that is not one of `names`.

    Examples
    --------
    >>> from normcore import capi
    >>> capi.numba_function("rows_forward").symbol
    'normcore_rows_forward'
    """
    from llvmlite import binding
    from numba import types

    known = {
        "int": types.int32,
        "double": types.float64,
        "Py_ssize_t": types.intp,
        "pointer": types.uintp,
    }
    # A symbol, not an address: Numba caches no function that has an address in it.
    symbol = f"normcore_{name}"
    arguments = [known[word] for word in _arguments(name)]
    binding.add_symbol(symbol, address(name))
    return types.ExternalFunction(symbol, types.int32(*arguments))
