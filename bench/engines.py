"""Who computes: normcore's backends and the peers, one class each.

An engine turns a problem and a kernel of the table into a `Call`: a function of no arguments that
writes into preallocated outputs, and those outputs under the table's names. An engine that has no
such computation says None. The peers are written as a careful user of that library would:
`out=` wherever there is one, no copies, its own layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from normcore.kernels.table import Kernel

from bench.problem import EPS, Problem

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A computation, ready to be run any number of times."""

    run: Callable[[], object]
    outputs: Mapping[str, Array]
    """The table's output name -> array. May hold fewer than the kernel has."""


class Engine(Protocol):
    """What `bench.measure` needs to know of an engine."""

    name: str
    title: str
    ours: bool
    """Whether a wrong result is refused (normcore) or only shown beside the time (peers)."""
    instruction_set: str
    """What was chosen at import, where the engine says it."""

    def call(self, problem: Problem, kernel: Kernel) -> Call | None: ...


class Normcore:
    """One backend of normcore, straight at its kernels."""

    ours = True

    def __init__(self, backend: str, families: Any) -> None:
        self.name = backend
        self.title = f"normcore {backend}"
        self.families = families
        self.instruction_set = getattr(families, "isa", "")

    def call(self, problem: Problem, kernel: Kernel) -> Call:
        outputs = problem.outputs(kernel)
        given = {**problem.arguments, **outputs}
        function = getattr(getattr(self.families, kernel.family), kernel.name)
        return Call(partial(function, *(given[name] for name in kernel.arguments)), outputs)


class Textbook:
    """The textbook formulas in NumPy and the array's own float32."""

    name = "textbook"
    title = "NumPy textbook"
    ours = False
    instruction_set = ""

    def call(self, problem: Problem, kernel: Kernel) -> Call:
        case = problem.case
        axes = case.axes
        broadcast = [1] * len(case.shape)
        broadcast[case.axis] = case.channels
        x, dy = problem.shaped(problem.x), problem.shaped(problem.dy)
        given = problem.arguments
        weight, bias, mean, var, rstd, sum_dy, sum_dy_xmu = (
            given[name].astype(np.float32).reshape(broadcast)
            for name in ("weight", "bias", "mean", "var", "rstd", "sum_dy", "sum_dy_xmu")
        )
        count = np.float32(given["count"])
        out = problem.shaped(problem.stream())
        outputs = {
            name: out if values.size == out.size else np.empty(values.size, np.float32)
            for name, values in problem.outputs(kernel).items()
        }

        def normalized(mean: Array, var: Array) -> None:
            np.subtract(x, mean, out=out)
            np.multiply(out, weight / np.sqrt(var + np.float32(EPS)), out=out)
            np.add(out, bias, out=out)

        def moments() -> None:
            # One cell is one run of s elements in nchw, one channel in nc.
            cells = x.reshape(problem.sizes)
            cell_axis = 2 if problem.family == "nchw" else 1
            outputs["mean"][:] = cells.mean(cell_axis).reshape(-1)
            outputs["m2"][:] = cells.var(cell_axis).reshape(-1) * cells.shape[cell_axis]

        def apply() -> None:
            normalized(mean, var)

        def forward() -> None:
            batch_mean = x.mean(axes, keepdims=True)
            batch_var = x.var(axes, keepdims=True)
            normalized(batch_mean, batch_var)
            outputs["mean"][:] = batch_mean.reshape(-1)
            outputs["var"][:] = batch_var.reshape(-1)
            outputs["rstd"][:] = 1 / np.sqrt(outputs["var"] + np.float32(EPS))

        def reduce_grads() -> None:
            outputs["sum_dy"][:] = dy.sum(axes)
            outputs["sum_dy_xmu"][:] = (dy * (x - mean)).sum(axes)

        def gradient(x_hat: Array, sum_dy: Array, sum_dy_xhat: Array) -> None:
            np.multiply(x_hat, sum_dy_xhat / count, out=x_hat)
            np.subtract(dy, sum_dy / count, out=out)
            np.subtract(out, x_hat, out=out)
            np.multiply(out, weight * rstd, out=out)

        def apply_grads() -> None:
            gradient((x - mean) * rstd, sum_dy, sum_dy_xmu * rstd)

        def backward() -> None:
            x_hat = x - mean
            x_hat *= rstd
            dbias = dy.sum(axes, keepdims=True)
            dweight = (dy * x_hat).sum(axes, keepdims=True)
            outputs["dbias"][:] = dbias.reshape(-1)
            outputs["dweight"][:] = dweight.reshape(-1)
            gradient(x_hat, dbias, dweight)

        passes = (moments, apply, forward, reduce_grads, apply_grads, backward)
        return Call({found.__name__: found for found in passes}[kernel.name], outputs)


class Torch:
    """PyTorch eager, ATen's batch norm with out=, on the same memory."""

    name = "torch"
    title = "PyTorch eager"
    ours = False

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        self.instruction_set = torch.backends.cpu.get_cpu_capability()

    def call(self, problem: Problem, kernel: Kernel) -> Call | None:
        find = getattr(self, f"_{kernel.name}", None)
        if find is None:
            return None
        run, outputs = find(problem)
        inference_mode = self.torch.inference_mode

        def without_autograd() -> None:
            with inference_mode():
                run()

        return Call(without_autograd, outputs)

    def _tensor(self, problem: Problem, array: Array) -> Any:
        # torch's channel axis is 1; channels-last is a stride order there.
        return self.torch.from_numpy(np.moveaxis(problem.shaped(array), problem.case.axis, 1))

    def _vectors(self, problem: Problem, *names: str) -> list[Any]:
        given = problem.arguments
        return [self.torch.from_numpy(given[name].astype(np.float32)) for name in names]

    def _forward(self, problem: Problem) -> tuple[Callable[[], object], dict[str, Array]]:
        weight, bias, mean, rstd = self._vectors(problem, "weight", "bias", "mean", "rstd")
        run = partial(
            self.torch.ops.aten.native_batch_norm.out,
            *(self._tensor(problem, problem.x), weight, bias, None, None, True, 0.1, EPS),
            out=self._tensor(problem, problem.stream()),
            save_mean=mean,
            save_invstd=rstd,
        )
        return run, {"y": problem.stream(), "mean": mean.numpy(), "rstd": rstd.numpy()}

    def _apply(self, problem: Problem) -> tuple[Callable[[], object], dict[str, Array]]:
        weight, bias, mean, var = self._vectors(problem, "weight", "bias", "mean", "var")
        run = partial(
            self.torch.ops.aten.native_batch_norm.out,
            *(self._tensor(problem, problem.x), weight, bias, mean, var, False, 0.1, EPS),
            out=self._tensor(problem, problem.stream()),
            save_mean=self.torch.empty(0),
            save_invstd=self.torch.empty(0),
        )
        return run, {"y": problem.stream()}

    def _backward(self, problem: Problem) -> tuple[Callable[[], object], dict[str, Array]]:
        weight, mean, rstd = self._vectors(problem, "weight", "mean", "rstd")
        dweight, dbias = (self.torch.empty_like(weight) for _ in range(2))
        x, dy = self._tensor(problem, problem.x), self._tensor(problem, problem.dy)
        run = partial(
            self.torch.ops.aten.native_batch_norm_backward.out,
            *(dy, x, weight, None, None, mean, rstd, True, EPS, [True] * 3),
            out0=self._tensor(problem, problem.stream()),
            out1=dweight,
            out2=dbias,
        )
        found = {"dx": problem.stream(), "dweight": dweight.numpy(), "dbias": dbias.numpy()}
        return run, found


def _cython(threads: int) -> Engine:
    kernels = import_module("normcore.kernels.cython")
    return Normcore("cython", SimpleNamespace(**kernels.families, isa=kernels.isa))


def _numba(threads: int) -> Engine:
    families = {name: import_module(f"normcore.kernels.{name}") for name in ("nchw", "nc")}
    return Normcore("numba", SimpleNamespace(**families))


def _numpy(threads: int) -> Engine:
    kernels = import_module("normcore.reference_kernels")
    return Normcore("numpy", SimpleNamespace(**kernels.FAMILIES))


def _textbook(threads: int) -> Engine:
    return Textbook()


ENGINES: dict[str, tuple[Callable[[int], Engine], tuple[str, ...]]] = {
    "cython": (_cython, ("normcore.kernels.nchw_cy", "normcore.kernels.nc_cy")),
    "numba": (_numba, ("numba", "normcore.kernels.nchw", "normcore.kernels.nc")),
    "numpy": (_numpy, ()),
    "textbook": (_textbook, ()),
    "torch": (Torch, ("torch",)),
}
"""Name -> how to make it, and the modules without which it is not there."""


def available(names: list[str], threads: int) -> tuple[list[Engine], dict[str, str]]:
    """Engines that are installed here, and why the others are not."""
    found: list[Engine] = []
    missing: dict[str, str] = {}
    for name in names:
        make, modules = ENGINES[name]
        absent = [module for module in modules if find_spec(module) is None]
        if absent:
            missing[name] = f"{absent[0]} is not installed"
        else:
            found.append(make(threads))
    return found, missing
