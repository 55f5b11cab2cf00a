"""Masks of batch normalization: only what is kept counts, and only that gets a gradient."""

import numpy as np
import pytest
from arrays import SHAPES, assert_close, case, layouts, tolerance

import normcore as nc
from normcore import reference
from normcore.functional import (
    batch_norm,
    batch_norm_activation_backward,
    batch_norm_backward,
    batch_norm_forward,
)

CASES = [(shape, axis) for shape, axis in SHAPES if shape[axis] > 1]


def padded(shape, axis, seed=3):
    """A mask of a padded batch: the tail of each sample is out."""
    positions = shape[:axis] + shape[axis % len(shape) + 1 :]
    rest = int(np.prod(positions[1:]))
    lengths = np.random.default_rng(seed).integers(1, rest + 1, positions[0])
    if rest == 1:
        lengths[::3] = 0
    return (np.arange(rest) < lengths[:, None]).reshape(positions)


def packed(x, mask, axis):
    """The kept positions alone, (K, C), in float64."""
    return np.moveaxis(x, axis, -1)[mask].astype(np.float64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_it_is_batch_norm_of_the_kept_positions(backend, shape, axis, offset, dtype):
    t = case(shape, axis, dtype, offset)
    mask = padded(shape, axis)
    rows = packed(t.x, mask, axis)
    count = len(rows)
    running = [np.full(t.mean.size, 3.0), np.full(t.mean.size, 2.0)]
    y, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias, *running, 0.25, axis=axis, mask=mask)
    weight, bias = t.weight.astype(np.float64), t.bias.astype(np.float64)
    expected, found = reference.batch_norm_forward(rows, weight, bias)
    bound = tolerance(dtype) if offset == 0 or dtype == np.float32 else 1e-11
    np.testing.assert_allclose(mean, found.mean[0], rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(found.var[0] + 1e-5), rtol=1e-11)
    assert_close(packed(y, mask, axis), expected, bound)
    # Positions that are out are normalized by the same coefficients.
    padding = packed(t.x, ~mask, axis)
    scale = abs(padding - found.mean) * rstd + 1
    wanted = (padding - found.mean) * rstd * weight + bias
    assert_close(packed(y, ~mask, axis), wanted, bound, 3 * scale)
    np.testing.assert_allclose(running[0], 0.75 * 3 + 0.25 * found.mean[0], rtol=1e-13)
    unbiased = rows.var(0, ddof=1)
    np.testing.assert_allclose(running[1], 0.75 * 2 + 0.25 * unbiased, rtol=1e-10)

    dx, dweight, dbias = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight, axis=axis, mask=mask)
    dys = packed(t.dy, mask, axis)
    expected = reference.batch_norm_backward(dys, rows, weight)
    assert_close(packed(dx, mask, axis), expected[0], bound)
    assert (packed(dx, ~mask, axis) == 0).all()
    norm = np.sqrt(count)
    assert_close(dweight, expected[1][0], 4 * bound, 4 * norm)
    assert_close(dbias, expected[2][0], 4 * bound, 4 * norm)


def test_a_mask_that_keeps_all_is_no_mask(backend):
    t = case((4, 3, 5, 6))
    every = np.ones((4, 5, 6), bool)
    y, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias)
    masked = batch_norm_forward(t.x, t.weight, t.bias, mask=every)
    assert_close(masked[0], y, 1e-6)
    np.testing.assert_allclose(masked[1:], (mean, rstd), rtol=1e-12, atol=1e-14)
    dx = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight).dx
    assert_close(batch_norm_backward(t.dy, t.x, mean, rstd, t.weight, mask=every).dx, dx, 1e-6)


@pytest.mark.parametrize("layout", range(9))
def test_layouts(backend, layout):
    t = case((4, 3, 5, 6), 1, np.float64)
    mask = padded(t.x.shape, 1)
    expected, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias, mask=mask)
    gradients = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight, mask=mask)
    name, x = [*layouts(t.x)][layout]
    _, dy = [*layouts(t.dy)][layout]
    for given in (
        mask,
        np.asfortranarray(mask),
        mask.tolist(),
        mask * 7,
        mask.astype(np.int8) * -1,
    ):
        y = batch_norm_forward(x, t.weight, t.bias, mask=given)[0]
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-13, err_msg=name)
        found = batch_norm_backward(dy, x, mean, rstd, t.weight, mask=given)
        for values, wanted in zip(found, gradients, strict=True):
            np.testing.assert_allclose(values, wanted, rtol=1e-11, atol=1e-12, err_msg=name)


def test_a_mask_broadcasts(backend):
    t = case((4, 3, 5, 6))
    columns = np.array([1, 1, 1, 0, 0, 1], bool)
    full = np.broadcast_to(columns, (4, 5, 6))
    np.testing.assert_array_equal(
        batch_norm_forward(t.x, mask=columns)[0], batch_norm_forward(t.x, mask=full)[0]
    )


def test_what_is_masked_out_may_hold_anything(backend):
    t = case((4, 3, 5, 6))
    mask = padded(t.x.shape, 1)
    y, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias, mask=mask)
    dx, dweight, dbias = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight, mask=mask)
    for bad in (np.nan, np.inf, 1e38):
        x, dy = t.x.copy(), t.dy.copy()
        np.moveaxis(x, 1, -1)[~mask] = np.moveaxis(dy, 1, -1)[~mask] = bad
        found = batch_norm_forward(x, t.weight, t.bias, mask=mask)
        np.testing.assert_allclose(found[1:], (mean, rstd), rtol=1e-12, atol=1e-14)
        assert_close(packed(found[0], mask, 1), packed(y, mask, 1), 1e-6)
        again = batch_norm_backward(dy, x, mean, rstd, t.weight, mask=mask)
        assert_close(again.dx, dx, 1e-6)
        assert_close(again.dweight, dweight, 1e-6, 10)
        assert_close(again.dbias, dbias, 1e-6, 10)


def test_nothing_kept(backend):
    t = case((4, 3, 5, 6))
    t.x[0, 0, 0, 0] = np.nan
    nothing = np.zeros((4, 5, 6), bool)
    bn = nc.BatchNorm2d(3)
    bn.weight[...], bn.bias[...] = t.weight, t.bias
    before = bn.state_dict()
    y = bn(t.x, mask=nothing)
    np.testing.assert_array_equal(y, np.broadcast_to(t.bias[:, None, None], y.shape))
    for key, values in bn.state_dict().items():
        np.testing.assert_array_equal(values, before[key], key)
    dx, dweight, dbias = bn.backward(t.dy)
    assert (dx == 0).all()
    assert (dweight == 0).all()
    assert (dbias == 0).all()
    residual = np.full_like(t.x, -3)
    y = bn(t.x, residual=residual, mask=nothing)
    np.testing.assert_allclose(y, np.broadcast_to(t.bias[:, None, None], y.shape) - 3, rtol=1e-6)


def test_a_layer_is_given_its_mask_again_where_it_kept_none(backend):
    t = case((4, 3, 5, 6))
    mask = padded(t.x.shape, 1)
    bn = nc.BatchNorm2d(3)
    y = bn(t.x, mask=mask)
    np.testing.assert_array_equal(y, batch_norm_forward(t.x, bn.weight, bn.bias, mask=mask)[0])
    trained = bn.backward(t.dy)
    assert bn.num_batches_tracked == 1
    rows = packed(t.x, mask, 1)
    np.testing.assert_allclose(bn.running_var, 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-6)
    bn.train()
    for found, wanted in zip(bn.backward(t.dy, t.x, mask=mask), trained, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert bn.num_batches_tracked == 1

    bn.eval()
    np.testing.assert_array_equal(bn(t.x, mask=mask), bn(t.x))
    dx, _, dbias = bn.backward(t.dy, t.x, mask=mask)
    kept = np.expand_dims(mask, 1)
    rstd = 1 / np.sqrt(bn.running_var.astype(np.float64) + bn.eps)
    assert_close(dx, t.dy * kept * rstd[:, None, None], 1e-6)
    assert_close(dbias, np.sum(t.dy * kept, (0, 2, 3), dtype=np.float64), 1e-6, 10)


def test_the_residual_gets_no_gradient_where_the_mask_is_0(backend):
    t = case((4, 3, 5, 6))
    mask = padded(t.x.shape, 1)
    kept = np.expand_dims(mask, 1)
    for activation in (None, "silu"):
        bn = nc.BatchNorm2d(3, activation=activation)
        bn(t.x, residual=t.dy, mask=mask)
        dy = t.dy.copy()
        dx, _, _, dresidual = bn.backward_residual(dy)
        np.testing.assert_array_equal(dy, t.dy)
        np.testing.assert_array_equal(dx, bn.backward(t.dy).dx)
        assert (dresidual[~np.broadcast_to(kept, dy.shape)] == 0).all()
        _, mean, rstd = batch_norm_forward(t.x, mask=mask)
        g = batch_norm_activation_backward(
            t.dy, t.x, mean, rstd, activation=activation, residual=t.dy
        )
        np.testing.assert_array_equal(dresidual, g * kept)


ONE = np.zeros((4, 5, 6), bool)
ONE[1, 2, 3] = True


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (ONE, ValueError, r"Expected more than 1 value .* \(4, 3, 5, 6\), of which mask keeps 1"),
        (ONE[:, :2], ValueError, r"mask: expected shape \(4, 5, 6\).* got \(4, 2, 6\)"),
        (np.ones((4, 3, 5, 6), bool), ValueError, r"mask: expected shape .* got \(4, 3, 5, 6\)"),
        (np.ones((4, 5, 6)), TypeError, "mask: expected booleans or integers, got dtype float64"),
        ("all", TypeError, "mask: expected booleans or integers"),
    ],
)
def test_wrong_masks_change_nothing(mask, error, message):
    t = case((4, 3, 5, 6))
    bn = nc.BatchNorm2d(3)
    before = bn.state_dict()
    out = np.full_like(t.x, 7)
    with pytest.raises(error, match=message):
        bn(t.x, out=out, mask=mask)
    assert (out == 7).all()
    for key, values in bn.state_dict().items():
        np.testing.assert_array_equal(values, before[key], key)
    if "more than 1" not in message:
        with pytest.raises(error, match=message):
            batch_norm(t.x, bn.running_mean, bn.running_var, mask=mask, out=out)
        with pytest.raises(error, match=message):
            batch_norm_backward(t.dy, t.x, np.zeros(3), np.ones(3), mask=mask, out=out)
        assert (out == 7).all()


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (9, 3, 7)])
def test_a_masked_loss_with_residual_and_activation_matches_autograd(backend, shape):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    t = case(shape, 1, np.float64)
    mask = padded(shape, 1)
    x, residual, weight, bias = (
        torch.tensor(v, requires_grad=True) for v in (t.x, 2 * t.dy, t.weight, t.bias)
    )
    rows = [v.movedim(1, -1)[torch.tensor(mask)] for v in (x, residual, torch.tensor(t.dy))]
    z = torch.nn.functional.batch_norm(rows[0], None, None, weight, bias, training=True)
    y = torch.nn.functional.gelu(z + rows[1])
    (y * rows[2]).sum().backward()
    bn = (nc.BatchNorm2d if len(shape) == 4 else nc.BatchNorm1d)(
        3, dtype=np.float64, activation="gelu"
    )
    bn.weight[...], bn.bias[...] = t.weight, t.bias
    found = bn(t.x, residual=2 * t.dy, mask=mask)
    np.testing.assert_allclose(packed(found, mask, 1), y.detach(), rtol=1e-12, atol=1e-13)
    gradients = bn.backward_residual(t.dy)
    for name, values, wanted in zip(
        gradients._fields, gradients, (x, weight, bias, residual), strict=True
    ):
        np.testing.assert_allclose(values, wanted.grad, rtol=1e-9, atol=1e-11, err_msg=name)
