"""Batch normalization over the processes of `torch.distributed`, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..ranks import BACKWARD, FORWARD, Ranks, backward_part, merge, train_part
from .batch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from .rules import Array, Batch, Rule, Statistics
from .swap import swap

_BATCH_NORMS = (
    *(torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d),
    *(BatchNorm1d, BatchNorm2d, BatchNorm3d),
)


class Gloo(Ranks):
    """The processes of a group of `torch.distributed`; every one gathers all messages."""

    def __init__(self, group: Any) -> None:
        super().__init__(dist.get_world_size(group))
        self.group = group

    def _merged(self, message: Array) -> Array:
        sent = torch.from_numpy(message)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent, group=self.group)
        return merge(np.stack([part.numpy() for part in received]))


class Synchronized(Batch):
    """Batch normalization by the statistics of all processes' batches."""

    __slots__ = ("ranks",)

    ranks: Gloo

    def forward(self, x: Array, weight: Any, bias: Any, residual: Any) -> tuple[Array, Statistics]:
        """One message: each process's count, mean and sum of squared deviations."""
        y, mean, rstd, _ = train_part(
            *(self.ranks, x, weight, bias, self.running_mean, self.running_var, self.count),
            momentum=self.momentum,
            eps=self.eps,
            residual=residual,
            activation=self.activation,
        )
        return y, (mean, rstd)

    def gradients(
        self, dy: Array, x: Array, statistics: Statistics, weight: Any, **through: Any
    ) -> tuple[Array, Array, Array | None]:
        """One message: the two sums of the backward. dweight and dbias are this process's."""
        mean, rstd = statistics
        with self.ranks.answering(BACKWARD, x.shape[1]):
            found = backward_part(self.ranks, dy, x, mean, rstd, weight, **through)
        return found.dx, found.part_dweight, found.part_dbias

    def twin(self, x: Tensor, weight: Any, bias: Any, statistics: Statistics) -> Tensor:
        """There is none."""
        raise RuntimeError("SyncBatchNorm: its gradients cannot be differentiated again")


class SyncBatchNorm(BatchNorm, torch.nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm` on the CPU, over gloo, where PyTorch has none.

    In training, the statistics are those of the batches of all processes together, which may
    differ in size and may be empty; they are merged as float64 in the order of the ranks, so that
    mean, variance and running statistics are the same bits in every process. A forward and a
    backward exchange one message of 24 + 16 C bytes per process each; a process that refuses its
    input tells the others, which raise RuntimeError. As in PyTorch, gradients of weight and bias
    are those of the process's own batch: `DistributedDataParallel`, or an all-reduce, adds them
    up. In evaluation, and without `torch.distributed`, it is batch norm.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype
        As in `torch.nn.SyncBatchNorm`.
    activation
        As in `BatchNorm2d`.

    Raises
    ------
    ValueError
        In training, if all processes together have one value per channel.
    RuntimeError
        If its gradients are to be differentiated, or if another process refused its input.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import SyncBatchNorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> SyncBatchNorm.convert_sync_batchnorm(model)[1](torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    process_group: Any = None

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """As `BatchNorm2d.forward`; in training, by the batches of all processes."""
        if not self.training or not dist.is_available() or not dist.is_initialized():
            return super().forward(input, residual)
        ranks = Gloo(self.process_group)

        def training(mean: Array | None, var: Array | None, count: Array | None) -> Rule:
            rule = Synchronized(mean, var, count, self._factor(count), self.eps, self.activation)
            rule.ranks = ranks
            return rule

        with ranks.answering(FORWARD, self.num_features):
            return self._normalize(input, residual, training)

    @classmethod
    def convert_sync_batchnorm(
        cls, module: torch.nn.Module, process_group: Any = None
    ) -> torch.nn.Module:
        """Make every batch norm of a model a SyncBatchNorm, in place.

        Parameters
        ----------
        module : torch.nn.Module
            PyTorch's BatchNorm1d to 3d and those of `normcore.torch` are swapped, parameters and
            buffers are shared; `normcore.torch.revert` swaps back.
        process_group : optional
            Of `torch.distributed`; the default group if None.

        Returns
        -------
        torch.nn.Module
            The same object.
        """
        for found in module.modules():
            if type(found) in _BATCH_NORMS:
                swap(found, cls, process_group=process_group)
        return module
