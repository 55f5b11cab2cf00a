"""Batch renormalization on mini-batches that hold few classes."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np

import normcore as nc
from bench.training import draw
from bench.training.data import CLASSES, sorted_by_class
from bench.training.experiment import Experiment, Lengths, Settings, Trial
from bench.training.kit import MOMENTUM, Norm
from bench.training.perceptron import Shape, perceptron
from bench.training.results import (
    Finding,
    Numbers,
    Results,
    Variant,
    compare,
    compare_lines,
)
from bench.training.train import train

BATCH, SCHEDULED, CONSTANT = "batch norm", "renorm, schedule", "renorm, constants"
R_MAX, D_MAX = 3.0, 5.0
NORM_MOMENTUM = 0.01
"""Of the running statistics, in the paper and here, for all."""
SHRUNK = 50
"""The paper's schedule begins at step 5000; runs here have a fiftieth of its steps."""


def _shrunk(schedule: nc.LinearSchedule) -> nc.LinearSchedule:
    begin, end = schedule.begin // SHRUNK, schedule.end // SHRUNK
    return nc.LinearSchedule(schedule.first, schedule.last, begin, end)


def _batch(n: int, dtype: Any) -> Norm:
    return Norm(nc.BatchNorm1d(n, momentum=NORM_MOMENTUM, dtype=dtype))


def _renorm(r_max: Any, d_max: Any, n: int, dtype: Any) -> Norm:
    return Norm(nc.BatchRenorm1d(n, momentum=NORM_MOMENTUM, r_max=r_max, d_max=d_max, dtype=dtype))


NORMS = {
    "none": None,
    BATCH: _batch,
    SCHEDULED: partial(_renorm, _shrunk(nc.PAPER_R_MAX), _shrunk(nc.PAPER_D_MAX)),
    CONSTANT: partial(_renorm, R_MAX, D_MAX),
}


class RenormSchedule(Experiment):
    """The paper's schedule, constants, and plain batch norm."""

    name = "renorm-schedule"
    title = "Batch renormalization of sorted mini-batches"
    question = (
        "Mini-batches of 40 that hold 1, 2, 5 or all 10 classes. Batch norm is said to fail where "
        "batches are not like the data, because a net learns from its neighbours; batch "
        "renormalization to repair it, with a schedule that begins as batch norm. The schedule is "
        f"the paper's, {SHRUNK} times as fast."
    )
    epochs = Lengths(40, 8)
    settings: ClassVar[Settings] = {
        "rate": 0.01,
        "momentum": MOMENTUM,
        "batch": 40,
        "classes": (1, 2, 5, CLASSES),
        "momentum of running statistics": NORM_MOMENTUM,
        "r_max, d_max": (R_MAX, D_MAX),
        "schedule shrunk": SHRUNK,
    }
    columns = ("test accuracy", "test loss")
    cost = 11.0

    def variants(self, quick: bool) -> list[Variant]:
        counts = (2, CLASSES) if quick else self.settings["classes"]
        return [Variant(line, float(count)) for line in NORMS for count in counts]

    def run(self, trial: Trial) -> Numbers:
        settings, data = self.settings, trial.data
        classes = int(trial.variant.place)
        model = perceptron(Shape(NORMS[trial.variant.line]), data.side, trial.seed)

        def batches(draw: np.random.Generator) -> Any:
            return sorted_by_class(data.train.labels, settings["batch"], classes, draw)

        course = self.course(trial, batches=batches)
        return train(model, data, course, trial.seed).numbers()

    def draw(self, results: Results, figure: Any) -> None:
        accuracy, epochs = figure.subplots(*self.panels)
        draw.against(accuracy, results, "test accuracy", "classes in a mini-batch", base=None)
        places = results.places(BATCH)
        draw.ticks(accuracy, places)
        few = places[0]
        draw.curves(epochs, results, "test accuracy", at=few)
        draw.finish(
            epochs, "accuracy", f"test accuracy, {few:g} of {CLASSES} classes in a mini-batch"
        )
        draw.legend(figure, accuracy)

    def findings(self, results: Results) -> list[Finding]:
        found = []
        every = max(results.places(BATCH))
        for at in results.places(BATCH):
            where = f"{at:g} of {CLASSES} classes in a batch"
            if at != every:
                whole = (f"with {every:g}", results.final("test accuracy", BATCH, every))
                few = (f"with {at:g}", results.final("test accuracy", BATCH, at))
                found.append(compare(f"Batch norm loses accuracy, {where}", whole, few))
            pairs = (
                ("Renorm with the schedule is better than batch norm", SCHEDULED, BATCH),
                ("The schedule is better than constants", SCHEDULED, CONSTANT),
            )
            for claim, above, below in pairs:
                found.append(
                    compare_lines(results, f"{claim}, {where}", "test accuracy", above, below, at)
                )
        return found
