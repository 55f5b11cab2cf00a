/* Arithmetic on a block of rows whose columns are channels (family nc).

   A block is rows * cols contiguous elements. Per-column values (shift, sums, coefficients) are
   arrays of cols elements. The file includes itself once for float and once for double; the
   schedules reach it through the table `Columns`. */

#ifndef REAL

#include "simd.h"

/* Coefficients of the columns in the element type, one array each, `pitch` elements apart. Each
   array goes on with WRAP of its first elements: a row may be read from its first full line. */
enum { WRAP = 16 };
enum { HI, LO, SCALE, BIAS, SLOPE = BIAS, MEAN_DY_HI, MEAN_DY_LO, COEFFICIENTS };

typedef struct {
    ptrdiff_t rows, cols;
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
    void (*first_shifts)(double *shift, const void *x, const Block *block, ptrdiff_t first,
                         ptrdiff_t last);
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

/* Rows that share one load and store of the columns' totals: 8 KB of them, 8 to 32. The same rows
   further on are asked for meanwhile: sums of (65536, 256) went from 32 to 53 GB/s, because the
   hardware alone does not follow that many rows. Into the second-level cache: rows 4 KB apart
   share one set of the first. */
INLINE ptrdiff_t rows_together(ptrdiff_t row_bytes) {
    const ptrdiff_t rows = 8192 / row_bytes;
    return rows < 8 ? 8 : rows > 32 ? 32 : rows;
}
#define PREFETCH(p) __builtin_prefetch(p, 0, 2)

/* Vectors of columns whose sums stay in registers: as many as there are registers for. */
#if VECTOR_BYTES == 64
#define GRAD_VECTORS 4
#else
#define GRAD_VECTORS 2
#endif

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
#define AHEAD (8192 / (ptrdiff_t)sizeof(REAL))

/* As first_shift of runs.h, for columns first to last of the block. */
KERNEL void NAME(column_shifts)(double *shift, const void *from, const Block *block,
                                ptrdiff_t first, ptrdiff_t last) {
    const REAL *x = from;
    const ptrdiff_t taken = few(block->rows), c = block->cols;
    const REAL *middle = x + (block->rows - taken) / 2 * c, *end = x + (block->rows - taken) * c;
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
    const REAL *x = from;
    if (block->rows == 0)
        return;
    const ptrdiff_t together = rows_together(block->cols * sizeof(REAL));
    const ptrdiff_t ahead = together * block->cols;
    for (ptrdiff_t r = 0; r < block->rows; r += together, x += ahead) {
        const ptrdiff_t rows = block->rows - r < together ? block->rows - r : together;
        ptrdiff_t j = 0;
        SUM_COLUMNS(4)
        SUM_COLUMNS(1)
        for (; j < block->cols; j++)
            for (ptrdiff_t i = 0; i < rows; i++) {
                double d = x[i * block->cols + j] - shift[j];
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
    const REAL *dy = from_dy, *x = from_x;
    if (block->rows == 0)
        return;
    const ptrdiff_t together = rows_together(2 * block->cols * sizeof(REAL));
    const ptrdiff_t ahead = together * block->cols;
    for (ptrdiff_t r = 0; r < block->rows; r += together, dy += ahead, x += ahead) {
        const ptrdiff_t rows = block->rows - r < together ? block->rows - r : together;
        ptrdiff_t j = 0;
        SUM_GRADS(GRAD_VECTORS)
        SUM_GRADS(1)
        for (; j < block->cols; j++)
            for (ptrdiff_t i = 0; i < rows; i++) {
                double g = dy[i * block->cols + j], d = x[i * block->cols + j] - mean[j];
                sum[j] += g;
                product[j] += g * d;
                rest[j] += d;
            }
    }
}

#undef SUM_GRADS

KERNEL void NAME(column_pack)(void *packed, ptrdiff_t pitch, ptrdiff_t column,
                              const Channel *channel, int gradient) {
    REAL *p = (REAL *)packed + column;
    p[HI * pitch] = (REAL)channel->hi;
    p[LO * pitch] = (REAL)channel->lo;
    p[SCALE * pitch] = (REAL)channel->scale;
    if (!gradient) {
        p[BIAS * pitch] = (REAL)channel->bias;
        return;
    }
    p[SLOPE * pitch] = (REAL)channel->slope;
    p[MEAN_DY_HI * pitch] = (REAL)channel->mean_dy_hi;
    p[MEAN_DY_LO * pitch] = (REAL)channel->mean_dy_lo;
}

/* Walks through a block so that vectors are stored to whole lines. Where rows are whole lines
   themselves, the elements before the first line are done once and every row is read from there,
   rotated, with the coefficients rotated alike; else every row has a head of its own. Unaligned
   vectors and heads in every row took 1.6 times the copy of (65536, 256), this 1.1. */
#define WALK(OUT, VALUE, ASK, ADVANCE)                                                         \
    const ptrdiff_t line = 64 / sizeof(REAL), cols = block->cols;                              \
    const int rotate = cols % line == 0;                                                       \
    ptrdiff_t begin = 0, end = cols;                                                           \
    if (rotate) {                                                                              \
        begin = line_head(OUT, sizeof(REAL), cols);                                            \
        end = cols + begin;                                                                    \
        for (ptrdiff_t j = 0; j < begin; j++)                                                  \
            OUT[j] = VALUE(*, j);                                                              \
    }                                                                                          \
    for (ptrdiff_t r = 0; r < block->rows; r++) {                                              \
        if (r == block->rows - 1)                                                              \
            end = cols;                                                                        \
        ptrdiff_t j = begin;                                                                   \
        if (!rotate && cols >= 4 * line)                                                       \
            for (const ptrdiff_t head = line_head(OUT, sizeof(REAL), cols); j < head; j++)     \
                OUT[j] = VALUE(*, j);                                                          \
        if (stream && (rotate || cols >= 4 * line))                                            \
            for (; j + line <= end; j += line) {                                               \
                ASK(j);                                                                        \
                for (int k = 0; k < 64 / VECTOR_BYTES; k++)                                    \
                    NAME(stream)(OUT + j + k * WIDTH, VALUE(NAME(load), j + k * WIDTH));       \
            }                                                                                  \
        else                                                                                   \
            for (; j + WIDTH <= end; j += WIDTH)                                               \
                NAME(store)(OUT + j, VALUE(NAME(load), j));                                    \
        for (; j < end; j++)                                                                   \
            OUT[j] = VALUE(*, j);                                                              \
        ADVANCE;                                                                               \
    }

KERNEL void NAME(column_apply)(void *to, const void *from, const Block *block,
                               const Coefficients *columns, int stream) {
    const ptrdiff_t pitch = columns->pitch;
    const REAL *x = from, *hi = columns->packed;
    const REAL *lo = hi + LO * pitch, *scale = hi + SCALE * pitch, *bias = hi + BIAS * pitch;
    REAL *y = to;
    if (block->rows == 0)
        return;
#define VALUE(LOAD, j)                                                                         \
    (((LOAD(x + (j)) - LOAD(hi + (j))) - LOAD(lo + (j))) * LOAD(scale + (j)) + LOAD(bias + (j)))
    if (columns->channels != NULL) {
        for (ptrdiff_t r = 0; r < block->rows; r++, x += block->cols, y += block->cols)
            for (ptrdiff_t j = 0; j < block->cols; j++) {
                const Channel *w = columns->channels + j % columns->period;
                y[j] = w->wide ? (REAL)(((x[j] - w->hi) - w->lo) * w->scale + w->bias)
                               : VALUE(*, j);
            }
        return;
    }
#define ASK(j) PREFETCH(x + (j) + AHEAD)
    WALK(y, VALUE, ASK, (x += cols, y += cols))
#undef ASK
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
    if (block->rows == 0)
        return;
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
            dy += block->cols;
            x += block->cols;
            dx += block->cols;
        }
        return;
    }
#define ASK(j) PREFETCH(dy + (j) + AHEAD), PREFETCH(x + (j) + AHEAD)
    WALK(dx, VALUE, ASK, (dy += cols, x += cols, dx += cols))
#undef ASK
#undef VALUE
}

#undef WALK

static const Columns NAME(columns) = {
    sizeof(REAL),      NAME(column_shifts), NAME(column_sums),      NAME(column_grad_sums),
    NAME(column_pack), NAME(column_apply), NAME(column_apply_grads),
};

#undef WIDTH
#undef AHEAD
#undef VEC
#undef NAME

#endif
