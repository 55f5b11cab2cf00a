"""`convert` and `revert`: modules, whole architectures of timm and transformers."""

import copy
import pickle
import sys

import pytest
from timm_alone import timm
from torch_norms import PAIRS, nt, torch

nn = torch.nn


def norms(model):
    return [m for m in model.modules() if type(m).__module__.startswith("normcore.torch")]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_module_becomes_another_and_itself_again(pair):
    module, _ = pair.make()
    kind, shown = type(module), repr(module)
    state, objects = copy.deepcopy(module.state_dict()), module.state_dict(keep_vars=True)
    attributes = dict(module.__dict__)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    assert nt.convert(module) is module
    assert type(module) is getattr(nt, pair.name)
    assert isinstance(module, kind)
    assert repr(module) == shown
    module(pair.input())
    assert calls == [1]
    for name, values in module.state_dict(keep_vars=True).items():
        assert values is objects[name]
    assert nt.convert(module) is module
    assert nt.revert(module) is module
    assert type(module) is kind
    assert module.__dict__.keys() == attributes.keys()
    module.load_state_dict(state)
    assert nt.revert(module) is module


def test_a_model_keeps_its_wiring():
    shared = nn.LayerNorm(4)
    model = nn.Sequential(shared, nn.Sequential(nn.Linear(4, 4), shared), nt.RMSNorm(4))
    parameters = list(model.parameters())  # as an optimizer has them
    nt.convert(model)
    assert model[0] is model[1][1] is shared
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    twin = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    for other in (twin, loaded):
        x = torch.randn(8, 4)
        assert torch.equal(other(x), model(x))
        assert [type(m) for m in nt.revert(other).modules()][1] is nn.LayerNorm
        assert type(other[2]) is nt.RMSNorm  # nobody converted it
    assert len(norms(model)) == 2


def test_subclasses_are_converted_by_name_only():
    class Own(nn.LayerNorm):
        def forward(self, input):
            return 2 * super().forward(input)

    class Renamed(nn.LayerNorm):
        pass

    model = nn.Sequential(Own(4), Renamed(4))
    nt.convert(model, {Renamed: nt.LayerNorm})
    assert [type(m) for m in model] == [Own, nt.LayerNorm]
    nt.revert(model)
    assert [type(m) for m in model] == [Own, Renamed]
    with pytest.raises(TypeError, match="classes: expected subclasses of torch"):
        nt.convert(model, {"LayerNorm": nt.LayerNorm})


def same_before_and_after(model, *given, count, **kwargs):
    """Logits and gradients of a model before `convert`, after it, and after `revert`."""
    state = copy.deepcopy(model.state_dict())

    def step():
        model.load_state_dict(state)
        model.zero_grad()
        y = model(*given, **kwargs)
        y = getattr(y, "last_hidden_state", y)
        # A loss that the last norm does not make a constant.
        y.mul(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return {"y": y.detach(), **grads, **copy.deepcopy(dict(model.named_buffers()))}

    before = step()
    assert nt.convert(model) is model
    assert len(norms(model)) == count
    assert list(model.state_dict()) == list(state)
    after = step()
    nt.revert(model)
    assert not norms(model)
    again = step()
    # A bias before a batch norm has no gradient but rounding errors: smaller than 1e-3 of the
    # largest is measured against that.
    least = 1e-3 * max(float(values.double().norm()) for values in before.values())
    for name, expected in before.items():
        assert torch.equal(again[name], expected), name
        error = (after[name].double() - expected.double()).norm()
        assert error <= 1e-5 * max(float(expected.double().norm()), least), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "count", "options"),
    [
        ("resnet18", 20, {}),
        ("convnext_atto", 10, {"depths": (1, 1, 2, 1)}),
        ("vit_tiny_patch16_224", 9, {"img_size": 64, "depth": 4}),
        ("resnetv2_50", 13, {"layers": (1, 1, 1, 1)}),
        ("tinynet_e", 31, {}),
    ],
)
def test_timm(name, count, options, training):
    torch.manual_seed(0)
    model = timm().create_model(name, num_classes=10, **options).train(training)
    x = torch.randn(2, 3, 64, 64)
    if name == "tinynet_e":
        # In float32, PyTorch's own gradients of this one are 2.6e-5 off those in float64.
        model, x = model.double(), x.double()
    same_before_and_after(model, x, count=count)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "Bert",
            {"vocab_size": 50, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0},
        ),
        ("ViT", {"image_size": 16, "patch_size": 4}),
        ("Llama", {"vocab_size": 50}),
    ],
)
def test_transformers(name, options, monkeypatch):
    # transformers takes the folder kernels/ of the checkout for the package of that name.
    monkeypatch.setitem(sys.modules, "kernels", None)
    library = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(library, f"{name}Config")(**sizes, intermediate_size=64, **options)
    model = getattr(library, f"{name}Model")(config).train()
    given = {"input_ids": torch.randint(0, 50, (2, 9))}
    if name == "ViT":
        given = {"pixel_values": torch.randn(2, 3, 16, 16)}
    same_before_and_after(model, count=5, **given)
