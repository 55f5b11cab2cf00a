"""Numba kernels of the nc family: b samples of m rows of c contiguous channels.

A pass over a sample has three sweeps: sums, over units of rows; statistics and coefficients, of its
channels, from the units' sums in order; elementwise, over the units again. Where there are enough
samples, each thread takes whole ones. Else the threads share the units of one sample after the
other; a thread's share is the same in both sweeps, and the second runs backwards: the end of its
share is what the first left in the cache. The bits are the same.

Strips of columns that fit a core's cache, to read x from memory once, were tried: rows 4 KB apart
fall into few of its sets, and backward of (1024, 1024) took 0.70 ms against 0.47 by rows.

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
    put_moments,
    put_totals,
)
from .jit import block, entry, inline, kernel, slab
from .masks import counts_of, kept_runs
from .nc_samples import (
    add_to_share,
    apply_grads_share,
    apply_share,
    backward_samples,
    coefficient_scratch,
    count_in,
    forward_samples,
    given_units,
    grads_units,
    moments_samples,
    reduce_samples,
    slope_units,
    statistics_of,
    sum_scratch,
)
from .nc_units import (
    fold_coefficients,
    is_any,
    move_channels,
    set_shifts,
    settle_backward,
    settle_forward,
    spread_statistics,
    sum_share,
    total_share,
    unit_count,
)
from .optional import array_or_empty, float64_copy, inverse_deviations, mask_or_empty, parameter

SETTLE_CELLS = 256
"""From this many channels on the threads share the statistics, which a launch of 2 us must be
worth: 25 of the 330 us of forward of (1024, 1024). Launched for one thread, forward of (256, 128)
took 14.0 us instead of 11.4, backward 17.9 instead of 14.9."""

SHARES = 64
"""Gradients of weight and bias are added up in this many shares of samples, for any threads."""


@inline
def is_shared_by_samples(samples, threads):
    """Whether whole samples keep all threads busy."""
    return samples >= 4 * threads or samples % threads == 0


@inline
def share_of(bi, b, shares):
    """The share that sample bi is in: `slab` gives b * k // shares to b * (k + 1) // shares."""
    return ((bi + 1) * shares - 1) // b


@block
def zeros(rows, columns):
    """Not NumPy's in a kernel: Numba would make that a parallel loop."""
    return np.zeros((rows, columns))


@kernel
def moments(mean, m2, x, b, m, c, threads):
    """Mean and sum of squared deviations of each of the b*c columns."""
    firsts, edges = kept_runs(np.empty(0, np.uint8), 0)
    counts = counts_of((firsts, edges), m, False, 1)
    if is_shared_by_samples(b, threads):
        for t in prange(threads):
            begin, end = slab(b, threads, t)
            moments_samples(mean, m2, x, firsts, edges, counts, begin, end, b, m, c)
    else:
        partial, totals, sums, shifts = sum_scratch(FORWARD_SUMS, m, c)
        shift, bad, units = np.empty(c), np.empty(c), unit_count(m, c)
        centres = np.empty(c)
        for bi in range(b):
            set_shifts(shift, centres, x, firsts, edges, bi, m, c)
            for again in range(2):
                spread_statistics(shifts, shift, m, c)
                for t in prange(threads):
                    begin, end = slab(units, threads, t)
                    sum_share(
                        partial, None, x, shifts, firsts, edges, FORWARD_SUMS, bi, begin, end, m, c
                    )
                total_share(sums, totals, partial, 0, c, m, c)
                if again or not move_channels(shift, bad, x, sums, counts):
                    break
            put_moments(statistics_of(mean, bi, b), statistics_of(m2, bi, b), sums, shift, m)


@kernel
def given_forward(y, x, residual, mean, rstd, weight, bias, activation, b, m, c, threads):
    """Set y = activation((x - mean) * rstd * weight + bias + residual)."""
    for t in prange(threads):
        begin, end = slab(b * unit_count(m, c), threads, t)
        given_units(y, x, residual, mean, rstd, weight, bias, activation, begin, end, b, m, c)


@entry
def apply(y, x, residual, mean, var, weight, bias, eps, activation, b, m, c, threads):
    """Set y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)."""
    given_forward(
        y, x, array_or_empty(residual, x), float64_copy(mean), inverse_deviations(var, eps),
        parameter(weight, 1.0), parameter(bias, 0.0), activation, b, m, c, threads
    )  # fmt: skip


@kernel
def given_slope(g, dy, x, residual, mean, rstd, weight, bias, activation, b, m, c, threads):
    """`activation_grads` of arguments that are all given."""
    for t in prange(threads):
        begin, end = slab(b * unit_count(m, c), threads, t)
        slope_units(g, dy, x, residual, mean, rstd, weight, bias, activation, begin, end, b, m, c)


@entry
def activation_grads(g, dy, x, residual, mean, rstd, weight, bias, activation, b, m, c, threads):
    """Set g = dy * activation'(z), z being what the forward gave to the activation."""
    given_slope(
        g, dy, x, array_or_empty(residual, x), mean, rstd, parameter(weight, 1.0),
        parameter(bias, 0.0), activation, b, m, c, threads
    )  # fmt: skip


@kernel
def train(
    y, mean, var, rstd, r, d, x, residual, mask, running_mean, running_var, r_max, d_max, weight,
    bias, eps, activation, b, m, c, threads
):  # fmt: skip
    """`renorm`, or without running statistics (length 0) `forward`."""
    statistics = mean.size // b
    firsts, edges = kept_runs(mask, b if mask.size > 0 else 0)
    counts = counts_of((firsts, edges), m * (c // statistics), False, c // statistics)
    if is_shared_by_samples(b, threads):
        for t in prange(threads):
            begin, end = slab(b, threads, t)
            forward_samples(
                y, mean, var, rstd, r, d, x, residual, firsts, edges, counts, running_mean,
                running_var, r_max, d_max, weight, bias, eps, activation, begin, end, b, m, c
            )  # fmt: skip
    else:
        partial, totals, sums, shifts = sum_scratch(FORWARD_SUMS, m, c)
        narrow, exact, kind, a, e, kinds = coefficient_scratch(FORWARD_ROWS, y, m, c)
        shift, bad, units = np.empty(statistics), np.empty(statistics), unit_count(m, c)
        centres = np.empty(c)
        for bi in range(b):
            means, variances = statistics_of(mean, bi, b), statistics_of(var, bi, b)
            inverses, count = statistics_of(rstd, bi, b), count_in(counts, bi)
            rs, ds = statistics_of(r, bi, b), statistics_of(d, bi, b)
            old_mean = statistics_of(running_mean, bi, b)
            old_var = statistics_of(running_var, bi, b)
            set_shifts(shift, centres, x, firsts, edges, bi, m, c)
            for again in range(2):
                spread_statistics(shifts, shift, m, c)
                for t in prange(threads):
                    begin, end = slab(units, threads, t)
                    sum_share(
                        partial, None, x, shifts, firsts, edges, FORWARD_SUMS, bi, begin, end, m, c
                    )
                if c < SETTLE_CELLS:
                    settle_forward(
                        x, means, variances, inverses, rs, ds, old_mean, old_var, r_max, d_max,
                        narrow, exact, kind, partial, totals, sums, shift, bad, count, weight,
                        bias, eps, again, 0, statistics, m, c
                    )  # fmt: skip
                else:
                    for t in prange(threads):
                        begin, end = slab(statistics, threads, t)
                        settle_forward(
                            x, means, variances, inverses, rs, ds, old_mean, old_var, r_max, d_max,
                            narrow, exact, kind, partial, totals, sums, shift, bad, count, weight,
                            bias, eps, again, begin, end, m, c
                        )  # fmt: skip
                if again or not is_any(bad):
                    break
            mixed = fold_coefficients(a, e, kinds, narrow, exact, kind, m, c)
            for t in prange(threads):
                begin, end = slab(units, threads, t)
                apply_share(y, x, residual, activation, a, e, kinds, mixed, bi, begin, end, m, c)


@entry
def forward(
    y, mean, var, rstd, x, residual, mask, weight, bias, eps, activation, b, m, c, threads
):  # fmt: skip
    """Statistics and y = activation((x - mean) * rstd * weight + bias + residual)."""
    none = np.empty(0)
    train(
        y, mean, var, rstd, none, none, x, array_or_empty(residual, x), mask_or_empty(mask), none,
        none, 1.0, 0.0, parameter(weight, 1.0), parameter(bias, 0.0), eps, activation, b, m, c,
        threads
    )  # fmt: skip


@entry
def renorm(
    y, mean, var, rstd, r, d, x, residual, mask, running_mean, running_var, r_max, d_max, weight,
    bias, eps, activation, b, m, c, threads
):  # fmt: skip
    """Statistics and y = activation(((x - mean) * rstd * r + d) * weight + bias + residual)."""
    train(
        y, mean, var, rstd, r, d, x, array_or_empty(residual, x), mask_or_empty(mask),
        float64_copy(running_mean), float64_copy(running_var), r_max, d_max,
        parameter(weight, 1.0), parameter(bias, 0.0), eps, activation, b, m, c, threads
    )  # fmt: skip


@kernel
def reduce_grads(sum_dy, sum_dy_xmu, dy, x, mean, b, m, c, threads):
    """Sums of dy and of dy * (x - mean) of each column."""
    (firsts, edges), centre = kept_runs(np.empty(0, np.uint8), 0), origins_of(x, mean)
    if is_shared_by_samples(b, threads):
        for t in prange(threads):
            begin, end = slab(b, threads, t)
            reduce_samples(
                sum_dy, sum_dy_xmu, dy, x, firsts, edges, mean, centre, begin, end, b, m, c
            )
    else:
        partial, totals, sums, shifts = sum_scratch(BACKWARD_SUMS, m, c)
        units = unit_count(m, c)
        for bi in range(b):
            means, centres = statistics_of(mean, bi, b), statistics_of(centre, bi, b)
            spread_statistics(shifts, centres, m, c)
            for t in prange(threads):
                begin, end = slab(units, threads, t)
                sum_share(
                    partial, dy, x, shifts, firsts, edges, BACKWARD_SUMS, bi, begin, end, m, c
                )
            total_share(sums, totals, partial, 0, c, m, c)
            put_totals(
                statistics_of(sum_dy, bi, b), statistics_of(sum_dy_xmu, bi, b), sums, means, centres
            )


@kernel
def apply_grads(dx, dy, x, mean, rstd, weight, sum_dy, sum_dy_xmu, count, b, m, c, threads):
    """Set dx = weight * rstd * (dy - sum_dy / count - (x - mean) * rstd^2 * sum_dy_xmu / count)."""
    (firsts, edges), scale = kept_runs(np.empty(0, np.uint8), 0), parameter(weight, 1.0)
    for t in prange(threads):
        begin, end = slab(b * unit_count(m, c), threads, t)
        grads_units(
            dx, dy, x, firsts, edges, mean, rstd, scale, sum_dy, sum_dy_xmu, count, begin, end, b,
            m, c
        )  # fmt: skip


@kernel
def backward(dx, dweight, dbias, dy, x, mask, mean, rstd, weight, training, b, m, c, threads):
    """Set dx, dweight and dbias; with training=False mean and rstd are constants."""
    given, scale, shares = mask_or_empty(mask), parameter(weight, 1.0), min(b, SHARES)
    statistics, centre = mean.size // b, origins_of(x, mean)
    firsts, edges = kept_runs(given, b if given.size > 0 else 0)
    counts = counts_of((firsts, edges), m * (c // statistics), False, c // statistics)
    dweights, dbiases = zeros(shares, c), zeros(shares, c)
    if is_shared_by_samples(shares, threads):
        for t in prange(threads):
            begin, end = slab(shares, threads, t)
            backward_samples(
                dx, dweights, dbiases, dy, x, firsts, edges, counts, mean, centre, rstd, scale,
                training, begin, end, b, m, c
            )  # fmt: skip
    else:
        partial, totals, sums, shifts = sum_scratch(BACKWARD_SUMS, m, c)
        narrow, exact, kind, a, e, kinds = coefficient_scratch(BACKWARD_ROWS, dx, m, c)
        units = unit_count(m, c)
        dw, db = np.empty(c), np.empty(c)
        for bi in range(b):
            means, centres = statistics_of(mean, bi, b), statistics_of(centre, bi, b)
            inverses, count = statistics_of(rstd, bi, b), count_in(counts, bi)
            spread_statistics(shifts, centres, m, c)
            for t in prange(threads):
                begin, end = slab(units, threads, t)
                sum_share(
                    partial, dy, x, shifts, firsts, edges, BACKWARD_SUMS, bi, begin, end, m, c
                )
            if c < SETTLE_CELLS:
                settle_backward(
                    dw, db, narrow, exact, kind, partial, totals, sums, means, centres, inverses,
                    count, scale, training, 0, statistics, m, c
                )  # fmt: skip
            else:
                for t in prange(threads):
                    begin, end = slab(statistics, threads, t)
                    settle_backward(
                        dw, db, narrow, exact, kind, partial, totals, sums, means, centres,
                        inverses, count, scale, training, begin, end, m, c
                    )  # fmt: skip
            add_to_share(dweights, dbiases, share_of(bi, b, shares), dw, db)
            mixed = fold_coefficients(a, e, kinds, narrow, exact, kind, m, c)
            for t in prange(threads):
                begin, end = slab(units, threads, t)
                apply_grads_share(
                    dx, dy, x, firsts, edges, training, a, e, kinds, mixed, bi, begin, end, m, c
                )
    add_periods(dweight, dweights.reshape(shares * c))
    add_periods(dbias, dbiases.reshape(shares * c))
