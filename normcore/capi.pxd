# The compiled kernels for Cython code without the GIL:
#
#     from normcore.capi cimport NORMCORE_FLOAT32, rows_forward
#
# They are the kernels of `normcore/kernels/table.py`, on pointers, for the instruction set that was
# chosen when normcore was imported. Arrays are C-contiguous and aligned, and none overlaps another,
# but y may be x or residual, dx may be dy or x, g may be dy: exactly the same memory.
#
# dtype            of void * x, y, dy, dx, g, residual, addend, total: NORMCORE_FLOAT32, ...
# parameter_dtype  of void * weight, bias, dweight, dbias, and of apply's mean and var:
#                  NORMCORE_FLOAT32 or NORMCORE_FLOAT64
# double *         mean, var, rstd, m2 and the sums of gradients: float64, one per statistic
# NULL             is allowed for weight (1), bias (0), residual and addend (0); in rows for mean:
#                  nothing is centred then (RMS norm)
# activation       a number of `normcore.kernels.table.ACTIVATIONS`: 0 none, 1 relu, 2 relu6,
#                  3 leaky_relu, 4 silu, 5 gelu; y = activation(norm(x) + residual)
# statistics       how many mean has: c in batch norm, the groups of all samples in group norm
# parameters       how many weight has, where it is not NULL: c, or a divisor of c (nchw alone):
#                  channel i then has parameter i % parameters
# sizes            rows: r rows of m elements. nchw: (n, c, s). nc: (b, m, c); batch norm has b = 1
# threads          1 inside a loop that has threads already, and in a forked child; the bits of a
#                  result do not depend on it
#
# moments, reduce_grads and apply_grads have a statistic per cell (n * c, b * c) or channel.
#
# They return NORMCORE_OK, or what is wrong, and then have written nothing. Memory that pointers
# do not have, and an eps that is not positive, cannot be noticed. Masks and batch
# renormalization, and normalization over leading axes (family cols), have no function here.

cdef enum:
    NORMCORE_OK = 0
    NORMCORE_NULL_POINTER = 1    # for an array that is not optional
    NORMCORE_BAD_DTYPE = 2
    NORMCORE_BAD_SIZES = 3       # negative, too large, or statistics and parameters do not divide
    NORMCORE_BAD_ACTIVATION = 4
    NORMCORE_BAD_THREADS = 5
    NORMCORE_NO_MEMORY = 6

cdef enum:
    NORMCORE_FLOAT32 = 0
    NORMCORE_FLOAT64 = 1
    NORMCORE_FLOAT16 = 2
    NORMCORE_BFLOAT16 = 3

# Family rows: layer norm and RMS norm ----------------------------------------------------------

cdef int rows_forward(
    int dtype, int parameter_dtype, void *y, double *mean, double *rstd, const void *x,
    const void *residual, const void *weight, const void *bias, double eps, int activation,
    Py_ssize_t r, Py_ssize_t m, int threads) noexcept nogil

cdef int rows_add_forward(
    int dtype, int parameter_dtype, void *y, void *total, double *mean, double *rstd,
    const void *x, const void *addend, const void *weight, const void *bias, double eps,
    Py_ssize_t r, Py_ssize_t m, int threads) noexcept nogil

cdef int rows_activation_grads(
    int dtype, int parameter_dtype, void *g, const void *dy, const void *x,
    const void *residual, const double *mean, const double *rstd, const void *weight,
    const void *bias, int activation, Py_ssize_t r, Py_ssize_t m, int threads) noexcept nogil

cdef int rows_backward(
    int dtype, int parameter_dtype, void *dx, void *dweight, void *dbias, const void *dy,
    const void *x, const void *addend, const double *mean, const double *rstd,
    const void *weight, Py_ssize_t r, Py_ssize_t m, int threads) noexcept nogil

# Family nchw: batch, group and instance norm, channels first -----------------------------------

cdef int nchw_moments(
    int dtype, double *mean, double *m2, const void *x, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s,
    int threads) noexcept nogil

cdef int nchw_apply(
    int dtype, int parameter_dtype, void *y, const void *x, const void *residual,
    const void *mean, const void *var, const void *weight, const void *bias, double eps,
    int activation, Py_ssize_t statistics, Py_ssize_t parameters, Py_ssize_t n, Py_ssize_t c,
    Py_ssize_t s, int threads) noexcept nogil

cdef int nchw_forward(
    int dtype, int parameter_dtype, void *y, double *mean, double *var, double *rstd,
    const void *x, const void *residual, const void *weight, const void *bias, double eps,
    int activation, Py_ssize_t statistics, Py_ssize_t parameters, Py_ssize_t n, Py_ssize_t c,
    Py_ssize_t s, int threads) noexcept nogil

cdef int nchw_activation_grads(
    int dtype, int parameter_dtype, void *g, const void *dy, const void *x, const void *residual,
    const double *mean, const double *rstd, const void *weight, const void *bias, int activation,
    Py_ssize_t statistics, Py_ssize_t parameters, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s,
    int threads) noexcept nogil

cdef int nchw_reduce_grads(
    int dtype, double *sum_dy, double *sum_dy_xmu, const void *dy, const void *x,
    const double *mean, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s, int threads) noexcept nogil

cdef int nchw_apply_grads(
    int dtype, int parameter_dtype, void *dx, const void *dy, const void *x, const double *mean,
    const double *rstd, const void *weight, const double *sum_dy, const double *sum_dy_xmu,
    double count, Py_ssize_t parameters, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s,
    int threads) noexcept nogil

cdef int nchw_backward(
    int dtype, int parameter_dtype, void *dx, void *dweight, void *dbias, const void *dy,
    const void *x, const double *mean, const double *rstd, const void *weight, bint training,
    Py_ssize_t statistics, Py_ssize_t parameters, Py_ssize_t n, Py_ssize_t c, Py_ssize_t s,
    int threads) noexcept nogil

# Family nc: the same, channels last -----------------------------------------------------------

cdef int nc_moments(
    int dtype, double *mean, double *m2, const void *x, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c,
    int threads) noexcept nogil

cdef int nc_apply(
    int dtype, int parameter_dtype, void *y, const void *x, const void *residual,
    const void *mean, const void *var, const void *weight, const void *bias, double eps,
    int activation, Py_ssize_t statistics, Py_ssize_t parameters, Py_ssize_t b, Py_ssize_t m,
    Py_ssize_t c, int threads) noexcept nogil

cdef int nc_forward(
    int dtype, int parameter_dtype, void *y, double *mean, double *var, double *rstd,
    const void *x, const void *residual, const void *weight, const void *bias, double eps,
    int activation, Py_ssize_t statistics, Py_ssize_t parameters, Py_ssize_t b, Py_ssize_t m,
    Py_ssize_t c, int threads) noexcept nogil

cdef int nc_activation_grads(
    int dtype, int parameter_dtype, void *g, const void *dy, const void *x, const void *residual,
    const double *mean, const double *rstd, const void *weight, const void *bias, int activation,
    Py_ssize_t statistics, Py_ssize_t parameters, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c,
    int threads) noexcept nogil

cdef int nc_reduce_grads(
    int dtype, double *sum_dy, double *sum_dy_xmu, const void *dy, const void *x,
    const double *mean, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c, int threads) noexcept nogil

cdef int nc_apply_grads(
    int dtype, int parameter_dtype, void *dx, const void *dy, const void *x, const double *mean,
    const double *rstd, const void *weight, const double *sum_dy, const double *sum_dy_xmu,
    double count, Py_ssize_t parameters, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c,
    int threads) noexcept nogil

cdef int nc_backward(
    int dtype, int parameter_dtype, void *dx, void *dweight, void *dbias, const void *dy,
    const void *x, const double *mean, const double *rstd, const void *weight, bint training,
    Py_ssize_t statistics, Py_ssize_t parameters, Py_ssize_t b, Py_ssize_t m, Py_ssize_t c,
    int threads) noexcept nogil
