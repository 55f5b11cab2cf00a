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

/* sum += x - shift, square += (x - shift)^2, over `rows` rows of K vectors of doubles. */
#define SUM_COLUMNS(K)                                                                         \
    for (; j + (K) * DOUBLES <= block->cols; j += (K) * DOUBLES) {                             \
        vec_f64 k[K], s[K], q[K];                                                              \
        UNROLLED                                                                               \
        for (int u = 0; u < (K); u++) {                                                        \
            k[u] = load_f64(shift + j + u * DOUBLES);                                          \
            s[u] = load_f64(sum + j + u * DOUBLES);                                            \
            q[u] = load_f64(square + j + u * DOUBLES);                                         \
        }                                                                                      \
        for (ptrdiff_t i = 0; i < rows; i++)                                                   \
            UNROLLED                                                                           \
            for (int u = 0; u < (K); u++) {                                                    \
                const ptrdiff_t at = i * block->cols + j + u * DOUBLES;                        \
                PREFETCH(x + at + ahead);                                                      \
                vec_f64 d = NAME(widen)(x + at) - k[u];                                        \
                s[u] += d;                                                                     \
                q[u] += d * d;                                                                 \
            }                                                                                  \
        UNROLLED                                                                               \
        for (int u = 0; u < (K); u++) {                                                        \
            store_f64(sum + j + u * DOUBLES, s[u]);                                            \
            store_f64(square + j + u * DOUBLES, q[u]);                                         \
        }                                                                                      \
    }

KERNEL void NAME(column_sums)(double *sum, double *square, const void *from, const Block *block,
                              const double *shift) {
    const STORE *x = from;
    if (block->rows == 0)
        return;
    const ptrdiff_t together = rows_together(block->cols * sizeof(STORE));
    const ptrdiff_t ahead = together * block->cols;
    for (ptrdiff_t r = 0; r < block->rows; r += together, x += ahead) {
        const ptrdiff_t rows = block->rows - r < together ? block->rows - r : together;
        ptrdiff_t j = 0;
        SUM_COLUMNS(4)
        SUM_COLUMNS(1)
        for (; j < block->cols; j++)
            for (ptrdiff_t i = 0; i < rows; i++) {
                double d = GET(x + i * block->cols + j) - shift[j];
                sum[j] += d;
                square[j] += d * d;
            }
    }
}

#undef SUM_COLUMNS

#define SUM_GRADS(K)                                                                           \
    for (; j + (K) * DOUBLES <= block->cols; j += (K) * DOUBLES) {                             \
        vec_f64 m[K], s[K], p[K], e[K];                                                        \
        UNROLLED                                                                               \
        for (int u = 0; u < (K); u++) {                                                        \
            m[u] = load_f64(mean + j + u * DOUBLES);                                           \
            s[u] = load_f64(sum + j + u * DOUBLES);                                            \
            p[u] = load_f64(product + j + u * DOUBLES);                                        \
            e[u] = load_f64(rest + j + u * DOUBLES);                                           \
        }                                                                                      \
        for (ptrdiff_t i = 0; i < rows; i++)                                                   \
            UNROLLED                                                                           \
            for (int u = 0; u < (K); u++) {                                                    \
                const ptrdiff_t at = i * block->cols + j + u * DOUBLES;                        \
                PREFETCH(dy + at + ahead);                                                     \
                PREFETCH(x + at + ahead);                                                      \
                vec_f64 g = NAME(widen)(dy + at), d = NAME(widen)(x + at) - m[u];              \
                s[u] += g;                                                                     \
                p[u] += g * d;                                                                 \
                e[u] += d;                                                                     \
            }                                                                                  \
        UNROLLED                                                                               \
        for (int u = 0; u < (K); u++) {                                                        \
            store_f64(sum + j + u * DOUBLES, s[u]);                                            \
            store_f64(product + j + u * DOUBLES, p[u]);                                        \
            store_f64(rest + j + u * DOUBLES, e[u]);                                           \
        }                                                                                      \
    }

/* sum += dy, product += dy * (x - mean), rest += x - mean. */
KERNEL void NAME(column_grad_sums)(double *sum, double *product, double *rest,
                                   const void *from_dy, const void *from_x, const Block *block,
                                   const double *mean) {
    const STORE *dy = from_dy, *x = from_x;
    if (block->rows == 0)
        return;
    const ptrdiff_t together = rows_together(2 * block->cols * sizeof(STORE));
    const ptrdiff_t ahead = together * block->cols;
    for (ptrdiff_t r = 0; r < block->rows; r += together, dy += ahead, x += ahead) {
        const ptrdiff_t rows = block->rows - r < together ? block->rows - r : together;
        ptrdiff_t j = 0;
        SUM_GRADS(GRAD_VECTORS)
        SUM_GRADS(1)
        for (; j < block->cols; j++)
            for (ptrdiff_t i = 0; i < rows; i++) {
                double g = GET(dy + i * block->cols + j);
                double d = GET(x + i * block->cols + j) - mean[j];
                sum[j] += g;
                product[j] += g * d;
                rest[j] += d;
            }
    }
}

#undef SUM_GRADS
