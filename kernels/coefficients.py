"""From sums to the coefficients of the elementwise passes: the arithmetic of one channel, in Numba.

A value that the elementwise pass subtracts is kept as a pair high + low: a mean rounded to
float32 is off by up to 3e-2 at 1e6, the pair by 2e-9. Where even so float32 arithmetic would
overflow (`is_wide`), the pass uses the same coefficients in float64.

Numba only; the Cython kernels have theirs in C.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import block, inline

HIGH, LOW, SCALE, SHIFT = 0, 1, 2, 3
"""Rows of forward coefficients: y = ((x - high) - low) * scale + shift."""

# dx = factor * ((dy - dy_high) - (((x - high) - low) * slope + dy_low)); HIGH and LOW are shared.
FACTOR, SLOPE, DY_HIGH, DY_LOW = 2, 3, 4, 5

FORWARD_ROWS = 4
BACKWARD_ROWS = 6

# Sums of a cell: x - shift and its square; dy, dy * (x - mean) and x - mean.
FORWARD_SUMS = 2
BACKWARD_SUMS = 3

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
def is_bad_shift(s1, s2, count, itemsize):
    """Whether the shift was so far from the mean that digits were lost."""
    lost = _CANCELLATION_FLOAT32 if itemsize == 4 else _CANCELLATION_FLOAT64
    return s1 * (s1 / count) > lost * squares(s1, s2, count)


@inline
def _put_pair(coefficients, high, low, j, value, rest):
    """Store value + rest as a pair in the dtype of `coefficients`; |value| >= |rest|."""
    rounded = coefficients.dtype.type(value + rest)
    coefficients[high, j] = rounded
    coefficients[low, j] = (value - rounded) + rest


@inline
def _is_large(value):
    return abs(value) > 1e30  # NaN is not


@inline
def _is_wide(itemsize, mean, rstd, factor):
    """Whether x - mean, or its product with a factor, may leave float32's range."""
    large = (abs(mean) > 4e37) | (rstd < 1e-30) | _is_large(rstd) | _is_large(factor)
    return (itemsize == 4) & large  # nothing is wider than float64


@inline
def _put_forward(coefficients, j, mean, rest, scale, shift):
    _put_pair(coefficients, HIGH, LOW, j, mean, rest)
    coefficients[SCALE, j] = scale
    coefficients[SHIFT, j] = shift


@inline
def _put_backward(coefficients, j, mean, rest, factor, slope, mean_dy):
    _put_pair(coefficients, HIGH, LOW, j, mean, rest)
    _put_pair(coefficients, DY_HIGH, DY_LOW, j, mean_dy, 0.0)
    coefficients[FACTOR, j] = factor
    coefficients[SLOPE, j] = slope


# These two take a channel's weight and bias as numbers and decide without branches: an array that
# is passed to an inlined function with a branch costs an atomic count of references, and those
# were half of the 31 us that the gradients of 1024 channels took.


@inline
def put_forward(narrow, exact, wide, j, mean, rest, rstd, weight, bias):
    """Coefficients of cell j: y = (x - (mean + rest)) * rstd * weight + bias."""
    scale, shift = rstd * weight, bias
    _put_forward(narrow, j, mean, rest, scale, shift)
    _put_forward(exact, j, mean, rest, scale, shift)
    wide[j] = _is_wide(narrow.itemsize, mean + rest, rstd, scale)


@inline
def put_backward(narrow, exact, wide, j, mean, rest, rstd, weight, sum_dy, sum_dy_xmu, count):
    """Coefficients of cell j, from the sums of dy and of dy * (x - mean - rest)."""
    factor, itemsize = rstd * weight, narrow.itemsize
    slope = rstd * rstd * (sum_dy_xmu / count)
    mean_dy = sum_dy / count
    _put_backward(narrow, j, mean, rest, factor, slope, mean_dy)
    _put_backward(exact, j, mean, rest, factor, slope, mean_dy)
    through_mean = _is_wide(itemsize, mean + rest, rstd, factor)
    wide[j] = through_mean | _is_wide(itemsize, mean_dy, 1.0, slope)


@inline
def inverse_deviation(var, eps):
    """Return rstd in float64."""
    return 1.0 / math.sqrt(np.float64(var) + eps)


@inline
def total(partial, q, j):
    """Sum q of cell j over the units, in their order."""
    value = 0.0
    for u in range(partial.shape[0]):
        value += partial[u, q, j]
    return value


@block
def move_bad_shifts(shift, bad, partial, begin, end, count, itemsize):
    """Where digits were lost, the mean becomes the shift; returns how many cells that are."""
    moved = 0
    for j in range(begin, end):
        s1, s2 = total(partial, 0, j), total(partial, 1, j)
        bad[j] = is_bad_shift(s1, s2, count, itemsize)
        if bad[j]:
            shift[j] += s1 / count
            moved += 1
    return moved


@block
def finish_forward(
    mean, var, rstd, narrow, exact, wide, partial, shift, weight, bias, eps, begin, end,
    count, c
):  # fmt: skip
    """Statistics and coefficients of the cells begin to end, from their sums."""
    for j in range(begin, end):
        s1, s2 = total(partial, 0, j), total(partial, 1, j)
        rest = s1 / count
        mean[j] = shift[j] + rest
        var[j] = squares(s1, s2, count) / count
        rstd[j] = inverse_deviation(var[j], eps)
        w = 1.0 if weight is None else weight[j % c]
        b = 0.0 if bias is None else bias[j % c]
        put_forward(narrow, exact, wide, j, shift[j], rest, rstd[j], w, b)


@block
def finish_backward(
    dweight, dbias, narrow, exact, wide, partial, mean, rstd, weight, training, begin, end,
    count, c
):  # fmt: skip
    """The cells' shares in dweight and dbias, and their coefficients, for cells begin to end."""
    for j in range(begin, end):
        sum_dy, sum_dy_xmu, rest = total(partial, 0, j), total(partial, 1, j), 0.0
        if training:
            rest = total(partial, 2, j) / count  # what the rounding of the mean left over
            sum_dy_xmu -= rest * sum_dy
        dweight[j] = sum_dy_xmu * rstd[j]
        dbias[j] = sum_dy
        w, a, b = 1.0 if weight is None else weight[j % c], sum_dy, sum_dy_xmu
        put_backward(narrow, exact, wide, j, mean[j], rest, rstd[j], w, a, b, count)
