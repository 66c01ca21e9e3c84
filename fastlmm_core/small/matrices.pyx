# cython: language_level=3
"""Algebra of matrices of a few rows, where a call of LAPACK costs more than the arithmetic.

What may have as many columns as X has goes to kernels/dense.py from MANY columns on.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport fabs, log, sqrt, INFINITY
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import numpy as np

from fastlmm_core.small.cholesky cimport cholesky

MANY = 64
"""Columns from which BLAS and LAPACK do better than plain loops."""

cdef Py_ssize_t MANY_ = MANY


cdef object by_blas():
    """The module of these functions for many columns, which loads scipy's BLAS."""
    from fastlmm_core.kernels import dense

    return dense


cdef void* place(object array) except NULL:
    """Where the numbers of a contiguous array are: a typed view takes longer than the algebra of a few of them."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    PyBuffer_Release(&view)
    return view.buf


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
                # what is zero, or follows, is set: computed like the rest it would keep the rounding errors of the
                # larger element of the diagonal, and the sweeps would not end
                t *= A[i * n + j]
                x = A[i * n + i] - t
                y = A[j * n + j] + t
                for l in range(n):
                    t = A[l * n + i]
                    theta = A[l * n + j]
                    A[l * n + i] = A[i * n + l] = c * t - s * theta
                    A[l * n + j] = A[j * n + l] = s * t + c * theta
                    t = Q[l * n + i]
                    theta = Q[l * n + j]
                    Q[l * n + i] = c * t - s * theta
                    Q[l * n + j] = s * t + c * theta
                A[i * n + i] = x
                A[j * n + j] = y
                A[i * n + j] = A[j * n + i] = 0.0
    for i in range(n):
        w[i] = A[i * n + i]


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


cdef double triangle(Py_ssize_t k, const double* gram, Py_ssize_t row, Py_ssize_t column, double* L,
                     double* T) noexcept nogil:
    """Upper triangular T with T' gram T = I, the identity where gram is not positive definite; see `orthonormal`.

    row, column: strides of gram in elements; L: work space (k, k).  Returns the margin.
    """
    cdef Py_ssize_t i, j, l
    cdef double t, diagonal, margin = 1.0
    memset(T, 0, k * k * sizeof(double))
    for j in range(k):
        for i in range(j, k):
            t = gram[i * row + j * column]
            for l in range(j):
                t -= L[i * k + l] * L[j * k + l]
            if i == j:
                diagonal = gram[j * (row + column)]
                if not (diagonal > 0.0 and t > 0.0):
                    for l in range(k):
                        T[l * k + l] = 1.0
                    return 0.0
                margin = min(margin, t / diagonal)
                L[j * k + j] = sqrt(t)
            else:
                L[i * k + j] = t / L[j * k + j]
    # T = L^-T
    for j in range(k):
        T[j * k + j] = 1.0 / L[j * k + j]
        for i in range(j + 1, k):
            t = 0.0
            for l in range(j, i):
                t += L[i * k + l] * T[j * k + l]
            T[j * k + i] = -t / L[i * k + i]
    return margin


cdef double* doubles(Py_ssize_t n) except NULL:
    """Work space, to be freed."""
    cdef double* out = <double*> malloc((n if n > 0 else 1) * sizeof(double))
    if out == NULL:
        raise MemoryError()
    return out


def orthonormal(const double[:, :] gram):
    """Upper triangular T with T' gram T = I.

    Returns
    -------
    T : (k, k) array
        The identity where gram is not positive definite.
    margin : float
        Smallest 1 - R^2 of a column on those before it; 0 where gram is not positive definite.
    """
    cdef Py_ssize_t k = gram.shape[0]
    cdef double margin
    out_array = np.empty((k, k))
    if k == 0:
        return out_array, 1.0
    if k >= MANY_:
        return by_blas().triangle(np.asarray(gram))
    cdef double[:, ::1] T = out_array
    cdef double* L = doubles(k * k)
    margin = triangle(k, &gram[0, 0], gram.strides[0] // 8, gram.strides[1] // 8, L, &T[0, 0])
    free(L)
    return out_array, margin


def rotation(const double[::1] packed, Py_ssize_t k, double size):
    """Upper triangular T with T' gram T = size I, and the margin, as `orthonormal` of a packed lower triangle."""
    cdef Py_ssize_t i, j, pos = 0
    cdef double margin, root = sqrt(size)
    out_array = np.empty((k, k))
    cdef double[:, ::1] out = out_array
    cdef double* T = &out[0, 0]
    cdef double* gram = doubles(2 * k * k)
    for i in range(k):
        for j in range(i + 1):
            gram[i * k + j] = packed[pos]
            pos += 1
    margin = triangle(k, gram, k, 1, gram + k * k, T)
    free(gram)
    for i in range(k * k):
        T[i] *= root
    return out_array, margin


include "regression.pxi"


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


def natural_map(const double[:, ::1] shift_scale, Py_ssize_t constant, const double[:, ::1] T, const double[::1] beta):
    """`scale_map` and what follows from it.

    Parameters
    ----------
    shift_scale : (2, k) array
    constant : int
    T : upper triangular (k, k) array
    beta : (k,) array or None

    Returns
    -------
    (k, k) array
        M T, M being the map of `scale_map`.
    coefficients : (k,) array or None
        M beta.
    log_det : float
        log|det M T|.
    """
    cdef Py_ssize_t k = shift_scale.shape[1]
    out_array = np.empty((k, k))
    beta_array = None
    cdef double[:, ::1] out = out_array
    cdef const double* given = NULL
    cdef double* b = NULL
    cdef double[::1] view
    if k == 0:
        return out_array, None if beta is None else np.empty(0), 0.0
    if beta is not None:
        beta_array = np.empty(k)
        view = beta_array
        given, b = &beta[0], &view[0]
    cdef double log_det = map_columns(k, &shift_scale[0, 0], constant, &T[0, 0], &out[0, 0], given, b)
    return out_array, beta_array, log_det


cdef double map_columns(Py_ssize_t k, const double* shift_scale, Py_ssize_t constant, const double* T, double* out,
                        const double* beta, double* b) noexcept nogil:
    """`natural_map` into out and b, which is NULL where beta is; the logarithm of the determinant."""
    cdef Py_ssize_t i, j
    cdef double log_det = 0.0, lean
    cdef const double* scale = shift_scale + k
    for i in range(k):
        log_det += log(fabs(scale[i])) + log(fabs(T[i * k + i]))
        for j in range(k):
            out[i * k + j] = scale[i] * T[i * k + j]
        if beta != NULL:
            b[i] = scale[i] * beta[i]
    # row `constant` of M holds the shifts
    for i in range(k if constant >= 0 else 0):
        if i == constant:
            continue
        lean = -shift_scale[i] * scale[i] * scale[constant]
        for j in range(k):
            out[constant * k + j] += lean * T[i * k + j]
        if beta != NULL:
            b[constant] += lean * beta[i]
    return log_det


def log_diagonal(const double[:, :] matrix):
    """Sum of the logarithms of the absolute diagonal."""
    cdef Py_ssize_t i
    cdef double total = 0.0
    for i in range(matrix.shape[0]):
        total += log(fabs(matrix[i, i]))
    return total


include "within.pxi"


include "factors.pxi"


def whitened_slopes(const double[:, ::1] chol, const double[::1] beta, double r2, const double[:, :, ::1] cross):
    """What the variance parameters do to the whitened coefficients.

    Parameters
    ----------
    chol : (r, r) lower triangular array
        L with L L' = X'V^-1X.
    beta : (r,) array
    r2 : float
    cross : (n_a, r + 1, r + 1) array
        Minus the derivatives of [X y]'V^-1[X y].

    Returns
    -------
    half : (r, r) lower triangular array
        L^-1.
    slopes : (n_a, r, r) array
        L^-1 cross_xx L^-T.
    shift : (n_a,) array
        -d log r^2: (-beta, 1)'cross(-beta, 1) / r^2.
    """
    cdef Py_ssize_t r = chol.shape[0], n_a = cross.shape[0], a, i, j, l
    cdef double t
    if r >= MANY_:
        return by_blas().whitened_slopes(np.asarray(chol), np.asarray(beta), r2, np.asarray(cross))
    half_array = np.zeros((r, r))
    slopes_array = np.empty((n_a, r, r))
    shift_array = np.empty(n_a)
    work_array = np.empty((r + 1, r + 1))
    cdef double[:, ::1] half = half_array, work = work_array
    cdef double[:, :, ::1] slopes = slopes_array
    cdef double[::1] shift = shift_array
    with nogil:
        for i in range(r):
            half[i, i] = 1.0 / chol[i, i]
            for j in range(i):
                t = 0.0
                for l in range(j, i):
                    t += chol[i, l] * half[l, j]
                half[i, j] = -t * half[i, i]
        for a in range(n_a):
            for i in range(r):
                for j in range(r):
                    t = 0.0
                    for l in range(i + 1):
                        t += half[i, l] * cross[a, l, j]
                    work[i, j] = t
            for i in range(r):
                for j in range(i + 1):
                    t = 0.0
                    for l in range(j + 1):
                        t += work[i, l] * half[j, l]
                    slopes[a, i, j] = t
                    slopes[a, j, i] = t
            t = cross[a, r, r]
            for i in range(r):
                t -= 2.0 * beta[i] * cross[a, i, r]
                for j in range(r):
                    t += beta[i] * beta[j] * cross[a, i, j]
            shift[a] = t / r2
    return half_array, slopes_array, shift_array


def positive_inverse(const double[:, ::1] matrix):
    """Inverse of a positive definite matrix, None for any other."""
    cdef Py_ssize_t n = matrix.shape[0], i, j, l
    cdef double t
    out_array = np.empty((n, n))
    lower_array = np.array(matrix)
    cdef double[:, ::1] out = out_array, lower = lower_array
    if n > 0 and not cholesky(n, &lower[0, 0], 0.0):
        return None
    with nogil:
        # in place of the factor its inverse, by rows
        for i in range(n):
            for j in range(i):
                t = 0.0
                for l in range(j, i):
                    t += lower[i, l] * out[l, j]
                out[i, j] = -t / lower[i, i]
            out[i, i] = 1.0 / lower[i, i]
        for i in range(n):
            for j in range(i + 1):
                t = 0.0
                for l in range(i, n):
                    t += out[l, i] * out[l, j]
                lower[i, j] = t
        for i in range(n):
            for j in range(i + 1):
                out[i, j] = lower[i, j]
                out[j, i] = lower[i, j]
    return out_array


def row_moments(const double[:, :] rows, const double[:, ::1] half, const double[:, :, ::1] slopes,
                const double[::1] shift, const double[:, ::1] inverse, double nu):
    """Relative variance a'a and degrees of freedom 1 / (1/nu + u'B u) of rows l of L, a = half l.

    u_k = a'slopes_k a / a'a - shift_k.

    Parameters
    ----------
    rows : (m, r) array
    half, slopes, shift
        See `whitened_slopes`.
    inverse : (n_a, n_a) array
        B.
    nu : float

    Returns
    -------
    variance, df : (m,) arrays
        NaN where a row is zero.
    """
    cdef Py_ssize_t m = rows.shape[0], r = half.shape[0], n_a = slopes.shape[0], a, b, i, j, l
    cdef double t, s, size
    if r >= MANY_:
        return by_blas().row_moments(
            np.asarray(rows), np.asarray(half), np.asarray(slopes), np.asarray(shift), np.asarray(inverse), nu)
    variance_array = np.empty(m)
    df_array = np.empty(m)
    work_array = np.empty(r + n_a)
    cdef double[::1] variance = variance_array, df = df_array, work = work_array
    with nogil:
        for i in range(m):
            size = 0.0
            for j in range(r):
                t = 0.0
                for l in range(j + 1):
                    t += half[j, l] * rows[i, l]
                work[j] = t
                size += t * t
            variance[i] = size
            for a in range(n_a):
                s = 0.0
                for j in range(r):
                    t = 0.0
                    for l in range(r):
                        t += slopes[a, j, l] * work[l]
                    s += t * work[j]
                work[r + a] = s / size - shift[a]
            s = 1.0 / nu
            for a in range(n_a):
                for b in range(n_a):
                    s += work[r + a] * inverse[a, b] * work[r + b]
            df[i] = 1.0 / s
    return variance_array, df_array
