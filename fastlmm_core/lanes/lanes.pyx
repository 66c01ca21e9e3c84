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

    profile                         the criterion and its derivatives from the sums over groups
    responses, start, scores        what many responses of one design contribute, where their searches start, drawn ones
    sums                            the same, kept
    newton, axes, screen            their searches in lockstep, the axes of the steps, other minima
    contrasts, settling             functions of their coefficients; their fits from the first point to the report
    problems, pairs, problem_fits   problems of their own designs, those with two effects, and their fits
    responses_with_covariates, sweeps_with_covariates   those that share a design but for covariates
    elsewhere, closer               their other minima, and those of few groups
    factors, factor_sweeps, factor_fits     several grouping factors: sums, criterion, fits
    correlated, correlated_sweeps, correlated_fits      the same where effects of a factor may be correlated
    families                        factors nested in each other
    deletions, series               fits without some groups; residuals that are correlated in time
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY, M_LN2, M_PI, NAN, fabs, isfinite, log, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastlmm_core.lanes.deletions cimport DEFICIENT, FAR, FOUND, OPEN, TILE, DeletionWork, Deletions
from fastlmm_core.lanes.kernels cimport (
    MOST_FEATURES, MOST_POINTS, PART, PROBLEM_SIZE, SAME, Batch, ChainColumns, ChainStage, ChainSums, CommonPoint,
    CorrelatedDesign, CorrelatedMoments, DesignMoments, FactorDesign, FactorScreen, LaneKernels, LinesToRead, Outcome, OwnGroups,
    PackedGroups, ProblemSums, Profile, RawGroups, Screen, SeriesSums, SeriesWork, Shape, SharedLines, SharedScreen, Sums,
    lane_kernels_name, lay_profile, sums_width, vec, vecu)
from fastlmm_core.small.arena cimport Arena, take
from fastlmm_core.small.chain cimport Chain, Gls

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


cdef void find_range(const int64_t* values, Py_ssize_t n, int64_t* low, int64_t* high) noexcept nogil:
    """Smallest and largest of n whole numbers, n > 0."""
    cdef int64_t small = values[0], large = values[0]
    cdef Py_ssize_t i
    for i in range(n):
        small = values[i] if values[i] < small else small
        large = values[i] if values[i] > large else large
    low[0] = small
    high[0] = large


offered.find_range = &find_range


cdef inline vec eliminate(Py_ssize_t q, vecu* W, Py_ssize_t n, vecu* Y, Py_ssize_t k, vecu* D, vecu* inverse
                          ) noexcept nogil:
    """Cholesky factor of W (q, q), right-looking, with two right-hand sides carried along; the determinant of W.

    W = M M': the lower triangle of W holds M below the diagonal; 1 / M_aa go to `inverse` (q,) unless that is NULL.
    Y (q, n) becomes M^-1 Y, D (q, k) M^-1 D.
    """
    cdef Py_ssize_t a, b, l
    cdef vec t, u
    cdef vec one = VEC_SET(1.0)
    cdef vec product = one
    for a in range(q):
        t = W[a * q + a]
        product = product * t
        u = one / VEC_SQRT(t)
        if inverse != NULL:
            inverse[a] = u
        for l in range(n):
            Y[a * n + l] = Y[a * n + l] * u
        for l in range(k):
            D[a * k + l] = D[a * k + l] * u
        for b in range(a + 1, q):
            W[b * q + a] = W[b * q + a] * u
        for b in range(a + 1, q):
            t = W[b * q + a]
            for l in range(a + 1, b + 1):
                W[b * q + l] = W[b * q + l] - t * W[l * q + a]
            for l in range(n):
                Y[b * n + l] = Y[b * n + l] - t * Y[a * n + l]
            for l in range(k):
                D[b * k + l] = D[b * k + l] - t * D[a * k + l]
    return product


cdef inline void set_crossed(Py_ssize_t q, const vecu* Y, vecu* N) noexcept nogil:
    """N = Y'Y for Y (q, q), packed lower triangle."""
    cdef Py_ssize_t a, b, l, pos = 0
    cdef vec t
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + Y[l * q + a] * Y[l * q + b]
            N[pos] = t
            pos = pos + 1


cdef inline void set_product(Py_ssize_t q, Py_ssize_t k, const vecu* Y, const vecu* D, vecu* E) noexcept nogil:
    """E = Y'D for Y (q, q), D (q, k)."""
    cdef Py_ssize_t a, j, l
    cdef vec t
    for a in range(q):
        for j in range(k):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + Y[l * q + a] * D[l * k + j]
            E[a * k + j] = t


cdef inline void add_crossed(Py_ssize_t q, Py_ssize_t k, const vecu* D, vecu* H) noexcept nogil:
    """H += D'D for D (q, k), packed lower triangle."""
    cdef Py_ssize_t a, j, l, pos = 0
    cdef vec t
    for j in range(k):
        for l in range(j + 1):
            t = H[pos]
            for a in range(q):
                t = t + D[a * k + j] * D[a * k + l]
            H[pos] = t
            pos = pos + 1


cdef inline void add_outer(Py_ssize_t n, const vecu* v, vecu* out) noexcept nogil:
    """out += v v' for v (n,), packed lower triangle."""
    cdef Py_ssize_t a, b, pos = 0
    cdef vec t
    for a in range(n):
        t = v[a]
        for b in range(a + 1):
            out[pos + b] = out[pos + b] + t * v[b]
        pos = pos + a + 1


cdef enum:
    SIDE = 4            # rows and columns of a tile: what is summed stays in registers
    OUTERS = 16         # vectors that are taken together: they stay in the first cache


cdef inline void add_tile(Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t a, Py_ssize_t b, Py_ssize_t count,
                          Py_ssize_t stride, const vecu* v, vecu* out) noexcept nogil:
    """Rows a .. and columns b .. of `add_outers`; no column lies beyond the first row.  Sizes are constants."""
    cdef Py_ssize_t i, j, c
    cdef vec acc[16]
    cdef vec t
    for i in range(rows):
        for j in range(columns):
            acc[i * SIDE + j] = out[(a + i) * (a + i + 1) // 2 + b + j] if a != b or j <= i else VEC_SET(0.0)
    for c in range(count):
        for i in range(rows):
            t = v[a + i]
            for j in range(columns):
                acc[i * SIDE + j] = acc[i * SIDE + j] + t * v[b + j]
        v = v + stride
    for i in range(rows):
        for j in range(columns):
            if a != b or j <= i:
                out[(a + i) * (a + i + 1) // 2 + b + j] = acc[i * SIDE + j]


cdef inline void add_rows(Py_ssize_t rows, Py_ssize_t a, Py_ssize_t count, Py_ssize_t stride, const vecu* v, vecu* out
                          ) noexcept nogil:
    """Rows a .. of `add_outers`."""
    cdef Py_ssize_t i
    for i in range(a // SIDE):
        add_tile(rows, SIDE, a, i * SIDE, count, stride, v, out)
    add_tile(rows, rows, a, a, count, stride, v, out)


cdef inline void add_outers(Py_ssize_t n, Py_ssize_t count, Py_ssize_t stride, const vecu* v, vecu* out) noexcept nogil:
    """out += sum of v v' for `count` vectors v (n,), `stride` apart: packed lower triangle."""
    cdef Py_ssize_t some, i, rest = n % SIDE, a = n - n % SIDE
    while count > 0:
        some = count if count < OUTERS else OUTERS
        for i in range(n // SIDE):
            add_rows(SIDE, i * SIDE, some, stride, v, out)
        if rest == 1:
            add_rows(1, a, some, stride, v, out)
        elif rest == 2:
            add_rows(2, a, some, stride, v, out)
        elif rest == 3:
            add_rows(3, a, some, stride, v, out)
        v = v + some * stride
        count = count - some


cdef enum:
    SHORT_LINE = 32


cdef inline void transpose_groups(Py_ssize_t q, Py_ssize_t k, const RawGroups* groups, Py_ssize_t block, vecu* full,
                                  vecu* C, vecu* count) noexcept nogil:
    """`read_groups` of a block without padding, a register at a time; lines of LANES to SHORT_LINE numbers."""
    cdef Py_ssize_t line = q * (q + 1) // 2 + q * k + 1, lane, at = 0, a, b, j, pos = 0
    cdef double tile[SHORT_LINE * 8]
    cdef double nothing[8]
    cdef const double* rows[8]
    cdef const vecu* turned = <const vecu*> &tile[0]
    for lane in range(LANES):
        rows[lane] = groups.raw + (block * LANES + lane) * line
        nothing[lane] = 0.0
    while at < line:
        # the last tile overlaps the one before it
        at = min(at, line - LANES)
        vec_transpose(rows, at, nothing, &tile[at * LANES])
        at = at + LANES
    for a in range(q):
        for b in range(a + 1):
            full[a * q + b] = turned[pos]
            full[b * q + a] = turned[pos]
            pos = pos + 1
    for j in range(q * k):
        C[j] = turned[pos + j]
    count[0] = VEC_SET(1.0)


cdef inline void read_groups(Py_ssize_t q, Py_ssize_t k, const RawGroups* groups, Py_ssize_t block, double* full,
                             double* C, double* count) noexcept nogil:
    """A (both triangles), C and the count of the groups of a block, lane by lane; zeros in the padding."""
    cdef Py_ssize_t line = q * (q + 1) // 2 + q * k + 1, lane, g, a, b, j, pos
    cdef const double* source
    if LANES <= line <= SHORT_LINE and (block + 1) * LANES <= groups.n_groups:
        transpose_groups(q, k, groups, block, <vecu*> full, <vecu*> C, <vecu*> count)
        return
    for lane in range(LANES):
        g = block * LANES + lane
        if g < groups.n_groups:
            source = groups.raw + g * line
            pos = 0
            for a in range(q):
                for b in range(a + 1):
                    full[(a * q + b) * LANES + lane] = source[pos]
                    full[(b * q + a) * LANES + lane] = source[pos]
                    pos = pos + 1
            for j in range(q * k):
                C[j * LANES + lane] = source[pos]
                pos = pos + 1
            count[lane] = 1.0
        else:
            for j in range(q * q):
                full[j * LANES + lane] = 0.0
            for j in range(q * k):
                C[j * LANES + lane] = 0.0
            count[lane] = 0.0


cdef inline void rotate_groups(Py_ssize_t q, Py_ssize_t k, const double* Tz, const double* Tx, vecu* full, vecu* C,
                               vecu* bound, vecu* size) noexcept nogil:
    """A <- T_z'A T_z, C <- T_z'C T_x; bound: the rounding error of the rotated diagonal."""
    cdef Py_ssize_t a, b, j, l
    cdef vec t
    # eps times (sum_b |T_ba| sqrt(A_bb))^2
    for a in range(q):
        size[a] = VEC_SQRT(full[a * q + a])
    for a in range(q):
        t = VEC_SET(0.0)
        for b in range(a + 1):
            t = t + size[b] * (Tz[b * q + a] if Tz[b * q + a] > 0 else -Tz[b * q + a])
        bound[a] = t * t * 2e-14
    for a in range(q):
        for b in range(q - 1, -1, -1):
            t = VEC_SET(0.0)
            for l in range(b + 1):
                t = t + full[a * q + l] * Tz[l * q + b]
            full[a * q + b] = t
        for j in range(-1 if Tx == NULL else k - 1, -1, -1):
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


cdef inline void take_root(Py_ssize_t q, Py_ssize_t k, const vecu* bound, vecu* full, vecu* C, vecu* R, vecu* c
                           ) noexcept nogil:
    """A = R'R and c = R^-T C, row by row; a column within `bound` of its predecessors adds nothing."""
    cdef Py_ssize_t a, b, j, l, pos = 0
    cdef vec t, u
    for a in range(q):
        t = full[a * q + a]
        u = VEC_RSQRT_ABOVE(t, bound[a])
        for b in range(a, q):
            R[pos + b - a] = full[a * q + b] * u
        for j in range(k):
            c[a * k + j] = C[a * k + j] * u
        for b in range(a + 1, q):
            t = R[pos + b - a]
            for l in range(b, q):
                full[b * q + l] = full[b * q + l] - t * R[pos + l - a]
            for j in range(k):
                C[b * k + j] = C[b * k + j] - t * c[a * k + j]
        pos = pos + q - a


cdef inline void end_part(Py_ssize_t n, vecu* acc, double* sums) noexcept nogil:
    """Add what the lanes have summed, and begin anew."""
    cdef Py_ssize_t pos
    for pos in range(n):
        sums[pos] += vec_sum(acc + pos)
        acc[pos] = VEC_SET(0.0)


cdef inline void factor_of(Py_ssize_t q, Py_ssize_t k, const RawGroups* groups, double* packed, double* within,
                           double* scratch) noexcept nogil:
    cdef Py_ssize_t n_a = q * (q + 1) // 2, stride = n_a + q * k + 1, n_h = k * (k + 1) // 2
    cdef Py_ssize_t block, pos
    cdef vecu* full = <vecu*> scratch          # A, rotated in place (q x q)
    cdef vecu* C = full + q * q
    cdef vecu* bound = C + q * k
    cdef vecu* size = bound + q
    cdef vecu* acc = size + q
    cdef vecu* R
    for pos in range(n_h if within != NULL else 0):
        acc[pos] = VEC_SET(0.0)
    for block in range((groups.n_groups + LANES - 1) // LANES):
        R = (<vecu*> packed) + block * stride
        read_groups(q, k, groups, block, <double*> full, <double*> C, <double*> (R + stride - 1))
        rotate_groups(q, k, groups.Tz, groups.Tx, full, C, bound, size)
        take_root(q, k, bound, full, C, R, R + n_a)
        if within != NULL:
            add_crossed(q, k, R + n_a, acc)
            if (block + 1) % PART == 0:
                end_part(n_h, acc, within)
    if within != NULL:
        end_part(n_h, acc, within)


cdef inline bint of_pattern(Py_ssize_t n_a, Py_ssize_t n_groups, const double* pattern, const double* R) noexcept nogil:
    """Whether R of the first groups of a block is the pattern, by rounding; NaN never is."""
    cdef Py_ssize_t j, lane
    cdef double size = 0.0, t
    cdef int others = 0
    for j in range(n_a):
        size = max(size, fabs(pattern[j]))
    size = size * SAME
    for j in range(n_a):
        for lane in range(n_groups):
            t = R[j * LANES + lane] - pattern[j]
            others |= not fabs(t) <= size
    return others == 0


cdef inline bint factor_alike_of(Py_ssize_t q, Py_ssize_t k, const RawGroups* groups, double* pattern, double* gram,
                                 double* scratch) noexcept nogil:
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, block, pos, n_blocks = (groups.n_groups + LANES - 1) // LANES
    cdef vecu* full = <vecu*> scratch
    cdef vecu* C = full + q * q
    cdef vecu* bound = C + n_c
    cdef vecu* size = bound + q
    cdef vecu* R = size + q
    cdef vecu* acc = R + n_a + n_c + 1
    for pos in range(n_c * (n_c + 1) // 2):
        acc[pos] = VEC_SET(0.0)
    for block in range(n_blocks):
        read_groups(q, k, groups, block, <double*> full, <double*> C, <double*> (R + n_a + n_c))
        rotate_groups(q, k, groups.Tz, groups.Tx, full, C, bound, size)
        take_root(q, k, bound, full, C, R, R + n_a)
        if block == 0 and pattern[0] < 0.0:
            for pos in range(n_a):
                pattern[pos] = (<double*> (R + pos))[0]
        if not of_pattern(n_a, min(LANES, groups.n_groups - block * LANES), pattern, <double*> R):
            return False
        add_outer(n_c, R + n_a, acc)
    for pos in range(n_c * (n_c + 1) // 2):
        gram[pos] = vec_sum(acc + pos)
    return True


cdef bint factor_alike(const Shape* shape, const RawGroups* groups, double* pattern, double* gram, double* scratch
                       ) noexcept nogil:
    """What `factor` gives of groups that all have one R: that, and sum vec(c) vec(c)' (packed lower triangle).

    False where some group has another R.  pattern (n_a,) is given, or that of the first group where it is negative.
    scratch: LANES (q^2 + 2 q k + 2 q + n_a + 1 + q k (q k + 1) / 2) doubles.
    """
    if shape.q == 1 and shape.k == 3:
        return factor_alike_of(1, 3, groups, pattern, gram, scratch)
    if shape.q == 2 and shape.k == 3:
        return factor_alike_of(2, 3, groups, pattern, gram, scratch)
    return factor_alike_of(shape.q, shape.k, groups, pattern, gram, scratch)


cdef void factor(const Shape* shape, const RawGroups* groups, double* packed, double* within, double* scratch
                 ) noexcept nogil:
    """Rotate and factor groups.

    Overwrites packed (blocks, stride, LANES) with R, c and 1 per group (0 in the padding), for Z T_z and [X y] T_x;
    adds sum c'c to within (k(k+1)/2), part by part, unless that is NULL.  T_x may be NULL, where C has been turned already.
    scratch: LANES (q^2 + q k + 2 q + k(k+1)/2) doubles.
    """
    # constant sizes let the compiler unroll the shapes that nearly everyone uses
    if shape.q == 1 and shape.k == 2:
        factor_of(1, 2, groups, packed, within, scratch)
    elif shape.q == 2 and shape.k == 3:
        factor_of(2, 3, groups, packed, within, scratch)
    else:
        factor_of(shape.q, shape.k, groups, packed, within, scratch)


# Where `whiten` leaves what it computes.
cdef struct Whitened:
    vecu* U     # (q, q) R L
    vecu* W     # (q, q) see `eliminate`
    vecu* Y     # (q, q)
    vecu* D     # (q, k)


cdef inline Whitened lay_whitened(Py_ssize_t q, double* scratch) noexcept nogil:
    """The first 3 q^2 + q k vectors of a work space."""
    cdef Whitened s
    s.U = <vecu*> scratch
    s.W = s.U + q * q
    s.Y = s.W + q * q
    s.D = s.Y + q * q
    return s


cdef inline vec whiten(Py_ssize_t q, Py_ssize_t k, const vecu* R, const double* factor, const Whitened* s
                       ) noexcept nogil:
    """U = R L, W = I + U U' = M M', Y = M^-1 R, D = M^-1 c for one block (R, c); its determinants |W|."""
    cdef Py_ssize_t a, b, l, j
    cdef vecu* U = s.U
    cdef vecu* W = s.W
    cdef vecu* Y = s.Y
    cdef vecu* D = s.D
    cdef vec t
    cdef vec one = VEC_SET(1.0)
    cdef const vecu* row = R
    cdef const vecu* c = R + q * (q + 1) // 2
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
    return eliminate(q, W, q, Y, k, D, NULL)


cdef inline double sum_logs(const vecu* values, const vecu* count) noexcept nogil:
    """Sum over the lanes of count log(value); of log(value) where count is NULL."""
    cdef Py_ssize_t lane
    cdef double total = 0.0
    for lane in range(LANES):
        if count == NULL:
            total += log((<const double*> values)[lane])
        elif (<const double*> count)[lane] != 0.0:
            total += (<const double*> count)[lane] * log((<const double*> values)[lane])
    return total


cdef inline double moments_of(Py_ssize_t q, Py_ssize_t k, const PackedGroups* groups, const double* factor,
                              const Sums* out, double* scratch) noexcept nogil:
    cdef bint uniform = groups.uniform, with_gram = out.gram != NULL, with_root = out.root != NULL
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, block, pos
    cdef Py_ssize_t n_h = 0 if with_root else k * (k + 1) // 2, n_g = n_c * (n_c + 1) // 2 if with_gram else 0
    cdef Whitened s = lay_whitened(q, scratch)
    cdef vecu* acc_n = s.D + n_c
    cdef vecu* acc_h = acc_n + n_a
    cdef vecu* acc_g = acc_h + n_h
    cdef vecu* N = acc_g + n_g
    cdef const vecu* R = <const vecu*> groups.packed
    cdef const vecu* count
    cdef vec det, product
    cdef double logdet = 0.0
    product = VEC_SET(1.0)
    for pos in range(n_a + n_h + n_g):
        acc_n[pos] = VEC_SET(0.0)
    for block in range(groups.n_blocks):
        count = R + n_a + n_c
        if out.store != NULL:
            N = (<vecu*> out.store) + block * (n_a + n_c)
        det = whiten(q, k, R, factor, &s)
        if not uniform:
            logdet += sum_logs(<vecu*> &det, count)
        else:
            # padding has det = 1; the product is taken to logarithms before it can overflow
            product = product * det
            if vec_max(<vecu*> &product) > 1e100:
                logdet += sum_logs(<vecu*> &product, NULL)
                product = VEC_SET(1.0)
        set_crossed(q, s.Y, N)
        for pos in range(n_a):
            acc_n[pos] = acc_n[pos] + N[pos] * count[0]
        set_product(q, k, s.Y, s.D, N + n_a)
        if with_root:
            for pos in range(n_c):
                (<vecu*> out.root)[block * n_c + pos] = s.D[pos]
        else:
            add_crossed(q, k, s.D, acc_h)
        if with_gram:
            add_outer(n_c, N + n_a, acc_g)
        R = R + n_a + n_c + 1
    if uniform:
        logdet += sum_logs(<vecu*> &product, NULL)
    for pos in range(n_a):
        out.sum_n[pos] = vec_sum(acc_n + pos)
    for pos in range(n_h):
        out.sum_h[pos] += vec_sum(acc_h + pos)
    for pos in range(n_g):
        out.gram[pos] = vec_sum(acc_g + pos)
    return logdet


cdef double moments(const PackedGroups* groups, const double* factor, const Sums* out, double* scratch) noexcept nogil:
    """First sweep of an evaluation: the sums over groups at L; returns sum n_i log|W_i|.

    scratch: LANES (3 q^2 + 2 q k + 2 n_a + k(k+1)/2 + qk(qk+1)/2) doubles, without the last two where `root`, and no
    `gram`, are wanted.
    """
    cdef Py_ssize_t q = groups.shape.q, k = groups.shape.k
    if q == 1:
        return moments_of(1, k, groups, factor, out, scratch)
    if q == 2 and k == 3:
        return moments_of(2, 3, groups, factor, out, scratch)
    if q == 2:
        return moments_of(2, k, groups, factor, out, scratch)
    if q == 3:
        return moments_of(3, k, groups, factor, out, scratch)
    return moments_of(q, k, groups, factor, out, scratch)


cdef inline void add_forms(Py_ssize_t q, Py_ssize_t k, Py_ssize_t first, const vecu* F, vecu* B) noexcept nogil:
    """B += F F' for the columns of F (q, k) from `first` on, packed lower triangle."""
    cdef Py_ssize_t a, b, j, pos = 0
    cdef vec t
    for a in range(q):
        for b in range(a + 1):
            t = B[pos]
            for j in range(first, k):
                t = t + F[a * k + j] * F[b * k + j]
            B[pos] = t
            pos = pos + 1


cdef inline void add_tensor(Py_ssize_t n_a, const vecu* B, const vecu* N, vecu* tensor) noexcept nogil:
    """tensor += B (x) N, (n_a, n_a)."""
    cdef Py_ssize_t a, b, pos = 0
    cdef vec t
    for a in range(n_a):
        t = B[a]
        for b in range(n_a):
            tensor[pos] = tensor[pos] + t * N[b]
            pos = pos + 1


cdef inline void curvature_of(Py_ssize_t q, Py_ssize_t k, const PackedGroups* groups, Py_ssize_t first,
                              const double* weight, const double* store, double* tensor, double* scratch) noexcept nogil:
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, block, a, j, l, pos
    cdef vecu* F = <vecu*> scratch
    cdef vecu* B = F + n_c
    cdef vecu* acc = B + n_a
    cdef const vecu* N
    cdef const vecu* E
    cdef const vecu* count
    cdef vec t
    for pos in range(n_a * n_a):
        acc[pos] = VEC_SET(0.0)
    for block in range(groups.n_blocks):
        N = (<const vecu*> store) + block * (n_a + n_c)
        E = N + n_a
        count = (<const vecu*> groups.packed) + (block + 1) * (n_a + n_c + 1) - 1
        for a in range(q):
            for j in range(first, k):
                t = VEC_SET(0.0)
                for l in range(j + 1):
                    t = t + E[a * k + l] * weight[l * k + j]
                F[a * k + j] = t
        for pos in range(n_a):
            B[pos] = VEC_SET(0.0) - count[0] * N[pos]
        add_forms(q, k, first, F, B)
        add_tensor(n_a, B, N, acc)
    for pos in range(n_a * n_a):
        tensor[pos] = vec_sum(acc + pos)


cdef void curvature(const PackedGroups* groups, Py_ssize_t first, const double* weight, const double* store,
                    double* tensor, double* scratch) noexcept nogil:
    """Second sweep: tensor[ab, cd] = sum B_i[ab] N_i[cd], B_i = -n_i N_i + (E_i w)(E_i w)'.

    weight (k x k) is upper triangular; its columns before `first` are skipped.  store: as `moments` leaves it.
    scratch: LANES (q k + n_a + n_a^2) doubles.
    """
    cdef Py_ssize_t q = groups.shape.q, k = groups.shape.k
    if q == 1:
        curvature_of(1, k, groups, first, weight, store, tensor, scratch)
    elif q == 2 and k == 3:
        curvature_of(2, 3, groups, first, weight, store, tensor, scratch)
    elif q == 2:
        curvature_of(2, k, groups, first, weight, store, tensor, scratch)
    elif q == 3:
        curvature_of(3, k, groups, first, weight, store, tensor, scratch)
    else:
        curvature_of(q, k, groups, first, weight, store, tensor, scratch)


cdef inline void conditional_root(Py_ssize_t q, const vecu* U, const double* factor, vecu* W, vecu* S) noexcept nogil:
    """S with S'S = L (I + U'U)^-1 L': M M' = I + U'U, S = M^-1 L'."""
    cdef Py_ssize_t a, b, l
    cdef vec t
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(1.0 if a == b else 0.0)
            for l in range(q):
                t = t + U[l * q + a] * U[l * q + b]
            W[a * q + b] = t
        for b in range(q):
            S[a * q + b] = VEC_SET(factor[b * q + a])
    eliminate(q, W, q, S, 0, NULL, NULL)


cdef void effects(const PackedGroups* groups, const double* factor, const double* contrast, double* e_out,
                  double* matrix_out, bint conditional, double* scratch) noexcept nogil:
    """e_i = E_i contrast (n_blocks * LANES, q) and a matrix (n_blocks * LANES, q, q) of every packed group.

    The matrix is N_i or, if `conditional`, L (I + L'A_i L)^-1 L' = S'S: a sum of squares, where G^ - G^ N_i G^ would
    cancel.  matrix_out may be NULL.
    scratch: LANES (4 q^2 + q k + q) doubles.
    """
    cdef Py_ssize_t q = groups.shape.q, k = groups.shape.k, n_a = groups.shape.n_a, block, a, b, l, j, lane
    cdef Whitened s = lay_whitened(q, scratch)
    cdef vecu* S = s.D + q * k
    cdef vecu* d = S + q * q
    cdef vecu* half
    cdef vec t
    for block in range(groups.n_blocks):
        whiten(q, k, (<const vecu*> groups.packed) + block * groups.shape.stride, factor, &s)
        for a in range(q):
            t = VEC_SET(0.0)
            for j in range(k):
                t = t + s.D[a * k + j] * contrast[j]
            d[a] = t
        for a in range(q):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + s.Y[l * q + a] * d[l]
            for lane in range(LANES):
                e_out[(block * LANES + lane) * q + a] = (<double*> &t)[lane]
        if matrix_out == NULL:
            continue
        half = s.Y
        if conditional:
            half = S
            conditional_root(q, s.U, factor, s.W, S)
        for a in range(q):
            for b in range(q):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + half[l * q + a] * half[l * q + b]
                for lane in range(LANES):
                    matrix_out[((block * LANES + lane) * q + a) * q + b] = (<double*> &t)[lane]


offered.factor = &factor
offered.factor_alike = &factor_alike
offered.moments = &moments
offered.curvature = &curvature
offered.effects = &effects

include "profile.pxi"
include "responses.pxi"
include "newton.pxi"
include "contrasts.pxi"
include "settling.pxi"
include "start.pxi"
include "scores.pxi"
include "elsewhere.pxi"
include "responses_with_covariates.pxi"
include "sweeps_with_covariates.pxi"
include "problems.pxi"
include "factors.pxi"
include "factor_sweeps.pxi"
include "factor_fits.pxi"
include "correlated.pxi"
include "correlated_sweeps.pxi"
include "correlated_fits.pxi"
include "families.pxi"
include "deletions.pxi"
include "series.pxi"


def kernels():
    """The functions of this variant, a capsule of a LaneKernels."""
    return PyCapsule_New(&offered, lane_kernels_name(), NULL)
