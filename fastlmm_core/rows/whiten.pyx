# cython: language_level=3
"""Residuals multiplied by the inverse Cholesky factor of V_i, without forming V_i.

For rows t of a group in the order in which they stand, the t-th element of chol(V_i)^-1 r_i is the
prediction error of r_t from the rows before it, divided by its standard deviation (Harvey 1989,
Forecasting, sec. 3.4).  Each group carries the mean b (q) and covariance P (q x q) of its
random effects given the rows seen so far: O(n q^2) in all, rows in any order.
"""
from libc.math cimport sqrt
from libc.stdint cimport int64_t

import numpy as np


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
