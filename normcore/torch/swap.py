"""Modules change their class in place, and change it back.

Parameters, buffers, hooks, the training mode and every reference to the module stay what and where
they are; only what computes is another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .tensors import HELD

_BEFORE = "_normcore_before"


class _Before(NamedTuple):
    """What a module was: in its own dict, so that it survives copying and pickling."""

    kind: type[torch.nn.Module]
    attributes: dict[str, Any]
    """Those of the names that were set; a name that is missing was not there."""
    names: tuple[str, ...]
    """Of the attributes that the other class needed."""


def swap(module: torch.nn.Module, kind: type[torch.nn.Module], **attributes: Any) -> None:
    """Make a module one of another class, with these attributes."""
    own = module.__dict__
    before = own.get(_BEFORE, _Before(type(module), {}, ()))
    added = tuple(name for name in attributes if name not in before.names)
    kept = {name: own[name] for name in added if name in own}
    own[_BEFORE] = _Before(before.kind, {**before.attributes, **kept}, (*before.names, *added))
    own.pop(HELD, None)
    own.update(attributes)
    module.__class__ = kind


def revert(model: torch.nn.Module) -> torch.nn.Module:
    """Undo `convert` and `SyncBatchNorm.convert_sync_batchnorm`, in place.

    Parameters
    ----------
    model : torch.nn.Module
        Its modules that were swapped become what they were; parameters and buffers stay the same
        objects, with the values that they have now. Modules that were made as modules of
        `normcore.torch` stay.

    Returns
    -------
    torch.nn.Module
        The same object.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import convert, revert
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    >>> type(revert(convert(model))[1])
    <class 'torch.nn.modules.normalization.LayerNorm'>
    """
    for module in model.modules():
        own = module.__dict__
        before = own.pop(_BEFORE, None)
        if before is None:
            continue
        own.pop(HELD, None)
        for name in before.names:
            del own[name]
        own.update(before.attributes)
        module.__class__ = before.kind
    return model
