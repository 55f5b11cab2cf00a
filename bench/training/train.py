"""The one training loop, for whatever computes a step: NumPy or PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np

from bench.training.data import Data, shuffled
from bench.training.kit import decayed
from bench.training.results import SECONDS, Numbers

Array = np.ndarray[Any, Any]
Batches = Callable[[np.random.Generator], Iterable[Array]]
"""Indices of the mini-batches of an epoch."""


class Score(NamedTuple):
    """Mean loss, and the share of samples that are classified right."""

    loss: float
    accuracy: float


class Model(Protocol):
    """What is trained."""

    def step(self, images: Array, labels: Array, rate: float) -> float:
        """Learn from a batch; its loss before that."""

    def evaluate(self, images: Array, labels: Array) -> Score:
        """In evaluation mode."""


@dataclass(frozen=True, slots=True)
class Course:
    """How to train."""

    epochs: int
    rate: float = 0.01
    decay: float = 1.0
    """Of the learning rate, per epoch."""
    batch: int = 64
    batches: Batches | None = None
    """Instead of shuffled ones of `batch`."""


@dataclass(slots=True)
class History:
    """What was seen, per epoch; scores are in evaluation mode, behind the epoch."""

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def numbers(self) -> Numbers:
        return {
            "train loss": self.train_loss,
            "train accuracy": self.train_accuracy,
            "test loss": self.test_loss,
            "test accuracy": self.test_accuracy,
            SECONDS: self.seconds,
        }


def train(
    model: Model,
    data: Data,
    course: Course,
    seed: int,
    watch: Callable[[Array, Array, float], None] | None = None,
) -> History:
    """Train by mini-batches in an order of this seed.

    `watch` is called before each step with the batch and the learning rate. Losses that overflow
    are what some experiments look for: no warnings.
    """
    draw = np.random.default_rng([seed, 2])
    part, history = data.train, History()
    batches = course.batches or (lambda draw: shuffled(len(part), course.batch, draw))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for epoch in range(course.epochs):
            start = perf_counter()
            rate = decayed(course.rate, course.decay, epoch)
            for which in batches(draw):
                images, labels = part.images[which], part.labels[which]
                if watch is not None:
                    watch(images, labels, rate)
                model.step(images, labels, rate)
            history.seconds.append(perf_counter() - start)
            for scores, score in (
                ((history.train_loss, history.train_accuracy), part),
                ((history.test_loss, history.test_accuracy), data.test),
            ):
                for seen, value in zip(
                    scores, model.evaluate(score.images, score.labels), strict=True
                ):
                    seen.append(value)
    return history
