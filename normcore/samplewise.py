"""What layers have in common that normalize each sample by itself: no running statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import check
from .fused import FusedLayer
from .layer import Saved

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


class SamplewiseLayer(FusedLayer):
    """A layer that does the same in training and evaluation.

    Only that a training-mode forward keeps what its backward needs.
    """

    axis: Any
    dtype: np.dtype[Any]
    """Of weight and bias."""
    running_mean = running_var = num_batches_tracked = None
    state_names = ("weight", "bias")

    def _normalized(
        self, x: Array, out: Array | None, residual: Array | None, mask: Any
    ) -> tuple[Array, Array, Array]:
        """(y, mean, rstd)."""
        raise NotImplementedError

    def forward(
        self,
        x: ArrayLike,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """Normalize x.

        Parameters
        ----------
        x : array_like
            float32, float64, float16 or bfloat16. In training mode the layer refers to x (and to
            mask and residual) until the next forward, for `backward`: do not change them.
        out : ndarray, optional
            Receives y. May be x; in training `backward` then needs a copy of x.
        residual : array_like, optional
            Added before the activation; shape and dtype of x.
        mask : array_like, optional
            What counts, as in the function of `normcore.functional`.

        Returns
        -------
        y : ndarray
            Shape, dtype and memory layout of x; `out` if that is given.

        Raises
        ------
        TypeError, ValueError
            As in the function of `normcore.functional`. The layer is then as it was.
        """
        x = self._input(x)
        if residual is not None:
            residual = check.array("residual", residual)
        y, mean, rstd = self._normalized(x, out, residual, mask)
        if self.training:
            self._saved = self._save(x, out, residual, mask, mean, rstd, True)
        return y

    def _recomputed(self, x: Array, mask: Any) -> Saved:
        _, mean, rstd = self._normalized(x, None, None, mask)
        return Saved(x, mean, rstd, True, mask)

    def _input(self, x: Any) -> Array:
        found: Array = check.array("x", x)
        return found

    def _further(self, axis: Any) -> str:
        """The options that PyTorch has not, for `repr`, where they are not the default ones."""
        return "".join(
            f", {name}={value}"
            for name, value, default in (
                ("axis", self.axis, axis),
                ("dtype", self.dtype.name, "float32"),
                ("activation", self.activation, None),
            )
            if value != default
        )
