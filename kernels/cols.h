/* Arithmetic on columns that are normalized along themselves (family cols): layer and RMS norm over
   an axis that is not the last.

   A strip is some adjacent columns of m rows, `pitch` elements apart. mean and rstd belong to its
   columns, weight and bias to its rows. Per-column values are arrays of at least `cols` elements.
   The file includes itself once per storage type; the schedules reach it through the table `Cols`.
   Masked columns have rstd 0 and all other coefficients 0. */

#ifndef REAL

#include "activation.h"
#include "layer.h"
#include "partial.h"

/* The coefficients of a strip's columns in the type that is computed in, one array each. */
enum { NORM_HI, NORM_LO, NORM_RSTD, NORM_SLOPE, NORM_G_HI, NORM_G_LO, NORM_VALUES };

typedef struct {
    ptrdiff_t rows, cols, pitch;
    ptrdiff_t room;     /* elements from one array of coefficients to the next */
    const void *packed; /* NORM_VALUES of them */
    const Norm *norms;  /* the same in float64, or NULL: no column is wide */
    const double *exact; /* (3, room): mean, what it has beyond, rstd */
} Strip;

typedef struct {
    ptrdiff_t computed; /* bytes of one coefficient */
    void (*first_shifts)(double *shift, const void *x, const Strip *strip);
    /* sum, square: arrays of `room` */
    void (*sums)(double *sums, const void *x, const Strip *strip, const double *shift);
    /* sum, product, rest: arrays of `room` */
    void (*grad_sums)(double *sums, const void *dy, const void *x, const double *weight,
                      const Strip *strip, const double *mean);
    void (*pack)(void *packed, ptrdiff_t room, ptrdiff_t column, const Norm *norm);
    void (*apply)(void *y, const void *x, const void *residual, const Strip *strip,
                  const Affine *affine, int activation, int stream);
    void (*activation_grads)(void *g, const void *dy, const void *x, const void *residual,
                             const Strip *strip, const Affine *affine, int activation, int stream);
    void (*grads)(void *dx, const void *dy, const void *x, const void *addend, const Strip *strip,
                  const void *weight, double *dweight, double *dbias, int stream);
} Cols;

/* Rows that share one load and store of the columns' totals, and are asked for ahead. */
enum { ROWS_TOGETHER = 8 };
/* Vectors of columns whose sums stay in registers. */
#if VECTOR_BYTES == 64
#define COL_VECTORS 4
#else
#define COL_VECTORS 2
#endif

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

KERNEL void NAME(col_pack)(void *packed, ptrdiff_t room, ptrdiff_t column, const Norm *norm) {
    REAL *p = (REAL *)packed + column;
    p[NORM_HI * room] = (REAL)norm->hi;
    p[NORM_LO * room] = (REAL)norm->lo;
    p[NORM_RSTD * room] = (REAL)norm->rstd;
    p[NORM_SLOPE * room] = (REAL)norm->slope;
    p[NORM_G_HI * room] = (REAL)norm->mean_g_hi;
    p[NORM_G_LO * room] = (REAL)norm->mean_g_lo;
}

/* Goes along one row of a strip, as ALONG of rows.h: VALUE(STORED, KEPT) of elements j on. */
#define WHOLE(p) NAME(load)((p) + j)
#define WHOLE_KEPT(p) COMPUTE(load)((p) + j)
#define SOME(p) NAME(load_some)((p) + j, k)
#define SOME_KEPT(p) COMPUTE(load_some)((p) + j, k)
#define ALONG(OUT, VALUE)                                                                      \
    {                                                                                          \
        ptrdiff_t j = 0;                                                                       \
        if (cols >= 4 * LINE) {                                                                \
            const ptrdiff_t head = line_head(OUT, sizeof(STORE), cols);                        \
            while (j < head) {                                                                 \
                const ptrdiff_t k = head - j < WIDTH ? head - j : WIDTH;                       \
                NAME(store_some)(OUT + j, VALUE(SOME, SOME_KEPT), k);                          \
                j += k;                                                                        \
            }                                                                                  \
            if (stream)                                                                        \
                for (; j + LINE <= cols;)                                                      \
                    for (const ptrdiff_t end = j + LINE; j < end; j += WIDTH)                  \
                        NAME(stream)(OUT + j, VALUE(WHOLE, WHOLE_KEPT));                       \
        }                                                                                      \
        for (; j + WIDTH <= cols; j += WIDTH)                                                  \
            NAME(store)(OUT + j, VALUE(WHOLE, WHOLE_KEPT));                                    \
        if (j < cols) {                                                                        \
            const ptrdiff_t k = cols - j;                                                      \
            NAME(store_some)(OUT + j, VALUE(SOME, SOME_KEPT), k);                              \
        }                                                                                      \
    }

/* Where rstd is 0, whatever x is, 0. */
INLINE VEC NAME(col_deviation)(VEC x, VEC hi, VEC lo, VEC rstd) {
    return COMPUTE(only_where)(rstd != 0, (x - hi) - lo);
}
INLINE double NAME(col_norm_one)(const STORE *x, const STORE *residual, const Norm *norm, REAL w,
                                 REAL b) {
    const double x_hat = norm->rstd == 0.0 ? 0.0
                                           : ((NAME(get)(x) - norm->hi) - norm->lo) * norm->rstd;
    const double z = x_hat * w + b;
    return residual == NULL ? z : z + NAME(get)(residual);
}

#define PACKED                                                                                 \
    const ptrdiff_t cols = strip->cols;                                                        \
    const REAL *hi = strip->packed, *lo = hi + NORM_LO * strip->room;                          \
    const REAL *rstd = hi + NORM_RSTD * strip->room
#define NORMED(STORED, KEPT)                                                                   \
    (NAME(col_deviation)(STORED(x), KEPT(hi), KEPT(lo), KEPT(rstd)) * KEPT(rstd) * w + b)
#define BEFORE_ACTIVATION(STORED, KEPT)                                                        \
    (residual == NULL ? NORMED(STORED, KEPT) : NORMED(STORED, KEPT) + STORED(residual))

/* y = activation(((x - hi) - lo) * rstd * weight + bias + residual). y may be x or residual. */
KERNEL void NAME(col_apply)(void *to, const void *from, const void *from_residual,
                            const Strip *strip, const Affine *affine, int activation,
                            int stream) {
    PACKED;
    STORE *y = to;
    const STORE *x = from, *residual = from_residual;
    for (ptrdiff_t r = 0; r < strip->rows; r++) {
        const REAL w = ((const REAL *)affine->weight)[r], b = ((const REAL *)affine->bias)[r];
        if (strip->norms != NULL)
            for (ptrdiff_t j = 0; j < cols; j++) {
                const double z = NAME(col_norm_one)(x + j, residual == NULL ? NULL : residual + j,
                                                    strip->norms + j, w, b);
                NAME(put)(y + j, (REAL)activate_one(z, activation));
            }
        else if (residual == NULL && activation == IDENTITY)
            ALONG(y, NORMED)
        else
#define ACTIVATED(STORED, KEPT) COMPUTE(activate)(BEFORE_ACTIVATION(STORED, KEPT), activation)
            ALONG(y, ACTIVATED)
#undef ACTIVATED
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
    STORE *g = to;
    const STORE *dy = from_dy, *x = from_x, *residual = from_residual;
    for (ptrdiff_t r = 0; r < strip->rows; r++) {
        const REAL w = ((const REAL *)affine->weight)[r], b = ((const REAL *)affine->bias)[r];
        if (strip->norms != NULL)
            for (ptrdiff_t j = 0; j < cols; j++) {
                const double z = NAME(col_norm_one)(x + j, residual == NULL ? NULL : residual + j,
                                                    strip->norms + j, w, b);
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

/* What a row adds to dweight and dbias, in float64: rounded to float32, the terms of columns that
   repeat 16 were off by 4e-6 of dweight's norm. */
INLINE void NAME(col_terms)(double *dweight, double *dbias, const STORE *dy, const STORE *x,
                            const Strip *strip) {
    const double *mean = strip->exact, *rest = mean + strip->room, *rstd = rest + strip->room;
    vec_f64 products[2] = {{0}}, sums[2] = {{0}};
    ptrdiff_t j = 0;
    for (; j + 2 * DOUBLES <= strip->cols; j += 2 * DOUBLES)
        UNROLLED
        for (int u = 0; u < 2; u++) {
            const ptrdiff_t at = j + u * DOUBLES;
            const vec_f64 scale = load_f64(rstd + at);
            const vec_f64 gradient = only_where_f64(scale != 0, NAME(widen)(dy + at));
            vec_f64 deviation = NAME(widen)(x + at) - load_f64(mean + at);
            if (sizeof(REAL) == 8)
                deviation -= load_f64(rest + at);
            products[u] += gradient * (only_where_f64(scale != 0, deviation) * scale);
            sums[u] += gradient;
        }
    for (; j < strip->cols; j++)
        if (rstd[j] != 0.0) {
            const double gradient = NAME(get)(dy + j);
            *dweight += gradient * (((NAME(get)(x + j) - mean[j]) - rest[j]) * rstd[j]);
            *dbias += gradient;
        }
    *dweight += vector_sum(products[0] + products[1]);
    *dbias += vector_sum(sums[0] + sums[1]);
}

INLINE VEC NAME(col_grad)(VEC dy, VEC x, VEC hi, VEC lo, VEC rstd, VEC slope, VEC mean_hi,
                          VEC mean_lo, REAL w) {
    const VEC gradient = COMPUTE(only_where)(rstd != 0, dy);
    const VEC deviation = NAME(col_deviation)(x, hi, lo, rstd);
    return rstd * ((w * gradient - mean_hi) - (deviation * slope + mean_lo));
}

/* dx, and what the strip adds to dweight and dbias. dx may be dy, x or addend. */
KERNEL void NAME(col_grads)(void *to, const void *from_dy, const void *from_x,
                            const void *from_addend, const Strip *strip, const void *weight,
                            double *dweight, double *dbias, int stream) {
    PACKED;
    const REAL *slope = hi + NORM_SLOPE * strip->room, *g_hi = hi + NORM_G_HI * strip->room;
    const REAL *g_lo = hi + NORM_G_LO * strip->room;
    STORE *dx = to;
    const STORE *dy = from_dy, *x = from_x, *addend = from_addend;
    for (ptrdiff_t r = 0; r < strip->rows; r++) {
        const REAL w = ((const REAL *)weight)[r];
        if (strip->norms != NULL) {
            for (ptrdiff_t j = 0; j < cols; j++) {
                const Norm *norm = strip->norms + j;
                const int counts = norm->rstd != 0.0;
                const double gradient = counts ? NAME(get)(dy + j) : 0.0;
                const double deviation =
                    counts ? (NAME(get)(x + j) - norm->hi) - norm->lo : 0.0;
                const double found =
                    norm->rstd * ((w * gradient - norm->mean_g_hi) -
                                  (deviation * norm->slope + norm->mean_g_lo));
                dweight[r] += gradient * (deviation * norm->rstd);
                dbias[r] += gradient;
                NAME(put)(dx + j, (REAL)(addend == NULL ? found : found + NAME(get)(addend + j)));
            }
        } else {
            NAME(col_terms)(dweight + r, dbias + r, dy, x, strip);
#define GRADIENT(STORED, KEPT)                                                                 \
    NAME(col_grad)(STORED(dy), STORED(x), KEPT(hi), KEPT(lo), KEPT(rstd), KEPT(slope),         \
                   KEPT(g_hi), KEPT(g_lo), w)
#define ADDED(STORED, KEPT) (GRADIENT(STORED, KEPT) + STORED(addend))
            if (addend == NULL)
                ALONG(dx, GRADIENT)
            else
                ALONG(dx, ADDED)
#undef ADDED
#undef GRADIENT
        }
        x += strip->pitch;
        dy += strip->pitch;
        dx += strip->pitch;
        if (addend != NULL)
            addend += strip->pitch;
    }
}

static const Cols NAME(cols) = {
    sizeof(REAL),   NAME(col_shifts),           NAME(col_sums),  NAME(col_grad_sums),
    NAME(col_pack), NAME(col_apply), NAME(col_activation_grads), NAME(col_grads),
};

#undef PACKED
#undef ALONG
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
