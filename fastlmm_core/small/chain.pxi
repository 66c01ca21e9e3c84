# The chain rule from G^_o = F F', F = B L(theta), to theta: the only one in the kernels.
#
# uses   Chain (chain.pxd); vec, vecu, VEC_SET of vector.h, or of scalar.h for one at a time
# gives  chain_gradient, chain_hessian
#
# An engine knows the slope S (symmetric) and the second derivatives C along unit directions D of G^_o.  With dG^_o =
# B dL F' + F dL'B' and J the coefficients of dG^_o in those directions
#
#     d f / d theta_i            = 2 (B'S F)[row_i, col_i]
#     d^2 f / d theta_i d theta_j = J_i'C J_j + 2 [col_i = col_j] (B'S B)[row_i, row_j]

cdef inline vec chain_basis(const Chain* c, Py_ssize_t i) noexcept nogil:
    return (<const vecu*> c.axes)[i] if c.axes != NULL else VEC_SET(c.basis[i])


cdef inline void chain_gradient(Py_ssize_t q, const Chain* c, const vecu* F, const vecu* S, vecu* grad) noexcept nogil:
    """grad (n_par,)."""
    cdef Py_ssize_t l, a, b
    cdef vec t, u
    for l in range(c.n_par):
        t = VEC_SET(0.0)
        for a in range(q):
            if c.basis == NULL and c.axes == NULL:
                t = t + S[c.row[l] * q + a] * F[a * q + c.col[l]]
                continue
            u = VEC_SET(0.0)
            for b in range(q):
                u = u + chain_basis(c, b * q + c.row[l]) * S[b * q + a]
            t = t + u * F[a * q + c.col[l]]
        grad[l] = 2.0 * t


cdef inline void chain_jacobian(Py_ssize_t q, const Chain* c, const vecu* F, vecu* J) noexcept nogil:
    """J (n_free, n_par): coefficients of dG^_o."""
    cdef Py_ssize_t f, l, a = 0, b = 0
    cdef vec t
    for f in range(c.n_free):
        if c.free_row != NULL:
            a = c.free_row[f]
            b = c.free_col[f]
        for l in range(c.n_par):
            # the direction of an element of the diagonal has one 1 only, and so half of both terms, which are equal
            if c.basis != NULL or c.axes != NULL:
                t = chain_basis(c, a * q + c.row[l]) * F[b * q + c.col[l]]
                t = t + chain_basis(c, b * q + c.row[l]) * F[a * q + c.col[l]]
            else:
                t = VEC_SET(0.0)
                if a == c.row[l]:
                    t = t + F[b * q + c.col[l]]
                if b == c.row[l]:
                    t = t + F[a * q + c.col[l]]
            J[f * c.n_par + l] = t
        b += 1
        if b > a:
            a += 1
            b = 0


cdef inline void chain_bend(Py_ssize_t q, const Chain* c, const vecu* S, vecu* work, vecu* hess) noexcept nogil:
    """hess (n_par, n_par) = 2 [col_i = col_j] (B'S B)[row_i, row_j]; work: 2 q^2 vectors."""
    cdef Py_ssize_t i, j, a, b, l
    cdef vecu* T = work + q * q
    cdef vec t
    if c.basis == NULL and c.axes == NULL:
        for i in range(q * q):
            T[i] = S[i]
    else:
        for a in range(q):
            for j in range(q):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + S[a * q + l] * chain_basis(c, l * q + j)
                work[a * q + j] = t
        for i in range(q):
            for j in range(q):
                t = VEC_SET(0.0)
                for l in range(q):
                    t = t + chain_basis(c, l * q + i) * work[l * q + j]
                T[i * q + j] = t
    for i in range(c.n_par):
        for j in range(c.n_par):
            hess[i * c.n_par + j] = 2.0 * T[c.row[i] * q + c.row[j]] if c.col[i] == c.col[j] else VEC_SET(0.0)


cdef inline void chain_hessian(Py_ssize_t q, const Chain* c, const vecu* F, const vecu* S, const vecu* C, vecu* work,
                               vecu* hess) noexcept nogil:
    """hess (n_par, n_par) from S (q, q) and C (n_free, n_free).

    work: 2 max(q^2, n_free n_par) vectors
    """
    cdef Py_ssize_t n = c.n_free, m = c.n_par, i, j, f, h
    cdef vecu* J = work
    cdef vecu* turned = work + n * m
    cdef vec t
    chain_bend(q, c, S, work, hess)
    chain_jacobian(q, c, F, J)
    for f in range(n):
        for i in range(m):
            t = VEC_SET(0.0)
            for h in range(n):
                t = t + C[f * n + h] * J[h * m + i]
            turned[f * m + i] = t
    for i in range(m):
        for j in range(i + 1):
            t = hess[i * m + j]
            for f in range(n):
                t = t + J[f * m + i] * turned[f * m + j]
            hess[i * m + j] = t
            hess[j * m + i] = t
