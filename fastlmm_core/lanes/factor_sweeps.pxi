# The criterion of many responses with several grouping factors and its derivatives, by the equations of factors.pxi.


cdef inline vec weigh_patterns(const FactorDesign* d, FactorSpace* w, const vecu* factor) noexcept nogil:
    """s, a s^2 and a^2 s^3 of each pattern, tr N_00 and |N_00|^2 without the core; the logarithm of |V_1|."""
    cdef Py_ssize_t i
    cdef vecu* share = <vecu*> w.share
    cdef vec g, s, t, u, logdet, trace, square
    g = factor[0] * factor[0]
    logdet = VEC_SET(0.0)
    trace = VEC_SET(0.0)
    square = VEC_SET(0.0)
    for i in range(d.n_patterns):
        t = 1.0 + g * d.size[i]
        s = VEC_SET(1.0) / t
        u = d.size[i] * s
        logdet = logdet + d.count[i] * VEC_LOG(t)
        trace = trace + d.count[i] * u
        square = square + d.count[i] * u * u
        share[3 * i] = s
        share[3 * i + 1] = u * s
        share[3 * i + 2] = u * u * s
    (<vecu*> w.trace)[0] = trace
    (<vecu*> w.square)[0] = square
    return logdet


cdef inline void sum_pieces(Py_ssize_t pieces, const Py_ssize_t* pattern, const double* c, double within,
                            const vecu* share, vecu* out, vecu* first, vecu* second) noexcept nogil:
    """One element of B, M' and M'' of what is the same for all responses."""
    cdef Py_ssize_t i
    cdef const vecu* own
    cdef vec t0, t1, t2
    t0 = VEC_SET(within)
    t1 = VEC_SET(0.0)
    t2 = VEC_SET(0.0)
    for i in range(pieces):
        own = share + 3 * pattern[i]
        t0 = t0 + c[i] * own[0]
        t1 = t1 + c[i] * own[1]
        t2 = t2 + c[i] * own[2]
    out[0] = t0
    first[0] = t1
    second[0] = t2


cdef inline void sum_lanes(Py_ssize_t pieces, const Py_ssize_t* pattern, const vecu* c, const vecu* within,
                           const vecu* share, vecu* out, vecu* first, vecu* second) noexcept nogil:
    """The same of what differs."""
    cdef Py_ssize_t i
    cdef const vecu* own
    cdef vec t0, t1, t2
    t0 = within[0]
    t1 = VEC_SET(0.0)
    t2 = VEC_SET(0.0)
    for i in range(pieces):
        own = share + 3 * pattern[i]
        t0 = t0 + c[i] * own[0]
        t1 = t1 + c[i] * own[1]
        t2 = t2 + c[i] * own[2]
    out[0] = t0
    first[0] = t1
    second[0] = t2


cdef inline void gather_part(Py_ssize_t J, Py_ssize_t p, FactorSpace* w, Py_ssize_t part) noexcept nogil:
    """B, M' and M'' of the core of a part, and of the core with [X y]."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t k = p + 1, pieces = d.piece[part + 1] - d.piece[part], i, j, pos = 0
    cdef const Py_ssize_t* pattern = d.pattern + d.piece[part]
    cdef const double* cc = d.piece_cc + d.cc_at[part]
    cdef const double* within_cc = d.within_cc + d.square_at[part]
    cdef const double* cx = d.piece_cx + d.piece_at[part] * p
    cdef const double* within_cx = d.within_cx + d.core[part] * p
    cdef const vecu* cy = (<vecu*> w.piece_cy) + d.piece_at[part]
    cdef const vecu* within_cy = (<vecu*> w.within_cy) + d.core[part]
    cdef const vecu* share = <vecu*> w.share
    cdef vecu* B = <vecu*> w.B
    cdef vecu* M1 = <vecu*> w.M1
    cdef vecu* M2 = <vecu*> w.M2
    for i in range(J):
        for j in range(i + 1):
            sum_pieces(pieces, pattern, cc + pos * pieces, within_cc[pos], share, B + i * J + j, M1 + i * J + j,
                       M2 + i * J + j)
            B[j * J + i] = B[i * J + j]
            M1[j * J + i] = M1[i * J + j]
            M2[j * J + i] = M2[i * J + j]
            pos = pos + 1
    for i in range(J):
        for j in range(p):
            sum_pieces(pieces, pattern, cx + (i * p + j) * pieces, within_cx[i * p + j], share,
                       (<vecu*> w.Bk) + i * k + j, (<vecu*> w.M1k) + i * k + j, (<vecu*> w.M2k) + i * k + j)
        sum_lanes(pieces, pattern, cy + i * pieces, within_cy + i, share, (<vecu*> w.Bk) + i * k + p,
                  (<vecu*> w.M1k) + i * k + p, (<vecu*> w.M2k) + i * k + p)


cdef inline void factor_part(Py_ssize_t J, Py_ssize_t k, FactorSpace* w, vec* product, vec* exponent, vecu* H
                             ) noexcept nogil:
    """W = M M', D = M^-1 L_2 B_2k, which is taken out of H; the determinant to product and exponent."""
    cdef Py_ssize_t i, j, l, pos = 0
    cdef vecu* W = <vecu*> w.W
    cdef vecu* D = <vecu*> w.D
    cdef vecu* root = <vecu*> w.root
    cdef vecu* sd = <vecu*> w.sd
    cdef vec t, u
    for i in range(J):
        for j in range(i + 1):
            W[i * J + j] = sd[i] * (<vecu*> w.B)[i * J + j] * sd[j]
        W[i * J + i] = W[i * J + i] + 1.0
        for j in range(k):
            D[i * k + j] = sd[i] * (<vecu*> w.Bk)[i * k + j]
    for i in range(J):
        t = W[i * J + i]
        product[0] = product[0] * t
        VEC_SPLIT(product[0], exponent[0])
        u = VEC_SET(1.0) / VEC_SQRT(t)
        root[i] = u
        for l in range(k):
            D[i * k + l] = D[i * k + l] * u
        for j in range(i + 1, J):
            W[j * J + i] = W[j * J + i] * u
        for j in range(i + 1, J):
            t = W[j * J + i]
            for l in range(i + 1, j + 1):
                W[j * J + l] = W[j * J + l] - t * W[l * J + i]
            for l in range(k):
                D[j * k + l] = D[j * k + l] - t * D[i * k + l]
    for i in range(k):
        for j in range(i + 1):
            t = H[pos]
            for l in range(J):
                t = t - D[l * k + i] * D[l * k + j]
            H[pos] = t
            pos = pos + 1


cdef inline void invert_part(Py_ssize_t J, FactorSpace* w) noexcept nogil:
    """P from the factor M of W, by way of M^-1 (upper half of N) and W^-1."""
    cdef Py_ssize_t i, j, l
    cdef vecu* W = <vecu*> w.W
    cdef vecu* V = <vecu*> w.N
    cdef vecu* P = <vecu*> w.P
    cdef vecu* root = <vecu*> w.root
    cdef vecu* sd = <vecu*> w.sd
    cdef vec t
    # row j of V: column j of M^-1, from the diagonal on
    for j in range(J):
        V[j * J + j] = root[j]
        for i in range(j + 1, J):
            t = VEC_SET(0.0)
            for l in range(j, i):
                t = t - W[i * J + l] * V[j * J + l]
            V[j * J + i] = t * root[i]
    for i in range(J):
        for j in range(i + 1):
            t = VEC_SET(0.0)
            for l in range(i, J):
                t = t + V[i * J + l] * V[j * J + l]
            W[i * J + j] = t
    for i in range(J):
        root[i] = VEC_SET(1.0) / sd[i]
    for i in range(J):
        for j in range(i + 1):
            t = W[i * J + j]
            P[i * J + j] = t * sd[j] * root[i]
            P[j * J + i] = t * sd[i] * root[j]


cdef inline void multiply_part(Py_ssize_t J, Py_ssize_t m, const vecu* A, const vecu* C, vecu* out) noexcept nogil:
    """out (J, m) = A (J, J) C (J, m)."""
    cdef Py_ssize_t i, j, l
    cdef vec t
    for i in range(J):
        for j in range(m):
            t = VEC_SET(0.0)
            for l in range(J):
                t = t + A[i * J + l] * C[l * m + j]
            out[i * m + j] = t


cdef inline void solve_part(Py_ssize_t J, Py_ssize_t k, FactorSpace* w) noexcept nogil:
    """N, Y, E, T, X and P X of a part."""
    cdef Py_ssize_t i, j, l
    cdef vecu* P = <vecu*> w.P
    cdef vecu* B = <vecu*> w.B
    cdef vecu* N = <vecu*> w.N
    cdef vecu* T = <vecu*> w.T
    cdef vecu* sd = <vecu*> w.sd
    cdef vec t, g
    multiply_part(J, k, P, <vecu*> w.Bk, <vecu*> w.E)
    multiply_part(J, J, P, <vecu*> w.M1, <vecu*> w.Y)
    for i in range(J):
        for j in range(i + 1):
            t = VEC_SET(0.0)
            for l in range(J):
                t = t + P[i * J + l] * B[l * J + j]
            N[i * J + j] = t
            N[j * J + i] = t
        g = sd[i] * sd[i]
        for j in range(k):
            T[i * k + j] = g * (<vecu*> w.E)[i * k + j]
    multiply_part(J, k, <vecu*> w.M1, T, <vecu*> w.X)
    for i in range(J * k):
        (<vecu*> w.X)[i] = (<vecu*> w.M1k)[i] - (<vecu*> w.X)[i]
    multiply_part(J, k, P, <vecu*> w.X, <vecu*> w.PX)


cdef inline void add_traces(Py_ssize_t J, FactorSpace* w, const Py_ssize_t* term) noexcept nogil:
    """tr N_tt and |N_tu|^2 of a part."""
    cdef Py_ssize_t i, j
    cdef vecu* trace = <vecu*> w.trace
    cdef vecu* square = <vecu*> w.square
    cdef vecu* P = <vecu*> w.P
    cdef vecu* N = <vecu*> w.N
    cdef vecu* Y = <vecu*> w.Y
    cdef vecu* M2 = <vecu*> w.M2
    cdef vecu* sd = <vecu*> w.sd
    cdef vecu* place
    cdef vec t, u, g, first, own
    first = VEC_SET(0.0)
    own = VEC_SET(0.0)
    for i in range(J):
        g = sd[i] * sd[i]
        first = first + g * Y[i * J + i]
        trace[term[i]] = trace[term[i]] + N[i * J + i]
        t = VEC_SET(0.0)
        u = VEC_SET(0.0)
        for j in range(J):
            t = t + sd[j] * sd[j] * Y[i * J + j] * Y[j * J + i] - 2.0 * P[i * J + j] * M2[i * J + j]
            u = u + Y[i * J + j] * P[i * J + j]
        own = own + g * t
        place = square + term[i] * (term[i] + 1) // 2
        place[0] = place[0] + u
        for j in range(J):
            if term[j] <= term[i]:
                place[term[j]] = place[term[j]] + N[i * J + j] * N[i * J + j]
    trace[0] = trace[0] - first
    square[0] = square[0] + own


cdef inline void add_scores(Py_ssize_t J, Py_ssize_t k, FactorSpace* w, const Py_ssize_t* term) noexcept nogil:
    """J_t and the R_tu that the leaves have part in."""
    cdef Py_ssize_t i, j, l
    cdef vecu* E = <vecu*> w.E
    cdef vecu* T = <vecu*> w.T
    cdef vecu* X = <vecu*> w.X
    cdef vecu* PX = <vecu*> w.PX
    cdef vecu* M1k = <vecu*> w.M1k
    cdef vecu* M2k = <vecu*> w.M2k
    cdef vecu* X2 = <vecu*> w.D
    cdef vecu* cross
    cdef vecu* both = <vecu*> w.both
    cdef vec t, u, g
    multiply_part(J, k, <vecu*> w.M2, T, X2)
    for i in range(J * k):
        X2[i] = M2k[i] - X2[i]
    for j in range(k):
        for l in range(k):
            t = VEC_SET(0.0)
            u = VEC_SET(0.0)
            for i in range(J):
                g = (<vecu*> w.sd)[i] * (<vecu*> w.sd)[i]
                t = t + M1k[i * k + j] * T[i * k + l] + T[i * k + j] * X[i * k + l]
                u = u + M2k[i * k + j] * T[i * k + l] + T[i * k + j] * X2[i * k + l] + g * X[i * k + j] * PX[i * k + l]
            (<vecu*> w.cross)[j * k + l] = (<vecu*> w.cross)[j * k + l] - t
            both[j * k + l] = both[j * k + l] - u
    for i in range(J):
        cross = (<vecu*> w.cross) + term[i] * k * k
        both = (<vecu*> w.both) + term[i] * (term[i] + 1) // 2 * k * k
        for j in range(k):
            for l in range(k):
                cross[j * k + l] = cross[j * k + l] + E[i * k + j] * E[i * k + l]
                both[j * k + l] = both[j * k + l] + E[i * k + j] * PX[i * k + l]


cdef inline void add_core(Py_ssize_t J, Py_ssize_t k, FactorSpace* w, const Py_ssize_t* term) noexcept nogil:
    """R_tu of the terms in the core."""
    cdef Py_ssize_t i, j, l, u
    cdef vecu* E = <vecu*> w.E
    cdef vecu* N = <vecu*> w.N
    cdef vecu* half = <vecu*> w.X
    cdef vecu* both
    cdef vec t
    for u in range(1, w.d.n_terms):
        for i in range(J):
            if term[i] < u:
                continue
            for l in range(k):
                t = VEC_SET(0.0)
                for j in range(J):
                    if term[j] == u:
                        t = t + N[i * J + j] * E[j * k + l]
                half[l] = t
            both = (<vecu*> w.both) + (term[i] * (term[i] + 1) // 2 + u) * k * k
            for j in range(k):
                for l in range(k):
                    both[j * k + l] = both[j * k + l] + E[i * k + j] * half[l]


cdef inline void sweep_part(Py_ssize_t J, Py_ssize_t p, FactorSpace* w, Py_ssize_t part, const Gls* gls, vec* product,
                            vec* exponent, bint derivatives) noexcept nogil:
    cdef Py_ssize_t k = p + 1
    cdef const Py_ssize_t* term = w.d.term + w.d.core[part]
    gather_part(J, p, w, part)
    factor_part(J, k, w, product, exponent, <vecu*> gls.H)
    if derivatives:
        invert_part(J, w)
        solve_part(J, k, w)
        add_traces(J, w, term)
        add_scores(J, k, w, term)
        add_core(J, k, w, term)


cdef void begin_sums(const Batch* b, Lanes* s, FactorSpace* w) noexcept nogil:
    """B, M' and M'' of [X y] to H, J_0 and R_00; nothing to the others."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t p = b.p, k = p + 1, n = d.n_terms, i, j, g, pos = 0
    cdef vecu* H = <vecu*> s.f.gls.H
    cdef vecu* cross = <vecu*> w.cross
    cdef vecu* both = <vecu*> w.both
    cdef const vecu* share = <vecu*> w.share
    cdef vec t, t0, t1, t2
    for i in range(1, n):
        (<vecu*> w.trace)[i] = VEC_SET(0.0)
    for i in range(1, n * (n + 1) // 2):
        (<vecu*> w.square)[i] = VEC_SET(0.0)
    for i in range(n * k * k):
        cross[i] = VEC_SET(0.0)
    for i in range(n * (n + 1) // 2 * k * k):
        both[i] = VEC_SET(0.0)
    for i in range(k):
        for j in range(i + 1):
            t0 = VEC_SET(d.within_xx[pos]) if i < p else (<vecu*> s.within)[j]
            t1 = VEC_SET(0.0)
            t2 = VEC_SET(0.0)
            for g in range(d.n_patterns):
                if i < p:
                    t = VEC_SET(d.pattern_xx[pos * d.n_patterns + g])
                else:
                    t = (<vecu*> w.pattern_xy)[g * p + j] if j < p else (<vecu*> w.pattern_yy)[g]
                t0 = t0 + t * share[3 * g]
                t1 = t1 + t * share[3 * g + 1]
                t2 = t2 + t * share[3 * g + 2]
            H[pos] = t0
            cross[i * k + j] = t1
            cross[j * k + i] = t1
            both[i * k + j] = t2
            both[j * k + i] = t2
            pos = pos + 1


cdef void sweep_factors(const Batch* b, Lanes* s, FactorSpace* w, bint derivatives) noexcept nogil:
    """Everything but the algebra of [X y] at f.factor (whose diagonal is theta)."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t p = b.p, part, i, J
    cdef vecu* factor = <vecu*> s.f.factor
    cdef vecu* sd = <vecu*> w.sd
    cdef vecu* theta = <vecu*> w.vectors
    cdef vec logdet, product, exponent, t
    for i in range(d.n_terms):
        t = VEC_ABS(factor[i * d.n_terms + i])
        theta[i] = VEC_WHERE_POSITIVE(t - NO_VARIANCE, t, VEC_SET(NO_VARIANCE))
    logdet = weigh_patterns(d, w, theta)
    begin_sums(b, s, w)
    product = VEC_SET(1.0)
    exponent = VEC_SET(0.0)
    for part in range(d.n_parts):
        J = d.core[part + 1] - d.core[part]
        for i in range(J):
            sd[i] = theta[d.term[d.core[part] + i]]
        if J == 1:
            sweep_part(1, p, w, part, &s.f.gls, &product, &exponent, derivatives)
        else:
            sweep_part(J, p, w, part, &s.f.gls, &product, &exponent, derivatives)
    (<vecu*> s.f.gls.logdet)[0] = logdet + VEC_LOG(product) + exponent * M_LN2


cdef inline vec weigh(Py_ssize_t k, const vecu* M, const vecu* J) noexcept nogil:
    """tr(M J)."""
    cdef Py_ssize_t i
    cdef vec t = VEC_SET(0.0)
    for i in range(k * k):
        t = t + M[i] * J[i]
    return t


cdef void differentiate_factors(const Batch* b, Lanes* s, FactorSpace* w, int order) noexcept nogil:
    """Gradient and Hessian, and what contrasts read: g, gram, jac and vectors of the profile."""
    cdef Py_ssize_t n = w.d.n_terms, p = b.p, k = p + 1, t, u, i, j, l, pos
    cdef Profile* f = &s.f
    cdef vecu* weight = <vecu*> f.gls.weight
    cdef vecu* M = <vecu*> f.M
    cdef vecu* g = <vecu*> f.g
    cdef vecu* theta = <vecu*> f.factor
    cdef vecu* curve = <vecu*> w.curve
    cdef vecu* v = <vecu*> w.vectors
    cdef vecu* J
    cdef vec x
    gls_weight(k, &f.gls)
    for i in range(k):
        for j in range(k):
            x = VEC_SET(0.0)
            for l in range(max(i, j) if b.reml else p, k):
                x = x + weight[i * k + l] * weight[j * k + l]
            M[i * k + j] = x * 0.5
    for i in range(n * n):
        g[i] = VEC_SET(0.0)
    for t in range(n):
        g[t * n + t] = (<vecu*> w.trace)[t] - weigh(k, M, (<vecu*> w.cross) + t * k * k)
        (<vecu*> f.grad)[t] = 2.0 * theta[t * n + t] * g[t * n + t]
    if order < 2:
        return
    for t in range(n):
        J = (<vecu*> w.directions) + t * k * k
        for i in range(k):
            x = VEC_SET(0.0)
            for j in range(k):
                # rounding leaves the two halves of J_0 different
                J[i * k + j] = (<vecu*> w.cross)[(t * k + max(i, j)) * k + min(i, j)]
                x = x + J[i * k + j] * (<vecu*> f.gls.b)[j]
            v[t * k + i] = x
        fill_profile(b, s, w, t)
        gls_direction(k, &f.gls, v + t * k)
        (<vecu*> f.vectors)[(t * (t + 3) // 2) * k + p] = v[t * k + p]
        if b.reml:
            gls_within(k, &f.gls, J)
        for u in range(t + 1):
            pos = t * (t + 1) // 2 + u
            x = 2.0 * weigh(k, M, (<vecu*> w.both) + pos * k * k) - (<vecu*> w.square)[pos]
            curve[t * n + u] = x
            curve[u * n + t] = x
    gls_curve(k, n, &f.gls, 2.0, v, <vecu*> w.directions if b.reml else NULL, curve)
    for t in range(n):
        for u in range(n):
            (<vecu*> f.hess)[t * n + u] = 4.0 * theta[t * n + t] * theta[u * n + u] * curve[t * n + u]
        (<vecu*> f.hess)[t * n + t] = (<vecu*> f.hess)[t * n + t] + 2.0 * g[t * n + t]


cdef void fill_profile(const Batch* b, Lanes* s, FactorSpace* w, Py_ssize_t t) noexcept nogil:
    """J_t and the chain rule of a term as `along_theta` and `shift_of` read them; between terms they are zero."""
    cdef Py_ssize_t n = w.d.n_terms, k = b.p + 1, i, j, l
    cdef vecu* gram = <vecu*> s.f.gram
    cdef vecu* jac = <vecu*> s.f.jac
    for i in range(k):
        l = t * k + i
        for j in range(t * k):
            gram[l * (l + 1) // 2 + j] = VEC_SET(0.0)
        for j in range(i + 1):
            gram[l * (l + 1) // 2 + t * k + j] = (<vecu*> w.cross)[(t * k + i) * k + j]
    for i in range(t + 1):
        l = t * (t + 1) // 2 + i
        for j in range(n):
            jac[l * n + j] = VEC_SET(0.0)
        (<vecu*> s.f.vectors)[l * k + b.p] = VEC_SET(0.0)
    jac[(t * (t + 1) // 2 + t) * n + t] = 2.0 * (<vecu*> s.f.factor)[t * n + t]


cdef void evaluate_factors(const Batch* b, Lanes* s, int order) noexcept nogil:
    """The criterion of a block of responses at f.factor with its derivatives."""
    cdef FactorSpace* w = <FactorSpace*> s.several
    sweep_factors(b, s, w, order > 0)
    gls_value(b.p + 1, &s.f.gls)
    if order > 0:
        differentiate_factors(b, s, w, order)
