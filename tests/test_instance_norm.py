"""Instance norm: running statistics, evaluation, single samples, wrong arguments, PyTorch."""

import copy
import pickle

import numpy as np
import pytest
from arrays import assert_close, layouts

import normcore as nc
from normcore.functional import (
    batch_norm,
    group_norm_forward,
    instance_norm,
    instance_norm_activation_backward,
    instance_norm_backward,
    instance_norm_forward,
)

X = np.random.default_rng(0).normal(2, 3, (4, 3, 5))
KEYS = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def tracked(**options):
    norm = nc.InstanceNorm1d(3, affine=True, track_running_stats=True, dtype=float, **options)
    norm.weight[...] = [0.5, 1, 2]
    norm.bias[...] = [1, 2, 3]
    return norm


def snapshot(norm):
    return pickle.dumps(norm.state_dict())


def test_running_statistics_are_means_over_the_samples(backend):
    for _, x in layouts(X):
        running_mean, running_var = np.full(3, 3.0), np.full(3, 2.0)
        y = instance_norm(x, running_mean, running_var, momentum=0.3)
        np.testing.assert_allclose(running_mean, 0.7 * 3 + 0.3 * X.mean(-1).mean(0), rtol=1e-12)
        unbiased = X.var(-1, ddof=1).mean(0)
        np.testing.assert_allclose(running_var, 0.7 * 2 + 0.3 * unbiased, rtol=1e-12)
        assert_close(y, instance_norm_forward(X)[0], 4e-15)


def test_a_mask_leaves_out_short_samples(backend):
    lengths = np.array([5, 3, 1, 0])
    mask = np.arange(5) < lengths[:, None]
    running_mean, running_var = np.zeros(3), np.zeros(3)
    instance_norm(X, running_mean, running_var, momentum=1.0, mask=mask)
    means = [X[i, :, :n].mean(-1) for i, n in enumerate(lengths[:2])]
    variances = [X[i, :, :n].var(-1, ddof=1) for i, n in enumerate(lengths[:2])]
    np.testing.assert_allclose(running_mean, np.mean(means, 0), rtol=1e-12)
    np.testing.assert_allclose(running_var, np.mean(variances, 0), rtol=1e-12)
    # Where no sample has two positions, there is nothing to learn.
    norm = tracked()
    before = snapshot(norm)
    norm(X, mask=np.arange(5) < 1)
    assert snapshot(norm) == before


def test_evaluation_is_that_of_batch_norm(backend):
    norm = tracked()
    norm(X)
    bn = nc.BatchNorm1d(3, dtype=float)
    bn.load_state_dict(norm.state_dict())
    norm.eval()
    bn.eval()
    np.testing.assert_array_equal(norm(X), bn(X))
    for a, b in zip(norm.backward(X, X), bn.backward(X, X), strict=True):
        np.testing.assert_array_equal(a, b)
    running = (norm.running_mean, norm.running_var)
    expected = batch_norm(X, *running, norm.weight, norm.bias, residual=X, activation="relu")
    y = instance_norm(X, *running, norm.weight, norm.bias, False, residual=X, activation="relu")
    np.testing.assert_array_equal(y, expected)


def test_freezing_survives_train(backend):
    norm = tracked()
    norm(X)
    evaluated = norm.eval()(X)
    before = snapshot(norm)
    norm.freeze(affine=True).train()
    np.testing.assert_array_equal(norm(X), evaluated)
    dx, dweight, dbias = norm.backward(X)
    assert dweight is dbias is None
    rstd = 1 / np.sqrt(norm.running_var + 1e-5)
    np.testing.assert_allclose(dx, X * (norm.weight * rstd)[:, None], rtol=1e-12)
    assert snapshot(norm) == before
    norm.unfreeze()(X)
    assert norm.num_batches_tracked == 2


def test_the_count_makes_a_plain_average(backend):
    norm = tracked(momentum=None)
    batches = np.random.default_rng(1).normal(3, 2, (5, 4, 3, 6))
    for batch in batches:
        norm(batch)
    assert norm.num_batches_tracked == 5
    np.testing.assert_allclose(norm.running_mean, batches.mean((0, 1, 3)), rtol=1e-12)
    np.testing.assert_allclose(norm.running_var, batches.var(-1, ddof=1).mean((0, 1)), rtol=1e-12)


def test_skip_nonfinite(backend):
    x = X.copy()
    x[1, 2, 0] = np.nan
    norm, poisoned = tracked(skip_nonfinite=True), tracked()
    np.testing.assert_array_equal(norm(x), poisoned(x))
    np.testing.assert_array_equal(np.isnan(poisoned.running_mean), [False, False, True])
    assert norm.running_mean[2] == 0
    assert norm.running_var[2] == 1
    np.testing.assert_array_equal(norm.running_mean[:2], poisoned.running_mean[:2])


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_sample_without_the_samples_axis(backend, axis, activation):
    x = X if axis == 1 else np.ascontiguousarray(X.swapaxes(1, 2))
    mask = np.array([True, True, False, True, True])
    batch, single = (tracked(axis=axis, activation=activation) for _ in range(2))
    given, one = {"residual": x[:1], "mask": mask[None]}, {"residual": x[0], "mask": mask}
    y = batch(x[:1], **given)
    np.testing.assert_array_equal(single(x[0], **one), y[0])
    assert snapshot(single) == snapshot(batch)
    for training in (True, False):
        batch.train(training)
        single.train(training)
        batch(x[:1], **given)
        single(x[0], **one)
        theirs = batch.backward_residual(x[:1], x[:1], **given)
        ours = single.backward_residual(x[0].tolist(), x[0], **one)
        for a, b, name in zip(ours, theirs, theirs._fields, strict=True):
            np.testing.assert_array_equal(a, b[0] if name in ("dx", "dresidual") else b)
        ours = single.backward(x[0], x[0], **one)
        np.testing.assert_array_equal(ours.dx, theirs.dx[0])
    out = np.empty_like(x[0])
    assert single(x[0], out=out, **one) is out
    assert single.train()(x[0], out=out, **one) is out
    assert single.backward(x[0], out=out).dx is out
    own = x[0].copy()
    assert single(own, out=own, **one) is own
    with pytest.raises(RuntimeError, match="x was overwritten"):
        single.backward(own)


def test_channels_first_is_channels_last(backend):
    # As of group norm: the blocks differ, and so do the last digits of the float64 sums.
    x = np.random.default_rng(0).normal(3, 2, (4, 32, 9, 11)).astype(np.float32)
    first = instance_norm(x)
    last = instance_norm(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), axis=-1)
    np.testing.assert_array_max_ulp(first, last.transpose(0, 3, 1, 2), 2)


def test_is_group_norm_with_a_channel_in_each_group(backend):
    for a, b in zip(instance_norm_forward(X), group_norm_forward(X, 3), strict=True):
        np.testing.assert_array_equal(a, b)


def test_update_bn_is_for_batch_norm():
    with pytest.raises(TypeError, match="expected batch norm layers, got InstanceNorm1d"):
        nc.update_bn([tracked()], [X], lambda x: x)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
def test_an_empty_batch_is_not_counted(backend, shape):
    norm = tracked()
    before = snapshot(norm)
    assert norm(np.zeros(shape)).shape == shape
    assert snapshot(norm) == before
    assert not norm.backward(np.zeros(shape)).dweight.any()


def test_state_goes_through_a_dict_and_a_pickle():
    norm = tracked(momentum=None)
    norm(X)
    assert list(norm.state_dict()) == KEYS
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert snapshot(twin) == snapshot(norm)
        twin(X)
        assert twin.num_batches_tracked == 2
    assert norm.num_batches_tracked == 1
    norm.reset_running_stats()
    assert not norm.running_mean.any()
    assert norm.weight[0] == 0.5
    assert list(nc.InstanceNorm3d(3).state_dict()) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X.astype(int)}, TypeError, "x: expected dtype float32, float64, float16 or bfl"),
        ({"x": X[0, 0]}, ValueError, r"x: expected at least 2 dimensions, got shape \(5,\)"),
        ({"x": X[..., :1]}, ValueError, r"^Expected more than 1 spatial element when training, "),
        ({"x": X[..., 0]}, ValueError, r"^Expected more than 1 spatial .* input size \(4, 3\)"),
        ({"axis": 0}, ValueError, "axis: expected a channel axis behind the samples' axis 0"),
        ({"momentum": 1.5}, ValueError, "momentum: expected a number from 0 to 1, got 1.5"),
        ({"running_var": None}, ValueError, "running_var: expected both running statistics or"),
        ({"running_mean": None}, ValueError, "running_mean: expected both running statistics"),
        ({"running_mean": [0.0] * 3}, TypeError, "running_mean: expected a NumPy array to upd"),
        ({"running_mean": np.zeros(4)}, ValueError, r"running_mean: expected shape \(3,\)"),
        ({"weight": np.ones(5)}, ValueError, r"weight: expected shape \(3,\), got \(5,\)"),
        ({"activation": "tanh"}, ValueError, "activation: expected one of"),
        ({"eps": 0}, ValueError, "eps: expected a positive finite number, got 0"),
        ({"mask": np.ones((4, 3), bool)}, ValueError, r"mask: expected shape \(4, 5\)"),
    ],
)
def test_wrong_arguments_change_nothing(arguments, error, message):
    given = {"x": X, "running_mean": np.zeros(3), "running_var": np.ones(3), **arguments}
    arrays = {key: value for key, value in given.items() if isinstance(value, np.ndarray)}
    before = {key: value.copy() for key, value in arrays.items()}
    with pytest.raises(error, match=message):
        instance_norm(**given)
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, before[key], key)


def test_out_must_not_overlap_the_running_statistics():
    memory = np.zeros(X.size + 3)
    out, running_mean = memory[: X.size].reshape(X.shape), memory[X.size - 1 : X.size + 2]
    with pytest.raises(ValueError, match=r"out: .* overlaps an input"):
        instance_norm(X, running_mean, np.ones(3), out=out)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dy": X[1:]}, ValueError, "dy: expected x's shape"),
        ({"mean": np.zeros(3)}, ValueError, r"mean: expected shape \(4, 3\), got \(3,\)"),
        ({"rstd": np.ones((3, 4))}, ValueError, r"rstd: expected shape \(4, 3\), got \(3, 4\)"),
        ({"weight": np.ones(4)}, ValueError, r"weight: expected shape \(3,\), got \(4,\)"),
    ],
)
def test_wrong_arguments_of_the_backward(arguments, error, message):
    given = {"dy": X, "x": X, "mean": np.zeros((4, 3)), "rstd": np.ones((4, 3)), **arguments}
    with pytest.raises(error, match=message):
        instance_norm_backward(**given)
    with pytest.raises(error, match=message):
        instance_norm_activation_backward(**given, activation="relu")


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (nc.InstanceNorm1d, (2, 4, 3, 5), r"x: InstanceNorm1d expects a 2-D or 3-D array, got sh"),
        (nc.InstanceNorm2d, (3, 5), r"x: InstanceNorm2d expects a 3-D or 4-D array"),
        (nc.InstanceNorm3d, (3, 5, 5), r"x: InstanceNorm3d expects a 4-D or 5-D array"),
        (nc.InstanceNorm1d, (2, 4, 5), r"x: expected 3 channels along axis 1, got shape \(2, 4"),
        (nc.InstanceNorm1d, (2, 3, 1), "Expected more than 1 spatial element when training"),
    ],
)
def test_a_wrong_input_changes_nothing(kind, shape, message):
    norm = kind(3, track_running_stats=True)
    before = snapshot(norm)
    with pytest.raises(ValueError, match=message):
        norm(np.ones(shape, np.float32))
    assert snapshot(norm) == before


CASES = [
    ("InstanceNorm1d", (4, 6, 5)),
    ("InstanceNorm1d", (6, 5)),
    ("InstanceNorm2d", (4, 6, 5, 3)),
    ("InstanceNorm3d", (2, 6, 3, 4, 5)),
    ("InstanceNorm3d", (6, 3, 4, 5)),
]
OPTIONS = [
    {},
    {"affine": True, "eps": 1e-2},
    {"affine": True, "track_running_stats": True},
    {"track_running_stats": True, "momentum": 0.3},
]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 5e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_pytorch_agrees(backend, name, shape, options, dtype, bound):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(6, dtype=getattr(torch, dtype), **options)
    if theirs.affine:
        torch.nn.init.uniform_(theirs.weight, 0.5, 1.5)
        torch.nn.init.normal_(theirs.bias)
    ours = getattr(nc, name)(6, dtype=dtype, **options)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    # PyTorch 2.13 shows a new option behind affine.
    shown = repr(theirs).replace(f", bias={theirs.affine}", "")
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
        gradients = ours.backward(dy, x)
        np.testing.assert_allclose(gradients.dx, tensor.grad, rtol=bound, atol=bound)
        if theirs.affine:
            np.testing.assert_allclose(gradients.dweight, theirs.weight.grad, bound, 30 * bound)
            np.testing.assert_allclose(gradients.dbias, theirs.bias.grad, bound, 30 * bound)
        state = theirs.state_dict()
        assert list(state) == list(ours.state_dict())
        # PyTorch's instance norms do not count.
        for key in {"running_mean", "running_var"} & set(state):
            np.testing.assert_allclose(getattr(ours, key), state[key], rtol=bound, atol=bound)
