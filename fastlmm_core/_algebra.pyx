# cython: language_level=3
"""Algebra of matrices of a few rows, where a call of LAPACK costs more than the arithmetic."""
from libc.math cimport fabs, log, sqrt

import numpy as np


cdef void jacobi(Py_ssize_t n, double* A, double* Q, double* w) noexcept nogil:
    """Eigenvalues w and eigenvectors (columns of Q) of the symmetric A, which is overwritten.

    Cyclic Jacobi: accurate for small eigenvalues, and faster than a call of LAPACK for a handful of parameters.
    """
    cdef Py_ssize_t sweep, i, j, l
    cdef double off, total, theta, t, c, s, x, y
    for i in range(n):
        for j in range(n):
            Q[i * n + j] = 1.0 if i == j else 0.0
    for sweep in range(60):
        off = 0.0
        total = 0.0
        for i in range(n):
            total += A[i * n + i] * A[i * n + i]
            for j in range(i):
                off += A[i * n + j] * A[i * n + j]
        if not off > 1e-32 * total:
            break
        for i in range(n):
            for j in range(i + 1, n):
                if A[i * n + j] == 0.0:
                    continue
                theta = (A[j * n + j] - A[i * n + i]) / (2.0 * A[i * n + j])
                t = 1.0 / (fabs(theta) + sqrt(theta * theta + 1.0))
                if theta < 0.0:
                    t = -t
                c = 1.0 / sqrt(t * t + 1.0)
                s = t * c
                for l in range(n):
                    x = A[l * n + i]
                    y = A[l * n + j]
                    A[l * n + i] = c * x - s * y
                    A[l * n + j] = s * x + c * y
                for l in range(n):
                    x = A[i * n + l]
                    y = A[j * n + l]
                    A[i * n + l] = c * x - s * y
                    A[j * n + l] = s * x + c * y
                    x = Q[l * n + i]
                    y = Q[l * n + j]
                    Q[l * n + i] = c * x - s * y
                    Q[l * n + j] = s * x + c * y
    for i in range(n):
        w[i] = A[i * n + i]


def eigen(const double[:, :] matrix):
    """Eigenvalues (n,) and eigenvectors (columns of an (n, n) array) of a symmetric matrix, in no order."""
    cdef Py_ssize_t n = matrix.shape[0]
    work_array = np.array(matrix, dtype=float, order="C")
    vectors_array = np.empty((n, n))
    values_array = np.empty(n)
    cdef double[:, ::1] work = work_array, vectors = vectors_array
    cdef double[::1] values = values_array
    with nogil:
        jacobi(n, &work[0, 0], &vectors[0, 0], &values[0])
    return values_array, vectors_array


def unpack(const double[::1] packed, Py_ssize_t k):
    """Symmetric (k, k) array from its lower triangle by rows."""
    out_array = np.empty((k, k))
    cdef double[:, ::1] out = out_array
    cdef Py_ssize_t i, j, pos = 0
    for i in range(k):
        for j in range(i + 1):
            out[i, j] = packed[pos]
            out[j, i] = packed[pos]
            pos += 1
    return out_array


def orthonormal(const double[:, :] gram):
    """Upper triangular T with T' gram T = I.

    Returns
    -------
    T : (k, k) array
        The identity where gram is not positive definite.
    margin : float
        Smallest 1 - R^2 of a column on those before it; 0 where gram is not positive definite.
    """
    cdef Py_ssize_t k = gram.shape[0], i, j, l
    cdef double t, margin = 1.0
    lower_array = np.zeros((k, k))
    out_array = np.zeros((k, k))
    cdef double[:, ::1] L = lower_array, T = out_array
    for j in range(k):
        for i in range(j, k):
            t = gram[i, j]
            for l in range(j):
                t -= L[i, l] * L[j, l]
            if i == j:
                if not (gram[j, j] > 0.0 and t > 0.0):
                    return np.eye(k), 0.0
                margin = min(margin, t / gram[j, j])
                L[j, j] = sqrt(t)
            else:
                L[i, j] = t / L[j, j]
    # T = L^-T
    for j in range(k):
        T[j, j] = 1.0 / L[j, j]
        for i in range(j + 1, k):
            t = 0.0
            for l in range(j, i):
                t += L[i, l] * T[j, l]
            T[j, i] = -t / L[i, i]
    return out_array, margin


def regression(const double[:, ::1] S, const double[:, ::1] T):
    """Least squares of the last column of a cross-product matrix on the others.

    Parameters
    ----------
    S : (k, k) array
    T : (k - 1, k - 1) upper triangular array
        T'S_xx T = I.

    Returns
    -------
    beta : (k - 1,) array
    rest : float
        Residual sum of squares, as the quadratic form at beta.
    """
    cdef Py_ssize_t p = T.shape[0], i, j
    cdef double t, rest
    beta_array = np.zeros(p)
    cdef double[::1] beta = beta_array
    for j in range(p):
        t = 0.0
        for i in range(j + 1):
            t += T[i, j] * S[i, p]
        for i in range(j + 1):
            beta[i] += T[i, j] * t
    rest = S[p, p]
    for i in range(p):
        t = -2.0 * S[i, p]
        for j in range(p):
            t += S[i, j] * beta[j]
        rest += beta[i] * t
    return beta_array, rest


def scale_map(const double[:, ::1] shift_scale, Py_ssize_t constant):
    """M with (columns - shift) * scale = columns M, where column `constant` becomes 1 (-1: no shifts)."""
    cdef Py_ssize_t k = shift_scale.shape[1], j
    out_array = np.zeros((k, k))
    cdef double[:, ::1] out = out_array
    for j in range(k):
        out[j, j] = shift_scale[1, j]
        if constant >= 0 and j != constant:
            out[constant, j] = -shift_scale[0, j] * shift_scale[1, j] * shift_scale[1, constant]
    return out_array


def log_diagonal(const double[:, :] matrix):
    """Sum of the logarithms of the absolute diagonal."""
    cdef Py_ssize_t i
    cdef double total = 0.0
    for i in range(matrix.shape[0]):
        total += log(fabs(matrix[i, i]))
    return total


def within_part(const double[:, ::1] S, const double[:, ::1] T, const double[::1] between):
    """T'S T less `between`, packed by rows; T is upper triangular."""
    cdef Py_ssize_t k = S.shape[0], i, j, l, pos = 0
    cdef double t
    half_array = np.zeros((k, k))
    out_array = np.empty(k * (k + 1) // 2)
    cdef double[:, ::1] half = half_array
    cdef double[::1] out = out_array
    for i in range(k):
        for j in range(k):
            t = 0.0
            for l in range(j + 1):
                t += S[i, l] * T[l, j]
            half[i, j] = t
    for i in range(k):
        for j in range(i + 1):
            t = 0.0
            for l in range(i + 1):
                t += T[l, i] * half[l, j]
            out[pos] = t - between[pos]
            pos += 1
    return out_array


def within_regression(const double[::1] packed, Py_ssize_t k, double exact):
    """Regression of the last column of [X y] on the others within groups.

    Parameters
    ----------
    packed : (k(k+1)/2,) array
        Cross-products within groups, lower triangle by rows.
    exact : float
        Columns whose diagonal (or pivot) is at most this are left out.

    Returns
    -------
    slope : (k - 1,) array
    unexplained : float
        Sum of squares that it leaves.
    """
    cdef Py_ssize_t p = k - 1, i, j, l
    cdef double t
    slope_array = np.zeros(p)
    chol_array = np.zeros((k, k))
    cdef double[::1] slope = slope_array
    cdef double[:, ::1] L = chol_array
    for i in range(k):
        for j in range(i + 1):
            t = packed[i * (i + 1) // 2 + j]
            for l in range(j):
                t -= L[i, l] * L[j, l]
            if j < i:
                L[i, j] = t / L[j, j] if L[j, j] > 0.0 else 0.0
            elif i < p:
                L[i, i] = sqrt(t) if t > exact else 0.0
            else:
                L[p, p] = t
    for i in range(p - 1, -1, -1):
        t = L[p, i]
        for l in range(i + 1, p):
            t -= L[l, i] * slope[l]
        slope[i] = t / L[i, i] if L[i, i] > 0.0 else 0.0
    return slope_array, L[p, p]


def clear_exact(double[::1] packed, Py_ssize_t k, double last, double exact):
    """Set rows and columns to zero whose diagonal is at most `exact` (times `last` for the last): in place.

    Returns
    -------
    bool
        Whether the last one is among them.
    """
    cdef Py_ssize_t i, j
    cdef bint found = False
    for i in range(k):
        if packed[i * (i + 1) // 2 + i] <= exact * (last if i == k - 1 else 1.0):
            found = i == k - 1
            for j in range(k):
                packed[i * (i + 1) // 2 + j if i >= j else j * (j + 1) // 2 + i] = 0.0
    return found


def orthogonal_columns(const double[:, :] F):
    """F V with orthogonal columns for some orthogonal V: left singular vectors times singular values.

    One-sided Jacobi: small singular values keep their relative accuracy.
    """
    out_array = np.array(F, dtype=float, order="C")
    cdef double[:, ::1] A = out_array
    cdef Py_ssize_t m = A.shape[0], n = A.shape[1], sweep, i, j, l
    cdef double a, b, c, zeta, t, cs, sn, x
    cdef bint rotated
    for sweep in range(60):
        rotated = False
        for i in range(n):
            for j in range(i + 1, n):
                a = 0.0
                b = 0.0
                c = 0.0
                for l in range(m):
                    a += A[l, i] * A[l, i]
                    b += A[l, j] * A[l, j]
                    c += A[l, i] * A[l, j]
                if fabs(c) <= 1e-16 * sqrt(a * b) or c == 0.0:
                    continue
                rotated = True
                zeta = (b - a) / (2.0 * c)
                t = 1.0 / (fabs(zeta) + sqrt(1.0 + zeta * zeta))
                if zeta < 0.0:
                    t = -t
                cs = 1.0 / sqrt(1.0 + t * t)
                sn = cs * t
                for l in range(m):
                    x = A[l, i]
                    A[l, i] = cs * x - sn * A[l, j]
                    A[l, j] = sn * x + cs * A[l, j]
        if not rotated:
            break
    return out_array


def lower_factor(const double[:, :] F):
    """Lower triangular L with non-negative diagonal and L L' = F F'; where that is zero, so is the column.

    Rotations of the columns of F itself: a singular F F' needs no care.

    Parameters
    ----------
    F : (q, r) array

    Returns
    -------
    (q, q) array
    """
    work = np.array(F, dtype=float, order="C")
    cdef double[:, ::1] A = work
    cdef Py_ssize_t q = A.shape[0], r = A.shape[1], i, j, l, c = 0
    cdef double h, cosine, sine, x
    out_array = np.zeros((q, q))
    cdef double[:, ::1] L = out_array
    # column c holds what is left of the columns; a row without a pivot leaves its column of L zero
    for i in range(q):
        if c == r:
            break
        for j in range(c + 1, r):
            if A[i, j] == 0.0:
                continue
            h = sqrt(A[i, c] * A[i, c] + A[i, j] * A[i, j])
            cosine = A[i, c] / h
            sine = A[i, j] / h
            for l in range(i, q):
                x = A[l, c]
                A[l, c] = cosine * x + sine * A[l, j]
                A[l, j] = cosine * A[l, j] - sine * x
        if A[i, c] == 0.0:
            continue
        x = -1.0 if A[i, c] < 0.0 else 1.0
        for l in range(i, q):
            L[l, i] = x * A[l, c]
        c += 1
    return out_array


def floored_factor(const double[:, :] matrix, double floor):
    """Lower triangular L of a symmetric matrix whose eigenvalues below `floor` are raised to it.

    Parameters
    ----------
    matrix : (q, q) array
    floor : float
        Not negative.

    Returns
    -------
    (q, q) array
    """
    cdef Py_ssize_t q = matrix.shape[0], i, j
    values_array, vectors_array = eigen(matrix)
    cdef double[:, ::1] vectors = vectors_array
    cdef double[::1] values = values_array
    cdef double root
    for j in range(q):
        root = sqrt(values[j] if values[j] > floor else floor)
        for i in range(q):
            vectors[i, j] *= root
    return lower_factor(vectors_array)
