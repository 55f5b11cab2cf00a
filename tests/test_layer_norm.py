"""Layer and RMS norm: axes, eps, wrong arguments, PyTorch as oracle."""

import itertools

import numpy as np
import pytest
from arrays import assert_close

import normcore as nc
from normcore.functional import (
    group_norm_forward,
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
)

X = np.random.default_rng(0).normal(2, 3, (4, 3, 5))


def test_every_choice_of_axes(backend):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    for count in range(1, 5):
        for axes in itertools.permutations(range(4), count):
            shape = tuple(x.shape[i] for i in axes)
            weight = np.random.default_rng(1).standard_normal(shape)
            y, mean, rstd = layer_norm_forward(x, shape, weight, axis=axes)
            np.testing.assert_allclose(mean, x.mean(axes), rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(rstd, 1 / np.sqrt(x.var(axes) + 1e-5), rtol=1e-12)
            spread = weight.transpose(np.argsort(axes))
            others = tuple(i for i in range(4) if i not in axes)
            x_hat = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
            expected = x_hat * np.expand_dims(spread, others)
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)
            dweight = layer_norm_backward(y, x, mean, rstd, shape, weight, axis=axes).dweight
            expected = np.sum(y * x_hat, others).transpose(np.argsort(np.argsort(axes)))
            np.testing.assert_allclose(dweight, expected, rtol=1e-10, atol=1e-12)


def test_every_memory_order(backend):
    x = np.random.default_rng(0).standard_normal((2, 3, 1, 4))
    subsets = [c for n in range(1, 5) for c in itertools.combinations(range(4), n)]
    for order in itertools.permutations(range(4)):
        lying = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
        for axes in subsets:
            shape = [x.shape[i] for i in axes]
            y, mean, rstd = layer_norm_forward(lying, shape, axis=axes)
            deviation = x - x.mean(axes, keepdims=True)
            expected = deviation / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(mean, x.mean(axes), rtol=1e-12, atol=1e-14)
            dx = layer_norm_backward(x, lying, mean, rstd, shape, axis=axes).dx
            plain = layer_norm_backward(x, x, mean, rstd, shape, axis=axes).dx
            np.testing.assert_allclose(dx, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("axes", [-1, 2, (2,), [-1], np.int64(2)])
def test_spellings_of_an_axis(axes):
    expected = layer_norm(X, 5)
    np.testing.assert_array_equal(layer_norm(X, (5,), axis=axes), expected)
    for shape in (5, [5], np.int64(5), (np.int64(5),), np.array([5])):
        np.testing.assert_array_equal(layer_norm(X, shape, axis=axes), expected)


@pytest.mark.parametrize("shape", [(3, 1, 4), (1, 4), (4, 1), (1, 1, 1), (2, 4, 1, 1)])
def test_axes_of_one_element(backend, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    for axes in itertools.chain.from_iterable(
        itertools.combinations(range(len(shape)), n) for n in range(1, len(shape) + 1)
    ):
        for y in (
            layer_norm(x, [shape[i] for i in axes], axis=axes),
            layer_norm(np.asfortranarray(x), [shape[i] for i in axes], axis=axes),
        ):
            deviation = x - x.mean(axes, keepdims=True)
            expected = deviation / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
            np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "eps"),
    [
        (np.float32, np.finfo(np.float32).eps),
        (np.float64, np.finfo(float).eps),
        (np.float16, 2**-23),
    ],
)
def test_the_eps_of_rms_norm_is_that_of_the_dtype(backend, dtype, eps):
    x = np.full((3, 4), 2.0**-12, dtype)
    for layout in (x, x.astype(x.dtype.newbyteorder())):
        _, rstd = rms_norm_forward(layout, 4)
        np.testing.assert_allclose(rstd, 1 / np.sqrt(2.0**-24 + float(eps)), rtol=1e-12)
    assert nc.RMSNorm(4).eps is None
    np.testing.assert_array_equal(nc.RMSNorm(4)(x), rms_norm(x, 4))


def test_shares_its_statistics_with_group_norm(backend):
    x = np.random.default_rng(0).standard_normal((4, 6, 5, 3)).astype(np.float32)
    y, mean, rstd = layer_norm_forward(x, (6, 5, 3))
    other, *statistics = group_norm_forward(x, 1)
    np.testing.assert_allclose(statistics, [mean[:, None], rstd[:, None]], rtol=1e-14)
    assert_close(y, other.astype(np.float64), 2.4e-7)


def test_rms_norm_is_layer_norm_of_what_is_centred(backend):
    centred = X - X.mean(-1, keepdims=True)
    y = rms_norm(centred, 5, eps=1e-5)
    np.testing.assert_allclose(y, layer_norm(X, 5), rtol=1e-12, atol=1e-14)


def test_channels_first_is_channels_last(backend):
    # cols and rows add the same numbers in another order, so that the float64 statistics differ in
    # their last digits. Rounded to float32 that was no bit here (numpy, cython); it may be 1 ulp
    # each of mean and rstd near a tie. A bias would blow it up where it cancels.
    for offset in (0, 3, 1000):
        x = np.random.default_rng(0).normal(offset, 2, (4, 70, 9, 5)).astype(np.float32)
        weight = np.random.default_rng(1).standard_normal(70).astype(np.float32)
        first = layer_norm(x, 70, weight, axis=1)
        last = layer_norm(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), 70, weight)
        np.testing.assert_array_max_ulp(first, last.transpose(0, 3, 1, 2), 2)


READ_ONLY = np.zeros_like(X)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X.astype(int)}, TypeError, "x: expected dtype float32, float64, float16 or bfl"),
        ({"x": X.astype(complex)}, TypeError, "x: expected dtype .* got complex128"),
        ({"x": "text"}, TypeError, "x: expected dtype"),
        ({"normalized_shape": 4}, ValueError, r"x: expected shape \(\*, 4\) .* got \(4, 3, 5\)"),
        ({"normalized_shape": (4, 5)}, ValueError, r"x: expected shape \(\*, 4, 5\)"),
        ({"normalized_shape": (1, 4, 3, 5)}, ValueError, r"x: expected shape \(\*, 1, 4, 3, 5\)"),
        ({"normalized_shape": ()}, ValueError, "normalized_shape: expected at least one length"),
        ({"normalized_shape": -5}, ValueError, "normalized_shape: expected lengths of at least 0"),
        ({"normalized_shape": 5.0}, TypeError, "normalized_shape: expected an int or a sequence"),
        ({"normalized_shape": (5.0,)}, TypeError, "normalized_shape: expected an int or a seq"),
        ({"axis": 1}, ValueError, r"x: expected lengths \(5,\) along axes \(1,\), got shape"),
        ({"axis": 3}, ValueError, r"axis: expected axes of x of shape \(4, 3, 5\), got \(3,\)"),
        ({"axis": (1, 2)}, ValueError, r"axis: expected as many axes as normalized_shape \(5,\)"),
        ({"axis": True}, TypeError, "axis: expected an int, a sequence of int or None, got True"),
        ({"axis": "2"}, TypeError, "axis: expected an int, a sequence of int or None, got '2'"),
        (
            {"axis": (2, -1), "normalized_shape": (5, 5)},
            ValueError,
            r"axis: expected different axes .* got \(2, -1\)",
        ),
        ({"weight": np.ones(4)}, ValueError, r"weight: expected shape \(5,\), got \(4,\)"),
        ({"weight": np.ones(5, np.float16)}, TypeError, "weight: expected dtype float32 or fl"),
        ({"eps": 0.0}, ValueError, "eps: expected a positive finite number, got 0.0"),
        ({"out": READ_ONLY}, ValueError, "out: expected a writeable array"),
        ({"out": X[1:]}, ValueError, "out: expected x's shape"),
        ({"out": X.astype(np.float32)}, TypeError, "out: expected dtype float64"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    before = X.copy()
    for function in (layer_norm, layer_norm_forward, rms_norm, rms_norm_forward):
        with pytest.raises(error, match=message):
            function(**{"x": X, "normalized_shape": 5, **arguments})
    np.testing.assert_array_equal(X, before)


def test_wrong_arguments_of_layer_norm_alone():
    with pytest.raises(ValueError, match=r"bias: expected shape \(5,\), got \(3,\)"):
        layer_norm(X, 5, None, np.ones(3))
    with pytest.raises(TypeError, match="eps: expected a number, got None"):
        layer_norm(X, 5, eps=None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dy": X[1:]}, ValueError, "dy: expected x's shape"),
        ({"dy": X.astype(np.float32)}, TypeError, "dy: expected x's dtype float64, got float32"),
        ({"rstd": np.ones((4, 5))}, ValueError, r"rstd: expected shape \(4, 3\), got \(4, 5\)"),
        ({"rstd": None}, ValueError, r"rstd: expected an array of shape \(4, 3\), got None"),
        ({"weight": np.ones(3)}, ValueError, r"weight: expected shape \(5,\), got \(3,\)"),
        ({"normalized_shape": 3}, ValueError, r"x: expected shape \(\*, 3\)"),
        ({"out": READ_ONLY}, ValueError, "out: expected a writeable array"),
    ],
)
def test_wrong_arguments_of_the_backward(arguments, error, message):
    given = {"dy": X, "x": X, "rstd": np.ones((4, 3)), "normalized_shape": 5, **arguments}
    with pytest.raises(error, match=message):
        rms_norm_backward(**given)
    with pytest.raises(error, match=message):
        layer_norm_backward(**given, mean=np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"mean: expected shape \(4, 3\), got \(4,\)"):
        layer_norm_backward(X, X, np.zeros(4), np.ones((4, 3)), 5)


CASES = [
    ("LayerNorm", (5,), {}),
    ("LayerNorm", ((3, 5), 1e-2), {}),
    ("LayerNorm", (5,), {"bias": False}),
    ("LayerNorm", (5,), {"elementwise_affine": False}),
    ("RMSNorm", (5,), {}),
    ("RMSNorm", ((3, 5), 1e-2), {}),
    ("RMSNorm", (5,), {"elementwise_affine": False}),
]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 3e-6), ("float64", 1e-13)])
@pytest.mark.parametrize(("name", "arguments", "options"), CASES)
def test_pytorch_agrees(backend, name, arguments, options, dtype, bound):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(*arguments, dtype=getattr(torch, dtype), **options)
    for parameter in theirs.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    ours = getattr(nc, name)(*arguments, dtype=dtype, **options)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    assert repr(ours).replace(", dtype=float64", "") == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, dy = X.astype(dtype), np.random.default_rng(1).standard_normal(X.shape).astype(dtype)
    tensor = torch.tensor(x, requires_grad=True)
    expected = theirs(tensor)
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(ours(x), expected.detach(), rtol=bound, atol=bound)
    gradients = ours.backward(dy)
    np.testing.assert_allclose(gradients.dx, tensor.grad, rtol=bound, atol=bound)
    for found, key in ((gradients.dweight, "weight"), (gradients.dbias, "bias")):
        parameter = getattr(theirs, key, None)
        if parameter is None:
            assert found is None
        else:
            np.testing.assert_allclose(found, parameter.grad, rtol=bound, atol=10 * bound)
    state = {key: torch.from_numpy(values) for key, values in ours.state_dict().items()}
    assert not any(theirs.load_state_dict(state))
