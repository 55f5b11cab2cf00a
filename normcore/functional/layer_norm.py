"""Layer normalization without state; `normcore.functional` says what all of these share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend
from . import layer_passes
from .gradients import Gradients

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def layer_norm(
    x: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    axis: int | Sequence[int] | None = None,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> Array:
    """Normalize x over its last axes, or over any others.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual),

    with the mean and the population variance over the normalized axes.

    Parameters
    ----------
    x : array_like
        float32, float64, float16 or bfloat16.
    normalized_shape : int or sequence of int
        Lengths of the normalized axes.
    weight, bias : array_like, optional
        Of shape normalized_shape, float32 or float64, whatever x is; 1 and 0 if None.
    eps : float, optional
        Positive.
    axis : int or sequence of int, optional
        The normalized axes, one for each length; None for the last ones. No transpose is needed
        to normalize over the channel axis of (N, C, H, W): that is ``axis=1``.
    out : ndarray, optional
        Receives y and is returned. Shape and dtype of x. May be x.
    mask : array_like of bool, optional
        False where an element does not count. Either broadcasts to the shape of x without the
        normalized axes (this is tried first) or to the shape of x. Elements that do not count are
        normalized like the others, but get no gradient. Where nothing counts, y is bias.
    residual : array_like, optional
        Shape and dtype of x.
    activation : {"relu", "relu6", "leaky_relu", "silu", "gelu"}, optional
        leaky_relu has the slope 0.01; gelu is the exact one.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory layout of x; with the normalized axes last where they are no block
        of x's memory, for which x is copied, too.

    Raises
    ------
    TypeError
        For dtypes other than these, and for what is no array, number or bool.
    ValueError
        For wrong shapes and axes, an unknown activation, and ``out`` that overlaps an input. An
        error leaves every array as it was.

    References
    ----------
    J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", 2016; PyTorch's
    ``torch.nn.functional.layer_norm``, whose defaults these are.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0], [10.0, 30.0]])
    >>> nc.functional.layer_norm(x, 2).round(3)
    array([[-1.,  1.],
           [-1.,  1.]])
    >>> nc.functional.layer_norm(x, 2, axis=0, activation="relu").round(3)
    array([[0., 0.],
           [1., 1.]])
    """
    if mask is None and axis is None:
        done = backend.current().calls.layer_apply(
            x, normalized_shape, weight, bias, eps, out, residual, activation, True
        )
        if done is not None:
            return done
    return layer_passes.forward(
        x, normalized_shape, weight, bias, eps, axis, out, mask, residual, activation, True
    )[0]


def layer_norm_forward(
    x: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    axis: int | Sequence[int] | None = None,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    """Layer normalization with the statistics that its backward needs.

    y = activation((x - mean) * rstd * weight + bias + residual), rstd = 1 / sqrt(var + eps).

    Parameters
    ----------
    x, normalized_shape, weight, bias, eps, axis, out, mask, residual, activation
        As in `layer_norm`.

    Returns
    -------
    y : ndarray
        As from `layer_norm`.
    mean, rstd : ndarray
        float64, shape of x without the normalized axes; 0 where a mask keeps nothing, NaN where
        x has no elements.

    Raises
    ------
    TypeError, ValueError
        As in `layer_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0], [10.0, 30.0]], np.float32)
    >>> y, mean, rstd = nc.functional.layer_norm_forward(x, (2,))
    >>> mean, rstd.round(3)
    (array([ 2., 20.]), array([1. , 0.1]))
    """
    return layer_passes.forward(
        x, normalized_shape, weight, bias, eps, axis, out, mask, residual, activation, True
    )


def layer_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    *,
    axis: int | Sequence[int] | None = None,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    residual: ArrayLike | None = None,
    dresidual: Array | None = None,
) -> Gradients:
    """Gradients of layer normalization.

    With x_hat = (x - mean) * rstd and means over the normalized axes:

    dx = rstd * (dy * weight - mean(dy * weight) - x_hat * mean(dy * weight * x_hat)),
    dbias = sum(dy), dweight = sum(dy * x_hat), over the other axes.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y; shape and dtype of x.
    x : array_like
        Input of the forward.
    mean, rstd : array_like
        From `layer_norm_forward`.
    normalized_shape, weight, axis, mask
        As in the forward.
    out : ndarray, optional
        Receives dx. May be dy or x.
    bias, activation, residual
        Those of a forward with an activation: dy is then the gradient behind it, and the gradient
        before it is computed on the way, and not rounded.
    dresidual : ndarray, optional
        Receives the gradient before the activation, which is that of residual; 0 where mask is.
        Shape and dtype of x, memory of its own.

    Returns
    -------
    Gradients
        ``(dx, dweight, dbias)``. dweight and dbias have the dtype of weight; if that is None, of
        x (float32 for halves).

    Raises
    ------
    TypeError, ValueError
        As in `layer_norm`, also for dy that has not x's shape and dtype.

    References
    ----------
    J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0, 8.0], [10.0, 30.0, 20.0]])
    >>> y, mean, rstd = nc.functional.layer_norm_forward(x, 3)
    >>> dx, dweight, dbias = nc.functional.layer_norm_backward(y**2, x, mean, rstd, 3)
    >>> bool(abs(dx.sum(1)).max() < 1e-12), dweight.shape
    (True, (3,))
    """
    found = layer_passes.backward(
        *(dy, x, mean, rstd, normalized_shape, weight, axis, out, mask),
        *(None, True, "x", bias, activation, residual, dresidual),
    )
    return Gradients(*found)


def layer_norm_activation_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    activation: str | None,
    residual: ArrayLike | None = None,
    axis: int | Sequence[int] | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient before the activation of layer normalization, which is that of residual.

    g = dy * activation'(z), z = (x - mean) * rstd * weight + bias + residual, which is computed
    anew.

    Parameters
    ----------
    dy, x, mean, rstd, normalized_shape, weight, axis
        As in `layer_norm_backward`.
    bias, residual
        As in the forward.
    activation : str or None
        That of the forward. At a kink the slope is the smaller one, as in PyTorch.
    out : ndarray, optional
        Receives g. May be dy.

    Returns
    -------
    g : ndarray
        Shape and dtype of x. Pass it on to `layer_norm_backward` as dy.

    Raises
    ------
    TypeError, ValueError
        As in `layer_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0, 8.0], [10.0, 30.0, 20.0]])
    >>> y, mean, rstd = nc.functional.layer_norm_forward(x, 3, activation="relu")
    >>> nc.functional.layer_norm_activation_backward(
    ...     np.full_like(x, 5), x, mean, rstd, 3, activation="relu"
    ... )
    array([[0., 0., 5.],
           [0., 5., 0.]])
    """
    return layer_passes.before_activation(
        *(dy, x, mean, rstd, normalized_shape, weight, bias, axis),
        *(out, residual, activation, True),
    )
