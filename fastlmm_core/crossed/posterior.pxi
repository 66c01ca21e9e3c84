# Posterior covariances and the blocks of N = Z'V^-1 Z on the diagonal, coarsest levels first (see elimination.pxi).
#
# uses   M_a, P_a of elimination.pxi, S of dense.pxi; covariances_of_sparse (sparse.pxi), reach_together and
#        cover_together (together.pxi), precisions_where_singular (vanishing.pxi)
# gives  covariances; reach_core, close_level

cdef bint covariances_of_cores(Elimination* e, double* sums, Py_ssize_t total, double* each) noexcept nogil:
    """cov = L S^-1 L' of the cores; adds sum N_bb of each factor to sums (total, total).

    Returns False where a signal has raised an exception.

    each : NULL, or (n_slots, total) array whose rows take N_bb, left-justified.
    """
    cdef Py_ssize_t t, a, i, j, at
    cdef const Tail* g
    cdef const double* N
    if not (e.inverted or invert_cores(e)):
        return False
    e.inverted = True
    for t in range(e.n_tails):
        g = &e.tail[t]
        for a in range(g.m):
            if g.core[a] < 0:
                continue
            at = e.comp_slot[g.comp[a]] + g.slot[a]
            for i in range(g.q):
                N = e.precision + (at + i) * e.widest
                for j in range(g.q):
                    sums[(g.column + i) * total + g.column + j] += N[j]
                    if each != NULL:
                        each[(e.tail_slot + at + i) * total + j] = N[j]
    return True


cdef bint invert_cores(Elimination* e) noexcept nogil:
    """The covariances in the place of S, as much of that as solutions need beside them,
    and N_bb of the levels in cores.

    Returns False where a signal has raised an exception.
    """
    cdef Py_ssize_t c, t, a
    cdef Tail* g
    cdef double* scale = e.scratch
    cdef bint exact = False, scalar = True
    for t in range(e.n_tails):
        exact = exact or e.tail[t].exact
        scalar = scalar and e.tail[t].q == 1
    for c in range(e.n_comps):
        set_aside(e.core_size[c], e.S + e.comp_start[c], e.pivot + e.core_slot[c])
        if not inverse_of(e, e.core_size[c], e.cov + e.comp_start[c]):
            return False
    for t in range(e.n_tails):
        precisions_where_regular(e, &e.tail[t])
    if scalar:
        for t in range(e.n_tails):
            g = &e.tail[t]
            for a in range(g.m):
                scale[e.comp_slot[g.comp[a]] + g.slot[a]] = g.factor[0]
        scale_tail(e, e.cov, e.cov, scale)
    else:
        sandwich_tail(e, e.cov, False)
    if not exact:
        return True
    for c in range(e.n_comps):
        mirror(e.core_size[c], e.K + e.comp_start[c])
        if not precisions_where_singular(e, c):
            return False
    return True


cdef void precisions_where_regular(Elimination* e, const Tail* g) noexcept nogil:
    """N_bb = T (I - S^-1) T' of the levels in cores, T = L^-T where L is not nearly singular; `cov` holds S^-1."""
    cdef Py_ssize_t a, c, i, j, r, n, q = g.q
    cdef double* x = e.scratch
    cdef double* y = x + q * q
    cdef double* N
    cdef const double* A
    cdef double v
    for a in range(g.m):
        if g.core[a] < 0:
            continue
        c = g.comp[a]
        n = e.core_size[c]
        A = e.cov + e.comp_start[c] + g.core[a] * n + g.core[a]
        for i in range(q):
            for j in range(q):
                x[i * q + j] = (1.0 if i == j else 0.0) - (A[i * n + j] if i >= j else A[j * n + i])
        multiply(q, q, q, g.lift, x, y)
        for i in range(q):
            N = e.precision + (e.comp_slot[c] + g.slot[a] + i) * e.widest
            for j in range(q):
                v = 0.0
                for r in range(q):
                    v += y[i * q + r] * g.lift[j * q + r]
                N[j] = v


cdef void add_symmetric(Py_ssize_t w, Py_ssize_t q, double* A, double* B, double* out) noexcept nogil:
    """out (q, w) += B (q, w) A with the lower triangle of a symmetric A (w, w), by BLAS."""
    cdef int rows = <int> w, columns = <int> q
    cdef double one = 1.0
    cdef char left = b'L', upper = b'U'
    dsymm(&left, &upper, &rows, &columns, &one, A, &rows, B, &rows, &one, out, &rows)


cdef inline void reach_core(Py_ssize_t q, const Elimination* e, Py_ssize_t c, Py_ssize_t skip, const Reach* x
                            ) noexcept nogil:
    """B Q (q, w) += the part of the neighbours from `skip` on, Q their covariances in the core of component c."""
    cdef Py_ssize_t i, j, r, w = x.w, ld = e.core_size[c], base = e.core_slot[c] - e.comp_slot[c]
    cdef double t, v
    cdef const double* cov
    for i in range(skip, w):
        cov = e.cov + e.comp_start[c] + (x.nbr[i] - base) * ld - base
        for r in range(q):
            t = x.panel[r * w + i]
            v = 0.0
            for j in range(skip, i):
                x.panel_out[r * w + j] += t * cov[x.nbr[j]]
                v += x.panel[r * w + j] * cov[x.nbr[j]]
            x.panel_out[r * w + i] += v + t * cov[x.nbr[i]]


cdef void reach_core_by_blas(Py_ssize_t q, const Elimination* e, Py_ssize_t c, Py_ssize_t skip, const Reach* x
                             ) noexcept nogil:
    """`reach_core` of a wide level."""
    cdef Py_ssize_t i, j, w = x.w, ld = e.core_size[c], base = e.core_slot[c] - e.comp_slot[c]
    cdef const double* cov
    memset(e.block, 0, skip * w * sizeof(double))
    for i in range(skip, w):
        cov = e.cov + e.comp_start[c] + (x.nbr[i] - base) * ld - base
        memset(e.block + i * w, 0, skip * sizeof(double))
        for j in range(skip, i + 1):
            e.block[i * w + j] = cov[x.nbr[j]]
    add_symmetric(w, q, e.block, x.panel, x.panel_out)


cdef inline void reach_half(Py_ssize_t q, const Elimination* e, Py_ssize_t c, Py_ssize_t skip, const Reach* x
                            ) noexcept nogil:
    """As much of B Q as B Q B' needs: the part before the diagonal of Q, and half of that on it."""
    cdef Py_ssize_t i, j, r, w = x.w, ld = e.core_size[c], base = e.core_slot[c] - e.comp_slot[c]
    cdef double v
    cdef const double* cov
    for i in range(skip, w):
        cov = e.cov + e.comp_start[c] + (x.nbr[i] - base) * ld - base
        for r in range(q):
            v = 0.0
            for j in range(skip, i):
                v += x.panel[r * w + j] * cov[x.nbr[j]]
            x.panel_out[r * w + i] = v + 0.5 * x.panel[r * w + i] * cov[x.nbr[i]]


cdef inline void close_level(Py_ssize_t q, const double* M, const double* P, const double* K, const double* quad,
                             double* work, double* N, double* post) noexcept nogil:
    """N = P (K - quad P') and, unless `post` is NULL, M + M quad M, from quad = B Q B' of a level.

    work : (2, q, q)
    """
    cdef Py_ssize_t i, j, r
    cdef double t
    multiply(q, q, q, P, quad, work)
    for i in range(q):
        for j in range(q):
            t = 0.0
            for r in range(q):
                t += P[i * q + r] * K[r * q + j] - work[i * q + r] * P[j * q + r]
            N[i * q + j] = t
    for i in range(q):
        for j in range(i):
            t = 0.5 * (N[i * q + j] + N[j * q + i])
            N[i * q + j] = t
            N[j * q + i] = t
    if post != NULL:
        multiply(q, q, q, M, quad, work)
        multiply(q, q, q, work, M, work + q * q)
        for i in range(q * q):
            post[i] = M[i] + work[q * q + i]


cdef inline void reach_ancestors(Py_ssize_t q, Elimination* e, Py_ssize_t s, Py_ssize_t a,
                                 const Reach* x) noexcept nogil:
    """B Q (q, qc), and what the covariances of the ancestors with the tail add to the tail's part of B Q."""
    cdef Py_ssize_t qc = e.stage[s].qc, w = x.w, i, j, r, l, b = a, first = 0, second, stride
    cdef const Stage* above
    cdef const Stage* outer
    cdef const double* cov
    cdef double t, v
    for i in range(q * qc):
        x.chain_out[i] = 0.0
    for i in range(w):
        e.place[i] = <int> i
    for l in range(s + 1, e.n_stages):
        above = &e.stage[l]
        second = first + above.q
        cov = above.cov + x.ancestor[l] * above.q * above.q
        for r in range(q):
            for i in range(above.q):
                t = x.chain[r * qc + first + i]
                for j in range(above.q):
                    x.chain_out[r * qc + first + j] += t * cov[i * above.q + j]
        cov = above.cov_chain + x.ancestor[l] * above.q * above.qc
        for r in range(q):
            for i in range(above.q):
                t = x.chain[r * qc + first + i]
                v = 0.0
                for j in range(above.qc):
                    x.chain_out[r * qc + second + j] += t * cov[i * above.qc + j]
                    v += x.chain[r * qc + second + j] * cov[i * above.qc + j]
                x.chain_out[r * qc + first + i] += v
        if w > 0:
            outer = &e.stage[l - 1]
            for i in range(w):
                e.place[i] = outer.up[outer.start[b] + e.place[i]]
            b = x.ancestor[l]
            stride = above.start[b + 1] - above.start[b]
            cov = above.cov_panel + above.q * above.start[b]
            for r in range(q):
                for i in range(above.q):
                    t = x.chain[r * qc + first + i]
                    v = 0.0
                    for j in range(w):
                        x.panel_out[r * w + j] += t * cov[i * stride + e.place[j]]
                        v += x.panel[r * w + j] * cov[i * stride + e.place[j]]
                    x.chain_out[r * qc + first + i] += v
        first = second


cdef inline void cover_level(Py_ssize_t q, Elimination* e, Py_ssize_t s, Py_ssize_t a, double* N, double* post
                             ) noexcept nogil:
    """N_aa and, unless `post` is NULL, the posterior covariance of level a;
    beyond the finest stage also that with its neighbours."""
    cdef Stage* f = &e.stage[s]
    cdef Py_ssize_t qc = f.qc, w, i, j, r
    cdef bint half = s == 0 and qc == 0 and e.block == NULL      # only B Q B' is wanted
    cdef double t
    cdef double* quad = e.scratch           # B Q B'
    cdef double* M = f.mid + a * q * q
    cdef Reach x
    find_reach(q, e, s, a, quad + 3 * q * q, &x)
    w = x.w
    for i in range(q * q):
        quad[i] = 0.0
    if w > 0:
        if f.reach != NULL:
            memcpy(x.panel_out, f.reach + q * f.start[a], q * w * sizeof(double))
        else:
            memset(x.panel_out, 0, q * w * sizeof(double))
        if half:
            reach_half(q, e, f.comp[a], f.skip[a], &x)
        elif e.block != NULL:
            reach_core_by_blas(q, e, f.comp[a], f.skip[a], &x)
        else:
            reach_core(q, e, f.comp[a], f.skip[a], &x)
    if qc > 0:
        reach_ancestors(q, e, s, a, &x)
        for r in range(q):
            for i in range(q):
                for j in range(qc):
                    quad[r * q + i] += x.chain_out[r * qc + j] * x.chain[i * qc + j]
    for r in range(q):
        for i in range(q):
            t = 0.0
            for j in range(w):
                t += x.panel_out[r * w + j] * x.panel[i * w + j]
            quad[r * q + i] += t
    if half:
        for r in range(q):
            for i in range(r + 1):
                t = quad[r * q + i] + quad[i * q + r]
                quad[r * q + i] = t
                quad[i * q + r] = t
    if f.quad != NULL:
        for i in range(q * q):
            quad[i] += f.quad[a * q * q + i]
    close_level(q, M, f.proj + a * q * q, f.own + a * q * q, quad, quad + q * q, N, post)
    if s > 0:
        keep_covariances(q, f, a, M, &x)


cdef inline void keep_covariances(Py_ssize_t q, const Stage* f, Py_ssize_t a, const double* M, const Reach* x
                                  ) noexcept nogil:
    """cov(a, neighbours) = -M_a B_a Q, for the levels below."""
    cdef Py_ssize_t i, j, r
    cdef double t
    for i in range(q):
        for j in range(f.qc):
            t = 0.0
            for r in range(q):
                t -= M[i * q + r] * x.chain_out[r * f.qc + j]
            f.cov_chain[(a * q + i) * f.qc + j] = t
        for j in range(x.w):
            t = 0.0
            for r in range(q):
                t -= M[i * q + r] * x.panel_out[r * x.w + j]
            f.cov_panel[q * f.start[a] + i * x.w + j] = t


cdef void covariances_of_chain(Elimination* e, double* sums, Py_ssize_t total, double* each,
                               double* post) noexcept nogil:
    """Posterior covariances of the chain, coarsest first; adds sum N_aa of each factor to sums (total, total).

    each, post : NULL, or (n_slots, total) arrays whose rows take N_aa and the posterior covariance of each level.
    """
    cdef Py_ssize_t s, a, i, j, q, at
    cdef Stage* f
    cdef double* N = e.scratch + e.width
    cdef double* own
    for s in range(e.n_stages - 1, -1, -1):
        f = &e.stage[s]
        q = f.q
        if f.rowwise:
            cover_by_rows(e, f)
        if f.whole != NULL:
            reach_together(e, f)
        for a in range(f.m):
            own = f.cov + a * q * q if s > 0 else (N + q * q if post != NULL else NULL)
            if f.rowwise:
                N[0] = f.proj[a] * (f.own[a] - f.quad[a] * f.proj[a])
                if own != NULL:
                    own[0] = f.mid[a] + f.mid[a] * f.quad[a] * f.mid[a]
            elif f.whole != NULL:
                cover_together(e, f, a, N, own)
            elif q == 1:
                cover_level(1, e, s, a, N, own)
            else:
                cover_level(q, e, s, a, N, own)
            at = f.slot + a * q
            for i in range(q):
                for j in range(q):
                    sums[(f.column + i) * total + f.column + j] += N[i * q + j]
                    if each != NULL:
                        each[(at + i) * total + j] = N[i * q + j]
                    if post != NULL:
                        post[(at + i) * total + j] = own[i * q + j]


cdef bint covariances(Elimination* e, double* sums, Py_ssize_t total, double* each, double* post) noexcept nogil:
    """Posterior covariances of all levels; adds sum N_aa of each factor to sums (total, total).

    Returns False where a signal has raised an exception.

    each, post : NULL, or (n_slots, total) arrays whose rows take N_aa and the posterior covariance of each level.
    """
    cdef Py_ssize_t s, t, a, i, j, c, n, at
    cdef Stage* f
    cdef Tail* g
    cdef double* Q
    for s in range(e.n_stages):
        f = &e.stage[s]
        if f.quad != NULL:
            memset(f.quad, 0, f.m * f.q * f.q * sizeof(double))
        if f.reach != NULL:
            memset(f.reach, 0, f.q * f.start[f.m] * sizeof(double))
    if not covariances_of_cores(e, sums, total, each):
        return False
    covariances_of_sparse(e, sums, total, each, post)
    covariances_of_chain(e, sums, total, each, post)
    if post == NULL:
        return True
    for t in range(e.n_tails):
        g = &e.tail[t]
        for a in range(g.m):
            if g.core[a] < 0:
                continue
            c = g.comp[a]
            n = e.core_size[c]
            Q = e.cov + e.comp_start[c] + g.core[a] * n + g.core[a]
            at = e.tail_slot + e.comp_slot[c] + g.slot[a]
            for i in range(g.q):
                for j in range(g.q):
                    post[(at + i) * total + j] = Q[i * n + j] if i >= j else Q[j * n + i]
    return True
