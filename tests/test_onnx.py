"""normcore.onnx on the normalization cases of ONNX's backend tests, whose data ship in its wheel.

Of each operator all node tests are run, without those that expand it into other operators: by the
reference evaluator with normcore's operators, and as layers, whose parameters the model holds.
"""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import normcore as nc

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
import_module("normcore.onnx")

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
STARTS = {
    "batchnorm": 4,
    "layer_normalization": 19,
    "rms_normalization": 19,
    "group_normalization": 2,
    "instancenorm": 2,
    "mvn": 1,
}
CONVERTED = [
    *("BatchNorm1d_3d_input_eval", "BatchNorm2d_eval", "BatchNorm2d_momentum_eval"),
    *("BatchNorm3d_eval", "BatchNorm3d_momentum_eval"),
]


def folders(start):
    found = (DATA / "node").glob(f"test_{start}*")
    return sorted(folder for folder in found if "expanded" not in folder.name)


CASES = [folder for start in STARTS for folder in folders(start)]
CASES += [DATA / "pytorch-converted" / f"test_{name}" for name in CONVERTED]
OF_LAYERS = [path for path in CASES if not path.name.startswith("test_mvn")]


def test_no_case_is_missing():
    assert {start: len(folders(start)) for start in STARTS} == STARTS


def read(folder):
    """The model, what to feed it, and what must come out."""
    model = onnx.load(folder / "model.onnx")

    def arrays(kind):
        files = sorted((folder / "test_data_set_0").glob(f"{kind}_*.pb"))
        return [onnx.numpy_helper.to_array(onnx.load_tensor(file)) for file in files]

    given = {item.name for item in model.graph.initializer}
    free = [item.name for item in model.graph.input if item.name not in given]
    return model, dict(zip(free, arrays("input"), strict=True)), arrays("output")


def evaluate(model, feed):
    return onnx.reference.ReferenceEvaluator(model, new_ops=nc.onnx.operators()).run(None, feed)


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_operators(backend, folder):
    model, feed, outputs = read(folder)
    for found, expected in zip(evaluate(model, feed), outputs, strict=True):
        assert_equal(found, expected)


def with_constants(model, feed):
    """The model with all inputs but the first as initializers, and that input."""
    x, *parameters = model.graph.node[0].input
    for name in parameters:
        if name in feed:
            model.graph.initializer.append(onnx.numpy_helper.from_array(feed[name], name))
    return model, feed[x]


@pytest.mark.parametrize("folder", OF_LAYERS, ids=lambda folder: folder.name)
def test_layers(backend, folder):
    model, feed, (expected, *statistics) = read(folder)
    model, x = with_constants(model, feed)
    [layer] = nc.onnx.layers_from_onnx(model).values()
    assert_equal(layer(x), expected)
    if layer.training:
        # ONNX's running variance is the population variance of the batch, normcore's unbiased.
        kept, count = (1 - layer.momentum) * feed["var"], x.size // x.shape[1]
        assert_equal(layer.running_mean, statistics[0])
        population = kept + (layer.running_var - kept) * ((count - 1) / count)
        assert_equal(population.astype(np.float32), statistics[1])
        return
    # And back: the node made of the layer computes the same, and has the same attributes.
    node, initializers = nc.onnx.node_from_layer(layer, "norm", "x", "y")
    again = single(node, initializers, x.shape)
    assert_equal(evaluate(again, {"x": x})[0], expected)
    onnx.checker.check_model(again)
    [(name, same)] = nc.onnx.layers_from_onnx(again).items()
    assert (name, repr(same)) == ("norm", repr(layer))
    np.testing.assert_array_equal(same(x), layer(x))


def single(node, initializers, shape, opset=23):
    values = [onnx.helper.make_tensor_value_info(name, 1, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "one", values[:1], values[1:], initializers)
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=11
    )


def model_of(text, opset):
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')


def test_group_normalization_has_values_per_group_until_opset_21(backend):
    x = np.random.default_rng(0).normal(3, 2, (2, 6, 5)).astype(np.float32)
    text = """agraph (float[2, 6, 5] x) => (float[2, 6, 5] y)
        <float[3] scale = {1, 2, 3}, float[3] bias = {4, 5, 6}>
        { y = GroupNormalization <num_groups = 3> (x, scale, bias) }"""
    weight, bias = np.float32([1, 1, 2, 2, 3, 3]), np.float32([4, 4, 5, 5, 6, 6])
    expected = nc.functional.group_norm(x, 3, weight, bias)
    np.testing.assert_array_equal(evaluate(model_of(text, 18), {"x": x})[0], expected)
    [layer] = nc.onnx.layers_from_onnx(model_of(text, 18)).values()
    np.testing.assert_array_equal(layer(x), expected)
    with pytest.raises(ValueError, match=r"weight: expected shape \(6,\), got \(3,\)"):
        evaluate(model_of(text, 21), {"x": x})
    longer = text.replace("float[3] scale = {1, 2, 3}", "float[6] scale = {1, 1, 2, 2, 3, 3}")
    with pytest.raises(ValueError, match=r"scale: expected shape \(3,\), one value for each group"):
        evaluate(model_of(longer, 18), {"x": x})


@pytest.mark.parametrize(
    ("opset", "attributes", "outputs", "trains"),
    [
        (6, "", "y", True),
        (6, "<is_test = 1>", "y", False),
        (9, "", "y", False),
        (9, "", "y, m, v, sm, sv", True),
        (15, "", "y", False),
        (15, "<training_mode = 1>", "y, m, v", True),
    ],
)
def test_what_says_training_depends_on_the_opset(opset, attributes, outputs, trains):
    x = np.random.default_rng(0).normal(3, 2, (4, 2, 5)).astype(np.float32)
    text = f"""agraph (float[4, 2, 5] x) => (float[4, 2, 5] y)
        <float[2] scale = {{1, 2}}, float[2] bias = {{0, 1}}, float[2] m0 = {{3, 3}},
         float[2] v0 = {{4, 5}}>
        {{ {outputs} = BatchNormalization {attributes} (x, scale, bias, m0, v0) }}"""
    model = model_of(text, opset)
    [y] = evaluate(model, {"x": x})
    mean, var = (x.mean((0, 2)), x.var((0, 2))) if trains else (np.float32([3, 3]), [4, 5])
    expected = (x - mean[:, None]) / np.sqrt(np.add(var, 1e-5))[:, None]
    assert_equal(y, (expected * [[1], [2]] + [[0], [1]]).astype(np.float32))
    assert [layer.training for layer in nc.onnx.layers_from_onnx(model).values()] == [trains]
    if trains and opset == 9:
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, 1, [2]) for name in ("v", "sv")
        )
        _, running, batch = evaluate(model, {"x": x})
        assert_equal(batch, x.var((0, 2)))
        assert_equal(running, (0.9 * np.float32([4, 5]) + 0.1 * batch).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_parameters_of_other_types(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    x = np.random.default_rng(0).normal(3, 2, (3, 4)).astype(dtype)
    scale, zero = np.array([0.5, 1, 2, 4], dtype), np.zeros(4, dtype)
    batch, layer, *_ = nc.onnx.operators()
    y = layer.eval(x, scale, zero)
    assert y.dtype == dtype
    wide, eps = scale.astype(np.float32), float(np.float32(1e-5))
    np.testing.assert_array_equal(y, nc.functional.layer_norm(x, 4, wide, None, eps))
    y, mean, var = batch.eval(x, scale, zero, zero, scale, training_mode=1, n_outputs=3)
    assert {y.dtype, mean.dtype, var.dtype} == {dtype}
    expected = 0.9 * scale.astype(np.float64) + 0.1 * x.astype(np.float64).var(0)
    np.testing.assert_allclose(var.astype(np.float64), expected, rtol=4e-3)
    np.testing.assert_allclose(mean.astype(np.float64), 0.1 * x.astype(np.float64).mean(0), 4e-3)


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,)])
def test_a_scale_may_broadcast(shape):
    x = np.random.default_rng(0).normal(3, 2, (2, 4, 3, 5)).astype(np.float32)
    scale = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    wide = np.ones((4, 3, 5), np.float32) * scale.reshape(-1, 1, 1)
    _, layer, _, _, rms, _ = nc.onnx.operators()
    for operator in (layer, rms):
        found = operator.eval(x, scale, axis=1)
        np.testing.assert_array_equal(found, operator.eval(x, wide, axis=-3))
    with pytest.raises(ValueError, match=r"broadcasts to the normalized axes \(4, 3, 5\), got"):
        rms.eval(x, np.ones((7, 5), np.float32), axis=1)


@pytest.mark.parametrize("value", [7.0, np.inf])
def test_statistics_of_one_value_give_bias(value):
    """Where PyTorch and normcore refuse, ONNX defines y."""
    x = np.full((1, 2, 1, 1), value, np.float32)
    scale, bias = np.float32([1, 2]), np.float32([5, 6])
    expected = np.where(np.isfinite(x), bias.reshape(1, 2, 1, 1), np.nan)
    batch, _, instance, group, _, mvn = nc.onnx.operators()
    with np.errstate(invalid="ignore"):
        found = [
            *batch.eval(x, scale, bias, scale, bias, training_mode=1, n_outputs=3)[:1],
            instance.eval(x, scale, bias),
            group.eval(x, scale, bias, num_groups=2),
            mvn.eval(x) + bias.reshape(1, 2, 1, 1),
        ]
    for y in found:
        assert_equal(y, expected)


@pytest.mark.parametrize("axes", [[0, 2, 3], [2, 3], [1, 2, 3], [0, 1, 2, 3], [-1]])
@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e-9, 0.0])
def test_mean_variance_normalization(backend, axes, scale):
    """1e-9 is added to the deviation, not to the variance: visible where that is small."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)) * scale
    kept = {"axis": tuple(axes), "keepdims": True}
    expected = (x - x.mean(**kept)) / (x.std(**kept) + 1e-9)
    mvn = nc.onnx.operators()[-1]
    np.testing.assert_allclose(mvn.eval(x, axes=axes), expected, rtol=1e-9, atol=1e-13)
    single = mvn.eval(x.astype(np.float32), axes=axes)
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-6)


def test_an_empty_batch_changes_no_statistics():
    batch = nc.onnx.operators()[0]
    ones = np.ones(2, np.float32)
    x = np.zeros((0, 2, 3), np.float32)
    y, mean, var = batch.eval(x, ones, ones, ones, ones, training_mode=1, n_outputs=3)
    assert y.shape == x.shape
    np.testing.assert_array_equal((mean, var), np.ones((2, 2)))


def test_x_is_not_copied():
    """The operator reads x where it is: peak memory is y and what is small."""
    import tracemalloc

    x = np.zeros((4, 64, 64, 64), np.float32)
    ones = np.ones(64, np.float32)
    batch, layer, instance, group, rms, _ = nc.onnx.operators()
    runs = [
        lambda: batch.eval(x, ones, ones, ones, ones),
        lambda: batch.eval(x, ones, ones, ones, ones, training_mode=1, n_outputs=3),
        lambda: layer.eval(x, ones),
        lambda: instance.eval(x, ones, ones),
        lambda: group.eval(x, ones, ones, num_groups=8),
        lambda: rms.eval(x, ones),
    ]
    for run in runs:
        run()
        tracemalloc.start()
        y = run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        y = y[0] if isinstance(y, tuple) else y
        assert y.nbytes <= peak < 1.25 * x.nbytes


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda b, n, x, one: b.eval(x, one, one, one, one, spatial=0), "spatial: expected 1"),
        (lambda b, n, x, one: n.eval(x, one, axis=3), r"axis: expected an axis of X of shape"),
        (lambda b, n, x, one: nc.onnx.operators()[-1].eval(x), r"axes: expected axes of X"),
    ],
)
def test_wrong_attributes(run, message):
    batch, norm, *_ = nc.onnx.operators()
    with pytest.raises(ValueError, match=message):
        run(batch, norm, np.ones((2, 3), np.float32), np.ones(3, np.float32))
