"""The same perceptron in NumPy with normcore and in PyTorch, step by step.

Both start from the same weights and see the same batches. Losses differ by rounding alone: 1e-13 in
float64 and 5e-7 in float32, unless an input of a ReLU lies so close to 0 that rounding decides its
sign, which moves the losses of one run in six apart by 1e-6 to 2e-4 from that step on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.training import kit
from bench.training.data import Data, shuffled
from bench.training.perceptron import GROUPS, NORMS, POSITIONS, Shape, perceptron
from bench.training.train import Array

STEPS = 100
ALLOWED = 1e-5
"""The promise: relative difference of two losses."""
RATE, BATCH = 0.01, 64


class Positions(nn.Module):
    """A norm of (n, channels, positions) for features (n, f)."""

    def __init__(self, norm: nn.Module, channels: int) -> None:
        super().__init__()
        self.norm, self.channels = norm, channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.unflatten(1, (self.channels, -1))).flatten(1)
        return y


THEIRS: dict[str, Any] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "group": lambda n: nn.GroupNorm(GROUPS, n),
    "instance": lambda n: Positions(nn.InstanceNorm1d(n // POSITIONS, affine=True), n // POSITIONS),
}
"""Name, as in `NORMS` -> PyTorch's norm of so many features."""


def twin(net: kit.Network, norm: str) -> nn.Sequential:
    """The same network in PyTorch, with copies of its linear layers."""
    layers: list[nn.Module] = []
    for layer in net.layers:
        match layer:
            case kit.Linear():
                weight = torch.from_numpy(layer.weight.value)
                linear = nn.Linear(*reversed(weight.shape), dtype=weight.dtype)
                with torch.no_grad():
                    linear.weight.copy_(weight)
                    linear.bias.copy_(torch.from_numpy(layer.bias.value))
                layers.append(linear)
            case kit.Norm():
                layers.append(THEIRS[norm](len(weight)).to(weight.dtype))
            case kit.ReLU():
                layers.append(nn.ReLU())
            case _:
                raise ValueError(f"net: expected linear layers, norms and ReLU, got {layer}")
    return nn.Sequential(*layers)


def losses(
    norm: str, data: Data, seed: int = 0, steps: int = STEPS, dtype: Any = np.float32
) -> tuple[Array, Array]:
    """Of normcore's and of PyTorch's network, (steps,) each."""
    ours = perceptron(Shape(norm), data.side, seed, dtype=dtype)
    theirs = twin(ours.net, norm)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=RATE, momentum=kit.MOMENTUM)
    draw, part = np.random.default_rng([seed, 2]), data.train
    found: list[tuple[float, float]] = []
    while len(found) < steps:
        for which in shuffled(len(part), BATCH, draw):
            images, labels = part.rows[which].astype(dtype), part.labels[which]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                theirs(torch.from_numpy(images)), torch.from_numpy(labels)
            )
            loss.backward()
            optimizer.step()
            found.append((ours.step(images, labels, RATE), float(loss.detach())))
    both = np.array(found[:steps])
    return both[:, 0], both[:, 1]


def differences(data: Data, seed: int = 0) -> dict[str, dict[str, float]]:
    """Dtype -> norm -> the largest relative difference of two losses in `STEPS` steps."""
    found: dict[str, dict[str, float]] = {}
    for dtype in ("float32", "float64"):
        found[dtype] = {}
        for norm in NORMS:
            a, b = losses(norm, data, seed, dtype=np.dtype(dtype))
            found[dtype][norm] = float(np.max(np.abs(a - b) / np.abs(b)))
    return found
