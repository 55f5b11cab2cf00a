"""A recurrent net that reads a digit row by row, with layer norm, with batch norm per step."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from bench.training import draw
from bench.training.experiment import Experiment, Lengths, Settings, Trial
from bench.training.kit import MOMENTUM
from bench.training.results import (
    PERCENT,
    Array,
    Finding,
    Numbers,
    Results,
    Variant,
    compare,
    compare_lines,
    measured,
)
from bench.training.train import train

NETS = {
    "none": None,
    "batch norm per step": "batch",
    "batch norm, all steps": "shared",
    "layer norm": "layer",
}
"""Line -> norm of `bench.training.networks`."""
STEPS, SHARED, LAYER = list(NETS)[1:]


class Recurrent(Experiment):
    """none, layer norm, batch norm with running statistics of each step, and of all steps."""

    name = "recurrent"
    title = "Recurrent net"
    question = (
        "h = tanh(norm(W x + U h)) over the rows of an image. Layer norm is said to suit "
        "sequences; batch norm to need statistics of each time step, because those of the first "
        "steps differ from later ones. Sequences that are longer than those of training (blank "
        "rows are added below) use the statistics of the last step."
    )
    epochs = Lengths(25, 4)
    settings: ClassVar[Settings] = {
        "hidden": 64,
        "rate": 0.05,
        "decay": 0.97,
        "momentum": MOMENTUM,
        "batch": 64,
        "largest gradient norm": 1.0,
        "blank rows": (0, 1, 2, 4),
    }
    columns = ("train loss", "test loss", "test accuracy")
    cost = 3.8
    torch = True

    def variants(self, quick: bool) -> list[Variant]:
        return [Variant(line) for line in NETS]

    def run(self, trial: Trial) -> Numbers:
        from bench.training import networks

        norm, settings, data = NETS[trial.variant.line], self.settings, trial.data
        model = networks.seeded(
            lambda: networks.Recurrent(norm, data.side, settings["hidden"]),
            trial.seed,
            clip=settings["largest gradient norm"],
        )
        course = self.course(trial)
        numbers = train(model, data, course, trial.seed).numbers()
        numbers["longer"] = [
            model.evaluate(_longer(data.test.images, rows), data.test.labels).accuracy
            for rows in settings["blank rows"]
        ]
        return numbers

    def draw(self, results: Results, figure: Any) -> None:
        accuracy, longer = figure.subplots(*self.panels)
        draw.curves(accuracy, results, "test accuracy")
        accuracy.set_ylim(bottom=0.5)
        draw.curves(longer, results, "longer", x=self.settings["blank rows"])
        draw.finish(longer, "accuracy", "test accuracy of longer sequences")
        longer.set_xlabel("blank rows below the image")
        draw.legend(figure, accuracy)

    def findings(self, results: Results) -> list[Finding]:
        def early(line: str) -> tuple[str, Array]:
            return line, results.get("test accuracy", line).mean(axis=1)

        claims = (
            ("Layer norm ends better than none", LAYER, "none"),
            ("Batch norm per step ends better than none", STEPS, "none"),
            ("Layer norm ends better than batch norm per step", LAYER, STEPS),
            ("Statistics of each step are better than those of all steps", STEPS, SHARED),
        )
        longer = [
            f"{line} {PERCENT.text(results.get('longer', line)[:, -1])}" for line in results.lines
        ]
        rows = self.settings["blank rows"][-1]
        return [
            compare("Layer norm learns faster (mean over epochs)", early(LAYER), early("none")),
            *(
                compare_lines(results, claim, "test accuracy", above, below)
                for claim, above, below in claims
            ),
            measured(f"With {rows} blank rows more than in training: {', '.join(longer)}."),
        ]


def _longer(images: Array, rows: int) -> Array:
    return np.pad(images, ((0, 0), (0, rows), (0, 0)))
