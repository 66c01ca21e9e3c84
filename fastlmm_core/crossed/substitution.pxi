# Right-hand sides, arrays (n_slots, c), through the structure of elimination.pxi: Z'v to Z'V^-1 v and posterior means.
#
# uses   M_a, P_a of elimination.pxi and sparse.pxi, S of dense.pxi; forward_sparse, backward_sparse
# gives  forward, solve_tail, backward (in this order V^-1), products (Z'Z); subtract_squares, flush

cdef void subtract_squares(Py_ssize_t rows, Py_ssize_t k, const double* A, const double* B, double* H) noexcept nogil:
    """H (k, k; lower triangle) -= A (rows, k)' B (rows, k)."""
    cdef Py_ssize_t r, i, j
    cdef double t
    for r in range(rows):
        for i in range(k):
            t = A[r * k + i]
            for j in range(i + 1):
                H[i * k + j] -= t * B[r * k + j]


cdef void flush(Py_ssize_t k, double* part, double* H) noexcept nogil:
    """Move the lower triangle of part to H."""
    cdef Py_ssize_t i
    for i in range(k * k):
        H[i] += part[i]
        part[i] = 0.0


cdef void forward(Elimination* e, Py_ssize_t c, double* V, double* H) noexcept nogil:
    """Z'v to Z'V_e^-1 v; unless H is NULL, subtracts V_a'M_a V_a from it."""
    cdef Py_ssize_t s, l, a, b, i, j, r, q, qc, w, first
    cdef Stage* f
    cdef double* g = e.scratch
    cdef double* own
    cdef double* row
    cdef const double* B
    cdef const int* nbr
    cdef double t
    for s in range(e.n_stages):
        f = &e.stage[s]
        q = f.q
        qc = f.qc
        for a in range(f.m):
            own = V + (f.slot + a * q) * c
            multiply(q, q, c, f.mid + a * q * q, own, g)
            if H != NULL:
                # by way of partial sums: a long sum of small terms loses digits that Newton's last steps need
                subtract_squares(q, c, own, g, e.partial)
                if (a & 127) == 127 or a == f.m - 1:
                    flush(c, e.partial, H)
            b = a
            first = 0
            for l in range(s + 1, e.n_stages):
                b = e.stage[l - 1].parent[b]
                subtract_crossed(q, e.stage[l].q, c, f.chain + a * q * qc + first, qc, g,
                                 V + (e.stage[l].slot + b * e.stage[l].q) * c)
                first += e.stage[l].q
            if e.n_tails > 0:
                w = f.start[a + 1] - f.start[a]
                nbr = f.nbr + f.start[a]
                B = f.panel + q * f.start[a]
                row = V + (e.tail_slot + e.comp_slot[f.comp[a]]) * c
                if e.block != NULL:
                    crossed(w, c, q, g, <double*> B, w, e.block)
                    for i in range(w):
                        for j in range(c):
                            row[nbr[i] * c + j] -= e.block[i * c + j]
                    continue
                for i in range(w):
                    for r in range(q):
                        t = B[r * w + i]
                        for j in range(c):
                            row[nbr[i] * c + j] -= t * g[r * c + j]
    forward_sparse(e, c, V, H)


cdef void solve_tail(Elimination* e, Py_ssize_t c, double* V, double* U, double* X, double* H) noexcept nogil:
    """The cores' part of E (into V) and of the posterior means (into U); subtracts from H unless it is NULL.

    X : (n_tail, c) work space
    """
    cdef Py_ssize_t t, a, i, j, comp, n, q, at, n_tail = e.n_slots - e.tail_slot
    cdef Tail* g
    cdef double* C = V + e.tail_slot * c
    cdef double* u = U + e.tail_slot * c
    cdef bint exact = False
    cdef double x
    cdef Py_ssize_t r
    for t in range(e.n_tails):
        g = &e.tail[t]
        q = g.q
        exact = exact or g.exact
        for a in range(g.m):
            if g.core[a] < 0:
                continue
            at = e.comp_slot[g.comp[a]] + g.slot[a]
            for i in range(q):
                for j in range(c):
                    X[(at + i) * c + j] = 0.0
                for r in range(q):
                    x = g.factor[r * q + i]
                    for j in range(c):
                        X[(at + i) * c + j] += x * C[(at + r) * c + j]
    for comp in range(e.n_comps):
        n = e.core_size[comp]
        at = e.core_slot[comp]
        half_solve(e, comp, c, X + at * c, False)
        if H != NULL:
            subtract_squares(n, c, X + at * c, X + at * c, H)
        half_solve(e, comp, c, X + at * c, True)
    for t in range(e.n_tails):
        g = &e.tail[t]
        q = g.q
        for a in range(g.m):
            if g.core[a] < 0:
                continue
            at = e.comp_slot[g.comp[a]] + g.slot[a]
            multiply(q, q, c, g.factor, X + at * c, u + at * c)
    if not exact:
        for t in range(e.n_tails):
            g = &e.tail[t]
            q = g.q
            for a in range(g.m):
                if g.core[a] < 0:
                    continue
                at = e.comp_slot[g.comp[a]] + g.slot[a]
                multiply(q, q, c, g.lift, X + at * c, C + at * c)
        return
    # C <- C - K u first, then its part where L is nearly singular, then lift x
    for comp in range(e.n_comps):
        n = e.core_size[comp]
        at = e.core_slot[comp]
        # the second half of X holds K u
        times_symmetric(n, c, c, e.K + e.comp_start[comp], u + at * c, X + (n_tail + at) * c)
        for i in range(at * c, (at + n) * c):
            C[i] -= X[n_tail * c + i]
    for t in range(e.n_tails):
        g = &e.tail[t]
        q = g.q
        for a in range(g.m):
            if g.core[a] < 0:
                continue
            at = e.comp_slot[g.comp[a]] + g.slot[a]
            multiply(q, q, c, g.rest, C + at * c, e.scratch)
            multiply(q, q, c, g.lift, X + at * c, C + at * c)
            for i in range(q * c):
                C[at * c + i] += e.scratch[i]


cdef void backward(Elimination* e, Py_ssize_t c, double* V, double* U) noexcept nogil:
    """E of the sparse levels and of the chain (into V) and posterior means (into U),
    once those of the cores are there."""
    cdef Py_ssize_t s, l, a, b, i, j, r, q, qc, w, first
    cdef Stage* f
    cdef double* own
    cdef const double* B
    cdef const double* row
    cdef const int* nbr
    cdef double t
    cdef Reach x
    backward_sparse(e, c, V, U)
    for s in range(e.n_stages - 1, -1, -1):
        f = &e.stage[s]
        q = f.q
        qc = f.qc
        for a in range(f.m):
            own = e.scratch
            memcpy(own, V + (f.slot + a * q) * c, q * c * sizeof(double))
            b = a
            first = 0
            for l in range(s + 1, e.n_stages):
                b = e.stage[l - 1].parent[b]
                row = U + (e.stage[l].slot + b * e.stage[l].q) * c
                for r in range(q):
                    for i in range(e.stage[l].q):
                        t = f.chain[(a * q + r) * qc + first + i]
                        for j in range(c):
                            own[r * c + j] -= t * row[i * c + j]
                first += e.stage[l].q
            if e.n_tails > 0:
                w = f.start[a + 1] - f.start[a]
                nbr = f.nbr + f.start[a]
                B = f.panel + q * f.start[a]
                row = U + (e.tail_slot + e.comp_slot[f.comp[a]]) * c
                if e.block != NULL:
                    find_reach(q, e, s, a, e.scratch, &x)
                    add_rows(q, c, -1.0, row, &x, e.block, own)
                for r in range(q if e.block == NULL else 0):
                    for i in range(w):
                        t = B[r * w + i]
                        for j in range(c):
                            own[r * c + j] -= t * row[nbr[i] * c + j]
            multiply(q, q, c, f.proj + a * q * q, own, V + (f.slot + a * q) * c)
            multiply(q, q, c, f.G, V + (f.slot + a * q) * c, U + (f.slot + a * q) * c)


cdef void products(Elimination* e, Py_ssize_t c, const double* R, double* out) noexcept nogil:
    """out = Z'Z R."""
    cdef Py_ssize_t s, l, t, a, b, i, j, r, q, qc, w, first, at, base
    cdef Stage* f
    cdef Tail* g
    cdef const double* B
    cdef const int* nbr
    cdef Reach x
    memset(out, 0, e.n_slots * c * sizeof(double))
    for s in range(e.n_stages):
        f = &e.stage[s]
        q = f.q
        qc = f.qc
        for a in range(f.m):
            at = f.slot + a * q
            for r in range(q):
                add_pair(c, 1, q, f.own0 + (a * q + r) * q, R + at * c, out + (at + r) * c)
            b = a
            first = 0
            for l in range(s + 1, e.n_stages):
                b = e.stage[l - 1].parent[b]
                base = e.stage[l].slot + b * e.stage[l].q
                for r in range(q):
                    for i in range(e.stage[l].q):
                        add_both(c, f.chain0[(a * q + r) * qc + first + i], R, out, at + r, base + i)
                first += e.stage[l].q
            if e.n_tails > 0:
                w = f.start[a + 1] - f.start[a]
                nbr = f.nbr + f.start[a]
                B = f.panel0 + q * f.start[a]
                base = e.tail_slot + e.comp_slot[f.comp[a]]
                if e.block != NULL and c <= e.wide:
                    x.w = w
                    x.nbr = nbr
                    x.panel = <double*> B
                    add_rows(q, c, 1.0, R + base * c, &x, e.block, out + at * c)
                    crossed(w, c, q, <double*> R + at * c, <double*> B, w, e.block)
                    for i in range(w):
                        for j in range(c):
                            out[(base + nbr[i]) * c + j] += e.block[i * c + j]
                    continue
                for r in range(q):
                    for i in range(w):
                        add_both(c, B[r * w + i], R, out, at + r, base + nbr[i])
    for t in range(e.n_tails):
        g = &e.tail[t]
        q = g.q
        for a in range(g.m):
            base = e.tail_slot + e.comp_slot[g.comp[a]]
            at = base + g.slot[a]
            w = g.start[a + 1] - g.start[a]
            nbr = g.nbr + g.start[a]
            for r in range(q):
                add_pair(c, 1, q, g.own0 + (a * q + r) * q, R + at * c, out + (at + r) * c)
                for i in range(w):
                    add_both(c, g.panel0[q * g.start[a] + r * w + i], R, out, at + r, base + nbr[i])


cdef inline void add_pair(Py_ssize_t c, Py_ssize_t n, Py_ssize_t m, const double* A, const double* B, double* out
                          ) noexcept nogil:
    """out (n, c) += A (n, m) B (m, c)."""
    cdef Py_ssize_t i, j, r
    for i in range(n):
        for r in range(m):
            for j in range(c):
                out[i * c + j] += A[i * m + r] * B[r * c + j]


cdef inline void add_both(Py_ssize_t c, double t, const double* R, double* out, Py_ssize_t i, Py_ssize_t l
                          ) noexcept nogil:
    """One element and its mirror image."""
    cdef Py_ssize_t j
    for j in range(c):
        out[i * c + j] += t * R[l * c + j]
    for j in range(c):
        out[l * c + j] += t * R[i * c + j]
