"""``python -m bench``: verify, time, and report every kernel of every backend on real data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numba
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import api, report
from bench.cases import CASES, QUICK_ELEMENTS, Case
from bench.engines import ENGINES, available, with_rivals
from bench.figure import draw
from bench.machine import describe
from bench.measure import Comparison, compare, steps
from bench.targets import judge

BUSY = 0.5
"""Load average beyond which somebody else is using the cores."""
RESULTS = Path(__file__).parent / "results"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    cores = numba.config.NUMBA_NUM_THREADS
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        *("-t", "--threads"),
        type=int,
        choices=range(1, cores + 1),
        default=cores,
        metavar=f"1..{cores}",
        help="threads of every engine that has threads (default: every core)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="only cases that fit a cache, and fewer rounds"
    )
    parser.add_argument(
        *("-c", "--case"),
        action="append",
        choices=[case.name for case in CASES],
        help="only this case; may be repeated",
    )
    parser.add_argument(
        *("-e", "--engine"),
        action="append",
        choices=list(ENGINES),
        help="only this engine; may be repeated",
    )
    parser.add_argument("--rounds", type=int, help="turns that everyone has (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON there")
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="where bench.png and bench.json go (default: bench/results)",
    )
    given = parser.parse_args(arguments)
    if given.rounds is None:
        given.rounds = 4 if given.quick else 10
    if given.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {given.rounds}")
    return given


def chosen_cases(given: argparse.Namespace) -> list[Case]:
    if given.case:
        return [case for case in CASES if case.name in given.case]
    return [case for case in CASES if not given.quick or case.elements <= QUICK_ELEMENTS]


def main(arguments: Sequence[str]) -> int:
    """Run, print, write; the exit status is 1 if a kernel was refused."""
    given = parse(arguments)
    console = report.console()
    cases = chosen_cases(given)
    engines, missing = available(given.engine or list(ENGINES), given.threads)
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
    comparisons: list[Comparison] = []
    # The library's own calls are shown on one case beyond the cache and one within.
    public = [case for case in cases if case.name in ("nchw-56", "nc-1024")]
    total = sum(steps(case, given.rounds) for case in cases) + api.steps(public)
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)

        def advance(what: str) -> None:
            progress.update(task, description=what, advance=1)

        for case in cases:
            progress.update(task, description=f"{case.name}: verifying")
            comparisons += compare(case, engines, given.threads, given.rounds, advance)
        uses = api.measure(public, engines, given.threads, given.rounds, advance)
        progress.update(task, description="done", completed=total)
    judgements = list(judge(comparisons, uses))
    for table in report.kernel_tables(comparisons, engines, machine):
        console.print(table)
    console.print(report.api_table(uses))
    if judgements:
        console.print(report.target_table(judgements))
    content = report.record(machine, comparisons, uses, judgements)
    report.write_json(given.json or given.output / "bench.json", content)
    picture = given.output / "bench.png"
    draw(picture, comparisons, engines, machine)
    console.print(f"written: {picture}, {given.json or given.output / 'bench.json'}")
    wrong = report.complaints(comparisons)
    for complaint in wrong:
        console.print(f"[red]refused:[/] {complaint}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
