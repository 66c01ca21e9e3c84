# All of N = Z'V^-1 Z, and the traces tr(D A F B) that exact second derivatives are made of (see elimination.pxi).
#
# uses   P_a of elimination.pxi, `cov` of posterior.pxi, B Q of together.pxi; mirror (dense.pxi); vanishing.pxi
# gives  normal_of_one, add_traces, gemm, times_level, times_right; whole_levels

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


cdef void times_level(double alpha, Matrix A, Matrix M, bint transposed, double beta, Matrix out) noexcept nogil:
    """out = alpha A M + beta out, or with M', for the columns A of one level."""
    cdef Py_ssize_t i
    if A.columns > 1 or out.columns > 1:
        gemm(alpha, A, M, transposed, beta, out)
        return
    alpha *= M.at[0]
    for i in range(A.rows):
        out.at[i * out.ld] = alpha * A.at[i * A.ld] + (beta * out.at[i * out.ld] if beta != 0.0 else 0.0)


cdef void lift_columns(Elimination* e, Matrix A, double beta, Matrix out) noexcept nogil:
    """Columns of out (rows, n_tail) of each level of the tail <- those of A times lift lift' + beta out."""
    cdef Py_ssize_t t, a, i, j, r, q, at
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
            at = e.comp_slot[g.comp[a]] + g.slot[a]
            times_level(1.0, Matrix(A.at + at, A.rows, q, A.ld), Matrix(M, q, q, q), False, beta,
                        Matrix(out.at + at, out.rows, q, out.ld))


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


cdef Py_ssize_t whole_levels(Py_ssize_t q) noexcept nogil:
    """Rows of a strip of a matrix of levels with q columns, none of which is parted."""
    return max(1, STRIP // q) * q


cdef void normal_of_one(Elimination* e, double* N, double* Y, double* X) noexcept nogil:
    """N (n_slots, n_slots) for one factor in the chain and a tail of one core,
    but for what add_traces does not look at.

    With Y_a = P_a B_a, Q = L S^-1 L' and T = L^-T (as far as L is not nearly singular; R = U U' projects on the rest)

        N_ab = [a = b] P_a K_a - Y_a Q Y_b',   N_at = Y Q T T' + (Y - Y Q K) R
        N_tt = T (I - S^-1) T' + R X + X R - R X R,   X = K - K Q K

    of levels a, b of the chain for b >= a, and nothing for (t, a).

    Y, X : (the larger of chain slots and n_tail, n_tail) work space
    """
    cdef Py_ssize_t n = e.tail_slot, w = e.n_slots - n, size = e.n_slots, u = count_vanishing(e, 0, e.comp_block[1])
    normal_of_chain(e, N, Y, X)
    if u > 0:
        mirror(w, e.K)
        project_columns(e, n, Y, w, N + n, size)
        times_vanishing(e, 0, e.comp_block[1], w, e.K, w, e.work, u)
        gemm(1.0, Matrix(X, n, w, w), Matrix(e.work, w, u, u), False, 0.0, Matrix(Y, n, u, u))
        spread_vanishing(e, -1.0, Matrix(Y, n, u, u), N + n, size)
    lift_columns(e, Matrix(X, n, w, w), 1.0 if u > 0 else 0.0, Matrix(N + n, n, w, size))
    normal_of_tail(e, N + n * size + n, Y, X)
    if u > 0:
        add_vanishing(e, N + n * size + n, X, Y)


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
    """Y, X = Y Q, and N between levels of the chain, from that on the diagonal on."""
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
        r = min(whole_levels(q), n - a)
        gemm(-1.0, Matrix(X + a * w, r, w, w), Matrix(Y + a * w, n - a, w, w), True, 0.0,
             Matrix(N + a * (size + 1), r, n - a, size))
        a += r
    for a in range(f.m):
        for i in range(q):
            for j in range(q):
                for r in range(q):
                    N[(a * q + i) * size + a * q + j] += f.proj[(a * q + i) * q + r] * f.own[(a * q + r) * q + j]


cdef void normal_of_tail(Elimination* e, double* Nt, double* Y, double* X) noexcept nogil:
    """N between levels of the tail, where L is not nearly singular: T T' - T T'Q T T'."""
    cdef Py_ssize_t w = e.n_slots - e.tail_slot, size = e.n_slots, a, i, j, r, t, v
    cdef Tail* g
    memcpy(X, e.cov, w * w * sizeof(double))
    mirror(w, X)
    lift_columns(e, Matrix(X, w, w, w), 0.0, Matrix(Y, w, w, w))
    transpose(w, w, Y, w, X, w)
    lift_columns(e, Matrix(X, w, w, w), 0.0, Matrix(Y, w, w, w))
    for i in range(w):
        for j in range(w):
            Nt[i * size + j] = -Y[i * w + j]
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
    cdef bint same = f.column == g.column
    cdef double t, total = 0.0, y, own
    for a in range(f.m):
        row = pairs.N + f.at[a] * pairs.size
        y = weight * x[f.at[a]]
        t = 0.0
        for b in range(a + 1 if same else 0, g.m):
            t += row[g.at[b]] * (share * row[g.at[b]] + y * x[g.at[b]])
        own = row[f.at[a]]
        total += 2.0 * t + own * (share * own + y * x[f.at[a]]) if same else t
    return total


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
