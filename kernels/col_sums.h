/* Shifts and sums of the columns of a strip. Included by cols.h, once per storage type.

   As column_sums.h, but a strip is part of its rows, and a weight per row multiplies dy. */

KERNEL void NAME(col_shifts)(double *shift, const void *from, const Strip *strip) {
    const STORE *x = from;
    const ptrdiff_t taken = few(strip->rows), pitch = strip->pitch;
    const STORE *middle = x + (strip->rows - taken) / 2 * pitch;
    const STORE *end = x + (strip->rows - taken) * pitch;
    for (ptrdiff_t j = 0; j < strip->cols; j++)
        shift[j] = median3(NAME(short_mean)(x + j, pitch, taken),
                           NAME(short_mean)(middle + j, pitch, taken),
                           NAME(short_mean)(end + j, pitch, taken));
}

/* Columns j to j + K * DOUBLES, `rows` rows: sum += x - shift, square += (x - shift)^2. */
#define SUM_COLUMNS(K)                                                                         \
    for (; j + (K) * DOUBLES <= strip->cols; j += (K) * DOUBLES) {                             \
        vec_f64 k[K], s[K], q[K];                                                              \
        UNROLLED                                                                               \
        for (int u = 0; u < (K); u++) {                                                        \
            k[u] = load_f64(shift + j + u * DOUBLES);                                          \
            s[u] = q[u] = (vec_f64){0};                                                        \
        }                                                                                      \
        for (ptrdiff_t i = 0; i < rows; i++)                                                   \
            UNROLLED                                                                           \
            for (int u = 0; u < (K); u++) {                                                    \
                const STORE *at = x + i * strip->pitch + j + u * DOUBLES;                      \
                __builtin_prefetch(at + ROWS_TOGETHER * strip->pitch, 0, 2);                   \
                const vec_f64 d = NAME(widen)(at) - k[u];                                      \
                s[u] += d;                                                                     \
                q[u] += d * d;                                                                 \
            }                                                                                  \
        UNROLLED                                                                               \
        for (int u = 0; u < (K); u++) {                                                        \
            add_lanes_f64(sum + j + u * DOUBLES, s[u]);                                        \
            add_lanes_f64(square + j + u * DOUBLES, q[u]);                                     \
        }                                                                                      \
    }

KERNEL void NAME(col_sums)(double *sum, const void *from, const Strip *strip,
                           const double *shift) {
    const STORE *x = from;
    double *square = sum + strip->room;
    memset(sum, 0, 2 * strip->room * sizeof *sum);
    for (ptrdiff_t r = 0; r < strip->rows; r += ROWS_TOGETHER, x += ROWS_TOGETHER * strip->pitch) {
        const ptrdiff_t rows = strip->rows - r < ROWS_TOGETHER ? strip->rows - r : ROWS_TOGETHER;
        ptrdiff_t j = 0;
        SUM_COLUMNS(COL_VECTORS)
        SUM_COLUMNS(1)
        for (; j < strip->cols; j++) {
            double total = 0.0, squares = 0.0;
            for (ptrdiff_t i = 0; i < rows; i++) {
                const double d = NAME(get)(x + i * strip->pitch + j) - shift[j];
                total += d;
                squares += d * d;
            }
            sum[j] += total;
            square[j] += squares;
        }
    }
}
#undef SUM_COLUMNS

#define SUM_GRADS(K)                                                                           \
    for (; j + (K) * DOUBLES <= strip->cols; j += (K) * DOUBLES) {                             \
        vec_f64 m[K], s[K], p[K], e[K];                                                        \
        UNROLLED                                                                               \
        for (int u = 0; u < (K); u++) {                                                        \
            m[u] = load_f64(mean + j + u * DOUBLES);                                           \
            s[u] = p[u] = e[u] = (vec_f64){0};                                                 \
        }                                                                                      \
        for (ptrdiff_t i = 0; i < rows; i++)                                                   \
            UNROLLED                                                                           \
            for (int u = 0; u < (K); u++) {                                                    \
                const ptrdiff_t at = i * strip->pitch + j + u * DOUBLES;                       \
                __builtin_prefetch(dy + at + ROWS_TOGETHER * strip->pitch, 0, 2);              \
                __builtin_prefetch(x + at + ROWS_TOGETHER * strip->pitch, 0, 2);               \
                const vec_f64 g = NAME(widen)(dy + at) * weight[r + i];                        \
                const vec_f64 d = NAME(widen)(x + at) - m[u];                                  \
                s[u] += g;                                                                     \
                p[u] += g * d;                                                                 \
                e[u] += d;                                                                     \
            }                                                                                  \
        UNROLLED                                                                               \
        for (int u = 0; u < (K); u++) {                                                        \
            add_lanes_f64(sum + j + u * DOUBLES, s[u]);                                        \
            add_lanes_f64(product + j + u * DOUBLES, p[u]);                                    \
            add_lanes_f64(rest + j + u * DOUBLES, e[u]);                                       \
        }                                                                                      \
    }

/* sum += g, product += g * (x - mean), rest += x - mean, with g = dy * weight. */
KERNEL void NAME(col_grad_sums)(double *sum, const void *from_dy, const void *from_x,
                                const double *weight, const Strip *strip, const double *mean) {
    const STORE *dy = from_dy, *x = from_x;
    double *product = sum + strip->room, *rest = product + strip->room;
    const ptrdiff_t next = ROWS_TOGETHER * strip->pitch;
    memset(sum, 0, 3 * strip->room * sizeof *sum);
    for (ptrdiff_t r = 0; r < strip->rows; r += ROWS_TOGETHER, dy += next, x += next) {
        const ptrdiff_t rows = strip->rows - r < ROWS_TOGETHER ? strip->rows - r : ROWS_TOGETHER;
        ptrdiff_t j = 0;
        SUM_GRADS(COL_VECTORS)
        SUM_GRADS(1)
        for (; j < strip->cols; j++) {
            double total = 0.0, products = 0.0, deviations = 0.0;
            for (ptrdiff_t i = 0; i < rows; i++) {
                const double g = NAME(get)(dy + i * strip->pitch + j) * weight[r + i];
                const double d = NAME(get)(x + i * strip->pitch + j) - mean[j];
                total += g;
                products += g * d;
                deviations += d;
            }
            sum[j] += total;
            product[j] += products;
            rest[j] += deviations;
        }
    }
}
#undef SUM_GRADS
