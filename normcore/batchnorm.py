"""Batch normalization as layers with state: `BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import backend, check
from .functional.batch import train
from .functional.ghost import (
    ghost_batch_norm_backward,
    train_chunks,
)
from .functional.gradients import Gradients
from .layer import Saved, saved_plain
from .running import RunningLayer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from .stats import ChannelStats

Array = np.ndarray[Any, Any]


class BatchNorm(RunningLayer):
    """What `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` have in common.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual), for each channel.

    Training normalizes by the mean and population variance of the batch and moves the running
    statistics towards them (towards the unbiased variance); evaluation normalizes by the running
    statistics.

    Parameters
    ----------
    num_features : int
        C, the number of channels.
    eps : float, optional
        Positive.
    momentum : float or None, optional
        Weight of the new batch in the running statistics; None for the plain average over all
        batches.
    affine : bool, optional
        Have ``weight`` and ``bias``.
    track_running_stats : bool, optional
        Have ``running_mean``, ``running_var`` and ``num_batches_tracked``. Without them
        evaluation uses the statistics of the batch too.
    axis : int, optional
        The channel axis: 1 for channels-first, -1 for channels-last.
    dtype : dtype, optional
        Of parameters and running statistics, float32 or float64. x may be another one.
    skip_nonfinite : bool, optional
        Leave the running statistics of a channel alone where the batch's are NaN or infinite.
    activation : {None, "relu", "relu6", "leaky_relu", "silu", "gelu"}, optional
        Fused into the same pass over memory; as in `normcore.functional.batch_norm`.
    virtual_batch_size : int, optional
        Ghost batch normalization: in training, normalize this many samples at a time, each chunk
        by statistics of its own; `normcore.functional.ghost_batch_norm_forward` says how. To the
        running statistics (with ``momentum=None`` above all) and to ``num_batches_tracked`` every
        chunk is a batch. Evaluation ignores it.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015; defaults, names and errors are
    those of PyTorch's layers.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        axis: int = 1,
        dtype: DTypeLike = np.float32,
        skip_nonfinite: bool = False,
        activation: str | None = None,
        virtual_batch_size: int | None = None,
    ) -> None:
        super().__init__(
            *(num_features, eps, momentum, affine, track_running_stats),
            *(axis, dtype, skip_nonfinite, activation),
        )
        self.virtual_batch_size = None
        if virtual_batch_size is not None:
            self.virtual_batch_size = check.size("virtual_batch_size", virtual_batch_size)
        self._pool: ChannelStats | None = None

    def _observed(self, x: Array, mask: Any) -> bool:
        if self._pool is not None:  # for `normcore.update_bn`
            self._pool.update(x, mask=mask)
        return self.training and self._pool is None

    def _train(
        self, x: Array, out: Array | None, residual: Array | None, mask: Any, update: bool
    ) -> tuple[Array, Saved]:
        if mask is None and residual is None and self.virtual_batch_size is None:
            done = backend.current().calls.batch_forward(
                x,
                self.weight,
                self.bias,
                self.running_mean if update else None,
                self.running_var if update else None,
                self.num_batches_tracked if update else None,
                self._factor() if self.momentum is None else self.momentum,
                self.eps,
                self.axis,
                out,
                self.skip_nonfinite,
                None,
                self.activation,
            )
            if done is not None:
                return done[0], saved_plain(None if out is x else x, done[1], done[2])
        running: tuple[Array | None, Array | None, Array | None] = (None, None, None)
        if update:
            running = (self.running_mean, self.running_var, self.num_batches_tracked)
        if self.virtual_batch_size is not None and self.training:
            y, mean, rstd = train_chunks(
                *(x, self.virtual_batch_size, self.weight, self.bias, *running, self.momentum),
                *(self.eps, self.axis, out, self.skip_nonfinite, mask, residual, self.activation),
            )
        else:
            y, mean, rstd = train(
                *(x, self.weight, self.bias, *running, self._factor(), self.eps, self.axis, out),
                *(self.skip_nonfinite, mask, residual, self.activation),
            )
        return y, self._save(x, out, residual, mask, mean, rstd, True)

    def _gradients(
        self,
        dy: ArrayLike,
        x: Array,
        saved: Saved,
        out: Array | None,
        dresidual: Array | None,
    ) -> Gradients:
        if saved.mean.ndim == 2:
            assert self.virtual_batch_size is not None
            return ghost_batch_norm_backward(
                *(dy, x, saved.mean, saved.rstd, self.virtual_batch_size, self.weight),
                axis=self.axis,
                out=out,
                mask=saved.mask,
                bias=self.bias,
                activation=self.activation,
                residual=saved.residual,
                dresidual=dresidual,
            )
        return super()._gradients(dy, x, saved, out, dresidual)

    def _further(self) -> list[tuple[str, Any, Any]]:
        return [*super()._further(), ("virtual_batch_size", self.virtual_batch_size, None)]


class BatchNorm1d(BatchNorm):
    """Batch normalization of (N, C) or (N, C, L) arrays; parameters as `BatchNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> bn = nc.BatchNorm1d(2)
    >>> bn(np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)).round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> bn.running_mean
    array([0.2, 2. ], dtype=float32)
    """

    ranks = (2, 3)


class BatchNorm2d(BatchNorm):
    """Batch normalization of (N, C, H, W) arrays; parameters as `BatchNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> bn = nc.BatchNorm2d(3)
    >>> x = np.random.default_rng(0).normal(5, 2, (8, 3, 4, 4)).astype(np.float32)
    >>> y = bn(x)
    >>> bool(abs(y.mean((0, 2, 3))).max() < 1e-6)
    True
    >>> dx, dweight, dbias = bn.backward(np.ones_like(y))
    >>> dbias
    array([128., 128., 128.], dtype=float32)
    >>> bn.eval()
    BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
    >>> channels_last = nc.BatchNorm2d(3, axis=-1)
    >>> bool(np.array_equal(channels_last(x.transpose(0, 2, 3, 1)), y.transpose(0, 2, 3, 1)))
    True
    """

    ranks = (4,)


class BatchNorm3d(BatchNorm):
    """Batch normalization of (N, C, D, H, W) arrays; parameters as `BatchNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> bn = nc.BatchNorm3d(2, momentum=None, affine=False)
    >>> for level in (1, 2, 6):
    ...     y = bn(np.full((2, 2, 3, 3, 3), level, np.float32))
    >>> bn.running_mean
    array([3., 3.], dtype=float32)
    """

    ranks = (5,)
