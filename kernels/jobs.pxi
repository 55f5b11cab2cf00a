# From the arguments of a kernel of nchw or nc to its job: every check, before anything is written.
# Part of passes.pxi.


cdef Job *new_job(
    str name, cnp.ndarray out, cnp.ndarray x, cnp.ndarray dy, Py_ssize_t channels,
    Py_ssize_t statistics, Py_ssize_t size,
) except NULL:
    # `name` is that of `out`.
    cdef Storage storage = storage_of(x, "x")
    cdef int typenum = cnp.PyArray_TYPE(x)
    cdef Job *job
    check(x, "x", size)
    cdef const char *gradient = optional_input(dy, "dy", size, typenum)
    if out is not None:
        check_out(out, name, size, typenum)
    if not are_statistics(statistics, channels):
        refuse("mean", f"a size that divides {channels}", statistics)
    job = make_job(
        storage, NULL if out is None else <char *>cnp.PyArray_DATA(out),
        <const char *>cnp.PyArray_DATA(x), gradient, channels, statistics, size)
    if job == NULL:
        raise MemoryError
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
    set_fused(
        job, optional_input(residual, "residual", job.size, cnp.PyArray_TYPE(x)), activation)
    return 0


cdef int moments_job(Job *job, cnp.ndarray mean, cnp.ndarray m2) except -1:
    set_moments(job, statistic_out(mean, "mean", job), statistic_out(m2, "m2", job))
    return 0


cdef int apply_job(
    Job *job, cnp.ndarray x, object residual, cnp.ndarray mean, cnp.ndarray var, object weight,
    object bias, Py_ssize_t all_of, double eps, int activation,
) except -1:
    set_apply(
        job, parameter(mean, "mean", job.statistics), parameter(var, "var", job.statistics), eps)
    give_affine(job, weight, bias, all_of)
    give_fused(job, x, residual, activation)
    return 0


cdef int forward_job(
    Job *job, cnp.ndarray mean, cnp.ndarray var, cnp.ndarray rstd, cnp.ndarray x, object residual,
    object weight, object bias, Py_ssize_t all_of, double eps, int activation,
) except -1:
    set_forward(
        job, statistic_out(mean, "mean", job), statistic_out(var, "var", job),
        statistic_out(rstd, "rstd", job), eps)
    give_affine(job, weight, bias, all_of)
    give_fused(job, x, residual, activation)
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
    give_affine(job, weight, bias, all_of)
    give_fused(job, x, residual, activation)
    set_activation_grads(
        job, parameter(mean, "mean", job.statistics), statistic(rstd, "rstd", job))
    return 0


cdef int reduce_grads_job(
    Job *job, cnp.ndarray sum_dy, cnp.ndarray sum_dy_xmu, cnp.ndarray mean
) except -1:
    set_reduce_grads(
        job, statistic_out(sum_dy, "sum_dy", job), statistic_out(sum_dy_xmu, "sum_dy_xmu", job),
        statistic(mean, "mean", job))
    return 0


cdef int apply_grads_job(
    Job *job, cnp.ndarray mean, cnp.ndarray rstd, object weight, Py_ssize_t all_of,
    cnp.ndarray sum_dy, cnp.ndarray sum_dy_xmu, double count,
) except -1:
    give_affine(job, weight, None, all_of)
    set_apply_grads(
        job, statistic(mean, "mean", job), statistic(rstd, "rstd", job),
        statistic(sum_dy, "sum_dy", job), statistic(sum_dy_xmu, "sum_dy_xmu", job), count)
    return 0


cdef int backward_job(
    Job *job, cnp.ndarray dweight, cnp.ndarray dbias, cnp.ndarray mean, cnp.ndarray rstd,
    object weight, Py_ssize_t all_of, bint training,
) except -1:
    period(job, weight, dweight, all_of)
    job.weight = parameter(weight, "weight", job.parameters)
    set_backward(
        job, writable(dweight, "dweight", job.parameters),
        writable(dbias, "dbias", job.parameters), statistic(mean, "mean", job),
        statistic(rstd, "rstd", job), training)
    return 0


# From a call of calls_cy.pyx, which has checked it ----------------------------------------------


cdef Job *called_job(const Call *call, Py_ssize_t channels) except NULL:
    cdef Py_ssize_t size = call.sizes[0] * call.sizes[1] * call.sizes[2]
    cdef Job *job = make_job(
        <Storage>call.storage, call.y, call.x, call.dy, channels, call.statistics, size)
    if job == NULL:
        raise MemoryError
    set_fused(job, call.residual, call.activation)
    job.weight = call.weight
    job.bias = call.bias
    job.parameters = call.parameters
    return job


cdef Job *called_apply(const Call *call, Py_ssize_t channels) except NULL:
    cdef Job *job = called_job(call, channels)
    set_apply(job, call.mean, call.var, call.eps)
    return job


cdef Job *called_forward(const Call *call, Py_ssize_t channels) except NULL:
    cdef Job *job = called_job(call, channels)
    set_forward(job, call.to_mean, call.to_var, call.to_rstd, call.eps)
    return job


cdef Job *called_backward(const Call *call, Py_ssize_t channels) except NULL:
    cdef Job *job = called_job(call, channels)
    set_backward(
        job, call.dweight, call.dbias, call.mean.double_, call.rstd, call.training)
    return job


cdef int run_called(Job *job, bint reduce, const Call *call) except -1:
    try:
        launch(job, reduce, None, call.sizes[0], call.sizes[1], call.sizes[2], call.threads)
        if job.settle == settle_backward:
            give_parameter_grads(job)
    finally:
        PyMem_RawFree(job)
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
