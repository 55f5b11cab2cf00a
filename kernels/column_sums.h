/* Sums of the columns of a block: a part of columns.h, once per storage type. */

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

#ifdef HALF
#include "column_half_sums.h"
#else

/* Vectors in a cache line, which is asked for once: each by itself took sums 5 % longer. */
#define IN_LINE (64 / (int)(DOUBLES * sizeof(STORE)))

/* sum += x - shift, square += (x - shift)^2, over `rows` rows of K vectors. */
#define SUM_COLUMNS(K)                                                                         \
    for (; j + (K) * DOUBLES <= block->cols; j += (K) * DOUBLES) {                             \
        vec_f64 k[K], s[K], q[K];                                                              \
        ALL_UNROLLED                                                                           \
        for (int u = 0; u < (K); u++) {                                                        \
            k[u] = load_f64(shift + j + u * DOUBLES);                                          \
            s[u] = (vec_f64){0};                                                               \
            q[u] = (vec_f64){0};                                                               \
        }                                                                                      \
        for (ptrdiff_t i = 0; i < rows; i++)                                                   \
            ALL_UNROLLED                                                                       \
            for (int u = 0; u < (K); u++) {                                                    \
                const ptrdiff_t at = i * block->cols + j + u * DOUBLES;                        \
                if (u % IN_LINE == 0)                                                          \
                    PREFETCH(x + at + ahead);                                                  \
                vec_f64 d = NAME(widen)(x + at) - k[u];                                        \
                s[u] += d;                                                                     \
                q[u] += d * d;                                                                 \
            }                                                                                  \
        ALL_UNROLLED                                                                           \
        for (int u = 0; u < (K); u++) {                                                        \
            add_to_doubles(sum + j + u * DOUBLES, s[u]);                                       \
            add_to_doubles(square + j + u * DOUBLES, q[u]);                                    \
        }                                                                                      \
    }

KERNEL void NAME(column_sums)(double *sum, double *square, const void *from, const Block *block,
                              const double *shift) {
    const STORE *x = from;
    if (block->rows == 0)
        return;
    const ptrdiff_t together = rows_together(block->cols * sizeof(STORE), 32);
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
    for (; j + (K) * DOUBLES <= block->cols; j += (K) * DOUBLES) {                             \
        vec_f64 m[K], s[K], p[K], e[K];                                                        \
        ALL_UNROLLED                                                                           \
        for (int u = 0; u < (K); u++) {                                                        \
            m[u] = load_f64(mean + j + u * DOUBLES);                                           \
            s[u] = (vec_f64){0};                                                               \
            p[u] = (vec_f64){0};                                                               \
            e[u] = (vec_f64){0};                                                               \
        }                                                                                      \
        for (ptrdiff_t i = 0; i < rows; i++)                                                   \
            ALL_UNROLLED                                                                       \
            for (int u = 0; u < (K); u++) {                                                    \
                const ptrdiff_t at = i * block->cols + j + u * DOUBLES;                        \
                if (u % IN_LINE == 0) {                                                        \
                    PREFETCH(dy + at + ahead);                                                 \
                    PREFETCH(x + at + ahead);                                                  \
                }                                                                              \
                vec_f64 g = NAME(widen)(dy + at), d = NAME(widen)(x + at) - m[u];              \
                s[u] += g;                                                                     \
                p[u] += g * d;                                                                 \
                e[u] += d;                                                                     \
            }                                                                                  \
        ALL_UNROLLED                                                                           \
        for (int u = 0; u < (K); u++) {                                                        \
            add_to_doubles(sum + j + u * DOUBLES, s[u]);                                       \
            add_to_doubles(product + j + u * DOUBLES, p[u]);                                   \
            add_to_doubles(rest + j + u * DOUBLES, e[u]);                                      \
        }                                                                                      \
    }

/* sum += dy, product += dy * (x - mean), rest += x - mean. */
KERNEL void NAME(column_grad_sums)(double *sum, double *product, double *rest,
                                   const void *from_dy, const void *from_x, const Block *block,
                                   const double *mean) {
    const STORE *dy = from_dy, *x = from_x;
    if (block->rows == 0)
        return;
    const ptrdiff_t together = rows_together(2 * block->cols * sizeof(STORE), 32);
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

#endif
