/* Sums of a row. Included by rows.h, once per storage type.

   Floats and doubles are added as doubles, halves as floats in blocks (see run_sums.h): bfloat16
   layer norm of (64, 512, 1024) took 0.8 of float32's time with doubles. */

#ifdef HALF
#define ACC vec_f32
#define ACC_WIDTH FLOATS
#define ACC_READ NAME(load)
#define ACC_WEIGHT load_f32
#define ACC_REAL float
#define BLOCK (8 * UNROLL * FLOATS)
INLINE vec_f64 NAME(wider)(vec_f32 v) {
    float parts[FLOATS];
    store_f32(parts, v);
    return widen_f32(parts) + widen_f32(parts + DOUBLES);
}
#else
#define ACC vec_f64
#define ACC_WIDTH DOUBLES
#define ACC_READ NAME(widen)
#define ACC_WEIGHT load_f64
#define ACC_REAL double
#define BLOCK len
INLINE vec_f64 NAME(wider)(vec_f64 v) { return v; }
#endif
#define STEP (UNROLL * ACC_WIDTH)
#define FOUR(v) NAME(wider)((v[0] + v[1]) + (v[2] + v[3]))

/* sums[0] += x - shift, sums[1] += (x - shift)^2. */
KERNEL void NAME(row_sums)(double *sums, const void *from, ptrdiff_t len, double shift) {
    const STORE *x = from;
    const ACC_REAL origin = (ACC_REAL)shift;
    vec_f64 total = {0}, squares = {0};
    ptrdiff_t i = 0;
    while (i + ACC_WIDTH <= len) {
        ACC sum[UNROLL] = {{0}}, square[UNROLL] = {{0}};
        const ptrdiff_t stop = len - i < BLOCK ? len : i + BLOCK;
        for (; i + STEP <= stop; i += STEP) {
            __builtin_prefetch(x + i + ROW_AHEAD / sizeof(STORE), 0, 2);
            UNROLLED
            for (int u = 0; u < UNROLL; u++) {
                const ACC d = ACC_READ(x + i + u * ACC_WIDTH) - origin;
                sum[u] += d;
                square[u] += d * d;
            }
        }
        for (; i + ACC_WIDTH <= stop; i += ACC_WIDTH) {
            const ACC d = ACC_READ(x + i) - origin;
            sum[0] += d;
            square[0] += d * d;
        }
        total += FOUR(sum);
        squares += FOUR(square);
    }
    double last = 0.0, last_square = 0.0;
    for (; i < len; i++) {
        const double d = NAME(get)(x + i) - origin;
        last += d;
        last_square += d * d;
    }
    sums[0] += vector_sum(total) + last;
    sums[1] += vector_sum(squares) + last_square;
}

/* Of halves nobody asks for the rest: what their rounded mean leaves is known from the mean. */
#ifdef HALF
#define ADD_REST(rest, d) ((void)0)
#else
#define ADD_REST(rest, d) ((rest) += (d))
#endif

/* sums[0] += g, sums[1] += g * (x - mean), sums[2] += x - mean, with g = dy * weight. */
KERNEL void NAME(row_grad_sums)(double *sums, const void *from_dy, const void *from_x,
                                const void *from_weight, ptrdiff_t len, double mean) {
    const STORE *dy = from_dy, *x = from_x;
    const ACC_REAL *weight = from_weight, origin = (ACC_REAL)mean;
    vec_f64 total = {0}, products = {0}, rests = {0};
    ptrdiff_t i = 0;
    while (i + ACC_WIDTH <= len) {
        ACC sum[UNROLL] = {{0}}, product[UNROLL] = {{0}}, rest[UNROLL] = {{0}};
        const ptrdiff_t stop = len - i < BLOCK ? len : i + BLOCK;
        for (; i + STEP <= stop; i += STEP) {
            for (ptrdiff_t k = 0; k < STEP; k += LINE)
                __builtin_prefetch(x + i + k + TOGETHER * len, 0, 2);
            UNROLLED
            for (int u = 0; u < UNROLL; u++) {
                const ptrdiff_t at = i + u * ACC_WIDTH;
                const ACC g = ACC_READ(dy + at) * ACC_WEIGHT(weight + at);
                const ACC d = ACC_READ(x + at) - origin;
                sum[u] += g;
                product[u] += g * d;
                ADD_REST(rest[u], d);
            }
        }
        for (; i + ACC_WIDTH <= stop; i += ACC_WIDTH) {
            const ACC g = ACC_READ(dy + i) * ACC_WEIGHT(weight + i);
            const ACC d = ACC_READ(x + i) - origin;
            sum[0] += g;
            product[0] += g * d;
            ADD_REST(rest[0], d);
        }
        total += FOUR(sum);
        products += FOUR(product);
        rests += FOUR(rest);
    }
    double last[3] = {0.0, 0.0, 0.0};
    for (; i < len; i++) {
        const double g = (double)NAME(get)(dy + i) * weight[i], d = NAME(get)(x + i) - origin;
        last[0] += g;
        last[1] += g * d;
        last[2] += d;
    }
    sums[0] += vector_sum(total) + last[0];
    sums[1] += vector_sum(products) + last[1];
    sums[2] += vector_sum(rests) + last[2];
}

#undef ADD_REST
#undef FOUR
#undef STEP
#undef BLOCK
#undef ACC_REAL
#undef ACC_WEIGHT
#undef ACC_READ
#undef ACC_WIDTH
#undef ACC
