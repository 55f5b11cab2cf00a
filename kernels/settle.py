"""From sums to coefficients for several statistics of one cell each at a time, in Numba.

The arithmetic is that of `coefficients` on lanes, so the bits are the same. One after the other,
the 1024 statistics of (64, 1024) took 25 us of a forward of 48, the 64 of (64, 64) 1.1 of a
backward of 5.5.
"""

from __future__ import annotations

from .coefficients import (
    DY_MEAN,
    EMPTY,
    HIGH,
    LOW,
    REST,
    SCALE,
    SHIFT,
    SLOPE,
    WIDE,
    columns_of,
    finish_backward,
    finish_forward,
    lost_digits,
    move_bad_shifts,
    put_forward,
    total,
    within,
)
from .intrinsics import LANES, cast, memory, root, splat, where, where_less
from .jit import block, inline
from .registers import origin_of, sum_lanes, take
from .runs import put


@inline
def _absolute(v):
    return where_less(v, 0.0, 0.0 - v, v)


@inline
def _put_mean(a, cells, j, k, mean, rest):
    high = cast(mean + rest, a)
    put(a, HIGH * cells + j, k, high, False)
    put(a, LOW * cells + j, k, cast((mean - cast(high, mean)) + rest, a), False)


@inline
def _put_lanes(a, cells, j, k, mean, rest, scale, shift):
    _put_mean(a, cells, j, k, mean, rest)
    put(a, SCALE * cells + j, k, scale, False)
    put(a, SHIFT * cells + j, k, shift, False)


@inline
def _put_grad_lanes(a, cells, j, k, mean, rest, scale, slope, dy_mean, dy_rest):
    _put_mean(a, cells, j, k, mean, rest)
    near = cast(dy_mean, a)
    put(a, SCALE * cells + j, k, scale, False)
    put(a, SLOPE * cells + j, k, slope, False)
    put(a, DY_MEAN * cells + j, k, near, False)
    put(a, REST * cells + j, k, dy_rest + scale * (dy_mean - cast(near, mean)), False)


@inline
def _wide_lanes(mean, rstd, factor):
    none = splat(0.0)
    wide = where_less(4e37, _absolute(mean), none + WIDE, none)
    wide = where_less(rstd, 1e-30, WIDE, wide)
    wide = where_less(1e30, _absolute(rstd), WIDE, wide)
    return where_less(1e30, _absolute(factor), WIDE, wide)


@inline
def put_forward_lanes(columns, j, k, mean, rest, rstd, scale, shift):
    """`coefficients.put_forward` of k cells from j on."""
    narrow, exact, kind, cells = columns
    _put_lanes(narrow, cells, j, k, mean, rest, scale, shift)
    _put_lanes(exact, cells, j, k, mean, rest, scale, shift)
    none = splat(0.0)
    wide = _wide_lanes(mean + rest, rstd, scale) if narrow.itemsize == 4 else none
    put(kind, j, k, where(rstd, wide, none + EMPTY), False)


@inline
def put_backward_lanes(columns, j, k, mean, rest, rstd, weight, dy_mean, through_mean, through_x):
    """`coefficients.put_backward` of k cells from j on."""
    narrow, exact, kind, cells = columns
    scale, slope = rstd * weight, rstd * rstd * rstd * through_x
    dy_rest = rstd * through_mean - scale * dy_mean
    _put_grad_lanes(narrow, cells, j, k, mean, rest, scale, slope, dy_mean, dy_rest)
    _put_grad_lanes(exact, cells, j, k, mean, rest, scale, slope, dy_mean, dy_rest)
    wide = _wide_lanes(mean + rest, rstd, scale)
    wide = where_less(rstd, 1e-12, WIDE, wide)
    wide = where_less(1e12, rstd, WIDE, wide)
    wide = where_less(1e30, _absolute(slope), WIDE, wide)
    wide = where_less(1e30, _absolute(dy_rest), WIDE, wide)
    wide = where_less(4e37, _absolute(dy_mean), WIDE, wide)
    put(kind, j, k, wide if narrow.itemsize == 4 else splat(0.0), False)


@block
def put_given(narrow, exact, kind, mean, rstd, weight, bias):
    """Forward coefficients for statistics that are given."""
    d, columns = kind.size // mean.size, columns_of(narrow, exact, kind)
    if d == 1 and weight.size == kind.size and bias.size == kind.size:
        means, inverses, w, b = memory(mean), memory(rstd), memory(weight), memory(bias)
        none = splat(0.0)
        for j in range(0, kind.size, LANES):
            k = min(LANES, kind.size - j)
            inverse = take(inverses, j, k, none)
            put_forward_lanes(
                columns, j, k, take(means, j, k, none), none, inverse,
                inverse * take(w, j, k, none), take(b, j, k, none)
            )  # fmt: skip
        return
    for g in range(mean.size):
        for j in range(g * d, (g + 1) * d):
            w, b = weight[within(j, weight.size)], bias[within(j, bias.size)]
            put_forward(columns, j, mean[g], 0.0, rstd[g], rstd[g] * w, b)


@inline
def _total(sums, q, j, k):
    """`coefficients.total` of k cells from j on."""
    values, units, quantities, cells = sums
    found = take(values, q * cells + j, k, splat(0.0))
    for u in range(1, units):
        found = found + take(values, (u * quantities + q) * cells + j, k, found)
    return found


@inline
def _moments(sums, j, k, count):
    """(sum of x - shift, its mean, sum of squared deviations) of k statistics from j on."""
    s1, s2 = _total(sums, 0, j, k), _total(sums, 1, j, k)
    rest = s1 / count
    m2 = s2 - s1 * rest
    return s1, rest, where_less(m2, 0.0, 0.0, m2)


@block
def _move_bad_lanes(shift, bad, x, sums, count, begin, end):
    none, lost, moved = splat(0.0), lost_digits(x.itemsize), 0
    for j in range(begin, end, LANES):
        k = min(LANES, end - j)
        s1, rest, m2 = _moments(sums, j, k, max(count, 1.0))
        flags = where_less(m2 * lost, s1 * rest, none + 1.0, none)
        put(bad, j, k, flags, False)
        if sum_lanes(flags) > 0.0:
            for g in range(j, j + k):
                if bad[g] != 0.0:
                    shift[g] = origin_of(x, shift[g] + total(sums, 0, g) / max(count, 1.0))
                    moved += 1
    return moved


@block
def _finish_lanes(mean, var, rstd, columns, sums, shift, count, weight, bias, eps, begin, end):
    none = splat(0.0)
    for j in range(begin, end, LANES):
        k = min(LANES, end - j)
        _, rest, m2 = _moments(sums, j, k, count)
        origin, variance = take(shift, j, k, none), m2 / count
        inverse = 1.0 / root(variance + eps)
        put(mean, j, k, origin + rest, False)
        put(var, j, k, variance, False)
        put(rstd, j, k, inverse, False)
        put_forward_lanes(
            columns, j, k, origin, rest, inverse, inverse * take(weight, j, k, none),
            take(bias, j, k, none)
        )  # fmt: skip


@block
def _finish_grad_lanes(
    dweights, dbiases, columns, sums, mean, centre, rstd, count, weight, training, begin, end
):
    none, count = splat(0.0), max(count, 1.0)
    for j in range(begin, end, LANES):
        k = min(LANES, end - j)
        origin, inverse = take(centre, j, k, none), take(rstd, j, k, none)
        rest = take(mean, j, k, none) - origin
        if training:
            rest = _total(sums, 2, j, k) / count
        w, sum_dy = take(weight, j, k, none), _total(sums, 0, j, k)
        sum_dy_xmu = _total(sums, 1, j, k) - rest * sum_dy
        put(dweights, j, k, sum_dy_xmu * inverse, False)
        put(dbiases, j, k, sum_dy, False)
        put_backward_lanes(
            columns, j, k, origin, rest, inverse, w, sum_dy / count, w * sum_dy / count,
            w * sum_dy_xmu / count
        )  # fmt: skip


# What the families call: in lanes where a statistic is one cell, with parameters of its own, and
# all of them have one count.


@inline
def _count_of_all(counts, statistics):
    """The count of all statistics, or 0 where they have several."""
    values, shared = counts
    return values[0] if shared == statistics else 0.0


@inline
def move_shifts(shift, bad, x, sums, stride, counts, statistics, begin, end):
    """`coefficients.move_bad_shifts`."""
    count = _count_of_all(counts, statistics)
    if stride == 1 and count > 0.0:
        return _move_bad_lanes(shift, bad, x, sums, count, begin, end)
    return move_bad_shifts(shift, bad, x, sums, stride, counts, begin, end)


@inline
def finish_statistics(
    mean, var, rstd, renormalized, columns, d, sums, stride, shift, counts, weight, bias, eps,
    begin, end
):  # fmt: skip
    """`coefficients.finish_forward`."""
    (weights, period), (biases, bias_period) = weight, bias
    cells, corrects = columns[3], renormalized[6]
    count = _count_of_all(counts, cells)
    if d == 1 and count > 0.0 and period == cells and bias_period == cells and not corrects:
        _finish_lanes(
            mean, var, rstd, columns, sums, shift, count, weights, biases, eps, begin, end
        )
    else:
        finish_forward(
            mean, var, rstd, renormalized, columns, d, sums, stride, shift, counts, weight, bias,
            eps, begin, end
        )  # fmt: skip


@inline
def finish_gradients(
    dweights, dbiases, columns, d, sums, mean, centre, rstd, counts, weight, training, begin, end
):
    """`coefficients.finish_backward`."""
    weights, period = weight
    cells = columns[3]
    count = _count_of_all(counts, cells)
    if d == 1 and count > 0.0 and period == cells:
        _finish_grad_lanes(
            dweights, dbiases, columns, sums, mean, centre, rstd, count, weights, training, begin,
            end
        )  # fmt: skip
    else:
        finish_backward(
            dweights, dbiases, columns, d, sums, mean, centre, rstd, counts, weight, training,
            begin, end
        )  # fmt: skip
