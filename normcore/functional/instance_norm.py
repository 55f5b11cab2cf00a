"""Instance normalization without state; `normcore.functional` says what all of these share."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend, check
from . import group_passes
from .batch import batch_norm
from .gradients import Gradients
from .group_passes import GroupInput
from .training import update

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def instance_norm(
    x: ArrayLike,
    running_mean: ArrayLike | None = None,
    running_var: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> Array:
    """Normalize each channel of each sample of x, or each channel by its running statistics.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual),

    with the mean and the population variance of each sample and channel.

    Parameters
    ----------
    x : array_like
        Samples along axis 0, channels along `axis`; float32, float64, float16 or bfloat16.
    running_mean, running_var : array_like or None
        (C,), float32 or float64. With `use_input_stats` they are updated in place (then they must
        be writeable NumPy arrays) unless they are None:
        ``running = (1 - momentum) * running + momentum * new``, where new is the mean over the
        samples of their means and of their unbiased variances; samples of which a mask keeps less
        than two positions are left out. Without `use_input_stats` x is normalized by them, as
        `batch_norm` does in evaluation.
    weight, bias : array_like, optional
        (C,), float32 or float64, whatever x is; 1 and 0 if None.
    use_input_stats : bool, optional
        Normalize by the statistics of x.
    momentum : float, optional
        Weight of the new statistics in the running ones, from 0 to 1.
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
        For wrong shapes and axes, for an unknown activation, for ``out`` that overlaps an input,
        for one spatial element with `use_input_stats`, and for no running statistics without. An
        error leaves every array as it was.

    References
    ----------
    D. Ulyanov, A. Vedaldi and V. Lempitsky, "Instance normalization", 2016; PyTorch's
    ``torch.nn.functional.instance_norm``, whose defaults these are.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    >>> running_mean, running_var = np.zeros(2), np.ones(2)
    >>> nc.functional.instance_norm(x, running_mean, running_var).round(3)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    >>> running_mean, running_var
    (array([0.2, 2. ]), array([ 1.1, 20.9]))
    """
    if not use_input_stats:
        return batch_norm(
            *(x, running_mean, running_var, weight, bias, False, 0.0, eps),
            axis=axis,
            out=out,
            mask=mask,
            residual=residual,
            activation=activation,
        )
    if mask is None and running_mean is None and running_var is None and _is_plain(momentum):
        done = backend.current().calls.group_apply(
            x, None, weight, bias, eps, axis, out, residual, activation
        )
        if done is not None:
            return done
    return train(
        *(x, weight, bias, running_mean, running_var, None, momentum, eps, axis, out, False),
        *(mask, residual, activation),
    )[0]


def instance_norm_forward(
    x: ArrayLike,
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
    """Instance normalization with the statistics that its backward needs.

    y = activation((x - mean) * rstd * weight + bias + residual), rstd = 1 / sqrt(var + eps).

    Parameters
    ----------
    x, weight, bias, eps, axis, out, mask, residual, activation
        As in `instance_norm`.

    Returns
    -------
    y : ndarray
        As from `instance_norm`.
    mean, rstd : ndarray
        (N, C), float64; 0 where a mask keeps nothing, NaN where x is empty.

    Raises
    ------
    TypeError, ValueError
        As in `instance_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> y, mean, rstd = nc.functional.instance_norm_forward(np.array([[[1.0, 3.0], [10.0, 30.0]]]))
    >>> mean, rstd.round(3)
    (array([[ 2., 20.]]), array([[1. , 0.1]]))
    """
    return train(
        *(x, weight, bias, None, None, None, 0.0, eps, axis, out, False),
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
    mask: Any,
    residual: Any,
    activation: str | None,
) -> tuple[Array, Array, Array]:
    """The forward by x's own statistics, of functions and layers: (y, mean, rstd)."""
    if mask is None and running_mean is None and running_var is None and _is_plain(momentum):
        done = backend.current().calls.group_forward(
            x, None, weight, bias, eps, axis, out, residual, activation
        )
        if done is not None:
            return done
    given = group_passes.prepare(x, axis, mask)
    shape = given.x.shape
    if given.x.size and prod(given.view.positions[1:]) == 1:
        raise ValueError(
            f"Expected more than 1 spatial element when training, got input size {shape}"
        )
    momentum = check.momentum(momentum)
    channels = (given.view.channels,)
    if (running_mean is None) is not (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(f"{missing}: expected both running statistics or neither, got None")
    if running_mean is not None:
        running_mean = check.running("running_mean", running_mean, channels)
        running_var = check.running("running_var", running_var, channels)
    y, mean, var, rstd = group_passes.run_forward(
        given, None, weight, bias, eps, out, residual, activation, running_mean, running_var
    )
    if running_mean is not None and given.x.size:
        counts = _counts(given)
        enough = counts > 1
        if enough.any():
            counts = counts[enough, None]
            with np.errstate(all="ignore"):
                unbiased = (var[enough] * (counts / (counts - 1))).mean(0)
            # `update` makes the variance of so many values unbiased: that of 2 by doubling it.
            update(
                backend.current(),
                running_mean,
                running_var,
                num_batches_tracked,
                mean[enough].mean(0),
                unbiased / 2,
                momentum,
                2,
                skip_nonfinite,
            )
    return y, mean, rstd


def _is_plain(momentum: Any) -> bool:
    return type(momentum) is float and 0.0 <= momentum <= 1.0


def _counts(given: GroupInput) -> Array:
    """The number of elements of a channel that count, for each sample."""
    samples, *inner = given.view.positions
    if given.mask is None:
        return np.full(samples, prod(inner))
    counts: Array = np.count_nonzero(given.mask.reshape(samples, -1), axis=1)
    return counts


def instance_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
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
    """Gradients of instance normalization by the statistics of x.

    With x_hat = (x - mean) * rstd and means over each channel of each sample:

    dx = weight * rstd * (dy - mean(dy) - x_hat * mean(dy * x_hat)),
    dbias = sum(dy), dweight = sum(dy * x_hat), for each channel over all samples.

    For a forward by running statistics, see `batch_norm_backward` with ``training=False``.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y; shape and dtype of x.
    x : array_like
        Input of the forward.
    mean, rstd : array_like
        (N, C), from `instance_norm_forward`.
    weight, axis, mask
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
        As in `instance_norm`, also for dy that has not x's shape and dtype.

    References
    ----------
    D. Ulyanov, A. Vedaldi and V. Lempitsky, "Instance normalization", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    >>> y, mean, rstd = nc.functional.instance_norm_forward(x)
    >>> nc.functional.instance_norm_backward(y, x, mean, rstd).dweight.round(3)
    array([2., 2.])
    """
    found = group_passes.backward(
        *(dy, x, mean, rstd, None, weight, axis, out, mask),
        *(bias, activation, residual, dresidual),
    )
    return Gradients(*found)


def instance_norm_activation_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    activation: str | None,
    residual: ArrayLike | None = None,
    axis: int = 1,
    out: Array | None = None,
) -> Array:
    """The gradient before the activation of instance normalization, which is that of residual.

    g = dy * activation'(z), z = (x - mean) * rstd * weight + bias + residual, which is computed
    anew.

    Parameters
    ----------
    dy, x, mean, rstd, weight, axis
        As in `instance_norm_backward`.
    bias, residual
        As in the forward.
    activation : str or None
        That of the forward. At a kink the slope is the smaller one, as in PyTorch.
    out : ndarray, optional
        Receives g. May be dy.

    Returns
    -------
    g : ndarray
        Shape and dtype of x. Pass it on to `instance_norm_backward` as dy.

    Raises
    ------
    TypeError, ValueError
        As in `instance_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    >>> y, mean, rstd = nc.functional.instance_norm_forward(x, activation="relu")
    >>> nc.functional.instance_norm_activation_backward(
    ...     np.full_like(x, 5), x, mean, rstd, activation="relu"
    ... )
    array([[[0., 5.],
            [0., 5.]]])
    """
    return group_passes.before_activation(
        *(dy, x, mean, rstd, None, weight, bias, axis, out, residual, activation)
    )
