# cython: language_level=3
"""Correlations by lag from partial autocorrelations, with derivatives: Durbin and Levinson's recursion.

For k = 1, ..., K, with f_{k,k} = pi_k and v_0 = 1,

    r_k = pi_k v_{k-1} + sum_j f_{k-1,j} r_{k-j},    f_kj = f_{k-1,j} - pi_k f_{k-1,k-j},    v_k = v_{k-1} (1 - pi_k^2)

and each line is differentiated twice.  Only pi_1, ..., pi_k enter at step k, so that derivatives end there.

Shapes: lag last; derivatives in pi_a first, (K, K + 1), and in pi_a and pi_b, (K, K, K + 1), both triangles.
"""
import numpy as np


def lag_correlations(const double[::1] pi, int order):
    """r (K + 1,) and its derivatives in pi up to an order.

    Parameters
    ----------
    pi : (K,) array
    order : {0, 1, 2}

    Returns
    -------
    tuple of arrays
        Of shapes (K + 1,), (K, K + 1), (K, K, K + 1).
    """
    cdef Py_ssize_t K = pi.shape[0], k, a, b, j, p, M = max(K, 1)
    cdef double t, x, rest
    made = [np.zeros((M,) * d + (K + 1,)) for d in range(3)]
    cdef double[::1] r = made[0], f = np.zeros(K + 2), g = np.zeros(K + 2), v1 = np.zeros(M)
    cdef double[:, ::1] r1 = made[1], f1 = np.zeros((M, K + 2)), v2 = np.zeros((M, M))
    cdef double[:, :, ::1] r2 = made[2], f2 = np.zeros((M, M, K + 2))
    cdef double v = 1.0
    r[0] = 1.0
    with nogil:
        for k in range(1, K + 1):
            p, x = k - 1, pi[k - 1]
            rest = 1.0 - x * x
            t = x * v
            for j in range(1, k):
                t += f[j] * r[k - j]
            r[k] = t
            for a in range(k if order > 0 else 0):
                t = x * v1[a] + (v if a == p else 0.0)
                for j in range(1, k):
                    t += f1[a, j] * r[k - j] + f[j] * r1[a, k - j]
                r1[a, k] = t
            # second derivatives at a step are made of the first ones before it
            for a in range(k if order > 1 else 0):
                for b in range(a + 1):
                    t = x * v2[a, b] + (v1[b] if a == p else 0.0) + (v1[a] if b == p else 0.0)
                    for j in range(1, k):
                        t += (f2[a, b, j] * r[k - j] + f[j] * r2[a, b, k - j] + f1[a, j] * r1[b, k - j]
                              + f1[b, j] * r1[a, k - j])
                    r2[a, b, k] = r2[b, a, k] = t
                    turned(k, x, &f2[a, b, 0], &f1[b, 0] if a == p else NULL, &f1[a, 0] if b == p else NULL, &g[0])
                    v2[a, b] = (v2[a, b] * rest - (2.0 * x * v1[b] if a == p else 0.0)
                                - (2.0 * x * v1[a] + 2.0 * v if b == p else 0.0))
            for a in range(k if order > 0 else 0):
                turned(k, x, &f1[a, 0], &f[0] if a == p else NULL, NULL, &g[0])
                v1[a] = v1[a] * rest - (2.0 * x * v if a == p else 0.0)
            if order > 0:
                f1[p, k] = 1.0
            turned(k, x, &f[0], NULL, NULL, &g[0])
            f[k] = x
            v *= rest
    return tuple(one[(slice(K),) * d] for d, one in enumerate(made[:order + 1]))


cdef void turned(Py_ssize_t k, double x, double* f, const double* one, const double* other, double* g) noexcept nogil:
    """f_j <- f_j - x f_{k-j} [- one_{k-j}] [- other_{k-j}] for j = 1, ..., k - 1."""
    cdef Py_ssize_t j
    for j in range(1, k):
        g[j] = f[j] - x * f[k - j]
        if one != NULL:
            g[j] -= one[k - j]
        if other != NULL:
            g[j] -= other[k - j]
    for j in range(1, k):
        f[j] = g[j]
