"""The table of kernels: dispatch, tests and benchmarks all read it.

A kernel is a *pass* over a *family* (a canonical memory view) of an array. Every backend offers
each kernel as a function of the same name with the same arguments in the same order: outputs,
inputs, saved statistics, parameters, eps, activation, sizes, threads. This file says what they
are; what they compute is written down once, in `normcore.reference`.

Families, their sizes, what one statistic covers and what weight and bias belong to:

========  =======  ==================================  ============  ===============================
family    sizes    statistic                           weight        serves
========  =======  ==================================  ============  ===============================
nchw      n, c, s  d channels: n runs of s each        p; channel i  channel axis with axes behind
                                                       has i % p
nc        b, m, c  d columns of m elements, c apart    c             channel axis last, (N, C)
rows      r, m     a row of m contiguous elements      m             layer norm over trailing axes
cols      b, m, c  a column of m elements, c apart     m             layer norm over other axes
running   -        -                                   -             the running statistics
========  =======  ==================================  ============  ===============================

Sizes that the arrays tell: there are c / d (nc: b * c / d) statistics, so the length of mean says
d, and the length of weight says p. Batch norm is d = 1; instance norm is d = 1 with n = 1 and its
samples' channels counted through (nchw), or with its samples as b (nc); group norm is the same
with groups of d channels.

Shapes: x, y, dy, dx, g, residual, total and addend hold all elements, C-contiguous, in one storage
dtype: float64, float32, float16 or bfloat16 (of ml_dtypes). mean, var, rstd, m2, r, d, sum_dy and
sum_dy_xmu are float64, one per statistic; `moments` alone is per cell (n * c in nchw, b * c in
nc), `reduce_grads` and `apply_grads` know d = 1 only. running_mean, running_var (one per
statistic), weight, bias, dweight and dbias are float32 or float64, whatever x is.

Optional, None where absent: weight, bias, residual, addend, mask. mean may be None in rows and
cols: nothing is centred then (RMS norm).

mask is uint8, 0 where an element does not count. nchw: (k, s), shared by all channels of a plane;
k is n or, with n = 1, the number of samples whose channels are counted through c. Elsewhere every
byte stands for x.size / mask.size adjacent elements: nc (b, m); rows (r, q), q dividing m. cols:
(b, c), whole columns. A statistic of which nothing counts is mean 0, var 0, rstd 0, its y is bias
(before residual and activation), its dx 0, whatever x holds there. dx is 0 where mask is 0.

activation is a number of `ACTIVATIONS`: y = activation(norm(x) + residual). `activation_grads`
gives g, the gradient before the activation, which `backward` takes as its dy; g may be dy.
`activation_backward` is both in one: dx, dweight and dbias come from a g that was never rounded to
the storage dtype. Its g may be None (not wanted) or dy, and is 0 where mask is 0.
Everywhere dx may be dy or x.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZES = {
    "nchw": ("n", "c", "s"),
    "nc": ("b", "m", "c"),
    "rows": ("r", "m"),
    "cols": ("b", "m", "c"),
    "running": (),
}

ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2, "leaky_relu": 3, "silu": 4, "gelu": 5}
"""Name -> the number that kernels take. leaky_relu's slope is 0.01; gelu is the exact one."""

# Pass -> outputs, inputs, saved statistics and parameters, arrays read, arrays written.
_CHANNEL_PASSES = {
    "moments": ("mean m2", "x", "", 1, 0),
    "apply": ("y", "x residual", "mean var weight bias eps activation", 1, 1),
    "forward": ("y mean var rstd", "x residual mask", "weight bias eps activation", 1, 1),
    "renorm": (
        "y mean var rstd r d",
        "x residual mask",
        "running_mean running_var r_max d_max weight bias eps activation",
        1,
        1,
    ),
    "activation_grads": ("g", "dy x residual", "mean rstd weight bias activation", 2, 1),
    "reduce_grads": ("sum_dy sum_dy_xmu", "dy x", "mean", 2, 0),
    "apply_grads": ("dx", "dy x", "mean rstd weight sum_dy sum_dy_xmu count", 2, 1),
    "backward": ("dx dweight dbias", "dy x mask", "mean rstd weight training", 2, 1),
    "activation_backward": (
        "dx dweight dbias g",
        "dy x residual mask",
        "mean rstd weight bias activation training",
        2,
        1,
    ),
}
_LAYER_PASSES = {
    "forward": ("y mean rstd", "x residual mask", "weight bias eps activation", 1, 1),
    "activation_grads": ("g", "dy x residual", "mean rstd weight bias activation", 2, 1),
    "backward": ("dx dweight dbias", "dy x addend mask", "mean rstd weight", 2, 1),
    "activation_backward": (
        "dx dweight dbias g",
        "dy x residual mask",
        "mean rstd weight bias activation",
        2,
        1,
    ),
}
# Add, then normalize: total = x + addend.
_ADD_FORWARD = ("y total mean rstd", "x addend", "weight bias eps", 2, 2)

PASSES = {
    "nchw": _CHANNEL_PASSES,
    "nc": _CHANNEL_PASSES,
    "rows": {**_LAYER_PASSES, "add_forward": _ADD_FORWARD},
    "cols": _LAYER_PASSES,
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: where it lives, what it takes, and the array traffic that it cannot avoid."""

    family: str
    name: str
    """The pass, which is the function's name in the family's module."""
    outputs: tuple[str, ...]
    arguments: tuple[str, ...]
    """All argument names in order."""
    reads: int
    """Arrays of x's size that must be read at least once, without the optional ones."""
    writes: int
    """Arrays of x's size that must be written once."""


def _kernel(family: str, name: str) -> Kernel:
    outputs, inputs, parameters, reads, writes = PASSES[family][name]
    names = (*outputs.split(), *inputs.split(), *parameters.split(), *SIZES[family], "threads")
    return Kernel(family, name, tuple(outputs.split()), names, reads, writes)


_UPDATE = Kernel(
    "running",
    "update",
    ("running_mean", "running_var", "num_batches_tracked"),
    (
        "running_mean",
        "running_var",
        "num_batches_tracked",
        "mean",
        "var",
        "momentum",
        "count",
        "skip_nonfinite",
    ),
    0,
    0,
)

KERNELS: tuple[Kernel, ...] = (
    *(_kernel(family, name) for family, passes in PASSES.items() for name in passes),
    _UPDATE,
)
