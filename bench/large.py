"""``python -m bench large``: cost against size up to 4 GB, and one array beyond 2^31 elements.

Batch norm's training forward through `functional`, with out=. The data is one block of samples
again and again: its statistics are those of the block, so the oracle is asked once and every copy
is held against its answer. Not part of the default run: 4 GB takes 8 GB of memory, and the last
case, which is computed in place, 8.6 GB and a bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import normcore
from bench import limits, report
from bench.api import Use
from bench.arguments import add_threads
from bench.cases import Case
from bench.data import crops
from bench.machine import describe
from bench.measure import Timing, interleave
from bench.problem import EPS, Array, Problem, aligned
from bench.record import write_json
from bench.targets import LINEAR
from bench.tasks import tasks_of

BLOCK = Case("block", (4, 16, 64, 64), 1, crops)
"""1 MiB."""
BEYOND = 1 << 31


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_threads(parser)
    parser.add_argument(
        "--most", type=int, default=4096, metavar="MB", help="of the largest array (default: 4096)"
    )
    parser.add_argument(
        "--beyond", action="store_true", help="also an array of more than 2^31 elements, in place"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each call (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there")


def main(given: argparse.Namespace) -> int:
    """Measure and print; the exit status is 1 where cost does not grow with size."""
    console = report.console()
    with normcore.num_threads(given.threads):
        return _report(given, console)


def _report(given: argparse.Namespace, console: Console) -> int:
    problem = Problem(BLOCK, given.threads)
    forward = next(task for task in tasks_of(BLOCK) if task.name == "forward")
    exact = problem.reference(forward)["y"]
    uses = []
    for copies in _copies(given.most):
        uses.append(_measured(problem, exact, copies, given.rounds))
        console.print(f"{uses[-1].what}: done")
    grown = [_ratio(after) / _ratio(before) for before, after in pairwise(uses)]
    linear = all(factor <= LINEAR for factor in grown)
    console.print(_table(uses))
    console.print(
        f"from size to size the ratio to the limit grows at most {max(grown, default=1.0):.2f} "
        f"times: {'linear' if linear else '[red]not linear[/]'}"
    )
    if given.beyond:
        uses.append(_beyond(problem, exact))
        console.print(f"{uses[-1].what}: {report.seconds(uses[-1])}, every element verified")
    if given.json:
        write_json(
            given.json,
            {"machine": describe([], given.threads), "uses": [asdict(use) for use in uses]},
        )
    return 0 if linear else 1


def _copies(most: int) -> Iterator[int]:
    copies = 1
    while copies <= most:
        yield copies
        copies *= 4


def _measured(problem: Problem, exact: Array, copies: int, rounds: int) -> Use:
    x, out = _repeated(problem, copies), aligned(copies * problem.x.size, np.float32)
    run = _call(problem, x, out)
    run()
    error = _worst(problem, exact, out)
    calls = {"normcore": run, **limits.moves([x], [out], problem.threads)}
    timings = interleave(calls, rounds)
    ours = timings.pop("normcore")
    limit = min(timings.values(), key=lambda timing: timing.best)
    what = f"batch norm training forward, {x.nbytes / 1e6:.4g} MB"
    return Use("large", what, normcore.get_backend(), ours, 2 * x.nbytes, limit, error)


def _beyond(problem: Problem, exact: Array) -> Use:
    copies = BEYOND // problem.x.size + 1
    x = _repeated(problem, copies)
    run = _call(problem, x, x)
    # Once: a second time it would find its own result.
    start = perf_counter()
    run()
    seconds = perf_counter() - start
    error = _worst(problem, exact, x)
    what = f"the same in place, {x.size} elements (2^31 + {x.size - BEYOND})"
    return Use(
        *("beyond", what, normcore.get_backend(), Timing(seconds, seconds, 1)),
        bytes=2 * x.nbytes,
        error=error,
    )


def _repeated(problem: Problem, copies: int) -> Array:
    x = aligned(copies * problem.x.size, np.float32)
    x.reshape(copies, -1)[:] = problem.x
    return x


def _call(problem: Problem, x: Array, out: Array) -> partial[object]:
    given = problem.arguments
    shape = (-1, *problem.case.shape[1:])
    return partial(
        normcore.functional.batch_norm,
        *(x.reshape(shape), None, None, given["weight"], given["bias"]),
        training=True,
        eps=EPS,
        out=out.reshape(shape),
    )


def _worst(problem: Problem, exact: Array, out: Array) -> float:
    found = max(
        problem.errors({"y": copy}, {"y": exact})["y"] for copy in out.reshape(-1, exact.size)
    )
    allowed = problem.tolerances["y"]
    if not found <= allowed:
        raise ArithmeticError(f"y of {out.size} elements is off by {found:.1e}, not {allowed:.0e}")
    return found


def _ratio(use: Use) -> float:
    assert use.timing is not None
    assert use.limit is not None
    return use.timing.best / use.limit.best


def _table(uses: list[Use]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("what")
    for heading in ("time", "ps per byte", "GB/s", "x limit", "error"):
        table.add_column(heading, justify="right")
    for use in uses:
        assert use.timing is not None
        best = use.timing.best
        table.add_row(
            use.what,
            report.seconds(use),
            f"{best / use.bytes * 1e12:.1f}",
            f"{use.bytes / best / 1e9:.1f}",
            f"{_ratio(use):.2f}",
            f"{use.error:.1e}",
        )
    return table
