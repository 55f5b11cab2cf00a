"""The pictures of the series: time against size, thread scaling, time against error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isnan
from typing import Any

from bench.bars import COLOURS, drawn
from bench.record import Entry, seconds, worst_error

Panels = list[Callable[[Any], None]]
WORST = 1e3
"""Errors beyond, and those that are not numbers, are drawn here."""
LEAST = 1e-8


def sizes(entries: Sequence[Entry], machine: dict[str, Any]) -> Panels:
    """Nanoseconds per element against bytes, one panel per layer and pass."""
    return [
        _of_size(of_panel, machine)
        for _, of_panel in _grouped(entries, lambda e: (e["layer"], e["pass"]))
    ]


def _of_size(entries: Sequence[Entry], machine: dict[str, Any]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        first = entries[0]
        megabytes = [entry["array_bytes"] / 2**20 for entry in entries]
        limit = [_per_element(entry, entry["limit"]["best"]) for entry in entries]
        axes.plot(megabytes, limit, "--", color="black", linewidth=1, label="memory limit")
        for name in drawn(entries):
            times = [
                (at, seconds(entry, name)) for at, entry in zip(megabytes, entries, strict=True)
            ]
            points = [
                (at, e, t) for (at, t), e in zip(times, entries, strict=True) if t is not None
            ]
            axes.plot(
                [at for at, _, _ in points],
                [_per_element(entry, time) for _, entry, time in points],
                *("o-",),
                color=COLOURS[name],
                markersize=3,
                linewidth=1.2,
            )
        for cache, size in machine["caches"].items():
            if megabytes[0] * 2**20 < size < megabytes[-1] * 2**20:
                axes.axvline(size / 2**20, color="#bbbbbb", linewidth=0.8)
                axes.text(
                    size / 2**20, 0.98, f" {cache}", fontsize=7, color="#777777",
                    transform=axes.get_xaxis_transform(), va="top",
                )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("MiB of x", fontsize=8)
        axes.set_ylabel("ns per element", fontsize=9)
        axes.set_title(f"{first['layer']} norm {first['pass']}", fontsize=10, loc="left")
        _plain(axes)

    return draw


def _per_element(entry: Entry, time: float) -> float:
    elements = 1
    for size in entry["shape"]:
        elements *= size
    return 1e9 * time / elements


def threads(entries: Sequence[Entry]) -> Panels:
    """Times as fast as on one thread, one panel per pass; a line per engine and case."""
    return [_of_threads(task, of_task) for task, of_task in _grouped(entries, lambda e: e["pass"])]


def _of_threads(task: str, entries: Sequence[Entry]) -> Callable[[Any], None]:
    counts = sorted({entry["threads"] for entry in entries})
    cases = list(dict.fromkeys(entry["case"] for entry in entries))
    by_place = {(entry["case"], entry["threads"]): entry for entry in entries}

    def draw(axes: Any) -> None:
        engines = drawn(entries)
        for k, name in enumerate(engines):
            for at, case in enumerate(cases):
                times = [seconds(by_place[case, count], name) for count in counts]
                alone = times[0]
                if alone is None:
                    continue
                at_engine = at + (k - (len(engines) - 1) / 2) * 0.8 / len(engines)
                gains = [alone / time for time in times if time is not None]
                axes.bar(at_engine, gains[-1], 0.8 / len(engines), color=COLOURS[name])
                axes.text(
                    at_engine, gains[-1], f"{gains[-1]:.1f}", fontsize=6, ha="center", va="bottom"
                )
                # The counts between are dots on the bar of the last.
                axes.plot([at_engine] * (len(gains) - 2), gains[1:-1], "k.", markersize=3)
        axes.axhline(counts[-1], color="black", linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(cases)), cases, fontsize=7)
        axes.set_ylabel(f"x 1 thread, on {counts[-1]}", fontsize=9)
        axes.set_title(f"{task}", fontsize=10, loc="left")
        _plain(axes)

    return draw


def errors(entries: Sequence[Entry]) -> Panels:
    """Times the limit against the worst error, one panel per case, one point per engine."""
    return [_of_errors(entry) for entry in entries]


def _of_errors(entry: Entry) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        for name in drawn([entry]):
            time = seconds(entry, name)
            if time is None:
                continue
            error = entry["engines"][name]["errors"].get("y", worst_error(entry, name))
            at = max(LEAST, WORST if isnan(error) else min(error, WORST))
            times = time / entry["limit"]["best"]
            axes.plot(at, times, "o", color=COLOURS[name], markersize=7)
            lost = "NaN" if isnan(error) else f"{error:.0e}"
            # Our backends are near each other: one's name stands below.
            place = (4, -9) if name == "cython" else (4, 3)
            axes.annotate(
                f"{name} {lost}", (at, times), fontsize=6.5, xytext=place,
                textcoords="offset points",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(LEAST / 2, WORST * 1e2)
        axes.yaxis.set_minor_formatter("")
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.8, low), high * 1.5)
        axes.set_xlabel("worst error of y", fontsize=8)
        axes.set_ylabel("times the memory limit", fontsize=9)
        axes.set_title(f"{entry['layer']} norm {entry['case']}", fontsize=10, loc="left")
        _plain(axes)

    return draw


def _grouped(
    entries: Sequence[Entry], key: Callable[[Entry], Any]
) -> Iterator[tuple[Any, list[Entry]]]:
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    yield from groups.items()


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
