"""Panels that several figures share: curves per epoch, curves against a setting, bands of spread.

A line is the mean over the seeds, its band one standard deviation to both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.training.results import Array, Results

PALETTE = ("#777d84", "#0b6e4f", "#e07a3f", "#5b7fc7", "#b3446c", "#8e6bb0", "#c9a227")
MARKERS = "osD^vPX"


def colours(results: Results) -> dict[str, str]:
    """Each line of an experiment has its colour in all panels."""
    return dict(zip(results.lines, PALETTE, strict=False))


def curves(
    axes: Any,
    results: Results,
    key: str,
    at: float | None = None,
    x: Sequence[float] | None = None,
) -> None:
    """A number per epoch (or per what x says) of each line."""
    for number, line in enumerate(results.lines):
        values = results.get(key, line, at)
        places = np.arange(1, values.shape[1] + 1) if x is None else np.array(x)
        band(axes, places, values, line, number)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    finish(axes, key)


def history(figure: Any, results: Results, shape: tuple[int, int], keys: Sequence[str]) -> Any:
    """A panel of curves per epoch for each of the numbers, losses logarithmic; the panels."""
    panels = figure.subplots(*shape, squeeze=False)
    for axes, key in zip(panels.flat, keys, strict=True):
        curves(axes, results, key)
        if "loss" in key:
            axes.set_yscale("log")
    legend(figure, panels.flat[0])
    return panels


def against(axes: Any, results: Results, key: str, what: str, base: float | None = 10) -> None:
    """The final numbers of each line against what varies; the axis logarithmic of this base."""
    for number, line in enumerate(results.lines):
        band(axes, np.array(results.places(line)), results.against(key, line), line, number)
    if base is not None:
        axes.set_xscale("log", base=base)
    axes.set_xlabel(what)
    finish(axes, key)


def ticks(axes: Any, places: Sequence[float]) -> None:
    """Name just these places of a horizontal axis, as they are."""
    axes.set_xticks(list(places), [f"{place:g}" for place in places])
    axes.minorticks_off()


def band(axes: Any, x: Array, values: Array, name: str, number: int) -> None:
    """Mean and spread of (seeds, places) values, in the colour of this number.

    A place where a seed has overflown is left out: the end of the curve says where.
    """
    whole = np.isfinite(values).all(axis=0)
    x, values = x[whole], values[:, whole]
    mean, colour = values.mean(axis=0), PALETTE[number]
    axes.plot(
        *(x, mean, MARKERS[number] + "-"), color=colour, markersize=3.5, linewidth=1.5, label=name
    )
    if len(values) > 1:
        deviation = values.std(axis=0, ddof=1)
        axes.fill_between(
            x, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0
        )


def finish(axes: Any, what: str, title: str | None = None) -> None:
    """Names, grid and sizes."""
    from matplotlib.ticker import PercentFormatter

    axes.set_title(title or what, fontsize=10, loc="left")
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(9)
    axes.yaxis.label.set_size(9)
    axes.spines[["top", "right"]].set_visible(False)
    if "accuracy" in what:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        # A band may go beyond what is possible, and the axis with it.
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.01))


def legend(figure: Any, axes: Any) -> None:
    """The names of the lines, once, above all panels."""
    handles, labels = axes.get_legend_handles_labels()
    size = 9 if sum(map(len, labels)) < 75 else 8
    figure.legend(
        handles, labels, loc="outside upper center", ncols=6, fontsize=size, frameon=False
    )


def new_figure(panels: tuple[int, int]) -> Any:
    """An empty figure for rows and columns of panels."""
    from matplotlib.figure import Figure

    rows, columns = panels
    return Figure(figsize=(4.6 * columns, 2.9 * rows + 0.4), dpi=100, layout="constrained")
