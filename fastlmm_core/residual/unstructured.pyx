# cython: language_level=3
"""`us` over visits, without random effects: value, gradient and Hessian in its own parameters, compiled throughout.

The equations are those of `visits`; here the way from phi to the covariances S_g = A_g A_g' of the tables is compiled
too, so that nothing of an evaluation needs the interpreter.  A_g = e^(tau_g / 2) L_g for the lower triangular L_g with
L_00 = 1; phi holds, table by table, tau_g (but for the first table, where it is 0) and the lower triangle of L_g by
columns without L_00, the diagonal by its logarithm.

With M_g = sum_k [N_k W_k - (nu / r^2) E_k [- B_k]] and the second derivatives K along pairs of symmetric unit
directions of all tables, what profiling adds to it included (see `engines.residual.criterion`),
and J = d vech(S) / d phi,

    gradient = J <M>,     Hessian = J K J' + <M, d2S>.

Where some position keeps hardly any variance beside those before it, the digits of V^-1 are lost: such points are left
to the general criterion (ELSEWHERE), which has coordinates for them.

Shapes: c columns in [X y], r = c - 1; m_g visits; n_v = sum m_g (m_g + 1) / 2 pairs of visits, of each table the lower
triangle by rows; rows of pattern k at `first[k]` as (n_k, N'_k, c).
"""
from libc.math cimport NAN, exp, fabs, isfinite, log, sqrt
from libc.string cimport memcpy, memset

import numpy as np

from fastlmm_core.residual.gathering cimport TOGETHER, Gathered, begin, gather, settle
from fastlmm_core.residual.loops cimport add_beside, ahead, back, bend, inverted, moments, rooted, whitened_beside
from fastlmm_core.small.cholesky cimport cholesky
from scipy.linalg.cython_blas cimport dgemm, dsyrk

cdef double EPS = 2.220446049250313e-16
cdef double PI2 = 6.283185307179586
cdef double LARGEST = 100.0
"""Largest logarithm of an element of a diagonal that is evaluated here."""
cdef double LOST = 1e5
"""Multiple of r^2 in y'V^-1 y from which the sums of products have lost too many digits."""


cdef class UnstructuredSums:
    """Work space for one design.

    Parameters
    ----------
    patterns : records.VisitPatterns
    n_rows : int
        Observations.
    """

    def __init__(self, patterns, Py_ssize_t n_rows):
        cdef Py_ssize_t k, g, m, at = 0, squares = 0, places = 0, roots = 0, pairs = 0, own = 0, n, t
        self.given, self.counts = patterns.rows, patterns.counts
        self.size, self.members, self.visits = patterns.size, patterns.members, patterns.visits
        self.table, self.table_size = patterns.table, patterns.table_size
        self.c, self.n_rows = patterns.columns, n_rows
        n, t = self.size.shape[0], self.table_size.shape[0]
        self.n_patterns, self.n_tables = n, t
        self.first, self.square, self.place = (np.zeros(n + 1, dtype=np.intp) for _ in range(3))
        self.root, self.pair, self.own = (np.zeros(t + 1, dtype=np.intp) for _ in range(3))
        self.largest = self.widest = 1
        for k in range(n):
            self.first[k], self.square[k], self.place[k] = at, squares, places
            at += self.size[k] * self.members[k] * self.c
            squares += self.size[k] * self.size[k]
            places += self.size[k]
            self.largest = max(self.largest, self.size[k])
        self.first[n], self.square[n], self.place[n] = at, squares, places
        for g in range(t):
            m = self.table_size[g]
            self.root[g], self.pair[g], self.own[g] = roots, pairs, own
            roots += m * m
            pairs += m * (m + 1) // 2
            own += m * (m + 1) // 2 - (g == 0)
            self.widest = max(self.widest, m)
        self.root[t], self.pair[t], self.own[t] = roots, pairs, own
        if at != self.given.shape[0] or places != self.visits.shape[0]:
            raise ValueError("the rows and visits are not those of the patterns")
        self.total, self.n_v, self.n_par = at // self.c, pairs, own
        self.n_x = self.c * (self.c - 1) // 2
        # one more: a pattern whose rows X does not reach has none, and may be the last
        self.rows, self.held = (np.zeros(at + 1) for _ in range(2))
        self.lower, self.inverse, self.moment_e, self.moment_x = (np.empty(max(squares, 1)) for _ in range(4))
        self.outside, self.spare = (np.zeros(max(squares, 1)) for _ in range(2))
        self.work = np.empty(max(2 * self.largest * self.widest, self.c * self.c))
        self.buffer = np.empty(TOGETHER * self.widest * self.c)
        self.products = np.empty((self.widest * self.c) ** 2)
        self.roots, self.slope = (np.zeros(max(roots, 1)) for _ in range(2))
        self.change, self.gradient_, self.point = (np.zeros(max(own, 1)) for _ in range(3))
        self.curve = np.zeros(max(pairs * pairs, 1))
        self.J, self.T = (np.zeros(max(own * pairs, 1)) for _ in range(2))
        self.Sx, self.Se, self.St = (np.zeros(max(pairs * w, 1)) for w in (self.n_x, self.c - 1, 1))
        self.full, self.half_, self.turn = (np.zeros(self.c * self.c) for _ in range(3))
        self.beta_ = np.zeros(self.c)
        self.hessian_ = np.zeros(max(own * own, 1))
        self.done = -1
        np.asarray(self.outside)[:squares] = patterns.outside
        memcpy(&self.held[0], &self.given[0] if at else &self.held[0], at * sizeof(double))

    # ---- evaluation --------------------------------------------------------------------------------------

    cdef double* response(self) noexcept nogil:
        """The rows that are evaluated, at first those given; what holds of the last point does not hold of others."""
        self.done = -1
        return &self.held[0]

    cdef int at_(self, const double* x, int order, bint reml, double nearly) noexcept nogil:
        """Value and derivatives at x: 0, -1 outside the domain, ELSEWHERE."""
        cdef Py_ssize_t i
        cdef int status
        cdef bint same = self.done >= 0 and self.kind == reml
        for i in range(self.n_par if same else 0):
            same = same and self.point[i] == x[i]
        self.fresh = not same
        if not same:
            self.done = -1
            self.kind = reml
            for i in range(self.n_par):
                self.point[i] = x[i]
                if not isfinite(x[i]):
                    return -1
            if not self.take_roots(x, nearly) or not self.reduce_():
                return ELSEWHERE
            status = self.profile_(reml)
            if status != 0:
                return status
            self.done = 0
        if order >= 1 and self.done < 1:
            self.first_(reml)
            self.done = 1
        if order >= 2 and self.done < 2:
            self.second_(reml)
            self.done = 2
        return 0

    cdef bint take_roots(self, const double* x, double nearly) noexcept nogil:
        """The roots A of the tables, and dA / dphi; False where a position has hardly any variance of its own."""
        cdef Py_ssize_t g, i, j, m, at
        cdef double scale, t, length
        cdef double* A
        for g in range(self.n_tables):
            m, at = self.table_size[g], self.own[g]
            A = &self.roots[self.root[g]]
            scale = 1.0
            if g > 0:
                if fabs(x[at]) > LARGEST:
                    return False
                scale = exp(0.5 * x[at])
                self.change[at] = 0.0
                at += 1
            A[0] = scale
            for j in range(m):
                for i in range(j, m):
                    if i == 0:
                        continue
                    if i == j:
                        if fabs(x[at]) > LARGEST:
                            return False
                        t = scale * exp(x[at])
                        self.change[at] = t
                    else:
                        t = scale * x[at]
                        self.change[at] = scale
                        A[j * m + i] = 0.0
                    A[i * m + j] = t
                    at += 1
            for i in range(m):
                length = 0.0
                for j in range(i + 1):
                    length += A[i * m + j] * A[i * m + j]
                if not A[i * m + i] * A[i * m + i] >= nearly * nearly * length:
                    return False
        return True

    cdef bint reduce_(self) noexcept nogil:
        """The whitened rows, log|V| and [X y]'V^-1[X y] (its lower triangle, in `full`); False where V is singular."""
        cdef Py_ssize_t k, n, m, i, c = self.c
        cdef int ci = <int> c, total = <int> self.total
        cdef double part, one = 1.0, zero = 0.0
        cdef double* L
        memcpy(&self.rows[0], &self.held[0], self.total * c * sizeof(double))
        self.log_det = 0.0
        for k in range(self.n_patterns):
            n, m = self.size[k], self.table_size[self.table[k]]
            L = &self.lower[self.square[k]]
            if n == m:
                memcpy(L, &self.roots[self.root[self.table[k]]], n * n * sizeof(double))
                part = 0.0
                for i in range(n):
                    part += 2.0 * log(L[i * n + i])
            else:
                part = rooted(n, &self.roots[self.root[self.table[k]]], m, &self.visits[self.place[k]], L,
                              &self.work[0])
            if not part == part:
                return False
            self.log_det += self.counts[k] * part
            ahead(n, self.members[k] * c, L, &self.rows[self.first[k]])
        # the upper triangle by columns is the lower one by rows
        dsyrk("U", "N", &ci, &total, &one, &self.rows[0], &ci, &zero, &self.full[0], &ci)
        for k in range(self.n_patterns):
            self.full[c * c - 1] += whitened_beside(self.size[k], &self.lower[self.square[k]],
                                                    &self.outside[self.square[k]], &self.spare[self.square[k]])
        return True

    cdef int profile_(self, bint reml) noexcept nogil:
        """Coefficients, r^2 and the value from [X y]'V^-1[X y]."""
        cdef Py_ssize_t i, j, l, c = self.c, r = c - 1
        cdef double t = 0.0, inner = 0.0, spread, nu = self.n_rows - (r if reml else 0), yy = self.full[c * c - 1]
        cdef double* F = &self.full[0]
        cdef double* B = &self.half_[0]
        if not cholesky(c, F, 0.0):
            return ELSEWHERE
        for j in range(r):
            inner += 2.0 * log(F[j * c + j])
        self.r2 = F[r * c + r] * F[r * c + r]
        if not yy < LOST * self.r2:
            return ELSEWHERE
        # F^-1 of the first r, lower triangular
        for j in range(r):
            for i in range(j):
                B[i * r + j] = 0.0
            B[j * r + j] = 1.0 / F[j * c + j]
            for i in range(j + 1, r):
                t = 0.0
                for l in range(j, i):
                    t -= F[i * c + l] * B[l * r + j]
                B[i * r + j] = t / F[i * c + i]
        for i in range(r):
            t = 0.0
            for l in range(i, r):
                t += B[l * r + i] * F[r * c + l]
            self.beta_[i] = t
            self.turn[i * c + r] = -t
            self.turn[r * c + i] = 0.0
            for j in range(r):
                self.turn[i * c + j] = B[j * r + i]
        self.turn[c * c - 1] = 1.0
        spread = nu * (1.0 + log(PI2 * self.r2 / nu))
        inner = inner if reml else 0.0
        self.value = self.log_det + spread + inner
        self.noise = EPS * (self.n_rows + fabs(self.log_det) + fabs(spread) + fabs(inner))
        return 0 if isfinite(self.value) else ELSEWHERE

    cdef void first_(self, bint reml) noexcept nogil:
        """[A e] by rows, M by table, and the gradient."""
        cdef Py_ssize_t k, n, m, a, b, i, s, c = self.c
        cdef int ci = <int> c, total = <int> self.total
        cdef double one = 1.0, zero = 0.0, ratio = (self.n_rows - (c - 1 if reml else 0)) / self.r2, t
        cdef double bracket = 1.0 if reml else 0.0
        cdef const Py_ssize_t* v
        cdef double* M
        cdef double* W
        # `rows` <- rows turn, by way of the place where products are gathered
        cdef Py_ssize_t at = 0, some, room = self.buffer.shape[0] // c
        while at < self.total:
            some = min(room, self.total - at)
            total = <int> some
            memcpy(&self.buffer[0], &self.rows[at * c], some * c * sizeof(double))
            dgemm("N", "N", &ci, &total, &ci, &one, &self.turn[0], &ci, &self.buffer[0], &ci, &zero,
                  &self.rows[at * c], &ci)
            at += some
        memset(&self.slope[0], 0, self.root[self.n_tables] * sizeof(double))
        for k in range(self.n_patterns):
            n, s = self.size[k], self.square[k]
            W = &self.inverse[s]
            back(n, self.members[k] * c, &self.lower[s], &self.rows[self.first[k]])
            inverted(n, &self.lower[s], W, &self.work[0])
            moments(n, self.members[k], c, &self.rows[self.first[k]], &self.moment_x[s], &self.moment_e[s])
            back(n, n, &self.lower[s], &self.spare[s])
            add_beside(n, &self.spare[s], &self.moment_e[s])
            m, v = self.table_size[self.table[k]], &self.visits[self.place[k]]
            M = &self.slope[self.root[self.table[k]]]
            for a in range(n):
                for b in range(n):
                    M[v[a] * m + v[b]] += (self.counts[k] * W[a * n + b] - ratio * self.moment_e[s + a * n + b]
                                           - bracket * self.moment_x[s + a * n + b])
        self.directions_()
        for i in range(self.n_par):
            self.gradient_[i] = 0.0
        for k in range(self.n_tables):
            m, M = self.table_size[k], &self.slope[self.root[k]]
            for i in range(self.own[k], self.own[k + 1]):
                t = 0.0
                s = self.pair[k]
                for a in range(m):
                    for b in range(a):
                        t += 2.0 * M[a * m + b] * self.J[i * self.n_v + s]
                        s += 1
                    t += M[a * m + a] * self.J[i * self.n_v + s]
                    s += 1
                self.gradient_[i] = t

    cdef void directions_(self) noexcept nogil:
        """J (n_par, n_v) at the roots."""
        cdef Py_ssize_t g, i, j, l, m, at, a, b
        cdef double t
        cdef double* A
        cdef double* J
        memset(&self.J[0], 0, self.n_par * self.n_v * sizeof(double))
        for g in range(self.n_tables):
            m, at, A = self.table_size[g], self.own[g], &self.roots[self.root[g]]
            if g > 0:
                J = &self.J[at * self.n_v + self.pair[g]]
                for a in range(m):
                    for b in range(a + 1):
                        t = 0.0
                        for l in range(b + 1):
                            t += A[a * m + l] * A[b * m + l]
                        J[a * (a + 1) // 2 + b] = t
                at += 1
            for j in range(m):
                for i in range(j, m):
                    if i == 0:
                        continue
                    # dS = change (e_i a_j' + a_j e_i'), a_j the j-th column of A, zero before j
                    J = &self.J[at * self.n_v + self.pair[g]]
                    for a in range(j, m):
                        t = self.change[at] * A[a * m + j]
                        if a < i:
                            J[i * (i + 1) // 2 + a] = t
                        elif a > i:
                            J[a * (a + 1) // 2 + i] = t
                        else:
                            J[i * (i + 1) // 2 + i] = 2.0 * t
                    at += 1

    cdef void pairs_(self) noexcept nogil:
        """A'DA (packed, so that inner products are those of the matrices), A'De and e'De for all unit directions D."""
        cdef Py_ssize_t g, k, n, m, i, j, a, b, s, columns, c = self.c, r = c - 1, at, other, row, twin
        cdef double root2 = sqrt(2.0), weight
        cdef double* U = &self.products[0]
        cdef Gathered gathered
        for g in range(self.n_tables):
            m = self.table_size[g]
            columns = m * c
            gathered.c, gathered.buffer, gathered.U = c, &self.buffer[0], U
            begin(&gathered, m)
            for k in range(self.n_patterns):
                if self.table[k] == g:
                    gather(&gathered, self.size[k], self.members[k], &self.visits[self.place[k]],
                           &self.rows[self.first[k]])
            settle(&gathered)
            # the lower triangle by columns is the upper one by rows: (b c + i, a c + j) for b <= a
            for a in range(m):
                for b in range(a + 1):
                    s = self.pair[g] + a * (a + 1) // 2 + b
                    at = 0
                    for i in range(r):
                        row = (b * c + i) * columns + a * c
                        for j in range(i):
                            twin = (b * c + j) * columns + a * c + i
                            self.Sx[s * self.n_x + at] = root2 * (
                                U[twin] if a == b else U[row + j] + U[twin])
                            at += 1
                        self.Sx[s * self.n_x + at] = U[row + i] if a == b else 2.0 * U[row + i]
                        at += 1
                        other = (b * c + r) * columns + a * c + i
                        self.Se[s * r + i] = U[row + r] if a == b else U[row + r] + U[other]
                    self.St[s] = 0.0
            for k in range(self.n_patterns):
                if self.table[k] != g:
                    continue
                n = self.size[k]
                for a in range(n):
                    for b in range(a + 1):
                        i, j = self.visits[self.place[k] + a], self.visits[self.place[k] + b]
                        weight = 1.0 if a == b else 2.0
                        weight *= self.moment_e[self.square[k] + a * n + b]
                        self.St[self.pair[g] + i * (i + 1) // 2 + j] += weight

    cdef void second_(self, bint reml) noexcept nogil:
        """K along pairs of unit directions, and the Hessian."""
        cdef Py_ssize_t k, g, n, i, j, s, at, c = self.c, r = c - 1, v = self.n_v
        cdef double ratio = (self.n_rows - (r if reml else 0)) / self.r2, bracket = 2.0 if reml else 0.0
        cdef double* F = &self.work[0]
        cdef double* K = &self.curve[0]
        cdef int vi = <int> v, wide
        cdef double one = 1.0, minus = -1.0, share
        memset(K, 0, v * v * sizeof(double))
        for k in range(self.n_patterns):
            n, s = self.size[k], self.square[k]
            for i in range(n * n):
                F[i] = (-self.counts[k] * self.inverse[s + i] + 2.0 * ratio * self.moment_e[s + i]
                        + bracket * self.moment_x[s + i])
            at = self.pair[self.table[k]]
            bend(n, F, &self.inverse[s], &self.visits[self.place[k]], K + at * v + at, v)
        self.pairs_()
        for i in range(v):
            for j in range(i + 1):
                K[i * v + j] -= ratio / self.r2 * self.St[i] * self.St[j]
        # the lower triangle by rows is the upper one by columns
        if r > 0:
            wide = <int> r
            share = -2.0 * ratio
            dsyrk("U", "T", &vi, &wide, &share, &self.Se[0], &wide, &one, K, &vi)
            if reml:
                wide = <int> self.n_x
                dsyrk("U", "T", &vi, &wide, &minus, &self.Sx[0], &wide, &one, K, &vi)
        for i in range(v):
            for j in range(i):
                K[j * v + i] = K[i * v + j]
        self.chain_()

    cdef void chain_(self) noexcept nogil:
        """The Hessian in phi: J K J' and what second derivatives of S add."""
        cdef Py_ssize_t g, i, j, l, m, at, a, p = self.n_par
        cdef int pi = <int> p, vi = <int> self.n_v
        cdef double one = 1.0, zero = 0.0, t
        cdef double* A
        cdef double* M
        cdef double* H = &self.hessian_[0]
        if p == 0:
            return
        dgemm("N", "N", &vi, &pi, &vi, &one, &self.curve[0], &vi, &self.J[0], &vi, &zero, &self.T[0], &vi)
        dgemm("T", "N", &pi, &pi, &vi, &one, &self.J[0], &vi, &self.T[0], &vi, &zero, H, &pi)
        for g in range(self.n_tables):
            m, at = self.table_size[g], self.own[g]
            A, M = &self.roots[self.root[g]], &self.slope[self.root[g]]
            if g > 0:
                # S is e^tau times the rest
                H[at * p + at] += self.gradient_[at]
                for i in range(at + 1, self.own[g + 1]):
                    H[at * p + i] += self.gradient_[i]
                    H[i * p + at] += self.gradient_[i]
                at += 1
            for j in range(m):
                a = at
                for i in range(j, m):
                    if i == 0:
                        continue
                    # with the elements of the same column from this one on
                    for l in range(i, m):
                        t = 2.0 * self.change[at] * self.change[at + l - i] * M[i * m + l]
                        H[at * p + at + l - i] += t
                        if l > i:
                            H[(at + l - i) * p + at] += t
                    at += 1
                if j == 0:
                    continue
                t = 0.0
                for l in range(j, m):
                    t += M[j * m + l] * A[l * m + j]
                H[a * p + a] += 2.0 * self.change[a] * t

    # ---- what the interpreter asks for -------------------------------------------------------------------

    def profile(self):
        """Coefficients, r^2, Cholesky's factor of X'V^-1X and its inverse at the last point."""
        cdef Py_ssize_t i, j, r = self.c - 1
        chol_array = np.zeros((r, r))
        cdef double[:, ::1] chol = chol_array
        for i in range(r):
            for j in range(i + 1):
                chol[i, j] = self.full[i * self.c + j]
        return np.array(self.beta_[:r]), self.r2, chol_array, np.array(self.half_[:r * r]).reshape(r, r)

    def crossed(self):
        """[A e]'D[A e] for the directions of phi (n_par, c, c), at the last point of order 2."""
        cdef Py_ssize_t d, i, j, s, at, c = self.c, r = c - 1, v = self.n_v
        cdef double t, root2 = sqrt(0.5)
        out_array = np.zeros((self.n_par, c, c))
        cdef double[:, :, ::1] out = out_array
        with nogil:
            for d in range(self.n_par):
                for s in range(v):
                    t = self.J[d * v + s]
                    if t == 0.0:
                        continue
                    at = s * self.n_x
                    for i in range(r):
                        for j in range(i):
                            out[d, i, j] += t * root2 * self.Sx[at]
                            at += 1
                        out[d, i, i] += t * self.Sx[at]
                        at += 1
                        out[d, r, i] += t * self.Se[s * r + i]
                    out[d, r, r] += t * self.St[s]
                for i in range(c):
                    for j in range(i):
                        out[d, j, i] = out[d, i, j]
        return out_array
