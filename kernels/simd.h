/* Vectors of the widest kind that this build's instruction set has, for float and double.

   GNU C vector extensions (GCC, Clang): the arithmetic compiles for any CPU, and the same source
   is built once per x86 instruction set. A loop that needs neither lanes nor streaming stores is
   left to the compiler's vectorizer.

   Everything that rounds lives in functions that are not inlined, so that one compiled copy serves
   every thread and schedule: results are bitwise equal however the work is split. */

#ifndef NORMCORE_SIMD_H
#define NORMCORE_SIMD_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)

#define KERNEL static __attribute__((noinline))
#define UNROLLED _Pragma("GCC unroll 4")
#define ALL_UNROLLED _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

/* UNROLL vectors of doubles in flight hide the latency of the additions. */
#define UNROLL 4
#define DOUBLES (VECTOR_BYTES / 8)
#define LANES (UNROLL * DOUBLES)

typedef double vec_f64 __attribute__((vector_size(VECTOR_BYTES)));
typedef float vec_f32 __attribute__((vector_size(VECTOR_BYTES)));
typedef float store_t_f32;
typedef double store_t_f64;
typedef vec_f64 loose_f64 __attribute__((aligned(8), may_alias));
typedef vec_f32 loose_f32 __attribute__((aligned(4), may_alias));

INLINE vec_f32 load_f32(const float *p) { return *(const loose_f32 *)p; }
INLINE vec_f64 load_f64(const double *p) { return *(const loose_f64 *)p; }
INLINE void store_f32(float *p, vec_f32 v) { *(loose_f32 *)p = v; }
INLINE void store_f64(double *p, vec_f64 v) { *(loose_f64 *)p = v; }
INLINE float get_f32(const float *p) { return *p; }
INLINE double get_f64(const double *p) { return *p; }
INLINE void put_f32(float *p, float v) { *p = v; }
INLINE void put_f64(double *p, double v) { *p = v; }

/* DOUBLES elements as doubles. GCC 12 makes two halves and an insert of __builtin_convertvector:
   sums of a 16 KB row took 2.7 ns per 16 elements with it. */
INLINE vec_f64 widen_f32(const float *p) {
#if defined(__AVX512F__)
    return (vec_f64)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX__)
    return (vec_f64)_mm256_cvtps_pd(_mm_loadu_ps(p));
#elif defined(__x86_64__)
    return (vec_f64)_mm_cvtps_pd(_mm_castpd_ps(_mm_load_sd((const double *)p)));
#else
    return (vec_f64){p[0], p[1]};
#endif
}
INLINE vec_f64 widen_f64(const double *p) { return *(const loose_f64 *)p; }

/* A store that does not first read the line it overwrites; p is aligned to what is stored. */
INLINE void stream_f64(double *p, vec_f64 v) {
#if defined(__AVX512F__)
    _mm512_stream_pd(p, (__m512d)v);
#elif defined(__AVX__)
    _mm256_stream_pd(p, (__m256d)v);
#elif defined(__x86_64__)
    _mm_stream_pd(p, (__m128d)v);
#else
    *(vec_f64 *)p = v;
#endif
}
INLINE void stream_f32(float *p, vec_f32 v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__)
    _mm256_stream_ps(p, (__m256)v);
#elif defined(__x86_64__)
    _mm_stream_ps(p, (__m128)v);
#else
    *(vec_f32 *)p = v;
#endif
}

/* Streaming stores are weakly ordered: fence before another thread may look. */
INLINE void stream_fence(void) {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

/* Asks for the line in which a run begins or ends, unless that is at a line's beginning: whole lines
   are streamed, and one that lay in the cache would take longer. */
INLINE void ask_for_end(const void *p) {
    if ((uintptr_t)p % 64 != 0)
        __builtin_prefetch(p, 1);
}

/* Elements before p reaches a 64-byte line, at most len. */
INLINE ptrdiff_t line_head(const void *p, ptrdiff_t itemsize, ptrdiff_t len) {
    ptrdiff_t head = (ptrdiff_t)((64 - (uintptr_t)p % 64) % 64) / itemsize;
    return head < len ? head : len;
}

/* The sum of LANES lanes, always in the same order. */
INLINE double lane_sum(const double *lanes) {
    const vec_f64 v = (load_f64(lanes) + load_f64(lanes + DOUBLES)) +
                      (load_f64(lanes + 2 * DOUBLES) + load_f64(lanes + 3 * DOUBLES));
    double total = v[0];
    for (int i = 1; i < DOUBLES; i++)
        total += v[i];
    return total;
}

#include "halves.h"

/* A shift near the mean of a channel: the median of three short means, taken at its beginning, in
   its middle and at its end. Equal elements give exactly that element (the means are over 1, 2 or
   4 of them, added in pairs), and neither an odd beginning nor one outlier moves it far. */
INLINE double median3(double a, double b, double c) {
#if defined(__x86_64__)
    /* GCC makes branches of a < b ? a : b where they were floats, which took 5 ns of the 16 of the
       sums of 96 floats. */
    const __m128d first = _mm_set_sd(a), second = _mm_set_sd(b);
    const double low = _mm_cvtsd_f64(_mm_min_sd(first, second));
    const double high = _mm_cvtsd_f64(_mm_max_sd(first, second));
#else
    const double low = a < b ? a : b, high = a < b ? b : a;
#endif
    const double middle = high < c ? high : c;
    const double median = low > middle ? low : middle;
    return isfinite(median) ? median : 0.0;
}

/* Of 1, 2 or 4 elements, `stride` apart. */
#define SHORT_MEAN(SUFFIX)                                                                     \
    INLINE double PASTE(short_mean, SUFFIX)(const PASTE(store_t, SUFFIX) *x, ptrdiff_t stride, \
                                            ptrdiff_t len) {                                   \
        const double first = PASTE(get, SUFFIX)(x);                                            \
        if (len == 1)                                                                          \
            return first;                                                                      \
        const double pair = first + PASTE(get, SUFFIX)(x + stride);                            \
        if (len == 2)                                                                          \
            return pair / 2;                                                                   \
        const double third = PASTE(get, SUFFIX)(x + 2 * stride);                               \
        return (pair + (third + PASTE(get, SUFFIX)(x + 3 * stride))) / 4;                      \
    }
SHORT_MEAN(f32)
SHORT_MEAN(f64)
SHORT_MEAN(f16)
SHORT_MEAN(bf16)
SHORT_MEAN(w32)

/* The largest of 1, 2, 4 that is not above len. */
INLINE ptrdiff_t few(ptrdiff_t len) { return len < 2 ? 1 : len < 4 ? 2 : 4; }

/* The coefficients of one channel. The mean comes in two parts, so that x - hi is exact when the
   mean is large against the deviations; dy_shift is near the channel's mean of dy likewise:

   forward   y  = ((x - hi) - lo) * scale + bias
   backward  dx = (dy - dy_shift) * scale - (((x - hi) - lo) * slope + rest) */
typedef struct {
    double hi, lo, scale, bias, slope, dy_shift, rest;
    double kind; /* PLAIN_CHANNEL, WIDE_CHANNEL or EMPTY_CHANNEL */
} Channel;

/* WIDE: float32 intermediates could overflow or lose digits; compute in float64.
   EMPTY: nothing counts (rstd is 0); y is bias, whatever x is. */
enum { PLAIN_CHANNEL, WIDE_CHANNEL, EMPTY_CHANNEL };

/* One element of a channel that is not plain, in float64. */
INLINE double norm_of(const Channel *channel, double x) {
    if (channel->kind == EMPTY_CHANNEL)
        return channel->bias;
    return ((x - channel->hi) - channel->lo) * channel->scale + channel->bias;
}
INLINE double grad_of(const Channel *channel, double dy, double x) {
    if (channel->kind == EMPTY_CHANNEL)
        return 0.0;
    return (dy - channel->dy_shift) * channel->scale -
           (((x - channel->hi) - channel->lo) * channel->slope + channel->rest);
}

/* Bounds beyond which float32 intermediates could overflow although the result does not. With
   |mean| <= 4e37 and |x| <= 3e38, x - mean is finite; |x - mean| <= sqrt(count) * std. What is not
   finite is not wide: it would only make a hopeless channel slow. */
INLINE int is_wide(double mean, double rstd, double scale) {
    return isfinite(mean) && isfinite(scale) && rstd > 0.0 &&
           (fabs(mean) > 4e37 || rstd < 1e-30 || rstd > 1e30 || fabs(scale) > 1e30);
}
INLINE int is_wide_slope(double slope) {
    return isfinite(slope) && slope != 0.0 && (fabs(slope) > 1e30 || fabs(slope) < 1e-30);
}

#endif
