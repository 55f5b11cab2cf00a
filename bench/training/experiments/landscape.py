"""How the loss and its gradient change along the gradient, with and without batch norm."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

import numpy as np

from bench.training import draw
from bench.training.experiment import Experiment, Lengths, Settings, Trial
from bench.training.kit import MOMENTUM
from bench.training.perceptron import Perceptron, Shape, perceptron
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
from bench.training.sweep import WITH, WITHOUT
from bench.training.train import train


class Landscape(Experiment):
    """Santurkar et al. (2018): batch norm makes the landscape smoother."""

    name = "landscape"
    title = "Loss landscape"
    question = (
        "Every few steps, the loss of the batch and its gradient are computed at points along the "
        "gradient, half a step to four steps away. Santurkar et al. (2018) found a narrower range "
        "of losses and a more predictive gradient with batch norm. Distances of gradients are "
        "relative to the gradient at the start."
    )
    epochs = Lengths(8, 2)
    settings: ClassVar[Settings] = {
        "rates": (0.01, 0.1),
        "momentum": MOMENTUM,
        "batch": 64,
        "every": 8,
        "steps away": (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0),
    }
    columns = ("mean range", "mean distance")
    cost = 0.9
    panels = (2, 2)

    def variants(self, quick: bool) -> list[Variant]:
        return [Variant(line, rate) for line in (WITHOUT, WITH) for rate in self.settings["rates"]]

    def run(self, trial: Trial) -> Numbers:
        shape = Shape("batch" if trial.variant.line == WITH else None)
        model = perceptron(shape, trial.data.side, trial.seed)
        seen: dict[str, list[float]] = {"step": [], "lowest": [], "highest": [], "distance": []}
        steps = 0

        def watch(images: Array, labels: Array, rate: float) -> None:
            nonlocal steps
            steps += 1
            if (steps - 1) % self.settings["every"] == 0:
                losses, distances = _along(model, images, labels, rate, self.settings["steps away"])
                seen["step"].append(float(steps))
                seen["lowest"].append(float(losses.min()))
                seen["highest"].append(float(losses.max()))
                seen["distance"].append(float(distances.max()))

        course = self.course(trial, rate=trial.variant.place)
        train(model, trial.data, course, trial.seed, watch)
        seen["range"] = list(np.subtract(seen["highest"], seen["lowest"]))
        return {
            **seen,
            "mean range": float(np.mean(seen["range"])),
            "mean distance": float(np.mean(seen["distance"])),
        }

    def draw(self, results: Results, figure: Any) -> None:
        panels = figure.subplots(*self.panels)
        for (losses, distances), rate in zip(panels, results.places(WITH), strict=True):
            for line in results.lines:
                steps = results.get("step", line, rate)[0]
                low, high = (
                    results.get(key, line, rate).mean(axis=0) for key in ("lowest", "highest")
                )
                colour = draw.colours(results)[line]
                losses.fill_between(steps, low, high, color=colour, alpha=0.35, label=line)
                distance = results.get("distance", line, rate)
                draw.band(distances, steps, distance, line, results.lines.index(line))
            losses.set_yscale("log")
            for axes, title in (
                (losses, f"range of losses along the gradient, rate {rate:g}"),
                (distances, f"largest relative distance of gradients, rate {rate:g}"),
            ):
                axes.set_xlabel("step")
                draw.finish(axes, "", title)
        draw.legend(figure, panels[0, 1])

    def findings(self, results: Results) -> list[Finding]:
        def relative(line: str, rate: float) -> tuple[str, Array]:
            of_steps = results.get("range", line, rate) / results.get("highest", line, rate)
            return line, of_steps.mean(axis=1)

        found = []
        for rate in results.places(WITH):
            where = f"at a rate of {rate:g} (means over steps)"
            for key, what in (
                ("mean range", "The range of losses is narrower with batch norm"),
                ("mean distance", "The gradient is more predictive with it"),
            ):
                found.append(
                    compare_lines(results, f"{what}, {where}", key, WITHOUT, WITH, rate, PLAIN)
                )
            claim = f"The range relative to the loss itself is narrower, {where}"
            pair = relative(WITHOUT, rate), relative(WITH, rate)
            found.append(compare(claim, *pair, unit=PLAIN))
        return found


def _along(
    model: Perceptron, images: Array, labels: Array, rate: float, away: tuple[float, ...]
) -> tuple[Array, Array]:
    """Losses of the batch along its gradient, and relative distances of the gradients there."""
    # A copy, whose running statistics may move.
    probe = Perceptron(deepcopy(model.net))
    parameters = probe.net.parameters
    start = [parameter.value.copy() for parameter in parameters]
    probe.gradients(images, labels)
    first = [parameter.grad.copy() for parameter in parameters]
    norm = _norm(first)
    losses, distances = [], []
    for steps in away:
        for parameter, value, gradient in zip(parameters, start, first, strict=True):
            parameter.value[...] = value - rate * steps * gradient
        losses.append(probe.gradients(images, labels))
        gaps = [parameter.grad - g for parameter, g in zip(parameters, first, strict=True)]
        distances.append(_norm(gaps) / norm)
    return np.array(losses), np.array(distances)


def _norm(arrays: list[Array]) -> float:
    return float(np.sqrt(sum(np.square(values, dtype=np.float64).sum() for values in arrays)))
