"""Batch normalization by the textbook formulas, in NumPy and float64: the oracle.

Every compiled kernel is tested against this file, and the ``numpy`` backend runs on it. It is
written to be read: no blocking, no threads, no fused loops. Statistics follow the corrected
two-pass algorithm (Chan, Golub and LeVeque, 1983), so that an offset of the data costs no digits.

`batch_norm_forward` and `batch_norm_backward` are the formulas; `NCHW`, `NC` and `RUNNING` offer
them as the kernels of `normcore.kernels.table`, with the kernels' arguments.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Sequence
from itertools import repeat
from math import prod
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Axes = tuple[int, ...]


def total(values: Array, axes: Axes) -> Array:
    """Sum over `axes`, which are kept.

    NumPy adds pairwise only along contiguous memory; along any other axis its error grows with the
    square root of the length (float64, 65537 rows: 4e-15 of a variance, against 3e-16).
    """
    kept = tuple(axis for axis in range(values.ndim) if axis not in axes)
    rows = np.ascontiguousarray(values.transpose(*kept, *axes))
    rows = rows.reshape(*(values.shape[axis] for axis in kept), -1)
    return np.expand_dims(rows.sum(-1), axes)


def average(values: Array, axes: Axes) -> Array:
    """Mean over `axes`, which are kept."""
    mean: Array = total(values, axes) / prod(values.shape[axis] for axis in axes)
    return mean


class Moments(NamedTuple):
    """Statistics of one reduction, with the axes kept, and the deviations they came from."""

    mean: Array
    var: Array
    deviation: Array


def moments(x: Array, axes: Axes, dtype: Any = np.float64) -> Moments:
    """Mean, population variance and x - mean over `axes`.

    A rounded mean would leave its rounding error in every deviation; the mean of the deviations
    is that error, and is taken off again.
    """
    x = x.astype(dtype)
    mean = average(x, axes)
    deviation = x - mean
    correction = average(deviation, axes)
    deviation -= correction
    return Moments(mean + correction, average(deviation**2, axes), deviation)


def normalize(
    deviation: Array, var: Array, weight: Array | None, bias: Array | None, eps: float
) -> Array:
    """deviation / sqrt(var + eps) * weight + bias."""
    y = deviation / np.sqrt(var + eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y


def input_gradient(
    dy: Array, deviation: Array, rstd: Array, weight: Array | None, axes: Axes
) -> Array:
    """Gradient of normalization with batch statistics with respect to its input.

    dx = weight * rstd * (dy - mean(dy) - x_hat * mean(dy * x_hat)), x_hat = deviation * rstd.
    """
    x_hat = deviation * rstd
    centred = dy - average(dy, axes)
    dx: Array = rstd * (centred - x_hat * average(centred * x_hat, axes))
    return dx if weight is None else dx * weight


def batch_norm_forward(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    axes: Axes = (0,),
    dtype: Any = np.float64,
) -> tuple[Array, Moments]:
    """y and the statistics; weight and bias broadcast against x."""
    statistics = moments(x, axes, dtype)
    return normalize(statistics.deviation, statistics.var, weight, bias, eps), statistics


def batch_norm_backward(
    dy: Array,
    x: Array,
    weight: Array | None = None,
    eps: float = 1e-5,
    axes: Axes = (0,),
    dtype: Any = np.float64,
) -> tuple[Array, Array, Array]:
    """(dx, dweight, dbias) of `batch_norm_forward`; dweight and dbias keep the reduced axes."""
    statistics = moments(x, axes, dtype)
    rstd = 1 / np.sqrt(statistics.var + eps)
    dy = dy.astype(dtype)
    dx = input_gradient(dy, statistics.deviation, rstd, weight, axes)
    dweight = total(dy * statistics.deviation * rstd, axes)
    return dx, dweight, total(dy, axes)


class _Family:
    """The passes of one family. `cell` are the axes of a cell, `channel` those of a channel."""

    def __init__(self, cell: Axes, channel: Axes) -> None:
        self.cell = cell
        self.channel = channel

    def _parameter(self, values: Array | None) -> Array | None:
        # (c,) -> broadcastable: the channel axis of the view is the one that no cell covers
        # besides axis 0: (1, c, 1) or (1, 1, c).
        if values is None:
            return None
        return np.expand_dims(values.astype(np.float64), tuple({0, *self.cell}))

    def _statistic(self, values: Array, sizes: tuple[int, ...]) -> Array:
        kept = [1 if axis in self.channel else size for axis, size in enumerate(sizes)]
        return values.reshape(kept)

    def moments(self, mean: Array, m2: Array, x: Array, *sizes: int) -> None:
        *shape, _threads = sizes
        found = moments(x.reshape(shape), self.cell)
        mean[...] = found.mean.reshape(mean.shape)
        m2[...] = total(found.deviation**2, self.cell).reshape(m2.shape)

    def apply(
        self,
        y: Array,
        x: Array,
        mean: Array,
        var: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        *sizes: int,
    ) -> None:
        *shape, _threads = sizes
        deviation = x.reshape(shape) - self._statistic(mean.astype(np.float64), tuple(shape))
        scaled = normalize(
            deviation,
            self._statistic(var.astype(np.float64), tuple(shape)),
            self._parameter(weight),
            self._parameter(bias),
            eps,
        )
        y[...] = scaled.reshape(y.shape)

    def forward(
        self,
        y: Array,
        mean: Array,
        var: Array,
        rstd: Array,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        *sizes: int,
    ) -> None:
        *shape, _threads = sizes
        found, statistics = batch_norm_forward(
            x.reshape(shape), self._parameter(weight), self._parameter(bias), eps, self.channel
        )
        mean[...] = statistics.mean.reshape(mean.shape)
        var[...] = statistics.var.reshape(var.shape)
        rstd[...] = 1 / np.sqrt(var + eps)
        y[...] = found.reshape(y.shape)

    def reduce_grads(
        self, sum_dy: Array, sum_dy_xmu: Array, dy: Array, x: Array, mean: Array, *sizes: int
    ) -> None:
        *shape, _threads = sizes
        gradient = dy.reshape(shape).astype(np.float64)
        deviation = x.reshape(shape) - self._statistic(mean, tuple(shape))
        sum_dy[...] = total(gradient, self.channel).reshape(sum_dy.shape)
        sum_dy_xmu[...] = total(gradient * deviation, self.channel).reshape(sum_dy.shape)

    def apply_grads(
        self,
        dx: Array,
        dy: Array,
        x: Array,
        mean: Array,
        rstd: Array,
        weight: Array | None,
        sum_dy: Array,
        sum_dy_xmu: Array,
        count: float,
        *sizes: int,
    ) -> None:
        *shape, _threads = sizes
        mean, rstd, sum_dy, sum_dy_xmu = (
            self._statistic(values, tuple(shape)) for values in (mean, rstd, sum_dy, sum_dy_xmu)
        )
        x_hat = (x.reshape(shape) - mean) * rstd
        found = rstd * (dy.reshape(shape) - sum_dy / count - x_hat * (sum_dy_xmu * rstd / count))
        scale = self._parameter(weight)
        dx[...] = (found if scale is None else found * scale).reshape(dx.shape)

    def backward(
        self,
        dx: Array,
        dweight: Array,
        dbias: Array,
        dy: Array,
        x: Array,
        mean: Array,
        rstd: Array,
        weight: Array | None,
        training: bool,
        *sizes: int,
    ) -> None:
        *shape, _threads = sizes
        gradient = dy.reshape(shape).astype(np.float64)
        deviation = x.reshape(shape) - self._statistic(mean, tuple(shape))
        scale = self._parameter(weight)
        rstd = self._statistic(rstd, tuple(shape))
        if training:
            # As in `moments`: what a rounded mean leaves in the deviations comes off again.
            deviation -= average(deviation, self.channel)
            found = input_gradient(gradient, deviation, rstd, scale, self.channel)
        else:
            found = gradient * rstd if scale is None else gradient * rstd * scale
        reduced = tuple({0, *self.cell})
        dweight[...] = total(gradient * deviation * rstd, reduced).reshape(dweight.shape)
        dbias[...] = total(gradient, reduced).reshape(dbias.shape)
        dx[...] = found.reshape(dx.shape)


def update(
    running_mean: Array,
    running_var: Array,
    num_batches_tracked: Array | None,
    mean: Array,
    var: Array,
    momentum: float,
    count: int,
    skip_nonfinite: bool,
) -> None:
    """Blend the batch's mean and unbiased variance into the running statistics, in place.

    running = (1 - momentum) * running + momentum * new.
    """
    unbiased = var * (count / (count - 1))
    new_mean = (1 - momentum) * running_mean.astype(np.float64) + momentum * mean
    new_var = (1 - momentum) * running_var.astype(np.float64) + momentum * unbiased
    if skip_nonfinite:
        clean = np.isfinite(mean) & np.isfinite(var)
        new_mean = np.where(clean, new_mean, running_mean)
        new_var = np.where(clean, new_var, running_var)
    targets = [running_mean, running_var]
    values = [new_mean, new_var]
    if num_batches_tracked is not None:
        targets.append(num_batches_tracked)
        values.append(num_batches_tracked + 1)
    assign(targets, values)


def assign(targets: Sequence[Array], values: Sequence[Array]) -> None:
    """targets[i][...] = values[i] for all i, inside one C call, where no Ctrl-C can part them."""
    setitem: Any = operator.setitem
    deque(map(setitem, targets, repeat(...), values), maxlen=0)


NCHW = _Family(cell=(2,), channel=(0, 2))
NC = _Family(cell=(1,), channel=(1,))
RUNNING = SimpleNamespace(update=update)
