"""Optional arguments of the kernels: absent is None, or an array of length 0.

What is behind the kernels sees arrays only, so that Numba compiles it once for both.
"""

from __future__ import annotations

import numpy as np

from .coefficients import inverse_deviation
from .jit import block, inline


@inline
def array_or_empty(values, like):
    """`values`, flat, or an array of length 0 of the dtype of `like`."""
    if values is None:
        return like.reshape(like.size)[:0]
    else:
        return values.reshape(values.size)


@inline
def mask_or_empty(mask):
    """`mask`, flat, or one of length 0."""
    if mask is None:
        return np.empty(0, np.uint8)
    else:
        return mask.reshape(mask.size)


@inline
def parameter(values, default):
    """weight or bias, or one of period 1."""
    if values is None:
        found = np.empty(1)
        found[0] = default
        return found
    else:
        return values


@block
def float64_copy(values):
    """Values of any dtype as float64, so that what takes them is compiled once."""
    found = np.empty(values.size)
    for j in range(values.size):
        found[j] = values[j]
    return found


@block
def inverse_deviations(var, eps):
    """Rstd of each var."""
    found = np.empty(var.size)
    for j in range(var.size):
        found[j] = inverse_deviation(var[j], eps)
    return found
