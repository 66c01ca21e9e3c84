# cython: language_level=3
"""Refits after deletions, each in time that does not depend on the number of groups.

All that the criterion needs of the groups are the sums log|V^| and H = [X y]'V^^-1[X y].  Near the optimum of the
full data they are polynomials of the covariance parameters to rounding error, so that a deletion costs these
polynomials less the contribution of what is deleted, which is exact.

Coordinates: G^ = F (I + S) F' with F the factor at the optimum of the full data; the free parameters are the elements
of S inside the blocks of G^.  A contribution is that of a group with cross-products A = R'R, C = R'c, T = w + c'c,
through U = R F: W = I + U (I + S) U' = M M', N = (M^-1 U)'(M^-1 U), E = (M^-1 U)'(M^-1 c).
"""
from libc.math cimport fabs, isfinite, log, sqrt, M_PI, INFINITY, NAN
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import numpy as np

cdef enum:
    FOUND = 0        # certified
    FAR = 1          # outside the ball in which the polynomials hold, or not a minimum
    DEFICIENT = 2    # X has lost rank, or nothing is left


cdef struct Sizes:
    Py_ssize_t q, k, n_c, n_h, n_par
    const int64_t* row
    const int64_t* col


cdef double contribution(const Sizes* d, const double* line, const double* S, double* N, double* E, double* H,
                         double sign, double* scratch) noexcept nogil:
    """N and E of a group, its H added to H with a sign; returns sign log|W|.  scratch: 3 q^2 + q k doubles."""
    cdef Py_ssize_t q = d.q, k = d.k, a, b, l, j, pos
    cdef const double* U = line
    cdef const double* c = line + q * q
    cdef const double* w = c + q * k
    cdef double* W = scratch
    cdef double* Y = W + q * q
    cdef double* V = Y + q * q
    cdef double* D = V + q * q
    cdef double t, logdet = 0.0
    for a in range(q):
        for b in range(q):
            t = U[a * q + b]
            for l in range(q):
                t = t + U[a * q + l] * S[l * q + b]
            V[a * q + b] = t
    for a in range(q):
        for b in range(a + 1):
            t = 1.0 if a == b else 0.0
            for l in range(q):
                t = t + V[a * q + l] * U[b * q + l]
            W[a * q + b] = t
    memcpy(Y, U, q * q * sizeof(double))
    memcpy(D, c, q * k * sizeof(double))
    for a in range(q):
        logdet = logdet + log(W[a * q + a])
        t = 1.0 / sqrt(W[a * q + a])
        for b in range(q):
            Y[a * q + b] = Y[a * q + b] * t
        for j in range(k):
            D[a * k + j] = D[a * k + j] * t
        for b in range(a + 1, q):
            W[b * q + a] = W[b * q + a] * t
        for b in range(a + 1, q):
            t = W[b * q + a]
            for l in range(a + 1, b + 1):
                W[b * q + l] = W[b * q + l] - t * W[l * q + a]
            for l in range(q):
                Y[b * q + l] = Y[b * q + l] - t * Y[a * q + l]
            for j in range(k):
                D[b * k + j] = D[b * k + j] - t * D[a * k + j]
    for a in range(q):
        for b in range(a + 1):
            t = 0.0
            for l in range(q):
                t = t + Y[l * q + a] * Y[l * q + b]
            N[a * q + b] = t
            N[b * q + a] = t
        for j in range(k):
            t = 0.0
            for l in range(q):
                t = t + Y[l * q + a] * D[l * k + j]
            E[a * k + j] = t
    pos = 0
    for j in range(k):
        for l in range(j + 1):
            t = w[pos]
            for a in range(q):
                t = t + D[a * k + j] * D[a * k + l]
            H[pos] = H[pos] + sign * t
            pos = pos + 1
    return sign * logdet


cdef void add_slopes(const Sizes* d, const double* N, const double* E, double sign, double* slopes, double* J,
                     Py_ssize_t step) noexcept nogil:
    """Add d log|W| = tr(N D) to slopes and dH = -E'D E (packed) to J, for each free direction D."""
    cdef Py_ssize_t q = d.q, k = d.k, i, j, l, r, c, pos
    for i in range(d.n_par):
        r = d.row[i]
        c = d.col[i]
        slopes[i * step] = slopes[i * step] + sign * (N[r * q + r] if r == c else 2.0 * N[r * q + c])
        pos = i * step
        for j in range(k):
            for l in range(j + 1):
                if r == c:
                    J[pos] = J[pos] - sign * E[r * k + j] * E[r * k + l]
                else:
                    J[pos] = J[pos] - sign * (E[r * k + j] * E[c * k + l] + E[c * k + j] * E[r * k + l])
                pos = pos + 1


cdef inline double product(const double* Q, const double* N, Py_ssize_t q, Py_ssize_t r, Py_ssize_t c, Py_ssize_t r2,
                           Py_ssize_t c2) noexcept nogil:
    """tr(Q D N F) for the symmetric unit directions D = (r, c), F = (r2, c2)."""
    cdef double t = Q[c2 * q + r] * N[c * q + r2]
    if r != c:
        t = t + Q[c2 * q + c] * N[r * q + r2]
    if r2 != c2:
        t = t + Q[r2 * q + r] * N[c * q + c2]
        if r != c:
            t = t + Q[r2 * q + c] * N[r * q + c2]
    return t


cdef void add_curvature(const Sizes* d, const double* N, const double* E, const double* half, double sign,
                        double* hess, double* scratch) noexcept nogil:
    """Add the second derivatives of log|W| + <M, H> (M = half half') for one contribution.

    d^2 log|W| = -tr(N D N F), d^2 H = E'(D N F + F N D) E.  scratch: q k + q^2 doubles.
    """
    cdef Py_ssize_t q = d.q, k = d.k, a, b, i, j, l
    cdef double* P = scratch
    cdef double* Q = scratch + q * k
    cdef double t
    for a in range(q):
        for j in range(k):
            t = 0.0
            for l in range(k):
                t = t + E[a * k + l] * half[l * k + j]
            P[a * k + j] = t
    for a in range(q):
        for b in range(q):
            t = -0.5 * N[a * q + b]
            for j in range(k):
                t = t + P[a * k + j] * P[b * k + j]
            Q[a * q + b] = t
    for i in range(d.n_par):
        for j in range(i + 1):
            hess[i * d.n_par + j] += sign * (
                product(Q, N, q, d.row[i], d.col[i], d.row[j], d.col[j])
                + product(Q, N, q, d.row[j], d.col[j], d.row[i], d.col[i]))


cdef bint decompose(Py_ssize_t n, double* A) noexcept nogil:
    """The lower triangle of A to its Cholesky factor; False where A is not positive definite."""
    cdef Py_ssize_t i, j, l
    cdef double t
    for i in range(n):
        for j in range(i + 1):
            t = A[i * n + j]
            for l in range(j):
                t = t - A[i * n + l] * A[j * n + l]
            if j < i:
                A[i * n + j] = t / A[j * n + j]
            else:
                if not t > 1e-12 * fabs(A[i * n + i]):
                    return False
                A[i * n + i] = sqrt(t)
    return True


cdef void solve(Py_ssize_t n, const double* L, double* b) noexcept nogil:
    """b to (L L')^-1 b."""
    cdef Py_ssize_t i, l
    for i in range(n):
        for l in range(i):
            b[i] = b[i] - L[i * n + l] * b[l]
        b[i] = b[i] / L[i * n + i]
    for i in range(n - 1, -1, -1):
        for l in range(i + 1, n):
            b[i] = b[i] - L[l * n + i] * b[l]
        b[i] = b[i] / L[i * n + i]


def refit_deletions(const double[:, ::1] table, const int64_t[::1] parent, const int64_t[::1] variable,
                    const double[:, ::1] second, const int64_t[::1] rows, const int64_t[::1] columns,
                    Py_ssize_t q, Py_ssize_t k, bint reml, Py_ssize_t n_rows, const double[:, ::1] less,
                    const int64_t[::1] owner, const double[:, ::1] more, const int64_t[::1] removed,
                    const double[:, ::1] start, double radius,
                    double rank_tolerance, double tolerance, Py_ssize_t max_iterations):
    """Newton's method for every deletion.

    Parameters
    ----------
    table : (n_terms, (1 + n_par) (1 + n_h)) array
        Coefficients of the monomials of S / radius in the sums over all groups: log|W| and H (packed lower triangle by
        rows, n_h = k (k + 1) / 2), then their derivatives in each free element of S.
    parent, variable : (n_terms,) arrays
        Monomial t is monomial parent[t] times S[variable[t]] / radius; the first is 1.
    second : (n_par * n_par, 1 + n_h) array
        Second derivatives of the sums at S = 0: enough for the steps, the gradient is exact.
    rows, columns : (n_par,) arrays
        Positions of the free elements.
    less : (m, q q + q k + n_h) array
        U, c and w of the groups that lose rows.
    owner : (n_deletions,) array
        Line of `less` of each deletion.
    more : array like less, or None
        What is left of the group after each deletion; None where it is nothing.
    removed : (n_deletions,) array
        Number of rows deleted.
    start : (n_deletions, n_par) array
        Where to start.
    radius : float
        Of the ball |S| <= radius in which the polynomials hold.
    rank_tolerance : float
        A pivot of H_xx smaller than this, relative to its diagonal element, is a loss of rank.
    tolerance : float
        Decrement at which to stop.

    Returns
    -------
    S : (n_deletions, n_par) array
    value, r2, decrement : (n_deletions,) arrays
    beta : (n_deletions, p) array
    chol : (n_deletions, p, p) array
        Cholesky factor of H_xx.
    status : (n_deletions,) int64 array
        0 found, 1 out of reach, 2 X loses rank.
    """
    cdef Py_ssize_t n_terms = table.shape[0], width = table.shape[1], n_par = rows.shape[0], p = k - 1
    cdef Py_ssize_t n_h = k * (k + 1) // 2, n_f = 1 + n_h, count = owner.shape[0]
    cdef Py_ssize_t i, it, t, f, l, j, a, pos, g
    cdef double s, value, nu, r2 = 0.0, total, decrement, scale, log_h
    cdef bint both = more is not None, fine
    cdef Sizes d
    S_array = np.zeros((count, n_par))
    value_array = np.full(count, np.nan)
    r2_array = np.full(count, np.nan)
    decrement_array = np.full(count, np.inf)
    beta_array = np.full((count, p), np.nan)
    chol_array = np.zeros((count, p, p))
    status_array = np.full(count, FAR, dtype=np.int64)
    if count == 0:
        return S_array, value_array, r2_array, decrement_array, beta_array, chol_array, status_array
    cdef double[:, ::1] S_out = S_array, beta_out = beta_array
    cdef double[:, :, ::1] chol_out = chol_array
    cdef double[::1] value_out = value_array, r2_out = r2_array, decrement_out = decrement_array
    cdef int64_t[::1] status = status_array
    d.q = q
    d.k = k
    d.n_c = q * k
    d.n_h = n_h
    d.n_par = n_par
    d.row = &rows[0]
    d.col = &columns[0]
    sizes = [n_terms, width, q * q, 2 * q * q, 2 * q * k, 3 * q * q + q * k, k * k, k * k, k, k * k, n_par * k,
             n_par * p * p + 1, p * p + 1, n_par, n_par * n_par, n_par, n_par, n_h]
    cdef double* buffer = <double*> calloc(sum(sizes), sizeof(double))
    if buffer == NULL:
        raise MemoryError()
    cdef double* mono = buffer
    cdef double* sums = mono + n_terms
    cdef double* S = sums + width
    cdef double* N = S + q * q
    cdef double* E = N + 2 * q * q
    cdef double* scratch = E + 2 * q * k
    cdef double* chol = scratch + 3 * q * q + q * k
    cdef double* inverse = chol + k * k
    cdef double* b = inverse + k * k
    cdef double* half = b + k
    cdef double* vectors = half + k * k
    cdef double* turned = vectors + n_par * k
    cdef double* work = turned + n_par * p * p + 1
    cdef double* grad = work + p * p + 1
    cdef double* hess = grad + n_par
    cdef double* step = hess + n_par * n_par
    cdef double* x = step + n_par
    cdef double* M = x + n_par
    cdef double* J
    cdef double* v
    with nogil:
        for i in range(count):
            g = owner[i]
            nu = <double> (n_rows - removed[i] - (p if reml else 0))
            memcpy(x, &start[i, 0], n_par * sizeof(double))
            for it in range(max_iterations):
                # sums over all groups, less the deleted part
                for t in range(n_par):
                    step[t] = x[t] / radius
                mono[0] = 1.0
                for t in range(1, n_terms):
                    mono[t] = mono[parent[t]] * step[variable[t]]
                memcpy(sums, &table[0, 0], width * sizeof(double))
                for t in range(1, n_terms):
                    s = mono[t]
                    for f in range(width):
                        sums[f] = sums[f] + s * table[t, f]
                memset(S, 0, q * q * sizeof(double))
                for l in range(n_par):
                    S[d.row[l] * q + d.col[l]] = x[l]
                    S[d.col[l] * q + d.row[l]] = x[l]
                sums[0] += contribution(&d, &less[g, 0], S, N, E, sums + 1, -1.0, scratch)
                add_slopes(&d, N, E, -1.0, sums + n_f, sums + n_f + 1, n_f)
                if both:
                    sums[0] += contribution(&d, &more[i, 0], S, N + q * q, E + q * k, sums + 1, 1.0, scratch)
                    add_slopes(&d, N + q * q, E + q * k, 1.0, sums + n_f, sums + n_f + 1, n_f)
                # H = L L', (-beta, 1) and r^2
                fine = True
                log_h = 0.0
                pos = 1
                for a in range(k):
                    for j in range(a + 1):
                        s = sums[pos]
                        for l in range(j):
                            s = s - chol[a * k + l] * chol[j * k + l]
                        if j < a:
                            chol[a * k + j] = s / chol[j * k + j]
                        else:
                            if not s > (rank_tolerance * sums[pos] if a < p else 0.0):
                                fine = False
                                break
                            chol[a * k + a] = sqrt(s)
                            if a < p:
                                log_h = log_h + log(s)
                            else:
                                r2 = s
                        pos = pos + 1
                    if not fine:
                        break
                if not fine or not nu > 0.0:
                    status[i] = DEFICIENT
                    break
                for a in range(p - 1, -1, -1):
                    s = chol[p * k + a]
                    for l in range(a + 1, p):
                        s = s + chol[l * k + a] * b[l]
                    b[a] = -s / chol[a * k + a]
                b[p] = 1.0
                for j in range(p):
                    inverse[j * k + j] = 1.0 / chol[j * k + j]
                    for a in range(j + 1, p):
                        s = 0.0
                        for l in range(j, a):
                            s = s + chol[a * k + l] * inverse[l * k + j]
                        inverse[a * k + j] = -s / chol[a * k + a]
                value = sums[0] + nu * (1.0 + log(2.0 * M_PI * r2 / nu)) + (log_h if reml else 0.0)
                # derivatives: M = (nu / r^2) b b' [+ K] = half half'
                scale = nu / r2
                memset(half, 0, k * k * sizeof(double))
                for a in range(k):
                    half[a * k + p] = sqrt(scale) * b[a]
                    if reml and a < p:
                        for l in range(a, p):
                            half[a * k + l] = inverse[l * k + a]
                pos = 0
                for a in range(k):
                    for j in range(a + 1):
                        s = 0.0
                        for l in range(k):
                            s = s + half[a * k + l] * half[j * k + l]
                        M[pos] = s if a == j else 2.0 * s
                        pos = pos + 1
                for t in range(n_par):
                    J = sums + n_f * (t + 1) + 1
                    s = sums[n_f * (t + 1)]
                    for f in range(n_h):
                        s = s + M[f] * J[f]
                    grad[t] = s
                # the Hessian changes little on the way, and the gradient alone says where the optimum is
                if it % 4 == 0:
                    for t in range(n_par):
                        J = sums + n_f * (t + 1) + 1
                        v = vectors + t * k
                        # row p of chol, no longer needed, holds J b
                        total = 0.0
                        for a in range(k):
                            s = 0.0
                            for l in range(k):
                                s = s + J[a * (a + 1) // 2 + l if a >= l else l * (l + 1) // 2 + a] * b[l]
                            chol[p * k + a] = s
                            total = total + s * b[a]
                        v[p] = total
                        for a in range(p):
                            s = 0.0
                            for l in range(a + 1):
                                s = s + inverse[a * k + l] * chol[p * k + l]
                            v[a] = s
                        if not reml:
                            continue
                        for a in range(p):
                            for j in range(p):
                                s = 0.0
                                for l in range(a + 1):
                                    s = s + inverse[a * k + l] * J[l * (l + 1) // 2 + j if l >= j
                                                                   else j * (j + 1) // 2 + l]
                                work[a * p + j] = s
                        for a in range(p):
                            for j in range(p):
                                s = 0.0
                                for l in range(j + 1):
                                    s = s + work[a * p + l] * inverse[j * k + l]
                                turned[(t * p + a) * p + j] = s
                    for t in range(n_par):
                        for j in range(t + 1):
                            s = second[t * n_par + j, 0]
                            for f in range(n_h):
                                s = s + M[f] * second[t * n_par + j, f + 1]
                            total = 0.0
                            for a in range(p):
                                total = total + vectors[t * k + a] * vectors[j * k + a]
                            s = s - 2.0 * scale * total - scale * scale / nu * vectors[t * k + p] * vectors[j * k + p]
                            if reml:
                                for a in range(p * p):
                                    s = s - turned[t * p * p + a] * turned[j * p * p + a]
                            hess[t * n_par + j] = s
                    add_curvature(&d, N, E, half, -1.0, hess, scratch)
                    if both:
                        add_curvature(&d, N + q * q, E + q * k, half, 1.0, hess, scratch)
                    fine = decompose(n_par, hess)
                memcpy(step, grad, n_par * sizeof(double))
                if not isfinite(value) or not fine:
                    break
                solve(n_par, hess, step)
                decrement = 0.0
                for t in range(n_par):
                    decrement = decrement + grad[t] * step[t]
                decrement = sqrt(fabs(decrement))
                # steps divide the decrement by a hundred or more: where they do not, rounding error is left
                if decrement <= tolerance or (
                    it > 2 and decrement <= 100.0 * tolerance and decrement > 0.5 * decrement_out[i]
                ):
                    status[i] = FOUND
                decrement_out[i] = decrement
                if status[i] == FOUND:
                    value_out[i] = value
                    r2_out[i] = r2
                    for t in range(n_par):
                        S_out[i, t] = x[t]
                    for a in range(p):
                        beta_out[i, a] = -b[a]
                        for l in range(a + 1):
                            chol_out[i, a, l] = chol[a * k + l]
                    break
                total = 0.0
                for t in range(n_par):
                    x[t] = x[t] - step[t]
                    S_out[i, t] = x[t]
                    total = total + x[t] * x[t]
                if total > radius * radius:
                    break
    free(buffer)
    return S_array, value_array, r2_array, decrement_array, beta_array, chol_array, status_array


def others_in_group(const double[:, ::1] Z, const double[:, ::1] xy, const double[:] weights,
                    const int64_t[::1] order, const int64_t[::1] starts):
    """Cross-products of the other rows of each row's group, as sums that take nothing away.

    Parameters
    ----------
    Z : (n, q) array
    xy : (n, k) array
        [X y].
    weights : (n,) array or None
    order : (n,) array
        Rows sorted by group.
    starts : (m + 1,) array
        Where each group begins in `order`, and n.

    Returns
    -------
    (n, q (q + 1) / 2 + q k + 1) array
        A, C and the number of rows (the layout of `accumulate`).
    (n, k (k + 1) / 2) array
        T = sum w [x y][x y]'.
    """
    cdef Py_ssize_t n = Z.shape[0], q = Z.shape[1], k = xy.shape[1], m = starts.shape[0] - 1
    cdef Py_ssize_t n_a = q * (q + 1) // 2, line = n_a + q * k + 1, n_h = k * (k + 1) // 2
    cdef Py_ssize_t g, i, way, at, first, last, row, a, b, j, l, pos
    cdef double w, z
    raw_array = np.zeros((n, line))
    outer_array = np.zeros((n, n_h))
    acc_array = np.empty(line + n_h)
    cdef double[:, ::1] raw = raw_array, outer = outer_array
    cdef double[::1] acc = acc_array
    with nogil:
        for g in range(m):
            first = starts[g]
            last = starts[g + 1]
            for way in range(2):
                for pos in range(line + n_h):
                    acc[pos] = 0.0
                for i in range(last - first):
                    at = first + i if way == 0 else last - 1 - i
                    row = order[at]
                    for pos in range(line):
                        raw[row, pos] += acc[pos]
                    for pos in range(n_h):
                        outer[row, pos] += acc[line + pos]
                    w = 1.0 if weights is None else weights[row]
                    pos = 0
                    for a in range(q):
                        z = w * Z[row, a]
                        for b in range(a + 1):
                            acc[pos] += z * Z[row, b]
                            pos = pos + 1
                    for a in range(q):
                        z = w * Z[row, a]
                        for j in range(k):
                            acc[pos] += z * xy[row, j]
                            pos = pos + 1
                    acc[pos] += 1.0
                    pos = pos + 1
                    for j in range(k):
                        z = w * xy[row, j]
                        for l in range(j + 1):
                            acc[pos] += z * xy[row, l]
                            pos = pos + 1
    return raw_array, outer_array
