"""What was promised, against what was measured: the only numbers here that no run produced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bench.api import ApiResult
from bench.measure import Comparison

BACKENDS = ("cython", "numba")
TIMES_LIMIT = {"forward": 2.0, "backward": 2.0, "apply": 1.4}
"""Pass -> at most this many times the limit."""
TIMES_FASTER = {"forward": ("torch", 3.0)}
"""Pass -> at least this many times faster than a peer."""
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
        if comparison.case.target and comparison.kernel.name in TIMES_LIMIT:
            yield from _of_kernels(comparison)
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


def _of_kernels(comparison: Comparison) -> Iterator[Judgement]:
    name = comparison.kernel.name
    what = f"{comparison.case.name} {name}"
    for engine in BACKENDS:
        if engine not in comparison.results:
            continue
        seconds = comparison.seconds(engine)
        most = TIMES_LIMIT[name]
        if seconds is None:
            yield Judgement(what, engine, "refused", f"<= {most:g} x limit", False)
            continue
        times = seconds / comparison.limit.best
        yield Judgement(what, engine, f"{times:.2f} x limit", f"<= {most:g} x limit", times <= most)
        peer, least = TIMES_FASTER.get(name, ("", 0.0))
        other = comparison.seconds(peer)
        if other is not None:
            faster = other / seconds
            yield Judgement(
                what, engine, f"{faster:.1f} x {peer}", f">= {least:g} x {peer}", faster >= least
            )


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
