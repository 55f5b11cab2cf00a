"""What rows and cols share: coefficients of a statistic, parameters and their gradients, in Numba.

A layer family has a weight and a bias for each of the m elements behind a statistic, so that the
coefficients of a statistic hold neither: x_hat = ((x - high) - low) * scale. The gradients of
weight and bias are sums over all statistics: every unit of rows or columns has sums of its own,
which are added in the order of the units. Units follow from the sizes of the array alone.
"""

from __future__ import annotations

import numpy as np

from .coefficients import EMPTY, HIGH, LOW, NARROW, SCALE, WIDE
from .intrinsics import cast, compute_dtype, first, memory, muladd
from .jit import block, inline
from .registers import LINE_LANES, take

# dx = ((dy * weight + g) + (x - high) * slope) * scale + left: g is the mean of dy * weight with
# the other sign, `left` what the low parts of both means come to.
SLOPE, MINUS_G, LEFT = 3, 4, 5

COEFFICIENTS = 6
"""Rows of coefficients."""

SHORT = 16
"""Statistics of fewer elements than this have gradients in float64: of 3 elements' gradients most
cancels, and float32 left errors of 1.6e-6 where rstd was 30."""

LAYER_UNITS = 64
"""Sums of dweight and dbias: more units would keep more threads busy, and take 16 bytes each for
every element of weight."""

FEW_UNITS, LEAST_ROWS, MANY_ROWS = 16, 4, 64
"""Units of few rows: their sums take 32 bytes where a row of float32 takes 12. With 64 units of
16 rows, the backward of (1024, 768) took 1.47 of Cython's time, with 16 of 64 rows 1.13. A strip
of columns has a sum for every row of it instead, and makes a unit alone."""


@inline
def coefficient_memory(threads, cells, x):
    """Coefficients of `cells` statistics in the dtype that x is computed in, for every thread."""
    # Vectors behind the last cell read there; and no two threads write to one line.
    return np.zeros((threads, COEFFICIENTS, cells + LINE_LANES), compute_dtype(x))


@inline
def parameter(values, default, m, like):
    """Weight or bias in the dtype that `like` is computed in."""
    each = np.empty(m, compute_dtype(like))
    for j in range(m):
        each[j] = default if values is None else values[j]
    return each


@inline
def _put_pair(a, high, low, value, rest):
    a[high] = value + rest
    a[low] = (value - a[high]) + rest


@inline
def _put_mean(a, pitch, j, mean, rest, rstd):
    _put_pair(a, HIGH * pitch + j, LOW * pitch + j, mean, rest)
    a[SCALE * pitch + j] = rstd


@inline
def _put_slope(a, pitch, j, g, slope):
    a[MINUS_G * pitch + j] = -g
    a[SLOPE * pitch + j] = slope


@inline
def put_coefficients(narrow, exact, pitch, j, mean, rest, rstd):
    """Coefficients of statistic j, and the kind of its elements (`coefficients.NARROW`)."""
    _put_mean(narrow, pitch, j, mean, rest, rstd)
    _put_mean(exact, pitch, j, mean, rest, rstd)
    # Where x - mean or its product with rstd may leave float32's range; NaN does not.
    wide = (abs(mean + rest) > 4e37) | (rstd < 1e-30) | (rstd > 1e30)
    kind = WIDE if wide & (narrow.itemsize == 4) else NARROW
    return EMPTY if rstd == 0.0 else kind


@inline
def put_gradient(narrow, exact, pitch, j, mean, rest, rstd, g, through_x, count):
    """`put_coefficients` with those of dx, from the means of g and of g * (x - mean - rest).

    All but LEFT, which `put_left` sets when it is known what is left of the mean.
    """
    slope = -(rstd * rstd * through_x)
    kind = put_coefficients(narrow, exact, pitch, j, mean, rest, rstd)
    _put_slope(narrow, pitch, j, g, slope)
    _put_slope(exact, pitch, j, g, slope)
    wide = (abs(g) > 4e37) | (abs(slope) > 1e30) | (count < SHORT)
    return WIDE if wide & (narrow.itemsize == 4) else kind


@inline
def put_left(a, pitch, j, g, low, slope):
    """What the low part of the mean, which is high + low, and that of g add to dx."""
    low_g = -g - a[MINUS_G * pitch + j]
    a[LEFT * pitch + j] = (low_g - low * slope) * a[SCALE * pitch + j]


@inline
def gradient(h, w, v, coefficients):
    """The dx of the lanes h of dy and v of x, in the dtype of the coefficients."""
    high, scale, slope, minus_g, left = coefficients
    return muladd(muladd(cast(v, high) - high, slope, muladd(h, w, minus_g)), scale, left)


@inline
def deviations(dy, x, i, k, mean, like):
    """k elements from i on of dy and of x - mean."""
    h, deviation = take(dy, i, k, like), take(x, i, k, like) - mean
    return h, deviation if k == like.lanes else first(deviation, k)


@inline
def add_terms(sums, terms, h, deviation, w, rstd, x):
    """Add elements of dy and x - mean to the sums of a backward.

    Those of their statistics, of g = dy * weight, g * (x - mean) and, of doubles, x - mean, which
    says what the mean is off by; those of their weights and biases.
    """
    g, through_x, rest = sums
    term = h * deviation
    rest = rest + deviation if x.itemsize == 8 else rest
    sums = muladd(h, w, g), muladd(term, w, through_x), rest
    return sums, (muladd(term, rstd, terms[0]), terms[1] + h)


@inline
def strip_units(strips):
    """Units of an array of strips of columns."""
    return max(1, min(LAYER_UNITS, strips))


@inline
def row_units(rows):
    """Units of an array of rows."""
    return max(1, min(FEW_UNITS, rows // LEAST_ROWS), min(LAYER_UNITS, rows // MANY_ROWS))


@block
def add_units(dweight, dbias, partial, begin, end):
    """Set dweight and dbias of the elements begin to end to the sums over the units."""
    sums, units, m = memory(partial), partial.shape[0], partial.shape[2]
    for j in range(begin, end):
        a, b = 0.0, 0.0
        for at in range(j, units * 2 * m, 2 * m):
            a += sums[at]
            b += sums[at + m]
        dweight[j], dbias[j] = a, b
