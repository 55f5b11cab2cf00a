"""The peer PyTorch, eager, on the same memory and in its own layout.

Batch norm is ATen's with out=. Layer, RMS, group and instance norm have no out= that does not
copy: they allocate their results, and their backward is autograd's. Fusions are compositions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from bench.engines import Call
from bench.problem import EPS, Problem
from bench.tasks import Task

Array = np.ndarray[Any, Any]


class Torch:
    """PyTorch eager."""

    name = "torch"
    title = "PyTorch eager"
    ours = False

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        self.instruction_set = torch.backends.cpu.get_cpu_capability()

    def call(self, problem: Problem, task: Task) -> Call | None:
        if problem.case.layer == "batch" and not problem.case.fused:
            find = getattr(self, f"_batch_{task.name}", None)
            return None if find is None else Call(*find(problem))
        return (self._forward if task.name == "forward" else self._backward)(problem)

    # Batch norm.

    def _batch_forward(self, problem: Problem) -> tuple[Callable[[], object], dict[str, Array]]:
        weight, bias, mean, rstd = self._vectors(problem, "weight", "bias", "mean", "rstd")
        run = partial(
            self.torch.ops.aten.native_batch_norm.out,
            *(self._tensor(problem, problem.x), weight, bias, None, None, True, 0.1, EPS),
            out=self._tensor(problem, problem.stream()),
            save_mean=mean,
            save_invstd=rstd,
        )
        found = {"y": problem.stream(), "mean": mean.numpy(), "rstd": rstd.numpy()}
        return self._without_autograd(run), found

    def _batch_apply(self, problem: Problem) -> tuple[Callable[[], object], dict[str, Array]]:
        weight, bias, mean, var = self._vectors(problem, "weight", "bias", "mean", "var")
        run = partial(
            self.torch.ops.aten.native_batch_norm.out,
            *(self._tensor(problem, problem.x), weight, bias, mean, var, False, 0.1, EPS),
            out=self._tensor(problem, problem.stream()),
            save_mean=self.torch.empty(0),
            save_invstd=self.torch.empty(0),
        )
        return self._without_autograd(run), {"y": problem.stream()}

    def _batch_backward(self, problem: Problem) -> tuple[Callable[[], object], dict[str, Array]]:
        weight, mean, rstd = self._vectors(problem, "weight", "mean", "rstd")
        dweight, dbias = (self.torch.empty_like(weight) for _ in range(2))
        x, dy = self._tensor(problem, problem.x), self._tensor(problem, problem.dy)
        run = partial(
            self.torch.ops.aten.native_batch_norm_backward.out,
            *(dy, x, weight, None, None, mean, rstd, True, EPS, [True] * 3),
            out0=self._tensor(problem, problem.stream()),
            out1=dweight,
            out2=dbias,
        )
        found = {"dx": problem.stream(), "dweight": dweight.numpy(), "dbias": dbias.numpy()}
        return self._without_autograd(run), found

    # What allocates.

    def _forward(self, problem: Problem) -> Call:
        x, residual, addend = (
            self._optional(problem, problem.arguments[name]) for name in ("x", "residual", "addend")
        )
        weight, bias = self._parameters(problem)

        def run() -> tuple[Any, Any]:
            total = x if addend is None else x + addend
            return self._composition(problem, total, weight, bias, residual), total

        def read(found: tuple[Any, Any]) -> Mapping[str, Array]:
            y, total = (self._array(problem, tensor) for tensor in found)
            return {"y": y} if addend is None else {"y": y, "total": total}

        return Call(self._without_autograd(run), {}, read)

    def _backward(self, problem: Problem) -> Call:
        given = problem.arguments
        dy, dtotal, residual = (
            self._optional(problem, given[name]) for name in ("dy", "addend", "residual")
        )
        x = self._tensor(problem, problem.x).requires_grad_()
        weight, bias = self._parameters(problem)
        inputs = {"dx": x, "dweight": weight, "dbias": bias, "g": residual}
        inputs = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        for tensor in inputs.values():
            tensor.requires_grad_()
        # Not x itself: a gradient that comes past the norm is added to that of what was added up.
        total = x.view_as(x)
        ends = {self._composition(problem, total, weight, bias, residual): dy}
        if dtotal is not None:
            ends[total] = dtotal
        run = partial(
            self.torch.autograd.grad,
            *(list(ends), list(inputs.values()), list(ends.values())),
            retain_graph=True,
        )

        def read(found: tuple[Any, ...]) -> Mapping[str, Array]:
            return {
                name: tensor.numpy() if tensor.ndim == 1 else self._array(problem, tensor)
                for name, tensor in zip(inputs, found, strict=True)
            }

        return Call(run, {}, read)

    def _composition(self, problem: Problem, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        case, functions = problem.case, self.torch.nn.functional
        normalized = (case.channels,)
        y = {
            "batch": lambda: functions.batch_norm(x, None, None, weight, bias, True, 0.1, EPS),
            "group": lambda: functions.group_norm(x, case.groups, weight, bias, EPS),
            "instance": lambda: functions.instance_norm(x, weight=weight, bias=bias, eps=EPS),
            "layer": lambda: functions.layer_norm(x, normalized, weight, bias, EPS),
            "rms": lambda: functions.rms_norm(x, normalized, weight, EPS),
        }[case.layer]()
        if residual is not None:
            y = y + residual
        return y if case.activation is None else getattr(functions, case.activation)(y)

    def _without_autograd(self, run: Callable[[], object]) -> Callable[[], object]:
        inference_mode = self.torch.inference_mode

        def without_autograd() -> object:
            with inference_mode():
                return run()

        return without_autograd

    # Arrays and tensors.

    @staticmethod
    def _axis(problem: Problem) -> int:
        """Where torch has the channel axis (channels-last is a stride order), or what it norms."""
        return -1 if problem.case.layer in ("layer", "rms") else 1

    def _tensor(self, problem: Problem, array: Array) -> Any:
        moved = np.moveaxis(problem.shaped(array), problem.case.axis, self._axis(problem))
        if array.dtype == ml_dtypes.bfloat16:
            return self.torch.from_numpy(moved.view(np.uint16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(moved)

    def _optional(self, problem: Problem, array: Array | None) -> Any:
        return None if array is None else self._tensor(problem, array)

    def _array(self, problem: Problem, tensor: Any) -> Array:
        tensor = tensor.detach()
        if tensor.dtype == self.torch.bfloat16:
            array = tensor.view(self.torch.uint16).numpy().view(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy()
        return np.moveaxis(array, self._axis(problem), problem.case.axis)

    def _vectors(self, problem: Problem, *names: str) -> list[Any]:
        given = problem.arguments
        return [self.torch.from_numpy(given[name].astype(np.float32)) for name in names]

    def _parameters(self, problem: Problem) -> tuple[Any, Any]:
        names = [n for n in ("weight", "bias") if problem.arguments[n] is not None]
        weight, *bias = self._vectors(problem, *names)
        return weight, bias[0] if bias else None
