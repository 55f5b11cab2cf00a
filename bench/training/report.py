"""What a run says to people: a figure and findings per experiment, as Markdown and as HTML.

Both are made of the same blocks, from the content of the JSON and nothing else. The HTML is one
file: figures are inside, and nothing is fetched.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import sentence
from bench.training.draw import new_figure
from bench.training.experiment import Experiment
from bench.training.experiments import EXPERIMENTS
from bench.training.results import (
    CONFIDENCE,
    MEASURED,
    SECONDS,
    VERDICTS,
    Finding,
    Results,
    measured,
    spread,
)
from bench.training.store import restored

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1d2125}h2{margin-top:3rem;border-top:1px solid #ddd;padding-top:1rem}img{max-width:100%}
table{border-collapse:collapse;font-size:14px}td,th{padding:.2rem .7rem;text-align:right;
border-bottom:1px solid #e4e4e4}td:first-child,th:first-child{text-align:left}"""


@dataclass(frozen=True, slots=True)
class Heading:
    """A title, of the report (level 1) or of a part (level 2)."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure beside the report."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """Findings, each behind its verdict."""

    findings: Sequence[Finding]


@dataclass(frozen=True, slots=True)
class Rows:
    """A table; the first row has the headings."""

    rows: Sequence[Sequence[str]]


Block = Heading | Text | Picture | Items | Rows


def write(folder: Path, content: dict[str, Any]) -> list[Path]:
    """Figures, report.md and report.html; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found = list(blocks(folder, content))
    made = {"report.md": "\n\n".join(map(_markdown, found)) + "\n", "report.html": _page(found)}
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    pictures = [block.path for block in found if isinstance(block, Picture)]
    return [*pictures, *(folder / name for name in made)]


def blocks(folder: Path | None, content: dict[str, Any]) -> Iterator[Block]:
    """The report from top to bottom; figures are drawn on the way if there is a folder for them."""
    yield Heading("What normalization does to training", 1)
    yield from _head(content)
    everything = restored(content)
    yield Rows(list(_summary(content)))
    for name, results in everything.items():
        experiment, entry = EXPERIMENTS[name], content["experiments"][name]
        yield Heading(experiment.title)
        yield Text(experiment.question)
        if folder is not None:
            yield Picture(draw(folder, experiment, results), experiment.title)
        yield Items(experiment.findings(results))
        yield from _checks(name, content["checks"])
        yield Rows(list(_numbers(experiment, results)))
        if experiment.each_epoch:
            yield Rows(list(_epochs(results)))
        settings = ", ".join(f"{key} {_shown(value)}" for key, value in entry["settings"].items())
        yield Text(
            f"{name}: {settings}; {entry['epochs']} epochs, seeds {entry['seeds'][0]} to "
            f"{entry['seeds'][-1]}. Digest of the numbers: {entry['digest']}."
        )
    yield Text(f"Run on {sentence(content['machine'])}")


def draw(folder: Path, experiment: Experiment, results: Results) -> Path:
    """The figure of an experiment; its path."""
    figure = new_figure(experiment.panels)
    experiment.draw(results, figure)
    path = folder / f"{experiment.name}.png"
    figure.savefig(path)
    return path


def _head(content: dict[str, Any]) -> Iterator[Block]:
    plan = content["plan"]
    data = "scikit-learn's digits (8 x 8)" if plan["mnist"] is None else "MNIST"
    every = [f for entry in content["experiments"].values() for f in entry["findings"]]
    claims = sum(finding["verdict"] != MEASURED for finding in every)
    chance = claims * (1 - CONFIDENCE)
    what = "A quick run: fewer settings and epochs, too few seeds to judge by. " * plan["quick"]
    yield Text(
        f"{what}Written by `python -m bench training` from {data}. Every norm is normcore's. "
        "Numbers are means ± standard deviations over the seeds. A claim counts as shown if the "
        "95 % confidence interval of its paired difference leaves out 0, as contrary if it does so "
        f"on the other side. Of {claims} claims, chance alone would decide about {chance:.0f}."
    )
    if content["interrupted"]:
        yield Text("This run was interrupted: only what was finished is here.")
    for name, reason in content["missing"].items():
        yield Text(f"Without {name}: {reason}.")


def _summary(content: dict[str, Any]) -> Iterator[list[str]]:
    yield ["experiment", *VERDICTS[:-1], "seeds", "core seconds"]
    for name, entry in content["experiments"].items():
        verdicts = [finding["verdict"] for finding in entry["findings"]]
        counts = [str(verdicts.count(verdict)) for verdict in VERDICTS[:-1]]
        seconds = f"{entry['core_seconds']:.1f}"
        yield [f"{entry['title']} ({name})", *counts, str(len(entry["seeds"])), seconds]


def _checks(name: str, checks: dict[str, Any]) -> Iterator[Block]:
    if name == "with-and-without" and "match" in checks:
        yield Items([measured(_match(checks["match"]))])
    if name == "convnet" and "share" in checks:
        yield Items([measured(_share(checks["share"]))])


def _match(found: dict[str, Any]) -> str:
    worst = "; ".join(
        f"{dtype}: {', '.join(f'{norm} {gap:.1e}' for norm, gap in of_dtype.items())}"
        for dtype, of_dtype in found["differences"].items()
    )
    return (
        "The same perceptron in PyTorch, from the same weights through the same batches: largest "
        f"relative difference of the losses of {found['steps']} steps: {worst}."
    )


def _share(found: dict[str, Any]) -> str:
    each = "; ".join(
        f"{library}: {share:.1%} inside (step {1e3 * found['step seconds'][library]:.2f} ms), "
        f"{found['share by leaving out'][library]:.1%} by leaving them out"
        for library, share in found["inside share"].items()
    )
    kept = found["inside share"]["normcore"] <= found["allowed"]
    return (
        f"The norms' share of a training step, batch {found['batch']}, one thread: {each}. At most "
        f"{found['allowed']:.0%} inside normcore's layers was promised: "
        f"{'kept' if kept else 'missed'}."
    )


def _epochs(results: Results) -> Iterator[list[str]]:
    """A line per epoch: means over the seeds, and the time."""
    keys = ("train loss", "test accuracy", SECONDS)
    yield ["epoch", *(f"{line}: {key}" for line in results.lines for key in keys)]
    means = [results.get(key, line).mean(axis=0) for line in results.lines for key in keys]
    for epoch, row in enumerate(np.stack(means, axis=1), 1):
        yield [str(epoch), *(f"{value:.4f}" for value in row)]


def _numbers(experiment: Experiment, results: Results) -> Iterator[list[str]]:
    varies = any(variant.at is not None for variant in results.numbers)
    timed = all(SECONDS in numbers for of in results.numbers.values() for numbers in of)
    times = ["s per epoch"] if timed else []
    yield ["", *(["at"] if varies else []), *experiment.columns, *times]
    for variant, of_seeds in results.numbers.items():
        row = [variant.line, *([f"{variant.at:g}"] if variant.at is not None else [])]
        for key in experiment.columns:
            values = results.final(key, variant.line, variant.at)
            finite = np.isfinite(values).all()
            row.append(f"{np.mean(values):.4g} ± {spread(values):.2g}" if finite else "-")
        if timed:
            row.append(f"{np.mean([numbers[SECONDS] for numbers in of_seeds]):.3f}")
        yield row


def _shown(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Picture(path, text):
            return f"![{text}]({path.name})"
        case Items(findings):
            return "\n".join(f"- **{f.verdict}**: {f.text}" for f in findings)
        case Rows(rows):
            head, *others = rows
            lines = [head, ["---"] * len(head), *others]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Text(text):
            return text


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Picture(path, text):
            data = b64encode(path.read_bytes()).decode()
            return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
        case Items(findings):
            items = [f"<li><b>{f.verdict}</b>: {escape(f.text)}</li>" for f in findings]
            return f"<ul>{''.join(items)}</ul>"
        case Rows(rows):
            head, *others = [[escape(cell) for cell in row] for row in rows]
            lines = [f"<tr><th>{'</th><th>'.join(head)}</th></tr>"]
            lines += [f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in others]
            return f"<table>{''.join(lines)}</table>"
        case Text(text):
            return f"<p>{escape(text)}</p>"


def _page(found: Sequence[Block]) -> str:
    body = "\n".join(map(_html, found))
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        '<link rel="icon" href="data:,">\n'  # else browsers ask the server for one
        f"<title>What normalization does to training</title>\n<style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
