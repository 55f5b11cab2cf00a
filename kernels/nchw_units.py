"""Units and blocks of the nchw family: which elements a thread works on at a time, in Numba.

Sums cover *cells*, runs of s contiguous elements of one channel of each plane (or of the d
channels of a statistic, which are one run of d * s), in units; elementwise passes cover the runs of
channels. Where runs are short, a block of adjacent ones is worked on together.
"""

from __future__ import annotations

from .coefficients import EMPTY, FORWARD_SUMS, NARROW
from .intrinsics import LANES, load, memory
from .jit import block, inline
from .masks import kept_memory
from .registers import sum_lanes
from .runs import run_grad_sums, run_shift, run_sums, short_grad_sums, short_sums, sweep
from .schedule import RUN_BYTES, UNIT_ELEMENTS
from .values import (
    backward_scalars,
    before_activation,
    forward_scalars,
    fused,
    gradient,
    plain,
    scale_scalars,
    scaled,
    zero,
)


@inline
def unit_planes(s):
    """Planes of a unit: several short runs, or one."""
    return max(1, UNIT_ELEMENTS // s)


@inline
def unit_pieces(s):
    """Units that a run is cut into: one, unless it is long."""
    return -(-s // (2 * UNIT_ELEMENTS))


@inline
def unit_count(n, s):
    """Units of a channel."""
    return -(-n // unit_planes(s)) * unit_pieces(s)


@inline
def unit_bounds(u, n, s):
    """(first plane, last plane + 1, offset in the run, length) of unit u."""
    planes, pieces = unit_planes(s), unit_pieces(s)
    plane = u // pieces * planes
    offset = u % pieces * (2 * UNIT_ELEMENTS)
    return plane, min(n, plane + planes), offset, min(2 * UNIT_ELEMENTS, s - offset)


@inline
def block_channels(itemsize, s):
    """Channels of a block."""
    return -(-RUN_BYTES // (s * itemsize))


@inline
def block_count(itemsize, c, s):
    """Blocks of channels."""
    return -(-c // block_channels(itemsize, s))


@inline
def block_bounds(itemsize, k, c, s):
    """First and last + 1 channel of block k."""
    width = block_channels(itemsize, s)
    return k * width, min(c, (k + 1) * width)


@inline
def is_shared_by_blocks(blocks, threads):
    """Whether whole blocks keep all threads busy."""
    return blocks >= 4 * threads or blocks % threads == 0


@inline
def to_next_run(i, ch, begin, end, offset, length, n, c, s):
    """Elements from the start of a run of sums to the start of the one that is summed after it."""
    if offset + length < s:
        return length
    if ch + 1 < end:
        return s
    if i + 1 < n:
        return (c - (end - begin) + 1) * s - offset
    return (1 - i * c) * s - offset  # of the next channel, while this one is finished


@inline
def plane_of(i, ch, n, c, planes):
    """The plane of the mask for a run: its own, or with n = 1 that of the sample it is of."""
    return i if n > 1 else ch // (c // planes)


@inline
def add_run(lanes, at, dy, x, start, length, shift, lane):
    """Add the sums of a run between elements that do not count."""
    if dy is None:
        if length < LANES:
            short_sums(lanes, at, lane, x, start, length, shift)
        else:
            run_sums(lanes, at, x, start, length, shift, 0)
    else:  # Numba drops the branch that the type of dy excludes
        if length < LANES:
            short_grad_sums(lanes, at, lane, dy, x, start, length, shift)
        else:
            run_grad_sums(lanes, at, dy, x, start, length, shift, 0)


@block
def add_kept(lanes, at, dy, x, shift, kept, plane, period, start, offset, length):
    """Add the sums of what counts of a run, whose mask repeats every `period` elements."""
    firsts, edges, _ = kept
    for origin in range(offset // period * period, offset + length, period):
        for r in range(firsts[plane], firsts[plane + 1]):
            low = max(offset, origin + edges[2 * r])
            high = min(offset + length, origin + edges[2 * r + 1])
            if high > low:
                add_run(lanes, at, dy, x, start + low - offset, high - low, shift, r % LANES)


@block
def sum_unit(partial, lanes, dy, x, shift, kept, period, quantities, u, begin, end, n, c, s):
    """Set partial[u] of the cells begin to end; dy is None in a forward."""
    plane, last_plane, offset, length = unit_bounds(u, n, s)
    for at in range((end - begin) * quantities * LANES):
        lanes[at] = 0.0
    for i in range(plane, last_plane):
        for ch in range(begin, end):
            at, start = (ch - begin) * quantities * LANES, (i * c + ch) * s + offset
            if kept[2] > 0:
                p = plane_of(i, ch, n, c, kept[2])
                add_kept(lanes, at, dy, x, shift[ch], kept, p, period, start, offset, length)
                continue
            following = to_next_run(i, ch, begin, end, offset, length, n, c, s)
            if dy is None:
                run_sums(lanes, at, x, start, length, shift[ch], following)
            else:
                run_grad_sums(lanes, at, dy, x, start, length, shift[ch], following)
    for ch in range(begin, end):
        for q in range(quantities):
            at = ((ch - begin) * quantities + q) * LANES
            partial[(u * quantities + q) * c + ch] = sum_lanes(load(lanes, at))


@block
def sum_share(partial, lanes, dy, x, shift, firsts, edges, period, first, last, n, c, s):
    """Units of blocks `first` to `last`, counted block by block within a unit."""
    itemsize, quantities = x.itemsize, partial.shape[1]
    blocks, kept = block_count(itemsize, c, s), kept_memory(firsts, edges)
    partial, lanes = memory(partial), memory(lanes)
    dy, x, shift = memory(dy), memory(x), memory(shift)
    for w in range(first, last):
        begin, end = block_bounds(itemsize, w % blocks, c, s)
        u = w // blocks
        sum_unit(partial, lanes, dy, x, shift, kept, period, quantities, u, begin, end, n, c, s)


@inline
def sum_cells(sums, lanes, dy, x, shift, kept, period, begin, end, n, c, s):
    """All units of the cells begin to end, block by block."""
    partial, units, quantities, _ = sums
    width = block_channels(x.itemsize, s)
    for j in range(begin, end, width):
        last = min(end, j + width)
        for u in range(units):
            sum_unit(partial, lanes, dy, x, shift, kept, period, quantities, u, j, last, n, c, s)


@block
def set_shifts(shift, x, kept, begin, end, n, c, s):
    """Shifts of the cells begin to end, from the first of their elements that count."""
    first, edges, planes = kept
    for ch in range(begin, end):
        if planes == 0:
            shift[ch] = run_shift(x, ch * s, s)
            continue
        shift[ch] = 0.0
        for i in range(n):
            p = plane_of(i, ch, n, c, planes)
            if first[p + 1] > first[p]:
                low, high = edges[2 * first[p]], edges[2 * first[p] + 1]
                shift[ch] = run_shift(x, (i * c + ch) * s + low, high - low)
                break


@block
def set_shifts_share(shift, x, firsts, edges, begin, end, n, c, s):
    """`set_shifts` of arrays."""
    set_shifts(memory(shift), memory(x), kept_memory(firsts, edges), begin, end, n, c, s)


@block
def sum_moved(partial, lanes, x, shift, kept, period, bad, first, last, begin, end, n, c, s):
    """Set partial[first to last] again, for those of the cells whose shift was moved."""
    for ch in range(begin, end):
        if bad[ch] != 0.0:
            for u in range(first, last):
                sum_unit(
                    partial, lanes, None, x, shift, kept, period, FORWARD_SUMS, u, ch, ch + 1, n,
                    c, s
                )  # fmt: skip


@block
def sum_moved_share(
    partial, lanes, x, shift, firsts, edges, period, bad, first, last, begin, end, n, c, s
):
    """`sum_moved` of arrays."""
    sum_moved(
        memory(partial), memory(lanes), memory(x), memory(shift), kept_memory(firsts, edges),
        period, memory(bad), first, last, begin, end, n, c, s
    )  # fmt: skip


# Elementwise passes: `put` sets a run of channel ch and plane i from what `work` holds.


@inline
def put_unit(put, work, u, begin, end, n, c, s):
    """Unit u of the channels begin to end."""
    plane, last_plane, offset, length = unit_bounds(u, n, s)
    for i in range(plane, last_plane):
        for ch in range(begin, end):
            put(work, i, ch, (i * c + ch) * s + offset, offset, length, n, c)


@inline
def put_share(put, work, itemsize, first, last, n, c, s):
    """Units of blocks `first` to `last`, counted block by block within a unit."""
    blocks = block_count(itemsize, c, s)
    for w in range(first, last):
        begin, end = block_bounds(itemsize, w % blocks, c, s)
        put_unit(put, work, w // blocks, begin, end, n, c, s)


@inline
def put_channels(put, work, itemsize, begin, end, n, c, s):
    """All units of the channels begin to end, backwards.

    What was read last is still in the cache where a block does not fit.
    """
    width, units = block_channels(itemsize, s), unit_count(n, s)
    for k in range((end - begin - 1) // width, -1, -1):
        j = begin + k * width
        for u in range(units - 1, -1, -1):
            put_unit(put, work, u, j, min(end, j + width), n, c, s)


@inline
def put_y(work, i, ch, start, offset, length, n, c):
    """Y of a run."""
    y, x, residual, adds, activation, narrow, exact, kind, streaming = work
    given = (residual, adds, activation)
    if kind[ch] != NARROW:
        a, counts = forward_scalars(exact, c, ch), kind[ch] != EMPTY
        sweep(y, start, length, streaming, fused, a, (x, counts, given))
    elif adds or activation != 0:
        a = forward_scalars(narrow, c, ch)
        sweep(y, start, length, streaming, fused, a, (x, True, given))
    else:
        sweep(y, start, length, streaming, plain, forward_scalars(narrow, c, ch), (x,))


@inline
def put_g(work, i, ch, start, offset, length, n, c):
    """The gradient of a run before its activation."""
    g, dy, x, residual, adds, activation, narrow, exact, kind, streaming = work
    given = (residual, adds, activation)
    if kind[ch] != NARROW:
        a, counts = forward_scalars(exact, c, ch), kind[ch] != EMPTY
        sweep(g, start, length, streaming, before_activation, a, (dy, x, counts, given))
    else:
        a = forward_scalars(narrow, c, ch)
        sweep(g, start, length, streaming, before_activation, a, (dy, x, True, given))


@block
def put_gradient(dx, dy, x, narrow, exact, kind, training, streaming, ch, start, length, c):
    """Dx of a run of elements that count."""
    if training and kind[ch] == NARROW:
        a = backward_scalars(narrow, c, ch)
        sweep(dx, start, length, streaming, gradient, a, (dy, x))
    elif training:
        a = backward_scalars(exact, c, ch)
        sweep(dx, start, length, streaming, gradient, a, (dy, x))
    elif kind[ch] == NARROW:
        sweep(dx, start, length, streaming, scaled, scale_scalars(narrow, c, ch), (dy,))
    else:
        sweep(dx, start, length, streaming, scaled, scale_scalars(exact, c, ch), (dy,))


@block
def put_kept(
    dx, dy, x, narrow, exact, kind, training, streaming, kept, p, ch, start, offset, length, c
):
    """Dx of a run of which some elements do not count: those are 0."""
    firsts, edges, _ = kept
    at, end = offset, offset + length
    for r in range(firsts[p], firsts[p + 1]):
        low, high = max(at, edges[2 * r]), min(end, edges[2 * r + 1])
        if high > low:
            sweep(dx, start + at - offset, low - at, streaming, zero, (), (dy,))
            put_gradient(
                dx, dy, x, narrow, exact, kind, training, streaming, ch, start + low - offset,
                high - low, c
            )  # fmt: skip
            at = high
    sweep(dx, start + at - offset, end - at, streaming, zero, (), (dy,))


@inline
def put_dx(work, i, ch, start, offset, length, n, c):
    """Dx of a run."""
    dx, dy, x, narrow, exact, kind, training, streaming, kept = work
    if kept[2] == 0:
        put_gradient(dx, dy, x, narrow, exact, kind, training, streaming, ch, start, length, c)
    else:
        p = plane_of(i, ch, n, c, kept[2])
        put_kept(
            dx, dy, x, narrow, exact, kind, training, streaming, kept, p, ch, start, offset,
            length, c
        )  # fmt: skip
