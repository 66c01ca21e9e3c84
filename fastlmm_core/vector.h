/* Eight doubles side by side, as GCC and Clang vectors.
 *
 * The compiler splits an operation into whatever registers the target has (4 x SSE2,
 * 2 x AVX2, 1 x AVX-512), so one source serves every variant of the lane kernels.
 * Loads and stores of v8u need the alignment of a double only: numpy buffers are used as they are.
 */
#ifndef FASTLMM_VECTOR_H
#define FASTLMM_VECTOR_H

#include <math.h>

#if !defined(__GNUC__) && !defined(__clang__)
#error "fastlmm_core needs GCC or Clang (on Windows: clang-cl)"
#endif

#define LANES 8

typedef double v8 __attribute__((vector_size(64)));
/* The same in memory of any alignment; locals are v8, so that spills do not straddle cache lines. */
typedef double v8u __attribute__((vector_size(64), aligned(8), may_alias));

/* Macros, not functions: a vector argument has no settled calling convention below AVX-512. */
#define V8_SET(x) ((v8){0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0} + (x))

#define V8_SQRT(x)                                                                       \
    ({                                                                                   \
        v8 sqrt_in = (x), sqrt_out = sqrt_in;                                                     \
        for (int lane = 0; lane < LANES; lane++) sqrt_out[lane] = sqrt(sqrt_in[lane]);   \
        sqrt_out;                                                                        \
    })

/* 1 / sqrt(x) where x > floor, 0 elsewhere (also where x is NaN) */
#define V8_RSQRT_ABOVE(x, floor)                                                         \
    ({                                                                                   \
        v8 rs_in = (x), rs_floor = (floor), rs_out = rs_in;                                     \
        for (int lane = 0; lane < LANES; lane++)                                         \
            rs_out[lane] = rs_in[lane] > rs_floor[lane] ? 1.0 / sqrt(rs_in[lane]) : 0.0; \
        rs_out;                                                                          \
    })

#define V8_LOG(x)                                                                        \
    ({                                                                                   \
        v8 log_in = (x), log_out = log_in;                                               \
        for (int lane = 0; lane < LANES; lane++) log_out[lane] = log(log_in[lane]);      \
        log_out;                                                                         \
    })

#define V8_ABS(x)                                                                        \
    ({                                                                                   \
        v8 abs_in = (x), abs_out = abs_in;                                               \
        for (int lane = 0; lane < LANES; lane++) abs_out[lane] = fabs(abs_in[lane]);     \
        abs_out;                                                                         \
    })

/* where test > 0 then yes else no (no where test is NaN) */
#define V8_WHERE_POSITIVE(test, yes, no)                                                 \
    ({                                                                                   \
        v8 w_test = (test), w_yes = (yes), w_no = (no), w_out = w_no;                    \
        for (int lane = 0; lane < LANES; lane++)                                         \
            w_out[lane] = w_test[lane] > 0.0 ? w_yes[lane] : w_no[lane];                 \
        w_out;                                                                           \
    })

static inline double v8_sum(const v8u *x) {
    const double *e = (const double *)x;
    return ((e[0] + e[4]) + (e[1] + e[5])) + ((e[2] + e[6]) + (e[3] + e[7]));
}

static inline double v8_max(const v8u *x) {
    const double *e = (const double *)x;
    double largest = e[0];
    for (int lane = 1; lane < LANES; lane++)
        if (e[lane] > largest) largest = e[lane];
    return largest;
}

#endif
