# Beta, r^2 and the criterion from H = [X y]'V^-1[X y], and their part in its derivatives: the only profile of H.
#
# uses   Gls (chain.pxd); vec, vecu, VEC_* of vector.h, or of scalar.h for one at a time
# gives  gls_value, gls_weight, gls_direction, gls_within, gls_curve
#
# With R R' = H, nu = n (ML) or n - p (REML), b = (-beta, 1), K = H_xx^-1
#
#     d = log|V| + nu (1 + log(2 pi r^2 / nu)) [+ log|H_xx|]                       (Bates et al. 2015, eq. 34 and 41)
#
# and for symmetric directions D, F of G^, J_D = sum E'D E, u_D = (J_D b)_x, s_D = b'J_D b (E = Z'V^-1 [X y])
#
#     d_D d_F d = ... - (2 nu / r^2) u_D'K u_F - (nu / r^4) s_D s_F [- tr(K J_D K J_F)]

cdef inline void gls_value(Py_ssize_t k, const Gls* f) noexcept nogil:
    """chol, b, r2, value and noise from H and logdet."""
    cdef Py_ssize_t p = k - 1, i, j, l, pos = 0
    cdef vecu* H = <vecu*> f.H
    cdef vecu* chol = <vecu*> f.chol
    cdef vecu* b = <vecu*> f.b
    cdef vec t, u, log_h, one, valid, noise, nu, product, exponent
    nu = (<vecu*> f.nu)[0]
    one = VEC_SET(1.0)
    valid = one
    t = one
    product = one
    exponent = noise = VEC_SET(0.0)
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
                    product = product * t
                    VEC_SPLIT(product, exponent)
                    # H is what remains of [X y]'[X y]: its relative error grows by as much as it has shrunk
                    if f.reml and f.before != NULL:
                        noise = noise + VEC_SET(f.before[i]) / t
    (<vecu*> f.r2)[0] = t
    for i in range(p - 1, -1, -1):
        u = chol[p * k + i]
        for l in range(i + 1, p):
            u = u + chol[l * k + i] * b[l]
        b[i] = VEC_SET(0.0) - u / chol[i * k + i]
    b[p] = one
    noise = noise + nu * (VEC_SET(f.before[p]) / t if f.before != NULL else one)
    log_h = VEC_LOG(product) + exponent * M_LN2
    u = nu * (VEC_LOG(t * (VEC_SET(2.0 * M_PI) / nu)) + 1.0)
    t = (<vecu*> f.logdet)[0]
    (<vecu*> f.noise)[0] = 2.3e-16 * (VEC_ABS(t) + VEC_ABS(u) + VEC_ABS(log_h) + noise)
    t = t + u
    if f.reml:
        t = t + log_h
    # also infinite where t is NaN: then t - t is not 0
    valid = VEC_WHERE_POSITIVE(one - VEC_ABS(t - t), valid, VEC_SET(-1.0))
    (<vecu*> f.value)[0] = VEC_WHERE_POSITIVE(valid, t, VEC_SET(1e300) * VEC_SET(1e300))


cdef inline void gls_weight(Py_ssize_t k, const Gls* f) noexcept nogil:
    """inverse, and w = [sqrt(2) inverse', sqrt(2 nu / r^2) b] (upper triangular)."""
    cdef Py_ssize_t p = k - 1, i, j, l
    cdef vecu* chol = <vecu*> f.chol
    cdef vecu* inverse = <vecu*> f.inverse
    cdef vecu* w = <vecu*> f.weight
    cdef vecu* b = <vecu*> f.b
    cdef vec t, root
    for j in range(p):
        inverse[j * k + j] = VEC_SET(1.0) / chol[j * k + j]
        for i in range(j + 1, p):
            t = VEC_SET(0.0)
            for l in range(j, i):
                t = t + chol[i * k + l] * inverse[l * k + j]
            inverse[i * k + j] = (VEC_SET(0.0) - t) / chol[i * k + i]
    root = VEC_SQRT((<vecu*> f.nu)[0] * 2.0 / (<vecu*> f.r2)[0])
    for j in range(k):
        for l in range(p):
            w[j * k + l] = inverse[l * k + j] * 1.4142135623730951 if j <= l else VEC_SET(0.0)
        w[j * k + p] = root * b[j]


cdef inline void gls_direction(Py_ssize_t k, const Gls* f, vecu* u) noexcept nogil:
    """u <- (R_xx^-1 u_D, s_D) from J_D b (k,)."""
    cdef Py_ssize_t p = k - 1, i, j
    cdef vec t
    t = VEC_SET(0.0)
    for i in range(k):
        t = t + u[i] * (<vecu*> f.b)[i]
    u[p] = t
    for i in range(p - 1, -1, -1):
        t = VEC_SET(0.0)
        for j in range(i + 1):
            t = t + (<vecu*> f.inverse)[i * k + j] * u[j]
        u[i] = t


cdef inline void gls_within(Py_ssize_t k, const Gls* f, vecu* J) noexcept nogil:
    """J (k, k): J_xx <- R_xx^-1 J_xx R_xx^-T."""
    cdef Py_ssize_t p = k - 1, i, j, l
    cdef vecu* inverse = <vecu*> f.inverse
    cdef vec t
    for i in range(p - 1, -1, -1):
        for j in range(p):
            t = VEC_SET(0.0)
            for l in range(i + 1):
                t = t + inverse[i * k + l] * J[l * k + j]
            J[i * k + j] = t
    for i in range(p):
        for j in range(p - 1, -1, -1):
            t = VEC_SET(0.0)
            for l in range(j + 1):
                t = t + J[i * k + l] * inverse[j * k + l]
            J[i * k + j] = t


cdef inline void gls_curve(Py_ssize_t k, Py_ssize_t n, const Gls* f, double share, const vecu* v, const vecu* J,
                           vecu* curve) noexcept nogil:
    """curve (n, n) -= (nu / r^2) (share u_D'K u_F + s_D s_F / r^2) [+ tr(K J_D K J_F)].

    share : 2 for second derivatives, 1 for the average information
    v : (n, k) as `gls_direction` gives it
    J : (n, k, k) as `gls_within` gives it; NULL without the last term
    """
    cdef Py_ssize_t p = k - 1, d, h, i, j
    cdef vec t, scale, root
    scale = (<vecu*> f.nu)[0] / (<vecu*> f.r2)[0]
    root = VEC_SET(1.0) / (<vecu*> f.r2)[0]
    for d in range(n):
        for h in range(d + 1):
            t = v[d * k + p] * v[h * k + p] * root
            for i in range(p):
                t = t + share * v[d * k + i] * v[h * k + i]
            t = scale * t
            for i in range(p if J != NULL else 0):
                for j in range(p):
                    t = t + J[(d * k + i) * k + j] * J[(h * k + i) * k + j]
            curve[d * n + h] = curve[d * n + h] - t
            if h < d:
                curve[h * n + d] = curve[h * n + d] - t
