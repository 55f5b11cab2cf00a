"""Freezing of running statistics and of weight and bias, apart and together."""

import copy
import pickle

import numpy as np
import pytest
from arrays import assert_close, case

import normcore as nc

T = case((4, 3, 5, 2))


def layer(**options):
    bn = nc.BatchNorm2d(3, **options)
    if bn.weight is not None:
        bn.weight[...], bn.bias[...] = T.weight, T.bias
    return bn


def test_affine_alone_trains_on_the_batch(backend):
    bn = layer().freeze(statistics=False, affine=True)
    assert (bn.frozen, bn.frozen_affine) == (False, True)
    assert_close(bn(T.x), T.y, 1e-6)
    assert bn.num_batches_tracked == 1
    dx, dweight, dbias = bn.backward(T.dy)
    assert_close(dx, T.dx, 1e-6)
    assert dweight is dbias is None


def test_statistics_alone_train_weight_and_bias(backend):
    bn = layer().freeze()
    assert (bn.frozen, bn.frozen_affine) == (True, False)
    bn(T.x)
    assert bn.num_batches_tracked == 0
    _, dweight, dbias = bn.backward(T.dy)
    np.testing.assert_allclose(dbias, T.dy.sum((0, 2, 3)), rtol=1e-5, atol=1e-5)
    assert_close(dweight, np.sum(T.dy * T.x, (0, 2, 3)), 1e-4, 10)


def test_both():
    bn = layer().freeze(affine=True)
    assert (bn.frozen, bn.frozen_affine) == (True, True)


def test_one_freeze_leaves_the_other_as_it_was():
    bn = layer().freeze(statistics=False, affine=True).freeze()
    assert (bn.frozen, bn.frozen_affine) == (True, True)
    assert bn.unfreeze(affine=False) is bn
    assert (bn.frozen, bn.frozen_affine) == (False, True)
    bn.freeze().unfreeze(statistics=False)
    assert (bn.frozen, bn.frozen_affine) == (True, False)
    bn.freeze(affine=True).unfreeze()
    assert (bn.frozen, bn.frozen_affine) == (False, False)


@pytest.mark.parametrize(
    "change",
    [
        lambda bn: bn.train(),
        lambda bn: bn.eval().train(),
        lambda bn: bn.load_state_dict(bn.state_dict()) and bn,
        copy.deepcopy,
        lambda bn: pickle.loads(pickle.dumps(bn)),
    ],
)
@pytest.mark.parametrize("frozen", [(True, False), (False, True), (True, True)])
def test_it_survives(change, frozen):
    statistics, affine = frozen
    bn = change(layer().freeze(affine, statistics=statistics))
    assert (bn.frozen, bn.frozen_affine) == frozen
    before = bn.state_dict()
    bn(T.x)
    assert (bn.backward(T.dy).dweight is None) is affine
    assert np.array_equal(before["running_mean"], bn.running_mean) is statistics


def test_without_running_statistics_weight_and_bias_can_still_be_frozen(backend):
    bn = layer(track_running_stats=False).freeze(statistics=False, affine=True)
    assert_close(bn(T.x), T.y, 1e-6)
    assert bn.backward(T.dy)[1:] == (None, None)


@pytest.mark.parametrize(
    ("options", "what", "message"),
    [
        ({"track_running_stats": False}, {}, r"no running statistics .* freeze\(statistics=False"),
        ({"track_running_stats": False}, {"affine": True}, "no running statistics"),
        ({}, {"statistics": False}, "nothing to freeze in BatchNorm2d with statistics=False"),
        ({"affine": False}, {"statistics": False, "affine": True}, "nothing to freeze"),
    ],
)
def test_nothing_to_freeze(options, what, message):
    bn = layer(**options)
    with pytest.raises(ValueError, match=message):
        bn.freeze(**what)
    assert (bn.frozen, bn.frozen_affine) == (False, False)
    bn(T.x)
    assert bn.backward(T.dy).dx.shape == T.x.shape
