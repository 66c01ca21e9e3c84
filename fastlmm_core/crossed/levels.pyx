# cython: language_level=3
"""Cross-products between the levels of several grouping factors, and the patterns in which they occur.

Rows are given whitened and conditioned: Z of each factor, [X y] in one array.  Codes run from 0 without gaps.
"""
from libc.math cimport sqrt
from libc.stdint cimport int32_t, int64_t

import numpy as np

from fastlmm_core.kernels._matrices cimport place


def nested_in(const Py_ssize_t[::1] fine, const Py_ssize_t[::1] coarse, Py_ssize_t m):
    """The coarse level of each of the m fine ones, None where some fine level has more than one.

    Parameters
    ----------
    fine, coarse : (n,) intp arrays
    m : int
    """
    cdef Py_ssize_t i, n = fine.shape[0]
    cdef bint nested = True
    parent_array = np.full(m, -1, dtype=np.intp)
    cdef Py_ssize_t[::1] parent = parent_array
    with nogil:
        for i in range(n):
            if parent[fine[i]] < 0:
                parent[fine[i]] = coarse[i]
            elif parent[fine[i]] != coarse[i]:
                nested = False
                break
    return parent_array if nested else None


def sort_rows(const Py_ssize_t[::1] codes, Py_ssize_t m):
    """Stable counting sort.

    Returns
    -------
    start : (m + 1,) intp array
        First place of each level in `order`.
    order : (n,) intp array
        Rows by level.
    """
    cdef Py_ssize_t i, n = codes.shape[0], total = 0, count
    start_array = np.zeros(m + 1, dtype=np.intp)
    order_array = np.empty(n, dtype=np.intp)
    cdef Py_ssize_t[::1] start = start_array, order = order_array
    with nogil:
        for i in range(n):
            start[codes[i]] += 1
        for i in range(m + 1):
            count = start[i]
            start[i] = total
            total += count
        for i in range(n):
            order[start[codes[i]]] = i
            start[codes[i]] += 1
        for i in range(m, 0, -1):
            start[i] = start[i - 1]
        start[0] = 0
    return start_array, order_array


def components(const Py_ssize_t[::1] codes, Py_ssize_t m, const Py_ssize_t[:, ::1] levels, Py_ssize_t n_levels):
    """Connected components of the levels of the last factors, two of them being joined by any common level of `codes`.

    Parameters
    ----------
    codes : (n,) intp array
        Levels, 0 to m - 1, of the factor eliminated last; all zero where none is.
    levels : (factors, n) intp array
        Level of each of the last factors in each row, numbered through from 0 to n_levels - 1.

    Returns
    -------
    (n_levels,) intp array
        Component, from 0, in the order of their first levels.
    """
    cdef Py_ssize_t i, f, a, b, n = codes.shape[0], n_factors = levels.shape[0], count = 0
    first_array = np.full(m, -1, dtype=np.intp)
    root_array = np.arange(n_levels, dtype=np.intp)
    label_array = np.full(n_levels, -1, dtype=np.intp)
    cdef Py_ssize_t[::1] first = first_array, root = root_array, label = label_array
    with nogil:
        for f in range(n_factors):
            for i in range(n):
                a = levels[f, i]
                b = first[codes[i]]
                if b < 0:
                    first[codes[i]] = a
                    continue
                while root[a] != a:
                    root[a] = root[root[a]]
                    a = root[a]
                while root[b] != b:
                    root[b] = root[root[b]]
                    b = root[b]
                if a < b:
                    root[b] = a
                else:
                    root[a] = b
        for i in range(n_levels):
            a = i
            while root[a] != a:
                a = root[a]
            if label[a] < 0:
                label[a] = count
                count += 1
            label[i] = label[a]
    return label_array


def own_products(const Py_ssize_t[::1] codes, const double[:, ::1] Z, const double[:, ::1] xy, Py_ssize_t m):
    """Z_a'Z_a (m, q, q) and Z_a'[X y] (m q, k) of the levels of one factor."""
    cdef Py_ssize_t i, a, b, j, n = codes.shape[0], q = Z.shape[1], k = xy.shape[1]
    own_array = np.zeros((m, q, q))
    cross_array = np.zeros((m * q, k))
    cdef double[:, :, ::1] own = own_array
    cdef double[:, ::1] cross = cross_array
    cdef double t
    with nogil:
        for i in range(n):
            for a in range(q):
                t = Z[i, a]
                for j in range(k):
                    cross[codes[i] * q + a, j] += t * xy[i, j]
                for b in range(a + 1):
                    own[codes[i], a, b] += t * Z[i, b]
        for i in range(m):
            for a in range(q):
                for b in range(a):
                    own[i, b, a] = own[i, a, b]
    return own_array, cross_array


def chain_products(const Py_ssize_t[::1] codes, const double[:, ::1] Z, const double[:, ::1] other,
                   double[:, :, ::1] out, Py_ssize_t column):
    """Add Z_a'other_a to columns `column`.. of out (m, q, columns):
    the products of a level with one that contains it."""
    cdef Py_ssize_t i, a, b, n = codes.shape[0], q = Z.shape[1], r = other.shape[1]
    cdef double t
    with nogil:
        for i in range(n):
            for a in range(q):
                t = Z[i, a]
                for b in range(r):
                    out[codes[i], a, column + b] += t * other[i, b]


def panel_products(const Py_ssize_t[::1] codes, Py_ssize_t m, const double[:, ::1] Z,
                   const Py_ssize_t[:, ::1] levels, const Py_ssize_t[::1] order, const double[:, ::1] others):
    """Neighbours of each level among the last factors, and the products with them.

    Parameters
    ----------
    codes : (n,) intp array
    m : int
    Z : (n, q) array
    levels : (L, 5) intp array
        For each level of the last factors, in the order of their slots: first and last + 1 place in `order`, first
        column in `others`, number of columns, slot.
    order : intp array
        Rows by level, for each factor in turn.
    others : (n, columns) array
        Z of the last factors, side by side.

    Returns
    -------
    start : (m + 1,) intp array
        First place of each level in `slots`.
    slots : int32 array
        Slots of the neighbours of each level, ascending.
    panel : array
        The products, (q, width) for each level, from q * start[a] on.
    """
    cdef Py_ssize_t i, a, b, c, l, row, width, column, place, n_levels = levels.shape[0], q = Z.shape[1], total = 0
    cdef double t
    start_array = np.zeros(m + 1, dtype=np.intp)
    last_array = np.full(m, -1, dtype=np.intp)
    fill_array = np.zeros(m, dtype=np.intp)
    cdef Py_ssize_t[::1] start = start_array, last = last_array, fill = fill_array
    cdef int32_t[::1] slots
    cdef double[::1] panel
    with nogil:
        for l in range(n_levels):
            for i in range(levels[l, 0], levels[l, 1]):
                a = codes[order[i]]
                if last[a] != l:
                    last[a] = l
                    start[a + 1] += levels[l, 3]
        for a in range(m):
            start[a + 1] += start[a]
            last[a] = -1
        total = start[m]
    slots_array = np.empty(total, dtype=np.int32)
    panel_array = np.zeros(total * q)
    slots = slots_array
    panel = panel_array
    with nogil:
        for l in range(n_levels):
            width = levels[l, 3]
            column = levels[l, 2]
            for i in range(levels[l, 0], levels[l, 1]):
                row = order[i]
                a = codes[row]
                if last[a] != l:
                    last[a] = l
                    for c in range(width):
                        slots[start[a] + fill[a] + c] = <int32_t> (levels[l, 4] + c)
                    fill[a] += width
                for b in range(q):
                    t = Z[row, b]
                    place = q * start[a] + b * (start[a + 1] - start[a]) + fill[a] - width
                    for c in range(width):
                        panel[place + c] += t * others[row, column + c]
    return start_array, slots_array, panel_array


def places_above(const Py_ssize_t[::1] start, const int32_t[::1] slots, const Py_ssize_t[::1] parent,
                 const Py_ssize_t[::1] start_above, const int32_t[::1] slots_above):
    """Where each neighbour of a level stands in the list of the level that contains it (int32 array like `slots`)."""
    cdef Py_ssize_t a, i, j, m = parent.shape[0]
    out_array = np.empty(slots.shape[0], dtype=np.int32)
    cdef int32_t[::1] out = out_array
    with nogil:
        for a in range(m):
            j = start_above[parent[a]]
            for i in range(start[a], start[a + 1]):
                while slots_above[j] != slots[i]:
                    j += 1
                out[i] = <int32_t> (j - start_above[parent[a]])
    return out_array


def rotated_products(const double[:, ::1] raw, const Py_ssize_t[::1] order, const double[:, ::1] z_map,
                     const double[:, ::1] xy_map):
    """Cross-products of groups in other columns.

    Parameters
    ----------
    raw : (m, line) array
        A = Z'Z (lower triangle by rows), C = Z'[X y] and the count of each group, as `accumulate` gives them.
    order : (m,) intp array
        Groups in the order wanted.
    z_map : (r, Q) array
        Columns Z z_map for the r columns of Z.
    xy_map : upper triangular (k, k) array

    Returns
    -------
    A, C : (m, Q, Q), (m, Q, k) arrays
        In the order wanted.
    """
    cdef Py_ssize_t m = order.shape[0], r = z_map.shape[0], q = z_map.shape[1], k = xy_map.shape[0], g, i, j, l, place
    cdef Py_ssize_t n_a = r * (r + 1) // 2
    cdef double t
    cdef const double* source
    A_array = np.empty((m, q, q))
    C_array = np.empty((m, q, k))
    cdef double[:, :, ::1] A = A_array, C = C_array
    cdef double[:, ::1] half = np.empty((r, max(q, k)))
    with nogil:
        for g in range(m):
            source = &raw[order[g], 0]
            for i in range(r):
                for j in range(q):
                    t = 0.0
                    for l in range(r):
                        place = i * (i + 1) // 2 + l if i >= l else l * (l + 1) // 2 + i
                        t += source[place] * z_map[l, j]
                    half[i, j] = t
            for i in range(q):
                for j in range(q):
                    t = 0.0
                    for l in range(r):
                        t += z_map[l, i] * half[l, j]
                    A[g, i, j] = t
            for i in range(r):
                for j in range(k):
                    t = 0.0
                    for l in range(j + 1):
                        t += source[n_a + i * k + l] * xy_map[l, j]
                    half[i, j] = t
            for i in range(q):
                for j in range(k):
                    t = 0.0
                    for l in range(r):
                        t += z_map[l, i] * half[l, j]
                    C[g, i, j] = t
    return A_array, C_array


def explained(const double[:, :, ::1] own, const double[:, :, ::1] cross, const unsigned char[::1] some):
    """sum C_a'K_a^-1 C_a (k, k) over the levels that `some` marks: what the columns of Z explain of [X y] within them.

    Directions in which K_a is singular are left out.
    """
    cdef Py_ssize_t m = own.shape[0], q = own.shape[1], k = cross.shape[2], a, i, j, l
    cdef double t, u
    out_array = np.zeros((k, k))
    cdef double[:, ::1] out = out_array
    cdef double[:, ::1] K = np.empty((q, q)), C = np.empty((q, k))
    with nogil:
        for a in range(m):
            if not some[a]:
                continue
            for i in range(q):
                for j in range(q):
                    K[i, j] = own[a, i, j]
                for j in range(k):
                    C[i, j] = cross[a, i, j]
            for i in range(q):
                if not K[i, i] > 1e-12 * own[a, i, i]:
                    continue
                u = 1.0 / K[i, i]
                for j in range(k):
                    for l in range(k):
                        out[j, l] += u * C[i, j] * C[i, l]
                for j in range(i + 1, q):
                    t = K[j, i] * u
                    for l in range(i, q):
                        K[j, l] -= t * K[i, l]
                    for l in range(k):
                        C[j, l] -= t * C[i, l]
    return out_array


cdef double ROUNDING = 1e-12
"""Share of a column that is its rounding error."""


cdef void orthonormal_leaf(const int64_t* row, Py_ssize_t n, const double[:, ::1] Z, double[:, ::1] unit, double* R,
                           double* rest, double* c) noexcept nogil:
    """U and R, upper triangular, with Z = U R in some rows: orthonormal columns, zero where a column adds nothing."""
    cdef Py_ssize_t q = Z.shape[1], i, j, l, again
    cdef double size, whole
    for j in range(q):
        whole = 0.0
        for i in range(n):
            rest[i] = Z[row[i], j]
            whole += rest[i] * rest[i]
        for again in range(2):
            for l in range(j):
                c[l] = 0.0
                for i in range(n):
                    c[l] += unit[row[i], l] * rest[i]
                R[l * q + j] += c[l]
            for i in range(n):
                for l in range(j):
                    rest[i] -= unit[row[i], l] * c[l]
        size = 0.0
        for i in range(n):
            size += rest[i] * rest[i]
        size = sqrt(size)
        if size > ROUNDING * sqrt(whole):
            R[j * q + j] = size
            for i in range(n):
                unit[row[i], j] = rest[i] / size


cdef void add_rest(Py_ssize_t J, Py_ssize_t p, const double* wide, const double* x, double* cc, double* cx, double* xx
                   ) noexcept nogil:
    """Add the products of a row of the core's columns and of X, lower triangles by rows."""
    cdef Py_ssize_t i, j, pos = 0
    cdef double t
    for i in range(J):
        t = wide[i]
        if t != 0.0:
            for j in range(i + 1):
                cc[pos + j] += t * wide[j]
            for j in range(p):
                cx[i * p + j] += t * x[j]
        pos += i + 1
    pos = 0
    for i in range(p):
        for j in range(i + 1):
            xx[pos] += x[i] * x[j]
            pos += 1


def leaf_products(const int64_t[::1] start, const int64_t[::1] order, const int64_t[:, ::1] slots,
                  const double[:, ::1] value, const double[:, ::1] Z, const double[:, ::1] X, const int64_t[::1] core,
                  const int64_t[::1] leaves):
    """Products of the levels of one factor, the leaves, with the effects of others, and what the leaves leave of those.

    Parameters
    ----------
    start : (m + 1,) int64 array
        First place in `order` of each leaf, those of a part one after the other.
    order : (n,) int64 array
        Rows by leaf.
    slots, value : (n, s) arrays
        Effects of others that a row has, and their columns in it.
    Z, X : (n, q), (n, p) arrays
        Columns of the leaves, and of X.
    core, leaves : (n_parts + 1,) int64 arrays
        First effect, and first leaf, of each part.

    Returns
    -------
    unit : (n, q) array
        Orthonormal columns of each leaf, zero where a column adds nothing.
    R : (m, q, q) array
        Upper triangular: Z = unit R.
    of_core : array
        unit'W of each leaf (q, J), J effects of the core in its part, one leaf after the other.
    of_x : (m, q, p) array
        unit'X.
    cc, cx, xx : arrays
        W'W (lower triangles by rows, part after part), W'X (n_core, p) and X'X (a lower triangle), less what the leaves
        have of them.
    """
    cdef Py_ssize_t n = X.shape[0], p = X.shape[1], q = Z.shape[1], m = start.shape[0] - 1, n_parts = core.shape[0] - 1
    cdef Py_ssize_t part, leaf, i, j, a, r, first, J, size, at = 0, triangle = 0, most = 0, widest = 0
    cdef double t
    sizes = np.diff(core)
    count = np.diff(leaves)
    unit_array, R_array, x_array = np.zeros((n, q)), np.zeros((m, q, q)), np.zeros((m, q, p))
    core_array = np.zeros(int(q * (sizes * count).sum()))
    cc_array, cx_array = np.zeros(int((sizes * (sizes + 1) // 2).sum())), np.zeros((int(sizes.sum()), p))
    xx_array = np.zeros(p * (p + 1) // 2)
    cdef double[:, ::1] unit = unit_array
    cdef double* R = <double*> place(R_array)
    cdef double* of_x = <double*> place(x_array)
    cdef double* of_core = <double*> place(core_array)
    cdef double* cc = <double*> place(cc_array)
    cdef double* cx = <double*> place(cx_array)
    cdef double* xx = <double*> place(xx_array)
    for leaf in range(m):
        most = max(most, start[leaf + 1] - start[leaf])
    for part in range(n_parts):
        widest = max(widest, core[part + 1] - core[part])
    cdef double[::1] work = np.empty(max(most + q, widest + p))
    cdef double* wide = &work[0]
    cdef double* x = wide + widest
    with nogil:
        for part in range(n_parts):
            first = core[part]
            J = core[part + 1] - first
            for leaf in range(leaves[part], leaves[part + 1]):
                size = start[leaf + 1] - start[leaf]
                orthonormal_leaf(&order[start[leaf]], size, Z, unit, R + leaf * q * q, wide, wide + most)
                for i in range(start[leaf], start[leaf + 1]):
                    r = order[i]
                    for a in range(q):
                        for j in range(slots.shape[1]):
                            of_core[at + a * J + slots[r, j] - first] += unit[r, a] * value[r, j]
                        for j in range(p):
                            of_x[(leaf * q + a) * p + j] += unit[r, a] * X[r, j]
                for i in range(start[leaf], start[leaf + 1]):
                    r = order[i]
                    for j in range(J):
                        wide[j] = 0.0
                    for j in range(slots.shape[1]):
                        wide[slots[r, j] - first] += value[r, j]
                    for j in range(p):
                        x[j] = X[r, j]
                    for a in range(q):
                        t = unit[r, a]
                        for j in range(J):
                            wide[j] -= t * of_core[at + a * J + j]
                        for j in range(p):
                            x[j] -= t * of_x[(leaf * q + a) * p + j]
                    add_rest(J, p, wide, x, cc + triangle, cx + first * p, xx)
                at += q * J
            triangle += J * (J + 1) // 2
    return unit_array, R_array, core_array, x_array, cc_array, cx_array, xx_array
