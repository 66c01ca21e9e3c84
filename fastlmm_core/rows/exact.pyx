# cython: language_level=3
"""Rows to cross-products in twice the precision, from which those of any other columns follow.

For v = [z x y] of a row with weight w and group g,

    A_g += w z z',   C_g += w z [x y],   S += w [x y] [x y]'

Each product is split into its rounded value and what was rounded away (Dekker 1971, Numer. Math. 18, 224-242), and both
are summed as in Dot2 (Ogita, Rump and Oishi 2005, SIAM J. Sci. Comput. 26, 1955-1988): sums come as pairs (hi, lo) with
errors of the square of the rounding unit.

Layout of a line (K = q(q+1)/2 + q k numbers, k columns of [x y]): lower triangle of A_g by rows, C_g by rows.  S is
packed as a lower triangle by rows.  Indices are proven by the caller: 0 <= slots < lines.
"""
from libc.stdint cimport int64_t
from libc.string cimport memset

import numpy as np

cdef double SPLITTER = 134217729.0      # 2^27 + 1

cdef struct Row:
    Py_ssize_t q, k
    double* value       # (q + k) columns
    double* high        # their leading halves, and the rest
    double* low
    double* sums        # of the group under way: K numbers, and K more of what was rounded away
    double* total       # k(k+1)/2, twice


cdef inline void split(double x, double* high, double* low) noexcept nogil:
    cdef double t = SPLITTER * x
    high[0] = t - (t - x)
    low[0] = x - high[0]


cdef inline void multiply_add(double w, double u, const double* x, const double* high, const double* low, Py_ssize_t n,
                              double* out, double* rest) noexcept nogil:
    """(out, rest) += w u x for n numbers x, split already."""
    cdef double wu = w * u, w_high, w_low, u_high, u_low, lost, p, e, s, t
    cdef Py_ssize_t i
    split(w, &w_high, &w_low)
    split(u, &u_high, &u_low)
    lost = ((w_high * u_high - wu) + w_high * u_low + w_low * u_high) + w_low * u_low
    split(wu, &u_high, &u_low)
    for i in range(n):
        p = wu * x[i]
        e = ((u_high * high[i] - p) + u_high * low[i] + u_low * high[i]) + u_low * low[i]
        s = out[i] + p
        t = s - out[i]
        rest[i] += ((out[i] - (s - t)) + (p - t)) + (e + lost * x[i])
        out[i] = s


cdef inline void add_pairs(double* out, double* rest, const double* x, const double* low, Py_ssize_t n) noexcept nogil:
    """(out, rest) += (x, low), so that `rest` stays small against `out`."""
    cdef double s, t, e
    cdef Py_ssize_t i
    for i in range(n):
        s = out[i] + x[i]
        t = s - out[i]
        e = ((out[i] - (s - t)) + (x[i] - t)) + (rest[i] + low[i])
        out[i] = s + e
        rest[i] = e - (out[i] - s)


cdef inline void add_row(const Row* d, double w) noexcept nogil:
    cdef Py_ssize_t a, j, at = 0, width = d.q * (d.q + 1) // 2 + d.q * d.k, half = d.k * (d.k + 1) // 2
    cdef const double* x = d.value + d.q
    for j in range(d.q + d.k):
        split(d.value[j], d.high + j, d.low + j)
    for a in range(d.q):
        multiply_add(w, d.value[a], d.value, d.high, d.low, a + 1, d.sums + at, d.sums + width + at)
        at += a + 1
    for a in range(d.q):
        multiply_add(w, d.value[a], x, d.high + d.q, d.low + d.q, d.k, d.sums + at, d.sums + width + at)
        at += d.k
    at = 0
    for j in range(d.k):
        multiply_add(w, x[j], x, d.high + d.q, d.low + d.q, j + 1, d.total + at, d.total + half + at)
        at += j + 1


def add_products(double[:, ::1] values, const double[:] weights, const int64_t[::1] slots, Py_ssize_t q,
                 double[:, :, ::1] lines, double[:, ::1] total):
    """Add the products of some rows to sums that are pairs.

    Parameters
    ----------
    values : (n, q + k) array
        Columns of Z, then those of [X y].
    weights : (n,) array or None
    slots : (n,) int64 array
        Line of each row.
    q : int
    lines : (2, m, K) array
        Sums by lines, and what was rounded away.
    total : (2, k(k+1)/2) array
    """
    cdef Row d
    cdef Py_ssize_t n = values.shape[0], width = values.shape[1], i, g, K, half
    d.q, d.k = q, width - q
    K, half = q * (q + 1) // 2 + q * d.k, d.k * (d.k + 1) // 2
    cdef double[::1] work = np.zeros(2 * (width + K + half))
    if n == 0:
        return
    d.high, d.low = &work[0], &work[0] + width
    d.sums = d.low + width
    d.total = d.sums + 2 * K
    with nogil:
        for i in range(n):
            d.value = &values[i, 0]
            add_row(&d, weights[i] if weights is not None else 1.0)
            g = slots[i]
            if i == n - 1 or slots[i + 1] != g:
                add_pairs(&lines[0, g, 0], &lines[1, g, 0], d.sums, d.sums + K, K)
                memset(d.sums, 0, 2 * K * sizeof(double))
        add_pairs(&total[0, 0], &total[1, 0], d.total, d.total + half, half)
