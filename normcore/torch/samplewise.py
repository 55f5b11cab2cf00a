"""Modules without running statistics: layer, RMS and group normalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .autograd import normalize
from .module import Norm, affine
from .rules import Group, Layer
from .tensors import parameters


class LayerNorm(Norm, torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` by normcore: the same arguments, state dict and `repr`.

    Parameters
    ----------
    normalized_shape, eps, elementwise_affine, bias, device, dtype
        As in `torch.nn.LayerNorm`.
    activation
        As in `BatchNorm2d`.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import LayerNorm
    >>> LayerNorm(2)(torch.tensor([[1.0, 3.0], [30.0, 10.0]])).round()
    tensor([[-1.,  1.],
            [ 1., -1.]], grad_fn=<RoundBackward0>)
    """

    axis: int | None = None
    """The one normalized axis; the last ones if None."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(norm(input) + residual); as in `BatchNorm2d`."""
        weight, bias = affine(self)
        rule = Layer(self.normalized_shape, self.eps, True, self.axis, self.activation)
        arrays = parameters(self, weight, bias)
        return normalize(rule, input, weight, bias, residual, arrays[0], arrays[1])


class RMSNorm(Norm, torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` by normcore: the same arguments, state dict and `repr`.

    Parameters
    ----------
    normalized_shape, eps, elementwise_affine, device, dtype
        As in `torch.nn.RMSNorm`.
    activation
        As in `BatchNorm2d`.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import RMSNorm
    >>> RMSNorm(2, elementwise_affine=False)(torch.tensor([[3.0, 3.0], [-5.0, 5.0]]))
    tensor([[ 1.,  1.],
            [-1.,  1.]])
    """

    axis: int | None = None
    """The one normalized axis; the last ones if None."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(norm(x) + residual); as in `BatchNorm2d`."""
        own = self._parameters
        weight = own["weight"] if "weight" in own else self.weight  # noqa: SIM401  # 0.6 us
        rule = Layer(self.normalized_shape, self.eps, False, self.axis, self.activation)
        return normalize(rule, x, weight, None, residual, parameters(self, weight)[0], None)


class LayerNorm2d(LayerNorm):
    """Layer normalization over the channels of (N, C, H, W), without a transpose.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import LayerNorm2d
    >>> y = LayerNorm2d(8)(torch.randn(2, 8, 5, 5))
    >>> bool(y.mean(1).abs().max() < 1e-6)
    True
    """

    axis = 1

    def __init__(self, num_channels: int, **kwargs: Any) -> None:
        super().__init__(num_channels, **kwargs)


class RMSNorm2d(RMSNorm):
    """RMS normalization over the channels of (N, C, H, W), without a transpose.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import RMSNorm2d
    >>> y = RMSNorm2d(8)(torch.randn(2, 8, 5, 5))
    >>> bool((y.square().mean(1) - 1).abs().max() < 1e-5)
    True
    """

    axis = 1

    def __init__(self, num_channels: int, **kwargs: Any) -> None:
        super().__init__(num_channels, **kwargs)


class GroupNorm(Norm, torch.nn.GroupNorm):
    """`torch.nn.GroupNorm` by normcore: the same arguments, state dict and `repr`.

    Parameters
    ----------
    num_groups, num_channels, eps, affine, device, dtype
        As in `torch.nn.GroupNorm`.
    activation
        As in `BatchNorm2d`.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import GroupNorm
    >>> y = GroupNorm(2, 4, activation="relu")(torch.randn(2, 4, 8, 8))
    >>> bool(y.min() == 0)
    True
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(norm(input) + residual); as in `BatchNorm2d`."""
        weight, bias = affine(self)
        rule = Group(self.num_groups, self.eps, self.activation)
        arrays = parameters(self, weight, bias)
        return normalize(rule, input, weight, bias, residual, arrays[0], arrays[1])
