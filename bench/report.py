"""What a run says: tables for people, JSON for programs. `bench.figure` draws the picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.api import ApiResult
from bench.engines import Engine
from bench.layout import layout
from bench.machine import sentence
from bench.measure import Comparison, Result
from bench.targets import Judgement, duration

PEERS = ("textbook", "torch")
LEGEND = (
    "limit: the fastest probe that moves the same bytes, in the same rounds; x peer: how many "
    "times as fast as that peer; error: the worst against the float64 oracle."
)


def console() -> Console:
    """Rich's console; what is piped gets a width that the tables fit into."""
    found = Console()
    return found if found.is_terminal else Console(width=110)


def kernel_tables(
    comparisons: Sequence[Comparison], engines: Sequence[Engine], machine: dict[str, Any]
) -> list[Table]:
    """One table per case."""
    titles = {engine.name: engine.title for engine in engines}
    found = []
    for label, group in groupby(comparisons, key=lambda comparison: comparison.case.label):
        of_case = list(group)
        case = of_case[0].case
        seen, megabytes = layout(case), case.elements * case.storage.itemsize / 1e6
        table = Table(
            title=f"{label} as {seen.family} {seen.sizes}: {megabytes:.3g} MB per array",
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column("pass", no_wrap=True)
        table.add_column("who", no_wrap=True)
        for heading in ("time", "GB/s", "% limit", *(f"x {peer}" for peer in PEERS), "error"):
            table.add_column(heading, justify="right", no_wrap=True)
        for comparison in of_case:
            _section(table, comparison, titles)
        found.append(table)
    found[-1].caption = f"{LEGEND} {sentence(machine)}"
    return found


def _section(table: Table, comparison: Comparison, titles: dict[str, str]) -> None:
    limit = comparison.limit.best
    table.add_row(
        comparison.task.name,
        f"limit: {comparison.probe}",
        duration(limit),
        f"{comparison.rate(limit):.1f}",
        "100",
        *[""] * (len(PEERS) + 1),
        style="dim",
    )
    last = len(comparison.results) - 1
    for position, (name, result) in enumerate(comparison.results.items()):
        table.add_row(
            "",
            titles[name],
            *_figures(comparison, result),
            style="bold" if result.ours else "",
            end_section=position == last,
        )


def _figures(comparison: Comparison, result: Result) -> list[str]:
    error = f"{result.verdict.worst:.1e}"
    if result.timing is None:
        return ["[red]WRONG[/]", *["-"] * (2 + len(PEERS)), f"[red]{error}[/]"]
    seconds = result.timing.best
    against = [comparison.seconds(peer) for peer in PEERS]
    return [
        duration(seconds),
        f"{result.width * comparison.rate(seconds):.1f}",
        f"{100 * comparison.limit.best / seconds:.0f}",
        *("-" if other is None else f"{other / seconds:.2f}" for other in against),
        error,
    ]


def api_table(results: Sequence[ApiResult]) -> Table:
    """The public API's figures."""
    table = Table(title="public API", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("what", "backend"):
        table.add_column(heading)
    for heading in ("time", "GB/s", "% limit", "error"):
        table.add_column(heading, justify="right")
    for result in results:
        best = result.timing.best
        table.add_row(
            result.what,
            result.engine,
            duration(best),
            f"{result.bytes / best / 1e9:.1f}" if result.bytes else "-",
            f"{100 * result.limit.best / best:.0f}" if result.limit else "-",
            "-" if result.error is None else f"{result.error:.1e}",
        )
    return table


def target_table(judgements: Sequence[Judgement]) -> Table:
    """Promise by promise: kept, or falls short."""
    table = Table(title="targets", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("what", "backend"):
        table.add_column(heading)
    for heading in ("measured", "promised"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for one in judgements:
        verdict = "[green]pass[/]" if one.kept else "[red]falls short[/]"
        table.add_row(one.what, one.engine, one.measured, one.promised, verdict)
    return table


def complaints(comparisons: Sequence[Comparison]) -> list[str]:
    """Every refused kernel and why."""
    return [
        f"{comparison.case.name} {comparison.task.name} {name}: {result.verdict.complaint}"
        for comparison in comparisons
        for name, result in comparison.results.items()
        if result.timing is None
    ]


def record(
    machine: dict[str, Any],
    comparisons: Sequence[Comparison],
    api: Sequence[ApiResult],
    judgements: Sequence[Judgement],
) -> dict[str, Any]:
    """Everything that was measured, as JSON takes it; seconds and bytes."""
    return {
        "machine": machine,
        "kernels": [
            {
                "case": comparison.case.name,
                "shape": comparison.case.shape,
                "axis": comparison.case.axis,
                "layer": comparison.case.layer,
                "dtype": comparison.case.dtype,
                "fused": [
                    *(name for name in ("residual", "addend") if getattr(comparison.case, name)),
                    *([comparison.case.activation] if comparison.case.activation else []),
                ],
                "family": layout(comparison.case).family,
                "sizes": layout(comparison.case).sizes,
                "pass": comparison.task.name,
                "bytes": comparison.bytes,
                "limit": {**asdict(comparison.limit), "probe": comparison.probe},
                "engines": {
                    name: {
                        "timing": None if result.timing is None else asdict(result.timing),
                        "errors": result.verdict.errors,
                        "complaint": result.verdict.complaint,
                    }
                    for name, result in comparison.results.items()
                },
            }
            for comparison in comparisons
        ],
        "api": [asdict(result) for result in api],
        "targets": [asdict(judgement) for judgement in judgements],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
