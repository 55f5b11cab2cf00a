"""Numba kernel of the running statistics: one blend after a training forward."""

from __future__ import annotations

import math

from .jit import block, small_kernel


@block
def update_channels(running_mean, running_var, mean, var, momentum, correction, skip_nonfinite):
    """Blend every channel, or those with finite statistics."""
    for ch in range(running_mean.size):
        if skip_nonfinite and not (math.isfinite(mean[ch]) and math.isfinite(var[ch])):
            continue
        keep = 1.0 - momentum
        running_mean[ch] = keep * running_mean[ch] + momentum * mean[ch]
        running_var[ch] = keep * running_var[ch] + momentum * (var[ch] * correction)


@small_kernel
def update(
    running_mean, running_var, num_batches_tracked, mean, var, momentum, count, skip_nonfinite
):
    """Set running = (1 - momentum) * running + momentum * new, with the unbiased variance.

    One call into machine code: a Ctrl-C finds the buffers all old or all new.
    """
    correction = count / (count - 1)
    update_channels(running_mean, running_var, mean, var, momentum, correction, skip_nonfinite)
    if num_batches_tracked is not None:
        num_batches_tracked[0] += 1
