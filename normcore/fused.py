"""What layers with a fused activation, a residual and a mask have in common: their backward.

y = activation(norm(x) + residual). The backward computes the input of the activation anew from x
and the statistics, which costs no memory traffic of its own, instead of keeping it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import check
from .layer import Layer, LayerGradients, ResidualGradients, Saved

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def kept(x: Array, out: Array | None) -> Array | None:
    """x, or None if y was written over it."""
    # Arrays that own their memory are apart; to ask NumPy takes 0.3 us.
    if out is None or (out is not x and out.base is None and x.base is None):
        return x
    return None if np.may_share_memory(x, out) else x


class FusedLayer(Layer):
    """A layer whose forward may end in a residual and an activation.

    What it needs of a layer: the methods that raise NotImplementedError here.
    """

    axis: Any
    dtype: np.dtype[Any]
    """Of parameters and running statistics."""

    def __init__(self, activation: str | None) -> None:
        super().__init__()
        check.activation(activation)
        self.activation = activation

    def __call__(
        self,
        x: ArrayLike,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """The same as `forward`."""
        # Arguments by name are slow to pass on: 0.15 us.
        if residual is None and mask is None:
            return self.forward(x, out)
        return self.forward(x, out, residual=residual, mask=mask)

    def forward(
        self,
        x: ArrayLike,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """Normalize x, add residual, apply the activation."""
        raise NotImplementedError

    def _input(self, x: Any) -> Array:
        """x, if it is as this layer expects it."""
        raise NotImplementedError

    def _recomputed(self, x: Array, mask: Any) -> Saved:
        """What a training-mode forward of x would keep now; updates nothing."""
        raise NotImplementedError

    def _gradients(
        self,
        dy: ArrayLike,
        x: Array,
        saved: Saved,
        out: Array | None,
        dresidual: Array | None,
    ) -> tuple[Array, Array, Array]:
        """Gradients of the normalization and its activation; dresidual receives residual's."""
        raise NotImplementedError

    def _save(
        self,
        x: Array,
        out: Array | None,
        residual: Array | None,
        mask: Any,
        mean: Array,
        rstd: Array,
        batch_statistics: bool,
    ) -> Saved:
        saved = Saved(kept(x, out), mean, rstd, batch_statistics, mask)
        if residual is None or self.activation is None:
            return saved
        residual = kept(residual, out)
        return saved._replace(residual=residual, residual_lost=residual is None)

    def backward(
        self,
        dy: ArrayLike,
        x: ArrayLike | None = None,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> LayerGradients:
        """Gradients of the last training-mode forward, or of an evaluation-mode forward of x.

        Where the mask of the forward is 0, dy counts as 0 and dx is 0.

        Parameters
        ----------
        dy : array_like
            Gradient of the loss with respect to y.
        x : array_like, optional
            The input of the forward. Needed in evaluation mode, where a forward keeps nothing,
            and if the forward wrote y over x.
        out : ndarray, optional
            Receives dx. May be dy or x.
        residual, mask : array_like, optional
            As in the forward; needed where x is. (residual matters only to an activation.)

        Returns
        -------
        LayerGradients
            ``(dx, dweight, dbias)``; the last two are None if the layer is not affine, or is
            frozen with ``freeze(affine=True)``.

        Raises
        ------
        RuntimeError
            If x or residual is needed and not given.
        TypeError, ValueError
            As in `normcore.functional.batch_norm_backward`.
        """
        x, saved = self._differentiated(x, residual, mask)
        return self._returned(*self._gradients(dy, x, saved, out, None))

    def backward_residual(
        self,
        dy: ArrayLike,
        x: ArrayLike | None = None,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> ResidualGradients:
        """As `backward`, with the gradient of the forward's residual.

        Returns
        -------
        ResidualGradients
            ``(dx, dweight, dbias, dresidual)``. dresidual is 0 where the mask is, and is dy itself
            if the layer has no activation and `out` leaves dy alone.
        """
        x, saved = self._differentiated(x, residual, mask)
        given = check.same("dy", dy, x)
        changed = isinstance(out, np.ndarray) and np.may_share_memory(out, given)
        if self.activation is None and saved.mask is None and not changed:
            found = self._gradients(given, x, saved, out, None)
            return ResidualGradients(*self._returned(*found), given)
        dresidual = np.empty_like(x)
        found = self._gradients(given, x, saved, out, dresidual)
        return ResidualGradients(*self._returned(*found), dresidual)

    def _differentiated(self, x: Any, residual: Any, mask: Any) -> tuple[Array, Saved]:
        """What the backward is of: the last training-mode forward, or a forward of x now."""
        saved = self._saved if self.training else None
        if residual is not None:
            residual = check.array("residual", residual)
        if x is not None:
            x = self._input(x)
        if saved is None:
            if x is None:
                raise RuntimeError(
                    "backward: no training-mode forward to differentiate; evaluation keeps no "
                    "input, so pass it: backward(dy, x)"
                )
            return x, self._recomputed(x, mask)._replace(residual=residual, mask=mask)
        if x is None:
            x = saved.x
        if x is None:
            raise RuntimeError(
                "backward: x was overwritten by forward(x, out=x); pass a copy of it made "
                "before: backward(dy, x)"
            )
        if residual is None and saved.residual_lost:
            raise RuntimeError(
                "backward: residual was overwritten by forward(x, out=residual); pass a copy of "
                "it made before: backward(dy, residual=residual)"
            )
        return x, saved._replace(
            residual=saved.residual if residual is None else residual,
            mask=saved.mask if mask is None else mask,
        )
