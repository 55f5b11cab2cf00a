"""The yardstick: how fast this machine moves the bytes that a task must move.

Compiled with Numba, independent of normcore's own kernels: copy (one array read, one written),
triad (two read, one written), sums of more arrays into one or two, and reads, with normal and with
non-temporal stores, on one thread and on more. The limit of a task is the fastest of them on the
very arrays that the task works on, measured in the same interleaved rounds. Nothing that moves
these bytes can be far below it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from bench.problem import INPUTS, Problem
from bench.tasks import Task

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]

LINE = 16
"""Words per store: one cache line. A line that is written whole needs no read first."""


def _move_line(context: Any, builder: Any, signature: Any, values: Any, *, stream: bool) -> Any:
    """outputs[k][i:i+LINE] = the sum of inputs[...][i:i+LINE]; arguments outputs, inputs, i."""
    number = context.get_data_type(signature.args[1].dtype.dtype)
    vector = ir.VectorType(number, LINE).as_pointer()
    add = builder.fadd if isinstance(number, ir.FloatType) else builder.add

    def addresses(k: int) -> Any:
        for which in range(signature.args[k].count):
            array = builder.extract_value(values[k], which)
            proxy = cgutils.create_struct_proxy(signature.args[k].dtype)
            data = proxy(context, builder, value=array).data
            yield builder.bitcast(builder.gep(data, [values[2]]), vector)

    first, *others = (builder.load(address, align=4) for address in addresses(1))
    total = first
    for other in others:
        total = add(total, other)
    for address in addresses(0):
        store = builder.store(total, address, align=64)
        if stream:
            one = ir.Constant(ir.IntType(32), 1)
            store.set_metadata("nontemporal", builder.module.add_metadata([one]))
    return context.get_dummy_value()


@intrinsic
def _line(typing: Any, outputs: Any, inputs: Any, i: Any) -> Any:
    return types.void(outputs, inputs, types.intp), partial(_move_line, stream=False)


@intrinsic
def _line_streaming(typing: Any, outputs: Any, inputs: Any, i: Any) -> Any:
    return types.void(outputs, inputs, types.intp), partial(_move_line, stream=True)


@njit(cache=True, nogil=True)
def _rest(outputs: Arrays, inputs: Arrays, lo: int, hi: int) -> None:
    for i in range(lo, hi):
        total = inputs[0][i]
        for k in range(1, len(inputs)):
            total += inputs[k][i]
        for k in range(len(outputs)):
            outputs[k][i] = total


@njit(cache=True, nogil=True)
def _move(outputs: Arrays, inputs: Arrays, lo: int, hi: int) -> Any:
    whole = hi - (hi - lo) % LINE
    for i in range(lo, whole, LINE):
        _line(outputs, inputs, i)
    _rest(outputs, inputs, whole, hi)
    return np.float32(0)


@njit(cache=True, nogil=True)
def move_streaming(outputs: Arrays, inputs: Arrays, lo: int, hi: int) -> Any:
    whole = hi - (hi - lo) % LINE
    for i in range(lo, whole, LINE):
        _line_streaming(outputs, inputs, i)
    _rest(outputs, inputs, whole, hi)
    return np.float32(0)


# Reassociation lets the sums keep several vectors going; one alone waits for its own additions.
# They run over slices: an index that might be negative costs the vectors too.
@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _read(outputs: Arrays, inputs: Arrays, lo: int, hi: int) -> Any:
    total = np.float32(0)
    a = inputs[0][lo:hi]
    for i in range(a.size):
        total += a[i]
    return total


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _read_two(outputs: Arrays, inputs: Arrays, lo: int, hi: int) -> Any:
    total = np.float32(0)
    a, b = inputs[0][lo:hi], inputs[1][lo:hi]
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@njit(cache=True)
def _edge(size: int, part: int, parts: int) -> int:
    return size if part == parts else size // parts * part // LINE * LINE


# One thread runs the serial probes above: a parallel call costs microseconds of its own, which
# counts in the cache.
@njit(cache=True, parallel=True)
def _move_threads(outputs: Arrays, inputs: Arrays, parts: int) -> Any:
    size = inputs[0].size
    for part in prange(parts):
        _move(outputs, inputs, _edge(size, part, parts), _edge(size, part + 1, parts))


@njit(cache=True, parallel=True)
def _move_streaming_threads(outputs: Arrays, inputs: Arrays, parts: int) -> Any:
    size = inputs[0].size
    for part in prange(parts):
        move_streaming(outputs, inputs, _edge(size, part, parts), _edge(size, part + 1, parts))


@njit(cache=True, parallel=True)
def _read_threads(outputs: Arrays, inputs: Arrays, parts: int) -> Any:
    total, size = np.float32(0), inputs[0].size
    for part in prange(parts):
        total += _read(outputs, inputs, _edge(size, part, parts), _edge(size, part + 1, parts))
    return total


@njit(cache=True, parallel=True)
def _read_two_threads(outputs: Arrays, inputs: Arrays, parts: int) -> Any:
    total, size = np.float32(0), inputs[0].size
    for part in prange(parts):
        total += _read_two(outputs, inputs, _edge(size, part, parts), _edge(size, part + 1, parts))
    return total


_READS = {1: ("read", _read, _read_threads), 2: ("read two", _read_two, _read_two_threads)}
_MOVES = {(1, 1): "copy", (2, 1): "triad"}
"""(arrays read, arrays written) -> name, of those that have one."""


def thread_counts(threads: int) -> list[int]:
    """1, the powers of two below `threads`, and `threads`."""
    return sorted({*(1 << k for k in range(threads.bit_length()) if 1 << k < threads), threads})


def probes(problem: Problem, task: Task) -> dict[str, Callable[[], object]]:
    """Name -> call of every probe that moves what `task` moves, ready (compiled)."""
    given = problem.arguments
    readable = [given[name] for name in INPUTS if given[name] is not None]
    names = ("stream", *(name for name in ("total", "g") if name in task.outputs))
    written = [problem.stream(name) for name in names[: task.writes]]
    return moves(readable[: task.reads], written, problem.threads)


def moves(
    readable: Sequence[Array], written: Sequence[Array], threads: int
) -> dict[str, Callable[[], object]]:
    """Every probe that reads some arrays and writes others, of one size and flat."""
    inputs, outputs = (tuple(map(of_words, arrays)) for arrays in (readable, written))
    if outputs:
        traffic = len(inputs), len(outputs)
        name = _MOVES.get(traffic, "{} in, {} out".format(*traffic))
        kinds = [
            (name, _move, _move_threads),
            (f"streamed {name}", move_streaming, _move_streaming_threads),
        ]
    else:
        kinds = [_READS[len(inputs)]]
    found: dict[str, Callable[[], object]] = {}
    for name, serial, parallel in kinds:
        for count in thread_counts(threads):
            if count == 1:
                found[f"{name}, 1 thread"] = partial(serial, outputs, inputs, 0, inputs[0].size)
            else:
                found[f"{name}, {count} threads"] = partial(
                    with_threads, count, parallel, outputs, inputs
                )
    for probe in found.values():
        probe()
    return found


def of_words(array: Array) -> Array:
    """An array's bytes as words of 4."""
    # The bytes of other dtypes move as integers: as float32 some of them would be subnormal, which
    # costs time of its own. Of an odd number of halves one is left.
    word = np.float32 if array.dtype == np.float32 else np.int32
    return array[: array.nbytes // 4 * 4 // array.itemsize].view(word)


def with_threads(
    threads: int, parallel: Any, outputs: Arrays, inputs: Arrays, *others: Any
) -> object:
    """Run a compiled loop on so many threads."""
    # Numba's count belongs to the calling thread, and a kernel may have left another.
    if numba.get_num_threads() != threads:
        numba.set_num_threads(threads)
    return parallel(outputs, inputs, threads, *others)
