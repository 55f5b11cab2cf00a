"""float16 and bfloat16 arrays in batch normalization and its kin: rounded once, on store."""

import numpy as np
import pytest
from normcore.kernels.table import ACTIVATIONS

import normcore as nc
from normcore import reference
from normcore.functional import (
    batch_norm,
    batch_norm_activation_backward,
    batch_norm_backward,
    batch_norm_backward_apply,
    batch_norm_backward_reduce,
    batch_norm_forward,
)

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
SHAPES = [((33, 17), 1), ((4, 6, 5, 3), 1), ((4, 5, 3, 6), 3), ((8, 16, 14, 14), 1)]


def arrays(shape, axis, dtype, offset=0.5, seed=0):
    rng = np.random.default_rng(seed)
    c = shape[axis]
    x, dy, residual = (rng.normal(mean, 1, shape).astype(dtype) for mean in (offset, 0, 0))
    weight = rng.uniform(0.5, 1.5, c).astype(np.float32)
    return x, dy, residual, weight, rng.standard_normal(c).astype(np.float32)


def spread(values, ndim, axis):
    shape = [1] * ndim
    shape[axis] = -1
    return values.astype(np.float64).reshape(shape)


def assert_rounded_once(found, truth):
    """Within half an ulp of the storage type and 1e-6."""
    half_ulp = float(ml_dtypes.finfo(found.dtype).eps) / 2
    error = np.abs(found.astype(np.float64) - truth)
    bound = half_ulp * np.abs(truth) + 1e-6 * np.maximum(1, np.abs(truth))
    assert np.all(error <= bound), f"{(error / bound).max():.3g} of the bound"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0.5, 100.0])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_forward_and_backward(backend, shape, axis, offset, dtype):
    x, dy, _, weight, bias = arrays(shape, axis, dtype, offset)
    axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    wide = (spread(weight, x.ndim, axis), spread(bias, x.ndim, axis))
    exact = x.astype(np.float64), dy.astype(np.float64)
    running = np.zeros(weight.size, np.float32), np.ones(weight.size)
    y, mean, rstd = batch_norm_forward(x, weight, bias, *running, axis=axis)
    truth, found = reference.batch_norm_forward(exact[0], *wide, axes=axes)
    assert y.dtype == dtype
    assert_rounded_once(y, truth)
    # Kernels add halves in float32 over a few elements; 1e-6 is promised.
    np.testing.assert_allclose(mean, found.mean.ravel(), rtol=1e-7)
    assert mean.dtype == rstd.dtype == np.float64
    np.testing.assert_allclose(running[0], 0.1 * mean, rtol=1e-6)
    var = 1 / rstd**2 - 1e-5
    assert_rounded_once(batch_norm(x, mean, var, weight, bias, axis=axis), truth)

    dx, dweight, dbias = batch_norm_backward(dy, x, mean, rstd, weight, axis=axis)
    truths = reference.batch_norm_backward(exact[1], exact[0], wide[0], axes=axes)
    assert dx.dtype == dtype
    assert dweight.dtype == dbias.dtype == np.float32
    assert_rounded_once(dx, truths[0])
    scale = np.sqrt(x.size / weight.size)
    np.testing.assert_allclose(dweight, truths[1].ravel(), rtol=1e-6, atol=2e-6 * scale)
    np.testing.assert_allclose(dbias, truths[2].ravel(), rtol=1e-6, atol=2e-6 * scale)
    bare = batch_norm_backward(dy, x, mean, rstd, axis=axis)
    assert bare.dweight.dtype == bare.dbias.dtype == np.float32
    with_float64 = batch_norm_backward(dy, x, mean, rstd, weight.astype(np.float64), axis=axis)
    assert with_float64.dweight.dtype == np.float64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_fusions_are_rounded_once(backend, shape, axis, activation, dtype):
    x, dy, residual, weight, bias = arrays(shape, axis, dtype)
    axes = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    wide = (spread(weight, x.ndim, axis), spread(bias, x.ndim, axis))
    z, _ = reference.batch_norm_forward(x.astype(np.float64), *wide, axes=axes)
    z = z + residual.astype(np.float64)
    number = ACTIVATIONS[activation]
    options = {"residual": residual, "activation": activation, "axis": axis}
    y, mean, rstd = batch_norm_forward(x, weight, bias, **options)
    assert_rounded_once(y, reference.ACTIVATION[number](z))
    g = batch_norm_activation_backward(dy, x, mean, rstd, weight, bias, **options)
    assert g.dtype == dtype
    # The slope of a kink is right on either side of it.
    clear = np.abs(z) > 1e-6
    truth = dy.astype(np.float64) * reference.SLOPE[number](z)
    assert_rounded_once(g[clear], truth[clear])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layers(backend, dtype):
    x, dy, residual, weight, bias = arrays((4, 6, 5, 3), 1, dtype)
    mask = np.random.default_rng(1).random((4, 5, 3)) < 0.8
    wide = [values.astype(np.float64) for values in (x, dy, residual)]
    for options in ({}, {"activation": "silu"}, {"virtual_batch_size": 2}):
        half, double = nc.BatchNorm2d(6, **options), nc.BatchNorm2d(6, **options)
        for bn in (half, double):
            bn.weight[...], bn.bias[...] = weight, bias
        assert_rounded_once(
            half(x, residual=residual, mask=mask), double(wide[0], residual=wide[2], mask=mask)
        )
        for name in ("running_mean", "running_var"):
            assert getattr(half, name).dtype == np.float32
            np.testing.assert_allclose(getattr(half, name), getattr(double, name), rtol=1e-6)
        found = half.backward_residual(dy)
        truth = double.backward_residual(wide[1])
        assert_rounded_once(found.dresidual, truth.dresidual)
        assert found.dx.dtype == dtype
        assert found.dweight.dtype == np.float32
        assert_rounded_once(found.dx, truth.dx)
        assert_rounded_once(half.eval()(x), double.eval()(wide[0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_renorm(backend, dtype):
    x, dy, _, weight, _ = arrays((4, 6, 5, 3), 1, dtype)
    half, double = (nc.BatchRenorm2d(6, r_max=1.2, d_max=0.3) for _ in range(2))
    for layer in (half, double):
        layer.weight[...] = weight
    assert_rounded_once(half(x), double(x.astype(np.float64)))
    found, truth = half.backward(dy), double.backward(dy.astype(np.float64))
    assert_rounded_once(found.dx, truth.dx)
    np.testing.assert_allclose(found.dweight, truth.dweight, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(half.r, double.r, rtol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_and_statistics(backend, dtype):
    x, dy, _, weight, _ = arrays((8, 6, 5, 3), 1, dtype, 100.0)
    exact = x.astype(np.float64)
    stats = nc.ChannelStats()
    for part in np.split(x, 4):
        stats.update(part)
    np.testing.assert_allclose(stats.mean, exact.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(stats.var(), exact.var((0, 2, 3)), rtol=1e-10)
    masked = nc.ChannelStats()
    masked.update(x, mask=np.arange(3) < 2)
    np.testing.assert_allclose(masked.mean, exact[..., :2].mean((0, 2, 3)), rtol=1e-13)

    mean, rstd = stats.mean, 1 / np.sqrt(stats.var() + 1e-5)
    sums = batch_norm_backward_reduce(dy, x, mean)
    dx = batch_norm_backward_apply(dy, x, mean, rstd, *sums, stats.count, weight)
    truth = batch_norm_backward(dy.astype(np.float64), exact, mean, rstd, weight)
    assert_rounded_once(dx, truth.dx)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_and_out(backend, dtype):
    x, _, _, weight, bias = arrays((4, 6, 5, 3), 1, dtype)
    expected = batch_norm_forward(x, weight, bias)[0].astype(np.float64)
    wide = np.zeros((4, 6, 5, 6), dtype)
    wide[..., ::2] = x
    swapped = [x.astype(">f2")] if dtype == np.float16 else []
    for given in (x.copy(), np.asfortranarray(x), wide[..., ::2], *swapped):
        out = np.empty(x.shape, dtype)
        assert batch_norm_forward(given, weight, bias, out=out)[0] is out
        assert_rounded_once(out, expected)
    with pytest.raises(TypeError, match=r"out: expected dtype .*float16"):
        batch_norm_forward(x, out=np.empty(x.shape, np.float32))
    with pytest.raises(TypeError, match="weight: expected dtype float32 or float64"):
        batch_norm_forward(x, weight.astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_not_a_number_stays_one_whatever_its_bits(backend, dtype):
    """Rounded like a number, a NaN of ones alone would become -0."""
    x, dy, _, weight, bias = arrays((64, 96), 1, dtype)
    weight[7] = np.uint32(0x7FFFFFFF).view(np.float32)
    x[5, 40] = np.nan
    dy[5, 41] = -np.inf
    lost = np.zeros(96, bool)
    lost[[7, 40]] = True
    y, mean, rstd = batch_norm_forward(x, weight, bias)
    assert np.array_equal(np.isnan(y.astype(np.float32)).all(0), lost)
    assert np.isfinite(y.astype(np.float32)[:, ~lost]).all()
    dx = batch_norm_backward(dy, x, mean, rstd, weight).dx.astype(np.float32)
    lost[41] = True
    assert np.array_equal(np.isnan(dx).any(0), lost)
    assert np.isfinite(dx[:, ~lost]).all()
