"""What forgetting eval() costs, at several sizes of the test batch."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from bench.training import draw
from bench.training.data import Part
from bench.training.experiment import Experiment, Lengths, Settings, Trial
from bench.training.kit import MOMENTUM
from bench.training.perceptron import Shape, perceptron
from bench.training.results import (
    PERCENT,
    Array,
    Finding,
    Numbers,
    Results,
    Variant,
    compare,
    measured,
)
from bench.training.train import train

NETS = ("perceptron", "convnet")
ORDERS = ("shuffled", "sorted by class")


class TrainEval(Experiment):
    """Test in training mode: samples see each other, and the running statistics drift."""

    name = "train-eval"
    title = "Forgetting eval()"
    question = (
        "Nets with batch norm, tested as they should be, and in training mode with test batches of "
        "1, 2, 8 and 64, shuffled and sorted by class. Forgetting eval() is said to ruin small "
        "batches and to be harmless on large ones. The running statistics go on moving, too: the "
        "last numbers are of a proper test afterwards."
    )
    epochs = Lengths(10, 3)
    settings: ClassVar[Settings] = {
        "rate": 0.01,
        "momentum": MOMENTUM,
        "batch": 64,
        "test batches": (1, 2, 8, 64),
        "channels": (8, 16),
        "kernel": 3,
    }
    columns = ("eval", *ORDERS, *(f"afterwards, {order}" for order in ORDERS))
    cost = 6.1
    torch = True

    def variants(self, quick: bool) -> list[Variant]:
        sizes = self.settings["test batches"]
        return [Variant(net, float(size)) for net in NETS for size in sizes]

    def run(self, trial: Trial) -> Numbers:
        size, test = int(trial.variant.place), trial.data.test
        numbers: Numbers = {}
        for order in ORDERS:
            model = self._trained(trial)
            numbers["eval"] = model.evaluate(test.images, test.labels).accuracy
            numbers[order] = _forgetful(model, _ordered(test, order, trial.seed), size)
            after = model.evaluate(test.images, test.labels).accuracy
            numbers[f"afterwards, {order}"] = after
        return numbers

    def _trained(self, trial: Trial) -> Any:
        settings, side = self.settings, trial.data.side
        if trial.variant.line == "perceptron":
            model: Any = perceptron(Shape("batch"), side, trial.seed)
        else:
            from bench.training.networks import convnet, seeded

            net = {name: settings[name] for name in ("channels", "kernel")}
            model = seeded(lambda: convnet("batch", side, hidden=None, **net), trial.seed)
        train(model, trial.data, self.course(trial), trial.seed)
        return model

    def draw(self, results: Results, figure: Any) -> None:
        for axes, net in zip(figure.subplots(*self.panels, sharey=True), NETS, strict=True):
            places = np.array(results.places(net))
            for number, key in enumerate(self.columns):
                label = f"forgotten, {key}" if key in ORDERS else key
                draw.band(axes, places, results.against(key, net), label, number)
            axes.set_xscale("log", base=2)
            axes.set_xlabel("samples in a test batch")
            draw.ticks(axes, results.places(net))
            draw.finish(axes, "accuracy", f"{net}: test accuracy")
        draw.legend(figure, axes)

    def findings(self, results: Results) -> list[Finding]:
        found = []
        for net in NETS:
            for at in results.places(net):
                proper = ("eval()", results.final("eval", net, at))
                for order in ORDERS:
                    forgotten = results.final(order, net, at)
                    where = f"{net}, test batch {at:g}, {order}"
                    if np.isnan(forgotten).all():
                        found.append(measured(f"{where}: refused, as one value has no variance."))
                    else:
                        claim = f"Forgetting eval() costs accuracy: {where}"
                        found.append(compare(claim, proper, ("forgotten", forgotten)))
                if at == results.places(net)[-1]:
                    texts = [
                        f"{order} {PERCENT.text(results.final(f'afterwards, {order}', net, at))}"
                        for order in ORDERS
                    ]
                    text = (
                        f"{net}: tested properly after test batches of {at:g}: {', '.join(texts)}."
                    )
                    found.append(measured(text))
        return found


def _ordered(part: Part, order: str, seed: int) -> Part:
    shuffled = part.take(np.random.default_rng([seed, 4]).permutation(len(part)))
    if order == "shuffled":
        return shuffled
    return shuffled.take(np.argsort(shuffled.labels, kind="stable"))


def _forgetful(model: Any, part: Part, size: int) -> float:
    """Accuracy in training mode, batch by batch; NaN if a batch is refused."""
    right = 0.0
    for at in range(0, len(part), size):
        batch: Array = part.images[at : at + size]
        try:
            score = model.evaluate(batch, part.labels[at : at + size], training=True)
        except ValueError:  # one value per channel: normcore and PyTorch refuse it
            if size == 1:
                return float("nan")
            continue  # the last batch, of one sample
        right += score.accuracy * len(batch)
    return right / len(part)
