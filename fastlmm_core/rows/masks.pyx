# cython: language_level=3
"""Which values lines of numbers lack: those that lack the same ones are found in one pass."""
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

import numpy as np

cdef enum:
    BITS = 64       # of a word


cdef inline uint64_t gathered(const double* x, Py_ssize_t n) noexcept nogil:
    """A bit for each of n <= BITS numbers: 1 where it is NaN."""
    cdef uint64_t out = 0
    cdef Py_ssize_t i
    for i in range(n):
        out |= (<uint64_t> (x[i] != x[i])) << i
    return out


cdef inline uint64_t mask_line(const double* x, Py_ssize_t n, uint64_t* bits) noexcept nogil:
    """The bits of a line, and a hash of them."""
    cdef uint64_t h = 0
    cdef Py_ssize_t word
    for word in range((n + BITS - 1) // BITS):
        # a constant number of them is compiled to instructions on several at a time
        bits[word] = gathered(x, BITS) if n >= BITS else gathered(x, n)
        h = (h ^ bits[word]) * <uint64_t> 0x9E3779B97F4A7C15
        h ^= h >> 32
        x += BITS
        n -= BITS
    return h


def mask_labels(const double[:, ::1] values):
    """Numbers of the distinct sets of columns that lines of a matrix lack (n,), in the order in which they come up.

    Parameters
    ----------
    values : (n, k) array
        NaN where missing.
    """
    cdef Py_ssize_t count = values.shape[0], k = values.shape[1], words = (k + BITS - 1) // BITS, size = 4, i, at
    cdef int64_t found = 0
    cdef int64_t[::1] labels
    cdef uint64_t* bits
    cdef int64_t* table     # label + 1 by hash; 0: none yet
    cdef int64_t* first     # line of each label
    out = np.zeros(count, dtype=np.int64)
    if count == 0 or k == 0:
        return out
    labels = out
    while size < 2 * count:
        size *= 2
    bits = <uint64_t*> calloc(count * words, sizeof(uint64_t))
    table = <int64_t*> calloc(size, sizeof(int64_t))
    first = <int64_t*> calloc(count, sizeof(int64_t))
    if bits == NULL or table == NULL or first == NULL:
        free(bits)
        free(table)
        free(first)
        raise MemoryError()
    with nogil:
        for i in range(count):
            at = <Py_ssize_t> (mask_line(&values[i, 0], k, bits + i * words) & <uint64_t> (size - 1))
            while table[at] != 0 and memcmp(
                    bits + first[table[at] - 1] * words, bits + i * words, words * sizeof(uint64_t)) != 0:
                at = (at + 1) & (size - 1)
            if table[at] == 0:
                first[found] = i
                found += 1
                table[at] = found
            labels[i] = table[at] - 1
    free(bits)
    free(table)
    free(first)
    return out
