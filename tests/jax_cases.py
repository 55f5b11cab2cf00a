"""normcore.jax against formulas in jax.numpy; run by tests/test_jax.py in a process of its own.

JAX starts threads that do not survive the forks of other tests.
"""

import threading
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from readme import blocks

import normcore.functional as F
import normcore.jax as nj

jax.config.update("jax_disable_most_optimizations", True)  # Tests compile more than they run.

BOUNDS = {"float32": 2e-5, "float64": 1e-12, "bfloat16": 2e-2}


@pytest.fixture(params=BOUNDS)
def dtype(request):
    """A dtype of x, with jax_enable_x64 where it needs it."""
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", False)


@dataclass(frozen=True)
class Case:
    """A norm of normcore.jax, and how jax.numpy says it."""

    name: str
    shape: tuple
    axis: int | tuple | None = None
    groups: int | None = None

    def __str__(self):
        return f"{self.name}-{self.axis}"

    @property
    def over(self):
        axes = {None: (-1,)}.get(self.axis, self.axis)
        return tuple(i % len(self.shape) for i in ((axes,) if isinstance(axes, int) else axes))

    @property
    def parameters(self):
        return tuple(self.shape[i] for i in self.over)

    def ours(self, x, weight, bias):
        axis = {} if self.axis is None else {"axis": self.axis}
        if self.name == "layer":
            return nj.layer_norm(x, self.parameters, weight, bias, **axis)
        if self.name == "rms":
            return nj.rms_norm(x, self.parameters, weight, 1e-5, **axis)
        if self.name == "group":
            return nj.group_norm(x, self.groups, weight, bias, **axis)
        if self.name == "instance":
            return nj.instance_norm(x, weight, bias, **axis)
        return nj.batch_norm_training(x, *self.running(x), weight, bias, **axis)[0]

    def running(self, x):
        channels = self.parameters
        dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        return jnp.zeros(channels, dtype), jnp.ones(channels, dtype)

    def formula(self, x, weight, bias):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        spread = [n if i in self.over else 1 for i, n in enumerate(self.shape)]
        if self.name in ("layer", "rms"):
            axes = self.over
        else:
            axes = tuple(i for i in range(x.ndim) if i not in self.over)
            axes = axes if self.name == "batch" else axes[1:]
        z, channel = x, self.over[0]
        if self.name == "group":
            z = x.reshape(*x.shape[:channel], self.groups, -1, *x.shape[channel + 1 :])
            axes = tuple(i for i in range(1, z.ndim) if i != channel)
        mean = 0 if self.name == "rms" else z.mean(axes, keepdims=True)
        var = ((z - mean) ** 2).mean(axes, keepdims=True)
        y = ((z - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape) * weight.reshape(spread)
        return y if self.name == "rms" else y + bias.reshape(spread)


CASES = [
    Case("layer", (6, 4, 5)),
    Case("layer", (6, 4, 5), (1, 2)),
    Case("layer", (3, 4, 5, 2), 1),
    Case("rms", (6, 4, 5)),
    Case("rms", (3, 4, 5), 1),
    Case("group", (3, 6, 4, 2), 1, 2),
    Case("group", (3, 4, 6), -1, 3),
    Case("instance", (3, 4, 5, 2), 1),
    Case("batch", (3, 4, 5, 2), 1),
    Case("batch", (6, 4), -1),
]


def arrays(case, dtype, lead=(), seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((*lead, *case.shape)), dtype)
    dy = jnp.asarray(rng.standard_normal((*lead, *case.shape)), dtype)
    parameters = jnp.float64 if dtype == "float64" else jnp.float32
    weight = jnp.asarray(rng.uniform(0.5, 1.5, (*lead, *case.parameters)), parameters)
    return x, dy, weight, jnp.asarray(rng.standard_normal(weight.shape), parameters)


def close(found, wanted, bound):
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    np.testing.assert_allclose(found, wanted, rtol=bound, atol=bound * max(1, abs(wanted).max()))


def both(function, dy, *given):
    """The value and the gradients."""
    y, pull = jax.vjp(function, *given)
    return y, pull(dy.astype(y.dtype))


def some(dtype):
    """All cases in float32, two in other dtypes."""
    names = {"float64": ("layer", "batch"), "bfloat16": ("rms", "group")}.get(dtype)
    return (
        CASES
        if names is None
        else {case.name: case for case in CASES if case.name in names}.values()
    )


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for dtype in BOUNDS for case in some(dtype)],
    indirect=["dtype"],
    ids=str,
)
def test_values_and_gradients(case, dtype):
    x, dy, weight, bias = arrays(case, dtype)
    y, gradients = jax.jit(partial(both, case.ours))(dy, x, weight, bias)
    wanted, others = jax.jit(partial(both, case.formula))(dy, x, weight, bias)
    assert y.dtype == x.dtype
    close(y, wanted, BOUNDS[dtype])
    for found, like, other in zip(gradients, (x, weight, bias), others, strict=True):
        assert (found.shape, found.dtype) == (like.shape, like.dtype)
        close(found, other, BOUNDS[dtype])


MAPPED = [(0, None, None), (None, 0, None), (0, 0, 0)]


@pytest.mark.parametrize(
    ("case", "mapped"),
    [
        *((case, mapped) for case in CASES[:3:2] for mapped in MAPPED),
        *((case, MAPPED[0]) for case in CASES if case.name in ("group", "instance", "batch")),
    ],
    ids=str,
)
def test_vmap(case, mapped):
    x, dy, weight, bias = arrays(case, "float32", (2,))
    given = [a if axis == 0 else a[0] for a, axis in zip((x, weight, bias), mapped, strict=True)]
    ours, formula = (
        jax.jit(jax.vmap(partial(both, function), (0, *mapped)))(dy, *given)
        for function in (case.ours, case.formula)
    )
    for found, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(formula), strict=True):
        assert found.shape == wanted.shape
        close(found, wanted, 2e-5)


def test_vmap_within_vmap_along_other_axes():
    case = Case("layer", (3, 5))
    x, _, weight, bias = arrays(case, "float32", (2, 4))
    moved = jnp.moveaxis(x, 0, -1)
    inner = jax.vmap(case.ours, (0, None, 0))
    found = jax.jit(jax.vmap(inner, (-1, 0, 0)))(moved, weight[:, 0], bias)
    formula = jax.vmap(case.formula, (0, None, 0))
    wanted = jax.jit(jax.vmap(formula, (-1, 0, 0)))(moved, weight[:, 0], bias)
    close(found, wanted, 2e-5)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_bits_are_those_of_normcore(offset):
    """Statistics included, which are float64 also where JAX has no float64."""
    x, dy, weight, bias = arrays(Case("layer", (9, 40)), "float32")
    x = x + jnp.float32(offset)
    y, pull = jax.vjp(lambda *given: nj.layer_norm(given[0], 40, *given[1:]), x, weight, bias)
    wanted, *saved = F.layer_norm_forward(x, 40, weight, bias)
    np.testing.assert_array_equal(y, wanted)
    for found, other in zip(
        pull(dy), F.layer_norm_backward(dy, x, *saved, 40, weight), strict=True
    ):
        np.testing.assert_array_equal(found, other)


def test_nothing_is_copied(monkeypatch):
    places = []
    real = F.layer_norm_forward

    def spy(x, *arguments, **options):
        places.extend(a.__array_interface__["data"][0] for a in (x, options["out"]))
        return real(x, *arguments, **options)

    x = jnp.ones((64, 32))
    function = jax.jit(lambda x: nj.layer_norm(x, 32))
    function(x)
    monkeypatch.setattr(F, "layer_norm_forward", spy)
    y = function(x)
    assert places == [x.unsafe_buffer_pointer(), y.unsafe_buffer_pointer()]


def test_running_statistics_are_returned():
    rng = np.random.default_rng(0)
    batches = rng.standard_normal((5, 8, 3, 4)).astype(np.float32)

    def step(running, x):
        y, *running = nj.batch_norm_training(x, *running, momentum=0.3)
        return tuple(running), y

    start = jnp.zeros(3), jnp.ones(3)
    running, y = jax.jit(lambda start, batches: jax.lax.scan(step, start, batches))(start, batches)
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    for x, found in zip(batches, y, strict=True):
        wanted = F.batch_norm(x, mean, var, training=True, momentum=0.3)
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(running, [mean, var])
    np.testing.assert_array_equal(start, [np.zeros(3), np.ones(3)])

    def loss(x, running):
        _, *updated = nj.batch_norm_training(x, *running)
        return sum(values.sum() for values in updated)

    assert not jax.grad(loss)(batches[0], start).any()


def test_evaluation_and_its_gradients():
    case = Case("batch", (6, 4), -1)
    x, dy, weight, bias = arrays(case, "float32")
    mean, var = jnp.arange(4.0), jnp.arange(1.0, 5)

    def formula(x, weight, bias):
        return (x - mean) / jnp.sqrt(var + 1e-5) * weight + bias

    def ours(x, weight, bias):
        return nj.batch_norm(x, mean, var, weight, bias)

    y, gradients = jax.jit(partial(both, ours))(dy, x, weight, bias)
    wanted, others = jax.jit(partial(both, formula))(dy, x, weight, bias)
    close(y, wanted, 1e-5)
    for found, other in zip(gradients, others, strict=True):
        close(found, other, 1e-5)
    found = jax.vmap(lambda mean: nj.batch_norm(x, mean, var))(jnp.stack([mean, mean + 1]))
    np.testing.assert_array_equal(found[1], nj.batch_norm(x, mean + 1, var))


def test_without_parameters_and_with_half_ones():
    x, dy, weight, bias = arrays(Case("layer", (6, 8)), "bfloat16")
    y, pull = jax.vjp(lambda x: nj.layer_norm(x, 8), x)
    assert y.dtype == pull(dy)[0].dtype == jnp.bfloat16
    halves = weight.astype(jnp.bfloat16), bias.astype(jnp.bfloat16)
    _, pull = jax.vjp(lambda *given: nj.layer_norm(given[0], 8, *given[1:]), x, *halves)
    assert [gradient.dtype for gradient in pull(dy)] == [jnp.bfloat16] * 3
    only_bias = jax.grad(lambda bias: nj.layer_norm(x, 8, None, bias).sum())(bias)
    np.testing.assert_array_equal(only_bias, [6] * 8)
    empty = jax.grad(lambda x: nj.layer_norm(x, 8).sum())(jnp.zeros((0, 8)))
    assert empty.shape == (0, 8)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: nj.layer_norm(x, 4), ValueError, r"x: expected shape \(\*, 4\)"),
        (lambda x: nj.layer_norm(x, 3, x), ValueError, r"weight: expected shape \(3,\)"),
        (lambda x: nj.layer_norm(x, 3, eps=0), ValueError, "eps: expected a positive"),
        (lambda x: nj.rms_norm(x.astype(int), 3), TypeError, "x: expected dtype float32"),
        (lambda x: nj.group_norm(x, 2), ValueError, "num_groups: expected a divisor"),
        (lambda x: nj.instance_norm(x), ValueError, "Expected more than 1 spatial element"),
        (lambda x: nj.batch_norm(x, None, x[0]), ValueError, "running_mean: expected an array"),
        (lambda x: nj.batch_norm(x, x[0], x[0, :2]), ValueError, "running_var: expected shape"),
        (
            lambda x: nj.batch_norm_training(x[:1], x[0], x[0]),
            ValueError,
            "Expected more than 1 value per channel",
        ),
        (
            lambda x: jax.grad(lambda x: jax.grad(lambda x: nj.rms_norm(x, 3).sum())(x).sum())(x),
            ValueError,
            "cannot be differentiated",
        ),
    ],
)
def test_errors_while_tracing(function, error, message):
    with pytest.raises(error, match=message):
        jax.jit(function).lower(jnp.ones((2, 3)))


def test_by_callback_where_nothing_can_be_called_by_reference(monkeypatch):
    case = Case("layer", (6, 4, 5))
    x, dy, weight, bias = arrays(case, "float32", (2,))
    mapped = jax.vmap(partial(both, case.ours), (0, 0, None, None))
    by_reference = mapped(dy, x, weight[0], bias[0])

    def register(*_):
        raise AttributeError("no such interface")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", register)
    with pytest.warns(RuntimeWarning, match="no such interface"):
        monkeypatch.setattr(nj, "_program", nj._Program())
    assert not nj._program.by_reference
    copied = jax.jit(mapped)(dy, x, weight[0], bias[0])
    for found, wanted in zip(jax.tree.leaves(copied), jax.tree.leaves(by_reference), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_readme():
    names: dict = {}
    [example] = blocks("In JAX")
    exec(example, names)
    assert names["gradient"].shape == names["mean"].shape == (64,)
    assert names["mean"].all()


def test_errors_in_a_program_are_raised(monkeypatch):
    x = jnp.ones((3, 11))
    function = jax.jit(lambda x: nj.rms_norm(x, 11))
    function(x)

    def fails(*_, **__):
        raise MemoryError("for the test")

    monkeypatch.setattr(F, "rms_norm_forward", fails)
    with pytest.raises((ValueError, RuntimeError), match="MemoryError: for the test"):
        function(x)
    monkeypatch.setattr(nj._program.target, "_functions", {})
    with pytest.raises((ValueError, RuntimeError), match="traced in another process"):
        function(x)


def test_threads_and_large_arrays_do_not_wait_for_each_other():
    """Arrays that XLA copies in threads of its own, while all of these may be in a callback."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((700, 512)), jnp.float32)

    def network(x):
        for _ in range(6):
            x = nj.layer_norm(jnp.sin(x[:, ::-1]) + nj.rms_norm(x, 512), 512)
        return (x * x).sum()

    gradient = jax.jit(jax.grad(network))
    found = [None] * 3

    def run(i):
        found[i] = [np.asarray(gradient(x)) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert all(np.array_equal(one, found[0][0]) for some in found for one in some)
