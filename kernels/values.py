"""One vector of an elementwise pass: y, dx, or the gradient before the activation, in Numba.

A *value* is a function of a position i, a number of elements k, a vector `like` what it returns,
coefficients and the arrays that it reads; the loops that store it (`runs.sweep`,
`columns.apply_block`) take it as an argument.
Coefficients are scalars where a run shares them, vectors where every column has its own. They may
be wider than the lanes of x: the result is rounded to those before residual and activation.

Residuals come with a flag, because an absent one is an array of length 0.
"""

from __future__ import annotations

from .activations import activated, activation_slope
from .coefficients import DY_MEAN, EMPTY, HIGH, LOW, REST, SCALE, SHIFT, SLOPE
from .intrinsics import cast, first, load_as, muladd, where
from .jit import inline
from .registers import get


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
def forward_vectors(a, cells, j, like):
    """Forward coefficients of the columns from j on."""
    return (
        load_as(a, HIGH * cells + j, like),
        load_as(a, LOW * cells + j, like),
        load_as(a, SCALE * cells + j, like),
        load_as(a, SHIFT * cells + j, like),
    )


@inline
def backward_vectors(a, cells, j, like):
    """Backward coefficients of the columns from j on."""
    return (
        load_as(a, HIGH * cells + j, like),
        load_as(a, LOW * cells + j, like),
        load_as(a, SCALE * cells + j, like),
        load_as(a, SLOPE * cells + j, like),
        load_as(a, DY_MEAN * cells + j, like),
        load_as(a, REST * cells + j, like),
    )


@inline
def scale_scalars(a, cells, j):
    """The factor of a gradient whose statistics are constants."""
    return (a[SCALE * cells + j],)


@inline
def scale_vectors(a, cells, j, like):
    """The factors of the columns from j on, as `scale_scalars`."""
    return (load_as(a, SCALE * cells + j, like),)


@inline
def normalized(v, coefficients):
    """((x - high) - low) * scale + shift of the lanes v of x, in the coefficients' dtype."""
    high, low, scale, shift = coefficients
    return muladd((cast(v, high) - high) - low, scale, shift)


@inline
def finished(z, i, k, like, given):
    """activation(z + residual)."""
    residual, adds, activation = given
    if adds:
        z = z + get(residual, i, k, like)
    return activated(z, activation)


@inline
def plain(i, k, like, coefficients, arrays):
    """Y, with neither residual nor activation."""
    (x,) = arrays
    return normalized(get(x, i, k, like), coefficients)


@inline
def fused(i, k, like, coefficients, arrays):
    """Y with residual and activation; where no element counts, without x."""
    x, counts, given = arrays
    v = get(x, i, k, like)
    z = normalized(v if counts else first(v, 0), coefficients)
    return finished(cast(z, v), i, k, like, given)


@inline
def before_activation(i, k, like, coefficients, arrays):
    """The gradient before the activation: dy * slope(z)."""
    dy, x, counts, given = arrays
    residual, adds, activation = given
    v = get(x, i, k, like)
    z = cast(normalized(v if counts else first(v, 0), coefficients), v)
    if adds:
        z = z + get(residual, i, k, like)
    return get(dy, i, k, like) * activation_slope(z, activation)


@inline
def gradient(i, k, like, coefficients, arrays):
    """Dx."""
    dy, x = arrays
    high, low, scale, slope, dy_mean, rest = coefficients
    through_x = muladd((cast(get(x, i, k, like), high) - high) - low, slope, rest)
    return muladd(cast(get(dy, i, k, like), high) - dy_mean, scale, 0.0 - through_x)


@inline
def scaled(i, k, like, coefficients, arrays):
    """Dx where the statistics are constants."""
    (dy,) = arrays
    (scale,) = coefficients
    return cast(get(dy, i, k, like), scale) * scale


@inline
def zero(i, k, like, coefficients, arrays):
    """Dx of an element that does not count; dy must not be read, it may be NaN."""
    (dy,) = arrays
    return first(get(dy, i, k, like), 0)


# The same where some columns need float64: all are computed in both precisions and each lane takes
# its own, so that no column's bits depend on its neighbours.


@inline
def mixed_forward(a, cells, j, like):
    """(narrow, exact, kinds) of the columns from j on."""
    narrow, exact, kind = a
    a, e = forward_vectors(narrow, cells, j, like), forward_vectors(exact, cells, j, like)
    return a, e, load_as(kind, j, like)


@inline
def mixed_backward(a, cells, j, like):
    """(narrow, exact, kinds) of the columns from j on."""
    narrow, exact, kind = a
    a, e = backward_vectors(narrow, cells, j, like), backward_vectors(exact, cells, j, like)
    return a, e, load_as(kind, j, like)


@inline
def mixed_scale(a, cells, j, like):
    """(narrow, exact, kinds) of the columns from j on."""
    narrow, exact, kind = a
    a, e = scale_vectors(narrow, cells, j, like), scale_vectors(exact, cells, j, like)
    return a, e, load_as(kind, j, like)


@inline
def mixed_normalized(v, coefficients):
    """`normalized` in the dtype of v; where nothing counts, the shift."""
    narrow, exact, kinds = coefficients
    z = where(kinds, cast(normalized(v, exact), v), normalized(v, narrow))
    return where(kinds - EMPTY, z, narrow[SHIFT])


@inline
def mixed_fused(i, k, like, coefficients, arrays):
    """`fused`."""
    x, _, given = arrays
    return finished(mixed_normalized(get(x, i, k, like), coefficients), i, k, like, given)


@inline
def mixed_before_activation(i, k, like, coefficients, arrays):
    """`before_activation`."""
    dy, x, _, (residual, adds, activation) = arrays
    z = mixed_normalized(get(x, i, k, like), coefficients)
    if adds:
        z = z + get(residual, i, k, like)
    return get(dy, i, k, like) * activation_slope(z, activation)


@inline
def mixed_gradient(i, k, like, coefficients, arrays):
    """`gradient`."""
    narrow, exact, kinds = coefficients
    a = gradient(i, k, like, narrow, arrays)
    return where(kinds, cast(gradient(i, k, like, exact, arrays), a), a)


@inline
def mixed_scaled(i, k, like, coefficients, arrays):
    """`scaled`."""
    narrow, exact, kinds = coefficients
    a = scaled(i, k, like, narrow, arrays)
    return where(kinds, cast(scaled(i, k, like, exact, arrays), a), a)
