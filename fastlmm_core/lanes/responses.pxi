# Many responses on one design, several at a time: the lanes are responses.
#
# What a response contributes: X_o'y, y'y, and for every column of the patterns c_y; everything else is shared.
# All move in lockstep, each with its own theta, step and radius; a lane that has converged repeats its last
# point, so that no result depends on the neighbours.  Indices are proven by the caller (see one_factor/batch.pyx).

cdef enum:
    TILE_ROWS = 64      # rows of Y that are read side by side


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
    double* tile        # TILE_ROWS, and room for LANES
    double* x_map       # (p_full, p) from conditioned to the caller's coefficients
    double* row         # (p,) a linear function of the conditioned coefficients, and another
    double* other
    double* axes        # (q, q) of each lane, see axes.pxi
    double* plain       # 4 q^2 + 2 q numbers
    double* after       # (n_par,) where a search that has not ended is to go on
    double* natural     # (n_par,) theta in the axes of the caller
    double* taken           # (n_a,) what covariates of each response take from the traces at the common point, or NULL
    double* known_room  # (n_par,) see `known`
    Py_ssize_t place[8]     # response of each lane; beyond the last one in use they repeat it
    Py_ssize_t used         # lanes in use
    double reach            # length of the first step, relative to theta, where that is more than 1
    double* known           # (n_par,) a minimum that is known, in the axes of the lane; NULL where there is none
    vec known_value         # the criterion there, in units of the lane
    vec arrived             # positive where a search is found to go to it
    const OwnGroups* own    # groups of each lane's own design; NULL where all have that of the batch
    void* several           # FactorSpace of several grouping factors, see factors.pxi; NULL where there is one
    void* correlated        # CorrelatedSpace of several whose effects may be correlated, see correlated.pxi; or NULL
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
    s.tile = take(arena, LANES * (TILE_ROWS + LANES))
    s.x_map = take(arena, LANES * d.p_full * p)
    s.row = take(arena, LANES * p)
    s.other = take(arena, LANES * p)
    s.axes = take(arena, LANES * q * q)
    s.plain = take(arena, 4 * q * q + 2 * q)
    s.after = take(arena, LANES * n)
    s.natural = take(arena, LANES * n)
    s.known_room = take(arena, LANES * n)
    s.known = NULL
    s.reach = 0.0
    s.taken = NULL
    s.own = NULL
    s.several = NULL
    s.correlated = NULL
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
    """The rows of all lanes from position i on, response by response to lane by lane; their number.

    Of rows that follow each other LANES are taken at a time; what is beyond them is overwritten by the next ones.
    """
    cdef Py_ssize_t j = 0, lane, at, run, filled = d.n - i if d.n - i < TILE_ROWS else TILE_ROWS
    if d.order == NULL:
        while j + LANES <= filled:
            vec_transpose(r.row, i + j, r.shift, tile + j * LANES)
            j += LANES
    while j < filled:
        at = i + j if d.order == NULL else d.order[i + j]
        run = 1 if d.order == NULL else min(d.ahead[i + j], min(filled - j, LANES))
        if run > 1 and at + LANES <= d.length:
            vec_transpose(r.row, at, r.shift, tile + j * LANES)
            j += run
            continue
        for lane in range(LANES):
            tile[j * LANES + lane] = r.row[lane][at] - r.shift[lane]
        j += 1
    return filled


cdef inline void sum_rows(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s, Reading* r, Py_ssize_t g, vecu* acc
                          ) noexcept nogil:
    """acc (q,) = R^-T Z'y of a group; its rows are added to beta (X'y), total and spread."""
    cdef Py_ssize_t i, a, j, used = r.used, filled = r.filled
    cdef vecu* beta = <vecu*> s.beta
    cdef vecu* tile = <vecu*> s.tile
    cdef bint watch = r.watch, of_x = d.x != NULL
    cdef vec effects[3]
    cdef vec columns[8]
    # what changes row by row is kept out of memory
    cdef vecu* z_y = <vecu*> effects if q <= 3 else acc
    cdef vecu* x_y = <vecu*> columns if p <= 8 else beta
    cdef vec v, total, spread
    total = r.total
    spread = r.spread
    for a in range(q):
        z_y[a] = VEC_SET(0.0)
    for j in range(p if of_x else 0):
        x_y[j] = beta[j]
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
            z_y[a] = z_y[a] + d.basis[i * q + a] * v
        if of_x:
            for j in range(p):
                x_y[j] = x_y[j] + d.x[i * p + j] * v
        if d.weights != NULL:
            total = total + d.weights[i] * v * v
        else:
            total = total + v * v
    for a in range(q):
        acc[a] = z_y[a]
    for j in range(p if of_x else 0):
        beta[j] = x_y[j]
    r.used = used
    r.filled = filled
    r.total = total
    r.spread = spread


cdef inline void sum_group(const Batch* d, Lanes* s, Reading* r, Py_ssize_t g, vecu* acc) noexcept nogil:
    """`sum_rows` with constant sizes where nearly everyone has them."""
    if d.q == 1:
        sum_rows(1, d.p, d, s, r, g, acc)
    elif d.q == 2 and d.p == 4:
        sum_rows(2, 4, d, s, r, g, acc)
    elif d.q == 2:
        sum_rows(2, d.p, d, s, r, g, acc)
    elif d.q == 3 and d.p == 6:
        sum_rows(3, 6, d, s, r, g, acc)
    else:
        sum_rows(d.q, d.p, d, s, r, g, acc)


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
        r.shift[lane] = r.row[lane][d.anchor] if d.centre else 0.0
        (<double*> &r.first)[lane] = r.row[lane][d.anchor] - r.shift[lane]
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


# Work space of the sweeps: W = I + U U' = T Delta T', T unit lower triangular.
cdef struct PatternSpace:
    vecu* U         # (q, q) R L
    vecu* W         # (q, q)
    vecu* T         # (q, q)
    vecu* Y         # (q, q) T^-1 R
    vecu* Z         # (q, q) Delta^-1 Y
    vecu* roots     # (q,) 1 / Delta_aa
    vecu* D         # (q, k) T^-1 c
    vecu* C         # (q, k) Delta^-1 D
    vecu* H         # packed (k, k)

cdef enum:
    ROOM = 48           # vectors of D, or of H, that the stack has room for: what is there can stay in registers
    ROOM_EFFECTS = 3    # random effects of which the rest is on the stack


cdef inline void lay_pattern(Py_ssize_t q, vecu* room, PatternSpace* w) noexcept nogil:
    """5 q^2 + q vectors."""
    w.U = room
    w.W = w.U + q * q
    w.T = w.W + q * q
    w.Y = w.T + q * q
    w.Z = w.Y + q * q
    w.roots = w.Z + q * q


cdef inline vec whiten_pattern(Py_ssize_t q, const double* R, const vecu* factor, const PatternSpace* w) noexcept nogil:
    """T, Delta^-1, Y and Z of a pattern; the determinant |W|.

    No square root is taken, and for two effects one division: |W| is then a sum of squares, see pairs.pxi.
    """
    cdef Py_ssize_t a, b, l, pos = 0
    cdef vec t, product, inverse
    cdef vec one = VEC_SET(1.0)
    for a in range(q):
        for b in range(q):
            t = R[pos] * factor[a * q + b]
            for l in range(a + 1, q):
                t = t + R[pos + l - a] * factor[l * q + b]
            w.U[a * q + b] = t
            w.Y[a * q + b] = VEC_SET(R[pos + b - a] if b >= a else 0.0)
        pos = pos + q - a
    for a in range(q):
        for b in range(a + 1):
            t = one if a == b else VEC_SET(0.0)
            for l in range(q):
                t = t + w.U[a * q + l] * w.U[b * q + l]
            w.W[a * q + b] = t
    if q == 2:
        t = R[0] * R[2] * (factor[0] * factor[3] - factor[1] * factor[2])
        product = w.W[0] + (w.W[3] - one) + t * t
        inverse = one / (w.W[0] * product)
        w.roots[0] = product * inverse
        w.roots[1] = w.W[0] * w.W[0] * inverse
        w.T[2] = w.W[2] * w.roots[0]
        w.Y[2] = w.Y[2] - w.T[2] * w.Y[0]
        w.Y[3] = w.Y[3] - w.T[2] * w.Y[1]
    else:
        product = one
        for a in range(q):
            # a pivot that rounding has made negative must not pass for a determinant
            product = VEC_WHERE_POSITIVE(w.W[a * q + a], product * w.W[a * q + a], VEC_SET(NAN))
            w.roots[a] = one / w.W[a * q + a]
            for b in range(a + 1, q):
                t = w.W[b * q + a] * w.roots[a]
                w.T[b * q + a] = t
                for l in range(a + 1, b + 1):
                    w.W[b * q + l] = w.W[b * q + l] - t * w.W[l * q + a]
                for l in range(q):
                    w.Y[b * q + l] = w.Y[b * q + l] - t * w.Y[a * q + l]
    for a in range(q):
        for l in range(q):
            w.Z[a * q + l] = w.Y[a * q + l] * w.roots[a]
    return product


cdef inline void sweep_rest(Py_ssize_t q, Py_ssize_t k, const vecu* rest, const PatternSpace* w, vecu* gram, vecu* out
                            ) noexcept nogil:
    """H_yy += tr(W^-1 rest); out = R'W^-1 rest W^-1 R, which is added to the y part of gram."""
    cdef Py_ssize_t p = k - 1, a, b, l, pos = 0
    cdef vecu* S = w.U
    cdef vecu* half = w.W
    cdef vec t
    # S = T^-1 rest T^-T
    for a in range(q):
        for b in range(a + 1):
            S[a * q + b] = rest[pos]
            S[b * q + a] = rest[pos]
            pos = pos + 1
    for a in range(q):
        for b in range(a + 1, q):
            for l in range(q):
                S[b * q + l] = S[b * q + l] - w.T[b * q + a] * S[a * q + l]
    for a in range(q):
        for b in range(a + 1, q):
            for l in range(q):
                S[l * q + b] = S[l * q + b] - w.T[b * q + a] * S[l * q + a]
    t = w.H[k * (k + 1) // 2 - 1]
    for a in range(q):
        t = t + S[a * q + a] * w.roots[a]
    w.H[k * (k + 1) // 2 - 1] = t
    for a in range(q):
        for b in range(q):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + w.Z[l * q + a] * S[l * q + b]
            half[a * q + b] = t
    pos = 0
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + half[a * q + l] * w.Z[l * q + b]
            out[pos] = t
            l = a * k + p
            gram[l * (l + 1) // 2 + b * k + p] = gram[l * (l + 1) // 2 + b * k + p] + t
            pos = pos + 1


cdef inline void sweep_column(Py_ssize_t q, Py_ssize_t p, const double* cx, const vecu* cy, const PatternSpace* w,
                              vecu* E) noexcept nogil:
    """D = T^-1 (c_x, c_y) of a column of a pattern; E = Y'Delta^-1 D, and D'Delta^-1 D to the sum."""
    cdef Py_ssize_t k = p + 1, a, b, j, l, pos = 0
    cdef vec t
    for a in range(q):
        for j in range(k):
            t = VEC_SET(cx[a * p + j]) if j < p else cy[a]
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
    for b in range(q):
        for j in range(k):
            t = w.Y[b] * w.C[j]
            for a in range(1, q):
                t = t + w.Y[a * q + b] * w.C[a * k + j]
            E[b * k + j] = t


cdef inline void sweep_patterns(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s) noexcept nogil:
    """First sweep: logdet, sum_n, H and gram at f.factor; keeps N, R'W^-1 rest W^-1 R and E for the second."""
    cdef Py_ssize_t k = p + 1, n_a = q * (q + 1) // 2, n_c = q * k, n_h = k * (k + 1) // 2, pattern, c, j, l, pos
    cdef vecu* gram = <vecu*> s.f.gram
    cdef vecu* N = <vecu*> s.store
    cdef vecu* E = N + d.n_patterns * 2 * n_a
    cdef vec effects[48]     # 5 q^2 + q
    cdef vec columns[96]
    cdef vec sums[48]
    cdef PatternSpace w
    cdef vec det, product, exponent, logdet, t
    cdef double count
    lay_pattern(q, <vecu*> effects if q <= ROOM_EFFECTS else <vecu*> s.small, &w)
    w.D = <vecu*> columns if n_c <= ROOM else (<vecu*> s.small) + 5 * q * q + q
    w.C = w.D + n_c
    w.H = <vecu*> sums if n_h <= ROOM else <vecu*> s.f.gls.H
    product = VEC_SET(1.0)
    exponent = VEC_SET(0.0)
    logdet = VEC_SET(0.0)
    for pos in range(n_h - k):
        w.H[pos] = VEC_SET(d.within_xx[pos])
    for j in range(k):
        w.H[n_h - k + j] = (<vecu*> s.within)[j]
    for pos in range(n_a):
        (<vecu*> s.f.sum_n)[pos] = VEC_SET(0.0)
    for pos in range(n_c * (n_c + 1) // 2):
        gram[pos] = VEC_SET(0.0)
    for pattern in range(d.n_patterns):
        count = <double> (d.groups[pattern + 1] - d.groups[pattern])
        det = whiten_pattern(q, d.R + pattern * n_a, <vecu*> s.f.factor, &w)
        if count > 1.0:
            logdet = logdet + count * VEC_LOG(det)
        else:
            # exponents are set aside lane by lane: no sum depends on the neighbours
            product = product * det
            VEC_SPLIT(product, exponent)
        pos = 0
        for c in range(q):
            for j in range(c + 1):
                t = w.Z[c] * w.Y[j]
                for l in range(1, q):
                    t = t + w.Z[l * q + c] * w.Y[l * q + j]
                N[pos] = t
                (<vecu*> s.f.sum_n)[pos] = (<vecu*> s.f.sum_n)[pos] + count * t
                pos = pos + 1
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            sweep_column(q, p, d.cx + c * q * p, (<vecu*> s.cy) + c * q, &w, E)
            E = E + n_c
        if count > 1.0:
            sweep_rest(q, k, (<vecu*> s.rest) + pattern * n_a, &w, gram, N + n_a)
        N = N + 2 * n_a
    add_outers(n_c, d.n_columns, n_c, N, gram)
    for pos in range(n_h):
        (<vecu*> s.f.gls.H)[pos] = w.H[pos]
    (<vecu*> s.f.gls.logdet)[0] = logdet + VEC_LOG(product) + exponent * M_LN2


cdef inline void sweep_curvature(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s) noexcept nogil:
    """Second sweep: tensor = sum B_i (x) N_i."""
    cdef Py_ssize_t k = p + 1, n_a = q * (q + 1) // 2, n_c = q * k, first = 0 if d.reml else p
    cdef Py_ssize_t pattern, a, b, c, j, l, pos
    cdef vec sums[36]
    cdef vec form[6]
    cdef vec column[3]
    cdef vecu* tensor = <vecu*> sums if q <= ROOM_EFFECTS else <vecu*> s.f.tensor
    cdef vecu* B = <vecu*> form if q <= ROOM_EFFECTS else <vecu*> s.small
    cdef vecu* F = <vecu*> column if q <= ROOM_EFFECTS else (<vecu*> s.small) + n_a
    cdef const vecu* weight = <vecu*> s.f.gls.weight
    cdef const vecu* N = <vecu*> s.store
    cdef const vecu* E = N + d.n_patterns * 2 * n_a
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
        add_tensor(n_a, B, N, tensor)
        N = N + 2 * n_a
    for pos in range(n_a * n_a):
        (<vecu*> s.f.tensor)[pos] = tensor[pos]


cdef inline void sweep_design(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s, int order) noexcept nogil:
    """An evaluation of responses on one design."""
    sweep_patterns(q, p, d, s)
    profile_value(&s.f, 1)
    if order == 2:
        sweep_curvature(q, p, d, s)
        profile_second(&s.f, 2)


cdef void evaluate_responses(const Batch* d, Lanes* s, int order) noexcept nogil:
    """The criterion of a block of responses at f.factor with its derivatives (order 1 or 2)."""
    if s.own != NULL:
        evaluate_problems(d, s, order)
        return
    if s.several != NULL:
        evaluate_factors(d, s, order)
        return
    if s.correlated != NULL:
        evaluate_correlated(d, s, order)
        return
    # constant sizes let the compiler unroll the shapes that nearly everyone uses
    if d.q == 1 and d.p == 1:
        sweep_design(1, 1, d, s, order)
    elif d.q == 1 and d.p == 2:
        sweep_design(1, 2, d, s, order)
    elif d.q == 1:
        sweep_design(1, d.p, d, s, order)
    elif d.q == 2 and d.p == 2:
        sweep_design(2, 2, d, s, order)
    elif d.q == 2 and d.p == 3:
        sweep_design(2, 3, d, s, order)
    elif d.q == 2 and d.p == 4:
        sweep_design(2, 4, d, s, order)
    elif d.q == 2:
        sweep_design(2, d.p, d, s, order)
    elif d.q == 3 and d.p == 3:
        sweep_design(3, 3, d, s, order)
    elif d.q == 3 and d.p == 4:
        sweep_design(3, 4, d, s, order)
    elif d.q == 3 and d.p == 6:
        sweep_design(3, 6, d, s, order)
    elif d.q == 3:
        sweep_design(3, d.p, d, s, order)
    else:
        sweep_design(d.q, d.p, d, s, order)
