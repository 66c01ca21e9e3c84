# cython: language_level=3
"""Refits after deletions, each in time that does not depend on the number of groups.

All that the criterion needs of the groups are the sums log|V^| and H = [X y]'V^^-1[X y].  Near the optimum of the
full data they are polynomials of the covariance parameters to rounding error, so that a deletion costs these
polynomials less the contribution of what is deleted, which is exact.

Coordinates: G^ = F (I + S) F' with F the factor at the optimum of the full data; the free parameters are the elements
of S inside the blocks of G^.  A contribution is that of a group with cross-products A = R'R, C = R'c, T = w + c'c,
through U = R F: W = I + U (I + S) U' = M M', N = (M^-1 U)'(M^-1 U), E = (M^-1 U)'(M^-1 c).

Newton's method itself is in lanes/deletions.pxi, a deletion in every lane; here are its inputs and results.
"""
from libc.math cimport NAN
from libc.stdint cimport int64_t
from libc.stdlib cimport free

import numpy as np

from fastlmm_core.kernels._criterion cimport kernels
from fastlmm_core.lanes.deletions cimport FAR, FOUND, TILE, DeletionWork, Deletions, lay_deletions
from fastlmm_core.small.arena cimport Arena, furnish


cdef describe(Deletions* d, sums):
    """What the deletions have in common, from the named fields of a DeletionSums; the objects that own the memory."""
    cdef const double[:, ::1] table = sums.table, second = sums.second, factor = sums.factor
    cdef const int64_t[::1] parent = sums.parent, variable = sums.variable, rows = sums.rows, columns = sums.columns
    cdef Py_ssize_t width = table.shape[1], j, t
    cdef double[:, :, ::1] tiles
    d.q = factor.shape[0]
    d.k = sums.k
    d.n_h = d.k * (d.k + 1) // 2
    d.n_par = rows.shape[0]
    d.line = d.q * d.q + d.q * d.k + d.n_h
    d.n_terms = table.shape[0]
    d.n_lower = sums.n_lower
    d.n_tiles = (width + TILE - 1) // TILE
    tiles = np.zeros((d.n_tiles, d.n_terms, TILE))
    for t in range(d.n_terms):
        for j in range(width):
            tiles[j // TILE, t, j % TILE] = table[t, j]
    d.row = &rows[0]
    d.col = &columns[0]
    d.parent = &parent[0]
    d.variable = &variable[0]
    d.tiles = &tiles[0, 0, 0]
    d.second = &second[0, 0]
    d.factor = &factor[0, 0]
    d.reml = sums.reml
    d.radius = sums.radius
    d.rank_tolerance = sums.rank_tolerance
    return sums, tiles


# Where the results of each deletion go.
cdef struct Found:
    double* S           # (., n_par)
    double* value
    double* r2
    double* decrement
    double* beta        # (., p)
    double* inverse     # (., p, p)
    int64_t* status


cdef void keep(const Deletions* d, const DeletionWork* w, Py_ssize_t lane, int status, const Found* out, Py_ssize_t j
               ) noexcept nogil:
    """Results of a lane to those of deletion j."""
    cdef Py_ssize_t lanes = kernels.lanes, k = d.k, p = k - 1, a, l, t
    out.status[j] = status
    out.decrement[j] = w.decrement[lane]
    for t in range(d.n_par):
        out.S[j * d.n_par + t] = w.x[t * lanes + lane]
    if status != FOUND:
        return
    # the last evaluation was there, also where neighbours went on
    out.value[j] = w.value[lane]
    out.r2[j] = w.r2[lane]
    for a in range(p):
        out.beta[j * p + a] = -w.b[a * lanes + lane]
        for l in range(a + 1):
            out.inverse[(j * p + a) * p + l] = w.inverse[(a * k + l) * lanes + lane]


def refit_deletions(sums, lines, const double[:, ::1] start, Py_ssize_t n_rows, double tolerance,
                    Py_ssize_t max_iterations):
    """Newton's method for every deletion.

    Parameters
    ----------
    sums : DeletionSums
    lines : DeletedLines
    start : (n_deletions, n_par) array
        Where to start.
    n_rows : int
        Of the full data.
    tolerance : float
        Decrement at which to stop.
    max_iterations : int

    Returns
    -------
    S : (n_deletions, n_par) array
    value, r2, decrement : (n_deletions,) arrays
    beta : (n_deletions, p) array
    inverse : (n_deletions, p, p) array
        Inverse of the lower Cholesky factor of H_xx.
    status : (n_deletions,) int64 array
        0 found, 1 out of reach, 2 X loses rank.
    """
    cdef const double[:, ::1] less = lines.less, more = lines.more
    cdef const int64_t[::1] owner = lines.owner, removed = lines.removed
    cdef Py_ssize_t count = owner.shape[0], p = sums.k - 1, lanes = kernels.lanes, block, i, j, lane
    cdef bint both = lines.more is not None
    cdef int found[8]
    cdef const double* old_lines[8]
    cdef const double* new_lines[8]
    cdef const double* starts[8]
    cdef Deletions d
    cdef DeletionWork w
    cdef Found out
    cdef Arena arena = Arena(NULL, 0)
    S_array = np.zeros((count, start.shape[1]))
    scalars_array = np.full((3, count), NAN)
    beta_array = np.full((count, p), NAN)
    inverse_array = np.zeros((count, p, p))
    status_array = np.full(count, FAR, dtype=np.int64)
    results = (S_array, *scalars_array, beta_array, inverse_array, status_array)
    if count == 0:
        return results
    owners = describe(&d, sums)
    d.tolerance = tolerance
    d.max_iterations = max_iterations
    cdef double[:, ::1] S = S_array, scalars = scalars_array, beta = beta_array
    cdef double[:, :, ::1] inverse = inverse_array
    cdef int64_t[::1] status = status_array
    out.S = &S[0, 0]
    out.value = &scalars[0, 0]
    out.r2 = &scalars[1, 0]
    out.decrement = &scalars[2, 0]
    out.beta = &beta[0, 0] if p > 0 else NULL
    out.inverse = &inverse[0, 0, 0] if p > 0 else NULL
    out.status = &status[0]
    lay_deletions(&d, &w, &arena, lanes)
    cdef double* memory = furnish(&arena)
    if memory == NULL:
        raise MemoryError()
    lay_deletions(&d, &w, &arena, lanes)
    with nogil:
        for block in range((count + lanes - 1) // lanes):
            i = block * lanes
            for lane in range(lanes):
                # lanes to spare repeat the last deletion
                j = min(i + lane, count - 1)
                old_lines[lane] = &less[owner[j], 0]
                new_lines[lane] = &more[j, 0] if both else NULL
                starts[lane] = &start[j, 0]
                w.nu[lane] = <double> (n_rows - removed[j] - (p if d.reml else 0))
            kernels.refit(&d, old_lines, new_lines if both else NULL, starts, &w, found)
            for lane in range(min(lanes, count - i)):
                keep(&d, &w, lane, found[lane], &out, i + lane)
    free(memory)
    return results


def others_in_group(const double[:, ::1] Z, const double[:, ::1] xy, const double[:] weights,
                    const int64_t[::1] order, const int64_t[::1] starts):
    """Cross-products of the other rows of each row's group, as sums that take nothing away.

    Parameters
    ----------
    Z : (n, q) array
    xy : (n, k) array
        [X y].
    weights : (n,) array or None
    order : (n,) array
        Rows sorted by group.
    starts : (m + 1,) array
        Where each group begins in `order`, and n.

    Returns
    -------
    (n, q (q + 1) / 2 + q k + 1) array
        A, C and the number of rows (the layout of `accumulate`).
    (n, k (k + 1) / 2) array
        T = sum w [x y][x y]'.
    """
    cdef Py_ssize_t n = Z.shape[0], q = Z.shape[1], k = xy.shape[1], m = starts.shape[0] - 1
    cdef Py_ssize_t n_a = q * (q + 1) // 2, line = n_a + q * k + 1, n_h = k * (k + 1) // 2
    cdef Py_ssize_t g, i, way, at, first, last, row, a, b, j, l, pos
    cdef double w, z
    raw_array = np.zeros((n, line))
    outer_array = np.zeros((n, n_h))
    acc_array = np.empty(line + n_h)
    cdef double[:, ::1] raw = raw_array, outer = outer_array
    cdef double[::1] acc = acc_array
    with nogil:
        for g in range(m):
            first = starts[g]
            last = starts[g + 1]
            for way in range(2):
                for pos in range(line + n_h):
                    acc[pos] = 0.0
                for i in range(last - first):
                    at = first + i if way == 0 else last - 1 - i
                    row = order[at]
                    for pos in range(line):
                        raw[row, pos] += acc[pos]
                    for pos in range(n_h):
                        outer[row, pos] += acc[line + pos]
                    w = 1.0 if weights is None else weights[row]
                    pos = 0
                    for a in range(q):
                        z = w * Z[row, a]
                        for b in range(a + 1):
                            acc[pos] += z * Z[row, b]
                            pos = pos + 1
                    for a in range(q):
                        z = w * Z[row, a]
                        for j in range(k):
                            acc[pos] += z * xy[row, j]
                            pos = pos + 1
                    acc[pos] += 1.0
                    pos = pos + 1
                    for j in range(k):
                        z = w * xy[row, j]
                        for l in range(j + 1):
                            acc[pos] += z * xy[row, l]
                            pos = pos + 1
    return raw_array, outer_array
