"""The layers: state, modes, freezing, backward, state dicts, copies."""

import copy
import pickle

import numpy as np
import pytest
from arrays import assert_close, case

import normcore as nc

LAYERS = [
    (nc.BatchNorm1d, (6, 3), 1),
    (nc.BatchNorm1d, (6, 3, 5), 1),
    (nc.BatchNorm2d, (4, 3, 5, 2), 1),
    (nc.BatchNorm2d, (4, 5, 2, 3), -1),
    (nc.BatchNorm3d, (2, 3, 4, 2, 3), 1),
]
KEYS = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def layer_for(t, kind=nc.BatchNorm2d, **options):
    bn = kind(t.weight.size, axis=t.axis, **options)
    if bn.weight is not None:
        bn.weight[...], bn.bias[...] = t.weight, t.bias
    return bn


def snapshot(bn):
    return pickle.dumps(bn.state_dict())


@pytest.mark.parametrize(("kind", "shape", "axis"), LAYERS)
def test_a_training_step_matches_the_oracle(backend, kind, shape, axis):
    t = case(shape, axis)
    bn = layer_for(t, kind, dtype=np.float64)
    assert_close(bn(t.x), t.y, 1e-6)
    np.testing.assert_allclose(bn.running_mean, 0.1 * t.mean, rtol=1e-7)
    unbiased = t.var * t.count / (t.count - 1)
    np.testing.assert_allclose(bn.running_var, 0.9 + 0.1 * unbiased, rtol=1e-7)
    assert bn.num_batches_tracked == 1
    dx, dweight, dbias = bn.backward(t.dy)
    assert_close(dx, t.dx, 1e-6)
    assert_close(dweight, t.dweight, 1e-6, t.summands)
    assert_close(dbias, t.dbias, 1e-6, np.sqrt(t.count))


def test_initial_state():
    bn = nc.BatchNorm2d(3)
    assert list(bn.state_dict()) == KEYS
    assert (bn.weight == 1).all()
    assert (bn.bias == 0).all()
    assert (bn.running_mean == 0).all()
    assert (bn.running_var == 1).all()
    assert bn.num_batches_tracked.shape == ()
    assert bn.num_batches_tracked.dtype == np.int64
    assert {bn.state_dict()[key].dtype for key in KEYS[:4]} == {np.dtype(np.float32)}
    assert (bn.num_features, bn.eps, bn.momentum, bn.training) == (3, 1e-5, 0.1, True)
    assert list(nc.BatchNorm2d(3, affine=False, track_running_stats=False).state_dict()) == []
    assert nc.BatchNorm1d(2, dtype=np.float64).weight.dtype == np.float64


def test_evaluation_uses_and_keeps_the_running_statistics(backend):
    t = case((4, 3, 5, 2))
    bn = layer_for(t)
    for _ in range(3):
        bn(t.x)
    before = snapshot(bn)
    assert bn.eval() is bn
    y = bn(t.x)
    expected = nc.functional.batch_norm(t.x, bn.running_mean, bn.running_var, t.weight, t.bias)
    np.testing.assert_array_equal(y, expected)
    assert snapshot(bn) == before
    assert bn.train() is bn
    assert bn.training
    bn.train(False)
    assert not bn.training


def test_out(backend):
    t = case((4, 3, 5, 2))
    bn = layer_for(t)
    y = np.empty_like(t.x)
    assert bn(t.x, out=y) is y
    assert_close(y, t.y, 1e-6)
    dx = np.empty_like(t.x)
    assert bn.backward(t.dy, out=dx).dx is dx
    assert_close(dx, t.dx, 1e-6)
    x = t.x.copy()
    assert bn.eval()(x, out=x) is x


def test_cumulative_average(backend):
    bn = nc.BatchNorm1d(2, momentum=None, dtype=np.float64)
    batches = np.random.default_rng(0).standard_normal((5, 8, 2))
    for batch in batches:
        bn(batch)
    np.testing.assert_allclose(bn.running_mean, batches.mean((0, 1)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(bn.running_var, batches.var(1, ddof=1).mean(0), rtol=1e-12)


def test_without_running_statistics_evaluation_uses_the_batch(backend):
    t = case((4, 3, 5, 2))
    bn = layer_for(t, track_running_stats=False).eval()
    assert bn.running_mean is bn.running_var is bn.num_batches_tracked is None
    assert_close(bn(t.x), t.y, 1e-6)
    dx, dweight, _ = bn.backward(t.dy, t.x)
    assert_close(dx, t.dx, 1e-6)
    assert_close(dweight, t.dweight, 1e-6, t.summands)


def test_without_affine_there_are_no_parameter_gradients(backend):
    t = case((4, 3, 5, 2))
    bn = nc.BatchNorm2d(3, affine=False)
    assert bn.weight is bn.bias is None
    y = bn(t.x)
    np.testing.assert_array_equal(y, nc.functional.batch_norm(t.x, None, None, training=True))
    dx, dweight, dbias = bn.backward(t.dy)
    assert dx.shape == t.x.shape
    assert dweight is dbias is None


def test_freeze_survives_train(backend):
    t = case((4, 3, 5, 2))
    bn = layer_for(t)
    bn(t.x)
    before = snapshot(bn)
    assert bn.freeze() is bn
    assert bn.frozen
    evaluated = bn.eval()(t.x)
    y = bn.train()(t.x)
    np.testing.assert_array_equal(y, evaluated)
    assert snapshot(bn) == before
    rstd = 1 / np.sqrt(bn.running_var.astype(np.float64) + bn.eps)
    dx, dweight, dbias = bn.backward(t.dy)
    assert_close(dx, t.dy * (rstd * t.weight)[:, None, None], 1e-6)
    x_hat = (t.x - bn.running_mean[:, None, None]) * rstd[:, None, None]
    np.testing.assert_allclose(dweight, np.sum(t.dy * x_hat, (0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dbias, t.dy.sum((0, 2, 3)), rtol=1e-5, atol=1e-5)
    bn.freeze(affine=True)(t.x)
    assert bn.backward(t.dy)[1:] == (None, None)
    assert bn.unfreeze() is bn
    assert not bn.frozen
    assert_close(bn(t.x), t.y, 1e-6)
    assert bn.num_batches_tracked == 2


def test_freeze_needs_running_statistics():
    with pytest.raises(ValueError, match="no running statistics"):
        nc.BatchNorm1d(3, track_running_stats=False).freeze()


def test_backward_after_evaluation_needs_x(backend):
    t = case((4, 3, 5, 2))
    bn = layer_for(t)
    bn(t.x)
    bn.eval()(t.x)
    with pytest.raises(RuntimeError, match=r"evaluation keeps no input.*backward\(dy, x\)"):
        bn.backward(t.dy)
    dx, _, dbias = bn.backward(t.dy, t.x)
    rstd = 1 / np.sqrt(bn.running_var.astype(np.float64) + bn.eps)
    assert_close(dx, t.dy * (rstd * t.weight)[:, None, None], 1e-6)
    np.testing.assert_allclose(dbias, t.dy.sum((0, 2, 3)), rtol=1e-5, atol=1e-5)
    bn.train()
    with pytest.raises(RuntimeError, match="no training-mode forward"):
        bn.backward(t.dy)
    assert_close(bn.backward(t.dy, t.x).dx, t.dx, 1e-6)


def test_evaluation_holds_no_reference_to_its_input(backend):
    import sys

    x = np.ones((2, 3, 4, 5), np.float32)
    bn = nc.BatchNorm2d(3).eval()
    before = sys.getrefcount(x)
    bn(x)
    assert sys.getrefcount(x) == before


def test_backward_after_overwriting_x(backend):
    t = case((4, 3, 5, 2))
    bn = layer_for(t)
    x = t.x.copy()
    bn(x, out=x)
    with pytest.raises(RuntimeError, match="x was overwritten"):
        bn.backward(t.dy)
    assert_close(bn.backward(t.dy, t.x).dx, t.dx, 1e-6)


def test_state_dict_is_a_copy_and_loads_in_place():
    t = case((4, 3, 5, 2))
    bn = layer_for(t)
    bn(t.x)
    state = bn.state_dict()
    other = nc.BatchNorm2d(3, dtype=np.float64)
    weight = other.weight
    assert other.load_state_dict(state) == ([], [])
    assert other.weight is weight
    for key in KEYS:
        np.testing.assert_array_equal(getattr(other, key), state[key], key)
        assert not np.shares_memory(getattr(bn, key), state[key])
    assert other.weight.dtype == np.float64
    assert other.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bias": None}, ValueError, "missing: bias; unexpected: none"),
        ({"gamma": np.ones(3)}, ValueError, "missing: none; unexpected: gamma"),
        ({"running_var": np.ones(4)}, ValueError, r"running_var: expected shape \(3,\), got \(4,"),
        ({"num_batches_tracked": np.zeros(1, int)}, ValueError, r"expected shape \(\), got \(1,"),
        ({"num_batches_tracked": 1.5}, TypeError, "expected integers, got dtype float64"),
        (
            {"bias": np.ones(3, int)},
            TypeError,
            "bias: expected floating-point numbers, got dtype i",
        ),
        ({"running_mean": ["a", "b", "c"]}, TypeError, "running_mean: expected floating-point"),
    ],
)
def test_a_wrong_state_dict_changes_nothing(change, error, message):
    bn = nc.BatchNorm2d(3)
    state = {key: values + 5 for key, values in bn.state_dict().items()} | change
    state = {key: values for key, values in state.items() if values is not None}
    before = snapshot(bn)
    with pytest.raises(error, match=message):
        bn.load_state_dict(state)
    assert snapshot(bn) == before


def test_a_state_dict_that_is_not_strict():
    bn = nc.BatchNorm2d(3)
    found = bn.load_state_dict({"bias": np.full(3, 4.0), "gamma": 1}, strict=False)
    assert found.missing_keys == [key for key in KEYS if key != "bias"]
    assert found.unexpected_keys == ["gamma"]
    assert (bn.bias == 4).all()
    assert (bn.weight == 1).all()


def test_reset():
    t = case((4, 3, 5, 2))
    bn = layer_for(t)
    bn(t.x)
    mean = bn.running_mean
    bn.reset_running_stats()
    assert bn.running_mean is mean
    assert (mean == 0).all()
    assert (bn.running_var == 1).all()
    assert bn.num_batches_tracked == 0
    np.testing.assert_array_equal(bn.weight, t.weight)
    bn(t.x)
    bn.reset_parameters()
    assert snapshot(bn) == snapshot(nc.BatchNorm2d(3))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])
def test_copies_are_equal_and_independent(duplicate):
    t = case((4, 3, 5, 2))
    bn = layer_for(t, momentum=None, skip_nonfinite=True)
    bn(t.x)
    bn.freeze(affine=True)
    twin = duplicate(bn)
    assert repr(twin) == repr(bn)
    assert snapshot(twin) == snapshot(bn)
    assert twin.frozen
    np.testing.assert_array_equal(twin(t.x), bn(t.x))
    before = snapshot(bn)
    twin.unfreeze()(t.x)
    assert twin.num_batches_tracked == 2
    assert snapshot(bn) == before


def test_activations_are_not_pickled():
    bn = nc.BatchNorm1d(2)
    empty = len(pickle.dumps(bn))
    bn(np.ones((1000, 2), np.float32))
    assert abs(len(pickle.dumps(bn)) - empty) < 100


def test_repr():
    assert repr(nc.BatchNorm1d(8, momentum=None, affine=False)) == (
        "BatchNorm1d(8, eps=1e-05, momentum=None, affine=False, track_running_stats=True)"
    )
    assert repr(nc.BatchNorm2d(8, axis=-1, dtype=np.float64)).endswith(", axis=-1, dtype=float64)")


def test_skip_nonfinite_keeps_a_bad_batch_out(backend):
    t = case((4, 3, 5, 2))
    t.x[0, 1, 0, 0] = np.nan
    bn, poisoned = nc.BatchNorm2d(3, skip_nonfinite=True), nc.BatchNorm2d(3)
    np.testing.assert_array_equal(bn(t.x), poisoned(t.x))
    assert np.isnan(poisoned.running_mean).tolist() == [False, True, False]
    np.testing.assert_array_equal(bn.running_mean[[0, 2]], poisoned.running_mean[[0, 2]])
    assert bn.running_mean[1] == 0
    assert bn.running_var[1] == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_features": 0}, ValueError, "num_features: expected at least 1, got 0"),
        ({"num_features": 2.5}, TypeError, "num_features: expected an int, got 2.5"),
        ({"eps": 0.0}, ValueError, "eps: expected a positive"),
        ({"momentum": 2}, ValueError, "momentum: expected a number from 0 to 1, got 2"),
        ({"axis": 4}, ValueError, "axis: expected an axis of a 4-D array, got 4"),
        ({"axis": None}, TypeError, "axis: expected an int, got None"),
        ({"dtype": np.float16}, TypeError, "dtype: expected float32 or float64, got float16"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        nc.BatchNorm2d(**{"num_features": 3, **options})


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (nc.BatchNorm1d, (4, 3, 5, 2), r"BatchNorm1d expects a 2-D or 3-D array, got shape \(4, 3"),
        (nc.BatchNorm2d, (4, 3, 5), r"BatchNorm2d expects a 4-D array"),
        (nc.BatchNorm3d, (4, 3, 5, 2), r"BatchNorm3d expects a 5-D array"),
        (nc.BatchNorm2d, (4, 5, 5, 3), r"expected 3 channels along axis 1, got shape \(4, 5, 5, 3"),
        (nc.BatchNorm2d, (1, 3, 1, 1), "Expected more than 1 value per channel when training"),
    ],
)
def test_a_wrong_input_changes_nothing(kind, shape, message):
    bn = kind(3)
    before = snapshot(bn)
    with pytest.raises(ValueError, match=message):
        bn(np.ones(shape, np.float32))
    assert snapshot(bn) == before


def test_an_empty_batch_is_not_counted(backend):
    bn = nc.BatchNorm2d(3)
    before = snapshot(bn)
    assert bn(np.zeros((0, 3, 5, 5), np.float32)).shape == (0, 3, 5, 5)
    assert snapshot(bn) == before
    dx, dweight, _ = bn.backward(np.zeros((0, 3, 5, 5), np.float32))
    assert dx.shape == (0, 3, 5, 5)
    assert (dweight == 0).all()
