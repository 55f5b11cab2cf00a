"""PyTorch as an oracle: forward, backward, running statistics, state dicts both ways."""

import numpy as np
import pytest

import normcore as nc

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

CASES = [
    ("BatchNorm1d", (16, 6)),
    ("BatchNorm1d", (7, 6, 5)),
    ("BatchNorm2d", (4, 6, 5, 3)),
    ("BatchNorm3d", (2, 6, 3, 4, 5)),
]
OPTIONS = [
    {},
    {"eps": 1e-2, "momentum": 0.3},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
]
DTYPES = [("float32", 3e-6), ("float64", 1e-13)]


def pair(name, dtype, options):
    """A PyTorch module with random parameters and a layer with the same state."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(6, dtype=getattr(torch, dtype), **options)
    if theirs.affine:
        torch.nn.init.uniform_(theirs.weight, 0.5, 1.5)
        torch.nn.init.normal_(theirs.bias)
    ours = getattr(nc, name)(6, dtype=dtype, **options)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    return theirs, ours


@pytest.mark.parametrize(("dtype", "bound"), DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_train_then_evaluate(backend, name, shape, options, dtype, bound):
    theirs, ours = pair(name, dtype, options)
    shown = repr(theirs).replace(
        f", bias={theirs.affine}", ""
    )  # an option that PyTorch got in 2.13
    assert repr(ours).replace(", dtype=float64", "") == shown
    rng = np.random.default_rng(0)
    for training in (True, True, False):
        theirs.train(training)
        ours.train(training)
        x, dy = (rng.normal(1, 2, shape).astype(dtype) for _ in range(2))
        tensor = torch.tensor(x, requires_grad=True)
        theirs.zero_grad()
        expected = theirs(tensor)
        expected.backward(torch.tensor(dy))
        np.testing.assert_allclose(ours(x), expected.detach(), rtol=bound, atol=bound)
        dx, dweight, dbias = ours.backward(dy, x)
        np.testing.assert_allclose(dx, tensor.grad, rtol=bound, atol=bound)
        if theirs.affine:
            np.testing.assert_allclose(dweight, theirs.weight.grad, rtol=bound, atol=30 * bound)
            np.testing.assert_allclose(dbias, theirs.bias.grad, rtol=bound, atol=30 * bound)
        else:
            assert dweight is dbias is None
        state = theirs.state_dict()
        assert list(state) == list(ours.state_dict())
        for key, values in ours.state_dict().items():
            np.testing.assert_allclose(values, state[key], rtol=bound, atol=bound, err_msg=key)


def test_the_state_dict_loads_into_pytorch():
    _, ours = pair("BatchNorm2d", "float32", {})
    ours(np.random.default_rng(0).normal(3, 2, (4, 6, 5, 5)).astype(np.float32))
    state = {key: torch.from_numpy(values) for key, values in ours.state_dict().items()}
    theirs = torch.nn.BatchNorm2d(6)
    theirs.load_state_dict(state)
    for key, values in theirs.state_dict().items():
        np.testing.assert_array_equal(values, getattr(ours, key), key)


def test_channels_last_tensors(backend):
    x = torch.randn(4, 6, 5, 3)
    y = nc.functional.batch_norm(x.to(memory_format=torch.channels_last), None, None, training=True)
    expected = torch.nn.functional.batch_norm(x, None, None, training=True)
    np.testing.assert_allclose(y, expected, rtol=3e-6, atol=3e-6)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous


def test_one_value_per_channel_has_the_same_message():
    x = torch.ones(1, 3, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value") as theirs:
        torch.nn.functional.batch_norm(x, None, None, training=True)
    with pytest.raises(ValueError, match="Expected more than 1 value") as ours:
        nc.functional.batch_norm(x, None, None, training=True)
    words = "got input size "
    assert str(ours.value).split(words)[0] == str(theirs.value).split(words)[0]


def test_a_tensor_that_requires_grad_is_refused():
    x = torch.ones(4, 3, requires_grad=True)
    with pytest.raises(TypeError, match=r"x: got a tensor that requires grad.*x\.detach\(\)"):
        nc.BatchNorm1d(3)(x)
    with pytest.raises(TypeError, match=r"weight\.detach\(\)"):
        nc.functional.batch_norm(x.detach(), None, None, torch.nn.Parameter(torch.ones(3)), None, 1)


def test_bfloat16_tensors_are_named():
    with pytest.raises(TypeError, match="x: expected an array, got Tensor"):
        nc.BatchNorm1d(3)(torch.ones(4, 3, dtype=torch.bfloat16))
