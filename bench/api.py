"""The public API as its users call it: whole calls and small calls.

What the kernels' figures leave out is Python: arguments, views, dispatch. Whole calls show that
nothing is lost on large arrays; small calls show what is left when there is hardly any arithmetic,
with the peers' small calls in the same rounds. `bench.processes` has what needs a fresh process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import normcore
from bench import limits
from bench.cases import Case
from bench.data import table
from bench.engines import Engine, Normcore
from bench.measure import Timing, interleave
from bench.problem import EPS, Problem
from bench.tasks import tasks_of

Array = np.ndarray[Any, Any]

SMALL = Case("small", (64, 64), 1, table)


@dataclass(frozen=True, slots=True)
class Use:
    """One measured use. `limit` is the copy at that size, where bytes are what takes the time."""

    key: str
    what: str
    engine: str
    timing: Timing | None
    """None where it is not time that was measured."""
    bytes: int = 0
    limit: Timing | None = None
    error: float | None = None
    """Worst error of y; None where nothing is computed."""
    extra_bytes: int | None = None
    """Peak memory beyond inputs and outputs, where that is what was measured."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A call, and what must be in its output afterwards."""

    key: str
    what: str
    run: Callable[[], object]
    out: Array
    exact: Array


def whole_calls(case: Case, backends: Sequence[str], threads: int, rounds: int) -> list[Use]:
    """`functional.batch_norm` with out=, training and evaluation, in every backend."""
    problem = Problem(case, threads)
    tasks = {task.name: task for task in tasks_of(case)}
    given = problem.arguments
    found: list[Use] = []
    for key, task in (("training", tasks["forward"]), ("evaluation", tasks["apply"])):
        # Evaluation reads the running statistics, training blends the batch's into them.
        statistics = (given["mean"].copy(), given["var"].copy())
        out = problem.stream()
        run = partial(
            normcore.functional.batch_norm,
            *(problem.shaped(problem.x), *statistics, given["weight"], given["bias"]),
            training=key == "training",
            eps=EPS,
            axis=case.axis,
            out=problem.shaped(out),
        )
        what = f"functional.batch_norm {key}, {case.name}"
        trials = [Trial(key, what, run, out, problem.reference(task)["y"])]
        probes = limits.probes(problem, task)
        found += _timed(problem, trials, backends, {}, probes, rounds, problem.bytes_moved(task))
    return found


def small_calls(engines: Sequence[Engine], rounds: int) -> list[Use]:
    """Inference and training of small arrays through a layer and through `functional`."""
    problem = Problem(SMALL, 1)
    given = problem.arguments
    weight, bias, mean, var = (
        given[name].astype(np.float32) for name in ("weight", "bias", "mean", "var")
    )
    # A layer keeps float32 statistics: the oracle is to be asked about those.
    given["mean"], given["var"] = mean.astype(np.float64), var.astype(np.float64)
    tasks = {task.name: task for task in tasks_of(SMALL)}
    exact = {name: problem.reference(tasks[name])["y"] for name in ("apply", "forward")}
    layers = {name: _layer(weight, bias, mean, var) for name in ("apply", "forward")}
    layers["apply"].eval()
    function = partial(normcore.functional.batch_norm, eps=EPS)
    trials = []
    for name, rows in (("apply", 1), ("apply", 64), ("forward", 64)):
        x, out = (problem.shaped(array)[:rows] for array in (problem.x, problem.stream()))
        training = name == "forward"
        key = f"{'training' if training else 'inference'} {x.shape}"
        runs = {
            "functional": partial(
                function, x, mean.copy(), var.copy(), weight, bias, training=training, out=out
            ),
            "layer": partial(layers[name], x, out=out),
        }
        truth = exact[name][: out.size]
        trials += [
            Trial(f"{key} {through}", f"{key} through {through}", run, out.reshape(-1), truth)
            for through, run in runs.items()
        ]
    backends = [engine.name for engine in engines if isinstance(engine, Normcore)]
    peers = {
        engine.name: [
            Trial(f"{what} (64, 64)", f"{what} (64, 64)", call.run, out, exact[name])
            for what, name in (("inference", "apply"), ("training", "forward"))
            if (call := engine.call(problem, tasks[name])) is not None
            for out in call.outputs.values()
            if out is problem.stream()
        ]
        for engine in engines
        if not engine.ours
    }
    return _timed(problem, trials, backends, peers, {}, rounds)


def _layer(weight: Array, bias: Array, mean: Array, var: Array) -> Any:
    layer = normcore.BatchNorm1d(SMALL.channels, eps=EPS)
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    layer.load_state_dict({**state, "num_batches_tracked": np.array(1)})
    return layer


def _timed(
    problem: Problem,
    trials: Sequence[Trial],
    backends: Sequence[str],
    peers: Mapping[str, Sequence[Trial]],
    probes: Mapping[str, Callable[[], object]],
    rounds: int,
    moved: int = 0,
) -> list[Use]:
    """Check each trial in each backend against the oracle, and time all, the peers' too."""

    @contextmanager
    def chosen(name: tuple[str, str]) -> Iterator[None]:
        # Around a turn, not around a call: a program chooses its backend once.
        backend = name[0] if name[0] in backends else "auto"
        with normcore.use_backend(backend), normcore.num_threads(problem.threads):
            yield

    takes_part = {
        (engine, trial.key): trial
        for engine, of_engine in {**dict.fromkeys(backends, trials), **peers}.items()
        for trial in of_engine
    }
    errors: dict[tuple[str, str], float] = {}
    for name, trial in takes_part.items():
        with chosen(name):
            errors[name] = _checked(problem, trial, strict=name[0] in backends)
    # Probes take turns too.
    calls = {name: trial.run for name, trial in takes_part.items()}
    calls |= {("limit", probe): run for probe, run in probes.items()}
    timings = interleave(calls, rounds, around=chosen)
    limit = min(
        (timings["limit", probe] for probe in probes), key=lambda timing: timing.best, default=None
    )
    return [
        Use(trial.key, trial.what, name[0], timings[name], moved, limit, errors[name])
        for name, trial in takes_part.items()
    ]


def _checked(problem: Problem, trial: Trial, *, strict: bool) -> float:
    trial.out.fill(np.nan)
    trial.run()
    error = problem.errors({"y": trial.out}, {"y": trial.exact})["y"]
    allowed = problem.tolerances["y"]
    if strict and not error <= allowed:
        raise ArithmeticError(f"{trial.what}: y is off by {error:.1e}, allowed {allowed:.0e}")
    return error


def measure(
    cases: Sequence[Case],
    engines: Sequence[Engine],
    threads: int,
    rounds: int,
    advance: Callable[[str], object],
) -> list[Use]:
    """Everything in this file; `advance` hears of each of the `steps` as it ends."""
    backends = [engine.name for engine in engines if isinstance(engine, Normcore)]
    found: list[Use] = []
    if backends:
        for case in cases:
            found += whole_calls(case, backends, threads, rounds)
            advance(f"{case.name}: public API")
        found += small_calls(engines, rounds)
        advance("small calls")
    return found


def steps(cases: Sequence[Case]) -> int:
    """How often `measure` will call `advance`, at most."""
    return len(cases) + 1
