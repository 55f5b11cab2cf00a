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


def state(module: torch.nn.Module) -> tuple[Tensor | None, ...]:
    """(weight, bias, running mean, running variance, count) of a module with running statistics.

    `module.weight` costs 0.6 us, because `torch.nn.Module` only finds it when Python has not.
    """
    own, buffers = module._parameters, module._buffers
    try:
        return (
            *(own["weight"], own["bias"]),
            *(buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]),
        )
    except KeyError:  # an attribute, as torch.nn.utils.prune leaves it
        return (
            *(module.weight, module.bias),
            *(module.running_mean, module.running_var, module.num_batches_tracked),
        )


def affine(module: torch.nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """(weight, bias) of a module without running statistics."""
    own = module._parameters
    try:
        return own["weight"], own["bias"]
    except KeyError:
        return module.weight, module.bias
