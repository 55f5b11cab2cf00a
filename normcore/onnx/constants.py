"""The constants of an ONNX graph as arrays, and the shapes of what it computes.

Files come from anywhere: what a tensor declares is compared with what is there before anything is
allocated for it.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto, load, shape_inference
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor
from onnx.external_data_helper import uses_external_data as is_external
from onnx.helper import make_tensor_value_info, tensor_dtype_to_np_dtype
from onnx.numpy_helper import to_array

Array = np.ndarray[Any, Any]
Shape = tuple[int | None, ...]

_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.FLOAT16: "int32_data",
    TensorProto.BFLOAT16: "int32_data",
}
"""Types that parameters may have, and where their values are if they are not bytes."""
_SMALL = 1024
"""Elements that the argument of a Reshape or the like has at most."""


def read_model(model: ModelProto | str | os.PathLike[str]) -> tuple[ModelProto, str | None]:
    """The model, and the folder of its external data if it came from a file."""
    if isinstance(model, ModelProto):
        return model, None
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model: expected a ModelProto or a path, got {type(model).__name__}")
    try:
        found = load(os.fspath(model), load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"model: expected an ONNX file, got {model}: {error}") from error
    if not found.graph.node:
        raise ValueError(f"model: expected an ONNX file with a graph, got {model} without nodes")
    return found, str(Path(model).parent)


def named_constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Initializers and values of Constant nodes, also through Identity nodes, by name."""
    found: dict[str, TensorProto] = {}
    for tensor in graph.initializer:
        if tensor.name in found:
            raise ValueError(f"initializer: expected different names, got {tensor.name!r} twice")
        found[tensor.name] = tensor
    for node in graph.node:
        if not node.output:
            continue
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def tensor_array(where: str, tensor: TensorProto, folder: str | None) -> Array:
    """A floating-point tensor; half precision becomes float32.

    Parameters
    ----------
    where : str
        What the tensor is, for errors.
    tensor : TensorProto
        With its values, or with the place of them in another file.
    folder : str or None
        Where that file lies.
    """
    if tensor.data_type not in _FIELDS:
        names = ", ".join(_type_name(kind) for kind in _FIELDS)
        raise TypeError(
            f"{where}: expected a tensor of type {names}, got {_type_name(tensor.data_type)}"
        )
    shape = tuple(tensor.dims)
    if min(shape, default=0) < 0:
        raise ValueError(f"{where}: expected lengths of at least 0, got shape {shape}")
    count = prod(shape)
    size = count * tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if is_external(tensor):
        tensor = _with_data(where, tensor, size, folder)
    if tensor.HasField("raw_data"):
        expected, given, unit = size, len(tensor.raw_data), "bytes"
    else:
        field = getattr(tensor, _FIELDS[tensor.data_type])
        expected, given, unit = count, len(field), "values"
    if given != expected:
        raise ValueError(
            f"{where}: expected {expected} {unit} for a tensor of shape {shape}, got {given}"
        )
    values: Array = to_array(tensor)
    return values.astype(np.float32) if values.dtype.itemsize < 4 else values


def _type_name(data_type: int) -> str:
    known = data_type in TensorProto.DataType.values()
    return TensorProto.DataType.Name(data_type) if known else str(data_type)


def _with_data(where: str, tensor: TensorProto, size: int, folder: str | None) -> TensorProto:
    if folder is None:
        raise ValueError(
            f"{where}: expected a tensor with its values, got one that refers to another file; "
            "pass the path of the model, or load its external data first"
        )
    found = TensorProto()
    found.CopyFrom(tensor)
    try:
        length = ExternalDataInfo(tensor).length
        if length is None:
            found.external_data.add(key="length", value=str(size))
        elif length != size:
            raise ValueError(f"a reference to {length} bytes, where {size} are expected")
        load_external_data_for_tensor(found, folder)
    except Exception as error:  # of many kinds: onnx's checks are in C++
        raise ValueError(f"{where}: expected readable external data, got {error}") from error
    found.data_location = TensorProto.DEFAULT
    return found


def shapes(model: ModelProto) -> dict[str, Shape]:
    """Shapes of the graph's values, None for unknown lengths, as far as they can be inferred.

    Large initializers are known by their shape alone, so that weights are not copied.
    """
    graph = model.graph
    # Before version 4, initializers that are no inputs are not looked at.
    bare = ModelProto(ir_version=max(4, model.ir_version))
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = "shapes"
    for items in ("node", "input", "output", "value_info"):
        getattr(bare.graph, items).extend(getattr(graph, items))
    inputs = {item.name for item in graph.input}
    for tensor in graph.initializer:
        if prod(tensor.dims) <= _SMALL and not is_external(tensor):
            bare.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            bare.graph.input.append(
                make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    try:
        inferred = shape_inference.infer_shapes(bare, data_prop=True).graph
    except shape_inference.InferenceError as error:
        raise ValueError(f"model: expected a valid graph, got one with: {error}") from error
    return {
        item.name: tuple(
            length.dim_value if length.HasField("dim_value") else None
            for length in item.type.tensor_type.shape.dim
        )
        for item in (*inferred.input, *inferred.value_info, *inferred.output)
        if item.type.tensor_type.HasField("shape")
    }
