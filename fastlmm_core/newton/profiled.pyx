# cython: language_level=3
"""The profiled criterion of V(theta) by an engine that sums over levels: what the engines of several factors share.

An engine gives log|V| and H = [X y]'V^-1[X y] at G^ = F F', then derivatives along unit directions of G^.  Everything
else is here: beta, r^2 and the criterion (gls.pxi), the chain rule to theta (chain.pxi), and what is known already,
so that derivatives can wait until a point is accepted and a change of coordinates of the same G^ costs nothing.
"""
from libc.math cimport M_LN2, M_PI, fabs, isfinite
from libc.string cimport memcpy

import numpy as np

from fastlmm_core.small.chain cimport Chain, Gls, chain_factor

cdef extern from "scalar.h":
    ctypedef double vec
    ctypedef double vecu
    vec VEC_SET(double) nogil
    vec VEC_SQRT(vec) nogil
    vec VEC_LOG(vec) nogil
    void VEC_SPLIT(vec, vec) nogil
    vec VEC_ABS(vec) nogil
    vec VEC_WHERE_POSITIVE(vec, vec, vec) nogil

include "../small/gls.pxi"
include "../small/chain.pxi"


cdef class ProfiledEngine(Objective):
    """The criterion as a function of the free elements of L; its subclasses are the engines."""

    cdef set_up(self, gram, Py_ssize_t n_rows, structure, ranges, bint average):
        """Places for everything; called by the subclass when it is made.

        Parameters
        ----------
        gram : (k, k) array
            [X y]'[X y].
        n_rows : int
        structure : CovarianceStructure
            `q`, and `positions`: rows and columns of the free elements of L.
        ranges : list of (start, stop)
            Columns of G^ in order; its unit directions within each of them, but not between, are those that derivatives
            are taken along.
        average : bool
            Whether the Hessian is the average information; exact otherwise.
        """
        cdef Py_ssize_t k = gram.shape[0], q = structure.q, n_par, n_free
        rows, columns = structure.positions
        free = np.zeros((q, q), dtype=bool)
        for start, stop in ranges:
            free[start:stop, start:stop] = np.tri(stop - start, dtype=bool)
        free_row, free_col = np.nonzero(free)
        n_par, n_free = len(rows), len(free_row)
        self.kept = []
        self.q, self.k, self.n_rows, self.n_par = q, k, n_rows, n_par
        self.reml = True
        self.average = average
        self.staged = True
        self.kept_order = -1
        self.last_order = -1
        self.n_blocks = len(ranges)
        self.block = self.take_index([start for start, _ in ranges] + [q])
        self.chain = Chain(q, n_par, n_free, self.take_index(rows), self.take_index(columns),
                           self.take_index(free_row), self.take_index(free_col), NULL, NULL)
        self.gram = self.take(gram)
        self.H = self.take(np.zeros(k * (k + 1) // 2))
        self.before = self.take(np.diag(gram))
        self.gls = Gls(k, True, &self.nu, self.before, self.H, &self.logdet, self.take(np.zeros(k * k)),
                       self.take(np.zeros(k * k)), self.take(np.zeros(k)), self.take(np.zeros(k * k)), &self.r2,
                       &self.value_, &self.noise_)
        self.basis = self.take(np.zeros(q * q))
        self.factor = self.take(np.zeros(q * q))
        self.G = self.take(np.zeros(q * q))
        self.sum_n = self.take(np.zeros(q * q))
        self.slope = self.take(np.zeros(q * q))
        self.curve = self.take(np.zeros(n_free * n_free))
        self.work = self.take(np.zeros(2 * max(q * q, n_free * n_par)))
        self.last = self.take(np.zeros(n_par))
        self.grad_ = self.take(np.zeros(n_par))
        self.hess_ = self.take(np.zeros(n_par * n_par))

    cdef double* take(self, array) except? NULL:
        """Pointer to an array that lives as long as the engine: the given one, unless it has to be copied."""
        return hold(self.kept, array)

    cdef Py_ssize_t* take_index(self, array) except? NULL:
        return hold_index(self.kept, array)

    @property
    def average(self):
        """Whether the Hessian is the average information; exact otherwise."""
        return self.average_

    @average.setter
    def average(self, bint value):
        self.average_ = value
        self.approximate = value

    # --- evaluation

    cdef int reduce_(self) noexcept nogil:
        return -1

    cdef int differentiate_(self, int done, int order) noexcept nogil:
        return -1

    cdef int evaluate_(self, const double* x, int order) noexcept nogil:
        cdef int done = self.known(x), status
        if done >= order:
            return 0
        self.last_order = -1
        if done < 0:
            self.n_evaluations += 1
            chain_factor(&self.chain, x, self.factor)
            self.square(self.G)
            self.gls.reml = self.reml
            self.nu = <double> (self.n_rows - (self.k - 1 if self.reml else 0))
            status = self.reduce_()
            if status != 0:
                return status
            gls_value(self.k, &self.gls)
            if not isfinite(self.value_):
                return -1
            memcpy(self.last, x, self.n_par * sizeof(double))
            self.last_reml = self.reml
        if order >= 1:
            if done < 1:
                gls_weight(self.k, &self.gls)
            status = self.differentiate_(done, order)
            if status != 0:
                return status
            if done < 1:
                chain_gradient(self.q, &self.chain, self.factor, self.slope, self.grad_)
            if order >= 2:
                chain_hessian(self.q, &self.chain, self.factor, self.slope, self.curve, self.work, self.hess_)
                self.last_average = self.average_
        self.last_order = max(order, done)
        return 0

    cdef int known(self, const double* x) noexcept nogil:
        """Highest derivative that is known at x, -1 where its value is not."""
        cdef Py_ssize_t i
        cdef int done = self.last_order
        cdef bint same = done >= 0
        for i in range(self.n_par):
            same = same and x[i] == self.last[i]
        if not same:
            done = self.kept_order
            if done >= 0:
                chain_factor(&self.chain, x, self.factor)
                done = done if self.same_covariance() else -1
        self.kept_order = -1
        if self.last_reml != self.reml:
            return -1
        if done >= 0 and not same:
            # the same G^ in new coordinates
            memcpy(self.last, x, self.n_par * sizeof(double))
            if done >= 1:
                chain_gradient(self.q, &self.chain, self.factor, self.slope, self.grad_)
            if done >= 2:
                chain_hessian(self.q, &self.chain, self.factor, self.slope, self.curve, self.work, self.hess_)
            self.last_order = done
        return 1 if done == 2 and self.last_average != self.average_ else done

    cdef bint same_covariance(self) noexcept nogil:
        """Whether F F' is G^ of the last point to rounding."""
        cdef Py_ssize_t b, i, j, q = self.q
        cdef double change, size
        cdef double* G = self.work
        self.square(G)
        for b in range(self.n_blocks):
            change = 0.0
            size = 0.0
            for i in range(self.block[b], self.block[b + 1]):
                for j in range(self.block[b], self.block[b + 1]):
                    change = max(change, fabs(G[i * q + j] - self.G[i * q + j]))
                    size = max(size, G[i * q + j])
            if not change <= 1e-14 * size:
                return False
        return True

    cdef void square(self, double* G) noexcept nogil:
        """G (q, q) = F F'."""
        cdef Py_ssize_t i, j, l, q = self.q
        cdef double t
        for i in range(q):
            for j in range(i + 1):
                t = 0.0
                for l in range(q):
                    t += self.factor[i * q + l] * self.factor[j * q + l]
                G[i * q + j] = t
                G[j * q + i] = t

    cdef void profile_curve(self, double share, double* u, double* J) noexcept nogil:
        """Take from `curve` what beta and r^2 add to second derivatives (see gls.pxi).

        Parameters
        ----------
        share : double
            2 for second derivatives, 1 for the average information.
        u, J : (n_free, k), (n_free, k, k)
            J_D b and J_D for the free directions D, overwritten; J is NULL where |H_xx| is no part of it.
        """
        cdef Py_ssize_t f, k = self.k, n = self.chain.n_free
        for f in range(n):
            gls_direction(k, &self.gls, u + f * k)
            if J != NULL:
                gls_within(k, &self.gls, J + f * k * k)
        gls_curve(k, n, &self.gls, share, u, J, self.curve)

    # --- the face that it shares with ClusterCriterion

    def rotate(self, turn=None):
        """Let theta be the free elements of L in G^ = Q'L L'Q from now on.

        Parameters
        ----------
        turn : (q, q) orthogonal array or None
            Q, block diagonal like G^; None for the identity.
        """
        cdef double[:, ::1] view
        cdef Py_ssize_t i, q = self.q
        if self.last_order >= 0:
            self.kept_order = self.last_order
        self.last_order = -1
        self.chain.basis = NULL
        if turn is None:
            return
        view = np.array(np.transpose(turn), dtype=float, order="C").reshape(q, q)
        for i in range(q * q):
            self.basis[i] = view[i // q, i % q]
        self.chain.basis = self.basis

    def _require(self, int order):
        if self.last_order < order:
            raise ValueError(f"evaluate with order={order} first")

    def _solved(self):
        """Inverse of the Cholesky factor of H_xx, which comes with derivatives."""
        cdef Py_ssize_t k = self.k
        return np.tril(copied(self.gls.inverse, k, k))[: k - 1, : k - 1]

    def solution(self):
        """Coefficients, r^2, Cholesky factor of H_xx, and the derivative in G^ at the last point of order 1 or more.

        Returns
        -------
        beta : (p,) array
        r2 : float
        chol : (p, p) lower triangular array
        gradient : (q, q) array
            As a symmetric matrix; zero between factors.
        """
        k = self.k
        chol = np.tril(copied(self.gls.chol, k, k))[: k - 1, : k - 1]
        return -copied(self.gls.b, k, 1)[: k - 1, 0], self.r2, chol, copied(self.slope, self.q, self.q)

    @property
    def remainder(self):
        """r^2 relative to y'y, at the last point: what the fixed and the random effects leave of y."""
        return self.r2 / self.gram[self.k * self.k - 1]

    def precision(self):
        """sum N_aa (q, q) over the levels of each factor, at the last point of order 1 or more."""
        self._require(1)
        return copied(self.sum_n, self.q, self.q)

    def state(self):
        """What the derivatives in G^ are made of, at the last point of order 1 or more.

        Returns
        -------
        theta : (n_par,) array
        factor : (q, q) array
            F = Q'L.
        nu, r2 : float
        b : (k,) array
            (-beta, 1).
        inverse : (p, p) lower triangular array
            Inverse of the Cholesky factor of H_xx.
        """
        self._require(1)
        k, q = self.k, self.q
        theta = copied(self.last, self.n_par, 1)[:, 0]
        return theta, copied(self.factor, q, q), self.nu, self.r2, copied(self.gls.b, k, 1)[:, 0], self._solved()

    def recall(self, theta, int order):
        """Evaluate again where the state has been before, without counting it."""
        self.evaluate(theta, order)
        self.n_evaluations -= 1


cdef double* hold(list kept, array) except? NULL:
    """Pointer to an array that lives as long as the list: the given one, unless it has to be copied."""
    cdef double[::1] view
    array = np.ascontiguousarray(array, dtype=float)
    flat = array.reshape(-1) if array.size else np.zeros(1)
    if not flat.flags.writeable:
        flat = flat.copy()
    kept.append(flat)
    view = flat
    return &view[0]


cdef Py_ssize_t* hold_index(list kept, array) except? NULL:
    """`hold` for indices."""
    cdef const Py_ssize_t[::1] view
    flat = np.ascontiguousarray(array, dtype=np.intp).reshape(-1)
    flat = flat if flat.size else np.zeros(1, dtype=np.intp)
    kept.append(flat)
    view = flat
    return <Py_ssize_t*> &view[0]


cdef object copied(const double* place, Py_ssize_t n, Py_ssize_t m):
    return np.array(<double[:n * m]> place).reshape(n, m)


def blocks_of(rows, columns, q):
    """Ranges of columns that have free elements of L outside the diagonal among them, and single ones."""
    reach = list(range(q))
    for row, column in zip(rows, columns):
        reach[column] = max(reach[column], row)
    out = []
    start = 0
    while start < q:
        out.append((start, reach[start] + 1))
        start = reach[start] + 1
    return out
