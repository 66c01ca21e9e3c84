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


def refit_deletions(const double[:, ::1] table, const int64_t[::1] parent, const int64_t[::1] variable,
                    Py_ssize_t n_lower, const double[:, ::1] second, const int64_t[::1] rows,
                    const int64_t[::1] columns, const double[:, ::1] factor, Py_ssize_t k, bint reml,
                    Py_ssize_t n_rows, const double[:, ::1] less, const int64_t[::1] owner, const double[:, ::1] more,
                    const int64_t[::1] removed, const double[:, ::1] start, double radius, double rank_tolerance,
                    double tolerance, Py_ssize_t max_iterations):
    """Newton's method for every deletion.

    Parameters
    ----------
    table : (n_terms, (1 + n_par) (1 + n_h)) array
        Coefficients of the monomials of S / radius in the sums over all groups: log|W| and H (packed lower triangle by
        rows, n_h = k (k + 1) / 2), then their derivatives in each free element of S.
    parent, variable : (n_terms,) arrays
        Monomial t is monomial parent[t] times S[variable[t]] / radius; the first is 1.
    n_lower : int
        Terms, the first ones, of the derivatives.
    second : (n_par * n_par, 1 + n_h) array
        Second derivatives of the sums at S = 0: enough for the steps, the gradient is exact.
    rows, columns : (n_par,) arrays
        Positions of the free elements.
    factor : (q, q) array
        F.
    less : (m, q q + q k + n_h) array
        R, c and w of the groups that lose rows.
    owner : (n_deletions,) array
        Line of `less` of each deletion.
    more : (n_deletions, .) array like less, or None
        What is left of the group after each deletion; None where it is nothing.
    removed : (n_deletions,) array
        Number of rows deleted.
    start : (n_deletions, n_par) array
        Where to start.
    radius : float
        Of the ball |S| <= radius in which the polynomials hold.
    rank_tolerance : float
        A pivot of H_xx smaller than this, relative to its diagonal element, is a loss of rank.
    tolerance : float
        Decrement at which to stop.

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
    cdef Py_ssize_t q = factor.shape[0], p = k - 1, n_par = rows.shape[0], count = owner.shape[0]
    cdef Py_ssize_t n_terms = table.shape[0], width = table.shape[1], block, i, j, a, l, t, lane, lanes = kernels.lanes
    cdef bint both = more is not None
    cdef Deletions d
    cdef DeletionWork w
    cdef int found[8]
    cdef const double* old_lines[8]
    cdef const double* new_lines[8]
    cdef const double* starts[8]
    cdef Arena arena = Arena(NULL, 0)
    cdef double nan = NAN
    d.q = q
    d.k = k
    d.n_h = k * (k + 1) // 2
    d.n_par = n_par
    d.line = q * q + q * k + d.n_h
    d.n_terms = n_terms
    d.n_lower = n_lower
    d.n_tiles = (width + TILE - 1) // TILE
    S_array = np.zeros((count, n_par))
    value_array = np.full(count, nan)
    r2_array = np.full(count, nan)
    decrement_array = np.full(count, nan)
    beta_array = np.full((count, p), nan)
    inverse_array = np.zeros((count, p, p))
    status_array = np.full(count, FAR, dtype=np.int64)
    if count == 0:
        return S_array, value_array, r2_array, decrement_array, beta_array, inverse_array, status_array
    tiles_array = np.zeros((d.n_tiles, n_terms, TILE))
    cdef double[:, :, ::1] tiles = tiles_array
    cdef double[:, ::1] S_out = S_array, beta_out = beta_array
    cdef double[:, :, ::1] inverse_out = inverse_array
    cdef double[::1] value_out = value_array, r2_out = r2_array, decrement_out = decrement_array
    cdef int64_t[::1] status = status_array
    for t in range(n_terms):
        for j in range(width):
            tiles[j // TILE, t, j % TILE] = table[t, j]
    d.row = &rows[0]
    d.col = &columns[0]
    d.parent = &parent[0]
    d.variable = &variable[0]
    d.tiles = &tiles[0, 0, 0]
    d.second = &second[0, 0]
    d.factor = &factor[0, 0]
    d.reml = reml
    d.radius = radius
    d.rank_tolerance = rank_tolerance
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
                w.nu[lane] = <double> (n_rows - removed[j] - (p if reml else 0))
            kernels.refit(&d, old_lines, new_lines if both else NULL, starts, tolerance, max_iterations, &w, found)
            for lane in range(min(lanes, count - i)):
                j = i + lane
                status[j] = found[lane]
                decrement_out[j] = w.decrement[lane]
                for t in range(n_par):
                    S_out[j, t] = w.x[t * lanes + lane]
                if found[lane] != FOUND:
                    continue
                # the last evaluation was there, also where neighbours went on
                value_out[j] = w.value[lane]
                r2_out[j] = w.r2[lane]
                for a in range(p):
                    beta_out[j, a] = -w.b[a * lanes + lane]
                    for l in range(a + 1):
                        inverse_out[j, a, l] = w.inverse[(a * k + l) * lanes + lane]
    free(memory)
    return S_array, value_array, r2_array, decrement_array, beta_array, inverse_array, status_array


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
