"""LayerNorm, RMSNorm, GroupNorm and InstanceNorm as layers: state, modes, backward, copies."""

import copy
import pickle
import sys

import numpy as np
import pytest
from arrays import assert_close
from norms import Norm, problem, truth

import normcore as nc

# A layer with its options, and the function that it is.
LAYERS = [
    (nc.LayerNorm, (5,), {}, Norm("layer", (4, 6, 5))),
    (nc.LayerNorm, (6,), {"axis": 1}, Norm("layer", (4, 6, 5), 1)),
    (nc.LayerNorm, ((6, 5),), {"bias": False}, Norm("layer", (4, 6, 5), (1, 2))),
    (nc.RMSNorm, (5, 1e-5), {}, Norm("rms", (4, 6, 5))),
    (nc.RMSNorm, ((4, 6), 1e-5), {"axis": (0, 1)}, Norm("rms", (4, 6, 5), (0, 1))),
    (nc.GroupNorm, (3, 6), {}, Norm("group", (4, 6, 5), 1, 3)),
    (nc.GroupNorm, (2, 6), {"axis": -1}, Norm("group", (4, 5, 3, 6), -1, 2)),
    (nc.InstanceNorm1d, (6,), {"affine": True}, Norm("instance", (4, 6, 5), 1)),
    (nc.InstanceNorm2d, (6,), {"affine": True, "axis": -1}, Norm("instance", (4, 5, 3, 6), -1)),
]
IDS = {"ids": lambda value: getattr(value, "__name__", str(value))}
EVERY = pytest.mark.parametrize(("kind", "arguments", "options", "norm"), LAYERS, **IDS)
UNAFFINE = {
    nc.LayerNorm: {"elementwise_affine": False},
    nc.RMSNorm: {"elementwise_affine": False},
    nc.GroupNorm: {"affine": False},
    nc.InstanceNorm1d: {"affine": False},
    nc.InstanceNorm2d: {"affine": False},
}


def built(kind, arguments, options, norm, dtype=np.float64, **more):
    """The layer with random parameters, and the problem."""
    p = problem(norm, dtype)
    layer = kind(*arguments, dtype=dtype, **{**options, **more})
    if layer.weight is None:
        p.weight = None
    else:
        layer.weight[...] = p.weight
    if layer.bias is None:
        p.bias = None
    else:
        layer.bias[...] = p.bias
    return layer, p


def snapshot(layer):
    return pickle.dumps(layer.state_dict())


@EVERY
def test_a_step_matches_the_oracle(backend, kind, arguments, options, norm):
    layer, p = built(kind, arguments, options, norm)
    t = truth(norm, p.x, p.dy, p.weight, p.bias)
    assert layer.weight.shape == norm.parameters
    for mode in (True, False):
        layer.train(mode)
        assert_close(layer(p.x), t.y, 4e-15)
        dx, dweight, dbias = layer.backward(p.dy) if mode else layer.backward(p.dy, p.x)
        assert_close(dx, t.dx, 4e-15)
        assert_close(dweight, t.dweight, 1e-14, t.summands)
        if p.bias is None:
            assert dbias is None
        else:
            assert_close(dbias, t.dbias, 1e-13)


@EVERY
def test_without_parameters(backend, kind, arguments, options, norm):
    layer, p = built(kind, arguments, options, norm, **UNAFFINE[kind])
    assert layer.weight is layer.bias is None
    assert layer.state_dict() == {}
    t = truth(norm, p.x, p.dy)
    assert_close(layer(p.x), t.y, 4e-15)
    dx, dweight, dbias = layer.backward(p.dy)
    assert_close(dx, t.dx, 4e-15)
    assert dweight is dbias is None


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@EVERY
def test_residual_activation_and_mask(backend, kind, arguments, options, norm, activation):
    layer, p = built(kind, arguments, options, norm, activation=activation)
    mask = np.random.default_rng(0).random(norm.positions) < 0.7
    full = norm.full(mask)
    t = truth(
        norm, p.x, p.dy, p.weight, p.bias, mask=full, residual=p.residual, activation=activation
    )
    given = {"residual": p.residual, "mask": mask}
    y = layer(p.x, **given)
    assert_close(y, t.y, 4e-15)
    layer.eval()
    np.testing.assert_array_equal(layer(p.x, **given), y)
    layer.train()(p.x, **given)
    before = p.dy.copy()
    for mode in (True, False):
        more = {}
        if not mode:
            layer.eval()
            more = {"x": p.x, **given}
        dx, dweight, _, dresidual = layer.backward_residual(p.dy, **more)
        assert_close(dx, t.dx, 1e-14)
        assert_close(dresidual, t.g, 1e-14)
        assert_close(dweight, t.dweight, 1e-13, t.summands)
        for a, b in zip(layer.backward(p.dy, **more), (dx, dweight), strict=False):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(p.dy, before)


@EVERY
def test_out(backend, kind, arguments, options, norm):
    layer, p = built(kind, arguments, options, norm, activation="gelu")
    t = truth(norm, p.x, p.dy, p.weight, p.bias, activation="gelu")
    y, dx = np.empty_like(p.x), np.empty_like(p.x)
    assert layer(p.x, out=y) is y
    assert_close(y, t.y, 4e-15)
    assert layer.backward(p.dy, out=dx).dx is dx
    assert_close(dx, t.dx, 1e-14)
    assert layer.backward(p.dy, out=p.dy).dx is p.dy
    assert_close(p.dy, t.dx, 1e-14)
    x = p.x.copy()
    layer(x, out=x)
    with pytest.raises(RuntimeError, match="x was overwritten"):
        layer.backward(dx)
    assert layer.backward(dx, p.x).dx.shape == dx.shape


@EVERY
def test_evaluation_keeps_nothing(kind, arguments, options, norm):
    layer, p = built(kind, arguments, options, norm)
    layer.eval()
    x = p.x
    before = sys.getrefcount(x)
    layer(x)
    assert sys.getrefcount(x) == before
    with pytest.raises(RuntimeError, match=r"evaluation keeps no input.*backward\(dy, x\)"):
        layer.backward(p.dy)
    layer.train()(x)
    assert sys.getrefcount(x) > before
    assert layer.train() is layer
    with pytest.raises(RuntimeError, match="no training-mode forward"):
        layer.backward(p.dy)


@EVERY
def test_frozen_parameters_get_no_gradient(kind, arguments, options, norm):
    layer, p = built(kind, arguments, options, norm)
    with pytest.raises(ValueError, match="no running statistics"):
        layer.freeze()
    assert layer.freeze(statistics=False, affine=True) is layer
    dx = layer.train()(p.x)
    dx, dweight, dbias = layer.backward(p.dy)
    assert dweight is dbias is None
    np.testing.assert_array_equal(layer.unfreeze().backward(p.dy).dx, dx)
    assert layer.backward(p.dy).dweight is not None


@EVERY
def test_state_goes_through_a_dict_and_a_pickle(kind, arguments, options, norm):
    layer, p = built(kind, arguments, options, norm, activation="relu")
    y = layer(p.x)
    assert list(layer.state_dict()) == ["weight", "bias"][: 1 + (layer.bias is not None)]
    other = kind(*arguments, dtype=np.float64, **options, activation="relu")
    assert snapshot(other) != snapshot(layer)
    weight = other.weight
    assert other.load_state_dict(layer.state_dict()) == ([], [])
    assert other.weight is weight
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        np.testing.assert_array_equal(twin(p.x), y)
    assert len(pickle.dumps(layer)) < 3000 + layer.weight.nbytes * 2
    layer.reset_parameters()
    assert (layer.weight == 1).all()
    assert layer.bias is None or not layer.bias.any()
    with pytest.raises(ValueError, match="missing: weight"):
        layer.load_state_dict({})
    np.testing.assert_array_equal(other(p.x), y)


@EVERY
def test_parameters_of_float32_serve_every_dtype(backend, kind, arguments, options, norm):
    layer, p = built(kind, arguments, options, norm, np.float32)
    t = truth(norm, p.x, p.dy, p.weight, p.bias)
    for dtype, bound in ((np.float64, 1e-6), (np.float16, 2e-2)):
        y = layer(p.x.astype(dtype))
        assert y.dtype == dtype
        assert_close(y.astype(np.float64), t.y, bound)
        gradients = layer.backward(p.dy.astype(dtype))
        assert gradients.dx.dtype == dtype
        assert gradients.dweight.dtype == np.float32
    assert kind(*arguments).weight is None or kind(*arguments).weight.dtype == np.float32


@EVERY
def test_calls_from_many_threads(kind, arguments, options, norm):
    from concurrent.futures import ThreadPoolExecutor

    layer, p = built(kind, arguments, options, norm)
    layer.eval()
    expected = layer(p.x)
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(layer, [p.x] * 40):
            np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nc.LayerNorm(()), ValueError, "normalized_shape: expected at least one length"),
        (lambda: nc.LayerNorm(0), ValueError, "normalized_shape: expected at least 1, got 0"),
        (lambda: nc.LayerNorm(2.5), TypeError, "normalized_shape: expected an int or a sequence"),
        (lambda: nc.LayerNorm((2, True)), TypeError, "normalized_shape: expected an int or"),
        (lambda: nc.LayerNorm(3, eps=0), ValueError, "eps: expected a positive"),
        (lambda: nc.LayerNorm(3, eps=None), TypeError, "eps: expected a number, got None"),
        (lambda: nc.LayerNorm(3, axis=(0, 1)), ValueError, "axis: expected as many axes as"),
        (lambda: nc.LayerNorm(3, axis=1.5), TypeError, "axis: expected an int, a sequence of"),
        (lambda: nc.LayerNorm(3, dtype=np.float16), TypeError, "dtype: expected float32 or"),
        (lambda: nc.LayerNorm(3, activation="tanh"), ValueError, "activation: expected one of"),
        (lambda: nc.RMSNorm(3, eps=-1.0), ValueError, "eps: expected a positive"),
        (lambda: nc.GroupNorm(4, 6), ValueError, "num_groups: expected a divisor .* 6, got 4"),
        (lambda: nc.GroupNorm(0, 6), ValueError, "num_groups: expected at least 1, got 0"),
        (lambda: nc.GroupNorm(2, 6.0), TypeError, "num_channels: expected an int, got 6.0"),
        (lambda: nc.GroupNorm(2, 6, axis=0), ValueError, "axis: expected a channel axis behind"),
        (lambda: nc.GroupNorm(2, 6, axis="1"), TypeError, "axis: expected an int, got '1'"),
        (lambda: nc.InstanceNorm1d(3, axis=0), ValueError, "axis: expected a channel axis behind"),
        (lambda: nc.InstanceNorm1d(3, axis=-3), ValueError, "axis: expected a channel axis behind"),
        (lambda: nc.InstanceNorm2d(0), ValueError, "num_features: expected at least 1, got 0"),
    ],
)
def test_wrong_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (nc.LayerNorm(5), "LayerNorm((5,), eps=1e-05, elementwise_affine=True, bias=True)"),
        (
            nc.LayerNorm([2, 5], bias=False, axis=(1, -1), activation="relu"),
            "LayerNorm((2, 5), eps=1e-05, elementwise_affine=True, bias=False, axis=(1, -1), "
            "activation=relu)",
        ),
        (nc.RMSNorm(5), "RMSNorm((5,), eps=None, elementwise_affine=True)"),
        (
            nc.GroupNorm(2, 6, affine=False, axis=-1, dtype=float),
            "GroupNorm(2, 6, eps=1e-05, affine=False, axis=-1, dtype=float64)",
        ),
        (
            nc.InstanceNorm2d(3),
            "InstanceNorm2d(3, eps=1e-05, momentum=0.1, affine=False, track_running_stats=False)",
        ),
    ],
)
def test_repr(layer, shown):
    assert repr(layer) == shown
