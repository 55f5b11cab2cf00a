# What is done to a piece of columns of one b in Cython (family nc): shifts before the sums of
# nc_units.pxi; totals, statistics and coefficients after them.


cdef struct Piece:
    # Some columns of one b, which is one of the b held: first to last of c, the first's cell, their
    # statistics; which of the pieces of all b held it is.
    Py_ssize_t b, slot, first, last, cell, statistic, statistic_end, held


cdef inline Piece piece_of(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    cdef Piece piece
    piece.b = item // plan.pieces
    piece.slot = piece.b - plan.base
    piece.held = item - plan.base * plan.pieces
    piece.first = item % plan.pieces * plan.piece
    piece.last = min(plan.c, piece.first + plan.piece)
    piece.cell = piece.b * plan.c + piece.first
    piece.statistic = piece.cell // job.merged
    piece.statistic_end = piece.statistic + (piece.last - piece.first) // job.merged
    return piece


cdef void piece_shifts(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    # The shifts of a piece of channels, in a forward found here. With a mask 0: what is masked must
    # not be looked at, and a shift far off costs but a second sweep.
    cdef Piece piece = piece_of(job, plan, item)
    cdef const char *x = job.x + piece.b * plan.m * plan.c * job.itemsize
    cdef double *shift = job.shift + piece.b * plan.c
    cdef Py_ssize_t i, at
    cdef Block block
    if not job.gradient_sums:
        block.rows = plan.m
        block.cols = plan.c
        if job.mask == NULL and job.merged == 1:
            plan.columns.first_shifts(shift, x, &block, piece.first, piece.last)
        for i in range(piece.statistic, piece.statistic_end):
            at = piece.first + (i - piece.statistic) * job.merged
            if job.mask == NULL and job.merged > 1:
                plan.columns.first_shifts(shift, x, &block, at, at + 1)
            share_shift(job, i, 0.0 if job.mask != NULL else shift[at])
    if job.before != NULL:
        plan.uneven_before[piece.held] = piece_pack(
            plan, &piece, tables_of(job, plan, &piece, plan.before, False), job.before)
    piece_spread(job, plan, item)


cdef void piece_spread(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    # The shifts under every folded column.
    cdef Piece piece = piece_of(job, plan, item)
    cdef double *shift = plan.shift + piece.slot * plan.wide + piece.first
    cdef Py_ssize_t k
    for k in range(plan.fold):
        memcpy(
            shift + k * plan.c, job.shift + piece.cell, (piece.last - piece.first) * sizeof(double))


cdef void piece_totals(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    # Unit by unit in order, whoever summed them.
    cdef Piece piece = piece_of(job, plan, item)
    cdef Py_ssize_t k, f, unit, size = piece.last - piece.first
    cdef double *sums
    cdef const double *totals
    for k in range(job.width):
        sums = job.sums + k * job.cells + piece.cell
        memset(sums, 0, size * sizeof(double))
        for unit in range(plan.units):
            totals = plan.totals + (
                (piece.slot * plan.units + unit) * job.width + k) * plan.wide + piece.first
            for f in range(plan.fold):
                add_all(sums, totals + f * plan.c, size)


cdef void piece_first_totals(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    # After the first sweep: the statistics, unless a shift was bad.
    cdef Piece piece = piece_of(job, plan, item)
    cdef Py_ssize_t i
    piece_totals(job, plan, item)
    plan.bad[piece.held] = False
    if not job.gradient_sums:
        for i in range(piece.statistic, piece.statistic_end):
            if shift_was_bad(job, i):
                plan.bad[piece.held] = True
    if plan.bad[piece.held]:
        piece_spread(job, plan, item)
    else:
        piece_settle(job, plan, item)


cdef void piece_last_totals(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    piece_totals(job, plan, item)
    piece_settle(job, plan, item)


cdef Tables tables_of(
    Job *job, Plan *plan, const Piece *piece, char *packed, bint gradient
) noexcept nogil:
    cdef Tables tables
    tables.pitch = plan.held * (plan.wide + WRAP)
    tables.first = piece.cell
    tables.narrow = job.storage != F64
    tables.gradient = gradient
    tables.packed = packed + plan.columns.itemsize * (
        piece.slot * (plan.wide + WRAP) + piece.first)
    return tables


cdef void piece_settle(Job *job, Plan *plan, Py_ssize_t item) noexcept nogil:
    # The statistics of a piece of channels, and their coefficients as the vector loops want them.
    cdef Piece piece = piece_of(job, plan, item)
    cdef Tables tables
    if job.kind == NOTHING:
        job.settle(job, piece.statistic, piece.statistic_end)
        return
    tables = tables_of(job, plan, &piece, plan.packed, job.kind == GRADIENT)
    # These change channels after they were given, or give them one by one.
    if job.settle != settle_renorm and not (job.settle == settle_backward and not job.training):
        job.tables = tables
    job.uneven = False
    job.settle(job, piece.statistic, piece.statistic_end)
    if job.tables.packed == NULL:
        job.uneven = piece_pack(plan, &piece, tables, job.channels)
    else:
        piece_repeat(plan, &piece, tables)
    plan.uneven[piece.held] = job.uneven


cdef bint piece_pack(
    Plan *plan, const Piece *piece, Tables tables, const Channel *channels
) noexcept nogil:
    # Is one of them not plain?
    cdef Py_ssize_t first = piece.cell, last = piece.cell + piece.last - piece.first, i
    cdef bint uneven = False
    for i in range(first, last):
        if channels[i].kind != PLAIN_CHANNEL:
            uneven = True
    while first < last:
        pack_channels(&tables, channels, first, min(<Py_ssize_t>SETTLED, last - first))
        first += SETTLED
    piece_repeat(plan, piece, tables)
    return uneven


cdef void piece_repeat(Plan *plan, const Piece *piece, Tables tables) noexcept nogil:
    # Under every folded column, and as far as the arrays go on.
    repeat_coefficients(
        &tables, piece.last - piece.first, plan.c, plan.wide + WRAP - piece.first)
