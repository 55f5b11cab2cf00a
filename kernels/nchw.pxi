# The schedules of family nchw in Cython: n runs of s contiguous elements for each of c channels.
# What is done to a part is in nchw_units.pxi.
#
# Sums run over *units*: a group of planes when planes are small, a segment of one plane when they
# are large. A channel's sums are added unit by unit, in order, so two schedules give the same bits:
#
# * by channel: a thread takes a few channels at a time, sums all their units and applies the result
#   while they lie in its cache, so x comes from memory once;
# * by unit, where there are too few channels to share out evenly: all partial sums first, then all
#   applies, each sweep shared out by units.

from cython.parallel cimport prange

include "nchw_units.pxi"

# A thread keeps a block's gradient before the activation up to this size; beyond, it is computed
# anew where it is wanted again.
cdef Py_ssize_t KEPT_BYTES = 1 << 22

# By channel ------------------------------------------------------------------------------------


cdef void block_sums(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last, char *kept
) noexcept nogil:
    cdef double part[3 * MAX_STRIP]
    cdef Py_ssize_t unit, begin, end
    begin = first
    while begin < last:
        end = min(last, begin + plan.strip)
        for unit in range(plan.units):
            unit_sums(job, plan, begin, end, unit, part, kept)
            add_parts(job, begin, end, part, unit == 0)
        begin = end


cdef void one_block(
    Job *job, Plan *plan, Py_ssize_t block, bint reduce, int thread
) noexcept nogil:
    cdef Py_ssize_t first = block * plan.block, last = min(plan.c, first + plan.block)
    cdef Py_ssize_t unit, i
    cdef int sweep
    cdef char *kept = NULL if plan.kept == NULL else plan.kept + thread * plan.kept_size
    if reduce:
        first_shifts(job, plan, first, last)
        for sweep in range(2):
            block_sums(job, plan, first, last, kept)
            if sweep == 1 or not bad_shifts(job, first, last):
                break
    for i in range(first // job.merged, last // job.merged):
        job.settle(job, i)
    if job.kind != NOTHING:
        for unit in range(plan.units - 1, -1, -1):
            unit_elementwise(job, plan, first, last, unit, kept)


cdef void block_share(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last, bint reduce, int thread
) noexcept nogil:
    cdef Py_ssize_t block
    for block in range(first, last):
        one_block(job, plan, block, reduce, thread)
    if job.stream:
        stream_fence()


# By unit ---------------------------------------------------------------------------------------


cdef inline Py_ssize_t strip_end(Plan *plan, Py_ssize_t strip) noexcept nogil:
    return min(plan.c, (strip + 1) * plan.strip)


cdef void all_sums(Job *job, Plan *plan, double *parts, int threads) noexcept nogil:
    cdef Py_ssize_t item, strip, unit, items = plan.units * plan.strips
    cdef int sweep
    first_shifts(job, plan, 0, plan.c)
    for sweep in range(2):
        for item in prange(items, num_threads=threads, schedule="static"):
            unit_sums(
                job, plan, item % plan.strips * plan.strip,
                strip_end(plan, item % plan.strips), item // plan.strips,
                parts + item * 3 * MAX_STRIP, NULL)
        for unit in range(plan.units):
            for strip in range(plan.strips):
                add_parts(
                    job, strip * plan.strip, strip_end(plan, strip),
                    parts + (unit * plan.strips + strip) * 3 * MAX_STRIP, unit == 0)
        if sweep == 1 or not bad_shifts(job, 0, plan.c):
            break


cdef void elementwise_share(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    # Backwards, because the end of the share is what the sums left in the cache.
    cdef Py_ssize_t item, strip
    for item in range(last - 1, first - 1, -1):
        strip = item % plan.strips
        unit_elementwise(
            job, plan, strip * plan.strip, strip_end(plan, strip), item // plan.strips, NULL)
    if job.stream:
        stream_fence()


cdef void all_elementwise(Job *job, Plan *plan, int threads) noexcept nogil:
    cdef Py_ssize_t items = plan.units * plan.strips
    cdef int t
    for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        elementwise_share(job, plan, items * t // threads, items * (t + 1) // threads)


cdef void run(
    Job *job, Plan *plan, bint reduce, bint by_channel, double *parts, int threads
) noexcept nogil:
    cdef Py_ssize_t i, blocks = plan.blocks
    cdef int t
    if threads == 1:
        block_share(job, plan, 0, blocks, reduce, 0)
    elif by_channel:
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            block_share(
                job, plan, blocks * t // threads, blocks * (t + 1) // threads, reduce, t)
    else:
        if reduce:
            all_sums(job, plan, parts, threads)
        for i in range(job.statistics):
            job.settle(job, i)
        if job.kind != NOTHING:
            all_elementwise(job, plan, threads)


cdef int launch(
    Job *job, bint reduce, object mask, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, int threads
) except -1:
    cdef Plan plan
    cdef double *parts = NULL
    cdef PyThreadState *state
    cdef Py_ssize_t most
    cdef bint by_channel
    check_threads(threads)
    plan = make_plan(job, n, c, s)
    give_mask(job, &plan, mask, n, c, s)
    if job.size == 0:
        return 0
    # Whole blocks must leave the busiest thread at most a quarter above the average.
    most = (plan.blocks + threads - 1) // threads
    by_channel = 4 * most * threads <= 5 * plan.blocks
    if threads > 1 and reduce and not by_channel:
        parts = scratch(plan.units * plan.strips * 3 * MAX_STRIP)
    elif job.before != NULL and plan.kept_size <= KEPT_BYTES:
        plan.kept = <char *>scratch(threads * plan.kept_size // <Py_ssize_t>sizeof(double))
    state = release(job)
    run(job, &plan, reduce, by_channel, parts, threads)
    acquire(state)
    PyMem_RawFree(parts)
    PyMem_RawFree(plan.kept)
    return 0
