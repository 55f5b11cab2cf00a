"""Normalization without state: PyTorch's signatures, with ``axis`` and ``out``.

`batch_norm` is `torch.nn.functional.batch_norm`. `batch_norm_forward` and `batch_norm_backward`
are the two halves that a training loop needs. x may lie in memory in any way; channels-first and
channels-last arrays are read without a copy, whatever `axis` is. Layers with state are in
`normcore`.

Statistics are float64 whatever the dtype of x, from shifted two-pass sums, so that an offset of
the data costs no digits.
"""

from .batch import batch_norm, batch_norm_forward
from .batch_backward import batch_norm_activation_backward, batch_norm_backward
from .batch_renorm import (
    Renormalized,
    batch_renorm,
    batch_renorm_backward,
    batch_renorm_forward,
    renorm_affine,
)
from .gradients import Gradients
from .synchronized import GradientSums, batch_norm_backward_apply, batch_norm_backward_reduce

__all__ = [
    "GradientSums",
    "Gradients",
    "Renormalized",
    "batch_norm",
    "batch_norm_activation_backward",
    "batch_norm_backward",
    "batch_norm_backward_apply",
    "batch_norm_backward_reduce",
    "batch_norm_forward",
    "batch_renorm",
    "batch_renorm_backward",
    "batch_renorm_forward",
    "renorm_affine",
]
