"""Bare loops: what statistics cost that must be there before anything is written.

The limit of `bench.limits` reads and writes at once. A norm cannot: it reads every element of a
channel (of a group, of a sample) before it writes the first one, and what its caches did not keep
it reads twice. These loops do only that: they add up all pieces of a block and then write them,
last piece first, with streaming stores; no shift, no float64, no coefficients. Like the kernels,
threads have blocks of their own or share each. What a kernel takes beyond these loops is its own.
What they take beyond the limit it can only help by reading one block while it writes another, where
its caches hold both.

Of the layouts in which a block outgrows registers: `nchw` and `nc`, beyond the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numba import njit, prange

from bench.cases import CACHED_BYTES
from bench.layout import Layout
from bench.limits import LINE, Arrays, move_streaming, of_words, with_threads
from bench.problem import INPUTS, Problem
from bench.tasks import Task

PIECE = 4096
"""Words that are added or written at a time: 16 KB."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Elements whose statistics belong together: `runs` of `length`, at equal distances."""

    count: int
    step: int
    runs: int
    length: int
    run_step: int

    def in_words(self, itemsize: int) -> Blocks:
        """The same in words of 4 bytes."""
        step, length, run_step = (
            elements * itemsize // 4 for elements in (self.step, self.length, self.run_step)
        )
        return Blocks(self.count, step, self.runs, length, run_step)


def blocks_of(layout: Layout) -> Blocks | None:
    """Where the blocks of a layout lie; None in families whose blocks are rows or strips."""
    if layout.family not in ("nchw", "nc"):
        return None
    if layout.family == "nchw" and layout.by_channel:
        n, c, s = layout.sizes
        return Blocks(c, s, n, s, c * s)
    # The channels of nc share their lines: all of them, or those of a sample, are one block.
    count = {"nchw": layout.statistics, "nc": 1 if layout.by_channel else layout.units}
    length = layout.elements // count[layout.family]
    return Blocks(count[layout.family], length, 1, length, length)


# As integers that need no widening: those of 4 bytes took twice as long.
@njit(cache=True, nogil=True)
def _total(a: Any) -> Any:
    total, numbers = np.int64(0), a.view(np.int64)
    for i in range(numbers.size):
        total += numbers[i]
    return total


@njit(cache=True)
def _pieces(blocks: Any) -> int:
    return blocks[2] * (-(-blocks[3] // PIECE))


@njit(cache=True)
def _bounds(blocks: Any, block: int, piece: int) -> tuple[int, int]:
    """From where to where a piece of a block goes, in whole lines."""
    _, step, _, length, run_step = blocks
    cuts = -(-length // PIECE)
    start = block * step + piece // cuts * run_step
    lo, hi = piece % cuts * PIECE, min(length, (piece % cuts + 1) * PIECE)
    return (start + lo) // LINE * LINE, (start + hi) // LINE * LINE


@njit(cache=True, nogil=True)
def _add_up(inputs: Arrays, blocks: Any, block: int, first: int, last: int) -> Any:
    total = np.int64(0)
    for piece in range(first, last):
        lo, hi = _bounds(blocks, block, piece)
        for k in range(len(inputs)):
            total += _total(inputs[k][lo:hi])
    return total


@njit(cache=True, nogil=True)
def _write(outputs: Arrays, inputs: Arrays, blocks: Any, block: int, first: int, last: int) -> None:
    for piece in range(last - 1, first - 1, -1):
        lo, hi = _bounds(blocks, block, piece)
        move_streaming(outputs, inputs, lo, hi)


@njit(cache=True, nogil=True)
def _one_by_one(outputs: Arrays, inputs: Arrays, blocks: Any, first: int, last: int) -> Any:
    total, pieces = np.int64(0), _pieces(blocks)
    for block in range(first, last):
        total += _add_up(inputs, blocks, block, 0, pieces)
        _write(outputs, inputs, blocks, block, 0, pieces)
    return total


@njit(cache=True, parallel=True)
def _apart(outputs: Arrays, inputs: Arrays, threads: int, blocks: Any) -> Any:
    total, count = np.int64(0), blocks[0]
    for t in prange(threads):
        first, last = count * t // threads, count * (t + 1) // threads
        total += _one_by_one(outputs, inputs, blocks, first, last)
    return total


@njit(cache=True, parallel=True)
def _together(outputs: Arrays, inputs: Arrays, threads: int, blocks: Any) -> Any:
    total, pieces = np.int64(0), _pieces(blocks)
    for block in range(blocks[0]):
        for t in prange(threads):
            first, last = pieces * t // threads, pieces * (t + 1) // threads
            total += _add_up(inputs, blocks, block, first, last)
        for t in prange(threads):
            first, last = pieces * t // threads, pieces * (t + 1) // threads
            _write(outputs, inputs, blocks, block, first, last)
    return total


def loops(problem: Problem, task: Task) -> dict[str, Callable[[], object]]:
    """Name -> call, ready (compiled); none where they would say nothing."""
    case, blocks = problem.case, blocks_of(problem.layout)
    if (
        blocks is None
        or case.fused
        or case.nbytes <= CACHED_BYTES
        or task.name not in ("forward", "backward")
    ):
        return {}
    given = problem.arguments
    inputs = tuple(of_words(given[name]) for name in INPUTS[: task.reads])
    outputs = (of_words(problem.stream()),)
    return of_blocks(inputs, outputs, blocks.in_words(problem.x.itemsize), problem.threads)


def of_blocks(
    inputs: Arrays, outputs: Arrays, blocks: Blocks, threads: int
) -> dict[str, Callable[[], object]]:
    """Every way through the blocks of some arrays of words."""
    numbers = tuple(
        np.intp(value)
        for value in (blocks.count, blocks.step, blocks.runs, blocks.length, blocks.run_step)
    )
    ways: dict[str, Any] = {"bare loops, shared blocks": _together}
    if blocks.count >= threads:
        ways["bare loops, own blocks"] = _apart
    found: dict[str, Callable[[], object]] = {
        name: partial(with_threads, threads, way, outputs, inputs, numbers)
        for name, way in ways.items()
    }
    for loop in found.values():
        loop()
    return found
