# The job of a pass of nchw or nc from what it is given by pointers, and nothing checked. Every
# entry point ends here: those that take arrays (jobs.pxi), and those that take pointers
# (channel_pointers.pxi). Part of passes.pxi.


cdef inline bint are_statistics(Py_ssize_t statistics, Py_ssize_t channels) noexcept nogil:
    # Can as many statistics belong to as many channels?
    return (statistics > 0 or channels <= 0) and (statistics <= 0 or channels % statistics == 0)


cdef Job *make_job(
    Storage storage, char *out, const char *x, const char *dy, Py_ssize_t channels,
    Py_ssize_t statistics, Py_ssize_t size,
) noexcept nogil:
    # One block of memory holds the job and its tables; what is not set is zero. NULL if there is no
    # memory.
    cdef int width = 2 if dy == NULL else 3
    cdef Py_ssize_t tables = channels * (width + 1 + sizeof(Channel) // sizeof(double)) + statistics
    cdef Job *job = <Job *>PyMem_RawCalloc(1, sizeof(Job) + tables * sizeof(double))
    if job == NULL:
        return NULL
    job.channels = <Channel *>(job + 1)
    job.sums = <double *>(job.channels + channels)
    job.shift = job.sums + channels * width
    job.out = out
    job.x = x
    job.dy = dy
    job.storage = storage
    job.itemsize = itemsize_of(storage)
    job.size = size
    job.cells = channels
    job.statistics = statistics
    job.merged = 1 if statistics == channels else channels // max(1, statistics)
    job.parameters = channels
    job.count = <double>size / max(1, statistics)
    job.width = width
    job.gradient_sums = dy != NULL
    job.stream = size * job.itemsize >= STREAM_BYTES
    return job


cdef inline void set_moments(Job *job, double *mean, double *m2) noexcept nogil:
    job.to_mean = mean
    job.to_var = m2
    job.settle = settle_moments


cdef inline void set_apply(Job *job, Parameter mean, Parameter var, double eps) noexcept nogil:
    job.mean = mean
    job.var = var
    job.eps = eps
    job.settle = settle_apply


cdef inline void set_forward(
    Job *job, double *mean, double *var, double *rstd, double eps
) noexcept nogil:
    job.to_mean = mean
    job.to_var = var
    job.to_rstd = rstd
    job.eps = eps
    job.settle = settle_forward


cdef inline void set_fused(Job *job, const char *residual, int activation) noexcept nogil:
    job.activation = activation
    job.residual = residual
    job.kind = NORMALIZE
    if activation != 0 or residual != NULL:
        job.kind = NORMALIZE_FUSED


cdef inline void set_activation_grads(
    Job *job, Parameter mean, const double *rstd
) noexcept nogil:
    # After set_fused.
    job.mean = mean
    job.rstd = rstd
    job.kind = ACTIVATION_SLOPE
    job.settle = settle_apply


cdef inline void set_mean(Job *job, const double *mean) noexcept nogil:
    # What deviations are taken from.
    cdef Py_ssize_t i
    job.mean.single = NULL
    job.mean.double_ = mean
    for i in range(job.statistics):
        share_shift(job, i, mean[i])


cdef inline void set_reduce_grads(
    Job *job, double *sum_dy, double *sum_dy_xmu, const double *mean
) noexcept nogil:
    job.to_mean = sum_dy
    job.to_var = sum_dy_xmu
    set_mean(job, mean)
    job.settle = settle_sums


cdef inline void set_apply_grads(
    Job *job, const double *mean, const double *rstd, const double *sum_dy,
    const double *sum_dy_xmu, double count,
) noexcept nogil:
    cdef Py_ssize_t i, size = job.statistics * sizeof(double)
    set_mean(job, mean)
    job.rstd = rstd
    memcpy(job.sums, sum_dy, size)
    memcpy(job.sums + job.statistics, sum_dy_xmu, size)
    for i in range(job.statistics):
        # Not summed, but known: by how much the shift misses the mean.
        job.sums[2 * job.statistics + i] = off_mean(job, i) * count
    job.count = count
    job.kind = GRADIENT
    job.settle = settle_grads


cdef inline void set_backward(
    Job *job, WritableParameter dweight, WritableParameter dbias, const double *mean,
    const double *rstd, bint training,
) noexcept nogil:
    job.dweight = dweight
    job.dbias = dbias
    set_mean(job, mean)
    job.rstd = rstd
    job.training = training
    job.kind = GRADIENT if training else SCALE
    job.settle = settle_backward
