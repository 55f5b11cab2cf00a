"""The benchmark as a program: rounds, promises, and the command with what it prints and writes."""

import json
from time import sleep

import numpy as np
import pytest
from bench_cases import FAMILY, FUSED, HALVES, TINY, engine_with, slightly_off
from matplotlib.image import imread

from bench import __main__ as program
from bench import engines, measure, targets, tasks


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "REST_SECONDS", 0.0)


# Rounds


def test_rounds_are_interleaved(monkeypatch):
    order = []
    monkeypatch.setattr(measure, "_turn", lambda run: [run() or 1e-6])
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = measure.interleave(calls, 3)
    assert order == list("abcabcabc")
    assert [timing.runs for timing in timings.values()] == [3, 3, 3]


def test_time_is_measured():
    timing = measure.interleave({"nap": lambda: sleep(0.003)}, 3)["nap"]
    assert 0.003 <= timing.best <= timing.median < 1
    assert timing.runs == 3


def test_slow_calls_drop_out(monkeypatch):
    monkeypatch.setattr(measure, "PATIENCE_SECONDS", 0.001)
    timings = measure.interleave({"slow": lambda: sleep(0.002), "fast": lambda: None}, 3)
    assert timings["slow"].runs == 1
    assert timings["fast"].runs >= 3


# Targets


def forward_comparison(seconds, case=TINY[0]):
    [task] = [found for found in tasks.tasks_of(case) if found.name == "forward"]
    results = {
        name: measure.Result(
            name in engines.COMPILED,
            measure.Verdict({"y": 0.0}),
            None if best is None else measure.Timing(best, best, 1),
        )
        for name, best in seconds.items()
    }
    limit = measure.Timing(1.0, 1.0, 1)
    return measure.Comparison(case, task, 100, limit, "copy", results)


def test_promises_are_judged():
    made = forward_comparison({"cython": 1.5, "numba": 2.5, "torch": 6.0})
    assert [(one.engine, one.measured, one.kept) for one in targets.judge([made], [])] == [
        ("cython", "1.50 x limit", True),
        ("cython", "4.0 x torch", True),
        ("numba", "2.50 x limit", False),
        ("numba", "2.4 x torch", False),
    ]


def test_refused_kernel_breaks_its_promise():
    for case in (TINY[0], FAMILY[0], HALVES[0], FUSED[0]):
        made = forward_comparison({"cython": None, "torch": 6.0}, case)
        [judgement] = targets.judge([made], [])
        assert (judgement.measured, judgement.kept) == ("refused", False)


def test_promises_of_halves_and_fusions_are_judged_against_ourselves():
    times = {"cython": 1.0, "cython float32": 1.6, "cython unfused": 1.4, "numba": 1.0}
    for case, measured, promised, kept in (
        (HALVES[0], "0.62 x float32", "<= 0.65 x float32", True),
        (FUSED[0], "1.4 x unfused", ">= 1.5 x unfused", False),
    ):
        # Nothing to hold Numba against: nothing is said of it.
        [judgement] = targets.judge([forward_comparison(times, case)], [])
        assert (judgement.engine, judgement.measured) == ("cython", measured)
        assert (judgement.promised, judgement.kept) == (promised, kept)


def test_targets_of_the_family_know_no_peers():
    made = forward_comparison({"cython": 2.5, "torch": 3.0}, FAMILY[0])
    [judgement] = targets.judge([made], [])
    assert (judgement.measured, judgement.kept) == ("2.50 x limit", False)


# The command


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(program, "CASES", TINY)


def test_command_prints_and_writes(tiny, tmp_path, capsys):
    arguments = ["--rounds", "2", "--threads", "1", "-e", "numpy", "-e", "textbook"]
    assert program.main([*arguments, "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "tiny-last (2, 8, 9, 3), batch norm, float32",
        "GB/s",
        "% limit",
        "normcore numpy",
        "import normcore",
    ):
        assert words in printed

    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["machine"]["threads"] == 1
    assert content["machine"]["versions"]["numpy"] == np.__version__
    assert [entry["case"] for entry in content["kernels"][::6]] == [case.name for case in TINY]
    for entry in content["kernels"]:
        assert entry["limit"]["best"] > 0
        assert set(entry["engines"]) == {"numpy", "textbook"}
        for name, result in entry["engines"].items():
            timing = result["timing"]
            assert 0 < timing["best"] <= timing["median"]
            assert timing["runs"] >= 2
            assert max(result["errors"].values()) < (1e-6 if name == "numpy" else 1e-3)
    assert all(use["timing"]["best"] > 0 for use in content["api"])

    picture = imread(tmp_path / "bench.png")
    assert min(picture.shape[:2]) > 500
    colours = np.unique(np.rint(picture[:, :, :3] * 255).reshape(-1, 3), axis=0)
    for shown in ("a9d6c3", "9aa0a6"):  # bars of both
        assert (colours == list(bytes.fromhex(shown))).all(1).any()


def test_command_refuses_and_says_so(tiny, tmp_path, capsys, monkeypatch):
    broken = engine_with(forward=slightly_off)
    broken.name = "numpy"
    monkeypatch.setitem(engines.ENGINES, "numpy", (lambda threads: broken, ()))
    file = tmp_path / "deep" / "other.json"
    arguments = ["-c", "tiny", "--rounds", "1", "-e", "numpy", "-o", str(tmp_path)]
    assert program.main([*arguments, "--json", str(file)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "WRONG" in printed
    assert "refused: tiny forward numpy: y is off by 1.0e-05" in printed
    [entry] = [
        entry for entry in json.loads(file.read_text())["kernels"] if entry["pass"] == "forward"
    ]
    assert entry["engines"]["numpy"]["timing"] is None
    assert not (tmp_path / "bench.json").exists()


def test_missing_engine_is_named(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "torch", (engines._torch, ("no_such_module",)))
    assert program.main(["-e", "torch", "-o", str(tmp_path)]) == 1
    assert "without torch: no_such_module is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--case", "none"], ["--rounds", "0"]])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err
