"""A convolutional net with and without batch norm, and with and without 2-d dropout."""

from __future__ import annotations

from typing import Any, ClassVar

from bench.training import draw
from bench.training.experiment import Experiment, Lengths, Settings, Trial
from bench.training.kit import MOMENTUM
from bench.training.results import (
    PLAIN,
    Finding,
    Numbers,
    Results,
    Variant,
    compare,
    compare_lines,
)
from bench.training.train import train

NETS: dict[str, tuple[str | None, bool]] = {
    "none": (None, False),
    "batch norm": ("batch", False),
    "dropout": (None, True),
    "both": ("batch", True),
}
"""Line -> its norm, and whether it has dropout."""


class ConvNet(Experiment):
    """conv -> norm -> ReLU -> pool twice, linear -> norm -> ReLU -> linear."""

    name = "convnet"
    title = "Convolutional net"
    question = (
        "Two convolutions and two linear layers, batch norm behind all but the last, and the same "
        "net regularized by 2-d dropout. PyTorch computes all but the norms. Batch norm is said to "
        "train faster and to end better, as in the perceptron."
    )
    epochs = Lengths(8, 2)
    settings: ClassVar[Settings] = {
        "channels": (64, 128),
        "kernel": 5,
        "hidden": 128,
        "dropout": 0.2,
        "rate": 0.01,
        "decay": 0.9,
        "momentum": MOMENTUM,
        "batch": 64,
    }
    columns = ("train loss", "test loss", "test accuracy")
    cost = 15.0
    torch = True
    panels = (1, 3)

    def variants(self, quick: bool) -> list[Variant]:
        return [Variant(line) for line in NETS]

    def run(self, trial: Trial) -> Numbers:
        from bench.training.networks import convnet, seeded

        norm, dropped = NETS[trial.variant.line]
        settings = self.settings
        net = {name: settings[name] for name in ("channels", "kernel", "hidden")}
        net["dropout"] = settings["dropout"] if dropped else 0.0
        model = seeded(lambda: convnet(norm, trial.data.side, **net), trial.seed)
        course = self.course(trial)
        return train(model, trial.data, course, trial.seed).numbers()

    def draw(self, results: Results, figure: Any) -> None:
        draw.history(figure, results, self.panels, self.columns)

    def findings(self, results: Results) -> list[Finding]:
        first = {line: results.get("train loss", line)[:, 0] for line in NETS}
        claims = (
            ("Higher test accuracy in the end", "batch norm", "none"),
            ("The same with 2-d dropout in both", "both", "dropout"),
            ("2-d dropout adds to batch norm", "both", "batch norm"),
        )
        return [
            compare(
                "Lower training loss after the first epoch",
                ("none", first["none"]),
                ("batch norm", first["batch norm"]),
                PLAIN,
            ),
            *(
                compare_lines(results, claim, "test accuracy", above, below)
                for claim, above, below in claims
            ),
        ]
