/* The step between the sums of up to TOGETHER rows and their coefficients, in vectors: row by row,
   its divisions and its square root were a third of the time of rows of 96. */

#ifndef NORMCORE_ROW_SETTLE_H
#define NORMCORE_ROW_SETTLE_H

#include <math.h>

#include "layer.h"

/* Rows that are worked on together, at most. */
enum { TOGETHER = 8 };

/* Of each row: of x - shift, and of their squares, in lanes; and the shift, in the first lane of
   zeros, because what is stored by rows cannot be read as a vector before all stores are done, with
   those that stream y before them. */
typedef struct {
    double sum[TOGETHER][DOUBLES], square[TOGETHER][DOUBLES], shift[TOGETHER][DOUBLES];
} RowSums;

/* Rows of a forward that are worked on together; y and the residual lie end to end. */
typedef struct {
    char *y;
    const char *x[TOGETHER], *residual;
    ptrdiff_t rows;
    int adjacent;
    Norm norm[TOGETHER];
} Pack;

/* As vector_sum, of each of TOGETHER vectors. */
INLINE void vector_sums(double *to, double (*lanes)[DOUBLES]) {
#if defined(__AVX512F__)
#define HALVES_OF(a, b, LOW, HIGH)                                                             \
    ((vec_f64)_mm512_shuffle_f64x2((__m512d)(a), (__m512d)(b), LOW) +                          \
     (vec_f64)_mm512_shuffle_f64x2((__m512d)(a), (__m512d)(b), HIGH))
#define FOUR_OF(i)                                                                             \
    HALVES_OF(HALVES_OF(load_f64(lanes[i]), load_f64(lanes[(i) + 2]), 0x44, 0xee),             \
              HALVES_OF(load_f64(lanes[(i) + 4]), load_f64(lanes[(i) + 6]), 0x44, 0xee), 0x88, 0xdd)
    const __m512d even = (__m512d)FOUR_OF(0), odd = (__m512d)FOUR_OF(1);
    store_f64(to, (vec_f64)_mm512_unpacklo_pd(even, odd) + (vec_f64)_mm512_unpackhi_pd(even, odd));
#undef FOUR_OF
#undef HALVES_OF
#else
    for (int r = 0; r < TOGETHER; r++)
        to[r] = vector_sum(load_f64(lanes[r]));
#endif
}

/* Statistics and coefficients; `narrow`: computed in float32. Returns the rows, as bits, of which
   this does not hold: their shift was so bad that it cost `lost` (see passes.pxi), or they are wide
   or not finite. */
KERNEL unsigned settle_rows(Norm *norm, double *to_mean, double *to_rstd, RowSums *sums,
                            ptrdiff_t rows, double count, double eps, double lost, int narrow) {
    double mean[TOGETHER], rstd[TOGETHER], hi[TOGETHER], rest[TOGETHER];
    double sum[TOGETHER], square[TOGETHER], shift[TOGETHER];
    long odd[TOGETHER];
    vector_sums(sum, sums->sum);
    vector_sums(square, sums->square);
    vector_sums(shift, sums->shift);
    for (int r = 0; r < TOGETHER; r++) {
        const double lo = sum[r] / count, excess = sum[r] * lo;
        const double left = square[r] - excess;
        mean[r] = shift[r] + lo;
        rstd[r] = 1.0 / sqrt((left < 0.0 ? 0.0 : left) / count + eps);
        hi[r] = narrow ? (float)mean[r] : shift[r];
        rest[r] = (shift[r] - hi[r]) + lo;
        odd[r] = (excess > 0.0) & !(excess <= lost * left);
        odd[r] |= !(fabs(mean[r]) <= 4e37) | !(rstd[r] >= 1e-30) | !(rstd[r] <= 1e30);
    }
    unsigned found = 0;
    for (ptrdiff_t r = 0; r < rows; r++) {
        found |= (unsigned)odd[r] << r;
        if (to_mean != NULL)
            to_mean[r] = mean[r];
        to_rstd[r] = rstd[r];
        norm[r] = (Norm){.hi = hi[r], .lo = rest[r], .rstd = rstd[r]};
    }
    return found;
}

#endif
