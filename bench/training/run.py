"""Every variant with every seed, in worker processes, with bars that tell the time left.

Each worker computes on one thread: on networks of this size a second thread saves nothing, a second
process half of the time. And no number of threads can change a result, because no sum is ever
divided among threads by BLAS or PyTorch (normcore's own have the same bits anyway).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

from threadpoolctl import threadpool_limits

import normcore as nc
from bench.training.data import load
from bench.training.experiment import Experiment, Trial
from bench.training.experiments import EXPERIMENTS
from bench.training.results import Numbers, Results, Variant


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run was asked for."""

    experiments: tuple[str, ...]
    seeds: int = 5
    seed: int = 0
    """The first one."""
    epochs: int | None = None
    """Instead of each experiment's own."""
    quick: bool = False
    mnist: Path | None = None
    samples: int | None = None
    """At most so many to train on."""
    workers: int = 1

    def epochs_of(self, experiment: Experiment) -> int:
        return self.epochs or experiment.epochs.of(self.quick)

    @property
    def all_seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.seeds))


@dataclass(frozen=True, slots=True)
class Job:
    """One call of `Experiment.run`, to be sent to a worker."""

    experiment: str
    variant: Variant
    seed: int


@dataclass(slots=True)
class Done:
    """An experiment whose numbers are there."""

    experiment: Experiment
    results: Results
    seconds: float = 0.0
    """Of one core, all jobs together."""


@dataclass(slots=True)
class Outcome:
    """What a run has come to."""

    done: list[Done]
    missing: dict[str, str]
    """Experiments that were not run, and why."""
    checks: dict[str, Any]
    """What `checks` found."""
    interrupted: bool = False


Advance = Callable[[Job], None]
"""Called with each job that is done."""


@contextmanager
def one_thread(plan: Plan) -> Iterator[None]:
    """BLAS, normcore and, if it is needed, PyTorch on one thread."""
    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(1))
        stack.enter_context(nc.num_threads(1))
        if has_torch() and any(EXPERIMENTS[name].torch for name in plan.experiments):
            from bench.training import networks

            stack.enter_context(networks.one_thread())
        yield


def has_torch() -> bool:
    return find_spec("torch") is not None


def jobs(plan: Plan) -> list[Job]:
    """All of them; seeds of an experiment one after another, so that a break leaves whole seeds."""
    return [
        Job(name, variant, seed)
        for name in plan.experiments
        for seed in plan.all_seeds
        for variant in EXPERIMENTS[name].variants(plan.quick)
    ]


def work(plan: Plan, job: Job) -> tuple[Numbers, float]:
    """One job, and its seconds."""
    experiment = EXPERIMENTS[job.experiment]
    data = load(plan.mnist, plan.samples)
    start = perf_counter()
    trial = Trial(job.variant, data, job.seed, plan.epochs_of(experiment))
    return experiment.run(trial), perf_counter() - start


_held = ExitStack()


def _enter_worker(plan: Plan) -> None:
    # Ctrl-C reaches every process of the terminal: only the parent is to act on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _held.enter_context(one_thread(plan))


def run(plan: Plan, advance: Advance) -> Outcome:
    """All jobs of a plan; what is finished when Ctrl-C comes is kept."""
    absent = not has_torch()
    missing = {
        name: "PyTorch is not installed: pip install -e '.[bench,torch]'"
        for name in plan.experiments
        if absent and EXPERIMENTS[name].torch
    }
    ordered = [job for job in jobs(plan) if job.experiment not in missing]
    found: dict[Job, tuple[Numbers, float]] = {}
    made: dict[str, Any] = {}
    interrupted = False
    try:
        # Before the workers, which would disturb the clock.
        made = {} if absent else checks(plan)
        for job, result in (_here if plan.workers == 1 else _pooled)(plan, ordered):
            found[job] = result
            advance(job)
    except KeyboardInterrupt:
        interrupted = True
    names = [name for name in plan.experiments if name not in missing]
    done = [one for name in names if (one := _collected(plan, name, found)) is not None]
    return Outcome(done, missing, made, interrupted)


def checks(plan: Plan) -> dict[str, Any]:
    """Losses beside PyTorch's and the norms' share of a step, for the experiments about them."""
    from bench.training import match, share

    data = load(plan.mnist, plan.samples)
    found: dict[str, Any] = {}
    with one_thread(plan):
        if "with-and-without" in plan.experiments:
            gaps = match.differences(data, plan.seed)
            found["match"] = {"steps": match.STEPS, "differences": gaps}
        if "convnet" in plan.experiments:
            found["share"] = share.measure(data, share.ROUNDS.of(plan.quick))
    return found


Finished = Iterator[tuple[Job, tuple[Numbers, float]]]


def _here(plan: Plan, ordered: Sequence[Job]) -> Finished:
    with one_thread(plan):
        for job in ordered:
            yield job, work(plan, job)


def _pooled(plan: Plan, ordered: Sequence[Job]) -> Finished:
    # Not forked: OpenMP does not survive it.
    pool = ProcessPoolExecutor(
        plan.workers, mp_context=get_context("spawn"), initializer=_enter_worker, initargs=(plan,)
    )
    try:
        sent: dict[Future[tuple[Numbers, float]], Job] = {
            pool.submit(work, plan, job): job for job in ordered
        }
        for future in as_completed(sent):
            yield sent[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _collected(plan: Plan, name: str, found: dict[Job, tuple[Numbers, float]]) -> Done | None:
    """The seeds that all variants have; None without any."""
    experiment = EXPERIMENTS[name]
    variants = experiment.variants(plan.quick)
    seeds = [
        seed
        for seed in plan.all_seeds
        if all(Job(name, variant, seed) in found for variant in variants)
    ]
    if not seeds:
        return None
    done = Done(experiment, Results(seeds))
    for variant in variants:
        of_seeds = [found[Job(name, variant, seed)] for seed in seeds]
        done.results.numbers[variant] = [numbers for numbers, _ in of_seeds]
        done.seconds += sum(seconds for _, seconds in of_seeds)
    return done
