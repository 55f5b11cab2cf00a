# The schedules of family nc in Cython: b times m rows of c contiguous channels. What is done to a
# part is in nc_units.pxi and nc_pieces.pxi.
#
# Rows of few channels are read `fold` at a time as one wide row, so that every vector is full. A
# pass has three sweeps: sums, over units of rows; statistics and coefficients, over pieces of
# columns, from the units' sums in order; elementwise, over units of rows again, backwards, because
# the end of a thread's share is what the sums left in its cache. With many small b a thread takes
# whole ones through all sweeps; else a team of all threads shares each sweep, over one b at a time
# where it overflows a thread's cache, over all of them where there are few.
#
# Strips of columns that fit a core's cache, to read x once, lost. (1024, 1024) took 540 us where
# this schedule took 400, and takes 220: rows 4 KB apart share few cache sets and touch a page each.
# Of group norm, (8, 56, 56, 256) with 32 groups, strips of 32, 64 or 128 columns that two threads
# share took 1.4 to 1.6 of the copy forward and 2.2 to 3.5 of the triad backward, copied to a buffer
# or not, where this schedule takes 1.21 to 1.35 and 1.5: a quarter of a row of 1 KB falls into a
# quarter of the sets, so that strips overflow them as whole rows overflow the cache.
#
# Bare loops with these reads and writes and no arithmetic take, of the copy forward and the triad
# backward: group norm of (8, 56, 56, 256) 1.20 and 1.39, instance norm of (8, 128, 128, 64) 1.22
# and 1.43, batch norm of (100352, 64) 1.36 and 1.59, of (65536, 256) 1.40 and 1.72 to 1.85. The kernels
# take 1.27 and 1.47, 1.24 and 1.55, 1.43 and 1.63, 1.50 and 2.0.
#
# What these 1.21 and 1.5 are made of, on cores of 2 MB L2: reading at the limit, then storing past
# the caches at 20 GB/s and core (1.15 together, without any arithmetic); what does not fit both
# caches read again, 0.2 backward; sums of units and coefficients, 0.05. From one process to the
# next it varies by 0.15; arrays that begin 16 bytes behind a line, as large ones of NumPy do, take
# 1.36 to 1.4. No gain: finding the shifts of the next b before the last barrier of this one,
# elementwise in blocks of 8 to 64 rows backwards, asking for the next or the missing rows while
# storing (1.6 to 1.8 backward).

from cython.parallel cimport parallel, prange, threadid
from openmp cimport omp_get_num_threads

include "nc_units.pxi"
include "nc_pieces.pxi"

ctypedef void (*step_t)(Job *, Plan *, Py_ssize_t) noexcept nogil


cdef struct Team:
    # Thread `t` of `size` threads that share the work on `b` to `b_end`. Alone: 0 of 1.
    int t, size
    Py_ssize_t b, b_end


cdef inline void units(
    step_t step, Job *job, Plan *plan, const Team *team, bint backwards
) noexcept nogil:
    # This thread's share of the units, the same one in every sweep.
    cdef Py_ssize_t start = team.b * plan.units, size = (team.b_end - team.b) * plan.units, item
    cdef Py_ssize_t first = start + size * team.t // team.size
    cdef Py_ssize_t last = start + size * (team.t + 1) // team.size
    for item in range(first, last):
        step(job, plan, first + last - 1 - item if backwards else item)


cdef inline void pieces(step_t step, Job *job, Plan *plan, const Team *team) noexcept nogil:
    # This thread's share of the pieces; then all are done.
    cdef Py_ssize_t start = team.b * plan.pieces, size = (team.b_end - team.b) * plan.pieces, item
    for item in range(
        start + size * team.t // team.size, start + size * (team.t + 1) // team.size
    ):
        step(job, plan, item)
    wait(team)


cdef inline void wait(const Team *team) noexcept nogil:
    if team.size > 1:
        team_barrier()


cdef void sweeps(Job *job, Plan *plan, bint reduce, const Team *team) noexcept nogil:
    if reduce:
        pieces(piece_shifts, job, plan, team)
        units(unit_sums, job, plan, team, False)
        wait(team)
        pieces(piece_first_totals, job, plan, team)
        if any_of(plan.bad, (team.b_end - team.b) * plan.pieces):
            units(unit_sums, job, plan, team, False)
            wait(team)
            pieces(piece_last_totals, job, plan, team)
    else:
        pieces(piece_settle, job, plan, team)
    if job.kind != NOTHING:
        units(unit_elementwise, job, plan, team, True)
        if job.before != NULL:
            # The next b's coefficients take the place of these.
            wait(team)


cdef void steps(
    const Job *given, const Plan *shared, bint reduce, Py_ssize_t first, Py_ssize_t last, int t,
    int size, int slab,
) noexcept nogil:
    # All sweeps of as many b at a time as a team has memory for; it has that of the given slab.
    cdef Job own = given[0]
    cdef Job *job = &own
    cdef Plan plan = shared[0]
    cdef Team team
    team.t, team.size = t, size
    team.b = first
    give_slab(job, &plan, reduce, slab)
    while team.b < last:
        plan.base = team.b
        team.b_end = min(last, team.b + plan.held)
        sweeps(job, &plan, reduce, &team)
        team.b = team.b_end
    if job.stream:
        stream_fence()


cdef Py_ssize_t table_size(const Plan *plan) noexcept nogil:
    # In doubles, with room to move it against a cache line.
    cdef Py_ssize_t size = plan.held * (plan.wide + WRAP) * COEFFICIENTS * plan.columns.itemsize
    return size // <Py_ssize_t>sizeof(double) + 17


cdef Py_ssize_t totals_size(Job *job, const Plan *plan, bint reduce) noexcept nogil:
    return plan.held * plan.units * job.width * plan.wide if reduce else 0


cdef Py_ssize_t slab_size(Job *job, const Plan *plan, bint reduce) noexcept nogil:
    # In doubles: whole cache lines, and one that no other team writes to.
    cdef Py_ssize_t size = plan.held * plan.wide + totals_size(job, plan, reduce)
    size += table_size(plan) * (1 if job.before == NULL else 2)
    size += 3 * plan.held * plan.pieces // <Py_ssize_t>sizeof(double) + 1
    return (size + 15) // 8 * 8


cdef void give_slab(Job *job, Plan *plan, bint reduce, int slab) noexcept nogil:
    cdef Py_ssize_t table = table_size(plan)
    plan.shift += slab * slab_size(job, plan, reduce)
    plan.totals = plan.shift + plan.held * plan.wide
    plan.packed = <char *>(plan.totals + totals_size(job, plan, reduce))
    plan.before = <char *>(<double *>plan.packed + table)
    plan.bad = <unsigned char *>plan.before
    if job.before != NULL:
        plan.bad = <unsigned char *>(<double *>plan.before + table)
    plan.uneven = plan.bad + plan.held * plan.pieces
    plan.uneven_before = plan.uneven + plan.held * plan.pieces
    # As far from a cache line as the output: where one is aligned, so is the other.
    plan.packed += <size_t>job.out % 64 + (64 - <size_t>plan.packed % 64) % 64


cdef bint execute(Job *job, Plan *plan, bint reduce, int threads) noexcept nogil:
    # False if there is no memory; nothing has been written then.
    # Whole b must leave the busiest thread at most a quarter above the average.
    cdef Py_ssize_t most = (plan.b + threads - 1) // threads, b = plan.b
    cdef Py_ssize_t read = plan.m * plan.c * job.itemsize * (2 if job.gradient_sums else 1)
    cdef bint team = threads > 1 and reduce and job.kind != NOTHING and read >= TEAM_BYTES
    # Many threads want more units than one b has.
    team = team and (plan.b == 1 or plan.units >= 2 * threads)
    cdef bint alone = threads == 1 or not team and 4 * most * threads <= 5 * b
    cdef double *memory
    cdef int t
    plan.held = 1 if team or alone else plan.b
    if job.stream and reduce and read <= (threads if team else 1) * TEAM_BYTES:
        job.stream = TO_MEMORY_FROM_CACHE
    memory = scratch((threads if alone else 1) * slab_size(job, plan, reduce) + 8)
    if memory == NULL:
        return False
    # Vectors of totals that lie across two lines make sums a quarter slower.
    plan.shift = memory + (64 - <size_t>memory % 64) % 64 // sizeof(double)
    if threads == 1:
        steps(job, plan, reduce, 0, b, 0, 1, 0)
    elif alone:
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            steps(job, plan, reduce, b * t // threads, b * (t + 1) // threads, 0, 1, t)
    else:
        with parallel(num_threads=threads):
            steps(job, plan, reduce, 0, plan.b, threadid(), omp_get_num_threads(), 0)
    PyMem_RawFree(memory)
    return True


cdef int give_mask(
    Job *job, object mask, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c
) except -1:
    # (b, m): whole rows.
    cdef const unsigned char *bytes_ = mask_data(mask)
    cdef Py_ssize_t i, at, each = job.statistics // max(1, b)
    if bytes_ == NULL or job.size == 0:
        return 0
    if cnp.PyArray_SIZE(mask) != b * m:
        refuse("mask", f"{b * m} elements", f"shape {mask.shape}")
    job.mask = bytes_
    job.counts = job.shift + job.cells
    for i in range(b):
        job.counts[i * each] = mask_count(bytes_ + i * m, m) * job.merged
        for at in range(i * each + 1, (i + 1) * each):
            job.counts[at] = job.counts[i * each]
    return 0


cdef int launch(
    Job *job, bint reduce, object mask, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads
) except -1:
    cdef Plan plan
    cdef PyThreadState *state
    cdef bint done
    check_threads(threads)
    if job.cells > 0 and c % job.merged != 0:
        refuse("mean", f"{b} times a size that divides {c}", job.statistics)
    if job.parameters < c:
        refuse("weight", f"{c} elements", job.parameters)
    give_mask(job, mask, b, m, c)
    if job.size == 0:
        return 0
    make_plan(&plan, job, b, m, c)
    state = release(job)
    done = execute(job, &plan, reduce, threads)
    acquire(state)
    if not done:
        raise MemoryError
    return 0
