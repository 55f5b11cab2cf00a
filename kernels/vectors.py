"""What the intrinsics are made of: the types of vectors and memory, and how LLVM spells them.

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


def first_element(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Pointer to the first element of an array or a Memory."""
    if isinstance(kind, Memory):
        return value
    return context.make_array(kind)(context, builder, value).data


def pointer_to(context: Any, builder: Any, kind: Any, value: Any, i: Any, vector: Any) -> Any:
    """Pointer to 16 lanes from element i on."""
    element = builder.gep(first_element(context, builder, kind, value), [i], inbounds=True)
    return builder.bitcast(element, vector.llvm.as_pointer())


def splatted(builder: Any, vector: ir.VectorType, scalar: Any) -> Any:
    """The scalar in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    zeros = ir.Constant(ir.VectorType(INT32, LANES), None)
    return builder.shuffle_vector(single, undefined, zeros)


def lanes_below(builder: Any, k: Any) -> Any:
    """Lane number < k."""
    numbers = ir.VectorType(INT64, LANES)
    lanes = ir.Constant(numbers, [ir.Constant(INT64, lane) for lane in range(LANES)])
    return builder.icmp_signed("<", lanes, splatted(builder, numbers, k))


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
