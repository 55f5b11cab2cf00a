"""Numba kernels of the nchw family: a statistic is n runs of d channels of s contiguous elements.

Statistics are worked on in blocks and their sums in units (`nchw_units`). `forward` and `backward`
give each thread whole blocks: sums first, then the elementwise pass, which finds x in the L2
cache. With too few blocks to share, the threads share the units of all blocks instead, and x comes
from memory twice; the bits are the same.

`table` says what the arguments are, `normcore.reference` what is computed.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .coefficients import (
    BACKWARD_ROWS,
    BACKWARD_SUMS,
    FORWARD_ROWS,
    FORWARD_SUMS,
    add_periods,
    coefficients_of,
    finish_backward,
    finish_forward,
    move_bad_shifts,
    put_backward,
    squares,
    total,
)
from .intrinsics import LANES, compute_dtype, memory
from .jit import block, entry, kernel, slab
from .masks import counts_of, kept_memory, kept_runs
from .nchw_units import (
    block_bounds,
    block_channels,
    block_count,
    is_shared_by_blocks,
    put_channels,
    put_dx,
    put_g,
    put_share,
    put_y,
    set_shifts,
    sum_cells,
    sum_moved,
    sum_share,
    unit_count,
)
from .optional import array_or_empty, float64_copy, inverse_deviations, mask_or_empty, parameter
from .runs import is_streamed


@block
def apply_share(y, x, residual, activation, narrow, exact, kind, first, last, n, c, s):
    """Y of units of blocks `first` to `last`."""
    work = (
        memory(y), memory(x), memory(residual), residual.size > 0, activation, memory(narrow),
        memory(exact), memory(kind), is_streamed(y, x)
    )  # fmt: skip
    put_share(put_y, work, x.itemsize, first, last, n, c, s)


@block
def activation_grads_share(
    g, dy, x, residual, activation, narrow, exact, kind, first, last, n, c, s
):  # fmt: skip
    """The gradient before the activation of units of blocks `first` to `last`."""
    work = (
        memory(g), memory(dy), memory(x), memory(residual), residual.size > 0, activation,
        memory(narrow), memory(exact), memory(kind), is_streamed(g, x) and is_streamed(g, dy)
    )  # fmt: skip
    put_share(put_g, work, x.itemsize, first, last, n, c, s)


@block
def apply_grads_share(
    dx, dy, x, firsts, edges, narrow, exact, kind, training, first, last, n, c, s
):  # fmt: skip
    """Dx of units of blocks `first` to `last`."""
    work = (
        memory(dx), memory(dy), memory(x), memory(narrow), memory(exact), memory(kind), training,
        is_streamed(dx, x) and is_streamed(dx, dy), kept_memory(firsts, edges)
    )  # fmt: skip
    put_share(put_dx, work, x.itemsize, first, last, n, c, s)


@block
def forward_blocks(
    y, mean, var, rstd, r, d, x, residual, firsts, edges, counts, running_mean, running_var, r_max,
    d_max, weight, bias, eps, activation, narrow, exact, kind, partial, lanes, shift, bad, first,
    last, n, c, s
):  # fmt: skip
    """`train` of the blocks `first` to `last` of statistics."""
    statistics = mean.size
    width, itemsize = c // statistics, x.itemsize
    run, units = width * s, unit_count(n, width * s)
    work = (
        memory(y), memory(x), memory(residual), residual.size > 0, activation, memory(narrow),
        memory(exact), memory(kind), is_streamed(y, x)
    )  # fmt: skip
    for k in range(first, last):
        begin, end = block_bounds(itemsize, k, statistics, run)
        set_shifts(shift, x, firsts, edges, begin, end, n, statistics, run)
        sum_cells(partial, lanes, None, x, shift, firsts, edges, s, begin, end, n, statistics, run)
        if move_bad_shifts(shift, bad, partial, 1, counts, begin, end, narrow.itemsize):
            sum_moved(
                partial, lanes, x, shift, firsts, edges, s, bad, 0, units, begin, end, n,
                statistics, run
            )  # fmt: skip
        finish_forward(
            mean, var, rstd, r, d, running_mean, running_var, r_max, d_max, narrow, exact, kind,
            partial, 1, shift, counts, weight, bias, eps, begin, end
        )  # fmt: skip
        put_channels(put_y, work, itemsize, begin * width, end * width, n, c, s)


@block
def backward_blocks(
    dx, dweights, dbiases, dy, x, firsts, edges, counts, mean, means, rstd, weight, training,
    narrow, exact, kind, partial, lanes, first, last, n, c, s
):  # fmt: skip
    """`backward` of the blocks `first` to `last` of statistics."""
    statistics = mean.size
    width, itemsize = c // statistics, x.itemsize
    work = (
        memory(dx), memory(dy), memory(x), memory(narrow), memory(exact), memory(kind), training,
        is_streamed(dx, x) and is_streamed(dx, dy), kept_memory(firsts, edges)
    )  # fmt: skip
    for k in range(first, last):
        begin, end = block_bounds(itemsize, k, statistics, width * s)
        sum_cells(
            partial, lanes, dy, x, means, firsts, edges, s, begin * width, end * width, n, c, s
        )
        finish_backward(
            dweights, dbiases, narrow, exact, kind, partial, mean, rstd, counts, weight, training,
            begin, end
        )  # fmt: skip
        put_channels(put_dx, work, itemsize, begin * width, end * width, n, c, s)


@block
def per_channel(values, c):
    """Values of statistics repeated for each of their channels."""
    found, d = np.empty(c), c // values.size
    for g in range(values.size):
        for ch in range(g * d, (g + 1) * d):
            found[ch] = values[g]
    return found


@kernel
def moments(mean, m2, x, n, c, s, threads):
    """Mean and sum of squared deviations of each of the n*c runs."""
    cells = n * c
    blocks, units = block_count(x.itemsize, cells, s), unit_count(1, s)
    partial = np.empty((units, FORWARD_SUMS, cells))
    lanes = np.empty((threads, block_channels(x.itemsize, s) * FORWARD_SUMS * LANES))
    shift, bad = np.empty(cells), np.empty(cells, np.bool_)
    firsts, edges = kept_runs(np.empty(0, np.uint8), 0)
    counts = counts_of((firsts, edges), s, True, 1)
    for t in prange(threads):
        begin, end = slab(cells, threads, t)
        set_shifts(shift, x, firsts, edges, begin, end, 1, cells, s)
    for t in prange(threads):
        begin, end = slab(units * blocks, threads, t)
        sum_share(partial, lanes[t], None, x, shift, firsts, edges, s, begin, end, 1, cells, s)
    lane_size = 8 if x.itemsize == 8 else 4
    if move_bad_shifts(shift, bad, partial, 1, counts, 0, cells, lane_size):
        for t in prange(threads):
            begin, end = slab(cells, threads, t)
            sum_moved(
                partial, lanes[t], x, shift, firsts, edges, s, bad, 0, units, begin, end, 1, cells,
                s
            )  # fmt: skip
    for j in range(cells):
        s1, s2 = total(partial, 0, j), total(partial, 1, j)
        mean[j] = shift[j] + s1 / s
        m2[j] = squares(s1, s2, s)


@kernel
def given_forward(y, x, residual, mean, rstd, weight, bias, activation, n, c, s, threads):
    """Set y = activation((x - mean) * rstd * weight + bias + residual)."""
    dtype = compute_dtype(x)
    narrow, exact = np.empty((FORWARD_ROWS, c), dtype), np.empty((FORWARD_ROWS, c))
    kind = np.empty(c)
    coefficients_of(narrow, exact, kind, mean, rstd, weight, bias, 0, mean.size)
    for t in prange(threads):
        begin, end = slab(unit_count(n, s) * block_count(x.itemsize, c, s), threads, t)
        apply_share(y, x, residual, activation, narrow, exact, kind, begin, end, n, c, s)


@entry
def apply(y, x, residual, mean, var, weight, bias, eps, activation, n, c, s, threads):
    """Set y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)."""
    given_forward(
        y, x, array_or_empty(residual, x), float64_copy(mean), inverse_deviations(var, eps),
        parameter(weight, 1.0), parameter(bias, 0.0), activation, n, c, s, threads
    )  # fmt: skip


@kernel
def given_slope(g, dy, x, residual, mean, rstd, weight, bias, activation, n, c, s, threads):
    """`activation_grads` of arguments that are all given."""
    dtype = compute_dtype(x)
    narrow, exact = np.empty((FORWARD_ROWS, c), dtype), np.empty((FORWARD_ROWS, c))
    kind = np.empty(c)
    coefficients_of(narrow, exact, kind, mean, rstd, weight, bias, 0, mean.size)
    for t in prange(threads):
        begin, end = slab(unit_count(n, s) * block_count(x.itemsize, c, s), threads, t)
        activation_grads_share(
            g, dy, x, residual, activation, narrow, exact, kind, begin, end, n, c, s
        )


@entry
def activation_grads(g, dy, x, residual, mean, rstd, weight, bias, activation, n, c, s, threads):
    """Set g = dy * activation'(z), z being what the forward gave to the activation."""
    given_slope(
        g, dy, x, array_or_empty(residual, x), mean, rstd, parameter(weight, 1.0),
        parameter(bias, 0.0), activation, n, c, s, threads
    )  # fmt: skip


@kernel
def train(
    y, mean, var, rstd, r, d, x, residual, mask, running_mean, running_var, r_max, d_max, weight,
    bias, eps, activation, n, c, s, threads
):  # fmt: skip
    """`renorm`, or without running statistics (length 0) `forward`."""
    dtype, statistics = compute_dtype(x), mean.size
    run = c // statistics * s
    blocks, units = block_count(x.itemsize, statistics, run), unit_count(n, run)
    narrow, exact = np.empty((FORWARD_ROWS, c), dtype), np.empty((FORWARD_ROWS, c))
    kind, bad = np.empty(c), np.empty(statistics, np.bool_)
    partial, shift = np.empty((units, FORWARD_SUMS, statistics)), np.empty(statistics)
    lanes = np.empty((threads, block_channels(x.itemsize, run) * FORWARD_SUMS * LANES))
    firsts, edges = kept_runs(mask, mask.size // s)
    counts = counts_of((firsts, edges), n * run, n > 1, c // statistics)
    if is_shared_by_blocks(blocks, threads):
        for t in prange(threads):
            begin, end = slab(blocks, threads, t)
            forward_blocks(
                y, mean, var, rstd, r, d, x, residual, firsts, edges, counts, running_mean,
                running_var, r_max, d_max, weight, bias, eps, activation, narrow, exact, kind,
                partial, lanes[t], shift, bad, begin, end, n, c, s
            )  # fmt: skip
    else:
        set_shifts(shift, x, firsts, edges, 0, statistics, n, statistics, run)
        for t in prange(threads):
            begin, end = slab(units * blocks, threads, t)
            sum_share(
                partial, lanes[t], None, x, shift, firsts, edges, s, begin, end, n, statistics, run
            )
        if move_bad_shifts(shift, bad, partial, 1, counts, 0, statistics, narrow.itemsize):
            for t in prange(threads):
                begin, end = slab(units, threads, t)
                sum_moved(
                    partial, lanes[t], x, shift, firsts, edges, s, bad, begin, end, 0, statistics,
                    n, statistics, run
                )  # fmt: skip
        finish_forward(
            mean, var, rstd, r, d, running_mean, running_var, r_max, d_max, narrow, exact, kind,
            partial, 1, shift, counts, weight, bias, eps, 0, statistics
        )  # fmt: skip
        for t in prange(threads):
            begin, end = slab(unit_count(n, s) * block_count(x.itemsize, c, s), threads, t)
            apply_share(y, x, residual, activation, narrow, exact, kind, begin, end, n, c, s)


@entry
def forward(
    y, mean, var, rstd, x, residual, mask, weight, bias, eps, activation, n, c, s, threads
):  # fmt: skip
    """Statistics and y = activation((x - mean) * rstd * weight + bias + residual)."""
    none = np.empty(0)
    train(
        y, mean, var, rstd, none, none, x, array_or_empty(residual, x), mask_or_empty(mask), none,
        none, 1.0, 0.0, parameter(weight, 1.0), parameter(bias, 0.0), eps, activation, n, c, s,
        threads
    )  # fmt: skip


@entry
def renorm(
    y, mean, var, rstd, r, d, x, residual, mask, running_mean, running_var, r_max, d_max, weight,
    bias, eps, activation, n, c, s, threads
):  # fmt: skip
    """Statistics and y = activation(((x - mean) * rstd * r + d) * weight + bias + residual)."""
    train(
        y, mean, var, rstd, r, d, x, array_or_empty(residual, x), mask_or_empty(mask),
        float64_copy(running_mean), float64_copy(running_var), r_max, d_max,
        parameter(weight, 1.0), parameter(bias, 0.0), eps, activation, n, c, s, threads
    )  # fmt: skip


@kernel
def reduce_grads(sum_dy, sum_dy_xmu, dy, x, mean, n, c, s, threads):
    """Sums of dy and of dy * (x - mean) of each channel."""
    blocks, units = block_count(x.itemsize, c, s), unit_count(n, s)
    partial = np.empty((units, BACKWARD_SUMS, c))
    lanes = np.empty((threads, block_channels(x.itemsize, s) * BACKWARD_SUMS * LANES))
    firsts, edges = kept_runs(np.empty(0, np.uint8), 0)
    for t in prange(threads):
        begin, end = slab(units * blocks, threads, t)
        sum_share(partial, lanes[t], dy, x, mean, firsts, edges, s, begin, end, n, c, s)
    for ch in range(c):
        sum_dy[ch], sum_dy_xmu[ch] = total(partial, 0, ch), total(partial, 1, ch)


@kernel
def apply_grads(dx, dy, x, mean, rstd, weight, sum_dy, sum_dy_xmu, count, n, c, s, threads):
    """Set dx = weight * rstd * (dy - sum_dy / count - (x - mean) * rstd^2 * sum_dy_xmu / count)."""
    dtype = compute_dtype(x)
    narrow, exact = np.empty((BACKWARD_ROWS, c), dtype), np.empty((BACKWARD_ROWS, c))
    kind, (firsts, edges) = np.empty(c), kept_runs(np.empty(0, np.uint8), 0)
    scale = parameter(weight, 1.0)
    for ch in range(c):
        w, a, b = scale[ch % scale.size], sum_dy[ch] / count, sum_dy_xmu[ch] / count
        put_backward(narrow, exact, kind, ch, mean[ch], 0.0, rstd[ch], w, a, w * a, w * b)
    for t in prange(threads):
        begin, end = slab(unit_count(n, s) * block_count(x.itemsize, c, s), threads, t)
        apply_grads_share(dx, dy, x, firsts, edges, narrow, exact, kind, True, begin, end, n, c, s)


@kernel
def backward(dx, dweight, dbias, dy, x, mask, mean, rstd, weight, training, n, c, s, threads):
    """Set dx, dweight and dbias; with training=False mean and rstd are constants."""
    dtype, statistics, scale = compute_dtype(x), mean.size, parameter(weight, 1.0)
    run = c // statistics * s
    blocks, units = block_count(x.itemsize, statistics, run), unit_count(n, s)
    narrow, exact = np.empty((BACKWARD_ROWS, c), dtype), np.empty((BACKWARD_ROWS, c))
    kind, means = np.empty(c), per_channel(mean, c)
    dweights, dbiases = np.empty(c), np.empty(c)
    partial = np.empty((units, BACKWARD_SUMS, c))
    lanes = np.empty((threads, block_channels(x.itemsize, s) * BACKWARD_SUMS * LANES))
    given = mask_or_empty(mask)
    firsts, edges = kept_runs(given, given.size // s)
    counts = counts_of((firsts, edges), n * run, n > 1, c // statistics)
    if is_shared_by_blocks(blocks, threads):
        for t in prange(threads):
            begin, end = slab(blocks, threads, t)
            backward_blocks(
                dx, dweights, dbiases, dy, x, firsts, edges, counts, mean, means, rstd, scale,
                training, narrow, exact, kind, partial, lanes[t], begin, end, n, c, s
            )  # fmt: skip
    else:
        cells = block_count(x.itemsize, c, s) * units
        for t in prange(threads):
            begin, end = slab(cells, threads, t)
            sum_share(partial, lanes[t], dy, x, means, firsts, edges, s, begin, end, n, c, s)
        finish_backward(
            dweights, dbiases, narrow, exact, kind, partial, mean, rstd, counts, scale, training,
            0, statistics
        )  # fmt: skip
        for t in prange(threads):
            begin, end = slab(cells, threads, t)
            apply_grads_share(
                dx, dy, x, firsts, edges, narrow, exact, kind, training, begin, end, n, c, s
            )
    add_periods(dweight, dweights)
    add_periods(dbias, dbiases)
