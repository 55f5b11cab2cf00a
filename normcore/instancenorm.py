"""Instance normalization as layers with state: `InstanceNorm1d`, `2d` and `3d`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import axes, backend, check
from .functional.gradients import Gradients
from .functional.instance_norm import (
    instance_norm_backward,
    train,
)
from .layer import LayerGradients, ResidualGradients, Saved, saved_plain
from .running import RunningLayer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

Array = np.ndarray[Any, Any]


class InstanceNorm(RunningLayer):
    """What `InstanceNorm1d`, `InstanceNorm2d` and `InstanceNorm3d` have in common.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual), for each channel of
    each sample.

    Without running statistics, training and evaluation both normalize by the mean and population
    variance of each channel of each sample. With them, training does so and moves them towards the
    mean over the samples of their means and unbiased variances, and evaluation normalizes by them,
    as batch normalization does.

    Parameters
    ----------
    num_features : int
        C, the number of channels.
    eps : float, optional
        Positive.
    momentum : float or None, optional
        Weight of the new batch in the running statistics; None for the plain average over all
        batches (for which PyTorch's layers take it, but then never update).
    affine : bool, optional
        Have ``weight`` and ``bias``.
    track_running_stats : bool, optional
        Have ``running_mean``, ``running_var`` and ``num_batches_tracked``. The last one counts;
        PyTorch's instance norms have it too, but leave it at 0.
    axis : int, optional
        The channel axis of a batch: 1 for channels-first, -1 for channels-last; not 0.
    dtype : dtype, optional
        Of parameters and running statistics, float32 or float64. x may be another one.
    skip_nonfinite : bool, optional
        Leave the running statistics of a channel alone where the batch's are NaN or infinite.
    activation : {None, "relu", "relu6", "leaky_relu", "silu", "gelu"}, optional
        Fused into the same pass over memory; as in `normcore.functional.instance_norm`.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above.

    References
    ----------
    D. Ulyanov, A. Vedaldi and V. Lempitsky, "Instance normalization", 2016; defaults, names and
    errors are those of PyTorch's layers.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        axis: int = 1,
        dtype: DTypeLike = np.float32,
        skip_nonfinite: bool = False,
        activation: str | None = None,
    ) -> None:
        super().__init__(
            *(num_features, eps, momentum, affine, track_running_stats),
            *(axis, dtype, skip_nonfinite, activation),
        )
        axes.behind_samples(self.axis % self.ranks[0])

    def forward(
        self,
        x: ArrayLike,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """Normalize a batch of samples, or one sample without the samples' axis.

        Parameters
        ----------
        x : array_like
            float32, float64, float16 or bfloat16, with ``num_features`` channels along ``axis`` (of
            a batch). In training mode the layer refers to x (and to mask and residual) until the
            next forward, for `backward`: do not change them.
        out : ndarray, optional
            Receives y. May be x; in training `backward` then needs a copy of x.
        residual : array_like, optional
            Added before the activation; shape and dtype of x.
        mask : array_like, optional
            Which positions count, in x's shape without the channel axis; as in
            `normcore.functional.instance_norm`.

        Returns
        -------
        y : ndarray
            Shape, dtype and memory layout of x; `out` if that is given.

        Raises
        ------
        TypeError, ValueError
            As in `normcore.functional.instance_norm`. The layer is then as it was.
        """
        x = check.array("x", x)
        if not self._single("x", x):
            return super().forward(x, out, residual=residual, mask=mask)
        y = super().forward(x[None], _batch(out), residual=_batch(residual), mask=_batch(mask))[0]
        return y if out is None else out

    def backward(
        self,
        dy: ArrayLike,
        x: ArrayLike | None = None,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> LayerGradients:
        """As of batch normalization, also for one sample without the samples' axis."""
        dy = check.array("dy", dy)
        if not self._single("dy", dy):
            return super().backward(dy, x, out, residual=residual, mask=mask)
        found = super().backward(
            dy[None], _batch(x), _batch(out), residual=_batch(residual), mask=_batch(mask)
        )
        return found._replace(dx=found.dx[0] if out is None else out)

    def backward_residual(
        self,
        dy: ArrayLike,
        x: ArrayLike | None = None,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> ResidualGradients:
        """As `backward`, with the gradient of the forward's residual."""
        dy = check.array("dy", dy)
        if not self._single("dy", dy):
            return super().backward_residual(dy, x, out, residual=residual, mask=mask)
        found = super().backward_residual(
            dy[None], _batch(x), _batch(out), residual=_batch(residual), mask=_batch(mask)
        )
        return found._replace(dx=found.dx[0] if out is None else out, dresidual=found.dresidual[0])

    def _single(self, name: str, values: Array) -> bool:
        """Is this one sample without the samples' axis?"""
        rank = self.ranks[0]
        if values.ndim not in (rank - 1, rank):
            raise ValueError(
                f"{name}: {type(self).__name__} expects a {rank - 1}-D or {rank}-D array, "
                f"got shape {values.shape}"
            )
        return values.ndim == rank - 1

    def _train(
        self, x: Array, out: Array | None, residual: Array | None, mask: Any, update: bool
    ) -> tuple[Array, Saved]:
        running: tuple[Array | None, Array | None, Array | None] = (None, None, None)
        if update:
            running = (self.running_mean, self.running_var, self.num_batches_tracked)
        if mask is None and residual is None and running[0] is None:
            done = backend.current().calls.group_forward(
                x, None, self.weight, self.bias, self.eps, self.axis, out, None, self.activation
            )
            if done is not None:
                return done[0], saved_plain(None if out is x else x, done[1], done[2])
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
        if not saved.batch_statistics:
            return super()._gradients(dy, x, saved, out, dresidual)
        return instance_norm_backward(
            *(dy, x, saved.mean, saved.rstd, self.weight),
            axis=self.axis,
            out=out,
            mask=saved.mask,
            bias=self.bias,
            activation=self.activation,
            residual=saved.residual,
            dresidual=dresidual,
        )


def _batch(values: Any) -> Any:
    """One sample as a batch; what is no array stays as it is, for the checks to refuse."""
    if values is None or isinstance(values, np.ndarray):
        return None if values is None else values[None]
    return np.expand_dims(check.plain("x", values), 0)


class InstanceNorm1d(InstanceNorm):
    """Instance normalization of (N, C, L) or (C, L) arrays; parameters as `InstanceNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> norm = nc.InstanceNorm1d(2)
    >>> norm(np.array([[1.0, 3.0], [10.0, 30.0]])).round(3)
    array([[-1.,  1.],
           [-1.,  1.]])
    """

    ranks = (3,)


class InstanceNorm2d(InstanceNorm):
    """Instance normalization of (N, C, H, W) or (C, H, W) arrays; parameters as `InstanceNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> norm = nc.InstanceNorm2d(3, affine=True)
    >>> x = np.random.default_rng(0).normal(5, 2, (8, 3, 4, 4)).astype(np.float32)
    >>> y = norm(x)
    >>> bool(abs(y.mean((2, 3))).max() < 1e-6)
    True
    >>> dx, dweight, dbias = norm.backward(np.ones_like(y))
    >>> dbias
    array([128., 128., 128.], dtype=float32)
    """

    ranks = (4,)


class InstanceNorm3d(InstanceNorm):
    """Instance normalization of (N, C, D, H, W) or (C, D, H, W) arrays.

    Parameters are those of `InstanceNorm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> norm = nc.InstanceNorm3d(2, track_running_stats=True, momentum=None)
    >>> for level in (1, 2, 6):
    ...     y = norm(np.full((2, 2, 3, 3, 3), level, np.float32))
    >>> norm.running_mean
    array([3., 3.], dtype=float32)
    """

    ranks = (5,)
