"""One sample of the nc family, in Numba: m rows of c contiguous channels, and what a thread does.

Rows of few channels are read `fold` at a time as one wide row, so that every vector is full; the
columns of a channel are added up at the end. Sums go in *units* of rows, in whose order they are
added up. All functions work on sample `bi` of b.
"""

from __future__ import annotations

from .coefficients import (
    columns_of,
    counts_by,
    finite_or_zero,
    period_of,
    renormalization,
    sums_of,
)
from .columns import WRAP, add_units, apply_block, block_sums, column_shifts
from .intrinsics import LANES, memory
from .jit import block, inline
from .masks import kept_memory
from .registers import LINE_LANES, get, line_zeros, origin_of
from .runs import put, sweep
from .schedule import UNIT_BLOCK, UNIT_BLOCK_LEAST, UNITS
from .settle import finish_gradients, finish_statistics, move_shifts
from .values import (
    backward_vectors,
    before_activation,
    forward_vectors,
    fused,
    gradient,
    mixed_backward,
    mixed_before_activation,
    mixed_forward,
    mixed_fused,
    mixed_gradient,
    mixed_scale,
    mixed_scaled,
    plain,
    scale_vectors,
    scaled,
    zero,
)

FOLD = 64
"""Rows are folded until they hold this many columns."""

FOLD_MOST = 1024
"""They are whole vectors where that takes no more columns than this."""

SHIFT_ROWS = 8
"""The first shift of a channel is near the mean of this many of its elements."""


@inline
def fold_of(m, c):
    """Rows that are read as one."""
    whole = 1
    while whole * c % LINE_LANES != 0:
        whole *= 2
    fold = whole * -(-FOLD // (whole * c))
    if fold * c > FOLD_MOST:
        fold = -(-FOLD // c)
    return max(1, min(m, fold))


@inline
def unit_rows(m, c):
    """Folded rows of a unit."""
    elements = max(UNIT_BLOCK_LEAST, min(UNIT_BLOCK, m * c // UNITS))
    return max(8, elements // (fold_of(m, c) * c) // 8 * 8)


@inline
def unit_count(m, c):
    """Units of a sample."""
    return -(-m // (fold_of(m, c) * unit_rows(m, c)))


@inline
def unit_bounds(u, m, c):
    """First row and last + 1 row of unit u."""
    rows = unit_rows(m, c) * fold_of(m, c)
    return u * rows, min(m, (u + 1) * rows)


@block
def set_shifts(shift, centres, x, firsts, edges, bi, m, c):
    """Shifts of a sample's statistics, from the first rows that count; `centres` is scratch."""
    first, edge, planes = kept_memory(firsts, edges)
    row, rows = 0, min(m, SHIFT_ROWS)
    if planes > 0:
        runs = first[bi + 1] - first[bi]
        row = edge[2 * first[bi]] if runs > 0 else 0
        rows = min(edge[2 * first[bi] + 1] - row, SHIFT_ROWS) if runs > 0 else 0
    to, of, d = memory(centres), memory(x), c // shift.size
    if rows > 0:
        for ch in range(0, c, LANES):
            column_shifts(to, ch, of, (bi * m + row) * c + ch, rows, c, min(LANES, c - ch))
    if d == 1 and rows > 0:
        for g in range(c):
            shift[g] = origin_of(of, finite_or_zero(centres[g]))
        return
    for g in range(shift.size):
        origin, more = centres[g * d], 0.0
        for ch in range(g * d, (g + 1) * d):
            more += centres[ch] - origin
        shift[g] = origin_of(of, finite_or_zero(origin + more / d)) if rows > 0 else 0.0


@block
def spread(columns, values, wrap, m, c):
    """Repeat values of channels under the folded columns, `wrap` of them again at the end."""
    width, to, of = fold_of(m, c) * c + wrap, memory(columns), memory(values)
    like = line_zeros(values)
    for q in range(values.shape[0]):
        for f in range(0, width, c):
            end = min(c, width - f)
            for j in range(0, end, like.lanes):
                k = min(like.lanes, end - j)
                put(to, q * width + f + j, k, get(of, q * c + j, k, like), False)


@block
def spread_statistics(columns, values, m, c):
    """Repeat values of statistics under the folded columns of their channels."""
    d = c // values.size
    for f in range(0, fold_of(m, c) * c, c):
        for g in range(values.size):
            for j in range(f + g * d, f + (g + 1) * d):
                columns[j] = values[g]


@inline
def add_rows(parts, at, wide, dy, x, start, rows, fold, c, shifts):
    """Add the sums of rows, folded."""
    whole, rest = rows // fold, rows % fold * c
    block_sums(parts, at, wide, dy, x, start, whole, wide, shifts, 0)
    if rest > 0:
        block_sums(parts, at, wide, dy, x, start + whole * wide, 1, rest, shifts, 0)


@block
def sum_share(partial, dy, x, shifts, firsts, edges, quantities, bi, first, last, m, c):
    """Set the sums of units `first` to `last`."""
    fold, (runs, edge, planes) = fold_of(m, c), kept_memory(firsts, edges)
    wide = fold * c
    parts, by, of, centres = memory(partial), memory(dy), memory(x), memory(shifts)
    for u in range(first, last):
        at = u * quantities * wide
        low, high = unit_bounds(u, m, c)
        for j in range(at, at + quantities * wide):
            parts[j] = 0.0
        if planes == 0:
            start = (bi * m + low) * c
            add_rows(parts, at, wide, by, of, start, high - low, fold, c, centres)
            continue
        for r in range(runs[bi], runs[bi + 1]):
            begin, end = max(low, edge[2 * r]), min(high, edge[2 * r + 1])
            if end > begin:
                start = (bi * m + begin) * c
                add_rows(parts, at, wide, by, of, start, end - begin, fold, c, centres)


@block
def total_share(sums, totals, partial, begin, end, m, c):
    """Set sums[0] of channels: over units in their order, then over the columns of a channel."""
    fold, units, quantities = fold_of(m, c), unit_count(m, c), sums.shape[1]
    wide = fold * c
    parts, folded, to = memory(partial), memory(totals), memory(sums)
    stride = quantities * wide
    for q in range(quantities):
        at = q * wide
        if fold == 1:
            add_units(to, q * c + begin, parts, at + begin, units, stride, end - begin)
            continue
        if end - begin == c:
            add_units(folded, at, parts, at, units, stride, wide)
        else:
            for f in range(begin, wide, c):
                add_units(folded, at + f, parts, at + f, units, stride, end - begin)
        for ch in range(begin, end):
            s = 0.0
            for f in range(at + ch, at + wide, c):
                s += folded[f]
            to[q * c + ch] = s


@block
def merge_channels(sums, d, begin, end):
    """Make the sums of the first channel of each statistic those of all its d channels.

    Compensated (Neumaier), because they may be thousands: var of 4099 was off by 4.2e-15.
    """
    for q in range(sums.shape[1]):
        for g in range(begin, end):
            s, lost = sums[0, q, g * d], 0.0
            for ch in range(g * d + 1, (g + 1) * d):
                value = sums[0, q, ch]
                new = s + value
                lost += (s - new) + value if abs(s) >= abs(value) else (value - new) + s
                s = new
            sums[0, q, g * d] = s + finite_or_zero(lost)


@block
def move_channels(shift, bad, x, sums, counts):
    """`move_bad_shifts` of all channels, each a statistic."""
    shared = counts_by(counts, shift.size)
    return move_shifts(
        memory(shift), memory(bad), memory(x), sums_of(sums), 1, shared, shift.size, 0, shift.size
    )


@block
def settle_forward(
    x, mean, var, rstd, r, d, running_mean, running_var, r_max, d_max, narrow, exact, kind, partial,
    totals, sums, shift, bad, count, weight, bias, eps, again, begin, end, m, c
):  # fmt: skip
    """Statistics begin to end and their coefficients, or a better shift for them."""
    width, counts = c // mean.size, counts_by(count, mean.size)
    total_share(sums, totals, partial, begin * width, end * width, m, c)
    if width > 1:
        merge_channels(sums, width, begin, end)
    to, values = memory(shift), sums_of(sums)
    if not again:
        move_shifts(to, memory(bad), memory(x), values, width, counts, mean.size, begin, end)
    finish_statistics(
        memory(mean), memory(var), memory(rstd),
        renormalization(r, d, running_mean, running_var, r_max, d_max),
        columns_of(narrow, exact, kind), width, values, width, to, counts, period_of(weight),
        period_of(bias), eps, begin, end
    )  # fmt: skip


@block
def settle_backward(
    dweights, dbiases, narrow, exact, kind, partial, totals, sums, mean, centre, rstd, count,
    weight, training, begin, end, m, c
):  # fmt: skip
    """Gradients and coefficients of the channels of statistics begin to end."""
    width = c // mean.size
    total_share(sums, totals, partial, begin * width, end * width, m, c)
    finish_gradients(
        memory(dweights), memory(dbiases), columns_of(narrow, exact, kind), width, sums_of(sums),
        memory(mean), memory(centre), memory(rstd), counts_by(count, mean.size), period_of(weight),
        training, begin, end
    )  # fmt: skip


@block
def is_any(flags):
    """Whether one of the flags is not zero."""
    found = False
    for j in range(flags.size):
        found = found or flags[j] != 0.0
    return found


@block
def fold_coefficients(a, e, kinds, narrow, exact, kind, m, c):
    """Coefficients of the folded columns; returns whether some need those in float64."""
    mixed = is_any(kind)
    spread(a, narrow, WRAP, m, c)
    if mixed:
        spread(e, exact, WRAP, m, c)
        spread(kinds, kind.reshape((1, c)), WRAP, m, c)
    return mixed


# Elementwise passes: `put` sets `rows` rows of `cols` elements from what `work` holds.


@inline
def put_rows(put, work, start, rows, fold, c):
    """Rows of c elements, folded."""
    whole, rest = rows // fold, rows % fold * c
    put(work, start, whole, fold * c)
    if rest > 0:
        put(work, start + whole * fold * c, 1, rest)


@inline
def put_share(put, work, bi, first, last, m, c):
    """Units `first` to `last`, last ones first."""
    fold = fold_of(m, c)
    for u in range(last - 1, first - 1, -1):
        low, high = unit_bounds(u, m, c)
        put_rows(put, work, (bi * m + low) * c, high - low, fold, c)


@inline
def put_y(work, start, rows, cols):
    """Y of a block."""
    y, x, given, a, e, kinds, pitch, mixed, streaming = work
    _, adds, activation = given
    arrays = (x, True, given)
    if mixed:
        of = (a, e, kinds)
        apply_block(
            y, start, rows, cols, streaming, mixed_fused, mixed_forward, of, pitch, arrays, (x,)
        )
    elif adds or activation != 0:
        apply_block(y, start, rows, cols, streaming, fused, forward_vectors, a, pitch, arrays, (x,))
    else:
        apply_block(y, start, rows, cols, streaming, plain, forward_vectors, a, pitch, (x,), (x,))


@inline
def put_g(work, start, rows, cols):
    """The gradient of a block before its activation."""
    g, dy, x, given, a, e, kinds, pitch, mixed, streaming = work
    arrays = (dy, x, True, given)
    if mixed:
        apply_block(
            g, start, rows, cols, streaming, mixed_before_activation, mixed_forward,
            (a, e, kinds), pitch, arrays, (dy, x)
        )  # fmt: skip
    else:
        apply_block(
            g, start, rows, cols, streaming, before_activation, forward_vectors, a, pitch, arrays,
            (dy, x)
        )  # fmt: skip


@block
def put_gradient(work, start, rows, cols):
    """Dx of a block of which all elements count."""
    dx, dy, x, a, e, kinds, pitch, mixed, training, streaming = work
    of = (a, e, kinds)
    if training and not mixed:
        apply_block(
            dx, start, rows, cols, streaming, gradient, backward_vectors, a, pitch, (dy, x),
            (dy, x)
        )  # fmt: skip
    elif training:
        apply_block(
            dx, start, rows, cols, streaming, mixed_gradient, mixed_backward, of, pitch, (dy, x),
            (dy, x)
        )  # fmt: skip
    elif mixed:
        apply_block(
            dx, start, rows, cols, streaming, mixed_scaled, mixed_scale, of, pitch, (dy,), (dy,)
        )
    else:
        apply_block(dx, start, rows, cols, streaming, scaled, scale_vectors, a, pitch, (dy,), (dy,))


@block
def put_kept_share(work, kept, bi, first, last, m, c):
    """`put_share` of dx where some rows do not count: those are 0."""
    (runs, edges, _), dx, dy, streaming = kept, work[0], work[1], work[9]
    fold = fold_of(m, c)
    for u in range(last - 1, first - 1, -1):
        at, high = unit_bounds(u, m, c)
        for r in range(runs[bi], runs[bi + 1]):
            begin, end = max(at, edges[2 * r]), min(high, edges[2 * r + 1])
            if end > begin:
                start, gap = (bi * m + at) * c, (begin - at) * c
                sweep(dx, start, gap, streaming, zero, (), (dy,))
                put_rows(put_gradient, work, start + gap, end - begin, fold, c)
                at = end
        sweep(dx, (bi * m + at) * c, (high - at) * c, streaming, zero, (), (dy,))
