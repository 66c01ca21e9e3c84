# Responses with covariates of balanced designs: where their searches start, and which minima are the only ones.
#
# All groups have the same Z_o'Z_o = I, and X spans the d columns that carry it, so that in these the lines l, m (covariates c
# and y, see responses_with_covariates.pxi) have nothing.  With A = (I + G^)^-1 <= I, S_lm the symmetric part of their rest,
# mu = m - d by REML and m by ML, and e = y - c beta,
#
#     H_lm = within_lm + tr(A S_lm)        criterion = -mu log|A| + nu log r^2 [+ log|H_cc|],    r^2 = H_ee
#
# but for constants.  A stationary point has mu A^-1 = (nu / r^2) S_ee [+ sum (H_cc^-1)_lm S_lm], and by its trace with A
# r^2 = within_ee / (1 - (q mu [- sum (H_cc^-1)_lm tr(A S_lm)]) / nu): beta and A in turn come to it by small factors.
#
# For given beta the criterion but for log|H_cc| is convex along the geodesics of A, on A <= I too (sums of exponentials;
# Sra and Hosseini 2015, SIAM J. Optim. 25, 713-739).  At a minimum A_0 let A = A_0^1/2 D A_0^1/2, D with eigenvalues z_i and
# vectors v_i, tau = mu r^2 / nu, p = mu / nu.  There A_0^1/2 S_ee A_0^1/2 <= tau I, and
#
#     h_ee(A) / r^2 >= 1 + p sum (z_i - 1) - sum (u_j - 1) / nu,   u_j the eigenvalues of H_cc(A) relative to H_cc(A_0), by REML
#
# which other coefficients lower by h_ce'H_cc^-1 h_ce / r^2, h_ce(A) = tr((A - A_0) S_ce).  Let the covariates be orthonormal
# within groups, so that H_cc >= I, |x'S_ce x| <= kappa x'S_ee x for all x, and sum S_cc <= lambda I.  As z_i v_i'A_0 v_i <= 1,
#
#     h_ce'H_cc^-1 h_ce / r^2 <= p (sum |z_i - 1| min(sqrt(a), sqrt(b / max(z_i, 1))))^2,      a = kappa^2 tau,  b = lambda
#     sum |u_j - 1| <= sum |z_i - 1| b / max(z_i, 1)
#
# The criterion is lower nowhere if nu log of the difference + sum log u_j >= mu sum log z_i for all z > 0.  It is where
# q a <= 0.1, q b <= 0.6 - q p / 2 and q p <= 1 / 2.

cdef enum:
    BALANCED_STEPS = 8      # from coefficients to a covariance: each leaves some hundredths of the distance

cdef double SLIGHT_CROSS = 0.1, SLIGHT_BETWEEN = 0.6
"""Largest q a, and q b + q p / 2, of a minimum that is the only one."""


# All that the criterion needs of a block of responses.
cdef struct BalancedLines:
    vec S[60]               # (pairs, n_a) S_lm of all pairs of lines, packed by rows
    vec within[10]          # (pairs,)
    vec nu, mu


cdef inline void take_balanced(Py_ssize_t q, Py_ssize_t e, const Batch* d, Lanes* s, const OwnGroups* own,
                               BalancedLines* out) noexcept nogil:
    """The symmetric part of the rest, and what lies within groups."""
    cdef Py_ssize_t p = d.lines.base.p, a, b, l, m, at = 0, pair = 0
    cdef const vecu* rest = (<vecu*> own.packed) + d.lines.base.n_columns * q * e
    cdef vecu* S = <vecu*> out.S
    out.nu = (<vecu*> s.f.gls.nu)[0]
    out.mu = VEC_SET(<double> (d.lines.base.m - (d.lines.base.n_columns if d.reml else 0)))
    for l in range(e):
        for m in range(l + 1):
            (<vecu*> out.within)[pair] = (<vecu*> own.within)[packed_place(p + l, p + m)]
            pair = pair + 1
            for a in range(q):
                for b in range(a + 1):
                    S[at] = 0.5 * (rest[packed_place(a * e + l, b * e + m)] + rest[packed_place(a * e + m, b * e + l)])
                    at = at + 1


cdef inline void begin_inverse(Py_ssize_t q, vecu* Y) noexcept nogil:
    """The identity, of which `eliminate` makes the inverse of a factor."""
    cdef Py_ssize_t i
    for i in range(q * q):
        Y[i] = VEC_SET(1.0 if i % (q + 1) == 0 else 0.0)


cdef inline void step_balanced(Py_ssize_t q, Py_ssize_t e, bint reml, const BalancedLines* lines, vecu* A, vecu* M
                               ) noexcept nogil:
    """From A, packed, to M = (nu / r^2) S_ee [+ sum (H_cc^-1)_lm S_lm], and A <- mu M^-1."""
    cdef Py_ssize_t r = e - 1, n_a = q * (q + 1) // 2, a, b, l, m, pos, pair = 0
    cdef const vecu* S = <const vecu*> lines.S
    cdef const vecu* within = <const vecu*> lines.within
    cdef vec between[10]
    cdef vec share[10]
    cdef vec W[9]
    cdef vec Y[9]
    cdef vec D[4]
    cdef vec K[6]
    cdef vec beta[4]
    cdef vec t, within_ee, taken
    for pair in range(e * (e + 1) // 2):
        t = VEC_SET(0.0)
        pos = 0
        for a in range(q):
            for b in range(a + 1):
                t = t + (1.0 if a == b else 2.0) * A[pos] * S[pair * n_a + pos]
                pos = pos + 1
        between[pair] = t
    begin_inverse(r, <vecu*> Y)
    for l in range(e):
        for m in range(min(l + 1, r)):
            pos = l * (l + 1) // 2 + m
            if l < r:
                W[l * r + m] = within[pos] + between[pos]
            else:
                D[m] = within[pos] + between[pos]
    eliminate(r, <vecu*> W, r, <vecu*> Y, 1, <vecu*> D, NULL)
    set_product(r, 1, <vecu*> Y, <vecu*> D, <vecu*> beta)
    set_crossed(r, <vecu*> Y, <vecu*> K)
    beta[r] = VEC_SET(-1.0)
    within_ee = taken = VEC_SET(0.0)
    pair = 0
    for l in range(e):
        for m in range(l + 1):
            share[pair] = (1.0 if l == m else 2.0) * beta[l] * beta[m]
            within_ee = within_ee + share[pair] * within[pair]
            if reml and l < r:
                K[pair] = (1.0 if l == m else 2.0) * K[pair]
                taken = taken + K[pair] * between[pair]
            pair = pair + 1
    # nu / r^2
    t = (lines.nu - (<double> q) * lines.mu + taken) / within_ee
    for pair in range(e * (e + 1) // 2):
        share[pair] = share[pair] * t
        if reml and pair < r * (r + 1) // 2:
            share[pair] = share[pair] + K[pair]
    for pos in range(n_a):
        M[pos] = VEC_SET(0.0)
    for pair in range(e * (e + 1) // 2):
        for pos in range(n_a):
            M[pos] = M[pos] + share[pair] * S[pair * n_a + pos]
    for a in range(q):
        for b in range(a + 1):
            W[a * q + b] = M[a * (a + 1) // 2 + b]
    begin_inverse(q, <vecu*> Y)
    eliminate(q, <vecu*> W, q, <vecu*> Y, 0, <vecu*> D, NULL)
    set_crossed(q, <vecu*> Y, A)
    for pos in range(n_a):
        A[pos] = lines.mu * A[pos]


cdef inline void come_near(Py_ssize_t q, Py_ssize_t e, const Batch* d, Lanes* s, const OwnGroups* own) noexcept nogil:
    """G^ next to where it is stationary, wherever that is, to s.small (q, q)."""
    cdef Py_ssize_t a, b, step
    cdef BalancedLines lines
    cdef vec A[6]
    cdef vec M[6]
    cdef vecu* G = <vecu*> s.small
    take_balanced(q, e, d, s, own, &lines)
    for a in range(q):
        for b in range(a + 1):
            A[a * (a + 1) // 2 + b] = VEC_SET(0.25 if a == b else 0.0)
    for step in range(BALANCED_STEPS):
        step_balanced(q, e, d.reml, &lines, <vecu*> A, <vecu*> M)
    for a in range(q):
        for b in range(a + 1):
            G[a * q + b] = M[a * (a + 1) // 2 + b] / lines.mu - VEC_SET(1.0 if a == b else 0.0)
            G[b * q + a] = G[a * q + b]


cdef void start_balanced(const Batch* d, Lanes* s, const OwnGroups* own) noexcept nogil:
    """theta next to a stationary point."""
    cdef Py_ssize_t q = d.q, e = d.lines.n_lines
    if q == 1 and e == 2:
        come_near(1, 2, d, s, own)
    elif q == 2 and e == 2:
        come_near(2, 2, d, s, own)
    else:
        come_near(q, e, d, s, own)
    theta_of(d, s)


cdef inline vec largest_square(Py_ssize_t q, const vecu* Y, const vecu* S, vecu* half) noexcept nogil:
    """|Y S Y'|^2, S packed: it bounds the square of (x'S x) / x'(Y'Y)^-1 x; half: (q, q)."""
    cdef Py_ssize_t a, b, c
    cdef vec t, total
    total = VEC_SET(0.0)
    for a in range(q):
        for b in range(q):
            t = VEC_SET(0.0)
            for c in range(a + 1):
                t = t + Y[a * q + c] * S[packed_place(c, b)]
            half[a * q + b] = t
    for a in range(q):
        for b in range(q):
            t = VEC_SET(0.0)
            for c in range(b + 1):
                t = t + half[a * q + c] * Y[b * q + c]
            total = total + t * t
    return total


cdef inline vec largest_value(Py_ssize_t q, const vecu* S) noexcept nogil:
    """A bound of the eigenvalues of S, packed: the mean and what a single one takes of the spread, exact for q = 2."""
    cdef Py_ssize_t a, b
    cdef vec mean, t, spread
    mean = spread = VEC_SET(0.0)
    for a in range(q):
        mean = mean + S[a * (a + 1) // 2 + a] * (1.0 / q)
    for a in range(q):
        for b in range(a):
            t = S[a * (a + 1) // 2 + b]
            spread = spread + 2.0 * t * t
        t = S[a * (a + 1) // 2 + a] - mean
        spread = spread + t * t
    return mean + VEC_SQRT(spread * ((q - 1.0) / q))


cdef inline void judge_balanced(Py_ssize_t q, Py_ssize_t e, const Batch* d, Lanes* s, const OwnGroups* own, vec* only
                                ) noexcept nogil:
    """`only_balanced` of constant sizes."""
    cdef Py_ssize_t r = e - 1, n_a = q * (q + 1) // 2, l, m, a, b, pos
    cdef const vecu* share = (<vecu*> s.f.gls.b) + d.lines.base.p
    cdef BalancedLines lines
    cdef const vecu* S = <const vecu*> lines.S
    cdef vec cross[24]      # S_le of each line, then of covariates that are orthonormal within groups
    cdef vec whole[6]       # S_ee, then the sum of S_cc
    cdef vec W[9]
    cdef vec Y[9]
    cdef vec K[6]
    cdef vec inverse[9]
    cdef vec t, tau, both, between
    take_balanced(q, e, d, s, own, &lines)
    tau = lines.mu * (<vecu*> s.f.gls.r2)[0] / lines.nu
    for pos in range(n_a):
        whole[pos] = VEC_SET(0.0)
        for l in range(e):
            t = VEC_SET(0.0)
            for m in range(e):
                t = t + share[m] * S[packed_place(l, m) * n_a + pos]
            cross[l * n_a + pos] = t
            whole[pos] = whole[pos] + share[l] * t
    for a in range(q):
        for b in range(a + 1):
            W[a * q + b] = whole[a * (a + 1) // 2 + b]
    begin_inverse(q, <vecu*> inverse)
    eliminate(q, <vecu*> W, q, <vecu*> inverse, 0, NULL, NULL)
    for l in range(r):
        for m in range(l + 1):
            W[l * r + m] = (<vecu*> lines.within)[l * (l + 1) // 2 + m]
    begin_inverse(r, <vecu*> Y)
    eliminate(r, <vecu*> W, r, <vecu*> Y, 0, NULL, NULL)
    set_crossed(r, <vecu*> Y, <vecu*> K)
    both = VEC_SET(0.0)
    for l in range(r - 1, -1, -1):
        for pos in range(n_a):
            t = VEC_SET(0.0)
            for m in range(l + 1):
                t = t + Y[l * r + m] * cross[m * n_a + pos]
            cross[l * n_a + pos] = t
        both = both + largest_square(q, <vecu*> inverse, (<vecu*> cross) + l * n_a, <vecu*> W)
    for pos in range(n_a):
        whole[pos] = VEC_SET(0.0)
        for l in range(r):
            for m in range(r):
                whole[pos] = whole[pos] + K[packed_place(l, m)] * S[packed_place(l, m) * n_a + pos]
    between = largest_value(q, <vecu*> whole)
    t = VEC_SET(SLIGHT_BETWEEN) - (<double> q) * (between + 0.5 * lines.mu / lines.nu)
    t = VEC_WHERE_POSITIVE(VEC_SET(SLIGHT_CROSS) - (<double> q) * both * tau, t, VEC_SET(-1.0))
    only[0] = t


cdef void only_balanced(const Batch* d, Lanes* s, const OwnGroups* own, vec* only) noexcept nogil:
    """Positive where the minimum at which lanes have been evaluated is the only one, wherever it lies."""
    cdef Py_ssize_t q = d.q, e = d.lines.n_lines
    if q == 1 and e == 2:
        judge_balanced(1, 2, d, s, own, only)
    elif q == 2 and e == 2:
        judge_balanced(2, 2, d, s, own, only)
    else:
        judge_balanced(q, e, d, s, own, only)
