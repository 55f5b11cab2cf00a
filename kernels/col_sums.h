/* Shifts and sums of the columns of a strip. Included by cols.h, once per storage type.

   As column_sums.h, but a strip is part of its rows, and a weight per row multiplies dy. Columns
   are taken in vectors of doubles, the last in part of one: arrays per column have room for it. */

/* A vector; if `some` is not 0, so many elements of one and 0 behind. */
INLINE vec_f64 NAME(col_read)(const STORE *p, const ptrdiff_t some) {
    return some ? NAME(widen_some)(p, some) : NAME(widen)(p);
}

INLINE vec_f64 NAME(col_short_mean)(const STORE *x, ptrdiff_t pitch, ptrdiff_t taken,
                                    const ptrdiff_t some) {
    const vec_f64 first = NAME(col_read)(x, some);
    if (taken == 1)
        return first;
    const vec_f64 pair = first + NAME(col_read)(x + pitch, some);
    if (taken == 2)
        return pair / 2;
    return (pair + (NAME(col_read)(x + 2 * pitch, some) + NAME(col_read)(x + 3 * pitch, some))) / 4;
}

KERNEL void NAME(col_shifts)(double *shift, const void *from, const Strip *strip) {
    const STORE *x = from;
    const ptrdiff_t taken = few(strip->rows), pitch = strip->pitch;
    const STORE *middle = x + (strip->rows - taken) / 2 * pitch;
    const STORE *end = x + (strip->rows - taken) * pitch;
#define SHIFTS(some)                                                                           \
    store_f64(shift + j, medians3(NAME(col_short_mean)(x + j, pitch, taken, some),             \
                                  NAME(col_short_mean)(middle + j, pitch, taken, some),        \
                                  NAME(col_short_mean)(end + j, pitch, taken, some)))
    ptrdiff_t j = 0;
    for (; j + DOUBLES <= strip->cols; j += DOUBLES)
        SHIFTS(0);
    if (j < strip->cols)
        SHIFTS(strip->cols - j);
#undef SHIFTS
}

/* What comes after ROWS_TOGETHER rows is asked for while they are taken. */
#define ASK_ROWS(p, j)                                                                         \
    if ((j) % LINE == 0)                                                                       \
        for (int i = 0; i < ROWS_TOGETHER; i++)                                                \
            __builtin_prefetch((p) + (j) + ahead + i * strip->pitch, 0, 2);
INLINE ptrdiff_t NAME(col_ahead)(const Strip *strip, ptrdiff_t r) {
    return r + 2 * ROWS_TOGETHER <= strip->rows ? ROWS_TOGETHER * strip->pitch : strip->ahead;
}

/* sum += x - shift, square += (x - shift)^2: K vectors from column j on, of `rows` rows. */
INLINE void NAME(col_sums_of)(double *sum, double *square, const STORE *x, const double *shift,
                              const Strip *strip, ptrdiff_t j, const int rows, const int K,
                              const ptrdiff_t some) {
    vec_f64 k[COL_VECTORS], s[COL_VECTORS], q[COL_VECTORS];
    UNROLLED
    for (int u = 0; u < K; u++) {
        k[u] = load_f64(shift + j + u * DOUBLES);
        s[u] = load_f64(sum + j + u * DOUBLES);
        q[u] = load_f64(square + j + u * DOUBLES);
    }
    EACH_ROW
    for (int i = 0; i < rows; i++)
        UNROLLED
        for (int u = 0; u < K; u++) {
            const vec_f64 d = NAME(col_read)(x + i * strip->pitch + j + u * DOUBLES, some) - k[u];
            s[u] += d;
            q[u] += d * d;
        }
    UNROLLED
    for (int u = 0; u < K; u++) {
        store_f64(sum + j + u * DOUBLES, s[u]);
        store_f64(square + j + u * DOUBLES, q[u]);
    }
}

INLINE void NAME(col_sums_along)(double *sum, double *square, const STORE *x, const double *shift,
                                 const Strip *strip, const int rows, ptrdiff_t ahead) {
    ptrdiff_t j = 0;
    for (; j + COL_VECTORS * DOUBLES <= strip->cols; j += COL_VECTORS * DOUBLES) {
        if (rows == ROWS_TOGETHER)
            for (int u = 0; u < COL_VECTORS; u++)
                ASK_ROWS(x, j + u * DOUBLES)
        NAME(col_sums_of)(sum, square, x, shift, strip, j, rows, COL_VECTORS, 0);
    }
    for (; j + DOUBLES <= strip->cols; j += DOUBLES)
        NAME(col_sums_of)(sum, square, x, shift, strip, j, rows, 1, 0);
    if (j < strip->cols)
        NAME(col_sums_of)(sum, square, x, shift, strip, j, rows, 1, strip->cols - j);
}

KERNEL void NAME(col_sums)(double *sum, const void *from, const Strip *strip,
                           const double *shift) {
    const STORE *x = from;
    double *square = sum + strip->room;
    ptrdiff_t r = 0;
    for (; r + ROWS_TOGETHER <= strip->rows; r += ROWS_TOGETHER)
        NAME(col_sums_along)(sum, square, x + r * strip->pitch, shift, strip, ROWS_TOGETHER,
                             NAME(col_ahead)(strip, r));
    for (; r < strip->rows; r++)
        NAME(col_sums_along)(sum, square, x + r * strip->pitch, shift, strip, 1, 0);
}

/* All sums of a backward from one sweep: of columns g and g * (x - mean) with g = dy * weight, for
   float64 also x - mean, which says what the mean is off by; of rows dy * (x - mean) * rstd and dy.
   In float64: rounded to float32, the terms of columns that repeat 16 were off by 4e-6 of dweight's
   norm. The CPU measured adds or multiplies one vector of 64 bytes in a cycle: these 7 operations on
   8 elements (6 in float32, whose mean is known well enough) take 3.7 ns for a line of x and one of
   dy, which come from memory in 4.4 ns. With a sweep of their own for the sums of the rows, the
   backward of (32, 96, 3136) took 2.65 of the triad. */
INLINE void NAME(col_grad_sums_of)(double *sum, double *dweight, double *dbias, const STORE *dy,
                                   const STORE *x, const double *weight, const Strip *strip,
                                   const int rows, const int masked, ptrdiff_t ahead) {
    double *product = sum + strip->room, *rest = product + strip->room;
    const double *mean = strip->exact, *rstd = mean + NORM_RSTD * strip->room;
    const int ask = rows == ROWS_TOGETHER;
    vec_f64 to_dweight[ROWS_TOGETHER], to_dbias[ROWS_TOGETHER];
    EACH_ROW
    for (int i = 0; i < rows; i++)
        to_dweight[i] = to_dbias[i] = (vec_f64){0};
#define SUM_GRADS(some, ASK_DY, ASK_X)                                                         \
    {                                                                                          \
        const vec_f64 m = load_f64(mean + j), scale = load_f64(rstd + j);                      \
        vec_f64 s = load_f64(sum + j), p = load_f64(product + j), e = load_f64(rest + j);      \
        EACH_ROW                                                                               \
        for (int i = 0; i < rows; i++) {                                                       \
            if (ASK_DY)                                                                        \
                __builtin_prefetch(dy + j + ahead + i * strip->pitch, 0, 2);                   \
            if (ASK_X)                                                                         \
                __builtin_prefetch(x + j + ahead + i * strip->pitch, 0, 2);                    \
            vec_f64 gradient = NAME(col_read)(dy + i * strip->pitch + j, some);                \
            vec_f64 deviation = NAME(col_read)(x + i * strip->pitch + j, some) - m;            \
            if (masked) {                                                                      \
                gradient = only_where_f64(scale != 0, gradient);                               \
                deviation = only_where_f64(scale != 0, deviation);                             \
            }                                                                                  \
            const vec_f64 term = gradient * deviation;                                         \
            s += gradient * weight[i];                                                         \
            p += term * weight[i];                                                             \
            if (sizeof(REAL) == 8)                                                             \
                e += deviation;                                                                \
            to_dweight[i] += term * scale;                                                     \
            to_dbias[i] += gradient;                                                           \
        }                                                                                      \
        store_f64(sum + j, s);                                                                 \
        store_f64(product + j, p);                                                             \
        store_f64(rest + j, e);                                                                \
    }
    ptrdiff_t j = 0;
    while (j + LINE <= strip->cols) {
        SUM_GRADS(0, ask, ask && LINE == DOUBLES)
        j += DOUBLES;
        for (int v = 1; v < LINE / DOUBLES; v++, j += DOUBLES)
            SUM_GRADS(0, 0, ask && v == 1)
    }
    for (; j + DOUBLES <= strip->cols; j += DOUBLES)
        SUM_GRADS(0, 0, 0)
    if (j < strip->cols)
        SUM_GRADS(strip->cols - j, 0, 0)
#undef SUM_GRADS
    EACH_ROW
    for (int i = 0; i < rows; i++) {
        dweight[i] += vector_sum(to_dweight[i]);
        dbias[i] += vector_sum(to_dbias[i]);
    }
}

/* sums: of g, g * (x - mean) and x - mean, arrays of `room`. They, dweight and dbias are added to. */
KERNEL void NAME(col_grad_sums)(double *sums, double *dweight, double *dbias, const void *from_dy,
                                const void *from_x, const double *weight, const Strip *strip) {
    const STORE *dy = from_dy, *x = from_x;
    ptrdiff_t r = 0;
#define TOGETHER(rows, masked)                                                                 \
    NAME(col_grad_sums_of)(sums, dweight + r, dbias + r, dy + r * strip->pitch,                \
                           x + r * strip->pitch, weight + r, strip, rows, masked,                 \
                           NAME(col_ahead)(strip, r))
    if (strip->masked) {
        for (; r + ROWS_TOGETHER <= strip->rows; r += ROWS_TOGETHER)
            TOGETHER(ROWS_TOGETHER, 1);
        for (; r < strip->rows; r++)
            TOGETHER(1, 1);
        return;
    }
    for (; r + ROWS_TOGETHER <= strip->rows; r += ROWS_TOGETHER)
        TOGETHER(ROWS_TOGETHER, 0);
    for (; r < strip->rows; r++)
        TOGETHER(1, 0);
#undef TOGETHER
}

/* What the rounded mean left in dweight comes off again: dy * off, with `off` in standard
   deviations, 0 where nothing counts. */
KERNEL void NAME(col_mend)(double *dweight, const void *from_dy, const Strip *strip,
                           const double *off) {
    const STORE *dy = from_dy;
    for (ptrdiff_t r = 0; r < strip->rows; r++, dy += strip->pitch) {
        vec_f64 total[UNROLL] = {{0}};
        double last = 0.0;
        ptrdiff_t j = 0;
        for (; j + LANES <= strip->cols; j += LANES)
            UNROLLED
            for (int u = 0; u < UNROLL; u++) {
                const vec_f64 by = load_f64(off + j + u * DOUBLES);
                const vec_f64 gradient = NAME(widen)(dy + j + u * DOUBLES);
                total[u] += only_where_f64(by != 0, gradient) * by;
            }
        for (; j < strip->cols; j++)
            last += off[j] == 0.0 ? 0.0 : NAME(get)(dy + j) * off[j];
        dweight[r] -= vector_sum((total[0] + total[1]) + (total[2] + total[3])) + last;
    }
}
#undef ASK_ROWS
