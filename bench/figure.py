"""The picture: how much of the memory limit each engine reaches, case by case.

Below it, what halves and fusions save: times as fast as normcore itself in float32, or unfused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from bench.cases import Case
from bench.engines import COMPILED, Engine
from bench.machine import sentence
from bench.measure import Comparison

COLOURS = {
    "cython": "#0b6e4f",
    "numba": "#3aa57d",
    "numpy": "#a9d6c3",
    "torch": "#e07a3f",
    "textbook": "#9aa0a6",
}


def _plain(case: Case) -> bool:
    return case.dtype == "float32" and not case.fused


def _batch(case: Case) -> bool:
    return _plain(case) and case.layer == "batch"


def _others(case: Case) -> bool:
    return _plain(case) and case.layer != "batch"


PANELS: tuple[tuple[str, str, Callable[[Case], bool]], ...] = (
    ("batch norm: training forward", "forward", _batch),
    ("batch norm: backward", "backward", _batch),
    ("batch norm: inference", "apply", _batch),
    ("layer, RMS, group and instance norm: forward", "forward", _others),
    ("layer, RMS, group and instance norm: backward", "backward", _others),
)
"""Title, task and cases of each panel of percents."""
HEIGHT = 2.8
"""Inches of a panel: on a README's 900 pixels, 9-point text is 11 pixels high."""

FACTORS = (0.5, 1, 2, 5, 10, 20)


def draw(
    path: Path,
    comparisons: Sequence[Comparison],
    engines: Sequence[Engine],
    machine: dict[str, Any],
) -> None:
    """One panel per kind of task, one group of bars per case, one bar per engine; a PNG."""
    from matplotlib.figure import Figure

    shown = [engine for engine in engines if engine.name in COLOURS]
    panels = [
        (title, [c for c in comparisons if c.task.name == task and belongs(c.case)])
        for title, task, belongs in PANELS
    ]
    panels = [(title, of_panel) for title, of_panel in panels if of_panel]
    savings = [c for c in comparisons if not _plain(c.case)]
    rows = len(panels) + bool(savings)
    figure = Figure(figsize=(9, HEIGHT * rows + 0.1), dpi=160, layout="constrained")
    every = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for axes, (title, of_panel) in zip(every, panels, strict=False):
        _percents(axes, of_panel, shown)
        axes.set_title(title, fontsize=10, loc="left")
    if savings:
        _savings(every[-1], savings, [engine for engine in shown if engine.name in COMPILED])
    names = {engine.title: COLOURS[engine.name] for engine in shown}
    handles = [figure.axes[0].bar(0, 0, color=colour) for colour in names.values()]
    figure.legend(handles, list(names), loc="outside upper center", ncols=len(shown), fontsize=9)
    figure.supxlabel(fill(sentence(machine), 125), fontsize=7, color="#555555")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _percents(axes: Any, comparisons: Sequence[Comparison], engines: Sequence[Engine]) -> None:
    heights = {
        engine.name: [_percent(comparison, engine.name) for comparison in comparisons]
        for engine in engines
    }
    _bars(axes, heights, "%.0f")
    _wrong(axes, comparisons, engines, 2)
    axes.axhline(100, color="black", linewidth=0.8, linestyle="--")
    axes.set_ylabel("% of memory limit", fontsize=9)
    axes.set_ylim(0, max(112.0, axes.get_ylim()[1] * 1.05))
    _ticks(axes, [f"{c.case.name}\n{'x'.join(map(str, c.case.shape))}" for c in comparisons])


def _savings(axes: Any, comparisons: Sequence[Comparison], engines: Sequence[Engine]) -> None:
    heights = {
        engine.name: [_saving(comparison, engine.name) for comparison in comparisons]
        for engine in engines
    }
    _bars(axes, heights, "%.1f")
    _wrong(axes, comparisons, engines, 1)
    # gelu alone is tens of times as fast: on a linear scale nothing else would show.
    axes.set_yscale("log")
    axes.set_yticks(FACTORS, [f"{factor:g}" for factor in FACTORS])
    axes.set_yticks([], minor=True)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_ylabel("times as fast", fontsize=9)
    axes.set_title(
        "bfloat16 against float32, and fusions against plain kernels with NumPy",
        fontsize=10,
        loc="left",
    )
    # Two words of a name above each other: "nchw-112-bf16 backward" is wider than its bars.
    _ticks(axes, ["\n".join([*c.case.name.rsplit("-", 1), c.task.name]) for c in comparisons])


def _wrong(
    axes: Any, comparisons: Sequence[Comparison], engines: Sequence[Engine], height: float
) -> None:
    """The word where the bar of a refused kernel would be."""
    for k, engine in enumerate(engines):
        for at, comparison in enumerate(comparisons):
            if engine.name in comparison.results and comparison.seconds(engine.name) is None:
                x = at + _beside(k, len(engines))
                axes.text(x, height, "wrong", color="red", rotation=90, fontsize=7, ha="center")


def _percent(comparison: Comparison, engine: str) -> float | None:
    seconds = comparison.seconds(engine)
    return None if seconds is None else 100 * comparison.limit.best / seconds


def _saving(comparison: Comparison, engine: str) -> float | None:
    rival = "unfused" if comparison.case.fused else "float32"
    seconds, other = comparison.seconds(engine), comparison.seconds(f"{engine} {rival}")
    return None if seconds is None or other is None else other / seconds


def _bars(axes: Any, heights: dict[str, list[float | None]], form: str) -> None:
    """One bar per engine beside each other, where there is a height."""
    for k, (name, of_engine) in enumerate(heights.items()):
        places = [at for at, height in enumerate(of_engine) if height is not None]
        bars = axes.bar(
            [at + _beside(k, len(heights)) for at in places],
            [of_engine[at] for at in places],
            0.84 / len(heights),
            color=COLOURS[name],
        )
        axes.bar_label(bars, fmt=form, fontsize=6, padding=1)


def _beside(k: int, engines: int) -> float:
    return (k - (engines - 1) / 2) * 0.84 / engines


def _ticks(axes: Any, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
