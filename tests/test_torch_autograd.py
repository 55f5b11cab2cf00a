"""Gradients by autograd: checked numerically, twice too, and in all that PyTorch does around it."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from torch_norms import PAIRS, distance, nt, torch

WIDE = torch.float64


def tensors(shape, *parameters):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=WIDE, requires_grad=True)
    return [x, *(torch.rand(n, dtype=WIDE).add_(0.5).requires_grad_() for n in parameters)]


def statistics():
    return torch.full((4,), 0.3, dtype=WIDE), torch.full((4,), 2.0, dtype=WIDE)


def far():
    """Running statistics so far away that r and d are at their limits, and so constant."""
    return torch.full((4,), 90.0, dtype=WIDE), torch.full((4,), 400.0, dtype=WIDE)


SHAPE = (3, 4, 2, 1)
FUNCTIONS = {
    "batch": lambda x, w, b, **o: nt.batch_norm(x, None, None, w, b, True, **o),
    "evaluation": lambda x, w, b, **o: nt.batch_norm(x, *statistics(), w, b, **o),
    "renorm": lambda x, w, b, **o: nt.batch_renorm(x, *far(), w, b, True, 1.5, 0.5, **o),
    "instance": lambda x, w, b, **o: nt.instance_norm(x, None, None, w, b, **o),
    "group": lambda x, w, b, **o: nt.group_norm(x, 2, w, b, **o),
    "layer": lambda x, w, b, **o: nt.layer_norm(x.movedim(1, -1), (4,), w, b, **o).movedim(-1, 1),
    "layer over channels": lambda x, w, b, **o: nt.layer_norm(x, (4,), w, b, axis=1, **o),
    "rms over channels": lambda x, w, b, **o: nt.rms_norm(x, (4,), w, axis=1, **o) + b[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_once_and_twice(name):
    given = tensors(SHAPE, 4, 4)
    assert torch.autograd.gradcheck(FUNCTIONS[name], given)
    assert torch.autograd.gradgradcheck(FUNCTIONS[name], given, fast_mode=True)


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "silu", "gelu"])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "layer"])
def test_gradients_through_residual_and_activation(name, activation):
    def function(x, weight, bias, residual):
        return FUNCTIONS[name](x, weight, bias, residual=residual, activation=activation)

    given = [*tensors(SHAPE, 4, 4), torch.randn(SHAPE, dtype=WIDE, requires_grad=True)]
    checked = {"fast_mode": True, "atol": 1e-4}
    assert torch.autograd.gradcheck(function, given, **checked)
    assert torch.autograd.gradgradcheck(function, given, **checked)


def test_a_residual_alone_twice():
    given = [*tensors(SHAPE, 4, 4), torch.randn(SHAPE, dtype=WIDE, requires_grad=True)]

    def function(x, weight, bias, residual):
        return nt.batch_norm(x, None, None, weight, bias, True, residual=residual)

    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.name != "BatchNorm1d"], ids=str)
def test_modules_gradcheck(pair):
    _, module = pair.make(WIDE)
    x = pair.input(WIDE).requires_grad_()
    assert torch.autograd.gradcheck(module, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(module, x, fast_mode=True)


def test_a_gradient_penalty_is_torchs():
    found = []
    for norm in (torch.nn.BatchNorm2d(4), nt.BatchNorm2d(4)):
        torch.manual_seed(0)
        x = torch.randn(SHAPE, requires_grad=True)
        (slope,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
        (slope.square().sum() + norm.weight.sum()).backward()
        found.append((x.grad, norm.weight.grad))
    for theirs, ours in zip(*found, strict=True):
        assert distance(ours, theirs) < 1e-5


def test_only_what_is_asked_for_gets_a_gradient():
    x = torch.randn(SHAPE)
    norm = nt.BatchNorm2d(4, activation="relu")
    norm(x).sum().backward()
    assert norm.weight.grad is not None
    assert x.grad is None
    norm.requires_grad_(False)
    assert not norm(x).requires_grad
    y = norm(x, x.clone().requires_grad_())
    assert y.requires_grad
    (y * 0).sum().backward()


def test_gradients_of_any_layout():
    """Expanded, permuted and strided gradients: copied once where they must be."""
    x = torch.randn(SHAPE, dtype=WIDE, requires_grad=True)
    for spoil in (
        lambda y: y.sum(),
        lambda y: (y.permute(3, 1, 0, 2) ** 2).sum(),
        lambda y: (y[:, ::2] ** 3).sum(),
        lambda y: (y.to(memory_format=torch.channels_last) ** 3).sum(),
    ):
        (found,) = torch.autograd.grad(spoil(nt.GroupNorm(2, 4, dtype=WIDE)(x)), x)
        (expected,) = torch.autograd.grad(spoil(torch.nn.GroupNorm(2, 4, dtype=WIDE)(x)), x)
        assert distance(found, expected) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_activation_in_place_may_follow(dtype):
    x = torch.randn(SHAPE, dtype=dtype, requires_grad=True)
    model = torch.nn.Sequential(nt.BatchNorm2d(4, dtype=dtype), torch.nn.ReLU(inplace=True))
    model(x).sum().backward()
    assert x.grad.dtype == dtype
    with torch.no_grad():
        model[0].eval()(x).mul_(2)


def test_what_changes_in_between_is_noticed():
    x = torch.randn(SHAPE, requires_grad=True)
    norm = nt.BatchNorm2d(4)
    for values in (x, norm.weight):
        y = norm(x * 1 if values is norm.weight else x)
        with torch.no_grad():
            values.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_evaluation_gradients_survive_a_training_step():
    norm = nt.BatchNorm2d(4).eval()
    x = torch.randn(SHAPE, requires_grad=True)
    y = norm(x)
    norm.train()(x + 9)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert distance(dx, torch.full(SHAPE, (1 + 1e-5) ** -0.5)) < 1e-6


def test_no_grad_and_inference_mode():
    x = torch.randn(SHAPE, requires_grad=True)
    norm = nt.BatchNorm2d(4)
    with torch.no_grad():
        first = norm(x)
    with torch.inference_mode():
        second = norm(x)
        third = nt.BatchNorm2d(4, dtype=torch.bfloat16)(x.bfloat16())
    assert not first.requires_grad
    assert second.is_inference()
    assert third.is_inference()
    assert torch.equal(first, second)
    assert norm.num_batches_tracked == 2


def test_checkpoints_and_saved_tensor_hooks():
    from torch.utils.checkpoint import checkpoint

    norm = nt.LayerNorm((2, 1), activation="gelu")
    x = torch.randn(SHAPE, requires_grad=True)
    (expected,) = torch.autograd.grad(norm(x).square().sum(), x)
    for reentrant in (False, True):
        y = checkpoint(norm, x, use_reentrant=reentrant)
        y.square().sum().backward()
        assert torch.equal(x.grad, expected)
        x.grad = None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y = norm(x)
    (found,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(found, expected)


def test_autocast():
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), nt.BatchNorm2d(4), nt.GroupNorm(2, 4))
    with torch.autocast("cpu", torch.bfloat16):
        y = model(torch.randn(SHAPE))
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert model[1].weight.grad.dtype == torch.float32


def test_functional_call_and_threads():
    norm = nt.BatchNorm2d(4).eval()
    x = torch.randn(SHAPE)
    twice = {"weight": torch.full((4,), 2.0), "bias": torch.zeros(4)}
    y = torch.func.functional_call(norm, twice, (x,))
    assert distance(y, 2 * norm(x)) < 1e-6
    from concurrent.futures import ThreadPoolExecutor

    expected = norm(x)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, expected) for y in pool.map(norm, [x] * 64))


def test_what_cannot_be_traced_says_so():
    with (
        pytest.warns(DeprecationWarning, match="torch.jit"),
        pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot see what normcore computes"),
    ):
        torch.jit.trace(nt.LayerNorm((2, 1)), torch.randn(SHAPE))


class Data(torch.utils.data.Dataset):
    """Normalizes in the worker."""

    def __init__(self):
        self.norm = nt.LayerNorm(64)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        x = torch.arange(64 * 1024.0).reshape(1024, 64).cos() * (index + 1)
        with torch.no_grad():
            return self.norm(x)


def test_data_loader_workers():
    starts = [s for s in ("fork", "spawn") if s in multiprocessing.get_all_start_methods()]
    data = Data()
    expected = torch.stack([data[i] for i in range(8)]).double().sum().item()
    # A process of its own: to fork one with threads warns, and pytest's has some.
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1])\n"
        "from test_torch_autograd import Data\n"
        "data = Data(); data[0]  # threads run before the fork\n"
        "for start in sys.argv[2:]:\n"
        "    options = {'multiprocessing_context': start, 'timeout': 60}\n"
        "    loader = torch.utils.data.DataLoader(data, 4, num_workers=1, **options)\n"
        "    print(torch.cat(list(loader)).double().sum().item())\n"
    )
    folder = str(Path(__file__).parent)
    found = subprocess.run(
        [sys.executable, "-c", code, folder, *starts], capture_output=True, text=True, check=True
    )
    assert [float(n) for n in found.stdout.split()] == pytest.approx([expected] * len(starts))
