"""Statistics of channels over any number of batches: `ChannelStats`; `update_bn` for networks.

Parts merge by the formula of Chan, Golub and LeVeque (1983). The mean and the sum of squared
deviations are kept as unevaluated sums of two float64, so that neither the number of parts nor
their order is seen in the result, whatever the offset of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from . import backend, check, masks
from .batchnorm import BatchNorm
from .reference import assign, total
from .view import batch as canonical
from .view import flat

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]
Batch = TypeVar("Batch")

# Elements that are converted, or packed under a mask, at a time: 2 MB of float32 beside any data
# set. uint8 images (64, 3, 224, 224), one thread: 4.7 ms in such blocks, 5.4 ms converted whole.
_BLOCK = 1 << 19


class _Moments(NamedTuple):
    """Of some values of each channel; mean and m2 are sums of two parts."""

    count: int  # type: ignore[assignment]  # hides tuple.count
    mean: Array
    mean_rest: Array
    m2: Array
    m2_rest: Array


class ChannelStats:
    """Count, mean, variance and standard deviation of each channel, over many batches.

    mean = sum(x) / count, var(ddof) = sum((x - mean)^2) / (count - ddof)

    It is the tool for the means and standard deviations of a data set, for the statistics of a
    batch that comes in parts (`normcore.functional.batch_norm_backward_reduce` has the other half),
    and for statistics over processes: send `state`, `merge`. One object is for one thread; merge
    those of several.

    Parameters
    ----------
    axis : int, optional
        The channel axis of batches: 1 for channels-first, -1 for channels-last.

    References
    ----------
    T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance", The
    American Statistician 37, 1983.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)
    >>> stats = nc.ChannelStats(axis=-1)
    >>> for batch in np.split(images, 10):
    ...     stats.update(batch)
    >>> stats
    ChannelStats(axis=-1): 102400 values in each of 3 channels
    >>> bool(np.allclose(stats.mean, images.mean((0, 1, 2)), rtol=1e-15))
    True
    >>> bool(np.allclose(stats.std(ddof=1), images.std((0, 1, 2), ddof=1), rtol=1e-14))
    True
    >>> x = images[:10].astype(np.float32)
    >>> y = nc.functional.batch_norm(x, stats.mean, stats.var(), axis=-1)
    """

    def __init__(self, axis: int = 1) -> None:
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(f"axis: expected an int, got {axis!r}")
        self.axis = int(axis)
        self._moments: _Moments | None = None

    def update(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> None:
        """Take in the values of a batch.

        Parameters
        ----------
        x : array_like
            Two or more axes, any layout; floating-point numbers, integers or booleans. Integers
            are converted block by block, exactly up to 53 bits. An empty batch changes nothing.
        mask : array_like, optional
            Which positions count: booleans or integers of x's shape without the channel
            axis, or broadcasting to it.

        Raises
        ------
        TypeError
            For other dtypes.
        ValueError
            For wrong shapes, among them another number of channels than before. After an error
            nothing has changed.
        """
        x = check.plain("x", x)
        if x.dtype.kind not in "biu":
            x = check.array("x", x)
        axis = check.channel_axis(self.axis, x)
        kept = None if mask is None else masks.positions(mask, x.shape, axis)
        moments = self._moments
        for block in _blocks(x, axis, kept):
            part = _moments_of(*block)
            moments = part if moments is None else self._merged(moments, part, "x")
        self._moments = moments

    def merge(self, other: ChannelStats) -> None:
        """Take in the values that another one has seen, which stays as it is.

        Raises
        ------
        TypeError
            If `other` is no ChannelStats.
        ValueError
            If it has another number of channels.
        """
        if not isinstance(other, ChannelStats):
            raise TypeError(f"other: expected a ChannelStats, got {type(other).__name__}")
        if self._moments is None or other._moments is None:
            self._moments = self._moments or other._moments
        else:
            self._moments = self._merged(self._moments, other._moments, "other")

    @staticmethod
    def _merged(first: _Moments, second: _Moments, name: str) -> _Moments:
        if first.mean.shape != second.mean.shape:
            raise ValueError(
                f"{name}: expected {first.mean.size} channels, as before, got {second.mean.size}"
            )
        with np.errstate(all="ignore"):
            return _chan(first, second)

    @property
    def count(self) -> int:
        """How many values of each channel there were."""
        return 0 if self._moments is None else self._moments.count

    @property
    def mean(self) -> Array:
        """(C,), float64; ValueError if there were no values."""
        moments = self._seen("mean", 0)
        found: Array = moments.mean + moments.mean_rest
        return found

    def var(self, ddof: int = 0) -> Array:
        """Variance of each channel, (C,), float64.

        Parameters
        ----------
        ddof : int, optional
            The divisor is ``count - ddof``: 0 for the population variance, 1 for the unbiased.

        Raises
        ------
        ValueError
            If there were not more than `ddof` values.
        """
        moments = self._seen("var", ddof)
        found: Array = (moments.m2 + moments.m2_rest) / (moments.count - ddof)
        return found

    def std(self, ddof: int = 0) -> Array:
        """Standard deviation of each channel, the root of `var`."""
        found: Array = np.sqrt(self.var(ddof))
        return found

    def _seen(self, name: str, ddof: int) -> _Moments:
        if self._moments is None or self._moments.count <= ddof:
            raise ValueError(
                f"{name}: expected more than {ddof} values per channel to have been seen, got "
                f"{self.count}"
            )
        return self._moments

    def state(self) -> dict[str, Array]:
        """All of it as arrays, for `from_state`; empty before the first value."""
        if self._moments is None:
            return {}
        return {name: np.array(values) for name, values in self._moments._asdict().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, ArrayLike], axis: int = 1) -> ChannelStats:
        """What `state` was of, to the bit.

        Raises
        ------
        ValueError
            For missing or unexpected keys, shapes that do not match, a count below 1.
        TypeError
            For values that are not numbers.

        Examples
        --------
        >>> import normcore as nc
        >>> stats = nc.ChannelStats()
        >>> stats.update([[1.0, 5.0], [3.0, 5.0]])
        >>> twin = nc.ChannelStats.from_state(stats.state())
        >>> twin.count, twin.mean, twin.var()
        (2, array([2., 5.]), array([1., 0.]))
        """
        stats = cls(axis)
        if not state:
            return stats
        names = _Moments._fields
        if set(state) != set(names):
            raise ValueError(
                f"state: expected the keys {', '.join(names)}, got {', '.join(map(str, state))}"
            )
        count = check.plain("count", state["count"])
        if count.dtype.kind not in "iu" or count.shape != ():
            raise TypeError(f"count: expected an int, got {state['count']!r}")
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        shape = np.shape(state["mean"])
        if len(shape) != 1:
            raise ValueError(f"mean: expected shape (C,), got {shape}")
        saved = (check.saved(name, state[name], shape).copy() for name in names[1:])
        stats._moments = _Moments(int(count), *saved)
        return stats

    def __repr__(self) -> str:
        seen = "no values"
        if self._moments is not None:
            seen = f"{self.count} values in each of {self._moments.mean.size} channels"
        return f"ChannelStats(axis={self.axis}): {seen}"


def _blocks(x: Array, axis: int, kept: Array | None) -> Iterator[tuple[Array, int]]:
    """(values, channel axis) of x, as the kernels read them, without what is not kept."""
    if not x.size:
        return
    integers = x.dtype.kind in "biu"
    if not integers and kept is None:
        yield x, axis
        return
    # float32 holds integers of 24 bits.
    dtype = x.dtype if not integers else np.float32 if x.dtype.itemsize < 4 else np.float64
    along = 1 if axis == 0 else 0
    step = max(1, _BLOCK * x.shape[along] // x.size)
    for start in range(0, x.shape[along], step):
        piece = slice(start, start + step)
        values = x[:, piece] if along else x[piece]
        if kept is not None:
            # Of kept, whose axes are those of x without the channel axis, it is the first.
            values = masks.pack(values, kept[piece], axis)
        if values.size:
            yield values.astype(dtype, copy=False), axis if kept is None else 1


def _moments_of(x: Array, axis: int) -> _Moments:
    x, view = canonical(x, axis)
    cells = view.sizes[0]
    mean: Array = np.empty(cells * view.channels)
    m2: Array = np.empty(cells * view.channels)
    kernel = backend.current().channels[view.family].moments
    kernel(mean, m2, flat(x, view), *view.sizes, backend.threads(x.size))
    mean, m2 = mean.reshape(cells, -1), m2.reshape(cells, -1)
    with np.errstate(all="ignore"):
        # All cells have the same count.
        away = mean - mean[0]
        middle = total(away, (0,))[0] / cells
        between = total((away - middle) ** 2, (0,))[0] * (view.count // cells)
        return _Moments(
            view.count,
            *_two_sum(mean[0], middle),
            *_two_sum(total(m2, (0,))[0], between),
        )


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """A + b, and what rounding took off it."""
    found = a + b
    share = found - a
    return found, (a - (found - share)) + (b - share)


def _chan(first: _Moments, second: _Moments) -> _Moments:
    count = first.count + second.count
    high, low = _two_sum(second.mean, -first.mean)
    away = high + (low + (second.mean_rest - first.mean_rest))
    mean, rest = _two_sum(first.mean, away * (second.count / count))
    mean, rest = _two_sum(mean, rest + first.mean_rest)
    between = away**2 * (first.count * second.count / count)
    m2, m2_rest = _two_sum(first.m2, second.m2)
    m2, more = _two_sum(m2, between)
    m2, m2_rest = _two_sum(m2, m2_rest + more + first.m2_rest + second.m2_rest)
    return _Moments(count, mean, rest, m2, m2_rest)


class _Pool(ChannelStats):
    """The values that reached a layer, and how many forwards brought them."""

    batches = 0

    def update(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> None:
        before = self.count
        super().update(x, mask=mask)
        self.batches += self.count > before

    def merge(self, other: ChannelStats) -> None:
        before = self.count
        super().merge(other)
        self.batches += self.count > before


def update_bn(
    layers: Iterable[BatchNorm], batches: Iterable[Batch], forward: Callable[[Batch], Any]
) -> None:
    """Recompute the running statistics of batch norm layers over a data set.

    For weights that no training step has seen, such as averages of weights. The running mean
    becomes the mean, and the running variance the unbiased variance, of all values that reached
    the layer; ``num_batches_tracked`` how many forwards brought them.

    PyTorch's ``torch.optim.swa_utils.update_bn`` averages the means and variances of the batches
    instead: every batch then weighs the same, however small, and how the means of the batches
    differ is missing from the variance.

    Parameters
    ----------
    layers : iterable of BatchNorm
        Layers with running statistics that are not frozen. One with ``skip_nonfinite`` keeps
        those of a channel that a NaN or infinity reached.
    batches : iterable
        Whatever `forward` takes.
    forward : callable
        Runs the network on a batch, by calling the layers. They are in training mode meanwhile,
        and after it in the mode in which they were.

    Raises
    ------
    TypeError, ValueError
        For other layers, and for a layer that no value reached. After an error, and after one in
        `forward`, all running statistics are as they were.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> data = np.random.default_rng(0).normal(3, 2, (90, 4))
    >>> bn = nc.BatchNorm1d(4, dtype=np.float64).eval()
    >>> nc.update_bn([bn], np.array_split(data, 7), bn)
    >>> bool(np.allclose(bn.running_mean, data.mean(0), rtol=1e-14))
    True
    >>> bool(np.allclose(bn.running_var, data.var(0, ddof=1), rtol=1e-14))
    True
    """
    layers = list(layers)
    for layer in layers:
        if not isinstance(layer, BatchNorm):
            raise TypeError(f"layers: expected batch norm layers, got {type(layer).__name__}")
        if layer.running_mean is None or layer.frozen:
            found = "frozen ones" if layer.frozen else "none"
            raise ValueError(f"layers: expected running statistics to update, got {found}")
    modes = [layer.training for layer in layers]
    pools = [_Pool(layer.axis) for layer in layers]
    try:
        for layer, pool in zip(layers, pools, strict=True):
            layer.train()._pool = pool
        for batch in batches:
            forward(batch)
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)._pool = None
    targets: list[Array] = []
    values: list[Array] = []
    for layer, pool in zip(layers, pools, strict=True):
        if not pool.count:
            raise ValueError(f"layers: no value of any batch reached {layer!r}")
        state = layer._arrays()
        mean, var = pool.mean, pool.var(ddof=1)
        if layer.skip_nonfinite:
            clean = np.isfinite(mean) & np.isfinite(var)
            mean = np.where(clean, mean, state["running_mean"])
            var = np.where(clean, var, state["running_var"])
        names = ("running_mean", "running_var", "num_batches_tracked")
        targets += [state[name] for name in names]
        values += [mean, var, np.asarray(pool.batches)]
    assign(targets, values)
