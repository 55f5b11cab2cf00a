/* Arithmetic on columns that are normalized along themselves (family cols): layer and RMS norm over
   an axis that is not the last.

   A strip is some adjacent columns of m rows, `pitch` elements apart. mean and rstd belong to its
   columns, weight and bias to its rows. Per-column values are arrays of at least `cols` elements.
   The file includes itself once per storage type; the schedules reach it through the table `Cols`.
   Masked columns have rstd 0 and all other coefficients 0. */

#ifndef REAL

#include "activation.h"
#include "col_norms.h"
#include "partial.h"

typedef struct {
    ptrdiff_t itemsize, computed; /* bytes of an element, of a coefficient */
    void (*first_shifts)(double *shift, const void *x, const Strip *strip);
    /* sum, square: arrays of `room` */
    void (*sums)(double *sums, const void *x, const Strip *strip, const double *shift);
    /* sum, product, rest: arrays of `room` */
    void (*grad_sums)(double *sums, double *dweight, double *dbias, const void *dy, const void *x,
                      const double *weight, const Strip *strip);
    void (*mend)(double *dweight, const void *dy, const Strip *strip, const double *off);
    void (*pack)(void *packed, const double *exact, ptrdiff_t size);
    void (*apply)(void *y, const void *x, const void *residual, const Strip *strip,
                  const Affine *affine, int activation, int stream);
    void (*activation_grads)(void *g, const void *dy, const void *x, const void *residual,
                             const Strip *strip, const Affine *affine, int activation, int stream);
    void (*grads)(void *dx, const void *dy, const void *x, const void *addend, const Strip *strip,
                  const void *weight, int stream);
} Cols;

/* Rows that share one load and store of the columns' totals, and are asked for ahead. */
enum { ROWS_TOGETHER = 8 };
/* Vectors of columns whose sums stay in registers. */
#if VECTOR_BYTES == 64
#define COL_VECTORS 4
#else
#define COL_VECTORS 2
#endif
#define EACH_ROW _Pragma("GCC unroll 8")

#define REAL float
#define COMPUTED f32
#define SUFFIX f32
#include "cols.h"
#undef SUFFIX
#define SUFFIX f16
#include "cols.h"
#undef SUFFIX
#define SUFFIX bf16
#include "cols.h"
#undef SUFFIX
#undef COMPUTED
#undef REAL
#define REAL double
#define COMPUTED f64
#define SUFFIX f64
#include "cols.h"
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

#include "col_sums.h"

KERNEL void NAME(col_pack)(void *restrict to, const double *restrict exact, ptrdiff_t size) {
    REAL *restrict packed = to;
    for (ptrdiff_t j = 0; j < size; j++)
        packed[j] = (REAL)exact[j];
}

#define ASK(i) ((void)0)
#include "along.h"

/* Of row r. */
INLINE Shared NAME(col_shared)(const Strip *strip, ptrdiff_t r) {
    Shared shared = strip->shared;
    shared.line += 64 * r;
    return shared;
}

/* Where rstd is 0, whatever v is, 0; nowhere if no column is `masked`. */
INLINE VEC NAME(col_counted)(VEC v, VEC rstd, const int masked) {
    return masked ? COMPUTE(only_where)(rstd != 0, v) : v;
}
/* One element before its activation, in float64. */
INLINE double NAME(col_norm_one)(const STORE *x, const STORE *residual, const Strip *strip,
                                 ptrdiff_t j, REAL w, REAL b) {
    const double *hi = strip->exact + j, *lo = hi + NORM_LO * strip->room;
    const double *rstd = hi + NORM_RSTD * strip->room;
    const double x_hat = *rstd == 0.0 ? 0.0 : (NAME(get)(x + j) - *hi) * *rstd + *lo;
    const double z = x_hat * w + b;
    return residual == NULL ? z : z + NAME(get)(residual + j);
}

#define PACKED                                                                                 \
    const ptrdiff_t len = strip->cols;                                                         \
    const REAL *hi = strip->packed, *lo = hi + NORM_LO * strip->room;                          \
    const REAL *rstd = hi + NORM_RSTD * strip->room
#define NORMED(STORED, KEPT)                                                                   \
    ((NAME(col_counted)(STORED(x) - KEPT(hi), KEPT(rstd), masked) * KEPT(rstd) + KEPT(lo)) *   \
         w +                                                                                   \
     b)
#define BEFORE_ACTIVATION(STORED, KEPT)                                                        \
    (residual == NULL ? NORMED(STORED, KEPT) : NORMED(STORED, KEPT) + STORED(residual))

INLINE void NAME(col_apply_row)(STORE *y, const STORE *x, const Strip *strip,
                                const Shared *shared, REAL w, REAL b, const int masked, int stream) {
    PACKED;
    ALONG(y, NORMED)
}

/* y = activation(((x - hi) - lo) * rstd * weight + bias + residual). y may be x or residual. */
KERNEL void NAME(col_apply)(void *to, const void *from, const void *from_residual,
                            const Strip *strip, const Affine *affine, int activation,
                            int stream) {
    PACKED;
    const int masked = 1;
    STORE *y = to;
    const STORE *x = from, *residual = from_residual;
    for (ptrdiff_t r = 0; r < strip->rows; r++) {
        const REAL w = ((const REAL *)affine->weight)[r], b = ((const REAL *)affine->bias)[r];
        const Shared own = NAME(col_shared)(strip, r), *shared = &own;
        if (strip->wide)
            for (ptrdiff_t j = 0; j < strip->cols; j++) {
                const double z = NAME(col_norm_one)(x, residual, strip, j, w, b);
                NAME(put)(y + j, (REAL)activate_one(z, activation));
            }
        else if (residual != NULL || activation != IDENTITY)
#define ACTIVATED(STORED, KEPT) COMPUTE(activate)(BEFORE_ACTIVATION(STORED, KEPT), activation)
            ALONG(y, ACTIVATED)
#undef ACTIVATED
        else if (strip->masked)
            NAME(col_apply_row)(y, x, strip, shared, w, b, 1, stream);
        else
            NAME(col_apply_row)(y, x, strip, shared, w, b, 0, stream);
        x += strip->pitch;
        y += strip->pitch;
        if (residual != NULL)
            residual += strip->pitch;
    }
}

/* g = dy * activation'(norm(x) + residual). g may be dy, x or residual. */
KERNEL void NAME(col_activation_grads)(void *to, const void *from_dy, const void *from_x,
                                       const void *from_residual, const Strip *strip,
                                       const Affine *affine, int activation, int stream) {
    PACKED;
    const int masked = 1;
    STORE *g = to;
    const STORE *dy = from_dy, *x = from_x, *residual = from_residual;
    for (ptrdiff_t r = 0; r < strip->rows; r++) {
        const REAL w = ((const REAL *)affine->weight)[r], b = ((const REAL *)affine->bias)[r];
        const Shared own = NAME(col_shared)(strip, r), *shared = &own;
        if (strip->wide)
            for (ptrdiff_t j = 0; j < strip->cols; j++) {
                const double z = NAME(col_norm_one)(x, residual, strip, j, w, b);
                NAME(put)(g + j, (REAL)(NAME(get)(dy + j) * slope_one(z, activation)));
            }
        else
#define SLOPED(STORED, KEPT)                                                                   \
    (STORED(dy) * COMPUTE(slope)(BEFORE_ACTIVATION(STORED, KEPT), activation))
            ALONG(g, SLOPED)
#undef SLOPED
        x += strip->pitch;
        dy += strip->pitch;
        g += strip->pitch;
        if (residual != NULL)
            residual += strip->pitch;
    }
}

#undef BEFORE_ACTIVATION
#undef NORMED

/* dx of one row, from the column coefficients that are packed. */
INLINE void NAME(col_grads_row)(STORE *dx, const STORE *dy, const STORE *x, const STORE *addend,
                                const Strip *strip, const Shared *shared, REAL w,
                                const int masked, int stream) {
    const ptrdiff_t len = strip->cols, room = strip->room;
    const REAL *hi = strip->packed, *rstd = hi + NORM_RSTD * room, *slope = hi + NORM_SLOPE * room;
    const REAL *g_hi = hi + NORM_G_HI * room, *g_lo = hi + NORM_G_LO * room;
#define COUNTED(v, KEPT) NAME(col_counted)(v, KEPT(rstd), masked)
#define GRADIENT(STORED, KEPT)                                                                 \
    (((w * COUNTED(STORED(dy), KEPT) - KEPT(g_hi)) -                                           \
      COUNTED(STORED(x) - KEPT(hi), KEPT) * KEPT(slope)) * KEPT(rstd) + KEPT(g_lo))
#define ADDED(STORED, KEPT) (GRADIENT(STORED, KEPT) + STORED(addend))
    if (addend == NULL)
        ALONG(dx, GRADIENT)
    else
        ALONG(dx, ADDED)
#undef ADDED
#undef GRADIENT
#undef COUNTED
}

/* One element of dx without addend, in float64. */
INLINE double NAME(col_grad_one)(const STORE *dy, const STORE *x, const Strip *strip, ptrdiff_t j,
                                 REAL w) {
    const double *hi = strip->exact + j, *rstd = hi + NORM_RSTD * strip->room;
    const double *slope = hi + NORM_SLOPE * strip->room, *g_hi = hi + NORM_G_HI * strip->room;
    const double *g_lo = hi + NORM_G_LO * strip->room;
    if (*rstd == 0.0)
        return 0.0;
    const double deviation = NAME(get)(x + j) - *hi;
    return ((w * (double)NAME(get)(dy + j) - *g_hi) - deviation * *slope) * *rstd + *g_lo;
}

/* dx may be dy, x or addend. */
KERNEL void NAME(col_grads)(void *to, const void *from_dy, const void *from_x,
                            const void *from_addend, const Strip *strip, const void *weight,
                            int stream) {
    STORE *dx = to;
    const STORE *dy = from_dy, *x = from_x, *addend = from_addend;
    for (ptrdiff_t r = 0; r < strip->rows; r++) {
        const REAL w = ((const REAL *)weight)[r];
        const Shared shared = NAME(col_shared)(strip, r);
        if (strip->wide)
            for (ptrdiff_t j = 0; j < strip->cols; j++) {
                const double found = NAME(col_grad_one)(dy, x, strip, j, w);
                NAME(put)(dx + j, (REAL)(addend == NULL ? found : found + NAME(get)(addend + j)));
            }
        else if (strip->masked)
            NAME(col_grads_row)(dx, dy, x, addend, strip, &shared, w, 1, stream);
        else
            NAME(col_grads_row)(dx, dy, x, addend, strip, &shared, w, 0, stream);
        x += strip->pitch;
        dy += strip->pitch;
        dx += strip->pitch;
        if (addend != NULL)
            addend += strip->pitch;
    }
}

static const Cols NAME(cols) = {
    sizeof(STORE),       sizeof(REAL),   NAME(col_shifts), NAME(col_sums),
    NAME(col_grad_sums), NAME(col_mend), NAME(col_pack),   NAME(col_apply),
    NAME(col_activation_grads), NAME(col_grads),
};

#undef PACKED
#undef ASK
#undef ALONG
#undef HEAD
#undef LINES
#undef REST
#undef PART
#undef WHOLE
#undef WHOLE_KEPT
#undef SOME
#undef SOME_KEPT
#undef LINE
#undef WIDTH
#undef VEC
#undef STORE
#undef COMPUTE
#undef NAME

#endif
