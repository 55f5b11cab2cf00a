"""Weights from elsewhere and to elsewhere: state dicts of whole models, Keras layers, files.

`state_dict` and `load_state_dict` join the states of several layers under their names, as PyTorch
does for a module's children; `from_keras` and `to_keras` convert layers, with their conventions;
`load_safetensors`, `save_safetensors`, `load_npz` and `save_npz` read and write state dicts.
`normcore.onnx` has the same for ONNX. What these read may come from anywhere: nothing is unpickled,
and nothing is allocated because a file says so.
"""

from .keras import from_keras, to_keras
from .npz import load_npz, save_npz
from .safetensors import load_safetensors, save_safetensors
from .states import load_state_dict, state_dict

__all__ = [
    "from_keras",
    "load_npz",
    "load_safetensors",
    "load_state_dict",
    "save_npz",
    "save_safetensors",
    "state_dict",
    "to_keras",
]
