# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Family nc in Cython: b times m rows of c contiguous channels.

`table.py` says what the arguments are, `normcore/reference.py` what is computed, columns.h holds
the arithmetic on a block of rows; here stand the schedules.

Rows of few channels are read `fold` at a time as one wide row, so that every vector is full. A
pass has three sweeps: sums, over units of rows; statistics and coefficients, over pieces of
columns, from the units' sums in order; elementwise, over units of rows again, backwards, because
the end of a thread's share is what the sums left in its cache.

Strips of columns that fit a core's cache, to read x once, lost: rows 4 KB apart share few cache
sets and touch a page each; (1024, 1024) took 540 us where this schedule took 400, and takes 290.
"""

from cython.parallel cimport prange

include "passes.pxi"

cdef extern from "columns.h" nogil:
    enum: COEFFICIENTS
    enum: WRAP
    ctypedef struct Block:
        Py_ssize_t rows, cols
    ctypedef struct Coefficients:
        const void *packed
        Py_ssize_t pitch
        const Channel *channels
        Py_ssize_t period
    ctypedef struct Columns:
        Py_ssize_t itemsize
        void (*first_shifts)(
            double *shift, const void *x, const Block *block, Py_ssize_t first, Py_ssize_t last
        ) noexcept nogil
        void (*sums)(
            double *sum, double *square, const void *x, const Block *block, const double *shift
        ) noexcept nogil
        void (*grad_sums)(
            double *sum, double *product, double *rest, const void *dy, const void *x,
            const Block *block, const double *mean
        ) noexcept nogil
        void (*pack)(
            void *packed, Py_ssize_t pitch, Py_ssize_t column, const Channel *channel, int gradient
        ) noexcept nogil
        void (*apply)(
            void *y, const void *x, const Block *block, const Coefficients *columns, int stream
        ) noexcept nogil
        void (*apply_grads)(
            void *dx, const void *dy, const void *x, const Block *block,
            const Coefficients *columns, int stream
        ) noexcept nogil
    const Columns columns_f32, columns_f64

cdef Py_ssize_t UNIT_BLOCK = _schedule.UNIT_BLOCK
cdef Py_ssize_t UNIT_BLOCK_LEAST = _schedule.UNIT_BLOCK_LEAST
cdef Py_ssize_t UNITS = _schedule.UNITS
# Rows are folded until they hold FOLD columns and, where that takes no more than FOLD_MOST, are
# whole cache lines.
cdef Py_ssize_t FOLD = 64
cdef Py_ssize_t FOLD_MOST = 1024
# Columns whose totals one thread settles at a time.
cdef Py_ssize_t PIECE = 64

cdef enum:  # what a piece of columns holds
    PLAIN
    WIDE
    BAD_SHIFT


cdef struct Plan:
    # The sizes and how they are cut: by sizes alone, never by the number of threads.
    const Columns *columns
    Py_ssize_t b, m, c
    Py_ssize_t fold        # rows that are read as one
    Py_ssize_t wide        # columns of such a row: fold * c
    Py_ssize_t rows        # whole folded rows of one b; what is left over is one shorter row
    Py_ssize_t unit        # folded rows of one unit
    Py_ssize_t units       # units of one b
    Py_ssize_t pieces      # pieces of c columns
    double *shift          # (b, wide): the channel's shift under every column
    double *totals         # (b, units, width, wide): sums of every unit
    char *packed           # (COEFFICIENTS, b, wide + WRAP) in the element type
    double *flags          # (b, pieces): PLAIN, WIDE or BAD_SHIFT
    bint again             # second sweep of sums, about better shifts
    bint any_wide


cdef void make_plan(
    Plan *plan, Job *job, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c
) noexcept nogil:
    cdef Py_ssize_t block = max(UNIT_BLOCK_LEAST, min(UNIT_BLOCK, m * c // UNITS))
    plan.columns = &columns_f32 if job.itemsize == 4 else &columns_f64
    plan.b, plan.m, plan.c = b, m, c
    plan.fold = max(1, min(m, fold_of(c, 64 // job.itemsize)))
    plan.wide = plan.fold * c
    plan.rows = m // plan.fold
    plan.unit = max(8, block // plan.wide // 8 * 8)
    plan.units = (m + plan.fold * plan.unit - 1) // (plan.fold * plan.unit)
    plan.pieces = (c + PIECE - 1) // PIECE
    plan.again = plan.any_wide = False


cdef Py_ssize_t fold_of(Py_ssize_t c, Py_ssize_t line) noexcept nogil:
    # Rows to read as one, of `line` elements in a cache line.
    cdef Py_ssize_t lines = 1, fold
    while lines * c % line != 0:
        lines *= 2
    fold = lines
    while fold * c < FOLD:
        fold += lines
    return fold if fold * c <= FOLD_MOST else (FOLD + c - 1) // c


cdef struct Part:
    # Rows of one b: the block, where it starts in x, and its first column in (b, wide).
    Block block
    Py_ssize_t at, column


cdef inline Part part_of(Plan *plan, Py_ssize_t item, bint rest) noexcept nogil:
    # The whole folded rows of a unit or, with `rest`, the rows that folding leaves over.
    cdef Part part
    cdef Py_ssize_t b = item // plan.units, unit = item % plan.units, row = unit * plan.unit
    part.block.cols = plan.wide
    part.block.rows = max(0, min(plan.unit, plan.rows - row))
    if rest:
        row = plan.rows
        part.block.cols = plan.m % plan.fold * plan.c
        part.block.rows = 1 if unit == plan.units - 1 and part.block.cols > 0 else 0
    part.at = b * plan.m * plan.c + row * plan.wide
    part.column = b * plan.wide
    return part


cdef void unit_sums(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    cdef double *totals = plan.totals + item * job.width * plan.wide
    cdef Part part
    cdef Py_ssize_t at
    cdef int rest
    for at in range(job.width * plan.wide):
        totals[at] = 0.0
    for rest in range(2):
        part = part_of(plan, item, rest)
        at = part.at * job.itemsize
        if job.dy == NULL:
            plan.columns.sums(
                totals, totals + plan.wide, job.x + at, &part.block, plan.shift + part.column)
        else:
            plan.columns.grad_sums(
                totals, totals + plan.wide, totals + 2 * plan.wide, job.dy + at, job.x + at,
                &part.block, plan.shift + part.column)


cdef void unit_elementwise(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    cdef Coefficients columns
    cdef Part part
    cdef Py_ssize_t at
    cdef int rest
    columns.pitch = plan.b * (plan.wide + WRAP)
    columns.period = plan.c
    columns.packed = plan.packed + item // plan.units * (plan.wide + WRAP) * job.itemsize
    for rest in range(2):
        part = part_of(plan, item, rest)
        at = part.at * job.itemsize
        columns.channels = NULL
        if plan.any_wide and job.itemsize == 4:
            columns.channels = job.channels + item // plan.units * plan.c
        if job.dy == NULL:
            plan.columns.apply(job.out + at, job.x + at, &part.block, &columns, job.stream)
        elif job.training:
            plan.columns.apply_grads(
                job.out + at, job.dy + at, job.x + at, &part.block, &columns, job.stream)
        else:
            plan.columns.apply(job.out + at, job.dy + at, &part.block, &columns, job.stream)


cdef void piece_shifts(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    # The shifts of a piece of channels (in a forward: found here), under every folded column.
    cdef Py_ssize_t b = item // plan.pieces, j, k
    cdef Py_ssize_t first = item % plan.pieces * PIECE, last = min(plan.c, first + PIECE)
    cdef Block block
    if job.dy == NULL and not plan.again:
        block.rows = plan.m
        block.cols = plan.c
        plan.columns.first_shifts(
            job.shift + b * plan.c, job.x + b * plan.m * plan.c * job.itemsize, &block, first, last)
    for k in range(plan.fold):
        for j in range(first, last):
            plan.shift[b * plan.wide + k * plan.c + j] = job.shift[b * plan.c + j]


cdef void piece_totals(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    # Unit by unit in order, whoever summed them; then the statistics, unless a shift was bad.
    cdef Py_ssize_t b = item // plan.pieces, j, k, f, unit
    cdef Py_ssize_t first = item % plan.pieces * PIECE, last = min(plan.c, first + PIECE)
    cdef double *sums
    cdef const double *totals
    for k in range(job.width):
        sums = job.sums + k * job.statistics + b * plan.c
        for j in range(first, last):
            sums[j] = 0.0
        for unit in range(plan.units):
            totals = plan.totals + ((b * plan.units + unit) * job.width + k) * plan.wide
            for f in range(plan.fold):
                for j in range(first, last):
                    sums[j] += totals[f * plan.c + j]
    plan.flags[item] = PLAIN
    if job.dy == NULL and not plan.again:
        for j in range(first, last):
            if shift_was_bad(job, b * plan.c + j):
                plan.flags[item] = BAD_SHIFT
        if plan.flags[item] == BAD_SHIFT:
            return
    piece_settle(job, plan, item)


cdef void piece_settle(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    # The statistics of a piece of channels, and their coefficients as the vector loops want them.
    cdef Py_ssize_t b = item // plan.pieces, j, k, pitch = plan.b * (plan.wide + WRAP)
    cdef Py_ssize_t first = item % plan.pieces * PIECE, last = min(plan.c, first + PIECE)
    cdef Channel *channels = job.channels + b * plan.c
    plan.flags[item] = PLAIN
    for j in range(first, last):
        job.settle(job, b * plan.c + j)
        if job.out != NULL:
            if channels[j].wide != 0:
                plan.flags[item] = WIDE
            k = j
            while k < plan.wide + WRAP:
                plan.columns.pack(
                    plan.packed, pitch, b * (plan.wide + WRAP) + k, channels + j,
                    job.dy != NULL and job.training)
                k += plan.c


cdef bint any_piece(Plan *plan, double flag) noexcept nogil:
    cdef Py_ssize_t item
    for item in range(plan.b * plan.pieces):
        if plan.flags[item] == flag:
            return True
    return False


ctypedef void (*step_t)(Job *, Plan *, Py_ssize_t) noexcept nogil


cdef void share(
    step_t step, Job *job, Plan *plan, Py_ssize_t items, int threads, bint backwards
) noexcept nogil:
    # A thread's share of the items is the same in every sweep.
    cdef int t
    if threads == 1:
        one_share(step, job, plan, 0, items, backwards)
    else:
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            one_share(
                step, job, plan, items * t // threads, items * (t + 1) // threads, backwards)


cdef void one_share(
    step_t step, Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last, bint backwards
) noexcept nogil:
    cdef Py_ssize_t item
    for item in range(first, last):
        step(job, plan, first + last - 1 - item if backwards else item)
    if job.stream and backwards:
        stream_fence()


cdef void run(Job *job, Plan *plan, bint reduce, int threads) noexcept nogil:
    cdef Py_ssize_t units = plan.b * plan.units, pieces = plan.b * plan.pieces
    # A piece is soon done: not worth a thread's wake-up until there are several.
    cdef int sweep, settlers = threads if pieces >= 4 else 1
    if reduce:
        for sweep in range(2):
            share(piece_shifts, job, plan, pieces, settlers, False)
            share(unit_sums, job, plan, units, threads, False)
            share(piece_totals, job, plan, pieces, settlers, False)
            plan.again = sweep == 0 and any_piece(plan, BAD_SHIFT)
            if not plan.again:
                break
    else:
        share(piece_settle, job, plan, pieces, settlers, False)
    if job.out != NULL:
        plan.any_wide = any_piece(plan, WIDE)
        share(unit_elementwise, job, plan, units, threads, True)


cdef int launch(
    Job *job, bint reduce, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads
) except -1:
    cdef Plan plan
    cdef PyThreadState *state
    cdef Py_ssize_t totals, packed
    check_threads(threads)
    if job.size == 0:
        return 0
    make_plan(&plan, job, b, m, c)
    totals = b * plan.units * job.width * plan.wide if reduce else 0
    packed = b * (plan.wide + WRAP) * COEFFICIENTS * job.itemsize // <Py_ssize_t>sizeof(double) + 17
    plan.shift = scratch(b * plan.wide + totals + packed + b * plan.pieces)
    plan.totals = plan.shift + b * plan.wide
    # As far from a cache line as the output: where one is aligned, so is the other.
    plan.packed = <char *>(plan.totals + totals)
    plan.packed += <size_t>job.out % 64 + (64 - <size_t>plan.packed % 64) % 64
    plan.flags = plan.totals + totals + packed
    state = release(job)
    run(job, &plan, reduce, threads)
    acquire(state)
    PyMem_RawFree(plan.shift)
    return 0


# The kernels of the table ----------------------------------------------------------------------


def moments(
    cnp.ndarray mean not None, cnp.ndarray m2 not None, cnp.ndarray x not None,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """Mean and sum of squared deviations of every cell (b, c)."""
    cdef Job *job = new_job(None, x, None, b * c, c, product(b, m, c))
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
    cdef Job *job = new_job(y, x, None, b * c, c, product(b, m, c))
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
    cdef Job *job = new_job(y, x, None, b * c, c, product(b, m, c))
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
    cdef Job *job = new_job(None, x, dy, b * c, c, product(b, m, c))
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
    cdef Job *job = new_job(dx, x, dy, b * c, c, product(b, m, c))
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
    cdef Job *job = new_job(dx, x, dy, b * c, c, product(b, m, c))
    try:
        backward_job(job, dweight, dbias, mean, rstd, weight, training)
        launch(job, True, b, m, c, threads)
        give_parameter_grads(job)
    finally:
        PyMem_RawFree(job)
