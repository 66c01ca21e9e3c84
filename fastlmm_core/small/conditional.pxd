# The random effects of one level given its rows: products and inverses of q x q matrices, row by row.
#
# gives  multiply, conditional_covariance
from libc.math cimport sqrt

cdef inline void multiply(Py_ssize_t n, Py_ssize_t m, Py_ssize_t l, const double* A, const double* B, double* out
                          ) noexcept nogil:
    """out (n, l) = A (n, m) B (m, l)."""
    cdef Py_ssize_t i, j, r
    cdef double t
    for i in range(n):
        for j in range(l):
            out[i * l + j] = 0.0
        for r in range(m):
            t = A[i * m + r]
            for j in range(l):
                out[i * l + j] += t * B[r * l + j]


cdef inline double conditional_covariance(Py_ssize_t q, const double* K, const double* L, double* M, double* work
                                          ) noexcept nogil:
    """M = L W^-1 L', W = I + L'KL; returns |W|, not positive where K is not positive semidefinite.

    work : 2 q^2
    """
    cdef Py_ssize_t i, j, r
    cdef double t, det = 1.0
    cdef double* W = work
    cdef double* Y = work + q * q
    multiply(q, q, q, K, L, Y)
    for i in range(q):
        for j in range(i + 1):
            t = 1.0 if i == j else 0.0
            for r in range(q):
                t += L[r * q + i] * Y[r * q + j]
            W[i * q + j] = t
    for i in range(q):
        for j in range(q):
            Y[i * q + j] = L[j * q + i]
    for i in range(q):
        t = W[i * q + i]
        if not t > 0.0:
            return -1.0
        det *= t
        t = 1.0 / sqrt(t)
        for j in range(q):
            Y[i * q + j] *= t
        for j in range(i + 1, q):
            W[j * q + i] *= t
        for j in range(i + 1, q):
            t = W[j * q + i]
            for r in range(i + 1, j + 1):
                W[j * q + r] -= t * W[r * q + i]
            for r in range(q):
                Y[j * q + r] -= t * Y[i * q + r]
    for i in range(q):
        for j in range(i + 1):
            t = 0.0
            for r in range(q):
                t += Y[r * q + i] * Y[r * q + j]
            M[i * q + j] = t
            M[j * q + i] = t
    return det
