"""Arithmetic of one row whose elements have a weight and a bias each, in Numba.

A mask cuts a row into stretches of elements that count and stretches that do not; without one a
row is a single stretch. Sums are kept in 16 float64 lanes per quantity: element i of a stretch
goes to lane i % 16. Positions `j` count along the row, `i` along the whole array or, where there
is no other, the rows.
"""

from __future__ import annotations

import numpy as np

from .activations import activated, activation_slope
from .coefficients import finite_or_zero, inverse_deviation, is_bad_shift, squares
from .columns import get
from .intrinsics import (
    LANES,
    cast,
    first,
    first_lane,
    load,
    load_part,
    muladd,
    prefetch,
    rounded,
    splat,
    store,
    store_part,
    stream,
    sum_lanes,
)
from .jit import inline
from .layers import weighted_gradient
from .runs import AHEAD_BYTES, head


@inline
def stretch(mask, i, at, q, m):
    """(end, whether they count) of the elements of row i that are alike from `at` on."""
    if q == 0:
        return m, True
    each, k, last = m // q, i * q + at // (m // q), (i + 1) * q
    kept = mask[k] != 0
    while k < last and (mask[k] != 0) == kept:
        k += 1
    return (k - i * q) * each, kept


@inline
def source(x, addend, i, k):
    """k lanes of what is normalized: x, or the sum with `addend` as it is stored."""
    if addend is None:
        return get(x, i, k)
    else:  # Numba drops the branch that the type excludes
        return rounded(get(x, i, k) + get(addend, i, k), x)


@inline
def row_shift(x, addend, mask, i, q, m):
    """Near the mean of row i, and the value itself where all are equal.

    One element is near enough for float32, and waits for no sum:
    """
    at = 0
    while at < m:
        end, kept = stretch(mask, i, at, q, m)
        if kept:
            k = min(end - at, LANES)
            v = source(x, addend, i * m + at, k)
            origin = np.float64(first_lane(v))
            if x.itemsize == 8:
                origin += sum_lanes(first(cast(v, origin) - origin, k)) / k
            return finite_or_zero(origin)
        at = end
    return 0.0


@inline
def row_sums(x, addend, mask, i, q, m, shift):
    """(sum of x - shift, sum of its squares, how many count) of row i."""
    s1, s2, count, at, ahead = splat(0.0), splat(0.0), 0, 0, AHEAD_BYTES // x.itemsize
    while at < m:
        end, kept = stretch(mask, i, at, q, m)
        if kept:
            start, stop = i * m + at, i * m + at + (end - at) // LANES * LANES
            for p in range(start, stop, LANES):
                prefetch(x, p + ahead)
                if addend is not None:
                    prefetch(addend, p + ahead)
                deviation = cast(source(x, addend, p, LANES), 0.0) - shift
                s1 = s1 + deviation
                s2 = muladd(deviation, deviation, s2)
            k = i * m + end - stop
            if k > 0:
                deviation = first(cast(source(x, addend, stop, k), 0.0) - shift, k)
                s1 = s1 + deviation
                s2 = muladd(deviation, deviation, s2)
            count += end - at
        at = end
    return sum_lanes(s1), sum_lanes(s2), count


@inline
def row_statistics(x, addend, mask, i, q, m, centre, eps):
    """(shift, mean - shift, rstd) of row i; rstd is 0 where nothing counts."""
    shift = row_shift(x, addend, mask, i, q, m) if centre else 0.0
    s1, s2, count = row_sums(x, addend, mask, i, q, m, shift)
    if count == 0:
        return 0.0, 0.0, 0.0
    if not centre:
        return 0.0, 0.0, inverse_deviation(s2 / count, eps)
    if is_bad_shift(s1, s2, count, max(4, x.itemsize)):
        shift += s1 / count
        s1, s2, count = row_sums(x, addend, mask, i, q, m, shift)
    return shift, s1 / count, inverse_deviation(squares(s1, s2, count) / count, eps)


@inline
def put(y, i, k, v, streaming):
    """Set y[i] to y[i + k - 1] = lanes, rounded to the dtype of y."""
    if k < LANES:
        store_part(y, i, k, cast(v, y))
    elif streaming:
        stream(y, i, cast(v, y))
    else:
        store(y, i, cast(v, y))


@inline
def before_activation(v, residual, fused, w, b, i, j, k, a):
    """The norm of the lanes v of x from x[i], column j, plus the residual if there is one."""
    high, low, scale = a
    x_hat = ((cast(v, high) - high) - low) * scale
    z = muladd(x_hat, cast(get(w, j, k), high), cast(get(b, j, k), high))
    if fused:
        z = z + cast(get(residual, i, k), high)
    return z


@inline
def apply_part(
    y, total, x, addend, residual, fused, w, b, i, j, k, a, blank, activation, streaming
):
    """`apply_row` for k elements from y[i], column j; where all is blank x is not read."""
    v = first(source(x, addend, i, k), 0) if blank else source(x, addend, i, k)
    z = before_activation(v, residual, fused, w, b, i, j, k, a)
    if total is not None:
        put(total, i, k, v, streaming)
    put(y, i, k, activated(z, activation), streaming)


@inline
def apply_row(
    y, total, x, addend, residual, fused, w, b, start, m, a, blank, activation, streaming
):
    """Set a row of y = activation(((x - high) - low) * scale * weight + bias + residual)."""
    lead = head(y, start, m, streaming)
    if lead > 0:
        apply_part(
            y, total, x, addend, residual, fused, w, b, start, 0, lead, a, blank, activation, False
        )
    stop = lead + (m - lead) // LANES * LANES
    for j in range(lead, stop, LANES):
        apply_part(
            y, total, x, addend, residual, fused, w, b, start + j, j, LANES, a, blank, activation,
            streaming
        )  # fmt: skip
    if stop < m:
        apply_part(
            y, total, x, addend, residual, fused, w, b, start + stop, stop, m - stop, a, blank,
            activation, False
        )  # fmt: skip


@inline
def slope_part(g, dy, x, residual, fused, w, b, i, j, k, a, blank, activation):
    """`slope_row` for k elements from g[i], column j."""
    v = first(get(x, i, k), 0) if blank else get(x, i, k)
    z = before_activation(v, residual, fused, w, b, i, j, k, a)
    put(g, i, k, cast(get(dy, i, k), z) * activation_slope(z, activation), False)


@inline
def slope_row(g, dy, x, residual, fused, w, b, start, m, a, blank, activation):
    """Set a row of g = dy * slope of the activation."""
    stop = m // LANES * LANES
    for j in range(0, stop, LANES):
        slope_part(g, dy, x, residual, fused, w, b, start + j, j, LANES, a, blank, activation)
    if stop < m:
        slope_part(
            g, dy, x, residual, fused, w, b, start + stop, stop, m - stop, a, blank, activation
        )


@inline
def row_grad_sums(dy, x, mask, w, i, q, m, mean):
    """(sum of g = dy * weight, of g * (x - mean), of x - mean, how many count) of row i."""
    s1, s2, s3, count, at = splat(0.0), splat(0.0), splat(0.0), 0, 0
    ahead = AHEAD_BYTES // x.itemsize
    while at < m:
        end, kept = stretch(mask, i, at, q, m)
        if kept:
            stop = at + (end - at) // LANES * LANES
            for j in range(at, stop, LANES):
                prefetch(dy, i * m + j + ahead)
                prefetch(x, i * m + j + ahead)
                g = cast(load(dy, i * m + j), mean) * load(w, j)
                deviation = cast(load(x, i * m + j), mean) - mean
                s1 = s1 + g
                s2 = muladd(g, deviation, s2)
                s3 = s3 + deviation
            k = end - stop
            if k > 0:
                g = cast(load_part(dy, i * m + stop, k), mean) * load_part(w, stop, k)
                deviation = first(cast(load_part(x, i * m + stop, k), mean) - mean, k)
                s1 = s1 + g
                s2 = muladd(g, deviation, s2)
                s3 = s3 + deviation
            count += end - at
        at = end
    return sum_lanes(s1), sum_lanes(s2), sum_lanes(s3), count


@inline
def grads_part(dx, parts, at, m, dy, x, addend, fused, w, i, j, k, a, streaming):
    """`grads_row` for k elements from dx[i], column j."""
    high, low, factor = a[0], a[1], a[2]
    v, h = cast(get(x, i, k), high), cast(get(dy, i, k), high)
    value = weighted_gradient(h, get(w, j, k), v, a)
    if fused:
        value = value + cast(get(addend, i, k), high)
    put(dx, i, k, value, streaming)
    x_hat = ((v - high) - low) * factor
    to = at + j
    put(parts, to, k, get(parts, to, k) + cast(h * x_hat, parts), False)
    put(parts, to + m, k, get(parts, to + m, k) + cast(h, parts), False)


@inline
def copied_part(dx, addend, fused, i, k):
    """Set dx = addend, or 0, for k elements."""
    v = get(dx, i, 0)
    put(dx, i, k, get(addend, i, k) if fused else v, False)


@inline
def grads_row(dx, parts, at, dy, x, addend, fused, mask, w, i, q, m, a, streaming):
    """Set row i of dx, and add to its unit's sums of dweight and dbias."""
    start, begin = i * m, 0
    while begin < m:
        end, kept = stretch(mask, i, begin, q, m)
        if kept:
            lead = begin + head(dx, start + begin, end - begin, streaming)
            if lead > begin:
                k = lead - begin
                grads_part(
                    dx, parts, at, m, dy, x, addend, fused, w, start + begin, begin, k, a, False
                )
            stop = lead + (end - lead) // LANES * LANES
            for j in range(lead, stop, LANES):
                grads_part(
                    dx, parts, at, m, dy, x, addend, fused, w, start + j, j, LANES, a, streaming
                )
            if stop < end:
                k = end - stop
                grads_part(
                    dx, parts, at, m, dy, x, addend, fused, w, start + stop, stop, k, a, False
                )
        else:
            for j in range(begin, end, LANES):
                copied_part(dx, addend, fused, start + j, min(LANES, end - j))
        begin = end
