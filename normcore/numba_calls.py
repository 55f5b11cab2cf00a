"""Calls of a Numba kernel with plain arguments: past Numba's dispatcher and what comes before it.

What `normcore.numba_kernels` does in Python to the arguments of a kernel, and then Numba's
dispatcher, take 3.5 us, most of a call with an array of (64, 64). Machine code that does the same
takes 0.2 us (`normcore.numba_code`). There are two ways in:

- `entry` makes a function of Python's arguments. Plain are NumPy arrays themselves, C-contiguous,
  aligned, in native byte order; parameters and statistics of float64 or float32; Python's own int,
  float and bool.
- `Passes` holds functions of a C struct, for the compiled plain calls (`kernels/calls_cy.pyx`).

Both refuse what is not plain before anything is written: then the way through Python is right.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import from_dtype

from .kernels import schedule, table
from .numba_code import (
    DOUBLE,
    DOUBLES,
    INT,
    LONG,
    NOTHING,
    POINTER,
    SINGLES,
    Writer,
    keep,
    write_parts,
)

ELEMENTS, STATISTICS, MASK = "elements", "statistics", "mask"
WEIGHT, BIAS, GRADIENT = "weight", "bias", "gradient"
FLOAT, FLAG, SIZE = "float", "flag", "size"
"""What an argument is."""
DEFAULTS = {WEIGHT: 1.0, BIAS: 0.0}
"""What an absent parameter is."""
BITS = {"float16": np.int16, "bfloat16": np.uint16}
"""How Numba, which does not know them, is given elements of halves."""

_FLOAT32, _MASK = np.dtype(np.float32), np.dtype(np.uint8)
_STORAGES = ("float32", "float64", "float16", "bfloat16")  # Storage in kernels/array.pxi
_FASTCALL = 0x80  # METH_FASTCALL: self, a C array of arguments, how many there are
_serial_numbers = count()


@dataclass(frozen=True)
class Twin:
    """One compilation of a kernel, and what it is called with."""

    kernel: Any
    """Numba's dispatcher."""
    names: tuple[str, ...]
    """Of the arguments."""
    kinds: tuple[str, ...]
    """The words above, one for each argument."""
    dtype: np.dtype[Any]
    """Of elements; a call with another is refused."""
    lengths: str
    """The size that says how many absent parameters there are."""
    serial: bool
    """For one thread, or for more."""

    def arrays(self) -> dict[str, types.Array]:
        """Kind -> what Numba compiled it as, of those that are arrays."""
        elements = from_dtype(np.dtype(BITS.get(self.dtype.name, self.dtype)))
        numbers = types.Array(types.float64, 1, "C")
        return {
            ELEMENTS: types.Array(elements, 1, "C"),
            MASK: types.Array(types.uint8, 1, "C"),
            **dict.fromkeys((STATISTICS, WEIGHT, BIAS, GRADIENT), numbers),
        }


@dataclass
class _Numbers:
    """float64 numbers that come as such, as float32, or not at all: then all are `default`."""

    write: Writer
    doubles: Any
    singles: Any
    size: Any
    is_single: Any
    is_absent: Any
    default: float | None

    def take(self, memory: Any, default_size: Any) -> Any:
        """Take memory where these are not the numbers themselves; how many doubles of it."""
        builder, elsewhere = self.write.builder, self.is_single
        if self.default is not None:
            self.size = builder.select(self.is_absent, default_size, self.size)
            elsewhere = builder.or_(elsewhere, self.is_absent)
        self.doubles = builder.select(elsewhere, memory, self.doubles)
        return builder.select(elsewhere, self.size, LONG(0))

    def most(self, default_size: Any) -> Any:
        """How many doubles of memory it may take."""
        if self.default is None:
            return self.size
        return self.write.builder.select(self.is_absent, default_size, self.size)

    def fill(self) -> None:
        """Set the numbers where they are not those that were given."""
        builder = self.write.builder
        with builder.if_then(self.is_single):
            self.write.call("normcore_widen", NOTHING, self.doubles, self.singles, self.size)
        if self.default is not None:
            with builder.if_then(self.is_absent):
                value = DOUBLE(self.default)
                self.write.call("normcore_repeat", NOTHING, self.doubles, value, self.size)

    def give_back(self) -> None:
        """Set what was given to the numbers."""
        with self.write.builder.if_then(self.is_single):
            self.write.call("normcore_narrow", NOTHING, self.singles, self.doubles, self.size)


def _call_kernel(write: Writer, twin: Twin, found: dict[str, Any]) -> None:
    # `found` are numbers, _Numbers, and (data, elements) of arrays, by name.
    builder, context = write.builder, write.context
    arrays, kinds = twin.arrays(), dict(zip(twin.names, twin.kinds, strict=True))
    numbers = {name: each for name, each in found.items() if isinstance(each, _Numbers)}
    needed = LONG(1)
    for each in numbers.values():
        needed = builder.add(needed, each.most(found[twin.lengths]))
    memory = write.call("PyMem_RawMalloc", POINTER, builder.mul(needed, LONG(8)))
    write.demand(cgutils.is_not_null(builder, memory))
    further = builder.bitcast(memory, DOUBLES)
    for name, each in numbers.items():
        further = builder.gep(further, [each.take(further, found[twin.lengths])])
        if kinds[name] != GRADIENT:
            each.fill()

    def argument(kind: str, value: Any) -> Any:
        if kind not in arrays:
            return value
        data, size = (value.doubles, value.size) if isinstance(value, _Numbers) else value
        array = context.make_array(arrays[kind])(context, builder)
        item = context.get_data_type(arrays[kind].dtype)
        width = context.get_abi_sizeof(item)
        data = builder.bitcast(data, item.as_pointer())
        populate_array(array, data, [size], [LONG(width)], width, None)
        return array._getvalue()

    values = [argument(kinds[name], found[name]) for name in twin.names]
    large = builder.icmp_signed(">=", found["x"][1], LONG(schedule.NOGIL_SIZE))
    thread = cgutils.alloca_once_value(builder, POINTER(None))
    with builder.if_then(large):
        builder.store(write.python.save_thread(), thread)
    compiled = _compiled(twin)
    described, convention = compiled.fndesc, context.call_conv
    function = ir.Function(
        write.module,
        convention.get_function_type(described.restype, described.argtypes),
        f"{write.function.name}_kernel",
    )
    address = compiled.library.get_pointer_to_function(described.llvm_func_name)
    binding.add_symbol(function.name, address)
    keep(compiled.library, twin)
    status, _ = convention.call_function(
        builder, function, described.restype, described.argtypes, values
    )
    with builder.if_then(large):
        write.python.restore_thread(builder.load(thread))
    for name, each in numbers.items():
        if kinds[name] == GRADIENT:
            each.give_back()
    write.call("PyMem_RawFree", NOTHING, memory)
    write.demand(status.is_ok)


def _compiled(twin: Twin) -> Any:
    simple = {FLOAT: types.float64, FLAG: types.boolean, SIZE: types.intp}
    of = {**twin.arrays(), **simple}
    signature = tuple(of[kind] for kind in twin.kinds)
    twin.kernel.compile(signature)  # returns at once where it is compiled
    return twin.kernel.overloads[signature]


# From Python


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("text", ctypes.c_char_p),
    )


@global_compiler_lock
def entry(twin: Twin) -> Callable[..., bool]:
    """A function of the kernel's arguments that says whether it did the call."""
    context = twin.kernel.targetctx
    write_parts(context)
    name = f"normcore_entry_{next(_serial_numbers)}"
    write = Writer(context, name, POINTER, POINTER, POINTER.as_pointer(), LONG)
    builder, (_, given, size) = write.builder, write.function.args
    write.demand(builder.icmp_signed("==", size, LONG(len(twin.names))))
    items = [builder.load(builder.gep(given, [LONG(i)])) for i in range(len(twin.names))]
    alone = write.is_object(items[-1], 1)
    write.demand(alone if twin.serial else builder.not_(alone))
    numbers = {FLOAT: write.float, FLAG: write.flag, SIZE: write.size}
    found: dict[str, Any] = {}
    for argument, kind, item in zip(twin.names, twin.kinds, items, strict=True):
        if kind in numbers:
            found[argument] = numbers[kind](item)
        elif kind == ELEMENTS:
            found[argument] = write.array(item, np.empty(0, twin.dtype), twin.dtype)[:2]
        elif kind == MASK:
            found[argument] = write.array(item, np.empty(0, _MASK), _MASK)[:2]
        else:
            data, elements, is_single = write.array(item, np.empty(0), _FLOAT32)
            doubles, singles = builder.bitcast(data, DOUBLES), builder.bitcast(data, SINGLES)
            found[argument] = _Numbers(
                *(write, doubles, singles, elements, is_single, write.is_object(item, None)),
                DEFAULTS.get(kind),
            )
    _call_kernel(write, twin, found)
    answer = write.python.bool_from_long
    address = write.end(answer(LONG(1)), lambda: answer(LONG(0)))
    method = _MethodDef(name.encode(), address, _FASTCALL, None)
    keep(method)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.POINTER(_MethodDef), ctypes.c_void_p, ctypes.c_void_p]
    made: Callable[..., bool] = make(ctypes.byref(method), None, None)
    return made


# From the compiled plain calls


class _Parameter(ctypes.Structure):
    _fields_ = (("single", ctypes.c_void_p), ("double", ctypes.c_void_p))


class Call(ctypes.Structure):
    """`Call` of kernels/calls.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("y", "x", "dy", "residual")),
        ("storage", ctypes.c_int),
        ("statistics", ctypes.c_ssize_t),
        ("mean", _Parameter),
        ("var", _Parameter),
        *((name, ctypes.c_void_p) for name in ("rstd", "to_mean", "to_var", "to_rstd")),
        *((name, _Parameter) for name in ("weight", "bias", "dweight", "dbias")),
        ("training", ctypes.c_int),
        ("parameters", ctypes.c_ssize_t),
        ("eps", ctypes.c_double),
        ("activation", ctypes.c_int),
        ("sizes", ctypes.c_ssize_t * 3),
        ("threads", ctypes.c_int),
    )


class _Pointers(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("apply", "forward", "backward"))


class Passes:
    """The passes of one family for the compiled plain calls: functions of `Call`.

    They return 1 for a call that has to go another way; at first that is every call.
    """

    def __init__(self, family: str) -> None:
        self.sizes = table.SIZES[family]
        self.pointers = _Pointers()
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self.passes: Any = new(ctypes.addressof(self.pointers), b"normcore.kernels.passes", None)
        keep(self.pointers)

    @global_compiler_lock
    def add(self, twin: Twin, name: str) -> None:
        """Let calls of one pass that are for this twin go there, all others where they went."""
        context, before = twin.kernel.targetctx, getattr(self.pointers, name)
        write_parts(context)
        write = Writer(context, f"normcore_call_{next(_serial_numbers)}", INT, POINTER)
        builder, call = write.builder, write.function.args[0]
        given = _Fields(write, call)
        storage = INT(_STORAGES.index(twin.dtype.name))
        write.demand(builder.icmp_signed("==", given.read("storage", INT), storage))
        alone = builder.icmp_signed("==", given.read("threads", INT), INT(1))
        write.demand(alone if twin.serial else builder.not_(alone))
        found = {each: given.size(i) for i, each in enumerate(self.sizes)}
        found["threads"] = builder.sext(given.read("threads", INT), LONG)
        elements = LONG(1)
        for size in list(found.values())[:-1]:
            elements = builder.mul(elements, size)
        for argument, kind in zip(twin.names, twin.kinds, strict=True):
            if argument not in found:
                found[argument] = given.argument(argument, kind, name, elements)
        _call_kernel(write, twin, found)

        def elsewhere() -> Any:
            if before is None:
                return INT(1)
            kind = ir.FunctionType(INT, [POINTER])
            return builder.call(builder.inttoptr(LONG(before), kind.as_pointer()), [call])

        setattr(self.pointers, name, write.end(INT(0), elsewhere))


class _Fields:
    """What a `Call` holds, for code."""

    def __init__(self, write: Writer, call: Any) -> None:
        self.write, self.call = write, call

    def read(self, name: str, kind: ir.Type, inside: int = 0) -> Any:
        """A field, or what lies in it so many bytes from its start."""
        return self.write.field(self.call, getattr(Call, name).offset + inside, kind)

    def size(self, i: int) -> Any:
        """Size i of the family."""
        return self.read("sizes", LONG, 8 * i)

    def argument(self, name: str, kind: str, of: str, elements: Any) -> Any:
        """What a kernel takes under this name in the pass `of`."""
        builder = self.write.builder
        if kind == ELEMENTS:
            field = {"dx": "y"}.get(name, name)
            if not hasattr(Call, field):
                return POINTER(None), LONG(0)
            data = self.read(field, POINTER)
            return data, builder.select(cgutils.is_not_null(builder, data), elements, LONG(0))
        if kind == MASK:
            return POINTER(None), LONG(0)
        if kind == FLOAT:
            return self.read(name, DOUBLE)
        if kind == FLAG:
            return builder.icmp_signed("!=", self.read(name, INT), INT(0))
        if kind == SIZE:
            return builder.sext(self.read(name, INT), LONG)
        if (of == "forward" and kind == STATISTICS) or (of, name) == ("backward", "rstd"):
            field = f"to_{name}" if of == "forward" else name
            doubles, singles = self.read(field, DOUBLES), SINGLES(None)
        else:
            singles, doubles = self.read(name, SINGLES), self.read(name, DOUBLES, 8)
        is_single = cgutils.is_not_null(builder, singles)
        given = builder.or_(is_single, cgutils.is_not_null(builder, doubles))
        size = self.read("statistics" if kind == STATISTICS else "parameters", LONG)
        size = builder.select(given, size, LONG(0))
        default = DEFAULTS.get(kind)
        return _Numbers(self.write, doubles, singles, size, is_single, builder.not_(given), default)
