# cython: language_level=3
"""Structured residuals in general: the sums over independent clusters, each with its covariance matrix in full.

    V_i = sum_f (Z_f G_f Z_f') o [same level of f] + R_i,        o elementwise, all relative to sigma^2

for the rows of cluster i, with R_i zero between subjects and, within a subject of table t at the places p, T_t[p, p].
The derivatives of V_i are taken along D directions: symmetric unit directions of G first, then the parameters phi, for
which each table has the derivatives J_t (k_t, s_t, s_t) of its matrix in its own ones.  With V_i = L_i L_i', W_i its
inverse, A_i = W_i X_i C^-T and e_i = W_i (y - X beta)_i as in `visits`,

    F = c_n W_i + c_e e_i e_i' + c_x A_i A_i'

gives first derivatives sum tr(F V_d), and with another choice of the three the part sum tr(V_d F V_d' W_i) of second
ones.  Rows are sorted by cluster, then by subject.  A cluster of n rows costs O(D n^3 + D^2 n^2); one with a single
level of each factor, where the directions of G are z_a z_b' + z_b z_a', has the n^3 for the parameters phi only.
"""
from libc.math cimport log
from libc.string cimport memcpy, memset

import numpy as np

from scipy.linalg.cython_blas cimport dgemm, dsyrk, dtrsm
from scipy.linalg.cython_lapack cimport dpotrf, dpotri


cdef class ClusterSums:
    """Sums over the clusters of a conditioned problem.

    Parameters
    ----------
    clusters : records.ClusterRows
        Its rows are not changed.
    """

    cdef readonly Py_ssize_t n, c, q, n_g, n_phi, n_clusters, n_factors
    cdef Py_ssize_t largest
    cdef const double[:, ::1] given, Z
    cdef const Py_ssize_t[::1] start, block, table, place, size, first, count
    cdef const Py_ssize_t[:, ::1] levels, unit
    cdef Py_ssize_t[::1] square, offset, joffset, block_of
    cdef double[:, ::1] rows
    cdef double[::1] lower, V, W, F, P, Q, T, spare
    cdef Py_ssize_t[::1] active
    cdef unsigned char[::1] single  # whether all rows of a cluster have the same level of each factor
    cdef double[::1] FZ, WZ, VZ, inner
    cdef double[:, ::1] G

    def __init__(self, clusters):
        cdef Py_ssize_t i, n, m, t, total = 0, n_phi = clusters.n_phi
        cdef const Py_ssize_t[::1] start = clusters.start, size = clusters.size, count = clusters.counts
        self.given, self.Z, self.levels, self.unit = clusters.rows, clusters.Z, clusters.levels, clusters.unit
        self.block, self.table, self.place = clusters.block, clusters.table, clusters.place
        self.start, self.size, self.first, self.count = start, size, clusters.first, count
        m = start.shape[0] - 1
        self.n, self.c, self.q = self.given.shape[0], self.given.shape[1], self.Z.shape[1]
        self.n_g, self.n_phi = self.unit.shape[0], n_phi
        self.n_clusters, self.n_factors, self.largest = m, self.levels.shape[0], 1
        self.square = np.zeros(m + 1, dtype=np.intp)
        for i in range(m):
            n = start[i + 1] - start[i]
            self.square[i] = total
            total += n * n
            self.largest = max(self.largest, n)
        self.square[m] = total
        self.lower = np.empty(max(total, 1))
        self.rows = np.empty((self.n, self.c))
        self.offset, self.joffset = (np.zeros(size.shape[0] + 1, dtype=np.intp) for _ in range(2))
        for t in range(size.shape[0]):
            self.offset[t + 1] = self.offset[t] + size[t] * size[t]
            self.joffset[t + 1] = self.joffset[t] + count[t] * size[t] * size[t]
        self.block_of = np.searchsorted(np.asarray(self.block), np.asarray(start)).astype(np.intp)
        n = self.largest
        self.V, self.W, self.F = (np.empty(n * n) for _ in range(3))
        self.T = np.empty(n * self.c)
        self.spare = np.empty(n * self.c)
        self.P = self.Q = np.empty(1)
        self.active = np.zeros(max(self.n_g + n_phi, 1), dtype=np.intp)
        levels = np.asarray(self.levels)
        lowest, highest = (f.reduceat(levels, np.asarray(start)[:m], axis=1) for f in (np.minimum, np.maximum))
        self.single = (lowest == highest).all(axis=0).astype(np.uint8)
        self.FZ, self.WZ, self.VZ = (np.empty(max(n * self.q, 1)) for _ in range(3))
        self.inner = np.empty(max(3 * self.q * self.q, self.q * self.c, 1))

    def reduce(self, const double[:, ::1] G, const double[::1] tables):
        """log|V| and H = [X y]'V^-1[X y].

        Parameters
        ----------
        G : (q, q) array
        tables : array
            The matrices of all tables, one after the other.

        Returns
        -------
        logdet : float
        H : (c, c) array or None
            None where a covariance is not positive definite.
        """
        cdef Py_ssize_t i, j, n, at, c = self.c
        cdef int ni, ci = <int> c, info
        cdef double one = 1.0, logdet = 0.0
        cdef double* L
        cdef double* Y
        cdef bint valid = True
        H_array = np.zeros((c, c))
        cdef double[:, ::1] H = H_array
        memcpy(&self.rows[0, 0], &self.given[0, 0], self.n * c * sizeof(double))
        with nogil:
            for i in range(self.n_clusters):
                at = self.start[i]
                n = self.start[i + 1] - at
                ni = <int> n
                L = &self.lower[self.square[i]]
                self.form(i, G, &tables[0], L)
                # the lower triangle by rows is the upper one by columns
                dpotrf("U", &ni, L, &ni, &info)
                if info != 0:
                    valid = False
                    break
                for j in range(n):
                    logdet += 2.0 * log(L[j * n + j])
                Y = &self.rows[at, 0]
                dtrsm("R", "U", "N", "N", &ci, &ni, &one, L, &ni, Y, &ci)
                dsyrk("U", "N", &ci, &ni, &one, Y, &ci, &one, &H[0, 0], &ci)
        if not valid:
            return np.inf, None
        for i in range(c):
            for j in range(i):
                H[j, i] = H[i, j]
        return logdet, H_array

    cdef void form(self, Py_ssize_t i, const double[:, ::1] G, const double* tables, double* V) noexcept nogil:
        """V of cluster i (n, n)."""
        cdef Py_ssize_t at = self.start[i], n = self.start[i + 1] - at, a, b, j, k, f, g
        cdef double t
        memset(V, 0, n * n * sizeof(double))
        for g in range(self.n_g):
            f, j, k = self.unit[g, 0], self.unit[g, 1], self.unit[g, 2]
            if G[j, k] == 0.0:
                continue
            self.add_unit(i, g, G[j, k], V)
        self.add_tables(i, tables, V)

    cdef void add_unit(self, Py_ssize_t i, Py_ssize_t g, double scale, double* V) noexcept nogil:
        """Add scale times the derivative along the unit direction g of G."""
        cdef Py_ssize_t at = self.start[i], n = self.start[i + 1] - at, a, b
        cdef Py_ssize_t f = self.unit[g, 0], j = self.unit[g, 1], k = self.unit[g, 2]
        cdef double t
        for a in range(n):
            for b in range(n):
                if self.levels[f, at + a] == self.levels[f, at + b]:
                    t = self.Z[at + a, j] * self.Z[at + b, k]
                    if j != k:
                        t += self.Z[at + a, k] * self.Z[at + b, j]
                    V[a * n + b] += scale * t

    cdef void add_tables(self, Py_ssize_t i, const double* tables, double* V) noexcept nogil:
        """Add the blocks of the subjects."""
        cdef Py_ssize_t at = self.start[i], n = self.start[i + 1] - at, s, a, b, t, m
        cdef const double* T
        for s in range(self.block_of[i], self.block_of[i + 1]):
            t = self.table[s]
            m = self.size[t]
            T = tables + self.offset[t]
            for a in range(self.block[s], self.block[s + 1]):
                for b in range(self.block[s], self.block[s + 1]):
                    V[(a - at) * n + b - at] += T[self.place[a] * m + self.place[b]]

    cdef bint along(self, Py_ssize_t i, Py_ssize_t d, const double* jacobians, double* V) noexcept nogil:
        """dV along direction d (n, n); False where the cluster does not know it."""
        cdef Py_ssize_t at = self.start[i], n = self.start[i + 1] - at, s, a, b, t, m, own
        cdef const double* J
        cdef bint found = False
        memset(V, 0, n * n * sizeof(double))
        if d < self.n_g:
            self.add_unit(i, d, 1.0, V)
            return True
        d -= self.n_g
        for s in range(self.block_of[i], self.block_of[i + 1]):
            t = self.table[s]
            own = d - self.first[t]
            if own < 0 or own >= self.count[t]:
                continue
            found = True
            m = self.size[t]
            J = jacobians + self.joffset[t] + own * m * m
            for a in range(self.block[s], self.block[s + 1]):
                for b in range(self.block[s], self.block[s + 1]):
                    V[(a - at) * n + b - at] = J[self.place[a] * m + self.place[b]]
        return found

    def whitened(self):
        """The rows L_i^-1 [X y] of all clusters after `reduce` (n, c)."""
        return np.array(self.rows)

    def weigh(self, const double[:, ::1] turn):
        """Bring the rows to [A e]: [X y] -> V^-1 [X y] turn (see `visits.PatternSums.weigh`)."""
        cdef Py_ssize_t i, n, at, c = self.c
        cdef int ni, ci = <int> c
        cdef double one = 1.0, zero = 0.0
        cdef double* A
        with nogil:
            for i in range(self.n_clusters):
                at = self.start[i]
                n = self.start[i + 1] - at
                ni = <int> n
                A = &self.rows[at, 0]
                memcpy(&self.T[0], A, n * c * sizeof(double))
                dgemm("N", "N", &ci, &ni, &ci, &one, <double*> &turn[0, 0], &ci, &self.T[0], &ci, &zero, A, &ci)
                dtrsm("R", "U", "T", "N", &ci, &ni, &one, &self.lower[self.square[i]], &ni, A, &ci)

    cdef void weight(self, Py_ssize_t i, double c_n, double c_e, double c_x) noexcept nogil:
        """W of cluster i into self.W, and F into self.F."""
        cdef Py_ssize_t at = self.start[i], n = self.start[i + 1] - at, a, b, j, c = self.c
        cdef int ni = <int> n, info
        cdef double x, e
        memcpy(&self.W[0], &self.lower[self.square[i]], n * n * sizeof(double))
        dpotri("U", &ni, &self.W[0], &ni, &info)
        for a in range(n):
            for b in range(a + 1):
                self.W[b * n + a] = self.W[a * n + b]
                x = 0.0
                for j in range(c - 1):
                    x += self.rows[at + a, j] * self.rows[at + b, j]
                e = self.rows[at + a, c - 1] * self.rows[at + b, c - 1]
                x = c_n * self.W[a * n + b] + c_e * e + c_x * x
                self.F[a * n + b] = x
                self.F[b * n + a] = x

    cdef void between(self, Py_ssize_t i, const double* A, double* AZ, double* ZAZ) noexcept nogil:
        """A Z (n, q) and Z'A Z (q, q) for the rows of a cluster and a symmetric A."""
        cdef Py_ssize_t at = self.start[i], n = self.start[i + 1] - at
        cdef int ni = <int> n, qi = <int> self.q
        cdef double one = 1.0, zero = 0.0
        cdef double* Z = <double*> &self.Z[at, 0]
        dgemm("N", "N", &qi, &ni, &ni, &one, Z, &qi, <double*> A, &ni, &zero, AZ, &qi)
        dgemm("N", "T", &qi, &qi, &ni, &one, AZ, &qi, Z, &qi, &zero, ZAZ, &qi)

    cdef void pairs_of_g(self, Py_ssize_t i, double[:, ::1] H) noexcept nogil:
        """tr(V_d F V_e W) for pairs of directions of G, of a cluster of single levels; A Z of both F and W are left."""
        cdef Py_ssize_t d, e, a, b, f, g, q = self.q
        cdef double t
        cdef double* F = &self.inner[0]
        cdef double* W = F + q * q
        self.between(i, &self.F[0], &self.FZ[0], F)
        self.between(i, &self.W[0], &self.WZ[0], W)
        for d in range(self.n_g):
            a, b = self.unit[d, 1], self.unit[d, 2]
            for e in range(self.n_g):
                f, g = self.unit[e, 1], self.unit[e, 2]
                t = F[b * q + f] * W[g * q + a]
                if f != g:
                    t += F[b * q + g] * W[f * q + a]
                if a != b:
                    t += F[a * q + f] * W[g * q + b]
                    if f != g:
                        t += F[a * q + g] * W[f * q + b]
                H[d, e] += t

    cdef void pairs_with_g(self, Py_ssize_t i, Py_ssize_t phi, double[:, ::1] H) noexcept nogil:
        """tr(V_d F V W) for the directions of G and that of a parameter, V, of a cluster of single levels."""
        cdef Py_ssize_t d, a, b, q = self.q, n = self.start[i + 1] - self.start[i]
        cdef int ni = <int> n, qi = <int> q
        cdef double one = 1.0, zero = 0.0, t
        cdef double* X = &self.inner[2 * q * q]
        dgemm("N", "N", &qi, &ni, &ni, &one, &self.WZ[0], &qi, &self.V[0], &ni, &zero, &self.VZ[0], &qi)
        dgemm("N", "T", &qi, &qi, &ni, &one, &self.VZ[0], &qi, &self.FZ[0], &qi, &zero, X, &qi)
        for d in range(self.n_g):
            a, b = self.unit[d, 1], self.unit[d, 2]
            t = X[a * q + b] + X[b * q + a] if a != b else X[a * q + a]
            H[d, phi] += t
            H[phi, d] += t

    def slopes(self, double c_n, double c_e, double c_x):
        """tr(F dV): along the unit directions of G (n_g,), and as matrices of the tables, one after the other."""
        cdef Py_ssize_t i, g, s, a, b, t, m, n, at
        cdef double total
        along_g, of_tables = np.zeros(self.n_g), np.zeros(self.offset[self.size.shape[0]])
        cdef double[::1] first = along_g, second = of_tables
        with nogil:
            for i in range(self.n_clusters):
                at = self.start[i]
                n = self.start[i + 1] - at
                self.weight(i, c_n, c_e, c_x)
                if self.single[i] and self.n_g:
                    self.between(i, &self.F[0], &self.FZ[0], &self.inner[0])
                    for g in range(self.n_g):
                        a, b = self.unit[g, 1], self.unit[g, 2]
                        first[g] += (1.0 if a == b else 2.0) * self.inner[a * self.q + b]
                for g in range(0 if self.single[i] else self.n_g):
                    memset(&self.V[0], 0, n * n * sizeof(double))
                    self.add_unit(i, g, 1.0, &self.V[0])
                    total = 0.0
                    for a in range(n * n):
                        total += self.V[a] * self.F[a]
                    first[g] += total
                for s in range(self.block_of[i], self.block_of[i + 1]):
                    t = self.table[s]
                    m = self.size[t]
                    for a in range(self.block[s], self.block[s + 1]):
                        for b in range(self.block[s], self.block[s + 1]):
                            second[self.offset[t] + self.place[a] * m + self.place[b]] += (
                                self.F[(a - at) * n + b - at])
        return along_g, of_tables

    def curves(self, const double[::1] jacobians, double c_n, double c_e, double c_x):
        """Sum of tr(dV F dV' W), symmetrised, for all pairs of directions (D, D).

        Parameters
        ----------
        jacobians : array
            J_t of all tables, one after the other.
        """
        cdef Py_ssize_t i, d, n, D = self.n_g + self.n_phi, k, j
        cdef bint low_rank
        cdef int ni, square, ki
        cdef double one = 1.0, zero = 0.0
        out = np.zeros((D, D))
        cdef double[:, ::1] H = out
        cdef double[:, ::1] part = np.zeros((max(D, 1), max(D, 1)))
        n = self.largest
        if self.P.shape[0] < D * n * n:
            self.P, self.Q = np.empty(D * n * n), np.empty(D * n * n)
        with nogil:
            for i in range(self.n_clusters):
                n = self.start[i + 1] - self.start[i]
                ni, square = <int> n, <int> (n * n)
                self.weight(i, c_n, c_e, c_x)
                k = 0
                low_rank = self.single[i] and self.n_g > 0
                if low_rank:
                    self.pairs_of_g(i, H)
                for d in range(self.n_g if low_rank else 0, D):
                    if not self.along(i, d, &jacobians[0], &self.V[0]):
                        continue
                    if low_rank:
                        self.pairs_with_g(i, d, H)
                    self.active[k] = d
                    # by rows P = V F and Q = W V; by columns F V and V W
                    dgemm("N", "N", &ni, &ni, &ni, &one, &self.F[0], &ni, &self.V[0], &ni, &zero,
                          &self.P[k * n * n], &ni)
                    dgemm("N", "N", &ni, &ni, &ni, &one, &self.V[0], &ni, &self.W[0], &ni, &zero,
                          &self.Q[k * n * n], &ni)
                    k += 1
                if k == 0:
                    continue
                ki = <int> k
                dgemm("T", "N", &ki, &ki, &square, &one, &self.P[0], &square, &self.Q[0], &square, &zero,
                      &part[0, 0], &ki)
                for d in range(k):
                    for j in range(k):
                        H[self.active[d], self.active[j]] += (&part[0, 0])[d * k + j]
        return 0.5 * (out + out.T)

    def cross(self, const double[::1] jacobians):
        """[A e]'dV[A e] for all directions (D, c, c)."""
        cdef Py_ssize_t i, d, n, a, b, j, l, D = self.n_g + self.n_phi, c = self.c
        cdef int ni, ci = <int> c, qi = <int> self.q
        cdef double one = 1.0, zero = 0.0, t
        cdef bint low_rank
        cdef double* rows
        out = np.zeros((D, self.c, self.c))
        cdef double[:, :, ::1] S = out
        with nogil:
            for i in range(self.n_clusters):
                n = self.start[i + 1] - self.start[i]
                ni = <int> n
                rows = &self.rows[self.start[i], 0]
                low_rank = self.single[i] and self.n_g > 0
                if low_rank:
                    # Z'[A e] (q, c)
                    dgemm("N", "T", &ci, &qi, &ni, &one, rows, &ci, <double*> &self.Z[self.start[i], 0], &qi, &zero,
                          &self.inner[0], &ci)
                    for d in range(self.n_g):
                        a, b = self.unit[d, 1], self.unit[d, 2]
                        for j in range(c):
                            t = self.inner[a * c + j]
                            for l in range(c):
                                S[d, j, l] += t * self.inner[b * c + l]
                            if a == b:
                                continue
                            t = self.inner[b * c + j]
                            for l in range(c):
                                S[d, j, l] += t * self.inner[a * c + l]
                for d in range(self.n_g if low_rank else 0, D):
                    if not self.along(i, d, &jacobians[0], &self.V[0]):
                        continue
                    dgemm("N", "N", &ci, &ni, &ni, &one, rows, &ci, &self.V[0], &ni, &zero, &self.T[0], &ci)
                    dgemm("N", "T", &ci, &ci, &ni, &one, &self.T[0], &ci, rows, &ci, &one, &S[d, 0, 0], &ci)
        return out

    def sandwich(self, const double[::1] jacobians, const double[:, ::1] weight):
        """Sum over pairs of directions of w_dd' [A e]'dV W dV'[A e] (c, c)."""
        cdef Py_ssize_t i, d, j, n, l, D = self.n_g + self.n_phi, k, c = self.c
        cdef int ni, ci = <int> c
        cdef double one = 1.0, zero = 0.0, t
        out = np.zeros((c, c))
        cdef double[:, ::1] S = out
        cdef double[::1] N = np.empty(max(D, 1) * self.largest * c)
        with nogil:
            for i in range(self.n_clusters):
                n = self.start[i + 1] - self.start[i]
                ni = <int> n
                k = 0
                for d in range(D):
                    if not self.along(i, d, &jacobians[0], &self.V[0]):
                        continue
                    self.active[k] = d
                    dgemm("N", "N", &ci, &ni, &ni, &one, &self.rows[self.start[i], 0], &ci, &self.V[0], &ni, &zero,
                          &N[k * n * c], &ci)
                    dtrsm("R", "U", "N", "N", &ci, &ni, &one, &self.lower[self.square[i]], &ni, &N[k * n * c], &ci)
                    k += 1
                for d in range(k):
                    memset(&self.T[0], 0, n * c * sizeof(double))
                    for j in range(k):
                        t = weight[self.active[d], self.active[j]]
                        for l in range(n * c):
                            self.T[l] += t * N[j * n * c + l]
                    dgemm("N", "T", &ci, &ci, &ni, &one, &self.T[0], &ci, &N[d * n * c], &ci, &one, &S[0, 0], &ci)
        return out

    def within(self, const double[::1] tables):
        """[A e]'T[A e] for matrices T of the tables in the place of residuals (c, c)."""
        cdef Py_ssize_t i, n
        cdef int ni, ci = <int> self.c
        cdef double one = 1.0, zero = 0.0
        out = np.zeros((self.c, self.c))
        cdef double[:, ::1] S = out
        with nogil:
            for i in range(self.n_clusters):
                n = self.start[i + 1] - self.start[i]
                ni = <int> n
                memset(&self.V[0], 0, n * n * sizeof(double))
                self.add_tables(i, &tables[0], &self.V[0])
                dgemm("N", "N", &ci, &ni, &ni, &one, &self.rows[self.start[i], 0], &ci, &self.V[0], &ni, &zero,
                      &self.T[0], &ci)
                dgemm("N", "T", &ci, &ci, &ni, &one, &self.T[0], &ci, &self.rows[self.start[i], 0], &ci, &one,
                      &S[0, 0], &ci)
        return out

    def solve(self, const double[:, ::1] columns):
        """V^-1 columns (n, k), rows as they are sorted here."""
        cdef Py_ssize_t i, n, at
        cdef int ni, ki = <int> columns.shape[1]
        cdef double one = 1.0
        out = np.array(columns)
        cdef double[:, ::1] view = out
        with nogil:
            for i in range(self.n_clusters):
                at = self.start[i]
                n = self.start[i + 1] - at
                ni = <int> n
                dtrsm("R", "U", "N", "N", &ki, &ni, &one, &self.lower[self.square[i]], &ni, &view[at, 0], &ki)
                dtrsm("R", "U", "T", "N", &ki, &ni, &one, &self.lower[self.square[i]], &ni, &view[at, 0], &ki)
        return out
