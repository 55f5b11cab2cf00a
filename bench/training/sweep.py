"""The experiments that vary one number over orders of magnitude, with and without batch norm."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from bench.training import draw
from bench.training.experiment import Experiment, Lengths, Trial
from bench.training.perceptron import Shape, perceptron
from bench.training.results import (
    COUNT,
    Array,
    Finding,
    Numbers,
    Results,
    Variant,
    compare,
    measured,
)
from bench.training.train import train

WITHOUT, WITH = "none", "batch norm"
GOOD = 0.9
"""Test accuracy from which on a setting counts as one that trains."""
GUESSING = float(np.log(10))
LOST = 0.98 * GUESSING
"""Training that ends with a larger loss than this, or with no number, has learnt nothing."""


class Sweep(Experiment):
    """Final accuracies and losses against `what`."""

    what: ClassVar[str]
    """Name of what varies."""
    places: ClassVar[tuple[float, ...]]
    columns = ("test accuracy", "train loss")
    epochs = Lengths(10, 3)

    @abstractmethod
    def model(self, at: float) -> tuple[Shape, float]:
        """The shape of the net without its norm, and the learning rate."""

    def variants(self, quick: bool) -> list[Variant]:
        # From the first to the last, of seven or more: a quick run keeps every other one.
        places = self.places[:: 2 if quick else 1]
        return [Variant(line, at) for line in (WITHOUT, WITH) for at in places]

    def run(self, trial: Trial) -> Numbers:
        shape, rate = self.model(trial.variant.place)
        if trial.variant.line == WITH:
            shape = Shape("batch", scale=shape.scale)
        model = perceptron(shape, trial.data.side, trial.seed)
        history = train(model, trial.data, self.course(trial, rate=rate), trial.seed)
        return {
            "test accuracy": history.test_accuracy[-1],
            "train loss": history.train_loss[-1],
        }

    def draw(self, results: Results, figure: Any) -> None:
        accuracy, loss = figure.subplots(*self.panels)
        draw.against(accuracy, results, "test accuracy", self.what)
        draw.against(loss, results, "train loss", self.what)
        loss.axhline(GUESSING, color="black", linewidth=0.8, linestyle="--")
        middle = self.places[len(self.places) // 2]
        loss.annotate("guessing", (middle, 1.1 * GUESSING), fontsize=8, ha="center")
        loss.set_yscale("log")
        # Losses that have nearly overflown would leave no room for the others.
        loss.set_ylim(top=min(100.0, 2 * loss.get_ylim()[1]))
        draw.legend(figure, accuracy)

    def findings(self, results: Results) -> list[Finding]:
        def trained(line: str) -> Array:
            good: Array = results.against("test accuracy", line) >= GOOD
            return np.asarray(np.count_nonzero(good, axis=1))

        def best(line: str) -> Array:
            every = results.against("test accuracy", line)
            found: Array = every[:, every.mean(axis=0).argmax()]
            return found

        count = len(results.places(WITH))
        return [
            compare(
                f"Batch norm trains (test accuracy of at least {GOOD:.0%}) at more of the {count} "
                f"settings of the {self.what}",
                (WITH, trained(WITH)),
                (WITHOUT, trained(WITHOUT)),
                COUNT,
            ),
            compare(
                "Its best setting is better than the best without",
                (WITH, best(WITH)),
                (WITHOUT, best(WITHOUT)),
            ),
            *(measured(self._range(results, line)) for line in (WITHOUT, WITH)),
        ]

    def _range(self, results: Results, line: str) -> str:
        places = np.array(results.places(line))
        good = places[results.against("test accuracy", line).mean(axis=0) >= GOOD]
        losses = results.against("train loss", line)
        # The rule reads: not below, so that what is no number counts too.
        lost = places[(~(losses < LOST)).mean(axis=0) > 0.5]
        if not len(good):
            return f"{line}: trains nowhere."
        below, above = lost[lost < good[0]], lost[lost > good[-1]]
        down = f"learns nothing from {below[-1]:g} down" if len(below) else ""
        up = f"diverges from {above[0]:g} on" if len(above) else ""
        trains = f"trains from {good[0]:g} to {good[-1]:g}"
        return f"{line}: {', '.join(filter(None, (trains, down, up)))}."
