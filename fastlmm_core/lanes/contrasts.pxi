# Linear functions row'beta of the fits of many responses: the lanes are responses.
#
# K = H_xx^-1 is (X'V^-1 X)^-1 in the conditioned columns, J_D = E'D E for D of G^ (see profile.pxi), and
#
#     var(row'beta) / sigma^2 = row'K row,    its slope in theta = sum over D of (c'J_D c) d D / d theta,  c = K row
#
# from which Satterthwaite's degrees of freedom follow.


cdef void along_theta(const Batch* d, Lanes* s, const vecu* c, const vecu* other, vecu* out) noexcept nogil:
    """out = derivative of c_x'H_xx^-1 other_x in theta, up to H_xx^-1 at both ends:
    sum over D of (c'J_D other) jac_D."""
    cdef Py_ssize_t q = d.q, p = d.p, k = p + 1, n = d.n_par, alpha = 0, a, b, i, j, l, r
    cdef vecu* gram = <vecu*> s.f.gram
    cdef vecu* jac = <vecu*> s.f.jac
    cdef vec t, u
    for l in range(n):
        out[l] = VEC_SET(0.0)
    for a in range(q):
        for b in range(a + 1):
            u = VEC_SET(0.0)
            for i in range(p):
                t = VEC_SET(0.0)
                l = a * k + i
                for j in range(p):
                    r = b * k + j
                    t = t + other[j] * (gram[l * (l + 1) // 2 + r] if l >= r else gram[r * (r + 1) // 2 + l])
                u = u + c[i] * t
                if a != b:
                    t = VEC_SET(0.0)
                    r = b * k + i
                    for j in range(p):
                        l = a * k + j
                        t = t + other[j] * gram[l * (l + 1) // 2 + r]
                    u = u + c[i] * t
            for l in range(n):
                out[l] = out[l] + u * jac[alpha * n + l]
            alpha += 1


cdef void contrast_of(const Batch* d, Lanes* s, const vecu* row, vecu* c, vec* variance) noexcept nogil:
    """c = H_xx^-1 row' by way of a = L_xx^-1 row', and variance = a'a; c has room for 2 p vectors."""
    cdef Py_ssize_t p = d.p, k = p + 1, i, j
    cdef vecu* inverse = <vecu*> s.f.gls.inverse
    cdef vecu* a = c + p
    cdef vec t, total
    total = VEC_SET(0.0)
    for i in range(p):
        t = VEC_SET(0.0)
        for j in range(i + 1):
            t = t + inverse[i * k + j] * row[j]
        a[i] = t
        total = total + t * t
    for j in range(p):
        t = VEC_SET(0.0)
        for i in range(j, p):
            t = t + inverse[i * k + j] * a[i]
        c[j] = t
    variance[0] = total


cdef void shift_of(const Batch* d, Lanes* s, vecu* out) noexcept nogil:
    """-(1 / r^2) d r^2 / d theta."""
    cdef Py_ssize_t n = d.n_par, k = d.p + 1, n_a = d.q * (d.q + 1) // 2, alpha, l
    cdef vecu* jac = <vecu*> s.f.jac
    cdef vecu* vectors = <vecu*> s.f.vectors
    cdef vec t, inverse
    inverse = VEC_SET(1.0) / (<vecu*> s.f.gls.r2)[0]
    for l in range(n):
        t = VEC_SET(0.0)
        for alpha in range(n_a):
            t = t + vectors[alpha * k + k - 1] * jac[alpha * n + l]
        out[l] = t * inverse


cdef void degrees_of_freedom(const Batch* d, Lanes* s, const vecu* row, vec* df) noexcept nogil:
    """Satterthwaite's degrees of freedom of row'beta: 1 / (1 / nu + u'H^-1u), u = d log var(row'beta) / d theta.

    The scale of V is profiled out.  At the boundary u vanishes for the elements of theta that are zero with their
    column, so that these are left out; M, work and `small` are overwritten.
    """
    cdef Py_ssize_t n = d.n_par, l
    cdef vecu* c = <vecu*> s.f.M
    cdef vecu* u = <vecu*> s.step
    cdef vecu* shift = <vecu*> s.f.work
    cdef vecu* small = <vecu*> s.small
    cdef vec variance, decrement, definite
    contrast_of(d, s, row, c, &variance)
    along_theta(d, s, c, c, u)
    shift_of(d, s, shift)
    for l in range(n):
        u[l] = u[l] / variance - shift[l]
    newton_step(n, <vecu*> s.f.hess, u, small, small + n * n, shift, &decrement, &definite)
    df[0] = VEC_SET(1.0) / (decrement * decrement + VEC_SET(1.0) / (<vecu*> s.f.gls.nu)[0])


cdef void row_of(const Batch* d, Lanes* s, const Outcome* out, Py_ssize_t i, vecu* row) noexcept nogil:
    """A row of the linear functions wanted, in the coordinates of the conditioned columns of each lane."""
    cdef Py_ssize_t p = d.p, j, l
    cdef vec t
    for j in range(p):
        if s.own == NULL:
            row[j] = VEC_SET(out.rows[i * p + j])
            continue
        t = VEC_SET(0.0)
        for l in range(d.p_full):
            t = t + (<vecu*> s.x_map)[l * p + j] * out.rows[i * d.p_full + l]
        row[j] = t


cdef void write_contrasts(const Batch* d, Lanes* s, const Outcome* out, Py_ssize_t first,
                          Py_ssize_t count) noexcept nogil:
    """K, its slope, the shift and the Hessian at theta, for the lanes of one block."""
    cdef Py_ssize_t n = d.n_par, p = d.p, k = p + 1, m = out.m, i, j, l, lane
    cdef vecu* c = <vecu*> s.f.M
    cdef vecu* other = <vecu*> s.f.gls.chol
    cdef vecu* slope = <vecu*> s.step
    cdef vecu* row = <vecu*> s.other
    cdef vec variance, t
    for i in range(m):
        row_of(d, s, out, i, <vecu*> s.row)
        contrast_of(d, s, <vecu*> s.row, c, &variance)
        for j in range(i + 1):
            row_of(d, s, out, j, row)
            contrast_of(d, s, row, other, &variance)
            t = VEC_SET(0.0)
            for l in range(p):
                t = t + c[l] * row[l]
            along_theta(d, s, c, other, slope)
            for lane in range(count):
                out.covariance[((first + s.place[lane]) * m + i) * m + j] = (<double*> &t)[lane]
                out.covariance[((first + s.place[lane]) * m + j) * m + i] = (<double*> &t)[lane]
                for l in range(n):
                    out.slope[(((first + s.place[lane]) * n + l) * m + i) * m + j] = (<double*> (slope + l))[lane]
                    out.slope[(((first + s.place[lane]) * n + l) * m + j) * m + i] = (<double*> (slope + l))[lane]
    shift_of(d, s, slope)
    for lane in range(count):
        for l in range(n):
            out.shift[(first + s.place[lane]) * n + l] = (<double*> (slope + l))[lane]
        for l in range(n * n):
            out.hess[(first + s.place[lane]) * n * n + l] = s.f.hess[l * LANES + lane]
