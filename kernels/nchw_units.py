"""Units and blocks of the nchw family: which elements a thread works on at a time, in Numba.

Sums cover *cells*, runs of s contiguous elements of one channel of each plane (or of the d
channels of a statistic, which are one run of d * s), in units; elementwise passes cover the runs of
channels. Where runs are short, a block of adjacent ones is worked on together.
"""

from __future__ import annotations

from .coefficients import EMPTY, FORWARD_SUMS, NARROW
from .intrinsics import LANES, load, memory, prefetch_to_write
from .jit import block, inline
from .masks import kept_memory
from .registers import sum_lanes
from .runs import (
    AHEAD_BYTES,
    goes_on,
    run_grad_sums,
    run_shift,
    run_sums,
    shared_sweep,
    short_grad_sums,
    short_sums,
    sweep,
)
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

ENDS_AHEAD = 2
"""So many planes before a block's runs are set, the lines at their ends are asked for."""


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
def runs_ahead(x, width, n, s):
    """How far ahead lines are asked for: (channels of whole blocks, planes, channels)."""
    ahead = max(1, -(-AHEAD_BYTES // (s * x.itemsize)))
    return ahead // width // n * width, ahead // width % n, ahead % width


@inline
def to_later_run(ahead, i, ch, end, width, offset, length, n, c, s):
    """Elements from the start of a run of sums to the start of the one to ask for meanwhile.

    That is AHEAD_BYTES later: with the next one, forward and backward of (32, 1024, 14, 14) took
    1.41 and 2.11 ms, and take 1.27 and 1.88.
    """
    if offset + length < s:
        return length
    whole, planes, channels = ahead
    later, to = i + planes, ch + channels
    if to >= end:
        later, to = later + 1, to - width
    if later >= n:
        later, to = later - n, to + width
    return ((later - i) * c + to + whole - ch) * s - offset


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
    width, ahead = end - begin, runs_ahead(x, end - begin, n, s)
    for at in range((end - begin) * quantities * LANES):
        lanes[at] = 0.0
    for i in range(plane, last_plane):
        for ch in range(begin, end):
            at, start = (ch - begin) * quantities * LANES, (i * c + ch) * s + offset
            if kept[2] > 0:
                p = plane_of(i, ch, n, c, kept[2])
                add_kept(lanes, at, dy, x, shift[ch], kept, p, period, start, offset, length)
                continue
            following = to_later_run(ahead, i, ch, end, width, offset, length, n, c, s)
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


# Elementwise passes: `put` sets a run of channel ch and plane i from what `work` holds: the output,
# whether it is streamed, memory for a line that two runs share, and what is read.


@inline
def run_count(n, c, s):
    """Runs of channels, long ones in pieces."""
    return n * c * unit_pieces(s)


@inline
def put_runs(put, work, first, last, n, c, s):
    """Runs, or pieces of them, `first` to `last` in the order of memory.

    Channel by channel, with no line shared, y of (32, 1024, 14, 14) and (32, 512, 28, 28) took 1.24
    of Cython's time, and takes 1.0.
    """
    pieces, began = unit_pieces(s), False
    run, piece = first // pieces, first % pieces
    i, ch = run // c, run % c
    for w in range(first, last):
        offset = piece * (2 * UNIT_ELEMENTS)
        start, length = (i * c + ch) * s + offset, min(2 * UNIT_ELEMENTS, s - offset)
        leaves = w + 1 < last and goes_on(work[0], start + length, length, work[1])
        put(work, i, ch, start, offset, length, (began, leaves), n, c)
        began, piece = leaves, piece + 1
        if piece == pieces:
            piece, ch = 0, ch + 1
        if ch == c:
            ch, i = 0, i + 1


@inline
def put_unit(put, work, u, begin, end, n, c, s):
    """Unit u of the channels begin to end."""
    plane, last_plane, offset, length = unit_bounds(u, n, s)
    for i in range(plane, last_plane):
        ask_for_ends(work, u, i + ENDS_AHEAD, begin, end, n, c, s)
        began = False
        for ch in range(begin, end):
            start = (i * c + ch) * s + offset
            leaves = length == s and ch + 1 < end and goes_on(work[0], start + s, s, work[1])
            put(work, i, ch, start, offset, length, (began, leaves), n, c)
            began = leaves


@inline
def ask_for_ends(work, u, i, begin, end, n, c, s):
    """Ask for the first and the last line of plane i of unit u, or so many planes on in unit u - 1.

    The channels before and behind have their part of these lines, so they are stored as usual,
    which reads them, and the streamed stores behind them would wait for that.
    """
    plane, last_plane, _, length = unit_bounds(u, n, s)
    if i >= last_plane:
        i += plane - unit_planes(s) - last_plane
    if work[1] and length == s and i >= 0:
        prefetch_to_write(work[0], (i * c + begin) * s)
        prefetch_to_write(work[0], (i * c + end) * s)


@inline
def ask_for_first_ends(work, begin, end, n, c, s):
    """`ask_for_ends` of the first planes that `put_channels` sets, of all channels in one block."""
    u = unit_count(n, s) - 1
    first = unit_bounds(u, n, s)[0]
    for i in range(first, first + ENDS_AHEAD):
        ask_for_ends(work, u, i, begin, end, n, c, s)


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
def put_y(work, i, ch, start, offset, length, ends, n, c):
    """Y of a run."""
    y, streaming, line, x, residual, adds, activation, narrow, exact, kind = work
    given = (residual, adds, activation)
    if kind[ch] != NARROW:
        a, counts = forward_scalars(exact, c, ch), kind[ch] != EMPTY
        shared_sweep(y, line, ends, start, length, streaming, fused, a, (x, counts, given))
    elif adds or activation != 0:
        a = forward_scalars(narrow, c, ch)
        shared_sweep(y, line, ends, start, length, streaming, fused, a, (x, True, given))
    else:
        a = forward_scalars(narrow, c, ch)
        shared_sweep(y, line, ends, start, length, streaming, plain, a, (x,))


@inline
def put_g(work, i, ch, start, offset, length, ends, n, c):
    """The gradient of a run before its activation."""
    g, streaming, line, dy, x, residual, adds, activation, narrow, exact, kind = work
    given = (residual, adds, activation)
    if kind[ch] != NARROW:
        a, arrays = forward_scalars(exact, c, ch), (dy, x, kind[ch] != EMPTY, given)
        shared_sweep(g, line, ends, start, length, streaming, before_activation, a, arrays)
    else:
        a, arrays = forward_scalars(narrow, c, ch), (dy, x, True, given)
        shared_sweep(g, line, ends, start, length, streaming, before_activation, a, arrays)


@block
def put_gradient(work, ch, start, length, ends, c):
    """Dx of a run of elements that count."""
    dx, streaming, line, dy, x, narrow, exact, kind, training, _ = work
    if training and kind[ch] == NARROW:
        a = backward_scalars(narrow, c, ch)
        shared_sweep(dx, line, ends, start, length, streaming, gradient, a, (dy, x))
    elif training:
        a = backward_scalars(exact, c, ch)
        shared_sweep(dx, line, ends, start, length, streaming, gradient, a, (dy, x))
    elif kind[ch] == NARROW:
        a = scale_scalars(narrow, c, ch)
        shared_sweep(dx, line, ends, start, length, streaming, scaled, a, (dy,))
    else:
        a = scale_scalars(exact, c, ch)
        shared_sweep(dx, line, ends, start, length, streaming, scaled, a, (dy,))


@block
def put_kept(work, p, ch, start, offset, length, c):
    """Dx of a run of which some elements do not count: those are 0. No line of it is shared."""
    dx, streaming, _, dy, _, _, _, _, _, (firsts, edges, _) = work
    at, end = offset, offset + length
    for r in range(firsts[p], firsts[p + 1]):
        low, high = max(at, edges[2 * r]), min(end, edges[2 * r + 1])
        if high > low:
            sweep(dx, start + at - offset, low - at, streaming, zero, (), (dy,))
            put_gradient(work, ch, start + low - offset, high - low, (False, False), c)
            at = high
    sweep(dx, start + at - offset, end - at, streaming, zero, (), (dy,))


@inline
def put_dx(work, i, ch, start, offset, length, ends, n, c):
    """Dx of a run."""
    planes = work[9][2]
    if planes == 0:
        put_gradient(work, ch, start, length, ends, c)
    else:
        put_kept(work, plane_of(i, ch, n, c, planes), ch, start, offset, length, c)
