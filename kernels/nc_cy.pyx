# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Family nc in Cython: b times m rows of c contiguous channels.

`kernels/table.py` says what the arguments are, `normcore/reference.py` what is computed. Here
stand the schedules; the arithmetic on a block of rows is in columns.h.

Rows of few channels are read `fold` at a time as one wide row, so that every vector is full; a
channel's columns are added up at the end. Two schedules, chosen by the sizes alone:

* by strip, where a strip of columns fits a core's cache from the first row to the last: sums and
  elementwise pass of one strip after the other, so x comes from memory once;
* by unit of rows: all sums first, unit by unit in order, then the elementwise pass.
"""

from cython.parallel cimport prange

include "passes.pxi"

cdef extern from "columns.h" nogil:
    enum: COEFFICIENTS
    ctypedef struct Block:
        Py_ssize_t rows, cols, stride
    ctypedef struct Coefficients:
        const void *packed
        Py_ssize_t pitch
        const Channel *channels
        Py_ssize_t period
    ctypedef struct Columns:
        Py_ssize_t itemsize
        double (*first_shift)(const void *x, Py_ssize_t rows, Py_ssize_t stride) noexcept nogil
        void (*sums)(
            double *sum, double *square, const void *x, const Block *block, const double *shift
        ) noexcept nogil
        void (*grad_sums)(
            double *sum, double *product, double *rest, const void *dy, const void *x,
            const Block *block, const double *mean) noexcept nogil
        void (*pack)(
            void *packed, Py_ssize_t pitch, Py_ssize_t column, const Channel *channel,
            int gradient) noexcept nogil
        void (*apply)(
            void *y, const void *x, const Block *block, const Coefficients *columns, int stream
        ) noexcept nogil
        void (*apply_grads)(
            void *dx, const void *dy, const void *x, const Block *block,
            const Coefficients *columns, int stream) noexcept nogil
    const Columns columns_f32, columns_f64

# A strip is this wide (columns) and, over all rows and arrays read, at most this large (bytes).
cdef Py_ssize_t STRIP = _schedule.STRIP
cdef Py_ssize_t STRIP_BYTES = _schedule.STRIP_BYTES
# Rows are folded until they hold at least this many columns.
cdef Py_ssize_t FOLD = 64


cdef struct Plan:
    # The sizes and how they are cut: by sizes alone, never by the number of threads.
    const Columns *columns
    Py_ssize_t b, m, c
    Py_ssize_t fold        # rows that are read as one
    Py_ssize_t wide        # columns of such a row: fold * c
    Py_ssize_t rows        # whole folded rows of one b; what is left over is one shorter row
    Py_ssize_t unit        # folded rows of one unit
    Py_ssize_t units       # units of one b
    Py_ssize_t strips      # strips of one b; 1: by unit
    # Tables of b * wide columns.
    double *shift
    char *packed


cdef Plan make_plan(Job *job, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c) noexcept nogil:
    cdef Plan plan
    cdef Py_ssize_t streams = 1 if job.dy == NULL else 2
    plan.shift = NULL
    plan.packed = NULL
    plan.columns = &columns_f32 if job.itemsize == 4 else &columns_f64
    plan.b = b
    plan.m = m
    plan.c = c
    plan.fold = max(1, min(m, FOLD // c))
    plan.wide = plan.fold * c
    plan.rows = m // plan.fold
    plan.unit = max(8, UNIT * 4 // plan.wide // 8 * 8)
    plan.units = (m + plan.fold * plan.unit - 1) // (plan.fold * plan.unit)
    plan.strips = 1
    if c >= 2 * STRIP and m * STRIP * job.itemsize * streams <= STRIP_BYTES:
        plan.strips = (c + STRIP - 1) // STRIP
    return plan


cdef struct Part:
    # Some rows and columns of one b: the block, where it starts in x, and its first column in
    # the tables of b * wide columns. The rows that fold leaves over are a part of their own.
    Block block
    Py_ssize_t at, column


cdef inline Part part_of(
    Plan *plan, Py_ssize_t b, Py_ssize_t unit, Py_ssize_t strip, bint rest
) noexcept nogil:
    cdef Part part
    cdef Py_ssize_t row = unit * plan.unit, first = 0
    part.block.stride = plan.wide
    part.block.cols = plan.wide
    part.block.rows = max(0, min(plan.unit, plan.rows - row))
    if rest:
        row = plan.rows
        part.block.cols = plan.m % plan.fold * plan.c
        part.block.rows = 1 if unit == plan.units - 1 and part.block.cols > 0 else 0
    elif plan.strips > 1:
        first = strip * STRIP
        part.block.cols = min(STRIP, plan.c - first)
    part.at = b * plan.m * plan.c + row * plan.wide + first
    part.column = b * plan.wide + first
    return part


cdef void unit_sums(
    Job *job, Plan *plan, double *totals, Py_ssize_t pitch, Py_ssize_t b, Py_ssize_t unit,
    Py_ssize_t strip,
) noexcept nogil:
    # totals[k * pitch + j]: sum k of column j of this unit (and strip).
    cdef Part part
    cdef Py_ssize_t at, k, j
    cdef int rest
    for rest in range(2):
        part = part_of(plan, b, unit, strip, rest)
        if rest == 0:
            for k in range(job.width):
                for j in range(part.block.cols):
                    totals[k * pitch + j] = 0.0
        at = part.at * job.itemsize
        if job.dy == NULL:
            plan.columns.sums(
                totals, totals + pitch, job.x + at, &part.block, plan.shift + part.column)
        else:
            plan.columns.grad_sums(
                totals, totals + pitch, totals + 2 * pitch, job.dy + at, job.x + at, &part.block,
                plan.shift + part.column)


cdef void unit_elementwise(
    Job *job, Plan *plan, Coefficients columns, Py_ssize_t b, Py_ssize_t unit, Py_ssize_t strip
) noexcept nogil:
    cdef Part part
    cdef Py_ssize_t at
    cdef int rest
    for rest in range(2):
        part = part_of(plan, b, unit, strip, rest)
        at = part.at * job.itemsize
        columns.packed = plan.packed + part.column * job.itemsize
        if job.dy == NULL:
            plan.columns.apply(job.out + at, job.x + at, &part.block, &columns, job.stream)
        elif job.training:
            plan.columns.apply_grads(
                job.out + at, job.dy + at, job.x + at, &part.block, &columns, job.stream)
        else:
            plan.columns.apply(job.out + at, job.dy + at, &part.block, &columns, job.stream)
    if job.stream:
        stream_fence()


cdef void first_shifts(
    Job *job, Plan *plan, Py_ssize_t b, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    cdef Py_ssize_t j
    if job.dy == NULL:
        for j in range(first, last):
            job.shift[b * plan.c + j] = plan.columns.first_shift(
                job.x + (b * plan.m * plan.c + j) * job.itemsize, plan.m, plan.c)


cdef void spread_shifts(
    Job *job, Plan *plan, Py_ssize_t b, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    # One shift per channel -> one per column of a folded row.
    cdef Py_ssize_t j, k
    for k in range(plan.fold):
        for j in range(first, last):
            plan.shift[b * plan.wide + k * plan.c + j] = job.shift[b * plan.c + j]


cdef void add_unit(
    Job *job, Plan *plan, const double *totals, Py_ssize_t pitch, Py_ssize_t b,
    Py_ssize_t first, Py_ssize_t last, bint start,
) noexcept nogil:
    # Adds one unit to the sums of channels first..last; totals[0] is column `first`.
    cdef Py_ssize_t j, k, f, at
    cdef double total
    for k in range(job.width):
        for j in range(first, last):
            at = k * job.statistics + b * plan.c + j
            total = 0.0 if start else job.sums[at]
            for f in range(plan.fold):
                total += totals[k * pitch + f * plan.c + j - first]
            job.sums[at] = total


cdef bint bad_shifts(
    Job *job, Plan *plan, Py_ssize_t b, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    cdef bint bad = False
    cdef Py_ssize_t j
    if job.dy == NULL:
        for j in range(b * plan.c + first, b * plan.c + last):
            if shift_was_bad(job, j):
                bad = True
    return bad


cdef Coefficients settle_columns(
    Job *job, Plan *plan, Py_ssize_t b, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    # Settles channels first..last of b and packs their coefficients for the vector loops.
    cdef Coefficients columns
    cdef Py_ssize_t j, k
    cdef bint wide = False
    cdef Channel *channels = job.channels + b * plan.c
    columns.pitch = plan.b * plan.wide
    columns.period = plan.c
    columns.packed = NULL
    for j in range(first, last):
        job.settle(job, b * plan.c + j)
        wide = wide or channels[j].wide != 0
        if job.out != NULL:
            for k in range(plan.fold):
                plan.columns.pack(
                    plan.packed, columns.pitch, b * plan.wide + k * plan.c + j, channels + j,
                    job.dy != NULL and job.training)
    columns.channels = channels + first if wide and job.itemsize == 4 else NULL
    return columns


cdef void one_strip(
    Job *job, Plan *plan, double *totals, Py_ssize_t item, bint reduce
) noexcept nogil:
    cdef Py_ssize_t b = item // plan.strips, strip = item % plan.strips
    cdef Py_ssize_t first = strip * STRIP if plan.strips > 1 else 0
    cdef Py_ssize_t last = min(plan.c, first + STRIP) if plan.strips > 1 else plan.c
    cdef Py_ssize_t pitch = STRIP if plan.strips > 1 else plan.wide
    cdef Py_ssize_t unit
    cdef Coefficients columns
    cdef int sweep
    if reduce:
        first_shifts(job, plan, b, first, last)
        for sweep in range(2):
            spread_shifts(job, plan, b, first, last)
            for unit in range(plan.units):
                unit_sums(job, plan, totals, pitch, b, unit, strip)
                add_unit(job, plan, totals, pitch, b, first, last, unit == 0)
            if sweep == 1 or not bad_shifts(job, plan, b, first, last):
                break
    columns = settle_columns(job, plan, b, first, last)
    if job.out != NULL:
        for unit in range(plan.units):
            unit_elementwise(job, plan, columns, b, unit, strip)


cdef void by_unit(Job *job, Plan *plan, double *totals, bint reduce, int threads) noexcept nogil:
    cdef Py_ssize_t b, unit
    cdef Py_ssize_t pitch = plan.wide, total = job.width * plan.wide
    cdef Coefficients columns
    cdef int sweep
    for b in range(plan.b):
        if reduce:
            first_shifts(job, plan, b, 0, plan.c)
            for sweep in range(2):
                spread_shifts(job, plan, b, 0, plan.c)
                for unit in prange(plan.units, num_threads=threads, schedule="static"):
                    unit_sums(job, plan, totals + unit * total, pitch, b, unit, 0)
                for unit in range(plan.units):
                    add_unit(job, plan, totals + unit * total, pitch, b, 0, plan.c, unit == 0)
                if sweep == 1 or not bad_shifts(job, plan, b, 0, plan.c):
                    break
        columns = settle_columns(job, plan, b, 0, plan.c)
        if job.out != NULL:
            # Backwards, because the end of the array is what the sums left in the cache.
            for unit in prange(plan.units - 1, -1, -1, num_threads=threads, schedule="static"):
                unit_elementwise(job, plan, columns, b, unit, 0)


cdef int launch(
    Job *job, bint reduce, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads
) except -1:
    cdef Plan plan
    cdef double *memory
    cdef double *totals
    cdef PyThreadState *state
    cdef Py_ssize_t item, items, columns, slots
    check_threads(threads)
    if job.size == 0:
        return 0
    plan = make_plan(job, b, m, c)
    columns = b * plan.wide
    items = b * plan.strips
    # By unit, every unit has totals of its own; else one set per strip at work.
    slots = plan.units if plan.strips == 1 and b < threads else items
    memory = scratch(
        columns + columns * COEFFICIENTS * job.itemsize // sizeof(double) + 1
        + slots * 3 * max(plan.wide if plan.strips == 1 else STRIP, <Py_ssize_t>1))
    plan.shift = memory
    plan.packed = <char *>(memory + columns)
    totals = memory + columns + columns * COEFFICIENTS * job.itemsize // sizeof(double) + 1
    state = release(job)
    if plan.strips == 1 and b < threads:
        by_unit(job, &plan, totals, reduce, threads)
    elif threads == 1:
        for item in range(items):
            one_strip(job, &plan, totals, item, reduce)
    else:
        run_strips(job, &plan, totals, items, reduce, threads)
    acquire(state)
    PyMem_RawFree(memory)
    return 0


cdef void run_strips(
    Job *job, Plan *plan, double *totals, Py_ssize_t items, bint reduce, int threads
) noexcept nogil:
    cdef Py_ssize_t item
    cdef Py_ssize_t slot = 3 * (plan.wide if plan.strips == 1 else STRIP)
    for item in prange(items, num_threads=threads, schedule="static"):
        one_strip(job, plan, totals + item * slot, item, reduce)


# The kernels of the table ----------------------------------------------------------------------


def moments(
    cnp.ndarray mean not None, cnp.ndarray m2 not None, cnp.ndarray x not None,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """Mean and sum of squared deviations of every cell (b, c)."""
    cdef Job *job = new_job(None, x, None, b * c, c, b * m * c)
    try:
        moments_job(job, mean, m2)
        launch(job, True, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def apply(
    cnp.ndarray y not None, cnp.ndarray x not None, cnp.ndarray mean not None,
    cnp.ndarray var not None, object weight, object bias, double eps,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """y = (x - mean) / sqrt(var + eps) * weight + bias with given statistics."""
    cdef Job *job = new_job(y, x, None, b * c, c, b * m * c)
    try:
        apply_job(job, mean, var, weight, bias, eps)
        launch(job, False, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def forward(
    cnp.ndarray y not None, cnp.ndarray mean not None, cnp.ndarray var not None,
    cnp.ndarray rstd not None, cnp.ndarray x not None, object weight, object bias, double eps,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """Statistics of x, and y = (x - mean) * rstd * weight + bias."""
    cdef Job *job = new_job(y, x, None, b * c, c, b * m * c)
    try:
        forward_job(job, mean, var, rstd, weight, bias, eps)
        launch(job, True, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def reduce_grads(
    cnp.ndarray sum_dy not None, cnp.ndarray sum_dy_xmu not None, cnp.ndarray dy not None,
    cnp.ndarray x not None, cnp.ndarray mean not None,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """sum(dy) and sum(dy * (x - mean)) of every (b, c)."""
    cdef Job *job = new_job(None, x, dy, b * c, c, b * m * c)
    try:
        reduce_grads_job(job, sum_dy, sum_dy_xmu, mean)
        launch(job, True, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def apply_grads(
    cnp.ndarray dx not None, cnp.ndarray dy not None, cnp.ndarray x not None,
    cnp.ndarray mean not None, cnp.ndarray rstd not None, object weight,
    cnp.ndarray sum_dy not None, cnp.ndarray sum_dy_xmu not None, double count,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """dx from the two sums over `count` elements per statistic."""
    cdef Job *job = new_job(dx, x, dy, b * c, c, b * m * c)
    try:
        apply_grads_job(job, mean, rstd, weight, sum_dy, sum_dy_xmu, count)
        launch(job, False, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def backward(
    cnp.ndarray dx not None, cnp.ndarray dweight not None, cnp.ndarray dbias not None,
    cnp.ndarray dy not None, cnp.ndarray x not None, cnp.ndarray mean not None,
    cnp.ndarray rstd not None, object weight, bint training,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """dx, dweight and dbias; with training=False the statistics are constants."""
    cdef Job *job = new_job(dx, x, dy, b * c, c, b * m * c)
    try:
        backward_job(job, dweight, dbias, mean, rstd, weight, training)
        launch(job, True, b, m, c, threads)
        give_parameter_grads(job)
    finally:
        PyMem_RawFree(job)
