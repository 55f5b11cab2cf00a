# From the sums of a statistic to what is handed out of it and to the coefficients of its channels:
# the step between the walks of a pass of nchw or nc. Part of passes.pxi.

cdef extern from "settle.h" nogil:
    enum: SETTLED
    void plain_statistics(
        Py_ssize_t size, const double *sum, const double *square, const double *shift,
        double count, double eps, double *lo, double *mean, double *var, double *rstd)
    int plain_channels(
        Py_ssize_t size, Py_ssize_t first, const double *mean, const double *lo,
        const double *rstd, const Parameter *weight, const Parameter *bias, Channel *channels)
    void parameters_of(
        Py_ssize_t size, const Parameter *given, Py_ssize_t first, double otherwise, double *found)
    void rstd_of(
        Py_ssize_t size, const Parameter *var, Py_ssize_t first, double eps, double *rstd)


cdef inline Py_ssize_t parameter_of(Job *job, Py_ssize_t i) noexcept nogil:
    # A division per channel would be a tenth of a small call.
    return i if i < job.parameters else i % job.parameters


cdef inline double m2_of(Job *job, Py_ssize_t statistic, double total) noexcept nogil:
    cdef double rest = merge(job, 1, statistic) - total * total / count_of(job, statistic)
    return 0.0 if rest < 0.0 else rest


cdef inline void split_mean(Job *job, Py_ssize_t i, double hi, double lo, double rstd) noexcept nogil:
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


cdef void settle_moments(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(first, last):
        job.to_mean[i] = job.shift[i] + job.sums[i] / job.count
        job.to_var[i] = m2_of(job, i, job.sums[i])


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


cdef void give_channels(
    Job *job, Py_ssize_t first, Py_ssize_t size, const double *mean, const double *lo,
    const double *rstd,
) noexcept nogil:
    # Coefficients of the channels of up to SETTLED statistics.
    cdef Py_ssize_t i, k
    if job.merged == 1 and job.storage != F64 and job.parameters == job.cells and plain_channels(
        size, first, mean, lo, rstd, &job.weight, &job.bias, job.channels
    ):
        return
    for k in range(size):
        for i in range((first + k) * job.merged, (first + k + 1) * job.merged):
            split_mean(job, i, mean[k], lo[k], rstd[k])
            job.channels[i].bias = value(&job.bias, parameter_of(job, i), 0.0)


cdef void settle_forward(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef double lo[SETTLED]
    cdef double shift[SETTLED]
    cdef Py_ssize_t k, size
    while first < last:
        size = min(<Py_ssize_t>SETTLED, last - first)
        if job.merged == 1 and job.counts == NULL:
            plain_statistics(
                size, job.sums + first, job.sums + job.cells + first, job.shift + first, job.count,
                job.eps, lo, job.to_mean + first, job.to_var + first, job.to_rstd + first)
        else:
            for k in range(size):
                lo[k] = settle_statistics(job, first + k)
        for k in range(size):
            shift[k] = job.shift[(first + k) * job.merged]
        give_channels(job, first, size, shift, lo, job.to_rstd + first)
        first += size


cdef inline double clip(double value, double low, double high) noexcept nogil:
    # NaN stays.
    return low if value < low else high if value > high else value


cdef void settle_renorm(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t statistic
    settle_forward(job, first, last)
    for statistic in range(first, last):
        renormalize(job, statistic)


cdef void renormalize(Job *job, Py_ssize_t statistic) noexcept nogil:
    # (x_hat * r + d) * weight + bias is y of batch norm with other scale and bias.
    cdef double sigma = sqrt(value(&job.running_var, statistic, 1.0) + job.eps)
    cdef double away, r = 1.0, d = 0.0
    cdef Py_ssize_t i
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


cdef void settle_apply(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef double mean[SETTLED]
    cdef double lo[SETTLED]
    cdef double rstd[SETTLED]
    cdef Py_ssize_t k, size
    while first < last:
        size = min(<Py_ssize_t>SETTLED, last - first)
        parameters_of(size, &job.mean, first, 0.0, mean)
        if job.rstd == NULL:
            rstd_of(size, &job.var, first, job.eps, rstd)
        else:
            memcpy(rstd, job.rstd + first, size * sizeof(double))
        for k in range(size):
            lo[k] = 0.0
        give_channels(job, first, size, mean, lo, rstd)
        first += size


cdef void settle_before(Job *job) noexcept nogil:
    # The coefficients of what the activation was applied to, of all statistics.
    cdef Channel *channels = job.channels
    job.channels = job.before
    settle_apply(job, 0, job.statistics)
    job.channels = channels


cdef inline double off_mean(Job *job, Py_ssize_t statistic) noexcept nogil:
    # What deviations are too large by: the shift may be the given mean rounded.
    return value(&job.mean, statistic, 0.0) - job.shift[statistic * job.merged]


cdef void settle_sums(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(first, last):
        job.to_mean[i] = job.sums[i]
        job.to_var[i] = job.sums[job.cells + i] - off_mean(job, i) * job.sums[i]


cdef void settle_grads(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t statistic
    for statistic in range(first, last):
        settle_gradient(job, statistic)


cdef void settle_gradient(Job *job, Py_ssize_t statistic) noexcept nogil:
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


cdef void settle_backward(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t statistic
    for statistic in range(first, last):
        settle_last(job, statistic)


cdef void settle_last(Job *job, Py_ssize_t statistic) noexcept nogil:
    cdef Py_ssize_t i, first = statistic * job.merged, n = job.cells
    cdef double count = count_of(job, statistic)
    cdef double rest = merge(job, 2, statistic) / count if count > 0.0 else 0.0
    if job.training:
        # The deviations were taken from a mean rounded to float64. What it left over is their
        # own mean: it moves into the low part, and out of the products.
        for i in range(first, first + job.merged):
            job.sums[n + i] -= rest * job.sums[i]
        settle_gradient(job, statistic)
    else:
        # The statistics are constants: dx = dy * rstd * weight, whatever x is.
        for i in range(first, first + job.merged):
            job.sums[n + i] -= off_mean(job, statistic) * job.sums[i]
            split_mean(job, i, 0.0, 0.0, job.rstd[statistic])
            job.channels[i].bias = 0.0


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
