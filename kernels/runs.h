/* Arithmetic on one run of contiguous elements of one channel (family nchw).

   The file includes itself once per storage type: NAME(f) is f_f32, f_f64, f_f16 or f_bf16, STORE
   is what memory holds, REAL what is computed in, and the schedules reach them through the table
   `Runs` of their storage type. Sums are carried in LANES lanes of doubles, so that short runs of
   one channel (7x7 planes) share one set of lanes and are reduced once. */

#ifndef REAL

#include "activation.h"
#include "layer.h"
#include "partial.h"

/* A run of which sums go to `lanes`. */
typedef struct {
    double *lanes;
    const void *dy, *x; /* dy: of gradients */
    ptrdiff_t len;
    double shift;   /* of gradients: the mean */
    ptrdiff_t next; /* elements from this run to the one that is asked for meanwhile */
} Summed;

typedef struct {
    double (*first_shift)(const void *x, ptrdiff_t n, ptrdiff_t len, ptrdiff_t stride);
    /* lanes[0:LANES] += x - shift, lanes[LANES:] += (x - shift)^2. */
    void (*sums)(const Summed *of);
    /* lanes[0:LANES] += dy, the next LANES += dy * (x - mean), the last += x - mean. */
    void (*grad_sums)(const Summed *of);
    void (*apply)(void *y, const void *x, ptrdiff_t len, const Channel *channel, int stream,
                  const Shared *shared);
    void (*apply_fused)(void *y, const void *x, const void *residual, ptrdiff_t len,
                        const Channel *channel, int activation, int stream,
                        const Shared *shared);
    void (*apply_grads)(void *dx, const void *dy, const void *x, ptrdiff_t len,
                        const Channel *channel, int stream, const Shared *shared);
    void (*activation_grads)(void *g, const void *dy, const void *x, const void *residual,
                             ptrdiff_t len, const Channel *channel, int activation, int stream,
                             const Shared *shared);
    /* apply and sums, apply_grads and grad_sums, line by line in turns, streamed. */
    void (*apply_and_sum)(void *y, const void *x, ptrdiff_t len, const Channel *channel,
                          const Shared *shared, const Summed *of);
    void (*apply_and_sum_grads)(void *dx, const void *dy, const void *x, ptrdiff_t len,
                                const Channel *channel, const Shared *shared, const Summed *of);
} Runs;

/* Two threads read 128 MB at 45 GB/s, and at 53 to 57 if lines are asked for 1 to 32 KB ahead. Where
   another run is written meanwhile, 4 KB took 0.02 to 0.04 of the triad less than 8, and 2 KB more
   in bfloat16. */
#define AHEAD_BYTES 4096

#define REAL float
#define SUFFIX f32
#include "runs.h"
#undef SUFFIX
#define HALF
#define SUFFIX f16
#include "runs.h"
#undef SUFFIX
#define SUFFIX bf16
#include "runs.h"
#undef SUFFIX
#define SUFFIX w32
#include "runs.h"
#undef SUFFIX
#undef HALF
#undef REAL
#define REAL double
#define SUFFIX f64
#include "runs.h"
#undef SUFFIX
#undef REAL

#else

#define NAME(f) PASTE(f, SUFFIX)
#define STORE NAME(store_t)
#define VEC NAME(vec)
#define GET NAME(get)
#define LOAD NAME(load)
#define WIDTH ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))
#define LINE (64 / (ptrdiff_t)sizeof(STORE))
#define STREAMED (LINE < 2 * WIDTH ? 2 * WIDTH : LINE)

/* The shift of a channel of n runs of len elements, `stride` elements apart. */
KERNEL double NAME(first_shift)(const void *from, ptrdiff_t n, ptrdiff_t len, ptrdiff_t stride) {
    const STORE *x = from;
    const ptrdiff_t taken = few(len), middle = n / 2 * stride + (len - taken) / 2;
    return median3(NAME(short_mean)(x, 1, taken), NAME(short_mean)(x + middle, 1, taken),
                   NAME(short_mean)(x + (n - 1) * stride + len - taken, 1, taken));
}

/* Elements to look ahead from element i of a run: AHEAD_BYTES in this run, up to its element `turn`;
   then `beyond`. Where runs are shorter, that is the run of which the caller says that it starts
   `next` elements after this one. */
typedef struct {
    ptrdiff_t turn, beyond;
} NAME(Ahead);

INLINE NAME(Ahead) NAME(ahead_of)(ptrdiff_t len, ptrdiff_t next) {
    const ptrdiff_t turn = len - AHEAD_BYTES / (ptrdiff_t)sizeof(STORE);
    const NAME(Ahead) found = {turn, turn < 0 ? next : next - turn};
    return found;
}

INLINE ptrdiff_t NAME(look_ahead)(ptrdiff_t i, NAME(Ahead) ahead) {
    return i < ahead.turn ? AHEAD_BYTES / (ptrdiff_t)sizeof(STORE) : ahead.beyond;
}

#include "run_sums.h"

/* ALONG(OUT, VALUE): OUT[i] = VALUE(READ) for i < len, where READ(p) are the elements of p from i on:
   of a vector, of either vector of a pair, or the first k of a vector. A streamed run is stored line
   by line from its first whole line on; a line that begins or ends in another run waits in `shared`.
   (32, 1024, 14, 14) took 1.40 of the copy forward and 1.15 to apply, where each run stored its own
   part of such lines. */
#define WHOLE(p) LOAD((p) + i)
#define FIRST(p) NAME(first_of_pair)((p) + i)
#define SECOND(p) NAME(second_of_pair)((p) + i)
#define SOME(p) NAME(load_some)((p) + i, k)
/* Halves that are streamed are asked for 2 KB ahead, within their run: gradients from memory took 1.4
   of the triad, and 1.05 so. Floats, which convert nothing, gained nothing. */
#ifdef HALF
#define AT_LATER (2048 / (ptrdiff_t)sizeof(STORE))
#define ASK(p) (__builtin_prefetch((p) + (i + AT_LATER < len ? i + AT_LATER : i)), (VEC){0})
#else
#define ASK(p) ((VEC){0})
#endif
#define PART(OUT, END, VALUE)                                                                  \
    while (i < (END)) {                                                                        \
        const ptrdiff_t k = (END) - i < WIDTH ? (END) - i : WIDTH;                             \
        NAME(store_some)((OUT) + i, VALUE(SOME), k);                                           \
        i += k;                                                                                \
    }
/* What is done between two lines: nothing, or the steps of a sum. */
#define MEANWHILE
#define STEPS(STEP_OF)                                                                         \
    while (s.i <= i && s.i + STEP <= s.len)                                                    \
        STEP_OF(&s);
#define ALONG(OUT, VALUE)                                                                      \
    {                                                                                          \
        STORE *line = (STORE *)shared->line, *behind = OUT;                                    \
        ptrdiff_t i = 0;                                                                       \
        if (stream) {                                                                          \
            const ptrdiff_t head = line_head(OUT, sizeof(STORE), len);                         \
            PART(shared->began ? line + (LINE - head) : OUT, head, VALUE)                      \
            if (shared->began)                                                                 \
                for (ptrdiff_t e = 0; e < LINE; e += WIDTH)                                    \
                    NAME(stream)(OUT + (head - LINE) + e, LOAD(line + e));                     \
            while (i + STREAMED <= len) {                                                      \
                MEANWHILE                                                                      \
                (void)VALUE(ASK);                                                              \
                for (const ptrdiff_t end = i + STREAMED; i < end; i += 2 * WIDTH)              \
                    NAME(stream_pair)(OUT + i, VALUE(FIRST), VALUE(SECOND));                   \
            }                                                                                  \
            for (; LINE == WIDTH && i + LINE <= len; i += LINE)                                \
                NAME(stream)(OUT + i, VALUE(WHOLE));                                           \
            if (shared->goes_on)                                                               \
                behind = line - i;                                                             \
        } else {                                                                               \
            for (; i + 2 * WIDTH <= len; i += 2 * WIDTH) {                                     \
                const VEC first = VALUE(FIRST), second = VALUE(SECOND);                        \
                NAME(store_pair)(OUT + i, first, second);                                      \
            }                                                                                  \
        }                                                                                      \
        for (; i + WIDTH <= len; i += WIDTH)                                                   \
            NAME(store)(behind + i, VALUE(WHOLE));                                             \
        PART(behind, len, VALUE)                                                               \
    }

#define NORM(READ) (((READ(x) - hi) - lo) * scale + bias)
#define BEFORE_ACTIVATION(READ) (residual == NULL ? NORM(READ) : NORM(READ) + READ(residual))
#define CONSTANTS                                                                              \
    const REAL hi = (REAL)channel->hi, lo = (REAL)channel->lo;                                 \
    const REAL scale = (REAL)channel->scale, bias = (REAL)channel->bias;
#define GRADIENT(READ)                                                                         \
    ((READ(dy) - dy_shift) * scale - (((READ(x) - hi) - lo) * slope + rest))
#define GRADIENT_CONSTANTS                                                                     \
    const REAL hi = (REAL)channel->hi, lo = (REAL)channel->lo;                                 \
    const REAL scale = (REAL)channel->scale, slope = (REAL)channel->slope;                     \
    const REAL dy_shift = (REAL)channel->dy_shift, rest = (REAL)channel->rest;

/* y = ((x - hi) - lo) * scale + bias. y may be x. */
KERNEL void NAME(run_apply)(void *to, const void *from, ptrdiff_t len, const Channel *channel,
                            int stream, const Shared *shared) {
    STORE *y = to;
    const STORE *x = from;
    if (channel->kind != PLAIN_CHANNEL) {
        for (ptrdiff_t j = 0; j < len; j++)
            NAME(put)(y + j, (REAL)norm_of(channel, GET(x + j)));
        return;
    }
    CONSTANTS
    ALONG(y, NORM)
}

/* What the activation is applied to, of one element, in float64. */
INLINE double NAME(before_activation_one)(const STORE *x, const STORE *residual, ptrdiff_t j,
                                          const Channel *channel) {
    const double z = norm_of(channel, GET(x + j));
    return residual == NULL ? z : z + GET(residual + j);
}

/* y = activation(((x - hi) - lo) * scale + bias + residual). y may be x or residual. */
KERNEL void NAME(run_apply_fused)(void *to, const void *from, const void *from_residual,
                                  ptrdiff_t len, const Channel *channel, int activation,
                                  int stream, const Shared *shared) {
    STORE *y = to;
    const STORE *x = from, *residual = from_residual;
    if (channel->kind != PLAIN_CHANNEL) {
        for (ptrdiff_t j = 0; j < len; j++) {
            const double z = NAME(before_activation_one)(x, residual, j, channel);
            NAME(put)(y + j, (REAL)activate_one(z, activation));
        }
        return;
    }
    CONSTANTS
#define ACTIVATED(READ) ACTIVATE(BEFORE_ACTIVATION(READ))
    ALONG(y, ACTIVATED)
#undef ACTIVATED
}

/* g = dy * activation'(((x - hi) - lo) * scale + bias + residual). g may be dy, x or residual. */
KERNEL void NAME(run_activation_grads)(void *to, const void *from_dy, const void *from_x,
                                       const void *from_residual, ptrdiff_t len,
                                       const Channel *channel, int activation, int stream,
                                       const Shared *shared) {
    STORE *g = to;
    const STORE *dy = from_dy, *x = from_x, *residual = from_residual;
    if (channel->kind != PLAIN_CHANNEL) {
        for (ptrdiff_t j = 0; j < len; j++) {
            const double z = NAME(before_activation_one)(x, residual, j, channel);
            NAME(put)(g + j, (REAL)(GET(dy + j) * slope_one(z, activation)));
        }
        return;
    }
    CONSTANTS
#define SLOPED(READ) (READ(dy) * SLOPE_OF(BEFORE_ACTIVATION(READ)))
    ALONG(g, SLOPED)
#undef SLOPED
}

/* dx = (dy - dy_shift) * scale - (((x - hi) - lo) * slope + rest). dx may be dy or x. */
KERNEL void NAME(run_apply_grads)(void *to, const void *from_dy, const void *from_x, ptrdiff_t len,
                                  const Channel *channel, int stream, const Shared *shared) {
    STORE *dx = to;
    const STORE *dy = from_dy, *x = from_x;
    if (channel->kind != PLAIN_CHANNEL) {
        for (ptrdiff_t j = 0; j < len; j++)
            NAME(put)(dx + j, (REAL)grad_of(channel, GET(dy + j), GET(x + j)));
        return;
    }
    GRADIENT_CONSTANTS
    ALONG(dx, GRADIENT)
}

#undef MEANWHILE
#define MEANWHILE STEPS(NAME(step_of_sums))
/* Reads the next channel from memory while this one is written from the cache. */
KERNEL void NAME(run_apply_and_sum)(void *to, const void *from, ptrdiff_t len,
                                    const Channel *channel, const Shared *shared,
                                    const Summed *of) {
    NAME(Sums) s = NAME(sums_of)(of);
    const int stream = 1;
    if (channel->kind != PLAIN_CHANNEL) {
        NAME(run_apply)(to, from, len, channel, stream, shared);
    } else {
        STORE *y = to;
        const STORE *x = from;
        CONSTANTS
        ALONG(y, NORM)
    }
    NAME(end_sums)(&s);
}

#undef MEANWHILE
#define MEANWHILE STEPS(NAME(step_of_grad_sums))
KERNEL void NAME(run_apply_and_sum_grads)(void *to, const void *from_dy, const void *from_x,
                                          ptrdiff_t len, const Channel *channel,
                                          const Shared *shared, const Summed *of) {
    NAME(GradSums) s = NAME(grad_sums_of)(of);
    const int stream = 1;
    if (channel->kind != PLAIN_CHANNEL) {
        NAME(run_apply_grads)(to, from_dy, from_x, len, channel, stream, shared);
    } else {
        STORE *dx = to;
        const STORE *dy = from_dy, *x = from_x;
        GRADIENT_CONSTANTS
        ALONG(dx, GRADIENT)
    }
    NAME(end_grad_sums)(&s);
}

static const Runs NAME(runs) = {
    NAME(first_shift),     NAME(run_sums),        NAME(run_grad_sums),        NAME(run_apply),
    NAME(run_apply_fused), NAME(run_apply_grads), NAME(run_activation_grads),
    NAME(run_apply_and_sum), NAME(run_apply_and_sum_grads),
};

#undef STEP
#undef ADD_PRODUCT
#undef FLUSH
#undef BLOCK_ENDS
#undef ACC_REAL
#undef READ_OF
#undef ACC_READ
#undef ACC_WIDTH
#undef ACC
#undef GRADIENT_CONSTANTS
#undef GRADIENT
#undef CONSTANTS
#undef BEFORE_ACTIVATION
#undef NORM
#undef ALONG
#undef STEPS
#undef MEANWHILE
#undef PART
#undef ASK
#undef AT_LATER
#undef SOME
#undef SECOND
#undef FIRST
#undef WHOLE
#undef STREAMED
#undef LINE
#undef WIDTH
#undef LOAD
#undef GET
#undef VEC
#undef STORE
#undef NAME

#endif
