"""Numba kernels of the cols family: a statistic is a column of m elements, c apart.

Columns are worked on in strips of one b that lie in the L2 cache: sums first, then the elementwise
pass. Threads share the strips. Where mean is absent nothing is centred (RMS norm): the same code
with a shift of 0.

`table` says what the arguments are, `normcore.reference` what is computed.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .columns import group_rows
from .intrinsics import LANES, LINE_BYTES, compute_dtype, memory
from .jit import block, inline, kernel, slab
from .layers import (
    add_units,
    coefficient_memory,
    parameter,
    strip_units,
)
from .optional import array_or_empty, mask_or_empty
from .registers import LINE_LANES
from .runs import gap, is_streamed
from .strip_settle import move_shifts, settle_backward, settle_forward, settle_given
from .strips import (
    apply_mixed_strip,
    apply_strip,
    grads_strip,
    inputs_of,
    mend,
    mixed_grads_strip,
    set_shifts,
    strip_grad_sums,
    strip_sums,
)

STRIP_BYTES = 2**18
"""A strip of one array: x and dy of it lie in the L2 cache."""

STRIP_MOST = 1024
"""Columns of a strip."""

SHIFT_ROWS = 8
"""The first shift of a column is near the mean of this many of its elements."""

SUMS, PART, SHIFT, SCALE, FLAG, COUNTS = 0, 3, 6, 7, 8, 9
"""Rows of a thread's memory: up to three sums of each column, of part of the rows too, its shift
and rstd, whether it is wide, whether it counts."""


@inline
def strip_columns(x, m, c):
    """Columns of a strip: whole vectors, about the same number in each strip."""
    most = max(LANES, min(STRIP_MOST, STRIP_BYTES // (m * x.itemsize)))
    vectors = -(-c // LANES)
    strips = -(-c // (most // LANES * LANES))
    return LANES * -(-vectors // strips)


@inline
def columns_before(y, x, width, c):
    """Columns by which strips begin earlier, so that they end where lines of a streamed y do.

    Forward, (32, 96, 3136) took 1.27 of Cython's time without, and takes 1.07. Backwards have none:
    their sums over rows would then depend on where arrays lie.
    """
    line = LINE_BYTES // y.itemsize
    if not is_streamed(y, x) or width % line != 0 or c % line != 0:
        return 0
    return (line - gap(memory(y), 0)) % line


@inline
def strip_count(width, before, c):
    """Strips of a b."""
    return -(-(c + before) // width)


@inline
def strip_bounds(k, width, before, m, c):
    """(b, first column, columns, first element) of strip k."""
    strips = strip_count(width, before, c)
    bi, begin = k // strips, k % strips * width - before
    column = max(0, begin)
    return bi, column, min(begin + width, c) - column, bi * m * c + column


@inline
def strip_memory(threads, width):
    """Sums, shifts and flags of the columns of a strip, for every thread."""
    return np.zeros((threads, COUNTS + 1, width + LINE_LANES))


@inline
def is_mixed(wide, width):
    """Whether some of the columns need float64."""
    found = False
    for j in range(width):
        found = found or wide[j] != 0.0
    return found


@inline
def set_counts(counts, masks, masked, at, width):
    """Whether the columns of a strip count."""
    for j in range(width):
        counts[j] = 0.0 if masked and masks[at + j] == 0 else 1.0


@block
def forward_share(
    y, mean, rstd, x, residual, mask, w, b, eps, activation, work, narrow, exact, begin, end, width,
    before, m, c
):  # fmt: skip
    """Statistics and y of the strips begin to end."""
    streaming, centre, masked = is_streamed(y, x), mean.size > 0, mask.size > 0
    to, of, inputs = memory(y), memory(x), inputs_of(x, residual, w, b)
    a, e, pitch = memory(narrow), memory(exact), work.shape[1]
    sums, shifts, wide = memory(work), memory(work[SHIFT]), memory(work[FLAG])
    means, inverses, masks = memory(mean), memory(rstd), memory(mask)
    counts, of_columns = memory(work[COUNTS]), (a, e, wide, pitch)
    together = group_rows(x, width, 1)
    for k in range(begin, end):
        bi, column, columns, start = strip_bounds(k, width, before, m, c)
        if centre:
            set_shifts(shifts, of, start, min(m, SHIFT_ROWS), c, columns)
        strip_sums(sums, pitch, of, start, m, c, columns, shifts, together)
        if centre and move_shifts(sums, shifts, of, pitch, columns, m):
            strip_sums(sums, pitch, of, start, m, c, columns, shifts, together)
        at = bi * c + column
        set_counts(counts, masks, masked, at, columns)
        settle_forward(
            means, inverses, at, counts, masked, sums, shifts, of_columns, eps, columns, m, centre
        )
        if is_mixed(wide, columns):
            apply_mixed_strip(to, None, inputs, start, m, c, columns, a, e, wide, pitch, activation)
        else:
            apply_strip(to, None, inputs, start, m, c, columns, a, pitch, activation, streaming)


@kernel
def forward(y, mean, rstd, x, residual, mask, weight, bias, eps, activation, b, m, c, threads):
    """Statistics of each column and y = activation(norm(x) * weight + bias + residual)."""
    ws, bs = parameter(weight, 1.0, m, x), parameter(bias, 0.0, m, x)
    more, flags, means = (
        array_or_empty(residual, x),
        mask_or_empty(mask),
        array_or_empty(mean, rstd),
    )
    width = strip_columns(x, m, c)
    before = columns_before(y, x, width, c)
    strips = b * strip_count(width, before, c)
    work, exact = strip_memory(threads, width), coefficient_memory(threads, width, rstd)
    narrow = coefficient_memory(threads, width, x)
    for t in prange(threads):
        begin, end = slab(strips, threads, t)
        forward_share(
            y, means, rstd, x, more, flags, ws, bs, eps, activation, work[t], narrow[t], exact[t],
            begin, end, width, before, m, c
        )  # fmt: skip


@block
def slope_share(
    g, dy, x, residual, mean, rstd, w, b, activation, work, narrow, exact, begin, end, width,
    before, m, c
):  # fmt: skip
    """Set g of the strips begin to end."""
    streaming, centre = is_streamed(g, x) and is_streamed(g, dy), mean.size > 0
    to, by, inputs = memory(g), memory(dy), inputs_of(x, residual, w, b)
    a, e, pitch, wide = memory(narrow), memory(exact), work.shape[1], memory(work[FLAG])
    means, inverses = memory(mean), memory(rstd)
    for k in range(begin, end):
        bi, column, columns, start = strip_bounds(k, width, before, m, c)
        at = bi * c + column
        settle_given(means, inverses, at, (a, e, wide, pitch), columns, centre)
        if is_mixed(wide, columns):
            apply_mixed_strip(to, by, inputs, start, m, c, columns, a, e, wide, pitch, activation)
        else:
            apply_strip(to, by, inputs, start, m, c, columns, a, pitch, activation, streaming)


@kernel
def activation_grads(g, dy, x, residual, mean, rstd, weight, bias, activation, b, m, c, threads):
    """Set g = dy * slope of the activation at the norm of x plus residual."""
    ws, bs = parameter(weight, 1.0, m, x), parameter(bias, 0.0, m, x)
    more, means, width = (
        array_or_empty(residual, x),
        array_or_empty(mean, rstd),
        strip_columns(x, m, c),
    )
    before = columns_before(g, x, width, c)
    strips = b * strip_count(width, before, c)
    work, exact = strip_memory(threads, width), coefficient_memory(threads, width, rstd)
    narrow = coefficient_memory(threads, width, x)
    for t in prange(threads):
        begin, end = slab(strips, threads, t)
        slope_share(
            g, dy, x, more, means, rstd, ws, bs, activation, work[t], narrow[t], exact[t], begin,
            end, width, before, m, c
        )  # fmt: skip


@inline
def given_columns(means, inverses, at, shifts, scales, width, centre):
    """Means and rstd of the columns of a strip."""
    for j in range(width):
        shifts[j] = means[at + j] if centre else 0.0
        scales[j] = inverses[at + j]


@block
def backward_share(
    dx, partial, dy, x, addend, mask, mean, rstd, w, work, narrow, exact, kept, begin, end, width,
    b, m, c
):  # fmt: skip
    """dx of the strips of the units begin to end, and the sums of dweight and dbias."""
    streaming, centre = is_streamed(dx, x) and is_streamed(dx, dy), mean.size > 0
    pitch, units, strips, masked = (
        work.shape[1],
        partial.shape[0],
        b * strip_count(width, 0, c),
        mask.size > 0,
    )
    to, parts, by, of, weights = memory(dx), memory(partial), memory(dy), memory(x), memory(w)
    inputs = by, of, memory(addend), addend.size > 0, weights
    a, e, flags = memory(narrow), memory(exact), memory(kept)
    sums, shifts, wide = memory(work), memory(work[SHIFT]), memory(work[FLAG])
    part, scales, counts = memory(work[PART]), memory(work[SCALE]), memory(work[COUNTS])
    means, inverses, masks = memory(mean), memory(rstd), memory(mask)
    given, offs, of_columns = (shifts, scales, counts), memory(work[2]), (a, e, wide, pitch)
    for u in range(begin, end):
        unit = u * 2 * m
        for j in range(unit, unit + 2 * m):
            parts[j] = 0.0
        low, high = slab(strips, units, u)
        for k in range(low, high):
            bi, column, columns, start = strip_bounds(k, width, 0, m, c)
            at = bi * c + column
            set_counts(counts, masks, masked, at, columns)
            given_columns(means, inverses, at, shifts, scales, columns, centre)
            strip_grad_sums(
                sums, part, pitch, parts, unit, m, by, of, weights, start, c, columns, given, masked
            )
            settle_backward(of, given, sums, flags, of_columns, columns, m, centre)
            if of.itemsize == 8 and centre:
                mend(parts, unit, m, by, start, c, columns, offs, counts)
            if is_mixed(wide, columns):
                mixed_grads_strip(
                    to, inputs, start, m, c, columns, a, e, wide, flags, masked, pitch
                )
            else:
                grads_strip(to, inputs, start, m, c, columns, a, flags, masked, pitch, streaming)


@kernel
def backward(dx, dweight, dbias, dy, x, addend, mask, mean, rstd, weight, b, m, c, threads):
    """Set dx (plus addend), dweight and dbias."""
    ws, more, flags = (
        parameter(weight, 1.0, m, rstd),
        array_or_empty(addend, x),
        mask_or_empty(mask),
    )
    means, width = array_or_empty(mean, rstd), strip_columns(x, m, c)
    units = strip_units(b * strip_count(width, 0, c))
    partial = np.empty((units, 2, m))
    work, exact = strip_memory(threads, width), coefficient_memory(threads, width, rstd)
    narrow = coefficient_memory(threads, width, x)
    kept = np.zeros((threads, width + LINE_LANES), compute_dtype(x))
    for t in prange(threads):
        begin, end = slab(units, threads, t)
        backward_share(
            dx, partial, dy, x, more, flags, means, rstd, ws, work[t], narrow[t], exact[t], kept[t],
            begin, end, width, b, m, c
        )  # fmt: skip
    for t in prange(threads):
        begin, end = slab(m, threads, t)
        add_units(dweight, dbias, partial, begin, end)
