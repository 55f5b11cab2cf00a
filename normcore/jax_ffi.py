"""XLA's foreign function interface in ctypes: compiled programs call Python with their own buffers.

`jax.pure_callback` copies every input in a thread of XLA's pool and every result once more; where
all threads of the pool are in callbacks, it waits for those copies for ever (with one CPU, that is
one layer norm of the result of an operation). Here inputs and results are arrays on the memory that
XLA has, and nothing is waited for.

The structures are those of xla/ffi/api/c_api.h, of which `jax.ffi.include_dir` has a copy. XLA
appends to them and says in `struct_size` how far they go; another major version would be another
interface, which `handler` refuses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MAJOR = 0
_METADATA = 1  # XLA_FFI_Extension_Metadata
_EXECUTE = 3  # XLA_FFI_ExecutionStage_EXECUTE
_INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL

_START: list[tuple[str, Any]] = [("struct_size", c_size_t), ("extension_start", c_void_p)]


class _Version(Structure):
    _fields_ = [*_START, ("major", c_int), ("minor", c_int)]


class _Api(Structure):
    _fields_ = [*_START, ("version", _Version), ("internal", c_void_p), ("error_create", c_void_p)]


class _Metadata(Structure):
    _fields_ = [("struct_size", c_size_t), ("version", _Version), ("traits", c_uint32)]


class _Extension(Structure):
    """An extension; `metadata` is there in one of the type _METADATA."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("type", c_int),
        ("next", c_void_p),
        ("metadata", POINTER(_Metadata)),
    ]


class _Buffer(Structure):
    _fields_ = [
        *_START,
        ("dtype", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", POINTER(c_int64)),
    ]


class _Buffers(Structure):
    """Arguments, or results."""

    _fields_ = [
        *_START,
        ("size", c_int64),
        ("types", c_void_p),
        ("items", POINTER(POINTER(_Buffer))),
    ]


class _Scalar(Structure):
    _fields_ = [("dtype", c_int), ("value", POINTER(c_int64))]


class _Attributes(Structure):
    _fields_ = [
        *_START,
        ("size", c_int64),
        ("types", c_void_p),
        ("names", c_void_p),
        ("items", POINTER(POINTER(_Scalar))),
    ]


class _Frame(Structure):
    _fields_ = [
        *_START,
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("args", _Buffers),
        ("rets", _Buffers),
        ("attrs", _Attributes),
    ]


class _ErrorCreate(Structure):
    _fields_ = [*_START, ("message", c_char_p), ("code", c_int)]


_create_error = ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorCreate))
_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))


class _Memory:
    """Memory as NumPy's array interface describes it."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


def _array(buffer: _Buffer, dtype: np.dtype[Any], readonly: bool) -> Array:
    shape = tuple(buffer.dims[i] for i in range(buffer.rank))
    if 0 in shape:  # XLA has no memory for it.
        return np.empty(shape, dtype)
    # As bytes without a type: NumPy's interface does not know bfloat16.
    interface = {
        "version": 3,
        "data": (buffer.data, readonly),
        "shape": shape,
        "typestr": f"|V{dtype.itemsize}",
    }
    return np.asarray(_Memory(interface)).view(dtype)


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

    def _handle(self, pointer: Any) -> int | None:
        frame = pointer.contents
        try:
            if frame.extension_start:
                extension = ctypes.cast(frame.extension_start, POINTER(_Extension)).contents
                if extension.type == _METADATA:
                    _describe(extension.metadata.contents, frame)
                    return None
            if frame.stage == _EXECUTE:
                self._execute(frame)
        except BaseException as error:  # XLA raises it where the program was called.
            return _failure(frame, f"{type(error).__name__}: {error}")
        return None

    def _execute(self, frame: _Frame) -> None:
        key = frame.attrs.items[0].contents.value[0]
        if key not in self._functions:
            raise RuntimeError("this program was traced in another process; trace it in this one")
        function, arguments, results = self._functions[key]
        args, rets = frame.args.items, frame.rets.items
        function(
            [_array(args[i].contents, dtype, True) for i, dtype in enumerate(arguments)],
            [_array(rets[i].contents, dtype, False) for i, dtype in enumerate(results)],
        )


def _describe(metadata: _Metadata, frame: _Frame) -> None:
    """Tell XLA for which version of the interface this is written."""
    own = frame.api.contents.version
    metadata.version.major = MAJOR
    metadata.version.minor = own.minor


def _failure(frame: _Frame, message: str) -> int | None:
    api = frame.api.contents
    given = _ErrorCreate(ctypes.sizeof(_ErrorCreate), None, message.encode(), _INTERNAL)
    error: int | None = _create_error(api.error_create)(ctypes.byref(given))
    return error
