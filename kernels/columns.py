"""Arithmetic of columns: rows of c elements, each column with its own coefficients, in Numba.

Columns are taken 16 at a time and down several rows, so that the accumulators or coefficients of
the 16 stay in registers. A column is one lane: its additions are in the order of the rows.

Where one of the columns needs float64 (`coefficients.put_forward`), every group is computed in
both precisions and each lane takes its own, so that no column's bits depend on its neighbours.
"""

from __future__ import annotations

from .coefficients import (
    DY_HIGH,
    DY_LOW,
    FACTOR,
    HIGH,
    LOW,
    SCALE,
    SHIFT,
    SLOPE,
)
from .intrinsics import (
    LANES,
    LINE_BYTES,
    cast,
    load,
    load_part,
    memory,
    muladd,
    store,
    store_part,
    stream,
    where,
)
from .jit import block, inline
from .runs import gradient, head, normalized

CHUNK_ROWS = 16
"""Rows per visit of 16 columns: each visit loads and stores the accumulators once."""


@inline
def get(x, i, k):
    """Lanes x[i] to x[i + k - 1]."""
    return load(x, i) if k == LANES else load_part(x, i, k)


@inline
def put(y, i, k, v, streaming):
    """Set y[i] to y[i + k - 1] = lanes, rounded to the dtype of y."""
    if k < LANES:
        store_part(y, i, k, cast(v, y))
    elif streaming:
        stream(y, i, cast(v, y))
    else:
        store(y, i, cast(v, y))


@inline
def clear_columns(partial, at, quantities, cells, begin, end):
    """Set the partial sums of columns to zero."""
    for q in range(quantities):
        for j in range(at + q * cells + begin, at + q * cells + end):
            partial[j] = 0.0


@inline
def column_shifts(shift, j, x, start, rows, c, k):
    """Near the mean of each of k columns, and the value itself where all are equal."""
    origin = cast(get(x, start, k), shift)
    sums = origin - origin
    for r in range(1, rows):
        sums = sums + (cast(get(x, start + r * c, k), shift) - origin)
    put(shift, j, k, muladd(sums, 1.0 / rows, origin), False)


@inline
def column_sums(partial, at, cells, x, start, rows, c, shift, j, k):
    """Add the sums of x - shift and (x - shift)^2 of k columns, `rows` rows from x[start]."""
    s1, s2, origin = get(partial, at, k), get(partial, at + cells, k), get(shift, j, k)
    for r in range(rows):
        deviation = cast(get(x, start + r * c, k), shift) - origin
        s1 = s1 + deviation
        s2 = muladd(deviation, deviation, s2)
    put(partial, at, k, s1, False)
    put(partial, at + cells, k, s2, False)


@inline
def column_grad_sums(partial, at, cells, dy, x, start, rows, c, mean, j, k):
    """Add the sums of dy, dy * (x - mean) and x - mean of k columns, `rows` rows."""
    s1, s2, s3 = get(partial, at, k), get(partial, at + cells, k), get(partial, at + 2 * cells, k)
    centre = get(mean, j, k)
    for r in range(rows):
        g = cast(get(dy, start + r * c, k), mean)
        deviation = cast(get(x, start + r * c, k), mean) - centre
        s1 = s1 + g
        s2 = muladd(g, deviation, s2)
        s3 = s3 + deviation
    put(partial, at, k, s1, False)
    put(partial, at + cells, k, s2, False)
    put(partial, at + 2 * cells, k, s3, False)


@block
def add_units(sums, partial, begin, end):
    """Set sums[0] = partial[0] + partial[1] + ... for the cells begin to end."""
    units, quantities, cells = partial.shape
    sums, partial = memory(sums), memory(partial)
    for q in range(quantities):
        for j in range(begin, end, LANES):
            k, at = min(LANES, end - j), q * cells + j
            s = get(partial, at, k)
            for u in range(1, units):
                s = s + get(partial, u * quantities * cells + at, k)
            put(sums, at, k, s, False)


@inline
def column_forward(a, cells, j, k):
    """Forward coefficients of k columns."""
    return (
        get(a, HIGH * cells + j, k),
        get(a, LOW * cells + j, k),
        get(a, SCALE * cells + j, k),
        get(a, SHIFT * cells + j, k),
    )


@inline
def column_backward(a, cells, j, k):
    """Backward coefficients of k columns."""
    return (
        get(a, HIGH * cells + j, k),
        get(a, LOW * cells + j, k),
        get(a, FACTOR * cells + j, k),
        get(a, SLOPE * cells + j, k),
        get(a, DY_HIGH * cells + j, k),
        get(a, DY_LOW * cells + j, k),
    )


@inline
def apply_columns(y, x, start, rows, c, narrow, exact, wide, mixed, cells, j, k, streaming):
    """Set y = ((x - high) - low) * scale + shift for k columns."""
    a = column_forward(narrow, cells, j, k)
    if mixed:
        e, flags = column_forward(exact, cells, j, k), get(wide, j, k)
        for i in range(start, start + rows * c, c):
            v = get(x, i, k)
            chosen = where(flags, cast(normalized(v, e), y), cast(normalized(v, a), y))
            put(y, i, k, chosen, streaming)
    else:
        for i in range(start, start + rows * c, c):
            put(y, i, k, normalized(get(x, i, k), a), streaming)


@inline
def apply_grads_columns(
    dx, dy, x, start, rows, c, narrow, exact, wide, mixed, cells, j, k, streaming
):
    """Set dx = factor * ((dy - dy_high) - (((x - high) - low) * slope + dy_low)) for k columns."""
    a = column_backward(narrow, cells, j, k)
    if mixed:
        e, flags = column_backward(exact, cells, j, k), get(wide, j, k)
        for i in range(start, start + rows * c, c):
            g, v = get(dy, i, k), get(x, i, k)
            chosen = where(flags, cast(gradient(g, v, e), dx), cast(gradient(g, v, a), dx))
            put(dx, i, k, chosen, streaming)
    else:
        for i in range(start, start + rows * c, c):
            put(dx, i, k, gradient(get(dy, i, k), get(x, i, k), a), streaming)


@inline
def scale_columns(dx, dy, start, rows, c, narrow, exact, wide, mixed, cells, j, k, streaming):
    """Set dx = dy * factor for k columns: the gradient where the statistics are constants."""
    factor = get(narrow, FACTOR * cells + j, k)
    if mixed:
        e, flags = get(exact, FACTOR * cells + j, k), get(wide, j, k)
        for i in range(start, start + rows * c, c):
            g = get(dy, i, k)
            put(dx, i, k, where(flags, cast(cast(g, exact) * e, dx), g * factor), streaming)
    else:
        for i in range(start, start + rows * c, c):
            put(dx, i, k, get(dy, i, k) * factor, streaming)


@inline
def is_mixed(wide, begin, end):
    """Whether some of the cells need float64."""
    found = False
    for j in range(begin, end):
        found = found or wide[j] != 0.0
    return found


@inline
def aligned(y, start, columns, c, streaming):
    """(columns before a cache line, rows that have as many) where y is streamed from `start`."""
    same = not streaming or c * y.itemsize % LINE_BYTES == 0
    return head(y, start, columns, streaming), CHUNK_ROWS if same else 1


@block
def apply_rows(
    y, x, narrow, exact, wide, cells, streaming, bi, first, last, begin, end, m, c
):  # fmt: skip
    """Rows `first` to `last` of y, for columns."""
    mixed = is_mixed(wide, bi * c + begin, bi * c + end)
    row = first
    while row < last:
        start = (bi * m + row) * c
        k, rows = aligned(y, start + begin, end - begin, c, streaming)
        rows, ch = min(rows, last - row), begin
        while ch < end:
            k = k if k > 0 else min(LANES, end - ch)
            apply_columns(
                y,
                x,
                start + ch,
                rows,
                c,
                narrow,
                exact,
                wide,
                mixed,
                cells,
                bi * c + ch,
                k,
                streaming,
            )
            ch, k = ch + k, 0
        row += rows


@block
def apply_rows_grads(
    dx, dy, x, narrow, exact, wide, cells, training, streaming, bi, first, last, begin, end, m, c
):  # fmt: skip
    """Rows `first` to `last` of dx, for columns."""
    mixed = is_mixed(wide, bi * c + begin, bi * c + end)
    row = first
    while row < last:
        start = (bi * m + row) * c
        k, rows = aligned(dx, start + begin, end - begin, c, streaming)
        rows, ch = min(rows, last - row), begin
        while ch < end:
            k, i, j = k if k > 0 else min(LANES, end - ch), start + ch, bi * c + ch
            if training:
                apply_grads_columns(
                    dx, dy, x, i, rows, c, narrow, exact, wide, mixed, cells, j, k, streaming
                )
            else:
                scale_columns(
                    dx, dy, i, rows, c, narrow, exact, wide, mixed, cells, j, k, streaming
                )
            ch, k = ch + k, 0
        row += rows
