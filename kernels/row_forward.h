/* Forwards of rows. Included by rows.h, once per storage type. */

/* y = activation(((x - hi) - lo) * rstd * weight + bias + residual). y may be x or residual. */
KERNEL void NAME(row_apply)(void *to, const void *from, const void *from_residual, ptrdiff_t len,
                            const Norm *row, const Affine *affine, int activation, int stream,
                            const Shared *shared) {
    STORE *y = to;
    const STORE *x = from, *residual = from_residual, *ahead = x + ROW_AHEAD / sizeof(STORE);
    const REAL *weight = affine->weight, *bias = affine->bias;
    const REAL hi = (REAL)row->hi, rstd = (REAL)row->rstd, left = (REAL)(-row->lo * row->rstd);
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

/* The line of which the last elements, up to element `end` of a row, belong to the row and the
   others to the row before: in vectors of elements from i on, of which k belong to that one.
   JOINED(c) is coefficient c of both, `past` and `of`. Made of both, the line is never read again:
   put together in memory (along.h), it was, which waited for all stores before it, and rows of 96
   took 1.4 of the copy for 1.1. */
#define SEAM(OUT, VALUE, COEFFICIENTS)                                                         \
    for (ptrdiff_t i = end - LINE; i < end; i += WIDTH) {                                      \
        const ptrdiff_t k = i >= 0 ? 0 : -i < WIDTH ? -i : WIDTH, wrap = i < 0 ? len : 0;      \
        COEFFICIENTS                                                                           \
        NAME(stream)(OUT + i, VALUE(WHOLE, WRAPPED));                                          \
    }
#define JOINED(c) COMPUTE(join)(past[c] - (VEC){0}, of[c] - (VEC){0}, k)
/* weight and bias go on with their first elements. */
#define WRAPPED(p) COMPUTE(load)((p) + wrap + i)

INLINE void NAME(norm_coefficients)(REAL *to, const Norm *row) {
    const double values[3] = {row->hi, row->rstd, -row->lo * row->rstd};
    for (int c = 0; c < 3; c++)
        to[c] = (REAL)values[c];
}

/* As row_apply of a row that is streamed, where nothing is fused. *owed is the row before if its
   end is left to this one, and then this row or NULL. */
KERNEL void NAME(norm_row)(STORE *y, const STORE *x, ptrdiff_t len, const Norm *row,
                           const Affine *affine, const Norm **owed, int goes_on) {
    const REAL *weight = affine->weight, *bias = affine->bias;
    const ptrdiff_t end = line_head(y, sizeof(STORE), len);
    REAL past[3], of[3];
    NAME(norm_coefficients)(of, row);
    const REAL hi = of[0], rstd = of[1], left = of[2];
    ptrdiff_t i = 0;
    if (*owed != NULL) {
        NAME(norm_coefficients)(past, *owed);
        SEAM(y, NORM, const VEC hi = JOINED(0); const VEC rstd = JOINED(1);
             const VEC left = JOINED(2);)
        i = end;
    } else
        PART(y, end, NORM)
    LINES(y, NORM, )
    *owed = goes_on && i < len ? row : NULL;
    if (*owed == NULL)
        PART(y, len, NORM)
}

/* What the row before y and x left of itself. */
KERNEL void NAME(norm_end)(STORE *y, const STORE *x, ptrdiff_t len, const Affine *affine,
                           const Norm **owed) {
    const REAL *weight = (const REAL *)affine->weight + len;
    const REAL *bias = (const REAL *)affine->bias + len;
    REAL of[3];
    NAME(norm_coefficients)(of, *owed);
    const REAL hi = of[0], rstd = of[1], left = of[2];
    ptrdiff_t i = line_head(y, sizeof(STORE), len) - LINE;
    PART(y, 0, NORM)
    *owed = NULL;
}

/* Writes the rows of `pack` and sums those of `next`, which lie behind, by the way: in a sweep of
   their own, 8 rows of 256 floats took 1.44 of the copy, by the way 1.09. What waits for the row
   behind is in `shared` or *owed. */
KERNEL void NAME(rows_forward)(RowSums *sums, const Pack *next, const Pack *pack, ptrdiff_t len,
                               int centred, const Affine *affine, int activation, int stream,
                               Shared *shared, const Norm **owed) {
    const ptrdiff_t size = len * sizeof(STORE);
    const int lines = stream && len >= 4 * LINE;
    const int bare =
        lines && pack->adjacent && pack->residual == NULL && activation == IDENTITY;
    for (ptrdiff_t r = 0; r < next->rows || r < pack->rows; r++) {
        if (sums != NULL && r < next->rows) {
            if (centred)
                NAME(sum_row)(sums, r, next->x[r], len);
            else
                NAME(sum_squares)(sums, r, next->x[r], len);
        }
        if (r >= pack->rows)
            continue;
        const Norm *row = pack->norm + r;
        /* Rows of NaN are none: which of two NaN a sum hands on is up to the compiler. */
        const int whole = lines && row->rstd > 0.0 && !row->wide;
        const int follows = r + 1 < pack->rows || next->rows > 0;
        const char *x = pack->x[r];
        char *y = pack->y + r * size;
        if (bare && whole) {
            NAME(norm_row)((STORE *)y, (const STORE *)x, len, row, affine, owed, follows);
            continue;
        }
        if (*owed != NULL)
            NAME(norm_end)((STORE *)y, (const STORE *)x, len, affine, owed);
        if (shared->began && !whole)
            give_up_line(shared, y);
        shared->goes_on = whole && !bare && follows && (uintptr_t)(y + size) % 64 != 0;
        NAME(row_apply)(y, x, pack->residual == NULL ? NULL : pack->residual + r * size, len, row,
                        affine, activation, stream, shared);
        shared->began = shared->goes_on;
    }
}
