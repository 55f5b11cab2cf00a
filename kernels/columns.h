/* Arithmetic on a block of rows whose columns are channels (family nc).

   Row r of a block is at x + r * stride; cols columns of it are worked on. Per-column values
   (shift, sums, coefficients) are arrays of cols elements. The file includes itself once for
   float and once for double; the schedules reach it through the table `Columns`. */

#ifndef REAL

#include "simd.h"

/* Coefficients of the columns in the element type, one array each, `pitch` elements apart. */
enum { HI, LO, SCALE, BIAS, SLOPE = BIAS, MEAN_DY_HI, MEAN_DY_LO, COEFFICIENTS };

typedef struct {
    ptrdiff_t rows, cols, stride;
} Block;

typedef struct {
    const void *packed; /* COEFFICIENTS arrays of the element type */
    ptrdiff_t pitch;
    /* NULL, or the channels themselves if one of them is wide: column j is channel j % period. */
    const Channel *channels;
    ptrdiff_t period;
} Coefficients;

typedef struct {
    ptrdiff_t itemsize;
    void (*first_shifts)(double *shift, const void *x, const Block *block);
    void (*sums)(double *sum, double *square, const void *x, const Block *block,
                 const double *shift);
    void (*grad_sums)(double *sum, double *product, double *rest, const void *dy, const void *x,
                      const Block *block, const double *mean);
    void (*pack)(void *packed, ptrdiff_t pitch, ptrdiff_t column, const Channel *channel,
                 int gradient);
    void (*apply)(void *y, const void *x, const Block *block, const Coefficients *columns,
                  int stream);
    void (*apply_grads)(void *dx, const void *dy, const void *x, const Block *block,
                        const Coefficients *columns, int stream);
} Columns;

/* Rows whose sums share one load and store of the column's totals. */
#define ROWS 8

#define REAL float
#define SUFFIX f32
#include "columns.h"
#undef REAL
#undef SUFFIX
#define REAL double
#define SUFFIX f64
#include "columns.h"
#undef REAL
#undef SUFFIX

#else

#define NAME(f) PASTE(f, SUFFIX)
#define VEC NAME(vec)
#define WIDTH ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))

/* As first_shift of rows.h, for every column, from the first rows. */
KERNEL void NAME(column_shifts)(double *shift, const void *from, const Block *block) {
    const REAL *x = from;
    const ptrdiff_t near = block->rows < ROWS ? block->rows : ROWS;
    for (ptrdiff_t j = 0; j < block->cols; j++) {
        const double first = x[j];
        double total = 0.0;
        for (ptrdiff_t r = 1; r < near; r++)
            total += x[r * block->stride + j] - first;
        const double found = first + total / near;
        shift[j] = isfinite(found) ? found : 0.0;
    }
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
                vec_f64 d = NAME(widen)(x + i * block->stride + j + u * DOUBLES) - k[u];       \
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
    const REAL *x = from;
    for (ptrdiff_t r = 0; r < block->rows; r += ROWS, x += ROWS * block->stride) {
        const ptrdiff_t rows = block->rows - r < ROWS ? block->rows - r : ROWS;
        ptrdiff_t j = 0;
        SUM_COLUMNS(4)
        SUM_COLUMNS(1)
        for (; j < block->cols; j++)
            for (ptrdiff_t i = 0; i < rows; i++) {
                double d = x[i * block->stride + j] - shift[j];
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
                const ptrdiff_t at = i * block->stride + j + u * DOUBLES;                      \
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
    const REAL *dy = from_dy, *x = from_x;
    for (ptrdiff_t r = 0; r < block->rows; r += ROWS) {
        const ptrdiff_t rows = block->rows - r < ROWS ? block->rows - r : ROWS;
        ptrdiff_t j = 0;
        SUM_GRADS(2)
        SUM_GRADS(1)
        for (; j < block->cols; j++)
            for (ptrdiff_t i = 0; i < rows; i++) {
                double g = dy[i * block->stride + j], d = x[i * block->stride + j] - mean[j];
                sum[j] += g;
                product[j] += g * d;
                rest[j] += d;
            }
        dy += ROWS * block->stride;
        x += ROWS * block->stride;
    }
}

#undef SUM_GRADS

KERNEL void NAME(column_pack)(void *packed, ptrdiff_t pitch, ptrdiff_t column,
                              const Channel *channel, int gradient) {
    REAL *p = (REAL *)packed + column;
    p[HI * pitch] = (REAL)channel->hi;
    p[LO * pitch] = (REAL)channel->lo;
    p[SCALE * pitch] = (REAL)channel->scale;
    p[BIAS * pitch] = (REAL)(gradient ? channel->slope : channel->bias);
    p[MEAN_DY_HI * pitch] = (REAL)channel->mean_dy_hi;
    p[MEAN_DY_LO * pitch] = (REAL)channel->mean_dy_lo;
}

/* Columns before y reaches a line, if streaming. */
INLINE ptrdiff_t NAME(head)(const REAL *y, ptrdiff_t cols, int stream) {
    return stream ? line_head(y, sizeof(REAL), cols) : 0;
}

KERNEL void NAME(column_apply)(void *to, const void *from, const Block *block,
                               const Coefficients *columns, int stream) {
    const ptrdiff_t pitch = columns->pitch;
    const REAL *x = from, *hi = columns->packed;
    const REAL *lo = hi + LO * pitch, *scale = hi + SCALE * pitch, *bias = hi + BIAS * pitch;
    REAL *y = to;
#define VALUE(LOAD, j)                                                                         \
    (((LOAD(x + (j)) - LOAD(hi + (j))) - LOAD(lo + (j))) * LOAD(scale + (j)) + LOAD(bias + (j)))
    if (columns->channels != NULL) {
        for (ptrdiff_t r = 0; r < block->rows; r++, x += block->stride, y += block->stride)
            for (ptrdiff_t j = 0; j < block->cols; j++) {
                const Channel *w = columns->channels + j % columns->period;
                y[j] = w->wide ? (REAL)(((x[j] - w->hi) - w->lo) * w->scale + w->bias)
                               : VALUE(*, j);
            }
        return;
    }
    for (ptrdiff_t r = 0; r < block->rows; r++, x += block->stride, y += block->stride) {
        const ptrdiff_t head = NAME(head)(y, block->cols, stream);
        ptrdiff_t j = 0;
        for (; j < head; j++)
            y[j] = VALUE(*, j);
        if (stream)
            for (; j + 64 / (ptrdiff_t)sizeof(REAL) <= block->cols; j += 64 / sizeof(REAL))
                for (int k = 0; k < 64 / VECTOR_BYTES; k++)
                    NAME(stream)(y + j + k * WIDTH, VALUE(NAME(load), j + k * WIDTH));
        else
            for (; j + WIDTH <= block->cols; j += WIDTH)
                NAME(store)(y + j, VALUE(NAME(load), j));
        for (; j < block->cols; j++)
            y[j] = VALUE(*, j);
    }
#undef VALUE
}

KERNEL void NAME(column_apply_grads)(void *to, const void *from_dy, const void *from_x,
                                     const Block *block, const Coefficients *columns,
                                     int stream) {
    const ptrdiff_t pitch = columns->pitch;
    const REAL *dy = from_dy, *x = from_x, *hi = columns->packed;
    const REAL *lo = hi + LO * pitch, *scale = hi + SCALE * pitch, *slope = hi + SLOPE * pitch;
    const REAL *mean_hi = hi + MEAN_DY_HI * pitch, *mean_lo = hi + MEAN_DY_LO * pitch;
    REAL *dx = to;
#define VALUE(LOAD, j)                                                                         \
    (LOAD(scale + (j)) *                                                                       \
     ((LOAD(dy + (j)) - LOAD(mean_hi + (j))) -                                                 \
      (((LOAD(x + (j)) - LOAD(hi + (j))) - LOAD(lo + (j))) * LOAD(slope + (j)) +               \
       LOAD(mean_lo + (j)))))
    if (columns->channels != NULL) {
        for (ptrdiff_t r = 0; r < block->rows; r++) {
            for (ptrdiff_t j = 0; j < block->cols; j++) {
                const Channel *w = columns->channels + j % columns->period;
                dx[j] = w->wide ? (REAL)(w->scale * ((dy[j] - w->mean_dy_hi) -
                                                     (((x[j] - w->hi) - w->lo) * w->slope +
                                                      w->mean_dy_lo)))
                                : VALUE(*, j);
            }
            dy += block->stride;
            x += block->stride;
            dx += block->stride;
        }
        return;
    }
    for (ptrdiff_t r = 0; r < block->rows; r++) {
        const ptrdiff_t head = NAME(head)(dx, block->cols, stream);
        ptrdiff_t j = 0;
        for (; j < head; j++)
            dx[j] = VALUE(*, j);
        if (stream)
            for (; j + 64 / (ptrdiff_t)sizeof(REAL) <= block->cols; j += 64 / sizeof(REAL))
                for (int k = 0; k < 64 / VECTOR_BYTES; k++)
                    NAME(stream)(dx + j + k * WIDTH, VALUE(NAME(load), j + k * WIDTH));
        else
            for (; j + WIDTH <= block->cols; j += WIDTH)
                NAME(store)(dx + j, VALUE(NAME(load), j));
        for (; j < block->cols; j++)
            dx[j] = VALUE(*, j);
        dy += block->stride;
        x += block->stride;
        dx += block->stride;
    }
#undef VALUE
}

static const Columns NAME(columns) = {
    sizeof(REAL),      NAME(column_shifts), NAME(column_sums),      NAME(column_grad_sums),
    NAME(column_pack), NAME(column_apply), NAME(column_apply_grads),
};

#undef WIDTH
#undef VEC
#undef NAME

#endif
