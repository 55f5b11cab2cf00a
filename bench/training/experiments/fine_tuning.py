"""Pretrain on five classes, fine-tune on the others: what to freeze."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from bench.training import draw
from bench.training.experiment import Experiment, Lengths, Settings, Trial
from bench.training.kit import MOMENTUM, Linear, Norm
from bench.training.perceptron import WIDTHS, Perceptron, Shape, perceptron
from bench.training.results import Finding, Numbers, Results, Variant, compare_lines
from bench.training.train import Course, train

FREEZE: dict[str, dict[str, bool] | None] = {
    "not frozen": None,
    "frozen statistics": {"affine": False},
    "frozen statistics, weight, bias": {"affine": True},
}
"""Line -> arguments of the norms' `freeze`."""
MOVING, STATISTICS, EVERYTHING = list(FREEZE)


class FineTuning(Experiment):
    """Small batches have bad statistics; frozen ones are those of other classes."""

    name = "fine-tuning"
    title = "Fine-tuning"
    question = (
        "The perceptron with batch norm, pretrained on the digits 0 to 4, gets a new last layer "
        "and learns the digits 5 to 9 in small batches. Freezing the running statistics is said to "
        "help there, freezing weight and bias too to do no harm."
    )
    epochs = Lengths(3, 1)
    settings: ClassVar[Settings] = {
        "widths": WIDTHS,
        "first classes": (0, 1, 2, 3, 4),
        "other classes": (5, 6, 7, 8, 9),
        "pretraining": {"epochs": 10, "rate": 0.01, "batch": 64},
        "rate": 0.01,
        "rate is of batch": 16,
        "momentum": MOMENTUM,
        "batches": (2, 4, 8, 16),
    }
    columns = ("test loss", "test accuracy")
    cost = 2.0

    def variants(self, quick: bool) -> list[Variant]:
        sizes = (2, 16) if quick else self.settings["batches"]
        return [Variant(line, float(size)) for line in FREEZE for size in sizes]

    def run(self, trial: Trial) -> Numbers:
        settings, data, seed = self.settings, trial.data, trial.seed
        model = perceptron(Shape("batch"), data.side, seed)
        train(
            model,
            data.of_classes(settings["first classes"]),
            Course(**settings["pretraining"]),
            seed,
        )
        model = _with_new_head(model, seed)
        frozen = FREEZE[trial.variant.line]
        if frozen is not None:
            for layer in model.net.layers:
                if isinstance(layer, Norm):
                    layer.layer.freeze(**frozen)
        course = self.course(trial, batch=int(trial.variant.place))
        history = train(model, data.of_classes(settings["other classes"]), course, seed)
        return {"test loss": history.test_loss[-1], "test accuracy": history.test_accuracy[-1]}

    def draw(self, results: Results, figure: Any) -> None:
        panels = figure.subplots(*self.panels)
        for axes, key in zip(panels, ("test accuracy", "test loss"), strict=True):
            draw.against(axes, results, key, "samples in a mini-batch", base=2)
            draw.ticks(axes, results.places(MOVING))
        draw.legend(figure, panels[0])

    def findings(self, results: Results) -> list[Finding]:
        places = results.places(MOVING)
        claims = [
            *(("Frozen statistics are better", STATISTICS, MOVING, at) for at in places),
            *(
                (
                    "Weight and bias that learn are better than frozen ones",
                    STATISTICS,
                    EVERYTHING,
                    at,
                )
                for at in (places[0], places[-1])
            ),
        ]
        return [
            compare_lines(
                results, f"{claim} at a batch of {at:g}", "test accuracy", above, below, at
            )
            for claim, above, below, at in claims
        ]


def _with_new_head(model: Perceptron, seed: int) -> Perceptron:
    """The same net with another last layer, and an optimizer that remembers nothing."""
    last = model.net.layers[-1]
    assert isinstance(last, Linear)  # as `network` makes them
    outputs, inputs = last.weight.value.shape
    model.net.layers[-1] = Linear(inputs, outputs, np.random.default_rng([seed, 3]))
    return Perceptron(model.net)
