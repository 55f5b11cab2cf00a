"""Statistics from elsewhere: parts of a batch, a data set (`update_bn`)."""

import numpy as np
import pytest
from arrays import SHAPES, assert_close, case, tolerance

import normcore as nc
from normcore.functional import (
    batch_norm,
    batch_norm_backward,
    batch_norm_backward_apply,
    batch_norm_backward_reduce,
    batch_norm_forward,
)


def snapshot(layer):
    return {name: values.tobytes() for name, values in layer.state_dict().items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_parts_of_a_batch_are_the_batch(backend, shape, axis, first, dtype):
    t = case(shape, axis, dtype)
    parts = [(t.x[:first], t.dy[:first]), (t.x[first:], t.dy[first:])]
    stats = nc.ChannelStats(axis)
    for x, _ in parts:
        other = nc.ChannelStats(axis)
        other.update(x)
        stats.merge(nc.ChannelStats.from_state(other.state(), axis))
    mean, var, rstd = stats.mean, stats.var(), 1 / np.sqrt(stats.var() + 1e-5)
    y = [batch_norm(x, mean, var, t.weight, t.bias, axis=axis) for x, _ in parts]
    assert_close(np.concatenate(y), t.y, tolerance(dtype))

    sums = [batch_norm_backward_reduce(dy, x, mean, axis=axis) for x, dy in parts]
    sum_dy, sum_dy_xmu = np.sum(sums, axis=0)
    bound = 1e-6 if dtype == np.float32 else 1e-14
    assert_close(sum_dy_xmu * rstd, t.dweight, bound, t.summands)
    assert_close(sum_dy, t.dbias, bound, np.sqrt(t.count))
    for (x, dy), wanted in zip(parts, np.split(t.dx, [first]), strict=True):
        saved = (mean, rstd, sum_dy, sum_dy_xmu, stats.count, t.weight)
        dx = batch_norm_backward_apply(dy, x, *saved, axis=axis)
        assert dx.dtype == dtype
        assert_close(dx, wanted, 2 * tolerance(dtype))
        out = x.copy()
        assert batch_norm_backward_apply(dy, out, *saved, axis=axis, out=out) is out
        np.testing.assert_array_equal(out, dx)


@pytest.mark.parametrize("out", [None, "x", "dy"])
@pytest.mark.parametrize(("shape", "axis"), [((7, 3), 1), ((6, 4, 5), 1), ((4, 3, 5, 2), -1)])
def test_masked_parts_are_the_masked_batch(backend, shape, axis, out):
    t = case(shape, axis, np.float32)
    x, mask = t.x.copy(), np.random.default_rng(0).random(np.delete(shape, axis)) < 0.6
    np.moveaxis(x, axis, -1)[~mask] = np.nan
    _, mean, rstd = batch_norm_forward(x, axis=axis, mask=mask)
    wanted = batch_norm_backward(t.dy, x, mean, rstd, t.weight, axis=axis, mask=mask)
    parts = [slice(0, 1), slice(1, 1), slice(1, None)]
    given = {"axis": axis}
    sums = [batch_norm_backward_reduce(t.dy[p], x[p], mean, mask=mask[p], **given) for p in parts]
    sum_dy, sum_dy_xmu = np.sum(sums, axis=0)
    assert_close(sum_dy, wanted.dbias, 1e-6, np.sqrt(t.count))
    saved = (mean, rstd, sum_dy, sum_dy_xmu, mask.sum(), t.weight)
    for p in parts:
        arrays = {"x": x[p].copy(), "dy": t.dy[p].copy(), None: None}
        dx = batch_norm_backward_apply(
            arrays["dy"], arrays["x"], *saved, mask=mask[p], out=arrays[out], **given
        )
        assert out is None or dx is arrays[out]
        assert_close(dx, wanted.dx[p], 2e-6)
        assert not np.moveaxis(dx, axis, -1)[~mask[p]].any()


def test_an_empty_part_adds_nothing(backend):
    x = np.zeros((0, 3, 4), np.float32)
    sums = batch_norm_backward_reduce(x, x, np.ones(3))
    assert [values.tolist() for values in sums] == [[0.0] * 3] * 2
    saved = (np.ones(3), np.ones(3), *sums, 8)
    assert batch_norm_backward_apply(x, x, *saved).shape == x.shape


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"count": 0}, ValueError, "count: expected a positive finite number, got 0"),
        ({"count": "8"}, TypeError, "count: expected a number, got '8'"),
        ({"sum_dy": np.ones(2)}, ValueError, r"sum_dy: expected shape \(3,\), got \(2,\)"),
        ({"sum_dy_xmu": None}, ValueError, "sum_dy_xmu: expected an array of shape"),
        ({"dy": np.ones((3, 3))}, ValueError, "dy: expected x's shape"),
        ({"mask": np.ones(3, bool)}, ValueError, r"mask: expected shape \(4,\)"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    x = np.ones((4, 3))
    given = {"mean": np.ones(3), "rstd": np.ones(3), "sum_dy": np.ones(3)}
    given = {"dy": x, "x": x, **given, "sum_dy_xmu": np.ones(3), "count": 4, **arguments}
    with pytest.raises(error, match=message):
        batch_norm_backward_apply(**given)


def test_update_bn_pools_all_values(backend):
    rng = np.random.default_rng(0)
    data = rng.normal(3, 2, (50, 4, 6)) * np.linspace(1, 2, 50)[:, None, None]
    first = nc.BatchNorm1d(4, dtype=np.float64, activation="relu").eval()
    second = nc.BatchNorm1d(4, dtype=np.float64)
    unused = nc.BatchNorm1d(2)
    second(data)
    first.weight[...] = 2
    batches = np.array_split(data, 7)
    before = snapshot(unused)

    def network(x):
        unused.eval()(x[:, :2].astype(np.float32))
        return second(first(x))

    nc.update_bn([first, second], batches, network)
    np.testing.assert_allclose(first.running_mean, data.mean((0, 2)), rtol=1e-13)
    np.testing.assert_allclose(first.running_var, data.var((0, 2), ddof=1), rtol=1e-13)
    hidden = np.concatenate([_batch_normalized(x) for x in batches])
    np.testing.assert_allclose(second.running_mean, hidden.mean((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(second.running_var, hidden.var((0, 2), ddof=1), rtol=1e-12)
    assert first.num_batches_tracked == second.num_batches_tracked == 7
    assert (first.training, second.training) == (False, True)
    assert snapshot(unused) == before
    first.train()(data)
    assert first.num_batches_tracked == 8


def _batch_normalized(x):
    z = (x - x.mean((0, 2), keepdims=True)) / np.sqrt(x.var((0, 2), keepdims=True) + 1e-5) * 2
    return np.maximum(z, 0)


def test_update_bn_of_one_batch_is_torchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    data = np.random.default_rng(0).normal(3, 2, (50, 4))
    theirs = torch.nn.Sequential(torch.nn.BatchNorm1d(4, dtype=torch.float64))
    torch.optim.swa_utils.update_bn([torch.tensor(data)], theirs)
    ours = nc.BatchNorm1d(4, dtype=np.float64)
    nc.update_bn([ours], [data], ours)
    for name, values in ours.state_dict().items():
        np.testing.assert_allclose(values, theirs[0].state_dict()[name], rtol=1e-12)


def test_update_bn_counts_what_masks_keep(backend):
    rng = np.random.default_rng(0)
    data, mask = rng.normal(3, 2, (20, 4, 6)), rng.random((20, 6)) < 0.5
    bn = nc.BatchRenorm1d(4, dtype=np.float64)
    parts = [slice(0, 8), slice(8, 20)]
    nc.update_bn([bn], parts, lambda part: bn(data[part], mask=mask[part]))
    rows = data.transpose(0, 2, 1)[mask]
    np.testing.assert_allclose(bn.running_mean, rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(bn.running_var, rows.var(0, ddof=1), rtol=1e-13)
    assert bn.num_batches_tracked == 2


def test_update_bn_keeps_bad_channels_out_if_asked(backend):
    data = np.random.default_rng(0).normal(3, 2, (20, 4))
    data[7, 2] = np.nan
    skips, poisoned = (nc.BatchNorm1d(4, skip_nonfinite=skip) for skip in (True, False))
    nc.update_bn([skips, poisoned], np.split(data, 2), lambda x: (skips(x), poisoned(x)))
    assert np.isnan(poisoned.running_mean).tolist() == [False, False, True, False]
    assert (skips.running_mean[2], skips.running_var[2]) == (0, 1)
    for name in ("running_mean", "running_var"):
        clean = np.delete(getattr(poisoned, name), 2)
        np.testing.assert_array_equal(np.delete(getattr(skips, name), 2), clean)


def test_update_bn_leaves_all_as_it_was_after_an_error():
    data = np.random.default_rng(0).normal(3, 2, (20, 4)).astype(np.float32)
    bn, other = nc.BatchNorm1d(4).eval(), nc.BatchNorm1d(4)
    bn.train()(data)
    bn.eval()
    before = snapshot(bn)

    def failing(x):
        bn(x)
        raise KeyError("data set")

    with pytest.raises(KeyError, match="data set"):
        nc.update_bn([bn, other], [data], failing)
    with pytest.raises(ValueError, match=r"no value of any batch reached BatchNorm1d\(4"):
        nc.update_bn([bn, other], [data], bn)
    with pytest.raises(ValueError, match="expected running statistics to update, got none"):
        nc.update_bn([bn, nc.BatchNorm1d(4, track_running_stats=False)], [data], bn)
    with pytest.raises(ValueError, match="expected running statistics to update, got frozen ones"):
        nc.update_bn([bn, nc.BatchNorm1d(4).freeze()], [data], bn)
    with pytest.raises(TypeError, match="expected batch norm layers, got str"):
        nc.update_bn(["bn"], [data], bn)
    assert snapshot(bn) == before
    assert not bn.training
    bn.train()(data)
    assert bn.num_batches_tracked == 2
