/* Sums of the columns of a block of halves: a part of column_sums.h, once per storage type.

   They are added as floats over a few rows, then as doubles (see run_sums.h, also about products).
   Four rows are taken in step, with the floats in the first-level cache. In pieces of 128 bytes, 8
   rows one after the other, x and dy of (65536, 256) took 0.89 of the triad instead of 0.76, and x
   0.61 of the copy instead of 0.54; a loop that does nothing but read has 0.66 and 0.50. */

#define ALIGNED __attribute__((aligned(64)))
#define AT_ONCE 4
/* Rows between additions to doubles. Squares are rounded: over 32 rows var was off by 4e-7, over 16
   it is by 2e-7; over 8 the sums take a seventh longer. Of what a backward adds only x - mean is,
   and seldom. */
#define SUM_STEPS 16
#define GRAD_STEPS 32

/* Elements from rows taken together to those that are asked for meanwhile: 4 KB or more. */
INLINE ptrdiff_t NAME(far_ahead)(ptrdiff_t cols) {
    return (4096 / (ptrdiff_t)sizeof(STORE) / AT_ONCE / cols + 1) * AT_ONCE * cols;
}
INLINE void NAME(ask_rows)(const STORE *p, ptrdiff_t cols) {
    for (ptrdiff_t i = 0; i < AT_ONCE; i++)
        __builtin_prefetch(p + i * cols, 0, 3);
}

/* Of K vectors, 1 or 2, of `rows` rows: sums[0] += x - shift, sums[1] += (x - shift)^2. */
INLINE void NAME(half_sums)(float *sums, const STORE *x, ptrdiff_t cols, const float *shift,
                            const int rows, const int K) {
    vec_f32 k[2], s[2], q[2], d[2];
    for (int u = 0; u < K; u++) {
        k[u] = load_f32(shift + u * FLOATS);
        s[u] = load_f32(sums + u * FLOATS);
        q[u] = load_f32(sums + PART + u * FLOATS);
    }
    ALL_UNROLLED
    for (int i = 0; i < rows; i++) {
        if (K == 2)
            NAME(load_pair)(d, x + i * cols);
        else
            d[0] = LOAD(x + i * cols);
        for (int u = 0; u < K; u++) {
            d[u] -= k[u];
            s[u] += d[u];
            q[u] += d[u] * d[u];
        }
    }
    for (int u = 0; u < K; u++) {
        store_f32(sums + u * FLOATS, s[u]);
        store_f32(sums + PART + u * FLOATS, q[u]);
    }
}

/* sums[0] += dy, sums[1] and sums[3] += dy * (x - mean), sums[2] += x - mean. */
INLINE void NAME(half_grad_sums)(float *sums, const STORE *dy, const STORE *x, ptrdiff_t cols,
                                 const float *mean, const int rows, const int K) {
    vec_f32 m[2], s[2], p[2], e[2], low[2], g[2], d[2];
    for (int u = 0; u < K; u++) {
        m[u] = load_f32(mean + u * FLOATS);
        s[u] = load_f32(sums + u * FLOATS);
        p[u] = load_f32(sums + PART + u * FLOATS);
        e[u] = load_f32(sums + 2 * PART + u * FLOATS);
        low[u] = load_f32(sums + 3 * PART + u * FLOATS);
    }
    ALL_UNROLLED
    for (int i = 0; i < rows; i++) {
        if (K == 2) {
            NAME(load_pair)(g, dy + i * cols);
            NAME(load_pair)(d, x + i * cols);
        } else {
            g[0] = LOAD(dy + i * cols);
            d[0] = LOAD(x + i * cols);
        }
        for (int u = 0; u < K; u++) {
            d[u] -= m[u];
            s[u] += g[u];
            add_product(&p[u], &low[u], g[u], d[u]);
            e[u] += d[u];
        }
    }
    for (int u = 0; u < K; u++) {
        store_f32(sums + u * FLOATS, s[u]);
        store_f32(sums + PART + u * FLOATS, p[u]);
        store_f32(sums + 2 * PART + u * FLOATS, e[u]);
        store_f32(sums + 3 * PART + u * FLOATS, low[u]);
    }
}

/* len doubles as floats, in the order of load_pair. */
INLINE void NAME(narrow)(float *to, const double *from, ptrdiff_t len) {
    const ptrdiff_t paired = len - len % LINE;
    for (ptrdiff_t j = 0; j < len; j++)
        to[j] = (float)from[j];
    for (ptrdiff_t j = 0; j < paired; j += 2 * FLOATS) {
        vec_f32 pair[2] = {load_f32(to + j), load_f32(to + j + FLOATS)};
        NAME(sort)(pair);
        store_f32(to + j, pair[0]);
        store_f32(to + j + FLOATS, pair[1]);
    }
}
/* Floats added to doubles, which leaves 0. */
INLINE void NAME(move)(double *restrict to, float *restrict from, ptrdiff_t len, const int low) {
    for (ptrdiff_t j = 0; j < len; j += FLOATS) {
        if (low)
            store_f32(from + j, only_finite(load_f32(from + j)));
        store_f64(to + j, load_f64(to + j) + widen_f32(from + j));
        store_f64(to + j + DOUBLES, load_f64(to + j + DOUBLES) + widen_f32(from + j + DOUBLES));
        store_f32(from + j, (vec_f32){0});
    }
}
/* Doubles in the order of load_pair added to others. */
INLINE void NAME(add_sorted)(double *restrict to, double *restrict from, ptrdiff_t len) {
    const ptrdiff_t paired = len - len % LINE;
    for (ptrdiff_t j = 0; j < paired; j += 2 * FLOATS)
        NAME(unsort)(from + j);
    for (ptrdiff_t j = 0; j < len; j++)
        to[j] += from[j];
}

/* Columns in steps of whole lines, then in vectors; rows AT_ONCE, then one by one. */
#define ALONG_ROWS(ASK, SUMS)                                                                  \
    for (ptrdiff_t i = 0; i < rows;) {                                                         \
        const ptrdiff_t at = (r + i) * cols;                                                   \
        const int together = rows - i < AT_ONCE ? 1 : AT_ONCE;                                 \
        ptrdiff_t j = 0;                                                                       \
        if (together == AT_ONCE) {                                                             \
            for (; j + LINE <= len; j += LINE) {                                               \
                ASK;                                                                           \
                for (ptrdiff_t u = j; u < j + LINE; u += 2 * FLOATS)                           \
                    SUMS(u, AT_ONCE, 2);                                                       \
            }                                                                                  \
            for (; j < len; j += FLOATS)                                                       \
                SUMS(j, AT_ONCE, 1);                                                           \
        } else {                                                                               \
            for (; j + LINE <= len; j += LINE)                                                 \
                for (ptrdiff_t u = j; u < j + LINE; u += 2 * FLOATS)                           \
                    SUMS(u, 1, 2);                                                             \
            for (; j < len; j += FLOATS)                                                       \
                SUMS(j, 1, 1);                                                                 \
        }                                                                                      \
        i += together;                                                                         \
    }

/* Of `len` columns, whole vectors. */
KERNEL void NAME(part_sums)(double *sum, double *square, const STORE *x, const Block *block,
                            ptrdiff_t len, const double *shift) {
    ALIGNED float sums[2 * PART], k[PART];
    ALIGNED double totals[2 * PART];
    const ptrdiff_t cols = block->cols, ahead = NAME(far_ahead)(cols);
    NAME(narrow)(k, shift, len);
    for (int i = 0; i < 2; i++) {
        memset(sums + i * PART, 0, len * sizeof(float));
        memset(totals + i * PART, 0, len * sizeof(double));
    }
    for (ptrdiff_t r = 0; r < block->rows; r += SUM_STEPS) {
        const ptrdiff_t rows = block->rows - r < SUM_STEPS ? block->rows - r : SUM_STEPS;
#define SUMS(j, rows, K) NAME(half_sums)(sums + (j), x + at + (j), cols, k + (j), rows, K)
        ALONG_ROWS(NAME(ask_rows)(x + at + ahead + j, cols), SUMS)
#undef SUMS
        NAME(move)(totals, sums, len, 0);
        NAME(move)(totals + PART, sums + PART, len, 0);
    }
    NAME(add_sorted)(sum, totals, len);
    NAME(add_sorted)(square, totals + PART, len);
}

KERNEL void NAME(part_grad_sums)(double *sum, double *product, double *rest, const STORE *dy,
                                 const STORE *x, const Block *block, ptrdiff_t len,
                                 const double *mean) {
    ALIGNED float sums[4 * PART], m[PART];
    ALIGNED double totals[3 * PART];
    const ptrdiff_t cols = block->cols, ahead = NAME(far_ahead)(cols);
    NAME(narrow)(m, mean, len);
    for (int i = 0; i < 4; i++)
        memset(sums + i * PART, 0, len * sizeof(float));
    for (int i = 0; i < 3; i++)
        memset(totals + i * PART, 0, len * sizeof(double));
    for (ptrdiff_t r = 0; r < block->rows; r += GRAD_STEPS) {
        const ptrdiff_t rows = block->rows - r < GRAD_STEPS ? block->rows - r : GRAD_STEPS;
#define SUMS(j, rows, K)                                                                       \
    NAME(half_grad_sums)(sums + (j), dy + at + (j), x + at + (j), cols, m + (j), rows, K)
#define ASK NAME(ask_rows)(dy + at + ahead + j, cols), NAME(ask_rows)(x + at + ahead + j, cols)
        ALONG_ROWS(ASK, SUMS)
#undef ASK
#undef SUMS
        for (int i = 0; i < 3; i++)
            NAME(move)(totals + i * PART, sums + i * PART, len, 0);
        NAME(move)(totals + PART, sums + 3 * PART, len, 1);
    }
    NAME(add_sorted)(sum, totals, len);
    NAME(add_sorted)(product, totals + PART, len);
    NAME(add_sorted)(rest, totals + 2 * PART, len);
}

KERNEL void NAME(column_sums)(double *sum, double *square, const void *from, const Block *block,
                              const double *shift) {
    const ptrdiff_t whole = block->cols - block->cols % FLOATS;
    const STORE *x = from;
    for (ptrdiff_t j = 0; j < whole; j += PART)
        NAME(part_sums)(sum + j, square + j, x + j, block, whole - j < PART ? whole - j : PART,
                        shift + j);
    NAME(rest_sums)(sum, square, x, block->rows, block->cols, whole, shift);
}

KERNEL void NAME(column_grad_sums)(double *sum, double *product, double *rest,
                                   const void *from_dy, const void *from_x, const Block *block,
                                   const double *mean) {
    const ptrdiff_t whole = block->cols - block->cols % FLOATS;
    const STORE *dy = from_dy, *x = from_x;
    for (ptrdiff_t j = 0; j < whole; j += PART)
        NAME(part_grad_sums)(sum + j, product + j, rest + j, dy + j, x + j, block,
                             whole - j < PART ? whole - j : PART, mean + j);
    NAME(rest_grad_sums)(sum, product, rest, dy, x, block->rows, block->cols, whole, mean);
}

#undef ALONG_ROWS
#undef SUM_STEPS
#undef GRAD_STEPS
#undef AT_ONCE
#undef ALIGNED
