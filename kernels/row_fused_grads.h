/* The backward of rows through an activation (family rows): g = dy * activation'(norm(x) + residual)
   of some rows goes to a buffer, and x to another, which the sums and the gradients of rows.h take for
   dy and x. There rows lie an odd number of lines apart, because 8 rows of 4 KB share few sets of
   the cache. What those loops ask for ahead lies behind the buffer of x in that of g, and behind that
   in a third one that has been written to: to ask for pages that are not there took the longest of
   all, 0.5 us of the 0.9 us of a row of 768. */

#ifndef STORE

#include "buffers.h"
#include "rows.h"

/* The storage type's part of it. What is in a buffer is worked on by the loops of `rows`. */
typedef struct {
    const Rows *rows;
    void (*slopes)(void *g, void *wide, const void *dy, const void *x, const void *residual,
                   ptrdiff_t len, const Norm *row, const Affine *affine, int activation);
    void (*round)(void *to, const void *from, ptrdiff_t len, int stream);
} FusedRows;

#define FUSED "row_fused_grads.h"
#define FUSED_HALVES w32
#include "fused_storages.h"

#else

#define NAME(f) PASTE(f, SUFFIX)
#define COMPUTE(f) PASTE(f, COMPUTED)
#define WIDTH ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))

/* With a loop of its own for every activation. */
INLINE void NAME(row_slopes_of)(REAL *g, REAL *wide, const STORE *dy, const STORE *x,
                                const STORE *residual, ptrdiff_t len, const Norm *row,
                                const REAL *weight, const REAL *bias, const int activation) {
    const REAL hi = (REAL)row->hi, rstd = (REAL)row->rstd, left = (REAL)(-row->lo * row->rstd);
    ptrdiff_t j = 0;
#define SLOPED(STORED, KEPT, STORE_IN)                                                         \
    {                                                                                          \
        const NAME(vec) element = STORED(x);                                                   \
        NAME(vec) z = ((element - hi) * rstd + left) * KEPT(weight) + KEPT(bias);              \
        if (residual != NULL)                                                                  \
            z += STORED(residual);                                                             \
        STORE_IN(wide, element);                                                               \
        STORE_IN(g, STORED(dy) * SLOPE_OF(z));                                                 \
    }
#define WHOLE(p) NAME(load)((p) + j)
#define WHOLE_KEPT(p) COMPUTE(load)((p) + j)
#define WHOLE_IN(p, v) COMPUTE(store)((p) + j, v)
#define SOME(p) NAME(load_some)((p) + j, len - j)
#define SOME_KEPT(p) COMPUTE(load_some)((p) + j, len - j)
#define SOME_IN(p, v) COMPUTE(store_some)((p) + j, v, len - j)
    for (; j + WIDTH <= len; j += WIDTH) {
        __builtin_prefetch(dy + j + BUFFER_AHEAD / sizeof(STORE));
        __builtin_prefetch(x + j + BUFFER_AHEAD / sizeof(STORE));
        SLOPED(WHOLE, WHOLE_KEPT, WHOLE_IN)
    }
    if (j < len)
        SLOPED(SOME, SOME_KEPT, SOME_IN)
#undef WHOLE
#undef WHOLE_KEPT
#undef WHOLE_IN
#undef SOME
#undef SOME_KEPT
#undef SOME_IN
#undef SLOPED
}

KERNEL void NAME(row_slopes)(void *to, void *to_wide, const void *from_dy, const void *from_x,
                             const void *from_residual, ptrdiff_t len, const Norm *row,
                             const Affine *affine, int activation) {
    REAL *g = to, *wide = to_wide;
    const STORE *dy = from_dy, *x = from_x, *residual = from_residual;
    const REAL *weight = affine->weight, *bias = affine->bias;
    if (row->wide || row->rstd == 0.0) {
        for (ptrdiff_t j = 0; j < len; j++) {
            const double z = NAME(row_norm_one)(x, residual, j, row, affine);
            g[j] = (REAL)(NAME(get)(dy + j) * slope_one(z, activation));
        }
        NAME(widen_all)(wide, x, len);
        return;
    }
#define SLOPES(ACTIVATION)                                                                     \
    if (residual == NULL)                                                                      \
        NAME(row_slopes_of)(g, wide, dy, x, NULL, len, row, weight, bias, ACTIVATION);         \
    else                                                                                       \
        NAME(row_slopes_of)(g, wide, dy, x, residual, len, row, weight, bias, ACTIVATION)
    FOR_EACH_ACTIVATION(activation, SLOPES)
#undef SLOPES
}

KERNEL void NAME(row_round)(void *to, const void *from, ptrdiff_t len, int stream) {
    NAME(round)(to, from, len, stream);
}

static const FusedRows NAME(fused_rows) = {
    &COMPUTE(rows),
    NAME(row_slopes),
    NAME(row_round),
};

#undef WIDTH
#undef COMPUTE
#undef NAME

#endif
