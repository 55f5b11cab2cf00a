"""normcore inside PyTorch models: modules, functions, and `convert` for models that exist.

`BatchNorm1d` to `BatchNorm3d`, `LayerNorm`, `RMSNorm`, `GroupNorm`, `InstanceNorm1d` to
`InstanceNorm3d` are subclasses of those of `torch.nn`, with their arguments, state dicts and
`repr`, plus ``activation`` and ``forward(x, residual)``; `BatchRenorm1d` to `BatchRenorm3d` and
`SyncBatchNorm` (of `torch.distributed`, on the CPU) are what PyTorch has not. `batch_norm`,
`layer_norm`, `rms_norm`, `group_norm`, `instance_norm` and `batch_renorm` are the same as functions
with the signatures of `torch.nn.functional`. `convert` swaps the norms of a model in place;
`revert` swaps them back.

Tensors are on the CPU, float32, float64, float16 or bfloat16 (for which ml_dtypes is needed), in
any memory layout. They are read where they lie, and results lie like the input: nothing is
copied. All of it is differentiable, twice too, by the formulas of PyTorch; `SyncBatchNorm` once.
"""

from ..extras import extra

with extra("torch"):
    import torch  # noqa: F401  # asked for here, so that its absence is told in our words

from .batch import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
)
from .conversion import convert
from .functional import batch_norm, batch_renorm, group_norm, instance_norm, layer_norm, rms_norm
from .instance import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from .samplewise import GroupNorm, LayerNorm, LayerNorm2d, RMSNorm, RMSNorm2d
from .swap import revert
from .synchronized import SyncBatchNorm

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm2d",
    "RMSNorm",
    "RMSNorm2d",
    "SyncBatchNorm",
    "batch_norm",
    "batch_renorm",
    "convert",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "revert",
    "rms_norm",
]
