"""What rows add to dweight and dbias, in Numba: sums of dy * (x - mean) * rstd and of dy.

In float64: rounded to float32, the terms of 65536 rows that repeat 16 were off by 7e-6 of
dweight's norm. Those of halves are float32 over the rows that are taken together, which is 3e-7 of
the norm, and up to 1e-5 where thousands of rows are equal: in float64 they took the backward of
(32768, 1024) in bfloat16 from 0.6 to 0.7 of float32's time.

A kernel calls the functions without an underscore; which of the two forms it gets depends on what
the row is stored as and computed in.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

from .intrinsics import cast, first, muladd
from .jit import inline
from .registers import as_doubles


def no_terms(x: Any, weights: Any) -> Any:
    """Sums of no rows, for columns with these weights."""
    raise NotImplementedError("no_terms works in compiled code")


@overload(no_terms, jit_options={"forceinline": True})
def _no_terms(x, weights):  # type: ignore[no-untyped-def]  # Numba compares it
    if x.dtype.bitwidth == 16 and weights.dtype == types.float32:
        return lambda x, weights: (first(weights, 0), first(weights, 0))
    return lambda x, weights: (cast(first(weights, 0), 0.0), cast(first(weights, 0), 0.0))


def row_term(terms: Any, at: Any, h: Any, v: Any, coefficients: Any, exact: Any) -> Any:
    """What `add_term` adds for the lanes h of dy and v of x: to dweight, and to dbias.

    `at` says where they lie, `coefficients` are those of dx, `exact` are mean and rstd in float64.
    """
    raise NotImplementedError("row_term works in compiled code")


@overload(row_term, jit_options={"forceinline": True})
def _row_term(terms, at, h, v, coefficients, exact):  # type: ignore[no-untyped-def]  # as above
    def narrow(terms, at, h, v, coefficients, exact):  # type: ignore[no-untyped-def]  # as above
        return ((v - coefficients[0]) - coefficients[1]) * coefficients[2], h

    def floats(terms, at, h, v, coefficients, exact):  # type: ignore[no-untyped-def]  # as above
        dy, x, i, k = at
        # The two parts of a float32 mean make one float64.
        return (as_doubles(x, i, k, v) - exact[0]) * exact[1], as_doubles(dy, i, k, h)

    def doubles(terms, at, h, v, coefficients, exact):  # type: ignore[no-untyped-def]  # as above
        high, low, scale = coefficients[0], coefficients[1], coefficients[2]
        return ((cast(v, 0.0) - high) - low) * scale, cast(h, 0.0)

    if terms.types[0].dtype == types.float32:
        return narrow
    return floats if coefficients.dtype == types.float32 else doubles


@inline
def add_term(terms, term, h):
    """The sums with what `row_term` gave."""
    return muladd(h, term, terms[0]), terms[1] + h


@inline
def sums_of_terms(terms):
    """What the rows add to dweight and dbias, as doubles."""
    return cast(terms[0], 0.0), cast(terms[1], 0.0)
