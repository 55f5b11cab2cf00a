"""The activations of `table.ACTIVATIONS` and their derivatives on lanes, in Numba.

The sigmoid and the normal distribution are made of exp(-t) with t >= 0, which cannot overflow, so
that both tails keep their digits. NaN stays NaN; what happens at infinity is what the formulas of
`normcore.reference` give.
"""

from __future__ import annotations

import math

from .exponential import exp_down, polynomial
from .intrinsics import muladd, where_less
from .jit import block, inline

LEAK = 0.01

# The tail of the normal distribution is exp(-t^2 / 2) * P(t) / Q(t): Hart et al., "Computer
# Approximations" (1968), algorithm 5666; 15 digits.
_TAIL_P = (
    0.0352624965998911, 0.700383064443688, 6.37396220353165, 33.912866078383, 112.079291497871,
    221.213596169931, 220.206867912376,
)  # fmt: skip
_TAIL_Q = (
    0.0883883476483184, 1.75566716318264, 16.064177579207, 86.7807322029461, 296.564248779674,
    637.333633378831, 793.826512519948, 440.413735824752,
)  # fmt: skip
_TAIL_MOST = 64.0  # the tail is 0 long before, and t^7 finite
_DENSITY = 1 / math.sqrt(2 * math.pi)


@inline
def _absolute(v):
    return where_less(v, 0.0, 0.0 - v, v)


@inline
def _sigmoids(v):
    """(sigmoid(v), sigmoid(-v))."""
    e = exp_down(0.0 - _absolute(v))
    large = 1.0 / (e + 1.0)
    small = e * large
    return where_less(v, 0.0, small, large), where_less(v, 0.0, large, small)


@inline
def _normal(v):
    """(cumulative distribution, density) of the standard normal distribution."""
    t = _absolute(v)
    e = exp_down(t * t * -0.5)
    t = where_less(_TAIL_MOST, t, _TAIL_MOST, t)
    tail = e * (polynomial(t, _TAIL_P) / polynomial(t, _TAIL_Q))
    return where_less(v, 0.0, tail, 1.0 - tail), e * _DENSITY


@block
def _silu(v):
    return v * _sigmoids(v)[0]


@block
def _silu_slope(v):
    s, rest = _sigmoids(v)
    return muladd(v * rest, s, s)


@block
def _gelu(v):
    return v * _normal(v)[0]


@block
def _gelu_slope(v):
    share, density = _normal(v)
    return muladd(v, density, share)


@inline
def activated(v, activation):
    """The activation of lanes, by its number."""
    if activation == 0:
        return v
    if activation == 1:
        return where_less(v, 0.0, 0.0, v)
    if activation == 2:
        return where_less(6.0, v, 6.0, where_less(v, 0.0, 0.0, v))
    if activation == 3:
        return where_less(v, 0.0, v * LEAK, v)
    if activation == 4:
        return _silu(v)
    return _gelu(v)


@inline
def activation_slope(v, activation):
    """The derivative of the activation at lanes, by its number."""
    one = where_less(v, v, v, 1.0)
    if activation == 0:
        return one
    if activation == 1:
        return where_less(0.0, v, one, 0.0)
    if activation == 2:
        return where_less(0.0, v, where_less(v, 6.0, one, 0.0), 0.0)
    if activation == 3:
        return where_less(0.0, v, one, LEAK)
    if activation == 4:
        return _silu_slope(v)
    return _gelu_slope(v)
