"""The activations of `table.ACTIVATIONS` and their derivatives on lanes, in Numba.

The sigmoid and the normal distribution are made of exp(-t) with t >= 0, which cannot overflow, so
that both tails keep their digits. NaN stays NaN; what happens at infinity is what the formulas of
`normcore.reference` give.
"""

from __future__ import annotations

import math

from .intrinsics import muladd, polynomial, power_of_two, where_less
from .jit import block, inline

LEAK = 0.01

# exp(r) for |r| <= log(2) / 2 by Taylor's series: errors 5e-9 (float32), 4e-18 (float64).
_EXP_FLOAT32 = tuple(1 / math.factorial(k) for k in range(7, -1, -1))
_EXP_FLOAT64 = tuple(1 / math.factorial(k) for k in range(13, -1, -1))

# log(2) = high + low; k * high is exact for every exponent k.
_LOG2_HIGH_FLOAT32, _LOG2_LOW_FLOAT32 = 0.693359375, -2.12194440e-4
_LOG2_HIGH_FLOAT64, _LOG2_LOW_FLOAT64 = 6.93145751953125e-1, 1.42860682030941723212e-6

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
def _parts(v, most, magic, high, low):
    """(r, 1.5 * 2^p + k) of v = k * log(2) + r, for v raised to -most."""
    v = where_less(v, -most, -most, v)
    shifted = muladd(v, 1 / math.log(2), magic)
    k = shifted - magic
    return muladd(k, -low, muladd(k, -high, v)), shifted


@block
def exp_down(v):
    """exp(v) of lanes v <= 0; 0 where it would be below the smallest normal number."""
    if v.itemsize == 4:
        r, shifted = _parts(v, 88.0, 1.5 * 2.0**23, _LOG2_HIGH_FLOAT32, _LOG2_LOW_FLOAT32)
        return polynomial(r, _EXP_FLOAT32) * power_of_two(shifted)
    r, shifted = _parts(v, 709.2, 1.5 * 2.0**52, _LOG2_HIGH_FLOAT64, _LOG2_LOW_FLOAT64)
    return polynomial(r, _EXP_FLOAT64) * power_of_two(shifted)


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
