"""What was promised, against what was measured: the only numbers here that no run produced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bench.api import ApiResult
from bench.engines import COMPILED
from bench.measure import Comparison

OF_BATCH = {"forward": 2.0, "backward": 2.0, "apply": 1.4}
OF_OTHERS = {"forward": 2.0, "backward": 2.2}
"""Task -> at most this many times the limit, on float32."""
TIMES_FASTER = {"forward": ("torch", 3.0)}
"""Task of batch norm on float32 -> at least this many times faster than a peer."""
HALF_TIME = 0.65
"""A task on halves takes at most this share of its time on the same numbers in float32."""
FUSION = 1.5
"""A fusion is at least this many times faster than its composition."""
DEFAULT = "cython"
"""The backend that the promises of time are about: what runs when nobody chooses."""
SECONDS = {"small layer": 6e-6, "small functional": 4e-6, "import": 30e-3}
"""Key of a result of `bench.api` -> at most this long."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One promise and what became of it."""

    what: str
    engine: str
    measured: str
    promised: str
    kept: bool


def judge(comparisons: Iterable[Comparison], api: Iterable[ApiResult]) -> Iterator[Judgement]:
    """All promises about what was measured; a refused kernel breaks its own."""
    for comparison in comparisons:
        if comparison.case.target:
            for engine in COMPILED:
                if engine in comparison.results:
                    yield from _of_backend(comparison, engine)
    for result in api:
        if result.key in SECONDS and result.engine in ("-", DEFAULT):
            promised = SECONDS[result.key]
            yield Judgement(
                result.what,
                result.engine,
                duration(result.timing.best),
                f"<= {duration(promised)}",
                result.timing.best <= promised,
            )


def _of_backend(comparison: Comparison, engine: str) -> Iterator[Judgement]:
    case, task = comparison.case, comparison.task.name
    seconds = comparison.seconds(engine)
    if case.fused:
        yield from _faster(comparison, engine, f"{engine} unfused", FUSION)
    elif case.dtype != "float32":
        wide = comparison.seconds(f"{engine} float32")
        if seconds is None:
            yield _refused(comparison, engine, f"<= {HALF_TIME:g} x float32")
        elif wide is not None:
            yield _at_most(comparison, engine, seconds / wide, HALF_TIME, "float32")
    else:
        promised = OF_BATCH if case.layer == "batch" else OF_OTHERS
        if task not in promised:
            return
        if seconds is None:
            yield _refused(comparison, engine, f"<= {promised[task]:g} x limit")
            return
        times = seconds / comparison.limit.best
        yield _at_most(comparison, engine, times, promised[task], "limit")
        if case.layer == "batch" and task in TIMES_FASTER:
            yield from _faster(comparison, engine, *TIMES_FASTER[task])


def _at_most(
    comparison: Comparison, engine: str, times: float, most: float, what: str
) -> Judgement:
    return Judgement(
        _what(comparison), engine, f"{times:.2f} x {what}", f"<= {most:g} x {what}", times <= most
    )


def _faster(comparison: Comparison, engine: str, rival: str, least: float) -> Iterator[Judgement]:
    seconds, other = comparison.seconds(engine), comparison.seconds(rival)
    short = rival.removeprefix(f"{engine} ")
    promised = f">= {least:g} x {short}"
    if seconds is None:
        yield _refused(comparison, engine, promised)
    elif other is not None:
        times = other / seconds
        measured = f"{times:.1f} x {short}"
        yield Judgement(_what(comparison), engine, measured, promised, times >= least)


def _refused(comparison: Comparison, engine: str, promised: str) -> Judgement:
    return Judgement(_what(comparison), engine, "refused", promised, False)


def _what(comparison: Comparison) -> str:
    return f"{comparison.case.name} {comparison.task.name}"


def duration(seconds: float) -> str:
    """Three digits and a unit.

    Examples
    --------
    >>> duration(0.0123), duration(4.2e-6)
    ('12.3 ms', '4.20 us')
    """
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us"), (1e9, "ns")):
        value = seconds * factor
        if value >= 1:
            return f"{value:.3g} {unit}" if value >= 100 else f"{value:#.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
