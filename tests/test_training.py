"""``python -m bench training``: the experiments at their smallest, the report, the promises."""

import base64
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from bench import __main__ as program
from bench.training import draw, report, store
from bench.training.experiments import EXPERIMENTS
from bench.training.results import (
    CONTRARY,
    HIDDEN,
    SHOWN,
    VERDICTS,
    Results,
    Variant,
    compare,
    difference,
)
from bench.training.run import Plan, has_torch, run

SMALLEST = ["training", "--quick", "--seeds", "1", "--epochs", "1", "--samples", "400"]
needs_torch = pytest.mark.skipif(not has_torch(), reason="PyTorch is not installed")
NAMES = [
    pytest.param(name, marks=needs_torch if one.torch else ()) for name, one in EXPERIMENTS.items()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command writes: every experiment at its smallest."""
    found = tmp_path_factory.mktemp("training")
    assert program.main([*SMALLEST, "--threads", "1", "-o", str(found)]) == 0
    return found


@pytest.fixture(scope="module")
def content(folder):
    return store.read(folder / "training.json")


def test_there_are_twelve():
    assert list(EXPERIMENTS) == [
        *("with-and-without", "learning-rate", "initialization", "batch-size", "placement"),
        *("dropout", "convnet", "recurrent", "fine-tuning", "train-eval", "landscape"),
        "renorm-schedule",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_experiment(content, name):
    experiment, entry = EXPERIMENTS[name], content["experiments"][name]
    results = store.restored(content)[name]
    assert results.seeds == entry["seeds"] == [0]
    assert list(results.numbers) == experiment.variants(quick=True)
    for variant in results.numbers:
        for key in experiment.columns:
            values = results.final(key, variant.line, variant.at)
            assert values.shape == (1,)
            if "accuracy" in key:
                assert 0 <= values[0] <= 1
    assert entry["digest"] == store.digest(results)
    assert entry["settings"]
    # What is left out, is left out for a reason: one sample has no variance, no positions.
    missing = [key for key in experiment.columns if np.isnan(_every(results, key)).any()]
    assert missing == {
        "batch-size": ["perceptron"],
        "train-eval": ["shuffled", "sorted by class"],
    }.get(name, [])
    findings = experiment.findings(results)
    assert len(findings) >= 2
    for finding in findings:
        assert finding.verdict in VERDICTS
        assert finding.text.endswith(".")
        assert finding.verdict not in (SHOWN, CONTRARY)  # by a single seed


def _every(results, key):
    return np.array([results.final(key, v.line, v.at) for v in results.numbers])


@pytest.mark.parametrize("name", NAMES)
def test_figure_is_there_and_not_blank(folder, name):
    path = folder / f"{name}.png"
    assert path.stat().st_size < 150_000
    picture = imread(path)
    assert min(picture.shape[:2]) > 200
    pixels = np.rint(picture[:, :, :3] * 255).astype(int) @ (1 << 16, 1 << 8, 1)
    for colour in draw.PALETTE[:2]:  # those of the first two lines
        assert (pixels == int(colour[1:], 16)).any()


class Links(HTMLParser):
    """What a page would fetch, and the tags that it leaves open."""

    def __init__(self):
        super().__init__()
        self.links, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_in_itself(folder, content):
    page = (folder / "report.html").read_text()
    assert "http" not in page
    assert "url(" not in page
    assert "<script" not in page
    parser = Links()
    parser.feed(page)
    assert not parser.open
    pictures = [link for link in parser.links if link != "data:,"]
    for name, link in zip(content["experiments"], pictures, strict=True):
        kind, data = link.split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (folder / f"{name}.png").read_bytes()


def test_markdown_names_everything(folder, content):
    text = (folder / "report.md").read_text()
    for name in content["experiments"]:
        assert f"## {EXPERIMENTS[name].title}\n" in text
        assert f"]({name}.png)" in text
        assert content["experiments"][name]["digest"] in text
        for finding in content["experiments"][name]["findings"]:
            assert f"- **{finding['verdict']}**: {finding['text']}" in text
    assert "A quick run" in text
    assert "| 1 | " in text  # the line of an epoch, with its time


def test_report_is_made_again_from_the_json(folder, content, tmp_path):
    file = tmp_path / "few.json"
    few = {name: content["experiments"][name] for name in ("placement", "landscape")}
    store.write(file, {**content, "experiments": few})
    assert program.main(["training", "--redraw", str(file), "-o", str(tmp_path)]) == 0
    first, again = ((at / "report.md").read_text() for at in (folder, tmp_path))
    for name in few:
        title = f"## {EXPERIMENTS[name].title}\n"
        [section] = [
            f"\n## {part}" for part in again.split("\n## ") if f"## {part}".startswith(title)
        ]
        assert section.split("\n\nRun on")[0] in first
        pictures = (imread(at / f"{name}.png") for at in (folder, tmp_path))
        np.testing.assert_array_equal(*pictures)


@needs_torch
def test_losses_match_those_of_pytorch(content):
    """Within 1e-5 over 100 steps, for each norm: float32, and to rounding in float64."""
    found = content["checks"]["match"]
    assert found["steps"] == 100
    for dtype, allowed in (("float32", 1e-5), ("float64", 1e-12)):
        gaps = found["differences"][dtype]
        assert gaps.keys() == {"batch", "layer", "group", "instance"}
        assert max(gaps.values()) <= allowed


@needs_torch
def test_share_of_the_norms_is_measured(content, folder):
    share = content["checks"]["share"]
    for library in ("normcore", "torch.nn"):
        inside, step = (share[f"{what} seconds"][library] for what in ("inside", "step"))
        assert 0 < inside < step
        assert share["inside share"][library] == pytest.approx(inside / step)
    assert "The norms' share of a training step" in (folder / "report.md").read_text()


# Verdicts


def test_a_clear_difference_is_shown():
    a, b = np.array([0.9, 0.92, 0.91]), np.array([0.8, 0.81, 0.82])
    gap = difference(a, b)
    assert gap.mean == pytest.approx(0.1)
    # Student's t with two degrees of freedom; the differences are 0.10, 0.11, 0.09.
    assert gap.half == pytest.approx(4.30265 * 0.01 / 3**0.5, rel=1e-5)
    finding = compare("A is better", ("A", a), ("B", b))
    assert finding.verdict == SHOWN
    assert finding.text == (
        "A is better: A 91.0 ± 1.0 %, B 81.0 ± 1.0 % "
        "(difference, with 95 % confidence: 7.5 to 12.5 %)."
    )
    assert compare("B is better", ("B", b), ("A", a)).verdict == CONTRARY


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([0.9, 0.7, 0.8], [0.8, 0.8, 0.8], "confidence: -24.8 to 24.8 %"),
        ([0.9, 0.9], [0.1, 0.1], "too few seeds"),
        (
            [1.0, np.inf, 2.0],
            [0.0, 0.0, 0.0],
            "A no number for 1 of 3 seeds, B 0.0 ± 0.0 %; no comparison",
        ),
    ],
)
def test_what_is_not_clear_is_not_shown(a, b, words):
    finding = compare("A is better", ("A", np.array(a)), ("B", np.array(b)))
    assert finding.verdict == HIDDEN
    assert words in finding.text


def test_no_number_is_lost_in_the_json(tmp_path):
    nothing, much = float("nan"), float("inf")
    results = Results([0], {Variant("none", 0.1): [{"a": nothing, "b": [much, 1 / 3], "c": -much}]})
    assert store._number(store._plain([nothing, much]))[1] == much
    file = tmp_path / "found.json"
    entry = {
        "seeds": [0],
        "variants": [
            {
                **{"line": "none", "at": 0.1, "seconds": [None]},
                "numbers": [store._without_seconds(results.numbers[Variant("none", 0.1)][0])],
            }
        ],
    }
    store.write(file, {"format": store.FORMAT, "experiments": {"landscape": entry}})
    again = store.restored(store.read(file))["landscape"]
    assert store.digest(again) == store.digest(results)
    file.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="not of this version"):
        store.read(file)


# Runs


def test_same_seed_gives_the_same_bits_for_any_number_of_threads(tmp_path):
    names = ["placement", "renorm-schedule"]
    plan = Plan(tuple(names), seeds=2, quick=True, epochs=1, samples=400)
    here = {done.experiment.name: store.digest(done.results) for done in run(plan, _ignore).done}
    environment = {
        **os.environ,
        **{"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    }
    only = [word for name in names for word in ("--only", name)]
    command = [sys.executable, "-m", "bench", *SMALLEST, *only, "--seeds", "2", "--threads", "2"]
    root = Path(__file__).parents[1]
    subprocess.run(
        [*command, "-o", str(tmp_path)], check=True, cwd=root, env=environment, capture_output=True
    )
    there = json.loads((tmp_path / "training.json").read_text())["experiments"]
    assert {name: entry["digest"] for name, entry in there.items()} == here
    other = Plan(tuple(names), seeds=2, seed=1, quick=True, epochs=1, samples=400)
    assert all(store.digest(done.results) != here[done.experiment.name] for done in _done(other))


def _ignore(job):
    pass


def _done(plan):
    return run(plan, _ignore).done


def test_ctrl_c_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    landscape = EXPERIMENTS["landscape"]
    calls, whole = [], landscape.run

    def interrupted(self, trial):
        calls.append(trial)
        if trial.seed == 2:
            raise KeyboardInterrupt
        return whole(trial)

    monkeypatch.setattr(type(landscape), "run", interrupted)
    arguments = [*SMALLEST, "--seeds", "5", "--threads", "1", "-o", str(tmp_path)]
    for name in ("landscape", "renorm-schedule"):
        arguments += ["--only", name]
    assert program.main(arguments) == 130
    assert "interrupted: what was finished is in the report" in capsys.readouterr().out
    found = store.read(tmp_path / "training.json")
    assert found["interrupted"]
    assert found["experiments"].keys() == {"landscape"}
    assert found["experiments"]["landscape"]["seeds"] == [0, 1]
    assert "This run was interrupted" in (tmp_path / "report.md").read_text()


def test_without_pytorch_the_others_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["bench.training.run"], "has_torch", lambda: False)
    only = ["--only", "convnet", "--only", "placement"]
    assert program.main([*SMALLEST, *only, "--threads", "1", "-o", str(tmp_path)]) == 0
    assert "without convnet: PyTorch is not installed" in capsys.readouterr().out
    found = store.read(tmp_path / "training.json")
    assert found["experiments"].keys() == {"placement"}
    assert found["checks"] == {}
    assert "Without convnet" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("argument", ["--seeds", "--epochs", "--samples"])
def test_numbers_must_be_positive(argument, capsys):
    with pytest.raises(SystemExit):
        program.main(["training", argument, "0"])
    assert f"{argument}: expected at least 1, got 0" in capsys.readouterr().err


def test_plans_say_how_long_they_take(capsys):
    from bench.training import budget

    table = budget(Plan(tuple(EXPERIMENTS), seeds=5, workers=2))
    assert table.row_count == len(EXPERIMENTS)
    seconds = float(str(table.caption).split(", ")[1].split(" s on 2")[0])
    assert seconds < 30 * 60
    quick = budget(Plan(tuple(EXPERIMENTS), seeds=2, quick=True, workers=2))
    assert float(str(quick.caption).split(", ")[1].split(" s on 2")[0]) < 2 * 60


@needs_torch
def test_steps_have_statistics_of_their_own():
    import torch

    from bench.training.networks import StepNorm

    norm = StepNorm(4, 3, weight=1.0)
    draw = torch.Generator().manual_seed(0)
    for _ in range(200):
        for step in range(3):
            norm(10 * step + torch.randn(32, 4, generator=draw), step)
    means = norm.running_mean.mean(1).tolist()
    assert means == pytest.approx([0, 10, 20], abs=0.2)
    norm.eval()
    x = torch.randn(5, 4, generator=draw) + 20
    assert torch.equal(norm(x, 7), norm(x, 2))  # longer than trained on: the last step's
    assert norm(x, 2).mean().abs() < 1 < norm(x, 0).mean()


def test_blocks_say_nothing_twice(content):
    found = list(report.blocks(None, content))
    titles = [block.text for block in found if isinstance(block, report.Heading)]
    assert len(set(titles)) == len(titles) == len(content["experiments"]) + 1
