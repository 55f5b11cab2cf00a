"""What the adapters add is measured: backwards are steps less forwards, all that is asked for."""

import pytest

from bench import adapters, measure


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(measure, "REST_SECONDS", 0.0)


def test_backwards_are_steps_less_forwards(monkeypatch):
    microseconds = {("norm forward", 0): 3, ("norm forward", 1): 1}
    microseconds |= {("norm step", 0): 9, ("norm step", 1): 4}

    def interleave(turns, rounds):
        assert turns.keys() == microseconds.keys()
        return {key: measure.Timing(best * 1e-6, 1.0, 1) for key, best in microseconds.items()}

    ran = []
    pair = (lambda: ran.append(0), lambda: ran.append(1))
    monkeypatch.setattr(adapters, "interleave", interleave)
    found = adapters.added({"norm forward": pair, "norm step": pair}, 1)
    assert ran == [0, 1, 0, 1]
    assert found["norm forward"] == pytest.approx((3, 1))
    assert found["norm backward"] == pytest.approx((6, 3))


@pytest.mark.parametrize("framework", adapters.FRAMEWORKS)
def test_both_calls_compute_the_same(framework):
    pytest.importorskip(framework)
    calls = adapters.FRAMEWORKS[framework]()
    assert calls
    for name, (ours, own) in calls.items():
        found, expected = ours(), own()
        if not isinstance(found, tuple):
            found, expected = (found,), (expected,)
        for mine, theirs in zip(found, expected, strict=True):
            assert abs(mine - theirs).max() < 1e-6, name


def test_the_table_says_what_is_missing_and_what_is_too_slow(monkeypatch, capsys):
    quick = {"a call": (lambda: None, lambda: None)}
    monkeypatch.setattr(adapters, "FRAMEWORKS", {"numpy": lambda: quick, "no_such_thing": dict})
    monkeypatch.setattr("sys.argv", ["adapters", "--rounds", "2"])
    assert adapters.main() == 0
    printed = capsys.readouterr().out
    assert "a call" in printed
    assert "without no_such_thing" in printed
    monkeypatch.setattr(adapters, "BOUND", -1.0)
    assert adapters.main() == 1
