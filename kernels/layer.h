/* What the layer families share in C: coefficients, and sums of vectors. */

#ifndef NORMCORE_LAYER_H
#define NORMCORE_LAYER_H

#include "simd.h"

/* The coefficients of one row or column, of what one statistic covers. The mean comes in two parts,
   so that x - hi is exact when the mean is large against the deviations; with g = dy * weight:

   forward   y  = ((x - hi) - lo) * rstd * weight + bias
   backward  dx = rstd * ((g - mean_g_hi) - (((x - hi) - lo) * slope + mean_g_lo)) */
typedef struct {
    double hi, lo, rstd, slope, mean_g_hi, mean_g_lo;
    int wide; /* float32 intermediates could overflow: compute in float64 */
} Norm;

/* weight and bias in the type that is computed in. */
typedef struct {
    const void *weight, *bias;
} Affine;

/* A line of what is streamed of which two writers, one after the other, have a part (along.h). Its
   first elements wait in it if the writer before `began` it; the last ones of this writer are left
   there for the next one if it `goes_on`. What shares lines holds at least 4 of them. */
typedef struct {
    char *line; /* 64 bytes, or so many for every row of a strip */
    int began, goes_on;
} Shared;
/* Nothing shared. */
__attribute__((unused)) static const Shared APART = {NULL, 0, 0};

INLINE double vector_sum(vec_f64 v) {
    double lanes[DOUBLES];
    store_f64(lanes, v);
    for (int half = DOUBLES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

INLINE void add_lanes_f64(double *sum, vec_f64 v) { store_f64(sum, load_f64(sum) + v); }
INLINE void add_lanes_f32(double *sum, vec_f32 v) {
    float lanes[FLOATS];
    store_f32(lanes, v);
    store_f64(sum, load_f64(sum) + widen_f32(lanes));
    store_f64(sum + DOUBLES, load_f64(sum + DOUBLES) + widen_f32(lanes + DOUBLES));
}

#endif
