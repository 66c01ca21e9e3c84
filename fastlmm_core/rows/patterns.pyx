# cython: language_level=3
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

from fastlmm_core.lanes.kernels cimport SAME

# Groups after which the search for equal ones is given up where fewer than half are.
cdef Py_ssize_t PATIENCE = 256


# Factored groups (see lanes/lanes.pyx), their Z_i'Z_i being looked at.
cdef struct Groups:
    const double* packed        # (blocks, stride, lanes)
    Py_ssize_t n, stride, lanes, n_a


cdef inline const double* group_at(const Groups* g, Py_ssize_t i) noexcept nogil:
    return g.packed + (i // g.lanes) * g.stride * g.lanes + i % g.lanes


cdef bint whole_block(const Groups* g, Py_ssize_t i, const double* pattern) noexcept nogil:
    """Whether all groups of the block that begins with group i are of a pattern."""
    cdef const double* R = g.packed + (i // g.lanes) * g.stride * g.lanes
    cdef Py_ssize_t j, lane
    cdef double size = 0.0, t
    cdef int others = 0
    for j in range(g.n_a):
        size = max(size, fabs(pattern[j * g.lanes]))
    size *= SAME
    for j in range(g.n_a):
        t = pattern[j * g.lanes]
        for lane in range(g.lanes):
            # NaN belongs to none
            others += not fabs(R[j * g.lanes + lane] - t) <= size
    return others == 0


cdef bint same_pattern(const Groups* g, const double* R, const double* S, double size) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(g.n_a):
        if not fabs(R[j * g.lanes] - S[j * g.lanes]) <= SAME * size:
            return False
    return True


cdef Py_ssize_t label_patterns(const Groups* g, int64_t[::1] slots, int64_t[::1] first, int64_t[::1] label
                               ) noexcept nogil:
    """Number the patterns in order of appearance; -1 when there are too many to gain anything.

    slots : a power of two of places by which patterns, counted from 1, are found again; all 0
    first, label : (n_groups,) first group of each pattern, pattern of each group
    """
    cdef Py_ssize_t n_slots = slots.shape[0], i = 0, j, n_patterns = 0, slot, k
    cdef const double* R
    cdef uint64_t key
    cdef double size
    while i < g.n:
        # blocks of the pattern of the group before them are told without a search
        if i > 0 and i % g.lanes == 0 and i + g.lanes <= g.n and whole_block(g, i, group_at(g, first[label[i - 1]])):
            for j in range(g.lanes):
                label[i + j] = label[i - 1]
            i += g.lanes
            continue
        R = group_at(g, i)
        size = 0.0
        for j in range(g.n_a):
            size = max(size, fabs(R[j * g.lanes]))
        key = 1469598103934665603ULL
        for j in range(g.n_a):
            # 2^30 steps of the largest entry: coarse against rounding, fine against other designs
            key = (key ^ <uint64_t> llrint(R[j * g.lanes] / (size + 1e-300) * 1073741824.0)) * 1099511628211ULL
            key = key ^ (key >> 29)
        slot = <Py_ssize_t> (key & <uint64_t> (n_slots - 1))
        while True:
            k = <Py_ssize_t> slots[slot] - 1
            if k < 0:
                slots[slot] = n_patterns + 1
                first[n_patterns] = i
                k = n_patterns
                n_patterns += 1
                break
            if same_pattern(g, R, group_at(g, first[k]), size):
                break
            slot = (slot + 1) & (n_slots - 1)
        label[i] = k
        if i >= PATIENCE and 2 * n_patterns > i:
            return -1
        i += 1
    return n_patterns


cdef void sum_block(const double* c, Py_ssize_t n, Py_ssize_t lanes, double* sums) noexcept nogil:
    """Add c c' of all groups of a block, lane by lane, to sums (n(n+1)/2, lanes)."""
    cdef Py_ssize_t j, l, lane
    cdef const double* a
    cdef const double* b
    for j in range(n):
        a = c + j * lanes
        for l in range(j + 1):
            b = c + l * lanes
            for lane in range(lanes):
                sums[lane] += a[lane] * b[lane]
            sums += lanes


cdef void sum_gram(const Groups* g, Py_ssize_t n, const int64_t* order, Py_ssize_t count, double* G, double* sums
                   ) noexcept nogil:
    """G (n, n) = sum of c c' over groups; sums: work space (n(n+1)/2 lanes,)."""
    cdef Py_ssize_t i = 0, j, l, at, lane
    cdef const double* c
    cdef double t
    memset(sums, 0, n * (n + 1) // 2 * g.lanes * sizeof(double))
    memset(G, 0, n * n * sizeof(double))
    while i < count:
        c = group_at(g, order[i]) + g.n_a * g.lanes
        # groups of one pattern are in order: where first and last fill a block, so do those between
        if order[i] % g.lanes == 0 and i + g.lanes <= count and order[i + g.lanes - 1] == order[i] + g.lanes - 1:
            sum_block(c, n, g.lanes, sums)
            i += g.lanes
            continue
        for j in range(n):
            for l in range(j + 1):
                G[j * n + l] += c[j * g.lanes] * c[l * g.lanes]
        i += 1
    at = 0
    for j in range(n):
        for l in range(j + 1):
            t = G[j * n + l]
            for lane in range(g.lanes):
                t += sums[at]
                at += 1
            G[j * n + l] = t
            G[l * n + j] = t


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


def pattern_labels(const double[:, :, ::1] packed, Py_ssize_t n_groups, Py_ssize_t q):
    """Number of each group's pattern, in order of appearance.

    Parameters
    ----------
    packed : (blocks, stride, lanes) array
        As written by `factor` (see lanes/lanes.pyx).
    n_groups, q : int

    Returns
    -------
    (n_groups,) int64 array or None
        None when hardly any groups are alike.
    """
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_slots = 64, n_patterns
    while n_slots < 2 * n_groups:
        n_slots *= 2
    # memory that is not touched costs nothing
    slots_array = np.zeros(n_slots, dtype=np.int64)
    label_array = np.empty(n_groups, dtype=np.int64)
    first_array = np.empty(n_groups, dtype=np.int64)
    cdef int64_t[::1] slots = slots_array, label = label_array, first = first_array
    cdef Groups g = Groups(&packed[0, 0, 0], n_groups, packed.shape[1], packed.shape[2], n_a)
    with nogil:
        n_patterns = label_patterns(&g, slots, first, label)
    return None if n_patterns < 0 else label_array


def pattern_bases(const double[:, :, ::1] cx, const int64_t[::1] groups):
    """Rotate the groups of each pattern so that few of them carry all of c_x.

    Parameters
    ----------
    cx : (m, q, p) array
        c_x of the groups, sorted by pattern.
    groups : (n_patterns + 1,) int64 array
        First group of each pattern.

    Returns
    -------
    columns : (n_patterns + 1,) int64 array
        First column of each pattern; one for a pattern of one group.
    loading : (m, width) array
        Orthonormal within a pattern: column c of the pattern is sum_g loading[g, c] (c_x, c_y)_g.
    rotated : (n_columns, q, p) array
        c_x of the columns.
    """
    cdef Py_ssize_t m = cx.shape[0], q = cx.shape[1], p = cx.shape[2], size = q * p
    cdef Py_ssize_t n_patterns = groups.shape[0] - 1, pattern, g, c, i, count, rank, at = 0, begin, sweep, width
    cdef double t, norm, length
    width = 0
    for pattern in range(n_patterns):
        count = groups[pattern + 1] - groups[pattern]
        if count > 1:
            width = max(width, min(count, size))
    columns_array = np.zeros(n_patterns + 1, dtype=np.int64)
    loading_array = np.zeros((m, width))
    rotated_array = np.zeros((m, q, p))
    vector_array = np.empty(max(m, 1))
    cdef int64_t[::1] columns = columns_array
    cdef double[:, ::1] loading = loading_array
    cdef double[:, :, ::1] rotated = rotated_array
    cdef double[::1] v = vector_array
    with nogil:
        for pattern in range(n_patterns):
            begin = groups[pattern]
            count = groups[pattern + 1] - begin
            if count == 1:
                for i in range(size):
                    rotated[at, i // p, i % p] = cx[begin, i // p, i % p]
                at += 1
                columns[pattern + 1] = at
                continue
            rank = 0
            # Gram-Schmidt, twice, on the columns of the (count x q p) matrix of c_x
            for i in range(size):
                if rank == width:
                    break
                length = 0.0
                for g in range(count):
                    v[g] = cx[begin + g, i // p, i % p]
                    length += v[g] * v[g]
                length = sqrt(length)
                for sweep in range(2):
                    for c in range(rank):
                        t = 0.0
                        for g in range(count):
                            t += loading[begin + g, c] * v[g]
                        for g in range(count):
                            v[g] -= t * loading[begin + g, c]
                norm = 0.0
                for g in range(count):
                    norm += v[g] * v[g]
                norm = sqrt(norm)
                if norm <= 1e-13 * length or norm == 0.0:
                    continue
                for g in range(count):
                    loading[begin + g, rank] = v[g] / norm
                rank += 1
            for c in range(rank):
                for i in range(size):
                    t = 0.0
                    for g in range(count):
                        t += loading[begin + g, c] * cx[begin + g, i // p, i % p]
                    rotated[at + c, i // p, i % p] = t
            at += rank
            columns[pattern + 1] = at
    return columns_array, loading_array, rotated_array[:at]


def compress(const double[:, :, ::1] packed, Py_ssize_t n_groups, Py_ssize_t q, Py_ssize_t k):
    """Replace groups of one pattern by the columns of a factor of their Gram matrix.

    Parameters
    ----------
    packed : (blocks, stride, lanes) array
        As written by `factor` (see lanes/lanes.pyx).
    n_groups, q, k : int

    Returns
    -------
    (blocks, stride, lanes) array or None
        None when it would not pay.
    """
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, stride = n_a + n_c + 1
    cdef Py_ssize_t n_patterns, i, j, l, r, rank, pos, total = 0, start, count, lanes = packed.shape[2]
    cdef Groups g = Groups(&packed[0, 0, 0], n_groups, packed.shape[1], lanes, n_a)
    label_array = pattern_labels(packed, n_groups, q)
    if label_array is None:
        return None
    n_patterns = int(label_array.max()) + 1
    counts_array = np.bincount(label_array, minlength=n_patterns)
    expected = np.minimum(counts_array, n_c).sum()
    if (expected + lanes - 1) // lanes >= (n_groups + lanes - 1) // lanes:
        return None
    order_array = np.argsort(label_array, kind="stable") if n_patterns > 1 else np.arange(n_groups)
    first_array = np.zeros(n_patterns, dtype=np.int64)
    first_array[1:] = np.cumsum(counts_array[: n_patterns - 1])
    first_array = order_array[first_array]
    cdef const int64_t[::1] counts = counts_array.astype(np.int64), order = order_array.astype(np.int64, copy=False)
    cdef const int64_t[::1] first = first_array.astype(np.int64)
    out_array = np.zeros(((expected + lanes - 1) // lanes, stride, lanes))
    cdef double[:, :, ::1] out = out_array
    cdef double* G = <double*> malloc((n_c * n_c + 3 * n_c + n_c * (n_c + 1) // 2 * lanes) * sizeof(double))
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
                sum_gram(&g, n_c, &order[start], count, G, v + 3 * n_c)
                rank = semidefinite_factor(n_c, G, v)
            for r in range(max(rank, 1)):
                i = total + r
                for j in range(n_a):
                    out[i // lanes, j, i % lanes] = packed[first[pos] // lanes, j, first[pos] % lanes]
                if r < rank:
                    for j in range(n_c):
                        if count <= n_c:
                            l = order[start + r]
                            out[i // lanes, n_a + j, i % lanes] = packed[l // lanes, n_a + j, l % lanes]
                        else:
                            out[i // lanes, n_a + j, i % lanes] = G[r * n_c + j]
                out[i // lanes, stride - 1, i % lanes] = (1.0 if r < count else 0.0) if count <= n_c else (
                    <double> count if r == 0 else 0.0)
            total += max(rank, 1)
            start += count
    free(G)
    return out_array[: (total + lanes - 1) // lanes]


def stand_for(const double[::1] pattern, const double[::1] gram, Py_ssize_t n_groups, Py_ssize_t q, Py_ssize_t k,
              Py_ssize_t lanes):
    """What `compress` gives of groups that all have one R.

    Parameters
    ----------
    pattern : (q(q+1)/2,) array
        R by rows.
    gram : (qk(qk+1)/2,) array
        Sum of vec(c) vec(c)', packed lower triangle.
    n_groups, q, k, lanes : int
        More groups than q k.
    """
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, i, j, rank, pos = 0
    G_array = np.empty((n_c + 2, n_c))
    cdef double[:, ::1] G = G_array
    for i in range(n_c):
        for j in range(i + 1):
            G[i, j] = G[j, i] = gram[pos]
            pos += 1
    rank = semidefinite_factor(n_c, &G[0, 0], &G[n_c, 0])
    count = max(rank, 1)
    columns = np.zeros(((count + lanes - 1) // lanes * lanes, n_a + n_c + 1))
    columns[:count, :n_a] = pattern
    columns[:rank, n_a:-1] = G_array[:rank]
    columns[0, n_a + n_c] = n_groups
    return np.ascontiguousarray(columns.reshape(-1, lanes, n_a + n_c + 1).transpose(0, 2, 1))
