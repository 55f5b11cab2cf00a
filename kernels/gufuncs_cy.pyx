# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Layer, RMS and instance norm as NumPy's generalized ufuncs (`normcore.gufuncs` documents them).

The loops find contiguous rows, or gather them block by block, and call the kernels by pointer
without the GIL. A loop has no memory from call to call; NumPy broadcasts, casts and allocates.
"""

from libc.stdlib cimport free, malloc

cimport numpy as cnp
from normcore.capi cimport NORMCORE_OK, nchw_forward, rows_forward

from normcore import backend as _backend

cnp.import_array()
cnp.import_ufunc()

cdef extern from "<fenv.h>" nogil:
    int FE_ALL_EXCEPT
    int feclearexcept(int)

cdef extern from "Python.h":
    void PyErr_SetNone(object)

# Rows of about so many elements are gathered at a time: 64 KB of float32 stay in the cache.
cdef enum:
    BLOCK = 16384
    DENSE_ROWS = 65536  # that are normalized together: 1.5 MB of statistics

cdef Py_ssize_t SERIAL_BELOW = _backend.SERIAL_BELOW


cdef enum Kind:
    LAYER              # x, weight, bias, eps -> y: parameters along the row
    RMS                # x, weight, eps -> y
    INSTANCE           # x, weight, bias, eps -> y: a parameter per row


cdef struct Loop:
    Kind kind
    int dtype, parameter_dtype
    int core           # normalized axes


cdef struct Rows:
    # r rows of m elements: where they start, how far apart they and, per axis, their elements are.
    char *at
    Py_ssize_t step
    const cnp.npy_intp *shape
    const cnp.npy_intp *steps
    int core


cdef inline Py_ssize_t itemsize_of(int dtype) noexcept nogil:
    # As the loops' dtypes are numbered in capi.pxd.
    return 4 if dtype == 0 else 8 if dtype == 1 else 2


cdef bint are_dense(const Rows *rows, Py_ssize_t itemsize) noexcept nogil:
    # The elements of a row, one beside the other.
    cdef Py_ssize_t wanted = itemsize
    cdef int axis
    for axis in range(rows.core - 1, -1, -1):
        if rows.shape[axis] != 1 and rows.steps[axis] != wanted:
            return False
        wanted *= rows.shape[axis]
    return True


cdef inline void copy_items(
    char *to, Py_ssize_t to_step, const char *of, Py_ssize_t of_step, Py_ssize_t n,
    Py_ssize_t itemsize,
) noexcept nogil:
    cdef Py_ssize_t i
    if itemsize == 4:
        for i in range(n):
            (<unsigned int *>(to + i * to_step))[0] = (<const unsigned int *>(of + i * of_step))[0]
    elif itemsize == 8:
        for i in range(n):
            (<double *>(to + i * to_step))[0] = (<const double *>(of + i * of_step))[0]
    else:
        for i in range(n):
            (<unsigned short *>(to + i * to_step))[0] = (
                <const unsigned short *>(of + i * of_step))[0]


cdef void move_row(
    char *dense, char *spread, const Rows *rows, Py_ssize_t itemsize, bint gather
) noexcept nogil:
    # The last axis at a time.
    cdef int last = rows.core - 1
    cdef Py_ssize_t length = rows.shape[last], step = rows.steps[last], lines = 1, line, rest
    cdef char *at
    cdef int axis
    for axis in range(last):
        lines *= rows.shape[axis]
    for line in range(lines):
        at, rest = spread, line
        for axis in range(last - 1, -1, -1):
            at += rest % rows.shape[axis] * rows.steps[axis]
            rest //= rows.shape[axis]
        if gather:
            copy_items(dense, itemsize, at, step, length, itemsize)
        else:
            copy_items(at, step, dense, itemsize, length, itemsize)
        dense += length * itemsize


cdef inline bint follow(const Rows *rows, Py_ssize_t itemsize, Py_ssize_t n) noexcept nogil:
    # Dense rows, one behind the other.
    cdef Py_ssize_t size = itemsize
    cdef int axis
    for axis in range(rows.core):
        size *= rows.shape[axis]
    return are_dense(rows, itemsize) and (n == 1 or rows.step == size)


cdef struct Call:
    # What stays the same from block to block.
    const Loop *loop
    Rows x, y
    Py_ssize_t m
    Py_ssize_t itemsize, parameter_itemsize
    bint x_follows, y_follows
    Py_ssize_t block           # rows that are normalized together
    int threads
    char *weight               # (m,) or, in instance norm, (block,)
    char *bias                 # NULL in RMS norm
    char *rows                 # (block, m), where x or y has to be copied
    double *statistics         # (3, block)


cdef int normalize(const Call *call, Py_ssize_t first, Py_ssize_t r, double eps) noexcept nogil:
    # The rows from `first` on.
    cdef const Loop *loop = call.loop
    cdef double *mean = call.statistics
    cdef double *var = mean + call.block
    cdef double *rstd = var + call.block
    cdef char *x = call.x.at + first * call.x.step
    cdef char *y = call.y.at + first * call.y.step
    cdef Py_ssize_t i, size = call.m * call.itemsize
    cdef int status
    if not call.x_follows:
        for i in range(r):
            move_row(call.rows + i * size, x + i * call.x.step, &call.x, call.itemsize, True)
        x = call.rows
    if not call.y_follows:
        y = call.rows
    if loop.kind == INSTANCE:
        status = nchw_forward(
            loop.dtype, loop.parameter_dtype, y, mean, var, rstd, x, NULL, call.weight, call.bias,
            eps, 0, r, r, 1, r, call.m, call.threads)
    else:
        status = rows_forward(
            loop.dtype, loop.parameter_dtype, y, NULL if loop.kind == RMS else mean, rstd, x, NULL,
            call.weight, call.bias, eps, 0, r, call.m, call.threads)
    if not call.y_follows:
        y = call.y.at + first * call.y.step
        for i in range(r):
            move_row(call.rows + i * size, y + i * call.y.step, &call.y, call.itemsize, False)
    return status


cdef int threads_for(Py_ssize_t size) noexcept with gil:
    return _backend.threads(size)


cdef void no_memory() noexcept with gil:
    PyErr_SetNone(MemoryError)


cdef void run(
    char **args, const cnp.npy_intp *dimensions, const cnp.npy_intp *steps, void *data
) noexcept nogil:
    # One call of a loop: steps are those of the arguments from row to row, then of their elements.
    cdef Call call
    cdef const Loop *loop = <const Loop *>data
    cdef bint rms = loop.kind == RMS, instance = loop.kind == INSTANCE
    cdef int eps_at = 2 if rms else 3
    cdef int args_count = eps_at + 2
    cdef const cnp.npy_intp *core_steps = steps + args_count
    cdef Py_ssize_t n = dimensions[0], i, r, room, along
    cdef bint alike
    cdef char *memory
    cdef int axis, k, status = NORMCORE_OK
    call.loop = loop
    call.m = 1
    for axis in range(loop.core):
        call.m *= dimensions[1 + axis]
    if n == 0 or call.m == 0:
        return
    call.itemsize = itemsize_of(loop.dtype)
    call.parameter_itemsize = itemsize_of(loop.parameter_dtype)
    call.x = Rows(args[0], steps[0], dimensions + 1, core_steps, loop.core)
    k = loop.core if instance else loop.core + eps_at - 1
    call.y = Rows(
        args[args_count - 1], steps[args_count - 1], dimensions + 1, core_steps + k, loop.core)
    call.x_follows = follow(&call.x, call.itemsize, n)
    call.y_follows = follow(&call.y, call.itemsize, n)
    # Rows that share eps and, but in instance norm, weight and bias.
    alike = steps[eps_at] == 0
    for k in range(1, eps_at):
        alike = alike and (instance or steps[k] == 0)
    call.block = min(n, DENSE_ROWS)
    if not (call.x_follows and call.y_follows):
        call.block = min(n, max(1, BLOCK // call.m))
    if not alike:
        call.block = 1
    call.threads = 1
    if call.block * call.m >= SERIAL_BELOW:
        call.threads = threads_for(call.block * call.m)
    along = call.block if instance else call.m
    room = 0 if call.x_follows and call.y_follows else call.block * call.m * call.itemsize
    memory = <char *>malloc(
        3 * call.block * sizeof(double) + 2 * along * call.parameter_itemsize + room)
    if memory == NULL:
        no_memory()
        return
    call.statistics = <double *>memory
    call.weight = memory + 3 * call.block * sizeof(double)
    call.bias = NULL if rms else call.weight + along * call.parameter_itemsize
    call.rows = call.weight + 2 * along * call.parameter_itemsize
    i = 0
    while i < n and status == NORMCORE_OK:
        r = min(call.block, n - i)
        if instance or i == 0 or not alike:
            for k in range(1, eps_at):
                copy_items(
                    call.weight if k == 1 else call.bias, call.parameter_itemsize,
                    args[k] + i * steps[k], steps[k] if instance else core_steps[k],
                    r if instance else call.m, call.parameter_itemsize)
        status = normalize(&call, i, r, (<double *>(args[eps_at] + i * steps[eps_at]))[0])
        i += r
    free(memory)
    # As in the other ways to normalize, NaN and infinity come out without a warning.
    feclearexcept(FE_ALL_EXCEPT)
    if status != NORMCORE_OK:
        no_memory()


# The ufuncs --------------------------------------------------------------------------------------

# Storage and parameter dtypes of the loops, as numbers of capi.pxd and as NumPy's.
cdef enum:
    DTYPES = 5

cdef int[DTYPES] STORED = [2, 2, 0, 0, 1]
cdef int[DTYPES] GIVEN = [0, 1, 0, 1, 1]
cdef char[DTYPES] STORED_TYPES = [
    cnp.NPY_FLOAT16, cnp.NPY_FLOAT16, cnp.NPY_FLOAT32, cnp.NPY_FLOAT32, cnp.NPY_FLOAT64]
cdef char[DTYPES] GIVEN_TYPES = [
    cnp.NPY_FLOAT32, cnp.NPY_FLOAT64, cnp.NPY_FLOAT32, cnp.NPY_FLOAT64, cnp.NPY_FLOAT64]

cdef struct Table:
    # What a ufunc refers to as long as it lives.
    Loop loops[DTYPES]
    void *data[DTYPES]
    cnp.PyUFuncGenericFunction functions[DTYPES]
    char types[DTYPES * 5]

cdef Table[5] tables


cdef object ufunc(Table *table, Kind kind, int core, const char *name, const char *signature,
                  const char *doc):
    cdef int i, k, inputs = 3 if kind == RMS else 4
    cdef char *types = table.types
    for i in range(DTYPES):
        table.loops[i] = Loop(kind, STORED[i], GIVEN[i], core)
        table.data[i] = &table.loops[i]
        # By way of void *, because Cython's declaration of NumPy's type lacks the two const.
        table.functions[i] = <cnp.PyUFuncGenericFunction><void *>run
        types[0] = types[inputs] = STORED_TYPES[i]
        for k in range(1, inputs - 1):
            types[k] = GIVEN_TYPES[i]
        types[inputs - 1] = cnp.NPY_FLOAT64
        types += inputs + 1
    return cnp.PyUFunc_FromFuncAndDataAndSignature(
        table.functions, table.data, table.types, DTYPES, inputs, 1, cnp.PyUFunc_None,
        name, doc, 0, signature)


layer_norm = ufunc(
    &tables[0], LAYER, 1, "layer_norm", "(m),(m),(m),()->(m)",
    "y = (x - mean) / sqrt(var + eps) * weight + bias over the last axis: x, weight, bias, eps.")
rms_norm = ufunc(
    &tables[1], RMS, 1, "rms_norm", "(m),(m),()->(m)",
    "y = x / sqrt(mean(x^2) + eps) * weight over the last axis: x, weight, eps.")
instance_norm1d = ufunc(
    &tables[2], INSTANCE, 1, "instance_norm1d", "(l),(),(),()->(l)",
    "y = (x - mean) / sqrt(var + eps) * weight + bias over one axis: x, weight, bias, eps.")
instance_norm2d = ufunc(
    &tables[3], INSTANCE, 2, "instance_norm2d", "(h,w),(),(),()->(h,w)",
    "y = (x - mean) / sqrt(var + eps) * weight + bias over two axes: x, weight, bias, eps.")
instance_norm3d = ufunc(
    &tables[4], INSTANCE, 3, "instance_norm3d", "(d,h,w),(),(),()->(d,h,w)",
    "y = (x - mean) / sqrt(var + eps) * weight + bias over three axes: x, weight, bias, eps.")
