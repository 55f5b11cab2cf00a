"""Which modules are norms that normcore computes: `convert`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .batch import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .instance import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from .samplewise import GroupNorm, LayerNorm, LayerNorm2d, RMSNorm, RMSNorm2d
from .swap import swap
from .synchronized import SyncBatchNorm

_OWN: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    nn.GroupNorm: GroupNorm,
    nn.LayerNorm: LayerNorm,
    nn.RMSNorm: RMSNorm,
}

# By name, so that nobody imports timm or transformers for it. Only classes that were read: a
# GemmaRMSNorm, for one, multiplies by 1 + weight.
_TIMM: dict[str, type[nn.Module]] = {
    "timm.layers.norm.GroupNorm": GroupNorm,
    "timm.layers.norm.GroupNorm1": GroupNorm,
    "timm.layers.norm.LayerNorm": LayerNorm,
    "timm.layers.norm.LayerNormFp32": LayerNorm,
    "timm.layers.norm.LayerNorm2d": LayerNorm2d,
    "timm.layers.norm.LayerNorm2dFp32": LayerNorm2d,
    "timm.layers.norm.RmsNorm": RMSNorm,
    "timm.layers.norm.RmsNorm2d": RMSNorm2d,
}
# Their forward is act(drop(norm(x))).
_TIMM_ACTIVATED: dict[str, type[nn.Module]] = {
    "timm.layers.norm_act.BatchNormAct2d": BatchNorm2d,
    "timm.layers.norm_act.GroupNormAct": GroupNorm,
    "timm.layers.norm_act.GroupNorm1Act": GroupNorm,
    "timm.layers.norm_act.LayerNormAct": LayerNorm,
    "timm.layers.norm_act.LayerNormAct2d": LayerNorm2d,
}
_TRANSFORMERS_RMS = {
    f"transformers.models.{folder}.modeling_{folder}.{name}"
    for folder, name in (
        ("llama", "LlamaRMSNorm"),
        ("mistral", "MistralRMSNorm"),
        ("mixtral", "MixtralRMSNorm"),
        ("phi3", "Phi3RMSNorm"),
        ("qwen2", "Qwen2RMSNorm"),
        ("qwen3", "Qwen3RMSNorm"),
        ("t5", "T5LayerNorm"),
    )
}


def convert(
    model: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]] | None = None
) -> nn.Module:
    """Let normcore compute the norms of a model: its modules are swapped in place.

    The modules stay the same objects with the same parameters, buffers and hooks; only their class
    changes. So the state dict, the optimizer and whoever refers to a module need no change.

    Parameters
    ----------
    model : torch.nn.Module
        Swapped are, at any depth: the norms of `torch.nn` (SyncBatchNorm too), the norms of timm,
        with an activation where they have one that normcore has, and the RMS norms of Llama,
        Mistral, Mixtral, Phi-3, Qwen 2 and 3 and T5 of transformers. Others stay, among them
        subclasses of these.
    classes : mapping, optional
        Further classes and what they become, for those that compute the same from attributes of
        the same names: ``{MyLayerNorm: normcore.torch.LayerNorm}``.

    Returns
    -------
    torch.nn.Module
        The same object.

    Raises
    ------
    TypeError
        If a class in `classes` is no module.

    Examples
    --------
    >>> import torch
    >>> from normcore.torch import convert
    >>> convert(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))[1]
    BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    own = dict(_OWN)
    for theirs, ours in (classes or {}).items():
        for kind in (theirs, ours):
            if not isinstance(kind, type) or not issubclass(kind, nn.Module):
                raise TypeError(f"classes: expected subclasses of torch.nn.Module, got {kind!r}")
        own[theirs] = ours
    for module in model.modules():
        kind = type(module)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind in own:
            swap(module, own[kind])
        elif name in _TIMM:
            swap(module, _TIMM[name])
        elif name in _TIMM_ACTIVATED:
            _swap_activated(module, _TIMM_ACTIVATED[name])
        elif name in _TRANSFORMERS_RMS:
            shape = tuple(module.weight.shape)
            swap(module, RMSNorm, normalized_shape=shape, eps=module.variance_epsilon)
    return model


def _swap_activated(module: Any, kind: type[nn.Module]) -> None:
    """Swap a norm that has modules `drop` and `act`, if drop does nothing and act is known."""
    act = module.act
    names = {
        nn.Identity: None,
        nn.ReLU: "relu",
        nn.ReLU6: "relu6",
        nn.SiLU: "silu",
        nn.GELU: "gelu",
        nn.LeakyReLU: "leaky_relu",
    }
    exact = getattr(act, "approximate", "none") == "none"
    usual = getattr(act, "negative_slope", 0.01) == 0.01
    if type(module.drop) is nn.Identity and type(act) in names and exact and usual:
        swap(module, kind, activation=names[type(act)])
