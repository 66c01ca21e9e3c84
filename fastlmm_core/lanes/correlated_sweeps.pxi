# The criterion of many responses with several factors of correlated effects and its derivatives, by correlated.pxi.


# A part of the core with its leaves.
cdef struct Part:
    Py_ssize_t J, k         # effects of the core; columns of [X y]
    Py_ssize_t first        # effect of the core
    Py_ssize_t leaf, n_leaves   # first leaf, and how many
    Py_ssize_t effects      # J + n_leaves q_1
    vecu* K                 # (effects, J + k)
    vecu* A                 # (effects, J)
    vecu* E                 # (effects, k)


# Levels one after the other: the place of a level's first effect in its part, and the factor that it is of.
cdef struct Level:
    Py_ssize_t at, factor, width, effect    # effect: the first of the factor among all


cdef inline Part part_of(const Batch* b, CorrelatedSpace* w, Py_ssize_t part) noexcept nogil:
    cdef const CorrelatedDesign* d = w.d
    cdef Part own
    own.J = d.core[part + 1] - d.core[part]
    own.k = b.p + 1
    own.first = d.core[part]
    own.leaf = d.leaves[part]
    own.n_leaves = d.leaves[part + 1] - d.leaves[part]
    own.effects = own.J + own.n_leaves * d.q_leaf
    own.K = (<vecu*> w.K) + d.square[part] + d.effects[part] * own.k
    own.A = (<vecu*> w.A) + d.square[part]
    own.E = (<vecu*> w.E) + d.effects[part] * own.k
    return own


cdef inline Level level_at(const CorrelatedDesign* d, const Part* own, Py_ssize_t at) noexcept nogil:
    """The level whose first effect is at a place of a part."""
    cdef Level level
    level.at = at
    level.factor = d.factor[own.first + at] if at < own.J else d.n_factors - 1
    level.effect = d.column[level.factor]
    level.width = d.column[level.factor + 1] - level.effect
    return level


# Rows of a matrix, `step` apart.
cdef struct Rows:
    vecu* at
    Py_ssize_t step


cdef inline Rows rows_at(const void* at, Py_ssize_t step) noexcept nogil:
    cdef Rows rows
    rows.at = <vecu*> at
    rows.step = step
    return rows


cdef inline void dots(Py_ssize_t m, Py_ssize_t n, Py_ssize_t length, Rows a, Rows b, Rows out) noexcept nogil:
    """out (m, n) = a b', m and n up to 4 and constant."""
    cdef Py_ssize_t i, j, l
    cdef vec sums[16]
    cdef vec t
    for i in range(m * n):
        sums[i] = VEC_SET(0.0)
    for l in range(length):
        for i in range(m):
            t = a.at[i * a.step + l]
            for j in range(n):
                sums[i * n + j] = sums[i * n + j] + t * b.at[j * b.step + l]
    for i in range(m):
        for j in range(n):
            out.at[i * out.step + j] = sums[i * n + j]


cdef void dot_rows(Py_ssize_t m, Py_ssize_t n, Py_ssize_t length, Rows a, Rows b, Rows out) noexcept nogil:
    """`dots` for m up to 4 and any n."""
    cdef Py_ssize_t j = 0
    while j + 4 <= n:
        if m == 4:
            dots(4, 4, length, a, b, out)
        elif m == 3:
            dots(3, 4, length, a, b, out)
        elif m == 2:
            dots(2, 4, length, a, b, out)
        else:
            dots(1, 4, length, a, b, out)
        b.at += 4 * b.step
        out.at += 4
        j += 4
    while j < n:
        if m == 4:
            dots(4, 1, length, a, b, out)
        elif m == 3:
            dots(3, 1, length, a, b, out)
        elif m == 2:
            dots(2, 1, length, a, b, out)
        else:
            dots(1, 1, length, a, b, out)
        b.at += b.step
        out.at += 1
        j += 1


# ------------------------------------------------------------------------------------------------------- the criterion

cdef inline vec whiten_leaf(Py_ssize_t q, Py_ssize_t columns, const double* R, const Batch* b, Lanes* s,
                            CorrelatedSpace* w) noexcept nogil:
    """Y, and D from c, of a leaf; the determinant |W_l|."""
    cdef Py_ssize_t a, c, l, pos = 0, first = b.q - q
    cdef vecu* Y = <vecu*> w.Y
    cdef vecu* U = Y + q * q
    cdef vecu* W = U + q * q
    cdef const vecu* F = (<vecu*> s.f.factor) + first * b.q + first
    cdef vec t
    for a in range(q):
        for c in range(q):
            t = VEC_SET(0.0)
            for l in range(a, q):
                t = t + R[pos + l - a] * F[l * b.q + c]
            U[a * q + c] = t
            Y[a * q + c] = VEC_SET(R[pos + c - a] if c >= a else 0.0)
        pos += q - a
    for a in range(q):
        for c in range(a + 1):
            t = VEC_SET(1.0 if a == c else 0.0)
            for l in range(q):
                t = t + U[a * q + l] * U[c * q + l]
            W[a * q + c] = t
    return eliminate(q, W, q, Y, columns, <vecu*> w.D, NULL)


cdef inline void add_leaf(Py_ssize_t q, const Batch* b, Lanes* s, CorrelatedSpace* w, const Part* own, Py_ssize_t leaf,
                          vec* product) noexcept nogil:
    """D of a leaf, by columns, in `across`; D'D of [X y] to H, its rows of K, and Y'Y."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t J = own.J, k = own.k, p = k - 1, columns = J + k, a, c, i, j, pos = 0
    cdef vecu* D = <vecu*> w.D
    cdef vecu* Y = <vecu*> w.Y
    cdef vecu* H = <vecu*> s.f.gls.H
    cdef vecu* K
    cdef const double* core = d.leaf_core + d.leaf_at[leaf]
    cdef const double* x = d.leaf_x + leaf * q * p
    cdef vec t
    for a in range(q):
        for j in range(J):
            D[a * columns + j] = VEC_SET(core[a * J + j])
        for j in range(p):
            D[a * columns + J + j] = VEC_SET(x[a * p + j])
        D[a * columns + J + p] = (<vecu*> w.leaf)[leaf * q + a]
    product[0] = product[0] * whiten_leaf(q, columns, d.R + leaf * (q * (q + 1) // 2), b, s, w)
    K = own.K + (J + (leaf - own.leaf) * q) * columns
    for a in range(q):
        for j in range(columns):
            t = Y[a] * D[j]
            for c in range(1, q):
                t = t + Y[c * q + a] * D[c * columns + j]
            K[a * columns + j] = t
        for c in range(q):
            t = VEC_SET(0.0)
            for i in range(q):
                t = t + Y[i * q + a] * Y[i * q + c]
            (<vecu*> w.own)[(leaf * q + a) * q + c] = t
    K = (<vecu*> w.across) + (leaf - own.leaf) * q
    for j in range(columns):
        for a in range(q):
            K[j * own.n_leaves * q + a] = D[a * columns + j]
    for i in range(J, columns):
        for j in range(J, i + 1):
            t = H[pos]
            for a in range(q):
                t = t + D[a * columns + i] * D[a * columns + j]
            H[pos] = t
            pos += 1


cdef void add_across(CorrelatedSpace* w, const Part* own) noexcept nogil:
    """sum D'D of the leaves of a part to K of its core, below the diagonal and beside [X y]."""
    cdef Py_ssize_t J = own.J, columns = J + own.k, length = own.n_leaves * w.d.q_leaf, i = 0, j, a, m
    cdef vecu* sums = <vecu*> w.panel
    cdef vecu* K
    cdef Rows across = rows_at(w.across, length)
    while i < J:
        m = min(4, J - i)
        dot_rows(m, i + m, length, rows_at(across.at + i * length, length), across, rows_at(sums, w.d.most + own.k))
        dot_rows(m, own.k, length, rows_at(across.at + i * length, length), rows_at(across.at + J * length, length),
                 rows_at(sums + i + m, w.d.most + own.k))
        for a in range(m):
            K = own.K + (i + a) * columns
            for j in range(i + a + 1):
                K[j] = K[j] + sums[a * (w.d.most + own.k) + j]
            for j in range(own.k):
                K[J + j] = K[J + j] + sums[a * (w.d.most + own.k) + i + m + j]
        i += m


cdef void gather_correlated(const Batch* b, Lanes* s, CorrelatedSpace* w, const Part* own, Py_ssize_t part,
                            vec* product, vec* exponent) noexcept nogil:
    """K of a part, what the leaves leave of H, and the determinants of the leaves."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t J = own.J, p = b.p, columns = J + own.k, i, j, pos = d.square_at[part], leaf
    for i in range(J):
        for j in range(i + 1):
            own.K[i * columns + j] = VEC_SET(d.within_cc[pos])
            pos += 1
        for j in range(p):
            own.K[i * columns + J + j] = VEC_SET(d.within_cx[(own.first + i) * p + j])
        own.K[i * columns + J + p] = (<vecu*> w.within_cy)[own.first + i]
    for leaf in range(own.leaf, own.leaf + own.n_leaves):
        if d.q_leaf == 1:
            add_leaf(1, b, s, w, own, leaf, product)
        elif d.q_leaf == 2:
            add_leaf(2, b, s, w, own, leaf, product)
        else:
            add_leaf(d.q_leaf, b, s, w, own, leaf, product)
        VEC_SPLIT(product[0], exponent[0])
    add_across(w, own)
    for i in range(J):
        for j in range(i + 1, J):
            own.K[i * columns + j] = own.K[j * columns + i]


cdef void set_core(const Batch* b, Lanes* s, CorrelatedSpace* w, const Part* own) noexcept nogil:
    """W = I + L_2'B L_2 (lower half); S is overwritten."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t J = own.J, columns = J + own.k, i, j, a, c, at = 0
    cdef vecu* W = <vecu*> w.W
    cdef vecu* S = <vecu*> w.S
    cdef const vecu* F
    cdef Level level
    cdef vec t
    # B L_2 in S
    while at < J:
        level = level_at(d, own, at)
        F = (<vecu*> s.f.factor) + level.effect * (b.q + 1)
        for i in range(J):
            for c in range(level.width):
                t = VEC_SET(0.0)
                for a in range(level.width):
                    t = t + own.K[i * columns + at + a] * F[a * b.q + c]
                S[i * J + at + c] = t
        at += level.width
    at = 0
    while at < J:
        level = level_at(d, own, at)
        F = (<vecu*> s.f.factor) + level.effect * (b.q + 1)
        for c in range(level.width):
            for j in range(at + c + 1):
                t = VEC_SET(1.0 if at + c == j else 0.0)
                for a in range(level.width):
                    t = t + F[a * b.q + c] * S[(at + a) * J + j]
                W[(at + c) * J + j] = t
        at += level.width


cdef void set_factors(const Batch* b, Lanes* s, CorrelatedSpace* w, const Part* own) noexcept nogil:
    """L_2 in the rows of `turned` (J, J)."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t J = own.J, i, a, c, at = 0
    cdef vecu* turned = <vecu*> w.turned
    cdef const vecu* F
    cdef Level level
    for i in range(J * J):
        turned[i] = VEC_SET(0.0)
    while at < J:
        level = level_at(d, own, at)
        F = (<vecu*> s.f.factor) + level.effect * (b.q + 1)
        for a in range(level.width):
            for c in range(level.width):
                turned[(at + a) * J + at + c] = F[a * b.q + c]
        at += level.width


cdef void factor_core(const Batch* b, Lanes* s, CorrelatedSpace* w, const Part* own, vec* product,
                      vec* exponent) noexcept nogil:
    """W = M M' and S = M^-1 L_2', row by row of M; the determinant to product and exponent.

    `turned` is S', of which row c begins with the level of effect c; rows of S are `columns` apart.
    """
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t J = own.J, columns = J + own.k, i, j, m
    cdef vecu* W = <vecu*> w.W
    cdef vecu* S = <vecu*> w.S
    cdef vecu* turned = <vecu*> w.turned
    cdef vecu* sums = <vecu*> w.panel
    cdef vec t, u
    set_factors(b, s, w, own)
    for i in range(J):
        # what the rows before have of the column i of M, four rows at a time
        j = i
        while j < J:
            m = min(4, J - j)
            dot_rows(m, 1, i, rows_at(W + j * J, J), rows_at(W + i * J, J), rows_at(sums, 1))
            while m > 0:
                W[j * J + i] = W[j * J + i] - sums[0]
                sums += 1
                j += 1
                m -= 1
            sums = <vecu*> w.panel
        t = W[i * J + i]
        product[0] = product[0] * t
        VEC_SPLIT(product[0], exponent[0])
        u = VEC_SET(1.0) / VEC_SQRT(t)
        W[i * J + i] = t * u
        for j in range(i + 1, J):
            W[j * J + i] = W[j * J + i] * u
        m = d.tail[own.first + i]
        dot_rows(1, m, i, rows_at(W + i * J, J), rows_at(turned, J), rows_at(sums, m))
        for j in range(m):
            turned[j * J + i] = (turned[j * J + i] - sums[j]) * u
            S[i * columns + j] = turned[j * J + i]
        for j in range(m, J):
            S[i * columns + j] = VEC_SET(0.0)


cdef void solve_core(Lanes* s, CorrelatedSpace* w, const Part* own) noexcept nogil:
    """S K_2k, which is taken out of H."""
    cdef Py_ssize_t J = own.J, k = own.k, columns = J + k, i, j, l, pos = 0
    cdef vecu* S = <vecu*> w.S
    cdef vecu* Sk = <vecu*> w.Sk
    cdef vecu* H = <vecu*> s.f.gls.H
    cdef vec t
    for i in range(J):
        for j in range(k):
            t = VEC_SET(0.0)
            for l in range(w.d.tail[own.first + i]):
                t = t + S[i * columns + l] * own.K[l * columns + J + j]
            Sk[i * k + j] = t
    for i in range(k):
        for j in range(i + 1):
            t = H[pos]
            for l in range(J):
                t = t - Sk[l * k + i] * Sk[l * k + j]
            H[pos] = t
            pos += 1


# --------------------------------------------------------------------------------------------------- first derivatives

cdef void turn_effects(CorrelatedSpace* w, const Part* own) noexcept nogil:
    """A = S K_.2' and E = K_.k - K_.2 S'S K_2k of all effects of a part."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t J = own.J, k = own.k, columns = J + k, i, j, l, e = 0, m, n
    cdef vecu* S = <vecu*> w.S
    cdef vecu* T = <vecu*> w.T
    cdef vecu* sums = <vecu*> w.panel
    cdef vecu* K
    cdef vec t
    for i in range(k):
        for j in range(J):
            t = VEC_SET(0.0)
            for l in range(J):
                t = t + S[l * columns + j] * (<vecu*> w.Sk)[l * k + i]
            T[i * J + j] = t
    while e < own.effects:
        m = min(4, own.effects - e)
        K = own.K + e * columns
        i = 0
        while i < J:
            n = min(4, J - i)
            # beyond its tail a row of S is zero, and tails do not fall
            dot_rows(m, n, d.tail[own.first + i + n - 1], rows_at(K, columns), rows_at(S + i * columns, columns),
                     rows_at(own.A + e * J + i, J))
            i += n
        dot_rows(m, k, J, rows_at(K, columns), rows_at(T, J), rows_at(sums, k))
        for i in range(m):
            for j in range(k):
                own.E[(e + i) * k + j] = K[i * columns + J + j] - sums[i * k + j]
        e += m


cdef void add_levels(Lanes* s, CorrelatedSpace* w, const Part* own) noexcept nogil:
    """N_ll to sum_n and E_l E_l' to gram for the levels of a part."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t J = own.J, k = own.k, columns = J + k, at = 0, a, c, i, j, l, pos
    cdef vecu* gram = <vecu*> s.f.gram
    cdef vecu* N = <vecu*> w.panel
    cdef const vecu* base
    cdef const vecu* E
    cdef Level level
    while at < own.effects:
        level = level_at(d, own, at)
        dot_rows(level.width, level.width, J, rows_at(own.A + at * J, J), rows_at(own.A + at * J, J),
                 rows_at(N, MOST_WIDE))
        E = own.E + at * k
        for a in range(level.width):
            if at < J:
                base = own.K + (at + a) * columns + at
            else:
                base = (<vecu*> w.own) + (own.leaf * d.q_leaf + at - J + a) * d.q_leaf
            for c in range(a + 1):
                pos = (level.effect + a) * (level.effect + a + 1) // 2 + level.effect + c
                (<vecu*> s.f.sum_n)[pos] = (<vecu*> s.f.sum_n)[pos] + (base[c] - N[a * MOST_WIDE + c])
                for i in range(k):
                    l = (level.effect + a) * k + i
                    pos = l * (l + 1) // 2 + (level.effect + c) * k
                    for j in range(i + 1 if a == c else k):
                        gram[pos + j] = gram[pos + j] + E[a * k + i] * E[c * k + j]
        at += level.width


cdef void sweep_correlated(const Batch* b, Lanes* s, CorrelatedSpace* w, bint derivatives) noexcept nogil:
    """H and |V| at f.factor; E, A, sum_n and gram for derivatives."""
    cdef const CorrelatedDesign* d = w.d
    cdef Py_ssize_t p = b.p, k = p + 1, n_c = b.q * k, part, i, pos = p * (p + 1) // 2
    cdef vec product, exponent
    cdef Part own
    for i in range(pos):
        (<vecu*> s.f.gls.H)[i] = VEC_SET(d.within_xx[i])
    for i in range(k):
        (<vecu*> s.f.gls.H)[pos + i] = (<vecu*> s.within)[i]
    for i in range(b.q * (b.q + 1) // 2):
        (<vecu*> s.f.sum_n)[i] = VEC_SET(0.0)
    for i in range(n_c * (n_c + 1) // 2):
        (<vecu*> s.f.gram)[i] = VEC_SET(0.0)
    product = VEC_SET(1.0)
    exponent = VEC_SET(0.0)
    for part in range(d.n_parts):
        own = part_of(b, w, part)
        gather_correlated(b, s, w, &own, part, &product, &exponent)
        set_core(b, s, w, &own)
        factor_core(b, s, w, &own, &product, &exponent)
        solve_core(s, w, &own)
        if derivatives:
            turn_effects(w, &own)
            add_levels(s, w, &own)
    (<vecu*> s.f.gls.logdet)[0] = VEC_LOG(product) + exponent * M_LN2


cdef void evaluate_correlated(const Batch* b, Lanes* s, int order) noexcept nogil:
    """The criterion of a block of responses at f.factor with its derivatives."""
    cdef CorrelatedSpace* w = <CorrelatedSpace*> s.correlated
    cdef Py_ssize_t q = b.q, k = b.p + 1
    cdef vecu* directions = <vecu*> s.f.directions
    sweep_correlated(b, s, w, order > 0)
    profile_value(&s.f, 1 if order > 0 else 0)
    if order < 2:
        return
    sum_pairs(b, s, w, 0 if b.reml else b.p)
    directions_of(q, k, &s.f, directions)
    gls_curve(k, q * (q + 1) // 2, &s.f.gls, 2.0, <vecu*> s.f.vectors, directions if b.reml else NULL,
              <vecu*> s.f.curve)
    chain_hessian(q, &s.f.chain, <vecu*> s.f.factor, <vecu*> s.f.g, <vecu*> s.f.curve, <vecu*> s.f.jac,
                  <vecu*> s.f.hess)
