"""Who computes: normcore's backends, their rivals, and the peers (`bench.peers`).

An engine turns a problem and a task into a `Call`: a function of no arguments that writes into
preallocated outputs, and those outputs under the table's names. An engine that has no such
computation says None.

Some promises are about normcore against itself: the same kernel on float32 arrays (`InFloat32`),
a plain kernel with NumPy around it (`bench.unfused`). Those are engines too, so that they have
their turns in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from normcore.kernels.table import PASSES, Kernel

from bench.problem import Problem
from bench.tasks import Task

Array = np.ndarray[Any, Any]

REFERENCE_ELEMENTS = 2_000_000
"""The numpy backend takes seconds beyond: it would be most of the run's time."""


@dataclass(frozen=True, slots=True)
class Call:
    """A computation, ready to be run any number of times."""

    run: Callable[[], object]
    outputs: Mapping[str, Array]
    """The table's output name -> array. May hold fewer than the task has."""
    read: Callable[[Any], Mapping[str, Array]] | None = None
    """What else came out, from what `run` returned: of peers that allocate."""
    width: int = 1
    """How many times the case's bytes it moves."""


class Engine(Protocol):
    """What `bench.measure` needs to know of an engine."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def ours(self) -> bool:
        """Whether a wrong result is refused (normcore) or only shown beside the time (peers)."""

    @property
    def instruction_set(self) -> str:
        """What was chosen at import, where the engine says it."""

    def call(self, problem: Problem, task: Task) -> Call | None: ...


class Normcore:
    """One backend of normcore, straight at its kernels."""

    ours = True

    def __init__(self, backend: str, families: Any, most: float = np.inf) -> None:
        self.name = backend
        self.title = f"normcore {backend}"
        self.families = families
        self.instruction_set = getattr(families, "isa", "")
        self.most = most
        """Elements of the largest case that it takes part in."""

    def kernel(self, kernel: Kernel, given: Mapping[str, Any]) -> Callable[[], object]:
        """A kernel on arguments by name."""
        function = getattr(getattr(self.families, kernel.family), kernel.name)
        return partial(function, *(given[name] for name in kernel.arguments))

    def call(self, problem: Problem, task: Task) -> Call | None:
        if problem.case.elements > self.most:
            return None
        outputs: dict[str, Array | None] = {}
        runs = []
        for kernel in task.kernels:
            given = problem.given(**({"dy": outputs["g"]} if "g" in outputs else {}))
            outputs |= problem.outputs(kernel)
            runs.append(self.kernel(kernel, {**given, **outputs}))
        found = {name: out for name in task.outputs if (out := outputs[name]) is not None}
        return Call(runs[0] if len(runs) == 1 else partial(_each, runs), found)


class InFloat32:
    """A backend on the same numbers as float32 arrays, beside the cases of halves."""

    ours = True
    instruction_set = ""

    def __init__(self, engine: Normcore) -> None:
        self.engine = engine
        self.name = f"{engine.name} float32"
        self.title = f"{engine.name} in float32"

    def call(self, problem: Problem, task: Task) -> Call | None:
        if problem.case.storage.itemsize != 2:
            return None
        call = self.engine.call(problem.in_float32, task)
        return None if call is None else replace(call, width=2)


def _each(runs: Sequence[Callable[[], object]]) -> None:
    for run in runs:
        run()


def _cython(threads: int) -> Engine:
    kernels = import_module("normcore.kernels.cython")
    return Normcore("cython", SimpleNamespace(**kernels.families, isa=kernels.isa))


def _numba(threads: int) -> Engine:
    kernels = import_module("normcore.numba_kernels")
    families = {family: kernels.passes(family) for family in PASSES}
    return Normcore("numba", SimpleNamespace(**families))


def _numpy(threads: int) -> Engine:
    kernels = import_module("normcore.reference_kernels")
    return Normcore("numpy", SimpleNamespace(**kernels.FAMILIES), REFERENCE_ELEMENTS)


def _peer(module: str, name: str) -> Callable[[int], Engine]:
    """How to make a peer that is told how many threads it may have."""

    def make(threads: int) -> Engine:
        found: Engine = getattr(import_module(f"bench.peers.{module}"), name)(threads)
        return found

    return make


ENGINES: dict[str, tuple[Callable[[int], Engine], tuple[str, ...]]] = {
    "cython": (_cython, tuple(f"normcore.kernels.{family}_cy" for family in PASSES)),
    "numba": (_numba, ("numba",)),
    "numpy": (_numpy, ()),
    "textbook": (_peer("textbook", "Textbook"), ()),
    "torch": (_peer("pytorch", "Torch"), ("torch",)),
    "compiled": (_peer("compiled", "Compiled"), ("torch",)),
    "onednn": (_peer("onednn", "OneDnn"), ("torch",)),
    "onnxruntime": (_peer("onnx_runtime", "OnnxRuntime"), ("onnx", "onnxruntime")),
    "jax": (_peer("jax_xla", "Jax"), ("jax",)),
}
"""Name -> how to make it, and the modules without which it is not there."""
PEERS = ("torch", "compiled", "onednn", "onnxruntime", "jax", "textbook")
SLOW = ("compiled",)
"""Three seconds of compilation per case: unless named, only where something is promised."""
COMPILED = ("cython", "numba")


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


def with_rivals(engines: Sequence[Engine]) -> list[Engine]:
    """The engines, and what the compiled ones of normcore are held against."""
    from bench.unfused import Unfused

    compiled = [
        engine for engine in engines if isinstance(engine, Normcore) and engine.name in COMPILED
    ]
    rivals = [rival(engine) for engine in compiled for rival in (InFloat32, Unfused)]
    return [*engines, *rivals]
