# The schedules of family nchw in Cython: n runs of s contiguous elements for each of c channels.
# What is done to a part is in nchw_units.pxi and nchw_elementwise.pxi.
#
# Sums run over *units*: a group of planes when planes are small, a segment of one plane when they
# are large. A channel's sums are added unit by unit, in order, so two schedules give the same bits:
#
# * by channel: a thread takes a few channels at a time, sums all their units and applies the result
#   while they lie in its cache, so x comes from memory once;
# * together, where what is read of a channel overflows one thread's cache: the threads share the
#   units of one block of channels, and keep theirs in their caches until all have been summed;
# * by unit, where there are too few channels to share out evenly: all partial sums first, then all
#   applies, each sweep shared out by units.
#
# Elementwise passes that sum nothing go through memory from its beginning to its end.

from cython.parallel cimport parallel, prange, threadid
from openmp cimport omp_get_num_threads

include "nchw_units.pxi"
include "nchw_elementwise.pxi"

# A thread, or a team, keeps a block's gradient before the activation up to this size; beyond, it is computed
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


cdef void one_block(Job *job, Plan *plan, Py_ssize_t block, char *kept) noexcept nogil:
    cdef Py_ssize_t first = block * plan.block, last = min(plan.c, first + plan.block)
    cdef Py_ssize_t unit
    cdef int sweep
    cdef Ends ends = first_ends(job, plan, first, last, plan.units - 1)
    first_shifts(job, plan, first, last)
    for sweep in range(2):
        block_sums(job, plan, first, last, kept)
        if sweep == 1 or not bad_shifts(job, first, last):
            break
    job.settle(job, first // job.merged, last // job.merged)
    if job.kind != NOTHING:
        for unit in range(plan.units - 1, -1, -1):
            unit_elementwise(job, plan, first, last, unit, kept, &ends)


cdef void block_share(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last, char *kept
) noexcept nogil:
    cdef Py_ssize_t block
    for block in range(first, last):
        one_block(job, plan, block, kept)
    if job.stream:
        stream_fence()


# Together --------------------------------------------------------------------------------------


cdef void team_block(
    Job *job, Plan *plan, double *parts, Py_ssize_t block, int t, int team
) noexcept nogil:
    cdef Py_ssize_t first = block * plan.block, last = min(plan.c, first + plan.block)
    cdef Py_ssize_t strips = (last - first + plan.strip - 1) // plan.strip
    cdef Py_ssize_t items = plan.units * strips, item, begin
    cdef Py_ssize_t own = items * t // team, end = items * (t + 1) // team
    cdef int sweep
    cdef Ends ends = first_ends(job, plan, first, last, (end - 1) // strips)
    for sweep in range(2):
        for item in range(own, end):
            begin = first + item % strips * plan.strip
            unit_sums(
                job, plan, begin, min(last, begin + plan.strip), item // strips,
                parts + item * 3 * MAX_STRIP, plan.kept)
        team_barrier()
        if t == 0:
            for item in range(items):
                begin = first + item % strips * plan.strip
                add_parts(
                    job, begin, min(last, begin + plan.strip), parts + item * 3 * MAX_STRIP,
                    item < strips)
            plan.again = sweep == 0 and bad_shifts(job, first, last)
            if not plan.again:
                job.settle(job, first // job.merged, last // job.merged)
        team_barrier()
        if not plan.again:
            break
    for item in range(end - 1, own - 1, -1):
        begin = first + item % strips * plan.strip
        unit_elementwise(
            job, plan, begin, min(last, begin + plan.strip), item // strips, plan.kept, &ends)


cdef void team_share(Job *job, Plan *plan, double *parts, int t, int team) noexcept nogil:
    cdef Py_ssize_t block
    if t == 0:
        first_shifts(job, plan, 0, plan.c)
    team_barrier()
    for block in range(plan.blocks):
        team_block(job, plan, parts, block, t, team)
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
    cdef Ends ends = no_ends()
    for item in range(last - 1, first - 1, -1):
        strip = item % plan.strips
        unit_elementwise(
            job, plan, strip * plan.strip, strip_end(plan, strip), item // plan.strips, NULL,
            &ends)
    if job.stream:
        stream_fence()


cdef void all_elementwise(Job *job, Plan *plan, int threads) noexcept nogil:
    cdef Py_ssize_t items = plan.units * plan.strips
    cdef int t
    for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        elementwise_share(job, plan, items * t // threads, items * (t + 1) // threads)


# Without sums ----------------------------------------------------------------------------------


cdef void run_share(Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    # Segments of runs, in the order of memory: planes of 32x32 took 1.07 of the copy so, and 1.12
    # channel by channel.
    cdef Py_ssize_t segment = first % plan.segments, run = first // plan.segments
    cdef Py_ssize_t channel = run % plan.c, item, start
    cdef char[LINE_BYTES] line
    cdef Shared shared
    shared.line = line
    shared.goes_on = False
    for item in range(first, last):
        start = segment * SEGMENT
        run_elementwise(
            job, plan, NULL, channel, run * plan.s + start, min(SEGMENT, plan.s - start),
            plan.segments == 1 and item + 1 < last, &shared)
        segment += 1
        if segment == plan.segments:
            segment = 0
            run += 1
            channel += 1
            if channel == plan.c:
                channel = 0
    if job.stream:
        stream_fence()


cdef void all_runs(Job *job, Plan *plan, int threads) noexcept nogil:
    cdef Py_ssize_t items = plan.n * plan.c * plan.segments
    cdef int t
    job.settle(job, 0, job.statistics)
    if threads == 1:
        run_share(job, plan, 0, items)
        return
    for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        run_share(job, plan, items * t // threads, items * (t + 1) // threads)


# Which of them ---------------------------------------------------------------------------------


cdef enum Schedule:
    BY_CHANNEL
    TOGETHER
    BY_UNIT


cdef Schedule schedule_of(Job *job, Plan *plan, int threads) noexcept nogil:
    # Whole blocks must leave the busiest thread at most a quarter above the average.
    cdef Py_ssize_t most = (plan.blocks + threads - 1) // threads
    cdef Py_ssize_t read = plan.block * plan.n * plan.s * job.itemsize
    if job.gradient_sums:
        read *= 2
    if read >= TEAM_BYTES and job.kind != NOTHING:
        return TOGETHER
    return BY_CHANNEL if 4 * most * threads <= 5 * plan.blocks else BY_UNIT


cdef void run_sums_first(
    Job *job, Plan *plan, Schedule schedule, double *parts, int threads
) noexcept nogil:
    cdef Py_ssize_t blocks = plan.blocks
    cdef int t
    if threads == 1:
        block_share(job, plan, 0, blocks, plan.kept)
    elif schedule == TOGETHER:
        with parallel(num_threads=threads):
            team_share(job, plan, parts, threadid(), omp_get_num_threads())
    elif schedule == BY_CHANNEL:
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            block_share(
                job, plan, blocks * t // threads, blocks * (t + 1) // threads, kept_of(plan, t))
    else:
        all_sums(job, plan, parts, threads)
        job.settle(job, 0, job.statistics)
        if job.kind != NOTHING:
            all_elementwise(job, plan, threads)


cdef bint execute(Job *job, Plan *plan, bint reduce, int threads) noexcept nogil:
    # False if there is no memory; nothing has been written then.
    cdef Schedule schedule = schedule_of(job, plan, threads)
    cdef double *parts = NULL
    if not reduce:
        all_runs(job, plan, threads)
        return True
    if threads > 1 and schedule != BY_CHANNEL:
        parts = scratch(plan.units * plan.strips * 3 * MAX_STRIP)
        if parts == NULL:
            return False
    if job.before != NULL and schedule != BY_UNIT and plan.kept_size <= KEPT_BYTES:
        plan.kept = <char *>scratch(
            (threads if schedule == BY_CHANNEL else 1) * plan.kept_size
            // <Py_ssize_t>sizeof(double))
    run_sums_first(job, plan, schedule, parts, threads)
    PyMem_RawFree(parts)
    PyMem_RawFree(plan.kept)
    return True


cdef int launch(
    Job *job, bint reduce, object mask, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, int threads
) except -1:
    cdef Plan plan
    cdef PyThreadState *state
    cdef bint done
    check_threads(threads)
    plan = make_plan(job, n, c, s)
    give_mask(job, &plan, mask, n, c, s)
    if job.size == 0:
        return 0
    state = release(job)
    done = execute(job, &plan, reduce, threads)
    acquire(state)
    if not done:
        raise MemoryError
    return 0
