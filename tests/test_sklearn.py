"""ChannelScaler is StandardScaler, for any rank."""

import pickle

import numpy as np
import pytest
from readme import blocks

REASON = "scikit-learn is not installed"
preprocessing = pytest.importorskip("sklearn.preprocessing", reason=REASON)
checks = pytest.importorskip("sklearn.utils.estimator_checks", reason=REASON)
ChannelScaler = pytest.importorskip("normcore.sklearn", reason=REASON).ChannelScaler


@checks.parametrize_with_checks([ChannelScaler(), ChannelScaler(with_mean=False, axis=-1)])
def test_what_scikit_learn_asks_of_an_estimator(estimator, check):
    check(estimator)


FLAGS = [(True, True), (True, False), (False, True), (False, False)]
DTYPES = [np.float64, np.float32, np.int32, np.uint8]


def _data(dtype, shape=(200, 5)):
    random = np.random.default_rng(0)
    x = random.normal(100, 20, shape)
    x[:, 2] = 7  # a constant channel
    return x.astype(dtype)


@pytest.mark.parametrize(("with_mean", "with_std"), FLAGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_standard_scaler(with_mean, with_std, dtype):
    x = _data(dtype)
    ours, theirs = (
        scaler(with_mean=with_mean, with_std=with_std)
        for scaler in (ChannelScaler, preprocessing.StandardScaler)
    )
    # In float64, because StandardScaler subtracts a mean that it has rounded to float32.
    found, expected = ours.fit_transform(x), theirs.fit_transform(x.astype(np.float64))
    assert found.dtype == theirs.transform(x).dtype
    bound = 1e-6 if dtype == np.float32 else 1e-13
    np.testing.assert_allclose(found, expected, rtol=bound, atol=bound)
    np.testing.assert_allclose(ours.inverse_transform(found), x, rtol=bound)
    for name in ("mean_", "var_", "scale_"):
        assert (getattr(ours, name) is None) == (getattr(theirs, name) is None), name
        if getattr(ours, name) is not None:
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-6)
    assert ours.n_samples_seen_ == 200


@pytest.mark.parametrize(("shape", "axis"), [((6, 5, 9), 1), ((6, 4, 3, 5), -1), ((5, 70), 0)])
def test_channels_of_any_axis(shape, axis):
    x = np.random.default_rng(1).normal(3, 2, shape)
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    expected = (x - x.mean(others, keepdims=True)) / x.std(others, keepdims=True)
    scaler = ChannelScaler(axis=axis).fit(x)
    found = scaler.transform(x)
    assert found.shape == x.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(scaler.inverse_transform(found), x, rtol=1e-13)
    assert scaler.n_features_in_ == 5
    assert scaler.n_samples_seen_ == x.size // 5


def test_batches_give_what_the_whole_gives_at_any_offset():
    x = np.random.default_rng(2).standard_normal((1000, 4)) + 1e6
    whole, parts = ChannelScaler().fit(x), ChannelScaler()
    for batch in np.array_split(x, 7):
        parts.partial_fit(batch)
    np.testing.assert_allclose(parts.mean_, whole.mean_, rtol=1e-15)
    np.testing.assert_allclose(parts.var_, whole.var_, rtol=1e-11)
    y = pickle.loads(pickle.dumps(parts)).transform(x)
    assert np.abs(y.mean(0)).max() < 1e-9
    # A clone of a batch's statistics must not be the next one's.
    before = parts.mean_.copy()
    ChannelScaler().partial_fit(x)
    np.testing.assert_array_equal(parts.mean_, before)


def test_copy_false_writes_over_what_was_given():
    x = _data(np.float32)
    expected = ChannelScaler().fit_transform(x)
    found = ChannelScaler(copy=False).fit_transform(x)
    assert np.shares_memory(found, x)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_and_nothing_is_taken_in(value):
    x = _data(np.float64)
    scaler = ChannelScaler().fit(x)
    before = scaler.mean_.copy()
    x[3, 1] = value
    with pytest.raises(ValueError, match="contains"):
        scaler.partial_fit(x)
    np.testing.assert_array_equal(scaler.mean_, before)
    assert scaler.n_samples_seen_ == 200


def test_the_readmes_example():
    names = {}
    [example] = blocks("In a scikit-learn pipeline")
    exec(compile(example, "README.md", "exec"), names)
    assert names["model"].score(names["x"], names["x"][:, 0] > 1e4) > 0.9
    assert np.abs(names["y"].mean((0, 1, 2))).max() < 1e-12
    np.testing.assert_allclose(names["y"].std((0, 1, 2)), 1, rtol=1e-12)
