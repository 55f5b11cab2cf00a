/* Sums of a run: a part of runs.h, once per storage type.

   Floats and doubles are added as doubles. Halves have 11 digits or 8: they are added as floats,
   BLOCK vectors to a lane before it goes to a double, which leaves 1e-7 of a deviation and takes
   half the time: bfloat16 (65536, 256) forward 0.77 of float32's time, and 0.6 so. Products with dy
   are added by add_product, because they may cancel. */

#ifdef HALF
#define ACC vec_f32
#define ACC_WIDTH FLOATS
#define ACC_READ LOAD
#define READ_OF(p, u)                                                                          \
    ((u) % 2 ? NAME(second_of_pair)((p) + ((u)-1) * ACC_WIDTH)                                 \
             : NAME(first_of_pair)((p) + (u)*ACC_WIDTH))
#define ACC_REAL float
#define BLOCK (8 * UNROLL * FLOATS)
#define FLUSH(lanes, v) NAME(flush)(lanes, v)
#define ADD_PRODUCT(high, low, a, b) add_product(&(high), &(low), a, b)
INLINE void NAME(flush)(double *lanes, vec_f32 v) {
    float parts[FLOATS];
    store_f32(parts, v);
    store_f64(lanes, load_f64(lanes) + (widen_f32(parts) + widen_f32(parts + DOUBLES)));
}
#else
#define ACC vec_f64
#define ACC_WIDTH DOUBLES
#define ACC_READ NAME(widen)
#define READ_OF(p, u) NAME(widen)((p) + (u)*ACC_WIDTH)
#define ACC_REAL double
#define BLOCK len
#define FLUSH(lanes, v) store_f64(lanes, load_f64(lanes) + (v))
#define ADD_PRODUCT(high, low, a, b) ((high) += (a) * (b))
#endif
#define STEP (UNROLL * ACC_WIDTH)

/* Asks for the lines of STEP elements. */
INLINE void NAME(prefetch)(const STORE *p) {
    for (ptrdiff_t k = 0; k < STEP; k += LINE)
        __builtin_prefetch(p + k);
}

/* lanes[0:LANES] += x - shift, lanes[LANES:] += (x - shift)^2. */
KERNEL void NAME(run_sums)(double *lanes, const void *from, ptrdiff_t len, double shift,
                           ptrdiff_t next) {
    const STORE *x = from;
    const ACC_REAL origin = (ACC_REAL)shift;
    const NAME(Ahead) ahead = NAME(ahead_of)(len, next);
    ptrdiff_t i = 0;
    while (i + ACC_WIDTH <= len) {
        ACC sum[UNROLL] = {{0}}, square[UNROLL] = {{0}};
        const ptrdiff_t stop = len - i < BLOCK ? len : i + BLOCK;
        for (; i + STEP <= stop; i += STEP) {
            NAME(prefetch)(x + i + NAME(look_ahead)(i, ahead));
            UNROLLED
            for (int u = 0; u < UNROLL; u++) {
                const ACC d = READ_OF(x + i, u) - origin;
                sum[u] += d;
                square[u] += d * d;
            }
        }
        for (; i + ACC_WIDTH <= stop; i += ACC_WIDTH) {
            const ACC d = ACC_READ(x + i) - origin;
            sum[0] += d;
            square[0] += d * d;
        }
        UNROLLED
        for (int u = 0; u < UNROLL; u++) {
            FLUSH(lanes + u * DOUBLES, sum[u]);
            FLUSH(lanes + LANES + u * DOUBLES, square[u]);
        }
    }
    for (int j = 0; i < len; i++, j++) {
        const double d = GET(x + i) - origin;
        lanes[j] += d;
        lanes[LANES + j] += d * d;
    }
}

/* lanes[0:LANES] += dy, the next LANES += dy * (x - mean), the last += x - mean. */
KERNEL void NAME(run_grad_sums)(double *lanes, const void *from_dy, const void *from_x,
                                ptrdiff_t len, double mean, ptrdiff_t next) {
    const STORE *dy = from_dy, *x = from_x;
    const ACC_REAL origin = (ACC_REAL)mean;
    const NAME(Ahead) ahead = NAME(ahead_of)(len, next);
    ptrdiff_t i = 0;
    while (i + ACC_WIDTH <= len) {
        ACC sum[UNROLL] = {{0}}, product[UNROLL] = {{0}}, rest[UNROLL] = {{0}};
#ifdef HALF
        ACC low[2] = {{0}};
#endif
        const ptrdiff_t stop = len - i < BLOCK ? len : i + BLOCK;
        for (; i + STEP <= stop; i += STEP) {
            const ptrdiff_t later = i + NAME(look_ahead)(i, ahead);
            NAME(prefetch)(dy + later);
            NAME(prefetch)(x + later);
            UNROLLED
            for (int u = 0; u < UNROLL; u++) {
                const ACC g = READ_OF(dy + i, u), d = READ_OF(x + i, u) - origin;
                sum[u] += g;
                ADD_PRODUCT(product[u], low[u % 2], g, d);
                rest[u] += d;
            }
        }
        for (; i + ACC_WIDTH <= stop; i += ACC_WIDTH) {
            const ACC g = ACC_READ(dy + i), d = ACC_READ(x + i) - origin;
            sum[0] += g;
            ADD_PRODUCT(product[0], low[0], g, d);
            rest[0] += d;
        }
        UNROLLED
        for (int u = 0; u < UNROLL; u++) {
            FLUSH(lanes + u * DOUBLES, sum[u]);
            FLUSH(lanes + LANES + u * DOUBLES, product[u]);
            FLUSH(lanes + 2 * LANES + u * DOUBLES, rest[u]);
        }
#ifdef HALF
        for (int u = 0; u < 2; u++)
            FLUSH(lanes + LANES + u * DOUBLES, only_finite(low[u]));
#endif
    }
    for (int j = 0; i < len; i++, j++) {
        const double g = GET(dy + i), d = GET(x + i) - origin;
        lanes[j] += g;
        lanes[LANES + j] += g * d;
        lanes[2 * LANES + j] += d;
    }
}

#undef STEP
#undef ADD_PRODUCT
#undef FLUSH
#undef BLOCK
#undef ACC_REAL
#undef READ_OF
#undef ACC_READ
#undef ACC_WIDTH
#undef ACC
