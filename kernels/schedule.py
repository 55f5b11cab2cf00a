"""Sizes that the schedules of the compiled backends follow, each with the measurement behind it.

A *unit* is what one partial sum covers. Units follow from the sizes of the array alone, never
from the number of threads, and their sums are added in a fixed order: that is why the bits of a
result do not depend on how many threads worked on it.
"""

STREAM_BYTES = 48 * 2**20
"""Outputs from this size on bypass the caches. Copy bandwidth, 2 threads, AVX-512, normal /
streaming stores: 38 / 22 GB/s at 16 MB, 34 / 20 at 32 MB, 31 / 35 at 64 MB, 28 / 41 at 128 MB."""

UNIT_ELEMENTS = 8192
"""nchw: a unit is this many elements in whole runs, or a piece of a run twice as long as this."""

UNIT_ROWS = 512
"""nc in Numba: a unit is this many rows."""

UNIT_BLOCK = 65536
"""nc in Cython: a unit is rows of this many elements, at least 8 rows. Its sums are then a
sixteenth of what the unit reads at 256 columns."""

RUN_BYTES = 4096
"""nchw: channels are taken together until n runs of at least this many bytes lie contiguous;
shorter runs are too short for the hardware's prefetching."""

STRIP_COLUMNS = 128
"""nc in Numba: columns of a strip that one thread sums and then normalizes."""

STRIP_BYTES = 2**20
"""nc in Numba: a strip must not be larger, so that it is still in a core's L2 cache when it is
normalized (half of the 2 MB of the machine that the figures come from)."""

NOGIL_SIZE = 8192
"""Below this many elements the Cython kernels keep the GIL: letting it go and taking it back costs
0.1 us, an element 0.1 ns."""
