"""What the intrinsics are made of: the types of vectors and memory, and how LLVM spells them.

float16 and bfloat16 are what elements are stored as, never what is computed with. Numba knows
neither: their arrays come as views, float16 as int16 and bfloat16 as uint16, and loads make
float32 of them, which stores round once.

Kernels import none of this; they use `normcore.kernels.intrinsics`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel import PrimitiveModel
from numba.extending import register_model

LANES = 16

INT32 = ir.IntType(32)
INT64 = ir.IntType(64)


class Vector(types.Type):
    """Lanes of float32 or float64: 16, or as many as a few registers hold."""

    def __init__(self, dtype: types.Float, lanes: int = LANES) -> None:
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(f"Vector({dtype}, {lanes})")

    @property
    def llvm(self) -> ir.VectorType:
        """The type in LLVM."""
        element = ir.FloatType() if self.dtype == types.float32 else ir.DoubleType()
        return ir.VectorType(element, self.lanes)


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


def first_element(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Pointer to the first element of an array or a Memory."""
    if isinstance(kind, Memory):
        return value
    return context.make_array(kind)(context, builder, value).data


def lane_dtype(dtype: types.Type) -> types.Type:
    """What elements of a dtype are computed in."""
    return types.float32 if dtype in (types.int16, types.uint16) else dtype


def stored(dtype: types.Type, lanes: int) -> ir.VectorType:
    """That many elements of an array of that dtype, in LLVM."""
    lane = lane_dtype(dtype)
    return Vector(dtype, lanes).llvm if lane == dtype else ir.VectorType(ir.IntType(16), lanes)


def stored_name(dtype: types.Type, lanes: int) -> str:
    """The part of an LLVM intrinsic's name that says `stored`."""
    return f"v{lanes}{'f' if lane_dtype(dtype) == dtype else 'i'}{dtype.bitwidth}"


def pointer_to(context: Any, builder: Any, kind: Any, value: Any, i: Any, lanes: int) -> Any:
    """Pointer to that many elements from i on."""
    element = builder.gep(first_element(context, builder, kind, value), [i], inbounds=True)
    return builder.bitcast(element, stored(kind.dtype, lanes).as_pointer())


def _like(value: Any, element: ir.Type) -> ir.Type:
    vector = isinstance(value.type, ir.VectorType)
    return ir.VectorType(element, value.type.count) if vector else element


def widened(builder: Any, dtype: types.Type, value: Any) -> Any:
    """One element or several as what they are computed in."""
    if dtype == types.int16:
        half = builder.bitcast(value, _like(value, ir.HalfType()))
        return builder.fpext(half, _like(value, ir.FloatType()))
    if dtype == types.uint16:
        upper = builder.zext(value, _like(value, INT32))
        bits = builder.shl(upper, _whole(upper, 16))
        return builder.bitcast(bits, _like(value, ir.FloatType()))
    return value


def narrowed(builder: Any, dtype: types.Type, value: Any) -> Any:
    """One lane or several rounded to elements, to the nearest and halfway to the even one."""
    if dtype == types.int16:
        half = builder.fptrunc(value, _like(value, ir.HalfType()))
        return builder.bitcast(half, _like(value, ir.IntType(16)))
    if dtype == types.uint16:
        # Not LLVM's bfloat: the instruction that it takes where there is one drops subnormals.
        bits = builder.bitcast(value, _like(value, INT32))
        lowest = builder.and_(bits, _whole(bits, 1 << 16))
        odd = builder.icmp_unsigned("!=", lowest, _whole(bits, 0))
        up = builder.select(odd, _whole(bits, 0x8000), _whole(bits, 0x7FFF))
        quiet = builder.or_(bits, _whole(bits, 1 << 22))  # a NaN could round to infinity
        nan = builder.fcmp_unordered("uno", value, value)
        return _upper_halves(builder, builder.select(nan, quiet, builder.add(bits, up)))
    return value


def _upper_halves(builder: Any, bits: Any) -> Any:
    if not isinstance(bits.type, ir.VectorType):
        return builder.trunc(builder.lshr(bits, _whole(bits, 16)), ir.IntType(16))
    # One permutation of two registers, where shifting and truncating them takes six instructions.
    lanes = bits.type.count
    parts = builder.bitcast(bits, ir.VectorType(ir.IntType(16), 2 * lanes))
    numbers = [ir.Constant(INT32, 2 * lane + 1) for lane in range(lanes)]
    mask = ir.Constant(ir.VectorType(INT32, lanes), numbers)
    return builder.shuffle_vector(parts, parts, mask)


def _whole(like: Any, value: int) -> ir.Constant:
    if isinstance(like.type, ir.VectorType):
        return ir.Constant(like.type, [ir.Constant(INT32, value)] * like.type.count)
    return ir.Constant(like.type, value)


def splatted(builder: Any, vector: ir.VectorType, scalar: Any) -> Any:
    """The scalar in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    zeros = ir.Constant(ir.VectorType(INT32, vector.count), None)
    return builder.shuffle_vector(single, undefined, zeros)


def some_lanes(builder: Any, value: Any, begin: int, lanes: int) -> Any:
    """That many lanes from lane `begin` on."""
    numbers = [ir.Constant(INT32, lane) for lane in range(begin, begin + lanes)]
    return builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(INT32, lanes), numbers))


def plain_bits(context: Any, builder: Any, dtype: types.Type, value: Any) -> Any:
    """A register of elements that LLVM does not take for float16.

    Of that it has no store past the caches: where the CPU computes in float16, forward of (32768,
    1024) took 1.3 of Cython's time, backward 1.8; streamed, 0.96 and 1.1.
    """
    if dtype != types.int16 or "+avx512fp16" not in context.codegen().magic_tuple()[2]:
        return value
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=v,0", [value], False)


def lanes_below(builder: Any, k: Any, lanes: int) -> Any:
    """Lane number < k, for k from 0 to `lanes`."""
    byte = ir.IntType(8)  # one register of numbers, for up to 64 lanes
    numbers = ir.VectorType(byte, lanes)
    each = ir.Constant(numbers, [ir.Constant(byte, lane) for lane in range(lanes)])
    return builder.icmp_signed("<", each, splatted(builder, numbers, builder.trunc(k, byte)))


def declared(builder: Any, name: str, function_type: ir.FunctionType) -> ir.Function:
    """LLVM's intrinsic of that name; llvmlite cannot spell the names of those on vectors."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, function_type, name)


def operands(builder: Any, vector: Vector, signature: Any, args: Any) -> list[Any]:
    """The arguments as vectors: scalars go to all lanes."""
    return [
        value if isinstance(kind, Vector) else splatted(builder, vector.llvm, value)
        for kind, value in zip(signature.args, args, strict=True)
    ]
