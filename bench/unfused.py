"""A fusion's rival: a backend's plain kernel, with NumPy for the addition and the activation.

As a careful user would write it: every array preallocated, `out=` everywhere, and kept from the
forward whatever saves work in the backward. The error function comes from SciPy, NumPy has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.engines import Call, Normcore
from bench.problem import Problem
from bench.tasks import KERNEL, Task

Array = np.ndarray[Any, Any]
Step = Callable[[], object]


class Unfused:
    """One backend without its fusions."""

    ours = False
    instruction_set = ""

    def __init__(self, engine: Normcore) -> None:
        self.engine = engine
        self.name = f"{engine.name} unfused"
        self.title = f"{engine.name} and NumPy"

    def call(self, problem: Problem, task: Task) -> Call | None:
        if not problem.case.fused:
            return None
        run, outputs = (self._forward if task.name == "forward" else self._backward)(problem)
        return Call(run, {name: array for name, array in outputs.items() if array is not None})

    def _plain(self, problem: Problem, name: str, **given: Any) -> tuple[Step, dict[str, Any]]:
        """A kernel without residual, addend and activation, and its outputs."""
        kernel = KERNEL[problem.family, name]
        outputs = problem.outputs(kernel)
        bare = {"residual": None, "addend": None, "activation": 0}
        taken = problem.given(**bare) | outputs | given
        return self.engine.kernel(kernel, taken), outputs

    def _forward(self, problem: Problem) -> tuple[Step, dict[str, Any]]:
        given, y = problem.arguments, problem.stream()
        if problem.case.addend:
            total = problem.stream("total")
            norm, outputs = self._plain(problem, "forward", x=total)

            def add_and_norm() -> None:
                np.add(given["x"], given["addend"], out=total)
                norm()

            return add_and_norm, outputs | {"total": total}
        norm, outputs = self._plain(problem, "forward")
        activate, _ = ACTIVATIONS[problem.case.activation](y)

        def norm_and_activate() -> None:
            norm()
            if problem.case.residual:
                np.add(y, given["residual"], out=y)
            activate(y)

        return norm_and_activate, outputs

    def _backward(self, problem: Problem) -> tuple[Step, dict[str, Any]]:
        given, dx = problem.arguments, problem.stream()
        if problem.case.addend:
            norm, outputs = self._plain(problem, "backward")

            def grads_and_add() -> None:
                norm()
                np.add(dx, given["addend"], out=dx)

            return grads_and_add, outputs
        g = problem.stream("g") if problem.case.residual else dx
        norm, outputs = self._plain(problem, "backward", dy=g)
        # z, which the forward would have kept.
        z = np.empty_like(dx)
        self._plain(problem, "forward", y=z)[0]()
        if problem.case.residual:
            z += given["residual"]
            outputs["g"] = g
        _, slope = ACTIVATIONS[problem.case.activation](z)

        def slope_and_grads() -> None:
            slope(z, given["dy"], g)
            norm()

        return slope_and_grads, outputs


def _relu(like: Array) -> tuple[Callable[[Array], object], Callable[[Array, Array, Array], object]]:
    positive = np.empty(like.shape, bool)

    def activate(y: Array) -> None:
        np.maximum(y, np.float32(0), out=y)

    def slope(z: Array, dy: Array, g: Array) -> None:
        np.greater(z, 0, out=positive)
        np.multiply(dy, positive, out=g)

    return activate, slope


def _gelu(like: Array) -> tuple[Callable[[Array], object], Callable[[Array, Array, Array], object]]:
    from scipy.special import erf

    share, density = np.empty_like(like), np.empty_like(like)

    def cumulative(z: Array) -> None:
        np.multiply(z, np.float32(math.sqrt(0.5)), out=share)
        erf(share, out=share)
        np.add(share, np.float32(1), out=share)
        np.multiply(share, np.float32(0.5), out=share)

    def activate(y: Array) -> None:
        cumulative(y)
        np.multiply(y, share, out=y)

    def slope(z: Array, dy: Array, g: Array) -> None:
        cumulative(z)
        np.square(z, out=density)
        np.multiply(density, np.float32(-0.5), out=density)
        np.exp(density, out=density)
        np.multiply(density, z, out=density)
        np.multiply(density, np.float32(1 / math.sqrt(2 * math.pi)), out=density)
        np.add(share, density, out=share)
        np.multiply(dy, share, out=g)

    return activate, slope


ACTIVATIONS: dict[str | None, Any] = {"relu": _relu, "gelu": _gelu}
"""Name -> what makes (activate in place, g = dy * slope at z), with the arrays that they need."""
