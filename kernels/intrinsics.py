"""Vectors for Numba: loads, stores past the cache, and arithmetic in a fixed order.

Numba vectorizes loops by itself, but not past an in-place output (it then cannot prove that
iterations are independent), not with sums that keep one order of additions, and never with
non-temporal stores. A `Vector` is an LLVM vector in a Numba variable: LLVM maps its 16 lanes to
as many registers as the CPU needs (one or two of AVX-512, two or four of AVX2).

Arrays hold float64, float32, or halves as `normcore.kernels.vectors` says; lanes of halves are
float32. Positions `i` count elements of an array's memory from its first one, whatever its rank.
Nothing is checked: a position outside of the array is a wild pointer.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload, overload_attribute

from .vectors import (
    INT32,
    INT64,
    LANES,
    Memory,
    Vector,
    declared,
    first_element,
    lane_dtype,
    lanes_below,
    narrowed,
    operands,
    plain_bits,
    pointer_to,
    some_lanes,
    splatted,
    stored,
    stored_name,
    widened,
)

LINE_BYTES = 64


@intrinsic
def memory(typingctx: Any, x: Any) -> Any:
    """The Memory of a C-contiguous array; None stays None."""
    if isinstance(x, types.NoneType):
        return x(x), lambda context, builder, signature, args: args[0]
    if not isinstance(x, types.Array) or x.layout != "C":
        raise TypingError(f"memory: not a C-contiguous array: {x}")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return first_element(context, builder, x, args[0])

    return Memory(x.dtype)(x), codegen


@intrinsic
def _item(typingctx: Any, x: Any, i: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        item = builder.load(builder.gep(args[0], [args[1]], inbounds=True))
        return widened(builder, x.dtype, item)

    return lane_dtype(x.dtype)(x, types.intp), codegen


@intrinsic
def _set_item(typingctx: Any, y: Any, i: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        item = narrowed(builder, y.dtype, args[2])
        builder.store(item, builder.gep(args[0], [args[1]], inbounds=True))
        return context.get_dummy_value()

    return types.void(y, types.intp, lane_dtype(y.dtype)), codegen


@overload(operator.getitem, jit_options={"forceinline": True})
def _getitem(x, i):  # type: ignore[no-untyped-def]  # Numba compares it with the lambda
    if isinstance(x, Memory):
        return lambda x, i: _item(x, i)
    return None


@overload(operator.setitem, jit_options={"forceinline": True})
def _setitem(y, i, value):  # type: ignore[no-untyped-def]  # Numba compares it with the lambda
    if isinstance(y, Memory):
        return lambda y, i, value: _set_item(y, i, value)
    return None


def compute_dtype(x: Any) -> Any:
    """What the elements of an array are computed in: float64 or float32. For kernels only."""
    raise NotImplementedError("compute_dtype works in compiled code")


@overload(compute_dtype, jit_options={"forceinline": True})
def _compute_dtype(x):  # type: ignore[no-untyped-def]  # Numba compares it with the lambda
    if x.dtype == types.float64:
        return lambda x: np.float64
    return lambda x: np.float32


@overload_attribute(Memory, "itemsize", jit_options={"forceinline": True})
def _itemsize(x):  # type: ignore[no-untyped-def]  # Numba compares it with the lambda
    width = x.dtype.bitwidth // 8
    return lambda x: width


@overload_attribute(Vector, "lanes", jit_options={"forceinline": True})
def _lanes(v):  # type: ignore[no-untyped-def]  # Numba compares it with the lambda
    lanes = v.lanes
    return lambda v: lanes


@overload_attribute(Vector, "itemsize", jit_options={"forceinline": True})
def _lane_size(v):  # type: ignore[no-untyped-def]  # Numba compares it with the lambda
    width = v.dtype.bitwidth // 8
    return lambda v: width


@intrinsic
def load(typingctx: Any, x: Any, i: Any) -> Any:
    """Lanes x[i] to x[i + 15]."""
    if not isinstance(x, types.Array | Memory):
        raise TypingError(f"load: {x}")
    return _loaded(x, LANES)(x, types.intp), _load(x, LANES)


@intrinsic
def load_as(typingctx: Any, x: Any, i: Any, like: Any) -> Any:
    """As many lanes from x[i] on as the vector `like` has, in what x is computed in."""
    return _loaded(x, like.lanes)(x, types.intp, like), _load(x, like.lanes)


def _loaded(x: Any, lanes: int) -> Vector:
    return Vector(lane_dtype(x.dtype), lanes)


def _load(x: Any, lanes: int) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = pointer_to(context, builder, x, args[0], args[1], lanes)
        return widened(builder, x.dtype, builder.load(at, align=x.dtype.bitwidth // 8))

    return codegen


@intrinsic
def load_part(typingctx: Any, x: Any, i: Any, k: Any) -> Any:
    """Lanes x[i] to x[i + k - 1]; the others are 0 and nothing is read for them."""
    return _loaded(x, LANES)(x, types.intp, types.intp), _load_part(x, LANES)


@intrinsic
def load_part_as(typingctx: Any, x: Any, i: Any, k: Any, like: Any) -> Any:
    """`load_part` of as many lanes as the vector `like` has."""
    return _loaded(x, like.lanes)(x, types.intp, types.intp, like), _load_part(x, like.lanes)


def _load_part(x: Any, lanes: int) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = pointer_to(context, builder, x, args[0], args[1], lanes)
        elements = stored(x.dtype, lanes)
        name = f"llvm.masked.load.{stored_name(x.dtype, lanes)}.p0"
        mask_type = ir.VectorType(ir.IntType(1), lanes)
        arguments = [at.type, INT32, mask_type, elements]
        function = declared(builder, name, ir.FunctionType(elements, arguments))
        align = ir.Constant(INT32, x.dtype.bitwidth // 8)
        zeros = ir.Constant(elements, None)
        found = builder.call(function, [at, align, lanes_below(builder, args[2], lanes), zeros])
        return widened(builder, x.dtype, found)

    return codegen


@intrinsic
def store(typingctx: Any, y: Any, i: Any, v: Any) -> Any:
    """Set y[i] and the elements after it to the lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = pointer_to(context, builder, y, args[0], args[1], v.lanes)
        builder.store(narrowed(builder, y.dtype, args[2]), at, align=y.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(y, types.intp, v), codegen


@intrinsic
def store_part(typingctx: Any, y: Any, i: Any, k: Any, v: Any) -> Any:
    """Set y[i] to y[i + k - 1] = the first k lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at = pointer_to(context, builder, y, args[0], args[1], v.lanes)
        name = f"llvm.masked.store.{stored_name(y.dtype, v.lanes)}.p0"
        mask_type = ir.VectorType(ir.IntType(1), v.lanes)
        arguments = [stored(y.dtype, v.lanes), at.type, INT32, mask_type]
        function = declared(builder, name, ir.FunctionType(ir.VoidType(), arguments))
        align = ir.Constant(INT32, y.dtype.bitwidth // 8)
        elements = narrowed(builder, y.dtype, args[3])
        mask = lanes_below(builder, args[2], v.lanes)
        builder.call(function, [elements, at, align, mask])
        return context.get_dummy_value()

    return types.void(y, types.intp, types.intp, v), codegen


@intrinsic
def stream(typingctx: Any, y: Any, i: Any, v: Any) -> Any:
    """As `store`, past the caches; y[i] must start a cache line, or half of one for 16 halves.

    A normal store to a line that is not in the cache first reads it: copying 100 MB with two
    threads went from 27 to 48 GB/s with these.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        elements, width = narrowed(builder, y.dtype, args[2]), y.dtype.bitwidth // 8
        lanes = min(v.lanes, LINE_BYTES // width)
        one = builder.module.add_metadata([ir.Constant(INT32, 1)])
        for k in range(0, v.lanes, lanes):
            i = builder.add(args[1], ir.Constant(INT64, k))
            at = pointer_to(context, builder, y, args[0], i, lanes)
            line = plain_bits(context, builder, y.dtype, some_lanes(builder, elements, k, lanes))
            builder.store(line, at, align=lanes * width).set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return types.void(y, types.intp, v), codegen


@intrinsic
def prefetch_as(typingctx: Any, x: Any, i: Any, like: Any) -> Any:
    """Ask for as many elements as the vector `like` has lanes; they may lie outside of the array.

    Into the second-level cache: rows 4 KB apart would share one set of the first.
    """
    return types.void(x, types.intp, like), _prefetch(x, like.lanes)


@intrinsic
def prefetch_to_write(typingctx: Any, y: Any, i: Any) -> Any:
    """Ask for the line of y[i], into the first-level cache, to write to it."""
    return types.void(y, types.intp), _prefetch(y, 1, to_write=1, level=3)


def _prefetch(x: Any, lanes: int, to_write: int = 0, level: int = 2) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, width = ir.IntType(8), x.dtype.bitwidth // 8
        arguments = [byte.as_pointer(), INT32, INT32, INT32]
        function = declared(builder, "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), arguments))
        how = [ir.Constant(INT32, value) for value in (to_write, level, 1)]  # 1: data
        for k in range(0, lanes, LINE_BYTES // width):
            position = builder.add(args[1], ir.Constant(INT64, k))
            element = builder.gep(first_element(context, builder, x, args[0]), [position])
            builder.call(function, [builder.bitcast(element, arguments[0]), *how])
        return context.get_dummy_value()

    return codegen


@intrinsic
def address(typingctx: Any, y: Any) -> Any:
    """Where the array's memory starts."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(first_element(context, builder, y, args[0]), INT64)

    return types.int64(y), codegen


@intrinsic
def cast(typingctx: Any, v: Any, like: Any) -> Any:
    """Lanes converted to the dtype of the array, scalar or vector `like`."""
    dtype = lane_dtype(like.dtype if isinstance(like, types.Array | Memory | Vector) else like)
    target = Vector(dtype, v.lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if dtype.bitwidth > v.dtype.bitwidth:
            return builder.fpext(args[0], target.llvm)
        if dtype.bitwidth < v.dtype.bitwidth:
            return builder.fptrunc(args[0], target.llvm)
        return args[0]

    return target(v, like), codegen


@intrinsic
def rounded(typingctx: Any, v: Any, y: Any) -> Any:
    """Lanes as they would be read after a store to the array y."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return widened(builder, y.dtype, narrowed(builder, y.dtype, args[0]))

    return v(v, y), codegen


@intrinsic
def splat(typingctx: Any, scalar: Any) -> Any:
    """The scalar in every lane."""
    vector = Vector(scalar)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return splatted(builder, vector.llvm, args[0])

    return vector(scalar), codegen


@intrinsic
def first(typingctx: Any, v: Any, k: Any) -> Any:
    """The first k lanes; the others become 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = ir.Constant(v.llvm, None)
        return builder.select(lanes_below(builder, args[1], v.lanes), args[0], zeros)

    return v(v, types.intp), codegen


@intrinsic
def where(typingctx: Any, flags: Any, a: Any, b: Any) -> Any:
    """Lanes of a where flags are not 0, else of b."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = ir.Constant(flags.llvm, None)
        return builder.select(builder.fcmp_unordered("!=", args[0], zeros), args[1], args[2])

    return a(flags, a, a), codegen


@intrinsic
def muladd(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once where the CPU has such an instruction."""
    vector = next(kind for kind in (a, b, c) if isinstance(kind, Vector))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = f"llvm.fmuladd.v{vector.lanes}f{vector.dtype.bitwidth}"
        function = declared(builder, name, ir.FunctionType(vector.llvm, [vector.llvm] * 3))
        return builder.call(function, operands(builder, vector, signature, args))

    arguments = [kind if isinstance(kind, Vector) else vector.dtype for kind in (a, b, c)]
    return vector(*arguments), codegen


@intrinsic
def root(typingctx: Any, v: Any) -> Any:
    """Square roots of the lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        name = f"llvm.sqrt.v{v.lanes}f{v.dtype.bitwidth}"
        return builder.call(declared(builder, name, ir.FunctionType(v.llvm, [v.llvm])), args)

    return v(v), codegen


def _binary(operation: Any, instruction: str) -> None:
    @intrinsic
    def compute(typingctx: Any, a: Any, b: Any) -> Any:
        vector = a if isinstance(a, Vector) else b

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*operands(builder, vector, signature, args))

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
_binary(operator.truediv, "fdiv")


@intrinsic
def where_less(typingctx: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """Lanes of `yes` where a < b, else of `no`, also where a or b is NaN; scalars go to all."""
    kinds = (a, b, yes, no)
    vector = next(kind for kind in kinds if isinstance(kind, Vector))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left, right, first, second = operands(builder, vector, signature, args)
        return builder.select(builder.fcmp_ordered("<", left, right), first, second)

    return vector(*(kind if isinstance(kind, Vector) else vector.dtype for kind in kinds)), codegen


@intrinsic
def first_lane(typingctx: Any, v: Any) -> Any:
    """Lane 0 as a scalar."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], ir.Constant(INT32, 0))

    return v.dtype(v), codegen
