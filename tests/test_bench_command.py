"""The benchmark as a program: rounds, and the command with what it prints and writes."""

import json
from time import sleep

import numpy as np
import pytest
from bench_cases import TINY, TINY_SERIES, engine_with, slightly_off
from matplotlib.image import imread

from bench import __main__ as program
from bench import engines, measure, processes, speed, sweeps
from bench.record import read_json


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


def test_noise_is_the_distance_of_odd_and_even_rounds():
    timing = measure._timing([[1.0, 3.0], [1.2], [1.1], [1.5]])
    assert (timing.best, timing.runs) == (1.0, 5)
    assert timing.noise == pytest.approx(0.2)
    assert measure._timing([[1.0, 2.0]]).noise is None


def test_short_calls_are_timed_in_batches():
    calls = []
    timing = measure.interleave({"short": lambda: calls.append(None)}, 1)["short"]
    assert len(calls) > 10 * timing.runs
    assert timing.best < 1e-5


def test_slow_calls_drop_out(monkeypatch):
    monkeypatch.setattr(measure, "PATIENCE_SECONDS", 0.001)
    timings = measure.interleave({"slow": lambda: sleep(0.002), "fast": lambda: None}, 3)
    assert timings["slow"].runs == 1
    assert timings["fast"].runs >= 3


# The command


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(speed, "CASES", TINY)
    monkeypatch.setattr(speed, "WHOLE_CALLS", ("tiny",))
    monkeypatch.setattr(sweeps, "SERIES", TINY_SERIES)


def test_command_prints_and_writes(tiny, tmp_path, capsys):
    arguments = ["--rounds", "2", "--threads", "2", "-e", "numpy", "-e", "textbook"]
    parts = ("kernels", "sizes", "threads", "offset", "calls")
    arguments += [word for part in parts for word in ("-p", part)]
    assert program.main([*arguments, "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "tiny-last (2, 8, 9, 3), batch norm, float32",
        "GB/s",
        "% limit",
        "x best peer",
        "best peer",
        "normcore numpy",
        "functional.batch_norm training, tiny",
        "inference (1, 64) through layer",
        "tiny + 1e4 std forward",
    ):
        assert words in printed

    content = json.loads((tmp_path / "bench.json").read_text())
    assert content == read_json(tmp_path / "bench.json")
    assert content["machine"]["threads"] == 2
    assert content["machine"]["versions"]["numpy"] == np.__version__
    assert content["settings"]["rounds"] == 2
    assert [entry["case"] for entry in content["kernels"][::6]] == [case.name for case in TINY]
    for entry in content["kernels"]:
        assert entry["limit"]["best"] > 0
        assert set(entry["engines"]) == {"numpy", "textbook"}
        for name, result in entry["engines"].items():
            timing = result["timing"]
            assert 0 < timing["best"] <= timing["median"]
            assert timing["runs"] >= 2
            assert timing["noise"] >= 0
            assert max(result["errors"].values()) < (1e-6 if name == "numpy" else 1e-3)
    assert [entry["threads"] for entry in content["series"]["threads"]] == [1, 2]
    [away] = content["series"]["offset"]
    errors = {name: result["errors"]["y"] for name, result in away["engines"].items()}
    assert errors["numpy"] < 1e-6 < errors["textbook"]
    assert all(use["timing"]["best"] > 0 for use in content["uses"])
    assert {use["engine"] for use in content["uses"]} == {"numpy", "textbook"}

    for name in ("bench", "sizes", "threads", "errors"):
        picture = imread(tmp_path / f"{name}.png")
        assert min(picture.shape[:2]) > 300
        colours = np.unique(np.rint(picture[:, :, :3] * 255).reshape(-1, 3), axis=0)
        for shown in ("a9d6c3", "9aa0a6"):  # of both
            assert (colours == list(bytes.fromhex(shown))).all(1).any(), name


def test_command_refuses_and_says_so(tiny, tmp_path, capsys, monkeypatch):
    broken = engine_with(forward=slightly_off)
    broken.name = "numpy"
    monkeypatch.setitem(engines.ENGINES, "numpy", (lambda threads: broken, ()))
    file = tmp_path / "deep" / "other.json"
    arguments = ["speed", "-c", "tiny", "--rounds", "1", "-e", "numpy", "-o", str(tmp_path)]
    assert program.main([*arguments, "--json", str(file)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "WRONG" in printed
    assert "refused: tiny forward numpy: y is off by 1.0e-05" in printed
    [entry] = [
        entry for entry in json.loads(file.read_text())["kernels"] if entry["pass"] == "forward"
    ]
    assert entry["engines"]["numpy"]["timing"] is None
    assert not (tmp_path / "bench.json").exists()


def test_dtypes_are_those_asked_for(tiny):
    given = program.parse(["-c", "tiny", "-d", "float64", "-d", "bfloat16"])
    speed.settle(given)
    assert given.part == ["kernels"]
    assert [(case.name, case.dtype) for case in speed.chosen_cases(given)] == [
        ("tiny-f64", "float64"),
        ("tiny-bf16", "bfloat16"),
    ]


def test_everything_is_measured_when_nothing_is_asked_for():
    given = program.parse([])
    speed.settle(given)
    assert given.command == "speed"
    assert given.part == list(speed.PARTS)
    assert len(speed.chosen_cases(given)) == len(speed.CASES)
    quick = program.parse(["--quick"])
    speed.settle(quick)
    assert max(case.elements for case in speed.chosen_cases(quick)) <= speed.QUICK_ELEMENTS


def test_fresh_processes_are_measured():
    advanced = []
    found = processes.measure(1, advanced.append)
    assert len(advanced) == processes.STEPS
    times = {use.key: use.timing.best for use in found if use.timing is not None}
    assert times.keys() == {"import", "first call"}
    assert all(0 < time < 20 for time in times.values())
    extra = [use.extra_bytes for use in found if use.timing is None]
    # An array that was kept or copied would be 26 MB.
    assert all(0 <= size < 20e6 for size in extra)


def test_missing_engine_is_named(tiny, tmp_path, capsys, monkeypatch):
    make, _ = engines.ENGINES["torch"]
    monkeypatch.setitem(engines.ENGINES, "torch", (make, ("no_such_module",)))
    assert program.main(["-e", "torch", "-o", str(tmp_path)]) == 1
    assert "without torch: no_such_module is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--threads", "0"], ["--case", "none"], ["--rounds", "0"], ["--part", "none"], ["-d", "int8"]],
)
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_commands_are_listed(capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in program.COMMANDS)
