"""Layers of the normalization nodes of an ONNX graph: `layers_from_onnx`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto
from onnx.helper import get_attribute_value

from ..groupnorm import GroupNorm
from ..layer import Layer
from ..layernorm import LayerNorm, RMSNorm
from ..weights.conventions import BATCH_NORM, INSTANCE_NORM, complement
from .constants import Shape, named_constants, read_model, shapes, tensor_array
from .operators import per_channel, trains

Array = np.ndarray[Any, Any]


def layers_from_onnx(model: ModelProto | str | os.PathLike[str]) -> dict[str, Layer]:
    """Make a layer of each normalization node of an ONNX model.

    Parameters
    ----------
    model : ModelProto or path
        Its graph is searched, without subgraphs and functions. Of a file only the parameters of
        these nodes are made arrays of, also where they lie in files of external data.

    Returns
    -------
    dict of str to Layer
        By the name of the node, or of its first output where it has none, in the graph's order:
        BatchNorm1d to 3d, LayerNorm, InstanceNorm1d to 3d, GroupNorm and RMSNorm with the node's
        parameters (float32, or float64 where one is) and attributes, in evaluation mode if the node
        is not for training. ONNX's momentum is the weight of the old statistics, a layer's that of
        the new ones; ONNX's running variance is made of population variances, a layer's of
        unbiased ones, if it is trained further. MeanVarianceNormalization has no parameters
        and no layer.

    Raises
    ------
    TypeError
        For parameters that are not floating-point numbers.
    ValueError
        For what is no ONNX file, for nodes of the same name, and for nodes whose parameters are not
        constant, not of the right shape, or not as long as they say, or whose input has an
        unknown number of axes where the layer depends on it.

    Examples
    --------
    >>> from onnx import parser
    >>> import normcore.onnx
    >>> model = parser.parse_model('''
    ...     <ir_version: 10, opset_import: ["" : 21]>
    ...     agraph (float[n, 2, 8] x) => (float[n, 2, 8] y)
    ...     <float[2] scale = {1, 2}, float[2] zero = {0, 0}, float[2] var = {4, 9}>
    ...     { [norm] y = BatchNormalization <momentum = 0.8> (x, scale, zero, zero, var) }
    ... ''')
    >>> normcore.onnx.layers_from_onnx(model)
    {'norm': BatchNorm1d(2, eps=1e-05, momentum=0.2, affine=True, track_running_stats=True)}
    """
    model, folder = read_model(model)
    opsets = {item.domain: item.version for item in model.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx", 1))
    known, inferred = named_constants(model.graph), shapes(model)
    found: dict[str, Layer] = {}
    for proto in model.graph.node:
        if proto.domain not in ("", "ai.onnx") or proto.op_type not in _LAYERS:
            continue
        if not (proto.input and proto.output):
            raise ValueError(
                f"model: expected inputs and outputs of {proto.op_type}, got {len(proto.input)} "
                f"and {len(proto.output)}"
            )
        node = _Node(proto, opset, known, inferred, folder)
        if node.name in found:
            raise ValueError(f"model: expected nodes of different names, got {node.name!r} twice")
        found[node.name] = _LAYERS[proto.op_type](node)
    return found


@dataclass
class _Node:
    """A node with what is known of its inputs."""

    proto: NodeProto
    opset: int
    constants: dict[str, TensorProto]
    shapes: dict[str, Shape]
    folder: str | None

    @property
    def name(self) -> str:
        return self.proto.name or self.proto.output[0]

    def attribute(self, name: str, default: Any) -> Any:
        """The value of an attribute; ONNX's floats are float32, and mean what they print as."""
        for item in self.proto.attribute:
            if item.name == name:
                value = get_attribute_value(item)
                return float(str(np.float32(value))) if isinstance(value, float) else value
        return default

    @property
    def eps(self) -> float:
        return float(self.attribute("epsilon", 1e-5))

    def shape(self) -> Shape:
        """Shape of x."""
        source = self.proto.input[0]
        if source not in self.shapes:
            raise ValueError(
                f"node {self.name}: expected an input whose shape can be inferred, got {source!r}"
            )
        return self.shapes[source]

    def kind(self, layers: dict[int, Any]) -> Any:
        """The layer for arrays with as many axes as x."""
        rank = len(self.shape())
        if rank not in layers:
            raise ValueError(
                f"node {self.name}: expected an input with {min(layers)} to {max(layers)} axes, "
                f"got {rank}"
            )
        return layers[rank]

    def parameters(self, *names: str, required: int, ndim: int = 1) -> dict[str, Array]:
        """The inputs behind x by the names of the state; the first `required` must be there."""
        given = [*self.proto.input[1:], *("",) * len(names)]
        found = {}
        for index, (name, source) in enumerate(zip(names, given, strict=False)):
            where = f"node {self.name}, {name}"
            if source in self.constants:
                found[name] = tensor_array(where, self.constants[source], self.folder)
                if found[name].ndim != ndim:
                    raise ValueError(
                        f"{where}: expected {ndim} axes, got shape {found[name].shape}"
                    )
            elif source or index < required:
                raise ValueError(f"{where}: expected a constant, got {source or None!r}")
        return found

    def filled(self, layer: Layer, state: dict[str, Array], training: bool = False) -> Layer:
        """The layer with these parameters."""
        try:
            layer.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"node {self.name}, {error}") from error
        return layer.train(training)


def _dtype(state: dict[str, Array]) -> Any:
    return np.result_type(*state.values())


def _batch_norm(node: _Node) -> Layer:
    state = node.parameters("weight", "bias", "running_mean", "running_var", required=4)
    layer = node.kind(BATCH_NORM)(
        state["weight"].size,
        node.eps,
        complement(node.attribute("momentum", 0.9)),
        dtype=_dtype(state),
    )
    training = trains(
        node.opset,
        len(node.proto.output),
        node.attribute("training_mode", 0),
        node.attribute("is_test", 0),
    )
    return node.filled(layer, state | {"num_batches_tracked": np.zeros((), np.int64)}, training)


def _instance_norm(node: _Node) -> Layer:
    state = node.parameters("weight", "bias", required=2)
    layer = node.kind(INSTANCE_NORM)(
        state["weight"].size, node.eps, affine=True, dtype=_dtype(state)
    )
    return node.filled(layer, state)


def _group_norm(node: _Node) -> Layer:
    state = node.parameters("weight", "bias", required=2)
    groups, channels = node.attribute("num_groups", 1), state["weight"].size
    if node.opset < 21:
        length = node.shape()[1]
        if length is None:
            raise ValueError(f"node {node.name}: expected a known number of channels, got None")
        channels = length
        state = {
            name: per_channel(f"node {node.name}, {name}", values, groups, channels)
            for name, values in state.items()
        }
    layer = GroupNorm(groups, channels, node.eps, dtype=_dtype(state))
    return node.filled(layer, state)


def _normalized(node: _Node) -> int:
    """The number of normalized axes."""
    axis: int = node.attribute("axis", -1)
    return -axis if axis < 0 else len(node.shape()) - axis


def _layer_norm(node: _Node) -> Layer:
    state = node.parameters("weight", "bias", required=1, ndim=_normalized(node))
    shape = state["weight"].shape
    return node.filled(LayerNorm(shape, node.eps, bias="bias" in state, dtype=_dtype(state)), state)


def _rms_norm(node: _Node) -> Layer:
    state = node.parameters("weight", required=1, ndim=_normalized(node))
    return node.filled(RMSNorm(state["weight"].shape, node.eps, dtype=_dtype(state)), state)


_LAYERS: dict[str, Callable[[_Node], Layer]] = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
}
