"""Verify first, then time in interleaved rounds, and keep the best of many.

Everybody who takes part in a comparison (backends, peers, the limit's probes) has one turn per
round, so that a noisy moment of the machine hits all alike; the best run of each is what counts,
because noise only ever adds time. A normcore kernel whose result is not within the tolerances is
refused: it is reported as wrong and never timed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep
from typing import Any, TypeVar

import numpy as np

from bench import bare, limits
from bench.cases import Case
from bench.engines import Call, Engine
from bench.problem import Problem
from bench.tasks import Task, tasks_of

Name = TypeVar("Name")

TURN_SECONDS = 0.016
"""A turn repeats a call for this long: the first runs bring the caches back, the next are warm. A
backward that writes 17 MB with normal stores, after a probe that streamed to the same array, took
2.2 ms in turns of 6 ms, 1.3 in turns of 12 and 1.2 in turns of 20."""
REST_SECONDS = 0.002
"""Between turns: OpenMP's threads spin for about a millisecond before they leave the core."""
BATCH_SECONDS = 50e-6
"""Shorter calls are timed in batches of about this long: asking the clock takes 60 ns."""
PATIENCE_SECONDS = 0.15
"""Who has used this much in one comparison has had enough runs (at least one) and drops out."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call."""

    best: float
    median: float
    runs: int
    noise: float | None = None
    """How far the bests of the odd and of the even rounds lie apart, as a share; None of one round.

    That is what another run, equally long as half of this one, would differ by.
    """


@dataclass(frozen=True, slots=True)
class Verdict:
    """Errors of one call, by output, and what is wrong with them."""

    errors: dict[str, float]
    complaint: str = ""

    @property
    def worst(self) -> float:
        return float(np.max(list(self.errors.values())))


@dataclass(frozen=True, slots=True)
class Result:
    """One engine on one task of one case. `timing` is None where the result was refused."""

    ours: bool
    verdict: Verdict
    timing: Timing | None
    width: int = 1
    """How many times the case's bytes it moves."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One task of one case: the limit and everyone's result, from the same rounds."""

    case: Case
    task: Task
    threads: int
    bytes: int
    limit: Timing
    probe: str
    """The probe that was fastest."""
    results: dict[str, Result]
    """By the engine's name."""
    bare: Timing | None = None
    """Of the bare loops, where statistics come before what is written (`bench.bare`)."""

    def seconds(self, engine: str) -> float | None:
        """Best time of an engine, None if it took no part or was refused."""
        result = self.results.get(engine)
        return result.timing.best if result is not None and result.timing is not None else None

    def rate(self, seconds: float) -> float:
        """GB/s of the bytes that must move."""
        return self.bytes / seconds / 1e9


def verify(problem: Problem, call: Call, exact: Mapping[str, Any], *, strict: bool) -> Verdict:
    """Run a call on outputs full of NaN and measure its errors against the oracle.

    With `strict`, errors beyond the tolerances, NaNs and changed inputs are complained about.
    """
    for output in call.outputs.values():
        output.fill(np.nan)
    before = problem.untouched
    result = call.run()
    found = {**call.outputs, **({} if call.read is None else call.read(result))}
    errors = problem.errors(found, exact)
    # Not "error > tolerance": that is false for a NaN.
    wrong = [
        f"{name} is off by {error:.1e}, allowed {problem.tolerances[name]:.0e}"
        for name, error in errors.items()
        if not error <= problem.tolerances[name]
    ]
    for name, kept in before.items():
        now = problem.arguments[name]
        # As integers: a NaN is equal to itself then.
        bits = f"u{now.itemsize}"
        if not np.array_equal(kept.view(bits), now.view(bits)):
            wrong.append(f"{name} was written to")
            now[:] = kept
    return Verdict(errors, "; ".join(wrong) if strict else "")


def interleave(
    calls: Mapping[Name, Callable[[], object]],
    rounds: int,
    around: Callable[[Name], AbstractContextManager[object]] = lambda name: nullcontext(),
    finished: Callable[[], object] = lambda: None,
) -> dict[Name, Timing]:
    """Time calls in turns; `around` each turn (not each call), and tell when a round is over."""
    rounds_of: dict[Name, list[list[float]]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, run in calls.items():
                if sum(map(sum, rounds_of[name])) < PATIENCE_SECONDS:
                    with around(name):
                        rounds_of[name].append(_turn(run))
            finished()
    finally:
        if collecting:
            gc.enable()
    return {name: _timing(turns) for name, turns in rounds_of.items()}


def _timing(turns: Sequence[Sequence[float]]) -> Timing:
    samples = [sample for turn in turns for sample in turn]
    noise = None
    if len(turns) > 1:
        odd, even = (min(min(turn) for turn in turns[first::2]) for first in (0, 1))
        noise = abs(odd - even) / min(odd, even)
    return Timing(min(samples), median(samples), len(samples), noise)


def _turn(run: Callable[[], object]) -> list[float]:
    sleep(REST_SECONDS)
    found: list[float] = []
    start = now = perf_counter()
    batch = 1
    while now - start < TURN_SECONDS:
        before = perf_counter()
        for _ in range(batch):
            run()
        now = perf_counter()
        found.append((now - before) / batch)
        batch = max(1, int(BATCH_SECONDS / found[-1]))
    return found


def compare(
    case: Case,
    engines: Sequence[Engine],
    threads: int,
    rounds: int,
    advance: Callable[[str], object] = lambda what: None,
    only: Collection[str] = (),
) -> list[Comparison]:
    """Verify every engine on every task of a case; then time what passed, and the limits.

    The tasks are all of the case's, or those that `only` names. A round goes through all of them,
    so that the runs of each lie seconds apart. `advance` hears of each of the `steps` as it ends.
    """
    problem = Problem(case, threads)
    tasks = chosen_tasks(case, only)
    verdicts: dict[tuple[str, str], tuple[Verdict, int]] = {}
    timed: dict[tuple[str, str], Callable[[], object]] = {}
    probes: dict[str, list[str]] = {}
    loops: dict[str, list[str]] = {}
    for task in tasks:
        exact = problem.reference(task)
        for engine in engines:
            call = engine.call(problem, task)
            if call is None:
                continue
            verdict = verify(problem, call, exact, strict=engine.ours)
            verdicts[task.name, engine.name] = verdict, call.width
            if not verdict.complaint:
                timed[task.name, engine.name] = call.run
        for names, found in (
            (probes, limits.probes(problem, task)),
            (loops, bare.loops(problem, task)),
        ):
            names[task.name] = list(found)
            timed.update(((task.name, name), run) for name, run in found.items())
        advance(f"{case.name}: {task.name} verified")
    turn = iter(range(1, rounds + 1))
    timings = interleave(
        timed, rounds, finished=lambda: advance(f"{case.name}: round {next(turn)} of {rounds}")
    )
    return [_gather(problem, task, engines, verdicts, timings, probes, loops) for task in tasks]


def chosen_tasks(case: Case, only: Collection[str]) -> list[Task]:
    return [task for task in tasks_of(case) if not only or task.name in only]


def steps(case: Case, rounds: int, only: Collection[str] = ()) -> int:
    """How often `compare` will call `advance`."""
    return len(chosen_tasks(case, only)) + rounds


def _gather(
    problem: Problem,
    task: Task,
    engines: Sequence[Engine],
    verdicts: Mapping[tuple[str, str], tuple[Verdict, int]],
    timings: Mapping[tuple[str, str], Timing],
    probes: Mapping[str, list[str]],
    loops: Mapping[str, list[str]],
) -> Comparison:
    of_task = {name: timing for (of, name), timing in timings.items() if of == task.name}
    probe = min(probes[task.name], key=lambda name: of_task[name].best)
    results = {}
    for engine in engines:
        if (task.name, engine.name) in verdicts:
            verdict, width = verdicts[task.name, engine.name]
            results[engine.name] = Result(engine.ours, verdict, of_task.get(engine.name), width)
    moved = problem.bytes_moved(task)
    least = min(
        (of_task[name] for name in loops[task.name]), key=lambda timing: timing.best, default=None
    )
    return Comparison(
        problem.case, task, problem.threads, moved, of_task[probe], probe, results, least
    )
