"""What layers with a fused activation, a residual and a mask have in common: their backward.

y = activation(norm(x) + residual). The backward computes the input of the activation anew from x
and the statistics, which costs no memory traffic of its own, instead of keeping it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import check, masks
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

    What it needs of a layer: `axis` (or `_clear`), and the methods that raise NotImplementedError
    here.
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

    def _activation_gradient(
        self, dy: ArrayLike, x: Array, saved: Saved, out: Array | None
    ) -> Array:
        """The gradient before the activation."""
        raise NotImplementedError

    def _gradients(
        self, dy: ArrayLike, x: Array, saved: Saved, out: Array | None
    ) -> tuple[Array, Array, Array]:
        """The gradients of the normalization; dy is that before the activation."""
        raise NotImplementedError

    def _clear(self, values: Array, mask: Any) -> None:
        """Set the values that a mask leaves out to 0."""
        masks.clear(values, mask, self.axis % values.ndim)

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
        if self.activation is not None:
            # g needs no memory of its own where dx can follow it: kernels may write dx over dy.
            lasts = not isinstance(out, np.ndarray) or np.may_share_memory(out, x)
            dy = self._activation_gradient(dy, x, saved, None if lasts else out)
            out = dy if out is None else out
        return self._returned(*self._gradients(dy, x, saved, out))

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
        dresidual = given
        if self.activation is not None:
            dresidual = self._activation_gradient(given, x, saved, None)
        elif saved.mask is not None or (
            isinstance(out, np.ndarray) and np.may_share_memory(out, given)
        ):
            dresidual = given.copy(order="K")
        if saved.mask is not None:
            self._clear(dresidual, saved.mask)
        return ResidualGradients(
            *self._returned(*self._gradients(dresidual, x, saved, out)), dresidual
        )

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
