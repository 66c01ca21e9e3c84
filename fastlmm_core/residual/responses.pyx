# cython: language_level=3
"""Many responses over the same visits, with `us` residuals and no random effects: one after the other, compiled.

A design enters once.  For the N_k subjects of pattern k let M_k = Q_k R_k hold a row vec(X_i) for each, Q_k (N_k, d_k)
with orthonormal columns.  A response y, with Y_k (N_k, n_k) a row for each subject, enters by

    T_k = Q_k'Y_k,     G_k G_k' = (Y_k - Q_k T_k)'(Y_k - Q_k T_k):

the d_k rows of [R_k T_k] stand for the subjects in all sums of products of [X y], and G_k for what is left of those of
y alone (`UnstructuredSums.outside`).  Least squares, moments to start from, and all steps of Newton's method read
nothing else.

What does not go smoothly (a position with hardly any variance of its own, no way down, responses that are constant at a
visit) is left to the search for single responses: its status is 0.
"""
from libc.math cimport NAN, fabs, isfinite, log, sqrt
from libc.string cimport memcpy

import numpy as np

from fastlmm_core.kernels._unstructured cimport UnstructuredSums
from fastlmm_core.residual.loops cimport rooted_rows
from fastlmm_core.small.cholesky cimport cholesky
from scipy.linalg.cython_blas cimport dgemm

cdef enum:
    HALVED = 8                  # how often a step is cut
    RIDGES = 20                 # how often a ridge is raised, or correlations are drawn to 0

cdef double LONGEST = 2.0       # a step at most
cdef double SETTLED = 1e-6      # decrement from which nothing but rounding can keep the next one from falling
cdef double INSIDE = 1e4        # norm of the inverse of the standardised root up to which a point is inside
cdef double LEAST = 1e-4        # standard deviation of a position, of the largest, from which it is
cdef double EIGENVALUE = 0.05   # least one of the correlations from which a search starts
cdef double SHRUNK = 0.85


cdef class UnstructuredBatch:
    """Fits of many responses; one work space, for one thread.

    Parameters
    ----------
    design : records.VisitResponses
    """

    cdef UnstructuredSums sums
    cdef const Py_ssize_t[::1] order
    cdef const double[::1] basis, root_weights, offset
    cdef const double[:, ::1] x_map
    cdef bint weighted, shifted
    cdef Py_ssize_t n, p, r, max_iterations
    cdef double tolerance, nearly
    cdef double[::1] y, T, ols, low, high, x, trial, step, factor, products, squares, seen, cov, inner, rows, outer
    cdef double[::1] along, u, change

    def __init__(self, design):
        cdef Py_ssize_t n_v, largest
        self.sums = UnstructuredSums(design.patterns, len(design.order))
        self.order, self.basis, self.x_map = design.order, design.basis, design.x_map
        self.weighted, self.shifted = design.root_weights is not None, design.offset is not None
        none = np.zeros(1)
        self.root_weights = design.root_weights if self.weighted else none
        self.offset = design.offset if self.shifted else none
        self.tolerance, self.max_iterations, self.nearly = design.tolerance, design.max_iterations, design.nearly
        self.n, self.p, self.r = self.order.shape[0], self.x_map.shape[0], self.sums.c - 1
        n_v, largest = self.sums.n_v, self.sums.widest
        k = self.sums.n_par
        self.y = np.empty(self.n)
        self.T = np.zeros(self.sums.total + 1)
        self.ols, self.change = (np.zeros(self.r + 1) for _ in range(2))
        self.low, self.high = (np.empty(max(self.sums.n_tables * largest, 1)) for _ in range(2))
        self.x, self.trial, self.step, self.u = (np.zeros(max(k, 1)) for _ in range(4))
        self.factor = np.zeros(max(k * k, 1))
        self.products, self.squares, self.seen, self.cov, self.inner = (np.zeros(largest * largest) for _ in range(5))
        self.rows = np.zeros(max(self.p * self.r, 1))
        self.outer = np.zeros(max(self.p * self.sums.n_x, 1))
        self.along = np.zeros(max(self.p * n_v, 1))

    def fit(self, const double[:, ::1] Y, Py_ssize_t first, bint reml, double constant, results):
        """Fit the rows of Y and write results from row `first` on.

        Parameters
        ----------
        Y : (count, n) array
        first : int
        reml : bool
        constant : float
            Part of the criterion that does not depend on the response.
        results : records.BatchResults
        """
        cdef double[:, ::1] theta = results.theta, params = results.params, bse = results.bse, df = results.df
        cdef double[::1] sigma2 = results.sigma2, value = results.value, decrement = results.decrement
        cdef int[::1] status = results.status, evaluations = results.evaluations
        cdef Py_ssize_t i, j, at
        cdef double scale, nu = self.n - (self.r if reml else 0)
        cdef UnstructuredSums s = self.sums
        if Y.shape[1] != self.n or first < 0 or first + Y.shape[0] > status.shape[0]:
            raise ValueError("responses and results do not belong together")
        with nogil:
            for i in range(Y.shape[0]):
                at = first + i
                evaluations[at] = 0
                status[at] = self.load(s, &Y[i, 0], &scale)
                if status[at] != 1:
                    continue
                status[at] = 0
                decrement[at] = NAN
                if not self.begin(s) or not self.search(s, reml, &decrement[at],
                                                        &evaluations[at]) or not self.inside(s):
                    continue
                status[at] = 1
                sigma2[at] = scale * scale * s.r2 / nu
                value[at] = s.value + constant + 2.0 * nu * log(scale)
                for j in range(s.n_par):
                    theta[at, j] = self.x[j]
                for j in range(self.r):
                    self.ols[j] += scale * s.beta_[j]
                self.coefficients(s, sqrt(sigma2[at]), nu, &params[at, 0], &bse[at, 0], &df[at, 0])
        return None

    cdef int load(self, UnstructuredSums s, const double* y, double* scale) noexcept nogil:
        """Take a response in: 1, -1 where it is not finite, 0 where it is left to others."""
        cdef Py_ssize_t k, a, i, l, n, N, at = 0, from_basis = 0, place, c = s.c
        cdef double t, before = 0.0, squares = 0.0
        cdef double* held = s.response()
        cdef double* Y
        for i in range(self.low.shape[0]):
            self.low[i], self.high[i] = 1e308, -1e308
        for k in range(s.n_patterns):
            n, N = s.size[k], <Py_ssize_t> s.counts[k]
            Y = &self.y[at]
            for a in range(n):
                place = s.table[k] * s.widest + s.visits[s.place[k] + a]
                for i in range(N):
                    t = y[self.order[at + a * N + i]]
                    if not isfinite(t):
                        return -1
                    if self.shifted:
                        t -= self.offset[at + a * N + i]
                    self.low[place], self.high[place] = min(self.low[place], t), max(self.high[place], t)
                    if self.weighted:
                        t *= self.root_weights[at + a * N + i]
                    Y[a * N + i] = t
                    before += t * t
            self.split(s, k, Y, from_basis)
            at += n * N
            from_basis += N * s.members[k]
        for k in range(s.n_tables):
            for a in range(s.table_size[k]):
                if not self.low[k * s.widest + a] < self.high[k * s.widest + a]:
                    return 0
        self.least_squares(s)
        for l in range(s.total):
            squares += self.T[l] * self.T[l]
        for i in range(s.square[s.n_patterns]):
            squares += s.outside[i] * s.outside[i]
        if not squares > 1e-30 * before:
            return 0
        scale[0] = sqrt(squares / self.n)
        for l in range(s.total):
            held[l * c + self.r] = self.T[l] / scale[0]
        for i in range(s.square[s.n_patterns]):
            s.outside[i] /= scale[0]
        return 1

    cdef void split(self, UnstructuredSums s, Py_ssize_t k, double* Y, Py_ssize_t from_basis) noexcept nogil:
        """T_k and G_k of the responses Y (n_k, N_k), which are overwritten."""
        cdef Py_ssize_t a, i, j, n = s.size[k], N = <Py_ssize_t> s.counts[k], d = s.members[k]
        cdef double* T = &self.T[s.first[k] // s.c]
        cdef const double* Q = &self.basis[from_basis]
        cdef double t
        for a in range(n):
            for j in range(d):
                T[a * d + j] = 0.0
            for i in range(N):
                for j in range(d):
                    T[a * d + j] += Q[i * d + j] * Y[a * N + i]
            for i in range(N):
                t = Y[a * N + i]
                for j in range(d):
                    t -= Q[i * d + j] * T[a * d + j]
                Y[a * N + i] = t
        rooted_rows(n, N if d < N else 0, Y, &s.outside[s.square[k]])

    cdef void least_squares(self, UnstructuredSums s) noexcept nogil:
        """Take X out of T, and its coefficients into `ols`; twice, as the first turn leaves rounding errors of y."""
        cdef Py_ssize_t j, l, turn, c = s.c
        cdef double t
        cdef const double* held = &s.held[0]
        for j in range(self.r):
            self.ols[j] = 0.0
        for turn in range(2):
            for j in range(self.r):
                self.change[j] = 0.0
            for l in range(s.total):
                for j in range(self.r):
                    self.change[j] += held[l * c + j] * self.T[l]
            for l in range(s.total):
                t = self.T[l]
                for j in range(self.r):
                    t -= held[l * c + j] * self.change[j]
                self.T[l] = t
            for j in range(self.r):
                self.ols[j] += self.change[j]

    # ---- where a search starts ---------------------------------------------------------------------------

    cdef bint begin(self, UnstructuredSums s) noexcept nogil:
        """Phi from the covariances of the residuals of least squares."""
        cdef Py_ssize_t g, i, j, m, at = 0
        cdef double size = 1.0
        cdef double* A
        for g in range(s.n_tables):
            m = s.table_size[g]
            if not self.covariance(s, g):
                return False
            A = &self.cov[0]
            if g == 0:
                size = A[0]
            else:
                self.x[at] = 2.0 * log(A[0] / size)
                at += 1
            for j in range(m):
                for i in range(j, m):
                    if i == 0:
                        continue
                    self.x[at] = log(A[i * m + i] / A[0]) if i == j else A[i * m + j] / A[0]
                    at += 1
        return True

    cdef bint covariance(self, UnstructuredSums s, Py_ssize_t g) noexcept nogil:
        """The root of the covariance over the positions of a table, in `cov`: of the subjects seen at all positions
        where they are most, otherwise over the pairs that are there,
        drawn to independence until it is positive definite.
        """
        cdef Py_ssize_t k, a, b, j, n, d, m = s.table_size[g], c = s.c, trial
        cdef const Py_ssize_t* v
        cdef const double* held
        cdef double t, subjects = 0.0, pooled = 0.0, rows = 0.0, whole = 0.0
        for a in range(m * m):
            self.products[a] = self.squares[a] = self.seen[a] = self.cov[a] = 0.0
        for k in range(s.n_patterns):
            if s.table[k] != g:
                continue
            n, d, v = s.size[k], s.members[k], &s.visits[s.place[k]]
            held = &s.held[s.first[k]] + c - 1
            subjects += s.counts[k]
            for a in range(n):
                for b in range(n):
                    t = 0.0
                    for j in range(n):
                        t += s.outside[s.square[k] + a * n + j] * s.outside[s.square[k] + b * n + j]
                    for j in range(d):
                        t += held[(a * d + j) * c] * held[(b * d + j) * c]
                    self.inner[a * n + b] = t
            for a in range(n):
                for b in range(n):
                    self.products[v[a] * m + v[b]] += self.inner[a * n + b]
                    self.squares[v[a] * m + v[b]] += self.inner[a * n + a]
                    self.seen[v[a] * m + v[b]] += s.counts[k]
            if n == m and s.counts[k] >= 2 * m + 5:
                whole = s.counts[k]
                for a in range(m * m):
                    self.cov[a] = self.inner[a] / whole
        if whole >= 0.5 * subjects and cholesky(m, &self.cov[0], 1e-6):
            return True
        for a in range(m):
            pooled += self.squares[a * m + a]
            rows += self.seen[a * m + a]
        pooled /= max(rows, 1.0)
        for a in range(m):
            for b in range(m):
                t = sqrt(self.squares[a * m + b] * self.squares[b * m + a])
                t = self.products[a * m + b] / t if t > 0.0 else 0.0
                self.inner[a * m + b] = t * self.seen[a * m + b] / (self.seen[a * m + b] + 2.0) if a != b else 1.0
        for trial in range(RIDGES):
            for a in range(m * m):
                self.cov[a] = self.inner[a]
            for a in range(m):
                self.cov[a * m + a] -= EIGENVALUE
            if cholesky(m, &self.cov[0], 0.0):
                break
            for a in range(m):
                for b in range(m):
                    if a != b:
                        self.inner[a * m + b] *= SHRUNK
        for a in range(m):
            for b in range(m):
                t = (self.squares[a * m + a] + 0.25 * pooled) / (self.seen[a * m + a] + 0.25)
                t *= (self.squares[b * m + b] + 0.25 * pooled) / (self.seen[b * m + b] + 0.25)
                self.cov[a * m + b] = self.inner[a * m + b] * sqrt(t)
        return cholesky(m, &self.cov[0], 1e-6)

    # ---- Newton's method -----------------------------------------------------------------------------------

    cdef bint search(self, UnstructuredSums s, bint reml, double* decrement, int* evaluations) noexcept nogil:
        """Newton's method from x to x, with the factor of the Hessian there; whether it ended at a minimum."""
        cdef Py_ssize_t i, p = s.n_par, iteration
        cdef double before = 1e300, norm
        evaluations[0] = 1
        if s.at_(&self.x[0], 2, reml, self.nearly) != 0:
            return False
        for iteration in range(self.max_iterations):
            if not self.direction(s, &norm):
                return False
            if norm >= 0.0:
                decrement[0] = norm
                if norm <= self.tolerance or (norm <= SETTLED and norm > 0.5 * before):
                    return True
            before = norm if norm >= 0.0 else 1e300
            if not self.walk(s, reml, evaluations):
                return False
            for i in range(p):
                self.x[i] = self.trial[i]
        return False

    cdef bint direction(self, UnstructuredSums s, double* decrement) noexcept nogil:
        """A step down, of limited length; the decrement, -1 where the Hessian is not positive definite."""
        cdef Py_ssize_t i, j, p = s.n_par, trial
        cdef double ridge = 0.0, t, largest = 0.0
        cdef double* L = &self.factor[0]
        for i in range(p):
            largest = max(largest, fabs(s.hessian_[i * p + i]))
        for trial in range(RIDGES):
            memcpy(L, &s.hessian_[0], p * p * sizeof(double))
            for i in range(p):
                L[i * p + i] += ridge
            if cholesky(p, L, 0.0):
                break
            ridge = 1e-3 * largest if trial == 0 else 3.0 * ridge
        else:
            return False
        t = 0.0
        for i in range(p):
            self.step[i] = -s.gradient_[i]
            for j in range(i):
                self.step[i] -= L[i * p + j] * self.step[j]
            self.step[i] /= L[i * p + i]
            t += self.step[i] * self.step[i]
        decrement[0] = sqrt(t) if ridge == 0.0 else -1.0
        t = 0.0
        for i in range(p - 1, -1, -1):
            for j in range(i + 1, p):
                self.step[i] -= L[j * p + i] * self.step[j]
            self.step[i] /= L[i * p + i]
            t += self.step[i] * self.step[i]
        if t > LONGEST * LONGEST:
            t = LONGEST / sqrt(t)
            for i in range(p):
                self.step[i] *= t
        return True

    cdef bint walk(self, UnstructuredSums s, bint reml, int* evaluations) noexcept nogil:
        """Along the step until the criterion falls, to `trial`, evaluated there; False where it does not."""
        cdef Py_ssize_t i, p = s.n_par, cut
        cdef double share = 1.0, before = s.value, slope = 0.0, noise = 10.0 * s.noise
        for i in range(p):
            slope += self.step[i] * s.gradient_[i]
        for cut in range(HALVED):
            for i in range(p):
                self.trial[i] = self.x[i] + share * self.step[i]
            evaluations[0] += 1
            if s.at_(&self.trial[0], 0, reml, self.nearly) == 0 and s.value <= before + 1e-4 * share * slope + noise:
                return s.at_(&self.trial[0], 2, reml, self.nearly) == 0
            share *= 0.25
        return False

    cdef bint inside(self, UnstructuredSums s) noexcept nogil:
        """Whether no variance, and none of a combination of standardised positions, has run to zero."""
        cdef Py_ssize_t g, i, j, l, m
        cdef double* A
        cdef double* B = &self.cov[0]
        cdef double least, largest, t, norm
        for g in range(s.n_tables):
            m, A = s.table_size[g], &s.roots[s.root[g]]
            least, largest, norm = 1e308, 0.0, 0.0
            for i in range(m):
                t = 0.0
                for j in range(i + 1):
                    t += A[i * m + j] * A[i * m + j]
                self.inner[i] = sqrt(t)
                least, largest = min(least, self.inner[i]), max(largest, self.inner[i])
            if not least > LEAST * largest:
                return False
            # the inverse of the standardised root, column by column
            for j in range(m):
                for i in range(j, m):
                    t = self.inner[i] if i == j else 0.0
                    for l in range(j, i):
                        t -= A[i * m + l] * B[l * m + j]
                    B[i * m + j] = t / A[i * m + i]
                    norm += B[i * m + j] * B[i * m + j]
            if not norm < INSIDE * INSIDE:
                return False
        return True

    # ---- what is reported --------------------------------------------------------------------------------

    cdef void coefficients(self, UnstructuredSums s, double sigma, double nu, double* params, double* bse,
                           double* df) noexcept nogil:
        """Coefficients, standard errors and Satterthwaite's degrees of freedom: 1 / (1 / nu + u'H^-1 u)."""
        cdef Py_ssize_t i, j, l, at, p = s.n_par, r = self.r, v = s.n_v
        cdef int vi = <int> v, wi = <int> s.n_x, pi = <int> self.p
        cdef double t, length, total, one = 1.0, zero = 0.0, root2 = sqrt(2.0)
        cdef double* a
        for j in range(self.p):
            a = &self.rows[j * r]
            at = j * s.n_x
            for i in range(r):
                a[i] = 0.0
                for l in range(i + 1):
                    a[i] += s.half_[i * r + l] * self.x_map[j, l]
                for l in range(i):
                    self.outer[at] = root2 * a[i] * a[l]
                    at += 1
                self.outer[at] = a[i] * a[i]
                at += 1
        # derivatives of a'a along pairs of positions (p, v)
        dgemm("T", "N", &vi, &pi, &wi, &one, &s.Sx[0], &wi, &self.outer[0], &wi, &zero, &self.along[0], &vi)
        for j in range(self.p):
            a = &self.rows[j * r]
            length = 0.0
            t = 0.0
            for i in range(r):
                length += a[i] * a[i]
                t += self.x_map[j, i] * self.ols[i]
            params[j] = t
            bse[j] = sigma * sqrt(length)
            total = 0.0
            for i in range(p):
                t = 0.0
                for l in range(v):
                    t += s.J[i * v + l] * (self.along[j * v + l] / length - s.St[l] / s.r2)
                for l in range(i):
                    t -= self.factor[i * p + l] * self.u[l]
                self.u[i] = t / self.factor[i * p + i]
                total += self.u[i] * self.u[i]
            df[j] = 1.0 / (1.0 / nu + total)
