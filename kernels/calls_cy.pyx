# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The plain calls: normalizations of arrays that need no conversion, from Python to the kernel.

What `normcore.functional` and the layers do step by step in Python (check, view, allocate, call)
takes 3 us, more than the kernel of a small array. `Calls` does the same here for the plain case:
NumPy arrays themselves, C-contiguous, aligned, in native byte order; parameters that are such
arrays of one axis (layer norm: of the normalized ones); `out` that is x or apart from everything
that is read; no mask. For anything else, and for whatever is wrong, every method returns None and
has touched nothing: then the general way decides, and says what is wrong.

The kernels are those of the families, with the sizes that `normcore/view.py` finds: the same bits.
"""

include "plain.pxi"
include "batch_calls.pxi"
include "sample_calls.pxi"


cdef class Calls(SampleCalls):
    """The plain calls into the kernels of one instruction set."""
