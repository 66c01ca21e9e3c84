# cython: language_level=3
"""Fewer rows with the same sums of products: those of a triangular factor of which only the first rows count.

Gram and Schmidt's method as it was modified, with the longest remaining column first (Björck 1996, Numerical Methods
for Least Squares Problems, sec. 2.4): rows = Q R + E after each step, where R'R + E'E = rows'rows to rounding however
far from orthogonal Q has become, and nothing is left of E where the columns have no more dimensions.

Shapes: rows (N, K); R (most, K).
"""
from libc.math cimport sqrt

import numpy as np


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
