/* The backward of a block of rows through an activation (family nc).

   As run_fused_grads.h: g = dy * activation'(norm(x) + residual) of a tile goes to a buffer, and
   from there to the sums or the gradients of columns.h. */

#ifndef STORE

#include "buffers.h"
#include "columns.h"

/* What g is made of, from the first element of a block on. */
typedef struct {
    const void *dy, *x, *residual; /* residual may be NULL */
    Coefficients before;           /* of what the activation was applied to */
    int activation;
} ColumnSlope;

typedef struct {
    /* As grad_sums of columns.h. */
    void (*sums)(double *sum, double *product, double *rest, const ColumnSlope *at,
                 const Block *block, const double *mean);
    /* As apply_grads of columns.h or, if `constant`, apply of g. g may be NULL or dy; dx may be dy
       or x. */
    void (*grads)(void *dx, void *g, const ColumnSlope *at, const Block *block,
                  const Coefficients *columns, int constant, int stream);
} FusedColumns;

/* Columns of a tile whose sums are taken together; it has as many rows as fill a buffer. */
enum { TILE = 128 };

/* The coefficients from column j on; `size` is that of one of them. */
INLINE Coefficients coefficients_from(const Coefficients *columns, ptrdiff_t j, ptrdiff_t size) {
    Coefficients moved = *columns;
    moved.packed = (const char *)columns->packed + j * size;
    moved.first += j;
    return moved;
}

#define FUSED "column_fused_grads.h"
#define FUSED_HALVES w32
#include "fused_storages.h"

#else

#define NAME(f) PASTE(f, SUFFIX)
#define COMPUTE(f) PASTE(f, COMPUTED)
#define WIDTH ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))
#define LINE (64 / (ptrdiff_t)sizeof(STORE))

/* g of len elements of a row, with a loop of its own for every activation. */
INLINE void NAME(column_slopes_of)(REAL *g, const STORE *dy, const STORE *x,
                                   const STORE *residual, ptrdiff_t len,
                                   const Coefficients *before, const int activation) {
    const REAL *hi = before->packed, *lo = hi + LO * before->pitch;
    const REAL *scale = hi + SCALE * before->pitch, *bias = hi + BIAS * before->pitch;
    ptrdiff_t j = 0;
    for (; before->channels == NULL && j + WIDTH <= len; j += WIDTH) {
        __builtin_prefetch(dy + j + BUFFER_AHEAD / sizeof(STORE));
        __builtin_prefetch(x + j + BUFFER_AHEAD / sizeof(STORE));
        NAME(vec) z = ((NAME(load)(x + j) - COMPUTE(load)(hi + j)) - COMPUTE(load)(lo + j)) *
                          COMPUTE(load)(scale + j) + COMPUTE(load)(bias + j);
        if (residual != NULL)
            z += NAME(load)(residual + j);
        COMPUTE(store)(g + j, NAME(load)(dy + j) * SLOPE_OF(z));
    }
    for (; j < len; j++)
        g[j] = NAME(get)(dy + j) * SLOPE_OF(NAME(before_activation_at)(x, residual, j, before))[0];
}

/* g of elements i to i + len, whose first one is of column j; of halves also wide = x. */
KERNEL void NAME(column_slopes)(REAL *g, REAL *wide, const ColumnSlope *at, ptrdiff_t i,
                                ptrdiff_t j, ptrdiff_t len) {
    const Coefficients before = coefficients_from(&at->before, j, sizeof(REAL));
    const STORE *dy = (const STORE *)at->dy + i, *x = (const STORE *)at->x + i;
    const STORE *residual = at->residual == NULL ? NULL : (const STORE *)at->residual + i;
    if (wide != NULL)
        NAME(widen_all)(wide, x, len);
#define SLOPES(ACTIVATION)                                                                     \
    if (residual == NULL)                                                                      \
        NAME(column_slopes_of)(g, dy, x, NULL, len, &before, ACTIVATION);                      \
    else                                                                                       \
        NAME(column_slopes_of)(g, dy, x, residual, len, &before, ACTIVATION)
    FOR_EACH_ACTIVATION(at->activation, SLOPES)
#undef SLOPES
}

KERNEL void NAME(fused_column_sums)(double *sum, double *product, double *rest,
                                    const ColumnSlope *at, const Block *block,
                                    const double *mean) {
    REAL g[2 * CHUNK], x[2 * CHUNK];
    const ptrdiff_t cols = block->cols, wide = cols < TILE ? cols : TILE;
    if (block->rows == 0)
        return;
    const ptrdiff_t rows = 2 * CHUNK / wide;
    Block tile;
    for (ptrdiff_t r = 0; r < block->rows; r += rows) {
        tile.rows = block->rows - r < rows ? block->rows - r : rows;
        for (ptrdiff_t j = 0; j < cols; j += wide) {
            tile.cols = cols - j < wide ? cols - j : wide;
            for (ptrdiff_t k = 0; k < tile.rows; k++)
                NAME(column_slopes)(g + k * tile.cols, x + k * tile.cols, at, (r + k) * cols + j,
                                    j, tile.cols);
            COMPUTE(column_grad_sums)(sum + j, product + j, rest + j, g, x, &tile, mean + j);
        }
    }
}

/* dx and g of whole rows, or of a part of one, that begin at element i and column j. */
INLINE void NAME(fused_part)(STORE *dx, STORE *g_out, const ColumnSlope *at, ptrdiff_t i,
                             ptrdiff_t j, const Block part, const Coefficients *columns,
                             int constant, int stream) {
    REAL g[CHUNK];
    const Coefficients by = coefficients_from(columns, j, sizeof(REAL));
    const ptrdiff_t size = part.rows * part.cols;
#ifdef HALF
    REAL x[CHUNK], *to = g;
    for (ptrdiff_t k = 0; k < size; k += part.cols)
        NAME(column_slopes)(g + k, x + k, at, i + k, j, part.cols);
    const int stream_to = 0;
#else
    const REAL *x = (const STORE *)at->x + i;
    REAL *to = dx + i;
    for (ptrdiff_t k = 0; k < size; k += part.cols)
        NAME(column_slopes)(g + k, NULL, at, i + k, j, part.cols);
    const int stream_to = stream;
#endif
    if (g_out != NULL)
        NAME(round)(g_out + i, g, size, stream);
    if (constant)
        COMPUTE(column_apply)(to, g, &part, &by, stream_to);
    else
        COMPUTE(column_apply_grads)(to, g, x, &part, &by, stream_to);
#ifdef HALF
    NAME(round)(dx + i, g, size, stream);
#endif
}

/* Parts fit a buffer and begin at a line of dx: where rows are whole lines, they are read from the
   first line on, as in columns.h. */
KERNEL void NAME(fused_column_grads)(void *to_dx, void *to_g, const ColumnSlope *at,
                                     const Block *block, const Coefficients *columns,
                                     int constant, int stream) {
    STORE *dx = to_dx;
    const ptrdiff_t cols = block->cols, size = block->rows * cols;
    const int plain = columns->channels == NULL && at->before.channels == NULL;
    const int rotate = plain && cols % LINE == 0;
    ptrdiff_t begin = 0;
    for (ptrdiff_t i = 0; i < size;) {
        ptrdiff_t j = i % cols;
        Block part = {1, 0};
        if (j == 0 && (i == 0 || !rotate))
            begin = stream && cols >= 4 * LINE ? line_head(dx + i, sizeof(STORE), cols) : 0;
        if (j == 0 && begin > 0 && (i == 0 || !rotate)) {
            part.cols = begin;
        } else if (rotate) {
            /* Column begin + j of coefficients that go on with their first WRAP. */
            const ptrdiff_t past = (i - begin) % cols;
            j = begin + past;
            if (cols <= CHUNK && size - i >= cols) {
                part.cols = cols;
                part.rows = CHUNK / cols < (size - i) / cols ? CHUNK / cols : (size - i) / cols;
            } else {
                part.cols = cols - past < size - i ? cols - past : size - i;
            }
        } else {
            part.cols = cols - j;
        }
        if (part.cols > CHUNK)
            part.cols = CHUNK;
        NAME(fused_part)(dx, to_g, at, i, j, part, columns, constant, stream);
        i += part.rows * part.cols;
    }
}

static const FusedColumns NAME(fused_columns) = {
    NAME(fused_column_sums),
    NAME(fused_column_grads),
};

#undef LINE
#undef WIDTH
#undef COMPUTE
#undef NAME

#endif
