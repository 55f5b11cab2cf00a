/* Arithmetic on rows that are normalized along their elements (family rows): layer and RMS norm.

   weight and bias belong to the elements of a row, mean and rstd to the row. The file includes
   itself once per storage type; the schedules reach it through the table `Rows`. */

#ifndef REAL

#include "activation.h"
#include "partial.h"
#include "row_settle.h"

/* Rows of len elements, `pitch` apart. */
typedef struct {
    char *dx;
    const char *dy, *x, *addend; /* addend may be NULL */
    const void *weight;
    const double *sum_weight; /* the same in float64, not for halves */
    double *dweight, *dbias;  /* += */
    ptrdiff_t rows, len, pitch;
    int stream;
    Shared *shared; /* with the rows before and behind */
} RowGrads;

typedef struct {
    ptrdiff_t itemsize;
    ptrdiff_t computed; /* bytes of one element of weight in Affine and RowGrads */
    double (*first_shift)(const void *x, ptrdiff_t len);
    void (*sums)(double *sums, const void *x, ptrdiff_t len, double shift);
    void (*grad_sums)(double (*sums)[3], const RowGrads *at, const double *mean,
                      const double *rstd);
    void (*forward)(RowSums *sums, const Pack *next, const Pack *pack, ptrdiff_t len, int centred,
                    const Affine *affine, int activation, int stream, Shared *shared,
                    const Norm **owed);
    void (*activation_grads)(void *g, const void *dy, const void *x, const void *residual,
                             ptrdiff_t len, const Norm *row, const Affine *affine, int activation,
                             int stream);
    void (*grads)(const RowGrads *at, const Norm *row);
    void (*add)(void *total, void *copy, const void *x, const void *addend, ptrdiff_t len,
                int stream);
} Rows;


/* Vectors of columns whose sums stay in registers. */
#if VECTOR_BYTES == 64
#define STRIP_VECTORS 4
#elif VECTOR_BYTES == 32
#define STRIP_VECTORS 2
#else
#define STRIP_VECTORS 4 /* a whole line */
#endif

/* Before something is written at `to`: writes what waits for a line that will not be streamed. */
INLINE void give_up_line(Shared *shared, char *to) {
    const size_t before = (uintptr_t)to % 64;
    memcpy(to - before, shared->line, before);
    shared->began = 0;
}

/* Before rows are written: whether they share lines with those before and those behind, which
   begin at `end`. */
INLINE void share_lines(const RowGrads *at, int whole, const void *end) {
    if (at->shared->began && !whole)
        give_up_line(at->shared, at->dx);
    at->shared->goes_on &= whole && (uintptr_t)end % 64 != 0;
}

#define EACH_ROW _Pragma("GCC unroll 8")

/* Bytes to ask for ahead where there is one loop. */
#define ROW_AHEAD 8192

#define REAL float
#define COMPUTED f32
#define SUFFIX f32
#include "rows.h"
#undef SUFFIX
#define HALF
#define SUFFIX f16
#include "rows.h"
#undef SUFFIX
#define SUFFIX bf16
#include "rows.h"
#undef SUFFIX
#define SUFFIX w32
#include "rows.h"
#undef SUFFIX
#undef HALF
#undef COMPUTED
#undef REAL
#define REAL double
#define COMPUTED f64
#define SUFFIX f64
#include "rows.h"
#undef SUFFIX
#undef COMPUTED
#undef REAL

#else

#define NAME(f) PASTE(f, SUFFIX)
#define COMPUTE(f) PASTE(f, COMPUTED)
#define STORE NAME(store_t)
#define VEC NAME(vec)
#define WIDTH ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))
#define LINE (64 / (ptrdiff_t)sizeof(STORE))

/* Of floats and halves the median of three elements does: what it is off by costs their sums less
   than a digit (`lost` in layers.pxi), and of three short means it took 10 of the 18 ns of the sums
   of 96 floats, 23 of 29 of those of 96 float16. */
INLINE double NAME(shift_of)(const STORE *x, ptrdiff_t len) {
    const ptrdiff_t taken = sizeof(STORE) == 8 ? few(len) : 1;
    return median3(NAME(short_mean)(x, 1, taken),
                   NAME(short_mean)(x + (len - taken) / 2, 1, taken),
                   NAME(short_mean)(x + len - taken, 1, taken));
}

KERNEL double NAME(row_shift)(const void *x, ptrdiff_t len) { return NAME(shift_of)(x, len); }

#include "row_sums.h"

#define ASK(i) __builtin_prefetch(ahead + (i), 0, 2)
#include "along.h"

/* What the activation is applied to, of one element, in float64: for rows that are wide, and for
   those with rstd 0 (nothing counts), where it is bias, whatever x is. */
INLINE double NAME(row_norm_one)(const STORE *x, const STORE *residual, ptrdiff_t i,
                                 const Norm *row, const Affine *affine) {
    const REAL *weight = affine->weight, *bias = affine->bias;
    const double x_hat =
        row->rstd == 0.0 ? 0.0 : ((NAME(get)(x + i) - row->hi) - row->lo) * row->rstd;
    const double z = x_hat * weight[i] + bias[i];
    return residual == NULL ? z : z + NAME(get)(residual + i);
}

#define NORM(STORED, KEPT)                                                                     \
    (((STORED(x) - hi) * rstd + left) * KEPT(weight) + KEPT(bias))
#define BEFORE_ACTIVATION(STORED, KEPT)                                                        \
    (residual == NULL ? NORM(STORED, KEPT) : NORM(STORED, KEPT) + STORED(residual))

#include "row_forward.h"

/* g = dy * activation'(norm(x) + residual). g may be dy, x or residual. */
KERNEL void NAME(row_activation_grads)(void *to, const void *from_dy, const void *from_x,
                                       const void *from_residual, ptrdiff_t len, const Norm *row,
                                       const Affine *affine, int activation, int stream) {
    STORE *g = to;
    const STORE *dy = from_dy, *x = from_x, *residual = from_residual;
    const STORE *ahead = x + ROW_AHEAD / sizeof(STORE);
    const REAL *weight = affine->weight, *bias = affine->bias;
    const REAL hi = (REAL)row->hi, rstd = (REAL)row->rstd, left = (REAL)(-row->lo * row->rstd);
    if (row->wide || row->rstd == 0.0) {
        for (ptrdiff_t j = 0; j < len; j++) {
            const double z = NAME(row_norm_one)(x, residual, j, row, affine);
            NAME(put)(g + j, (REAL)(NAME(get)(dy + j) * slope_one(z, activation)));
        }
        return;
    }
    const Shared *shared = &APART;
#define SLOPED(STORED, KEPT)                                                                   \
    (STORED(dy) * COMPUTE(slope)(BEFORE_ACTIVATION(STORED, KEPT), activation))
    ALONG(g, SLOPED)
#undef SLOPED
}

#undef BEFORE_ACTIVATION

/* total = copy = x + addend, rounded once. */
KERNEL void NAME(row_add)(void *to, void *to_copy, const void *from, const void *from_addend,
                          ptrdiff_t len, int stream) {
    STORE *total = to, *copy = to_copy;
    const STORE *x = from, *addend = from_addend, *ahead = x + ROW_AHEAD / sizeof(STORE);
    const Shared *shared = &APART;
    if (copy == NULL) {
#define TOTAL(STORED, KEPT) (STORED(x) + STORED(addend))
        ALONG(total, TOTAL)
#undef TOTAL
        return;
    }
#define TOTAL(STORED, KEPT) STORED(copy)
    {
        const ptrdiff_t whole = len / WIDTH * WIDTH;
        for (ptrdiff_t i = 0; i < whole; i += WIDTH) {
            __builtin_prefetch(x + i + ROW_AHEAD / sizeof(STORE));
            __builtin_prefetch(addend + i + ROW_AHEAD / sizeof(STORE));
            NAME(store)(copy + i, WHOLE(x) + WHOLE(addend));
        }
        if (whole < len) {
            const ptrdiff_t i = whole, k = len - whole;
            NAME(store_some)(copy + i, SOME(x) + SOME(addend), k);
        }
    }
    ALONG(total, TOTAL)
#undef TOTAL
}

#include "row_grads.h"

#undef WRAPPED
#undef JOINED
#undef SEAM
#undef NORM
#undef HEAD
#undef LINES
#undef REST
#undef ASK
#undef ALONG
#undef PART
#undef WHOLE
#undef WHOLE_KEPT
#undef SOME
#undef SOME_KEPT

static const Rows NAME(rows) = {
    sizeof(STORE),       sizeof(REAL),     NAME(row_shift),
    NAME(row_sums),      NAME(row_grad_sums), NAME(rows_forward),
    NAME(row_activation_grads), NAME(row_grads), NAME(row_add),
};

#undef LINE
#undef WIDTH
#undef VEC
#undef STORE
#undef COMPUTE
#undef NAME

#endif
