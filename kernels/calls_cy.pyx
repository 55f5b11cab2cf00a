# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The plain calls: normalizations of arrays that need no conversion, from Python to the kernel.

What `normcore.functional` and the layers do step by step in Python (check, view, allocate, call)
takes 3 us, more than the kernel of a small array. `Calls` does the same here for the plain case:
NumPy arrays themselves, C-contiguous, aligned, in native byte order; parameters that are such
arrays of one axis (layer norm: of the normalized ones); `out` that is x or apart from everything
that is read; no mask. For anything else, and for whatever is wrong, every method returns None and
has touched nothing: then the general way decides, and says what is wrong.

The kernels are those of the families, with the sizes that `normcore/view.py` finds: the same bits.
"""

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.unicode cimport PyUnicode_CheckExact
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


cdef inline cnp.ndarray new_statistic(int ndim, const cnp.npy_intp *shape):
    return cnp.PyArray_EMPTY(ndim, <cnp.npy_intp *>shape, cnp.NPY_FLOAT64, 0)


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


cdef class Calls:
    """The plain calls into the kernels of one instruction set.

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

    cdef const Passes *batch(self, Call *call, cnp.ndarray x, object axis) except? NULL:
        # The sizes of batch normalization; NULL: axis is not plain.
        cdef long along = 0
        cdef int ndim = cnp.PyArray_NDIM(x)
        cdef Sizes sizes
        if ndim < 2 or not is_long(axis, &along) or not -ndim <= along < ndim:
            return NULL
        sizes = sizes_around(x, along + ndim if along < 0 else along)
        call.statistics = call.parameters = sizes.along
        if sizes.behind == 1:
            give_sizes(call, 1, sizes.before, sizes.along)
            return self.nc
        give_sizes(call, sizes.before, sizes.along, sizes.behind)
        return self.nchw

    def batch_apply(
        self, object x, object running_mean, object running_var, object weight, object bias,
        object eps, object axis, object out, object residual, object activation,
    ):
        """y of batch normalization by running statistics."""
        cdef Call call
        cdef const Passes *passes
        cdef cnp.npy_intp c
        if not self.give_x(&call, x, residual, activation) or not is_eps(eps, &call.eps):
            return None
        passes = self.batch(&call, x, axis)
        c = call.statistics
        if not (
            passes != NULL
            and is_parameter(running_mean, &c, 1, &call.mean)
            and is_parameter(running_var, &c, 1, &call.var)
            and is_optional(weight, &c, 1, &call.weight)
            and is_optional(bias, &c, 1, &call.bias)
        ):
            return None
        y = self.give_y(&call, x, out, residual, weight, bias, running_mean, running_var)
        if y is not None:
            passes.apply(&call)
        return y

    cdef object give_training(
        self, Call *call, Update *update, cnp.ndarray x, object weight, object bias,
        object running_mean, object running_var, object num_batches_tracked, object momentum,
        object eps, object out, object residual,
    ):
        # y of a training forward whose sizes are known, or None.
        cdef cnp.npy_intp c = call.statistics
        if not (
            is_eps(eps, &call.eps)
            and is_momentum(momentum, &update.momentum)
            and is_optional(weight, &c, 1, &call.weight)
            and is_optional(bias, &c, 1, &call.bias)
        ):
            return None
        update.size = 0
        if running_mean is not None or running_var is not None:
            update.size = c
            if not is_running(running_mean, c, &update.mean):
                return None
            if not is_running(running_var, c, &update.var):
                return None
        update.tracked = NULL
        if num_batches_tracked is not None:
            if not (
                is_readable(num_batches_tracked) and cnp.PyArray_SIZE(num_batches_tracked) == 1
                and cnp.PyArray_TYPE(num_batches_tracked) == cnp.NPY_INT64
                and cnp.PyArray_ISWRITEABLE(num_batches_tracked)
            ):
                return None
            update.tracked = <long long *>cnp.PyArray_DATA(num_batches_tracked)
        return self.give_y(call, x, out, residual, weight, bias, running_mean, running_var)

    cdef int train(
        self, const Passes *passes, Call *call, Update *update, double *memory
    ) except -1:
        # What of the statistics is not given out lies in `memory`.
        cdef Py_ssize_t c = call.statistics
        if call.to_mean == NULL:
            call.to_mean = memory
            call.to_rstd = memory + c
        call.to_var = memory + 2 * c
        passes.forward(call)
        if update.size:
            update.new_mean = call.to_mean
            update.new_var = call.to_var
            self.running.update(update)
        return 0

    def batch_train(
        self, object x, object running_mean, object running_var, object weight, object bias,
        object momentum, object eps, object axis, object out, object residual, object activation,
    ):
        """y of batch normalization in training; the running statistics move, if there are any."""
        cdef Call call
        cdef Update update
        cdef const Passes *passes
        cdef double few[3 * FEW]
        cdef double *memory = few
        if not self.give_x(&call, x, residual, activation):
            return None
        passes = self.batch(&call, x, axis)
        if passes == NULL:
            return None
        update.count = cnp.PyArray_SIZE(x) // call.statistics
        update.skip_nonfinite = False
        if update.count == 1:
            return None
        y = self.give_training(
            &call, &update, x, weight, bias, running_mean, running_var, None, momentum, eps, out,
            residual)
        if y is None:
            return None
        call.to_mean = NULL
        if call.statistics > FEW:
            memory = scratch(3 * call.statistics)
        try:
            self.train(passes, &call, &update, memory)
        finally:
            if memory != few:
                PyMem_RawFree(memory)
        return y

    def batch_forward(
        self, object x, object weight, object bias, object running_mean, object running_var,
        object num_batches_tracked, object momentum, object eps, object axis, object out,
        bint skip_nonfinite, object residual, object activation,
    ):
        """(y, mean, rstd) of batch normalization in training, which moves the state."""
        cdef Call call
        cdef Update update
        cdef const Passes *passes
        cdef cnp.npy_intp c
        cdef double few[3 * FEW]
        cdef double *memory = few
        cdef cnp.ndarray mean, rstd
        if not self.give_x(&call, x, residual, activation):
            return None
        passes = self.batch(&call, x, axis)
        if passes == NULL:
            return None
        update.count = cnp.PyArray_SIZE(x) // call.statistics
        update.skip_nonfinite = skip_nonfinite
        if update.count == 1:
            return None
        y = self.give_training(
            &call, &update, x, weight, bias, running_mean, running_var, num_batches_tracked,
            momentum, eps, out, residual)
        if y is None:
            return None
        c = call.statistics
        mean, rstd = new_statistic(1, &c), new_statistic(1, &c)
        call.to_mean, call.to_rstd = doubles(mean), doubles(rstd)
        if c > FEW:
            memory = scratch(3 * c)
        try:
            self.train(passes, &call, &update, memory)
        finally:
            if memory != few:
                PyMem_RawFree(memory)
        return y, mean, rstd
