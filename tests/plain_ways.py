"""Plain calls beside the general way: which answered, the same backend with either, bad arrays."""

from functools import partial

import numpy as np
import pytest

from normcore import backend
from normcore.plain import Calls

cython = pytest.importorskip("normcore.kernels.cython", reason="the Cython backend was not built")
METHODS = [name for name in vars(Calls) if not name.startswith("_")]
ONE = pytest.mark.parametrize("ways", [cython.isa], indirect=True, ids=str)
"""Arguments are looked at before the instruction set matters."""


def compiled_calls(isa=cython.isa, threads=backend.threads):
    """The plain calls of one instruction set."""
    return cython.Calls(cython.modules(isa), threads, backend.SERIAL_BELOW)


class Watched(Calls):
    """Compiled calls that count how often they answered."""

    def __init__(self, compiled):
        self.compiled = compiled
        self.answered = 0
        for name in METHODS:
            setattr(self, name, partial(self.call, getattr(self.compiled, name)))

    def call(self, method, *arguments):
        found = method(*arguments)
        self.answered += found is not None
        return found


def both(isa, monkeypatch):
    """(plain, general): calls that switch the way, plain ones watched."""
    families = cython.modules(isa)
    channels = {name: families[name] for name in ("nchw", "nc")}
    given = channels, families["rows"], families["cols"], cython.running, compiled_calls(isa)
    return ways_of(backend.Backend("cython", *given), monkeypatch)


def ways_of(found, monkeypatch):
    """`both` of a backend."""
    made = {calls: found._replace(calls=calls) for calls in (Watched(found.calls), Calls())}

    def choose(calls):
        monkeypatch.setattr(backend, "current", lambda: made[calls])
        return calls

    return [partial(choose, calls) for calls in made]


def strided(values):
    return np.repeat(values, 2, axis=-1)[..., ::2]


def read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


def overlapping(given):
    """An out that shares all but one element of x, which is replaced to lie beside it."""
    x = given["x"]
    memory = np.zeros(x.size + 1, x.dtype)
    given["x"] = memory[1:].reshape(x.shape)
    return memory[:-1].reshape(x.shape)


def outcome(case, bad):
    try:
        found = case.call(bad)
    except (TypeError, ValueError) as error:
        return type(error), str(error), [values.tobytes() for values in case.moved]
    return [(values.dtype, values.shape, values.tobytes()) for values in found]


def assert_same_bits(ways, case):
    """The case is plain, and its results are those of the general way."""
    plain, general = ways
    watched = plain()
    found = case.call()
    assert watched.answered == 1
    general()
    expected = case.call()
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert mine.tobytes() == theirs.tobytes()


def assert_same_bits_in_numba(monkeypatch, case):
    """`assert_same_bits` with Numba's kernels, after the calls that compile them."""
    pytest.importorskip("numba")
    ways = ways_of(backend.load("numba"), monkeypatch)
    plain, _ = ways
    watched = plain()
    for _ in range(2):  # a first parallel call tells the threading layer
        case.call()
    watched.answered = 0
    assert_same_bits(ways, case)
