"""What a run says to programs: JSON, from which tables and figures are made again.

Seconds and bytes, everything that was measured, with the machine that it was measured on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.api import Use
from bench.engines import PEERS
from bench.layout import layout
from bench.measure import Comparison
from bench.targets import Judgement, bound_of, fastest

FORMAT = 3
"""Of the JSON: a file of another one is refused by name."""
Entry = dict[str, Any]
"""One comparison as JSON."""


@dataclass(slots=True)
class Run:
    """Everything that one run has measured."""

    machine: dict[str, Any]
    titles: dict[str, str]
    """Of engines, by their names."""
    settings: dict[str, Any]
    kernels: list[Comparison] = field(default_factory=list)
    series: dict[str, list[Comparison]] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)

    @property
    def comparisons(self) -> list[Comparison]:
        return [*self.kernels, *(one for of_series in self.series.values() for one in of_series)]


def content(run: Run) -> dict[str, Any]:
    """A run, as JSON takes it."""
    return {
        "format": FORMAT,
        "machine": run.machine,
        "settings": run.settings,
        "titles": run.titles,
        "kernels": entries(run.kernels),
        "series": {name: entries(of_series) for name, of_series in run.series.items()},
        "uses": [asdict(use) for use in run.uses],
        "targets": [asdict(judgement) for judgement in run.judgements],
    }


def entries(comparisons: Sequence[Comparison]) -> list[Entry]:
    return [_entry(comparison) for comparison in comparisons]


def _entry(comparison: Comparison) -> Entry:
    case = comparison.case
    return {
        "case": case.name,
        "label": case.label,
        "shape": list(case.shape),
        "axis": case.axis,
        "layer": case.layer,
        "dtype": case.dtype,
        "model": case.model,
        "offset": case.offset,
        "array_bytes": case.nbytes,
        "fused": [
            *(name for name in ("residual", "addend") if getattr(case, name)),
            *([case.activation] if case.activation else []),
        ],
        "family": layout(case).family,
        "sizes": list(layout(case).sizes),
        "pass": comparison.task.name,
        "promised": None if case.fused else bound_of(case, comparison.task.name),
        "threads": comparison.threads,
        "bytes": comparison.bytes,
        "limit": {**asdict(comparison.limit), "probe": comparison.probe},
        "bare": None if comparison.bare is None else asdict(comparison.bare),
        "engines": {
            name: {
                "timing": None if result.timing is None else asdict(result.timing),
                "errors": result.verdict.errors,
                "complaint": result.verdict.complaint,
            }
            for name, result in comparison.results.items()
        },
    }


def write_json(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file that this version has written, else ValueError."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path}: not of this version of `python -m bench` (format {FORMAT})")
    return found


# Reading entries.


def seconds(entry: Entry, engine: str) -> float | None:
    """Best time of an engine, None if it took no part or was refused."""
    timing = entry["engines"].get(engine, {}).get("timing")
    return None if timing is None else float(timing["best"])


def times_limit(entry: Entry, engine: str) -> float | None:
    found = seconds(entry, engine)
    return None if found is None else found / entry["limit"]["best"]


def worst_error(entry: Entry, engine: str) -> float:
    """The largest error, NaN if any is."""
    errors = entry["engines"][engine]["errors"].values()
    return float("nan") if any(error != error for error in errors) else max(errors)


def best_peer(entry: Entry) -> str | None:
    """The fastest peer that took part."""
    return fastest({name: seconds(entry, name) for name in PEERS})
