# cython: language_level=3
"""Models for repeated measures over visits: everything that is summed over subjects, by pattern of visits.

    y_i = X_i beta + e_i,   e_i ~ N(0, sigma^2 S[v_k, v_k])     for the subjects i of pattern k, seen at the visits v_k,

with S (m, m) the covariance over all visits of the table that the pattern belongs to (one table for each set of
parameters).  With V_k = S[v_k, v_k] = L_k L_k', W_k its inverse, K = (X'V^-1X)^-1 and its root C^-T (C C' = X'V^-1X),
residuals r = y - X beta and

    A_i = V_k^-1 X_i C^-T,      e_i = V_k^-1 r_i

the derivatives of -2 log(REML) with the scale profiled (Lindstrom and Bates 1988, J. Am. Stat. Assoc. 83, 1014-1022,
with V in the place of its parameters) are those of

    sum_k [c_n N_k W_k + c_e E_k + c_x B_k],     E_k = sum_i e_i e_i',   B_k = sum_i A_i A_i'

along directions of S, and the second ones along D and D' hold sum_k tr(D F_k D' W_k) with F_k another such combination,
besides what beta and r^2 add, which is made of the sums

    U_ab = sum_i [A e]_ia [A e]_ib'
    (visits a and b, a (c, c) matrix each).

Rows of a pattern need not be those of its subjects: any rows with the same sum of vec([X_i y_i]) vec([X_i y_i])' do,
and what these leave of y alone is G_k (n_k, n_k), with G G' added to the sum of y y' (see `patterns`).

Shapes: c columns in [X y], r = c - 1 of them in X.  The rows of pattern k lie at `first[k]` as (n_k, N'_k, c): visit,
row of the pattern, column.
"""
from libc.string cimport memcpy, memset

from cpython.exc cimport PyErr_SetObject

import numpy as np

from fastlmm_core.kernels._newton cimport Objective, RAISED
from fastlmm_core.kernels._unstructured cimport ELSEWHERE, UnstructuredSums
from fastlmm_core.residual.gathering cimport TOGETHER, Gathered, begin, gather, settle
from fastlmm_core.residual.loops cimport (
    add_beside, ahead, back, bend, factored, inverted, moments, rooted, spread, whitened_beside,
)
from scipy.linalg.cython_blas cimport dgemm, dsyrk


cdef class ScriptedObjective(Objective):
    """An objective whose values come from the method `at` of a subclass in Python.

    Attributes
    ----------
    reml : bool
    alone : float
        Added to y'V^-1y: what no column reaches of a response that is none.
    n_evaluations : int
        At points other than the last.
    direct : UnstructuredSums or None
        What evaluates without the interpreter where it can; `at` is asked for the other points.
    nearly : float
        Share of a standard deviation that the positions before leave, below which a point is left to others.
    directly : bool
        Whether `direct` made the last evaluation.
    """

    cdef object gradient_array, hessian_array
    cdef public bint reml
    cdef public double alone, nearly
    cdef public Py_ssize_t n_evaluations
    cdef public UnstructuredSums direct
    cdef readonly bint directly

    def prepare(self, Py_ssize_t n_par):
        """Places for a gradient and a Hessian of n_par parameters."""
        cdef double[::1] gradient = np.zeros(max(n_par, 1))
        cdef double[::1] hessian = np.zeros(max(n_par * n_par, 1))
        self.n_par = n_par
        self.staged = True
        self.gradient_array, self.hessian_array = np.asarray(gradient), np.asarray(hessian)
        self.grad_, self.hess_ = &gradient[0], &hessian[0]

    def at(self, x, order):
        """Value, its rounding error, gradient and Hessian at x; the value is infinite outside the domain."""
        raise NotImplementedError

    cdef int evaluate_(self, const double* x, int order) noexcept nogil:
        cdef int status = ELSEWHERE
        if self.direct is not None and self.alone == 0.0:
            status = self.direct.at_(x, order, self.reml, self.nearly)
        self.directly = status == 0
        if status == ELSEWHERE:
            with gil:
                return self.ask(x, order)
        if status != 0:
            return status
        self.n_evaluations += self.direct.fresh
        self.value_, self.noise_ = self.direct.value, self.direct.noise
        if order >= 1:
            memcpy(self.grad_, &self.direct.gradient_[0], self.n_par * sizeof(double))
        if order >= 2:
            memcpy(self.hess_, &self.direct.hessian_[0], self.n_par * self.n_par * sizeof(double))
        return 0

    cdef int ask(self, const double* x, int order) noexcept:
        cdef Py_ssize_t i
        raised = None
        try:
            point = np.empty(self.n_par)
            for i in range(self.n_par):
                point[i] = x[i]
            value, noise, gradient, hessian = self.at(point, order)
            if not np.isfinite(value):
                return -1
            self.value_, self.noise_ = value, noise
            if order >= 1:
                self.gradient_array[:self.n_par] = gradient
            if order >= 2:
                self.hessian_array[:self.n_par * self.n_par] = hessian.reshape(-1)
        except BaseException as error:
            raised = error
        if raised is None:
            return 0
        PyErr_SetObject(type(raised), raised)
        return RAISED


cdef class PatternSums:
    """Sums over the patterns of visits of a conditioned problem.

    Parameters
    ----------
    patterns : records.VisitPatterns
        Its rows are not changed.
    """

    cdef readonly Py_ssize_t n_patterns, n_tables, c
    cdef Py_ssize_t largest, widest
    cdef const double[::1] given
    cdef const Py_ssize_t[::1] size, members, visits, table, table_size
    cdef const double[::1] counts
    cdef Py_ssize_t[::1] first, square, place
    cdef double[::1] rows, lower, inverse, moment_e, moment_x, work, buffer, outside, beside
    cdef bint framed

    def __init__(self, patterns):
        cdef Py_ssize_t k, n, at = 0, squares = 0, places = 0, most = 1, c = patterns.columns
        cdef const Py_ssize_t[::1] size = patterns.size, members = patterns.members
        self.given, self.counts, self.size, self.members = patterns.rows, patterns.counts, size, members
        self.visits, self.table, self.table_size, self.c = patterns.visits, patterns.table, patterns.table_size, c
        n = size.shape[0]
        self.n_patterns, self.n_tables = n, self.table_size.shape[0]
        self.first, self.square, self.place = (np.zeros(n + 1, dtype=np.intp) for _ in range(3))
        self.largest = 1
        for k in range(n):
            self.first[k], self.square[k], self.place[k] = at, squares, places
            at += size[k] * members[k] * c
            squares += size[k] * size[k]
            places += size[k]
            self.largest = max(self.largest, size[k])
            most = max(most, size[k] * members[k] * c)
        self.first[n], self.square[n], self.place[n] = at, squares, places
        if at != self.given.shape[0] or places != self.visits.shape[0]:
            raise ValueError("the rows and visits are not those of the patterns")
        self.widest = max([1] + np.asarray(self.table_size).tolist())
        # one more: a pattern whose rows X does not reach has none, and may be the last
        self.rows = np.empty(at + 1)
        self.lower, self.inverse, self.moment_e, self.moment_x = (np.empty(max(squares, 1)) for _ in range(4))
        self.outside, self.beside = (np.zeros(max(squares, 1)) for _ in range(2))
        np.asarray(self.outside)[:squares] = patterns.outside
        self.work = np.empty(max(self.largest * self.widest, most, c * c))
        self.buffer = np.empty(TOGETHER * self.widest * c)
        self.framed = False

    def reduce(self, list tables, bint roots=False):
        """log|V| and H = [X y]'V^-1[X y] for the covariances S of the tables.

        Parameters
        ----------
        tables : list of (m, m) arrays
        roots : bool
            Whether they are A (m, l) with S = A A' instead.

        Returns
        -------
        logdet : float
        H : (c, c) array or None
            None where a covariance is not positive definite.
        """
        cdef double logdet = 0.0, part
        cdef Py_ssize_t k, n, i, j, c = self.c, wide, at
        cdef const double[:, ::1] S
        H_array = np.zeros((c, c))
        cdef double[:, ::1] H = H_array
        cdef int ci = <int> c, long_
        cdef double one = 1.0
        cdef list views = [np.ascontiguousarray(table, dtype=float) for table in tables]
        for k in range(self.n_patterns):
            n, wide = self.size[k], self.members[k] * c
            S = views[self.table[k]]
            at = self.place[k]
            with nogil:
                if roots:
                    part = rooted(n, &S[0, 0], S.shape[1], &self.visits[at], &self.lower[self.square[k]], &self.work[0])
                else:
                    part = factored(n, &S[0, 0], S.shape[0], &self.visits[at], &self.lower[self.square[k]])
                if part == part:
                    logdet += self.counts[k] * part
                    if wide:
                        memcpy(&self.rows[self.first[k]], &self.given[self.first[k]], n * wide * sizeof(double))
                    ahead(n, wide, &self.lower[self.square[k]], &self.rows[self.first[k]])
                    long_ = <int> (n * self.members[k])
                    dsyrk("U", "N", &ci, &long_, &one, &self.rows[self.first[k]], &ci, &one, &H[0, 0], &ci)
                    H[c - 1, c - 1] += whitened_beside(n, &self.lower[self.square[k]], &self.outside[self.square[k]],
                                                       &self.beside[self.square[k]])
            if part != part:
                return np.inf, None
        for i in range(c):
            for j in range(i):
                H[j, i] = H[i, j]
        return logdet, H_array

    def whitened(self):
        """Rows with the sums of products H after `reduce` (., c): L_k^-1 [X y] of all patterns, and one for G_k."""
        rows = np.asarray(self.rows)[:self.first[self.n_patterns]].reshape(-1, self.c)
        last = np.zeros((1, self.c))
        last[0, self.c - 1] = np.linalg.norm(self.beside)
        return np.concatenate((rows, last))

    def take(self, PatternSums reduced, list roots):
        """Hold what `reduced` has, in the coordinates of the roots A of its tables, S = A A' (m, m).

        With A[v_k] = L_k Q_k, Q_k with orthonormal rows, V_k^-1 becomes A[v_k]'V_k^-1 A[v_k] = Q_k'Q_k and the rows
        Q_k'L_k^-1 [X y], over all m positions: a direction D of S is A T A' with T in the place of D, and nothing in
        T, Q_k or the rows grows where S is nearly singular.

        Parameters
        ----------
        reduced : PatternSums
            After `reduce` with these roots; this object has its patterns, of all positions of their tables each.
        roots : list of (m, m) arrays
        """
        cdef Py_ssize_t k, n, m, a, b, i, wide, at
        cdef double t
        cdef const double[:, ::1] A
        cdef double* Q = &self.work[0]
        cdef list views = [np.ascontiguousarray(root, dtype=float) for root in roots]
        self.framed = True
        for k in range(self.n_patterns):
            n, m, wide = reduced.size[k], self.size[k], self.members[k] * self.c
            A = views[self.table[k]]
            at = reduced.place[k]
            with nogil:
                rooted(n, &A[0, 0], m, &reduced.visits[at], &self.lower[self.square[k]], Q)
                memset(&self.rows[self.first[k]], 0, m * wide * sizeof(double))
                memset(&self.beside[self.square[k]], 0, m * m * sizeof(double))
                for a in range(m):
                    for b in range(n):
                        t = Q[b * m + a]
                        for i in range(wide):
                            self.rows[self.first[k] + a * wide + i] += t * reduced.rows[reduced.first[k] + b * wide + i]
                        for i in range(n):
                            self.beside[self.square[k] + a * m + i] += t * reduced.beside[reduced.square[k] + b * n + i]
                    for b in range(m):
                        t = 0.0
                        for i in range(n):
                            t += Q[i * m + a] * Q[i * m + b]
                        self.inverse[self.square[k] + a * m + b] = t

    def weigh(self, const double[:, ::1] turn):
        """Bring the rows to [A e]: [X y] -> V^-1 [X y] turn, with their moments E_k and B_k and the inverses W_k.

        Parameters
        ----------
        turn : (c, c) array
            [[C^-T, -beta], [0, 1]].
        """
        cdef Py_ssize_t k, n, c = self.c, wide, N
        cdef int ci = <int> c, long_
        cdef double one = 1.0, zero = 0.0
        cdef double* A
        cdef double* L
        with nogil:
            for k in range(self.n_patterns):
                n, N = self.size[k], self.members[k]
                wide = N * c
                A = &self.rows[self.first[k]]
                L = &self.lower[self.square[k]]
                long_ = <int> (n * N)
                memcpy(&self.work[0], A, n * wide * sizeof(double))
                dgemm("N", "N", &ci, &long_, &ci, &one, <double*> &turn[0, 0], &ci, &self.work[0], &ci, &zero, A, &ci)
                if not self.framed:
                    back(n, wide, L, A)
                    back(n, n, L, &self.beside[self.square[k]])
                    inverted(n, L, &self.inverse[self.square[k]], &self.work[0])
                moments(n, N, c, A, &self.moment_x[self.square[k]], &self.moment_e[self.square[k]])
                add_beside(n, &self.beside[self.square[k]], &self.moment_e[self.square[k]])

    def slopes(self, double c_n, double c_e, double c_x):
        """c_n N W + c_e E + c_x B, summed by table.

        Returns
        -------
        list of (m, m) arrays
        """
        out = [np.zeros((m, m)) for m in np.asarray(self.table_size).tolist()]
        cdef double[:, ::1] view
        cdef Py_ssize_t k, a, b, n, s
        cdef const Py_ssize_t* v
        for k in range(self.n_patterns):
            view = out[self.table[k]]
            with nogil:
                n, s, v = self.size[k], self.square[k], &self.visits[self.place[k]]
                for a in range(n):
                    for b in range(n):
                        view[v[a], v[b]] += (c_n * self.counts[k] * self.inverse[s + a * n + b]
                                             + c_e * self.moment_e[s + a * n + b] + c_x * self.moment_x[s + a * n + b])
        return out

    def curves(self, double c_n, double c_e, double c_x):
        """Sum over patterns of tr(D F D' W), symmetrised, for symmetric unit directions D and D' of the tables.

        Parameters
        ----------
        c_n, c_e, c_x : float
            F = c_n N W + c_e E + c_x B.

        Returns
        -------
        list of (m(m+1)/2, m(m+1)/2) arrays
            Lower triangle of S by rows.
        """
        out = []
        for m in np.asarray(self.table_size).tolist():
            out.append(np.zeros((m * (m + 1) // 2, m * (m + 1) // 2)))
        cdef double[:, ::1] view
        cdef Py_ssize_t k, i, n, s
        cdef double* F = &self.work[0]
        for k in range(self.n_patterns):
            view = out[self.table[k]]
            with nogil:
                n, s = self.size[k], self.square[k]
                for i in range(n * n):
                    F[i] = (c_n * self.counts[k] * self.inverse[s + i] + c_e * self.moment_e[s + i]
                            + c_x * self.moment_x[s + i])
                bend(n, F, &self.inverse[s], &self.visits[self.place[k]], &view[0, 0], view.shape[0])
        return [np.tril(curve) + np.tril(curve, -1).T for curve in out]

    def products(self):
        """U by table: list of (m, c, m, c) arrays."""
        cdef Py_ssize_t t, k, m, n, a, b, c = self.c
        cdef double* E = &self.work[0]
        cdef const Py_ssize_t* v
        cdef Gathered g
        cdef double[:, ::1] view
        out = []
        g.c, g.buffer = c, &self.buffer[0]
        for t in range(self.n_tables):
            m = self.table_size[t]
            found = np.zeros((m * c, m * c))
            view = found
            with nogil:
                g.U = &view[0, 0]
                begin(&g, m)
                for k in range(self.n_patterns):
                    if self.table[k] == t:
                        gather(&g, self.size[k], self.members[k], &self.visits[self.place[k]],
                               &self.rows[self.first[k]])
                settle(&g)
                for k in range(self.n_patterns):
                    if self.table[k] == t:
                        n, v = self.size[k], &self.visits[self.place[k]]
                        memset(E, 0, n * n * sizeof(double))
                        add_beside(n, &self.beside[self.square[k]], E)
                        for a in range(n):
                            for b in range(a, n):
                                view[v[a] * c + c - 1, v[b] * c + c - 1] += E[a * n + b]
            found += np.triu(found, 1).T
            out.append(found.reshape(m, c, m, c))
        return out

    def crossed(self, list jacobians):
        """[A e]'D[A e] for a few directions D of the tables, pattern by pattern: `products` serves many.

        Parameters
        ----------
        jacobians : list of (k, m, m) arrays
            Symmetric directions, by table.

        Returns
        -------
        list of (k, c, c) arrays
        """
        cdef Py_ssize_t k, d, a, b, n, N, c = self.c, m
        cdef double[::1] P = np.empty(self.largest * self.largest), E = np.empty(self.largest * self.largest)
        cdef const double[:, :, ::1] J
        cdef double[:, :, ::1] S
        cdef double one = 1.0
        cdef int ci = <int> c, long_
        cdef const Py_ssize_t* v
        cdef list views = [np.ascontiguousarray(J_array, dtype=float) for J_array in jacobians]
        out = [np.zeros((len(J_array), c, c)) for J_array in views]
        for k in range(self.n_patterns):
            J, S = views[self.table[k]], out[self.table[k]]
            with nogil:
                n, N, v = self.size[k], self.members[k], &self.visits[self.place[k]]
                long_ = <int> (n * N)
                memset(&E[0], 0, n * n * sizeof(double))
                add_beside(n, &self.beside[self.square[k]], &E[0])
                for d in range(J.shape[0]):
                    for a in range(n):
                        for b in range(n):
                            P[a * n + b] = J[d, v[a], v[b]]
                            S[d, c - 1, c - 1] += P[a * n + b] * E[a * n + b]
                    spread(n, N * c, &P[0], &self.rows[self.first[k]], &self.work[0])
                    dgemm("N", "T", &ci, &ci, &long_, &one, &self.work[0], &ci, &self.rows[self.first[k]], &ci, &one,
                          &S[d, 0, 0], &ci)
        return out

    def sandwich(self, list weights):
        """Sum of w_abcd W_bc A_a A_d' over visits and subjects: X'V^-1 dV V^-1 dV' V^-1 X for pairs of directions.

        Parameters
        ----------
        weights : list of (m, m, m, m) arrays
            By table.

        Returns
        -------
        (r, r) array
        """
        cdef Py_ssize_t k, n, N, a, b, d, e, c = self.c, s
        cdef const double[:, :, :, ::1] w
        cdef double[::1] P = np.empty(self.largest * self.largest)
        cdef double t, one = 1.0
        cdef int ci = <int> c, long_
        cdef const Py_ssize_t* v
        out_array = np.zeros((c, c))
        cdef double[:, ::1] out = out_array
        for k in range(self.n_patterns):
            w = weights[self.table[k]]
            with nogil:
                n, N, s, v = self.size[k], self.members[k], self.square[k], &self.visits[self.place[k]]
                for a in range(n):
                    for d in range(n):
                        t = 0.0
                        for b in range(n):
                            for e in range(n):
                                t += w[v[a], v[b], v[e], v[d]] * self.inverse[s + b * n + e]
                        P[a * n + d] = t
                spread(n, N * c, &P[0], &self.rows[self.first[k]], &self.work[0])
                long_ = <int> (n * N)
                dgemm("N", "T", &ci, &ci, &long_, &one, &self.work[0], &ci, &self.rows[self.first[k]], &ci, &one,
                      &out[0, 0], &ci)
        return out_array[:c - 1, :c - 1]
