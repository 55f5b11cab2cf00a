/* Statistics and coefficients of the columns of a strip (family cols), in float64.

   In loops that GCC makes vectors of: settled one by one, a column took as long as the sums of 96
   rows of it. Every operation rounds as it does alone. */

#ifndef NORMCORE_COL_NORMS_H
#define NORMCORE_COL_NORMS_H

#include "activation.h"
#include "layer.h"

/* The coefficients of a strip's columns, one array each; layer.h says what they are. In a backward
   NORM_G_LO is all that is left to add to dx. */
enum { NORM_HI, NORM_LO, NORM_RSTD, NORM_SLOPE, NORM_G_HI, NORM_G_LO, NORM_VALUES };

/* Columns that are settled between two requests. */
enum { LATER = 8, SETTLED_COLUMNS = 64 };

typedef struct {
    ptrdiff_t rows, cols, pitch;
    ptrdiff_t ahead;    /* elements from the last rows taken together to what to ask for then */
    ptrdiff_t room;     /* elements from one array of coefficients to the next */
    const void *packed; /* (NORM_VALUES, room) in the type that is computed in */
    double *exact;      /* (NORM_VALUES, room) */
    Shared shared;      /* with the strips before and behind, a line of each row */
    /* Rows of the next strip, or NULL, that are asked for while the columns of this one are
       settled: those that its shifts are found from. (32, 96, 3136) forward went from 1.30 to 1.27
       of the copy, in float64 from 1.32 to 1.26; with more rows, with quicker roots instead of the
       CPU's, or in a backward nothing changed. */
    const char *later[LATER];
    ptrdiff_t itemsize; /* of their elements */
    int wide;           /* float32 intermediates of some column could overflow: take `exact` */
    int masked;         /* some column has rstd 0 and counts for nothing */
} Strip;

/* From a strip's first column on. */
typedef struct {
    double *mean, *rstd;       /* mean may be NULL: nothing is centred */
    const unsigned char *mask; /* or NULL */
    double count, eps;
    double lost; /* what a shift may cost before the sums are taken again */
    int single;  /* computed in float32 */
} Statistics;

INLINE void ask_later(const Strip *strip, ptrdiff_t first, ptrdiff_t last) {
    if (strip->later[0] != NULL)
        for (int i = 0; i < LATER; i++)
            for (ptrdiff_t j = first; j < last; j += 64 / strip->itemsize)
                __builtin_prefetch(strip->later[i] + j * strip->itemsize, 0, 2);
}

/* median3 of every lane. */
INLINE vec_f64 medians3(vec_f64 a, vec_f64 b, vec_f64 c) {
    const vec_f64 low = choose_f64(a < b, a, b), high = choose_f64(a < b, b, a);
    const vec_f64 middle = choose_f64(high < c, high, c);
    const vec_f64 median = choose_f64(low > middle, low, middle);
    return only_where_f64(median - median == 0, median);
}

/* Where digits were lost the shift moves to the mean; returns whether there was such a column. */
KERNEL int move_shifts(const Strip *strip, const Statistics *of, const double *restrict sum,
                       double *restrict shift) {
    const double *restrict square = sum + strip->room;
    const double share = 1.0 / of->count, lost = of->lost;
    int moved = 0;
    for (ptrdiff_t j = 0; j < strip->cols; j++) {
        const double excess = sum[j] * (sum[j] * share);
        moved |= (excess > 0.0) & (excess > lost * (square[j] - excess));
    }
    if (!moved)
        return 0;
    for (ptrdiff_t j = 0; j < strip->cols; j++) {
        const double excess = sum[j] * (sum[j] * share);
        if (excess > 0.0 && excess > lost * (square[j] - excess))
            shift[j] += sum[j] * share;
    }
    return 1;
}

/* Says what kind the columns are of and, for float32, makes hi a float32 and lo the rest. */
INLINE void split_means(Strip *strip, int single) {
    double *restrict hi = strip->exact, *restrict lo = hi + NORM_LO * strip->room;
    const double *restrict rstd = hi + NORM_RSTD * strip->room;
    int special = 0;
    strip->wide = strip->masked = 0;
    for (ptrdiff_t j = 0; j < strip->cols; j++)
        special |= !(fabs(hi[j]) <= 4e37) | !(rstd[j] >= 1e-30) | !(rstd[j] <= 1e30);
    if (special)
        for (ptrdiff_t j = 0; j < strip->cols; j++) {
            strip->wide |= single && is_wide(hi[j], rstd[j], rstd[j]);
            strip->masked |= rstd[j] == 0.0;
        }
    if (single && !strip->wide)
        for (ptrdiff_t j = 0; j < strip->cols; j++) {
            const double nearest = (float)(hi[j] + lo[j]);
            lo[j] = (hi[j] - nearest) + lo[j];
            hi[j] = nearest;
        }
}

/* NORM_LO: what is left to add to (x - hi) * rstd. */
INLINE void give_rests(Strip *strip) {
    double *restrict lo = strip->exact + NORM_LO * strip->room;
    const double *restrict rstd = strip->exact + NORM_RSTD * strip->room;
    for (ptrdiff_t j = 0; j < strip->cols; j++)
        lo[j] *= -rstd[j];
}

/* From sum and square, arrays of `room`: mean, rstd and the coefficients of a forward. */
KERNEL void settle_columns(Strip *strip, const Statistics *of, const double *restrict sum,
                           const double *restrict shift) {
    const double *restrict square = sum + strip->room;
    double *restrict hi = strip->exact, *restrict lo = hi + NORM_LO * strip->room;
    double *restrict rstd = hi + NORM_RSTD * strip->room;
    double *restrict to_mean = of->mean, *restrict to_rstd = of->rstd;
    const double share = 1.0 / of->count, eps = of->eps;
    const int centred = of->mean != NULL;
    for (ptrdiff_t first = 0, last = 0; first < strip->cols; first = last) {
        last = first + SETTLED_COLUMNS < strip->cols ? first + SETTLED_COLUMNS : strip->cols;
        ask_later(strip, first, last);
        for (ptrdiff_t j = first; j < last; j++) {
            const double rest = centred ? sum[j] * share : 0.0;
            const double left = square[j] - sum[j] * rest;
            hi[j] = shift[j];
            lo[j] = rest;
            rstd[j] = 1.0 / sqrt((centred && left < 0.0 ? 0.0 : left) * share + eps);
        }
    }
    if (of->mask != NULL)
        for (ptrdiff_t j = 0; j < strip->cols; j++)
            if (of->mask[j] == 0)
                hi[j] = lo[j] = rstd[j] = 0.0;
    if (centred)
        for (ptrdiff_t j = 0; j < strip->cols; j++)
            to_mean[j] = hi[j] + lo[j];
    memcpy(to_rstd, rstd, strip->cols * sizeof *rstd);
    split_means(strip, of->single);
    give_rests(strip);
}

/* Coefficients from a mean and an rstd that are given. Whole vectors: 0 beyond the columns. */
KERNEL void given_columns(Strip *strip, const Statistics *of) {
    double *restrict hi = strip->exact, *restrict lo = hi + NORM_LO * strip->room;
    double *restrict rstd = hi + NORM_RSTD * strip->room;
    for (ptrdiff_t j = 0; j < strip->cols; j++) {
        hi[j] = of->mean == NULL ? 0.0 : of->mean[j];
        rstd[j] = of->rstd[j];
        lo[j] = 0.0;
    }
    if (of->mask != NULL)
        for (ptrdiff_t j = 0; j < strip->cols; j++)
            if (of->mask[j] == 0)
                hi[j] = rstd[j] = 0.0;
    for (ptrdiff_t j = strip->cols; j % DOUBLES != 0; j++)
        hi[j] = lo[j] = rstd[j] = 0.0;
    strip->masked = 0;
    for (ptrdiff_t j = 0; j < strip->cols; j++)
        strip->masked |= rstd[j] == 0.0;
}

/* From given_columns and the sums of col_sums.h, arrays of `room`: the coefficients of a backward.
   `rest` becomes what the mean is off by, in standard deviations; returns whether there is any. */
KERNEL int settle_column_grads(Strip *strip, const Statistics *of, double *restrict sum) {
    const double *restrict product = sum + strip->room;
    double *restrict rest = sum + 2 * strip->room;
    double *restrict hi = strip->exact, *restrict lo = hi + NORM_LO * strip->room;
    const double *restrict rstd = hi + NORM_RSTD * strip->room;
    double *restrict slope = hi + NORM_SLOPE * strip->room;
    double *restrict g_hi = hi + NORM_G_HI * strip->room;
    double *restrict g_lo = hi + NORM_G_LO * strip->room;
    const double share = 1.0 / of->count;
    const int centred = of->mean != NULL;
    int off = 0;
    for (ptrdiff_t j = 0; j < strip->cols; j++) {
        lo[j] = centred ? rest[j] * share : 0.0;
        rest[j] = lo[j] * rstd[j];
        off |= rest[j] != 0.0;
        slope[j] = rstd[j] * rstd[j] * ((product[j] - sum[j] * lo[j]) * share);
        g_hi[j] = centred ? sum[j] * share : 0.0;
    }
    split_means(strip, of->single);
    if (of->single && !strip->wide)
        for (ptrdiff_t j = 0; j < strip->cols; j++) {
            const double mean_g = g_hi[j], nearest = (float)mean_g;
            g_lo[j] = ((mean_g - nearest) - lo[j] * slope[j]) * -rstd[j];
            g_hi[j] = nearest;
        }
    else
        for (ptrdiff_t j = 0; j < strip->cols; j++)
            g_lo[j] = lo[j] * slope[j] * rstd[j];
    return off;
}

#endif
