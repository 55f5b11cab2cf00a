"""Arithmetic of one row whose elements have a weight and a bias each, in Numba.

Sums are kept in a few registers per quantity (`registers`). A mask becomes flags of the row's
elements, of which the sums select; they are not read without a mask.
Positions `i` are the row's first element, `j` count along the row.
"""

from __future__ import annotations

import numpy as np

from .activations import activated, activation_slope
from .coefficients import (
    HIGH,
    LOW,
    SCALE,
    finite_or_zero,
    inverse_deviation,
    is_bad_shift,
    squares,
)
from .columns import add_to
from .intrinsics import (
    LANES,
    LINE_BYTES,
    cast,
    first,
    first_lane,
    load_as,
    load_part_as,
    muladd,
    prefetch_as,
    rounded,
    splat,
    store_part,
    stream,
    where,
)
from .jit import block, inline
from .layers import G_HIGH, G_LOW, SLOPE, gradient, put_coefficients
from .registers import (
    block_length,
    folded,
    get,
    line_zeros,
    one_line,
    origin_of,
    row_zeros,
    sum_lanes,
    sum_zeros,
    take,
)
from .row_terms import add_term, no_terms, row_term, sums_of_terms
from .runs import AHEAD_BYTES, head, put

TOGETHER = 8
"""Rows whose gradients are taken together: their share of dweight and dbias stays in registers."""


@inline
def flag_row(flags, f, mask, row, q, m):
    """(how many elements of a row count, the first of them); sets their flags from f on."""
    if q == 0:
        return m, 0
    count, start, each = 0, m, m // q
    for k in range(q):
        kept = mask[row * q + k] != 0
        if kept:
            start = min(start, k * each)
            count += each
        for j in range(k * each, (k + 1) * each):
            flags[f + j] = 1.0 if kept else 0.0
    return count, min(start, m - 1)


@inline
def source(x, addend, i, k, like):
    """k lanes of what is normalized: x, or the sum with `addend` as it is stored."""
    if addend is None:
        return get(x, i, k, like)
    else:  # Numba drops the branch that the type excludes
        return rounded(get(x, i, k, like) + get(addend, i, k, like), x)


@inline
def row_shift(x, addend, i, m):
    """Near the mean of a row, and the value itself where all are equal.

    A single element is near enough for float32, whose sums have digits to spare.
    """
    k = min(m, LANES)
    v = source(x, addend, i, k, splat(0.0))
    origin = np.float64(first_lane(v))
    if x.itemsize == 8:
        origin += sum_lanes(first(cast(v, origin) - origin, k)) / k
    return finite_or_zero(origin)


@inline
def sums_part(s1, s2, x, addend, flags, masked, i, j, k, shift):
    """Add k elements' deviations from the shift and their squares."""
    deviation = cast(source(x, addend, i + j, k, s1), s1) - shift
    if masked:
        deviation = where(take(flags, j, k, s1), deviation, first(s1, 0))
    deviation = deviation if k == s1.lanes else first(deviation, k)
    return s1 + deviation, muladd(deviation, deviation, s2)


@inline
def row_sums(x, addend, flags, masked, i, m, shift):
    """(sum of x - shift, sum of its squares) of a row."""
    t1, t2, zero, ahead = splat(0.0), splat(0.0), sum_zeros(x), AHEAD_BYTES // x.itemsize
    whole, each = m // zero.lanes * zero.lanes, block_length(x, m, zero)
    for begin in range(0, m, each):
        s1, s2, end = zero, zero, min(begin + each, m)
        for j in range(begin, min(end, whole), zero.lanes):
            prefetch_as(x, i + j + ahead, zero)
            if addend is not None:
                prefetch_as(addend, i + j + ahead, zero)
            s1, s2 = sums_part(s1, s2, x, addend, flags, masked, i, j, zero.lanes, shift)
        if end > whole:
            s1, s2 = sums_part(s1, s2, x, addend, flags, masked, i, whole, m - whole, shift)
        t1, t2 = t1 + folded(s1), t2 + folded(s2)
    return sum_lanes(t1), sum_lanes(t2)


@inline
def row_statistics(x, addend, flags, masked, i, m, count, start, centre, eps):
    """(shift, mean - shift, rstd) of a row; rstd is 0 where nothing counts."""
    if count == 0:
        return 0.0, 0.0, 0.0
    shift = 0.0
    if centre:
        near = 1  # elements that count, one after the other
        while near < LANES and start + near < m and (not masked or flags[start + near] != 0.0):
            near += 1
        shift = row_shift(x, addend, i + start, near)
    s1, s2 = row_sums(x, addend, flags, masked, i, m, shift)
    if not centre:
        return 0.0, 0.0, inverse_deviation(s2 / count, eps)
    if is_bad_shift(s1, s2, count, max(4, x.itemsize)):
        shift = origin_of(x, shift + s1 / count)
        s1, s2 = row_sums(x, addend, flags, masked, i, m, shift)
    return shift, s1 / count, inverse_deviation(squares(s1, s2, count) / count, eps)


@inline
def put_row(narrow, exact, pitch, j, x, shift, rest, rstd):
    """`put_coefficients` of a row whose mean is shift + rest.

    Of halves, with less to do for each element: x_hat = (x - high) * scale + low. high is a half,
    so that the difference is exact; the mean lies less than a deviation beyond it.
    """
    kind = put_coefficients(narrow, exact, pitch, j, shift, rest, rstd)
    if x.itemsize == 2:
        narrow[HIGH * pitch + j] = exact[HIGH * pitch + j] = shift
        narrow[LOW * pitch + j] = exact[LOW * pitch + j] = -rest * rstd
    return kind


@inline
def forward_scalars(a, pitch, j):
    """Coefficients of x_hat, as scalars that a loop can keep in registers."""
    return a[HIGH * pitch + j], a[LOW * pitch + j], a[SCALE * pitch + j]


@inline
def gradient_scalars(a, pitch, j):
    """Coefficients of dx, as scalars that a loop can keep in registers."""
    return (
        a[HIGH * pitch + j],
        a[LOW * pitch + j],
        a[SCALE * pitch + j],
        a[SLOPE * pitch + j],
        a[G_HIGH * pitch + j],
        a[G_LOW * pitch + j],
    )


@inline
def apply_part(to, sums, at, dy, inputs, i, k, j, a, blank, activation, streaming, like):
    """`apply_row` for k elements from j on, stored at to[at], and their total at sums[at]."""
    x, addend, residual, fused, w, b = inputs
    high, low, scale = a
    v = source(x, addend, i + j, k, like)
    deviation = cast(first(v, 0) if blank else v, high) - high
    x_hat = muladd(deviation, scale, low) if x.itemsize == 2 else (deviation - low) * scale
    z = muladd(x_hat, take(w, j, k, x_hat), take(b, j, k, x_hat))
    if fused:
        z = z + take(residual, i + j, k, z)
    if dy is None:
        z = activated(z, activation)
    else:  # Numba drops the branch that the type excludes
        z = take(dy, i + j, k, z) * activation_slope(z, activation)
    if sums is not None:
        put(sums, at, k, v, streaming)
    put(to, at, k, z, streaming)


@inline
def apply_row(y, lines, ends, dy, total, inputs, i, m, a, blank, activation, streaming):
    """Set a row of y = activation(z), z being x_hat * weight + bias + residual.

    With dy, set the gradient before the activation, dy * slope(z). Where the row is `blank`, x
    does not count. The total of x and addend is stored where there is one.

    A line that streamed rows share is put together in `lines` (of y and of total) and stored whole:
    in two parts, it is first read from memory, and (131072, 256) took 1.75 of the copy, and 1.24
    so. `ends` says whether the row is the first and the last of those that follow each other.
    """
    like, lead, line = line_zeros(y), head(y, i, m, streaming), LINE_BYTES // y.itemsize
    lanes, rest = like.lanes, line - lead
    shares = lead > 0 and m % line == 0
    begun, kept, whole = shares and not ends[0], shares and not ends[1], one_line(y)
    last = m - rest if kept else m
    stop = lead + (last - lead) // lanes * lanes
    if lead > 0:
        to, at = (lines[0], rest) if begun else (y, i)
        sums = lines[1] if begun else total
        apply_part(to, sums, at, dy, inputs, i, lead, 0, a, blank, activation, False, like)
    if begun:
        stream(y, i - rest, load_as(lines[0], 0, whole))
        if total is not None:
            stream(total, i - rest, load_as(lines[1], 0, whole))
    for j in range(lead, stop, lanes):
        at = i + j
        apply_part(y, total, at, dy, inputs, i, lanes, j, a, blank, activation, streaming, like)
    if stop < last:
        k, at = last - stop, i + stop
        apply_part(y, total, at, dy, inputs, i, k, stop, a, blank, activation, False, like)
    if kept:
        apply_part(
            lines[0], lines[1], 0, dy, inputs, i, rest, last, a, blank, activation, False, like
        )


@inline
def grad_sums_part(s1, s2, s3, dy, x, w, flags, f, masked, i, j, k, mean):
    """Add k elements' g = dy * weight, g * (x - mean) and x - mean."""
    g = take(dy, i + j, k, s1) * take(w, j, k, s1)
    deviation = take(x, i + j, k, s1) - mean
    if masked:
        kept, zero = take(flags, f + j, k, s1), first(s1, 0)
        g, deviation = where(kept, g, zero), where(kept, deviation, zero)
    deviation = deviation if k == s1.lanes else first(deviation, k)
    return s1 + g, muladd(g, deviation, s2), s3 + deviation


@inline
def row_grad_sums(dy, x, w, flags, f, masked, i, m, mean, ahead):
    """(sum of g = dy * weight, of g * (x - mean), of x - mean) of a row.

    Asks for the x that is summed `ahead` elements later; `grads_part` asks for the dy.
    """
    t1, t2, t3, zero = splat(0.0), splat(0.0), splat(0.0), sum_zeros(x)
    whole, each = m // zero.lanes * zero.lanes, block_length(x, m, zero)
    for begin in range(0, m, each):
        s1, s2, s3, end = zero, zero, zero, min(begin + each, m)
        for j in range(begin, min(end, whole), zero.lanes):
            k = zero.lanes
            prefetch_as(x, i + j + ahead, zero)
            s1, s2, s3 = grad_sums_part(s1, s2, s3, dy, x, w, flags, f, masked, i, j, k, mean)
        if end > whole:
            j, k = whole, m - whole
            s1, s2, s3 = grad_sums_part(s1, s2, s3, dy, x, w, flags, f, masked, i, j, k, mean)
        t1, t2, t3 = t1 + folded(s1), t2 + folded(s2), t3 + folded(s3)
    return sum_lanes(t1), sum_lanes(t2), sum_lanes(t3)


@inline
def grads_part(dx, to, pitch, parts, at, m, inputs, kept, start, rows, j, k, a, streaming, like):
    """`grads_strip` for k elements from j on, of which as many are taken as `like` has lanes."""
    dy, x, addend, fused, w = inputs
    flags, masked, ahead = kept
    columns, exact, slot = a
    weights = get(w, j, k, like)
    terms = no_terms(x, weights)
    for r in range(rows):
        coefficients = gradient_scalars(columns, TOGETHER, slot + r)
        precise = exact[HIGH * TOGETHER + slot + r], exact[SCALE * TOGETHER + slot + r]
        i = start + r * m + j
        if k == like.lanes:
            prefetch_as(dy, i + ahead, like)
        v, h = take(x, i, k, weights), take(dy, i, k, weights)
        value = gradient(h, weights, v, coefficients)
        term, g = row_term(terms, (dy, x, i, k), h, v, coefficients, precise)
        if masked:
            flag = get(flags, (slot + r) * m + j, k, like)
            value = where(flag, value, first(value, 0))
            term, g = where(flag, term, first(term, 0)), where(flag, g, first(g, 0))
        if fused:
            value = value + take(addend, i, k, h)
        put(dx, to + r * pitch, k, value, streaming)
        terms = add_term(terms, term, g)
    dweight, dbias = sums_of_terms(terms)
    add_to(parts, at + j, k, dweight)
    add_to(parts, at + m + j, k, dbias)


@block
def grads_strip(dx, to, pitch, parts, at, m, inputs, kept, start, rows, j, k, a, streaming, like):
    """Set dx of k columns from j on, of rows `pitch` apart from dx[to] on.

    Their sums for dweight and dbias stay in registers, and go to those of the unit at parts[at].
    """
    lanes = like.lanes
    if k < lanes:
        grads_part(dx, to, pitch, parts, at, m, inputs, kept, start, rows, j, k, a, False, like)
    elif streaming:
        grads_part(dx, to, pitch, parts, at, m, inputs, kept, start, rows, j, lanes, a, True, like)
    else:
        grads_part(dx, to, pitch, parts, at, m, inputs, kept, start, rows, j, lanes, a, False, like)


@inline
def grads_rows(dx, lines, parts, at, inputs, kept, start, rows, m, a, streaming):
    """Set some rows of dx, plus addend, and add their terms to their unit's sums.

    Streamed rows that begin in the middle of a line share that line with the row before: it is put
    together in `lines` and stored whole. In two parts, it was first read from memory.
    """
    like, strip, line = line_zeros(dx), row_zeros(dx), LINE_BYTES // dx.itemsize
    lead = head(dx, start, m, streaming)
    shared, rest, whole = lead > 0 and rows > 1, line - lead, one_line(dx)
    last = m - rest if shared else m
    if shared:
        grads_strip(
            lines, rest, line, parts, at, m, inputs, kept, start, rows, 0, lead, a, False, like
        )
        grads_strip(
            lines, line, line, parts, at, m, inputs, kept, start, rows, last, rest, a, False, like
        )
        store_part(dx, start, lead, load_part_as(lines, rest, lead, whole))
        for r in range(1, rows):
            stream(dx, start + r * m - rest, load_as(lines, r * line, whole))
        store_part(dx, start + rows * m - rest, rest, load_as(lines, rows * line, whole))
    elif lead > 0:
        grads_strip(dx, start, m, parts, at, m, inputs, kept, start, rows, 0, lead, a, False, like)
    stop = lead + (last - lead) // strip.lanes * strip.lanes
    for j in range(lead, stop, strip.lanes):
        k = strip.lanes
        grads_strip(
            dx, start + j, m, parts, at, m, inputs, kept, start, rows, j, k, a, streaming, strip
        )
    for j in range(stop, last, like.lanes):
        k = min(like.lanes, last - j)
        grads_strip(
            dx, start + j, m, parts, at, m, inputs, kept, start, rows, j, k, a, streaming, like
        )
