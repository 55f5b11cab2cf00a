"""What was promised, against what was measured: the only numbers here that no run produced.

`LIMITS` is the table of the speed issue, for Cython. What earlier issues promised of the backends
stands beside it where that table says nothing: Numba's own bounds, the distance to PyTorch, what
halves and fusions save.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.api import Use
from bench.cases import CACHED_BYTES, Case
from bench.engines import COMPILED, PEERS
from bench.measure import Comparison

DEFAULT = "cython"
"""The backend that the promises of time are about: what runs when nobody chooses."""


@dataclass(frozen=True, slots=True)
class Bound:
    """At most so many times the limit, on these cases."""

    cases: tuple[str, ...]
    forward: float
    backward: float
    apply: float | None = None

    def of(self, task: str) -> float | None:
        return {"forward": self.forward, "backward": self.backward, "apply": self.apply}.get(task)


LIMITS = (
    Bound(("nchw-56", "nchw-112", "unet-256"), 1.3, 1.25, 1.05),
    # "planes of 32x32", and smaller ones.
    Bound(("nchw-32", "nchw-28", "nchw-14"), 1.4, 1.4, 1.05),
    Bound(("nchw-56-8", "nchw-56-1"), 1.8, 1.8, 1.2),
    Bound(("nchw-7",), 3.0, 2.5, 1.6),
    Bound(("nc-1024",), 2.2, 2.2, 1.4),
    Bound(("nc-65536",), 1.75, 1.85, 1.05),
    Bound(("last-56",), 1.5, 1.4, 1.05),
    Bound(("ln-1024", "ln-256", "bert-512", "ln-last", "ln-channels"), 1.1, 1.3),
    Bound(("rms-1024", "rms-256"), 1.1, 1.3),
    Bound(("ln-768", "rms-768"), 1.7, 1.9),
    Bound(("gn-56", "gn-56-last", "in-128", "in-128-last"), 1.25, 1.4),
)
OF_HALVES = Bound((), 1.5, 1.5, 1.1)
DOUBLE = 1.1
"""float64 as float32, and this factor."""
NUMBA_BEYOND, NUMBA_CACHED = 1.15, 1.4
"""Numba at most so many times Cython's time, beyond the cache and in it."""
AHEAD, EQUAL = 1.0, 0.97
"""At least so many times as fast as the best peer; oneDNN's inference is at the limit itself."""
SCALING = 1.7
"""Two threads against one, in the cache."""
LINEAR = 1.3
"""From one size to the next, four times as large, the ratio to the limit grows by at most this."""
LINEAR_FROM = 1 << 20
"""Bytes."""
SMALL_SECONDS = {
    "inference (1, 64)": 1.2e-6,
    "inference (64, 64)": 1.8e-6,
    "training (64, 64)": 3e-6,
}
LAYER_SECONDS = 0.7e-6
"""What a layer may add to `functional`."""
SECONDS = {
    **{f"{what} functional": most for what, most in SMALL_SECONDS.items()},
    **{f"{what} layer": most + LAYER_SECONDS for what, most in SMALL_SECONDS.items()},
    "import": 30e-3,
    "first call": 30e-3,
}
"""Key of a use -> at most this long."""
EXTRA_BYTES = 1 << 20

OF_NUMBA = (
    Bound(("nchw-56", "nchw-112", "nc-1024", "nc-65536", "last-56"), 2.0, 2.0, 1.4),
    Bound(("ln-768", "ln-1024", "ln-256", "rms-768", "rms-1024", "rms-256"), 2.0, 2.2),
    Bound(("gn-56", "in-128", "in-128-last"), 2.0, 2.2),
)
TIMES_TORCH = 3.0
"""At least so many times faster than PyTorch eager in the training forward of batch norm."""
HALF_TIME = 0.65
"""A task on halves beyond the cache takes at most this share of its time in float32."""
FUSION = 1.5
"""A fusion is at least this many times faster than its composition."""

GROUPS = {
    "limit": "times the memory limit, Cython",
    "peers": "ahead of every peer, Cython",
    "numba": "Numba against Cython",
    "numba limit": "times the memory limit, Numba",
    "scaling": "two threads against one, in the cache",
    "linear": "cost linear in size",
    "processes": "calls, processes, memory",
    "torch": "batch norm's training forward against PyTorch eager",
    "halves": "bfloat16 and float16 against float32",
    "fusions": "fusions against compositions",
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One promise and what became of it."""

    group: str
    """Of `GROUPS`."""
    what: str
    engine: str
    measured: str
    promised: str
    kept: bool


def judge(
    comparisons: Iterable[Comparison],
    uses: Iterable[Use],
    sizes: Sequence[Comparison] = (),
    threads: Sequence[Comparison] = (),
) -> Iterator[Judgement]:
    """All promises about what was measured; a refused kernel breaks its own."""
    for comparison in comparisons:
        if comparison.case.fused:
            yield from _fusions(comparison)
        else:
            yield from _limits(comparison)
            yield from _peers(comparison)
            yield from _numba(comparison)
            yield from _torch(comparison)
            yield from _halves(comparison)
    yield from _scaling(threads)
    yield from _linear(sizes)
    for use in uses:
        yield from _of_use(use)


def bound_of(case: Case, task: str) -> float | None:
    """At most so many times the limit takes Cython, where that is promised."""
    if case.storage.itemsize == 2:
        return OF_HALVES.of(task)
    name = case.name.removesuffix("-f64")
    found = _find(LIMITS, name, task)
    return found if found is None or case.dtype == "float32" else round(found * DOUBLE, 3)


def _find(bounds: Iterable[Bound], case: str, task: str) -> float | None:
    return next((bound.of(task) for bound in bounds if case in bound.cases), None)


def _limits(comparison: Comparison) -> Iterator[Judgement]:
    case, task = comparison.case, comparison.task.name
    for group, engine, most in (
        ("limit", DEFAULT, bound_of(case, task)),
        ("numba limit", "numba", _find(OF_NUMBA, case.name, task)),
    ):
        if most is not None:
            yield from _at_most(group, comparison, engine, comparison.limit.best, most, "limit")


def _peers(comparison: Comparison) -> Iterator[Judgement]:
    task = comparison.task.name
    name = best_peer(comparison)
    if name is not None and bound_of(comparison.case, task) is not None:
        least = EQUAL if (name, task) == ("onednn", "apply") else AHEAD
        yield from _at_least("peers", comparison, DEFAULT, name, least)


def best_peer(comparison: Comparison) -> str | None:
    """The fastest peer that took part."""
    return fastest({name: comparison.seconds(name) for name in PEERS})


def fastest(seconds: Mapping[str, float | None]) -> str | None:
    """The name of the least time, None where there is none."""
    present = {name: time for name, time in seconds.items() if time is not None}
    return min(present, key=present.__getitem__, default=None)


def _numba(comparison: Comparison) -> Iterator[Judgement]:
    other = comparison.seconds(DEFAULT)
    if other is not None and comparison.task.name in ("forward", "backward", "apply"):
        beyond = comparison.case.nbytes > CACHED_BYTES
        most = NUMBA_BEYOND if beyond else NUMBA_CACHED
        yield from _at_most("numba", comparison, "numba", other, most, DEFAULT)


def _torch(comparison: Comparison) -> Iterator[Judgement]:
    if comparison.task.name == "forward" and comparison.case.name in OF_NUMBA[0].cases:
        for engine in COMPILED:
            yield from _at_least("torch", comparison, engine, "torch", TIMES_TORCH)


def _halves(comparison: Comparison) -> Iterator[Judgement]:
    if comparison.case.storage.itemsize == 2 and comparison.task.name in ("forward", "backward"):
        for engine in COMPILED:
            other = comparison.seconds(f"{engine} float32")
            if other is not None:
                yield from _at_most("halves", comparison, engine, other, HALF_TIME, "float32")


def _fusions(comparison: Comparison) -> Iterator[Judgement]:
    for engine in COMPILED:
        yield from _at_least("fusions", comparison, engine, f"{engine} unfused", FUSION)


def _scaling(comparisons: Sequence[Comparison]) -> Iterator[Judgement]:
    alone = {(c.case.name, c.task.name): c.seconds(DEFAULT) for c in comparisons if c.threads == 1}
    for comparison in comparisons:
        one = alone.get((comparison.case.name, comparison.task.name))
        two = comparison.seconds(DEFAULT)
        if comparison.threads != 2 or comparison.case.nbytes > CACHED_BYTES or not (one and two):
            continue
        times = one / two
        yield Judgement(
            "scaling",
            _what(comparison),
            DEFAULT,
            f"{times:.2f} x 1 thread",
            f">= {SCALING:g} x 1 thread",
            times >= SCALING,
        )


def _linear(comparisons: Sequence[Comparison]) -> Iterator[Judgement]:
    series: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        if comparison.case.nbytes >= LINEAR_FROM and comparison.seconds(DEFAULT) is not None:
            key = (comparison.case.layer, comparison.task.name)
            series.setdefault(key, []).append(comparison)
    for (layer, task), of_series in series.items():
        ratios = [(c.seconds(DEFAULT) or 0.0) / c.limit.best for c in of_series]
        worst = max((after / before for before, after in pairwise(ratios)), default=None)
        if worst is not None:
            sizes = [c.case.nbytes >> 20 for c in of_series]
            yield Judgement(
                "linear",
                f"{layer} norm {task}, {sizes[0]} to {sizes[-1]} MiB",
                DEFAULT,
                f"{worst:.2f} a step",
                f"<= {LINEAR:g} a step",
                worst <= LINEAR,
            )


def _of_use(use: Use) -> Iterator[Judgement]:
    if use.extra_bytes is not None:
        kept = use.extra_bytes < EXTRA_BYTES
        measured = f"{use.extra_bytes >> 10} KiB"
        yield Judgement(
            "processes", use.what, use.engine, measured, f"< {EXTRA_BYTES >> 10} KiB", kept
        )
    elif use.timing is not None and use.key in SECONDS and use.engine in ("-", DEFAULT):
        promised, best = SECONDS[use.key], use.timing.best
        yield Judgement(
            "processes",
            use.what,
            use.engine,
            duration(best),
            f"<= {duration(promised)}",
            best <= promised,
        )


def _at_most(
    group: str, comparison: Comparison, engine: str, other: float, most: float, what: str
) -> Iterator[Judgement]:
    if engine in comparison.results:
        promised = f"<= {most:g} x {what}"
        seconds = comparison.seconds(engine)
        if seconds is None:
            yield _refused(group, comparison, engine, promised)
            return
        times = seconds / other
        measured = f"{times:.2f} x {what}"
        if what == "limit" and comparison.bare is not None:
            measured += f" (bare loops {comparison.bare.best / other:.2f})"
        yield Judgement(group, _what(comparison), engine, measured, promised, times <= most)


def _at_least(
    group: str, comparison: Comparison, engine: str, rival: str, least: float
) -> Iterator[Judgement]:
    if engine in comparison.results:
        short = rival.removeprefix(f"{engine} ")
        promised = f">= {least:g} x {short}"
        seconds, other = comparison.seconds(engine), comparison.seconds(rival)
        if seconds is None:
            yield _refused(group, comparison, engine, promised)
        elif other is not None:
            times = other / seconds
            measured = f"{times:.2f} x {short}"
            yield Judgement(group, _what(comparison), engine, measured, promised, times >= least)


def _refused(group: str, comparison: Comparison, engine: str, promised: str) -> Judgement:
    return Judgement(group, _what(comparison), engine, "refused", promised, False)


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
