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


cdef double NEARLY_SINGULAR = 1e-3
"""L^2 K below which N of the tail is not taken from I - S^-1, which would cancel."""

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
                self.average_information()
            elif not self.exact_information():
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

    cdef void spread_directions(self) noexcept nogil:
        """R = (D e) for the free elements of G^."""
        cdef Py_ssize_t g, a, i, j, f, k = self.k, n = self.chain.n_free
        cdef Level* v
        cdef double t
        cdef double* e = self.small
        memset(self.R, 0, self.n_slots * n * sizeof(double))
        for g in range(self.n_factors):
            v = &self.level[g]
            for a in range(v.m):
                for i in range(v.q):
                    t = 0.0
                    for j in range(k):
                        t += self.V[(v.at[a] + i) * k + j] * self.gls.b[j]
                    e[i] = t
                for f in range(n):
                    i = self.chain.free_row[f] - v.column
                    j = self.chain.free_col[f] - v.column
                    if j >= 0 and i < v.q:
                        self.R[(v.at[a] + i) * n + f] = e[j]
                        self.R[(v.at[a] + j) * n + f] = e[i]

    cdef void average_information(self) noexcept nogil:
        """curve = (nu / r^2) (g_D'N g_F - u_D'K u_F) - (nu / r^4) s_D s_F, g_D = D e."""
        cdef Py_ssize_t k = self.k, n = self.chain.n_free, f, h, j, s
        cdef double t, scale = self.nu / self.r2
        self.spread_directions()
        self.apply(n, self.R, self.NR)
        memset(self.u, 0, n * k * sizeof(double))
        memset(self.curve, 0, n * n * sizeof(double))
        for s in range(self.n_slots):
            for f in range(n):
                t = self.R[s * n + f]
                if t == 0.0:
                    continue
                for j in range(k):
                    self.u[f * k + j] += t * self.V[s * k + j]
                for h in range(n):
                    self.curve[f * n + h] += t * self.NR[s * n + h]
        for f in range(n * n):
            self.curve[f] *= scale
        self.profile_curve(1.0, self.u, NULL)

    cdef bint form_normal(self) noexcept nogil:
        """N, into `normal`, as far as the traces need it; False where there is no memory for it."""
        cdef Elimination* e = &self.e
        cdef Py_ssize_t size = self.n_slots, n_tail = size - e.tail_slot, i, j, first, c, largest = 1
        if self.normal == NULL:
            for i in range(e.n_stages):
                largest = max(largest, e.stage[i].m * e.stage[i].q)
            for i in range(e.n_tails):
                largest = max(largest, e.tail[i].m * e.tail[i].q)
            # work space: two arrays (slots, n_tail); or two (m, q q) and one (q q, q q) for the traces
            i = max(2 * max(e.tail_slot, n_tail) * n_tail, 2 * largest * self.q**2 + self.q**4)
            self.normal = <double*> calloc(size * size, sizeof(double))
            self.spare = <double*> calloc(i, sizeof(double))
            if self.normal == NULL or self.spare == NULL:
                free(self.normal)
                free(self.spare)
                self.normal = NULL
                self.spare = NULL
                return out_of_memory()
        if self.whole:
            normal_of_one(e, self.normal, self.spare, self.spare + max(e.tail_slot, n_tail) * n_tail)
            return True
        first = 0
        while first < size:
            c = min(self.wide, size - first)
            memset(self.R, 0, size * c * sizeof(double))
            for j in range(c):
                self.R[(first + j) * c + j] = 1.0
            self.apply(c, self.R, self.NR)
            for i in range(size):
                for j in range(c):
                    self.normal[i * size + first + j] = self.NR[i * c + j]
            first += c
        return True

    cdef bint exact_information(self) noexcept nogil:
        """curve = -tr(D N F N) [N less E_x K E_x' for REML] + (2 nu / r^2) g_D'(N - E_x K E_x')g_F - (nu / r^4) s_D s_F."""
        cdef Py_ssize_t size = self.n_slots, n = self.chain.n_free, k = self.k, p = k - 1, i, j, l, f, h
        cdef double t, scale = 2.0 * self.nu / self.r2
        cdef double* x = self.R
        cdef double* s = self.u
        if not self.form_normal():
            return False
        for i in range(size):
            x[i] = 0.0
            for j in range(k):
                x[i] += self.V[i * k + j] * self.gls.b[j]
        memset(self.curve, 0, n * n * sizeof(double))
        if not self.reml:
            self.gather_traces(x, -1.0, 0.0)
        # E_x K E_x' = F F'
        for i in range(size):
            for l in range(p):
                t = 0.0
                for j in range(l + 1):
                    t += self.V[i * k + j] * self.gls.inverse[l * k + j]
                self.NR[i * p + l] = t
        if p > 0:
            self.take_from_normal(p, self.NR)
        self.gather_traces(x, -1.0 if self.reml else 0.0, scale)
        for f in range(n):
            s[f] = self.along(x, self.chain.free_row[f], self.chain.free_col[f])
        for f in range(n):
            for h in range(n):
                self.curve[f * n + h] -= 0.5 * scale / self.r2 * s[f] * s[h]
        return True

    cdef void take_from_normal(self, Py_ssize_t p, double* F) noexcept nogil:
        """N -= F F' (n_slots, p), as far as the traces need it: of the chain what stands from the diagonal on."""
        cdef Elimination* e = &self.e
        cdef Py_ssize_t size = self.n_slots, at = e.tail_slot, rows = size - at, s, stop, step
        if rows > 0:
            gemm(-1.0, Matrix(F + at * p, rows, p, p), Matrix(F + at * p, rows, p, p), True, 1.0,
                 Matrix(self.normal + at * (size + 1), rows, rows, size))
        for s in range(e.n_stages):
            at = e.stage[s].slot
            stop = at + e.stage[s].m * e.stage[s].q
            step = whole_levels(e.stage[s].q)
            while at < stop:
                rows = min(step, stop - at)
                gemm(-1.0, Matrix(F + at * p, rows, p, p), Matrix(F + at * p, size - at, p, p), True, 1.0,
                     Matrix(self.normal + at * (size + 1), rows, size - at, size))
                at += rows

    cdef double along(self, const double* x, Py_ssize_t row, Py_ssize_t column) noexcept nogil:
        """x'D x for the unit direction of an element of G^."""
        cdef Py_ssize_t f, a
        cdef Level* v
        cdef double t = 0.0
        for f in range(self.n_factors):
            v = &self.level[f]
            if v.column <= column and row < v.column + v.q:
                for a in range(v.m):
                    t += x[v.at[a] + row - v.column] * x[v.at[a] + column - v.column]
        return t if row == column else 2.0 * t

    cdef void gather_traces(self, const double* x, double share, double weight) noexcept nogil:
        """curve += tr(D N F B), B = share N + weight x x', for the free elements of G^ and N in `normal`."""
        cdef Py_ssize_t f, g
        cdef Pairs pairs
        cdef double* T
        pairs.size = self.n_slots
        pairs.N = self.normal
        pairs.x = x
        pairs.left = self.spare
        for f in range(self.n_factors):
            for g in range(f, self.n_factors):
                pairs.f = &self.level[f]
                pairs.g = &self.level[g]
                pairs.right = pairs.left + pairs.g.m * pairs.f.q * pairs.g.q
                T = pairs.right + pairs.g.m * pairs.f.q * pairs.g.q
                add_traces(&pairs, share, weight, T)
                self.add_curve(&pairs, T, f != g)

    cdef void add_curve(self, const Pairs* pairs, const double* T, bint both) noexcept nogil:
        """Elements of `curve` from T = sum_ab vec(N_ab) vec(B_ab)' of two factors; `both`: of its two triangles."""
        cdef Py_ssize_t n = self.chain.n_free, d, h, i, j, r, c, q = pairs.g.q, wide = pairs.f.q * q
        cdef double t
        for d in range(n):
            i = self.chain.free_row[d] - pairs.f.column
            j = self.chain.free_col[d] - pairs.f.column
            if j < 0 or i >= pairs.f.q:
                continue
            for h in range(n):
                r = self.chain.free_row[h] - pairs.g.column
                c = self.chain.free_col[h] - pairs.g.column
                if c < 0 or r >= q:
                    continue
                t = T[(j * q + r) * wide + i * q + c]
                if i != j:
                    t += T[(i * q + r) * wide + j * q + c]
                if r != c:
                    t += T[(j * q + c) * wide + i * q + r]
                    if i != j:
                        t += T[(i * q + c) * wide + j * q + r]
                self.curve[d * n + h] += t
                if both:
                    self.curve[h * n + d] += t

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


cdef void split(Tail* g, double size, double* work) noexcept nogil:
    """lift = L^-T on the directions of L that are not nearly singular, rest = projector on the others, basis = one of them."""
    cdef Py_ssize_t q = g.q, i, j, r
    cdef double* A = work
    cdef double* Q = A + q * q
    cdef double* w = Q + q * q
    cdef double* y = w + q
    cdef double largest = 0.0, t
    g.exact = False
    g.n_rest = 0
    if q == 1:
        g.exact = not g.factor[0] * g.factor[0] * size > NEARLY_SINGULAR
        g.lift[0] = 0.0 if g.exact else 1.0 / g.factor[0]
        g.rest[0] = 1.0 if g.exact else 0.0
        g.basis[0] = 1.0
        g.n_rest = 1 if g.exact else 0
        return
    memcpy(A, g.G, q * q * sizeof(double))
    jacobi(q, A, Q, w)
    for i in range(q * q):
        g.lift[i] = 0.0
        g.rest[i] = 0.0
    for i in range(q):
        largest = max(largest, w[i])
    for r in range(q):
        t = 0.0
        for j in range(q):
            y[j] = 0.0
            for i in range(q):
                y[j] += Q[i * q + r] * g.factor[i * q + j]
            t += y[j] * y[j]
        if t * size > NEARLY_SINGULAR and t > 1e-10 * largest:
            for i in range(q):
                for j in range(q):
                    g.lift[i * q + j] += Q[i * q + r] * y[j] / t
        else:
            g.exact = True
            for i in range(q):
                g.basis[i * q + g.n_rest] = Q[i * q + r]
                for j in range(q):
                    g.rest[i * q + j] += Q[i * q + r] * Q[j * q + r]
            g.n_rest += 1
