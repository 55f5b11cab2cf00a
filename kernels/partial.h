/* The first k elements of a vector, 1 <= k <= its length: what is left over at the ends of a row.
   load_some, store_some: of what is computed in; widen_some: of doubles, k <= DOUBLES.
   With them the arithmetic of an element is written down once, in vectors. */

#ifndef NORMCORE_PARTIAL_H
#define NORMCORE_PARTIAL_H

#include "simd.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__)

INLINE vec_f32 load_some_f32(const float *p, ptrdiff_t k) {
    return (vec_f32)_mm512_maskz_loadu_ps((__mmask16)((1u << k) - 1), p);
}
INLINE vec_f64 load_some_f64(const double *p, ptrdiff_t k) {
    return (vec_f64)_mm512_maskz_loadu_pd((__mmask8)((1u << k) - 1), p);
}
INLINE vec_f32 load_some_f16(const store_t_f16 *p, ptrdiff_t k) {
    return (vec_f32)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << k) - 1), p));
}
INLINE vec_f32 load_some_bf16(const store_t_bf16 *p, ptrdiff_t k) {
    const __m256i bits = _mm256_maskz_loadu_epi16((__mmask16)((1u << k) - 1), p);
    return (vec_f32)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
}
INLINE vec_f64 widen_some_f32(const float *p, ptrdiff_t k) {
    return (vec_f64)_mm512_cvtps_pd(_mm256_maskz_loadu_ps((__mmask8)((1u << k) - 1), p));
}
INLINE vec_f64 widen_some_f64(const double *p, ptrdiff_t k) { return load_some_f64(p, k); }
INLINE vec_f64 widen_some_f16(const store_t_f16 *p, ptrdiff_t k) {
    const __m128i bits = _mm_maskz_loadu_epi16((__mmask8)((1u << k) - 1), p);
    return (vec_f64)_mm512_cvtps_pd(_mm256_cvtph_ps(bits));
}
INLINE vec_f64 widen_some_bf16(const store_t_bf16 *p, ptrdiff_t k) {
    const __m128i bits = _mm_maskz_loadu_epi16((__mmask8)((1u << k) - 1), p);
    const __m256i floats = _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
    return (vec_f64)_mm512_cvtps_pd(_mm256_castsi256_ps(floats));
}
INLINE void store_some_f32(float *p, vec_f32 v, ptrdiff_t k) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << k) - 1), (__m512)v);
}
INLINE void store_some_f64(double *p, vec_f64 v, ptrdiff_t k) {
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << k) - 1), (__m512d)v);
}
INLINE void store_some_f16(store_t_f16 *p, vec_f32 v, ptrdiff_t k) {
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << k) - 1), (__m256i)halves_of_f16(v));
}
INLINE void store_some_bf16(store_t_bf16 *p, vec_f32 v, ptrdiff_t k) {
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << k) - 1), (__m256i)halves_of_bf16(v));
}

#else

/* Not inlined: a loop between a product and its sum keeps GCC from fusing them, and the bits of an
   element would depend on whether it stands at an end of its row. */
#define PARTIAL(SUFFIX, VEC, LENGTH)                                                           \
    KERNEL VEC PASTE(load_some, SUFFIX)(const PASTE(store_t, SUFFIX) * p, ptrdiff_t k) {       \
        PASTE(store_t, SUFFIX) whole[LENGTH] = {0};                                            \
        for (ptrdiff_t i = 0; i < k; i++)                                                      \
            whole[i] = p[i];                                                                   \
        return PASTE(load, SUFFIX)(whole);                                                     \
    }                                                                                          \
    KERNEL vec_f64 PASTE(widen_some, SUFFIX)(const PASTE(store_t, SUFFIX) * p, ptrdiff_t k) {  \
        PASTE(store_t, SUFFIX) whole[DOUBLES] = {0};                                           \
        for (ptrdiff_t i = 0; i < k; i++)                                                      \
            whole[i] = p[i];                                                                   \
        return PASTE(widen, SUFFIX)(whole);                                                    \
    }                                                                                          \
    KERNEL void PASTE(store_some, SUFFIX)(PASTE(store_t, SUFFIX) * p, VEC v, ptrdiff_t k) {    \
        PASTE(store_t, SUFFIX) whole[LENGTH];                                                  \
        PASTE(store, SUFFIX)(whole, v);                                                        \
        for (ptrdiff_t i = 0; i < k; i++)                                                      \
            p[i] = whole[i];                                                                   \
    }
PARTIAL(f32, vec_f32, FLOATS)
PARTIAL(f16, vec_f32, FLOATS)
PARTIAL(bf16, vec_f32, FLOATS)
PARTIAL(f64, vec_f64, DOUBLES)
#undef PARTIAL

#endif

/* The first k elements of a, and behind them those of b. */
#if defined(__AVX512F__)
INLINE vec_f32 join_f32(vec_f32 a, vec_f32 b, ptrdiff_t k) {
    return (vec_f32)_mm512_mask_blend_ps((__mmask16)((1u << k) - 1), (__m512)b, (__m512)a);
}
INLINE vec_f64 join_f64(vec_f64 a, vec_f64 b, ptrdiff_t k) {
    return (vec_f64)_mm512_mask_blend_pd((__mmask8)((1u << k) - 1), (__m512d)b, (__m512d)a);
}
#else
#define JOIN(SUFFIX, VEC, INTEGER, LENGTH)                                                     \
    INLINE VEC PASTE(join, SUFFIX)(VEC a, VEC b, ptrdiff_t k) {                                \
        typedef INTEGER integers __attribute__((vector_size(VECTOR_BYTES)));                   \
        integers at;                                                                           \
        for (int i = 0; i < LENGTH; i++)                                                       \
            at[i] = i;                                                                         \
        const integers first = at < (INTEGER)k;                                                \
        return (VEC)(((integers)a & first) | ((integers)b & ~first));                          \
    }
JOIN(f32, vec_f32, int32_t, FLOATS)
JOIN(f64, vec_f64, int64_t, DOUBLES)
#undef JOIN
#endif

INLINE vec_f32 load_some_w32(const float *p, ptrdiff_t k) { return load_some_f32(p, k); }
INLINE void store_some_w32(float *p, vec_f32 v, ptrdiff_t k) { store_some_f32(p, v, k); }

#endif
