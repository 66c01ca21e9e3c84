# Many responses on one design with several grouping factors, several at a time: the lanes are responses.
#
# All random effects are independent: L is diagonal, G = diag(g), g_t = theta_t^2 for the effects of term t.  The levels of
# one term, the leaves, have no rows in common; the effects of the other terms, the core, fall apart into parts that share
# no leaf and no row.  Rows are whitened; a leaf with a = z'z has the unit vector u = z / sqrt(a) and products c = u'[Z_2 X y],
# Z_2 the core.  With V_1 = I + g_0 Z_1 Z_1', what the leaves leave of the others (`within`), and s = 1 / (1 + g_0 a)
#
#     B  = [Z_2 X y]'V_1^-1 [Z_2 X y]  = within + sum s c'c
#     M' = -dB / dg_0                  = sum a s^2 c'c,        M'' = sum a^2 s^3 c'c
#
# where leaves with the same a (a pattern) share s, so that the sums over them are made once: they cost no more than the
# patterns of a part (its pieces).  With W = I + L_2 B_22 L_2, P = (I + B_22 G_2)^-1 = L_2^-1 W^-1 L_2 and columns k = [X y]
#
#     log|V| = sum log(1 + g_0 a) + log|W|,           H = B_kk - (L_2 B_2k)'W^-1 (L_2 B_2k)
#     E = P B_2k,  N = P B_22  (core);                T = G_2 E,  X = M'_2k - M'_22 T,  Y = P M'_22,  Q = G_2 P
#     J_0 = M'_kk - M'_2k'T - T'X,                    J_t = E_t'E_t
#     R_00 = M''_kk - M''_2k'T - T'(M''_2k - M''_22 T) - X'Q X,   R_0t = (P X)_t'E_t,   R_tu = E_t'N_tu E_u
#     tr N_00 = sum a s - tr(Q M'_22),                |N_00|^2 = sum a^2 s^2 - 2 tr(Q M''_22) + tr(G_2 Y G_2 Y)
#     |N_0t|^2 = tr_t(Y P')
#
# for J_t = sum E'D_t E and R_tu = E'D_t N D_u E of Z'V^-1[X y] and Z'V^-1 Z of all effects, by which (2 M = w w' of gls.pxi)
#
#     d_t d      = tr N_tt - tr(M J_t)
#     d_t d_u d  = -|N_tu|^2 + 2 tr(M R_tu) + (what gls.pxi gives)
#
# Only y differs between the lanes at one theta; theta is in units of sqrt(levels / n), in which the columns of Z are given.

cdef enum:
    MOST_VALLEYS = 16

cdef double NO_VARIANCE = 1e-30
"""Standard deviation that stands for none: its square adds nothing to 1, and it can be divided by."""


cdef struct FactorSpace:
    # Work space of a block of responses; all pointers are to vectors.
    const FactorDesign* d
    double* rows        # (n,) whitened residuals of least squares
    double* leaf        # (n_leaves,) c_y
    double* within_cy   # (n_core,)
    double* piece_cy    # (n_core pieces,) laid out as FactorDesign.piece_cx
    double* pattern_xy  # (n_patterns, p)
    double* pattern_yy  # (n_patterns,)
    double* share       # (n_patterns, 3) s, a s^2, a^2 s^3
    # of one part: (J, J)
    double* B
    double* M1
    double* M2
    double* W           # factor M, then W^-1
    double* P
    double* N
    double* Y
    # (J, k)
    double* Bk
    double* M1k
    double* M2k
    double* D
    double* E
    double* T
    double* X
    double* PX
    # (J,)
    double* root        # 1 / M_jj
    double* sd
    # sums over parts
    double* trace       # (n_terms,) tr N_tt
    double* square      # (n_terms (n_terms + 1) / 2,) |N_tu|^2
    double* cross       # (n_terms, k, k) J_t
    double* both        # (n_terms (n_terms + 1) / 2, k, k) R_tu, t >= u; R_0t is stored as E_t'N_t0 E_0
    double* curve       # (n_terms, n_terms)
    double* vectors     # (n_terms, k)
    double* directions  # (n_terms, k, k)
    double* values      # (n_points,)
    double* before      # (k,) numbers: diagonal of [X y]'[X y]


cdef void lay_factors(const Batch* b, const FactorDesign* d, Lanes* s, FactorSpace* w, Arena* arena) noexcept nogil:
    """Take the work space of a block of responses."""
    cdef Py_ssize_t J = d.widest, p = b.p, k = p + 1, n = d.n_terms
    lay_lanes(b, s, arena)
    w.d = d
    w.rows = take(arena, LANES * d.n)
    w.leaf = take(arena, LANES * d.n_leaves)
    w.within_cy = take(arena, LANES * d.n_core)
    w.piece_cy = take(arena, LANES * d.piece_at[d.n_parts])
    w.pattern_xy = take(arena, LANES * d.n_patterns * p)
    w.pattern_yy = take(arena, LANES * d.n_patterns)
    w.share = take(arena, LANES * d.n_patterns * 3)
    w.B = take(arena, LANES * J * J)
    w.M1 = take(arena, LANES * J * J)
    w.M2 = take(arena, LANES * J * J)
    w.W = take(arena, LANES * J * J)
    w.P = take(arena, LANES * J * J)
    w.N = take(arena, LANES * J * J)
    w.Y = take(arena, LANES * J * J)
    w.Bk = take(arena, LANES * J * k)
    w.M1k = take(arena, LANES * J * k)
    w.M2k = take(arena, LANES * J * k)
    w.D = take(arena, LANES * J * k)
    w.E = take(arena, LANES * J * k)
    w.T = take(arena, LANES * J * k)
    w.X = take(arena, LANES * J * k)
    w.PX = take(arena, LANES * J * k)
    w.root = take(arena, LANES * J)
    w.sd = take(arena, LANES * J)
    w.trace = take(arena, LANES * n)
    w.square = take(arena, LANES * (n * (n + 1) // 2))
    w.cross = take(arena, LANES * n * k * k)
    w.both = take(arena, LANES * (n * (n + 1) // 2) * k * k)
    w.curve = take(arena, LANES * n * n)
    w.vectors = take(arena, LANES * n * k)
    w.directions = take(arena, LANES * n * k * k)
    w.values = take(arena, LANES * d.screen.n_points)
    w.before = take(arena, k)


cdef Py_ssize_t factors_size(const Batch* b, const FactorDesign* d) noexcept nogil:
    """Doubles of work space that `factors_fit` and `factors_moments` need."""
    cdef Lanes s
    cdef FactorSpace w
    cdef Arena arena = Arena(NULL, 0)
    lay_factors(b, d, &s, &w, &arena)
    return arena.used


# ------------------------------------------------------------------------------------------------------------ reading

cdef void take_means(const Batch* b, const FactorDesign* d, Lanes* s, vecu* rows) noexcept nogil:
    """The rows less their least-squares fit on X, whose coefficients are added to beta; twice, against rounding."""
    cdef Py_ssize_t p = b.p, i, j, again
    cdef vecu* beta = <vecu*> s.beta
    cdef vecu* change = <vecu*> s.row
    cdef vec t
    for j in range(p):
        beta[j] = VEC_SET(0.0)
    for again in range(2 if p > 0 else 0):
        for j in range(p):
            change[j] = VEC_SET(0.0)
        for i in range(d.n):
            t = rows[i]
            for j in range(p):
                change[j] = change[j] + d.x[i * p + j] * t
        for i in range(d.n):
            t = rows[i]
            for j in range(p):
                t = t - d.x[i * p + j] * change[j]
            rows[i] = t
        for j in range(p):
            beta[j] = beta[j] + change[j]


cdef void read_factors(const Batch* b, Lanes* s, FactorSpace* w, const double* Y, vec* residual) noexcept nogil:
    """Whitened residuals of the rows of Y at s.place, and their sum of squares; nothing where a response is constant."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t i, lane
    cdef vecu* rows = <vecu*> w.rows
    cdef vec t, first, spread, total
    cdef Reading r
    for lane in range(LANES):
        r.row[lane] = Y + s.place[lane] * b.n
        r.shift[lane] = r.row[lane][0] if b.centre else 0.0
    for i in range((d.n + TILE_ROWS - 1) // TILE_ROWS):
        fill_tile(b, &r, w.rows + i * TILE_ROWS * LANES, i * TILE_ROWS)
    spread = VEC_SET(0.0)
    first = rows[0]
    for i in range(d.n):
        t = rows[i]
        spread = spread + VEC_ABS(t - first)
        if b.offset != NULL:
            t = t - b.offset[i]
        if d.root != NULL:
            t = t * d.root[i]
        rows[i] = t
    # what X explains but for rounding is nothing
    total = VEC_SET(0.0)
    for i in range(d.n):
        total = total + rows[i] * rows[i]
    first = total * 1e-30
    take_means(b, d, s, rows)
    total = VEC_SET(0.0)
    for i in range(d.n):
        total = total + rows[i] * rows[i]
    total = VEC_WHERE_POSITIVE(total - first, total, total * 0.0)
    residual[0] = VEC_WHERE_POSITIVE(spread, total, total * 0.0)


cdef void file_rows(const Batch* b, Lanes* s, FactorSpace* w) noexcept nogil:
    """c_y of each leaf, and what is left within leaves: cross-products with the core, X and itself."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t p = b.p, i, j, at
    cdef vecu* rows = <vecu*> w.rows
    cdef vecu* leaf = <vecu*> w.leaf
    cdef vecu* within_cy = <vecu*> w.within_cy
    cdef vecu* within = <vecu*> s.within
    cdef vec t
    for i in range(d.n_leaves):
        leaf[i] = VEC_SET(0.0)
    for i in range(d.n_core):
        within_cy[i] = VEC_SET(0.0)
    for j in range(p + 1):
        within[j] = VEC_SET(0.0)
    for i in range(d.n):
        leaf[d.leaf[i]] = leaf[d.leaf[i]] + d.unit[i] * rows[i]
    for i in range(d.n):
        t = rows[i] - d.unit[i] * leaf[d.leaf[i]]
        within[p] = within[p] + t * t
        for j in range(p):
            within[j] = within[j] + d.x[i * p + j] * t
        for at in range(d.entry[i], d.entry[i + 1]):
            within_cy[d.slot[at]] = within_cy[d.slot[at]] + d.value[at] * t


cdef void file_leaves(const Batch* b, FactorSpace* w) noexcept nogil:
    """Sums of c_y times c over the leaves of each pattern and piece."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t p = b.p, i, j, J, pieces, part, piece, pattern, at
    cdef vecu* leaf = <vecu*> w.leaf
    cdef vecu* piece_cy = <vecu*> w.piece_cy
    cdef vecu* xy = <vecu*> w.pattern_xy
    cdef vecu* yy = <vecu*> w.pattern_yy
    cdef vec t
    for i in range(d.piece_at[d.n_parts]):
        piece_cy[i] = VEC_SET(0.0)
    for i in range(d.n_patterns * p):
        xy[i] = VEC_SET(0.0)
    for i in range(d.n_patterns):
        yy[i] = VEC_SET(0.0)
    for i in range(d.n_leaves):
        t = leaf[i]
        part = d.leaf_part[i]
        piece = d.leaf_piece[i]
        pattern = d.pattern[d.piece[part] + piece]
        pieces = d.piece[part + 1] - d.piece[part]
        J = d.core[part + 1] - d.core[part]
        at = d.piece_at[part] + piece
        for j in range(J):
            piece_cy[at + j * pieces] = piece_cy[at + j * pieces] + d.leaf_core[d.leaf_at[i] + j] * t
        for j in range(p):
            xy[pattern * p + j] = xy[pattern * p + j] + d.leaf_x[i * p + j] * t
        yy[pattern] = yy[pattern] + t * t


cdef inline void multiply_lanes(Py_ssize_t n, double* values, vec size) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        (<vecu*> values)[i] = (<vecu*> values)[i] * size


cdef void rescale_factors(const Batch* b, Lanes* s, FactorSpace* w, Fates* f) noexcept nogil:
    """Divide y by its size, lane by lane; nothing is left of a response that was set aside."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t lane
    cdef vec inverse = VEC_SET(1.0) / f.size
    rescale_responses(b, s, &f.size)
    for lane in range(LANES):
        if f.status[lane] != 0:
            clear_lane(w, b.p, lane)
    multiply_lanes(d.n_core, w.within_cy, inverse)
    multiply_lanes(d.piece_at[d.n_parts], w.piece_cy, inverse)
    multiply_lanes(d.n_patterns * b.p, w.pattern_xy, inverse)
    multiply_lanes(d.n_patterns, w.pattern_yy, inverse * inverse)


cdef void clear_lane(FactorSpace* w, Py_ssize_t p, Py_ssize_t lane) noexcept nogil:
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t i
    for i in range(d.n_core):
        w.within_cy[i * LANES + lane] = 0.0
    for i in range(d.piece_at[d.n_parts]):
        w.piece_cy[i * LANES + lane] = 0.0
    for i in range(d.n_patterns * p):
        w.pattern_xy[i * LANES + lane] = 0.0
    for i in range(d.n_patterns):
        w.pattern_yy[i * LANES + lane] = 0.0


# --------------------------------------------------------------------------------------------------------- evaluation

cdef inline vec weigh_patterns(const FactorDesign* d, FactorSpace* w, const vecu* factor) noexcept nogil:
    """s, a s^2 and a^2 s^3 of each pattern, tr N_00 and |N_00|^2 without the core; the logarithm of |V_1|."""
    cdef Py_ssize_t i
    cdef vecu* share = <vecu*> w.share
    cdef vec g, s, t, u, logdet, trace, square
    g = factor[0] * factor[0]
    logdet = VEC_SET(0.0)
    trace = VEC_SET(0.0)
    square = VEC_SET(0.0)
    for i in range(d.n_patterns):
        t = 1.0 + g * d.size[i]
        s = VEC_SET(1.0) / t
        u = d.size[i] * s
        logdet = logdet + d.count[i] * VEC_LOG(t)
        trace = trace + d.count[i] * u
        square = square + d.count[i] * u * u
        share[3 * i] = s
        share[3 * i + 1] = u * s
        share[3 * i + 2] = u * u * s
    (<vecu*> w.trace)[0] = trace
    (<vecu*> w.square)[0] = square
    return logdet


cdef inline void sum_pieces(Py_ssize_t pieces, const Py_ssize_t* pattern, const double* c, double within,
                            const vecu* share, vecu* out, vecu* first, vecu* second) noexcept nogil:
    """One element of B, M' and M'' of what is the same for all responses."""
    cdef Py_ssize_t i
    cdef const vecu* own
    cdef vec t0, t1, t2
    t0 = VEC_SET(within)
    t1 = VEC_SET(0.0)
    t2 = VEC_SET(0.0)
    for i in range(pieces):
        own = share + 3 * pattern[i]
        t0 = t0 + c[i] * own[0]
        t1 = t1 + c[i] * own[1]
        t2 = t2 + c[i] * own[2]
    out[0] = t0
    first[0] = t1
    second[0] = t2


cdef inline void sum_lanes(Py_ssize_t pieces, const Py_ssize_t* pattern, const vecu* c, const vecu* within,
                           const vecu* share, vecu* out, vecu* first, vecu* second) noexcept nogil:
    """The same of what differs."""
    cdef Py_ssize_t i
    cdef const vecu* own
    cdef vec t0, t1, t2
    t0 = within[0]
    t1 = VEC_SET(0.0)
    t2 = VEC_SET(0.0)
    for i in range(pieces):
        own = share + 3 * pattern[i]
        t0 = t0 + c[i] * own[0]
        t1 = t1 + c[i] * own[1]
        t2 = t2 + c[i] * own[2]
    out[0] = t0
    first[0] = t1
    second[0] = t2


cdef inline void gather_part(Py_ssize_t J, Py_ssize_t p, FactorSpace* w, Py_ssize_t part) noexcept nogil:
    """B, M' and M'' of the core of a part, and of the core with [X y]."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t k = p + 1, pieces = d.piece[part + 1] - d.piece[part], i, j, pos = 0
    cdef const Py_ssize_t* pattern = d.pattern + d.piece[part]
    cdef const double* cc = d.piece_cc + d.cc_at[part]
    cdef const double* within_cc = d.within_cc + d.square_at[part]
    cdef const double* cx = d.piece_cx + d.piece_at[part] * p
    cdef const double* within_cx = d.within_cx + d.core[part] * p
    cdef const vecu* cy = (<vecu*> w.piece_cy) + d.piece_at[part]
    cdef const vecu* within_cy = (<vecu*> w.within_cy) + d.core[part]
    cdef const vecu* share = <vecu*> w.share
    cdef vecu* B = <vecu*> w.B
    cdef vecu* M1 = <vecu*> w.M1
    cdef vecu* M2 = <vecu*> w.M2
    for i in range(J):
        for j in range(i + 1):
            sum_pieces(pieces, pattern, cc + pos * pieces, within_cc[pos], share, B + i * J + j, M1 + i * J + j,
                       M2 + i * J + j)
            B[j * J + i] = B[i * J + j]
            M1[j * J + i] = M1[i * J + j]
            M2[j * J + i] = M2[i * J + j]
            pos = pos + 1
    for i in range(J):
        for j in range(p):
            sum_pieces(pieces, pattern, cx + (i * p + j) * pieces, within_cx[i * p + j], share,
                       (<vecu*> w.Bk) + i * k + j, (<vecu*> w.M1k) + i * k + j, (<vecu*> w.M2k) + i * k + j)
        sum_lanes(pieces, pattern, cy + i * pieces, within_cy + i, share, (<vecu*> w.Bk) + i * k + p,
                  (<vecu*> w.M1k) + i * k + p, (<vecu*> w.M2k) + i * k + p)


cdef inline void factor_part(Py_ssize_t J, Py_ssize_t k, FactorSpace* w, vec* product, vec* exponent, vecu* H
                             ) noexcept nogil:
    """W = M M', D = M^-1 L_2 B_2k, which is taken out of H; the determinant to product and exponent."""
    cdef Py_ssize_t i, j, l, pos = 0
    cdef vecu* W = <vecu*> w.W
    cdef vecu* D = <vecu*> w.D
    cdef vecu* root = <vecu*> w.root
    cdef vecu* sd = <vecu*> w.sd
    cdef vec t, u
    for i in range(J):
        for j in range(i + 1):
            W[i * J + j] = sd[i] * (<vecu*> w.B)[i * J + j] * sd[j]
        W[i * J + i] = W[i * J + i] + 1.0
        for j in range(k):
            D[i * k + j] = sd[i] * (<vecu*> w.Bk)[i * k + j]
    for i in range(J):
        t = W[i * J + i]
        product[0] = product[0] * t
        VEC_SPLIT(product[0], exponent[0])
        u = VEC_SET(1.0) / VEC_SQRT(t)
        root[i] = u
        for l in range(k):
            D[i * k + l] = D[i * k + l] * u
        for j in range(i + 1, J):
            W[j * J + i] = W[j * J + i] * u
        for j in range(i + 1, J):
            t = W[j * J + i]
            for l in range(i + 1, j + 1):
                W[j * J + l] = W[j * J + l] - t * W[l * J + i]
            for l in range(k):
                D[j * k + l] = D[j * k + l] - t * D[i * k + l]
    for i in range(k):
        for j in range(i + 1):
            t = H[pos]
            for l in range(J):
                t = t - D[l * k + i] * D[l * k + j]
            H[pos] = t
            pos = pos + 1


cdef inline void invert_part(Py_ssize_t J, FactorSpace* w) noexcept nogil:
    """P from the factor M of W, by way of M^-1 (upper half of N) and W^-1."""
    cdef Py_ssize_t i, j, l
    cdef vecu* W = <vecu*> w.W
    cdef vecu* V = <vecu*> w.N
    cdef vecu* P = <vecu*> w.P
    cdef vecu* root = <vecu*> w.root
    cdef vecu* sd = <vecu*> w.sd
    cdef vec t
    # row j of V: column j of M^-1, from the diagonal on
    for j in range(J):
        V[j * J + j] = root[j]
        for i in range(j + 1, J):
            t = VEC_SET(0.0)
            for l in range(j, i):
                t = t - W[i * J + l] * V[j * J + l]
            V[j * J + i] = t * root[i]
    for i in range(J):
        for j in range(i + 1):
            t = VEC_SET(0.0)
            for l in range(i, J):
                t = t + V[i * J + l] * V[j * J + l]
            W[i * J + j] = t
    for i in range(J):
        root[i] = VEC_SET(1.0) / sd[i]
    for i in range(J):
        for j in range(i + 1):
            t = W[i * J + j]
            P[i * J + j] = t * sd[j] * root[i]
            P[j * J + i] = t * sd[i] * root[j]


cdef inline void multiply_part(Py_ssize_t J, Py_ssize_t m, const vecu* A, const vecu* C, vecu* out) noexcept nogil:
    """out (J, m) = A (J, J) C (J, m)."""
    cdef Py_ssize_t i, j, l
    cdef vec t
    for i in range(J):
        for j in range(m):
            t = VEC_SET(0.0)
            for l in range(J):
                t = t + A[i * J + l] * C[l * m + j]
            out[i * m + j] = t


cdef inline void solve_part(Py_ssize_t J, Py_ssize_t k, FactorSpace* w) noexcept nogil:
    """N, Y, E, T, X and P X of a part."""
    cdef Py_ssize_t i, j, l
    cdef vecu* P = <vecu*> w.P
    cdef vecu* B = <vecu*> w.B
    cdef vecu* N = <vecu*> w.N
    cdef vecu* T = <vecu*> w.T
    cdef vecu* sd = <vecu*> w.sd
    cdef vec t, g
    multiply_part(J, k, P, <vecu*> w.Bk, <vecu*> w.E)
    multiply_part(J, J, P, <vecu*> w.M1, <vecu*> w.Y)
    for i in range(J):
        for j in range(i + 1):
            t = VEC_SET(0.0)
            for l in range(J):
                t = t + P[i * J + l] * B[l * J + j]
            N[i * J + j] = t
            N[j * J + i] = t
        g = sd[i] * sd[i]
        for j in range(k):
            T[i * k + j] = g * (<vecu*> w.E)[i * k + j]
    multiply_part(J, k, <vecu*> w.M1, T, <vecu*> w.X)
    for i in range(J * k):
        (<vecu*> w.X)[i] = (<vecu*> w.M1k)[i] - (<vecu*> w.X)[i]
    multiply_part(J, k, P, <vecu*> w.X, <vecu*> w.PX)


cdef inline void add_traces(Py_ssize_t J, FactorSpace* w, const Py_ssize_t* term) noexcept nogil:
    """tr N_tt and |N_tu|^2 of a part."""
    cdef Py_ssize_t i, j
    cdef vecu* trace = <vecu*> w.trace
    cdef vecu* square = <vecu*> w.square
    cdef vecu* P = <vecu*> w.P
    cdef vecu* N = <vecu*> w.N
    cdef vecu* Y = <vecu*> w.Y
    cdef vecu* M2 = <vecu*> w.M2
    cdef vecu* sd = <vecu*> w.sd
    cdef vecu* place
    cdef vec t, u, g, first, own
    first = VEC_SET(0.0)
    own = VEC_SET(0.0)
    for i in range(J):
        g = sd[i] * sd[i]
        first = first + g * Y[i * J + i]
        trace[term[i]] = trace[term[i]] + N[i * J + i]
        t = VEC_SET(0.0)
        u = VEC_SET(0.0)
        for j in range(J):
            t = t + sd[j] * sd[j] * Y[i * J + j] * Y[j * J + i] - 2.0 * P[i * J + j] * M2[i * J + j]
            u = u + Y[i * J + j] * P[i * J + j]
        own = own + g * t
        place = square + term[i] * (term[i] + 1) // 2
        place[0] = place[0] + u
        for j in range(J):
            if term[j] <= term[i]:
                place[term[j]] = place[term[j]] + N[i * J + j] * N[i * J + j]
    trace[0] = trace[0] - first
    square[0] = square[0] + own


cdef inline void add_scores(Py_ssize_t J, Py_ssize_t k, FactorSpace* w, const Py_ssize_t* term) noexcept nogil:
    """J_t and the R_tu that the leaves have part in."""
    cdef Py_ssize_t i, j, l
    cdef vecu* E = <vecu*> w.E
    cdef vecu* T = <vecu*> w.T
    cdef vecu* X = <vecu*> w.X
    cdef vecu* PX = <vecu*> w.PX
    cdef vecu* M1k = <vecu*> w.M1k
    cdef vecu* M2k = <vecu*> w.M2k
    cdef vecu* X2 = <vecu*> w.D
    cdef vecu* cross
    cdef vecu* both = <vecu*> w.both
    cdef vec t, u, g
    multiply_part(J, k, <vecu*> w.M2, T, X2)
    for i in range(J * k):
        X2[i] = M2k[i] - X2[i]
    for j in range(k):
        for l in range(k):
            t = VEC_SET(0.0)
            u = VEC_SET(0.0)
            for i in range(J):
                g = (<vecu*> w.sd)[i] * (<vecu*> w.sd)[i]
                t = t + M1k[i * k + j] * T[i * k + l] + T[i * k + j] * X[i * k + l]
                u = u + M2k[i * k + j] * T[i * k + l] + T[i * k + j] * X2[i * k + l] + g * X[i * k + j] * PX[i * k + l]
            (<vecu*> w.cross)[j * k + l] = (<vecu*> w.cross)[j * k + l] - t
            both[j * k + l] = both[j * k + l] - u
    for i in range(J):
        cross = (<vecu*> w.cross) + term[i] * k * k
        both = (<vecu*> w.both) + term[i] * (term[i] + 1) // 2 * k * k
        for j in range(k):
            for l in range(k):
                cross[j * k + l] = cross[j * k + l] + E[i * k + j] * E[i * k + l]
                both[j * k + l] = both[j * k + l] + E[i * k + j] * PX[i * k + l]


cdef inline void add_core(Py_ssize_t J, Py_ssize_t k, FactorSpace* w, const Py_ssize_t* term) noexcept nogil:
    """R_tu of the terms in the core."""
    cdef Py_ssize_t i, j, l, u
    cdef vecu* E = <vecu*> w.E
    cdef vecu* N = <vecu*> w.N
    cdef vecu* half = <vecu*> w.X
    cdef vecu* both
    cdef vec t
    for u in range(1, w.d.n_terms):
        for i in range(J):
            if term[i] < u:
                continue
            for l in range(k):
                t = VEC_SET(0.0)
                for j in range(J):
                    if term[j] == u:
                        t = t + N[i * J + j] * E[j * k + l]
                half[l] = t
            both = (<vecu*> w.both) + (term[i] * (term[i] + 1) // 2 + u) * k * k
            for j in range(k):
                for l in range(k):
                    both[j * k + l] = both[j * k + l] + E[i * k + j] * half[l]


cdef inline void sweep_part(Py_ssize_t J, Py_ssize_t p, FactorSpace* w, Py_ssize_t part, const Gls* gls, vec* product,
                            vec* exponent, bint derivatives) noexcept nogil:
    cdef Py_ssize_t k = p + 1
    cdef const Py_ssize_t* term = w.d.term + w.d.core[part]
    gather_part(J, p, w, part)
    factor_part(J, k, w, product, exponent, <vecu*> gls.H)
    if derivatives:
        invert_part(J, w)
        solve_part(J, k, w)
        add_traces(J, w, term)
        add_scores(J, k, w, term)
        add_core(J, k, w, term)


cdef void begin_sums(const Batch* b, Lanes* s, FactorSpace* w) noexcept nogil:
    """B, M' and M'' of [X y] to H, J_0 and R_00; nothing to the others."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t p = b.p, k = p + 1, n = d.n_terms, i, j, g, pos = 0
    cdef vecu* H = <vecu*> s.f.gls.H
    cdef vecu* cross = <vecu*> w.cross
    cdef vecu* both = <vecu*> w.both
    cdef const vecu* share = <vecu*> w.share
    cdef vec t, t0, t1, t2
    for i in range(1, n):
        (<vecu*> w.trace)[i] = VEC_SET(0.0)
    for i in range(1, n * (n + 1) // 2):
        (<vecu*> w.square)[i] = VEC_SET(0.0)
    for i in range(n * k * k):
        cross[i] = VEC_SET(0.0)
    for i in range(n * (n + 1) // 2 * k * k):
        both[i] = VEC_SET(0.0)
    for i in range(k):
        for j in range(i + 1):
            t0 = VEC_SET(d.within_xx[pos]) if i < p else (<vecu*> s.within)[j]
            t1 = VEC_SET(0.0)
            t2 = VEC_SET(0.0)
            for g in range(d.n_patterns):
                if i < p:
                    t = VEC_SET(d.pattern_xx[pos * d.n_patterns + g])
                else:
                    t = (<vecu*> w.pattern_xy)[g * p + j] if j < p else (<vecu*> w.pattern_yy)[g]
                t0 = t0 + t * share[3 * g]
                t1 = t1 + t * share[3 * g + 1]
                t2 = t2 + t * share[3 * g + 2]
            H[pos] = t0
            cross[i * k + j] = t1
            cross[j * k + i] = t1
            both[i * k + j] = t2
            both[j * k + i] = t2
            pos = pos + 1


cdef void sweep_factors(const Batch* b, Lanes* s, FactorSpace* w, bint derivatives) noexcept nogil:
    """Everything but the algebra of [X y] at f.factor (whose diagonal is theta)."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t p = b.p, part, i, J
    cdef vecu* factor = <vecu*> s.f.factor
    cdef vecu* sd = <vecu*> w.sd
    cdef vecu* theta = <vecu*> w.vectors
    cdef vec logdet, product, exponent, t
    for i in range(d.n_terms):
        t = VEC_ABS(factor[i * d.n_terms + i])
        theta[i] = VEC_WHERE_POSITIVE(t - NO_VARIANCE, t, VEC_SET(NO_VARIANCE))
    logdet = weigh_patterns(d, w, theta)
    begin_sums(b, s, w)
    product = VEC_SET(1.0)
    exponent = VEC_SET(0.0)
    for part in range(d.n_parts):
        J = d.core[part + 1] - d.core[part]
        for i in range(J):
            sd[i] = theta[d.term[d.core[part] + i]]
        if J == 1:
            sweep_part(1, p, w, part, &s.f.gls, &product, &exponent, derivatives)
        else:
            sweep_part(J, p, w, part, &s.f.gls, &product, &exponent, derivatives)
    (<vecu*> s.f.gls.logdet)[0] = logdet + VEC_LOG(product) + exponent * M_LN2


cdef inline vec weigh(Py_ssize_t k, const vecu* M, const vecu* J) noexcept nogil:
    """tr(M J)."""
    cdef Py_ssize_t i
    cdef vec t = VEC_SET(0.0)
    for i in range(k * k):
        t = t + M[i] * J[i]
    return t


cdef void differentiate_factors(const Batch* b, Lanes* s, FactorSpace* w, int order) noexcept nogil:
    """Gradient and Hessian, and what contrasts read: g, gram, jac and vectors of the profile."""
    cdef Py_ssize_t n = w.d.n_terms, p = b.p, k = p + 1, t, u, i, j, l, pos
    cdef Profile* f = &s.f
    cdef vecu* weight = <vecu*> f.gls.weight
    cdef vecu* M = <vecu*> f.M
    cdef vecu* g = <vecu*> f.g
    cdef vecu* theta = <vecu*> f.factor
    cdef vecu* curve = <vecu*> w.curve
    cdef vecu* v = <vecu*> w.vectors
    cdef vecu* J
    cdef vec x
    gls_weight(k, &f.gls)
    for i in range(k):
        for j in range(k):
            x = VEC_SET(0.0)
            for l in range(max(i, j) if b.reml else p, k):
                x = x + weight[i * k + l] * weight[j * k + l]
            M[i * k + j] = x * 0.5
    for i in range(n * n):
        g[i] = VEC_SET(0.0)
    for t in range(n):
        g[t * n + t] = (<vecu*> w.trace)[t] - weigh(k, M, (<vecu*> w.cross) + t * k * k)
        (<vecu*> f.grad)[t] = 2.0 * theta[t * n + t] * g[t * n + t]
    if order < 2:
        return
    for t in range(n):
        J = (<vecu*> w.directions) + t * k * k
        for i in range(k):
            x = VEC_SET(0.0)
            for j in range(k):
                # rounding leaves the two halves of J_0 different
                J[i * k + j] = (<vecu*> w.cross)[(t * k + max(i, j)) * k + min(i, j)]
                x = x + J[i * k + j] * (<vecu*> f.gls.b)[j]
            v[t * k + i] = x
        fill_profile(b, s, w, t)
        gls_direction(k, &f.gls, v + t * k)
        (<vecu*> f.vectors)[(t * (t + 3) // 2) * k + p] = v[t * k + p]
        if b.reml:
            gls_within(k, &f.gls, J)
        for u in range(t + 1):
            pos = t * (t + 1) // 2 + u
            x = 2.0 * weigh(k, M, (<vecu*> w.both) + pos * k * k) - (<vecu*> w.square)[pos]
            curve[t * n + u] = x
            curve[u * n + t] = x
    gls_curve(k, n, &f.gls, 2.0, v, <vecu*> w.directions if b.reml else NULL, curve)
    for t in range(n):
        for u in range(n):
            (<vecu*> f.hess)[t * n + u] = 4.0 * theta[t * n + t] * theta[u * n + u] * curve[t * n + u]
        (<vecu*> f.hess)[t * n + t] = (<vecu*> f.hess)[t * n + t] + 2.0 * g[t * n + t]


cdef void fill_profile(const Batch* b, Lanes* s, FactorSpace* w, Py_ssize_t t) noexcept nogil:
    """J_t and the chain rule of a term as `along_theta` and `shift_of` read them; between terms they are zero."""
    cdef Py_ssize_t n = w.d.n_terms, k = b.p + 1, i, j, l
    cdef vecu* gram = <vecu*> s.f.gram
    cdef vecu* jac = <vecu*> s.f.jac
    for i in range(k):
        l = t * k + i
        for j in range(t * k):
            gram[l * (l + 1) // 2 + j] = VEC_SET(0.0)
        for j in range(i + 1):
            gram[l * (l + 1) // 2 + t * k + j] = (<vecu*> w.cross)[(t * k + i) * k + j]
    for i in range(t + 1):
        l = t * (t + 1) // 2 + i
        for j in range(n):
            jac[l * n + j] = VEC_SET(0.0)
        (<vecu*> s.f.vectors)[l * k + b.p] = VEC_SET(0.0)
    jac[(t * (t + 1) // 2 + t) * n + t] = 2.0 * (<vecu*> s.f.factor)[t * n + t]


cdef void evaluate_factors(const Batch* b, Lanes* s, int order) noexcept nogil:
    """The criterion of a block of responses at f.factor with its derivatives."""
    cdef FactorSpace* w = <FactorSpace*> s.several
    sweep_factors(b, s, w, order > 0)
    gls_value(b.p + 1, &s.f.gls)
    if order > 0:
        differentiate_factors(b, s, w, order)


# ------------------------------------------------------------------------------------------------------------- screen

cdef void screen_part(const Batch* b, Lanes* s, FactorSpace* w, Py_ssize_t part, Py_ssize_t point, vec* total
                      ) noexcept nogil:
    """What a part takes out of y'V_1^-1 y and X'V_1^-1 y at a point of the screen."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t p = b.p, J = d.core[part + 1] - d.core[part], pieces = d.piece[part + 1] - d.piece[part], i, j
    cdef const Py_ssize_t* pattern = d.pattern + d.piece[part]
    cdef const double* share = d.screen.share + point * d.n_patterns
    cdef const double* half = d.screen.half + point * d.screen.n_half + d.square_at[part]
    cdef const double* half_x = d.screen.half_x + (point * d.n_core + d.core[part]) * p
    cdef const vecu* cy = (<vecu*> w.piece_cy) + d.piece_at[part]
    cdef vecu* own = <vecu*> w.D
    cdef vecu* xy = <vecu*> s.row
    cdef vec t
    for i in range(J):
        t = (<vecu*> w.within_cy)[d.core[part] + i]
        for j in range(pieces):
            t = t + share[pattern[j]] * cy[i * pieces + j]
        own[i] = t
        t = VEC_SET(0.0)
        for j in range(i + 1):
            t = t + half[j] * own[j]
        half = half + i + 1
        total[0] = total[0] - t * t
        for j in range(p):
            xy[j] = xy[j] - half_x[i * p + j] * t


cdef void screen_factors(const Batch* b, Lanes* s, FactorSpace* w) noexcept nogil:
    """w.values (n_points,): the criterion at the points of the screen, infinite where it is not defined."""
    cdef const FactorDesign* d = w.d
    cdef Py_ssize_t p = b.p, point, part, g, i, j
    cdef const double* share
    cdef const double* half
    cdef vecu* xy = <vecu*> s.row
    cdef vecu* values = <vecu*> w.values
    cdef vec total, t
    for point in range(d.screen.n_points):
        share = d.screen.share + point * d.n_patterns
        half = d.screen.half_xx + point * (p * (p + 1) // 2)
        total = (<vecu*> s.within)[p]
        for j in range(p):
            xy[j] = (<vecu*> s.within)[j]
        for g in range(d.n_patterns):
            total = total + share[g] * (<vecu*> w.pattern_yy)[g]
            for j in range(p):
                xy[j] = xy[j] + share[g] * (<vecu*> w.pattern_xy)[g * p + j]
        for part in range(d.n_parts):
            screen_part(b, s, w, part, point, &total)
        for i in range(p):
            t = VEC_SET(0.0)
            for j in range(i + 1):
                t = t + half[j] * xy[j]
            half = half + i + 1
            total = total - t * t
        t = total * (2.0 * M_PI / b.nu)
        values[point] = VEC_WHERE_POSITIVE(
            t, d.screen.constant[point] + b.nu * (VEC_LOG(t) + 1.0), VEC_SET(1e300) * 1e300)


cdef void start_factors(const Batch* b, Lanes* s, FactorSpace* w, const Outcome* out) noexcept nogil:
    """theta of the lowest point of the screen; the other valleys are written down."""
    cdef const FactorScreen* screen = &w.d.screen
    cdef Py_ssize_t n = w.d.n_terms, lane, i, j
    cdef int chosen[MOST_VALLEYS]
    screen_factors(b, s, w)
    for lane in range(LANES):
        choose_valleys(screen.neighbours, screen.near, screen.n_points, w.values + lane, screen.limit + 1, chosen)
        j = chosen[0] if chosen[0] >= 0 else 0
        for i in range(n):
            s.theta[i * LANES + lane] = screen.theta[j * n + i]
        for i in range(screen.n_points if out.values != NULL else 0):
            out.values[s.place[lane] * screen.n_points + i] = w.values[i * LANES + lane]
        for i in range(screen.limit if out.chosen != NULL else 0):
            out.chosen[s.place[lane] * screen.limit + i] = chosen[i + 1]


cdef void finish_look(const Batch* b, Lanes* s, const Fates* f, FactorSpace* w, const Outcome* out) noexcept nogil:
    """How near the boundary is; what has not ended is left to a single fit."""
    cdef Py_ssize_t limit = w.d.screen.limit, lane, i
    cdef vec rise
    boundary_near(b, s, &rise)
    for lane in range(s.used):
        out.rise[s.place[lane]] = (<double*> &rise)[lane]
        for i in range(limit if f.status[lane] <= 0 else 0):
            out.chosen[s.place[lane] * limit + i] = -1


# --------------------------------------------------------------------------------------------------------------- fits

cdef void load_factors(const Batch* b, Lanes* s, FactorSpace* w, Fates* f, const double* Y) noexcept nogil:
    """What the responses at s.place contribute."""
    read_factors(b, s, w, Y, &f.total)
    file_rows(b, s, w)
    set_aside(b, s, f)
    f.size = VEC_SQRT(f.total * (1.0 / <double> b.n))
    file_leaves(b, w)
    rescale_factors(b, s, w, f)


cdef void ready_factors(const Batch* b, Lanes* s, FactorSpace* w) noexcept nogil:
    cdef Py_ssize_t i
    s.several = w
    (<vecu*> s.f.gls.nu)[0] = VEC_SET(b.nu)
    for i in range(b.p):
        w.before[i] = 1.0
    w.before[b.p] = b.n
    s.f.gls.before = w.before
    for i in range(b.p_full * b.p):
        (<vecu*> s.x_map)[i] = VEC_SET(b.x_map[i])


cdef void factors_fit(const Batch* b, const FactorDesign* d, const double* Y, Py_ssize_t n_responses, Py_ssize_t first,
                      const Outcome* out, double* work) noexcept nogil:
    """Fit the rows of Y; results go to rows first, first + 1, ... of the outcome (see also Outcome.rows)."""
    cdef Lanes s
    cdef FactorSpace w
    cdef Fates f
    cdef Arena arena = Arena(work, 0)
    cdef Py_ssize_t block = 0, lane, i
    lay_factors(b, d, &s, &w, &arena)
    ready_factors(b, &s, &w)
    while block < n_responses:
        s.used = n_responses - block if n_responses - block < LANES else LANES
        for lane in range(LANES):
            # lanes beyond the last response repeat it
            s.place[lane] = block + (lane if lane < s.used else s.used - 1)
        load_factors(b, &s, &w, &f, Y)
        if out.rows != NULL:
            for lane in range(LANES):
                for i in range(b.n_par):
                    s.theta[i * LANES + lane] = out.theta[(first + s.place[lane]) * b.n_par + i]
            set_factor(b, &s, <vecu*> s.theta)
            evaluate_factors(b, &s, 2)
            if out.params != NULL:
                write_coefficients(b, &s, &f, out, Y, b.n, first, s.used)
            write_contrasts(b, &s, out, first, s.used)
        else:
            if b.first_theta != NULL:
                first_theta(b, &s)
            else:
                start_factors(b, &s, &w, out)
            settle_lanes(b, &s, &f, b.max_iterations)
            write_searches(b, &s, &f, out, first, s.used)
            if not out.brief:
                write_coefficients(b, &s, &f, out, Y, b.n, first, s.used)
            if out.chosen != NULL:
                finish_look(b, &s, &f, &w, out)
        block += LANES


cdef void factors_moments(const Batch* b, const FactorDesign* d, const double* theta, Py_ssize_t count,
                          const DesignMoments* out, double* work) noexcept nogil:
    """What tests of fixed effects need of the design at each theta (count, n_terms)."""
    cdef Lanes s
    cdef FactorSpace w
    cdef Arena arena = Arena(work, 0)
    cdef Py_ssize_t n = d.n_terms, p = b.p, k = p + 1, block = 0, lane, i, j, t, at, size = n * (n + 1) // 2
    lay_factors(b, d, &s, &w, &arena)
    ready_factors(b, &s, &w)
    # of a response that is nothing but what no effect reaches; the arena begins with zeros
    (<vecu*> s.within)[p] = VEC_SET(<double> b.n)
    while block < count:
        for lane in range(LANES):
            at = block + lane if block + lane < count else count - 1
            for i in range(n):
                s.theta[i * LANES + lane] = theta[at * n + i]
        set_factor(b, &s, <vecu*> s.theta)
        evaluate_factors(b, &s, 1)
        for lane in range(LANES if count - block > LANES else count - block):
            at = block + lane
            for i in range(p):
                for j in range(p):
                    out.half[(at * p + i) * p + j] = s.f.gls.inverse[(i * k + j) * LANES + lane] if j <= i else 0.0
                    for t in range(n):
                        out.cross[((at * n + t) * p + i) * p + j] = w.cross[((t * k + i) * k + j) * LANES + lane]
                    for t in range(size):
                        out.both[((at * size + t) * p + i) * p + j] = w.both[((t * k + i) * k + j) * LANES + lane]
            for t in range(n):
                out.trace[at * n + t] = w.trace[t * LANES + lane]
            for t in range(size):
                out.square[at * size + t] = w.square[t * LANES + lane]
        block += LANES


offered.factors_size = &factors_size
offered.factors_fit = &factors_fit
offered.factors_moments = &factors_moments
