# cython: language_level=3
"""Order of elimination of the levels of crossed factors: minimum degree while that leaves them sparse.

Levels are joined by elements: sets of levels of which each two are neighbours.  At first these are what the levels of
the factors eliminated before have in common; the elimination of a level melts the elements it belongs to into one,
without the level (the quotient graph of Amestoy, Davis and Duff 1996, SIAM J. Matrix Anal. Appl. 17, 886-905, whose
bound of the degree is taken too).  Levels that have too many neighbours from the beginning stay to the end, and their
degrees are not followed: they are few, but belong to most of the elements.
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


cdef class Quotient:
    """Levels, the elements that each belongs to, and lists of the levels by degree.

    Parameters
    ----------
    start, members, width :
        See `minimum_degree`.
    """

    cdef Py_ssize_t n, n_given, done, left, lowest      # `left`: columns of the levels that are not eliminated
    cdef Py_ssize_t most                                # neighbours, in columns, of a level that is to be eliminated
    cdef bint any_stay
    cdef const Py_ssize_t[::1] width
    cdef Py_ssize_t[::1] own, count     # elements of each level: first place in `of`, and how many
    cdef int32_t[::1] of
    cdef Py_ssize_t[::1] at, length     # of each element: place of its members, how many
    cdef Py_ssize_t[::1] weight         # columns; -1: it is no more
    cdef Py_ssize_t[::1] outside        # columns that are not in the newest one
    cdef Py_ssize_t[::1] apart          # columns of each level, 0 of those in the newest element
    cdef Py_ssize_t[::1] seen, mark
    cdef unsigned char[::1] stays       # 1 for a level that is not eliminated
    cdef Py_ssize_t[::1] degrees, head, after, before
    cdef Pool pool

    def __cinit__(self, const Py_ssize_t[::1] start, const int32_t[::1] members, const Py_ssize_t[::1] width,
                  double share):
        cdef Py_ssize_t n = width.shape[0], n_given = start.shape[0] - 1, n_elements = n_given + n
        self.n, self.n_given, self.done, self.lowest = n, n_given, 0, 0
        self.width = width
        # a level's list never grows, since each new element replaces at least one
        self.own = np.zeros(n + 1, dtype=np.intp)
        self.count = np.zeros(n, dtype=np.intp)
        self.of = np.empty(members.shape[0], dtype=np.int32)
        self.at = np.zeros(n_elements, dtype=np.intp)
        self.length = np.zeros(n_elements, dtype=np.intp)
        self.weight = np.zeros(n_elements, dtype=np.intp)
        self.outside = np.zeros(n_elements, dtype=np.intp)
        self.apart = np.array(width, dtype=np.intp)
        self.seen = np.full(n_elements, -1, dtype=np.intp)
        self.mark = np.full(n, -1, dtype=np.intp)
        self.degrees = np.zeros(n, dtype=np.intp)
        self.after = np.full(n, -1, dtype=np.intp)
        self.before = np.full(n, -1, dtype=np.intp)
        self.left = int(np.sum(width))
        self.most = <Py_ssize_t> (share * self.left) if share < 1.0 else self.left
        self.any_stay = False
        self.stays = np.zeros(n, dtype=np.uint8)
        self.head = np.full(self.left + 1, -1, dtype=np.intp)
        self.pool.size = members.shape[0]
        self.pool.room = 4 * self.pool.size + 16
        self.pool.item = <int32_t*> malloc(self.pool.room * sizeof(int32_t))
        if self.pool.item == NULL:
            raise MemoryError("no memory for the order of elimination")
        if self.pool.size:
            memcpy(self.pool.item, &members[0], self.pool.size * sizeof(int32_t))
        with nogil:
            self.join(start, members)

    def __dealloc__(self):
        free(self.pool.item)

    cdef void join(self, const Py_ssize_t[::1] start, const int32_t[::1] members) noexcept nogil:
        """The given elements, lists of those of each level, and first bounds of the degrees."""
        cdef Py_ssize_t e, i, v, degree
        for e in range(self.n_given):
            self.at[e] = start[e]
            self.length[e] = start[e + 1] - start[e]
            for i in range(start[e], start[e + 1]):
                self.own[members[i] + 1] += 1
                self.weight[e] += self.width[members[i]]
        for v in range(self.n):
            self.own[v + 1] += self.own[v]
        for e in range(self.n_given):
            for i in range(start[e], start[e + 1]):
                v = members[i]
                self.of[self.own[v] + self.count[v]] = <int32_t> e
                self.count[v] += 1
        for v in range(self.n):
            degree = 0
            for i in range(self.own[v], self.own[v] + self.count[v]):
                degree += self.weight[self.of[i]] - self.width[v]
            self.degrees[v] = min(degree, self.left - self.width[v])
            if self.degrees[v] > self.most and self.joins_more(v):
                self.stays[v] = self.any_stay = True
            else:
                self.insert(v)

    cdef bint joins_more(self, Py_ssize_t v) noexcept nogil:
        """Whether the given elements of a level have more than `most` columns beside its own."""
        cdef Py_ssize_t i, j, e, u, mark = -2 - v, columns = -self.width[v]
        for i in range(self.own[v], self.own[v] + self.count[v]):
            e = self.of[i]
            for j in range(self.at[e], self.at[e] + self.length[e]):
                u = self.pool.item[j]
                if self.mark[u] != mark:
                    self.mark[u] = mark
                    columns += self.width[u]
            if columns > self.most:
                return True
        return False

    cdef Py_ssize_t next_level(self, double share) noexcept nogil:
        """A level of the least degree, -1 where it is more than this share of what is left."""
        if self.done == self.n:
            return -1
        while self.lowest <= share * self.left:
            if self.head[self.lowest] >= 0:
                return self.head[self.lowest]
            self.lowest += 1
        return -1

    cdef bint eliminate(self, Py_ssize_t v) noexcept nogil:
        """Melt v's elements into one, without v; False where there is no memory for it."""
        cdef Py_ssize_t p = self.n_given + self.done, size = 0, e, i, j, u
        self.remove(v)
        for i in range(self.own[v], self.own[v] + self.count[v]):
            size += self.length[self.of[i]]
        if not reserve(&self.pool, size):
            return False
        self.at[p] = self.pool.size
        self.mark[v] = v
        for i in range(self.own[v], self.own[v] + self.count[v]):
            e = self.of[i]
            for j in range(self.at[e], self.at[e] + self.length[e]):
                u = self.pool.item[j]
                if self.mark[u] != v:
                    self.mark[u] = v
                    self.pool.item[self.pool.size] = <int32_t> u
                    self.pool.size += 1
                    self.weight[p] += self.width[u]
            self.weight[e] = -1
        self.length[p] = self.pool.size - self.at[p]
        self.done += 1
        self.left -= self.width[v]
        self.renew_degrees(p)
        return True

    cdef Py_ssize_t beyond(self, Py_ssize_t e) noexcept nogil:
        """Columns of an element that are not in the newest one: without a branch for each of its members."""
        cdef Py_ssize_t j, columns = 0
        for j in range(self.at[e], self.at[e] + self.length[e]):
            columns += self.apart[self.pool.item[j]]
        return columns

    cdef void renew_degrees(self, Py_ssize_t p) noexcept nogil:
        """Elements and degrees of the members of the newest element."""
        cdef Py_ssize_t i, j, u, e, kept, degree
        for j in range(self.at[p], self.at[p] + self.length[p]):
            self.apart[self.pool.item[j]] = 0
        for j in range(self.at[p], self.at[p] + self.length[p]):
            u = self.pool.item[j]
            if self.stays[u]:
                continue
            for i in range(self.own[u], self.own[u] + self.count[u]):
                e = self.of[i]
                if self.weight[e] < 0:
                    continue
                if self.seen[e] != p:
                    self.seen[e] = p
                    self.outside[e] = self.beyond(e) if self.any_stay else self.weight[e]
                if not self.any_stay:
                    self.outside[e] -= self.width[u]
        for j in range(self.at[p], self.at[p] + self.length[p]):
            u = self.pool.item[j]
            if self.stays[u]:
                continue
            kept = 0
            degree = self.weight[p] - self.width[u]
            for i in range(self.own[u], self.own[u] + self.count[u]):
                e = self.of[i]
                # those within the new element tell nothing beside it
                if self.weight[e] >= 0 and self.outside[e] > 0:
                    self.of[self.own[u] + kept] = <int32_t> e
                    kept += 1
                    degree += self.outside[e]
            self.of[self.own[u] + kept] = <int32_t> p
            self.count[u] = kept + 1
            self.remove(u)
            self.degrees[u] = min(degree, self.left - self.width[u])
            self.insert(u)
            self.lowest = min(self.lowest, self.degrees[u])
        for j in range(self.at[p], self.at[p] + self.length[p]):
            u = self.pool.item[j]
            self.apart[u] = self.width[u]

    cdef void insert(self, Py_ssize_t v) noexcept nogil:
        """Into the list of its degree."""
        cdef Py_ssize_t degree = self.degrees[v], first = self.head[degree]
        self.after[v] = first
        self.before[v] = -1
        if first >= 0:
            self.before[first] = v
        self.head[degree] = v

    cdef void remove(self, Py_ssize_t v) noexcept nogil:
        if self.before[v] >= 0:
            self.after[self.before[v]] = self.after[v]
        else:
            self.head[self.degrees[v]] = self.after[v]
        if self.after[v] >= 0:
            self.before[self.after[v]] = self.before[v]


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
    cdef Quotient graph = Quotient(start, members, width, share)
    cdef Py_ssize_t v, i, j, p
    cdef bint enough = True
    order_array = np.empty(graph.n, dtype=np.intp)
    begin_array = np.zeros(graph.n + 1, dtype=np.intp)
    cdef Py_ssize_t[::1] order = order_array, begin = begin_array
    with nogil:
        v = graph.next_level(share)
        while v >= 0 and enough:
            enough = graph.eliminate(v)
            if enough:
                order[graph.done - 1] = v
                begin[graph.done] = begin[graph.done - 1] + graph.length[graph.n_given + graph.done - 1]
                v = graph.next_level(share)
    if not enough:
        raise MemoryError("no memory for the order of elimination")
    neighbours_array = np.empty(begin[graph.done], dtype=np.int32)
    cdef int32_t[::1] neighbours = neighbours_array
    with nogil:
        for i in range(graph.done):
            p = graph.n_given + i
            for j in range(graph.length[p]):
                neighbours[begin[i] + j] = graph.pool.item[graph.at[p] + j]
    return order_array[: graph.done].copy(), begin_array[: graph.done + 1].copy(), neighbours_array


def spread_products(tail, const Py_ssize_t[::1] first_slot, const Py_ssize_t[::1] node_at,
                    const Py_ssize_t[::1] node_slot, const Py_ssize_t[::1] node_start, const int32_t[::1] node_slots,
                    const Py_ssize_t[::1] node_panel, double[::1] out):
    """Products between the levels of two of the last factors, to the panels of those that are eliminated one by one.

    Parameters
    ----------
    tail : Tail
        A factor: slots of its levels, their neighbours among later factors and the products with them.
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
    cdef const Py_ssize_t[::1] level_slot = tail.slot, comp = tail.comp, start = tail.start
    cdef const int32_t[::1] slots = tail.slots
    cdef const double[::1] panel = tail.panel
    cdef Py_ssize_t q = tail.q
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
