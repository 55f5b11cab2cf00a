/* What rows add to dweight and dbias, for one vector of columns: sums of dy * (x - mean) * rstd and of
   dy. Included by row_grads.h, once per storage type.

   In float64: rounded to float32, the terms of 65536 rows that repeat 16 were off by 7e-6 of
   dweight's norm; now by 6e-8, for 1 % of the backward of (32768, 1024). Of halves, dy * (x - hi), hi
   having 12 digits, is a float32 most often, so that the factor rstd is what is left to do in float64;
   the part of hi's rest, and dbias, are small or short enough for float32. That leaves 3e-6 where
   thousands of rows are equal (9e-6 before) and 1e-7 elsewhere; all of it in float64 took 1.2 of the
   time. */

#define PARTS (WIDTH / DOUBLES)

/* The coefficients of a row: those of dx in Norm's order, and those of its terms. */
typedef struct {
    REAL dx[6], rest;
    double rstd, mean, mean_rest;
} NAME(Coefficients);

INLINE void NAME(set_coefficients)(NAME(Coefficients) * to, const Norm *row) {
    const double values[6] = {row->hi,    row->lo,        row->rstd,
                              row->slope, row->mean_g_hi, row->mean_g_lo};
    for (int i = 0; i < 6; i++)
        to->dx[i] = (REAL)values[i];
    to->rest = (REAL)(row->lo * row->rstd);
    to->rstd = row->rstd;
    /* The two parts of a float32 mean make one float64. */
    to->mean = sizeof(REAL) == 4 ? row->hi + row->lo : row->hi;
    to->mean_rest = row->lo;
}

#ifdef HALF

typedef struct {
    vec_f64 products[PARTS];
    VEC rest, dbias;
} NAME(Terms);

INLINE void NAME(no_terms)(NAME(Terms) * terms) {
    for (int i = 0; i < PARTS; i++)
        terms->products[i] = (vec_f64){0};
    terms->rest = terms->dbias = (VEC){0};
}

INLINE void NAME(add_terms)(NAME(Terms) * terms, VEC dy, VEC x,
                            const NAME(Coefficients) * by) {
    REAL products[WIDTH];
    COMPUTE(store)(products, dy * (x - by->dx[0]));
    /* Converted in registers, it takes 5 instructions instead of 2. */
    __asm__("" : "+m"(products));
    UNROLLED
    for (int i = 0; i < PARTS; i++)
        terms->products[i] += COMPUTE(widen)(products + i * DOUBLES) * by->rstd;
    terms->rest += dy * by->rest;
    terms->dbias += dy;
}

INLINE void NAME(sums_of_terms)(vec_f64 *dweight, vec_f64 *dbias, const NAME(Terms) * terms) {
    REAL rest[WIDTH], sums[WIDTH];
    COMPUTE(store)(rest, terms->rest);
    COMPUTE(store)(sums, terms->dbias);
    for (int i = 0; i < PARTS; i++) {
        dweight[i] = terms->products[i] - COMPUTE(widen)(rest + i * DOUBLES);
        dbias[i] = COMPUTE(widen)(sums + i * DOUBLES);
    }
}

#else

typedef struct {
    vec_f64 dweight[PARTS], dbias[PARTS];
} NAME(Terms);

INLINE void NAME(no_terms)(NAME(Terms) * terms) {
    for (int i = 0; i < PARTS; i++)
        terms->dweight[i] = terms->dbias[i] = (vec_f64){0};
}

INLINE void NAME(add_terms)(NAME(Terms) * terms, const REAL *dy, const REAL *x,
                            const NAME(Coefficients) * by) {
    UNROLLED
    for (int i = 0; i < PARTS; i++) {
        const vec_f64 gradient = COMPUTE(widen)(dy + i * DOUBLES);
        vec_f64 deviation = COMPUTE(widen)(x + i * DOUBLES) - by->mean;
        if (sizeof(REAL) == 8)
            deviation -= by->mean_rest;
        terms->dweight[i] += gradient * (deviation * by->rstd);
        terms->dbias[i] += gradient;
    }
}

INLINE void NAME(sums_of_terms)(vec_f64 *dweight, vec_f64 *dbias, const NAME(Terms) * terms) {
    for (int i = 0; i < PARTS; i++) {
        dweight[i] = terms->dweight[i];
        dbias[i] = terms->dbias[i];
    }
}

#endif

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
