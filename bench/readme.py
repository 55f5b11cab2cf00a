"""``python -m bench readme``: README's tables and figures, from the JSON of a run.

Tables stand between `BEGIN` and `END` and are written anew; figures go beside the JSON. Cells that
a peer wins, and promises that are missed, are marked and stay.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import groupby
from os.path import relpath
from pathlib import Path
from typing import Any

from bench.engines import COMPILED
from bench.figures import draw
from bench.machine import sentence
from bench.record import Entry, best_peer, read_json, seconds, times_limit, worst_error
from bench.targets import EQUAL, GROUPS, duration

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- written by python -m bench readme: begin -->"
END = "<!-- written by python -m bench readme: end -->"
TASKS = ("forward", "backward", "apply")
TITLES = {
    "bench": "Percent of the memory limit that each engine reaches, by case",
    "sizes": "Time per element against size, from L1 to memory",
    "threads": "Times as fast as on one thread",
    "errors": "Time against error at an offset of 1e4 standard deviations",
}
"""Picture -> what it shows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *("json",),
        type=Path,
        nargs="?",
        default=ROOT / "docs" / "bench.json",
        metavar="JSON",
        help="of `bench speed` (default: docs/bench.json)",
    )
    parser.add_argument(
        "--readme", type=Path, default=ROOT / "README.md", help="the file to write into"
    )


def main(given: argparse.Namespace) -> int:
    """Draw the figures and write the tables."""
    content = read_json(given.json)
    text = given.readme.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"{given.readme}: expected one line {BEGIN!r} and one line {END!r}")
        return 1
    drawn = draw(given.json.parent, content)
    folder = given.readme.parent
    pictures = [f"![{TITLES[path.stem]}]({relpath(path, folder)})" for path in drawn]
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = "\n\n".join([*pictures, tables(content)])
    given.readme.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")
    print("written:", given.readme, *drawn)
    return 0


def tables(content: dict[str, Any]) -> str:
    """Everything between the marks, as Markdown."""
    parts = [
        "Times the memory limit, Cython / Numba, and how many times as fast as the best peer "
        "Cython is; **bold** where a promise is missed or a peer is ahead. In brackets, beyond the "
        "cache: bare loops that read and write the same bytes in the order of a norm, all of a "
        "block before any of it is written, and compute nothing.",
        "\n".join(_limits(content["kernels"])),
    ]
    if any(use["timing"] and not use["bytes"] for use in content["uses"]):
        parts.append("\n".join(_calls(content["uses"])))
    if "offset" in content["series"]:
        parts += [
            "The same data moved away from 0 by 1e4 standard deviations, float32, training "
            "forward: times the limit, and the worst error of all results.",
            "\n".join(_offset(content["series"]["offset"])),
        ]
    parts += [
        "\n".join(_targets(content["targets"])),
        f"Measured {content['machine']['when'][:10]} on {sentence(content['machine'])}",
    ]
    return "\n\n".join(parts)


def _limits(entries: Sequence[Entry]) -> Iterator[str]:
    yield "| case | forward | | backward | | inference | |"
    yield "|---|---|---|---|---|---|---|"
    for _, group in groupby(entries, key=lambda entry: entry["case"]):
        of_case = {entry["pass"]: entry for entry in group}
        entry = of_case["forward"]
        if entry["promised"] is None:
            continue
        shape = ", ".join(map(str, entry["shape"]))
        title = f"{entry['layer']} norm ({shape}) {entry['dtype']}"
        cells = [_cell(of_case[task]) if task in of_case else " | " for task in TASKS]
        yield f"| {title} | {' | '.join(cells)} |"


def _cell(entry: Entry) -> str:
    found = []
    for engine in COMPILED:
        times = times_limit(entry, engine)
        if engine not in entry["engines"]:
            found.append("-")
        elif times is None:
            found.append("**wrong**")
        else:
            broken = engine == "cython" and times > entry["promised"]
            found.append(_bold(f"{times:.2f}", broken))
    times_of_all = " / ".join(found)
    if entry["bare"] is not None:
        times_of_all += f" ({entry['bare']['best'] / entry['limit']['best']:.2f})"
    peer = best_peer(entry)
    other, own = (seconds(entry, name) for name in (peer or "", "cython"))
    if other is None or own is None:
        return f"{times_of_all} | -"
    least = EQUAL if (peer, entry["pass"]) == ("onednn", "apply") else 1
    return f"{times_of_all} | {_bold(f'{other / own:.1f} x {peer}', other / own < least)}"


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _calls(uses: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| one call, one process | who | time |"
    yield "|---|---|---|"
    for use in uses:
        if use["timing"] and not use["bytes"] and use["engine"] not in ("numba", "numpy"):
            yield f"| {use['what']} | {use['engine']} | {duration(use['timing']['best'])} |"


def _offset(entries: Sequence[Entry]) -> Iterator[str]:
    engines = [name for name in entries[0]["engines"] if " " not in name]
    yield f"| case | {' | '.join(engines)} |"
    yield "|---" * (len(engines) + 1) + "|"
    for entry in entries:
        cells = []
        for name in engines:
            if name not in entry["engines"]:
                cells.append("-")
                continue
            times, error = times_limit(entry, name), worst_error(entry, name)
            cells.append("wrong" if times is None else f"{times:.1f}, {error:.0e}")
        yield f"| {entry['layer']} norm {tuple(entry['shape'])} | {' | '.join(cells)} |"


def _targets(judgements: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| promise | kept | missed |"
    yield "|---|---|---|"
    for group, title in GROUPS.items():
        kept = [one["kept"] for one in judgements if one["group"] == group]
        if kept:
            yield f"| {title} | {sum(kept)} | {_bold(str(len(kept) - sum(kept)), not all(kept))} |"
