"""Normalization without state: PyTorch's signatures, with ``axis`` and ``out``.

`batch_norm`, `layer_norm`, `rms_norm`, `group_norm` and `instance_norm` are those of
`torch.nn.functional`; `batch_renorm` is batch renormalization. Each has the two halves that a
training loop needs, ``<name>_forward`` (y and the statistics) and ``<name>_backward`` (the
gradients). `add_layer_norm` and `add_rms_norm` add before they normalize, and return y and the
sum. `ghost_batch_norm_forward` normalizes a few samples at a time; `batch_norm_backward_reduce` and
`batch_norm_backward_apply` are for batches that come in parts. x may lie in memory in any way;
channels-first and channels-last arrays are read without a copy, whatever `axis` is. Layers with
state are in `normcore`.

x is float32, float64, float16 or bfloat16 (of ml_dtypes); weight, bias and running statistics are
float32 or float64, whatever x is. Statistics are float64, from shifted two-pass sums, so that an
offset of the data costs no digits.

``residual`` is added before ``activation`` is applied. Their backward is a half of its own:
``<name>_activation_backward`` makes of dy the gradient before the activation, which is that of
residual and what ``<name>_backward`` takes as dy. ``mask`` is False at padded positions: they are
not counted and get no gradient.
"""

from .add_norm import (
    add_layer_norm,
    add_layer_norm_backward,
    add_layer_norm_forward,
    add_rms_norm,
    add_rms_norm_backward,
    add_rms_norm_forward,
)
from .batch import batch_norm, batch_norm_forward
from .batch_backward import batch_norm_activation_backward, batch_norm_backward
from .batch_renorm import (
    Renormalized,
    batch_renorm,
    batch_renorm_backward,
    batch_renorm_forward,
    renorm_affine,
)
from .ghost import (
    ghost_batch_norm_activation_backward,
    ghost_batch_norm_backward,
    ghost_batch_norm_forward,
)
from .gradients import Gradients, RMSGradients
from .group_norm import (
    group_norm,
    group_norm_activation_backward,
    group_norm_backward,
    group_norm_forward,
)
from .instance_norm import (
    instance_norm,
    instance_norm_activation_backward,
    instance_norm_backward,
    instance_norm_forward,
)
from .layer_norm import (
    layer_norm,
    layer_norm_activation_backward,
    layer_norm_backward,
    layer_norm_forward,
)
from .rms_norm import rms_norm, rms_norm_activation_backward, rms_norm_backward, rms_norm_forward
from .synchronized import GradientSums, batch_norm_backward_apply, batch_norm_backward_reduce

__all__ = [
    "GradientSums",
    "Gradients",
    "RMSGradients",
    "Renormalized",
    "add_layer_norm",
    "add_layer_norm_backward",
    "add_layer_norm_forward",
    "add_rms_norm",
    "add_rms_norm_backward",
    "add_rms_norm_forward",
    "batch_norm",
    "batch_norm_activation_backward",
    "batch_norm_backward",
    "batch_norm_backward_apply",
    "batch_norm_backward_reduce",
    "batch_norm_forward",
    "batch_renorm",
    "batch_renorm_backward",
    "batch_renorm_forward",
    "ghost_batch_norm_activation_backward",
    "ghost_batch_norm_backward",
    "ghost_batch_norm_forward",
    "group_norm",
    "group_norm_activation_backward",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_activation_backward",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_activation_backward",
    "layer_norm_backward",
    "layer_norm_forward",
    "renorm_affine",
    "rms_norm",
    "rms_norm_activation_backward",
    "rms_norm_backward",
    "rms_norm_forward",
]
