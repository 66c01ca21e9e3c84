# Responses that are drawn by what a fit sees of them: their scores.
#
# A response y - X beta = Z b + e of a design enters its fit by c_y of the columns of the patterns, the cross-products
# of c_y among the other groups of each pattern, X'y within groups and y'y.  For normal b and e,
# with W_k = I + R_k L L' R_k',
#
#     c_y of a column = S z,  S S' = sigma^2 W_k,  z normal;
#     cross-products of the rest = S T T' S', T T' ~ Wishart(I, groups - columns): T is triangular, with roots of
#         chi-squares on its diagonal and normal numbers below (Bartlett 1933, Proc. R. Soc. Edinb. 53);
#     X'y within groups = root z,  root root' = sigma^2 within_xx;
#     and what neither Z nor X reach is sigma^2 times a chi-square,
#
# all independent.  A line holds these standard numbers: z of the columns (n_columns, q), z of X (n_within,), T of each
# pattern with a rest (n_a,), lower triangle by rows, and the chi-square.

cdef inline void read_lines(const Lanes* s, const double* Y, Py_ssize_t stride, Py_ssize_t begin, Py_ssize_t length,
                            double* into) noexcept nogil:
    """Numbers begin, begin + 1, ... of the lines of a block, line by line to lane by lane."""
    cdef Py_ssize_t j = 0, lane
    cdef const double* row[8]
    cdef double shift[8]
    for lane in range(LANES):
        row[lane] = Y + s.place[lane] * stride + begin
        shift[lane] = 0.0
    while j + LANES <= length:
        vec_transpose(row, j, shift, into + j * LANES)
        j += LANES
    while j < length:
        for lane in range(LANES):
            into[j * LANES + lane] = row[lane][j]
        j += 1


cdef inline void spread_column(Py_ssize_t q, const double* root, vecu* z) noexcept nogil:
    """z = S z, S lower triangular."""
    cdef Py_ssize_t a, b, pos = q * (q + 1) // 2
    cdef vec t
    for a in range(q - 1, -1, -1):
        pos = pos - a - 1
        t = VEC_SET(0.0)
        for b in range(a + 1):
            t = t + root[pos + b] * z[b]
        z[a] = t


cdef inline void spread_rest(Py_ssize_t q, const double* root, const vecu* T, vecu* half, vecu* rest) noexcept nogil:
    """rest = S T T' S', packed; half (n_a,) is overwritten."""
    cdef Py_ssize_t a, b, l
    cdef vec t
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(b, a + 1):
                t = t + root[a * (a + 1) // 2 + l] * T[l * (l + 1) // 2 + b]
            half[a * (a + 1) // 2 + b] = t
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(b + 1):
                t = t + half[a * (a + 1) // 2 + l] * half[b * (b + 1) // 2 + l]
            rest[a * (a + 1) // 2 + b] = t


cdef void read_scores(const Batch* d, Lanes* s, const double* Y, Py_ssize_t stride, vec* residual) noexcept nogil:
    """A block of lines: c_y, rest, X_o'y; residual = y'y less what X_o explains, as by `read_responses`."""
    cdef Py_ssize_t q = d.q, p = d.p, n_a = q * (q + 1) // 2, w = d.n_within, pattern, c, a, b, j, at, pos
    cdef vecu* cy = <vecu*> s.cy
    cdef vecu* rest = <vecu*> s.rest
    cdef vecu* beta = <vecu*> s.beta
    cdef vecu* small = <vecu*> s.small
    cdef const double* root
    cdef vec total, t
    at = d.n_columns * q
    read_lines(s, Y, stride, 0, at, s.cy)
    read_lines(s, Y, stride, at, w, s.small)
    at = at + w
    total = VEC_SET(0.0)
    for j in range(p):
        t = VEC_SET(0.0)
        for a in range(w):
            t = t + d.within_root[j * w + a] * small[a]
        beta[j] = t
    for a in range(w):
        total = total + d.variance * small[a] * small[a]
    for pattern in range(d.n_patterns):
        root = d.spread + pattern * n_a
        pos = pattern * n_a
        if d.groups[pattern + 1] - d.groups[pattern] > 1:
            read_lines(s, Y, stride, at, n_a, s.small)
            at = at + n_a
            spread_rest(q, root, small, small + n_a, rest + pos)
            for a in range(q):
                total = total + rest[pos + a * (a + 1) // 2 + a]
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            spread_column(q, root, cy + c * q)
            for a in range(q):
                t = cy[c * q + a]
                total = total + t * t
                for j in range(p):
                    beta[j] = beta[j] + d.cx[(c * q + a) * p + j] * t
                if d.groups[pattern + 1] - d.groups[pattern] > 1:
                    # `leave_residuals` takes the columns out again
                    for b in range(a + 1):
                        rest[pos + a * (a + 1) // 2 + b] = rest[pos + a * (a + 1) // 2 + b] + t * cy[c * q + b]
    read_lines(s, Y, stride, at, 1, s.small)
    total = total + d.variance * small[0]
    for j in range(p):
        total = total - beta[j] * beta[j]
    (<vecu*> s.within)[p] = total
    leave_residuals(d, s)
    residual[0] = total
