# Family nc by pointer: what channel_pointers.pxi asks of a family.


cdef inline Py_ssize_t named_channels(Py_ssize_t b, Py_ssize_t m, Py_ssize_t c) noexcept nogil:
    return c


cdef inline Py_ssize_t summed_channels(Py_ssize_t b, Py_ssize_t m, Py_ssize_t c) noexcept nogil:
    return b * c


cdef inline bint are_parts(
    Py_ssize_t statistics, Py_ssize_t parameters, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c
) noexcept nogil:
    return parameters == c and are_statistics(statistics, b * c) and (
        b * c == 0 or c % (b * c // statistics) == 0)


cdef inline void sizes_of_cells(Py_ssize_t *b, Py_ssize_t *m) noexcept nogil:
    pass


cdef bint do_job(
    Job *job, bint reduce, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads
) noexcept nogil:
    cdef Plan plan
    make_plan(&plan, job, b, m, c)
    return execute(job, &plan, reduce, threads)


include "channel_pointers.pxi"
