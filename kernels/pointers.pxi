# Kernels by pointer, for callers without the GIL: what all of them check, and what they return.
# `api.pxd` says how they are called; a call that is refused has written nothing.

cdef enum Status:
    DONE
    NULL_POINTER    # of an array that is not optional
    BAD_DTYPE
    BAD_SIZES       # negative, more elements than memory holds, statistics that do not divide
    BAD_ACTIVATION
    BAD_THREADS
    NO_MEMORY


cdef inline int refusal(
    int dtype, int parameter_dtype, Py_ssize_t size, int activation, int threads
) noexcept nogil:
    # What is wrong with them, or DONE. `size` is that of `elements`.
    if not F32 <= dtype <= BF16 or not F32 <= parameter_dtype <= F64:
        return BAD_DTYPE
    if size < 0:
        return BAD_SIZES
    if not 0 <= activation < ACTIVATIONS:
        return BAD_ACTIVATION
    if threads < 1:
        return BAD_THREADS
    return DONE


cdef inline Parameter pointed(int dtype, const void *values) noexcept nogil:
    cdef Parameter found
    found.single = <const float *>values if dtype == F32 else NULL
    found.double_ = <const double *>values if dtype == F64 else NULL
    return found


cdef inline WritableParameter pointed_out(int dtype, void *values) noexcept nogil:
    cdef WritableParameter found
    found.single = <float *>values if dtype == F32 else NULL
    found.double_ = <double *>values if dtype == F64 else NULL
    return found
