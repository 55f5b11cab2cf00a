"""Arithmetic of columns: rows of elements that each belong to a column of their own, in Numba.

A block is `rows` * `cols` contiguous elements from x[start]; the values of its first column lie at
`column` in arrays of one value per column. Sums take a few registers of columns at a time and down
several rows, so that the accumulators stay in registers; a column is one lane, and its additions
are in the order of the rows. The elementwise pass goes along the rows, as memory lies.

Sums are of x - shift and its square where dy is None, else of dy, dy * (x - mean) and x - mean.
"""

from __future__ import annotations

from .intrinsics import (
    LANES,
    cast,
    load_as,
    load_part_as,
    muladd,
    prefetch_as,
    splat,
    store,
    store_part,
)
from .jit import block, inline
from .registers import (
    BLOCK,
    LINE_LANES,
    add_product,
    line_zeros,
    sum_of_products,
    sum_zeros,
    take,
)
from .runs import gap, put

WRAP = LINE_LANES
"""Coefficients go on with this many of their first ones: a row may be read from its first line."""

GROUP_BYTES = 8192
"""Rows of one visit of a few columns hold this many bytes, but are 8 to 32 (of halves 8). The same
rows further on are asked for meanwhile: sums of (65536, 256) went from 17 to 51 GB/s (two threads),
because the hardware alone does not follow that many rows."""

AHEAD_BYTES = 8192
"""Streamed passes ask for lines this far ahead. In C that took inference of (65536, 256) from 1.11
of the copy to 0.98, its gradients from 1.26 of the triad to 1.05."""


@inline
def group_rows(x, cols, arrays):
    """Rows that are summed in registers, while the same number behind them is asked for."""
    most = BLOCK if x.itemsize == 2 else 32
    return min(most, max(8, GROUP_BYTES // (arrays * cols * x.itemsize)))


@inline
def column_shifts(shift, j, x, start, rows, c, k):
    """Near the mean of each of k columns, and the value itself where all are equal."""
    origin = take(x, start, k, splat(0.0))
    sums = origin - origin
    for r in range(1, rows):
        sums = sums + (take(x, start + r * c, k, origin) - origin)
    put(shift, j, k, muladd(sums, 1.0 / rows, origin), False)


@inline
def add_to(partial, at, k, v):
    """Add k lanes to partial[at] and what follows."""
    if k == v.lanes:
        store(partial, at, load_as(partial, at, v) + cast(v, partial))
    else:
        store_part(partial, at, k, load_part_as(partial, at, k, v) + cast(v, partial))


@inline
def column_sums(partial, at, wide, x, start, rows, cols, ahead, shift, j, k, zero):
    """Add the sums of x - shift and (x - shift)^2 of k columns."""
    s1, s2, origin = zero, zero, take(shift, j, k, zero)
    for i in range(start, start + rows * cols, cols):
        prefetch_as(x, i + ahead, zero)
        deviation = take(x, i, k, zero) - origin
        s1 = s1 + deviation
        s2 = muladd(deviation, deviation, s2)
    add_to(partial, at, k, s1)
    add_to(partial, at + wide, k, s2)


@inline
def column_grad_sums(partial, at, wide, dy, x, start, rows, cols, ahead, mean, j, k, zero):
    """Add the sums of dy, dy * (x - mean) and x - mean of k columns."""
    s1, s2, low, s3, centre = zero, zero, zero, zero, take(mean, j, k, zero)
    for i in range(start, start + rows * cols, cols):
        prefetch_as(dy, i + ahead, zero)
        prefetch_as(x, i + ahead, zero)
        g, deviation = take(dy, i, k, zero), take(x, i, k, zero) - centre
        s1 = s1 + g
        s2, low = add_product(s2, low, g, deviation)
        s3 = s3 + deviation
    add_to(partial, at, k, s1)
    add_to(partial, at + wide, k, sum_of_products(s2, low))
    add_to(partial, at + 2 * wide, k, s3)


@inline
def add_columns(partial, at, wide, dy, x, start, rows, cols, ahead, shift, j, k, zero):
    """Add the sums of k columns."""
    if dy is None:
        column_sums(partial, at, wide, x, start, rows, cols, ahead, shift, j, k, zero)
    else:
        column_grad_sums(partial, at, wide, dy, x, start, rows, cols, ahead, shift, j, k, zero)


@block
def block_sums(partial, at, wide, dy, x, start, rows, cols, shift, column):
    """Add the sums of a block to partial[at], partial[at + wide], ..."""
    arrays, zero = 1 if dy is None else 2, sum_zeros(x)
    together = group_rows(x, cols, arrays)
    ahead, whole = together * cols, cols // zero.lanes * zero.lanes
    for row in range(0, rows, together):
        i, r = start + row * cols, min(together, rows - row)
        for j in range(0, whole, zero.lanes):
            k = zero.lanes
            add_columns(
                partial, at + j, wide, dy, x, i + j, r, cols, ahead, shift, column + j, k, zero
            )
        if whole < cols:
            j, k = whole, cols - whole
            add_columns(
                partial, at + j, wide, dy, x, i + j, r, cols, ahead, shift, column + j, k, zero
            )


@block
def add_units(totals, at, partial, first, units, stride, columns):
    """Set totals[at] and the columns after it to the sums over the units, in their order."""
    for j in range(0, columns, LANES):
        k = min(LANES, columns - j)
        s = take(partial, first + j, k, splat(0.0))
        for u in range(1, units):
            s = s + take(partial, first + u * stride + j, k, s)
        put(totals, at + j, k, s, False)


@inline
def look_ahead(reads, i, like):
    """Ask for what a streamed pass reads later, of one or two arrays."""
    ahead = AHEAD_BYTES // reads[0].itemsize
    prefetch_as(reads[0], i + ahead, like)
    if len(reads) > 1:
        prefetch_as(reads[-1], i + ahead, like)


@block
def apply_block(y, start, rows, cols, streaming, value, of, a, pitch, arrays, reads):
    """Set a block to a value of `normcore.kernels.values`, in vectors stored to whole lines.

    Its coefficients are `of(a, pitch, column)`; `reads` are the arrays to look ahead in.

    Where rows are whole vectors, the elements before the first line are done once, and every row
    is read from there, rotated, with the coefficients rotated alike; else every row has a head of
    its own. Inference of (65536, 256) takes 0.98 of the copy, and took 1.79 down the columns with
    heads; (100352, 64) 0.91 instead of 2.26.
    """
    like = line_zeros(y)
    lanes, rotated, heads = like.lanes, cols % like.lanes == 0, cols >= 4 * LANES
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
        whole = begin + (end - begin) // lanes * lanes
        if lead > 0:
            put(y, i, lead, value(i, lead, like, of(a, pitch, 0, like), arrays), False)
        if streaming:
            for j in range(begin, whole, lanes):
                look_ahead(reads, i + j, like)
                put(y, i + j, lanes, value(i + j, lanes, like, of(a, pitch, j, like), arrays), True)
        else:
            for j in range(begin, whole, lanes):
                v = value(i + j, lanes, like, of(a, pitch, j, like), arrays)
                put(y, i + j, lanes, v, False)
        if whole < end:
            k = end - whole
            put(
                y, i + whole, k, value(i + whole, k, like, of(a, pitch, whole, like), arrays), False
            )
