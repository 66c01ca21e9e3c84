# cython: language_level=3
"""Residuals that are a Markov chain: rows whitened one after the other, and random effects of the subjects.

`chain_products` sums the whitened rows of each subject and their derivatives (the equations are in
`covariance.residual.markov`), a few operations a row however long a subject is.  `SubjectSums` makes of these sums what
the profiled criterion needs of V_i = Z_i G Z_i' + R_i (the equations are in `engines.residual.series`).

Shapes: K columns in [Z X y], q of them in Z, c = K - q, r = c - 1; m subjects; k parameters of residuals.  Of a
symmetric (K, K) matrix of a subject only the first q rows are kept; its last (c, c) part is summed over subjects.
"""
from libc.math cimport sqrt
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

import numpy as np

from fastlmm_core.kernels._criterion cimport kernels
from fastlmm_core.lanes.kernels cimport SeriesSums, SeriesWork, series_room
from fastlmm_core.small.arena cimport Arena, furnish, take


# ---- rows ------------------------------------------------------------------------------------------------


cdef void reduced(Py_ssize_t n, Py_ssize_t q, Py_ssize_t K, double* Y, double* R) noexcept nogil:
    """The first q rows R (q, K) of the upper triangular factor of Y (n, K), of which the rest is left in Y."""
    cdef Py_ssize_t i, j, l
    cdef double t, size
    memset(R, 0, q * K * sizeof(double))
    for j in range(q):
        t = 0.0
        for i in range(n):
            t += Y[i * K + j] * Y[i * K + j]
        if t == 0.0:
            continue
        size = sqrt(t)
        R[j * K + j] = size
        for i in range(n):
            t = Y[i * K + j] / size
            for l in range(j + 1, K):
                R[j * K + l] += t * Y[i * K + l]
        for i in range(n):
            t = Y[i * K + j] / size
            for l in range(j + 1, K):
                Y[i * K + l] -= t * R[j * K + l]


cdef inline void add_both(Py_ssize_t q, Py_ssize_t K, double scale, const double* a, const double* b, double* own,
                          double* rest) noexcept nogil:
    """Add scale (a b' + b a'): its first q rows from the diagonal on (q, K),
    and the lower triangle of the rest (c, c)."""
    cdef Py_ssize_t i, j, c = K - q
    cdef double of_a, of_b
    for i in range(q):
        of_a, of_b = scale * a[i], scale * b[i]
        for j in range(i, K):
            own[i * K + j] += of_a * b[j] + of_b * a[j]
    for i in range(q, K):
        of_a, of_b = scale * a[i], scale * b[i]
        for j in range(q, i + 1):
            rest[(i - q) * c + j - q] += of_a * b[j] + of_b * a[j]


# One row whitened, and its derivatives along v parameters of standard deviations.
cdef struct Row:
    double* w           # (K,)
    double* turned      # (K,) b: tau' b is the derivative of w along the parameter of the correlation
    double* dw          # (v, K)
    double* mixed       # (v, K) b for dw
    double* ddw         # (v (v + 1) / 2, K), pairs a >= b by rows


# From a row and that before it, multiplied by f and g, to one that is whitened: less = 1 / sqrt(1 - rho^2).
cdef struct Step:
    double f
    double g
    double rho
    double less


cdef inline void both(Py_ssize_t K, const double* now, const double* before, Step s, double* w, double* b
                      ) noexcept nogil:
    """w = (f now - rho g before) less, and b = (rho f now - g before) less."""
    cdef Py_ssize_t j
    cdef double now_w = s.f * s.less, before_w = s.rho * s.g * s.less
    cdef double now_b = s.rho * s.f * s.less, before_b = s.g * s.less
    for j in range(K):
        w[j] = now_w * now[j] - before_w * before[j]
        b[j] = now_b * now[j] - before_b * before[j]


# Where the sums of one subject go, along one parameter or a pair: its first q rows, and the rest of all subjects.
cdef struct Place:
    double* own
    double* rest


cdef inline void add_correlated(Py_ssize_t q, Py_ssize_t K, const Row* row, double tau1, double tau2, Place first,
                                Place second) noexcept nogil:
    """w dw' + dw w' and w ddw' + ddw w' + 2 dw dw' along the parameter of the correlation: dw = tau' b and
    ddw = tau'^2 w + tau'' b; in places as those of `add_both`.
    """
    cdef Py_ssize_t i, j, c = K - q, at
    cdef double square = 2.0 * tau1 * tau1, of_w, of_b, mixed
    cdef const double* w = row.w
    cdef const double* b = row.turned
    for i in range(q):
        of_w, of_b = w[i], b[i]
        for j in range(i, K):
            mixed = of_w * b[j] + of_b * w[j]
            first.own[i * K + j] += tau1 * mixed
            second.own[i * K + j] += tau2 * mixed + square * (of_w * w[j] + of_b * b[j])
    for i in range(q, K):
        of_w, of_b, at = w[i], b[i], (i - q) * c - q
        for j in range(q, i + 1):
            mixed = of_w * b[j] + of_b * w[j]
            first.rest[at + j] += tau1 * mixed
            second.rest[at + j] += tau2 * mixed + square * (of_w * w[j] + of_b * b[j])


cdef inline void mirrored(Py_ssize_t n, Py_ssize_t width, double* A) noexcept nogil:
    """The lower triangle of the first n columns of A (n, width) from the upper one."""
    cdef Py_ssize_t i, j
    for i in range(n):
        for j in range(i):
            A[i * width + j] = A[j * width + i]


cdef class ChainProducts:
    """Sums of products A_i of the whitened rows of subjects, with derivatives along the parameters of a structure.

    Parameters
    ----------
    columns : (n, K) array
        [Z X y], subject by subject, in the order of time.
    starts : (m + 1,) intp array
        First row of each subject.
    links : records.ChainLinks
    q : int
    block : int
        Rows from which a triangular factor is brought up to date.

    Attributes
    ----------
    triangle : (m, q, K) array
        First rows of the upper triangular factors of A_i.
    rest : (c, c) array
        Upper triangular factor of the sum of what these leave of A_i.
    first, second : (k, m, q, K), (k, k, m, q, K) arrays
        First rows of the derivatives of A_i; the correlation has the last parameter.
    first_rest, second_rest : (k, c, c), (k, k, c, c) arrays
        The last part of the derivatives, summed.
    """

    cdef readonly object triangle, rest, first, second, first_rest, second_rest
    cdef Py_ssize_t q, K, v, held, room, waiting
    cdef double[::1] work
    cdef double* Y              # (room, K) rows of a subject
    cdef double* left           # (room + c, c) what is left of rows of all subjects
    cdef double[:, ::1] whole
    cdef Row row

    def __init__(self, const double[:, ::1] columns, const Py_ssize_t[::1] starts, links, Py_ssize_t q,
                 Py_ssize_t block):
        cdef Py_ssize_t m = starts.shape[0] - 1, K = columns.shape[1], v = links.n_variance, k = v + 1, c = K - q
        self.q, self.K, self.v, self.room, self.waiting = q, K, v, max(block, 1) + K, 0
        self.triangle, self.rest = np.zeros((m, q, K)), np.zeros((c, c))
        self.first, self.second = np.zeros((k, m, q, K)), np.zeros((k, k, m, q, K))
        self.first_rest, self.second_rest = np.zeros((k, c, c)), np.zeros((k, k, c, c))
        self.whole = self.rest
        self.work = np.zeros((2 * self.room + K + 3 + 2 * v + v * (v + 1) // 2) * K + 1)
        self.Y = &self.work[0]
        self.left = self.Y + self.room * K
        self.row.w = self.left + (self.room + K) * K
        self.row.turned = self.row.w + K
        self.row.dw = self.row.turned + K
        self.row.mixed = self.row.dw + v * K
        self.row.ddw = self.row.mixed + v * K
        if K:
            self.sum_up(columns, starts, links)

    cdef sum_up(self, const double[:, ::1] columns, const Py_ssize_t[::1] starts, links):
        """All subjects."""
        cdef const double[::1] rho = links.rho, root = links.root, tau1 = links.tau1, tau2 = links.tau2
        cdef const double[:, ::1] factors = links.factors
        cdef const Py_ssize_t[::1] gap = links.gap
        cdef double[:, :, ::1] triangle = self.triangle, first_rest = self.first_rest
        cdef double[:, :, :, ::1] first = self.first, second_rest = self.second_rest
        cdef double[:, :, :, :, ::1] second = self.second
        cdef Py_ssize_t m = starts.shape[0] - 1, q = self.q, K = self.K, v = self.v, c = K - q, i, t, g, a, b, at
        cdef double none = 0.0
        cdef double* R
        cdef Place one, two
        with nogil:
            for i in range(m):
                self.held = 0
                R = &triangle[i, 0, 0] if q else &none
                for t in range(starts[i], starts[i + 1]):
                    g = gap[t]
                    self.whiten(columns, factors, t, t - 1 if t > starts[i] else t, rho[g], 1.0 / root[g])
                    one.own, one.rest = &first[v, i, 0, 0] if q else &none, &first_rest[v, 0, 0] if c else &none
                    two.own, two.rest = &second[v, v, i, 0, 0] if q else &none, &second_rest[v, v, 0, 0] if c else &none
                    add_correlated(q, K, &self.row, tau1[g], tau2[g], one, two)
                    at = 0
                    for a in range(v):
                        one.own, one.rest = &first[a, i, 0, 0] if q else &none, &first_rest[a, 0, 0] if c else &none
                        two.own = &second[v, a, i, 0, 0] if q else &none
                        two.rest = &second_rest[v, a, 0, 0] if c else &none
                        add_both(q, K, 1.0, self.row.w, self.row.dw + a * K, one.own, one.rest)
                        add_both(q, K, tau1[g], self.row.w, self.row.mixed + a * K, two.own, two.rest)
                        add_both(q, K, tau1[g], self.row.turned, self.row.dw + a * K, two.own, two.rest)
                        for b in range(a + 1):
                            two.own = &second[a, b, i, 0, 0] if q else &none
                            two.rest = &second_rest[a, b, 0, 0] if c else &none
                            add_both(q, K, 1.0, self.row.w, self.row.ddw + at * K, two.own, two.rest)
                            add_both(q, K, 1.0, self.row.dw + a * K, self.row.dw + b * K, two.own, two.rest)
                            at += 1
                    memcpy(self.Y + self.held * K, self.row.w, K * sizeof(double))
                    self.held += 1
                    if self.held == self.room:
                        self.condense(R)
                        memcpy(self.Y, R, q * K * sizeof(double))
                        self.held = q
                self.condense(R)
                for a in range(v + 1 if q else 0):
                    mirrored(q, K, &first[a, i, 0, 0])
                    for b in range(a + 1):
                        mirrored(q, K, &second[a, b, i, 0, 0])
                        if b < a:
                            memcpy(&second[b, a, i, 0, 0], &second[a, b, i, 0, 0], q * K * sizeof(double))
            if c:
                self.settle()
        # lower triangles were summed
        for a in range(v + 1):
            self.first_rest[a] += np.tril(self.first_rest[a], -1).T
            for b in range(a + 1):
                self.second_rest[a, b] += np.tril(self.second_rest[a, b], -1).T
                self.second_rest[b, a] = self.second_rest[a, b]

    cdef void whiten(self, const double[:, ::1] columns, const double[:, ::1] factors, Py_ssize_t t, Py_ssize_t at,
                     double rho, double less) noexcept nogil:
        """Row t, with the row `at` before it; the first row of a subject has rho = 0 and tau' = 0,
        whatever is before."""
        cdef Py_ssize_t a, K = self.K, v = self.v
        cdef const double* now = &columns[t, 0]
        cdef const double* before = &columns[at, 0]
        cdef Step step
        cdef bint scaled = factors.shape[1] > 0
        step.f, step.g = factors[0, t] if scaled else 1.0, factors[0, at] if scaled else 1.0
        step.rho, step.less = rho, less
        both(K, now, before, step, self.row.w, self.row.turned)
        for a in range(v):
            step.f, step.g = factors[1 + a, t], factors[1 + a, at]
            both(K, now, before, step, self.row.dw + a * K, self.row.mixed + a * K)
        for a in range(v * (v + 1) // 2):
            # what stands in the place of b is not needed
            step.f, step.g = factors[1 + v + a, t], factors[1 + v + a, at]
            both(K, now, before, step, self.row.ddw + a * K, self.row.ddw + v * (v + 1) // 2 * K)

    cdef void condense(self, double* R) noexcept nogil:
        """The rows that are held to their first q, and what these leave to that of all subjects."""
        cdef Py_ssize_t i, q = self.q, K = self.K, c = K - q
        reduced(self.held, q, K, self.Y, R)
        for i in range(self.held if c else 0):
            memcpy(self.left + self.waiting * c, self.Y + i * K + q, c * sizeof(double))
            self.waiting += 1
            if self.waiting == self.room:
                self.settle()

    cdef void settle(self) noexcept nogil:
        """The triangular factor of what is left of all rows."""
        cdef Py_ssize_t c = self.K - self.q
        memcpy(self.left + self.waiting * c, &self.whole[0, 0], c * c * sizeof(double))
        reduced(self.waiting + c, c, c, self.left, &self.whole[0, 0])
        self.waiting = 0


# ---- subjects --------------------------------------------------------------------------------------------


cdef class SubjectSums:
    """Sums over subjects of V_i = Z_i G Z_i' + R_i, from the sums of products of whitened rows (see lanes/series.pxi).

    Parameters
    ----------
    m, q, c, k : int
        Subjects, columns of Z, columns of [X y], parameters of residuals.
    unit : (n_g, 2) intp array
        Row and column of each symmetric unit direction of G.
    """

    cdef readonly Py_ssize_t m, q, c, k, n_g
    cdef const Py_ssize_t[::1] unit
    cdef double[::1] G
    cdef SeriesWork w
    cdef double* memory
    cdef double[:, ::1] trace
    cdef double[:, :, ::1] bent

    def __init__(self, Py_ssize_t m, Py_ssize_t q, Py_ssize_t c, Py_ssize_t k, const Py_ssize_t[:, ::1] unit):
        cdef Py_ssize_t lanes = kernels.lanes
        cdef Arena arena
        self.m, self.q, self.c, self.k, self.n_g = m, q, c, k, unit.shape[0]
        self.unit, self.G = np.array(unit).ravel(), np.zeros(q * q + 1)
        self.trace, self.bent = np.zeros((k, k)), np.zeros((k, k, c))
        self.w.m, self.w.q, self.w.c, self.w.k, self.w.n_g = m, q, c, k, self.n_g
        self.w.n_blocks = (m + lanes - 1) // lanes if q else 0
        self.w.unit, self.w.G = &self.unit[0] if self.n_g else NULL, &self.G[0]
        arena.base, arena.used = NULL, 0
        lay_series(&self.w, &arena, lanes)
        self.memory = furnish(&arena)
        if self.memory == NULL:
            raise MemoryError
        lay_series(&self.w, &arena, lanes)

    def __dealloc__(self):
        free(self.memory)

    def reduce(self, const double[:, :, ::1] triangle, G):
        """log|I + r G r'| and b'(I + r G r')^-1 b, summed.

        Parameters
        ----------
        triangle : (m, q, K) array
            [r b].
        G : (q, q) array
        """
        cdef double total = 0.0
        cdef Py_ssize_t q = self.q
        H_array = np.zeros((self.c, self.c))
        cdef double[:, ::1] H = H_array
        if self.q:
            np.asarray(self.G)[: q * q] = np.ravel(G)
            if self.m and self.c:
                with nogil:
                    total = kernels.series_reduce(&self.w, &triangle[0, 0, 0], &H[0, 0])
        return total, H_array

    def weigh(self, const double[:, ::1] turn, const double[:, :, :, ::1] dA, const double[:, :, :, :, ::1] ddA):
        """What subjects have of the sums of products and their derivatives brought to [A e], after `reduce`.

        Parameters
        ----------
        turn : (c, c) array
        dA, ddA : (k, m, q, K), (k, k, m, q, K) arrays

        Returns
        -------
        sum_n : (q, q) array
            Sum of N_i.
        traces : (k,) array
            Sum of tr(P A_a).
        of_g : (n_g, c, c) array
            Sum of Q'DQ.
        of_phi : (k, c, c) array
            Sum of U'A_a U, but for the last part of A_a.
        """
        cdef Py_ssize_t q = self.q, c = self.c, k = self.k
        cdef SeriesSums s
        found = np.zeros(q * q + k + k * k * (1 + c) + (self.n_g + k) * c * c)
        cdef double[::1] sums = found
        if q and self.m and k:
            s.turn, s.dA, s.ddA, s.sum_n = &turn[0, 0], &dA[0, 0, 0, 0], &ddA[0, 0, 0, 0, 0], &sums[0]
            with nogil:
                kernels.series_weigh(&self.w, &s)
        parts = np.split(found, np.cumsum((q * q, k, k * k, k * k * c, self.n_g * c * c)))
        self.trace, self.bent = parts[2].reshape(k, k), parts[3].reshape(k, k, c)
        return parts[0].reshape(q, q), parts[1], parts[4].reshape(-1, c, c), parts[5].reshape(k, c, c)

    def along(self, const double[::1] weights):
        """Second derivatives along pairs of directions of G and of phi (n_g + k, n_g + k), after `weigh`.

        Parameters
        ----------
        weights : (c,) array
            Of the diagonal of second derivatives of H.
        """
        cdef Py_ssize_t n = self.n_g + self.k
        out_array = np.zeros((n, n))
        cdef double[:, ::1] out = out_array
        if self.q and self.m:
            with nogil:
                kernels.series_along(&self.w, &weights[0], &out[0, 0])
        out_array[self.n_g:, self.n_g:] = np.asarray(self.trace) + np.asarray(self.bent) @ np.asarray(weights)
        return np.tril(out_array) + np.tril(out_array, -1).T

    def middle(self):
        """N_i (m, q, q), after `weigh`, and D_i = M^-1 b (m, q, c), M M' = I + r G r'."""
        cdef Py_ssize_t lanes = kernels.lanes, q = self.q, c = self.c, i, j
        N_array, D_array = np.zeros((self.m, q * q)), np.zeros((self.m, q * c))
        cdef double[:, ::1] N = N_array, D = D_array
        for i in range(self.m):
            for j in range(q * q):
                N[i, j] = self.w.N[(i // lanes * q * q + j) * lanes + i % lanes]
            for j in range(q * c):
                D[i, j] = self.w.D[(i // lanes * q * c + j) * lanes + i % lanes]
        return N_array.reshape(-1, q, q), D_array.reshape(-1, q, c)


cdef void lay_series(SeriesWork* w, Arena* arena, Py_ssize_t lanes) noexcept nogil:
    """Take the arrays of a work space of given sizes."""
    cdef Py_ssize_t q = w.q, c = w.c, k = w.k, many = w.n_blocks * lanes
    w.Y = take(arena, many * q * q)
    w.D = take(arena, many * q * c)
    w.N = take(arena, many * q * q)
    w.T = take(arena, many * q * q)
    w.Q = take(arena, many * q * c)
    w.E = take(arena, many * k * q * c)
    w.dAz = take(arena, many * k * q * q)
    w.work = take(arena, lanes * series_room(q, c, k, w.n_g))
