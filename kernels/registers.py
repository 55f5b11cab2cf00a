"""How many elements are worked on at a time, and what sums are added up in, in Numba.

Floats and doubles are added as doubles. Halves have 11 digits or 8: they are added as floats about
a shift that is a half, `BLOCK` to a lane before it goes to a double, which leaves 1e-7 of a
deviation: bfloat16 (32, 64, 112, 112) forward took 0.84 of float32's time with doubles, 0.49 so.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, overload

from .intrinsics import LINE_BYTES, cast, first, load_as, load_part_as, muladd, where
from .jit import inline
from .vectors import INT32, LANES, Vector, lane_dtype, narrowed, some_lanes, widened

LINE_LANES = LINE_BYTES // 2
"""Lanes of `line_zeros` of any dtype divide this."""

REGISTERS = 4
"""Vectors of a sum: an addition takes 4 cycles, and every other cycle a vector can be loaded."""

REGISTER_BYTES = 64 if binding.get_host_cpu_features().get("avx512f") else 32

BLOCK = 8
"""Additions of floats to a lane. With 32, dweight of halves was off by 2e-6."""


def _several(dtype: types.Float) -> Vector:
    return Vector(dtype, REGISTERS * REGISTER_BYTES * 8 // dtype.bitwidth)


def _zeros(vector: Vector, x: Any) -> Any:
    return vector(x), lambda context, builder, signature, args: ir.Constant(vector.llvm, None)


@intrinsic
def sum_zeros(typingctx: Any, x: Any) -> Any:
    """Several registers of zeros in what elements of x are added up in."""
    return _zeros(_several(types.float32 if x.dtype.bitwidth == 16 else types.float64), x)


@intrinsic
def register_zeros(typingctx: Any, x: Any) -> Any:
    """One register of zeros, as doubles."""
    return _zeros(Vector(types.float64, REGISTER_BYTES // 8), x)


@intrinsic
def line_zeros(typingctx: Any, x: Any) -> Any:
    """Zeros for a cache line of x, but 16 at least, in what x is computed in."""
    lanes = max(LANES, LINE_BYTES * 8 // x.dtype.bitwidth)
    return _zeros(Vector(lane_dtype(x.dtype), lanes), x)


@intrinsic
def one_line(typingctx: Any, x: Any) -> Any:
    """Zeros for exactly a cache line of x, in what x is computed in."""
    return _zeros(Vector(lane_dtype(x.dtype), LINE_BYTES * 8 // x.dtype.bitwidth), x)


@inline
def get(x, i, k, like):
    """x[i] to x[i + k - 1] as the first of as many lanes as `like` has; the others are 0."""
    return load_as(x, i, like) if k == like.lanes else load_part_as(x, i, k, like)


@inline
def take(x, i, k, like):
    """`get` in the dtype of `like`."""
    return cast(get(x, i, k, like), like)


@intrinsic
def _minus_first_digits(typingctx: Any, v: Any) -> Any:
    """The first 8 digits of each float32 lane, with the other sign."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = ir.VectorType(INT32, v.lanes)
        kept, sign = (
            ir.Constant(numbers, [ir.Constant(INT32, bits)] * v.lanes)
            for bits in (0xFFFF0000, 0x80000000)
        )
        digits = builder.and_(builder.bitcast(args[0], numbers), kept)
        return builder.bitcast(builder.xor(digits, sign), v.llvm)

    return v(v), codegen


def add_product(high: Any, low: Any, a: Any, b: Any) -> Any:
    """Return (high, low) with a * b added to their sum. For kernels.

    Products of halves have some 24 digits. Their first 8 are added up in `high`, of which the sum
    is exact, and the rest, in `low`, is small: rounded one by one, products of 65536 rows that
    repeat 16 left dweight off by 1.1e-6 of its norm, and now by 6e-8.
    """
    raise NotImplementedError("add_product works in compiled code")


@overload(add_product, jit_options={"forceinline": True})
def _add_product(high, low, a, b):  # type: ignore[no-untyped-def]  # Numba compares it
    if high.dtype == types.float64:
        return lambda high, low, a, b: (muladd(a, b, high), low)

    def split(high, low, a, b):  # type: ignore[no-untyped-def]  # as above
        begun = _minus_first_digits(a * b)
        return high - begun, low + muladd(a, b, begun)

    return split


def sum_of_products(high: Any, low: Any) -> Any:
    """What `add_product` added up, as doubles. For kernels."""
    raise NotImplementedError("sum_of_products works in compiled code")


@overload(sum_of_products, jit_options={"forceinline": True})
def _sum_of_products(high, low):  # type: ignore[no-untyped-def]  # Numba compares it
    if high.dtype == types.float64:
        return lambda high, low: high
    # Where `low` is infinite or NaN, `high` is already.
    return lambda high, low: cast(high, 0.0) + cast(where(low - low, first(low, 0), low), 0.0)


@inline
def block_length(x, length, like):
    """Elements of a run that are added to the lanes of `like` before these go to doubles."""
    return BLOCK * like.lanes if x.itemsize == 2 else max(1, length)


@intrinsic
def _nearest(typingctx: Any, x: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return widened(builder, x.dtype, narrowed(builder, x.dtype, args[1]))

    lane = lane_dtype(x.dtype)
    return lane(x, lane), codegen


@inline
def origin_of(x, value):
    """Where deviations of x are taken from: `value`, of halves the nearest one to it.

    x - origin is then exact in float32. With a shift of 24 digits every x of a binade was off by
    the same 3e-8, and dweight by 5e-6.
    """
    near = np.float64(_nearest(x, value))
    if x.itemsize == 2 and not math.isfinite(near):
        return np.float64(np.float32(value))
    return near


def _folded(builder: Any, value: Any, lanes: int) -> Any:
    while value.type.count > lanes:
        width = value.type.count // 2
        low, high = (some_lanes(builder, value, begin, width) for begin in (0, width))
        value = builder.fadd(low, high)
    return value


@intrinsic
def _fold(typingctx: Any, v: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _folded(builder, args[0], LANES)

    return Vector(v.dtype)(v), codegen


@inline
def folded(v):
    """The lanes added up to 16 doubles."""
    return cast(_fold(v), 0.0)


@intrinsic
def sum_lanes(typingctx: Any, v: Any) -> Any:
    """Sum of the lanes: halves are added to halves, so the order is fixed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(_folded(builder, args[0], 1), ir.Constant(INT32, 0))

    return v.dtype(v), codegen
