"""Group norm and instance norm as one: views, checks and calls of the kernels of nchw and nc.

Instance norm is group norm with a channel in each group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import axes, backend, check, masks
from ..view import GroupView, flat, group
from .batch_backward import parameter_dtype
from .input import Input
from .through import activated

Array = np.ndarray[Any, Any]


class GroupInput(Input[GroupView]):
    """x, laid out for nchw or nc, one sample apart from the other."""

    __slots__ = ()

    def parameter(self, name: str, values: Any) -> Array | None:
        """Weight or bias."""
        return check.parameter(name, values, (self.view.channels,))

    def statistics_shape(self, num_groups: Any) -> tuple[int, int]:
        """Shape of mean and rstd: (N, groups); each channel is a group if num_groups is None."""
        channels = self.view.channels
        count = channels if num_groups is None else axes.groups(num_groups, channels)
        return self.view.positions[0], count


def prepare(x: Any, axis: Any, mask: Any) -> GroupInput:
    """Check x, axis and mask, and find the view."""
    x = check.array("x", x)
    axis = axes.group_axis(axis, x)
    x, view = group(x, axis)
    passes = backend.current().channels[view.family]
    kept = None if mask is None else masks.group(mask, x.shape, axis, view)
    return GroupInput(x, view, passes, kept)


def forward(
    x: Any,
    num_groups: Any,
    weight: Any,
    bias: Any,
    eps: float,
    axis: int,
    out: Array | None,
    mask: Any,
    residual: Any,
    activation: str | None,
) -> tuple[Array, Array, Array, Array]:
    """(y, mean, var, rstd)."""
    given = prepare(x, axis, mask)
    return run_forward(given, num_groups, weight, bias, eps, out, residual, activation)


def run_forward(
    given: GroupInput,
    num_groups: Any,
    weight: Any,
    bias: Any,
    eps: float,
    out: Array | None,
    residual: Any,
    activation: str | None,
    *writes: Array | None,
) -> tuple[Array, Array, Array, Array]:
    """(y, mean, var, rstd); `writes` are other arrays that `out` must not overlap."""
    x, view = given.x, given.view
    shape = given.statistics_shape(num_groups)
    if num_groups is not None and x.size == shape[1]:
        # PyTorch's condition: as it is, a group of one value in several samples passes.
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}"
        )
    eps = check.eps(eps)
    number = check.activation(activation)
    weight = given.parameter("weight", weight)
    bias = given.parameter("bias", bias)
    residual = given.optional("residual", residual)
    y = check.destination(out, x, view, x, residual, weight, bias, given.mask, *writes)
    if not x.size:
        empty = np.full(shape, np.nan)
        return check.deliver(y, out), empty, empty.copy(), empty.copy()
    mean, var, rstd = np.empty(shape), np.empty(shape), np.empty(shape)
    given.passes.forward(
        flat(y, view),
        mean,
        var,
        rstd,
        flat(x, view),
        given.flat(residual),
        given.mask,
        weight,
        bias,
        eps,
        number,
        *given.sizes,
    )
    return check.deliver(y, out), mean, var, rstd


def before_activation(
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    num_groups: Any,
    weight: Any,
    bias: Any,
    axis: int,
    out: Array | None,
    residual: Any,
    activation: str | None,
) -> Array:
    """The gradient before the activation."""
    given = prepare(x, axis, None)
    shape = given.statistics_shape(num_groups)
    mean = check.saved("mean", mean, shape)
    rstd = check.saved("rstd", rstd, shape)
    weight = given.parameter("weight", weight)
    bias = given.parameter("bias", bias)
    return given.before_activation(dy, mean, rstd, weight, bias, residual, activation, out)


def backward(
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    num_groups: Any,
    weight: Any,
    axis: int,
    out: Array | None,
    mask: Any,
    bias: Any = None,
    activation: str | None = None,
    residual: Any = None,
    dresidual: Any = None,
) -> tuple[Array, Array, Array]:
    """(dx, dweight, dbias)."""
    if mask is None and activation is None and residual is None and dresidual is None:
        done = backend.current().calls.group_backward(
            dy, x, mean, rstd, num_groups, weight, bias, axis, out
        )
        if done is not None:
            return done
    given = prepare(x, axis, mask)
    x, view, mask = given.x, given.view, given.mask
    shape = given.statistics_shape(num_groups)
    dy = given.alike("dy", dy)
    mean = check.saved("mean", mean, shape)
    rstd = check.saved("rstd", rstd, shape)
    weight = given.parameter("weight", weight)
    bias = given.parameter("bias", bias)
    dx = check.destination(out, x, view, x, dy, mean, rstd, weight, bias, mask)
    fused = activated(
        *(x, view, dx if out is None else out, bias, activation, residual, dresidual),
        *(dy, mean, rstd, weight, mask),
    )
    dtype = parameter_dtype(x, weight)
    c = view.channels
    if not x.size:
        return check.deliver(dx, out), np.zeros(c, dtype), np.zeros(c, dtype)
    dweight, dbias = np.empty(c, dtype), np.empty(c, dtype)
    gradients = flat(dx, view), dweight, dbias
    if fused is None:
        given.passes.backward(
            *gradients, flat(dy, view), flat(x, view), mask, mean, rstd, weight, True, *given.sizes
        )
    else:
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
            True,
            *given.sizes,
        )
        fused.deliver(dresidual, view)
    return check.deliver(dx, out), dweight, dbias
