# The passes of rows by pointer, as `api.pxd` declares them.

include "pointers.pxi"


cdef int open_job(
    Job *job, int dtype, int parameter_dtype, void *out, double *mean, double *rstd,
    const void *x, int activation, Py_ssize_t r, Py_ssize_t m, int threads,
) noexcept nogil:
    cdef int status
    if out == NULL or rstd == NULL or x == NULL:
        return NULL_POINTER
    status = refusal(dtype, parameter_dtype, elements(r, m, 1), activation, threads)
    if status != DONE:
        return status
    empty_job(job, <Storage>dtype, <const char *>x, m, r * m)
    make_plan(job, r)
    job.out = <char *>out
    job.mean = mean
    job.rstd = rstd
    job.activation = activation
    return DONE


cdef int close_job(
    Job *job, step_t step, int parameter_dtype, const void *weight, const void *bias,
    Py_ssize_t spare, Py_ssize_t items, int threads,
) noexcept nogil:
    # The memory stays, for what a backward still gives.
    cdef Parameter given_weight = pointed(parameter_dtype, weight)
    cdef Parameter given_bias = pointed(parameter_dtype, bias)
    if not prepare(job, &given_weight, &given_bias, spare):
        return NO_MEMORY
    place_totals(job)
    if job.size > 0:
        share(step, job, items, threads)
    return DONE


cdef api int c_forward(
    int dtype, int parameter_dtype, void *y, double *mean, double *rstd, const void *x,
    const void *residual, const void *weight, const void *bias, double eps, int activation,
    Py_ssize_t r, Py_ssize_t m, int threads,
) noexcept nogil:
    cdef Job job
    cdef int status = open_job(
        &job, dtype, parameter_dtype, y, mean, rstd, x, activation, r, m, threads)
    if status != DONE:
        return status
    job.added = <const char *>residual
    job.eps = eps
    status = close_job(&job, forward_rows, parameter_dtype, weight, bias, 0, r, threads)
    PyMem_RawFree(job.memory)
    return status


cdef api int c_add_forward(
    int dtype, int parameter_dtype, void *y, void *total, double *mean, double *rstd,
    const void *x, const void *addend, const void *weight, const void *bias, double eps,
    Py_ssize_t r, Py_ssize_t m, int threads,
) noexcept nogil:
    cdef Job job
    cdef int status
    if total == NULL or addend == NULL:
        return NULL_POINTER
    status = open_job(&job, dtype, parameter_dtype, y, mean, rstd, x, 0, r, m, threads)
    if status != DONE:
        return status
    job.added = <const char *>addend
    job.eps = eps
    status = close_job(
        &job, forward_rows, parameter_dtype, weight, bias, room_for_totals(&job, total, threads), r,
        threads)
    PyMem_RawFree(job.memory)
    return status


cdef api int c_activation_grads(
    int dtype, int parameter_dtype, void *g, const void *dy, const void *x,
    const void *residual, const double *mean, const double *rstd, const void *weight,
    const void *bias, int activation, Py_ssize_t r, Py_ssize_t m, int threads,
) noexcept nogil:
    cdef Job job
    cdef int status
    if dy == NULL:
        return NULL_POINTER
    status = open_job(
        &job, dtype, parameter_dtype, g, <double *>mean, <double *>rstd, x, activation, r, m,
        threads)
    if status != DONE:
        return status
    job.added = <const char *>residual
    job.dy = <const char *>dy
    status = close_job(&job, activation_rows, parameter_dtype, weight, bias, 0, r, threads)
    PyMem_RawFree(job.memory)
    return status


cdef api int c_backward(
    int dtype, int parameter_dtype, void *dx, void *dweight, void *dbias, const void *dy,
    const void *x, const void *addend, const double *mean, const double *rstd,
    const void *weight, Py_ssize_t r, Py_ssize_t m, int threads,
) noexcept nogil:
    cdef Job job
    cdef WritableParameter to_dweight = pointed_out(parameter_dtype, dweight)
    cdef WritableParameter to_dbias = pointed_out(parameter_dtype, dbias)
    cdef int status
    if dweight == NULL or dbias == NULL or dy == NULL:
        return NULL_POINTER
    status = open_job(
        &job, dtype, parameter_dtype, dx, <double *>mean, <double *>rstd, x, 0, r, m, threads)
    if status != DONE:
        return status
    job.added = <const char *>addend
    job.dy = <const char *>dy
    make_units(&job)
    status = close_job(
        &job, backward_units, parameter_dtype, weight, NULL, 0, job.units, threads)
    if status == DONE:
        give_parameter_grads(&job, &to_dweight, &to_dbias)
    PyMem_RawFree(job.memory)
    return status
