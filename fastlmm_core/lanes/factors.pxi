# Many responses on one design with several grouping factors, several at a time: the lanes are responses.
#
# All random effects are independent: L is diagonal, G = diag(g), g_t = theta_t^2 for the effects of term t.  The levels
# of one term, the leaves, have no rows in common; the effects of the other terms, the core, fall apart into parts that
# share no leaf and no row.  Rows are whitened; a leaf with a = z'z has the unit vector u = z / sqrt(a) and products
# c = u'[Z_2 X y], Z_2 the core.  With V_1 = I + g_0 Z_1 Z_1', what the leaves leave of the others (`within`),
# and s = 1 / (1 + g_0 a)
#
#     B  = [Z_2 X y]'V_1^-1 [Z_2 X y]  = within + sum s c'c
#     M' = -dB / dg_0                  = sum a s^2 c'c,        M'' = sum a^2 s^3 c'c
#
# where leaves with the same a (a pattern) share s, so that the sums over them are made once: they cost no more than the
# patterns of a part (its pieces).  With W = I + L_2 B_22 L_2, P = (I + B_22 G_2)^-1 = L_2^-1 W^-1 L_2
# and columns k = [X y]
#
#     log|V| = sum log(1 + g_0 a) + log|W|,           H = B_kk - (L_2 B_2k)'W^-1 (L_2 B_2k)
#     E = P B_2k,  N = P B_22  (core);                T = G_2 E,  X = M'_2k - M'_22 T,  Y = P M'_22,  Q = G_2 P
#     J_0 = M'_kk - M'_2k'T - T'X,                    J_t = E_t'E_t
#     R_00 = M''_kk - M''_2k'T - T'(M''_2k - M''_22 T) - X'Q X,   R_0t = (P X)_t'E_t,   R_tu = E_t'N_tu E_u
#     tr N_00 = sum a s - tr(Q M'_22),                |N_00|^2 = sum a^2 s^2 - 2 tr(Q M''_22) + tr(G_2 Y G_2 Y)
#     |N_0t|^2 = tr_t(Y P')
#
# for J_t = sum E'D_t E and R_tu = E'D_t N D_u E of Z'V^-1[X y] and Z'V^-1 Z of all effects,
# by which (2 M = w w' of gls.pxi)
#
#     d_t d      = tr N_tt - tr(M J_t)
#     d_t d_u d  = -|N_tu|^2 + 2 tr(M R_tu) + (what gls.pxi gives)
#
# Only y differs between the lanes at one theta; theta is in units of sqrt(levels / n),
# in which the columns of Z are given.

cdef enum:
    MOST_STARTS = 48

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

cdef void take_means(const Batch* b, const double* x, Lanes* s, vecu* rows) noexcept nogil:
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
        for i in range(b.n):
            t = rows[i]
            for j in range(p):
                change[j] = change[j] + x[i * p + j] * t
        for i in range(b.n):
            t = rows[i]
            for j in range(p):
                t = t - x[i * p + j] * change[j]
            rows[i] = t
        for j in range(p):
            beta[j] = beta[j] + change[j]


cdef void read_whitened(const Batch* b, Lanes* s, const double* x, const double* root, double* rows_out,
                        const double* Y, vec* residual) noexcept nogil:
    """Whitened residuals of the rows of Y at s.place, and their sum of squares;
    nothing where a response is constant."""
    cdef Py_ssize_t i, lane
    cdef vecu* rows = <vecu*> rows_out
    cdef vec t, first, spread, total
    cdef Reading r
    for lane in range(LANES):
        r.row[lane] = Y + s.place[lane] * b.n
        r.shift[lane] = r.row[lane][0] if b.centre else 0.0
    for i in range((b.n + TILE_ROWS - 1) // TILE_ROWS):
        fill_tile(b, &r, rows_out + i * TILE_ROWS * LANES, i * TILE_ROWS)
    spread = VEC_SET(0.0)
    first = rows[0]
    for i in range(b.n):
        t = rows[i]
        spread = spread + VEC_ABS(t - first)
        if b.offset != NULL:
            t = t - b.offset[i]
        if root != NULL:
            t = t * root[i]
        rows[i] = t
    # what X explains but for rounding is nothing
    total = VEC_SET(0.0)
    for i in range(b.n):
        total = total + rows[i] * rows[i]
    first = total * 1e-30
    take_means(b, x, s, rows)
    total = VEC_SET(0.0)
    for i in range(b.n):
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
