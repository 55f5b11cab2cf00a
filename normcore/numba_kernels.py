"""The Numba kernels as a backend: one compilation per dtype of x, safe threads.

Imported only when Numba is wanted, because importing Numba costs 0.2 s.

Numba compiles a kernel once per combination of argument types, at 1 to 20 s each. So that there
is one combination per dtype of x, arrays are passed flat, read-only arrays through a writeable
alias (Numba types them apart; no kernel writes to an input), statistics and parameters as float64
arrays, also where weight or bias is None, and every other array that is absent as one of length 0.

Numba knows neither float16 nor bfloat16: their bits are passed, as int16 and uint16.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from inspect import Parameter, Signature
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numba import threading_layer  # type: ignore[attr-defined]  # exported without __all__

from .kernels import cols, nc, nchw, rows, running, table
from .reference_kernels import FAMILIES

Array = np.ndarray[Any, Any]

# One parallel call at a time where Numba's threading layer is workqueue, which aborts the process
# on concurrent calls; also until the first parallel call has shown which layer it is.
_parallel = threading.Lock()

_ELEMENTS = ("x", "y", "dy", "dx", "g", "residual", "addend", "total")
_STATISTICS = (
    *("mean", "m2", "var", "rstd", "r", "d", "sum_dy", "sum_dy_xmu"),
    *("running_mean", "running_var"),
)
_FLOAT64 = np.dtype(np.float64)
_NO_MASK, _NO_NUMBERS = np.empty(0, np.uint8), np.empty(0)
_BITS = {"float16": np.int16, "bfloat16": np.uint16}


class _Alias:
    """Memory of a read-only array, for an array that Numba types like all others."""

    def __init__(self, x: Array) -> None:
        pointer, _ = x.__array_interface__["data"]
        self.__array_interface__ = {**x.__array_interface__, "data": (pointer, False)}
        self.owner = x


def _flat(x: Array) -> Array:
    alias = x if x.flags.writeable else np.asarray(_Alias(x))
    return alias if alias.ndim == 1 else alias.reshape(-1)


def _elements(x: Array) -> Array:
    return _flat(x if x.itemsize != 2 else x.view(_BITS[x.dtype.name]))


def _numbers(values: Array) -> Array:
    return _flat(values if values.dtype == _FLOAT64 else values.astype(_FLOAT64))


def _layer_is_safe() -> bool:
    try:
        return cast(str, threading_layer()) != "workqueue"
    except ValueError:  # no parallel call yet
        return False


class _Kernel:
    """A pass of a Numba family, called with the arguments of the table."""

    def __init__(self, module: Any, kernel: Any) -> None:
        self.parallel = getattr(module, kernel.name)
        self.serial = self.parallel.serial
        self.dtypes: set[np.dtype[Any]] = set()
        """Dtypes of x that `compile` has compiled for."""
        names = kernel.arguments
        self.x = names.index("x")
        self.weights = names.index("m" if kernel.family in ("rows", "cols") else "c")
        """The size that says how long weight is."""
        self.elements = [i for i, name in enumerate(names) if name in _ELEMENTS]
        self.masks = [i for i, name in enumerate(names) if name == "mask"]
        statistics = set(_STATISTICS) - set(table.SIZES[kernel.family])  # r is also a size
        self.statistics = [i for i, name in enumerate(names) if name in statistics]
        self.parameters = [
            (i, float(name == "weight"))
            for i, name in enumerate(names)
            if name in ("weight", "bias")
        ]
        self.gradients = [i for i, name in enumerate(names) if name in ("dweight", "dbias")]

    def __call__(self, *arguments: Any) -> None:
        given = list(arguments)
        for i in self.elements:
            if given[i] is not None:
                given[i] = _elements(given[i])
        for i in self.elements:
            if given[i] is None:
                given[i] = given[self.x][:0]
        for i in self.masks:
            given[i] = _NO_MASK if given[i] is None else _flat(given[i])
        for i in self.statistics:
            given[i] = _NO_NUMBERS if given[i] is None else _numbers(given[i])
        for i, default in self.parameters:
            if given[i] is None:
                given[i] = np.full(given[self.weights], default)
            else:
                given[i] = _numbers(given[i])
        for i in self.gradients:
            given[i] = np.empty(given[i].size)
        self._run(given)
        for i in self.gradients:
            arguments[i][...] = given[i].reshape(arguments[i].shape)

    def _run(self, given: list[Any]) -> None:
        if given[-1] == 1:  # in a forked child always
            self.serial(*given)
        elif _layer_is_safe():
            self.parallel(*given)
        elif _parallel.acquire(blocking=False):
            try:
                self.parallel(*given)
            finally:
                _parallel.release()
        else:
            self.serial(*given)

    def compile(self, *arguments: Any) -> None:
        """Compile both twins for the dtype of x, by calling them."""
        self(*arguments[:-1], 1)
        self(*arguments[:-1], 2)
        self.dtypes.add(arguments[self.x].dtype)

    def unless_it_waits(self, fallback: Callable[..., None]) -> Callable[..., None]:
        """The kernel for the dtypes that it was compiled for, else `fallback`."""

        def call(*arguments: Any) -> None:
            compiled = arguments[self.x].dtype in self.dtypes
            (self if compiled else fallback)(*arguments)

        return call


class _ActivationBackward:
    """A pass that Numba has in two: the gradient before the activation, then the backward.

    The halves are computed as float32, whose kernels take what lies between the two unrounded: a
    fused kernel would be another 10 s of compilation per dtype.
    """

    def __init__(self, kernel: Any) -> None:
        self.names = kernel.arguments
        self.__signature__ = Signature(
            [Parameter(name, Parameter.POSITIONAL_ONLY) for name in self.names]
        )
        self.family = kernel.family
        self.first = _kernels[kernel.family, "activation_grads"]
        self.second = _kernels[kernel.family, "backward"]

    def __call__(self, *arguments: Any) -> None:
        given = dict(zip(self.names, arguments, strict=True))
        dx, g, mask = given["dx"], given["g"], given["mask"]
        working = {**given, "addend": None}
        dtype = _computed(dx.dtype)
        for name in ("dy", "x", "residual"):
            if given[name] is not None:
                working[name] = given[name].astype(dtype, copy=False)
        if dtype != dx.dtype:
            working["dx"] = np.empty(dx.shape, dtype)
        working["g"] = g if g is not None and dtype == dx.dtype else np.empty(dx.shape, dtype)
        self._run(self.first, "activation_grads", working)
        self._run(self.second, "backward", {**working, "dy": working["g"]})
        with np.errstate(all="ignore"):  # beyond the range of halves is infinite
            if working["dx"] is not dx:
                dx[...] = working["dx"]
            if g is not None and working["g"] is not g:
                g[...] = working["g"]
        if g is not None and mask is not None:
            shape, kept = FAMILIES[self.family].masked(
                mask, given["rstd"].size, *(given[name] for name in table.SIZES[self.family])
            )
            np.copyto(g.reshape(shape), 0, where=~kept)

    def _run(self, kernel: _Kernel, name: str, values: dict[str, Any]) -> None:
        kernel(*(values[key] for key in _arguments[self.family, name]))

    def unless_it_waits(self, fallback: Callable[..., None]) -> Callable[..., None]:
        """As `_Kernel.unless_it_waits`, of both parts."""

        def call(*arguments: Any) -> None:
            dtype = _computed(arguments[0].dtype)
            compiled = dtype in self.first.dtypes and dtype in self.second.dtypes
            (self if compiled else fallback)(*arguments)

        return call


def _computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


def _update(
    running_mean: Array, running_var: Array, num_batches_tracked: Array | None, *rest: Any
) -> None:
    count = None if num_batches_tracked is None else num_batches_tracked.reshape(-1)
    running.update(running_mean, running_var, count, *rest)


_families = {"nchw": nchw, "nc": nc, "rows": rows, "cols": cols}
_arguments = {(kernel.family, kernel.name): kernel.arguments for kernel in table.KERNELS}
COMPOSED = ("activation_backward",)
"""Passes that are made of compiled ones."""
_kernels = {
    (kernel.family, kernel.name): _Kernel(_families[kernel.family], kernel)
    for kernel in table.KERNELS
    if kernel.family in _families and kernel.name not in COMPOSED
}
_composed = {
    (kernel.family, kernel.name): _ActivationBackward(kernel)
    for kernel in table.KERNELS
    if kernel.name in COMPOSED
}
_passes: dict[tuple[str, str], Any] = {**_kernels, **_composed}
update = SimpleNamespace(update=_update)


def passes(family: str) -> Any:
    """The kernels of one family, by name."""
    return SimpleNamespace(**{name: call for (of, name), call in _passes.items() if of == family})


def compiled_passes(family: str, fallback: Any) -> Any:
    """The kernels of one family for the dtypes that `warm` compiled, else those of `fallback`."""
    return SimpleNamespace(
        **{
            name: call.unless_it_waits(getattr(fallback, name))
            for (of, name), call in _passes.items()
            if of == family
        }
    )


def warm(dtype: np.dtype[Any]) -> None:
    """Compile every kernel for x of one dtype."""
    sizes = {"nchw": (1, 1, 8), "nc": (1, 8, 1), "rows": (1, 8), "cols": (1, 8, 1)}
    absent = dict.fromkeys(("residual", "mask", "weight", "bias"))
    for kernel in table.KERNELS:
        if kernel.family not in sizes or kernel.name in COMPOSED:
            continue
        values: dict[str, Any] = {"eps": 1e-5, "activation": 0, "training": True, "count": 8.0}
        values |= {"r_max": 3.0, "d_max": 5.0, "threads": 1, **absent}
        values |= {name: np.ones(8, dtype) for name in _ELEMENTS if name not in absent}
        values |= {name: np.ones(1) for name in _STATISTICS}
        length = 8 if kernel.family in ("rows", "cols") else 1
        values |= {name: np.empty(length) for name in ("dweight", "dbias")}
        values |= zip(table.SIZES[kernel.family], sizes[kernel.family], strict=True)
        _kernels[kernel.family, kernel.name].compile(*(values[name] for name in kernel.arguments))
    parameter = dtype if dtype.itemsize > 2 else np.dtype(np.float32)
    for tracked in (None, np.array(0)):
        update.update(
            *(np.ones(1, parameter), np.ones(1, parameter), tracked, np.ones(1), np.ones(1)),
            *(0.1, 8, False),
        )
