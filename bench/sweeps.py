"""Series: time against size, against threads, and against error at a large offset.

Each is the comparison of `bench.measure` again, on cases made for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench import measure
from bench.cases import CASES, Case
from bench.data import crops, table
from bench.engines import COMPILED, PEERS, available
from bench.limits import thread_counts
from bench.measure import Comparison

ROUNDS = 5
"""At most: a series is read by its shape, and has many places."""
OFFSET = 1e4
"""In standard deviations."""

_NAMED = {case.name: case for case in CASES}
# 16 KiB to 64 MiB: L1 of one core to beyond the last cache.
SIZES = tuple(
    case
    for power in range(0, 13, 2)
    for case in (
        Case(f"size-nchw-{power}", (1 << power, 16, 16, 16), 1, crops),
        Case(f"size-ln-{power}", (16 << power, 256), 1, table, "layer"),
    )
)
SCALED = tuple(_NAMED[name] for name in ("nchw-56-8", "nc-1024", "ln-768", "nchw-56"))
AWAY = tuple(
    replace(_NAMED[name], name=f"{name} + 1e4 std", offset=OFFSET)
    for name in ("nchw-56-8", "nc-1024", "ln-768", "gn-64")
)


@dataclass(frozen=True, slots=True)
class Series:
    """Cases of one question, who is asked, and for which tasks."""

    name: str
    cases: tuple[Case, ...]
    engines: tuple[str, ...]
    only: tuple[str, ...]
    every_count: bool = False
    """Whether for each number of threads, or for the chosen one."""


SERIES = (
    Series(
        "sizes",
        SIZES,
        (*COMPILED, "torch", "onnxruntime", "jax", "textbook"),
        ("forward", "backward"),
    ),
    # The other peers have one number of threads per process, or one thread.
    Series(
        "threads",
        SCALED,
        (*COMPILED, "torch", "onnxruntime"),
        ("forward", "backward"),
        every_count=True,
    ),
    Series("offset", AWAY, (*COMPILED, "numpy", *PEERS), ("forward",)),
)


def run(
    series: Series,
    names: Sequence[str],
    threads: int,
    rounds: int,
    advance: Callable[[str], object],
) -> list[Comparison]:
    """One series with those of its engines that `names` holds and that are installed."""
    chosen = [name for name in series.engines if name in names]
    found: list[Comparison] = []
    for case in series.cases:
        # The chosen number comes last: that is what PyTorch is left with.
        for count in _counts(series, threads):
            engines, _ = available(chosen, count)
            found += measure.compare(
                case, engines, count, min(rounds, ROUNDS), advance, series.only
            )
    return found


def steps(series: Series, threads: int, rounds: int) -> int:
    """How often `run` will call `advance`."""
    of_each = (measure.steps(case, min(rounds, ROUNDS), series.only) for case in series.cases)
    return len(_counts(series, threads)) * sum(of_each)


def _counts(series: Series, threads: int) -> list[int]:
    return thread_counts(threads) if series.every_count else [threads]
