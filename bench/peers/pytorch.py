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
Composition = Callable[[Any, Any, Any, Any, Any], tuple[Any, ...]]


class Torch:
    """PyTorch eager."""

    name = "torch"
    title = "PyTorch eager"
    ours = False

    def __init__(self, threads: int) -> None:
        import torch

        self.torch, self.threads = torch, threads
        self.instruction_set = torch.backends.cpu.get_cpu_capability()

    def call(self, problem: Problem, task: Task) -> Call | None:
        # PyTorch's count is the whole process's.
        self.torch.set_num_threads(self.threads)
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
            save_mean=mean.new_empty(0),
            save_invstd=mean.new_empty(0),
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
        given = problem.arguments
        x, residual, addend = (
            self._optional(problem, given[name]) for name in ("x", "residual", "addend")
        )
        weight, bias = self._parameters(problem)
        run = partial(self._made(self._composition(problem)), x, weight, bias, residual, addend)

        def read(found: tuple[Any, ...]) -> Mapping[str, Array]:
            arrays = (self._array(problem, tensor) for tensor in found)
            return dict(zip(("y", "total"), arrays, strict=False))

        return Call(self._without_autograd(run), {}, read)

    def _backward(self, problem: Problem) -> Call:
        given = problem.arguments
        dy, dtotal, residual, addend = (
            self._optional(problem, given[name]) for name in ("dy", "addend", "residual", "addend")
        )
        x = self._tensor(problem, problem.x)
        if addend is not None:
            # x is the sum already; a gradient that comes past the norm is added to its own.
            addend = self.torch.zeros_like(x)
        weight, bias = self._parameters(problem)
        inputs = {"dx": x, "dweight": weight, "dbias": bias, "g": residual}
        inputs = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        for tensor in inputs.values():
            tensor.requires_grad_()
        ends = self._made(self._composition(problem))(x, weight, bias, residual, addend)
        run = partial(
            self.torch.autograd.grad,
            *(ends, list(inputs.values()), [dy, dtotal][: len(ends)]),
            retain_graph=True,
        )

        def read(found: tuple[Any, ...]) -> Mapping[str, Array]:
            return {
                name: tensor.numpy() if tensor.ndim == 1 else self._array(problem, tensor)
                for name, tensor in zip(inputs, found, strict=True)
            }

        return Call(run, {}, read)

    def _made(self, composition: Composition) -> Composition:
        """What is run of a composition: eager runs it as it is."""
        return composition

    def _composition(self, problem: Problem) -> Composition:
        """(x, weight, bias, residual, addend) -> y, and the sum where there is an addend."""
        case, functions = problem.case, self.torch.nn.functional
        normalized = (case.channels,)
        norms: dict[str, Callable[[Any, Any, Any], Any]] = {
            "batch": lambda x, w, b: functions.batch_norm(x, None, None, w, b, True, 0.1, EPS),
            "group": lambda x, w, b: functions.group_norm(x, case.groups, w, b, EPS),
            "instance": lambda x, w, b: functions.instance_norm(x, weight=w, bias=b, eps=EPS),
            "layer": lambda x, w, b: functions.layer_norm(x, normalized, w, b, EPS),
            "rms": lambda x, w, b: functions.rms_norm(x, normalized, w, EPS),
        }
        norm = norms[case.layer]
        activate = getattr(functions, case.activation) if case.activation else None

        def composition(
            x: Any, weight: Any, bias: Any, residual: Any, addend: Any
        ) -> tuple[Any, ...]:
            if addend is not None:
                x = x + addend
            y = norm(x, weight, bias)
            if residual is not None:
                y = y + residual
            if activate is not None:
                y = activate(y)
            return (y,) if addend is None else (y, x)

        return composition

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
        given, dtype = problem.arguments, problem.parameter_dtype
        return [self.torch.from_numpy(given[name].astype(dtype)) for name in names]

    def _parameters(self, problem: Problem) -> tuple[Any, Any]:
        names = [n for n in ("weight", "bias") if problem.arguments[n] is not None]
        weight, *bias = self._vectors(problem, *names)
        return weight, bias[0] if bias else None
