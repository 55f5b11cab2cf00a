"""What of a case is verified and timed: one kernel of the table, or two that belong together."""

from __future__ import annotations

from dataclasses import dataclass

from normcore.kernels.table import KERNELS, Kernel

from bench.cases import Case
from bench.layout import layout

KERNEL = {(kernel.family, kernel.name): kernel for kernel in KERNELS}
BATCH_PASSES = ("moments", "apply", "forward", "reduce_grads", "apply_grads", "backward")


@dataclass(frozen=True, slots=True)
class Task:
    """One computation of a case, with the array traffic that it cannot avoid."""

    name: str
    """Of the pass, or "forward" and "backward" where those are made of others."""
    kernels: tuple[Kernel, ...]
    """Run one after another; the g of `activation_grads` is the next one's dy."""
    outputs: tuple[str, ...]
    """What comes out, by the table's names."""
    reads: int
    writes: int


def task_of(kernel: Kernel) -> Task:
    """A plain kernel as a task."""
    return Task(kernel.name, (kernel,), kernel.outputs, kernel.reads, kernel.writes)


def tasks_of(case: Case) -> tuple[Task, ...]:
    """The tasks of a case, in the table's order."""
    family = layout(case).family
    if case.fused:
        return _fused_forward(case, family), _fused_backward(case, family)
    if case.layer != "batch":
        names: tuple[str, ...] = ("forward", "backward")
    else:
        names = BATCH_PASSES if case.every else ("apply", "forward", "backward")
    return tuple(task_of(KERNEL[family, name]) for name in names)


def _fused_forward(case: Case, family: str) -> Task:
    kernel = KERNEL[family, "add_forward" if case.addend else "forward"]
    return Task("forward", (kernel,), kernel.outputs, kernel.reads + case.residual, kernel.writes)


def _fused_backward(case: Case, family: str) -> Task:
    kernel = KERNEL[family, "backward"]
    kernels, outputs = (kernel,), kernel.outputs
    if case.activation is not None:
        kernels = (KERNEL[family, "activation_grads"], kernel)
        # The gradient before the activation is also the residual's.
        outputs = ("g", *outputs) if case.residual else outputs
    return Task(
        "backward",
        kernels,
        outputs,
        kernel.reads + case.residual + case.addend,
        kernel.writes + ("g" in outputs),
    )
