"""The picture: how much of the memory limit each engine reaches, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from bench.engines import Engine
from bench.machine import sentence
from bench.measure import Comparison

PANELS = {"forward": "training forward", "backward": "backward", "apply": "inference"}
COLOURS = {
    "cython": "#0b6e4f",
    "numba": "#3aa57d",
    "numpy": "#a9d6c3",
    "torch": "#e07a3f",
    "textbook": "#9aa0a6",
}


def draw(
    path: Path,
    comparisons: Sequence[Comparison],
    engines: Sequence[Engine],
    machine: dict[str, Any],
) -> None:
    """One panel per pass, one group of bars per case, one bar per engine; a PNG."""
    from matplotlib.figure import Figure

    # 9 x 8.5 inches: on a README's 900 pixels, 9-point text is 11 pixels high.
    figure = Figure(figsize=(9, 8.5), dpi=160, layout="constrained")
    cases = list(dict.fromkeys(comparison.case for comparison in comparisons))
    passes = [name for name in PANELS if any(c.kernel.name == name for c in comparisons)]
    width = 0.84 / len(engines)
    for axes, name in zip(
        figure.subplots(len(passes), 1, squeeze=False)[:, 0], passes, strict=True
    ):
        of_pass = {c.case: c for c in comparisons if c.kernel.name == name}
        for k, engine in enumerate(engines):
            shown = [
                (cases.index(case), 100 * comparison.limit.best / seconds)
                for case, comparison in of_pass.items()
                if (seconds := comparison.seconds(engine.name)) is not None
            ]
            beside = (k - (len(engines) - 1) / 2) * width
            for case, comparison in of_pass.items():
                if engine.name in comparison.results and comparison.seconds(engine.name) is None:
                    at = cases.index(case) + beside
                    axes.text(at, 2, "wrong", color="red", rotation=90, fontsize=7, ha="center")
            bars = axes.bar(
                [at + beside for at, _ in shown],
                [percent for _, percent in shown],
                width,
                label=engine.title,
                color=COLOURS[engine.name],
            )
            axes.bar_label(bars, fmt="%.0f", fontsize=6.5, padding=1)
        axes.axhline(100, color="black", linewidth=0.8, linestyle="--")
        axes.set_title(PANELS[name], fontsize=10, loc="left")
        axes.set_ylabel("% of memory limit", fontsize=9)
        axes.set_ylim(0, max(112.0, axes.get_ylim()[1] * 1.05))
        axes.set_xticks(range(len(cases)), [_tick(c.name, c.shape) for c in cases], fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(engines), fontsize=9)
    figure.supxlabel(fill(sentence(machine), 125), fontsize=7, color="#555555")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _tick(name: str, shape: tuple[int, ...]) -> str:
    return f"{name}\n{'x'.join(map(str, shape))}"
