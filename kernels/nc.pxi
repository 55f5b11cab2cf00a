# The schedules of family nc in Cython: b times m rows of c contiguous channels. What is done to a
# part is in nc_units.pxi.
#
# Rows of few channels are read `fold` at a time as one wide row, so that every vector is full. A
# pass has three sweeps: sums, over units of rows; statistics and coefficients, over pieces of
# columns, from the units' sums in order; elementwise, over units of rows again, backwards, because
# the end of a thread's share is what the sums left in its cache. With many b a thread takes whole
# ones through all sweeps; else each sweep is shared out.
#
# Strips of columns that fit a core's cache, to read x once, lost: rows 4 KB apart share few cache
# sets and touch a page each; (1024, 1024) took 540 us where this schedule took 400, and takes 290.

from cython.parallel cimport prange

include "nc_units.pxi"

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


cdef void one_b(Job *job, Plan *plan, Py_ssize_t b, bint reduce) noexcept nogil:
    # All sweeps of one b.
    cdef Py_ssize_t units = b * plan.units, units_end = units + plan.units
    cdef Py_ssize_t pieces = b * plan.pieces, pieces_end = pieces + plan.pieces
    if reduce:
        one_share(piece_shifts, job, plan, pieces, pieces_end, False)
        one_share(unit_sums, job, plan, units, units_end, False)
        one_share(piece_first_totals, job, plan, pieces, pieces_end, False)
        if any_of(plan.bad + pieces, plan.pieces):
            one_share(unit_sums, job, plan, units, units_end, False)
            one_share(piece_last_totals, job, plan, pieces, pieces_end, False)
    else:
        one_share(piece_settle, job, plan, pieces, pieces_end, False)
    if job.kind != NOTHING:
        one_share(unit_elementwise, job, plan, units, units_end, True)


cdef void together(Job *job, Plan *plan, bint reduce, int threads) noexcept nogil:
    # Every sweep shared out over all b.
    cdef Py_ssize_t units = plan.b * plan.units, pieces = plan.b * plan.pieces
    # A piece is soon done: not worth a thread's wake-up until there are several.
    cdef int settlers = threads if pieces >= 4 else 1
    if reduce:
        share(piece_shifts, job, plan, pieces, settlers, False)
        share(unit_sums, job, plan, units, threads, False)
        share(piece_first_totals, job, plan, pieces, settlers, False)
        if any_of(plan.bad, pieces):
            share(unit_sums, job, plan, units, threads, False)
            share(piece_last_totals, job, plan, pieces, settlers, False)
    else:
        share(piece_settle, job, plan, pieces, settlers, False)
    if job.kind != NOTHING:
        share(unit_elementwise, job, plan, units, threads, True)


cdef void run(Job *job, Plan *plan, bint reduce, int threads) noexcept nogil:
    # Whole b must leave the busiest thread at most a quarter above the average.
    cdef Py_ssize_t b, most = (plan.b + threads - 1) // threads
    if plan.b > 1 and 4 * most * threads <= 5 * plan.b:
        for b in prange(plan.b, num_threads=threads, schedule="static"):
            one_b(job, plan, b, reduce)
    else:
        together(job, plan, reduce, threads)


cdef int launch(
    Job *job, bint reduce, object mask, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads
) except -1:
    cdef Plan plan
    cdef PyThreadState *state
    cdef Py_ssize_t totals, packed
    check_threads(threads)
    if job.cells > 0 and c % job.merged != 0:
        refuse("mean", f"{b} times a size that divides {c}", job.statistics)
    if job.parameters < c:
        refuse("weight", f"{c} elements", job.parameters)
    give_mask(job, mask, b, m, c)
    if job.size == 0:
        return 0
    make_plan(&plan, job, b, m, c)
    totals = b * plan.units * job.width * plan.wide if reduce else 0
    packed = b * (plan.wide + WRAP) * COEFFICIENTS * plan.columns.itemsize
    packed = packed // <Py_ssize_t>sizeof(double) + 17
    plan.shift = scratch(
        b * plan.wide + totals + (1 if job.before == NULL else 2) * packed
        + 3 * b * plan.pieces // <Py_ssize_t>sizeof(double) + 1)
    plan.totals = plan.shift + b * plan.wide
    # As far from a cache line as the output: where one is aligned, so is the other.
    plan.packed = <char *>(plan.totals + totals)
    plan.packed += <size_t>job.out % 64 + (64 - <size_t>plan.packed % 64) % 64
    plan.before = <char *>(plan.totals + totals + packed)
    plan.bad = <unsigned char *>(
        plan.totals + totals + (1 if job.before == NULL else 2) * packed)
    plan.uneven = plan.bad + b * plan.pieces
    plan.uneven_before = plan.uneven + b * plan.pieces
    state = release(job)
    run(job, &plan, reduce, threads)
    acquire(state)
    PyMem_RawFree(plan.shift)
    return 0
