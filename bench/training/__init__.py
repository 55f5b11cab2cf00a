"""``python -m bench training``: what normalization does to training, shown on real data.

Twelve experiments train small networks with normcore's layers over several seeds, draw a figure
each, and say which of the textbooks' claims their numbers show.

==============  ==========================================================================
`.kit`          layers, loss, SGD in NumPy; `.perceptron` is made of them
`.networks`     convolutional and recurrent nets: PyTorch for all but the norms
`.data` `.idx`  scikit-learn's digits, or MNIST from its files; mini-batches
`.train`        the one training loop
`.experiment`   what an experiment is (`.sweep`: one that varies a number over decades);
                `.experiments` has the twelve, one file each
`.results`      numbers over seeds, and when they show a claim
`.run`          all variants and seeds in worker processes
`.match`        losses beside PyTorch's, step by step; `.share`: the norms' part of a step
`.store`        the JSON, and back; `.report`: Markdown and HTML from it; `.draw`: panels
==============  ==========================================================================
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bench.arguments import add_threads
from bench.engines import available
from bench.machine import describe
from bench.report import console as plain_console
from bench.training import report, store
from bench.training.data import load
from bench.training.experiments import EXPERIMENTS
from bench.training.results import CONTRARY, HIDDEN, MEASURED, SHOWN
from bench.training.run import Job, Plan, jobs, run
from normcore.backend import current

RESULTS = Path(__file__).parents[1] / "results" / "training"
JSON = "training.json"
SEEDS = (5, 2)
"""Of a full and of a quick run."""
INTERRUPTED = 130
"""The exit status that shells expect after Ctrl-C."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_threads(parser)
    parser.add_argument(
        "--quick", action="store_true", help="everything with fewer settings, epochs and seeds"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(EXPERIMENTS),
        metavar="NAME",
        help=f"this experiment; may be repeated: {', '.join(EXPERIMENTS)}",
    )
    for name, what in (
        ("--seeds", "how many (default: 5; 2 with --quick)"),
        ("--epochs", "of every experiment, instead of its own number"),
        ("--samples", "train on at most so many"),
    ):
        parser.add_argument(name, type=_positive, metavar="N", help=what)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first seed")
    parser.add_argument(
        "--mnist", type=Path, metavar="DIR", help="train on the four IDX files in this folder"
    )
    parser.add_argument(
        "--redraw", type=Path, metavar="JSON", help="make figures and report of this file again"
    )
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help=f"where the report, the figures and {JSON} go (default: bench/results/training)",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def plan_of(given: argparse.Namespace) -> Plan:
    return Plan(
        experiments=tuple(name for name in EXPERIMENTS if not given.only or name in given.only),
        seeds=given.seeds or SEEDS[given.quick],
        seed=given.seed,
        epochs=given.epochs,
        quick=given.quick,
        mnist=given.mnist,
        samples=given.samples,
        workers=given.threads,
    )


def main(given: argparse.Namespace) -> int:
    """Train, print, write; 1 if a file cannot be read, 130 after Ctrl-C."""
    console = plain_console()
    plan = plan_of(given)
    try:
        content = store.read(given.redraw) if given.redraw else None
        load(plan.mnist, plan.samples)
    except (OSError, ValueError) as error:
        console.print(f"[red]{error}[/]", soft_wrap=True)
        return 1
    path = given.redraw or given.output / JSON
    if content is None:
        store.write(path, _run(plan, console))
        # From the file, so that a report that is made again is the same.
        content = store.read(path)
    written = report.write(given.output, content)
    show(content, console)
    console.print("written:", path, *written, soft_wrap=True)
    return INTERRUPTED if content["interrupted"] else 0


def _run(plan: Plan, console: Console) -> dict[str, Any]:
    """Everything that was asked for, with bars; the content of the JSON."""
    engines, _ = available([current().name], plan.workers)
    machine = describe(engines, plan.workers)
    console.print(budget(plan))
    columns = (
        TextColumn("{task.description:<18}"),
        *(BarColumn(), TaskProgressColumn(), TimeElapsedColumn()),
        *(TextColumn("left"), TimeRemainingColumn(compact=True)),
    )
    every = jobs(plan)
    start = perf_counter()
    with Progress(*columns, console=console) as progress:
        whole = progress.add_task("everything", total=sum(map(cost, every)))
        tasks = {
            name: progress.add_task(name, total=sum(job.experiment == name for job in every))
            for name in plan.experiments
        }

        def advance(job: Job) -> None:
            progress.advance(tasks[job.experiment])
            progress.advance(whole, cost(job))

        outcome = run(plan, advance)
    seconds = perf_counter() - start
    console.print(f"trained for {seconds:.0f} s on {plan.workers} cores")
    return {**store.content(plan, outcome, machine), "seconds": seconds}


def cost(job: Job) -> float:
    """Its share of the seconds that its experiment takes, were all variants alike."""
    experiment = EXPERIMENTS[job.experiment]
    return experiment.cost / len(experiment.variants(quick=False))


def budget(plan: Plan) -> Table:
    """How long each experiment should take, from the seconds measured on one 2-core machine."""
    table = Table(title="planned", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("experiment")
    for heading in ("variants", "seeds", "epochs", "core seconds"):
        table.add_column(heading, justify="right")
    total = 0.0
    for name in plan.experiments:
        experiment = EXPERIMENTS[name]
        epochs = plan.epochs_of(experiment)
        variants = experiment.variants(plan.quick)
        seconds = sum(cost(Job(name, variant, 0)) for variant in variants) * plan.seeds
        seconds *= epochs / experiment.epochs.full
        total += seconds
        table.add_row(name, str(len(variants)), str(plan.seeds), str(epochs), f"{seconds:.0f}")
    table.caption = f"{total:.0f} s of one core, {total / plan.workers:.0f} s on {plan.workers}"
    return table


def show(content: dict[str, Any], console: Console) -> None:
    """Findings, epochs and checks in the terminal."""
    for name, reason in content["missing"].items():
        console.print(f"[yellow]without {name}: {reason}[/]")
    for block in report.blocks(None, content):
        match block:
            case report.Heading(text):
                console.print(f"\n[bold]{text}[/]")
            case report.Items(findings):
                for finding in findings:
                    console.print(
                        f"[{COLOURS[finding.verdict]}]{finding.verdict}[/]: {finding.text}"
                    )
            case report.Rows([head, *rows]):
                table = Table(*head, box=SIMPLE_HEAD)
                for row in rows:
                    table.add_row(*row)
                console.print(table)
    if content["interrupted"]:
        console.print("[yellow]interrupted: what was finished is in the report[/]")


COLOURS = {SHOWN: "green", HIDDEN: "yellow", CONTRARY: "red", MEASURED: "cyan"}
"""Of the verdicts."""
