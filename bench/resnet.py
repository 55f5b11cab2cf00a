"""A training step and an inference of ResNet-18 in PyTorch, before and after `convert`.

Run it by ``python -m bench.resnet``. Three networks of the same weights take turns: one of
`torch.nn`, the same converted by `normcore.torch.convert`, and one whose blocks say
``BatchNorm2d(c, activation="relu")`` and ``bn(x, residual)``, so that activations and residuals are
fused into the norms. Logits and gradients are compared before anything is timed. The best of all
rounds counts. Convolutions are PyTorch's in all of them, and take most of the time: the norms'
own share is printed too, measured by taking them out.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor, nn

import normcore as nc
from normcore.torch import BatchNorm2d, convert

WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, fused: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = _norm(outputs, fused), _norm(outputs, fused)
        self.fused = fused
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))
            if fused:
                convert(self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return self.bn2(self.conv2(self.bn1(self.conv1(x))), self.shortcut(x))
        y = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(y)).add_(self.shortcut(x)))


def _norm(channels: int, fused: bool) -> nn.Module:
    return BatchNorm2d(channels, activation="relu") if fused else nn.BatchNorm2d(channels)


def resnet18(fused: bool = False) -> nn.Sequential:
    """The network of He et al. (2015), for 10 classes."""
    stem: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), _norm(64, fused)]
    if not fused:
        stem.append(nn.ReLU(inplace=True))
    inputs = (64, *WIDTHS)
    blocks = [
        Block(inputs[i + first], width, 2 if first == 0 and i else 1, fused)
        for i, width in enumerate(WIDTHS)
        for first in (0, 1)
    ]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks, *pool)


def networks() -> dict[str, nn.Sequential]:
    """The three, with the same weights."""
    torch.manual_seed(0)
    plain = resnet18()
    fused = resnet18(fused=True)
    for ours, theirs in zip(_layers(fused), _layers(plain), strict=True):
        ours.load_state_dict(theirs.state_dict())
    converted = copy.deepcopy(plain)
    convert(converted)
    return {"torch.nn": plain, "converted": converted, "fused": fused}


def _layers(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    return [module for module in model.modules() if isinstance(module, kinds)]


def step(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """Forward, loss, backward; the logits."""
    model.zero_grad()
    logits: Tensor = model(x)
    nn.functional.cross_entropy(logits, classes).backward()
    return logits.detach()


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest distance of two tensors, relative to the norm of the expected one."""
    return max(
        float((a - b).norm() / b.norm().clamp(min=1e-6))
        for a, b in zip(found, expected, strict=True)
    )


def results(model: nn.Module, x: Tensor, classes: Tensor) -> list[Tensor]:
    """Logits and gradients."""
    logits = step(model, x, classes)
    return [logits, *(p.grad.clone() for p in _parameters(model) if p.grad is not None)]


def _parameters(model: nn.Module) -> list[Tensor]:
    return [values for layer in _layers(model) for values in layer.parameters()]


def best_of(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of the best run of each, in turns."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = perf_counter()
            run()
            found[name] = min(found[name], perf_counter() - start)
    return found


def without_norms(model: nn.Sequential) -> nn.Sequential:
    """A copy in which the norms do nothing."""
    bare = copy.deepcopy(model)
    for module in bare.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return bare


def table(title: str, seconds: dict[str, float]) -> str:
    """One line for each network."""
    bare = seconds.pop("no norms")
    norms = {name: total - bare for name, total in seconds.items()}
    lines = [f"{title}: {bare * 1e3:.1f} ms without norms"]
    for name, total in seconds.items():
        share = f"norms {norms[name] * 1e3:6.1f} ms"
        if norms[name] > 0:
            share += f" ({norms['torch.nn'] / norms[name]:.1f} x)"
        gain = seconds["torch.nn"] / total
        lines.append(f"  {name:<10} {total * 1e3:7.1f} ms ({gain:.2f} x)  {share}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.resnet", description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=112, help="height and width of the images")
    parser.add_argument("--threads", type=int, default=nc.get_num_threads())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--channels-last", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    nc.set_num_threads(given.threads)
    layout = torch.channels_last if given.channels_last else torch.contiguous_format
    models = {name: m.to(memory_format=layout) for name, m in networks().items()}
    x = torch.randn(given.batch, 3, given.size, given.size).to(memory_format=layout)
    classes = torch.randint(10, (given.batch,))
    print(
        f"ResNet-18, {given.batch} images of {given.size} x {given.size}, float32, "
        f"{'channels last' if given.channels_last else 'contiguous'}, {given.threads} threads, "
        f"PyTorch {torch.__version__}, best of {given.rounds}"
    )
    expected = results(models["torch.nn"], x, classes)
    for name, model in list(models.items())[1:]:
        off = difference(results(model, x, classes), expected)
        print(f"  {name}: logits and gradients are {off:.1e} of their norm from torch.nn's")
    models["no norms"] = without_norms(models["torch.nn"])
    training = {name: (lambda m=m: step(m, x, classes)) for name, m in models.items()}
    print(table("training step", best_of(training, given.rounds)))
    for model in models.values():
        model.eval()
    inference = {name: (lambda m=m: m(x)) for name, m in models.items()}
    with torch.inference_mode():
        print(table("inference", best_of(inference, 2 * given.rounds)))


if __name__ == "__main__":
    main()
