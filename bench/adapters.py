"""What the adapters add to a call of `normcore.functional`, in microseconds.

Run it by ``python -m bench.adapters``. Each module of `normcore.torch`, and each function of
`normcore.jax`, takes turns with what a user would write without the adapter: an autograd Function
(a `jax.pure_callback`) of their own that calls `normcore.functional` on arrays which they have at
hand, and converts nothing but what comes out. The difference is the adapter's: conversions, checks
and dispatch. A backward is a step less its forward.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

import normcore.functional as F
from bench import report
from bench.measure import interleave

Call = Callable[[], object]

SHAPE = (64, 64)
ROUNDS = 40
BOUND = 5.0
"""Microseconds that an adapter may add."""


def torch_calls() -> dict[str, tuple[Call, Call]]:
    """What is measured -> the adapter's call, and the one without it."""
    import torch
    from torch import Tensor, from_numpy, nn

    import normcore.torch as adapter

    channels = SHAPE[1]
    x, dy = torch.randn(SHAPE), torch.randn(SHAPE)
    x_array, dy_array = x.numpy(), dy.numpy()
    weight, bias = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    mean, var = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    found: dict[str, tuple[Call, Call]] = {}

    def own(forward: Callable[[], Any], backward: Callable[..., Any]) -> Any:
        class Own(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *given: Tensor) -> Tensor:
                y, *ctx.statistics = forward()
                ctx.save_for_backward(*given)
                return from_numpy(y)

            @staticmethod
            def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
                given = ctx.saved_tensors
                found = backward(*ctx.statistics)
                return tuple([from_numpy(values) for values in found[: len(given)]])

        return Own

    class Around(nn.Module):
        """A module with the parameters of another one around a Function or a function."""

        def __init__(self, of: nn.Module, function: Any, infer: Any) -> None:
            super().__init__()
            self.weight = of.weight
            self.bias = getattr(of, "bias", None)
            self.function, self.infer = function, infer

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                y: Tensor = from_numpy(self.infer())
                return y
            if self.bias is None:
                y = self.function.apply(x, self.weight)
            else:
                y = self.function.apply(x, self.weight, self.bias)
            return y

    def add(name: str, module: nn.Module, infer: Any, forward: Any, backward: Any) -> None:
        around = Around(module, own(forward, backward), infer)
        leaf = x.clone().requires_grad_()

        def inference(of: nn.Module) -> Call:
            of = copy.deepcopy(of).eval()

            def run() -> object:
                with torch.no_grad():
                    return of(x)

            return run

        def training(of: nn.Module) -> Call:
            return lambda: of(leaf)

        def step(of: nn.Module) -> Call:
            wanted = [leaf, *of.parameters()]
            return lambda: torch.autograd.grad(of(leaf), wanted, dy)

        for what, made in (("inference", inference), ("forward", training), ("step", step)):
            found[f"{name} {what}"] = made(module), made(around)

    add(
        "torch BatchNorm1d",
        adapter.BatchNorm1d(channels),
        lambda: F.batch_norm(x_array, mean, var, weight, bias),
        lambda: F.batch_norm_forward(x_array, weight, bias, mean, var),
        lambda *saved: F.batch_norm_backward(dy_array, x_array, *saved, weight),
    )
    add(
        "torch LayerNorm",
        adapter.LayerNorm(channels),
        lambda: F.layer_norm(x_array, (channels,), weight, bias),
        lambda: F.layer_norm_forward(x_array, (channels,), weight, bias),
        lambda *saved: F.layer_norm_backward(dy_array, x_array, *saved, (channels,), weight),
    )
    add(
        "torch RMSNorm",
        adapter.RMSNorm(channels),
        lambda: F.rms_norm(x_array, (channels,), weight),
        lambda: F.rms_norm_forward(x_array, (channels,), weight),
        lambda *saved: F.rms_norm_backward(dy_array, x_array, *saved, (channels,), weight),
    )
    return found


def jax_calls() -> dict[str, tuple[Call, Call]]:
    """As `torch_calls`, of compiled functions."""
    import jax
    import jax.numpy as jnp

    import normcore.jax as adapter

    channels = SHAPE[1]
    x, weight, bias = jnp.ones(SHAPE), jnp.ones(channels), jnp.zeros(channels)
    spec = jax.ShapeDtypeStruct(x.shape, x.dtype)

    def outside(*arrays: Any) -> Any:
        given, scale, shift = (np.asarray(values) for values in arrays)
        return F.layer_norm(given, (channels,), scale, shift)

    ours = jax.jit(lambda *arrays: adapter.layer_norm(arrays[0], channels, *arrays[1:]))
    own = jax.jit(lambda *arrays: jax.pure_callback(outside, spec, *arrays))

    def run(function: Any) -> Call:
        return lambda: jax.block_until_ready(function(x, weight, bias))

    return {"jax layer_norm inference": (run(ours), run(own))}


FRAMEWORKS: Mapping[str, Callable[[], dict[str, tuple[Call, Call]]]] = {
    "torch": torch_calls,
    "jax": jax_calls,
}


def added(calls: Mapping[str, tuple[Call, Call]], rounds: int) -> dict[str, tuple[float, float]]:
    """Microseconds of the adapter's call and of the other; of backwards instead of steps."""
    turns = {(name, i): run for name, pair in calls.items() for i, run in enumerate(pair)}
    for run in turns.values():  # the first backward of a process takes 0.2 s
        run()
    best = {key: timing.best * 1e6 for key, timing in interleave(turns, rounds).items()}
    found: dict[str, tuple[float, float]] = {}
    for name in calls:
        times = best[name, 0], best[name, 1]
        if name.endswith(" step"):
            name = name.removesuffix(" step")
            forward = found[f"{name} forward"]
            times = times[0] - forward[0], times[1] - forward[1]
            name = f"{name} backward"
        found[name] = times
    return found


def main() -> int:
    """Print a table; the exit status is 1 if an adapter adds more than the bound."""
    parser = argparse.ArgumentParser(prog="python -m bench.adapters", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns that everyone has")
    given = parser.parse_args()
    console = report.console()
    table = Table(
        title=f"one call on {SHAPE}, float32, microseconds; wanted: at most {BOUND:g} more",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("what")
    for heading in ("adapter", "a function of one's own", "adds"):
        table.add_column(heading, justify="right")
    worst = 0.0
    for name, calls in FRAMEWORKS.items():
        if find_spec(name) is None:
            console.print(f"without {name}: it is not installed")
            continue
        for what, (ours, own) in added(calls(), given.rounds).items():
            table.add_row(what, f"{ours:.1f}", f"{own:.1f}", f"{ours - own:.1f}")
            worst = max(worst, ours - own)
    console.print(table)
    return int(worst > BOUND)


if __name__ == "__main__":
    raise SystemExit(main())
