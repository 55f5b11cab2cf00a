"""Malformed ONNX models: `layers_from_onnx` says where and what is wrong, in no more memory."""

import pickle
from importlib import import_module

import numpy as np
import pytest
from malformed import HUGE, VALUES, within_memory

import normcore as nc

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
import_module("normcore.onnx")
FLOAT = 1


def good():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 23]>
        agraph (float[2, 4, 3] x) => (float[2, 4, 3] z)
        <float[4] scale = {1, 2, 3, 4}, float[4] bias = {0, 1, 0, 1}, float[4] mean = {1, 1, 1, 1},
         float[4] var = {2, 3, 4, 5}, float[3] gamma = {1, 2, 3}>
        { [bn] y = BatchNormalization (x, scale, bias, mean, var)
          [ln] z = LayerNormalization (y, gamma) }"""
    )
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)
        )
    return model


def external(tensor, **entries):
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def typed(tensor, data_type, raw):
    tensor.data_type = data_type
    tensor.raw_data = raw


def dims(tensor, *lengths):
    del tensor.dims[:]
    tensor.dims.extend(lengths)


def unpacked(tensor, values):
    tensor.ClearField("raw_data")
    tensor.float_data.extend(values)


TENSORS = {
    "huge shape": (lambda t, g: dims(t, HUGE), rf"bn, weight: expected {4 * HUGE} bytes .* got 16"),
    "overflowing shape": (lambda t, g: dims(t, *[1 << 62] * 4), "bytes for a tensor .* got 16"),
    "negative shape": (lambda t, g: dims(t, -4), r"lengths of at least 0, got shape \(-4,\)"),
    "short": (lambda t, g: typed(t, FLOAT, VALUES[:-1]), "expected 16 bytes .* got 15"),
    "long": (lambda t, g: typed(t, FLOAT, VALUES * 2), "expected 16 bytes .* got 32"),
    "no values": (lambda t, g: t.ClearField("raw_data"), "expected 4 values .* got 0"),
    "few values": (lambda t, g: unpacked(t, [1, 2]), "expected 4 values .* got 2"),
    "wrong shape": (lambda t, g: dims(t, 2, 2), r"bn, weight: expected 1 axes, got shape \(2, 2\)"),
    "wrong length": (
        lambda t, g: (dims(t, 2), typed(t, FLOAT, VALUES[:8])),
        r"bn, bias: expected shape \(2,\), got \(4,\)",
    ),
    "integers": (lambda t, g: typed(t, 6, VALUES), "FLOAT, DOUBLE, FLOAT16, BFLOAT16, got INT32"),
    "strings": (lambda t, g: typed(t, 8, b""), "expected a tensor of type FLOAT.*, got STRING"),
    "8-bit floats": (lambda t, g: typed(t, 17, b"1234"), "got FLOAT8E4M3FN"),
    "unknown type": (lambda t, g: typed(t, 99, VALUES), "BFLOAT16, got 99"),
    "not constant": (
        lambda t, g: g.initializer.remove(t),
        "weight: expected a constant, got 'scale'",
    ),
    "missing input": (
        lambda t, g: g.node[0].input.pop(),
        "running_var: expected a constant, got None",
    ),
    "a name twice": (lambda t, g: g.initializer.append(t), "different names, got 'scale' twice"),
    "a node twice": (
        lambda t, g: setattr(g.node[1], "name", "bn"),
        "nodes of different names, got 'bn' twice",
    ),
    "zero eps": (
        lambda t, g: g.node[0].attribute.append(onnx.helper.make_attribute("epsilon", 0.0)),
        "eps: expected a positive finite number, got 0.0",
    ),
    "no external file": (lambda t, g: external(t, location="none"), "expected readable external"),
    "outside": (lambda t, g: external(t, location="../w.bin"), "expected readable external data"),
    "absolute": (lambda t, g: external(t, location="/etc/passwd"), "expected readable external"),
    "huge length": (
        lambda t, g: external(t, location="w.bin", length=HUGE),
        f"got a reference to {HUGE} bytes, where 16 are expected",
    ),
    "huge shape and length": (
        lambda t, g: (dims(t, HUGE), external(t, location="w.bin", length=4 * HUGE)),
        "expected readable external data, got External data length",
    ),
    "huge offset": (
        lambda t, g: external(t, location="w.bin", offset=HUGE, length=16),
        "expected readable external data, got External data offset",
    ),
    "negative length": (
        lambda t, g: external(t, location="w.bin", length=-1),
        "expected readable external data, got External data length must be non-negative",
    ),
    "short external": (
        lambda t, g: external(t, location="w.bin"),
        r"got External data length \(16\) exceeds",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_models(name, tmp_path):
    change, message = TENSORS[name]
    model = good()
    change(model.graph.initializer[0], model.graph)
    data = model.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    (tmp_path / "w.bin").write_bytes(VALUES[:12])
    with within_memory(len(data)), pytest.raises((ValueError, TypeError), match=message):
        nc.onnx.layers_from_onnx(path)


FILES = {
    "empty": b"",
    "a pickle": pickle.dumps({"scale": [1.0] * 9}),
    "text": b"hello, world\n" * 9,
    "truncated": good().SerializeToString()[:-7],
    "huge field": b"\x3a\xff\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(FILES[name])
    with (
        within_memory(len(FILES[name])),
        pytest.raises(ValueError, match=r"model: expected an ONNX file.*model\.onnx"),
    ):
        nc.onnx.layers_from_onnx(path)


def test_external_data_is_read_where_it_lies(tmp_path):
    model = good()
    external(model.graph.initializer[0], location="w.bin", offset=4, length=16)
    (tmp_path / "w.bin").write_bytes(b"1234" + VALUES)
    onnx.save(model, tmp_path / "model.onnx")
    found = nc.onnx.layers_from_onnx(tmp_path / "model.onnx")
    np.testing.assert_array_equal(found["bn"].weight, np.arange(4))
    with pytest.raises(ValueError, match="pass the path of the model, or load its external data"):
        nc.onnx.layers_from_onnx(model)
    with pytest.raises(TypeError, match="model: expected a ModelProto or a path, got bytes"):
        nc.onnx.layers_from_onnx(model.SerializeToString())


def test_damaged_bytes(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    refused = 0
    for _ in range(100):
        data = bytearray(good().SerializeToString())
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        with within_memory(len(data)):
            try:
                nc.onnx.layers_from_onnx(path)
            except (ValueError, TypeError):
                refused += 1
    assert 10 < refused < 100
