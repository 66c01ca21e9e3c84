# Profiled ML and REML criterion with exact gradient and Hessian, from sums over groups, in lanes.
#
# With sums over groups, H = [X y]'V^-1[X y], and nu, b, K, u_D, s_D, J_D of gls.pxi,
#
#     d              = sum log|V_i| + nu (1 + log(2 pi r^2 / nu)) [+ log|H_xx|]
#     d_D d          = <sum N_i - E_i M E_i', D>,   M = (nu / r^2) b b' [+ K]
#     d_D d_F d      = sum tr((-N_i + 2 E_i M E_i') D N_i F) + (what gls.pxi gives)
#
# for symmetric directions D, F of G^, where J_D = sum E_i'D E_i, E_i = Z_i'V_i^-1[X_i y_i], N_i = Z_i'V_i^-1 Z_i.
# (The first line is Bates et al. 2015, eq. 34 and 41; the derivatives follow from dN = -N dG^ N, dE = -N dG^ E.)
# The chain to the free elements of L is that of chain.pxi.  No loop here runs over groups.

include "../small/gls.pxi"
include "../small/chain.pxi"


cdef inline void first_derivatives(Py_ssize_t q, Py_ssize_t k, Profile* f) noexcept nogil:
    """g = sum N - E M E', M = w w' / 2, and the gradient in theta."""
    cdef Py_ssize_t p = k - 1, a, b, c, i, j, l
    cdef vecu* w = <vecu*> f.gls.weight
    cdef vecu* M = <vecu*> f.M
    cdef vecu* g = <vecu*> f.g
    cdef vecu* gram = <vecu*> f.gram
    cdef vec t
    gls_weight(k, &f.gls)
    for i in range(k):
        for j in range(i + 1):
            t = VEC_SET(0.0)
            for l in range(i if f.gls.reml else p, k):
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
    chain_gradient(q, &f.chain, <vecu*> f.factor, g, <vecu*> f.grad)


cdef inline void value_of(Py_ssize_t q, Py_ssize_t k, Profile* f, int order) noexcept nogil:
    gls_value(k, &f.gls)
    if order >= 1:
        first_derivatives(q, k, f)


cdef inline vecu* tensor_at(Py_ssize_t n_a, Profile* f, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c,
                            Py_ssize_t d) noexcept nogil:
    cdef Py_ssize_t i = a * (a + 1) // 2 + b if a >= b else b * (b + 1) // 2 + a
    cdef Py_ssize_t j = c * (c + 1) // 2 + d if c >= d else d * (d + 1) // 2 + c
    return (<vecu*> f.tensor) + i * n_a + j


cdef inline void add_product(Py_ssize_t n_a, Profile* f, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c, Py_ssize_t d,
                             vecu* out) noexcept nogil:
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


cdef inline void directions_of(Py_ssize_t q, Py_ssize_t k, Profile* f, vecu* directions) noexcept nogil:
    """J_D of each unit direction, and (R_xx^-1 u_D, s_D); by REML J_D with R_xx^-1 on both sides."""
    cdef Py_ssize_t a, b, i, j, l, r, d = 0
    cdef vecu* gram = <vecu*> f.gram
    cdef vecu* beta = <vecu*> f.gls.b
    cdef vecu* J
    cdef vecu* v
    cdef vec t, u
    for a in range(q):
        for b in range(a + 1):
            J = directions + d * k * k
            v = (<vecu*> f.vectors) + d * k
            for i in range(k):
                u = VEC_SET(0.0)
                for j in range(k):
                    l = a * k + i
                    r = b * k + j
                    t = gram[l * (l + 1) // 2 + r] if l >= r else gram[r * (r + 1) // 2 + l]
                    if a != b:
                        l = b * k + i
                        r = a * k + j
                        t = t + (gram[l * (l + 1) // 2 + r] if l >= r else gram[r * (r + 1) // 2 + l])
                    J[i * k + j] = t
                    u = u + t * beta[j]
                v[i] = u
            gls_direction(k, &f.gls, v)
            if f.gls.reml:
                gls_within(k, &f.gls, J)
            d += 1


cdef inline void hessian_of(Py_ssize_t q, Py_ssize_t k, Profile* f) noexcept nogil:
    """Second derivatives along the unit directions of G^, then in theta."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, a, b, c, d, i = 0, j
    cdef vecu* curve = <vecu*> f.curve
    # few directions have room on the stack, where what is read need not wait for what is written elsewhere
    cdef vec few[75]
    cdef vecu* directions = <vecu*> few if n_a * k * k <= 75 else <vecu*> f.directions
    directions_of(q, k, f, directions)
    for a in range(q):
        for b in range(a + 1):
            j = 0
            for c in range(a + 1):
                for d in range(c + 1):
                    if j > i:
                        break
                    curve[i * n_a + j] = VEC_SET(0.0)
                    add_product(n_a, f, a, b, c, d, curve + i * n_a + j)
                    add_product(n_a, f, c, d, a, b, curve + i * n_a + j)
                    curve[j * n_a + i] = curve[i * n_a + j]
                    j += 1
            i += 1
    gls_curve(k, n_a, &f.gls, 2.0, <vecu*> f.vectors, directions if f.gls.reml else NULL, curve)
    chain_hessian(q, &f.chain, <vecu*> f.factor, <vecu*> f.g, curve, <vecu*> f.jac, <vecu*> f.hess)


cdef void profile_value(Profile* f, int order) noexcept nogil:
    """Cholesky factor of H, beta, r^2 and the criterion; by order >= 1 also M, w, g and the gradient."""
    # constant sizes let the compiler unroll the shapes that nearly everyone uses
    if f.chain.q == 1 and f.gls.k == 2:
        value_of(1, 2, f, order)
    elif f.chain.q == 1 and f.gls.k == 3:
        value_of(1, 3, f, order)
    elif f.chain.q == 2 and f.gls.k == 3:
        value_of(2, 3, f, order)
    elif f.chain.q == 2 and f.gls.k == 4:
        value_of(2, 4, f, order)
    elif f.chain.q == 2 and f.gls.k == 5:
        value_of(2, 5, f, order)
    else:
        value_of(f.chain.q, f.gls.k, f, order)


cdef void profile_second(Profile* f, int order) noexcept nogil:
    """Hessian in vech(G^), then in theta; after `profile_value` with order 1 and the second sweep."""
    if f.chain.q == 1 and f.gls.k == 2:
        hessian_of(1, 2, f)
    elif f.chain.q == 1 and f.gls.k == 3:
        hessian_of(1, 3, f)
    elif f.chain.q == 2 and f.gls.k == 3:
        hessian_of(2, 3, f)
    elif f.chain.q == 2 and f.gls.k == 4:
        hessian_of(2, 4, f)
    elif f.chain.q == 2 and f.gls.k == 5:
        hessian_of(2, 5, f)
    else:
        hessian_of(f.chain.q, f.gls.k, f)


offered.profile_value = &profile_value
offered.profile_second = &profile_second
