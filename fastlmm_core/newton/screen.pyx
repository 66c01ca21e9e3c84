# cython: language_level=3
"""Whether a criterion may have several minima: values at many points, and designs for which theory knows."""
from libc.math cimport fabs, INFINITY, isfinite
from libc.time cimport time, time_t

from cpython.exc cimport PyErr_CheckSignals

import numpy as np

from fastlmm_core.kernels._newton cimport Objective


def screen(Objective f, const double[:, ::1] points, const Py_ssize_t[:, ::1] neighbours):
    """Evaluate `f` at all points.

    Parameters
    ----------
    f : Objective
    points : (count, n_par) array
    neighbours : (count, near) intp array
        The points nearest to each.

    Returns
    -------
    values : (count,) array
        Infinite where the criterion is not defined.
    valleys : intp array
        Points whose value none of their neighbours falls below, the lowest first.
    """
    cdef Py_ssize_t count = points.shape[0], near = neighbours.shape[1], i, j, k, found = 0
    values_array = np.empty(count)
    valleys_array = np.empty(count, dtype=np.intp)
    cdef double[::1] values = values_array
    cdef Py_ssize_t[::1] valleys = valleys_array
    cdef bint low
    cdef time_t asked = time(NULL)
    if points.shape[1] != f.n_par or neighbours.shape[0] != count:
        raise ValueError(f"points need {f.n_par} columns, and neighbours as many rows as there are points")
    with nogil:
        for i in range(count):
            values[i] = f.value_ if f.evaluate_(&points[i, 0], 0) == 0 else INFINITY
            if time(NULL) != asked:
                asked = time(NULL)
                with gil:
                    PyErr_CheckSignals()
        for i in range(count):
            low = isfinite(values[i])
            for j in range(near):
                k = neighbours[i, j]
                # of equals the first counts
                if values[k] < values[i] or (values[k] == values[i] and k < i):
                    low = False
                    break
            if low:
                k = found
                while k > 0 and values[valleys[k - 1]] > values[i]:
                    valleys[k] = valleys[k - 1]
                    k -= 1
                valleys[k] = i
                found += 1
    return values_array, valleys_array[:found]


cdef double SAME = 1e-10
"""Share of its size by which what theory takes to be equal may differ by rounding."""


def balanced(const double[:, :, ::1] packed, const double[::1] within, Py_ssize_t q, Py_ssize_t k, free):
    """Whether the criterion of one grouping factor is known to have one minimum only.

    All groups have the same A = Z_i'Z_i, block diagonal like G^, and G^ does not change the least-squares estimates:
    what X has between groups is invariant under the blocks of G^.  The criterion is then convex in the precisions.

    Parameters
    ----------
    packed : (blocks, K, lanes) array
        Factored groups, possibly compressed.
    within : ((p+1)(p+2)/2,) array
        [X y]'[X y] less its part between groups, X orthonormal.
    q, k : int
    free : (q, q) bool array
        Free elements of G^.
    """
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_blocks = packed.shape[0], lanes = packed.shape[2], p = k - 1
    cdef Py_ssize_t block, lane, a, b, i, j, r, first_block = -1, first_lane = 0
    cdef double size, t, norm, total
    cdef const unsigned char[:, ::1] inside = np.ascontiguousarray(free, dtype=np.uint8)
    cdef double[:, :, :, ::1] M
    cdef double[:, ::1] P
    cdef bint some
    for block in range(n_blocks):
        for lane in range(lanes):
            some = False
            for j in range(n_a):
                some = some or packed[block, j, lane] != 0.0
            if not some:
                continue
            if first_block < 0:
                first_block, first_lane = block, lane
                size = 0.0
                r = 0
                for a in range(q):
                    for b in range(a, q):
                        size = max(size, fabs(packed[block, r, lane]))
                        r += 1
                r = 0
                for a in range(q):
                    if not packed[block, r, lane] > SAME * size:
                        return False
                    for b in range(a, q):
                        if not inside[a, b] and fabs(packed[block, r, lane]) > SAME * size:
                            return False
                        r += 1
                continue
            for j in range(n_a):
                if not fabs(packed[block, j, lane] - packed[first_block, j, first_lane]) <= SAME * size:
                    return False
    if first_block < 0:
        return False
    # c_i = (Q_i'X_i), Q_i an orthonormal basis of Z_i: B stacks them, P = B'B must be a projection
    M_array = np.zeros((q, q, p, p))
    P_array = np.zeros((p, p))
    M = M_array
    P = P_array
    for i in range(p):
        for j in range(p):
            r = i * (i + 1) // 2 + j if i >= j else j * (j + 1) // 2 + i
            P[i, j] = (1.0 if i == j else 0.0) - within[r]
    for i in range(p):
        for j in range(p):
            t = 0.0
            for r in range(p):
                t += P[i, r] * P[r, j]
            if not fabs(t - P[i, j]) <= SAME:
                return False
    for block in range(n_blocks):
        for lane in range(lanes):
            for a in range(q):
                for b in range(q):
                    if inside[a, b]:
                        for i in range(p):
                            for j in range(p):
                                M[a, b, i, j] += packed[block, n_a + a * k + i, lane] * packed[block, n_a + b * k + j, lane]
    # the part of B in which row a is row b, and all others are 0, lies in the span of B
    for b in range(q):
        total = 0.0
        for i in range(p):
            total += M[b, b, i, i]
        for a in range(q):
            if inside[a, b]:
                norm = 0.0
                for i in range(p):
                    for j in range(p):
                        norm += M[a, b, i, j] * M[a, b, i, j]
                if not fabs(norm - total) <= SAME:
                    return False
    return True


def least_information(const double[:, :, ::1] packed, Py_ssize_t q):
    """The least harmonic mean, over groups, of the eigenvalues of Z_i'Z_i; of groups without any effects, none.

    It is q over the sum of squares of the inverse of the triangular factor, and lies between the smallest eigenvalue
    and q times that.

    Parameters
    ----------
    packed : (blocks, K, lanes) array
        Factored groups, possibly compressed.
    q : int
    """
    cdef Py_ssize_t block, lane, a, b, i, row
    cdef double least = INFINITY, total, t, size
    column_array = np.empty(q)
    cdef double[::1] column = column_array
    with nogil:
        for block in range(packed.shape[0]):
            for lane in range(packed.shape[2]):
                size = 0.0
                for i in range(q * (q + 1) // 2):
                    size = max(size, fabs(packed[block, i, lane]))
                if size == 0.0:
                    continue
                total = 0.0
                # columns of R^-1 from the last row up; row a of R begins at a q - a (a - 1) / 2
                for b in range(q):
                    for a in range(b, -1, -1):
                        row = a * q - a * (a - 1) // 2 - a
                        t = 1.0 if a == b else 0.0
                        for i in range(a + 1, b + 1):
                            t -= packed[block, row + i, lane] * column[i]
                        column[a] = t / packed[block, row + a, lane]
                        total += column[a] * column[a]
                # nothing, or not a number, where a pivot is zero
                least = min(least, <double> q / total) if total > 0.0 and isfinite(total) else 0.0
                if least == 0.0:
                    break
    return least
