# Newton's method for the refits after deletions (see one_factor/deletion.pyx), a deletion in every lane.
#
# W = I + U (I + S) U' = M M', N = (M^-1 U)'(M^-1 U), E = (M^-1 U)'(M^-1 c) of a contribution.  With the sums log|W| and
# H over what is left, Cholesky factor of H giving beta, r^2 and |H_xx|, b = (-beta, 1), K = H_xx^-1, nu = n (ML) or
# n - p (REML), M = (nu / r^2) b b' [+ K], and derivatives J of H along free directions of S:
#
#     d = log|W| + nu (1 + log(2 pi r^2 / nu)) [+ log|H_xx|]
#     d_D d     = d_D log|W| + <M, J_D>
#     d_D d_F d = d_DF log|W| + <M, J_DF> - (2 nu / r^2) u_D'K u_F - (nu / r^4) s_D s_F [- tr(K J_D K J_F)]
#
# where u_D = (J_D b)_x and s_D = b'J_D b.  No lane depends on its neighbours.

cdef inline void gather_pieces(const Deletions* d, const double* const* lines, double* out, vecu* scratch
                               ) noexcept nogil:
    """Lines of LANES pieces side by side, U = R F in the place of R.  scratch: q^2 vectors."""
    cdef Py_ssize_t q = d.q, i, lane, a, b, l
    cdef vecu* U = <vecu*> out
    cdef vec t
    for lane in range(LANES):
        for i in range(d.line):
            out[i * LANES + lane] = lines[lane][i]
    for i in range(q * q):
        scratch[i] = U[i]
    for a in range(q):
        for b in range(q):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + scratch[a * q + l] * d.factor[l * q + b]
            U[a * q + b] = t


cdef inline void polynomial_sums(const Deletions* d, const DeletionWork* w) noexcept nogil:
    """The sums over all groups at x."""
    cdef Py_ssize_t tile, t, f, n_f = 1 + d.n_h, terms
    cdef vecu* mono = <vecu*> w.mono
    cdef vecu* sums = <vecu*> w.sums
    cdef vecu* x = <vecu*> w.x
    cdef vecu* step = <vecu*> w.step
    cdef const double* c
    cdef vec m, a0, a1, a2, a3, a4, a5, a6, a7
    for t in range(d.n_par):
        step[t] = x[t] * (1.0 / d.radius)
    mono[0] = VEC_SET(1.0)
    for t in range(1, d.n_terms):
        mono[t] = mono[d.parent[t]] * step[d.variable[t]]
    for tile in range(d.n_tiles):
        f = tile * TILE
        c = d.tiles + f * d.n_terms
        # derivatives are of a lower degree
        terms = d.n_terms if f < n_f else d.n_lower
        a0 = VEC_SET(0.0)
        a1 = a0
        a2 = a0
        a3 = a0
        a4 = a0
        a5 = a0
        a6 = a0
        a7 = a0
        for t in range(terms):
            m = mono[t]
            a0 = a0 + m * c[0]
            a1 = a1 + m * c[1]
            a2 = a2 + m * c[2]
            a3 = a3 + m * c[3]
            a4 = a4 + m * c[4]
            a5 = a5 + m * c[5]
            a6 = a6 + m * c[6]
            a7 = a7 + m * c[7]
            c = c + TILE
        sums[f] = a0
        sums[f + 1] = a1
        sums[f + 2] = a2
        sums[f + 3] = a3
        sums[f + 4] = a4
        sums[f + 5] = a5
        sums[f + 6] = a6
        sums[f + 7] = a7


cdef inline void add_contribution(const Deletions* d, const vecu* line, const vecu* S, double sign, vecu* N, vecu* E,
                                  vecu* sums, vecu* scratch) noexcept nogil:
    """N and E of a group; its log|W| and H and their derivatives added to the sums with a sign.

    d log|W| = tr(N D) and dH = -E'D E for each free direction D.  scratch: 3 q^2 + q k vectors.
    """
    cdef Py_ssize_t q = d.q, k = d.k, n_f = 1 + d.n_h, a, b, l, i, j, pos, r, c
    cdef const vecu* U = line
    cdef const vecu* cross = line + q * q
    cdef const vecu* within = cross + q * k
    cdef vecu* W = scratch
    cdef vecu* Y = W + q * q
    cdef vecu* V = Y + q * q
    cdef vecu* D = V + q * q
    cdef vec t, u, v
    for a in range(q):
        for b in range(q):
            t = U[a * q + b]
            for l in range(q):
                t = t + U[a * q + l] * S[l * q + b]
            V[a * q + b] = t
            Y[a * q + b] = U[a * q + b]
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(1.0 if a == b else 0.0)
            for l in range(q):
                t = t + V[a * q + l] * U[b * q + l]
            W[a * q + b] = t
    for j in range(q * k):
        D[j] = cross[j]
    sums[0] = sums[0] + sign * VEC_LOG(eliminate(q, W, q, Y, k, D, NULL))
    set_product(q, q, Y, Y, N)
    set_product(q, k, Y, D, E)
    pos = 1
    for j in range(k):
        for l in range(j + 1):
            t = within[pos - 1]
            for a in range(q):
                t = t + D[a * k + j] * D[a * k + l]
            sums[pos] = sums[pos] + sign * t
            pos = pos + 1
    for i in range(d.n_par):
        r = d.row[i]
        c = d.col[i]
        u = VEC_SET(sign if r == c else 2.0 * sign)
        sums[pos] = sums[pos] + u * N[r * q + c]
        pos = pos + 1
        u = 0.5 * u
        for j in range(k):
            t = u * E[r * k + j]
            v = u * E[c * k + j]
            for l in range(j + 1):
                sums[pos] = sums[pos] - (t * E[c * k + l] + v * E[r * k + l])
                pos = pos + 1


cdef inline void cholesky_of(Py_ssize_t n, Py_ssize_t checked, double tolerance, vecu* A, vecu* fine) noexcept nogil:
    """The lower triangle of A (n, n) to its Cholesky factor; -1 in `fine` where a pivot does not exceed a part of its
    diagonal element (of the first `checked` ones) or zero."""
    cdef Py_ssize_t i, j, l
    cdef vec t, floor
    for i in range(n):
        for j in range(i + 1):
            t = A[i * n + j]
            for l in range(j):
                t = t - A[i * n + l] * A[j * n + l]
            if j < i:
                A[i * n + j] = t / A[j * n + j]
            else:
                floor = (tolerance if i < checked else 0.0) * A[i * n + i]
                fine[0] = VEC_WHERE_POSITIVE(t - floor, fine[0], VEC_SET(-1.0))
                A[i * n + i] = VEC_SQRT(VEC_WHERE_POSITIVE(t, t, VEC_SET(1.0)))


cdef inline void solve_lanes(Py_ssize_t n, const vecu* L, vecu* b) noexcept nogil:
    """b to (L L')^-1 b."""
    cdef Py_ssize_t i, l
    cdef vec t
    for i in range(n):
        t = b[i]
        for l in range(i):
            t = t - L[i * n + l] * b[l]
        b[i] = t / L[i * n + i]
    for i in range(n - 1, -1, -1):
        t = b[i]
        for l in range(i + 1, n):
            t = t - L[l * n + i] * b[l]
        b[i] = t / L[i * n + i]


cdef inline void add_trace(const Deletions* d, const vecu* Q, const vecu* N, Py_ssize_t i, Py_ssize_t j, double sign,
                           vecu* out) noexcept nogil:
    """Add tr(Q D N F) for the free directions D = i, F = j, with a sign."""
    cdef Py_ssize_t q = d.q, r = d.row[i], c = d.col[i], r2 = d.row[j], c2 = d.col[j]
    cdef vec t = Q[c2 * q + r] * N[c * q + r2]
    if r != c:
        t = t + Q[c2 * q + c] * N[r * q + r2]
    if r2 != c2:
        t = t + Q[r2 * q + r] * N[c * q + c2]
        if r != c:
            t = t + Q[r2 * q + c] * N[r * q + c2]
    out[0] = out[0] + sign * t


cdef inline void add_curvature(const Deletions* d, const vecu* N, const vecu* E, const vecu* half, double sign,
                               vecu* hess, vecu* scratch) noexcept nogil:
    """Add the second derivatives of log|W| + <M, H> (M = half half') for one contribution.

    d^2 log|W| = -tr(N D N F), d^2 H = E'(D N F + F N D) E.  scratch: q k + q^2 vectors.
    """
    cdef Py_ssize_t q = d.q, k = d.k, first = 0 if d.reml else k - 1, a, b, i, j, l
    cdef vecu* P = scratch
    cdef vecu* Q = scratch + q * k
    cdef vec t
    for a in range(q):
        for j in range(first, k):
            t = VEC_SET(0.0)
            for l in range(j + 1):
                t = t + E[a * k + l] * half[l * k + j]
            P[a * k + j] = t
    for a in range(q):
        for b in range(q):
            t = -0.5 * N[a * q + b]
            for j in range(first, k):
                t = t + P[a * k + j] * P[b * k + j]
            Q[a * q + b] = t
    for i in range(d.n_par):
        for j in range(i + 1):
            add_trace(d, Q, N, i, j, sign, hess + i * d.n_par + j)
            add_trace(d, Q, N, j, i, sign, hess + i * d.n_par + j)


cdef inline void evaluate_deletions(const Deletions* d, const DeletionWork* w, bint both) noexcept nogil:
    """Criterion and gradient at x, and what they are made of."""
    cdef Py_ssize_t q = d.q, k = d.k, p = k - 1, n_f = 1 + d.n_h, a, j, l, pos, t
    cdef vecu* x = <vecu*> w.x
    cdef vecu* S = <vecu*> w.S
    cdef vecu* sums = <vecu*> w.sums
    cdef vecu* N = <vecu*> w.N
    cdef vecu* E = <vecu*> w.E
    cdef vecu* chol = <vecu*> w.chol
    cdef vecu* inverse = <vecu*> w.inverse
    cdef vecu* b = <vecu*> w.b
    cdef vecu* half = <vecu*> w.half
    cdef vecu* M = <vecu*> w.M
    cdef vecu* grad = <vecu*> w.grad
    cdef vecu* full = <vecu*> w.full
    cdef vecu* scratch = <vecu*> w.scratch
    cdef vec s, log_h, nu, r2
    nu = (<vecu*> w.nu)[0]
    polynomial_sums(d, w)
    for l in range(d.n_par):
        S[d.row[l] * q + d.col[l]] = x[l]
        S[d.col[l] * q + d.row[l]] = x[l]
    add_contribution(d, <vecu*> w.less, S, -1.0, N, E, sums, scratch)
    if both:
        add_contribution(d, <vecu*> w.more, S, 1.0, N + q * q, E + q * k, sums, scratch)
    # H = L L', (-beta, 1) and r^2
    pos = 1
    for a in range(k):
        for j in range(a + 1):
            chol[a * k + j] = sums[pos]
            pos = pos + 1
    full[0] = VEC_WHERE_POSITIVE(nu, VEC_SET(1.0), VEC_SET(-1.0))
    cholesky_of(k, p, d.rank_tolerance, chol, full)
    r2 = chol[p * k + p] * chol[p * k + p]
    (<vecu*> w.r2)[0] = r2
    log_h = VEC_SET(0.0)
    for a in range(p):
        log_h = log_h + 2.0 * VEC_LOG(chol[a * k + a])
    for a in range(p - 1, -1, -1):
        s = chol[p * k + a]
        for l in range(a + 1, p):
            s = s + chol[l * k + a] * b[l]
        b[a] = (VEC_SET(0.0) - s) / chol[a * k + a]
    b[p] = VEC_SET(1.0)
    for j in range(p):
        inverse[j * k + j] = VEC_SET(1.0) / chol[j * k + j]
        for a in range(j + 1, p):
            s = VEC_SET(0.0)
            for l in range(j, a):
                s = s - chol[a * k + l] * inverse[l * k + j]
            inverse[a * k + j] = s / chol[a * k + a]
    s = sums[0] + nu * (1.0 + VEC_LOG(2.0 * M_PI * r2 / nu))
    if d.reml:
        s = s + log_h
    (<vecu*> w.value)[0] = s
    # derivatives: M = (nu / r^2) b b' [+ K] = half half'
    s = VEC_SQRT(nu / r2)
    for a in range(k):
        half[a * k + p] = s * b[a]
        if d.reml:
            for l in range(a, p):
                half[a * k + l] = inverse[l * k + a]
    pos = 0
    for a in range(k):
        for j in range(a + 1):
            s = VEC_SET(0.0)
            for l in range(a if d.reml else p, k):
                s = s + half[a * k + l] * half[j * k + l]
            if a != j:
                s = s + s
            M[pos] = s
            pos = pos + 1
    for t in range(d.n_par):
        s = sums[n_f * (t + 1)]
        for l in range(d.n_h):
            s = s + M[l] * sums[n_f * (t + 1) + 1 + l]
        grad[t] = s


cdef inline void deletion_curvature(const Deletions* d, const DeletionWork* w, bint both) noexcept nogil:
    """Cholesky factor of the Hessian at the point of the last evaluation."""
    cdef Py_ssize_t q = d.q, k = d.k, p = k - 1, n_f = 1 + d.n_h, n_xx = p * (p + 1) // 2, n_par = d.n_par
    cdef Py_ssize_t t, a, j, l, f
    cdef double root_two = sqrt(2.0)
    cdef vecu* sums = <vecu*> w.sums
    cdef vecu* inverse = <vecu*> w.inverse
    cdef vecu* b = <vecu*> w.b
    cdef vecu* half = <vecu*> w.half
    cdef vecu* M = <vecu*> w.M
    cdef vecu* v
    cdef vecu* turned
    cdef vecu* hess = <vecu*> w.hess
    cdef vecu* work = <vecu*> w.scratch
    cdef vecu* J
    cdef vecu* N = <vecu*> w.N
    cdef vecu* E = <vecu*> w.E
    cdef const double* second
    cdef vec s, total, scale, nu
    nu = (<vecu*> w.nu)[0]
    scale = nu / (<vecu*> w.r2)[0]
    for t in range(n_par):
        J = sums + n_f * (t + 1) + 1
        v = <vecu*> w.vectors + t * k
        turned = <vecu*> w.turned + t * n_xx
        total = VEC_SET(0.0)
        for a in range(k):
            s = VEC_SET(0.0)
            for l in range(a):
                s = s + J[a * (a + 1) // 2 + l] * b[l]
            for l in range(a, k):
                s = s + J[l * (l + 1) // 2 + a] * b[l]
            work[a] = s
            total = total + s * b[a]
        v[p] = total
        for a in range(p):
            s = VEC_SET(0.0)
            for l in range(a + 1):
                s = s + inverse[a * k + l] * work[l]
            v[a] = s
        if not d.reml:
            continue
        for a in range(p):
            for j in range(a + 1):
                s = VEC_SET(0.0)
                for l in range(j):
                    s = s + inverse[a * k + l] * J[j * (j + 1) // 2 + l]
                for l in range(j, a + 1):
                    s = s + inverse[a * k + l] * J[l * (l + 1) // 2 + j]
                work[j] = s
            for j in range(a + 1):
                s = VEC_SET(0.0)
                for l in range(j + 1):
                    s = s + work[l] * inverse[j * k + l]
                if a != j:
                    s = s * root_two
                turned[a * (a + 1) // 2 + j] = s
    for t in range(n_par):
        for j in range(t + 1):
            second = d.second + (t * n_par + j) * n_f
            s = VEC_SET(second[0])
            for f in range(d.n_h):
                s = s + M[f] * second[f + 1]
            total = VEC_SET(0.0)
            v = <vecu*> w.vectors
            for a in range(p):
                total = total + v[t * k + a] * v[j * k + a]
            s = s - scale * (2.0 * total + scale / nu * v[t * k + p] * v[j * k + p])
            if d.reml:
                turned = <vecu*> w.turned
                for a in range(n_xx):
                    s = s - turned[t * n_xx + a] * turned[j * n_xx + a]
            hess[t * n_par + j] = s
    add_curvature(d, N, E, half, -1.0, hess, work)
    if both:
        add_curvature(d, N + q * q, E + q * k, half, 1.0, hess, work)
    (<vecu*> w.convex)[0] = VEC_SET(1.0)
    cholesky_of(n_par, n_par, 1e-12, hess, <vecu*> w.convex)


cdef void refit(
    const Deletions* d, const double* const* less, const double* const* more, const double* const* start,
    const DeletionWork* w, int* status,
) noexcept nogil:
    """Newton's method for LANES deletions at once."""
    cdef bint both = more != NULL
    cdef Py_ssize_t n_par = d.n_par, it, t, lane, still = LANES
    cdef vecu* grad = <vecu*> w.grad
    cdef vecu* step = <vecu*> w.step
    cdef vec s
    cdef double before, decrement, total, x
    gather_pieces(d, less, w.less, <vecu*> w.scratch)
    if both:
        gather_pieces(d, more, w.more, <vecu*> w.scratch)
    for lane in range(LANES):
        status[lane] = OPEN
        w.decrement[lane] = INFINITY
        for t in range(n_par):
            w.x[t * LANES + lane] = start[lane][t]
    for it in range(d.max_iterations):
        evaluate_deletions(d, w, both)
        # the Hessian changes little on the way, and the gradient alone says where the optimum is
        if it % 4 == 0:
            deletion_curvature(d, w, both)
        for t in range(n_par):
            step[t] = grad[t]
        solve_lanes(n_par, <vecu*> w.hess, step)
        s = VEC_SET(0.0)
        for t in range(n_par):
            s = s + grad[t] * step[t]
        (<vecu*> w.scratch)[0] = s
        for lane in range(LANES):
            if status[lane] != OPEN:
                continue
            still -= 1
            if not w.full[lane] > 0.0:
                status[lane] = DEFICIENT
                continue
            if not (isfinite(w.value[lane]) and w.convex[lane] > 0.0):
                status[lane] = FAR
                continue
            before = w.decrement[lane]
            decrement = sqrt(fabs(w.scratch[lane]))
            w.decrement[lane] = decrement
            # steps divide the decrement by a hundred or more: where they do not, rounding error is left
            if decrement <= d.tolerance or (it > 2 and decrement <= 100.0 * d.tolerance and decrement > 0.5 * before):
                status[lane] = FOUND
                continue
            total = 0.0
            for t in range(n_par):
                x = w.x[t * LANES + lane] - w.step[t * LANES + lane]
                w.x[t * LANES + lane] = x
                total += x * x
            if total > d.radius * d.radius:
                status[lane] = FAR
                continue
            still += 1
        if still == 0:
            break
    for lane in range(LANES):
        if status[lane] == OPEN:
            status[lane] = FAR


offered.refit = &refit
