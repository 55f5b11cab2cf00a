"""Batch renormalization without state; `normcore.functional` says what all of these share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import backend, check
from ..view import flat
from .batch import batch_norm
from .batch_backward import batch_norm_backward, parameter_dtype
from .gradients import Gradients
from .training import checked, update

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


class Renormalized(NamedTuple):
    """What `batch_renorm_forward` returns."""

    y: Array
    """Shape, dtype and memory layout of x."""
    mean: Array
    """(C,), float64: mean of the batch."""
    rstd: Array
    """(C,), float64: 1 / sqrt(var + eps) of the batch."""
    r: Array
    """(C,), float64: the factor in use."""
    d: Array
    """(C,), float64: the shift in use."""


def batch_renorm(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    training: bool = False,
    r_max: float = 3.0,
    d_max: float = 5.0,
    momentum: float = 0.01,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> Array:
    """Batch renormalization: in training as `batch_renorm_forward`, else as `batch_norm`.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory layout of x.

    Raises
    ------
    TypeError, ValueError
        As in `batch_renorm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> nc.functional.batch_renorm(x, np.array([2.0, 20.0]), np.array([1.0, 100.0])).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    if not training:
        limit("r_max", r_max, 1.0)
        limit("d_max", d_max, 0.0)
        return batch_norm(
            *(x, running_mean, running_var, weight, bias, False, momentum, eps),
            axis=axis,
            out=out,
            mask=mask,
            residual=residual,
            activation=activation,
        )
    return train_renorm(
        *(x, weight, bias, running_mean, running_var, None, r_max, d_max, momentum, eps, axis),
        *(out, False, mask, residual, activation, True),
    ).y


def batch_renorm_forward(
    x: ArrayLike,
    running_mean: Array,
    running_var: Array,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    r_max: float = 3.0,
    d_max: float = 5.0,
    momentum: float = 0.01,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    out: Array | None = None,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> Renormalized:
    """Batch renormalization in training: the batch's statistics, corrected by the running ones.

    With the mean and sigma = sqrt(var + eps) of the batch, and those of the running statistics as
    they are before the call:

    r = clip(sigma / sigma_running, 1 / r_max, r_max),
    d = clip((mean - mean_running) / sigma_running, -d_max, d_max),
    y = activation(((x - mean) / sigma * r + d) * weight + bias + residual).

    Within the clips y is what evaluation would give, so that training and evaluation do not
    disagree where batches are small or not alike. Only then the running statistics are updated.

    Parameters
    ----------
    x : array_like
        Two or more axes; float32, float64, float16 or bfloat16 (of ml_dtypes).
    running_mean, running_var : ndarray
        (C,), read first, then updated in place as in `batch_norm`.
    weight, bias : array_like, optional
        (C,), float32 or float64; 1 and 0 if None.
    r_max : float, optional
        At least 1. With r_max = 1 and d_max = 0 this is batch normalization, to the bit.
    d_max : float, optional
        At least 0.
    momentum, eps, axis, out, mask, residual, activation
        As in `batch_norm`. Where mask keeps nothing, y is bias, r is 1 and d is 0.

    Returns
    -------
    Renormalized
        ``(y, mean, rstd, r, d)``. For an empty batch, mean and rstd are NaN, r is 1 and d is 0.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm`, and for limits that are not as above.

    References
    ----------
    S. Ioffe, "Batch renormalization: towards reducing minibatch dependence in batch-normalized
    models", NeurIPS 2017.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0], [3.0]])
    >>> running_mean, running_var = np.array([1.0]), np.array([4.0])
    >>> y, mean, rstd, r, d = nc.functional.batch_renorm_forward(x, running_mean, running_var)
    >>> y.round(3).ravel(), r.round(3), d.round(3)
    (array([0., 1.]), array([0.5]), array([0.5]))
    >>> running_mean, running_var
    (array([1.01]), array([3.98]))
    """
    return train_renorm(
        *(x, weight, bias, running_mean, running_var, None, r_max, d_max, momentum, eps, axis),
        *(out, False, mask, residual, activation, True),
    )


def train_renorm(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    num_batches_tracked: Array | None,
    r_max: float,
    d_max: float,
    momentum: float,
    eps: float,
    axis: int,
    out: Array | None,
    skip_nonfinite: bool,
    mask: Any,
    residual: Any,
    activation: str | None,
    updates: bool,
) -> Renormalized:
    """The training forward of functions and layers; `updates` the running statistics or not."""
    r_max, d_max = limit("r_max", r_max, 1.0), limit("d_max", d_max, 0.0)
    momentum = check.momentum(momentum)
    for name, values in (("running_mean", running_mean), ("running_var", running_var)):
        if values is None:
            raise ValueError(f"{name}: expected running statistics to correct by, got None")
    x, view, y, weight, bias, residual, mask, kept, eps, number = checked(
        *(x, weight, bias, running_mean, running_var, eps, axis, out, mask, residual, activation)
    )
    channels = (view.channels,)
    r, d = np.ones(channels), np.zeros(channels)
    if not x.size:
        nothing = np.full(channels, np.nan)
        return Renormalized(check.deliver(y, out), nothing, nothing.copy(), r, d)
    mean, var, rstd = np.empty(channels), np.empty(channels), np.empty(channels)
    chosen = backend.current()
    chosen.channels[view.family].renorm(
        flat(y, view),
        mean,
        var,
        rstd,
        r,
        d,
        flat(x, view),
        residual,
        mask,
        check.statistic("running_mean", running_mean, channels),
        check.statistic("running_var", running_var, channels),
        r_max,
        d_max,
        weight,
        bias,
        eps,
        number,
        *view.sizes,
        backend.threads(x.size),
    )
    if updates:
        update(
            *(chosen, running_mean, running_var, num_batches_tracked, mean, var, momentum, kept),
            skip_nonfinite,
        )
    return Renormalized(check.deliver(y, out), mean, rstd, r, d)


def limit(name: str, value: Any, least: float) -> float:
    """A limit of the correction, which may be infinite."""
    number = check.number(name, value)
    if not number >= least:
        raise ValueError(f"{name}: expected a number of at least {least:g}, got {value!r}")
    return number


def batch_renorm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    r: ArrayLike,
    d: ArrayLike,
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
    """Gradients of batch renormalization, in which r and d are constants.

    dx is that of batch normalization with weight * r. With x_hat = (x - mean) * rstd * r + d:
    dbias = sum(dy), dweight = sum(dy * x_hat). Where mask is 0, dy counts as 0 and dx is 0.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y; shape and dtype of x.
    x : array_like
        Input of the forward.
    mean, rstd, r, d : array_like
        (C,), from `batch_renorm_forward`.
    weight, axis, out, mask, bias, activation, residual, dresidual
        As in `batch_norm_backward`.

    Returns
    -------
    Gradients
        ``(dx, dweight, dbias)``, as in `batch_norm_backward`.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0], [3.0], [8.0]])
    >>> y, *saved = nc.functional.batch_renorm_forward(x, np.zeros(1), np.ones(1))
    >>> dx, dweight, dbias = nc.functional.batch_renorm_backward(y**2, x, *saved)
    >>> bool(abs(dx.sum()) < 1e-10), bool(np.allclose(dweight, np.sum(y**3)))
    (True, True)
    """
    x = check.array("x", x)
    channels = (x.shape[check.channel_axis(axis, x)],)
    weight = check.parameter("weight", weight, channels)
    dtype = parameter_dtype(x, weight)
    r, d = check.saved("r", r, channels), check.saved("d", d, channels)
    scale, shift = renorm_affine(r, d, weight, check.parameter("bias", bias, channels))
    dx, dweight, dbias = batch_norm_backward(
        *(dy, x, mean, rstd, scale),
        axis=axis,
        out=out,
        mask=mask,
        bias=shift,
        activation=activation,
        residual=residual,
        dresidual=dresidual,
    )
    with np.errstate(all="ignore"):
        return Gradients(dx, (r * dweight + d * dbias).astype(dtype), dbias.astype(dtype))


def renorm_affine(
    r: ArrayLike, d: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None
) -> tuple[Array, Array]:
    """The weight and bias of the batch normalization that is this batch renormalization.

    Parameters
    ----------
    r, d : array_like
        (C,), from `batch_renorm_forward`.
    weight, bias : array_like, optional
        (C,), those of the batch renormalization.

    Returns
    -------
    scale, shift : ndarray
        (C,), float64: weight * r and weight * d + bias.

    Examples
    --------
    >>> import normcore as nc
    >>> nc.functional.renorm_affine([0.5], [2.0], [3.0], [1.0])
    (array([1.5]), array([7.]))
    """
    shape = np.shape(r)
    scale, shift = check.saved("r", r, shape), check.saved("d", d, shape)
    if weight is not None:
        wide = check.saved("weight", weight, shape)
        scale, shift = scale * wide, shift * wide
    return scale, shift if bias is None else shift + check.saved("bias", bias, shape)
