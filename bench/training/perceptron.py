"""Multilayer perceptrons in NumPy: which norms they may have and where, and a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import normcore as nc
from bench.training.kit import (
    SGD,
    Array,
    Dropout,
    Layer,
    Linear,
    Network,
    Norm,
    ReLU,
    cross_entropy,
)
from bench.training.train import Score

WIDTHS = (256, 128)
"""Of the hidden layers."""
GROUPS = 8
POSITIONS = 16
"""Instance norm needs several elements per channel: features count as channels of so many."""

NORMS: dict[str, Callable[[int, Any], Norm]] = {
    "batch": lambda n, dtype: Norm(nc.BatchNorm1d(n, dtype=dtype)),
    "layer": lambda n, dtype: Norm(nc.LayerNorm(n, dtype=dtype)),
    "group": lambda n, dtype: Norm(nc.GroupNorm(GROUPS, n, dtype=dtype)),
    "instance": lambda n, dtype: Norm(
        nc.InstanceNorm1d(n // POSITIONS, affine=True, dtype=dtype), n // POSITIONS
    ),
}
"""Name -> a norm of so many features."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What may differ between two perceptrons."""

    norm: str | Callable[[int, Any], Norm] | None = None
    """A name of `NORMS`, or a norm of so many features."""
    before: bool = True
    """Does the norm stand before the activation?"""
    dropout: float = 0.0
    """Behind each activation."""
    scale: float = 1.0
    """Of the initial weights, times He's."""
    widths: tuple[int, ...] = WIDTHS


def network(
    shape: Shape, inputs: int, outputs: int, draw: np.random.Generator, dtype: Any = np.float32
) -> Network:
    """linear -> norm -> ReLU -> dropout for each width, and linear."""
    make = NORMS[shape.norm] if isinstance(shape.norm, str) else shape.norm
    layers: list[Layer] = []
    for width in shape.widths:
        layers.append(Linear(inputs, width, draw, shape.scale, dtype))
        norms: list[Layer] = [] if make is None else [make(width, dtype)]
        layers += [*norms, ReLU()] if shape.before else [ReLU(), *norms]
        if shape.dropout:
            # Draws of its own, so that nets with and without it start from the same weights.
            layers.append(Dropout(shape.dropout, draw.spawn(1)[0]))
        inputs = width
    return Network([*layers, Linear(inputs, outputs, draw, shape.scale, dtype)])


class Perceptron:
    """A network and its optimizer, as `bench.training.train` sees a model."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.optimizer = SGD(net.parameters)

    def step(self, images: Array, labels: Array, rate: float) -> float:
        loss = self.gradients(images, labels)
        self.optimizer.step(rate)
        return loss

    def gradients(self, images: Array, labels: Array) -> float:
        """The loss of a batch in training mode; its gradients are then in the parameters."""
        logits = self.net.forward(_rows(images), training=True)
        loss = cross_entropy(logits, labels)
        self.net.backward(loss.gradient)
        return loss.value

    def evaluate(self, images: Array, labels: Array, training: bool = False) -> Score:
        logits = self.net.forward(_rows(images), training)
        return Score(
            cross_entropy(logits, labels).value, float((logits.argmax(1) == labels).mean())
        )


def _rows(images: Array) -> Array:
    return images.reshape(len(images), -1)


def perceptron(shape: Shape, side: int, seed: int, dtype: Any = np.float32) -> Perceptron:
    """One for images of this side and ten classes, by this seed."""
    draw = np.random.default_rng([seed, 1])
    return Perceptron(network(shape, side * side, 10, draw, dtype))
