"""What tests/test_mpi.py runs on each of some processes: `mpiexec -n 2 python -m mpi4py ...`.

Every rank knows the whole batch, computes what one process would, and holds its part against it.
"""

import copy
import pickle
import sys

import numpy as np
from mpi4py import MPI

import normcore as nc
from normcore import mpi
from normcore.mpi import SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d

COMM = MPI.COMM_WORLD
PAIRS = {
    2: (nc.BatchNorm1d, SyncBatchNorm1d),
    3: (nc.BatchNorm1d, SyncBatchNorm1d),
    4: (nc.BatchNorm2d, SyncBatchNorm2d),
    5: (nc.BatchNorm3d, SyncBatchNorm3d),
}


def same_on_all_ranks(*arrays):
    """Bitwise."""
    bits = COMM.allgather([values.tobytes() for values in arrays])
    assert all(other == bits[0] for other in bits)


def splits(n):
    """How many of n samples each rank has: unequal, equal, all but none."""
    size = COMM.size
    uneven = [n * (2 * i + 1) // size**2 for i in range(size)]
    uneven[-1] += n - sum(uneven)
    alone = [0] * size
    alone[size // 2] = n
    none_first = [0, *([1] * (size - 2)), n - (size - 2)]
    return [uneven, none_first, alone, [n // size] * (size - 1) + [n - n // size * (size - 1)]]


def part_of(counts, values):
    start = sum(counts[: COMM.rank])
    return values[start : start + counts[COMM.rank]]


def close(found, wanted, bound):
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    error = np.abs(found - wanted) / np.maximum(1, np.abs(wanted))
    assert not error.size or error.max() <= bound, error.max()


def compare(shape, counts, dtype=np.float32, offset=0.0, masked=False, fused=False, **options):
    """Two training steps, then an evaluation, of all ranks and of one process."""
    rng = np.random.default_rng(len(shape))
    axis = options.get("axis", 1)
    channels = shape[axis]
    single, synchronized = PAIRS[len(shape)]
    wide = np.float64 if dtype == np.float64 else np.float32
    options = {"dtype": wide, "activation": "relu" if fused else None, **options}
    whole, layer = single(channels, **options), synchronized(channels, comm=COMM, **options)
    if whole.affine:
        whole.weight[...] = rng.uniform(0.5, 1.5, channels)
        whole.bias[...] = rng.standard_normal(channels)
    layer.load_state_dict(whole.state_dict())
    bound = 1e-12 if dtype == np.float64 and not offset else 1e-6
    for _ in range(2):
        x, dy, residual = rng.standard_normal((3, *shape))
        x, dy, residual = ((v + o).astype(dtype) for v, o in ((x, offset), (dy, 0), (residual, 0)))
        extra, mine = {}, {}
        if masked:
            extra["mask"] = rng.random(np.delete(shape, axis)) < 0.6
        if fused:
            extra["residual"] = residual
        mine = {name: part_of(counts, values) for name, values in extra.items()}
        mine_x, mine_dy = part_of(counts, x), part_of(counts, dy)
        close(layer(mine_x, **mine), part_of(counts, whole(x, **extra)), bound)
        gradients, wanted = layer.backward_residual(mine_dy), whole.backward_residual(dy)
        close(gradients.dx, part_of(counts, wanted.dx), bound)
        close(gradients.dresidual, part_of(counts, wanted.dresidual), bound)
        again = layer.backward(mine_dy, out=np.empty_like(mine_x))
        assert again.dx.tobytes() == gradients.dx.tobytes()
        if whole.affine:
            # Sums: their error is that of their summands.
            scale = np.sqrt(x.size / channels)
            close(gradients.dweight / scale, wanted.dweight / scale, bound)
            close(gradients.dbias / scale, wanted.dbias / scale, bound)
            same_on_all_ranks(gradients.dweight, gradients.dbias)
        same_on_all_ranks(layer._saved.mean, layer._saved.rstd, *layer.state_dict().values())
        for name, values in whole.state_dict().items():
            close(layer.state_dict()[name], values, bound)
    sent = layer._communicator.messages
    layer.eval(), whole.eval()
    if whole.track_running_stats:
        close(layer(mine_x), part_of(counts, whole(x)), bound)
        close(layer.backward(mine_dy, mine_x).dx, part_of(counts, whole.backward(dy, x).dx), bound)
    elif len(mine_x) > 1:  # by the statistics of its own part
        layer(mine_x)
    assert layer._communicator.messages == sent == 6


def values():
    for counts in splits(12):
        compare((12, 5, 4, 3), counts)
    uneven, none_first, alone, _ = splits(12)
    compare((12, 5), uneven, np.float64)
    compare((12, 5, 9), none_first, momentum=None)
    compare((12, 2, 3, 2, 2), uneven, affine=False)
    compare((12, 3, 4, 5), uneven, axis=-1)
    compare((12, 5, 7), uneven, masked=True)
    compare((12, 3, 4, 5), alone, np.float64, masked=True, axis=-1)
    compare((12, 5, 4, 3), uneven, fused=True)
    compare((12, 5, 7), none_first, fused=True, masked=True)
    compare((12, 5, 7), uneven, track_running_stats=False)
    compare((12, 5, 7), uneven, offset=1e4)
    compare((12, 5, 7), uneven, np.float64, offset=1e6)
    compare((COMM.size, 5), [1] * COMM.size)  # one value per channel on each rank


def trees():
    """The same by a tree of messages instead of gathering them."""
    before, mpi.gathers = mpi.gathers, lambda size, nbytes: False
    try:
        uneven, none_first, *_ = splits(12)
        compare((12, 5, 4, 3), uneven, fused=True)
        compare((12, 300), none_first, np.float64)
        errors()
    finally:
        mpi.gathers = before


def state():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 4)).astype(np.float32)
    x[0, 2] = np.nan
    counts = splits(12)[0]
    mine = part_of(counts, x)
    layer = SyncBatchNorm1d(4, skip_nonfinite=True)
    y = layer(mine)
    assert np.isfinite(layer.running_mean).all()
    assert layer.running_mean[2] == 0
    assert np.isnan(y[:, 2]).all()
    assert np.isfinite(np.delete(y, 2, 1)).all()
    same_on_all_ranks(*layer.state_dict().values())

    whole = nc.BatchNorm1d(4)
    whole.load_state_dict(layer.state_dict())
    sent = layer._communicator.messages
    layer.freeze(), whole.freeze()
    assert layer(mine).tobytes() == part_of(counts, whole(x)).tobytes()
    assert layer.backward(mine).dx.tobytes() == part_of(counts, whole.backward(x).dx).tobytes()
    assert layer._communicator.messages == sent
    layer.unfreeze()

    batches = [x[:, [0, 1, 3]], x[::-1, [0, 1, 3]] * 2]
    layer, whole = SyncBatchNorm1d(3), nc.BatchNorm1d(3)
    nc.update_bn([layer], [part_of(counts, batch) for batch in batches], layer)
    nc.update_bn([whole], batches, whole)
    for name, found in layer.state_dict().items():
        close(found, whole.state_dict()[name], 1e-7)
    same_on_all_ranks(*layer.state_dict().values())

    before_this = layer.state_dict()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.comm == COMM
        assert twin(mine[:, :3]).shape == mine[:, :3].shape
    assert layer.num_batches_tracked == 2

    layer.train()(mine[:, :3])
    dy = np.ones_like(mine[:, :3])
    assert layer.backward_residual(dy).dresidual is dy
    over = layer.backward_residual(dy, out=dy)
    assert over.dx is dy
    assert (over.dresidual == 1).all()
    layer.load_state_dict(before_this)

    # Nothing on any rank, by emptiness or by masks.
    before = [values.tobytes() for values in layer.state_dict().values()]
    empty = np.zeros((0, 3), np.float32)
    assert layer(empty).shape == layer.backward(empty).dx.shape == (0, 3)
    ones = np.ones((2, 3), np.float32)
    assert not layer(ones, mask=[0, 0]).any()
    assert not layer.backward(ones).dx.any()
    assert [values.tobytes() for values in layer.state_dict().values()] == before


def raised(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def errors():
    """A rank's error reaches all, and leaves all as they were."""
    last = COMM.rank == COMM.size - 1
    other = "RuntimeError: 1 of"
    layer = SyncBatchNorm1d(3)
    x = np.random.default_rng(COMM.rank).standard_normal((4, 3)).astype(np.float32)
    before = [values.tobytes() for values in layer.state_dict().values()]
    wrong = [
        ((x[:, :2] if last else x,), {}, "ValueError: x: expected 3 channels"),
        ((x.astype(int) if last else x,), {}, "TypeError: x: expected dtype"),
        ((x,), {"residual": x[:1] if last else x}, "ValueError: residual: expected x's shape"),
        ((x,), {"mask": [1, 1] if last else [1] * 4}, "ValueError: mask: expected shape"),
        ((x,), {"out": x[::-1] if last else None}, "ValueError: out: expected memory"),
    ]
    for arguments, options, message in wrong:
        found = raised(layer, *arguments, **options)
        assert found.startswith(message if last else other), found
    few = raised(layer, x[:1] if last else x[:0])
    assert few.startswith("ValueError: Expected more than 1 value per channel"), few
    found = raised(layer.backward, x)
    assert found.startswith("RuntimeError: backward: no training-mode forward"), found
    assert [values.tobytes() for values in layer.state_dict().values()] == before

    layer(x)
    for arguments, message in [
        ((x[:1] if last else x,), "ValueError: dy: expected x's shape"),
        ((x, None, x[:1] if last else None), "ValueError: out: expected x's shape"),
    ]:
        found = raised(layer.backward, *arguments)
        assert found.startswith(message if last else other), found
    found = raised(layer, x) if last else raised(layer.backward, x)
    assert found == (
        "RuntimeError: expected all ranks in the same pass, but some called forward and some "
        "backward"
    ), found
    assert np.isfinite(layer.backward(x).dx).all()


for name in sys.argv[1:] or ["values", "trees", "state", "errors"]:
    globals()[name]()
if COMM.rank == 0:
    print(f"{COMM.size} ranks agree")
