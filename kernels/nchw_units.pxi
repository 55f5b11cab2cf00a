# What is done to one part of an array of family nchw in Cython: to a unit of a few channels. Who
# does which part when is in nchw.pxi; the arithmetic on one run is in runs.h.

cdef extern from "run_fused_grads.h" nogil:
    enum: AHEAD_BYTES
    void ask_for_end(const void *p) noexcept nogil
    ctypedef struct Shared:
        char *line
        bint began, goes_on
    ctypedef struct Summed:
        double *lanes
        const void *dy
        const void *x
        Py_ssize_t len
        double shift
        Py_ssize_t next
    ctypedef struct Runs:
        double (*first_shift)(
            const void *x, Py_ssize_t n, Py_ssize_t len, Py_ssize_t stride) noexcept nogil
        void (*sums)(const Summed *of) noexcept nogil
        void (*grad_sums)(const Summed *of) noexcept nogil
        void (*apply)(
            void *y, const void *x, Py_ssize_t len, const Channel *channel, int stream,
            const Shared *shared) noexcept nogil
        void (*apply_fused)(
            void *y, const void *x, const void *residual, Py_ssize_t len, const Channel *channel,
            int activation, int stream, const Shared *shared) noexcept nogil
        void (*apply_grads)(
            void *dx, const void *dy, const void *x, Py_ssize_t len, const Channel *channel,
            int stream, const Shared *shared) noexcept nogil
        void (*activation_grads)(
            void *g, const void *dy, const void *x, const void *residual, Py_ssize_t len,
            const Channel *channel, int activation, int stream, const Shared *shared
        ) noexcept nogil
        void (*apply_and_sum)(
            void *y, const void *x, Py_ssize_t len, const Channel *channel, const Shared *shared,
            const Summed *of) noexcept nogil
        void (*apply_and_sum_grads)(
            void *dx, const void *dy, const void *x, Py_ssize_t len, const Channel *channel,
            const Shared *shared, const Summed *of) noexcept nogil
    const Runs runs_f32, runs_f64, runs_f16, runs_bf16
    ctypedef struct RunSlope:
        const void *dy
        const void *x
        const void *residual
        const Channel *before
        int activation
    ctypedef struct FusedRuns:
        Py_ssize_t computed
        void (*sums)(
            double *lanes, void *kept, const RunSlope *at, Py_ssize_t len, double mean
        ) noexcept nogil
        void (*grads)(
            void *dx, void *g, const void *kept, const RunSlope *at, Py_ssize_t len,
            const Channel *channel, int constant, int stream) noexcept nogil
    const FusedRuns fused_runs_f32, fused_runs_f64, fused_runs_f16, fused_runs_bf16

cdef enum:
    LINE_BYTES = 64
# Channels whose lanes lie on a thread's stack together.
cdef enum:
    MAX_STRIP = 16
cdef Py_ssize_t RUN_BYTES = _schedule.RUN_BYTES
cdef Py_ssize_t GROUP = _schedule.UNIT_ELEMENTS
cdef Py_ssize_t SEGMENT = 2 * _schedule.UNIT_ELEMENTS
# Shorter runs are not streamed: their first and last lines would be most of them. (64, 2048, 7, 7)
# took 2.8 of the triad backward, and 3.4 streamed; (32, 1024, 14, 14) 2.1, and 1.8 streamed.
cdef Py_ssize_t STREAM_RUN_BYTES = 512


cdef struct Plan:
    # The sizes and how they are cut: by sizes alone, never by the number of threads.
    const Runs *runs
    const FusedRuns *fused
    Py_ssize_t n, c, s
    Py_ssize_t group         # planes of one unit (small planes)
    Py_ssize_t segments      # units of one plane (large planes)
    Py_ssize_t units         # units of one channel
    Py_ssize_t strip         # channels that are summed together
    Py_ssize_t strips
    Py_ssize_t block         # channels that are settled together: whole statistics
    Py_ssize_t blocks
    # From the run that is summed to the one that is asked for meanwhile.
    Py_ssize_t strips_ahead, planes_ahead, channels_ahead
    bint again               # a team sums its block once more
    Py_ssize_t mask_channels # that share a row of the mask; 0: every plane has its row
    Py_ssize_t kept_size     # bytes of a block's gradient before the activation
    char *kept               # (threads or 1, kept_size), or NULL


cdef Plan make_plan(Job *job, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s) noexcept nogil:
    cdef Plan plan
    cdef Py_ssize_t run = max(1, s * job.itemsize)
    cdef Py_ssize_t ahead = max(1, (AHEAD_BYTES + run - 1) // run)
    plan.runs = &runs_f32
    plan.fused = &fused_runs_f32
    if job.storage == F64:
        plan.runs = &runs_f64
        plan.fused = &fused_runs_f64
    elif job.storage == F16:
        plan.runs = &runs_f16
        plan.fused = &fused_runs_f16
    elif job.storage == BF16:
        plan.runs = &runs_bf16
        plan.fused = &fused_runs_bf16
    plan.n = n
    plan.c = c
    plan.s = s
    plan.segments = max(1, (s + SEGMENT - 1) // SEGMENT)
    plan.group = max(1, GROUP // max(1, s))
    plan.units = n * plan.segments if plan.segments > 1 else (n + plan.group - 1) // plan.group
    plan.strip = min(<Py_ssize_t>MAX_STRIP, max(1, RUN_BYTES // run))
    plan.strips = (c + plan.strip - 1) // plan.strip
    plan.block = job.merged * max(1, plan.strip // job.merged)
    plan.blocks = (c + plan.block - 1) // plan.block
    plan.strips_ahead = ahead // plan.strip // max(1, n)
    plan.planes_ahead = ahead // plan.strip % max(1, n)
    plan.channels_ahead = ahead % plan.strip
    plan.again = False
    plan.mask_channels = 0
    plan.kept_size = (n * plan.block * s * plan.fused.computed + 127) // 64 * 64
    plan.kept = NULL
    job.stream = job.stream and run >= STREAM_RUN_BYTES
    return plan


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


cdef inline Py_ssize_t to_later_run(
    Plan *plan, Bounds *bounds, Py_ssize_t plane, Py_ssize_t i, Py_ssize_t channels
) noexcept nogil:
    # Elements from the start of a run, of channel i of `channels`, to the start of the one that is
    # to be asked for meanwhile: AHEAD_BYTES later, not just the next one, which took 1.8 of the
    # triad instead of 1.4 backward on (32, 1024, 14, 14) and 2.8 instead of 2.2 on 7x7 planes.
    cdef Py_ssize_t later = plane + plan.planes_ahead, to = i + plan.channels_ahead
    if bounds.start + bounds.len < plan.s:
        return bounds.len
    if to >= channels:
        to -= channels
        later += 1
    if later >= plan.n:
        later -= plan.n
        to += channels
    to += plan.strips_ahead * plan.strip
    return ((later - plane) * plan.c + to - i) * plan.s - bounds.start


cdef inline char *kept_at(
    Plan *plan, char *kept, Py_ssize_t plane, Py_ssize_t channel, Py_ssize_t start
) noexcept nogil:
    # Where element `start` of a plane of a channel is in what is kept of its block.
    cdef Py_ssize_t first = channel // plan.block * plan.block
    cdef Py_ssize_t channels = min(plan.block, plan.c - first)
    if kept == NULL:
        return NULL
    return kept + (
        (plane * channels + channel - first) * plan.s + start) * plan.fused.computed


cdef inline char *kept_of(Plan *plan, int thread) noexcept nogil:
    return NULL if plan.kept == NULL else plan.kept + thread * plan.kept_size


cdef inline char *kept_after(Plan *plan, char *kept, Py_ssize_t i) noexcept nogil:
    return NULL if kept == NULL else kept + i * plan.fused.computed


cdef inline RunSlope slope_at(Job *job, Py_ssize_t channel, Py_ssize_t at) noexcept nogil:
    cdef RunSlope slope
    slope.dy = job.dy + at
    slope.x = job.x + at
    slope.residual = residual_at(job, at)
    slope.before = job.before + channel
    slope.activation = job.activation
    return slope


cdef inline Summed summed(
    Job *job, double *lanes, Py_ssize_t channel, Py_ssize_t at, Py_ssize_t len, Py_ssize_t next
) noexcept nogil:
    cdef Summed of = Summed(
        lanes, NULL, job.x + at * job.itemsize, len, job.shift[channel], next)
    if job.gradient_sums:
        of.dy = job.dy + at * job.itemsize
    return of


cdef inline void run_sums(
    Job *job, Plan *plan, double *lanes, char *kept, Py_ssize_t channel, Py_ssize_t at,
    Py_ssize_t len, Py_ssize_t next
) noexcept nogil:
    cdef Summed of = summed(job, lanes, channel, at, len, next)
    cdef RunSlope slope
    if job.before != NULL:
        slope = slope_at(job, channel, at * job.itemsize)
        plan.fused.sums(lanes, kept, &slope, len, of.shift)
    elif job.gradient_sums:
        plan.runs.grad_sums(&of)
    else:
        plan.runs.sums(&of)


cdef inline const unsigned char *mask_of(
    Job *job, Plan *plan, Py_ssize_t plane, Py_ssize_t channel
) noexcept nogil:
    cdef Py_ssize_t row = plane
    if plan.mask_channels > 0:
        row = channel // plan.mask_channels
    return job.mask + row * plan.s


cdef void masked_sums(
    Job *job, Plan *plan, double *lanes, char *kept, const unsigned char *mask,
    Py_ssize_t channel, Py_ssize_t at, Py_ssize_t len
) noexcept nogil:
    # Over the runs of kept elements.
    cdef Py_ssize_t i = 0, end
    while i < len:
        end = mask_run(mask, i, len)
        if mask[i]:
            run_sums(
                job, plan, lanes, kept_after(plan, kept, i), channel, at + i, end - i, end - i)
        i = end


cdef inline void clear_lanes(
    Job *job, double (*lanes)[3 * LANES], Py_ssize_t channels
) noexcept nogil:
    cdef Py_ssize_t i, k
    for i in range(channels):
        for k in range(job.width * LANES):
            lanes[i][k] = 0.0


cdef inline void give_parts(
    Job *job, const double (*lanes)[3 * LANES], Py_ssize_t channels, double *part
) noexcept nogil:
    # part[k * MAX_STRIP + i]: sum k of channel i.
    cdef Py_ssize_t i, k
    for i in range(channels):
        for k in range(job.width):
            part[k * MAX_STRIP + i] = lane_sum(lanes[i] + k * LANES)


cdef void unit_sums(
    Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last, Py_ssize_t unit, double *part,
    char *kept
) noexcept nogil:
    # Of this unit of the channels first to last.
    cdef double lanes[MAX_STRIP][3 * LANES]
    cdef Bounds bounds = bounds_of(plan, unit)
    cdef Py_ssize_t plane, i, at, next, channels = last - first
    cdef char *kept_run
    clear_lanes(job, lanes, channels)
    for plane in range(bounds.plane, bounds.plane_end):
        for i in range(channels):
            at = (plane * plan.c + first + i) * plan.s + bounds.start
            kept_run = kept_at(plan, kept, plane, first + i, bounds.start)
            if job.mask == NULL:
                next = to_later_run(plan, &bounds, plane, i, channels)
                run_sums(job, plan, lanes[i], kept_run, first + i, at, bounds.len, next)
            else:
                masked_sums(
                    job, plan, lanes[i], kept_run,
                    mask_of(job, plan, plane, first + i) + bounds.start, first + i, at, bounds.len)
    give_parts(job, lanes, channels, part)


cdef void first_shifts(Job *job, Plan *plan, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    # Of whole statistics. With a mask, 0: what is masked must not be looked at, and a shift far off
    # costs but a second sweep.
    cdef Py_ssize_t i, channels = job.merged
    if job.gradient_sums:
        return
    i = first
    while i < last:
        if job.mask != NULL:
            share_shift(job, i // channels, 0.0)
        else:
            share_shift(job, i // channels, plan.runs.first_shift(
                job.x + i * plan.s * job.itemsize, plan.n, channels * plan.s, plan.c * plan.s))
        i += channels


cdef bint bad_shifts(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef bint bad = False
    cdef Py_ssize_t i
    if not job.gradient_sums:
        for i in range(first // job.merged, last // job.merged):
            if shift_was_bad(job, i):
                bad = True
    return bad


cdef void add_parts(
    Job *job, Py_ssize_t first, Py_ssize_t last, const double *part, bint start
) noexcept nogil:
    cdef Py_ssize_t i, k, at
    for k in range(job.width):
        for i in range(last - first):
            at = k * job.cells + first + i
            job.sums[at] = part[k * MAX_STRIP + i] + (0.0 if start else job.sums[at])


cdef int give_mask(
    Job *job, Plan *plan, object mask, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s
) except -1:
    # Rows of s bytes: one per plane or, with n = 1, one per sample of the channels' samples.
    cdef const unsigned char *bytes_ = mask_data(mask)
    cdef Py_ssize_t size, rows, i, row
    if bytes_ == NULL or job.size == 0:
        return 0
    size = cnp.PyArray_SIZE(mask)
    rows = size // s
    if size % s != 0 or rows < 1 or (
        rows != n if n > 1 else c % rows != 0 or (c // rows) % job.merged != 0
    ):
        refuse("mask", f"rows of {s} for {n} planes of {c} channels", f"{size} elements")
    job.mask = bytes_
    job.counts = job.shift + job.cells
    plan.mask_channels = 0 if n > 1 else c // rows
    for i in range(job.statistics):
        if n > 1:
            job.counts[i] = job.counts[0] if i else mask_count(bytes_, size) * job.merged
        else:
            row = i * job.merged // plan.mask_channels
            if i > 0 and row == (i - 1) * job.merged // plan.mask_channels:
                job.counts[i] = job.counts[i - 1]
            else:
                job.counts[i] = mask_count(bytes_ + row * s, s) * job.merged
    return 0
