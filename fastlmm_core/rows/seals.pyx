# cython: language_level=3
"""Seals of lines of numbers, by which a line that has been changed is told from what it was."""
from libc.stdint cimport int64_t, uint64_t

import numpy as np

from fastlmm_core.simd.prefetch cimport FETCH_FAR

cdef enum:
    TOGETHER = 8        # numbers that are summed side by side: those of a cache line
    AHEAD = 4           # lines that are on their way, of lines that lie apart


cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    """Other bits for each number: the top ones, which most factors would lose, are among the lower ones too."""
    return x ^ (x >> 29)


cdef void seal_line(const uint64_t* x, const int64_t* at, Py_ssize_t n, uint64_t* out) noexcept nogil:
    """The sum of all, and one in which each number counts by its place, modulo 2^64.

    at: (n,) ascending places of the numbers, or NULL where they stand beside each other.
    """
    cdef uint64_t total[TOGETHER]
    cdef uint64_t weighted[TOGETHER]    # sums of the sums so far
    cdef Py_ssize_t block, i, l
    cdef const uint64_t* some = x
    for l in range(TOGETHER):
        total[l] = 0
        weighted[l] = 0
    for block in range(n // TOGETHER):
        i = block * TOGETHER
        if at == NULL or at[i + TOGETHER - 1] - at[i] == TOGETHER - 1:
            some = x + (i if at == NULL else at[i])
            for l in range(TOGETHER):
                total[l] += mixed(some[l])
                weighted[l] += total[l]
            continue
        for l in range(TOGETHER):
            total[l] += mixed(x[at[i + l]])
            weighted[l] += total[l]
    for l in range(n % TOGETHER):
        i = n - n % TOGETHER + l
        total[l] += mixed(x[i if at == NULL else at[i]])
    out[0] = 0
    out[1] = 0
    for l in range(TOGETHER):
        out[0] += total[l]
        out[1] += (2 * l + 1) * (weighted[l] + 17 * total[l])


cdef inline void fetch_line(const double* x, Py_ssize_t n) noexcept nogil:
    """Let a line be on its way from memory while others are summed."""
    cdef Py_ssize_t block
    for block in range((n + TOGETHER - 1) // TOGETHER):
        FETCH_FAR(x + block * TOGETHER)


cdef void seal_lines(const double* values, Py_ssize_t width, const int64_t* at, Py_ssize_t n, const int64_t* lines,
                     Py_ssize_t count, uint64_t* out) noexcept nogil:
    """Seals (count, 2) of lines of a matrix with so many columns.

    at, n : ascending columns that count, or NULL for all
    """
    cdef Py_ssize_t i
    for i in range(count if n > 0 else 0):
        # lines that follow each other the processor fetches ahead by itself, and better
        if i + AHEAD < count and lines[i + AHEAD] != lines[i] + AHEAD:
            fetch_line(values + lines[i + AHEAD] * width, width)
        seal_line(<const uint64_t*> (values + lines[i] * width), at, n, out + 2 * i)


def line_seals(const double[:, ::1] values, columns=None, which=None):
    """Seals of the lines of a matrix (n, 2): the sum of the bits of each, and one that depends on their order.

    One changed number changes the first, whatever the others are.

    Parameters
    ----------
    values : (., .) array
    columns : int array or None
        The columns that count, in ascending order, as if there were no others; None: all.
    which : int array or None
        Lines; None: all.
    """
    cdef Py_ssize_t count = values.shape[0], n = values.shape[1]
    cdef const int64_t[::1] places, lines
    cdef const int64_t* at = NULL
    if columns is not None:
        if len(columns) and not 0 <= columns.min() <= columns.max() < n:
            raise IndexError("values does not have so many columns")
        places = np.ascontiguousarray(columns, dtype=np.int64)
        n = places.shape[0]
        at = &places[0] if n > 0 else NULL
    lines = np.arange(count) if which is None else np.ascontiguousarray(which, dtype=np.int64)
    if which is not None and len(which) and not 0 <= which.min() <= which.max() < count:
        raise IndexError("values does not have so many lines")
    count = lines.shape[0]
    out_array = np.zeros((count, 2), dtype=np.uint64)
    cdef uint64_t[:, ::1] out = out_array
    if n > 0 and count > 0:
        with nogil:
            seal_lines(&values[0, 0], values.shape[1], at, n, &lines[0], count, &out[0, 0])
    return out_array
