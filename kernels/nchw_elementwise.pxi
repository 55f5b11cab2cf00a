# What is written to one part of an array of family nchw in Cython; what is summed is in
# nchw_units.pxi.


cdef inline void share_line(
    Job *job, const char *out, Py_ssize_t size, bint plain, bint more, Shared *shared
) noexcept nogil:
    # Of `size` bytes from `out` on, which the run after them follows in memory if there are `more`.
    # What is not plain does not look at the line.
    cdef Py_ssize_t before = <size_t>out % LINE_BYTES
    shared.began = shared.goes_on
    shared.goes_on = more and plain and job.stream and <size_t>(out + size) % LINE_BYTES != 0
    if shared.began and not plain:
        memcpy(<char *>out - before, shared.line, before)
        shared.began = False


cdef inline void run_elementwise(
    Job *job, Plan *plan, char *kept, Py_ssize_t channel, Py_ssize_t at, Py_ssize_t len, bint more,
    Shared *shared
) noexcept nogil:
    cdef const Channel *by = job.channels + channel
    cdef char *out = job.out + at * job.itemsize
    cdef RunSlope slope
    at *= job.itemsize
    if job.before != NULL:
        slope = slope_at(job, channel, at)
        plan.fused.grads(
            out, NULL if job.g == NULL else job.g + at, kept, &slope, len, by, job.kind == SCALE,
            job.stream)
        return
    share_line(job, out, len * job.itemsize, by.kind == PLAIN_CHANNEL, more, shared)
    if job.kind == NORMALIZE:
        plan.runs.apply(out, job.x + at, len, by, job.stream, shared)
    elif job.kind == GRADIENT:
        plan.runs.apply_grads(out, job.dy + at, job.x + at, len, by, job.stream, shared)
    elif job.kind == SCALE:
        plan.runs.apply(out, job.dy + at, len, by, job.stream, shared)
    elif job.kind == NORMALIZE_FUSED:
        plan.runs.apply_fused(
            out, job.x + at, residual_at(job, at), len, by, job.activation, job.stream, shared)
    else:
        plan.runs.activation_grads(
            out, job.dy + at, job.x + at, residual_at(job, at), len, by, job.activation, job.stream,
            shared)


cdef void masked_elementwise(
    Job *job, Plan *plan, char *kept, const unsigned char *mask, Py_ssize_t channel,
    Py_ssize_t at, Py_ssize_t len, Shared *shared
) noexcept nogil:
    cdef Py_ssize_t i = 0, end
    while i < len:
        end = mask_run(mask, i, len)
        if mask[i]:
            run_elementwise(
                job, plan, kept_after(plan, kept, i), channel, at + i, end - i, False, shared)
        else:
            no_gradient(job, at + i, end - i)
        i = end


cdef struct Ends:
    # Whose first and last lines are asked for: a row of runs, one of each channel from `first` to
    # `last`, in the order in which rows are written, units falling or rising and planes of a unit
    # rising. Its neighbours in memory have their part of these lines, so they are stored as usual,
    # which reads them, and the streamed stores behind them would wait for that: backward,
    # (32, 512, 28, 28) took 1.5 of the triad so, and takes 1.3; with dx at the beginning of a line,
    # 1.25.
    Py_ssize_t first, last
    Py_ssize_t unit, plane   # unit < 0, or not below plan.units: none
    Py_ssize_t step          # to the next unit
    Bounds bounds


cdef inline Ends no_ends() noexcept nogil:
    return Ends(0, 0, -1, 0, 0, Bounds(0, 0, 0, 0))


cdef inline void ask_for_ends(Job *job, Plan *plan, Ends *ends) noexcept nogil:
    cdef Py_ssize_t at, after
    if not 0 <= ends.unit < plan.units:
        return
    at = (ends.plane * plan.c + ends.first) * plan.s + ends.bounds.start
    after = at + (ends.last - 1 - ends.first) * plan.s + ends.bounds.len
    ask_for_end(job.out + at * job.itemsize)
    ask_for_end(job.out + after * job.itemsize)
    ends.plane += 1
    if ends.plane == ends.bounds.plane_end:
        ends.unit += ends.step
        if 0 <= ends.unit < plan.units:
            ends.bounds = bounds_of(plan, ends.unit)
            ends.plane = ends.bounds.plane


cdef inline Ends ends_from(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last, Py_ssize_t unit, Py_ssize_t step
) noexcept nogil:
    # Two rows ahead: one or six made no difference.
    cdef Ends ends = no_ends()
    cdef int row
    if job.stream:
        ends.first = first
        ends.last = last
        ends.unit = unit
        ends.step = step
        ends.bounds = bounds_of(plan, unit)
        ends.plane = ends.bounds.plane
        for row in range(2):
            ask_for_ends(job, plan, &ends)
    return ends


cdef void unit_elementwise(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last, Py_ssize_t unit, char *kept, Ends *ends
) noexcept nogil:
    cdef Bounds bounds = bounds_of(plan, unit)
    cdef Py_ssize_t plane, i, at
    cdef char *kept_run
    cdef bint masked = job.mask != NULL and job.gradient_sums
    cdef char[LINE_BYTES] line
    cdef Shared shared
    shared.line = line
    shared.goes_on = False
    for plane in range(bounds.plane, bounds.plane_end):
        ask_for_ends(job, plan, ends)
        for i in range(first, last):
            at = (plane * plan.c + i) * plan.s + bounds.start
            kept_run = kept_at(plan, kept, plane, i, bounds.start)
            if masked:
                masked_elementwise(
                    job, plan, kept_run, mask_of(job, plan, plane, i) + bounds.start, i, at,
                    bounds.len, &shared)
            else:
                run_elementwise(
                    job, plan, kept_run, i, at, bounds.len,
                    plan.segments == 1 and i + 1 < last, &shared)
