"""Rules as autograd sees them: one Function for all."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rules import Array, Rule
from .tensors import array, parameter, tensor

_ACTIVATIONS = {
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
    parameters: tuple[Array | None, Array | None],
) -> Tensor:
    """y = activation(norm(x) * weight + bias + residual), differentiable if it has to be.

    `parameters` are weight and bias as arrays.
    """
    arrays = (
        array("input", x),
        *parameters,
        None if residual is None else array("residual", residual),
    )
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        y: Tensor = Normalization.apply(rule, arrays, x, weight, bias, residual)
        return y
    # A Function costs 5 us.
    return tensor(rule.infer(*arrays))


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
        residual: Tensor | None,
    ) -> Tensor:
        """Y; keeps what the backward needs."""
        y, ctx.statistics = rule.forward(*arrays)
        ctx.rule = rule
        ctx.save_for_backward(x, weight, bias, None if rule.activation is None else residual)
        return tensor(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and residual."""
        if torch.is_grad_enabled():  # by create_graph=True
            return (None, None, *_differentiable(ctx, dy))
        x, weight, bias, residual = ctx.saved_tensors
        _, _, _, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad
        # A norm without an activation hands dy on to its residual as it is.
        passed = dy if ctx.rule.activation is None else None
        found = ctx.rule.backward(
            array("dy", dy),
            array("input", x),
            ctx.statistics,
            parameter("weight", weight),
            parameter("bias", bias),
            None if residual is None else array("residual", residual),
            needs_residual,
        )
        return (
            None,
            None,
            tensor(found.dx),
            tensor(found.dweight).to(weight.dtype) if needs_weight else None,
            tensor(found.dbias).to(bias.dtype) if needs_bias else None,
            (tensor(found.dresidual) if passed is None else passed) if needs_residual else None,
        )


def _differentiable(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """The gradients as a part of the graph, by PyTorch's own functions."""
    x, weight, bias, residual = ctx.saved_tensors
    wide = torch.promote_types(x.dtype, torch.float32)
    z = ctx.rule.twin(
        x.to(wide),
        None if weight is None else weight.to(wide),
        None if bias is None else bias.to(wide),
        ctx.statistics,
    )
    if ctx.rule.activation is not None:
        z = z if residual is None else z + residual.to(wide)
        z = _ACTIVATIONS[ctx.rule.activation](z)
    needs = ctx.needs_input_grad[2:]
    wanted = [
        values
        for values, needed in zip((x, weight, bias, residual), needs, strict=True)
        if needed and values is not None
    ]
    found = iter(torch.autograd.grad(z.to(x.dtype), wanted, dy, create_graph=True))
    gradients = [
        next(found) if needed and values is not None else None
        for values, needed in zip((x, weight, bias, residual), needs, strict=True)
    ]
    if needs[3] and residual is None:  # which is kept for activations only
        gradients[3] = dy
    return gradients
