/* A few doubles side by side, as GCC and Clang vectors: as many as fit a register of the target.
 *
 * Eight with AVX-512, four with AVX2, two otherwise (SSE2, NEON): one source serves every variant of the lane kernels,
 * each compiled with the flags of its instruction set.  Loads and stores of vecu need the alignment of a double
 * only: numpy buffers are used as they are.
 */
#ifndef FASTLMM_VECTOR_H
#define FASTLMM_VECTOR_H

#include <math.h>

#if !defined(__GNUC__) && !defined(__clang__)
#error "fastlmm_core needs GCC or Clang (on Windows: clang-cl)"
#endif

#if defined(__AVX512F__)
#define LANES 8
#elif defined(__AVX__)
#define LANES 4
#else
#define LANES 2
#endif

typedef double vec __attribute__((vector_size(8 * LANES)));
/* The same in memory of any alignment; locals are vec, so that spills do not straddle cache lines. */
typedef double vecu __attribute__((vector_size(8 * LANES), aligned(8), may_alias));

/* Macros, not functions: a vector argument has no settled calling convention below AVX-512. */
#define VEC_SET(x) ((vec){0.0} + (x))

#define VEC_SQRT(x)                                                                       \
    ({                                                                                   \
        vec sqrt_in = (x), sqrt_out = sqrt_in;                                                     \
        for (int lane = 0; lane < LANES; lane++) sqrt_out[lane] = sqrt(sqrt_in[lane]);   \
        sqrt_out;                                                                        \
    })

typedef long long vec_bits __attribute__((vector_size(8 * LANES)));

/* 1 / sqrt(x) where x > floor, 0 elsewhere (also where x is NaN).  By bits, as below. */
#define VEC_RSQRT_ABOVE(x, floor)                                                                             \
    ({                                                                                                       \
        vec rs_in = (x), rs_floor = (floor);                                                                  \
        vec_bits rs_above = (vec_bits)(rs_in > rs_floor);                                                     \
        vec rs_safe = (vec)((rs_above & (vec_bits)rs_in) | (~rs_above & (vec_bits)VEC_SET(1.0)));             \
        (vec)(rs_above & (vec_bits)(1.0 / VEC_SQRT(rs_safe)));                                                \
    })

/* Natural logarithm to about one unit in the last place, for positive normal numbers; NaN for infinity and NaN.
 *
 * x = 2^k m with m in [sqrt(1/2), sqrt(2)), log m = f - f^2/2 + s (f^2/2 + R(s^2)), f = m - 1, s = f / (2 + f), with
 * the minimax polynomial R of FreeBSD's msun (e_log.c).  k is made a double by its bits, which every target can do.
 */
#define VEC_LOG(x)                                                                                            \
    ({                                                                                                       \
        vec log_x = (x);                                                                                      \
        vec_bits log_i = (vec_bits)log_x;                                                                      \
        /* adding the distance from sqrt(1/2) to 1 carries into the exponent where m would exceed sqrt(2) */ \
        vec_bits log_c = log_i + (0x3ff0000000000000LL - 0x3fe6a09e00000000LL);                               \
        vec_bits log_e = (log_c >> 52) - 1023;                                                                \
        vec log_m = (vec)((log_c & 0x000fffffffffffffLL) + 0x3fe6a09e00000000LL);                              \
        vec log_k = (vec)(log_e + 0x4338000000000000LL) - 6755399441055744.0;                                  \
        vec log_f = log_m - 1.0;                                                                              \
        vec log_s = log_f / (log_f + 2.0);                                                                    \
        vec log_z = log_s * log_s, log_w = log_z * log_z;                                                     \
        vec log_r = log_w * (3.999999999940941908e-01 +                                                       \
                            log_w * (2.222219843214978396e-01 + log_w * 1.531383769920937332e-01)) +         \
                   log_z * (6.666666666666735130e-01 +                                                       \
                            log_w * (2.857142874366239149e-01 +                                              \
                                     log_w * (1.818357216161805012e-01 + log_w * 1.479819860511658591e-01))); \
        vec log_h = 0.5 * log_f * log_f;                                                                      \
        log_k * 6.93147180369123816490e-01 -                                                                 \
            ((log_h - (log_s * (log_h + log_r) + log_k * 1.90821492927058770002e-10)) - log_f) +             \
            (log_x - log_x);                                                                                 \
    })

/* Move the binary exponent of each element of product (positive) into exponent, so that products can go on.
 * Infinity and NaN leave NaN in exponent. */
#define VEC_SPLIT(product, exponent)                                                                         \
    do {                                                                                                     \
        vec split_x = (product);                                                                             \
        vec_bits split_i = (vec_bits)split_x;                                                                \
        vec split_k = (vec)(((split_i >> 52) - 1023) + 0x4338000000000000LL) - 6755399441055744.0;           \
        (exponent) = (exponent) + split_k + (split_x - split_x);                                             \
        (product) = (vec)((split_i & 0x000fffffffffffffLL) | 0x3ff0000000000000LL);                          \
    } while (0)

#define VEC_ABS(x) ((vec)((vec_bits)(vec)(x) & 0x7fffffffffffffffLL))

/* where test > 0 then yes else no (no where test is NaN).  By bits: loops over the lanes are not always vectorised. */
#define VEC_WHERE_POSITIVE(test, yes, no)                                                 \
    ({                                                                                   \
        vec w_test = (test), w_yes = (yes), w_no = (no);                                  \
        vec_bits w_mask = (vec_bits)(w_test > 0.0);                                       \
        (vec)((w_mask & (vec_bits)w_yes) | (~w_mask & (vec_bits)w_no));                   \
    })

#if LANES == 8
#if defined(__clang__)
#define VEC_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define VEC_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vec_bits){__VA_ARGS__})
#endif

/* tile[j][lane] = rows[lane][j] - shift[lane] for LANES consecutive j */
static inline void vec_transpose(const double *const *rows, long offset, const double *shift, double *tile) {
    vec r[8], s[8];
    for (int i = 0; i < 8; i++) r[i] = *(const vecu *)(rows[i] + offset) - shift[i];
    for (int i = 0; i < 8; i += 2) {
        s[i] = VEC_SHUFFLE(r[i], r[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        s[i + 1] = VEC_SHUFFLE(r[i], r[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + j] = VEC_SHUFFLE(s[i + j], s[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[i + j + 2] = VEC_SHUFFLE(s[i + j], s[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int j = 0; j < 4; j++) {
        *(vecu *)(tile + j * LANES) = VEC_SHUFFLE(r[j], r[j + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(vecu *)(tile + (j + 4) * LANES) = VEC_SHUFFLE(r[j], r[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}
#else
static inline void vec_transpose(const double *const *rows, long offset, const double *shift, double *tile) {
    for (int lane = 0; lane < LANES; lane++)
        for (int j = 0; j < LANES; j++) tile[j * LANES + lane] = rows[lane][offset + j] - shift[lane];
}
#endif

static inline double vec_sum(const vecu *x) {
    const double *e = (const double *)x;
    double sum = e[0];
    for (int lane = 1; lane < LANES; lane++) sum += e[lane];
    return sum;
}

static inline double vec_max(const vecu *x) {
    const double *e = (const double *)x;
    double largest = e[0];
    for (int lane = 1; lane < LANES; lane++)
        if (e[lane] > largest) largest = e[lane];
    return largest;
}

#endif
