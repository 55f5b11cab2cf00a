"""Numba kernels of the rows family: a statistic is a row of m contiguous elements.

Threads share the rows. A row is summed and then normalized while it lies in the cache; the sums
ask for the rows after it meanwhile. Where mean is absent nothing is centred (RMS norm): the same
code with a shift of 0. A mask cuts a row into stretches that count or do not.

`table` says what the arguments are, `normcore.reference` what is computed.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .coefficients import (
    BACKWARD_ROWS,
    DY_HIGH,
    DY_LOW,
    FACTOR,
    FORWARD_ROWS,
    HIGH,
    LOW,
    SCALE,
    SLOPE,
    put_backward,
    put_forward,
)
from .intrinsics import (
    LANES,
    LINE_BYTES,
    address,
    compute_dtype,
    memory,
)
from .jit import block, kernel, slab
from .layers import (
    LEAST_ROWS,
    add_units,
    elements_of,
    flags_of,
    numbers_of,
    parameter,
    unit_count,
)
from .runs import is_streamed
from .stretches import apply_row, grads_row, row_grad_sums, row_statistics, slope_row

APART = LANES
"""Columns of coefficients, of which a thread uses the first: no two threads write to one line."""


@block
def forward_share(
    y, total, mean, rstd, x, addend, residual, mask, w, b, eps, activation, narrow, exact, wide,
    begin, end, m
):  # fmt: skip
    """Statistics and y of the rows begin to end."""
    streaming, centre, fused = is_streamed(y, x), mean.size > 0, residual.size > 0
    if addend is not None:
        streaming = streaming and (address(y) - address(total)) % LINE_BYTES == 0
    q = mask.size * m // x.size
    to, sums, of, plus, more = memory(y), memory(total), memory(x), memory(addend), memory(residual)
    flags, weights, biases = memory(mask), memory(w), memory(b)
    means, inverses = memory(mean), memory(rstd)
    # A row is normalized after the sums of the next one: neither then waits for the other's last
    # additions, divisions and the root.
    for i in range(begin, end + 1):
        if i < end:
            shift, rest, inverses[i] = row_statistics(of, plus, flags, i, q, m, centre, eps)
            if centre:
                means[i] = shift + rest
            put_forward(narrow, exact, wide, i % 2, shift, rest, inverses[i], 1.0, 0.0)
        if i > begin:
            start, k = (i - 1) * m, (i - 1) % 2
            blank = inverses[i - 1] == 0.0
            if wide[k] != 0.0:
                a = exact[HIGH, k], exact[LOW, k], exact[SCALE, k]
                apply_row(
                    to, sums, of, plus, more, fused, weights, biases, start, m, a, blank,
                    activation, streaming
                )  # fmt: skip
            else:
                c = narrow[HIGH, k], narrow[LOW, k], narrow[SCALE, k]
                apply_row(
                    to, sums, of, plus, more, fused, weights, biases, start, m, c, blank,
                    activation, streaming
                )  # fmt: skip


@kernel
def forward(y, mean, rstd, x, residual, mask, weight, bias, eps, activation, r, m, threads):
    """Statistics of each row and y = activation((x - mean) * rstd * weight + bias + residual)."""
    w, b = parameter(weight, 1.0, m, x), parameter(bias, 0.0, m, x)
    more, flags, means = elements_of(residual, x), flags_of(mask), numbers_of(mean)
    narrow = np.empty((threads, FORWARD_ROWS, APART), compute_dtype(x))
    exact = np.empty((threads, FORWARD_ROWS, APART))
    wide = np.empty((threads, APART))
    for t in prange(threads):
        begin, end = slab(r, threads, t)
        forward_share(
            y, None, means, rstd, x, None, more, flags, w, b, eps, activation, narrow[t], exact[t],
            wide[t], begin, end, m
        )  # fmt: skip


@kernel
def add_forward(y, total, mean, rstd, x, addend, weight, bias, eps, r, m, threads):
    """Set total = x + addend, and `forward` of it."""
    w, b, means = parameter(weight, 1.0, m, x), parameter(bias, 0.0, m, x), numbers_of(mean)
    residual, flags = elements_of(None, x), flags_of(None)
    narrow = np.empty((threads, FORWARD_ROWS, APART), compute_dtype(x))
    exact = np.empty((threads, FORWARD_ROWS, APART))
    wide = np.empty((threads, APART))
    for t in prange(threads):
        begin, end = slab(r, threads, t)
        forward_share(
            y, total, means, rstd, x, addend, residual, flags, w, b, eps, 0, narrow[t], exact[t],
            wide[t], begin, end, m
        )  # fmt: skip


@block
def slope_share(
    g, dy, x, residual, mean, rstd, w, b, activation, narrow, exact, wide, begin, end, m
):  # fmt: skip
    """Set g of the rows begin to end."""
    centre, fused = mean.size > 0, residual.size > 0
    to, by, of, more = memory(g), memory(dy), memory(x), memory(residual)
    means, inverses, weights, biases = memory(mean), memory(rstd), memory(w), memory(b)
    for i in range(begin, end):
        inverse = inverses[i]
        blank = inverse == 0.0
        centred = centre and not blank
        put_forward(narrow, exact, wide, 0, means[i] if centred else 0.0, 0.0, inverse, 1.0, 0.0)
        if wide[0] != 0.0:
            a = exact[HIGH, 0], exact[LOW, 0], exact[SCALE, 0]
            slope_row(to, by, of, more, fused, weights, biases, i * m, m, a, blank, activation)
        else:
            c = narrow[HIGH, 0], narrow[LOW, 0], narrow[SCALE, 0]
            slope_row(to, by, of, more, fused, weights, biases, i * m, m, c, blank, activation)


@kernel
def activation_grads(g, dy, x, residual, mean, rstd, weight, bias, activation, r, m, threads):
    """Set g = dy * slope of the activation at the norm of x plus residual."""
    w, b = parameter(weight, 1.0, m, x), parameter(bias, 0.0, m, x)
    more, means = elements_of(residual, x), numbers_of(mean)
    narrow = np.empty((threads, FORWARD_ROWS, APART), compute_dtype(x))
    exact = np.empty((threads, FORWARD_ROWS, APART))
    wide = np.empty((threads, APART))
    for t in prange(threads):
        begin, end = slab(r, threads, t)
        slope_share(
            g, dy, x, more, means, rstd, w, b, activation, narrow[t], exact[t], wide[t], begin, end,
            m
        )  # fmt: skip


@block
def backward_share(
    dx, partial, dy, x, addend, mask, mean, rstd, w, v, narrow, exact, wide, begin, end, r, m
):  # fmt: skip
    """dx of the rows of the units begin to end, and the sums of dweight and dbias.

    w is weight in the dtype that x is computed in, v in float64.
    """
    streaming, centre = is_streamed(dx, x) and is_streamed(dx, dy), mean.size > 0
    fused, q, units = addend.size > 0, mask.size * m // x.size, partial.shape[0]
    to, parts, by, of = memory(dx), memory(partial), memory(dy), memory(x)
    more, flags, means = memory(addend), memory(mask), memory(mean)
    inverses, weights, precise = memory(rstd), memory(w), memory(v)
    for u in range(begin, end):
        at = u * 2 * m
        for j in range(at, at + 2 * m):
            parts[j] = 0.0
        low, high = slab(r, units, u)
        # As in `forward_share`: one row behind the sums.
        for i in range(low, high + 1):
            if i < high:
                centred = means[i] if centre else 0.0
                a, b, rest, count = row_grad_sums(by, of, flags, precise, i, q, m, centred)
                count = max(count, 1)
                rest = rest / count if centre else 0.0  # what the rounding of the mean left over
                a, b = a if centre else 0.0, b - rest * a
                put_backward(
                    narrow, exact, wide, i % 2, centred, rest, inverses[i], 1.0, a, b, count
                )
            if i > low:
                k = (i - 1) % 2
                if wide[k] != 0.0:
                    e = (
                        exact[HIGH, k],
                        exact[LOW, k],
                        exact[FACTOR, k],
                        exact[SLOPE, k],
                        exact[DY_HIGH, k],
                        exact[DY_LOW, k],
                    )
                    grads_row(
                        to, parts, at, by, of, more, fused, flags, precise, i - 1, q, m, e,
                        streaming
                    )  # fmt: skip
                else:
                    c = (
                        narrow[HIGH, k],
                        narrow[LOW, k],
                        narrow[FACTOR, k],
                        narrow[SLOPE, k],
                        narrow[DY_HIGH, k],
                        narrow[DY_LOW, k],
                    )
                    grads_row(
                        to, parts, at, by, of, more, fused, flags, weights, i - 1, q, m, c,
                        streaming
                    )  # fmt: skip


@kernel
def backward(dx, dweight, dbias, dy, x, addend, mask, mean, rstd, weight, r, m, threads):
    """Set dx (plus addend), dweight and dbias."""
    w, v = parameter(weight, 1.0, m, x), parameter(weight, 1.0, m, rstd)
    more, flags = elements_of(addend, x), flags_of(mask)
    units, means = unit_count(r, LEAST_ROWS), numbers_of(mean)
    partial = np.empty((units, 2, m))
    narrow = np.empty((threads, BACKWARD_ROWS, APART), compute_dtype(x))
    exact = np.empty((threads, BACKWARD_ROWS, APART))
    wide = np.empty((threads, APART))
    for t in prange(threads):
        begin, end = slab(units, threads, t)
        backward_share(
            dx, partial, dy, x, more, flags, means, rstd, w, v, narrow[t], exact[t], wide[t], begin,
            end, r, m
        )  # fmt: skip
    for t in prange(threads):
        begin, end = slab(m, threads, t)
        add_units(dweight, dbias, partial, begin, end)
