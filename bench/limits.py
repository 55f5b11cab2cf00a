"""The yardstick: how fast this machine moves the bytes that a kernel must move.

Compiled with Numba, independent of normcore's own kernels: copy (one array read, one written),
triad (two read, one written) and reads, with normal and with non-temporal stores, on one thread
and on more. The limit of a kernel is the fastest of them on the very arrays that the kernel works
on, measured in the same interleaved rounds. Nothing that moves these bytes can be far below it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from normcore.kernels.table import Kernel
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from bench.problem import Problem

Array = np.ndarray[Any, Any]

LINE = 16
"""Floats per store: one cache line. A line that is written whole needs no read first."""


def _line(context: Any, builder: Any, signature: Any, values: Any, *, stream: bool) -> Any:
    """Write y[i:i+LINE] = a[i:i+LINE] (+ b[i:i+LINE]); arguments y, a, (b,) i."""
    vector = ir.VectorType(ir.FloatType(), LINE).as_pointer()

    def address(k: int) -> Any:
        array = cgutils.create_struct_proxy(signature.args[k])(context, builder, values[k])
        return builder.bitcast(builder.gep(array.data, [values[-1]]), vector)

    total = builder.load(address(1), align=4)
    for k in range(2, len(values) - 1):
        total = builder.fadd(total, builder.load(address(k), align=4))
    store = builder.store(total, address(0), align=64)
    if stream:
        one = ir.Constant(ir.IntType(32), 1)
        store.set_metadata("nontemporal", builder.module.add_metadata([one]))
    return context.get_dummy_value()


@intrinsic
def _copy_line(typing: Any, y: Any, a: Any, i: Any) -> Any:
    return types.void(y, a, types.intp), partial(_line, stream=False)


@intrinsic
def _copy_line_streaming(typing: Any, y: Any, a: Any, i: Any) -> Any:
    return types.void(y, a, types.intp), partial(_line, stream=True)


@intrinsic
def _add_line(typing: Any, y: Any, a: Any, b: Any, i: Any) -> Any:
    return types.void(y, a, b, types.intp), partial(_line, stream=False)


@intrinsic
def _add_line_streaming(typing: Any, y: Any, a: Any, b: Any, i: Any) -> Any:
    return types.void(y, a, b, types.intp), partial(_line, stream=True)


@njit(cache=True, nogil=True)
def _copy(y: Array, a: Array, b: Array, lo: int, hi: int) -> Any:
    whole = hi - (hi - lo) % LINE
    for i in range(lo, whole, LINE):
        _copy_line(y, a, i)
    for i in range(whole, hi):
        y[i] = a[i]
    return np.float32(0)


@njit(cache=True, nogil=True)
def _copy_streaming(y: Array, a: Array, b: Array, lo: int, hi: int) -> Any:
    whole = hi - (hi - lo) % LINE
    for i in range(lo, whole, LINE):
        _copy_line_streaming(y, a, i)
    for i in range(whole, hi):
        y[i] = a[i]
    return np.float32(0)


@njit(cache=True, nogil=True)
def _triad(y: Array, a: Array, b: Array, lo: int, hi: int) -> Any:
    whole = hi - (hi - lo) % LINE
    for i in range(lo, whole, LINE):
        _add_line(y, a, b, i)
    for i in range(whole, hi):
        y[i] = a[i] + b[i]
    return np.float32(0)


@njit(cache=True, nogil=True)
def _triad_streaming(y: Array, a: Array, b: Array, lo: int, hi: int) -> Any:
    whole = hi - (hi - lo) % LINE
    for i in range(lo, whole, LINE):
        _add_line_streaming(y, a, b, i)
    for i in range(whole, hi):
        y[i] = a[i] + b[i]
    return np.float32(0)


# Reassociation lets the sums keep several vectors going; one alone waits for its own additions.
# They run over slices: an index that might be negative costs the vectors too.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _read(y: Array, a: Array, b: Array, lo: int, hi: int) -> Any:
    total = np.float32(0)
    a = a[lo:hi]
    for i in range(a.size):
        total += a[i]
    return total


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _read_two(y: Array, a: Array, b: Array, lo: int, hi: int) -> Any:
    total = np.float32(0)
    a, b = a[lo:hi], b[lo:hi]
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@njit(cache=True)
def _edge(size: int, part: int, parts: int) -> int:
    return size if part == parts else size // parts * part // LINE * LINE


# One thread runs the serial probes above: a parallel call costs microseconds of its own, which
# counts in the cache.
@njit(cache=True, parallel=True)
def _copy_threads(y: Array, a: Array, b: Array, parts: int) -> Any:
    for part in prange(parts):
        _copy(y, a, b, _edge(a.size, part, parts), _edge(a.size, part + 1, parts))


@njit(cache=True, parallel=True)
def _copy_streaming_threads(y: Array, a: Array, b: Array, parts: int) -> Any:
    for part in prange(parts):
        _copy_streaming(y, a, b, _edge(a.size, part, parts), _edge(a.size, part + 1, parts))


@njit(cache=True, parallel=True)
def _triad_threads(y: Array, a: Array, b: Array, parts: int) -> Any:
    for part in prange(parts):
        _triad(y, a, b, _edge(a.size, part, parts), _edge(a.size, part + 1, parts))


@njit(cache=True, parallel=True)
def _triad_streaming_threads(y: Array, a: Array, b: Array, parts: int) -> Any:
    for part in prange(parts):
        _triad_streaming(y, a, b, _edge(a.size, part, parts), _edge(a.size, part + 1, parts))


@njit(cache=True, parallel=True)
def _read_threads(y: Array, a: Array, b: Array, parts: int) -> Any:
    total = np.float32(0)
    for part in prange(parts):
        total += _read(y, a, b, _edge(a.size, part, parts), _edge(a.size, part + 1, parts))
    return total


@njit(cache=True, parallel=True)
def _read_two_threads(y: Array, a: Array, b: Array, parts: int) -> Any:
    total = np.float32(0)
    for part in prange(parts):
        total += _read_two(y, a, b, _edge(a.size, part, parts), _edge(a.size, part + 1, parts))
    return total


_PROBES: dict[tuple[int, int], dict[str, tuple[Any, Any]]] = {
    (1, 0): {"read": (_read, _read_threads)},
    (2, 0): {"read two": (_read_two, _read_two_threads)},
    (1, 1): {
        "copy": (_copy, _copy_threads),
        "streamed copy": (_copy_streaming, _copy_streaming_threads),
    },
    (2, 1): {
        "triad": (_triad, _triad_threads),
        "streamed triad": (_triad_streaming, _triad_streaming_threads),
    },
}
"""(arrays read, arrays written) -> probes, serial and parallel. Streamed: non-temporal stores."""


def thread_counts(threads: int) -> list[int]:
    """1, the powers of two below `threads`, and `threads`."""
    return sorted({*(1 << k for k in range(threads.bit_length()) if 1 << k < threads), threads})


def probes(problem: Problem, kernel: Kernel) -> dict[str, Callable[[], object]]:
    """Name -> call of every probe that moves what `kernel` moves, ready (compiled)."""
    y, x, dy = problem.stream(), problem.x, problem.dy
    found: dict[str, Callable[[], object]] = {}
    for name, (serial, parallel) in _PROBES[kernel.reads, kernel.writes].items():
        for threads in thread_counts(problem.threads):
            if threads == 1:
                found[f"{name}, 1 thread"] = partial(serial, y, x, dy, 0, x.size)
            else:
                found[f"{name}, {threads} threads"] = partial(
                    _with_threads, threads, parallel, y, x, dy
                )
    for probe in found.values():
        probe()
    return found


def _with_threads(threads: int, parallel: Any, y: Array, x: Array, dy: Array) -> object:
    # Numba's count belongs to the calling thread, and a kernel may have left another.
    if numba.get_num_threads() != threads:
        numba.set_num_threads(threads)
    return parallel(y, x, dy, threads)
