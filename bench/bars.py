"""The picture of all cases: how much of the memory limit each engine reaches, peers beside.

Below it, what halves and fusions save: times as fast as normcore itself in float32, or unfused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.engines import COMPILED, PEERS
from bench.record import Entry, seconds, times_limit

COLOURS = {
    "cython": "#0b6e4f",
    "numba": "#3aa57d",
    "numpy": "#a9d6c3",
    "torch": "#e07a3f",
    "compiled": "#f0b48c",
    "onednn": "#b3446c",
    "onnxruntime": "#5b7fc7",
    "jax": "#8e6bb0",
    "textbook": "#9aa0a6",
}
FACTORS = (0.5, 1, 2, 5, 10, 20)
FULL = 0.86
"""Share of its place that a group of bars fills."""


def _batch(entry: Entry) -> bool:
    return _plain(entry) and entry["layer"] == "batch"


def _others(entry: Entry) -> bool:
    return _plain(entry) and entry["layer"] != "batch"


def _plain(entry: Entry) -> bool:
    return entry["dtype"] == "float32" and not entry["fused"]


def _dtypes(entry: Entry) -> bool:
    return entry["dtype"] != "float32"


PANELS: tuple[tuple[str, str, Callable[[Entry], bool]], ...] = (
    ("batch norm: training forward", "forward", _batch),
    ("batch norm: backward", "backward", _batch),
    ("batch norm: inference", "apply", _batch),
    ("layer, RMS, group and instance norm: forward", "forward", _others),
    ("layer, RMS, group and instance norm: backward", "backward", _others),
    ("bfloat16, float16 and float64: forward, against their own limit", "forward", _dtypes),
    ("bfloat16, float16 and float64: backward, against their own limit", "backward", _dtypes),
)
"""Title, task and cases of each panel of percents."""


def drawn(entries: Sequence[Entry]) -> list[str]:
    """The engines that have a colour; the numpy backend, the oracle, only where it stands alone."""
    found = [name for name in COLOURS if any(name in entry["engines"] for entry in entries)]
    if any(name in COMPILED for name in found):
        found = [name for name in found if name != "numpy"]
    return found


def panels(entries: Sequence[Entry]) -> list[Callable[[Any], None]]:
    """What draws one panel each into the axes that it is given."""
    shown = drawn(entries)
    found: list[Callable[[Any], None]] = []
    for title, task, belongs in PANELS:
        of_panel = [entry for entry in entries if entry["pass"] == task and belongs(entry)]
        if of_panel:
            found.append(_percent_panel(title, of_panel, shown))
    savings = [
        entry for entry in entries if any(_saving(entry, engine) is not None for engine in COMPILED)
    ]
    if savings:
        found.append(lambda axes: _savings(axes, savings))
    return found


def _percent_panel(
    title: str, entries: Sequence[Entry], shown: Sequence[str]
) -> Callable[[Any], None]:
    # Whoever takes no part in this panel gets no gap in it.
    engines = [name for name in shown if any(name in entry["engines"] for entry in entries)]

    def draw(axes: Any) -> None:
        heights = {name: [_percent(entry, name) for entry in entries] for name in engines}
        _bars(axes, heights, "%.0f")
        _wrong(axes, entries, engines, 2)
        axes.axhline(100, color="black", linewidth=0.8, linestyle="--")
        axes.set_ylabel("% of memory limit", fontsize=9)
        axes.set_ylim(0, max(112.0, axes.get_ylim()[1] * 1.05))
        axes.set_title(title, fontsize=10, loc="left")
        _ticks(axes, [_place(entry) for entry in entries])

    return draw


def _savings(axes: Any, entries: Sequence[Entry]) -> None:
    heights = {name: [_saving(entry, name) for entry in entries] for name in COMPILED}
    _bars(axes, heights, "%.1f")
    _wrong(axes, entries, COMPILED, 1)
    # gelu alone is tens of times as fast: on a linear scale nothing else would show.
    axes.set_yscale("log")
    axes.set_yticks(FACTORS, [f"{factor:g}" for factor in FACTORS])
    axes.set_yticks([], minor=True)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_ylabel("times as fast", fontsize=9)
    axes.set_title(
        "halves against float32, and fusions against plain kernels with NumPy",
        fontsize=10,
        loc="left",
    )
    # Two words of a name above each other: "nchw-112-bf16 backward" is wider than its bars.
    _ticks(axes, ["\n".join([*e["case"].rsplit("-", 1), e["pass"]]) for e in entries])


def _wrong(axes: Any, entries: Sequence[Entry], engines: Sequence[str], height: float) -> None:
    """The word where the bar of a refused kernel would be."""
    for k, name in enumerate(engines):
        for at, entry in enumerate(entries):
            if name in entry["engines"] and seconds(entry, name) is None:
                x = at + _beside(k, len(engines))
                axes.text(x, height, "wrong", color="red", rotation=90, fontsize=7, ha="center")


def _place(entry: Entry) -> str:
    """Name and shape, in three lines: twenty cases stand beside each other."""
    first, *others = ("x".join(map(str, part)) for part in (entry["shape"][:2], entry["shape"][2:]))
    return "\n".join([entry["case"], first, *(f"x{rest}" for rest in others if rest)])


def _percent(entry: Entry, engine: str) -> float | None:
    times = times_limit(entry, engine)
    return None if times is None else 100 / times


def _saving(entry: Entry, engine: str) -> float | None:
    rival = "unfused" if entry["fused"] else "float32"
    own, other = seconds(entry, engine), seconds(entry, f"{engine} {rival}")
    return None if own is None or other is None else other / own


def _bars(axes: Any, heights: dict[str, list[float | None]], form: str) -> None:
    """One bar per engine beside each other, where there is a height; ours are labelled."""
    for k, (name, of_engine) in enumerate(heights.items()):
        places = [at for at, height in enumerate(of_engine) if height is not None]
        bars = axes.bar(
            [at + _beside(k, len(heights)) for at in places],
            [of_engine[at] for at in places],
            FULL / len(heights),
            color=COLOURS[name],
        )
        if name not in PEERS:
            axes.bar_label(bars, fmt=form, fontsize=5.5, padding=1)


def _beside(k: int, engines: int) -> float:
    return (k - (engines - 1) / 2) * FULL / engines


def _ticks(axes: Any, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, fontsize=6)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
