# The backward of family rows in Cython, also through an activation: a few rows are taken together,
# and their part of dweight and dbias is added up column by column in registers. Those sums run over
# *units* of rows, which follow from the sizes alone.

cdef inline const void *weight_at(Job *job, Py_ssize_t j) noexcept nogil:
    # As the sums want it: in float32 for halves, else in float64.
    if job.itemsize == 2:
        return <const char *>job.affine.weight + j * job.plan.rows.computed
    return job.weight + j


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


cdef void gradient_statistics(
    Job *job, Group *group, Py_ssize_t i, Py_ssize_t k, Norm *row
) noexcept nogil:
    # Of row i, which is row k of the group.
    cdef Py_ssize_t start = 0, end = 0, at, count = 0
    cdef double sums[3]
    cdef double mean = 0.0 if job.mean == NULL else origin_of(job, job.mean[i])
    sums[0] = sums[1] = sums[2] = 0.0
    while next_run(job, i, &start, &end):
        at = (k * group.pitch + start) * group.itemsize
        group.rows.grad_sums(
            sums, group.dy + at, group.x + at, weight_at(job, start), end - start, mean)
        count += end - start
    settle_backward(job, i, row, sums[0], sums[1], sums[2], <double>count)


cdef void backward_units(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t unit, i, end
    cdef double *part
    for unit in range(first, last):
        part = job.parts + unit * 2 * job.pitch
        memset(part, 0, 2 * job.pitch * sizeof(double))
        i = unit * job.plan.unit
        end = min(job.plan.r, i + job.plan.unit)
        while i < end:
            if job.mask == NULL:
                together_backward(job, thread, i, min(job.plan.together, end - i), part)
                i += job.plan.together
            else:
                masked_backward(job, thread, i, part)
                i += 1
    if job.stream:
        stream_fence()


cdef inline RowGrads grads_at(
    Job *job, Group *group, Py_ssize_t i, Py_ssize_t start, Py_ssize_t len, double *part
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
    grads.dweight = part + start
    grads.dbias = part + job.pitch + start
    grads.rows = 1
    grads.len = len
    grads.pitch = group.pitch
    grads.stream = job.stream and job.plan.fused == NULL
    return grads


cdef void together_backward(
    Job *job, int thread, Py_ssize_t i, Py_ssize_t rows, double *part
) noexcept nogil:
    cdef Norm row[TOGETHER]
    cdef Group group = group_of(job, thread, i)
    cdef RowGrads grads = grads_at(job, &group, i, 0, job.m, part)
    cdef Py_ssize_t k
    for k in range(rows):
        if job.plan.fused != NULL:
            fill_buffers(job, &group, i + k, k, 0, job.m)
        gradient_statistics(job, &group, i + k, k, row + k)
    grads.rows = rows
    group.rows.grads(&grads, row)
    if job.plan.fused != NULL:
        for k in range(rows):
            empty_buffers(job, &group, i + k, k, 0, job.m)


cdef void masked_backward(Job *job, int thread, Py_ssize_t i, double *part) noexcept nogil:
    # Run by run; dx of the elements between is addend or 0.
    cdef Norm row
    cdef Group group = group_of(job, thread, i)
    cdef RowGrads grads
    cdef Py_ssize_t start = 0, end = 0, before = 0
    if job.plan.fused != NULL:
        while next_run(job, i, &start, &end):
            fill_buffers(job, &group, i, 0, start, end - start)
    gradient_statistics(job, &group, i, 0, &row)
    start = end = 0
    while next_run(job, i, &start, &end):
        no_gradient(job, i, before, start)
        grads = grads_at(job, &group, i, start, end - start, part)
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
