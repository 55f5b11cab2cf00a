/* Sums of the columns of a block: a part of columns.h, once per storage type. w32, tiles of 8 rows,
   is added as floats, then as doubles (see run_sums.h, also about products). */

/* As first_shift of runs.h, for columns first to last of the block. */
KERNEL void NAME(column_shifts)(double *shift, const void *from, const Block *block,
                                ptrdiff_t first, ptrdiff_t last) {
    const STORE *x = from;
    const ptrdiff_t taken = few(block->rows), c = block->cols;
    const STORE *middle = x + (block->rows - taken) / 2 * c, *end = x + (block->rows - taken) * c;
    for (ptrdiff_t j = first; j < last; j++)
        shift[j] = median3(NAME(short_mean)(x + j, c, taken),
                           NAME(short_mean)(middle + j, c, taken),
                           NAME(short_mean)(end + j, c, taken));
}

/* Of the columns from j on, one by one. */
INLINE void NAME(rest_sums)(double *sum, double *square, const STORE *x, ptrdiff_t rows,
                            ptrdiff_t cols, ptrdiff_t j, const double *shift) {
    for (; j < cols; j++) {
        double total = 0.0, squares = 0.0;
        for (ptrdiff_t i = 0; i < rows; i++) {
            const double d = GET(x + i * cols + j) - shift[j];
            total += d;
            squares += d * d;
        }
        sum[j] += total;
        square[j] += squares;
    }
}
INLINE void NAME(rest_grad_sums)(double *sum, double *product, double *rest, const STORE *dy,
                                 const STORE *x, ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t j,
                                 const double *mean) {
    for (; j < cols; j++) {
        double total = 0.0, products = 0.0, deviations = 0.0;
        for (ptrdiff_t i = 0; i < rows; i++) {
            const double g = GET(dy + i * cols + j);
            const double d = GET(x + i * cols + j) - mean[j];
            total += g;
            products += g * d;
            deviations += d;
        }
        sum[j] += total;
        product[j] += products;
        rest[j] += deviations;
    }
}

#if defined(IN_STEPS)
#include "column_half_sums.h"
#else

#ifdef HALF
#define ACC vec_f32
#define ACC_WIDTH FLOATS
#define ACC_READ LOAD
#define MOST_ROWS 8
#define LOWS(K) (K)
#define FINITE(v) only_finite(v)
#define ADD_PRODUCT(high, low, a, b) add_product(&(high), &(low), a, b)
/* FLOATS doubles as floats, and floats added to doubles. */
INLINE vec_f32 NAME(narrow)(const double *p) {
    vec_f32 v;
    for (int i = 0; i < FLOATS; i++)
        v[i] = (float)p[i];
    return v;
}
INLINE void NAME(add_to)(double *p, vec_f32 v) {
    float parts[FLOATS];
    store_f32(parts, v);
    store_f64(p, load_f64(p) + widen_f32(parts));
    store_f64(p + DOUBLES, load_f64(p + DOUBLES) + widen_f32(parts + DOUBLES));
}
#else
#define ACC vec_f64
#define ACC_WIDTH DOUBLES
#define ACC_READ NAME(widen)
#define MOST_ROWS 32
#define LOWS(K) 0
#define FINITE(v) (v)
#define ADD_PRODUCT(high, low, a, b) ((high) += (a) * (b))
INLINE vec_f64 NAME(narrow)(const double *p) { return load_f64(p); }
INLINE void NAME(add_to)(double *p, vec_f64 v) { store_f64(p, load_f64(p) + v); }
#endif

/* Vectors in a cache line, which is asked for once: each by itself took sums 5 % longer. */
#define IN_LINE (64 / (int)(ACC_WIDTH * sizeof(STORE)))

/* sum += x - shift, square += (x - shift)^2, over `rows` rows of K vectors. */
#define SUM_COLUMNS(K)                                                                         \
    for (; j + (K) * ACC_WIDTH <= block->cols; j += (K) * ACC_WIDTH) {                         \
        ACC k[K], s[K], q[K];                                                                  \
        ALL_UNROLLED                                                                           \
        for (int u = 0; u < (K); u++) {                                                        \
            k[u] = NAME(narrow)(shift + j + u * ACC_WIDTH);                                    \
            s[u] = (ACC){0};                                                                   \
            q[u] = (ACC){0};                                                                   \
        }                                                                                      \
        for (ptrdiff_t i = 0; i < rows; i++)                                                   \
            ALL_UNROLLED                                                                       \
            for (int u = 0; u < (K); u++) {                                                    \
                const ptrdiff_t at = i * block->cols + j + u * ACC_WIDTH;                      \
                if (u % IN_LINE == 0)                                                          \
                    PREFETCH(x + at + ahead);                                                  \
                ACC d = ACC_READ(x + at) - k[u];                                               \
                s[u] += d;                                                                     \
                q[u] += d * d;                                                                 \
            }                                                                                  \
        ALL_UNROLLED                                                                           \
        for (int u = 0; u < (K); u++) {                                                        \
            NAME(add_to)(sum + j + u * ACC_WIDTH, s[u]);                                       \
            NAME(add_to)(square + j + u * ACC_WIDTH, q[u]);                                    \
        }                                                                                      \
    }

KERNEL void NAME(column_sums)(double *sum, double *square, const void *from, const Block *block,
                              const double *shift) {
    const STORE *x = from;
    if (block->rows == 0)
        return;
    const ptrdiff_t together = rows_together(block->cols * sizeof(STORE), MOST_ROWS);
    const ptrdiff_t ahead = together * block->cols;
    for (ptrdiff_t r = 0; r < block->rows; r += together, x += ahead) {
        const ptrdiff_t rows = block->rows - r < together ? block->rows - r : together;
        ptrdiff_t j = 0;
        SUM_COLUMNS(SUM_VECTORS)
        SUM_COLUMNS(4)
        SUM_COLUMNS(1)
        NAME(rest_sums)(sum, square, x, rows, block->cols, j, shift);
    }
}

#undef SUM_COLUMNS

#define SUM_GRADS(K)                                                                           \
    for (; j + (K) * ACC_WIDTH <= block->cols; j += (K) * ACC_WIDTH) {                         \
        ACC m[K], s[K], p[K], e[K], low[K];                                                    \
        ALL_UNROLLED                                                                           \
        for (int u = 0; u < (K); u++) {                                                        \
            m[u] = NAME(narrow)(mean + j + u * ACC_WIDTH);                                     \
            s[u] = (ACC){0};                                                                   \
            p[u] = (ACC){0};                                                                   \
            e[u] = (ACC){0};                                                                   \
            low[u] = (ACC){0};                                                                 \
        }                                                                                      \
        for (ptrdiff_t i = 0; i < rows; i++)                                                   \
            ALL_UNROLLED                                                                       \
            for (int u = 0; u < (K); u++) {                                                    \
                const ptrdiff_t at = i * block->cols + j + u * ACC_WIDTH;                      \
                if (u % IN_LINE == 0) {                                                        \
                    PREFETCH(dy + at + ahead);                                                 \
                    PREFETCH(x + at + ahead);                                                  \
                }                                                                              \
                ACC g = ACC_READ(dy + at), d = ACC_READ(x + at) - m[u];                        \
                s[u] += g;                                                                     \
                ADD_PRODUCT(p[u], low[u], g, d);                                               \
                e[u] += d;                                                                     \
            }                                                                                  \
        ALL_UNROLLED                                                                           \
        for (int u = 0; u < (K); u++) {                                                        \
            NAME(add_to)(sum + j + u * ACC_WIDTH, s[u]);                                       \
            NAME(add_to)(product + j + u * ACC_WIDTH, p[u]);                                   \
            NAME(add_to)(rest + j + u * ACC_WIDTH, e[u]);                                      \
        }                                                                                      \
        for (int u = 0; u < LOWS(K); u++)                                                      \
            NAME(add_to)(product + j + u * ACC_WIDTH, FINITE(low[u]));                         \
    }

/* sum += dy, product += dy * (x - mean), rest += x - mean. */
KERNEL void NAME(column_grad_sums)(double *sum, double *product, double *rest,
                                   const void *from_dy, const void *from_x, const Block *block,
                                   const double *mean) {
    const STORE *dy = from_dy, *x = from_x;
    if (block->rows == 0)
        return;
    const ptrdiff_t together = rows_together(2 * block->cols * sizeof(STORE), MOST_ROWS);
    const ptrdiff_t ahead = together * block->cols;
    for (ptrdiff_t r = 0; r < block->rows; r += together, dy += ahead, x += ahead) {
        const ptrdiff_t rows = block->rows - r < together ? block->rows - r : together;
        ptrdiff_t j = 0;
        SUM_GRADS(GRAD_VECTORS)
        SUM_GRADS(1)
        NAME(rest_grad_sums)(sum, product, rest, dy, x, rows, block->cols, j, mean);
    }
}

#undef SUM_GRADS
#undef IN_LINE

#undef ADD_PRODUCT
#undef FINITE
#undef LOWS
#undef MOST_ROWS
#undef ACC_READ
#undef ACC_WIDTH
#undef ACC

#endif
