# What is done to a unit of rows of an array of family nc in Cython. Who does which part when is in
# nc.pxi; columns.h holds the arithmetic on a block of rows.

cdef extern from "column_fused_grads.h" nogil:
    enum: COEFFICIENTS
    enum: WRAP
    enum: TO_MEMORY_FROM_CACHE
    ctypedef struct Block:
        Py_ssize_t rows, cols
    ctypedef struct Coefficients:
        const void *packed
        Py_ssize_t pitch
        const Channel *channels
        const unsigned char *uneven
        Py_ssize_t period, first, piece
    ctypedef struct Columns:
        Py_ssize_t itemsize
        void (*first_shifts)(
            double *shift, const void *x, const Block *block, Py_ssize_t first, Py_ssize_t last
        ) noexcept nogil
        void (*sums)(
            double *sum, double *square, const void *x, const Block *block, const double *shift
        ) noexcept nogil
        void (*grad_sums)(
            double *sum, double *product, double *rest, const void *dy, const void *x,
            const Block *block, const double *mean
        ) noexcept nogil
        void (*apply)(
            void *y, const void *x, const Block *block, const Coefficients *columns, int stream
        ) noexcept nogil
        void (*apply_fused)(
            void *y, const void *x, const void *residual, const Block *block,
            const Coefficients *columns, int activation, int stream) noexcept nogil
        void (*apply_grads)(
            void *dx, const void *dy, const void *x, const Block *block,
            const Coefficients *columns, int stream) noexcept nogil
        void (*activation_grads)(
            void *g, const void *dy, const void *x, const void *residual, const Block *block,
            const Coefficients *columns, int activation, int stream) noexcept nogil
    const Columns columns_f32, columns_f64, columns_f16, columns_bf16
    ctypedef struct ColumnSlope:
        const void *dy
        const void *x
        const void *residual
        Coefficients before
        int activation
    ctypedef struct FusedColumns:
        void (*sums)(
            double *sum, double *product, double *rest, const ColumnSlope *at, const Block *block,
            const double *mean) noexcept nogil
        void (*grads)(
            void *dx, void *g, const ColumnSlope *at, const Block *block,
            const Coefficients *columns, int constant, int stream) noexcept nogil
    const FusedColumns fused_columns_f32, fused_columns_f64, fused_columns_f16, fused_columns_bf16

cdef Py_ssize_t UNIT_BLOCK = _schedule.UNIT_BLOCK
cdef Py_ssize_t UNIT_BLOCK_LEAST = _schedule.UNIT_BLOCK_LEAST
cdef Py_ssize_t UNITS = _schedule.UNITS
# Rows are folded until they hold FOLD columns and, where that takes no more than FOLD_MOST, are
# whole cache lines.
cdef Py_ssize_t FOLD = 64
cdef Py_ssize_t FOLD_MOST = 1024
# Columns whose totals one thread settles at a time.
cdef Py_ssize_t PIECE = 64

cdef struct Plan:
    # The sizes and how they are cut: by sizes alone, never by the number of threads.
    const Columns *columns
    const FusedColumns *fused
    Py_ssize_t b, m, c
    Py_ssize_t fold        # rows that are read as one
    Py_ssize_t wide        # columns of such a row: fold * c
    Py_ssize_t rows        # whole folded rows of one b; what is left over is one shorter row
    Py_ssize_t unit        # folded rows of one unit
    Py_ssize_t units       # units of one b
    Py_ssize_t piece       # columns that are settled at a time: whole statistics
    Py_ssize_t pieces      # of one b
    # Memory of the b that one team has in hand, `held` of them from `base` on.
    Py_ssize_t held, base
    double *shift          # (held, wide): the channel's shift under every column
    double *totals         # (held, units, width, wide): sums of every unit
    char *packed           # (COEFFICIENTS, held, wide + WRAP) in the type computed in
    char *before           # the same of what an activation was applied to
    # (held, pieces): is a shift bad; is a channel not plain, as it is and before the activation
    unsigned char *bad
    unsigned char *uneven
    unsigned char *uneven_before


cdef void make_plan(
    Plan *plan, Job *job, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c
) noexcept nogil:
    cdef Py_ssize_t block = max(UNIT_BLOCK_LEAST, min(UNIT_BLOCK, b * m * c // UNITS))
    plan.columns = &columns_f32
    plan.fused = &fused_columns_f32
    if job.storage == F64:
        plan.columns = &columns_f64
        plan.fused = &fused_columns_f64
    elif job.storage == F16:
        plan.columns = &columns_f16
        plan.fused = &fused_columns_f16
    elif job.storage == BF16:
        plan.columns = &columns_bf16
        plan.fused = &fused_columns_bf16
    plan.b, plan.m, plan.c = b, m, c
    # A mask drops single rows.
    plan.fold = 1 if job.mask != NULL else max(1, min(m, fold_of(c, 64 // job.itemsize)))
    plan.wide = plan.fold * c
    plan.rows = m // plan.fold
    plan.units = (plan.rows + max(8, block // plan.wide) - 1) // max(8, block // plan.wide)
    if plan.units > 2:
        # As many for each of 2 or 4 threads.
        plan.units = (plan.units + 3) // 4 * 4
    plan.unit = (plan.rows + plan.units - 1) // plan.units
    plan.units = (plan.rows + plan.unit - 1) // plan.unit
    plan.piece = job.merged * max(1, PIECE // job.merged)
    plan.pieces = (c + plan.piece - 1) // plan.piece


cdef Py_ssize_t fold_of(Py_ssize_t c, Py_ssize_t line) noexcept nogil:
    # Rows to read as one, of `line` elements in a cache line.
    cdef Py_ssize_t lines = 1, fold
    while lines * c % line != 0:
        lines *= 2
    fold = lines
    while fold * c < FOLD:
        fold += lines
    return fold if fold * c <= FOLD_MOST else (FOLD + c - 1) // c


cdef inline bint any_of(const unsigned char *flags, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        if flags[i]:
            return True
    return False


cdef struct Part:
    # Rows of one b: the block, where it starts in x, and which of the b held it is.
    Block block
    Py_ssize_t at, slot


cdef inline Part part_of(Plan *plan, Py_ssize_t item, bint rest) noexcept nogil:
    # The whole folded rows of a unit or, with `rest`, the rows that folding leaves over.
    cdef Part part
    cdef Py_ssize_t b = item // plan.units, unit = item % plan.units, row = unit * plan.unit
    part.block.cols = plan.wide
    part.block.rows = max(0, min(plan.unit, plan.rows - row))
    if rest:
        row = plan.rows
        part.block.cols = plan.m % plan.fold * plan.c
        part.block.rows = 1 if unit == plan.units - 1 and part.block.cols > 0 else 0
    part.at = b * plan.m * plan.c + row * plan.wide
    part.slot = b - plan.base
    return part


cdef Coefficients coefficients_of(
    Plan *plan, Py_ssize_t slot, char *packed, const unsigned char *uneven, const Channel *channels
) noexcept nogil:
    # Of one b; `channels` are those of all.
    cdef Coefficients by
    by.pitch = plan.held * (plan.wide + WRAP)
    by.period = plan.c
    by.first = 0
    by.piece = plan.piece
    by.uneven = uneven + slot * plan.pieces
    by.packed = packed + slot * (plan.wide + WRAP) * plan.columns.itemsize
    by.channels = NULL
    if any_of(by.uneven, plan.pieces):
        by.channels = channels + (plan.base + slot) * plan.c
    return by


cdef ColumnSlope slope_at(Job *job, Plan *plan, const Part *part) noexcept nogil:
    cdef ColumnSlope slope
    cdef Py_ssize_t at = part.at * job.itemsize
    slope.dy = job.dy + at
    slope.x = job.x + at
    slope.residual = residual_at(job, at)
    slope.before = coefficients_of(
        plan, part.slot, plan.before, plan.uneven_before, job.before)
    slope.activation = job.activation
    return slope


cdef void part_sums(Job *job, Plan *plan, const Part *part, double *totals) noexcept nogil:
    cdef Py_ssize_t at = part.at * job.itemsize
    cdef const double *shift = plan.shift + part.slot * plan.wide
    cdef ColumnSlope slope
    if job.before != NULL:
        slope = slope_at(job, plan, part)
        plan.fused.sums(
            totals, totals + plan.wide, totals + 2 * plan.wide, &slope, &part.block, shift)
    elif job.gradient_sums:
        plan.columns.grad_sums(
            totals, totals + plan.wide, totals + 2 * plan.wide, job.dy + at, job.x + at,
            &part.block, shift)
    else:
        plan.columns.sums(totals, totals + plan.wide, job.x + at, &part.block, shift)


cdef void part_elementwise(
    Job *job, Plan *plan, const Part *part, const Coefficients *by
) noexcept nogil:
    cdef Py_ssize_t at = part.at * job.itemsize
    cdef char *out = job.out + at
    cdef ColumnSlope slope
    if job.before != NULL:
        slope = slope_at(job, plan, part)
        plan.fused.grads(
            out, NULL if job.g == NULL else job.g + at, &slope, &part.block, by,
            job.kind == SCALE, job.stream)
    elif job.kind == NORMALIZE:
        plan.columns.apply(out, job.x + at, &part.block, by, job.stream)
    elif job.kind == GRADIENT:
        plan.columns.apply_grads(out, job.dy + at, job.x + at, &part.block, by, job.stream)
    elif job.kind == SCALE:
        plan.columns.apply(out, job.dy + at, &part.block, by, job.stream)
    elif job.kind == NORMALIZE_FUSED:
        plan.columns.apply_fused(
            out, job.x + at, residual_at(job, at), &part.block, by, job.activation, job.stream)
    else:
        plan.columns.activation_grads(
            out, job.dy + at, job.x + at, residual_at(job, at), &part.block, by, job.activation,
            job.stream)


cdef Py_ssize_t kept_rows(Job *job, Plan *plan, Part *part, Part *run) noexcept nogil:
    # The first rows of a part that are all kept, or all masked; takes them off the part.
    cdef Py_ssize_t row = part.at // plan.c, end
    run[0] = part[0]
    end = mask_run(job.mask, row, row + part.block.rows)
    run.block.rows = end - row
    part.block.rows -= run.block.rows
    part.at += run.block.rows * plan.c
    return job.mask[row]


cdef void unit_sums(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t size = job.width * plan.wide
    cdef double *totals = plan.totals + (item - plan.base * plan.units) * size
    cdef Part part, kept
    cdef int rest
    memset(totals, 0, size * sizeof(double))
    for rest in range(2):
        part = part_of(plan, item, rest)
        if job.mask == NULL:
            part_sums(job, plan, &part, totals)
            continue
        while part.block.rows > 0:
            if kept_rows(job, plan, &part, &kept):
                part_sums(job, plan, &kept, totals)


cdef void unit_elementwise(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    cdef Coefficients by = coefficients_of(
        plan, item // plan.units - plan.base, plan.packed, plan.uneven, job.channels)
    cdef Part part, kept
    cdef int rest
    for rest in range(2):
        part = part_of(plan, item, rest)
        if job.mask == NULL or not job.gradient_sums:
            part_elementwise(job, plan, &part, &by)
            continue
        while part.block.rows > 0:
            if kept_rows(job, plan, &part, &kept):
                part_elementwise(job, plan, &kept, &by)
            else:
                no_gradient(job, kept.at, kept.block.rows * plan.c)
