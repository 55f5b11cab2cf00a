"""Verify first, then time in interleaved rounds, and keep the best of many.

Everybody who takes part in a comparison (backends, peers, the limit's probes) has one turn per
round, so that a noisy moment of the machine hits all alike; the best run of each is what counts,
because noise only ever adds time. A normcore kernel whose result is not within the tolerances is
refused: it is reported as wrong and never timed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np

from bench import limits
from bench.cases import Case
from bench.engines import Call, Engine
from bench.problem import TOLERANCES, Problem, kernels_of
from normcore.kernels.table import Kernel

TURN_SECONDS = 0.006
"""A turn repeats a call for this long: the first run brings the caches back, the next are warm."""
REST_SECONDS = 0.002
"""Between turns: OpenMP's threads spin for about a millisecond before they leave the core."""
PATIENCE_SECONDS = 0.8
"""Who has used this much in one comparison has had enough runs (at least one) and drops out."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call."""

    best: float
    median: float
    runs: int


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
    """One engine on one kernel of one case. `timing` is None where the result was refused."""

    engine: str
    ours: bool
    verdict: Verdict
    timing: Timing | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One kernel of one case: the limit and everyone's result, from the same rounds."""

    case: Case
    kernel: Kernel
    bytes: int
    limit: Timing
    probe: str
    """The probe that was fastest."""
    results: dict[str, Result] = field(default_factory=dict)

    def seconds(self, engine: str) -> float | None:
        """Best time of an engine, None if it took no part or was refused."""
        result = self.results.get(engine)
        return result.timing.best if result is not None and result.timing is not None else None

    def rate(self, seconds: float) -> float:
        """GB/s of the bytes that must move."""
        return self.bytes / seconds / 1e9


def verify(problem: Problem, call: Call, exact: Mapping[str, Any], *, strict: bool) -> Verdict:
    """Run a call on outputs full of NaN and measure its errors against the oracle.

    With `strict`, errors beyond `TOLERANCES`, NaNs and changed inputs are complained about.
    """
    for output in call.outputs.values():
        output.fill(np.nan)
    before = [problem.x.copy(), problem.dy.copy()]
    call.run()
    errors = problem.errors(call.outputs, exact)
    # Not "error > tolerance": that is false for a NaN.
    wrong = [
        f"{name} is off by {error:.1e}, allowed {TOLERANCES[name]:.0e}"
        for name, error in errors.items()
        if not error <= TOLERANCES[name]
    ]
    for name, kept, now in zip(("x", "dy"), before, (problem.x, problem.dy), strict=True):
        if not np.array_equal(kept, now):
            wrong.append(f"{name} was written to")
            now[:] = kept
    return Verdict(errors, "; ".join(wrong) if strict else "")


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time calls in turns, for a number of rounds."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, run in calls.items():
                if sum(samples[name]) < PATIENCE_SECONDS:
                    samples[name] += _turn(run)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(min(s), median(s), len(s)) for name, s in samples.items()}


def _turn(run: Callable[[], object]) -> list[float]:
    sleep(REST_SECONDS)
    found: list[float] = []
    start = now = perf_counter()
    while now - start < TURN_SECONDS:
        before = perf_counter()
        run()
        now = perf_counter()
        found.append(now - before)
    return found


def compare(
    problem: Problem, kernel: Kernel, engines: Sequence[Engine], rounds: int
) -> Comparison:
    """Verify every engine that has this kernel, then time those that passed, and the limit."""
    exact = problem.reference(kernel)
    probes = limits.probes(problem, kernel)
    verdicts: dict[str, Verdict] = {}
    timed: dict[str, Callable[[], object]] = {}
    for engine in engines:
        call = engine.call(problem, kernel)
        if call is None:
            continue
        verdict = verify(problem, call, exact, strict=engine.ours)
        verdicts[engine.name] = verdict
        if not verdict.complaint:
            timed[engine.name] = call.run
    timings = interleave({**timed, **probes}, rounds)
    probe = min(probes, key=lambda name: timings[name].best)
    found = {
        engine.name: Result(
            engine.name, engine.ours, verdicts[engine.name], timings.get(engine.name)
        )
        for engine in engines
        if engine.name in verdicts
    }
    return Comparison(
        problem.case, kernel, problem.bytes_moved(kernel), timings[probe], probe, found
    )


def measure(
    cases: Sequence[Case],
    engines: Sequence[Engine],
    threads: int,
    rounds: int,
    started: Callable[[Case, Kernel], object],
) -> Iterator[Comparison]:
    """Every kernel of every case; `started` hears what comes next."""
    for case in cases:
        kernels = kernels_of(case.view.family)
        started(case, kernels[0])
        problem = Problem(case, threads)
        for kernel in kernels:
            started(case, kernel)
            yield compare(problem, kernel, engines, rounds)
