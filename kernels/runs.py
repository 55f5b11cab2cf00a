"""Arithmetic of one run of contiguous elements that share their coefficients, in Numba.

Sums are kept in 16 float64 lanes per quantity, from run to run of the same channel: element i of a
run goes to lane i % 16, so the order of additions is fixed by the sizes. Nothing here loops over
more than one run.
"""

from __future__ import annotations

import numpy as np

from .coefficients import (
    DY_HIGH,
    DY_LOW,
    FACTOR,
    HIGH,
    LOW,
    SCALE,
    SHIFT,
    SLOPE,
    finite_or_zero,
)
from .intrinsics import (
    LANES,
    LINE_BYTES,
    address,
    cast,
    first,
    load,
    load_part,
    muladd,
    prefetch,
    store,
    store_part,
    stream,
    sum_lanes,
)
from .jit import inline
from .schedule import STREAM_BYTES

AHEAD_BYTES = 8192
"""Sums ask for lines this far ahead: two threads read 128 MB at 45 GB/s without, 53 to 57 with."""


@inline
def run_shift(x, start, length):
    """Near the mean of a run, and the value itself where all are equal."""
    k = min(length, LANES)
    origin = np.float64(x[start])
    deviation = first(cast(load_part(x, start, k), origin) - origin, k)
    return finite_or_zero(origin + sum_lanes(deviation) / k)


@inline
def look_ahead(x, length, following):
    """(whole vectors of a run to the last that looks ahead inside, elements ahead, ahead after).

    The vectors behind that look into the run that is summed next, `following` elements on.
    """
    ahead = min(AHEAD_BYTES // x.itemsize, length // LANES * LANES)
    return length // LANES * LANES - ahead, ahead, following - length // LANES * LANES + ahead


@inline
def run_sums(lanes, at, x, start, length, shift, following):
    """Add a run's sums of x - shift and (x - shift)^2 to the lanes of a channel."""
    s1, s2 = load(lanes, at), load(lanes, at + LANES)
    stop = start + length // LANES * LANES
    inside, ahead, after = look_ahead(x, length, following)
    for i in range(start, stop, LANES):
        prefetch(x, i + (ahead if i - start < inside else after))
        deviation = cast(load(x, i), lanes) - shift
        s1 = s1 + deviation
        s2 = muladd(deviation, deviation, s2)
    k = start + length - stop
    if k > 0:
        deviation = first(cast(load_part(x, stop, k), lanes) - shift, k)
        s1 = s1 + deviation
        s2 = muladd(deviation, deviation, s2)
    store(lanes, at, s1)
    store(lanes, at + LANES, s2)


@inline
def run_grad_sums(lanes, at, dy, x, start, length, mean, following):
    """Add a run's sums of dy, dy * (x - mean) and x - mean to the lanes of a channel."""
    s1, s2, s3 = load(lanes, at), load(lanes, at + LANES), load(lanes, at + 2 * LANES)
    stop = start + length // LANES * LANES
    inside, ahead, after = look_ahead(x, length, following)
    for i in range(start, stop, LANES):
        to = i + (ahead if i - start < inside else after)
        prefetch(dy, to)
        prefetch(x, to)
        gradient = cast(load(dy, i), lanes)
        deviation = cast(load(x, i), lanes) - mean
        s1 = s1 + gradient
        s2 = muladd(gradient, deviation, s2)
        s3 = s3 + deviation
    k = start + length - stop
    if k > 0:
        gradient = cast(load_part(dy, stop, k), lanes)
        deviation = first(cast(load_part(x, stop, k), lanes) - mean, k)
        s1 = s1 + gradient
        s2 = muladd(gradient, deviation, s2)
        s3 = s3 + deviation
    store(lanes, at, s1)
    store(lanes, at + LANES, s2)
    store(lanes, at + 2 * LANES, s3)


@inline
def forward_coefficients(a, cells, j):
    """Column j of forward coefficients, as scalars that a loop can keep in registers."""
    return a[HIGH * cells + j], a[LOW * cells + j], a[SCALE * cells + j], a[SHIFT * cells + j]


@inline
def backward_coefficients(a, cells, j):
    """Column j of backward coefficients, as scalars that a loop can keep in registers."""
    return (
        a[HIGH * cells + j],
        a[LOW * cells + j],
        a[FACTOR * cells + j],
        a[SLOPE * cells + j],
        a[DY_HIGH * cells + j],
        a[DY_LOW * cells + j],
    )


@inline
def normalized(v, coefficients):
    """The y of the lanes v of x, in the dtype of the coefficients (scalars or vectors)."""
    high, low, scale, shift = coefficients
    return muladd((cast(v, high) - high) - low, scale, shift)


@inline
def gradient(g, v, coefficients):
    """The dx of the lanes g of dy and v of x, in the dtype of the coefficients."""
    high, low, factor, slope, dy_high, dy_low = coefficients
    through_var = muladd((cast(v, high) - high) - low, slope, dy_low)
    return ((cast(g, high) - dy_high) - through_var) * factor


@inline
def is_streamed(y, x):
    """Whether an output is too large for the cache; one that is x lies in it already."""
    return y.size * y.itemsize > STREAM_BYTES and address(y) != address(x)


@inline
def head(y, start, length, streaming):
    """Elements before the first whole cache line of a run; none if it is not streamed."""
    if not streaming:
        return 0
    gap = -(address(y) + start * y.itemsize) % LINE_BYTES
    return min(length, gap // y.itemsize)


@inline
def put(y, i, v, streaming):
    """Store lanes, rounded to the dtype of y."""
    if streaming:
        stream(y, i, cast(v, y))
    else:
        store(y, i, cast(v, y))


@inline
def apply_part(y, x, i, k, coefficients):
    """`apply_run` for k < 16 elements."""
    if k > 0:
        store_part(y, i, k, cast(normalized(load_part(x, i, k), coefficients), y))


@inline
def apply_run(y, x, start, length, coefficients, streaming):
    """Set y = ((x - high) - low) * scale + shift."""
    k = head(y, start, length, streaming)
    apply_part(y, x, start, k, coefficients)
    begin = start + k
    stop = begin + (length - k) // LANES * LANES
    for i in range(begin, stop, LANES):
        put(y, i, normalized(load(x, i), coefficients), streaming)
    apply_part(y, x, stop, start + length - stop, coefficients)


@inline
def apply_grads_part(dx, dy, x, i, k, coefficients):
    """`apply_grads_run` for k < 16 elements."""
    if k > 0:
        v = gradient(load_part(dy, i, k), load_part(x, i, k), coefficients)
        store_part(dx, i, k, cast(v, dx))


@inline
def apply_grads_run(dx, dy, x, start, length, coefficients, streaming):
    """Set dx = factor * ((dy - dy_high) - (((x - high) - low) * slope + dy_low))."""
    k = head(dx, start, length, streaming)
    apply_grads_part(dx, dy, x, start, k, coefficients)
    begin = start + k
    stop = begin + (length - k) // LANES * LANES
    for i in range(begin, stop, LANES):
        put(dx, i, gradient(load(dy, i), load(x, i), coefficients), streaming)
    apply_grads_part(dx, dy, x, stop, start + length - stop, coefficients)


@inline
def scale_part(dx, dy, i, k, factor):
    """`scale_run` for k < 16 elements."""
    if k > 0:
        store_part(dx, i, k, cast(cast(load_part(dy, i, k), factor) * factor, dx))


@inline
def scale_run(dx, dy, start, length, factor, streaming):
    """Set dx = dy * factor: the gradient where the statistics are constants."""
    k = head(dx, start, length, streaming)
    scale_part(dx, dy, start, k, factor)
    begin = start + k
    stop = begin + (length - k) // LANES * LANES
    for i in range(begin, stop, LANES):
        put(dx, i, cast(load(dy, i), factor) * factor, streaming)
    scale_part(dx, dy, stop, start + length - stop, factor)
