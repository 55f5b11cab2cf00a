/* Arithmetic on one run of contiguous elements of one channel (family nchw).

   The file includes itself once for float and once for double: NAME(f) is f_f32 or f_f64, and the
   schedules reach them through the table `Runs` of their element type. Sums are carried in LANES
   lanes of doubles, so that short runs of one channel (7x7 planes) share one set of lanes and are
   reduced once. */

#ifndef REAL

#include "simd.h"

typedef struct {
    ptrdiff_t itemsize;
    double (*first_shift)(const void *x, ptrdiff_t n, ptrdiff_t len, ptrdiff_t stride);
    void (*sums)(double *lanes, const void *x, ptrdiff_t len, double shift, ptrdiff_t next);
    void (*grad_sums)(double *lanes, const void *dy, const void *x, ptrdiff_t len, double mean,
                      ptrdiff_t next);
    void (*apply)(void *y, const void *x, ptrdiff_t len, const Channel *channel, int stream);
    void (*apply_grads)(void *dx, const void *dy, const void *x, ptrdiff_t len,
                        const Channel *channel, int stream);
} Runs;

/* Two threads read 128 MB at 45 GB/s, and at 53 to 57 if lines are asked for 1 to 32 KB ahead. */
#define AHEAD_BYTES 8192

#define REAL float
#define SUFFIX f32
#include "runs.h"
#undef REAL
#undef SUFFIX
#define REAL double
#define SUFFIX f64
#include "runs.h"
#undef REAL
#undef SUFFIX

#else

#define NAME(f) PASTE(f, SUFFIX)
#define VEC NAME(vec)
#define WIDTH ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))

/* The shift of a channel of n runs of len elements, `stride` elements apart. */
KERNEL double NAME(first_shift)(const void *from, ptrdiff_t n, ptrdiff_t len, ptrdiff_t stride) {
    const REAL *x = from;
    const ptrdiff_t taken = few(len), middle = n / 2 * stride + (len - taken) / 2;
    return median3(NAME(short_mean)(x, 1, taken), NAME(short_mean)(x + middle, 1, taken),
                   NAME(short_mean)(x + (n - 1) * stride + len - taken, 1, taken));
}

/* Elements to look ahead from element i: in this run, then in the one that is read after it,
   which starts `next` elements after this one. */
INLINE ptrdiff_t NAME(look_ahead)(ptrdiff_t i, ptrdiff_t len, ptrdiff_t next) {
    const ptrdiff_t distance = AHEAD_BYTES / (ptrdiff_t)sizeof(REAL);
    const ptrdiff_t ahead = distance < len ? distance : len;
    return i + ahead < len ? ahead : next - len + ahead;
}

/* Asks for the lines of LANES elements. */
INLINE void NAME(prefetch)(const REAL *p) {
    for (ptrdiff_t k = 0; k < LANES; k += 64 / (ptrdiff_t)sizeof(REAL))
        __builtin_prefetch(p + k);
}

/* lanes[0:LANES] += x - shift, lanes[LANES:] += (x - shift)^2. */
KERNEL void NAME(run_sums)(double *lanes, const void *from, ptrdiff_t len, double shift,
                           ptrdiff_t next) {
    const REAL *x = from;
    vec_f64 sum[UNROLL], square[UNROLL];
    UNROLLED
    for (int u = 0; u < UNROLL; u++) {
        sum[u] = load_f64(lanes + u * DOUBLES);
        square[u] = load_f64(lanes + LANES + u * DOUBLES);
    }
    ptrdiff_t i = 0;
    for (; i + LANES <= len; i += LANES) {
        NAME(prefetch)(x + i + NAME(look_ahead)(i, len, next));
        UNROLLED
        for (int u = 0; u < UNROLL; u++) {
            vec_f64 d = NAME(widen)(x + i + u * DOUBLES) - shift;
            sum[u] += d;
            square[u] += d * d;
        }
    }
    for (; i + DOUBLES <= len; i += DOUBLES) {
        vec_f64 d = NAME(widen)(x + i) - shift;
        sum[0] += d;
        square[0] += d * d;
    }
    UNROLLED
    for (int u = 0; u < UNROLL; u++) {
        store_f64(lanes + u * DOUBLES, sum[u]);
        store_f64(lanes + LANES + u * DOUBLES, square[u]);
    }
    for (int j = 0; i < len; i++, j++) {
        double d = x[i] - shift;
        lanes[j] += d;
        lanes[LANES + j] += d * d;
    }
}

/* lanes[0:LANES] += dy, the next LANES += dy * (x - mean), the last += x - mean. */
KERNEL void NAME(run_grad_sums)(double *lanes, const void *from_dy, const void *from_x,
                                ptrdiff_t len, double mean, ptrdiff_t next) {
    const REAL *dy = from_dy, *x = from_x;
    vec_f64 sum[UNROLL], product[UNROLL], rest[UNROLL];
    UNROLLED
    for (int u = 0; u < UNROLL; u++) {
        sum[u] = load_f64(lanes + u * DOUBLES);
        product[u] = load_f64(lanes + LANES + u * DOUBLES);
        rest[u] = load_f64(lanes + 2 * LANES + u * DOUBLES);
    }
    ptrdiff_t i = 0;
    for (; i + LANES <= len; i += LANES) {
        const ptrdiff_t ahead = NAME(look_ahead)(i, len, next);
        NAME(prefetch)(dy + i + ahead);
        NAME(prefetch)(x + i + ahead);
        UNROLLED
        for (int u = 0; u < UNROLL; u++) {
            vec_f64 g = NAME(widen)(dy + i + u * DOUBLES);
            vec_f64 d = NAME(widen)(x + i + u * DOUBLES) - mean;
            sum[u] += g;
            product[u] += g * d;
            rest[u] += d;
        }
    }
    for (; i + DOUBLES <= len; i += DOUBLES) {
        vec_f64 g = NAME(widen)(dy + i);
        vec_f64 d = NAME(widen)(x + i) - mean;
        sum[0] += g;
        product[0] += g * d;
        rest[0] += d;
    }
    UNROLLED
    for (int u = 0; u < UNROLL; u++) {
        store_f64(lanes + u * DOUBLES, sum[u]);
        store_f64(lanes + LANES + u * DOUBLES, product[u]);
        store_f64(lanes + 2 * LANES + u * DOUBLES, rest[u]);
    }
    for (int j = 0; i < len; i++, j++) {
        double g = dy[i], d = x[i] - mean;
        lanes[j] += g;
        lanes[LANES + j] += g * d;
        lanes[2 * LANES + j] += d;
    }
}

/* y = ((x - hi) - lo) * scale + bias. y may be x. */
KERNEL void NAME(run_apply)(void *to, const void *from, ptrdiff_t len, const Channel *channel,
                            int stream) {
    REAL *y = to;
    const REAL *x = from;
    if (sizeof(REAL) == 4 && channel->wide) {
        for (ptrdiff_t i = 0; i < len; i++)
            y[i] = (REAL)(((x[i] - channel->hi) - channel->lo) * channel->scale + channel->bias);
        return;
    }
    const REAL hi = (REAL)channel->hi, lo = (REAL)channel->lo;
    const REAL scale = (REAL)channel->scale, bias = (REAL)channel->bias;
    ptrdiff_t i = 0;
    if (stream) {
        ptrdiff_t head = line_head(y, sizeof(REAL), len);
        for (; i < head; i++)
            y[i] = ((x[i] - hi) - lo) * scale + bias;
        for (; i + 64 / (ptrdiff_t)sizeof(REAL) <= len; i += 64 / sizeof(REAL))
            for (int k = 0; k < 64 / VECTOR_BYTES; k++)
                NAME(stream)(y + i + k * WIDTH,
                             ((NAME(load)(x + i + k * WIDTH) - hi) - lo) * scale + bias);
    } else {
        for (; i + 2 * WIDTH <= len; i += 2 * WIDTH) {
            VEC a = ((NAME(load)(x + i) - hi) - lo) * scale + bias;
            VEC b = ((NAME(load)(x + i + WIDTH) - hi) - lo) * scale + bias;
            NAME(store)(y + i, a);
            NAME(store)(y + i + WIDTH, b);
        }
        for (; i + WIDTH <= len; i += WIDTH)
            NAME(store)(y + i, ((NAME(load)(x + i) - hi) - lo) * scale + bias);
    }
    for (; i < len; i++)
        y[i] = ((x[i] - hi) - lo) * scale + bias;
}

#define GRADIENT(g, v) scale *(((g) - mean_hi) - ((((v) - hi) - lo) * slope + mean_lo))

/* dx = scale * ((dy - mean_dy) - (x - mean) * slope). dx may be dy or x. */
KERNEL void NAME(run_apply_grads)(void *to, const void *from_dy, const void *from_x, ptrdiff_t len,
                                  const Channel *channel, int stream) {
    REAL *dx = to;
    const REAL *dy = from_dy, *x = from_x;
    if (sizeof(REAL) == 4 && channel->wide) {
        const double hi = channel->hi, lo = channel->lo, scale = channel->scale;
        const double slope = channel->slope;
        const double mean_hi = channel->mean_dy_hi, mean_lo = channel->mean_dy_lo;
        for (ptrdiff_t i = 0; i < len; i++)
            dx[i] = (REAL)(GRADIENT((double)dy[i], (double)x[i]));
        return;
    }
    const REAL hi = (REAL)channel->hi, lo = (REAL)channel->lo;
    const REAL scale = (REAL)channel->scale, slope = (REAL)channel->slope;
    const REAL mean_hi = (REAL)channel->mean_dy_hi, mean_lo = (REAL)channel->mean_dy_lo;
    ptrdiff_t i = 0;
    if (stream) {
        ptrdiff_t head = line_head(dx, sizeof(REAL), len);
        for (; i < head; i++)
            dx[i] = GRADIENT(dy[i], x[i]);
        for (; i + 64 / (ptrdiff_t)sizeof(REAL) <= len; i += 64 / sizeof(REAL))
            for (int k = 0; k < 64 / VECTOR_BYTES; k++)
                NAME(stream)(dx + i + k * WIDTH,
                             GRADIENT(NAME(load)(dy + i + k * WIDTH),
                                      NAME(load)(x + i + k * WIDTH)));
    } else {
        for (; i + WIDTH <= len; i += WIDTH)
            NAME(store)(dx + i, GRADIENT(NAME(load)(dy + i), NAME(load)(x + i)));
    }
    for (; i < len; i++)
        dx[i] = GRADIENT(dy[i], x[i]);
}

static const Runs NAME(runs) = {
    sizeof(REAL),     NAME(first_shift), NAME(run_sums), NAME(run_grad_sums),
    NAME(run_apply), NAME(run_apply_grads),
};

#undef GRADIENT
#undef WIDTH
#undef VEC
#undef NAME

#endif
