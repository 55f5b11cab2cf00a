"""Residual and activation in layer, RMS, group and instance norm; add, then normalize."""

import numpy as np
import pytest
from arrays import assert_close, layouts, tolerance
from norms import NORMS, Norm, problem, truth

import normcore.functional as F

BY_NAME = {"ids": str}
ACTIVATIONS = ["relu", "relu6", "leaky_relu", "silu", "gelu"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_the_fused_forms_match_the_oracle(backend, norm, activation, dtype):
    p = problem(norm, dtype)
    for residual in (None, p.residual):
        # The slope of a kink jumps; no value lies within rounding of one.
        t = truth(norm, p.x, p.dy, p.weight, p.bias, residual=residual, activation=activation)
        fused = {"residual": residual, "activation": activation}
        y, saved = norm.forward(p.x, p.weight, p.bias, **fused)
        assert_close(y, t.y, tolerance(dtype))
        np.testing.assert_array_equal(norm.call(p.x, p.weight, p.bias, **fused), y)
        g = norm.before(p.dy, p.x, saved, p.weight, p.bias, **fused)
        assert g.dtype == dtype
        assert_close(g, t.g, tolerance(dtype))
        gradients = norm.backward(g, p.x, saved, p.weight)
        assert_close(gradients.dx, t.dx, 2 * tolerance(dtype))
        bound = 1e-6 if dtype == np.float32 else 1e-14
        assert_close(gradients.dweight, t.dweight, bound, t.summands + 1)


@pytest.mark.parametrize("norm", NORMS, **BY_NAME)
def test_every_layout_and_out(backend, norm):
    p = problem(norm, np.float64)
    fused = {"activation": "silu"}
    t = truth(norm, p.x, p.dy, p.weight, p.bias, residual=p.residual, **fused)
    for (_, x), (_, residual), (_, dy) in zip(
        layouts(p.x.copy()),
        [*layouts(p.residual.copy())][::-1],
        [*layouts(p.dy.copy())][3:] + [*layouts(p.dy.copy())][:3],
        strict=True,
    ):
        y, saved = norm.forward(x, p.weight, p.bias, residual=residual, **fused)
        assert_close(y, t.y, 4e-15)
        given = (dy, x, saved, p.weight, p.bias)
        g = norm.before(*given, residual=residual, **fused)
        assert_close(g, t.g, 4e-15)
        if isinstance(dy, np.ndarray) and dy.flags.writeable and dy.dtype.isnative:
            assert norm.before(*given, residual=residual, out=dy, **fused) is dy
            assert_close(dy, t.g, 4e-15)


@pytest.mark.parametrize("norm", NORMS[::3], **BY_NAME)
def test_out_may_be_any_input(backend, norm):
    p = problem(norm, np.float64)
    fused = {"activation": "gelu"}
    t = truth(norm, p.x, p.dy, p.weight, p.bias, residual=p.residual, **fused)
    for name in ("x", "residual"):
        q = problem(norm, np.float64)
        out = getattr(q, name)
        y, saved = norm.forward(q.x, q.weight, q.bias, residual=q.residual, out=out, **fused)
        assert y is out
        assert_close(y, t.y, 4e-15)
    for name in ("x", "residual", "dy"):
        q = problem(norm, np.float64)
        out = getattr(q, name)
        g = norm.before(q.dy, q.x, saved, q.weight, q.bias, residual=q.residual, out=out, **fused)
        assert g is out
        assert_close(g, t.g, 4e-15)


@pytest.mark.parametrize("norm", [NORMS[0], NORMS[8], NORMS[11]], **BY_NAME)
def test_wrong_arguments(norm):
    p = problem(norm)
    saved = norm.forward(p.x)[1]
    for call in (norm.call, lambda x, **given: norm.before(x, x, saved, **given)):
        with pytest.raises(ValueError, match=r"activation: expected one of .*'gelu', got 'tanh'"):
            call(p.x, activation="tanh")
        with pytest.raises(ValueError, match=r"residual: expected x's shape"):
            call(p.x, residual=p.x[1:], activation="relu")
        with pytest.raises(TypeError, match=r"residual: expected x's dtype float32, got float64"):
            call(p.x, residual=p.x.astype(float), activation="relu")
    with pytest.raises(TypeError, match="activation"):
        norm.before(p.dy, p.x, saved)


ADDED = [
    Norm("layer", (6, 5)),
    Norm("layer", (3, 4, 5, 7), (-2, -1)),
    Norm("layer", (3, 6, 5, 4), 1),
    Norm("layer", (3, 6, 5, 4), (3, 1)),
    Norm("rms", (70, 1030)),
    Norm("rms", (3, 6, 5, 4), (1, 2)),
]


def add(norm, half, *arrays, **options):
    where = {} if norm.axis is None else {"axis": norm.axis}
    return getattr(F, f"add_{norm.kind}_norm{half}")(*arrays, **where, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", ADDED, **BY_NAME)
def test_add_then_normalize(backend, norm, dtype):
    p = problem(norm, dtype)
    total = p.x + p.residual
    dtotal = problem(norm, dtype, seed=1).dy
    t = truth(norm, total, p.dy, p.weight, p.bias)
    parameters = (p.weight, p.bias) if norm.centre else (p.weight,)
    for (_, x), (_, residual) in zip(layouts(p.x), [*layouts(p.residual)][::-1], strict=True):
        y, found, *saved = add(norm, "_forward", x, residual, norm.parameters, *parameters, 1e-5)
        np.testing.assert_array_equal(found, total)
        assert_close(y, t.y, tolerance(dtype))
    again = add(norm, "", p.x, p.residual, norm.parameters, *parameters, 1e-5)
    assert len(again) == 2
    np.testing.assert_array_equal(again[1], total)
    assert_close(again[0], t.y, tolerance(dtype))
    for extra, expected in ((dtotal, t.dx + dtotal), (None, t.dx)):
        gradients = add(norm, "_backward", p.dy, extra, total, *saved, norm.parameters, p.weight)
        assert_close(gradients.dx, expected, tolerance(dtype))
        assert_close(gradients.dweight, t.dweight, tolerance(dtype) * 4, t.summands)
    out = np.empty_like(p.x)
    found = add(norm, "_backward", p.dy, dtotal, total, *saved, norm.parameters, p.weight, out=out)
    assert found.dx is out
    assert_close(out, t.dx + dtotal, tolerance(dtype))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("norm", ADDED, **BY_NAME)
def test_halves_are_added_and_rounded_then_normalized(backend, norm, half):
    if half == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    dtype = np.dtype(ml_dtypes.bfloat16 if half == "bfloat16" else half)
    p = problem(norm, dtype)
    y, total, *saved = add(norm, "_forward", p.x, p.residual, norm.parameters, eps=1e-5)
    assert y.dtype == total.dtype == dtype
    exact = p.x.astype(np.float32) + p.residual.astype(np.float32)
    np.testing.assert_array_equal(total, exact.astype(dtype))
    expected, statistics = norm.forward(total)
    np.testing.assert_array_equal(y, expected)
    for found, other in zip(saved, statistics, strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ADDED, **BY_NAME)
def test_out_of_add_then_normalize(backend, norm):
    p = problem(norm)
    total = p.x + p.residual
    expected = add(norm, "", p.x, p.residual, norm.parameters, eps=1e-5)[0]
    # The residual stream in place, and y over x.
    for chosen in (("x", "residual"), ("residual", "x"), (None, "residual"), ("x", None)):
        q = problem(norm)
        out = tuple(name and getattr(q, name) for name in chosen)
        found = add(norm, "", q.x, q.residual, norm.parameters, eps=1e-5, out=out)
        for result, given in zip(found, out, strict=True):
            assert given is None or result is given
        assert_close(found[0], expected, 1e-6)
        np.testing.assert_array_equal(found[1], total)


def test_wrong_out_of_add_then_normalize():
    x = np.ones((3, 4))
    same = np.empty_like(x)
    with pytest.raises(ValueError, match="out: expected two arrays with memory of their own"):
        F.add_layer_norm(x, x, 4, out=(same, same))
    for out in (same, (same,), [same, same]):
        with pytest.raises(TypeError, match="out: expected a tuple of two arrays or None"):
            F.add_layer_norm(x, x, 4, out=out)
    with pytest.raises(TypeError, match="out: expected a NumPy array, got list"):
        F.add_rms_norm(x, x, 4, out=(x.tolist(), None))
    with pytest.raises(ValueError, match="residual: expected x's shape"):
        F.add_rms_norm(x, x[1:], 4)
    with pytest.raises(ValueError, match="dtotal: expected x's shape"):
        F.add_rms_norm_backward(x, x[1:], x, np.ones(3), 4)
    with pytest.raises(TypeError, match="total: expected dtype"):
        F.add_rms_norm_backward(x, x, x.astype(int), np.ones(3), 4)


def test_add_then_normalize_nothing(backend):
    x = np.zeros((0, 4), np.float32)
    y, total, mean, rstd = F.add_layer_norm_forward(x, x, 4)
    assert y.shape == total.shape == (0, 4)
    assert mean.shape == rstd.shape == (0,)
    assert not F.add_layer_norm_backward(x, x, total, mean, rstd, 4).dweight.any()
