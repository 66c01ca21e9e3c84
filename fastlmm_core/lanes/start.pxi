# Where the search of each of many responses starts: a step from a common point, at which all share V.
#
# With V = I + Z G^ Z' there, W_i = R L L'R' + I of a pattern, and B_i = R'W_i^-1,
#
#     N_i = B_i R,    E_i = B_i c_x,    r^2 = y'Py,    f_i = Z_i'Py = B_i c_y - E_i beta
#
# the slope of the criterion along D of G^ is tr(PV_D) - (nu / r^2) s_D, s_D = sum f'D f, and its second derivative
# along D and F, sigma^2 profiled out,
#
#     -tr(PV_D PV_F) + 2 (nu / r^2) sum f'D (N F f - E K sum E'F f) - (nu / r^4) s_D s_F,    K = (X'V^-1 X)^-1
#
# Traces, K and the matrices of each pattern are made with the design.


cdef inline void apply_inverse(Py_ssize_t p, const double* half, vecu* v, vec* size) noexcept nogil:
    """v <- K v by way of a = half v, half'half = K; size = a'a."""
    cdef Py_ssize_t i, j
    cdef vec t, total
    total = VEC_SET(0.0)
    for i in range(p - 1, -1, -1):
        t = VEC_SET(0.0)
        for j in range(i + 1):
            t = t + half[i * p + j] * v[j]
        v[i] = t
        total = total + t * t
    for j in range(p):
        t = VEC_SET(0.0)
        for i in range(j, p):
            t = t + half[i * p + j] * v[i]
        v[j] = t
    size[0] = total


cdef inline void solve_start(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s, vecu* beta, vec* r2) noexcept nogil:
    """Coefficients and r^2 at the common point."""
    cdef const CommonPoint* at = &d.common
    cdef Py_ssize_t pattern, c, a, b, j, pos, n_a = q * (q + 1) // 2
    cdef const double* inverse
    cdef const vecu* c_y
    cdef vec t, total, size
    total = (<vecu*> s.within)[p]
    for j in range(p):
        beta[j] = (<vecu*> s.within)[j]
    for pattern in range(d.n_patterns):
        inverse = at.inverse + pattern * q * q
        if d.groups[pattern + 1] - d.groups[pattern] > 1:
            pos = pattern * n_a
            for a in range(q):
                for b in range(a + 1):
                    total = total + (1.0 if a == b else 2.0) * inverse[a * q + b] * (<vecu*> s.rest)[pos]
                    pos = pos + 1
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            c_y = (<vecu*> s.cy) + c * q
            for a in range(q):
                t = VEC_SET(0.0)
                for b in range(q):
                    t = t + inverse[a * q + b] * c_y[b]
                total = total + t * c_y[a]
            for j in range(p):
                t = beta[j]
                for a in range(q):
                    t = t + at.turned[(c * q + a) * p + j] * c_y[a]
                beta[j] = t
    apply_inverse(p, at.half, beta, &size)
    r2[0] = total - size


cdef inline void sum_start(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s, const vecu* beta, vecu* work,
                           vecu* sums) noexcept nogil:
    """s.store: f of each column, then B S B' of each pattern with a rest S; sums (n_a,) = s_D of the unit directions.

    work: q^2 vectors.
    """
    cdef const CommonPoint* at = &d.common
    cdef Py_ssize_t n_a = q * (q + 1) // 2, pattern, c, a, b, j, l, pos
    cdef vecu* f = <vecu*> s.store
    cdef vecu* Q = f + d.n_columns * q
    cdef const double* B
    cdef const vecu* rest
    cdef const vecu* c_y
    cdef vec t
    for pos in range(n_a):
        sums[pos] = VEC_SET(0.0)
    for pattern in range(d.n_patterns):
        B = at.solved + pattern * q * q
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            c_y = (<vecu*> s.cy) + c * q
            for a in range(q):
                t = VEC_SET(0.0)
                for b in range(q):
                    t = t + B[a * q + b] * c_y[b]
                for j in range(p):
                    t = t - at.E[(c * q + a) * p + j] * beta[j]
                f[c * q + a] = t
            pos = 0
            for a in range(q):
                for b in range(a + 1):
                    sums[pos] = sums[pos] + f[c * q + a] * f[c * q + b]
                    pos = pos + 1
        if d.groups[pattern + 1] - d.groups[pattern] == 1:
            continue
        rest = (<vecu*> s.rest) + pattern * n_a
        for a in range(q):
            for b in range(q):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + B[a * q + l] * rest[l * (l + 1) // 2 + b if l >= b else b * (b + 1) // 2 + l]
                work[a * q + b] = t
        pos = 0
        for a in range(q):
            for b in range(a + 1):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + work[a * q + l] * B[b * q + l]
                Q[pattern * n_a + pos] = t
                sums[pos] = sums[pos] + t
                pos = pos + 1
    pos = 0
    for a in range(q):
        for b in range(a):
            sums[pos + b] = 2.0 * sums[pos + b]
        pos = pos + a + 1


cdef inline void curve_start(Py_ssize_t q, Py_ssize_t p, const Batch* d, Lanes* s, const vecu* T, vecu* work, vecu* out
                             ) noexcept nogil:
    """out (n_a,) = sum f'D (N T f - E K sum E'T f) for the unit directions D, T (q, q) symmetric.

    work: p + 2 q^2 + 2 q vectors.
    """
    cdef const CommonPoint* at = &d.common
    cdef Py_ssize_t n_a = q * (q + 1) // 2, pattern, c, a, b, j, l, pos
    cdef vecu* f = <vecu*> s.store
    cdef vecu* Q
    cdef vecu* kappa = work
    cdef vecu* h = work + p
    cdef vecu* g = h + q
    cdef vecu* TQ = g + q
    cdef vecu* NTQ = TQ + q * q
    cdef const double* N
    cdef vec t
    for j in range(p):
        kappa[j] = VEC_SET(0.0)
    for pos in range(n_a):
        out[pos] = VEC_SET(0.0)
    for c in range(d.n_columns):
        for a in range(q):
            t = VEC_SET(0.0)
            for b in range(q):
                t = t + T[a * q + b] * f[c * q + b]
            h[a] = t
        for j in range(p):
            t = kappa[j]
            for a in range(q):
                t = t + at.E[(c * q + a) * p + j] * h[a]
            kappa[j] = t
    apply_inverse(p, at.half, kappa, &t)
    for pattern in range(d.n_patterns):
        N = at.N + pattern * q * q
        for c in range(d.columns[pattern], d.columns[pattern + 1]):
            for a in range(q):
                t = VEC_SET(0.0)
                for b in range(q):
                    t = t + T[a * q + b] * f[c * q + b]
                h[a] = t
            for a in range(q):
                t = VEC_SET(0.0)
                for b in range(q):
                    t = t + N[a * q + b] * h[b]
                for j in range(p):
                    t = t - at.E[(c * q + a) * p + j] * kappa[j]
                g[a] = t
            pos = 0
            for a in range(q):
                for b in range(a):
                    out[pos] = out[pos] + f[c * q + a] * g[b] + f[c * q + b] * g[a]
                    pos = pos + 1
                out[pos] = out[pos] + f[c * q + a] * g[a]
                pos = pos + 1
        if d.groups[pattern + 1] - d.groups[pattern] == 1:
            continue
        Q = (<vecu*> s.store) + d.n_columns * q + pattern * n_a
        for a in range(q):
            for b in range(q):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + T[a * q + l] * Q[l * (l + 1) // 2 + b if l >= b else b * (b + 1) // 2 + l]
                TQ[a * q + b] = t
        pos = 0
        for a in range(q):
            for b in range(q):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + N[a * q + l] * TQ[l * q + b]
                NTQ[a * q + b] = t
        for a in range(q):
            for b in range(a):
                out[pos] = out[pos] + NTQ[a * q + b] + NTQ[b * q + a]
                pos = pos + 1
            out[pos] = out[pos] + NTQ[a * q + a]
            pos = pos + 1


cdef void square_at_start(const Batch* d, Lanes* s, vecu* beta, vecu* work, vecu* sums, vec* r2) noexcept nogil:
    """beta and r^2 at the common point, and s_D; work: q^2 vectors."""
    if d.q == 1:
        solve_start(1, d.p, d, s, beta, r2)
        sum_start(1, d.p, d, s, beta, work, sums)
    elif d.q == 2:
        solve_start(2, d.p, d, s, beta, r2)
        sum_start(2, d.p, d, s, beta, work, sums)
    else:
        solve_start(d.q, d.p, d, s, beta, r2)
        sum_start(d.q, d.p, d, s, beta, work, sums)


cdef void step_of_scoring(const Batch* d, Lanes* s, vecu* change, vecu* work) noexcept nogil:
    """change (1 + n_a,) in sigma^2 and vech(C), C = sigma^2 G^, from the common point,
    sigma^2 = r^2 / nu there taken as 1.

    With I the expected information, g the slope and H the second derivatives,

        s = -I^-1 g,      s - I^-1 (H s + g - 2 tr(P V_a P V_s P V_s)),   V_s = sum of s_b V_b

    The first is a step of scoring: it ends at the optimum where all groups have the same Z_i'Z_i and X tells nothing
    that Z does not.  The second is what the next terms of the expansion of the slope about the point leave elsewhere,
    with the third derivatives by their expectation, E d_abc = -4 tr(P V_a P V_b P V_c):
    where scoring is exact they cancel.

    work: see `start_size`.
    """
    cdef Py_ssize_t q = d.q, p = d.p, n_a = q * (q + 1) // 2, n = n_a + 1, i, j
    cdef const CommonPoint* at = &d.common
    cdef vecu* g = work
    cdef vecu* sums = g + n
    cdef vecu* beta = sums + n_a
    cdef vecu* rest = beta + p
    cdef vec t, r2, scale
    square_at_start(d, s, beta, rest, sums, &r2)
    scale = (<vecu*> s.f.gls.nu)[0] / r2
    # sigma^2 is at its optimum given G^: its slope where C is held is that along G^, with the sign turned
    g[0] = VEC_SET(0.0)
    for i in range(n_a):
        g[1 + i] = VEC_SET(at.trace[i]) - scale * sums[i]
        if s.taken != NULL:
            g[1 + i] = g[1 + i] - (<vecu*> s.taken)[i]
        g[0] = g[0] - at.along[i] * g[1 + i]
    for i in range(n):
        t = VEC_SET(0.0)
        for j in range(n):
            t = t - at.scoring[i * n + j] * g[j]
        change[i] = t
    if at.bend != NULL:
        bend_step(d, s, change, work, r2)


cdef void bend_step(const Batch* d, Lanes* s, vecu* change, vecu* work, vec r2) noexcept nogil:
    """The second part of `step_of_scoring`."""
    cdef Py_ssize_t q = d.q, p = d.p, n_a = q * (q + 1) // 2, n = n_a + 1, a, b, i, j, l
    cdef const CommonPoint* at = &d.common
    cdef vecu* g = work
    cdef vecu* sums = g + n
    cdef vecu* e = sums + n_a
    cdef vecu* turned = e + n           # direction in G^ alone
    cdef vecu* curve = turned + n_a
    cdef vecu* T = curve + n_a
    cdef vec t, u, nu, inverse, size, rest
    nu = (<vecu*> s.f.gls.nu)[0]
    inverse = VEC_SET(1.0) / r2
    u = VEC_SET(0.0) - change[0]
    i = 0
    for a in range(q):
        for b in range(a + 1):
            t = change[1 + i] - change[0] * at.along[i]
            turned[i] = t
            u = u - sums[i] * inverse * t
            T[a * q + b] = t
            T[b * q + a] = t
            i += 1
    if q == 2:
        curve_start(2, p, d, s, T, T + 4, curve)
    elif q == 3:
        curve_start(3, p, d, s, T, T + 9, curve)
    else:
        curve_start(q, p, d, s, T, T + q * q, curve)
    # H s: with t = log sigma^2 the criterion is nu t + r^2(G^) e^-t + log|V| + ..;
    # u: the change of log r^2 less that of t
    e[0] = VEC_SET(0.0) - change[0] * g[0] - nu * u
    for i in range(n_a):
        t = nu * inverse * (2.0 * curve[i] + sums[i] * change[0])
        for j in range(n_a):
            t = t - at.square[i * n_a + j] * turned[j]
        e[1 + i] = t - change[0] * g[1 + i]
        e[0] = e[0] - t * at.along[i] - g[1 + i] * turned[i]
    size = VEC_SET(0.0)
    for i in range(n):
        t = e[i] + g[i]
        for j in range(n):
            u = VEC_SET(0.0)
            for l in range(n):
                u = u + at.bend[(i * n + j) * n + l] * change[l]
            t = t - 2.0 * u * change[j]
        e[i] = t
        size = size - change[i] * g[i]
    rest = VEC_SET(0.0)
    for i in range(n):
        t = VEC_SET(0.0)
        for j in range(n):
            t = t - at.scoring[i * n + j] * e[j]
        g[i] = t
        rest = rest - t * e[i]
    # far from the common point no expansion tells anything
    rest = VEC_WHERE_POSITIVE(0.25 * size - rest, VEC_SET(1.0), VEC_SET(0.0))
    for i in range(n):
        change[i] = change[i] + rest * g[i]


cdef Py_ssize_t start_size(Py_ssize_t q, Py_ssize_t p) noexcept nogil:
    """Vectors of work space of `step_of_scoring`."""
    return 6 * (1 + q * (q + 1) // 2) + p + 4 * q * q + 2 * q


cdef void first_theta(const Batch* d, Lanes* s) noexcept nogil:
    """Start of each response: given, or a step from a common point, see `step_of_scoring`.

    Where G^ is not definite the search starts from its principal axes.
    """
    cdef Py_ssize_t q = d.q, n_a = q * (q + 1) // 2, a, b, i, alpha, lane
    cdef vecu* G = <vecu*> s.small
    cdef vecu* change = G + q * q
    cdef vec t, scale
    if d.first_theta != NULL:
        for lane in range(LANES):
            for i in range(d.n_par):
                s.theta[i * LANES + lane] = d.first_theta[s.place[lane] * d.stride_theta + i]
        return
    step_of_scoring(d, s, change, change + n_a + 1)
    # sigma^2 is not left to vanish
    t = VEC_SET(1.0) + change[0]
    scale = VEC_SET(1.0) / VEC_WHERE_POSITIVE(t - VEC_SET(0.1), t, VEC_SET(0.1))
    alpha = 0
    for a in range(q):
        for b in range(a + 1):
            t = change[1 + alpha] + d.common.along[alpha]
            G[a * q + b] = t * scale if d.structure[a * q + b] else VEC_SET(0.0)
            alpha += 1
    theta_of(d, s)


cdef void theta_of(const Batch* d, Lanes* s) noexcept nogil:
    """Start from G^, of which s.small has the lower triangle (q, q): by its factor, or what is definite of it."""
    cdef Py_ssize_t q = d.q, a, b, l, i
    cdef vecu* theta = <vecu*> s.theta
    cdef vecu* G = <vecu*> s.small
    cdef vecu* whole = <vecu*> s.axes
    cdef vec t, floor, low
    floor = VEC_SET(0.1 / d.per_group)
    for a in range(q):
        for b in range(a + 1):
            whole[a * q + b] = G[a * q + b]
            whole[b * q + a] = G[a * q + b]
    low = VEC_SET(-1.0)
    for a in range(q):
        for b in range(a + 1):
            t = G[a * q + b]
            for l in range(b):
                t = t - G[a * q + l] * G[b * q + l]
            if b < a:
                G[a * q + b] = t / G[b * q + b]
            else:
                low = VEC_WHERE_POSITIVE(t - floor, low, VEC_SET(1.0))
                t = VEC_WHERE_POSITIVE(t - floor, t, floor)
                G[a * q + a] = VEC_SQRT(t)
    for i in range(d.n_par):
        theta[i] = G[d.row[i] * q + d.col[i]]
    if vec_max(<vecu*> &low) > 0.0:
        turn_low(d, s, low)


cdef void turn_low(const Batch* d, Lanes* s, vec low) noexcept nogil:
    """Start the lanes where `low` is positive from what is definite of G^, which is in s.axes."""
    cdef Py_ssize_t q = d.q, lane, i
    cdef double* G = <double*> s.small
    cdef double floor = 0.01 / d.per_group, t
    for i in range(q * q * LANES):
        G[i] = s.axes[i]
    if can_turn(d):
        straighten(d, s)
    for lane in range(LANES):
        if not (<double*> &low)[lane] > 0.0:
            continue
        if can_turn(d):
            for i in range(q * q):
                s.plain[i] = G[i * LANES + lane]
            turn_lane(d, s, lane, floor)
        elif d.n_par == q:
            for i in range(q):
                t = G[i * (q + 1) * LANES + lane]
                s.theta[i * LANES + lane] = sqrt(max(t, floor)) if t > 0.0 else 0.0
