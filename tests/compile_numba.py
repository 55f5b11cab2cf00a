"""Compile, in a process of its own, the Numba kernels that the tests ask for (see conftest.py).

Cold, they take 9 minutes of one core; the tests that need none of them take as long on the other.
"""

import numpy as np
from half_families import HALF_OF

from normcore import numba_kernels
from normcore.kernels import table


def only_parallel() -> None:
    """Let every kernel be its parallel twin: test_numba_kernels.py holds one against the other."""
    for kernel in numba_kernels._kernels.values():
        kernel.serial = kernel.parallel


def main() -> None:
    numba_kernels.warm(np.dtype(np.float32))  # both twins: warmup has a test
    only_parallel()
    numba_kernels.warm(np.dtype(np.float64))
    everything = table.KERNELS
    for family, half in HALF_OF.items():
        table.KERNELS = tuple(kernel for kernel in everything if kernel.family == family)
        numba_kernels.warm(half)


if __name__ == "__main__":
    main()
