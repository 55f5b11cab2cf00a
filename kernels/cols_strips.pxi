# Strips of family cols in Cython: where one lies, its tables, its sums, and one after the other.

cdef struct Tables:
    # Of one strip: (room,) each, or so many times that.
    Strip strip
    Statistics of
    double *shift
    double *sums           # (3, room)
    double *part           # (3, room): of some rows; the same as sums if there are no more
    char *packed           # (NORM_VALUES, room) in the type that is computed in
    char *slopes           # through an activation: (m, room) of g and of x
    char *copy
    # Where the strip lies, and in a backward through an activation what is made of it.
    const Cols *cols
    Py_ssize_t at          # bytes from the arrays' beginnings
    Py_ssize_t following   # elements from there to the next strip
    Py_ssize_t pitch       # bytes from row to row
    char *out
    const char *dy
    const char *x
    const char *added
    double *dweight        # what it is a part of
    double *dbias


cdef inline Tables tables_of(Job *job, int number) noexcept nogil:
    cdef Tables tables
    cdef Py_ssize_t room = job.plan.room
    cdef char *spare = job.spare + (64 - <size_t>job.spare % 64) % 64
    tables.shift = <double *>(spare + number * job.plan.table_size)
    tables.sums = tables.shift + room
    tables.part = tables.sums
    if job.m > PART_ROWS:
        tables.part += 3 * room
    tables.strip.exact = tables.sums + 6 * room
    tables.strip.shared.line = <char *>(tables.strip.exact + NORM_VALUES * room)
    tables.packed = tables.strip.shared.line + job.plan.shared_size
    tables.slopes = tables.packed + NORM_VALUES * room * job.plan.cols.computed + 64
    tables.copy = tables.slopes + job.m * room * job.plan.cols.computed
    tables.strip.rows = job.m
    tables.strip.pitch = job.plan.c
    tables.strip.room = room
    tables.strip.shared.goes_on = False
    tables.of.count = <double>job.m
    tables.of.eps = job.eps
    tables.of.lost = job.lost
    tables.of.single = job.storage != F64
    memset(tables.shift, 0, room * sizeof(double))
    return tables


cdef inline Py_ssize_t first_of(Job *job, Py_ssize_t item) noexcept nogil:
    # The number of the first element of a strip.
    cdef Py_ssize_t each = item // job.plan.strips
    return each * job.m * job.plan.c + item % job.plan.strips * job.plan.wide


cdef void place(Job *job, Tables *tables, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t begin = item % job.plan.strips * job.plan.wide
    cdef Py_ssize_t column = item // job.plan.strips * job.plan.c + begin
    cdef Py_ssize_t first = first_of(job, item)
    tables.strip.cols = min(job.plan.wide, job.plan.c - begin)
    tables.strip.shared.began = False
    tables.of.mean = NULL if job.mean == NULL else job.mean + column
    tables.of.rstd = job.rstd + column
    tables.of.mask = NULL
    if job.mask != NULL:
        tables.of.mask = job.mask + column
    tables.cols = job.plan.cols
    tables.at = first * job.itemsize
    tables.following = 0
    if item + 1 < job.plan.b * job.plan.strips:
        tables.following = first_of(job, item + 1) - first
    tables.pitch = job.plan.c * job.itemsize
    tables.out = job.out + tables.at
    tables.dy = job.dy + tables.at
    tables.x = job.x + tables.at
    tables.added = added_at(job, tables.at)


cdef inline void pack(Tables *tables, Py_ssize_t values) noexcept nogil:
    # Whole lines of what the strip is written to have coefficients in whole lines.
    cdef Py_ssize_t head = (64 - <size_t>tables.out % 64) % 64 // tables.cols.itemsize
    tables.strip.packed = tables.packed + (64 - head * tables.cols.computed % 64) % 64
    tables.cols.pack(
        <void *>tables.strip.packed, tables.strip.exact, values * tables.strip.room)


cdef void sum_rows(Job *job, Tables *tables, Py_ssize_t row, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t at = row * tables.pitch
    cdef Strip *strip = &tables.strip
    strip.rows = rows
    strip.ahead = ROWS_TOGETHER * strip.pitch
    if row + rows == job.m:
        strip.ahead = (
            tables.following - (row + rows // ROWS_TOGETHER * ROWS_TOGETHER - ROWS_TOGETHER)
            * strip.pitch)
    if job.dy == NULL:
        tables.cols.sums(tables.part, tables.x + at, strip, tables.shift)
    else:
        tables.cols.grad_sums(
            tables.part, tables.dweight + row, tables.dbias + row, tables.dy + at, tables.x + at,
            job.weight + row, strip)


cdef void sum_strip(Job *job, Tables *tables) noexcept nogil:
    # PART_ROWS rows are added apart: added one by one, 65537 elements of float64 lost three bits.
    cdef Py_ssize_t row = 0, j, width = 3 * job.plan.room
    memset(tables.sums, 0, width * sizeof(double))
    while row < job.m:
        if tables.part != tables.sums:
            memset(tables.part, 0, width * sizeof(double))
        sum_rows(job, tables, row, min(PART_ROWS, job.m - row))
        if tables.part != tables.sums:
            for j in range(width):
                tables.sums[j] += tables.part[j]
        row += PART_ROWS
    tables.strip.rows = job.m


cdef void ask_next(Job *job, Tables *tables) noexcept nogil:
    # As LATER says: rows in the middle of the next strip, and at its end.
    cdef Strip *strip = &tables.strip
    cdef Py_ssize_t half = LATER // 2, i, row
    strip.itemsize = job.itemsize
    strip.later[0] = NULL
    if job.mean == NULL or tables.following == 0 or job.m < 2 * LATER:
        return
    for i in range(LATER):
        row = (job.m - half) // 2 + i if i < half else job.m - LATER + i
        strip.later[i] = tables.x + (tables.following + row * strip.pitch) * strip.itemsize


cdef void join(Job *job, Tables *tables, Py_ssize_t item, bint more) noexcept nogil:
    # Lines that the strip shares with its neighbours of the same thread.
    cdef Strip *strip = &tables.strip
    cdef Shared *shared = &strip.shared
    cdef Py_ssize_t least = 4 * 64 // job.itemsize, row, before
    cdef Py_ssize_t left = job.plan.c - item % job.plan.strips * job.plan.wide - job.plan.wide
    shared.began = shared.goes_on
    if shared.began and strip.wide:
        before = <size_t>tables.out % 64
        for row in range(job.m):
            memcpy(tables.out + row * tables.pitch - before, shared.line + 64 * row, before)
        shared.began = False
    shared.goes_on = (
        more and job.plan.shared_size > 0 and not strip.wide and left >= least
        and strip.cols >= least and <size_t>tables.out % 64 != 0 and tables.pitch % 64 == 0)


cdef void each_strip(Job *job, int thread, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    # Summed and written one after the other. To write some rows of a strip and sum some of the next
    # in turn wins nothing: a core moves 29 GB/s, read and written together, so that the copy takes
    # 4.5 ns for a line, 2.2 to read and 2.5 to write. Of (32, 96, 3136) the sums take 2.4, the
    # columns' statistics 0.4, the elements 2.9: 1.28 of the copy. In turn, 8 rows or 8 lines at a
    # time, they took 5.8 instead of 5.6. A bare loop over the same strips takes 1.12 of the copy
    # and 1.18 of the triad, 1.09 and 1.17 of 256 columns each; these 1.27 and 1.36, of 128 to 1056
    # columns.
    cdef Tables tables = tables_of(job, thread)
    cdef Py_ssize_t item
    for item in range(first, last):
        job.plan.begin(job, &tables, item)
        sum_strip(job, &tables)
        job.plan.settle(job, &tables)
        join(job, &tables, item, item + 1 < last)
        job.plan.write(job, &tables)
    if job.stream:
        stream_fence()
