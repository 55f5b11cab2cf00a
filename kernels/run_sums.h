/* Sums of a run: a part of runs.h, once per storage type.

   Floats and doubles are added as doubles. Halves have 11 digits or 8: they are added as floats,
   8 vectors to a lane before it goes to a double, which leaves 1e-7 of a deviation and takes
   half the time: bfloat16 (65536, 256) forward 0.77 of float32's time, and 0.6 so. Products with dy
   are added by add_product, because they may cancel.

   A sum is a loop of steps of STEP elements and an end, so that the loop of runs.h that writes
   another run can take the steps along (MEANWHILE there). */

#ifdef HALF
#define ACC vec_f32
#define ACC_WIDTH FLOATS
#define ACC_READ LOAD
#define READ_OF(p, u)                                                                          \
    ((u) % 2 ? NAME(second_of_pair)((p) + ((u)-1) * ACC_WIDTH)                                 \
             : NAME(first_of_pair)((p) + (u)*ACC_WIDTH))
#define ACC_REAL float
#define BLOCK_ENDS(i) ((i) % (8 * STEP) == 0)
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
#define BLOCK_ENDS(i) 0
#define FLUSH(lanes, v) store_f64(lanes, load_f64(lanes) + (v))
#define ADD_PRODUCT(high, low, a, b) ((high) += (a) * (b))
#endif
#define STEP (UNROLL * ACC_WIDTH)

/* Asks for the lines of STEP elements. */
INLINE void NAME(prefetch)(const STORE *p) {
    for (ptrdiff_t k = 0; k < STEP; k += LINE)
        __builtin_prefetch(p + k);
}

/* A run that is summed, up to element i: lanes[0:LANES] += x - origin, and lanes[LANES:] its
   squares. */
typedef struct {
    double *lanes;
    const STORE *x;
    ptrdiff_t len, i;
    ACC_REAL origin;
    NAME(Ahead) ahead;
    ACC sum[UNROLL], square[UNROLL];
} NAME(Sums);

INLINE NAME(Sums) NAME(sums_of)(const Summed *of) {
    const NAME(Sums) found = {
        .lanes = of->lanes, .x = of->x, .len = of->len, .origin = (ACC_REAL)of->shift,
        .ahead = NAME(ahead_of)(of->len, of->next)};
    return found;
}

INLINE void NAME(flush_sums)(NAME(Sums) *s) {
    UNROLLED
    for (int u = 0; u < UNROLL; u++) {
        FLUSH(s->lanes + u * DOUBLES, s->sum[u]);
        FLUSH(s->lanes + LANES + u * DOUBLES, s->square[u]);
        s->sum[u] = s->square[u] = (ACC){0};
    }
}

INLINE void NAME(step_of_sums)(NAME(Sums) *s) {
    const STORE *x = s->x + s->i;
    NAME(prefetch)(x + NAME(look_ahead)(s->i, s->ahead));
    UNROLLED
    for (int u = 0; u < UNROLL; u++) {
        const ACC d = READ_OF(x, u) - s->origin;
        s->sum[u] += d;
        s->square[u] += d * d;
    }
    s->i += STEP;
    if (BLOCK_ENDS(s->i))
        NAME(flush_sums)(s);
}

INLINE void NAME(end_sums)(NAME(Sums) *s) {
    while (s->i + STEP <= s->len)
        NAME(step_of_sums)(s);
    for (; s->i + ACC_WIDTH <= s->len; s->i += ACC_WIDTH) {
        const ACC d = ACC_READ(s->x + s->i) - s->origin;
        s->sum[0] += d;
        s->square[0] += d * d;
    }
    if (s->len >= ACC_WIDTH)
        NAME(flush_sums)(s);
    for (int j = 0; s->i < s->len; s->i++, j++) {
        const double d = GET(s->x + s->i) - s->origin;
        s->lanes[j] += d;
        s->lanes[LANES + j] += d * d;
    }
}

KERNEL void NAME(run_sums)(const Summed *of) {
    NAME(Sums) s = NAME(sums_of)(of);
    NAME(end_sums)(&s);
}

/* The same of a run's gradient: lanes[0:LANES] += dy, the next LANES += dy * (x - mean), the last
   += x - mean. */
typedef struct {
    double *lanes;
    const STORE *dy, *x;
    ptrdiff_t len, i;
    ACC_REAL origin;
    NAME(Ahead) ahead;
    ACC sum[UNROLL], product[UNROLL], rest[UNROLL];
#ifdef HALF
    ACC low[2];
#endif
} NAME(GradSums);

INLINE NAME(GradSums) NAME(grad_sums_of)(const Summed *of) {
    const NAME(GradSums) found = {
        .lanes = of->lanes, .dy = of->dy, .x = of->x, .len = of->len,
        .origin = (ACC_REAL)of->shift, .ahead = NAME(ahead_of)(of->len, of->next)};
    return found;
}

INLINE void NAME(flush_grad_sums)(NAME(GradSums) *s) {
    UNROLLED
    for (int u = 0; u < UNROLL; u++) {
        FLUSH(s->lanes + u * DOUBLES, s->sum[u]);
        FLUSH(s->lanes + LANES + u * DOUBLES, s->product[u]);
        FLUSH(s->lanes + 2 * LANES + u * DOUBLES, s->rest[u]);
        s->sum[u] = s->product[u] = s->rest[u] = (ACC){0};
    }
#ifdef HALF
    for (int u = 0; u < 2; u++) {
        FLUSH(s->lanes + LANES + u * DOUBLES, only_finite(s->low[u]));
        s->low[u] = (ACC){0};
    }
#endif
}

INLINE void NAME(step_of_grad_sums)(NAME(GradSums) *s) {
    const STORE *dy = s->dy + s->i, *x = s->x + s->i;
    const ptrdiff_t later = NAME(look_ahead)(s->i, s->ahead);
    NAME(prefetch)(dy + later);
    NAME(prefetch)(x + later);
    UNROLLED
    for (int u = 0; u < UNROLL; u++) {
        const ACC g = READ_OF(dy, u), d = READ_OF(x, u) - s->origin;
        s->sum[u] += g;
        ADD_PRODUCT(s->product[u], s->low[u % 2], g, d);
        s->rest[u] += d;
    }
    s->i += STEP;
    if (BLOCK_ENDS(s->i))
        NAME(flush_grad_sums)(s);
}

INLINE void NAME(end_grad_sums)(NAME(GradSums) *s) {
    while (s->i + STEP <= s->len)
        NAME(step_of_grad_sums)(s);
    for (; s->i + ACC_WIDTH <= s->len; s->i += ACC_WIDTH) {
        const ACC g = ACC_READ(s->dy + s->i), d = ACC_READ(s->x + s->i) - s->origin;
        s->sum[0] += g;
        ADD_PRODUCT(s->product[0], s->low[0], g, d);
        s->rest[0] += d;
    }
    if (s->len >= ACC_WIDTH)
        NAME(flush_grad_sums)(s);
    for (int j = 0; s->i < s->len; s->i++, j++) {
        const double g = GET(s->dy + s->i), d = GET(s->x + s->i) - s->origin;
        s->lanes[j] += g;
        s->lanes[LANES + j] += g * d;
        s->lanes[2 * LANES + j] += d;
    }
}

KERNEL void NAME(run_grad_sums)(const Summed *of) {
    NAME(GradSums) s = NAME(grad_sums_of)(of);
    NAME(end_grad_sums)(&s);
}
