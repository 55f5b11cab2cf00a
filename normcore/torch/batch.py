"""Modules that normalize channels by the statistics of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functional.batch_renorm import limit
from .autograd import normalize
from .module import Norm, state
from .rules import Array, Batch, Evaluation, Renorm, Rule
from .tensors import parameters, write_back

Limit = float | Callable[[int], float]


class BatchNorm(Norm, torch.nn.modules.batchnorm._BatchNorm):
    """Batch normalization; see `BatchNorm2d`."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(norm(input) + residual), residual of the shape and dtype of input.

        Parameters
        ----------
        input : Tensor
            On the CPU; float32, float64, float16 or bfloat16, in any memory layout.
        residual : Tensor, optional
            Shape and dtype of input.

        Returns
        -------
        Tensor
            Shape, dtype and memory layout of input.

        Raises
        ------
        TypeError, ValueError
            As in `normcore.functional.batch_norm`, and for tensors on other devices. The module
            is then as it was.
        """
        self._check_input_dim(input)
        tensors = weight, bias, mean, var, _ = state(self)
        arrays = parameters(self, *tensors)
        evaluates = not self.training and (mean is not None or var is not None)
        if evaluates:
            rule: Rule = Evaluation(arrays[2], arrays[3], None, 0.0, self.eps, self.activation)
        elif self.training and self.track_running_stats:
            rule = self._rule(*arrays[2:])
        else:
            rule = self._rule(None, None, None)
        y = normalize(rule, input, weight, bias, residual, arrays[0], arrays[1])
        if not evaluates:
            write_back(mean, arrays[2])
            write_back(var, arrays[3])
        return y

    def _rule(self, mean: Array | None, var: Array | None, count: Array | None) -> Rule:
        """By the statistics of the batch."""
        return Batch(mean, var, count, self._factor(count), self.eps, self.activation)

    def _factor(self, count: Array | None) -> float:
        """The weight of the next batch in the running statistics."""
        if self.momentum is not None:
            momentum: float = self.momentum
            return momentum
        return 0.0 if count is None else 1 / (int(count) + 1)


class BatchNorm1d(BatchNorm, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` by normcore; see `BatchNorm2d`."""


class BatchNorm2d(BatchNorm, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` by normcore: the same arguments, state dict and `repr`.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        As in `torch.nn.BatchNorm2d`.
    activation : {None, "relu", "relu6", "leaky_relu", "silu", "gelu"}, optional
        Keyword only. Fused into the same pass over memory; leaky_relu has the slope 0.01, gelu is
        the exact one.

    Raises
    ------
    ValueError
        For an unknown activation.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import BatchNorm2d
    >>> bn = BatchNorm2d(3, activation="relu")
    >>> x = torch.randn(8, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    >>> bn(x, residual=x).sum().backward()
    >>> x.grad.is_contiguous(memory_format=torch.channels_last)
    True
    >>> list(bn.state_dict()) == list(torch.nn.BatchNorm2d(3).state_dict())
    True
    """


class BatchNorm3d(BatchNorm, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` by normcore; see `BatchNorm2d`."""


class BatchRenorm(BatchNorm):
    """Batch renormalization, which PyTorch has not; see `BatchRenorm2d`."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        r_max: Limit = 3.0,
        d_max: Limit = 5.0,
        activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, activation=activation, **kwargs)
        self.r_max = r_max if callable(r_max) else limit("r_max", r_max, 1.0)
        self.d_max = d_max if callable(d_max) else limit("d_max", d_max, 0.0)

    def _rule(self, mean: Array | None, var: Array | None, count: Array | None) -> Rule:
        step = 0 if count is None else int(count)
        r_max = self.r_max(step) if callable(self.r_max) else self.r_max
        d_max = self.d_max(step) if callable(self.d_max) else self.d_max
        limits = limit("r_max", r_max, 1.0), limit("d_max", d_max, 0.0)
        factor = self._factor(count)
        return Renorm(mean, var, count, factor, self.eps, self.activation, limits)

    def extra_repr(self) -> str:
        """That of batch norm, with the limits."""
        return f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}"


class BatchRenorm1d(BatchRenorm, BatchNorm1d):
    """Batch renormalization of (N, C) or (N, C, L) tensors; see `BatchRenorm2d`."""


class BatchRenorm2d(BatchRenorm, BatchNorm2d):
    """Batch renormalization of (N, C, H, W) tensors, with the state dict of batch norm.

    Parameters
    ----------
    num_features, eps, affine, device, dtype, bias, activation
        As in `BatchNorm2d`.
    momentum : float or None, optional
        Weight of the new batch in the running statistics.
    r_max, d_max : float or callable, optional
        Limits of the correction, or functions from the number of batches seen to them, such as
        `normcore.PAPER_R_MAX`; as in `normcore.BatchRenorm2d`.

    Raises
    ------
    TypeError, ValueError
        For limits and activations other than these.

    References
    ----------
    S. Ioffe, "Batch renormalization: towards reducing minibatch dependence in batch-normalized
    models", NeurIPS 2017.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import BatchNorm2d, BatchRenorm2d
    >>> x = torch.randn(8, 3, 4, 4)
    >>> torch.equal(BatchRenorm2d(3, r_max=1, d_max=0)(x), BatchNorm2d(3)(x))
    True
    """


class BatchRenorm3d(BatchRenorm, BatchNorm3d):
    """Batch renormalization of (N, C, D, H, W) tensors; see `BatchRenorm2d`."""
