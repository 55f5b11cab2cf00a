"""What rows add to dweight and dbias, in Numba: sums of dy * (x - mean) * rstd and of dy.

In float64: rounded to float32, the terms of 65536 rows that repeat 16 were off by 7e-6 of
dweight's norm. Of halves, dy * (x - high), high having 12 digits, is a float32 most often, so that
the factor rstd is what is left to do in float64; the part of `low`, and dbias, are small or short
enough for float32 over a few rows. That leaves 3e-6 where thousands of rows are equal (9e-6 before)
and 1e-7 elsewhere.

A kernel calls the functions without an underscore; which of the two forms it gets depends on what
the row is stored as and computed in.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

from .coefficients import HIGH, LOW
from .intrinsics import cast, first, muladd
from .jit import inline
from .layers import put_gradient
from .registers import as_doubles

_SPLIT = 2.0**41 + 1
"""Of 53 digits, it leaves the first 12 (Veltkamp's splitting)."""


@inline
def put_row_gradient(narrow, exact, pitch, j, x, mean, rest, rstd, g, through_x, count):
    """`put_gradient` of a row; of halves, with a high of 12 digits."""
    kind = put_gradient(narrow, exact, pitch, j, mean, rest, rstd, g, through_x, count)
    if x.itemsize == 2:
        product = (mean + rest) * _SPLIT
        high = product - (product - (mean + rest))
        narrow[HIGH * pitch + j] = high
        narrow[LOW * pitch + j] = (mean - high) + rest
    return kind


def no_terms(x: Any, weights: Any) -> Any:
    """Sums of no rows, for columns with these weights."""
    raise NotImplementedError("no_terms works in compiled code")


@overload(no_terms, jit_options={"forceinline": True})
def _no_terms(x, weights):  # type: ignore[no-untyped-def]  # Numba compares it
    if x.dtype.bitwidth == 16 and weights.dtype == types.float32:
        return lambda x, weights: (
            cast(first(weights, 0), 0.0),
            first(weights, 0),
            first(weights, 0),
        )
    return lambda x, weights: (cast(first(weights, 0), 0.0), cast(first(weights, 0), 0.0))


def row_term(terms: Any, at: Any, h: Any, v: Any, coefficients: Any, exact: Any) -> Any:
    """What `add_term` adds for the lanes h of dy and v of x: to dweight, and to dbias.

    `at` says where they lie, `coefficients` are those of dx, `exact` are mean and rstd in float64.
    """
    raise NotImplementedError("row_term works in compiled code")


@overload(row_term, jit_options={"forceinline": True})
def _row_term(terms, at, h, v, coefficients, exact):  # type: ignore[no-untyped-def]  # as above
    def narrow(terms, at, h, v, coefficients, exact):  # type: ignore[no-untyped-def]  # as above
        return h * (v - coefficients[0]), h

    def floats(terms, at, h, v, coefficients, exact):  # type: ignore[no-untyped-def]  # as above
        dy, x, i, k = at
        # The two parts of a float32 mean make one float64.
        return (as_doubles(x, i, k, v) - exact[0]) * exact[1], as_doubles(dy, i, k, h)

    def doubles(terms, at, h, v, coefficients, exact):  # type: ignore[no-untyped-def]  # as above
        high, low, scale = coefficients[0], coefficients[1], coefficients[2]
        return ((cast(v, 0.0) - high) - low) * scale, cast(h, 0.0)

    if terms.count == 3:
        return narrow
    return floats if coefficients.dtype == types.float32 else doubles


def add_term(terms: Any, term: Any, h: Any, coefficients: Any, exact: Any) -> Any:
    """The sums with what `row_term` gave."""
    raise NotImplementedError("add_term works in compiled code")


@overload(add_term, jit_options={"forceinline": True})
def _add_term(terms, term, h, coefficients, exact):  # type: ignore[no-untyped-def]  # as above
    if terms.count == 3:
        return lambda terms, term, h, coefficients, exact: (
            muladd(cast(term, 0.0), exact[1], terms[0]),
            muladd(h, coefficients[1] * coefficients[2], terms[1]),
            terms[2] + h,
        )
    return lambda terms, term, h, coefficients, exact: (
        muladd(h, term, terms[0]),
        terms[1] + h,
    )


def sums_of_terms(terms: Any) -> Any:
    """What the rows add to dweight and dbias, as doubles."""
    raise NotImplementedError("sums_of_terms works in compiled code")


@overload(sums_of_terms, jit_options={"forceinline": True})
def _sums_of_terms(terms):  # type: ignore[no-untyped-def]  # as above
    if terms.count == 3:
        return lambda terms: (terms[0] - cast(terms[1], 0.0), cast(terms[2], 0.0))
    return lambda terms: terms
