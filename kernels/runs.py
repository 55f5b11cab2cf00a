"""Arithmetic of one run of contiguous elements that share their coefficients, in Numba.

Sums are kept in 16 float64 lanes per quantity, from run to run of the same channel. To which lane
an element goes, and when, depends on its place in the run alone. Nothing here loops over more than
one run.
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
    load_as,
    load_part,
    muladd,
    prefetch_as,
    store,
    store_part,
    stream,
)
from .jit import inline
from .registers import (
    add_product,
    block_length,
    folded,
    line_zeros,
    one_line,
    origin_of,
    sum_lanes,
    sum_of_products,
    sum_zeros,
    take,
)
from .schedule import STREAM_BYTES

AHEAD_BYTES = 8192
"""Sums ask for lines this far ahead: two threads read 128 MB at 45 GB/s without, 53 to 57 with."""


@inline
def run_shift(x, start, length):
    """Near the mean of a run, and the value itself where all are equal."""
    k = min(length, LANES)
    origin = np.float64(x[start])
    deviation = first(cast(load_part(x, start, k), origin) - origin, k)
    return origin_of(x, finite_or_zero(origin + sum_lanes(deviation) / k))


@inline
def look_ahead(x, length, following):
    """(vectors of a run to the last that looks ahead inside, elements ahead, ahead after).

    The vectors behind that look into the run that is summed next, `following` elements on.
    """
    ahead = min(AHEAD_BYTES // x.itemsize, length)
    return length - ahead, ahead, following - length + ahead


@inline
def add_part(s1, s2, x, i, k, shift):
    """Add k elements' x - shift and (x - shift)^2."""
    deviation = take(x, i, k, s1) - shift
    deviation = deviation if k == s1.lanes else first(deviation, k)
    return s1 + deviation, muladd(deviation, deviation, s2)


@inline
def run_sums(lanes, at, x, start, length, shift, following):
    """Add a run's sums of x - shift and (x - shift)^2 to the lanes of a channel."""
    zero = sum_zeros(x)
    whole, each = length // zero.lanes * zero.lanes, block_length(x, length, zero)
    inside, ahead, after = look_ahead(x, whole, following)
    for begin in range(0, length, each):
        s1, s2, end = zero, zero, min(begin + each, length)
        for i in range(begin, min(end, whole), zero.lanes):
            prefetch_as(x, start + i + (ahead if i < inside else after), zero)
            s1, s2 = add_part(s1, s2, x, start + i, zero.lanes, shift)
        if end > whole:
            s1, s2 = add_part(s1, s2, x, start + whole, length - whole, shift)
        store(lanes, at, load(lanes, at) + folded(s1))
        store(lanes, at + LANES, load(lanes, at + LANES) + folded(s2))


@inline
def add_grad_part(s1, s2, low, s3, dy, x, i, k, mean):
    """Add k elements' dy, dy * (x - mean), in two parts, and x - mean."""
    g, deviation = take(dy, i, k, s1), take(x, i, k, s1) - mean
    deviation = deviation if k == s1.lanes else first(deviation, k)
    s2, low = add_product(s2, low, g, deviation)
    return s1 + g, s2, low, s3 + deviation


@inline
def run_grad_sums(lanes, at, dy, x, start, length, mean, following):
    """Add a run's sums of dy, dy * (x - mean) and x - mean to the lanes of a channel."""
    zero = sum_zeros(x)
    whole, each = length // zero.lanes * zero.lanes, block_length(x, length, zero)
    inside, ahead, after = look_ahead(x, whole, following)
    for begin in range(0, length, each):
        s1, s2, low, s3, end = zero, zero, zero, zero, min(begin + each, length)
        for i in range(begin, min(end, whole), zero.lanes):
            to = start + i + (ahead if i < inside else after)
            prefetch_as(dy, to, zero)
            prefetch_as(x, to, zero)
            s1, s2, low, s3 = add_grad_part(s1, s2, low, s3, dy, x, start + i, zero.lanes, mean)
        if end > whole:
            i, k = start + whole, length - whole
            s1, s2, low, s3 = add_grad_part(s1, s2, low, s3, dy, x, i, k, mean)
        store(lanes, at, load(lanes, at) + folded(s1))
        store(lanes, at + LANES, load(lanes, at + LANES) + folded(sum_of_products(s2, low)))
        store(lanes, at + 2 * LANES, load(lanes, at + 2 * LANES) + folded(s3))


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
    """Elements from y[i] to the start of a cache line."""
    return -(address(y) + i * y.itemsize) % LINE_BYTES // y.itemsize


@inline
def head(y, start, length, streaming):
    """Elements before the first whole cache line of a run; none if it is not streamed."""
    return min(length, gap(y, start)) if streaming else 0


@inline
def put(y, i, k, v, streaming):
    """Set y[i] to y[i + k - 1] to the first k lanes, rounded; whole vectors may be streamed."""
    if k < v.lanes:
        store_part(y, i, k, cast(v, y))
    elif streaming:
        stream(y, i, cast(v, y))
    else:
        store(y, i, cast(v, y))


@inline
def line_memory(threads, lines, x):
    """Lines of x that writers share, for every thread; no two threads write to one."""
    return np.empty((threads, (lines + 1) * LINE_BYTES // x.itemsize), x.dtype)


@inline
def goes_on(y, end, length, streaming):
    """Whether the last line of a run that ends before y[end] is left to the run behind it."""
    return streaming and length * y.itemsize >= LINE_BYTES and gap(y, end) > 0


@inline
def shared_sweep(y, line, ends, start, length, streaming, value, coefficients, arrays):
    """Set a run of y to a value of `normcore.kernels.values`.

    `ends` says whether the run before it, which lies before it in memory, left the first elements
    of their common line in `line`, and whether this one is to do the same for the run behind it:
    such a line, stored in two parts, would first be read from memory, and the streamed stores
    behind it would wait for that.
    """
    (began, leaves), like, whole = ends, line_zeros(y), one_line(y)
    k = head(y, start, length, streaming)
    if k > 0:
        to, at = (line, whole.lanes - k) if began else (y, start)
        put(to, at, k, value(start, k, like, coefficients, arrays), False)
    begin = start + k
    if began:
        stream(y, begin - whole.lanes, load_as(line, 0, whole))
    stop = begin + (length - k) // like.lanes * like.lanes
    for i in range(begin, stop, like.lanes):
        v = value(i, like.lanes, like, coefficients, arrays)
        put(y, i, like.lanes, v, streaming)
    k = start + length - stop
    if k > 0:
        to, at = (line, 0) if leaves else (y, stop)
        put(to, at, k, value(stop, k, like, coefficients, arrays), False)
        if leaves and k >= whole.lanes:  # of doubles, 16 at a time are two lines
            stream(y, stop, load_as(line, 0, whole))
            store(line, 0, load_as(line, whole.lanes, whole))


@inline
def sweep(y, start, length, streaming, value, coefficients, arrays):
    """`shared_sweep` of a run that shares no line."""
    ends = False, False
    shared_sweep(y, y, ends, start, length, streaming, value, coefficients, arrays)
