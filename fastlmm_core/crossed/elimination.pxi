# Block elimination of the levels of several grouping factors, without Lambda and the identity in what is stored.
#
# A chain of factors, each nested in the next, is eliminated level by level, finest first; a level a touches one
# level of each coarser factor of the chain, and any levels of the other factors: the tail.  With K the products
# Z'V_e^-1 Z and C = Z'V_e^-1 [X y], V_e the covariance of the factors eliminated so far,
#
#     W = I + L'K_a L,   M_a = L W^-1 L',   P_a = (I + K_a G)^-1,   B_a = products of a with its neighbours
#     K_bc -= B_ab'M_a B_ac,   C_b -= B_ab'M_a C_a,   [X y]'[X y] -= C_a'M_a C_a,   log|V| += log|W|
#
# (Bates et al. 2015, J. Stat. Softw. 67(1), sec. 3.6, without the scaling by Lambda: singular Lambda is no exception).
# In each connected component of the tail, levels with few neighbours follow one by one in the same way
# (sparse.pxi); what is left, its core, is dense: S = I + L'K L = R R'.  On the way back
#
#     E_a = P_a (C_a - B_a u),  u_a = G E_a                                   (E = Z'V^-1 [X y], u = posterior means)
#     N_aa = P_a K_a - P_a B_a Q B_a'P_a',  cov(a, nbrs) = -M_a B_a Q,  Q = posterior covariance of the neighbours
#
# Matrices are row by row; of symmetric ones of the cores only the lower triangle counts (LAPACK's upper one).

cdef inline void subtract_crossed(Py_ssize_t m, Py_ssize_t n, Py_ssize_t l, const double* A, Py_ssize_t lda,
                                  const double* B, double* out) noexcept nogil:
    """out (n, l) -= A (m, n)' B (m, l)."""
    cdef Py_ssize_t i, j, r
    cdef double t
    for i in range(n):
        for r in range(m):
            t = A[r * lda + i]
            for j in range(l):
                out[i * l + j] -= t * B[r * l + j]


cdef void crossed(Py_ssize_t w, Py_ssize_t c, Py_ssize_t q, double* g, double* B, Py_ssize_t ldb, double* out
                  ) noexcept nogil:
    """out (w, c) = B (q, w)' g (q, c), by BLAS."""
    cdef int rows = <int> c, columns = <int> w, inner = <int> q, ld = <int> ldb
    cdef double one = 1.0, zero = 0.0
    cdef char plain = b'N', trans = b'T'
    dgemm(&plain, &trans, &rows, &columns, &inner, &one, g, &rows, B, &ld, &zero, out, &rows)


cdef void add_rows(Py_ssize_t q, Py_ssize_t c, Py_ssize_t w, double sign, const double* R, const int* nbr, double* B,
                   double* block, double* out) noexcept nogil:
    """out (q, c) += sign B (q, w) R[nbr] by BLAS."""
    cdef int rows = <int> c, columns = <int> q, inner = <int> w
    cdef double one = 1.0
    cdef char plain = b'N'
    cdef Py_ssize_t i
    for i in range(w):
        memcpy(block + i * c, R + nbr[i] * c, c * sizeof(double))
    dgemm(&plain, &plain, &rows, &columns, &inner, &sign, block, &rows, B, &inner, &one, out, &rows)


cdef inline void invert(Py_ssize_t q, double* A, double* out) noexcept nogil:
    """out = A^-1 by elimination with row exchanges; A is overwritten."""
    cdef Py_ssize_t i, j, r, pivot
    cdef double t
    if q == 1:
        out[0] = 1.0 / A[0]
        return
    for i in range(q):
        for j in range(q):
            out[i * q + j] = 1.0 if i == j else 0.0
    for r in range(q):
        pivot = r
        for i in range(r + 1, q):
            if fabs(A[i * q + r]) > fabs(A[pivot * q + r]):
                pivot = i
        if pivot != r:
            for j in range(q):
                t = A[r * q + j]
                A[r * q + j] = A[pivot * q + j]
                A[pivot * q + j] = t
                t = out[r * q + j]
                out[r * q + j] = out[pivot * q + j]
                out[pivot * q + j] = t
        t = 1.0 / A[r * q + r]
        for j in range(q):
            A[r * q + j] *= t
            out[r * q + j] *= t
        for i in range(q):
            if i != r:
                t = A[i * q + r]
                for j in range(q):
                    A[i * q + j] -= t * A[r * q + j]
                    out[i * q + j] -= t * out[r * q + j]


cdef inline double shrink(Py_ssize_t q, const double* K, const double* L, const double* G, double* M, double* P,
                          double* work) noexcept nogil:
    """M = L (I + L'KL)^-1 L', P = (I + KG)^-1; returns |I + L'KL|, not positive where K has lost its digits."""
    cdef Py_ssize_t i
    cdef double det
    if q == 1:
        det = 1.0 + L[0] * L[0] * K[0]
        M[0] = G[0] / det
        P[0] = 1.0 / (1.0 + K[0] * G[0])
        return det
    det = conditional_covariance(q, K, L, M, work)
    if not det > 0.0:
        return det
    multiply(q, q, q, K, G, work)
    for i in range(q):
        work[i * q + i] += 1.0
    invert(q, work, P)
    return det


cdef inline double eliminate_level(Py_ssize_t q, Elimination* e, Py_ssize_t s, Py_ssize_t a) noexcept nogil:
    """Take level a of stage s out of the products of its neighbours; returns |W|."""
    cdef Stage* f = &e.stage[s]
    cdef Stage* above
    cdef Stage* outer
    cdef Py_ssize_t qc = f.qc, w = 0, i, j, r, l, h, b, c, width, first, second, ld, stride, skip, base
    cdef double det, t
    cdef double* Bc = f.chain + a * q * qc
    cdef double* Bt = NULL
    cdef double* Dc = e.scratch
    cdef double* Dt
    cdef double* target
    cdef const int* nbr = NULL
    cdef Py_ssize_t lineage[MAX_FACTORS]
    det = shrink(q, f.own + a * q * q, f.factor, f.G, f.mid + a * q * q, f.proj + a * q * q, e.scratch)
    if not det > 0.0:
        return det
    Dt = Dc + q * qc
    multiply(q, q, qc, f.mid + a * q * q, Bc, Dc)
    if e.n_tails > 0:
        w = f.start[a + 1] - f.start[a]
        Bt = f.panel + q * f.start[a]
        nbr = f.nbr + f.start[a]
        multiply(q, q, w, f.mid + a * q * q, Bt, Dt)
        for i in range(w):
            e.place[i] = <int> i
    b = a
    for l in range(s, e.n_stages - 1):
        b = e.stage[l].parent[b]
        lineage[l + 1] = b
    first = 0
    b = a
    for l in range(s + 1, e.n_stages):
        above = &e.stage[l]
        # products of this ancestor with itself, with later ones, and with the tail
        target = above.own + lineage[l] * above.q * above.q
        for i in range(above.q):
            for r in range(q):
                t = Bc[r * qc + first + i]
                for j in range(above.q):
                    target[i * above.q + j] -= t * Dc[r * qc + first + j]
        second = first + above.q
        target = above.chain + lineage[l] * above.q * above.qc
        for i in range(above.q):
            for r in range(q):
                t = Bc[r * qc + first + i]
                for j in range(above.qc):
                    target[i * above.qc + j] -= t * Dc[r * qc + second + j]
        if w > 0:
            outer = &e.stage[l - 1]
            for i in range(w):
                e.place[i] = outer.up[outer.start[b] + e.place[i]]
            b = lineage[l]
            stride = above.start[b + 1] - above.start[b]
            target = above.panel + above.q * above.start[b]
            for i in range(above.q):
                for r in range(q):
                    t = Bc[r * qc + first + i]
                    for j in range(w):
                        target[i * stride + e.place[j]] -= t * Dt[r * w + j]
        first = second
    if w > 0:
        c = f.comp[a]
        ld = e.core_size[c]
        skip = f.skip[a]
        base = e.core_slot[c] - e.comp_slot[c]
        if e.block != NULL:
            crossed(w, w, q, Dt, Bt, w, e.block)
            for i in range(skip, w):
                target = e.K + e.comp_start[c] + (nbr[i] - base) * ld - base
                for j in range(skip, i + 1):
                    target[nbr[j]] -= e.block[i * w + j]
            return det
        for i in range(skip, w):
            target = e.K + e.comp_start[c] + (nbr[i] - base) * ld - base
            for r in range(q):
                t = Bt[r * w + i]
                for j in range(skip, i + 1):
                    target[nbr[j]] -= t * Dt[r * w + j]
    return det


cdef double eliminate(Elimination* e) noexcept nogil:
    """Eliminate the chain; returns sum log|W|, NaN where rounding has left no positive definite matrix."""
    cdef Py_ssize_t s, a
    cdef double det, product = 1.0, logdet = 0.0
    cdef Stage* f
    for s in range(e.n_stages):
        f = &e.stage[s]
        for a in range(f.m):
            if f.rowwise:
                det = shrink(1, f.own + a, f.factor, f.G, f.mid + a, f.proj + a, e.scratch)
            elif f.q == 1:
                det = eliminate_level(1, e, s, a)
            elif f.q == 2:
                det = eliminate_level(2, e, s, a)
            else:
                det = eliminate_level(f.q, e, s, a)
            if not det > 0.0:
                return NAN
            product *= det
            if product > 1e100:
                logdet += log(product)
                product = 1.0
        if f.rowwise:
            eliminate_by_rows(e, f)
    logdet += log(product)
    return logdet + eliminate_sparse(e) if e.sparse.n > 0 else logdet


cdef void eliminate_by_rows(Elimination* e, const Stage* f) noexcept nogil:
    """K -= sum B_a'M_a B_a, row by row of K."""
    cdef Py_ssize_t c, i, j, l, n, first, n_before
    cdef double t
    cdef double* row
    cdef const double* B
    cdef const int* nbr
    for c in range(e.n_comps):
        n = e.core_size[c]
        for i in range(n):
            row = e.K + e.comp_start[c] + i * n - (e.core_slot[c] - e.comp_slot[c])
            for l in range(f.back[e.core_slot[c] + i], f.back[e.core_slot[c] + i + 1]):
                first = f.start[f.level[l]] + f.skip[f.level[l]]
                nbr = f.nbr + first
                B = f.panel + first
                n_before = f.entry[l] - first + 1
                t = f.mid[f.level[l]] * f.panel[f.entry[l]]
                for j in range(n_before):
                    row[nbr[j]] -= t * B[j]


cdef void cover_by_rows(Elimination* e, Stage* f) noexcept nogil:
    """quad += B Q B' of every level, Q of the cores, row by row of it."""
    cdef Py_ssize_t c, i, j, l, n, first, before, base
    cdef double t, u
    cdef const double* row
    cdef const double* B
    cdef const int* nbr
    for c in range(e.n_comps):
        n = e.core_size[c]
        base = e.core_slot[c] - e.comp_slot[c]
        for i in range(n):
            row = e.cov + e.comp_start[c] + i * n - base
            for l in range(f.back[e.core_slot[c] + i], f.back[e.core_slot[c] + i + 1]):
                first = f.start[f.level[l]] + f.skip[f.level[l]]
                nbr = f.nbr + first
                B = f.panel + first
                before = f.entry[l] - first
                t = 0.0
                for j in range(before):
                    t += row[nbr[j]] * B[j]
                u = f.panel[f.entry[l]]
                f.quad[f.level[l]] += u * (2.0 * t + u * row[base + i])


cdef void restore(Elimination* e) noexcept nogil:
    """The products as given, before an elimination."""
    cdef Py_ssize_t s, t, a, i, j, c, r, ld, w, at, other
    cdef Stage* f
    cdef Tail* g
    cdef double* K
    for s in range(1, e.n_stages):
        f = &e.stage[s]
        memcpy(f.own, f.own0, f.m * f.q * f.q * sizeof(double))
        memcpy(f.chain, f.chain0, f.m * f.q * f.qc * sizeof(double))
        if e.n_tails > 0:
            memcpy(f.panel, f.panel0, f.start[f.m] * f.q * sizeof(double))
    memset(e.K, 0, e.n_dense * sizeof(double))
    for t in range(e.n_tails):
        g = &e.tail[t]
        for a in range(g.m):
            at = g.core[a]
            if at < 0:
                continue
            c = g.comp[a]
            ld = e.core_size[c]
            K = e.K + e.comp_start[c]
            for i in range(g.q):
                for j in range(i + 1):
                    K[(at + i) * ld + at + j] = g.own0[(a * g.q + i) * g.q + j]
                w = g.start[a + 1] - g.start[a]
                for r in range(w):
                    other = g.nbr[g.start[a] + r] - (e.core_slot[c] - e.comp_slot[c])
                    if other > at:
                        K[other * ld + at + i] = g.panel0[g.q * g.start[a] + i * w + r]
                    elif other >= 0:
                        K[(at + i) * ld + other] = g.panel0[g.q * g.start[a] + i * w + r]
    if e.sparse.n > 0:
        memcpy(e.sparse.own, e.sparse.own0, e.sparse.n_own * sizeof(double))
        memcpy(e.sparse.panel, e.sparse.panel0, e.sparse.n_panel * sizeof(double))
