/* Coefficients of channels as vector loops want them (family nc): an array of each.

   Channels whose coefficients are computed in vectors never take the way through `Channel`: written
   there and packed from there, 64 bytes apart, they took 2.5 ns each. */

#ifndef NORMCORE_TABLES_H
#define NORMCORE_TABLES_H

#include "simd.h"

/* The arrays go on with WRAP of their first elements: a row may be read from its first full
   line. */
enum { WRAP = 32 };
enum { HI, LO, SCALE, BIAS, SLOPE = BIAS, DY_SHIFT, REST, COEFFICIENTS };

typedef struct {
    char *packed; /* NULL: there are none */
    ptrdiff_t pitch, first; /* from one array to the next; the channel of the first element */
    int narrow, gradient;   /* floats or doubles; SLOPE, DY_SHIFT and REST, or BIAS */
} Tables;

INLINE void put_coefficients(const Tables *tables, int k, ptrdiff_t first, ptrdiff_t size,
                             const double *restrict values) {
    const ptrdiff_t at = k * tables->pitch + first - tables->first;
    if (tables->narrow)
        for (ptrdiff_t i = 0; i < size; i++)
            ((float *)tables->packed)[at + i] = (float)values[i];
    else
        memcpy((double *)tables->packed + at, values, size * sizeof(double));
}

/* Of up to 64 channels that are not written to the tables at once. */
KERNEL void pack_channels(const Tables *tables, const Channel *channels, ptrdiff_t first,
                          ptrdiff_t size) {
    double values[COEFFICIENTS][64];
    for (ptrdiff_t i = 0; i < size; i++) {
        const Channel *channel = channels + first + i;
        values[HI][i] = channel->hi;
        values[LO][i] = channel->lo;
        values[SCALE][i] = channel->scale;
        values[BIAS][i] = tables->gradient ? channel->slope : channel->bias;
        values[DY_SHIFT][i] = channel->dy_shift;
        values[REST][i] = channel->rest;
    }
    for (int k = 0; k < (tables->gradient ? COEFFICIENTS : BIAS + 1); k++)
        put_coefficients(tables, k, first, size, values[k]);
}

/* The coefficients of `size` columns again, every `period` columns up to column `end`. */
INLINE void repeat_coefficients(const Tables *tables, ptrdiff_t size, ptrdiff_t period,
                                ptrdiff_t end) {
    const ptrdiff_t itemsize = tables->narrow ? sizeof(float) : sizeof(double);
    for (int k = 0; k < (tables->gradient ? COEFFICIENTS : BIAS + 1); k++) {
        char *from = tables->packed + k * tables->pitch * itemsize;
        for (ptrdiff_t lap = period; lap < end; lap += period)
            memcpy(from + lap * itemsize, from,
                   (size < end - lap ? size : end - lap) * itemsize);
    }
}

#endif
