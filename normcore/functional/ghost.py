"""Ghost batch normalization without state: each chunk of a batch by statistics of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import check, masks
from ..axes import group_axis
from ..reference import assign
from ..view import batch
from .batch import train
from .batch_backward import batch_norm_activation_backward, batch_norm_backward, parameter_dtype
from .gradients import Gradients
from .through import activated
from .training import checked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]


def chunks(samples: int, values: int, size: int) -> list[slice]:
    """Which samples are normalized together; each has `values` values per channel.

    What is left is a smaller chunk, or part of the one before if it has one value per channel.

    Examples
    --------
    >>> chunks(5, 9, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    >>> chunks(5, 1, 2)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    ends = [*range(size, samples, size), samples]
    if len(ends) > 1 and (samples - ends[-2]) * values == 1:
        del ends[-2]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _chunks_of(x: Array, axis: int, size: Any) -> list[slice]:
    size = check.size("virtual_batch_size", size)
    samples = x.shape[0]
    values = x.size // max(1, samples * x.shape[axis])
    return chunks(samples, values, size)


def ghost_batch_norm_forward(
    x: ArrayLike,
    virtual_batch_size: int,
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
    """Batch normalization in training of `virtual_batch_size` samples at a time.

    The same as `batch_norm_forward` of one chunk after the other, the running statistics included.
    Chunks are views of x. The last one is smaller if it must; one that would have a single value
    per channel joins the one before.

    Parameters
    ----------
    x : array_like
        Samples along axis 0; float32, float64, float16 or bfloat16.
    virtual_batch_size : int
        Samples of a chunk, at least 1.
    weight, bias, running_mean, running_var, momentum, eps, out, mask, residual, activation
        As in `batch_norm_forward`.
    axis : int, optional
        The channel axis, which is not that of the samples.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory layout of x.
    mean, rstd : ndarray
        (chunks, C), float64.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm_forward`, for each chunk, before anything is written.

    References
    ----------
    E. Hoffer, I. Hubara and D. Soudry, "Train longer, generalize better: closing the
    generalization gap in large batch training of neural networks", NeurIPS 2017.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0], [3.0], [10.0], [30.0]])
    >>> y, mean, rstd = nc.functional.ghost_batch_norm_forward(x, 2)
    >>> y.ravel().round(3), mean.ravel()
    (array([-1.,  1., -1.,  1.]), array([ 2., 20.]))
    """
    return train_chunks(
        *(x, virtual_batch_size, weight, bias, running_mean, running_var, None),
        check.momentum(momentum),
        *(eps, axis, out, False, mask, residual, activation),
    )


def train_chunks(
    x: Any,
    size: int,
    weight: Any,
    bias: Any,
    running_mean: Array | None,
    running_var: Array | None,
    num_batches_tracked: Array | None,
    momentum: float | None,
    eps: float,
    axis: int,
    out: Array | None,
    skip_nonfinite: bool,
    mask: Any,
    residual: Any,
    activation: str | None,
) -> tuple[Array, Array, Array]:
    """The forward of functions and layers; momentum None is the plain average over all chunks."""
    x = check.array("x", x)
    axis = group_axis(axis, x)
    parts = _chunks_of(x, axis, size)
    kept = None if mask is None else masks.positions(mask, x.shape, axis)
    given = x.shape
    # All is checked here, so that no later chunk can fail when an earlier one has been written.
    x, view, y, weight, bias, *_ = checked(
        *(x, weight, bias, running_mean, running_var, eps, axis, out, mask, residual, activation)
    )
    for part in parts:
        count = x[part].size // max(1, view.channels)
        if kept is not None:
            count = int(np.count_nonzero(kept[part]))
        if x.size and count == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {given} "
                f"with 1 value in samples {part.start} to {part.stop - 1}"
            )
    if residual is not None:
        residual = check.same("residual", residual, x)
    own = (running_mean, running_var, num_batches_tracked)
    # Copies, so that Ctrl-C between two chunks leaves the running statistics as they were.
    blended_mean, blended_var, counted = (
        None if values is None else values.copy() for values in own
    )
    mean, rstd = np.empty((2, len(parts), view.channels))
    for i, part in enumerate(parts):
        blend = 0.0 if momentum is None else momentum
        if momentum is None and counted is not None:
            blend = 1 / (int(counted) + 1)
        _, mean[i], rstd[i] = train(
            x[part],
            weight,
            bias,
            blended_mean,
            blended_var,
            counted,
            blend,
            eps,
            axis,
            y[part],
            skip_nonfinite,
            None if kept is None else kept[part],
            None if residual is None else residual[part],
            activation,
        )
    targets = [values for values in own if values is not None]
    blended = (blended_mean, blended_var, counted)
    assign(targets, [values for values in blended if values is not None])
    return check.deliver(y, out), mean, rstd


def ghost_batch_norm_activation_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    virtual_batch_size: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    activation: str | None,
    residual: ArrayLike | None = None,
    axis: int = 1,
    out: Array | None = None,
) -> Array:
    """Gradient before the activation; as `batch_norm_activation_backward`, chunk by chunk.

    Parameters
    ----------
    dy, x, mean, rstd, virtual_batch_size, weight, bias, activation, residual, axis
        As in the forward, with the statistics that it returned.
    out : ndarray, optional
        Receives g. May be dy.

    Returns
    -------
    g : ndarray
        Shape, dtype and memory layout of x.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm_activation_backward`.
    """
    x = check.array("x", x)
    axis = group_axis(axis, x)
    dy = check.same("dy", dy, x)
    check.activation(activation)
    parts = _chunks_of(x, axis, virtual_batch_size)
    if residual is not None:
        residual = check.same("residual", residual, x)
    x, view = batch(x, axis)
    mean = check.saved("mean", mean, (len(parts), view.channels))
    rstd = check.saved("rstd", rstd, (len(parts), view.channels))
    weight = check.parameter("weight", weight, (view.channels,))
    bias = check.parameter("bias", bias, (view.channels,))
    g = check.destination(out, x, view, x, dy, mean, rstd, weight, bias, residual)
    for i, part in enumerate(parts):
        batch_norm_activation_backward(
            *(dy[part], x[part], mean[i], rstd[i], weight, bias),
            activation=activation,
            residual=None if residual is None else residual[part],
            axis=axis,
            out=g[part],
        )
    return check.deliver(g, out)


def ghost_batch_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    virtual_batch_size: int,
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
    """Gradients of ghost batch normalization: dx of each chunk, sums over all of them.

    Parameters
    ----------
    dy : array_like
        As in `batch_norm_backward`.
    x, virtual_batch_size, weight, axis, mask
        As in the forward.
    mean, rstd : array_like
        (chunks, C), from `ghost_batch_norm_forward`.
    out : ndarray, optional
        Receives dx. May be dy or x.
    bias, activation, residual, dresidual
        As in `batch_norm_backward`.

    Returns
    -------
    Gradients
        ``(dx, dweight, dbias)``, as in `batch_norm_backward`; summed in float64.

    Raises
    ------
    TypeError, ValueError
        As in `batch_norm_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> x = np.array([[1.0], [3.0], [10.0], [30.0]])
    >>> y, mean, rstd = nc.functional.ghost_batch_norm_forward(x, 2)
    >>> dy = np.arange(4.0)[:, None]
    >>> dx, dweight, dbias = nc.functional.ghost_batch_norm_backward(dy, x, mean, rstd, 2)
    >>> dweight.round(3), dbias
    (array([2.]), array([6.]))
    """
    x = check.array("x", x)
    axis = group_axis(axis, x)
    dy = check.same("dy", dy, x)
    parts = _chunks_of(x, axis, virtual_batch_size)
    kept = None if mask is None else masks.positions(mask, x.shape, axis)
    x, view = batch(x, axis)
    channels = (view.channels,)
    mean = check.saved("mean", mean, (len(parts), view.channels))
    rstd = check.saved("rstd", rstd, (len(parts), view.channels))
    weight = check.parameter("weight", weight, channels)
    bias = check.parameter("bias", bias, channels)
    dx = check.destination(out, x, view, x, dy, mean, rstd, weight, bias)
    # All is checked here, so that no later chunk can fail when an earlier one has been written.
    activated(
        *(x, view, dx if out is None else out, bias, activation, residual, dresidual),
        *(dy, mean, rstd, weight),
    )
    if residual is not None:
        residual = check.same("residual", residual, x)
    dtype = parameter_dtype(x, weight)
    # Partial sums have the dtype of weight.
    wide = np.ones(channels) if weight is None else weight.astype(np.float64)
    dweight, dbias = np.zeros((2, *channels))
    for i, part in enumerate(parts):
        found = batch_norm_backward(
            *(dy[part], x[part], mean[i], rstd[i], wide),
            axis=axis,
            out=dx[part],
            mask=None if kept is None else kept[part],
            bias=bias,
            activation=activation,
            residual=None if residual is None else residual[part],
            dresidual=None if dresidual is None else dresidual[part],
        )
        dweight += found.dweight
        dbias += found.dbias
    return Gradients(check.deliver(dx, out), dweight.astype(dtype), dbias.astype(dtype))
