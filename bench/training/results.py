"""The numbers of an experiment: of every variant and seed, with mean, spread and comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Numbers = dict[str, float | list[float]]
"""What one variant gave with one seed: name -> number, or one per epoch, step or size."""
SECONDS = "seconds"
"""The one name whose numbers differ from run to run."""
CONFIDENCE = 0.95
ENOUGH = 3
"""Seeds: two agree too often by chance, above all in accuracies, which are counts."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One curve, or one point of one curve, of an experiment."""

    line: str
    at: float | None = None
    """Where on the horizontal axis, if the line is drawn against something that varies."""

    @property
    def place(self) -> float:
        """Where it is on the axis; ValueError if it is a whole curve."""
        if self.at is None:
            raise ValueError(f"at: expected a place on the axis, got none ({self.line})")
        return self.at


@dataclass(slots=True)
class Results:
    """Of one experiment; every variant has the same seeds."""

    seeds: list[int]
    numbers: dict[Variant, list[Numbers]] = field(default_factory=dict)
    """In the order of the seeds."""

    @property
    def lines(self) -> list[str]:
        return list(dict.fromkeys(variant.line for variant in self.numbers))

    def places(self, line: str) -> list[float]:
        """Where a line has points."""
        found = [v.at for v in self.numbers if v.line == line and v.at is not None]
        return sorted(found)

    def get(self, key: str, line: str, at: float | None = None) -> Array:
        """(seeds,) or (seeds, length), float64."""
        of_seeds = self.numbers[Variant(line, at)]
        return np.array([numbers[key] for numbers in of_seeds], np.float64)

    def final(self, key: str, line: str, at: float | None = None) -> Array:
        """(seeds,): the number, or the last of several."""
        found = self.get(key, line, at)
        return found if found.ndim == 1 else found[:, -1]

    def against(self, key: str, line: str) -> Array:
        """(seeds, places): the final numbers along a line."""
        return np.stack([self.final(key, line, at) for at in self.places(line)], axis=1)


class Difference(NamedTuple):
    """The mean of paired differences and half the width of its confidence interval."""

    mean: float
    half: float

    @property
    def clear(self) -> bool:
        """Does the interval leave out 0?"""
        return abs(self.mean) > self.half


def difference(a: Array, b: Array) -> Difference:
    """Of a - b over the seeds, by Student's t; of fewer than `ENOUGH` nothing is known."""
    from scipy.stats import t

    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Difference(float("nan"), float("nan"))
    gaps = a - b
    n = len(gaps)
    if n < ENOUGH:
        return Difference(float(gaps.mean()), float("inf"))
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Difference(float(gaps.mean()), quantile * float(gaps.std(ddof=1)) / n**0.5)


def spread(values: Array) -> float:
    """Standard deviation over the seeds, 0 for a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Unit:
    """How numbers of a kind are written."""

    factor: float = 1.0
    places: int = 3
    suffix: str = ""

    def number(self, value: float) -> str:
        return f"{self.factor * value:.{self.places}f}"

    def text(self, values: Array) -> str:
        """Mean and spread over the seeds."""
        infinite = int(np.count_nonzero(~np.isfinite(values)))
        if infinite:
            return f"no number for {infinite} of {len(values)} seeds"
        mean, deviation = float(np.mean(values)), spread(values)
        return f"{self.number(mean)} ± {self.number(deviation)}{self.suffix}"


PERCENT = Unit(100, 1, " %")
PLAIN = Unit()
COUNT = Unit(1, 1)

SHOWN, HIDDEN, CONTRARY, MEASURED = "shown", "not shown", "contrary", "measured"
VERDICTS = (SHOWN, HIDDEN, CONTRARY, MEASURED)


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence of a report, and what it says of the claim that it is about."""

    verdict: str
    """One of `VERDICTS`; "measured" is about no claim."""
    text: str


def compare(
    claim: str, above: tuple[str, Array], below: tuple[str, Array], unit: Unit = PERCENT
) -> Finding:
    """Judge the claim that one quantity is greater than another, over paired seeds."""
    (high, a), (low, b) = above, below
    gap = difference(a, b)
    numbers = f"{high} {unit.text(a)}, {low} {unit.text(b)}"
    if not np.isfinite(gap.mean):
        return Finding(HIDDEN, f"{claim}: {numbers}; no comparison.")
    if not np.isfinite(gap.half):
        return Finding(HIDDEN, f"{claim}: {numbers}; too few seeds to judge.")
    interval = f"{unit.number(gap.mean - gap.half)} to {unit.number(gap.mean + gap.half)}"
    verdict = HIDDEN if not gap.clear else SHOWN if gap.mean > 0 else CONTRARY
    return Finding(
        verdict, f"{claim}: {numbers} (difference, with 95 % confidence: {interval}{unit.suffix})."
    )


def compare_lines(
    results: Results,
    claim: str,
    key: str,
    above: str,
    below: str,
    at: float | None = None,
    unit: Unit = PERCENT,
) -> Finding:
    """Judge the claim that a final number of one line is greater than that of another."""
    high, low = ((line, results.final(key, line, at)) for line in (above, below))
    return compare(claim, high, low, unit)


def measured(text: str) -> Finding:
    return Finding(MEASURED, text)
