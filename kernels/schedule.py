"""Sizes that the schedules of both compiled backends share, each with the measurement behind it."""

# Outputs from this size on are written with streaming stores. Copy bandwidth, 2 threads, AVX-512,
# normal / streaming: 38 / 22 GB/s at 16 MB, 34 / 20 at 32 MB, 31 / 35 at 64 MB, 28 / 41 at 128 MB.
STREAM_BYTES = 48 * 2**20

# Below this many elements the Cython kernels keep the GIL: letting it go and taking it back costs
# 0.1 us, an element 0.1 ns.
NOGIL_SIZE = 8192

# Sums run over units of at most this many elements of a channel, then over units in order: units
# are cut by sizes alone, so any number of threads adds the same numbers in the same order.
UNIT = 16384
