"""Gradients of rows of floats and doubles that have a weight and a bias for each element, in Numba.

One sweep over a few rows gives all sums of a backward: of rows g and g * (x - mean), g being
dy * weight, for doubles also x - mean, which says what the mean is off by; of columns the terms of
dweight and dbias, in float64: rounded to float32, the terms of 65536 rows that repeat 16 were off
by 7e-6 of dweight's norm. dx is set row by row then, while the rows lie in the cache.
"""

from __future__ import annotations

from .coefficients import WIDE
from .columns import add_to
from .intrinsics import LINE_BYTES, first, load_as, prefetch_as, store, where
from .jit import inline
from .layers import add_terms, deviations, gradient
from .registers import get, register_zeros, sum_lanes, sum_zeros, take
from .runs import put
from .weighted import (
    TOGETHER,
    along_row,
    flag_row,
    gradient_scalars,
    origin_in,
    put_gradients,
)

SUMMED = 4
"""Rows of one sweep. Four of 4 KB, of x and dy, fit the first-level cache."""

SUMS = 3
"""Sums of a row."""


@inline
def _add_row(sums, terms, dy, x, i, k, by, w):
    mean, rstd = by
    h, deviation = deviations(dy, x, i, k, mean, w)
    return add_terms(sums, terms, h, deviation, w, rstd, x)


@inline
def _add_rows(sums, terms, dy, x, i, m, k, by, w):
    a, terms = _add_row(sums[0], terms, dy, x, i, k, by[0], w)
    b, terms = _add_row(sums[1], terms, dy, x, i + m, k, by[1], w)
    c, terms = _add_row(sums[2], terms, dy, x, i + 2 * m, k, by[2], w)
    d, terms = _add_row(sums[3], terms, dy, x, i + 3 * m, k, by[3], w)
    return (a, b, c, d), terms


@inline
def _put_sums(found, r, sums):
    found[SUMS * r] = sum_lanes(sums[0])
    found[SUMS * r + 1] = sum_lanes(sums[1])
    found[SUMS * r + 2] = sum_lanes(sums[2])


@inline
def sum_rows(found, parts, at, dy, x, w, by, i, m):
    """Set the sums of SUMMED rows, the first of which begins at i, and add to dweight and dbias.

    by[r] is (mean, rstd) of row r, parts[at] where dweight begins. Asks for the x of the rows
    behind these; `dx_part` asks for their dy.
    """
    none, line = register_zeros(x), LINE_BYTES // x.itemsize
    lanes, zeros = none.lanes, (none, none, none)
    whole, sums = m // lanes * lanes, (zeros, zeros, zeros, zeros)
    for j in range(0, whole, lanes):
        if j % line == 0:
            for r in range(SUMMED, 2 * SUMMED):
                prefetch_as(x, i + r * m + j, none)
        to = at + j
        terms = load_as(parts, to, none), load_as(parts, to + m, none)
        sums, terms = _add_rows(sums, terms, dy, x, i + j, m, lanes, by, load_as(w, j, none))
        store(parts, to, terms[0])
        store(parts, to + m, terms[1])
    if whole < m:
        to, k = at + whole, m - whole
        weights = take(w, whole, k, none)
        sums, terms = _add_rows(sums, (none, none), dy, x, i + whole, m, k, by, weights)
        add_to(parts, to, k, terms[0])
        add_to(parts, to + m, k, terms[1])
    _put_sums(found, 0, sums[0])
    _put_sums(found, 1, sums[1])
    _put_sums(found, 2, sums[2])
    _put_sums(found, 3, sums[3])


@inline
def _add_kept(sums, parts, to, m, dy, x, w, flags, masked, i, k, j, by):
    none, (mean, rstd) = sums[0], by
    h, deviation = deviations(dy, x, i + j, k, mean, none)
    if masked:
        kept, zero = take(flags, j, k, none), first(none, 0)
        h, deviation = where(kept, h, zero), where(kept, deviation, zero)
    terms, weights = (first(none, 0), first(none, 0)), take(w, j, k, none)
    sums, terms = add_terms(sums, terms, h, deviation, weights, rstd, x)
    add_to(parts, to + j, k, terms[0])
    add_to(parts, to + m + j, k, terms[1])
    return sums


@inline
def sum_row(found, parts, at, dy, x, w, flags, masked, by, i, m):
    """`sum_rows` of one row, of which a mask may leave elements out."""
    none = sum_zeros(x)
    lanes, sums = none.lanes, (none, none, none)
    whole = m // lanes * lanes
    for j in range(0, whole, lanes):
        sums = _add_kept(sums, parts, at, m, dy, x, w, flags, masked, i, lanes, j, by)
    if whole < m:
        sums = _add_kept(sums, parts, at, m, dy, x, w, flags, masked, i, m - whole, whole, by)
    _put_sums(found, 0, sums)


@inline
def dx_part(to, _, at, i, k, j, streaming, like, work):
    """dx of k elements from j on, plus addend, stored to to[at]."""
    (dy, x, addend, fused, w), (flags, masked, ahead), coefficients = work
    if k == like.lanes:
        prefetch_as(dy, i + j + ahead, like)
    weights = get(w, j, k, like)
    h, v = take(dy, i + j, k, weights), take(x, i + j, k, weights)
    value = gradient(h, weights, v, coefficients)
    if masked:
        value = where(get(flags, j, k, like), value, first(value, 0))
    if fused:
        value = value + take(addend, i + j, k, value)
    put(to, at, k, value, streaming)


@inline
def put_dx(dx, lines, ends, inputs, kept, i, m, coefficients, streaming):
    """Set a row of dx."""
    along_row(dx, lines, ends, None, i, m, streaming, dx_part, (inputs, kept, coefficients))


@inline
def mend(parts, at, dy, flags, masked, off, i, rows, m):
    """Take dy * off[r], what the mean was off by in standard deviations, from dweight."""
    none = register_zeros(dy)
    for j in range(0, m, none.lanes):
        k, found = min(none.lanes, m - j), none
        for r in range(rows):
            h = take(dy, i + r * m + j, k, none)
            if masked:
                h = where(take(flags, j, k, none), h, none)
            found = found - h * off[r]
        add_to(parts, at + j, k, found)


@inline
def _scale_of(statistics, x, i):
    return origin_in(statistics, x, i), statistics[1][i]


@inline
def float_group(dx, parts, at, inputs, statistics, mask, memories, place, m, streaming):
    """dx of the first rows of those from `row` to `end`, and what they add to a unit's sums.

    Returns how many rows were taken.
    """
    dy, x, addend, fused, w, v = inputs
    (narrow, exact, kinds, found, lines), (row, end, begun, last) = memories, place
    masks, masked, q, flags = mask
    rows, start, count = 1, row * m, m
    if end - row >= SUMMED and not masked:
        rows = SUMMED
        by = (
            _scale_of(statistics, x, row),
            _scale_of(statistics, x, row + 1),
            _scale_of(statistics, x, row + 2),
            _scale_of(statistics, x, row + 3),
        )
        sum_rows(found, parts, at, dy, x, v, by, start, m)
    else:
        count, _ = flag_row(flags, 0, masks, row, q, m)
        by = _scale_of(statistics, x, row)
        sum_row(found, parts, at, dy, x, v, flags, masked, by, start, m)
    for k in range(rows):
        sums = found[SUMS * k], found[SUMS * k + 1], found[SUMS * k + 2]
        columns = narrow, exact
        kinds[k], found[k] = put_gradients(
            columns, TOGETHER, k, x, statistics, row + k, sums, count
        )
    if x.itemsize == 8:
        mend(parts, at, dy, flags, masked, found, start, rows, m)
    for k in range(rows):
        i, ends = start + k * m, (begun and k == 0, row + k + 1 == last)
        kept = flags, masked, SUMMED * m
        if kinds[k] == WIDE:
            c, given = gradient_scalars(exact, TOGETHER, k), (dy, x, addend, fused, v)
            put_dx(dx, (lines, None), ends, given, kept, i, m, c, streaming)
        else:
            c, given = gradient_scalars(narrow, TOGETHER, k), (dy, x, addend, fused, w)
            put_dx(dx, (lines, None), ends, given, kept, i, m, c, streaming)
    return rows
