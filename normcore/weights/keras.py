"""Keras layers and normcore's: `from_keras`, `to_keras`.

Keras calls the parameters gamma, beta, moving_mean and moving_variance, its momentum is the weight
of the old statistics, its eps is 1e-3 by default, its channels are last, and its moving variance is
made of population variances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import check
from ..batchnorm import BatchNorm
from ..extras import extra
from ..groupnorm import GroupNorm
from ..layer import Layer
from ..layernorm import LayerNorm
from .conventions import BATCH_NORM, complement

Array = np.ndarray[Any, Any]

_NAMES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def _keras() -> Any:
    with extra("keras"):
        import keras
    return keras


def from_keras(layer: Any) -> Layer:
    """Make a layer of a Keras layer, with its parameters, eps, axis and momentum.

    Parameters
    ----------
    layer : keras.layers.BatchNormalization, LayerNormalization or GroupNormalization
        Built.

    Returns
    -------
    Layer
        BatchNorm1d, 2d or 3d as the layer's input has axes, LayerNorm or GroupNorm, in training
        mode, of the layer's dtype (float32 for halves). ``momentum`` is the complement of Keras's.
        The moving variance is kept as it is, so that evaluation is the same; in training Keras
        moves it towards the population variance of a batch of n values per channel, normcore
        towards the unbiased one, n / (n - 1) times as large.

    Raises
    ------
    ImportError
        Without Keras: ``pip install normcore[keras]``.
    TypeError
        For other layers.
    ValueError
        For layers that are not built, and for ``renorm=True`` and ``rms_scaling=True``.
    """
    keras = _keras()
    readers: dict[str, Callable[[Any, dict[str, Array]], Layer]] = {
        "BatchNormalization": _batch_norm,
        "LayerNormalization": _layer_norm,
        "GroupNormalization": _group_norm,
    }
    found = [name for name in readers if isinstance(layer, getattr(keras.layers, name))]
    if not found:
        names = ", ".join(readers)
        raise TypeError(f"layer: expected one of Keras's {names}, got {type(layer).__name__}")
    if not layer.built:
        raise ValueError(f"layer: expected a built one, got {layer.name!r}, which is not")
    values = {
        variable.name: check.stored(variable.name, keras.ops.convert_to_numpy(variable.value))
        for variable in layer.weights
    }
    state = {ours: values[its] for ours, its in _NAMES.items() if its in values}
    return readers[found[0]](layer, state)


def _filled(layer: Layer, state: dict[str, Array]) -> Layer:
    """The layer with these parameters; those that Keras has not stay ones and zeros."""
    layer.load_state_dict(state, strict=False)
    return layer


def _options(layer: Any) -> dict[str, Any]:
    half = layer.variable_dtype in ("float16", "bfloat16")
    return {"eps": float(layer.epsilon), "dtype": "float32" if half else layer.variable_dtype}


def _batch_norm(layer: Any, state: dict[str, Array]) -> Layer:
    if getattr(layer, "renorm", False):
        raise ValueError("layer: expected renorm=False, got renorm=True")
    rank = layer.input_spec.ndim
    if rank not in BATCH_NORM:
        raise ValueError(f"layer: expected one for arrays of 2 to 5 axes, got {rank}")
    found = BATCH_NORM[rank](
        state["running_mean"].size,
        momentum=complement(layer.momentum),
        affine=bool(layer.scale or layer.center),
        axis=layer.axis if layer.axis == -1 else layer.axis % rank,
        **_options(layer),
    )
    return _filled(found, state)


def _layer_norm(layer: Any, state: dict[str, Array]) -> Layer:
    if getattr(layer, "rms_scaling", False):
        raise ValueError("layer: expected rms_scaling=False, got rms_scaling=True")
    axes = tuple(layer.axis)
    if not state:
        raise ValueError(
            "layer: expected one with scale or center, got one without, which does not know the "
            "lengths of its axes"
        )
    shape = next(iter(state.values())).shape
    last = axes == tuple(range(-len(axes), 0))
    found = LayerNorm(shape, axis=None if last else axes, bias=layer.center, **_options(layer))
    return _filled(found, state)


def _group_norm(layer: Any, state: dict[str, Array]) -> Layer:
    rank, [channels] = layer.input_spec.ndim, layer.input_spec.axes.values()
    found = GroupNorm(
        layer.groups,
        channels,
        affine=bool(layer.scale or layer.center),
        axis=layer.axis if layer.axis == -1 else layer.axis % rank,
        **_options(layer),
    )
    return _filled(found, state)


def to_keras(layer: Any, input_shape: tuple[int | None, ...]) -> Any:
    """Make a built Keras layer of a BatchNorm, LayerNorm or GroupNorm.

    Parameters
    ----------
    layer : Layer
        Its axis becomes Keras's as it is: a channels-first layer stays one.
    input_shape : tuple of int or None
        Of what the layer will be given, with None for the samples and other open lengths, for which
        Keras builds it.

    Returns
    -------
    keras.layers.Layer
        BatchNormalization, LayerNormalization or GroupNormalization, with the complement of
        ``momentum``.

    Raises
    ------
    ImportError
        Without Keras: ``pip install normcore[keras]``.
    TypeError
        For other layers.
    ValueError
        For layers that Keras cannot express (an activation, no running statistics, a cumulative
        average) and for an input_shape that is not one of the layer's.
    """
    keras = _keras()
    if getattr(layer, "activation", None) is not None:
        raise ValueError(f"layer: expected no activation, got {layer.activation!r}")
    name, options, lengths = _described(layer)
    rank = len(input_shape)
    for axis, length in lengths.items():
        if not -rank <= axis < rank or input_shape[axis] != length:
            raise ValueError(
                f"input_shape: expected length {length} along axis {axis}, got {input_shape}"
            )
    found = getattr(keras.layers, name)(
        epsilon=layer.eps,
        scale=layer.weight is not None,
        center=layer.bias is not None,
        dtype=layer.dtype.name,
        **options,
    )
    found.build(input_shape)
    state = layer.state_dict()
    named = {variable.name: variable for variable in found.weights}
    found.set_weights([state[ours] for ours, its in _NAMES.items() if its in named])
    return found


def _described(layer: Any) -> tuple[str, dict[str, Any], dict[int, int]]:
    """(Keras's layer, its options, lengths of its axes)."""
    if isinstance(layer, BatchNorm):
        if layer.running_mean is None:
            raise ValueError("layer: expected running statistics, got track_running_stats=False")
        if layer.momentum is None:
            raise ValueError("layer: expected a number as momentum, got None")
        options = {"axis": layer.axis, "momentum": complement(layer.momentum)}
        return "BatchNormalization", options, {layer.axis: layer.num_features}
    if isinstance(layer, GroupNorm):
        options = {"axis": layer.axis, "groups": layer.num_groups}
        return "GroupNormalization", options, {layer.axis: layer.num_channels}
    if isinstance(layer, LayerNorm):
        shape = layer.normalized_shape
        axes = tuple(range(-len(shape), 0)) if layer.axis is None else layer.axis
        if list(axes) != sorted(axes):
            # Keras sorts them, and the parameters' axes with them.
            raise ValueError(f"layer: expected axes in ascending order, got {axes}")
        return "LayerNormalization", {"axis": list(axes)}, dict(zip(axes, shape, strict=True))
    raise TypeError(
        f"layer: expected a BatchNorm, LayerNorm or GroupNorm, got {type(layer).__name__}"
    )
