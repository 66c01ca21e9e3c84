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
#
# uses   the structs; parts.h; multiply, conditional_covariance (small/conditional.pxd); eliminate_sparse (sparse.pxi);
#        eliminate_together (together.pxi)
# gives  restore, eliminate: M_a, P_a of the chain, and K of the cores; shrink, find_reach, crossed, add_rows,
#        subtract_crossed, cover_by_rows

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


cdef void add_rows(Py_ssize_t q, Py_ssize_t c, double sign, const double* R, const Reach* x, double* block, double* out
                   ) noexcept nogil:
    """out (q, c) += sign B (q, w) R[nbr], the tail's part of B, by BLAS."""
    cdef int rows = <int> c, columns = <int> q, inner = <int> x.w
    cdef double one = 1.0
    cdef char plain = b'N'
    cdef Py_ssize_t i
    for i in range(x.w):
        memcpy(block + i * c, R + x.nbr[i] * c, c * sizeof(double))
    dgemm(&plain, &plain, &rows, &columns, &inner, &sign, block, &rows, x.panel, &inner, &one, out, &rows)


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


cdef inline void find_reach(Py_ssize_t q, const Elimination* e, Py_ssize_t s, Py_ssize_t a, double* out, Reach* x
                            ) noexcept nogil:
    """Where level a of stage s leads; out takes products with all of that (q, qc + w)."""
    cdef const Stage* f = &e.stage[s]
    cdef Py_ssize_t l, b = a
    for l in range(s, e.n_stages - 1):
        b = e.stage[l].parent[b]
        x.ancestor[l + 1] = b
    x.chain = f.chain + a * q * f.qc
    x.chain_out = out
    x.panel_out = out + q * f.qc
    x.w = 0
    x.nbr = NULL
    x.panel = NULL
    if e.n_tails > 0:
        x.w = f.start[a + 1] - f.start[a]
        x.nbr = f.nbr + f.start[a]
        x.panel = f.panel + q * f.start[a]


cdef inline double eliminate_level(Py_ssize_t q, Elimination* e, Py_ssize_t s, Py_ssize_t a) noexcept nogil:
    """Take level a of stage s out of the products of its neighbours; returns |W|."""
    cdef Stage* f = &e.stage[s]
    cdef double* M = f.mid + a * q * q
    cdef double det
    cdef Reach x
    det = shrink(q, f.own + a * q * q, f.factor, f.G, M, f.proj + a * q * q, e.scratch)
    if not det > 0.0:
        return det
    find_reach(q, e, s, a, e.scratch, &x)
    multiply(q, q, f.qc, M, x.chain, x.chain_out)
    multiply(q, q, x.w, M, x.panel, x.panel_out)
    take_from_ancestors(q, e, s, a, &x)
    if x.w > 0:
        take_from_core(q, e, f.comp[a], f.skip[a], &x)
    return det


cdef inline void take_from_ancestors(Py_ssize_t q, Elimination* e, Py_ssize_t s, Py_ssize_t a, const Reach* x
                                     ) noexcept nogil:
    """K_bc -= B_ab'M_a B_ac for the ancestors b of a: with b itself, with later ones, and with the tail."""
    cdef Py_ssize_t qc = e.stage[s].qc, w = x.w, i, j, r, l, b = a, first = 0, second, stride
    cdef const Stage* above
    cdef const Stage* outer
    cdef double* target
    cdef double t
    for i in range(w):
        e.place[i] = <int> i
    for l in range(s + 1, e.n_stages):
        above = &e.stage[l]
        target = above.own + x.ancestor[l] * above.q * above.q
        for i in range(above.q):
            for r in range(q):
                t = x.chain[r * qc + first + i]
                for j in range(above.q):
                    target[i * above.q + j] -= t * x.chain_out[r * qc + first + j]
        second = first + above.q
        target = above.chain + x.ancestor[l] * above.q * above.qc
        for i in range(above.q):
            for r in range(q):
                t = x.chain[r * qc + first + i]
                for j in range(above.qc):
                    target[i * above.qc + j] -= t * x.chain_out[r * qc + second + j]
        if w > 0:
            outer = &e.stage[l - 1]
            for i in range(w):
                e.place[i] = outer.up[outer.start[b] + e.place[i]]
            b = x.ancestor[l]
            stride = above.start[b + 1] - above.start[b]
            target = above.panel + above.q * above.start[b]
            for i in range(above.q):
                for r in range(q):
                    t = x.chain[r * qc + first + i]
                    for j in range(w):
                        target[i * stride + e.place[j]] -= t * x.panel_out[r * w + j]
        first = second


cdef inline void take_from_core(Py_ssize_t q, Elimination* e, Py_ssize_t c, Py_ssize_t skip, const Reach* x
                                ) noexcept nogil:
    """K -= B_a'M_a B_a for the neighbours from `skip` on, in the core of component c."""
    cdef Py_ssize_t ld = e.core_size[c], base = e.core_slot[c] - e.comp_slot[c], w = x.w, i, j, r
    cdef double* target
    cdef double t
    if e.block != NULL:
        crossed(w, w, q, x.panel_out, x.panel, w, e.block)
        for i in range(skip, w):
            target = e.K + e.comp_start[c] + (x.nbr[i] - base) * ld - base
            for j in range(skip, i + 1):
                target[x.nbr[j]] -= e.block[i * w + j]
        return
    for i in range(skip, w):
        target = e.K + e.comp_start[c] + (x.nbr[i] - base) * ld - base
        for r in range(q):
            t = x.panel[r * w + i]
            for j in range(skip, i + 1):
                target[x.nbr[j]] -= t * x.panel_out[r * w + j]


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
            elif f.whole != NULL:
                det = shrink(f.q, f.own + a * f.q * f.q, f.factor, f.G, f.mid + a * f.q * f.q, f.proj + a * f.q * f.q,
                             e.scratch)
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
        if f.whole != NULL:
            eliminate_together(e, f)
    logdet += log(product)
    return logdet + eliminate_sparse(e) if e.sparse.n > 0 else logdet


# Levels that are eliminated, or covered, row by row of the cores.
cdef struct ByRows:
    const Elimination* e
    const Stage* f
    Py_ssize_t parts
    Py_ssize_t each             # rows of cores in a part


cdef void eliminate_by_rows(Elimination* e, const Stage* f) noexcept nogil:
    """K -= sum B_a'M_a B_a, row by row of K."""
    cdef ByRows s
    s.e, s.f = e, f
    s.each = max(1, e.slots_of_cores if e.jobs <= 1 else e.slots_of_cores // (64 * e.jobs))
    s.parts = (e.slots_of_cores + s.each - 1) // s.each
    run_parts(eliminate_rows, &s, s.parts, e.jobs)


cdef void eliminate_rows(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    """Some rows of the cores, the last ones first, which are the longest."""
    cdef const ByRows* s = <const ByRows*> job
    cdef const Elimination* e = s.e
    cdef Py_ssize_t first = (s.parts - 1 - part) * s.each, stop = first + s.each, c, n, at = 0
    for c in range(e.n_comps):
        n = e.core_size[c]
        eliminate_some(e, s.f, c, max(first - at, 0), min(stop - at, n))
        at += n


cdef void eliminate_some(const Elimination* e, const Stage* f, Py_ssize_t c, Py_ssize_t begin, Py_ssize_t end
                         ) noexcept nogil:
    """K -= sum B_a'M_a B_a in rows of one core."""
    cdef Py_ssize_t i, j, l, n = e.core_size[c], first, n_before
    cdef double t
    cdef double* row
    cdef const double* B
    cdef const int* nbr
    for i in range(begin, end):
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
    cdef ByRows s
    s.e, s.f = e, f
    s.each = 0
    s.parts = 2 * e.jobs if e.jobs > 1 else 1
    run_parts(cover_rows, &s, s.parts, e.jobs)


cdef inline Py_ssize_t level_from(const Stage* f, Py_ssize_t low, Py_ssize_t high, Py_ssize_t least) noexcept nogil:
    """The first of the ascending levels low to high - 1 of a row that is `least` or more."""
    cdef Py_ssize_t middle
    while low < high:
        middle = (low + high) // 2
        if f.level[middle] < least:
            low = middle + 1
        else:
            high = middle
    return low


cdef void cover_rows(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    """Some of the levels: what each has is summed in one order, however they are divided."""
    cdef const ByRows* s = <const ByRows*> job
    cdef const Elimination* e = s.e
    cdef const Stage* f = s.f
    cdef Py_ssize_t c, i, j, l, n, first, before, base, low, high
    cdef Py_ssize_t least = part * f.m // s.parts, most = (part + 1) * f.m // s.parts
    cdef double t, u
    cdef const double* row
    cdef const double* B
    cdef const int* nbr
    for c in range(e.n_comps):
        n = e.core_size[c]
        base = e.core_slot[c] - e.comp_slot[c]
        for i in range(n):
            row = e.cov + e.comp_start[c] + i * n - base
            low, high = f.back[e.core_slot[c] + i], f.back[e.core_slot[c] + i + 1]
            for l in range(level_from(f, low, high, least), level_from(f, low, high, most)):
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
