/* Gradients of rows of halves: dx, and their part of dweight and dbias, strip by strip of columns
   of all rows that are taken together. Included by row_grads.h, once per storage type. */

#include "row_terms.h"

/* Columns j to j + vectors * WIDTH or, if k is not 0, to j + k, of all rows; dx of the first row
   goes to `dx`, of the next one dx_pitch elements after it. */
INLINE void NAME(strip_to)(STORE *dx, const ptrdiff_t dx_pitch, const RowGrads *at,
                           const NAME(Coefficients) *coefficients, ptrdiff_t j,
                           const int vectors, const ptrdiff_t k, const int stream,
                           const int added) {
    const STORE *dy = (const STORE *)at->dy + j, *x = (const STORE *)at->x + j;
    const STORE *addend = (const STORE *)at->addend + (added ? j : 0);
    const REAL *weight = (const REAL *)at->weight + j;
    VEC w[STRIP_VECTORS];
    NAME(Terms) terms[STRIP_VECTORS];
#define STORED(p) (k ? NAME(load_some)(p, k) : NAME(load)((p) + u * WIDTH))
    UNROLLED
    for (int u = 0; u < vectors; u++) {
        w[u] = k ? COMPUTE(load_some)(weight, k) : COMPUTE(load)(weight + u * WIDTH);
        NAME(no_terms)(terms + u);
    }
    for (ptrdiff_t r = 0; r < at->rows; r++) {
        const REAL *by = coefficients[r].dx;
        const REAL hi = by[0], rstd = by[1], slope = by[2], mean_hi = by[3], left = by[4];
        UNROLLED
        for (int u = 0; u < vectors; u++) {
            if ((u * WIDTH) % LINE == 0)
                __builtin_prefetch(dy + at->rows * at->pitch + u * WIDTH, 0, 2);
            const VEC gradient = STORED(dy), element = STORED(x);
            const VEC past = added ? STORED(addend) : (VEC){0};
            VEC found = ((w[u] * gradient - mean_hi) - (element - hi) * slope) * rstd + left;
            if (added)
                found += past;
            NAME(add_terms)(terms + u, gradient, element, coefficients + r);
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
    UNROLLED
    for (int u = 0; u < vectors; u++)
        NAME(give_terms)(terms + u, at->dweight + j + u * WIDTH, at->dbias + j + u * WIDTH, k);
}

INLINE void NAME(strip_grads)(const RowGrads *at, const NAME(Coefficients) *coefficients,
                              ptrdiff_t j, const int vectors, const ptrdiff_t k, const int stream,
                              const int added) {
    STORE *dx = (STORE *)at->dx + j;
    NAME(strip_to)(dx, at->pitch, at, coefficients, j, vectors, k, stream, added);
}

INLINE void NAME(all_strips)(const RowGrads *at, const NAME(Coefficients) *coefficients,
                             const int stream, const int added) {
    /* Rows that lie end to end and begin in the middle of a line share that line with the row
       before: it is put together here and streamed whole. Stored in two parts, it was first read
       from memory: (32768, 256) took 2.2 of the triad. */
    STORE lines[TOGETHER + 1][LINE] __attribute__((aligned(64)));
    const ptrdiff_t head =
        at->len >= 4 * LINE ? line_head(at->dx, sizeof(STORE), at->len) : 0;
    const ptrdiff_t before = LINE - head;
    const int shared = stream && head > 0 && at->pitch == at->len && at->len % LINE == 0;
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
    if (at->shared->began)
        memcpy(lines[0], at->shared->line, before * sizeof(STORE));
    else
        memcpy(dx, lines[0] + before, head * sizeof(STORE));
    for (ptrdiff_t r = at->shared->began ? 0 : 1; r < at->rows; r++)
        for (ptrdiff_t i = 0; i < LINE; i += WIDTH)
            NAME(stream)(dx + r * at->pitch - before + i, NAME(load)(lines[r] + i));
    if (at->shared->goes_on)
        memcpy(at->shared->line, lines[at->rows], before * sizeof(STORE));
    else
        memcpy(dx + at->rows * at->pitch - before, lines[at->rows], before * sizeof(STORE));
}

/* dx, and what the rows add to dweight and dbias. dx may be dy, x or addend. */
KERNEL void NAME(row_grads)(const RowGrads *at, const Norm *row) {
    NAME(Coefficients) coefficients[TOGETHER];
    /* Streamed only where all rows begin at the same place of a line. */
    const int stream =
        at->stream && at->len >= 4 * LINE && (at->rows == 1 || at->pitch % LINE == 0);
    int wide = 0;
    for (ptrdiff_t r = 0; r < at->rows; r++) {
        NAME(set_coefficients)(coefficients + r, row + r);
        wide |= row[r].wide;
    }
    share_lines(at, stream && !wide && at->pitch == at->len && at->len % LINE == 0,
                at->dx);
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
