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
