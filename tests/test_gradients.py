"""Backward passes against central differences, in float64, along random directions."""

import numpy as np
import pytest
from arrays import SHAPES, case

import normcore as nc
from normcore.functional import batch_norm, batch_norm_backward, batch_norm_forward

# (f(x + h v) - f(x - h v)) / 2h: the truncation error goes with h^2, rounding with 1e-16 / h.
STEP = 1e-5
SMALL = [(shape, axis) for shape, axis in SHAPES if np.prod(shape) < 2000]


def slope(loss, value, direction):
    return (loss(value + STEP * direction) - loss(value - STEP * direction)) / (2 * STEP)


def directions(values, count=3):
    rng = np.random.default_rng(7)
    for _ in range(count):
        v = rng.standard_normal(values.shape)
        yield v / np.linalg.norm(v)


def assert_gradient(loss, value, gradient):
    for v in directions(value):
        np.testing.assert_allclose(np.sum(gradient * v), slope(loss, value, v), atol=1e-8, rtol=0)


@pytest.mark.parametrize(("shape", "axis"), SMALL)
def test_training(backend, shape, axis):
    t = case(shape, axis, np.float64)
    dy = t.dy / np.linalg.norm(t.dy)

    def loss(x, weight, bias):
        return np.sum(batch_norm(x, None, None, weight, bias, True, eps=1e-2, axis=axis) * dy)

    _, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias, eps=1e-2, axis=axis)
    dx, dweight, dbias = batch_norm_backward(dy, t.x, mean, rstd, t.weight, axis=axis)
    assert_gradient(lambda x: loss(x, t.weight, t.bias), t.x, dx)
    assert_gradient(lambda weight: loss(t.x, weight, t.bias), t.weight, dweight)
    assert_gradient(lambda bias: loss(t.x, t.weight, bias), t.bias, dbias)


@pytest.mark.parametrize(("shape", "axis"), SMALL)
def test_evaluation(backend, shape, axis):
    t = case(shape, axis, np.float64)
    dy = t.dy / np.linalg.norm(t.dy)
    mean, var = t.mean + 0.3, t.var * 1.5

    def loss(x, weight, bias):
        return np.sum(batch_norm(x, mean, var, weight, bias, axis=axis) * dy)

    dx, dweight, dbias = batch_norm_backward(
        dy, t.x, mean, 1 / np.sqrt(var + 1e-5), t.weight, training=False, axis=axis
    )
    assert_gradient(lambda x: loss(x, t.weight, t.bias), t.x, dx)
    assert_gradient(lambda weight: loss(t.x, weight, t.bias), t.weight, dweight)
    assert_gradient(lambda bias: loss(t.x, t.weight, bias), t.bias, dbias)


@pytest.mark.parametrize("frozen", [False, True])
def test_layers(backend, frozen):
    t = case((4, 3, 5, 2), 1, np.float64)
    dy = t.dy / np.linalg.norm(t.dy)
    bn = nc.BatchNorm2d(3, dtype=np.float64)
    bn(t.x * 2)
    if frozen:
        bn.freeze()
    assert_gradient(lambda x: np.sum(bn(x) * dy), t.x, (bn(t.x), bn.backward(dy).dx)[1])
