"""Ghost batch normalization: the same, bit for bit, as one chunk of samples after the other."""

import copy
import pickle

import numpy as np
import pytest
from arrays import case, layouts

import normcore as nc
from normcore.functional import (
    batch_norm_forward,
    ghost_batch_norm_activation_backward,
    ghost_batch_norm_backward,
    ghost_batch_norm_forward,
)

# kind, shape, axis, virtual batch size, chunks that come out
CASES = [
    (nc.BatchNorm1d, (8, 3), 1, 4, [4, 4]),
    (nc.BatchNorm1d, (10, 3), -1, 4, [4, 4, 2]),
    (nc.BatchNorm1d, (9, 3), 1, 4, [4, 5]),
    (nc.BatchNorm1d, (3, 3), 1, 4, [3]),
    (nc.BatchNorm1d, (3, 3), 1, 2, [3]),
    (nc.BatchNorm1d, (5, 3, 7), 1, 2, [2, 2, 1]),
    (nc.BatchNorm2d, (4, 3, 5, 2), 1, 1, [1, 1, 1, 1]),
    (nc.BatchNorm2d, (7, 5, 2, 3), -1, 3, [3, 3, 1]),
    (nc.BatchNorm3d, (5, 3, 2, 3, 2), 1, 2, [2, 2, 1]),
]
IDS = [f"{shape} by {size}" for _, shape, _, size, _ in CASES]


def layer_for(t, kind, **options):
    bn = kind(t.weight.size, axis=t.axis, **options)
    bn.weight[...], bn.bias[...] = t.weight, t.bias
    return bn


def snapshot(bn):
    return pickle.dumps(bn.state_dict())


def parts_of(sizes):
    ends = np.cumsum(sizes)
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(("kind", "shape", "axis", "size", "sizes"), CASES, ids=IDS)
def test_it_is_one_chunk_after_the_other(
    backend, kind, shape, axis, size, sizes, activation, momentum
):
    t = case(shape, axis)
    residual = t.dy * 2
    options = {"activation": activation, "momentum": momentum}
    ghost, plain = (
        layer_for(t, kind, virtual_batch_size=size, **options),
        layer_for(t, kind, **options),
    )
    for _ in range(2):
        y = ghost(t.x, residual=residual)
        found = ghost.backward_residual(t.dy)
        dweight, dbias = 0, 0
        for part in parts_of(sizes):
            wanted = plain(t.x[part], residual=residual[part])
            np.testing.assert_array_equal(y[part], wanted)
            gradients = plain.backward_residual(t.dy[part])
            np.testing.assert_array_equal(found.dx[part], gradients.dx)
            np.testing.assert_array_equal(found.dresidual[part], gradients.dresidual)
            dweight = dweight + gradients.dweight.astype(np.float64)
            dbias = dbias + gradients.dbias.astype(np.float64)
        assert found.dweight.dtype == np.float32
        np.testing.assert_allclose(found.dweight, dweight, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.dbias, dbias, rtol=1e-5, atol=1e-5)
        assert snapshot(ghost) == snapshot(plain)
    assert ghost.num_batches_tracked == 2 * len(sizes)
    np.testing.assert_array_equal(ghost.eval()(t.x), plain.eval()(t.x))


@pytest.mark.parametrize(("kind", "shape", "axis", "size", "sizes"), CASES, ids=IDS)
def test_gradients_against_torch(backend, kind, shape, axis, size, sizes):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    t = case(shape, axis, np.float64)
    x, weight, bias = (torch.tensor(v, requires_grad=True) for v in (t.x, t.weight, t.bias))
    y = torch.cat(
        [
            torch.nn.functional.batch_norm(
                x[part].movedim(axis, 1), None, None, weight, bias, training=True
            ).movedim(1, axis)
            for part in parts_of(sizes)
        ]
    )
    y.backward(torch.tensor(t.dy))
    found, mean, rstd = ghost_batch_norm_forward(t.x, size, t.weight, t.bias, axis=axis)
    assert mean.shape == rstd.shape == (len(sizes), t.weight.size)
    np.testing.assert_allclose(found, y.detach(), rtol=1e-11, atol=1e-12)
    gradients = ghost_batch_norm_backward(t.dy, t.x, mean, rstd, size, t.weight, axis=axis)
    for name, values, wanted in zip(gradients._fields, gradients, (x, weight, bias), strict=True):
        np.testing.assert_allclose(values, wanted.grad, rtol=1e-9, atol=1e-9, err_msg=name)


def test_without_parameters_dweight_has_the_dtype_of_x(backend):
    for dtype in (np.float32, np.float64):
        t = case((6, 3, 4), 1, dtype)
        _, mean, rstd = ghost_batch_norm_forward(t.x, 2)
        found = ghost_batch_norm_backward(t.dy, t.x, mean, rstd, 2)
        assert found.dweight.dtype == found.dbias.dtype == dtype
        ones = np.ones(3, dtype)
        for values, wanted in zip(
            found, ghost_batch_norm_backward(t.dy, t.x, mean, rstd, 2, ones), strict=True
        ):
            np.testing.assert_array_equal(values, wanted)


def test_masks(backend):
    t = case((6, 3, 5, 4))
    mask = np.random.default_rng(0).random((6, 5, 4)) < 0.6
    mask[2:4] = False
    ghost, plain = (layer_for(t, nc.BatchNorm2d, virtual_batch_size=size) for size in (2, None))
    y = ghost(t.x, mask=mask)
    dx = ghost.backward(t.dy).dx
    for part in parts_of([2, 2, 2]):
        np.testing.assert_array_equal(y[part], plain(t.x[part], mask=mask[part]))
        np.testing.assert_array_equal(dx[part], plain.backward(t.dy[part]).dx)
    assert snapshot(ghost) == snapshot(plain)
    assert ghost.num_batches_tracked == 2  # nothing of the second chunk counts
    columns = np.array([1, 1, 0, 1])
    full = np.broadcast_to(columns, (6, 5, 4))
    np.testing.assert_array_equal(ghost(t.x, mask=columns), ghost(t.x, mask=full))


@pytest.mark.parametrize("layout", range(9))
def test_layouts_and_out(backend, layout):
    t = case((6, 3, 5, 4), 1, np.float64)
    options = {"activation": "gelu", "residual": t.dy}
    expected, mean, rstd = ghost_batch_norm_forward(t.x, 4, t.weight, t.bias, **options)
    gradient = ghost_batch_norm_backward(t.dy, t.x, mean, rstd, 4, t.weight)
    g = ghost_batch_norm_activation_backward(t.dy, t.x, mean, rstd, 4, t.weight, t.bias, **options)
    name, x = [*layouts(t.x)][layout]
    dy = [*layouts(t.dy)][layout][1]
    close = {"rtol": 1e-11, "atol": 1e-12, "err_msg": name}
    for out in (None, np.empty_like(t.x), np.empty((4, 3, 5, 6)).T.swapaxes(1, 2)):
        y = ghost_batch_norm_forward(x, 4, t.weight, t.bias, out=out, **options)[0]
        assert out is None or y is out
        np.testing.assert_allclose(y, expected, **close)
        found = ghost_batch_norm_backward(dy, x, mean, rstd, 4, t.weight, out=out)
        assert out is None or found.dx is out
        for values, wanted in zip(found, gradient, strict=True):
            np.testing.assert_allclose(values, wanted, **close)
        found = ghost_batch_norm_activation_backward(
            dy, x, mean, rstd, 4, t.weight, t.bias, out=out, **options
        )
        assert out is None or found is out
        np.testing.assert_allclose(found, g, **close)


def test_in_place(backend):
    t = case((6, 3, 5, 4))
    bn = layer_for(t, nc.BatchNorm2d, virtual_batch_size=4, activation="relu")
    expected = copy.deepcopy(bn)(t.x)
    x = t.x.copy()
    assert bn(x, out=x) is x
    np.testing.assert_array_equal(x, expected)
    bn(t.x)
    wanted = bn.backward(t.dy)
    dy = t.dy.copy()
    found = bn.backward(dy, out=dy)
    assert found.dx is dy
    for values, truth in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(values, truth)


def test_evaluation_ignores_it(backend):
    t = case((6, 3, 5, 4))
    for options in ({}, {"track_running_stats": False}):
        ghost = layer_for(t, nc.BatchNorm2d, virtual_batch_size=2, **options).eval()
        plain = layer_for(t, nc.BatchNorm2d, **options).eval()
        np.testing.assert_array_equal(ghost(t.x), plain(t.x))
        for values, wanted in zip(
            ghost.backward(t.dy, t.x), plain.backward(t.dy, t.x), strict=True
        ):
            np.testing.assert_array_equal(values, wanted)
    frozen = layer_for(t, nc.BatchNorm2d, virtual_batch_size=2).freeze()
    np.testing.assert_array_equal(frozen(t.x), frozen.eval()(t.x))


def test_an_empty_batch_touches_nothing(backend):
    bn = nc.BatchNorm2d(3, virtual_batch_size=2)
    before = snapshot(bn)
    x = np.zeros((0, 3, 5, 5), np.float32)
    assert bn(x).shape == x.shape
    assert snapshot(bn) == before
    dx, dweight, _ = bn.backward(x)
    assert dx.shape == x.shape
    assert (dweight == 0).all()


LONELY = np.ones((6, 4), bool)
LONELY[4:] = False
LONELY[5, 3] = True


@pytest.mark.parametrize(
    ("size", "x", "options", "error", "message"),
    [
        (1, np.ones((4, 3)), {}, ValueError, r"\(4, 3\) with 1 value in samples 0 to 0"),
        (2, np.ones((6, 3, 4)), {"mask": LONELY}, ValueError, "1 value in samples 4 to 5"),
        (2, np.ones((6, 3, 4)), {"mask": LONELY[:3]}, ValueError, r"mask: expected shape \(6, 4\)"),
        (2, np.ones((6, 3)), {"residual": np.ones((6, 2))}, ValueError, "residual: expected x's"),
        (2, np.ones((6, 3)), {"activation": "tanh"}, ValueError, "activation: expected one of"),
        (0, np.ones((6, 3)), {}, ValueError, "virtual_batch_size: expected at least 1, got 0"),
        (2.0, np.ones((6, 3)), {}, TypeError, "virtual_batch_size: expected an int, got 2.0"),
        (2, np.ones((3, 6)), {"axis": 0}, ValueError, "axis: expected a channel axis behind"),
    ],
)
def test_errors_change_nothing(size, x, options, error, message):
    running, out = (np.zeros(3), np.ones(3)), np.full_like(x, 7)
    with pytest.raises(error, match=message):
        ghost_batch_norm_forward(
            x, size, running_mean=running[0], running_var=running[1], out=out, **options
        )
    np.testing.assert_array_equal(running, (np.zeros(3), np.ones(3)))
    assert (out == 7).all()


def test_an_out_that_overlaps_another_chunk_is_refused():
    buffer = np.zeros((8, 3))
    with pytest.raises(ValueError, match=r"out: .* overlaps an input"):
        ghost_batch_norm_forward(buffer[:6], 2, out=buffer[2:])
    x = np.ones((6, 3))
    saved = np.zeros((3, 3)), np.ones((3, 3))
    with pytest.raises(ValueError, match=r"out: .* overlaps an input"):
        ghost_batch_norm_backward(buffer[:6], x, *saved, 2, out=buffer[2:])
    with pytest.raises(ValueError, match=r"mean: expected shape \(2, 3\), got \(3, 3\)"):
        ghost_batch_norm_backward(x, x, *saved, 3)


def test_options_of_the_layer():
    bn = nc.BatchNorm2d(3, virtual_batch_size=16)
    assert repr(bn).endswith(", virtual_batch_size=16)")
    assert pickle.loads(pickle.dumps(bn)).virtual_batch_size == 16
    with pytest.raises(ValueError, match="virtual_batch_size: expected at least 1, got 0"):
        nc.BatchNorm2d(3, virtual_batch_size=0)


def test_update_bn_pools_over_chunks(backend):
    data = np.random.default_rng(0).normal(3, 2, (24, 3, 5))
    bn = nc.BatchNorm1d(3, dtype=np.float64, virtual_batch_size=4)
    seen = []
    nc.update_bn([bn], np.split(data, 2), lambda x: seen.append(bn(x)))
    np.testing.assert_array_equal(seen[0][:4], batch_norm_forward(data[:4])[0])
    np.testing.assert_allclose(bn.running_var, data.var((0, 2), ddof=1), rtol=1e-13)
    assert bn.num_batches_tracked == 2
