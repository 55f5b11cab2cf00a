"""Rules as autograd sees them: one Function for all."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rules import Array, Rule
from .tensors import array, tensor

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
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        arrays = given, weight_array, bias_array, added
        y: Tensor = Normalization.apply(rule, arrays, x, weight, bias, residual)
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
        residual: Tensor | None,
    ) -> Tensor:
        """Y; keeps what the backward needs."""
        y, statistics = rule.forward(*arrays)
        ctx.rest = rule, statistics, arrays[1], arrays[2]
        ctx.save_for_backward(x, weight, bias, None if rule.activation is None else residual)
        return tensor(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and residual."""
        if torch.is_grad_enabled():  # by create_graph=True
            return (None, None, *_differentiable(ctx, dy))
        # To ask for weight and bias too lets autograd see whether they have changed since.
        x, _, _, residual = ctx.saved_tensors
        rule, statistics, weight, bias = ctx.rest
        _, _, _, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad
        dx, dweight, dbias, dresidual = rule.backward(
            array("dy", dy),
            array("input", x),
            statistics,
            weight,
            bias,
            None if residual is None else array("residual", residual),
            needs_residual,
        )
        # A norm without an activation hands dy on to its residual as it is.
        if needs_residual and rule.activation is not None:
            dy = tensor(dresidual)
        # Autograd rounds the gradients of halves.
        return (
            None,
            None,
            tensor(dx),
            tensor(dweight) if needs_weight else None,
            tensor(dbias) if needs_bias else None,
            dy if needs_residual else None,
        )


def _differentiable(ctx: Any, dy: Tensor) -> list[Tensor | None]:
    """The gradients as a part of the graph, by PyTorch's own functions."""
    x, weight, bias, residual = ctx.saved_tensors
    rule, statistics, _, _ = ctx.rest
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
