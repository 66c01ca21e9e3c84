# Sums of products of the rows of subjects, spread over all visits of a table.
#
# A subject's rows [A e] (n, c) at its visits are one row of m c numbers, zero at the visits that it does not have.
# TOGETHER of them are gathered, and BLAS adds their products to U (m c, m c),
# of which the upper triangle by rows is made.
from libc.string cimport memcpy, memset

from scipy.linalg.cython_blas cimport dsyrk

cdef enum:
    TOGETHER = 128

cdef struct Gathered:
    Py_ssize_t c
    Py_ssize_t columns      # m c
    Py_ssize_t filled
    double* buffer          # (TOGETHER, columns)
    double* U
    bint begun              # whether U holds sums already


cdef inline void begin(Gathered* g, Py_ssize_t m) noexcept nogil:
    """A table of m visits; c, buffer and U are given."""
    g.columns = m * g.c
    g.filled = 0
    g.begun = False
    memset(g.buffer, 0, TOGETHER * g.columns * sizeof(double))


cdef inline void settle(Gathered* g) noexcept nogil:
    """Add what was gathered; U is zero where nothing ever was."""
    cdef int wide = <int> g.columns, some = <int> g.filled
    cdef double one = 1.0, zero = 0.0
    if g.filled or not g.begun:
        dsyrk("L", "N", &wide, &some, &one, g.buffer, &wide, &one if g.begun else &zero, g.U, &wide)
    g.begun = True


cdef inline void gather(Gathered* g, Py_ssize_t n, Py_ssize_t N, const Py_ssize_t* visits, const double* rows
                        ) noexcept nogil:
    """Rows (n, N, c) of N subjects with n visits."""
    cdef Py_ssize_t a, i, c = g.c
    for i in range(N):
        for a in range(n):
            memcpy(g.buffer + g.filled * g.columns + visits[a] * c, rows + (a * N + i) * c, c * sizeof(double))
        g.filled += 1
        if g.filled == TOGETHER:
            settle(g)
            memset(g.buffer, 0, TOGETHER * g.columns * sizeof(double))
            g.filled = 0
