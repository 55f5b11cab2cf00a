"""The benchmark's peers: they compute the same, in their own way, or say that they cannot."""

from dataclasses import replace

import numpy as np
import pytest
from bench_cases import ALL, DOUBLES, FAMILY, FUSED, HALVES, TINY

from bench import engines, measure, problem, tasks

PACKAGES = {"onnxruntime": "onnxruntime", "jax": "jax", "torch": "torch", "onednn": "torch"}
each_case = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)


def peer(name):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    [found], missing = engines.available([name], 1)
    assert missing == {}
    return found


def results(engine, case):
    """Task -> errors of each output, of the tasks that the engine has."""
    made = problem.Problem(case, 1)
    found = {}
    for task in tasks.tasks_of(case):
        call = engine.call(made, task)
        if call is not None:
            verdict = measure.verify(made, call, made.reference(task), strict=False)
            found[task.name] = verdict.errors
    return found


def expected(name, case):
    """The tasks that an engine has."""
    batch, last = case.layer == "batch", case.axis == len(case.shape) - 1
    every = {task.name for task in tasks.tasks_of(case)}
    if name == "textbook":
        return every if case.dtype == "float32" and case not in FUSED else set()
    if name == "onednn":
        plain = batch and case.dtype == "float32" and case not in FUSED
        return {"apply", "forward", "backward"} if plain and case is TINY[0] else set()
    if name == "onnxruntime":
        if case in FUSED or case.dtype == "bfloat16":
            return set()
        if batch:
            return {"apply"} if case.axis == 1 else set()
        fits = last if case.layer in ("layer", "rms") else not last
        return {"forward"} if fits else set()
    if name == "jax" and (case.dtype == "float64" or case.addend):
        return set()
    return {"forward", "backward", *(("apply",) if batch and case not in FUSED else ())}


@each_case
@pytest.mark.parametrize("name", ["textbook", "torch", "onednn", "onnxruntime", "jax"])
def test_peers_compute_the_same(case, name):
    found = results(peer(name), case)
    assert found.keys() == expected(name, case)
    for errors in found.values():
        # float32 statistics (and sums of halves): not good, and not another formula either.
        assert max(errors.values()) < (0.02 if case in HALVES else 5e-3)
        if case in DOUBLES:
            assert max(errors.values()) < 1e-13


@pytest.mark.parametrize("case", [TINY[0], TINY[2]], ids=lambda case: case.name)
def test_only_normcore_is_right_far_from_zero(case):
    pytest.importorskip("torch")
    away = replace(case, offset=1e4)
    for name in ("textbook", "torch"):
        assert results(peer(name), away)["forward"]["y"] > 1e-5
    [oracle], _ = engines.available(["numpy"], 1)
    assert results(oracle, away)["forward"]["y"] < 1e-6


def test_a_compiled_peer_is_compiled_for_each_case(monkeypatch):
    # With a compiler that only counts: the real one takes seconds for each.
    torch = pytest.importorskip("torch")
    compiled = []
    monkeypatch.setattr(
        torch, "compile", lambda f, dynamic: compiled.append((f.__code__, dynamic)) or f
    )
    found = peer("compiled")
    for case in (TINY[0], FAMILY[0], FUSED[2]):
        errors = results(found, case)
        assert errors.keys() == expected("torch", case)
        for of_task in errors.values():
            assert max(of_task.values()) < 1e-3
    assert len({id(code) for code, _ in compiled}) == len(compiled) == 7
    assert not any(dynamic for _, dynamic in compiled)


def test_threads_are_given_back():
    torch = pytest.importorskip("torch")
    made = problem.Problem(TINY[0], 1)
    [task] = [task for task in tasks.tasks_of(TINY[0]) if task.name == "forward"]
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            [engine], _ = engines.available(["torch"], threads)
            engine.call(made, task).run()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_textbook_writes_into_its_outputs():
    made = problem.Problem(TINY[0], 1)
    [task] = [task for task in tasks.tasks_of(TINY[0]) if task.name == "forward"]
    call = peer("textbook").call(made, task)
    call.outputs["y"].fill(np.nan)
    call.run()
    assert np.isfinite(made.stream()).all()
