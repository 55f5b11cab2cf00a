"""Convolutional and recurrent networks: PyTorch computes all of them but the norms.

The norms are `normcore.torch`'s (``library`` says whose: `torch.nn`'s are there to be timed
beside them). Imported only by experiments that need PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import normcore.torch
from bench.training.kit import MOMENTUM
from bench.training.train import Score

Array = np.ndarray[Any, Any]
GROUPS = 4

NORMS: dict[str, Callable[[Any, int], nn.Module]] = {
    "batch": lambda library, c: library.BatchNorm2d(c),
    "renorm": lambda library, c: library.BatchRenorm2d(c, momentum=0.1, r_max=3.0, d_max=5.0),
    "layer": lambda library, c: library.GroupNorm(1, c),
    "group": lambda library, c: library.GroupNorm(GROUPS, c),
    "instance": lambda library, c: library.InstanceNorm2d(c, affine=True),
}
"""Name -> a norm of so many channels of images; layer norm is that of a single group."""


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread and with deterministic algorithms: the same bits on any machine load.

    Workers share the cores; and a sum over threads would depend on how many there are.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def convnet(
    norm: str | None,
    side: int,
    *,
    channels: tuple[int, int] = (64, 128),
    hidden: int | None = 128,
    kernel: int = 5,
    dropout: float = 0.0,
    library: Any = normcore.torch,
) -> nn.Sequential:
    """conv -> norm -> ReLU -> pool for each of `channels`, then linear -> norm -> ReLU -> linear.

    Without `hidden` only the last linear layer is left. `dropout` is the rate of 2-d dropout behind
    each pool, of whole channels. Weights are He's and biases 0, as in the perceptrons.
    """
    layers: list[nn.Module] = []
    inputs = 1
    for outputs in channels:
        layers.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
        if norm is not None:
            layers.append(NORMS[norm](library, outputs))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        if dropout:
            layers.append(nn.Dropout2d(dropout))
        inputs = outputs
    layers.append(nn.Flatten())
    features = inputs * (side // 2 ** len(channels)) ** 2
    if hidden is not None:
        layers.append(nn.Linear(features, hidden))
        if norm is not None:
            layers.append(library.BatchNorm1d(hidden))
        layers.append(nn.ReLU())
        features = hidden
    net = nn.Sequential(*layers, nn.Linear(features, 10))
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return net


class StepNorm(nn.Module):
    """Batch norm of sequences, with running statistics of each step (Cooijmans et al. 2017).

    Weight and bias are common to all steps. Steps beyond the last that has statistics use its own.

    Parameters
    ----------
    features, steps : int
        Size of what is normalized, and how many steps have statistics.
    weight : float
        Initial value of the weight; small ones keep tanh from saturating.
    """

    def __init__(self, features: int, steps: int, weight: float = 0.1) -> None:
        super().__init__()
        self.steps = steps
        self.weight = nn.Parameter(torch.full((features,), weight))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(steps, features))
        self.register_buffer("running_var", torch.ones(steps, features))

    def forward(self, x: Tensor, step: int) -> Tensor:
        at = min(step, self.steps - 1)
        return normcore.torch.batch_norm(
            *(x, self.running_mean[at], self.running_var[at], self.weight, self.bias),
            training=self.training,
        )


class LayerNorm(nn.Module):
    """Layer norm of sequences: nothing differs between steps."""

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.norm = normcore.torch.LayerNorm(features)

    def forward(self, x: Tensor, step: int) -> Tensor:
        y: Tensor = self.norm(x)
        return y


RECURRENT: dict[str, Callable[[int, int], nn.Module]] = {
    "layer": LayerNorm,
    "batch": StepNorm,
    "shared": lambda features, steps: StepNorm(features, 1),
}
"""Name -> a norm of so many features in sequences of so many steps."""


class Recurrent(nn.Module):
    """h = tanh(norm(W x + U h) + b) over the rows of an image; classes from the last h."""

    def __init__(self, norm: str | None, side: int, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = hidden
        self.inputs = nn.Linear(side, hidden)
        self.recurrence = nn.Linear(hidden, hidden, bias=False)
        nn.init.orthogonal_(self.recurrence.weight)
        self.norm = None if norm is None else RECURRENT[norm](hidden, side)
        self.outputs = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        h = images.new_zeros(len(images), self.hidden)
        # All rows at once: one product instead of one per row.
        rows = self.inputs(images.squeeze(1)).unbind(1)
        for step, row in enumerate(rows):
            total = row + self.recurrence(h)
            h = torch.tanh(total if self.norm is None else self.norm(total, step))
        logits: Tensor = self.outputs(h)
        return logits


class TorchModel:
    """A module and its optimizer, as `bench.training.train` sees a model."""

    def __init__(self, net: nn.Module, clip: float | None = None) -> None:
        self.net = net
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=MOMENTUM)
        self._clip = clip

    def step(self, images: Array, labels: Array, rate: float) -> float:
        [group] = self.optimizer.param_groups
        group["lr"] = rate
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.net(_channel(images)), torch.from_numpy(labels))
        loss.backward()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self._clip)
        self.optimizer.step()
        return float(loss.detach())

    def evaluate(self, images: Array, labels: Array, training: bool = False) -> Score:
        self.net.train(training)
        with torch.no_grad():
            logits = self.net(_channel(images))
            expected = torch.from_numpy(labels)
            loss = nn.functional.cross_entropy(logits, expected)
            right = int((logits.argmax(1) == expected).sum())
        self.net.train()
        return Score(float(loss), right / len(labels))


def _channel(images: Array) -> Tensor:
    return torch.from_numpy(images).unsqueeze(1)


def seeded(make: Callable[[], nn.Module], seed: int, clip: float | None = None) -> TorchModel:
    """A model whose weights, and whose dropout from then on, are of this seed."""
    torch.manual_seed(seed)
    return TorchModel(make(), clip)
