# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Family cols in Cython: b times m rows of c columns, each column normalized along itself.

`table.py` says what the arguments are, `normcore/reference.py` what is computed, cols.h holds the
arithmetic on a strip of columns; here stand the schedules.

A strip is as wide as a core's cache has room for, so that x comes from memory once: its sums, its
coefficients, its elements. dweight and dbias are added up strip by strip over *units* of strips,
which follow from the sizes alone, and unit by unit: the bits do not depend on the number of
threads.

RMS norm is mean=None: the shift and every mean are 0.
"""

from cython.parallel cimport prange

cdef extern from "col_fused_grads.h" nogil:
    enum: NORM_VALUES
    ctypedef struct Strip:
        Py_ssize_t rows, cols, pitch, room
        const void *packed
        const double *exact
        const Norm *norms
    ctypedef struct Cols:
        Py_ssize_t computed
        void (*first_shifts)(double *shift, const void *x, const Strip *strip) noexcept nogil
        void (*sums)(
            double *sums, const void *x, const Strip *strip, const double *shift) noexcept nogil
        void (*grad_sums)(
            double *sums, const void *dy, const void *x, const double *weight, const Strip *strip,
            const double *mean) noexcept nogil
        void (*pack)(
            void *packed, Py_ssize_t room, Py_ssize_t column, const Norm *norm) noexcept nogil
        void (*apply)(
            void *y, const void *x, const void *residual, const Strip *strip,
            const Affine *affine, int activation, int stream) noexcept nogil
        void (*activation_grads)(
            void *g, const void *dy, const void *x, const void *residual, const Strip *strip,
            const Affine *affine, int activation, int stream) noexcept nogil
        void (*grads)(
            void *dx, const void *dy, const void *x, const void *addend, const Strip *strip,
            const void *weight, double *dweight, double *dbias, int stream
        ) noexcept nogil
    const Cols cols_f32, cols_f64, cols_f16, cols_bf16
    ctypedef struct FusedCols:
        const Cols *cols
        void (*slopes)(
            void *g, void *copy, void *g_out, const void *dy, const void *x, const void *residual,
            const Strip *strip, const Affine *affine, int activation, int stream) noexcept nogil
        void (*round)(void *to, const void *from_, const Strip *strip, int stream) noexcept nogil
    const FusedCols fused_cols_f32, fused_cols_f64, fused_cols_f16, fused_cols_bf16

# Bytes of x, and in a backward of dy, that a strip may hold.
cdef Py_ssize_t STRIP_BYTES = 524288
# Columns of a strip: no fewer, if there are as many, and no more.
cdef Py_ssize_t STRIP_LEAST = 64
cdef Py_ssize_t STRIP_MOST = 2048
# Rows whose sums are added before they go to those of the whole columns.
cdef Py_ssize_t PART_ROWS = 1024


cdef struct Plan:
    const Cols *cols
    Py_ssize_t b, c
    Py_ssize_t wide        # columns of a strip; the last of each b may have fewer
    Py_ssize_t strips      # strips of one b
    Py_ssize_t unit        # strips of one unit
    Py_ssize_t room        # columns that a thread's tables have room for
    Py_ssize_t table_size  # bytes of a thread's tables
    const FusedCols *fused # activation_backward; NULL elsewhere
    char *g                # its last output, or NULL


include "layers.pxi"

cdef struct Tables:
    # Of one strip: (room,) each, or so many times that.
    Strip strip
    Norm *norms
    double *shift
    double *sums           # (3, room)
    double *part           # (3, room): of some rows
    double *exact          # (3, room)
    char *packed           # (NORM_VALUES, room) in the type that is computed in
    char *slopes           # through an activation: (m, room) of g and of x
    char *copy


cdef inline Tables tables_of(Job *job, int thread) noexcept nogil:
    cdef Tables tables
    cdef Py_ssize_t room = job.plan.room
    tables.norms = <Norm *>(job.spare + thread * job.plan.table_size)
    tables.shift = <double *>(tables.norms + room)
    tables.sums = tables.shift + room
    tables.part = tables.sums + 3 * room
    tables.exact = tables.part + 3 * room
    tables.packed = <char *>(tables.exact + 3 * room)
    tables.slopes = tables.packed + NORM_VALUES * room * job.plan.cols.computed
    tables.copy = tables.slopes + job.m * room * job.plan.cols.computed
    tables.strip.rows = job.m
    tables.strip.pitch = job.plan.c
    tables.strip.room = room
    tables.strip.packed = tables.packed
    tables.strip.exact = tables.exact
    tables.strip.cols = 0
    tables.strip.norms = NULL
    return tables


cdef inline Py_ssize_t place(Job *job, Tables *tables, Py_ssize_t item) noexcept nogil:
    # The first column's number in (b, c); the strip's width goes into the tables.
    cdef Py_ssize_t first = item % job.plan.strips * job.plan.wide
    tables.strip.cols = min(job.plan.wide, job.plan.c - first)
    return item // job.plan.strips * job.plan.c + first


cdef inline Py_ssize_t offset(Job *job, Py_ssize_t column) noexcept nogil:
    # In bytes, of the first element of a column.
    cdef Py_ssize_t c = job.plan.c
    return (column // c * job.m * c + column % c) * job.itemsize


cdef inline bint counts(Job *job, Py_ssize_t column) noexcept nogil:
    return job.mask == NULL or job.mask[column] != 0


cdef void pack(Job *job, Tables *tables, Py_ssize_t column) noexcept nogil:
    # The coefficients as the vector loops want them.
    cdef Py_ssize_t j, room = job.plan.room
    cdef const Norm *norm
    cdef bint wide = False
    for j in range(tables.strip.cols):
        if not counts(job, column + j):
            memset(tables.norms + j, 0, sizeof(Norm))
        norm = tables.norms + j
        wide = wide or norm.wide
        # The two parts of a float32 mean make one float64.
        tables.exact[j] = norm.hi if job.storage == F64 else norm.hi + norm.lo
        tables.exact[room + j] = norm.lo if job.storage == F64 else 0.0
        tables.exact[2 * room + j] = norm.rstd
        job.plan.cols.pack(tables.packed, room, j, norm)
    tables.strip.norms = tables.norms if wide else NULL


cdef void strip_sums(
    Job *job, Tables *tables, const Cols *cols, const char *dy, const char *x, Py_ssize_t pitch
) noexcept nogil:
    # Of a strip whose rows lie `pitch` bytes apart, PART_ROWS rows at a time: added one by one, 65537
    # elements of float64 lost three bits.
    cdef Py_ssize_t row = 0, j, width = 2 if dy == NULL else 3
    cdef double *sums = tables.sums
    while row < job.m:
        tables.strip.rows = min(PART_ROWS, job.m - row)
        if dy == NULL:
            cols.sums(sums, x + row * pitch, &tables.strip, tables.shift)
        else:
            cols.grad_sums(
                sums, dy + row * pitch, x + row * pitch, job.weight + row, &tables.strip,
                tables.shift)
        if row > 0:
            for j in range(width * job.plan.room):
                tables.sums[j] += tables.part[j]
        sums = tables.part
        row += PART_ROWS
    tables.strip.rows = job.m


cdef void forward_strips(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Tables tables = tables_of(job, thread)
    cdef Py_ssize_t item, column, at, j
    cdef bint bad
    for item in range(first, last):
        column = place(job, &tables, item)
        at = offset(job, column)
        memset(tables.shift, 0, job.plan.room * sizeof(double))
        if job.mean != NULL:
            job.plan.cols.first_shifts(tables.shift, job.x + at, &tables.strip)
        strip_sums(job, &tables, job.plan.cols, NULL, job.x + at, job.plan.c * job.itemsize)
        bad = False
        for j in range(tables.strip.cols):
            if shift_was_bad(
                job, tables.sums[j], tables.sums[job.plan.room + j], <double>job.m,
                tables.shift + j
            ):
                bad = True
        if bad:
            strip_sums(job, &tables, job.plan.cols, NULL, job.x + at, job.plan.c * job.itemsize)
        for j in range(tables.strip.cols):
            settle_forward(
                job, column + j, tables.norms + j, tables.shift[j], tables.sums[j],
                tables.sums[job.plan.room + j], <double>job.m if counts(job, column + j) else 0.0)
        pack(job, &tables, column)
        job.plan.cols.apply(
            job.out + at, job.x + at, added_at(job, at), &tables.strip, &job.affine,
            job.activation, job.stream)
    if job.stream:
        stream_fence()


cdef void activation_strips(
    Job *job, int thread, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    cdef Tables tables = tables_of(job, thread)
    cdef Py_ssize_t item, column, at, j
    for item in range(first, last):
        column = place(job, &tables, item)
        at = offset(job, column)
        for j in range(tables.strip.cols):
            given_norm(job, column + j, tables.norms + j)
        pack(job, &tables, column)
        job.plan.cols.activation_grads(
            job.out + at, job.dy + at, job.x + at, added_at(job, at), &tables.strip, &job.affine,
            job.activation, job.stream)
    if job.stream:
        stream_fence()


include "cols_backward.pxi"


# Arguments and plan ----------------------------------------------------------------------------


cdef int start_cols(
    Job *job, cnp.ndarray x, object mean, cnp.ndarray rstd, Py_ssize_t b, Py_ssize_t m,
    Py_ssize_t c, bint statistics_out, int threads, bint fused=False,
) except -1:
    cdef Py_ssize_t size = product(b, m, c), each
    cdef int typenum = start_job(job, x, mean, rstd, b * c, m, size, statistics_out, threads)
    cdef Plan *plan = &job.plan
    plan.cols = &cols_f32
    if job.storage == F64:
        plan.cols = &cols_f64
    elif job.storage == F16:
        plan.cols = &cols_f16
    elif job.storage == BF16:
        plan.cols = &cols_bf16
    plan.b = b
    plan.c = c
    # As wide as the cache allows, but a sixteenth of the columns of all b, so that threads find
    # enough strips; all strips of a b alike, and whole lines.
    each = plan.cols.computed if fused else job.itemsize
    plan.wide = min(STRIP_MOST, STRIP_BYTES // max(1, m * each))
    plan.wide = max(STRIP_LEAST, min(plan.wide, max(4 * STRIP_LEAST, b * c // UNITS)))
    plan.strips = max(1, (c + plan.wide - 1) // plan.wide)
    plan.wide = ((c + plan.strips - 1) // plan.strips + 31) // 32 * 32
    plan.strips = max(1, (c + plan.wide - 1) // max(1, plan.wide))
    plan.room = (min(c, plan.wide) + 7) // 8 * 8
    plan.table_size = plan.room * (
        sizeof(Norm) + 10 * sizeof(double) + NORM_VALUES * plan.cols.computed)
    if fused:
        plan.table_size += 2 * m * plan.room * plan.cols.computed
    plan.table_size = (plan.table_size + 127) // 64 * 64
    return typenum


cdef int take_mask(Job *job, object mask) except -1:
    job.mask = mask_data(mask)
    if job.mask != NULL and cnp.PyArray_SIZE(mask) != job.plan.b * job.plan.c:
        refuse("mask", f"{job.plan.b * job.plan.c} elements", f"shape {mask.shape}")
    return 0


# The kernels of the table ----------------------------------------------------------------------


def forward(
    cnp.ndarray y not None, object mean, cnp.ndarray rstd not None, cnp.ndarray x not None,
    object residual, object mask, object weight, object bias, double eps, int activation,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """Statistics of the columns of x, and y = activation(norm(x) + residual)."""
    cdef Job job
    cdef int typenum = start_cols(&job, x, mean, rstd, b, m, c, True, threads)
    check_out(y, "y", job.size, typenum)
    check_activation(activation)
    job.out = <char *>cnp.PyArray_DATA(y)
    job.added = optional_input(residual, "residual", job.size, typenum)
    take_mask(&job, mask)
    job.eps = eps
    job.activation = activation
    allocate(&job, weight, bias, threads * job.plan.table_size)
    run(forward_strips, &job, b * job.plan.strips, threads)
    PyMem_RawFree(job.memory)


def activation_grads(
    cnp.ndarray g not None, cnp.ndarray dy not None, cnp.ndarray x not None, object residual,
    object mean, cnp.ndarray rstd not None, object weight, object bias, int activation,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """g = dy * activation'(norm(x) + residual), the gradient before the activation."""
    cdef Job job
    cdef int typenum = start_cols(&job, x, mean, rstd, b, m, c, False, threads)
    check_out(g, "g", job.size, typenum)
    check_real(dy, "dy", job.size, typenum)
    check_activation(activation)
    job.added = optional_input(residual, "residual", job.size, typenum)
    job.activation = activation
    job.out = <char *>cnp.PyArray_DATA(g)
    job.dy = <const char *>cnp.PyArray_DATA(dy)
    allocate(&job, weight, bias, threads * job.plan.table_size)
    run(activation_strips, &job, b * job.plan.strips, threads)
    PyMem_RawFree(job.memory)


cdef int start_backward(
    Job *job, cnp.ndarray dx, cnp.ndarray dy, object added, str name, object mask, int typenum
) except -1:
    # `added` is named `name`.
    check_out(dx, "dx", job.size, typenum)
    check_real(dy, "dy", job.size, typenum)
    job.out = <char *>cnp.PyArray_DATA(dx)
    job.dy = <const char *>cnp.PyArray_DATA(dy)
    job.added = optional_input(added, name, job.size, typenum)
    take_mask(job, mask)
    cdef Py_ssize_t strips = job.plan.b * job.plan.strips
    job.plan.unit = max(1, (strips + UNITS - 1) // UNITS)
    job.units = max(1, (strips + job.plan.unit - 1) // job.plan.unit)
    job.pitch = job.m
    return 0


def backward(
    cnp.ndarray dx not None, cnp.ndarray dweight not None, cnp.ndarray dbias not None,
    cnp.ndarray dy not None, cnp.ndarray x not None, object addend, object mask, object mean,
    cnp.ndarray rstd not None, object weight, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c,
    int threads,
):
    """dx (plus addend), dweight and dbias."""
    cdef Job job
    cdef int typenum = start_cols(&job, x, mean, rstd, b, m, c, False, threads)
    cdef WritableParameter to_dweight = writable(dweight, "dweight", m)
    cdef WritableParameter to_dbias = writable(dbias, "dbias", m)
    start_backward(&job, dx, dy, addend, "addend", mask, typenum)
    allocate(&job, weight, None, threads * job.plan.table_size)
    run(backward_units, &job, job.units, threads)
    give_parameter_grads(&job, &to_dweight, &to_dbias)
    PyMem_RawFree(job.memory)


def activation_backward(
    cnp.ndarray dx not None, cnp.ndarray dweight not None, cnp.ndarray dbias not None,
    cnp.ndarray g, cnp.ndarray dy not None, cnp.ndarray x not None, object residual, object mask,
    object mean, cnp.ndarray rstd not None, object weight, object bias, int activation,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """As backward of g = dy * activation'(norm(x) + residual), which goes to g if there is one."""
    cdef Job job
    cdef int typenum = start_cols(&job, x, mean, rstd, b, m, c, False, threads, True)
    cdef WritableParameter to_dweight = writable(dweight, "dweight", m)
    cdef WritableParameter to_dbias = writable(dbias, "dbias", m)
    start_backward(&job, dx, dy, residual, "residual", mask, typenum)
    take_activation(&job, activation, g, typenum)
    job.plan.fused = &fused_cols_f32
    if job.storage == F64:
        job.plan.fused = &fused_cols_f64
    elif job.storage == F16:
        job.plan.fused = &fused_cols_f16
    elif job.storage == BF16:
        job.plan.fused = &fused_cols_bf16
    allocate(&job, weight, bias, threads * job.plan.table_size)
    run(backward_units, &job, job.units, threads)
    give_parameter_grads(&job, &to_dweight, &to_dbias)
    PyMem_RawFree(job.memory)
