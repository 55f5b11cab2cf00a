"""Layer, RMS, group and instance norm as functions: values, layouts, out, dtypes, empty arrays."""

import numpy as np
import pytest
from arrays import assert_close, layouts, tolerance
from norms import EPS, LARGE, NORMS, Norm, problem, truth

DTYPES = [np.float32, np.float64]
BY_NAME = {"ids": str}


def both_halves(norm, p, **options):
    """(y, saved, gradients) of a problem."""
    y, saved = norm.forward(p.x, p.weight, p.bias, **options)
    return y, saved, norm.backward(p.dy, p.x, saved, p.weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [*NORMS, *LARGE], **BY_NAME)
def test_the_halves_match_the_oracle(backend, norm, dtype):
    p = problem(norm, dtype)
    t = truth(norm, p.x, p.dy, p.weight, p.bias)
    y, saved, gradients = both_halves(norm, p)
    assert y.dtype == gradients.dx.dtype == gradients.dweight.dtype == dtype
    assert_close(y, t.y, tolerance(dtype))
    assert_close(norm.call(p.x, p.weight, p.bias), t.y, tolerance(dtype))
    for found, expected in zip(saved[::-1], (t.rstd, t.mean), strict=False):
        assert found.dtype == np.float64
        assert found.shape == norm.statistics
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)
    assert_close(gradients.dx, t.dx, tolerance(dtype))
    bound = 1e-6 if dtype == np.float32 else 1e-14
    assert_close(gradients.dweight, t.dweight, bound, t.summands)
    if norm.centre:
        count = p.x.size / p.weight.size
        assert_close(gradients.dbias, t.dbias, bound, np.sqrt(count))


@pytest.mark.parametrize("offset", [1e3, 1e6])
@pytest.mark.parametrize("norm", [norm for norm in LARGE if norm.centre], **BY_NAME)
def test_an_offset_costs_no_digits(backend, norm, offset):
    p = problem(norm, np.float32, offset)
    t = truth(norm, p.x, p.dy, p.weight, p.bias)
    y, _, gradients = both_halves(norm, p)
    assert_close(y, t.y, 1e-6)
    assert_close(gradients.dx, t.dx, 1e-6)
    assert_close(gradients.dweight, t.dweight, 1e-6, t.summands)


@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_without_weight_and_bias(backend, norm):
    p = problem(norm, np.float64)
    t = truth(norm, p.x, p.dy)
    y, saved = norm.forward(p.x)
    assert_close(y, t.y, 4e-15)
    assert_close(norm.backward(p.dy, p.x, saved).dx, t.dx, 4e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_every_layout_gives_the_same(backend, norm, dtype):
    p = problem(norm, dtype)
    t = truth(norm, p.x, p.dy, p.weight, p.bias)
    for (name, x), (other, dy) in zip(layouts(p.x), [*layouts(p.dy)][::-1], strict=True):
        before = np.array(x)
        y, saved = norm.forward(x, p.weight, p.bias)
        dx = norm.backward(dy, x, saved, p.weight).dx
        assert_close(y, t.y, tolerance(dtype))
        assert_close(dx, t.dx, tolerance(dtype))
        assert y.dtype == dx.dtype == dtype, (name, other)
        assert y.dtype.isnative
        np.testing.assert_array_equal(np.array(x), before)


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2), (2, 3, 0, 1)], ids=str)
@pytest.mark.parametrize("norm", [norm for norm in NORMS if len(norm.shape) == 4], **BY_NAME)
def test_transposed_arrays(backend, norm, order):
    p = problem(norm, np.float64)
    t = truth(norm, p.x, p.dy, p.weight, p.bias)
    x = np.ascontiguousarray(p.x.transpose(order)).transpose(np.argsort(order))
    y, saved = norm.forward(x, p.weight, p.bias)
    gradients = norm.backward(p.dy, x, saved, p.weight)
    assert_close(y, t.y, 4e-15)
    assert_close(saved[-1], t.rstd, 1e-14)
    assert_close(gradients.dx, t.dx, 4e-15)
    assert_close(gradients.dweight, t.dweight, 1e-14, t.summands)


@pytest.mark.parametrize(
    "norm",
    [
        Norm("layer", (4, 3, 5, 6), 1),
        Norm("layer", (4, 3, 5, 6), (2, 3)),
        Norm("rms", (4, 3, 5, 6), (1, 2, 3)),
        Norm("group", (4, 6, 5, 3), 1, 2),
        Norm("instance", (4, 6, 5, 3), 1),
    ],
    **BY_NAME,
)
def test_neither_channels_first_nor_channels_last_is_copied(norm):
    first = np.random.default_rng(0).standard_normal(norm.shape).astype(np.float32)
    last = np.ascontiguousarray(first.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for x in (first, last):
        read_only = x.view()
        read_only.flags.writeable = False
        y, saved = norm.forward(read_only)
        # A copy would lie in C order, and what is computed from it as well.
        assert y.strides == x.strides
        assert norm.backward(first, read_only, saved).dx.strides == x.strides


@pytest.mark.parametrize("layout", range(6))
@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_out_in_any_layout(backend, norm, layout):
    p = problem(norm)
    name, out = [*layouts(np.zeros_like(p.x))][layout]
    y, saved, gradients = both_halves(norm, p)
    assert norm.forward(p.x, p.weight, p.bias, out=out)[0] is out
    np.testing.assert_array_equal(out, y, name)
    out[...] = 0
    assert norm.call(p.x, p.weight, p.bias, out=out) is out
    np.testing.assert_array_equal(out, y, name)
    assert norm.backward(p.dy, p.x, saved, p.weight, out=out).dx is out
    np.testing.assert_array_equal(out, gradients.dx, name)


@pytest.mark.parametrize("layout", range(6))
@pytest.mark.parametrize("norm", NORMS[::2], **BY_NAME)
def test_out_may_be_an_input(backend, norm, layout):
    p = problem(norm)
    expected, saved, gradients = both_halves(norm, p)
    _, x = [*layouts(p.x.copy())][layout]
    _, dy = [*layouts(p.dy.copy())][layout]
    assert norm.forward(x, p.weight, p.bias, out=x)[0] is x
    assert_close(x, expected, 1e-6)
    x[...] = p.x
    assert norm.backward(p.dy, x, saved, p.weight, out=x).dx is x
    assert_close(x, gradients.dx, 1e-6)
    x[...] = p.x
    found = norm.backward(dy, x, saved, p.weight, out=dy)
    assert found.dx is dy
    assert_close(dy, gradients.dx, 1e-6)
    assert_close(found.dweight, gradients.dweight, 1e-6)


# Of two of them x is copied first: then out overlaps nothing that is read.
@pytest.mark.parametrize(
    "norm", [norm for norm in NORMS if norm.axis not in ((3, 1), 2)], **BY_NAME
)
def test_out_that_overlaps_an_input_is_refused(norm):
    memory = np.zeros(np.prod(norm.shape) + 1, np.float32)
    x, out = memory[1:].reshape(norm.shape), memory[:-1].reshape(norm.shape)
    with pytest.raises(ValueError, match=r"out: .* overlaps an input"):
        norm.call(x, out=out)
    y, saved = norm.forward(x)
    with pytest.raises(ValueError, match=r"out: .* overlaps an input"):
        norm.backward(y, x, saved, out=out)
    assert not memory.any()


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_halves_are_rounded_once(backend, norm, half):
    if half == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
        dtype, digits = np.dtype(ml_dtypes.bfloat16), 8
    else:
        dtype, digits = np.dtype(half), 11
    p = problem(norm, dtype, 3.0)
    t = truth(norm, p.x, p.dy, p.weight, p.bias)
    y, _, gradients = both_halves(norm, p)
    assert y.dtype == gradients.dx.dtype == dtype
    assert gradients.dweight.dtype == np.float32
    for found, expected in ((y, t.y), (gradients.dx, t.dx)):
        half_ulp = np.exp2(np.floor(np.log2(np.maximum(np.abs(expected), 2.0**-14))) - digits)
        error = np.abs(found.astype(np.float64) - expected)
        assert np.all(error <= half_ulp + 1e-6 * np.maximum(1, np.abs(expected)))
    assert_close(gradients.dweight, t.dweight, 1e-6, t.summands)
    bare = norm.backward(p.dy, p.x, norm.forward(p.x)[1])
    assert bare.dweight.dtype == np.float32


@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_parameters_of_any_kind(backend, norm):
    p = problem(norm)
    y, saved, gradients = both_halves(norm, p)
    for weight in (
        p.weight.astype(np.float64),
        np.repeat(p.weight[..., None], 2, -1)[..., 1],
        p.weight.astype(">f4"),
        p.weight.astype(np.float64).tolist(),
    ):
        assert_close(norm.forward(p.x, weight, p.bias)[0], y, 1e-6)
        assert_close(norm.backward(p.dy, p.x, saved, weight).dx, gradients.dx, 1e-6)


@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_a_constant_gives_exactly_bias(backend, norm):
    if not norm.centre:
        zeros = np.zeros(norm.shape, np.float32)
        np.testing.assert_array_equal(norm.call(zeros), zeros)
        return
    bias = problem(norm).bias
    expected = norm.back(np.broadcast_to(norm.spread(bias), norm.canonical(0.0).shape))
    for value in (0.0, 1 / 3, 1e6, 1.1e-30):
        y = norm.call(np.full(norm.shape, value, np.float32), None, bias)
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm.statistics], **BY_NAME)
def test_nan_and_infinity_stay_where_they_came_in(backend, norm, bad):
    p = problem(norm)
    clean, _, gradients = both_halves(norm, p)
    p.x[(1,) * p.x.ndim] = bad
    y, _, found = both_halves(norm, p)
    touched = norm.canonical(~np.isfinite(p.x)).any(norm.over, keepdims=True)
    touched = norm.back(np.broadcast_to(touched, norm.canonical(p.x).shape))
    assert touched.any()
    assert not touched.all()
    if norm.centre or np.isnan(bad):
        assert np.isnan(y[touched]).all()
    assert np.isnan(found.dx[touched]).any()
    np.testing.assert_array_equal(y[~touched], clean[~touched])
    np.testing.assert_array_equal(found.dx[~touched], gradients.dx[~touched])


@pytest.mark.parametrize(
    "norm",
    [
        Norm("layer", (0, 4)),
        Norm("layer", (3, 0)),
        Norm("rms", (2, 0, 3), 1),
        Norm("group", (0, 4, 3), 1, 2),
        Norm("group", (2, 4, 0), 1, 2),
        Norm("instance", (0, 4, 3), 1),
        Norm("instance", (2, 0, 3), 1),
    ],
    **BY_NAME,
)
def test_an_empty_array(backend, norm):
    x = np.zeros(norm.shape, np.float32)
    weight = np.ones(norm.parameters, np.float32)
    y, saved = norm.forward(x, weight)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    for statistic in saved:
        assert statistic.shape == norm.statistics
        assert np.isnan(statistic).all()
    gradients = norm.backward(x, x, saved, weight)
    assert gradients.dx.shape == x.shape
    assert gradients.dweight.shape == norm.parameters
    assert not gradients.dweight.any()
    assert norm.before(x, x, saved, weight, activation="relu").shape == x.shape
    out = np.empty_like(x)
    assert norm.call(x, weight, out=out, eps=EPS) is out


@pytest.mark.parametrize("norm", [*NORMS[:1], *LARGE], **BY_NAME)
def test_threads_change_no_bit(norm):
    import normcore as nc

    p = problem(norm)
    results = []
    for threads in (1, 2, 3):
        with nc.num_threads(threads):
            y, saved, gradients = both_halves(norm, p)
            results.append((y, *saved, *gradients))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
