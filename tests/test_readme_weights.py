"""The README's examples on ONNX and weights run as they stand."""

from types import SimpleNamespace

import numpy as np
import pytest
from readme import README, blocks

import normcore as nc


def run(heading, names):
    [block] = blocks(heading)
    exec(compile(block, str(README), "exec"), names)
    return names


def test_in_an_onnx_graph(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    monkeypatch.chdir(tmp_path)
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        agraph (float[2, 3, 4, 4] x) => (float[2, 3, 4, 4] y)
        <float[3] one = {1, 1, 1}, float[3] zero = {0, 0, 0}>
        { [norm1] y = BatchNormalization (x, one, zero, zero, one) }"""
    )
    onnx.save(model, "model.onnx")
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    names = run("In an ONNX graph", {"x": x})
    np.testing.assert_allclose(names["y"], names["layers"]["norm1"](x), rtol=1e-6)
    assert names["node"].op_type == "BatchNormalization"
    assert len(names["initializers"]) == 4


def test_weights(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    monkeypatch.chdir(tmp_path)
    own = nc.BatchNorm2d(8).state_dict()
    state = {f"stem.bn.{key}": values for key, values in own.items()}
    state |= {
        "head.norm.weight": np.arange(4.0),
        "head.norm.bias": np.ones(4),
        "fc.bias": np.ones(2),
    }
    layer = keras.layers.BatchNormalization()
    layer.build((None, 8))
    module = SimpleNamespace(state_dict=lambda: state)
    names = run("Weights", {"module": module, "keras_layer": layer})
    assert names["others"] == ["fc.bias"]
    np.testing.assert_array_equal(names["layers"]["head.norm"].weight, np.arange(4))
    assert isinstance(names["bn"], nc.BatchNorm1d)
    assert names["keras_layer"].momentum == layer.momentum
