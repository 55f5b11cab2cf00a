# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Family nchw in Cython: n runs of s contiguous elements for each of c channels.

`kernels/table.py` says what the arguments are, `normcore/reference.py` what is computed. Here
stand the schedules; the arithmetic on one run is in runs.h.

Sums run over *units*: a group of planes when planes are small, a segment of one plane when they
are large. A channel's sums are added unit by unit, in order, so two schedules give the same bits:

* by channel: a thread takes a few channels at a time, sums all their units and applies the result
  while they lie in its cache, so x comes from memory once;
* by unit, where there are too few channels to share out evenly: all partial sums first, then all
  applies, each sweep shared out by units.
"""

from cython.parallel cimport prange

include "passes.pxi"

cdef extern from "runs.h" nogil:
    ctypedef struct Runs:
        Py_ssize_t itemsize
        double (*first_shift)(
            const void *x, Py_ssize_t n, Py_ssize_t len, Py_ssize_t stride) noexcept nogil
        void (*sums)(
            double *lanes, const void *x, Py_ssize_t len, double shift, Py_ssize_t next
        ) noexcept nogil
        void (*grad_sums)(
            double *lanes, const void *dy, const void *x, Py_ssize_t len, double mean,
            Py_ssize_t next) noexcept nogil
        void (*apply)(
            void *y, const void *x, Py_ssize_t len, const Channel *channel, int stream
        ) noexcept nogil
        void (*apply_grads)(
            void *dx, const void *dy, const void *x, Py_ssize_t len, const Channel *channel,
            int stream) noexcept nogil
    const Runs runs_f32, runs_f64

# Channels that one thread takes at a time, at most; their lanes live on its stack.
cdef enum:
    MAX_BLOCK = 16
cdef Py_ssize_t RUN_BYTES = _schedule.RUN_BYTES
cdef Py_ssize_t GROUP = _schedule.UNIT_ELEMENTS
cdef Py_ssize_t SEGMENT = 2 * _schedule.UNIT_ELEMENTS
# Shorter runs are not streamed: their first and last lines would be most of them.
cdef Py_ssize_t STREAM_RUN_BYTES = 1024


cdef struct Plan:
    # The sizes and how they are cut: by sizes alone, never by the number of threads.
    const Runs *runs
    Py_ssize_t n, c, s
    Py_ssize_t group       # planes of one unit (small planes)
    Py_ssize_t segments    # units of one plane (large planes)
    Py_ssize_t units       # units of one channel
    Py_ssize_t block       # channels that are worked on together
    Py_ssize_t blocks


cdef Plan make_plan(Job *job, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s) noexcept nogil:
    cdef Plan plan
    cdef Py_ssize_t run = max(1, s * job.itemsize)
    plan.runs = &runs_f32 if job.itemsize == 4 else &runs_f64
    plan.n = n
    plan.c = c
    plan.s = s
    plan.segments = max(1, (s + SEGMENT - 1) // SEGMENT)
    plan.group = max(1, GROUP // max(1, s))
    plan.units = n * plan.segments if plan.segments > 1 else (n + plan.group - 1) // plan.group
    plan.block = min(<Py_ssize_t>MAX_BLOCK, max(1, RUN_BYTES // run))
    plan.blocks = (c + plan.block - 1) // plan.block
    job.stream = job.stream and run >= STREAM_RUN_BYTES
    return plan


cdef inline Py_ssize_t channels_of(Plan *plan, Py_ssize_t block) noexcept nogil:
    return min(plan.block, plan.c - block * plan.block)


cdef struct Bounds:
    # Where a unit lies: planes [plane, plane_end), elements [start, start + len) of each.
    Py_ssize_t plane, plane_end, start, len


cdef inline Bounds bounds_of(Plan *plan, Py_ssize_t unit) noexcept nogil:
    cdef Bounds bounds
    if plan.segments > 1:
        bounds.plane = unit // plan.segments
        bounds.plane_end = bounds.plane + 1
        bounds.start = unit % plan.segments * SEGMENT
        bounds.len = min(SEGMENT, plan.s - bounds.start)
    else:
        bounds.plane = unit * plan.group
        bounds.plane_end = min(plan.n, bounds.plane + plan.group)
        bounds.start = 0
        bounds.len = plan.s
    return bounds


cdef inline Py_ssize_t to_next_run(
    Plan *plan, Bounds *bounds, Py_ssize_t plane, Py_ssize_t i, Py_ssize_t channels
) noexcept nogil:
    # Elements from the start of a run to the start of the one that is summed after it.
    if bounds.start + bounds.len < plan.s:
        return bounds.len
    if i + 1 < channels:
        return plan.s
    if plane + 1 < plan.n:
        return (plan.c - channels + 1) * plan.s - bounds.start
    return 0


cdef void unit_sums(
    Job *job, Plan *plan, Py_ssize_t block, Py_ssize_t unit, double *part
) noexcept nogil:
    # part[k * MAX_BLOCK + i]: sum k of this unit of the block's channel i.
    cdef double lanes[MAX_BLOCK][3 * LANES]
    cdef Bounds bounds = bounds_of(plan, unit)
    cdef Py_ssize_t first = block * plan.block, channels = channels_of(plan, block)
    cdef Py_ssize_t plane, i, k, at, next
    for i in range(channels):
        for k in range(job.width * LANES):
            lanes[i][k] = 0.0
    for plane in range(bounds.plane, bounds.plane_end):
        for i in range(channels):
            at = ((plane * plan.c + first + i) * plan.s + bounds.start) * job.itemsize
            next = to_next_run(plan, &bounds, plane, i, channels)
            if job.dy == NULL:
                plan.runs.sums(lanes[i], job.x + at, bounds.len, job.shift[first + i], next)
            else:
                plan.runs.grad_sums(
                    lanes[i], job.dy + at, job.x + at, bounds.len, job.shift[first + i], next)
    for i in range(channels):
        for k in range(job.width):
            part[k * MAX_BLOCK + i] = lane_sum(lanes[i] + k * LANES)


cdef void unit_elementwise(
    Job *job, Plan *plan, Py_ssize_t block, Py_ssize_t unit
) noexcept nogil:
    cdef Bounds bounds = bounds_of(plan, unit)
    cdef Py_ssize_t first = block * plan.block
    cdef Py_ssize_t plane, i, at
    for plane in range(bounds.plane, bounds.plane_end):
        for i in range(first, first + channels_of(plan, block)):
            at = ((plane * plan.c + i) * plan.s + bounds.start) * job.itemsize
            if job.dy == NULL:
                plan.runs.apply(
                    job.out + at, job.x + at, bounds.len, job.channels + i, job.stream)
            elif job.training:
                plan.runs.apply_grads(
                    job.out + at, job.dy + at, job.x + at, bounds.len, job.channels + i, job.stream)
            else:
                plan.runs.apply(
                    job.out + at, job.dy + at, bounds.len, job.channels + i, job.stream)


cdef void first_shifts(Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t i
    if job.dy == NULL:
        for i in range(first, last):
            job.shift[i] = plan.runs.first_shift(
                job.x + i * plan.s * job.itemsize, plan.n, plan.s, plan.c * plan.s)


cdef bint bad_shifts(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef bint bad = False
    cdef Py_ssize_t i
    if job.dy == NULL:
        for i in range(first, last):
            if shift_was_bad(job, i):
                bad = True
    return bad


cdef void add_parts(
    Job *job, Plan *plan, Py_ssize_t block, const double *part, bint start
) noexcept nogil:
    cdef Py_ssize_t i, k, at, first = block * plan.block
    for k in range(job.width):
        for i in range(channels_of(plan, block)):
            at = k * job.statistics + first + i
            job.sums[at] = part[k * MAX_BLOCK + i] + (0.0 if start else job.sums[at])


# By channel ------------------------------------------------------------------------------------


cdef void one_block(Job *job, Plan *plan, Py_ssize_t block, bint reduce) noexcept nogil:
    cdef double part[3 * MAX_BLOCK]
    cdef Py_ssize_t first = block * plan.block, last = first + channels_of(plan, block)
    cdef Py_ssize_t unit, i
    cdef int sweep
    if reduce:
        first_shifts(job, plan, first, last)
        for sweep in range(2):
            for unit in range(plan.units):
                unit_sums(job, plan, block, unit, part)
                add_parts(job, plan, block, part, unit == 0)
            if sweep == 1 or not bad_shifts(job, first, last):
                break
    for i in range(first, last):
        job.settle(job, i)
    if job.out != NULL:
        for unit in range(plan.units - 1, -1, -1):
            unit_elementwise(job, plan, block, unit)
        if job.stream:
            stream_fence()


# By unit ---------------------------------------------------------------------------------------


cdef void all_sums(Job *job, Plan *plan, double *parts, int threads) noexcept nogil:
    cdef Py_ssize_t item, block, unit, items = plan.units * plan.blocks
    cdef int sweep
    first_shifts(job, plan, 0, plan.c)
    for sweep in range(2):
        for item in prange(items, num_threads=threads, schedule="static"):
            unit_sums(
                job, plan, item % plan.blocks, item // plan.blocks, parts + item * 3 * MAX_BLOCK)
        for unit in range(plan.units):
            for block in range(plan.blocks):
                add_parts(
                    job, plan, block, parts + (unit * plan.blocks + block) * 3 * MAX_BLOCK,
                    unit == 0)
        if sweep == 1 or not bad_shifts(job, 0, plan.c):
            break


cdef void elementwise_share(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    # Backwards, because the end of the share is what the sums left in the cache.
    cdef Py_ssize_t item
    for item in range(last - 1, first - 1, -1):
        unit_elementwise(job, plan, item % plan.blocks, item // plan.blocks)
    if job.stream:
        stream_fence()


cdef void all_elementwise(Job *job, Plan *plan, int threads) noexcept nogil:
    cdef Py_ssize_t items = plan.units * plan.blocks
    cdef int t
    for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        elementwise_share(job, plan, items * t // threads, items * (t + 1) // threads)


cdef void run(
    Job *job, Plan *plan, bint reduce, bint by_channel, double *parts, int threads
) noexcept nogil:
    cdef Py_ssize_t block, i
    if threads == 1:
        for block in range(plan.blocks):
            one_block(job, plan, block, reduce)
    elif by_channel:
        for block in prange(plan.blocks, num_threads=threads, schedule="static"):
            one_block(job, plan, block, reduce)
    else:
        if reduce:
            all_sums(job, plan, parts, threads)
        for i in range(plan.c):
            job.settle(job, i)
        if job.out != NULL:
            all_elementwise(job, plan, threads)


cdef int launch(
    Job *job, bint reduce, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, int threads
) except -1:
    cdef Plan plan
    cdef double *parts = NULL
    cdef PyThreadState *state
    cdef Py_ssize_t most
    cdef bint by_channel
    check_threads(threads)
    if job.size == 0:
        return 0
    plan = make_plan(job, n, c, s)
    # Whole blocks must leave the busiest thread at most a quarter above the average.
    most = (plan.blocks + threads - 1) // threads
    by_channel = 4 * most * threads <= 5 * plan.blocks
    if threads > 1 and reduce and not by_channel:
        parts = scratch(plan.units * plan.blocks * 3 * MAX_BLOCK)
    state = release(job)
    run(job, &plan, reduce, by_channel, parts, threads)
    acquire(state)
    PyMem_RawFree(parts)
    return 0


# The kernels of the table ----------------------------------------------------------------------


def moments(
    cnp.ndarray mean not None, cnp.ndarray m2 not None, cnp.ndarray x not None,
    Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, int threads,
):
    """Mean and sum of squared deviations of every cell: each plane is a channel of its own."""
    cdef Job *job = new_job(None, x, None, n * c, n * c, product(n, c, s))
    try:
        moments_job(job, mean, m2)
        launch(job, True, 1, n * c, s, threads)
    finally:
        PyMem_RawFree(job)


def apply(
    cnp.ndarray y not None, cnp.ndarray x not None, cnp.ndarray mean not None,
    cnp.ndarray var not None, object weight, object bias, double eps,
    Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, int threads,
):
    """y = (x - mean) / sqrt(var + eps) * weight + bias with given statistics."""
    cdef Job *job = new_job(y, x, None, c, c, product(n, c, s))
    try:
        apply_job(job, mean, var, weight, bias, eps)
        launch(job, False, n, c, s, threads)
    finally:
        PyMem_RawFree(job)


def forward(
    cnp.ndarray y not None, cnp.ndarray mean not None, cnp.ndarray var not None,
    cnp.ndarray rstd not None, cnp.ndarray x not None, object weight, object bias, double eps,
    Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, int threads,
):
    """Statistics of x, and y = (x - mean) * rstd * weight + bias."""
    cdef Job *job = new_job(y, x, None, c, c, product(n, c, s))
    try:
        forward_job(job, mean, var, rstd, weight, bias, eps)
        launch(job, True, n, c, s, threads)
    finally:
        PyMem_RawFree(job)


def reduce_grads(
    cnp.ndarray sum_dy not None, cnp.ndarray sum_dy_xmu not None, cnp.ndarray dy not None,
    cnp.ndarray x not None, cnp.ndarray mean not None,
    Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, int threads,
):
    """sum(dy) and sum(dy * (x - mean)) of every channel."""
    cdef Job *job = new_job(None, x, dy, c, c, product(n, c, s))
    try:
        reduce_grads_job(job, sum_dy, sum_dy_xmu, mean)
        launch(job, True, n, c, s, threads)
    finally:
        PyMem_RawFree(job)


def apply_grads(
    cnp.ndarray dx not None, cnp.ndarray dy not None, cnp.ndarray x not None,
    cnp.ndarray mean not None, cnp.ndarray rstd not None, object weight,
    cnp.ndarray sum_dy not None, cnp.ndarray sum_dy_xmu not None, double count,
    Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, int threads,
):
    """dx from the two sums over `count` elements per channel."""
    cdef Job *job = new_job(dx, x, dy, c, c, product(n, c, s))
    try:
        apply_grads_job(job, mean, rstd, weight, sum_dy, sum_dy_xmu, count)
        launch(job, False, n, c, s, threads)
    finally:
        PyMem_RawFree(job)


def backward(
    cnp.ndarray dx not None, cnp.ndarray dweight not None, cnp.ndarray dbias not None,
    cnp.ndarray dy not None, cnp.ndarray x not None, cnp.ndarray mean not None,
    cnp.ndarray rstd not None, object weight, bint training,
    Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, int threads,
):
    """dx, dweight and dbias; with training=False the statistics are constants."""
    cdef Job *job = new_job(dx, x, dy, c, c, product(n, c, s))
    try:
        backward_job(job, dweight, dbias, mean, rstd, weight, training)
        launch(job, True, n, c, s, threads)
        give_parameter_grads(job)
    finally:
        PyMem_RawFree(job)
