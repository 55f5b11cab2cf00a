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
# * either way in turns (nchw_turns.pxi): one block is written while the next one is summed;
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


cdef void sum_block(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last, char *kept
) noexcept nogil:
    first_shifts(job, plan, first, last)
    block_sums(job, plan, first, last, kept)


cdef void settle_block(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last, char *kept
) noexcept nogil:
    if bad_shifts(job, first, last):
        block_sums(job, plan, first, last, kept)
    job.settle(job, first // job.merged, last // job.merged)


cdef void write_block(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last, char *kept
) noexcept nogil:
    # The unit that was summed last is still in the nearest cache.
    cdef Py_ssize_t unit
    cdef Ends ends = ends_from(job, plan, first, last, plan.units - 1, -1)
    for unit in range(plan.units - 1, -1, -1):
        unit_elementwise(job, plan, first, last, unit, kept, &ends)


cdef void block_share(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last, char *kept
) noexcept nogil:
    cdef Py_ssize_t block, begin, end
    for block in range(first, last):
        begin = block * plan.block
        end = min(plan.c, begin + plan.block)
        sum_block(job, plan, begin, end, kept)
        settle_block(job, plan, begin, end, kept)
        if job.kind != NOTHING:
            write_block(job, plan, begin, end, kept)
    if job.stream:
        stream_fence()


# Together --------------------------------------------------------------------------------------


cdef struct Member:
    # Of a team: whose part of a block's items is its own. An item is a unit of a strip.
    double *parts            # of all items
    int t, team


cdef inline Py_ssize_t items_of(Plan *plan, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    return plan.units * ((last - first + plan.strip - 1) // plan.strip)


cdef void team_sums(
    Job *job, Plan *plan, Member *own, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    cdef Py_ssize_t items = items_of(plan, first, last), strips = items // plan.units
    cdef Py_ssize_t item, begin
    for item in range(items * own.t // own.team, items * (own.t + 1) // own.team):
        begin = first + item % strips * plan.strip
        unit_sums(
            job, plan, begin, min(last, begin + plan.strip), item // strips,
            own.parts + item * 3 * MAX_STRIP, plan.kept)


cdef void team_settle(
    Job *job, Plan *plan, Member *own, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    cdef Py_ssize_t items = items_of(plan, first, last), strips = items // plan.units
    cdef Py_ssize_t item, begin
    cdef int sweep
    for sweep in range(2):
        if sweep == 1:
            team_sums(job, plan, own, first, last)
        team_barrier()
        if own.t == 0:
            for item in range(items):
                begin = first + item % strips * plan.strip
                add_parts(
                    job, begin, min(last, begin + plan.strip), own.parts + item * 3 * MAX_STRIP,
                    item < strips)
            plan.again = sweep == 0 and bad_shifts(job, first, last)
            if not plan.again:
                job.settle(job, first // job.merged, last // job.merged)
        team_barrier()
        if not plan.again:
            break


cdef void team_write(
    Job *job, Plan *plan, Member *own, Py_ssize_t first, Py_ssize_t last
) noexcept nogil:
    cdef Py_ssize_t items = items_of(plan, first, last), strips = items // plan.units
    cdef Py_ssize_t item, begin, begun = items * own.t // own.team
    cdef Py_ssize_t end = items * (own.t + 1) // own.team
    cdef Ends ends = ends_from(job, plan, first, last, (end - 1) // strips, -1)
    for item in range(end - 1, begun - 1, -1):
        begin = first + item % strips * plan.strip
        unit_elementwise(
            job, plan, begin, min(last, begin + plan.strip), item // strips, plan.kept, &ends)


cdef void team_share(Job *job, Plan *plan, Member *own) noexcept nogil:
    cdef Py_ssize_t block, first, last
    for block in range(plan.blocks):
        first = block * plan.block
        last = min(plan.c, first + plan.block)
        team_sums(job, plan, own, first, last)
        team_settle(job, plan, own, first, last)
        team_write(job, plan, own, first, last)
    if job.stream:
        stream_fence()


include "nchw_turns.pxi"

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
    BY_CHANNEL_IN_TURNS
    TOGETHER
    TOGETHER_IN_TURNS
    BY_UNIT


cdef inline bint shares_out(Py_ssize_t size, int threads) noexcept nogil:
    # Whether the busiest thread has at most a quarter more than the average.
    return 4 * ((size + threads - 1) // threads) * threads <= 5 * size


cdef Schedule schedule_of(Job *job, Plan *plan, int threads) noexcept nogil:
    cdef bint even = shares_out(plan.blocks, threads)
    cdef Py_ssize_t read = plan.block * plan.n * plan.s * job.itemsize
    cdef bint turns = takes_turns(job, plan)
    if job.gradient_sums:
        read *= 2
    if turns and even and read <= TURN_BYTES:
        return BY_CHANNEL_IN_TURNS
    if threads == 1:
        return BY_CHANNEL
    if (
        turns and plan.block <= plan.strip and shares_out(plan.units, threads)
        and read <= threads * TEAM_TURN_BYTES
    ):
        return TOGETHER_IN_TURNS
    if read >= TEAM_BYTES and job.kind != NOTHING:
        return TOGETHER
    return BY_CHANNEL if even else BY_UNIT


cdef void run_blocks(
    Job *job, Plan *plan, Schedule schedule, Py_ssize_t first, Py_ssize_t last, char *kept
) noexcept nogil:
    if schedule == BY_CHANNEL_IN_TURNS:
        block_share_in_turns(job, plan, first, last)
    else:
        block_share(job, plan, first, last, kept)


cdef void run_team(
    Job *job, Plan *plan, Schedule schedule, double *parts, int t, int team
) noexcept nogil:
    cdef Member own = Member(parts, t, team)
    if own.t == 0:
        first_shifts(job, plan, 0, plan.c)
    team_barrier()
    if schedule == TOGETHER_IN_TURNS:
        team_share_in_turns(job, plan, &own)
    else:
        team_share(job, plan, &own)


cdef void run_sums_first(
    Job *job, Plan *plan, Schedule schedule, double *parts, int threads
) noexcept nogil:
    cdef Py_ssize_t blocks = plan.blocks
    cdef int t
    if threads == 1:
        run_blocks(job, plan, schedule, 0, blocks, plan.kept)
    elif schedule == TOGETHER or schedule == TOGETHER_IN_TURNS:
        with parallel(num_threads=threads):
            run_team(job, plan, schedule, parts, threadid(), omp_get_num_threads())
    elif schedule == BY_CHANNEL or schedule == BY_CHANNEL_IN_TURNS:
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            run_blocks(
                job, plan, schedule, blocks * t // threads, blocks * (t + 1) // threads,
                kept_of(plan, t))
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
    if threads > 1 and schedule != BY_CHANNEL and schedule != BY_CHANNEL_IN_TURNS:
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
