# The passes of nchw and nc by pointer, as `api.pxd` declares them. Whoever includes it defines
# before how many channels the sizes name (named_channels) and how many have sums of their own
# (summed_channels), what they may be divided into (are_parts), which sizes make every cell a
# statistic (sizes_of_cells), and how a job is done (do_job).

include "pointers.pxi"


cdef int open_job(
    Job **job, int dtype, int parameter_dtype, void *out, const void *x, const void *dy,
    Py_ssize_t statistics, Py_ssize_t parameters, int activation,
    Py_ssize_t first, Py_ssize_t second, Py_ssize_t third, int threads,
) noexcept nogil:
    cdef Py_ssize_t size = elements(first, second, third)
    cdef int status = refusal(dtype, parameter_dtype, size, activation, threads)
    if status != DONE:
        return status
    if not are_parts(statistics, parameters, first, second, third):
        return BAD_SIZES
    job[0] = make_job(
        <Storage>dtype, <char *>out, <const char *>x, <const char *>dy,
        summed_channels(first, second, third), statistics, size)
    if job[0] == NULL:
        return NO_MEMORY
    job[0].parameters = parameters
    return DONE


cdef int close_job(
    Job *job, bint reduce, Py_ssize_t first, Py_ssize_t second, Py_ssize_t third, int threads
) noexcept nogil:
    cdef bint done = job.size == 0 or do_job(job, reduce, first, second, third, threads)
    if done and job.settle == settle_backward:
        give_parameter_grads(job)
    PyMem_RawFree(job)
    return DONE if done else NO_MEMORY


cdef api int c_moments(
    int dtype, double *mean, double *m2, const void *x,
    Py_ssize_t first, Py_ssize_t second, Py_ssize_t third, int threads,
) noexcept nogil:
    cdef Job *job
    cdef int status
    if mean == NULL or m2 == NULL or x == NULL:
        return NULL_POINTER
    if elements(first, second, third) < 0:
        return BAD_SIZES
    sizes_of_cells(&first, &second)
    status = open_job(
        &job, dtype, F64, NULL, x, NULL, summed_channels(first, second, third),
        named_channels(first, second, third), 0, first, second, third, threads)
    if status != DONE:
        return status
    set_moments(job, mean, m2)
    return close_job(job, True, first, second, third, threads)


cdef api int c_apply(
    int dtype, int parameter_dtype, void *y, const void *x, const void *residual,
    const void *mean, const void *var, const void *weight, const void *bias, double eps,
    int activation, Py_ssize_t statistics, Py_ssize_t parameters,
    Py_ssize_t first, Py_ssize_t second, Py_ssize_t third, int threads,
) noexcept nogil:
    cdef Job *job
    cdef int status
    if y == NULL or x == NULL or mean == NULL or var == NULL:
        return NULL_POINTER
    status = open_job(
        &job, dtype, parameter_dtype, y, x, NULL, statistics, parameters, activation,
        first, second, third, threads)
    if status != DONE:
        return status
    set_apply(job, pointed(parameter_dtype, mean), pointed(parameter_dtype, var), eps)
    job.weight = pointed(parameter_dtype, weight)
    job.bias = pointed(parameter_dtype, bias)
    set_fused(job, <const char *>residual, activation)
    return close_job(job, False, first, second, third, threads)


cdef api int c_forward(
    int dtype, int parameter_dtype, void *y, double *mean, double *var, double *rstd,
    const void *x, const void *residual, const void *weight, const void *bias, double eps,
    int activation, Py_ssize_t statistics, Py_ssize_t parameters,
    Py_ssize_t first, Py_ssize_t second, Py_ssize_t third, int threads,
) noexcept nogil:
    cdef Job *job
    cdef int status
    if y == NULL or mean == NULL or var == NULL or rstd == NULL or x == NULL:
        return NULL_POINTER
    status = open_job(
        &job, dtype, parameter_dtype, y, x, NULL, statistics, parameters, activation,
        first, second, third, threads)
    if status != DONE:
        return status
    set_forward(job, mean, var, rstd, eps)
    job.weight = pointed(parameter_dtype, weight)
    job.bias = pointed(parameter_dtype, bias)
    set_fused(job, <const char *>residual, activation)
    return close_job(job, True, first, second, third, threads)


cdef api int c_activation_grads(
    int dtype, int parameter_dtype, void *g, const void *dy, const void *x,
    const void *residual, const double *mean, const double *rstd, const void *weight,
    const void *bias, int activation, Py_ssize_t statistics, Py_ssize_t parameters,
    Py_ssize_t first, Py_ssize_t second, Py_ssize_t third, int threads,
) noexcept nogil:
    cdef Job *job
    cdef int status
    if g == NULL or dy == NULL or x == NULL or mean == NULL or rstd == NULL:
        return NULL_POINTER
    status = open_job(
        &job, dtype, parameter_dtype, g, x, dy, statistics, parameters, activation,
        first, second, third, threads)
    if status != DONE:
        return status
    job.weight = pointed(parameter_dtype, weight)
    job.bias = pointed(parameter_dtype, bias)
    set_fused(job, <const char *>residual, activation)
    set_activation_grads(job, pointed(F64, mean), rstd)
    return close_job(job, False, first, second, third, threads)


cdef api int c_reduce_grads(
    int dtype, double *sum_dy, double *sum_dy_xmu, const void *dy, const void *x,
    const double *mean, Py_ssize_t first, Py_ssize_t second, Py_ssize_t third, int threads,
) noexcept nogil:
    cdef Job *job
    cdef int status
    if sum_dy == NULL or sum_dy_xmu == NULL or dy == NULL or x == NULL or mean == NULL:
        return NULL_POINTER
    if elements(first, second, third) < 0:
        return BAD_SIZES
    status = open_job(
        &job, dtype, F64, NULL, x, dy, summed_channels(first, second, third),
        named_channels(first, second, third), 0, first, second, third, threads)
    if status != DONE:
        return status
    set_reduce_grads(job, sum_dy, sum_dy_xmu, mean)
    return close_job(job, True, first, second, third, threads)


cdef api int c_apply_grads(
    int dtype, int parameter_dtype, void *dx, const void *dy, const void *x,
    const double *mean, const double *rstd, const void *weight, const double *sum_dy,
    const double *sum_dy_xmu, double count, Py_ssize_t parameters,
    Py_ssize_t first, Py_ssize_t second, Py_ssize_t third, int threads,
) noexcept nogil:
    cdef Job *job
    cdef int status
    if (
        dx == NULL or dy == NULL or x == NULL or mean == NULL or rstd == NULL
        or sum_dy == NULL or sum_dy_xmu == NULL
    ):
        return NULL_POINTER
    if elements(first, second, third) < 0:
        return BAD_SIZES
    status = open_job(
        &job, dtype, parameter_dtype, dx, x, dy, summed_channels(first, second, third),
        parameters, 0, first, second, third, threads)
    if status != DONE:
        return status
    job.weight = pointed(parameter_dtype, weight)
    set_apply_grads(job, mean, rstd, sum_dy, sum_dy_xmu, count)
    return close_job(job, False, first, second, third, threads)


cdef api int c_backward(
    int dtype, int parameter_dtype, void *dx, void *dweight, void *dbias, const void *dy,
    const void *x, const double *mean, const double *rstd, const void *weight, bint training,
    Py_ssize_t statistics, Py_ssize_t parameters,
    Py_ssize_t first, Py_ssize_t second, Py_ssize_t third, int threads,
) noexcept nogil:
    cdef Job *job
    cdef int status
    if (
        dx == NULL or dweight == NULL or dbias == NULL or dy == NULL or x == NULL
        or mean == NULL or rstd == NULL
    ):
        return NULL_POINTER
    status = open_job(
        &job, dtype, parameter_dtype, dx, x, dy, statistics, parameters, 0,
        first, second, third, threads)
    if status != DONE:
        return status
    job.weight = pointed(parameter_dtype, weight)
    set_backward(
        job, pointed_out(parameter_dtype, dweight), pointed_out(parameter_dtype, dbias), mean,
        rstd, training)
    return close_job(job, True, first, second, third, threads)
