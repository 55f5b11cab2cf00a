"""An ONNX node and its initializers of a layer: `node_from_layer`."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto
from onnx.helper import make_node
from onnx.numpy_helper import from_array

from ..batchnorm import BatchNorm
from ..groupnorm import GroupNorm
from ..instancenorm import InstanceNorm
from ..layer import Layer
from ..layernorm import LayerNorm, RMSNorm
from ..weights.conventions import complement

Array = np.ndarray[Any, Any]


def node_from_layer(
    layer: Layer, name: str, x: str = "x", y: str = "y"
) -> tuple[NodeProto, list[TensorProto]]:
    """Make the ONNX node that does in inference what a layer does in evaluation.

    Parameters
    ----------
    layer : Layer
        BatchNorm, LayerNorm, RMSNorm, GroupNorm or InstanceNorm, for channels-first arrays (layer
        and RMS norm: of the last axes) and without activation.
    name : str
        Of the node; its initializers are called ``name.weight`` and so on.
    x, y : str, optional
        Names of its input and output.

    Returns
    -------
    node : NodeProto
        Of opset 15 (batch norm), 17 (layer norm), 21 (group norm), 22 (instance norm) or 23 (RMS
        norm). A ``momentum`` of None, which ONNX has not, is left out: inference does not need it.
    initializers : list of TensorProto
        Parameters that the layer has not are ones and zeros.

    Raises
    ------
    TypeError
        For other layers.
    ValueError
        For layers that no single node stands for.

    Examples
    --------
    >>> import normcore as nc
    >>> import normcore.onnx
    >>> node, initializers = normcore.onnx.node_from_layer(nc.LayerNorm(4), "ln")
    >>> node.op_type, [item.name for item in initializers]
    ('LayerNormalization', ['ln.weight', 'ln.bias'])
    """
    kind, attributes, state = _described(layer)
    activation = getattr(layer, "activation", None)
    if activation is not None:
        raise ValueError(f"layer: expected no activation, got {activation!r}")
    tensors = [from_array(values, f"{name}.{key}") for key, values in state.items()]
    inputs = [x, *(tensor.name for tensor in tensors)]
    return make_node(kind, inputs, [y], name=name, **attributes), tensors


def _described(layer: Layer) -> tuple[str, dict[str, Any], dict[str, Array]]:
    """(operator, attributes, parameters)."""
    if isinstance(layer, BatchNorm):
        _check_axis(layer.axis, 1)
        if layer.running_mean is None or layer.running_var is None:
            raise ValueError("layer: expected running statistics, got track_running_stats=False")
        return (
            "BatchNormalization",
            {"epsilon": layer.eps}
            | ({} if layer.momentum is None else {"momentum": complement(layer.momentum)}),
            _affine(layer, layer.running_mean.shape)
            | {"running_mean": layer.running_mean, "running_var": layer.running_var},
        )
    if isinstance(layer, InstanceNorm):
        _check_axis(layer.axis, 1)
        if layer.running_mean is not None:
            raise ValueError("layer: expected no running statistics, got track_running_stats=True")
        parameters = _affine(layer, (layer.num_features,))
        return "InstanceNormalization", {"epsilon": layer.eps}, parameters
    if isinstance(layer, GroupNorm):
        _check_axis(layer.axis, 1)
        attributes = {"epsilon": layer.eps, "num_groups": layer.num_groups}
        return "GroupNormalization", attributes, _affine(layer, (layer.num_channels,))
    if isinstance(layer, LayerNorm | RMSNorm):
        count = len(layer.normalized_shape)
        _check_axis(layer.axis, None, tuple(range(-count, 0)))
        if layer.eps is None:
            raise ValueError("layer: expected a number as eps, got None")
        parameters = _affine(layer, layer.normalized_shape)
        if layer.bias is None:
            del parameters["bias"]
        kind = "LayerNormalization" if isinstance(layer, LayerNorm) else "RMSNormalization"
        return kind, {"epsilon": layer.eps, "axis": -count}, parameters
    raise TypeError(
        "layer: expected a BatchNorm, LayerNorm, RMSNorm, GroupNorm or InstanceNorm, got "
        f"{type(layer).__name__}"
    )


def _check_axis(axis: Any, *expected: Any) -> None:
    if axis not in expected:
        raise ValueError(f"layer: expected axis={expected[0]}, as ONNX has it, got axis={axis}")


def _affine(layer: Layer, shape: tuple[int, ...]) -> dict[str, Array]:
    return {
        "weight": np.ones(shape, np.float32) if layer.weight is None else layer.weight,
        "bias": np.zeros(shape, np.float32) if layer.bias is None else layer.bias,
    }
