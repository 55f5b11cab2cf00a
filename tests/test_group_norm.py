"""Group norm: groups, wrong arguments, identities, PyTorch as oracle."""

import itertools

import numpy as np
import pytest
from arrays import assert_close

import normcore as nc
from normcore.functional import (
    group_norm,
    group_norm_activation_backward,
    group_norm_backward,
    group_norm_forward,
    instance_norm_backward,
    instance_norm_forward,
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
)

X = np.random.default_rng(0).normal(2, 3, (4, 6, 5))


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_the_formula(backend, groups):
    y, mean, rstd = group_norm_forward(X, groups)
    grouped = X.reshape(4, groups, -1)
    np.testing.assert_allclose(mean, grouped.mean(-1), rtol=1e-13)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(grouped.var(-1) + 1e-5), rtol=1e-13)
    expected = (grouped - mean[..., None]) * rstd[..., None]
    np.testing.assert_allclose(y, expected.reshape(X.shape), rtol=1e-12, atol=1e-14)


def test_a_channel_in_each_group_is_instance_norm(backend):
    dy = np.random.default_rng(1).standard_normal(X.shape)
    weight = np.random.default_rng(2).standard_normal(6)
    for x, axis in ((X, 1), (np.ascontiguousarray(X.swapaxes(1, 2)), -1)):
        ours = group_norm_forward(x, 6, weight, axis=axis)
        theirs = instance_norm_forward(x, weight, axis=axis)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
        dy = dy.reshape(x.shape)
        for a, b in zip(
            group_norm_backward(dy, x, *ours[1:], 6, weight, axis=axis),
            instance_norm_backward(dy, x, *ours[1:], weight, axis=axis),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_one_group_is_layer_norm_but_for_the_parameters(backend):
    dy = np.random.default_rng(1).standard_normal(X.shape)
    y, mean, rstd = group_norm_forward(X, 1)
    other, *statistics = layer_norm_forward(X, (6, 5))
    np.testing.assert_allclose([mean[:, 0], rstd[:, 0]], statistics, rtol=1e-14)
    assert_close(y, other, 4e-15)
    ours = group_norm_backward(dy, X, mean, rstd, 1)
    theirs = layer_norm_backward(dy, X, *statistics, (6, 5))
    assert_close(ours.dx, theirs.dx, 4e-15)
    np.testing.assert_allclose(ours.dweight, theirs.dweight.sum(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours.dbias, theirs.dbias.sum(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 1), (3, 1, 8), (1, 8, 7), (3, 1, 5, 1, 2)])
def test_axes_of_one_element(backend, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    for axis in range(1, x.ndim):
        first = np.moveaxis(x, axis, 1)
        expected = layer_norm(first, first.shape[1:])
        for layout in (x, np.asfortranarray(x), np.ascontiguousarray(first)):
            if layout.shape != x.shape:
                layout = np.moveaxis(layout, 1, axis)
            y = np.moveaxis(group_norm(layout, 1, axis=axis), axis, 1)
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


def test_every_memory_order(backend):
    x = np.random.default_rng(0).standard_normal((2, 4, 1, 6))
    for order in itertools.permutations(range(4)):
        lying = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
        for axis, groups in ((1, 2), (2, 1), (3, 3)):
            y, mean, rstd = group_norm_forward(lying, groups, axis=axis)
            first = np.moveaxis(x, axis, 1)
            grouped = first.reshape(2, groups, -1)
            expected = grouped - grouped.mean(-1, keepdims=True)
            expected /= np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
            found = np.moveaxis(y, axis, 1)
            np.testing.assert_allclose(found, expected.reshape(first.shape), rtol=1e-12, atol=1e-14)
            dx = group_norm_backward(x, lying, mean, rstd, groups, axis=axis).dx
            plain = group_norm_backward(x, x, mean, rstd, groups, axis=axis).dx
            np.testing.assert_allclose(dx, plain, rtol=1e-10, atol=1e-12)


def test_channels_first_is_channels_last(backend):
    # The blocks differ (runs of a channel there, rows of channels here), so that the float64 sums
    # differ in their last digits: no bit of float32 here (numpy, cython), 1 ulp each of mean and
    # rstd near a tie.
    for offset in (0, 3, 1000):
        x = np.random.default_rng(0).normal(offset, 2, (4, 32, 9, 11)).astype(np.float32)
        weight = np.random.default_rng(1).standard_normal(32).astype(np.float32)
        first = group_norm(x, 8, weight)
        last = group_norm(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), 8, weight, axis=-1)
        np.testing.assert_array_max_ulp(first, last.transpose(0, 3, 1, 2), 2)


def test_one_value_per_group():
    message = r"^Expected more than 1 value per channel when training, got input size \(1, 4, 1\)"
    with pytest.raises(ValueError, match=message):
        group_norm(np.ones((1, 4, 1)), 4)
    # With more samples PyTorch takes it, and so do we: y is bias.
    y = group_norm(np.arange(8.0).reshape(2, 4), 4, None, np.arange(4.0))
    np.testing.assert_array_equal(y, [range(4)] * 2)


OVERLAP = np.zeros(121)
READ_ONLY = np.zeros_like(X)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X.astype(int)}, TypeError, "x: expected dtype float32, float64, float16 or bfl"),
        ({"x": X[0, 0]}, ValueError, r"x: expected at least 2 dimensions, got shape \(5,\)"),
        ({"num_groups": 4}, ValueError, "num_groups: expected a divisor of the number of chan"),
        ({"num_groups": 0}, ValueError, "num_groups: expected at least 1, got 0"),
        ({"num_groups": 2.0}, TypeError, "num_groups: expected an int, got 2.0"),
        ({"axis": 0}, ValueError, "axis: expected a channel axis behind the samples' axis 0"),
        ({"axis": -3}, ValueError, "axis: expected a channel axis behind the samples' axis 0"),
        ({"axis": 3}, ValueError, r"axis: expected an axis of x of shape \(4, 6, 5\), got 3"),
        ({"axis": None}, TypeError, "axis: expected an int, got None"),
        ({"weight": np.ones(2)}, ValueError, r"weight: expected shape \(6,\), got \(2,\)"),
        ({"bias": np.ones((6, 1))}, ValueError, r"bias: expected shape \(6,\), got \(6, 1\)"),
        ({"bias": np.ones(6, int)}, TypeError, "bias: expected dtype float32 or float64, got i"),
        ({"eps": -1.0}, ValueError, "eps: expected a positive finite number, got -1.0"),
        ({"out": READ_ONLY}, ValueError, "out: expected a writeable array"),
        ({"out": X[:, :2]}, ValueError, "out: expected x's shape"),
        ({"weight": OVERLAP[:6], "out": OVERLAP[:-1].reshape(X.shape)}, ValueError, "overlaps"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    before = X.copy()
    for function in (group_norm, group_norm_forward):
        with pytest.raises(error, match=message):
            function(**{"x": X, "num_groups": 2, **arguments})
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dy": X[1:]}, ValueError, "dy: expected x's shape"),
        ({"dy": X.astype(np.float32)}, TypeError, "dy: expected x's dtype float64, got float32"),
        ({"mean": np.zeros(2)}, ValueError, r"mean: expected shape \(4, 2\), got \(2,\)"),
        ({"rstd": None}, ValueError, r"rstd: expected an array of shape \(4, 2\), got None"),
        ({"weight": np.ones(2)}, ValueError, r"weight: expected shape \(6,\), got \(2,\)"),
        ({"num_groups": 5}, ValueError, "num_groups: expected a divisor"),
        ({"out": READ_ONLY}, ValueError, "out: expected a writeable array"),
    ],
)
def test_wrong_arguments_of_the_backward(arguments, error, message):
    given = {"mean": np.zeros((4, 2)), "rstd": np.ones((4, 2)), "num_groups": 2, **arguments}
    given = {"dy": X, "x": X, **given}
    with pytest.raises(error, match=message):
        group_norm_backward(**given)
    with pytest.raises(error, match=message):
        group_norm_activation_backward(**given, activation="relu")


def test_wrong_input_of_the_layer():
    with pytest.raises(ValueError, match=r"x: expected 6 channels along axis -1, got shape \(4, 6"):
        nc.GroupNorm(2, 6, axis=-1)(X)
    with pytest.raises(ValueError, match=r"x: expected at least 2 dimensions, got shape \(6,\)"):
        nc.GroupNorm(2, 6)(np.ones(6))


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 3e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("options", [{}, {"eps": 1e-2}, {"affine": False}], ids=str)
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (2, 6, 3, 4), (2, 6, 3, 1, 4)], ids=str)
def test_pytorch_agrees(backend, shape, options, dtype, bound):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    theirs = torch.nn.GroupNorm(2, 6, dtype=getattr(torch, dtype), **options)
    for parameter in theirs.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    ours = nc.GroupNorm(2, 6, dtype=dtype, **options)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    # PyTorch 2.13 shows a new option behind affine.
    shown = repr(theirs).replace(f", bias={theirs.affine}", "")
    assert repr(ours).replace(", dtype=float64", "") == shown
    rng = np.random.default_rng(1)
    x, dy = (rng.normal(1, 2, shape).astype(dtype) for _ in range(2))
    tensor = torch.tensor(x, requires_grad=True)
    expected = theirs(tensor)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(ours(x), expected.detach(), rtol=bound, atol=bound)
    gradients = ours.backward(dy)
    np.testing.assert_allclose(gradients.dx, tensor.grad, rtol=10 * bound, atol=10 * bound)
    if theirs.affine:
        np.testing.assert_allclose(gradients.dweight, theirs.weight.grad, bound, 30 * bound)
        np.testing.assert_allclose(gradients.dbias, theirs.bias.grad, bound, 30 * bound)


def test_one_value_per_group_is_an_error_where_pytorch_has_one():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for shape in ((1, 6), (1, 6, 1)):
        for function, x in (
            (torch.nn.functional.group_norm, torch.ones(shape)),
            (group_norm, np.ones(shape)),
        ):
            with pytest.raises(ValueError, match="Expected more than 1 value per channel when tra"):
                function(x, 6)
    for shape in ((2, 6), (1, 6, 2)):
        x = np.random.default_rng(0).standard_normal(shape)
        expected = torch.nn.functional.group_norm(torch.tensor(x), 6)
        np.testing.assert_allclose(group_norm(x, 6), expected, rtol=1e-12, atol=1e-12)
