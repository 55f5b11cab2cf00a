"""State dicts of several layers in one, with PyTorch's names; arrays as files take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import check
from ..layer import Layer

Array = np.ndarray[Any, Any]


def state_dict(layers: Mapping[str, Layer]) -> dict[str, Array]:
    """Join the states of layers as PyTorch joins those of a module's children.

    Parameters
    ----------
    layers : mapping of str to Layer
        Layers by the names that their modules have, as ``layer1.0.bn1``.

    Returns
    -------
    dict of str to ndarray
        Copies, as ``layer1.0.bn1.weight``. To load them into a PyTorch model, make tensors of them:
        ``{key: torch.from_numpy(values) for key, values in state.items()}``.

    Raises
    ------
    TypeError
        For what is no layer.

    Examples
    --------
    >>> import normcore as nc
    >>> from normcore import weights
    >>> list(weights.state_dict({"norm1": nc.LayerNorm(4), "norm2": nc.RMSNorm(4)}))
    ['norm1.weight', 'norm1.bias', 'norm2.weight']
    """
    return {
        f"{name}.{key}" if name else key: values
        for name, layer in layers.items()
        for key, values in _layer(name, layer).state_dict().items()
    }


def load_state_dict(layers: Mapping[str, Layer], state: Mapping[str, Any]) -> list[str]:
    """Copy what belongs to the layers from the state dict of a whole model; all or nothing.

    Parameters
    ----------
    layers : mapping of str to Layer
        Layers by the names that their modules have, as ``layer1.0.bn1``.
    state : mapping of str to array_like
        Of a PyTorch model, or from a file. Arrays or tensors of any floating-point type, bfloat16
        too. Every array that a layer has must be there, with its shape.

    Returns
    -------
    list of str
        The keys that belong to no layer.

    Raises
    ------
    TypeError, ValueError
        As in `normcore.BatchNorm2d.load_state_dict`, with the name of the layer. All layers are
        then as they were.

    Examples
    --------
    >>> import numpy as np
    >>> import normcore as nc
    >>> from normcore import weights
    >>> ln = nc.LayerNorm(2)
    >>> state = {"ln.weight": [1.0, 2.0], "ln.bias": [3.0, 4.0], "head.weight": np.eye(2)}
    >>> weights.load_state_dict({"ln": ln}, state)
    ['head.weight']
    >>> ln.weight
    array([1., 2.], dtype=float32)
    """
    parts: dict[str, dict[str, Any]] = {name: {} for name in layers}
    others = []
    for key, values in state.items():
        name, _, entry = key.rpartition(".")
        if name in parts:
            parts[name][entry] = values
        else:
            others.append(key)
    for name, part in parts.items():
        try:
            _layer(name, layers[name]).matched(part)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    for name, part in parts.items():
        layers[name].load_state_dict(part)
    return others


def _layer(name: str, layer: Any) -> Layer:
    if not isinstance(layer, Layer):
        raise TypeError(f"{name}: expected a layer of normcore, got {type(layer).__name__}")
    return layer


def arrays_to_store(state: Mapping[str, Any], bfloat16: bool) -> dict[str, Array]:
    """A state dict as files take it: C-contiguous arrays of numbers in native byte order.

    `bfloat16` says whether the file can hold it; else it becomes float32.
    """
    found = {}
    for name, values in state.items():
        if not isinstance(name, str):
            raise TypeError(f"state: expected names of type str, got {name!r}")
        kept = bfloat16 and isinstance(values, np.ndarray) and values.dtype.name == "bfloat16"
        array = values if kept else check.stored(name, values)
        if not kept and array.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
        found[name] = np.require(array, array.dtype.newbyteorder("="), ["C", "A"])
    return found
