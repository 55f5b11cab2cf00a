"""Residual and activation fused into batch normalization, forward and backward."""

import numpy as np
import pytest
from arrays import assert_close, case, layouts, tolerance
from normcore.kernels.table import ACTIVATIONS

import normcore as nc
from normcore import reference
from normcore.functional import (
    batch_norm,
    batch_norm_activation_backward,
    batch_norm_backward,
    batch_norm_forward,
)

NAMES = [*ACTIVATIONS]
SHAPES = [((33, 17), 1), ((4, 6, 5, 3), 1), ((4, 5, 3, 6), 3), ((8, 16, 14, 14), 1)]


def residual_of(t):
    return np.random.default_rng(9).standard_normal(t.x.shape).astype(t.x.dtype)


def slope(activation, z):
    return reference.SLOPE[ACTIVATIONS[activation]](z)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_it_is_the_composition(backend, shape, axis, activation, with_residual, dtype):
    t = case(shape, axis, dtype)
    residual = residual_of(t) if with_residual else None
    z = t.y if residual is None else t.y + residual
    expected = reference.ACTIVATION[ACTIVATIONS[activation]](z)
    y, mean, rstd = batch_norm_forward(
        t.x, t.weight, t.bias, axis=axis, residual=residual, activation=activation
    )
    bound = 2 * tolerance(dtype)
    assert_close(y, expected, bound)
    var = 1 / rstd**2 - 1e-5
    y = batch_norm(
        *(t.x, mean, var, t.weight, t.bias), axis=axis, residual=residual, activation=activation
    )
    assert_close(y, expected, bound if dtype == np.float32 else 1e-13)

    g = batch_norm_activation_backward(
        *(t.dy, t.x, mean, rstd, t.weight, t.bias),
        activation=activation,
        residual=residual,
        axis=axis,
    )
    assert_close(g, t.dy * slope(activation, z), 4 * bound)


@pytest.mark.parametrize("activation", NAMES)
def test_a_layer_matches_torch(backend, activation):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    functions = {
        None: lambda z: z,
        "relu": torch.nn.functional.relu,
        "relu6": torch.nn.functional.relu6,
        "leaky_relu": torch.nn.functional.leaky_relu,
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
    }
    t = case((4, 6, 5, 3), 1, np.float64)
    theirs = torch.nn.BatchNorm2d(6, dtype=torch.float64)
    torch.nn.init.uniform_(theirs.weight, 0.5, 1.5)
    torch.nn.init.normal_(theirs.bias)
    ours = nc.BatchNorm2d(6, dtype=np.float64, activation=activation)
    ours.load_state_dict(theirs.state_dict())
    for training in (True, False):
        theirs.train(training)
        ours.train(training)
        x = torch.tensor(t.x, requires_grad=True)
        residual = torch.tensor(3 * residual_of(t), requires_grad=True)
        theirs.zero_grad()
        expected = functions[activation](theirs(x) + residual)
        expected.backward(torch.tensor(t.dy))
        plain = residual.detach().numpy()
        np.testing.assert_allclose(
            ours(t.x, residual=plain), expected.detach(), rtol=1e-12, atol=1e-13
        )
        given = {} if training else {"x": t.x, "residual": plain}
        found = ours.backward_residual(t.dy, **given)
        wanted = (x.grad, theirs.weight.grad, theirs.bias.grad, residual.grad)
        for name, values, truth in zip(found._fields, found, wanted, strict=True):
            np.testing.assert_allclose(values, truth, rtol=1e-10, atol=1e-11, err_msg=name)
        for values, wanted in zip(ours.backward(t.dy, **given), found[:3], strict=True):
            np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize("layout", range(9))
def test_layouts_of_x_and_residual(backend, layout):
    t = case((4, 3, 5, 6), 1, np.float64)
    residual = residual_of(t)
    expected, mean, rstd = batch_norm_forward(
        t.x, t.weight, t.bias, residual=residual, activation="gelu"
    )
    saved = (mean, rstd, t.weight, t.bias)
    gradient = batch_norm_activation_backward(
        t.dy, t.x, *saved, activation="gelu", residual=residual
    )
    name, x = [*layouts(t.x)][layout]
    for other in (residual, [*layouts(residual)][layout][1]):
        y = batch_norm_forward(x, t.weight, t.bias, residual=other, activation="gelu")[0]
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13, err_msg=name)
        out = np.empty((4, 6, 5, 3)).transpose(0, 3, 2, 1)
        g = batch_norm_activation_backward(
            t.dy, x, *saved, activation="gelu", residual=other, out=out
        )
        assert g is out
        np.testing.assert_allclose(g, gradient, rtol=1e-12, atol=1e-13, err_msg=name)


def test_out_may_be_any_input(backend):
    t = case((4, 6, 5, 3))
    residual = residual_of(t)
    options = {"residual": residual, "activation": "silu"}
    expected, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias, **options)
    evaluated = batch_norm(t.x, mean, rstd, t.weight, t.bias, **options)
    saved = (mean, rstd, t.weight, t.bias)
    gradient = batch_norm_activation_backward(t.dy, t.x, *saved, **options)
    for name in ("x", "residual"):
        arrays = {"x": t.x.copy(), "residual": residual.copy()}
        y = batch_norm_forward(
            **arrays, weight=t.weight, bias=t.bias, activation="silu", out=arrays[name]
        )[0]
        assert y is arrays[name]
        assert_close(y, expected, 1e-6)
        arrays = {"x": t.x.copy(), "residual": residual.copy()}
        y = batch_norm(
            *(arrays["x"], mean, rstd, t.weight, t.bias),
            residual=arrays["residual"],
            activation="silu",
            out=arrays[name],
        )
        assert_close(y, evaluated, 1e-6)
    for name in ("dy", "x", "residual"):
        arrays = {"dy": t.dy.copy(), "x": t.x.copy(), "residual": residual.copy()}
        g = batch_norm_activation_backward(
            *(arrays["dy"], arrays["x"], *saved),
            residual=arrays["residual"],
            activation="silu",
            out=arrays[name],
        )
        assert g is arrays[name]
        assert_close(g, gradient, 1e-6)


@pytest.mark.parametrize("where", [None, "fresh", "dy", "x", "residual"])
def test_where_a_layer_writes_dx(backend, where):
    t = case((4, 6, 5, 3))
    residual = residual_of(t)
    bn = nc.BatchNorm2d(6, activation="gelu")
    bn(t.x, residual=residual)
    expected = bn.backward_residual(t.dy)
    for backward in (bn.backward, bn.backward_residual):
        arrays = {"x": t.x.copy(), "residual": residual.copy(), "dy": t.dy.copy()}
        arrays["fresh"] = np.empty_like(t.x)
        out = None if where is None else arrays[where]
        bn(arrays["x"], residual=arrays["residual"])
        found = backward(arrays["dy"], out=out)
        if where is not None:
            assert found.dx is out
        for values, wanted in zip(found, expected, strict=False):
            assert_close(values, wanted, 2e-6, np.maximum(10, abs(wanted)))
        for name, before in (("x", t.x), ("residual", residual), ("dy", t.dy)):
            if name != where:
                np.testing.assert_array_equal(arrays[name], before, name)


def test_without_activation_the_residual_gradient_is_dy(backend):
    t = case((4, 6, 5, 3))
    bn = nc.BatchNorm2d(6)
    bn(t.x, residual=residual_of(t))
    assert bn.backward_residual(t.dy).dresidual is t.dy
    dy = t.dy.copy()
    dx, _, _, dresidual = bn.backward_residual(dy, out=dy)
    assert dx is dy
    np.testing.assert_array_equal(dresidual, t.dy)


def test_an_overwritten_residual_is_asked_for(backend):
    t = case((4, 6, 5, 3))
    residual = residual_of(t)
    bn = nc.BatchNorm2d(6, activation="relu")
    bn(t.x, residual=residual)
    expected = bn.backward(t.dy)
    written = residual.copy()
    bn(t.x, out=written, residual=written)
    with pytest.raises(RuntimeError, match="residual was overwritten"):
        bn.backward(t.dy)
    for values, wanted in zip(bn.backward(t.dy, residual=residual), expected, strict=True):
        np.testing.assert_array_equal(values, wanted)
    plain = nc.BatchNorm2d(6)
    plain(t.x, out=written, residual=written)
    assert plain.backward(t.dy).dx.shape == t.x.shape


def test_frozen_statistics(backend):
    t = case((4, 6, 5, 3), 1, np.float64)
    residual = residual_of(t)
    bn = nc.BatchNorm2d(6, dtype=np.float64, activation="silu")
    bn(t.x, residual=residual)
    bn.freeze()
    evaluated = bn.eval()(t.x, residual=residual)
    np.testing.assert_array_equal(bn.train()(t.x, residual=residual), evaluated)
    rstd = 1 / np.sqrt(bn.running_var + bn.eps)
    saved = (bn.running_mean, rstd, bn.weight)
    g = batch_norm_activation_backward(
        t.dy, t.x, *saved, bn.bias, activation="silu", residual=residual
    )
    expected = batch_norm_backward(g, t.x, *saved, training=False)
    for values, wanted in zip(bn.backward(t.dy), expected, strict=True):
        np.testing.assert_array_equal(values, wanted)


def test_repr_and_state():
    bn = nc.BatchNorm2d(3, activation="relu")
    assert repr(bn).endswith(", activation=relu)")
    assert list(bn.state_dict()) == list(nc.BatchNorm2d(3).state_dict())


@pytest.mark.parametrize("name", ["tanh", "RELU", ""])
def test_an_unknown_activation_is_refused(name):
    x = np.ones((4, 3), np.float32)
    message = "activation: expected one of .*'leaky_relu', 'silu', 'gelu'.* got"
    with pytest.raises(ValueError, match=message):
        nc.BatchNorm1d(3, activation=name)
    out = np.full_like(x, 7)
    for training in (False, True):
        with pytest.raises(ValueError, match=message):
            batch_norm(x, np.zeros(3), np.ones(3), training=training, activation=name, out=out)
    with pytest.raises(ValueError, match=message):
        batch_norm_activation_backward(x, x, np.zeros(3), np.ones(3), activation=name, out=out)
    assert (out == 7).all()


def test_a_wrong_residual_is_refused():
    x = np.ones((4, 3), np.float32)
    running = np.zeros(3), np.ones(3)
    for residual, error, message in (
        (x[:2], ValueError, r"residual: expected x's shape \(4, 3\), got \(2, 3\)"),
        (x.astype(np.float64), TypeError, "residual: expected x's dtype float32, got float64"),
    ):
        for training in (False, True):
            with pytest.raises(error, match=message):
                batch_norm(x, *running, training=training, residual=residual)
        with pytest.raises(error, match=message):
            batch_norm_activation_backward(x, x, *running, activation="relu", residual=residual)
    buffer = np.zeros(13, np.float32)
    with pytest.raises(ValueError, match=r"out: .* overlaps an input"):
        batch_norm(x, *running, residual=buffer[1:].reshape(4, 3), out=buffer[:-1].reshape(4, 3))
