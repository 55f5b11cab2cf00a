"""Tensors as NumPy arrays and back, on the same memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..extras import extra

Array = np.ndarray[Any, Any]

# Names of this module: looked up in torch, they cost 0.1 us more in every call.
_BFLOAT16 = torch.bfloat16
_tracing = torch._C._get_tracing_state

HALVES = (torch.bfloat16, torch.float16)

HELD = "_normcore_held"
"""The attribute in which a module holds its parameters as arrays."""


@cache
def _bfloat16() -> np.dtype[Any]:
    with extra("torch"):
        import ml_dtypes
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def array(name: str, values: Any) -> Array:
    """The memory of a strided CPU tensor as an array.

    Raises
    ------
    TypeError
        For what is no such tensor, and for complex numbers.
    RuntimeError
        While `torch.jit.trace` runs, which would take the result for a constant.
    """
    try:
        if not values.is_cpu:
            raise TypeError(f"{name}: expected a tensor on the CPU, got one on {values.device}")
        if _tracing() is not None:
            raise RuntimeError(
                f"{name}: torch.jit.trace cannot see what normcore computes; "
                "normcore.torch.revert the model before"
            )
        dtype = values.dtype
    except AttributeError:
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(values).__name__}") from None
    found: Array
    if dtype is _BFLOAT16:
        found = values.detach().view(torch.uint16).numpy().view(_bfloat16())
    else:
        # Without force, numpy() refuses what requires grad, and detach() costs 0.3 us.
        found = values.numpy(force=True)
    return found


def tensor(values: Array) -> Tensor:
    """The memory of a dense array as a tensor.

    NumPy allocates what comes out: its arrays of 4 MB and more ask for huge pages, with which
    writing a fresh 100 MB takes 9 ms, where it takes 21 ms in memory that PyTorch allocates.
    """
    if values.dtype.type is np.float16 or values.dtype.itemsize > 2:
        return torch.from_numpy(values)
    bits = torch.from_numpy(values.view(np.uint16))
    # Not bits.view(torch.bfloat16): autograd forbids that views from a Function change in place,
    # and torch.nn.ReLU(inplace=True) comes behind most norms.
    found = torch.empty(0, dtype=torch.bfloat16)
    return found.set_(bits.untyped_storage(), 0, bits.size(), bits.stride())


def parameter(name: str, values: Any) -> Array | None:
    """A parameter or a statistic: an array as above, a float32 copy for halves, None for None."""
    if values is None:
        return None
    if values.dtype in HALVES:
        values = values.detach().float()
    return array(name, values)


def parameters(module: torch.nn.Module, *tensors: Tensor | None) -> Any:
    """The parameters and statistics of a module as a tuple of arrays, each as by `parameter`.

    The module holds them until one of them moves: a conversion costs 0.7 us and there are up to
    five; to see that nothing has moved costs 0.1 us each.
    """
    found = [t for t in tensors if t is not None]
    where = [t.data_ptr() for t in found]
    if found:
        # Parameters are pruned by slicing them, too, all alike.
        where.append(found[0].numel())
    held = module.__dict__.get(HELD)
    if held is not None and held[0] == where:
        return held[1]
    arrays = tuple([parameter("parameter", t) for t in tensors])
    # What holds copies of halves would not see them change.
    if not any(t.dtype in HALVES for t in found):
        module.__dict__[HELD] = (where, arrays)
    return arrays


def write_back(values: Tensor | None, found: Array | None) -> None:
    """Round running statistics that `parameter` has copied, and that were updated, to halves."""
    if values is not None and found is not None and values.dtype in HALVES:
        values.copy_(torch.from_numpy(found))
