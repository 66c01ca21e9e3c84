# cython: language_level=3
"""Sums over the elements of sparse responses: what a fit sees of them, and their seals."""
from libc.stdint cimport int32_t, int64_t, uint64_t

import numpy as np

ctypedef fused index_t:
    int32_t
    int64_t


cdef enum:
    BLOCK = 65536       # numbers of the table that stay in the cache


# What the responses share.
cdef struct Table:
    const double* rows      # (n, q + r + 1) basis of Z, X and the weight of each row
    const int64_t* group    # (n,)
    Py_ssize_t q, r


# Sums over the elements of a response.
cdef struct ResponseSums:
    double* own         # (m, q) Z'Wy within the groups
    double* beta        # (r,) X'Wy
    double* total       # y'Wy


cdef void sum_block(const Table* t, const index_t* place, const double* y, Py_ssize_t first, Py_ssize_t last,
                    const ResponseSums* sums) noexcept nogil:
    """Elements first .. last - 1 of a response, added to its sums."""
    cdef Py_ssize_t e, a, q = t.q, r = t.r, width = q + r + 1
    cdef const double* row
    cdef double* into
    cdef double* beta = sums.beta
    cdef double v, total = sums.total[0]
    for e in range(first, last):
        v = y[e]
        row = t.rows + place[e] * width
        into = sums.own + t.group[place[e]] * q
        for a in range(q):
            into[a] += v * row[a]
        row += q
        for a in range(r):
            beta[a] += v * row[a]
        total += v * v * row[r]
    sums.total[0] = total


cdef Py_ssize_t end_of(const index_t* place, Py_ssize_t first, Py_ssize_t last, Py_ssize_t row) noexcept nogil:
    """The first of the elements whose row is not below `row`: by doubling steps, then halves."""
    cdef Py_ssize_t step = 1, middle
    while first + step < last and place[first + step] < row:
        first += step
        step *= 2
    last = min(last, first + step)
    while first < last:
        middle = (first + last) // 2
        if place[middle] < row:
            first = middle + 1
        else:
            last = middle
    return first


def sparse_sums(const index_t[::1] start, const index_t[::1] place, const double[::1] values,
                const double[:, ::1] table, const int64_t[::1] group, Py_ssize_t q, Py_ssize_t m):
    """Z'Wy within the groups (count, m, q), X'Wy (count, r) and y'Wy (count,) of sparse responses.

    Parameters
    ----------
    start : (count + 1,) int array
        First element of each response.
    place, values : (n_elements,) arrays
        Row of each element, increasing within a response, and its value.
    table : (n, q + r + 1) array
        W times the basis of Z within groups, W X, and the weight, of each row.
    group : (n,) int array
        Group of each row, 0 to m - 1.
    q, m : int
    """
    cdef Py_ssize_t count = start.shape[0] - 1, r = table.shape[1] - q - 1, n = table.shape[0], i
    if group.shape[0] != n or r < 0 or place.shape[0] != values.shape[0]:
        raise ValueError("table, group, place and values do not fit each other")
    own_array, beta_array, total_array = np.zeros((count, m, q)), np.zeros((count, r)), np.zeros(count)
    cdef double[:, :, ::1] own = own_array
    cdef double[:, ::1] beta = beta_array
    cdef double[::1] total = total_array
    cdef Py_ssize_t[::1] at = np.array(start[:count], dtype=np.intp)
    cdef double nothing[1]
    cdef Py_ssize_t block = max(<Py_ssize_t> 1, BLOCK // (q + r + 1)), row = 0, end
    cdef Table shared
    cdef ResponseSums sums
    if values.shape[0] > 0 and q > 0:
        shared.rows, shared.group, shared.q, shared.r = &table[0, 0], &group[0], q, r
        with nogil:
            # some rows at a time, for all responses: the table is read once
            while row < n:
                row += block
                for i in range(count):
                    end = end_of(&place[0], at[i], start[i + 1], row)
                    if end > at[i]:
                        sums.own, sums.total = &own[i, 0, 0], &total[i]
                        sums.beta = &beta[i, 0] if r > 0 else nothing
                        sum_block(&shared, &place[0], &values[0], at[i], end, &sums)
                        at[i] = end
    return own_array, beta_array, total_array


def sparse_seals(const index_t[::1] start, const index_t[::1] place, const double[::1] values, Py_ssize_t n):
    """`line_seals` (count, 2) of sparse responses of n observations, in which zeros do not count."""
    cdef Py_ssize_t count = start.shape[0] - 1, i, e
    cdef uint64_t bits, first, second, j
    cdef const uint64_t* x = <const uint64_t*> &values[0] if values.shape[0] > 0 else NULL
    out_array = np.zeros((count, 2), dtype=np.uint64)
    cdef uint64_t[:, ::1] out = out_array
    with nogil:
        for i in range(count):
            first = 0
            second = 0
            for e in range(start[i], start[i + 1]):
                bits = x[e]
                # as in seals.pyx
                bits = bits ^ (bits >> 29)
                j = <uint64_t> place[e]
                first += bits
                second += bits * (2 * (j & 7) + 1) * (<uint64_t> (n // 8) - (j >> 3) + 17)
            out[i, 0] = first
            out[i, 1] = second
    return out_array
