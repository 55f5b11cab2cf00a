"""ChannelStats: values, merging, order, dtypes, masks, state."""

import pickle

import numpy as np
import pytest
from arrays import SHAPES, layouts

import normcore as nc

AXES = [
    ((40, 3), 1),
    ((40, 3), -1),
    ((3, 40), 0),
    ((7, 3, 5), 1),
    ((7, 5, 4, 3), -1),
    ((8, 16, 14, 14), 1),
    ((2, 3, 2, 5, 4), 1),
]


def truth(x, axis):
    """(count, mean, population variance) in extended precision."""
    rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).astype(np.longdouble)
    mean = rows.mean(0)
    return len(rows), mean, ((rows - mean) ** 2).mean(0)


def stats_of(*batches, axis=1, **options):
    stats = nc.ChannelStats(axis)
    for batch in batches:
        stats.update(batch, **options)
    return stats


def assert_same(found, wanted, bound=1e-14):
    """Within `bound` of the scale of the data."""
    assert found.count == wanted.count
    scale = abs(wanted.mean) + wanted.std()
    assert np.all(abs(found.mean - wanted.mean) <= bound * scale)
    assert np.all(abs(found.var() - wanted.var()) <= bound * wanted.var())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize(("shape", "axis"), AXES)
def test_values(backend, shape, axis, offset, dtype):
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal(shape) * 3 + offset).astype(dtype) for _ in range(5)]
    stats = stats_of(*batches, axis=axis)
    count, mean, var = truth(np.stack(batches), axis if axis < 0 else axis + 1)
    assert stats.count == count
    assert stats.mean.dtype == stats.var().dtype == np.float64
    np.testing.assert_allclose(stats.mean, mean.astype(float), rtol=1e-15, atol=1e-14)
    # The mean of a cell comes from the kernel as one float64.
    bound = max(1e-14, 1e-16 * offset)
    np.testing.assert_allclose(stats.var(), var.astype(float), rtol=bound)
    np.testing.assert_allclose(
        stats.var(ddof=1), (var * count / (count - 1)).astype(float), rtol=bound
    )
    np.testing.assert_array_equal(stats.std(ddof=1), np.sqrt(stats.var(ddof=1)))


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize(("shape", "axis"), AXES)
def test_the_order_does_not_matter(backend, shape, axis, offset):
    rng = np.random.default_rng(1)
    batches = [rng.standard_normal(shape) + offset + i for i in range(6)]
    wanted = stats_of(*batches, axis=axis)
    assert_same(stats_of(*batches[::-1], axis=axis), wanted, 1e-15)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(6)
        assert_same(stats_of(*(batches[i] for i in order), axis=axis), wanted, 1e-15)
    parts = [stats_of(batch, axis=axis) for batch in batches]
    tree = nc.ChannelStats(axis)
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        first.merge(second)
        tree.merge(first)
    assert_same(tree, wanted, 1e-15)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_many_parts_lose_nothing(offset):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3000, 2)) * [1e-3, 1] + offset
    wanted = stats_of(x)
    one_by_one = stats_of(*x[:, None, :])
    assert_same(one_by_one, wanted, 1e-14 if offset == 0 else 1e-9)
    assert_same(stats_of(*x[::-1, None, :]), one_by_one, 1e-15)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_layouts(backend, shape, axis):
    x = np.random.default_rng(3).standard_normal(shape)
    wanted = stats_of(x, axis=axis)
    for name, given in layouts(x):
        found = stats_of(given, axis=axis)
        np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-13, atol=1e-15, err_msg=name)
        np.testing.assert_allclose(found.var(), wanted.var(), rtol=1e-13, err_msg=name)


@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", ">u2", "i2", "u4", ">i4", "i8", "f4", ">f8"])
def test_dtypes(backend, dtype):
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(4)
    if dtype.kind == "f":
        x = rng.standard_normal((6, 3, 50, 40)).astype(dtype)
    else:
        high = 2 if dtype.kind == "b" else min(np.iinfo(dtype).max, 2**40)
        x = rng.integers(0, high, (6, 3, 50, 40)).astype(dtype)
    count, mean, var = truth(x, 1)
    for given, axis in ((x, 1), (np.ascontiguousarray(x.transpose(1, 0, 2, 3)), 0)):
        stats = stats_of(given, axis=axis)
        assert stats.count == count
        np.testing.assert_allclose(stats.mean, mean.astype(float), rtol=1e-13)
        np.testing.assert_allclose(stats.var(), var.astype(float), rtol=1e-13)


def test_large_images_are_converted_in_blocks(backend):
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (40, 64, 200, 3), np.uint8)
    count, mean, var = truth(images, -1)
    stats = stats_of(images, axis=-1)
    assert stats.count == count
    np.testing.assert_allclose(stats.mean, mean.astype(float), rtol=1e-14)
    np.testing.assert_allclose(stats.var(), var.astype(float), rtol=1e-14)
    channels_first = images.transpose(0, 3, 1, 2)
    assert_same(stats_of(channels_first), stats)


@pytest.mark.parametrize(("shape", "axis"), AXES)
def test_masks(backend, shape, axis):
    rng = np.random.default_rng(6)
    x = rng.standard_normal(shape)
    positions = np.delete(shape, axis)
    mask = rng.random(positions) < 0.6
    rows = np.moveaxis(x, axis, -1)[mask]
    wanted = stats_of(rows)
    np.moveaxis(x, axis, -1)[~mask] = np.nan
    for given in (mask, mask.astype(int) * 3):
        assert_same(stats_of(x, axis=axis, mask=given), wanted)
    nothing = stats_of(x, axis=axis, mask=np.zeros(positions, bool))
    assert nothing.count == 0
    assert nothing.state() == {}
    images = rng.integers(0, 256, shape, np.uint8)
    found = stats_of(images, axis=axis, mask=mask)
    assert_same(found, stats_of(np.moveaxis(images, axis, -1)[mask]))


def test_a_state_goes_anywhere_and_back():
    rng = np.random.default_rng(7)
    batches = rng.standard_normal((6, 9, 3)) + 1e6
    wanted = stats_of(*batches)
    stats = stats_of(*batches[:3])
    state = stats.state()
    assert all(isinstance(values, np.ndarray) for values in state.values())
    twin = nc.ChannelStats.from_state(pickle.loads(pickle.dumps(state)))
    for values in state.values():
        values[...] = 0
    for batch in batches[3:]:
        twin.update(batch)
    np.testing.assert_array_equal(twin.mean, wanted.mean)
    np.testing.assert_array_equal(twin.var(), wanted.var())
    assert nc.ChannelStats.from_state({}, axis=-1).axis == -1
    assert nc.ChannelStats.from_state(nc.ChannelStats().state()).count == 0


def test_merging_with_nothing():
    stats, nothing = stats_of(np.arange(12.0).reshape(4, 3)), nc.ChannelStats()
    before = stats.state()
    stats.merge(nothing)
    nothing.merge(stats)
    stats.update(np.zeros((0, 3)))
    for found in (stats, nothing):
        for name, values in found.state().items():
            np.testing.assert_array_equal(values, before[name])
    nothing.merge(stats)
    assert stats.count == 4
    assert nothing.count == 8
    np.testing.assert_array_equal(nothing.mean, stats.mean)


def test_nan_and_infinity_stay_in_their_channel(backend):
    x = np.random.default_rng(8).standard_normal((5, 3, 4))
    clean = stats_of(x, x)
    for bad in (np.nan, np.inf):
        x[2, 1, 3] = bad
        stats = stats_of(x, x)
        assert not np.isfinite(stats.mean[1])
        assert np.isnan(stats.var()[1])
        np.testing.assert_array_equal(stats.mean[[0, 2]], clean.mean[[0, 2]])
        np.testing.assert_array_equal(stats.var()[[0, 2]], clean.var()[[0, 2]])


X = np.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda s: s.update(np.ones((4, 2))), ValueError, "x: expected 3 channels, as before"),
        (lambda s: s.update(X.astype(complex)), TypeError, "x: expected dtype"),
        (lambda s: s.update(np.array(["a"] * 3)[None]), TypeError, "x: expected dtype"),
        (lambda s: s.update(np.ones(3)), ValueError, "x: expected at least 2 dimensions"),
        (lambda s: s.update(X, mask=np.ones((4, 3))), TypeError, "mask: expected booleans"),
        (lambda s: s.update(X, mask=np.ones(3, bool)), ValueError, r"mask: expected shape \(4,\)"),
        (lambda s: s.merge(stats_of(X.T)), ValueError, "other: expected 3 channels.* got 4"),
        (lambda s: s.merge(X), TypeError, "other: expected a ChannelStats, got ndarray"),
        (lambda s: s.var(ddof=4), ValueError, "var: expected more than 4 values per channel"),
        (lambda s: s.std(ddof=9), ValueError, "var: expected more than 9 values"),
    ],
)
def test_errors_change_nothing(act, error, message):
    stats = stats_of(X)
    before = stats.state()
    with pytest.raises(error, match=message):
        act(stats)
    for name, values in stats.state().items():
        np.testing.assert_array_equal(values, before[name])


def test_nothing_has_no_mean():
    stats = nc.ChannelStats()
    for read in (lambda: stats.mean, stats.var, stats.std):
        with pytest.raises(ValueError, match="expected more than 0 values per channel"):
            read()
    with pytest.raises(TypeError, match="axis: expected an int, got None"):
        nc.ChannelStats(None)
    assert repr(nc.ChannelStats(-1)) == "ChannelStats(axis=-1): no values"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"count": None}, ValueError, "state: expected the keys count, mean, .* got mean,"),
        ({"extra": 1}, ValueError, "state: expected the keys"),
        ({"count": 0}, ValueError, "count: expected at least 1, got 0"),
        ({"count": 1.5}, TypeError, "count: expected an int, got 1.5"),
        ({"mean": 1.0}, ValueError, r"mean: expected shape \(C,\), got \(\)"),
        ({"m2": np.ones(2)}, ValueError, r"m2: expected shape \(3,\), got \(2,\)"),
        ({"m2": ["a"] * 3}, TypeError, "m2: expected dtype"),
    ],
)
def test_wrong_states(change, error, message):
    state = {**stats_of(X).state(), **change}
    state = {name: values for name, values in state.items() if values is not None}
    with pytest.raises(error, match=message):
        nc.ChannelStats.from_state(state)
