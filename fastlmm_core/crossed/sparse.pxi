# Levels of the tail with few neighbours, eliminated one by one after the chain (see elimination.pxi).
#
# What several levels a give to one level b, B_ab'M_a B_ac for its later neighbours c, is gathered when its turn comes;
# on the way back, what the covariances of b with its neighbours give to B_a Q is handed out to all a.

cdef inline void gather_products(Py_ssize_t q, Py_ssize_t n, Py_ssize_t w, Py_ssize_t at, const double* M,
                                 const double* B, const int* nbr, const int* where, Py_ssize_t wide, double* T,
                                 double* own, double* panel) noexcept nogil:
    """own, panel (n rows) of b -= B_b'M B of a level a (q columns; b is at place `at` of its w neighbours).

    where : places of slots among the `wide` neighbours of b
    T : (n, q) work space
    """
    cdef Py_ssize_t i, j, r
    cdef double t
    cdef const double* row
    for i in range(n):
        for r in range(q):
            t = 0.0
            for j in range(q):
                t += B[j * w + at + i] * M[j * q + r]
            T[i * q + r] = t
    for i in range(n):
        for r in range(q):
            t = T[i * q + r]
            row = B + r * w
            for j in range(n):
                own[i * n + j] -= t * row[at + j]
            for j in range(at + n, w):
                panel[i * wide + where[nbr[j]]] -= t * row[j]


cdef double eliminate_sparse(Elimination* e) noexcept nogil:
    """Eliminate the sparse levels, and take all of them out of the cores; returns sum log|W|, NaN as `eliminate`."""
    cdef Sparse* f = &e.sparse
    cdef Stage* h
    cdef Tail* g
    cdef Py_ssize_t a, b, s, i, j, l, r, n, q, w, wide, first, c, ld, base
    cdef double det, t, product = 1.0, logdet = 0.0
    cdef double* own
    cdef double* panel
    cdef double* target
    cdef double* T = e.scratch
    cdef const double* B
    cdef const int* nbr
    for b in range(f.n):
        g = &e.tail[f.tail[b]]
        n = g.q
        wide = f.start[b + 1] - f.start[b]
        nbr = f.nbr + f.start[b]
        for i in range(wide):
            f.where[nbr[i]] = <int> i
        own = f.own + f.own_at[b]
        panel = f.panel + f.panel_at[b]
        r = e.comp_slot[f.comp[b]] + f.slot[b]
        for s in range(e.n_stages):
            h = &e.stage[s]
            for l in range(h.back[r], h.back[r + 1]):
                a = h.level[l]
                first = h.start[a]
                if h.q == 1 and n == 1:
                    gather_products(1, 1, h.start[a + 1] - first, h.entry[l] - first, h.mid + a, h.panel + first,
                                    h.nbr + first, f.where, wide, T, own, panel)
                else:
                    gather_products(h.q, n, h.start[a + 1] - first, h.entry[l] - first, h.mid + a * h.q * h.q,
                                    h.panel + h.q * first, h.nbr + first, f.where, wide, T, own, panel)
        for l in range(f.back[r], f.back[r + 1]):
            a = f.level[l]
            first = f.start[a]
            q = e.tail[f.tail[a]].q
            if q == 1 and n == 1:
                gather_products(1, 1, f.start[a + 1] - first, f.entry[l] - first, f.mid + f.own_at[a],
                                f.panel + f.panel_at[a], f.nbr + first, f.where, wide, T, own, panel)
            else:
                gather_products(q, n, f.start[a + 1] - first, f.entry[l] - first, f.mid + f.own_at[a],
                                f.panel + f.panel_at[a], f.nbr + first, f.where, wide, T, own, panel)
        for i in range(n):
            for j in range(i):
                own[j * n + i] = own[i * n + j]
        det = shrink(n, own, g.factor, g.G, f.mid + f.own_at[b], f.proj + f.own_at[b], e.scratch)
        if not det > 0.0:
            return NAN
        product *= det
        if product > 1e100:
            logdet += log(product)
            product = 1.0
    for a in range(f.n):
        n = e.tail[f.tail[a]].q
        c = f.comp[a]
        ld = e.core_size[c]
        base = e.core_slot[c] - e.comp_slot[c]
        w = f.start[a + 1] - f.start[a]
        nbr = f.nbr + f.start[a]
        B = f.panel + f.panel_at[a]
        for i in range(f.skip[a], w):
            target = e.K + e.comp_start[c] + (nbr[i] - base) * ld - base
            for r in range(n):
                t = 0.0
                for j in range(n):
                    t += B[j * w + i] * f.mid[f.own_at[a] + j * n + r]
                for j in range(f.skip[a], i + 1):
                    target[nbr[j]] -= t * B[r * w + j]
    return logdet + log(product)


cdef void forward_sparse(Elimination* e, Py_ssize_t c, double* V, double* H) noexcept nogil:
    """`forward` for the sparse levels."""
    cdef Sparse* f = &e.sparse
    cdef Py_ssize_t a, i, j, r, n, w
    cdef double* own
    cdef double* tail
    cdef double* g = e.scratch
    cdef const double* B
    cdef const int* nbr
    cdef double t
    for a in range(f.n):
        n = e.tail[f.tail[a]].q
        tail = V + (e.tail_slot + e.comp_slot[f.comp[a]]) * c
        own = tail + f.slot[a] * c
        multiply(n, n, c, f.mid + f.own_at[a], own, g)
        if H != NULL:
            subtract_squares(n, c, own, g, e.partial)
            if (a & 127) == 127 or a == f.n - 1:
                flush(c, e.partial, H)
        w = f.start[a + 1] - f.start[a]
        nbr = f.nbr + f.start[a]
        B = f.panel + f.panel_at[a]
        for i in range(w):
            for r in range(n):
                t = B[r * w + i]
                for j in range(c):
                    tail[nbr[i] * c + j] -= t * g[r * c + j]


cdef void backward_sparse(Elimination* e, Py_ssize_t c, double* V, double* U) noexcept nogil:
    """`backward` for the sparse levels, once the cores are solved."""
    cdef Sparse* f = &e.sparse
    cdef Tail* g
    cdef Py_ssize_t a, i, j, r, n, w, base, at
    cdef double* own = e.scratch
    cdef const double* u
    cdef const double* B
    cdef const int* nbr
    cdef double t
    for a in range(f.n - 1, -1, -1):
        g = &e.tail[f.tail[a]]
        n = g.q
        base = e.tail_slot + e.comp_slot[f.comp[a]]
        at = (base + f.slot[a]) * c
        memcpy(own, V + at, n * c * sizeof(double))
        u = U + base * c
        w = f.start[a + 1] - f.start[a]
        nbr = f.nbr + f.start[a]
        B = f.panel + f.panel_at[a]
        for r in range(n):
            for i in range(w):
                t = B[r * w + i]
                for j in range(c):
                    own[r * c + j] -= t * u[nbr[i] * c + j]
        multiply(n, n, c, f.proj + f.own_at[a], own, V + at)
        multiply(n, n, c, g.G, V + at, U + at)


cdef inline void hand_out(Py_ssize_t q, Py_ssize_t n, Py_ssize_t w, Py_ssize_t at, const double* B, const int* nbr,
                          const int* where, Py_ssize_t wide, const double* own, const double* panel, double* reach,
                          double* quad) noexcept nogil:
    """What the covariances of b with itself and its neighbours give to B Q of a level a, or to B Q B'.

    See `gather_products` for the other parameters.

    own, panel : (n, n), (n, wide) covariances of b
    reach : (q, w) B Q, or NULL
    quad : (q, q) B Q B', or NULL
    """
    cdef Py_ssize_t i, j, r, l
    cdef double t, v, x
    cdef const double* row
    if reach != NULL:
        for r in range(q):
            row = B + r * w
            for i in range(n):
                t = row[at + i]
                v = 0.0
                for j in range(n):
                    v += row[at + j] * own[j * n + i]
                for j in range(at + n, w):
                    x = panel[i * wide + where[nbr[j]]]
                    reach[r * w + j] += t * x
                    v += row[j] * x
                reach[r * w + at + i] += v
        return
    for r in range(q):
        row = B + r * w
        for i in range(n):
            # b's column of B Q, half of what it has with itself
            v = 0.0
            for j in range(n):
                v += row[at + j] * own[j * n + i]
            v *= 0.5
            for j in range(at + n, w):
                v += row[j] * panel[i * wide + where[nbr[j]]]
            for l in range(q):
                quad[r * q + l] += v * B[l * w + at + i]
                quad[l * q + r] += v * B[l * w + at + i]


cdef void covariances_of_sparse(Elimination* e, double* sums, Py_ssize_t total, double* each, double* post
                                ) noexcept nogil:
    """Posterior covariances of the sparse levels, in reverse order; what they give to B Q of the chain.

    See `covariances` for the parameters.
    """
    cdef Sparse* f = &e.sparse
    cdef Stage* h
    cdef Tail* g
    cdef Py_ssize_t a, b, s, i, j, l, r, n, q, w, first, c, ld, base, at
    cdef double t
    cdef double* Y
    cdef double* M
    cdef double* P
    cdef double* quad = e.scratch
    cdef double* N
    cdef double* work
    cdef double* own
    cdef const double* B
    cdef const int* nbr
    memset(f.cov_panel, 0, f.n_panel * sizeof(double))
    for b in range(f.n - 1, -1, -1):
        g = &e.tail[f.tail[b]]
        n = g.q
        N = quad + n * n
        work = N + n * n
        c = f.comp[b]
        ld = e.core_size[c]
        base = e.core_slot[c] - e.comp_slot[c]
        w = f.start[b + 1] - f.start[b]
        nbr = f.nbr + f.start[b]
        B = f.panel + f.panel_at[b]
        Y = f.cov_panel + f.panel_at[b]
        M = f.mid + f.own_at[b]
        P = f.proj + f.own_at[b]
        own = f.cov + f.own_at[b]
        # the covariances of the core; those of sparse neighbours are in Y already
        reach_core(n, f.skip[b], w, B, nbr, e.cov + e.comp_start[c], ld, base, Y)
        for r in range(n):
            for i in range(n):
                t = 0.0
                for j in range(w):
                    t += Y[r * w + j] * B[i * w + j]
                quad[r * n + i] = t
        close_level(n, M, P, f.own + f.own_at[b], quad, work, N, own)
        at = e.tail_slot + e.comp_slot[c] + f.slot[b]
        for i in range(n):
            for j in range(n):
                sums[(g.column + i) * total + g.column + j] += N[i * n + j]
                if each != NULL:
                    each[(at + i) * total + j] = N[i * n + j]
                if post != NULL:
                    post[(at + i) * total + j] = own[i * n + j]
        for j in range(w):
            for i in range(n):
                quad[i] = Y[i * w + j]
            for i in range(n):
                t = 0.0
                for r in range(n):
                    t -= M[i * n + r] * quad[r]
                Y[i * w + j] = t
        for i in range(w):
            f.where[nbr[i]] = <int> i
        at = e.comp_slot[c] + f.slot[b]
        for s in range(e.n_stages):
            h = &e.stage[s]
            q = h.q
            for l in range(h.back[at], h.back[at + 1]):
                a = h.level[l]
                first = h.start[a]
                if q == 1 and n == 1:
                    hand_out(1, 1, h.start[a + 1] - first, h.entry[l] - first, h.panel + first, h.nbr + first, f.where,
                             w, own, Y, h.reach + first if h.reach != NULL else NULL,
                             h.quad + a if h.quad != NULL else NULL)
                else:
                    hand_out(q, n, h.start[a + 1] - first, h.entry[l] - first, h.panel + q * first, h.nbr + first,
                             f.where, w, own, Y, h.reach + q * first if h.reach != NULL else NULL,
                             h.quad + a * q * q if h.quad != NULL else NULL)
        for l in range(f.back[at], f.back[at + 1]):
            a = f.level[l]
            first = f.start[a]
            q = e.tail[f.tail[a]].q
            if q == 1 and n == 1:
                hand_out(1, 1, f.start[a + 1] - first, f.entry[l] - first, f.panel + f.panel_at[a], f.nbr + first,
                         f.where, w, own, Y, f.cov_panel + f.panel_at[a], NULL)
            else:
                hand_out(q, n, f.start[a + 1] - first, f.entry[l] - first, f.panel + f.panel_at[a], f.nbr + first,
                         f.where, w, own, Y, f.cov_panel + f.panel_at[a], NULL)
