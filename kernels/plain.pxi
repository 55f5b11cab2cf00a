# Which calls are plain (calls_cy.pyx says what that means), and what all of them share.

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.unicode cimport PyUnicode_CheckExact
from libc.float cimport DBL_EPSILON, FLT_EPSILON
from libc.math cimport INFINITY

include "array.pxi"

cdef extern from "Python.h":
    long PyLong_AsLongAndOverflow(object, int *) except? -1

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, void *, int)

# Statistics of so many channels need no memory of their own.
cdef enum:
    FEW = 128


cdef inline bint is_readable(object values) noexcept:
    return cnp.PyArray_CheckExact(values) and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>values)


cdef inline bint is_long(object value, long *found) except -1:
    # An int, and no bool, that fits.
    cdef int overflow = 0
    if not PyLong_CheckExact(value):
        return False
    found[0] = PyLong_AsLongAndOverflow(value, &overflow)
    return overflow == 0


cdef inline bint is_float(object value, double *found) noexcept:
    if not PyFloat_CheckExact(value):
        return False
    found[0] = PyFloat_AS_DOUBLE(value)
    return True


cdef inline bint is_eps(object value, double *found) noexcept:
    return is_float(value, found) and 0.0 < found[0] < INFINITY


cdef inline bint is_momentum(object value, double *found) noexcept:
    return is_float(value, found) and 0.0 <= found[0] <= 1.0


cdef bint is_activation(object name, int *found) except -1:
    cdef object number
    if name is None:
        found[0] = 0
        return True
    if not PyUnicode_CheckExact(name):
        return False
    number = _activations.get(name)
    if number is None:
        return False
    found[0] = number
    return True


cdef bint is_parameter(
    object values, const cnp.npy_intp *shape, int ndim, Parameter *found
) noexcept:
    # Of this shape, in float32 or float64.
    cdef int typenum, i
    found.single = NULL
    found.double_ = NULL
    if not is_readable(values) or cnp.PyArray_NDIM(values) != ndim:
        return False
    for i in range(ndim):
        if cnp.PyArray_DIM(values, i) != shape[i]:
            return False
    typenum = cnp.PyArray_TYPE(values)
    if typenum == cnp.NPY_FLOAT32:
        found.single = <const float *>cnp.PyArray_DATA(values)
    elif typenum == cnp.NPY_FLOAT64:
        found.double_ = <const double *>cnp.PyArray_DATA(values)
    else:
        return False
    return True


cdef inline bint is_optional(
    object values, const cnp.npy_intp *shape, int ndim, Parameter *found
) noexcept:
    if values is None:
        found.single = NULL
        found.double_ = NULL
        return True
    return is_parameter(values, shape, ndim, found)


cdef inline bint is_statistic(
    object values, const cnp.npy_intp *shape, int ndim, Parameter *found
) noexcept:
    # Of a forward.
    return is_parameter(values, shape, ndim, found) and found.double_ != NULL


cdef inline bint is_running(object values, cnp.npy_intp c, WritableParameter *found) noexcept:
    cdef Parameter readable
    if not is_parameter(values, &c, 1, &readable) or not cnp.PyArray_ISWRITEABLE(values):
        return False
    found.single = <float *>readable.single
    found.double_ = <double *>readable.double_
    return True


cdef inline bint is_apart(cnp.ndarray out, object read) noexcept:
    # Both contiguous; or nothing is read.
    cdef char *first
    cdef char *second
    if read is None:
        return True
    first = <char *>cnp.PyArray_DATA(out)
    second = <char *>cnp.PyArray_DATA(read)
    return (
        first + cnp.PyArray_NBYTES(out) <= second
        or second + cnp.PyArray_NBYTES(<cnp.ndarray>read) <= first
    )


cdef inline bint is_like(object values, cnp.ndarray x) noexcept:
    # Of x's shape and dtype.
    cdef int i
    if (
        not is_readable(values) or cnp.PyArray_DESCR(values) != cnp.PyArray_DESCR(x)
        or cnp.PyArray_NDIM(values) != cnp.PyArray_NDIM(x)
    ):
        return False
    for i in range(cnp.PyArray_NDIM(x)):
        if cnp.PyArray_DIM(values, i) != cnp.PyArray_DIM(x, i):
            return False
    return True


cdef inline bint is_done(call_t kernel, const Call *call) except -1:
    return kernel != NULL and kernel(call) == 0


cdef inline cnp.ndarray new_statistic(int ndim, const cnp.npy_intp *shape):
    return cnp.PyArray_EMPTY(ndim, <cnp.npy_intp *>shape, cnp.NPY_FLOAT64, 0)


cdef inline cnp.ndarray new_parameter(
    int ndim, const cnp.npy_intp *shape, bint wide, WritableParameter *found
):
    cdef cnp.ndarray values = cnp.PyArray_EMPTY(
        ndim, <cnp.npy_intp *>shape, cnp.NPY_FLOAT64 if wide else cnp.NPY_FLOAT32, 0)
    found.single = NULL if wide else <float *>cnp.PyArray_DATA(values)
    found.double_ = <double *>cnp.PyArray_DATA(values) if wide else NULL
    return values


cdef struct Sizes:
    # Of a contiguous array: elements before, along and behind an axis.
    Py_ssize_t before, along, behind


cdef inline Sizes sizes_around(cnp.ndarray x, long axis) noexcept:
    cdef Sizes sizes = Sizes(1, cnp.PyArray_DIM(x, axis), 1)
    cdef int i
    for i in range(axis):
        sizes.before *= cnp.PyArray_DIM(x, i)
    for i in range(axis + 1, cnp.PyArray_NDIM(x)):
        sizes.behind *= cnp.PyArray_DIM(x, i)
    return sizes


cdef inline void give_sizes(Call *call, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c) noexcept:
    call.sizes[0] = a
    call.sizes[1] = b
    call.sizes[2] = c


cdef class Plain:
    """What all plain calls share: x, y and the memory of a forward.

    Parameters
    ----------
    families : dict
        Family -> module, and "running".
    threads : callable
        Number of elements -> number of threads, for arrays of `serial_below` elements and more.
    serial_below : int
        Smaller arrays take one thread.
    """

    cdef const Passes *nchw
    cdef const Passes *nc
    cdef const Passes *rows
    cdef const RunningPasses *running
    cdef object threads
    cdef Py_ssize_t serial_below

    def __init__(self, dict families, object threads, Py_ssize_t serial_below):
        self.nchw = <const Passes *>PyCapsule_GetPointer(families["nchw"].passes, NORMCORE_PASSES)
        self.nc = <const Passes *>PyCapsule_GetPointer(families["nc"].passes, NORMCORE_PASSES)
        self.rows = <const Passes *>PyCapsule_GetPointer(families["rows"].passes, NORMCORE_PASSES)
        self.running = <const RunningPasses *>PyCapsule_GetPointer(
            families["running"].passes, NORMCORE_RUNNING)
        self.threads = threads
        self.serial_below = serial_below

    cdef bint give_x(self, Call *call, object x, object residual, object activation) except -1:
        # False: not plain.
        cdef Py_ssize_t size
        if not is_readable(x):
            return False
        call.storage = find_storage(x)
        size = cnp.PyArray_SIZE(x)
        if call.storage < 0 or size == 0 or not is_activation(activation, &call.activation):
            return False
        call.residual = NULL
        if residual is not None:
            if not is_like(residual, x):
                return False
            call.residual = <const char *>cnp.PyArray_DATA(residual)
        call.x = <const char *>cnp.PyArray_DATA(x)
        call.dy = NULL
        call.to_mean = call.to_rstd = NULL
        call.threads = 1 if size < self.serial_below else self.threads(size)
        return True

    cdef object give_y(
        self, Call *call, cnp.ndarray x, object out, object residual, object weight, object bias,
        object first, object second,
    ):
        # out, or a fresh array; None: not plain. `first` and `second` are read too, or None.
        if out is None:
            out = PyArray_NewLikeArray(x, cnp.NPY_CORDER, NULL, 0)
        elif not (
            is_like(out, x) and cnp.PyArray_ISWRITEABLE(out)
            and (out is x or is_apart(out, x)) and (out is residual or is_apart(out, residual))
            and is_apart(out, weight) and is_apart(out, bias)
            and is_apart(out, first) and is_apart(out, second)
        ):
            return None
        call.y = <char *>cnp.PyArray_DATA(out)
        return out

    cdef bint forward(
        self, const Passes *passes, Call *call, bint centre, Update *update
    ) except -1:
        # Whether it was done. Statistics that nobody asked for lie in memory of this call. `update`
        # may be NULL.
        cdef Py_ssize_t size = call.statistics
        cdef double few[3 * FEW]
        cdef double *memory = few
        if size > FEW:
            memory = scratch(3 * size)
            if memory == NULL:
                raise MemoryError
        if call.to_rstd == NULL:
            call.to_rstd = memory
        if centre and call.to_mean == NULL:
            call.to_mean = memory + size
        call.to_var = memory + 2 * size
        try:
            if not is_done(passes.forward, call):
                return False
            if update != NULL and update.size > 0:
                update.new_mean = call.to_mean
                update.new_var = call.to_var
                self.running.update(update)
        finally:
            if memory != few:
                PyMem_RawFree(memory)
        return True

    cdef object backward(
        self, const Passes *passes, Call *call, object x, object dy, object mean, object rstd,
        const cnp.npy_intp *statistics, int statistics_ndim, bint centre, object weight,
        object bias, const cnp.npy_intp *parameters, int parameters_ndim, object out,
    ):
        # (dx, dweight, dbias), or None. Shapes are those of mean and rstd, and of weight and bias.
        cdef Parameter inverse
        cdef cnp.ndarray dweight, dbias
        cdef bint wide
        call.mean.single = NULL
        call.mean.double_ = NULL
        if not (
            is_like(dy, x)
            and (not centre or is_statistic(mean, statistics, statistics_ndim, &call.mean))
            and is_statistic(rstd, statistics, statistics_ndim, &inverse)
            and is_optional(weight, parameters, parameters_ndim, &call.weight)
            and is_optional(bias, parameters, parameters_ndim, &call.bias)
        ):
            return None
        dx = self.give_y(call, x, out, dy, weight, bias, mean if centre else None, rstd)
        if dx is None:
            return None
        wide = call.storage == F64 if weight is None else call.weight.double_ != NULL
        dweight = new_parameter(parameters_ndim, parameters, wide, &call.dweight)
        dbias = new_parameter(parameters_ndim, parameters, wide, &call.dbias)
        call.dy = <const char *>cnp.PyArray_DATA(dy)
        call.rstd = inverse.double_
        return (dx, dweight, dbias) if is_done(passes.backward, call) else None
