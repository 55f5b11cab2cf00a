# What the families nchw and nc share in Cython: the state of one call, and the step between the
# sums of a statistic and the coefficients of its channels. The families differ in how they walk
# through memory.
#
# A pass is one of three walks over the same parts:
#
#     moments, reduce_grads                    sums, settle
#     apply, apply_grads, activation_grads     settle, elementwise
#     forward, renorm, backward                sums, settle, elementwise, while data are in cache
#
# activation_backward is a backward whose dy is found, wherever it is read, from `before`.
#
# Sums of channel i: forward sum(x - shift), sum((x - shift)^2); backward sum(dy),
# sum(dy * (x - mean)), sum(x - mean). They lie as (width, cells), width 2 or 3. A statistic
# merges the sums of `merged` adjacent channels, which share their shift: 1, but in group norm.

from cpython.pycapsule cimport PyCapsule_New
from cpython.pystate cimport PyThreadState

include "array.pxi"

from normcore.kernels import schedule as _schedule

cdef Py_ssize_t STREAM_BYTES = _schedule.STREAM_BYTES
cdef Py_ssize_t TEAM_BYTES = _schedule.TEAM_BYTES
cdef Py_ssize_t NOGIL_SIZE = _schedule.NOGIL_SIZE

cdef extern from "Python.h":
    PyThreadState *PyEval_SaveThread() noexcept
    void PyEval_RestoreThread(PyThreadState *state) noexcept

cdef extern from "simd.h" nogil:
    enum: LANES
    enum: PLAIN_CHANNEL
    enum: WIDE_CHANNEL
    enum: EMPTY_CHANNEL
    ctypedef struct Channel:
        double hi, lo, scale, bias, slope, dy_shift, rest, kind
    int is_wide(double mean, double rstd, double scale)
    int is_wide_slope(double slope)
    double lane_sum(const double *lanes)
    double nearest_f16(double value)
    double nearest_bf16(double value)
    void stream_fence()

cdef extern from "tables.h" nogil:
    ctypedef struct Tables:
        char *packed
        Py_ssize_t pitch, first
        int narrow, gradient
    void pack_channels(
        const Tables *tables, const Channel *channels, Py_ssize_t first, Py_ssize_t size)
    void repeat_coefficients(
        const Tables *tables, Py_ssize_t size, Py_ssize_t period, Py_ssize_t end)

# All threads of the parallel region meet here.
cdef extern from *:
    """
    static void team_barrier(void) {
    #ifdef _OPENMP
        _Pragma("omp barrier")
    #endif
    }
    """
    void team_barrier() noexcept nogil

# The elementwise part of a pass.
cdef enum Elementwise:
    NOTHING            # sums only
    NORMALIZE          # y of x
    NORMALIZE_FUSED    # y of x, with a residual or an activation
    ACTIVATION_SLOPE   # g of dy and x
    GRADIENT           # dx of dy and x
    SCALE              # dx of dy: the statistics are constants


cdef struct Job:
    Elementwise kind
    char *out                  # y, g or dx
    const char *x
    const char *dy             # NULL in a forward
    const char *residual
    Channel *before            # (cells,): what the activation was applied to; NULL: no activation
    char *g                    # the gradient before the activation, or NULL
    const unsigned char *mask
    Storage storage
    Py_ssize_t itemsize        # of storage
    Py_ssize_t size            # elements of x
    Py_ssize_t cells           # channels that have sums and coefficients of their own
    Py_ssize_t merged          # adjacent channels of one statistic
    Py_ssize_t statistics
    Py_ssize_t parameters      # channel i has parameter i % parameters
    double count               # elements behind one statistic, unless there is a mask
    double *counts             # (statistics,), with a mask
    int stream                 # past the caches; as columns.h says
    bint gradient_sums         # sums of dy and x, not of x alone
    int activation
    int width                  # sums per channel
    double *sums               # (width, cells)
    double *shift              # (cells,)
    Channel *channels          # (cells,)
    Tables tables              # nc: where coefficients go instead, and whether some did not
    bint uneven
    Parameter weight
    Parameter bias
    Parameter mean             # statistics that are given
    Parameter var
    Parameter running_mean
    Parameter running_var
    const double *rstd
    double r_max
    double d_max
    double *to_mean            # what settle hands out
    double *to_var
    double *to_rstd
    double *to_r
    double *to_d
    WritableParameter dweight
    WritableParameter dbias
    double eps
    bint training
    void (*settle)(Job *, Py_ssize_t, Py_ssize_t) noexcept nogil    # of a range of statistics


cdef inline double count_of(Job *job, Py_ssize_t statistic) noexcept nogil:
    return job.count if job.counts == NULL else job.counts[statistic]


cdef inline const char *residual_at(Job *job, Py_ssize_t at) noexcept nogil:
    if job.residual == NULL:
        return NULL
    return job.residual + at


cdef void no_gradient(Job *job, Py_ssize_t at, Py_ssize_t len) noexcept nogil:
    # Of masked elements.
    memset(job.out + at * job.itemsize, 0, len * job.itemsize)
    if job.g != NULL:
        memset(job.g + at * job.itemsize, 0, len * job.itemsize)


cdef inline double merge(Job *job, int k, Py_ssize_t statistic) noexcept nogil:
    # Sum k of a statistic, over its channels.
    cdef const double *sums = job.sums + k * job.cells + statistic * job.merged
    return sums[0] if job.merged == 1 else merged_sum(sums, job.merged)


cdef void share_shift(Job *job, Py_ssize_t statistic, double shift) noexcept nogil:
    cdef Py_ssize_t i
    if job.storage == F16:
        shift = nearest_f16(shift)
    elif job.storage == BF16:
        shift = nearest_bf16(shift)
    for i in range(statistic * job.merged, (statistic + 1) * job.merged):
        job.shift[i] = shift


cdef bint shift_was_bad(Job *job, Py_ssize_t statistic) noexcept nogil:
    # (mean - shift)^2 > lost * var: the sum of squares minus the squared sum loses that factor. The
    # shift is then moved to the mean, and the channels want another sweep. 3 bits of a float64 may
    # be lost for float64 data, 10 for all other.
    cdef double total = merge(job, 0, statistic), count = count_of(job, statistic)
    cdef double excess = total * total / count
    cdef double lost = 8.0 if job.storage == F64 else 1024.0
    if excess > 0.0 and excess > lost * (merge(job, 1, statistic) - excess):
        share_shift(job, statistic, job.shift[statistic * job.merged] + total / count)
        return True
    return False


include "settle.pxi"
include "given.pxi"
include "jobs.pxi"
