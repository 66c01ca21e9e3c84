# Subjects of residuals that are a Markov chain, several at a time: the lanes are subjects.
#
# A subject is known by the first rows [r b] (q, K) of the triangular factor of A_i, the products of its whitened rows
# [Z X y], and by those of the derivatives of A_i along k parameters; `engines.residual.series` has the equations.  With
# M M' = I + r G r', Y = M^-1 r and D = M^-1 b,
#
#     N_i = Y'Y,   Q_i = Y'D,   b'(I + r G r')^-1 b = D'D,   log|I + r G r'| = 2 log|M|
#
# and for columns turned by C, T = I - N G, P = G T, U = [-G Q; C], E_a = (A_a U)_z, F_a what [X y] have of it:
#
#     U'A_a U = U_z'E_a + F_a'U_z + (the last part of A_a, which is summed elsewhere).
#
# Subjects beyond the last have zeros, and add nothing.


cdef inline void side_by_side(Py_ssize_t size, const double* rows, Py_ssize_t first, Py_ssize_t m, vecu* out
                              ) noexcept nogil:
    """The numbers of LANES subjects from `first` on, of arrays (m, size), as vectors."""
    cdef Py_ssize_t lane, j
    cdef double* to = <double*> out
    cdef const double* row
    for lane in range(LANES):
        if first + lane < m:
            row = rows + (first + lane) * size
            for j in range(size):
                to[j * LANES + lane] = row[j]
        else:
            for j in range(size):
                to[j * LANES + lane] = 0.0


cdef inline void times(Py_ssize_t n, Py_ssize_t l, Py_ssize_t p, const vecu* A, const vecu* B,
                       vecu* out) noexcept nogil:
    """out (n, p) = A (n, l) B (l, p)."""
    cdef Py_ssize_t i, j, s
    cdef vec t
    for i in range(n):
        for j in range(p):
            t = VEC_SET(0.0)
            for s in range(l):
                t = t + A[i * l + s] * B[s * p + j]
            out[i * p + j] = t


cdef inline void times_t(Py_ssize_t n, Py_ssize_t p, const vecu* A, const vecu* B, vecu* out) noexcept nogil:
    """out (n, p) = A'B for A (n, n), B (n, p)."""
    cdef Py_ssize_t i, j, s
    cdef vec t
    for i in range(n):
        for j in range(p):
            t = VEC_SET(0.0)
            for s in range(n):
                t = t + A[s * n + i] * B[s * p + j]
            out[i * p + j] = t


cdef inline double series_reduce_of(Py_ssize_t q, const SeriesWork* w, const double* triangle,
                                    double* H) noexcept nogil:
    cdef Py_ssize_t c = w.c, K = q + c, block, a, b, j, l
    cdef vecu* rows = <vecu*> w.work
    cdef vecu* U = rows + q * K
    cdef vecu* W = U + q * q
    cdef vecu* sums = W + q * q
    cdef vecu* Y
    cdef vecu* D
    cdef vec t, total = VEC_SET(0.0)
    for j in range(c * c):
        sums[j] = VEC_SET(0.0)
    for block in range(w.n_blocks):
        side_by_side(q * K, triangle, block * LANES, w.m, rows)
        Y = (<vecu*> w.Y) + block * q * q
        D = (<vecu*> w.D) + block * q * c
        for a in range(q):
            for j in range(q):
                Y[a * q + j] = rows[a * K + j]
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + rows[a * K + l] * w.G[l * q + j]
                U[a * q + j] = t
            for j in range(c):
                D[a * c + j] = rows[a * K + q + j]
        for a in range(q):
            for b in range(a + 1):
                t = VEC_SET(1.0 if a == b else 0.0)
                for l in range(q):
                    t = t + U[a * q + l] * Y[b * q + l]
                W[a * q + b] = t
        eliminate(q, W, q, Y, c, D, U)
        for a in range(q):
            total = total - VEC_LOG(U[a])
        for a in range(q):
            for j in range(c):
                t = D[a * c + j]
                for l in range(j + 1):
                    sums[j * c + l] = sums[j * c + l] + t * D[a * c + l]
    for j in range(c):
        for l in range(j + 1):
            H[j * c + l] = vec_sum(sums + j * c + l)
            H[l * c + j] = H[j * c + l]
    rows[0] = total
    return 2.0 * vec_sum(rows)


cdef double series_reduce(const SeriesWork* w, const double* triangle, double* H) noexcept nogil:
    """log|I + r G r'| and, in H (c, c), b'(I + r G r')^-1 b, summed; Y and D stay with the work space."""
    if w.q == 1:
        return series_reduce_of(1, w, triangle, H)
    if w.q == 2:
        return series_reduce_of(2, w, triangle, H)
    return series_reduce_of(w.q, w, triangle, H)


cdef inline void series_effects(Py_ssize_t q, const SeriesWork* w, Py_ssize_t block, const double* turn, vecu* P,
                                vecu* U) noexcept nogil:
    """N, Q and T of a block, which stay with the work space, P and U_z = -G Q."""
    cdef Py_ssize_t c = w.c, a, j, l
    cdef vecu* N = (<vecu*> w.N) + block * q * q
    cdef vecu* T = (<vecu*> w.T) + block * q * q
    cdef vecu* Q = (<vecu*> w.Q) + block * q * c
    cdef vecu* Y = (<vecu*> w.Y) + block * q * q
    cdef vec t
    times_t(q, q, Y, Y, N)
    times_t(q, c, Y, (<vecu*> w.D) + block * q * c, U)
    for a in range(q):
        for j in range(c):
            t = VEC_SET(0.0)
            for l in range(c):
                t = t + U[a * c + l] * turn[l * c + j]
            Q[a * c + j] = t
        for j in range(q):
            t = VEC_SET(1.0 if a == j else 0.0)
            for l in range(q):
                t = t - N[a * q + l] * w.G[l * q + j]
            T[a * q + j] = t
    for a in range(q):
        for j in range(q):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + T[l * q + j] * w.G[a * q + l]
            P[a * q + j] = t
        for j in range(c):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t - Q[l * c + j] * w.G[a * q + l]
            U[a * c + j] = t


cdef inline void series_turned(Py_ssize_t q, Py_ssize_t c, const vecu* A, const vecu* U, const double* turn, vecu* E,
                               vecu* F) noexcept nogil:
    """E = (A U)_z (q, c) for the first rows A (q, K) of a matrix, and F what the columns [X y] have of it."""
    cdef Py_ssize_t i, j, s, K = q + c
    cdef vec t
    for i in range(q):
        for j in range(c):
            t = VEC_SET(0.0)
            for s in range(c):
                t = t + A[i * K + q + s] * turn[s * c + j]
            F[i * c + j] = t
            for s in range(q):
                t = t + A[i * K + s] * U[s * c + j]
            E[i * c + j] = t


cdef inline void series_weigh_of(Py_ssize_t q, const SeriesWork* w, const SeriesSums* s) noexcept nogil:
    cdef Py_ssize_t c = w.c, k = w.k, K = q + c, block, a, b, d, e, j, l
    cdef vecu* P = <vecu*> w.work
    cdef vecu* U = P + q * q
    cdef vecu* A = U + q * c
    cdef vecu* E = A + q * K
    cdef vecu* F = E + q * c
    cdef vecu* left = F + q * c
    cdef vecu* right = left + q * c         # (k, q, q) P A_a
    cdef vecu* sum_n = right + k * q * q
    cdef vecu* traces = sum_n + q * q
    cdef vecu* trace = traces + k
    cdef vecu* bent = trace + k * k
    cdef vecu* of_g = bent + k * k * c
    cdef vecu* of_phi = of_g + w.n_g * c * c
    cdef vecu* stop = of_phi + k * c * c
    cdef vecu* N
    cdef vecu* Q
    cdef vecu* own
    cdef vecu* dAz
    cdef vec t, u
    cdef Py_ssize_t size = stop - sum_n
    for j in range(size):
        sum_n[j] = VEC_SET(0.0)
    for block in range(w.n_blocks):
        series_effects(q, w, block, s.turn, P, U)
        N = (<vecu*> w.N) + block * q * q
        Q = (<vecu*> w.Q) + block * q * c
        for j in range(q * q):
            sum_n[j] = sum_n[j] + N[j]
        for d in range(w.n_g):
            a, b = w.unit[2 * d], w.unit[2 * d + 1]
            for j in range(c):
                t, u = Q[a * c + j], Q[b * c + j]
                for l in range(j + 1):
                    if a == b:
                        of_g[(d * c + j) * c + l] = of_g[(d * c + j) * c + l] + t * Q[a * c + l]
                    else:
                        of_g[(d * c + j) * c + l] = of_g[(d * c + j) * c + l] + t * Q[b * c + l] + u * Q[a * c + l]
        for a in range(k):
            side_by_side(q * K, s.dA + a * w.m * q * K, block * LANES, w.m, A)
            own = (<vecu*> w.E) + (block * k + a) * q * c
            dAz = (<vecu*> w.dAz) + (block * k + a) * q * q
            series_turned(q, c, A, U, s.turn, own, F)
            for e in range(q):
                for j in range(c):
                    t, u = U[e * c + j], F[e * c + j]
                    for l in range(j + 1):
                        of_phi[(a * c + j) * c + l] = (of_phi[(a * c + j) * c + l] + t * own[e * c + l]
                                                       + u * U[e * c + l])
                for j in range(q):
                    dAz[e * q + j] = A[e * K + j]
                    traces[a] = traces[a] + P[e * q + j] * A[e * K + j]
            times(q, q, q, P, dAz, right + a * q * q)
            times(q, q, c, P, own, left)
            for b in range(a + 1):
                side_by_side(q * K, s.ddA + (a * k + b) * w.m * q * K, block * LANES, w.m, A)
                series_turned(q, c, A, U, s.turn, E, F)
                own = (<vecu*> w.E) + (block * k + b) * q * c
                for e in range(q):
                    for l in range(c):
                        bent[(a * k + b) * c + l] = (bent[(a * k + b) * c + l]
                                                     + U[e * c + l] * (E[e * c + l] + F[e * c + l])
                                                     - 2.0 * (left[e * c + l] * own[e * c + l]))
                    for j in range(q):
                        trace[a * k + b] = (trace[a * k + b] + P[e * q + j] * A[j * K + e]
                                            - right[(a * q + e) * q + j] * right[(b * q + j) * q + e])
    series_totals(q, w, s, sum_n)


cdef void series_totals(Py_ssize_t q, const SeriesWork* w, const SeriesSums* s, const vecu* sums) noexcept nogil:
    """Sums over the lanes, as they lie one after the other; what is symmetric was summed in its lower triangle."""
    cdef Py_ssize_t c = w.c, k = w.k, d, j, l, at = 0
    cdef double* out = s.sum_n
    for j in range(q * q + k + k * k + k * k * c):
        out[j] = vec_sum(sums + j)
    at = q * q + k + k * k + k * k * c
    for d in range(w.n_g + k):
        for j in range(c):
            for l in range(j + 1):
                out[at + (d * c + j) * c + l] = vec_sum(sums + at + (d * c + j) * c + l)
                out[at + (d * c + l) * c + j] = out[at + (d * c + j) * c + l]


cdef void series_weigh(const SeriesWork* w, const SeriesSums* s) noexcept nogil:
    """Sums over the subjects with derivatives, see SeriesSums."""
    if w.q == 1:
        series_weigh_of(1, w, s)
    elif w.q == 2:
        series_weigh_of(2, w, s)
    else:
        series_weigh_of(w.q, w, s)


cdef inline vec series_pair(Py_ssize_t q, const vecu* N, const vecu* M, const Py_ssize_t* d, const Py_ssize_t* e
                            ) noexcept nogil:
    """tr(D N F M) for symmetric unit directions D and F, and symmetric N and M."""
    cdef Py_ssize_t a = d[0], b = d[1], f = e[0], g = e[1]
    cdef vec t = N[b * q + f] * M[g * q + a]
    if f != g:
        t = t + N[b * q + g] * M[f * q + a]
    if a != b:
        t = t + N[a * q + f] * M[g * q + b]
        if f != g:
            t = t + N[a * q + g] * M[f * q + b]
    return t


cdef inline void series_along_of(Py_ssize_t q, const SeriesWork* w, const double* weights, double* out) noexcept nogil:
    cdef Py_ssize_t c = w.c, n = w.n_g + w.k, block, d, e, a, b, j, l, s
    cdef vecu* M = <vecu*> w.work
    cdef vecu* X = M + q * q
    cdef vecu* Y = X + q * q
    cdef vecu* weighed = Y + q * q      # Q w
    cdef vecu* sums = weighed + q * c
    cdef vecu* N
    cdef vecu* Q
    cdef vecu* T
    cdef vecu* E
    cdef vecu* dAz
    cdef vec t
    for j in range(n * w.n_g):
        sums[j] = VEC_SET(0.0)
    for block in range(w.n_blocks):
        N = (<vecu*> w.N) + block * q * q
        T = (<vecu*> w.T) + block * q * q
        Q = (<vecu*> w.Q) + block * q * c
        # M = 2 Q w Q' - N
        for a in range(q):
            for j in range(c):
                weighed[a * c + j] = Q[a * c + j] * (2.0 * weights[j])
        for a in range(q):
            for b in range(q):
                t = VEC_SET(0.0) - N[a * q + b]
                for j in range(c):
                    t = t + weighed[a * c + j] * Q[b * c + j]
                M[a * q + b] = t
        for d in range(w.n_g):
            for e in range(d + 1):
                sums[d * w.n_g + e] = sums[d * w.n_g + e] + series_pair(q, N, M, w.unit + 2 * d, w.unit + 2 * e)
        for l in range(w.k):
            # T (dA T' - 2 E w Q')
            E = (<vecu*> w.E) + (block * w.k + l) * q * c
            dAz = (<vecu*> w.dAz) + (block * w.k + l) * q * q
            for a in range(q):
                for b in range(q):
                    t = VEC_SET(0.0)
                    for s in range(q):
                        t = t + dAz[a * q + s] * T[b * q + s]
                    for j in range(c):
                        t = t - E[a * c + j] * weighed[b * c + j]
                    X[a * q + b] = t
            times(q, q, q, T, X, Y)
            for d in range(w.n_g):
                a, b = w.unit[2 * d], w.unit[2 * d + 1]
                t = Y[a * q + b]
                if a != b:
                    t = t + Y[b * q + a]
                sums[(w.n_g + l) * w.n_g + d] = sums[(w.n_g + l) * w.n_g + d] + t
    for d in range(n):
        for e in range(min(d + 1, w.n_g)):
            out[d * n + e] = vec_sum(sums + d * w.n_g + e)


cdef void series_along(const SeriesWork* w, const double* weights, double* out) noexcept nogil:
    """Second derivatives along two directions of G, and one of G with a parameter: lower triangle of out (n, n).

    weights (c,): of the diagonal of second derivatives of H.
    """
    if w.q == 1:
        series_along_of(1, w, weights, out)
    elif w.q == 2:
        series_along_of(2, w, weights, out)
    else:
        series_along_of(w.q, w, weights, out)


offered.series_reduce = &series_reduce
offered.series_weigh = &series_weigh
offered.series_along = &series_along
