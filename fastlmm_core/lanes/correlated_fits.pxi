# The fits of many responses with several factors of correlated effects: the screen from which a search starts, the
# search, and what tests need of the design.  The terms are those of correlated.pxi.
#
# At a point of the screen V is the same for all responses.  Of
# t = (c_y of the leaves, what they leave of Z_2'y and X'y)
#
#     y'V^-1 y - (X'V^-1 y)'(X'V^-1 X)^-1 (X'V^-1 y) = within_yy + sum c_y'W_l^-1 c_y - |rows t|^2
#
# where the rows are those of S [D_l'M^-1, I] of each part, and of L_xx^-1 times what X'V^-1 y is of t.

cdef inline vec along_rows(const double* row, Py_ssize_t n, const vecu* values, vec total) noexcept nogil:
    """total + row'values."""
    cdef Py_ssize_t i
    for i in range(n):
        total = total + row[i] * values[i]
    return total


cdef void screen_correlated(const Batch* b, Lanes* s, CorrelatedSpace* w) noexcept nogil:
    """w.values (n_points,): the criterion at the points of the screen, infinite where it is not defined."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t p = b.p, q = d.q_leaf, n_a = q * (q + 1) // 2, point, part, i, j, a, J, m, pos = 0
    cdef vecu* leaf = <vecu*> w.leaf
    cdef vecu* squares = <vecu*> w.squares
    cdef const double* row
    cdef vec total, t
    for i in range(d.n_leaves):
        for a in range(q):
            for j in range(a + 1):
                squares[pos] = leaf[i * q + a] * leaf[i * q + j]
                pos += 1
    for point in range(d.screen.n_points):
        total = along_rows(d.screen.share + point * d.n_leaves * n_a, d.n_leaves * n_a, squares, (<vecu*> s.within)[p])
        row = d.screen.half + point * d.screen.n_half
        for part in range(d.n_parts):
            J = d.core[part + 1] - d.core[part]
            m = (d.leaves[part + 1] - d.leaves[part]) * q
            for i in range(J):
                t = along_rows(row, J, (<vecu*> w.within_cy) + d.core[part], VEC_SET(0.0))
                t = along_rows(row + J, m, leaf + d.leaves[part] * q, t)
                total = total - t * t
                row += J + m
        row = d.screen.half_xx + point * p * (d.n_core + d.n_leaves * q + p)
        for i in range(p):
            t = along_rows(row, d.n_core, <vecu*> w.within_cy, VEC_SET(0.0))
            t = along_rows(row + d.n_core, d.n_leaves * q, leaf, t)
            t = along_rows(row + d.n_core + d.n_leaves * q, p, <vecu*> s.within, t)
            total = total - t * t
            row += d.n_core + d.n_leaves * q + p
        t = total * (2.0 * M_PI / b.nu)
        (<vecu*> w.values)[point] = VEC_WHERE_POSITIVE(
            t, d.screen.constant[point] + b.nu * (VEC_LOG(t) + 1.0), VEC_SET(1e300) * 1e300)


cdef void ready_correlated(const Batch* b, Lanes* s, CorrelatedSpace* w) noexcept nogil:
    cdef Py_ssize_t i
    s.correlated = w
    (<vecu*> s.f.gls.nu)[0] = VEC_SET(b.nu)
    for i in range(b.p):
        w.before[i] = 1.0
    w.before[b.p] = b.n
    s.f.gls.before = w.before
    for i in range(b.p_full * b.p):
        (<vecu*> s.x_map)[i] = VEC_SET(b.x_map[i])


cdef void theta_given(const Batch* b, Lanes* s, const Outcome* out, Py_ssize_t first) noexcept nogil:
    """s.theta of the responses at s.place from the results."""
    cdef Py_ssize_t lane, i
    for lane in range(LANES):
        for i in range(b.n_par):
            s.theta[i * LANES + lane] = out.theta[(first + s.place[lane]) * b.n_par + i]


cdef void refuse_large(const Batch* b, const CorrelatedDesign* d, Lanes* s, Fates* f, const Outcome* out,
                       Py_ssize_t first) noexcept nogil:
    """Leave responses to the single fit where a level's variance is so large that K_22 - A'A loses digits."""
    cdef Py_ssize_t lane, i, a
    cdef double t
    for lane in range(s.used):
        for a in range(b.q):
            t = 0.0
            for i in range(b.n_par):
                if b.row[i] == a:
                    t += s.natural[i * LANES + lane] * s.natural[i * LANES + lane]
            if t > d.large and f.status[lane] > 0:
                f.status[lane] = 0
                out.status[first + s.place[lane]] = 0


cdef enum:
    SEARCHED = 12       # rounds of a search, and iterations of a round:
                        # lanes that need long would keep the others waiting
    ROUND = 5

cdef double CARRIED_ON = 0.3
"""Length of the first step of a search from afar, and of a round but the first, relative to theta."""

cdef double ALIKE = 0.02, NEARBY = 0.25
"""Relative difference of elements of G at which a search has come to the minimum that is known, unless it is lower
there; and at which it has where Newton's next step leads to the value of that minimum."""


cdef bint has_arrived(const Batch* b, const CorrelatedDesign* d, Lanes* s, Py_ssize_t lane, double value,
                      double decrement) noexcept nogil:
    """Whether a search goes to the minimum that is known of its response: next to it, and no lower."""
    cdef const double* known = d.known + s.place[lane] * b.n_par
    cdef Py_ssize_t i, j
    cdef double own, other, first, second, alike = ALIKE, fall = 0.5 * decrement * decrement
    cdef double above = value - d.known_value[s.place[lane]]
    if not above >= -1e-9:
        return False
    if decrement <= CLOSE_BY and fabs(above - fall) <= FORETOLD * fall + 1e-9:
        alike = NEARBY
    for i in range(b.n_par):
        for j in range(i + 1):
            own = product_of(b, s.natural + lane, LANES, i, j)
            other = product_of(b, known, 1, i, j)
            first = product_of(b, known, 1, i, i)
            second = product_of(b, known, 1, j, j)
            if not fabs(own - other) <= alike * (sqrt(first * second) + 1.0):
                return False
    return True


cdef inline double product_of(const Batch* b, const double* theta, Py_ssize_t step, Py_ssize_t i,
                              Py_ssize_t j) noexcept nogil:
    """Element of G in the rows of two elements of theta."""
    cdef Py_ssize_t l, r
    cdef double t = 0.0
    for l in range(b.n_par):
        for r in range(b.n_par):
            if b.row[l] == b.row[i] and b.row[r] == b.row[j] and b.col[l] == b.col[r]:
                t += theta[l * step] * theta[r * step]
    return t


cdef void fit_correlated(const Batch* b, Lanes* s, CorrelatedSpace* w, Fates* f, const double* Y, const Outcome* out,
                         Py_ssize_t first, int round_) noexcept nogil:
    """Fit the responses at s.place as `fit_places` does."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t lane
    cdef double value
    cdef bint last = round_ == SEARCHED - 1, goes_on
    s.f.chain.axes = NULL
    s.reach = CARRIED_ON if round_ > 0 or d.known != NULL else 0.0
    if round_ > 0:
        for lane in range(LANES):
            f.evaluations[lane] = out.evaluations[first + s.place[lane]]
        theta_given(b, s, out, first)
        if can_turn(b):
            turn_all(b, s)
    elif b.first_theta != NULL:
        first_theta(b, s)
    else:
        screen_correlated(b, s, w)
        start_at_lowest(b, s, &d.screen, w.values, out)
    settle_lanes(b, s, f, min(b.max_iterations, ROUND))
    write_searches(b, s, f, out, first, s.used)
    refuse_large(b, d, s, f, out, first)
    for lane in range(s.used):
        goes_on = not last and f.status[lane] == 0 and out.decrement[first + s.place[lane]] < INFINITY
        value = (<double*> &f.value)[lane] + b.nu * log((<double*> &f.total)[lane] / b.n) + b.criterion_offset
        if goes_on and d.known != NULL and has_arrived(b, d, s, lane, value, (<double*> &f.decrement)[lane]):
            out.status[first + s.place[lane]] = 1
        elif goes_on:
            out.status[first + s.place[lane]] = GOES_ON
            # what is found in the end tells whether other starts are worth it
            f.status[lane] = 1
    if not out.brief:
        write_coefficients(b, s, f, out, Y, b.n, first, s.used)
    if out.chosen != NULL:
        finish_look(b, s, f, &d.screen, out)


cdef void correlated_fit(const Batch* b, const CorrelatedDesign* d, const double* Y, Py_ssize_t n_responses,
                         Py_ssize_t first, const Outcome* out, double* work) noexcept nogil:
    """Fit the rows of Y; results go to rows first, first + 1, ... of the outcome (see also Outcome.rows)."""
    cdef Lanes s
    cdef CorrelatedSpace w
    cdef Fates f
    cdef Arena arena = Arena(work, 0)
    cdef Py_ssize_t at
    cdef int round_
    lay_correlated(b, d, &s, &w, &arena, False)
    ready_correlated(b, &s, &w)
    # lanes that need long would keep the others waiting: they go on together, in their principal axes
    for round_ in range(SEARCHED if out.rows == NULL else 1):
        at = 0
        while at < n_responses:
            find_places(b, out, first, n_responses, min(round_, 1), &s, &at)
            if s.used == 0:
                break
            load_correlated(b, &s, &w, &f, Y)
            if out.rows == NULL:
                fit_correlated(b, &s, &w, &f, Y, out, first, round_)
                continue
            s.f.chain.axes = NULL
            theta_given(b, &s, out, first)
            set_factor(b, &s, <vecu*> s.theta)
            evaluate_correlated(b, &s, 2)
            if out.params != NULL:
                write_coefficients(b, &s, &f, out, Y, b.n, first, s.used)
            write_contrasts(b, &s, out, first, s.used)


# -------------------------------------------------------------------------------------------------------------- moments

cdef void ends_of(Py_ssize_t p, CorrelatedSpace* w, const Part* own, const Level* level, Py_ssize_t factor,
                  const vecu* rows) noexcept nogil:
    """sum over levels l of a factor, up to this level (half of itself), of N_hl[x, y] E_l[z, j]: (width, n, n, p)."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t k = own.k, n = d.column[factor + 1] - d.column[factor], other = 0, x, y, z, j
    cdef vecu* ends = <vecu*> w.ends
    cdef const vecu* N
    cdef Level before
    cdef vec t
    for j in range(level.width * n * n * p):
        ends[j] = VEC_SET(0.0)
    while other <= level.at:
        before = level_at(d, own, other)
        other += before.width
        if before.factor != factor:
            continue
        N = rows + before.at
        for x in range(level.width):
            for y in range(n):
                t = N[x * d.most + y] * (0.5 if before.at == level.at else 1.0)
                for z in range(n):
                    for j in range(p):
                        ends[((x * n + y) * n + z) * p + j] = (ends[((x * n + y) * n + z) * p + j]
                                                               + t * own.E[(before.at + z) * k + j])


cdef void add_ends(Py_ssize_t p, CorrelatedSpace* w, const Part* own, const Level* level, Py_ssize_t factor,
                   const vecu* rows) noexcept nogil:
    """both[w, x, y, z, i, j] += E_h[w, i] N_hl[x, y] E_l[z, j] of a level h and the levels l of a factor."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t n = d.column[factor + 1] - d.column[factor], m = level.width, c, x, i, j
    cdef Py_ssize_t most = MOST_WIDE * MOST_WIDE * MOST_WIDE * MOST_WIDE
    cdef vecu* both = (<vecu*> w.both) + triangle_place(level.factor, factor) * most * p * p
    cdef const vecu* ends = <vecu*> w.ends
    cdef vec t
    ends_of(p, w, own, level, factor, rows)
    for c in range(m):
        for x in range(m * n * n):
            for i in range(p):
                t = own.E[(level.at + c) * own.k + i]
                for j in range(p):
                    both[j] = both[j] + t * ends[x * p + j]
                both += p


cdef void both_correlated(const Batch* b, CorrelatedSpace* w) noexcept nogil:
    """w.both of all pairs of levels, each once and levels with themselves by half."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t p = b.p, i, part, at, begin, last, factor, pairs = d.n_factors * (d.n_factors + 1) // 2
    cdef Part own
    cdef Level level
    for i in range(pairs * MOST_WIDE * MOST_WIDE * MOST_WIDE * MOST_WIDE * p * p):
        (<vecu*> w.both)[i] = VEC_SET(0.0)
    for part in range(d.n_parts):
        own = part_of(b, w, part)
        at = 0
        while at < own.effects:
            begin = at
            last = panel_of(w, &own, at)
            while at < last:
                level = level_at(d, &own, at)
                for factor in range(level.factor + 1):
                    add_ends(p, w, &own, &level, factor, (<vecu*> w.panel) + (at - begin) * d.most)
                at += level.width


cdef inline Py_ssize_t factor_with(const CorrelatedDesign* d, Py_ssize_t effect) noexcept nogil:
    cdef Py_ssize_t f = 0
    while effect >= d.column[f + 1]:
        f += 1
    return f


cdef void add_both(const Batch* b, CorrelatedSpace* w, const Py_ssize_t* F, const Py_ssize_t* D, bint turned, vecu* out
                   ) noexcept nogil:
    """out (p, p) += E'F N D E, or its transpose, over the pairs of w.both: F of the levels that come later."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t g = factor_with(d, F[0]), f = factor_with(d, D[0]), p = b.p, i, j, x, y, pos
    cdef Py_ssize_t m = d.column[g + 1] - d.column[g], n = d.column[f + 1] - d.column[f]
    cdef Py_ssize_t most = MOST_WIDE * MOST_WIDE * MOST_WIDE * MOST_WIDE
    cdef const vecu* both = (<vecu*> w.both) + triangle_place(g, f) * most * p * p
    for x in range(1 if F[0] == F[1] else 2):
        for y in range(1 if D[0] == D[1] else 2):
            pos = (F[x] - d.column[g]) * m + F[1 - x] - d.column[g]
            pos = (pos * n + D[y] - d.column[f]) * n + D[1 - y] - d.column[f]
            for i in range(p):
                for j in range(p):
                    if turned:
                        out[j * p + i] = out[j * p + i] + both[(pos * p + i) * p + j]
                    else:
                        out[i * p + j] = out[i * p + j] + both[(pos * p + i) * p + j]


cdef void pair_moments(const Batch* b, CorrelatedSpace* w, const CorrelatedMoments* out, Py_ssize_t k,
                       Py_ssize_t l) noexcept nogil:
    """X'V^-1 D_k V^-1 D_l V^-1 X, or its transpose, in w.ends (p, p)."""
    cdef Py_ssize_t i
    cdef Py_ssize_t F[2]
    cdef Py_ssize_t D[2]
    cdef vecu* sums = <vecu*> w.ends
    F[0], F[1], D[0], D[1] = out.row[k], out.col[k], out.row[l], out.col[l]
    for i in range(b.p * b.p):
        sums[i] = VEC_SET(0.0)
    if factor_with(w.d, F[0]) == factor_with(w.d, D[0]):
        add_both(b, w, F, D, False, sums)
        add_both(b, w, D, F, True, sums)
    elif F[0] > D[0]:
        add_both(b, w, F, D, False, sums)
    else:
        add_both(b, w, D, F, False, sums)


cdef void write_design_moments(const Batch* b, Lanes* s, CorrelatedSpace* w, const CorrelatedMoments* out,
                               Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """The moments of `count` lanes from row `first` on."""
    cdef Py_ssize_t p = b.p, k = p + 1, n = out.n, n_a = b.q * (b.q + 1) // 2, size = n * (n + 1) // 2
    cdef Py_ssize_t lane, i, j, t, u, l, r, pos
    cdef vecu* gram = <vecu*> s.f.gram
    cdef vec one
    for t in range(n):
        pos = triangle_place(out.row[t], out.col[t])
        for lane in range(count):
            one = (<vecu*> s.f.sum_n)[pos] * (1.0 if out.row[t] == out.col[t] else 2.0)
            out.of.trace[(first + lane) * n + t] = (<double*> &one)[lane]
        for i in range(p):
            for j in range(p):
                l = out.row[t] * k + i
                r = out.col[t] * k + j
                one = gram[triangle_place(max(l, r), min(l, r))]
                if out.row[t] != out.col[t]:
                    l = out.row[t] * k + j
                    r = out.col[t] * k + i
                    one = one + gram[triangle_place(max(l, r), min(l, r))]
                for lane in range(count):
                    out.of.cross[(((first + lane) * n + t) * p + i) * p + j] = (<double*> &one)[lane]
        for u in range(t + 1):
            pair_moments(b, w, out, t, u)
            pos = triangle_place(out.row[t], out.col[t]) * n_a + triangle_place(out.row[u], out.col[u])
            for lane in range(count):
                out.of.square[(first + lane) * size + triangle_place(t, u)] = -s.f.curve[pos * LANES + lane]
                for i in range(p * p):
                    out.of.both[((first + lane) * size + triangle_place(t, u)) * p * p + i] = w.ends[i * LANES + lane]
    for lane in range(count):
        for i in range(p):
            for j in range(p):
                out.of.half[((first + lane) * p + i) * p + j] = (
                    s.f.gls.inverse[(i * k + j) * LANES + lane] if j <= i else 0.0)


cdef void correlated_moments(const Batch* b, const CorrelatedDesign* d, const double* theta, Py_ssize_t count,
                             const CorrelatedMoments* out, double* work) noexcept nogil:
    """What tests of fixed effects need of the design at each theta (count, n_par)."""
    cdef Lanes s
    cdef CorrelatedSpace w
    cdef Arena arena = Arena(work, 0)
    cdef Py_ssize_t block = 0, lane, i, at
    lay_correlated(b, d, &s, &w, &arena, True)
    ready_correlated(b, &s, &w)
    # of a response that is nothing but what no effect reaches; the arena begins with zeros
    (<vecu*> s.within)[b.p] = VEC_SET(<double> b.n)
    while block < count:
        for lane in range(LANES):
            at = block + lane if block + lane < count else count - 1
            for i in range(b.n_par):
                s.theta[i * LANES + lane] = theta[at * b.n_par + i]
        set_factor(b, &s, <vecu*> s.theta)
        evaluate_correlated(b, &s, 1)
        # no column of w: B = -N
        sum_pairs(b, &s, &w, b.p + 1)
        both_correlated(b, &w)
        write_design_moments(b, &s, &w, out, block, LANES if count - block > LANES else count - block)
        block += LANES


offered.correlated_size = &correlated_size
offered.correlated_fit = &correlated_fit
offered.correlated_moments = &correlated_moments
