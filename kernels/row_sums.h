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

/* Bytes of x that a forward asks for ahead, all of its lines: of the copy (100352, 96) takes 1.20,
   (16384, 768) 1.06, (131072, 256) 1.03, (32768, 1024) 1.05; with 1024 bytes 1.22, 1.08, 1.07,
   1.09; with 4096, to the second-level cache, 1.26, 1.06, 1.00, 0.97; not asked, 1.5 and more. */
#define SUM_AHEAD 2048

/* What a row adds to its sums of x - shift (if `centred`) and of its squares, in lanes. */
typedef struct {
    vec_f64 sum, square;
} NAME(Sums);

INLINE NAME(Sums) NAME(sums_of)(const STORE *x, ptrdiff_t len, double shift, const int centred) {
    const ACC_REAL origin = (ACC_REAL)shift;
    NAME(Sums) of = {{0}, {0}};
    ptrdiff_t i = 0;
    while (i + ACC_WIDTH <= len) {
        ACC sum[UNROLL] = {{0}}, square[UNROLL] = {{0}};
        const ptrdiff_t stop = len - i < BLOCK ? len : i + BLOCK;
        for (; i + STEP <= stop; i += STEP) {
            for (ptrdiff_t k = 0; k < STEP; k += LINE)
                __builtin_prefetch(x + i + k + SUM_AHEAD / sizeof(STORE));
            UNROLLED
            for (int u = 0; u < UNROLL; u++) {
                const ACC element = ACC_READ(x + i + u * ACC_WIDTH);
                const ACC d = centred ? element - origin : element;
                if (centred)
                    sum[u] += d;
                square[u] += d * d;
            }
        }
        for (; i + ACC_WIDTH <= stop; i += ACC_WIDTH) {
            const ACC element = ACC_READ(x + i);
            const ACC d = centred ? element - origin : element;
            if (centred)
                sum[0] += d;
            square[0] += d * d;
        }
        of.sum += FOUR(sum);
        of.square += FOUR(square);
    }
    if (i < len) {
        double last = 0.0, last_square = 0.0;
        for (; i < len; i++) {
            const double d = NAME(get)(x + i) - origin;
            last += d;
            last_square += d * d;
        }
        if (centred)
            of.sum += (vec_f64){last};
        of.square += (vec_f64){last_square};
    }
    return of;
}

/* sums[0] += x - shift, sums[1] += (x - shift)^2. */
KERNEL void NAME(row_sums)(double *sums, const void *from, ptrdiff_t len, double shift) {
    const NAME(Sums) of = NAME(sums_of)(from, len, shift, 1);
    sums[0] += vector_sum(of.sum);
    sums[1] += vector_sum(of.square);
}

INLINE void NAME(sum_row_of)(RowSums *to, ptrdiff_t r, const STORE *x, ptrdiff_t len,
                             const int centred) {
    const double shift = centred ? (ACC_REAL)NAME(shift_of)(x, len) : 0.0;
    const NAME(Sums) of = NAME(sums_of)(x, len, shift, centred);
    store_f64(to->shift[r], (vec_f64){shift});
    store_f64(to->sum[r], of.sum);
    store_f64(to->square[r], of.square);
}

KERNEL void NAME(sum_row)(RowSums *to, ptrdiff_t r, const void *x, ptrdiff_t len) {
    NAME(sum_row_of)(to, r, x, len, 1);
}
KERNEL void NAME(sum_squares)(RowSums *to, ptrdiff_t r, const void *x, ptrdiff_t len) {
    NAME(sum_row_of)(to, r, x, len, 0);
}

#ifdef HALF

/* sums[0] += g, sums[1] += g * (x - mean), with g = dy * weight. */
KERNEL void NAME(row_grad_sums_of)(double *sums, const STORE *dy, const STORE *x,
                                   const ACC_REAL *weight, ptrdiff_t len, double mean) {
    const ACC_REAL origin = (ACC_REAL)mean;
    vec_f64 total = {0}, products = {0};
    ptrdiff_t i = 0;
    while (i + ACC_WIDTH <= len) {
        ACC sum[UNROLL] = {{0}}, product[UNROLL] = {{0}};
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
            }
        }
        for (; i + ACC_WIDTH <= stop; i += ACC_WIDTH) {
            const ACC g = ACC_READ(dy + i) * ACC_WEIGHT(weight + i);
            const ACC d = ACC_READ(x + i) - origin;
            sum[0] += g;
            product[0] += g * d;
        }
        total += FOUR(sum);
        products += FOUR(product);
    }
    double last[2] = {0.0, 0.0};
    for (; i < len; i++) {
        const double g = (double)NAME(get)(dy + i) * weight[i], d = NAME(get)(x + i) - origin;
        last[0] += g;
        last[1] += g * d;
    }
    sums[0] += vector_sum(total) + last[0];
    sums[1] += vector_sum(products) + last[1];
}

/* As below, but dweight and dbias are for row_terms.h to add to. */
KERNEL void NAME(row_grad_sums)(double (*sums)[3], const RowGrads *at, const double *mean,
                                const double *rstd) {
    (void)rstd;
    for (ptrdiff_t r = 0; r < at->rows; r++)
        NAME(row_grad_sums_of)(sums[r], (const STORE *)at->dy + r * at->pitch,
                               (const STORE *)at->x + r * at->pitch, at->weight, at->len, mean[r]);
}

#else

/* Elements from what is worked on to what is asked for meanwhile: the rows that are taken together
   next. The sums ask for their x and the gradients for their dy: (32768, 1024) takes 1.38 of the
   triad, (131072, 256) 1.44; 1.47 and 1.59 if the sums ask for both, which short rows want:
   (100352, 96) takes 1.44 for 1.55. */
INLINE int NAME(asks_both)(const RowGrads *at) {
    return TOGETHER * at->pitch * (ptrdiff_t)sizeof(STORE) <= 4096;
}
INLINE ptrdiff_t NAME(grads_ahead)(const RowGrads *at) {
    return NAME(asks_both)(at) ? 4096 / (ptrdiff_t)sizeof(STORE) : at->rows * at->pitch;
}

/* One sweep over `rows` rows gives all sums of a backward: of rows g and g * (x - mean) with
   g = dy * weight, for float64 also x - mean, which says what the mean is off by; of columns
   dy * (x - mean) * rstd and dy. A core multiplies and adds one vector of 64 bytes in a cycle, so
   every operation counts: with the terms of dweight in a sweep of their own, which widened and
   centred the elements once more, (32768, 1024) took 1.5 of the triad. */
INLINE void NAME(row_grad_sums_of)(double (*sums)[3], const RowGrads *at, const ptrdiff_t first,
                                   const double *mean, const double *rstd, const int rows) {
    const STORE *dy = (const STORE *)at->dy + first * at->pitch;
    const STORE *x = (const STORE *)at->x + first * at->pitch;
    const ptrdiff_t len = at->len, pitch = at->pitch, ahead = NAME(grads_ahead)(at);
    const int both = NAME(asks_both)(at);
    vec_f64 sum[TOGETHER], product[TOGETHER], rest[TOGETHER];
    EACH_ROW
    for (int r = 0; r < rows; r++)
        sum[r] = product[r] = rest[r] = (vec_f64){0};
#define SUM_GRADS(READ, CENTRED, ASK)                                                          \
    {                                                                                          \
        const vec_f64 w = load_f64(weight + i);                                                \
        vec_f64 to_dweight = load_f64(dweight + i), to_dbias = load_f64(dbias + i);            \
        EACH_ROW                                                                               \
        for (int r = 0; r < rows; r++) {                                                       \
            if (ASK)                                                                           \
                __builtin_prefetch(x + i + r * pitch + ahead, 0, 2);                           \
            if (ASK && both)                                                                   \
                __builtin_prefetch(dy + i + r * pitch + ahead, 0, 2);                          \
            const vec_f64 gradient = READ(dy + i + r * pitch);                                 \
            const vec_f64 deviation = READ(x + i + r * pitch) - CENTRED(mean[first + r]);      \
            const vec_f64 term = gradient * deviation;                                         \
            sum[r] += gradient * w;                                                            \
            product[r] += term * w;                                                            \
            if (sizeof(REAL) == 8)                                                             \
                rest[r] += deviation;                                                          \
            to_dweight += term * rstd[first + r];                                              \
            to_dbias += gradient;                                                              \
        }                                                                                      \
        store_f64(dweight + i, to_dweight);                                                    \
        store_f64(dbias + i, to_dbias);                                                        \
    }
    const double *weight = at->sum_weight;
    double *dweight = at->dweight, *dbias = at->dbias;
    ptrdiff_t i = 0;
    while (i + LINE <= len) {
        SUM_GRADS(NAME(widen), , 1)
        i += DOUBLES;
        for (int v = 1; v < LINE / DOUBLES; v++, i += DOUBLES)
            SUM_GRADS(NAME(widen), , 0)
    }
    for (; i + DOUBLES <= len; i += DOUBLES)
        SUM_GRADS(NAME(widen), , 0)
    if (i < len) {
        /* The last elements in vectors of their own. */
        const ptrdiff_t k = len - i, start = i;
        double few_weights[DOUBLES] = {0}, few[2][DOUBLES], ones[DOUBLES] = {0};
        for (ptrdiff_t e = 0; e < k; e++)
            ones[e] = 1.0;
        memcpy(few_weights, weight + start, k * sizeof(double));
        memset(few, 0, sizeof few);
        weight = few_weights - i;
        dweight = few[0] - i;
        dbias = few[1] - i;
#define READ_SOME(p) NAME(widen_some)(p, k)
#define SOME_OF(m) (load_f64(ones) * (m))
        SUM_GRADS(READ_SOME, SOME_OF, 0)
#undef SOME_OF
#undef READ_SOME
        for (ptrdiff_t e = 0; e < k; e++) {
            at->dweight[start + e] += few[0][e];
            at->dbias[start + e] += few[1][e];
        }
    }
#undef SUM_GRADS
    EACH_ROW
    for (int r = 0; r < rows; r++) {
        sums[first + r][0] += vector_sum(sum[r]);
        sums[first + r][1] += vector_sum(product[r]);
        sums[first + r][2] += vector_sum(rest[r]);
    }
}

/* Of every row, sums[0] += g, sums[1] += g * (x - mean), for float64 sums[2] += x - mean. */
KERNEL void NAME(row_grad_sums)(double (*sums)[3], const RowGrads *at, const double *mean,
                                const double *rstd) {
    ptrdiff_t r = 0;
    for (; r + TOGETHER <= at->rows; r += TOGETHER)
        NAME(row_grad_sums_of)(sums, at, r, mean, rstd, TOGETHER);
    for (; r + TOGETHER / 2 <= at->rows; r += TOGETHER / 2)
        NAME(row_grad_sums_of)(sums, at, r, mean, rstd, TOGETHER / 2);
    for (; r < at->rows; r++)
        NAME(row_grad_sums_of)(sums, at, r, mean, rstd, 1);
}

#endif

#undef FOUR
#undef STEP
#undef BLOCK
#undef ACC_REAL
#undef ACC_WEIGHT
#undef ACC_READ
#undef ACC_WIDTH
#undef ACC
