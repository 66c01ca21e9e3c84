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

typedef long long v8_bits __attribute__((vector_size(64)));

/* Natural logarithm to about one unit in the last place, for positive normal numbers; NaN for infinity and NaN.
 *
 * x = 2^k m with m in [sqrt(1/2), sqrt(2)), log m = f - f^2/2 + s (f^2/2 + R(s^2)), f = m - 1, s = f / (2 + f), with the
 * minimax polynomial R of FreeBSD's msun (e_log.c).  k is made a double by its bits, which every target can do.
 */
#define V8_LOG(x)                                                                                            \
    ({                                                                                                       \
        v8 log_x = (x);                                                                                      \
        v8_bits log_i = (v8_bits)log_x;                                                                      \
        /* adding the distance from sqrt(1/2) to 1 carries into the exponent where m would exceed sqrt(2) */ \
        v8_bits log_c = log_i + (0x3ff0000000000000LL - 0x3fe6a09e00000000LL);                               \
        v8_bits log_e = (log_c >> 52) - 1023;                                                                \
        v8 log_m = (v8)((log_c & 0x000fffffffffffffLL) + 0x3fe6a09e00000000LL);                              \
        v8 log_k = (v8)(log_e + 0x4338000000000000LL) - 6755399441055744.0;                                  \
        v8 log_f = log_m - 1.0;                                                                              \
        v8 log_s = log_f / (log_f + 2.0);                                                                    \
        v8 log_z = log_s * log_s, log_w = log_z * log_z;                                                     \
        v8 log_r = log_w * (3.999999999940941908e-01 +                                                       \
                            log_w * (2.222219843214978396e-01 + log_w * 1.531383769920937332e-01)) +         \
                   log_z * (6.666666666666735130e-01 +                                                       \
                            log_w * (2.857142874366239149e-01 +                                              \
                                     log_w * (1.818357216161805012e-01 + log_w * 1.479819860511658591e-01))); \
        v8 log_h = 0.5 * log_f * log_f;                                                                      \
        log_k * 6.93147180369123816490e-01 -                                                                 \
            ((log_h - (log_s * (log_h + log_r) + log_k * 1.90821492927058770002e-10)) - log_f) +             \
            (log_x - log_x);                                                                                 \
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

#if defined(__clang__)
#define V8_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef long long v8_index __attribute__((vector_size(64)));
#define V8_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (v8_index){__VA_ARGS__})
#endif

/* tile[j][lane] = rows[lane][j] - shift[lane] for eight consecutive j */
static inline void v8_transpose(const double *const *rows, long offset, const double *shift, double *tile) {
    v8 r[8], s[8];
    for (int i = 0; i < 8; i++) r[i] = *(const v8u *)(rows[i] + offset) - shift[i];
    for (int i = 0; i < 8; i += 2) {
        s[i] = V8_SHUFFLE(r[i], r[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        s[i + 1] = V8_SHUFFLE(r[i], r[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + j] = V8_SHUFFLE(s[i + j], s[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[i + j + 2] = V8_SHUFFLE(s[i + j], s[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int j = 0; j < 4; j++) {
        *(v8u *)(tile + j * LANES) = V8_SHUFFLE(r[j], r[j + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(v8u *)(tile + (j + 4) * LANES) = V8_SHUFFLE(r[j], r[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

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
