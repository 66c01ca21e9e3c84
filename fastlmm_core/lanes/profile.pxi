# Profiled ML and REML criterion with exact gradient and Hessian, from sums over groups, in lanes.
#
# With G^ = L L' (relative to sigma^2), sums over groups, [X y]'V^-1[X y] = H, Cholesky factor of H
# giving beta, r^2 and |H_xx|, nu = n (ML) or n - p (REML), b = (-beta, 1), K = H_xx^-1:
#
#     d = sum log|V_i| + nu (1 + log(2 pi r^2 / nu)) [+ log|H_xx|]
#     d_D d      = <sum N_i - E_i M E_i', D>,   M = (nu / r^2) b b' [+ K]
#     d_D d_F d  = sum tr((-N_i + 2 E_i M E_i') D N_i F)
#                  - (2 nu / r^2) u_D'K u_F - (nu / r^4) s_D s_F [- tr(K J_D K J_F)]
#
# for symmetric directions D, F of G^, where J_D = sum E_i'D E_i, u_D = (J_D b)_x, s_D = b'J_D b and
# E_i = Z_i'V_i^-1[X_i y_i], N_i = Z_i'V_i^-1 Z_i.  (The first line is Bates et al. 2015, eq. 34 and 41;
# the derivatives follow from dN = -N dG^ N, dE = -N dG^ E.)  The chain to the free elements of L
# goes through G^ = F F', F = Q'L with an orthogonal Q: coordinates in which L is well behaved.  No loop here runs over groups.

cdef inline void value_of(Py_ssize_t q, Py_ssize_t k, Profile* f, int order) noexcept nogil:
    cdef Py_ssize_t p = k - 1, i, j, l, pos = 0
    cdef vecu* H = <vecu*> f.H
    cdef vecu* chol = <vecu*> f.chol
    cdef vecu* b = <vecu*> f.b
    cdef vec t, u, log_h, one, valid
    one = VEC_SET(1.0)
    valid = one
    t = one
    log_h = VEC_SET(0.0)
    for i in range(k):
        for j in range(i + 1):
            t = H[pos]
            pos = pos + 1
            for l in range(j):
                t = t - chol[i * k + l] * chol[j * k + l]
            if j < i:
                chol[i * k + j] = t / chol[j * k + j]
            else:
                valid = VEC_WHERE_POSITIVE(t, valid, VEC_SET(-1.0))
                t = VEC_WHERE_POSITIVE(t, t, one)
                chol[i * k + i] = VEC_SQRT(t)
                if i < p:
                    log_h = log_h + VEC_LOG(t)
    (<vecu*> f.r2)[0] = t
    for i in range(p - 1, -1, -1):
        u = chol[p * k + i]
        for l in range(i + 1, p):
            u = u + chol[l * k + i] * b[l]
        b[i] = VEC_SET(0.0) - u / chol[i * k + i]
    b[p] = one
    u = f.nu * (VEC_LOG(t * (2.0 * M_PI / f.nu)) + 1.0)
    t = (<vecu*> f.logdet)[0]
    (<vecu*> f.noise)[0] = 2.3e-16 * (VEC_ABS(t) + VEC_ABS(u) + VEC_ABS(log_h) + f.nu)
    t = t + u
    if f.reml:
        t = t + log_h
    # also infinite where t is NaN: then t - t is not 0
    valid = VEC_WHERE_POSITIVE(one - VEC_ABS(t - t), valid, VEC_SET(-1.0))
    (<vecu*> f.value)[0] = VEC_WHERE_POSITIVE(valid, t, VEC_SET(1e300) * VEC_SET(1e300))
    if order >= 1:
        first_derivatives(q, k, f)


cdef inline void first_derivatives(Py_ssize_t q, Py_ssize_t k, Profile* f) noexcept nogil:
    """g = sum N - E M E', gradient in theta = 2 (Q g F); 2 M = w w', w = sqrt(2) [inverse', sqrt(nu / r^2) b]."""
    cdef Py_ssize_t p = k - 1, a, b, c, i, j, l
    cdef vecu* chol = <vecu*> f.chol
    cdef vecu* inverse = <vecu*> f.inverse
    cdef vecu* w = <vecu*> f.weight
    cdef vecu* M = <vecu*> f.M
    cdef vecu* g = <vecu*> f.g
    cdef vecu* gram = <vecu*> f.gram
    cdef vecu* beta = <vecu*> f.b
    cdef vec t, root
    for j in range(p):
        inverse[j * k + j] = VEC_SET(1.0) / chol[j * k + j]
        for i in range(j + 1, p):
            t = VEC_SET(0.0)
            for l in range(j, i):
                t = t + chol[i * k + l] * inverse[l * k + j]
            inverse[i * k + j] = (VEC_SET(0.0) - t) / chol[i * k + i]
    root = VEC_SQRT(VEC_SET(2.0 * f.nu) / (<vecu*> f.r2)[0])
    for j in range(k):
        for l in range(p):
            w[j * k + l] = inverse[l * k + j] * 1.4142135623730951 if j <= l else VEC_SET(0.0)
        w[j * k + p] = root * beta[j]
    for i in range(k):
        for j in range(i + 1):
            t = VEC_SET(0.0)
            for l in range(i if f.reml else p, k):
                t = t + w[i * k + l] * w[j * k + l]
            M[i * k + j] = t * 0.5
            M[j * k + i] = t * 0.5
    for a in range(q):
        for b in range(a + 1):
            t = (<vecu*> f.sum_n)[a * (a + 1) // 2 + b]
            for i in range(k):
                # row a k + i of the Gram matrix, columns b k ..: below the diagonal unless a = b
                l = a * k + i
                c = l * (l + 1) // 2 + b * k
                if b < a:
                    for j in range(k):
                        t = t - M[i * k + j] * gram[c + j]
                else:
                    for j in range(i):
                        t = t - 2.0 * M[i * k + j] * gram[c + j]
                    t = t - M[i * k + i] * gram[c + i]
            g[a * q + b] = t
            g[b * q + a] = t
    for l in range(f.n_par):
        t = VEC_SET(0.0)
        for a in range(q):
            if f.turn == NULL:
                t = t + g[f.row[l] * q + a] * (<vecu*> f.factor)[a * q + f.col[l]]
                continue
            for b in range(q):
                t = t + f.turn[f.row[l] * q + b] * g[b * q + a] * (<vecu*> f.factor)[a * q + f.col[l]]
        (<vecu*> f.grad)[l] = 2.0 * t


cdef inline vecu* tensor_at(Py_ssize_t n_a, Profile* f, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c, Py_ssize_t d) noexcept nogil:
    cdef Py_ssize_t i = a * (a + 1) // 2 + b if a >= b else b * (b + 1) // 2 + a
    cdef Py_ssize_t j = c * (c + 1) // 2 + d if c >= d else d * (d + 1) // 2 + c
    return (<vecu*> f.tensor) + i * n_a + j


cdef inline void add_product(Py_ssize_t n_a, Profile* f, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c, Py_ssize_t d, vecu* out) noexcept nogil:
    """Add half of sum tr(B D N F) for the symmetric unit directions D = (a, b), F = (c, d)."""
    cdef vec t
    t = tensor_at(n_a, f, d, a, b, c)[0]
    if a != b:
        t = t + tensor_at(n_a, f, d, b, a, c)[0]
    if c != d:
        t = t + tensor_at(n_a, f, c, a, b, d)[0]
        if a != b:
            t = t + tensor_at(n_a, f, c, b, a, d)[0]
    out[0] = out[0] + 0.5 * t


cdef inline void hessian_of(Py_ssize_t q, Py_ssize_t k, Profile* f) noexcept nogil:
    cdef Py_ssize_t p = k - 1, n_a = q * (q + 1) // 2, n = f.n_par
    cdef Py_ssize_t a, b, c, d, i, j, l, r, alpha, beta
    cdef vecu* inverse = <vecu*> f.inverse
    cdef vecu* gram = <vecu*> f.gram
    cdef vecu* curve = <vecu*> f.curve
    cdef vecu* jac = <vecu*> f.jac
    cdef vecu* work = <vecu*> f.work
    cdef vecu* hess = <vecu*> f.hess
    cdef vecu* factor = <vecu*> f.factor
    cdef vecu* b_ = <vecu*> f.b
    cdef vecu* J
    cdef vecu* v
    cdef vecu* other
    cdef vec t, u, scale
    scale = VEC_SET(f.nu) / (<vecu*> f.r2)[0]
    # for each direction: v = (L_xx^-1 u, s) and, by REML, L_xx^-1 J_xx L_xx^-T
    alpha = 0
    for a in range(q):
        for b in range(a + 1):
            J = (<vecu*> f.directions) + alpha * k * k
            v = (<vecu*> f.vectors) + alpha * k
            for i in range(k):
                for j in range(k):
                    l = a * k + i
                    r = b * k + j
                    t = gram[l * (l + 1) // 2 + r] if l >= r else gram[r * (r + 1) // 2 + l]
                    if a != b:
                        l = b * k + i
                        r = a * k + j
                        t = t + (gram[l * (l + 1) // 2 + r] if l >= r else gram[r * (r + 1) // 2 + l])
                    work[i * k + j] = t
            u = VEC_SET(0.0)
            for i in range(k):
                t = VEC_SET(0.0)
                for j in range(k):
                    t = t + work[i * k + j] * b_[j]
                J[i] = t
                u = u + t * b_[i]
            v[p] = u
            for i in range(p):
                t = VEC_SET(0.0)
                for j in range(i + 1):
                    t = t + inverse[i * k + j] * J[j]
                v[i] = t
            if f.reml:
                for i in range(p - 1, -1, -1):
                    for j in range(p):
                        t = VEC_SET(0.0)
                        for l in range(i + 1):
                            t = t + inverse[i * k + l] * work[l * k + j]
                        work[i * k + j] = t
                for i in range(p):
                    for j in range(p):
                        t = VEC_SET(0.0)
                        for l in range(j + 1):
                            t = t + work[i * k + l] * inverse[j * k + l]
                        J[i * k + j] = t
            alpha += 1
    alpha = 0
    for a in range(q):
        for b in range(a + 1):
            beta = 0
            for c in range(a + 1):
                for d in range(c + 1):
                    if beta > alpha:
                        break
                    v = (<vecu*> f.vectors) + alpha * k
                    other = (<vecu*> f.vectors) + beta * k
                    t = VEC_SET(0.0) - scale * scale * v[p] * other[p] * (1.0 / f.nu)
                    for i in range(p):
                        t = t - 2.0 * scale * v[i] * other[i]
                    if f.reml:
                        v = (<vecu*> f.directions) + alpha * k * k
                        other = (<vecu*> f.directions) + beta * k * k
                        for i in range(p):
                            for j in range(p):
                                t = t - v[i * k + j] * other[i * k + j]
                    curve[alpha * n_a + beta] = t
                    add_product(n_a, f, a, b, c, d, curve + alpha * n_a + beta)
                    add_product(n_a, f, c, d, a, b, curve + alpha * n_a + beta)
                    curve[beta * n_a + alpha] = curve[alpha * n_a + beta]
                    beta += 1
            alpha += 1
    # chain to theta: Jac' curve Jac plus 2 Q g Q' between elements of one column of L
    for l in range(n):
        alpha = 0
        for a in range(q):
            for b in range(a + 1):
                if f.turn != NULL:
                    t = (f.turn[f.row[l] * q + a] * factor[b * q + f.col[l]]
                         + f.turn[f.row[l] * q + b] * factor[a * q + f.col[l]])
                else:
                    t = VEC_SET(0.0)
                    if a == f.row[l]:
                        t = t + factor[b * q + f.col[l]]
                    if b == f.row[l]:
                        t = t + factor[a * q + f.col[l]]
                jac[alpha * n + l] = t
                alpha += 1
    for alpha in range(n_a):
        for l in range(n):
            t = VEC_SET(0.0)
            for beta in range(n_a):
                t = t + curve[alpha * n_a + beta] * jac[beta * n + l]
            work[alpha * n + l] = t
    for i in range(n):
        for j in range(i + 1):
            t = VEC_SET(0.0)
            for alpha in range(n_a):
                t = t + jac[alpha * n + i] * work[alpha * n + j]
            if f.col[i] == f.col[j]:
                if f.turn == NULL:
                    t = t + 2.0 * (<vecu*> f.g)[f.row[i] * q + f.row[j]]
                else:
                    for a in range(q):
                        for b in range(q):
                            t = t + (2.0 * f.turn[f.row[i] * q + a] * f.turn[f.row[j] * q + b]
                                     * (<vecu*> f.g)[a * q + b])
            hess[i * n + j] = t
            hess[j * n + i] = t


cdef void profile_value(Profile* f, int order) noexcept nogil:
    """Cholesky factor of H, beta, r^2 and the criterion; by order >= 1 also M, w, g and the gradient."""
    # constant sizes let the compiler unroll the shapes that nearly everyone uses
    if f.q == 1 and f.k == 2:
        value_of(1, 2, f, order)
    elif f.q == 1 and f.k == 3:
        value_of(1, 3, f, order)
    elif f.q == 2 and f.k == 3:
        value_of(2, 3, f, order)
    elif f.q == 2 and f.k == 5:
        value_of(2, 5, f, order)
    else:
        value_of(f.q, f.k, f, order)


cdef void profile_second(Profile* f, int order) noexcept nogil:
    """Hessian in vech(G^), then in theta; after `profile_value` with order 1 and the second sweep."""
    if f.q == 1 and f.k == 2:
        hessian_of(1, 2, f)
    elif f.q == 1 and f.k == 3:
        hessian_of(1, 3, f)
    elif f.q == 2 and f.k == 3:
        hessian_of(2, 3, f)
    else:
        hessian_of(f.q, f.k, f)


offered.profile_value = &profile_value
offered.profile_second = &profile_second
