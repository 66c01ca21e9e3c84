# cython: language_level=3
"""Residuals that are a Markov chain with few gaps between rows: sums of products without the rows.

With u_k the rows of a subject in the order of time, rho_k the correlation of u_{k-1} and u_k, tau_k = artanh(rho_k) and
R the matrix of the correlations,

    u'R^-1 u = (u_1 u_1' + u_n u_n') / 2 + sum_k (exp(2 tau_k) d_k d_k' + exp(-2 tau_k) s_k s_k') / 4,
    d_k = u_k - u_{k-1},   s_k = u_k + u_{k-1}:

(u_k - rho u_{k-1})^2 / (1 - rho^2) is ((1 + rho) d + (1 - rho) s)^2 / (4 (1 - rho^2)), and what d s' sums to is
u_n u_n' - u_1 u_1'.  All terms are positive, and rows with one gap share their tau: d d' and s s' are summed once for
each subject and gap, and an evaluation, with derivatives in tau, reads these sums only, however many rows there are.

Nothing cancels where effects of subjects are large: rows [Z W] of a subject, W = [X y], are written as Q [T C] + [0 E]
with Q'Q = I and Q'E = 0.  For the sums of products [A B; B' F] of [Q E] and A = L L', the upper triangular factor of
those of [Z W] has the first rows [L'T, L'C + L^-1 B], and leaves F - B'A^-1 B.

Shapes: K columns in [Z W], q of them in Z, c = K - q; m subjects; U gaps; P pairs of a subject and one of its gaps.
"""
from libc.math cimport sqrt
from libc.string cimport memcpy, memset

import numpy as np


cdef inline void add_square(Py_ssize_t q, Py_ssize_t K, double scale, const double* a, double* out) noexcept nogil:
    """Add the first q rows of scale a a' (q, K), from the diagonal on."""
    cdef Py_ssize_t i, j
    cdef double t
    for i in range(q):
        t = scale * a[i]
        for j in range(i, K):
            out[i * K + j] += t * a[j]


cdef inline void filled(Py_ssize_t q, Py_ssize_t K, double* A) noexcept nogil:
    """The lower triangle of the first q columns of A (q, K) from the upper one."""
    cdef Py_ssize_t i, j
    for i in range(q):
        for j in range(i):
            A[i * K + j] = A[j * K + i]


cdef void orthogonalized(Py_ssize_t n, Py_ssize_t q, Py_ssize_t K, double* Y, double* R) noexcept nogil:
    """Y (n, K) = [Z W] to [Q E], and R (q, K) = [T C]: Gram and Schmidt's method, for Z twice.

    A column of Z that those before it span leaves a row of zeros, and a column of zeros in Q.
    """
    cdef Py_ssize_t i, j, l, turn
    cdef double t, whole, size
    memset(R, 0, q * K * sizeof(double))
    for j in range(q):
        whole = 0.0
        for i in range(n):
            whole += Y[i * K + j] * Y[i * K + j]
        for turn in range(2 if j else 0):
            for l in range(j):
                t = 0.0
                for i in range(n):
                    t += Y[i * K + l] * Y[i * K + j]
                R[l * K + j] += t
                for i in range(n):
                    Y[i * K + j] -= t * Y[i * K + l]
        size = 0.0
        for i in range(n):
            size += Y[i * K + j] * Y[i * K + j]
        size = sqrt(size) if size > 1e-28 * whole else 0.0
        R[j * K + j] = size
        size = 1.0 / size if size > 0.0 else 0.0
        for i in range(n):
            Y[i * K + j] *= size
            t = Y[i * K + j]
            for l in range(q, K):
                R[j * K + l] += t * Y[i * K + l]
        for i in range(n):
            t = Y[i * K + j]
            for l in range(q, K):
                Y[i * K + l] -= t * R[j * K + l]


cdef inline void both(Py_ssize_t K, const double* now, const double* before, double* d, double* s) noexcept nogil:
    """The difference and the sum of two rows."""
    cdef Py_ssize_t j
    for j in range(K):
        d[j] = now[j] - before[j]
        s[j] = now[j] + before[j]


cdef inline void add_weighted(Py_ssize_t n, double a, const double* A, double b, const double* B, double* out
                              ) noexcept nogil:
    """Add a A + b B."""
    cdef Py_ssize_t i
    for i in range(n):
        out[i] += a * A[i] + b * B[i]


cdef pairs_of(const Py_ssize_t[::1] starts, const Py_ssize_t[::1] gap, Py_ssize_t n_gaps):
    """The gaps of each subject: where they begin (m + 1,), and which they are (P,)."""
    cdef Py_ssize_t i, t, g, m = starts.shape[0] - 1, count = 0
    begin_array, which_array = np.zeros(m + 1, dtype=np.intp), np.zeros(gap.shape[0], dtype=np.intp)
    last_array = np.full(n_gaps, -1, dtype=np.intp)
    cdef Py_ssize_t[::1] begin = begin_array, which = which_array, last = last_array
    with nogil:
        for i in range(m):
            begin[i] = count
            for t in range(starts[i] + 1, starts[i + 1]):
                g = gap[t] - 1
                if last[g] != i:
                    last[g] = i
                    which[count] = g
                    count += 1
        begin[m] = count
    return begin_array, which_array[:count].copy()


cdef class GapProducts:
    """Sums of products A_i of the whitened rows of subjects, with derivatives along the parameter of the correlation.

    Parameters
    ----------
    columns : (n, K) array
        [Z X y], subject by subject, in the order of time.
    starts : (m + 1,) intp array
        First row of each subject.
    gap : (n,) intp array
        1 + the gap that a row has before it; 0 for the first row of a subject.
    n_gaps : int
    q : int

    Attributes
    ----------
    triangle : (m, q, K) array
        First rows of the upper triangular factors of A_i, after `at`.
    left : (c, c) array
        The sum of what these leave of A_i.
    extent : (c,) array
        The diagonal of what `left` is a difference of.
    first, second : (1, m, q, K), (1, 1, m, q, K) arrays
        First rows of the derivatives of A_i.
    first_rest, second_rest : (1, c, c), (1, 1, c, c) arrays
        The last part of the derivatives, summed.
    """

    cdef readonly object triangle, left, extent, first, second, first_rest, second_rest
    cdef Py_ssize_t m, q, K
    cdef Py_ssize_t[::1] begin, which
    cdef double[:, :, ::1] lead, ends, apart, along
    cdef double[:, ::1] ends_left
    cdef double[:, :, ::1] apart_left, along_left, apart_rest, along_rest
    cdef double[::1] work

    def __init__(self, const double[:, ::1] columns, const Py_ssize_t[::1] starts, const Py_ssize_t[::1] gap,
                 Py_ssize_t n_gaps, Py_ssize_t q):
        cdef Py_ssize_t m = starts.shape[0] - 1, K = columns.shape[1], c = K - q
        self.m, self.q, self.K = m, q, K
        self.begin, self.which = pairs_of(starts, gap, n_gaps)
        self.lead, self.ends = np.zeros((m, q, K)), np.zeros((m, q, K))
        self.apart, self.along = (np.zeros((self.which.shape[0], q, K)) for _ in range(2))
        self.ends_left = np.zeros((c, c))
        self.apart_left, self.along_left, self.apart_rest, self.along_rest = (
            np.zeros((n_gaps, c, c)) for _ in range(4))
        self.work = np.zeros((int(np.diff(starts).max(initial=0)) + 2 + 4 * q) * K + q * q + 1)
        self.triangle, self.left, self.extent = np.zeros((m, q, K)), np.zeros((c, c)), np.zeros(c)
        self.first, self.second = np.zeros((1, m, q, K)), np.zeros((1, 1, m, q, K))
        self.first_rest, self.second_rest = np.zeros((1, c, c)), np.zeros((1, 1, c, c))
        if K:
            self.sum_up(columns, starts, gap)

    cdef sum_up(self, const double[:, ::1] columns, const Py_ssize_t[::1] starts, const Py_ssize_t[::1] gap):
        """The sums over rows."""
        cdef Py_ssize_t i, t, g, p, n, q = self.q, K = self.K, c = K - q
        cdef double none = 0.0
        cdef double* d = &self.work[0]
        cdef double* s = d + K
        cdef double* Y = s + K
        with nogil:
            for i in range(self.m):
                n = starts[i + 1] - starts[i]
                memcpy(Y, &columns[starts[i], 0], n * K * sizeof(double))
                for t in range(1, n if c else 1):
                    g = gap[starts[i] + t] - 1
                    both(c, Y + t * K + q, Y + (t - 1) * K + q, d, s)
                    add_square(c, c, 1.0, d, &self.apart_rest[g, 0, 0])
                    add_square(c, c, 1.0, s, &self.along_rest[g, 0, 0])
                orthogonalized(n, q, K, Y, &self.lead[i, 0, 0] if q else &none)
                self.add_end(i, Y)
                self.add_end(i, Y + (n - 1) * K)
                for t in range(1, n):
                    g, p = gap[starts[i] + t] - 1, self.begin[i]
                    while self.which[p] != g:
                        p += 1
                    both(K, Y + t * K, Y + (t - 1) * K, d, s)
                    if q:
                        add_square(q, K, 1.0, d, &self.apart[p, 0, 0])
                        add_square(q, K, 1.0, s, &self.along[p, 0, 0])
                    if c:
                        add_square(c, c, 1.0, d + q, &self.apart_left[g, 0, 0])
                        add_square(c, c, 1.0, s + q, &self.along_left[g, 0, 0])

    cdef void add_end(self, Py_ssize_t i, const double* row) noexcept nogil:
        """The first or the last row of a subject."""
        if self.q:
            add_square(self.q, self.K, 0.5, row, &self.ends[i, 0, 0])
        if self.K > self.q:
            add_square(self.K - self.q, self.K - self.q, 0.5, row + self.q, &self.ends_left[0, 0])

    def at(self, const double[::1] up, const double[::1] down, const double[::1] tau1, const double[::1] tau2):
        """Take correlations.

        Parameters
        ----------
        up, down : (U,) arrays
            exp(2 tau) / 4 and exp(-2 tau) / 4 of each gap.
        tau1, tau2 : (U,) arrays
            Derivatives of tau in the parameter.
        """
        cdef double[:, :, ::1] triangle = self.triangle
        cdef double[:, :, ::1] first = self.first[0], second = self.second[0, 0]
        cdef double[:, ::1] left = self.left, first_rest = self.first_rest[0], second_rest = self.second_rest[0, 0]
        cdef double[::1] extent = self.extent
        cdef Py_ssize_t i, g, j, l, q = self.q, K = self.K, c = K - q, U = up.shape[0]
        weights_array = np.empty((3, 2, U))
        cdef double[:, :, ::1] weights = weights_array
        for g in range(U):
            weights[0, 0, g], weights[0, 1, g] = up[g], down[g]
            weights[1, 0, g], weights[1, 1, g] = 2.0 * tau1[g] * up[g], -2.0 * tau1[g] * down[g]
            weights[2, 0, g] = (4.0 * tau1[g] * tau1[g] + 2.0 * tau2[g]) * up[g]
            weights[2, 1, g] = (4.0 * tau1[g] * tau1[g] - 2.0 * tau2[g]) * down[g]
        with nogil:
            if c:
                memcpy(&left[0, 0], &self.ends_left[0, 0], c * c * sizeof(double))
                memset(&first_rest[0, 0], 0, c * c * sizeof(double))
                memset(&second_rest[0, 0], 0, c * c * sizeof(double))
            for g in range(U if c else 0):
                add_weighted(c * c, weights[0, 0, g], &self.apart_left[g, 0, 0], weights[0, 1, g],
                             &self.along_left[g, 0, 0], &left[0, 0])
                add_weighted(c * c, weights[1, 0, g], &self.apart_rest[g, 0, 0], weights[1, 1, g],
                             &self.along_rest[g, 0, 0], &first_rest[0, 0])
                add_weighted(c * c, weights[2, 0, g], &self.apart_rest[g, 0, 0], weights[2, 1, g],
                             &self.along_rest[g, 0, 0], &second_rest[0, 0])
            for j in range(c):
                extent[j] = left[j, j]
            for i in range(self.m if q else 0):
                # with constants, by which loops are unrolled
                if q == 1:
                    self.subject(1, i, weights, &triangle[i, 0, 0], &left[0, 0] if c else NULL)
                    self.derived(1, i, weights, &first[i, 0, 0], &second[i, 0, 0])
                elif q == 2:
                    self.subject(2, i, weights, &triangle[i, 0, 0], &left[0, 0] if c else NULL)
                    self.derived(2, i, weights, &first[i, 0, 0], &second[i, 0, 0])
                else:
                    self.subject(q, i, weights, &triangle[i, 0, 0], &left[0, 0] if c else NULL)
                    self.derived(q, i, weights, &first[i, 0, 0], &second[i, 0, 0])
            for j in range(c):
                for l in range(j):
                    left[j, l], first_rest[j, l] = left[l, j], first_rest[l, j]
                    second_rest[j, l] = second_rest[l, j]

    cdef inline void subject(self, Py_ssize_t q, Py_ssize_t i, const double[:, :, ::1] weights, double* R, double* left
                             ) noexcept nogil:
        """The first rows R of the triangular factor of a subject, and what they take from `left`, upper triangle."""
        cdef Py_ssize_t a, b, j, l, p, g, K = self.K, c = K - q
        cdef double* A = &self.work[0]      # (q, K) of [Q E]; then L', L^-1 B
        cdef double t
        memcpy(A, &self.ends[i, 0, 0], q * K * sizeof(double))
        for p in range(self.begin[i], self.begin[i + 1]):
            g = self.which[p]
            add_weighted(q * K, weights[0, 0, g], &self.apart[p, 0, 0], weights[0, 1, g], &self.along[p, 0, 0], A)
        # upper triangular factor, right-looking
        for a in range(q):
            t = A[a * K + a]
            t = 1.0 / sqrt(t) if t > 0.0 else 0.0
            for j in range(a, K):
                A[a * K + j] *= t
            for b in range(a + 1, q):
                t = A[a * K + b]
                for j in range(b, K):
                    A[b * K + j] -= t * A[a * K + j]
            for j in range(q, K):
                t = A[a * K + j]
                for l in range(j, K):
                    left[(j - q) * c + l - q] -= t * A[a * K + l]
        for a in range(q):
            for j in range(K):
                R[a * K + j] = A[a * K + j] if j >= q else 0.0
            for b in range(a, q):
                t = A[a * K + b]
                for j in range(b, K):
                    R[a * K + j] += t * self.lead[i, b, j]

    cdef inline void derived(self, Py_ssize_t q, Py_ssize_t i, const double[:, :, ::1] weights, double* first,
                             double* second) noexcept nogil:
        """First rows of the derivatives of A_i: of [T C; 0 I]'D[T C; 0 I] (q, K), D sums over the gaps by weights."""
        cdef Py_ssize_t a, b, j, p, g, d, K = self.K
        cdef double* D = &self.work[0]
        cdef double* E = D + q * K
        cdef double* out
        cdef double t
        for d in range(1, 3):
            out = first if d == 1 else second
            memset(D, 0, q * K * sizeof(double))
            for p in range(self.begin[i], self.begin[i + 1]):
                g = self.which[p]
                add_weighted(q * K, weights[d, 0, g], &self.apart[p, 0, 0], weights[d, 1, g], &self.along[p, 0, 0], D)
            filled(q, K, D)
            for a in range(q):
                for j in range(K):
                    E[a * K + j] = D[a * K + j] if j >= q else 0.0
                for b in range(q):
                    t = D[a * K + b]
                    for j in range(b, K):
                        E[a * K + j] += t * self.lead[i, b, j]
            memset(out, 0, q * K * sizeof(double))
            for b in range(q):
                for a in range(b, q):
                    t = self.lead[i, b, a]
                    for j in range(K):
                        out[a * K + j] += t * E[b * K + j]
