"""Numba kernels of the nchw family: one channel is n runs of s contiguous elements, c*s apart.

Channels are worked on in blocks and the sums of a channel in units (`schedule`). `forward` and
`backward` give each thread whole blocks: sums first, then the elementwise pass, which finds x in
the L2 cache. With too few blocks to share, the threads share the units of all blocks instead, and
x comes from memory twice; the bits are the same.

`table` says what the arguments are, `normcore.reference` what is computed.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .coefficients import (
    BACKWARD_ROWS,
    BACKWARD_SUMS,
    FACTOR,
    FORWARD_ROWS,
    FORWARD_SUMS,
    finish_backward,
    finish_forward,
    inverse_deviation,
    move_bad_shifts,
    put_backward,
    put_forward,
    squares,
    total,
)
from .intrinsics import LANES, load, memory, sum_lanes
from .jit import block, inline, kernel, slab
from .runs import (
    apply_grads_run,
    apply_run,
    backward_coefficients,
    forward_coefficients,
    is_streamed,
    run_grad_sums,
    run_shift,
    run_sums,
    scale_run,
)
from .schedule import RUN_BYTES, UNIT_ELEMENTS


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
def block_channels(x, s):
    """Channels of a block."""
    return -(-RUN_BYTES // (s * x.itemsize))


@inline
def block_count(x, c, s):
    """Blocks of channels."""
    return -(-c // block_channels(x, s))


@inline
def block_bounds(x, k, c, s):
    """First and last + 1 channel of block k."""
    width = block_channels(x, s)
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
    return (c - (end - begin) + 1) * s - offset if i + 1 < n else 0


@block
def sum_unit(partial, lanes, dy, x, shift, quantities, u, begin, end, n, c, s):
    """Set partial[u] of the channels begin to end; dy is None in a forward."""
    plane, last_plane, offset, length = unit_bounds(u, n, s)
    for at in range((end - begin) * quantities * LANES):
        lanes[at] = 0.0
    for i in range(plane, last_plane):
        for ch in range(begin, end):
            at, start = (ch - begin) * quantities * LANES, (i * c + ch) * s + offset
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
def sum_share(partial, lanes, dy, x, shift, first, last, n, c, s):
    """Units of blocks `first` to `last`, counted block by block within a unit."""
    blocks, quantities = block_count(x, c, s), partial.shape[1]
    partial, lanes = memory(partial), memory(lanes)
    dy, x, shift = memory(dy), memory(x), memory(shift)
    for w in range(first, last):
        begin, end = block_bounds(x, w % blocks, c, s)
        sum_unit(partial, lanes, dy, x, shift, quantities, w // blocks, begin, end, n, c, s)


@block
def set_shifts(shift, x, begin, end, s):
    """Shifts of the channels begin to end, from their first run."""
    x = memory(x)
    for ch in range(begin, end):
        shift[ch] = run_shift(x, ch * s, s)


@block
def sum_moved(partial, lanes, x, shift, bad, first, last, begin, end, n, c, s):
    """Set partial[first to last] again, for those of the channels whose shift was moved."""
    partial, lanes, x, shift = memory(partial), memory(lanes), memory(x), memory(shift)
    for ch in range(begin, end):
        if bad[ch]:
            for u in range(first, last):
                sum_unit(partial, lanes, None, x, shift, FORWARD_SUMS, u, ch, ch + 1, n, c, s)


@block
def apply_unit(y, x, narrow, exact, wide, streaming, u, begin, end, n, c, s):
    """Unit u of y for the channels begin to end."""
    plane, last_plane, offset, length = unit_bounds(u, n, s)
    for i in range(plane, last_plane):
        for ch in range(begin, end):
            start = (i * c + ch) * s + offset
            if wide[ch] != 0.0:
                apply_run(y, x, start, length, forward_coefficients(exact, c, ch), streaming)
            else:
                apply_run(y, x, start, length, forward_coefficients(narrow, c, ch), streaming)


@block
def apply_share(y, x, narrow, exact, wide, first, last, n, c, s):
    """Units of blocks `first` to `last`, counted block by block within a unit."""
    blocks, streaming = block_count(x, c, s), is_streamed(y, x)
    y, x = memory(y), memory(x)
    narrow, exact, wide = memory(narrow), memory(exact), memory(wide)
    for w in range(first, last):
        begin, end = block_bounds(x, w % blocks, c, s)
        apply_unit(y, x, narrow, exact, wide, streaming, w // blocks, begin, end, n, c, s)


@block
def apply_unit_grads(
    dx, dy, x, narrow, exact, wide, training, streaming, u, begin, end, n, c, s
):  # fmt: skip
    """Unit u of dx for the channels begin to end."""
    plane, last_plane, offset, length = unit_bounds(u, n, s)
    for i in range(plane, last_plane):
        for ch in range(begin, end):
            start = (i * c + ch) * s + offset
            if not training:
                if wide[ch] != 0.0:
                    scale_run(dx, dy, start, length, exact[FACTOR * c + ch], streaming)
                else:
                    scale_run(dx, dy, start, length, narrow[FACTOR * c + ch], streaming)
            elif wide[ch] != 0.0:
                a = backward_coefficients(exact, c, ch)
                apply_grads_run(dx, dy, x, start, length, a, streaming)
            else:
                a = backward_coefficients(narrow, c, ch)
                apply_grads_run(dx, dy, x, start, length, a, streaming)


@block
def apply_grads_share(dx, dy, x, narrow, exact, wide, training, first, last, n, c, s):
    """Units of blocks `first` to `last`, counted block by block within a unit."""
    blocks = block_count(x, c, s)
    streaming = is_streamed(dx, x) and is_streamed(dx, dy)
    dx, dy, x = memory(dx), memory(dy), memory(x)
    narrow, exact, wide = memory(narrow), memory(exact), memory(wide)
    for w in range(first, last):
        begin, end = block_bounds(x, w % blocks, c, s)
        u = w // blocks
        apply_unit_grads(
            dx, dy, x, narrow, exact, wide, training, streaming, u, begin, end, n, c, s
        )


@block
def forward_blocks(
    y, mean, var, rstd, x, weight, bias, eps, narrow, exact, wide, partial, lanes, shift,
    bad, first, last, n, c, s
):  # fmt: skip
    """`forward` of the blocks `first` to `last`."""
    count, units, streaming = n * s, unit_count(n, s), is_streamed(y, x)
    to, of, shifts = memory(y), memory(x), memory(shift)
    parts, work = memory(partial), memory(lanes)
    a, e, flags = memory(narrow), memory(exact), memory(wide)
    for k in range(first, last):
        begin, end = block_bounds(x, k, c, s)
        set_shifts(shift, x, begin, end, s)
        for u in range(units):
            sum_unit(parts, work, None, of, shifts, FORWARD_SUMS, u, begin, end, n, c, s)
        if move_bad_shifts(shift, bad, partial, begin, end, count, x.itemsize):
            sum_moved(partial, lanes, x, shift, bad, 0, units, begin, end, n, c, s)
        finish_forward(
            mean, var, rstd, narrow, exact, wide, partial, shift, weight, bias, eps, begin, end,
            count, c
        )  # fmt: skip
        # Backwards: what was read last is still in the cache where a block does not fit.
        for u in range(units - 1, -1, -1):
            apply_unit(to, of, a, e, flags, streaming, u, begin, end, n, c, s)


@block
def backward_blocks(
    dx, dweight, dbias, dy, x, mean, rstd, weight, training, narrow, exact, wide, partial,
    lanes, first, last, n, c, s
):  # fmt: skip
    """`backward` of the blocks `first` to `last`."""
    units, streaming = unit_count(n, s), is_streamed(dx, x) and is_streamed(dx, dy)
    to, by, of, means = memory(dx), memory(dy), memory(x), memory(mean)
    parts, work = memory(partial), memory(lanes)
    a, e, flags = memory(narrow), memory(exact), memory(wide)
    for k in range(first, last):
        begin, end = block_bounds(x, k, c, s)
        for u in range(units):
            sum_unit(parts, work, by, of, means, BACKWARD_SUMS, u, begin, end, n, c, s)
        finish_backward(
            dweight, dbias, narrow, exact, wide, partial, mean, rstd, weight, training, begin, end,
            n * s, c
        )  # fmt: skip
        for u in range(units - 1, -1, -1):
            apply_unit_grads(to, by, of, a, e, flags, training, streaming, u, begin, end, n, c, s)


@kernel
def moments(mean, m2, x, n, c, s, threads):
    """Mean and sum of squared deviations of each of the n*c runs."""
    cells = n * c
    blocks, units = block_count(x, cells, s), unit_count(1, s)
    partial = np.empty((units, FORWARD_SUMS, cells))
    lanes = np.empty((threads, block_channels(x, s) * FORWARD_SUMS * LANES))
    shift, bad = np.empty(cells), np.empty(cells, np.bool_)
    for t in prange(threads):
        begin, end = slab(cells, threads, t)
        set_shifts(shift, x, begin, end, s)
    for t in prange(threads):
        begin, end = slab(units * blocks, threads, t)
        sum_share(partial, lanes[t], None, x, shift, begin, end, 1, cells, s)
    if move_bad_shifts(shift, bad, partial, 0, cells, s, x.itemsize):
        for t in prange(threads):
            begin, end = slab(cells, threads, t)
            sum_moved(partial, lanes[t], x, shift, bad, 0, units, begin, end, 1, cells, s)
    for j in range(cells):
        s1, s2 = total(partial, 0, j), total(partial, 1, j)
        mean[j] = shift[j] + s1 / s
        m2[j] = squares(s1, s2, s)


@kernel
def apply(y, x, mean, var, weight, bias, eps, n, c, s, threads):
    """Set y = (x - mean) / sqrt(var + eps) * weight + bias."""
    narrow, exact = np.empty((FORWARD_ROWS, c), x.dtype), np.empty((FORWARD_ROWS, c))
    wide = np.empty(c)
    for ch in range(c):
        rstd = inverse_deviation(var[ch], eps)
        w = 1.0 if weight is None else weight[ch]
        shift = 0.0 if bias is None else bias[ch]
        put_forward(narrow, exact, wide, ch, np.float64(mean[ch]), 0.0, rstd, w, shift)
    for t in prange(threads):
        begin, end = slab(unit_count(n, s) * block_count(x, c, s), threads, t)
        apply_share(y, x, narrow, exact, wide, begin, end, n, c, s)


@kernel
def forward(y, mean, var, rstd, x, weight, bias, eps, n, c, s, threads):
    """Batch statistics and y = (x - mean) * rstd * weight + bias."""
    blocks, units = block_count(x, c, s), unit_count(n, s)
    narrow, exact = np.empty((FORWARD_ROWS, c), x.dtype), np.empty((FORWARD_ROWS, c))
    wide, bad = np.empty(c), np.empty(c, np.bool_)
    partial, shift = np.empty((units, FORWARD_SUMS, c)), np.empty(c)
    lanes = np.empty((threads, block_channels(x, s) * FORWARD_SUMS * LANES))
    if is_shared_by_blocks(blocks, threads):
        for t in prange(threads):
            begin, end = slab(blocks, threads, t)
            forward_blocks(
                y, mean, var, rstd, x, weight, bias, eps, narrow, exact, wide, partial, lanes[t],
                shift, bad, begin, end, n, c, s
            )  # fmt: skip
    else:
        set_shifts(shift, x, 0, c, s)
        for t in prange(threads):
            begin, end = slab(units * blocks, threads, t)
            sum_share(partial, lanes[t], None, x, shift, begin, end, n, c, s)
        if move_bad_shifts(shift, bad, partial, 0, c, n * s, x.itemsize):
            for t in prange(threads):
                begin, end = slab(units, threads, t)
                sum_moved(partial, lanes[t], x, shift, bad, begin, end, 0, c, n, c, s)
        finish_forward(
            mean, var, rstd, narrow, exact, wide, partial, shift, weight, bias, eps, 0, c, n * s, c
        )
        for t in prange(threads):
            begin, end = slab(units * blocks, threads, t)
            apply_share(y, x, narrow, exact, wide, begin, end, n, c, s)


@kernel
def reduce_grads(sum_dy, sum_dy_xmu, dy, x, mean, n, c, s, threads):
    """Sums of dy and of dy * (x - mean) of each channel."""
    blocks, units = block_count(x, c, s), unit_count(n, s)
    partial = np.empty((units, BACKWARD_SUMS, c))
    lanes = np.empty((threads, block_channels(x, s) * BACKWARD_SUMS * LANES))
    for t in prange(threads):
        begin, end = slab(units * blocks, threads, t)
        sum_share(partial, lanes[t], dy, x, mean, begin, end, n, c, s)
    for ch in range(c):
        sum_dy[ch], sum_dy_xmu[ch] = total(partial, 0, ch), total(partial, 1, ch)


@kernel
def apply_grads(dx, dy, x, mean, rstd, weight, sum_dy, sum_dy_xmu, count, n, c, s, threads):
    """Set dx = weight * rstd * (dy - sum_dy / count - (x - mean) * rstd^2 * sum_dy_xmu / count)."""
    narrow, exact = np.empty((BACKWARD_ROWS, c), x.dtype), np.empty((BACKWARD_ROWS, c))
    wide = np.empty(c)
    for ch in range(c):
        w, a, b = 1.0 if weight is None else weight[ch], sum_dy[ch], sum_dy_xmu[ch]
        put_backward(narrow, exact, wide, ch, mean[ch], 0.0, rstd[ch], w, a, b, count)
    for t in prange(threads):
        begin, end = slab(unit_count(n, s) * block_count(x, c, s), threads, t)
        apply_grads_share(dx, dy, x, narrow, exact, wide, True, begin, end, n, c, s)


@kernel
def backward(dx, dweight, dbias, dy, x, mean, rstd, weight, training, n, c, s, threads):
    """Set dx, dweight and dbias; with training=False mean and rstd are constants."""
    blocks, units = block_count(x, c, s), unit_count(n, s)
    narrow, exact = np.empty((BACKWARD_ROWS, c), x.dtype), np.empty((BACKWARD_ROWS, c))
    wide = np.empty(c)
    partial = np.empty((units, BACKWARD_SUMS, c))
    lanes = np.empty((threads, block_channels(x, s) * BACKWARD_SUMS * LANES))
    if is_shared_by_blocks(blocks, threads):
        for t in prange(threads):
            begin, end = slab(blocks, threads, t)
            backward_blocks(
                dx, dweight, dbias, dy, x, mean, rstd, weight, training, narrow, exact, wide,
                partial, lanes[t], begin, end, n, c, s
            )  # fmt: skip
    else:
        for t in prange(threads):
            begin, end = slab(units * blocks, threads, t)
            sum_share(partial, lanes[t], dy, x, mean, begin, end, n, c, s)
        finish_backward(
            dweight, dbias, narrow, exact, wide, partial, mean, rstd, weight, training, 0, c,
            n * s, c
        )  # fmt: skip
        for t in prange(threads):
            begin, end = slab(units * blocks, threads, t)
            apply_grads_share(dx, dy, x, narrow, exact, wide, training, begin, end, n, c, s)
