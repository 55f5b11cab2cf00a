"""Batch normalization as layers with state: `BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from . import check
from .functional.batch import batch_norm, train
from .functional.batch_backward import batch_norm_activation_backward, batch_norm_backward
from .functional.ghost import (
    ghost_batch_norm_activation_backward,
    ghost_batch_norm_backward,
    train_chunks,
)
from .functional.gradients import Gradients
from .fused import FusedLayer
from .layer import Saved

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from .stats import ChannelStats

Array = np.ndarray[Any, Any]


class BatchNorm(FusedLayer):
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

    ranks: tuple[int, ...]
    """How many axes x may have."""

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
        super().__init__(activation)
        self.num_features = check.size("num_features", num_features)
        self.eps = check.eps(eps)
        self.momentum = None if momentum is None else check.momentum(momentum)
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.axis = check.layer_axis(axis, max(self.ranks))
        self.dtype = check.layer_dtype(dtype)
        self.skip_nonfinite = bool(skip_nonfinite)
        self.virtual_batch_size = None
        if virtual_batch_size is not None:
            self.virtual_batch_size = check.size("virtual_batch_size", virtual_batch_size)
        self._pool: ChannelStats | None = None
        self.weight = np.ones(num_features, self.dtype) if affine else None
        self.bias = np.zeros(num_features, self.dtype) if affine else None
        self.running_mean = np.zeros(num_features, self.dtype) if track_running_stats else None
        self.running_var = np.ones(num_features, self.dtype) if track_running_stats else None
        self.num_batches_tracked = np.zeros((), np.int64) if track_running_stats else None

    def __call__(
        self,
        x: ArrayLike,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """The same as `forward`."""
        return self.forward(x, out, residual=residual, mask=mask)

    def forward(
        self,
        x: ArrayLike,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """Normalize x: by the statistics of the batch in training, else by the running ones.

        Parameters
        ----------
        x : array_like
            float32, float64, float16 or bfloat16, with ``num_features`` channels along ``axis``.
            In training mode the layer refers to x (and to mask and residual) until the next
            forward, for `backward`: do not change them.
        out : ndarray, optional
            Receives y. May be x; in training `backward` then needs a copy of x.
        residual : array_like, optional
            Added before the activation; shape and dtype of x.
        mask : array_like, optional
            Which positions count, in x's shape without the channel axis; as in
            `normcore.functional.batch_norm`.

        Returns
        -------
        y : ndarray
            Shape, dtype and memory layout of x; `out` if that is given.

        Raises
        ------
        TypeError, ValueError
            As in `normcore.functional.batch_norm`. The layer is then as it was.
        """
        x = self._input(x)
        if residual is not None:
            residual = check.array("residual", residual)
        if self._by_batch():
            with self._lock if self.training else nullcontext():
                if self._pool is not None:  # for `normcore.update_bn`
                    self._pool.update(x, mask=mask)
                update = self.training and self._pool is None
                y, saved = self._train(x, out, residual, mask, update)
                if self.training:
                    self._saved = saved
            return y
        y = batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            False,
            0.0,
            self.eps,
            axis=self.axis,
            out=out,
            mask=mask,
            residual=residual,
            activation=self.activation,
        )
        if self.training:
            self._saved = self._save(x, out, residual, mask, *self._running(), False)
        return y

    def _train(
        self, x: Array, out: Array | None, residual: Array | None, mask: Any, update: bool
    ) -> tuple[Array, Saved]:
        """Normalize by the statistics of the batch; `update` the running ones, if there are any."""
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

    def _step(self) -> int:
        """How many batches the running statistics have seen."""
        return 0 if self.num_batches_tracked is None else int(self.num_batches_tracked)

    def _factor(self) -> float:
        """The weight of the next batch in the running statistics."""
        return 1 / (self._step() + 1) if self.momentum is None else self.momentum

    def _activation_gradient(
        self, dy: ArrayLike, x: Array, saved: Saved, out: Array | None
    ) -> Array:
        if saved.mean.ndim == 2:  # of each chunk
            assert self.virtual_batch_size is not None
            return ghost_batch_norm_activation_backward(
                *(dy, x, saved.mean, saved.rstd, self.virtual_batch_size, self.weight, self.bias),
                activation=self.activation,
                residual=saved.residual,
                axis=self.axis,
                out=out,
            )
        return batch_norm_activation_backward(
            *(dy, x, saved.mean, saved.rstd, self.weight, self.bias),
            activation=self.activation,
            residual=saved.residual,
            axis=self.axis,
            out=out,
        )

    def _gradients(self, dy: ArrayLike, x: Array, saved: Saved, out: Array | None) -> Gradients:
        if saved.mean.ndim == 2:
            assert self.virtual_batch_size is not None
            return ghost_batch_norm_backward(
                *(dy, x, saved.mean, saved.rstd, self.virtual_batch_size, self.weight),
                axis=self.axis,
                out=out,
                mask=saved.mask,
            )
        return batch_norm_backward(
            *(dy, x, saved.mean, saved.rstd, self.weight),
            training=saved.batch_statistics,
            axis=self.axis,
            out=out,
            mask=saved.mask,
        )

    def _recomputed(self, x: Array, mask: Any) -> Saved:
        if self._by_batch():
            return self._train(x, None, None, mask, False)[1]
        return Saved(x, *self._running(), False)

    def _by_batch(self) -> bool:
        """Does a forward use the statistics of the batch now?"""
        return (self.training and not self._frozen) or self.running_mean is None

    def _running(self) -> tuple[Array, Array]:
        """Mean and rstd of the running statistics, as they are now."""
        if self.running_mean is None or self.running_var is None:
            raise RuntimeError(f"{type(self).__name__} has no running statistics")
        mean, var = self.running_mean.astype(np.float64), self.running_var.astype(np.float64)
        return mean, 1 / np.sqrt(var + self.eps)

    def _input(self, x: Any) -> Array:
        found: Array = check.array("x", x)
        shape = found.shape
        if found.ndim not in self.ranks:
            expected = " or ".join(f"{rank}-D" for rank in self.ranks)
            raise ValueError(
                f"x: {type(self).__name__} expects a {expected} array, got shape {shape}"
            )
        axis = self.axis
        if not -found.ndim <= axis < found.ndim or shape[axis] != self.num_features:
            raise ValueError(
                f"x: expected {self.num_features} channels along axis {axis}, got shape {shape}"
            )
        return found

    def _shown(self) -> dict[str, Any]:
        """The options that `repr` always shows."""
        return {
            "eps": self.eps,
            "momentum": self.momentum,
            "affine": self.affine,
            "track_running_stats": self.track_running_stats,
        }

    def __repr__(self) -> str:
        shown = self._shown()
        shown.update(
            (name, value)
            for name, value, default in (
                ("axis", self.axis, 1),
                ("dtype", self.dtype.name, "float32"),
                ("skip_nonfinite", self.skip_nonfinite, False),
                ("activation", self.activation, None),
                ("virtual_batch_size", self.virtual_batch_size, None),
            )
            if value != default
        )
        options = "".join(f", {name}={value}" for name, value in shown.items())
        return f"{type(self).__name__}({self.num_features}{options})"


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
