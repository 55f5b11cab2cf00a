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
from .intrinsics import (
    LANES,
    LINE_BYTES,
    cast,
    first,
    first_lane,
    load_as,
    muladd,
    prefetch_as,
    rounded,
    splat,
    stream,
    where,
)
from .jit import inline
from .layers import LEFT, MINUS_G, SLOPE, put_coefficients, put_gradient, put_left
from .registers import (
    block_length,
    folded,
    get,
    line_zeros,
    one_line,
    origin_of,
    sum_lanes,
    sum_zeros,
    take,
)
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
def origin_in(statistics, x, i):
    """What deviations of row i are taken from in a backward."""
    means, _, centre = statistics
    mean = means[i] if centre else 0.0
    return origin_of(x, mean) if x.itemsize == 2 else mean


@inline
def put_gradients(columns, pitch, k, x, statistics, i, sums, count):
    """Coefficients of dx of row i as number k, from its sums of g, g * (x - mean) and x - mean.

    Returns the kind of the row, and how many standard deviations its origin was off the mean by.
    """
    (narrow, exact), (means, inverses, centre) = columns, statistics
    g, through_x, rest = sums
    origin, count, rstd = origin_in(statistics, x, i), max(count, 1), inverses[i]
    # With what the rounding of the mean left over. Of halves it is known better than it is summed:
    # in float32, which cost dweight of equal rows 4e-6.
    left = means[i] - origin if centre and x.itemsize == 2 else rest / count
    left, g = (left, g) if centre else (0.0, 0.0)
    through_x = (through_x - left * g) / count
    g = g / count
    kind = put_gradient(narrow, exact, pitch, k, origin, left, rstd, g, through_x, count)
    low, exact_low = narrow[LOW * pitch + k], exact[LOW * pitch + k]
    if x.itemsize == 2:
        _put_half_mean(narrow, exact, pitch, k, origin, left, rstd)
        low = exact_low = left
    put_left(narrow, pitch, k, g, low, exact[SLOPE * pitch + k])
    put_left(exact, pitch, k, g, exact_low, exact[SLOPE * pitch + k])
    return kind, left * rstd


@inline
def gradient_scalars(a, pitch, j):
    """Coefficients of dx, as scalars that a loop can keep in registers."""
    return (
        a[HIGH * pitch + j],
        a[SCALE * pitch + j],
        a[SLOPE * pitch + j],
        a[MINUS_G * pitch + j],
        a[LEFT * pitch + j],
    )


@inline
def _put_half_mean(narrow, exact, pitch, j, shift, rest, rstd):
    narrow[HIGH * pitch + j] = exact[HIGH * pitch + j] = shift
    narrow[LOW * pitch + j] = exact[LOW * pitch + j] = -rest * rstd


@inline
def put_row(narrow, exact, pitch, j, x, shift, rest, rstd):
    """`put_coefficients` of a row whose mean is shift + rest.

    Of halves, with less to do for each element: x_hat = (x - high) * scale + low. high is a half,
    so that the difference is exact; the mean lies less than a deviation beyond it.
    """
    kind = put_coefficients(narrow, exact, pitch, j, shift, rest, rstd)
    if x.itemsize == 2:
        _put_half_mean(narrow, exact, pitch, j, shift, rest, rstd)
    return kind


@inline
def forward_scalars(a, pitch, j):
    """Coefficients of x_hat, as scalars that a loop can keep in registers."""
    return a[HIGH * pitch + j], a[LOW * pitch + j], a[SCALE * pitch + j]


@inline
def _finished(dy, z, i, k, activation):
    if dy is None:
        return activated(z, activation)
    else:  # Numba drops the branch that the type excludes
        return take(dy, i, k, z) * activation_slope(z, activation)


@inline
def apply_part(to, sums, at, i, k, j, streaming, like, work):
    """y of k elements from j on, stored to to[at], and the total of x and addend to sums[at]."""
    dy, inputs, a, blank, activation = work
    x, addend, residual, fused, w, b = inputs
    high, low, scale = a
    v = source(x, addend, i + j, k, like)
    deviation = cast(first(v, 0) if blank else v, high) - high
    x_hat = muladd(deviation, scale, low) if x.itemsize == 2 else (deviation - low) * scale
    z = muladd(x_hat, take(w, j, k, x_hat), take(b, j, k, x_hat))
    if fused:
        z = z + take(residual, i + j, k, z)
    z = _finished(dy, z, i + j, k, activation)
    if sums is not None:
        put(sums, at, k, v, streaming)
    put(to, at, k, z, streaming)


@inline
def along_row(y, lines, ends, total, i, m, streaming, part, work):
    """Set a row of y, and of total where there is one, `part` by part.

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
        part(to, sums, at, i, lead, 0, False, like, work)
    if begun:
        stream(y, i - rest, load_as(lines[0], 0, whole))
        if total is not None:
            stream(total, i - rest, load_as(lines[1], 0, whole))
    for j in range(lead, stop, lanes):
        part(y, total, i + j, i, lanes, j, streaming, like, work)
    if stop < last:
        part(y, total, i + stop, i, last - stop, stop, False, like, work)
    if kept:
        part(lines[0], lines[1], 0, i, rest, last, False, like, work)


@inline
def apply_row(y, lines, ends, dy, total, inputs, i, m, a, blank, activation, streaming):
    """Set a row of y = activation(z), z being x_hat * weight + bias + residual.

    With dy, set the gradient before the activation, dy * slope(z). Where the row is `blank`, x
    does not count. The total of x and addend is stored where there is one.
    """
    work = dy, inputs, a, blank, activation
    along_row(y, lines, ends, total, i, m, streaming, apply_part, work)
