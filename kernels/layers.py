"""What rows and cols share: optional arguments, parameters, gradients of parameters, in Numba.

A layer family has a weight and a bias for each of the m elements behind a statistic. Their
gradients are sums over all statistics: every unit of rows or columns has sums of its own, which
are added in the order of the units. There are at most `LAYER_UNITS` of them, as many as the sizes
of the array alone say.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import cast, compute_dtype, muladd
from .jit import block, inline

LAYER_UNITS = 64
"""Sums of dweight and dbias: more units would keep more threads busy, and take 16 bytes each for
every element of weight."""

LEAST_ROWS = 4
"""Rows of a unit, where there are few: its sums take 32 bytes where a row of float32 takes 12. A
strip of columns has a sum for every row of it instead, and makes a unit alone."""


@inline
def is_given(x):
    """Whether an optional array is there: neither None nor empty."""
    return False if x is None else x.size > 0


@inline
def flags_of(mask):
    """The mask, or an empty one."""
    if mask is None:
        return np.empty(0, np.uint8)
    else:  # Numba drops the branch that the type excludes
        return mask


@inline
def elements_of(residual, x):
    """The residual or addend, or an empty array like x."""
    if residual is None:
        return np.empty(0, x.dtype)
    else:
        return residual


@inline
def numbers_of(mean):
    """The mean, or an empty one."""
    if mean is None:
        return np.empty(0)
    else:
        return mean


@inline
def parameter(values, default, m, like):
    """Weight or bias in the dtype that `like` is computed in."""
    each = np.empty(m, compute_dtype(like))
    for j in range(m):
        each[j] = default if values is None else values[j]
    return each


@inline
def weighted_gradient(h, w, v, coefficients):
    """The dx of the lanes h of dy and v of x, in the dtype of the coefficients.

    weight * dy meets its mean unrounded: in a row of 3 elements most of it cancels, and what its
    rounding left was 1.4e-6 of dx.
    """
    high, low, factor, slope, dy_high, dy_low = coefficients
    through_var = muladd((cast(v, high) - high) - low, slope, dy_low)
    return (muladd(h, w, 0.0 - dy_high) - through_var) * factor


@inline
def unit_count(pieces, least):
    """Units of an array of `pieces` rows or strips, at least `least` in each."""
    return max(1, min(LAYER_UNITS, pieces // least))


@block
def add_units(dweight, dbias, partial, begin, end):
    """Set dweight and dbias of the elements begin to end to the sums over the units."""
    for j in range(begin, end):
        a, b = 0.0, 0.0
        for u in range(partial.shape[0]):
            a += partial[u, 0, j]
            b += partial[u, 1, j]
        dweight[j], dbias[j] = a, b
