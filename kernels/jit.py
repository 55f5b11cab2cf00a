"""How Numba compiles the kernels: the only place with compiler flags.

No fast-math flag is set anywhere. Sums run in explicit lanes (`normcore.kernels.intrinsics`), so
nothing has to be reassociated, and multiply-adds are asked for by name: the arithmetic of a kernel
is the same bits in whatever function it ends up inlined.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any
from zlib import crc32

import numba

from .schedule import STREAM_BYTES

# numpy's error model: a division by zero gives inf or nan instead of raising.
FLAGS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": False,
    "no_cfunc_wrapper": True,
}

# Python calls the kernels alone. Without wrappers that would let it call each of the 140 functions
# behind it, forward of rows compiles in 7.0 s instead of 9.3.
INNER: dict[str, Any] = {**FLAGS, "no_cpython_wrapper": True}


def _fingerprint() -> str:
    # Numba's cache notices a change of the file that a kernel stands in, but not of the files
    # whose functions it calls, nor of a constant that the environment sets: without this an
    # upgrade could run stale machine code.
    sources = sorted(Path(__file__).parent.glob("*.py"))
    parts = [*(source.read_bytes() for source in sources), str(STREAM_BYTES).encode()]
    return f"{crc32(b''.join(parts)):08x}"


_FINGERPRINT = _fingerprint()


def _compiled(function: Callable[..., Any], suffix: str, **flags: Any) -> Any:
    """`function` under a name of its own, because Numba's cache tells functions apart by name."""
    twin = FunctionType(function.__code__, function.__globals__, function.__name__)
    twin.__qualname__ = f"{function.__qualname__}_{suffix}_{_FINGERPRINT}"
    twin.__module__ = function.__module__
    twin.__doc__ = function.__doc__
    try:
        return numba.njit(cache=True, **FLAGS, **flags)(twin)
    except RuntimeError:  # no writable place for a cache: a read-only install without HOME
        return numba.njit(**FLAGS, **flags)(twin)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel, at its first call, for threads; its attribute ``serial`` uses none.

    The serial twin is for forked children, which must not start OpenMP threads, and for Numba's
    workqueue threading layer, which aborts when two threads call it. Both run the same compiled
    blocks and give the same bits.
    """
    dispatcher = _compiled(function, "parallel", parallel=True)
    dispatcher.serial = _compiled(function, "serial")
    return dispatcher


def entry(function: Callable[..., Any]) -> Any:
    """Compile a kernel that prepares arguments and calls another one; its serial twin calls that's.

    Loops over threads must stand in the function that Numba compiles for threads, not in one that
    is inlined into it: kernels that share a schedule call one kernel that has it.
    """
    dispatcher = _compiled(function, "parallel")
    twins = {name: getattr(value, "serial", value) for name, value in function.__globals__.items()}
    serial = FunctionType(function.__code__, twins, function.__name__)
    serial.__module__, serial.__doc__ = function.__module__, function.__doc__
    dispatcher.serial = _compiled(serial, "serial")
    return dispatcher


def small_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel that is too small for threads: it is its own serial twin."""
    dispatcher = _compiled(function, "serial")
    dispatcher.serial = dispatcher
    return dispatcher


def inline(function: Callable[..., Any]) -> Any:
    """Compile the arithmetic of a row, a vector or a channel into its callers."""
    return numba.njit(forceinline=True, **INNER)(function)


def block(function: Callable[..., Any]) -> Any:
    """Compile the work of one thread once, for the parallel kernel and for its serial twin."""
    return numba.njit(**INNER)(function)


@inline
def slab(units, threads, t):
    """First and last + 1 of the units that thread t of `threads` works on."""
    return units * t // threads, units * (t + 1) // threads
