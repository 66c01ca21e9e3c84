# Many responses on one design with several grouping factors, several at a time, where effects of a factor may be
# correlated: the lanes are responses.
#
# The levels of one factor, the leaves, have no rows in common; the effects of the other factors, the core, fall apart
# into parts that share no leaf and no row.  Rows are whitened.  With F the factor of one level, G_l = F F', and
# V_1 = I + sum over leaves of Z_l G_l Z_l', a leaf has R_l'R_l = Z_l'Z_l, U = R_l F, W_l = I + U U' = M M' and products
# c = R_l^-T Z_l'[Z_2 X y], Z_2 the core; Y = M^-1 R_l, D = M^-1 c, and
#
#     Z_l'V_1^-1 Z_l = Y'Y,    Z_l'V_1^-1 [Z_2 X y] = Y'D,    [Z_2 X y]'V_1^-1 [Z_2 X y] = within + sum D'D
#
# K is all of Z'V_1^-1 [Z_2 X y], the core's rows first; B = K_22.  With L_2 the factors of the core's levels side by
# side, W = I + L_2'B L_2 = M M', S = M^-1 L_2', A = S K_.2' (of every effect of the part), for the columns k = [X y]
#
#     log|V| = sum log|W_l| + log|W|,      H = K_kk - (S K_2k)'(S K_2k)
#     E = Z'V^-1 k = K_.k - K_.2 S'S K_2k,      N = Z'V^-1 Z = Z'V_1^-1 Z - A'A
#
# where Z'V_1^-1 Z is K_.2 for pairs with the core, Y'Y for a leaf with itself, and nothing for two leaves.  N is taken
# level by level and never kept.  For directions D of the effects of factor f, F of those of g,
# with B = -N + E w w'E' (w of gls.pxi)
#
#     d_D d = sum over levels of tr(D (N_ll - E_l M E_l'))
#     d_D d_F d = sum over levels h of g and l of f of tr(B_hl D N_lh F) + (what gls.pxi gives)
#
# and the chain to theta is that of one factor: all effects side by side have one G^, zero between factors
# (see profile.pxi).  Theta is in units of sqrt(levels / n), in which the columns of Z are given;
# the factor of the leaves comes last.

cdef enum:
    MOST_WIDE = 4       # effects of a level: so many rows of N are summed in registers


cdef struct CorrelatedSpace:
    # Work space of a block of responses; all pointers but `before` are to vectors.
    const CorrelatedDesign* d
    double* rows        # (n,) whitened residuals of least squares
    double* leaf        # (n_leaves, q_1) c_y
    double* within_cy   # (n_core,)
    double* K           # of each part (effects, J + k)
    double* A           # of each part (effects, J), A'
    double* E           # of each part (effects, k)
    double* own         # (n_leaves, q_1, q_1) Y'Y
    # of one part
    double* W           # (J, J)
    double* S           # (J, J + k)
    double* turned      # (J, J) S', from L_2 on
    double* across      # (J + k, leaves q_1) D of the leaves of a part, by columns
    double* Sk          # (J, k) S K_2k
    double* T           # (k, J) S'S K_2k, by columns
    double* Y           # (q_1, q_1), and U and W of a leaf
    double* D           # (q_1, J + k)
    double* F           # (effects, k) E w
    double* panel       # (MOST_WIDE, effects) rows of N of some levels, and sums on the way
    # sums over levels
    double* tensor      # (pairs of factors, MOST_WIDE^4) B (x) N
    double* both        # the same with E_x at both ends (pairs, MOST_WIDE^4, p, p): of moments only
    double* ends        # (MOST_WIDE^3, p): of moments only
    double* values      # (n_points,)
    double* squares     # (n_leaves, q_1 (q_1 + 1) / 2)
    double* before      # (k,) numbers: diagonal of [X y]'[X y]


cdef void lay_correlated(const Batch* b, const CorrelatedDesign* d, Lanes* s, CorrelatedSpace* w, Arena* arena,
                         bint tests) noexcept nogil:
    """Take the work space of a block of responses; `tests`: for the moments of a design."""
    cdef Py_ssize_t J = d.widest, p = b.p, k = p + 1, q = d.q_leaf, pairs = d.n_factors * (d.n_factors + 1) // 2
    cdef Py_ssize_t most = MOST_WIDE * MOST_WIDE * MOST_WIDE
    lay_lanes(b, s, arena)
    w.d = d
    w.rows = take(arena, LANES * d.n)
    w.leaf = take(arena, LANES * d.n_leaves * q)
    w.within_cy = take(arena, LANES * d.n_core)
    w.K = take(arena, LANES * (d.square[d.n_parts] + d.effects[d.n_parts] * k))
    w.A = take(arena, LANES * d.square[d.n_parts])
    w.E = take(arena, LANES * d.effects[d.n_parts] * k)
    w.own = take(arena, LANES * d.n_leaves * q * q)
    w.W = take(arena, LANES * J * J)
    w.S = take(arena, LANES * J * (J + k))
    w.turned = take(arena, LANES * J * J)
    w.across = take(arena, LANES * (J + k) * d.most)
    w.Sk = take(arena, LANES * J * k)
    w.T = take(arena, LANES * J * k)
    w.Y = take(arena, LANES * 3 * q * q)
    w.D = take(arena, LANES * q * (J + k))
    w.F = take(arena, LANES * d.most * k)
    w.panel = take(arena, LANES * MOST_WIDE * (d.most + k))
    w.tensor = take(arena, LANES * pairs * most * MOST_WIDE)
    w.both = take(arena, LANES * pairs * most * MOST_WIDE * p * p) if tests else NULL
    w.ends = take(arena, LANES * most * p) if tests else NULL
    w.values = take(arena, LANES * d.screen.n_points)
    w.squares = take(arena, LANES * d.n_leaves * (q * (q + 1) // 2))
    w.before = take(arena, k)


cdef Py_ssize_t correlated_size(const Batch* b, const CorrelatedDesign* d, bint tests) noexcept nogil:
    """Doubles of work space that `correlated_fit`, or with `tests` `correlated_moments`, needs."""
    cdef Lanes s
    cdef CorrelatedSpace w
    cdef Arena arena = Arena(NULL, 0)
    lay_correlated(b, d, &s, &w, &arena, tests)
    return arena.used


# ------------------------------------------------------------------------------------------------------------ reading

cdef void file_correlated(const Batch* b, Lanes* s, CorrelatedSpace* w) noexcept nogil:
    """c_y of each leaf, and what is left within leaves: cross-products with the core, X and itself."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t p = b.p, q = d.q_leaf, i, j, a
    cdef vecu* rows = <vecu*> w.rows
    cdef vecu* own
    cdef vecu* within_cy = <vecu*> w.within_cy
    cdef vecu* within = <vecu*> s.within
    cdef vec t
    for i in range(d.n_leaves * q):
        (<vecu*> w.leaf)[i] = VEC_SET(0.0)
    for i in range(d.n_core):
        within_cy[i] = VEC_SET(0.0)
    for j in range(p + 1):
        within[j] = VEC_SET(0.0)
    for i in range(d.n):
        own = (<vecu*> w.leaf) + d.leaf[i] * q
        for a in range(q):
            own[a] = own[a] + d.unit[i * q + a] * rows[i]
    for i in range(d.n):
        own = (<vecu*> w.leaf) + d.leaf[i] * q
        t = rows[i]
        for a in range(q):
            t = t - d.unit[i * q + a] * own[a]
        within[p] = within[p] + t * t
        for j in range(p):
            within[j] = within[j] + d.x[i * p + j] * t
        for j in range(i * d.n_slots, (i + 1) * d.n_slots):
            within_cy[d.slot[j]] = within_cy[d.slot[j]] + d.value[j] * t


cdef void load_correlated(const Batch* b, Lanes* s, CorrelatedSpace* w, Fates* f, const double* Y) noexcept nogil:
    """What the responses at s.place contribute, y by its size; nothing is left of a response that was set aside."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t lane, i
    cdef vec inverse
    read_whitened(b, s, d.x, d.root, w.rows, Y, &f.total)
    file_correlated(b, s, w)
    set_aside(b, s, f)
    f.size = VEC_SQRT(f.total * (1.0 / <double> b.n))
    rescale_responses(b, s, &f.size)
    for lane in range(LANES):
        for i in range(d.n_leaves * d.q_leaf if f.status[lane] != 0 else 0):
            w.leaf[i * LANES + lane] = 0.0
        for i in range(d.n_core if f.status[lane] != 0 else 0):
            w.within_cy[i * LANES + lane] = 0.0
    inverse = VEC_SET(1.0) / f.size
    multiply_lanes(d.n_leaves * d.q_leaf, w.leaf, inverse)
    multiply_lanes(d.n_core, w.within_cy, inverse)
