"""Arithmetic of columns: rows of elements that each belong to a column of their own, in Numba.

A block is `rows` * `cols` contiguous elements from x[start]; the values of its first column lie at
`column` in arrays of one value per column. Sums take 16 columns at a time and down several rows,
so that the accumulators stay in registers; a column is one lane, and its additions are in the
order of the rows. The elementwise pass goes along the rows, as memory lies.

Sums are of x - shift and its square where dy is None, else of dy, dy * (x - mean) and x - mean.
"""

from __future__ import annotations

from .intrinsics import (
    LANES,
    cast,
    muladd,
    prefetch,
    store,
    store_part,
    stream,
)
from .jit import block, inline
from .runs import gap
from .values import get

WRAP = LANES
"""Coefficients go on with this many of their first ones: a row may be read from its first line."""

GROUP_BYTES = 8192
"""Rows of one visit of 16 columns hold this many bytes, but are 8 to 32. The same rows further on
are asked for meanwhile: sums of (65536, 256) went from 17 to 51 GB/s (two threads), because the
hardware alone does not follow that many rows."""

AHEAD_BYTES = 8192
"""Streamed passes ask for lines this far ahead. In C that took inference of (65536, 256) from 1.11
of the copy to 0.98, its gradients from 1.26 of the triad to 1.05."""


@inline
def put(y, i, k, v):
    """Set y[i] to y[i + k - 1] = lanes, rounded to the dtype of y."""
    if k == LANES:
        store(y, i, cast(v, y))
    else:
        store_part(y, i, k, cast(v, y))


@inline
def column_shifts(shift, j, x, start, rows, c, k):
    """Near the mean of each of k columns, and the value itself where all are equal."""
    origin = cast(get(x, start, k), shift)
    sums = origin - origin
    for r in range(1, rows):
        sums = sums + (cast(get(x, start + r * c, k), shift) - origin)
    put(shift, j, k, muladd(sums, 1.0 / rows, origin))


@inline
def column_sums(partial, at, wide, x, start, rows, cols, ahead, shift, j, k):
    """Add the sums of x - shift and (x - shift)^2 of k columns."""
    s1, s2, origin = get(partial, at, k), get(partial, at + wide, k), get(shift, j, k)
    for i in range(start, start + rows * cols, cols):
        prefetch(x, i + ahead)
        deviation = cast(get(x, i, k), shift) - origin
        s1 = s1 + deviation
        s2 = muladd(deviation, deviation, s2)
    put(partial, at, k, s1)
    put(partial, at + wide, k, s2)


@inline
def column_grad_sums(partial, at, wide, dy, x, start, rows, cols, ahead, mean, j, k):
    """Add the sums of dy, dy * (x - mean) and x - mean of k columns."""
    s1, s2, s3 = get(partial, at, k), get(partial, at + wide, k), get(partial, at + 2 * wide, k)
    centre = get(mean, j, k)
    for i in range(start, start + rows * cols, cols):
        prefetch(dy, i + ahead)
        prefetch(x, i + ahead)
        g = cast(get(dy, i, k), mean)
        deviation = cast(get(x, i, k), mean) - centre
        s1 = s1 + g
        s2 = muladd(g, deviation, s2)
        s3 = s3 + deviation
    put(partial, at, k, s1)
    put(partial, at + wide, k, s2)
    put(partial, at + 2 * wide, k, s3)


@inline
def add_columns(partial, at, wide, dy, x, start, rows, cols, ahead, shift, j, k):
    """Add the sums of k columns."""
    if dy is None:
        column_sums(partial, at, wide, x, start, rows, cols, ahead, shift, j, k)
    else:
        column_grad_sums(partial, at, wide, dy, x, start, rows, cols, ahead, shift, j, k)


@block
def block_sums(partial, at, wide, dy, x, start, rows, cols, shift, column):
    """Add the sums of a block to partial[at], partial[at + wide], ..."""
    arrays = 1 if dy is None else 2
    together = min(32, max(8, GROUP_BYTES // (arrays * cols * x.itemsize)))
    ahead, whole = together * cols, cols // LANES * LANES
    for row in range(0, rows, together):
        i, r = start + row * cols, min(together, rows - row)
        for j in range(0, whole, LANES):
            add_columns(
                partial, at + j, wide, dy, x, i + j, r, cols, ahead, shift, column + j, LANES
            )
        if whole < cols:
            j, k = whole, cols - whole
            add_columns(partial, at + j, wide, dy, x, i + j, r, cols, ahead, shift, column + j, k)


@block
def add_units(totals, at, partial, first, units, stride, columns):
    """Set totals[at] and the columns after it to the sums over the units, in their order."""
    for j in range(0, columns, LANES):
        k = min(LANES, columns - j)
        s = get(partial, first + j, k)
        for u in range(1, units):
            s = s + get(partial, first + u * stride + j, k)
        put(totals, at + j, k, s)


@inline
def look_ahead(reads, i):
    """Ask for what a streamed pass reads later, of one or two arrays."""
    ahead = AHEAD_BYTES // reads[0].itemsize
    prefetch(reads[0], i + ahead)
    if len(reads) > 1:
        prefetch(reads[-1], i + ahead)


@block
def apply_block(y, start, rows, cols, streaming, value, of, a, pitch, arrays, reads):
    """Set a block to a value of `normcore.kernels.values`, in vectors stored to whole lines.

    Its coefficients are `of(a, pitch, column)`; `reads` are the arrays to look ahead in.

    Where rows are whole vectors, the elements before the first line are done once, and every row
    is read from there, rotated, with the coefficients rotated alike; else every row has a head of
    its own. Inference of (65536, 256) takes 0.98 of the copy, and took 1.79 down the columns with
    heads; (100352, 64) 0.91 instead of 2.26.
    """
    rotated, heads = cols % LANES == 0, cols >= 4 * LANES
    streaming = streaming and (rotated or heads)
    turn = gap(y, start) if rotated else 0
    for row in range(rows):
        i, end, lead = start + row * cols, cols, 0
        if rotated:
            lead = turn if row == 0 else 0
            end = cols + turn if row + 1 < rows else cols
        elif heads:
            lead = gap(y, i)
        begin = turn if rotated else lead
        whole = begin + (end - begin) // LANES * LANES
        if lead > 0:
            put(y, i, lead, value(i, lead, of(a, pitch, 0), arrays))
        if streaming:
            for j in range(begin, whole, LANES):
                look_ahead(reads, i + j)
                stream(y, i + j, cast(value(i + j, LANES, of(a, pitch, j), arrays), y))
        else:
            for j in range(begin, whole, LANES):
                put(y, i + j, LANES, value(i + j, LANES, of(a, pitch, j), arrays))
        if whole < end:
            k = end - whole
            put(y, i + whole, k, value(i + whole, k, of(a, pitch, whole), arrays))
