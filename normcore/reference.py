"""Normalization by the textbook formulas, in NumPy and float64: the oracle.

Every compiled kernel is tested against this file. It is written to be read: no blocking, no
threads, no fused loops. Statistics follow the corrected two-pass algorithm (Chan, Golub and
LeVeque, 1983), so that an offset of the data costs no digits.

Arrays come with their axes as they are: `axes` are those that a statistic covers, and statistics,
weight and bias broadcast against x. `normcore.reference_kernels` offers these formulas with the
arguments of the compiled kernels.
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
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


def average(values: Array, axes: Axes, mask: Array | None = None) -> Array:
    """Mean over `axes`, which are kept; of the values where the mask is true, 0 where it is not."""
    mean: Array
    if mask is None:
        mean = total(values, axes) / math.prod(values.shape[axis] for axis in axes)
        return mean
    kept = np.broadcast_to(mask, values.shape)
    counts = np.count_nonzero(kept, axes, keepdims=True)
    mean = total(np.where(kept, values, 0), axes) / np.maximum(counts, 1)
    return mean


class Moments(NamedTuple):
    """Statistics of one reduction, with the axes kept, and the deviations they came from."""

    mean: Array
    var: Array
    deviation: Array


def moments(
    x: Array, axes: Axes, dtype: Any = np.float64, *, mask: Array | None = None, centre: bool = True
) -> Moments:
    """Mean, population variance and x - mean over `axes`; without `centre`, mean is 0.

    A rounded mean would leave its rounding error in every deviation; the mean of the deviations
    is that error, and is taken off again.
    """
    deviation = x.astype(dtype)
    mean = np.zeros_like(average(deviation, axes))
    if centre:
        for _ in range(2):
            correction = average(deviation, axes, mask)
            deviation = deviation - correction
            mean = mean + correction
    return Moments(mean, average(deviation**2, axes, mask), deviation)


def inverse_deviation(var: Array, eps: float) -> Array:
    """Return rstd = 1 / sqrt(var + eps)."""
    rstd: Array = 1 / np.sqrt(var + eps)
    return rstd


def normalize(
    deviation: Array, rstd: Array, weight: Array | None = None, bias: Array | None = None
) -> Array:
    """deviation * rstd * weight + bias; where rstd is 0, whatever the deviation, bias."""
    y = np.where(rstd == 0, 0, deviation * rstd)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y


def input_gradient(
    dy: Array, deviation: Array, rstd: Array, axes: Axes, *, mask: Array | None = None,
    centre: bool = True,
) -> Array:  # fmt: skip
    """Gradient of x_hat = deviation * rstd with respect to x; dy is that of x_hat.

    dx = rstd * (dy - mean(dy) - x_hat * mean(dy * x_hat)); without `centre`, mean(dy) is not
    taken off.
    """
    x_hat = deviation * rstd
    centred = dy - average(dy, axes, mask) if centre else dy
    dx: Array = rstd * (centred - x_hat * average(centred * x_hat, axes, mask))
    return dx


def batch_norm_forward(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    axes: Axes = (0,),
    dtype: Any = np.float64,
) -> tuple[Array, Moments]:
    """y and the statistics over `axes`."""
    statistics = moments(x, axes, dtype)
    rstd = inverse_deviation(statistics.var, eps)
    return normalize(statistics.deviation, rstd, weight, bias), statistics


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
    rstd = inverse_deviation(statistics.var, eps)
    dy = dy.astype(dtype)
    scaled = dy if weight is None else dy * weight
    dx = input_gradient(scaled, statistics.deviation, rstd, axes)
    dweight = total(dy * statistics.deviation * rstd, axes)
    return dx, dweight, total(dy, axes)


def renorm_correction(
    mean: Array, var: Array, running_mean: Array, running_var: Array,
    r_max: float, d_max: float, eps: float,
) -> tuple[Array, Array]:  # fmt: skip
    """r and d of batch renormalization (Ioffe, 2017): y = (x_hat * r + d) * weight + bias.

    With sigma = sqrt(var + eps): r = clip(sigma / sigma_running, 1 / r_max, r_max),
    d = clip((mean - mean_running) / sigma_running, -d_max, d_max).
    """
    sigma = np.sqrt(running_var + eps)
    r = np.clip(np.sqrt(var + eps) / sigma, 1 / r_max, r_max)
    return r, np.clip((mean - running_mean) / sigma, -d_max, d_max)


# Activations, by the numbers of `normcore.kernels.table.ACTIVATIONS`: values and derivatives.

LEAK = 0.01
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(z: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-z))
    return found


def _normal(z: Array) -> Array:
    """Cumulative distribution of the standard normal distribution."""
    share: Array = (1 + _erf(z / math.sqrt(2))) / 2
    return share


def _normal_density(z: Array) -> Array:
    density: Array = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return density


def _silu_slope(z: Array) -> Array:
    s = _sigmoid(z)
    slope: Array = s * (1 + z * (1 - s))
    return slope


ACTIVATION: tuple[Callable[[Array], Array], ...] = (
    lambda z: z,
    lambda z: np.where(z < 0, 0, z),
    lambda z: np.where(z < 0, 0, np.where(z > 6, 6, z)),
    lambda z: np.where(z < 0, LEAK * z, z),
    lambda z: z * _sigmoid(z),
    lambda z: z * _normal(z),
)
SLOPE: tuple[Callable[[Array], Array], ...] = (
    np.ones_like,
    lambda z: np.where(z > 0, 1, 0),
    lambda z: np.where((z > 0) & (z < 6), 1, 0),
    lambda z: np.where(z > 0, 1, LEAK),
    _silu_slope,
    lambda z: _normal(z) + z * _normal_density(z),
)


def update(
    running_mean: Array,
    running_var: Array,
    num_batches_tracked: Array | None,
    mean: Array,
    var: Array,
    momentum: float,
    count: float,
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
