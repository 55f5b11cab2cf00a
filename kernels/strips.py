"""Arithmetic of a strip of columns whose rows have a weight and a bias each, in Numba.

A strip is `width` of the c columns of m elements, c apart; `start` is its first element. Sums go
down groups of rows as in `columns`. The elementwise passes go along the rows, as memory lies.

Values of the columns of a strip are rows of arrays with `pitch` columns: `LANES` more than the
strip may have, because vectors behind its end read there.
"""

from __future__ import annotations

from .activations import activated, activation_slope
from .coefficients import HIGH, LOW, SCALE
from .columns import column_sums
from .intrinsics import (
    LANES,
    LINE_BYTES,
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
from .layers import LEFT, MINUS_G, SLOPE, add_terms, deviations, gradient
from .registers import get, line_zeros, register_zeros, sum_lanes, sum_zeros, take
from .runs import head, put
from .strip_settle import origins

PART_ROWS = 1024
"""Rows that are added one by one; of 65537, sums of float64 lost three bits."""


@inline
def set_shifts(shift, x, start, rows, c, width):
    """Near the mean of each column's first rows, and the value itself where all are equal."""
    for j in range(0, width, LANES):
        k = min(LANES, width - j)
        origin = take(x, start + j, k, splat(0.0))
        sums = first(origin, 0)
        for p in range(start + j + c, start + j + rows * c, c):
            sums = sums + (take(x, p, k, origin) - origin)
        store(shift, j, origins(x, muladd(sums, 1.0 / rows, origin)))


@inline
def strip_sums(totals, pitch, x, start, m, c, width, shift, together):
    """Set the sums of x - shift and (x - shift)^2 of the columns, `together` rows at a time."""
    for j in range(2 * pitch):
        totals[j] = 0.0
    zero = sum_zeros(x)
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
def _add_row(sums, terms, dy, x, p, k, w, of, masked):
    means, rstds, flags = of
    h, deviation = deviations(dy, x, p, k, means, rstds)
    if masked:
        none = first(rstds, 0)
        h, deviation = where(flags, h, none), where(flags, deviation, none)
    return add_terms(sums, terms, h, deviation, w, rstds, x)


@inline
def _sums_at(totals, pitch, j, none, x):
    rest = load_as(totals, 2 * pitch + j, none) if x.itemsize == 8 else none
    return load_as(totals, j, none), load_as(totals, pitch + j, none), rest


@inline
def _put_sums(totals, pitch, j, sums, x):
    store(totals, j, sums[0])
    store(totals, pitch + j, sums[1])
    if x.itemsize == 8:
        store(totals, 2 * pitch + j, sums[2])


@inline
def _add_rows(totals, pitch, terms, dy, x, p, c, j, k, w, columns, masked):
    none = first(terms[0][0], 0)
    means, rstds, flags = columns
    of = take(means, j, k, none), take(rstds, j, k, none), take(flags, j, k, none)
    sums = _sums_at(totals, pitch, j, none, x)
    sums, a = _add_row(sums, terms[0], dy, x, p, k, w[0], of, masked)
    sums, b = _add_row(sums, terms[1], dy, x, p + c, k, w[1], of, masked)
    sums, d = _add_row(sums, terms[2], dy, x, p + 2 * c, k, w[2], of, masked)
    sums, e = _add_row(sums, terms[3], dy, x, p + 3 * c, k, w[3], of, masked)
    _put_sums(totals, pitch, j, sums, x)
    return a, b, d, e


@inline
def _put_terms(parts, at, m, terms):
    parts[at] += sum_lanes(terms[0])
    parts[at + m] += sum_lanes(terms[1])


@inline
def _sum_four(totals, pitch, parts, at, m, dy, x, w, start, c, width, columns, masked):
    none, line = register_zeros(x), LINE_BYTES // x.itemsize
    lanes, zero = none.lanes, (none, none)
    whole, terms, ws = width // lanes * lanes, (zero, zero, zero, zero), (w[0], w[1], w[2], w[3])
    for j in range(0, whole, lanes):
        p = start + j
        if j % line == 0:
            for r in range(4, 8):
                prefetch_as(dy, p + r * c, none)
                prefetch_as(x, p + r * c, none)
        terms = _add_rows(totals, pitch, terms, dy, x, p, c, j, lanes, ws, columns, masked)
    if whole < width:
        p, k = start + whole, width - whole
        terms = _add_rows(totals, pitch, terms, dy, x, p, c, whole, k, ws, columns, masked)
    _put_terms(parts, at, m, terms[0])
    _put_terms(parts, at + 1, m, terms[1])
    _put_terms(parts, at + 2, m, terms[2])
    _put_terms(parts, at + 3, m, terms[3])


@inline
def _sum_one(totals, pitch, parts, at, m, dy, x, w, start, c, width, columns, masked):
    none, (means, rstds, flags) = register_zeros(x), columns
    terms = none, none
    for j in range(0, width, none.lanes):
        k = min(none.lanes, width - j)
        of = take(means, j, k, none), take(rstds, j, k, none), take(flags, j, k, none)
        sums = _sums_at(totals, pitch, j, none, x)
        sums, terms = _add_row(sums, terms, dy, x, start + j, k, w, of, masked)
        _put_sums(totals, pitch, j, sums, x)
    _put_terms(parts, at, m, terms)


@inline
def strip_grad_sums(totals, part, pitch, parts, at, m, dy, x, w, start, c, width, columns, masked):
    """Set the sums of a backward of columns, and add what they add to every row's weight and bias.

    In float64: rounded to float32, the terms of columns that repeat 64 were off by 2.5e-6 of
    dweight's norm. `columns` are their means, rstd and whether they count. With a sweep of its own
    for the rows, (32, 96, 3136) took 4.4 ms instead of 3.7.
    """
    for j in range(3 * pitch):
        totals[j] = 0.0
    for low in range(0, m, PART_ROWS):
        high = min(m, low + PART_ROWS)
        for j in range(3 * pitch):
            part[j] = 0.0
        four = low + (high - low) // 4 * 4
        for i in range(low, four, 4):
            ws, p = (w[i], w[i + 1], w[i + 2], w[i + 3]), start + i * c
            _sum_four(part, pitch, parts, at + i, m, dy, x, ws, p, c, width, columns, masked)
        for i in range(four, high):
            p = start + i * c
            _sum_one(part, pitch, parts, at + i, m, dy, x, w[i], p, c, width, columns, masked)
        for j in range(3 * pitch):
            totals[j] += part[j]


@inline
def mend(parts, at, m, dy, start, c, width, off, counts):
    """Take from every row's dweight dy * off, what means were off by in standard deviations."""
    none = register_zeros(dy)
    for i in range(m):
        found = none
        for j in range(0, width, none.lanes):
            k = min(none.lanes, width - j)
            h = where(take(counts, j, k, none), take(dy, start + i * c + j, k, none), none)
            found = muladd(h, load_as(off, j, none), found)
        parts[at + i] -= sum_lanes(found)


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
def input_gradient(inputs, i, p, k, a, kept, pitch, j, masked, like):
    """The dx of k elements of row i from p on; where a column does not count, the addend or 0."""
    dy, x, addend, fused, w = inputs
    coefficients = (
        load_as(a, HIGH * pitch + j, like),
        load_as(a, SCALE * pitch + j, like),
        load_as(a, SLOPE * pitch + j, like),
        load_as(a, MINUS_G * pitch + j, like),
        load_as(a, LEFT * pitch + j, like),
    )
    h = take(dy, p, k, coefficients[1])
    dx = gradient(h, w[i], get(x, p, k, like), coefficients)
    if masked:
        dx = where(load_as(kept, j, like), dx, first(dx, 0))
    if fused:
        dx = dx + take(addend, p, k, dx)
    return dx


@inline
def grads_strip(dx, inputs, start, m, c, width, a, kept, masked, pitch, streaming):
    """Set the dx of a strip."""
    like = line_zeros(dx)
    lanes = like.lanes
    for i in range(m):
        at = start + i * c
        lead = head(dx, at, width, streaming)
        stop = lead + (width - lead) // lanes * lanes
        if lead > 0:
            v = input_gradient(inputs, i, at, lead, a, kept, pitch, 0, masked, like)
            put(dx, at, lead, v, False)
        for j in range(lead, stop, lanes):
            v = input_gradient(inputs, i, at + j, lanes, a, kept, pitch, j, masked, like)
            put(dx, at + j, lanes, v, streaming)
        if stop < width:
            k, p = width - stop, at + stop
            v = input_gradient(inputs, i, p, k, a, kept, pitch, stop, masked, like)
            put(dx, p, k, v, False)


@inline
def mixed_grads_strip(dx, inputs, start, m, c, width, narrow, exact, wide, kept, masked, pitch):
    """`grads_strip` where some columns need float64, as `apply_mixed_strip`."""
    like = line_zeros(dx)
    lanes = like.lanes
    for i in range(m):
        for j in range(0, width, lanes):
            p, k = start + i * c + j, min(lanes, width - j)
            a = input_gradient(inputs, i, p, k, narrow, kept, pitch, j, masked, like)
            e = input_gradient(inputs, i, p, k, exact, kept, pitch, j, masked, like)
            put(dx, p, k, where(load_as(wide, j, like), cast(e, a), a), False)
