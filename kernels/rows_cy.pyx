# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Family rows in Cython: r rows of m contiguous elements (layer norm, RMS norm).

`table.py` says what the arguments are, `normcore/reference.py` what is computed, rows.h holds the
arithmetic on a row; here stand the schedules.

A row is summed, settled and written while it lies in the cache, so x comes from memory once. In a
backward a few rows are taken together: one sweep adds up the sums of each and their part of dweight
and dbias, column by column; of halves the part is added up while dx is written. Those sums run over *units* of rows, which follow from the sizes alone, and
are added unit by unit: the bits do not depend on the number of threads.

RMS norm is mean=None: the shift and every mean are 0.
"""

from cython.parallel cimport prange

cdef extern from "row_fused_grads.h" nogil:
    enum: TOGETHER
    ctypedef struct RowSums:
        pass
    ctypedef struct Pack:
        char *y
        const char **x
        const char *residual
        Py_ssize_t rows
        bint adjacent
        Norm *norm
    unsigned settle_rows(
        Norm *norm, double *to_mean, double *to_rstd, RowSums *sums, Py_ssize_t rows,
        double count, double eps, double lost, bint narrow) noexcept nogil
    ctypedef struct Shared:
        char *line
        bint began, goes_on
    ctypedef struct RowGrads:
        char *dx
        const char *dy
        const char *x
        const char *addend
        const void *weight
        const double *sum_weight
        double *dweight
        double *dbias
        Py_ssize_t rows, len, pitch
        bint stream
        Shared *shared
    ctypedef struct Rows:
        Py_ssize_t itemsize, computed
        double (*first_shift)(const void *x, Py_ssize_t len) noexcept nogil
        void (*sums)(double *sums, const void *x, Py_ssize_t len, double shift) noexcept nogil
        void (*grad_sums)(
            double (*sums)[3], const RowGrads *at, const double *mean, const double *rstd
        ) noexcept nogil
        void (*forward)(
            RowSums *sums, const Pack *next, const Pack *pack, Py_ssize_t len, bint centred,
            const Affine *affine, int activation, bint stream, Shared *shared,
            const Norm **owed) noexcept nogil
        void (*activation_grads)(
            void *g, const void *dy, const void *x, const void *residual, Py_ssize_t len,
            const Norm *row, const Affine *affine, int activation, int stream) noexcept nogil
        void (*grads)(const RowGrads *at, const Norm *row) noexcept nogil
        void (*add)(
            void *total, void *copy, const void *x, const void *addend, Py_ssize_t len, int stream
        ) noexcept nogil
    const Rows rows_f32, rows_f64, rows_f16, rows_bf16
    ctypedef struct FusedRows:
        const Rows *rows
        void (*slopes)(
            void *g, void *wide, const void *dy, const void *x, const void *residual,
            Py_ssize_t len, const Norm *row, const Affine *affine, int activation) noexcept nogil
        void (*round)(void *to, const void *from_, Py_ssize_t len, int stream) noexcept nogil
    const FusedRows fused_rows_f32, fused_rows_f64, fused_rows_f16, fused_rows_bf16

cdef enum:
    RUNS = 16
# Rows that do not fit are taken together by fewer than TOGETHER in a backward through an activation.
cdef Py_ssize_t BUFFER_BYTES = 1 << 20
# Of rows of x that are summed and settled together.
cdef Py_ssize_t FORWARD_BYTES = 8192


cdef struct Plan:
    const Rows *rows
    Py_ssize_t r
    char *total                  # add_forward's second output
    Py_ssize_t q, period         # bytes of mask per row, elements that each stands for
    Py_ssize_t unit              # rows of one unit
    char *copies                 # (threads, 2, row): totals of the rows in work
    Py_ssize_t copy_size
    # activation_backward: NULL elsewhere
    const FusedRows *fused
    char *g                      # its last output, or NULL
    Py_ssize_t together          # rows that are taken together
    Py_ssize_t buffer_pitch      # elements from one row in a buffer to the next
    char *buffers                # (threads, 2, together, buffer_pitch) in the type computed in
                                 # of x and of g, and room behind them for TOGETHER rows
    Py_ssize_t buffer_size       # bytes of a thread's


include "layers.pxi"


cdef inline bint next_run(
    Job *job, Py_ssize_t i, Py_ssize_t *start, Py_ssize_t *end
) noexcept nogil:
    # The next run of elements of row i that count, from *end on; False: there is none.
    cdef const unsigned char *mask
    cdef Py_ssize_t at
    if job.mask == NULL:
        start[0] = end[0]
        end[0] = job.m
        return start[0] < job.m
    mask = job.mask + i * job.plan.q
    at = end[0] // job.plan.period
    while at < job.plan.q and mask[at] == 0:
        at += 1
    start[0] = at * job.plan.period
    while at < job.plan.q and mask[at] != 0:
        at += 1
    end[0] = at * job.plan.period
    return start[0] < end[0]


cdef inline double run_sums(
    Job *job, Py_ssize_t i, const char *x, double shift, double *sums
) noexcept nogil:
    # The number of elements that count.
    # Sums of RUNS runs before they are added: hundreds of runs lost a digit.
    cdef Py_ssize_t start = 0, end = 0, count = 0, runs = 0
    cdef double part[2]
    sums[0] = sums[1] = part[0] = part[1] = 0.0
    while next_run(job, i, &start, &end):
        job.plan.rows.sums(part, x + start * job.itemsize, end - start, shift)
        count += end - start
        runs += 1
        if runs % RUNS == 0:
            sums[0] += part[0]
            sums[1] += part[1]
            part[0] = part[1] = 0.0
    sums[0] += part[0]
    sums[1] += part[1]
    return <double>count


cdef void statistics(Job *job, Py_ssize_t i, const char *x, Norm *row) noexcept nogil:
    cdef Py_ssize_t start = 0, end = 0
    cdef double sums[2]
    cdef double shift = 0.0, count
    if job.mean != NULL and next_run(job, i, &start, &end):
        shift = origin_of(
            job, job.plan.rows.first_shift(x + start * job.itemsize, end - start))
    count = run_sums(job, i, x, shift, sums)
    if shift_was_bad(job, sums[0], sums[1], count, &shift):
        count = run_sums(job, i, x, shift, sums)
    settle_forward(job, i, row, shift, sums[0], sums[1], count)


# What one thread does --------------------------------------------------------------------------


cdef inline const char *row_x(Job *job, int thread, Py_ssize_t i) noexcept nogil:
    # Row i of what is normalized. The totals of two packs of a thread are in work at a time.
    cdef Py_ssize_t at = i * job.m * job.itemsize, room = 2 * job.plan.together
    cdef char *copy = NULL
    if job.plan.total == NULL:
        return job.x + at
    if job.plan.copies != NULL:
        copy = job.plan.copies + (thread * room + i % room) * job.plan.copy_size
    job.plan.rows.add(job.plan.total + at, copy, job.x + at, job.added + at, job.m, job.stream)
    return job.plan.total + at if copy == NULL else copy


cdef inline void open_pack(
    Job *job, int thread, Pack *pack, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    # Up to `together` rows from `first` on.
    cdef Py_ssize_t k, at = first * job.m * job.itemsize
    pack.rows = min(job.plan.together, last - first)
    pack.y = job.out + at
    pack.adjacent = job.plan.copies == NULL
    pack.residual = NULL
    if job.plan.total == NULL:
        pack.residual = added_at(job, at)
    for k in range(pack.rows):
        pack.x[k] = row_x(job, thread, first + k)


cdef inline void settle_pack(
    Job *job, Pack *pack, RowSums *sums, Py_ssize_t first
) noexcept nogil:
    # Rows of a mask, and odd ones, one by one.
    cdef unsigned odd = (1u << pack.rows) - 1
    cdef Py_ssize_t k = 0
    if job.mask == NULL:
        odd = settle_rows(
            pack.norm, NULL if job.mean == NULL else job.mean + first, job.rstd + first, sums,
            pack.rows, <double>job.m, job.eps, job.lost, job.storage != F64)
    while odd:
        if odd & 1:
            statistics(job, first + k, pack.x[k], pack.norm + k)
        odd >>= 1
        k += 1


cdef void forward_rows(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    # Rows are written after the next ones were summed, which hides the latency of their statistics.
    cdef Pack[2] packs
    cdef Pack *pack = &packs[0]
    cdef Pack *next = &packs[1]
    cdef RowSums sums
    cdef const Norm *owed = NULL
    cdef char[64] line
    cdef Shared shared
    cdef Py_ssize_t i = first
    memset(&sums, 0, sizeof(sums))
    shared.line = line
    shared.began = False
    pack.rows = 0
    while i < last or pack.rows > 0:
        next.rows = 0
        if i < last:
            open_pack(job, thread, next, i, last)
        job.plan.rows.forward(
            &sums if job.mask == NULL else NULL, next, pack, job.m, job.mean != NULL, &job.affine,
            job.activation, job.stream, &shared, &owed)
        if i < last:
            settle_pack(job, next, &sums, i)
        i += next.rows
        pack, next = next, pack
    if job.stream:
        stream_fence()


cdef void activation_rows(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t i, at
    cdef Norm row
    for i in range(first, last):
        at = i * job.m * job.itemsize
        given_norm(job, i, &row)
        job.plan.rows.activation_grads(
            job.out + at, job.dy + at, job.x + at,
            added_at(job, at), job.m, &row, &job.affine,
            job.activation, job.stream)
    if job.stream:
        stream_fence()


include "rows_backward.pxi"


include "rows_jobs.pxi"


# The kernels of the table ----------------------------------------------------------------------


def forward(
    cnp.ndarray y not None, object mean, cnp.ndarray rstd not None, cnp.ndarray x not None,
    object residual, object mask, object weight, object bias, double eps, int activation,
    Py_ssize_t r, Py_ssize_t m, int threads,
):
    """Statistics of the rows of x, and y = activation(norm(x) + residual)."""
    cdef Job job
    cdef int typenum = start_rows(&job, x, mean, rstd, r, m, True, threads)
    check_out(y, "y", r * m, typenum)
    check_activation(activation)
    job.out = <char *>cnp.PyArray_DATA(y)
    job.added = optional_input(residual, "residual", r * m, typenum)
    take_mask(&job, mask)
    job.eps = eps
    job.activation = activation
    allocate(&job, weight, bias, 0)
    run(forward_rows, &job, r, threads)
    PyMem_RawFree(job.memory)


def add_forward(
    cnp.ndarray y not None, cnp.ndarray total not None, object mean, cnp.ndarray rstd not None,
    cnp.ndarray x not None, cnp.ndarray addend not None, object weight, object bias, double eps,
    Py_ssize_t r, Py_ssize_t m, int threads,
):
    """total = x + addend, its statistics, and y = norm(total)."""
    cdef Job job
    cdef int typenum = start_rows(&job, x, mean, rstd, r, m, True, threads)
    check_out(y, "y", r * m, typenum)
    check_out(total, "total", r * m, typenum)
    check_real(addend, "addend", r * m, typenum)
    job.out = <char *>cnp.PyArray_DATA(y)
    job.added = <const char *>cnp.PyArray_DATA(addend)
    job.eps = eps
    allocate(&job, weight, bias, room_for_totals(&job, cnp.PyArray_DATA(total), threads))
    place_totals(&job)
    run(forward_rows, &job, r, threads)
    PyMem_RawFree(job.memory)


def activation_grads(
    cnp.ndarray g not None, cnp.ndarray dy not None, cnp.ndarray x not None, object residual,
    object mean, cnp.ndarray rstd not None, object weight, object bias, int activation,
    Py_ssize_t r, Py_ssize_t m, int threads,
):
    """g = dy * activation'(norm(x) + residual), the gradient before the activation."""
    cdef Job job
    cdef int typenum = start_rows(&job, x, mean, rstd, r, m, False, threads)
    check_out(g, "g", r * m, typenum)
    check_real(dy, "dy", r * m, typenum)
    check_activation(activation)
    job.added = optional_input(residual, "residual", r * m, typenum)
    job.activation = activation
    allocate(&job, weight, bias, 0)
    job.out = <char *>cnp.PyArray_DATA(g)
    job.dy = <const char *>cnp.PyArray_DATA(dy)
    run(activation_rows, &job, r, threads)
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
    make_units(job)
    return 0


def backward(
    cnp.ndarray dx not None, cnp.ndarray dweight not None, cnp.ndarray dbias not None,
    cnp.ndarray dy not None, cnp.ndarray x not None, object addend, object mask, object mean,
    cnp.ndarray rstd not None, object weight, Py_ssize_t r, Py_ssize_t m, int threads,
):
    """dx (plus addend), dweight and dbias."""
    cdef Job job
    cdef int typenum = start_rows(&job, x, mean, rstd, r, m, False, threads)
    cdef WritableParameter to_dweight = writable(dweight, "dweight", m)
    cdef WritableParameter to_dbias = writable(dbias, "dbias", m)
    start_backward(&job, dx, dy, addend, "addend", mask, typenum)
    allocate(&job, weight, None, 0)
    run(backward_units, &job, job.units, threads)
    give_parameter_grads(&job, &to_dweight, &to_dbias)
    PyMem_RawFree(job.memory)


def activation_backward(
    cnp.ndarray dx not None, cnp.ndarray dweight not None, cnp.ndarray dbias not None,
    cnp.ndarray g, cnp.ndarray dy not None, cnp.ndarray x not None, object residual, object mask,
    object mean, cnp.ndarray rstd not None, object weight, object bias, int activation,
    Py_ssize_t r, Py_ssize_t m, int threads,
):
    """As backward of g = dy * activation'(norm(x) + residual), which goes to g if there is one."""
    cdef Job job
    cdef int typenum = start_rows(&job, x, mean, rstd, r, m, False, threads)
    cdef WritableParameter to_dweight = writable(dweight, "dweight", m)
    cdef WritableParameter to_dbias = writable(dbias, "dbias", m)
    start_backward(&job, dx, dy, residual, "residual", mask, typenum)
    take_activation(&job, activation, g, typenum)
    job.plan.fused = &fused_rows_f32
    if job.storage == F64:
        job.plan.fused = &fused_rows_f64
    elif job.storage == F16:
        job.plan.fused = &fused_rows_f16
    elif job.storage == BF16:
        job.plan.fused = &fused_rows_bf16
    # An odd number of lines; row_fused_grads.h says why.
    cdef Py_ssize_t lines = (m * job.plan.rows.computed + 63) // 64 | 1
    job.plan.buffer_pitch = lines * 64 // job.plan.rows.computed
    job.plan.together = max(1, min(<Py_ssize_t>TOGETHER, BUFFER_BYTES // (2 * 64 * lines)))
    job.plan.buffer_size = (2 * job.plan.together + TOGETHER) * 64 * lines
    allocate(&job, weight, bias, threads * job.plan.buffer_size + 64)
    job.plan.buffers = job.spare + (64 - <size_t>job.spare % 64) % 64
    cdef int thread
    for thread in range(threads):
        memset(
            job.plan.buffers + (thread + 1) * job.plan.buffer_size - TOGETHER * 64 * lines, 0,
            TOGETHER * 64 * lines)
    run(backward_units, &job, job.units, threads)
    give_parameter_grads(&job, &to_dweight, &to_dbias)
    PyMem_RawFree(job.memory)


include "row_pointers.pxi"


include "row_calls.pxi"

