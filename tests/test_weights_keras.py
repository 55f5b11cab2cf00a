"""Keras layers to normcore's and back: the same results, in evaluation and in training.

Each trap of CONVENTIONS has an assertion that fails if it is stepped into.
"""

import os

import numpy as np
import pytest

import normcore as nc
from normcore import weights

os.environ.setdefault("KERAS_BACKEND", "numpy")
keras = pytest.importorskip("keras", reason="Keras is not installed")


def randomized(layer, shape):
    """The layer, built for arrays of this shape, with random weights."""
    layer.build((None, *shape[1:]))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.uniform(0.5, 1.5, w.shape).astype(w.dtype) for w in layer.weights])
    return layer


def data(shape, seed=1):
    return np.random.default_rng(seed).normal(3, 2, shape).astype(np.float32)


def numpy(values):
    return keras.ops.convert_to_numpy(getattr(values, "value", values))


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


CASES = {
    "batch-2d": (keras.layers.BatchNormalization(momentum=0.97), (6, 4), nc.BatchNorm1d),
    "batch-4d": (keras.layers.BatchNormalization(), (4, 5, 3, 2), nc.BatchNorm2d),
    "batch-first": (keras.layers.BatchNormalization(axis=1), (4, 3, 5, 2), nc.BatchNorm2d),
    "batch-5d": (keras.layers.BatchNormalization(epsilon=0.1), (2, 3, 2, 3, 4), nc.BatchNorm3d),
    "batch-scale": (keras.layers.BatchNormalization(center=False), (6, 4), nc.BatchNorm1d),
    "batch-plain": (
        *(keras.layers.BatchNormalization(center=False, scale=False), (6, 4)),
        nc.BatchNorm1d,
    ),
    "layer": (keras.layers.LayerNormalization(), (3, 4, 5), nc.LayerNorm),
    "layer-axes": (keras.layers.LayerNormalization(axis=(-1, -2)), (3, 4, 5), nc.LayerNorm),
    "layer-first": (keras.layers.LayerNormalization(axis=1), (3, 4, 5), nc.LayerNorm),
    "layer-scale": (keras.layers.LayerNormalization(center=False), (3, 5), nc.LayerNorm),
    "layer-shift": (keras.layers.LayerNormalization(scale=False), (3, 5), nc.LayerNorm),
    "group": (keras.layers.GroupNormalization(3), (2, 4, 5, 6), nc.GroupNorm),
    "group-first": (keras.layers.GroupNormalization(3, axis=1), (2, 6, 4, 5), nc.GroupNorm),
    "group-instance": (keras.layers.GroupNormalization(-1), (2, 7, 6), nc.GroupNorm),
    "group-plain": (
        *(keras.layers.GroupNormalization(2, center=False, scale=False), (2, 7, 6)),
        nc.GroupNorm,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    theirs, shape, kind = CASES[request.param]
    theirs = type(theirs).from_config(theirs.get_config())
    return randomized(theirs, shape), shape, kind


def test_from_keras_and_back(case):
    theirs, shape, kind = case
    ours = weights.from_keras(theirs)
    assert isinstance(ours, kind)
    assert ours.eps == theirs.epsilon  # 1e-3 by default, not 1e-5
    x = data(shape)
    assert_close(
        ours.eval()(x), numpy(theirs(x, training=False) if "Batch" in kind.__name__ else theirs(x))
    )
    again = weights.to_keras(ours, (None, *shape[1:]))
    assert type(again) is type(theirs)
    np.testing.assert_array_equal(numpy(again(x)), numpy(theirs(x)))
    assert repr(weights.from_keras(again)) == repr(ours)


@pytest.mark.parametrize("axis", [-1, 1])
def test_training_moves_the_statistics_alike(axis):
    """Traps: momentum is the complement; Keras's new variance is not the unbiased one."""
    shape = (4, 5, 3, 2)
    theirs = randomized(keras.layers.BatchNormalization(axis=axis, momentum=0.9), shape)
    ours = weights.from_keras(theirs)
    assert ours.momentum == 0.1
    assert ours.axis == axis
    old = numpy(theirs.moving_variance).copy()
    for seed in (1, 2):
        x = data(shape, seed)
        assert_close(ours(x), numpy(theirs(x, training=True)))
        assert_close(ours.running_mean, numpy(theirs.moving_mean))
        if seed == 1:
            count = x.size // shape[axis]
            step = numpy(theirs.moving_variance) - 0.9 * old
            assert_close(ours.running_var, 0.9 * old + step * count / (count - 1))
            assert np.abs(ours.running_var / numpy(theirs.moving_variance) - 1).max() > 1e-3
    again = weights.to_keras(ours, (None, *shape[1:]))
    assert again.momentum == 0.9
    np.testing.assert_array_equal(numpy(again.moving_variance), ours.running_var)


def test_names():
    """Trap: gamma, beta, moving_mean and moving_variance are four arrays of one shape."""
    theirs = keras.layers.BatchNormalization()
    theirs.build((None, 2))
    named = {"gamma": 1.0, "beta": 2.0, "moving_mean": 3.0, "moving_variance": 4.0}
    theirs.set_weights([np.full(2, named[w.name], np.float32) for w in theirs.weights])
    state = weights.from_keras(theirs).state_dict()
    found = {key: float(values.ravel()[0]) for key, values in state.items()}
    assert found == {
        **{"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4, "num_batches_tracked": 0}
    }


def test_dtypes():
    double = keras.layers.LayerNormalization(dtype="float64")
    half = keras.layers.LayerNormalization(dtype="bfloat16")
    for layer, dtype in ((double, np.float64), (half, np.float32)):
        assert weights.from_keras(randomized(layer, (2, 3))).weight.dtype == dtype
    found = weights.to_keras(nc.BatchNorm1d(3, dtype=np.float64), (None, 3))
    assert found.variable_dtype == "float64"


def wrong():
    layers = keras.layers
    yield layers.LayerNormalization(), ValueError, "expected a built one"
    renorm = layers.BatchNormalization(renorm=True)
    yield randomized(renorm, (2, 3)), ValueError, "expected renorm=False"
    plain = layers.LayerNormalization(center=False, scale=False)
    yield randomized(plain, (2, 3)), ValueError, "does not know the lengths"
    yield layers.Dense(3), TypeError, "expected one of Keras's Batch.*got Dense"
    yield nc.LayerNorm(3), TypeError, "got LayerNorm"


@pytest.mark.parametrize(("layer", "error", "message"), list(wrong()))
def test_what_cannot_be_read(layer, error, message):
    with pytest.raises(error, match=message):
        weights.from_keras(layer)


@pytest.mark.parametrize(
    ("layer", "shape", "error", "message"),
    [
        (nc.BatchNorm2d(3, activation="relu"), (None, 3, 4, 4), ValueError, "no activation"),
        (nc.BatchNorm2d(3, track_running_stats=False), (None, 3, 4, 4), ValueError, "running stat"),
        (nc.BatchNorm2d(3, momentum=None), (None, 3, 4, 4), ValueError, "momentum, got None"),
        (nc.BatchNorm2d(3), (None, 4, 4, 3), ValueError, "input_shape: expected length 3 along"),
        (nc.LayerNorm((3, 4), axis=(2, 1)), (None, 4, 3), ValueError, "ascending order"),
        (nc.RMSNorm(3), (None, 3), TypeError, "expected a BatchNorm, LayerNorm or Group.*RMSNorm"),
    ],
)
def test_what_cannot_be_written(layer, shape, error, message):
    with pytest.raises(error, match=message):
        weights.to_keras(layer, shape)
