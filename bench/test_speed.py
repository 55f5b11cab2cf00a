"""pytest-benchmark's view of the same cases: ``pytest bench``.

Not among pytest's test paths: only naming the folder collects it. Groups compare engines on one
task of one case; ``extra_info`` holds bytes, GB/s, threads, instruction set and worst error.
``-k "nchw-56 and forward"`` chooses.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import pytest

from bench.cases import CASES, Case
from bench.engines import ENGINES, Engine, available
from bench.measure import verify
from bench.problem import Problem
from bench.tasks import Task, tasks_of

pytestmark = [
    # A thousand of these run after each other.
    pytest.mark.benchmark(max_time=0.1, min_rounds=5),
    # What the peers' libraries warn of is theirs.
    pytest.mark.filterwarnings("default"),
]
THREADS = numba.config.NUMBA_NUM_THREADS
FOUND, _ = available(list(ENGINES), THREADS)


@lru_cache(maxsize=1)
def problem_of(case: Case) -> Problem:
    return Problem(case, THREADS)


@lru_cache(maxsize=1)
def oracle_of(case: Case, task: Task) -> dict[str, Any]:
    return problem_of(case).reference(task)


# Engines innermost, so that one case and one oracle at a time are alive.
@pytest.mark.parametrize(
    ("case", "task", "engine"),
    [
        pytest.param(case, task, engine, id=f"{case.name}-{task.name}-{engine.name}")
        for case in CASES
        for task in tasks_of(case)
        for engine in FOUND
    ],
)
def test_speed(case: Case, task: Task, engine: Engine, benchmark: Any) -> None:
    problem = problem_of(case)
    call = engine.call(problem, task)
    if call is None:  # only the call of a problem, made of arrays, says so
        pytest.skip(f"{engine.title} has no {task.name}")
    verdict = verify(problem, call, oracle_of(case, task), strict=engine.ours)
    assert verdict.complaint == ""
    benchmark.group = f"{case.label} {task.name}"
    benchmark.extra_info.update(
        bytes=problem.bytes_moved(task),
        threads=THREADS,
        instruction_set=engine.instruction_set,
        worst_error=verdict.worst,
    )
    benchmark(call.run)
    if benchmark.stats is not None:
        best = benchmark.stats.stats.min
        benchmark.extra_info["gigabytes_per_second"] = problem.bytes_moved(task) / best / 1e9
