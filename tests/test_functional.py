"""normcore.functional against the oracle: values, layouts, out, errors."""

import numpy as np
import pytest
from arrays import SHAPES, assert_close, case, layouts, tolerance

import normcore as nc
from normcore.functional import batch_norm, batch_norm_backward, batch_norm_forward

DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_training_matches_the_oracle(backend, shape, axis, dtype):
    t = case(shape, axis, dtype)
    running_mean, running_var = np.full(t.mean.size, 3.0), np.full(t.mean.size, 2.0)
    y, mean, rstd = batch_norm_forward(
        t.x, t.weight, t.bias, running_mean, running_var, 0.3, axis=axis
    )
    assert y.dtype == dtype
    assert mean.dtype == rstd.dtype == np.float64
    assert_close(y, t.y, tolerance(dtype))
    np.testing.assert_allclose(mean, t.mean, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(t.var + 1e-5), rtol=1e-7)
    np.testing.assert_allclose(running_mean, 0.7 * 3 + 0.3 * t.mean, rtol=1e-7)
    unbiased = t.var * t.count / (t.count - 1)
    np.testing.assert_allclose(running_var, 0.7 * 2 + 0.3 * unbiased, rtol=1e-7)

    dx, dweight, dbias = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight, axis=axis)
    assert dx.dtype == dweight.dtype == dbias.dtype == dtype
    assert_close(dx, t.dx, tolerance(dtype))
    bound = 1e-6 if dtype == np.float32 else 1e-14
    assert_close(dweight, t.dweight, bound, t.summands)
    assert_close(dbias, t.dbias, bound, np.sqrt(t.count))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_evaluation_matches_the_formula(backend, shape, axis, dtype):
    t = case(shape, axis, dtype)
    rng = np.random.default_rng(1)
    mean = rng.standard_normal(t.mean.size).astype(dtype)
    var = rng.uniform(0.5, 2, t.mean.size).astype(dtype)
    spread = [1] * t.x.ndim
    spread[axis] = -1
    m, v, w, b = (a.astype(np.float64).reshape(spread) for a in (mean, var, t.weight, t.bias))
    rstd = 1 / np.sqrt(v + 1e-3)
    y = batch_norm(t.x, mean, var, t.weight, t.bias, eps=1e-3, axis=axis)
    assert_close(y, (t.x - m) * rstd * w + b, tolerance(dtype))
    assert_close(
        batch_norm(t.x, mean, var, eps=1e-3, axis=axis), (t.x - m) * rstd, tolerance(dtype)
    )
    dx, dweight, dbias = batch_norm_backward(
        t.dy, t.x, mean, rstd.ravel(), t.weight, training=False, axis=axis
    )
    axes = tuple(i for i in range(t.x.ndim) if i != axis % t.x.ndim)
    assert_close(dx, t.dy * rstd * w, tolerance(dtype))
    bound = 2e-6 if dtype == np.float32 else 1e-14
    assert_close(dweight, np.sum(t.dy * (t.x - m) * rstd, axes), bound, t.summands + t.count)
    assert_close(dbias, np.sum(t.dy, axes, dtype=np.float64), bound, np.sqrt(t.count))


@pytest.mark.parametrize("offset", [1e3, 1e4, 1e6])
@pytest.mark.parametrize(("shape", "axis"), [((64, 33), 1), ((8, 5, 9, 11), 1), ((8, 9, 5), -1)])
def test_an_offset_costs_no_digits(backend, shape, axis, offset):
    t = case(shape, axis, np.float32, offset)
    y, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias, axis=axis)
    assert_close(y, t.y, 1e-6)
    dx, dweight, _ = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight, axis=axis)
    assert_close(dx, t.dx, 1e-6)
    assert_close(dweight, t.dweight, 1e-6, t.summands)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5), (4, 3, 5, 6), (7, 1, 2, 2)])
def test_every_layout_gives_the_same(backend, shape, dtype):
    t = case(shape, 1, dtype)
    mean, rstd = t.mean, 1 / np.sqrt(t.var + 1e-5)
    for (name, x), (other, dy) in zip(layouts(t.x), [*layouts(t.dy)][::-1], strict=True):
        before = np.array(x)
        y = batch_norm(x, None, None, t.weight, t.bias, True)
        assert_close(y, t.y, tolerance(dtype))
        assert_close(batch_norm(x, t.mean, t.var, t.weight, t.bias), t.y, tolerance(dtype))
        dx = batch_norm_backward(dy, x, mean, rstd, t.weight).dx
        assert_close(dx, t.dx, tolerance(dtype))
        assert y.dtype == dx.dtype == dtype, (name, other)
        assert y.dtype.isnative
        np.testing.assert_array_equal(np.array(x), before)


def test_the_output_lies_in_memory_like_the_input(backend):
    channels_last = np.ones((2, 5, 5, 3), np.float32).transpose(0, 3, 1, 2)
    channels_last.flags.writeable = False
    y = batch_norm(channels_last, np.zeros(3), np.ones(3))
    assert y.strides == channels_last.strides
    dx = batch_norm_backward(np.ones_like(y, order="C"), channels_last, np.zeros(3), np.ones(3)).dx
    assert dx.strides == channels_last.strides


@pytest.mark.parametrize("layout", range(6))
def test_out_in_any_layout(backend, layout):
    t = case((4, 3, 5, 6), 1, np.float32)
    name, out = [*layouts(np.zeros_like(t.x))][layout]
    expected = batch_norm(t.x, t.mean, t.var, t.weight, t.bias)
    assert batch_norm(t.x, t.mean, t.var, t.weight, t.bias, out=out) is out
    np.testing.assert_array_equal(out, expected, name)
    expected, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias)
    assert batch_norm_forward(t.x, t.weight, t.bias, out=out)[0] is out
    np.testing.assert_array_equal(out, expected, name)
    expected = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight).dx
    assert batch_norm_backward(t.dy, t.x, mean, rstd, t.weight, out=out).dx is out
    np.testing.assert_array_equal(out, expected, name)


@pytest.mark.parametrize("layout", range(6))
def test_out_may_be_an_input(backend, layout):
    t = case((4, 3, 5, 6), 1, np.float32)
    expected, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias)
    gradient = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight)
    _, x = [*layouts(t.x)][layout]
    assert batch_norm_forward(x, t.weight, t.bias, out=x)[0] is x
    assert_close(x, expected, 1e-6)
    x[...] = t.x
    dx, dweight, _ = batch_norm_backward(t.dy, x, mean, rstd, t.weight, out=x)
    assert dx is x
    assert_close(x, gradient.dx, 1e-6)
    assert_close(dweight, gradient.dweight, 1e-6, t.summands)
    x[...] = t.x
    _, dy = [*layouts(t.dy)][layout]
    assert batch_norm_backward(dy, x, mean, rstd, t.weight, out=dy).dx is dy
    assert_close(dy, gradient.dx, 1e-6)
    same_memory = x[:]
    batch_norm(x, t.mean, t.var, out=same_memory)
    assert_close(x, batch_norm(t.x, t.mean, t.var), 1e-6)


def test_parameters_of_any_kind(backend):
    t = case((6, 4, 5), 1, np.float32)
    y, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias)
    strided = np.zeros((4, 2))
    strided[:, 1] = t.weight
    for weight in (
        t.weight.astype(np.float64),
        strided[:, 1],
        t.weight.astype(">f4"),
        t.weight.tolist(),
    ):
        assert_close(batch_norm_forward(t.x, weight, t.bias)[0], y, 1e-6)
        assert_close(
            batch_norm_backward(t.dy, t.x, mean, rstd, weight).dx,
            t.dx,
            1e-6,
        )
    dtypes = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight.astype(np.float64))
    assert (dtypes.dx.dtype, dtypes.dweight.dtype) == (np.float32, np.float64)
    bare = batch_norm_forward(t.x)[0]
    assert_close(bare * t.weight[:, None] + t.bias[:, None], y, 3e-6)
    assert_close(batch_norm_forward(t.x, None, t.bias)[0], bare + t.bias[:, None], 3e-6)
    assert_close(batch_norm_forward(t.x, t.weight)[0], bare * t.weight[:, None], 3e-6)


def test_running_buffers_of_any_layout(backend):
    t = case((6, 4, 5), 1, np.float32)
    plain = [np.zeros(4), np.ones(4)]
    strided = [np.zeros((4, 2))[:, 1], np.ones(4)[::-1]]
    swapped = [np.zeros(4, ">f8"), np.ones(4, ">f8")]
    for buffers in (plain, strided, swapped):
        batch_norm(t.x, *buffers, training=True)
        np.testing.assert_allclose(buffers, plain, rtol=1e-14)
    assert plain[0].any()


def test_subclasses_come_back_as_plain_arrays(backend):
    values = np.arange(6.0).reshape(3, 2)
    expected = batch_norm(values, None, None, training=True)
    for x in (np.ma.masked_array(values, values > 3), values.view(type("Mine", (np.ndarray,), {}))):
        y = batch_norm(x, None, None, training=True)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, expected)


def test_a_constant_channel_gives_exactly_bias(backend):
    bias = np.array([0.1, -7.3, 1e5], np.float32)
    for value in (0.0, 1 / 3, 1e6, 1.1e-30):
        x = np.full((4, 3, 10), value, np.float32)
        y = batch_norm(x, None, None, None, bias, True)
        np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None], y.shape))


def test_nan_and_infinity_stay_in_their_channel(backend):
    for bad in (np.nan, np.inf):
        t = case((8, 4, 6), 1, np.float32)
        clean = batch_norm_forward(t.x, t.weight, t.bias)[0]
        t.x[3, 2, 1] = bad
        y, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias)
        assert np.isnan(y[:, 2]).all()
        np.testing.assert_array_equal(np.delete(y, 2, 1), np.delete(clean, 2, 1))
        dx = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight).dx
        assert np.isfinite(np.delete(dx, 2, 1)).all()
        assert np.isnan(dx[:, 2]).all()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0, 4), (2, 0, 3)])
def test_an_empty_batch_touches_nothing(backend, shape):
    x = np.zeros(shape, np.float32)
    c = shape[1]
    running_mean, running_var = np.full(c, 7.0), np.full(c, 8.0)
    for training in (True, False):
        y = batch_norm(x, running_mean, running_var, training=training)
        assert y.shape == shape
        assert y.dtype == np.float32
    assert (running_mean == 7).all()
    assert (running_var == 8).all()
    dx, dweight, dbias = batch_norm_backward(x, x, running_mean, running_var)
    assert dx.shape == shape
    assert dweight.tolist() == dbias.tolist() == [0.0] * c


def test_one_value_per_channel(backend):
    x = np.ones((1, 3, 1, 1), np.float32)
    running = [np.zeros(3), np.ones(3)]
    message = r"^Expected more than 1 value per channel when training, got input size \(1, 3, 1, 1"
    with pytest.raises(ValueError, match=message):
        batch_norm(x, *running, training=True)
    np.testing.assert_array_equal(running, [np.zeros(3), np.ones(3)])
    np.testing.assert_allclose(batch_norm(x, *running), 1, atol=1e-5)


X = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
OVERLAP = np.zeros(61, np.float32)
READ_ONLY = np.zeros_like(X)
READ_ONLY.flags.writeable = False
WRONG = [
    ({"x": X.astype(complex)}, TypeError, "x: expected dtype .* or bfloat16, got complex128"),
    ({"x": X.astype(int)}, TypeError, "x: expected dtype float32, float64, float16 .*, got int"),
    ({"x": [[1.0], [1.0, 2.0]]}, TypeError, "x: expected an array, got list"),
    ({"x": "text"}, TypeError, "x: expected dtype"),
    ({"x": X[0, 0]}, ValueError, r"x: expected at least 2 dimensions, got shape \(5,\)"),
    ({"axis": 3}, ValueError, r"axis: expected an axis of x of shape \(4, 3, 5\), got 3"),
    ({"axis": 1.0}, TypeError, r"axis: expected an int, got 1.0"),
    ({"weight": np.ones(4)}, ValueError, r"weight: expected shape \(3,\), got \(4,\)"),
    ({"weight": np.ones((3, 1))}, ValueError, r"weight: expected shape \(3,\), got \(3, 1\)"),
    ({"bias": np.ones(3, int)}, TypeError, "bias: expected dtype float32 or float64, got int"),
    ({"running_mean": np.ones(2)}, ValueError, r"running_mean: expected shape \(3,\), got \(2,\)"),
    ({"running_var": None}, ValueError, "running_var: expected"),
    ({"running_mean": None}, ValueError, "running_mean: expected"),
    ({"eps": 0}, ValueError, "eps: expected a positive finite number, got 0"),
    ({"eps": -1e-5}, ValueError, "eps: expected a positive finite number, got -1e-05"),
    ({"eps": np.nan}, ValueError, "eps: expected a positive finite number, got nan"),
    ({"eps": "1e-5"}, TypeError, "eps: expected a number, got '1e-5'"),
    ({"out": X[:, :2]}, ValueError, r"out: expected x's shape \(4, 3, 5\), got \(4, 2, 5\)"),
    ({"out": X.astype(float)}, TypeError, "out: expected dtype float32 .* got float64"),
    ({"out": X.astype(">f4")}, TypeError, "out: expected dtype float32 .* got >f4"),
    ({"out": X.tolist()}, TypeError, "out: expected a NumPy array, got list"),
    ({"out": READ_ONLY}, ValueError, "out: expected a writeable array, got a read-only one"),
    (
        {"x": OVERLAP[1:].reshape(4, 3, 5), "out": OVERLAP[:-1].reshape(4, 3, 5)},
        ValueError,
        "out: .* overlaps an input",
    ),
    (
        {"weight": OVERLAP[:3], "out": OVERLAP[:-1].reshape(4, 3, 5)},
        ValueError,
        "out: .* overlaps an input",
    ),
]
WRONG_IN_TRAINING = [
    ({"momentum": 1.5}, ValueError, "momentum: expected a number from 0 to 1, got 1.5"),
    ({"momentum": None}, TypeError, "momentum: expected a number, got None"),
    ({"running_mean": [0.0] * 3}, TypeError, "running_mean: expected a NumPy array to update"),
    ({"running_var": READ_ONLY[0, :, 0]}, ValueError, "running_var: expected a writeable array"),
]


def assert_refused(arguments, training, error, message):
    given = {"x": X, "running_mean": np.zeros(3), "running_var": np.ones(3), **arguments}
    arrays = {key: value for key, value in given.items() if isinstance(value, np.ndarray)}
    before = {key: value.copy() for key, value in arrays.items()}
    with pytest.raises(error, match=message):
        batch_norm(**given, training=training)
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, before[key], key)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("arguments", "error", "message"), WRONG)
def test_wrong_arguments_of_the_forward(arguments, error, message, training):
    assert_refused(arguments, training, error, message)


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG_IN_TRAINING)
def test_wrong_arguments_of_training(arguments, error, message):
    assert_refused(arguments, True, error, message)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dy": X[:3]}, ValueError, r"dy: expected x's shape \(4, 3, 5\), got \(3, 3, 5\)"),
        ({"dy": X.astype(float)}, TypeError, "dy: expected x's dtype float32, got float64"),
        ({"mean": np.zeros(4)}, ValueError, r"mean: expected shape \(3,\), got \(4,\)"),
        ({"rstd": None}, ValueError, r"rstd: expected an array of shape \(3,\), got None"),
        ({"weight": np.ones(5)}, ValueError, r"weight: expected shape \(3,\), got \(5,\)"),
        ({"out": READ_ONLY}, ValueError, "out: expected a writeable array"),
        (
            {"dy": OVERLAP[1:].reshape(4, 3, 5), "out": OVERLAP[:-1].reshape(4, 3, 5)},
            ValueError,
            "out: .* overlaps an input",
        ),
    ],
)
def test_wrong_arguments_of_the_backward(arguments, error, message):
    given = {"dy": X, "x": X, "mean": np.zeros(3), "rstd": np.ones(3), **arguments}
    with pytest.raises(error, match=message):
        batch_norm_backward(**given)


def test_overlap_is_exact_and_not_only_of_address_ranges():
    both = np.zeros((4, 6, 5), np.float32)
    both[:, ::2] = X
    y = batch_norm(both[:, ::2], None, None, training=True, out=both[:, 1::2])
    assert_close(y, batch_norm(X, None, None, training=True), 1e-6)
    np.testing.assert_array_equal(both[:, ::2], X)


def test_the_functions_are_reachable_as_attributes():
    assert nc.functional.batch_norm is batch_norm
    assert set(nc.functional.__all__) <= set(dir(nc.functional))
