"""One vector of an elementwise pass: y, dx, or the gradient before the activation, in Numba.

A *value* is a function of a position i, a number of lanes k, coefficients and the arrays that it
reads; the loops that store it (`runs.sweep`, `columns.apply_block`) take it as an argument.
Coefficients are scalars where a run shares them, vectors where every column has its own. They may
be wider than the lanes of x: the result is rounded to those before residual and activation.

Residuals come with a flag, because an absent one is an array of length 0.
"""

from __future__ import annotations

from .activations import activated, activation_slope
from .coefficients import DY_MEAN, EMPTY, HIGH, LOW, REST, SCALE, SHIFT, SLOPE
from .intrinsics import LANES, cast, first, load, load_part, muladd, where
from .jit import inline


@inline
def get(x, i, k):
    """Lanes x[i] to x[i + k - 1]."""
    return load(x, i) if k == LANES else load_part(x, i, k)


@inline
def forward_scalars(a, cells, j):
    """Column j of forward coefficients, as scalars that a loop can keep in registers."""
    return a[HIGH * cells + j], a[LOW * cells + j], a[SCALE * cells + j], a[SHIFT * cells + j]


@inline
def backward_scalars(a, cells, j):
    """Column j of backward coefficients, as scalars that a loop can keep in registers."""
    return (
        a[HIGH * cells + j],
        a[LOW * cells + j],
        a[SCALE * cells + j],
        a[SLOPE * cells + j],
        a[DY_MEAN * cells + j],
        a[REST * cells + j],
    )


@inline
def forward_vectors(a, cells, j):
    """Forward coefficients of the columns from j on."""
    return (
        load(a, HIGH * cells + j),
        load(a, LOW * cells + j),
        load(a, SCALE * cells + j),
        load(a, SHIFT * cells + j),
    )


@inline
def backward_vectors(a, cells, j):
    """Backward coefficients of the columns from j on."""
    return (
        load(a, HIGH * cells + j),
        load(a, LOW * cells + j),
        load(a, SCALE * cells + j),
        load(a, SLOPE * cells + j),
        load(a, DY_MEAN * cells + j),
        load(a, REST * cells + j),
    )


@inline
def scale_scalars(a, cells, j):
    """The factor of a gradient whose statistics are constants."""
    return (a[SCALE * cells + j],)


@inline
def scale_vectors(a, cells, j):
    """The factors of the columns from j on, as `scale_scalars`."""
    return (load(a, SCALE * cells + j),)


@inline
def normalized(v, coefficients):
    """((x - high) - low) * scale + shift of the lanes v of x, in the coefficients' dtype."""
    high, low, scale, shift = coefficients
    return muladd((cast(v, high) - high) - low, scale, shift)


@inline
def finished(z, i, k, given):
    """activation(z + residual)."""
    residual, adds, activation = given
    if adds:
        z = z + get(residual, i, k)
    return activated(z, activation)


@inline
def plain(i, k, coefficients, arrays):
    """Y, with neither residual nor activation."""
    (x,) = arrays
    return normalized(get(x, i, k), coefficients)


@inline
def fused(i, k, coefficients, arrays):
    """Y with residual and activation; where no element counts (`counts` = 0), without x."""
    x, counts, given = arrays
    v = get(x, i, k)
    z = normalized(v if counts == LANES else first(v, counts), coefficients)
    return finished(cast(z, v), i, k, given)


@inline
def before_activation(i, k, coefficients, arrays):
    """The gradient before the activation: dy * slope(z)."""
    dy, x, counts, given = arrays
    residual, adds, activation = given
    v = get(x, i, k)
    z = cast(normalized(v if counts == LANES else first(v, counts), coefficients), v)
    if adds:
        z = z + get(residual, i, k)
    return get(dy, i, k) * activation_slope(z, activation)


@inline
def gradient(i, k, coefficients, arrays):
    """Dx."""
    dy, x = arrays
    high, low, scale, slope, dy_mean, rest = coefficients
    through_x = muladd((cast(get(x, i, k), high) - high) - low, slope, rest)
    return muladd(cast(get(dy, i, k), high) - dy_mean, scale, 0.0 - through_x)


@inline
def scaled(i, k, coefficients, arrays):
    """Dx where the statistics are constants."""
    (dy,) = arrays
    (scale,) = coefficients
    return cast(get(dy, i, k), scale) * scale


@inline
def zero(i, k, coefficients, arrays):
    """Dx of an element that does not count; dy must not be read, it may be NaN."""
    (dy,) = arrays
    return first(get(dy, i, k), 0)


# The same where some columns need float64: all are computed in both precisions and each lane takes
# its own, so that no column's bits depend on its neighbours.


@inline
def mixed_forward(a, cells, j):
    """(narrow, exact, kinds) of the columns from j on."""
    narrow, exact, kind = a
    return forward_vectors(narrow, cells, j), forward_vectors(exact, cells, j), load(kind, j)


@inline
def mixed_backward(a, cells, j):
    """(narrow, exact, kinds) of the columns from j on."""
    narrow, exact, kind = a
    return backward_vectors(narrow, cells, j), backward_vectors(exact, cells, j), load(kind, j)


@inline
def mixed_scale(a, cells, j):
    """(narrow, exact, kinds) of the columns from j on."""
    narrow, exact, kind = a
    return scale_vectors(narrow, cells, j), scale_vectors(exact, cells, j), load(kind, j)


@inline
def mixed_normalized(v, coefficients):
    """`normalized` in the dtype of v; where nothing counts, the shift."""
    narrow, exact, kinds = coefficients
    z = where(kinds, cast(normalized(v, exact), v), normalized(v, narrow))
    return where(kinds - EMPTY, z, narrow[SHIFT])


@inline
def mixed_fused(i, k, coefficients, arrays):
    """`fused`."""
    x, _, given = arrays
    return finished(mixed_normalized(get(x, i, k), coefficients), i, k, given)


@inline
def mixed_before_activation(i, k, coefficients, arrays):
    """`before_activation`."""
    dy, x, _, (residual, adds, activation) = arrays
    z = mixed_normalized(get(x, i, k), coefficients)
    if adds:
        z = z + get(residual, i, k)
    return get(dy, i, k) * activation_slope(z, activation)


@inline
def mixed_gradient(i, k, coefficients, arrays):
    """`gradient`."""
    narrow, exact, kinds = coefficients
    a = gradient(i, k, narrow, arrays)
    return where(kinds, cast(gradient(i, k, exact, arrays), a), a)


@inline
def mixed_scaled(i, k, coefficients, arrays):
    """`scaled`."""
    narrow, exact, kinds = coefficients
    a = scaled(i, k, narrow, arrays)
    return where(kinds, cast(scaled(i, k, exact, arrays), a), a)
