"""The public API as its users call it: whole calls, small calls, the import.

What the kernels' figures leave out is Python: arguments, views, dispatch. Whole calls show that
nothing is lost on large arrays; small calls show what is left when there is hardly any arithmetic.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import normcore
from bench import limits
from bench.cases import Case, table
from bench.engines import Engine, Normcore
from bench.measure import Timing, interleave
from bench.problem import EPS, Problem
from bench.tasks import Task, tasks_of

Array = np.ndarray[Any, Any]

SMALL = Case("small", (64, 64), 1, table)

IMPORT = """
import time, numpy
start = time.perf_counter()
import normcore
print(time.perf_counter() - start)
"""


@dataclass(frozen=True, slots=True)
class ApiResult:
    """One measured use. `limit` is the copy at that size, where bytes are what takes the time."""

    key: str
    what: str
    engine: str
    timing: Timing
    bytes: int = 0
    limit: Timing | None = None
    error: float | None = None
    """Worst error of y; None where nothing is computed."""


def whole_calls(case: Case, backends: Sequence[str], threads: int, rounds: int) -> list[ApiResult]:
    """`functional.batch_norm` with out=, training and evaluation, in every backend."""
    problem = Problem(case, threads)
    tasks = {task.name: task for task in tasks_of(case)}
    given = problem.arguments
    found: list[ApiResult] = []
    for key, task in (("training", tasks["forward"]), ("evaluation", tasks["apply"])):
        # Evaluation reads the running statistics, training blends the batch's into them.
        statistics = (given["mean"].copy(), given["var"].copy())
        run = partial(
            normcore.functional.batch_norm,
            *(problem.shaped(problem.x), *statistics, given["weight"], given["bias"]),
            training=key == "training",
            eps=EPS,
            axis=case.axis,
            out=problem.shaped(problem.stream()),
        )
        what = f"functional.batch_norm {key}, {case.name}"
        found += _timed(problem, task, {(key, what): run}, backends, rounds)
    return found


def small_calls(backends: Sequence[str], rounds: int) -> list[ApiResult]:
    """Evaluation of a (64, 64) array through a layer and through `functional`."""
    problem = Problem(SMALL, 1)
    given = problem.arguments
    weight, bias, mean, var = (
        given[name].astype(np.float32) for name in ("weight", "bias", "mean", "var")
    )
    # A layer keeps float32 statistics: the oracle is to be asked about those.
    given["mean"], given["var"] = mean.astype(np.float64), var.astype(np.float64)
    layer = normcore.BatchNorm1d(SMALL.channels, eps=EPS)
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    layer.load_state_dict({**state, "num_batches_tracked": np.array(1)})
    layer.eval()
    x, out = problem.shaped(problem.x), problem.shaped(problem.stream())
    function = normcore.functional.batch_norm
    runs = {
        ("small layer", f"layer(x, out=), {SMALL.shape}"): partial(layer, x, out=out),
        ("small functional", f"functional.batch_norm(x, ..., out=), {SMALL.shape}"): partial(
            function, x, mean, var, weight, bias, eps=EPS, out=out
        ),
    }
    apply = next(task for task in tasks_of(SMALL) if task.name == "apply")
    found = _timed(problem, apply, runs, backends, rounds)
    return [replace(result, limit=None, bytes=0) for result in found]


def _timed(
    problem: Problem,
    task: Task,
    runs: Mapping[tuple[str, str], Callable[[], object]],
    backends: Sequence[str],
    rounds: int,
) -> list[ApiResult]:
    """Check each (key, what) in each backend against the oracle, then time all in rounds."""
    exact = problem.reference(task)["y"]

    @contextmanager
    def chosen(name: tuple[str, ...]) -> Iterator[None]:
        # Around a turn, not around a call: a program chooses its backend once.
        with normcore.use_backend(name[0]), normcore.num_threads(problem.threads):
            yield

    calls: dict[tuple[str, ...], Callable[[], object]] = {}
    errors: dict[tuple[str, ...], float] = {}
    for backend in backends:
        for (key, what), run in runs.items():
            name = (backend, key, what)
            calls[name] = run
            with chosen(name):
                errors[name] = _checked(problem, run, exact)
    # Probes take turns too; any backend may be chosen around them.
    probes = {(backends[0], probe): run for probe, run in limits.probes(problem, task).items()}
    timings = interleave({**calls, **probes}, rounds, around=chosen)
    limit = min((timings[name] for name in probes), key=lambda timing: timing.best)
    moved = problem.bytes_moved(task)
    return [
        ApiResult(name[1], name[2], name[0], timings[name], moved, limit, errors[name])
        for name in calls
    ]


def import_time(runs: int) -> ApiResult:
    """`import normcore` in fresh processes that have imported NumPy."""
    seconds: list[float] = []
    # Away from the checkout, so that it is the installed package that is imported.
    with tempfile.TemporaryDirectory() as elsewhere:
        for _ in range(runs):
            done = subprocess.run(
                [sys.executable, "-c", IMPORT],
                cwd=elsewhere,
                capture_output=True,
                text=True,
                check=True,
            )
            seconds.append(float(done.stdout))
    timing = Timing(min(seconds), float(np.median(seconds)), runs)
    return ApiResult("import", "import normcore, after import numpy", "-", timing)


def measure(
    cases: Sequence[Case],
    engines: Sequence[Engine],
    threads: int,
    rounds: int,
    advance: Callable[[str], object],
) -> list[ApiResult]:
    """Everything in this file; `advance` hears of each of the `steps` as it ends."""
    backends = [engine.name for engine in engines if isinstance(engine, Normcore)]
    found: list[ApiResult] = []
    if backends:
        for case in cases:
            found += whole_calls(case, backends, threads, rounds)
            advance(f"{case.name}: public API")
        found += small_calls(backends, rounds)
        advance("small calls")
    found.append(import_time(rounds))
    advance("import normcore")
    return found


def steps(cases: Sequence[Case]) -> int:
    """How often `measure` will call `advance`, at most."""
    return len(cases) + 2


def _checked(problem: Problem, run: Callable[[], object], exact: Array) -> float:
    problem.stream().fill(np.nan)
    run()
    error = problem.errors({"y": problem.stream()}, {"y": exact})["y"]
    allowed = problem.tolerances["y"]
    if not error <= allowed:
        raise ArithmeticError(f"y is off by {error:.1e}, allowed {allowed:.0e}")
    return error
