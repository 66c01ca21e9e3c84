# Cholesky's factor of a small matrix, in plain loops: up to some twenty rows they beat LAPACK.
from libc.math cimport sqrt


cdef inline bint cholesky(Py_ssize_t n, double* A, double least) noexcept nogil:
    """The lower triangle of A (n, n) <- L with L L' = A; False where a pivot is no more than a share
    of its variance."""
    cdef Py_ssize_t i, j, l
    cdef double t
    for i in range(n):
        for j in range(i):
            t = A[i * n + j]
            for l in range(j):
                t -= A[i * n + l] * A[j * n + l]
            A[i * n + j] = t / A[j * n + j]
        t = A[i * n + i]
        for l in range(i):
            t -= A[i * n + l] * A[i * n + l]
        if not t > least * A[i * n + i]:
            return False
        A[i * n + i] = sqrt(t)
    return True
