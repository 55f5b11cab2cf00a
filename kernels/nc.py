"""Numba kernels of the nc family: c contiguous channels, m elements of each, c apart, b times.

A cell is one (b, channel). `forward` and `backward` give each thread strips of columns that fit the
L2 cache: sums first, then the elementwise pass, which reads x from there. Where a strip does not
fit, or there are too few, the threads share the units of rows instead, and x comes from memory
twice; the bits are the same.

`table` says what the arguments are, `normcore.reference` what is computed.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .coefficients import (
    BACKWARD_ROWS,
    BACKWARD_SUMS,
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
    total,
)
from .columns import (
    CHUNK_ROWS,
    add_units,
    apply_rows,
    apply_rows_grads,
    clear_columns,
    column_grad_sums,
    column_shifts,
    column_sums,
)
from .intrinsics import LANES, memory
from .jit import block, inline, kernel, slab
from .runs import is_streamed
from .schedule import STRIP_BYTES, STRIP_COLUMNS, UNIT_ROWS


@inline
def unit_count(m):
    """Units of a column."""
    return -(-m // UNIT_ROWS)


@inline
def strip_count(c):
    """Strips of columns."""
    return -(-c // STRIP_COLUMNS)


@inline
def strip_bounds(k, c):
    """First and last + 1 column of strip k."""
    return k * STRIP_COLUMNS, min(c, (k + 1) * STRIP_COLUMNS)


@inline
def is_shared_by_strips(x, arrays, b, m, c, threads):
    """Whether strips of that many arrays fit the cache and keep all threads busy."""
    strips = b * strip_count(c)
    fits = arrays * m * min(c, STRIP_COLUMNS) * x.itemsize <= STRIP_BYTES
    # Strips of rows that lie apart fall into few sets of the cache: backward of (1024, 1024) takes
    # 0.70 ms by strips and 0.47 ms by rows. With one unit there are no rows to share.
    together = c <= STRIP_COLUMNS or m <= UNIT_ROWS
    return fits and together and (strips >= 4 * threads or strips % threads == 0)


@block
def set_shifts(shift, x, bi, begin, end, m, c):
    """Shifts of columns, from their first rows."""
    rows, to, of = min(m, CHUNK_ROWS), memory(shift), memory(x)
    for ch in range(begin, end, LANES):
        k = min(LANES, end - ch)
        column_shifts(to, bi * c + ch, of, bi * m * c + ch, rows, c, k)
    for j in range(bi * c + begin, bi * c + end):
        shift[j] = finite_or_zero(shift[j])


@block
def sum_rows(partial, x, shift, cells, bi, u, begin, end, m, c):
    """Set partial[u] of columns."""
    last = min(m, (u + 1) * UNIT_ROWS)
    clear_columns(partial, u * FORWARD_SUMS * cells + bi * c, FORWARD_SUMS, cells, begin, end)
    for row in range(u * UNIT_ROWS, last, CHUNK_ROWS):
        rows = min(CHUNK_ROWS, last - row)
        for ch in range(begin, end, LANES):
            k, j = min(LANES, end - ch), bi * c + ch
            at, start = u * FORWARD_SUMS * cells + j, (bi * m + row) * c + ch
            column_sums(partial, at, cells, x, start, rows, c, shift, j, k)


@block
def sum_rows_grads(partial, dy, x, mean, cells, bi, u, begin, end, m, c):
    """Set partial[u] of columns."""
    last = min(m, (u + 1) * UNIT_ROWS)
    clear_columns(partial, u * BACKWARD_SUMS * cells + bi * c, BACKWARD_SUMS, cells, begin, end)
    for row in range(u * UNIT_ROWS, last, CHUNK_ROWS):
        rows = min(CHUNK_ROWS, last - row)
        for ch in range(begin, end, LANES):
            k, j = min(LANES, end - ch), bi * c + ch
            at, start = u * BACKWARD_SUMS * cells + j, (bi * m + row) * c + ch
            column_grad_sums(partial, at, cells, dy, x, start, rows, c, mean, j, k)


@block
def sum_moved(partial, x, shift, bad, cells, u, bi, begin, end, m, c):
    """Set partial[u] again, for those of the columns whose shift was moved."""
    for ch in range(begin, end):
        if bad[bi * c + ch]:
            sum_rows(partial, x, shift, cells, bi, u, ch, ch + 1, m, c)


@block
def sum_share(partial, x, shift, first, last, m, c):
    """Units `first` to `last` of all b."""
    units, cells = unit_count(m), shift.size
    partial, x, shift = memory(partial), memory(x), memory(shift)
    for w in range(first, last):
        sum_rows(partial, x, shift, cells, w // units, w % units, 0, c, m, c)


@block
def sum_moved_share(partial, x, shift, bad, first, last, m, c):
    """Units `first` to `last` of all b, for those of the columns whose shift was moved."""
    units, cells = unit_count(m), shift.size
    partial, x, shift = memory(partial), memory(x), memory(shift)
    for w in range(first, last):
        sum_moved(partial, x, shift, bad, cells, w % units, w // units, 0, c, m, c)


@block
def sum_grads_share(partial, dy, x, mean, first, last, m, c):
    """Units `first` to `last` of all b."""
    units, cells = unit_count(m), mean.size
    partial, dy, x, mean = memory(partial), memory(dy), memory(x), memory(mean)
    for w in range(first, last):
        sum_rows_grads(partial, dy, x, mean, cells, w // units, w % units, 0, c, m, c)


@block
def apply_share(y, x, narrow, exact, wide, first, last, m, c):
    """Units `first` to `last` of all b, last ones first: their x may still be in the cache."""
    units, cells, streaming = unit_count(m), wide.size, is_streamed(y, x)
    y, x = memory(y), memory(x)
    narrow, exact, wide = memory(narrow), memory(exact), memory(wide)
    for w in range(last - 1, first - 1, -1):
        bi, row = w // units, w % units * UNIT_ROWS
        stop = min(m, row + UNIT_ROWS)
        apply_rows(y, x, narrow, exact, wide, cells, streaming, bi, row, stop, 0, c, m, c)


@block
def apply_grads_share(dx, dy, x, narrow, exact, wide, training, first, last, m, c):
    """Units `first` to `last` of all b, last ones first: their x may still be in the cache."""
    units, cells = unit_count(m), wide.size
    streaming = is_streamed(dx, x) and is_streamed(dx, dy)
    dx, dy, x = memory(dx), memory(dy), memory(x)
    narrow, exact, wide = memory(narrow), memory(exact), memory(wide)
    for w in range(last - 1, first - 1, -1):
        bi, row = w // units, w % units * UNIT_ROWS
        stop = min(m, row + UNIT_ROWS)
        apply_rows_grads(
            dx, dy, x, narrow, exact, wide, cells, training, streaming, bi, row, stop, 0, c, m, c
        )


@block
def forward_strips(
    y, mean, var, rstd, x, weight, bias, eps, narrow, exact, wide, partial, sums, shift, bad,
    first, last, m, c
):  # fmt: skip
    """`forward` of the strips `first` to `last`."""
    units, strips, cells, streaming = unit_count(m), strip_count(c), shift.size, is_streamed(y, x)
    to, of, shifts, parts = memory(y), memory(x), memory(shift), memory(partial)
    a, e, flags = memory(narrow), memory(exact), memory(wide)
    for w in range(first, last):
        bi = w // strips
        begin, end = strip_bounds(w % strips, c)
        j, stop = bi * c + begin, bi * c + end
        set_shifts(shift, x, bi, begin, end, m, c)
        for u in range(units):
            sum_rows(parts, of, shifts, cells, bi, u, begin, end, m, c)
        add_units(sums, partial, j, stop)
        if move_bad_shifts(shift, bad, sums, j, stop, m):
            for u in range(units):
                sum_moved(parts, of, shifts, bad, cells, u, bi, begin, end, m, c)
            add_units(sums, partial, j, stop)
        finish_forward(
            mean, var, rstd, narrow, exact, wide, sums, shift, weight, bias, eps, j, stop, m, c
        )
        apply_rows(to, of, a, e, flags, cells, streaming, bi, 0, m, begin, end, m, c)


@block
def backward_strips(
    dx, dweights, dbiases, dy, x, mean, rstd, weight, training, narrow, exact, wide, partial, sums,
    first, last, m, c
):  # fmt: skip
    """`backward` of the strips `first` to `last`."""
    units, strips, cells = unit_count(m), strip_count(c), wide.size
    streaming = is_streamed(dx, x) and is_streamed(dx, dy)
    to, by, of, means, parts = memory(dx), memory(dy), memory(x), memory(mean), memory(partial)
    a, e, flags = memory(narrow), memory(exact), memory(wide)
    for w in range(first, last):
        bi = w // strips
        begin, end = strip_bounds(w % strips, c)
        j, stop = bi * c + begin, bi * c + end
        for u in range(units):
            sum_rows_grads(parts, by, of, means, cells, bi, u, begin, end, m, c)
        add_units(sums, partial, j, stop)
        finish_backward(
            dweights, dbiases, narrow, exact, wide, sums, mean, rstd, weight, training, j, stop,
            m, c
        )  # fmt: skip
        apply_rows_grads(
            to, by, of, a, e, flags, cells, training, streaming, bi, 0, m, begin, end, m, c
        )


@block
def add_cells(channels, cells, b, c):
    """Sums over b. Not a NumPy sum in a kernel: Numba would make that a parallel reduction."""
    for ch in range(c):
        value = 0.0
        for j in range(ch, b * c, c):
            value += cells[j]
        channels[ch] = value


@kernel
def moments(mean, m2, x, b, m, c, threads):
    """Mean and sum of squared deviations of each cell."""
    units, cells = unit_count(m), b * c
    partial, sums = np.empty((units, FORWARD_SUMS, cells)), np.empty((1, FORWARD_SUMS, cells))
    shift, bad = np.empty(cells), np.empty(cells, np.bool_)
    for bi in range(b):
        set_shifts(shift, x, bi, 0, c, m, c)
    for t in prange(threads):
        begin, end = slab(b * units, threads, t)
        sum_share(partial, x, shift, begin, end, m, c)
    add_units(sums, partial, 0, cells)
    if move_bad_shifts(shift, bad, sums, 0, cells, m):
        for t in prange(threads):
            begin, end = slab(b * units, threads, t)
            sum_moved_share(partial, x, shift, bad, begin, end, m, c)
        add_units(sums, partial, 0, cells)
    for j in range(cells):
        s1, s2 = total(sums, 0, j), total(sums, 1, j)
        mean[j] = shift[j] + s1 / m
        m2[j] = squares(s1, s2, m)


@kernel
def apply(y, x, mean, var, weight, bias, eps, b, m, c, threads):
    """Set y = (x - mean) / sqrt(var + eps) * weight + bias."""
    cells = b * c
    narrow, exact = np.empty((FORWARD_ROWS, cells), x.dtype), np.empty((FORWARD_ROWS, cells))
    wide = np.empty(cells)
    for j in range(cells):
        rstd = inverse_deviation(var[j], eps)
        put_forward(narrow, exact, wide, j, np.float64(mean[j]), 0.0, rstd, weight, bias, j % c)
    for t in prange(threads):
        begin, end = slab(b * unit_count(m), threads, t)
        apply_share(y, x, narrow, exact, wide, begin, end, m, c)


@kernel
def forward(y, mean, var, rstd, x, weight, bias, eps, b, m, c, threads):
    """Statistics of each cell and y = (x - mean) * rstd * weight + bias."""
    units, strips, cells = unit_count(m), strip_count(c), b * c
    narrow, exact = np.empty((FORWARD_ROWS, cells), x.dtype), np.empty((FORWARD_ROWS, cells))
    wide, bad, shift = np.empty(cells), np.empty(cells, np.bool_), np.empty(cells)
    partial, sums = np.empty((units, FORWARD_SUMS, cells)), np.empty((1, FORWARD_SUMS, cells))
    if is_shared_by_strips(x, 1, b, m, c, threads):
        for t in prange(threads):
            begin, end = slab(b * strips, threads, t)
            forward_strips(
                y, mean, var, rstd, x, weight, bias, eps, narrow, exact, wide, partial, sums,
                shift, bad, begin, end, m, c
            )  # fmt: skip
    else:
        for bi in range(b):
            set_shifts(shift, x, bi, 0, c, m, c)
        for t in prange(threads):
            begin, end = slab(b * units, threads, t)
            sum_share(partial, x, shift, begin, end, m, c)
        add_units(sums, partial, 0, cells)
        if move_bad_shifts(shift, bad, sums, 0, cells, m):
            for t in prange(threads):
                begin, end = slab(b * units, threads, t)
                sum_moved_share(partial, x, shift, bad, begin, end, m, c)
            add_units(sums, partial, 0, cells)
        finish_forward(
            mean, var, rstd, narrow, exact, wide, sums, shift, weight, bias, eps, 0, cells, m, c
        )
        for t in prange(threads):
            begin, end = slab(b * units, threads, t)
            apply_share(y, x, narrow, exact, wide, begin, end, m, c)


@kernel
def reduce_grads(sum_dy, sum_dy_xmu, dy, x, mean, b, m, c, threads):
    """Sums of dy and of dy * (x - mean) of each cell."""
    units, cells = unit_count(m), b * c
    partial, sums = np.empty((units, BACKWARD_SUMS, cells)), np.empty((1, BACKWARD_SUMS, cells))
    for t in prange(threads):
        begin, end = slab(b * units, threads, t)
        sum_grads_share(partial, dy, x, mean, begin, end, m, c)
    add_units(sums, partial, 0, cells)
    for j in range(cells):
        sum_dy[j], sum_dy_xmu[j] = sums[0, 0, j], sums[0, 1, j]


@kernel
def apply_grads(dx, dy, x, mean, rstd, weight, sum_dy, sum_dy_xmu, count, b, m, c, threads):
    """Set dx = weight * rstd * (dy - sum_dy / count - (x - mean) * rstd^2 * sum_dy_xmu / count)."""
    cells = b * c
    narrow, exact = np.empty((BACKWARD_ROWS, cells), x.dtype), np.empty((BACKWARD_ROWS, cells))
    wide = np.empty(cells)
    for j in range(cells):
        p, q = sum_dy[j], sum_dy_xmu[j]
        put_backward(narrow, exact, wide, j, mean[j], 0.0, rstd[j], weight, p, q, count, j % c)
    for t in prange(threads):
        begin, end = slab(b * unit_count(m), threads, t)
        apply_grads_share(dx, dy, x, narrow, exact, wide, True, begin, end, m, c)


@kernel
def backward(dx, dweight, dbias, dy, x, mean, rstd, weight, training, b, m, c, threads):
    """Set dx, dweight and dbias; with training=False mean and rstd are constants."""
    units, strips, cells = unit_count(m), strip_count(c), b * c
    narrow, exact = np.empty((BACKWARD_ROWS, cells), x.dtype), np.empty((BACKWARD_ROWS, cells))
    wide, dweights, dbiases = np.empty(cells), np.empty(cells), np.empty(cells)
    partial, sums = np.empty((units, BACKWARD_SUMS, cells)), np.empty((1, BACKWARD_SUMS, cells))
    if is_shared_by_strips(x, 2, b, m, c, threads):
        for t in prange(threads):
            begin, end = slab(b * strips, threads, t)
            backward_strips(
                dx, dweights, dbiases, dy, x, mean, rstd, weight, training, narrow, exact, wide,
                partial, sums, begin, end, m, c
            )  # fmt: skip
    else:
        for t in prange(threads):
            begin, end = slab(b * units, threads, t)
            sum_grads_share(partial, dy, x, mean, begin, end, m, c)
        add_units(sums, partial, 0, cells)
        finish_backward(
            dweights, dbiases, narrow, exact, wide, sums, mean, rstd, weight, training, 0, cells,
            m, c
        )  # fmt: skip
        for t in prange(threads):
            begin, end = slab(b * units, threads, t)
            apply_grads_share(dx, dy, x, narrow, exact, wide, training, begin, end, m, c)
    add_cells(dweight, dweights, b, c)
    add_cells(dbias, dbiases, b, c)
