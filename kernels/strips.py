"""Arithmetic of a strip of columns whose rows have a weight and a bias each, in Numba.

A strip is `width` of the c columns of m elements, c apart; `start` is its first element. Sums take
16 columns at a time and down a group of rows, so that the accumulators stay in registers, and add
up by groups. The elementwise passes go along the rows, as memory lies.

Values of the columns of a strip are rows of arrays with `pitch` columns: `LANES` more than the
strip may have, because vectors behind its end read there.
"""

from __future__ import annotations

from .activations import activated, activation_slope
from .coefficients import HIGH, LOW, SCALE, finite_or_zero
from .intrinsics import (
    LANES,
    cast,
    first,
    load,
    memory,
    muladd,
    prefetch,
    splat,
    store,
    store_part,
    stream,
    sum_lanes,
    where,
)
from .jit import inline
from .layers import G_HIGH, G_LOW, SLOPE, gradient
from .runs import head
from .values import get

GROUP_BYTES = 8192
"""Rows of one visit of 16 columns hold this many bytes, but are 8 to 32 (as in `columns`)."""


@inline
def group_rows(x, width, arrays):
    """Rows that are summed in registers, while the same number behind them is asked for."""
    return min(32, max(8, GROUP_BYTES // (arrays * width * x.itemsize)))


@inline
def set_shifts(shift, x, start, rows, c, width):
    """Near the mean of each column's first rows, and the value itself where all are equal."""
    for j in range(0, width, LANES):
        k = min(LANES, width - j)
        origin = cast(get(x, start + j, k), shift)
        sums = first(origin, 0)
        for p in range(start + j + c, start + j + rows * c, c):
            sums = sums + (cast(get(x, p, k), shift) - origin)
        store(shift, j, muladd(sums, 1.0 / rows, origin))
    for j in range(width):
        shift[j] = finite_or_zero(shift[j])


@inline
def add_column_sums(totals, pitch, x, at, rows, c, ahead, shift, j, k):
    """Add the sums of x - shift and (x - shift)^2 of k columns, over a group of rows."""
    s1, s2, origin = splat(0.0), splat(0.0), load(shift, j)
    for p in range(at, at + rows * c, c):
        prefetch(x, p + ahead)
        deviation = cast(get(x, p, k), origin) - origin
        s1 = s1 + deviation
        s2 = muladd(deviation, deviation, s2)
    store(totals, j, load(totals, j) + s1)
    store(totals, pitch + j, load(totals, pitch + j) + s2)


@inline
def strip_sums(totals, pitch, x, start, m, c, width, shift):
    """Set the sums of x - shift and (x - shift)^2 of the columns."""
    for j in range(2 * pitch):
        totals[j] = 0.0
    together, whole = group_rows(x, width, 1), width // LANES * LANES
    for i in range(0, m, together):
        rows, at, ahead = min(together, m - i), start + i * c, together * c
        for j in range(0, whole, LANES):
            add_column_sums(totals, pitch, x, at + j, rows, c, ahead, shift, j, LANES)
        if whole < width:
            k = width - whole
            add_column_sums(totals, pitch, x, at + whole, rows, c, ahead, shift, whole, k)


@inline
def add_column_grad_sums(totals, pitch, dy, x, w, at, i, rows, c, ahead, mean, j, k):
    """Add the sums of g = dy * weight, g * (x - mean) and x - mean of k columns, over a group."""
    s1, s2, s3, centre = splat(0.0), splat(0.0), splat(0.0), load(mean, j)
    for r in range(rows):
        p = at + r * c
        prefetch(dy, p + ahead)
        prefetch(x, p + ahead)
        g = cast(get(dy, p, k), centre) * w[i + r]
        deviation = cast(get(x, p, k), centre) - centre
        s1 = s1 + g
        s2 = muladd(g, deviation, s2)
        s3 = s3 + deviation
    store(totals, j, load(totals, j) + s1)
    store(totals, pitch + j, load(totals, pitch + j) + s2)
    store(totals, 2 * pitch + j, load(totals, 2 * pitch + j) + s3)


@inline
def strip_grad_sums(totals, pitch, dy, x, w, start, m, c, width, mean):
    """Set the sums of g = dy * weight, g * (x - mean) and x - mean of the columns."""
    for j in range(3 * pitch):
        totals[j] = 0.0
    together, whole = group_rows(x, width, 2), width // LANES * LANES
    for i in range(0, m, together):
        rows, at, ahead = min(together, m - i), start + i * c, together * c
        for j in range(0, whole, LANES):
            add_column_grad_sums(totals, pitch, dy, x, w, at + j, i, rows, c, ahead, mean, j, LANES)
        if whole < width:
            k = width - whole
            add_column_grad_sums(
                totals, pitch, dy, x, w, at + whole, i, rows, c, ahead, mean, whole, k
            )


@inline
def put(y, p, k, v, streaming):
    """Set y[p] to y[p + k - 1] = lanes, rounded to the dtype of y."""
    if k < LANES:
        store_part(y, p, k, cast(v, y))
    elif streaming:
        stream(y, p, cast(v, y))
    else:
        store(y, p, cast(v, y))


@inline
def inputs_of(x, residual, w, b):
    """What `output` reads, without the arrays, and whether there is a residual."""
    return memory(x), memory(residual), residual.size > 0, memory(w), memory(b)


@inline
def output(dy, inputs, i, p, k, a, pitch, j, activation):
    """y of k elements of row i from p on, column j; with dy, its gradient before the activation.

    Where rstd is 0, x does not count.
    """
    x, residual, fused, w, b = inputs
    scale = load(a, SCALE * pitch + j)
    deviation = (cast(get(x, p, k), scale) - load(a, HIGH * pitch + j)) - load(a, LOW * pitch + j)
    z = muladd(where(scale, deviation * scale, first(scale, 0)), w[i], b[i])
    if fused:
        z = z + cast(get(residual, p, k), z)
    if dy is None:
        return activated(z, activation)
    else:  # Numba drops the branch that the type excludes
        return cast(get(dy, p, k), z) * activation_slope(z, activation)


@inline
def apply_strip(y, dy, inputs, start, m, c, width, a, pitch, activation, streaming):
    """Set the `output` of a strip."""
    for i in range(m):
        at = start + i * c
        lead = head(y, at, width, streaming)
        stop = lead + (width - lead) // LANES * LANES
        if lead > 0:
            put(y, at, lead, output(dy, inputs, i, at, lead, a, pitch, 0, activation), False)
        for j in range(lead, stop, LANES):
            v = output(dy, inputs, i, at + j, LANES, a, pitch, j, activation)
            put(y, at + j, LANES, v, streaming)
        if stop < width:
            k, p = width - stop, at + stop
            put(y, p, k, output(dy, inputs, i, p, k, a, pitch, stop, activation), False)


@inline
def apply_mixed_strip(
    y, dy, inputs, start, m, c, width, narrow, exact, wide, pitch, activation
):  # fmt: skip
    """`apply_strip` where some columns need float64 (`layers.put_coefficients`).

    All are computed in both precisions and each lane takes its own, so that no column's bits
    depend on its neighbours.
    """
    for i in range(m):
        for j in range(0, width, LANES):
            p, k = start + i * c + j, min(LANES, width - j)
            e = output(dy, inputs, i, p, k, exact, pitch, j, activation)
            a = output(dy, inputs, i, p, k, narrow, pitch, j, activation)
            put(y, p, k, where(load(wide, j), cast(e, a), a), False)


@inline
def row_part(s1, s2, dy, x, p, k, a, kept, pitch, j):
    """Add dy * x_hat and dy of k elements from p on to the lanes of a row."""
    high, low, scale = (
        load(a, HIGH * pitch + j),
        load(a, LOW * pitch + j),
        load(a, SCALE * pitch + j),
    )
    h, flags, zero = cast(get(dy, p, k), scale), load(kept, j), first(scale, 0)
    x_hat = ((cast(get(x, p, k), scale) - high) - low) * scale
    s1 = s1 + cast(first(where(flags, h * x_hat, zero), k), s1)
    return s1, s2 + cast(first(where(flags, h, zero), k), s2)


@inline
def add_row_sums(parts, at, m, dy, x, start, c, width, a, kept, pitch):
    """Add every row's sums of dy * x_hat and dy to those of a unit.

    A sweep of its own, from the first element: `grads_strip` starts at a cache line of dx, and
    the bits of a sum must not depend on where an array lies.
    """
    whole = width // LANES * LANES
    for i in range(m):
        s1, s2, p = splat(0.0), splat(0.0), start + i * c
        for j in range(0, whole, LANES):
            s1, s2 = row_part(s1, s2, dy, x, p + j, LANES, a, kept, pitch, j)
        if whole < width:
            s1, s2 = row_part(s1, s2, dy, x, p + whole, width - whole, a, kept, pitch, whole)
        parts[at + i] += sum_lanes(s1)
        parts[at + m + i] += sum_lanes(s2)


@inline
def input_gradient(inputs, i, p, k, a, kept, pitch, j):
    """The dx of k elements of row i from p on; where a column does not count, the addend or 0."""
    dy, x, addend, fused, w = inputs
    coefficients = (
        load(a, HIGH * pitch + j),
        load(a, LOW * pitch + j),
        load(a, SCALE * pitch + j),
        load(a, SLOPE * pitch + j),
        load(a, G_HIGH * pitch + j),
        load(a, G_LOW * pitch + j),
    )
    h = cast(get(dy, p, k), coefficients[2])
    dx = where(load(kept, j), gradient(h, w[i], get(x, p, k), coefficients), first(h, 0))
    if fused:
        dx = dx + cast(get(addend, p, k), dx)
    return dx


@inline
def grads_strip(dx, inputs, start, m, c, width, a, kept, pitch, streaming):
    """Set the dx of a strip."""
    for i in range(m):
        at = start + i * c
        lead = head(dx, at, width, streaming)
        stop = lead + (width - lead) // LANES * LANES
        if lead > 0:
            put(dx, at, lead, input_gradient(inputs, i, at, lead, a, kept, pitch, 0), False)
        for j in range(lead, stop, LANES):
            v = input_gradient(inputs, i, at + j, LANES, a, kept, pitch, j)
            put(dx, at + j, LANES, v, streaming)
        if stop < width:
            k, p = width - stop, at + stop
            put(dx, p, k, input_gradient(inputs, i, p, k, a, kept, pitch, stop), False)


@inline
def mixed_grads_strip(
    dx, parts, at, inputs, start, m, c, width, narrow, exact, wide, kept, pitch
):  # fmt: skip
    """`add_row_sums` and `grads_strip` where some columns need float64, as `apply_mixed_strip`."""
    dy, x = inputs[0], inputs[1]
    for i in range(m):
        s1, s2 = splat(0.0), splat(0.0)
        for j in range(0, width, LANES):
            p, k = start + i * c + j, min(LANES, width - j)
            r1, _ = row_part(s1, s2, dy, x, p, k, narrow, kept, pitch, j)
            e1, s2 = row_part(s1, s2, dy, x, p, k, exact, kept, pitch, j)
            s1 = where(load(wide, j), e1, r1)
            a = input_gradient(inputs, i, p, k, narrow, kept, pitch, j)
            e = input_gradient(inputs, i, p, k, exact, kept, pitch, j)
            put(dx, p, k, where(load(wide, j), cast(e, a), a), False)
        parts[at + i] += sum_lanes(s1)
        parts[at + m + i] += sum_lanes(s2)
