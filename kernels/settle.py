"""From sums to forward coefficients for several statistics of one cell each at a time, in Numba.

The arithmetic is that of `coefficients` on lanes, so the bits are the same. One after the other,
the 1024 statistics of (64, 1024) took 25 us of a forward of 48.
"""

from __future__ import annotations

from .coefficients import (
    EMPTY,
    HIGH,
    LOW,
    SCALE,
    SHIFT,
    WIDE,
    columns_of,
    lost_digits,
    put_forward,
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
def _put_lanes(a, cells, j, k, mean, rest, scale, shift):
    high = cast(mean + rest, a)
    put(a, HIGH * cells + j, k, high, False)
    put(a, LOW * cells + j, k, cast((mean - cast(high, mean)) + rest, a), False)
    put(a, SCALE * cells + j, k, scale, False)
    put(a, SHIFT * cells + j, k, shift, False)


@inline
def put_forward_lanes(columns, j, k, mean, rest, rstd, scale, shift):
    """`coefficients.put_forward` of k cells from j on."""
    narrow, exact, kind, cells = columns
    _put_lanes(narrow, cells, j, k, mean, rest, scale, shift)
    _put_lanes(exact, cells, j, k, mean, rest, scale, shift)
    none = splat(0.0)
    wide = where_less(4e37, _absolute(mean + rest), none + WIDE, none)
    wide = where_less(rstd, 1e-30, WIDE, wide)
    wide = where_less(1e30, _absolute(rstd), WIDE, wide)
    wide = where_less(1e30, _absolute(scale), WIDE, wide)
    wide = wide if narrow.itemsize == 4 else none
    put(kind, j, k, where(rstd, wide, none + EMPTY), False)


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
def _moments(sums, j, k, count):
    """(sum of x - shift, its mean, sum of squared deviations) of k statistics from j on."""
    values, _, _, cells = sums
    none = splat(0.0)
    s1, s2 = take(values, j, k, none), take(values, cells + j, k, none)
    rest = s1 / count
    m2 = s2 - s1 * rest
    return s1, rest, where_less(m2, 0.0, 0.0, m2)


@block
def move_bad_lanes(shift, bad, x, sums, count, begin, end):
    """`coefficients.move_bad_shifts` of statistics whose sums are those of one unit."""
    none, lost = splat(0.0), lost_digits(x.itemsize)
    for j in range(begin, end, LANES):
        k = min(LANES, end - j)
        s1, rest, m2 = _moments(sums, j, k, max(count, 1.0))
        flags = where_less(m2 * lost, s1 * rest, none + 1.0, none)
        put(bad, j, k, flags, False)
        if sum_lanes(flags) > 0.0:
            for g in range(j, j + k):
                if bad[g] != 0.0:
                    shift[g] = origin_of(x, shift[g] + sums[0][g] / max(count, 1.0))


@block
def finish_lanes(mean, var, rstd, columns, sums, shift, count, weight, bias, eps, begin, end):
    """`coefficients.finish_forward` of statistics whose sums are those of one unit; count > 0."""
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
