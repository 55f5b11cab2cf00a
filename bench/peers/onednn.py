"""The peer oneDNN, as PyTorch ships it: batch norm on its opaque tensors.

Such tensors begin and end in oneDNN's own layout, as between two of its convolutions: turning
arrays into them and back is not timed. Backward and inference know float32 alone, and no other
norm is offered on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from bench.engines import Call
from bench.peers.pytorch import Array, Torch
from bench.problem import EPS, Problem
from bench.tasks import Task


class OneDnn(Torch):
    """oneDNN's batch normalization."""

    name = "onednn"
    title = "oneDNN (of PyTorch)"

    def call(self, problem: Problem, task: Task) -> Call | None:
        case = problem.case
        plain = case.layer == "batch" and case.dtype == "float32" and not case.fused
        # Channels-last tensors become plain ones in it, which would be another case.
        if not plain or case.axis != 1 or len(case.shape) != 4:
            return None
        self.torch.set_num_threads(self.threads)
        if task.name == "backward":
            return self._grads(problem)
        if task.name not in ("forward", "apply"):
            return None
        x = self._opaque(problem, problem.x)
        weight, bias, mean, var = self._vectors(problem, "weight", "bias", "mean", "var")
        training = task.name == "forward"
        run = partial(self.torch.native_batch_norm, x, weight, bias, mean, var, training, 0.1, EPS)
        return Call(self._without_autograd(run), {}, partial(self._read, problem, ("y",)))

    def _grads(self, problem: Problem) -> Call:
        x, dy = (self._opaque(problem, array) for array in (problem.x, problem.dy))
        weight, mean, var = self._vectors(problem, "weight", "mean", "var")
        # It takes the variance that its own forward saved, in its own form.
        _, saved_mean, saved_var = self.torch.native_batch_norm(
            x, weight, weight, mean.clone(), var.clone(), True, 0.1, EPS
        )
        run = partial(
            self.torch.ops.aten.native_batch_norm_backward,
            *(dy, x, weight, mean, var, saved_mean, saved_var, True, EPS, [True] * 3),
        )
        names = ("dx", "dweight", "dbias")
        return Call(self._without_autograd(run), {}, partial(self._read, problem, names))

    def _opaque(self, problem: Problem, array: Array) -> Any:
        return self._tensor(problem, array).to_mkldnn()

    @staticmethod
    def _read(problem: Problem, names: tuple[str, ...], found: Any) -> Mapping[str, Array]:
        dense = (tensor.to_dense() if tensor.is_mkldnn else tensor for tensor in found)
        return {name: tensor.numpy() for name, tensor in zip(names, dense, strict=False)}
