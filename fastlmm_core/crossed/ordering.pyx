# cython: language_level=3
"""Order of elimination of the levels of crossed factors: minimum degree while that leaves them sparse.

Levels are joined by elements: sets of levels of which each two are neighbours.  At first these are what the levels of
the factors eliminated before have in common; the elimination of a level melts the elements it belongs to into one,
without the level (the quotient graph of Amestoy, Davis and Duff 1996, SIAM J. Matrix Anal. Appl. 17, 886-905, whose
bound of the degree is taken too).
"""
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

import numpy as np


cdef struct Pool:
    # members of the elements, one after the other
    Py_ssize_t size, room
    int32_t* item


cdef bint reserve(Pool* pool, Py_ssize_t more) noexcept nogil:
    cdef Py_ssize_t room
    cdef int32_t* moved
    if pool.size + more <= pool.room:
        return True
    room = 2 * pool.room + more
    moved = <int32_t*> realloc(pool.item, room * sizeof(int32_t))
    if moved == NULL:
        return False
    pool.item = moved
    pool.room = room
    return True


def minimum_degree(const Py_ssize_t[::1] start, const int32_t[::1] members, const Py_ssize_t[::1] width, double share):
    """Levels to be eliminated one by one, the one with fewest neighbours first, until what is left is nearly dense.

    Parameters
    ----------
    start : (elements + 1,) intp array
        First place of each element in `members`.
    members : int32 array
        Levels of each element, without repetition.
    width : (n,) intp array
        Columns of each level.
    share : float
        The rest is dense once each of its levels has more neighbours than this share of it (in columns).

    Returns
    -------
    order : (eliminated,) intp array
    begin : (eliminated + 1,) intp array
        First place of each eliminated level in `neighbours`.
    neighbours : int32 array
        Levels that are eliminated later, or are left, and that its elimination joins; in no order.
    """
    cdef Py_ssize_t n = width.shape[0], n_given = start.shape[0] - 1, n_elements = n_given + n, i, j, v, u, e, p, l
    cdef Py_ssize_t total = 0, left = 0, done = 0, degree, lowest, first, size, kept
    cdef bint enough = True
    # elements of each level; a level's list never grows, since each new element replaces at least one
    own_array = np.zeros(n + 1, dtype=np.intp)
    of_array = np.empty(members.shape[0], dtype=np.int32)
    count_array = np.zeros(n, dtype=np.intp)
    cdef Py_ssize_t[::1] own = own_array, count = count_array
    cdef int32_t[::1] of = of_array
    # each element: place of its members, how many, columns (-1: no more), columns outside the newest one
    cdef Py_ssize_t[::1] at = np.zeros(n_elements, dtype=np.intp), length = np.zeros(n_elements, dtype=np.intp)
    cdef Py_ssize_t[::1] weight = np.zeros(n_elements, dtype=np.intp), outside = np.zeros(n_elements, dtype=np.intp)
    cdef Py_ssize_t[::1] seen = np.full(n_elements, -1, dtype=np.intp), mark = np.full(n, -1, dtype=np.intp)
    order_array = np.empty(n, dtype=np.intp)
    begin_array = np.zeros(n + 1, dtype=np.intp)
    cdef Py_ssize_t[::1] order = order_array, begin = begin_array
    cdef Py_ssize_t[::1] degrees = np.zeros(n, dtype=np.intp), head, after = np.full(n, -1, dtype=np.intp)
    cdef Py_ssize_t[::1] before = np.full(n, -1, dtype=np.intp)
    cdef Pool pool
    for i in range(n):
        total += width[i]
    head = np.full(total + 1, -1, dtype=np.intp)
    pool.size = members.shape[0]
    pool.room = 4 * pool.size + 16
    pool.item = <int32_t*> malloc(pool.room * sizeof(int32_t))
    if pool.item == NULL:
        raise MemoryError("no memory for the order of elimination")
    with nogil:
        if pool.size:
            memcpy(pool.item, &members[0], pool.size * sizeof(int32_t))
        for e in range(n_given):
            at[e] = start[e]
            length[e] = start[e + 1] - start[e]
            for i in range(start[e], start[e + 1]):
                own[members[i] + 1] += 1
                weight[e] += width[members[i]]
        for v in range(n):
            own[v + 1] += own[v]
        for e in range(n_given):
            for i in range(start[e], start[e + 1]):
                v = members[i]
                of[own[v] + count[v]] = <int32_t> e
                count[v] += 1
        left = total
        for v in range(n):
            degree = 0
            for i in range(own[v], own[v] + count[v]):
                degree += weight[of[i]] - width[v]
            degrees[v] = min(degree, left - width[v])
            insert(v, degrees[v], head, after, before)
        lowest = 0
        while done < n:
            while head[lowest] < 0:
                lowest += 1
            if lowest > share * left:
                break
            v = head[lowest]
            remove(v, lowest, head, after, before)
            # the new element: all that v's elements hold
            size = 0
            for i in range(own[v], own[v] + count[v]):
                size += length[of[i]]
            if not reserve(&pool, size):
                enough = False
                break
            p = n_given + done
            at[p] = pool.size
            mark[v] = v
            for i in range(own[v], own[v] + count[v]):
                e = of[i]
                for j in range(at[e], at[e] + length[e]):
                    u = pool.item[j]
                    if mark[u] != v:
                        mark[u] = v
                        pool.item[pool.size] = <int32_t> u
                        pool.size += 1
                        weight[p] += width[u]
                weight[e] = -1
            length[p] = pool.size - at[p]
            order[done] = v
            begin[done + 1] = begin[done] + length[p]
            done += 1
            left -= width[v]
            # columns of the other elements that are not in the new one
            for j in range(at[p], at[p] + length[p]):
                u = pool.item[j]
                for i in range(own[u], own[u] + count[u]):
                    e = of[i]
                    if weight[e] < 0:
                        continue
                    if seen[e] != p:
                        seen[e] = p
                        outside[e] = weight[e]
                    outside[e] -= width[u]
            for j in range(at[p], at[p] + length[p]):
                u = pool.item[j]
                kept = 0
                degree = weight[p] - width[u]
                for i in range(own[u], own[u] + count[u]):
                    e = of[i]
                    # those within the new element tell nothing beside it
                    if weight[e] >= 0 and outside[e] > 0:
                        of[own[u] + kept] = <int32_t> e
                        kept += 1
                        degree += outside[e]
                of[own[u] + kept] = <int32_t> p
                count[u] = kept + 1
                remove(u, degrees[u], head, after, before)
                degrees[u] = min(degree, left - width[u])
                insert(u, degrees[u], head, after, before)
                lowest = min(lowest, degrees[u])
    if not enough:
        free(pool.item)
        raise MemoryError("no memory for the order of elimination")
    neighbours_array = np.empty(begin[done], dtype=np.int32)
    cdef int32_t[::1] neighbours = neighbours_array
    with nogil:
        for i in range(done):
            p = n_given + i
            for j in range(length[p]):
                neighbours[begin[i] + j] = pool.item[at[p] + j]
    free(pool.item)
    return order_array[:done].copy(), begin_array[: done + 1].copy(), neighbours_array


cdef inline void insert(Py_ssize_t v, Py_ssize_t degree, Py_ssize_t[::1] head, Py_ssize_t[::1] after,
                        Py_ssize_t[::1] before) noexcept nogil:
    after[v] = head[degree]
    before[v] = -1
    if head[degree] >= 0:
        before[head[degree]] = v
    head[degree] = v


cdef inline void remove(Py_ssize_t v, Py_ssize_t degree, Py_ssize_t[::1] head, Py_ssize_t[::1] after,
                        Py_ssize_t[::1] before) noexcept nogil:
    if before[v] >= 0:
        after[before[v]] = after[v]
    else:
        head[degree] = after[v]
    if after[v] >= 0:
        before[after[v]] = before[v]


def spread_products(const Py_ssize_t[::1] level_slot, const Py_ssize_t[::1] comp, Py_ssize_t q,
                    const Py_ssize_t[::1] start, const int32_t[::1] slots, const double[::1] panel,
                    const Py_ssize_t[::1] first_slot, const Py_ssize_t[::1] node_at,
                    const Py_ssize_t[::1] node_slot, const Py_ssize_t[::1] node_start, const int32_t[::1] node_slots,
                    const Py_ssize_t[::1] node_panel, double[::1] out):
    """Products between the levels of two of the last factors, to the panels of those that are eliminated one by one.

    Parameters
    ----------
    level_slot, comp : (m,) intp arrays
        Slot of each level of a factor within its component.
    q : int
    start, slots, panel : arrays
        Neighbours of each level among later factors, as `panel_products` gives them.
    first_slot : (components,) intp array
        Slots of each component before the others.
    node_at : (slots,) intp array
        Eliminated level of each slot, -1 where it is left.
    node_slot, node_start, node_slots, node_panel : arrays
        For each of these: its slot, first place of its later neighbours' slots (ascending), the slots, first place of
        its products with them in `out`.
    out : array
        Added to.
    """
    cdef Py_ssize_t m = level_slot.shape[0], a, i, j, r, w, at, other, node, low, high, mid, target, width
    with nogil:
        for a in range(m):
            w = start[a + 1] - start[a]
            for i in range(w):
                j = slots[start[a] + i]
                for r in range(q):
                    at = level_slot[a] + r
                    # the earlier one of the two bears the product
                    other = max(at, j)
                    node = node_at[first_slot[comp[a]] + min(at, j)]
                    if node < 0:
                        continue
                    low = node_start[node]
                    high = node_start[node + 1] - 1
                    while low < high:
                        mid = (low + high) // 2
                        if node_slots[mid] < other:
                            low = mid + 1
                        else:
                            high = mid
                    width = node_start[node + 1] - node_start[node]
                    target = node_panel[node] + (min(at, j) - node_slot[node]) * width + low - node_start[node]
                    out[target] += panel[q * start[a] + r * w + i]
