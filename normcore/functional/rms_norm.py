"""RMS normalization without state; `normcore.functional` says what all of these share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend
from . import layer_passes
from .gradients import RMSGradients

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def rms_norm(
    x: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    eps: float | None = None,
    *,
    axis: int | Sequence[int] | None = None,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> Array:
    """Divide x by its root mean square over its last axes, or over any others.

    y = activation(x / sqrt(mean(x^2) + eps) * weight + residual)

    Parameters
    ----------
    x, normalized_shape, weight, axis, out, mask, residual, activation
        As in `normcore.functional.layer_norm`. Where a mask keeps nothing, y is 0 (before
        residual and activation).
    eps : float, optional
        Positive; None for the machine epsilon of x's dtype (float32's for halves).

    Returns
    -------
    y : ndarray
        Shape, dtype and memory layout of x, as from `normcore.functional.layer_norm`.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.layer_norm`.

    References
    ----------
    B. Zhang and R. Sennrich, "Root mean square layer normalization", NeurIPS 2019; PyTorch's
    ``torch.nn.functional.rms_norm``, whose defaults these are.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> nc.functional.rms_norm(np.array([[3.0, 4.0, 0.0, 0.0]]), 4).round(3)
    array([[1.2, 1.6, 0. , 0. ]])
    """
    if mask is None and axis is None:
        done = backend.current().calls.layer_apply(
            x, normalized_shape, weight, None, eps, out, residual, activation, False
        )
        if done is not None:
            return done
    return layer_passes.forward(
        x, normalized_shape, weight, None, eps, axis, out, mask, residual, activation, False
    )[0]


def rms_norm_forward(
    x: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    eps: float | None = None,
    *,
    axis: int | Sequence[int] | None = None,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> tuple[Array, Array]:
    """RMS normalization with the statistic that its backward needs.

    y = activation(x * rstd * weight + residual), rstd = 1 / sqrt(mean(x^2) + eps).

    Parameters
    ----------
    x, normalized_shape, weight, eps, axis, out, mask, residual, activation
        As in `rms_norm`.

    Returns
    -------
    y : ndarray
        As from `rms_norm`.
    rstd : ndarray
        float64, shape of x without the normalized axes; 0 where a mask keeps nothing, NaN where
        x has no elements.

    Raises
    ------
    TypeError, ValueError
        As in `rms_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> y, rstd = nc.functional.rms_norm_forward(np.array([[3.0, 4.0, 0.0, 0.0]]), 4)
    >>> rstd.round(3)
    array([0.4])
    """
    y, _, rstd = layer_passes.forward(
        x, normalized_shape, weight, None, eps, axis, out, mask, residual, activation, False
    )
    return y, rstd


def rms_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    rstd: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] | None = None,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    activation: str | None = None,
    residual: ArrayLike | None = None,
    dresidual: Array | None = None,
) -> RMSGradients:
    """Gradients of RMS normalization.

    With x_hat = x * rstd and means over the normalized axes:

    dx = rstd * (dy * weight - x_hat * mean(dy * weight * x_hat)),
    dweight = sum(dy * x_hat) over the other axes.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y; shape and dtype of x.
    x : array_like
        Input of the forward.
    rstd : array_like
        From `rms_norm_forward`.
    normalized_shape, weight, axis, mask
        As in the forward.
    out : ndarray, optional
        Receives dx. May be dy or x.
    activation, residual
        Those of a forward with an activation: dy is then the gradient behind it, and the gradient
        before it is computed on the way, and not rounded.
    dresidual : ndarray, optional
        Receives the gradient before the activation, which is that of residual; 0 where mask is.
        Shape and dtype of x, memory of its own.

    Returns
    -------
    RMSGradients
        ``(dx, dweight)``. dweight has the dtype of weight; if that is None, of x (float32 for
        halves).

    Raises
    ------
    TypeError, ValueError
        As in `rms_norm`, also for dy that has not x's shape and dtype.

    References
    ----------
    B. Zhang and R. Sennrich, "Root mean square layer normalization", NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[3.0, 4.0, 0.0, 0.0]])
    >>> y, rstd = nc.functional.rms_norm_forward(x, 4)
    >>> dx, dweight = nc.functional.rms_norm_backward(np.ones_like(x), x, rstd, 4)
    >>> bool(abs((dx * x).sum()) < 1e-12), dweight.round(3)
    (True, array([1.2, 1.6, 0. , 0. ]))
    """
    found = layer_passes.backward(
        *(dy, x, None, rstd, normalized_shape, weight, axis, out, mask),
        *(None, False, "x", None, activation, residual, dresidual),
    )
    return RMSGradients(*found[:2])


def rms_norm_activation_backward(
    dy: ArrayLike,
    x: ArrayLike,
    rstd: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    *,
    activation: str | None,
    residual: ArrayLike | None = None,
    axis: int | Sequence[int] | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient before the activation of RMS normalization, which is that of residual.

    g = dy * activation'(z), z = x * rstd * weight + residual, which is computed anew.

    Parameters
    ----------
    dy, x, rstd, normalized_shape, weight, axis
        As in `rms_norm_backward`.
    residual
        As in the forward.
    activation : str or None
        That of the forward. At a kink the slope is the smaller one, as in PyTorch.
    out : ndarray, optional
        Receives g. May be dy.

    Returns
    -------
    g : ndarray
        Shape and dtype of x. Pass it on to `rms_norm_backward` as dy.

    Raises
    ------
    TypeError, ValueError
        As in `rms_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[3.0, -4.0]])
    >>> y, rstd = nc.functional.rms_norm_forward(x, 2, activation="relu")
    >>> nc.functional.rms_norm_activation_backward(
    ...     np.full_like(x, 5), x, rstd, 2, activation="relu"
    ... )
    array([[5., 0.]])
    """
    return layer_passes.before_activation(
        *(dy, x, None, rstd, normalized_shape, weight, None, axis),
        *(out, residual, activation, False),
    )
