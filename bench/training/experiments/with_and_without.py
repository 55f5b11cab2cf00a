"""A perceptron with and without batch norm: losses and accuracies per epoch."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from bench.training import draw
from bench.training.experiment import Experiment, Lengths, Settings, Trial
from bench.training.kit import MOMENTUM
from bench.training.perceptron import WIDTHS, Shape, perceptron
from bench.training.results import (
    COUNT,
    PLAIN,
    Array,
    Finding,
    Numbers,
    Results,
    Variant,
    compare,
    compare_lines,
)
from bench.training.train import train

WITHOUT, WITH = "none", "batch norm"
GOOD = 0.95
"""Of the test accuracy: how soon it is reached is compared."""


class WithAndWithout(Experiment):
    """The four panels that every introduction draws."""

    name = "with-and-without"
    title = "With and without batch norm"
    question = (
        "A perceptron, linear -> norm -> ReLU twice and a linear layer. Batch norm is said to "
        "train faster and to end better."
    )
    epochs = Lengths(10, 4)
    settings: ClassVar[Settings] = {
        "widths": WIDTHS,
        "rate": 0.01,
        "momentum": MOMENTUM,
        "batch": 64,
    }
    cost = 0.3
    each_epoch = True
    panels = (2, 2)
    columns = ("train loss", "train accuracy", "test loss", "test accuracy")

    def variants(self, quick: bool) -> list[Variant]:
        return [Variant(WITHOUT), Variant(WITH)]

    def run(self, trial: Trial) -> Numbers:
        shape = Shape("batch" if trial.variant.line == WITH else None, widths=WIDTHS)
        model = perceptron(shape, trial.data.side, trial.seed)
        course = self.course(trial)
        return train(model, trial.data, course, trial.seed).numbers()

    def draw(self, results: Results, figure: Any) -> None:
        draw.history(figure, results, self.panels, self.columns)

    def findings(self, results: Results) -> list[Finding]:
        def first_loss(line: str) -> tuple[str, Array]:
            return line, results.get("train loss", line)[:, 0]

        def epochs(line: str) -> tuple[str, Array]:
            reached = results.get("test accuracy", line) >= GOOD
            return line, np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, np.inf)

        lower, higher = "Lower training loss in the end", "Higher test accuracy in the end"
        soon = f"Fewer epochs to a test accuracy of {GOOD:.0%}"
        return [
            compare(
                "Lower training loss after the first epoch",
                *(first_loss(WITHOUT), first_loss(WITH)),
                unit=PLAIN,
            ),
            compare_lines(results, lower, "train loss", WITHOUT, WITH, unit=PLAIN),
            compare_lines(results, higher, "test accuracy", WITH, WITHOUT),
            compare(soon, epochs(WITHOUT), epochs(WITH), COUNT),
        ]
