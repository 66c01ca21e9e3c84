# All of N = Z'V^-1 Z, and the traces tr(D A F B) that exact second derivatives are made of (see elimination.pxi).
#
# uses   P_a of elimination.pxi, `cov` of posterior.pxi; mirror (dense.pxi)
# gives  normal_of_one, add_traces, gemm

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


cdef void gemm(double alpha, Matrix A, Matrix B, bint transposed, double beta, Matrix out) noexcept nogil:
    """out = alpha A B + beta out, or with B'."""
    cdef int rows = <int> out.columns, columns = <int> A.rows, inner = <int> A.columns
    cdef int a = <int> A.ld, b = <int> B.ld, o = <int> out.ld
    cdef char plain = b'N', first = b'T' if transposed else b'N'
    dgemm(&first, &plain, &rows, &columns, &inner, &alpha, B.at, &b, A.at, &a, &beta, out.at, &o)


cdef void normal_of_one(Elimination* e, double* N, double* Y, double* X) noexcept nogil:
    """All of N (n_slots, n_slots) for one factor in the chain and a tail of one component.

    With Y_a = P_a B_a, Q = L S^-1 L' and T = L^-T (as far as L is not nearly singular; R projects on the rest)

        N_ab = [a = b] P_a K_a - Y_a Q Y_b',   N_at = Y Q T T' + (Y - Y Q K) R
        N_tt = T (I - S^-1) T' + R X + X R - R X R,   X = K - K Q K

    Y, X : (chain slots, n_tail), (the larger of chain slots and n_tail, n_tail) work space
    """
    cdef Py_ssize_t n = e.tail_slot, w = e.n_slots - n, size = e.n_slots, i, j, t
    cdef double* row
    cdef bint exact = False
    for t in range(e.n_tails):
        exact = exact or e.tail[t].exact
    mirror(w, e.cov)
    normal_of_chain(e, N, Y, X)
    if exact:
        mirror(w, e.K)
        gemm(-1.0, Matrix(X, n, w, w), Matrix(e.K, w, w, w), False, 1.0, Matrix(Y, n, w, w))
        turn_columns(e, n, Y, w, True)
    turn_columns(e, n, X, w, False)
    for i in range(n):
        row = N + i * size + n
        for j in range(w):
            row[j] = X[i * w + j]
            if exact:
                row[j] += Y[i * w + j]
    normal_of_tail(e, N + n * size + n, X)
    if exact:
        add_singular_part(e, N + n * size + n, X)
    transpose(n, w, N + n, size, N + n * size, size)


cdef void normal_of_chain(Elimination* e, double* N, double* Y, double* X) noexcept nogil:
    """Y, X = Y Q, and N between levels of the chain."""
    cdef Stage* f = &e.stage[0]
    cdef Py_ssize_t n = e.tail_slot, w = e.n_slots - n, size = e.n_slots, q = f.q, a, i, j, r, v
    cdef double* row
    cdef const int* nbr
    cdef const double* B
    cdef double x
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
    gemm(1.0, Matrix(Y, n, w, w), Matrix(e.cov, w, w, w), False, 0.0, Matrix(X, n, w, w))
    a = 0
    while a < n:
        r = min(64, n - a)
        gemm(-1.0, Matrix(X + a * w, r, w, w), Matrix(Y, a + r, w, w), True, 0.0, Matrix(N + a * size, r, a + r, size))
        transpose(r, a, N + a * size, size, N + a, size)
        a += r
    for a in range(f.m):
        for i in range(q):
            for j in range(q):
                for r in range(q):
                    N[(a * q + i) * size + a * q + j] += f.proj[(a * q + i) * q + r] * f.own[(a * q + r) * q + j]


cdef void normal_of_tail(Elimination* e, double* Nt, double* X) noexcept nogil:
    """N between levels of the tail, where L is not nearly singular: T T' - T T'Q T T'."""
    cdef Py_ssize_t w = e.n_slots - e.tail_slot, size = e.n_slots, a, i, j, r, t, v
    cdef Tail* g
    memcpy(X, e.cov, w * w * sizeof(double))
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


cdef void add_singular_part(Elimination* e, double* Nt, double* X) noexcept nogil:
    """Nt += R X + X R - R X R, X = K - K Q K, where L is nearly singular; X (n_tail, n_tail) is work space."""
    cdef Py_ssize_t w = e.n_slots - e.tail_slot, size = e.n_slots, i, j
    gemm(1.0, Matrix(e.cov, w, w, w), Matrix(e.K, w, w, w), False, 0.0, Matrix(X, w, w, w))
    memcpy(e.work, e.K, w * w * sizeof(double))
    gemm(-1.0, Matrix(e.K, w, w, w), Matrix(X, w, w, w), False, 1.0, Matrix(e.work, w, w, w))
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


cdef void gather(const Pairs* pairs, Py_ssize_t a) noexcept nogil:
    """left (m_g, q_f, q_g): N_ab for all levels b."""
    cdef const Level* f = pairs.f
    cdef const Level* g = pairs.g
    cdef Py_ssize_t b, i, r
    cdef const double* row
    for b in range(g.m):
        for i in range(f.q):
            row = pairs.N + (f.at[a] + i) * pairs.size + g.at[b]
            for r in range(g.q):
                pairs.left[(b * f.q + i) * g.q + r] = row[r]


cdef double trace_of_intercepts(const Pairs* pairs, double share, double weight) noexcept nogil:
    """`add_traces` for factors of one column."""
    cdef const Level* f = pairs.f
    cdef const Level* g = pairs.g
    cdef const double* x = pairs.x
    cdef const double* row
    cdef Py_ssize_t a, b
    cdef double t = 0.0, y
    for a in range(f.m):
        row = pairs.N + f.at[a] * pairs.size
        y = weight * x[f.at[a]]
        for b in range(g.m):
            t += row[g.at[b]] * (share * row[g.at[b]] + y * x[g.at[b]])
    return t


cdef void add_traces(const Pairs* pairs, double share, double weight, double* out) noexcept nogil:
    """out (q_f q_g, q_f q_g) = sum_ab vec(N_ab) vec(share N_ab + weight x_a x_b')' for levels a, b of two factors."""
    cdef const Level* f = pairs.f
    cdef const Level* g = pairs.g
    cdef Py_ssize_t a, b, i, r, wide = f.q * g.q
    cdef int rows = <int> wide, inner = <int> g.m
    cdef double one = 1.0, beta = 0.0, y
    cdef double* left = pairs.left
    cdef double* right = pairs.right
    cdef char plain = b'N', trans = b'T'
    if wide == 1:
        out[0] = trace_of_intercepts(pairs, share, weight)
        return
    for a in range(f.m):
        gather(pairs, a)
        for b in range(g.m):
            for i in range(f.q):
                y = weight * pairs.x[f.at[a] + i]
                for r in range(g.q):
                    right[(b * f.q + i) * g.q + r] = share * left[(b * f.q + i) * g.q + r] + y * pairs.x[g.at[b] + r]
        if wide < 9:
            if a == 0:
                memset(out, 0, wide * wide * sizeof(double))
            for b in range(g.m):
                for i in range(wide):
                    y = left[b * wide + i]
                    for r in range(wide):
                        out[i * wide + r] += y * right[b * wide + r]
            continue
        dgemm(&plain, &trans, &rows, &rows, &inner, &one, right, &rows, left, &rows, &beta, out, &rows)
        beta = 1.0
