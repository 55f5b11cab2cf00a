/* Arithmetic on a block of rows whose columns are channels (family nc).

   A block is rows * cols contiguous elements. Per-column values (shift, sums, coefficients) are
   arrays of cols elements. The file includes itself once per storage type, as runs.h does; the
   schedules reach it through the table `Columns`. */

#ifndef REAL

#include "activation.h"
#include "tables.h"

typedef struct {
    ptrdiff_t rows, cols;
} Block;

typedef struct {
    const void *packed; /* COEFFICIENTS arrays of the type computed in */
    ptrdiff_t pitch;
    /* NULL, or the channels themselves if not all are plain: column j is channel
       (first + j) % period; a piece of channels that is not `uneven` has only plain ones, and they
       are not there. */
    const Channel *channels;
    const unsigned char *uneven;
    ptrdiff_t period, first, piece;
} Coefficients;

INLINE const Channel *channel_of(const Coefficients *columns, ptrdiff_t j) {
    static const Channel plain = {.kind = PLAIN_CHANNEL};
    const ptrdiff_t i = (columns->first + j) % columns->period;
    return columns->uneven[i / columns->piece] ? columns->channels + i : &plain;
}

typedef struct {
    ptrdiff_t itemsize; /* of what is computed in */
    void (*first_shifts)(double *shift, const void *x, const Block *block, ptrdiff_t first,
                         ptrdiff_t last);
    void (*sums)(double *sum, double *square, const void *x, const Block *block,
                 const double *shift);
    void (*grad_sums)(double *sum, double *product, double *rest, const void *dy, const void *x,
                      const Block *block, const double *mean);
    void (*apply)(void *y, const void *x, const Block *block, const Coefficients *columns,
                  int stream);
    void (*apply_fused)(void *y, const void *x, const void *residual, const Block *block,
                        const Coefficients *columns, int activation, int stream);
    void (*apply_grads)(void *dx, const void *dy, const void *x, const Block *block,
                        const Coefficients *columns, int stream);
    void (*activation_grads)(void *g, const void *dy, const void *x, const void *residual,
                             const Block *block, const Coefficients *columns, int activation,
                             int stream);
} Columns;

/* Rows that share one load and store of the columns' totals: 8 KB of them, 8 to 32. The same rows
   further on are asked for meanwhile: sums of (65536, 256) went from 32 to 53 GB/s, because the
   hardware alone does not follow that many rows. Into the second-level cache: rows 4 KB apart
   share one set of the first. Sums of two such arrays, 128 MB, stay at 40 GB/s at any distance, in
   any order; a loop that does nothing but read them has 44, and 59 below 100 MB: that is why the
   backward of (65536, 256) takes 2.0 of the triad and not 1.67. Asked for 1 to 16 KB ahead, into
   either cache, 2, 4 or 8 rows in step: the same or slower, and below 100 MB the sums take no
   longer than that loop. */
INLINE ptrdiff_t rows_together(ptrdiff_t row_bytes, ptrdiff_t most) {
    const ptrdiff_t rows = 8192 / row_bytes;
    return rows < 8 ? 8 : rows > most ? most : rows;
}
#define PREFETCH(p) __builtin_prefetch(p, 0, 2)

/* Columns of halves whose sums are taken together; of bfloat16 that are written in pairs. */
enum { PART = 512, PAIRED = 1024 };

/* How results are stored: to the caches, past them, or past them when what is read lies in the
   second-level cache. It is then not asked for ahead, which took group norm of (32, 28, 28, 256)
   1.28 instead of 1.24 of the copy; read from memory, rows want it: 1.22 instead of 1.08 of the
   triad for dx of (65536, 256). */
enum { TO_CACHE, TO_MEMORY, TO_MEMORY_FROM_CACHE };

/* Vectors of columns whose sums stay in registers: as many as there are registers for. With 8 of
   them rows of 64 floats are read whole: 28 instead of 26 GB/s and core. */
#if VECTOR_BYTES == 64
#define SUM_VECTORS 8
#define GRAD_VECTORS 4
#else
#define SUM_VECTORS 4
#define GRAD_VECTORS 2
#endif

#define REAL float
#define SUFFIX f32
#include "columns.h"
#undef SUFFIX
#define HALF
#define IN_STEPS
#define SUFFIX f16
#include "columns.h"
#undef SUFFIX
#define SORTED
#define SUFFIX bf16
#include "columns.h"
#undef SUFFIX
#undef SORTED
#undef IN_STEPS
#define SUFFIX w32
#include "columns.h"
#undef SUFFIX
#undef HALF
#undef REAL
#define REAL double
#define SUFFIX f64
#include "columns.h"
#undef SUFFIX
#undef REAL

#else

#define NAME(f) PASTE(f, SUFFIX)
#define STORE NAME(store_t)
#define VEC NAME(vec)
#define GET NAME(get)
#define LOAD NAME(load)
#define WIDTH ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))
#define LINE (64 / (ptrdiff_t)sizeof(STORE))
/* 4 KB: a unit of halves has 128 KB, and what is asked for behind its end is not what comes next.
   With 8 KB, dx of (65536, 256) took 1.13 of the triad in float16 instead of 1.10; with 2 KB 1.10
   in float32 instead of 1.02. */
#define AHEAD (4096 / (ptrdiff_t)sizeof(STORE))

#include "column_sums.h"

/* Walks through a block so that vectors are stored to whole lines: OUT[j] = VECTOR(j) for whole
   vectors, FEW(j, k) for k elements. Where rows are whole lines themselves, the elements before
   the first line are done once and every row is read from there, rotated, with the coefficients
   rotated alike; else every row has a head of its own. Unaligned vectors and heads in every row
   took 1.6 times the copy of (65536, 256), this 1.1. */
#define WALK(OUT, VECTOR, FEW, ASK, ADVANCE)                                                   \
    const ptrdiff_t cols = block->cols;                                                        \
    const int rotate = cols % LINE == 0;                                                       \
    ptrdiff_t begin = 0, end = cols;                                                           \
    if (block->rows == 0)                                                                      \
        return;                                                                                \
    if (rotate) {                                                                              \
        begin = line_head(OUT, sizeof(STORE), cols);                                           \
        end = cols + begin;                                                                    \
        FEW(0, begin);                                                                         \
    }                                                                                          \
    for (ptrdiff_t r = 0; r < block->rows; r++) {                                              \
        if (r == block->rows - 1)                                                              \
            end = cols;                                                                        \
        ptrdiff_t j = begin;                                                                   \
        if (!rotate && cols >= 4 * LINE) {                                                     \
            j = line_head(OUT, sizeof(STORE), cols);                                           \
            FEW(0, j);                                                                         \
        }                                                                                      \
        if (stream && (rotate || cols >= 4 * LINE))                                            \
            for (; j + LINE <= end; j += LINE) {                                               \
                if (stream == TO_MEMORY) {                                                     \
                    ASK(j);                                                                    \
                }                                                                              \
                for (ptrdiff_t i = j; i < j + LINE; i += WIDTH)                                \
                    NAME(stream)(OUT + i, VECTOR(i));                                          \
            }                                                                                  \
        for (; j + WIDTH <= end; j += WIDTH)                                                   \
            NAME(store)(OUT + j, VECTOR(j));                                                   \
        FEW(j, end - j);                                                                       \
        ADVANCE;                                                                               \
    }

/* k elements, each by itself: VALUE(READ, OF, j) reads elements with READ, coefficients with OF. */
#define ONE_BY_ONE(OUT, j, k)                                                                  \
    for (ptrdiff_t e = j; e < (j) + (k); e++)                                                  \
    NAME(put)(OUT + e, VALUE(GET, ONE, e))

/* Coefficient k of column j, or of the vector there. */
#define PACKED                                                                                 \
    const REAL *packed = columns->packed;                                                      \
    const ptrdiff_t pitch = columns->pitch
#define ONE(k, j) packed[(k) * pitch + (j)]
#define WHOLE(k, j) NAME(coefficient)(&ONE(k, j))
#define NORM(READ, OF, j)                                                                      \
    (((READ(x + (j)) - OF(HI, j)) - OF(LO, j)) * OF(SCALE, j) + OF(BIAS, j))
#define GRADIENT(READ, OF, j)                                                                  \
    ((READ(dy + (j)) - OF(DY_SHIFT, j)) * OF(SCALE, j) -                                       \
     (((READ(x + (j)) - OF(HI, j)) - OF(LO, j)) * OF(SLOPE, j) + OF(REST, j)))
INLINE VEC NAME(coefficient)(const REAL *p) {
    return _Generic(p, const float *: load_f32, const double *: load_f64)(p);
}

#ifdef SORTED
#include "column_pairs.h"
#else
#define IN_PAIRS(OUT, SIZE, VALUE, ADVANCE)
#endif

KERNEL void NAME(column_apply)(void *to, const void *from, const Block *block,
                               const Coefficients *columns, int stream) {
    PACKED;
    const STORE *x = from;
    STORE *y = to;
#define VALUE NORM
    if (columns->channels != NULL) {
        for (ptrdiff_t r = 0; r < block->rows; r++, x += block->cols, y += block->cols)
            for (ptrdiff_t j = 0; j < block->cols; j++) {
                const Channel *channel = channel_of(columns, j);
                NAME(put)(y + j, channel->kind == PLAIN_CHANNEL
                                     ? VALUE(GET, ONE, j)
                                     : (REAL)norm_of(channel, GET(x + j)));
            }
        return;
    }
#define VECTOR(j) VALUE(LOAD, WHOLE, j)
#define FEW(j, k) ONE_BY_ONE(y, j, k)
#define ASK(j) PREFETCH(x + (j) + AHEAD)
    IN_PAIRS(y, BIAS + 1, NORM, (x += cols, y += cols))
    WALK(y, VECTOR, FEW, ASK, (x += cols, y += cols))
#undef ASK
#undef FEW
#undef VECTOR
#undef VALUE
}

KERNEL void NAME(column_apply_grads)(void *to, const void *from_dy, const void *from_x,
                                     const Block *block, const Coefficients *columns,
                                     int stream) {
    PACKED;
    const STORE *dy = from_dy, *x = from_x;
    STORE *dx = to;
#define VALUE GRADIENT
    if (columns->channels != NULL) {
        for (ptrdiff_t r = 0; r < block->rows; r++) {
            for (ptrdiff_t j = 0; j < block->cols; j++) {
                const Channel *channel = channel_of(columns, j);
                NAME(put)(dx + j, channel->kind == PLAIN_CHANNEL
                                      ? VALUE(GET, ONE, j)
                                      : (REAL)grad_of(channel, GET(dy + j), GET(x + j)));
            }
            dy += block->cols;
            x += block->cols;
            dx += block->cols;
        }
        return;
    }
#define VECTOR(j) VALUE(LOAD, WHOLE, j)
#define FEW(j, k) ONE_BY_ONE(dx, j, k)
#define ASK(j) PREFETCH(dy + (j) + AHEAD), PREFETCH(x + (j) + AHEAD)
    IN_PAIRS(dx, COEFFICIENTS, GRADIENT, (dy += cols, x += cols, dx += cols))
    WALK(dx, VECTOR, FEW, ASK, (dy += cols, x += cols, dx += cols))
#undef ASK
#undef FEW
#undef VECTOR
#undef VALUE
}

/* norm(x) + residual of element j, in a lane: the bits that it has among others. */
INLINE VEC NAME(before_activation_at)(const STORE *x, const STORE *residual, ptrdiff_t j,
                                      const Coefficients *columns) {
    PACKED;
    VEC z = {NORM(GET, ONE, j)};
    if (columns->channels != NULL && channel_of(columns, j)->kind != PLAIN_CHANNEL)
        z[0] = (REAL)norm_of(channel_of(columns, j), GET(x + j));
    if (residual != NULL)
        z[0] += GET(residual + j);
    return z;
}
#define BEFORE_ACTIVATION(j)                                                                   \
    (residual == NULL ? NORM(LOAD, WHOLE, j)                                                   \
                      : NORM(LOAD, WHOLE, j) + LOAD(residual + (j)))
#define ADVANCE_RESIDUAL (residual = residual == NULL ? NULL : residual + block->cols)

/* y = activation(norm(x) + residual). */
KERNEL void NAME(column_apply_fused)(void *to, const void *from, const void *from_residual,
                                     const Block *block, const Coefficients *columns,
                                     int activation, int stream) {
    PACKED;
    const STORE *x = from, *residual = from_residual;
    STORE *y = to;
#define VECTOR(j) ACTIVATE(BEFORE_ACTIVATION(j))
#define FEW(j, k)                                                                              \
    for (ptrdiff_t e = j; e < (j) + (k); e++)                                                  \
    NAME(put)(y + e, ACTIVATE(NAME(before_activation_at)(x, residual, e, columns))[0])
#define ASK(j) PREFETCH(x + (j) + AHEAD)
    if (columns->channels != NULL) {
        for (ptrdiff_t r = 0; r < block->rows; r++, ADVANCE_RESIDUAL) {
            FEW(0, block->cols);
            x += block->cols;
            y += block->cols;
        }
        return;
    }
    WALK(y, VECTOR, FEW, ASK, (x += cols, y += cols, ADVANCE_RESIDUAL))
#undef ASK
#undef FEW
#undef VECTOR
}

/* g = dy * activation'(norm(x) + residual). */
KERNEL void NAME(column_activation_grads)(void *to, const void *from_dy, const void *from_x,
                                          const void *from_residual, const Block *block,
                                          const Coefficients *columns, int activation,
                                          int stream) {
    PACKED;
    const STORE *dy = from_dy, *x = from_x, *residual = from_residual;
    STORE *g = to;
#define VECTOR(j) (LOAD(dy + (j)) * SLOPE_OF(BEFORE_ACTIVATION(j)))
#define FEW(j, k)                                                                              \
    for (ptrdiff_t e = j; e < (j) + (k); e++)                                                  \
    NAME(put)                                                                                  \
    (g + e,                                                                                    \
     GET(dy + e) * SLOPE_OF(NAME(before_activation_at)(x, residual, e, columns))[0])
#define ASK(j) PREFETCH(dy + (j) + AHEAD), PREFETCH(x + (j) + AHEAD)
    if (columns->channels != NULL) {
        for (ptrdiff_t r = 0; r < block->rows; r++, ADVANCE_RESIDUAL) {
            FEW(0, block->cols);
            dy += block->cols;
            x += block->cols;
            g += block->cols;
        }
        return;
    }
    WALK(g, VECTOR, FEW, ASK, (dy += cols, x += cols, g += cols, ADVANCE_RESIDUAL))
#undef ASK
#undef FEW
#undef VECTOR
}

#undef WALK

static const Columns NAME(columns) = {
    sizeof(REAL),           NAME(column_shifts),      NAME(column_sums),
    NAME(column_grad_sums), NAME(column_apply),       NAME(column_apply_fused),
    NAME(column_apply_grads), NAME(column_activation_grads),
};

#undef ADVANCE_RESIDUAL
#undef BEFORE_ACTIVATION
#undef IN_PAIRS
#undef GRADIENT
#undef NORM
#undef WHOLE
#undef ONE
#undef PACKED
#undef ONE_BY_ONE
#undef AHEAD
#undef LINE
#undef WIDTH
#undef LOAD
#undef GET
#undef VEC
#undef STORE
#undef NAME

#endif
