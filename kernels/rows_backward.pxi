# The backward of family rows in Cython, also through an activation: a few rows are taken together,
# with their part of dweight and dbias. Those sums run over *units* of rows, which follow from the
# sizes alone.

cdef struct Group:
    # Rows of a backward that are worked on together: where the first one begins.
    const Rows *rows
    Py_ssize_t itemsize, pitch
    char *dx
    const char *dy
    const char *x


cdef inline Group group_of(Job *job, int thread, Py_ssize_t i) noexcept nogil:
    # From row i on; through an activation, what `fill_buffers` makes of them.
    cdef Group group
    cdef Py_ssize_t at = i * job.m * job.itemsize
    if job.plan.fused == NULL:
        group.rows = job.plan.rows
        group.itemsize = job.itemsize
        group.pitch = job.m
        group.dx = job.out + at
        group.dy = job.dy + at
        group.x = job.x + at
    else:
        group.rows = job.plan.fused.rows
        group.itemsize = group.rows.itemsize
        group.pitch = job.plan.buffer_pitch
        group.x = job.plan.buffers + thread * job.plan.buffer_size
        group.dx = <char *>group.x + job.plan.together * group.pitch * group.itemsize
        group.dy = group.dx
    return group


cdef void fill_buffers(
    Job *job, Group *group, Py_ssize_t i, Py_ssize_t k, Py_ssize_t start, Py_ssize_t len
) noexcept nogil:
    # Elements of row i, which is row k of the group: the gradient before the activation.
    cdef Py_ssize_t at = (i * job.m + start) * job.itemsize
    cdef Py_ssize_t to = (k * group.pitch + start) * group.itemsize
    cdef Norm row
    given_norm(job, i, &row)
    cdef Affine affine = affine_at(job, start)
    job.plan.fused.slopes(
        <char *>group.dy + to, <char *>group.x + to, job.dy + at, job.x + at, added_at(job, at),
        len, &row, &affine, job.activation)
    if job.plan.g != NULL:
        job.plan.fused.round(job.plan.g + at, group.dy + to, len, job.stream)


cdef void empty_buffers(
    Job *job, Group *group, Py_ssize_t i, Py_ssize_t k, Py_ssize_t start, Py_ssize_t len
) noexcept nogil:
    # dx of what was filled.
    job.plan.fused.round(
        job.out + (i * job.m + start) * job.itemsize,
        group.dx + (k * group.pitch + start) * group.itemsize, len, job.stream)


cdef inline Affine affine_at(Job *job, Py_ssize_t start) noexcept nogil:
    cdef Affine affine
    affine.weight = <const char *>job.affine.weight + start * job.plan.rows.computed
    affine.bias = <const char *>job.affine.bias + start * job.plan.rows.computed
    return affine


cdef inline double origin_of_row(Job *job, Py_ssize_t i) noexcept nogil:
    return 0.0 if job.mean == NULL else origin_of(job, job.mean[i])


cdef void backward_units(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t unit, i, end, rows
    cdef double *part
    cdef char[64] line
    cdef Shared shared
    shared.line = line
    shared.goes_on = False
    for unit in range(first, last):
        part = job.parts + unit * 2 * job.pitch
        memset(part, 0, 2 * job.pitch * sizeof(double))
        i = unit * job.plan.unit
        end = min(job.plan.r, i + job.plan.unit)
        while i < end:
            if job.mask == NULL:
                rows = min(job.plan.together, end - i)
                shared.began = shared.goes_on
                shared.goes_on = i + rows < end or unit + 1 < last
                together_backward(job, thread, i, rows, part, &shared)
                i += rows
            else:
                shared.began = False
                masked_backward(job, thread, i, part, &shared)
                i += 1
    if job.stream:
        stream_fence()


cdef inline RowGrads grads_at(
    Job *job, Group *group, Py_ssize_t i, Py_ssize_t start, Py_ssize_t len, double *part,
    Shared *shared
) noexcept nogil:
    # From element `start` of row i, the first of the group, on.
    cdef RowGrads grads
    cdef Py_ssize_t at = start * group.itemsize
    grads.dx = group.dx + at
    grads.dy = group.dy + at
    grads.x = group.x + at
    grads.addend = NULL
    if job.plan.fused == NULL:
        grads.addend = added_at(job, (i * job.m + start) * job.itemsize)
    grads.weight = affine_at(job, start).weight
    grads.sum_weight = job.weight + start
    grads.dweight = part + start
    grads.dbias = part + job.pitch + start
    grads.rows = 1
    grads.len = len
    grads.pitch = group.pitch
    grads.stream = job.stream and job.plan.fused == NULL
    grads.shared = shared
    return grads


cdef void together_backward(
    Job *job, int thread, Py_ssize_t i, Py_ssize_t rows, double *part, Shared *shared
) noexcept nogil:
    cdef Norm[TOGETHER] row
    cdef double[TOGETHER][3] sums
    cdef double[TOGETHER] mean
    cdef Group group = group_of(job, thread, i)
    cdef RowGrads grads = grads_at(job, &group, i, 0, job.m, part, shared)
    cdef Py_ssize_t k
    memset(sums, 0, sizeof(sums))
    memset(mean, 0, sizeof(mean))
    for k in range(rows):
        if job.plan.fused != NULL:
            fill_buffers(job, &group, i + k, k, 0, job.m)
        mean[k] = origin_of_row(job, i + k)
    grads.rows = rows
    group.rows.grad_sums(sums, &grads, mean, job.rstd + i)
    for k in range(rows):
        settle_backward(
            job, i + k, row + k, sums[k][0], sums[k][1], sums[k][2], <double>job.m)
    group.rows.grads(&grads, row)
    if job.plan.fused != NULL:
        for k in range(rows):
            empty_buffers(job, &group, i + k, k, 0, job.m)


cdef void masked_backward(
    Job *job, int thread, Py_ssize_t i, double *part, Shared *shared
) noexcept nogil:
    # Run by run; dx of the elements between is addend or 0.
    cdef Norm row
    cdef Group group = group_of(job, thread, i)
    cdef RowGrads grads
    cdef Py_ssize_t start = 0, end = 0, before = 0, count = 0
    cdef double[1][3] sums
    cdef double mean = origin_of_row(job, i)
    if job.plan.fused != NULL:
        while next_run(job, i, &start, &end):
            fill_buffers(job, &group, i, 0, start, end - start)
    start = end = 0
    memset(sums, 0, sizeof(sums))
    while next_run(job, i, &start, &end):
        grads = grads_at(job, &group, i, start, end - start, part, shared)
        group.rows.grad_sums(sums, &grads, &mean, job.rstd + i)
        count += end - start
    settle_backward(job, i, &row, sums[0][0], sums[0][1], sums[0][2], <double>count)
    start = end = 0
    while next_run(job, i, &start, &end):
        no_gradient(job, i, before, start)
        grads = grads_at(job, &group, i, start, end - start, part, shared)
        shared.goes_on = False
        group.rows.grads(&grads, &row)
        if job.plan.fused != NULL:
            empty_buffers(job, &group, i, 0, start, end - start)
        before = end
    no_gradient(job, i, before, job.m)


cdef void no_gradient(Job *job, Py_ssize_t i, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    cdef Py_ssize_t at = (i * job.m + start) * job.itemsize
    cdef Py_ssize_t size = (end - start) * job.itemsize
    if job.plan.g != NULL:
        memset(job.plan.g + at, 0, size)
    if job.added == NULL or job.plan.fused != NULL:
        memset(job.out + at, 0, size)
    elif job.out != job.added:
        memcpy(job.out + at, job.added + at, size)
