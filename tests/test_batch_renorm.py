"""Batch renormalization against the paper's formulas, PyTorch's autograd, Keras, batch norm."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from arrays import assert_close, case, layouts

import normcore as nc
from normcore.functional import (
    batch_norm,
    batch_norm_activation_backward,
    batch_norm_backward,
    batch_norm_forward,
    batch_renorm,
    batch_renorm_backward,
    batch_renorm_forward,
    renorm_affine,
)

SHAPES = [((4, 3), 1), ((33, 17), -1), ((4, 6, 5, 3), 1), ((4, 5, 3, 6), 3), ((8, 16, 14, 14), 1)]
LAYERS = [
    (nc.BatchRenorm1d, nc.BatchNorm1d, (6, 3)),
    (nc.BatchRenorm1d, nc.BatchNorm1d, (6, 3, 5)),
    (nc.BatchRenorm2d, nc.BatchNorm2d, (4, 3, 5, 2)),
    (nc.BatchRenorm3d, nc.BatchNorm3d, (2, 3, 4, 2, 3)),
]


def running_for(t, seed=2):
    """Running statistics that leave some channels within the limits and clip others."""
    rng = np.random.default_rng(seed)
    c = t.mean.size
    mean = t.mean + rng.uniform(-2, 2, c) * np.sqrt(t.var)
    return mean, t.var * rng.choice([0.2, 0.8, 1.3, 6.0], c)


def paper(t, running_mean, running_var, r_max, d_max, eps=1e-5):
    """(y, r, d) by the formulas of the paper, in float64."""
    spread = [1] * t.x.ndim
    spread[t.axis] = -1
    sigma, sigma_running = np.sqrt(t.var + eps), np.sqrt(running_var + eps)
    r = np.clip(sigma / sigma_running, 1 / r_max, r_max)
    d = np.clip((t.mean - running_mean) / sigma_running, -d_max, d_max)
    mean, sigma, wide_r, wide_d, weight, bias = (
        values.astype(np.float64).reshape(spread)
        for values in (t.mean, sigma, r, d, t.weight, t.bias)
    )
    return ((t.x - mean) / sigma * wide_r + wide_d) * weight + bias, r, d


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limits", [(3.0, 5.0), (1.5, 0.5), (1.0, 0.0), (np.inf, np.inf)])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_forward_and_running_statistics(backend, shape, axis, limits, dtype):
    t = case(shape, axis, dtype)
    running = running_for(t)
    before = copy.deepcopy(running)
    expected, r, d = paper(t, *before, *limits)
    y, mean, rstd, found_r, found_d = batch_renorm_forward(
        t.x, *running, t.weight, t.bias, *limits, 0.25, axis=axis
    )
    bound = 1e-6 if dtype == np.float32 else 1e-14
    assert_close(y, expected, 2 * bound)
    np.testing.assert_allclose(mean, t.mean, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(t.var + 1e-5), rtol=1e-12)
    np.testing.assert_allclose(found_r, r, rtol=1e-12)
    np.testing.assert_allclose(found_d, d, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(running[0], 0.75 * before[0] + 0.25 * t.mean, rtol=1e-11)
    unbiased = t.var * t.count / (t.count - 1)
    np.testing.assert_allclose(running[1], 0.75 * before[1] + 0.25 * unbiased, rtol=1e-11)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_backward_matches_autograd(backend, shape, axis):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    t = case(shape, axis, np.float64)
    running = running_for(t)
    _, r, d = paper(t, *running, 2.0, 1.0)
    y, *saved = batch_renorm_forward(t.x, *running, t.weight, t.bias, 2.0, 1.0, axis=axis)
    spread = [1] * t.x.ndim
    spread[axis] = -1
    axes = [i for i in range(t.x.ndim) if i != axis % t.x.ndim]
    x, weight, bias = (torch.tensor(v, requires_grad=True) for v in (t.x, t.weight, t.bias))
    mean = x.mean(axes, keepdim=True)
    sigma = torch.sqrt(x.var(axes, keepdim=True, unbiased=False) + 1e-5)
    r, d = (torch.tensor(values).reshape(spread) for values in (r, d))
    theirs = ((x - mean) / sigma * r + d) * weight.reshape(spread) + bias.reshape(spread)
    theirs.backward(torch.tensor(t.dy))
    np.testing.assert_allclose(y, theirs.detach(), rtol=1e-12, atol=1e-12)
    found = batch_renorm_backward(t.dy, t.x, *saved, t.weight, axis=axis)
    for name, values, wanted in zip(found._fields, found, (x, weight, bias), strict=True):
        np.testing.assert_allclose(values, wanted.grad, rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_without_correction_it_is_batch_norm_to_the_bit(backend, shape, axis, dtype, offset):
    t = case(shape, axis, dtype, offset)
    buffers = running_for(t)
    plain = copy.deepcopy(buffers)
    y, mean, rstd, r, d = batch_renorm_forward(
        t.x, *buffers, t.weight, t.bias, 1.0, 0.0, 0.3, axis=axis
    )
    assert (r == 1).all()
    assert (d == 0).all()
    for found, wanted in zip(
        (y, mean, rstd),
        batch_norm_forward(t.x, t.weight, t.bias, *plain, 0.3, axis=axis),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(buffers, plain)
    found = batch_renorm_backward(t.dy, t.x, mean, rstd, r, d, t.weight, axis=axis)
    wanted = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight, axis=axis)
    for name, values, truth in zip(found._fields, found, wanted, strict=True):
        assert values.dtype == truth.dtype
        np.testing.assert_array_equal(values, truth, name)


@pytest.mark.parametrize(("kind", "plain", "shape"), LAYERS)
def test_a_layer_without_correction_is_batch_norm_to_the_bit(backend, kind, plain, shape):
    options = {"momentum": 0.1, "activation": "silu"}
    ours, theirs = kind(3, r_max=1, d_max=0, **options), plain(3, **options)
    for seed in range(3):
        t = case(shape, seed=seed)
        np.testing.assert_array_equal(ours(t.x, residual=t.dy), theirs(t.x, residual=t.dy))
        found, wanted = ours.backward_residual(t.dy), theirs.backward_residual(t.dy)
        for values, truth in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(values, truth)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, values in ours.state_dict().items():
        np.testing.assert_array_equal(values, theirs.state_dict()[key], key)
    np.testing.assert_array_equal(ours.eval()(t.x), theirs.eval()(t.x))


def test_within_the_limits_training_is_evaluation(backend):
    t = case((4, 6, 5, 3), dtype=np.float64)
    running = running_for(t)
    evaluated = batch_renorm(t.x, *running, t.weight, t.bias)
    np.testing.assert_array_equal(evaluated, batch_norm(t.x, *running, t.weight, t.bias))
    trained = batch_renorm(t.x, *copy.deepcopy(running), t.weight, t.bias, True, r_max=10, d_max=10)
    np.testing.assert_allclose(trained, evaluated, rtol=1e-12, atol=1e-13)


def test_a_layer_steps_as_the_functions_do(backend):
    t = case((4, 3, 5, 2), dtype=np.float64)
    layer = nc.BatchRenorm2d(3, dtype=np.float64, r_max=1.2, d_max=0.3)
    assert layer.momentum == 0.01
    assert layer.r is layer.d is None
    layer.weight[...], layer.bias[...] = t.weight, t.bias
    running = np.zeros(3), np.ones(3)
    for step in range(3):
        x = t.x * (step + 1)
        y, *saved = batch_renorm_forward(x, *running, t.weight, t.bias, 1.2, 0.3)
        np.testing.assert_array_equal(layer(x), y)
        np.testing.assert_array_equal((layer.r, layer.d), saved[2:])
        np.testing.assert_array_equal((layer.running_mean, layer.running_var), running)
        assert layer.num_batches_tracked == step + 1
        expected = batch_renorm_backward(t.dy, x, *saved, t.weight)
        for values, wanted in zip(layer.backward(t.dy), expected, strict=True):
            np.testing.assert_array_equal(values, wanted)
    assert layer.freeze(affine=True) is layer
    np.testing.assert_array_equal(layer(x), layer.eval()(x))
    dx, dweight, _ = layer.train().backward(t.dy, x)
    rstd = 1 / np.sqrt(running[1] + 1e-5)
    np.testing.assert_allclose(dx, t.dy * (t.weight * rstd)[:, None, None], rtol=1e-12)
    assert dweight is None


def test_a_backward_without_its_forward_updates_nothing(backend):
    t = case((4, 3, 5, 2), dtype=np.float64)
    layer = nc.BatchRenorm2d(3, dtype=np.float64)
    layer(t.x + 0.5)
    before = layer.state_dict(), layer.r.copy(), layer.d.copy()
    layer.train()
    found = layer.backward(t.dy, t.x)
    for key, values in layer.state_dict().items():
        np.testing.assert_array_equal(values, before[0][key], key)
    np.testing.assert_array_equal((layer.r, layer.d), before[1:])
    layer(t.x)
    for values, wanted in zip(found, layer.backward(t.dy), strict=True):
        np.testing.assert_array_equal(values, wanted)


def test_activation_and_residual(backend):
    t = case((4, 6, 5, 3), dtype=np.float64)
    running = running_for(t)
    z, r, d = paper(t, *running, 3.0, 5.0)
    residual = t.dy * 2
    y, *saved = batch_renorm_forward(
        t.x, *copy.deepcopy(running), t.weight, t.bias, residual=residual, activation="silu"
    )
    z = z + residual
    share = 1 / (1 + np.exp(-z))
    assert_close(y, z * share, 1e-14)
    layer = nc.BatchRenorm2d(6, dtype=np.float64, activation="silu")
    layer.weight[...], layer.bias[...] = t.weight, t.bias
    layer.running_mean[...], layer.running_var[...] = running
    np.testing.assert_array_equal(layer(t.x, residual=residual), y)
    found = layer.backward_residual(t.dy)
    g = t.dy * share * (1 + z * (1 - share))
    assert_close(found.dresidual, g, 1e-13)
    by_functions = batch_norm_activation_backward(
        *(t.dy, t.x, *saved[:2], *renorm_affine(r, d, t.weight, t.bias)),
        activation="silu",
        residual=residual,
    )
    assert_close(by_functions, g, 1e-13)
    expected = batch_renorm_backward(g, t.x, *saved, t.weight)
    for values, wanted in zip(found, expected, strict=False):
        np.testing.assert_allclose(values, wanted, rtol=1e-9, atol=1e-11)


def test_masks(backend):
    t = case((4, 3, 5, 2), dtype=np.float64)
    mask = np.random.default_rng(0).random((4, 5, 2)) < 0.7
    rows, dys = (np.moveaxis(values, 1, -1)[mask] for values in (t.x, t.dy))
    buffers, packed = running_for(t), running_for(t)
    y, *saved = batch_renorm_forward(t.x, *buffers, t.weight, t.bias, 1.2, 0.4, mask=mask)
    expected, *wanted = batch_renorm_forward(rows, *packed, t.weight, t.bias, 1.2, 0.4)
    np.testing.assert_allclose(np.moveaxis(y, 1, -1)[mask], expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(saved, wanted, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(buffers, packed, rtol=1e-12)
    found = batch_renorm_backward(t.dy, t.x, *saved, t.weight, mask=mask)
    truth = batch_renorm_backward(dys, rows, *wanted, t.weight)
    np.testing.assert_allclose(np.moveaxis(found.dx, 1, -1)[mask], truth.dx, rtol=1e-9, atol=1e-12)
    assert (np.moveaxis(found.dx, 1, -1)[~mask] == 0).all()
    np.testing.assert_allclose(found[1:], truth[1:], rtol=1e-10, atol=1e-12)

    layer = nc.BatchRenorm2d(3, dtype=np.float64)
    layer.bias[...] = t.bias
    before = layer.state_dict()
    y = layer(t.x, mask=np.zeros_like(mask))
    np.testing.assert_array_equal(y, np.broadcast_to(t.bias[:, None, None], y.shape))
    assert (layer.r == 1).all()
    assert (layer.d == 0).all()
    for key, values in layer.state_dict().items():
        np.testing.assert_array_equal(values, before[key], key)
    assert all((values == 0).all() for values in layer.backward(t.dy))


@pytest.mark.parametrize("layout", range(9))
def test_layouts(backend, layout):
    t = case((4, 3, 5, 6), 1, np.float64)
    running = running_for(t)
    expected, *saved = batch_renorm_forward(t.x, *copy.deepcopy(running), t.weight, t.bias)
    gradients = batch_renorm_backward(t.dy, t.x, *saved, t.weight)
    name, x = [*layouts(t.x)][layout]
    dy = [*layouts(t.dy)][layout][1]
    swapped = [values.astype(">f8") for values in running]
    y = batch_renorm_forward(x, *swapped, t.weight, t.bias)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13, err_msg=name)
    for values, wanted in zip(
        batch_renorm_backward(dy, x, *saved, t.weight), gradients, strict=True
    ):
        np.testing.assert_allclose(values, wanted, rtol=1e-10, atol=1e-12, err_msg=name)


def test_the_schedule_of_the_paper():
    assert [nc.PAPER_R_MAX(step) for step in (0, 5000, 22500, 40000, 10**7)] == [1, 1, 2, 3, 3]
    assert [nc.PAPER_D_MAX(step) for step in (0, 5000, 15000, 25000, 10**7)] == [0, 0, 2.5, 5, 5]
    layer = nc.BatchRenorm1d(3, r_max=nc.PAPER_R_MAX, d_max=nc.PAPER_D_MAX)
    x = np.random.default_rng(0).normal(9, 4, (16, 3)).astype(np.float32)
    layer(x)
    assert (layer.r == 1).all()
    assert (layer.d == 0).all()
    layer.num_batches_tracked[...] = 15000
    r_max, d_max = layer.limits
    assert d_max == 2.5
    np.testing.assert_allclose(r_max, 1 + 2 * 10000 / 35000, rtol=1e-15)
    layer(x)
    np.testing.assert_allclose(layer.r, r_max)
    np.testing.assert_allclose(layer.d, d_max)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        np.testing.assert_array_equal(twin(x), copy.deepcopy(layer)(x))


def test_any_function_of_the_step_is_a_schedule():
    steps = []
    layer = nc.BatchRenorm1d(3, d_max=lambda step: steps.append(step) or 0.5)
    x = np.random.default_rng(0).normal(9, 4, (16, 3)).astype(np.float32)
    layer(x)
    layer(x)
    layer.eval()(x)
    assert steps == [0, 1]


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ({"r_max": 0.9}, ValueError, "r_max: expected a number of at least 1, got 0.9"),
        ({"r_max": np.nan}, ValueError, "r_max: expected a number of at least 1, got nan"),
        ({"r_max": "3"}, TypeError, "r_max: expected a number, got '3'"),
        ({"r_max": None}, TypeError, "r_max: expected a number, got None"),
        ({"d_max": -1}, ValueError, "d_max: expected a number of at least 0, got -1"),
    ],
)
def test_wrong_limits_change_nothing(limits, error, message):
    with pytest.raises(error, match=message):
        nc.BatchRenorm2d(3, **limits)
    with pytest.raises(error, match=message):
        nc.functional.batch_renorm(np.ones((4, 3)), np.zeros(3), np.ones(3), **limits)
    x = np.random.default_rng(0).standard_normal((4, 3))
    running, out = (np.zeros(3), np.ones(3)), np.full_like(x, 7)
    with pytest.raises(error, match=message):
        batch_renorm_forward(x, *running, out=out, **limits)
    np.testing.assert_array_equal(running, [np.zeros(3), np.ones(3)])
    layer = nc.BatchRenorm1d(3, **{name: lambda _, v=v: v for name, v in limits.items()})
    with pytest.raises(error, match=message):
        layer(x, out=out)
    assert layer.num_batches_tracked == 0
    assert (out == 7).all()


def test_wrong_arguments():
    x = np.ones((4, 3))
    with pytest.raises(ValueError, match="running_var: expected running statistics to correct by"):
        batch_renorm_forward(x, np.zeros(3), None)
    with pytest.raises(TypeError, match="running_mean: expected a NumPy array to update"):
        batch_renorm_forward(x, [0.0] * 3, np.ones(3))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        nc.BatchRenorm1d(3)(x[:1])
    with pytest.raises(ValueError, match=r"r: expected shape \(3,\), got \(2,\)"):
        batch_renorm_backward(x, x, *[np.ones(3)] * 2, np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="end: expected a step behind begin=5, got 5"):
        nc.LinearSchedule(1.0, 2.0, 5, 5)


def test_an_empty_batch_touches_nothing(backend):
    layer = nc.BatchRenorm2d(3)
    before = layer.state_dict()
    x = np.zeros((0, 3, 5, 5), np.float32)
    assert layer(x).shape == x.shape
    for key, values in layer.state_dict().items():
        np.testing.assert_array_equal(values, before[key], key)
    dx, dweight, dbias = layer.backward(x)
    assert dx.shape == x.shape
    assert (dweight == 0).all()
    assert (dbias == 0).all()


def test_repr():
    assert repr(nc.BatchRenorm2d(3, axis=-1)) == (
        "BatchRenorm2d(3, eps=1e-05, momentum=0.01, affine=True, r_max=3.0, d_max=5.0, axis=-1)"
    )


def test_keras_is_an_independent_oracle(backend):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("keras", reason="Keras is not installed")
    program = Path(__file__).with_name("keras_renorm_program.py")
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    command = [sys.executable, str(program), backend]
    subprocess.run(command, check=True, env=environment, timeout=300)
