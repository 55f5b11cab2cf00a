"""Small functions in machine code, written in LLVM, that call Numba's kernels.

Numba's frontend would take half a second for what takes LLVM 35 ms, and it knows arrays only by
rank and writeability. Here an array object is looked into as NumPy's header lays it out
(PyArrayObject_fields, part of its binary interface); `is_possible` compares that with an array of
this interpreter before anything relies on it.

`normcore.numba_calls` says what is written with this.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils

Array = np.ndarray[Any, Any]

INT, LONG = ir.IntType(32), ir.IntType(64)
SINGLE, DOUBLE, NOTHING = ir.FloatType(), ir.DoubleType(), ir.VoidType()
POINTER = ir.IntType(8).as_pointer()
SINGLES, DOUBLES = SINGLE.as_pointer(), DOUBLE.as_pointer()

_PLAIN = 0x1 | 0x100  # NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED

# Bytes from the start of an array object, behind the head that every object has.
_HEAD = object.__basicsize__
_DATA, _RANK, _SHAPE, _DTYPE, _FLAGS = (_HEAD + 8 * k for k in (0, 1, 2, 5, 6))
_TYPE = _HEAD - 8

_alive: list[Any] = []


def keep(*objects: Any) -> None:
    """Never free what code points to: code itself is not freed either, no more than Numba's."""
    _alive.extend(objects)


@cache
def is_possible() -> bool:
    """Whether arrays lie in memory here as the code expects."""
    if ctypes.sizeof(ctypes.c_void_p) != 8 or _HEAD != 16:  # a free-threaded Python has more
        return False
    x = np.zeros((2, 3), np.float32)

    def read(kind: Any, at: int) -> int:
        found: int = kind.from_address(id(x) + at).value
        return found

    return (
        read(ctypes.c_int64, _TYPE) == id(np.ndarray)
        and read(ctypes.c_int64, _DATA) == x.__array_interface__["data"][0]
        and read(ctypes.c_int32, _RANK) == 2
        and (ctypes.c_int64 * 2).from_address(read(ctypes.c_int64, _SHAPE))[:] == [2, 3]
        and read(ctypes.c_int64, _DTYPE) == id(x.dtype)
        and read(ctypes.c_int32, _FLAGS) & _PLAIN == _PLAIN
    )


class Writer:
    """Writes one function: straight through, with an exit where a call is not for it."""

    def __init__(self, context: Any, name: str, result: ir.Type, *arguments: ir.Type) -> None:
        self.context = context
        self.library = context.codegen().create_library(name)
        self.module = self.library.create_ir_module(name)
        self.function = ir.Function(self.module, ir.FunctionType(result, arguments), name)
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self.refused = self.function.append_basic_block()
        self.python = context.get_python_api(self.builder)

    def end(self, done: Any, refused: Callable[[], Any]) -> int:
        """Return these values (None: nothing) here and at the exit; the function's address."""
        give = self.builder.ret
        give(done) if done is not None else self.builder.ret_void()
        self.builder.position_at_end(self.refused)
        other = refused()
        give(other) if other is not None else self.builder.ret_void()
        self.library.add_ir_module(self.module)
        self.library.finalize()
        keep(self.library)
        address: int = self.library.get_pointer_to_function(self.function.name)
        return address

    def demand(self, condition: Any) -> None:
        """Go on if the condition holds."""
        further = self.function.append_basic_block()
        self.builder.cbranch(condition, further, self.refused)
        self.builder.position_at_end(further)

    def field(self, value: Any, at: int, kind: ir.Type) -> Any:
        """What lies so many bytes from a pointer."""
        inside = self.builder.gep(value, [LONG(at)])
        return self.builder.load(self.builder.bitcast(inside, kind.as_pointer()))

    def call(self, name: str, result: ir.Type, *arguments: Any) -> Any:
        """Call a function of C."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.module, kind, name)
        return self.builder.call(function, arguments)

    # Python's objects

    def is_object(self, value: Any, each: object) -> Any:
        """Whether a pointer is that of this object."""
        address = self.builder.ptrtoint(value, LONG)
        return self.builder.icmp_unsigned("==", address, LONG(id(each)))

    def number(self, value: Any, kind: type, read: Callable[[Any], Any]) -> Any:
        """A number that is of Python's own type."""
        self.demand(self.is_object(self.field(value, _TYPE, POINTER), kind))
        return read(value)

    def float(self, value: Any) -> Any:
        """A float."""
        return self.number(value, float, self.python.float_as_double)

    def size(self, value: Any) -> Any:
        """An int that is not negative."""
        found = self.number(value, int, self.python.long_as_longlong)
        further, wrong = self.function.append_basic_block(), self.function.append_basic_block()
        self.builder.cbranch(self.builder.icmp_signed(">=", found, LONG(0)), further, wrong)
        self.builder.position_at_end(wrong)
        self.python.err_clear()  # -1 may be an error
        self.builder.branch(self.refused)
        self.builder.position_at_end(further)
        return found

    def flag(self, value: Any) -> Any:
        """True or False."""
        yes = self.is_object(value, True)
        self.demand(self.builder.or_(yes, self.is_object(value, False)))
        return yes

    def array(self, value: Any, absent: Array, other: np.dtype[Any]) -> tuple[Any, Any, Any]:
        """(data, elements, is it the other) of an array of the dtype of `absent`, or the other.

        `absent` stands for None.
        """
        keep(absent)
        data = cgutils.alloca_once(self.builder, POINTER)
        elements = cgutils.alloca_once(self.builder, LONG)
        objects = (LONG(id(each)) for each in (absent, absent.dtype, other))
        found = self.call("normcore_array", LONG, data, elements, value, *objects)
        self.demand(self.builder.icmp_signed("!=", found, LONG(0)))
        is_other = self.builder.icmp_signed("==", found, LONG(2))
        return self.builder.load(data), self.builder.load(elements), is_other


def _write_array(context: Any) -> None:
    # normcore_array(data *, elements *, object, absent, dtype, other): 1 or 2, by which of the two
    # dtypes it has, or 0 where it is not plain.
    words = (POINTER.as_pointer(), LONG.as_pointer(), POINTER, LONG, LONG, LONG)
    write = Writer(context, "normcore_array", LONG, *words)
    to_data, to_elements, value, absent, dtype, other = write.function.args
    builder = write.builder
    instead = builder.inttoptr(absent, POINTER)
    value = builder.select(write.is_object(value, None), instead, value)
    write.demand(write.is_object(write.field(value, _TYPE, POINTER), np.ndarray))
    flags = builder.and_(write.field(value, _FLAGS, INT), INT(_PLAIN))
    write.demand(builder.icmp_unsigned("==", flags, INT(_PLAIN)))
    found = write.field(value, _DTYPE, LONG)
    is_first = builder.icmp_unsigned("==", found, dtype)
    write.demand(builder.or_(is_first, builder.icmp_unsigned("==", found, other)))
    builder.store(LONG(1), to_elements)
    rank = builder.zext(write.field(value, _RANK, INT), LONG)
    shape = write.field(value, _SHAPE, LONG.as_pointer())
    with cgutils.for_range(builder, rank) as loop:
        length = builder.load(builder.gep(shape, [loop.index]))
        builder.store(builder.mul(builder.load(to_elements), length), to_elements)
    builder.store(write.field(value, _DATA, POINTER), to_data)
    dtypes = builder.select(is_first, LONG(1), LONG(2))
    binding.add_symbol("normcore_array", write.end(dtypes, lambda: LONG(0)))


def _write_copy(context: Any, name: str, of: ir.Type, to: ir.Type, convert: str) -> None:
    # name(to, of, size) converts numbers.
    write = Writer(context, name, NOTHING, to.as_pointer(), of.as_pointer(), LONG)
    builder, (copies, given, size) = write.builder, write.function.args
    with cgutils.for_range(builder, size) as loop:
        value = getattr(builder, convert)(builder.load(builder.gep(given, [loop.index])), to)
        builder.store(value, builder.gep(copies, [loop.index]))
    binding.add_symbol(name, write.end(None, lambda: None))


def _write_repeat(context: Any) -> None:
    # normcore_repeat(to, value, size)
    write = Writer(context, "normcore_repeat", NOTHING, DOUBLES, DOUBLE, LONG)
    builder, (to, value, size) = write.builder, write.function.args
    with cgutils.for_range(builder, size) as loop:
        builder.store(value, builder.gep(to, [loop.index]))
    binding.add_symbol("normcore_repeat", write.end(None, lambda: None))


@cache
def write_parts(context: Any) -> None:
    """Write what `Writer` and those who use it call by name, once."""
    _write_array(context)
    _write_copy(context, "normcore_widen", SINGLE, DOUBLE, "fpext")
    _write_copy(context, "normcore_narrow", DOUBLE, SINGLE, "fptrunc")
    _write_repeat(context)
