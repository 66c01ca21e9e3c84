# All of N = Z'V^-1 Z, and the traces tr(D A F B) that exact second derivatives are made of (see elimination.pxi).
#
# uses   P_a of elimination.pxi, `cov` of posterior.pxi, B Q of together.pxi; mirror (dense.pxi); vanishing.pxi
# gives  normal_of_one, add_traces, gemm, times_right

cdef void times_right(Py_ssize_t rows, Py_ssize_t q, double* A, Py_ssize_t ld, double* M, double* work) noexcept nogil:
    """A (rows, q) <- A M, in place; work: (STRIP, q)."""
    cdef Py_ssize_t first = 0, count, i, j, r
    if q == 1 or rows <= SMALL:
        for i in range(rows):
            for j in range(q):
                work[j] = 0.0
                for r in range(q):
                    work[j] += A[i * ld + r] * M[r * q + j]
            for j in range(q):
                A[i * ld + j] = work[j]
        return
    while first < rows:
        count = min(STRIP, rows - first)
        gemm(1.0, Matrix(A + first * ld, count, q, ld), Matrix(M, q, q, q), False, 0.0, Matrix(work, count, q, q))
        for i in range(count):
            for j in range(q):
                A[(first + i) * ld + j] = work[i * q + j]
        first += STRIP


cdef void lift_columns(Elimination* e, Py_ssize_t rows, double* A, Py_ssize_t ld) noexcept nogil:
    """Columns of A (rows, n_tail) of each level of the tail <- times lift lift'."""
    cdef Py_ssize_t t, a, i, j, r, q
    cdef Tail* g
    cdef double* M = e.scratch
    for t in range(e.n_tails):
        g = &e.tail[t]
        q = g.q
        for i in range(q):
            for j in range(q):
                M[i * q + j] = 0.0
                for r in range(q):
                    M[i * q + j] += g.lift[i * q + r] * g.lift[j * q + r]
        for a in range(g.m):
            times_right(rows, q, A + e.comp_slot[g.comp[a]] + g.slot[a], ld, M, M + q * q)


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
    """All of N (n_slots, n_slots) for one factor in the chain and a tail of one core.

    With Y_a = P_a B_a, Q = L S^-1 L' and T = L^-T (as far as L is not nearly singular; R = U U' projects on the rest)

        N_ab = [a = b] P_a K_a - Y_a Q Y_b',   N_at = Y Q T T' + (Y - Y Q K) R
        N_tt = T (I - S^-1) T' + R X + X R - R X R,   X = K - K Q K

    Y, X : (chain slots, n_tail), (the larger of chain slots and n_tail, n_tail) work space
    """
    cdef Py_ssize_t n = e.tail_slot, w = e.n_slots - n, size = e.n_slots, u = count_vanishing(e, 0, e.comp_block[1]), i, j
    normal_of_chain(e, N, Y, X)
    if u > 0:
        mirror(w, e.K)
        project_columns(e, n, Y, w, N + n, size)
        times_vanishing(e, 0, e.comp_block[1], w, e.K, w, e.work, u)
        gemm(1.0, Matrix(X, n, w, w), Matrix(e.work, w, u, u), False, 0.0, Matrix(Y, n, u, u))
        spread_vanishing(e, n, -1.0, Y, u, N + n, size, False)
    lift_columns(e, n, X, w)
    for i in range(n):
        for j in range(w):
            N[i * size + n + j] = X[i * w + j] + (N[i * size + n + j] if u > 0 else 0.0)
    normal_of_tail(e, N + n * size + n, X)
    if u > 0:
        add_vanishing(e, N + n * size + n, X)
    transpose(n, w, N + n, size, N + n * size, size)


cdef void project_chain(Elimination* e, double* Y) noexcept nogil:
    """Y_a = P_a B_a."""
    cdef const Stage* f = &e.stage[0]
    cdef Py_ssize_t n = e.tail_slot, w = e.n_slots - n, q = f.q, a, i, j, r, v
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


cdef void project_together(const Stage* f, Py_ssize_t w, double* Y, double* X) noexcept nogil:
    """Y_a = P_a B_a and X_a = P_a B_a Q, of which B Q is known."""
    cdef Py_ssize_t a, q = f.q
    cdef Matrix P
    for a in range(f.m):
        P = Matrix(f.proj + a * q * q, q, q, q)
        gemm(1.0, P, Matrix(f.whole + a * q * w, q, w, w), False, 0.0, Matrix(Y + a * q * w, q, w, w))
        gemm(1.0, P, Matrix(f.product + a * q * w, q, w, w), False, 0.0, Matrix(X + a * q * w, q, w, w))


cdef void normal_of_chain(Elimination* e, double* N, double* Y, double* X) noexcept nogil:
    """Y, X = Y Q, and N between levels of the chain."""
    cdef Stage* f = &e.stage[0]
    cdef Py_ssize_t n = e.tail_slot, w = e.n_slots - n, size = e.n_slots, q = f.q, a, i, j, r
    if f.whole != NULL:
        project_together(f, w, Y, X)
    else:
        project_chain(e, Y)
        memset(X, 0, n * w * sizeof(double))
        add_symmetric(w, n, e.cov, Y, X)
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
    mirror(w, X)
    lift_columns(e, w, X, w)
    transpose(w, w, X, w, Nt, size)
    lift_columns(e, w, Nt, size)
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


cdef void gather(const Pairs* pairs, Py_ssize_t a, Py_ssize_t first) noexcept nogil:
    """left (m_g - first, q_f, q_g): N_ab for all levels b from the first on."""
    cdef const Level* f = pairs.f
    cdef const Level* g = pairs.g
    cdef Py_ssize_t b, i, r
    cdef const double* row
    for b in range(first, g.m):
        for i in range(f.q):
            row = pairs.N + (f.at[a] + i) * pairs.size + g.at[b]
            for r in range(g.q):
                pairs.left[((b - first) * f.q + i) * g.q + r] = row[r]


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
    """out (q_f q_g, q_f q_g) = sum_ab vec(N_ab) vec(share N_ab + weight x_a x_b')' for levels a, b of two factors.

    Of one factor with itself the pairs b >= a are taken, half of those on the diagonal, and the others from them.
    """
    cdef const Level* f = pairs.f
    cdef const Level* g = pairs.g
    cdef Py_ssize_t a, b, i, r, first, wide = f.q * g.q
    cdef int rows = <int> wide, inner
    cdef bint same = f.column == g.column
    cdef double one = 1.0, y, half
    cdef double* left = pairs.left
    cdef double* right = pairs.right
    cdef char plain = b'N', trans = b'T'
    if wide == 1:
        out[0] = trace_of_intercepts(pairs, share, weight)
        return
    memset(out, 0, wide * wide * sizeof(double))
    for a in range(f.m):
        first = a if same else 0
        inner = <int> (g.m - first)
        gather(pairs, a, first)
        for b in range(inner):
            half = 0.5 if same and b == 0 else 1.0
            for i in range(f.q):
                y = half * weight * pairs.x[f.at[a] + i]
                for r in range(g.q):
                    right[(b * f.q + i) * g.q + r] = (half * share * left[(b * f.q + i) * g.q + r]
                                                      + y * pairs.x[g.at[first + b] + r])
        if wide < 9:
            for b in range(inner):
                for i in range(wide):
                    y = left[b * wide + i]
                    for r in range(wide):
                        out[i * wide + r] += y * right[b * wide + r]
            continue
        dgemm(&plain, &trans, &rows, &rows, &inner, &one, right, &rows, left, &rows, &one, out, &rows)
    if same:
        add_mirrored(f.q, out)


cdef void add_mirrored(Py_ssize_t q, double* T) noexcept nogil:
    """T (q q, q q) += what stands at places (j, i), (l, k) in place of (i, j), (k, l): from the pairs (b, a)."""
    cdef Py_ssize_t i, j, k, l, here, there
    cdef double t
    for i in range(q):
        for j in range(q):
            for k in range(q):
                for l in range(q):
                    here = (i * q + j) * q * q + k * q + l
                    there = (j * q + i) * q * q + l * q + k
                    if here <= there:
                        t = T[here] + T[there]
                        T[here] = t
                        T[there] = t
