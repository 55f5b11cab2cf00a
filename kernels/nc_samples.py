"""What one thread does of a pass over the nc family, in Numba: whole samples, or a share of units.

Memory for one sample serves all of a thread's: c may be as large as what there is to do.
"""

from __future__ import annotations

import numpy as np

from .coefficients import (
    BACKWARD_ROWS,
    BACKWARD_SUMS,
    FORWARD_ROWS,
    FORWARD_SUMS,
    put_given_grads,
    put_moments,
    put_totals,
)
from .columns import WRAP
from .intrinsics import LINE_BYTES, address, compute_dtype, memory
from .jit import block, inline, slab
from .masks import kept_memory
from .nc_units import (
    fold_coefficients,
    fold_of,
    is_any,
    move_channels,
    put_g,
    put_gradient,
    put_kept_share,
    put_share,
    put_y,
    set_shifts,
    settle_backward,
    settle_forward,
    spread_statistics,
    sum_share,
    total_share,
    unit_count,
)
from .runs import gap, is_streamed
from .settle import put_given


@inline
def lined(size, dtype, before):
    """An array whose element `before` begins a cache line.

    Vectors that lie across two lines take two loads: dx of (256, 128) took 7.7 us, and takes 5.8.
    """
    found = np.empty(size + LINE_BYTES // 4, dtype)
    at = -(address(found) // found.itemsize + before) % (LINE_BYTES // found.itemsize)
    return found[at : at + size]


@inline
def sum_scratch(quantities, m, c):
    """(partial, totals, sums, shifts) of one sample: of units, of folded columns, of channels."""
    wide = fold_of(m, c) * c
    parts, rest = unit_count(m, c) * quantities * wide, (quantities + 1) * wide
    found = lined(parts + rest + quantities * c, np.float64, 0)
    return (
        found[:parts],
        found[parts + wide : parts + rest],
        found[parts + rest :].reshape((1, quantities, c)),
        found[parts : parts + wide],
    )


@inline
def coefficient_scratch(rows, out, m, c):
    """(narrow, exact, kind) of channels, and the same of folded columns.

    Where rows of `out` are rotated to begin a cache line, so are the coefficients of columns.
    """
    dtype, wide = compute_dtype(out), fold_of(m, c) * c + WRAP
    found = lined(rows * (wide + c), dtype, gap(out, 0))
    doubles = np.empty((rows + 1) * (wide + c))
    cells, columns = doubles[: (rows + 1) * c], doubles[(rows + 1) * c :]
    return (
        found[rows * wide :].reshape((rows, c)),
        cells[c:].reshape((rows, c)),
        cells[:c],
        found[: rows * wide].reshape((rows, wide)),
        columns[wide:].reshape((rows, wide)),
        columns[:wide].reshape((1, wide)),
    )


@inline
def statistics_of(values, bi, b):
    """Those of sample bi; of none, none."""
    each = values.size // b
    return values[bi * each : (bi + 1) * each]


@inline
def count_in(counts, bi):
    """The count of sample bi, as an array."""
    at = bi % counts.size
    return counts[at : at + 1]


@block
def apply_share(y, x, residual, activation, a, e, kinds, mixed, bi, first, last, m, c):
    """Y of units `first` to `last`."""
    given = (memory(residual), residual.size > 0, activation)
    work = (
        memory(y), memory(x), given, memory(a), memory(e), memory(kinds), a.shape[1], mixed,
        is_streamed(y, x)
    )  # fmt: skip
    put_share(put_y, work, bi, first, last, m, c)


@block
def activation_grads_share(
    g, dy, x, residual, activation, a, e, kinds, mixed, bi, first, last, m, c
):
    """The gradient before the activation of units `first` to `last`."""
    given = (memory(residual), residual.size > 0, activation)
    work = (
        memory(g), memory(dy), memory(x), given, memory(a), memory(e), memory(kinds), a.shape[1],
        mixed, is_streamed(g, x) and is_streamed(g, dy)
    )  # fmt: skip
    put_share(put_g, work, bi, first, last, m, c)


@block
def apply_grads_share(
    dx, dy, x, firsts, edges, training, a, e, kinds, mixed, bi, first, last, m, c
):
    """Dx of units `first` to `last`."""
    kept = kept_memory(firsts, edges)
    work = (
        memory(dx), memory(dy), memory(x), memory(a), memory(e), memory(kinds), a.shape[1], mixed,
        training, is_streamed(dx, x) and is_streamed(dx, dy)
    )  # fmt: skip
    if kept[2] == 0:
        put_share(put_gradient, work, bi, first, last, m, c)
    else:
        put_kept_share(work, kept, bi, first, last, m, c)


@block
def forward_samples(
    y, mean, var, rstd, r, d, x, residual, firsts, edges, counts, running_mean, running_var, r_max,
    d_max, weight, bias, eps, activation, first, last, b, m, c
):  # fmt: skip
    """`train` of the samples `first` to `last`."""
    partial, totals, sums, shifts = sum_scratch(FORWARD_SUMS, m, c)
    narrow, exact, kind, a, e, kinds = coefficient_scratch(FORWARD_ROWS, y, m, c)
    shift, bad, units = np.empty(mean.size // b), np.empty(mean.size // b), unit_count(m, c)
    centres = np.empty(c)
    for bi in range(first, last):
        set_shifts(shift, centres, x, firsts, edges, bi, m, c)
        for again in range(2):
            spread_statistics(shifts, shift, m, c)
            sum_share(partial, None, x, shifts, firsts, edges, FORWARD_SUMS, bi, 0, units, m, c)
            settle_forward(
                x, statistics_of(mean, bi, b), statistics_of(var, bi, b),
                statistics_of(rstd, bi, b), statistics_of(r, bi, b), statistics_of(d, bi, b),
                statistics_of(running_mean, bi, b), statistics_of(running_var, bi, b), r_max,
                d_max, narrow, exact, kind, partial, totals, sums, shift, bad,
                count_in(counts, bi), weight, bias, eps, again, 0, shift.size, m, c
            )  # fmt: skip
            if again or not is_any(bad):
                break
        mixed = fold_coefficients(a, e, kinds, narrow, exact, kind, m, c)
        apply_share(y, x, residual, activation, a, e, kinds, mixed, bi, 0, units, m, c)


@block
def backward_samples(
    dx, dweights, dbiases, dy, x, firsts, edges, counts, mean, centre, rstd, weight, training,
    first, last, b, m, c
):  # fmt: skip
    """`backward` of the shares `first` to `last` of samples."""
    partial, totals, sums, shifts = sum_scratch(BACKWARD_SUMS, m, c)
    narrow, exact, kind, a, e, kinds = coefficient_scratch(BACKWARD_ROWS, dx, m, c)
    units = unit_count(m, c)
    dw, db = np.empty(c), np.empty(c)
    for k in range(first, last):
        begin, end = slab(b, dweights.shape[0], k)
        for bi in range(begin, end):
            means, centres = statistics_of(mean, bi, b), statistics_of(centre, bi, b)
            spread_statistics(shifts, centres, m, c)
            sum_share(partial, dy, x, shifts, firsts, edges, BACKWARD_SUMS, bi, 0, units, m, c)
            settle_backward(
                dw, db, narrow, exact, kind, partial, totals, sums, means, centres,
                statistics_of(rstd, bi, b), count_in(counts, bi), weight, training, 0, means.size,
                m, c
            )  # fmt: skip
            add_to_share(dweights, dbiases, k, dw, db)
            mixed = fold_coefficients(a, e, kinds, narrow, exact, kind, m, c)
            apply_grads_share(
                dx, dy, x, firsts, edges, training, a, e, kinds, mixed, bi, 0, units, m, c
            )


@block
def add_to_share(dweights, dbiases, k, dw, db):
    """Add a sample's gradients to those of share k."""
    for ch in range(dw.size):
        dweights[k, ch] += dw[ch]
        dbiases[k, ch] += db[ch]


@block
def moments_samples(mean, m2, x, firsts, edges, counts, first, last, b, m, c):
    """`moments` of the samples `first` to `last`."""
    partial, totals, sums, shifts = sum_scratch(FORWARD_SUMS, m, c)
    shift, bad, units = np.empty(c), np.empty(c), unit_count(m, c)
    centres = np.empty(c)
    for bi in range(first, last):
        set_shifts(shift, centres, x, firsts, edges, bi, m, c)
        for again in range(2):
            spread_statistics(shifts, shift, m, c)
            sum_share(partial, None, x, shifts, firsts, edges, FORWARD_SUMS, bi, 0, units, m, c)
            total_share(sums, totals, partial, 0, c, m, c)
            if again or not move_channels(shift, bad, x, sums, counts):
                break
        put_moments(statistics_of(mean, bi, b), statistics_of(m2, bi, b), sums, shift, m)


@block
def reduce_samples(sum_dy, sum_dy_xmu, dy, x, firsts, edges, mean, centre, first, last, b, m, c):
    """`reduce_grads` of the samples `first` to `last`."""
    partial, totals, sums, shifts = sum_scratch(BACKWARD_SUMS, m, c)
    units = unit_count(m, c)
    for bi in range(first, last):
        means, centres = statistics_of(mean, bi, b), statistics_of(centre, bi, b)
        spread_statistics(shifts, centres, m, c)
        sum_share(partial, dy, x, shifts, firsts, edges, BACKWARD_SUMS, bi, 0, units, m, c)
        total_share(sums, totals, partial, 0, c, m, c)
        put_totals(
            statistics_of(sum_dy, bi, b), statistics_of(sum_dy_xmu, bi, b), sums, means, centres
        )


# Elementwise passes share the units of all samples. A thread folds the coefficients of each sample
# that it comes to: `first` and `last` count units through samples.


@block
def given_units(y, x, residual, mean, rstd, weight, bias, activation, first, last, b, m, c):
    """Y of units, from statistics that are given."""
    narrow, exact, kind, a, e, kinds = coefficient_scratch(FORWARD_ROWS, y, m, c)
    units = unit_count(m, c)
    for bi in range(first // units, -(-last // units)):
        low, high = max(first - bi * units, 0), min(last - bi * units, units)
        centre, inverse = statistics_of(mean, bi, b), statistics_of(rstd, bi, b)
        put_given(narrow, exact, kind, centre, inverse, weight, bias)
        mixed = fold_coefficients(a, e, kinds, narrow, exact, kind, m, c)
        apply_share(y, x, residual, activation, a, e, kinds, mixed, bi, low, high, m, c)


@block
def slope_units(g, dy, x, residual, mean, rstd, weight, bias, activation, first, last, b, m, c):
    """The gradient before the activation of units."""
    narrow, exact, kind, a, e, kinds = coefficient_scratch(FORWARD_ROWS, g, m, c)
    units = unit_count(m, c)
    for bi in range(first // units, -(-last // units)):
        low, high = max(first - bi * units, 0), min(last - bi * units, units)
        centre, inverse = statistics_of(mean, bi, b), statistics_of(rstd, bi, b)
        put_given(narrow, exact, kind, centre, inverse, weight, bias)
        mixed = fold_coefficients(a, e, kinds, narrow, exact, kind, m, c)
        activation_grads_share(
            g, dy, x, residual, activation, a, e, kinds, mixed, bi, low, high, m, c
        )


@block
def grads_units(
    dx, dy, x, firsts, edges, mean, rstd, weight, sum_dy, sum_dy_xmu, count, first, last, b, m, c
):
    """Dx of units, from sums that are given."""
    narrow, exact, kind, a, e, kinds = coefficient_scratch(BACKWARD_ROWS, dx, m, c)
    units = unit_count(m, c)
    for bi in range(first // units, -(-last // units)):
        low, high = max(first - bi * units, 0), min(last - bi * units, units)
        put_given_grads(
            narrow, exact, kind, statistics_of(mean, bi, b), statistics_of(rstd, bi, b), weight,
            statistics_of(sum_dy, bi, b), statistics_of(sum_dy_xmu, bi, b), count
        )  # fmt: skip
        mixed = fold_coefficients(a, e, kinds, narrow, exact, kind, m, c)
        apply_grads_share(dx, dy, x, firsts, edges, True, a, e, kinds, mixed, bi, low, high, m, c)
