"""XLA's foreign function interface: compiled programs call Python with their own buffers.

`jax.pure_callback` copies every input in a thread of XLA's pool and every result once more; where
all threads of the pool are in callbacks, it waits for those copies for ever (with one CPU, that is
one layer norm of the result of an operation). Here inputs and results are arrays on the memory that
XLA has, and nothing is waited for. A call takes 30 us more than one of a compiled function
(pure_callback: 165 us), 12 us of them to read what XLA hands over.

The structures are those of xla/ffi/api/c_api.h, of which `jax.ffi.include_dir` has a copy. XLA
appends to them; another major version would be another interface, which is refused. They are read
by `struct`, as fields of ctypes would take 10 us a call more.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, c_byte, c_char_p, c_int, c_int64, c_size_t, c_void_p, string_at
from struct import Struct
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MAJOR = 0
_METADATA = 1  # XLA_FFI_Extension_Metadata
_EXECUTE = 3  # XLA_FFI_ExecutionStage_EXECUTE
_INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL

# Each structure begins with its size and a pointer to extensions. Arguments, results and attributes
# of a frame are structures in it, of which the pointers at their end count: to buffers, or scalars.
_FRAME = Struct("@8xPP8xi4x" + "16xq8xP" * 2 + "16xq16xP")
_BUFFER = Struct("@16xi4xPqP")
_SCALAR = Struct("@i4xP")
_EXTENSION = Struct("@8xi4x8xP")  # type, metadata
_API = Struct("@16x16xii8xP")  # version: major, minor; XLA_FFI_Error_Create
_VERSION_IN_METADATA = 24


class _ErrorCreate(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("extension_start", c_void_p),
        ("message", c_char_p),
        ("code", c_int),
    ]


_Handler = CFUNCTYPE(c_void_p, c_void_p)


def _read(structure: Struct, address: int) -> tuple[Any, ...]:
    return structure.unpack(string_at(address, structure.size))


def _pointers(address: int, count: int) -> Sequence[int]:
    # As a list: ctypes' own type of arrays counts for no sequence.
    return (c_int64 * count).from_address(address)[:]


def _array(address: int, dtype: np.dtype[Any]) -> Array:
    """The array that a buffer is."""
    _, data, rank, dims = _read(_BUFFER, address)
    shape = tuple(_pointers(dims, rank)) if rank else ()
    size = dtype.itemsize
    for n in shape:
        size *= n
    if not size:  # XLA has no memory for it.
        return np.empty(shape, dtype)
    memory: Any = (c_byte * size).from_address(data)
    return np.ndarray(shape, dtype, memory)


class Target:
    """What XLA calls with a key: one of the functions that have been added.

    Each takes (arguments, results), lists of arrays, and writes the results. XLA has the keys in
    its programs, which may be older than the process: they must mean the same in all.
    """

    def __init__(self) -> None:
        self._functions: dict[int, tuple[Any, Sequence[Any], Sequence[Any]]] = {}
        self.handler = _Handler(self._handle)
        """For `jax.ffi.pycapsule`. It must live as long as XLA may call it."""

    def add(
        self,
        key: int,
        function: Callable[[list[Array], list[Array]], None],
        arguments: Sequence[Any],
        results: Sequence[Any],
    ) -> None:
        """Add a function whose arguments and results have these dtypes."""
        self._functions[key] = function, arguments, results

    def _handle(self, address: int) -> int | None:
        extension, api, stage, *rest = _read(_FRAME, address)
        try:
            if extension and _read(_EXTENSION, extension)[0] == _METADATA:
                _describe(_read(_EXTENSION, extension)[1], api)
            elif stage == _EXECUTE:
                self._execute(*rest)
        except BaseException as error:  # XLA raises it where the program was called.
            return _failure(api, f"{type(error).__name__}: {error}")
        return None

    def _execute(
        self, n_args: int, args: int, n_rets: int, rets: int, n_attrs: int, attrs: int
    ) -> None:
        _, value = _read(_SCALAR, _pointers(attrs, n_attrs)[0])
        key = c_int64.from_address(value).value
        if key not in self._functions:
            raise RuntimeError("this program was traced in another process; trace it in this one")
        function, arguments, results = self._functions[key]
        inputs = list(map(_array, _pointers(args, n_args), arguments))
        for values in inputs:
            values.flags.writeable = False
        function(inputs, list(map(_array, _pointers(rets, n_rets), results)))


def _describe(metadata: int, api: int) -> None:
    """Tell XLA for which version of the interface this is written."""
    major, minor, _ = _read(_API, api)
    if major == MAJOR:
        version = (c_int * 2).from_address(metadata + _VERSION_IN_METADATA)
        version[:] = [major, minor]


def _failure(api: int, message: str) -> int | None:
    given = _ErrorCreate(ctypes.sizeof(_ErrorCreate), None, message.encode(), _INTERNAL)
    create = CFUNCTYPE(c_void_p, ctypes.POINTER(_ErrorCreate))(_read(_API, api)[2])
    error: int | None = create(ctypes.byref(given))
    return error
