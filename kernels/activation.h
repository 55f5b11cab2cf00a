/* Activations and their derivatives, on vectors of floats and of doubles.

   activate_f32(z, activation) and slope_f32(z, activation), and the same for f64; `activation` is
   a number of ACTIVATIONS in table.py. NaN stays NaN; what infinities give is what the formulas of
   normcore/reference.py give. The file includes itself once per element type.

   Errors against the exact values, relative to max(1, |value|), values and derivatives: 1.8e-7 for
   floats, 1e-15 for doubles. */

#ifndef REAL

#ifndef NORMCORE_ACTIVATION_H
#define NORMCORE_ACTIVATION_H

#include "simd.h"

enum { IDENTITY, RELU, RELU6, LEAKY_RELU, SILU, GELU };

typedef int32_t vec_i32 __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t vec_i64 __attribute__((vector_size(VECTOR_BYTES)));

/* exp(r) for |r| <= log(2) / 2: Chebyshev interpolation, errors 2e-9 and 3e-18. */
static const float EXP_f32[] = {1.0f,          1.000000038f,   0.5000000047f,  0.1666641551f,
                                0.0416663529f, 0.008375126398f, 0.001394110843f};
static const double EXP_f64[] = {
    1.0,
    1.0,
    0.500000000000001839,
    0.166666666666666808,
    0.0416666666664880955,
    0.00833333333331960061,
    0.00138888889523147747,
    0.000198412698900471137,
    0.0000248014854823284924,
    2.75572409185789698e-6,
    2.76326396390410297e-7,
    2.51100376059637777e-8,
};

/* The share of the standard normal distribution above a >= 0 is exp(-a^2 / 2) * P(v) with
   v = 1 - 1 / (1 + TAIL_SCALE * a): as Abramowitz and Stegun 7.1.26, but to 6e-9 and 3e-16. In
   v, which is 0 where the share is 1/2, the rounding is half of what it is in 1 - v. */
#define TAIL_SCALE_f32 0.31f
#define TAIL_SCALE_f64 0.23
static const float TAIL_f32[] = {0.4999999959f,  -1.286909778f, 1.314522525f,   -0.5475573683f,
                                 -0.1070591226f, 0.1154675111f, 0.05832888821f, -0.04760004469f};
static const double TAIL_f64[] = {
    0.499999999999999682,  -1.73453165391899579,  2.9913662666457344,    -3.2123618590761895,
    1.98839504990152411,   -0.394088020008705874, -0.303574067578815142, 0.135999194746473092,
    0.0753745850454597446, -0.0280506635650599095, -0.0374390251449738181, 0.0254659028135264177,
    -0.0287938315738390453, 0.0485109917459251754, -0.0377563571622183873, 0.0130910503405824748,
    -0.00160675405476212837,
};

#define REAL float
#define SUFFIX f32
#define INTEGERS vec_i32
#define MANTISSA 23
#define LN2_HI 0.693145751953125f
#define LN2_LO 1.42860682031e-6f
#define LEAST_EXPONENT -87.0f
#include "activation.h"
#undef REAL
#undef SUFFIX
#undef INTEGERS
#undef MANTISSA
#undef LN2_HI
#undef LN2_LO
#undef LEAST_EXPONENT

#define REAL double
#define SUFFIX f64
#define INTEGERS vec_i64
#define MANTISSA 52
#define LN2_HI 0.6931471803691238
#define LN2_LO 1.9082149292705878161e-10
#define LEAST_EXPONENT -708.0
#include "activation.h"
#undef REAL
#undef SUFFIX
#undef INTEGERS
#undef MANTISSA
#undef LN2_HI
#undef LN2_LO
#undef LEAST_EXPONENT

/* LOOP(activation) with a constant, so that nothing is asked for each vector. */
#define FOR_EACH_ACTIVATION(activation, LOOP)                                                  \
    switch (activation) {                                                                      \
    case RELU:                                                                                 \
        LOOP(RELU);                                                                            \
        break;                                                                                 \
    case RELU6:                                                                                \
        LOOP(RELU6);                                                                           \
        break;                                                                                 \
    case LEAKY_RELU:                                                                           \
        LOOP(LEAKY_RELU);                                                                      \
        break;                                                                                 \
    case SILU:                                                                                 \
        LOOP(SILU);                                                                            \
        break;                                                                                 \
    case GELU:                                                                                 \
        LOOP(GELU);                                                                            \
        break;                                                                                 \
    default:                                                                                   \
        LOOP(IDENTITY);                                                                        \
    }

#define ACTIVATE(z) _Generic((z), vec_f32: activate_f32, vec_f64: activate_f64)(z, activation)
#define SLOPE_OF(z) _Generic((z), vec_f32: slope_f32, vec_f64: slope_f64)(z, activation)
INLINE double activate_one(double z, int activation) {
    const vec_f64 v = {z};
    return activate_f64(v, activation)[0];
}
INLINE double slope_one(double z, int activation) {
    const vec_f64 v = {z};
    return slope_f64(v, activation)[0];
}

#endif

#else

#define NAME(f) PASTE(f, SUFFIX)
#define VEC NAME(vec)
#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

/* a where the mask is set, else b. A mask is what a comparison of vectors gives. */
INLINE VEC NAME(choose)(INTEGERS mask, VEC a, VEC b) {
    return (VEC)(((INTEGERS)a & mask) | ((INTEGERS)b & ~mask));
}
INLINE VEC NAME(only_where)(INTEGERS mask, VEC a) { return (VEC)((INTEGERS)a & mask); }

/* exp(z) for z <= 0; 0 below LEAST_EXPONENT and for NaN. */
INLINE VEC NAME(exp_negative)(VEC z) {
    /* Adding 1.5 * 2^MANTISSA rounds to an integer and leaves it in the low bits. */
    const REAL magic = (REAL)((int64_t)3 << (MANTISSA - 1));
    const VEC shifted = z * (REAL)1.4426950408889634 + magic, n = shifted - magic;
    const VEC r = (z - n * LN2_HI) - n * LN2_LO;
    VEC value = r * NAME(EXP)[LENGTH(NAME(EXP)) - 1] + NAME(EXP)[LENGTH(NAME(EXP)) - 2];
    for (int i = LENGTH(NAME(EXP)) - 3; i >= 0; i--)
        value = value * r + NAME(EXP)[i];
    value = (VEC)((INTEGERS)value + ((INTEGERS)shifted << MANTISSA));
    return NAME(only_where)(z >= LEAST_EXPONENT, value);
}

/* 1 / (1 + exp(-z)) and its derivative, which is not share * (1 - share): that loses digits. */
INLINE void NAME(logistic)(VEC z, VEC *share, VEC *density) {
    const INTEGERS negative = z < 0;
    const VEC e = NAME(exp_negative)(NAME(choose)(negative, z, -z)), larger = 1 / (1 + e);
    const VEC smaller = e * larger;
    *share = NAME(choose)(negative, smaller, larger);
    *density = smaller * larger;
}

/* Cumulative distribution and density of the standard normal distribution. */
INLINE void NAME(normal)(VEC z, VEC *share, VEC *density) {
    const VEC a = NAME(choose)(z < 0, -z, z), e = NAME(exp_negative)(a * a * (REAL)-0.5);
    const VEC v = 1 - 1 / (1 + a * NAME(TAIL_SCALE));
    VEC tail = v * NAME(TAIL)[LENGTH(NAME(TAIL)) - 1] + NAME(TAIL)[LENGTH(NAME(TAIL)) - 2];
    for (int i = LENGTH(NAME(TAIL)) - 3; i >= 0; i--)
        tail = tail * v + NAME(TAIL)[i];
    tail *= e;
    *share = NAME(choose)(z < 0, tail, 1 - tail);
    *density = e * (REAL)0.3989422804014327;
}

/* Not inlined: each would stand in every loop that may need it. */
KERNEL VEC NAME(silu)(VEC z) {
    VEC share, density;
    NAME(logistic)(z, &share, &density);
    return z * share;
}
KERNEL VEC NAME(silu_slope)(VEC z) {
    VEC share, density;
    NAME(logistic)(z, &share, &density);
    return share + z * density;
}
KERNEL VEC NAME(gelu)(VEC z) {
    VEC share, density;
    NAME(normal)(z, &share, &density);
    return z * share;
}
KERNEL VEC NAME(gelu_slope)(VEC z) {
    VEC share, density;
    NAME(normal)(z, &share, &density);
    return share + z * density;
}

INLINE VEC NAME(activate)(VEC z, int activation) {
    const VEC zero = {0};
    switch (activation) {
    case RELU:
        return NAME(choose)(z < 0, zero, z);
    case RELU6:
        return NAME(choose)(z < 0, zero, NAME(choose)(z > 6, zero + 6, z));
    case LEAKY_RELU:
        return NAME(choose)(z < 0, z * (REAL)0.01, z);
    case SILU:
        return NAME(silu)(z);
    case GELU:
        return NAME(gelu)(z);
    default:
        return z;
    }
}

INLINE VEC NAME(slope)(VEC z, int activation) {
    const VEC one = (VEC){0} + 1;
    switch (activation) {
    case RELU:
        return NAME(only_where)(z > 0, one);
    case RELU6:
        return NAME(only_where)((z > 0) & (z < 6), one);
    case LEAKY_RELU:
        return NAME(choose)(z > 0, one, one * (REAL)0.01);
    case SILU:
        return NAME(silu_slope)(z);
    case GELU:
        return NAME(gelu_slope)(z);
    default:
        return one;
    }
}

#undef LENGTH
#undef VEC
#undef NAME

#endif
