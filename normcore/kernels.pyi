"""The typed contract of normcore.kernels: what every backend offers, for type checkers only.

The package lives in kernels/ and is mapped to normcore.kernels when it is installed, which type
checkers do not follow. tests/test_backend.py holds these signatures against kernels/table.py.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

class Channels(Protocol):
    """The passes of nchw and nc; the three sizes are those of `table.SIZES`."""

    def moments(
        self,
        mean: Array,
        m2: Array,
        x: Array,
        first: int,
        second: int,
        third: int,
        threads: int,
        /,
    ) -> None: ...
    def apply(
        self,
        y: Array,
        x: Array,
        residual: Array | None,
        mean: Array,
        var: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        activation: int,
        first: int,
        second: int,
        third: int,
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
        residual: Array | None,
        mask: Array | None,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        activation: int,
        first: int,
        second: int,
        third: int,
        threads: int,
        /,
    ) -> None: ...
    def renorm(
        self,
        y: Array,
        mean: Array,
        var: Array,
        rstd: Array,
        r: Array,
        d: Array,
        x: Array,
        residual: Array | None,
        mask: Array | None,
        running_mean: Array,
        running_var: Array,
        r_max: float,
        d_max: float,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        activation: int,
        first: int,
        second: int,
        third: int,
        threads: int,
        /,
    ) -> None: ...
    def activation_grads(
        self,
        g: Array,
        dy: Array,
        x: Array,
        residual: Array | None,
        mean: Array,
        rstd: Array,
        weight: Array | None,
        bias: Array | None,
        activation: int,
        first: int,
        second: int,
        third: int,
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
        first: int,
        second: int,
        third: int,
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
        first: int,
        second: int,
        third: int,
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
        mask: Array | None,
        mean: Array,
        rstd: Array,
        weight: Array | None,
        training: bool,
        first: int,
        second: int,
        third: int,
        threads: int,
        /,
    ) -> None: ...
    def activation_backward(
        self,
        dx: Array,
        dweight: Array,
        dbias: Array,
        g: Array | None,
        dy: Array,
        x: Array,
        residual: Array | None,
        mask: Array | None,
        mean: Array,
        rstd: Array,
        weight: Array | None,
        bias: Array | None,
        activation: int,
        training: bool,
        first: int,
        second: int,
        third: int,
        threads: int,
        /,
    ) -> None: ...

class Cols(Protocol):
    """The passes of cols."""

    def forward(
        self,
        y: Array,
        mean: Array | None,
        rstd: Array,
        x: Array,
        residual: Array | None,
        mask: Array | None,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        activation: int,
        first: int,
        second: int,
        third: int,
        threads: int,
        /,
    ) -> None: ...
    def activation_grads(
        self,
        g: Array,
        dy: Array,
        x: Array,
        residual: Array | None,
        mean: Array | None,
        rstd: Array,
        weight: Array | None,
        bias: Array | None,
        activation: int,
        first: int,
        second: int,
        third: int,
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
        addend: Array | None,
        mask: Array | None,
        mean: Array | None,
        rstd: Array,
        weight: Array | None,
        first: int,
        second: int,
        third: int,
        threads: int,
        /,
    ) -> None: ...
    def activation_backward(
        self,
        dx: Array,
        dweight: Array,
        dbias: Array,
        g: Array | None,
        dy: Array,
        x: Array,
        residual: Array | None,
        mask: Array | None,
        mean: Array | None,
        rstd: Array,
        weight: Array | None,
        bias: Array | None,
        activation: int,
        first: int,
        second: int,
        third: int,
        threads: int,
        /,
    ) -> None: ...

class Rows(Protocol):
    """The passes of rows."""

    def forward(
        self,
        y: Array,
        mean: Array | None,
        rstd: Array,
        x: Array,
        residual: Array | None,
        mask: Array | None,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        activation: int,
        first: int,
        second: int,
        threads: int,
        /,
    ) -> None: ...
    def activation_grads(
        self,
        g: Array,
        dy: Array,
        x: Array,
        residual: Array | None,
        mean: Array | None,
        rstd: Array,
        weight: Array | None,
        bias: Array | None,
        activation: int,
        first: int,
        second: int,
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
        addend: Array | None,
        mask: Array | None,
        mean: Array | None,
        rstd: Array,
        weight: Array | None,
        first: int,
        second: int,
        threads: int,
        /,
    ) -> None: ...
    def activation_backward(
        self,
        dx: Array,
        dweight: Array,
        dbias: Array,
        g: Array | None,
        dy: Array,
        x: Array,
        residual: Array | None,
        mask: Array | None,
        mean: Array | None,
        rstd: Array,
        weight: Array | None,
        bias: Array | None,
        activation: int,
        first: int,
        second: int,
        threads: int,
        /,
    ) -> None: ...
    def add_forward(
        self,
        y: Array,
        total: Array,
        mean: Array | None,
        rstd: Array,
        x: Array,
        addend: Array,
        weight: Array | None,
        bias: Array | None,
        eps: float,
        first: int,
        second: int,
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
    families: dict[str, Any]
    running: _CythonRunning
    isa: str
    def available(self) -> tuple[str, ...]: ...
    def Calls(
        self, families: dict[str, Any], threads: Callable[[int], int], serial_below: int, /
    ) -> Any: ...

class _Gufuncs(Protocol):
    layer_norm: np.ufunc
    rms_norm: np.ufunc
    instance_norm1d: np.ufunc
    instance_norm2d: np.ufunc
    instance_norm3d: np.ufunc

class _Kernel(Protocol):
    family: str
    name: str
    arguments: tuple[str, ...]

class _Table(Protocol):
    SIZES: dict[str, tuple[str, ...]]
    PASSES: dict[str, dict[str, tuple[str, str, str, int, int]]]
    ACTIVATIONS: dict[str | None, int]
    KERNELS: tuple[_Kernel, ...]

class _Schedule(Protocol):
    NOGIL_SIZE: int

cython: _Cython
gufuncs_cy: _Gufuncs
schedule: _Schedule
table: _Table
nchw: Channels
nc: Channels
rows: Rows
cols: Cols
running: Running
