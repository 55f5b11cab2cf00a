"""Batch normalization without state; `normcore.functional` says what all of these share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend, check, masks
from ..view import batch, conform, flat
from .training import checked, update

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def batch_norm(
    x: ArrayLike,
    running_mean: ArrayLike | None,
    running_var: ArrayLike | None,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> Array:
    """Normalize each channel of x, by its running statistics or (in training) by its own.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)

    Parameters
    ----------
    x : array_like
        Two or more axes; float32, float64, float16 or bfloat16 (of ml_dtypes).
    running_mean, running_var : array_like or None
        (C,), float32 or float64. Evaluation normalizes by them. Training normalizes by the mean
        and the population variance of the batch, and updates them in place (then they must be
        writeable NumPy arrays) unless they are None:
        ``running = (1 - momentum) * running + momentum * batch``, where the variance of the
        batch is the unbiased one.
    weight, bias : array_like, optional
        (C,), float32 or float64, whatever x is; 1 and 0 if None.
    training : bool, optional
        Use and update as above.
    momentum : float, optional
        Weight of the new batch in the running statistics, from 0 to 1.
    eps : float, optional
        Positive.
    axis : int, optional
        The channel axis: 1 for channels-first, -1 for channels-last.
    out : ndarray, optional
        Receives y and is returned. Shape and dtype of x. May be x, or residual.
    mask : array_like, optional
        Which positions count, as in padded sequences: booleans or integers, of x's shape without
        the channel axis, or broadcasting to it. The statistics of the batch are those of the
        positions kept. Every position of y is normalized. If nothing is kept, y is bias (then
        residual and activation) and nothing is updated. In evaluation a mask changes nothing.
    residual : array_like, optional
        Shape and dtype of x; added before the activation.
    activation : {None, "relu", "relu6", "leaky_relu", "silu", "gelu"}, optional
        leaky_relu has the slope 0.01; gelu is the exact one.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory layout of x. Empty where x is; nothing is updated then.

    Raises
    ------
    TypeError
        For a dtype other than float32 and float64, and for what is no array or number.
    ValueError
        For wrong shapes, for ``out`` that overlaps an input, for an unknown activation, for
        evaluation without running statistics, and for training on one value per channel (that
        mask keeps). An error leaves every array as it was.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015; PyTorch's
    ``torch.nn.functional.batch_norm``, whose defaults these are.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> nc.functional.batch_norm(x, np.array([2.0, 20.0]), np.array([1.0, 100.0])).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> running_mean, running_var = np.zeros(2), np.ones(2)
    >>> y = nc.functional.batch_norm(x, running_mean, running_var, training=True)
    >>> running_mean, running_var
    (array([0.2, 2. ]), array([ 1.1, 20.9]))
    """
    if mask is None:
        calls = backend.current().calls
        # No argument is unpacked from a tuple: that would add 0.1 us.
        if training:
            done = calls.batch_train(
                x,
                running_mean,
                running_var,
                weight,
                bias,
                momentum,
                eps,
                axis,
                out,
                residual,
                activation,
            )
        else:
            done = calls.batch_apply(
                x, running_mean, running_var, weight, bias, eps, axis, out, residual, activation
            )
        if done is not None:
            return done
    if training:
        return train(
            *(x, weight, bias, running_mean, running_var, None, momentum, eps, axis, out, False),
            *(mask, residual, activation),
        )[0]
    x = check.array("x", x)
    axis = check.channel_axis(axis, x)
    eps = check.eps(eps)
    x, view = batch(x, axis)
    channels = (view.channels,)
    mean = check.statistic("running_mean", running_mean, channels)
    var = check.statistic("running_var", running_var, channels)
    weight = check.parameter("weight", weight, channels)
    bias = check.parameter("bias", bias, channels)
    if mask is not None:
        masks.positions(mask, x.shape, axis)
    if residual is not None:
        residual = conform(check.same("residual", residual, x), view)
    number = 0 if activation is None else check.activation(activation)
    y = check.destination(out, x, view, x, mean, var, weight, bias, residual)
    size = x.size
    if size:
        family, (a, b, c), order, _, _ = view
        backend.current().channels[family].apply(
            y if order is None else flat(y, view),
            x if order is None else flat(x, view),
            residual if residual is None else flat(residual, view),
            mean,
            var,
            weight,
            bias,
            eps,
            number,
            a,
            b,
            c,
            backend.threads(size),
        )
    return y if out is None or y is out else check.deliver(y, out)


def batch_norm_forward(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    """Batch normalization in training, with the statistics that its backward needs.

    y = activation((x - mean) * rstd * weight + bias + residual), rstd = 1 / sqrt(var + eps), with
    the mean and the population variance of each channel of the batch.

    Parameters
    ----------
    x : array_like
        Two or more axes; float32, float64, float16 or bfloat16 (of ml_dtypes).
    weight, bias : array_like, optional
        (C,), float32 or float64; 1 and 0 if None.
    running_mean, running_var : ndarray, optional
        (C,), updated in place if given, as in `batch_norm`.
    momentum, eps, axis, out, mask, residual, activation
        As in `batch_norm`.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory layout of x.
    mean, rstd : ndarray
        (C,), float64; NaN for an empty batch, which has none; 0 where mask keeps nothing.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    >>> y, mean, rstd = nc.functional.batch_norm_forward(x)
    >>> y.round(3), mean, rstd.round(3)
    (array([[-1., -1.],
           [ 1.,  1.]], dtype=float32), array([ 2., 20.]), array([1. , 0.1]))
    """
    return train(
        *(x, weight, bias, running_mean, running_var, None, momentum, eps, axis, out, False),
        *(mask, residual, activation),
    )


def train(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    num_batches_tracked: Array | None,
    momentum: float,
    eps: float,
    axis: int,
    out: Array | None,
    skip_nonfinite: bool,
    mask: Any = None,
    residual: Any = None,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    """The training forward of functions and layers: (y, mean, rstd)."""
    if mask is None:
        done = backend.current().calls.batch_forward(
            *(x, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps),
            *(axis, out, skip_nonfinite, residual, activation),
        )
        if done is not None:
            return done
    momentum = check.momentum(momentum)
    x, view, y, weight, bias, residual, mask, kept, eps, number = checked(
        *(x, weight, bias, running_mean, running_var, eps, axis, out, mask, residual, activation)
    )
    channels = view.channels
    if not x.size:
        return check.deliver(y, out), np.full(channels, np.nan), np.full(channels, np.nan)
    mean, var, rstd = np.empty(channels), np.empty(channels), np.empty(channels)
    chosen = backend.current()
    chosen.channels[view.family].forward(
        flat(y, view),
        mean,
        var,
        rstd,
        flat(x, view),
        residual,
        mask,
        weight,
        bias,
        eps,
        number,
        *view.sizes,
        backend.threads(x.size),
    )
    if running_mean is not None:
        update(
            *(chosen, running_mean, running_var, num_batches_tracked, mean, var, momentum, kept),
            skip_nonfinite,
        )
    return check.deliver(y, out), mean, rstd
