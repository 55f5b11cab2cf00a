"""From sums to the coefficients of the elementwise passes, in Numba.

A statistic covers d adjacent cells (channels of one image, columns of one b), each with a weight of
its own: cell j has weight[j % p].

A value that the elementwise pass subtracts is kept as a pair high + low: a mean rounded to
float32 is off by up to 3e-2 at 1e6, the pair by 2e-9. Where even so float32 arithmetic would
leave its range (`WIDE`), the pass uses the same coefficients in float64.

Numba only; the Cython kernels have theirs in C.
"""

from __future__ import annotations

import math

import numpy as np

from .intrinsics import memory
from .jit import block, inline
from .registers import origin_of

HIGH, LOW, SCALE, SHIFT = 0, 1, 2, 3
"""Rows of forward coefficients: y = ((x - high) - low) * scale + shift."""

# dx = (dy - dy_mean) * scale - (((x - high) - low) * slope + rest), with a cell's own mean of dy:
# where dy has a large offset, what is left of it after the first difference is small.
SLOPE, DY_MEAN, REST = 3, 4, 5

FORWARD_ROWS = 4
BACKWARD_ROWS = 6

# Sums of a cell: x - shift and its square; dy, dy * (x - mean) and x - mean.
FORWARD_SUMS = 2
BACKWARD_SUMS = 3

NARROW, WIDE, EMPTY = 0.0, 1.0, 2.0
"""Whether a cell's elements take coefficients in their own dtype, in float64, or are all bias: the
inverse deviation of a statistic of which nothing counts is 0."""

# What the functions below take, they take as Memory and numbers, and the innermost of them decide
# without branches: an array that is passed to a function can cost an atomic count of references,
# and with 16 arrays those were 18 of the 40 us that the forward of 64 blocks of channels took.

# An S1*S1/count above 8*M2 means that more than 3 bits cancel: the shift was not near the mean.
# Float32 data can spare 10 bits of their float64 sums; at 3 bits, 1024 columns of the digits were
# swept twice for a few that are almost constant.
_CANCELLATION_FLOAT64, _CANCELLATION_FLOAT32 = 8.0, 1024.0


@inline
def finite_or_zero(value):
    """`value`, or 0 where it cannot serve as a shift."""
    return value if math.isfinite(value) else 0.0


@inline
def squares(s1, s2, count):
    """Sum of squared deviations from the mean, of sums s1 of x - shift and s2 of its squares."""
    m2 = s2 - s1 * (s1 / count)
    return 0.0 if m2 < 0.0 else m2  # NaN stays


@inline
def lost_digits(itemsize):
    """How many times M2 may S1*S1/count be."""
    return _CANCELLATION_FLOAT64 if itemsize == 8 else _CANCELLATION_FLOAT32


@inline
def is_bad_shift(s1, s2, count, itemsize):
    """Whether the shift was so far from the mean that digits were lost."""
    return s1 * (s1 / count) > lost_digits(itemsize) * squares(s1, s2, count)


@inline
def sums_of(partial):
    """(sums, units, quantities, cells) of an array of sums, without the array."""
    return memory(partial), partial.shape[0], partial.shape[1], partial.shape[2]


@inline
def columns_of(narrow, exact, kind):
    """(narrow, exact, kind, cells) of arrays of coefficients, without the arrays."""
    return memory(narrow), memory(exact), memory(kind), kind.size


@inline
def counts_by(counts, statistics):
    """(counts, statistics that share each), without the array."""
    return memory(counts), statistics // counts.size


@inline
def period_of(weight):
    """(weight, its period), without the array."""
    return memory(weight), weight.size


@inline
def within(j, period):
    """j % period, without a division where there is nothing to divide."""
    return j if j < period else j % period


@inline
def renormalization(r, d, running_mean, running_var, r_max, d_max):
    """What batch renormalization takes and gives, without arrays, and whether it is asked for."""
    return (
        memory(r), memory(d), memory(running_mean), memory(running_var), r_max, d_max,
        running_mean.size > 0
    )  # fmt: skip


@inline
def _put_pair(a, high, low, value, rest):
    """Store value + rest as a pair in the dtype of the coefficients `a`; |value| >= |rest|."""
    a[high] = value + rest
    a[low] = (value - a[high]) + rest


@inline
def _is_large(value):
    return abs(value) > 1e30  # NaN is not


@inline
def _is_wide(lane_size, mean, rstd, factor):
    """Whether x - mean, or its product with a factor, may leave float32's range."""
    large = (abs(mean) > 4e37) | (rstd < 1e-30) | _is_large(rstd) | _is_large(factor)
    return (lane_size == 4) & large  # nothing is wider than float64


@inline
def _put_forward(a, cells, j, mean, rest, scale, shift):
    _put_pair(a, HIGH * cells + j, LOW * cells + j, mean, rest)
    a[SCALE * cells + j] = scale
    a[SHIFT * cells + j] = shift


@inline
def _put_backward(a, cells, j, mean, rest, scale, slope, dy_mean, dy_rest):
    _put_pair(a, HIGH * cells + j, LOW * cells + j, mean, rest)
    a[SCALE * cells + j] = scale
    a[SLOPE * cells + j] = slope
    a[DY_MEAN * cells + j] = dy_mean
    a[REST * cells + j] = dy_rest + scale * (dy_mean - a[DY_MEAN * cells + j])


@inline
def put_forward(columns, j, mean, rest, rstd, scale, shift):
    """Coefficients of cell j: y = (x - (mean + rest)) * scale + shift; rstd is part of scale."""
    narrow, exact, kind, cells = columns
    _put_forward(narrow, cells, j, mean, rest, scale, shift)
    _put_forward(exact, cells, j, mean, rest, scale, shift)
    wide = _is_wide(narrow.itemsize, mean + rest, rstd, scale) & (rstd != 0.0)
    kind[j] = WIDE * wide + EMPTY * (rstd == 0.0)


@inline
def put_backward(columns, j, mean, rest, rstd, weight, dy_mean, through_mean, through_x):
    """Coefficients of cell j, from its mean of dy and two means over all elements of its statistic.

    dx = rstd * (weight * dy - through_mean - (x - mean - rest) * rstd^2 * through_x), where these
    two are the means of weight * dy and of weight * dy * (x - mean - rest).
    """
    narrow, exact, kind, cells = columns
    scale, slope = rstd * weight, rstd * rstd * rstd * through_x
    dy_rest = rstd * through_mean - scale * dy_mean
    _put_backward(narrow, cells, j, mean, rest, scale, slope, dy_mean, dy_rest)
    _put_backward(exact, cells, j, mean, rest, scale, slope, dy_mean, dy_rest)
    # rstd^3 leaves float32's range sooner than rstd.
    extreme = (rstd < 1e-12) | (rstd > 1e12) | _is_large(slope) | _is_large(dy_rest)
    wide = ((narrow.itemsize == 4) & extreme) | _is_wide(narrow.itemsize, mean + rest, rstd, scale)
    kind[j] = WIDE * (wide | _is_wide(narrow.itemsize, dy_mean, 1.0, 1.0))


@inline
def inverse_deviation(var, eps):
    """Return rstd in float64."""
    return 1.0 / math.sqrt(np.float64(var) + eps)


@inline
def total(sums, q, j):
    """Sum q of cell j over the units, in their order."""
    values, units, quantities, cells = sums
    value = 0.0
    for at in range(q * cells + j, units * quantities * cells, quantities * cells):
        value += values[at]
    return value


@inline
def count_of(counts, g):
    """Elements of statistic g."""
    values, shared = counts
    return values[g // shared]


@block
def move_bad_shifts(shift, bad, x, sums, stride, counts, begin, end):
    """Where digits were lost, the mean becomes the shift; returns how many that are.

    The sums of statistic g are those of cell g * stride.
    """
    moved = 0
    for g in range(begin, end):
        s1, s2 = total(sums, 0, g * stride), total(sums, 1, g * stride)
        count = max(count_of(counts, g), 1.0)
        is_bad = is_bad_shift(s1, s2, count, x.itemsize)
        bad[g] = np.float64(is_bad)
        if is_bad:
            shift[g] = origin_of(x, shift[g] + s1 / count)
            moved += 1
    return moved


@block
def put_moments(mean, m2, partial, shift, count):
    """Means and sums of squared deviations of cells of `count` elements, from their sums."""
    sums = sums_of(partial)
    for j in range(mean.size):
        s1, s2 = total(sums, 0, j), total(sums, 1, j)
        mean[j] = shift[j] + s1 / count
        m2[j] = squares(s1, s2, count)


@block
def origins_of(x, means):
    """Where the deviations of each statistic are taken from."""
    found, of = np.empty(means.size), memory(x)
    for g in range(means.size):
        found[g] = origin_of(of, means[g])
    return found


@block
def put_totals(sum_dy, sum_dy_xmu, partial, mean, centre):
    """The first two sums of cells, whose deviations were taken from `centre`."""
    sums = sums_of(partial)
    for j in range(sum_dy.size):
        sum_dy[j] = total(sums, 0, j)
        sum_dy_xmu[j] = total(sums, 1, j) - (mean[j] - centre[j]) * sum_dy[j]


@block
def put_given_grads(narrow, exact, kind, mean, rstd, weight, sum_dy, sum_dy_xmu, count):
    """Backward coefficients for cells, each a statistic, whose sums are given."""
    columns = columns_of(narrow, exact, kind)
    for j in range(mean.size):
        w, a, b = weight[within(j, weight.size)], sum_dy[j] / count, sum_dy_xmu[j] / count
        put_backward(columns, j, mean[j], 0.0, rstd[j], w, a, w * a, w * b)


@inline
def clip(value, low, high):
    """`value` between two bounds; NaN stays."""
    raised = low if value < low else value
    return high if raised > high else raised


@inline
def correction(mean, var, running_mean, running_var, r_max, d_max, eps):
    """r and d of batch renormalization (`normcore.reference.renorm_correction`)."""
    sigma = math.sqrt(running_var + eps)
    r = clip(math.sqrt(var + eps) / sigma, 1.0 / r_max, r_max)
    return r, clip((mean - running_mean) / sigma, -d_max, d_max)


@block
def finish_forward(
    mean, var, rstd, renormalized, columns, d, sums, stride, shift, counts, weight, bias, eps,
    begin, end
):  # fmt: skip
    """Statistics begin to end and the coefficients of their d cells, from the statistics' sums."""
    (weights, period), (biases, bias_period) = weight, bias
    rs, ds, running_mean, running_var, r_max, d_max, corrects = renormalized
    for g in range(begin, end):
        s1, s2 = total(sums, 0, g * stride), total(sums, 1, g * stride)
        count = count_of(counts, g)
        none = count == 0.0
        count = 1.0 if none else count
        rest = s1 / count
        mean[g] = shift[g] + rest
        var[g] = squares(s1, s2, count) / count
        rstd[g] = 0.0 if none else inverse_deviation(var[g], eps)
        by, more = 1.0, 0.0
        if corrects:
            by, more = correction(
                mean[g], var[g], running_mean[g], running_var[g], r_max, d_max, eps
            )
            by, more = (1.0, 0.0) if none else (by, more)
            rs[g], ds[g] = by, more
        for j in range(g * d, (g + 1) * d):
            w, b = (
                np.float64(weights[within(j, period)]),
                np.float64(biases[within(j, bias_period)]),
            )
            offset = b + more * w if corrects else b
            put_forward(columns, j, shift[g], rest, rstd[g], rstd[g] * by * w, offset)


@block
def finish_backward(
    dweights, dbiases, columns, d, sums, mean, centre, rstd, counts, weight, training, begin, end
):
    """Shares of cells in dweight and dbias, and their coefficients, for statistics begin to end.

    Deviations were taken from `centre`; the mean lies `rest` beyond it.
    """
    weights, period = weight
    for g in range(begin, end):
        count = max(count_of(counts, g), 1.0)
        rest, by_mean, by_x = mean[g] - centre[g], 0.0, 0.0
        if training:
            rest = 0.0
            for j in range(g * d, (g + 1) * d):
                rest += total(sums, 2, j)
            rest /= count  # with what the rounding of the mean left over
        for j in range(g * d, (g + 1) * d):
            w, sum_dy = np.float64(weights[within(j, period)]), total(sums, 0, j)
            sum_dy_xmu = total(sums, 1, j) - rest * sum_dy
            dweights[j], dbiases[j] = sum_dy_xmu * rstd[g], sum_dy
            by_mean += w * sum_dy
            by_x += w * sum_dy_xmu
        by_mean, by_x, own = by_mean / count, by_x / count, count / d
        for j in range(g * d, (g + 1) * d):
            w = np.float64(weights[within(j, period)])
            put_backward(columns, j, centre[g], rest, rstd[g], w, dbiases[j] / own, by_mean, by_x)


@block
def add_periods(dweight, values):
    """Set dweight[i] to the sum of the values at i, i + p, i + 2p, ..., p being its length.

    Not a NumPy sum in a kernel: Numba would make that a parallel reduction.
    """
    if values.size == dweight.size:  # 0.3 us of a backward of (64, 64) without this
        for i in range(dweight.size):
            dweight[i] = values[i]
        return
    for i in range(dweight.size):
        s = 0.0
        for j in range(i, values.size, dweight.size):
            s += values[j]
        dweight[i] = s
