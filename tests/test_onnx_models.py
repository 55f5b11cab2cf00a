"""The light models of onnx's wheel: whole networks with normcore's batch norm and onnxruntime's.

The wheel's weights are constants, and with them all channels are alike and so are all outputs:
weights and statistics are drawn at random instead, and onnxruntime says what must come out.
Pooling, which takes the reference evaluator 12 s, is left to onnxruntime too.
"""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import normcore as nc

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
import_module("normcore.onnx")

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
BATCH_NORMS = {"resnet50": 53, "densenet121": 121, "inception_v2": 69, "shufflenet": 49}
TOLERANCE = 3e-6
"""Of the largest logit. Both round to float32 after each of 49 to 121 batch norms, and onnxruntime
folds them to x * scale + shift or into the convolution before: 5.5e-7 is the most that was seen."""


def random_model(name):
    """The model with random weights in the range that keeps activations near 1, and its input."""
    rng = np.random.default_rng(0)
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    graph = model.graph
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape"]:
        shape = arrays[node.input[0]]
        arrays[node.output[0]] = (
            rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))
            if len(shape) > 1  # weights of a convolution
            else rng.uniform(0.5, 1, shape)
        )
        graph.node.remove(node)
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            c = arrays[node.input[1]].size
            draws = (rng.uniform(0.5, 1, c), *rng.normal(0, 0.1, (2, c)), rng.uniform(0.5, 1.5, c))
            arrays |= dict(zip(node.input[1:], draws, strict=True))
    del graph.initializer[:]
    used = {key for node in graph.node for key in node.input}
    arrays = {key: values for key, values in arrays.items() if key in used}
    for key, values in arrays.items():
        kind = values.dtype if values.dtype == np.int64 else np.float32
        graph.initializer.append(onnx.numpy_helper.from_array(values.astype(kind), key))
    [x] = [item for item in graph.input if item.name in used and item.name not in arrays]
    del graph.input[:]
    graph.input.append(x)
    # The softmax at the end would hide small logits.
    [end] = graph.node[-1:]
    if end.op_type == "Softmax":
        graph.output[0].name = end.input[0]
        graph.node.remove(end)
    shape = [length.dim_value for length in x.type.tensor_type.shape.dim]
    return model, {x.name: rng.standard_normal(shape, np.float32)}


def session(model):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def by_onnxruntime(kind):
    """An operator of the reference evaluator that asks onnxruntime."""

    def run(self, *inputs, **attributes):
        if not hasattr(self, "session"):
            names = [name for name in self.input if name]
            values = [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(values.dtype), values.shape
                )
                for name, values in zip(names, inputs, strict=True)
            ]
            outputs = [onnx.ValueInfoProto(name=name) for name in self.output]
            graph = onnx.helper.make_graph([self.onnx_node], "one", values, outputs)
            opset = onnx.helper.make_opsetid("", self.run_params["opsets"][""])
            self.session = session(
                onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
            )
        feed = zip((name for name in self.input if name), inputs, strict=True)
        return tuple(self.session.run(None, dict(feed)))

    return type(kind, (onnx.reference.op_run.OpRun,), {"_run": run})


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_light_models_equal_onnxruntime(name):
    model, feed = random_model(name)
    ours = nc.onnx.operators()
    pools = [by_onnxruntime(kind) for kind in ("AveragePool", "MaxPool")]
    evaluator = onnx.reference.ReferenceEvaluator(model, new_ops=[*ours, *pools])
    norms = [node for node in evaluator.rt_nodes_ if node.op_type == "BatchNormalization"]
    assert len(norms) == BATCH_NORMS[name]
    assert {type(node) for node in norms} == {ours[0]}
    [expected] = session(model).run(None, feed)
    [found] = evaluator.run(None, feed)
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    assert expected.std() > 0.01 * scale  # channels differ
    error = np.abs(found - expected).max() / scale
    assert error < TOLERANCE
    # The same statistics as layers.
    layers = nc.onnx.layers_from_onnx(model)
    assert len(layers) == BATCH_NORMS[name]
    for node in norms:
        layer = layers[node.onnx_node.name]
        assert isinstance(layer, nc.BatchNorm2d)
        assert not layer.training
        state = [evaluator.rt_inits_[key] for key in node.input[1:]]
        np.testing.assert_array_equal(layer.running_var, state[3])
