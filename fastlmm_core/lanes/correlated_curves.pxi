# Second derivatives of the criterion of correlated_sweeps.pxi, by the formulas of correlated.pxi: B (x) N is summed
# over the pairs of levels of each two factors, N panel by panel, and contracted with the directions at last.
#
# uses   Part, Level, Rows (correlated_sweeps.pxi); CorrelatedSpace
# gives  sum_pairs


cdef Py_ssize_t panel_of(CorrelatedSpace* w, const Part* own, Py_ssize_t at) noexcept nogil:
    """Rows of N of the level at a place and those that follow it, up to four rows, to the end of the last;
    where that is."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t J = own.J, columns = J + own.k, q = d.q_leaf, a, e, last = at, first, place
    cdef vecu* N = <vecu*> w.panel
    cdef const vecu* K
    cdef const vecu* Y
    cdef Level level = level_at(d, own, at)
    while last < own.effects and last + level.width - at <= MOST_WIDE:
        last += level.width
        if last < own.effects:
            level = level_at(d, own, last)
    dot_rows(last - at, last, J, rows_at(own.A + at * J, J), rows_at(own.A, J), rows_at(N, d.most))
    for a in range(last - at):
        K = own.K + (at + a) * columns
        for e in range(min(last, J)):
            N[a * d.most + e] = K[e] - N[a * d.most + e]
        for e in range(J, last):
            N[a * d.most + e] = VEC_SET(0.0) - N[a * d.most + e]
        if at + a >= J:
            place = at + a - J
            first = J + place // q * q
            Y = (<vecu*> w.own) + (own.leaf * q + place) * q
            for e in range(q):
                N[a * d.most + first + e] = N[a * d.most + first + e] + Y[e]
    return last


# Two levels: rows of N and of F, and where B (x) N goes.
cdef struct Pair:
    const vecu* N           # (m, n), rows `step` apart
    Py_ssize_t step
    const vecu* F           # (m, k)
    const vecu* other       # (n, k)
    Py_ssize_t k, first     # columns of F from `first` on count
    vecu* out


cdef inline void add_pair(Py_ssize_t m, Py_ssize_t n, const Pair* pair, double share) noexcept nogil:
    """out[x, y, w, z] += share B[x, y] N[w, z]."""
    cdef Py_ssize_t x, y, i, pos = 0
    cdef vec t
    cdef vec N[16]
    for x in range(m):
        for y in range(n):
            N[x * n + y] = pair.N[x * pair.step + y]
    for x in range(m):
        for y in range(n):
            t = VEC_SET(0.0) - N[x * n + y]
            for i in range(pair.first, pair.k):
                t = t + pair.F[x * pair.k + i] * pair.other[y * pair.k + i]
            t = share * t
            for i in range(m * n):
                pair.out[pos + i] = pair.out[pos + i] + t * N[i]
            pos += m * n


cdef inline void add_level(CorrelatedSpace* w, const Part* own, const Level* level, const vecu* N,
                           Pair* pair) noexcept nogil:
    """B (x) N of a level, whose rows of N are given, with all before it and by half with itself."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t other = 0
    cdef double share
    cdef Level before
    pair.F = (<vecu*> w.F) + level.at * own.k
    while other <= level.at:
        before = level_at(d, own, other)
        share = 0.5 if other == level.at else 1.0
        pair.N = N + other
        pair.other = (<vecu*> w.F) + other * own.k
        pair.out = (<vecu*> w.tensor) + (level.factor * (level.factor + 1) // 2 + before.factor) * (
            MOST_WIDE * MOST_WIDE * MOST_WIDE * MOST_WIDE)
        if level.width == 2 and before.width == 2:
            add_pair(2, 2, pair, share)
        elif level.width == 1 and before.width == 1:
            add_pair(1, 1, pair, share)
        elif level.width == 2 and before.width == 1:
            add_pair(2, 1, pair, share)
        elif level.width == 1 and before.width == 2:
            add_pair(1, 2, pair, share)
        else:
            add_pair(level.width, before.width, pair, share)
        other += before.width


cdef void curve_part(Lanes* s, CorrelatedSpace* w, const Part* own, Py_ssize_t first) noexcept nogil:
    """B (x) N of all pairs of levels of a part, each once and levels with themselves by half;
    columns of w from `first` on."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t k = own.k, at = 0, begin, last, e, j, l
    cdef vecu* F = <vecu*> w.F
    cdef const vecu* weight = <vecu*> s.f.gls.weight
    cdef Level level
    cdef Pair pair
    cdef vec t
    for e in range(own.effects):
        for j in range(first, k):
            t = VEC_SET(0.0)
            for l in range(j + 1):
                t = t + own.E[e * k + l] * weight[l * k + j]
            F[e * k + j] = t
    pair.step = d.most
    pair.k = k
    pair.first = first
    while at < own.effects:
        begin = at
        last = panel_of(w, own, at)
        while at < last:
            level = level_at(d, own, at)
            add_level(w, own, &level, (<vecu*> w.panel) + (at - begin) * d.most, &pair)
            at += level.width


cdef inline vec contract(Py_ssize_t m, Py_ssize_t n, const vecu* tensor, const Py_ssize_t* D, const Py_ssize_t* F
                         ) noexcept nogil:
    """Sum of B[x, y] D[y, z] N[w, z] F[w, x] for the symmetric unit directions D (of n effects) and F (of m)."""
    cdef Py_ssize_t i, j, x, y, w, z
    cdef vec t
    t = VEC_SET(0.0)
    for i in range(1 if F[0] == F[1] else 2):
        for j in range(1 if D[0] == D[1] else 2):
            w = F[i]
            x = F[1 - i]
            y = D[j]
            z = D[1 - j]
            t = t + tensor[((x * n + y) * m + w) * n + z]
    return t


cdef inline Py_ssize_t triangle_place(Py_ssize_t a, Py_ssize_t c) noexcept nogil:
    """Place of an element, a >= c, in the lower triangle by rows."""
    return a * (a + 1) // 2 + c


cdef void curve_of(const Batch* b, Lanes* s, const CorrelatedDesign* d, Py_ssize_t g, Py_ssize_t f, const vecu* tensor
                   ) noexcept nogil:
    """f.curve along the directions of factors g >= f."""
    cdef Py_ssize_t n_a = b.q * (b.q + 1) // 2, i, j, x, y, row, col
    cdef Py_ssize_t m = d.column[g + 1] - d.column[g], n = d.column[f + 1] - d.column[f]
    cdef Py_ssize_t D[2]
    cdef Py_ssize_t F[2]
    cdef vecu* curve = <vecu*> s.f.curve
    cdef vec t
    for i in range(m):
        for j in range(i + 1):
            F[0] = i
            F[1] = j
            row = triangle_place(d.column[g] + i, d.column[g] + j)
            for x in range(n):
                for y in range(x + 1):
                    D[0] = x
                    D[1] = y
                    col = triangle_place(d.column[f] + x, d.column[f] + y)
                    t = contract(m, n, tensor, D, F)
                    if f == g:
                        t = t + contract(m, n, tensor, F, D)
                    curve[row * n_a + col] = t
                    curve[col * n_a + row] = t


cdef void curve_correlated(const Batch* b, Lanes* s, CorrelatedSpace* w) noexcept nogil:
    """f.curve from the tensors: along the directions of each factor, zero along what no factor has."""
    cdef Py_ssize_t n_a = b.q * (b.q + 1) // 2, g, f, pos
    for pos in range(n_a * n_a):
        (<vecu*> s.f.curve)[pos] = VEC_SET(0.0)
    for g in range(w.d.n_factors):
        for f in range(g + 1):
            pos = triangle_place(g, f) * MOST_WIDE * MOST_WIDE * MOST_WIDE * MOST_WIDE
            curve_of(b, s, w.d, g, f, (<vecu*> w.tensor) + pos)


cdef void sum_pairs(const Batch* b, Lanes* s, CorrelatedSpace* w, Py_ssize_t first) noexcept nogil:
    """f.curve = sum of tr(B D N F) over pairs of levels, B = -N + E w w'E' of the columns of w from `first` on."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t i, part, pairs = d.n_factors * (d.n_factors + 1) // 2
    cdef Part own
    for i in range(pairs * MOST_WIDE * MOST_WIDE * MOST_WIDE * MOST_WIDE):
        (<vecu*> w.tensor)[i] = VEC_SET(0.0)
    for part in range(d.n_parts):
        own = part_of(b, w, part)
        curve_part(s, w, &own, first)
    curve_correlated(b, s, w)
