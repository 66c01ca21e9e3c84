# Factors nested in each other, level by level, finest first; siblings below one another, LANES families side by side.
#
# All factors are written in the same r columns U: a level of stage s adds U b, b ~ N(0, sigma^2 G_s), L_s a factor
# of G_s (r, r; columns of zeros where the term has fewer effects).  With A = U'V^-1 U and C = U'V^-1 [X y], V the
# covariance of the finer stages, A = R'R and c = R^-T C, a level is taken out as in lanes/lanes.pyx:
#
#     n = U'(V + U G U')^-1 U = Y'Y,  E = Y'D,   A_parent = sum n,  C_parent = sum E
#
# so that nothing but sums of squares is passed on.  On the way back, with Q and u = posterior covariance and means of
# the sum of all coarser levels' effects (0 at the top),
#
#     N = n - n Q n,   E <- E - n u,       M = L (I + L'A L)^-1 L',  P = I - A M = (I + A G)^-1
#     Q <- M + P'Q P,  u <- u + G E                                                (for the level's children)
#
# uses   factor (packing.pxi), whiten (moments.pxi), chain_curve (family_curves.pxi); ChainStage, ChainSums,
#        ChainColumns
# gives  chain_pack, chain_up, chain_down (kernels of nested/engine.pyx); chain_square, chain_product, chain_parents


cdef inline void chain_gather(const ChainStage* stage, Py_ssize_t block, Py_ssize_t field, Py_ssize_t n, vecu* out
                              ) noexcept nogil:
    """A field of the parents of a block."""
    cdef Py_ssize_t lane, i
    cdef const double* source
    for lane in range(LANES):
        source = stage.above + stage.parent[block * LANES + lane] + field * LANES
        for i in range(n):
            (<double*> out)[i * LANES + lane] = source[i * LANES]


cdef inline void chain_scatter(const ChainStage* stage, Py_ssize_t block, Py_ssize_t field, Py_ssize_t n,
                               const vecu* values) noexcept nogil:
    """Add to a field of the parents of a block."""
    cdef Py_ssize_t lane, i
    cdef double* target
    for lane in range(LANES):
        target = stage.above + stage.parent[block * LANES + lane] + field * LANES
        for i in range(n):
            target[i * LANES] += (<const double*> values)[i * LANES + lane]


cdef void chain_pack(const Shape* shape, Py_ssize_t n_vectors, const Py_ssize_t* order, const double* raw,
                     const ChainColumns* T, double* packed, double* between, double* scratch) noexcept nogil:
    """`factor` for groups in the given order (n_vectors * LANES,), -1 for padding.

    scratch: LANES (q^2 + q k + 2 q + k(k+1)/2 + stride) doubles.
    """
    cdef Py_ssize_t line = shape.stride, block, lane, i, g
    cdef RawGroups groups
    cdef double* lines = scratch + LANES * (shape.q * shape.q + shape.q * shape.k + 2 * shape.q
                                            + shape.k * (shape.k + 1) // 2)
    groups = RawGroups(LANES, lines, T.z, T.xy)
    for block in range(n_vectors):
        for lane in range(LANES):
            g = order[block * LANES + lane]
            for i in range(line):
                lines[lane * line + i] = raw[g * line + i] if g >= 0 else 0.0
        factor(shape, &groups, packed + block * line * LANES, between, scratch)


cdef inline void chain_root(Py_ssize_t q, Py_ssize_t k, const vecu* A, vecu* full, vecu* R) noexcept nogil:
    """R and c from A and C, which follow each other; columns that add nothing are left out."""
    cdef Py_ssize_t a, b, j, l, pos = 0, n_a = q * (q + 1) // 2
    cdef const vecu* C = A + n_a
    cdef vecu* c = R + n_a
    cdef vec t, u
    for a in range(q):
        for b in range(a + 1):
            full[b * q + a] = A[pos]
            pos = pos + 1
        for j in range(k):
            c[a * k + j] = C[a * k + j]
    pos = 0
    for a in range(q):
        u = VEC_RSQRT_ABOVE(full[a * q + a], A[a * (a + 1) // 2 + a] * 1e-14)
        for b in range(a, q):
            full[a * q + b] = full[a * q + b] * u
            R[pos] = full[a * q + b]
            pos = pos + 1
        for j in range(k):
            c[a * k + j] = c[a * k + j] * u
        for b in range(a + 1, q):
            t = full[a * q + b]
            for l in range(b, q):
                full[b * q + l] = full[b * q + l] - t * full[a * q + l]
            for j in range(k):
                c[b * k + j] = c[b * k + j] - t * c[a * k + j]


cdef inline void chain_subtract_root(Py_ssize_t q, Py_ssize_t k, const vecu* c, vecu* part_h) noexcept nogil:
    """part_h -= c'c: what c explains was not taken out of [X y]'[X y] with the rows."""
    cdef Py_ssize_t a, j, l, pos = 0
    cdef vec t
    for j in range(k):
        for l in range(j + 1):
            t = part_h[pos]
            for a in range(q):
                t = t - c[a * k + j] * c[a * k + l]
            part_h[pos] = t
            pos = pos + 1


cdef inline void chain_sums(Py_ssize_t q, Py_ssize_t k, const vecu* Y, const vecu* D, vecu* n, vecu* acc, vecu* part_h
                            ) noexcept nogil:
    """n = Y'Y and E = Y'D of a level, added to those of its siblings; part_h += D'D."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, a, b, j, l, pos = 0
    cdef vecu* E = n + n_a
    cdef vec t
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + Y[l * q + a] * Y[l * q + b]
            n[pos] = t
            acc[pos] = acc[pos] + t
            pos = pos + 1
    for a in range(q):
        for j in range(k):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + Y[l * q + a] * D[l * k + j]
            E[a * k + j] = t
            acc[n_a + a * k + j] = acc[n_a + a * k + j] + t
    pos = 0
    for j in range(k):
        for l in range(j + 1):
            t = part_h[pos]
            for a in range(q):
                t = t + D[a * k + j] * D[a * k + l]
            part_h[pos] = t
            pos = pos + 1


cdef inline double chain_up_of(Py_ssize_t q, Py_ssize_t k, bint finest, const ChainStage* stage, const double* factor,
                               double* sum_h, double* scratch) noexcept nogil:
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, n_h = k * (k + 1) // 2
    cdef Py_ssize_t block, v, l, pos
    cdef Whitened s = lay_whitened(q, scratch)
    cdef vecu* W = s.W
    cdef vecu* Y = s.Y
    cdef vecu* D = s.D
    cdef vecu* acc = D + n_c
    cdef vecu* part_h = acc + n_a + n_c
    cdef vecu* acc_h = part_h + n_h
    cdef vecu* record
    cdef vecu* R
    cdef vecu* n
    cdef vec det, product
    cdef double logdet = 0.0
    product = VEC_SET(1.0)
    for pos in range(2 * n_h):
        part_h[pos] = VEC_SET(0.0)
    for block in range(stage.n_blocks):
        for pos in range(n_a + n_c):
            acc[pos] = VEC_SET(0.0)
        for v in range(stage.start[block], stage.start[block + 1]):
            if finest:
                R = (<vecu*> stage.packed) + v * (n_a + n_c + 1)
                n = (<vecu*> stage.record) + v * (n_a + n_c)
            else:
                # A, C; R, c; n, E
                record = (<vecu*> stage.record) + v * stage.stride
                R = record + n_a + n_c
                n = R + n_a + n_c
                chain_root(q, k, record, W, R)
                chain_subtract_root(q, k, R + n_a, part_h)
            det = whiten(q, k, R, factor, &s)
            product = product * det
            if vec_max(&product) > 1e100:
                for l in range(LANES):
                    logdet += log((<double*> &product)[l])
                product = VEC_SET(1.0)
            chain_sums(q, k, Y, D, n, acc, part_h)
            if (v & 63) == 63:
                for pos in range(n_h):
                    acc_h[pos] = acc_h[pos] + part_h[pos]
                    part_h[pos] = VEC_SET(0.0)
        if stage.parent != NULL:
            chain_scatter(stage, block, 0, n_a + n_c, acc)
    for l in range(LANES):
        logdet += log((<double*> &product)[l])
    for pos in range(n_h):
        sum_h[pos] += vec_sum(acc_h + pos) + vec_sum(part_h + pos)
    return logdet


cdef double chain_up(const Shape* shape, const ChainStage* stage, const double* factor, double* sum_h, double* scratch
                     ) noexcept nogil:
    """Take a stage out: n and E of its levels, sums for their parents; adds to sum_h (k(k+1)/2) what this adds to
    [X y]'V^-1[X y], returns sum log|I + L'A L|.

    scratch: LANES (3 q^2 + 2 q k + q(q+1)/2 + k(k+1)) doubles.
    """
    if stage.level == 0:
        if shape.q == 1 and shape.k == 2:
            return chain_up_of(1, 2, True, stage, factor, sum_h, scratch)
        if shape.q == 1:
            return chain_up_of(1, shape.k, True, stage, factor, sum_h, scratch)
        if shape.q == 2 and shape.k == 3:
            return chain_up_of(2, 3, True, stage, factor, sum_h, scratch)
        if shape.q == 2:
            return chain_up_of(2, shape.k, True, stage, factor, sum_h, scratch)
        return chain_up_of(shape.q, shape.k, True, stage, factor, sum_h, scratch)
    if shape.q == 2 and shape.k == 3:
        return chain_up_of(2, 3, False, stage, factor, sum_h, scratch)
    return chain_up_of(shape.q, shape.k, False, stage, factor, sum_h, scratch)


cdef inline void chain_square(Py_ssize_t q, const vecu* packed, vecu* out) noexcept nogil:
    """Both triangles of a symmetric matrix given by its lower one, by rows."""
    cdef Py_ssize_t a, b, pos = 0
    for a in range(q):
        for b in range(a + 1):
            out[a * q + b] = packed[pos]
            out[b * q + a] = packed[pos]
            pos = pos + 1


cdef inline void chain_product(Py_ssize_t q, Py_ssize_t k, const vecu* A, const vecu* B, vecu* out) noexcept nogil:
    """out (q, k) = A (q, q) B (q, k)."""
    cdef Py_ssize_t a, j, l
    cdef vec t
    for a in range(q):
        for j in range(k):
            t = A[a * q] * B[j]
            for l in range(1, q):
                t = t + A[a * q + l] * B[l * k + j]
            out[a * k + j] = t


cdef inline void chain_conditional(Py_ssize_t q, const vecu* R, const double* factor, vecu* U, vecu* W, vecu* S, vecu* M
                                   ) noexcept nogil:
    """M = L (I + L'A L)^-1 L' = S'S, both triangles."""
    cdef Py_ssize_t a, b, l
    cdef vec t, u
    cdef const vecu* row = R
    for a in range(q):
        for b in range(q):
            t = VEC_SET(0.0)
            for l in range(a, q):
                t = t + row[l - a] * factor[l * q + b]
            U[a * q + b] = t
        row = row + (q - a)
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(1.0 if a == b else 0.0)
            for l in range(q):
                t = t + U[l * q + a] * U[l * q + b]
            W[a * q + b] = t
        for b in range(q):
            S[a * q + b] = VEC_SET(factor[b * q + a])
    for a in range(q):
        u = VEC_SET(1.0) / VEC_SQRT(W[a * q + a])
        for b in range(q):
            S[a * q + b] = S[a * q + b] * u
        for b in range(a + 1, q):
            W[b * q + a] = W[b * q + a] * u
        for b in range(a + 1, q):
            t = W[b * q + a]
            for l in range(a + 1, b + 1):
                W[b * q + l] = W[b * q + l] - t * W[l * q + a]
            for l in range(q):
                S[b * q + l] = S[b * q + l] - t * S[a * q + l]
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + S[l * q + a] * S[l * q + b]
            M[a * q + b] = t
            M[b * q + a] = t


# The shape of a sweep down, as constants where they are known.
cdef struct Descending:
    Py_ssize_t q, k, first
    bint finest, second, traces
    Py_ssize_t forms


cdef inline void chain_parents(Py_ssize_t q, Py_ssize_t k, const ChainStage* stage, Py_ssize_t block, vecu* Qp, vecu* Q,
                               vecu* u) noexcept nogil:
    """Q and u of the parents of a block, zero at the top."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, pos
    if stage.parent != NULL:
        chain_gather(stage, block, stage.above_q, n_a, Qp)
        if u != NULL:
            chain_gather(stage, block, stage.above_q + n_a, n_c, u)
    else:
        for pos in range(n_a):
            Qp[pos] = VEC_SET(0.0)
        if u != NULL:
            for pos in range(n_c):
                u[pos] = VEC_SET(0.0)
    chain_square(q, Qp, Q)


cdef inline void chain_level(Descending d, const double* weight, const vecu* n, const vecu* Q, const vecu* u,
                             vecu* nn, vecu* acc_n, vecu* acc_f) noexcept nogil:
    """n in full (nn), X = n Q, E and f of a level, which follow each other; sums of N and of f f'."""
    cdef Py_ssize_t q = d.q, k = d.k, n_a = q * (q + 1) // 2, a, b, j, l, pos = 0
    cdef vecu* X = nn + q * q
    cdef vecu* E = X + q * q
    cdef vecu* f = E + q * k
    cdef vec t
    chain_square(q, n, nn)
    chain_product(q, q, nn, Q, X)
    for a in range(q):
        for b in range(a + 1):
            t = n[pos]
            for l in range(q):
                t = t - X[a * q + l] * nn[l * q + b]
            acc_n[pos] = acc_n[pos] + t
            pos = pos + 1
        for j in range(k):
            t = n[n_a + a * k + j]
            for l in range(q):
                t = t - nn[a * q + l] * u[l * k + j]
            E[a * k + j] = t
        for j in range(d.first, k):
            t = VEC_SET(0.0)
            for l in range(j + 1):
                t = t + E[a * k + l] * weight[l * k + j]
            f[a * k + j] = t
    pos = 0
    for a in range(q):
        for b in range(a + 1):
            t = acc_f[pos]
            for j in range(d.first, k):
                t = t + f[a * k + j] * f[b * k + j]
            acc_f[pos] = t
            pos = pos + 1


cdef inline void chain_hand_down(Py_ssize_t q, Py_ssize_t k, const double* factor, const vecu* Q, const vecu* u,
                                 const vecu* E, vecu* record, vecu* U) noexcept nogil:
    """M, P; Q, u; f into the record of a level, for its children; U: 4 q^2 vectors of work space."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, a, b, j, l, pos = 0
    cdef vecu* W = U + q * q
    cdef vecu* S = W + q * q
    cdef vecu* M = S + q * q
    cdef vecu* P = record + 3 * (n_a + n_c) + n_a
    cdef vecu* below = P + q * q        # Q, u, f
    cdef const vecu* f = E + n_c
    cdef vec t
    chain_conditional(q, record + n_a + n_c, factor, U, W, S, M)
    for a in range(q):
        for b in range(a + 1):
            record[3 * (n_a + n_c) + pos] = M[a * q + b]
            pos = pos + 1
    chain_square(q, record, W)
    chain_product(q, q, W, M, U)
    for a in range(q):
        for b in range(q):
            P[a * q + b] = VEC_SET(1.0 if a == b else 0.0) - U[a * q + b]
    chain_product(q, q, Q, P, U)
    pos = 0
    for a in range(q):
        for b in range(a + 1):
            t = M[a * q + b]
            for l in range(q):
                t = t + P[l * q + a] * U[l * q + b]
            below[pos] = t
            pos = pos + 1
    # G E, in the place of f for a while
    for a in range(q):
        for j in range(k):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + factor[l * q + a] * E[l * k + j]
            below[n_a + n_c + a * k + j] = t
    for a in range(q):
        for j in range(k):
            t = u[a * k + j]
            for l in range(q):
                t = t + factor[a * q + l] * below[n_a + n_c + l * k + j]
            below[n_a + a * k + j] = t
    for pos in range(n_c):
        below[n_a + n_c + pos] = f[pos]


cdef inline void chain_gram(Py_ssize_t n_c, const vecu* E, vecu* acc) noexcept nogil:
    """acc += vec(E) vec(E)', packed."""
    cdef Py_ssize_t a, b, pos = 0
    cdef vec t
    for a in range(n_c):
        t = E[a]
        for b in range(a + 1):
            acc[pos + b] = acc[pos + b] + t * E[b]
        pos = pos + a + 1


cdef inline void chain_down_of(Descending d, const ChainStage* stage, const double* factor, const ChainSums* sums,
                               vecu* acc_n, vecu* temporary) noexcept nogil:
    cdef Py_ssize_t q = d.q, k = d.k, n_a = q * (q + 1) // 2, n_c = q * k, n_g = n_c * (n_c + 1) // 2
    cdef Py_ssize_t block, v, pos
    cdef vecu* Qp = temporary
    cdef vecu* Q = Qp + n_a
    cdef vecu* u = Q + q * q
    cdef vecu* nn = u + n_c
    cdef vecu* E = nn + 2 * q * q
    cdef vecu* f = E + n_c
    cdef vecu* work = f + n_c
    cdef vecu* acc_f = acc_n + n_a
    cdef vecu* acc_g = acc_f + n_a
    cdef vecu* acc_c = acc_g + n_g
    cdef vecu* out = acc_c + n_a * n_a
    cdef vecu* record
    for pos in range(2 * n_a + n_g + n_a * n_a):
        acc_n[pos] = VEC_SET(0.0)
    for pos in range(n_c):
        f[pos] = VEC_SET(0.0)
    for block in range(stage.n_blocks):
        chain_parents(q, k, stage, block, Qp, Q, u)
        if d.finest and d.second:
            for pos in range(n_a * (n_a + n_c)):
                out[pos] = VEC_SET(0.0)
        for v in range(stage.start[block], stage.start[block + 1]):
            record = (<vecu*> stage.record) + v * (n_a + n_c if d.finest else stage.stride)
            chain_level(d, sums.weight, record if d.finest else record + 2 * (n_a + n_c), Q, u, nn, acc_n, acc_f)
            if d.second:
                chain_gram(n_c, E, acc_g)
            if not d.finest:
                chain_hand_down(q, k, factor, Q, u, E, record, work)
            elif d.second:
                chain_curve(Directions(q, k, 0, d.forms, d.traces), nn, Q, f, NULL, out, acc_c, work)
        if d.finest and d.second and stage.parent != NULL:
            chain_scatter(stage, block, stage.above_sums, n_a * (n_a + n_c), out)
    for pos in range(n_a):
        sums.n[pos] = vec_sum(acc_n + pos)
        sums.f[pos] = vec_sum(acc_f + pos)
    if d.second:
        for pos in range(n_g):
            sums.gram[pos] = vec_sum(acc_g + pos)
    if d.second and d.finest:
        for pos in range(n_a * n_a):
            sums.curve[pos] = vec_sum(acc_c + pos)


cdef void chain_down(const Shape* shape, const ChainStage* stage, const double* factor, const ChainSums* sums,
                     double* scratch) noexcept nogil:
    """E and N of the levels of a stage given those of coarser ones; sums of N and of f f', f = E weight.

    If `second`, also gram = sum vec(E) vec(E)' (packed) and, at the finest stage, what `chain_second` does for the
    others.
    scratch: LANES (15 q^2 + 5 q k + 3 n_a + n_g + n_a (2 n_a + q k)) doubles.
    """
    cdef Py_ssize_t n_c = shape.n_c, first = sums.first, forms = sums.forms
    cdef bint second = sums.second, traces = sums.traces
    cdef vecu* acc = <vecu*> scratch
    cdef vecu* temporary = acc + 2 * shape.n_a + n_c * (n_c + 1) // 2 + shape.n_a * (2 * shape.n_a + n_c)
    # local, so that the compiler can keep them in registers
    cdef vec small[80]
    if stage.level == 0 and shape.q == 2 and shape.k == 3 and first == 0 and not second:
        chain_down_of(Descending(2, 3, 0, True, False, False, 0), stage, factor, sums, acc, <vecu*> small)
    elif stage.level == 0 and shape.q == 2 and shape.k == 3 and first == 0 and forms == 2 and not traces:
        chain_down_of(Descending(2, 3, 0, True, True, False, 2), stage, factor, sums, acc, <vecu*> small)
    elif stage.level == 0 and shape.q == 2 and shape.k == 3 and first == 0 and forms == 0 and traces:
        chain_down_of(Descending(2, 3, 0, True, True, True, 0), stage, factor, sums, acc, <vecu*> small)
    elif stage.level == 0 and shape.q == 1:
        chain_down_of(Descending(1, shape.k, first, True, second, traces, forms), stage, factor, sums, acc, temporary)
    elif stage.level == 0 and shape.q == 2:
        chain_down_of(Descending(2, shape.k, first, True, second, traces, forms), stage, factor, sums, acc, temporary)
    elif stage.level == 0:
        chain_down_of(Descending(shape.q, shape.k, first, True, second, traces, forms), stage, factor, sums, acc,
                      temporary)
    elif shape.q == 2 and shape.k == 3:
        chain_down_of(Descending(2, 3, first, False, second, traces, forms), stage, factor, sums, acc, temporary)
    else:
        chain_down_of(Descending(shape.q, shape.k, first, False, second, traces, forms), stage, factor, sums, acc,
                      temporary)


offered.chain_pack = &chain_pack
offered.chain_up = &chain_up
offered.chain_down = &chain_down
