"""Synchronized batch norm over MPI: what a step costs, and what it would cost on 1,000 ranks.

Run it by ``mpiexec -n 2 python -m bench.ranks``. A layer of C channels sends a message of
m = 24 + 16 C bytes forward and one backward. `normcore.mpi` merges the messages of P ranks in one
of two ways. With alpha = seconds per message, beta = seconds per byte, and L = ceil(log2 P):

=======  =============================================  ============================================
way      seconds                                        why
=======  =============================================  ============================================
gather   L alpha + (P - 1) m beta + delta + P m gamma   recursive doubling; every rank merges all
tree     2 L (alpha + m beta) + L (delta + 2 m gamma)   reduce to a root, broadcast; ranks merge two
=======  =============================================  ============================================

gamma is the time to merge a byte, delta the overhead of one merge, which is a call into Python. A
native all-reduce needs 2 L alpha + 2 m beta (Rabenseifner), but adds only; Chan's formula would
cost it a second one (first the means, then M2 about them), and MPI does not promise the same bits
on all ranks. A tree has them because one rank's result is broadcast; a gather because all merge
the same messages in the same order. `normcore.mpi.GATHER_BYTES` is where they break even.

The prediction assumes that ranks enter a pass at the same time, one rank per network port, no
contention, and no overlap of communication with computation.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2
from typing import Any

import numpy as np
from mpi4py import MPI

import normcore as nc
from normcore import mpi
from normcore.ranks import FORWARD, HEADER, merge

Array = np.ndarray[Any, Any]

CHANNELS = (64, 512, 2048)
RESNET50 = [
    *(64, *[64, 64, 256] * 3, 256, *[128, 128, 512] * 4, 512),
    *(*[256, 256, 1024] * 6, 1024, *[512, 512, 2048] * 3, 2048),
]
"""Channels of its 53 batch norm layers."""
NETWORK = (2e-6, 1 / 12.5e9)
"""alpha and beta of a 100 Gbit/s network, assumed."""


def best(run: Callable[[], object], seconds: float = 0.2) -> float:
    """The shortest time of a call, the same number of calls on every rank; of the slowest rank."""
    run()
    times = []
    for _ in range(9):
        MPI.COMM_WORLD.Barrier()
        start = MPI.Wtime()
        run()
        times.append(MPI.Wtime() - start)
    calls = MPI.COMM_WORLD.bcast(max(1, int(seconds / 10 / max(min(times), 1e-7))))
    for _ in range(10):
        MPI.COMM_WORLD.Barrier()
        start = MPI.Wtime()
        for _ in range(calls):
            run()
        times.append((MPI.Wtime() - start) / calls)
    return float(MPI.COMM_WORLD.allreduce(min(times), MPI.MAX))


def ping(nbytes: int) -> float:
    """One way of a message between the first two ranks."""
    comm, data = MPI.COMM_WORLD, np.zeros(nbytes, np.uint8)

    def there_and_back() -> None:
        if comm.rank == 0:
            comm.Send(data, 1)
            comm.Recv(data, 1)
        elif comm.rank == 1:
            comm.Recv(data, 0)
            comm.Send(data, 0)

    return best(there_and_back) / 2


def message(channels: int) -> Array:
    """One of a forward."""
    values = np.random.default_rng(0).random(HEADER + 2 * channels)
    values[:HEADER] = 0, FORWARD, 8
    return values


def gathered(
    size: int, nbytes: int, alpha: float, beta: float, gamma: float, delta: float
) -> float:
    """Seconds of a pass by gathering."""
    moved = ceil(log2(size)) * alpha + (size - 1) * nbytes * beta
    return moved + delta + size * nbytes * gamma


def in_a_tree(
    size: int, nbytes: int, alpha: float, beta: float, gamma: float, delta: float
) -> float:
    """Seconds of a pass by a tree."""
    levels = ceil(log2(size))
    return 2 * levels * (alpha + nbytes * beta) + levels * (delta + 2 * nbytes * gamma)


def costs() -> tuple[float, float, float, float]:
    """alpha, beta, gamma and delta of this machine."""
    alpha, long = ping(8), ping(1 << 20)
    small, large = (np.stack([message(channels)] * 2) for channels in (16, 8192))
    delta = best(lambda: merge(small))
    gamma = max(0.0, best(lambda: merge(large)) - delta) / large.nbytes
    return alpha, (long - alpha) / (1 << 20), gamma, delta


def ways(size: int, nbytes: int, model: tuple[float, float, float, float]) -> str:
    """A line about one message: both ways, measured and predicted."""
    communicator = mpi.Communicator(MPI.COMM_WORLD)
    values = message((nbytes - 8 * HEADER) // 16)
    found = [
        best(lambda: communicator.gathered(values)),
        best(lambda: communicator.merged_in_a_tree(values)),
    ]
    predicted = gathered(size, nbytes, *model), in_a_tree(size, nbytes, *model)
    chosen = "gather" if mpi.gathers(size, nbytes) else "tree"
    columns = (found[0], predicted[0], found[1], predicted[1])
    return "".join(f"{1e6 * seconds:9.1f}" for seconds in columns) + f"  {chosen}"


def steps(size: int) -> str:
    """A line about a forward and a backward of (64, 64, 28, 28): alone, shared by all ranks."""
    x = np.random.default_rng(0).standard_normal((64, 64, 28, 28), dtype=np.float32)
    part = np.array_split(x, size)[MPI.COMM_WORLD.rank]
    layers = nc.BatchNorm2d(64), nc.BatchNorm2d(64), mpi.SyncBatchNorm2d(64)
    times = []
    for layer, data in zip(layers, (x, part, part), strict=True):
        y, dx = np.empty_like(data), np.empty_like(data)

        def step(layer: Any = layer, data: Array = data, y: Array = y, dx: Array = dx) -> None:
            layer(data, out=y)
            layer.backward(y, out=dx)

        times.append(best(step))
    alone, local, shared = (1e3 * seconds for seconds in times)
    return (
        f"  whole batch on each rank {alone:.2f} ms, a part without synchronization {local:.2f} ms,"
        f" synchronized {shared:.2f} ms"
    )


def predicted(size: int, *model: float) -> str:
    """A line about ResNet-50's messages of a step."""
    sizes = [8 * HEADER + 16 * channels for channels in RESNET50]
    pairs = [(gathered(size, m, *model), in_a_tree(size, m, *model)) for m in sizes]
    gather, tree = (2 * sum(times) for times in zip(*pairs, strict=True))
    mixed = 2 * sum(
        pair[0] if mpi.gathers(size, m) else pair[1] for m, pair in zip(sizes, pairs, strict=True)
    )
    received = 2 * sum(sizes) / 1e6
    return (
        f"  {size:5d} ranks: gather {1e3 * gather:7.1f} ms ({(size - 1) * received:.1f} MB in), "
        f"tree {1e3 * tree:6.1f} ms ({received:.1f} MB in per level), as chosen "
        f"{1e3 * mixed:6.1f} ms"
    )


def main() -> None:
    """Measure on the ranks there are, predict for more."""
    size = MPI.COMM_WORLD.size
    if size < 2:
        raise SystemExit("expected two ranks or more: mpiexec -n 2 python -m bench.ranks")
    nc.set_num_threads(1)
    model = costs()
    alpha, beta, gamma, delta = model
    lines = [
        f"{size} ranks, one thread each",
        f"alpha {1e6 * alpha:.2f} us, beta 1 / ({1e-9 / beta:.1f} GB/s), "
        f"gamma 1 / ({1e-9 / gamma:.1f} GB/s), delta {1e6 * delta:.1f} us",
        "us per message     gather (model)     tree (model)   chosen",
    ]
    for channels in CHANNELS:
        nbytes = 8 * HEADER + 16 * channels
        lines.append(f"C {channels:5d} {nbytes:6d} B" + ways(size, nbytes, model))
    lines += [
        "float32 (64, 64, 28, 28), forward and backward, best of many:",
        steps(size),
        f"  bytes per rank and step: 2 messages of {8 * HEADER + 16 * 64}",
        "the messages of a step of ResNet-50, with alpha and beta of this machine:",
        *(predicted(ranks, *model) for ranks in (2, 8, 64, 1000)),
        "and of a network of 100 Gbit/s with 2 us per message (assumed):",
        *(predicted(ranks, *NETWORK, gamma, delta) for ranks in (8, 64, 1000)),
    ]
    if MPI.COMM_WORLD.rank == 0:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
