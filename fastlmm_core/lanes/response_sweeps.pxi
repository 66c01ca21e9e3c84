# The criterion of many responses on one design, with its derivatives, from the sums that responses.pxi makes: a sweep
# over the patterns of the groups, and one for second derivatives.
#
# uses   Lanes (responses.pxi), profile_value, gls_curve, chain_hessian (profile.pxi)
# gives  sweep_design, evaluate_responses


# Work space of the sweeps: W = I + U U' = T Delta T', T unit lower triangular.
cdef struct PatternSpace:
    vecu* U         # (q, q) R L
    vecu* W         # (q, q)
    vecu* T         # (q, q)
    vecu* Y         # (q, q) T^-1 R
    vecu* Z         # (q, q) Delta^-1 Y
    vecu* roots     # (q,) 1 / Delta_aa
    vecu* D         # (q, k) T^-1 c
    vecu* C         # (q, k) Delta^-1 D
    vecu* H         # packed (k, k)

cdef enum:
    ROOM = 48           # vectors of D, or of H, that the stack has room for: what is there can stay in registers
    ROOM_EFFECTS = 3    # random effects of which the rest is on the stack


cdef inline void lay_pattern(Py_ssize_t q, vecu* room, PatternSpace* w) noexcept nogil:
    """5 q^2 + q vectors."""
    w.U = room
    w.W = w.U + q * q
    w.T = w.W + q * q
    w.Y = w.T + q * q
    w.Z = w.Y + q * q
    w.roots = w.Z + q * q


cdef inline vec whiten_pattern(Py_ssize_t q, const double* R, const vecu* factor, const PatternSpace* w) noexcept nogil:
    """T, Delta^-1, Y and Z of a pattern; the determinant |W|.

    No square root is taken, and for two effects one division: |W| is then a sum of squares, see pairs.pxi.
    """
    cdef Py_ssize_t a, b, l, pos = 0
    cdef vec t, product, inverse
    cdef vec one = VEC_SET(1.0)
    for a in range(q):
        for b in range(q):
            t = R[pos] * factor[a * q + b]
            for l in range(a + 1, q):
                t = t + R[pos + l - a] * factor[l * q + b]
            w.U[a * q + b] = t
            w.Y[a * q + b] = VEC_SET(R[pos + b - a] if b >= a else 0.0)
        pos = pos + q - a
    for a in range(q):
        for b in range(a + 1):
            t = one if a == b else VEC_SET(0.0)
            for l in range(q):
                t = t + w.U[a * q + l] * w.U[b * q + l]
            w.W[a * q + b] = t
    if q == 2:
        t = R[0] * R[2] * (factor[0] * factor[3] - factor[1] * factor[2])
        product = w.W[0] + (w.W[3] - one) + t * t
        inverse = one / (w.W[0] * product)
        w.roots[0] = product * inverse
        w.roots[1] = w.W[0] * w.W[0] * inverse
        w.T[2] = w.W[2] * w.roots[0]
        w.Y[2] = w.Y[2] - w.T[2] * w.Y[0]
        w.Y[3] = w.Y[3] - w.T[2] * w.Y[1]
    else:
        product = one
        for a in range(q):
            # a pivot that rounding has made negative must not pass for a determinant
            product = VEC_WHERE_POSITIVE(w.W[a * q + a], product * w.W[a * q + a], VEC_SET(NAN))
            w.roots[a] = one / w.W[a * q + a]
            for b in range(a + 1, q):
                t = w.W[b * q + a] * w.roots[a]
                w.T[b * q + a] = t
                for l in range(a + 1, b + 1):
                    w.W[b * q + l] = w.W[b * q + l] - t * w.W[l * q + a]
                for l in range(q):
                    w.Y[b * q + l] = w.Y[b * q + l] - t * w.Y[a * q + l]
    for a in range(q):
        for l in range(q):
            w.Z[a * q + l] = w.Y[a * q + l] * w.roots[a]
    return product


cdef inline void sweep_rest(Py_ssize_t q, Py_ssize_t k, const vecu* rest, const PatternSpace* w, vecu* gram, vecu* out
                            ) noexcept nogil:
    """H_yy += tr(W^-1 rest); out = R'W^-1 rest W^-1 R, which is added to the y part of gram."""
    cdef Py_ssize_t p = k - 1, a, b, l, pos = 0
    cdef vecu* S = w.U
    cdef vecu* half = w.W
    cdef vec t
    # S = T^-1 rest T^-T
    for a in range(q):
        for b in range(a + 1):
            S[a * q + b] = rest[pos]
            S[b * q + a] = rest[pos]
            pos = pos + 1
    for a in range(q):
        for b in range(a + 1, q):
            for l in range(q):
                S[b * q + l] = S[b * q + l] - w.T[b * q + a] * S[a * q + l]
    for a in range(q):
        for b in range(a + 1, q):
            for l in range(q):
                S[l * q + b] = S[l * q + b] - w.T[b * q + a] * S[l * q + a]
    t = w.H[k * (k + 1) // 2 - 1]
    for a in range(q):
        t = t + S[a * q + a] * w.roots[a]
    w.H[k * (k + 1) // 2 - 1] = t
    for a in range(q):
        for b in range(q):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + w.Z[l * q + a] * S[l * q + b]
            half[a * q + b] = t
    pos = 0
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + half[a * q + l] * w.Z[l * q + b]
            out[pos] = t
            l = a * k + p
            gram[l * (l + 1) // 2 + b * k + p] = gram[l * (l + 1) // 2 + b * k + p] + t
            pos = pos + 1


cdef inline void sweep_column(Py_ssize_t q, Py_ssize_t p, const double* cx, const vecu* cy, const PatternSpace* w,
                              vecu* E) noexcept nogil:
    """D = T^-1 (c_x, c_y) of a column of a pattern; E = Y'Delta^-1 D, and D'Delta^-1 D to the sum."""
    cdef Py_ssize_t k = p + 1, a, b, j, l, pos = 0
    cdef vec t
    for a in range(q):
        for j in range(k):
            t = VEC_SET(cx[a * p + j]) if j < p else cy[a]
            for l in range(a):
                t = t - w.T[a * q + l] * w.D[l * k + j]
            w.D[a * k + j] = t
            w.C[a * k + j] = t * w.roots[a]
    for j in range(k):
        for l in range(j + 1):
            t = w.H[pos]
            for a in range(q):
                t = t + w.C[a * k + j] * w.D[a * k + l]
            w.H[pos] = t
            pos = pos + 1
    for b in range(q):
        for j in range(k):
            t = w.Y[b] * w.C[j]
            for a in range(1, q):
                t = t + w.Y[a * q + b] * w.C[a * k + j]
            E[b * k + j] = t


cdef inline void sweep_patterns(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s) noexcept nogil:
    """First sweep: logdet, sum_n, H and gram at f.factor; keeps N, R'W^-1 rest W^-1 R and E for the second."""
    cdef Py_ssize_t k = p + 1, n_a = q * (q + 1) // 2, n_c = q * k, n_h = k * (k + 1) // 2, pattern, c, j, l, pos
    cdef vecu* gram = <vecu*> s.f.gram
    cdef vecu* N = <vecu*> s.store
    cdef vecu* E = N + d.n_patterns * 2 * n_a
    cdef vec effects[48]     # 5 q^2 + q
    cdef vec columns[96]
    cdef vec sums[48]
    cdef PatternSpace w
    cdef vec det, product, exponent, logdet, t
    cdef double count
    lay_pattern(q, <vecu*> effects if q <= ROOM_EFFECTS else <vecu*> s.small, &w)
    w.D = <vecu*> columns if n_c <= ROOM else (<vecu*> s.small) + 5 * q * q + q
    w.C = w.D + n_c
    w.H = <vecu*> sums if n_h <= ROOM else <vecu*> s.f.gls.H
    product = VEC_SET(1.0)
    exponent = VEC_SET(0.0)
    logdet = VEC_SET(0.0)
    for pos in range(n_h - k):
        w.H[pos] = VEC_SET(d.within_xx[pos])
    for j in range(k):
        w.H[n_h - k + j] = (<vecu*> s.within)[j]
    for pos in range(n_a):
        (<vecu*> s.f.sum_n)[pos] = VEC_SET(0.0)
    for pos in range(n_c * (n_c + 1) // 2):
        gram[pos] = VEC_SET(0.0)
    for pattern in range(d.n_patterns):
        count = <double> (d.groups[pattern + 1] - d.groups[pattern])
        det = whiten_pattern(q, d.R + pattern * n_a, <vecu*> s.f.factor, &w)
        if count > 1.0:
            logdet = logdet + count * VEC_LOG(det)
        else:
            # exponents are set aside lane by lane: no sum depends on the neighbours
            product = product * det
            VEC_SPLIT(product, exponent)
        pos = 0
        for c in range(q):
            for j in range(c + 1):
                t = w.Z[c] * w.Y[j]
                for l in range(1, q):
                    t = t + w.Z[l * q + c] * w.Y[l * q + j]
                N[pos] = t
                (<vecu*> s.f.sum_n)[pos] = (<vecu*> s.f.sum_n)[pos] + count * t
                pos = pos + 1
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            sweep_column(q, p, d.cx + c * q * p, (<vecu*> s.cy) + c * q, &w, E)
            E = E + n_c
        if count > 1.0:
            sweep_rest(q, k, (<vecu*> s.rest) + pattern * n_a, &w, gram, N + n_a)
        N = N + 2 * n_a
    add_outers(n_c, d.n_columns, n_c, N, gram)
    for pos in range(n_h):
        (<vecu*> s.f.gls.H)[pos] = w.H[pos]
    (<vecu*> s.f.gls.logdet)[0] = logdet + VEC_LOG(product) + exponent * M_LN2


cdef inline void sweep_curvature(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s) noexcept nogil:
    """Second sweep: tensor = sum B_i (x) N_i."""
    cdef Py_ssize_t k = p + 1, n_a = q * (q + 1) // 2, n_c = q * k, first = 0 if d.reml else p
    cdef Py_ssize_t pattern, a, b, c, j, l, pos
    cdef vec sums[36]
    cdef vec form[6]
    cdef vec column[3]
    cdef vecu* tensor = <vecu*> sums if q <= ROOM_EFFECTS else <vecu*> s.f.tensor
    cdef vecu* B = <vecu*> form if q <= ROOM_EFFECTS else <vecu*> s.small
    cdef vecu* F = <vecu*> column if q <= ROOM_EFFECTS else (<vecu*> s.small) + n_a
    cdef const vecu* weight = <vecu*> s.f.gls.weight
    cdef const vecu* N = <vecu*> s.store
    cdef const vecu* E = N + d.n_patterns * 2 * n_a
    cdef vec t, square
    cdef double count
    square = weight[p * k + p] * weight[p * k + p]
    for pos in range(n_a * n_a):
        tensor[pos] = VEC_SET(0.0)
    for pattern in range(d.n_patterns):
        count = <double> (d.groups[pattern + 1] - d.groups[pattern])
        for pos in range(n_a):
            B[pos] = VEC_SET(0.0) - count * N[pos]
            if count > 1.0:
                B[pos] = B[pos] + square * N[n_a + pos]
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            for j in range(first, k):
                for a in range(q):
                    t = E[a * k] * weight[j]
                    for l in range(1, j + 1):
                        t = t + E[a * k + l] * weight[l * k + j]
                    F[a] = t
                pos = 0
                for a in range(q):
                    for b in range(a + 1):
                        B[pos] = B[pos] + F[a] * F[b]
                        pos = pos + 1
            E = E + n_c
        add_tensor(n_a, B, N, tensor)
        N = N + 2 * n_a
    for pos in range(n_a * n_a):
        (<vecu*> s.f.tensor)[pos] = tensor[pos]


cdef inline void sweep_design(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s, int order) noexcept nogil:
    """An evaluation of responses on one design."""
    sweep_patterns(q, p, d, s)
    profile_value(&s.f, 1)
    if order == 2:
        sweep_curvature(q, p, d, s)
        profile_second(&s.f, 2)


cdef void evaluate_responses(const Batch* d, Lanes* s, int order) noexcept nogil:
    """The criterion of a block of responses at f.factor with its derivatives (order 1 or 2)."""
    if s.own != NULL:
        evaluate_problems(d, s, order)
        return
    if s.several != NULL:
        evaluate_factors(d, s, order)
        return
    if s.correlated != NULL:
        evaluate_correlated(d, s, order)
        return
    # constant sizes let the compiler unroll the shapes that nearly everyone uses
    if d.q == 1 and d.p == 1:
        sweep_design(1, 1, d, s, order)
    elif d.q == 1 and d.p == 2:
        sweep_design(1, 2, d, s, order)
    elif d.q == 1:
        sweep_design(1, d.p, d, s, order)
    elif d.q == 2 and d.p == 2:
        sweep_design(2, 2, d, s, order)
    elif d.q == 2 and d.p == 3:
        sweep_design(2, 3, d, s, order)
    elif d.q == 2 and d.p == 4:
        sweep_design(2, 4, d, s, order)
    elif d.q == 2:
        sweep_design(2, d.p, d, s, order)
    elif d.q == 3 and d.p == 3:
        sweep_design(3, 3, d, s, order)
    elif d.q == 3 and d.p == 4:
        sweep_design(3, 4, d, s, order)
    elif d.q == 3 and d.p == 6:
        sweep_design(3, 6, d, s, order)
    elif d.q == 3:
        sweep_design(3, d.p, d, s, order)
    else:
        sweep_design(d.q, d.p, d, s, order)
