/* One lane: what vector.h offers, for formulas that are written for vectors and for numbers alike. */
#ifndef FASTLMM_SCALAR_H
#define FASTLMM_SCALAR_H

#include <math.h>

typedef double vec;
typedef double vecu;

#define VEC_SET(x) ((double)(x))
#define VEC_SQRT(x) sqrt(x)
#define VEC_LOG(x) log(x)
#define VEC_SPLIT(product, exponent)                \
    do {                                            \
        int split_k;                                \
        (product) = frexp((product), &split_k);     \
        (exponent) = (exponent) + split_k;          \
    } while (0)
#define VEC_ABS(x) fabs(x)
#define VEC_WHERE_POSITIVE(test, yes, no) ((test) > 0.0 ? (yes) : (no))

#endif
