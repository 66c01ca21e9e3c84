# Posterior covariances and the blocks of N = Z'V^-1 Z on the diagonal, coarsest levels first (see elimination.pxi).

cdef bint covariances_of_tail(Elimination* e, double* sums, Py_ssize_t total, double* each) noexcept nogil:
    """cov = L S^-1 L' of the cores (full matrices unless all q = 1); adds sum N_bb of each factor to sums (total, total).

    Returns False where a signal has raised an exception.

    each : NULL, or (n_slots, total) array whose rows take N_bb, left-justified.
    """
    cdef Py_ssize_t c, n, t, a, i, j, r, l, q, at
    cdef Tail* g
    cdef double* A
    cdef double* K
    cdef double* x = e.scratch
    cdef double* y
    cdef double* N
    cdef double v
    cdef bint exact = False, scalar = True
    memcpy(e.cov, e.S, e.n_dense * sizeof(double))
    for t in range(e.n_tails):
        exact = exact or e.tail[t].exact
        scalar = scalar and e.tail[t].q == 1
    for c in range(e.n_comps):
        if not inverse_of(e.core_size[c], e.cov + e.comp_start[c]):
            return False
    # N = T (I - S^-1) T' where L is not nearly singular
    for t in range(e.n_tails):
        g = &e.tail[t]
        q = g.q
        y = x + q * q
        N = y + q * q
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
                for j in range(q):
                    v = 0.0
                    for r in range(q):
                        v += y[i * q + r] * g.lift[j * q + r]
                    N[i * q + j] = v
                    sums[(g.column + i) * total + g.column + j] += v
            if each != NULL:
                at = e.tail_slot + e.comp_slot[c] + g.slot[a]
                for i in range(q):
                    for j in range(q):
                        each[(at + i) * total + j] = N[i * q + j]
    if scalar:
        for t in range(e.n_tails):
            g = &e.tail[t]
            for a in range(g.m):
                x[e.comp_slot[g.comp[a]] + g.slot[a]] = g.factor[0]
        scale_tail(e, e.cov, x)
    else:
        for c in range(e.n_comps):
            mirror(e.core_size[c], e.cov + e.comp_start[c])
        sandwich_tail(e, e.cov, False)
    if not exact:
        return True
    # N = K - K cov K where it is: the rows and columns of the projector
    for c in range(e.n_comps):
        n = e.core_size[c]
        K = e.K + e.comp_start[c]
        mirror(n, K)
        if not symmetric_product(n, n, e.cov + e.comp_start[c], K, e.work + e.comp_start[c]):
            return False
    for t in range(e.n_tails):
        g = &e.tail[t]
        q = g.q
        y = x + q * q
        N = y + q * q
        if not g.exact:
            continue
        for a in range(g.m):
            if g.core[a] < 0:
                continue
            c = g.comp[a]
            n = e.core_size[c]
            K = e.K + e.comp_start[c] + g.core[a] * n
            A = e.work + e.comp_start[c] + g.core[a]
            for i in range(q):
                for j in range(q):
                    v = K[i * n + g.core[a] + j]
                    for r in range(n):
                        v -= K[i * n + r] * A[r * n + j]
                    x[i * q + j] = v
            # rest x + x rest - rest x rest
            multiply(q, q, q, g.rest, x, y)
            multiply(q, q, q, y, g.rest, N)
            for i in range(q):
                for j in range(q):
                    v = y[i * q + j] - N[i * q + j]
                    for r in range(q):
                        v += x[i * q + r] * g.rest[r * q + j]
                    sums[(g.column + i) * total + g.column + j] += v
                    if each != NULL:
                        each[(e.tail_slot + e.comp_slot[c] + g.slot[a] + i) * total + j] += v
    return True


cdef void add_symmetric(Py_ssize_t w, Py_ssize_t q, double* A, double* B, double* out) noexcept nogil:
    """out (q, w) += B (q, w) A with the lower triangle of a symmetric A (w, w), by BLAS."""
    cdef int rows = <int> w, columns = <int> q
    cdef double one = 1.0
    cdef char left = b'L', upper = b'U'
    dsymm(&left, &upper, &rows, &columns, &one, A, &rows, B, &rows, &one, out, &rows)


cdef inline void reach_core(Py_ssize_t q, Py_ssize_t skip, Py_ssize_t w, const double* B, const int* nbr,
                            const double* Q, Py_ssize_t ld, Py_ssize_t base, double* Y) noexcept nogil:
    """Y (q, w) += B Q for the neighbours from `skip` on, Q the covariances of their core, whose first slot is `base`."""
    cdef Py_ssize_t i, j, r
    cdef double t, v
    cdef const double* cov
    for i in range(skip, w):
        cov = Q + (nbr[i] - base) * ld - base
        for r in range(q):
            t = B[r * w + i]
            v = 0.0
            for j in range(skip, i):
                Y[r * w + j] += t * cov[nbr[j]]
                v += B[r * w + j] * cov[nbr[j]]
            Y[r * w + i] += v + t * cov[nbr[i]]


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


cdef inline void cover_level(Py_ssize_t q, Elimination* e, Py_ssize_t s, Py_ssize_t a, double* N, double* post
                             ) noexcept nogil:
    """N_aa and, unless `post` is NULL, the posterior covariance of level a; beyond the finest stage also that with its neighbours."""
    cdef Stage* f = &e.stage[s]
    cdef Stage* above
    cdef Stage* outer
    cdef Py_ssize_t qc = f.qc, w = 0, i, j, r, l, h, b, c, first, second, ld, stride, skip, base
    cdef double t, v
    cdef double* Bc = f.chain + a * q * qc
    cdef double* Bt = NULL
    cdef double* quad = e.scratch           # Y B'
    cdef double* work = quad + q * q
    cdef double* Yc = work + 2 * q * q      # B Q
    cdef double* Yt = Yc + q * qc
    cdef const double* cov
    cdef const int* nbr = NULL
    cdef double* M = f.mid + a * q * q
    cdef double* P = f.proj + a * q * q
    cdef Py_ssize_t lineage[MAX_FACTORS]
    b = a
    for l in range(s, e.n_stages - 1):
        b = e.stage[l].parent[b]
        lineage[l + 1] = b
    for i in range(q * q):
        quad[i] = 0.0
    if e.n_tails > 0:
        w = f.start[a + 1] - f.start[a]
        Bt = f.panel + q * f.start[a]
        nbr = f.nbr + f.start[a]
        c = f.comp[a]
        ld = e.core_size[c]
        skip = f.skip[a]
        base = e.core_slot[c] - e.comp_slot[c]
        for i in range(q * w):
            Yt[i] = 0.0
        if f.reach != NULL:
            memcpy(Yt, f.reach + q * f.start[a], q * w * sizeof(double))
        if e.block != NULL:
            memset(e.block, 0, skip * w * sizeof(double))
            for i in range(skip, w):
                cov = e.cov + e.comp_start[c] + (nbr[i] - base) * ld - base
                memset(e.block + i * w, 0, skip * sizeof(double))
                for j in range(skip, i + 1):
                    e.block[i * w + j] = cov[nbr[j]]
            add_symmetric(w, q, e.block, Bt, Yt)
        elif s > 0 or qc > 0:
            reach_core(q, skip, w, Bt, nbr, e.cov + e.comp_start[c], ld, base, Yt)
        else:
            # only the quadratic form is wanted
            for i in range(skip, w):
                cov = e.cov + e.comp_start[c] + (nbr[i] - base) * ld - base
                for r in range(q):
                    v = 0.0
                    for j in range(skip, i):
                        v += Bt[r * w + j] * cov[nbr[j]]
                    Yt[r * w + i] = v + 0.5 * Bt[r * w + i] * cov[nbr[i]]
    if qc > 0:
        for i in range(q * qc):
            Yc[i] = 0.0
        for i in range(w):
            e.place[i] = <int> i
        first = 0
        b = a
        for l in range(s + 1, e.n_stages):
            above = &e.stage[l]
            second = first + above.q
            cov = above.cov + lineage[l] * above.q * above.q
            for r in range(q):
                for i in range(above.q):
                    t = Bc[r * qc + first + i]
                    for j in range(above.q):
                        Yc[r * qc + first + j] += t * cov[i * above.q + j]
            cov = above.cov_chain + lineage[l] * above.q * above.qc
            for r in range(q):
                for i in range(above.q):
                    t = Bc[r * qc + first + i]
                    v = 0.0
                    for j in range(above.qc):
                        Yc[r * qc + second + j] += t * cov[i * above.qc + j]
                        v += Bc[r * qc + second + j] * cov[i * above.qc + j]
                    Yc[r * qc + first + i] += v
            if w > 0:
                outer = &e.stage[l - 1]
                for i in range(w):
                    e.place[i] = outer.up[outer.start[b] + e.place[i]]
                b = lineage[l]
                stride = above.start[b + 1] - above.start[b]
                cov = above.cov_panel + above.q * above.start[b]
                for r in range(q):
                    for i in range(above.q):
                        t = Bc[r * qc + first + i]
                        v = 0.0
                        for j in range(w):
                            Yt[r * w + j] += t * cov[i * stride + e.place[j]]
                            v += Bt[r * w + j] * cov[i * stride + e.place[j]]
                        Yc[r * qc + first + i] += v
            first = second
        for r in range(q):
            for i in range(q):
                t = 0.0
                for j in range(qc):
                    t += Yc[r * qc + j] * Bc[i * qc + j]
                quad[r * q + i] += t
    for r in range(q):
        for i in range(q):
            t = 0.0
            for j in range(w):
                t += Yt[r * w + j] * Bt[i * w + j]
            quad[r * q + i] += t
    if w > 0 and s == 0 and qc == 0 and e.block == NULL:
        for r in range(q):
            for i in range(r + 1):
                t = quad[r * q + i] + quad[i * q + r]
                quad[r * q + i] = t
                quad[i * q + r] = t
    if f.quad != NULL:
        for i in range(q * q):
            quad[i] += f.quad[a * q * q + i]
    close_level(q, M, P, f.own + a * q * q, quad, work, N, post)
    if s > 0:
        for i in range(q):
            for j in range(qc):
                t = 0.0
                for r in range(q):
                    t -= M[i * q + r] * Yc[r * qc + j]
                f.cov_chain[(a * q + i) * qc + j] = t
            for j in range(w):
                t = 0.0
                for r in range(q):
                    t -= M[i * q + r] * Yt[r * w + j]
                f.cov_panel[q * f.start[a] + i * w + j] = t


cdef void covariances_of_chain(Elimination* e, double* sums, Py_ssize_t total, double* each, double* post) noexcept nogil:
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
        for a in range(f.m):
            own = f.cov + a * q * q if s > 0 else (N + q * q if post != NULL else NULL)
            if f.rowwise:
                N[0] = f.proj[a] * (f.own[a] - f.quad[a] * f.proj[a])
                if own != NULL:
                    own[0] = f.mid[a] + f.mid[a] * f.quad[a] * f.mid[a]
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
    if not covariances_of_tail(e, sums, total, each):
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
