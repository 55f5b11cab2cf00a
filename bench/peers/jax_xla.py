"""The peer JAX: the usual formulas, compiled by XLA for the very shape.

Variances are as Flax takes them by default, E[x^2] - E[x]^2. Results are fresh arrays; there is no
out=. It has the threads that it found when its first array was made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.engines import Call
from bench.peers.textbook import axes_of
from bench.problem import EPS, Problem
from bench.tasks import Task

Formula = Callable[[Any, Any, Any, Any], Any]


class Jax:
    """JAX on the CPU."""

    name = "jax"
    title = "JAX"
    ours = False
    instruction_set = ""

    def __init__(self, threads: int) -> None:
        # XLA asks for nothing else where it makes its pool.
        os.environ.setdefault("PJRT_NPROC", str(threads))
        import jax

        self.jax = jax

    def call(self, problem: Problem, task: Task) -> Call | None:
        case = problem.case
        if case.dtype == "float64" or case.addend:
            return None  # float64 is a switch of the whole process there
        arrays = self._arrays(problem)
        x, weight, bias = arrays["x"], arrays["weight"], arrays.get("bias")
        residual = arrays.get("residual")
        formula = self._formula(problem)
        if task.name == "forward":
            run = self._compiled(formula, x, weight, bias, residual)
            return Call(run, {}, lambda y: {"y": self._array(y)})
        if task.name == "apply":
            applied = self._inference(problem)
            run = self._compiled(applied, x, weight, bias, arrays["mean"], arrays["var"])
            return Call(run, {}, lambda y: {"y": self._array(y)})
        if task.name != "backward":
            return None

        def gradients(dy: Any, *given: Any) -> Any:
            return self.jax.vjp(formula, *given)[1](dy)

        run = self._compiled(gradients, arrays["dy"], x, weight, bias, residual)
        names = ("dx", "dweight", "dbias", "g")

        def read(found: tuple[Any, ...]) -> Mapping[str, np.ndarray[Any, Any]]:
            return {
                name: self._array(array)
                for name, array in zip(names, found, strict=True)
                if array is not None
            }

        return Call(run, {}, read)

    def _formula(self, problem: Problem) -> Formula:
        """(x, weight, bias, residual) -> y, on the textbook's axes."""
        case, axes, jnp = problem.case, axes_of(problem.case), self.jax.numpy
        centred = problem.centred

        def formula(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
            wide = x.astype(jnp.float32)
            mean = wide.mean(axes.summed, keepdims=True) if centred else 0.0
            var = jnp.square(wide).mean(axes.summed, keepdims=True) - mean**2
            y = (wide - mean) * self.jax.lax.rsqrt(var + EPS) * weight
            if bias is not None:
                y = y + bias
            if residual is not None:
                y = y + residual
            if case.activation == "gelu":
                y = self.jax.nn.gelu(y, approximate=False)
            elif case.activation is not None:
                y = getattr(self.jax.nn, case.activation)(y)
            return y.astype(x.dtype)

        return formula

    def _inference(self, problem: Problem) -> Callable[..., Any]:
        def apply(x: Any, weight: Any, bias: Any, mean: Any, var: Any) -> Any:
            scale = self.jax.lax.rsqrt(var + EPS) * weight
            return ((x.astype(scale.dtype) - mean) * scale + bias).astype(x.dtype)

        return apply

    def _compiled(self, function: Callable[..., Any], *given: Any) -> Callable[[], Any]:
        compiled = self.jax.jit(function)
        wait = self.jax.block_until_ready
        return lambda: wait(compiled(*given))

    def _arrays(self, problem: Problem) -> dict[str, Any]:
        axes = axes_of(problem.case)
        shapes = {
            **dict.fromkeys(("x", "dy", "residual"), axes.shape),
            **dict.fromkeys(("weight", "bias"), axes.parameter),
            **dict.fromkeys(("mean", "var"), axes.statistic),
        }
        found = {}
        for name, shape in shapes.items():
            array = problem.arguments.get(name)
            if array is not None:
                small = array.size < problem.x.size
                array = array.astype(np.float32) if small else array
                found[name] = self.jax.device_put(array.reshape(shape))
        return found

    @staticmethod
    def _array(array: Any) -> np.ndarray[Any, Any]:
        return np.asarray(array)
