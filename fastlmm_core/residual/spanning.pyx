# cython: language_level=3
"""Fewer rows with the same sums of products: those of a triangular factor of which only the first rows count.

Gram and Schmidt's method as it was modified, with the longest remaining column first (Björck 1996, Numerical Methods
for Least Squares Problems, sec. 2.4): rows = Q R + E after each step, where R'R + E'E = rows'rows to rounding however
far from orthogonal Q has become, and nothing is left of E where the columns have no more dimensions.

Shapes: rows (N, K); R (most, K).
"""
from libc.math cimport sqrt
from libc.string cimport memcpy

import numpy as np

from fastlmm_core.residual.loops cimport rooted_rows


def spanning_rows(double[:, ::1] rest, Py_ssize_t most, double negligible):
    """R of up to `most` rows with R'R = rest'rest to `negligible`; None where more are needed.

    Parameters
    ----------
    rest : (N, K) array
        Columns of length 1, or 0; overwritten.
    most : int
    negligible : float
        Length of a column that counts as nothing.

    Returns
    -------
    (d, K) array or None
    """
    cdef Py_ssize_t N = rest.shape[0], K = rest.shape[1], step, i, j, longest = 0, found = -1
    cdef double t, q, size
    out_array = np.empty((max(most, 0), K))
    lengths_array = np.zeros(K)
    cdef double[:, ::1] out = out_array
    cdef double[::1] lengths = lengths_array
    if N == 0 or K == 0:
        return out_array[:0]
    with nogil:
        for i in range(N):
            for j in range(K):
                lengths[j] += rest[i, j] * rest[i, j]
        for step in range(most):
            longest = 0
            for j in range(1, K):
                if lengths[j] > lengths[longest]:
                    longest = j
            size = sqrt(lengths[longest])
            if size <= negligible:
                found = step
                break
            for j in range(K):
                out[step, j] = 0.0
            for i in range(N):
                q = rest[i, longest] / size
                for j in range(K):
                    out[step, j] += q * rest[i, j]
            for j in range(K):
                lengths[j] = 0.0
            for i in range(N):
                q = rest[i, longest] / size
                for j in range(K):
                    t = rest[i, j] - q * out[step, j]
                    rest[i, j] = t
                    lengths[j] += t * t
    return None if found < 0 else out_array[:found].copy()


def split_patterns(patterns, double negligible):
    """Rows of patterns of visits by those that X spans, and what is left of y.

    Parameters
    ----------
    patterns : records.VisitPatterns
    negligible : float
        Length of a column of X, of length 1, that counts as nothing.

    Returns
    -------
    rows : array
        Of [R_k T_k] by pattern, with as many rows as X has dimensions there; those given where these are not fewer.
    members : (n_patterns,) intp array
        Rows of each pattern.
    outside : array
        G_k (n_k, n_k) by pattern, G G' the sum of what is left of y y'.
    """
    cdef const double[::1] given = patterns.rows
    cdef const Py_ssize_t[::1] size = patterns.size, members = patterns.members
    cdef Py_ssize_t c = patterns.columns, r = c - 1, k, n, N, i, j, a, d, step, longest, at = 0, to = 0, square = 0
    cdef Py_ssize_t most = 1, widest = 1, squares = 0
    cdef double length
    for k in range(size.shape[0]):
        most, widest = max(most, members[k] * size[k] * c), max(widest, size[k] * c)
        squares += size[k] * size[k]
    rows_array, outside_array = np.empty(max(given.shape[0], 1)), np.zeros(max(squares, 1))
    kept_array = np.zeros(size.shape[0], dtype=np.intp)
    cdef double[::1] rows = rows_array, outside = outside_array
    cdef Py_ssize_t[::1] kept = kept_array
    cdef double[::1] X = np.empty(most), Y = np.empty(most), scale = np.empty(widest), lengths = np.empty(widest)
    cdef double[::1] line = np.empty(widest)
    with nogil:
        for k in range(size.shape[0]):
            n, N = size[k], members[k]
            take_apart(n, N, c, &given[at] if n * N * c > 0 else NULL, &X[0], &Y[0], &scale[0], &lengths[0])
            d = N
            for step in range(N):
                longest = 0
                for j in range(1, n * r):
                    if lengths[j] > lengths[longest]:
                        longest = j
                length = sqrt(lengths[longest]) if n * r > 0 else 0.0
                if length <= negligible:
                    d = step
                    break
                step_of(n * r, N, n, &X[0], &Y[0], longest, &lengths[0], &line[0])
                # in the place of the rows given, of which there are no fewer
                for a in range(n):
                    for j in range(r):
                        rows[to + (a * N + step) * c + j] = line[a * r + j] * scale[a * r + j]
                    rows[to + (a * N + step) * c + r] = line[n * r + a]
            if d < N:
                rooted_rows(n, N, &Y[0], &outside[square])
                for a in range(1, n):
                    for i in range(d * c):
                        rows[to + a * d * c + i] = rows[to + a * N * c + i]
            elif n * N * c > 0:
                memcpy(&rows[to], &given[at], n * N * c * sizeof(double))
            kept[k] = d
            at += n * N * c
            to += n * d * c
            square += n * n
    return rows_array[:to].copy(), kept_array, outside_array[:squares]


cdef void take_apart(Py_ssize_t n, Py_ssize_t N, Py_ssize_t c, const double* given, double* X, double* Y, double* scale,
                     double* lengths) noexcept nogil:
    """Rows (n, N, c) to X (N, n r), its columns of length 1, and Y (n, N); lengths are squared."""
    cdef Py_ssize_t a, i, j, r = c - 1, wide = n * r
    cdef double t
    for j in range(wide):
        scale[j] = 0.0
    for a in range(n):
        for i in range(N):
            for j in range(r):
                t = given[(a * N + i) * c + j]
                X[i * wide + a * r + j] = t
                scale[a * r + j] += t * t
            Y[a * N + i] = given[(a * N + i) * c + r]
    for j in range(wide):
        lengths[j] = 1.0 if scale[j] > 0.0 else 0.0
        scale[j] = sqrt(scale[j]) if scale[j] > 0.0 else 1.0
    for i in range(N):
        for j in range(wide):
            X[i * wide + j] /= scale[j]


cdef void step_of(Py_ssize_t wide, Py_ssize_t N, Py_ssize_t n, double* X, double* Y, Py_ssize_t longest,
                  double* lengths, double* line) noexcept nogil:
    """Take the direction of a column of X out of X (N, wide) and Y (n, N); what both have of it, and new lengths."""
    cdef Py_ssize_t i, j, a
    cdef double q, t, length = sqrt(lengths[longest])
    for j in range(wide + n):
        line[j] = 0.0
    for i in range(N):
        q = X[i * wide + longest] / length
        for j in range(wide):
            line[j] += q * X[i * wide + j]
        for a in range(n):
            line[wide + a] += q * Y[a * N + i]
    for j in range(wide):
        lengths[j] = 0.0
    for i in range(N):
        q = X[i * wide + longest] / length
        for a in range(n):
            Y[a * N + i] -= q * line[wide + a]
        for j in range(wide):
            t = X[i * wide + j] - q * line[j]
            X[i * wide + j] = t
            lengths[j] += t * t
