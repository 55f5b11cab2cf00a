# From the sums of a statistic to what is handed out of it and to the coefficients of its channels:
# the step between the walks of a pass of nchw or nc. Part of passes.pxi.

cdef extern from "settle.h" nogil:
    enum: SETTLED
    void plain_statistics(
        Py_ssize_t size, const double *sum, const double *square, const double *shift,
        double count, double eps, double *lo, double *mean, double *var, double *rstd)
    void add_all(double *to, const double *from_, Py_ssize_t size)
    double merged_sum(const double *sums, Py_ssize_t size)
    int plain_channels(
        Py_ssize_t size, Py_ssize_t first, Py_ssize_t parameter, int narrow, const double *mean,
        const double *lo, const double *rstd, const Parameter *weight, const Parameter *bias,
        Channel *channels, const Tables *tables)
    double weighted_sum(
        const double *sums, Py_ssize_t size, const Parameter *weight, Py_ssize_t parameter)
    void plain_slopes(
        Py_ssize_t size, const double *product, const double *deviation, const double *rstd,
        double count, const Parameter *weight, Py_ssize_t parameter, double *rest, double *slope)
    int plain_gradients(
        Py_ssize_t size, Py_ssize_t first, Py_ssize_t parameter, int narrow, const double *mean,
        const double *lo, const double *rstd, const double *slope, const double *mean_dy,
        const double *sum_dy, double count, const Parameter *weight, Channel *channels,
        const Tables *tables)
    void add_parameter_grads(
        Py_ssize_t size, const double *sum, const double *product, const double *rstd,
        Py_ssize_t step, double *dweight, double *dbias)
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


cdef inline Py_ssize_t run_of(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    # Up to SETTLED channels from `first` on, whose parameters are adjacent.
    return min(min(<Py_ssize_t>SETTLED, last - first), job.parameters - parameter_of(job, first))


cdef inline void are_plain(Job *job, Py_ssize_t first, Py_ssize_t size) noexcept nogil:
    # What went to the tables at once, among channels of which some are not plain.
    cdef Py_ssize_t i
    if job.uneven:
        for i in range(first, first + size):
            job.channels[i].kind = PLAIN_CHANNEL


cdef inline void not_plain(Job *job, Py_ssize_t first) noexcept nogil:
    # From channel `first` on: all before went to the tables at once.
    if job.tables.packed != NULL and not job.uneven:
        job.uneven = True
        are_plain(job, job.tables.first, first - job.tables.first)


cdef void give_run(
    Job *job, Py_ssize_t first, Py_ssize_t size, const double *mean, const double *lo,
    const double *rstd,
) noexcept nogil:
    cdef Py_ssize_t i
    if plain_channels(
        size, first, parameter_of(job, first), job.storage != F64, mean, lo, rstd, &job.weight,
        &job.bias, job.channels, &job.tables
    ):
        are_plain(job, first, size)
        return
    not_plain(job, first)
    for i in range(size):
        split_mean(job, first + i, mean[i], lo[i], rstd[i])
        job.channels[first + i].bias = value(&job.bias, parameter_of(job, first + i), 0.0)
    if job.tables.packed != NULL:
        pack_channels(&job.tables, job.channels, first, size)


cdef inline void fill(double *values, Py_ssize_t size, double value) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(size):
        values[i] = value


cdef void give_channels(
    Job *job, Py_ssize_t first, Py_ssize_t size, const double *mean, const double *lo,
    const double *rstd,
) noexcept nogil:
    # Coefficients of the channels of up to SETTLED statistics.
    cdef double means[SETTLED]
    cdef double los[SETTLED]
    cdef double rstds[SETTLED]
    cdef Py_ssize_t k, at, run
    for k in range(size):
        if job.merged > 1:
            run = min(<Py_ssize_t>SETTLED, job.merged)
            fill(means, run, mean[k])
            fill(los, run, lo[k])
            fill(rstds, run, rstd[k])
            at = (first + k) * job.merged
            while at < (first + k + 1) * job.merged:
                run = run_of(job, at, (first + k + 1) * job.merged)
                give_run(job, at, run, means, los, rstds)
                at += run
    at = first
    while job.merged == 1 and at < first + size:
        run = run_of(job, at, first + size)
        give_run(job, at, run, mean + (at - first), lo + (at - first), rstd + (at - first))
        at += run


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


cdef void give_gradient(
    Job *job, Py_ssize_t i, double rest, double rstd, double slope, double mean_dy, double count
) noexcept nogil:
    # `count` elements belong to the channel.
    cdef Channel *channel = job.channels + i
    # Near the channel's own mean of dy, so that dy - dy_shift loses nothing.
    cdef double own = job.sums[i] / count if count > 0.0 else 0.0
    split_mean(job, i, job.shift[i], rest, rstd)
    channel.slope = slope
    if job.storage != F64 and channel.kind == PLAIN_CHANNEL and is_wide_slope(slope):
        channel.kind = WIDE_CHANNEL
        channel.hi = job.shift[i]
        channel.lo = rest
    channel.dy_shift = own
    if job.storage != F64 and channel.kind == PLAIN_CHANNEL:
        channel.dy_shift = <float>own
    if job.merged == 1:
        channel.rest = (own - channel.dy_shift) * channel.scale
    else:
        channel.rest = mean_dy - channel.scale * channel.dy_shift


cdef void give_gradients(
    Job *job, Py_ssize_t first, Py_ssize_t size, const double *rest, const double *rstd,
    const double *slope, const double *mean_dy, double count,
) noexcept nogil:
    # As give_run, of a backward.
    cdef Py_ssize_t i
    if count > 0.0 and plain_gradients(
        size, first, parameter_of(job, first), job.storage != F64, job.shift + first, rest, rstd,
        slope, mean_dy, job.sums + first, count, &job.weight, job.channels, &job.tables
    ):
        are_plain(job, first, size)
        return
    not_plain(job, first)
    for i in range(size):
        give_gradient(
            job, first + i, rest[i], rstd[i], slope[i], 0.0 if mean_dy == NULL else mean_dy[i],
            count)
    if job.tables.packed != NULL:
        pack_channels(&job.tables, job.channels, first, size)


cdef void settle_grads(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef double rest[SETTLED]
    cdef double slope[SETTLED]
    cdef Py_ssize_t run
    while first < last:
        if job.merged > 1 or job.counts != NULL:
            settle_group_grads(job, first)
            first += 1
            continue
        run = run_of(job, first, last)
        plain_slopes(
            run, job.sums + job.cells + first, job.sums + 2 * job.cells + first, job.rstd + first,
            job.count, &job.weight, parameter_of(job, first), rest, slope)
        give_gradients(job, first, run, rest, job.rstd + first, slope, NULL, job.count)
        first += run


cdef void settle_group_grads(Job *job, Py_ssize_t statistic) noexcept nogil:
    cdef double rest[SETTLED]
    cdef double rstd[SETTLED]
    cdef double slope[SETTLED]
    cdef double mean_dy[SETTLED]
    cdef double count = count_of(job, statistic), over = rest_of(job, statistic), sum_dy = 0.0
    cdef double sum_dy_xmu = 0.0, inverse = job.rstd[statistic]
    cdef Py_ssize_t first = statistic * job.merged, last = first + job.merged, at, run, parameter
    at = first
    while at < last:
        parameter = parameter_of(job, at)
        run = min(last - at, job.parameters - parameter)
        sum_dy += weighted_sum(job.sums + at, run, &job.weight, parameter)
        sum_dy_xmu += weighted_sum(job.sums + job.cells + at, run, &job.weight, parameter)
        at += run
    run = min(<Py_ssize_t>SETTLED, job.merged)
    fill(rest, run, over)
    fill(rstd, run, inverse)
    fill(slope, run, inverse * inverse * inverse * (sum_dy_xmu / count) if count > 0.0 else 0.0)
    fill(mean_dy, run, inverse * (sum_dy / count) if count > 0.0 else 0.0)
    at = first
    while at < last:
        run = run_of(job, at, last)
        give_gradients(
            job, at, run, rest, rstd, slope, NULL if job.merged == 1 else mean_dy,
            count / job.merged)
        at += run


cdef inline double rest_of(Job *job, Py_ssize_t statistic) noexcept nogil:
    # The mean of x - mean.
    cdef double count = count_of(job, statistic)
    return merge(job, 2, statistic) / count if count > 0.0 else 0.0


cdef void settle_backward(Job *job, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    cdef Py_ssize_t statistic, i
    cdef double off
    for statistic in range(first, last):
        # The deviations were taken from a mean rounded to float64. What it left over is their
        # own mean: it moves into the low part, and out of the products.
        off = rest_of(job, statistic) if job.training else off_mean(job, statistic)
        for i in range(statistic * job.merged, (statistic + 1) * job.merged):
            job.sums[job.cells + i] -= off * job.sums[i]
    if job.training:
        settle_grads(job, first, last)
        return
    # The statistics are constants: dx = dy * rstd * weight, whatever x is.
    for i in range(first * job.merged, last * job.merged):
        split_mean(job, i, 0.0, 0.0, job.rstd[i // job.merged])
        job.channels[i].bias = 0.0


cdef void give_parameter_grads(Job *job) noexcept nogil:
    # Over the channels that share a parameter, in order.
    cdef double dweight[SETTLED]
    cdef double dbias[SETTLED]
    cdef Py_ssize_t first = 0, size, at, last, run, statistic
    while first < job.parameters:
        size = min(<Py_ssize_t>SETTLED, job.parameters - first)
        fill(dweight, size, 0.0)
        fill(dbias, size, 0.0)
        at = first
        while at < job.cells:
            last = at + size
            while at < last:
                statistic = at // job.merged
                run = last - at
                if job.merged > 1:
                    run = min(run, (statistic + 1) * job.merged - at)
                add_parameter_grads(
                    run, job.sums + at, job.sums + job.cells + at, job.rstd + statistic,
                    job.merged == 1, dweight + (size - (last - at)), dbias + (size - (last - at)))
                at += run
            at += job.parameters - size
        for at in range(size):
            assign(&job.dweight, first + at, dweight[at])
            assign(&job.dbias, first + at, dbias[at])
        first += size
