# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Profiled ML and REML criterion of one grouping factor, with exact gradient and Hessian.

With G^ = L L' (relative to sigma^2), sums over groups, [X y]'V^-1[X y] = H, Cholesky factor of H
giving beta, r^2 and |H_xx|, nu = n (ML) or n - p (REML), b = (-beta, 1), K = H_xx^-1:

    d = sum log|V_i| + nu (1 + log(2 pi r^2 / nu)) [+ log|H_xx|]
    d_D d      = <sum N_i - E_i M E_i', D>,   M = (nu / r^2) b b' [+ K]
    d_D d_F d  = sum tr((-N_i + 2 E_i M E_i') D N_i F)
                 - (2 nu / r^2) u_D'K u_F - (nu / r^4) s_D s_F [- tr(K J_D K J_F)]

for symmetric directions D, F of G^, where J_D = sum E_i'D E_i, u_D = (J_D b)_x, s_D = b'J_D b and
E_i = Z_i'V_i^-1[X_i y_i], N_i = Z_i'V_i^-1 Z_i.  (The first line is Bates et al. 2015, eq. 34 and 41;
the derivatives follow from dN = -N dG^ N, dE = -N dG^ E.)  The chain to the free elements of L
goes through G^ = L L'.  No loop here runs over groups: those are in the lane kernels.
"""
from libc.math cimport fabs, isfinite, log, sqrt, M_PI
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import numpy as np

from fastlmm_core._newton cimport Objective
from fastlmm_core._shapes cimport LANES, LaneKernels, Shape, curvature_t, effects_t, factor_t, moments_t

cdef LaneKernels kernels
cdef double EPS = 2.220446049250313e-16


def use_kernels(addresses):
    """Take the lane kernels at these addresses (see _lanes.kernels)."""
    kernels.factor = <factor_t> <uintptr_t> addresses[0]
    kernels.moments = <moments_t> <uintptr_t> addresses[1]
    kernels.curvature = <curvature_t> <uintptr_t> addresses[2]
    kernels.effects = <effects_t> <uintptr_t> addresses[3]


cdef Shape make_shape(Py_ssize_t q, Py_ssize_t k) noexcept nogil:
    cdef Shape shape
    shape.q = q
    shape.k = k
    shape.n_a = q * (q + 1) // 2
    shape.n_c = q * k
    shape.stride = shape.n_a + shape.n_c + 1
    return shape


def factor_groups(const double[:, ::1] raw, const double[:, ::1] z_transform, const double[:, ::1] xy_transform):
    """Rotate and factor the cross-products of groups.

    Parameters
    ----------
    raw : (m, K) array
        As returned by ``accumulate``.
    z_transform, xy_transform : upper triangular (q, q) and (p+1, p+1) arrays

    Returns
    -------
    packed : (ceil(m / 8), K, 8) array
    between : ((p+1)(p+2)/2,) array
        Sum of c_i'c_i: the part of [X y]'[X y] that the columns of Z explain within groups.
    """
    cdef Shape shape = make_shape(z_transform.shape[0], xy_transform.shape[0])
    cdef Py_ssize_t m = raw.shape[0], n_h = shape.k * (shape.k + 1) // 2
    cdef Py_ssize_t size = shape.q * shape.q + shape.n_c + 2 * shape.q + n_h
    out = np.empty(((m + LANES - 1) // LANES, shape.stride, LANES))
    between = np.zeros(n_h)
    scratch = np.empty(size * LANES)
    cdef double[:, :, ::1] packed = out
    cdef double[::1] b = between, s = scratch
    with nogil:
        kernels.factor(&shape, m, &raw[0, 0], &z_transform[0, 0], &xy_transform[0, 0], &packed[0, 0, 0], &b[0], &s[0])
    return out, between


def group_effects(const double[:, :, ::1] packed, Py_ssize_t n_groups, const double[:, ::1] factor,
                  const double[::1] contrast, bint covariance):
    """e_i = Z_i'V_i^-1 [X_i y_i] contrast and, if asked for, N_i = Z_i'V_i^-1 Z_i of every group.

    Returns
    -------
    e : (n_groups, q) array
    N : (n_groups, q, q) array or None
    """
    cdef Shape shape = make_shape(factor.shape[0], contrast.shape[0])
    cdef Py_ssize_t n_blocks = packed.shape[0]
    e_array = np.empty((n_blocks * LANES, shape.q))
    n_array = np.empty((n_blocks * LANES, shape.q, shape.q)) if covariance else None
    scratch = np.empty((3 * shape.q * shape.q + shape.n_c + shape.q) * LANES)
    cdef double[:, ::1] e = e_array
    cdef double[::1] s = scratch
    cdef double[:, :, ::1] N
    cdef double* n_out = NULL
    if covariance:
        N = n_array
        n_out = &N[0, 0, 0]
    with nogil:
        kernels.effects(&shape, n_blocks, &packed[0, 0, 0], &factor[0, 0], &contrast[0], &e[0, 0], n_out, &s[0])
    return e_array[:n_groups], n_array[:n_groups] if covariance else None


cdef class ClusterCriterion(Objective):
    """The criterion as a function of the free elements of L.

    Parameters
    ----------
    packed : (blocks, K, 8) array
        Factored groups, possibly compressed.
    within : ((p+1)(p+2)/2,) array
        [X y]'[X y] less its part between groups, packed lower triangle by rows.
    n_rows, q, k : int
    rows, columns : int arrays
        Positions of the free elements of L (rows >= columns).
    uniform : bool
        Whether every group stands for itself (not compressed).
    """

    cdef readonly Py_ssize_t q, k, n_rows
    cdef public bint reml
    cdef bint uniform
    cdef Shape shape
    cdef Py_ssize_t n_blocks
    cdef object owner_packed
    cdef const double* packed
    cdef Py_ssize_t* row
    cdef Py_ssize_t* col
    cdef double* buffer
    cdef double* within
    cdef double* factor      # L (q x q)
    cdef double* sum_n
    cdef double* H           # packed, then its Cholesky factor (k x k) in chol
    cdef double* chol
    cdef double* inverse     # inverse of the Cholesky factor of H_xx (p x p, lower)
    cdef double* b           # (-beta, 1)
    cdef double* weight      # M and its lower factor w (k x k each)
    cdef double* gram
    cdef double* g           # gradient in G^ (q x q)
    cdef double* tensor
    cdef double* curve       # Hessian in vech(G^) (n_a x n_a)
    cdef double* jac         # d vech(G^) / d theta (n_a x n_par)
    cdef double* directions  # J_D, whitened (n_a x k x k)
    cdef double* vectors     # K^(1/2)' u_D (n_a x k), last element s_D
    cdef double* scratch
    cdef double* store
    cdef double* last        # the last point, its highest derivative and kind
    cdef int last_order
    cdef bint last_reml
    cdef public Py_ssize_t n_evaluations

    def __cinit__(self, const double[:, :, ::1] packed, const double[::1] within, Py_ssize_t n_rows,
                  Py_ssize_t q, Py_ssize_t k, rows, columns, bint uniform):
        cdef Py_ssize_t i, n_par = len(rows), n_a, n_c, n_h, n_g, n_scratch, total
        cdef double* place
        self.shape = make_shape(q, k)
        self.q = q
        self.k = k
        self.n_rows = n_rows
        self.n_par = n_par
        self.reml = True
        self.uniform = uniform
        self.n_blocks = packed.shape[0]
        self.owner_packed = packed.base
        self.packed = &packed[0, 0, 0]
        n_a = self.shape.n_a
        n_c = self.shape.n_c
        n_h = k * (k + 1) // 2
        n_g = n_c * (n_c + 1) // 2
        n_scratch = LANES * (3 * q * q + 2 * n_c + 2 * n_a + n_a * n_a + n_h + n_g)
        sizes = [n_h, q * q, n_a, n_h, k * k, k * k, k, 2 * k * k, n_g, q * q, n_a * n_a, n_a * n_a, n_a * n_par,
                 n_a * k * k, n_a * k, n_scratch, n_par, n_par, n_par * n_par]
        total = sum(sizes)
        self.row = <Py_ssize_t*> calloc(2 * n_par, sizeof(Py_ssize_t))
        self.buffer = <double*> calloc(total, sizeof(double))
        if self.row == NULL or self.buffer == NULL:
            raise MemoryError()
        self.col = self.row + n_par
        for i in range(n_par):
            self.row[i] = rows[i]
            self.col[i] = columns[i]
        place = self.buffer
        self.within = place; place += n_h
        self.factor = place; place += q * q
        self.sum_n = place; place += n_a
        self.H = place; place += n_h
        self.chol = place; place += k * k
        self.inverse = place; place += k * k
        self.b = place; place += k
        self.weight = place; place += 2 * k * k
        self.gram = place; place += n_g
        self.g = place; place += q * q
        self.tensor = place; place += n_a * n_a
        self.curve = place; place += n_a * n_a
        self.jac = place; place += n_a * n_par
        self.directions = place; place += n_a * k * k
        self.vectors = place; place += n_a * k
        self.scratch = place; place += n_scratch
        self.last = place; place += n_par
        self.last_order = -1
        self.grad_ = place; place += n_par
        self.hess_ = place
        for i in range(n_h):
            self.within[i] = within[i]

    def __dealloc__(self):
        free(self.row)
        free(self.buffer)
        free(self.store)

    cdef int evaluate_(self, const double* x, int order) noexcept nogil:
        cdef Py_ssize_t q = self.q, k = self.k, p = k - 1, n_h = k * (k + 1) // 2, i, j, l, pos
        cdef double t, r2, nu, logdet, log_h = 0.0
        cdef bint same = self.last_order >= order and self.last_reml == self.reml
        for i in range(self.n_par):
            same = same and x[i] == self.last[i]
        if same:
            return 0
        self.n_evaluations += 1
        self.last_order = -1
        if order >= 2 and self.store == NULL:
            self.store = <double*> calloc(self.n_blocks * (self.shape.n_a + self.shape.n_c) * LANES, sizeof(double))
            if self.store == NULL:
                return -1
        memset(self.factor, 0, q * q * sizeof(double))
        for i in range(self.n_par):
            self.factor[self.row[i] * q + self.col[i]] = x[i]
        memcpy(self.H, self.within, n_h * sizeof(double))
        logdet = kernels.moments(&self.shape, self.n_blocks, self.uniform, self.packed, self.factor, self.sum_n,
                                 self.H, self.gram if order >= 1 else NULL, self.store if order >= 2 else NULL,
                                 self.scratch)
        # Cholesky factor of H; y is last, so that its pivot is r
        pos = 0
        for i in range(k):
            for j in range(i + 1):
                t = self.H[pos]
                for l in range(j):
                    t = t - self.chol[i * k + l] * self.chol[j * k + l]
                pos = pos + 1
                if j < i:
                    self.chol[i * k + j] = t / self.chol[j * k + j]
                elif t > 0.0 and isfinite(t):
                    self.chol[i * k + i] = sqrt(t)
                else:
                    return -1
        r2 = self.chol[p * k + p] ** 2
        for i in range(p - 1, -1, -1):
            t = self.chol[p * k + i]
            for l in range(i + 1, p):
                t = t - self.chol[l * k + i] * (-self.b[l])
            self.b[i] = -t / self.chol[i * k + i]
        self.b[p] = 1.0
        for i in range(p):
            log_h += 2.0 * log(self.chol[i * k + i])
        nu = <double> (self.n_rows - p if self.reml else self.n_rows)
        t = nu * (1.0 + log(2.0 * M_PI * r2 / nu))
        self.value_ = logdet + t + (log_h if self.reml else 0.0)
        self.noise_ = EPS * (fabs(logdet) + fabs(t) + fabs(log_h) + nu)
        if not isfinite(self.value_):
            return -1
        if order >= 1:
            self.first_derivatives(nu / r2)
        if order >= 2:
            self.second_derivatives(nu, r2)
        memcpy(self.last, x, self.n_par * sizeof(double))
        self.last_order = order
        self.last_reml = self.reml
        return 0

    cdef void first_derivatives(self, double scale) noexcept nogil:
        """g = sum N - E M E', gradient in theta = 2 (g L); 2 M = w w', w = sqrt(2) [inverse', sqrt(scale) b]."""
        cdef Py_ssize_t q = self.q, k = self.k, p = k - 1, a, b, i, j, l
        cdef double t
        cdef double* M = self.weight
        cdef double* w = self.weight + k * k
        for j in range(p):
            self.inverse[j * k + j] = 1.0 / self.chol[j * k + j]
            for i in range(j + 1, p):
                t = 0.0
                for l in range(j, i):
                    t = t + self.chol[i * k + l] * self.inverse[l * k + j]
                self.inverse[i * k + j] = -t / self.chol[i * k + i]
        for j in range(k):
            for l in range(p):
                w[j * k + l] = sqrt(2.0) * self.inverse[l * k + j] if j <= l else 0.0
            w[j * k + p] = sqrt(2.0 * scale) * self.b[j]
        for i in range(k):
            for j in range(i + 1):
                t = 0.0
                for l in range(i if self.reml else p, k):
                    t = t + w[i * k + l] * w[j * k + l]
                M[i * k + j] = 0.5 * t
                M[j * k + i] = 0.5 * t
        for a in range(q):
            for b in range(a + 1):
                t = self.sum_n[a * (a + 1) // 2 + b]
                for i in range(k):
                    for j in range(k):
                        t = t - M[i * k + j] * self.gram_at(a * k + i, b * k + j)
                self.g[a * q + b] = t
                self.g[b * q + a] = t
        for l in range(self.n_par):
            t = 0.0
            for a in range(q):
                t = t + self.g[self.row[l] * q + a] * self.factor[a * q + self.col[l]]
            self.grad_[l] = 2.0 * t

    cdef inline double gram_at(self, Py_ssize_t i, Py_ssize_t j) noexcept nogil:
        return self.gram[i * (i + 1) // 2 + j] if i >= j else self.gram[j * (j + 1) // 2 + i]

    cdef inline double tensor_at(self, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c, Py_ssize_t d) noexcept nogil:
        cdef Py_ssize_t i = a * (a + 1) // 2 + b if a >= b else b * (b + 1) // 2 + a
        cdef Py_ssize_t j = c * (c + 1) // 2 + d if c >= d else d * (d + 1) // 2 + c
        return self.tensor[i * self.shape.n_a + j]

    cdef double product(self, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c, Py_ssize_t d) noexcept nogil:
        """sum tr(B D N F) for the symmetric unit directions D = (a, b), F = (c, d)."""
        cdef double t = self.tensor_at(d, a, b, c)
        if a != b:
            t = t + self.tensor_at(d, b, a, c)
        if c != d:
            t = t + self.tensor_at(c, a, b, d)
            if a != b:
                t = t + self.tensor_at(c, b, a, d)
        return t

    cdef void second_derivatives(self, double nu, double r2) noexcept nogil:
        """Hessian in vech(G^), then in theta."""
        cdef Py_ssize_t q = self.q, k = self.k, p = k - 1, n_a = self.shape.n_a, n = self.n_par
        cdef Py_ssize_t a, b, c, d, i, j, l, alpha, beta
        cdef double t
        cdef double* J
        cdef double* v
        cdef double* work = self.scratch
        kernels.curvature(&self.shape, self.n_blocks, 0 if self.reml else p, self.packed, self.weight + k * k,
                          self.store, self.tensor, self.scratch)
        # for each direction: v = (L_xx^-1 u, s) and, by REML, L_xx^-1 J_xx L_xx^-T
        alpha = 0
        for a in range(q):
            for b in range(a + 1):
                J = self.directions + alpha * k * k
                v = self.vectors + alpha * k
                for i in range(k):
                    for j in range(k):
                        work[i * k + j] = self.gram_at(a * k + i, b * k + j)
                        if a != b:
                            work[i * k + j] += self.gram_at(b * k + i, a * k + j)
                v[p] = 0.0
                for i in range(k):
                    t = 0.0
                    for j in range(k):
                        t = t + work[i * k + j] * self.b[j]
                    J[i] = t
                    v[p] += t * self.b[i]
                for i in range(p):
                    t = 0.0
                    for j in range(i + 1):
                        t = t + self.inverse[i * k + j] * J[j]
                    v[i] = t
                if self.reml:
                    for i in range(p - 1, -1, -1):
                        for j in range(p):
                            t = 0.0
                            for l in range(i + 1):
                                t = t + self.inverse[i * k + l] * work[l * k + j]
                            work[i * k + j] = t
                    for i in range(p):
                        for j in range(p):
                            t = 0.0
                            for l in range(j + 1):
                                t = t + work[i * k + l] * self.inverse[j * k + l]
                            J[i * k + j] = t
                alpha += 1
        alpha = 0
        for a in range(q):
            for b in range(a + 1):
                beta = 0
                for c in range(q):
                    for d in range(c + 1):
                        if beta > alpha:
                            break
                        t = 0.5 * (self.product(a, b, c, d) + self.product(c, d, a, b))
                        for i in range(p):
                            t -= 2.0 * nu / r2 * self.vectors[alpha * k + i] * self.vectors[beta * k + i]
                        t -= nu / (r2 * r2) * self.vectors[alpha * k + p] * self.vectors[beta * k + p]
                        if self.reml:
                            for i in range(p):
                                for j in range(p):
                                    t -= (self.directions[(alpha * k + i) * k + j]
                                          * self.directions[(beta * k + i) * k + j])
                        self.curve[alpha * n_a + beta] = t
                        self.curve[beta * n_a + alpha] = t
                        beta += 1
                alpha += 1
        # chain to theta: Jac' curve Jac plus 2 g between elements of one column of L
        for l in range(n):
            alpha = 0
            for a in range(q):
                for b in range(a + 1):
                    t = 0.0
                    if a == self.row[l]:
                        t = t + self.factor[b * q + self.col[l]]
                    if b == self.row[l]:
                        t = t + self.factor[a * q + self.col[l]]
                    self.jac[alpha * n + l] = t
                    alpha += 1
        for alpha in range(n_a):
            for l in range(n):
                t = 0.0
                for beta in range(n_a):
                    t = t + self.curve[alpha * n_a + beta] * self.jac[beta * n + l]
                work[alpha * n + l] = t
        for i in range(n):
            for j in range(n):
                t = 0.0
                for alpha in range(n_a):
                    t = t + self.jac[alpha * n + i] * work[alpha * n + j]
                if self.col[i] == self.col[j]:
                    t = t + 2.0 * self.g[self.row[i] * q + self.row[j]]
                self.hess_[i * n + j] = t

    def evaluate(self, theta, int order=0):
        """Evaluate at theta.

        Parameters
        ----------
        theta : (n_par,) array
        order : {0, 1, 2}
            Highest derivative wanted.

        Returns
        -------
        value : float
            Infinite where the criterion is not defined.
        gradient : (n_par,) array or None
        hessian : (n_par, n_par) array or None
        """
        cdef double[::1] x = np.array(theta, dtype=float)
        cdef int status
        cdef Py_ssize_t n = self.n_par
        if x.shape[0] != n:
            raise ValueError(f"theta has {x.shape[0]} elements, the model has {n}")
        with nogil:
            status = self.evaluate_(&x[0], order)
        if status != 0:
            return (np.inf, np.zeros(n) if order >= 1 else None, np.eye(n) if order >= 2 else None)
        return (
            self.value_,
            np.array(<double[:n]> self.grad_) if order >= 1 else None,
            np.array(<double[:n * n]> self.hess_).reshape(n, n) if order >= 2 else None,
        )

    def solution(self):
        """Coefficients, r^2, Cholesky factor of H_xx, and the derivatives in vech(G^) at the last point of order 2.

        Returns
        -------
        beta : (p,) array
        r2 : float
        chol : (p, p) lower triangular array
        gradient : (q, q) array
            Derivative of the criterion in G^, as a symmetric matrix.
        """
        cdef Py_ssize_t k = self.k, q = self.q, p = self.k - 1
        cdef Py_ssize_t i, j
        chol_array = np.zeros((p, p))
        beta_array = np.empty(p)
        cdef double[:, ::1] chol = chol_array
        cdef double[::1] beta = beta_array
        for i in range(p):
            beta[i] = -self.b[i]
            for j in range(i + 1):
                chol[i, j] = self.chol[i * k + j]
        return beta_array, self.chol[p * k + p] ** 2, chol_array, np.array(<double[:q * q]> self.g).reshape(q, q)

    def curvature(self):
        """Second derivatives of the criterion in vech(G^) (lower triangle by rows) at the last point of order 2."""
        cdef Py_ssize_t n_a = self.shape.n_a
        return np.array(<double[:n_a * n_a]> self.curve).reshape(n_a, n_a)
