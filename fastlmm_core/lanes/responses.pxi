# Many responses on one design, several at a time: the lanes are responses.
#
# What a response contributes: X_o'y, y'y, and for every column of the patterns c_y; everything else is shared.
# All move in lockstep, each with its own theta, step and radius; a lane that has converged repeats its last
# point, so that no result depends on the neighbours.  Indices are proven by the caller (see one_factor/batch.pyx).

cdef struct Lanes:
    # Work space of one block of responses; all pointers are to vectors.
    Profile f
    double* cy          # (n_columns, q)
    double* rest        # (n_patterns, n_a)
    double* within      # (k,): cross-products of y within groups with X and itself
    double* beta        # (p,) OLS coefficients of the conditioned columns
    double* store       # (n_patterns, 2 n_a) N and B rest B', then (n_columns, n_c) E
    double* theta       # (n_par,)
    double* trial
    double* step
    double* small       # sweeps: 5 q^2 + 2 q k + q; Newton: n_par^2 + 2 n_par; start: see start.pxi
    double* tile        # 64 rows
    double* x_map       # (p_full, p) from conditioned to the caller's coefficients
    double* row         # (p,) a linear function of the conditioned coefficients, and another
    double* other
    double* axes        # (q, q) of each lane, see axes.pxi
    double* plain       # 2 q^2 + 2 q numbers
    double* after       # (n_par,) where a search that has not ended is to go on
    double* natural     # (n_par,) theta in the axes of the caller
    Py_ssize_t place[8]     # response of each lane; beyond the last one in use they repeat it
    Py_ssize_t used         # lanes in use
    double reach            # length of the first step, relative to theta, where that is more than 1
    const OwnGroups* own    # groups of each lane's own design; NULL where all have that of the batch
    void* several           # FactorSpace of several grouping factors, see factors.pxi; NULL where there is one
    # of a screen
    double* line        # (n_columns q + p)
    double* squares     # (n_patterns n_a + 1)
    double* values      # (n_points), up to a multiple of 8
    double* marks       # (n_points)
    double* eight


cdef void lay_lanes(const Batch* d, Lanes* s, Arena* arena) noexcept nogil:
    """Take the work space of a block of responses."""
    cdef Py_ssize_t q = d.q, p = d.p, k = p + 1, n_a = q * (q + 1) // 2, n_c = q * k, n = d.n_par
    cdef Profile* f = &s.f
    f.chain.q = q
    f.chain.n_par = n
    f.chain.row = d.row
    f.chain.col = d.col
    f.gls.k = k
    f.gls.reml = d.reml
    lay_profile(f, arena, LANES)
    s.cy = take(arena, LANES * d.n_columns * q)
    s.rest = take(arena, LANES * d.n_patterns * n_a)
    s.within = take(arena, LANES * k)
    s.beta = take(arena, LANES * p)
    s.store = take(arena, LANES * (d.n_patterns * 2 * n_a + d.n_columns * n_c))
    s.theta = take(arena, LANES * n)
    s.trial = take(arena, LANES * n)
    s.step = take(arena, LANES * n)
    s.small = take(arena, LANES * max(5 * q * q + 2 * n_c + q, n * n + 2 * n,
                                       q * q + 1 + n_a + start_size(q, p)))
    s.tile = take(arena, LANES * 64)
    s.x_map = take(arena, LANES * d.p_full * p)
    s.row = take(arena, LANES * p)
    s.other = take(arena, LANES * p)
    s.axes = take(arena, LANES * q * q)
    s.plain = take(arena, 2 * q * q + 2 * q)
    s.after = take(arena, LANES * n)
    s.natural = take(arena, LANES * n)
    s.reach = 0.0
    s.own = NULL
    s.several = NULL
    if d.screen.n_points > 0:
        s.line = take(arena, LANES * (d.screen.n_columns * q + p))
        s.squares = take(arena, LANES * (d.screen.n_patterns * n_a + 1))
        s.values = take(arena, LANES * (d.screen.n_points + 7))
        s.marks = take(arena, LANES * d.screen.n_points)
        s.eight = take(arena, LANES * 8)


cdef Py_ssize_t batch_size(const Batch* d) noexcept nogil:
    """Doubles of work space that `batch_fit` needs."""
    cdef Lanes s
    cdef Arena arena = Arena(NULL, 0)
    lay_lanes(d, &s, &arena)
    return arena.used


cdef enum:
    TILE_ROWS = 64      # rows of Y that are read side by side


# A pass over a block of rows of Y.
cdef struct Reading:
    const double* row[8]    # the response of each lane
    double shift[8]         # taken from it
    vec first               # its first value, shifted
    vec spread              # sum of distances from that, where a constant response has to be seen
    vec total               # y'y
    bint watch
    Py_ssize_t filled, used     # rows in the tile


cdef inline Py_ssize_t fill_tile(const Batch* d, const Reading* r, double* tile, Py_ssize_t i) noexcept nogil:
    """The rows of all lanes from position i on, response by response to lane by lane; their number."""
    cdef Py_ssize_t j = 0, lane, at, filled = d.n - i if d.n - i < TILE_ROWS else TILE_ROWS
    if d.order == NULL:
        while j + LANES <= filled:
            vec_transpose(r.row, i + j, r.shift, tile + j * LANES)
            j += LANES
    while j < filled:
        at = i + j if d.order == NULL else d.order[i + j]
        for lane in range(LANES):
            tile[j * LANES + lane] = r.row[lane][at] - r.shift[lane]
        j += 1
    return filled


cdef inline void sum_group(const Batch* d, Lanes* s, Reading* r, Py_ssize_t g, vecu* acc) noexcept nogil:
    """acc (q,) = R^-T Z'y of a group; its rows are added to beta (X'y), total and spread."""
    cdef Py_ssize_t q = d.q, p = d.p, i, a, j, used = r.used, filled = r.filled
    cdef vecu* beta = <vecu*> s.beta
    cdef vecu* tile = <vecu*> s.tile
    cdef bint watch = r.watch
    cdef vec v, total, spread
    # what changes row by row is kept out of memory
    total = r.total
    spread = r.spread
    for a in range(q):
        acc[a] = VEC_SET(0.0)
    for i in range(d.start[g], d.start[g + 1]):
        if used == filled:
            filled = fill_tile(d, r, s.tile, i)
            used = 0
        v = tile[used]
        used += 1
        if watch:
            spread = spread + VEC_ABS(v - r.first)
        if d.offset != NULL:
            v = v - d.offset[i]
        for a in range(q):
            acc[a] = acc[a] + d.basis[i * q + a] * v
        if d.x != NULL:
            for j in range(p):
                beta[j] = beta[j] + d.x[i * p + j] * v
        if d.weights != NULL:
            total = total + d.weights[i] * v * v
        else:
            total = total + v * v
    r.used = used
    r.filled = filled
    r.total = total
    r.spread = spread


cdef inline void file_group(const Batch* d, Lanes* s, Py_ssize_t pattern, Py_ssize_t g, const vecu* acc) noexcept nogil:
    """The sums of a group to the columns and the rest of its pattern."""
    cdef Py_ssize_t q = d.q, begin = d.columns[pattern], a, b, c, pos = pattern * (q * (q + 1) // 2)
    cdef vecu* cy = (<vecu*> s.cy) + begin * q
    cdef vecu* rest = <vecu*> s.rest
    if d.groups[pattern + 1] - d.groups[pattern] == 1:
        for a in range(q):
            cy[a] = acc[a]
        return
    for a in range(q):
        for b in range(a + 1):
            rest[pos] = rest[pos] + acc[a] * acc[b]
            pos = pos + 1
    for c in range(d.columns[pattern + 1] - begin):
        for a in range(q):
            cy[c * q + a] = cy[c * q + a] + d.loading[g * d.loading_width + c] * acc[a]


cdef void leave_residuals(const Batch* d, Lanes* s) noexcept nogil:
    """y is replaced by its OLS residual (the rest has c_x = 0); the rest loses what its columns carry."""
    cdef Py_ssize_t q = d.q, p = d.p, n_a = q * (q + 1) // 2, pattern, c, a, b, j, pos
    cdef vecu* cy = <vecu*> s.cy
    cdef vecu* rest = <vecu*> s.rest
    cdef vecu* beta = <vecu*> s.beta
    cdef vecu* within = <vecu*> s.within
    cdef vec t
    cdef bint whole
    for j in range(p):
        within[j] = VEC_SET(0.0)
    for pattern in range(d.n_patterns):
        whole = d.groups[pattern + 1] - d.groups[pattern] == 1
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            pos = pattern * n_a
            for a in range(q if not whole else 0):
                for b in range(a + 1):
                    rest[pos] = rest[pos] - cy[c * q + a] * cy[c * q + b]
                    pos = pos + 1
            for a in range(q):
                t = cy[c * q + a]
                for j in range(p):
                    t = t - d.cx[(c * q + a) * p + j] * beta[j]
                cy[c * q + a] = t
                within[p] = within[p] - t * t
                for j in range(p):
                    if d.exact[j] == 0:
                        within[j] = within[j] - d.cx[(c * q + a) * p + j] * t
        pos = pattern * n_a
        for a in range(q):
            within[p] = within[p] - rest[pos + a]
            pos = pos + a + 1


cdef void read_responses(const Batch* d, Lanes* s, const double* Y, Py_ssize_t stride, vec* residual) noexcept nogil:
    """One pass over a block of rows of Y: c_y, rest, X_o'y; residual = y'y less what X_o explains."""
    cdef Py_ssize_t q = d.q, p = d.p, g, a, j, lane, pattern = 0, c, pos
    cdef vecu* cy = <vecu*> s.cy
    cdef vecu* rest = <vecu*> s.rest
    cdef vecu* acc = <vecu*> s.small
    cdef vecu* beta = <vecu*> s.beta
    cdef Reading r
    # a constant response is refused even where X cannot reproduce it
    r.watch = d.offset != NULL or not d.centre
    r.filled = 0
    r.used = 0
    r.total = VEC_SET(0.0)
    r.spread = VEC_SET(0.0)
    r.first = VEC_SET(0.0)
    for pos in range(d.n_columns * q):
        cy[pos] = VEC_SET(0.0)
    for pos in range(d.n_patterns * (q * (q + 1) // 2)):
        rest[pos] = VEC_SET(0.0)
    for j in range(p):
        beta[j] = VEC_SET(0.0)
    for lane in range(LANES):
        r.row[lane] = Y + s.place[lane] * stride
        r.shift[lane] = r.row[lane][0] if d.centre else 0.0
        (<double*> &r.first)[lane] = r.row[lane][0] - r.shift[lane]
    for g in range(d.m):
        while g >= d.groups[pattern + 1]:
            pattern += 1
        sum_group(d, s, &r, g, acc)
        file_group(d, s, pattern, g, acc)
    if d.x == NULL:
        for c in range(d.n_columns):
            for a in range(q):
                for j in range(p):
                    beta[j] = beta[j] + d.cx[(c * q + a) * p + j] * cy[c * q + a]
    for j in range(p):
        r.total = r.total - beta[j] * beta[j]
    (<vecu*> s.within)[p] = r.total
    leave_residuals(d, s)
    if r.watch:
        r.total = VEC_WHERE_POSITIVE(r.spread, r.total, r.total * 0.0)
    residual[0] = r.total


cdef void rescale_responses(const Batch* d, Lanes* s, vec* size) noexcept nogil:
    """Divide y by size, lane by lane."""
    cdef Py_ssize_t pos, n_a = d.q * (d.q + 1) // 2
    cdef vec inverse = VEC_SET(1.0) / size[0]
    for pos in range(d.n_columns * d.q):
        (<vecu*> s.cy)[pos] = (<vecu*> s.cy)[pos] * inverse
    for pos in range(d.n_patterns * n_a):
        (<vecu*> s.rest)[pos] = (<vecu*> s.rest)[pos] * inverse * inverse
    for pos in range(d.p):
        (<vecu*> s.within)[pos] = (<vecu*> s.within)[pos] * inverse
    (<vecu*> s.within)[d.p] = (<vecu*> s.within)[d.p] * inverse * inverse


# Work space of the sweeps, in `small`.
cdef struct PatternSpace:
    vecu* U         # (q, q) R L, later free
    vecu* W         # (q, q) see `eliminate`
    vecu* Y         # (q, q) M^-1 R
    vecu* inverse   # (q, q) M^-1
    vecu* half      # (q, q)
    vecu* D         # (q, k)
    vecu* roots     # (q,) 1 / M_aa


cdef inline vec whiten_pattern(Py_ssize_t q, const double* R, const vecu* factor, bint with_rest, const PatternSpace* w
                               ) noexcept nogil:
    """W = I + U U' = M M', U = R L; Y = M^-1 R and, for a rest, M^-1; the determinants |W|."""
    cdef Py_ssize_t a, b, l, pos = 0
    cdef vec t
    for a in range(q):
        for b in range(q):
            t = VEC_SET(0.0)
            for l in range(a, q):
                t = t + R[pos + l - a] * factor[l * q + b]
            w.U[a * q + b] = t
            w.Y[a * q + b] = VEC_SET(R[pos + b - a] if b >= a else 0.0)
            if with_rest:
                w.inverse[a * q + b] = VEC_SET(1.0 if a == b else 0.0)
        pos = pos + q - a
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(1.0 if a == b else 0.0)
            for l in range(q):
                t = t + w.U[a * q + l] * w.U[b * q + l]
            w.W[a * q + b] = t
    return eliminate(q, w.W, q, w.Y, q if with_rest else 0, w.inverse, w.roots)


cdef inline void sweep_rest(Py_ssize_t q, Py_ssize_t k, const vecu* rest, const PatternSpace* w, vecu* H_yy, vecu* gram,
                            vecu* out) noexcept nogil:
    """H_yy += tr(M^-1 rest M^-T); out = B rest B', B = Y'M^-1, which is added to the y part of gram."""
    cdef Py_ssize_t p = k - 1, a, b, l, pos = 0
    cdef vecu* half = w.half
    cdef vecu* T = w.U
    cdef vec t
    for a in range(q):
        for b in range(q):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + w.inverse[a * q + l] * rest[l * (l + 1) // 2 + b if l >= b else b * (b + 1) // 2 + l]
            half[a * q + b] = t
    t = H_yy[0]
    for a in range(q):
        for b in range(q):
            t = t + half[a * q + b] * w.inverse[a * q + b]
    H_yy[0] = t
    for a in range(q):
        for b in range(q):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + half[a * q + l] * w.inverse[b * q + l]
            T[a * q + b] = t
    set_product(q, q, w.Y, T, half)
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + half[a * q + l] * w.Y[l * q + b]
            out[pos] = t
            l = a * k + p
            gram[l * (l + 1) // 2 + b * k + p] = gram[l * (l + 1) // 2 + b * k + p] + t
            pos = pos + 1


cdef inline void sweep_column(Py_ssize_t q, Py_ssize_t p, const double* cx, const vecu* cy, const PatternSpace* w,
                              vecu* H, vecu* E) noexcept nogil:
    """D = M^-1 (c_x, c_y) of a column of a pattern; E = Y'D, and D'D to the sum."""
    cdef Py_ssize_t k = p + 1, a, j, l
    cdef vec t
    for a in range(q):
        for j in range(k):
            t = VEC_SET(cx[a * p + j]) if j < p else cy[a]
            for l in range(a):
                t = t - w.W[a * q + l] * w.D[l * k + j]
            w.D[a * k + j] = t * w.roots[a]
    add_crossed(q, k, w.D, H)
    set_product(q, k, w.Y, w.D, E)


cdef inline void sweep_patterns(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s) noexcept nogil:
    """First sweep: logdet, sum_n, H and gram at f.factor; keeps N, B rest B' and E for the second."""
    cdef Py_ssize_t k = p + 1, n_a = q * (q + 1) // 2, n_c = q * k, n_h = k * (k + 1) // 2, pattern, c, j, pos
    cdef vecu* sum_n = <vecu*> s.f.sum_n
    cdef vecu* H = <vecu*> s.f.gls.H
    cdef vecu* gram = <vecu*> s.f.gram
    cdef vecu* N = <vecu*> s.store
    cdef vecu* E = N + d.n_patterns * 2 * n_a
    cdef PatternSpace w
    cdef vec det, product, exponent, logdet
    cdef double count
    w.U = <vecu*> s.small
    w.W = w.U + q * q
    w.Y = w.W + q * q
    w.inverse = w.Y + q * q
    w.half = w.inverse + q * q
    w.D = w.half + q * q
    w.roots = w.D + n_c
    product = VEC_SET(1.0)
    exponent = VEC_SET(0.0)
    logdet = VEC_SET(0.0)
    for pos in range(n_h - k):
        H[pos] = VEC_SET(d.within_xx[pos])
    for j in range(k):
        H[n_h - k + j] = (<vecu*> s.within)[j]
    for pos in range(n_a):
        sum_n[pos] = VEC_SET(0.0)
    for pos in range(n_c * (n_c + 1) // 2):
        gram[pos] = VEC_SET(0.0)
    for pattern in range(d.n_patterns):
        count = <double> (d.groups[pattern + 1] - d.groups[pattern])
        det = whiten_pattern(q, d.R + pattern * n_a, <vecu*> s.f.factor, count > 1.0, &w)
        if count > 1.0:
            logdet = logdet + count * VEC_LOG(det)
        else:
            # exponents are set aside lane by lane: no sum depends on the neighbours
            product = product * det
            VEC_SPLIT(product, exponent)
        set_crossed(q, w.Y, N)
        for pos in range(n_a):
            sum_n[pos] = sum_n[pos] + count * N[pos]
        if count > 1.0:
            sweep_rest(q, k, (<vecu*> s.rest) + pattern * n_a, &w, H + n_h - 1, gram, N + n_a)
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            sweep_column(q, p, d.cx + c * q * p, (<vecu*> s.cy) + c * q, &w, H, E)
            E = E + n_c
        N = N + 2 * n_a
    add_outers(n_c, d.n_columns, n_c, N, gram)
    (<vecu*> s.f.gls.logdet)[0] = logdet + VEC_LOG(product) + exponent * M_LN2


cdef inline void sweep_curvature(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s) noexcept nogil:
    """Second sweep: tensor = sum B_i (x) N_i."""
    cdef Py_ssize_t k = p + 1, n_a = q * (q + 1) // 2, n_c = q * k, first = 0 if d.reml else p
    cdef Py_ssize_t pattern, a, c, j, l, pos
    cdef vecu* tensor = <vecu*> s.f.tensor
    cdef vecu* weight = <vecu*> s.f.gls.weight
    cdef vecu* F = <vecu*> s.small
    cdef vecu* B = F + n_c
    cdef vecu* N = <vecu*> s.store
    cdef vecu* E = N + d.n_patterns * 2 * n_a
    cdef vec t, square
    cdef double count
    square = weight[p * k + p] * weight[p * k + p]
    for pos in range(n_a * n_a):
        tensor[pos] = VEC_SET(0.0)
    for pattern in range(d.n_patterns):
        count = <double> (d.groups[pattern + 1] - d.groups[pattern])
        for pos in range(n_a):
            B[pos] = VEC_SET(0.0) - count * N[pos]
            if count > 1.0:
                B[pos] = B[pos] + square * N[n_a + pos]
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            for a in range(q):
                for j in range(first, k):
                    t = VEC_SET(0.0)
                    for l in range(j + 1):
                        t = t + E[a * k + l] * weight[l * k + j]
                    F[a * k + j] = t
            add_forms(q, k, first, F, B)
            E = E + n_c
        add_tensor(n_a, B, N, tensor)
        N = N + 2 * n_a


cdef void evaluate_responses(const Batch* d, Lanes* s, int order) noexcept nogil:
    """The criterion of a block of responses at f.factor with its derivatives (order 1 or 2)."""
    if s.own != NULL:
        evaluate_problems(d, s, order)
        return
    if s.several != NULL:
        evaluate_factors(d, s, order)
        return
    # constant sizes let the compiler unroll the shapes that nearly everyone uses
    if d.q == 1 and d.p == 1:
        sweep_patterns(1, 1, d, s)
    elif d.q == 1 and d.p == 2:
        sweep_patterns(1, 2, d, s)
    elif d.q == 2 and d.p == 2:
        sweep_patterns(2, 2, d, s)
    elif d.q == 2 and d.p == 4:
        sweep_patterns(2, 4, d, s)
    elif d.q == 2:
        sweep_patterns(2, d.p, d, s)
    elif d.q == 3:
        sweep_patterns(3, d.p, d, s)
    else:
        sweep_patterns(d.q, d.p, d, s)
    profile_value(&s.f, 1)
    if order < 2:
        return
    if d.q == 2 and d.p == 2:
        sweep_curvature(2, 2, d, s)
    elif d.q == 2:
        sweep_curvature(2, d.p, d, s)
    else:
        sweep_curvature(d.q, d.p, d, s)
    profile_second(&s.f, 2)


cdef void newton_step(Py_ssize_t n, const vecu* hess, const vecu* grad, vecu* L, vecu* d, vecu* step, vec* decrement,
                      vec* definite) noexcept nogil:
    """step = -H^-1 g by a modified L D L'; pivots that are not positive are replaced by their size.

    decrement: sqrt(g'H^-1 g); definite: positive where no pivot was modified.  Overwrites L (n, n) and d (2 n,).
    """
    cdef Py_ssize_t i, j, l
    cdef vecu* z = d + n
    cdef vec t, largest, floor, total, one
    one = VEC_SET(1.0)
    largest = VEC_SET(0.0)
    definite[0] = one
    total = VEC_SET(0.0)
    for i in range(n):
        t = VEC_ABS(hess[i * n + i])
        largest = VEC_WHERE_POSITIVE(t - largest, t, largest)
    floor = 1e-9 * largest + 1e-300
    for j in range(n):
        t = hess[j * n + j]
        for l in range(j):
            t = t - L[j * n + l] * L[j * n + l] * d[l]
        definite[0] = VEC_WHERE_POSITIVE(t - floor, definite[0], VEC_SET(-1.0))
        t = VEC_ABS(t)
        t = VEC_WHERE_POSITIVE(t - floor, t, floor)
        d[j] = t
        for i in range(j + 1, n):
            t = hess[i * n + j]
            for l in range(j):
                t = t - L[i * n + l] * L[j * n + l] * d[l]
            L[i * n + j] = t / d[j]
        t = grad[j]
        for l in range(j):
            t = t - L[j * n + l] * z[l]
        z[j] = t
        total = total + t * t / d[j]
    for i in range(n - 1, -1, -1):
        t = VEC_SET(0.0) - z[i] / d[i]
        for l in range(i + 1, n):
            t = t - L[l * n + i] * step[l]
        step[i] = t
    decrement[0] = VEC_SQRT(total)


cdef void set_factor(const Batch* d, Lanes* s, const vecu* theta) noexcept nogil:
    cdef Py_ssize_t i, a
    cdef vecu* F = <vecu*> s.f.factor
    cdef vecu* B = <vecu*> s.f.chain.axes
    for i in range(d.q * d.q):
        F[i] = VEC_SET(0.0)
    for i in range(d.n_par):
        if B == NULL:
            F[d.row[i] * d.q + d.col[i]] = theta[i]
            continue
        for a in range(d.q):
            F[a * d.q + d.col[i]] = F[a * d.q + d.col[i]] + B[a * d.q + d.row[i]] * theta[i]


cdef void minimize_lanes(const Batch* d, Lanes* s, Py_ssize_t limit, vec* finished, vec* decrement_out, int* evaluations
                         ) noexcept nogil:
    """Newton in lockstep from s.theta, up to `limit` times; leaves the evaluation at s.theta in s.f where it has ended."""
    cdef Py_ssize_t n = d.n_par, i, iteration, lane
    cdef vecu* theta = <vecu*> s.theta
    cdef vecu* trial = <vecu*> s.trial
    cdef vecu* step = <vecu*> s.step
    cdef vecu* L = <vecu*> s.small
    cdef vecu* fresh = <vecu*> s.f.work
    cdef vec value, radius, done, accept, decrement, definite, old, norm, t, f_value, one, shrink, near, settled
    cdef double* mask = <double*> &done
    one = VEC_SET(1.0)
    value = VEC_SET(1e300) * 1e300
    radius = one
    if s.reach > 0.0:
        norm = VEC_SET(0.0)
        for i in range(n):
            norm = norm + theta[i] * theta[i]
        norm = s.reach * VEC_SQRT(norm)
        radius = VEC_WHERE_POSITIVE(norm - one, norm, one)
    done = VEC_SET(-1.0)
    old = VEC_SET(1e300)
    for i in range(n):
        trial[i] = theta[i]
        step[i] = VEC_SET(0.0)
    for iteration in range(limit):
        set_factor(d, s, trial)
        evaluate_responses(d, s, 2)
        f_value = (<vecu*> s.f.gls.value)[0]
        newton_step(n, <vecu*> s.f.hess, <vecu*> s.f.grad, L, L + n * n, fresh, &decrement, &definite)
        # accept what does not raise the criterion beyond rounding; the first point if it is finite
        t = value + 10.0 * (<vecu*> s.f.gls.noise)[0] - f_value
        accept = VEC_WHERE_POSITIVE(t, one, VEC_SET(-1.0))
        accept = VEC_WHERE_POSITIVE(done, VEC_SET(-1.0), accept)
        near = VEC_WHERE_POSITIVE(VEC_SET(d.tolerance) - decrement, one, VEC_SET(-1.0))
        # below 1e-5 a decrement that no longer falls has met the rounding error of the gradient
        settled = VEC_WHERE_POSITIVE(VEC_SET(1e-5) - decrement, one, VEC_SET(-1.0))
        settled = VEC_WHERE_POSITIVE(decrement - 0.5 * old, settled, VEC_SET(-1.0))
        near = VEC_WHERE_POSITIVE(settled, one, near)
        near = VEC_WHERE_POSITIVE(definite, near, VEC_SET(-1.0))
        near = VEC_WHERE_POSITIVE(accept, near, VEC_SET(-1.0))
        t = VEC_WHERE_POSITIVE(definite, VEC_SET(-1.0), accept)
        if vec_max(<vecu*> &t) > 0.0:
            raise_columns(d, s, trial, t, fresh, &decrement)
        norm = VEC_SET(0.0)
        for i in range(n):
            theta[i] = VEC_WHERE_POSITIVE(accept, trial[i], theta[i])
            norm = norm + fresh[i] * fresh[i]
        norm = VEC_SQRT(norm)
        value = VEC_WHERE_POSITIVE(accept, f_value, value)
        old = VEC_WHERE_POSITIVE(accept, decrement, old)
        t = radius / (norm + 1e-300)
        shrink = VEC_WHERE_POSITIVE(t - one, one, t)
        for i in range(n):
            step[i] = VEC_WHERE_POSITIVE(accept, fresh[i] * shrink, 0.25 * step[i])
        # after a rejected step the next radius is a quarter of it; after an accepted one it may grow
        radius = VEC_WHERE_POSITIVE(accept, 2.0 * radius, 0.25 * radius)
        for lane in range(LANES):
            if (<double*> &done)[lane] < 0.0:
                evaluations[lane] += 1
        done = VEC_WHERE_POSITIVE(near, one, done)
        for i in range(n):
            trial[i] = VEC_WHERE_POSITIVE(done, theta[i], theta[i] + step[i])
        if iteration < SNAPPED_BEFORE:
            drop_columns(d, s, theta, trial, step, VEC_WHERE_POSITIVE(done, VEC_SET(-1.0), accept))
        i = 0
        for lane in range(LANES):
            if mask[lane] > 0.0:
                i += 1
        if i == LANES:
            break
    finished[0] = done
    decrement_out[0] = old


cdef void along_theta(const Batch* d, Lanes* s, const vecu* c, const vecu* other, vecu* out) noexcept nogil:
    """out = derivative of c_x'H_xx^-1 other_x in theta, up to H_xx^-1 at both ends: sum over D of (c'J_D other) jac_D."""
    cdef Py_ssize_t q = d.q, p = d.p, k = p + 1, n = d.n_par, alpha = 0, a, b, i, j, l, r
    cdef vecu* gram = <vecu*> s.f.gram
    cdef vecu* jac = <vecu*> s.f.jac
    cdef vec t, u
    for l in range(n):
        out[l] = VEC_SET(0.0)
    for a in range(q):
        for b in range(a + 1):
            u = VEC_SET(0.0)
            for i in range(p):
                t = VEC_SET(0.0)
                l = a * k + i
                for j in range(p):
                    r = b * k + j
                    t = t + other[j] * (gram[l * (l + 1) // 2 + r] if l >= r else gram[r * (r + 1) // 2 + l])
                u = u + c[i] * t
                if a != b:
                    t = VEC_SET(0.0)
                    r = b * k + i
                    for j in range(p):
                        l = a * k + j
                        t = t + other[j] * gram[l * (l + 1) // 2 + r]
                    u = u + c[i] * t
            for l in range(n):
                out[l] = out[l] + u * jac[alpha * n + l]
            alpha += 1


cdef void contrast_of(const Batch* d, Lanes* s, const vecu* row, vecu* c, vec* variance) noexcept nogil:
    """c = H_xx^-1 row' by way of a = L_xx^-1 row', and variance = a'a; c has room for 2 p vectors."""
    cdef Py_ssize_t p = d.p, k = p + 1, i, j
    cdef vecu* inverse = <vecu*> s.f.gls.inverse
    cdef vecu* a = c + p
    cdef vec t, total
    total = VEC_SET(0.0)
    for i in range(p):
        t = VEC_SET(0.0)
        for j in range(i + 1):
            t = t + inverse[i * k + j] * row[j]
        a[i] = t
        total = total + t * t
    for j in range(p):
        t = VEC_SET(0.0)
        for i in range(j, p):
            t = t + inverse[i * k + j] * a[i]
        c[j] = t
    variance[0] = total


cdef void shift_of(const Batch* d, Lanes* s, vecu* out) noexcept nogil:
    """-(1 / r^2) d r^2 / d theta."""
    cdef Py_ssize_t n = d.n_par, k = d.p + 1, n_a = d.q * (d.q + 1) // 2, alpha, l
    cdef vecu* jac = <vecu*> s.f.jac
    cdef vecu* vectors = <vecu*> s.f.vectors
    cdef vec t, inverse
    inverse = VEC_SET(1.0) / (<vecu*> s.f.gls.r2)[0]
    for l in range(n):
        t = VEC_SET(0.0)
        for alpha in range(n_a):
            t = t + vectors[alpha * k + k - 1] * jac[alpha * n + l]
        out[l] = t * inverse


cdef void degrees_of_freedom(const Batch* d, Lanes* s, const vecu* row, vec* df) noexcept nogil:
    """Satterthwaite's degrees of freedom of row'beta: 1 / (1 / nu + u'H^-1u), u = d log var(row'beta) / d theta.

    The scale of V is profiled out.  At the boundary u vanishes for the elements of theta that are zero with their
    column, so that these are left out; M, work and `small` are overwritten.
    """
    cdef Py_ssize_t n = d.n_par, l
    cdef vecu* c = <vecu*> s.f.M
    cdef vecu* u = <vecu*> s.step
    cdef vecu* shift = <vecu*> s.f.work
    cdef vecu* small = <vecu*> s.small
    cdef vec variance, decrement, definite
    contrast_of(d, s, row, c, &variance)
    along_theta(d, s, c, c, u)
    shift_of(d, s, shift)
    for l in range(n):
        u[l] = u[l] / variance - shift[l]
    newton_step(n, <vecu*> s.f.hess, u, small, small + n * n, shift, &decrement, &definite)
    df[0] = VEC_SET(1.0) / (decrement * decrement + VEC_SET(1.0) / (<vecu*> s.f.gls.nu)[0])


cdef void row_of(const Batch* d, Lanes* s, const Outcome* out, Py_ssize_t i, vecu* row) noexcept nogil:
    """A row of the linear functions wanted, in the coordinates of the conditioned columns of each lane."""
    cdef Py_ssize_t p = d.p, j, l
    cdef vec t
    for j in range(p):
        if s.own == NULL:
            row[j] = VEC_SET(out.rows[i * p + j])
            continue
        t = VEC_SET(0.0)
        for l in range(d.p_full):
            t = t + (<vecu*> s.x_map)[l * p + j] * out.rows[i * d.p_full + l]
        row[j] = t


cdef void write_contrasts(const Batch* d, Lanes* s, const Outcome* out, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """K, its slope, the shift and the Hessian at theta, for the lanes of one block."""
    cdef Py_ssize_t n = d.n_par, p = d.p, k = p + 1, m = out.m, i, j, l, lane
    cdef vecu* c = <vecu*> s.f.M
    cdef vecu* other = <vecu*> s.f.gls.chol
    cdef vecu* slope = <vecu*> s.step
    cdef vecu* row = <vecu*> s.other
    cdef vec variance, t
    for i in range(m):
        row_of(d, s, out, i, <vecu*> s.row)
        contrast_of(d, s, <vecu*> s.row, c, &variance)
        for j in range(i + 1):
            row_of(d, s, out, j, row)
            contrast_of(d, s, row, other, &variance)
            t = VEC_SET(0.0)
            for l in range(p):
                t = t + c[l] * row[l]
            along_theta(d, s, c, other, slope)
            for lane in range(count):
                out.covariance[((first + s.place[lane]) * m + i) * m + j] = (<double*> &t)[lane]
                out.covariance[((first + s.place[lane]) * m + j) * m + i] = (<double*> &t)[lane]
                for l in range(n):
                    out.slope[(((first + s.place[lane]) * n + l) * m + i) * m + j] = (<double*> (slope + l))[lane]
                    out.slope[(((first + s.place[lane]) * n + l) * m + j) * m + i] = (<double*> (slope + l))[lane]
    shift_of(d, s, slope)
    for lane in range(count):
        for l in range(n):
            out.shift[(first + s.place[lane]) * n + l] = (<double*> (slope + l))[lane]
        for l in range(n * n):
            out.hess[(first + s.place[lane]) * n * n + l] = s.f.hess[l * LANES + lane]


cdef enum:
    GOES_ON = -8        # status of a search that has not ended
    ROUNDS = 3          # of all responses, of those that go on, and again
    ROUND_LENGTH = 7    # iterations of a round but the last

# What has become of the responses of a block.
cdef struct Fates:
    int status[8]           # see Outcome
    int evaluations[8]
    vec total               # y'y less what X_o explains
    vec size                # by which y was divided
    vec finished            # positive where the search has ended
    vec decrement


cdef void set_aside(const Batch* d, Lanes* s, Fates* f) noexcept nogil:
    """Find the responses that are not finite or do not vary, and put neutral numbers in their lanes."""
    cdef Py_ssize_t q = d.q, p = d.p, lane, i
    for lane in range(LANES):
        f.evaluations[lane] = 0
        f.status[lane] = 0
        if not isfinite((<double*> &f.total)[lane]):
            f.status[lane] = -1
        elif not (<double*> &f.total)[lane] > 0.0:
            f.status[lane] = -2
        if f.status[lane] == 0:
            continue
        (<double*> &f.total)[lane] = d.n
        for i in range(d.n_columns * q):
            s.cy[i * LANES + lane] = 0.0
        for i in range(d.n_patterns * (q * (q + 1) // 2)):
            s.rest[i * LANES + lane] = 0.0
        for i in range(p):
            s.within[i * LANES + lane] = 0.0
        s.within[p * LANES + lane] = d.n


cdef vec snap(const Batch* d, Lanes* s) noexcept nogil:
    """trial = theta with the columns of L by sign and negligible ones at zero; positive where something went to zero."""
    cdef Py_ssize_t n = d.n_par, i, j, at
    cdef vecu* theta = <vecu*> s.theta
    cdef vecu* trial = <vecu*> s.trial
    cdef vec zero, one, minus, sign, negligible, changed
    cdef double limit = VANISHED / sqrt(d.per_group)
    zero = VEC_SET(0.0)
    one = VEC_SET(1.0)
    minus = VEC_SET(-1.0)
    changed = minus
    for i in range(n):
        trial[i] = theta[i]
    for i in range(n):
        if d.row[i] == d.col[i]:
            sign = VEC_WHERE_POSITIVE(zero - theta[i], minus, one)
            negligible = VEC_WHERE_POSITIVE(VEC_SET(limit) - VEC_ABS(theta[i]), one, minus)
            changed = VEC_WHERE_POSITIVE(negligible, one, changed)
            for j in range(n):
                if d.col[j] == d.col[i]:
                    trial[j] = trial[j] * sign
            trial[i] = VEC_WHERE_POSITIVE(negligible, zero, trial[i])
    for i in range(n):
        # a column without its diagonal is left to the single-fit path unless it vanishes altogether
        if d.row[i] != d.col[i]:
            at = 0
            for j in range(n):
                if d.row[j] == d.col[i] and d.col[j] == d.col[i]:
                    at = j
            negligible = VEC_WHERE_POSITIVE(VEC_SET(limit) - VEC_ABS(trial[i]), zero, trial[i])
            trial[i] = VEC_WHERE_POSITIVE(trial[at], trial[i], negligible)
    return changed


cdef void judge_snapped(const Batch* d, Lanes* s, Fates* f, vec changed) noexcept nogil:
    """Evaluate at `trial`; where that raises the criterion, or its Hessian is not definite, the search has not ended."""
    cdef Py_ssize_t n = d.n_par, lane
    cdef vecu* small = <vecu*> s.small
    cdef vec value, decrement, definite
    cdef double before
    value = (<vecu*> s.f.gls.value)[0]
    set_factor(d, s, <vecu*> s.trial)
    evaluate_responses(d, s, 2)
    newton_step(n, <vecu*> s.f.hess, <vecu*> s.f.grad, small, small + n * n, <vecu*> s.f.work, &decrement, &definite)
    # a lane that was not snapped repeats its point up to signs
    for lane in range(LANES):
        if (<double*> &changed)[lane] > 0.0:
            before = (<double*> &value)[lane]
            (<double*> &f.decrement)[lane] = (<double*> &decrement)[lane]
            f.evaluations[lane] += 1
            if not (s.f.gls.value[lane] <= before + 1e-11 * (before if before > 0.0 else -before) + 1e-11 * d.n
                    and (<double*> &definite)[lane] > 0.0):
                (<double*> &f.finished)[lane] = -1.0


cdef int status_of(const Batch* d, Lanes* s, Py_ssize_t lane) noexcept nogil:
    """Status of a search that has ended: 1, 2 at the boundary, 0 where it does not show every direction."""
    cdef Py_ssize_t i, j
    cdef int status = 1
    for i in range(d.n_par):
        if d.row[i] == d.col[i] and s.trial[i * LANES + lane] == 0.0:
            status = 2
            # Where the diagonal is zero but its column is not, the triangular form does not show every direction in
            # which G may grow; a zero column shows all of them that are not in its range.
            for j in range(d.n_par):
                if d.col[j] == d.col[i] and s.trial[j * LANES + lane] != 0.0:
                    status = 0
    # nearly all variation between groups: the sums have lost digits
    if s.f.gls.r2[lane] < 1e-6 * d.n:
        status = 0
    return status


cdef void write_searches(const Batch* d, Lanes* s, Fates* f, const Outcome* out, Py_ssize_t first, Py_ssize_t count
                         ) noexcept nogil:
    """Status, theta, variance and criterion of a block."""
    cdef Py_ssize_t lane, where, i
    for lane in range(count):
        where = first + s.place[lane]
        if f.status[lane] == 0 and (<double*> &f.finished)[lane] > 0.0 and (<double*> &f.decrement)[lane] <= 1e-4:
            f.status[lane] = status_of(d, s, lane)
        out.status[where] = f.status[lane]
        out.evaluations[where] = f.evaluations[lane]
        out.decrement[where] = (<double*> &f.decrement)[lane]
        for i in range(d.n_par):
            out.theta[where * d.n_par + i] = s.natural[i * LANES + lane]
        out.value[where] = s.f.gls.value[lane]
        if s.own != NULL:
            out.value[where] += s.own.offset[lane]
        else:
            out.value[where] += d.nu * log((<double*> &f.total)[lane] / d.n) + d.criterion_offset


cdef void write_coefficients(const Batch* d, Lanes* s, Fates* f, const Outcome* out, const double* shift,
                             Py_ssize_t stride, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """Variance, coefficients and standard errors of a block.

    shift: what was taken from each response (own designs: coefficients taken out of it), lanes `stride` apart.
    """
    cdef Py_ssize_t p = d.p, k = p + 1, i, j, l, lane, at
    cdef vecu* inverse = <vecu*> s.f.gls.inverse
    cdef vecu* x_map = <vecu*> s.x_map
    cdef vec sigma2, value, error, t
    sigma2 = (<vecu*> s.f.gls.r2)[0] * f.size * f.size * (VEC_SET(1.0) / (<vecu*> s.f.gls.nu)[0])
    for lane in range(count):
        out.sigma2[first + s.place[lane]] = (<double*> &sigma2)[lane]
    for i in range(d.p_full):
        value = VEC_SET(0.0)
        for j in range(p):
            value = value + x_map[i * p + j] * ((<vecu*> s.beta)[j] - f.size * (<vecu*> s.f.gls.b)[j])
        error = VEC_SET(0.0)
        for j in range(p):
            t = VEC_SET(0.0)
            for l in range(j + 1):
                t = t + inverse[j * k + l] * x_map[i * p + l]
            error = error + t * t
        error = VEC_SQRT(error * sigma2)
        for lane in range(count):
            at = (first + s.place[lane]) * d.p_full + i
            out.params[at] = (<double*> &value)[lane]
            if s.own != NULL:
                out.params[at] += shift[s.place[lane] * stride + i]
            elif d.centre and d.spread == NULL:
                out.params[at] += shift[s.place[lane] * stride] * d.ones[i]
            out.bse[at] = (<double*> &error)[lane]
        if out.df == NULL:
            continue
        degrees_of_freedom(d, s, x_map + i * p, &value)
        for lane in range(count):
            out.df[(first + s.place[lane]) * d.p_full + i] = (<double*> &value)[lane]


include "axes.pxi"
include "screen.pxi"


cdef void settle_lanes(const Batch* d, Lanes* s, Fates* f, Py_ssize_t limit) noexcept nogil:
    """Search from s.theta; theta of what has been found, or of where to go on, to s.natural."""
    cdef Py_ssize_t lane, i
    cdef vec changed
    minimize_lanes(d, s, limit, &f.finished, &f.decrement, f.evaluations)
    for i in range(d.n_par):
        (<vecu*> s.after)[i] = (<vecu*> s.trial)[i]
    changed = snap(d, s)
    changed = VEC_WHERE_POSITIVE(f.finished, changed, VEC_SET(-1.0))
    if vec_max(<vecu*> &changed) > 0.0:
        judge_snapped(d, s, f, changed)
    for lane in range(LANES):
        natural_theta(d, s, s.trial if (<double*> &f.finished)[lane] > 0.0 else s.after, lane, s.natural + lane)


cdef void find_places(const Outcome* out, Py_ssize_t first, Py_ssize_t n_responses, int round_, Lanes* s, Py_ssize_t* at
                      ) noexcept nogil:
    """The next responses of a round from position `at` on: all, then those whose searches have not ended."""
    cdef Py_ssize_t lane
    s.used = 0
    while s.used < LANES and at[0] < n_responses:
        if round_ == 0 or out.status[first + at[0]] == GOES_ON:
            s.place[s.used] = at[0]
            s.used += 1
        at[0] += 1
    for lane in range(s.used if s.used > 0 else LANES, LANES):
        s.place[lane] = s.place[s.used - 1]


cdef void fit_places(const Batch* d, Lanes* s, const Outcome* out, Fates* f, const double* Y, Py_ssize_t stride,
                     Py_ssize_t first, int round_) noexcept nogil:
    """Fit the responses at s.place; those whose searches are to go on get the status GOES_ON unless it is the last round."""
    cdef Py_ssize_t lane, i
    cdef bint last = round_ == ROUNDS - 1
    s.f.chain.axes = NULL
    if round_ == 0:
        first_theta(d, s)
    else:
        for lane in range(LANES):
            f.evaluations[lane] = out.evaluations[first + s.place[lane]]
            for i in range(d.n_par):
                s.theta[i * LANES + lane] = out.theta[(first + s.place[lane]) * d.n_par + i]
        if can_turn(d):
            turn_all(d, s)
    settle_lanes(d, s, f, d.max_iterations if last else min(d.max_iterations, ROUND_LENGTH))
    write_searches(d, s, f, out, first, s.used)
    for lane in range(s.used if not last else 0):
        if f.status[lane] == 0 and out.decrement[first + s.place[lane]] < INFINITY:
            out.status[first + s.place[lane]] = GOES_ON
    if not out.brief:
        write_coefficients(d, s, f, out, Y, stride, first, s.used)
    if out.chosen != NULL or out.values != NULL:
        screen_responses(d, s, f, out, s.used)


cdef void batch_fit(
    const Batch* d, const double* Y, Py_ssize_t stride, Py_ssize_t n_responses, Py_ssize_t first, const Outcome* out,
    double* work,
) noexcept nogil:
    """Fit n_responses rows of Y (see scores.pxi where they are scores); results go to rows first, first + 1, ... of the
    outcome (see also Outcome.rows)."""
    cdef Lanes s
    cdef Fates f
    cdef Arena arena = Arena(work, 0)
    cdef Py_ssize_t at, lane, i
    cdef int round_
    lay_lanes(d, &s, &arena)
    (<vecu*> s.f.gls.nu)[0] = VEC_SET(d.nu)
    for i in range(d.p_full * d.p):
        (<vecu*> s.x_map)[i] = VEC_SET(d.x_map[i])
    # lanes that need long would keep the others waiting: they go on together
    for round_ in range(ROUNDS if out.rows == NULL else 1):
        at = 0
        while at < n_responses:
            find_places(out, first, n_responses, round_, &s, &at)
            if s.used == 0:
                break
            if d.spread != NULL:
                read_scores(d, &s, Y, stride, &f.total)
            else:
                read_responses(d, &s, Y, stride, &f.total)
            set_aside(d, &s, &f)
            f.size = VEC_SQRT(f.total * (1.0 / <double> d.n))
            rescale_responses(d, &s, &f.size)
            if out.rows == NULL:
                fit_places(d, &s, out, &f, Y, stride, first, round_)
                continue
            s.f.chain.axes = NULL
            for lane in range(LANES):
                for i in range(d.n_par):
                    s.theta[i * LANES + lane] = out.theta[(first + s.place[lane]) * d.n_par + i]
            set_factor(d, &s, <vecu*> s.theta)
            evaluate_responses(d, &s, 2)
            if out.params != NULL:
                write_coefficients(d, &s, &f, out, Y, stride, first, s.used)
            write_contrasts(d, &s, out, first, s.used)


offered.batch_size = &batch_size
offered.batch_fit = &batch_fit
