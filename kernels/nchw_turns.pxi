# One block of channels of family nchw is written while the next one is summed, in Cython: a few
# lines of each in turns, the one from the cache past the caches, the other from memory.
#
# Sums only read, and what is written then was read already: one after the other, memory does one
# thing at a time. Two threads that only read got 28 to 34 GB/s of it where reading and writing
# together moved 45 to 52. Of the copy or triad, one after the other and in turns: (32, 64, 112, 112)
# forward 1.29 and 1.10; backward, (32, 64, 56, 56) 1.49 and 1.28, in float64 1.44 and 1.23,
# (32, 512, 28, 28) 1.44 and 1.27, (32, 64, 112, 112) in bfloat16 1.66 and 1.38. Parts of a block in
# turns, where the cache does not hold two, gained nothing.

cdef Py_ssize_t TURN_BYTES = _schedule.TURN_BYTES
cdef Py_ssize_t TEAM_TURN_BYTES = _schedule.TEAM_TURN_BYTES


cdef bint takes_turns(Job *job, Plan *plan) noexcept nogil:
    # Where each run is written as it is, past the caches, by its channel's coefficients. In the
    # cache, (8, 64, 56, 56) took 1.01 of the copy forward one after the other, and 1.06 in turns.
    return (
        job.stream and job.mask == NULL and job.before == NULL
        and (job.kind == NORMALIZE or job.kind == GRADIENT))


cdef void unit_turn(
    Job *job, Plan *plan, Py_ssize_t to_write, Py_ssize_t to_sum, Py_ssize_t channels,
    Py_ssize_t unit, double *part, bint goes_on, Shared *shared, Ends *ends
) noexcept nogil:
    # Of so many channels from `to_write` and from `to_sum` on. What follows the last run in memory
    # is written next if it `goes_on`.
    cdef double lanes[MAX_STRIP][3 * LANES]
    cdef Bounds bounds = bounds_of(plan, unit)
    cdef Py_ssize_t plane, i, at, read_at, next
    cdef const Channel *by
    cdef char *out
    cdef Summed of
    clear_lanes(job, lanes, channels)
    for plane in range(bounds.plane, bounds.plane_end):
        ask_for_ends(job, plan, ends)
        for i in range(channels):
            read_at = (plane * plan.c + to_sum + i) * plan.s + bounds.start
            next = to_later_run(plan, &bounds, plane, i, channels)
            of = summed(job, lanes[i], to_sum + i, read_at, bounds.len, next)
            by = job.channels + to_write + i
            at = ((plane * plan.c + to_write + i) * plan.s + bounds.start) * job.itemsize
            out = job.out + at
            share_line(
                job, out, bounds.len * job.itemsize, by.kind == PLAIN_CHANNEL,
                plan.segments == 1 and (goes_on or i + 1 < channels), shared)
            if job.kind == NORMALIZE:
                plan.runs.apply_and_sum(out, job.x + at, bounds.len, by, shared, &of)
            else:
                plan.runs.apply_and_sum_grads(
                    out, job.dy + at, job.x + at, bounds.len, by, shared, &of)
    give_parts(job, lanes, channels, part)


cdef void block_turn(Job *job, Plan *plan, Py_ssize_t first) noexcept nogil:
    # The block that begins at `first` is summed, the one before it written.
    cdef double part[3 * MAX_STRIP]
    cdef Py_ssize_t begin = first, last = first + plan.block, back = plan.block, end, unit
    cdef char[LINE_BYTES] line
    cdef Shared shared
    cdef Ends ends = no_ends()
    # One plane of each channel: the strips of a block follow each other in memory.
    cdef bint joined = plan.n == 1
    shared.line = line
    shared.goes_on = False
    first_shifts(job, plan, first, last)
    while begin < last:
        end = min(last, begin + plan.strip)
        if begin == first or not joined:
            ends = ends_from(job, plan, begin - back, (last if joined else end) - back, 0, 1)
        for unit in range(plan.units):
            unit_turn(
                job, plan, begin - back, begin, end - begin, unit, part, joined and end < last,
                &shared, &ends)
            add_parts(job, begin, end, part, unit == 0)
        begin = end


cdef void block_share_in_turns(
    Job *job, Plan *plan, Py_ssize_t first_block, Py_ssize_t last_block
) noexcept nogil:
    cdef Py_ssize_t block, first = 0, last = 0
    for block in range(first_block, last_block):
        first = block * plan.block
        if block > first_block and first + plan.block <= plan.c:
            block_turn(job, plan, first)
        else:
            if block > first_block:
                write_block(job, plan, first - plan.block, first, NULL)
            sum_block(job, plan, first, min(plan.c, first + plan.block), NULL)
        last = min(plan.c, first + plan.block)
        settle_block(job, plan, first, last, NULL)
    write_block(job, plan, first, last, NULL)
    stream_fence()


cdef void team_turn(Job *job, Plan *plan, Member *own, Py_ssize_t first) noexcept nogil:
    # As block_turn, of blocks of one strip.
    cdef Py_ssize_t begin = plan.units * own.t // own.team, unit
    cdef char[LINE_BYTES] line
    cdef Shared shared
    cdef Ends ends = ends_from(job, plan, first - plan.block, first, begin, 1)
    shared.line = line
    shared.goes_on = False
    for unit in range(begin, plan.units * (own.t + 1) // own.team):
        unit_turn(
            job, plan, first - plan.block, first, plan.block, unit, own.parts + unit * 3 * MAX_STRIP,
            False, &shared, &ends)


cdef void team_share_in_turns(Job *job, Plan *plan, Member *own) noexcept nogil:
    cdef Py_ssize_t block, first = 0, last = 0
    for block in range(plan.blocks):
        first = block * plan.block
        last = min(plan.c, first + plan.block)
        if block > 0 and first + plan.block <= plan.c:
            team_turn(job, plan, own, first)
        else:
            if block > 0:
                team_write(job, plan, own, first - plan.block, first)
            team_sums(job, plan, own, first, last)
        team_settle(job, plan, own, first, last)
    team_write(job, plan, own, first, last)
    stream_fence()
