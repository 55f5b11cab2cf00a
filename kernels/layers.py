"""What rows and cols share: optional arguments, parameters, gradients of parameters, in Numba.

A layer family has a weight and a bias for each of the m elements behind a statistic. Their
gradients are sums over all statistics: every unit of rows or columns has sums of its own, which
are added in the order of the units. There are at most `LAYER_UNITS` of them, as many as the sizes
of the array alone say.
"""

from __future__ import annotations

import numpy as np

from .intrinsics import compute_dtype
from .jit import block, inline, slab

LAYER_UNITS = 64
"""Sums of dweight and dbias: more units would keep more threads busy, and take 16 bytes each for
every element of weight."""

LEAST_ROWS = 4
"""Rows of a unit, where there are few: sums take 32 bytes where a row of float32 takes 12."""


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
def parameter(values, default, m, x):
    """Weight or bias in the dtype that x is computed in."""
    each = np.empty(m, compute_dtype(x))
    for j in range(m):
        each[j] = default if values is None else values[j]
    return each


@inline
def unit_count(pieces):
    """Units of an array that falls into `pieces` rows or tiles."""
    return max(1, min(LAYER_UNITS, pieces // LEAST_ROWS))


@block
def add_units(dweight, dbias, partial, begin, end):
    """Set dweight and dbias of the elements begin to end to the sums over the units."""
    for j in range(begin, end):
        a, b = 0.0, 0.0
        for u in range(partial.shape[0]):
            a += partial[u, 0, j]
            b += partial[u, 1, j]
        dweight[j], dbias[j] = a, b


@inline
def unit_pieces(u, pieces):
    """First and last + 1 row or tile of unit u."""
    return slab(pieces, unit_count(pieces), u)
