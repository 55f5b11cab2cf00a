"""Statistics over dask arrays; data that do not fit into memory, within a stated bound."""

import subprocess
import sys

import numpy as np
import pytest
from readme import blocks

import normcore as nc

da = pytest.importorskip("dask.array", reason="dask is not installed")
channel_stats = pytest.importorskip("normcore.dask", reason="dask is not installed").channel_stats


def _data(dtype=np.float32, shape=(23, 6, 20, 11)):
    random = np.random.default_rng(0)
    return random.normal(100, 20, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize(
    ("chunks", "axis"), [((4, 6, 20, 11), 1), ((5, 2, 7, 11), 1), ((1, 6, 5, 4), -1), (-1, 2)]
)
def test_chunks_give_what_the_whole_gives(chunks, axis, dtype):
    x = _data(dtype)
    whole = nc.ChannelStats(axis)
    whole.update(x)
    stats = channel_stats(da.from_array(x, chunks=chunks), axis).compute(scheduler="threads")
    assert stats.count == whole.count
    np.testing.assert_allclose(stats.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(stats.var(), whole.var(), rtol=1e-12)


def test_the_scheduler_does_not_change_a_bit():
    lazy = channel_stats(da.from_array(_data(), chunks=(1, 6, 5, 11)))
    first, second = (lazy.compute(scheduler=name).state() for name in ("threads", "sync"))
    for name, values in first.items():
        assert np.array_equal(values, second[name]), name


def test_the_tree_has_one_root_and_keeps_what_it_merged():
    x = da.random.default_rng(0).normal(5, 2, (73, 3), chunks=(1, 3))
    lazy = channel_stats(x)
    assert lazy.compute(scheduler="sync").count == 73
    # A second run of the same graph starts from the same parts.
    assert lazy.compute(scheduler="sync").count == 73


@pytest.mark.parametrize(
    ("x", "axis", "error", "message"),
    [
        (np.ones((3, 4)), 1, TypeError, "x: expected a dask array, got ndarray"),
        (da.ones(4), 0, ValueError, "x: expected at least 2 dimensions"),
        (da.ones((3, 4)), 2, ValueError, "axis: expected an axis of a 2-D array, got 2"),
        (da.ones((3, 4)), "c", TypeError, "axis: expected an int"),
    ],
)
def test_wrong_arguments_are_refused(x, axis, error, message):
    with pytest.raises(error, match=message):
        channel_stats(x, axis)


# Writes a file of 192 MiB, then runs the README's example, and prints how much more memory than
# before that took at its peak, in MiB.
LARGE = """
import resource, sys
import dask, dask.array as da, numpy as np, zarr
import normcore as nc, normcore.dask, normcore.gufuncs

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

shape, chunk = (48, 16, 256, 256), (1, 16, 256, 256)
file = zarr.create_array("x.zarr", shape=shape, chunks=chunk, dtype="f4", compressors=None)
image = np.random.default_rng(0).standard_normal((2, 16, 256, 256), np.float32)
for i in range(0, 48, 2):
    file[i : i + 2] = image + i
dask.config.set(scheduler="threads", num_workers=2)
before = peak()
exec(sys.argv[1])
used = peak() - before
assert stats.count == 48 * 256 * 256
means = image.mean((0, 2, 3), dtype=np.float64) + np.arange(0, 48, 2).mean()
assert np.allclose(stats.mean, means, rtol=1e-6)
done, layers = (zarr.open_array(name, mode="r") for name in ("y.zarr", "z.zarr"))
expected = (file[4] - stats.mean[:, None, None]) / stats.std()[:, None, None]
assert np.allclose(done[4], expected, atol=1e-4)
assert abs(layers[47].mean(-1)).max() < 1e-5
print(used)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
def test_a_file_larger_than_the_memory_it_takes(tmp_path):
    pytest.importorskip("zarr", reason="zarr is not installed")
    pytest.importorskip("normcore.gufuncs", reason="built without a C compiler")
    [example] = blocks("Over dask")
    done = subprocess.run(
        [sys.executable, "-c", LARGE, example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Two workers, each with a chunk of 4 MiB as bytes, as an array and normalized, take 63 MiB; the
    # code that dask and zarr load on use is some of it.
    assert float(done.stdout) < 96
