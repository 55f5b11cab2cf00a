"""Vectors of 16 lanes for Numba: loads, stores past the cache, and arithmetic in a fixed order.

Numba vectorizes loops by itself, but not past an in-place output (it then cannot prove that
iterations are independent), not with sums that keep one order of additions, and never with
non-temporal stores. A `Vector` is an LLVM vector in a Numba variable: LLVM maps its 16 lanes to
as many registers as the CPU needs (one or two of AVX-512, two or four of AVX2).

Positions `i` count elements of an array's memory from its first one, whatever its rank. Nothing
is checked: a position outside of the array is a wild pointer.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import PrimitiveModel
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload, overload_attribute, register_model

LANES = 16
LINE_BYTES = 64

_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)


class Vector(types.Type):
    """16 lanes of float32 or float64."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(f"Vector({dtype})")

    @property
    def llvm(self) -> ir.VectorType:
        """The type in LLVM."""
        element = ir.FloatType() if self.dtype == types.float32 else ir.DoubleType()
        return ir.VectorType(element, LANES)


class Memory(types.Type):
    """Where an array's elements lie, without the array: x[i] and the functions below work on it.

    Passing an array to an inlined function can cost Numba an atomic count of references, and
    threads that share the array then wait for each other: 2x in loops over short rows. The array
    must outlive its Memory: take it from an argument, never from a local array.
    """

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(f"Memory({dtype})")


@register_model(Memory)
class _MemoryModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Memory) -> None:
        element = dmm.lookup(fe_type.dtype).get_data_type()
        super().__init__(dmm, fe_type, element.as_pointer())


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


def _start(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, Memory):
        return value
    return context.make_array(kind)(context, builder, value).data


def _pointer(context: Any, builder: Any, kind: Any, value: Any, i: Any, vector: Any) -> Any:
    element = builder.gep(_start(context, builder, kind, value), [i], inbounds=True)
    return builder.bitcast(element, vector.llvm.as_pointer())


def _splat(builder: Any, vector: ir.VectorType, scalar: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(_INT32, 0))
    zeros = ir.Constant(ir.VectorType(_INT32, LANES), None)
    return builder.shuffle_vector(single, undefined, zeros)


def _mask(builder: Any, k: Any) -> Any:
    """Lane number < k."""
    numbers = ir.VectorType(_INT64, LANES)
    lanes = ir.Constant(numbers, [ir.Constant(_INT64, lane) for lane in range(LANES)])
    return builder.icmp_signed("<", lanes, _splat(builder, numbers, k))


def _declared(builder: Any, name: str, function_type: ir.FunctionType) -> ir.Function:
    """LLVM's intrinsic of that name; llvmlite cannot spell the names of those on vectors."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, function_type, name)


def _is_floats(array: Any) -> bool:
    return isinstance(array, types.Array | Memory) and isinstance(array.dtype, types.Float)


@intrinsic
def memory(typingctx: Any, x: Any) -> Any:
    """The Memory of a C-contiguous array; None stays None."""
    if isinstance(x, types.NoneType):
        return x(x), lambda context, builder, signature, args: args[0]
    if not isinstance(x, types.Array) or x.layout != "C":
        raise TypingError(f"memory: not a C-contiguous array: {x}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _start(context, builder, x, args[0])

    return Memory(x.dtype)(x), codegen


@intrinsic
def _item(typingctx: Any, x: Any, i: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.gep(args[0], [args[1]], inbounds=True))

    return x.dtype(x, types.intp), codegen


@intrinsic
def _set_item(typingctx: Any, y: Any, i: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(args[0], [args[1]], inbounds=True))
        return context.get_dummy_value()

    return types.void(y, types.intp, y.dtype), codegen


@overload(operator.getitem, jit_options={"forceinline": True})
def _getitem(x, i):  # type: ignore[no-untyped-def]  # Numba compares it with the lambda
    if isinstance(x, Memory) and isinstance(x.dtype, types.Float):
        return lambda x, i: _item(x, i)
    return None


@overload(operator.setitem, jit_options={"forceinline": True})
def _setitem(y, i, value):  # type: ignore[no-untyped-def]  # Numba compares it with the lambda
    if isinstance(y, Memory) and isinstance(y.dtype, types.Float):
        return lambda y, i, value: _set_item(y, i, value)
    return None


@overload_attribute(Memory, "itemsize", jit_options={"forceinline": True})
def _itemsize(x):  # type: ignore[no-untyped-def]  # Numba compares it with the lambda
    width = x.dtype.bitwidth // 8
    return lambda x: width


@intrinsic
def load(typingctx: Any, x: Any, i: Any) -> Any:
    """Lanes x[i] to x[i + 15]."""
    if not _is_floats(x):
        raise TypingError(f"load: {x}")
    vector = Vector(x.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, x, args[0], args[1], vector)
        return builder.load(pointer, align=x.dtype.bitwidth // 8)

    return vector(x, types.intp), codegen


@intrinsic
def load_part(typingctx: Any, x: Any, i: Any, k: Any) -> Any:
    """Lanes x[i] to x[i + k - 1]; the others are 0 and nothing is read for them."""
    vector = Vector(x.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, x, args[0], args[1], vector)
        name = f"llvm.masked.load.v{LANES}f{x.dtype.bitwidth}.p0"
        mask_type = ir.VectorType(ir.IntType(1), LANES)
        arguments = [pointer.type, _INT32, mask_type, vector.llvm]
        function = _declared(builder, name, ir.FunctionType(vector.llvm, arguments))
        align = ir.Constant(_INT32, x.dtype.bitwidth // 8)
        zeros = ir.Constant(vector.llvm, None)
        return builder.call(function, [pointer, align, _mask(builder, args[2]), zeros])

    return vector(x, types.intp, types.intp), codegen


@intrinsic
def store(typingctx: Any, y: Any, i: Any, v: Any) -> Any:
    """Set y[i] to y[i + 15] = lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, y, args[0], args[1], v)
        builder.store(args[2], pointer, align=y.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(y, types.intp, v), codegen


@intrinsic
def store_part(typingctx: Any, y: Any, i: Any, k: Any, v: Any) -> Any:
    """Set y[i] to y[i + k - 1] = the first k lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, y, args[0], args[1], v)
        name = f"llvm.masked.store.v{LANES}f{y.dtype.bitwidth}.p0"
        mask_type = ir.VectorType(ir.IntType(1), LANES)
        arguments = [v.llvm, pointer.type, _INT32, mask_type]
        function = _declared(builder, name, ir.FunctionType(ir.VoidType(), arguments))
        align = ir.Constant(_INT32, y.dtype.bitwidth // 8)
        builder.call(function, [args[3], pointer, align, _mask(builder, args[2])])
        return context.get_dummy_value()

    return types.void(y, types.intp, types.intp, v), codegen


@intrinsic
def stream(typingctx: Any, y: Any, i: Any, v: Any) -> Any:
    """As `store`, past the caches; y[i] must start a cache line.

    A normal store to a line that is not in the cache first reads it: copying 100 MB with two
    threads went from 27 to 48 GB/s with these.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, y, args[0], args[1], v)
        instruction = builder.store(args[2], pointer, align=LINE_BYTES)
        one = builder.module.add_metadata([ir.Constant(_INT32, 1)])
        instruction.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return types.void(y, types.intp, v), codegen


@intrinsic
def prefetch(typingctx: Any, x: Any, i: Any) -> Any:
    """Ask for the lines of x[i] to x[i + 15], which may lie outside of the array.

    Into the second-level cache: rows 4 KB apart would share one set of the first.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, width = ir.IntType(8), x.dtype.bitwidth // 8
        arguments = [byte.as_pointer(), _INT32, _INT32, _INT32]
        function = _declared(builder, "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), arguments))
        read, level, data = (ir.Constant(_INT32, value) for value in (0, 2, 1))
        for k in range(0, LANES, LINE_BYTES // width):
            position = builder.add(args[1], ir.Constant(_INT64, k))
            element = builder.gep(_start(context, builder, x, args[0]), [position])
            builder.call(function, [builder.bitcast(element, arguments[0]), read, level, data])
        return context.get_dummy_value()

    return types.void(x, types.intp), codegen


@intrinsic
def address(typingctx: Any, y: Any) -> Any:
    """Where the array's memory starts."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(_start(context, builder, y, args[0]), _INT64)

    return types.int64(y), codegen


@intrinsic
def cast(typingctx: Any, v: Any, like: Any) -> Any:
    """Lanes converted to the dtype of the array, scalar or vector `like`."""
    dtype = like.dtype if isinstance(like, types.Array | Memory | Vector) else like
    target = Vector(dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if dtype.bitwidth > v.dtype.bitwidth:
            return builder.fpext(args[0], target.llvm)
        if dtype.bitwidth < v.dtype.bitwidth:
            return builder.fptrunc(args[0], target.llvm)
        return args[0]

    return target(v, like), codegen


@intrinsic
def splat(typingctx: Any, scalar: Any) -> Any:
    """The scalar in every lane."""
    vector = Vector(scalar)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, vector.llvm, args[0])

    return vector(scalar), codegen


@intrinsic
def first(typingctx: Any, v: Any, k: Any) -> Any:
    """The first k lanes; the others become 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = ir.Constant(v.llvm, None)
        return builder.select(_mask(builder, args[1]), args[0], zeros)

    return v(v, types.intp), codegen


@intrinsic
def where(typingctx: Any, flags: Any, a: Any, b: Any) -> Any:
    """Lanes of a where flags are not 0, else of b."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = ir.Constant(flags.llvm, None)
        return builder.select(builder.fcmp_unordered("!=", args[0], zeros), args[1], args[2])

    return a(flags, a, a), codegen


def _operands(builder: Any, vector: Vector, signature: Any, args: Any) -> list[Any]:
    return [
        value if isinstance(kind, Vector) else _splat(builder, vector.llvm, value)
        for kind, value in zip(signature.args, args, strict=True)
    ]


@intrinsic
def muladd(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once where the CPU has such an instruction."""
    vector = next(kind for kind in (a, b, c) if isinstance(kind, Vector))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = f"llvm.fmuladd.v{LANES}f{vector.dtype.bitwidth}"
        function = _declared(builder, name, ir.FunctionType(vector.llvm, [vector.llvm] * 3))
        return builder.call(function, _operands(builder, vector, signature, args))

    arguments = [kind if isinstance(kind, Vector) else vector.dtype for kind in (a, b, c)]
    return vector(*arguments), codegen


def _binary(operation: Any, instruction: str) -> None:
    @intrinsic
    def compute(typingctx: Any, a: Any, b: Any) -> Any:
        vector = a if isinstance(a, Vector) else b

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*_operands(builder, vector, signature, args))

        arguments = [kind if isinstance(kind, Vector) else vector.dtype for kind in (a, b)]
        return vector(*arguments), codegen

    @overload(operation, jit_options={"forceinline": True})
    def typed(a, b):  # type: ignore[no-untyped-def]  # Numba compares it with the lambda
        if isinstance(a, Vector) or isinstance(b, Vector):
            return lambda a, b: compute(a, b)
        return None


_binary(operator.add, "fadd")
_binary(operator.sub, "fsub")
_binary(operator.mul, "fmul")


@intrinsic
def sum_lanes(typingctx: Any, v: Any) -> Any:
    """Sum of the lanes: halves are added to halves, so the order is fixed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            low, high = (
                ir.Constant(
                    ir.VectorType(_INT32, width), [ir.Constant(_INT32, lane) for lane in lanes]
                )
                for lanes in (range(width), range(width, 2 * width))
            )
            value = builder.fadd(
                builder.shuffle_vector(value, value, low),
                builder.shuffle_vector(value, value, high),
            )
        return builder.extract_element(value, ir.Constant(_INT32, 0))

    return v.dtype(v), codegen
