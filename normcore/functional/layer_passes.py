"""Layer norm and RMS norm as one: views, checks and calls of the kernels of rows and cols.

RMS norm is layer norm without `centre`: its mean is None.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import axes, backend, check, masks
from ..view import LayerView, empty_in, flat, in_memory, layer
from .batch_backward import parameter_dtype
from .input import Input
from .through import activated

Array = np.ndarray[Any, Any]


class LayerInput(Input[LayerView]):
    """x, laid out for rows or cols."""

    __slots__ = ()

    def parameter(self, name: str, values: Any) -> Array | None:
        """Weight or bias in memory order."""
        if values is None:
            return None
        found = check.statistic(name, values, self.view.parameters)
        order = self.view.parameters_order
        return found if order is None else np.ascontiguousarray(found.transpose(order))

    def saved(self, name: str, values: Any) -> Array:
        """Mean or rstd of a forward in memory order."""
        found = check.saved(name, values, self.view.statistics)
        order = self.view.statistics_order
        return found if order is None else np.ascontiguousarray(found.transpose(order))

    def statistic(self) -> Array:
        """An array for mean or rstd, NaN where x is empty and has none."""
        view = self.view
        found = empty_in(view.statistics, np.float64, view.statistics_order)
        if not self.x.size:
            found.fill(np.nan)
        return found


def prepare(x: Any, normalized_shape: Any, axis: Any, mask: Any, name: str = "x") -> LayerInput:
    """Check x (by its name), normalized_shape, axis and mask, and find the view."""
    x = check.array(name, x)
    along = axes.normalized_axes(x, axes.lengths(normalized_shape), axis)
    if mask is None:
        x, view = layer(x, along)
        return LayerInput(x, view, _passes(view), None)
    kept = masks.elements(mask, x.shape, along)
    # A mask within what is normalized needs the family rows; cols takes whole columns.
    x, view = layer(x, along, rows=any(kept.shape[i] != 1 for i in along))
    return LayerInput(x, view, _passes(view), masks.layer(kept, x.shape, view))


def _passes(view: LayerView) -> Any:
    chosen = backend.current()
    return chosen.rows if view.family == "rows" else chosen.cols


def _eps(eps: Any, x: Array, centre: bool) -> float:
    if eps is None and not centre:
        return float(np.finfo(parameter_dtype(x, None)).eps)
    return check.eps(eps)


def forward(
    x: Any,
    normalized_shape: Any,
    weight: Any,
    bias: Any,
    eps: float | None,
    axis: Any,
    out: Array | None,
    mask: Any,
    residual: Any,
    activation: str | None,
    centre: bool,
) -> tuple[Array, Any, Array]:
    """(y, mean, rstd); without `centre` mean is None, and eps may be."""
    if mask is None and axis is None:
        done = backend.current().calls.layer_forward(
            x, normalized_shape, weight, bias, eps, out, residual, activation, centre
        )
        if done is not None:
            return done
    given = prepare(x, normalized_shape, axis, mask)
    x, view, mask = given.x, given.view, given.mask
    eps = _eps(eps, x, centre)
    number = check.activation(activation)
    weight = given.parameter("weight", weight)
    bias = given.parameter("bias", bias)
    residual = given.optional("residual", residual)
    y = check.destination(out, x, view, x, residual, weight, bias, mask)
    mean = given.statistic() if centre else None
    rstd = given.statistic()
    if x.size:
        order = view.statistics_order
        given.passes.forward(
            flat(y, view),
            None if mean is None else in_memory(mean, order),
            in_memory(rstd, order),
            flat(x, view),
            given.flat(residual),
            mask,
            weight,
            bias,
            eps,
            number,
            *given.sizes,
        )
    return check.deliver(y, out), mean, rstd


def before_activation(
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    normalized_shape: Any,
    weight: Any,
    bias: Any,
    axis: Any,
    out: Array | None,
    residual: Any,
    activation: str | None,
    centre: bool,
) -> Array:
    """The gradient before the activation."""
    given = prepare(x, normalized_shape, axis, None)
    mean = given.saved("mean", mean) if centre else None
    rstd = given.saved("rstd", rstd)
    weight = given.parameter("weight", weight)
    bias = given.parameter("bias", bias)
    return given.before_activation(dy, mean, rstd, weight, bias, residual, activation, out)


def backward(
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    normalized_shape: Any,
    weight: Any,
    axis: Any,
    out: Array | None,
    mask: Any,
    addend: Any,
    centre: bool,
    name: str = "x",
    bias: Any = None,
    activation: str | None = None,
    residual: Any = None,
    dresidual: Any = None,
) -> tuple[Array, Array, Array]:
    """(dx, dweight, dbias); addend, the gradient that comes past the norm, is added to dx.

    There is no addend where there is an activation.
    """
    plain = mask is None and axis is None and addend is None
    if plain and activation is None and residual is None and dresidual is None:
        done = backend.current().calls.layer_backward(
            dy, x, mean, rstd, normalized_shape, weight, bias, out, centre
        )
        if done is not None:
            return done
    given = prepare(x, normalized_shape, axis, mask, name)
    x, view, mask = given.x, given.view, given.mask
    dy = given.alike("dy", dy)
    mean = given.saved("mean", mean) if centre else None
    rstd = given.saved("rstd", rstd)
    weight = given.parameter("weight", weight)
    addend = given.optional("dtotal", addend)
    bias = given.parameter("bias", bias)
    dx = check.destination(out, x, view, x, dy, addend, mean, rstd, weight, bias, mask)
    fused = activated(
        *(x, view, dx if out is None else out, bias, activation, residual, dresidual),
        *(dy, mean, rstd, weight, mask),
    )
    dtype = parameter_dtype(x, weight)
    order = view.parameters_order
    dweight = empty_in(view.parameters, dtype, order)
    dbias = empty_in(view.parameters, dtype, order)
    gradients = flat(dx, view), in_memory(dweight, order), in_memory(dbias, order)
    if x.size and fused is None:
        given.passes.backward(
            *gradients,
            flat(dy, view),
            flat(x, view),
            given.flat(addend),
            mask,
            mean,
            rstd,
            weight,
            *given.sizes,
        )
    elif x.size and fused is not None:
        given.passes.activation_backward(
            *gradients,
            fused.g,
            flat(dy, view),
            flat(x, view),
            fused.residual,
            mask,
            mean,
            rstd,
            weight,
            fused.bias,
            fused.activation,
            *given.sizes,
        )
        fused.deliver(dresidual, view)
    else:
        dweight.fill(0)
        dbias.fill(0)
    dx = check.deliver(dx, out)
    return dx, np.ascontiguousarray(dweight), np.ascontiguousarray(dbias)


def add_forward(
    x: Any,
    residual: Any,
    normalized_shape: Any,
    weight: Any,
    bias: Any,
    eps: float | None,
    axis: Any,
    out: tuple[Array | None, Array | None] | None,
    centre: bool,
) -> tuple[Array, Array, Any, Array]:
    """(y, total, mean, rstd) of total = x + residual."""
    given = prepare(x, normalized_shape, axis, None)
    x, view = given.x, given.view
    eps = _eps(eps, x, centre)
    weight = given.parameter("weight", weight)
    bias = given.parameter("bias", bias)
    residual = given.alike("residual", residual)
    out_y, out_total = _pair(out)
    y = check.destination(out_y, x, view, x, residual, weight, bias)
    total = check.destination(out_total, x, view, x, residual, weight, bias)
    if out_y is not None and out_total is not None and np.shares_memory(out_y, out_total):
        raise ValueError("out: expected two arrays with memory of their own, got an overlap")
    mean = given.statistic() if centre else None
    rstd = given.statistic()
    if x.size:
        order = view.statistics_order
        statistics = (None if mean is None else in_memory(mean, order), in_memory(rstd, order))
        memory = [flat(values, view) for values in (y, total, x, residual)]
        if view.family == "rows":
            given.passes.add_forward(
                *memory[:2], *statistics, *memory[2:], weight, bias, eps, *given.sizes
            )
        else:
            with np.errstate(all="ignore"):
                np.add(memory[2], memory[3], out=memory[1])
            given.passes.forward(
                memory[0], *statistics, memory[1], None, None, weight, bias, eps, 0, *given.sizes
            )
    return check.deliver(y, out_y), check.deliver(total, out_total), mean, rstd


def _pair(out: Any) -> tuple[Any, Any]:
    if out is None:
        return None, None
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"out: expected a tuple of two arrays or None, got {type(out).__name__}")
    return out
