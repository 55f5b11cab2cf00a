"""The peer that everybody can write: the textbook formulas in NumPy and the array's own float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from bench.cases import Case
from bench.engines import Call
from bench.problem import EPS, Problem
from bench.tasks import Task

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Axes:
    """How a case's layer reads in NumPy: a shape, and what is summed over."""

    shape: tuple[int, ...]
    """That of the case, the channel axis of group norm in two."""
    summed: tuple[int, ...]
    """Those of one statistic."""
    weighted: tuple[int, ...]
    """Those of weight and bias."""

    @property
    def statistic(self) -> tuple[int, ...]:
        return tuple(1 if i in self.summed else size for i, size in enumerate(self.shape))

    @property
    def parameter(self) -> tuple[int, ...]:
        return tuple(size if i in self.weighted else 1 for i, size in enumerate(self.shape))

    @property
    def unweighted(self) -> tuple[int, ...]:
        return tuple(i for i in range(len(self.shape)) if i not in self.weighted)


def axes_of(case: Case) -> Axes:
    """The textbook's axes of a case."""
    shape, axis = case.shape, case.axis
    if case.layer in ("layer", "rms"):
        return Axes(shape, (axis,), (axis,))
    if case.layer == "batch":
        return Axes(shape, tuple(i for i in range(len(shape)) if i != axis), (axis,))
    groups = case.groups or case.channels
    split = (*shape[:axis], groups, case.channels // groups, *shape[axis + 1 :])
    summed = tuple(i for i in range(1, len(split)) if i != axis)
    return Axes(split, summed, (axis, axis + 1))


class Textbook:
    """NumPy, in float32 and without fusions: it has no arithmetic for bfloat16."""

    name = "textbook"
    title = "NumPy textbook"
    ours = False
    instruction_set = ""

    def __init__(self, threads: int) -> None:
        """NumPy computes this on one thread, however many there are."""

    def call(self, problem: Problem, task: Task) -> Call | None:
        if problem.case.dtype != "float32" or problem.case.fused:
            return None
        axes = axes_of(problem.case)
        x, dy, out = (
            array.reshape(axes.shape) for array in (problem.x, problem.dy, problem.stream())
        )
        given = problem.arguments
        float32 = {
            name: values.astype(np.float32)
            for name, values in given.items()
            if isinstance(values, np.ndarray) and values.size < x.size
        }
        weight = float32["weight"].reshape(axes.parameter)
        bias = float32["bias"].reshape(axes.parameter) if "bias" in float32 else None
        mean, var, rstd, sum_dy, sum_dy_xmu = (
            float32[name].reshape(axes.statistic) if name in float32 else None
            for name in ("mean", "var", "rstd", "sum_dy", "sum_dy_xmu")
        )
        centred = problem.centred
        count = np.float32(prod(axes.shape[i] for i in axes.summed))
        [kernel] = task.kernels
        outputs = {
            name: problem.stream() if values.size == x.size else np.empty(values.size, np.float32)
            for name, values in problem.outputs(kernel).items()
            if values is not None
        }

        def normalized(mean: Any, var: Array) -> None:
            if mean is None:
                np.multiply(x, 1 / np.sqrt(var + np.float32(EPS)), out=out)
                np.multiply(out, weight, out=out)
                return
            np.subtract(x, mean, out=out)
            scale = 1 / np.sqrt(var + np.float32(EPS))
            if problem.layout.by_channel:
                np.multiply(out, weight * scale, out=out)
            else:
                np.multiply(out, scale, out=out)
                np.multiply(out, weight, out=out)
            np.add(out, bias, out=out)

        def moments() -> None:
            # One cell is one run of s elements in nchw, one channel in nc.
            cells = problem.x.reshape(problem.layout.sizes)
            cell_axis = 2 if problem.family == "nchw" else 1
            outputs["mean"][:] = cells.mean(cell_axis).reshape(-1)
            outputs["m2"][:] = cells.var(cell_axis).reshape(-1) * cells.shape[cell_axis]

        def apply() -> None:
            normalized(mean, var)

        def forward() -> None:
            if centred:
                new_mean = x.mean(axes.summed, keepdims=True)
                new_var = x.var(axes.summed, keepdims=True)
                outputs["mean"][:] = new_mean.reshape(-1)
            else:
                new_mean = None
                new_var = np.square(x).mean(axes.summed, keepdims=True)
            normalized(new_mean, new_var)
            if "var" in outputs:
                outputs["var"][:] = new_var.reshape(-1)
            outputs["rstd"][:] = (1 / np.sqrt(new_var + np.float32(EPS))).reshape(-1)

        def reduce_grads() -> None:
            outputs["sum_dy"][:] = dy.sum(axes.summed)
            outputs["sum_dy_xmu"][:] = (dy * (x - mean)).sum(axes.summed)

        def gradient(x_hat: Array, sum_dy: Array, sum_dy_xhat: Array) -> None:
            np.multiply(x_hat, sum_dy_xhat / count, out=x_hat)
            np.subtract(dy, sum_dy / count, out=out)
            np.subtract(out, x_hat, out=out)
            np.multiply(out, weight * rstd, out=out)

        def apply_grads() -> None:
            gradient((x - mean) * rstd, sum_dy, sum_dy_xmu * rstd)

        def backward() -> None:
            x_hat = x - mean if centred else x.copy()
            x_hat *= rstd
            if problem.layout.by_channel:
                dbias = dy.sum(axes.summed, keepdims=True)
                dweight = (dy * x_hat).sum(axes.summed, keepdims=True)
                gradient(x_hat, dbias, dweight)
            else:
                dbias = dy.sum(axes.unweighted)
                dweight = (dy * x_hat).sum(axes.unweighted)
                sample_gradient(x_hat)
            outputs["dbias"][:] = dbias.reshape(-1)
            outputs["dweight"][:] = dweight.reshape(-1)

        def sample_gradient(x_hat: Array) -> None:
            np.multiply(dy, weight, out=out)
            along = (out * x_hat).mean(axes.summed, keepdims=True)
            if centred:
                np.subtract(out, out.mean(axes.summed, keepdims=True), out=out)
            np.multiply(x_hat, along, out=x_hat)
            np.subtract(out, x_hat, out=out)
            np.multiply(out, rstd, out=out)

        passes: tuple[Callable[[], None], ...] = (
            *(moments, apply, forward, reduce_grads, apply_grads, backward),
        )
        return Call({found.__name__: found for found in passes}[task.name], outputs)
