"""Norms against the size of a mini-batch, in a convolutional net."""

from __future__ import annotations

from typing import Any, ClassVar

from bench.training import draw
from bench.training.experiment import Experiment, Lengths, Settings, Trial
from bench.training.results import (
    Finding,
    Numbers,
    Results,
    Variant,
    compare,
    compare_lines,
    measured,
    worst_and_best,
)
from bench.training.train import Course, train

LINES = {
    "none": None,
    "batch norm": "batch",
    "batch renorm": "renorm",
    "layer norm": "layer",
    "group norm": "group",
    "instance norm": "instance",
}
"""Line -> norm of `bench.training.networks`."""
OTHERS = tuple(line for line in LINES if line not in ("none", "batch norm"))
LARGE = 32
"""The batch at which batch norm is at its best, says the literature."""


class BatchSize(Experiment):
    """Where batch norm falls off, and what replaces it."""

    name = "batch-size"
    title = "Batch size"
    question = (
        "A convolutional net (conv -> norm -> ReLU -> pool twice, and a linear layer) at "
        "mini-batches of 1 to 128, the learning rate in proportion. Batch norm is said to fall off "
        "at small batches, whose statistics are noise; norms of single samples not to care."
    )
    epochs = Lengths(4, 1)
    settings: ClassVar[Settings] = {
        "channels": (8, 16),
        "kernel": 3,
        "rate": 0.05,
        "rate is of batch": 64,
        "momentum": 0.9,
        "batches": (1, 2, 4, 8, 16, 32, 64, 128),
    }
    columns = ("test accuracy", "test loss", "train loss")
    cost = 100.0
    torch = True

    def variants(self, quick: bool) -> list[Variant]:
        sizes = (4, 32) if quick else self.settings["batches"]
        return [Variant(line, float(size)) for line in LINES for size in sizes]

    def run(self, trial: Trial) -> Numbers:
        from bench.training.networks import convnet, seeded

        batch = int(trial.variant.at or 0)
        norm, settings = LINES[trial.variant.line], self.settings
        net = {"channels": settings["channels"], "kernel": settings["kernel"], "hidden": None}
        model = seeded(lambda: convnet(norm, trial.data.side, **net), trial.seed)
        rate = settings["rate"] * batch / settings["rate is of batch"]
        history = train(model, trial.data, Course(trial.epochs, rate, batch=batch), trial.seed)
        return {
            "train loss": history.train_loss[-1],
            "test loss": history.test_loss[-1],
            "test accuracy": history.test_accuracy[-1],
        }

    def draw(self, results: Results, figure: Any) -> None:
        accuracy, loss = figure.subplots(*self.panels)
        for axes, key in ((accuracy, "test accuracy"), (loss, "test loss")):
            draw.against(axes, results, key, "samples in a mini-batch", base=2)
            draw.ticks(axes, results.places("none"))
        accuracy.set_ylim(bottom=max(0.0, accuracy.get_ylim()[0]))
        loss.set_yscale("log")
        draw.legend(figure, accuracy)

    def findings(self, results: Results) -> list[Finding]:
        key, norm = "test accuracy", "batch norm"
        places = results.places(norm)
        best = max(places, key=lambda at: float(results.final(key, norm, at).mean()))
        found = []
        for at in [at for at in places if at < LARGE]:
            found.append(
                compare(
                    f"Batch norm at a batch of {at:g} is worse than at its best, {best:g}",
                    (f"at {best:g}", results.final(key, norm, best)),
                    (f"at {at:g}", results.final(key, norm, at)),
                )
            )
        least = places[0]
        for line in OTHERS:
            found.append(
                compare_lines(
                    results,
                    f"At a batch of {least:g}, {line} is better than batch norm",
                    *(key, line, norm, least),
                )
            )
        for at in places:
            _, first = worst_and_best(results, key, tuple(LINES), at)
            text = f"{100 * results.final(key, first, at).mean():.1f} %"
            found.append(measured(f"Best at a batch of {at:g}: {first}, {text}."))
        return found
