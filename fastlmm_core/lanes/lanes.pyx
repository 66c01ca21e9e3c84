# cython: language_level=3
"""Per-group Cholesky factors, log-determinants and quadratic forms, several groups at a time.

The packed form of a group i is (R_i, c_i, n_i): A_i = Z_i'Z_i = R_i'R_i with R_i upper
triangular (a row of zeros where a column adds nothing), c_i = R_i^-T Z_i'[X_i y_i] (q x k),
and a count n_i.  Groups stand in blocks of LANES (the doubles in a register of the variant), structure of
arrays: block b holds n_a + q k + 1 vectors: R by rows, c by rows, count.

For a relative covariance factor L (q x q), with U = R L and
W = I + U U' = M M' (M lower triangular):

    log|V_i| = log|W|                         Y = M^-1 R,  D = M^-1 c
    N_i = Z_i'V_i^-1 Z_i      = Y'Y
    E_i = Z_i'V_i^-1 [X_i y_i] = Y'D
    [X_i y_i]'V_i^-1 [X_i y_i] = S_i - c'c + D'D

Every term is a sum of squares: nothing cancels, however large L is.  (The form follows
Bates et al. 2015, J. Stat. Softw. 67(1), sec. 3.6, written from the other side of Woodbury's
identity.)  A count differing from 1 stands for that many groups with the same A_i, a count of
0 for a further column of their cross-products (see rows/patterns.pyx).

This file is compiled once per instruction set under different module names; it holds no
policy, and no state but the table of its functions, to which each chapter adds its own.

Its chapters are included, not imported, so that all of them are one translation unit: what runs in lanes is inlined with
constant sizes, which modules of their own, or declarations shared between them, could not be.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY, M_LN2, M_PI, fabs, isfinite, log, sqrt
from libc.string cimport memset

from fastlmm_core.lanes.deletions cimport DEFICIENT, FAR, FOUND, OPEN, TILE, DeletionWork, Deletions
from fastlmm_core.lanes.kernels cimport (
    Batch, ChainColumns, ChainStage, ChainSums, LaneKernels, Outcome, Profile, Shape, lane_kernels_name, lay_profile, vec, vecu)
from fastlmm_core.small.arena cimport Arena, take

cdef extern from "vector.h":
    enum: LANES
    vec VEC_SET(double) nogil
    vec VEC_SQRT(vec) nogil
    vec VEC_RSQRT_ABOVE(vec, vec) nogil
    vec VEC_LOG(vec) nogil
    vec VEC_ABS(vec) nogil
    void VEC_SPLIT(vec, vec) nogil
    vec VEC_WHERE_POSITIVE(vec, vec, vec) nogil
    void vec_transpose(const double* const*, long, const double*, double*) nogil
    double vec_sum(const vecu*) nogil
    double vec_max(const vecu*) nogil

cdef LaneKernels offered
offered.lanes = LANES


cdef inline void factor_of(
    Py_ssize_t q, Py_ssize_t k, const Shape* shape, Py_ssize_t n_groups, const double* raw, const double* Tz,
    const double* Tx, double* packed, double* within, double* scratch,
) noexcept nogil:
    cdef Py_ssize_t n_a = q * (q + 1) // 2, line = n_a + q * k + 1
    cdef Py_ssize_t n_blocks = (n_groups + LANES - 1) // LANES
    cdef Py_ssize_t block, lane, a, b, j, l, pos, g
    cdef vecu* full = <vecu*> scratch          # A, rotated in place (q x q)
    cdef vecu* C = full + q * q
    cdef vecu* bound = C + q * k
    cdef vecu* inv = bound + q
    cdef vecu* acc = inv + q
    cdef double* out
    cdef const double* source
    cdef vec t, u
    cdef vecu* R
    cdef vecu* c
    for pos in range(k * (k + 1) // 2):
        acc[pos] = VEC_SET(0.0)
    for block in range(n_blocks):
        out = packed + block * shape.stride * LANES
        R = <vecu*> out
        c = R + n_a
        for lane in range(LANES):
            g = block * LANES + lane
            if g < n_groups:
                source = raw + g * line
                pos = 0
                for a in range(q):
                    for b in range(a + 1):
                        (<double*> full)[(a * q + b) * LANES + lane] = source[pos]
                        (<double*> full)[(b * q + a) * LANES + lane] = source[pos]
                        pos = pos + 1
                for j in range(q * k):
                    (<double*> C)[j * LANES + lane] = source[pos]
                    pos = pos + 1
                out[(shape.stride - 1) * LANES + lane] = 1.0
            else:
                for j in range(q * q):
                    (<double*> full)[j * LANES + lane] = 0.0
                for j in range(q * k):
                    (<double*> C)[j * LANES + lane] = 0.0
                out[(shape.stride - 1) * LANES + lane] = 0.0
        # rounding of the rotated diagonal: eps times (sum_b |T_ba| sqrt(A_bb))^2
        for a in range(q):
            inv[a] = VEC_SQRT(full[a * q + a])
        for a in range(q):
            t = VEC_SET(0.0)
            for b in range(a + 1):
                t = t + inv[b] * (Tz[b * q + a] if Tz[b * q + a] > 0 else -Tz[b * q + a])
            bound[a] = t * t * 2e-14
        # A <- T' A T, C <- T_z' C T_x
        for a in range(q):
            for b in range(q - 1, -1, -1):
                t = VEC_SET(0.0)
                for l in range(b + 1):
                    t = t + full[a * q + l] * Tz[l * q + b]
                full[a * q + b] = t
            for j in range(k - 1, -1, -1):
                t = VEC_SET(0.0)
                for l in range(j + 1):
                    t = t + C[a * k + l] * Tx[l * k + j]
                C[a * k + j] = t
        for a in range(q - 1, -1, -1):
            for b in range(q):
                t = VEC_SET(0.0)
                for l in range(a + 1):
                    t = t + full[l * q + b] * Tz[l * q + a]
                full[a * q + b] = t
            for j in range(k):
                t = VEC_SET(0.0)
                for l in range(a + 1):
                    t = t + C[l * k + j] * Tz[l * q + a]
                C[a * k + j] = t
        # A = R'R and c = R^-T C, row by row; a column within rounding of its predecessors adds nothing
        pos = 0
        for a in range(q):
            t = full[a * q + a]
            u = VEC_RSQRT_ABOVE(t, bound[a])
            for b in range(a, q):
                full[a * q + b] = full[a * q + b] * u
                R[pos] = full[a * q + b]
                pos = pos + 1
            for j in range(k):
                C[a * k + j] = C[a * k + j] * u
                c[a * k + j] = C[a * k + j]
            for b in range(a + 1, q):
                t = full[a * q + b]
                for l in range(b, q):
                    full[b * q + l] = full[b * q + l] - t * full[a * q + l]
                for j in range(k):
                    C[b * k + j] = C[b * k + j] - t * C[a * k + j]
        for a in range(q):
            pos = 0
            for j in range(k):
                t = c[a * k + j]
                for l in range(j + 1):
                    acc[pos] = acc[pos] + t * c[a * k + l]
                    pos = pos + 1
    for pos in range(k * (k + 1) // 2):
        within[pos] += vec_sum(acc + pos)


cdef void factor(
    const Shape* shape, Py_ssize_t n_groups, const double* raw, const double* Tz, const double* Tx,
    double* packed, double* within, double* scratch,
) noexcept nogil:
    """Rotate and factor groups.

    raw (n_groups, line) holds A, C and the row count per group (see rows/rows.pyx).  Overwrites
    packed (blocks, stride, LANES) with R, c and 1 per group (0 in the padding), for Z T_z and
    [X y] T_x, both upper triangular; adds sum c'c to within (k(k+1)/2).
    scratch: LANES (q^2 + q k + 2 q + k(k+1)/2) doubles.
    """
    # constant sizes let the compiler unroll the shapes that nearly everyone uses
    if shape.q == 1 and shape.k == 2:
        factor_of(1, 2, shape, n_groups, raw, Tz, Tx, packed, within, scratch)
    elif shape.q == 2 and shape.k == 3:
        factor_of(2, 3, shape, n_groups, raw, Tz, Tx, packed, within, scratch)
    else:
        factor_of(shape.q, shape.k, shape, n_groups, raw, Tz, Tx, packed, within, scratch)


cdef inline void whiten(
    Py_ssize_t q, Py_ssize_t k, const vecu* R, const vecu* c, const double* factor,
    vecu* U, vecu* W, vecu* Y, vecu* D, vecu* det,
) noexcept nogil:
    """U = R L, W = I + U U' = M M', Y = M^-1 R, D = M^-1 c, det = |W| for one block."""
    cdef Py_ssize_t a, b, l, j
    cdef vec t, u
    cdef vec one = VEC_SET(1.0)
    cdef const vecu* row = R
    cdef vec product = one
    for a in range(q):
        for b in range(q):
            t = VEC_SET(0.0)
            for l in range(a, q):
                t = t + row[l - a] * factor[l * q + b]
            U[a * q + b] = t
        for b in range(q):
            Y[a * q + b] = row[b - a] if b >= a else VEC_SET(0.0)
        row = row + (q - a)
        for j in range(k):
            D[a * k + j] = c[a * k + j]
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + U[a * q + l] * U[b * q + l]
            W[a * q + b] = t
        W[a * q + a] = W[a * q + a] + one
    # right-looking Cholesky; Y and D are carried along as right-hand sides
    for a in range(q):
        t = W[a * q + a]
        product = product * t
        u = one / VEC_SQRT(t)
        for b in range(q):
            Y[a * q + b] = Y[a * q + b] * u
        for j in range(k):
            D[a * k + j] = D[a * k + j] * u
        for b in range(a + 1, q):
            W[b * q + a] = W[b * q + a] * u
        for b in range(a + 1, q):
            t = W[b * q + a]
            for l in range(a + 1, b + 1):
                W[b * q + l] = W[b * q + l] - t * W[l * q + a]
            for l in range(q):
                Y[b * q + l] = Y[b * q + l] - t * Y[a * q + l]
            for j in range(k):
                D[b * k + j] = D[b * k + j] - t * D[a * k + j]
    det[0] = product


cdef inline double moments_of(
    Py_ssize_t q, Py_ssize_t k, const Shape* shape, Py_ssize_t n_blocks, bint uniform, const double* packed,
    const double* factor, double* sum_n, double* sum_h, double* gram, double* store, double* scratch,
) noexcept nogil:
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, n_h = k * (k + 1) // 2
    cdef Py_ssize_t block, a, b, j, l, pos
    cdef vecu* U = <vecu*> scratch
    cdef vecu* W = U + q * q
    cdef vecu* Y = W + q * q
    cdef vecu* D = Y + q * q
    cdef vecu* acc_n = D + n_c
    cdef vecu* acc_h = acc_n + n_a
    cdef vecu* acc_g = acc_h + n_h
    cdef vecu* N
    cdef vecu* E
    cdef vecu* spare = acc_g + n_c * (n_c + 1) // 2
    cdef const vecu* R
    cdef const vecu* count
    cdef vec t, det, product
    cdef double logdet = 0.0, inner
    product = VEC_SET(1.0)
    for pos in range(n_a + n_h + n_c * (n_c + 1) // 2):
        acc_n[pos] = VEC_SET(0.0)
    for block in range(n_blocks):
        R = (<const vecu*> packed) + block * shape.stride
        count = R + n_a + n_c
        N = spare if store == NULL else (<vecu*> store) + block * (n_a + n_c)
        E = N + n_a
        whiten(q, k, R, R + n_a, factor, U, W, Y, D, &det)
        if uniform:
            # padding has det = 1; the product is taken to logarithms before it can overflow
            product = product * det
            if vec_max(&product) > 1e100:
                for l in range(LANES):
                    logdet += log((<double*> &product)[l])
                product = VEC_SET(1.0)
        else:
            for l in range(LANES):
                inner = (<const double*> count)[l]
                if inner != 0.0:
                    logdet += inner * log((<double*> &det)[l])
        pos = 0
        for a in range(q):
            for b in range(a + 1):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + Y[l * q + a] * Y[l * q + b]
                N[pos] = t
                acc_n[pos] = acc_n[pos] + t * count[0]
                pos = pos + 1
        for a in range(q):
            for j in range(k):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + Y[l * q + a] * D[l * k + j]
                E[a * k + j] = t
        pos = 0
        for j in range(k):
            for l in range(j + 1):
                t = acc_h[pos]
                for a in range(q):
                    t = t + D[a * k + j] * D[a * k + l]
                acc_h[pos] = t
                pos = pos + 1
        if gram != NULL:
            pos = 0
            for a in range(n_c):
                t = E[a]
                for b in range(a + 1):
                    acc_g[pos + b] = acc_g[pos + b] + t * E[b]
                pos = pos + a + 1
    if uniform:
        for l in range(LANES):
            logdet += log((<double*> &product)[l])
    for pos in range(n_a):
        sum_n[pos] = vec_sum(acc_n + pos)
    for pos in range(n_h):
        sum_h[pos] += vec_sum(acc_h + pos)
    if gram != NULL:
        for pos in range(n_c * (n_c + 1) // 2):
            gram[pos] = vec_sum(acc_g + pos)
    return logdet


cdef double moments(
    const Shape* shape, Py_ssize_t n_blocks, bint uniform, const double* packed, const double* factor,
    double* sum_n, double* sum_h, double* gram, double* store, double* scratch,
) noexcept nogil:
    """First sweep of an evaluation.

    Returns sum n_i log|W_i|; sets sum_n = sum n_i N_i (n_a), adds sum D'D to sum_h (k(k+1)/2) and,
    unless gram is NULL, sets gram = sum vec(E_i) vec(E_i)' (packed lower triangle of q k); unless store is
    NULL, keeps N_i and E_i there for the second sweep.  `uniform`: all counts are 1 (or padding).
    scratch: LANES (3 q^2 + 2 q k + 2 n_a + k(k+1)/2 + qk(qk+1)/2) doubles.
    """
    if shape.q == 1:
        return moments_of(1, shape.k, shape, n_blocks, uniform, packed, factor, sum_n, sum_h, gram, store, scratch)
    if shape.q == 2 and shape.k == 3:
        return moments_of(2, 3, shape, n_blocks, uniform, packed, factor, sum_n, sum_h, gram, store, scratch)
    if shape.q == 2:
        return moments_of(2, shape.k, shape, n_blocks, uniform, packed, factor, sum_n, sum_h, gram, store, scratch)
    if shape.q == 3:
        return moments_of(3, shape.k, shape, n_blocks, uniform, packed, factor, sum_n, sum_h, gram, store, scratch)
    return moments_of(shape.q, shape.k, shape, n_blocks, uniform, packed, factor, sum_n, sum_h, gram, store, scratch)


cdef inline void curvature_of(
    Py_ssize_t q, Py_ssize_t k, const Shape* shape, Py_ssize_t n_blocks, Py_ssize_t first, const double* packed,
    const double* weight, const double* store, double* tensor, double* scratch,
) noexcept nogil:
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k
    cdef Py_ssize_t block, a, b, j, l, pos
    cdef vecu* F = <vecu*> scratch
    cdef vecu* B = F + n_c
    cdef vecu* acc = B + n_a
    cdef const vecu* N
    cdef const vecu* E
    cdef const vecu* count
    cdef vec t
    for pos in range(n_a * n_a):
        acc[pos] = VEC_SET(0.0)
    for block in range(n_blocks):
        N = (<const vecu*> store) + block * (n_a + n_c)
        E = N + n_a
        count = (<const vecu*> packed) + block * shape.stride + n_a + n_c
        for a in range(q):
            for j in range(first, k):
                t = VEC_SET(0.0)
                for l in range(j + 1):
                    t = t + E[a * k + l] * weight[l * k + j]
                F[a * k + j] = t
        pos = 0
        for a in range(q):
            for b in range(a + 1):
                t = VEC_SET(0.0) - count[0] * N[pos]
                for j in range(first, k):
                    t = t + F[a * k + j] * F[b * k + j]
                B[pos] = t
                pos = pos + 1
        pos = 0
        for a in range(n_a):
            t = B[a]
            for b in range(n_a):
                acc[pos] = acc[pos] + t * N[b]
                pos = pos + 1
    for pos in range(n_a * n_a):
        tensor[pos] = vec_sum(acc + pos)


cdef void curvature(
    const Shape* shape, Py_ssize_t n_blocks, Py_ssize_t first, const double* packed, const double* weight,
    const double* store, double* tensor, double* scratch,
) noexcept nogil:
    """Second sweep: tensor[ab, cd] = sum B_i[ab] N_i[cd], B_i = -n_i N_i + (E_i w)(E_i w)'.

    weight (k x k) is upper triangular; its columns before `first` are skipped.
    scratch: LANES (q k + n_a + n_a^2) doubles.
    """
    if shape.q == 1:
        curvature_of(1, shape.k, shape, n_blocks, first, packed, weight, store, tensor, scratch)
    elif shape.q == 2 and shape.k == 3:
        curvature_of(2, 3, shape, n_blocks, first, packed, weight, store, tensor, scratch)
    elif shape.q == 2:
        curvature_of(2, shape.k, shape, n_blocks, first, packed, weight, store, tensor, scratch)
    elif shape.q == 3:
        curvature_of(3, shape.k, shape, n_blocks, first, packed, weight, store, tensor, scratch)
    else:
        curvature_of(shape.q, shape.k, shape, n_blocks, first, packed, weight, store, tensor, scratch)


cdef void effects(
    const Shape* shape, Py_ssize_t n_blocks, const double* packed, const double* factor, const double* contrast,
    double* e_out, double* matrix_out, bint conditional, double* scratch,
) noexcept nogil:
    """e_i = E_i contrast (n_blocks * LANES, q) and a matrix (n_blocks * LANES, q, q) of every packed group.

    The matrix is N_i or, if `conditional`, L (I + L'A_i L)^-1 L' = S'S with M M' = I + U'U, S = M^-1 L': a sum of
    squares, where G^ - G^ N_i G^ would cancel.  matrix_out may be NULL.
    scratch: LANES (4 q^2 + q k + q) doubles.
    """
    cdef Py_ssize_t q = shape.q, k = shape.k
    cdef Py_ssize_t block, a, b, l, j, lane
    cdef vecu* U = <vecu*> scratch
    cdef vecu* W = U + q * q
    cdef vecu* Y = W + q * q
    cdef vecu* S = Y + q * q
    cdef vecu* D = S + q * q
    cdef vecu* d = D + q * k
    cdef vecu* half
    cdef const vecu* R
    cdef vec t, u, det
    for block in range(n_blocks):
        R = (<const vecu*> packed) + block * shape.stride
        whiten(q, k, R, R + shape.n_a, factor, U, W, Y, D, &det)
        for a in range(q):
            t = VEC_SET(0.0)
            for j in range(k):
                t = t + D[a * k + j] * contrast[j]
            d[a] = t
        for a in range(q):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + Y[l * q + a] * d[l]
            for lane in range(LANES):
                e_out[(block * LANES + lane) * q + a] = (<double*> &t)[lane]
        if matrix_out == NULL:
            continue
        half = Y
        if conditional:
            half = S
            for a in range(q):
                for b in range(a + 1):
                    t = VEC_SET(1.0 if a == b else 0.0)
                    for l in range(q):
                        t = t + U[l * q + a] * U[l * q + b]
                    W[a * q + b] = t
                for b in range(q):
                    S[a * q + b] = VEC_SET(factor[b * q + a])
            for a in range(q):
                u = VEC_SET(1.0) / VEC_SQRT(W[a * q + a])
                for b in range(q):
                    S[a * q + b] = S[a * q + b] * u
                for b in range(a + 1, q):
                    W[b * q + a] = W[b * q + a] * u
                for b in range(a + 1, q):
                    t = W[b * q + a]
                    for l in range(a + 1, b + 1):
                        W[b * q + l] = W[b * q + l] - t * W[l * q + a]
                    for l in range(q):
                        S[b * q + l] = S[b * q + l] - t * S[a * q + l]
        for a in range(q):
            for b in range(q):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + half[l * q + a] * half[l * q + b]
                for lane in range(LANES):
                    matrix_out[((block * LANES + lane) * q + a) * q + b] = (<double*> &t)[lane]


offered.factor = &factor
offered.moments = &moments
offered.curvature = &curvature
offered.effects = &effects

include "profile.pxi"
include "responses.pxi"
include "families.pxi"
include "deletions.pxi"


def kernels():
    """The functions of this variant, a capsule of a LaneKernels."""
    return PyCapsule_New(&offered, lane_kernels_name(), NULL)
