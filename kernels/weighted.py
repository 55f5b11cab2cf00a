"""Arithmetic of one row whose elements have a weight and a bias each, in Numba.

Sums are kept in 16 float64 lanes per quantity: element j of a row goes to lane j % 16. A mask
becomes flags of the row's elements, of which the sums select; they are not read without a mask.
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
    cast,
    first,
    first_lane,
    muladd,
    prefetch,
    rounded,
    splat,
    store,
    store_part,
    stream,
    sum_lanes,
    where,
)
from .jit import inline
from .layers import G_HIGH, G_LOW, SLOPE, gradient
from .runs import AHEAD_BYTES, head
from .values import get


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
def source(x, addend, i, k):
    """k lanes of what is normalized: x, or the sum with `addend` as it is stored."""
    if addend is None:
        return get(x, i, k)
    else:  # Numba drops the branch that the type excludes
        return rounded(get(x, i, k) + get(addend, i, k), x)


@inline
def row_shift(x, addend, i, m):
    """Near the mean of a row, and the value itself where all are equal.

    A single element is near enough for float32, whose sums have digits to spare.
    """
    k = min(m, LANES)
    v = source(x, addend, i, k)
    origin = np.float64(first_lane(v))
    if x.itemsize == 8:
        origin += sum_lanes(first(cast(v, origin) - origin, k)) / k
    return finite_or_zero(origin)


@inline
def sums_part(s1, s2, x, addend, flags, masked, i, j, k, shift):
    """Add k elements' deviations from the shift and their squares."""
    deviation = cast(source(x, addend, i + j, k), s1) - shift
    if masked:
        deviation = where(get(flags, j, k), deviation, splat(0.0))
    deviation = deviation if k == LANES else first(deviation, k)
    return s1 + deviation, muladd(deviation, deviation, s2)


@inline
def row_sums(x, addend, flags, masked, i, m, shift):
    """(sum of x - shift, sum of its squares) of a row."""
    s1, s2, ahead, stop = splat(0.0), splat(0.0), AHEAD_BYTES // x.itemsize, m // LANES * LANES
    for j in range(0, stop, LANES):
        prefetch(x, i + j + ahead)
        if addend is not None:
            prefetch(addend, i + j + ahead)
        s1, s2 = sums_part(s1, s2, x, addend, flags, masked, i, j, LANES, shift)
    if stop < m:
        s1, s2 = sums_part(s1, s2, x, addend, flags, masked, i, stop, m - stop, shift)
    return sum_lanes(s1), sum_lanes(s2)


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
        shift += s1 / count
        s1, s2 = row_sums(x, addend, flags, masked, i, m, shift)
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
def apply_part(y, dy, total, inputs, i, j, k, a, blank, activation, streaming):
    """`apply_row` for k elements from j on."""
    x, addend, residual, fused, w, b = inputs
    high, low, scale = a
    v = source(x, addend, i + j, k)
    x_hat = ((cast(first(v, 0) if blank else v, high) - high) - low) * scale
    z = muladd(x_hat, cast(get(w, j, k), high), cast(get(b, j, k), high))
    if fused:
        z = z + cast(get(residual, i + j, k), high)
    if dy is None:
        z = activated(z, activation)
    else:  # Numba drops the branch that the type excludes
        z = cast(get(dy, i + j, k), high) * activation_slope(z, activation)
    if total is not None:
        put(total, i + j, k, v, streaming)
    put(y, i + j, k, z, streaming)


@inline
def apply_row(y, dy, total, inputs, i, m, a, blank, activation, streaming):
    """Set a row of y = activation(z), z being x_hat * weight + bias + residual.

    With dy, set the gradient before the activation, dy * slope(z). Where the row is `blank`, x
    does not count. The total of x and addend is stored where there is one.
    """
    lead = head(y, i, m, streaming)
    stop = lead + (m - lead) // LANES * LANES
    if lead > 0:
        apply_part(y, dy, total, inputs, i, 0, lead, a, blank, activation, False)
    for j in range(lead, stop, LANES):
        apply_part(y, dy, total, inputs, i, j, LANES, a, blank, activation, streaming)
    if stop < m:
        apply_part(y, dy, total, inputs, i, stop, m - stop, a, blank, activation, False)


@inline
def grad_sums_part(s1, s2, s3, dy, x, w, flags, f, masked, i, j, k, mean):
    """Add k elements' g = dy * weight, g * (x - mean) and x - mean."""
    g = cast(get(dy, i + j, k), s1) * get(w, j, k)
    deviation = cast(get(x, i + j, k), s1) - mean
    if masked:
        kept, zero = get(flags, f + j, k), splat(0.0)
        g, deviation = where(kept, g, zero), where(kept, deviation, zero)
    deviation = deviation if k == LANES else first(deviation, k)
    return s1 + g, muladd(g, deviation, s2), s3 + deviation


@inline
def row_grad_sums(dy, x, w, flags, f, masked, i, m, mean):
    """(sum of g = dy * weight, of g * (x - mean), of x - mean) of a row; w is float64."""
    s1, s2, s3, ahead = splat(0.0), splat(0.0), splat(0.0), AHEAD_BYTES // x.itemsize
    stop = m // LANES * LANES
    for j in range(0, stop, LANES):
        prefetch(dy, i + j + ahead)
        prefetch(x, i + j + ahead)
        s1, s2, s3 = grad_sums_part(s1, s2, s3, dy, x, w, flags, f, masked, i, j, LANES, mean)
    if stop < m:
        s1, s2, s3 = grad_sums_part(s1, s2, s3, dy, x, w, flags, f, masked, i, stop, m - stop, mean)
    return sum_lanes(s1), sum_lanes(s2), sum_lanes(s3)


@inline
def grads_part(dx, parts, at, m, inputs, flags, f, masked, i, j, k, a, streaming):
    """`grads_row` for k elements from j on."""
    dy, x, addend, fused, w = inputs
    high, low, scale = a[0], a[1], a[2]
    v, h = cast(get(x, i + j, k), high), cast(get(dy, i + j, k), high)
    value = gradient(h, get(w, j, k), v, a)
    product = h * (((v - high) - low) * scale)
    if masked:
        kept, zero = get(flags, f + j, k), first(h, 0)
        value, product = where(kept, value, zero), where(kept, product, zero)
        h = where(kept, h, zero)
    if fused:
        value = value + cast(get(addend, i + j, k), high)
    put(dx, i + j, k, value, streaming)
    put(parts, at + j, k, get(parts, at + j, k) + cast(product, parts), False)
    put(parts, at + m + j, k, get(parts, at + m + j, k) + cast(h, parts), False)


@inline
def grads_row(dx, parts, at, inputs, flags, f, masked, i, m, a, streaming):
    """Set a row of dx, plus addend, and add dy * x_hat and dy to its unit's sums from `at` on."""
    lead = head(dx, i, m, streaming)
    stop = lead + (m - lead) // LANES * LANES
    if lead > 0:
        grads_part(dx, parts, at, m, inputs, flags, f, masked, i, 0, lead, a, False)
    for j in range(lead, stop, LANES):
        grads_part(dx, parts, at, m, inputs, flags, f, masked, i, j, LANES, a, streaming)
    if stop < m:
        grads_part(dx, parts, at, m, inputs, flags, f, masked, i, stop, m - stop, a, False)
