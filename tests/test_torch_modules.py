"""The modules of normcore.torch against those of torch.nn: values, gradients, state, memory."""

import copy
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from torch_norms import PAIRS, Pair, distance, nt, torch

import normcore as nc

BOUNDS = {torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
BATCH = Pair("BatchNorm2d", (6,), (4, 6, 5, 3))
EVERY = [
    BATCH,
    Pair("InstanceNorm2d", (6,), (4, 6, 5, 3), {"affine": True}),
    Pair("GroupNorm", (3, 6), (4, 6, 5, 3)),
    Pair("LayerNorm", (3,), (4, 6, 5, 3)),
    Pair("RMSNorm", (3,), (4, 6, 5, 3)),
]


def gradients(module, x, dy, residual=None):
    """y and the gradients of x, of the parameters, of residual."""
    x = x.detach().clone().requires_grad_()
    given = [x] if residual is None else [x, residual.detach().clone().requires_grad_()]
    y = module(*given)
    return [y, *torch.autograd.grad(y, [*given, *module.parameters()], dy)]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_each_is_its_counterpart(pair, dtype):
    theirs, ours = pair.make(dtype)
    assert repr(ours) == repr(theirs)
    wide = copy.deepcopy(theirs).float() if dtype.itemsize == 2 else theirs
    for training in (True, True, False):
        ours.train(training)
        wide.train(training)
        x, dy = pair.input(dtype), pair.input(dtype, 2)
        exact = gradients(wide, *((x, dy) if wide is theirs else (x.float(), dy.float())))
        found = gradients(ours, x, dy)
        for ours_is, theirs_is in zip(found, exact, strict=True):
            assert ours_is.dtype == dtype
            assert distance(ours_is, theirs_is) < 3 * BOUNDS[dtype]
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for name, values in ours.state_dict().items():
            expected = theirs.state_dict()[name]
            assert values.dtype == expected.dtype
            assert distance(values, wide.state_dict()[name]) < BOUNDS[dtype], name


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "silu", "gelu"])
@pytest.mark.parametrize("pair", EVERY, ids=str)
def test_a_fused_activation_is_the_unfused(pair, activation):
    theirs, ours = pair.make(torch.float64, activation=activation)
    assert repr(ours) == repr(theirs)[:-1] + f", activation={activation})"
    after = getattr(torch.nn.functional, activation)
    x, dy, residual = (pair.input(torch.float64, seed) for seed in (1, 2, 3))

    class Unfused(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = theirs

        def forward(self, x, residual=None):
            y = self.norm(x)
            return after(y if residual is None else y + residual)

    for training in (True, False):
        ours.train(training)
        theirs.train(training)
        for given in ([x, dy], [x, dy, residual]):
            for found, expected in zip(
                gradients(ours, *given), gradients(Unfused(), *given), strict=True
            ):
                assert distance(found, expected) < 1e-12


@pytest.mark.parametrize("pair", EVERY, ids=str)
def test_a_residual_without_an_activation(pair):
    theirs, ours = pair.make(torch.float64)
    x, dy, residual = (pair.input(torch.float64, seed) for seed in (1, 2, 3))
    y, dx, dresidual, *_ = gradients(ours, x, dy, residual)
    expected_y, expected_dx, *_ = gradients(theirs, x, dy)
    assert distance(y, expected_y + residual) < 1e-13
    assert distance(dx, expected_dx) < 1e-13
    assert torch.equal(dresidual, dy)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("pair", EVERY, ids=str)
def test_channels_last_stays_so(pair, dtype):
    _, ours = pair.make(dtype)
    last = {"memory_format": torch.channels_last}
    x, dy = pair.input(dtype), pair.input(dtype, 2)
    expected = gradients(copy.deepcopy(ours), x, dy)
    found = gradients(ours, x.to(**last), dy.to(**last))
    for values in found[:2]:  # y and dx
        assert values.is_contiguous(**last)
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) < 3 * BOUNDS[dtype]


@pytest.fixture
def kernel_memory(monkeypatch):
    """The addresses of the large arrays that kernels get: {kernel: (reads, writes)}."""
    from normcore.torch import rules

    seen = []

    def spied(function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            found = result if isinstance(result, tuple) else (result,)
            seen.append(([address(a) for a in args if large(a)], address(found[0])))
            return result

        return call

    for name in ("train_batch", "train_instance"):
        monkeypatch.setattr(rules, name, spied(getattr(rules, name)))
    monkeypatch.setattr(rules.layer_passes, "forward", spied(rules.layer_passes.forward))
    for name in ("group_norm_forward", "batch_norm"):
        monkeypatch.setattr(nc.functional, name, spied(getattr(nc.functional, name)))
    for rule in (rules.Batch, rules.Evaluation, rules.Instance, rules.Layer, rules.Group):
        monkeypatch.setattr(rule, "gradients", spied(rule.gradients))
    return seen


def large(values):
    return isinstance(values, np.ndarray) and values.ndim == 4


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("pair", EVERY, ids=str)
def test_arrays_are_the_tensors_memory(pair, dtype, channels_last, training, kernel_memory):
    _, ours = pair.make(dtype)
    ours.train(training)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (pair.input(dtype, seed).to(memory_format=layout) for seed in (1, 2))
    x.requires_grad_()
    y = ours(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert kernel_memory == [
        ([x.data_ptr()], y.data_ptr()),
        ([dy.data_ptr(), x.data_ptr()], dx.data_ptr()),
    ]
    with torch.no_grad():
        y = ours(x)
    assert kernel_memory[2] == ([x.data_ptr()], y.data_ptr())


def test_parameters_are_the_tensors_memory(monkeypatch):
    from normcore.torch import rules

    ours = nt.BatchNorm2d(6)
    seen = []

    def spy(x, weight, bias, running_mean, running_var, count, *rest):
        seen.extend(map(address, (weight, bias, running_mean, running_var, count)))
        return train(x, weight, bias, running_mean, running_var, count, *rest)

    train = rules.train_batch
    monkeypatch.setattr(rules, "train_batch", spy)
    ours(BATCH.input())
    assert seen == [values.data_ptr() for values in ours.state_dict().values()]


def test_parameters_that_move_are_found_again():
    """The module holds arrays on their memory."""
    theirs, ours = BATCH.make()
    x = BATCH.input()
    ours(x)
    theirs(x)

    def same():
        theirs.load_state_dict(ours.state_dict())
        return distance(ours(x), theirs(x)) < 3e-6

    ours.weight.data = torch.rand(6)
    assert same()
    ours.weight = torch.nn.Parameter(torch.rand(6))
    ours.running_mean = torch.rand(6)
    assert same()
    fresh = {
        name: torch.rand_like(values) if values.is_floating_point() else values.clone()
        for name, values in ours.state_dict().items()
    }
    ours.load_state_dict(fresh, assign=True)
    assert same()
    twin, loaded = copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))
    for module in (twin, loaded):
        with torch.no_grad():
            module.weight.fill_(2)
        module.eval()
        before = ours.running_mean.clone()
        y = torch.nn.functional.batch_norm(
            x, module.running_mean, module.running_var, module.weight, module.bias
        )
        assert distance(module(x), y) < 3e-6
        module.train()(x)
        assert torch.equal(ours.running_mean, before)
        assert not torch.equal(module.running_mean, before)
    for narrower in ("weight", "bias", "running_mean", "running_var"):
        values = getattr(ours, narrower)
        values.data = values.data[:4]
    y = torch.nn.functional.batch_norm(
        x[:, :4], ours.running_mean, ours.running_var, ours.weight, ours.bias
    )
    assert distance(ours.eval()(x[:, :4]), y) < 3e-6
    del ours.weight  # as torch.nn.utils.prune does
    ours.weight = torch.ones(4)
    y = torch.nn.functional.batch_norm(
        x[:, :4], ours.running_mean, ours.running_var, None, ours.bias
    )
    assert distance(ours(x[:, :4]), y) < 3e-6


@pytest.mark.parametrize(("r_max", "d_max"), [(1, 0), (1.5, 0.5), (3, 5)])
def test_batch_renorm_is_normcores(r_max, d_max):
    ours = nt.BatchRenorm2d(6, r_max=r_max, d_max=d_max, dtype=torch.float64, activation="silu")
    layer = nc.BatchRenorm2d(6, r_max=r_max, d_max=d_max, dtype="float64", activation="silu")
    torch.nn.init.uniform_(ours.weight, 0.5, 1.5)
    layer.load_state_dict({k: v.numpy() for k, v in ours.state_dict().items()})
    for seed in range(3):
        x, dy = BATCH.input(torch.float64, seed), BATCH.input(torch.float64, seed + 9)
        y, dx, dweight, dbias = gradients(ours, x, dy)
        np.testing.assert_array_equal(y.detach(), layer(x.numpy()))
        for found, expected in zip((dx, dweight, dbias), layer.backward(dy.numpy()), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)
    for name, values in layer.state_dict().items():
        np.testing.assert_array_equal(values, ours.state_dict()[name])
    np.testing.assert_array_equal(ours.eval()(x).detach(), layer.eval()(x.numpy()))


def test_batch_renorm_takes_schedules():
    ours = nt.BatchRenorm1d(6, r_max=nc.PAPER_R_MAX, d_max=lambda step: 10.0 * step)
    x = torch.randn(16, 6) + 4
    assert torch.equal(ours(x), nt.BatchNorm1d(6)(x))
    assert not torch.equal(ours(x), nt.BatchNorm1d(6)(x))
    assert "r_max=" in repr(ours)
    with pytest.raises(ValueError, match="r_max: expected a number of at least 1"):
        nt.BatchRenorm3d(6, r_max=0.5)


def test_layer_norms_over_channels_are_the_transposed():
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    for ours, theirs in (
        (nt.LayerNorm2d(6, dtype=x.dtype), torch.nn.LayerNorm(6, dtype=x.dtype)),
        (nt.RMSNorm2d(6, dtype=x.dtype), torch.nn.RMSNorm(6, dtype=x.dtype)),
    ):
        for layout in (torch.contiguous_format, torch.channels_last):
            y = ours(x.to(memory_format=layout))
            assert y.is_contiguous(memory_format=layout)
            assert distance(y, theirs(x.movedim(1, -1)).movedim(-1, 1)) < 1e-13


def test_errors_leave_the_module_as_it_was():
    ours = nt.BatchNorm2d(6)
    before = copy.deepcopy(ours.state_dict())
    cases = [
        (torch.randn(4, 6), ValueError, "expected 4D input"),
        (torch.randn(4, 5, 3, 3), ValueError, r"weight: expected shape \(5,\), got \(6,\)"),
        (torch.randn(1, 6, 1, 1), ValueError, "Expected more than 1 value per channel"),
        (torch.ones(4, 6, 3, 3, dtype=torch.int64), TypeError, "x: expected dtype float32"),
        (torch.randn(4, 6, 3, 3, device="meta"), TypeError, "input: expected a tensor on the CPU"),
        (torch.randn(4, 6, 3, 3, dtype=torch.cfloat), TypeError, "x: expected dtype float32"),
    ]
    for x, error, message in cases:
        with pytest.raises(error, match=message):
            ours(x)
    with pytest.raises(ValueError, match="residual: expected x's shape"):
        ours(torch.randn(4, 6, 3, 3), torch.randn(4, 6, 3, 1))
    with pytest.raises(TypeError, match=r"input: expected a torch\.Tensor, got ndarray"):
        nt.layer_norm(np.ones((3, 4)), (4,))
    with pytest.raises(ValueError, match="activation: expected one of"):
        nt.BatchNorm2d(6, activation="tanh")
    with pytest.raises(ValueError, match=r"input: expected 6 channels, got shape \(2, 5, 3, 3\)"):
        nt.InstanceNorm2d(6, affine=True)(torch.randn(2, 5, 3, 3))
    with pytest.warns(UserWarning, match="5 channels, where num_features=6"):
        nt.InstanceNorm2d(6)(torch.randn(2, 5, 3, 3))
    for name, values in ours.state_dict().items():
        assert torch.equal(values, before[name])


def test_without_torch_the_error_names_the_extra():
    code = "import sys; sys.modules['torch'] = None\nimport normcore\nimport normcore.torch"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: torch is not installed" in found.stderr
    assert "pip install normcore[torch]" in found.stderr


def test_without_ml_dtypes_only_bfloat16_is_missing():
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import torch, normcore.torch as nt\n"
        "nt.LayerNorm(4)(torch.ones(2, 4))\n"
        "nt.LayerNorm(4)(torch.ones(2, 4, dtype=torch.bfloat16))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: ml_dtypes is not installed" in found.stderr
    assert "pip install normcore[torch]" in found.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("BatchNorm2d", (6,)),
        ("InstanceNorm2d", (6,)),
        ("GroupNorm", (3, 6)),
        ("LayerNorm", (192,)),
        ("RMSNorm", (192,)),
    ],
)
def test_arrays_of_the_size_of_x_are_y_and_dx_only(name, arguments, dtype):
    """NumPy allocates all results, and tracemalloc sees what NumPy allocates."""
    ours = getattr(nt, name)(*arguments, dtype=dtype)
    x, dy = (torch.randn(512, 6, 2, 192).to(dtype) for _ in range(2))
    x.requires_grad_()
    ours(x).backward(dy)
    # Statistics: float64, up to seven of each row or of each plane, which is two rows here.
    slack = 100_000 + 56 * x[..., 0].numel()
    assert slack < x.nbytes / 5
    tracemalloc.start()
    try:
        y = ours(x)
        forward = tracemalloc.get_traced_memory()[1]
        torch.autograd.grad(y, x, dy)
        both = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert x.nbytes <= forward <= x.nbytes + slack
    assert 2 * x.nbytes <= both <= 2 * x.nbytes + slack
