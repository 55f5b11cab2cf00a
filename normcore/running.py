"""What layers with running statistics have in common: batch norm and its kin, instance norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import backend, check
from .functional.batch import batch_norm
from .functional.batch_backward import batch_norm_backward
from .functional.gradients import Gradients
from .fused import FusedLayer
from .layer import Saved

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

Array = np.ndarray[Any, Any]


class RunningLayer(FusedLayer):
    """A layer that normalizes channels: in training by what it sees, then by what it has seen.

    What it needs of a layer: `ranks` and `_train`. Its gradients are those of batch norm, as they
    are of every evaluation.
    """

    ranks: tuple[int, ...]
    """How many axes x may have."""

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        axis: int,
        dtype: DTypeLike,
        skip_nonfinite: bool,
        activation: str | None,
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
        self.weight = np.ones(num_features, self.dtype) if affine else None
        self.bias = np.zeros(num_features, self.dtype) if affine else None
        self.running_mean = np.zeros(num_features, self.dtype) if track_running_stats else None
        self.running_var = np.ones(num_features, self.dtype) if track_running_stats else None
        self.num_batches_tracked = np.zeros((), np.int64) if track_running_stats else None

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
        training = self.training
        if (training and not self._frozen) or self.running_mean is None:
            if not training:
                return self._train(x, out, residual, mask, self._observed(x, mask))[0]
            with self._lock:
                done, self._saved = self._train(x, out, residual, mask, self._observed(x, mask))
            return done
        y: Array | None = None
        if mask is None:
            y = backend.current().calls.batch_apply(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.eps,
                self.axis,
                out,
                residual,
                self.activation,
            )
        if y is None:
            y = batch_norm(
                *(x, self.running_mean, self.running_var, self.weight, self.bias),
                *(False, 0.0, self.eps),
                axis=self.axis,
                out=out,
                mask=mask,
                residual=residual,
                activation=self.activation,
            )
        if training:
            self._saved = self._save(x, out, residual, mask, *self._running(), False)
        return y

    def _observed(self, x: Array, mask: Any) -> bool:
        """Take note of an input; should it change the running statistics?"""
        return self.training

    def _train(
        self, x: Array, out: Array | None, residual: Array | None, mask: Any, update: bool
    ) -> tuple[Array, Saved]:
        """Normalize by the statistics of x; `update` the running ones, if there are any."""
        raise NotImplementedError

    def _step(self) -> int:
        """How many batches the running statistics have seen."""
        return 0 if self.num_batches_tracked is None else int(self.num_batches_tracked)

    def _factor(self) -> float:
        """The weight of the next batch in the running statistics."""
        return 1 / (self._step() + 1) if self.momentum is None else self.momentum

    def _gradients(
        self,
        dy: ArrayLike,
        x: Array,
        saved: Saved,
        out: Array | None,
        dresidual: Array | None,
    ) -> Gradients:
        return batch_norm_backward(
            *(dy, x, saved.mean, saved.rstd, self.weight),
            training=saved.batch_statistics,
            axis=self.axis,
            out=out,
            mask=saved.mask,
            bias=self.bias,
            activation=self.activation,
            residual=saved.residual,
            dresidual=dresidual,
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
        if type(x) is np.ndarray and x.dtype is check.FLOAT32:
            shape, axis = x.shape, self.axis
            ndim = len(shape)
            if ndim in self.ranks and -ndim <= axis < ndim and shape[axis] == self.num_features:
                return x
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

    def _further(self) -> list[tuple[str, Any, Any]]:
        """Name, value and default of the options that `repr` shows where they differ."""
        return [
            ("axis", self.axis, 1),
            ("dtype", self.dtype.name, "float32"),
            ("skip_nonfinite", self.skip_nonfinite, False),
            ("activation", self.activation, None),
        ]

    def __repr__(self) -> str:
        shown = self._shown()
        shown.update((name, value) for name, value, usual in self._further() if value != usual)
        options = "".join(f", {name}={value}" for name, value in shown.items())
        return f"{type(self).__name__}({self.num_features}{options})"
