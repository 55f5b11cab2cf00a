"""Batch norm before the activation, as its paper has it, and behind."""

from __future__ import annotations

from typing import Any, ClassVar

from bench.training import draw
from bench.training.experiment import Experiment, Lengths, Settings, Trial
from bench.training.kit import MOMENTUM
from bench.training.perceptron import WIDTHS, Shape, perceptron
from bench.training.results import Finding, Numbers, Results, Variant, compare_lines
from bench.training.train import train

SHAPES = {
    "none": Shape(),
    "before the activation": Shape("batch"),
    "behind the activation": Shape("batch", before=False),
}
BEFORE, BEHIND = list(SHAPES)[1:]


class Placement(Experiment):
    """linear -> norm -> ReLU against linear -> ReLU -> norm."""

    name = "placement"
    title = "Before or behind the activation"
    question = (
        "The same perceptron with its norms before and behind the ReLU, at three learning rates. "
        "The paper puts them before; many have found that it hardly matters, or that behind is "
        "better."
    )
    epochs = Lengths(10, 3)
    settings: ClassVar[Settings] = {
        "widths": WIDTHS,
        "rates": (0.001, 0.01, 0.1),
        "momentum": MOMENTUM,
        "batch": 64,
    }
    columns = ("train loss", "test loss", "test accuracy")
    cost = 1.1
    panels = (1, 3)

    def variants(self, quick: bool) -> list[Variant]:
        return [Variant(line, rate) for line in SHAPES for rate in self.settings["rates"]]

    def run(self, trial: Trial) -> Numbers:
        model = perceptron(SHAPES[trial.variant.line], trial.data.side, trial.seed)
        rate = trial.variant.place
        return train(model, trial.data, self.course(trial, rate=rate), trial.seed).numbers()

    def draw(self, results: Results, figure: Any) -> None:
        panels = figure.subplots(*self.panels, sharey=True)
        for axes, rate in zip(panels, results.places(BEFORE), strict=True):
            draw.curves(axes, results, "test loss", at=rate)
            axes.set_title(f"test loss, learning rate {rate:g}", fontsize=10, loc="left")
            axes.set_yscale("log")
        draw.legend(figure, panels[0])

    def findings(self, results: Results) -> list[Finding]:
        return [
            compare_lines(
                results,
                f"Behind the ReLU is better at a rate of {rate:g}",
                "test accuracy",
                *(BEHIND, BEFORE, rate),
            )
            for rate in results.places(BEFORE)
        ]
