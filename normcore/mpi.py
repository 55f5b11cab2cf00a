"""Synchronized batch normalization over MPI: the batch of a layer is that of all ranks.

`SyncBatchNorm1d`, `SyncBatchNorm2d` and `SyncBatchNorm3d` take an mpi4py communicator. mpi4py
itself is imported when it is needed. `normcore.ranks` has the computation.
"""

from __future__ import annotations

from functools import cache
from math import ceil, log2
from typing import TYPE_CHECKING, Any

import numpy as np

from .batchnorm import BatchNorm
from .extras import extra
from .functional.gradients import Gradients
from .layer import LayerGradients, ResidualGradients, Saved
from .ranks import BACKWARD, FORWARD, Ranks, backward_part, merge, train_part

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

Array = np.ndarray[Any, Any]

# Gathering the messages of P ranks and merging them in a tree of L = ceil(log2 P) levels break even
# where P - 2 L messages have L times so many bytes: (alpha + delta) / (beta + gamma) of the cost
# model in bench/ranks.py, where 2 cores have alpha 1.2 us, beta 1 / (10 GB/s), gamma 1 / (3.4 GB/s)
# and delta 15 us. So up to 4 ranks gather, 64 ranks up to 286 channels, 1,000 ranks up to 24.
GATHER_BYTES = 40_000


def _mpi() -> Any:
    """mpi4py.MPI, which starts MPI when it is first imported."""
    with extra("mpi"):
        try:
            from mpi4py import MPI
        except RuntimeError as error:  # there is mpi4py, but no library
            raise ImportError(
                f"no MPI library was found (pip install normcore[mpi]): {error}", name="mpi4py"
            ) from error
    return MPI


@cache
def _merging() -> Any:
    """`merge` as an operation of MPI on messages that are one element each."""

    def combine(first: Any, second: Any, _: Any) -> None:
        rows = np.frombuffer(first), np.frombuffer(second)
        rows[1][:] = merge(np.stack(rows))

    return _mpi().Op.Create(combine, commute=False)


@cache
def _element(length: int) -> Any:
    """The type of a whole message, which MPI then does not cut into pieces."""
    return _mpi().DOUBLE.Create_contiguous(length).Commit()


class Communicator(Ranks):
    """The ranks of an mpi4py communicator.

    A message is gathered by every rank, which merges all of them in rank order; or, where that
    would be too many bytes, merged in a tree in rank order and broadcast. Either way all ranks have
    the same bits, which MPI does not promise of an all-reduce.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        Kept as it is, not duplicated: all its ranks must make the same calls in the same order.
    """

    def __init__(self, comm: Any) -> None:
        super().__init__(comm.Get_size())
        self.comm = comm

    def __deepcopy__(self, memo: dict[int, Any]) -> Communicator:
        # A copy of a layer talks to the same ranks.
        return Communicator(self.comm)

    def _merged(self, message: Array) -> Array:
        if gathers(self.size, message.nbytes):
            return self.gathered(message)
        return self.merged_in_a_tree(message)

    def gathered(self, message: Array) -> Array:
        """Together, after every rank has had all messages."""
        messages = np.empty((self.size, message.size))
        self.comm.Allgather(message, messages)
        return merge(messages)

    def merged_in_a_tree(self, message: Array) -> Array:
        """Together, after they were merged on their way to one rank, which sent the result."""
        together = np.empty_like(message)
        one = _element(message.size)
        self.comm.Reduce([message, 1, one], [together, 1, one], op=_merging(), root=0)
        self.comm.Bcast(together, root=0)
        return together


def gathers(size: int, nbytes: int) -> bool:
    """Are messages of nbytes gathered by `size` ranks, not merged in a tree?"""
    levels = ceil(log2(size))
    return (size - 2 * levels) * nbytes <= levels * GATHER_BYTES


class SyncBatchNorm(BatchNorm):
    """What `SyncBatchNorm1d`, `SyncBatchNorm2d` and `SyncBatchNorm3d` have in common.

    Batch normalization whose batch, in training, is that of all ranks of a communicator: y, dx,
    running statistics, dweight and dbias are those of `normcore.BatchNorm2d` on the concatenated
    batch (to rounding), and what belongs to channels is the same on every rank, to the bit. A
    single rank has `normcore.BatchNorm2d`, to the bit and in its time.

    A training forward and a backward each exchange one message of 24 + 16 C bytes. Evaluation and
    frozen statistics exchange nothing. Parts of the batch may differ in size and be empty.

    A rank that refuses its input (TypeError, ValueError, RuntimeError) tells the others, which
    raise RuntimeError; nothing has changed on any rank then. Ranks wait for ever for one that does
    not make the call at all: run programs by ``mpiexec -n 4 python -m mpi4py program.py``, which
    ends all of them if an error ends one.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats
        As in `normcore.BatchNorm2d`; the same on all ranks.
    axis, dtype, skip_nonfinite, activation
        Likewise.
    comm : mpi4py.MPI.Intracomm, optional
        Its ranks share the batch; MPI.COMM_WORLD if None. All must call the same layers in the
        same order, and begin with the same parameters.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.BatchNorm2d`.
    ImportError
        If comm is None and mpi4py or an MPI library is missing.

    Notes
    -----
    dweight and dbias are those of the sum of the losses of all ranks: do not sum them again.
    A copied layer uses the same communicator; a pickled one needs a predefined communicator.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        comm: Any = None,
        axis: int = 1,
        dtype: DTypeLike = np.float32,
        skip_nonfinite: bool = False,
        activation: str | None = None,
    ) -> None:
        super().__init__(
            *(num_features, eps, momentum, affine, track_running_stats),
            axis=axis,
            dtype=dtype,
            skip_nonfinite=skip_nonfinite,
            activation=activation,
        )
        if comm is None:
            comm = _mpi().COMM_WORLD
        elif not all(hasattr(comm, name) for name in ("Get_size", "Allgather", "Reduce", "Bcast")):
            raise TypeError(f"comm: expected an mpi4py communicator, got {type(comm).__name__}")
        self._communicator = Communicator(comm)

    @property
    def comm(self) -> Any:
        """The communicator."""
        return self._communicator.comm

    def forward(
        self,
        x: ArrayLike,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """Normalize this rank's part of the batch, as `normcore.BatchNorm2d.forward` says."""
        if self._alone() or self._frozen:
            return super().forward(x, out, residual=residual, mask=mask)
        with self._communicator.answering(FORWARD, self.num_features):
            return super().forward(x, out, residual=residual, mask=mask)

    def backward(
        self,
        dy: ArrayLike,
        x: ArrayLike | None = None,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> LayerGradients:
        """Gradients: dx of this rank's part of the batch, dweight and dbias of all ranks'."""
        if not self._differentiates_all():
            return super().backward(dy, x, out, residual=residual, mask=mask)
        with self._communicator.answering(BACKWARD, self.num_features):
            return super().backward(dy, x, out, residual=residual, mask=mask)

    def backward_residual(
        self,
        dy: ArrayLike,
        x: ArrayLike | None = None,
        out: Array | None = None,
        *,
        residual: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> ResidualGradients:
        """As `backward`, with the gradient of this rank's residual."""
        if not self._differentiates_all():
            return super().backward_residual(dy, x, out, residual=residual, mask=mask)
        with self._communicator.answering(BACKWARD, self.num_features):
            return super().backward_residual(dy, x, out, residual=residual, mask=mask)

    def _differentiates_all(self) -> bool:
        """Does a backward concern the parts of all ranks?"""
        if self._alone():
            return False
        return not self._frozen if self._saved is None else self._saved.batch_statistics

    def _gradients(self, dy: ArrayLike, x: Array, saved: Saved, out: Array | None) -> Gradients:
        if not self._differentiates_all():
            return super()._gradients(dy, x, saved, out)
        return backward_part(
            *(self._communicator, dy, x, saved.mean, saved.rstd, self.weight),
            *(self.axis, out, saved.mask),
        )

    def _alone(self) -> bool:
        """Does a pass concern this rank only?"""
        return not self.training or self._communicator.size == 1

    def _observed(self, x: Array, mask: Any) -> bool:
        if self._alone():
            return super()._observed(x, mask)
        return self._pool is None

    def _train(
        self, x: Array, out: Array | None, residual: Array | None, mask: Any, update: bool
    ) -> tuple[Array, Saved]:
        if self._alone():
            return super()._train(x, out, residual, mask, update)
        running: tuple[Array | None, Array | None, Array | None] = (None, None, None)
        if update:
            running = (self.running_mean, self.running_var, self.num_batches_tracked)
        y, mean, rstd, stats = train_part(
            *(self._communicator, x, self.weight, self.bias, *running, self._factor(), self.eps),
            *(self.axis, out, self.skip_nonfinite, mask, residual, self.activation),
        )
        if self._pool is not None:  # for `normcore.update_bn`
            self._pool.merge(stats)
        return y, self._save(x, out, residual, mask, mean, rstd, True)


class SyncBatchNorm1d(SyncBatchNorm):
    """Synchronized batch normalization of (N, C) or (N, C, L) arrays; see `SyncBatchNorm`."""

    ranks = (2, 3)


class SyncBatchNorm2d(SyncBatchNorm):
    """Synchronized batch normalization of (N, C, H, W) arrays; see `SyncBatchNorm`.

    Examples
    --------
    Two processes, by ``mpiexec -n 2 python -m mpi4py program.py``::

        import numpy as np
        from mpi4py import MPI
        from normcore.mpi import SyncBatchNorm2d

        comm = MPI.COMM_WORLD
        bn = SyncBatchNorm2d(3, comm=comm)
        x = np.random.default_rng(comm.rank).standard_normal((8 + comm.rank, 3, 4, 4))
        y = bn(x)  # by the mean and variance of all 17 samples
        dx, dweight, dbias = bn.backward(y)
    """

    ranks = (4,)


class SyncBatchNorm3d(SyncBatchNorm):
    """Synchronized batch normalization of (N, C, D, H, W) arrays; see `SyncBatchNorm`."""

    ranks = (5,)
