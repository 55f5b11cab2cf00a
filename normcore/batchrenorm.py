"""Batch renormalization as layers with state: `BatchRenorm1d`, `BatchRenorm2d`, `BatchRenorm3d`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .batchnorm import BatchNorm
from .functional.batch_renorm import batch_renorm_backward, limit, train_renorm
from .functional.gradients import Gradients
from .layer import Saved

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class LinearSchedule:
    """A number that goes from one value to another between two steps, and stays there.

    Parameters
    ----------
    first, last : float
        The values until step `begin` and from step `end` on.
    begin, end : int
        Steps, `end` behind `begin`, else ValueError.

    Examples
    --------
    >>> import normcore as nc
    >>> schedule = nc.LinearSchedule(1.0, 3.0, begin=5000, end=40000)
    >>> schedule(0), schedule(22500), schedule(10**6)
    (1.0, 2.0, 3.0)
    """

    first: float
    last: float
    begin: int
    end: int

    def __post_init__(self) -> None:
        if not self.begin < self.end:
            raise ValueError(f"end: expected a step behind begin={self.begin}, got {self.end}")

    def __call__(self, step: int) -> float:
        """The value at this step."""
        way = (step - self.begin) / (self.end - self.begin)
        way = min(max(way, 0.0), 1.0)
        return self.first * (1 - way) + self.last * way


PAPER_R_MAX = LinearSchedule(1.0, 3.0, 5000, 40000)
"""The r_max of the paper: batch normalization for 5000 steps, then 3 from step 40000 on."""
PAPER_D_MAX = LinearSchedule(0.0, 5.0, 5000, 25000)
"""The d_max of the paper: batch normalization for 5000 steps, then 5 from step 25000 on."""

Limit = float | Callable[[int], float]


class BatchRenorm(BatchNorm):
    """What `BatchRenorm1d`, `BatchRenorm2d` and `BatchRenorm3d` have in common.

    In training y = ((x - mean) / sqrt(var + eps) * r + d) * weight + bias, with the statistics of
    the batch and an r and d that correct them towards the running ones;
    `normcore.functional.batch_renorm_forward` says how. Evaluation is batch normalization's.
    State, modes and calls are those of `BatchNorm`.

    Parameters
    ----------
    num_features : int
        C, the number of channels.
    eps : float, optional
        Positive.
    momentum : float or None, optional
        As in `BatchNorm`; the paper's is 0.01.
    affine : bool, optional
        Have ``weight`` and ``bias``.
    r_max, d_max : float or callable, optional
        How far r may be from 1, as a factor of at least 1, and d from 0, at least 0. A callable
        is given the step (``num_batches_tracked``) and returns a number: `LinearSchedule`, and
        the paper's `PAPER_R_MAX` and `PAPER_D_MAX`.
    axis, dtype, skip_nonfinite, activation
        As in `BatchNorm`.

    Attributes
    ----------
    r, d : ndarray or None
        (C,), float64: the correction of the last training-mode forward.

    Raises
    ------
    TypeError, ValueError
        For arguments that are not as above; a forward, for values of a schedule that are not.

    References
    ----------
    S. Ioffe, "Batch renormalization: towards reducing minibatch dependence in batch-normalized
    models", NeurIPS 2017.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        r_max: Limit = 3.0,
        d_max: Limit = 5.0,
        axis: int = 1,
        dtype: DTypeLike = np.float32,
        skip_nonfinite: bool = False,
        activation: str | None = None,
    ) -> None:
        super().__init__(
            *(num_features, eps, momentum, affine),
            axis=axis,
            dtype=dtype,
            skip_nonfinite=skip_nonfinite,
            activation=activation,
        )
        self.r_max = r_max if callable(r_max) else limit("r_max", r_max, 1.0)
        self.d_max = d_max if callable(d_max) else limit("d_max", d_max, 0.0)
        self.r: Array | None = None
        self.d: Array | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """(r_max, d_max) of the next training-mode forward."""
        step = self._step()
        r_max = self.r_max(step) if callable(self.r_max) else self.r_max
        d_max = self.d_max(step) if callable(self.d_max) else self.d_max
        return limit("r_max", r_max, 1.0), limit("d_max", d_max, 0.0)

    def _train(
        self, x: Array, out: Array | None, residual: Array | None, mask: Any, update: bool
    ) -> tuple[Array, Saved]:
        y, mean, rstd, r, d = train_renorm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.num_batches_tracked,
            *self.limits,
            self._factor(),
            self.eps,
            self.axis,
            out,
            self.skip_nonfinite,
            mask,
            residual,
            self.activation,
            update,
        )
        if update:
            self.r, self.d = r, d
        saved = self._save(x, out, residual, mask, mean, rstd, True)
        return y, saved._replace(r=r, d=d)

    def _gradients(
        self,
        dy: ArrayLike,
        x: Array,
        saved: Saved,
        out: Array | None,
        dresidual: Array | None,
    ) -> Gradients:
        if saved.r is None or saved.d is None:  # by running statistics
            return super()._gradients(dy, x, saved, out, dresidual)
        return batch_renorm_backward(
            *(dy, x, saved.mean, saved.rstd, saved.r, saved.d, self.weight),
            axis=self.axis,
            out=out,
            mask=saved.mask,
            bias=self.bias,
            activation=self.activation,
            residual=saved.residual,
            dresidual=dresidual,
        )

    def _shown(self) -> dict[str, Any]:
        shown = super()._shown()
        del shown["track_running_stats"]  # always
        return {**shown, "r_max": self.r_max, "d_max": self.d_max}


class BatchRenorm1d(BatchRenorm):
    """Batch renormalization of (N, C) or (N, C, L) arrays; parameters as `BatchRenorm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.BatchRenorm1d(1)
    >>> layer(np.array([[1.0], [3.0]], np.float32)).ravel().round(2)
    array([1., 3.], dtype=float32)
    >>> layer.r.round(2), layer.d.round(2)
    (array([1.]), array([2.]))
    """

    ranks = (2, 3)


class BatchRenorm2d(BatchRenorm):
    """Batch renormalization of (N, C, H, W) arrays; parameters as `BatchRenorm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> layer = nc.BatchRenorm2d(3, r_max=nc.PAPER_R_MAX, d_max=nc.PAPER_D_MAX)
    >>> layer.limits
    (1.0, 0.0)
    >>> x = np.random.default_rng(0).normal(5, 2, (8, 3, 4, 4)).astype(np.float32)
    >>> bool(np.array_equal(layer(x), nc.BatchNorm2d(3)(x)))
    True
    """

    ranks = (4,)


class BatchRenorm3d(BatchRenorm):
    """Batch renormalization of (N, C, D, H, W) arrays; parameters as `BatchRenorm`.

    Examples
    --------
    >>> import normcore as nc
    >>> nc.BatchRenorm3d(2, d_max=1)
    BatchRenorm3d(2, eps=1e-05, momentum=0.01, affine=True, r_max=3.0, d_max=1.0)
    """

    ranks = (5,)
