# The backward of family cols in Cython, also through an activation: a strip is taken where it lies,
# or from buffers that hold x and the gradient before the activation.

cdef void backward_units(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t unit = job.plan.unit
    memset(job.parts + first * 2 * job.pitch, 0, (last - first) * 2 * job.pitch * sizeof(double))
    each_strip(job, thread, first * unit, min(last * unit, job.plan.b * job.plan.strips))


cdef void begin_backward(Job *job, Tables *tables, Py_ssize_t item) noexcept nogil:
    cdef const FusedCols *fused = job.plan.fused
    tables.strip.pitch = job.plan.c
    place(job, tables, item)
    tables.dweight = job.parts + item // job.plan.unit * 2 * job.pitch
    tables.dbias = tables.dweight + job.pitch
    if fused != NULL:
        # The gradient before the activation goes to g and to a buffer.
        tables.out = tables.slopes
        given_norms(tables)
        fused.slopes(
            tables.slopes, tables.copy, NULL if job.plan.g == NULL else job.plan.g + tables.at,
            tables.dy, tables.x, tables.added, &tables.strip, &job.affine, job.activation,
            job.stream)
        tables.cols = fused.cols
        tables.strip.pitch = tables.strip.room
        tables.pitch = tables.strip.room * fused.cols.itemsize
        tables.following = 0
        tables.dy = tables.slopes
        tables.x = tables.copy
        tables.added = NULL
    given_columns(&tables.strip, &tables.of)


cdef void settle_backward_strip(Job *job, Tables *tables) noexcept nogil:
    if settle_column_grads(&tables.strip, &tables.of, tables.sums):
        tables.cols.mend(
            tables.dweight, tables.dy, &tables.strip, tables.sums + 2 * tables.strip.room)
    pack(tables, NORM_VALUES)


cdef void write_backward(Job *job, Tables *tables) noexcept nogil:
    cdef const FusedCols *fused = job.plan.fused
    tables.cols.grads(
        tables.out, tables.dy, tables.x, tables.added, &tables.strip, job.affine.weight,
        job.stream and fused == NULL)
    if fused != NULL:
        tables.strip.pitch = job.plan.c
        fused.round(job.out + tables.at, tables.out, &tables.strip, job.stream)
