"""Rules as autograd sees them: one Function for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .rules import Array, Rule
from .tensors import array, tensor

# Names of this module: looked up in torch, they cost 0.1 us more in every call.
_BFLOAT16 = torch.bfloat16
_from_numpy = torch.from_numpy
_is_grad_enabled = torch.is_grad_enabled

_ACTIVATIONS: dict[str, Any] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
}


def normalize(
    rule: Rule,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    weight_array: Array | None,
    bias_array: Array | None,
) -> Tensor:
    """y = activation(norm(x) * weight + bias + residual), differentiable if it has to be."""
    added = None if residual is None else array("residual", residual)
    given = array("input", x)
    if _is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        arrays = given, weight_array, bias_array, added
        # Each input costs 0.15 us.
        if residual is None:
            y: Tensor = Normalization.apply(rule, arrays, x, weight, bias)
        else:
            y = Normalization.apply(rule, arrays, x, weight, bias, residual)
        return y
    # A Function costs 6 us.
    return tensor(rule.infer(given, weight_array, bias_array, added))


class Normalization(torch.autograd.Function):
    """A rule as a node of the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        rule: Rule,
        arrays: tuple[Array, Array | None, Array | None, Array | None],
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Y; keeps what the backward needs."""
        y, statistics = rule.forward(*arrays)
        ctx.rest = rule, statistics, arrays[1], arrays[2]
        # What is not read any more may change: autograd looks at all that is saved.
        if rule.activation is None:
            ctx.save_for_backward(x, weight)
        else:
            ctx.save_for_backward(x, weight, bias, residual)
        return tensor(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and residual."""
        if _is_grad_enabled():  # by create_graph=True
            return (None, None, *_differentiable(ctx, dy))
        rule, statistics, weight, _ = ctx.rest
        if rule.activation is not None or dy.dtype is _BFLOAT16:
            return _general(ctx, dy)
        # To ask for weight too lets autograd see whether it has changed since.
        x, _ = ctx.saved_tensors
        # The forward has checked x, and autograd that dy is like y: `array` costs 0.7 us each.
        dx, dweight, dbias = rule.gradients(
            dy.numpy(force=True), x.numpy(force=True), statistics, weight
        )
        _, _, _, needs_weight, needs_bias, *more = ctx.needs_input_grad
        found = (
            None,
            None,
            _from_numpy(dx),
            _from_numpy(dweight) if needs_weight else None,
            _from_numpy(dbias) if needs_bias else None,
        )
        # A norm without an activation hands dy on to its residual as it is.
        return (*found, dy) if more else found


def _general(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """`Normalization.backward` with an activation, or of bfloat16."""
    rule, statistics, weight, bias = ctx.rest
    x, _, *more = ctx.saved_tensors
    given = array("input", x)
    needs = ctx.needs_input_grad[3:]
    dresidual: Tensor | None = dy
    through: dict[str, Any] = {}
    if rule.activation is not None:
        residual = more[1]
        through = {"bias": bias, "activation": rule.activation}
        through["residual"] = None if residual is None else array("residual", residual)
        if residual is not None and needs[2]:
            through["dresidual"] = np.empty_like(given)
            dresidual = tensor(through["dresidual"])
    dx, dweight, dbias = rule.gradients(array("dy", dy), given, statistics, weight, **through)
    # Autograd rounds the gradients of halves.
    gradients = (
        tensor(dx),
        tensor(dweight) if needs[0] else None,
        tensor(dbias) if needs[1] else None,
        dresidual,
    )
    return None, None, *gradients[: len(needs) + 1]


def _differentiable(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """The gradients as a part of the graph, by PyTorch's own functions."""
    rule, statistics, _, bias_array = ctx.rest
    x, weight, *more = ctx.saved_tensors
    residual = None
    if more:
        bias, residual = more
    else:
        # No gradient of a sum depends on what is added, so it was not saved.
        bias = None if bias_array is None else _from_numpy(bias_array).requires_grad_()
    wide = torch.promote_types(x.dtype, torch.float32)
    z = rule.twin(
        x.to(wide),
        None if weight is None else weight.to(wide),
        None if bias is None else bias.to(wide),
        statistics,
    )
    if rule.activation is not None:
        z = z if residual is None else z + residual.to(wide)
        z = _ACTIVATIONS[rule.activation](z)
    needs = ctx.needs_input_grad[2:]
    inputs = (x, weight, bias, residual)[: len(needs)]
    wanted = [
        values
        for values, needed in zip(inputs, needs, strict=True)
        if needed and values is not None
    ]
    found = iter(torch.autograd.grad(z.to(x.dtype), wanted, dy, create_graph=True))
    gradients = [
        next(found) if needed and values is not None else None
        for values, needed in zip(inputs, needs, strict=True)
    ]
    if len(needs) > 3 and needs[3] and residual is None:  # which is kept for activations only
        gradients[3] = dy
    return gradients
