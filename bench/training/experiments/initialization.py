"""Final accuracy against the scale of the initial weights."""

from __future__ import annotations

from typing import ClassVar

from bench.training.experiment import Settings
from bench.training.kit import MOMENTUM
from bench.training.perceptron import WIDTHS, Shape
from bench.training.sweep import Sweep


class Initialization(Sweep):
    """From vanishing to exploding activations."""

    name = "initialization"
    title = "Initialization"
    question = (
        "The same perceptron with initial weights of a hundredth to a hundred times He's standard "
        "deviation. Batch norm is said to make the scale matter less."
    )
    what = "scale of the initial weights"
    places = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    settings: ClassVar[Settings] = {
        "widths": WIDTHS,
        "scales": places,
        "rate": 0.01,
        "momentum": MOMENTUM,
        "batch": 64,
    }
    cost = 3.5

    def model(self, at: float) -> tuple[Shape, float]:
        return Shape(scale=at), self.settings["rate"]
