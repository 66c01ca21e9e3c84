# Many problems, each with its own design, several at a time: the lanes are problems.
#
# The groups of the problems of a block stand side by side, group by group; what has fewer is filled up with zeros,
# which add nothing to any sum.  The search is that of newton.pxi.  Indices are proven by the caller
# (see one_factor/each.pyx).

cdef void lay_problems(const Batch* d, const Screen* screen, Py_ssize_t m, Lanes* s, OwnGroups* own, Minima* found,
                       Arena* arena) noexcept nogil:
    """Take the work space of a block of problems with up to m groups."""
    cdef Py_ssize_t q = d.q, k = d.p + 1, n_a = q * (q + 1) // 2, n_c = q * k
    lay_lanes(d, s, arena)
    own.offset = take(arena, LANES)
    own.base = take(arena, LANES * d.p_full)
    found.values = take(arena, LANES * most_points(screen))
    found.theta = take(arena, LANES * d.n_par)
    found.runs = take(arena, MOST_RUNS * d.n_par)
    if d.lines != NULL:
        lay_lines(d, s, own, arena)
        return
    own.packed = take(arena, LANES * m * (n_a + n_c))
    own.store = take(arena, LANES * m * (n_a + n_c))
    own.within = take(arena, LANES * (k * (k + 1) // 2))
    own.moments = take(arena, LANES * 2 * n_a)
    own.weighted = take(arena, LANES * n_a * (q * d.p * (q * d.p + 1) // 2))
    # sweeps: 3 q^2 + q k; packing: q^2 + q k + 2 q + k^2 + q^2; moments: p^2 + q p
    s.small = take(arena, LANES * max(max(5 * q * q + 2 * n_c + 2 * q + k * k, d.n_par * (d.n_par + 2)), 2 * k * k))


cdef inline void spread_lanes(const ProblemSums* sums, Py_ssize_t n, int which, double* vectors) noexcept nogil:
    """An array of each problem to its lane; which: 0 Tz, 1 Tx, 2 S, 3 x_map."""
    cdef Py_ssize_t lane, i
    cdef const double* source
    for lane in range(LANES):
        source = sums[lane].Tz
        if which == 1:
            source = sums[lane].Tx
        elif which == 2:
            source = sums[lane].S
        elif which == 3:
            source = sums[lane].x_map
        for i in range(n):
            vectors[i * LANES + lane] = source[i]


cdef inline void read_problems(Py_ssize_t q, Py_ssize_t k, const ProblemSums* sums, Py_ssize_t g, double* full,
                               double* C) noexcept nogil:
    """A (both triangles) and C of group g of each problem; zeros where it has fewer."""
    cdef Py_ssize_t line = q * (q + 1) // 2 + q * k + 1, lane, a, b, j, pos
    cdef const double* source
    for lane in range(LANES):
        if g < sums[lane].m:
            source = sums[lane].raw + g * line
            pos = 0
            for a in range(q):
                for b in range(a + 1):
                    full[(a * q + b) * LANES + lane] = source[pos]
                    full[(b * q + a) * LANES + lane] = source[pos]
                    pos = pos + 1
            for j in range(q * k):
                C[j * LANES + lane] = source[pos + j]
        else:
            for j in range(q * q):
                full[j * LANES + lane] = 0.0
            for j in range(q * k):
                C[j * LANES + lane] = 0.0


cdef inline void rotate_problems(Py_ssize_t q, Py_ssize_t k, const vecu* Tz, const vecu* Tx, vecu* full, vecu* C,
                                 vecu* bound, vecu* size) noexcept nogil:
    """`rotate_groups` with columns of each lane's own."""
    cdef Py_ssize_t a, b, j, l
    cdef vec t
    for a in range(q):
        size[a] = VEC_SQRT(full[a * q + a])
    for a in range(q):
        t = VEC_SET(0.0)
        for b in range(a + 1):
            t = t + size[b] * VEC_ABS(Tz[b * q + a])
        bound[a] = t * t * 2e-14
    for a in range(q):
        for b in range(q - 1, -1, -1):
            t = VEC_SET(0.0)
            for l in range(b + 1):
                t = t + full[a * q + l] * Tz[l * q + b]
            full[a * q + b] = t
        for j in range(k - 1, -1, -1):
            t = VEC_SET(0.0)
            for l in range(j + 1):
                t = t + C[a * k + l] * Tx[l * k + j]
            C[a * k + j] = t
    for a in range(q - 1, -1, -1):
        for b in range(q):
            t = VEC_SET(0.0)
            for l in range(a + 1):
                t = t + full[l * q + b] * Tz[l * q + a]
            full[a * q + b] = t
        for j in range(k):
            t = VEC_SET(0.0)
            for l in range(a + 1):
                t = t + C[l * k + j] * Tz[l * q + a]
            C[a * k + j] = t


cdef inline void pack_groups(Py_ssize_t q, Py_ssize_t k, const ProblemSums* sums, Lanes* s, OwnGroups* own
                             ) noexcept nogil:
    """R and c of all groups, the moments for a start, and sum c'c in `within`."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, g, a, b, pos
    cdef vecu* full = <vecu*> s.small
    cdef vecu* C = full + q * q
    cdef vecu* bound = C + n_c
    cdef vecu* size = bound + q
    cdef vecu* Tz = size + q
    cdef vecu* Tx = Tz + q * q
    cdef vecu* R
    cdef vecu* within = <vecu*> own.within
    cdef vecu* moments = <vecu*> own.moments
    spread_lanes(sums, q * q, 0, <double*> Tz)
    spread_lanes(sums, k * k, 1, <double*> Tx)
    for pos in range(k * (k + 1) // 2):
        within[pos] = VEC_SET(0.0)
    for pos in range(2 * n_a):
        moments[pos] = VEC_SET(0.0)
    for g in range(own.m):
        R = (<vecu*> own.packed) + g * (n_a + n_c)
        read_problems(q, k, sums, g, <double*> full, <double*> C)
        rotate_problems(q, k, Tz, Tx, full, C, bound, size)
        pos = 0
        for a in range(q):
            for b in range(a + 1):
                moments[pos] = moments[pos] + C[a * k + k - 1] * C[b * k + k - 1]
                moments[n_a + pos] = moments[n_a + pos] + full[a * q + a] * full[b * q + b]
                pos = pos + 1
        take_root(q, k, bound, full, C, R, R + n_a)
        add_crossed(q, k, R + n_a, within)


cdef inline void leave_within(Py_ssize_t k, const ProblemSums* sums, Lanes* s, OwnGroups* own) noexcept nogil:
    """within <- Tx'S Tx - within; 1 for the columns left out, which then change nothing."""
    cdef Py_ssize_t i, j, l, pos = 0, lane
    cdef vecu* T = <vecu*> s.small
    cdef vecu* half = T + k * k
    cdef vecu* S = <vecu*> s.f.gls.H
    cdef vecu* within = <vecu*> own.within
    cdef vec t
    spread_lanes(sums, k * k, 1, <double*> T)
    spread_lanes(sums, k * (k + 1) // 2, 2, <double*> S)
    for i in range(k):
        for j in range(k):
            t = VEC_SET(0.0)
            for l in range(j + 1):
                t = t + S[i * (i + 1) // 2 + l if i >= l else l * (l + 1) // 2 + i] * T[l * k + j]
            half[i * k + j] = t
    for i in range(k):
        for j in range(i + 1):
            t = VEC_SET(0.0)
            for l in range(i + 1):
                t = t + T[l * k + i] * half[l * k + j]
            within[pos] = t - within[pos]
            pos += 1
    for lane in range(LANES):
        for i in range(k):
            if sums[lane].Tx[i * k + i] == 0.0:
                own.within[(i * (i + 1) // 2 + i) * LANES + lane] = 1.0


cdef void clear_exact_columns(Py_ssize_t k, Fates* f, OwnGroups* own, double* L) noexcept nogil:
    """Set to zero what is nothing within groups but rounding error; lanes whose sums have lost digits get status 0.

    L : (k, k) work space
    """
    cdef Py_ssize_t lane, i, j, l, p = k - 1, at
    cdef double t
    for lane in range(LANES):
        # regression of y on the columns within groups (see `within_regression` of small/matrices.pyx)
        for i in range(k):
            for j in range(i + 1):
                t = own.within[(i * (i + 1) // 2 + j) * LANES + lane]
                for l in range(j):
                    t -= L[i * k + l] * L[j * k + l]
                if j < i:
                    L[i * k + j] = t / L[j * k + j] if L[j * k + j] > 0.0 else 0.0
                elif i < p:
                    L[i * k + i] = sqrt(t) if t > EXACT_WITHIN else 0.0
                elif not t >= MOSTLY_BETWEEN * PROBLEM_SIZE:
                    f.status[lane] = LEFT_ALONE
        for i in range(p):
            if own.within[(i * (i + 1) // 2 + i) * LANES + lane] <= EXACT_WITHIN:
                for j in range(k):
                    at = i * (i + 1) // 2 + j if i >= j else j * (j + 1) // 2 + i
                    own.within[at * LANES + lane] = 0.0


cdef double EXACT_WITHIN = 1e-12
"""A column of [X y] whose part within groups is relatively smaller lies in the span of Z_i."""

cdef double MOSTLY_BETWEEN = 1e-6
"""Share of the variation of y within groups below which sums of squares have lost digits."""


cdef void leave_unidentified(Py_ssize_t q, Py_ssize_t k, const ProblemSums* sums, Fates* f, OwnGroups* own
                             ) noexcept nogil:
    """Lanes of which it does not show that parameters are identified get a status
    (see `vary_freely`, newton/screen.pyx)."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, stride = n_a + q * k, line = stride + 1
    cdef Py_ssize_t lane, g, a, at, m, found, wanted
    cdef double least
    cdef bint taken
    for lane in range(LANES):
        m = sums[lane].m
        wanted = 2 * sums[lane].rank + 1
        least = 1e-4 / sqrt(<double> m)
        found = 0
        for g in range(min(m, 4 * wanted + 8)):
            taken = sums[lane].raw[(g + 1) * line - 1] > q
            at = 0
            for a in range(q, 0, -1):
                taken = taken and own.packed[(g * stride + at) * LANES + lane] > least
                at += a
            found += taken
        if found < wanted:
            f.status[lane] = LEFT_ALONE


cdef inline vec whiten_own(Py_ssize_t q, Py_ssize_t k, const vecu* R, const vecu* factor, const Whitened* s
                           ) noexcept nogil:
    """`whiten` with a factor of each lane's own."""
    cdef Py_ssize_t a, b, l, j
    cdef vecu* U = s.U
    cdef vecu* W = s.W
    cdef vec t
    cdef vec one = VEC_SET(1.0)
    cdef const vecu* row = R
    cdef const vecu* c = R + q * (q + 1) // 2
    for a in range(q):
        for b in range(q):
            t = VEC_SET(0.0)
            for l in range(a, q):
                t = t + row[l - a] * factor[l * q + b]
            U[a * q + b] = t
        for b in range(q):
            s.Y[a * q + b] = row[b - a] if b >= a else VEC_SET(0.0)
        row = row + (q - a)
        for j in range(k):
            s.D[a * k + j] = c[a * k + j]
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + U[a * q + l] * U[b * q + l]
            W[a * q + b] = t
        W[a * q + a] = W[a * q + a] + one
    return eliminate(q, W, q, s.Y, k, s.D, NULL)


cdef inline void sweep_problems(Py_ssize_t q, Py_ssize_t k, Lanes* s, int order) noexcept nogil:
    """First sweep at f.factor: logdet and H, for derivatives also sum_n and gram; keeps N and E for the second."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, n_h = k * (k + 1) // 2, g, pos
    cdef const OwnGroups* own = s.own
    cdef vecu* sum_n = <vecu*> s.f.sum_n
    cdef vecu* H = <vecu*> s.f.gls.H
    cdef vecu* gram = <vecu*> s.f.gram
    cdef vecu* N
    cdef Whitened w = lay_whitened(q, s.small)
    cdef vec det, product, exponent
    product = VEC_SET(1.0)
    exponent = VEC_SET(0.0)
    for pos in range(n_h):
        H[pos] = (<vecu*> own.within)[pos]
    for pos in range(n_a if order > 0 else 0):
        sum_n[pos] = VEC_SET(0.0)
    for pos in range(n_c * (n_c + 1) // 2 if order > 0 else 0):
        gram[pos] = VEC_SET(0.0)
    for g in range(own.m):
        det = whiten_own(q, k, (<vecu*> own.packed) + g * (n_a + n_c), <vecu*> s.f.factor, &w)
        product = product * det
        VEC_SPLIT(product, exponent)
        add_crossed(q, k, w.D, H)
        if order > 0:
            N = (<vecu*> own.store) + g * (n_a + n_c)
            set_crossed(q, w.Y, N)
            for pos in range(n_a):
                sum_n[pos] = sum_n[pos] + N[pos]
            set_product(q, k, w.Y, w.D, N + n_a)
    if order > 0:
        add_outers(n_c, own.m, n_a + n_c, (<vecu*> own.store) + n_a, gram)
    (<vecu*> s.f.gls.logdet)[0] = VEC_LOG(product) + exponent * M_LN2


cdef inline void curve_problems(Py_ssize_t q, Py_ssize_t k, Py_ssize_t first, Lanes* s) noexcept nogil:
    """Second sweep: tensor = sum B_i (x) N_i."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, g, a, j, l, pos
    cdef vecu* tensor = <vecu*> s.f.tensor
    cdef vecu* weight = <vecu*> s.f.gls.weight
    cdef vecu* F = <vecu*> s.small
    cdef vecu* B = F + n_c
    cdef const vecu* N
    cdef const vecu* E
    cdef vec t
    for pos in range(n_a * n_a):
        tensor[pos] = VEC_SET(0.0)
    for g in range(s.own.m):
        N = (<vecu*> s.own.store) + g * (n_a + n_c)
        E = N + n_a
        for a in range(q):
            for j in range(first, k):
                t = VEC_SET(0.0)
                for l in range(j + 1):
                    t = t + E[a * k + l] * weight[l * k + j]
                F[a * k + j] = t
        for pos in range(n_a):
            B[pos] = VEC_SET(0.0) - N[pos]
        add_forms(q, k, first, F, B)
        add_tensor(n_a, B, N, tensor)


include "pairs.pxi"


cdef void evaluate_problems(const Batch* d, Lanes* s, int order) noexcept nogil:
    """The criterion of a block of problems at f.factor with its derivatives (order 1 or 2)."""
    cdef Py_ssize_t k = d.p + 1, first = 0 if d.reml else d.p
    if d.lines != NULL:
        evaluate_lines(d, s, order)
        return
    if d.q == 1 and k == 2:
        sweep_problems(1, 2, s, order)
    elif d.q == 1 and k == 3:
        sweep_problems(1, 3, s, order)
    elif d.q == 1:
        sweep_problems(1, k, s, order)
    elif d.q == 2 and k == 2:
        sweep_pairs(2, s, order)
    elif d.q == 2 and k == 3:
        sweep_pairs(3, s, order)
    elif d.q == 2 and k == 4:
        sweep_pairs(4, s, order)
    elif d.q == 2 and k == MOST_PAIRED:
        sweep_pairs(MOST_PAIRED, s, order)
    elif d.q == 2:
        sweep_problems(2, k, s, order)
    else:
        sweep_problems(d.q, k, s, order)
    profile_value(&s.f, order)
    if order < 2:
        return
    if d.q == 1 and k == 3:
        curve_problems(1, 3, first, s)
    elif d.q == 1:
        curve_problems(1, k, first, s)
    elif d.q == 2 and k == 3 and first == 0:
        curve_pairs(3, 0, s)
    elif d.q == 2 and k == 4 and first == 0:
        curve_pairs(4, 0, s)
    elif d.q == 2:
        curve_problems(2, k, first, s)
    else:
        curve_problems(d.q, k, first, s)
    profile_second(&s.f, 2)


cdef void start_problems(const Batch* d, const ProblemSums* sums, Lanes* s, OwnGroups* own) noexcept nogil:
    """theta from the second moments of Z_i'r_i, r the residual of least squares, kept away from singular matrices.

    As if the groups were alike, E z_a z_b = m (G_ab A_aa A_bb + [a = b] A_aa) sigma^2.
    """
    cdef Py_ssize_t q = d.q, n_a = q * (q + 1) // 2, a, b, l, i, pos = 0, lane
    cdef vecu* theta = <vecu*> s.theta
    cdef vecu* G = <vecu*> s.small
    cdef vecu* moments = <vecu*> own.moments
    cdef vec t, sigma2, floor, m, one
    if d.lines != NULL:
        if d.lines.spanned:
            start_balanced(d, s, own)
        else:
            start_lines(d, s, own)
        return
    one = VEC_SET(1.0)
    m = one
    sigma2 = one
    for lane in range(LANES):
        (<double*> &m)[lane] = sums[lane].m
        (<double*> &sigma2)[lane] = (
            own.within[((d.p + 1) * (d.p + 2) // 2 - 1) * LANES + lane] / max(sums[lane].n - sums[lane].m * q, 1.0))
    floor = VEC_SET(0.1)
    for a in range(q):
        for b in range(a + 1):
            t = moments[pos] / sigma2
            if a == b:
                t = t - m
            l = n_a + pos
            t = VEC_WHERE_POSITIVE(moments[l], t / VEC_WHERE_POSITIVE(moments[l], moments[l], one), VEC_SET(0.0))
            G[a * q + b] = t if d.structure[a * q + b] else VEC_SET(0.0)
            pos = pos + 1
    for a in range(q):
        for b in range(a + 1):
            t = G[a * q + b]
            for l in range(b):
                t = t - G[a * q + l] * G[b * q + l]
            if b < a:
                G[a * q + b] = t / G[b * q + b]
            else:
                t = VEC_WHERE_POSITIVE(t - floor, t, floor)
                G[a * q + a] = VEC_SQRT(t)
    for i in range(d.n_par):
        theta[i] = G[d.row[i] * q + d.col[i]]


cdef void load_problems(const Batch* d, const ProblemSums* sums, Lanes* s, OwnGroups* own, Fates* f) noexcept nogil:
    """Everything of a block but the search."""
    cdef Py_ssize_t q = d.q, p = d.p, k = p + 1, lane, i
    own.m = 0
    for lane in range(LANES):
        own.m = max(own.m, sums[lane].m)
        s.f.gls.nu[lane] = sums[lane].nu
        own.offset[lane] = sums[lane].offset
        (<double*> &f.size)[lane] = sums[lane].scale
        f.status[lane] = 0
        f.evaluations[lane] = 0
    for i in range(p):
        (<vecu*> s.beta)[i] = VEC_SET(0.0)
    spread_lanes(sums, d.p_full * p, 3, s.x_map)
    if d.lines != NULL:
        load_lines(d, sums, own)
        return
    if q == 1 and k == 2:
        pack_groups(1, 2, sums, s, own)
    elif q == 1 and k == 3:
        pack_groups(1, 3, sums, s, own)
    elif q == 2 and k == 3:
        pack_groups(2, 3, sums, s, own)
    else:
        pack_groups(q, k, sums, s, own)
    leave_within(k, sums, s, own)
    clear_exact_columns(k, f, own, s.small)
    leave_unidentified(q, k, sums, f, own)


cdef void write_own_coefficients(const Batch* d, const ProblemSums* sums, Lanes* s, Fates* f, const Outcome* out,
                                 Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """Variance, coefficients and standard errors of a block of problems."""
    cdef Py_ssize_t lane, i
    cdef double* base = s.own.base
    for lane in range(LANES):
        for i in range(d.p_full):
            base[lane * d.p_full + i] = sums[lane].base[i]
    write_coefficients(d, s, f, out, base, d.p_full, first, count)


include "closer.pxi"
include "problem_fits.pxi"
include "problem_moments.pxi"
