# cython: language_level=3
"""Seals of lines of numbers, by which a line that has been changed is told from what it was."""
from libc.stdint cimport uint64_t

import numpy as np

cdef enum:
    TOGETHER = 8        # numbers that are summed side by side


cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    """Other bits for each number: the top ones, which most factors would lose, are among the lower ones too."""
    return x ^ (x >> 29)


cdef void seal_line(const uint64_t* x, Py_ssize_t n, uint64_t* out) noexcept nogil:
    """The sum of all, and one in which each number counts by its place, modulo 2^64."""
    cdef uint64_t total[TOGETHER]
    cdef uint64_t weighted[TOGETHER]    # sums of the sums so far
    cdef Py_ssize_t i, l
    for l in range(TOGETHER):
        total[l] = 0
        weighted[l] = 0
    for i in range(n // TOGETHER):
        for l in range(TOGETHER):
            total[l] += mixed(x[l])
            weighted[l] += total[l]
        x += TOGETHER
    for l in range(n % TOGETHER):
        total[l] += mixed(x[l])
    out[0] = 0
    out[1] = 0
    for l in range(TOGETHER):
        out[0] += total[l]
        out[1] += (2 * l + 1) * (weighted[l] + 17 * total[l])


def line_seals(const double[:, ::1] values):
    """Seals of the lines of a matrix (n, 2): the sum of the bits of each, and one that depends on their order.

    One changed number changes the first, whatever the others are.
    """
    cdef Py_ssize_t count = values.shape[0], n = values.shape[1], i
    out_array = np.zeros((count, 2), dtype=np.uint64)
    cdef uint64_t[:, ::1] out = out_array
    if n > 0:
        with nogil:
            for i in range(count):
                seal_line(<const uint64_t*> &values[i, 0], n, &out[i, 0])
    return out_array
