"""What is particular to the Numba kernels: vectors, flags, cache, the serial twin."""

import os
import subprocess
import sys

import numpy as np
import pytest
from normcore.kernels.intrinsics import (
    LANES,
    cast,
    first,
    load,
    load_part,
    memory,
    muladd,
    store,
    store_part,
    stream,
    sum_lanes,
)
from normcore.kernels.jit import block

from normcore.kernels import nc, nchw, running, table

MODULES = {"nchw": nchw, "nc": nc, "running": running}


@block
def _copy(y, x, length, streaming):
    y, x = memory(y), memory(x)
    whole = length // LANES * LANES
    for i in range(0, whole, LANES):
        if streaming:
            stream(y, i, load(x, i))
        else:
            store(y, i, load(x, i))
    store_part(y, whole, length - whole, load_part(x, whole, length - whole))


@block
def _sum_of_squares(x, length):
    v = cast(first(load(x, 0), length), 0.0) - 1.0
    return sum_lanes(muladd(v, v, 0.0))


def _lined_up(size, dtype):
    memory_ = np.zeros(size + 64, dtype)
    gap = -memory_.ctypes.data % 64 // memory_.itemsize
    return memory_[gap : gap + size]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("streaming", [False, True])
def test_stores_write_exactly_their_elements(dtype, streaming):
    x = np.arange(1, 54, dtype=dtype)
    x.flags.writeable = False
    y = _lined_up(80, dtype)
    _copy(y, x, 53, streaming)
    np.testing.assert_array_equal(y[:53], x)
    np.testing.assert_array_equal(y[53:], 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lanes_beyond_k_count_as_zero(dtype):
    x = np.full(LANES, np.nan, dtype)
    x[:3] = 2, 3, 4
    assert _sum_of_squares(x, 3) == 1 + 4 + 9 + (LANES - 3)


def test_streaming_stores_are_non_temporal():
    _copy(_lined_up(64, np.float32), np.ones(64, np.float32), 53, True)
    assert all("!nontemporal" in ir for ir in _copy.inspect_llvm().values())


@pytest.mark.parametrize(
    "kernel", table.KERNELS, ids=lambda kernel: f"{kernel.family}-{kernel.name}"
)
def test_arguments_and_twins_follow_the_table(kernel):
    found = getattr(MODULES[kernel.family], kernel.name)
    for twin in (found, found.serial):
        code = twin.py_func.__code__
        assert code.co_varnames[: code.co_argcount] == kernel.arguments
        assert twin.targetoptions["nogil"]
        assert not twin.targetoptions["fastmath"]
    assert "parallel" not in found.serial.targetoptions


@pytest.mark.parametrize(("family", "sizes"), [("nchw", (4, 3, 50)), ("nc", (2, 40, 19))])
def test_serial_twin_and_thread_counts_give_the_same_bits(family, sizes):
    kernels = MODULES[family]
    channels = sizes[1] if family == "nchw" else sizes[2]
    cells = channels if family == "nchw" else sizes[0] * channels
    x = np.random.default_rng(0).normal(1e4, 1, sizes).astype(np.float32).ravel()
    weight = np.linspace(-1, 1, channels, dtype=np.float32)
    results = []
    for kernel, threads in (
        (kernels.forward, 1),
        (kernels.forward, 2),
        (kernels.forward, 5),
        (kernels.forward.serial, 2),
    ):
        y, statistics = np.empty_like(x), np.empty((3, cells))
        kernel(y, *statistics, x, weight, None, 1e-5, *sizes, threads)
        results.append((y.tobytes(), statistics.tobytes()))
    assert len(set(results)) == 1


@pytest.mark.parametrize(("family", "sizes"), [("nchw", (4, 3, 50)), ("nc", (1, 200, 3))])
def test_a_wide_channel_does_not_change_its_neighbours(family, sizes):
    kernels = MODULES[family]
    axis = 1 if family == "nchw" else 2
    x = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    index = [slice(None)] * 3
    index[axis] = 1
    loud = x.copy()
    loud[tuple(index)] *= np.float32(3e37)
    results = []
    for array in (x, loud):
        y = np.empty(array.size, np.float32)
        kernels.forward.serial(y, *np.empty((3, 3)), array.ravel(), None, None, 1e-5, *sizes, 1)
        results.append(y.reshape(sizes))
    assert np.isfinite(results[1]).all()
    np.testing.assert_allclose(results[1][tuple(index)], results[0][tuple(index)], atol=3e-5)
    index[axis] = [0, 2]
    np.testing.assert_array_equal(results[1][tuple(index)], results[0][tuple(index)])


def _run(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_import_compiles_nothing():
    code = (
        "from normcore.kernels import nchw, nc, running\n"
        "print(sum(len(k.signatures) + len(k.serial.signatures)\n"
        "          for m in (nchw, nc) for k in (m.moments, m.apply, m.forward, m.backward)),\n"
        "      len(running.update.signatures))"
    )
    assert _run(code).split() == ["0", "0"]


def test_runs_without_a_place_for_the_cache():
    # What Numba does in a read-only install without HOME: no locator, RuntimeError.
    code = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from normcore.kernels import running\n"
        "mean, var = np.zeros(2), np.ones(2)\n"
        "running.update(mean, var, None, np.full(2, 2.0), np.full(2, 4.0), 0.5, 2, False)\n"
        "print(mean[0], var[0])"
    )
    assert _run(code).split() == ["1.0", "4.5"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_update_skips_channels_that_are_not_finite(dtype):
    mean, var, tracked = np.zeros(3, dtype), np.ones(3, dtype), np.zeros(1, np.int64)
    new = np.array([1.0, np.nan, 2.0])
    running.update(mean, var, tracked, new, np.array([1.0, 1.0, np.inf]), 0.25, 5, True)
    np.testing.assert_array_equal(mean, [0.25, 0, 0])
    np.testing.assert_array_equal(var, np.array([0.75 + 0.25 * 1.25, 1, 1], dtype))
    assert tracked[0] == 1
