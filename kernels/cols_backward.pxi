# The backward of family cols in Cython, also through an activation: a strip is taken where it lies,
# or from buffers that hold x and the gradient before the activation.

cdef void backward_units(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Tables tables = tables_of(job, thread)
    cdef Py_ssize_t unit, item
    cdef double *part
    for unit in range(first, last):
        part = job.parts + unit * 2 * job.pitch
        memset(part, 0, 2 * job.pitch * sizeof(double))
        for item in range(
            unit * job.plan.unit, min((unit + 1) * job.plan.unit, job.plan.b * job.plan.strips)
        ):
            strip_backward(job, &tables, item, part)
    if job.stream:
        stream_fence()


cdef void strip_backward(
    Job *job, Tables *tables, Py_ssize_t item, double *part
) noexcept nogil:
    cdef Py_ssize_t column = place(job, tables, item), at = offset(job, column)
    cdef const FusedCols *fused = job.plan.fused
    if fused == NULL:
        strip_gradients(
            job, tables, column, job.plan.cols, job.out + at, job.dy + at, job.x + at,
            added_at(job, at), job.plan.c * job.itemsize, part, job.stream)
        return
    strip_slopes(job, tables, column, at)
    tables.strip.pitch = job.plan.room
    strip_gradients(
        job, tables, column, fused.cols, tables.slopes, tables.slopes, tables.copy, NULL,
        job.plan.room * fused.cols.computed, part, False)
    tables.strip.pitch = job.plan.c
    fused.round(job.out + at, tables.slopes, &tables.strip, job.stream)


cdef void strip_slopes(
    Job *job, Tables *tables, Py_ssize_t column, Py_ssize_t at
) noexcept nogil:
    # The gradient before the activation, to g and to a buffer.
    cdef Py_ssize_t j
    for j in range(tables.strip.cols):
        given_norm(job, column + j, tables.norms + j)
    pack(job, tables, column)
    job.plan.fused.slopes(
        tables.slopes, tables.copy, NULL if job.plan.g == NULL else job.plan.g + at,
        job.dy + at, job.x + at, added_at(job, at), &tables.strip, &job.affine, job.activation,
        job.stream)


cdef void strip_gradients(
    Job *job, Tables *tables, Py_ssize_t column, const Cols *cols, char *dx, const char *dy,
    const char *x, const char *addend, Py_ssize_t pitch, double *part, bint stream
) noexcept nogil:
    # Of a strip whose rows lie `pitch` bytes apart.
    cdef Py_ssize_t j, room = job.plan.room
    for j in range(tables.strip.cols):
        tables.shift[j] = 0.0 if job.mean == NULL else origin_of(job, job.mean[column + j])
    strip_sums(job, tables, cols, dy, x, pitch)
    for j in range(tables.strip.cols):
        settle_backward(
            job, column + j, tables.norms + j, tables.sums[j], tables.sums[room + j],
            tables.sums[2 * room + j], <double>job.m)
    pack(job, tables, column)
    cols.grads(
        dx, dy, x, addend, &tables.strip, job.affine.weight, part, part + job.pitch, stream)
