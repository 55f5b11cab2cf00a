"""Numba kernels of the cols family: a statistic is a column of m elements, c apart.

Columns are worked on in strips of one b that lie in the L2 cache: sums first, then the elementwise
pass. Threads share the strips. Where mean is absent nothing is centred (RMS norm): the same code
with a shift of 0.

`table` says what the arguments are, `normcore.reference` what is computed.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .coefficients import (
    BACKWARD_ROWS,
    FORWARD_ROWS,
    finite_or_zero,
    inverse_deviation,
    is_bad_shift,
    put_backward,
    put_forward,
    squares,
)
from .columns import column_shifts
from .intrinsics import LANES, compute_dtype, memory
from .jit import block, inline, kernel, slab
from .layers import add_units, elements_of, flags_of, numbers_of, parameter, unit_count
from .runs import is_streamed
from .strips import (
    add_row_sums,
    apply_mixed_strip,
    apply_strip,
    grads_strip,
    mixed_grads_strip,
    strip_grad_sums,
    strip_sums,
)

STRIP_BYTES = 2**18
"""A strip of one array: x and dy of it lie in the L2 cache."""

STRIP_MOST = 1024
"""Columns of a strip."""

SHIFT_ROWS = 8
"""The first shift of a column is near the mean of this many of its elements."""

TOTALS, SHIFT, WIDE = 0, 3, 4
"""Rows of a thread's memory: up to three sums of each column, its shift, whether it is wide."""

KEPT = BACKWARD_ROWS
"""The row behind the coefficients of a gradient: whether a column counts."""


@inline
def strip_columns(x, m, c):
    """Columns of a strip: whole vectors, about the same number in each strip."""
    most = max(LANES, min(STRIP_MOST, STRIP_BYTES // (m * x.itemsize)))
    vectors = -(-c // LANES)
    strips = -(-c // (most // LANES * LANES))
    return LANES * -(-vectors // strips)


@inline
def strip_bounds(k, width, m, c):
    """(b, first column, columns, first element) of strip k."""
    strips = -(-c // width)
    bi, begin = k // strips, k % strips * width
    return bi, begin, min(width, c - begin), bi * m * c + begin


@inline
def scratch(threads, rows, width, x):
    """(sums and shifts, coefficients, those in float64) of a strip, for every thread."""
    pitch = width + LANES  # vectors behind the last column read there
    return (
        np.zeros((threads, WIDE + 1, pitch)),
        np.zeros((threads, rows, pitch), compute_dtype(x)),
        np.zeros((threads, rows, pitch)),
    )


@inline
def is_mixed(wide, width):
    """Whether some of the columns need float64."""
    found = False
    for j in range(width):
        found = found or wide[j] != 0.0
    return found


@block
def move_shifts(work, width, m, itemsize):
    """Where digits were lost, the mean becomes the shift; returns whether there was one."""
    moved = False
    for j in range(width):
        if is_bad_shift(work[TOTALS, j], work[TOTALS + 1, j], m, itemsize):
            work[SHIFT, j] += work[TOTALS, j] / m
            moved = True
    return moved


@block
def settle_forward(
    mean, rstd, mask, work, narrow, exact, eps, at, width, m, centre
):  # fmt: skip
    """Statistics and coefficients of the columns of a strip, from statistic `at` on."""
    masked = mask.size > 0
    for j in range(width):
        counts = not masked or mask[at + j] != 0
        s1, shift = work[TOTALS, j], work[SHIFT, j]
        rest = s1 / m if centre and counts else 0.0
        m2 = squares(s1, work[TOTALS + 1, j], m) if centre else work[TOTALS + 1, j]
        shift = shift if counts else 0.0
        inverse = inverse_deviation(m2 / m, eps) if counts else 0.0
        rstd[at + j] = inverse
        if centre:
            mean[at + j] = shift + rest
        put_forward(narrow, exact, work[WIDE], j, shift, rest, inverse, 1.0, 0.0)


@block
def forward_share(
    y, mean, rstd, x, residual, mask, w, b, eps, activation, work, narrow, exact, begin, end, width,
    m, c
):  # fmt: skip
    """Statistics and y of the strips begin to end."""
    streaming, centre, fused = is_streamed(y, x), mean.size > 0, residual.size > 0
    pitch, itemsize = work.shape[1], max(4, x.itemsize)
    to, of, more, weights, biases = memory(y), memory(x), memory(residual), memory(w), memory(b)
    a, e, shifts = memory(narrow), memory(exact), memory(work[SHIFT])
    sums, wide = memory(work), memory(work[WIDE])
    for k in range(begin, end):
        bi, column, columns, start = strip_bounds(k, width, m, c)
        if centre:
            for j in range(0, columns, LANES):
                n = min(LANES, columns - j)
                column_shifts(shifts, j, of, start + j, min(m, SHIFT_ROWS), c, n)
            for j in range(columns):
                shifts[j] = finite_or_zero(shifts[j])
        strip_sums(sums, pitch, of, start, m, c, columns, shifts)
        if centre and move_shifts(work, columns, m, itemsize):
            strip_sums(sums, pitch, of, start, m, c, columns, shifts)
        settle_forward(
            mean, rstd, mask, work, narrow, exact, eps, bi * c + column, columns, m, centre
        )
        if is_mixed(wide, columns):
            apply_mixed_strip(
                to, None, of, more, fused, weights, biases, start, m, c, columns, a, e, wide,
                pitch, activation
            )  # fmt: skip
        else:
            apply_strip(
                to, None, of, more, fused, weights, biases, start, m, c, columns, a, pitch,
                activation, streaming
            )  # fmt: skip


@kernel
def forward(y, mean, rstd, x, residual, mask, weight, bias, eps, activation, b, m, c, threads):
    """Statistics of each column and y = activation(norm(x) * weight + bias + residual)."""
    ws, bs = parameter(weight, 1.0, m, x), parameter(bias, 0.0, m, x)
    more, flags, means = elements_of(residual, x), flags_of(mask), numbers_of(mean)
    width = strip_columns(x, m, c)
    strips = b * -(-c // width)
    work, narrow, exact = scratch(threads, FORWARD_ROWS, width, x)
    for t in prange(threads):
        begin, end = slab(strips, threads, t)
        forward_share(
            y, means, rstd, x, more, flags, ws, bs, eps, activation, work[t], narrow[t], exact[t],
            begin, end, width, m, c
        )  # fmt: skip


@block
def slope_share(
    g, dy, x, residual, mean, rstd, w, b, activation, work, narrow, exact, begin, end, width, m, c
):  # fmt: skip
    """Set g of the strips begin to end."""
    centre, fused, pitch = mean.size > 0, residual.size > 0, work.shape[1]
    to, by, of, more = memory(g), memory(dy), memory(x), memory(residual)
    weights, biases, wide = memory(w), memory(b), memory(work[WIDE])
    a, e = memory(narrow), memory(exact)
    for k in range(begin, end):
        bi, column, columns, start = strip_bounds(k, width, m, c)
        at = bi * c + column
        for j in range(columns):
            inverse = rstd[at + j]
            centred = mean[at + j] if centre and inverse != 0.0 else 0.0
            put_forward(narrow, exact, work[WIDE], j, centred, 0.0, inverse, 1.0, 0.0)
        if is_mixed(wide, columns):
            apply_mixed_strip(
                to, by, of, more, fused, weights, biases, start, m, c, columns, a, e, wide, pitch,
                activation
            )  # fmt: skip
        else:
            apply_strip(
                to, by, of, more, fused, weights, biases, start, m, c, columns, a, pitch,
                activation, False
            )  # fmt: skip


@kernel
def activation_grads(g, dy, x, residual, mean, rstd, weight, bias, activation, b, m, c, threads):
    """Set g = dy * slope of the activation at the norm of x plus residual."""
    ws, bs = parameter(weight, 1.0, m, x), parameter(bias, 0.0, m, x)
    more, means, width = elements_of(residual, x), numbers_of(mean), strip_columns(x, m, c)
    strips = b * -(-c // width)
    work, narrow, exact = scratch(threads, FORWARD_ROWS, width, x)
    for t in prange(threads):
        begin, end = slab(strips, threads, t)
        slope_share(
            g, dy, x, more, means, rstd, ws, bs, activation, work[t], narrow[t], exact[t], begin,
            end, width, m, c
        )  # fmt: skip


@block
def settle_backward(mean, rstd, mask, work, narrow, exact, at, width, m):
    """Coefficients of the columns of a strip, and whether they count."""
    masked, centre = mask.size > 0, mean.size > 0
    for j in range(width):
        counts = not masked or mask[at + j] != 0
        a = work[TOTALS, j] if centre and counts else 0.0
        # What the rounding of the mean left over.
        rest = work[TOTALS + 2, j] / m if centre and counts else 0.0
        b = work[TOTALS + 1, j] - rest * a if counts else 0.0
        inverse = rstd[at + j] if counts else 0.0
        put_backward(narrow, exact, work[WIDE], j, work[SHIFT, j], rest, inverse, 1.0, a, b, m)
        narrow[KEPT, j] = 1.0 if counts else 0.0


@block
def backward_share(
    dx, partial, dy, x, addend, mask, mean, rstd, w, work, narrow, exact, begin, end, width, b, m, c
):  # fmt: skip
    """dx of the strips of the units begin to end, and the sums of dweight and dbias."""
    streaming, centre = is_streamed(dx, x) and is_streamed(dx, dy), mean.size > 0
    fused, pitch, units, strips = (
        addend.size > 0,
        work.shape[1],
        partial.shape[0],
        b * -(-c // width),
    )
    to, parts, by, of, more = memory(dx), memory(partial), memory(dy), memory(x), memory(addend)
    weights, sums, shifts, wide = memory(w), memory(work), memory(work[SHIFT]), memory(work[WIDE])
    a, e, kept = memory(narrow), memory(exact), memory(narrow[KEPT])
    for u in range(begin, end):
        to_unit = u * 2 * m
        for j in range(to_unit, to_unit + 2 * m):
            parts[j] = 0.0
        low, high = slab(strips, units, u)
        for k in range(low, high):
            bi, column, columns, start = strip_bounds(k, width, m, c)
            at = bi * c + column
            for j in range(columns):
                shifts[j] = mean[at + j] if centre else 0.0
            strip_grad_sums(sums, pitch, by, of, weights, start, m, c, columns, shifts)
            settle_backward(mean, rstd, mask, work, narrow, exact, at, columns, m)
            if is_mixed(wide, columns):
                mixed_grads_strip(
                    to, parts, to_unit, by, of, more, fused, weights, start, m, c, columns, a, e,
                    wide, kept, pitch
                )  # fmt: skip
            else:
                add_row_sums(parts, to_unit, m, by, of, start, c, columns, a, kept, pitch)
                grads_strip(
                    to, by, of, more, fused, weights, start, m, c, columns, a, kept, pitch,
                    streaming
                )  # fmt: skip


@kernel
def backward(dx, dweight, dbias, dy, x, addend, mask, mean, rstd, weight, b, m, c, threads):
    """Set dx (plus addend), dweight and dbias."""
    ws, more, flags = parameter(weight, 1.0, m, rstd), elements_of(addend, x), flags_of(mask)
    means, width = numbers_of(mean), strip_columns(x, m, c)
    units = unit_count(b * -(-c // width), 1)
    partial = np.empty((units, 2, m))
    work, narrow, exact = scratch(threads, KEPT + 1, width, x)
    for t in prange(threads):
        begin, end = slab(units, threads, t)
        backward_share(
            dx, partial, dy, x, more, flags, means, rstd, ws, work[t], narrow[t], exact[t], begin,
            end, width, b, m, c
        )  # fmt: skip
    for t in prange(threads):
        begin, end = slab(m, threads, t)
        add_units(dweight, dbias, partial, begin, end)
