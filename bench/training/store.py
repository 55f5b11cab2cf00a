"""A run as JSON: every number and setting, and back, so that a report can be made again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from bench.training.experiments import EXPERIMENTS
from bench.training.results import SECONDS, Numbers, Results, Variant
from bench.training.run import Done, Outcome, Plan

FORMAT = 1
"""Of the JSON: a file of another one is refused by name."""
NAMES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
"""JSON has no word for these numbers: they are strings."""


def content(plan: Plan, outcome: Outcome, machine: dict[str, Any]) -> dict[str, Any]:
    """A run, as JSON takes it."""
    return {
        "format": FORMAT,
        "machine": machine,
        "plan": {**asdict(plan), "mnist": None if plan.mnist is None else str(plan.mnist)},
        "interrupted": outcome.interrupted,
        "missing": outcome.missing,
        "checks": outcome.checks,
        "experiments": {done.experiment.name: _experiment(plan, done) for done in outcome.done},
    }


def _experiment(plan: Plan, done: Done) -> dict[str, Any]:
    experiment, results = done.experiment, done.results
    variants = [
        {
            **asdict(variant),
            "numbers": [_without_seconds(numbers) for numbers in of_seeds],
            SECONDS: [numbers.get(SECONDS) for numbers in of_seeds],
        }
        for variant, of_seeds in results.numbers.items()
    ]
    return {
        "title": experiment.title,
        "settings": dict(experiment.settings),
        "epochs": plan.epochs_of(experiment),
        "seeds": results.seeds,
        "digest": digest(results),
        "findings": [asdict(finding) for finding in experiment.findings(results)],
        "core_seconds": done.seconds,
        "variants": variants,
    }


def _without_seconds(numbers: Numbers) -> dict[str, Any]:
    return {key: _plain(value) for key, value in numbers.items() if key != SECONDS}


def _plain(value: float | list[float]) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if isfinite(value) else str(value)


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(one) for one in value]
    return NAMES[value] if isinstance(value, str) else value


def digest(results: Results) -> str:
    """Of every bit of the numbers but the times: equal for equal seeds on one machine."""
    every = [
        [asdict(variant), [_without_seconds(numbers) for numbers in of_seeds]]
        for variant, of_seeds in results.numbers.items()
    ]
    # repr of a float, which json writes, names its bits.
    return hashlib.sha256(json.dumps([results.seeds, every]).encode()).hexdigest()[:16]


def write(path: Path, found: dict[str, Any]) -> None:
    """One line per list of numbers: readable, and a third of the size of an indented file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(found, 0) + "\n")


def _text(value: Any, depth: int) -> str:
    pad, end = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict) and value:
        parts = [f"{json.dumps(key)}: {_text(one, depth + 1)}" for key, one in value.items()]
        return "{" + pad + ("," + pad).join(parts) + end + "}"
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return "[" + pad + ("," + pad).join(_text(one, depth + 1) for one in value) + end + "]"
    return json.dumps(value, allow_nan=False)


def read(path: Path) -> dict[str, Any]:
    """The content of a file that this version has written, else ValueError."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(
            f"{path}: not of this version of `python -m bench training` (format {FORMAT})"
        )
    return found


def restored(found: dict[str, Any]) -> dict[str, Results]:
    """Experiment -> its numbers, from the content of a file."""
    every = {}
    for name, of_one in found["experiments"].items():
        if name not in EXPERIMENTS:
            raise ValueError(f"experiments: expected {', '.join(EXPERIMENTS)}, got {name}")
        results = Results(of_one["seeds"])
        for entry in of_one["variants"]:
            results.numbers[Variant(entry["line"], entry["at"])] = [
                {key: _number(value) for key, value in numbers.items()}
                | ({} if seconds is None else {SECONDS: seconds})
                for numbers, seconds in zip(entry["numbers"], entry[SECONDS], strict=True)
            ]
        every[name] = results
    return every
