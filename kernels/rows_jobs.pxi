# From the arguments of a kernel of rows to its job and its plan.


cdef int start_rows(
    Job *job, cnp.ndarray x, object mean, cnp.ndarray rstd, Py_ssize_t r, Py_ssize_t m,
    bint statistics_out, int threads,
) except -1:
    cdef int typenum = start_job(
        job, x, mean, rstd, r, m, product(r, m, 1), statistics_out, threads)
    make_plan(job, r)
    return typenum


cdef void make_plan(Job *job, Py_ssize_t r) noexcept nogil:
    job.plan.rows = &rows_f32
    if job.storage == F64:
        job.plan.rows = &rows_f64
    elif job.storage == F16:
        job.plan.rows = &rows_f16
    elif job.storage == BF16:
        job.plan.rows = &rows_bf16
    job.plan.r = r
    job.plan.together = max(
        1, min(<Py_ssize_t>TOGETHER, FORWARD_BYTES // max(1, job.m * job.itemsize)))


cdef void make_units(Job *job) noexcept nogil:
    # No fewer rows to a unit than hold UNIT_LEAST elements, and whole groups of TOGETHER.
    cdef Py_ssize_t r = job.plan.r
    job.plan.unit = max((r + UNITS - 1) // UNITS, UNIT_LEAST // max(1, job.m), 1)
    job.plan.unit = (job.plan.unit + TOGETHER - 1) // TOGETHER * TOGETHER
    job.units = max(1, (r + job.plan.unit - 1) // job.plan.unit)
    job.pitch = (job.m + 7) // 8 * 8
    # Four rows of 4 KB, of x and dy, fit the first-level cache. Of short rows 8: with 4 (100352, 96)
    # takes 1.56 of the triad for 1.40, bfloat16 (32768, 1024) 1.81 for 1.74.
    job.plan.together = TOGETHER if job.m * job.itemsize <= 2048 else TOGETHER // 2


cdef Py_ssize_t room_for_totals(Job *job, void *total, int threads) noexcept nogil:
    # Bytes that add_forward needs for its second output: threads' copies lie a line apart.
    job.plan.total = <char *>total
    job.plan.copy_size = (job.m * job.itemsize + 127) // 64 * 64
    return 2 * threads * job.plan.together * job.plan.copy_size if job.stream else 0


cdef void place_totals(Job *job) noexcept nogil:
    # Totals that are streamed are read from the copies.
    if job.plan.total != NULL and job.stream:
        job.plan.copies = job.spare


cdef int take_mask(Job *job, object mask) except -1:
    job.mask = mask_data(mask)
    if job.mask != NULL:
        job.plan.together = 1
        job.plan.q = cnp.PyArray_SIZE(mask) // max(1, job.plan.r)
        if (
            job.plan.q * job.plan.r != cnp.PyArray_SIZE(mask) or job.plan.q == 0
            or job.m % job.plan.q != 0
        ):
            if job.size > 0:
                refuse("mask", f"{job.plan.r} rows of a divisor of {job.m} elements", mask.shape)
            job.mask = NULL
        else:
            job.plan.period = job.m // job.plan.q
    return 0
