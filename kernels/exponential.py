"""The exponential function on lanes, in Numba.

LLVM's own is a call to the C library for every lane, 16 or more of them for a vector.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from .intrinsics import muladd, where_less
from .jit import block, inline
from .vectors import declared, splatted

# exp(r) for |r| <= log(2) / 2 by Taylor's series: errors 5e-9 (float32), 4e-18 (float64).
_EXP_FLOAT32 = tuple(1 / math.factorial(k) for k in range(7, -1, -1))
_EXP_FLOAT64 = tuple(1 / math.factorial(k) for k in range(13, -1, -1))

# log(2) = high + low; k * high is exact for every exponent k.
_LOG2_HIGH_FLOAT32, _LOG2_LOW_FLOAT32 = 0.693359375, -2.12194440e-4
_LOG2_HIGH_FLOAT64, _LOG2_LOW_FLOAT64 = 6.93145751953125e-1, 1.42860682030941723212e-6


@intrinsic
def polynomial(typingctx: Any, v: Any, coefficients: Any) -> Any:
    """Value at the lanes of v; the coefficients are a tuple, that of the highest power first."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = f"llvm.fmuladd.v{v.lanes}f{v.dtype.bitwidth}"
        function = declared(builder, name, ir.FunctionType(v.llvm, [v.llvm] * 3))
        value = None
        for k in range(coefficients.count):
            scalar = builder.extract_value(args[1], k)
            narrow = context.cast(builder, scalar, coefficients.dtype, v.dtype)
            lanes = splatted(builder, v.llvm, narrow)
            value = lanes if value is None else builder.call(function, [value, args[0], lanes])
        return value

    return v(v, coefficients), codegen


@intrinsic
def power_of_two(typingctx: Any, v: Any) -> Any:
    """2 to the power k of lanes that hold 1.5 * 2^p + k, p being the mantissa's stored bits.

    Adding that number to a float rounds it to the integer k, which then are the lowest bits.
    """
    bits, fraction = v.dtype.bitwidth, 23 if v.dtype.bitwidth == 32 else 52

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integers = ir.VectorType(ir.IntType(bits), v.lanes)
        shift, one = (
            ir.Constant(integers, [ir.Constant(ir.IntType(bits), value)] * v.lanes)
            for value in (fraction, ((1 << (bits - fraction - 2)) - 1) << fraction)
        )
        exponent = builder.shl(builder.bitcast(args[0], integers), shift)
        return builder.bitcast(builder.add(exponent, one), v.llvm)

    return v(v), codegen


@inline
def _parts(v, most, magic, high, low):
    """(r, 1.5 * 2^p + k) of v = k * log(2) + r, for v raised to -most."""
    v = where_less(v, -most, -most, v)
    shifted = muladd(v, 1 / math.log(2), magic)
    k = shifted - magic
    return muladd(k, -low, muladd(k, -high, v)), shifted


@block
def exp_down(v):
    """exp(v) of lanes v <= 0; 0 where it would be below the smallest normal number."""
    if v.itemsize == 4:
        r, shifted = _parts(v, 88.0, 1.5 * 2.0**23, _LOG2_HIGH_FLOAT32, _LOG2_LOW_FLOAT32)
        return polynomial(r, _EXP_FLOAT32) * power_of_two(shifted)
    r, shifted = _parts(v, 709.2, 1.5 * 2.0**52, _LOG2_HIGH_FLOAT64, _LOG2_LOW_FLOAT64)
    return polynomial(r, _EXP_FLOAT64) * power_of_two(shifted)
