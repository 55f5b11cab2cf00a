"""Batch normalization over the processes of `torch.distributed`, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .. import backend, functional
from ..functional.training import update
from ..stats import ChannelStats
from .batch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from .rules import Array, Batch, Rule, Statistics
from .swap import swap

_BATCH_NORMS = (
    *(torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d),
    *(BatchNorm1d, BatchNorm2d, BatchNorm3d),
)
_STATE = ("mean", "mean_rest", "m2", "m2_rest")


class Synchronized(Batch):
    """Batch normalization by the statistics of all processes' batches.

    statistics: mean, rstd, and the number of values per channel.
    """

    __slots__ = ("group",)

    group: Any

    def forward(self, x: Array, weight: Any, bias: Any, residual: Any) -> tuple[Array, Statistics]:
        """One message: each process's count, mean and sum of squared deviations."""
        total = _merged(x, self.group)
        if total.count == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, got 1 value per channel in "
                f"all processes, of which this one has input size {x.shape}"
            )
        if not total.count:  # there is nothing to normalize anywhere
            nothing = np.zeros(x.shape[1])
            return x.copy(), (nothing, nothing, np.zeros(()))
        mean, var = total.mean, total.var()
        y = functional.batch_norm(
            *(x, mean, var, weight, bias, False, 0.0, self.eps),
            residual=residual,
            activation=self.activation,
        )
        if self.running_mean is not None and self.running_var is not None:
            update(
                *(backend.current(), self.running_mean, self.running_var, self.count, mean, var),
                *(self.momentum, total.count, False),
            )
        return y, (mean, 1 / np.sqrt(var + self.eps), np.array(float(total.count)))

    def _gradients(
        self, dy: Array, x: Array, statistics: Statistics, weight: Any, out: Any
    ) -> tuple[Array, Array, Array | None]:
        """One message: the two sums of the backward. dweight and dbias are this process's."""
        mean, rstd, count = statistics
        sums = functional.batch_norm_backward_reduce(dy, x, mean)
        message = np.concatenate(sums)
        dist.all_reduce(torch.from_numpy(message), group=self.group)
        if count:
            dx = functional.batch_norm_backward_apply(
                *(dy, x, mean, rstd, *np.split(message, 2), float(count), weight), out=out
            )
        else:
            dx = x.copy()
        return dx, sums.sum_dy_xmu * rstd, sums.sum_dy

    def twin(self, x: Tensor, weight: Any, bias: Any, statistics: Statistics) -> Tensor:
        """There is none."""
        raise RuntimeError("SyncBatchNorm: its gradients cannot be differentiated again")


def _merged(x: Array, group: Any) -> ChannelStats:
    """The statistics of all processes' x, bitwise the same in each: merged in order of rank."""
    own = ChannelStats()
    own.update(x)
    channels = x.shape[1]
    message = np.zeros((1 + len(_STATE), channels))
    message[0] = own.count
    for row, name in zip(message[1:], _STATE, strict=True):
        if own.count:
            row[...] = own.state()[name]
    sent = torch.from_numpy(message)
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, sent, group=group)
    total = ChannelStats()
    for part in received:
        count, *rows = part.numpy()
        if count[0]:
            state = {"count": np.array(int(count[0])), **dict(zip(_STATE, rows, strict=True))}
            total.merge(ChannelStats.from_state(state))
    return total


class SyncBatchNorm(BatchNorm, torch.nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm` on the CPU, over gloo, where PyTorch has none.

    In training, the statistics are those of the batches of all processes together, which may
    differ in size and may be empty; they are merged as float64 in the order of the ranks, so that
    mean, variance and running statistics are the same bits in every process. A forward exchanges
    one message of 40 C bytes per process, a backward one of 16 C bytes. As in PyTorch, gradients
    of weight and bias are those of the process's own batch: `DistributedDataParallel`, or an
    all-reduce, adds them up. In evaluation, and without `torch.distributed`, it is batch norm.

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
        If its gradients are to be differentiated.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import SyncBatchNorm
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    >>> SyncBatchNorm.convert_sync_batchnorm(model)[1](torch.randn(4, 8, 5, 5)).shape
    torch.Size([4, 8, 5, 5])
    """

    process_group: Any = None

    def _rule(self, mean: Array | None, var: Array | None, count: Array | None) -> Rule:
        if not self.training or not dist.is_available() or not dist.is_initialized():
            return super()._rule(mean, var, count)
        factor = self._factor(count)
        rule = Synchronized(mean, var, count, factor, self.eps, self.activation)
        rule.group = self.process_group
        return rule

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
