"""Norms against the size of a mini-batch, in a perceptron and in a convolutional net."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

import normcore as nc
from bench.training import draw
from bench.training.experiment import Experiment, Lengths, Settings, Trial
from bench.training.kit import MOMENTUM, Norm
from bench.training.perceptron import WIDTHS, Shape, perceptron
from bench.training.results import (
    Finding,
    Numbers,
    Results,
    Variant,
    compare,
    compare_lines,
    measured,
)
from bench.training.train import Model, train


def _renorm(n: int, dtype: Any) -> Norm:
    return Norm(nc.BatchRenorm1d(n, momentum=0.1, dtype=dtype))


BATCH = "batch norm"
LINES: dict[str, tuple[Any, str | None]] = {
    "none": (None, None),
    BATCH: ("batch", "batch"),
    "batch renorm": (_renorm, "renorm"),
    "layer norm": ("layer", "layer"),
    "group norm": ("group", "group"),
    "instance norm": (None, "instance"),
}
"""Line -> norm of the perceptron, norm of the convolutional net."""
OTHERS = tuple(LINES)[2:]
NETS = ("perceptron", "convnet")
OF_BATCH = (BATCH, "batch renorm")
"""One sample of the perceptron has no variance: these refuse it."""


class BatchSize(Experiment):
    """Where batch norm falls off, and what replaces it."""

    name = "batch-size"
    title = "Batch size"
    question = (
        "The perceptron, and a convolutional net (conv -> norm -> ReLU -> pool twice, and a linear "
        "layer), at mini-batches of 1 to 128, the learning rate in proportion. Batch norm is said "
        "to fall off at small batches, whose statistics are noise; norms of single samples not to "
        "care. Instance norm needs the positions of the convolutional net; in the perceptron, "
        "batch norm refuses a single sample."
    )
    epochs = Lengths(4, 1)
    settings: ClassVar[Settings] = {
        "widths": WIDTHS,
        "channels": (8, 16),
        "kernel": 3,
        "rate": 0.05,
        "rate is of batch": 64,
        "momentum": MOMENTUM,
        "batches": (1, 2, 4, 8, 16, 32, 64, 128),
    }
    columns = NETS
    cost = 117.0
    torch = True

    def variants(self, quick: bool) -> list[Variant]:
        sizes = (2, 32) if quick else self.settings["batches"]
        return [Variant(line, float(size)) for line in LINES for size in sizes]

    def run(self, trial: Trial) -> Numbers:
        from bench.training.networks import convnet, seeded

        settings, side = self.settings, trial.data.side
        batch = int(trial.variant.place)
        course = self.course(trial, batch=batch)
        of_perceptron, of_convnet = LINES[trial.variant.line]

        def accuracy(model: Model) -> float:
            return train(model, trial.data, course, trial.seed).test_accuracy[-1]

        net = {"channels": settings["channels"], "kernel": settings["kernel"], "hidden": None}
        numbers: Numbers = {
            "convnet": accuracy(seeded(lambda: convnet(of_convnet, side, **net), trial.seed))
        }
        refused = batch == 1 and trial.variant.line in OF_BATCH
        if refused or trial.variant.line == "instance norm":
            return {**numbers, "perceptron": float("nan")}
        return {
            **numbers,
            "perceptron": accuracy(perceptron(Shape(of_perceptron), side, trial.seed)),
        }

    def draw(self, results: Results, figure: Any) -> None:
        for axes, net in zip(figure.subplots(*self.panels), NETS, strict=True):
            draw.against(axes, results, net, "samples in a mini-batch", base=2)
            draw.ticks(axes, results.places(BATCH))
            draw.finish(axes, "accuracy", f"{net}: test accuracy")
        # Of the convolutional net: here every line has points.
        draw.legend(figure, axes)

    def findings(self, results: Results) -> list[Finding]:
        return [finding for net in NETS for finding in self._of(net, results)]

    def _of(self, net: str, results: Results) -> list[Finding]:
        means = {
            at: float(results.final(net, BATCH, at).mean())
            for at in results.places(BATCH)
            if np.isfinite(results.final(net, BATCH, at)).all()
        }
        best, least = max(means, key=lambda at: means[at]), min(means)
        at_best = (f"at {best:g}", results.final(net, BATCH, best))
        found = [
            compare(
                f"{net}: batch norm at a batch of {at:g} is worse than at its best, {best:g}",
                *(at_best, (f"at {at:g}", results.final(net, BATCH, at))),
            )
            for at in means
            if at < best
        ]
        for line in OTHERS:
            if np.isfinite(results.final(net, line, least)).all():
                claim = f"{net}: at a batch of {least:g}, {line} is better than batch norm"
                found.append(compare_lines(results, claim, net, line, BATCH, least))
        firsts = []
        for at in results.places(BATCH):
            there = {line: float(results.final(net, line, at).mean()) for line in LINES}
            first = max(there, key=lambda line: np.nan_to_num(there[line]))
            firsts.append(f"{at:g}: {first} ({there[first]:.1%})")
        found.append(measured(f"{net}: best at each batch: {', '.join(firsts)}."))
        return found
