# What every Cython kernel module shares: argument checks, and parameters of either precision.

from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.math cimport fabs, isfinite, sqrt
from libc.string cimport memchr, memcpy, memset

cimport numpy as cnp

from normcore.kernels.table import ACTIVATIONS as _activations

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cnp.import_array()

cdef int ACTIVATIONS = len(_activations)

cdef extern from "calls.h":
    ctypedef struct Parameter:
        const float *single
        const double *double_
    ctypedef struct WritableParameter:
        float *single
        double *double_
    ctypedef struct Call:
        char *y
        const char *x
        const char *dy
        const char *residual
        int storage
        Py_ssize_t statistics
        Parameter mean
        Parameter var
        const double *rstd
        double *to_mean
        double *to_var
        double *to_rstd
        Parameter weight
        Parameter bias
        WritableParameter dweight, dbias
        bint training
        Py_ssize_t parameters
        double eps
        int activation
        Py_ssize_t sizes[3]
        int threads
    ctypedef struct Update:
        WritableParameter mean
        WritableParameter var
        long long *tracked
        const double *new_mean
        const double *new_var
        Py_ssize_t size
        double momentum
        double count
        bint skip_nonfinite
    ctypedef int (*call_t)(const Call *) except -1
    ctypedef struct Passes:
        call_t apply
        call_t forward
        call_t backward
    ctypedef struct RunningPasses:
        void (*update)(const Update *) noexcept nogil
    const char *NORMCORE_PASSES
    const char *NORMCORE_RUNNING


cdef inline double value(Parameter *parameter, Py_ssize_t i, double default) noexcept nogil:
    if parameter.single != NULL:
        return parameter.single[i]
    if parameter.double_ != NULL:
        return parameter.double_[i]
    return default


cdef inline void assign(WritableParameter *parameter, Py_ssize_t i, double new) noexcept nogil:
    if parameter.single != NULL:
        parameter.single[i] = <float>new
    else:
        parameter.double_[i] = new


cdef int refuse(str name, str expected, object got) except -1:
    raise ValueError(f"{name}: expected {expected}, got {got}")


cdef int check(cnp.ndarray a, str name, Py_ssize_t size) except -1:
    # What both inputs and outputs must be: `size` contiguous, native, aligned elements.
    if cnp.PyArray_SIZE(a) != size:
        refuse(name, f"{size} elements", f"shape {(<object>a).shape}")
    if not cnp.PyArray_ISCARRAY_RO(a):
        refuse(
            name, "a C-contiguous, aligned array in native byte order",
            f"flags\n{(<object>a).flags}")
    return 0


cdef int check_real(cnp.ndarray a, str name, Py_ssize_t size, int typenum) except -1:
    check(a, name, size)
    if cnp.PyArray_TYPE(a) != typenum:
        refuse(name, f"dtype {cnp.PyArray_DescrFromType(typenum)}", a.dtype)
    return 0


cdef int check_out(cnp.ndarray a, str name, Py_ssize_t size, int typenum) except -1:
    check_real(a, name, size, typenum)
    if not cnp.PyArray_ISWRITEABLE(a):
        refuse(name, "a writeable array", "a read-only one")
    return 0


cdef int real_type(cnp.ndarray x, str name) except -1:
    cdef int typenum = cnp.PyArray_TYPE(x)
    if typenum != cnp.NPY_FLOAT32 and typenum != cnp.NPY_FLOAT64:
        raise TypeError(f"{name}: expected float32 or float64, got {x.dtype}")
    return typenum


# How x, y, dy and dx are stored: every element type has its table of C functions.
cdef enum Storage:
    F32
    F64
    F16
    BF16


cdef int bfloat16 = -1  # ml_dtypes registers its type at run time: known once an array of it came


cdef int find_storage(cnp.ndarray x) except -2:
    # A Storage; -1: none.
    global bfloat16
    cdef int typenum = cnp.PyArray_TYPE(x)
    if typenum == cnp.NPY_FLOAT32:
        return F32
    if typenum == cnp.NPY_FLOAT64:
        return F64
    if typenum == cnp.NPY_FLOAT16:
        return F16
    if typenum != bfloat16:
        if x.dtype.name != "bfloat16":
            return -1
        bfloat16 = typenum
    return BF16


cdef Storage storage_of(cnp.ndarray x, str name) except *:
    cdef int found = find_storage(x)
    if found < 0:
        raise TypeError(f"{name}: expected float32, float64, float16 or bfloat16, got {x.dtype}")
    return <Storage>found


cdef inline Py_ssize_t itemsize_of(Storage storage) noexcept nogil:
    return 4 if storage == F32 else 8 if storage == F64 else 2


cdef const char *optional_input(
    object given, str name, Py_ssize_t size, int typenum
) except? NULL:
    # The data of an array like x, or NULL for None.
    if given is None:
        return NULL
    if not isinstance(given, cnp.ndarray):
        raise TypeError(f"{name}: expected an array or None, got {type(given).__name__}")
    check_real(given, name, size, typenum)
    return <const char *>cnp.PyArray_DATA(<cnp.ndarray>given)


cdef const unsigned char *mask_data(object given) except? NULL:
    # The bytes of a mask, or NULL for None; whoever calls looks at the size.
    if given is None:
        return NULL
    if not isinstance(given, cnp.ndarray):
        raise TypeError(f"mask: expected an array or None, got {type(given).__name__}")
    check_real(given, "mask", cnp.PyArray_SIZE(given), cnp.NPY_UINT8)
    return <const unsigned char *>cnp.PyArray_DATA(<cnp.ndarray>given)


cdef inline Py_ssize_t mask_run(
    const unsigned char *mask, Py_ssize_t i, Py_ssize_t size
) noexcept nogil:
    # The end of the run of kept, or of masked, elements that starts at i.
    cdef const void *end
    if mask[i]:
        end = memchr(mask + i, 0, size - i)
        return size if end == NULL else <const unsigned char *>end - mask
    while i < size and not mask[i]:
        i += 1
    return i


cdef Py_ssize_t mask_count(const unsigned char *mask, Py_ssize_t size) noexcept nogil:
    # How many elements are kept.
    cdef Py_ssize_t i, kept = 0
    for i in range(size):
        kept += mask[i] != 0
    return kept


cdef int check_activation(int activation) except -1:
    if not 0 <= activation < ACTIVATIONS:
        refuse("activation", f"a number from 0 to {ACTIVATIONS - 1}", activation)
    return 0


cdef int check_threads(int threads) except -1:
    if threads < 1:
        refuse("threads", "at least 1", threads)
    return 0


cdef Parameter parameter(object given, str name, Py_ssize_t size) except *:
    cdef Parameter found
    cdef cnp.ndarray a
    found.single = NULL
    found.double_ = NULL
    if given is None:
        return found
    if not isinstance(given, cnp.ndarray):
        raise TypeError(f"{name}: expected an array or None, got {type(given).__name__}")
    a = given
    check(a, name, size)
    if real_type(a, name) == cnp.NPY_FLOAT32:
        found.single = <const float *>cnp.PyArray_DATA(a)
    else:
        found.double_ = <const double *>cnp.PyArray_DATA(a)
    return found


cdef WritableParameter writable(cnp.ndarray a, str name, Py_ssize_t size) except *:
    cdef WritableParameter found
    cdef int typenum = real_type(a, name)
    check_out(a, name, size, typenum)
    found.single = NULL
    found.double_ = NULL
    if typenum == cnp.NPY_FLOAT32:
        found.single = <float *>cnp.PyArray_DATA(a)
    else:
        found.double_ = <double *>cnp.PyArray_DATA(a)
    return found


cdef inline double *doubles(cnp.ndarray a) noexcept:
    return <double *>cnp.PyArray_DATA(a)


cdef inline Py_ssize_t elements(
    Py_ssize_t first, Py_ssize_t second, Py_ssize_t third
) noexcept nogil:
    # first * second * third. Wrong sizes must not wrap around to the right number: -1 for a
    # negative one, -2 for more than memory holds.
    if first < 0 or second < 0 or third < 0:
        return -1
    if second > 0 and first > PY_SSIZE_T_MAX // second or (
        third > 0 and first * second > PY_SSIZE_T_MAX // third
    ):
        return -2
    return first * second * third


cdef Py_ssize_t product(Py_ssize_t first, Py_ssize_t second, Py_ssize_t third) except -1:
    cdef Py_ssize_t found = elements(first, second, third)
    if found < 0:
        expected = "no negative one" if found == -1 else "fewer elements than memory holds"
        refuse("sizes", expected, (first, second, third))
    return found


cdef inline double *scratch(Py_ssize_t size) noexcept nogil:
    # NULL if there is no memory.
    return <double *>PyMem_RawMalloc(size * sizeof(double))
