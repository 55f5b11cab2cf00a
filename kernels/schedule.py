"""Sizes that the schedules of the compiled backends follow, each with the measurement behind it.

A *unit* is what one partial sum covers. Units follow from the sizes of the array alone, never
from the number of threads, and their sums are added in a fixed order: that is why the bits of a
result do not depend on how many threads worked on it.
"""

import os


def _from_environment(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ValueError(
            f"environment variable {variable}: expected a number of bytes, got {text!r}"
        )
    return int(text)


STREAM_BYTES = _from_environment("NORMCORE_STREAM_BYTES", 24 * 2**20)
"""Outputs from this size on bypass the caches. It depends on who reads them next. Alone, 25 MB of
float32 (2 threads, AVX-512) take 1.15 of the copy forward, against 1.55 with normal stores. In a
chain of calls that each read what the one before wrote, streaming / normal stores take 1.38 / 0.76
ms at 6 MB, 5.7 / 3.9 at 25 MB, 9.9 / 9.9 at 37 MB, 13.7 / 16.0 at 49 MB, 25 / 37 at 98 MB. The
environment variable NORMCORE_STREAM_BYTES, read at import, moves the border."""

UNIT_ELEMENTS = 8192
"""nchw: a unit is this many elements in whole runs, or a piece of a run twice as long as this."""

UNITS, UNIT_BLOCK_LEAST, UNIT_BLOCK = 16, 4096, 65536
"""nc: a unit is rows that hold a sixteenth of the elements (in Numba: of those of one b), but no
fewer and no more than this many elements, and at least 8 rows. With fixed units of 65536, two
threads gained nothing below 131072 elements; the sums of a unit are a sixteenth of what it reads at
256 columns: with 16 units in each of 32 b, group norm of (32, 28, 28, 256) took 1.31 of the copy,
with 4 of them 1.26. Cython makes their number a multiple of 4, so that 2 or 4 threads have as much
to do; 17 of them had taken 2 to 4 % longer."""

RUN_BYTES = 4096
"""nchw: channels are taken together until n runs of at least this many bytes lie contiguous;
shorter runs are too short for the hardware's prefetching."""

TEAM_BYTES = 2 * 2**20
"""Threads share a block of channels (nchw) or a b (nc) of which they read at least this much. On
cores of 2 MB L2 and float32, two threads took 1.17 instead of 1.31 of the copy forward and 1.35
instead of 1.47 of the triad backward on (2, 3, 427, 640), and 1.61 instead of 1.70 backward on
(32, 64, 112, 112); forward there, with 1.6 MB, the same."""

TURN_BYTES, TEAM_TURN_BYTES = 2**19, 2**20
"""nchw: a thread, or each of a team, writes one block of channels while it reads the next one, if
it reads at most this much of each: its cache holds both (2 MB of L2). Backward, (32, 64, 56, 56)
took 1.23 of the triad with two blocks of 0.8 MB in the cache of one thread, 1.13 with halves of
them in those of two, and 1.17 one after the other; (32, 64, 112, 112), with 1.6 MB for each of two
threads, 1.68 in turns and 1.62."""

NOGIL_SIZE = 8192
"""Below this many elements the Cython kernels keep the GIL: letting it go and taking it back costs
0.1 us, an element 0.1 ns."""
