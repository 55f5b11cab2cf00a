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

/* Row by row: strips of columns of all rows, with whatever else stood in their loop, took 1.28 of
   the triad of (32768, 1024) and 1.50 of that of (131072, 256); this takes 1.24 and 1.42. */
INLINE void NAME(dx_row)(const RowGrads *at, const Norm *row, ptrdiff_t r, int stream,
                         const Shared *shared) {
    STORE *dx = (STORE *)at->dx + r * at->pitch;
    const STORE *dy = (const STORE *)at->dy + r * at->pitch;
    const STORE *x = (const STORE *)at->x + r * at->pitch;
    /* What the sums have asked for already lies in the cache. */
    const STORE *ahead = NAME(asks_both)(at) ? dy : dy + NAME(grads_ahead)(at);
    const STORE *addend = (const STORE *)at->addend;
    const REAL *weight = at->weight;
    const REAL hi = (REAL)row->hi, rstd = (REAL)row->rstd, slope = (REAL)row->slope;
    const REAL mean_hi = (REAL)row->mean_g_hi;
    const REAL left = (REAL)((row->lo * row->slope - row->mean_g_lo) * row->rstd);
    const ptrdiff_t len = at->len;
#define GRADIENT(STORED, KEPT)                                                                 \
    (((KEPT(weight) * STORED(dy) - mean_hi) - (STORED(x) - hi) * slope) * rstd + left)
#define ADDED(STORED, KEPT) (GRADIENT(STORED, KEPT) + STORED(addend))
    if (addend == NULL) {
        ALONG(dx, GRADIENT)
        return;
    }
    addend += r * at->pitch;
    ALONG(dx, ADDED)
#undef ADDED
#undef GRADIENT
}

/* dx, which may be dy, x or addend. */
KERNEL void NAME(row_grads)(const RowGrads *at, const Norm *row) {
    const int stream = at->stream && at->len >= 4 * LINE;
    int wide = 0;
    for (ptrdiff_t r = 0; r < at->rows; r++)
        wide |= row[r].wide;
    const int whole = stream && !wide && at->pitch == at->len;
    share_lines(at, whole, (const STORE *)at->dx + at->rows * at->pitch);
    if (sizeof(REAL) == 8)
        NAME(row_mend)(at, row);
    Shared shared = *at->shared;
    for (ptrdiff_t r = 0; r < at->rows; r++) {
        if (row[r].wide) {
            NAME(wide_grads)(at, row + r, r);
            continue;
        }
        const uintptr_t end = (uintptr_t)((const STORE *)at->dx + (r + 1) * at->pitch);
        shared.goes_on = r + 1 < at->rows ? whole && end % 64 != 0 : at->shared->goes_on;
        NAME(dx_row)(at, row + r, r, stream, &shared);
        shared.began = shared.goes_on;
    }
}

#endif
