# Sums over packed groups at one factor L, and the effects of each group, by the equations of lanes.pyx.
#
# uses   eliminate, set_crossed, set_product, add_crossed, add_outer (algebra.pxi); PackedGroups, Sums
# gives  whiten, add_forms, add_tensor, conditional_root; moments, curvature, effects (kernels)


# Where `whiten` leaves what it computes.
cdef struct Whitened:
    vecu* U     # (q, q) R L
    vecu* W     # (q, q) see `eliminate`
    vecu* Y     # (q, q)
    vecu* D     # (q, k)


cdef inline Whitened lay_whitened(Py_ssize_t q, double* scratch) noexcept nogil:
    """The first 3 q^2 + q k vectors of a work space."""
    cdef Whitened s
    s.U = <vecu*> scratch
    s.W = s.U + q * q
    s.Y = s.W + q * q
    s.D = s.Y + q * q
    return s


cdef inline vec whiten(Py_ssize_t q, Py_ssize_t k, const vecu* R, const double* factor, const Whitened* s
                       ) noexcept nogil:
    """U = R L, W = I + U U' = M M', Y = M^-1 R, D = M^-1 c for one block (R, c); its determinants |W|."""
    cdef Py_ssize_t a, b, l, j
    cdef vecu* U = s.U
    cdef vecu* W = s.W
    cdef vecu* Y = s.Y
    cdef vecu* D = s.D
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
            Y[a * q + b] = row[b - a] if b >= a else VEC_SET(0.0)
        row = row + (q - a)
        for j in range(k):
            D[a * k + j] = c[a * k + j]
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + U[a * q + l] * U[b * q + l]
            W[a * q + b] = t
        W[a * q + a] = W[a * q + a] + one
    return eliminate(q, W, q, Y, k, D, NULL)


cdef inline double sum_logs(const vecu* values, const vecu* count) noexcept nogil:
    """Sum over the lanes of count log(value); of log(value) where count is NULL."""
    cdef Py_ssize_t lane
    cdef double total = 0.0
    for lane in range(LANES):
        if count == NULL:
            total += log((<const double*> values)[lane])
        elif (<const double*> count)[lane] != 0.0:
            total += (<const double*> count)[lane] * log((<const double*> values)[lane])
    return total


cdef inline double moments_of(Py_ssize_t q, Py_ssize_t k, const PackedGroups* groups, const double* factor,
                              const Sums* out, double* scratch) noexcept nogil:
    cdef bint uniform = groups.uniform, with_gram = out.gram != NULL, with_root = out.root != NULL
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, block, pos
    cdef Py_ssize_t n_h = 0 if with_root else k * (k + 1) // 2, n_g = n_c * (n_c + 1) // 2 if with_gram else 0
    cdef Whitened s = lay_whitened(q, scratch)
    cdef vecu* acc_n = s.D + n_c
    cdef vecu* acc_h = acc_n + n_a
    cdef vecu* acc_g = acc_h + n_h
    cdef vecu* N = acc_g + n_g
    cdef const vecu* R = <const vecu*> groups.packed
    cdef const vecu* count
    cdef vec det, product
    cdef double logdet = 0.0
    product = VEC_SET(1.0)
    for pos in range(n_a + n_h + n_g):
        acc_n[pos] = VEC_SET(0.0)
    for block in range(groups.n_blocks):
        count = R + n_a + n_c
        if out.store != NULL:
            N = (<vecu*> out.store) + block * (n_a + n_c)
        det = whiten(q, k, R, factor, &s)
        if not uniform:
            logdet += sum_logs(<vecu*> &det, count)
        else:
            # padding has det = 1; the product is taken to logarithms before it can overflow
            product = product * det
            if vec_max(<vecu*> &product) > 1e100:
                logdet += sum_logs(<vecu*> &product, NULL)
                product = VEC_SET(1.0)
        set_crossed(q, s.Y, N)
        for pos in range(n_a):
            acc_n[pos] = acc_n[pos] + N[pos] * count[0]
        set_product(q, k, s.Y, s.D, N + n_a)
        if with_root:
            for pos in range(n_c):
                (<vecu*> out.root)[block * n_c + pos] = s.D[pos]
        else:
            add_crossed(q, k, s.D, acc_h)
        if with_gram:
            add_outer(n_c, N + n_a, acc_g)
        R = R + n_a + n_c + 1
    if uniform:
        logdet += sum_logs(<vecu*> &product, NULL)
    for pos in range(n_a):
        out.sum_n[pos] = vec_sum(acc_n + pos)
    for pos in range(n_h):
        out.sum_h[pos] += vec_sum(acc_h + pos)
    for pos in range(n_g):
        out.gram[pos] = vec_sum(acc_g + pos)
    return logdet


cdef double moments(const PackedGroups* groups, const double* factor, const Sums* out, double* scratch) noexcept nogil:
    """First sweep of an evaluation: the sums over groups at L; returns sum n_i log|W_i|.

    scratch: LANES (3 q^2 + 2 q k + 2 n_a + k(k+1)/2 + qk(qk+1)/2) doubles, without the last two where `root`, and no
    `gram`, are wanted.
    """
    cdef Py_ssize_t q = groups.shape.q, k = groups.shape.k
    if q == 1:
        return moments_of(1, k, groups, factor, out, scratch)
    if q == 2 and k == 3:
        return moments_of(2, 3, groups, factor, out, scratch)
    if q == 2:
        return moments_of(2, k, groups, factor, out, scratch)
    if q == 3:
        return moments_of(3, k, groups, factor, out, scratch)
    return moments_of(q, k, groups, factor, out, scratch)


cdef inline void add_forms(Py_ssize_t q, Py_ssize_t k, Py_ssize_t first, const vecu* F, vecu* B) noexcept nogil:
    """B += F F' for the columns of F (q, k) from `first` on, packed lower triangle."""
    cdef Py_ssize_t a, b, j, pos = 0
    cdef vec t
    for a in range(q):
        for b in range(a + 1):
            t = B[pos]
            for j in range(first, k):
                t = t + F[a * k + j] * F[b * k + j]
            B[pos] = t
            pos = pos + 1


cdef inline void add_tensor(Py_ssize_t n_a, const vecu* B, const vecu* N, vecu* tensor) noexcept nogil:
    """tensor += B (x) N, (n_a, n_a)."""
    cdef Py_ssize_t a, b, pos = 0
    cdef vec t
    for a in range(n_a):
        t = B[a]
        for b in range(n_a):
            tensor[pos] = tensor[pos] + t * N[b]
            pos = pos + 1


cdef inline void curvature_of(Py_ssize_t q, Py_ssize_t k, const PackedGroups* groups, Py_ssize_t first,
                              const double* weight, const double* store, double* tensor,
                              double* scratch) noexcept nogil:
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, block, a, j, l, pos
    cdef vecu* F = <vecu*> scratch
    cdef vecu* B = F + n_c
    cdef vecu* acc = B + n_a
    cdef const vecu* N
    cdef const vecu* E
    cdef const vecu* count
    cdef vec t
    for pos in range(n_a * n_a):
        acc[pos] = VEC_SET(0.0)
    for block in range(groups.n_blocks):
        N = (<const vecu*> store) + block * (n_a + n_c)
        E = N + n_a
        count = (<const vecu*> groups.packed) + (block + 1) * (n_a + n_c + 1) - 1
        for a in range(q):
            for j in range(first, k):
                t = VEC_SET(0.0)
                for l in range(j + 1):
                    t = t + E[a * k + l] * weight[l * k + j]
                F[a * k + j] = t
        for pos in range(n_a):
            B[pos] = VEC_SET(0.0) - count[0] * N[pos]
        add_forms(q, k, first, F, B)
        add_tensor(n_a, B, N, acc)
    for pos in range(n_a * n_a):
        tensor[pos] = vec_sum(acc + pos)


cdef void curvature(const PackedGroups* groups, Py_ssize_t first, const double* weight, const double* store,
                    double* tensor, double* scratch) noexcept nogil:
    """Second sweep: tensor[ab, cd] = sum B_i[ab] N_i[cd], B_i = -n_i N_i + (E_i w)(E_i w)'.

    weight (k x k) is upper triangular; its columns before `first` are skipped.  store: as `moments` leaves it.
    scratch: LANES (q k + n_a + n_a^2) doubles.
    """
    cdef Py_ssize_t q = groups.shape.q, k = groups.shape.k
    if q == 1:
        curvature_of(1, k, groups, first, weight, store, tensor, scratch)
    elif q == 2 and k == 3:
        curvature_of(2, 3, groups, first, weight, store, tensor, scratch)
    elif q == 2:
        curvature_of(2, k, groups, first, weight, store, tensor, scratch)
    elif q == 3:
        curvature_of(3, k, groups, first, weight, store, tensor, scratch)
    else:
        curvature_of(q, k, groups, first, weight, store, tensor, scratch)


cdef inline void conditional_root(Py_ssize_t q, const vecu* U, const double* factor, vecu* W, vecu* S) noexcept nogil:
    """S with S'S = L (I + U'U)^-1 L': M M' = I + U'U, S = M^-1 L'."""
    cdef Py_ssize_t a, b, l
    cdef vec t
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(1.0 if a == b else 0.0)
            for l in range(q):
                t = t + U[l * q + a] * U[l * q + b]
            W[a * q + b] = t
        for b in range(q):
            S[a * q + b] = VEC_SET(factor[b * q + a])
    eliminate(q, W, q, S, 0, NULL, NULL)


cdef void effects(const PackedGroups* groups, const double* factor, const double* contrast, double* e_out,
                  double* matrix_out, bint conditional, double* scratch) noexcept nogil:
    """e_i = E_i contrast (n_blocks * LANES, q) and a matrix (n_blocks * LANES, q, q) of every packed group.

    The matrix is N_i or, if `conditional`, L (I + L'A_i L)^-1 L' = S'S: a sum of squares, where G^ - G^ N_i G^ would
    cancel.  matrix_out may be NULL.
    scratch: LANES (4 q^2 + q k + q) doubles.
    """
    cdef Py_ssize_t q = groups.shape.q, k = groups.shape.k, n_a = groups.shape.n_a, block, a, b, l, j, lane
    cdef Whitened s = lay_whitened(q, scratch)
    cdef vecu* S = s.D + q * k
    cdef vecu* d = S + q * q
    cdef vecu* half
    cdef vec t
    for block in range(groups.n_blocks):
        whiten(q, k, (<const vecu*> groups.packed) + block * groups.shape.stride, factor, &s)
        for a in range(q):
            t = VEC_SET(0.0)
            for j in range(k):
                t = t + s.D[a * k + j] * contrast[j]
            d[a] = t
        for a in range(q):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + s.Y[l * q + a] * d[l]
            for lane in range(LANES):
                e_out[(block * LANES + lane) * q + a] = (<double*> &t)[lane]
        if matrix_out == NULL:
            continue
        half = s.Y
        if conditional:
            half = S
            conditional_root(q, s.U, factor, s.W, S)
        for a in range(q):
            for b in range(q):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + half[l * q + a] * half[l * q + b]
                for lane in range(LANES):
                    matrix_out[((block * LANES + lane) * q + a) * q + b] = (<double*> &t)[lane]


offered.moments = &moments
offered.curvature = &curvature
offered.effects = &effects
