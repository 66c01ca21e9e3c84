# The criterion of responses with covariates of their own, and what is known of its minima, see
# responses_with_covariates.pxi.

cdef void lay_lines(const Batch* d, Lanes* s, OwnGroups* own, Arena* arena) noexcept nogil:
    """Take the work space of a block of such responses, beside that of any problems."""
    cdef const Batch* base = d.lines.base
    cdef Py_ssize_t q = d.q, n_a = q * (q + 1) // 2, n_c = q * (d.p + 1)
    own.packed = take(arena, LANES * line_moments(d))
    own.within = own.packed + LANES * (line_moments(d) - (d.p + 1) * (d.p + 2) // 2)
    own.store = take(arena, LANES * (base.n_patterns * (n_a + rest_size(d)) + base.n_columns * n_c))
    # searches beside the boundary begin far from it
    s.reach = REACH
    # of one line, for the start
    s.taken = take(arena, LANES * n_a)
    s.cy = take(arena, LANES * base.n_columns * q)
    s.rest = take(arena, LANES * base.n_patterns * n_a)
    s.store = take(arena, LANES * (base.n_patterns * n_a + base.n_columns * q))
    s.small = take(arena, LANES * max(5 * q * q + 2 * n_c + q, max(d.n_par * (d.n_par + 2),
                                      q * q + 1 + n_a + start_size(q, base.p))))


cdef void load_lines(const Batch* d, const ProblemSums* sums, OwnGroups* own) noexcept nogil:
    """The sums of each lane's response."""
    cdef Py_ssize_t n = line_moments(d), i, lane
    cdef const double* source
    for lane in range(LANES):
        source = sums[lane].lines
        for i in range(n):
            own.packed[i * LANES + lane] = source[i * LANES]


cdef void take_line(const Batch* d, Lanes* s, const OwnGroups* own, const vec* share) noexcept nogil:
    """s.cy, s.rest and s.within: those of a sum of the lines."""
    cdef const Batch* base = d.lines.base
    cdef Py_ssize_t q = d.q, p = base.p, e = d.lines.n_lines, n_r = rest_size(d), pattern, a, b, i, l, m, pos = 0
    cdef const vecu* columns = <vecu*> own.packed
    cdef const vecu* rest = columns + base.n_columns * q * e
    cdef const vecu* within = <vecu*> own.within
    cdef vec t
    for i in range(base.n_columns * q):
        t = VEC_SET(0.0)
        for l in range(e):
            t = t + share[l] * columns[i * e + l]
        (<vecu*> s.cy)[i] = t
    for pattern in range(base.n_patterns):
        for a in range(q):
            for b in range(a + 1):
                t = VEC_SET(0.0)
                for l in range(e):
                    for m in range(e):
                        t = t + share[l] * share[m] * rest[packed_place(a * e + l, b * e + m)]
                (<vecu*> s.rest)[pos] = t
                pos += 1
        rest = rest + n_r
    for i in range(p):
        t = VEC_SET(0.0)
        for l in range(e):
            t = t + share[l] * within[packed_place(p + l, i)]
        (<vecu*> s.within)[i] = t
    t = VEC_SET(0.0)
    for l in range(e):
        for m in range(e):
            t = t + share[l] * share[m] * within[packed_place(p + l, p + m)]
    (<vecu*> s.within)[p] = t


cdef void square_of_line(const Batch* d, Lanes* s, const OwnGroups* own, const vec* share, vec* square) noexcept nogil:
    """l'P l of a sum of the lines at the common point, and l'P V_a P l of it in s.small."""
    cdef vecu* sums = <vecu*> s.small
    cdef vecu* beta = sums + d.q * (d.q + 1) // 2
    take_line(d, s, own, share)
    square_at_start(d.lines.base, s, beta, beta + d.lines.base.p, sums, square)


cdef void start_lines(const Batch* d, Lanes* s, const OwnGroups* own) noexcept nogil:
    """A step of scoring from the common point of responses without covariates, by the slope with them.

    With lines u_l orthogonal by P, u_l'P u_m = 0, the last y and the others covariates,
    P loses sum P u_l u_l'P / u_l'P u_l.
    """
    cdef Py_ssize_t e = d.lines.n_lines, n_a = d.q * (d.q + 1) // 2, i, l, m
    cdef vec u[16]
    cdef vec both[4]
    cdef vec squares[4]
    cdef vec own_square, t
    for i in range(n_a):
        (<vecu*> s.taken)[i] = VEC_SET(0.0)
    for l in range(e):
        for i in range(e):
            u[l * e + i] = VEC_SET(1.0 if i == l else 0.0)
        square_of_line(d, s, own, u + l * e, &own_square)
        for m in range(l):
            # the product of two lines from the square of their sum
            for i in range(e):
                both[i] = u[m * e + i] + (VEC_SET(1.0) if i == l else VEC_SET(0.0))
            square_of_line(d, s, own, both, &t)
            t = 0.5 * (t - own_square - squares[m]) / squares[m]
            for i in range(m + 1):
                u[l * e + i] = u[l * e + i] - t * u[m * e + i]
        square_of_line(d, s, own, u + l * e, squares + l)
        for i in range(n_a if d.reml and l < e - 1 else 0):
            (<vecu*> s.taken)[i] = (<vecu*> s.taken)[i] + (<vecu*> s.small)[i] / squares[l]
    first_theta(d.lines.base, s)
    for i in range(d.n_par):
        (<vecu*> s.theta)[i] = (<vecu*> s.theta)[i] * d.lines.unit


cdef inline void sweep_line_rest(Py_ssize_t q, Py_ssize_t p, Py_ssize_t e, const vecu* rest, const PatternSpace* w,
                                 vecu* gram, vecu* out) noexcept nogil:
    """H of the lines += tr_q(W^-1 rest); out = B rest B', which is added to their part of gram unless that is NULL."""
    cdef Py_ssize_t k = p + e, a, b, c, l, m, at
    cdef vecu* S = w.U
    cdef vecu* half = w.W
    cdef vec t
    for l in range(e):
        for m in range(l + 1):
            for a in range(q):
                for b in range(q):
                    S[a * q + b] = rest[packed_place(a * e + l, b * e + m)]
            # S <- T^-1 S T^-T
            for a in range(q):
                for b in range(a + 1, q):
                    for c in range(q):
                        S[b * q + c] = S[b * q + c] - w.T[b * q + a] * S[a * q + c]
            for a in range(q):
                for b in range(a + 1, q):
                    for c in range(q):
                        S[c * q + b] = S[c * q + b] - w.T[b * q + a] * S[c * q + a]
            at = (p + l) * (p + l + 1) // 2 + p + m
            t = w.H[at]
            for a in range(q):
                t = t + S[a * q + a] * w.roots[a]
            w.H[at] = t
            if gram == NULL:
                continue
            for a in range(q):
                for b in range(q):
                    t = VEC_SET(0.0)
                    for c in range(q):
                        t = t + w.Z[c * q + a] * S[c * q + b]
                    half[a * q + b] = t
            for a in range(q):
                for b in range(q if m < l else a + 1):
                    t = VEC_SET(0.0)
                    for c in range(q):
                        t = t + half[a * q + c] * w.Z[c * q + b]
                    out[packed_place(a * e + l, b * e + m)] = t
                    at = packed_place(a * k + p + l, b * k + p + m)
                    gram[at] = gram[at] + t


cdef inline void sweep_line_column(Py_ssize_t q, Py_ssize_t p, Py_ssize_t e, const double* cx, const vecu* line,
                                   const PatternSpace* w, vecu* E) noexcept nogil:
    """`sweep_column` with lines beside c_x; without E where that is NULL."""
    cdef Py_ssize_t k = p + e, a, b, j, l, pos = 0
    cdef vec t
    for a in range(q):
        for j in range(k):
            t = VEC_SET(cx[a * p + j]) if j < p else line[a * e + j - p]
            for l in range(a):
                t = t - w.T[a * q + l] * w.D[l * k + j]
            w.D[a * k + j] = t
            w.C[a * k + j] = t * w.roots[a]
    for j in range(k):
        for l in range(j + 1):
            t = w.H[pos]
            for a in range(q):
                t = t + w.C[a * k + j] * w.D[a * k + l]
            w.H[pos] = t
            pos = pos + 1
    if E == NULL:
        return
    for b in range(q):
        for j in range(k):
            t = w.Y[b] * w.C[j]
            for a in range(1, q):
                t = t + w.Y[a * q + b] * w.C[a * k + j]
            E[b * k + j] = t


cdef inline void sweep_line_patterns(Py_ssize_t q, Py_ssize_t p, Py_ssize_t e, const SharedLines* d, Lanes* s, int order
                                     ) noexcept nogil:
    """First sweep at f.factor: logdet and H, for derivatives also sum_n and gram; keeps N,
    B rest B' and E for the second."""
    cdef Py_ssize_t k = p + e, n_a = q * (q + 1) // 2, n_c = q * k, n_h = k * (k + 1) // 2, w_l = q * e
    cdef Py_ssize_t n_r = w_l * (w_l + 1) // 2, pattern, a, b, c, l, pos
    cdef const Batch* base = d.base
    cdef const vecu* line = <vecu*> s.own.packed
    cdef const vecu* rest = line + base.n_columns * w_l
    cdef vecu* gram = <vecu*> s.f.gram if order > 0 else NULL
    cdef vecu* sum_n = <vecu*> s.f.sum_n
    cdef vecu* N = <vecu*> s.own.store
    cdef vecu* E = N + base.n_patterns * (n_a + n_r)
    cdef vec effects[48]
    cdef vec columns[96]
    cdef vec sums[48]
    cdef PatternSpace w
    cdef vec det, product, exponent, logdet, t
    cdef double count
    lay_pattern(q, <vecu*> effects, &w)
    w.D = <vecu*> columns if n_c <= ROOM else (<vecu*> s.small) + 5 * q * q + q
    w.C = w.D + n_c
    w.H = <vecu*> sums if n_h <= ROOM else <vecu*> s.f.gls.H
    product = VEC_SET(1.0)
    exponent = logdet = VEC_SET(0.0)
    for pos in range(n_h):
        w.H[pos] = (<vecu*> s.own.within)[pos]
    for pos in range(n_a if order > 0 else 0):
        sum_n[pos] = VEC_SET(0.0)
    for pos in range(n_c * (n_c + 1) // 2 if order > 0 else 0):
        gram[pos] = VEC_SET(0.0)
    for pattern in range(base.n_patterns):
        count = <double> (base.groups[pattern + 1] - base.groups[pattern])
        det = whiten_pattern(q, d.R + pattern * n_a, <vecu*> s.f.factor, &w)
        if count > 1.0:
            logdet = logdet + count * VEC_LOG(det)
        else:
            product = product * det
            VEC_SPLIT(product, exponent)
        pos = 0
        for a in range(q if order > 0 else 0):
            for b in range(a + 1):
                t = w.Z[a] * w.Y[b]
                for l in range(1, q):
                    t = t + w.Z[l * q + a] * w.Y[l * q + b]
                N[pos] = t
                sum_n[pos] = sum_n[pos] + count * t
                pos = pos + 1
        for c in range(base.columns[pattern], base.columns[pattern + 1]):
            sweep_line_column(q, p, e, base.cx + c * q * p, line + c * w_l, &w, E + c * n_c if order > 0 else NULL)
        if count > 1.0:
            sweep_line_rest(q, p, e, rest + pattern * n_r, &w, gram, N + n_a)
        N = N + n_a + n_r
    if order > 0:
        add_outers(n_c, base.n_columns, n_c, E, gram)
    for pos in range(n_h):
        (<vecu*> s.f.gls.H)[pos] = w.H[pos]
    (<vecu*> s.f.gls.logdet)[0] = logdet + VEC_LOG(product) + exponent * M_LN2


cdef inline void curve_line_patterns(Py_ssize_t q, Py_ssize_t p, Py_ssize_t e, const SharedLines* d, Lanes* s, bint reml
                                     ) noexcept nogil:
    """Second sweep: tensor = sum B_i (x) N_i."""
    cdef Py_ssize_t k = p + e, n_a = q * (q + 1) // 2, n_c = q * k, w_l = q * e, n_r = w_l * (w_l + 1) // 2
    cdef Py_ssize_t pattern, a, b, c, j, l, m, pos, first = 0 if reml else k - 1
    cdef const Batch* base = d.base
    cdef vec tensor[36]
    cdef vec B[6]
    cdef vec F[3]
    cdef const vecu* weight = <vecu*> s.f.gls.weight
    cdef const vecu* M = <vecu*> s.f.M
    cdef const vecu* N = <vecu*> s.own.store
    cdef const vecu* E = N + base.n_patterns * (n_a + n_r)
    cdef const vecu* rest
    cdef vec t, u
    cdef double count
    for pos in range(n_a * n_a):
        tensor[pos] = VEC_SET(0.0)
    for pattern in range(base.n_patterns):
        count = <double> (base.groups[pattern + 1] - base.groups[pattern])
        rest = N + n_a
        pos = 0
        for a in range(q):
            for b in range(a + 1):
                t = VEC_SET(0.0) - count * N[pos]
                for l in range(e if count > 1.0 else 0):
                    for m in range(l):
                        u = rest[packed_place(a * e + l, b * e + m)] + rest[packed_place(a * e + m, b * e + l)]
                        t = t + 2.0 * M[(p + l) * k + p + m] * u
                    t = t + 2.0 * M[(p + l) * k + p + l] * rest[packed_place(a * e + l, b * e + l)]
                B[pos] = t
                pos = pos + 1
        for c in range(base.columns[pattern], base.columns[pattern + 1]):
            for j in range(first, k):
                for a in range(q):
                    t = E[a * k] * weight[j]
                    for l in range(1, j + 1):
                        t = t + E[a * k + l] * weight[l * k + j]
                    F[a] = t
                pos = 0
                for a in range(q):
                    for b in range(a + 1):
                        B[pos] = B[pos] + F[a] * F[b]
                        pos = pos + 1
            E = E + n_c
        add_tensor(n_a, <vecu*> B, N, <vecu*> tensor)
        N = N + n_a + n_r
    for pos in range(n_a * n_a):
        (<vecu*> s.f.tensor)[pos] = tensor[pos]


cdef inline void sweep_lines(Py_ssize_t q, Py_ssize_t p, Py_ssize_t e, const Batch* d, Lanes* s,
                             int order) noexcept nogil:
    sweep_line_patterns(q, p, e, d.lines, s, order)
    profile_value(&s.f, order)
    if order == 2:
        curve_line_patterns(q, p, e, d.lines, s, d.reml)
        profile_second(&s.f, 2)


cdef void evaluate_lines(const Batch* d, Lanes* s, int order) noexcept nogil:
    """The criterion of a block of responses with covariates at f.factor with its derivatives (order 0 to 2)."""
    cdef Py_ssize_t q = d.q, p = d.lines.base.p, e = d.lines.n_lines
    if q == 1 and p == 1 and e == 2:
        sweep_lines(1, 1, 2, d, s, order)
    elif q == 1 and e == 2:
        sweep_lines(1, p, 2, d, s, order)
    elif q == 2 and p == 2 and e == 2:
        sweep_lines(2, 2, 2, d, s, order)
    elif q == 2 and e == 2:
        sweep_lines(2, p, 2, d, s, order)
    else:
        sweep_lines(q, p, e, d, s, order)


cdef inline void sum_line_patterns(Py_ssize_t q, const Batch* d, Lanes* s, Regularity* r) noexcept nogil:
    """The sums by which regular data are told, from what the last evaluation keeps."""
    cdef const Batch* base = d.lines.base
    cdef Py_ssize_t p = base.p, e = d.lines.n_lines, k = p + e, n_a = q * (q + 1) // 2, n_r = rest_size(d)
    cdef Py_ssize_t pattern, columns, a, b, l, m, pos
    cdef const vecu* b_y = (<vecu*> s.f.gls.b) + p
    cdef const vecu* N = <vecu*> s.own.store
    cdef const vecu* E = N + base.n_patterns * (n_a + n_r)
    cdef const vecu* rest
    cdef vec residual[6]
    cdef vec t
    cdef double count
    for pattern in range(base.n_patterns):
        count = <double> (base.groups[pattern + 1] - base.groups[pattern])
        columns = base.columns[pattern + 1] - base.columns[pattern]
        rest = N + n_a
        pos = 0
        for a in range(q if count > 1.0 else 0):
            for b in range(a + 1):
                t = VEC_SET(0.0)
                for l in range(e):
                    for m in range(e):
                        t = t + b_y[l] * b_y[m] * rest[packed_place(a * e + l, b * e + m)]
                residual[pos] = t
                pos = pos + 1
        add_groups(q, k, N, <vecu*> residual, E, columns, count, r)
        E = E + columns * q * k
        N = N + n_a + n_r


cdef double RISE_WITHIN = 1.0
"""Rise of the criterion to the boundary, by its Hessian, above which a minimum lies well inside."""


cdef void regular_lines(const Batch* d, Lanes* s, vec* regular) noexcept nogil:
    """Positive where the minimum of responses with covariates, at the last evaluation, is that of regular data and lies
    well inside."""
    cdef Regularity r
    cdef vec rise
    begin_regularity(d.q, s, &r)
    if d.q == 2:
        sum_line_patterns(2, d, s, &r)
    else:
        sum_line_patterns(d.q, d, s, &r)
    judge_regularity(d, s, &r, VEC_SET(<double> d.lines.base.m), regular)
    boundary_near(d, s, &rise)
    regular[0] = VEC_WHERE_POSITIVE(rise - RISE_WITHIN, regular[0], VEC_SET(-1.0))


cdef void worth_of_lines(const Batch* d, const OwnGroups* own, vec* worth) noexcept nogil:
    """How many groups the variation of y is worth, as `variation_worth` tells it."""
    cdef const Batch* base = d.lines.base
    cdef Py_ssize_t q = d.q, e = d.lines.n_lines, n_r = rest_size(d), pattern, c, a
    cdef const vecu* columns = <vecu*> own.packed
    cdef const vecu* rest = columns + base.n_columns * q * e
    cdef vec t, total, fourth
    cdef double count
    total = VEC_SET(0.0)
    fourth = VEC_SET(1e-300)
    for pattern in range(base.n_patterns):
        count = <double> (base.groups[pattern + 1] - base.groups[pattern])
        t = VEC_SET(0.0)
        for a in range(q if count > 1.0 else 0):
            t = t + rest[pattern * n_r + packed_place((a + 1) * e - 1, (a + 1) * e - 1)]
        for c in range(base.columns[pattern] * q, base.columns[pattern + 1] * q):
            t = t + columns[c * e + e - 1] * columns[c * e + e - 1]
        total = total + t
        fourth = fourth + t * t * (1.0 / count)
    worth[0] = total * total / fourth


cdef bint vary_between(const Batch* d, const OwnGroups* own, Py_ssize_t lane) noexcept nogil:
    """Whether no covariate of a lane varies within groups."""
    cdef Py_ssize_t l, p = d.lines.base.p
    for l in range(p, p + d.lines.n_lines - 1):
        if own.within[packed_place(l, l) * LANES + lane] != 0.0:
            return False
    return True


cdef void kinds_of_lines(const Batch* d, Lanes* s, const OwnGroups* own, Fates* f, Minima* found) noexcept nogil:
    """`kinds_of` for responses of one block of correlated effects, of which the design tells nearly everything.

    Where groups tell alike, a minimum that is that of regular data is the only one.
    Minima that may lie close together are left alone.
    """
    cdef const SharedLines* w = d.lines
    cdef Py_ssize_t lane, m = w.base.m
    cdef vec regular = VEC_SET(-1.0), worth = VEC_SET(0.0)
    cdef vec sole = VEC_SET(-1.0), differ = VEC_SET(0.0)
    cdef bint worthy, alike, balanced, apart, some = not w.spanned
    if w.spanned:
        only_balanced(d, s, own, &sole)
    for lane in range(LANES):
        some = some or not (<double*> &sole)[lane] > 0.0
    if some:
        differ_within(d, s, &differ)
        regular_lines(d, s, &regular)
        worth_of_lines(d, own, &worth)
    for lane in range(LANES):
        found.count[lane] = 0
        if (<double*> &sole)[lane] > 0.0:
            found.only[lane], found.beside[lane] = True, False
            found.kind[lane] = 0 if f.status[lane] > 0 else -1
            continue
        alike = (<double*> &regular)[lane] > 0.0 and w.alike
        # of groups that differ, regular data may have another one, and where slopes within and between groups may do so
        apart = w.spanned and not vary_between(d, own, lane)
        found.only[lane] = (<double*> &regular)[lane] > 0.0 and (w.alike or w.balanced) and not apart
        worthy = (<double*> &worth)[lane] >= DOMINATED * min(m, FEW_GROUPS * d.q)
        balanced = w.balanced and (<double*> &differ)[lane] <= CONFLICT * m
        found.kind[lane] = 0 if (m >= MANY_GROUPS * d.q or balanced or alike) and not apart else 1
        balanced = balanced and worthy or alike
        found.beside[lane] = balanced and m < FEW_GROUPS * d.q
        if f.status[lane] > 0 and (w.few or not worthy) and not balanced:
            f.status[lane] = LEFT_ALONE
        if f.status[lane] <= 0:
            found.kind[lane] = -1
