"""``python -m bench compare OLD.json NEW.json``: what became slower, beyond the noise of the runs.

Kernels are compared by their ratio to the limit of their own run, so that a faster or busier
machine is no news; calls and processes by their seconds. Each timing brings its own noise (see
`Timing.noise`), and each run the noise that 19 of 20 of its timings stay below: a change counts
when it is beyond both, the limit's own noise included, of both runs together.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich import box
from rich.table import Table

from bench import report
from bench.record import read_json
from bench.targets import duration

USUAL = 0.95
"""Share of a run's timings whose noise its usual noise covers."""
Key = tuple[str, ...]
"""Part, case, pass, threads, engine; or use and engine."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One timing as it is compared."""

    seconds: float
    value: float
    """Times the limit, where there is one; else seconds."""
    noise: float | None


@dataclass(frozen=True, slots=True)
class Change:
    """One timing in both runs."""

    key: Key
    old: Measured
    new: Measured
    noise: float

    @property
    def share(self) -> float:
        """Of the old value; positive is slower."""
        return self.new.value / self.old.value - 1

    @property
    def counts(self) -> bool:
        # In logarithms, so that twice and half are equally far.
        return (
            max(self.new.value / self.old.value, self.old.value / self.new.value) > 1 + self.noise
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("old", "new"):
        parser.add_argument(name, type=Path, metavar=f"{name.upper()}.json")
    parser.add_argument(
        "--all", action="store_true", help="also peers and rivals, not only normcore's backends"
    )


def main(given: argparse.Namespace) -> int:
    """Print what changed; the exit status is 1 if anything of normcore became slower or wrong."""
    console = report.console()
    try:
        old, new = (read_json(path) for path in (given.old, given.new))
    except ValueError as error:
        console.print(f"[red]{error}[/]")
        return 2
    changes = list(compared(old, new))
    counted = [one for one in changes if one.counts and (given.all or ours(one.key))]
    slower = sorted((one for one in counted if one.share > 0), key=lambda one: -one.share)
    faster = sorted((one for one in counted if one.share < 0), key=lambda one: one.share)
    for title, found in (("slower", slower), ("faster", faster)):
        if found:
            console.print(_table(title, found))
    wrong = sorted(refused(new) - refused(old))
    for key in wrong:
        console.print(f"[red]now refused:[/] {' '.join(key)}")
    noises = ", ".join(f"{100 * usual_noise(run):.1f} %" for run in (old, new))
    console.print(
        f"{len(changes)} timings in both, {len(slower)} slower, {len(faster)} faster; usual noise "
        f"of the runs: {noises}; the limits took {_of_limits(old, new):+.1%}"
    )
    return 1 if wrong or any(ours(one.key) for one in slower) else 0


def compared(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """Everything that both runs have measured."""
    before, after = dict(_timings(old)), dict(_timings(new))
    usual = hypot(usual_noise(old), usual_noise(new))
    for key in before.keys() & after.keys():
        own = hypot(before[key].noise or 0, after[key].noise or 0)
        yield Change(key, before[key], after[key], max(usual, own))


def usual_noise(content: dict[str, Any]) -> float:
    """The noise that `USUAL` of a run's timings stay below; 0 where none is known."""
    known = [one.noise for _, one in _timings(content) if one.noise is not None]
    if len(known) < 2:
        return max(known, default=0.0)
    return quantiles(known, n=100, method="inclusive")[int(100 * USUAL) - 1]


def refused(content: dict[str, Any]) -> set[Key]:
    """The results that failed the oracle."""
    return {
        (*key, name)
        for key, entry in _entries(content)
        for name, result in entry["engines"].items()
        if result["timing"] is None
    }


def ours(key: Key) -> bool:
    return key[-1] in ("cython", "numba", "numpy", "-")


def _entries(content: dict[str, Any]) -> Iterator[tuple[Key, dict[str, Any]]]:
    for part, entries in {"kernels": content["kernels"], **content["series"]}.items():
        for entry in entries:
            yield (part, entry["case"], entry["pass"], str(entry["threads"])), entry


def _timings(content: dict[str, Any]) -> Iterator[tuple[Key, Measured]]:
    for key, entry in _entries(content):
        limit = entry["limit"]
        for name, result in entry["engines"].items():
            timing = result["timing"]
            if timing is not None:
                yield (*key, name), _measured(timing, limit)
    for use in content["uses"]:
        if use["timing"] is not None:
            yield (use["what"], use["engine"]), _measured(use["timing"], use["limit"])


def _measured(timing: dict[str, Any], limit: dict[str, Any] | None) -> Measured:
    best = timing["best"]
    if limit is None:
        return Measured(best, best, timing["noise"])
    known = [one["noise"] for one in (timing, limit) if one["noise"] is not None]
    return Measured(best, best / limit["best"], hypot(*known) if known else None)


def _of_limits(old: dict[str, Any], new: dict[str, Any]) -> float:
    """How much longer the limits took, in the middle."""
    before = {key: entry["limit"]["best"] for key, entry in _entries(old)}
    both = [entry["limit"]["best"] / before[key] for key, entry in _entries(new) if key in before]
    return median(both) - 1 if both else 0.0


def _table(title: str, changes: Iterable[Change]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("what")
    for heading in ("old", "new", "old x limit", "new x limit", "change", "noise"):
        table.add_column(heading, justify="right")
    for change in changes:
        pair = (change.old, change.new)
        ratios = (f"{one.value:.2f}" if one.value != one.seconds else "-" for one in pair)
        table.add_row(
            " ".join(change.key),
            *(duration(one.seconds) for one in pair),
            *ratios,
            f"{change.share:+.0%}",
            f"{change.noise:.0%}",
        )
    return table
