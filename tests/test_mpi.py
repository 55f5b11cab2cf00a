"""Synchronized batch normalization: the merging of messages here, MPI in processes of its own."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mpi_launch import launch
from readme import blocks

import normcore as nc
from normcore.mpi import SyncBatchNorm1d, gathers
from normcore.ranks import BACKWARD, FORWARD, HEADER, PASS, Ranks, merge

PROGRAM = Path(__file__).with_name("mpi_program.py")


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_agree_with_one(processes):
    found = launch(processes, "-m", "mpi4py", PROGRAM)
    assert found == f"{processes} ranks agree\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_the_readme(processes):
    [code] = blocks("On many machines")
    launch(processes, "-m", "mpi4py", "-c", code + "assert dx.shape == x.shape and y.any()")


def test_an_error_of_one_rank_ends_all():
    program = "import sys; from mpi4py import MPI; from normcore.mpi import SyncBatchNorm1d as S;"
    program += "import numpy as np; r = MPI.COMM_WORLD.rank; layer = S(3); x = np.ones((4, 3 + r))"
    with pytest.raises(AssertionError) as error:
        launch(2, "-m", "mpi4py", "-c", program + "; layer(x)")
    assert "x: expected 3 channels along axis 1, got shape (4, 4)" in str(error.value) or (
        "1 of 2 ranks refused their part of the batch" in str(error.value)
    )


def messages(parts, which=FORWARD):
    """Those of ranks with these parts, (n, C) each."""
    return np.array(
        [
            [0, which, len(x), *(x.mean(0) if len(x) else [0, 0]), *((x - x.mean(0)) ** 2).sum(0)]
            if len(x)
            else [0, which, 0, 0, 0, 0, 0]
            for x in parts
        ]
    )


# A message has each mean as one float64: at an offset of 1e6 that is 1e-10 of a deviation.
@pytest.mark.parametrize(("offset", "bound"), [(0, 3e-15), (1e6, 1e-10)])
def test_merged_moments_are_those_of_the_whole(offset, bound):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 2)) * [1, 30] + [offset, -offset]
    x += np.linspace(0, 3, 200)[:, None]
    parts = np.split(x, [0, 7, 7, 60, 61, 150])
    count, *moments = merge(messages(parts))[HEADER - 1 :]
    wide = x.astype(np.longdouble)
    mean = wide.mean(0)
    assert count == 200
    np.testing.assert_allclose(moments[:2], mean.astype(float), rtol=1e-15, atol=1e-15)
    wanted = ((wide - mean) ** 2).sum(0).astype(float)
    np.testing.assert_allclose(moments[2:], wanted, rtol=bound)


def test_messages_merge_by_parts_and_say_who_is_in_another_pass():
    rng = np.random.default_rng(0)
    parts = np.split(rng.standard_normal((50, 2)), [10, 10, 33])
    whole = messages(parts)
    pairs = np.stack([merge(whole[:2]), merge(whole[2:])])
    np.testing.assert_allclose(merge(pairs), merge(whole), rtol=1e-14)
    np.testing.assert_array_equal(merge(whole[1:2]), whole[1])
    sums = messages(parts, BACKWARD)
    np.testing.assert_array_equal(np.delete(merge(sums), PASS), np.delete(sums, PASS, 1).sum(0))
    assert np.isnan(merge(np.concatenate([whole, sums]))[PASS])
    assert np.isnan(merge(np.stack([merge(np.stack([whole[0], sums[0]])), whole[1]]))[PASS])


def test_not_a_number_stays_in_its_channel():
    found = merge(messages([np.array([[np.nan, 1], [1, 2]]), np.ones((3, 2)), np.ones((0, 2))]))
    assert np.isnan(found[[HEADER, HEADER + 2]]).all()
    np.testing.assert_allclose(found[[HEADER + 1, HEADER + 3]], [1.2, 0.8])


class Alone(SimpleNamespace):
    """A communicator of one rank, which must not be spoken to."""

    Get_size = staticmethod(lambda: 1)
    Allgather = Reduce = Bcast = None


def test_alone_it_is_batch_norm():
    x = np.random.default_rng(0).standard_normal((9, 4, 5)).astype(np.float32)
    layer = SyncBatchNorm1d(4, comm=Alone(), activation="silu")
    plain = nc.BatchNorm1d(4, activation="silu")
    np.testing.assert_array_equal(layer(x), plain(x))
    for found, wanted in zip(layer.backward(x), plain.backward(x), strict=True):
        np.testing.assert_array_equal(found, wanted)
    nc.update_bn([layer, plain], [x[:4], x[4:]], lambda part: (layer(part), plain(part)))
    for name, values in plain.state_dict().items():
        np.testing.assert_array_equal(layer.state_dict()[name], values)
    assert repr(layer).startswith("SyncBatchNorm1d(4, eps=1e-05")


def test_a_transport_is_a_subclass():
    with pytest.raises(NotImplementedError):
        Ranks(2).exchange(np.zeros(5))
    with pytest.raises(TypeError, match="comm: expected an mpi4py communicator, got str"):
        SyncBatchNorm1d(4, comm="world")
    with pytest.raises(ValueError, match="num_features: expected at least 1"):
        SyncBatchNorm1d(0, comm=Alone())


def test_many_or_long_messages_are_merged_in_a_tree():
    sizes = [24 + 16 * channels for channels in (16, 256, 4096, 1 << 20)]
    chosen = {ranks: [gathers(ranks, m) for m in sizes] for ranks in (2, 4, 8, 64, 1000)}
    assert chosen == {
        2: [True, True, True, True],
        4: [True, True, True, True],
        8: [True, True, False, False],
        64: [True, True, False, False],
        1000: [True, False, False, False],
    }


def test_without_mpi4py_the_error_names_the_extra():
    program = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from normcore.mpi import SyncBatchNorm2d\n"
        "try: SyncBatchNorm2d(3)\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install normcore[mpi]" in done.stdout
