"""Numba kernels of the nc family: c contiguous channels, m elements of each, c apart, b times.

Rows of few channels are read `fold` at a time as one wide row, so that every vector is full; the
columns of a channel are added up at the end. A pass has three sweeps: sums, over units of rows;
statistics and coefficients, over cells (one (b, channel) each), from the units' sums in order;
elementwise, over the units again. A thread's share of the units is the same in both sweeps, and
the second runs backwards: the end of its share is what the first left in the cache.

Strips of columns that fit a core's cache, to read x from memory once, were tried: rows 4 KB apart
fall into few of its sets, and backward of (1024, 1024) took 0.70 ms against 0.47 by rows.

`table` says what the arguments are, `normcore.reference` what is computed.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .coefficients import (
    BACKWARD_ROWS,
    BACKWARD_SUMS,
    FACTOR,
    FORWARD_ROWS,
    FORWARD_SUMS,
    finish_backward,
    finish_forward,
    finite_or_zero,
    inverse_deviation,
    move_bad_shifts,
    put_backward,
    put_forward,
    squares,
)
from .columns import (
    WRAP,
    add_units,
    apply_block,
    apply_mixed,
    block_sums,
    column_shifts,
)
from .intrinsics import LANES, memory
from .jit import block, inline, kernel, slab
from .runs import is_streamed
from .schedule import UNIT_BLOCK, UNIT_BLOCK_LEAST, UNITS

FOLD = 64
"""Rows are folded until they hold this many columns."""

FOLD_MOST = 1024
"""They are whole vectors where that takes no more columns than this."""

SHIFT_ROWS = 8
"""The first shift of a channel is near the mean of this many of its elements."""

SETTLE_CELLS = 256
"""From this many cells on the threads share the statistics, which a launch of 2 us must be worth:
25 of the 330 us of forward of (1024, 1024)."""


@inline
def fold_of(m, c):
    """Rows that are read as one."""
    whole = 1
    while whole * c % LANES != 0:
        whole *= 2
    fold = whole * -(-FOLD // (whole * c))
    if fold * c > FOLD_MOST:
        fold = -(-FOLD // c)
    return max(1, min(m, fold))


@inline
def unit_rows(m, c):
    """Folded rows of a unit."""
    elements = max(UNIT_BLOCK_LEAST, min(UNIT_BLOCK, m * c // UNITS))
    return max(8, elements // (fold_of(m, c) * c) // 8 * 8)


@inline
def unit_count(m, c):
    """Units of one b."""
    return -(-m // (fold_of(m, c) * unit_rows(m, c)))


@inline
def unit_bounds(u, m, c):
    """(first folded row, folded rows, columns of a shorter row behind them) of unit u."""
    fold, rows = fold_of(m, c), unit_rows(m, c)
    row, rest = u * rows, m % fold * c if u == unit_count(m, c) - 1 else 0
    return row, max(0, min(rows, m // fold - row)), rest


@inline
def scratch(units, quantities, b, m, c):
    """Memory for the sums of every unit, and for those of every column."""
    wide = fold_of(m, c) * c
    return np.empty(units * quantities * wide), np.empty(quantities * b * wide)


@block
def set_shifts(shift, x, b, m, c):
    """Shifts of all cells, from their first rows."""
    rows, to, of = min(m, SHIFT_ROWS), memory(shift), memory(x)
    for bi in range(b):
        for ch in range(0, c, LANES):
            k = min(LANES, c - ch)
            column_shifts(to, bi * c + ch, of, bi * m * c + ch, rows, c, k)
    for j in range(b * c):
        shift[j] = finite_or_zero(shift[j])


@block
def spread(columns, values, wrap, b, m, c):
    """Repeat rows of values of cells under the folded columns, `wrap` of them again at the end."""
    width = fold_of(m, c) * c + wrap
    for q in range(values.shape[0]):
        for bi in range(b):
            for f in range(0, width, c):
                at, of = bi * width + f, bi * c
                for j in range(min(c, width - f)):
                    columns[q, at + j] = values[q, of + j]


@block
def sum_share(partial, dy, x, shifts, quantities, first, last, m, c):
    """Set partial[`first`] to partial[`last` - 1], the sums of these units of all b."""
    units, wide = unit_count(m, c), fold_of(m, c) * c
    parts, by, of, centres = memory(partial), memory(dy), memory(x), memory(shifts)
    for w in range(first, last):
        at, bi = w * quantities * wide, w // units
        row, rows, rest = unit_bounds(w % units, m, c)
        for j in range(at, at + quantities * wide):
            parts[j] = 0.0
        start, column = bi * m * c + row * wide, bi * wide
        block_sums(parts, at, wide, by, of, start, rows, wide, centres, column)
        if rest > 0:
            start += rows * wide
            block_sums(parts, at, wide, by, of, start, 1, rest, centres, column)


@block
def total_share(sums, totals, partial, begin, end, m, c):
    """Set sums[0] of cells: over units in their order, then over the columns of a channel."""
    fold, units, quantities = fold_of(m, c), unit_count(m, c), sums.shape[1]
    wide, cells = fold * c, sums.shape[2]
    parts, folded = memory(partial), memory(totals)
    stride = quantities * wide
    for bi in range(begin // c, (end - 1) // c + 1):
        low, high = max(begin - bi * c, 0), min(end - bi * c, c)
        for q in range(quantities):
            at, of = q * (cells // c) * wide + bi * wide, bi * units * stride + q * wide
            if high - low == c:
                add_units(folded, at, parts, of, units, stride, wide)
            else:
                for f in range(low, wide, c):
                    add_units(folded, at + f, parts, of + f, units, stride, high - low)
            for ch in range(low, high):
                s = 0.0
                for f in range(at + ch, at + wide, c):
                    s += folded[f]
                sums[0, q, bi * c + ch] = s


@block
def settle_forward(
    mean, var, rstd, narrow, exact, wide, partial, totals, sums, shift, bad, weight, bias, eps,
    again, begin, end, m, c
):  # fmt: skip
    """Statistics and coefficients of cells, or a better shift for them."""
    total_share(sums, totals, partial, begin, end, m, c)
    if not again:
        move_bad_shifts(shift, bad, sums, begin, end, m, narrow.itemsize)
    finish_forward(
        mean, var, rstd, narrow, exact, wide, sums, shift, weight, bias, eps, begin, end, m, c
    )


@block
def settle_backward(
    dweights, dbiases, narrow, exact, wide, partial, totals, sums, mean, rstd, weight, training,
    begin, end, m, c
):  # fmt: skip
    """Gradients and coefficients of cells."""
    total_share(sums, totals, partial, begin, end, m, c)
    finish_backward(
        dweights, dbiases, narrow, exact, wide, sums, mean, rstd, weight, training, begin, end,
        m, c
    )  # fmt: skip


@inline
def is_any(flags):
    """Whether one of the flags is not zero."""
    found = False
    for flag in flags:
        found = found or flag != 0
    return found


@block
def folded(narrow, exact, wide, b, m, c):
    """Coefficients of the columns, and whether some of them need those in float64."""
    mixed, columns = is_any(wide[0]), b * (fold_of(m, c) * c + WRAP)
    a = np.empty((narrow.shape[0], columns), narrow.dtype)
    e, flags = np.empty((narrow.shape[0], columns)), np.empty((1, columns))
    spread(a, narrow, WRAP, b, m, c)
    if mixed:
        spread(e, exact, WRAP, b, m, c)
        spread(flags, wide, WRAP, b, m, c)
    return a, e, flags, mixed


@block
def apply_share(y, dy, x, narrow, exact, wide, mixed, first, last, m, c):
    """Units `first` to `last` of all b, last ones first."""
    units, cols, streaming = unit_count(m, c), fold_of(m, c) * c, is_streamed(y, x)
    if dy is not None:
        streaming = streaming and is_streamed(y, dy)
    pitch = narrow.shape[1]
    to, by, of = memory(y), memory(dy), memory(x)
    a, e, flags = memory(narrow), memory(exact), memory(wide)
    for w in range(last - 1, first - 1, -1):
        bi = w // units
        row, rows, rest = unit_bounds(w % units, m, c)
        start, column = bi * m * c + row * cols, bi * (cols + WRAP)
        behind = start + rows * cols
        if mixed:
            apply_mixed(to, by, of, start, rows, cols, a, e, flags, pitch, column)
            if rest > 0:
                apply_mixed(to, by, of, behind, 1, rest, a, e, flags, pitch, column)
        else:
            apply_block(to, by, of, start, rows, cols, a, pitch, column, streaming)
            if rest > 0:
                apply_block(to, by, of, behind, 1, rest, a, pitch, column, streaming)


@block
def as_scale(coefficients):
    """Make coefficients of a gradient ones of y = x * factor: the statistics are constants."""
    for q in range(FORWARD_ROWS):
        if q != FACTOR:
            for j in range(coefficients.shape[1]):
                coefficients[q, j] = 0.0


@block
def add_cells(channels, cells, b, c):
    """Sums over b. Not a NumPy sum in a kernel: Numba would make that a parallel reduction."""
    for ch in range(c):
        s = 0.0
        for j in range(ch, b * c, c):
            s += cells[j]
        channels[ch] = s


@kernel
def moments(mean, m2, x, b, m, c, threads):
    """Mean and sum of squared deviations of each cell."""
    units, cells, columns = b * unit_count(m, c), b * c, b * fold_of(m, c) * c
    partial, totals = scratch(units, FORWARD_SUMS, b, m, c)
    sums, bad = np.empty((1, FORWARD_SUMS, cells)), np.empty(cells, np.bool_)
    shift, shifts = np.empty((1, cells)), np.empty((1, columns))
    set_shifts(shift[0], x, b, m, c)
    for again in range(2):
        spread(shifts, shift, 0, b, m, c)
        for t in prange(threads):
            begin, end = slab(units, threads, t)
            sum_share(partial, None, x, shifts, FORWARD_SUMS, begin, end, m, c)
        total_share(sums, totals, partial, 0, cells, m, c)
        if again or not move_bad_shifts(shift[0], bad, sums, 0, cells, m, x.itemsize):
            break
    for j in range(cells):
        s1, s2 = sums[0, 0, j], sums[0, 1, j]
        mean[j] = shift[0, j] + s1 / m
        m2[j] = squares(s1, s2, m)


@kernel
def apply(y, x, mean, var, weight, bias, eps, b, m, c, threads):
    """Set y = (x - mean) / sqrt(var + eps) * weight + bias."""
    units, cells = b * unit_count(m, c), b * c
    narrow, exact = np.empty((FORWARD_ROWS, cells), x.dtype), np.empty((FORWARD_ROWS, cells))
    wide = np.empty((1, cells))
    for j in range(cells):
        rstd = inverse_deviation(var[j], eps)
        w = 1.0 if weight is None else weight[j % c]
        shift = 0.0 if bias is None else bias[j % c]
        put_forward(narrow, exact, wide[0], j, np.float64(mean[j]), 0.0, rstd, w, shift)
    a, e, flags, mixed = folded(narrow, exact, wide, b, m, c)
    for t in prange(threads):
        begin, end = slab(units, threads, t)
        apply_share(y, None, x, a, e, flags, mixed, begin, end, m, c)


@kernel
def forward(y, mean, var, rstd, x, weight, bias, eps, b, m, c, threads):
    """Statistics of each cell and y = (x - mean) * rstd * weight + bias."""
    units, cells, columns = b * unit_count(m, c), b * c, b * fold_of(m, c) * c
    narrow, exact = np.empty((FORWARD_ROWS, cells), x.dtype), np.empty((FORWARD_ROWS, cells))
    partial, totals = scratch(units, FORWARD_SUMS, b, m, c)
    sums, bad = np.empty((1, FORWARD_SUMS, cells)), np.empty(cells, np.bool_)
    shift, shifts, wide = np.empty((1, cells)), np.empty((1, columns)), np.empty((1, cells))
    set_shifts(shift[0], x, b, m, c)
    for again in range(2):
        spread(shifts, shift, 0, b, m, c)
        for t in prange(threads):
            begin, end = slab(units, threads, t)
            sum_share(partial, None, x, shifts, FORWARD_SUMS, begin, end, m, c)
        if threads > 1 and cells >= SETTLE_CELLS:
            for t in prange(threads):
                begin, end = slab(cells, threads, t)
                settle_forward(
                    mean, var, rstd, narrow, exact, wide[0], partial, totals, sums, shift[0], bad,
                    weight, bias, eps, again, begin, end, m, c
                )  # fmt: skip
        else:
            settle_forward(
                mean, var, rstd, narrow, exact, wide[0], partial, totals, sums, shift[0], bad,
                weight, bias, eps, again, 0, cells, m, c
            )  # fmt: skip
        if again or not is_any(bad):
            break
    a, e, flags, mixed = folded(narrow, exact, wide, b, m, c)
    for t in prange(threads):
        begin, end = slab(units, threads, t)
        apply_share(y, None, x, a, e, flags, mixed, begin, end, m, c)


@kernel
def reduce_grads(sum_dy, sum_dy_xmu, dy, x, mean, b, m, c, threads):
    """Sums of dy and of dy * (x - mean) of each cell."""
    units, cells = b * unit_count(m, c), b * c
    partial, totals = scratch(units, BACKWARD_SUMS, b, m, c)
    sums, means = np.empty((1, BACKWARD_SUMS, cells)), np.empty((1, b * fold_of(m, c) * c))
    spread(means, mean.reshape((1, cells)), 0, b, m, c)
    for t in prange(threads):
        begin, end = slab(units, threads, t)
        sum_share(partial, dy, x, means, BACKWARD_SUMS, begin, end, m, c)
    total_share(sums, totals, partial, 0, cells, m, c)
    for j in range(cells):
        sum_dy[j], sum_dy_xmu[j] = sums[0, 0, j], sums[0, 1, j]


@kernel
def apply_grads(dx, dy, x, mean, rstd, weight, sum_dy, sum_dy_xmu, count, b, m, c, threads):
    """Set dx = weight * rstd * (dy - sum_dy / count - (x - mean) * rstd^2 * sum_dy_xmu / count)."""
    units, cells = b * unit_count(m, c), b * c
    narrow, exact = np.empty((BACKWARD_ROWS, cells), x.dtype), np.empty((BACKWARD_ROWS, cells))
    wide = np.empty((1, cells))
    for j in range(cells):
        w, p, q = 1.0 if weight is None else weight[j % c], sum_dy[j], sum_dy_xmu[j]
        put_backward(narrow, exact, wide[0], j, mean[j], 0.0, rstd[j], w, p, q, count)
    a, e, flags, mixed = folded(narrow, exact, wide, b, m, c)
    for t in prange(threads):
        begin, end = slab(units, threads, t)
        apply_share(dx, dy, x, a, e, flags, mixed, begin, end, m, c)


@kernel
def backward(dx, dweight, dbias, dy, x, mean, rstd, weight, training, b, m, c, threads):
    """Set dx, dweight and dbias; with training=False mean and rstd are constants."""
    units, cells = b * unit_count(m, c), b * c
    narrow, exact = np.empty((BACKWARD_ROWS, cells), x.dtype), np.empty((BACKWARD_ROWS, cells))
    wide, dweights, dbiases = np.empty((1, cells)), np.empty(cells), np.empty(cells)
    partial, totals = scratch(units, BACKWARD_SUMS, b, m, c)
    sums, means = np.empty((1, BACKWARD_SUMS, cells)), np.empty((1, b * fold_of(m, c) * c))
    spread(means, mean.reshape((1, cells)), 0, b, m, c)
    for t in prange(threads):
        begin, end = slab(units, threads, t)
        sum_share(partial, dy, x, means, BACKWARD_SUMS, begin, end, m, c)
    if threads > 1 and cells >= SETTLE_CELLS:
        for t in prange(threads):
            begin, end = slab(cells, threads, t)
            settle_backward(
                dweights, dbiases, narrow, exact, wide[0], partial, totals, sums, mean, rstd,
                weight, training, begin, end, m, c
            )  # fmt: skip
    else:
        settle_backward(
            dweights, dbiases, narrow, exact, wide[0], partial, totals, sums, mean, rstd,
            weight, training, 0, cells, m, c
        )  # fmt: skip
    add_cells(dweight, dweights, b, c)
    add_cells(dbias, dbiases, b, c)
    if not training:
        as_scale(narrow)
        as_scale(exact)
    a, e, flags, mixed = folded(narrow, exact, wide, b, m, c)
    for t in prange(threads):
        begin, end = slab(units, threads, t)
        if training:
            apply_share(dx, dy, x, a, e, flags, mixed, begin, end, m, c)
        else:
            apply_share(dx, None, dy, a, e, flags, mixed, begin, end, m, c)
