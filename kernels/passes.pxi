# What the families nchw and nc share in Cython: the state of one call, and the step between the
# sums of a channel and its coefficients. The families differ in how they walk through memory.
#
# A pass is one of three walks over the same parts:
#
#     moments, reduce_grads    sums, settle
#     apply, apply_grads       settle, elementwise
#     forward, backward        sums, settle, elementwise, while the data are in cache
#
# Sums of channel i: forward sum(x - shift), sum((x - shift)^2); backward sum(dy),
# sum(dy * (x - mean)), sum(x - mean). They lie as (width, channels), width 2 or 3.

from cpython.mem cimport PyMem_RawCalloc
from cpython.pystate cimport PyThreadState
from libc.string cimport memcpy

include "array.pxi"

from normcore.kernels import schedule as _schedule

cdef Py_ssize_t STREAM_BYTES = _schedule.STREAM_BYTES
cdef Py_ssize_t NOGIL_SIZE = _schedule.NOGIL_SIZE

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    PyThreadState *PyEval_SaveThread() noexcept
    void PyEval_RestoreThread(PyThreadState *state) noexcept

cdef extern from "simd.h" nogil:
    enum: LANES
    ctypedef struct Channel:
        double hi, lo, scale, bias, slope, mean_dy_hi, mean_dy_lo, wide
    int is_wide(double mean, double rstd, double scale)
    double lane_sum(const double *lanes)
    void stream_fence()


cdef struct Job:
    char *out                  # y or dx; NULL: sums only
    const char *x
    char *dy                   # only read; NULL in a forward
    Py_ssize_t itemsize
    Py_ssize_t size            # elements of x
    Py_ssize_t statistics      # channels that have statistics of their own
    Py_ssize_t parameters      # channels that have a weight
    double count               # elements behind one statistic
    bint stream
    int width                  # sums per channel
    double *sums               # (width, statistics)
    double *shift              # (statistics,)
    Channel *channels          # (statistics,)
    Parameter weight
    Parameter bias
    Parameter mean             # statistics that are given
    Parameter var
    const double *rstd
    double *to_mean            # what settle hands out
    double *to_var
    double *to_rstd
    WritableParameter dweight
    WritableParameter dbias
    double eps
    bint training
    void (*settle)(Job *, Py_ssize_t) noexcept nogil


cdef bint shift_was_bad(Job *job, Py_ssize_t i) noexcept nogil:
    # (mean - shift)^2 > lost * var: the sum of squares minus the squared sum loses that factor. The
    # shift is then moved to the mean, and the channel wants another sweep. 3 bits of a float64 may
    # be lost for float64 data, 10 for float32 data.
    cdef double total = job.sums[i]
    cdef double excess = total * total / job.count
    cdef double lost = 1024.0 if job.itemsize == 4 else 8.0
    if excess > 0.0 and excess > lost * (job.sums[job.statistics + i] - excess):
        job.shift[i] += total / job.count
        return True
    return False


# Sums -> statistics and coefficients of channel i ----------------------------------------------


cdef inline Py_ssize_t parameter_of(Job *job, Py_ssize_t i) noexcept nogil:
    # A division per channel would be a tenth of a small call.
    return i if i < job.parameters else i % job.parameters


cdef inline double m2_of(Job *job, Py_ssize_t i) noexcept nogil:
    cdef double rest = job.sums[job.statistics + i] - job.sums[i] * job.sums[i] / job.count
    return 0.0 if rest < 0.0 else rest


cdef void split_mean(Job *job, Py_ssize_t i, double hi, double lo, double rstd) noexcept nogil:
    # In float32, hi must be a float32 and lo the rest of the mean.
    cdef Channel *channel = job.channels + i
    channel.scale = rstd * value(&job.weight, parameter_of(job, i), 1.0)
    channel.wide = is_wide(hi, rstd, channel.scale)
    channel.hi = hi
    channel.lo = lo
    if job.itemsize == 4 and not channel.wide:
        channel.hi = <float>(hi + lo)
        channel.lo = (hi - channel.hi) + lo


cdef void settle_moments(Job *job, Py_ssize_t i) noexcept nogil:
    job.to_mean[i] = job.shift[i] + job.sums[i] / job.count
    job.to_var[i] = m2_of(job, i)


cdef void settle_forward(Job *job, Py_ssize_t i) noexcept nogil:
    cdef double lo = job.sums[i] / job.count
    job.to_mean[i] = job.shift[i] + lo
    job.to_var[i] = m2_of(job, i) / job.count
    job.to_rstd[i] = 1.0 / sqrt(job.to_var[i] + job.eps)
    split_mean(job, i, job.shift[i], lo, job.to_rstd[i])
    job.channels[i].bias = value(&job.bias, parameter_of(job, i), 0.0)


cdef void settle_apply(Job *job, Py_ssize_t i) noexcept nogil:
    cdef double rstd = 1.0 / sqrt(value(&job.var, i, 1.0) + job.eps)
    split_mean(job, i, value(&job.mean, i, 0.0), 0.0, rstd)
    job.channels[i].bias = value(&job.bias, parameter_of(job, i), 0.0)


cdef void settle_sums(Job *job, Py_ssize_t i) noexcept nogil:
    job.to_mean[i] = job.sums[i]
    job.to_var[i] = job.sums[job.statistics + i]


cdef void settle_grads(Job *job, Py_ssize_t i) noexcept nogil:
    cdef Channel *channel = job.channels + i
    cdef double mean_dy = job.sums[i] / job.count
    cdef double rest = job.sums[2 * job.statistics + i] / job.count
    split_mean(job, i, job.shift[i], rest, job.rstd[i])
    channel.slope = job.rstd[i] * job.rstd[i] * (job.sums[job.statistics + i] / job.count)
    channel.mean_dy_hi = mean_dy
    channel.mean_dy_lo = 0.0
    if job.itemsize == 4 and not channel.wide:
        channel.mean_dy_hi = <float>mean_dy
        channel.mean_dy_lo = mean_dy - channel.mean_dy_hi


cdef void settle_backward(Job *job, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t channels = job.statistics
    if job.training:
        # The deviations were taken from a mean rounded to float64. What it left over is their
        # own mean: it moves into the low part, and out of the product.
        job.sums[channels + i] -= job.sums[2 * channels + i] / job.count * job.sums[i]
        settle_grads(job, i)
    else:
        # The statistics are constants: dx = dy * rstd * weight, whatever x is.
        split_mean(job, i, 0.0, 0.0, job.rstd[i])


cdef void give_parameter_grads(Job *job) noexcept nogil:
    # Over the statistics that share a parameter (family nc, b > 1), in order.
    cdef Py_ssize_t i, k
    cdef double weight, bias
    for k in range(job.parameters):
        weight = 0.0
        bias = 0.0
        i = k
        while i < job.statistics:
            weight += job.sums[job.statistics + i] * job.rstd[i]
            bias += job.sums[i]
            i += job.parameters
        assign(&job.dweight, k, weight)
        assign(&job.dbias, k, bias)


# From the arguments of a kernel to its job: every check, before anything is written -------------


cdef Py_ssize_t product(Py_ssize_t first, Py_ssize_t second, Py_ssize_t third) except -1:
    # Wrong sizes must not wrap around to the right number of elements.
    if first < 0 or second < 0 or third < 0:
        refuse("sizes", "no negative one", (first, second, third))
    if second > 0 and first > PY_SSIZE_T_MAX // second or (
        third > 0 and first * second > PY_SSIZE_T_MAX // third
    ):
        refuse("sizes", "fewer elements than memory holds", (first, second, third))
    return first * second * third


cdef Job *new_job(
    cnp.ndarray out, cnp.ndarray x, cnp.ndarray dy, Py_ssize_t statistics, Py_ssize_t parameters,
    Py_ssize_t size,
) except NULL:
    # One block of memory holds the job and its tables; what is not set is zero.
    cdef int typenum = real_type(x, "x")
    cdef int width = 2 if dy is None else 3
    cdef Job *job
    check(x, "x", size)
    if dy is not None:
        check_real(dy, "dy", size, typenum)
    if out is not None:
        check_out(out, "y" if dy is None else "dx", size, typenum)
    cdef Py_ssize_t tables = statistics * (width + 1 + sizeof(Channel) // sizeof(double))
    job = <Job *>PyMem_RawCalloc(1, sizeof(Job) + tables * sizeof(double))
    if job == NULL:
        raise MemoryError
    job.channels = <Channel *>(job + 1)
    job.sums = <double *>(job.channels + statistics)
    job.shift = job.sums + statistics * width
    job.out = NULL if out is None else <char *>cnp.PyArray_DATA(out)
    job.x = <const char *>cnp.PyArray_DATA(x)
    job.dy = NULL if dy is None else <char *>cnp.PyArray_DATA(dy)
    job.itemsize = cnp.PyArray_ITEMSIZE(x)
    job.size = size
    job.statistics = statistics
    job.parameters = parameters
    job.count = <double>size / max(1, statistics)
    job.width = width
    job.stream = size * job.itemsize >= STREAM_BYTES
    return job


cdef double *statistic(cnp.ndarray a, str name, Job *job) except? NULL:
    check_real(a, name, job.statistics, cnp.NPY_FLOAT64)
    return <double *>cnp.PyArray_DATA(a)


cdef double *statistic_out(cnp.ndarray a, str name, Job *job) except? NULL:
    check_out(a, name, job.statistics, cnp.NPY_FLOAT64)
    return <double *>cnp.PyArray_DATA(a)


cdef int moments_job(Job *job, cnp.ndarray mean, cnp.ndarray m2) except -1:
    job.to_mean = statistic_out(mean, "mean", job)
    job.to_var = statistic_out(m2, "m2", job)
    job.settle = settle_moments
    return 0


cdef int apply_job(
    Job *job, cnp.ndarray mean, cnp.ndarray var, object weight, object bias, double eps
) except -1:
    job.mean = parameter(mean, "mean", job.statistics)
    job.var = parameter(var, "var", job.statistics)
    job.weight = parameter(weight, "weight", job.parameters)
    job.bias = parameter(bias, "bias", job.parameters)
    job.eps = eps
    job.settle = settle_apply
    return 0


cdef int forward_job(
    Job *job, cnp.ndarray mean, cnp.ndarray var, cnp.ndarray rstd, object weight, object bias,
    double eps,
) except -1:
    job.to_mean = statistic_out(mean, "mean", job)
    job.to_var = statistic_out(var, "var", job)
    job.to_rstd = statistic_out(rstd, "rstd", job)
    job.weight = parameter(weight, "weight", job.parameters)
    job.bias = parameter(bias, "bias", job.parameters)
    job.eps = eps
    job.settle = settle_forward
    return 0


cdef int given_mean(Job *job, cnp.ndarray mean) except -1:
    memcpy(job.shift, statistic(mean, "mean", job), job.statistics * sizeof(double))
    return 0


cdef int reduce_grads_job(
    Job *job, cnp.ndarray sum_dy, cnp.ndarray sum_dy_xmu, cnp.ndarray mean
) except -1:
    job.to_mean = statistic_out(sum_dy, "sum_dy", job)
    job.to_var = statistic_out(sum_dy_xmu, "sum_dy_xmu", job)
    given_mean(job, mean)
    job.settle = settle_sums
    return 0


cdef int apply_grads_job(
    Job *job, cnp.ndarray mean, cnp.ndarray rstd, object weight, cnp.ndarray sum_dy,
    cnp.ndarray sum_dy_xmu, double count,
) except -1:
    cdef Py_ssize_t size = job.statistics * sizeof(double)
    given_mean(job, mean)
    job.rstd = statistic(rstd, "rstd", job)
    job.weight = parameter(weight, "weight", job.parameters)
    memcpy(job.sums, statistic(sum_dy, "sum_dy", job), size)
    memcpy(job.sums + job.statistics, statistic(sum_dy_xmu, "sum_dy_xmu", job), size)
    job.count = count
    job.training = True
    job.settle = settle_grads
    return 0


cdef int backward_job(
    Job *job, cnp.ndarray dweight, cnp.ndarray dbias, cnp.ndarray mean, cnp.ndarray rstd,
    object weight, bint training,
) except -1:
    job.dweight = writable(dweight, "dweight", job.parameters)
    job.dbias = writable(dbias, "dbias", job.parameters)
    given_mean(job, mean)
    job.rstd = statistic(rstd, "rstd", job)
    job.weight = parameter(weight, "weight", job.parameters)
    job.training = training
    job.settle = settle_backward
    return 0


# The GIL is let go only where the work is worth it ---------------------------------------------


cdef inline PyThreadState *release(Job *job) noexcept:
    return PyEval_SaveThread() if job.size >= NOGIL_SIZE else NULL


cdef inline void acquire(PyThreadState *state) noexcept:
    if state != NULL:
        PyEval_RestoreThread(state)
