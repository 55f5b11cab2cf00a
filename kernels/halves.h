/* float16 (IEEE binary16) and bfloat16 as storage: loaded as floats, rounded once, to nearest even,
   on store. Included by simd.h.

   Both are kept as their bits. vec_f16 and vec_bf16 are vectors of floats: what is computed in. */

typedef uint16_t store_t_f16;
typedef uint16_t store_t_bf16;
typedef vec_f32 vec_f16;
typedef vec_f32 vec_bf16;
#define FLOATS (VECTOR_BYTES / 4)

INLINE float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
INLINE uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float get_bf16(const store_t_bf16 *p) { return float_of_bits((uint32_t)*p << 16); }
INLINE void put_bf16(store_t_bf16 *p, float value) {
    const uint32_t bits = bits_of_float(value);
    *p = (uint16_t)(value != value ? (bits >> 16) | 0x40
                                   : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if defined(__F16C__)
INLINE float get_f16(const store_t_f16 *p) { return _cvtsh_ss(*p); }
INLINE void put_f16(store_t_f16 *p, float value) { *p = _cvtss_sh(value, 0); }
#else
INLINE float get_f16(const store_t_f16 *p) {
    const uint32_t sign = (uint32_t)(*p & 0x8000) << 16, rest = *p & 0x7fff;
    if (rest >= 0x7c00) /* infinity, NaN */
        return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    /* The exponent's bias differs by 112; the product also makes subnormals right. */
    return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 0x1p112f));
}
INLINE void put_f16(store_t_f16 *p, float value) {
    const uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000;
    uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) { /* NaN */
        *p = (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x3ff));
        return;
    }
    if (rest >= 0x47800000) { /* 65536 and more */
        *p = (uint16_t)(sign | 0x7c00);
        return;
    }
    if (rest < 0x38800000) { /* below 2^-14: adding 0.5 rounds to a multiple of 2^-24 */
        rest = bits_of_float(float_of_bits(rest) + 0.5f) - bits_of_float(0.5f);
    } else {
        rest += 0xfff + (rest >> 13 & 1);
        rest = (rest - ((uint32_t)112 << 23)) >> 13;
    }
    *p = (uint16_t)(sign | rest);
}
#endif

/* The nearest half, where there is one: x - shift is then exact in float32, for the sums of halves.
   With a shift of 24 digits every x of a binade was off by the same 3e-8, and dweight of 200001
   elements by 2e-6 of its summands' norm. */
INLINE double nearest_f16(double value) {
    store_t_f16 half;
    put_f16(&half, (float)value);
    const float nearest = get_f16(&half);
    return isfinite(nearest) ? nearest : (float)value;
}
INLINE double nearest_bf16(double value) {
    store_t_bf16 half;
    put_bf16(&half, (float)value);
    const float nearest = get_bf16(&half);
    return isfinite(nearest) ? nearest : (float)value;
}

/* FLOATS elements as floats, and back. */
INLINE vec_f32 load_f16(const store_t_f16 *p) {
#if defined(__AVX512F__)
    return (vec_f32)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
    return (vec_f32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    vec_f32 v;
    for (int i = 0; i < FLOATS; i++)
        v[i] = get_f16(p + i);
    return v;
#endif
}
INLINE vec_f32 load_bf16(const store_t_bf16 *p) {
#if defined(__AVX512F__)
    const __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (vec_f32)_mm512_slli_epi32(v, 16);
#elif defined(__AVX2__)
    const __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return (vec_f32)_mm256_slli_epi32(v, 16);
#elif defined(__x86_64__)
    const __m128i v = _mm_loadl_epi64((const __m128i *)p);
    return (vec_f32)_mm_unpacklo_epi16(_mm_setzero_si128(), v);
#else
    vec_f32 v;
    for (int i = 0; i < FLOATS; i++)
        v[i] = get_bf16(p + i);
    return v;
#endif
}

/* The next 2 * FLOATS elements as two vectors. Of bfloat16 the even ones and the odd ones, which
   need no shuffle and no load each: an instruction, where load_bf16 has two. `sort` brings a pair
   of vectors into that order, `unsort` as many doubles back. */
INLINE void load_pair_f16(vec_f32 *pair, const store_t_f16 *p) {
    pair[0] = load_f16(p);
    pair[1] = load_f16(p + FLOATS);
}
INLINE void sort_f16(vec_f32 *pair) { (void)pair; }
INLINE void unsort_f16(double *sums) { (void)sums; }

typedef uint32_t vec_u32 __attribute__((vector_size(VECTOR_BYTES)));
typedef vec_u32 loose_u32 __attribute__((aligned(2), may_alias));
INLINE vec_f32 even_of(vec_u32 bits) { return (vec_f32)(bits << 16); }
INLINE vec_f32 odd_of(vec_u32 bits) { return (vec_f32)(bits & 0xffff0000u); }
INLINE vec_f32 first_of_pair_bf16(const store_t_bf16 *p) {
    return even_of(*(const loose_u32 *)p);
}
INLINE vec_f32 second_of_pair_bf16(const store_t_bf16 *p) {
    return odd_of(*(const loose_u32 *)p);
}
INLINE void load_pair_bf16(vec_f32 *pair, const store_t_bf16 *p) {
    vec_u32 bits = *(const loose_u32 *)p;
#if defined(__x86_64__)
    __asm__("" : "+v"(bits)); /* GCC would load them twice, across two lines */
#endif
    pair[0] = even_of(bits);
    pair[1] = odd_of(bits);
}
/* Rounded to nearest even, in the upper half of the bits: those that end in an odd half round up from
   the middle. The lower half of a NaN must be 0, or rounding could carry into its sign. */
INLINE vec_u32 rounded_bf16(vec_f32 v) {
    const vec_u32 bits = (vec_u32)v;
#if defined(__AVX512F__)
    const __mmask16 is_odd = _mm512_test_epi32_mask((__m512i)bits, _mm512_set1_epi32(0x10000));
    const __m512i up = _mm512_add_epi32((__m512i)bits, _mm512_set1_epi32(0x7fff));
    return (vec_u32)_mm512_mask_add_epi32(up, is_odd, up, _mm512_set1_epi32(1));
#else
    return bits + 0x7fff + ((bits >> 16) & 1);
#endif
}
INLINE vec_u32 pair_bf16(vec_f32 even, vec_f32 odd) {
    return (rounded_bf16(even) >> 16) | (rounded_bf16(odd) & 0xffff0000u);
}
/* Of lanes that are no NaN, or such as rounded_bf16 takes. */
INLINE void store_clean_pair_bf16(store_t_bf16 *p, vec_f32 even, vec_f32 odd) {
    *(loose_u32 *)p = pair_bf16(even, odd);
}
INLINE void stream_clean_pair_bf16(store_t_bf16 *p, vec_f32 even, vec_f32 odd) {
    stream_f32((float *)p, (vec_f32)pair_bf16(even, odd));
}
/* A NaN without the lower half of its bits. */
INLINE vec_f32 quiet_bf16(vec_f32 v) {
    const vec_u32 bits = (vec_u32)v, is_nan = (vec_u32)(v != v);
    return (vec_f32)((bits & ~is_nan) | (((bits & 0xffff0000u) | 0x400000u) & is_nan));
}
INLINE void sort_bf16(vec_f32 *pair) {
#if defined(__AVX512F__)
    const __m512i even =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512 first = (__m512)pair[0], second = (__m512)pair[1];
    pair[0] = (vec_f32)_mm512_permutex2var_ps(first, even, second);
    pair[1] = (vec_f32)_mm512_permutex2var_ps(first, odd, second);
#else
    float all[2 * FLOATS];
    store_f32(all, pair[0]);
    store_f32(all + FLOATS, pair[1]);
    for (int i = 0; i < FLOATS; i++) {
        pair[0][i] = all[2 * i];
        pair[1][i] = all[2 * i + 1];
    }
#endif
}
INLINE void unsort_bf16(double *sums) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const __m512i high = _mm512_add_epi64(low, _mm512_set1_epi64(4));
    __m512d v[4];
    for (int i = 0; i < 4; i++)
        v[i] = _mm512_loadu_pd(sums + i * DOUBLES);
    for (int i = 0; i < 2; i++) {
        _mm512_storeu_pd(sums + 2 * i * DOUBLES, _mm512_permutex2var_pd(v[i], low, v[2 + i]));
        _mm512_storeu_pd(sums + (2 * i + 1) * DOUBLES,
                         _mm512_permutex2var_pd(v[i], high, v[2 + i]));
    }
#else
    double all[2 * FLOATS];
    for (int i = 0; i < FLOATS; i++) {
        all[2 * i] = sums[i];
        all[2 * i + 1] = sums[FLOATS + i];
    }
    memcpy(sums, all, sizeof all);
#endif
}

/* FLOATS halves, as they are stored. */
typedef uint16_t half_vector __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef half_vector loose_halves __attribute__((aligned(2), may_alias));

INLINE half_vector halves_of_f16(vec_f32 v) {
#if defined(__AVX512F__)
    return (half_vector)_mm512_cvtps_ph((__m512)v, 0);
#elif defined(__F16C__)
    return (half_vector)_mm256_cvtps_ph((__m256)v, 0);
#else
    uint16_t bits[FLOATS];
    half_vector packed;
    for (int i = 0; i < FLOATS; i++)
        put_f16(bits + i, v[i]);
    memcpy(&packed, bits, sizeof packed);
    return packed;
#endif
}
/* Not the CPU's own instruction (AVX512_BF16): that one takes subnormals for zeros. */
INLINE half_vector halves_of_bf16(vec_f32 v) {
#if defined(__AVX512F__)
    const __m512i uppers = _mm512_set_epi16(
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    /* GCC makes 16 instructions of the general form below, 6 of this. */
    const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_or_epi32(
        (__m512i)rounded_bf16(v), is_nan, (__m512i)v, _mm512_set1_epi32(0x400000));
    return (half_vector)_mm512_castsi512_si256(_mm512_permutexvar_epi16(uppers, rounded));
#else
    typedef int32_t vec_i32 __attribute__((vector_size(VECTOR_BYTES)));
    const vec_u32 bits = (vec_u32)v, is_nan = (vec_u32)(v != v), quiet = bits | 0x400000;
    /* Shifted with the sign, they fit 16 bits with sign, and packing does not saturate. */
    const vec_i32 high = (vec_i32)((rounded_bf16(v) & ~is_nan) | (quiet & is_nan)) >> 16;
#if defined(__AVX2__)
    const __m256i packed = _mm256_packs_epi32((__m256i)high, (__m256i)high);
    return (half_vector)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8));
#else
    half_vector packed;
    for (int i = 0; i < FLOATS; i++)
        packed[i] = (uint16_t)high[i];
    return packed;
#endif
#endif
}

INLINE void store_f16(store_t_f16 *p, vec_f32 v) { *(loose_halves *)p = halves_of_f16(v); }
INLINE void store_bf16(store_t_bf16 *p, vec_f32 v) { *(loose_halves *)p = halves_of_bf16(v); }

INLINE void stream_halves(uint16_t *p, half_vector v) {
#if defined(__AVX512F__)
    _mm256_stream_si256((__m256i *)p, (__m256i)v);
#elif defined(__AVX__)
    _mm_stream_si128((__m128i *)p, (__m128i)v);
#elif defined(__x86_64__)
    _mm_stream_si64((long long *)p, (long long)v);
#else
    *(half_vector *)p = v;
#endif
}
INLINE void stream_f16(store_t_f16 *p, vec_f32 v) { stream_halves(p, halves_of_f16(v)); }
INLINE void stream_bf16(store_t_bf16 *p, vec_f32 v) { stream_halves(p, halves_of_bf16(v)); }

/* Two vectors of what lies at p[0 .. twice their length], in an order that is store_pair's and
   stream_pair's too; p is aligned to what is streamed. */
#define PLAIN_PAIRS(SUFFIX)                                                                    \
    INLINE PASTE(vec, SUFFIX) PASTE(first_of_pair, SUFFIX)(const PASTE(store_t, SUFFIX) *p) {  \
        return PASTE(load, SUFFIX)(p);                                                         \
    }                                                                                          \
    INLINE PASTE(vec, SUFFIX) PASTE(second_of_pair, SUFFIX)(const PASTE(store_t, SUFFIX) *p) { \
        return PASTE(load, SUFFIX)(p + WIDTH_OF(SUFFIX));                                      \
    }                                                                                          \
    INLINE void PASTE(store_pair, SUFFIX)(PASTE(store_t, SUFFIX) *p,                           \
                                          PASTE(vec, SUFFIX) first,                            \
                                          PASTE(vec, SUFFIX) second) {                         \
        PASTE(store, SUFFIX)(p, first);                                                        \
        PASTE(store, SUFFIX)(p + WIDTH_OF(SUFFIX), second);                                    \
    }                                                                                          \
    INLINE void PASTE(stream_pair, SUFFIX)(PASTE(store_t, SUFFIX) *p,                          \
                                           PASTE(vec, SUFFIX) first,                           \
                                           PASTE(vec, SUFFIX) second) {                        \
        PASTE(stream, SUFFIX)(p, first);                                                       \
        PASTE(stream, SUFFIX)(p + WIDTH_OF(SUFFIX), second);                                   \
    }
#define WIDTH_OF(SUFFIX) (VECTOR_BYTES / sizeof((PASTE(vec, SUFFIX)){0}[0]))
PLAIN_PAIRS(f32)
PLAIN_PAIRS(f64)
PLAIN_PAIRS(f16)
/* Inference in L2 took 2.1 ns for 16 elements, and takes 1.7 in pairs; (32, 64, 112, 112) took 1.48 of
   the copy and 2.3 of the triad, and 1.24 and 1.9 so. */
INLINE int has_nan(vec_f32 first, vec_f32 second) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)first, (__m512)second, _CMP_UNORD_Q) != 0;
#else
    return 1; /* one blend more costs less than to find out */
#endif
}
INLINE vec_u32 pair_with_nan_bf16(vec_f32 even, vec_f32 odd) {
    if (__builtin_expect(has_nan(even, odd), 0))
        return pair_bf16(quiet_bf16(even), quiet_bf16(odd));
    return pair_bf16(even, odd);
}
INLINE void store_pair_bf16(store_t_bf16 *p, vec_f32 even, vec_f32 odd) {
    *(loose_u32 *)p = pair_with_nan_bf16(even, odd);
}
INLINE void stream_pair_bf16(store_t_bf16 *p, vec_f32 even, vec_f32 odd) {
    stream_f32((float *)p, (vec_f32)pair_with_nan_bf16(even, odd));
}

/* DOUBLES elements as doubles. */
INLINE vec_f64 widen_f16(const store_t_f16 *p) {
#if defined(__AVX512F__)
    return (vec_f64)_mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__F16C__)
    return (vec_f64)_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)p)));
#else
    vec_f64 v;
    for (int i = 0; i < DOUBLES; i++)
        v[i] = get_f16(p + i);
    return v;
#endif
}
INLINE vec_f64 widen_bf16(const store_t_bf16 *p) {
#if defined(__AVX512F__)
    const __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return (vec_f64)_mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(v, 16)));
#elif defined(__AVX2__)
    const __m128i v = _mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)p));
    return (vec_f64)_mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(v, 16)));
#else
    vec_f64 v;
    for (int i = 0; i < DOUBLES; i++)
        v[i] = get_bf16(p + i);
    return v;
#endif
}

/* high + low += a * b. Products of halves have some 24 digits. Their first 8 are added up apart, of
   which the sum is exact, and the rest is small: rounded one by one, the products of 65536 rows that
   repeat 64 were off by 6e-6 of dweight's norm, and so they are by 5e-8. */
INLINE void add_product(vec_f32 *high, vec_f32 *low, vec_f32 a, vec_f32 b) {
    const vec_f32 product = a * b, first = (vec_f32)((vec_u32)product & 0xffff0000u);
    *high += first;
#if defined(__AVX512F__)
    *low += (vec_f32)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)first);
#elif defined(__FMA__)
    *low += (vec_f32)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)first);
#else
    *low += product - first;
#endif
}

/* v, but 0 where it is infinite or NaN: `low` of products that are, which is in `high` already. */
INLINE vec_f32 only_finite(vec_f32 v) {
    return (vec_f32)((vec_u32)v & (vec_u32)(v - v == 0));
}

/* w32: halves that were widened to floats, and floats that will be rounded to halves. Loops over
   them are those of halves, that is, they add as floats. */
typedef float store_t_w32;
typedef vec_f32 vec_w32;
INLINE vec_f32 load_w32(const float *p) { return load_f32(p); }
INLINE void store_w32(float *p, vec_f32 v) { store_f32(p, v); }
INLINE void stream_w32(float *p, vec_f32 v) { stream_f32(p, v); }
INLINE float get_w32(const float *p) { return *p; }
INLINE void put_w32(float *p, float value) { *p = value; }
INLINE vec_f64 widen_w32(const float *p) { return widen_f32(p); }
PLAIN_PAIRS(w32)
