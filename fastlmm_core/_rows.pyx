# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Rows to cross-products: the only code that reads the data.

With x~ = (x - shift) * scale (optionally times an upper triangular T), z~ alike, and
r = y - offset - x~ beta0, one pass over the rows computes, for every group g,

    A_g = sum w z~ z~',   C_g = sum w z~ [x~ r],   n_g       (raw, one line per group)
    S   = sum w [x~ r] [x~ r]'

Layout of a line of `raw` (K = q(q+1)/2 + q(p+1) + 1 doubles): lower triangle of A_g by rows,
C_g by rows (q x (p+1)), number of rows.  S is packed as a lower triangle by rows.
Indices are proven by the caller: 0 <= codes - base < n_groups, shapes agree.
"""
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from libc.stdint cimport int32_t, int64_t

import numpy as np

ctypedef fused code_t:
    int32_t
    int64_t

# Partial sums of S are flushed after so many rows: rounding grows with the root of the
# number of blocks, not with the number of rows.
cdef Py_ssize_t FLUSH = 2048


def probe(const double[:, :] columns, Py_ssize_t n_sample):
    """Mean, standard deviation and constancy of each column on a sample of rows.

    Parameters
    ----------
    columns : (n, k) array
    n_sample : int
        Every ceil(n / n_sample)-th row is read.

    Returns
    -------
    (3, k) array
        Rows: mean, standard deviation, 1 if all sampled values are equal else 0.
    """
    cdef Py_ssize_t n = columns.shape[0], k = columns.shape[1], i, j, step, used
    cdef double mean, first, x, ss, constant
    out = np.empty((3, k))
    cdef double[:, ::1] o = out
    step = (n + n_sample - 1) // n_sample
    if step < 1:
        step = 1
    with nogil:
        for j in range(k):
            first = columns[0, j]
            mean = 0.0
            constant = 1.0
            used = 0
            i = 0
            while i < n:
                x = columns[i, j]
                mean += x - first
                if x != first:
                    constant = 0.0
                used += 1
                i += step
            mean = first + mean / used
            ss = 0.0
            i = 0
            while i < n:
                x = columns[i, j] - mean
                ss += x * x
                i += step
            o[0, j] = mean
            o[1, j] = (ss / used) ** 0.5
            o[2, j] = constant
    return out


def accumulate(
    const double[:, :] X,
    const double[:] y,
    const double[:, :] Z,
    const code_t[:] codes,
    int64_t base,
    Py_ssize_t n_groups,
    const double[:] weights,
    const double[:] offset,
    const double[:, ::1] x_shift_scale,
    const double[:, ::1] z_shift_scale,
    const double[::1] beta0,
    Py_ssize_t x_constant,
    Py_ssize_t z_constant,
    const double[:, ::1] x_transform,
    const double[:, ::1] z_transform,
):
    """One pass over the rows.

    Parameters
    ----------
    X, y, Z : (n, p), (n,), (n, q) arrays
    codes : (n,) int32 or int64
        Group of each row, counted from `base`.
    base, n_groups : int
    weights, offset : (n,) arrays or None
    x_shift_scale, z_shift_scale : (2, p), (2, q) arrays
        Rows: shift, scale.
    beta0 : (p,) array
        Provisional coefficients of the transformed columns.
    x_constant, z_constant : int
        Column taken to be constant (so that the others may be shifted), -1 for none.
    x_transform, z_transform : upper triangular (p, p), (q, q) arrays, or None

    Returns
    -------
    raw : (n_groups, K) array
    S : ((p+1)(p+2)/2,) array
    constant : bool
        False if a column taken to be constant is not: the result is then not usable.
    varies : bool
        Whether the response takes more than one value.
    """
    cdef Py_ssize_t n = X.shape[0], p = X.shape[1], q = Z.shape[1]
    cdef Py_ssize_t k = p + 1, n_a = q * (q + 1) // 2, line = n_a + q * k + 1
    cdef Py_ssize_t n_s = k * (k + 1) // 2
    cdef Py_ssize_t i, j, l, a, b, g, pos
    cdef bint has_w = weights is not None, has_off = offset is not None
    cdef bint turn_x = x_transform is not None, turn_z = z_transform is not None
    cdef bint broken = False, varies = False
    cdef double w = 1.0, r, t, x_value = 0.0, z_value = 0.0, y_value = y[0]
    raw_array = np.zeros((n_groups, line))
    s_array = np.zeros(n_s)
    cdef double[:, ::1] raw = raw_array
    cdef double[::1] s_total = s_array
    cdef double* target
    cdef double* work = <double*> calloc(2 * k + 2 * q + n_s, sizeof(double))
    if work == NULL:
        raise MemoryError()
    cdef double* x = work
    cdef double* xu = x + k
    cdef double* z = xu + k
    cdef double* zu = z + q
    cdef double* s = zu + q
    if x_constant >= 0:
        x_value = X[0, x_constant]
    if z_constant >= 0:
        z_value = Z[0, z_constant]
    with nogil:
        for i in range(n):
            g = <Py_ssize_t> (codes[i] - base)
            target = &raw[g, 0]
            if has_w:
                w = weights[i]
            for j in range(p):
                x[j] = (X[i, j] - x_shift_scale[0, j]) * x_shift_scale[1, j]
            for a in range(q):
                z[a] = (Z[i, a] - z_shift_scale[0, a]) * z_shift_scale[1, a]
            if x_constant >= 0 and X[i, x_constant] != x_value:
                broken = True
            if z_constant >= 0 and Z[i, z_constant] != z_value:
                broken = True
            if turn_x:
                for j in range(p - 1, -1, -1):
                    t = 0.0
                    for l in range(j + 1):
                        t = t + x[l] * x_transform[l, j]
                    x[j] = t
            if turn_z:
                for a in range(q - 1, -1, -1):
                    t = 0.0
                    for b in range(a + 1):
                        t = t + z[b] * z_transform[b, a]
                    z[a] = t
            r = y[i]
            if r != y_value:
                varies = True
            if has_off:
                r = r - offset[i]
            for j in range(p):
                r = r - beta0[j] * x[j]
            x[p] = r
            # A_g and C_g
            pos = 0
            for a in range(q):
                t = w * z[a]
                for b in range(a + 1):
                    target[pos] += t * z[b]
                    pos = pos + 1
            for a in range(q):
                t = w * z[a]
                for j in range(k):
                    target[pos] += t * x[j]
                    pos = pos + 1
            target[pos] += 1.0
            pos = 0
            for j in range(k):
                t = w * x[j]
                for l in range(j + 1):
                    s[pos + l] += t * x[l]
                pos = pos + j + 1
            if (i & (FLUSH - 1)) == FLUSH - 1:
                for j in range(n_s):
                    s_total[j] += s[j]
                memset(s, 0, n_s * sizeof(double))
        for j in range(n_s):
            s_total[j] += s[j]
    free(work)
    return raw_array, s_array, not broken, varies
