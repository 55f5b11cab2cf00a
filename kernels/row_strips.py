"""Gradients of rows of halves that have a weight and a bias for each element, in Numba.

Sums of a row are added up as floats and doubles (`registers`). dx is set strip by strip of columns
of all rows that are taken together, whose part of dweight and dbias stays in registers: in float32,
which is 3e-7 of the norm, and up to 1e-5 where thousands of rows are equal. In float64 it took the
backward of (32768, 1024) in bfloat16 from 0.6 to 0.7 of float32's time.
"""

from __future__ import annotations

from .coefficients import WIDE
from .columns import add_to
from .intrinsics import (
    LINE_BYTES,
    cast,
    first,
    load_as,
    load_part_as,
    muladd,
    prefetch_as,
    splat,
    store,
    store_part,
    stream,
    where,
)
from .jit import block, inline
from .layers import gradient
from .registers import (
    block_length,
    folded,
    get,
    line_zeros,
    one_line,
    sum_lanes,
    sum_zeros,
    take,
)
from .runs import gap, head, put
from .weighted import (
    TOGETHER,
    flag_row,
    forward_scalars,
    gradient_scalars,
    origin_in,
    put_gradients,
)

GROUP_BYTES = 2**18
"""Rows whose gradients are taken together hold at most this much of each array."""


@inline
def rows_together(itemsize, m):
    """Rows whose sums are taken before their gradients: they still lie in the L2 cache then."""
    return max(1, min(TOGETHER, GROUP_BYTES // (m * itemsize)))


@inline
def grad_sums_part(s1, s2, dy, x, w, flags, f, masked, i, j, k, mean):
    """Add k elements' g = dy * weight and g * (x - mean)."""
    g = take(dy, i + j, k, s1) * take(w, j, k, s1)
    deviation = take(x, i + j, k, s1) - mean
    if masked:
        kept, zero = take(flags, f + j, k, s1), first(s1, 0)
        g, deviation = where(kept, g, zero), where(kept, deviation, zero)
    return s1 + g, muladd(g, deviation, s2)


@inline
def row_grad_sums(dy, x, w, flags, f, masked, i, m, mean, ahead):
    """(sum of g = dy * weight, of g * (x - mean)) of a row.

    Asks for the x that is summed `ahead` elements later; `grads_part` asks for the dy.
    """
    t1, t2, zero = splat(0.0), splat(0.0), sum_zeros(x)
    whole, each = m // zero.lanes * zero.lanes, block_length(x, m, zero)
    for begin in range(0, m, each):
        s1, s2, end = zero, zero, min(begin + each, m)
        for j in range(begin, min(end, whole), zero.lanes):
            k = zero.lanes
            prefetch_as(x, i + j + ahead, zero)
            s1, s2 = grad_sums_part(s1, s2, dy, x, w, flags, f, masked, i, j, k, mean)
        if end > whole:
            j, k = whole, m - whole
            s1, s2 = grad_sums_part(s1, s2, dy, x, w, flags, f, masked, i, j, k, mean)
        t1, t2 = t1 + folded(s1), t2 + folded(s2)
    return sum_lanes(t1), sum_lanes(t2)


@inline
def grads_part(dx, to, pitch, parts, at, m, inputs, kept, start, rows, j, k, a, streaming, like):
    """`grads_strip` for k elements from j on, of which as many are taken as `like` has lanes."""
    dy, x, addend, fused, w = inputs
    flags, masked, ahead = kept
    columns, slot = a
    weights = get(w, j, k, like)
    dweight, dbias = first(weights, 0), first(weights, 0)
    for r in range(rows):
        coefficients = gradient_scalars(columns, TOGETHER, slot + r)
        i = start + r * m + j
        if k == like.lanes:
            prefetch_as(dy, i + ahead, like)
        v, h = take(x, i, k, weights), take(dy, i, k, weights)
        value = gradient(h, weights, v, coefficients)
        high, low, scale = forward_scalars(columns, TOGETHER, slot + r)
        term, g = muladd(v - high, scale, low), h
        if masked:
            flag = get(flags, (slot + r) * m + j, k, like)
            value = where(flag, value, first(value, 0))
            term, g = where(flag, term, first(term, 0)), where(flag, g, first(g, 0))
        if fused:
            value = value + take(addend, i, k, h)
        put(dx, to + r * pitch, k, value, streaming)
        dweight, dbias = muladd(g, term, dweight), dbias + g
    add_to(parts, at + j, k, cast(dweight, parts))
    add_to(parts, at + m + j, k, cast(dbias, parts))


@block
def grads_strips(
    dx, to, pitch, parts, at, m, inputs, kept, start, rows, begin, end, a, streaming, like
):  # fmt: skip
    """Set dx of the columns begin to end, of rows `pitch` apart from dx[to] on.

    Their sums for dweight and dbias stay in registers, and go to those of the unit at parts[at].
    """
    lanes = like.lanes
    stop, of = begin + (end - begin) // lanes * lanes, to - begin
    if streaming:
        for j in range(begin, stop, lanes):
            grads_part(
                dx, of + j, pitch, parts, at, m, inputs, kept, start, rows, j, lanes, a, True, like
            )
    else:
        for j in range(begin, stop, lanes):
            grads_part(
                dx, of + j, pitch, parts, at, m, inputs, kept, start, rows, j, lanes, a, False, like
            )
    if stop < end:
        j, k = stop, end - stop
        grads_part(dx, of + j, pitch, parts, at, m, inputs, kept, start, rows, j, k, a, False, like)


@inline
def grads_rows(dx, lines, waits, parts, at, inputs, kept, start, rows, m, a, streaming, goes_on):
    """Set some rows of dx, plus addend, and add their terms to their unit's sums.

    Streamed rows that begin in the middle of a line share that line with the row before: it is put
    together in `lines` and stored whole. In two parts, it was first read from memory. The last one
    waits for the rows behind, if there are any.
    """
    like, strip, line = line_zeros(dx), sum_zeros(dx), LINE_BYTES // dx.itemsize
    lead, rest = head(dx, start, m, streaming), line - gap(dx, start)
    shared, begun, whole = lead > 0, waits[0] != 0.0, one_line(dx)
    waits[0] = 1.0 if shared and goes_on else 0.0
    if begun and not shared:
        store_part(dx, start - rest, rest, load_part_as(lines, 0, rest, whole))
    last = m
    if shared:
        last = m - rest
        grads_strips(
            lines, rest, line, parts, at, m, inputs, kept, start, rows, 0, lead, a, False, like
        )
        grads_strips(
            lines, line, line, parts, at, m, inputs, kept, start, rows, last, m, a, False, like
        )
        if not begun:
            store_part(dx, start, lead, load_part_as(lines, rest, lead, whole))
        for r in range(0 if begun else 1, rows):
            stream(dx, start + r * m - rest, load_as(lines, r * line, whole))
        behind = load_as(lines, rows * line, whole)
        if goes_on:
            store(lines, 0, behind)
        else:
            store_part(dx, start + rows * m - rest, rest, behind)
    j = lead + (last - lead) // strip.lanes * strip.lanes
    grads_strips(
        dx, start + lead, m, parts, at, m, inputs, kept, start, rows, lead, j, a, streaming, strip
    )
    if j < last:
        grads_strips(
            dx, start + j, m, parts, at, m, inputs, kept, start, rows, j, last, a, streaming, like
        )


@inline
def half_group(dx, parts, at, inputs, statistics, mask, memories, place, m, streaming):
    """dx of the first rows of those from `row` to `end`, and what they add to a unit's sums.

    Returns how many rows were taken.
    """
    dy, x, addend, fused, w, v = inputs
    (narrow, exact, kinds, waits, lines), (row, end, _, last) = memories, place
    masks, masked, q, flags = mask
    together, wide = rows_together(x.itemsize, m), False
    rows, ahead = min(together, end - row), together * m
    # Columns of rows that begin at different places of a line cannot all be stored to whole ones.
    streaming = streaming and m * x.itemsize % LINE_BYTES == 0
    for k in range(rows):
        i = row + k
        count, _ = flag_row(flags, k * m, masks, i, q, m)
        origin = origin_in(statistics, x, i)
        g, through_x = row_grad_sums(dy, x, w, flags, k * m, masked, i * m, m, origin, ahead)
        sums = g, through_x, 0.0
        kinds[k], _ = put_gradients((narrow, exact), TOGETHER, k, x, statistics, i, sums, count)
        wide = wide or kinds[k] == WIDE
    each = 1 if wide else rows
    for k in range(0, rows, each):
        start, kept = (row + k) * m, (flags, masked, ahead)
        if kinds[k] == WIDE:
            given, c = (dy, x, addend, fused, v), (exact, k)
            grads_rows(dx, lines, waits, parts, at, given, kept, start, 1, m, c, False, False)
        else:
            given, c = (dy, x, addend, fused, w), (narrow, k)
            grads_rows(
                dx, lines, waits, parts, at, given, kept, start, each, m, c,
                streaming and not wide, row + rows < last
            )  # fmt: skip
    return rows
