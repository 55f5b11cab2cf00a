/* Arithmetic on rows that are normalized along their elements (family rows): layer and RMS norm.

   weight and bias belong to the elements of a row, mean and rstd to the row. The file includes
   itself once per storage type; the schedules reach it through the table `Rows`. */

#ifndef REAL

#include "activation.h"
#include "layer.h"
#include "partial.h"

/* Rows whose gradients are taken together: their share of dweight and dbias stays in registers,
   and for float32 it is a float32 sum of that many. */
enum { TOGETHER = 8 };

/* Rows of len elements, `pitch` apart. */
typedef struct {
    char *dx;
    const char *dy, *x, *addend; /* addend may be NULL */
    const void *weight;
    double *dweight, *dbias; /* += */
    ptrdiff_t rows, len, pitch;
    int stream;
} RowGrads;

typedef struct {
    ptrdiff_t itemsize;
    ptrdiff_t computed; /* bytes of one element of weight in Affine and RowGrads */
    double (*first_shift)(const void *x, ptrdiff_t len);
    void (*sums)(double *sums, const void *x, ptrdiff_t len, double shift);
    void (*grad_sums)(double *sums, const void *dy, const void *x, const double *weight,
                      ptrdiff_t len, double mean);
    void (*apply)(void *y, const void *x, const void *residual, ptrdiff_t len, const Norm *row,
                  const Affine *affine, int activation, int stream);
    void (*activation_grads)(void *g, const void *dy, const void *x, const void *residual,
                             ptrdiff_t len, const Norm *row, const Affine *affine, int activation,
                             int stream);
    void (*grads)(const RowGrads *at, const Norm *row);
    void (*add)(void *total, void *copy, const void *x, const void *addend, ptrdiff_t len,
                int stream);
} Rows;

/* Vectors of columns whose sums stay in registers. */
#if VECTOR_BYTES == 64
#define STRIP_VECTORS 4
#elif VECTOR_BYTES == 32
#define STRIP_VECTORS 2
#else
#define STRIP_VECTORS 4 /* a whole line */
#endif

/* Bytes of x to ask for ahead. Asked for by the sums alone, which then wait for memory while the
   streamed stores have it for themselves, (8192, 1024) took 1.33 of the copy; with half of the
   lines, and all of them while y is streamed, 1.18. Backward: the sums ask for x and the gradients
   for dy, of the rows that are taken together next: 1.42 of the triad, 1.81 if the sums ask for
   what they will read themselves. */
#define ROW_AHEAD 8192

#define REAL float
#define COMPUTED f32
#define SUFFIX f32
#include "rows.h"
#undef SUFFIX
#define SUFFIX f16
#include "rows.h"
#undef SUFFIX
#define SUFFIX bf16
#include "rows.h"
#undef SUFFIX
#undef COMPUTED
#undef REAL
#define REAL double
#define COMPUTED f64
#define SUFFIX f64
#include "rows.h"
#undef SUFFIX
#undef COMPUTED
#undef REAL

#else

#define NAME(f) PASTE(f, SUFFIX)
#define COMPUTE(f) PASTE(f, COMPUTED)
#define STORE NAME(store_t)
#define VEC NAME(vec)
#define WIDTH ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))
#define LINE (64 / (ptrdiff_t)sizeof(STORE))

KERNEL double NAME(row_shift)(const void *from, ptrdiff_t len) {
    const STORE *x = from;
    const ptrdiff_t taken = few(len);
    return median3(NAME(short_mean)(x, 1, taken),
                   NAME(short_mean)(x + (len - taken) / 2, 1, taken),
                   NAME(short_mean)(x + len - taken, 1, taken));
}

/* sums[0] += x - shift, sums[1] += (x - shift)^2. */
KERNEL void NAME(row_sums)(double *sums, const void *from, ptrdiff_t len, double shift) {
    const STORE *x = from;
    vec_f64 sum[UNROLL] = {0}, square[UNROLL] = {0};
    ptrdiff_t i = 0;
    for (; i + LANES <= len; i += LANES) {
        __builtin_prefetch(x + i + ROW_AHEAD / sizeof(STORE), 0, 2);
        UNROLLED
        for (int u = 0; u < UNROLL; u++) {
            const vec_f64 d = NAME(widen)(x + i + u * DOUBLES) - shift;
            sum[u] += d;
            square[u] += d * d;
        }
    }
    for (; i + DOUBLES <= len; i += DOUBLES) {
        const vec_f64 d = NAME(widen)(x + i) - shift;
        sum[0] += d;
        square[0] += d * d;
    }
    double last = 0.0, last_square = 0.0;
    for (; i < len; i++) {
        const double d = NAME(get)(x + i) - shift;
        last += d;
        last_square += d * d;
    }
    sums[0] += vector_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) + last;
    sums[1] += vector_sum((square[0] + square[1]) + (square[2] + square[3])) + last_square;
}

/* sums[0] += g, sums[1] += g * (x - mean), sums[2] += x - mean, with g = dy * weight. */
KERNEL void NAME(row_grad_sums)(double *sums, const void *from_dy, const void *from_x,
                                const double *weight, ptrdiff_t len, double mean) {
    const STORE *dy = from_dy, *x = from_x;
    vec_f64 sum[UNROLL] = {0}, product[UNROLL] = {0}, rest[UNROLL] = {0};
    ptrdiff_t i = 0;
    for (; i + LANES <= len; i += LANES) {
        for (ptrdiff_t k = 0; k < LANES; k += LINE)
            __builtin_prefetch(x + i + k + TOGETHER * len, 0, 2);
        UNROLLED
        for (int u = 0; u < UNROLL; u++) {
            const ptrdiff_t at = i + u * DOUBLES;
            const vec_f64 g = NAME(widen)(dy + at) * load_f64(weight + at);
            const vec_f64 d = NAME(widen)(x + at) - mean;
            sum[u] += g;
            product[u] += g * d;
            rest[u] += d;
        }
    }
    for (; i + DOUBLES <= len; i += DOUBLES) {
        const vec_f64 g = NAME(widen)(dy + i) * load_f64(weight + i);
        const vec_f64 d = NAME(widen)(x + i) - mean;
        sum[0] += g;
        product[0] += g * d;
        rest[0] += d;
    }
    double last[3] = {0.0, 0.0, 0.0};
    for (; i < len; i++) {
        const double g = NAME(get)(dy + i) * weight[i], d = NAME(get)(x + i) - mean;
        last[0] += g;
        last[1] += g * d;
        last[2] += d;
    }
    sums[0] += vector_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) + last[0];
    sums[1] += vector_sum((product[0] + product[1]) + (product[2] + product[3])) + last[1];
    sums[2] += vector_sum((rest[0] + rest[1]) + (rest[2] + rest[3])) + last[2];
}

/* Goes along a row: OUT[i] = VALUE(STORED, KEPT), where STORED(p) are the elements of p from i on
   and KEPT(p) those of weight or bias, whole vectors or the first k of one. Stores are to whole
   lines from the first one on, if there are a few. */
#define WHOLE(p) NAME(load)((p) + i)
#define WHOLE_KEPT(p) COMPUTE(load)((p) + i)
#define SOME(p) NAME(load_some)((p) + i, k)
#define SOME_KEPT(p) COMPUTE(load_some)((p) + i, k)
#define ALONG(OUT, VALUE)                                                                      \
    ptrdiff_t i = 0;                                                                           \
    if (len >= 4 * LINE) {                                                                     \
        const ptrdiff_t head = line_head(OUT, sizeof(STORE), len);                             \
        while (i < head) {                                                                     \
            const ptrdiff_t k = head - i < WIDTH ? head - i : WIDTH;                           \
            NAME(store_some)(OUT + i, VALUE(SOME, SOME_KEPT), k);                              \
            i += k;                                                                            \
        }                                                                                      \
        if (stream)                                                                            \
            for (; i + LINE <= len;) {                                                         \
                __builtin_prefetch(x + i + ROW_AHEAD / sizeof(STORE), 0, 2);                   \
                for (const ptrdiff_t end = i + LINE; i < end; i += WIDTH)                      \
                    NAME(stream)(OUT + i, VALUE(WHOLE, WHOLE_KEPT));                           \
            }                                                                                  \
    }                                                                                          \
    for (; i + WIDTH <= len; i += WIDTH)                                                       \
        NAME(store)(OUT + i, VALUE(WHOLE, WHOLE_KEPT));                                        \
    if (i < len) {                                                                             \
        const ptrdiff_t k = len - i;                                                           \
        NAME(store_some)(OUT + i, VALUE(SOME, SOME_KEPT), k);                                  \
    }

/* What the activation is applied to, of one element, in float64: for rows that are wide, and for
   those with rstd 0 (nothing counts), where it is bias, whatever x is. */
INLINE double NAME(row_norm_one)(const STORE *x, const STORE *residual, ptrdiff_t i,
                                 const Norm *row, const Affine *affine) {
    const REAL *weight = affine->weight, *bias = affine->bias;
    const double x_hat =
        row->rstd == 0.0 ? 0.0 : ((NAME(get)(x + i) - row->hi) - row->lo) * row->rstd;
    const double z = x_hat * weight[i] + bias[i];
    return residual == NULL ? z : z + NAME(get)(residual + i);
}

#define NORM(STORED, KEPT)                                                                     \
    (((STORED(x) - hi) - lo) * rstd * KEPT(weight) + KEPT(bias))
#define BEFORE_ACTIVATION(STORED, KEPT)                                                        \
    (residual == NULL ? NORM(STORED, KEPT) : NORM(STORED, KEPT) + STORED(residual))

/* y = activation(((x - hi) - lo) * rstd * weight + bias + residual). y may be x or residual. */
KERNEL void NAME(row_apply)(void *to, const void *from, const void *from_residual, ptrdiff_t len,
                            const Norm *row, const Affine *affine, int activation, int stream) {
    STORE *y = to;
    const STORE *x = from, *residual = from_residual;
    const REAL *weight = affine->weight, *bias = affine->bias;
    const REAL hi = (REAL)row->hi, lo = (REAL)row->lo, rstd = (REAL)row->rstd;
    if (row->wide || row->rstd == 0.0) {
        for (ptrdiff_t j = 0; j < len; j++) {
            const double z = NAME(row_norm_one)(x, residual, j, row, affine);
            NAME(put)(y + j, (REAL)activate_one(z, activation));
        }
    } else if (residual == NULL && activation == IDENTITY) {
        ALONG(y, NORM)
    } else {
#define ACTIVATED(STORED, KEPT) COMPUTE(activate)(BEFORE_ACTIVATION(STORED, KEPT), activation)
        ALONG(y, ACTIVATED)
#undef ACTIVATED
    }
}

/* g = dy * activation'(norm(x) + residual). g may be dy, x or residual. */
KERNEL void NAME(row_activation_grads)(void *to, const void *from_dy, const void *from_x,
                                       const void *from_residual, ptrdiff_t len, const Norm *row,
                                       const Affine *affine, int activation, int stream) {
    STORE *g = to;
    const STORE *dy = from_dy, *x = from_x, *residual = from_residual;
    const REAL *weight = affine->weight, *bias = affine->bias;
    const REAL hi = (REAL)row->hi, lo = (REAL)row->lo, rstd = (REAL)row->rstd;
    if (row->wide || row->rstd == 0.0) {
        for (ptrdiff_t j = 0; j < len; j++) {
            const double z = NAME(row_norm_one)(x, residual, j, row, affine);
            NAME(put)(g + j, (REAL)(NAME(get)(dy + j) * slope_one(z, activation)));
        }
        return;
    }
#define SLOPED(STORED, KEPT)                                                                   \
    (STORED(dy) * COMPUTE(slope)(BEFORE_ACTIVATION(STORED, KEPT), activation))
    ALONG(g, SLOPED)
#undef SLOPED
}

#undef BEFORE_ACTIVATION
#undef NORM

/* total = copy = x + addend, rounded once. */
KERNEL void NAME(row_add)(void *to, void *to_copy, const void *from, const void *from_addend,
                          ptrdiff_t len, int stream) {
    STORE *total = to, *copy = to_copy;
    const STORE *x = from, *addend = from_addend;
    if (copy == NULL) {
#define TOTAL(STORED, KEPT) (STORED(x) + STORED(addend))
        ALONG(total, TOTAL)
#undef TOTAL
        return;
    }
#define TOTAL(STORED, KEPT) STORED(copy)
    {
        const ptrdiff_t whole = len / WIDTH * WIDTH;
        for (ptrdiff_t i = 0; i < whole; i += WIDTH) {
            __builtin_prefetch(x + i + ROW_AHEAD / sizeof(STORE));
            __builtin_prefetch(addend + i + ROW_AHEAD / sizeof(STORE));
            NAME(store)(copy + i, WHOLE(x) + WHOLE(addend));
        }
        if (whole < len) {
            const ptrdiff_t i = whole, k = len - whole;
            NAME(store_some)(copy + i, SOME(x) + SOME(addend), k);
        }
    }
    ALONG(total, TOTAL)
#undef TOTAL
}

#undef ALONG
#undef WHOLE
#undef WHOLE_KEPT
#undef SOME
#undef SOME_KEPT

/* One row in float64. */
INLINE void NAME(wide_grads)(const RowGrads *at, const Norm *row, ptrdiff_t r) {
    STORE *dx = (STORE *)at->dx + r * at->pitch;
    const STORE *dy = (const STORE *)at->dy + r * at->pitch;
    const STORE *x = (const STORE *)at->x + r * at->pitch;
    const STORE *addend = at->addend == NULL ? NULL : (const STORE *)at->addend + r * at->pitch;
    const REAL *weight = at->weight;
    for (ptrdiff_t j = 0; j < at->len; j++) {
        const double gradient = NAME(get)(dy + j), g = gradient * weight[j];
        const double deviation = (NAME(get)(x + j) - row->hi) - row->lo;
        const double found = row->rstd * ((g - row->mean_g_hi) -
                                          (deviation * row->slope + row->mean_g_lo));
        at->dweight[j] += gradient * (deviation * row->rstd);
        at->dbias[j] += gradient;
        NAME(put)(dx + j, (REAL)(addend == NULL ? found : found + NAME(get)(addend + j)));
    }
}

/* Columns j to j + vectors * WIDTH or, if k is not 0, to j + k, of all rows; dx of the first row
   goes to `dx`, of the next one dx_pitch elements after it. */
INLINE void NAME(strip_to)(STORE *dx, const ptrdiff_t dx_pitch, const RowGrads *at,
                           const REAL (*coefficients)[6], ptrdiff_t j, const int vectors,
                           const ptrdiff_t k, const int stream, const int added) {
    const STORE *dy = (const STORE *)at->dy + j, *x = (const STORE *)at->x + j;
    const STORE *addend = (const STORE *)at->addend + (added ? j : 0);
    const REAL *weight = (const REAL *)at->weight + j;
    VEC w[STRIP_VECTORS], dweight[STRIP_VECTORS], dbias[STRIP_VECTORS];
#define STORED(p) (k ? NAME(load_some)(p, k) : NAME(load)((p) + u * WIDTH))
    UNROLLED
    for (int u = 0; u < vectors; u++) {
        w[u] = k ? COMPUTE(load_some)(weight, k) : COMPUTE(load)(weight + u * WIDTH);
        dweight[u] = dbias[u] = (VEC){0};
    }
    for (ptrdiff_t r = 0; r < at->rows; r++) {
        const REAL hi = coefficients[r][0], lo = coefficients[r][1], rstd = coefficients[r][2];
        const REAL slope = coefficients[r][3];
        const REAL mean_hi = coefficients[r][4], mean_lo = coefficients[r][5];
        UNROLLED
        for (int u = 0; u < vectors; u++) {
            if ((u * WIDTH) % LINE == 0)
                __builtin_prefetch(dy + TOGETHER * at->pitch + u * WIDTH, 0, 2);
            const VEC gradient = STORED(dy), deviation = (STORED(x) - hi) - lo;
            VEC found =
                rstd * ((w[u] * gradient - mean_hi) - (deviation * slope + mean_lo));
            if (added)
                found += STORED(addend);
            dweight[u] += gradient * (deviation * rstd);
            dbias[u] += gradient;
            if (k)
                NAME(store_some)(dx, found, k);
            else if (stream)
                NAME(stream)(dx + u * WIDTH, found);
            else
                NAME(store)(dx + u * WIDTH, found);
        }
        dy += at->pitch;
        x += at->pitch;
        dx += dx_pitch;
        if (added)
            addend += at->pitch;
    }
#undef STORED
    if (k) {
        for (ptrdiff_t i = 0; i < k; i++) {
            at->dweight[j + i] += dweight[0][i];
            at->dbias[j + i] += dbias[0][i];
        }
        return;
    }
    UNROLLED
    for (int u = 0; u < vectors; u++) {
        COMPUTE(add_lanes)(at->dweight + j + u * WIDTH, dweight[u]);
        COMPUTE(add_lanes)(at->dbias + j + u * WIDTH, dbias[u]);
    }
}

INLINE void NAME(strip_grads)(const RowGrads *at, const REAL (*coefficients)[6], ptrdiff_t j,
                              const int vectors, const ptrdiff_t k, const int stream,
                              const int added) {
    NAME(strip_to)((STORE *)at->dx + j, at->pitch, at, coefficients, j, vectors, k, stream, added);
}

INLINE void NAME(all_strips)(const RowGrads *at, const REAL (*coefficients)[6], const int stream,
                             const int added) {
    /* Rows that lie end to end and begin in the middle of a line share that line with the row
       before: it is put together here and streamed whole. Stored in two parts, it was first read
       from memory: (32768, 256) took 2.2 of the triad. */
    STORE lines[TOGETHER + 1][LINE] __attribute__((aligned(64)));
    const ptrdiff_t head =
        at->len >= 4 * LINE ? line_head(at->dx, sizeof(STORE), at->len) : 0;
    const ptrdiff_t before = LINE - head;
    const int shared = stream && head > 0 && at->rows > 1 && at->len % LINE == 0;
    const ptrdiff_t last = shared ? at->len - before : at->len;
    STORE *dx = (STORE *)at->dx;
    ptrdiff_t j = 0, k;
    for (; j < head; j += k) {
        k = head - j < WIDTH ? head - j : WIDTH;
        if (shared)
            NAME(strip_to)(lines[0] + before + j, LINE, at, coefficients, j, 1, k, 0, added);
        else
            NAME(strip_grads)(at, coefficients, j, 1, k, 0, added);
    }
    for (; j + STRIP_VECTORS * WIDTH <= last; j += STRIP_VECTORS * WIDTH)
        NAME(strip_grads)(at, coefficients, j, STRIP_VECTORS, 0, stream, added);
    for (; j + WIDTH <= last; j += WIDTH)
        NAME(strip_grads)(at, coefficients, j, 1, 0, stream, added);
    for (; j < at->len; j += k) {
        k = at->len - j < WIDTH ? at->len - j : WIDTH;
        if (shared)
            NAME(strip_to)(lines[1] + (j - last), LINE, at, coefficients, j, 1, k, 0, added);
        else
            NAME(strip_grads)(at, coefficients, j, 1, k, 0, added);
    }
    if (!shared)
        return;
    memcpy(dx, lines[0] + before, head * sizeof(STORE));
    for (ptrdiff_t r = 1; r < at->rows; r++)
        for (ptrdiff_t i = 0; i < LINE; i += WIDTH)
            NAME(stream)(dx + r * at->pitch - before + i, NAME(load)(lines[r] + i));
    memcpy(dx + at->rows * at->pitch - before, lines[at->rows], before * sizeof(STORE));
}

/* dx, and what the rows add to dweight and dbias. dx may be dy, x or addend. */
KERNEL void NAME(row_grads)(const RowGrads *at, const Norm *row) {
    REAL coefficients[TOGETHER][6];
    /* Streamed only where all rows begin at the same place of a line. */
    const int stream =
        at->stream && at->len >= 4 * LINE && (at->rows == 1 || at->pitch % LINE == 0);
    int wide = 0;
    for (ptrdiff_t r = 0; r < at->rows; r++) {
        const double values[6] = {row[r].hi,    row[r].lo,        row[r].rstd,
                                  row[r].slope, row[r].mean_g_hi, row[r].mean_g_lo};
        for (int i = 0; i < 6; i++)
            coefficients[r][i] = (REAL)values[i];
        wide |= row[r].wide;
    }
    if (wide)
        for (ptrdiff_t r = 0; r < at->rows; r++)
            NAME(wide_grads)(at, row + r, r);
    else if (at->addend != NULL && stream)
        NAME(all_strips)(at, coefficients, 1, 1);
    else if (at->addend != NULL)
        NAME(all_strips)(at, coefficients, 0, 1);
    else if (stream)
        NAME(all_strips)(at, coefficients, 1, 0);
    else
        NAME(all_strips)(at, coefficients, 0, 0);
}

static const Rows NAME(rows) = {
    sizeof(STORE),       sizeof(REAL),     NAME(row_shift),
    NAME(row_sums),      NAME(row_grad_sums), NAME(row_apply),
    NAME(row_activation_grads), NAME(row_grads), NAME(row_add),
};

#undef LINE
#undef WIDTH
#undef VEC
#undef STORE
#undef COMPUTE
#undef NAME

#endif
