"""Arithmetic of a strip of columns whose rows have a weight and a bias each, in Numba.

A strip is `width` of the c columns of m elements, c apart; `start` is its first element. Sums go
down groups of rows as in `columns`. The elementwise passes go along the rows, as memory lies.

Values of the columns of a strip are rows of arrays with `pitch` columns: `LANES` more than the
strip may have, because vectors behind its end read there.
"""

from __future__ import annotations

from .activations import activated, activation_slope
from .coefficients import HIGH, LOW, SCALE, finite_or_zero
from .columns import add_to, column_sums, group_rows
from .intrinsics import (
    LANES,
    cast,
    first,
    load_as,
    memory,
    muladd,
    prefetch_as,
    splat,
    store,
    where,
)
from .jit import inline
from .layers import G_HIGH, LEFT, SLOPE, gradient
from .registers import get, line_zeros, origin_of, sum_lanes, sum_zeros, take
from .runs import head, put


@inline
def set_shifts(shift, x, start, rows, c, width):
    """Near the mean of each column's first rows, and the value itself where all are equal."""
    for j in range(0, width, LANES):
        k = min(LANES, width - j)
        origin = take(x, start + j, k, splat(0.0))
        sums = first(origin, 0)
        for p in range(start + j + c, start + j + rows * c, c):
            sums = sums + (take(x, p, k, origin) - origin)
        store(shift, j, muladd(sums, 1.0 / rows, origin))
    for j in range(width):
        shift[j] = origin_of(x, finite_or_zero(shift[j]))


@inline
def strip_sums(totals, pitch, x, start, m, c, width, shift):
    """Set the sums of x - shift and (x - shift)^2 of the columns."""
    for j in range(2 * pitch):
        totals[j] = 0.0
    together, zero = group_rows(x, width, 1), sum_zeros(x)
    whole, ahead = width // zero.lanes * zero.lanes, together * c
    for i in range(0, m, together):
        rows, at = min(together, m - i), start + i * c
        for j in range(0, whole, zero.lanes):
            k = zero.lanes
            column_sums(totals, j, pitch, x, at + j, rows, c, ahead, shift, j, k, zero)
        if whole < width:
            j, k = whole, width - whole
            column_sums(totals, j, pitch, x, at + j, rows, c, ahead, shift, j, k, zero)


@inline
def add_column_grad_sums(totals, pitch, dy, x, w, at, i, rows, c, ahead, mean, j, k, zero):
    """Add the sums of g = dy * weight, g * (x - mean) and x - mean of k columns, over a group."""
    s1, s2, s3, centre = zero, zero, zero, take(mean, j, k, zero)
    for r in range(rows):
        p = at + r * c
        prefetch_as(dy, p + ahead, zero)
        prefetch_as(x, p + ahead, zero)
        g, deviation = take(dy, p, k, zero) * w[i + r], take(x, p, k, zero) - centre
        s1 = s1 + g
        s2 = muladd(g, deviation, s2)
        s3 = s3 + deviation
    add_to(totals, j, k, s1)
    add_to(totals, pitch + j, k, s2)
    add_to(totals, 2 * pitch + j, k, s3)


@inline
def strip_grad_sums(totals, pitch, dy, x, w, start, m, c, width, mean):
    """Set the sums of g = dy * weight, g * (x - mean) and x - mean of the columns."""
    for j in range(3 * pitch):
        totals[j] = 0.0
    together, zero = group_rows(x, width, 2), sum_zeros(x)
    whole, ahead = width // zero.lanes * zero.lanes, together * c
    for i in range(0, m, together):
        rows, at = min(together, m - i), start + i * c
        for j in range(0, whole, zero.lanes):
            k = zero.lanes
            add_column_grad_sums(
                totals, pitch, dy, x, w, at + j, i, rows, c, ahead, mean, j, k, zero
            )
        if whole < width:
            j, k = whole, width - whole
            add_column_grad_sums(
                totals, pitch, dy, x, w, at + j, i, rows, c, ahead, mean, j, k, zero
            )


@inline
def inputs_of(x, residual, w, b):
    """What `output` reads, without the arrays, and whether there is a residual."""
    return memory(x), memory(residual), residual.size > 0, memory(w), memory(b)


@inline
def output(dy, inputs, i, p, k, a, pitch, j, activation, like):
    """y of k elements of row i from p on, column j; with dy, its gradient before the activation.

    Where rstd is 0, x does not count.
    """
    x, residual, fused, w, b = inputs
    scale = load_as(a, SCALE * pitch + j, like)
    high, low = load_as(a, HIGH * pitch + j, like), load_as(a, LOW * pitch + j, like)
    deviation = (take(x, p, k, scale) - high) - low
    z = muladd(where(scale, deviation * scale, first(scale, 0)), w[i], b[i])
    if fused:
        z = z + take(residual, p, k, z)
    if dy is None:
        return activated(z, activation)
    else:  # Numba drops the branch that the type excludes
        return take(dy, p, k, z) * activation_slope(z, activation)


@inline
def apply_strip(y, dy, inputs, start, m, c, width, a, pitch, activation, streaming):
    """Set the `output` of a strip."""
    like = line_zeros(y)
    lanes = like.lanes
    for i in range(m):
        at = start + i * c
        lead = head(y, at, width, streaming)
        stop = lead + (width - lead) // lanes * lanes
        if lead > 0:
            put(y, at, lead, output(dy, inputs, i, at, lead, a, pitch, 0, activation, like), False)
        for j in range(lead, stop, lanes):
            v = output(dy, inputs, i, at + j, lanes, a, pitch, j, activation, like)
            put(y, at + j, lanes, v, streaming)
        if stop < width:
            k, p = width - stop, at + stop
            put(y, p, k, output(dy, inputs, i, p, k, a, pitch, stop, activation, like), False)


@inline
def apply_mixed_strip(
    y, dy, inputs, start, m, c, width, narrow, exact, wide, pitch, activation
):  # fmt: skip
    """`apply_strip` where some columns need float64 (`layers.put_coefficients`).

    All are computed in both precisions and each lane takes its own, so that no column's bits
    depend on its neighbours.
    """
    like = line_zeros(y)
    lanes = like.lanes
    for i in range(m):
        for j in range(0, width, lanes):
            p, k = start + i * c + j, min(lanes, width - j)
            e = output(dy, inputs, i, p, k, exact, pitch, j, activation, like)
            a = output(dy, inputs, i, p, k, narrow, pitch, j, activation, like)
            put(y, p, k, where(load_as(wide, j, like), cast(e, a), a), False)


@inline
def row_part(s1, s2, dy, x, p, k, exact, kept, pitch, j):
    """Add dy * x_hat and dy of k elements from p on to the lanes of a row."""
    high, low, scale = (
        load_as(exact, HIGH * pitch + j, s1),
        load_as(exact, LOW * pitch + j, s1),
        load_as(exact, SCALE * pitch + j, s1),
    )
    h, flags, zero = take(dy, p, k, s1), load_as(kept, j, s1), first(s1, 0)
    x_hat = ((take(x, p, k, s1) - high) - low) * scale
    s1 = s1 + first(where(flags, h * x_hat, zero), k)
    return s1, s2 + first(where(flags, h, zero), k)


@inline
def add_row_sums(parts, at, m, dy, x, start, c, width, exact, kept, pitch):
    """Add every row's sums of dy * x_hat and dy to those of a unit.

    In float64: rounded to float32, the terms of columns that repeat 64 were off by 2.5e-6 of
    dweight's norm. A sweep of its own, from the first element: `grads_strip` starts at a cache line
    of dx, and the bits of a sum must not depend on where an array lies.
    """
    none = cast(line_zeros(x), 0.0)
    lanes = none.lanes
    whole = width // lanes * lanes
    for i in range(m):
        s1, s2, p = none, none, start + i * c
        for j in range(0, whole, lanes):
            s1, s2 = row_part(s1, s2, dy, x, p + j, lanes, exact, kept, pitch, j)
        if whole < width:
            s1, s2 = row_part(s1, s2, dy, x, p + whole, width - whole, exact, kept, pitch, whole)
        parts[at + i] += sum_lanes(s1)
        parts[at + m + i] += sum_lanes(s2)


@inline
def input_gradient(inputs, i, p, k, a, kept, pitch, j, like):
    """The dx of k elements of row i from p on; where a column does not count, the addend or 0."""
    dy, x, addend, fused, w = inputs
    coefficients = (
        load_as(a, HIGH * pitch + j, like),
        load_as(a, SCALE * pitch + j, like),
        load_as(a, SLOPE * pitch + j, like),
        load_as(a, G_HIGH * pitch + j, like),
        load_as(a, LEFT * pitch + j, like),
    )
    h = take(dy, p, k, coefficients[1])
    dx = gradient(h, w[i], get(x, p, k, like), coefficients)
    dx = where(load_as(kept, j, like), dx, first(h, 0))
    if fused:
        dx = dx + take(addend, p, k, dx)
    return dx


@inline
def grads_strip(dx, inputs, start, m, c, width, a, kept, pitch, streaming):
    """Set the dx of a strip."""
    like = line_zeros(dx)
    lanes = like.lanes
    for i in range(m):
        at = start + i * c
        lead = head(dx, at, width, streaming)
        stop = lead + (width - lead) // lanes * lanes
        if lead > 0:
            put(dx, at, lead, input_gradient(inputs, i, at, lead, a, kept, pitch, 0, like), False)
        for j in range(lead, stop, lanes):
            v = input_gradient(inputs, i, at + j, lanes, a, kept, pitch, j, like)
            put(dx, at + j, lanes, v, streaming)
        if stop < width:
            k, p = width - stop, at + stop
            put(dx, p, k, input_gradient(inputs, i, p, k, a, kept, pitch, stop, like), False)


@inline
def mixed_grads_strip(dx, inputs, start, m, c, width, narrow, exact, wide, kept, pitch):
    """`grads_strip` where some columns need float64, as `apply_mixed_strip`."""
    like = line_zeros(dx)
    lanes = like.lanes
    for i in range(m):
        for j in range(0, width, lanes):
            p, k = start + i * c + j, min(lanes, width - j)
            a = input_gradient(inputs, i, p, k, narrow, kept, pitch, j, like)
            e = input_gradient(inputs, i, p, k, exact, kept, pitch, j, like)
            put(dx, p, k, where(load_as(wide, j, like), cast(e, a), a), False)
