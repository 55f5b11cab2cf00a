"""What a run says to people: tables. `bench.record` has the JSON, `bench.figures` the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.api import Use
from bench.layout import layout
from bench.machine import sentence
from bench.measure import Comparison, Result
from bench.targets import GROUPS, Judgement, best_peer, duration

LEGEND = (
    "limit: the fastest probe that moves the same bytes, in the same rounds; bare loops: the same "
    "bytes in the order of a norm, all of a block before any of it is written; x best peer: how "
    "many times as fast as the fastest of the peers; error: the worst against the float64 oracle."
)


def console() -> Console:
    """Rich's console; what is piped gets a width that the tables fit into."""
    found = Console()
    return found if found.is_terminal else Console(width=110)


def kernel_tables(
    comparisons: Sequence[Comparison], titles: dict[str, str], machine: dict[str, Any]
) -> list[Table]:
    """One table per case."""
    found = []
    for label, group in groupby(comparisons, key=lambda comparison: comparison.case.label):
        of_case = list(group)
        case = of_case[0].case
        seen, megabytes = layout(case), case.nbytes / 1e6
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
        for heading in ("time", "GB/s", "% limit", "x best peer", "error"):
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
        *[""] * 2,
        style="dim",
    )
    if comparison.bare is not None:
        best = comparison.bare.best
        table.add_row(
            "",
            "bare loops: sums, then writing",
            duration(best),
            f"{comparison.rate(best):.1f}",
            f"{100 * limit / best:.0f}",
            *[""] * 2,
            style="dim",
        )
    last = len(comparison.results) - 1
    for position, (name, result) in enumerate(comparison.results.items()):
        table.add_row(
            "",
            titles[name],
            *_figures(comparison, name, result),
            style="bold" if result.ours else "",
            end_section=position == last,
        )


def _figures(comparison: Comparison, name: str, result: Result) -> list[str]:
    error = f"{result.verdict.worst:.1e}"
    if result.timing is None:
        return ["[red]WRONG[/]", *["-"] * 3, f"[red]{error}[/]"]
    seconds = result.timing.best
    peer = best_peer(comparison)
    best = None if peer is None else comparison.seconds(peer)
    against = "-" if best is None else f"{best / seconds:.2f}"
    return [
        duration(seconds),
        f"{result.width * comparison.rate(seconds):.1f}",
        f"{100 * comparison.limit.best / seconds:.0f}",
        "best peer" if name == peer else against,
        error,
    ]


def seconds(use: Use) -> str:
    return "-" if use.timing is None else duration(use.timing.best)


def use_table(uses: Sequence[Use], titles: dict[str, str]) -> Table:
    """Calls as users make them, and what only a fresh process shows."""
    table = Table(title="calls, processes, memory", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("what", "who"):
        table.add_column(heading)
    for heading in ("time", "GB/s", "% limit", "KiB", "error"):
        table.add_column(heading, justify="right")
    for use in uses:
        best = None if use.timing is None else use.timing.best
        table.add_row(
            use.what,
            titles.get(use.engine, use.engine),
            seconds(use),
            f"{use.bytes / best / 1e9:.1f}" if best and use.bytes else "-",
            f"{100 * use.limit.best / best:.0f}" if best and use.limit else "-",
            "-" if use.extra_bytes is None else str(use.extra_bytes >> 10),
            "-" if use.error is None else f"{use.error:.1e}",
        )
    return table


def series_table(name: str, comparisons: Sequence[Comparison], titles: dict[str, str]) -> Table:
    """A series: one line per case and task, one column of times the limit per engine."""
    names = [engine for engine in titles if any(engine in c.results for c in comparisons)]
    table = Table(
        title=f"{name}: times the limit, and the worst error",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("what", no_wrap=True)
    table.add_column("threads", justify="right")
    table.add_column("limit", justify="right", no_wrap=True)
    for engine in names:
        table.add_column(engine, justify="right", overflow="fold")
    for comparison in comparisons:
        table.add_row(
            f"{comparison.case.name} {comparison.task.name}",
            str(comparison.threads),
            duration(comparison.limit.best),
            *(_times(comparison, engine) for engine in names),
        )
    return table


def _times(comparison: Comparison, engine: str) -> str:
    result = comparison.results.get(engine)
    if result is None:
        return "-"
    error = f"{result.verdict.worst:.0e}"
    if result.timing is None:
        return f"[red]WRONG {error}[/]"
    return f"{result.timing.best / comparison.limit.best:.2f} {error}"


def target_tables(judgements: Sequence[Judgement]) -> list[Table]:
    """How many promises are kept, and every one that is missed or in the table of limits."""
    total = Table(title="targets", title_justify="left", box=box.SIMPLE_HEAD)
    total.add_column("promise")
    for heading in ("kept", "missed"):
        total.add_column(heading, justify="right")
    every = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("what", "who"):
        every.add_column(heading)
    for heading in ("measured", "promised"):
        every.add_column(heading, justify="right")
    every.add_column("verdict")
    for group, title in GROUPS.items():
        of_group = [one for one in judgements if one.group == group]
        if not of_group:
            continue
        kept = sum(one.kept for one in of_group)
        total.add_row(title, str(kept), str(len(of_group) - kept))
        shown = [one for one in of_group if group == "limit" or not one.kept]
        for one in shown:
            verdict = "[green]kept[/]" if one.kept else "[red]missed[/]"
            every.add_row(
                *(one.what, one.engine, one.measured, one.promised, verdict),
                end_section=one is shown[-1],
            )
    return [total, every] if every.row_count else [total]


def complaints(comparisons: Sequence[Comparison]) -> list[str]:
    """Every refused kernel and why."""
    return [
        f"{comparison.case.name} {comparison.task.name} {name}: {result.verdict.complaint}"
        for comparison in comparisons
        for name, result in comparison.results.items()
        if result.timing is None
    ]
