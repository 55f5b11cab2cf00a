"""Plain calls, from Python to the kernel at once: bits, errors, settings of the general way."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from half_families import BFLOAT16
from plain_ways import (
    METHODS,
    ONE,
    Watched,
    assert_same_bits,
    assert_same_bits_in_numba,
    both,
    compiled_calls,
    cython,
    outcome,
    overlapping,
    read_only,
    strided,
)

import normcore as nc
import normcore.functional as F
from normcore import backend
from normcore.plain import Calls


@pytest.fixture(params=cython.available())
def ways(request, monkeypatch):
    return both(request.param, monkeypatch)


@dataclass
class Case:
    """Arguments of every function; `call` returns all that a call gives and moves."""

    name: str
    shape: tuple
    dtype: object = np.float32
    parameters: object = np.float32
    options: dict = field(default_factory=dict)
    out: str = "new"
    """new, given, or x: y is written over it."""
    moved: list = field(default_factory=list)
    """Arrays of the last call that it may have written to."""

    def call(self, bad=None):
        bad = {} if bad is None else bad
        rng = np.random.default_rng(0)
        options = dict(self.options)
        axis = options.get("axis", 1)
        c = self.shape[axis]
        x = (rng.standard_normal(self.shape) * 3 + 20).astype(self.dtype)
        options["out"] = {"new": None, "given": np.empty_like(x), "x": x}[self.out]
        if options.pop("residual", False):
            options["residual"] = rng.standard_normal(self.shape).astype(self.dtype)
        weight, bias = rng.uniform(0.5, 1.5, (2, c)).astype(self.parameters)
        mean, var = rng.uniform(0.5, 1.5, (2, c)).astype(self.parameters)
        inner = self.shape[-1]
        given = {"x": x, "weight": weight, "bias": bias, "mean": mean, "var": var, **options}
        given.update({name: make(given) for name, make in bad.items()})
        x, weight, bias, mean, var = (given.pop(n) for n in ("x", "weight", "bias", "mean", "var"))
        running = {"running_mean": mean, "running_var": var}
        named = {"weight": weight, "bias": bias}
        self.moved = [values for values in (x, mean, var) if isinstance(values, np.ndarray)]
        found = {
            "eval": lambda: F.batch_norm(x, mean, var, weight, bias, **given),
            "train": lambda: F.batch_norm(x, mean, var, weight, bias, training=True, **given),
            "forward": lambda: F.batch_norm_forward(x, **named, **running, **given),
            "stateless": lambda: F.batch_norm_forward(x, **given),
            "layer": lambda: F.layer_norm(x, inner, *given.pop("affine", (None, None)), **given),
            "layer_forward": lambda: F.layer_norm_forward(x, (inner,), **given),
            "rms": lambda: F.rms_norm(x, inner, **given),
            "rms_forward": lambda: F.rms_norm_forward(x, self.shape[1:], **given),
            "group": lambda: F.group_norm(x, given.pop("groups", 2), **named, **given),
            "group_forward": lambda: F.group_norm_forward(x, 2, **named, **given),
            "instance": lambda: F.instance_norm(x, **named, **given),
            "instance_forward": lambda: F.instance_norm_forward(x, **named, **given),
        }[self.name]()
        return [*(found if isinstance(found, tuple) else (found,)), *self.moved]


BATCH = ("eval", "train", "forward", "stateless")
SAMPLE = ("layer", "layer_forward", "rms", "rms_forward", "group", "group_forward", "instance")
CASES = [
    *(Case(name, (8, 6, 5)) for name in (*BATCH, *SAMPLE, "instance_forward")),
    *(Case(name, (7, 64), out="given") for name in (*BATCH, *SAMPLE[:6])),
    *(Case(name, (5, 4, 3, 2), np.float64, np.float64, out="x") for name in (*BATCH, *SAMPLE)),
    *(Case(name, (6, 3, 4), options={"axis": -1}) for name in (*BATCH, *SAMPLE[4:])),
    *(Case(name, (6, 4, 9), np.float16) for name in (*BATCH, *SAMPLE)),
    *(Case(name, (6, 4, 9), BFLOAT16) for name in ("eval", "forward", "layer", "group")),
    *(Case(name, (2, 300, 2), parameters=np.float64) for name in (*BATCH, *SAMPLE)),
    *(
        Case(name, (4, 6, 5), options={"residual": True, "activation": activation})
        for name, activation in zip((*BATCH, *SAMPLE), ("relu", "gelu", "silu") * 4, strict=False)
    ),
    *(Case(name, (64, 32, 33), out="given") for name in ("eval", "train", "layer", "instance")),
    *(Case(name, (1, 2, 3)) for name in (*BATCH, *SAMPLE)),
    *(Case(name, (3, 1, 4)) for name in ("eval", "train", "instance")),
    Case("eval", (4, 2), options={"axis": 0}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.shape}")
def test_a_plain_call_gives_the_bits_of_the_general_way(ways, case):
    assert_same_bits(ways, case)


NUMBA = [
    *(Case(name, (7, 64)) for name in ("eval", "train", "forward", "layer", "group")),
    *(Case(name, (8, 6, 5), out="given") for name in ("eval", "forward", "instance")),
    *(Case(name, (5, 4, 3), np.float64, out="x") for name in ("eval", "rms_forward")),
    Case("eval", (2, 300, 2), parameters=np.float64),
    Case("forward", (4, 6, 5), options={"residual": True, "activation": "relu"}),
    Case("layer", (6, 64, 128), BFLOAT16),
    Case("train", (64, 32, 33)),
]


@pytest.mark.parametrize("case", NUMBA, ids=lambda case: f"{case.name}-{case.shape}")
def test_numba_kernels_take_plain_calls_once_they_are_compiled(case, monkeypatch):
    assert_same_bits_in_numba(monkeypatch, case)


BAD = {
    "x no array": {"x": lambda given: "text"},
    "x integers": {"x": lambda given: np.zeros((4, 6, 5), int)},
    "x 1-D": {"x": lambda given: np.zeros(5, np.float32)},
    "x empty": {"x": lambda given: np.zeros((0, 6, 5), np.float32)},
    "x one value": {"x": lambda given: np.zeros((1, 6, 1), np.float32)},
    "eps 0": {"eps": lambda given: 0.0},
    "eps negative": {"eps": lambda given: -1e-5},
    "eps NaN": {"eps": lambda given: float("nan")},
    "eps infinite": {"eps": lambda given: float("inf")},
    "eps text": {"eps": lambda given: "1"},
    "eps int": {"eps": lambda given: 1},
    "momentum 2": {"momentum": lambda given: 2.0},
    "axis 3": {"axis": lambda given: 3},
    "axis -4": {"axis": lambda given: -4},
    "axis 0": {"axis": lambda given: 0},
    "axis huge": {"axis": lambda given: 2**70},
    "axis bool": {"axis": lambda given: True},
    "axis float": {"axis": lambda given: 1.0},
    "activation unknown": {"activation": lambda given: "tanh"},
    "activation no text": {"activation": lambda given: []},
    "weight short": {"weight": lambda given: given["weight"][:-1]},
    "weight 2-D": {"weight": lambda given: given["weight"][None]},
    "weight half": {"weight": lambda given: given["weight"].astype(np.float16)},
    "weight list": {"weight": lambda given: given["weight"].tolist()},
    "weight strided": {"weight": lambda given: strided(given["weight"])},
    "weight swapped": {"weight": lambda given: given["weight"].astype(">f4")},
    "bias long": {"bias": lambda given: np.zeros(7)},
    "mean None": {"mean": lambda given: None},
    "mean short": {"mean": lambda given: given["mean"][:-1]},
    "var None": {"var": lambda given: None},
    "var list": {"var": lambda given: given["var"].tolist()},
    "var read-only": {"var": lambda given: read_only(given["var"])},
    "var strided": {"var": lambda given: strided(given["var"])},
    "residual short": {"residual": lambda given: given["x"][:-1]},
    "residual wide": {"residual": lambda given: given["x"].astype(np.float64)},
    "out list": {"out": lambda given: []},
    "out short": {"out": lambda given: given["x"][:-1].copy()},
    "out wide": {"out": lambda given: given["x"].astype(np.float64)},
    "out swapped": {"out": lambda given: given["x"].astype(">f4")},
    "out read-only": {"out": lambda given: read_only(given["x"])},
    "out strided": {"out": lambda given: strided(given["x"])},
    "out overlapping": {"out": overlapping},
    "out over weight": {
        "weight": lambda given: given["x"].ravel()[:6],
        "out": lambda given: given["x"],
    },
    "out over mean": {
        "mean": lambda given: given["x"].ravel()[-6:],
        "out": lambda given: given["x"],
    },
    "mask": {"mask": lambda given: np.ones((4, 5), bool)},
    "mask wrong": {"mask": lambda given: np.ones((9, 9), bool)},
    "x subclass": {"x": lambda given: np.ma.masked_array(given["x"])},
    "x swapped": {"x": lambda given: given["x"].astype(">f4")},
    "x strided": {"x": lambda given: strided(given["x"])},
    "groups 4": {"groups": lambda given: 4},
    "groups float": {"groups": lambda given: 2.0},
}
# Of the functions that have no such argument.
WITHOUT = {
    "axis": ("layer", "rms"),
    "weight": ("layer", "rms"),
    "bias": ("layer", "rms"),
    "mean": ("layer", "rms", "group", "instance"),
    "var": ("layer", "rms", "group", "instance"),
    "momentum": ("layer", "rms", "group"),
    "groups": ("eval", "train", "layer", "rms", "instance"),
}
CALLS = [
    (name, bad)
    for name in ("eval", "train", "layer", "rms", "group", "instance")
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


LAYERS = {
    "batch": lambda: (nc.BatchNorm1d(6), (8, 6, 5)),
    "batch cumulative": lambda: (nc.BatchNorm1d(6, momentum=None, skip_nonfinite=True), (8, 6)),
    "batch bare": lambda: (
        nc.BatchNorm2d(6, affine=False, track_running_stats=False),
        (8, 6, 2, 2),
    ),
    "batch relu": lambda: (nc.BatchNorm1d(6, axis=-1, activation="relu"), (8, 3, 6)),
    "layer": lambda: (nc.LayerNorm((6, 5)), (8, 6, 5)),
    "rms": lambda: (nc.RMSNorm(5, activation="gelu"), (8, 6, 5)),
    "group": lambda: (nc.GroupNorm(3, 6), (8, 6, 5)),
    "instance": lambda: (nc.InstanceNorm1d(6, affine=True), (8, 6, 5)),
    "instance tracked": lambda: (nc.InstanceNorm1d(6, track_running_stats=True), (8, 6, 5)),
}


def lived(layer, shape, in_place):
    """Everything that comes out of three steps of training and an evaluation."""
    rng = np.random.default_rng(1)
    found = []
    for step in range(3):
        x = rng.standard_normal(shape).astype(np.float32)
        if step == 1:
            x[0, 0] = np.nan
        kept = x.copy()
        found.append(layer(x, out=x if in_place else None))
        found += [values for values in layer.backward(kept, kept) if values is not None]
    layer.eval()
    found += [layer(kept), layer(kept, out=np.empty_like(kept)), *layer.state_dict().values()]
    return [values.tobytes() for values in found]


@ONE
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_live_the_same_on_either_way(ways, name, in_place):
    plain, general = ways
    watched = plain()
    found = lived(*LAYERS[name](), in_place)
    assert watched.answered >= 2
    general()
    assert found == lived(*LAYERS[name](), in_place)


@ONE
def test_a_plain_forward_over_x_leaves_no_x_for_the_backward(ways):
    plain, _ = ways
    plain()
    bn = nc.BatchNorm1d(4)
    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    dy = x.copy()
    bn(x, out=x)
    with pytest.raises(RuntimeError, match="overwritten"):
        bn.backward(dy)


def test_settings_reach_plain_calls_at_once():
    asked = []
    watched = Watched(compiled_calls(threads=lambda size: asked.append(size) or 2))
    small, large = np.zeros((64, 64), np.float32), np.zeros((64, backend.SERIAL_BELOW // 64))
    for x in (small, large):
        c = x.shape[1]
        y = watched.batch_apply(x, np.zeros(c), np.ones(c), None, None, 1e-5, 1, None, None, None)
        assert y.shape == x.shape
    assert asked == [large.size]
    with nc.use_backend("cython"):
        assert isinstance(backend.current().calls, cython.Calls)
        with nc.use_backend("numpy"):
            assert type(backend.current().calls) is Calls


def test_the_general_way_answers_no_plain_call():
    assert [getattr(Calls(), name)(1, 2) for name in METHODS] == [None] * len(METHODS)
    assert all(callable(getattr(cython.Calls, name)) for name in METHODS)
