# All of N = Z'V^-1 Z, and the traces tr(D A F B) that exact second derivatives are made of (see elimination.pxi).

cdef void turn_columns(Elimination* e, Py_ssize_t rows, double* A, Py_ssize_t ld, bint resting) noexcept nogil:
    """Columns of A (rows, n_tail) of each level of the tail <- times lift lift', or the projector `rest`."""
    cdef Py_ssize_t t, a, i, j, r, q, at
    cdef Tail* g
    cdef double* M
    cdef double* row
    cdef double* W = e.scratch
    cdef double* x
    for t in range(e.n_tails):
        g = &e.tail[t]
        q = g.q
        x = W + q * q
        M = g.rest
        if not resting:
            M = W
            for i in range(q):
                for j in range(q):
                    W[i * q + j] = 0.0
                    for r in range(q):
                        W[i * q + j] += g.lift[i * q + r] * g.lift[j * q + r]
        for i in range(rows):
            for a in range(g.m):
                at = e.comp_slot[g.comp[a]] + g.slot[a]
                row = A + i * ld + at
                for j in range(q):
                    x[j] = 0.0
                    for r in range(q):
                        x[j] += row[r] * M[r * q + j]
                for j in range(q):
                    row[j] = x[j]


cdef void transpose(Py_ssize_t rows, Py_ssize_t columns, const double* A, Py_ssize_t lda, double* out, Py_ssize_t ldo
                    ) noexcept nogil:
    """out (columns, rows) = A', by tiles."""
    cdef Py_ssize_t i, j, ib, jb
    for ib in range(0, rows, 16):
        for jb in range(0, columns, 16):
            for i in range(ib, min(ib + 16, rows)):
                for j in range(jb, min(jb + 16, columns)):
                    out[j * ldo + i] = A[i * lda + j]


cdef void gemm(Py_ssize_t n, Py_ssize_t m, Py_ssize_t l, double alpha, double* A, Py_ssize_t lda, double* B,
               Py_ssize_t ldb, bint transposed, double beta, double* out, Py_ssize_t ldo) noexcept nogil:
    """out (n, l) = alpha A (n, m) B (m, l) + beta out, or with B (l, m)'."""
    cdef int rows = <int> l, columns = <int> n, inner = <int> m, a = <int> lda, b = <int> ldb, o = <int> ldo
    cdef char plain = b'N', first = b'T' if transposed else b'N'
    dgemm(&first, &plain, &rows, &columns, &inner, &alpha, B, &b, A, &a, &beta, out, &o)


cdef void normal_of_one(Elimination* e, double* N, double* Y, double* X) noexcept nogil:
    """All of N (n_slots, n_slots) for one factor in the chain and a tail of one component.

    With Y_a = P_a B_a, Q = L S^-1 L' and T = L^-T (as far as L is not nearly singular; R projects on the rest)

        N_ab = [a = b] P_a K_a - Y_a Q Y_b',   N_at = Y Q T T' + (Y - Y Q K) R
        N_tt = T (I - S^-1) T' + R X + X R - R X R,   X = K - K Q K

    Y, X : (chain slots, n_tail), (the larger of chain slots and n_tail, n_tail) work space
    """
    cdef Stage* f = &e.stage[0]
    cdef Py_ssize_t n = e.tail_slot, w = e.n_slots - n, size = e.n_slots, q = f.q, a, i, j, r, t, v
    cdef int rows = <int> w, columns = <int> n
    cdef double one = 1.0, zero = 0.0
    cdef char right = b'R', upper = b'U'
    cdef double* Nt = N + n * size + n
    cdef double* K = e.K
    cdef double* row
    cdef const int* nbr
    cdef const double* B
    cdef Tail* g
    cdef bint exact = False
    cdef double x
    for t in range(e.n_tails):
        exact = exact or e.tail[t].exact
    mirror(w, e.cov)
    memset(Y, 0, n * w * sizeof(double))
    for a in range(f.m):
        v = f.start[a + 1] - f.start[a]
        nbr = f.nbr + f.start[a]
        B = f.panel + q * f.start[a]
        for i in range(q):
            row = Y + (a * q + i) * w
            for r in range(q):
                x = f.proj[(a * q + i) * q + r]
                for j in range(v):
                    row[nbr[j]] += x * B[r * v + j]
    # X = Y Q
    gemm(n, w, w, 1.0, Y, w, e.cov, w, False, 0.0, X, w)
    a = 0
    while a < n:
        r = min(64, n - a)
        gemm(r, w, a + r, -1.0, X + a * w, w, Y, w, True, 0.0, N + a * size, size)
        transpose(r, a, N + a * size, size, N + a, size)
        a += r
    for a in range(f.m):
        for i in range(q):
            for j in range(q):
                for r in range(q):
                    N[(a * q + i) * size + a * q + j] += f.proj[(a * q + i) * q + r] * f.own[(a * q + r) * q + j]
    if exact:
        mirror(w, K)
        gemm(n, w, w, -1.0, X, w, K, w, False, 1.0, Y, w)
        turn_columns(e, n, Y, w, True)
    turn_columns(e, n, X, w, False)
    for i in range(n):
        row = N + i * size + n
        for j in range(w):
            row[j] = X[i * w + j]
            if exact:
                row[j] += Y[i * w + j]
    # the tail: T T' - T T'Q T T'
    for i in range(w):
        memcpy(X + i * w, e.cov + i * w, w * sizeof(double))
    turn_columns(e, w, X, w, False)
    transpose(w, w, X, w, Nt, size)
    turn_columns(e, w, Nt, size, False)
    for i in range(w):
        for j in range(w):
            Nt[i * size + j] = -Nt[i * size + j]
    for t in range(e.n_tails):
        g = &e.tail[t]
        for a in range(g.m):
            v = g.slot[a]
            for i in range(g.q):
                for j in range(g.q):
                    for r in range(g.q):
                        Nt[(v + i) * size + v + j] += g.lift[i * g.q + r] * g.lift[j * g.q + r]
    if exact:
        # Y takes X = K - K Q K, then its parts in the rest; there are at least as many slots in the chain
        gemm(w, w, w, 1.0, e.cov, w, K, w, False, 0.0, X, w)
        memcpy(e.work, K, w * w * sizeof(double))
        gemm(w, w, w, -1.0, K, w, X, w, False, 1.0, e.work, w)
        memcpy(X, e.work, w * w * sizeof(double))
        turn_columns(e, w, X, w, True)
        for i in range(w):
            for j in range(w):
                Nt[i * size + j] += X[i * w + j]
                Nt[j * size + i] += X[i * w + j]
        transpose(w, w, X, w, e.work, w)
        turn_columns(e, w, e.work, w, True)
        for i in range(w):
            for j in range(w):
                Nt[i * size + j] -= e.work[i * w + j]
    transpose(n, w, N + n, size, N + n * size, size)


cdef void gather(Py_ssize_t q, const double* N, Py_ssize_t size, const Py_ssize_t* at, Py_ssize_t m, Py_ssize_t q_g,
                 double* out) noexcept nogil:
    """out (m, q, q_g): blocks of the q rows N for the levels whose first columns are `at`."""
    cdef Py_ssize_t b, i, r
    cdef const double* row
    for b in range(m):
        for i in range(q):
            row = N + i * size + at[b]
            for r in range(q_g):
                out[(b * q + i) * q_g + r] = row[r]


cdef void add_traces(Py_ssize_t size, const double* N, const double* x, double share, double weight,
                     const Py_ssize_t* at_f, Py_ssize_t m_f, Py_ssize_t q_f, const Py_ssize_t* at_g, Py_ssize_t m_g,
                     Py_ssize_t q_g, double* left, double* right, double* out) noexcept nogil:
    """out (q_f q_g, q_f q_g) = sum_ab vec(N_ab) vec(share N_ab + weight x_a x_b')' for levels a, b of two factors.

    left, right : (m_g, q_f q_g) work space
    """
    cdef Py_ssize_t a, b, i, r, wide = q_f * q_g
    cdef int rows = <int> wide, inner = <int> m_g
    cdef double one = 1.0, beta = 0.0, t = 0.0, y
    cdef char plain = b'N', trans = b'T'
    cdef const double* row
    if wide == 1:
        for a in range(m_f):
            row = N + at_f[a] * size
            y = weight * x[at_f[a]]
            for b in range(m_g):
                t += row[at_g[b]] * (share * row[at_g[b]] + y * x[at_g[b]])
        out[0] = t
        return
    for a in range(m_f):
        gather(q_f, N + at_f[a] * size, size, at_g, m_g, q_g, left)
        for b in range(m_g):
            for i in range(q_f):
                y = weight * x[at_f[a] + i]
                for r in range(q_g):
                    right[(b * q_f + i) * q_g + r] = share * left[(b * q_f + i) * q_g + r] + y * x[at_g[b] + r]
        if wide < 9:
            if a == 0:
                memset(out, 0, wide * wide * sizeof(double))
            for b in range(m_g):
                for i in range(wide):
                    y = left[b * wide + i]
                    for r in range(wide):
                        out[i * wide + r] += y * right[b * wide + r]
            continue
        dgemm(&plain, &trans, &rows, &rows, &inner, &one, right, &rows, left, &rows, &beta, out, &rows)
        beta = 1.0
