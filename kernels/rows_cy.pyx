# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Family rows in Cython: r rows of m contiguous elements (layer norm, RMS norm).

`table.py` says what the arguments are, `normcore/reference.py` what is computed, rows.h holds the
arithmetic on a row; here stand the schedules.

A row is summed, settled and written while it lies in the cache, so x comes from memory once. In a
backward a few rows are taken together, and their part of dweight and dbias is added up column by
column in registers. Those sums run over *units* of rows, which follow from the sizes alone, and
are added unit by unit: the bits do not depend on the number of threads.

RMS norm is mean=None: the shift and every mean are 0.
"""

from cython.parallel cimport prange
from cpython.pystate cimport PyThreadState
from libc.string cimport memcpy, memset

include "array.pxi"

from normcore.kernels import schedule as _schedule

cdef Py_ssize_t STREAM_BYTES = _schedule.STREAM_BYTES
cdef Py_ssize_t NOGIL_SIZE = _schedule.NOGIL_SIZE
cdef Py_ssize_t UNITS = _schedule.UNITS
cdef Py_ssize_t UNIT_LEAST = _schedule.UNIT_BLOCK_LEAST

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    PyThreadState *PyEval_SaveThread() noexcept
    void PyEval_RestoreThread(PyThreadState *state) noexcept

cdef extern from "rows.h" nogil:
    enum: TOGETHER
    ctypedef struct Row:
        double hi, lo, rstd, slope, mean_g_hi, mean_g_lo
        bint wide
    ctypedef struct Affine:
        const void *weight
        const void *bias
    ctypedef struct RowGrads:
        char *dx
        const char *dy
        const char *x
        const char *addend
        const void *weight
        double *dweight
        double *dbias
        Py_ssize_t rows, len, pitch
        bint stream
    ctypedef struct Rows:
        Py_ssize_t itemsize, computed
        double (*first_shift)(const void *x, Py_ssize_t len) noexcept nogil
        void (*sums)(double *sums, const void *x, Py_ssize_t len, double shift) noexcept nogil
        void (*grad_sums)(
            double *sums, const void *dy, const void *x, const double *weight, Py_ssize_t len,
            double mean) noexcept nogil
        void (*apply)(
            void *y, const void *x, const void *residual, Py_ssize_t len, const Row *row,
            const Affine *affine, int activation, int stream) noexcept nogil
        void (*activation_grads)(
            void *g, const void *dy, const void *x, const void *residual, Py_ssize_t len,
            const Row *row, const Affine *affine, int activation, int stream) noexcept nogil
        void (*grads)(const RowGrads *at, const Row *row) noexcept nogil
        void (*add)(
            void *total, void *copy, const void *x, const void *addend, Py_ssize_t len, int stream
        ) noexcept nogil
    const Rows rows_f32, rows_f64, rows_f16, rows_bf16
    int is_wide(double mean, double rstd, double scale)
    void stream_fence()


cdef struct Job:
    const Rows *rows
    Py_ssize_t r, m, itemsize
    char *out                    # y, g or dx
    char *total                  # add_forward's second output
    const char *x
    const char *dy
    const char *added            # residual (forward), addend (add_forward, backward), or NULL
    const unsigned char *mask    # q bytes per row, each for `period` elements, or NULL
    Py_ssize_t q, period
    double *mean                 # NULL: nothing is centred
    double *rstd
    Affine affine
    const double *weight         # of a backward: always float64
    double eps
    int activation
    bint stream
    double lost                  # what a shift may cost before the sums are taken again
    Py_ssize_t unit, units       # rows of one unit; how many units
    Py_ssize_t pitch             # doubles of one dweight or dbias in `parts`
    double *parts                # (units, 2, pitch): what each unit adds to dweight and dbias
    char *copies                 # (threads, row): the totals of the row in work
    Py_ssize_t copy_size
    void *memory


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
    mask = job.mask + i * job.q
    at = end[0] // job.period
    while at < job.q and mask[at] == 0:
        at += 1
    start[0] = at * job.period
    while at < job.q and mask[at] != 0:
        at += 1
    end[0] = at * job.period
    return start[0] < end[0]


# Sums -> statistics and coefficients of row i --------------------------------------------------


cdef inline void split_mean(Job *job, Row *row, double hi, double lo, double rstd) noexcept nogil:
    # In float32, hi must be a float32 and lo the rest of the mean.
    row.rstd = rstd
    row.hi = hi
    row.lo = lo
    row.wide = False
    if job.itemsize != 8:
        row.wide = is_wide(hi, rstd, rstd)
        if not row.wide:
            row.hi = <float>(hi + lo)
            row.lo = (hi - row.hi) + lo


cdef inline double run_sums(
    Job *job, Py_ssize_t i, const char *x, double shift, double *sums
) noexcept nogil:
    # The number of elements that count.
    cdef Py_ssize_t start = 0, end = 0, count = 0
    sums[0] = sums[1] = 0.0
    while next_run(job, i, &start, &end):
        job.rows.sums(sums, x + start * job.itemsize, end - start, shift)
        count += end - start
    return <double>count


cdef void statistics(Job *job, Py_ssize_t i, const char *x, Row *row) noexcept nogil:
    cdef Py_ssize_t start = 0, end = 0
    cdef double sums[2]
    cdef double shift = 0.0, lo = 0.0, count, excess, var, rstd
    if not next_run(job, i, &start, &end):
        if job.mean != NULL:
            job.mean[i] = 0.0
        job.rstd[i] = 0.0
        split_mean(job, row, 0.0, 0.0, 0.0)
        return
    if job.mean != NULL:
        shift = job.rows.first_shift(x + start * job.itemsize, end - start)
    count = run_sums(job, i, x, shift, sums)
    if job.mean != NULL:
        excess = sums[0] * sums[0] / count
        if excess > 0.0 and excess > job.lost * (sums[1] - excess):
            shift += sums[0] / count
            count = run_sums(job, i, x, shift, sums)
            excess = sums[0] * sums[0] / count
        lo = sums[0] / count
        sums[1] = sums[1] - excess
        if sums[1] < 0.0:
            sums[1] = 0.0
        job.mean[i] = shift + lo
    var = sums[1] / count
    rstd = 1.0 / sqrt(var + job.eps)
    job.rstd[i] = rstd
    split_mean(job, row, shift, lo, rstd)


cdef void gradient_statistics(Job *job, Py_ssize_t i, Row *row) noexcept nogil:
    cdef Py_ssize_t start = 0, end = 0, at, count = 0
    cdef double sums[3]
    cdef double mean = 0.0, mean_g = 0.0, rest = 0.0
    sums[0] = sums[1] = sums[2] = 0.0
    if job.mean != NULL:
        mean = job.mean[i]
    while next_run(job, i, &start, &end):
        at = (i * job.m + start) * job.itemsize
        job.rows.grad_sums(
            sums, job.dy + at, job.x + at, job.weight + start, end - start, mean)
        count += end - start
    if count == 0:
        count = 1
    if job.mean != NULL:
        # What the rounded mean leaves in the deviations comes off again.
        rest = sums[2] / count
        mean_g = sums[0] / count
        sums[1] -= sums[0] * rest
    split_mean(job, row, mean, rest, job.rstd[i])
    row.slope = row.rstd * row.rstd * (sums[1] / count)
    row.mean_g_hi = mean_g
    row.mean_g_lo = 0.0
    if job.itemsize != 8 and not row.wide:
        row.mean_g_hi = <float>mean_g
        row.mean_g_lo = mean_g - row.mean_g_hi


# What one thread does --------------------------------------------------------------------------


cdef inline const char *added_at(Job *job, Py_ssize_t at) noexcept nogil:
    if job.added == NULL:
        return NULL
    return job.added + at


cdef void forward_rows(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t i, at
    cdef const char *x
    cdef const char *residual
    cdef char *copy
    cdef Row row
    for i in range(first, last):
        at = i * job.m * job.itemsize
        x = job.x + at
        if job.total != NULL:
            copy = NULL if job.copies == NULL else job.copies + thread * job.copy_size
            job.rows.add(job.total + at, copy, x, job.added + at, job.m, job.stream)
            x = copy
            if copy == NULL:
                x = job.total + at
        statistics(job, i, x, &row)
        residual = added_at(job, at)
        if job.total != NULL:
            residual = NULL
        job.rows.apply(
            job.out + at, x, residual, job.m, &row, &job.affine, job.activation, job.stream)
    if job.stream:
        stream_fence()


cdef void activation_rows(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t i, at
    cdef Row row
    for i in range(first, last):
        at = i * job.m * job.itemsize
        split_mean(job, &row, 0.0 if job.mean == NULL else job.mean[i], 0.0, job.rstd[i])
        job.rows.activation_grads(
            job.out + at, job.dy + at, job.x + at,
            added_at(job, at), job.m, &row, &job.affine,
            job.activation, job.stream)
    if job.stream:
        stream_fence()


cdef void backward_units(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t unit, i, end
    cdef double *part
    for unit in range(first, last):
        part = job.parts + unit * 2 * job.pitch
        memset(part, 0, 2 * job.pitch * sizeof(double))
        i = unit * job.unit
        end = min(job.r, i + job.unit)
        while i < end:
            if job.mask == NULL:
                together_backward(job, i, min(<Py_ssize_t>TOGETHER, end - i), part)
                i += TOGETHER
            else:
                masked_backward(job, i, part)
                i += 1
    if job.stream:
        stream_fence()


cdef inline RowGrads grads_at(
    Job *job, Py_ssize_t i, Py_ssize_t start, Py_ssize_t len, double *part
) noexcept nogil:
    # From element `start` of row i on.
    cdef RowGrads grads
    cdef Py_ssize_t at = (i * job.m + start) * job.itemsize
    grads.dx = job.out + at
    grads.dy = job.dy + at
    grads.x = job.x + at
    grads.addend = added_at(job, at)
    grads.weight = <const char *>job.affine.weight + start * job.rows.computed
    grads.dweight = part + start
    grads.dbias = part + job.pitch + start
    grads.rows = 1
    grads.len = len
    grads.pitch = job.m
    grads.stream = job.stream
    return grads


cdef void together_backward(
    Job *job, Py_ssize_t i, Py_ssize_t rows, double *part
) noexcept nogil:
    cdef Row row[TOGETHER]
    cdef RowGrads grads = grads_at(job, i, 0, job.m, part)
    cdef Py_ssize_t k
    for k in range(rows):
        gradient_statistics(job, i + k, row + k)
    grads.rows = rows
    job.rows.grads(&grads, row)


cdef void masked_backward(Job *job, Py_ssize_t i, double *part) noexcept nogil:
    # Run by run; dx of the elements between is addend or 0.
    cdef Row row
    cdef RowGrads grads
    cdef Py_ssize_t start = 0, end = 0, before = 0
    gradient_statistics(job, i, &row)
    while next_run(job, i, &start, &end):
        no_gradient(job, i, before, start)
        grads = grads_at(job, i, start, end - start, part)
        job.rows.grads(&grads, &row)
        before = end
    no_gradient(job, i, before, job.m)


cdef void no_gradient(Job *job, Py_ssize_t i, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    cdef Py_ssize_t at = (i * job.m + start) * job.itemsize
    cdef Py_ssize_t size = (end - start) * job.itemsize
    if job.added == NULL:
        memset(job.out + at, 0, size)
    elif job.out != job.added:
        memcpy(job.out + at, job.added + at, size)


cdef void merge_units(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    # Columns first to last of dweight and dbias, into the first unit's place.
    cdef Py_ssize_t unit, j
    cdef int k
    cdef double *to
    cdef const double *part
    for k in range(2):
        to = job.parts + k * job.pitch
        for unit in range(1, job.units):
            part = job.parts + (2 * unit + k) * job.pitch
            for j in range(first, last):
                to[j] += part[j]


ctypedef void (*step_t)(Job *, int, Py_ssize_t, Py_ssize_t) noexcept nogil


cdef void share(step_t step, Job *job, Py_ssize_t items, int threads) noexcept nogil:
    cdef int t
    if threads == 1:
        step(job, 0, 0, items)
    else:
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            step(job, t, items * t // threads, items * (t + 1) // threads)


cdef void run(step_t step, Job *job, Py_ssize_t items, int threads) noexcept:
    # The GIL is let go only where the work is worth it.
    cdef PyThreadState *state = NULL
    if job.r * job.m >= NOGIL_SIZE:
        state = PyEval_SaveThread()
    share(step, job, items, threads)
    if state != NULL:
        PyEval_RestoreThread(state)


# From the arguments of a kernel to its job: every check, before anything is written -------------


cdef int start_job(
    Job *job, cnp.ndarray x, object mean, cnp.ndarray rstd, Py_ssize_t r, Py_ssize_t m,
    bint statistics_out, int threads,
) except -1:
    cdef Storage storage = storage_of(x, "x")
    cdef cnp.ndarray centre
    memset(job, 0, sizeof(Job))
    check_threads(threads)
    if r < 0 or m < 0 or (m > 0 and r > PY_SSIZE_T_MAX // m):
        refuse("sizes", "none negative, and fewer elements than memory holds", (r, m))
    check(x, "x", r * m)
    job.rows = &rows_f32
    if storage == F64:
        job.rows = &rows_f64
    elif storage == F16:
        job.rows = &rows_f16
    elif storage == BF16:
        job.rows = &rows_bf16
    job.r = r
    job.m = m
    job.itemsize = job.rows.itemsize
    job.x = <const char *>cnp.PyArray_DATA(x)
    job.lost = 8.0 if storage == F64 else 1024.0
    job.stream = r * m * job.itemsize >= STREAM_BYTES
    if mean is not None:
        if not isinstance(mean, cnp.ndarray):
            raise TypeError(f"mean: expected an array or None, got {type(mean).__name__}")
        centre = mean
        (check_out if statistics_out else check_real)(centre, "mean", r, cnp.NPY_FLOAT64)
        job.mean = doubles(centre)
    (check_out if statistics_out else check_real)(rstd, "rstd", r, cnp.NPY_FLOAT64)
    job.rstd = doubles(rstd)
    return cnp.PyArray_TYPE(x)


cdef int take_mask(Job *job, object mask) except -1:
    job.mask = mask_data(mask)
    if job.mask != NULL:
        job.q = cnp.PyArray_SIZE(mask) // max(1, job.r)
        if job.q * job.r != cnp.PyArray_SIZE(mask) or job.q == 0 or job.m % job.q != 0:
            if job.r * job.m > 0:
                refuse("mask", f"{job.r} rows of a divisor of {job.m} elements", mask.shape)
            job.mask = NULL
        else:
            job.period = job.m // job.q
    return 0


cdef char *converted(
    char *to, Parameter *given, Py_ssize_t size, double default, bint single, const void **found
) noexcept nogil:
    # In the type that is computed in: the parameter itself, or a copy at `to`, whose end returns.
    cdef Py_ssize_t j
    if single and given.single != NULL:
        found[0] = given.single
        return to
    if not single and given.double_ != NULL:
        found[0] = given.double_
        return to
    found[0] = to
    if single:
        for j in range(size):
            (<float *>to)[j] = <float>value(given, j, default)
    else:
        for j in range(size):
            (<double *>to)[j] = value(given, j, default)
    return to + size * sizeof(double)


cdef int allocate(
    Job *job, object weight, object bias, Py_ssize_t doubles_more
) except -1:
    # Room for weight and bias as they are computed with, and for `doubles_more` doubles after them.
    cdef Parameter given_weight = parameter(weight, "weight", job.m)
    cdef Parameter given_bias = parameter(bias, "bias", job.m)
    cdef bint single = job.rows.computed == 4
    cdef char *to
    job.memory = scratch(3 * job.m + doubles_more + 1)
    to = converted(<char *>job.memory, &given_weight, job.m, 1.0, single, &job.affine.weight)
    to = converted(to, &given_bias, job.m, 0.0, single, &job.affine.bias)
    if job.dy != NULL and job.out != NULL:
        to = converted(to, &given_weight, job.m, 1.0, False, <const void **>&job.weight)
    job.parts = <double *>to
    job.copies = to
    return 0


# The kernels of the table ----------------------------------------------------------------------


def forward(
    cnp.ndarray y not None, object mean, cnp.ndarray rstd not None, cnp.ndarray x not None,
    object residual, object mask, object weight, object bias, double eps, int activation,
    Py_ssize_t r, Py_ssize_t m, int threads,
):
    """Statistics of the rows of x, and y = activation(norm(x) + residual)."""
    cdef Job job
    cdef int typenum = start_job(&job, x, mean, rstd, r, m, True, threads)
    check_out(y, "y", r * m, typenum)
    check_activation(activation)
    job.out = <char *>cnp.PyArray_DATA(y)
    job.added = optional_input(residual, "residual", r * m, typenum)
    take_mask(&job, mask)
    job.eps = eps
    job.activation = activation
    allocate(&job, weight, bias, 0)
    job.copies = NULL
    if r * m > 0:
        run(forward_rows, &job, r, threads)
    PyMem_RawFree(job.memory)


def add_forward(
    cnp.ndarray y not None, cnp.ndarray total not None, object mean, cnp.ndarray rstd not None,
    cnp.ndarray x not None, cnp.ndarray addend not None, object weight, object bias, double eps,
    Py_ssize_t r, Py_ssize_t m, int threads,
):
    """total = x + addend, its statistics, and y = norm(total)."""
    cdef Job job
    cdef int typenum = start_job(&job, x, mean, rstd, r, m, True, threads)
    check_out(y, "y", r * m, typenum)
    check_out(total, "total", r * m, typenum)
    check_real(addend, "addend", r * m, typenum)
    job.out = <char *>cnp.PyArray_DATA(y)
    job.total = <char *>cnp.PyArray_DATA(total)
    job.added = <const char *>cnp.PyArray_DATA(addend)
    job.eps = eps
    # Threads' copies lie a line apart.
    job.copy_size = m * job.itemsize + 64
    allocate(&job, weight, bias, threads * job.copy_size // 8 + threads if job.stream else 0)
    if not job.stream:
        job.copies = NULL
    if r * m > 0:
        run(forward_rows, &job, r, threads)
    PyMem_RawFree(job.memory)


def activation_grads(
    cnp.ndarray g not None, cnp.ndarray dy not None, cnp.ndarray x not None, object residual,
    object mean, cnp.ndarray rstd not None, object weight, object bias, int activation,
    Py_ssize_t r, Py_ssize_t m, int threads,
):
    """g = dy * activation'(norm(x) + residual), the gradient before the activation."""
    cdef Job job
    cdef int typenum = start_job(&job, x, mean, rstd, r, m, False, threads)
    check_out(g, "g", r * m, typenum)
    check_real(dy, "dy", r * m, typenum)
    check_activation(activation)
    job.added = optional_input(residual, "residual", r * m, typenum)
    job.activation = activation
    allocate(&job, weight, bias, 0)
    job.out = <char *>cnp.PyArray_DATA(g)
    job.dy = <const char *>cnp.PyArray_DATA(dy)
    if r * m > 0:
        run(activation_rows, &job, r, threads)
    PyMem_RawFree(job.memory)


def backward(
    cnp.ndarray dx not None, cnp.ndarray dweight not None, cnp.ndarray dbias not None,
    cnp.ndarray dy not None, cnp.ndarray x not None, object addend, object mask, object mean,
    cnp.ndarray rstd not None, object weight, Py_ssize_t r, Py_ssize_t m, int threads,
):
    """dx (plus addend), dweight and dbias."""
    cdef Job job
    cdef int typenum = start_job(&job, x, mean, rstd, r, m, False, threads)
    cdef WritableParameter to_dweight = writable(dweight, "dweight", m)
    cdef WritableParameter to_dbias = writable(dbias, "dbias", m)
    cdef Py_ssize_t j
    check_out(dx, "dx", r * m, typenum)
    check_real(dy, "dy", r * m, typenum)
    job.out = <char *>cnp.PyArray_DATA(dx)
    job.dy = <const char *>cnp.PyArray_DATA(dy)
    job.added = optional_input(addend, "addend", r * m, typenum)
    take_mask(&job, mask)
    # No fewer rows to a unit than hold UNIT_LEAST elements, and whole groups of TOGETHER.
    job.unit = max((r + UNITS - 1) // UNITS, UNIT_LEAST // max(1, m), 1)
    job.unit = (job.unit + TOGETHER - 1) // TOGETHER * TOGETHER
    job.units = max(1, (r + job.unit - 1) // job.unit)
    job.pitch = (m + 7) // 8 * 8
    allocate(&job, weight, None, 2 * job.units * job.pitch)
    if r * m > 0:
        run(backward_units, &job, job.units, threads)
        run(merge_units, &job, m, 1)
    else:
        memset(job.parts, 0, 2 * job.pitch * sizeof(double))
    for j in range(m):
        assign(&to_dweight, j, job.parts[j])
        assign(&to_dbias, j, job.parts[job.pitch + j])
    PyMem_RawFree(job.memory)
