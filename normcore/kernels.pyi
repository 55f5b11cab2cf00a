"""The typed contract of normcore.kernels: what every backend offers, for type checkers only.

The package lives in kernels/ and is mapped to normcore.kernels when it is installed, which type
checkers do not follow. tests/test_backend.py holds these signatures against kernels/table.py.
"""

from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

class Family(Protocol):
    """The passes of one family; the three sizes are those of `table.SIZES`."""

    def moments(
        self, mean: Array, m2: Array, x: Array, a: int, b: int, c: int, threads: int, /
    ) -> None: ...
    def apply(
        self,
        y: Array,
        x: Array,
        mean: Array,
        var: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        a: int,
        b: int,
        c: int,
        threads: int,
        /,
    ) -> None: ...
    def forward(
        self,
        y: Array,
        mean: Array,
        var: Array,
        rstd: Array,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        a: int,
        b: int,
        c: int,
        threads: int,
        /,
    ) -> None: ...
    def reduce_grads(
        self,
        sum_dy: Array,
        sum_dy_xmu: Array,
        dy: Array,
        x: Array,
        mean: Array,
        a: int,
        b: int,
        c: int,
        threads: int,
        /,
    ) -> None: ...
    def apply_grads(
        self,
        dx: Array,
        dy: Array,
        x: Array,
        mean: Array,
        rstd: Array,
        weight: Array | None,
        sum_dy: Array,
        sum_dy_xmu: Array,
        count: float,
        a: int,
        b: int,
        c: int,
        threads: int,
        /,
    ) -> None: ...
    def backward(
        self,
        dx: Array,
        dweight: Array,
        dbias: Array,
        dy: Array,
        x: Array,
        mean: Array,
        rstd: Array,
        weight: Array | None,
        training: bool,
        a: int,
        b: int,
        c: int,
        threads: int,
        /,
    ) -> None: ...

class Running(Protocol):
    """The running statistics, after a training forward."""

    def update(
        self,
        running_mean: Array,
        running_var: Array,
        num_batches_tracked: Array | None,
        mean: Array,
        var: Array,
        momentum: float,
        count: int,
        skip_nonfinite: bool,
        /,
    ) -> None: ...

class _CythonRunning(Running, Protocol):
    def max_threads(self) -> int: ...

class _Cython(Protocol):
    nchw: Family
    nc: Family
    running: _CythonRunning
    isa: str
    def available(self) -> tuple[str, ...]: ...

class _Kernel(Protocol):
    family: str
    name: str
    arguments: tuple[str, ...]

class _Table(Protocol):
    SIZES: dict[str, tuple[str, ...]]
    KERNELS: tuple[_Kernel, ...]

cython: _Cython
table: _Table
nchw: Family
nc: Family
running: Running
