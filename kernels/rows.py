"""Numba kernels of the rows family: a statistic is a row of m contiguous elements.

Threads share the rows. A row is summed and then normalized while it lies in the cache; the sums
ask for the rows after it meanwhile. Gradients are taken of a few rows together. Where mean is
absent nothing is centred (RMS norm): the same code with a shift of 0.

`table` says what the arguments are, `normcore.reference` what is computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import overload

from .coefficients import EMPTY, WIDE
from .intrinsics import LINE_BYTES, address, compute_dtype, memory
from .jit import block, inline, kernel, slab
from .layers import COEFFICIENTS, add_units, coefficient_memory, parameter, row_units
from .optional import array_or_empty, mask_or_empty
from .registers import origin_of
from .row_grads import float_group
from .row_strips import half_group
from .runs import is_streamed, line_memory
from .weighted import (
    TOGETHER,
    apply_row,
    flag_row,
    forward_scalars,
    put_row,
    row_statistics,
)

# A row is finished after the sums of the next one: neither then waits for the other's last
# additions, divisions and the root. So coefficients and flags are those of two rows.
TURNS = 2


@inline
def flag_memory(threads, rows, mask, m, x):
    """Flags of the elements of some rows, for every thread."""
    length = rows * m if mask.size > 0 else 0
    return np.empty((threads, length), compute_dtype(x))


@inline
def gradient_memory(threads, x):
    """Coefficients of the rows whose gradients are taken together, for every thread."""
    return np.empty((threads, COEFFICIENTS, TOGETHER), compute_dtype(x))


@block
def forward_share(
    y, total, mean, rstd, x, addend, residual, mask, w, b, eps, activation, narrow, exact, lines,
    sum_lines, flags, begin, end, m
):  # fmt: skip
    """Statistics and y of the rows begin to end."""
    streaming, centre, pitch = is_streamed(y, x), mean.size > 0, narrow.shape[1]
    if total is not None:
        streaming = streaming and (address(y) - address(total)) % LINE_BYTES == 0
    masked, q = mask.size > 0, mask.size * m // x.size
    to, sums, of, plus = memory(y), memory(total), memory(x), memory(addend)
    shared = memory(lines), memory(sum_lines)
    inputs = of, plus, memory(residual), residual.size > 0, memory(w), memory(b)
    means, inverses, masks, kept = memory(mean), memory(rstd), memory(mask), memory(flags)
    a, e, kind, last = memory(narrow), memory(exact), 0.0, 0.0
    for i in range(begin, end + 1):
        last = kind
        if i < end:
            count, start = flag_row(kept, 0, masks, i, q, m)
            shift, rest, inverse = row_statistics(
                of, plus, kept, masked, i * m, m, count, start, centre, eps
            )
            inverses[i] = inverse
            if centre:
                means[i] = shift + rest
            kind = put_row(a, e, pitch, i % TURNS, of, shift, rest, inverse)
        if i > begin:
            at, k, blank = (i - 1) * m, (i - 1) % TURNS, last == EMPTY
            ends = i - 1 == begin, i == end
            if last == WIDE:
                c = forward_scalars(e, pitch, k)
                apply_row(
                    to, shared, ends, None, sums, inputs, at, m, c, blank, activation, streaming
                )
            else:
                d = forward_scalars(a, pitch, k)
                apply_row(
                    to, shared, ends, None, sums, inputs, at, m, d, blank, activation, streaming
                )


@kernel
def forward(y, mean, rstd, x, residual, mask, weight, bias, eps, activation, r, m, threads):
    """Statistics of each row and y = activation((x - mean) * rstd * weight + bias + residual)."""
    w, b = parameter(weight, 1.0, m, x), parameter(bias, 0.0, m, x)
    more, masks, means = (
        array_or_empty(residual, x),
        mask_or_empty(mask),
        array_or_empty(mean, rstd),
    )
    narrow, exact = coefficient_memory(threads, 1, x), coefficient_memory(threads, 1, rstd)
    lines, flags = line_memory(threads, TURNS, x), flag_memory(threads, TURNS, masks, m, x)
    for t in prange(threads):
        begin, end = slab(r, threads, t)
        forward_share(
            y, None, means, rstd, x, None, more, masks, w, b, eps, activation, narrow[t], exact[t],
            lines[t], None, flags[t], begin, end, m
        )  # fmt: skip


@kernel
def add_forward(y, total, mean, rstd, x, addend, weight, bias, eps, r, m, threads):
    """Set total = x + addend, and `forward` of it."""
    w, b = parameter(weight, 1.0, m, x), parameter(bias, 0.0, m, x)
    more, masks, means = array_or_empty(None, x), mask_or_empty(None), array_or_empty(mean, rstd)
    narrow, exact = coefficient_memory(threads, 1, x), coefficient_memory(threads, 1, rstd)
    lines, flags = line_memory(threads, TURNS, x), flag_memory(threads, TURNS, masks, m, x)
    sum_lines = line_memory(threads, TURNS, x)
    for t in prange(threads):
        begin, end = slab(r, threads, t)
        forward_share(
            y, total, means, rstd, x, addend, more, masks, w, b, eps, 0, narrow[t], exact[t],
            lines[t], sum_lines[t], flags[t], begin, end, m
        )  # fmt: skip


@block
def slope_share(
    g, dy, x, residual, mean, rstd, w, b, activation, narrow, exact, lines, begin, end, m
):  # fmt: skip
    """Set g of the rows begin to end."""
    centre, pitch = mean.size > 0, narrow.shape[1]
    streaming = is_streamed(g, x) and is_streamed(g, dy)
    to, by, means, inverses = memory(g), memory(dy), memory(mean), memory(rstd)
    inputs = memory(x), None, memory(residual), residual.size > 0, memory(w), memory(b)
    a, e, shared = memory(narrow), memory(exact), (memory(lines), None)
    for i in range(begin, end):
        ends = i == begin, i + 1 == end
        mean_of = means[i] if centre else 0.0
        shift = origin_of(inputs[0], mean_of)
        kind = put_row(a, e, pitch, 0, inputs[0], shift, mean_of - shift, inverses[i])
        if kind == WIDE:
            c = forward_scalars(e, pitch, 0)
            apply_row(to, shared, ends, by, None, inputs, i * m, m, c, False, activation, streaming)
        else:
            d, blank = forward_scalars(a, pitch, 0), kind == EMPTY
            apply_row(to, shared, ends, by, None, inputs, i * m, m, d, blank, activation, streaming)


@kernel
def activation_grads(g, dy, x, residual, mean, rstd, weight, bias, activation, r, m, threads):
    """Set g = dy * slope of the activation at the norm of x plus residual."""
    w, b = parameter(weight, 1.0, m, x), parameter(bias, 0.0, m, x)
    more, means = array_or_empty(residual, x), array_or_empty(mean, rstd)
    narrow, exact = coefficient_memory(threads, 1, x), coefficient_memory(threads, 1, rstd)
    lines = line_memory(threads, TURNS, x)
    for t in prange(threads):
        begin, end = slab(r, threads, t)
        slope_share(
            g, dy, x, more, means, rstd, w, b, activation, narrow[t], exact[t], lines[t], begin,
            end, m
        )  # fmt: skip


def gradients(
    dx: Any, parts: Any, at: Any, inputs: Any, statistics: Any, mask: Any, memories: Any,
    place: Any, m: Any, streaming: Any
) -> Any:  # fmt: skip
    """`float_group` or `half_group`, by what x is. For kernels."""
    raise NotImplementedError("gradients works in compiled code")


@overload(gradients, jit_options={"forceinline": True})
def _gradients(  # type: ignore[no-untyped-def]  # Numba compares it with the lambda
    dx, parts, at, inputs, statistics, mask, memories, place, m, streaming
):
    group = half_group if dx.dtype.bitwidth == 16 else float_group
    return lambda dx, parts, at, inputs, statistics, mask, memories, place, m, streaming: group(
        dx, parts, at, inputs, statistics, mask, memories, place, m, streaming
    )


@block
def backward_share(
    dx, partial, dy, x, addend, mask, mean, rstd, w, v, narrow, exact, sums, lines, flags, begin,
    end, r, m
):  # fmt: skip
    """dx of the rows of the units begin to end, and the sums of dweight and dbias.

    w is weight in the dtype that x is computed in, v in float64.
    """
    streaming, units = is_streamed(dx, x) and is_streamed(dx, dy), partial.shape[0]
    to, parts = memory(dx), memory(partial)
    inputs = memory(dy), memory(x), memory(addend), addend.size > 0, memory(w), memory(v)
    statistics = memory(mean), memory(rstd), mean.size > 0
    kept = memory(mask), mask.size > 0, mask.size * m // x.size, memory(flags)
    memories = memory(narrow), memory(exact), memory(sums[0]), memory(sums[1]), memory(lines)
    first, last = slab(r, units, begin)[0], slab(r, units, end - 1)[1]
    for u in range(begin, end):
        at = u * 2 * m
        for j in range(at, at + 2 * m):
            parts[j] = 0.0
        row, high = slab(r, units, u)
        while row < high:
            place = row, high, row == first, last
            row += gradients(to, parts, at, inputs, statistics, kept, memories, place, m, streaming)


@kernel
def backward(dx, dweight, dbias, dy, x, addend, mask, mean, rstd, weight, r, m, threads):
    """Set dx (plus addend), dweight and dbias."""
    w, v = parameter(weight, 1.0, m, x), parameter(weight, 1.0, m, rstd)
    more, masks, means = array_or_empty(addend, x), mask_or_empty(mask), array_or_empty(mean, rstd)
    units = row_units(r)
    partial = np.empty((units, 2, m))
    narrow, exact = gradient_memory(threads, x), gradient_memory(threads, rstd)
    sums = np.zeros((threads, 2, 4 * TOGETHER))
    lines = line_memory(threads, TOGETHER + 1, x)
    flags = flag_memory(threads, TOGETHER, masks, m, x)
    for t in prange(threads):
        begin, end = slab(units, threads, t)
        backward_share(
            dx, partial, dy, x, more, masks, means, rstd, w, v, narrow[t], exact[t], sums[t],
            lines[t], flags[t], begin, end, r, m
        )  # fmt: skip
    for t in prange(threads):
        begin, end = slab(m, threads, t)
        add_units(dweight, dbias, partial, begin, end)
