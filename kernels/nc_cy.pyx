# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Family nc in Cython: b times m rows of c contiguous channels.

`kernels/table.py` says what the arguments are, `normcore/reference.py` what is computed. Here
stand the entry points; passes.pxi goes from sums to coefficients, nc.pxi through memory.
"""

include "passes.pxi"
include "nc.pxi"


def moments(
    cnp.ndarray mean not None, cnp.ndarray m2 not None, cnp.ndarray x not None,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """Mean and sum of squared deviations of every cell (b, c)."""
    cdef Job *job = new_job("", None, x, None, b * c, b * c, product(b, m, c))
    try:
        moments_job(job, mean, m2)
        launch(job, True, None, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def apply(
    cnp.ndarray y not None, cnp.ndarray x not None, object residual, cnp.ndarray mean not None,
    cnp.ndarray var not None, object weight, object bias, double eps, int activation,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)."""
    cdef Job *job = new_job("y", y, x, None, b * c, cnp.PyArray_SIZE(mean), product(b, m, c))
    try:
        apply_job(job, x, residual, mean, var, weight, bias, c, eps, activation)
        launch(job, False, None, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def forward(
    cnp.ndarray y not None, cnp.ndarray mean not None, cnp.ndarray var not None,
    cnp.ndarray rstd not None, cnp.ndarray x not None, object residual, object mask, object weight,
    object bias, double eps, int activation,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """Statistics of x, and y = activation((x - mean) * rstd * weight + bias + residual)."""
    cdef Job *job = new_job("y", y, x, None, b * c, cnp.PyArray_SIZE(mean), product(b, m, c))
    try:
        forward_job(job, mean, var, rstd, x, residual, weight, bias, c, eps, activation)
        launch(job, True, mask, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def renorm(
    cnp.ndarray y not None, cnp.ndarray mean not None, cnp.ndarray var not None,
    cnp.ndarray rstd not None, cnp.ndarray r not None, cnp.ndarray d not None,
    cnp.ndarray x not None, object residual, object mask, cnp.ndarray running_mean not None,
    cnp.ndarray running_var not None, double r_max, double d_max, object weight, object bias,
    double eps, int activation,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """As forward, with ((x - mean) * rstd * r + d) * weight + bias."""
    cdef Job *job = new_job("y", y, x, None, b * c, cnp.PyArray_SIZE(mean), product(b, m, c))
    try:
        forward_job(job, mean, var, rstd, x, residual, weight, bias, c, eps, activation)
        renorm_job(job, r, d, running_mean, running_var, r_max, d_max)
        launch(job, True, mask, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def activation_grads(
    cnp.ndarray g not None, cnp.ndarray dy not None, cnp.ndarray x not None, object residual,
    cnp.ndarray mean not None, cnp.ndarray rstd not None, object weight, object bias,
    int activation,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """g = dy * activation'((x - mean) * rstd * weight + bias + residual)."""
    cdef Job *job = new_job("g", g, x, dy, b * c, cnp.PyArray_SIZE(mean), product(b, m, c))
    try:
        activation_grads_job(job, x, residual, mean, rstd, weight, bias, c, activation)
        launch(job, False, None, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def reduce_grads(
    cnp.ndarray sum_dy not None, cnp.ndarray sum_dy_xmu not None, cnp.ndarray dy not None,
    cnp.ndarray x not None, cnp.ndarray mean not None,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """sum(dy) and sum(dy * (x - mean)) of every channel."""
    cdef Job *job = new_job("", None, x, dy, b * c, b * c, product(b, m, c))
    try:
        reduce_grads_job(job, sum_dy, sum_dy_xmu, mean)
        launch(job, True, None, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def apply_grads(
    cnp.ndarray dx not None, cnp.ndarray dy not None, cnp.ndarray x not None,
    cnp.ndarray mean not None, cnp.ndarray rstd not None, object weight,
    cnp.ndarray sum_dy not None, cnp.ndarray sum_dy_xmu not None, double count,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """dx from the two sums over `count` elements per statistic."""
    cdef Job *job = new_job("dx", dx, x, dy, b * c, b * c, product(b, m, c))
    try:
        apply_grads_job(job, mean, rstd, weight, c, sum_dy, sum_dy_xmu, count)
        launch(job, False, None, b, m, c, threads)
    finally:
        PyMem_RawFree(job)


def backward(
    cnp.ndarray dx not None, cnp.ndarray dweight not None, cnp.ndarray dbias not None,
    cnp.ndarray dy not None, cnp.ndarray x not None, object mask, cnp.ndarray mean not None,
    cnp.ndarray rstd not None, object weight, bint training,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """dx, dweight and dbias; with training=False the statistics are constants."""
    cdef Job *job = new_job("dx", dx, x, dy, b * c, cnp.PyArray_SIZE(mean), product(b, m, c))
    try:
        backward_job(job, dweight, dbias, mean, rstd, weight, c, training)
        launch(job, True, mask, b, m, c, threads)
        give_parameter_grads(job)
    finally:
        PyMem_RawFree(job)


def activation_backward(
    cnp.ndarray dx not None, cnp.ndarray dweight not None, cnp.ndarray dbias not None,
    cnp.ndarray g, cnp.ndarray dy not None, cnp.ndarray x not None, object residual, object mask,
    cnp.ndarray mean not None, cnp.ndarray rstd not None, object weight, object bias,
    int activation, bint training,
    Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads,
):
    """As backward of g = dy * activation'(norm(x) + residual), which goes to g if there is one."""
    cdef Job *job = new_job("dx", dx, x, dy, b * c, cnp.PyArray_SIZE(mean), product(b, m, c))
    try:
        activation_backward_job(
            job, dweight, dbias, g, x, residual, mean, rstd, weight, bias, c, activation, training)
        launch(job, True, mask, b, m, c, threads)
        give_parameter_grads(job)
    finally:
        PyMem_RawFree(job.before)
        PyMem_RawFree(job)


include "nc_pointers.pxi"


# For calls_cy.pyx --------------------------------------------------------------------------------


cdef int call_apply(const Call *call) except -1:
    return run_called(called_apply(call, call.sizes[0] * call.sizes[2]), False, call)


cdef int call_forward(const Call *call) except -1:
    return run_called(called_forward(call, call.sizes[0] * call.sizes[2]), True, call)


cdef int call_backward(const Call *call) except -1:
    return run_called(called_backward(call, call.sizes[0] * call.sizes[2]), True, call)


cdef Passes _passes = Passes(call_apply, call_forward, call_backward)
passes = PyCapsule_New(&_passes, NORMCORE_PASSES, NULL)
