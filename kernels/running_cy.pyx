# cython: boundscheck=False, wraparound=False, cdivision=True
"""Running statistics and facts about the CPU; what needs no vector instructions."""

from cpython.pycapsule cimport PyCapsule_New

include "array.pxi"

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define NORMCORE_MAX_THREADS omp_get_max_threads()
    #else
    #define NORMCORE_MAX_THREADS 1
    #endif
    #if defined(__x86_64__)
    #include <cpuid.h>
    static int cpu_has_avx2(void) {
        /* Not every compiler's cpu_supports knows f16c. */
        unsigned eax, ebx, ecx = 0, edx;
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
            && __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
    }
    static int cpu_has_avx512(void) {
        __builtin_cpu_init();
        return cpu_has_avx2() && __builtin_cpu_supports("avx512f")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512vl");
    }
    #else
    static int cpu_has_avx2(void) { return 0; }
    static int cpu_has_avx512(void) { return 0; }
    #endif
    """
    int NORMCORE_MAX_THREADS
    int cpu_has_avx2() nogil
    int cpu_has_avx512() nogil


def max_threads():
    """Threads that OpenMP would use: OMP_NUM_THREADS, or the CPUs this process may run on."""
    return NORMCORE_MAX_THREADS


def instruction_sets():
    """Instruction sets that this CPU and operating system execute, best first."""
    found = ["baseline"]
    if cpu_has_avx2():
        found.insert(0, "avx2")
    if cpu_has_avx512():
        found.insert(0, "avx512")
    return tuple(found)


cdef void blend(const Update *given) noexcept nogil:
    # One call into machine code: a Ctrl-C finds the buffers all old or all new.
    cdef Update to = given[0]
    cdef Parameter old_mean = Parameter(to.mean.single, to.mean.double_)
    cdef Parameter old_var = Parameter(to.var.single, to.var.double_)
    cdef double momentum = to.momentum, unbias = to.count / (to.count - 1)
    cdef Py_ssize_t i
    if to.tracked != NULL:
        to.tracked[0] += 1
    for i in range(to.size):
        if to.skip_nonfinite and not (isfinite(to.new_mean[i]) and isfinite(to.new_var[i])):
            continue
        assign(&to.mean, i, (1 - momentum) * value(&old_mean, i, 0) + momentum * to.new_mean[i])
        assign(
            &to.var, i,
            (1 - momentum) * value(&old_var, i, 0) + momentum * (to.new_var[i] * unbias),
        )


def update(
    cnp.ndarray running_mean not None,
    cnp.ndarray running_var not None,
    cnp.ndarray num_batches_tracked,
    cnp.ndarray mean not None,
    cnp.ndarray var not None,
    double momentum,
    double count,
    bint skip_nonfinite,
):
    """running = (1 - momentum) * running + momentum * new, var unbiased; all in one call.

    Ctrl-C cannot part the stores: Python looks at signals only after the return.
    """
    cdef Py_ssize_t c = cnp.PyArray_SIZE(mean)
    cdef Update given
    given.mean = writable(running_mean, "running_mean", c)
    given.var = writable(running_var, "running_var", c)
    check_real(mean, "mean", c, cnp.NPY_FLOAT64)
    check_real(var, "var", c, cnp.NPY_FLOAT64)
    given.tracked = NULL
    if num_batches_tracked is not None:
        check_out(num_batches_tracked, "num_batches_tracked", 1, cnp.NPY_INT64)
        given.tracked = <long long *>cnp.PyArray_DATA(num_batches_tracked)
    given.new_mean = doubles(mean)
    given.new_var = doubles(var)
    given.size = c
    given.momentum = momentum
    given.count = count
    given.skip_nonfinite = skip_nonfinite
    blend(&given)


cdef RunningPasses _passes = RunningPasses(blend)
passes = PyCapsule_New(&_passes, NORMCORE_RUNNING, NULL)
