/* Statistics of one channel each, a vector of them at a time: the divisions and square roots of 64
   channels, one by one, were a quarter of a call with an array of (1, 64). Every operation rounds
   as it does alone, so the bits are those of passes.pxi. */
#ifndef NORMCORE_SETTLE_H
#define NORMCORE_SETTLE_H

#include <math.h>
#include <stddef.h>

#include "calls.h"
#include "simd.h"

/* Statistics that are settled at a time. */
enum { SETTLED = 64 };

/* lo: what the mean has beyond the shift. */
KERNEL void plain_statistics(ptrdiff_t size, const double *restrict sum,
                             const double *restrict square, const double *restrict shift,
                             double count, double eps, double *restrict lo, double *restrict mean,
                             double *restrict var, double *restrict rstd) {
    for (ptrdiff_t i = 0; i < size; i++) {
        const double rest = square[i] - sum[i] * sum[i] / count;
        lo[i] = sum[i] / count;
        mean[i] = shift[i] + lo[i];
        var[i] = (rest < 0.0 ? 0.0 : rest) / count;
        rstd[i] = 1.0 / sqrt(var[i] + eps);
    }
}

KERNEL void rstd_of(ptrdiff_t size, const Parameter *var, ptrdiff_t first, double eps,
                    double *restrict rstd) {
    if (var->single != NULL)
        for (ptrdiff_t i = 0; i < size; i++)
            rstd[i] = 1.0 / sqrt(var->single[first + i] + eps);
    else
        for (ptrdiff_t i = 0; i < size; i++)
            rstd[i] = 1.0 / sqrt(var->double_[first + i] + eps);
}

INLINE void parameters_of(ptrdiff_t size, const Parameter *given, ptrdiff_t first,
                          double otherwise, double *restrict found) {
    if (given->single != NULL)
        for (ptrdiff_t i = 0; i < size; i++)
            found[i] = given->single[first + i];
    else if (given->double_ != NULL)
        for (ptrdiff_t i = 0; i < size; i++)
            found[i] = given->double_[first + i];
    else
        for (ptrdiff_t i = 0; i < size; i++)
            found[i] = otherwise;
}

/* The coefficients of channels from `first` on, computed in float32; 0 if not all of them are
   plain: split_mean in passes.pxi then says what they are. */
KERNEL int plain_channels(ptrdiff_t size, ptrdiff_t first, const double *restrict mean,
                          const double *restrict lo, const double *restrict rstd,
                          const Parameter *weight, const Parameter *bias,
                          Channel *restrict channels) {
    double scale[SETTLED], shift[SETTLED];
    int wide = 0;
    parameters_of(size, weight, first, 1.0, scale);
    parameters_of(size, bias, first, 0.0, shift);
    for (ptrdiff_t i = 0; i < size; i++)
        scale[i] *= rstd[i];
    for (ptrdiff_t i = 0; i < size; i++)
        wide |= !(fabs(mean[i]) <= 4e37) | !(rstd[i] >= 1e-30) | !(rstd[i] <= 1e30) |
                !(fabs(scale[i]) <= 1e30);
    if (wide)
        return 0;
    for (ptrdiff_t i = 0; i < size; i++) {
        const double hi = (float)(mean[i] + lo[i]);
        channels[first + i].hi = hi;
        channels[first + i].lo = (mean[i] - hi) + lo[i];
        channels[first + i].scale = scale[i];
        channels[first + i].bias = shift[i];
        channels[first + i].kind = PLAIN_CHANNEL;
    }
    return 1;
}

#endif
