"""Batch normalization by processes (ranks) that each hold a part of the batch.

A pass takes one message: every rank sends what it knows of its part, and gets back what all of them
know together. A message is float64: a header of three values, then two values per channel.

===========  =========  =========================================  ============================
pass         position   holds                                      together
===========  =========  =========================================  ============================
both         `REFUSED`  1 if this rank raises an error, else 0     how many do
both         `PASS`     `FORWARD` or `BACKWARD`                    the same, NaN if ranks differ
both         `COUNT`    values per channel that count              sum
forward      behind     mean, M2 (sum of squared deviations)       merged by Chan's formula
backward     behind     sum_dy, sum_dy_xmu                         sums
===========  =========  =========================================  ============================

So a rank that refuses its input tells the others in the message that it owes them anyway, and no
rank waits for it. How messages travel is a subclass of `Ranks`: `normcore.mpi` has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import backend, check, masks
from .functional.batch import train
from .functional.batch_backward import parameter_dtype
from .functional.gradients import Gradients
from .functional.synchronized import batch_norm_backward_apply, batch_norm_backward_reduce
from .functional.training import checked, update
from .stats import ChannelStats
from .view import batch, conform, flat

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]

REFUSED, PASS, COUNT, HEADER = range(4)
FORWARD, BACKWARD = 0.0, 1.0


class Ranks:
    """The ranks that normalize a batch together, as one of them sees them.

    A subclass says how many they are, and has `_merged`.

    Parameters
    ----------
    size : int
        How many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.messages = 0
        """How many this rank has sent."""

    def exchange(self, message: Array) -> Array:
        """What all ranks know together; every rank gets the same bits.

        Raises
        ------
        RuntimeError
            If another rank refused its part, or if ranks are in different passes.
        """
        self.messages += 1
        together = message if self.size == 1 else self._merged(message)
        if together[REFUSED] and not message[REFUSED]:
            raise RuntimeError(
                f"{together[REFUSED]:.0f} of {self.size} ranks refused their part of the batch and "
                "raised an error; this rank's part was right"
            )
        if np.isnan(together[PASS]):
            raise RuntimeError(
                "expected all ranks in the same pass, but some called forward and some backward"
            )
        return together

    def _merged(self, message: Array) -> Array:
        """`merge` of the messages of all ranks."""
        raise NotImplementedError

    @contextmanager
    def answering(self, which: float, channels: int) -> Iterator[None]:
        """Send the message of a pass even if the block raises an error before it does."""
        before = self.messages
        try:
            yield
        except Exception:
            if self.messages == before:
                nothing = np.zeros(channels)
                with suppress(RuntimeError):  # This rank's own error says more.
                    self.exchange(_message(which, 0, nothing, nothing, refused=True))
            raise


def _message(
    which: float, count: float, first: Array, second: Array, refused: bool = False
) -> Array:
    message: Array = np.concatenate(([refused, which, count], first, second), dtype=np.float64)
    return message


def merge(messages: Array) -> Array:
    """The messages of several ranks as one, in their order.

    Parameters
    ----------
    messages : ndarray
        (ranks, length), float64. Some of them may be merged ones.

    Returns
    -------
    message : ndarray
        (length,), float64. For a forward, with the counts n_i, means and M2s of the ranks:
        ``mean = sum(n_i mean_i) / n``, ``M2 = sum(M2_i) + sum(n_i (mean_i - mean)^2)``.

    References
    ----------
    T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance", The
    American Statistician 37, 1983; here for any number of parts, with the means relative to one
    of them, so that an offset of the data costs no digits.

    Examples
    --------
    >>> ranks = np.array([[0.0, FORWARD, 2, 1.5, 0.5], [0.0, FORWARD, 1, 9.0, 0.0]])
    >>> merge(ranks)  # of 1, 2 and of 9: the mean is 4, M2 is 9 + 4 + 25
    array([ 0.,  0.,  3.,  4., 38.])
    """
    with np.errstate(all="ignore"):
        together: Array = messages.sum(0)
        which = messages[:, PASS]
        together[PASS] = which[0] if (which == which[0]).all() else np.nan
        some = messages[messages[:, COUNT] > 0]
        if together[PASS] != FORWARD or not len(some):
            return together
        channels = (len(together) - HEADER) // 2
        mean, m2 = some[:, HEADER : HEADER + channels], some[:, HEADER + channels :]
        counts = some[:, COUNT, None]
        away = mean - mean[0]
        middle = (counts * away).sum(0) / together[COUNT]
        between = (counts * (away - middle) ** 2).sum(0)
        together[HEADER:] = np.concatenate((mean[0] + middle, m2.sum(0) + between))
    return together


class Trained(NamedTuple):
    """What `train_part` returns."""

    y: Array
    mean: Array
    """(C,), float64, of the whole batch, as are all others."""
    rstd: Array
    stats: ChannelStats


def train_part(
    ranks: Ranks,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    num_batches_tracked: Array | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    axis: int = 1,
    out: Array | None = None,
    skip_nonfinite: bool = False,
    mask: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    activation: str | None = None,
) -> Trained:
    """Normalize this rank's part of a batch in training; one message.

    Arguments are those of `normcore.functional.batch_norm_forward`; ``num_batches_tracked`` is
    counted up, ``skip_nonfinite`` is that of `normcore.BatchNorm2d`. Parts may have any number of
    samples, none too. The running statistics become the same on all ranks.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.batch_norm`, where the values of all ranks count. All other
        ranks raise RuntimeError then. On no rank anything has changed.
    """
    where = check.channel_axis(axis, check.array("x", x))
    momentum = check.momentum(momentum)
    found, view, y, weight, bias, added, _, _, eps, number = checked(
        *(x, weight, bias, running_mean, running_var, eps, axis, out, mask, residual, activation),
        part=True,
    )
    part = ChannelStats(where)
    part.update(found, mask=mask)
    nothing = np.zeros(view.channels)
    mean, m2 = (part.mean, part.var() * part.count) if part.count else (nothing, nothing)
    together = ranks.exchange(_message(FORWARD, part.count, mean, m2))
    count = int(together[COUNT])
    if count == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, got 1 in the parts of all "
            f"{ranks.size} ranks"
        )
    if not count:
        result = train(
            *(x, weight, bias, None, None, None, momentum, eps, axis, out, False),
            *(mask, residual, activation),
        )[0]
        return Trained(result, nothing, nothing, ChannelStats(where))
    mean, m2 = together[HEADER:].reshape(2, -1)
    with np.errstate(all="ignore"):
        var = m2 / count
        rstd = 1 / np.sqrt(var + eps)
    chosen = backend.current()
    if found.size:
        chosen.channels[view.family].apply(
            *(flat(y, view), flat(found, view), added, mean, var, weight, bias, eps, number),
            *view.sizes,
            backend.threads(found.size),
        )
    if running_mean is not None and running_var is not None:
        update(
            *(chosen, running_mean, running_var, num_batches_tracked, mean, var, momentum, count),
            skip_nonfinite,
        )
    moments = {"count": count, "mean": mean, "mean_rest": nothing, "m2": m2, "m2_rest": nothing}
    return Trained(check.deliver(y, out), mean, rstd, ChannelStats.from_state(moments, where))


def backward_part(
    ranks: Ranks,
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    weight: ArrayLike | None = None,
    axis: int = 1,
    out: Array | None = None,
    mask: ArrayLike | None = None,
) -> Gradients:
    """Gradients of this rank's part of a batch; one message.

    Arguments are those of `normcore.functional.batch_norm_backward`, with the statistics that
    `train_part` gave.

    Returns
    -------
    Gradients
        dx is that of this part; dweight and dbias are those of the whole batch, the same on all
        ranks: of the sum of their losses.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.functional.batch_norm_backward`. All other ranks raise RuntimeError then.
    """
    found = check.array("x", x)
    axis = check.channel_axis(axis, found)
    dy = check.same("dy", dy, found)
    kept = None if mask is None else masks.positions(mask, found.shape, axis)
    found, view = batch(found, axis)
    dy = conform(dy, view)
    channels = (view.channels,)
    mean, rstd = check.saved("mean", mean, channels), check.saved("rstd", rstd, channels)
    weight = check.parameter("weight", weight, channels)
    if out is not None:
        check.destination(out, found, view, found, dy, mean, rstd, weight)
    sums = batch_norm_backward_reduce(dy, found, mean, axis=axis, mask=kept)
    count = view.count if kept is None else int(np.count_nonzero(kept))
    together = ranks.exchange(_message(BACKWARD, count, *sums))
    sum_dy, sum_dy_xmu = together[HEADER:].reshape(2, -1)
    # Of no values at all dx is 0, whatever it is divided by.
    divisor = max(1.0, together[COUNT])
    dx = batch_norm_backward_apply(
        *(dy, found, mean, rstd, sum_dy, sum_dy_xmu, divisor, weight),
        axis=axis,
        out=out,
        mask=kept,
    )
    dtype = parameter_dtype(found, weight)
    with np.errstate(all="ignore"):
        return Gradients(dx, (sum_dy_xmu * rstd).astype(dtype), sum_dy.astype(dtype))
