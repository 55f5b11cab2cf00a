"""Batch normalization without state; `normcore.functional` says what all of these share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend, check, reference
from ..view import batch, conform, flat
from .gradients import Gradients

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
) -> Array:
    """Normalize each channel of x, by its running statistics or (in training) by its own.

    y = (x - mean) / sqrt(var + eps) * weight + bias

    Parameters
    ----------
    x : array_like
        Two or more axes; float32 or float64.
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
        Receives y and is returned. Shape and dtype of x. May be x.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory layout of x. Empty where x is; nothing is updated then.

    Raises
    ------
    TypeError
        For a dtype other than float32 and float64, and for what is no array or number.
    ValueError
        For wrong shapes, for ``out`` that overlaps an input, for evaluation without running
        statistics, and for training on one value per channel. An error leaves every array as it
        was.

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
    if training:
        return train(
            x, weight, bias, running_mean, running_var, None, momentum, eps, axis, out, False
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
    y = check.destination(out, x, view, x, mean, var, weight, bias)
    size = x.size
    if size:
        family, (a, b, c), order, _, _ = view
        backend.current().channels[family].apply(
            y if order is None else flat(y, view),
            x if order is None else flat(x, view),
            None,
            mean,
            var,
            weight,
            bias,
            eps,
            0,
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
) -> tuple[Array, Array, Array]:
    """Batch normalization in training, with the statistics that its backward needs.

    y = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(var + eps), with the mean and the
    population variance of each channel of the batch.

    Parameters
    ----------
    x : array_like
        Two or more axes; float32 or float64.
    weight, bias : array_like, optional
        (C,), float32 or float64; 1 and 0 if None.
    running_mean, running_var : ndarray, optional
        (C,), updated in place if given, as in `batch_norm`.
    momentum, eps, axis, out
        As in `batch_norm`.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory layout of x.
    mean, rstd : ndarray
        (C,), float64; NaN for an empty batch, which has none.

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
    return train(x, weight, bias, running_mean, running_var, None, momentum, eps, axis, out, False)


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
) -> tuple[Array, Array, Array]:
    """The training forward of functions and layers: (y, mean, rstd)."""
    x = check.array("x", x)
    axis = check.channel_axis(axis, x)
    eps = check.eps(eps)
    momentum = check.momentum(momentum)
    given = x.shape
    x, view = batch(x, axis)
    channels = (view.channels,)
    size = x.size
    if size and view.count == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {given}"
        )
    weight = check.parameter("weight", weight, channels)
    bias = check.parameter("bias", bias, channels)
    if (running_mean is None) is not (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(f"{missing}: expected both running statistics or neither, got None")
    if running_mean is not None:
        running_mean = check.running("running_mean", running_mean, channels)
        running_var = check.running("running_var", running_var, channels)
    y = check.destination(out, x, view, x, weight, bias, running_mean, running_var)
    if not size:
        return check.deliver(y, out), np.full(channels, np.nan), np.full(channels, np.nan)
    mean, var, rstd = np.empty(channels), np.empty(channels), np.empty(channels)
    chosen = backend.current()
    chosen.channels[view.family].forward(
        flat(y, view),
        mean,
        var,
        rstd,
        flat(x, view),
        None,
        None,
        weight,
        bias,
        eps,
        0,
        *view.sizes,
        backend.threads(size),
    )
    if running_mean is not None:
        # The compiled update takes no strided or byte-swapped buffers; NumPy's takes any.
        plain = check.is_plain(running_mean) and check.is_plain(running_var)
        update = chosen.running.update if plain else reference.update
        update(
            running_mean,
            running_var,
            num_batches_tracked,
            mean,
            var,
            momentum,
            view.count,
            skip_nonfinite,
        )
    return check.deliver(y, out), mean, rstd


def batch_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    training: bool = True,
    axis: int = 1,
    out: Array | None = None,
) -> Gradients:
    """Gradients of batch normalization.

    With x_hat = (x - mean) * rstd and sums and means over each channel:

    dbias = sum(dy), dweight = sum(dy * x_hat),
    dx = weight * rstd * (dy - mean(dy) - x_hat * mean(dy * x_hat)) in training,
    dx = weight * rstd * dy in evaluation, where the statistics are constants.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y; shape and dtype of x.
    x : array_like
        Input of the forward.
    mean, rstd : array_like
        (C,), from `batch_norm_forward`; for an evaluation forward, the running mean and
        1 / sqrt(running_var + eps).
    weight : array_like, optional
        (C,), as in the forward.
    training : bool, optional
        Did the forward normalize by the statistics of the batch?
    axis : int, optional
        The channel axis.
    out : ndarray, optional
        Receives dx. May be dy or x.

    Returns
    -------
    Gradients
        ``(dx, dweight, dbias)``. dweight and dbias have the dtype of weight, or of x if weight is
        None.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm`, also for dy that has not x's shape and dtype.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 20.0]])
    >>> y, mean, rstd = nc.functional.batch_norm_forward(x)
    >>> dx, dweight, dbias = nc.functional.batch_norm_backward(y**2, x, mean, rstd)
    >>> bool(abs(dx.sum(0)).max() < 1e-12), dbias.round(4)
    (True, array([3., 3.]))
    """
    x = check.array("x", x)
    axis = check.channel_axis(axis, x)
    dy = check.same("dy", dy, x)
    x, view = batch(x, axis)
    dy = conform(dy, view)
    channels = (view.channels,)
    mean = check.saved("mean", mean, channels)
    rstd = check.saved("rstd", rstd, channels)
    weight = check.parameter("weight", weight, channels)
    dx = check.destination(out, x, view, x, dy, mean, rstd, weight)
    dtype = x.dtype if weight is None else weight.dtype
    size = x.size
    if not size:
        return Gradients(
            check.deliver(dx, out), np.zeros(channels, dtype), np.zeros(channels, dtype)
        )
    dweight, dbias = np.empty(channels, dtype), np.empty(channels, dtype)
    backend.current().channels[view.family].backward(
        flat(dx, view),
        dweight,
        dbias,
        flat(dy, view),
        flat(x, view),
        None,
        mean,
        rstd,
        weight,
        bool(training),
        *view.sizes,
        backend.threads(size),
    )
    return Gradients(check.deliver(dx, out), dweight, dbias)
