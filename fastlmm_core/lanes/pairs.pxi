# Two random effects in problems of their own: the sweeps of problems.pxi, written out.
#
# With U = R F, W = I + U U' = T Delta T', T unit lower triangular, Delta = diag(w, |W| / w), w = W_11,
#
#     |W| = 1 + u_11^2 + u_12^2 + u_21^2 + u_22^2 + |R|^2 |F|^2      |F| its determinant
#     D = T^-1 c,   Y = T^-1 R,    H += D'Delta^-1 D,   N = Y'Delta^-1 Y,   E = Y'Delta^-1 D
#
# so that a group takes one division, 1 / (w |W|), and no square root: these, not products, are what takes long.  All
# terms of |W| are squares.  What is summed stays in registers.

cdef enum:
    MOST_PAIRED = 5     # columns of [X y]


cdef inline void sweep_pairs(Py_ssize_t k, Lanes* s, int order) noexcept nogil:
    """`sweep_problems` for two effects and up to MOST_PAIRED columns."""
    cdef Py_ssize_t n_h = k * (k + 1) // 2, stride = 3 + 2 * k, g, i, j, pos
    cdef const OwnGroups* own = s.own
    cdef const vecu* R = <const vecu*> own.packed
    cdef vecu* N = <vecu*> own.store
    cdef const vecu* F = <const vecu*> s.f.factor
    cdef vec H[15]
    cdef vec D[10]
    cdef vec E[10]
    cdef vec one, product, exponent, f11, f12, f21, f22, f, r11, r12, r22, u11, u12, u21, u22, w, det, inverse
    cdef vec d1, d2, turn, y21, y22, a11, a12, a21, a22, n11, n21, n22, t
    one = product = VEC_SET(1.0)
    exponent = n11 = n21 = n22 = VEC_SET(0.0)
    f11 = F[0]
    f12 = F[1]
    f21 = F[2]
    f22 = F[3]
    f = f11 * f22 - f12 * f21
    for pos in range(n_h):
        H[pos] = (<vecu*> own.within)[pos]
    for g in range(own.m):
        r11 = R[0]
        r12 = R[1]
        r22 = R[2]
        u11 = r11 * f11 + r12 * f21
        u12 = r11 * f12 + r12 * f22
        u21 = r22 * f21
        u22 = r22 * f22
        w = one + u11 * u11 + u12 * u12
        t = r11 * r22 * f
        det = w + (u21 * u21 + u22 * u22) + t * t
        product = product * det
        VEC_SPLIT(product, exponent)
        inverse = one / (w * det)
        d1 = det * inverse
        d2 = w * w * inverse
        turn = (u11 * u21 + u12 * u22) * d1
        for j in range(k):
            D[j] = R[3 + j]
            D[k + j] = R[3 + k + j] - turn * D[j]
            E[j] = D[j] * d1
            E[k + j] = D[k + j] * d2
        pos = 0
        for i in range(k):
            for j in range(i + 1):
                H[pos] = H[pos] + E[i] * D[j] + E[k + i] * D[k + j]
                pos = pos + 1
        R = R + stride
        if order == 0:
            continue
        y21 = VEC_SET(0.0) - turn * r11
        y22 = r22 - turn * r12
        a11 = r11 * d1
        a12 = r12 * d1
        a21 = y21 * d2
        a22 = y22 * d2
        t = a11 * r11 + a21 * y21
        n11 = n11 + t
        N[0] = t
        t = a12 * r11 + a22 * y21
        n21 = n21 + t
        N[1] = t
        t = a12 * r12 + a22 * y22
        n22 = n22 + t
        N[2] = t
        for j in range(k):
            N[3 + j] = r11 * E[j] + y21 * E[k + j]
            N[3 + k + j] = r12 * E[j] + y22 * E[k + j]
        N = N + stride
    for pos in range(n_h):
        (<vecu*> s.f.gls.H)[pos] = H[pos]
    (<vecu*> s.f.gls.logdet)[0] = VEC_LOG(product) + exponent * M_LN2
    if order == 0:
        return
    (<vecu*> s.f.sum_n)[0] = n11
    (<vecu*> s.f.sum_n)[1] = n21
    (<vecu*> s.f.sum_n)[2] = n22
    for pos in range(k * (2 * k + 1)):
        (<vecu*> s.f.gram)[pos] = VEC_SET(0.0)
    add_outers(2 * k, own.m, stride, (<vecu*> own.store) + 3, <vecu*> s.f.gram)


cdef inline void curve_pairs(Py_ssize_t k, Py_ssize_t first, Lanes* s) noexcept nogil:
    """`curve_problems` for two effects and up to MOST_PAIRED columns."""
    cdef Py_ssize_t stride = 3 + 2 * k, g, i, j, l
    cdef const vecu* N = <const vecu*> s.own.store
    cdef const vecu* weight = <const vecu*> s.f.gls.weight
    cdef vec T[9]
    cdef vec w[25]
    cdef vec n1, n2, n3, b1, b2, b3, x, y
    for i in range(9):
        T[i] = VEC_SET(0.0)
    for j in range(k):
        for l in range(j + 1):
            w[l * k + j] = weight[l * k + j]
    for g in range(s.own.m):
        n1 = N[0]
        n2 = N[1]
        n3 = N[2]
        b1 = VEC_SET(0.0) - n1
        b2 = VEC_SET(0.0) - n2
        b3 = VEC_SET(0.0) - n3
        for j in range(first, k):
            x = N[3] * w[j]
            y = N[3 + k] * w[j]
            for l in range(1, j + 1):
                x = x + N[3 + l] * w[l * k + j]
                y = y + N[3 + k + l] * w[l * k + j]
            b1 = b1 + x * x
            b2 = b2 + x * y
            b3 = b3 + y * y
        T[0] = T[0] + b1 * n1
        T[1] = T[1] + b1 * n2
        T[2] = T[2] + b1 * n3
        T[3] = T[3] + b2 * n1
        T[4] = T[4] + b2 * n2
        T[5] = T[5] + b2 * n3
        T[6] = T[6] + b3 * n1
        T[7] = T[7] + b3 * n2
        T[8] = T[8] + b3 * n3
        N = N + stride
    for i in range(9):
        (<vecu*> s.f.tensor)[i] = T[i]
