"""What a function would return, and which errors it would raise, without computing: for tracers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from .backend import Backend, _local_backend
from .kernels import table

Array = np.ndarray[Any, Any]


def _nothing(*_: Any) -> None:
    """A kernel that leaves its outputs as they are."""


@cache
def _idle() -> Backend:
    kernels: Any = SimpleNamespace(**{kernel.name: _nothing for kernel in table.KERNELS})
    return Backend("idle", {"nchw": kernels, "nc": kernels}, kernels, kernels, kernels)


@contextmanager
def _without_kernels() -> Iterator[None]:
    token = _local_backend.set(_idle())
    try:
        yield
    finally:
        _local_backend.reset(token)


def results(
    function: Callable[..., Sequence[Array]], arguments: Sequence[tuple[Any, Any] | None]
) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
    """(shape, dtype) of the arrays that a function of normcore returns.

    Parameters
    ----------
    function : callable
        Takes arrays, or None, and returns arrays; what computes in it are functions of normcore.
    arguments : sequence
        (shape, dtype) of each array, or None.

    Raises
    ------
    TypeError, ValueError
        As `function` does.

    Examples
    --------
    >>> import normcore as nc
    >>> results(lambda x: nc.functional.layer_norm_forward(x, 3), [((4, 3), np.float32)])
    [((4, 3), dtype('float32')), ((4,), dtype('float64')), ((4,), dtype('float64'))]
    """
    # Memory of np.zeros that nobody touches is never there: a GB is allocated in 10 us.
    arrays = [None if argument is None else np.zeros(*argument) for argument in arguments]
    with _without_kernels():
        return [(found.shape, found.dtype) for found in function(*arrays)]
