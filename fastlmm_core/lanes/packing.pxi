# From the cross-products of the rows of groups to their packed form (R, c, count) in blocks, see lanes.pyx.
#
# uses   add_crossed, add_outer (algebra.pxi); RawGroups
# gives  factor, factor_alike


cdef enum:
    SHORT_LINE = 32


cdef inline void transpose_groups(Py_ssize_t q, Py_ssize_t k, const RawGroups* groups, Py_ssize_t block, vecu* full,
                                  vecu* C, vecu* count) noexcept nogil:
    """`read_groups` of a block without padding, a register at a time; lines of LANES to SHORT_LINE numbers."""
    cdef Py_ssize_t line = q * (q + 1) // 2 + q * k + 1, lane, at = 0, a, b, j, pos = 0
    cdef double tile[SHORT_LINE * 8]
    cdef double nothing[8]
    cdef const double* rows[8]
    cdef const vecu* turned = <const vecu*> &tile[0]
    for lane in range(LANES):
        rows[lane] = groups.raw + (block * LANES + lane) * line
        nothing[lane] = 0.0
    while at < line:
        # the last tile overlaps the one before it
        at = min(at, line - LANES)
        vec_transpose(rows, at, nothing, &tile[at * LANES])
        at = at + LANES
    for a in range(q):
        for b in range(a + 1):
            full[a * q + b] = turned[pos]
            full[b * q + a] = turned[pos]
            pos = pos + 1
    for j in range(q * k):
        C[j] = turned[pos + j]
    count[0] = VEC_SET(1.0)


cdef inline void read_groups(Py_ssize_t q, Py_ssize_t k, const RawGroups* groups, Py_ssize_t block, double* full,
                             double* C, double* count) noexcept nogil:
    """A (both triangles), C and the count of the groups of a block, lane by lane; zeros in the padding."""
    cdef Py_ssize_t line = q * (q + 1) // 2 + q * k + 1, lane, g, a, b, j, pos
    cdef const double* source
    if LANES <= line <= SHORT_LINE and (block + 1) * LANES <= groups.n_groups:
        transpose_groups(q, k, groups, block, <vecu*> full, <vecu*> C, <vecu*> count)
        return
    for lane in range(LANES):
        g = block * LANES + lane
        if g < groups.n_groups:
            source = groups.raw + g * line
            pos = 0
            for a in range(q):
                for b in range(a + 1):
                    full[(a * q + b) * LANES + lane] = source[pos]
                    full[(b * q + a) * LANES + lane] = source[pos]
                    pos = pos + 1
            for j in range(q * k):
                C[j * LANES + lane] = source[pos]
                pos = pos + 1
            count[lane] = 1.0
        else:
            for j in range(q * q):
                full[j * LANES + lane] = 0.0
            for j in range(q * k):
                C[j * LANES + lane] = 0.0
            count[lane] = 0.0


cdef inline void rotate_groups(Py_ssize_t q, Py_ssize_t k, const double* Tz, const double* Tx, vecu* full, vecu* C,
                               vecu* bound, vecu* size) noexcept nogil:
    """A <- T_z'A T_z, C <- T_z'C T_x; bound: the rounding error of the rotated diagonal."""
    cdef Py_ssize_t a, b, j, l
    cdef vec t
    # eps times (sum_b |T_ba| sqrt(A_bb))^2
    for a in range(q):
        size[a] = VEC_SQRT(full[a * q + a])
    for a in range(q):
        t = VEC_SET(0.0)
        for b in range(a + 1):
            t = t + size[b] * (Tz[b * q + a] if Tz[b * q + a] > 0 else -Tz[b * q + a])
        bound[a] = t * t * 2e-14
    for a in range(q):
        for b in range(q - 1, -1, -1):
            t = VEC_SET(0.0)
            for l in range(b + 1):
                t = t + full[a * q + l] * Tz[l * q + b]
            full[a * q + b] = t
        for j in range(-1 if Tx == NULL else k - 1, -1, -1):
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


cdef inline void take_root(Py_ssize_t q, Py_ssize_t k, const vecu* bound, vecu* full, vecu* C, vecu* R, vecu* c
                           ) noexcept nogil:
    """A = R'R and c = R^-T C, row by row; a column within `bound` of its predecessors adds nothing."""
    cdef Py_ssize_t a, b, j, l, pos = 0
    cdef vec t, u
    for a in range(q):
        t = full[a * q + a]
        u = VEC_RSQRT_ABOVE(t, bound[a])
        for b in range(a, q):
            R[pos + b - a] = full[a * q + b] * u
        for j in range(k):
            c[a * k + j] = C[a * k + j] * u
        for b in range(a + 1, q):
            t = R[pos + b - a]
            for l in range(b, q):
                full[b * q + l] = full[b * q + l] - t * R[pos + l - a]
            for j in range(k):
                C[b * k + j] = C[b * k + j] - t * c[a * k + j]
        pos = pos + q - a


cdef inline void end_part(Py_ssize_t n, vecu* acc, double* sums) noexcept nogil:
    """Add what the lanes have summed, and begin anew."""
    cdef Py_ssize_t pos
    for pos in range(n):
        sums[pos] += vec_sum(acc + pos)
        acc[pos] = VEC_SET(0.0)


cdef inline void factor_of(Py_ssize_t q, Py_ssize_t k, const RawGroups* groups, double* packed, double* within,
                           double* scratch) noexcept nogil:
    cdef Py_ssize_t n_a = q * (q + 1) // 2, stride = n_a + q * k + 1, n_h = k * (k + 1) // 2
    cdef Py_ssize_t block, pos
    cdef vecu* full = <vecu*> scratch          # A, rotated in place (q x q)
    cdef vecu* C = full + q * q
    cdef vecu* bound = C + q * k
    cdef vecu* size = bound + q
    cdef vecu* acc = size + q
    cdef vecu* R
    for pos in range(n_h if within != NULL else 0):
        acc[pos] = VEC_SET(0.0)
    for block in range((groups.n_groups + LANES - 1) // LANES):
        R = (<vecu*> packed) + block * stride
        read_groups(q, k, groups, block, <double*> full, <double*> C, <double*> (R + stride - 1))
        rotate_groups(q, k, groups.Tz, groups.Tx, full, C, bound, size)
        take_root(q, k, bound, full, C, R, R + n_a)
        if within != NULL:
            add_crossed(q, k, R + n_a, acc)
            if (block + 1) % PART == 0:
                end_part(n_h, acc, within)
    if within != NULL:
        end_part(n_h, acc, within)


cdef inline bint of_pattern(Py_ssize_t n_a, Py_ssize_t n_groups, const double* pattern, const double* R) noexcept nogil:
    """Whether R of the first groups of a block is the pattern, by rounding; NaN never is."""
    cdef Py_ssize_t j, lane
    cdef double size = 0.0, t
    cdef int others = 0
    for j in range(n_a):
        size = max(size, fabs(pattern[j]))
    size = size * SAME
    for j in range(n_a):
        for lane in range(n_groups):
            t = R[j * LANES + lane] - pattern[j]
            others |= not fabs(t) <= size
    return others == 0


cdef inline bint factor_alike_of(Py_ssize_t q, Py_ssize_t k, const RawGroups* groups, double* pattern, double* gram,
                                 double* scratch) noexcept nogil:
    cdef Py_ssize_t n_a = q * (q + 1) // 2, n_c = q * k, block, pos, n_blocks = (groups.n_groups + LANES - 1) // LANES
    cdef vecu* full = <vecu*> scratch
    cdef vecu* C = full + q * q
    cdef vecu* bound = C + n_c
    cdef vecu* size = bound + q
    cdef vecu* R = size + q
    cdef vecu* acc = R + n_a + n_c + 1
    for pos in range(n_c * (n_c + 1) // 2):
        acc[pos] = VEC_SET(0.0)
    for block in range(n_blocks):
        read_groups(q, k, groups, block, <double*> full, <double*> C, <double*> (R + n_a + n_c))
        rotate_groups(q, k, groups.Tz, groups.Tx, full, C, bound, size)
        take_root(q, k, bound, full, C, R, R + n_a)
        if block == 0 and pattern[0] < 0.0:
            for pos in range(n_a):
                pattern[pos] = (<double*> (R + pos))[0]
        if not of_pattern(n_a, min(LANES, groups.n_groups - block * LANES), pattern, <double*> R):
            return False
        add_outer(n_c, R + n_a, acc)
    for pos in range(n_c * (n_c + 1) // 2):
        gram[pos] = vec_sum(acc + pos)
    return True


cdef bint factor_alike(const Shape* shape, const RawGroups* groups, double* pattern, double* gram, double* scratch
                       ) noexcept nogil:
    """What `factor` gives of groups that all have one R: that, and sum vec(c) vec(c)' (packed lower triangle).

    False where some group has another R.  pattern (n_a,) is given, or that of the first group where it is negative.
    scratch: LANES (q^2 + 2 q k + 2 q + n_a + 1 + q k (q k + 1) / 2) doubles.
    """
    if shape.q == 1 and shape.k == 3:
        return factor_alike_of(1, 3, groups, pattern, gram, scratch)
    if shape.q == 2 and shape.k == 3:
        return factor_alike_of(2, 3, groups, pattern, gram, scratch)
    return factor_alike_of(shape.q, shape.k, groups, pattern, gram, scratch)


cdef void factor(const Shape* shape, const RawGroups* groups, double* packed, double* within, double* scratch
                 ) noexcept nogil:
    """Rotate and factor groups.

    Overwrites packed (blocks, stride, LANES) with R, c and 1 per group (0 in the padding), for Z T_z and [X y] T_x;
    adds sum c'c to within (k(k+1)/2), part by part, unless that is NULL.  T_x may be NULL, where C has been turned
    already.  scratch: LANES (q^2 + q k + 2 q + k(k+1)/2) doubles.
    """
    # constant sizes let the compiler unroll the shapes that nearly everyone uses
    if shape.q == 1 and shape.k == 2:
        factor_of(1, 2, groups, packed, within, scratch)
    elif shape.q == 2 and shape.k == 3:
        factor_of(2, 3, groups, packed, within, scratch)
    else:
        factor_of(shape.q, shape.k, groups, packed, within, scratch)


offered.factor = &factor
offered.factor_alike = &factor_alike
