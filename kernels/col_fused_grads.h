/* The backward of a strip of columns through an activation (family cols): x and
   g = dy * activation'(norm(x) + residual) go to buffers of the type computed in, which the loops of
   cols.h take for x and dy. */

#ifndef STORE

#include "buffers.h"
#include "cols.h"

typedef struct {
    const Cols *cols; /* the loops that work on the buffers */
    /* Rows of the buffers lie `strip.room` elements apart. g_out may be NULL. g of masked columns
       is 0. */
    void (*slopes)(void *g, void *copy, void *g_out, const void *dy, const void *x,
                   const void *residual, const Strip *strip, const Affine *affine, int activation,
                   int stream);
    void (*round)(void *to, const void *from, const Strip *strip, int stream);
} FusedCols;

#define FUSED "col_fused_grads.h"
#define FUSED_HALVES f32
#include "fused_storages.h"

#else

#define NAME(f) PASTE(f, SUFFIX)
#define COMPUTE(f) PASTE(f, COMPUTED)
#define WIDTH ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))

/* One row, with a loop of its own for every activation. */
INLINE void NAME(col_slopes_of)(REAL *g, REAL *copy, const STORE *dy, const STORE *x,
                                const STORE *residual, const Strip *strip, REAL w, REAL b,
                                const int activation) {
    const REAL *hi = strip->packed, *lo = hi + NORM_LO * strip->room;
    const REAL *rstd = hi + NORM_RSTD * strip->room;
    const ptrdiff_t ahead = ROWS_TOGETHER * strip->pitch;
    ptrdiff_t j = 0;
#define SLOPED(STORED, KEPT, STORE_IN)                                                         \
    {                                                                                          \
        const NAME(vec) element = STORED(x);                                                   \
        NAME(vec) z = NAME(col_counted)(element - KEPT(hi), KEPT(rstd), 1);                    \
        z = (z * KEPT(rstd) + KEPT(lo)) * w + b;                                               \
        if (residual != NULL)                                                                  \
            z += STORED(residual);                                                             \
        STORE_IN(copy, element);                                                               \
        STORE_IN(g, COMPUTE(only_where)(KEPT(rstd) != 0, STORED(dy) * SLOPE_OF(z)));           \
    }
#define WHOLE(p) NAME(load)((p) + j)
#define WHOLE_KEPT(p) COMPUTE(load)((p) + j)
#define WHOLE_IN(p, v) COMPUTE(store)((p) + j, v)
#define SOME(p) NAME(load_some)((p) + j, strip->cols - j)
#define SOME_KEPT(p) COMPUTE(load_some)((p) + j, strip->cols - j)
#define SOME_IN(p, v) COMPUTE(store_some)((p) + j, v, strip->cols - j)
    for (; j + WIDTH <= strip->cols; j += WIDTH) {
        __builtin_prefetch(dy + ahead + j);
        __builtin_prefetch(x + ahead + j);
        SLOPED(WHOLE, WHOLE_KEPT, WHOLE_IN)
    }
    if (j < strip->cols)
        SLOPED(SOME, SOME_KEPT, SOME_IN)
#undef WHOLE
#undef WHOLE_KEPT
#undef WHOLE_IN
#undef SOME
#undef SOME_KEPT
#undef SOME_IN
#undef SLOPED
}

KERNEL void NAME(col_slopes)(void *to, void *to_copy, void *to_g, const void *from_dy,
                             const void *from_x, const void *from_residual, const Strip *strip,
                             const Affine *affine, int activation, int stream) {
    REAL *g = to, *copy = to_copy;
    STORE *g_out = to_g;
    const STORE *dy = from_dy, *x = from_x, *residual = from_residual;
    for (ptrdiff_t r = 0; r < strip->rows; r++) {
        const REAL w = ((const REAL *)affine->weight)[r], b = ((const REAL *)affine->bias)[r];
        if (strip->wide) {
            for (ptrdiff_t j = 0; j < strip->cols; j++) {
                if (strip->exact[NORM_RSTD * strip->room + j] == 0.0) {
                    g[j] = 0;
                    continue;
                }
                const double z = NAME(col_norm_one)(x, residual, strip, j, w, b);
                g[j] = (REAL)(NAME(get)(dy + j) * slope_one(z, activation));
            }
            NAME(widen_all)(copy, x, strip->cols);
        } else {
#define SLOPES(ACTIVATION)                                                                     \
    if (residual == NULL)                                                                      \
        NAME(col_slopes_of)(g, copy, dy, x, NULL, strip, w, b, ACTIVATION);                    \
    else                                                                                       \
        NAME(col_slopes_of)(g, copy, dy, x, residual, strip, w, b, ACTIVATION)
            FOR_EACH_ACTIVATION(activation, SLOPES)
#undef SLOPES
        }
        if (g_out != NULL) {
            NAME(round)(g_out, g, strip->cols, stream);
            g_out += strip->pitch;
        }
        g += strip->room;
        copy += strip->room;
        x += strip->pitch;
        dy += strip->pitch;
        if (residual != NULL)
            residual += strip->pitch;
    }
}

KERNEL void NAME(col_round)(void *to, const void *from, const Strip *strip, int stream) {
    STORE *out = to;
    const REAL *values = from;
    for (ptrdiff_t r = 0; r < strip->rows; r++)
        NAME(round)(out + r * strip->pitch, values + r * strip->room, strip->cols, stream);
}

static const FusedCols NAME(fused_cols) = {
    &COMPUTE(cols),
    NAME(col_slopes),
    NAME(col_round),
};

#undef WIDTH
#undef COMPUTE
#undef NAME

#endif
