# cython: language_level=3
"""The criterion of several grouping factors as a function of theta.

The same profiled criterion as for one factor (see lanes/profile.pxi), with sums over groups replaced by sums over the
levels of all factors: with N = Z'V^-1 Z, E = Z'V^-1 [X y], e = E b, b = (-beta, 1) and K = H_xx^-1

    d = log|V| + nu (1 + log(2 pi r^2 / nu)) [+ log|H_xx|]
    d_D d     = tr D (N - (nu / r^2) e e' [- E_x K E_x'])
    d_D d_F d = -tr(D N F N) + (2 nu / r^2) (e'D N F e - u_D'K u_F) - (nu / r^4) s_D s_F
                [+ 2 tr(K E_x'D N F E_x) - tr(K J_D K J_F)],     u_D = E_x'D e, s_D = e'D e, J_D = E_x'D E_x

where a direction D of G^ acts on every level of its factor.  Leaving out the two traces of matrices and halving what
remains of the second derivative but its rank one term gives the average information (Gilmour, Thompson and Cullis
1995, Biometrics 51, 1440-1450): as good for Newton's steps, for the price of one solution per parameter.
"""
from libc.math cimport NAN, fabs, isfinite, log, sqrt
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from cpython.exc cimport PyErr_Occurred
from scipy.linalg.cython_blas cimport dgemm, dsymm, dsyrk, dtrmm, dtrsm
from scipy.linalg.cython_lapack cimport dlauum, dpotrf, dpotri, dtrtri

import numpy as np

from fastlmm_core.crossed.structures cimport (MAX_FACTORS, SMALL, WIDE, Elimination, Level, Matrix, Pairs, Panel, Reach,
                                              Sparse, Stage, Tail, Target)
from fastlmm_core.kernels._matrices cimport jacobi
from fastlmm_core.kernels._newton cimport failed, reraise
from fastlmm_core.kernels._profiled cimport ProfiledEngine, copied
from fastlmm_core.small.conditional cimport conditional_covariance, multiply

from fastlmm_core.kernels._levels import sort_rows
from fastlmm_core.kernels._profiled import blocks_of

cdef extern from "Python.h":
    void* set_no_memory "PyErr_NoMemory"() noexcept     # NULL

include "elimination.pxi"
include "dense.pxi"
include "tiles.pxi"
include "substitution.pxi"
include "posterior.pxi"
include "together.pxi"
include "vanishing.pxi"
include "sparse.pxi"
include "curvature.pxi"
include "layout.pxi"


cdef enum:
    FEW = 8                 # columns up to which plain loops do better than BLAS


cdef class CrossedEngine(ProfiledEngine):
    """The criterion as a function of the free elements of L; `crossed.engine` adds what inference needs.

    Parameters
    ----------
    layout : Layout
        Levels, neighbours and products, in the order of their elimination.
    cross : (n_slots, k) array
        Z'[X y], in the layout's order.
    gram : (k, k) array
        [X y]'[X y].
    n_rows : int
    structure : CovarianceStructure
    average : bool
        Whether the Hessian is the average information; exact otherwise.
    """

    cdef readonly Py_ssize_t n_slots
    cdef readonly object layout
    cdef Elimination e
    cdef object V_array
    cdef double* given              # Z'[X y]
    cdef double* V                  # E (n_slots, k)
    cdef double* U
    cdef double* X
    cdef double* R                  # (n_slots, n_free): D e, then N D e
    cdef double* NR
    cdef double* full_H             # (k, k), lower triangle
    cdef double* small
    cdef double* u                  # E_x'D e, or s_D, for each free direction (n_free, k)
    cdef Py_ssize_t wide            # columns that `apply` takes at a time
    cdef Level level[2 * MAX_FACTORS]
    cdef Py_ssize_t n_factors
    cdef bint whole                 # whether there is one factor in the chain, and the tail is one core
    cdef double* normal             # N (n_slots, n_slots), and work space; NULL until it is wanted
    cdef double* spare

    def __cinit__(self, layout, cross, gram, Py_ssize_t n_rows, structure, bint average=True):
        cdef Py_ssize_t wide, n_tail, q, k
        self.set_up(gram, n_rows, structure, blocks_of(*structure.positions, structure.q), average)
        self.layout = layout
        q, k = self.q, self.k
        wide = max(k, self.chain.n_free) if average else max(k, self.chain.n_free, 32)
        self.wide = wide
        read_layout(self, &self.e, layout, wide)
        self.n_slots = self.e.n_slots
        self.n_factors = self.e.n_stages + self.e.n_tails
        self.whole = self.e.n_stages == 1 and self.e.n_comps == 1 and self.e.sparse.n == 0
        levels_of(self, &self.e, layout, self.level)
        n_tail = self.n_slots - self.e.tail_slot
        self.V_array = np.zeros((self.n_slots, k))
        self.given = self.take(cross)
        self.V = self.take(self.V_array)
        self.U = self.take(np.zeros(self.n_slots * wide))
        self.X = self.take(np.zeros(2 * n_tail * wide))
        self.R = self.take(np.zeros(self.n_slots * wide))
        self.NR = self.take(np.zeros(self.n_slots * wide))
        self.small = self.take(np.zeros(4 * q * q + 2 * k + 8))
        self.full_H = self.take(np.zeros(k * k))
        self.u = self.take(np.zeros(self.chain.n_free * k))

    def __dealloc__(self):
        free(self.e.work)
        free(self.e.second)
        free(self.normal)
        free(self.spare)

    @property
    def jobs(self):
        """Threads that share the work on a large core; results are the same for any number."""
        return self.e.jobs

    @jobs.setter
    def jobs(self, Py_ssize_t value):
        self.e.jobs = value

    # --- evaluation

    cdef void set_factors(self) noexcept nogil:
        """L of each factor, and which of its directions are nearly singular."""
        cdef Py_ssize_t i, j, s
        cdef Elimination* e = &self.e
        cdef Tail* g
        cdef double mean
        for s in range(e.n_stages):
            self.set_factor(e.stage[s].q, e.stage[s].column, e.stage[s].factor, e.stage[s].G)
        for s in range(e.n_tails):
            g = &e.tail[s]
            self.set_factor(g.q, g.column, g.factor, g.G)
            mean = 0.0
            for i in range(g.m):
                for j in range(g.q):
                    mean += g.own0[(i * g.q + j) * g.q + j]
            split(g, mean / (g.m * g.q), self.small)

    cdef void set_factor(self, Py_ssize_t q, Py_ssize_t column, double* L, double* G) noexcept nogil:
        cdef Py_ssize_t i, j, r
        cdef double t
        for i in range(q):
            for j in range(q):
                L[i * q + j] = self.factor[(column + i) * self.q + column + j]
        for i in range(q):
            for j in range(q):
                t = 0.0
                for r in range(q):
                    t += L[i * q + r] * L[j * q + r]
                G[i * q + j] = t

    cdef int reduce_(self) noexcept nogil:
        cdef Py_ssize_t k = self.k, i, j
        cdef Elimination* e = &self.e
        cdef double* H = self.full_H
        self.set_factors()
        restore(e)
        self.logdet = eliminate(e)
        if not isfinite(self.logdet):
            return failed()
        memcpy(H, self.gram, k * k * sizeof(double))
        memcpy(self.V, self.given, self.n_slots * k * sizeof(double))
        forward(e, k, self.V, H)
        if not factor_tail(e, &self.logdet):
            return failed()
        solve_tail(e, k, self.V, self.U, self.X, H)
        for i in range(k):
            for j in range(i + 1):
                self.H[i * (i + 1) // 2 + j] = H[i * k + j]
        return 0

    cdef int differentiate_(self, int done, int order) noexcept nogil:
        if done < 1 and not self.find_slope():
            return failed()
        if order >= 2:
            if self.average_:
                average_information(self)
            elif not exact_information(self):
                return failed()
        return 0

    cdef bint need_work(self) noexcept nogil:
        cdef Py_ssize_t t, c, n, size = 1
        if self.e.work == NULL:
            for t in range(self.e.n_tails):
                if self.e.tail[t].exact:
                    for c in range(self.e.n_comps):
                        n = self.e.core_size[c]
                        size = max(size, n * max(n if self.whole else 0, 2 * columns_at_a_time(&self.e, c)))
                    self.e.work = <double*> calloc(size, sizeof(double))
                    return self.e.work != NULL or out_of_memory()
        return True

    cdef bint find_slope(self) noexcept nogil:
        """slope = sum N_aa - E_a M E_a' of each factor, 2 M = w w'."""
        cdef Py_ssize_t q = self.q, k = self.k, first = 0 if self.reml else k - 1, f, a, i, j, l
        cdef Level* v
        cdef double t
        cdef const double* F
        cdef double* slope
        if not self.need_work():
            return False
        backward(&self.e, k, self.V, self.U)
        memset(self.sum_n, 0, q * q * sizeof(double))
        if not covariances(&self.e, self.sum_n, q, NULL, NULL):
            return False
        memcpy(self.slope, self.sum_n, q * q * sizeof(double))
        self.weigh_scores(first)
        for f in range(self.n_factors):
            v = &self.level[f]
            for a in range(v.m):
                F = self.R + v.at[a] * k
                slope = self.slope + v.column * (q + 1)
                for i in range(v.q):
                    for j in range(i + 1):
                        t = 0.0
                        for l in range(first, k):
                            t += F[i * k + l] * F[j * k + l]
                        slope[i * q + j] -= 0.5 * t
                        if j < i:
                            slope[j * q + i] -= 0.5 * t
        return True

    cdef void weigh_scores(self, Py_ssize_t first) noexcept nogil:
        """R = E w (n_slots, k), its columns from the first on."""
        cdef Py_ssize_t s, j, l, k = self.k
        cdef int rows = <int> k, columns = <int> self.n_slots
        cdef double t, one = 1.0
        cdef const double* w = self.gls.weight
        cdef const double* E
        cdef char left = b'L', lower = b'L', plain = b'N', unit = b'N'
        if k > FEW and first == 0:
            memcpy(self.R, self.V, self.n_slots * k * sizeof(double))
            dtrmm(&left, &lower, &plain, &unit, &rows, &columns, &one, self.gls.weight, &rows, self.R, &rows)
            return
        for s in range(self.n_slots):
            E = self.V + s * k
            for l in range(first, k):
                t = 0.0
                for j in range(l + 1):
                    t += E[j] * w[j * k + l]
                self.R[s * k + l] = t

    cdef void apply(self, Py_ssize_t c, double* R, double* out) noexcept nogil:
        """out = N R for (n_slots, c) arrays, c at most the larger of k and the free elements of G^."""
        cdef Elimination* e = &self.e
        products(e, c, R, out)
        forward(e, c, out, NULL)
        solve_tail(e, c, out, self.U, self.X, NULL)
        backward(e, c, out, self.U)

    def respond(self, const double[::1] cross, double square):
        """Take another response from now on; the arrays that the criterion was made of are overwritten.

        Parameters
        ----------
        cross : (n_slots,) array
            Z'y in the layout's order, y orthogonal to X.
        square : float
            y'y.

        Raises
        ------
        ValueError
            For a cross-product of another length.
        """
        cdef Py_ssize_t i, k = self.k, p = k - 1
        if cross.shape[0] != self.n_slots:
            raise ValueError(f"cross has {cross.shape[0]} elements, there are {self.n_slots} random effects")
        for i in range(self.n_slots):
            self.given[i * k + p] = cross[i]
        for i in range(p):
            self.gram[p * k + i] = 0.0
            self.gram[i * k + p] = 0.0
        self.gram[p * k + p] = square
        # what is known belongs to another response
        self.last_order = -1
        self.kept_order = -1
        self.chain.basis = NULL
        self.before[p] = square

    def gram_times(self, columns):
        """Z'Z columns for (n_slots, c) columns."""
        cdef double[:, ::1] part = np.array(columns, dtype=float, order="C")
        out = np.empty((self.n_slots, part.shape[1]))
        cdef double[:, ::1] result = out
        if part.shape[1]:
            with nogil:
                products(&self.e, part.shape[1], &part[0, 0], &result[0, 0])
        return out

    def scores(self):
        """E = Z'V^-1 [X y] (n_slots, k) in the layout's order, at the last point of order 1 or more."""
        self._require(1)
        return self.V_array.copy()

    def multiply(self, columns):
        """N columns for (n_slots, c) columns, at the last point of order 1 or more."""
        self._require(1)
        cdef double[:, ::1] part
        cdef double[:, ::1] result
        cdef Py_ssize_t c
        wide = self.wide
        out = np.empty((self.n_slots, columns.shape[1]))
        for start in range(0, columns.shape[1], wide):
            block = np.array(columns[:, start : start + wide], dtype=float, order="C")
            product = np.empty_like(block)
            part, result, c = block, product, block.shape[1]
            with nogil:
                self.apply(c, &part[0, 0], &result[0, 0])
            out[:, start : start + wide] = product
        return out

    def means(self, columns):
        """Posterior means M columns for Z'Wv in (n_slots, c) columns, at the last point."""
        self._require(0)
        cdef Elimination* e = &self.e
        cdef double[:, ::1] part
        cdef Py_ssize_t c
        out = np.empty((self.n_slots, columns.shape[1]))
        for start in range(0, columns.shape[1], self.wide):
            block = np.array(columns[:, start : start + self.wide], dtype=float, order="C")
            part, c = block, block.shape[1]
            with nogil:
                forward(e, c, &part[0, 0], NULL)
                solve_tail(e, c, &part[0, 0], self.U, self.X, NULL)
                backward(e, c, &part[0, 0], self.U)
            out[:, start : start + self.wide] = copied(self.U, self.n_slots, c)
        return out

    def conditional(self, bint precision=False):
        """Posterior covariance of each level relative to sigma^2, or N_aa, at the last point of order 1 or more.

        Returns
        -------
        (n_slots, q) array
            The (q_f, q_f) block of each level, left-justified, in the layout's order.
        """
        self._require(1)
        cdef Py_ssize_t q = self.q
        out = np.zeros((self.n_slots, q))
        other = np.zeros((self.n_slots, q))
        sums = np.zeros((q, q))
        cdef double[:, ::1] N = other, post = out, total = sums
        cdef bint done
        with nogil:
            done = covariances(&self.e, &total[0, 0], q, &N[0, 0], &post[0, 0])
        if not done:
            reraise()
        return other if precision else out

    def precision_at(self, factor):
        """sum N_aa (q, q) at another G^ = F F' for a (q, q) F; leaves the state there."""
        cdef double[:, ::1] F = np.ascontiguousarray(factor)
        cdef Elimination* e = &self.e
        cdef double logdet = 0.0
        cdef bint valid
        cdef Py_ssize_t q = self.q
        self.last_order = -1
        self.kept_order = -1
        memcpy(self.factor, &F[0, 0], q * q * sizeof(double))
        with nogil:
            self.set_factors()
            restore(e)
            valid = isfinite(eliminate(e)) and factor_tail(e, &logdet) and self.need_work()
            if valid:
                memset(self.sum_n, 0, q * q * sizeof(double))
                valid = covariances(e, self.sum_n, q, NULL, NULL)
        if PyErr_Occurred() != NULL:
            reraise()
        if not valid:
            raise FloatingPointError("no second derivatives: the tail of the elimination could not be factored")
        return copied(self.sum_n, q, q)


cdef bint out_of_memory() noexcept nogil:
    """Set MemoryError; False."""
    with gil:
        return set_no_memory() != NULL


include "information.pxi"
