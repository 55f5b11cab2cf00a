"""Arithmetic of one run of contiguous elements that share their coefficients, in Numba.

Sums are kept in 16 float64 lanes per quantity, from run to run of the same channel: element i of a
run goes to lane i % 16, so the order of additions is fixed by the sizes. Nothing here loops over
more than one run.
"""

from __future__ import annotations

import numpy as np

from .coefficients import finite_or_zero
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


# Runs that a mask cuts short would all begin in lane 0. Its sum of a thousand elements would be off
# by 6e-15 (float64, random mask): a short run goes as a whole to a lane that the caller chooses.


@inline
def short_sums(lanes, at, lane, x, start, length, shift):
    """`run_sums` of a run of less than 16 elements, to one lane."""
    deviation = first(cast(load_part(x, start, length), lanes) - shift, length)
    lanes[at + lane] += sum_lanes(deviation)
    lanes[at + LANES + lane] += sum_lanes(deviation * deviation)


@inline
def short_grad_sums(lanes, at, lane, dy, x, start, length, mean):
    """`run_grad_sums` of a run of less than 16 elements, to one lane."""
    gradient = cast(load_part(dy, start, length), lanes)
    deviation = first(cast(load_part(x, start, length), lanes) - mean, length)
    lanes[at + lane] += sum_lanes(gradient)
    lanes[at + LANES + lane] += sum_lanes(gradient * deviation)
    lanes[at + 2 * LANES + lane] += sum_lanes(deviation)


@inline
def is_streamed(y, x):
    """Whether an output is too large for the cache; one that is x lies in it already."""
    return y.size * y.itemsize > STREAM_BYTES and address(y) != address(x)


@inline
def gap(y, i):
    """Elements from y[i] to the start of a cache line, or of half a one, which 16 halves fill."""
    line = min(LINE_BYTES, LANES * y.itemsize)
    return -(address(y) + i * y.itemsize) % line // y.itemsize


@inline
def head(y, start, length, streaming):
    """Elements before the first whole cache line of a run; none if it is not streamed."""
    return min(length, gap(y, start)) if streaming else 0


@inline
def put(y, i, v, streaming):
    """Store lanes, rounded to the dtype of y."""
    if streaming:
        stream(y, i, cast(v, y))
    else:
        store(y, i, cast(v, y))


@inline
def put_part(y, i, k, v):
    """Store the first k lanes, rounded to the dtype of y."""
    store_part(y, i, k, cast(v, y))


@inline
def sweep(y, start, length, streaming, value, coefficients, arrays):
    """Set a run of y to a value of `normcore.kernels.values`."""
    k = head(y, start, length, streaming)
    if k > 0:
        put_part(y, start, k, value(start, k, coefficients, arrays))
    begin = start + k
    stop = begin + (length - k) // LANES * LANES
    for i in range(begin, stop, LANES):
        put(y, i, value(i, LANES, coefficients, arrays), streaming)
    k = start + length - stop
    if k > 0:
        put_part(y, stop, k, value(stop, k, coefficients, arrays))
