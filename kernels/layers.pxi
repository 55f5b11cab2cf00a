# What the families rows and cols share in Cython: the state of one call, the step from the sums of
# a row or column to its coefficients, and the units whose parts of dweight and dbias are added in
# order. Whoever includes it defines Plan before, what its own schedule needs.

from cpython.pystate cimport PyThreadState
from libc.string cimport memcpy, memset

include "array.pxi"

from normcore.kernels import schedule as _schedule

cdef Py_ssize_t STREAM_BYTES = _schedule.STREAM_BYTES
cdef Py_ssize_t NOGIL_SIZE = _schedule.NOGIL_SIZE
cdef Py_ssize_t UNITS = _schedule.UNITS
cdef Py_ssize_t UNIT_LEAST = _schedule.UNIT_BLOCK_LEAST

cdef extern from "Python.h":
    PyThreadState *PyEval_SaveThread() noexcept
    void PyEval_RestoreThread(PyThreadState *state) noexcept

cdef extern from "layer.h" nogil:
    ctypedef struct Norm:
        double hi, lo, rstd, slope, mean_g_hi, mean_g_lo
        bint wide
    ctypedef struct Affine:
        const void *weight
        const void *bias
    int is_wide(double mean, double rstd, double scale)
    void stream_fence()


cdef struct Job:
    Plan plan
    Storage storage
    Py_ssize_t itemsize
    Py_ssize_t size              # elements of x
    Py_ssize_t m                 # elements of weight
    char *out                    # y, g or dx
    const char *x
    const char *dy
    const char *added            # residual (forward), addend (add_forward, backward), or NULL
    const unsigned char *mask    # or NULL
    double *mean                 # NULL: nothing is centred
    double *rstd
    Affine affine                # in the type that is computed in
    const double *weight         # of a backward: always float64
    double eps
    int activation
    bint stream
    double lost                  # what a shift may cost before the sums are taken again
    Py_ssize_t units
    Py_ssize_t pitch             # doubles of one dweight or dbias in `parts`
    double *parts                # (units, 2, pitch): what each unit adds to dweight and dbias
    char *spare                  # the memory that `allocate` was asked for
    void *memory


# Sums -> statistics and coefficients --------------------------------------------------------


cdef inline void split_mean(Job *job, Norm *norm, double hi, double lo, double rstd) noexcept nogil:
    # In float32, hi must be a float32 and lo the rest of the mean.
    norm.rstd = rstd
    norm.hi = hi
    norm.lo = lo
    norm.wide = False
    if job.storage != F64:
        norm.wide = is_wide(hi, rstd, rstd)
        if not norm.wide:
            norm.hi = <float>(hi + lo)
            norm.lo = (hi - norm.hi) + lo


cdef inline double origin_of(Job *job, double mean) noexcept nogil:
    # Where deviations are taken from: the sums of halves are in float32.
    return <float>mean if job.itemsize == 2 else mean


cdef inline bint shift_was_bad(
    Job *job, double sum, double square, double count, double *shift
) noexcept nogil:
    # As in passes.pxi: the shift moves to the mean, and the sums are wanted once more.
    cdef double excess = sum * sum / count
    if job.mean != NULL and excess > 0.0 and excess > job.lost * (square - excess):
        shift[0] = origin_of(job, shift[0] + sum / count)
        return True
    return False


cdef inline void settle_forward(
    Job *job, Py_ssize_t i, Norm *norm, double shift, double sum, double square, double count
) noexcept nogil:
    # Of statistic i; count 0: nothing counts.
    cdef double lo = 0.0, var, rstd = 0.0
    if count > 0.0:
        if job.mean != NULL:
            lo = sum / count
            square -= sum * lo
            if square < 0.0:
                square = 0.0
        var = square / count
        rstd = 1.0 / sqrt(var + job.eps)
    else:
        shift = 0.0
    if job.mean != NULL:
        job.mean[i] = shift + lo
    job.rstd[i] = rstd
    split_mean(job, norm, shift, lo, rstd)


cdef inline void settle_backward(
    Job *job, Py_ssize_t i, Norm *norm, double sum, double product, double rest, double count
) noexcept nogil:
    cdef double mean = 0.0, mean_g = 0.0, lo = 0.0
    if count == 0.0:
        count = 1.0
    if job.mean != NULL:
        # What the rounded mean leaves in the deviations comes off again. Of halves it is known
        # better than it is summed: in float32, which cost dweight of equal rows 4e-6.
        mean = origin_of(job, job.mean[i])
        lo = job.mean[i] - mean if job.itemsize == 2 else rest / count
        mean_g = sum / count
        product -= sum * lo
    split_mean(job, norm, mean, lo, job.rstd[i])
    norm.slope = norm.rstd * norm.rstd * (product / count)
    norm.mean_g_hi = mean_g
    norm.mean_g_lo = 0.0
    if job.storage != F64 and not norm.wide:
        norm.mean_g_hi = <float>mean_g
        norm.mean_g_lo = mean_g - norm.mean_g_hi


cdef inline void given_norm(Job *job, Py_ssize_t i, Norm *norm) noexcept nogil:
    split_mean(job, norm, 0.0 if job.mean == NULL else job.mean[i], 0.0, job.rstd[i])


cdef inline const char *added_at(Job *job, Py_ssize_t at) noexcept nogil:
    if job.added == NULL:
        return NULL
    return job.added + at


# Work shared out over threads --------------------------------------------------------------------


ctypedef void (*step_t)(Job *, int, Py_ssize_t, Py_ssize_t) noexcept nogil


cdef void share(step_t step, Job *job, Py_ssize_t items, int threads) noexcept nogil:
    cdef int t
    if threads == 1:
        step(job, 0, 0, items)
    else:
        for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
            step(job, t, items * t // threads, items * (t + 1) // threads)


cdef void run(step_t step, Job *job, Py_ssize_t items, int threads) noexcept:
    # The GIL is let go only where the work is worth it.
    cdef PyThreadState *state = NULL
    if job.size == 0:
        return
    if job.size >= NOGIL_SIZE:
        state = PyEval_SaveThread()
    share(step, job, items, threads)
    if state != NULL:
        PyEval_RestoreThread(state)


# From the arguments of a kernel to its job: every check, before anything is written -------------


cdef void blank_job(
    Job *job, Storage storage, const char *x, Py_ssize_t m, Py_ssize_t size
) noexcept nogil:
    memset(job, 0, sizeof(Job))
    job.storage = storage
    job.m = m
    job.size = size
    job.itemsize = itemsize_of(storage)
    job.x = x
    job.lost = 2.0 if storage == F64 else 1024.0
    job.stream = size * job.itemsize >= STREAM_BYTES


cdef int start_job(
    Job *job, cnp.ndarray x, object mean, cnp.ndarray rstd, Py_ssize_t statistics, Py_ssize_t m,
    Py_ssize_t size, bint statistics_out, int threads,
) except -1:
    # Returns the type number that every array like x must have.
    cdef Storage storage = storage_of(x, "x")
    check_threads(threads)
    check(x, "x", size)
    blank_job(job, storage, <const char *>cnp.PyArray_DATA(x), m, size)
    if mean is not None:
        if not isinstance(mean, cnp.ndarray):
            raise TypeError(f"mean: expected an array or None, got {type(mean).__name__}")
        (check_out if statistics_out else check_real)(mean, "mean", statistics, cnp.NPY_FLOAT64)
        job.mean = doubles(mean)
    (check_out if statistics_out else check_real)(rstd, "rstd", statistics, cnp.NPY_FLOAT64)
    job.rstd = doubles(rstd)
    return cnp.PyArray_TYPE(x)


cdef int take_activation(Job *job, int activation, cnp.ndarray g, int typenum) except -1:
    # Of a backward through it; the gradient before it goes to g, if there is one.
    check_activation(activation)
    job.activation = activation
    if g is not None:
        check_out(g, "g", job.size, typenum)
        job.plan.g = <char *>cnp.PyArray_DATA(g)
    return 0


cdef char *converted(
    char *to, Parameter *given, Py_ssize_t size, double default, bint single, Py_ssize_t wrap,
    const void **found
) noexcept nogil:
    # In the type that is computed in: the parameter itself, or a copy at `to`, whose end returns.
    # A copy goes on with its first `wrap` elements, for a line that two rows share.
    cdef Py_ssize_t j
    if wrap == 0 and single and given.single != NULL:
        found[0] = given.single
        return to
    if wrap == 0 and not single and given.double_ != NULL:
        found[0] = given.double_
        return to
    found[0] = to
    if single:
        for j in range(size):
            (<float *>to)[j] = <float>value(given, j, default)
        memcpy(<float *>to + size, to, wrap * sizeof(float))
    else:
        for j in range(size):
            (<double *>to)[j] = value(given, j, default)
        memcpy(<double *>to + size, to, wrap * sizeof(double))
    return to + (size + wrap) * sizeof(double)


cdef int allocate(
    Job *job, object weight, object bias, Py_ssize_t spare
) except -1:
    cdef Parameter given_weight = parameter(weight, "weight", job.m)
    cdef Parameter given_bias = parameter(bias, "bias", job.m)
    if not allocate_for(job, &given_weight, &given_bias, spare):
        raise MemoryError
    return 0


cdef bint allocate_for(
    Job *job, Parameter *weight, Parameter *bias, Py_ssize_t spare
) noexcept nogil:
    # weight and bias as they are computed with, the units' parts, and room for `spare` bytes; False
    # if there is no memory.
    cdef bint single = job.storage != F64
    cdef Py_ssize_t parts = 2 * job.units * job.pitch
    cdef Py_ssize_t wrap = min(job.m, 64 // job.itemsize) if job.stream else 0
    cdef char *to
    job.memory = scratch(3 * (job.m + wrap) + parts + spare // 8 + 1)
    if job.memory == NULL:
        return False
    to = converted(<char *>job.memory, weight, job.m, 1.0, single, wrap, &job.affine.weight)
    to = converted(to, bias, job.m, 0.0, single, wrap, &job.affine.bias)
    if job.units > 0:
        to = converted(to, weight, job.m, 1.0, False, 0, <const void **>&job.weight)
    job.parts = <double *>to
    job.spare = to + parts * sizeof(double)
    return True


cdef void give_parameter_grads(
    Job *job, WritableParameter *dweight, WritableParameter *dbias
) noexcept nogil:
    # Unit by unit in order, whoever summed them.
    cdef WritableParameter *to
    cdef const double *part
    cdef double *sums
    cdef Py_ssize_t unit, j
    cdef int k
    for k in range(2):
        to = dbias if k else dweight
        sums = job.parts + k * job.pitch
        if job.size == 0:
            memset(sums, 0, job.m * sizeof(double))
        else:
            for unit in range(1, job.units):
                part = sums + 2 * unit * job.pitch
                for j in range(job.m):
                    sums[j] += part[j]
        for j in range(job.m):
            assign(to, j, sums[j])
