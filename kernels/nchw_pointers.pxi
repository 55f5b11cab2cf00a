# Family nchw by pointer: what channel_pointers.pxi asks of a family.


cdef inline Py_ssize_t named_channels(Py_ssize_t n, Py_ssize_t c, Py_ssize_t s) noexcept nogil:
    return c


cdef inline Py_ssize_t summed_channels(Py_ssize_t n, Py_ssize_t c, Py_ssize_t s) noexcept nogil:
    return c


cdef inline bint are_parts(
    Py_ssize_t statistics, Py_ssize_t parameters, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s
) noexcept nogil:
    return are_statistics(statistics, c) and (c == 0 or parameters > 0 and c % parameters == 0)


cdef inline void sizes_of_cells(Py_ssize_t *n, Py_ssize_t *c) noexcept nogil:
    c[0] *= n[0]
    n[0] = 1


cdef bint do_job(
    Job *job, bint reduce, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, int threads
) noexcept nogil:
    cdef Plan plan = make_plan(job, n, c, s)
    return execute(job, &plan, reduce, threads)


include "channel_pointers.pxi"
