# Levels of the tail with few neighbours, eliminated one by one after the chain (see elimination.pxi).
#
# What several levels a give to one level b, B_ab'M_a B_ac for its later neighbours c, is gathered when its turn comes;
# on the way back, what the covariances of b with its neighbours give to B_a Q is handed out to all a.
#
# uses   shrink (elimination.pxi), subtract_squares, flush (substitution.pxi), reach_core, close_level (posterior.pxi)
# gives  eliminate_sparse, forward_sparse, backward_sparse, covariances_of_sparse

cdef inline void panel_of_stage(const Stage* h, Py_ssize_t l, Panel* x) noexcept nogil:
    """The l-th of all levels of a stage that a list by tail slot names."""
    cdef Py_ssize_t a = h.level[l], first = h.start[a]
    x.q = h.q
    x.w = h.start[a + 1] - first
    x.at = h.entry[l] - first
    x.nbr = h.nbr + first
    x.B = h.panel + h.q * first


cdef inline void panel_of_node(const Elimination* e, Py_ssize_t l, Panel* x) noexcept nogil:
    """The same of the sparse levels."""
    cdef const Sparse* f = &e.sparse
    cdef Py_ssize_t a = f.level[l], first = f.start[a]
    x.q = e.tail[f.tail[a]].q
    x.w = f.start[a + 1] - first
    x.at = f.entry[l] - first
    x.nbr = f.nbr + first
    x.B = f.panel + f.panel_at[a]


cdef inline void aim(const Elimination* e, Py_ssize_t b, double* own, double* panel, Target* x) noexcept nogil:
    """Sparse level b as the one that is summed for."""
    cdef const Sparse* f = &e.sparse
    cdef Py_ssize_t i
    x.n = e.tail[f.tail[b]].q
    x.w = f.start[b + 1] - f.start[b]
    x.where = f.where
    x.own = own
    x.panel = panel
    x.scratch = e.scratch
    for i in range(x.w):
        f.where[f.nbr[f.start[b] + i]] = <int> i


cdef inline void gather_products(Py_ssize_t q, Py_ssize_t n, const Panel* x, const double* M, const Target* b
                                 ) noexcept nogil:
    """own, panel (n rows) of b -= B_b'M B of an eliminated level (q columns)."""
    cdef Py_ssize_t i, j, r, w = x.w, at = x.at, wide = b.w
    cdef double t
    cdef const double* row
    cdef const double* B = x.B
    cdef const int* nbr = x.nbr
    cdef const int* where = b.where
    cdef double* T = b.scratch
    cdef double* own = b.own
    cdef double* panel = b.panel
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


cdef inline void gather_any(const Panel* x, const double* M, const Target* b) noexcept nogil:
    """`gather_products`, with its loops unrolled for intercepts."""
    if x.q == 1 and b.n == 1:
        gather_products(1, 1, x, M, b)
    else:
        gather_products(x.q, b.n, x, M, b)


cdef double eliminate_sparse(Elimination* e) noexcept nogil:
    """Eliminate the sparse levels, and take all of them out of the cores; returns sum log|W|, NaN as `eliminate`."""
    cdef Sparse* f = &e.sparse
    cdef Stage* h
    cdef Tail* g
    cdef Py_ssize_t b, s, i, j, l, r
    cdef double det, product = 1.0, logdet = 0.0
    cdef double* own
    cdef Panel x
    cdef Target target
    for b in range(f.n):
        g = &e.tail[f.tail[b]]
        own = f.own + f.own_at[b]
        aim(e, b, own, f.panel + f.panel_at[b], &target)
        r = e.comp_slot[f.comp[b]] + f.slot[b]
        for s in range(e.n_stages):
            h = &e.stage[s]
            for l in range(h.back[r], h.back[r + 1]):
                panel_of_stage(h, l, &x)
                gather_any(&x, h.mid + h.level[l] * h.q * h.q, &target)
        for l in range(f.back[r], f.back[r + 1]):
            panel_of_node(e, l, &x)
            gather_any(&x, f.mid + f.own_at[f.level[l]], &target)
        for i in range(g.q):
            for j in range(i):
                own[j * g.q + i] = own[i * g.q + j]
        det = shrink(g.q, own, g.factor, g.G, f.mid + f.own_at[b], f.proj + f.own_at[b], e.scratch)
        if not det > 0.0:
            return NAN
        product *= det
        if product > 1e100:
            logdet += log(product)
            product = 1.0
    take_nodes_from_cores(e)
    return logdet + log(product)


cdef void take_nodes_from_cores(Elimination* e) noexcept nogil:
    """K -= B_a'M_a B_a of the sparse levels a."""
    cdef const Sparse* f = &e.sparse
    cdef Py_ssize_t a, i, j, r, n, w, c, ld, base
    cdef double t
    cdef double* target
    cdef const double* B
    cdef const int* nbr
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


cdef inline void hand_out(Py_ssize_t q, Py_ssize_t n, const Panel* x, const Target* b, double* reach, double* quad
                          ) noexcept nogil:
    """What the covariances of b with itself and its neighbours give to B Q of an eliminated level, or to B Q B'.

    reach : (q, w) B Q, or NULL
    quad : (q, q) B Q B', or NULL
    """
    cdef Py_ssize_t i, j, r, l, w = x.w, at = x.at, wide = b.w
    cdef double t, v, u
    cdef const double* row
    cdef const double* B = x.B
    cdef const int* nbr = x.nbr
    cdef const int* where = b.where
    cdef const double* own = b.own
    cdef const double* panel = b.panel
    if reach != NULL:
        for r in range(q):
            row = B + r * w
            for i in range(n):
                t = row[at + i]
                v = 0.0
                for j in range(n):
                    v += row[at + j] * own[j * n + i]
                for j in range(at + n, w):
                    u = panel[i * wide + where[nbr[j]]]
                    reach[r * w + j] += t * u
                    v += row[j] * u
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


cdef inline void hand_out_any(const Panel* x, const Target* b, double* reach, double* quad) noexcept nogil:
    """`hand_out`, with its loops unrolled for intercepts."""
    if x.q == 1 and b.n == 1:
        hand_out(1, 1, x, b, reach, quad)
    else:
        hand_out(x.q, b.n, x, b, reach, quad)


cdef void covariances_of_sparse(Elimination* e, double* sums, Py_ssize_t total, double* each, double* post
                                ) noexcept nogil:
    """Posterior covariances of the sparse levels, in reverse order; what they give to B Q of the chain.

    See `covariances` for the parameters.
    """
    cdef Sparse* f = &e.sparse
    cdef Stage* h
    cdef Tail* g
    cdef Py_ssize_t a, b, s, i, j, l, at, first
    cdef double* N
    cdef double* own
    cdef Panel x
    cdef Target target
    memset(f.cov_panel, 0, f.n_panel * sizeof(double))
    for b in range(f.n - 1, -1, -1):
        g = &e.tail[f.tail[b]]
        own = f.cov + f.own_at[b]
        N = cover_node(e, b)
        at = e.tail_slot + e.comp_slot[f.comp[b]] + f.slot[b]
        for i in range(g.q):
            for j in range(g.q):
                sums[(g.column + i) * total + g.column + j] += N[i * g.q + j]
                if each != NULL:
                    each[(at + i) * total + j] = N[i * g.q + j]
                if post != NULL:
                    post[(at + i) * total + j] = own[i * g.q + j]
        aim(e, b, own, f.cov_panel + f.panel_at[b], &target)
        at -= e.tail_slot
        for s in range(e.n_stages):
            h = &e.stage[s]
            for l in range(h.back[at], h.back[at + 1]):
                panel_of_stage(h, l, &x)
                a = h.level[l]
                first = h.q * h.start[a]
                hand_out_any(&x, &target, h.reach + first if h.reach != NULL else NULL,
                             h.quad + a * h.q * h.q if h.quad != NULL else NULL)
        for l in range(f.back[at], f.back[at + 1]):
            panel_of_node(e, l, &x)
            hand_out_any(&x, &target, f.cov_panel + f.panel_at[f.level[l]], NULL)


cdef double* cover_node(Elimination* e, Py_ssize_t b) noexcept nogil:
    """N_bb (returned), the posterior covariance of sparse level b (into cov), and that with its neighbours."""
    cdef Sparse* f = &e.sparse
    cdef Py_ssize_t i, j, r, c = f.comp[b], n = e.tail[f.tail[b]].q
    cdef double t
    cdef double* quad = e.scratch
    cdef double* N = quad + n * n
    cdef const double* M = f.mid + f.own_at[b]
    cdef Reach x
    x.w = f.start[b + 1] - f.start[b]
    x.nbr = f.nbr + f.start[b]
    x.panel = f.panel + f.panel_at[b]
    x.panel_out = f.cov_panel + f.panel_at[b]
    # the covariances of the core; those of sparse neighbours are in panel_out already
    reach_core(n, e, c, f.skip[b], &x)
    for r in range(n):
        for i in range(n):
            t = 0.0
            for j in range(x.w):
                t += x.panel_out[r * x.w + j] * x.panel[i * x.w + j]
            quad[r * n + i] = t
    close_level(n, M, f.proj + f.own_at[b], f.own + f.own_at[b], quad, N + n * n, N, f.cov + f.own_at[b])
    for j in range(x.w):
        for i in range(n):
            quad[i] = x.panel_out[i * x.w + j]
        for i in range(n):
            t = 0.0
            for r in range(n):
                t -= M[i * n + r] * quad[r]
            x.panel_out[i * x.w + j] = t
    return N
