/* Arithmetic on one run of contiguous elements of one channel (family nchw).

   The file includes itself once per storage type: NAME(f) is f_f32, f_f64, f_f16 or f_bf16, STORE
   is what memory holds, REAL what is computed in, and the schedules reach them through the table
   `Runs` of their storage type. Sums are carried in LANES lanes of doubles, so that short runs of
   one channel (7x7 planes) share one set of lanes and are reduced once. */

#ifndef REAL

#include "activation.h"
#include "simd.h"

typedef struct {
    double (*first_shift)(const void *x, ptrdiff_t n, ptrdiff_t len, ptrdiff_t stride);
    void (*sums)(double *lanes, const void *x, ptrdiff_t len, double shift, ptrdiff_t next);
    void (*grad_sums)(double *lanes, const void *dy, const void *x, ptrdiff_t len, double mean,
                      ptrdiff_t next);
    void (*apply)(void *y, const void *x, ptrdiff_t len, const Channel *channel, int stream);
    void (*apply_fused)(void *y, const void *x, const void *residual, ptrdiff_t len,
                        const Channel *channel, int activation, int stream);
    void (*apply_grads)(void *dx, const void *dy, const void *x, ptrdiff_t len,
                        const Channel *channel, int stream);
    void (*activation_grads)(void *g, const void *dy, const void *x, const void *residual,
                             ptrdiff_t len, const Channel *channel, int activation, int stream);
} Runs;

/* Two threads read 128 MB at 45 GB/s, and at 53 to 57 if lines are asked for 1 to 32 KB ahead. */
#define AHEAD_BYTES 8192

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

/* Goes through a run: OUT[i] = VECTOR(i) for whole vectors, FEW(i, k) for k elements at the ends. A
   streamed run is stored line by line from its first whole line on. */
#define ALONG(OUT, VECTOR, FEW)                                                                \
    ptrdiff_t i = 0;                                                                           \
    if (stream) {                                                                              \
        i = line_head(OUT, sizeof(STORE), len);                                                \
        FEW(0, i);                                                                             \
        for (; i + LINE <= len; i += LINE)                                                     \
            for (ptrdiff_t j = i; j < i + LINE; j += WIDTH)                                    \
                NAME(stream)(OUT + j, VECTOR(j));                                              \
    } else {                                                                                   \
        for (; i + 2 * WIDTH <= len; i += 2 * WIDTH) {                                         \
            const VEC first = VECTOR(i), second = VECTOR(i + WIDTH);                           \
            NAME(store)(OUT + i, first);                                                       \
            NAME(store)(OUT + i + WIDTH, second);                                              \
        }                                                                                      \
    }                                                                                          \
    for (; i + WIDTH <= len; i += WIDTH)                                                       \
        NAME(store)(OUT + i, VECTOR(i));                                                       \
    FEW(i, len - i);

/* y = ((x - hi) - lo) * scale + bias. y may be x. */
KERNEL void NAME(run_apply)(void *to, const void *from, ptrdiff_t len, const Channel *channel,
                            int stream) {
    STORE *y = to;
    const STORE *x = from;
    if (channel->kind != PLAIN_CHANNEL) {
        for (ptrdiff_t j = 0; j < len; j++)
            NAME(put)(y + j, (REAL)norm_of(channel, GET(x + j)));
        return;
    }
    const REAL hi = (REAL)channel->hi, lo = (REAL)channel->lo;
    const REAL scale = (REAL)channel->scale, bias = (REAL)channel->bias;
#define VALUE(READ, j) (((READ(x + (j)) - hi) - lo) * scale + bias)
#define VECTOR(j) VALUE(LOAD, j)
#define FEW(j, k)                                                                              \
    for (ptrdiff_t e = j; e < (j) + (k); e++)                                                  \
    NAME(put)(y + e, VALUE(GET, e))
    ALONG(y, VECTOR, FEW)
#undef FEW
#undef VECTOR
#undef VALUE
}

/* The lanes of norm(x) + residual: what the activation is applied to. */
INLINE VEC NAME(before_activation)(const STORE *x, const STORE *residual, const Channel *channel) {
    const REAL hi = (REAL)channel->hi, lo = (REAL)channel->lo;
    const REAL scale = (REAL)channel->scale, bias = (REAL)channel->bias;
    const VEC z = ((LOAD(x) - hi) - lo) * scale + bias;
    return residual == NULL ? z : z + LOAD(residual);
}

INLINE double NAME(before_activation_one)(const STORE *x, const STORE *residual, ptrdiff_t j,
                                          const Channel *channel) {
    const double z = norm_of(channel, GET(x + j));
    return residual == NULL ? z : z + GET(residual + j);
}

/* Copies k < WIDTH elements of `from`, if there is one, into a vector's room. */
INLINE const STORE *NAME(part)(STORE *room, const STORE *from, ptrdiff_t k) {
    if (from == NULL)
        return NULL;
    memset(room, 0, WIDTH * sizeof(STORE));
    memcpy(room, from, k * sizeof(STORE));
    return room;
}
#define AT(p, j) ((p) == NULL ? NULL : (p) + (j))

/* y = activation(((x - hi) - lo) * scale + bias + residual). y may be x or residual. */
KERNEL void NAME(run_apply_fused)(void *to, const void *from, const void *from_residual,
                                  ptrdiff_t len, const Channel *channel, int activation,
                                  int stream) {
    STORE *y = to;
    const STORE *x = from, *residual = from_residual;
    STORE room[3][WIDTH];
    if (channel->kind != PLAIN_CHANNEL) {
        for (ptrdiff_t j = 0; j < len; j++) {
            const double z = NAME(before_activation_one)(x, residual, j, channel);
            NAME(put)(y + j, (REAL)activate_one(z, activation));
        }
        return;
    }
#define VECTOR(j) ACTIVATE(NAME(before_activation)(x + (j), AT(residual, j), channel))
#define FEW(j, n)                                                                              \
    for (ptrdiff_t e = j, k; e < (j) + (n); e += k) {                                          \
        k = (j) + (n) - e < WIDTH ? (j) + (n) - e : WIDTH;                                     \
        const STORE *added = NAME(part)(room[1], AT(residual, e), k);                          \
        NAME(store)                                                                            \
        (room[2],                                                                              \
         ACTIVATE(NAME(before_activation)(NAME(part)(room[0], x + e, k), added, channel)));    \
        memcpy(y + e, room[2], k * sizeof(STORE));                                             \
    }
    ALONG(y, VECTOR, FEW)
#undef FEW
#undef VECTOR
}

/* g = dy * activation'(((x - hi) - lo) * scale + bias + residual). g may be dy, x or residual. */
KERNEL void NAME(run_activation_grads)(void *to, const void *from_dy, const void *from_x,
                                       const void *from_residual, ptrdiff_t len,
                                       const Channel *channel, int activation, int stream) {
    STORE *g = to;
    const STORE *dy = from_dy, *x = from_x, *residual = from_residual;
    STORE room[4][WIDTH];
    if (channel->kind != PLAIN_CHANNEL) {
        for (ptrdiff_t j = 0; j < len; j++) {
            const double z = NAME(before_activation_one)(x, residual, j, channel);
            NAME(put)(g + j, (REAL)(GET(dy + j) * slope_one(z, activation)));
        }
        return;
    }
#define VECTOR(j)                                                                              \
    (LOAD(dy + (j)) * SLOPE_OF(NAME(before_activation)(x + (j), AT(residual, j), channel)))
#define FEW(j, n)                                                                              \
    for (ptrdiff_t e = j, k; e < (j) + (n); e += k) {                                          \
        k = (j) + (n) - e < WIDTH ? (j) + (n) - e : WIDTH;                                     \
        const STORE *added = NAME(part)(room[1], AT(residual, e), k);                          \
        const VEC z = NAME(before_activation)(NAME(part)(room[0], x + e, k), added, channel);  \
        NAME(store)(room[3], LOAD(NAME(part)(room[2], dy + e, k)) * SLOPE_OF(z));                 \
        memcpy(g + e, room[3], k * sizeof(STORE));                                             \
    }
    ALONG(g, VECTOR, FEW)
#undef FEW
#undef VECTOR
}

/* dx = (dy - dy_shift) * scale - (((x - hi) - lo) * slope + rest). dx may be dy or x. */
KERNEL void NAME(run_apply_grads)(void *to, const void *from_dy, const void *from_x, ptrdiff_t len,
                                  const Channel *channel, int stream) {
    STORE *dx = to;
    const STORE *dy = from_dy, *x = from_x;
    if (channel->kind != PLAIN_CHANNEL) {
        for (ptrdiff_t j = 0; j < len; j++)
            NAME(put)(dx + j, (REAL)grad_of(channel, GET(dy + j), GET(x + j)));
        return;
    }
    const REAL hi = (REAL)channel->hi, lo = (REAL)channel->lo;
    const REAL scale = (REAL)channel->scale, slope = (REAL)channel->slope;
    const REAL dy_shift = (REAL)channel->dy_shift, rest = (REAL)channel->rest;
#define VALUE(READ, j)                                                                         \
    ((READ(dy + (j)) - dy_shift) * scale - (((READ(x + (j)) - hi) - lo) * slope + rest))
#define VECTOR(j) VALUE(LOAD, j)
#define FEW(j, k)                                                                              \
    for (ptrdiff_t e = j; e < (j) + (k); e++)                                                  \
    NAME(put)(dx + e, VALUE(GET, e))
    ALONG(dx, VECTOR, FEW)
#undef FEW
#undef VECTOR
#undef VALUE
}

static const Runs NAME(runs) = {
    NAME(first_shift),     NAME(run_sums),        NAME(run_grad_sums),        NAME(run_apply),
    NAME(run_apply_fused), NAME(run_apply_grads), NAME(run_activation_grads),
};

#undef AT
#undef ALONG
#undef LINE
#undef WIDTH
#undef LOAD
#undef GET
#undef VEC
#undef STORE
#undef NAME

#endif
