# Second derivatives where factors are nested in each other, from the records that the sweeps of families.pxi leave.
#
# Sums along directions D, F of G (Z D Z' of every level of a stage) go up again: with n, M, P, Q of families.pxi,
# f = E w and
#
#     F at this stage:   nu_F = n F n,       rho_F = n F f          A_F = sum nu_F, R_F = sum rho_F over the children
#     F below:           nu_F = P A_F P',    rho_F = P R_F
#
# each level adds to  tr(B D N F), B = -N + F F' for the f of all levels side by side,
#
#     D at this stage:   -tr(D nu_F) + 2 tr(D n Q nu_F) + tr(f'D rho_F)
#     both below:        -tr(A_D M A_F (M + 2 P'Q P)) - tr(R_D'M R_F)
#
# uses   chain_square, chain_product, chain_parents, chain_scatter (families.pxi); ChainStage, ChainSums
# gives  chain_curve; chain_second (a kernel of nested/engine.pyx)


# The directions of a sweep, as constants where they are known.
cdef struct Directions:
    Py_ssize_t q, k
    Py_ssize_t below            # directions of finer stages
    Py_ssize_t first            # column of f from which B = F F' counts
    bint traces                 # whether B has the part -N


# What a level that is not of the finest stage has besides.
cdef struct Finer:
    const vecu* M
    const vecu* P
    const vecu* sums            # A_F of the directions of finer stages, then their R_F


cdef inline void chain_pairs(Directions s, Py_ssize_t F, const vecu* f, vecu* out, vecu* acc, vecu* X) noexcept nogil:
    """Add nu_F and rho_F to out, and F with each direction of this stage from F on to acc."""
    cdef Py_ssize_t q = s.q, k = s.k, n_a = q * (q + 1) // 2, n_c = q * k, d = s.below + n_a, D, a, b, j, pos
    cdef vecu* nu = X + q * q
    cdef vecu* B = nu + q * q
    cdef vecu* rho = X + 6 * q * q
    cdef vec t
    pos = 0
    for a in range(q):
        if s.traces:
            for b in range(a + 1):
                out[F * n_a + pos] = out[F * n_a + pos] + nu[a * q + b]
                pos = pos + 1
        for j in range(s.first, k):
            out[d * n_a + F * n_c + a * k + j] = out[d * n_a + F * n_c + a * k + j] + rho[a * k + j]
    if s.traces:
        chain_product(q, q, X, nu, B)
    D = s.below
    for a in range(q):
        for b in range(a + 1):
            if D >= F:
                t = VEC_SET(0.0)
                if s.traces:
                    t = B[a * q + a] if a == b else B[a * q + b] + B[b * q + a]
                for j in range(s.first, k):
                    t = t + f[a * k + j] * rho[b * k + j]
                    if a != b:
                        t = t + f[b * k + j] * rho[a * k + j]
                acc[D * d + F] = acc[D * d + F] + t
            D = D + 1


cdef inline void chain_finer(Directions s, const vecu* Q, const vecu* f, const Finer* x, vecu* out, vecu* acc, vecu* X
                             ) noexcept nogil:
    """Directions of finer stages: with each other, and with those of this stage."""
    cdef Py_ssize_t q = s.q, k = s.k, n_a = q * (q + 1) // 2, n_c = q * k, d = s.below + n_a, D, F, a, b, j, l, pos
    cdef vec t
    cdef vecu* nu = X + q * q
    cdef vecu* B = nu + q * q
    cdef vecu* Z = B + q * q            # M + 2 P'Q P
    cdef vecu* A = Z + q * q
    cdef vecu* T = A + q * q
    cdef vecu* rho = T + q * q
    cdef const vecu* M = x.M
    cdef const vecu* P = x.P
    cdef const vecu* sums = x.sums
    cdef const vecu* R = sums + s.below * n_a
    if s.traces:
        chain_product(q, q, Q, P, T)
        for a in range(q):
            for b in range(q):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + P[l * q + a] * T[l * q + b]
                Z[a * q + b] = M[a * q + b] + t + t
    for F in range(s.below):
        if s.traces:
            chain_square(q, sums + F * n_a, A)
            chain_product(q, q, M, A, T)
            chain_product(q, q, T, Z, B)
        chain_product(q, k, M, R + F * n_c, rho)
        for D in range(F + 1):
            t = VEC_SET(0.0)
            if s.traces:
                pos = 0
                for a in range(q):
                    for b in range(a):
                        t = t - sums[D * n_a + pos] * (B[a * q + b] + B[b * q + a])
                        pos = pos + 1
                    t = t - sums[D * n_a + pos] * B[a * q + a]
                    pos = pos + 1
            for a in range(q):
                for j in range(s.first, k):
                    t = t - R[D * n_c + a * k + j] * rho[a * k + j]
            acc[F * d + D] = acc[F * d + D] + t
        if s.traces:
            chain_product(q, q, P, A, T)
            for a in range(q):
                for b in range(q):
                    t = VEC_SET(0.0)
                    for l in range(q):
                        t = t + T[a * q + l] * P[b * q + l]
                    nu[a * q + b] = t
        chain_product(q, k, P, R + F * n_c, rho)
        chain_pairs(s, F, f, out, acc, X)


cdef inline void chain_curve(Directions s, const vecu* n, const vecu* Q, const vecu* f, const Finer* x, vecu* out,
                             vecu* acc, vecu* X) noexcept nogil:
    """Second derivatives of one level, added to acc (d, d; lower triangle); nu_F and rho_F are added to out.

    d = below + n_a directions, those of the finer stages first; out holds nu_F of all, then rho_F.  Without `traces` B
    is F F' alone, and nu_F is not needed.
    X: 6 q^2 + q k vectors of work space, the first of which take 2 n Q - I.
    """
    cdef Py_ssize_t q = s.q, k = s.k, F = s.below, a, b, i, j, l
    cdef vec t
    cdef vecu* nu = X + q * q
    cdef vecu* rho = X + 6 * q * q
    if s.traces:
        chain_product(q, q, n, Q, X)
        for a in range(q):
            for b in range(q):
                X[a * q + b] = X[a * q + b] + X[a * q + b]
            X[a * q + a] = X[a * q + a] - 1.0
    if s.below > 0:
        chain_finer(s, Q, f, x, out, acc, X)
    for i in range(q):
        for l in range(i + 1):
            for a in range(q):
                for b in range(q if s.traces else 0):
                    t = n[a * q + i] * n[b * q + l]
                    nu[a * q + b] = t if i == l else t + n[a * q + l] * n[b * q + i]
                for j in range(s.first, k):
                    t = n[a * q + i] * f[l * k + j]
                    rho[a * k + j] = t if i == l else t + n[a * q + l] * f[i * k + j]
            chain_pairs(s, F, f, out, acc, X)
            F = F + 1


cdef inline void chain_second_of(Directions s, const ChainStage* stage, double* curve, double* scratch) noexcept nogil:
    cdef Py_ssize_t q = s.q, k = s.k, n_a = q * (q + 1) // 2, n_c = q * k, d = s.below + n_a, block, v, pos
    cdef vecu* Qp = <vecu*> scratch
    cdef vecu* Q = Qp + n_a
    cdef vecu* nn = Q + q * q
    cdef vecu* M = nn + q * q
    cdef vecu* acc = M + q * q
    cdef vecu* out = acc + d * d
    cdef vecu* work = out + d * (n_a + n_c)
    cdef vecu* record
    cdef const vecu* f
    cdef Finer x
    for pos in range(d * d):
        acc[pos] = VEC_SET(0.0)
    for block in range(stage.n_blocks):
        chain_parents(q, k, stage, block, Qp, Q, NULL)
        for pos in range(d * (n_a + n_c)):
            out[pos] = VEC_SET(0.0)
        for v in range(stage.start[block], stage.start[block + 1]):
            record = (<vecu*> stage.record) + v * stage.stride
            chain_square(q, record + 2 * (n_a + n_c), nn)
            chain_square(q, record + 3 * (n_a + n_c), M)
            x.M = M
            x.P = record + 3 * (n_a + n_c) + n_a
            f = x.P + q * q + n_a + n_c
            x.sums = f + n_c
            chain_curve(s, nn, Q, f, &x, out, acc, work)
        if stage.parent != NULL:
            chain_scatter(stage, block, stage.above_sums, d * (n_a + n_c), out)
    for pos in range(d * d):
        curve[pos] = vec_sum(acc + pos)


cdef void chain_second(const Shape* shape, const ChainStage* stage, const ChainSums* sums, double* scratch
                       ) noexcept nogil:
    """tr(B D N F) of a stage that is not the finest, (d, d; lower triangle) for the d directions of it and finer ones.

    scratch: LANES (10 q^2 + q k + n_a + d^2 + d (n_a + q k)) doubles, d = (level + 1) n_a.
    """
    cdef Py_ssize_t below = stage.level * shape.n_a, first = sums.forms
    cdef bint traces = sums.traces
    if shape.q == 2 and shape.k == 3 and below == 3 and first == 2 and not traces:
        chain_second_of(Directions(2, 3, 3, 2, False), stage, sums.curve, scratch)
    elif shape.q == 2 and shape.k == 3 and below == 3 and first == 0 and traces:
        chain_second_of(Directions(2, 3, 3, 0, True), stage, sums.curve, scratch)
    else:
        chain_second_of(Directions(shape.q, shape.k, below, first, traces), stage, sums.curve, scratch)


offered.chain_second = &chain_second
