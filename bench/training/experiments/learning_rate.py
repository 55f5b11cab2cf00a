"""Final accuracy against the learning rate, and where training diverges."""

from __future__ import annotations

from typing import ClassVar

from bench.training.experiment import Settings
from bench.training.kit import MOMENTUM
from bench.training.perceptron import WIDTHS, Shape
from bench.training.sweep import Sweep


class LearningRate(Sweep):
    """From far too small to far too large."""

    name = "learning-rate"
    title = "Learning rate"
    question = (
        "The same perceptron at learning rates over four orders of magnitude. Batch norm is said "
        "to tolerate larger ones: the scale of the weights before it does not matter."
    )
    what = "learning rate"
    places = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
    settings: ClassVar[Settings] = {
        "widths": WIDTHS,
        "rates": places,
        "momentum": MOMENTUM,
        "batch": 64,
    }
    cost = 2.4

    def model(self, at: float) -> tuple[Shape, float]:
        return Shape(), at
