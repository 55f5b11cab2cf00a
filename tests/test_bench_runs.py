"""What is made of runs: comparisons of two, README's tables, and the large sizes."""

from copy import deepcopy

import numpy as np
import pytest
from bench_cases import FUSED, TINY, engine_with

from bench import __main__ as program
from bench import compare, large, measure, readme, record
from bench.api import Use
from bench.measure import Timing


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "REST_SECONDS", 0.0)


MACHINE = {
    "when": "2026-01-02T03:04:05+00:00",
    "cpu": "a CPU",
    "cores": 2,
    "caches": {"L2": 1 << 20},
    "vectors": ["avx2"],
    "instruction_set": {"cython": "avx2"},
    "threads": 2,
    "load_before": 0.1,
    "system": "Linux",
    "python": "3.12",
    "versions": {"numpy": "2"},
}


@pytest.fixture(scope="module")
def run():
    """A run of the NumPy backend in the place of Cython's, with exact timings."""
    engine = engine_with()
    engine.name = "cython"
    kernels = measure.compare(TINY[0], [engine], 1, 2)
    made = record.Run(MACHINE, {"cython": "normcore cython"}, {}, kernels)
    made.uses = [Use("import", "import normcore", "-", Timing(0.01, 0.02, 3))]
    content = record.content(made)
    for entry in content["kernels"]:
        entry["limit"] |= {"best": 1.0, "noise": 0.01}
        entry["engines"]["cython"]["timing"] |= {"best": 2.0, "noise": 0.02}
        entry["promised"] = 1.5
    return content


def written(tmp_path, name, content):
    path = tmp_path / name
    record.write_json(path, content)
    return str(path)


def changed(run, task, **timing):
    other = deepcopy(run)
    [entry] = [entry for entry in other["kernels"] if entry["pass"] == task]
    entry["engines"]["cython"]["timing"] |= timing
    return other


def test_the_same_run_has_no_regression(run, tmp_path, capsys):
    path = written(tmp_path, "run.json", run)
    assert program.main(["compare", path, path]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "7 timings in both, 0 slower, 0 faster; usual noise of the runs: 2.2 %, 2.2 %" in printed


def test_regressions_are_beyond_the_noise(run, tmp_path, capsys):
    slower = changed(run, "forward", best=2.4)
    slower["kernels"][0]["engines"]["cython"]["timing"]["best"] = 2.05
    files = [written(tmp_path, name, found) for name, found in (("old", run), ("new", slower))]
    assert program.main(["compare", *files]) == 1
    printed = capsys.readouterr().out
    assert "kernels tiny forward 1 cython" in printed
    assert "+20%" in printed
    assert "moments" not in printed
    # The other way round it is news, and no failure.
    assert program.main(["compare", *files[::-1]]) == 0
    assert "faster" in capsys.readouterr().out


def test_a_noisy_timing_must_change_by_more(run):
    noisy = changed(run, "forward", best=2.4, noise=0.3)
    assert not any(change.counts for change in compare.compared(run, noisy))
    noisy = changed(run, "forward", best=2.8, noise=0.3)
    assert [change.key[2] for change in compare.compared(run, noisy) if change.counts] == [
        "forward"
    ]


def test_a_faster_machine_is_no_news(run):
    other = deepcopy(run)
    for entry in other["kernels"]:
        entry["limit"]["best"] = 0.5
        entry["engines"]["cython"]["timing"]["best"] = 1.0
    assert not any(change.counts for change in compare.compared(run, other))


def test_what_is_refused_now_is_told(run, tmp_path, capsys):
    wrong = deepcopy(run)
    wrong["kernels"][2]["engines"]["cython"]["timing"] = None
    files = [written(tmp_path, name, found) for name, found in (("old", run), ("new", wrong))]
    assert program.main(["compare", *files]) == 1
    assert "now refused: kernels tiny forward" in " ".join(capsys.readouterr().out.split())


def test_other_files_are_refused_by_name(tmp_path, capsys):
    path = written(tmp_path, "old.json", {"kernels": []})
    assert program.main(["compare", path, path]) == 2
    assert "format" in capsys.readouterr().out


# README


def test_readme_is_written_between_its_marks(run, tmp_path, capsys):
    peer = deepcopy(run)
    for entry in peer["kernels"]:
        entry["engines"]["jax"] = deepcopy(entry["engines"]["cython"])
        entry["engines"]["jax"]["timing"]["best"] = 1.6
    peer["kernels"][2]["bare"] = {"best": 1.75}
    peer["series"] = {"offset": peer["kernels"][2:3]}
    peer["targets"] = [{"group": "limit", "kept": False}]
    peer["titles"]["jax"] = "JAX"
    path = written(tmp_path, "docs/bench.json", peer)
    file = tmp_path / "README.md"
    file.write_text(f"before\n{readme.BEGIN}\nformer\n{readme.END}\nafter\n")
    for _ in range(2):
        assert program.main(["readme", path, "--readme", str(file)]) == 0
        text = file.read_text()
        assert text.startswith(f"before\n{readme.BEGIN}\n")
        assert text.endswith(f"{readme.END}\nafter\n")
        assert "former" not in text
    # The cell that misses its promise and loses to a peer is there, and marked.
    assert "| batch norm (2, 3, 8, 9) float32 | **2.00** / - (1.75) | **0.8 x jax** |" in text
    assert "| times the memory limit, Cython | 0 | **1** |" in text
    assert "| import normcore | - | 10.0 ms |" in text
    assert (
        "![Percent of the memory limit that each engine reaches, by case](docs/bench.png)" in text
    )
    assert (tmp_path / "docs" / "bench.png").stat().st_size > 10_000
    assert (tmp_path / "docs" / "errors.png").stat().st_size > 10_000


def test_readme_without_marks_is_left_alone(run, tmp_path, capsys):
    path = written(tmp_path, "bench.json", run)
    file = tmp_path / "README.md"
    file.write_text("nothing\n")
    assert program.main(["readme", path, "--readme", str(file)]) == 1
    assert file.read_text() == "nothing\n"


def test_the_readme_has_the_marks():
    text = (readme.ROOT / "README.md").read_text("utf-8")
    assert text.count(readme.BEGIN) == text.count(readme.END) == 1


def test_fusions_have_no_promise_of_their_own():
    [entry] = record.entries(measure.compare(FUSED[2], [], 1, 1, only=("forward",)))
    assert entry["promised"] is None
    assert entry["fused"] == ["addend"]


# Large sizes


def test_large_sizes_are_verified_and_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(large, "BEYOND", 1 << 20)
    monkeypatch.setattr(large, "LINEAR", np.inf)
    file = tmp_path / "large.json"
    arguments = ["large", "--most", "4", "--rounds", "1", "--beyond", "--json", str(file)]
    assert program.main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "linear" in printed
    assert "every element verified" in printed
    assert file.exists()
    monkeypatch.setattr(large, "LINEAR", 0.0)
    assert program.main(arguments[:5]) == 1


def test_large_results_that_are_wrong_are_refused(monkeypatch):
    monkeypatch.setattr(large, "_call", lambda problem, x, out: lambda: out.fill(0))
    with pytest.raises(ArithmeticError, match="is off by"):
        program.main(["large", "--most", "1", "--rounds", "1"])
