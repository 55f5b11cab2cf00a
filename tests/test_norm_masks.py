"""Masks of layer, RMS, group and instance norm: what counts, what gets gradient, what is empty."""

import numpy as np
import pytest
from arrays import assert_close, layouts, tolerance
from norms import NORMS, Norm, problem, truth

import normcore.functional as F

BY_NAME = {"ids": str}


def padding(norm, seed=0):
    """A random mask of positions; of elements where one statistic covers all."""
    shape = norm.positions or norm.shape
    return np.random.default_rng(seed).random(shape) < 0.7


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_what_is_left_out_does_not_count(backend, norm, dtype):
    p = problem(norm, dtype, 3.0)
    mask = padding(norm)
    full = norm.full(mask)
    t = truth(norm, p.x, p.dy, p.weight, p.bias, mask=full)
    y, saved = norm.forward(p.x, p.weight, p.bias, mask=mask)
    gradients = norm.backward(p.dy, p.x, saved, p.weight, mask=mask)
    assert_close(y, t.y, tolerance(dtype))
    np.testing.assert_allclose(saved[-1], t.rstd, rtol=1e-6)
    assert_close(gradients.dx, t.dx, tolerance(dtype))
    assert not gradients.dx[~full].any()
    bound = 1e-6 if dtype == np.float32 else 1e-14
    assert_close(gradients.dweight, t.dweight, bound, t.summands)
    assert_close(norm.call(p.x, p.weight, p.bias, mask=mask), t.y, tolerance(dtype))


@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_what_is_left_out_may_be_anything(backend, norm):
    p = problem(norm)
    mask = padding(norm)
    full = norm.full(mask)
    y, saved = norm.forward(p.x, p.weight, p.bias, mask=mask)
    gradients = norm.backward(p.dy, p.x, saved, p.weight, mask=mask)
    for rubbish in (np.nan, np.inf, 1e30):
        x, dy = np.where(full, p.x, np.float32(rubbish)), np.where(full, p.dy, np.float32(rubbish))
        other, statistics = norm.forward(x, p.weight, p.bias, mask=mask)
        np.testing.assert_array_equal(statistics, saved)
        np.testing.assert_array_equal(other[full], y[full])
        for a, b in zip(norm.backward(dy, x, saved, p.weight, mask=mask), gradients, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_every_layout_of_x_takes_the_same_mask(backend, norm):
    p = problem(norm, np.float64)
    mask = padding(norm)
    t = truth(norm, p.x, p.dy, p.weight, p.bias, mask=norm.full(mask))
    wide = np.zeros((*mask.shape, 2), np.uint8)
    wide[..., 1] = 7 * mask
    for (_, x), given in zip(
        layouts(p.x), [mask, np.asfortranarray(mask), wide[..., 1]] * 3, strict=True
    ):
        y, saved = norm.forward(x, p.weight, p.bias, mask=given)
        dx = norm.backward(p.dy, x, saved, p.weight, mask=given).dx
        assert_close(y, t.y, 4e-15)
        assert_close(dx, t.dx, 4e-15)


@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_where_nothing_counts_y_is_bias(backend, norm):
    p = problem(norm)
    mask = np.zeros(norm.positions or norm.shape, bool)
    if norm.positions:
        mask[1:] = True
    full = norm.full(mask)
    x = np.where(full, p.x, np.nan).astype(np.float32)
    y, saved = norm.forward(x, p.weight, p.bias, mask=mask)
    gradients = norm.backward(p.dy, x, saved, p.weight, mask=mask)
    empty = ~norm.canonical(full).any(norm.over)
    assert empty.any()
    for statistic in saved:
        assert not statistic.reshape(empty.shape)[empty].any()
    zero = np.zeros_like(norm.canonical(x))
    spread = norm.spread(p.bias)
    bias = norm.back(zero if spread is None else zero + spread)
    np.testing.assert_array_equal(y[~full], bias[~full])
    assert not gradients.dx[~full].any()
    assert all(np.isfinite(found).all() for found in gradients)


@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_a_mask_that_keeps_everything_changes_nothing(backend, norm):
    p = problem(norm, np.float64)
    y, saved = norm.forward(p.x, p.weight, p.bias)
    dx = norm.backward(p.dy, p.x, saved, p.weight).dx
    for mask in (np.ones(norm.positions, bool), np.ones((), bool), [True]):
        found, statistics = norm.forward(p.x, p.weight, p.bias, mask=mask)
        assert_close(found, y, 4e-15)
        assert_close(norm.backward(p.dy, p.x, statistics, p.weight, mask=mask).dx, dx, 4e-15)


LAYERS = [norm for norm in NORMS if not norm.by_channel]


@pytest.mark.parametrize("norm", LAYERS, **BY_NAME)
def test_elements_of_layer_norm(backend, norm):
    p = problem(norm, np.float64, 3.0)
    rng = np.random.default_rng(2)
    ndim = len(norm.shape)
    masks = [rng.random(norm.shape) < 0.6]
    # One axis, and all but one.
    for i in range(ndim):
        masks.append(rng.random([n if j == i else 1 for j, n in enumerate(norm.shape)]) < 0.6)
        masks.append(rng.random([1 if j == i else n for j, n in enumerate(norm.shape)]) < 0.6)
    for mask in masks:
        t = truth(norm, p.x, p.dy, p.weight, p.bias, mask=np.broadcast_to(mask, norm.shape))
        y, saved = norm.forward(p.x, p.weight, p.bias, mask=mask)
        gradients = norm.backward(p.dy, p.x, saved, p.weight, mask=mask)
        # Where two near values are left, rounding grows with rstd.
        bound = 4e-15 * max(1, t.rstd.max())
        assert_close(y, t.y, bound)
        assert_close(gradients.dx, t.dx, bound)
        assert_close(gradients.dweight, t.dweight, 1e-14, t.summands)


def test_a_mask_of_positions_is_tried_before_one_of_elements(backend):
    x = np.random.default_rng(0).standard_normal((3, 4, 4))
    mask = np.array([True, False, True, True])
    rows = F.layer_norm(x, 4, mask=mask)
    np.testing.assert_array_equal(rows[:, 1], 0)
    np.testing.assert_array_equal(rows[:, 0], F.layer_norm(x[:, 0], 4))
    elements = F.layer_norm(x, 4, mask=mask[None, None])
    kept = x[..., mask]
    expected = (kept - kept.mean(-1, keepdims=True)) / np.sqrt(kept.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(elements[..., mask], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("norm", "mask", "error", "message"),
    [
        (NORMS[0], np.ones((2, 6), bool), ValueError, r"mask: expected .* \(6,\) .* \(6, 5\), got"),
        (NORMS[2], np.ones((6, 5, 7), bool), ValueError, r"mask: expected .* \(3, 5, 4\)"),
        (NORMS[8], np.ones((3, 6, 5, 4), bool), ValueError, r"mask: expected shape \(3, 5, 4\)"),
        (NORMS[12], np.ones((3, 6), bool), ValueError, r"mask: expected shape \(3, 5, 4\)"),
        (NORMS[0], np.ones(6), TypeError, "mask: expected booleans or integers, got dtype float64"),
        (NORMS[11], np.ones((3, 7)), TypeError, "mask: expected booleans"),
    ],
    ids=str,
)
def test_wrong_masks(norm, mask, error, message):
    x = np.ones(norm.shape, np.float32)
    with pytest.raises(error, match=message):
        norm.call(x, mask=mask)
    saved = norm.forward(x)[1]
    with pytest.raises(error, match=message):
        norm.backward(x, x, saved, mask=mask)


def test_a_mask_in_the_family_cols_needs_no_copy():
    norm = Norm("layer", (4, 3, 5, 6), 1)
    x = problem(norm).x
    x.flags.writeable = False
    y = F.layer_norm(x, 3, axis=1, mask=padding(norm))
    assert y.flags.c_contiguous
