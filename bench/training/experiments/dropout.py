"""Dropout, batch norm, both and neither, until the net has learnt its data by heart."""

from __future__ import annotations

from typing import Any, ClassVar

from bench.training import draw
from bench.training.experiment import Experiment, Lengths, Settings, Trial
from bench.training.kit import MOMENTUM
from bench.training.perceptron import WIDTHS, Shape, perceptron
from bench.training.results import (
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

RATE = 0.3
SHAPES = {
    "none": Shape(),
    "batch norm": Shape("batch"),
    "dropout": Shape(dropout=RATE),
    "both": Shape("batch", dropout=RATE),
}


class WithDropout(Experiment):
    """Does batch norm regularize, and does dropout add to it?"""

    name = "dropout"
    title = "Dropout and batch norm"
    question = (
        "The same perceptron with dropout behind its activations, with batch norm, with both and "
        "with neither. Batch norm is said to regularize as well, so that dropout adds little, or "
        "harms by changing variances between training and test."
    )
    epochs = Lengths(40, 6)
    settings: ClassVar[Settings] = {
        "widths": WIDTHS,
        "dropout": RATE,
        "rate": 0.02,
        "momentum": MOMENTUM,
        "batch": 64,
    }
    columns = ("train loss", "test loss", "test accuracy")
    cost = 2.2
    panels = (1, 3)

    def variants(self, quick: bool) -> list[Variant]:
        return [Variant(line) for line in SHAPES]

    def run(self, trial: Trial) -> Numbers:
        model = perceptron(SHAPES[trial.variant.line], trial.data.side, trial.seed)
        course = self.course(trial)
        return train(model, trial.data, course, trial.seed).numbers()

    def draw(self, results: Results, figure: Any) -> None:
        panels = draw.history(figure, results, self.panels, self.columns)
        panels[0, -1].set_ylim(bottom=0.9)

    def findings(self, results: Results) -> list[Finding]:
        def gap(line: str) -> tuple[str, Array]:
            """Test loss beyond training loss."""
            return line, results.final("test loss", line) - results.final("train loss", line)

        claims = (
            ("Batch norm alone is better than dropout alone", "batch norm", "dropout"),
            ("Dropout adds to batch norm", "both", "batch norm"),
        )
        narrower = "narrows the gap from training to test loss"
        return [
            *(
                compare_lines(results, claim, "test accuracy", above, below)
                for claim, above, below in claims
            ),
            *(
                compare(f"{line.capitalize()} {narrower}", gap("none"), gap(line), PLAIN)
                for line in ("batch norm", "dropout")
            ),
        ]
