"""Add, then normalize, as transformers do between their layers: one pass over memory for both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import layer_passes
from .gradients import Gradients, RMSGradients

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]
Pair = tuple[Array | None, Array | None]


def add_layer_norm(
    x: ArrayLike,
    residual: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    axis: int | Sequence[int] | None = None,
    out: Pair | None = None,
) -> tuple[Array, Array]:
    """Add x to the residual stream and normalize the sum.

    total = x + residual, y = (total - mean) / sqrt(var + eps) * weight + bias,

    with the mean and the population variance of total over the normalized axes.

    Parameters
    ----------
    x, normalized_shape, weight, bias, eps, axis
        As in `normcore.functional.layer_norm`.
    residual : array_like
        Shape and dtype of x.
    out : tuple of two ndarrays or None, optional
        Receive y and total. Shape and dtype of x. Each may be x or residual, but not both the
        same.

    Returns
    -------
    y, total : ndarray
        Shape, dtype and memory layout of x. total is rounded to that dtype, then normalized.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.layer_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> stream = np.array([[10.0, 20.0]])
    >>> y, stream = nc.functional.add_layer_norm(np.array([[1.0, 3.0]]), stream, 2)
    >>> y.round(3), stream
    (array([[-1.,  1.]]), array([[11., 23.]]))
    """
    return layer_passes.add_forward(
        x, residual, normalized_shape, weight, bias, eps, axis, out, True
    )[:2]


def add_layer_norm_forward(
    x: ArrayLike,
    residual: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    axis: int | Sequence[int] | None = None,
    out: Pair | None = None,
) -> tuple[Array, Array, Array, Array]:
    """`add_layer_norm` with the statistics that its backward needs.

    Parameters
    ----------
    x, residual, normalized_shape, weight, bias, eps, axis, out
        As in `add_layer_norm`.

    Returns
    -------
    y, total : ndarray
        As from `add_layer_norm`.
    mean, rstd : ndarray
        Of total: float64, shape of x without the normalized axes.

    Raises
    ------
    TypeError, ValueError
        As in `add_layer_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0]])
    >>> y, total, mean, rstd = nc.functional.add_layer_norm_forward(x, 2 * x, 2)
    >>> mean
    array([6.])
    """
    return layer_passes.add_forward(
        x, residual, normalized_shape, weight, bias, eps, axis, out, True
    )


def add_layer_norm_backward(
    dy: ArrayLike,
    dtotal: ArrayLike | None,
    total: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] | None = None,
    out: Array | None = None,
) -> Gradients:
    """Gradients of `add_layer_norm`.

    dx = dtotal + the gradient of the norm with respect to total; it is the gradient of x and that
    of residual.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y; shape and dtype of total.
    dtotal : array_like or None
        Gradient of the loss with respect to total, from what else it went into; None for 0.
    total, mean, rstd : array_like
        From `add_layer_norm_forward`.
    normalized_shape, weight, axis
        As in the forward.
    out : ndarray, optional
        Receives dx. May be dy, dtotal or total.

    Returns
    -------
    Gradients
        ``(dx, dweight, dbias)``, as from `normcore.functional.layer_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.layer_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0, 8.0]])
    >>> y, total, mean, rstd = nc.functional.add_layer_norm_forward(x, 2 * x, 3)
    >>> dx, dweight, dbias = nc.functional.add_layer_norm_backward(
    ...     np.ones_like(y), np.full_like(y, 7), total, mean, rstd, 3
    ... )
    >>> dx.round(6)
    array([[7., 7., 7.]])
    """
    found = layer_passes.backward(
        *(dy, total, mean, rstd, normalized_shape, weight, axis, out),
        *(None, dtotal, True, "total"),
    )
    return Gradients(*found)


def add_rms_norm(
    x: ArrayLike,
    residual: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    eps: float | None = None,
    *,
    axis: int | Sequence[int] | None = None,
    out: Pair | None = None,
) -> tuple[Array, Array]:
    """Add x to the residual stream and divide the sum by its root mean square.

    total = x + residual, y = total / sqrt(mean(total^2) + eps) * weight.

    Parameters
    ----------
    x, normalized_shape, weight, eps, axis
        As in `normcore.functional.rms_norm`.
    residual, out
        As in `add_layer_norm`.

    Returns
    -------
    y, total : ndarray
        As from `add_layer_norm`.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.rms_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> stream = np.array([[2.0, 1.0]])
    >>> y, stream = nc.functional.add_rms_norm(np.array([[1.0, 3.0]]), stream, 2)
    >>> y.round(3), stream
    (array([[0.849, 1.131]]), array([[3., 4.]]))
    """
    return layer_passes.add_forward(
        x, residual, normalized_shape, weight, None, eps, axis, out, False
    )[:2]


def add_rms_norm_forward(
    x: ArrayLike,
    residual: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    eps: float | None = None,
    *,
    axis: int | Sequence[int] | None = None,
    out: Pair | None = None,
) -> tuple[Array, Array, Array]:
    """`add_rms_norm` with the statistic that its backward needs.

    Parameters
    ----------
    x, residual, normalized_shape, weight, eps, axis, out
        As in `add_rms_norm`.

    Returns
    -------
    y, total : ndarray
        As from `add_rms_norm`.
    rstd : ndarray
        Of total: float64, shape of x without the normalized axes.

    Raises
    ------
    TypeError, ValueError
        As in `add_rms_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0]])
    >>> y, total, rstd = nc.functional.add_rms_norm_forward(x, np.array([[2.0, 1.0]]), 2)
    >>> rstd.round(4)
    array([0.2828])
    """
    y, total, _, rstd = layer_passes.add_forward(
        x, residual, normalized_shape, weight, None, eps, axis, out, False
    )
    return y, total, rstd


def add_rms_norm_backward(
    dy: ArrayLike,
    dtotal: ArrayLike | None,
    total: ArrayLike,
    rstd: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] | None = None,
    out: Array | None = None,
) -> RMSGradients:
    """Gradients of `add_rms_norm`.

    dx = dtotal + the gradient of the norm with respect to total; it is the gradient of x and that
    of residual.

    Parameters
    ----------
    dy, dtotal, out
        As in `add_layer_norm_backward`.
    total, rstd : array_like
        From `add_rms_norm_forward`.
    normalized_shape, weight, axis
        As in the forward.

    Returns
    -------
    RMSGradients
        ``(dx, dweight)``, as from `normcore.functional.rms_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.rms_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> total = np.array([[3.0, 4.0]])
    >>> y, total, rstd = nc.functional.add_rms_norm_forward(total, 0 * total, 2)
    >>> dx, dweight = nc.functional.add_rms_norm_backward(0 * y, total, total, rstd, 2)
    >>> dx
    array([[3., 4.]])
    """
    found = layer_passes.backward(
        *(dy, total, None, rstd, normalized_shape, weight, axis, out),
        *(None, dtotal, False, "total"),
    )
    return RMSGradients(*found[:2])
