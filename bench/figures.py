"""The pictures of a run, from its JSON: one PNG per question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from bench import bars, curves
from bench.bars import COLOURS, drawn
from bench.machine import sentence

Panels = Sequence[Callable[[Any], None]]


def draw(folder: Path, content: dict[str, Any]) -> list[Path]:
    """Every picture that there are figures for; their paths."""
    machine, series = content["machine"], content["series"]
    pictures: list[tuple[str, Panels, int, float]] = [
        ("bench.png", bars.panels(content["kernels"]), 1, 2.7),
        ("sizes.png", curves.sizes(series.get("sizes", []), machine), 2, 3.0),
        ("threads.png", curves.threads(series.get("threads", [])), 1, 2.3),
        ("errors.png", curves.errors(series.get("offset", [])), 2, 3.2),
    ]
    found = []
    for name, panels, columns, height in pictures:
        if panels:
            found.append(folder / name)
            _picture(found[-1], panels, columns, height, content)
    return found


def _picture(
    path: Path, panels: Panels, columns: int, height: float, content: dict[str, Any]
) -> None:
    """The panels, the names of the colours above and the machine below."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(11, height * rows + 0.6), dpi=130, layout="constrained")
    every = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(every, panels, strict=False):
        panel(axes)
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    titles = content["titles"]
    names = drawn(
        [entry for part in (content["kernels"], *content["series"].values()) for entry in part]
    )
    handles = [Patch(color=COLOURS[name], label=titles[name]) for name in names]
    figure.legend(handles=handles, loc="outside upper center", ncols=6, fontsize=8)
    figure.supxlabel(fill(sentence(content["machine"]), 150), fontsize=7, color="#555555")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
