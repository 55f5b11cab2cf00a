"""Compile, in a process of its own, Numba kernels that the tests ask for (see conftest.py).

Cold, they take 10 minutes of one core or more, the tests that need none of them about as long:
those go first, and this takes what they leave. (Side by side, they took 12 minutes on 2 cores,
because the tests went on alone for 5.)
"""

import os
import sys

import numpy as np
from half_families import HALF_OF

from normcore import numba_kernels
from normcore.kernels import table


def only_parallel() -> None:
    """Let every kernel be its parallel twin: test_numba_kernels.py holds one against the other."""
    for kernel in numba_kernels._kernels.values():
        kernel.serial = kernel.parallel


def single() -> None:
    """Float32 in both twins: warmup has a test."""
    numba_kernels.warm(np.dtype(np.float32))


def double() -> None:
    """Float64."""
    only_parallel()
    numba_kernels.warm(np.dtype(np.float64))


def halves() -> None:
    """The halves, each family with its own."""
    only_parallel()
    everything = table.KERNELS
    for family, half in HALF_OF.items():
        table.KERNELS = tuple(kernel for kernel in everything if kernel.family == family)
        numba_kernels.warm(half)


if __name__ == "__main__":
    if hasattr(os, "nice"):  # not on Windows
        os.nice(15)
    {"single": single, "double": double, "halves": halves}[sys.argv[1]]()
