# Responses on one design with covariates of their own, several at a time: the lanes are responses.
#
# A covariate widens X alone.  Groups keep the patterns that they have without it (see responses.pxi), and a response is known
# by the lines c_1 .. c_r, y: in the columns of a pattern by l_c = R^-T Z'[C y] (q, e), e = r + 1, and in what these do not
# carry, where c_x = 0, by the cross-products of all lines, sum vec(l) vec(l)'.  With A = X_o'[C y] (X_o'X_o = I) and
#
#     [C y]'[C y] - A'A = L L'                    lines <- (lines - X_o A) L^-T
#
# the covariates join X_o as orthonormal columns, y is what all of them leave, and the criterion is that of a problem with
# p + r columns.  With W = I + U U' = T Delta T', U = R F, B = R'W^-1, and S the rest of a pattern,
#
#     H  = within + sum c'W^-1 c + tr_q(W^-1 S)         E = B c,     sum E_i M E_i' = columns + B S_M B'
#
# where S_M weighs the blocks of S by M.  Nothing here grows with the number of groups but what reads the rows.

cdef enum:
    MOST_EFFECTS = 3        # random effects

cdef double WELL_CONDITIONED = 1e-5
"""Smallest 1 - R^2 of a covariate on the columns before it for which cross-products are exact enough."""

cdef double MOSTLY_EXPLAINED = 1e-7
"""Share of y'y that X leaves below which its residual is to be taken from the rows."""

cdef double SQUARE_ROOT_OF_SIZE = 16.0
"""Of PROBLEM_SIZE."""


# The sums of a block of responses; all pointers are to vectors.
cdef struct LineSums:
    Reading r[4]            # one for each line
    Py_ssize_t ahead[4]     # from the rows of a block to those of the next one, which are fetched on the way
    double* columns         # (n_columns, q, e)
    double* rest            # (n_patterns, q e (q e + 1) / 2)
    double* within          # (k(k+1)/2,) of X_o and the lines
    double* A               # (p, e)
    double* cross           # (e(e+1)/2,) [C y]'[C y], then less A'A
    double* size            # (e,) its diagonal
    double* L               # (e, e) its factor
    double* inverse         # (e, e) that of L
    double* map             # (p + e, p + e) from conditioned to the caller's coefficients
    double* beta            # (p + e,) the caller's coefficients of y
    double* tile            # (e, TILE_ROWS + LANES)


cdef inline Py_ssize_t rest_size(const Batch* d) noexcept nogil:
    """Cross-products of the lines that a pattern keeps."""
    cdef Py_ssize_t w = d.q * d.lines.n_lines
    return w * (w + 1) // 2


cdef Py_ssize_t line_moments(const Batch* d) noexcept nogil:
    """Numbers by which a response is known: columns, rest, within."""
    cdef const Batch* base = d.lines.base
    return (base.n_columns * d.q * d.lines.n_lines + base.n_patterns * rest_size(d)
            + (d.p + 1) * (d.p + 2) // 2)


cdef void lay_sums(const Batch* d, double* moments, LineSums* s, Arena* arena) noexcept nogil:
    """Take the work space of a block that is read."""
    cdef const Batch* base = d.lines.base
    cdef Py_ssize_t e = d.lines.n_lines, p = base.p
    s.columns = moments
    s.rest = s.columns + LANES * base.n_columns * d.q * e
    s.within = s.rest + LANES * base.n_patterns * rest_size(d)
    s.A = take(arena, LANES * p * e)
    s.cross = take(arena, LANES * (e * (e + 1) // 2))
    s.size = take(arena, LANES * e)
    s.L = take(arena, LANES * e * e)
    s.inverse = take(arena, LANES * e * e)
    s.map = take(arena, LANES * (p + e) * (p + e))
    s.beta = take(arena, LANES * (p + e))
    s.tile = take(arena, LANES * e * (TILE_ROWS + LANES))


cdef Py_ssize_t lines_size(const Batch* d) noexcept nogil:
    """Doubles of work space that `lines_read` needs."""
    cdef LineSums s
    cdef Arena arena = Arena(NULL, 0)
    lay_sums(d, NULL, &s, &arena)
    take(&arena, (d.p + 1) * (d.p + 1))
    return arena.used


cdef inline void sum_lines(Py_ssize_t q, Py_ssize_t e, bint plain, const Batch* base, const SharedLines* w, LineSums* s,
                           Py_ssize_t g, vecu* acc) noexcept nogil:
    """acc (q, e) = R^-T Z'[C y] of a group; its rows are added to the sums with X and with each other.

    plain: lines are as they are, without weights, and X_o'[C y] follows from the groups.
    """
    cdef Py_ssize_t i, j, l, m, pos, p = base.p, used = s.r[0].used, filled = s.r[0].filled
    cdef vecu* A = <vecu*> s.A
    cdef const vecu* tile = <vecu*> s.tile
    # one loop over each of these: with constant sizes they are kept in registers
    cdef vec z[12]
    cdef vec cross[10]
    cdef vec v[4]
    cdef vec t
    for pos in range(q * e):
        z[pos] = VEC_SET(0.0)
    for pos in range(e * (e + 1) // 2):
        cross[pos] = (<vecu*> s.cross)[pos]
    for i in range(base.start[g], base.start[g + 1]):
        if used == filled:
            for l in range(e):
                filled = fill_tile(base, &s.r[l], s.tile + l * (TILE_ROWS + LANES) * LANES, i)
            used = 0
        for l in range(e):
            v[l] = tile[l * (TILE_ROWS + LANES) + used]
            FETCH(s.r[l].row[i % LANES] + s.ahead[l] + i // LANES * LANES)
            if not plain and w.times[l] != NULL:
                v[l] = v[l] * w.times[l][i]
        used += 1
        if not plain and base.offset != NULL:
            v[e - 1] = v[e - 1] - base.offset[i]
        for pos in range(q * e):
            z[pos] = z[pos] + base.basis[i * q + pos // e] * v[pos % e]
        for j in range(p if not plain and base.x != NULL else 0):
            for l in range(e):
                A[j * e + l] = A[j * e + l] + base.x[i * p + j] * v[l]
        for pos in range(e * (e + 1) // 2):
            l = (pos >= 1) + (pos >= 3) + (pos >= 6)
            m = pos - l * (l + 1) // 2
            t = v[l] if plain or base.weights == NULL else v[l] * base.weights[i]
            cross[pos] = cross[pos] + t * v[m]
    for pos in range(q * e):
        acc[pos] = z[pos]
    for pos in range(e * (e + 1) // 2):
        (<vecu*> s.cross)[pos] = cross[pos]
    s.r[0].used = used
    s.r[0].filled = filled


cdef inline void file_lines(Py_ssize_t w, const Batch* base, LineSums* s, Py_ssize_t pattern, Py_ssize_t g, const vecu* acc
                            ) noexcept nogil:
    """The sums of a group, w of them, to the columns and the rest of its pattern."""
    cdef Py_ssize_t begin = base.columns[pattern], c, pos
    cdef vecu* columns = (<vecu*> s.columns) + begin * w
    if base.groups[pattern + 1] - base.groups[pattern] == 1:
        for pos in range(w):
            columns[pos] = acc[pos]
        return
    add_outer(w, acc, (<vecu*> s.rest) + pattern * (w * (w + 1) // 2))
    for c in range(base.columns[pattern + 1] - begin):
        for pos in range(w):
            columns[c * w + pos] = columns[c * w + pos] + base.loading[g * base.loading_width + c] * acc[pos]


cdef inline void sum_groups(Py_ssize_t q, Py_ssize_t e, bint plain, const Batch* base, const SharedLines* w, LineSums* s
                            ) noexcept nogil:
    """One pass over the rows of a block."""
    cdef Py_ssize_t g, pattern = 0
    cdef vec acc[12]
    for g in range(base.m):
        while g >= base.groups[pattern + 1]:
            pattern += 1
        sum_lines(q, e, plain, base, w, s, g, <vecu*> acc)
        file_lines(q * e, base, s, pattern, g, <vecu*> acc)


cdef void leave_columns(const Batch* base, const SharedLines* w, LineSums* s) noexcept nogil:
    """Lines become their residuals on X_o; the rest loses what its columns carry; `within` of the lines."""
    cdef Py_ssize_t q = base.q, p = base.p, e = w.n_lines, n_r = q * e * (q * e + 1) // 2, pattern, c, a, j, l, m, pos, i
    cdef vecu* A = <vecu*> s.A
    cdef vecu* cross = <vecu*> s.cross
    cdef vecu* columns = <vecu*> s.columns
    cdef vecu* rest = <vecu*> s.rest
    cdef vecu* within = <vecu*> s.within
    cdef vecu* line
    cdef const double* cx
    for c in range(base.n_columns * q if base.x == NULL else 0):
        for j in range(p):
            for l in range(e):
                A[j * e + l] = A[j * e + l] + base.cx[c * p + j] * columns[c * e + l]
    for pos in range(p * (p + 1) // 2):
        within[pos] = VEC_SET(base.within_xx[pos])
    pos = 0
    for l in range(e):
        (<vecu*> s.size)[l] = cross[pos + l]
        line = within + (p + l) * (p + l + 1) // 2
        for j in range(p):
            line[j] = VEC_SET(0.0)
        for m in range(l + 1):
            for j in range(p):
                cross[pos] = cross[pos] - A[j * e + l] * A[j * e + m]
            line[p + m] = cross[pos]
            pos = pos + 1
    for pattern in range(base.n_patterns):
        if base.groups[pattern + 1] - base.groups[pattern] == 1:
            continue
        for c in range(base.columns[pattern], base.columns[pattern + 1]):
            line = columns + c * q * e
            pos = pattern * n_r
            for i in range(q * e):
                for j in range(i + 1):
                    rest[pos] = rest[pos] - line[i] * line[j]
                    pos = pos + 1
        for a in range(q):
            for l in range(e):
                i = a * e + l
                for m in range(l + 1):
                    j = (p + l) * (p + l + 1) // 2 + p + m
                    within[j] = within[j] - rest[pattern * n_r + i * (i + 1) // 2 + a * e + m]
    for c in range(base.n_columns * q):
        cx = base.cx + c * p
        line = columns + c * e
        for l in range(e):
            for j in range(p):
                line[l] = line[l] - cx[j] * A[j * e + l]
        for l in range(e):
            pos = (p + l) * (p + l + 1) // 2
            for j in range(p):
                if base.exact[j] == 0:
                    within[pos + j] = within[pos + j] - cx[j] * line[l]
            for m in range(l + 1):
                within[pos + p + m] = within[pos + p + m] - line[l] * line[m]


cdef void factor_lines(const SharedLines* w, LineSums* s, vec* settled) noexcept nogil:
    """L of the residual cross-products, and the inverse of diag(1, .., 1, 1 / 16) L; positive where all lines are fit for it."""
    cdef Py_ssize_t e = w.n_lines, l, m, i, pos = 0
    cdef vecu* L = <vecu*> s.L
    cdef vecu* inverse = <vecu*> s.inverse
    cdef vec t, least, one, fit
    one = fit = VEC_SET(1.0)
    for l in range(e):
        for m in range(l + 1):
            t = (<vecu*> s.cross)[pos]
            pos = pos + 1
            for i in range(m):
                t = t - L[l * e + i] * L[m * e + i]
            if m < l:
                L[l * e + m] = t / L[m * e + m]
        least = (<vecu*> s.size)[l] * (WELL_CONDITIONED if l < e - 1 else MOSTLY_EXPLAINED)
        fit = VEC_WHERE_POSITIVE(t - least, fit, VEC_SET(-1.0))
        fit = VEC_WHERE_POSITIVE(t - 1e-200, fit, VEC_SET(-1.0))
        fit = VEC_WHERE_POSITIVE(1e200 - t, fit, VEC_SET(-1.0))
        t = VEC_WHERE_POSITIVE(fit, t, one)
        L[l * e + l] = VEC_SQRT(t)
    for l in range(e):
        t = one / L[l * e + l]
        if l == e - 1:
            t = SQUARE_ROOT_OF_SIZE * t
        inverse[l * e + l] = t
        for m in range(l):
            least = VEC_SET(0.0)
            for i in range(m, l):
                least = least + L[l * e + i] * inverse[i * e + m]
            inverse[l * e + m] = VEC_SET(0.0) - t * least
    settled[0] = fit


cdef inline void turn_both(Py_ssize_t e, const vecu* inverse, vec* G) noexcept nogil:
    """G (e, e) <- inverse G inverse'."""
    cdef Py_ssize_t l, m, i
    cdef vec t
    for l in range(e - 1, -1, -1):
        for m in range(e):
            t = VEC_SET(0.0)
            for i in range(l + 1):
                t = t + inverse[l * e + i] * G[i * e + m]
            G[l * e + m] = t
    for l in range(e - 1, -1, -1):
        for m in range(e):
            t = VEC_SET(0.0)
            for i in range(l + 1):
                t = t + inverse[l * e + i] * G[m * e + i]
            G[m * e + l] = t


cdef inline void turn_line(Py_ssize_t e, const vecu* inverse, vecu* line) noexcept nogil:
    """line (e,) <- inverse line."""
    cdef Py_ssize_t l, i
    cdef vec t
    for l in range(e - 1, -1, -1):
        t = VEC_SET(0.0)
        for i in range(l + 1):
            t = t + inverse[l * e + i] * line[i]
        line[l] = t


cdef inline Py_ssize_t packed_place(Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    """Of an element of a symmetric matrix, the lower triangle packed by rows."""
    return i * (i + 1) // 2 + j if i >= j else j * (j + 1) // 2 + i


cdef void turn_lines(const Batch* base, const SharedLines* w, LineSums* s) noexcept nogil:
    """The lines in the columns, the rest and `within`, orthonormal, and y of squared length PROBLEM_SIZE."""
    cdef Py_ssize_t q = base.q, p = base.p, e = w.n_lines, n_r = q * e * (q * e + 1) // 2, c, a, b, j, l, m, pattern
    cdef vecu* rest
    cdef vecu* within = <vecu*> s.within
    cdef const vecu* inverse = <vecu*> s.inverse
    cdef vec G[16]
    for c in range(base.n_columns * q):
        turn_line(e, inverse, (<vecu*> s.columns) + c * e)
    for pattern in range(base.n_patterns):
        if base.groups[pattern + 1] - base.groups[pattern] == 1:
            continue
        rest = (<vecu*> s.rest) + pattern * n_r
        for a in range(q):
            for b in range(a + 1):
                for l in range(e):
                    for m in range(e):
                        G[l * e + m] = rest[packed_place(a * e + l, b * e + m)]
                turn_both(e, inverse, G)
                for l in range(e):
                    for m in range(e if b < a else l + 1):
                        rest[packed_place(a * e + l, b * e + m)] = G[l * e + m]
    for l in range(e):
        for m in range(e):
            G[l * e + m] = within[packed_place(p + l, p + m)]
    turn_both(e, inverse, G)
    for l in range(e):
        for m in range(l + 1):
            within[packed_place(p + l, p + m)] = G[l * e + m]
    for j in range(p):
        for l in range(e):
            G[l] = within[packed_place(p + l, j)]
        turn_line(e, inverse, <vecu*> G)
        for l in range(e):
            within[packed_place(p + l, j)] = G[l]


cdef void map_lines(const Batch* base, const SharedLines* w, LineSums* s) noexcept nogil:
    """From conditioned to the caller's coefficients, and those of least squares of y.

    c_o = (c - X_o a) / |.| takes a from the coefficients of X_o; what was taken from a line before it was summed, from the
    constant, or from the column of X by which it is multiplied.
    """
    cdef Py_ssize_t p = base.p, e = w.n_lines, r = e - 1, k = p + r, i, j, l, m
    cdef vecu* T = <vecu*> s.map
    cdef vecu* beta = <vecu*> s.beta
    cdef const vecu* A = <vecu*> s.A
    cdef const vecu* L = <vecu*> s.L
    cdef const vecu* inverse = <vecu*> s.inverse
    cdef vec t, u, shift
    for i in range(p):
        for j in range(p):
            T[i * k + j] = VEC_SET(base.x_map[i * p + j])
        for l in range(r):
            t = VEC_SET(0.0)
            for j in range(p):
                u = VEC_SET(0.0)
                for m in range(l + 1):
                    u = u + A[j * e + m] * inverse[l * e + m]
                t = t - base.x_map[i * p + j] * u
            for m in range(l + 1):
                shift = (<vecu*> &s.r[m].shift[0])[0] * inverse[l * e + m]
                if w.factor[m] < 0 and base.centre:
                    t = t - shift * base.ones[i]
                elif w.factor[m] == i:
                    t = t - shift
            T[i * k + p + l] = t
    for l in range(r):
        for j in range(p):
            T[(p + l) * k + j] = VEC_SET(0.0)
        for m in range(r):
            T[(p + l) * k + p + m] = inverse[m * e + l] if m >= l else VEC_SET(0.0)
    for i in range(k):
        t = VEC_SET(0.0)
        for j in range(p):
            t = t + T[i * k + j] * A[j * e + r]
        for l in range(r):
            t = t + T[i * k + p + l] * L[r * e + l]
        if i < p and base.centre:
            t = t + (<vecu*> &s.r[r].shift[0])[0] * base.ones[i]
        beta[i] = t


cdef void begin_lines(const Batch* base, const LinesToRead* given, const SharedLines* w, LineSums* s) noexcept nogil:
    """Sums at zero, and where the rows of each lane are."""
    cdef Py_ssize_t q = base.q, e = w.n_lines, n_r = q * e * (q * e + 1) // 2, lane, l, pos
    for pos in range(base.n_columns * q * e):
        (<vecu*> s.columns)[pos] = VEC_SET(0.0)
    for pos in range(base.n_patterns * n_r):
        (<vecu*> s.rest)[pos] = VEC_SET(0.0)
    for pos in range(base.p * e):
        (<vecu*> s.A)[pos] = VEC_SET(0.0)
    for pos in range(e * (e + 1) // 2):
        (<vecu*> s.cross)[pos] = VEC_SET(0.0)
    for l in range(e):
        s.r[l].used = s.r[l].filled = 0
        s.ahead[l] = LANES * given.step[l]
        for lane in range(8):
            # lanes beyond the last response repeat it
            s.r[l].row[lane] = given.source[l] + min(lane, given.count - 1) * given.step[l]
            s.r[l].shift[lane] = s.r[l].row[lane][0] if w.factor[l] >= 0 or base.centre else 0.0


cdef void describe_lines(const Batch* d, const LineSums* s, const vec* settled, const LinesToRead* given, ProblemSums* out,
                         int* fit) noexcept nogil:
    """What the searches need to know of each response beside its sums."""
    cdef const Batch* base = d.lines.base
    cdef Py_ssize_t p = d.p, e = d.lines.n_lines, lane, i, l
    cdef double* map
    cdef double* beta
    cdef double jacobian
    for lane in range(given.count):
        fit[lane] = (<const double*> settled)[lane] > 0.0
        if not fit[lane]:
            continue
        map = given.map + lane * p * p
        beta = given.beta + lane * p
        for i in range(p * p):
            map[i] = s.map[i * LANES + lane]
        for i in range(p):
            beta[i] = s.beta[i * LANES + lane]
        jacobian = 0.0
        for l in range(e - 1):
            jacobian += log(s.L[l * (e + 1) * LANES + lane])
        out[lane].m, out[lane].rank, out[lane].n = base.m, p, base.n
        out[lane].nu = base.n - p if d.reml else base.n
        out[lane].scale = s.L[(e * e - 1) * LANES + lane] / SQUARE_ROOT_OF_SIZE
        out[lane].offset = (out[lane].nu * 2.0 * log(out[lane].scale) + d.lines.constant
                            + (2.0 * jacobian if d.reml else 0.0))
        out[lane].x_map, out[lane].base = map, beta
        out[lane].lines = given.moments + lane


cdef void lines_read(const Batch* d, const LinesToRead* given, ProblemSums* out, int* fit, double* work) noexcept nogil:
    """Sum the rows of up to LANES responses; `fit`: 1 for those that need no second look at them."""
    cdef const SharedLines* w = d.lines
    cdef const Batch* base = w.base
    cdef LineSums s
    cdef OwnGroups own
    cdef Fates f
    cdef Arena arena = Arena(work, 0)
    cdef vec settled
    cdef Py_ssize_t lane
    cdef bint plain
    lay_sums(d, given.moments, &s, &arena)
    begin_lines(base, given, w, &s)
    plain = base.x == NULL and base.weights == NULL and base.offset == NULL
    for lane in range(w.n_lines):
        plain = plain and w.times[lane] == NULL
    if plain and base.q == 1 and w.n_lines == 2:
        sum_groups(1, 2, True, base, w, &s)
    elif plain and base.q == 2 and w.n_lines == 2:
        sum_groups(2, 2, True, base, w, &s)
    else:
        sum_groups(base.q, w.n_lines, False, base, w, &s)
    leave_columns(base, w, &s)
    factor_lines(w, &s, &settled)
    turn_lines(base, w, &s)
    map_lines(base, w, &s)
    for lane in range(LANES):
        f.status[lane] = 0
    own.within = s.within
    clear_exact_columns(d.p + 1, &f, &own, take(&arena, (d.p + 1) * (d.p + 1)))
    describe_lines(d, &s, &settled, given, out, fit)
    for lane in range(given.count):
        fit[lane] = fit[lane] and f.status[lane] == 0


offered.lines_moments = &line_moments
offered.lines_size = &lines_size
offered.lines_read = &lines_read
