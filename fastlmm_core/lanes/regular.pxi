# Whether a minimum is that of regular data, of which it is the only one.
#
# Other minima are those of data at odds with the model: some groups make up most of the variation, or tell of the effects what
# others do not.  Of regular data the second derivatives along directions D, F of G^ come near to their expectation,
#
#     I_DF = sum tr(N D N F) - sum tr(N D) sum tr(N F) / nu                   (by ML exactly)
#
# Where they do, the criterion is convex about the minimum in all of G^, and it rises along each way into the cone of the
# covariance matrices, from a minimum on the boundary as from one inside.
#
# With M = sum N^-1/2 e e' N^-T/2 over the c groups of a pattern, e = R'W^-1 c b, b = (-beta, 1), T = sum tr M, and
# tau = T / (m q), the variation within the groups' own columns is worth
#
#     T^2 / (sum |M - c tau I|^2 + m q tau^2) = T^2 / sum (|M|^2 - (c - 1) (2 tau tr M - c q tau^2))
#
# groups.  Of groups that share no pattern that is (sum t)^2 / sum t^2, t = tr M, and of normal effects m q / (q + 2), however
# many groups have a pattern.  What has no columns of its own adds R'W^-1 rest W^-1 R to sum e e'.
#
# Where columns of X vary within groups beside Z, coefficients are told there and between groups, and where these two differ
# much there are two minima: in one what is between groups counts as coefficients, in the other as effects.  With W the part
# of X'V^-1 X within groups, s that of X'V^-1 (y - X beta) = 0, K the inverse of X'V^-1 X, and W = L L',
#
#     s'(W^-1 + (K^-1 - W)^-1) s / sigma^2 = v'(I - L'K L)^-1 v / sigma^2,    L v = s
#
# is the statistic by which coefficients within and between differ (Hausman 1978, Econometrica 46, 1251-1271).

cdef double LIKE_EXPECTED = 0.5
"""Share of the expected second derivatives, in every direction, above which the observed ones come near to them."""

cdef double WORTH_OF_GROUPS = 0.25
"""Share of the groups that whitened sums of squares are worth of regular data: a half for normal effects."""


cdef double CONFLICT = 0.3
"""That statistic for each group, up to which coefficients within and between groups differ little.  Of 1,144 hostile
responses that had a lower minimum beside a regular one it was 0.9 at least."""

cdef enum:
    MOST_WITHIN = 6     # columns of X that vary within groups beside Z, of regular data

cdef double NONE_BETWEEN = 1e-9
"""Share of what is told between groups that is rounding error."""


cdef void boundary_near(const Batch* d, Lanes* s, vec* least) noexcept nogil:
    """The least rise of the criterion, by its Hessian, to where one diagonal element of L is zero and the others follow."""
    cdef Py_ssize_t n = d.n_par, i, j
    cdef vecu* unit = <vecu*> s.step
    cdef vecu* small = <vecu*> s.small
    cdef vecu* theta = <vecu*> s.trial
    cdef vec decrement, definite, rise
    least[0] = VEC_SET(1e300)
    for i in range(n):
        if d.row[i] != d.col[i]:
            continue
        for j in range(n):
            unit[j] = VEC_SET(1.0 if j == i else 0.0)
        newton_step(n, <vecu*> s.f.hess, unit, small, small + n * n, <vecu*> s.f.work, &decrement, &definite)
        # the square of the decrement is the element of the inverse
        rise = 0.5 * theta[i] * theta[i] / (decrement * decrement + 1e-300)
        least[0] = VEC_WHERE_POSITIVE(least[0] - rise, rise, least[0])


# Sums over groups; work space for one.
cdef struct Regularity:
    vec squares     # sum tr M
    vec fourth      # sum |M|^2
    vec joined      # sum (c - 1) tr M
    double pairs    # sum c (c - 1)
    vecu* tensor    # (n_a, n_a) sum c N (x) N
    vecu* half      # (q, q), and (q,) beside it
    vecu* both      # (q, q) sum e e'
    vecu* b         # (k,)


cdef inline void take_half(Py_ssize_t q, const vecu* N, vecu* half) noexcept nogil:
    """Lower triangular factor of N, packed, the reciprocals of its pivots on the diagonal; 0 where there is none."""
    cdef Py_ssize_t a, b, l
    cdef vec t
    for a in range(q):
        for b in range(a + 1):
            t = N[a * (a + 1) // 2 + b]
            for l in range(b):
                t = t - half[a * q + l] * half[b * q + l]
            if b < a:
                half[a * q + b] = t * half[b * q + b]
            else:
                half[a * q + a] = VEC_RSQRT_ABOVE(t, N[a * (a + 1) // 2 + a] * 1e-12 + 1e-300)


cdef inline vec own_part(Py_ssize_t k, const vecu* row, const vecu* b) noexcept nogil:
    """An element of e = E b, by its row of E."""
    cdef Py_ssize_t j
    cdef vec t = row[k - 1]
    for j in range(k - 1):
        t = t + row[j] * b[j]
    return t


cdef inline vec whitened_square(Py_ssize_t q, Py_ssize_t k, const vecu* E, const Regularity* r) noexcept nogil:
    """e'N^-1 e of a column, e = E b, by the factor of N."""
    cdef Py_ssize_t a, l
    cdef const vecu* half = r.half
    cdef vecu* e = r.half + q * q
    cdef vec t, total
    total = VEC_SET(0.0)
    for a in range(q):
        t = own_part(k, E + a * k, r.b)
        for l in range(a):
            t = t - half[a * q + l] * e[l]
        # the diagonal holds reciprocals
        e[a] = t * half[a * q + a]
        total = total + e[a] * e[a]
    return total


cdef inline void add_regularity(Py_ssize_t q, const vecu* N, vec trace, vec square, double count, Regularity* r
                                ) noexcept nogil:
    """Add what `count` groups with one N are, by tr M and |M|^2."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, i, j
    for i in range(n_a):
        for j in range(n_a):
            r.tensor[i * n_a + j] = r.tensor[i * n_a + j] + count * N[i] * N[j]
    r.squares = r.squares + trace
    r.fourth = r.fourth + square
    r.joined = r.joined + (count - 1.0) * trace
    r.pairs += count * (count - 1.0)


cdef inline void begin_pattern(Py_ssize_t q, const vecu* rest, Regularity* r) noexcept nogil:
    """What has no columns of its own, packed, as the first part of sum e e'."""
    cdef Py_ssize_t a, b
    for a in range(q):
        for b in range(a + 1):
            r.both[a * q + b] = r.both[b * q + a] = rest[a * (a + 1) // 2 + b]


cdef inline void add_column(Py_ssize_t q, Py_ssize_t k, const vecu* E, const Regularity* r) noexcept nogil:
    """Add e e' of a column, e = E b."""
    cdef Py_ssize_t a, l
    cdef vecu* e = r.half + q * q
    for a in range(q):
        e[a] = own_part(k, E + a * k, r.b)
    for a in range(q):
        for l in range(q):
            r.both[a * q + l] = r.both[a * q + l] + e[a] * e[l]


cdef inline void add_pattern(Py_ssize_t q, const vecu* N, double count, Regularity* r) noexcept nogil:
    """Whiten sum e e' from both sides, and add what the `count` groups of the pattern are."""
    cdef Py_ssize_t side, line, a, l, to_row, to_next
    cdef vec t, trace, square
    for side in range(2):
        to_row = q if side == 0 else 1
        to_next = 1 if side == 0 else q
        for line in range(q):
            for a in range(q):
                t = r.both[a * to_row + line * to_next]
                for l in range(a):
                    t = t - r.half[a * q + l] * r.both[l * to_row + line * to_next]
                r.both[a * to_row + line * to_next] = t * r.half[a * q + a]
    trace = VEC_SET(0.0)
    square = VEC_SET(0.0)
    for a in range(q):
        trace = trace + r.both[a * q + a]
        for l in range(q):
            square = square + r.both[a * q + l] * r.both[a * q + l]
    add_regularity(q, N, trace, square, count, r)


cdef inline void add_groups(Py_ssize_t q, Py_ssize_t k, const vecu* N, const vecu* rest, const vecu* E, Py_ssize_t columns,
                            double count, Regularity* r) noexcept nogil:
    """Add the `count` groups of a pattern; one by itself has no rest."""
    cdef Py_ssize_t c
    cdef vec t = VEC_SET(0.0)
    take_half(q, N, r.half)
    if count > 1.0:
        begin_pattern(q, rest, r)
        for c in range(columns):
            add_column(q, k, E + c * q * k, r)
        add_pattern(q, N, count, r)
    else:
        for c in range(columns):
            t = t + whitened_square(q, k, E + c * q * k, r)
        add_regularity(q, N, t, t * t, count, r)


cdef inline vec expected_at(Py_ssize_t n_a, const vecu* T, const Py_ssize_t* one, const Py_ssize_t* other) noexcept nogil:
    """sum tr(N D N F) for the symmetric unit directions `one` and `other`."""
    cdef Py_ssize_t turn, back, a, b, c, d, at
    cdef vec t
    t = VEC_SET(0.0)
    for turn in range(1 if one[0] == one[1] else 2):
        a = one[turn]
        b = one[1 - turn]
        for back in range(1 if other[0] == other[1] else 2):
            c = other[back]
            d = other[1 - back]
            at = (b * (b + 1) // 2 + c if b >= c else c * (c + 1) // 2 + b) * n_a
            t = t + T[at + (a * (a + 1) // 2 + d if a >= d else d * (d + 1) // 2 + a)]
    return t


# What is told of coefficients within groups.
cdef struct WithinGroups:
    Py_ssize_t count
    Py_ssize_t column[6]    # of X; -1 for more than there is room for
    vec W[36]               # lower triangle by rows of `count`
    vec s[6]


cdef inline bint add_column_within(Py_ssize_t j, vec square, WithinGroups* w) noexcept nogil:
    """Note a column of X that varies within groups; False where there is no room."""
    if not vec_max(<vecu*> &square) > 0.0:
        return True
    if w.count == MOST_WITHIN:
        return False
    w.column[w.count] = j
    w.count += 1
    return True


cdef bint take_within(const Batch* d, Lanes* s, WithinGroups* w) noexcept nogil:
    """What lanes know of rows that Z does not reach; False where there is no room for it."""
    cdef Py_ssize_t p = d.p, a, b, j
    cdef const vecu* own = NULL
    cdef const vecu* b_y = <const vecu*> s.f.gls.b
    cdef vec t
    if s.own != NULL:
        own = <const vecu*> s.own.within
    w.count = 0
    for j in range(p):
        t = VEC_SET(d.within_xx[packed_place(j, j)]) if own == NULL else own[packed_place(j, j)]
        if not add_column_within(j, t, w):
            return False
    for a in range(w.count):
        for b in range(a + 1):
            j = packed_place(w.column[a], w.column[b])
            w.W[a * w.count + b] = VEC_SET(d.within_xx[j]) if own == NULL else own[j]
        t = (<const vecu*> s.within)[w.column[a]] if own == NULL else own[packed_place(p, w.column[a])]
        for b in range(p):
            j = packed_place(w.column[a], b)
            t = t + b_y[b] * (VEC_SET(d.within_xx[j]) if own == NULL else own[j])
        w.s[a] = t
    return True


cdef inline void factor_within(Py_ssize_t r, vecu* W, vecu* pivot, vecu* v) noexcept nogil:
    """W to its lower triangular factor, with the reciprocals of its pivots, 0 where there is none, and v to L^-1 v."""
    cdef Py_ssize_t a, b, l
    cdef vec t
    for a in range(r):
        for b in range(a + 1):
            t = W[a * r + b]
            for l in range(b):
                t = t - W[a * r + l] * W[b * r + l]
            if b == a:
                pivot[a] = VEC_RSQRT_ABOVE(t, W[a * r + a] * 1e-12 + 1e-300)
            W[a * r + b] = t * pivot[b]
        t = v[a]
        for l in range(a):
            t = t - W[a * r + l] * v[l]
        v[a] = t * pivot[a]


cdef void differ_within(const Batch* d, Lanes* s, vec* statistic) noexcept nogil:
    """By how much coefficients within and between groups differ at the point of the last evaluation."""
    cdef Py_ssize_t k = d.p + 1, r, a, b, j, l
    cdef const vecu* inverse = <const vecu*> s.f.gls.inverse
    cdef WithinGroups w
    cdef vec K[36]      # K L
    cdef vec T[36]
    cdef vec pivot[6]
    cdef vec t
    if not take_within(d, s, &w):
        statistic[0] = VEC_SET(INFINITY)
        return
    r = w.count
    factor_within(r, <vecu*> w.W, <vecu*> pivot, <vecu*> w.s)
    # K of these columns, and its product with L
    for a in range(r):
        for b in range(r):
            t = VEC_SET(0.0)
            for j in range(max(w.column[a], w.column[b]), d.p):
                t = t + inverse[j * k + w.column[a]] * inverse[j * k + w.column[b]]
            T[a * r + b] = t
    for a in range(r):
        for b in range(r):
            t = VEC_SET(0.0)
            for l in range(b, r):
                t = t + T[a * r + l] * w.W[l * r + b]
            K[a * r + b] = t
    for a in range(r):
        for b in range(a + 1):
            t = VEC_SET(1.0 + NONE_BETWEEN if a == b else 0.0)
            for l in range(a, r):
                t = t - w.W[l * r + a] * K[l * r + b]
            T[a * r + b] = t
    factor_within(r, <vecu*> T, <vecu*> pivot, <vecu*> w.s)
    t = VEC_SET(0.0)
    for a in range(r):
        t = t + w.s[a] * w.s[a]
    statistic[0] = t * (<vecu*> s.f.gls.nu)[0] / (<vecu*> s.f.gls.r2)[0]


cdef void leave_expected(const Batch* d, Lanes* s, const Regularity* r) noexcept nogil:
    """f.curve loses the part of the expected second derivatives that the observed ones are to exceed."""
    cdef Py_ssize_t q = d.q, n_a = q * (q + 1) // 2, a, b, c, e, i = 0, j
    cdef vecu* curve = <vecu*> s.f.curve
    cdef const vecu* sum_n = <vecu*> s.f.sum_n
    cdef Py_ssize_t one[2]
    cdef Py_ssize_t other[2]
    cdef vec t
    for a in range(q):
        for b in range(a + 1):
            one[0], one[1] = a, b
            j = 0
            for c in range(q):
                for e in range(c + 1):
                    other[0], other[1] = c, e
                    t = sum_n[i] * sum_n[j] / (<vecu*> s.f.gls.nu)[0]
                    t = expected_at(n_a, r.tensor, one, other) - t * ((2.0 - (a == b)) * (2.0 - (c == e)))
                    curve[i * n_a + j] = curve[i * n_a + j] - LIKE_EXPECTED * t
                    j += 1
            i += 1


cdef void judge_regularity(const Batch* d, Lanes* s, const Regularity* r, vec m, vec* regular) noexcept nogil:
    """Positive where a minimum is that of regular data of m groups, all effects of which are correlated; overwrites f.curve."""
    cdef Py_ssize_t n = d.n_par, i
    cdef vecu* zero = <vecu*> s.step
    cdef vecu* small = <vecu*> s.small
    cdef vec worth, fourth, mean, decrement, definite, differ
    differ_within(d, s, &differ)
    leave_expected(d, s, r)
    for i in range(n):
        zero[i] = VEC_SET(0.0)
    newton_step(n, <vecu*> s.f.curve, zero, small, small + n * n, <vecu*> s.f.work, &decrement, &definite)
    mean = r.squares / (m * VEC_SET(<double> d.q))
    fourth = r.fourth - mean * (VEC_SET(2.0) * r.joined - mean * VEC_SET(d.q * r.pairs))
    worth = r.squares * r.squares - WORTH_OF_GROUPS * m * fourth
    worth = VEC_WHERE_POSITIVE(worth, definite, VEC_SET(-1.0))
    regular[0] = VEC_WHERE_POSITIVE(CONFLICT * m - differ, worth, VEC_SET(-1.0))


cdef inline void begin_regularity(Py_ssize_t q, Lanes* s, Regularity* r) noexcept nogil:
    cdef Py_ssize_t n_a = q * (q + 1) // 2, i
    r.tensor = <vecu*> s.f.tensor
    r.half = <vecu*> s.small
    r.both = r.half + q * (q + 1)
    r.b = <vecu*> s.f.gls.b
    r.squares = VEC_SET(0.0)
    r.fourth = VEC_SET(1e-300)
    r.joined = VEC_SET(0.0)
    r.pairs = 0.0
    for i in range(n_a * n_a):
        r.tensor[i] = VEC_SET(0.0)


cdef inline void sum_patterns(Py_ssize_t q, const Batch* d, Lanes* s, Regularity* r) noexcept nogil:
    """The sums of responses on one design, from what their last evaluation keeps."""
    cdef Py_ssize_t k = d.p + 1, n_a = q * (q + 1) // 2, pattern, columns
    cdef const vecu* N = <vecu*> s.store
    cdef const vecu* E = N + d.n_patterns * 2 * n_a
    for pattern in range(d.n_patterns):
        columns = d.columns[pattern + 1] - d.columns[pattern]
        add_groups(q, k, N, N + n_a, E, columns, <double> (d.groups[pattern + 1] - d.groups[pattern]), r)
        E = E + columns * q * k
        N = N + 2 * n_a


cdef void regular_responses(const Batch* d, Lanes* s, vec* regular) noexcept nogil:
    """Positive where the minimum at which responses on one design have been evaluated is that of regular data."""
    cdef Regularity r
    begin_regularity(d.q, s, &r)
    if d.q == 2:
        sum_patterns(2, d, s, &r)
    else:
        sum_patterns(d.q, d, s, &r)
    judge_regularity(d, s, &r, VEC_SET(<double> d.m), regular)


cdef inline void sum_problems(Py_ssize_t q, Py_ssize_t k, Lanes* s, Regularity* r) noexcept nogil:
    """The sums of problems of their own, from what their last evaluation keeps."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, g
    cdef const vecu* N = <vecu*> s.own.store
    for g in range(s.own.m):
        add_groups(q, k, N, NULL, N + n_a, 1, 1.0, r)
        N = N + n_a + q * k


cdef void regular_problems(const Batch* d, const ProblemSums* sums, Lanes* s, vec* regular) noexcept nogil:
    """Positive where the minimum at which problems of their own have been evaluated is that of regular data."""
    cdef Py_ssize_t lane
    cdef Regularity r
    cdef vec m = VEC_SET(1.0)
    for lane in range(LANES):
        (<double*> &m)[lane] = sums[lane].m
    begin_regularity(d.q, s, &r)
    if d.q == 2:
        sum_problems(2, d.p + 1, s, &r)
    else:
        sum_problems(d.q, d.p + 1, s, &r)
    judge_regularity(d, s, &r, m, regular)
