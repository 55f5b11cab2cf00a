"""Modules that normalize each channel of each sample."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .autograd import normalize
from .module import Norm, state
from .rules import Evaluation, Instance
from .tensors import parameters, write_back


class InstanceNorm(Norm, torch.nn.modules.instancenorm._InstanceNorm):
    """Instance normalization; see `InstanceNorm2d`."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(norm(input) + residual); as in `BatchNorm2d`, also of one sample."""
        self._check_input_dim(input)
        single = self._get_no_batch_dim()
        channels = input.size(input.dim() - single)
        if channels != self.num_features:
            if self.affine:
                raise ValueError(
                    f"input: expected {self.num_features} channels, got shape {tuple(input.shape)}"
                )
            warnings.warn(
                f"input: {channels} channels, where num_features={self.num_features}; without "
                "affine parameters the number does not matter",
                stacklevel=2,
            )
        if input.dim() != single:
            return self._normalize(input, residual)
        residual = None if residual is None else residual.unsqueeze(0)
        return self._normalize(input.unsqueeze(0), residual).squeeze(0)

    def _normalize(self, input: Tensor, residual: Tensor | None) -> Tensor:
        tensors = weight, bias, mean, var, _ = state(self)
        arrays = parameters(self, *tensors)
        momentum = 0.0 if self.momentum is None else self.momentum
        by_sample = self.training or not self.track_running_stats
        # As in PyTorch, num_batches_tracked stays 0.
        kind = Instance if by_sample else Evaluation
        rule = kind(arrays[2], arrays[3], None, momentum, self.eps, self.activation)
        y = normalize(rule, input, weight, bias, residual, arrays[0], arrays[1])
        if by_sample:
            write_back(mean, arrays[2])
            write_back(var, arrays[3])
        return y


class InstanceNorm1d(InstanceNorm, torch.nn.InstanceNorm1d):
    """`torch.nn.InstanceNorm1d` by normcore; see `InstanceNorm2d`."""


class InstanceNorm2d(InstanceNorm, torch.nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` by normcore: the same arguments, state dict and `repr`.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        As in `torch.nn.InstanceNorm2d`.
    activation
        As in `BatchNorm2d`.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import InstanceNorm2d
    >>> y = InstanceNorm2d(3, affine=True)(torch.randn(2, 3, 8, 8))
    >>> bool(y.mean((2, 3)).abs().max() < 1e-6)
    True
    """


class InstanceNorm3d(InstanceNorm, torch.nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` by normcore; see `InstanceNorm2d`."""
