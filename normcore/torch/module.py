"""What the modules have in common: a fused activation, parameters held as arrays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import check
from .tensors import HELD


class Norm(torch.nn.Module):
    """A module of `torch.nn` that normcore computes; to be mixed in before that.

    Whatever the module has, `convert` may have swapped its class: nothing of it may be in need of
    an `__init__` of ours.
    """

    activation: str | None = None

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        check.activation(activation)
        super().__init__(*args, **kwargs)
        if activation is not None:
            self.activation = activation

    def __getstate__(self) -> dict[str, Any]:
        # Arrays on the memory of tensors would be copied apart from them.
        return {name: values for name, values in self.__dict__.items() if name != HELD}

    def extra_repr(self) -> str:
        """PyTorch's, with the activation."""
        shown: str = super().extra_repr()
        return shown if self.activation is None else f"{shown}, activation={self.activation}"


def named(module: torch.nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of a module.

    `module.weight` costs 0.6 us, because `torch.nn.Module` only finds it when Python has not.
    """
    found = module._parameters.get(name, module)
    if found is module:
        found = module._buffers.get(name, module)
    if found is module:  # an attribute, as torch.nn.utils.prune leaves it
        found = getattr(module, name)
    tensor: Tensor | None = found
    return tensor
