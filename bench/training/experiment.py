"""What an experiment is: variants to run with every seed, a figure, findings from the numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.training.data import Data
from bench.training.results import Finding, Numbers, Results, Variant
from bench.training.train import Course

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of a full run and of a quick one."""

    full: int
    quick: int

    def of(self, quick: bool) -> int:
        return self.quick if quick else self.full


@dataclass(frozen=True, slots=True)
class Trial:
    """One variant with one seed."""

    variant: Variant
    data: Data
    seed: int
    epochs: int


class Experiment(ABC):
    """One question, answered by training networks.

    `run` is called in a worker process and gives the same numbers wherever and whenever it is
    called; `draw` and `findings` see nothing but numbers, which may come from a file.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    """What is compared, and what textbooks say comes out."""
    epochs: ClassVar[Lengths]
    settings: ClassVar[Settings]
    """Everything else that the numbers depend on; JSON takes it."""
    columns: ClassVar[tuple[str, ...]]
    """Names of the numbers that the report's table shows."""
    cost: ClassVar[float]
    """Seconds of one core for all variants and one seed of a full run, as measured."""
    torch: ClassVar[bool] = False
    """Does it need PyTorch?"""
    each_epoch: ClassVar[bool] = False
    """Does the report have a line for each epoch?"""
    panels: ClassVar[tuple[int, int]] = (1, 2)
    """Rows and columns of the figure."""

    @abstractmethod
    def variants(self, quick: bool) -> list[Variant]:
        """In the order in which figures and tables show them."""

    def course(self, trial: Trial, **instead: Any) -> Course:
        """How the settings say to train, but for what is given here.

        If they have a "rate is of batch", the learning rate is in proportion to the batch.
        """
        names = [name for name in ("rate", "decay", "batch") if name in self.settings]
        chosen = {name: self.settings[name] for name in names} | instead
        if "rate is of batch" in self.settings:
            chosen["rate"] = chosen["rate"] * chosen["batch"] / self.settings["rate is of batch"]
        return Course(trial.epochs, **chosen)

    @abstractmethod
    def run(self, trial: Trial) -> Numbers:
        """Train and measure."""

    @abstractmethod
    def draw(self, results: Results, figure: Any) -> None:
        """Fill an empty `matplotlib.figure.Figure`."""

    @abstractmethod
    def findings(self, results: Results) -> list[Finding]:
        """What the numbers say."""
