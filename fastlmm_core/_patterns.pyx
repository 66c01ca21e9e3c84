# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Groups that share one Z_i'Z_i, replaced by at most q(p+1) columns each.

The criterion and all its derivatives see the groups of one pattern k only through their number
and the Gram matrix sum vec(c_i) vec(c_i)'.  A factor F of that matrix (F F' = Gram) gives
rank(F) columns that stand for all of them: the first carries the count, the others count 0.
"""
from libc.math cimport fabs, llrint, sqrt
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

import numpy as np

from fastlmm_core._shapes cimport LANES

# Two factors are one pattern when all entries agree to this many units of the row's length.
cdef double SAME = 1e-13


cdef Py_ssize_t label_patterns(
    Py_ssize_t n_groups, Py_ssize_t n_a, Py_ssize_t stride, const double* packed, Py_ssize_t n_slots,
    Py_ssize_t patience, int64_t* slots, int64_t* first, int64_t* label,
) noexcept nogil:
    """Number the patterns in order of appearance; -1 when there are too many to gain anything."""
    cdef Py_ssize_t i, j, n_patterns = 0, slot, k
    cdef const double* R
    cdef const double* S
    cdef uint64_t key
    cdef double size
    cdef bint same
    for i in range(n_groups):
        R = packed + (i // LANES) * stride * LANES + i % LANES
        size = 0.0
        for j in range(n_a):
            size = max(size, fabs(R[j * LANES]))
        key = 1469598103934665603ULL
        for j in range(n_a):
            # 2^30 steps of the largest entry: coarse against rounding, fine against other designs
            key = (key ^ <uint64_t> llrint(R[j * LANES] / (size + 1e-300) * 1073741824.0)) * 1099511628211ULL
            key = key ^ (key >> 29)
        slot = <Py_ssize_t> (key & <uint64_t> (n_slots - 1))
        while True:
            k = <Py_ssize_t> slots[slot]
            if k < 0:
                slots[slot] = n_patterns
                first[n_patterns] = i
                label[i] = n_patterns
                n_patterns += 1
                break
            S = packed + (first[k] // LANES) * stride * LANES + first[k] % LANES
            same = True
            for j in range(n_a):
                if not fabs(R[j * LANES] - S[j * LANES]) <= SAME * size:
                    same = False
                    break
            if same:
                label[i] = k
                break
            slot = (slot + 1) & (n_slots - 1)
        if i >= patience and 2 * n_patterns > i:
            return -1
    return n_patterns


cdef Py_ssize_t semidefinite_factor(Py_ssize_t n, double* G, double* floor) noexcept nogil:
    """Cholesky factor of a positive semidefinite G (lower, in place); returns its rank.

    Column r of the factor is stored in row r of G; a pivot within rounding of zero is skipped.
    floor: work space of 2 n doubles.
    """
    cdef Py_ssize_t i, j, l, rank = 0
    cdef double pivot
    for i in range(n):
        floor[i] = 1e-15 * n * G[i * n + i]
    # left-looking: row i of the factor has entries for the columns found so far
    for j in range(n):
        pivot = G[j * n + j]
        for l in range(rank):
            pivot -= G[l * n + j] * G[l * n + j]
        if not pivot > floor[j]:
            continue
        pivot = sqrt(pivot)
        for i in range(n):
            floor[n + i] = 0.0
        for i in range(j + 1, n):
            floor[n + i] = G[i * n + j]
            for l in range(rank):
                floor[n + i] -= G[l * n + i] * G[l * n + j]
            floor[n + i] /= pivot
        floor[n + j] = pivot
        # rank <= j: rows of the input that are still to be read lie below
        for i in range(n):
            G[rank * n + i] = floor[n + i]
        rank += 1
    return rank


def compress(const double[:, :, ::1] packed, Py_ssize_t n_groups, Py_ssize_t q, Py_ssize_t k):
    """Replace groups of one pattern by the columns of a factor of their Gram matrix.

    Parameters
    ----------
    packed : (blocks, stride, 8) array
        As written by `factor` (see _lanes.pyx).
    n_groups, q, k : int

    Returns
    -------
    (blocks, stride, 8) array or None
        None when it would not pay.
    """
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, stride = n_a + n_c + 1
    cdef Py_ssize_t n_slots = 64, n_patterns, i, j, l, r, rank, pos, total = 0, start, count
    cdef const double* source
    if n_groups < 2:
        return None
    while n_slots < 2 * n_groups:
        n_slots *= 2
    slots_array = np.full(n_slots, -1, dtype=np.int64)
    label_array = np.empty(n_groups, dtype=np.int64)
    first_array = np.empty(n_groups, dtype=np.int64)
    cdef int64_t[::1] slots = slots_array, label = label_array, first = first_array
    with nogil:
        n_patterns = label_patterns(n_groups, n_a, stride, &packed[0, 0, 0], n_slots, 256,
                                    &slots[0], &first[0], &label[0])
    if n_patterns < 0:
        return None
    counts_array = np.bincount(label_array, minlength=n_patterns)
    expected = np.minimum(counts_array, n_c).sum()
    if (expected + LANES - 1) // LANES >= (n_groups + LANES - 1) // LANES:
        return None
    order_array = np.argsort(label_array, kind="stable")
    cdef const int64_t[::1] counts = counts_array.astype(np.int64), order = order_array.astype(np.int64)
    out_array = np.zeros(((expected + LANES - 1) // LANES, stride, LANES))
    cdef double[:, :, ::1] out = out_array
    cdef double* G = <double*> malloc((n_c * n_c + 3 * n_c) * sizeof(double))
    if G == NULL:
        raise MemoryError()
    cdef double* v = G + n_c * n_c
    with nogil:
        start = 0
        for pos in range(n_patterns):
            count = counts[pos]
            if count <= n_c:
                rank = count
            else:
                memset(G, 0, n_c * n_c * sizeof(double))
                for i in range(start, start + count):
                    source = &packed[order[i] // LANES, n_a, order[i] % LANES]
                    for j in range(n_c):
                        v[j] = source[j * LANES]
                    for j in range(n_c):
                        for l in range(j + 1):
                            G[j * n_c + l] += v[j] * v[l]
                for j in range(n_c):
                    for l in range(j):
                        G[l * n_c + j] = G[j * n_c + l]
                rank = semidefinite_factor(n_c, G, v)
            for r in range(max(rank, 1)):
                i = total + r
                for j in range(n_a):
                    out[i // LANES, j, i % LANES] = packed[first[pos] // LANES, j, first[pos] % LANES]
                if r < rank:
                    for j in range(n_c):
                        if count <= n_c:
                            l = order[start + r]
                            out[i // LANES, n_a + j, i % LANES] = packed[l // LANES, n_a + j, l % LANES]
                        else:
                            out[i // LANES, n_a + j, i % LANES] = G[r * n_c + j]
                out[i // LANES, stride - 1, i % LANES] = (1.0 if r < count else 0.0) if count <= n_c else (
                    <double> count if r == 0 else 0.0)
            total += max(rank, 1)
            start += count
    free(G)
    return out_array[: (total + LANES - 1) // LANES]
