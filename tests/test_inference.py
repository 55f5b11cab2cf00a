"""`compile_inference`: the bits of the layer's evaluation, what it captures, what it refuses."""

import threading

import numpy as np
import pytest

import normcore as nc
from normcore.backend import load

LAYERS = {
    "batch": lambda: (nc.BatchNorm2d(3), (2, 3, 4, 5)),
    "batch last": lambda: (nc.BatchNorm1d(3, axis=-1, activation="relu"), (7, 3)),
    "batch bare": lambda: (nc.BatchNorm1d(3, track_running_stats=False), (7, 3)),
    "renorm": lambda: (nc.BatchRenorm1d(3, dtype=np.float64), (7, 3)),
    "layer": lambda: (nc.LayerNorm((4, 5)), (2, 3, 4, 5)),
    "layer axis": lambda: (nc.LayerNorm(3, axis=1), (2, 3, 4)),
    "rms": lambda: (nc.RMSNorm(5, activation="silu"), (2, 3, 5)),
    "group": lambda: (nc.GroupNorm(2, 4), (2, 4, 5)),
    "instance": lambda: (nc.InstanceNorm1d(3, affine=True), (2, 3, 5)),
    "instance tracked": lambda: (nc.InstanceNorm1d(3, track_running_stats=True), (2, 3, 5)),
    "instance alone": lambda: (nc.InstanceNorm1d(3, track_running_stats=True), (3, 5)),
}


def prepared(name):
    """A layer with some state, an input, and the call."""
    layer, shape = LAYERS[name]()
    rng = np.random.default_rng(0)
    state = {key: rng.uniform(0.5, 1.5, v.shape) for key, v in layer.state_dict().items()}
    state.pop("num_batches_tracked", None)
    layer.load_state_dict(state, strict=False)
    x = (rng.standard_normal(shape) + 1000).astype(layer.dtype)
    return layer, x, nc.compile_inference(layer, shape)


@pytest.mark.parametrize("name", LAYERS)
def test_it_gives_the_bits_of_the_layer_in_every_layout(backend, name):
    layer, x, op = prepared(name)
    assert layer.training
    residual = x[::-1].copy()
    layer.eval()
    swapped = x.astype(x.dtype.newbyteorder())
    for given in (x, np.asfortranarray(x), np.repeat(x, 2, -1)[..., ::2], swapped):
        expected = layer(given, residual=residual)
        found = op(given, residual=residual)
        assert found.tobytes() == expected.tobytes()
    out = np.empty_like(x)
    expected = layer(x)
    assert op(x, out) is out
    assert out.tobytes() == expected.tobytes()
    assert op(x, x) is x
    assert x.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["batch", "layer", "group", "instance tracked"])
def test_it_holds_copies_of_the_state(name):
    layer, x, op = prepared(name)
    before = op(x).tobytes()
    layer.train()(x)
    for key, values in layer.state_dict().items():
        assert getattr(layer, key).flags.writeable
        if key != "num_batches_tracked":
            getattr(layer, key)[...] = values * 3 + 1
    assert op(x).tobytes() == before
    assert nc.compile_inference(layer, x.shape)(x).tobytes() != before


def test_compiling_leaves_the_layer_as_it_was():
    layer, x = nc.BatchNorm1d(3), np.random.default_rng(0).standard_normal((5, 3), np.float32)
    layer(x)
    state = layer.state_dict()
    nc.compile_inference(layer, (5, 3))
    assert layer.training
    assert layer.backward(x).dx.shape == x.shape
    assert all(np.array_equal(values, state[key]) for key, values in layer.state_dict().items())


def test_it_keeps_the_backend_it_was_compiled_with(backend):
    layer, x, op = prepared("batch")
    expected = layer.eval()(x).tobytes()
    other = "numpy" if backend != "numpy" else "cython"
    try:
        load(other)
    except ImportError:
        other = "numpy"
    with nc.use_backend(other):
        assert op(x).tobytes() == expected
        assert op(np.asfortranarray(x)).tobytes() == expected
        assert nc.get_backend() == other


def test_many_threads_may_call_it():
    _, x, op = prepared("batch")
    expected = op(x).tobytes()
    found = []

    def work():
        out = np.empty_like(x)
        found.extend(op(x, out).tobytes() == expected for _ in range(100))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 400


def test_half_precision_inputs_are_prepared_by_name():
    bn = nc.BatchNorm1d(3)
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float16)
    op = nc.compile_inference(bn, (5, 3), np.float16)
    assert op(x).tobytes() == bn.eval()(x).tobytes()
    assert repr(op).startswith("PreparedInference(BatchNorm1d(3, eps=1e-05")


def test_it_refuses_what_was_not_prepared():
    op = nc.compile_inference(nc.BatchNorm1d(3), (5, 3))
    x = np.zeros((5, 3), np.float32)
    for wrong, error, words in (
        (x[:4], ValueError, r"x: expected the prepared shape \(5, 3\), got \(4, 3\)"),
        (x.astype(np.float64), TypeError, "x: expected the prepared dtype float32, got float64"),
        (x.astype(int), TypeError, "x: expected dtype float32"),
    ):
        with pytest.raises(error, match=words):
            op(wrong)
    with pytest.raises(ValueError, match="out: expected x's shape"):
        op(x, x[:4].copy())
    with pytest.raises(TypeError, match="out: expected dtype"):
        op(x, x.astype(np.float64))
    with pytest.raises(ValueError, match="residual: expected x's shape"):
        op(x, residual=x[:4])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((np.zeros(3), (5, 3)), TypeError, "layer: expected a layer of normcore, got ndarray"),
        ((nc.BatchNorm1d(3), 5), TypeError, "shape: expected a sequence of int, got 5"),
        ((nc.BatchNorm1d(3), (5, 3.0)), TypeError, "shape: expected a sequence of int"),
        ((nc.BatchNorm1d(3), (-5, 3)), ValueError, "shape: expected no negative length"),
        ((nc.BatchNorm1d(3), (5, 4)), ValueError, "x: expected 3 channels"),
        ((nc.LayerNorm(3), (5, 4)), ValueError, "x: expected shape"),
        ((nc.GroupNorm(2, 4), (5, 3)), ValueError, "x: expected 4 channels"),
        ((nc.BatchNorm1d(3), (5, 3), int), TypeError, "dtype: expected dtype float32"),
    ],
)
def test_it_refuses_what_the_layer_cannot_do(arguments, error, words):
    with pytest.raises(error, match=words):
        nc.compile_inference(*arguments)
