/* What rows of halves add to dweight and dbias, for one vector of columns: sums of
   dy * (x - mean) * rstd and of dy. Included by row_strips.h, once per storage type.

   In float32 over the rows that are taken together: float64 would cost 20 %, for memory does not
   hold halves back. That is 3e-7 of the norm, and up to 1e-5 where thousands of rows are equal.
   Terms of floats and doubles are summed in float64, with all other sums (row_sums.h). */

#define PARTS (WIDTH / DOUBLES)

/* The coefficients of a row: those of dx, in the low part of mean(g) what the low part of the mean
   adds, and those of its terms. */
typedef struct {
    REAL dx[5], rest;
} NAME(Coefficients);

INLINE void NAME(set_coefficients)(NAME(Coefficients) * to, const Norm *row) {
    const double values[5] = {row->hi, row->rstd, row->slope, row->mean_g_hi,
                              (row->lo * row->slope - row->mean_g_lo) * row->rstd};
    for (int i = 0; i < 5; i++)
        to->dx[i] = (REAL)values[i];
    to->rest = (REAL)row->lo;
}

typedef struct {
    VEC dweight, dbias;
} NAME(Terms);

INLINE void NAME(no_terms)(NAME(Terms) * terms) { terms->dweight = terms->dbias = (VEC){0}; }

INLINE void NAME(add_terms)(NAME(Terms) * terms, VEC dy, VEC x,
                            const NAME(Coefficients) * by) {
    terms->dweight += dy * (((x - by->dx[0]) - by->rest) * by->dx[1]);
    terms->dbias += dy;
}

INLINE void NAME(sums_of_terms)(vec_f64 *dweight, vec_f64 *dbias, const NAME(Terms) * terms) {
    REAL products[WIDTH], sums[WIDTH];
    COMPUTE(store)(products, terms->dweight);
    COMPUTE(store)(sums, terms->dbias);
    for (int i = 0; i < PARTS; i++) {
        dweight[i] = COMPUTE(widen)(products + i * DOUBLES);
        dbias[i] = COMPUTE(widen)(sums + i * DOUBLES);
    }
}

/* Of all columns of the vector or, if k is not 0, of the first k. */
INLINE void NAME(give_terms)(const NAME(Terms) * terms, double *dweight, double *dbias, ptrdiff_t k) {
    vec_f64 to_dweight[PARTS], to_dbias[PARTS];
    NAME(sums_of_terms)(to_dweight, to_dbias, terms);
    if (k) {
        for (ptrdiff_t i = 0; i < k; i++) {
            dweight[i] += to_dweight[i / DOUBLES][i % DOUBLES];
            dbias[i] += to_dbias[i / DOUBLES][i % DOUBLES];
        }
        return;
    }
    for (int i = 0; i < PARTS; i++) {
        add_lanes_f64(dweight + i * DOUBLES, to_dweight[i]);
        add_lanes_f64(dbias + i * DOUBLES, to_dbias[i]);
    }
}

#undef PARTS
