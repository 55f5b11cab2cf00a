"""Group normalization without state; `normcore.functional` says what all of these share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend
from . import group_passes
from .gradients import Gradients

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def group_norm(
    x: ArrayLike,
    num_groups: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> Array:
    """Normalize each group of adjacent channels of each sample of x.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual),

    with the mean and the population variance of each sample and group.

    Parameters
    ----------
    x : array_like
        Samples along axis 0, channels along `axis`; float32, float64, float16 or bfloat16.
    num_groups : int
        Divides the number of channels C.
    weight, bias : array_like, optional
        (C,), float32 or float64, whatever x is; 1 and 0 if None.
    eps : float, optional
        Positive.
    axis : int, optional
        The channel axis: 1 for channels-first, -1 for channels-last; not 0.
    out : ndarray, optional
        Receives y and is returned. Shape and dtype of x. May be x.
    mask : array_like of bool, optional
        False at positions that do not count; broadcasts to the shape of x without the channel
        axis. They are normalized like the others, but get no gradient. Where nothing counts, y is
        bias.
    residual : array_like, optional
        Shape and dtype of x.
    activation : {"relu", "relu6", "leaky_relu", "silu", "gelu"}, optional
        leaky_relu has the slope 0.01; gelu is the exact one.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory layout of x; in the order samples, channels, others where x lies
        otherwise (samples not outermost, or channels in the middle), for which x is copied, too.

    Raises
    ------
    TypeError
        For dtypes other than these, and for what is no array, number or bool.
    ValueError
        For wrong shapes and axes, groups that do not divide C, an unknown activation, ``out`` that
        overlaps an input, and for one sample with one value per group. (Where there are several
        samples, a group of one value is no error, as in PyTorch: its y is bias.) An error leaves
        every array as it was.

    References
    ----------
    Y. Wu and K. He, "Group normalization", ECCV 2018; PyTorch's
    ``torch.nn.functional.group_norm``, whose defaults these are.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> nc.functional.group_norm(x, 2).round(3)
    array([[-1.,  1., -1.,  1.]])
    """
    if mask is None:
        done = backend.current().calls.group_apply(
            x, num_groups, weight, bias, eps, axis, out, residual, activation
        )
        if done is not None:
            return done
    return group_passes.forward(
        x, num_groups, weight, bias, eps, axis, out, mask, residual, activation
    )[0]


def group_norm_forward(
    x: ArrayLike,
    num_groups: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    """Group normalization with the statistics that its backward needs.

    y = activation((x - mean) * rstd * weight + bias + residual), rstd = 1 / sqrt(var + eps).

    Parameters
    ----------
    x, num_groups, weight, bias, eps, axis, out, mask, residual, activation
        As in `group_norm`.

    Returns
    -------
    y : ndarray
        As from `group_norm`.
    mean, rstd : ndarray
        (N, num_groups), float64; 0 where a mask keeps nothing, NaN where x is empty.

    Raises
    ------
    TypeError, ValueError
        As in `group_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> y, mean, rstd = nc.functional.group_norm_forward(x, 2)
    >>> mean, rstd.round(3)
    (array([[ 2., 20.]]), array([[1. , 0.1]]))
    """
    if mask is None:
        done = backend.current().calls.group_forward(
            x, num_groups, weight, bias, eps, axis, out, residual, activation
        )
        if done is not None:
            return done
    y, mean, _, rstd = group_passes.forward(
        x, num_groups, weight, bias, eps, axis, out, mask, residual, activation
    )
    return y, mean, rstd


def group_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    num_groups: int,
    weight: ArrayLike | None = None,
    *,
    axis: int = 1,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    residual: ArrayLike | None = None,
    dresidual: Array | None = None,
) -> Gradients:
    """Gradients of group normalization.

    With x_hat = (x - mean) * rstd and means over each group of each sample:

    dx = rstd * (dy * weight - mean(dy * weight) - x_hat * mean(dy * weight * x_hat)),
    dbias = sum(dy), dweight = sum(dy * x_hat), for each channel over all samples.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y; shape and dtype of x.
    x : array_like
        Input of the forward.
    mean, rstd : array_like
        (N, num_groups), from `group_norm_forward`.
    num_groups, weight, axis, mask
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
        As in `group_norm`, also for dy that has not x's shape and dtype.

    References
    ----------
    Y. Wu and K. He, "Group normalization", ECCV 2018.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> y, mean, rstd = nc.functional.group_norm_forward(x, 2)
    >>> nc.functional.group_norm_backward(y, x, mean, rstd, 2).dbias.round(3)
    array([-1.,  1., -1.,  1.])
    """
    found = group_passes.backward(
        *(dy, x, mean, rstd, num_groups, weight, axis, out, mask),
        *(bias, activation, residual, dresidual),
    )
    return Gradients(*found)


def group_norm_activation_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    num_groups: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    activation: str | None,
    residual: ArrayLike | None = None,
    axis: int = 1,
    out: Array | None = None,
) -> Array:
    """The gradient before the activation of group normalization, which is that of residual.

    g = dy * activation'(z), z = (x - mean) * rstd * weight + bias + residual, which is computed
    anew.

    Parameters
    ----------
    dy, x, mean, rstd, num_groups, weight, axis
        As in `group_norm_backward`.
    bias, residual
        As in the forward.
    activation : str or None
        That of the forward. At a kink the slope is the smaller one, as in PyTorch.
    out : ndarray, optional
        Receives g. May be dy.

    Returns
    -------
    g : ndarray
        Shape and dtype of x. Pass it on to `group_norm_backward` as dy.

    Raises
    ------
    TypeError, ValueError
        As in `group_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> y, mean, rstd = nc.functional.group_norm_forward(x, 2, activation="relu")
    >>> nc.functional.group_norm_activation_backward(
    ...     np.full_like(x, 5), x, mean, rstd, 2, activation="relu"
    ... )
    array([[0., 5., 0., 5.]])
    """
    return group_passes.before_activation(
        *(dy, x, mean, rstd, num_groups, weight, bias, axis), *(out, residual, activation)
    )
