"""The Numba kernels as a backend: one compilation per dtype of x, safe threads.

Imported only when Numba is wanted, because importing Numba costs 0.2 s.

Numba compiles a kernel once per combination of argument types, at 1 to 20 s each. So that there
is one combination per dtype of x, arrays are passed flat, read-only arrays through a writeable
alias (Numba types them apart; no kernel writes to an input), statistics and parameters as float64
arrays, also where weight or bias is None, and every other array that is absent as one of length 0.

Numba knows neither float16 nor bfloat16: their bits are passed, as int16 and uint16.

All that is Python, and takes 3 us of a small call. The first call of a kernel with a dtype goes
this way and compiles; plain arguments of later ones go past it (`normcore.numba_calls`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from inspect import Parameter, Signature
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numba import threading_layer  # type: ignore[attr-defined]  # exported without __all__

from . import numba_calls
from .kernels import cols, nc, nchw, rows, running, table
from .numba_code import is_possible
from .plain import Calls
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
_KINDS = {
    **dict.fromkeys(_ELEMENTS, numba_calls.ELEMENTS),
    **dict.fromkeys(_STATISTICS, numba_calls.STATISTICS),
    **dict.fromkeys(("dweight", "dbias"), numba_calls.GRADIENT),
    **dict.fromkeys(("eps", "r_max", "d_max", "count"), numba_calls.FLOAT),
    "mask": numba_calls.MASK,
    "weight": numba_calls.WEIGHT,
    "bias": numba_calls.BIAS,
    "training": numba_calls.FLAG,
}


def _kind(name: str, family: str) -> str:
    # r is a statistic of renorm, and the rows of rows.
    return numba_calls.SIZE if name in table.SIZES[family] else _KINDS.get(name, numba_calls.SIZE)


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
    return _flat(x if x.itemsize != 2 else x.view(numba_calls.BITS[x.dtype.name]))


def _numbers(values: Array) -> Array:
    return _flat(values if values.dtype == _FLOAT64 else values.astype(_FLOAT64))


class _Layer:
    """Numba's threading layer."""

    safe = False
    """Is it known to take concurrent calls? It is what it is from the first parallel call on."""

    def look(self) -> bool:
        """Whether it is safe, which asking costs 0.5 us."""
        with suppress(ValueError):  # no parallel call yet
            self.safe = cast(str, threading_layer()) != "workqueue"
        return self.safe


_layer = _Layer()


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
        self.names, self.name, self.family = names, kernel.name, kernel.family
        self.kinds = tuple(_kind(name, kernel.family) for name in names)
        self.tried: set[tuple[np.dtype[Any], bool]] = set()
        self.entries: list[Callable[..., bool]] = []
        """Of the serial and of the parallel twin, for each dtype of x that came."""

    def __call__(self, *arguments: Any) -> None:
        for entry in self.entries:
            if entry(*arguments):
                return
        self._convert(arguments)
        self._make_entry(arguments[self.x].dtype, arguments[-1] == 1)

    def _convert(self, arguments: tuple[Any, ...]) -> None:
        given, x = list(arguments), _elements(arguments[self.x])
        for i, kind in enumerate(self.kinds):
            if kind == numba_calls.ELEMENTS:
                given[i] = x[:0] if given[i] is None else _elements(given[i])
            elif kind == numba_calls.MASK:
                given[i] = _NO_MASK if given[i] is None else _flat(given[i])
            elif kind == numba_calls.STATISTICS:
                given[i] = _NO_NUMBERS if given[i] is None else _numbers(given[i])
            elif kind in numba_calls.DEFAULTS:
                default = numba_calls.DEFAULTS[kind]
                length = arguments[self.weights]
                given[i] = np.full(length, default) if given[i] is None else _numbers(given[i])
            elif kind == numba_calls.GRADIENT:
                given[i] = np.empty(given[i].size)
        self._run(given)
        for i, kind in enumerate(self.kinds):
            if kind == numba_calls.GRADIENT:
                arguments[i][...] = given[i].reshape(arguments[i].shape)

    def _run(self, given: list[Any]) -> None:
        if given[-1] == 1:  # in a forked child always
            self.serial(*given)
        elif _layer.safe or _layer.look():
            self.parallel(*given)
        elif _parallel.acquire(blocking=False):
            try:
                self.parallel(*given)
            finally:
                _parallel.release()
        else:
            self.serial(*given)

    def _make_entry(self, dtype: np.dtype[Any], serial: bool) -> None:
        usable = is_possible() and (serial or _layer.safe)
        if (dtype, serial) in self.tried or not usable:
            return
        self.tried.add((dtype, serial))
        kernel, lengths = self.serial if serial else self.parallel, self.names[self.weights]
        twin = numba_calls.Twin(kernel, self.names, self.kinds, dtype, lengths, serial)
        self.entries.append(numba_calls.entry(twin))
        if self.family in _plain_passes and self.name in ("apply", "forward", "backward"):
            _plain_passes[self.family].add(twin, self.name)

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


_plain_passes = {family: numba_calls.Passes(family) for family in ("nchw", "nc", "rows")}
"""For the compiled plain calls, where there are any."""
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


def plain_calls(threads: Callable[[int], int], serial_below: int) -> Any:
    """The plain calls of these kernels: compiled ones where Cython was built."""
    try:
        from .kernels import cython
    except ImportError:
        return Calls()
    return cython.Calls({**_plain_passes, "running": cython.running}, threads, serial_below)


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
