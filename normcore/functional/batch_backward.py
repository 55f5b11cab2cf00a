"""The backward of batch normalization: its gradients, and that of a fused activation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backend, check, masks
from ..view import batch, conform, empty, flat
from .gradients import Gradients
from .through import activated

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


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
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    residual: ArrayLike | None = None,
    dresidual: Array | None = None,
) -> Gradients:
    """Gradients of batch normalization.

    With x_hat = (x - mean) * rstd and sums and means over each channel:

    dbias = sum(dy), dweight = sum(dy * x_hat),
    dx = weight * rstd * (dy - mean(dy) - x_hat * mean(dy * x_hat)) in training,
    dx = weight * rstd * dy in evaluation, where the statistics are constants.

    Where mask is 0, dy counts as 0 and dx is 0; the means are over what is kept.

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
    mask : array_like, optional
        As in the forward.
    bias, activation, residual
        Those of a forward with an activation: dy is then the gradient behind it, and the gradient
        before it is computed on the way, and not rounded.
    dresidual : ndarray, optional
        Receives the gradient before the activation, which is that of residual; 0 where mask is.
        Shape and dtype of x, memory of its own.

    Returns
    -------
    Gradients
        ``(dx, dweight, dbias)``. dweight and dbias have the dtype of weight; if weight is None,
        float64 for float64 x, else float32.

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
    found = backward(
        *(dy, x, mean, rstd, weight, training, axis, out, mask),
        *(bias, activation, residual, dresidual),
    )
    return Gradients(*found)


def backward(
    dy: Any,
    x: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    training: bool,
    axis: int,
    out: Array | None,
    mask: Any,
    bias: Any = None,
    activation: str | None = None,
    residual: Any = None,
    dresidual: Any = None,
) -> tuple[Array, Array, Array]:
    """(dx, dweight, dbias)."""
    if mask is None and activation is None and residual is None and dresidual is None:
        done = backend.current().calls.batch_backward(
            dy, x, mean, rstd, weight, bias, training, axis, out
        )
        if done is not None:
            return done
    x = check.array("x", x)
    axis = check.channel_axis(axis, x)
    dy = check.same("dy", dy, x)
    x, view = batch(x, axis)
    dy = conform(dy, view)
    channels = (view.channels,)
    mean = check.saved("mean", mean, channels)
    rstd = check.saved("rstd", rstd, channels)
    weight = check.parameter("weight", weight, channels)
    kept = None if mask is None else masks.batch(mask, x.shape, axis, view)
    bias = check.parameter("bias", bias, channels)
    dx = check.destination(out, x, view, x, dy, mean, rstd, weight, bias, kept)
    target = dx if out is None else out
    fused = activated(
        x, view, target, bias, activation, residual, dresidual, dy, mean, rstd, weight, kept
    )
    dtype = parameter_dtype(x, weight)
    size = x.size
    if not size:
        return check.deliver(dx, out), np.zeros(channels, dtype), np.zeros(channels, dtype)
    dweight, dbias = np.empty(channels, dtype), np.empty(channels, dtype)
    passes = backend.current().channels[view.family]
    gradients = flat(dx, view), dweight, dbias
    sizes = *view.sizes, backend.threads(size)
    if fused is None:
        passes.backward(
            *gradients,
            flat(dy, view),
            flat(x, view),
            kept,
            mean,
            rstd,
            weight,
            bool(training),
            *sizes,
        )
    else:
        passes.activation_backward(
            *gradients,
            fused.g,
            flat(dy, view),
            flat(x, view),
            fused.residual,
            kept,
            mean,
            rstd,
            weight,
            fused.bias,
            fused.activation,
            bool(training),
            *sizes,
        )
        fused.deliver(dresidual, view)
    return check.deliver(dx, out), dweight, dbias


def parameter_dtype(x: Array, weight: Array | None) -> np.dtype[Any]:
    """The dtype of dweight and dbias: halves store arrays, not sums over them."""
    wide = (x if weight is None else weight).dtype.type is np.float64
    return check.FLOAT64 if wide else check.FLOAT32


def batch_norm_activation_backward(
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
    """Gradient before the activation that was fused into a batch normalization.

    g = dy * activation'(z), z = (x - mean) * rstd * weight + bias + residual, which is computed
    anew. g is the gradient of residual, and what `batch_norm_backward` takes as dy.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y; shape and dtype of x.
    x, mean, rstd, weight, bias, residual, axis
        As in the forward, with the statistics that it returned; for an evaluation forward, the
        running mean and 1 / sqrt(running_var + eps).
    activation : str or None
        That of the forward. The slope of the kinks of relu, relu6 and leaky_relu is the one on
        the side of the constant (leaky_relu: of the smaller slope), as in PyTorch.
    out : ndarray, optional
        Receives g. May be dy.

    Returns
    -------
    g : ndarray
        Shape, dtype and memory layout of x.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 20.0]])
    >>> y, mean, rstd = nc.functional.batch_norm_forward(x, activation="relu")
    >>> g = nc.functional.batch_norm_activation_backward(
    ...     np.ones_like(x), x, mean, rstd, activation="relu"
    ... )
    >>> g.astype(int)
    array([[0, 0],
           [0, 1],
           [1, 0]])
    >>> dx, dweight, dbias = nc.functional.batch_norm_backward(g, x, mean, rstd)
    """
    x = check.array("x", x)
    axis = check.channel_axis(axis, x)
    dy = check.same("dy", dy, x)
    number = check.activation(activation)
    x, view = batch(x, axis)
    dy = conform(dy, view)
    channels = (view.channels,)
    mean = check.saved("mean", mean, channels)
    rstd = check.saved("rstd", rstd, channels)
    weight = check.parameter("weight", weight, channels)
    bias = check.parameter("bias", bias, channels)
    if residual is not None:
        residual = conform(check.same("residual", residual, x), view)
    g = check.destination(out, x, view, x, dy, mean, rstd, weight, bias, residual)
    if g is out and any(
        read is not None and np.may_share_memory(g, read) for read in (x, residual)
    ):
        # Kernels may write g over dy, and over nothing else.
        g = empty(x.shape, x.dtype, view)
    if x.size:
        backend.current().channels[view.family].activation_grads(
            flat(g, view),
            flat(dy, view),
            flat(x, view),
            None if residual is None else flat(residual, view),
            mean,
            rstd,
            weight,
            bias,
            number,
            *view.sizes,
            backend.threads(x.size),
        )
    return check.deliver(g, out)
