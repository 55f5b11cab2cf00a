/* Gradients of rows: dx and, of halves, their part of dweight and dbias. Included by rows.h, once
   per storage type. */

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
#ifdef HALF
        at->dweight[j] += gradient * (deviation * row->rstd);
        at->dbias[j] += gradient;
#endif
        NAME(put)(dx + j, (REAL)(addend == NULL ? found : found + NAME(get)(addend + j)));
    }
}

#ifdef HALF
#include "row_strips.h"
#else

/* dweight -= dy * off, where `off` is what the means were off by, in standard deviations. */
INLINE void NAME(row_mend)(const RowGrads *at, const Norm *row) {
    double off[TOGETHER];
    const STORE *dy = (const STORE *)at->dy;
    ptrdiff_t i = 0;
    for (ptrdiff_t r = 0; r < at->rows; r++)
        off[r] = row[r].lo * row[r].rstd;
    for (; i + DOUBLES <= at->len; i += DOUBLES) {
        vec_f64 left = load_f64(at->dweight + i);
        for (ptrdiff_t r = 0; r < at->rows; r++)
            left -= NAME(widen)(dy + r * at->pitch + i) * off[r];
        store_f64(at->dweight + i, left);
    }
    for (; i < at->len; i++)
        for (ptrdiff_t r = 0; r < at->rows; r++)
            at->dweight[i] -= NAME(get)(dy + r * at->pitch + i) * off[r];
}

INLINE void NAME(dx_coefficients)(REAL *to, const Norm *row) {
    const double values[5] = {row->hi, row->rstd, row->slope, row->mean_g_hi,
                              (row->lo * row->slope - row->mean_g_lo) * row->rstd};
    for (int c = 0; c < 5; c++)
        to[c] = (REAL)values[c];
}

#define GRADIENT(STORED, KEPT)                                                                 \
    (((KEPT(weight) * STORED(dy) - mean_hi) - (STORED(x) - hi) * slope) * rstd + left)
#define ADDED(STORED, KEPT) (GRADIENT(STORED, KEPT) + STORED(addend))
#define DX_ROW(VALUE)                                                                          \
    if (*owed != NULL) {                                                                       \
        SEAM(dx, VALUE, const VEC hi = JOINED(0); const VEC rstd = JOINED(1);                  \
             const VEC slope = JOINED(2); const VEC mean_hi = JOINED(3);                       \
             const VEC left = JOINED(4);)                                                      \
        i = end;                                                                               \
    } else {                                                                                   \
        HEAD(dx, VALUE)                                                                        \
    }                                                                                          \
    if (stream)                                                                                \
        LINES(dx, VALUE, if (!both) ASK(i))                                                    \
    *owed = goes_on && i < len ? row : NULL;                                                   \
    if (*owed == NULL)                                                                         \
        REST(dx, VALUE)

/* Row by row: strips of columns of all rows, with whatever else stood in their loop, took 1.28 of
   the triad of (32768, 1024) and 1.50 of that of (131072, 256); this takes 1.24 and 1.42. What
   *at->owed is, row_forward.h says of *owed. */
KERNEL void NAME(dx_row)(const RowGrads *at, const Norm *row, ptrdiff_t r, int stream,
                         int goes_on) {
    STORE *dx = (STORE *)at->dx + r * at->pitch;
    const STORE *dy = (const STORE *)at->dy + r * at->pitch;
    const STORE *x = (const STORE *)at->x + r * at->pitch;
    const STORE *addend = (const STORE *)at->addend, *ahead = dy + NAME(grads_ahead)(at);
    const REAL *weight = at->weight;
    const ptrdiff_t len = at->len, end = line_head(dx, sizeof(STORE), len);
    const Shared *shared = &APART;
    const Norm **owed = at->owed;
    const int both = NAME(asks_both)(at);
    REAL past[5] = {0}, of[5];
    if (*owed != NULL)
        NAME(dx_coefficients)(past, *owed);
    NAME(dx_coefficients)(of, row);
    const REAL hi = of[0], rstd = of[1], slope = of[2], mean_hi = of[3], left = of[4];
    ptrdiff_t i = 0;
    if (addend == NULL) {
        DX_ROW(GRADIENT)
    } else {
        addend += r * at->pitch;
        DX_ROW(ADDED)
    }
}

/* What the row before the first one left of itself. */
KERNEL void NAME(dx_end)(const RowGrads *at) {
    STORE *dx = (STORE *)at->dx;
    const STORE *dy = (const STORE *)at->dy, *x = (const STORE *)at->x;
    const STORE *addend = (const STORE *)at->addend;
    const REAL *weight = (const REAL *)at->weight + at->len;
    REAL of[5];
    NAME(dx_coefficients)(of, *at->owed);
    const REAL hi = of[0], rstd = of[1], slope = of[2], mean_hi = of[3], left = of[4];
    ptrdiff_t i = line_head(dx, sizeof(STORE), at->len) - LINE;
    if (addend == NULL)
        PART(dx, 0, GRADIENT)
    else
        PART(dx, 0, ADDED)
    *at->owed = NULL;
}

#undef DX_ROW
#undef ADDED
#undef GRADIENT

/* dx, which may be dy, x or addend. */
KERNEL void NAME(row_grads)(const RowGrads *at, const Norm *row) {
    const int stream = at->stream && at->len >= 4 * LINE;
    int plain = 1, wide = 0;
    for (ptrdiff_t r = 0; r < at->rows; r++) {
        wide |= row[r].wide;
        /* As in rows_forward, no lines are shared with rows of NaN. */
        plain &= row[r].slope - row[r].slope == 0.0 && row[r].mean_g_hi - row[r].mean_g_hi == 0.0 &&
                 row[r].hi - row[r].hi == 0.0;
    }
    const int whole = stream && plain && !wide && at->pitch == at->len;
    if (*at->owed != NULL && !whole)
        NAME(dx_end)(at);
    if (sizeof(REAL) == 8)
        NAME(row_mend)(at, row);
    for (ptrdiff_t r = 0; r < at->rows; r++) {
        if (row[r].wide)
            NAME(wide_grads)(at, row + r, r);
        else
            NAME(dx_row)(at, row + r, r, stream,
                         whole && (r + 1 < at->rows || at->shared->goes_on));
    }
    at->shared->goes_on = 0;
}

#endif
