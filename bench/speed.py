"""``python -m bench speed``: verify, time, and report every kernel of every backend on real data.

Without arguments it measures everything that the README shows. Naming cases or dtypes leaves out
the parts that are not about them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import api, processes, record, report, sweeps
from bench.arguments import add_threads
from bench.cases import CASES, QUICK_ELEMENTS, SUFFIX, Case
from bench.engines import ENGINES, SLOW, Engine, available, with_rivals
from bench.figures import draw
from bench.machine import describe
from bench.measure import Comparison, compare, steps
from bench.record import Run
from bench.targets import bound_of, judge

BUSY = 0.5
"""Load average beyond which somebody else is using the cores."""
RESULTS = Path(__file__).parent / "results"
PARTS = ("kernels", *(series.name for series in sweeps.SERIES), "calls", "processes")
WHOLE_CALLS = ("nchw-56", "nc-1024")
"""The library's own calls are shown on one case beyond the cache and one within."""
FRESH = 5
"""Processes that are started for a time that only a fresh one shows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_threads(parser)
    parser.add_argument(
        "--quick", action="store_true", help="only kernels on cases that fit a cache, fewer rounds"
    )
    for flags, choices, what in (
        (("-c", "--case"), [case.name for case in CASES], "this case"),
        (("-e", "--engine"), list(ENGINES), "this engine"),
        (("-p", "--part"), list(PARTS), "this part"),
    ):
        parser.add_argument(
            *flags, action="append", choices=choices, help=f"only {what}; may be repeated"
        )
    parser.add_argument(
        *("-d", "--dtype"),
        action="append",
        choices=["float32", *SUFFIX],
        help="the cases in this dtype instead of their own; may be repeated",
    )
    parser.add_argument("--rounds", type=int, help="turns that everyone has (default: 8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there")
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="where the figures and bench.json go (default: bench/results)",
    )


def settle(given: argparse.Namespace) -> None:
    """Fill in what was left to the other arguments."""
    if given.rounds is None:
        given.rounds = 4 if given.quick else 8
    if given.part is None:
        narrow = given.quick or given.case or given.dtype
        given.part = ["kernels"] if narrow else list(PARTS)


def chosen_cases(given: argparse.Namespace) -> list[Case]:
    cases = list(CASES)
    if given.case:
        cases = [case for case in cases if case.name in given.case]
    elif given.quick:
        cases = [case for case in cases if case.elements <= QUICK_ELEMENTS]
    if given.dtype:
        # Those of other dtypes are listed in float32, too: nothing is converted back.
        plain = [case for case in cases if case.dtype == "float32"]
        cases = [case.of_dtype(dtype) for dtype in given.dtype for case in plain]
    return cases


def main(given: argparse.Namespace) -> int:
    """Run, print, write; the exit status is 1 if a kernel was refused."""
    settle(given)
    console = report.console()
    names = given.engine or list(ENGINES)
    engines, missing = available(names, given.threads)
    for name, reason in missing.items():
        console.print(f"without {name}: {reason}")
    if not engines:
        console.print("[red]none of the engines is here[/]")
        return 1
    engines = with_rivals(engines)
    machine = describe(engines, given.threads)
    if machine["load_before"] > BUSY:
        console.print(
            f"[yellow]this machine is busy (load {machine['load_before']:.1f}): "
            "expect worse figures than it can give[/]"
        )
    settings = {"rounds": given.rounds, "parts": given.part}
    run = Run(machine, {engine.name: engine.title for engine in engines}, settings)
    measure(run, given, names, engines, console)
    run.judgements = list(judge(run.kernels, run.uses, **_of_targets(run)))
    show(run, console)
    found = record.content(run)
    path = given.json or given.output / "bench.json"
    record.write_json(path, found)
    console.print(f"written: {path}", *draw(given.output, found), sep=", ", soft_wrap=True)
    wrong = report.complaints(run.comparisons)
    for complaint in wrong:
        console.print(f"[red]refused:[/] {complaint}")
    return 1 if wrong else 0


def measure(
    run: Run,
    given: argparse.Namespace,
    names: Sequence[str],
    engines: Sequence[Engine],
    console: Console,
) -> None:
    """Every chosen part, with a bar that shows how far it is."""
    threads, rounds = given.threads, given.rounds
    cases = chosen_cases(given) if "kernels" in given.part else []
    chosen = [series for series in sweeps.SERIES if series.name in given.part]
    public = [case for case in CASES if case.name in WHOLE_CALLS]
    total = sum(steps(case, rounds) for case in cases)
    total += sum(sweeps.steps(series, threads, rounds) for series in chosen)
    total += api.steps(public) * ("calls" in given.part)
    total += processes.STEPS * ("processes" in given.part)
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)

        def advance(what: str) -> None:
            progress.update(task, description=what, advance=1)

        for case in cases:
            progress.update(task, description=f"{case.name}: verifying")
            asked = given.engine or case.fused or bound_of(case, "forward") is not None
            everyone = [engine for engine in engines if asked or engine.name not in SLOW]
            run.kernels += compare(case, everyone, threads, rounds, advance)
        for series in chosen:
            run.series[series.name] = sweeps.run(series, names, threads, rounds, advance)
        if "calls" in given.part:
            run.uses += api.measure(public, engines, threads, rounds, advance)
        if "processes" in given.part:
            run.uses += processes.measure(FRESH, advance)
        progress.update(task, description="done", completed=total)


def show(run: Run, console: Console) -> None:
    if run.kernels:
        for table in report.kernel_tables(run.kernels, run.titles, run.machine):
            console.print(table)
    for name, comparisons in run.series.items():
        console.print(report.series_table(name, comparisons, run.titles))
    if run.uses:
        console.print(report.use_table(run.uses, run.titles))
    if run.judgements:
        console.print(*report.target_tables(run.judgements))


def _of_targets(run: Run) -> dict[str, list[Comparison]]:
    return {name: run.series.get(name, []) for name in ("sizes", "threads")}
