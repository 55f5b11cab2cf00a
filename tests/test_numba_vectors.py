"""What the Numba kernels compute with: loads and stores of 16 lanes, halves, activations."""

import ml_dtypes
import numba
import numpy as np
import pytest
from normcore.kernels.activations import activated, activation_slope
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
)
from normcore.kernels.jit import FLAGS
from normcore.kernels.registers import sum_lanes
from normcore.kernels.table import ACTIVATIONS

from normcore import reference

compiled = numba.njit(**FLAGS)


@compiled
def _copy(y, x, length, streaming):
    y, x = memory(y), memory(x)
    whole = length // LANES * LANES
    for i in range(0, whole, LANES):
        if streaming:
            stream(y, i, load(x, i))
        else:
            store(y, i, load(x, i))
    store_part(y, whole, length - whole, load_part(x, whole, length - whole))


@compiled
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


# float16 and bfloat16, which Numba sees as int16 and uint16
HALVES = pytest.mark.parametrize(
    ("dtype", "seen"), [(np.float16, np.int16), (ml_dtypes.bfloat16, np.uint16)], ids=str
)


@HALVES
@pytest.mark.parametrize("streaming", [False, True])
def test_every_half_survives_load_and_store(dtype, seen, streaming):
    bits = np.arange(2**16, dtype=np.uint16)
    y = _lined_up(bits.size + 7, seen)
    _copy(y, bits.view(seen), bits.size - 3, streaming)
    number = ~np.isnan(bits[:-3].view(dtype).astype(np.float32))
    np.testing.assert_array_equal(y[:-10].view(np.uint16)[number], bits[:-3][number])
    assert np.isnan(y[:-10].view(dtype).astype(np.float32)[~number]).all()
    np.testing.assert_array_equal(y[-10:], 0)


@HALVES
@pytest.mark.parametrize("streaming", [False, True])
def test_float32_is_rounded_once_as_it_is_stored(dtype, seen, streaming):
    random = np.random.default_rng(0)
    x = random.integers(0, 2**32, 100_003, dtype=np.uint32).view(np.float32)
    # Halves, and what lies halfway between two of them and just beside that.
    least = np.uint32(1 << (12 if dtype == np.float16 else 15))
    halfway = (x.view(np.uint32) & ~(2 * least - 1)) | least
    beside = [halfway, halfway + np.uint32(1), halfway - np.uint32(1)]
    x = np.concatenate([x, *(bits.view(np.float32) for bits in beside)])
    # float16's subnormals, and numbers beyond its range.
    more = np.concatenate([random.uniform(-1e-6, 1e-6, 999), [65519, 65520, -7e4, 3.4e38]])
    x = np.concatenate([x, more.astype(np.float32)])
    y = _lined_up(x.size, seen)
    _copy(y, x, x.size, streaming)
    with np.errstate(all="ignore"):
        want = x.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(y.view(dtype).astype(np.float32), want)


@compiled
def _activate(y, slope, z, activation):
    y, slope, z = memory(y), memory(slope), memory(z)
    for i in range(0, 4096, LANES):
        v = load(z, i)
        store(y, i, activated(v, activation))
        store(slope, i, activation_slope(v, activation))


@pytest.mark.parametrize(("dtype", "allowed"), [(np.float32, 3e-7), (np.float64, 2e-15)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_slopes(dtype, allowed, name):
    # Around 0, on both sides of where exp leaves the range, and far beyond.
    z = np.concatenate([np.linspace(-9, 9, 2000), np.linspace(-120, 120, 1048)])
    z = np.concatenate([z, np.geomspace(1e-30, 1e30, 524), -np.geomspace(1e-30, 1e30, 524)])
    z = z.astype(dtype)
    z[:8] = 0, -0.0, 6, np.nextafter(dtype(6), dtype(9)), -6, 1, -1, np.nextafter(dtype(6), 0)
    y, slope = np.empty_like(z), np.empty_like(z)
    number = ACTIVATIONS[name]
    _activate(y, slope, z, number)
    exact = z.astype(np.longdouble)
    with np.errstate(all="ignore"):
        want, want_slope = reference.ACTIVATION[number](exact), reference.SLOPE[number](exact)
    assert (np.abs(y - want) / np.maximum(1, np.abs(want))).max() <= allowed
    assert np.abs(slope - want_slope).max() <= allowed
