# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Family cols in Cython: b times m rows of c columns, each column normalized along itself.

`table.py` says what the arguments are, `normcore/reference.py` what is computed, cols.h holds the
arithmetic on a strip of columns; here stand the schedules.

A strip is as wide as a core's cache has room for, so that x comes from memory once: its sums, its
coefficients, its elements (cols_strips.pxi). dweight and dbias are added up strip by strip over *units* of strips,
which follow from the sizes alone, and unit by unit: the bits do not depend on the number of
threads.

RMS norm is mean=None: the shift and every mean are 0.
"""

from cython.parallel cimport prange

cdef extern from "col_fused_grads.h" nogil:
    enum: ROWS_TOGETHER, NORM_RSTD, NORM_VALUES, LATER
    ctypedef struct Shared:
        char *line
        bint began, goes_on
    ctypedef struct Strip:
        Py_ssize_t rows, cols, pitch, ahead, room
        const void *packed
        double *exact
        Shared shared
        const char *later[LATER]
        Py_ssize_t itemsize
        bint wide, masked
    ctypedef struct Statistics:
        double *mean
        double *rstd
        const unsigned char *mask
        double count, eps, lost
        bint single
    bint move_shifts(
        const Strip *strip, const Statistics *of, const double *sum, double *shift
    ) noexcept nogil
    void settle_columns(
        Strip *strip, const Statistics *of, const double *sum, const double *shift
    ) noexcept nogil
    void given_columns(Strip *strip, const Statistics *of) noexcept nogil
    void split_means(Strip *strip, bint single) noexcept nogil
    void give_rests(Strip *strip) noexcept nogil
    bint settle_column_grads(Strip *strip, const Statistics *of, double *sum) noexcept nogil
    ctypedef struct Cols:
        Py_ssize_t itemsize, computed
        void (*first_shifts)(double *shift, const void *x, const Strip *strip) noexcept nogil
        void (*sums)(
            double *sums, const void *x, const Strip *strip, const double *shift) noexcept nogil
        void (*grad_sums)(
            double *sums, double *dweight, double *dbias, const void *dy, const void *x,
            const double *weight, const Strip *strip) noexcept nogil
        void (*mend)(
            double *dweight, const void *dy, const Strip *strip, const double *off) noexcept nogil
        void (*pack)(void *packed, const double *exact, Py_ssize_t size) noexcept nogil
        void (*apply)(
            void *y, const void *x, const void *residual, const Strip *strip,
            const Affine *affine, int activation, int stream) noexcept nogil
        void (*activation_grads)(
            void *g, const void *dy, const void *x, const void *residual, const Strip *strip,
            const Affine *affine, int activation, int stream) noexcept nogil
        void (*grads)(
            void *dx, const void *dy, const void *x, const void *addend, const Strip *strip,
            const void *weight, int stream) noexcept nogil
    const Cols cols_f32, cols_f64, cols_f16, cols_bf16
    ctypedef struct FusedCols:
        const Cols *cols
        void (*slopes)(
            void *g, void *copy, void *g_out, const void *dy, const void *x, const void *residual,
            const Strip *strip, const Affine *affine, int activation, int stream) noexcept nogil
        void (*round)(void *to, const void *from_, const Strip *strip, int stream) noexcept nogil
    const FusedCols fused_cols_f32, fused_cols_f64, fused_cols_f16, fused_cols_bf16

# Bytes of x, and in a backward of dy, that a strip may hold. Twice as much: (32, 96, 3136) took 1.50
# instead of 1.40 of the triad, forward no less time.
cdef Py_ssize_t STRIP_BYTES = 262144
# Columns of a strip: no fewer, if there are as many, and no more.
cdef Py_ssize_t STRIP_LEAST = 64
cdef Py_ssize_t STRIP_MOST = 2048
# Rows whose sums are added before they go to those of the whole columns.
cdef Py_ssize_t PART_ROWS = 1024


cdef struct Job
cdef struct Tables
ctypedef void (*begin_t)(Job *, Tables *, Py_ssize_t) noexcept nogil
ctypedef void (*settle_t)(Job *, Tables *) noexcept nogil


cdef struct Plan:
    const Cols *cols
    Py_ssize_t b, c
    Py_ssize_t wide        # columns of a strip; the last of each b may have fewer
    Py_ssize_t strips      # strips of one b
    Py_ssize_t unit        # strips of one unit
    begin_t begin          # of a strip: what comes before its sums, after them, its elements
    settle_t settle, write
    Py_ssize_t room        # columns that a thread's tables have room for
    Py_ssize_t table_size  # bytes of a thread's tables
    Py_ssize_t shared_size # and of lines in it that strips share
    const FusedCols *fused # activation_backward; NULL elsewhere
    char *g                # its last output, or NULL


include "layers.pxi"

include "cols_strips.pxi"


cdef void begin_forward(Job *job, Tables *tables, Py_ssize_t item) noexcept nogil:
    place(job, tables, item)
    if job.mean != NULL:
        tables.cols.first_shifts(tables.shift, tables.x, &tables.strip)


cdef void settle_forward_strip(Job *job, Tables *tables) noexcept nogil:
    if job.mean != NULL and move_shifts(&tables.strip, &tables.of, tables.sums, tables.shift):
        sum_strip(job, tables)
    ask_next(job, tables)
    settle_columns(&tables.strip, &tables.of, tables.sums, tables.shift)
    pack(tables, NORM_RSTD + 1)


cdef void write_forward(Job *job, Tables *tables) noexcept nogil:
    tables.cols.apply(
        tables.out, tables.x, tables.added, &tables.strip, &job.affine, job.activation, job.stream)


cdef inline void given_norms(Tables *tables) noexcept nogil:
    given_columns(&tables.strip, &tables.of)
    split_means(&tables.strip, tables.of.single)
    give_rests(&tables.strip)
    pack(tables, NORM_RSTD + 1)


cdef void activation_strips(
    Job *job, int thread, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    cdef Tables tables = tables_of(job, thread)
    cdef Py_ssize_t item
    for item in range(first, last):
        place(job, &tables, item)
        given_norms(&tables)
        tables.cols.activation_grads(
            tables.out, tables.dy, tables.x, tables.added, &tables.strip, &job.affine,
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
    # An odd number of lines: rows of buffers 4 KB apart would share few sets of the cache.
    plan.room = ((min(c, plan.wide) + 15) // 16 | 1) * 16
    plan.table_size = plan.room * (
        (7 + NORM_VALUES) * sizeof(double) + NORM_VALUES * plan.cols.computed)
    if fused:
        plan.table_size += 2 * m * plan.room * plan.cols.computed
    if job.stream and not fused and plan.strips > 1:
        plan.shared_size = 64 * m
    plan.table_size += plan.shared_size + 128
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
    allocate(&job, weight, bias, threads * job.plan.table_size + 64)
    job.plan.begin = begin_forward
    job.plan.settle = settle_forward_strip
    job.plan.write = write_forward
    run(each_strip, &job, b * job.plan.strips, threads)
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
    allocate(&job, weight, bias, threads * job.plan.table_size + 64)
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
    job.plan.begin = begin_backward
    job.plan.settle = settle_backward_strip
    job.plan.write = write_backward
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
    allocate(&job, weight, None, threads * job.plan.table_size + 64)
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
    allocate(&job, weight, bias, threads * job.plan.table_size + 64)
    run(backward_units, &job, job.units, threads)
    give_parameter_grads(&job, &to_dweight, &to_dbias)
    PyMem_RawFree(job.memory)
