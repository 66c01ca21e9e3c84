# What the directions of the tail add in which L is nearly singular, so that N of them is K - K Q K and nothing that L
# would be divided by.  They span few of a factor's columns as a rule: with U (q, r) an orthonormal basis of them for
# each level, side by side, products with K are taken of K U alone.
#
# uses   jacobi (kernels/_matrices.pxd); symmetric_product, times_symmetric, interrupted (dense.pxi); gemm, times_level
#        (curvature.pxi)
# gives  split; times_vanishing, spread_vanishing, project_columns, add_vanishing; count_vanishing, columns_at_a_time,
#        precisions_where_singular

cdef Py_ssize_t COLUMNS = 256
"""Columns of K U that are worked on at a time."""

cdef double NEARLY_SINGULAR = 1e-3
"""L^2 K below which N of the tail is not taken from I - S^-1, which would cancel."""


cdef void split(Tail* g, double size, double* work) noexcept nogil:
    """lift = L^-T on the directions of L that are not nearly singular; of the others rest, a projector, and basis."""
    cdef Py_ssize_t q = g.q, i, j, r
    cdef double* A = work
    cdef double* Q = A + q * q
    cdef double* w = Q + q * q
    cdef double* y = w + q
    cdef double largest = 0.0, t
    g.exact = False
    g.n_rest = 0
    if q == 1:
        g.exact = not g.factor[0] * g.factor[0] * size > NEARLY_SINGULAR
        g.lift[0] = 0.0 if g.exact else 1.0 / g.factor[0]
        g.rest[0] = 1.0 if g.exact else 0.0
        g.basis[0] = 1.0
        g.n_rest = 1 if g.exact else 0
        return
    memcpy(A, g.G, q * q * sizeof(double))
    jacobi(q, A, Q, w)
    for i in range(q * q):
        g.lift[i] = 0.0
        g.rest[i] = 0.0
    for i in range(q):
        largest = max(largest, w[i])
    for r in range(q):
        t = 0.0
        for j in range(q):
            y[j] = 0.0
            for i in range(q):
                y[j] += Q[i * q + r] * g.factor[i * q + j]
            t += y[j] * y[j]
        if t * size > NEARLY_SINGULAR and t > 1e-10 * largest:
            for i in range(q):
                for j in range(q):
                    g.lift[i * q + j] += Q[i * q + r] * y[j] / t
        else:
            g.exact = True
            for i in range(q):
                g.basis[i * q + g.n_rest] = Q[i * q + r]
                for j in range(q):
                    g.rest[i * q + j] += Q[i * q + r] * Q[j * q + r]
            g.n_rest += 1


cdef Py_ssize_t count_vanishing(const Elimination* e, Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    """Columns of U for the levels from `first` to `stop` in the list of those in cores."""
    cdef Py_ssize_t l, count = 0
    for l in range(first, stop):
        count += e.tail[e.block_tail[l]].n_rest
    return count


cdef Py_ssize_t columns_at_a_time(const Elimination* e, Py_ssize_t c) noexcept nogil:
    """Columns of K U of core c that the work space of that core is for."""
    cdef Py_ssize_t t, widest = 1
    for t in range(e.n_tails):
        widest = max(widest, e.tail[t].q)
    return max(widest, min(COLUMNS, e.core_size[c] // 2))


cdef void times_vanishing(const Elimination* e, Py_ssize_t first, Py_ssize_t stop, Py_ssize_t rows, double* A,
                          Py_ssize_t ld, double* out, Py_ssize_t ldo) noexcept nogil:
    """out (rows, columns of U) = A U for some of the levels in a core; A (rows, core) has a column for each slot."""
    cdef Py_ssize_t l, at = 0
    cdef const Tail* g
    for l in range(first, stop):
        g = &e.tail[e.block_tail[l]]
        if g.n_rest > 0:
            times_level(1.0, Matrix(A + e.block_slot[l], rows, g.q, ld), Matrix(g.basis, g.q, g.n_rest, g.q), False,
                        0.0, Matrix(out + at, rows, g.n_rest, ldo))
        at += g.n_rest


cdef void spread_vanishing(const Elimination* e, double alpha, Matrix D, double* out, Py_ssize_t ldo) noexcept nogil:
    """out += alpha D U' for D (rows, columns of U) of the only core."""
    cdef Py_ssize_t l, at = 0
    cdef const Tail* g
    for l in range(e.comp_block[1]):
        g = &e.tail[e.block_tail[l]]
        if g.n_rest > 0:
            times_level(alpha, Matrix(D.at + at, D.rows, g.n_rest, D.ld), Matrix(g.basis, g.q, g.n_rest, g.q), True,
                        1.0, Matrix(out + e.block_slot[l], D.rows, g.q, ldo))
        at += g.n_rest


cdef void project_columns(const Elimination* e, Py_ssize_t rows, double* A, Py_ssize_t ld, double* out, Py_ssize_t ldo
                          ) noexcept nogil:
    """out = A U U' for A (rows, core) of the only core."""
    cdef Py_ssize_t l
    cdef const Tail* g
    for l in range(e.comp_block[1]):
        g = &e.tail[e.block_tail[l]]
        times_level(1.0, Matrix(A + e.block_slot[l], rows, g.q, ld), Matrix(g.rest, g.q, g.q, g.q), False, 0.0,
                    Matrix(out + e.block_slot[l], rows, g.q, ldo))


cdef void add_vanishing(Elimination* e, double* Nt, double* Z, double* S) noexcept nogil:
    """Nt += R X + X R - R X R, X = K - K Q K and R = U U', for N between levels of the tail, of one core.

    It is S + S' of S = (I - R / 2) X U U'.  e.work holds K U; Z (core, columns of U) and S (core, core) are work space.
    """
    cdef Py_ssize_t w = e.core_size[0], u = count_vanishing(e, 0, e.comp_block[1]), size = e.n_slots, l, i, j, ib, jb
    cdef const Tail* g
    cdef double* XU = e.work
    times_symmetric(w, u, u, e.cov, XU, Z)
    gemm(-1.0, Matrix(e.K, w, w, w), Matrix(Z, w, u, u), False, 1.0, Matrix(XU, w, u, u))
    memcpy(Z, XU, w * u * sizeof(double))
    for l in range(e.comp_block[1]):
        g = &e.tail[e.block_tail[l]]
        if g.n_rest > 0:
            gemm(-0.5, Matrix(g.rest, g.q, g.q, g.q), Matrix(Z + e.block_slot[l] * u, g.q, u, u), False, 1.0,
                 Matrix(XU + e.block_slot[l] * u, g.q, u, u))
    memset(S, 0, w * w * sizeof(double))
    spread_vanishing(e, 1.0, Matrix(XU, w, u, u), S, w)
    for ib in range(0, w, 16):
        for jb in range(0, w, 16):
            for i in range(ib, min(ib + 16, w)):
                for j in range(jb, min(jb + 16, w)):
                    Nt[i * size + j] += S[i * w + j] + S[j * w + i]


cdef void close_vanishing(const Elimination* e, Py_ssize_t l, const double* K, Matrix Z, double* N) noexcept nogil:
    """Add R x + x R - R x R, x = (K - K Q K)_bb, of a level to its N; Z (core, r) = Q K U of the level, K its rows."""
    cdef const Tail* g = &e.tail[e.block_tail[l]]
    cdef Py_ssize_t q = g.q, r = g.n_rest, n = Z.rows, i, j, c, d
    cdef double* x = e.scratch              # x U (q, r), then U'x U (r, r)
    cdef double* inner = x + q * q
    cdef double t
    for i in range(q):
        for c in range(r):
            t = 0.0
            for j in range(q):
                t += K[i * n + e.block_slot[l] + j] * g.basis[j * q + c]
            for j in range(n):
                t -= K[i * n + j] * Z.at[j * Z.ld + c]
            x[i * r + c] = t
    for c in range(r):
        for d in range(r):
            t = 0.0
            for i in range(q):
                t += g.basis[i * q + c] * x[i * r + d]
            inner[c * r + d] = t
    for i in range(q):
        for j in range(q):
            t = 0.0
            for c in range(r):
                t += x[i * r + c] * g.basis[j * q + c] + g.basis[i * q + c] * x[j * r + c]
                for d in range(r):
                    t -= g.basis[i * q + c] * inner[c * r + d] * g.basis[j * q + d]
            N[i * e.widest + j] += t


cdef bint precisions_where_singular(Elimination* e, Py_ssize_t c) noexcept nogil:
    """Add the rows and columns of N_bb = (K - K Q K)_bb in which L is nearly singular, for the levels in a core.

    K and Q are full matrices.  Returns False where a signal has raised an exception.
    """
    cdef Py_ssize_t first = e.comp_block[c], stop, last = e.comp_block[c + 1], n = e.core_size[c], l, u, at
    cdef Py_ssize_t most = columns_at_a_time(e, c)
    cdef double* K = e.K + e.comp_start[c]
    cdef double* B = e.work                     # K U, and Q K U
    cdef double* Z = e.work + n * most
    cdef const Tail* g
    while first < last:
        u, stop = 0, first
        while stop < last and u + e.tail[e.block_tail[stop]].n_rest <= most:
            u += e.tail[e.block_tail[stop]].n_rest
            stop += 1
        if u > 0:
            times_vanishing(e, first, stop, n, K, n, B, u)
            if (n >= LARGE and interrupted()) or not symmetric_product(n, u, e.cov + e.comp_start[c], B, Z):
                return False
            at = 0
            for l in range(first, stop):
                g = &e.tail[e.block_tail[l]]
                if g.n_rest > 0:
                    close_vanishing(e, l, K + e.block_slot[l] * n, Matrix(Z + at, n, g.n_rest, u),
                                    e.precision + (e.core_slot[c] + e.block_slot[l]) * e.widest)
                at += g.n_rest
        first = stop
    return True
