"""The table of kernels: dispatch, tests and benchmarks all read it.

A kernel is a *pass* over a *family* (a canonical memory view) of an array. Every backend offers
each kernel as a function of the same name with the same arguments in the same order: outputs,
saved statistics, inputs, parameters, eps, sizes, threads. This file says what they are; what they
compute is written down once, in `normcore.reference`.

Families and their sizes:

========  =========  ====================  ==================================================
family    sizes      one channel is        serves
========  =========  ====================  ==================================================
nchw      n, c, s    n runs of s elements  channel axis with axes behind it (channels-first)
nc        b, m, c    m elements, c apart   channel axis last (channels-last, (N, C))
running   -          -                     the running statistics, after a training forward
========  =========  ====================  ==================================================

Shapes: x, y, dy, dx hold n*c*s (b*m*c) elements, C-contiguous, one dtype (float32 or float64).
A statistic of a channel has c elements in nchw and b*c in nc; `moments` alone is per cell: n*c in
nchw, b*c in nc. mean, var, rstd, m2, sum_dy, sum_dy_xmu are float64. running_mean, running_var,
weight, bias, dweight, dbias (c elements) are float32 or float64; weight and bias may be None.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZES = {"nchw": ("n", "c", "s"), "nc": ("b", "m", "c"), "running": ()}

_PASSES = {
    "moments": ("mean m2", "x", "", 1, 0),
    "apply": ("y", "x", "mean var weight bias eps", 1, 1),
    "forward": ("y mean var rstd", "x", "weight bias eps", 1, 1),
    "reduce_grads": ("sum_dy sum_dy_xmu", "dy x", "mean", 2, 0),
    "apply_grads": ("dx", "dy x", "mean rstd weight sum_dy sum_dy_xmu count", 2, 1),
    "backward": ("dx dweight dbias", "dy x", "mean rstd weight training", 2, 1),
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
    """Arrays of x's size that must be read at least once."""
    writes: int
    """Arrays of x's size that must be written once."""


def _kernel(family: str, name: str) -> Kernel:
    outputs, inputs, parameters, reads, writes = _PASSES[name]
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
    *(_kernel(family, name) for family in ("nchw", "nc") for name in _PASSES),
    _UPDATE,
)
