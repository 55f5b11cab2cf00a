/* The backward of a run of one channel through an activation (family nchw).

   In chunks: g = dy * activation'(norm(x) + residual) goes to a buffer, and from there to the sums
   or the gradients of runs.h. The file includes itself once per storage type; the schedules reach
   it through the table `FusedRuns`. */

#ifndef STORE

#include "buffers.h"
#include "runs.h"

/* What g is made of, from the first element of a run on. */
typedef struct {
    const void *dy, *x, *residual; /* residual may be NULL */
    const Channel *before;         /* coefficients of what the activation was applied to */
    int activation;
} RunSlope;

typedef struct {
    ptrdiff_t computed; /* bytes of an element of `kept` */
    /* As grad_sums of runs.h; what of g is to be `kept`, unless that is NULL, goes there. */
    void (*sums)(double *lanes, void *kept, const RunSlope *at, ptrdiff_t len, double mean);
    /* g is `kept`, or computed anew if that is NULL. `constant`: dx is g times the scale. g may be
       NULL or dy; dx may be dy or x. */
    void (*grads)(void *dx, void *g, const void *kept, const RunSlope *at, ptrdiff_t len,
                  const Channel *channel, int constant, int stream);
} FusedRuns;

#define FUSED "run_fused_grads.h"
#define FUSED_HALVES w32
#include "fused_storages.h"

#else

#define NAME(f) PASTE(f, SUFFIX)
#define COMPUTE(f) PASTE(f, COMPUTED)
#define WIDTH ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))
#define AT(p, j) ((p) == NULL ? NULL : (p) + (j))

/* g = dy * activation'(norm(x) + residual), with a loop of its own for every activation. */
INLINE void NAME(run_slopes_of)(REAL *g, const STORE *dy, const STORE *x, const STORE *residual,
                                ptrdiff_t len, const Channel before, const int activation) {
    const REAL hi = (REAL)before.hi, lo = (REAL)before.lo;
    const REAL scale = (REAL)before.scale, bias = (REAL)before.bias;
#define BEFORE(READ) (((READ(x) - hi) - lo) * scale + bias)
#define SLOPED(READ)                                                                           \
    (READ(dy) * SLOPE_OF(residual == NULL ? BEFORE(READ) : BEFORE(READ) + READ(residual)))
#define WHOLE(p) NAME(load)((p) + j)
#define SOME(p) NAME(load_some)((p) + j, len - j)
    ptrdiff_t j = 0;
    for (; j + WIDTH <= len; j += WIDTH) {
        __builtin_prefetch(dy + j + BUFFER_AHEAD / sizeof(STORE));
        __builtin_prefetch(x + j + BUFFER_AHEAD / sizeof(STORE));
        COMPUTE(store)(g + j, SLOPED(WHOLE));
    }
    if (j < len)
        COMPUTE(store_some)(g + j, SLOPED(SOME), len - j);
#undef SOME
#undef WHOLE
#undef SLOPED
#undef BEFORE
}

/* g of elements i to i + len; of halves also wide = x. */
KERNEL void NAME(run_slopes)(REAL *g, REAL *wide, const RunSlope *at, ptrdiff_t i,
                             ptrdiff_t len) {
    const STORE *dy = (const STORE *)at->dy + i, *x = (const STORE *)at->x + i;
    const STORE *residual = AT((const STORE *)at->residual, i);
#ifdef HALF
    NAME(widen_all)(wide, x, len);
#endif
    if (at->before->kind != PLAIN_CHANNEL) {
        for (ptrdiff_t j = 0; j < len; j++) {
            const double z = NAME(before_activation_one)(x, residual, j, at->before);
            g[j] = (REAL)(NAME(get)(dy + j) * slope_one(z, at->activation));
        }
        return;
    }
#define SLOPES(ACTIVATION)                                                                     \
    if (residual == NULL)                                                                      \
        NAME(run_slopes_of)(g, dy, x, NULL, len, *at->before, ACTIVATION);                     \
    else                                                                                       \
        NAME(run_slopes_of)(g, dy, x, residual, len, *at->before, ACTIVATION)
    FOR_EACH_ACTIVATION(at->activation, SLOPES)
#undef SLOPES
}

KERNEL void NAME(fused_run_sums)(double *lanes, void *to_kept, const RunSlope *at, ptrdiff_t len,
                                 double mean) {
    REAL room[CHUNK], wide[CHUNK], *kept = to_kept;
    for (ptrdiff_t i = 0; i < len; i += CHUNK) {
        const ptrdiff_t k = len - i < CHUNK ? len - i : CHUNK;
        REAL *g = kept == NULL ? room : kept + i;
        NAME(run_slopes)(g, wide, at, i, k);
#ifdef HALF
        const REAL *x = wide;
#else
        const REAL *x = (const STORE *)at->x + i;
#endif
        const Summed of = {lanes, g, x, k, mean, 0};
        COMPUTE(run_grad_sums)(&of);
    }
}

KERNEL void NAME(fused_run_grads)(void *to_dx, void *to_g, const void *from_kept,
                                  const RunSlope *at, ptrdiff_t len, const Channel *channel,
                                  int constant, int stream) {
    REAL room[CHUNK], wide[CHUNK];
    STORE *dx = to_dx, *g_out = to_g;
    const REAL *kept = from_kept;
    /* All chunks but the first begin at a line of dx. */
    ptrdiff_t k = stream ? line_head(dx, sizeof(STORE), len) : 0;
    k = k == 0 ? CHUNK : k;
    for (ptrdiff_t i = 0; i < len; i += k, k = CHUNK) {
        k = len - i < k ? len - i : k;
        const REAL *g = room;
        if (kept == NULL)
            NAME(run_slopes)(room, wide, at, i, k);
        else
            g = kept + i;
        if (g_out != NULL)
            NAME(round)(g_out + i, g, k, stream);
#ifdef HALF
        if (kept != NULL && !constant)
            NAME(widen_all)(wide, (const STORE *)at->x + i, k);
        const REAL *x = wide;
        REAL *to = room;
        const int stream_to = 0;
#else
        const REAL *x = (const STORE *)at->x + i;
        REAL *to = dx + i;
        const int stream_to = stream;
#endif
        if (constant)
            COMPUTE(run_apply)(to, g, k, channel, stream_to, &APART);
        else
            COMPUTE(run_apply_grads)(to, g, x, k, channel, stream_to, &APART);
#ifdef HALF
        NAME(round)(dx + i, room, k, stream);
#endif
    }
}

static const FusedRuns NAME(fused_runs) = {
    sizeof(REAL),
    NAME(fused_run_sums),
    NAME(fused_run_grads),
};

#undef AT
#undef WIDTH
#undef COMPUTE
#undef NAME

#endif
