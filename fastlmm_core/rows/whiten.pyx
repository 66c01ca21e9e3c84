# cython: language_level=3
"""Rows multiplied by the inverse of V_i or of its Cholesky factor, without forming V_i.

For rows t of a group in the order in which they stand, the t-th element of chol(V_i)^-1 r_i is the
prediction error of r_t from the rows before it, divided by its standard deviation (Harvey 1989,
Forecasting, sec. 3.4).  Each group carries the mean b (q) and covariance P (q x q) of its
random effects given the rows seen so far: O(n q^2) in all, rows in any order.

V_i^-1 v itself is W (v - Z u), u the mean of the random effects given v: no order of the rows is needed.
"""
from libc.math cimport sqrt
from libc.stdint cimport int64_t

import numpy as np

from fastlmm_core.small.conditional cimport conditional_covariance


def whiten_residuals(const double[::1] residual, const double[:, :] Z, const int64_t[::1] index, Py_ssize_t n_groups,
                     const double[:, ::1] G, const double[:] weights):
    """chol(I / w + Z G Z')^-1 residual, group by group.

    Parameters
    ----------
    residual : (n,) array
    Z : (n, q) array
    index : (n,) array
        Group of each row, 0 <= index < n_groups.
    G : (q, q) array
        Relative covariance.
    weights : (n,) array or None

    Returns
    -------
    (n,) array
    """
    cdef Py_ssize_t n = residual.shape[0], q = Z.shape[1], i, a, b
    cdef double f, innovation
    out_array = np.empty(n)
    mean_array = np.zeros((n_groups, q))
    cov_array = np.tile(np.asarray(G), (n_groups, 1, 1))
    gain_array = np.empty(q)
    cdef double[::1] out = out_array, gain = gain_array
    cdef double[:, ::1] mean = mean_array
    cdef double[:, :, ::1] P = cov_array
    cdef int64_t g
    with nogil:
        for i in range(n):
            g = index[i]
            f = 1.0 if weights is None else 1.0 / weights[i]
            innovation = residual[i]
            for a in range(q):
                gain[a] = 0.0
                for b in range(q):
                    gain[a] += P[g, a, b] * Z[i, b]
                innovation -= Z[i, a] * mean[g, a]
                f += Z[i, a] * gain[a]
            out[i] = innovation / sqrt(f)
            for a in range(q):
                mean[g, a] += gain[a] * innovation / f
                for b in range(q):
                    P[g, a, b] -= gain[a] * gain[b] / f
    return out_array


def solve_groups(const double[:, ::1] v, const double[:, :] Z, const int64_t[::1] index, Py_ssize_t n_groups,
                 const double[:, ::1] factor, const double[:] weights):
    """(I / w + Z L L'Z')^-1 v, group by group.

    Parameters
    ----------
    v : (n, k) array
    Z : (n, q) array
    index : (n,) array
        Group of each row, 0 <= index < n_groups.
    factor : (q, q) array
        L.
    weights : (n,) array or None

    Returns
    -------
    (n, k) array
    """
    cdef Py_ssize_t n = v.shape[0], k = v.shape[1], q = Z.shape[1], i, a, b, j
    cdef double w, t
    cdef int64_t g
    out_array = np.empty((n, k))
    cdef double[:, ::1] out = out_array
    cdef double[:, :, ::1] A = np.zeros((n_groups, q, q)), C = np.zeros((n_groups, q, k))
    cdef double[::1] M = np.empty(q * q), work = np.empty(2 * q * q), u = np.empty(q)
    if n == 0 or k == 0 or q == 0:
        return np.asarray(v) * (1.0 if weights is None else np.asarray(weights)[:, None])
    with nogil:
        for i in range(n):
            g = index[i]
            w = 1.0 if weights is None else weights[i]
            for a in range(q):
                for b in range(q):
                    A[g, a, b] += w * Z[i, a] * Z[i, b]
                for j in range(k):
                    C[g, a, j] += w * Z[i, a] * v[i, j]
        for i in range(n_groups):
            conditional_covariance(q, &A[i, 0, 0], &factor[0, 0], &M[0], &work[0])
            for j in range(k):
                for a in range(q):
                    u[a] = C[i, a, j]
                for a in range(q):
                    t = 0.0
                    for b in range(q):
                        t += M[a * q + b] * u[b]
                    C[i, a, j] = t
        for i in range(n):
            g = index[i]
            w = 1.0 if weights is None else weights[i]
            for j in range(k):
                t = v[i, j]
                for a in range(q):
                    t -= Z[i, a] * C[g, a, j]
                out[i, j] = w * t
    return out_array
