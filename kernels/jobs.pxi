# From the arguments of a kernel of nchw or nc to its job: every check, before anything is written.
# Part of passes.pxi.


cdef Py_ssize_t product(Py_ssize_t first, Py_ssize_t second, Py_ssize_t third) except -1:
    # Wrong sizes must not wrap around to the right number of elements.
    if first < 0 or second < 0 or third < 0:
        refuse("sizes", "no negative one", (first, second, third))
    if second > 0 and first > PY_SSIZE_T_MAX // second or (
        third > 0 and first * second > PY_SSIZE_T_MAX // third
    ):
        refuse("sizes", "fewer elements than memory holds", (first, second, third))
    return first * second * third


cdef Job *new_job(
    str name, cnp.ndarray out, cnp.ndarray x, cnp.ndarray dy, Py_ssize_t channels,
    Py_ssize_t statistics, Py_ssize_t size,
) except NULL:
    # `name` is that of `out`. One block of memory holds the job and its tables; what is not set is
    # zero.
    cdef Storage storage = storage_of(x, "x")
    cdef int typenum = cnp.PyArray_TYPE(x)
    cdef int width = 2 if dy is None else 3
    cdef Job *job
    check(x, "x", size)
    cdef const char *gradient = optional_input(dy, "dy", size, typenum)
    if out is not None:
        check_out(out, name, size, typenum)
    if statistics < 1 and channels > 0 or statistics > 0 and channels % statistics != 0:
        refuse("mean", f"a size that divides {channels}", statistics)
    cdef Py_ssize_t tables = channels * (width + 1 + sizeof(Channel) // sizeof(double)) + statistics
    job = <Job *>PyMem_RawCalloc(1, sizeof(Job) + tables * sizeof(double))
    if job == NULL:
        raise MemoryError
    job.channels = <Channel *>(job + 1)
    job.sums = <double *>(job.channels + channels)
    job.shift = job.sums + channels * width
    job.out = NULL if out is None else <char *>cnp.PyArray_DATA(out)
    job.x = <const char *>cnp.PyArray_DATA(x)
    job.dy = gradient
    job.storage = storage
    job.itemsize = cnp.PyArray_ITEMSIZE(x)
    job.size = size
    job.cells = channels
    job.statistics = statistics
    job.merged = 1 if statistics == channels else channels // max(1, statistics)
    job.parameters = channels
    job.count = <double>size / max(1, statistics)
    job.width = width
    job.gradient_sums = dy is not None
    job.stream = size * job.itemsize >= STREAM_BYTES
    return job


cdef double *statistic(cnp.ndarray a, str name, Job *job) except? NULL:
    check_real(a, name, job.statistics, cnp.NPY_FLOAT64)
    return doubles(a)


cdef double *statistic_out(cnp.ndarray a, str name, Job *job) except? NULL:
    check_out(a, name, job.statistics, cnp.NPY_FLOAT64)
    return doubles(a)


cdef int period(Job *job, object first, object second, Py_ssize_t all_of) except -1:
    # How many parameters there are: as many as weight, else bias, has; else `all_of` the channels.
    cdef object given = second if first is None else first
    job.parameters = all_of
    if isinstance(given, cnp.ndarray):
        job.parameters = cnp.PyArray_SIZE(given)
        if job.cells > 0 and (job.parameters < 1 or all_of % job.parameters != 0):
            refuse(
                "weight" if given is first else "bias", f"a size that divides {all_of}",
                f"shape {given.shape}")
    return 0


cdef int give_affine(Job *job, object weight, object bias, Py_ssize_t all_of) except -1:
    period(job, weight, bias, all_of)
    job.weight = parameter(weight, "weight", job.parameters)
    job.bias = parameter(bias, "bias", job.parameters)
    return 0


cdef int give_fused(Job *job, cnp.ndarray x, object residual, int activation) except -1:
    check_activation(activation)
    job.activation = activation
    job.residual = optional_input(residual, "residual", job.size, cnp.PyArray_TYPE(x))
    job.kind = NORMALIZE
    if activation != 0 or job.residual != NULL:
        job.kind = NORMALIZE_FUSED
    return 0


cdef int moments_job(Job *job, cnp.ndarray mean, cnp.ndarray m2) except -1:
    job.to_mean = statistic_out(mean, "mean", job)
    job.to_var = statistic_out(m2, "m2", job)
    job.settle = settle_moments
    return 0


cdef int apply_job(
    Job *job, cnp.ndarray x, object residual, cnp.ndarray mean, cnp.ndarray var, object weight,
    object bias, Py_ssize_t all_of, double eps, int activation,
) except -1:
    job.mean = parameter(mean, "mean", job.statistics)
    job.var = parameter(var, "var", job.statistics)
    give_affine(job, weight, bias, all_of)
    give_fused(job, x, residual, activation)
    job.eps = eps
    job.settle = settle_apply
    return 0


cdef int forward_job(
    Job *job, cnp.ndarray mean, cnp.ndarray var, cnp.ndarray rstd, cnp.ndarray x, object residual,
    object weight, object bias, Py_ssize_t all_of, double eps, int activation,
) except -1:
    job.to_mean = statistic_out(mean, "mean", job)
    job.to_var = statistic_out(var, "var", job)
    job.to_rstd = statistic_out(rstd, "rstd", job)
    give_affine(job, weight, bias, all_of)
    give_fused(job, x, residual, activation)
    job.eps = eps
    job.settle = settle_forward
    return 0


cdef int renorm_job(
    Job *job, cnp.ndarray r, cnp.ndarray d, cnp.ndarray running_mean, cnp.ndarray running_var,
    double r_max, double d_max,
) except -1:
    # What renorm has beyond a forward.
    job.to_r = statistic_out(r, "r", job)
    job.to_d = statistic_out(d, "d", job)
    job.running_mean = parameter(running_mean, "running_mean", job.statistics)
    job.running_var = parameter(running_var, "running_var", job.statistics)
    job.r_max = r_max
    job.d_max = d_max
    job.settle = settle_renorm
    return 0


cdef int activation_grads_job(
    Job *job, cnp.ndarray x, object residual, cnp.ndarray mean, cnp.ndarray rstd, object weight,
    object bias, Py_ssize_t all_of, int activation,
) except -1:
    job.mean = parameter(mean, "mean", job.statistics)
    job.rstd = statistic(rstd, "rstd", job)
    give_affine(job, weight, bias, all_of)
    give_fused(job, x, residual, activation)
    job.kind = ACTIVATION_SLOPE
    job.settle = settle_apply
    return 0


cdef int given_mean(Job *job, cnp.ndarray mean) except -1:
    cdef double *means = statistic(mean, "mean", job)
    cdef Py_ssize_t i
    job.mean = parameter(mean, "mean", job.statistics)
    for i in range(job.statistics):
        share_shift(job, i, means[i])
    return 0


cdef int reduce_grads_job(
    Job *job, cnp.ndarray sum_dy, cnp.ndarray sum_dy_xmu, cnp.ndarray mean
) except -1:
    job.to_mean = statistic_out(sum_dy, "sum_dy", job)
    job.to_var = statistic_out(sum_dy_xmu, "sum_dy_xmu", job)
    given_mean(job, mean)
    job.settle = settle_sums
    return 0


cdef int apply_grads_job(
    Job *job, cnp.ndarray mean, cnp.ndarray rstd, object weight, Py_ssize_t all_of,
    cnp.ndarray sum_dy, cnp.ndarray sum_dy_xmu, double count,
) except -1:
    cdef Py_ssize_t i, size = job.statistics * sizeof(double)
    given_mean(job, mean)
    job.rstd = statistic(rstd, "rstd", job)
    give_affine(job, weight, None, all_of)
    memcpy(job.sums, statistic(sum_dy, "sum_dy", job), size)
    memcpy(job.sums + job.statistics, statistic(sum_dy_xmu, "sum_dy_xmu", job), size)
    for i in range(job.statistics):
        # Not summed, but known: by how much the shift misses the mean.
        job.sums[2 * job.statistics + i] = off_mean(job, i) * count
    job.count = count
    job.kind = GRADIENT
    job.settle = settle_grads
    return 0


cdef int backward_job(
    Job *job, cnp.ndarray dweight, cnp.ndarray dbias, cnp.ndarray mean, cnp.ndarray rstd,
    object weight, Py_ssize_t all_of, bint training,
) except -1:
    period(job, weight, dweight, all_of)
    job.weight = parameter(weight, "weight", job.parameters)
    job.dweight = writable(dweight, "dweight", job.parameters)
    job.dbias = writable(dbias, "dbias", job.parameters)
    given_mean(job, mean)
    job.rstd = statistic(rstd, "rstd", job)
    job.training = training
    job.kind = GRADIENT if training else SCALE
    job.settle = settle_backward
    return 0


cdef int activation_backward_job(
    Job *job, cnp.ndarray dweight, cnp.ndarray dbias, cnp.ndarray g, cnp.ndarray x,
    object residual, cnp.ndarray mean, cnp.ndarray rstd, object weight, object bias,
    Py_ssize_t all_of, int activation, bint training,
) except -1:
    backward_job(job, dweight, dbias, mean, rstd, weight, all_of, training)
    check_activation(activation)
    job.bias = parameter(bias, "bias", job.parameters)
    job.activation = activation
    job.residual = optional_input(residual, "residual", job.size, cnp.PyArray_TYPE(x))
    if g is not None:
        check_out(g, "g", job.size, cnp.PyArray_TYPE(x))
        job.g = <char *>cnp.PyArray_DATA(g)
    job.before = <Channel *>scratch(max(1, job.cells) * sizeof(Channel) // sizeof(double))
    settle_before(job)
    return 0


# The GIL is let go only where the work is worth it ---------------------------------------------


cdef inline PyThreadState *release(Job *job) noexcept:
    return PyEval_SaveThread() if job.size >= NOGIL_SIZE else NULL


cdef inline void acquire(PyThreadState *state) noexcept:
    if state != NULL:
        PyEval_RestoreThread(state)
