/* The step between sums and coefficients, a vector of channels at a time: the divisions and square
   roots of 64 channels, one by one, were a quarter of a call with an array of (1, 64). Every
   operation rounds as it does alone, so the bits are those of settle.pxi. */
#ifndef NORMCORE_SETTLE_H
#define NORMCORE_SETTLE_H

#include <math.h>
#include <stddef.h>

#include "calls.h"
#include "tables.h"

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

INLINE void add_all(double *restrict to, const double *restrict from, ptrdiff_t size) {
    for (ptrdiff_t i = 0; i < size; i++)
        to[i] += from[i];
}

/* The sum of up to LANES doubles: lanes, then lanes in pairs. */
INLINE double block_sum(const double *p, ptrdiff_t size) {
    vec_f64 lanes = {0};
    double parts[DOUBLES], total;
    ptrdiff_t i = 0;
    for (; i + DOUBLES <= size; i += DOUBLES)
        lanes += load_f64(p + i);
    store_f64(parts, lanes);
    for (int half = DOUBLES / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++)
            parts[k] += parts[k + half];
    for (total = parts[0]; i < size; i++)
        total += p[i];
    return total;
}

/* The sum of the channels of a statistic; that of blocks is compensated, because a group may have
   thousands: without, var of 4099 was off by 4.2e-15. One by one, with the branch of Neumaier's
   sum, the groups of (64, 256) in 8 took half of the call. */
KERNEL double merged_sum(const double *sums, ptrdiff_t size) {
    double total = block_sum(sums, size < LANES ? size : LANES), lost = 0.0;
    for (ptrdiff_t i = LANES; i < size; i += LANES) {
        const double block = block_sum(sums + i, size - i < LANES ? size - i : LANES);
        const double sum = total + block, added = sum - total;
        lost += (total - (sum - added)) + (block - added);
        total = sum;
    }
    return isfinite(lost) ? total + lost : total;
}

/* The coefficients of channels from `first` on, of which the first one has parameter `parameter`;
   computed in float32 if `narrow`; to `tables`, else to `channels`. 0 if not all of them are plain:
   split_mean in settle.pxi then says what they are. */
KERNEL int plain_channels(ptrdiff_t size, ptrdiff_t first, ptrdiff_t parameter, int narrow,
                          const double *restrict mean, const double *restrict lo,
                          const double *restrict rstd, const Parameter *weight,
                          const Parameter *bias, Channel *restrict channels,
                          const Tables *tables) {
    double scale[SETTLED], shift[SETTLED], hi[SETTLED], rest[SETTLED];
    int wide = 0;
    parameters_of(size, weight, parameter, 1.0, scale);
    parameters_of(size, bias, parameter, 0.0, shift);
    for (ptrdiff_t i = 0; i < size; i++)
        scale[i] *= rstd[i];
    if (narrow)
        for (ptrdiff_t i = 0; i < size; i++)
            wide |= !(fabs(mean[i]) <= 4e37) | !(rstd[i] >= 1e-30) | !(rstd[i] <= 1e30) |
                    !(fabs(scale[i]) <= 1e30);
    else
        for (ptrdiff_t i = 0; i < size; i++)
            wide |= rstd[i] == 0.0;
    if (wide)
        return 0;
    for (ptrdiff_t i = 0; i < size; i++) {
        hi[i] = narrow ? (float)(mean[i] + lo[i]) : mean[i];
        rest[i] = (mean[i] - hi[i]) + lo[i];
    }
    if (tables->packed != NULL) {
        put_coefficients(tables, HI, first, size, hi);
        put_coefficients(tables, LO, first, size, rest);
        put_coefficients(tables, SCALE, first, size, scale);
        if (!tables->gradient)
            put_coefficients(tables, BIAS, first, size, shift);
        return 1;
    }
    for (ptrdiff_t i = 0; i < size; i++) {
        channels[first + i].hi = hi[i];
        channels[first + i].lo = rest[i];
        channels[first + i].scale = scale[i];
        channels[first + i].bias = shift[i];
        channels[first + i].kind = PLAIN_CHANNEL;
    }
    return 1;
}

/* sum(weight * sums) over the channels of a statistic. */
KERNEL double weighted_sum(const double *sums, ptrdiff_t size, const Parameter *weight,
                           ptrdiff_t parameter) {
    double products[SETTLED], total = 0.0;
    for (ptrdiff_t i = 0; i < size; i += SETTLED) {
        const ptrdiff_t some = size - i < SETTLED ? size - i : SETTLED;
        parameters_of(some, weight, parameter + i, 1.0, products);
        for (ptrdiff_t k = 0; k < some; k++)
            products[k] *= sums[i + k];
        total += merged_sum(products, some);
    }
    return total;
}

/* Of statistics of one channel each: what is left of the mean, and the slope of dx. */
KERNEL void plain_slopes(ptrdiff_t size, const double *restrict product,
                         const double *restrict deviation, const double *restrict rstd,
                         double count, const Parameter *weight, ptrdiff_t parameter,
                         double *restrict rest, double *restrict slope) {
    double scale[SETTLED];
    parameters_of(size, weight, parameter, 1.0, scale);
    for (ptrdiff_t i = 0; i < size; i++) {
        rest[i] = deviation[i] / count;
        slope[i] = rstd[i] * rstd[i] * rstd[i] * (scale[i] * product[i] / count);
    }
}

/* As plain_channels, of a backward. `count` elements have gone into sum_dy of a channel; mean_dy
   is NULL where a channel is a statistic: it is then (sum_dy / count) * scale, and what dy_shift
   has of that is better left out before than subtracted. */
KERNEL int plain_gradients(ptrdiff_t size, ptrdiff_t first, ptrdiff_t parameter, int narrow,
                           const double *restrict mean, const double *restrict lo,
                           const double *restrict rstd, const double *restrict slope,
                           const double *restrict mean_dy, const double *restrict sum_dy,
                           double count, const Parameter *weight, Channel *restrict channels,
                           const Tables *tables) {
    const Parameter none = {NULL, NULL};
    double dy_shift[SETTLED], rest[SETTLED], scale[SETTLED];
    int wide = 0;
    if (narrow)
        for (ptrdiff_t i = 0; i < size; i++)
            wide |= (slope[i] != 0.0) &
                    (!(fabs(slope[i]) <= 1e30) | !(fabs(slope[i]) >= 1e-30));
    if (wide || !plain_channels(size, first, parameter, narrow, mean, lo, rstd, weight, &none,
                                channels, tables))
        return 0;
    parameters_of(size, weight, parameter, 1.0, scale);
    for (ptrdiff_t i = 0; i < size; i++) {
        const double own = sum_dy[i] / count;
        scale[i] *= rstd[i];
        dy_shift[i] = narrow ? (float)own : own;
        rest[i] = mean_dy == NULL ? (own - dy_shift[i]) * scale[i]
                                  : mean_dy[i] - scale[i] * dy_shift[i];
    }
    if (tables->packed != NULL) {
        put_coefficients(tables, SLOPE, first, size, slope);
        put_coefficients(tables, DY_SHIFT, first, size, dy_shift);
        put_coefficients(tables, REST, first, size, rest);
        return 1;
    }
    for (ptrdiff_t i = 0; i < size; i++) {
        channels[first + i].slope = slope[i];
        channels[first + i].dy_shift = dy_shift[i];
        channels[first + i].rest = rest[i];
    }
    return 1;
}

/* Adds what channels give to the gradients of their parameters; they share one rstd, or have one
   each if `step` is 1. */
KERNEL void add_parameter_grads(ptrdiff_t size, const double *restrict sum,
                                const double *restrict product, const double *restrict rstd,
                                ptrdiff_t step, double *restrict dweight,
                                double *restrict dbias) {
    for (ptrdiff_t i = 0; i < size; i++) {
        dweight[i] += product[i] * rstd[i * step];
        dbias[i] += sum[i];
    }
}

#endif
