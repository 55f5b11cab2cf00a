"""What batch normalization must satisfy for any array, searched by hypothesis."""

import numpy as np
import pytest
from arrays import assert_close, case, tolerance
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import normcore as nc
from normcore.backend import SERIAL_BELOW
from normcore.functional import batch_norm, batch_norm_backward, batch_norm_forward

# `backend` is chosen once per test and not per example, which is what is meant. No deadline:
# Numba may compile in the first example.
EXAMPLES = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
DTYPES = st.sampled_from([np.float32, np.float64])
SHAPES = st.one_of(
    st.tuples(st.integers(2, 70), st.integers(1, 40)),
    st.tuples(st.integers(2, 6), st.integers(1, 9), st.integers(1, 40)),
    st.tuples(st.integers(2, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
)
CASES = st.builds(
    case, SHAPES, st.just(1), DTYPES, st.sampled_from([0.0, 3.0, -1e3]), st.integers(0, 99)
)


def wide(values, x):
    return values.reshape(-1, *[1] * (x.ndim - 2))


@EXAMPLES
@given(t=CASES, power=st.integers(-8, 8), shift=st.integers(-64, 64))
def test_shift_and_scale_of_x_do_not_matter(backend, t, power, shift):
    # Multiples of 1/8, whose shifts and scales by powers of two are exact: the arrays then hold
    # the same deviations to the bit, and only the kernels' own rounding can differ. eps scales
    # with the variance.
    x = np.round(t.x * 8) / 8
    moved = ((x + x.dtype.type(shift)) * x.dtype.type(2.0**power)).astype(x.dtype)
    y = batch_norm(x, None, None, t.weight, t.bias, True)
    moved_y = batch_norm(moved, None, None, t.weight, t.bias, True, eps=1e-5 * 4.0**power)
    assert_close(moved_y, y, 2 * tolerance(x.dtype))


@EXAMPLES
@given(t=CASES)
def test_dx_is_orthogonal_to_what_normalization_removes(backend, t):
    eps = 1e-5
    _, mean, rstd = batch_norm_forward(t.x, eps=eps)
    dx, dweight, _ = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight)
    x, dx = t.x.astype(np.float64), dx.astype(np.float64)
    x_hat = (x - wide(mean, x)) * wide(rstd, x)
    axes = (0, *range(2, x.ndim))
    # Each element of dx is off by a few units in the last place of the terms that it is made of.
    terms = rstd * t.weight * np.maximum(1, np.abs(t.dy).max(axes)) * np.abs(x_hat).max(axes)
    bound = 8 * t.count * np.finfo(t.x.dtype).eps * (terms + rstd)
    assert np.all(np.abs(dx.sum(axes)) <= bound)
    # mean(x_hat^2) = 1 - eps * rstd^2, so that much of sum(dy * x_hat) is left.
    left = t.weight * rstd * dweight * eps * rstd**2
    assert np.all(np.abs((dx * x_hat).sum(axes) - left) <= bound * np.abs(x_hat).max(axes))


@EXAMPLES
@given(t=CASES, seed=st.integers(0, 99))
def test_the_order_of_the_batch_does_not_matter(backend, t, seed):
    order = np.random.default_rng(seed).permutation(len(t.x))
    y, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias)
    permuted, *statistics = batch_norm_forward(t.x[order], t.weight, t.bias)
    assert_close(permuted, y[order], 2 * tolerance(t.x.dtype))
    np.testing.assert_allclose(statistics, [mean, rstd], rtol=1e-10, atol=1e-10)
    dx = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight).dx
    permuted = batch_norm_backward(t.dy[order], t.x[order], *statistics, t.weight).dx
    assert_close(permuted, dx[order], 2 * tolerance(t.x.dtype))


@EXAMPLES
@given(t=CASES)
def test_channels_last_gives_the_same(backend, t):
    def last(a):
        return np.ascontiguousarray(np.moveaxis(a, 1, -1))

    y, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias)
    dx, dweight, dbias = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight)
    found, mean, rstd = batch_norm_forward(last(t.x), t.weight, t.bias, axis=-1)
    assert_close(found, last(y), 2 * tolerance(t.x.dtype))
    gradients = batch_norm_backward(last(t.dy), last(t.x), mean, rstd, t.weight, axis=-1)
    assert_close(gradients.dx, last(dx), 2 * tolerance(t.x.dtype))
    bound = 1e-6 if t.x.dtype == np.float32 else 1e-13
    assert_close(gradients.dweight, dweight, bound, t.summands)
    assert_close(gradients.dbias, dbias, bound, np.sqrt(t.count))


@EXAMPLES
@given(t=CASES)
def test_evaluation_after_training_on_one_batch_agrees(backend, t):
    # momentum 1: the running statistics are those of the batch, with the unbiased variance.
    bn = nc.BatchNorm1d if t.x.ndim < 4 else nc.BatchNorm2d
    bn = bn(t.weight.size, momentum=1.0, dtype=np.float64, eps=1e-3)
    trained = bn(t.x)
    bn.running_var *= (t.count - 1) / t.count
    assert_close(bn.eval()(t.x), trained, 2 * tolerance(t.x.dtype))


@EXAMPLES
@given(t=CASES)
def test_inputs_are_not_written_and_in_place_is_the_same(backend, t):
    given = (t.x, t.dy, t.weight, t.bias)
    before = [a.copy() for a in given]
    for a in given:
        a.flags.writeable = False
    y, mean, rstd = batch_norm_forward(t.x, t.weight, t.bias)
    evaluated = batch_norm(t.x, mean, rstd, t.weight, t.bias)
    dx = batch_norm_backward(t.dy, t.x, mean, rstd, t.weight).dx
    for a, b in zip(given, before, strict=True):
        np.testing.assert_array_equal(a, b)
    x = t.x.copy()
    np.testing.assert_array_equal(batch_norm_forward(x, t.weight, t.bias, out=x)[0], y)
    x = t.x.copy()
    np.testing.assert_array_equal(batch_norm(x, mean, rstd, t.weight, t.bias, out=x), evaluated)
    dy = t.dy.copy()
    np.testing.assert_array_equal(batch_norm_backward(dy, t.x, mean, rstd, t.weight, out=dy).dx, dx)
    x = t.x.copy()
    np.testing.assert_array_equal(batch_norm_backward(t.dy, x, mean, rstd, t.weight, out=x).dx, dx)


# Above SERIAL_BELOW, so that several threads do run; odd numbers of blocks.
LARGE = [((8, 16, 28, 28), 1), ((3, 7, 70, 50), 1), ((3001, 33), 1), ((40, 9, 9, 24), -1)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), LARGE)
def test_any_number_of_threads_gives_the_same_bits(backend, shape, axis, dtype):
    t = case(shape, axis, dtype)
    assert t.x.size >= SERIAL_BELOW
    results = []
    for n in (1, 2, 3, 4):
        with nc.num_threads(n):
            forward = batch_norm_forward(t.x, t.weight, t.bias, axis=axis)
            evaluated = batch_norm(t.x, t.mean, t.var, t.weight, t.bias, axis=axis)
            gradients = batch_norm_backward(t.dy, t.x, *forward[1:], t.weight, axis=axis)
        results.append([a.tobytes() for a in (*forward, evaluated, *gradients)])
    assert all(result == results[0] for result in results[1:])
