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
# Sums of channel i: forward sum(x - shift), sum((x - shift)^2); backward sum(dy),
# sum(dy * (x - mean)), sum(x - mean). They lie as (width, cells), width 2 or 3. A statistic
# merges the sums of `merged` adjacent channels, which share their shift: 1, but in group norm.

from cpython.mem cimport PyMem_RawCalloc
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
    bint stream
    bint gradient_sums         # sums of dy and x, not of x alone
    int activation
    int width                  # sums per channel
    double *sums               # (width, cells)
    double *shift              # (cells,)
    Channel *channels          # (cells,)
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
    void (*settle)(Job *, Py_ssize_t) noexcept nogil


cdef inline double count_of(Job *job, Py_ssize_t statistic) noexcept nogil:
    return job.count if job.counts == NULL else job.counts[statistic]


cdef inline const char *residual_at(Job *job, Py_ssize_t at) noexcept nogil:
    if job.residual == NULL:
        return NULL
    return job.residual + at


cdef inline double merge(Job *job, int k, Py_ssize_t statistic) noexcept nogil:
    # Sum k of a statistic, over its channels in order; compensated (Neumaier), because a group may
    # have thousands: without, var of 4099 was off by 4.2e-15.
    cdef const double *sums = job.sums + k * job.cells + statistic * job.merged
    cdef double total = sums[0], lost = 0.0, new
    cdef Py_ssize_t i
    for i in range(1, job.merged):
        new = total + sums[i]
        if fabs(total) >= fabs(sums[i]):
            lost += (total - new) + sums[i]
        else:
            lost += (sums[i] - new) + total
        total = new
    return total + lost if isfinite(lost) else total


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


# Sums -> statistics and coefficients --------------------------------------------------------------


cdef inline Py_ssize_t parameter_of(Job *job, Py_ssize_t i) noexcept nogil:
    # A division per channel would be a tenth of a small call.
    return i if i < job.parameters else i % job.parameters


cdef inline double m2_of(Job *job, Py_ssize_t statistic, double total) noexcept nogil:
    cdef double rest = merge(job, 1, statistic) - total * total / count_of(job, statistic)
    return 0.0 if rest < 0.0 else rest


cdef void split_mean(Job *job, Py_ssize_t i, double hi, double lo, double rstd) noexcept nogil:
    # Computed in float32, hi must be a float32 and lo the rest of the mean.
    cdef Channel *channel = job.channels + i
    channel.scale = rstd * value(&job.weight, parameter_of(job, i), 1.0)
    channel.hi = hi
    channel.lo = lo
    channel.kind = PLAIN_CHANNEL
    if rstd == 0.0:
        channel.kind = EMPTY_CHANNEL
    elif job.storage != F64:
        if is_wide(hi, rstd, channel.scale):
            channel.kind = WIDE_CHANNEL
        else:
            channel.hi = <float>(hi + lo)
            channel.lo = (hi - channel.hi) + lo


cdef void settle_moments(Job *job, Py_ssize_t i) noexcept nogil:
    cdef double total = job.sums[i]
    job.to_mean[i] = job.shift[i] + total / job.count
    job.to_var[i] = m2_of(job, i, total)


cdef double settle_statistics(Job *job, Py_ssize_t statistic) noexcept nogil:
    # Hands out mean, var and rstd; returns what the mean has beyond the shift.
    cdef double count = count_of(job, statistic), total, lo
    if count == 0.0:
        job.to_mean[statistic] = 0.0
        job.to_var[statistic] = 0.0
        job.to_rstd[statistic] = 0.0
        return 0.0
    total = merge(job, 0, statistic)
    lo = total / count
    job.to_mean[statistic] = job.shift[statistic * job.merged] + lo
    job.to_var[statistic] = m2_of(job, statistic, total) / count
    job.to_rstd[statistic] = 1.0 / sqrt(job.to_var[statistic] + job.eps)
    return lo


cdef void settle_forward(Job *job, Py_ssize_t statistic) noexcept nogil:
    cdef double lo = settle_statistics(job, statistic)
    cdef Py_ssize_t i
    for i in range(statistic * job.merged, (statistic + 1) * job.merged):
        split_mean(job, i, job.shift[i], lo, job.to_rstd[statistic])
        job.channels[i].bias = value(&job.bias, parameter_of(job, i), 0.0)


cdef inline double clip(double value, double low, double high) noexcept nogil:
    # NaN stays.
    return low if value < low else high if value > high else value


cdef void settle_renorm(Job *job, Py_ssize_t statistic) noexcept nogil:
    # (x_hat * r + d) * weight + bias is y of batch norm with other scale and bias.
    cdef double sigma = sqrt(value(&job.running_var, statistic, 1.0) + job.eps)
    cdef double away, r = 1.0, d = 0.0
    cdef Py_ssize_t i
    settle_forward(job, statistic)
    if count_of(job, statistic) > 0.0:
        away = job.to_mean[statistic] - value(&job.running_mean, statistic, 0.0)
        r = clip(
            sqrt(job.to_var[statistic] + job.eps) / sigma, 1.0 / job.r_max, job.r_max)
        d = clip(away / sigma, -job.d_max, job.d_max)
    job.to_r[statistic] = r
    job.to_d[statistic] = d
    for i in range(statistic * job.merged, (statistic + 1) * job.merged):
        job.channels[i].scale *= r
        if d != 0.0:
            job.channels[i].bias += d * value(&job.weight, parameter_of(job, i), 1.0)


cdef void settle_apply(Job *job, Py_ssize_t statistic) noexcept nogil:
    cdef double mean = value(&job.mean, statistic, 0.0), rstd
    cdef Py_ssize_t i
    if job.rstd == NULL:
        rstd = 1.0 / sqrt(value(&job.var, statistic, 1.0) + job.eps)
    else:
        rstd = job.rstd[statistic]
    for i in range(statistic * job.merged, (statistic + 1) * job.merged):
        split_mean(job, i, mean, 0.0, rstd)
        job.channels[i].bias = value(&job.bias, parameter_of(job, i), 0.0)


cdef inline double off_mean(Job *job, Py_ssize_t statistic) noexcept nogil:
    # What deviations are too large by: the shift may be the given mean rounded.
    return value(&job.mean, statistic, 0.0) - job.shift[statistic * job.merged]


cdef void settle_sums(Job *job, Py_ssize_t i) noexcept nogil:
    job.to_mean[i] = job.sums[i]
    job.to_var[i] = job.sums[job.cells + i] - off_mean(job, i) * job.sums[i]


cdef void settle_grads(Job *job, Py_ssize_t statistic) noexcept nogil:
    cdef Py_ssize_t i, first = statistic * job.merged, n = job.cells
    cdef double count = count_of(job, statistic), rstd = job.rstd[statistic]
    cdef double rest = merge(job, 2, statistic) / count if count > 0.0 else 0.0
    cdef double weight, own, sum_dy = 0.0, sum_dy_xmu = 0.0, slope = 0.0, mean_dy = 0.0
    cdef Channel *channel
    for i in range(first, first + job.merged):
        weight = value(&job.weight, parameter_of(job, i), 1.0)
        sum_dy += weight * job.sums[i]
        sum_dy_xmu += weight * job.sums[n + i]
    if count > 0.0:
        slope = rstd * rstd * rstd * (sum_dy_xmu / count)
        mean_dy = rstd * (sum_dy / count)
    for i in range(first, first + job.merged):
        channel = job.channels + i
        split_mean(job, i, job.shift[i], rest, rstd)
        channel.slope = slope
        if job.storage != F64 and channel.kind == PLAIN_CHANNEL and is_wide_slope(slope):
            channel.kind = WIDE_CHANNEL
            channel.hi = job.shift[i]
            channel.lo = rest
        # Near the channel's own mean of dy, so that dy - dy_shift loses nothing.
        own = job.sums[i] / (count / job.merged) if count > 0.0 else 0.0
        channel.dy_shift = own
        if job.storage != F64 and channel.kind == PLAIN_CHANNEL:
            channel.dy_shift = <float>own
        if job.merged == 1:
            channel.rest = (own - channel.dy_shift) * channel.scale
        else:
            channel.rest = mean_dy - channel.scale * channel.dy_shift


cdef void settle_backward(Job *job, Py_ssize_t statistic) noexcept nogil:
    cdef Py_ssize_t i, first = statistic * job.merged, n = job.cells
    cdef double count = count_of(job, statistic)
    cdef double rest = merge(job, 2, statistic) / count if count > 0.0 else 0.0
    if job.training:
        # The deviations were taken from a mean rounded to float64. What it left over is their
        # own mean: it moves into the low part, and out of the products.
        for i in range(first, first + job.merged):
            job.sums[n + i] -= rest * job.sums[i]
        settle_grads(job, statistic)
    else:
        # The statistics are constants: dx = dy * rstd * weight, whatever x is.
        for i in range(first, first + job.merged):
            job.sums[n + i] -= off_mean(job, statistic) * job.sums[i]
            split_mean(job, i, 0.0, 0.0, job.rstd[statistic])


cdef void give_parameter_grads(Job *job) noexcept nogil:
    # Over the channels that share a parameter, in order.
    cdef Py_ssize_t i, k
    cdef double weight, bias
    for k in range(job.parameters):
        weight = 0.0
        bias = 0.0
        i = k
        while i < job.cells:
            weight += job.sums[job.cells + i] * job.rstd[i // job.merged]
            bias += job.sums[i]
            i += job.parameters
        assign(&job.dweight, k, weight)
        assign(&job.dbias, k, bias)


include "given.pxi"
include "jobs.pxi"
