"""The peer PyTorch compiled: torch.compile of what eager would be asked, backward included.

Compiled for the very shape. Its outputs are fresh ones, as torch.compile gives them.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from bench.engines import Call
from bench.peers.pytorch import Torch
from bench.problem import EPS, Problem
from bench.tasks import Task


class Compiled(Torch):
    """PyTorch with its compiler, which needs one for C++."""

    name = "compiled"
    title = "PyTorch compiled"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        # Else a backward could be run only once.
        import torch._functorch.config

        torch._functorch.config.donated_buffer = False

    def call(self, problem: Problem, task: Task) -> Call | None:
        self.torch.set_num_threads(self.threads)
        if task.name == "apply":
            return self._inference(problem)
        if task.name not in ("forward", "backward"):
            return None
        return (self._forward if task.name == "forward" else self._backward)(problem)

    def _made(self, composition: Any) -> Any:
        # It keeps its programs by code object and gives up on one after eight: a copy has its own.
        own = FunctionType(
            composition.__code__.replace(),
            composition.__globals__,
            composition.__name__,
            composition.__defaults__,
            composition.__closure__,
        )
        return self.torch.compile(own, dynamic=False)

    def _inference(self, problem: Problem) -> Call:
        def batch_norm(x: Any, mean: Any, var: Any, weight: Any, bias: Any) -> Any:
            function = self.torch.nn.functional.batch_norm
            return function(x, mean, var, weight, bias, False, 0.1, EPS)

        compiled = self._made(batch_norm)
        x = self._tensor(problem, problem.x)
        vectors = self._vectors(problem, "mean", "var", "weight", "bias")
        return Call(
            self._without_autograd(lambda: compiled(x, *vectors)),
            {},
            lambda y: {"y": self._array(problem, y)},
        )
