"""The Numba kernels as a backend: flat arrays, safe threads, no surprise compilations.

Imported only when Numba is wanted, because importing Numba costs 0.2 s.

Numba compiles a kernel once per combination of argument types. Two things keep those few: arrays
are passed flat, and read-only arrays through a writeable alias (Numba types them apart; no kernel
writes to an input).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numba import threading_layer  # type: ignore[attr-defined]

from . import backend
from .kernels import nc, nchw, running, table

Array = np.ndarray[Any, Any]

# One parallel call at a time where Numba's threading layer is workqueue, which aborts the process
# on concurrent calls; also until the first parallel call has shown which layer it is.
_parallel = threading.Lock()


class _Alias:
    """Memory of a read-only array, for an array that Numba types like all others."""

    def __init__(self, x: Array) -> None:
        pointer, _ = x.__array_interface__["data"]
        self.__array_interface__ = {**x.__array_interface__, "data": (pointer, False)}
        self.owner = x


def _flat(argument: Any) -> Any:
    if not isinstance(argument, np.ndarray):
        return argument
    if not argument.flags.writeable:
        argument = np.asarray(_Alias(argument))
    return argument.reshape(-1)


def _types(arguments: Sequence[Any]) -> tuple[str, ...]:
    """What tells one compilation of a kernel from another."""
    return tuple(
        argument.dtype.char if isinstance(argument, np.ndarray) else type(argument).__name__
        for argument in arguments
    )


class _Kernel:
    """A Numba kernel, called with the arguments of the table."""

    def __init__(self, module: Any, kernel: Any) -> None:
        self.names = kernel.arguments
        self.threaded = "threads" in kernel.arguments
        self.parallel = getattr(module, kernel.name)
        self.serial = self.parallel.serial if self.threaded else self.parallel
        self.compiled: set[tuple[str, ...]] = set()

    def __call__(self, *arguments: Any) -> None:
        arguments = tuple(map(_flat, arguments))
        if not self.threaded or arguments[-1] == 1 or backend.is_forked():
            self.serial(*arguments)
        elif _layer_is_safe():
            self.parallel(*arguments)
        elif _parallel.acquire(blocking=False):
            try:
                self.parallel(*arguments)
            finally:
                _parallel.release()
        else:
            self.serial(*arguments)

    def compile(self, *arguments: Any) -> None:
        """Compile for the types of these arguments, the serial twin and the parallel one."""
        self(*arguments)
        if self.threaded:
            self(*arguments[:-1], 2)
        self.compiled.add(_types(arguments))

    def unless_it_waits(self, fallback: Callable[..., None]) -> Callable[..., None]:
        """The kernel for the types that it was compiled for, else `fallback`."""

        def call(*arguments: Any) -> None:
            (self if _types(arguments) in self.compiled else fallback)(*arguments)

        return call


def _layer_is_safe() -> bool:
    try:
        return cast(str, threading_layer()) != "workqueue"
    except ValueError:  # no parallel call yet
        return False


_modules = {"nchw": nchw, "nc": nc, "running": running}
_kernels = {
    (kernel.family, kernel.name): _Kernel(_modules[kernel.family], kernel)
    for kernel in table.KERNELS
}


def passes(family: str) -> Any:
    """The kernels of one family, by name."""
    return SimpleNamespace(**{name: call for (of, name), call in _kernels.items() if of == family})


def compiled_passes(family: str, fallback: Any) -> Any:
    """The kernels of one family for the types that `warm` compiled, else those of `fallback`."""
    return SimpleNamespace(
        **{
            name: call.unless_it_waits(getattr(fallback, name))
            for (of, name), call in _kernels.items()
            if of == family
        }
    )


def warm(dtype: np.dtype[Any]) -> None:
    """Compile every kernel for x of one dtype, with parameters of that dtype and with none."""
    sizes = {"nchw": (1, 1, 8), "nc": (1, 8, 1), "running": ()}
    scalars = {"eps": 1e-5, "momentum": 0.1, "training": True, "skip_nonfinite": False}
    for (family, _), call in _kernels.items():
        for given in (True, False):
            values: dict[str, Any] = dict(scalars)
            for name in ("y", "x", "dy", "dx"):
                values[name] = np.ones(8, dtype)
            for name in ("mean", "var", "rstd", "m2", "sum_dy", "sum_dy_xmu"):
                values[name] = np.ones(1)
            for name in ("running_mean", "running_var", "dweight", "dbias"):
                values[name] = np.ones(1, dtype)
            for name in ("weight", "bias"):
                values[name] = np.ones(1, dtype) if given else None
            values["num_batches_tracked"] = np.array(0) if given else None
            values["count"] = 8 if family == "running" else 8.0
            values |= dict(zip(table.SIZES[family], sizes[family], strict=True), threads=1)
            call.compile(*(values[name] for name in call.names))
