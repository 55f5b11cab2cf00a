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
    origins_of,
    put_given_grads,
    put_moments,
    put_totals,
)
from .intrinsics import LANES, compute_dtype
from .jit import entry, kernel, slab
from .masks import counts_of, kept_runs
from .nchw_blocks import (
    activation_grads_share,
    apply_grads_share,
    apply_share,
    backward_blocks,
    finish_backward_all,
    finish_forward_all,
    forward_blocks,
    move_all,
    per_channel,
)
from .nchw_units import (
    block_channels,
    block_count,
    is_shared_by_blocks,
    run_count,
    set_shifts_share,
    sum_moved_share,
    sum_share,
    unit_count,
)
from .optional import array_or_empty, float64_copy, inverse_deviations, mask_or_empty, parameter
from .runs import line_memory
from .settle import put_given


@kernel
def moments(mean, m2, x, n, c, s, threads):
    """Mean and sum of squared deviations of each of the n*c runs."""
    cells = n * c
    blocks, units = block_count(x.itemsize, cells, s), unit_count(1, s)
    partial = np.empty((units, FORWARD_SUMS, cells))
    lanes = np.empty((threads, block_channels(x.itemsize, s) * FORWARD_SUMS * LANES))
    shift, bad = np.empty(cells), np.empty(cells)
    firsts, edges = kept_runs(np.empty(0, np.uint8), 0)
    counts = counts_of((firsts, edges), s, True, 1)
    for t in prange(threads):
        begin, end = slab(cells, threads, t)
        set_shifts_share(shift, x, firsts, edges, begin, end, 1, cells, s)
    for t in prange(threads):
        begin, end = slab(units * blocks, threads, t)
        sum_share(partial, lanes[t], None, x, shift, firsts, edges, s, begin, end, 1, cells, s)
    if move_all(shift, bad, x, partial, counts):
        for t in prange(threads):
            begin, end = slab(cells, threads, t)
            sum_moved_share(
                partial, lanes[t], x, shift, firsts, edges, s, bad, 0, units, begin, end, 1, cells,
                s
            )  # fmt: skip
    put_moments(mean, m2, partial, shift, s)


@kernel
def given_forward(y, x, residual, mean, rstd, weight, bias, activation, n, c, s, threads):
    """Set y = activation((x - mean) * rstd * weight + bias + residual)."""
    dtype = compute_dtype(x)
    narrow, exact = np.empty((FORWARD_ROWS, c), dtype), np.empty((FORWARD_ROWS, c))
    kind, lines = np.empty(c), line_memory(threads, 1, x)
    put_given(narrow, exact, kind, mean, rstd, weight, bias)
    for t in prange(threads):
        begin, end = slab(run_count(n, c, s), threads, t)
        apply_share(y, lines[t], x, residual, activation, narrow, exact, kind, begin, end, n, c, s)


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
    kind, lines = np.empty(c), line_memory(threads, 1, x)
    put_given(narrow, exact, kind, mean, rstd, weight, bias)
    for t in prange(threads):
        begin, end = slab(run_count(n, c, s), threads, t)
        activation_grads_share(
            g, lines[t], dy, x, residual, activation, narrow, exact, kind, begin, end, n, c, s
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
    kind, bad = np.empty(c), np.empty(statistics)
    partial, shift = np.empty((units, FORWARD_SUMS, statistics)), np.empty(statistics)
    lanes = np.empty((threads, block_channels(x.itemsize, run) * FORWARD_SUMS * LANES))
    lines = line_memory(threads, 1, x)
    firsts, edges = kept_runs(mask, mask.size // s)
    counts = counts_of((firsts, edges), n * run, n > 1, c // statistics)
    if is_shared_by_blocks(blocks, threads):
        for t in prange(threads):
            begin, end = slab(blocks, threads, t)
            forward_blocks(
                y, lines[t], mean, var, rstd, r, d, x, residual, firsts, edges, counts,
                running_mean, running_var, r_max, d_max, weight, bias, eps, activation, narrow,
                exact, kind, partial, lanes[t], shift, bad, begin, end, n, c, s
            )  # fmt: skip
    else:
        set_shifts_share(shift, x, firsts, edges, 0, statistics, n, statistics, run)
        for t in prange(threads):
            begin, end = slab(units * blocks, threads, t)
            sum_share(
                partial, lanes[t], None, x, shift, firsts, edges, s, begin, end, n, statistics, run
            )
        if move_all(shift, bad, x, partial, counts):
            for t in prange(threads):
                begin, end = slab(units, threads, t)
                sum_moved_share(
                    partial, lanes[t], x, shift, firsts, edges, s, bad, begin, end, 0, statistics,
                    n, statistics, run
                )  # fmt: skip
        finish_forward_all(
            mean, var, rstd, r, d, running_mean, running_var, r_max, d_max, narrow, exact, kind,
            partial, shift, counts, weight, bias, eps
        )  # fmt: skip
        for t in prange(threads):
            begin, end = slab(run_count(n, c, s), threads, t)
            apply_share(
                y, lines[t], x, residual, activation, narrow, exact, kind, begin, end, n, c, s
            )


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
    (firsts, edges), centre = kept_runs(np.empty(0, np.uint8), 0), origins_of(x, mean)
    for t in prange(threads):
        begin, end = slab(units * blocks, threads, t)
        sum_share(partial, lanes[t], dy, x, centre, firsts, edges, s, begin, end, n, c, s)
    put_totals(sum_dy, sum_dy_xmu, partial, mean, centre)


@kernel
def apply_grads(dx, dy, x, mean, rstd, weight, sum_dy, sum_dy_xmu, count, n, c, s, threads):
    """Set dx = weight * rstd * (dy - sum_dy / count - (x - mean) * rstd^2 * sum_dy_xmu / count)."""
    dtype = compute_dtype(x)
    narrow, exact = np.empty((BACKWARD_ROWS, c), dtype), np.empty((BACKWARD_ROWS, c))
    kind, (firsts, edges) = np.empty(c), kept_runs(np.empty(0, np.uint8), 0)
    scale, lines = parameter(weight, 1.0), line_memory(threads, 1, x)
    put_given_grads(narrow, exact, kind, mean, rstd, scale, sum_dy, sum_dy_xmu, count)
    for t in prange(threads):
        begin, end = slab(run_count(n, c, s), threads, t)
        apply_grads_share(
            dx, lines[t], dy, x, firsts, edges, narrow, exact, kind, True, begin, end, n, c, s
        )


@kernel
def backward(dx, dweight, dbias, dy, x, mask, mean, rstd, weight, training, n, c, s, threads):
    """Set dx, dweight and dbias; with training=False mean and rstd are constants."""
    dtype, statistics, scale = compute_dtype(x), mean.size, parameter(weight, 1.0)
    run = c // statistics * s
    blocks, units = block_count(x.itemsize, statistics, run), unit_count(n, s)
    narrow, exact = np.empty((BACKWARD_ROWS, c), dtype), np.empty((BACKWARD_ROWS, c))
    kind, centre = np.empty(c), origins_of(x, mean)
    centres = per_channel(centre, c)
    dweights, dbiases = np.empty(c), np.empty(c)
    partial = np.empty((units, BACKWARD_SUMS, c))
    lanes = np.empty((threads, block_channels(x.itemsize, s) * BACKWARD_SUMS * LANES))
    lines = line_memory(threads, 1, x)
    given = mask_or_empty(mask)
    firsts, edges = kept_runs(given, given.size // s)
    counts = counts_of((firsts, edges), n * run, n > 1, c // statistics)
    if is_shared_by_blocks(blocks, threads):
        for t in prange(threads):
            begin, end = slab(blocks, threads, t)
            backward_blocks(
                dx, lines[t], dweights, dbiases, dy, x, firsts, edges, counts, mean, centre,
                centres, rstd, scale, training, narrow, exact, kind, partial, lanes[t], begin, end,
                n, c, s
            )  # fmt: skip
    else:
        cells = block_count(x.itemsize, c, s) * units
        for t in prange(threads):
            begin, end = slab(cells, threads, t)
            sum_share(partial, lanes[t], dy, x, centres, firsts, edges, s, begin, end, n, c, s)
        finish_backward_all(
            dweights, dbiases, narrow, exact, kind, partial, mean, centre, rstd, counts, scale,
            training
        )  # fmt: skip
        for t in prange(threads):
            begin, end = slab(run_count(n, c, s), threads, t)
            apply_grads_share(
                dx, lines[t], dy, x, firsts, edges, narrow, exact, kind, training, begin, end, n, c,
                s
            )  # fmt: skip
    add_periods(dweight, dweights)
    add_periods(dbias, dbiases)
