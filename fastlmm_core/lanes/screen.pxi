# Where the criterion of each of many responses may have other minima: the lanes are responses.
#
# V of a point of the screen is the same for all responses.  With W = I + U U', U = R L, of response_sweeps.pxi,
# H_xx = L_xx L_xx' and S = sum c_y c_y' over the groups of a pattern
#
#     y'V^-1 y            = (y'y within) + sum <W^-1, S>
#     L_xx^-1 X'V^-1 y    = L_xx^-1 (X'y within) + sum L_xx^-1 c_x' W^-1 c_y
#     r^2                 = y'V^-1 y - |L_xx^-1 X'V^-1 y|^2
#
# so that all values are products of two tables with numbers of the response.  A point that lies no higher than the points
# nearest to it marks a valley; the valley of the minimum that is known is that to which the points nearest to it lead.
#
# Most points need not be looked at.  r^2 falls as G^ grows, and log|V| + log|H_xx| rises, the logarithm of the determinant
# of K'V K for error contrasts K (by Loewner's order; so does log|V| alone).  With r_0^2 where the effects are free,
#
#     f(G^) >= log|V| + log|H_xx| + nu (log(2 pi r_0^2 / nu) + 1),    r_0^2 = y'y within - |L^-1 X'y within|^2
#
# at every point, L L' = X'X within, and no minimum that is lower than a value that is known lies where this bound is
# higher than that value.  Below a point G_1 nothing is lower than log|X'X| + nu (log(2 pi r_1^2 / nu) + 1).

cdef enum:
    SIDE_BY_SIDE = 8    # rows of a table
    WAITS = -2          # in place of the first point chosen, of a response that is still to be screened

cdef double UNSEEN = 1e299
"""The value of a point that is not looked at."""


cdef inline void eight_products(const double* table, Py_ssize_t n, const vecu* c, vecu* out) noexcept nogil:
    """out (8,) = products of eight rows of n numbers, which lie side by side, with c (n,)."""
    cdef Py_ssize_t j
    cdef vec v, a0, a1, a2, a3, a4, a5, a6, a7
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = VEC_SET(0.0)
    for j in range(n):
        v = c[j]
        a0 = a0 + table[0] * v
        a1 = a1 + table[1] * v
        a2 = a2 + table[2] * v
        a3 = a3 + table[3] * v
        a4 = a4 + table[4] * v
        a5 = a5 + table[5] * v
        a6 = a6 + table[6] * v
        a7 = a7 + table[7] * v
        table += SIDE_BY_SIDE
    out[0] = a0
    out[1] = a1
    out[2] = a2
    out[3] = a3
    out[4] = a4
    out[5] = a5
    out[6] = a6
    out[7] = a7


cdef void gather_screened(const Batch* d, Lanes* s, vec* largest) noexcept nogil:
    """What the tables are multiplied with; `largest`: how many groups' worth of variation there is, of groups of equal size.

    That is (sum s)^2 / sum s^2 over the groups, s = c_y'c_y; nothing where groups with the same Z_i'Z_i are joined.
    """
    cdef const SharedScreen* screen = &d.screen
    cdef Py_ssize_t q = d.q, p = d.p, n_a = q * (q + 1) // 2, i, c, a, b, pattern, pos
    cdef vecu* line = <vecu*> s.line
    cdef vecu* squares = <vecu*> s.squares
    cdef vecu* own
    cdef vecu* cy
    cdef vec t, total, fourth
    total = VEC_SET(0.0)
    fourth = VEC_SET(0.0)
    for i in range(screen.n_patterns):
        pattern = screen.pattern[i]
        own = squares + i * n_a
        for pos in range(n_a):
            own[pos] = (<vecu*> s.rest)[pattern * n_a + pos]
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            cy = (<vecu*> s.cy) + c * q
            pos = 0
            for a in range(q):
                line[a] = cy[a]
                for b in range(a + 1):
                    own[pos] = own[pos] + cy[a] * cy[b]
                    pos += 1
            line += q
        t = VEC_SET(0.0)
        pos = 0
        for a in range(q):
            t = t + own[pos]
            pos += a + 2
        total = total + t
        fourth = fourth + t * t
    for i in range(p):
        line[i] = (<vecu*> s.within)[i] * screen.share
    squares[screen.n_patterns * n_a] = (<vecu*> s.within)[p] * screen.share
    largest[0] = total * total / (fourth + 1e-300) if screen.apart else VEC_SET(0.0)


cdef inline vec scaled_square(const SharedScreen* screen, vec r2, double none) noexcept nogil:
    """nu (log(2 pi r^2 / nu) + 1), and `none` where rounding has made a sum of squares negative."""
    cdef vec t = r2 * (2.0 * M_PI / screen.nu)
    return VEC_WHERE_POSITIVE(t, screen.nu * (VEC_LOG(t) + 1.0), VEC_SET(none))


cdef vec free_square(const Batch* d, Lanes* s) noexcept nogil:
    """r^2 where the effects are free, which is the least; of the groups that are screened."""
    cdef Py_ssize_t i, j
    cdef vec t, total
    total = (<vecu*> s.within)[d.p]
    for i in range(d.p):
        t = VEC_SET(0.0)
        for j in range(i + 1):
            t = t + d.screen.half[i * d.p + j] * (<vecu*> s.within)[j]
        total = total - t * t
    return total * d.screen.share


cdef void tile_values(const Batch* d, Lanes* s, Py_ssize_t tile) noexcept nogil:
    """s.values of the eight points of a tile, infinite where rounding has made a sum of squares negative."""
    cdef const SharedScreen* screen = &d.screen
    cdef Py_ssize_t p = d.p, length, i, j, first = tile * SIDE_BY_SIDE, last, point = 0, column = 0
    cdef vecu* values = (<vecu*> s.values) + first
    cdef vecu* eight = <vecu*> s.eight
    cdef vec t
    last = min(screen.n_points - first, SIDE_BY_SIDE)
    length = screen.n_patterns * (d.q * (d.q + 1) // 2) + 1
    eight_products(screen.square + tile * length * SIDE_BY_SIDE, length, <vecu*> s.squares, values)
    length = screen.n_columns * d.q + p
    for j in range((last * p + SIDE_BY_SIDE - 1) // SIDE_BY_SIDE):
        eight_products(screen.linear + (tile * p + j) * length * SIDE_BY_SIDE, length, <vecu*> s.line, eight)
        for i in range(min(SIDE_BY_SIDE, last * p - j * SIDE_BY_SIDE)):
            t = eight[i]
            values[point] = values[point] - t * t
            column += 1
            if column == p:
                column = 0
                point += 1
    for i in range(last):
        values[i] = screen.constant[first + i] + scaled_square(screen, values[i], INFINITY)


# What is known of the values of a block of responses.
cdef struct Known:
    vec free        # `scaled_square` where the effects are free
    vec below       # least value below the first point
    vec floor       # least value of the points that are looked at
    Py_ssize_t end  # points that none is looked at from


cdef inline vec may_be_low(const SharedScreen* screen, const Known* known, Py_ssize_t i) noexcept nogil:
    """Positive where a point may be as low as one that is known."""
    if i < screen.n_points - screen.n_below:
        return known.floor - known.free - screen.constant[i]
    return known.floor - known.below


cdef void screen_values(const Batch* d, Lanes* s, bint all_of_them, Known* known) noexcept nogil:
    """s.values (n_points,): the criterion of the groups that are screened; not finite where it is not defined.

    Unless all are wanted, points that cannot be as low as one that is known are UNSEEN.
    """
    cdef const SharedScreen* screen = &d.screen
    cdef Py_ssize_t tile, i, first, last
    cdef vecu* values = <vecu*> s.values
    cdef vec t, some
    known.free = scaled_square(screen, free_square(d, s), -UNSEEN)
    known.floor = VEC_SET(UNSEEN)
    known.end = 0
    for tile in range((screen.n_points + SIDE_BY_SIDE - 1) // SIDE_BY_SIDE):
        first = tile * SIDE_BY_SIDE
        last = min(first + SIDE_BY_SIDE, screen.n_points)
        some = VEC_SET(1.0 if tile == 0 or all_of_them else -1.0)
        for i in range(first if tile > 0 and not all_of_them else last, last):
            t = may_be_low(screen, known, i)
            some = VEC_WHERE_POSITIVE(t, t, some)
        if not vec_max(<vecu*> &some) > 0.0:
            for i in range(first, last):
                values[i] = VEC_SET(UNSEEN)
            continue
        tile_values(d, s, tile)
        known.end = last
        if tile == 0:
            t = values[0] - (screen.constant[0] - screen.origin)
            known.below = VEC_WHERE_POSITIVE(UNSEEN - values[0], t, VEC_SET(-UNSEEN))
        for i in range(first, last):
            known.floor = VEC_WHERE_POSITIVE(known.floor - values[i], values[i], known.floor)
    for i in range(known.end if not all_of_them else 0):
        # what one response asks for is not to be seen by those beside it
        values[i] = VEC_WHERE_POSITIVE(may_be_low(screen, known, i), values[i], VEC_SET(UNSEEN))


cdef void nearest_points(const Batch* d, Lanes* s, vec* nearest) noexcept nogil:
    """The point of the screen whose logarithms of variances, and correlations, are nearest to those at s.natural."""
    cdef const SharedScreen* screen = &d.screen
    cdef Py_ssize_t q = d.q, n_a = q * (q + 1) // 2, a, b, i, j, pos = 0
    cdef const vecu* theta = <const vecu*> s.natural
    cdef vec G[MOST_FEATURES]
    cdef vec least, distance, t
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(screen.vanishing if a == b else 0.0)
            for i in range(d.n_par):
                for j in range(d.n_par):
                    if d.row[i] == a and d.row[j] == b and d.col[i] == d.col[j]:
                        t = t + theta[i] * theta[j] * (1.0 / (screen.unit[a] * screen.unit[b]))
            G[pos] = t
            pos += 1
    for a in range(q - 1, -1, -1):
        for b in range(a):
            t = VEC_SQRT(G[a * (a + 1) // 2 + a] * G[b * (b + 1) // 2 + b])
            G[a * (a + 1) // 2 + b] = G[a * (a + 1) // 2 + b] * screen.correlation / t
    for a in range(q):
        t = G[a * (a + 1) // 2 + a]
        G[a * (a + 1) // 2 + a] = VEC_LOG(t)
    least = VEC_SET(INFINITY)
    nearest[0] = VEC_SET(0.0)
    for i in range(screen.n_points):
        distance = VEC_SET(0.0)
        for j in range(n_a):
            t = G[j] - screen.features[i * n_a + j]
            distance = distance + t * t
        nearest[0] = VEC_WHERE_POSITIVE(least - distance, VEC_SET(<double> i), nearest[0])
        least = VEC_WHERE_POSITIVE(least - distance, distance, least)


cdef inline Py_ssize_t lowest_around(const SharedScreen* screen, const double* values, Py_ssize_t at, Py_ssize_t near
                                     ) noexcept nogil:
    """The lowest of a point and so many of its neighbours."""
    cdef Py_ssize_t i, other, best = at
    for i in range(near):
        other = screen.neighbours[at * screen.wide + i]
        if values[other * LANES] < values[best * LANES]:
            best = other
    return best


cdef inline bint before(const double* values, Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    """Whether a point comes before another one in the order of values; of equals the first does."""
    cdef double one = values[i * LANES], other = values[j * LANES]
    return one < other or (one == other and i < j)


cdef inline int insert_point(const double* values, Py_ssize_t i, Py_ssize_t limit, int found, int* chosen) noexcept nogil:
    """Add a point to those `found`, the lowest first, of which `limit` at most are kept; how many there are."""
    cdef Py_ssize_t at = found, j
    while at > 0 and before(values, i, chosen[at - 1]):
        at -= 1
    if at == limit:
        return found
    for j in range(min(found, limit - 1), at, -1):
        chosen[j] = chosen[j - 1]
    chosen[at] = <int> i
    return found + 1 if found < limit else found


cdef int choose_valleys(const Py_ssize_t* neighbours, Py_ssize_t near, Py_ssize_t n_points, const double* values,
                        Py_ssize_t limit, int* chosen) noexcept nogil:
    """Points that lie lower than their neighbours (n_points, near), the lowest first, -1 in the places left; how many."""
    cdef Py_ssize_t i, j
    cdef int found = 0
    cdef bint valley
    for i in range(limit):
        chosen[i] = -1
    for i in range(n_points):
        valley = isfinite(values[i * LANES])
        for j in range(near):
            valley = valley and not before(values, neighbours[i * near + j], i)
        if valley:
            found = insert_point(values, i, limit, found, chosen)
    return found


cdef double value_in_place(double* values, Py_ssize_t count, Py_ssize_t place, Py_ssize_t* lower) noexcept nogil:
    """The value that would stand at a place if values (count,) stood in order, and how many are lower.

    Hoare's selection: values change places, so that those before this place, and none beyond it, come before it in order.
    """
    cdef Py_ssize_t first = 0, last = count, middle, equal, i
    cdef double one, other, third, pivot, t
    while True:
        one, other, third = values[first], values[(first + last) // 2], values[last - 1]
        pivot = max(min(one, other), min(max(one, other), third))
        # which values are lower cannot be foreseen: nothing branches on it
        middle = first
        for i in range(first, last):
            t = values[i]
            values[i] = values[middle]
            values[middle] = t
            middle += t < pivot
        if place < middle:
            last = middle
            continue
        equal = middle
        for i in range(middle, last):
            t = values[i]
            values[i] = values[equal]
            values[equal] = t
            equal += t == pivot
        if place < equal:
            lower[0] = middle
            return pivot
        first = equal


cdef inline int equal_point(const double* values, const bint* taken, double value, Py_ssize_t before_it) noexcept nogil:
    """The point not taken that has a value, of equals the one that so many come before."""
    cdef int i = 0
    while True:
        if values[i * LANES] == value and not taken[i]:
            if before_it == 0:
                return i
            before_it -= 1
        i += 1


cdef struct PointsWanted:
    Py_ssize_t limit        # valleys and lowest points at most
    Py_ssize_t lowest       # points that are looked at whether they mark a valley or not
    Py_ssize_t spread       # others, spread evenly over the order of values


cdef int add_points(const double* values, Py_ssize_t n_points, PointsWanted wanted, int found, int* chosen) noexcept nogil:
    """The lowest points, and points spread over the order of values, beside the valleys found; how many in all."""
    cdef Py_ssize_t i, step, place, lower, count = 0, end
    cdef int least[MOST_POINTS]
    cdef bint taken[MOST_POINTS]
    cdef double others[MOST_POINTS]
    cdef double value
    cdef int n_least = 0
    if wanted.lowest + wanted.spread == 0:
        return found
    for i in range(n_points):
        taken[i] = not isfinite(values[i * LANES])
        if not taken[i] and wanted.lowest > 0 and (
                n_least < wanted.lowest or before(values, i, least[n_least - 1])):
            n_least = insert_point(values, i, wanted.lowest, n_least, least)
    for i in range(found):
        taken[chosen[i]] = True
    for i in range(n_least):
        if not taken[least[i]] and found < wanted.limit:
            taken[least[i]] = True
            chosen[found] = least[i]
            found += 1
    if wanted.spread == 0:
        return found
    for i in range(n_points):
        others[count] = values[i * LANES]
        count += not taken[i]
    step = max(1, count // wanted.spread)
    end = count
    count = min((count + step - 1) // step, wanted.spread)
    for i in range(count - 1, -1, -1):
        place = i * step
        value = value_in_place(others, end, place, &lower)
        chosen[found + i] = equal_point(values, taken, value, place - lower)
        end = place
    return found + <int> count


cdef Py_ssize_t own_valley(const SharedScreen* screen, const double* values, Py_ssize_t at, Py_ssize_t near,
                           Py_ssize_t steps) noexcept nogil:
    """Where the point nearest to a minimum leads, in so many steps; -1 where it is not looked at."""
    cdef Py_ssize_t i, best
    if not values[at * LANES] < UNSEEN:
        return -1
    for i in range(steps):
        best = lowest_around(screen, values, at, near)
        if best == at:
            break
        at = best
    return at


cdef void mark_valleys(const Batch* d, Lanes* s, vec groups, Py_ssize_t end, vec* found, vec* finite) noexcept nogil:
    """s.marks (n_points,): positive where no neighbour lies lower; their number, and whether all values are finite.

    groups: the variation is that of so many; of many groups `wide` neighbours count.  From point `end` on all are UNSEEN.
    """
    cdef const SharedScreen* screen = &d.screen
    cdef Py_ssize_t i, j
    cdef vecu* values = <vecu*> s.values
    cdef vecu* marks = <vecu*> s.marks
    cdef vec low, nearest, mark, v, highest
    found[0] = VEC_SET(0.0)
    highest = VEC_SET(-1e300)
    for i in range(end, screen.n_points):
        marks[i] = VEC_SET(-1.0)
    for i in range(end):
        v = values[i]
        mark = VEC_SET(UNSEEN) - v
        if not vec_max(<vecu*> &mark) > 0.0:
            marks[i] = VEC_SET(-1.0)
            highest = VEC_WHERE_POSITIVE(highest - v, highest, v)
            continue
        low = VEC_SET(1e300)
        nearest = low
        for j in range(screen.wide):
            v = values[screen.neighbours[i * screen.wide + j]]
            low = VEC_WHERE_POSITIVE(low - v, v, low)
            if j + 1 == screen.near:
                nearest = low
        low = VEC_WHERE_POSITIVE(groups - screen.many, low, nearest)
        v = values[i]
        highest = VEC_WHERE_POSITIVE(highest - v, highest, v)
        mark = VEC_WHERE_POSITIVE(v - low, VEC_SET(-1.0), VEC_SET(1.0))
        mark = VEC_WHERE_POSITIVE(v - 0.5 * UNSEEN, VEC_SET(-1.0), mark)
        marks[i] = mark
        found[0] = found[0] + 0.5 * (mark + 1.0)
    finite[0] = VEC_SET(1e300) - highest


cdef void choose_points(const SharedScreen* screen, const double* values, const double* marks, Py_ssize_t nearest,
                        bint inside, bint dispersed, int* chosen) noexcept nogil:
    """Points from which other minima of a response are looked for, -1 in the places left; see `estimation.search`.

    nearest: the point next to the minimum that is known.  dispersed: the variation is that of many groups, so that
    valleys lie far apart.  Elsewhere the lowest points count too whether they mark a valley or not, and some of all
    others, spread evenly over the order of values.
    """
    cdef bint apart = dispersed or screen.lowest == 0
    cdef Py_ssize_t i, known = -1
    cdef int found = 0
    if apart:
        # from a minimum on the boundary, where the criterion need not be level, a longer way down may lead elsewhere
        known = own_valley(screen, values, nearest, screen.wide if dispersed else screen.near,
                           screen.n_points if inside else 2)
    for i in range(screen.n_points):
        if marks[i * LANES] > 0.0 and i != known and isfinite(values[i * LANES]):
            found = insert_point(values, i, screen.limit, found, chosen)
    if not apart:
        add_points(values, screen.n_points, PointsWanted(screen.limit, screen.lowest, screen.spread), found, chosen)


cdef void variation_worth(const Batch* d, Lanes* s, vec* worth) noexcept nogil:
    """How many groups the variation is worth, (sum t)^2 / sum (t^2 / c), t = tr S of the c groups of a pattern.

    The criterion reads S alone, which is that of c groups with c_y'c_y = t / c too.
    """
    cdef Py_ssize_t q = d.q, n_a = q * (q + 1) // 2, pattern, c, a, pos, count
    cdef vecu* cy
    cdef vec t, total, fourth
    total = VEC_SET(0.0)
    fourth = VEC_SET(1e-300)
    for pattern in range(d.n_patterns):
        t = VEC_SET(0.0)
        pos = pattern * n_a
        for a in range(q):
            t = t + (<vecu*> s.rest)[pos]
            pos += a + 2
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            cy = (<vecu*> s.cy) + c * q
            for a in range(q):
                t = t + cy[a] * cy[a]
        total = total + t
        count = d.groups[pattern + 1] - d.groups[pattern]
        fourth = fourth + t * t * (1.0 if count == 1 else 1.0 / count)
    worth[0] = total * total / fourth


cdef bint let_wait(const Batch* d, Lanes* s, Fates* f, const Outcome* out, Py_ssize_t count) noexcept nogil:
    """No points yet for any of the `count` responses at s.place: those that are to be screened wait; whether some do.

    Where a minimum of regular data is the only one there is no need to look further.
    """
    cdef Py_ssize_t lane, i, wanted = d.screen.limit + d.screen.spread
    cdef vec regular = VEC_SET(-1.0)
    cdef int* chosen
    cdef bint some = False
    if d.screen.of_regular:
        regular_responses(d, s, &regular)
    for lane in range(count):
        chosen = out.chosen + s.place[lane] * wanted
        for i in range(wanted):
            chosen[i] = -1
        if (<double*> &regular)[lane] > 0.0:
            if out.rise != NULL:
                # nor beside it
                out.rise[s.place[lane]] = INFINITY
        elif f.status[lane] > 0:
            chosen[0] = WAITS
            some = True
    return some


cdef void tell_boundary(const Batch* d, Lanes* s, const Outcome* out, Py_ssize_t count) noexcept nogil:
    """Rises to the boundary of the `count` responses at s.place, which have been fitted, and the groups they are worth."""
    cdef Py_ssize_t lane
    cdef vec told
    if out.rise != NULL:
        boundary_near(d, s, &told)
        for lane in range(count):
            out.rise[s.place[lane]] = (<double*> &told)[lane]
    if out.worth != NULL:
        variation_worth(d, s, &told)
        for lane in range(count):
            out.worth[s.place[lane]] = (<double*> &told)[lane]


cdef void screen_responses(const Batch* d, Lanes* s, Fates* f, const Outcome* out, Py_ssize_t count) noexcept nogil:
    """The points chosen for those of the `count` responses at s.place that wait, and the values of all."""
    cdef Py_ssize_t lane, i, wanted = d.screen.limit + d.screen.spread
    cdef bint apart, inside, lowest, told = False, all_of_them = out.values != NULL
    cdef int* chosen
    cdef Known known
    cdef vec groups, found, finite, nearest
    gather_screened(d, s, &groups)
    for lane in range(LANES):
        # where minima lie close together searches from points far above them count too
        all_of_them = all_of_them or not (d.screen.lowest == 0 or (<double*> &groups)[lane] > d.screen.many)
    screen_values(d, s, all_of_them, &known)
    mark_valleys(d, s, groups, known.end, &found, &finite)
    nearest = VEC_SET(0.0)
    for lane in range(count):
        for i in range(d.screen.n_points if out.values != NULL else 0):
            out.values[s.place[lane] * d.screen.n_points + i] = s.values[i * LANES + lane]
        chosen = out.chosen + s.place[lane] * wanted
        if out.chosen == NULL or chosen[0] != WAITS:
            continue
        chosen[0] = -1
        apart = d.screen.lowest == 0 or (<double*> &groups)[lane] > d.screen.many
        inside = f.status[lane] == 1
        # the valley of a minimum that lies higher than a point may be among those that are not looked at
        lowest = (d.screen.n_patterns == d.n_patterns and s.f.gls.value[lane] <= (<double*> &known.floor)[lane]
                  and (<double*> &finite)[lane] > 0.0)
        # no valley, or the only one is that of the minimum that is known
        if apart and (<double*> &found)[lane] <= (1.0 if inside and lowest else 0.0):
            continue
        if apart and not told:
            nearest_points(d, s, &nearest)
            told = True
        choose_points(&d.screen, s.values + lane, s.marks + lane, <Py_ssize_t> (<double*> &nearest)[lane], inside,
                      (<double*> &groups)[lane] > d.screen.many, chosen)
