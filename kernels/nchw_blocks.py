"""What one thread does of a pass over the nchw family, in Numba: blocks, or a share of all units.

Everything that loops over blocks or units takes Memory instead of arrays (`coefficients` says why);
the functions here are where arrays become that.
"""

from __future__ import annotations

import numpy as np

from .coefficients import (
    columns_of,
    counts_by,
    period_of,
    renormalization,
    sums_of,
)
from .intrinsics import memory
from .jit import block
from .masks import kept_memory
from .nchw_units import (
    ask_for_first_ends,
    block_bounds,
    put_channels,
    put_dx,
    put_g,
    put_runs,
    put_y,
    set_shifts,
    sum_cells,
    sum_moved,
    unit_count,
)
from .runs import is_streamed
from .settle import finish_gradients, finish_statistics, move_shifts


@block
def apply_share(y, line, x, residual, activation, narrow, exact, kind, first, last, n, c, s):
    """Y of runs `first` to `last`."""
    work = (
        memory(y), is_streamed(y, x), memory(line), memory(x), memory(residual), residual.size > 0,
        activation, memory(narrow), memory(exact), memory(kind)
    )  # fmt: skip
    put_runs(put_y, work, first, last, n, c, s)


@block
def activation_grads_share(
    g, line, dy, x, residual, activation, narrow, exact, kind, first, last, n, c, s
):  # fmt: skip
    """The gradient before the activation of runs `first` to `last`."""
    work = (
        memory(g), is_streamed(g, x) and is_streamed(g, dy), memory(line), memory(dy), memory(x),
        memory(residual), residual.size > 0, activation, memory(narrow), memory(exact),
        memory(kind)
    )  # fmt: skip
    put_runs(put_g, work, first, last, n, c, s)


@block
def apply_grads_share(
    dx, line, dy, x, firsts, edges, narrow, exact, kind, training, first, last, n, c, s
):  # fmt: skip
    """Dx of runs `first` to `last`."""
    work = (
        memory(dx), is_streamed(dx, x) and is_streamed(dx, dy), memory(line), memory(dy),
        memory(x), memory(narrow), memory(exact), memory(kind), training,
        kept_memory(firsts, edges)
    )  # fmt: skip
    put_runs(put_dx, work, first, last, n, c, s)


@block
def forward_blocks(
    y, line, mean, var, rstd, r, d, x, residual, firsts, edges, counts, running_mean, running_var,
    r_max, d_max, weight, bias, eps, activation, narrow, exact, kind, partial, lanes, shift, bad,
    first, last, n, c, s
):  # fmt: skip
    """`train` of the blocks `first` to `last` of statistics."""
    statistics = mean.size
    width, itemsize = c // statistics, x.itemsize
    run, units = width * s, unit_count(n, width * s)
    work = (
        memory(y), is_streamed(y, x), memory(line), memory(x), memory(residual), residual.size > 0,
        activation, memory(narrow), memory(exact), memory(kind)
    )  # fmt: skip
    kept, of, to, sums = kept_memory(firsts, edges), memory(x), memory(shift), sums_of(partial)
    means, variances, inverses = memory(mean), memory(var), memory(rstd)
    flags, lane = memory(bad), memory(lanes)
    renormalized = renormalization(r, d, running_mean, running_var, r_max, d_max)
    columns, shared = columns_of(narrow, exact, kind), counts_by(counts, statistics)
    scale, offset = period_of(weight), period_of(bias)
    for k in range(first, last):
        begin, end = block_bounds(itemsize, k, statistics, run)
        ask_for_first_ends(work, begin * width, end * width, n, c, s)
        set_shifts(to, of, kept, begin, end, n, statistics, run)
        sum_cells(sums, lane, None, of, to, kept, s, begin, end, n, statistics, run)
        if move_shifts(to, flags, of, sums, 1, shared, statistics, begin, end):
            sum_moved(
                sums[0], lane, of, to, kept, s, flags, 0, units, begin, end, n, statistics, run
            )
        finish_statistics(
            means, variances, inverses, renormalized, columns, width, sums, 1, to, shared, scale,
            offset, eps, begin, end
        )  # fmt: skip
        put_channels(put_y, work, itemsize, begin * width, end * width, n, c, s)


@block
def backward_blocks(
    dx, line, dweights, dbiases, dy, x, firsts, edges, counts, mean, centre, centres, rstd, weight,
    training, narrow, exact, kind, partial, lanes, first, last, n, c, s
):  # fmt: skip
    """`backward` of the blocks `first` to `last` of statistics."""
    statistics = mean.size
    width, itemsize = c // statistics, x.itemsize
    work = (
        memory(dx), is_streamed(dx, x) and is_streamed(dx, dy), memory(line), memory(dy),
        memory(x), memory(narrow), memory(exact), memory(kind), training,
        kept_memory(firsts, edges)
    )  # fmt: skip
    kept, by, of, shifts = kept_memory(firsts, edges), memory(dy), memory(x), memory(centres)
    sums, lane, columns = sums_of(partial), memory(lanes), columns_of(narrow, exact, kind)
    shared, scale = counts_by(counts, statistics), period_of(weight)
    means, origins, inverses = memory(mean), memory(centre), memory(rstd)
    dw, db = memory(dweights), memory(dbiases)
    for k in range(first, last):
        begin, end = block_bounds(itemsize, k, statistics, width * s)
        low, high = begin * width, end * width
        ask_for_first_ends(work, low, high, n, c, s)
        sum_cells(sums, lane, by, of, shifts, kept, s, low, high, n, c, s)
        finish_gradients(
            dw, db, columns, width, sums, means, origins, inverses, shared, scale, training, begin,
            end
        )  # fmt: skip
        put_channels(put_dx, work, itemsize, low, high, n, c, s)


@block
def finish_forward_all(
    mean, var, rstd, r, d, running_mean, running_var, r_max, d_max, narrow, exact, kind, partial,
    shift, counts, weight, bias, eps
):  # fmt: skip
    """`finish_statistics` of all statistics, of arrays."""
    finish_statistics(
        memory(mean), memory(var), memory(rstd),
        renormalization(r, d, running_mean, running_var, r_max, d_max),
        columns_of(narrow, exact, kind), kind.size // mean.size, sums_of(partial), 1,
        memory(shift), counts_by(counts, mean.size), period_of(weight), period_of(bias), eps, 0,
        mean.size
    )  # fmt: skip


@block
def finish_backward_all(
    dweights, dbiases, narrow, exact, kind, partial, mean, centre, rstd, counts, weight, training
):
    """`finish_gradients` of all statistics, of arrays."""
    finish_gradients(
        memory(dweights), memory(dbiases), columns_of(narrow, exact, kind),
        kind.size // mean.size, sums_of(partial), memory(mean), memory(centre), memory(rstd),
        counts_by(counts, mean.size), period_of(weight), training, 0, mean.size
    )  # fmt: skip


@block
def move_all(shift, bad, x, partial, counts):
    """`move_shifts` of all statistics, of arrays."""
    shared = counts_by(counts, shift.size)
    return move_shifts(
        memory(shift), memory(bad), memory(x), sums_of(partial), 1, shared, shift.size, 0,
        shift.size
    )  # fmt: skip


@block
def per_channel(values, c):
    """Values of statistics repeated for each of their channels."""
    found, d = np.empty(c), c // values.size
    for g in range(values.size):
        for ch in range(g * d, (g + 1) * d):
            found[ch] = values[g]
    return found
