"""Tensors as NumPy arrays and back, on the same memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

HALVES = (torch.bfloat16, torch.float16)

HELD = "_normcore_held"
"""The attribute in which a module holds its parameters as arrays."""


@cache
def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            "bfloat16 tensors need ml_dtypes; install it with: pip install 'normcore[torch]'"
        ) from error
    return np.dtype(ml_dtypes.bfloat16)


def array(name: str, values: Any) -> Array:
    """The memory of a strided CPU tensor as an array.

    Raises
    ------
    TypeError
        For what is no such tensor, and for complex numbers.
    RuntimeError
        While `torch.jit.trace` runs, which would take the result for a constant.
    """
    # Tensor.numpy(force=True) alone would copy from other devices; without force, it refuses
    # what requires grad, and detach() costs 0.3 us.
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(values).__name__}")
    if not values.is_cpu or values.layout is not torch.strided:
        raise TypeError(
            f"{name}: expected a strided tensor on the CPU, got {values.layout} on {values.device}"
        )
    if torch._C._get_tracing_state() is not None:
        raise RuntimeError(
            f"{name}: torch.jit.trace cannot see what normcore computes; "
            "normcore.torch.revert the model before"
        )
    found: Array
    if values.dtype is torch.bfloat16:
        found = values.detach().view(torch.uint16).numpy().view(_bfloat16())
    else:
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


def parameters(module: torch.nn.Module, *tensors: Tensor | None) -> tuple[Array | None, ...]:
    """The parameters and statistics of a module as arrays, each as by `parameter`.

    The module holds them until one of them moves: a conversion costs 0.7 us and there are up to
    five; to see that nothing has moved costs 0.15 us each.
    """
    where = tuple([0 if t is None else t.data_ptr() + (t.numel() << 48) for t in tensors])
    held = module.__dict__.get(HELD)
    if held is not None and held[0] == where:
        arrays: tuple[Array | None, ...] = held[1]
        return arrays
    arrays = tuple([parameter("parameter", t) for t in tensors])
    # What holds copies of halves would not see them change.
    if not any(t is not None and t.dtype in HALVES for t in tensors):
        module.__dict__[HELD] = (where, arrays)
    return arrays


def write_back(values: Tensor | None, found: Array | None) -> None:
    """Round running statistics that `parameter` has copied, and that were updated, to halves."""
    if values is not None and found is not None and values.dtype in HALVES:
        values.copy_(torch.from_numpy(found))
