"""Sizes that the compiled kernels share, in both languages: units of summation, blocks, streaming.

A *unit* is what one partial sum covers. Units follow from the sizes of the array alone, never
from the number of threads, and their sums are added in a fixed order: that is why the bits of a
result do not depend on how many threads worked on it.
"""

STREAM_BYTES = 3 * 2**20
"""Outputs above this bypass the caches. Two threads copying float32, 2 x 2 MB of L2, normal against
non-temporal stores: 25 MB 1.36 / 0.90 ms, 4 MB 0.136 / 0.107 ms; 1 MB 180 / 56 GB/s."""

UNIT_ELEMENTS = 8192
"""nchw: a unit is this many elements in whole runs, or a piece of a run twice as long as this."""

UNIT_ROWS = 512
"""nc: a unit is this many rows."""

RUN_BYTES = 4096
"""nchw: channels are taken together until n runs of at least this many bytes lie contiguous;
shorter runs are too short for the hardware's prefetching."""

STRIP_COLUMNS = 128
"""nc: columns of a strip that one thread sums and then normalizes."""

STRIP_BYTES = 2**20
"""nc: a strip must not be larger, so that it is still in a core's L2 cache when it is normalized
(half of the 2 MB of the machine that the figures come from)."""
