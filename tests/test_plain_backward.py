"""Plain backward calls, from Python to the kernel at once: bits and errors of the general way."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from half_families import BFLOAT16
from plain_ways import (
    ONE,
    assert_same_bits,
    assert_same_bits_in_numba,
    both,
    cython,
    outcome,
    overlapping,
    read_only,
    strided,
)

import normcore.functional as F


@pytest.fixture(params=cython.available())
def ways(request, monkeypatch):
    return both(request.param, monkeypatch)


@dataclass
class Case:
    """Arguments of every backward; `call` returns the gradients and what `out` was."""

    name: str
    shape: tuple
    dtype: object = np.float32
    parameters: object = np.float32
    options: dict = field(default_factory=dict)
    out: str = "new"
    """new, given, x or dy: dx is written over it."""
    affine: bool = True
    moved: list = field(default_factory=list)

    def call(self, bad=None):
        rng = np.random.default_rng(0)
        axis = self.options.get("axis", 1)
        c, n, inner = self.shape[axis], self.shape[0], self.shape[-1]
        x = (rng.standard_normal(self.shape) * 3 + 20).astype(self.dtype)
        dy = rng.standard_normal(self.shape).astype(self.dtype)
        out = {"new": None, "given": np.empty_like(x), "x": x, "dy": dy}[self.out]
        statistics = {"layer": self.shape[:-1], "rms": self.shape[:1], "group": (n, 2)}
        statistics["instance"] = n, c
        size = {"layer": (inner,), "rms": self.shape[1:]}.get(self.name, (c,))
        mean, rstd = rng.uniform(0.5, 20, (2, *statistics.get(self.name, (c,))))
        given = {"dy": dy, "x": x, "mean": mean, "rstd": rstd, "size": size, "groups": 2}
        given["weight"] = None
        if self.affine:
            given["weight"] = rng.uniform(0.5, 1.5, size).astype(self.parameters)
            given["bias"] = rng.uniform(0.5, 1.5, size).astype(self.parameters)
        given.update({"out": out, **self.options})
        given.update({name: make(given) for name, make in (bad or {}).items()})
        dy, x, mean, rstd, weight = (given.pop(n) for n in ("dy", "x", "mean", "rstd", "weight"))
        size, groups = given.pop("size"), given.pop("groups")
        self.moved = [values for values in (x, dy) if isinstance(values, np.ndarray)]
        if self.name == "rms":
            given.pop("bias", None)
        found = {
            "batch": lambda: F.batch_norm_backward(dy, x, mean, rstd, weight, **given),
            "layer": lambda: F.layer_norm_backward(dy, x, mean, rstd, size, weight, **given),
            "rms": lambda: F.rms_norm_backward(dy, x, rstd, size, weight, **given),
            "group": lambda: F.group_norm_backward(dy, x, mean, rstd, groups, weight, **given),
            "instance": lambda: F.instance_norm_backward(dy, x, mean, rstd, weight, **given),
        }[self.name]()
        return [*found, *self.moved]


NAMES = ("batch", "layer", "rms", "group", "instance")
CASES = [
    *(Case(name, (8, 6, 5)) for name in NAMES),
    *(Case(name, (8, 6, 5), affine=False) for name in NAMES),
    *(Case(name, (8, 6, 5), np.float64, affine=False, out="given") for name in NAMES),
    *(Case(name, (7, 64), out="given") for name in NAMES[:4]),
    *(Case(name, (5, 4, 3, 2), np.float64, np.float64, out="x") for name in NAMES),
    *(Case(name, (5, 4, 3, 2), np.float64, np.float32, out="dy") for name in NAMES),
    *(Case(name, (6, 3, 4), options={"axis": -1}) for name in ("batch", "group", "instance")),
    *(Case(name, (6, 4, 9), np.float16, out="dy") for name in NAMES),
    *(Case(name, (6, 4, 9), BFLOAT16, np.float64) for name in NAMES),
    *(Case(name, (64, 32, 33), out="given") for name in NAMES),
    *(Case(name, (1, 2, 3)) for name in NAMES),
    *(Case("batch", shape, options={"training": False}) for shape in ((8, 6, 5), (7, 64))),
    Case("batch", (4, 2), options={"axis": 0}),
    Case("batch", (1, 4)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.shape}-{case.out}")
def test_a_plain_backward_gives_the_bits_of_the_general_way(ways, case):
    assert_same_bits(ways, case)


NUMBA = [
    *(Case(name, (6, 4, 9)) for name in ("batch", "layer", "rms", "group", "instance")),
    Case("batch", (7, 64), np.float64, np.float64, out="dy"),
    Case("batch", (64, 32, 33), affine=False),
]


@pytest.mark.parametrize("case", NUMBA, ids=lambda case: f"{case.name}-{case.shape}")
def test_numba_kernels_take_plain_calls_once_they_are_compiled(case, monkeypatch):
    assert_same_bits_in_numba(monkeypatch, case)


BAD = {
    "x list": {"x": lambda given: given["x"].tolist()},
    "x 1-D": {"x": lambda given: np.zeros(5, np.float32)},
    "x empty": {
        "x": lambda given: np.zeros((0, 6, 5), np.float32),
        "dy": lambda given: np.zeros((0, 6, 5), np.float32),
    },
    "x swapped": {"x": lambda given: given["x"].astype(">f4")},
    "x strided": {"x": lambda given: strided(given["x"])},
    "dy None": {"dy": lambda given: None},
    "dy short": {"dy": lambda given: given["dy"][:-1]},
    "dy reshaped": {"dy": lambda given: given["dy"].reshape(4, 5, 6)},
    "dy wide": {"dy": lambda given: given["dy"].astype(np.float64)},
    "dy swapped": {"dy": lambda given: given["dy"].astype(">f4")},
    "dy strided": {"dy": lambda given: strided(given["dy"])},
    "mean None": {"mean": lambda given: None},
    "mean short": {"mean": lambda given: given["mean"][:-1]},
    "mean single": {"mean": lambda given: given["mean"].astype(np.float32)},
    "rstd list": {"rstd": lambda given: given["rstd"].tolist()},
    "rstd transposed": {"rstd": lambda given: given["rstd"][None]},
    "rstd strided": {"rstd": lambda given: strided(given["rstd"])},
    "weight short": {"weight": lambda given: given["weight"][:-1]},
    "weight half": {"weight": lambda given: given["weight"].astype(np.float16)},
    "weight swapped": {"weight": lambda given: given["weight"].astype(">f4")},
    "bias short": {"bias": lambda given: given["bias"][:-1]},
    "axis 3": {"axis": lambda given: 3},
    "axis bool": {"axis": lambda given: True},
    "training int": {"training": lambda given: 0},
    "size short": {"size": lambda given: given["size"][:-1]},
    "size wrong": {"size": lambda given: (7,)},
    "groups 4": {"groups": lambda given: 4},
    "groups float": {"groups": lambda given: 2.0},
    "activation": {"activation": lambda given: "relu"},
    "activation unknown": {"activation": lambda given: "tanh"},
    "residual": {"residual": lambda given: given["x"]},
    "residual short": {"residual": lambda given: given["x"][:-1]},
    "dresidual": {"dresidual": lambda given: np.empty_like(given["x"])},
    "dresidual list": {"dresidual": lambda given: []},
    "mask wrong": {"mask": lambda given: np.ones((9, 9), bool)},
    "out list": {"out": lambda given: []},
    "out short": {"out": lambda given: given["x"][:-1].copy()},
    "out read-only": {"out": lambda given: read_only(given["x"])},
    "out strided": {"out": lambda given: strided(given["x"])},
    "out overlapping": {"out": overlapping},
    "out over weight": {
        "weight": lambda given: given["x"].ravel()[: given["weight"].size],
        "out": lambda given: given["x"],
    },
}
# Of the functions that have no such argument.
WITHOUT = {
    "axis": ("layer", "rms"),
    "bias": ("rms",),
    "mean": ("rms",),
    "training": ("layer", "rms", "group", "instance"),
    "size": ("batch", "group", "instance"),
    "groups": ("batch", "layer", "rms", "instance"),
}
CALLS = [
    (name, bad)
    for name in NAMES
    for bad, arguments in BAD.items()
    if not any(name in WITHOUT.get(argument, ()) for argument in arguments)
]


@ONE
@pytest.mark.parametrize(("name", "bad"), CALLS)
def test_what_is_not_plain_ends_as_in_the_general_way(ways, name, bad):
    plain, general = ways
    plain()
    found = outcome(Case(name, (4, 6, 5)), BAD[bad])
    general()
    assert found == outcome(Case(name, (4, 6, 5)), BAD[bad])
