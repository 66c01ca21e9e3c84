# cython: language_level=3
"""Whether a criterion may have several minima: values at many points, and designs for which theory knows."""
from libc.math cimport fabs, INFINITY, isfinite
from libc.stdlib cimport calloc
from libc.stdlib cimport free as free_memory
from libc.time cimport time, time_t

from cpython.exc cimport PyErr_CheckSignals

import numpy as np

from fastlmm_core.kernels._matrices cimport place
from fastlmm_core.kernels._newton cimport Objective, RAISED, reraise


cdef double PLAY = 1e-9
"""Relative rounding error by which the criterion may rise along a path that falls."""


cdef int value_at(Objective f, const double* theta, double* value, time_t* asked) except -1 nogil:
    """The criterion, infinite where it is not defined; signals are looked at once in a second."""
    cdef int status = f.evaluate_(theta, 0)
    value[0] = f.value_ if status == 0 else INFINITY
    if status == RAISED:
        with gil:
            reraise()
    if time(NULL) != asked[0]:
        asked[0] = time(NULL)
        with gil:
            PyErr_CheckSignals()
    return 0


cdef int falls_to(Objective f, const double* theta, double value, const double* minimum, double lowest,
                  const double[::1] shares, double* place, time_t* asked) except -1 nogil:
    """Whether the criterion falls all the way from a point to a minimum."""
    cdef double before = value, here
    cdef Py_ssize_t i, s
    if not isfinite(lowest):
        return 0
    for s in range(shares.shape[0]):
        for i in range(f.n_par):
            place[i] = minimum[i] + shares[s] * (theta[i] - minimum[i])
        value_at(f, place, &here, asked)
        if not before >= here - PLAY * fabs(here):
            return 0
        before = here
    return before >= lowest - PLAY * fabs(lowest)


def falls(Objective f, const double[::1] theta, double value, const double[::1] minimum, double lowest,
          const double[::1] shares):
    """Whether the criterion falls all the way along the straight line from a point to a minimum.

    Parameters
    ----------
    f : Objective
    theta, minimum : (n_par,) arrays
    value, lowest : float
        The criterion there.
    shares : array
        Parts of the way at which it is evaluated, the point first: decreasing.
    """
    cdef time_t asked = time(NULL)
    cdef double[::1] place = np.empty(max(f.n_par, 1))
    cdef int found
    if theta.shape[0] != f.n_par or minimum.shape[0] != f.n_par:
        raise ValueError(f"points need {f.n_par} elements")
    with nogil:
        found = falls_to(f, &theta[0], value, &minimum[0], lowest, shares, &place[0], &asked)
    return found != 0


def screen(Objective f, const double[:, ::1] points, const double[::1] unit, const Py_ssize_t[:, ::1] neighbours,
           minimum=None, double lowest=INFINITY, shares=()):
    """Evaluate `f` at all points.

    Parameters
    ----------
    f : Objective
    points : (count, n_par) array
    unit : (n_par,) array
        By which the points are multiplied.
    neighbours : (count, near) intp array
        The points nearest to each.
    minimum : (n_par,) array, optional
        A minimum, its value `lowest`: valleys from which the criterion falls all the way to it are left out.
    shares : array
        See `falls`.

    Returns
    -------
    thetas : (count, n_par) array
        Points times unit.
    values : (count,) array
        Infinite where the criterion is not defined.
    valleys : intp array
        Points whose value none of their neighbours falls below, the lowest first.
    """
    cdef Py_ssize_t count = points.shape[0], near = neighbours.shape[1], p = f.n_par, i, j, k, found = 0, left = 0
    if points.shape[1] != p or unit.shape[0] != p or neighbours.shape[0] != count:
        raise ValueError(f"points need {p} columns, and neighbours as many rows as there are points")
    thetas_array = np.empty((count + 1, p))
    values_array = np.empty(count)
    valleys_array = np.empty(count, dtype=np.intp)
    cdef double[:, ::1] thetas = thetas_array
    cdef double[::1] values = values_array
    cdef Py_ssize_t[::1] valleys = valleys_array
    cdef const double[::1] known, parts
    cdef bint low, look = minimum is not None
    cdef time_t asked = time(NULL)
    if look:
        known = minimum
        parts = shares
    with nogil:
        for i in range(count):
            for j in range(p):
                thetas[i, j] = points[i, j] * unit[j]
            value_at(f, &thetas[i, 0], &values[i], &asked)
        for i in range(count):
            low = isfinite(values[i])
            for j in range(near):
                k = neighbours[i, j]
                # of equals the first counts
                if values[k] < values[i] or (values[k] == values[i] and k < i):
                    low = False
                    break
            if low:
                k = found
                while k > 0 and values[valleys[k - 1]] > values[i]:
                    valleys[k] = valleys[k - 1]
                    k -= 1
                valleys[k] = i
                found += 1
        if look:
            for k in range(found):
                i = valleys[k]
                if not falls_to(f, &thetas[i, 0], values[i], &known[0], lowest, parts, &thetas[count, 0], &asked):
                    valleys[left] = i
                    left += 1
            found = left
    return thetas_array[:count], values_array, valleys_array[:found]


cdef double SAME = 1e-10
"""Share of its size by which what theory takes to be equal may differ by rounding."""


# Factored groups, and what is asked of them.
cdef struct Groups:
    const double* packed        # (blocks, stride, lanes)
    Py_ssize_t blocks, stride, lanes, q, k
    const unsigned char* inside  # (q, q) free elements of G^


cdef bint alike(const Groups* g) noexcept nogil:
    """Whether all groups that are there have the same Z_i'Z_i of full rank, and it is block diagonal like G^."""
    cdef Py_ssize_t q = g.q, n_a = q * (q + 1) // 2, block, lane, a, b, j, r
    cdef double size = 0.0
    cdef bint some
    cdef const double* one
    cdef const double* first = NULL
    for block in range(g.blocks):
        for lane in range(g.lanes):
            one = g.packed + block * g.stride * g.lanes + lane
            some = False
            for j in range(n_a):
                some = some or one[j * g.lanes] != 0.0
            if not some:
                continue
            if first != NULL:
                for j in range(n_a):
                    if not fabs(one[j * g.lanes] - first[j * g.lanes]) <= SAME * size:
                        return False
                continue
            first = one
            for j in range(n_a):
                size = max(size, fabs(one[j * g.lanes]))
            r = 0
            for a in range(q):
                if not one[r * g.lanes] > SAME * size:
                    return False
                for b in range(a, q):
                    if not g.inside[a * q + b] and fabs(one[r * g.lanes]) > SAME * size:
                        return False
                    r += 1
    return first != NULL


cdef bint projects(Py_ssize_t p, const double* within, double* P) noexcept nogil:
    """Whether P (p, p) = I - within is a projection: c_i = Q_i'X_i, Q_i an orthonormal basis of Z_i, B stacks them,
    P = B'B."""
    cdef Py_ssize_t i, j, r
    cdef double t
    for i in range(p):
        for j in range(p):
            r = i * (i + 1) // 2 + j if i >= j else j * (j + 1) // 2 + i
            P[i * p + j] = (1.0 if i == j else 0.0) - within[r]
    for i in range(p):
        for j in range(p):
            t = 0.0
            for r in range(p):
                t += P[i * p + r] * P[r * p + j]
            if not fabs(t - P[i * p + j]) <= SAME:
                return False
    return True


cdef bint invariant(const Groups* g, double* M) noexcept nogil:
    """Whether the part of B in which row a is row b, and all others are 0, lies in the span of B;
    M: zeros (q, q, p, p)."""
    cdef Py_ssize_t q = g.q, k = g.k, p = k - 1, n_a = q * (q + 1) // 2, block, lane, a, b, i, j
    cdef double norm, total, t
    cdef const double* c
    cdef double* own
    for block in range(g.blocks):
        for lane in range(g.lanes):
            c = g.packed + (block * g.stride + n_a) * g.lanes + lane
            for a in range(q):
                for b in range(q):
                    own = M + (a * q + b) * p * p
                    if g.inside[a * q + b]:
                        for i in range(p):
                            t = c[(a * k + i) * g.lanes]
                            for j in range(p):
                                own[i * p + j] += t * c[(b * k + j) * g.lanes]
    for b in range(q):
        total = 0.0
        for i in range(p):
            total += M[(b * q + b) * p * p + i * (p + 1)]
        for a in range(q):
            if g.inside[a * q + b]:
                norm = 0.0
                for i in range(p * p):
                    norm += M[(a * q + b) * p * p + i] * M[(a * q + b) * p * p + i]
                if not fabs(norm - total) <= SAME:
                    return False
    return True


def balanced(packed, within, Py_ssize_t q, Py_ssize_t k, free):
    """Whether the criterion of one grouping factor is known to have one minimum only.

    All groups have the same A = Z_i'Z_i, block diagonal like G^, and G^ does not change the least-squares estimates:
    what X has between groups is invariant under the blocks of G^.  The criterion is then convex in the precisions.

    Parameters
    ----------
    packed : (blocks, K, lanes) array
        Factored groups, possibly compressed.
    within : ((p+1)(p+2)/2,) array
        [X y]'[X y] less its part between groups, X orthonormal.
    q, k : int
    free : (q, q) bool array
        Free elements of G^.
    """
    cdef Groups g
    cdef Py_ssize_t p = k - 1
    cdef const double* left = <const double*> place(within)
    cdef double* work
    cdef bint same
    g.blocks, g.stride, g.lanes = packed.shape
    g.packed, g.inside, g.q, g.k = <const double*> place(packed), <const unsigned char*> place(free), q, k
    with nogil:
        same = alike(&g)
    if not same:
        return False
    work = <double*> calloc(p * p * (q * q + 1) + 1, sizeof(double))
    if work == NULL:
        raise MemoryError()
    with nogil:
        same = projects(p, left, work) and invariant(&g, work + p * p)
    free_memory(work)
    return same


def vary_freely(packed, raw, Py_ssize_t q, Py_ssize_t wanted, double least):
    """Whether so many of the first groups take all random effects and have rows left over.

    Groups have no rows in common, so that X explains as many of their columns as it has itself at most: of more than
    twice as many such groups no direction is explained.  Such a group tells all parameters apart, and all of them
    together do so without X (see `problem.identification.parts_identify`).

    Parameters
    ----------
    packed : (blocks, K, lanes) array
        Factored groups, not compressed.
    raw : (m, K) array
        Cross-products per group; the last column counts rows.
    q, wanted : int
        Twice the columns of X and one more, say.
    least : float
        Pivots above this are not rounding error.
    """
    cdef const double* R = <const double*> place(packed)
    cdef const double* lines = <const double*> place(raw)
    cdef Py_ssize_t stride, lanes, length, m, found = 0, group, a, at
    cdef const double* one
    cdef bint all_taken
    _, stride, lanes = packed.shape
    m, length = raw.shape
    m = min(m, 4 * wanted + 8)
    with nogil:
        for group in range(m):
            all_taken = lines[(group + 1) * length - 1] > q
            one = R + (group // lanes) * stride * lanes + group % lanes
            at = 0
            for a in range(q, 0, -1):
                all_taken = all_taken and one[at * lanes] > least
                at += a
            found += all_taken
    return found >= wanted
