"""How much of a training step of the convolutional net its norms take: normcore's and PyTorch's.

Two measurements. Inside: hooks read the clock around each norm's forward and backward, autograd's
calls included. Without: what the whole step saves if the norms are left out, which also counts
their parameters in the optimizer and what they do to caches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import normcore.torch
from bench.training.data import Data
from bench.training.experiment import Lengths
from bench.training.networks import TorchModel, convnet, seeded

ALLOWED = 0.15
"""The promise, of the time inside normcore's layers."""
ROUNDS, BATCH = Lengths(60, 15), 64


class Clock:
    """Seconds inside the norms of a network, forward and backward.

    Hooks of tensors end the times of a backward: those of modules would cost as much as a norm.
    """

    def __init__(self, net: nn.Module) -> None:
        self.seconds = 0.0
        self._start = 0.0
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].register_hook(self._end)
        self._begin()

    def _leave(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._end()
        output.register_hook(self._begin)

    def _begin(self, gradient: Tensor | None = None) -> None:
        self._start = perf_counter()

    def _end(self, gradient: Tensor | None = None) -> None:
        self.seconds += perf_counter() - self._start


def _timed(step: Callable[[], object]) -> float:
    start = perf_counter()
    step()
    return perf_counter() - start


def measure(data: Data, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which all nets take turns; seconds and shares."""
    part = data.train.take(slice(BATCH))

    def net(norm: str | None, library: Any) -> TorchModel:
        return seeded(lambda: convnet(norm, data.side, library=library), 0)

    models = {
        "normcore": net("batch", normcore.torch),
        "torch.nn": net("batch", nn),
        "no norms": net(None, nn),
    }
    clocked = {name: net("batch", library) for name, library in LIBRARIES.items()}
    clocks = {name: Clock(model.net) for name, model in clocked.items()}
    whole: dict[str, list[float]] = {name: [] for name in models}
    inside: dict[str, list[float]] = {name: [] for name in clocks}
    for number in range(rounds + 5):
        for name, model in models.items():
            seconds = _timed(partial(model.step, part.images, part.labels, 0.01))
            if number >= 5:  # the first ones meet cold caches
                whole[name].append(seconds)
        for name, model in clocked.items():
            clocks[name].seconds = 0.0
            model.step(part.images, part.labels, 0.01)
            if number >= 5:
                inside[name].append(clocks[name].seconds)
    steps = {name: median(times) for name, times in whole.items()}
    return {
        "threads": torch.get_num_threads(),
        "batch": len(part),
        "rounds": rounds,
        "step seconds": steps,
        "inside seconds": {name: median(times) for name, times in inside.items()},
        "inside share": {name: median(times) / steps[name] for name, times in inside.items()},
        "share by leaving out": {name: 1 - steps["no norms"] / steps[name] for name in LIBRARIES},
        "allowed": ALLOWED,
    }


LIBRARIES: dict[str, Any] = {"normcore": normcore.torch, "torch.nn": nn}
"""Whose norms: name -> module that has them."""
