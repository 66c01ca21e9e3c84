# Small dense algebra with a matrix in every lane: a Cholesky factor with right-hand sides, products, sums of outer
# products.  Sizes are constants where callers know them.


cdef inline vec eliminate(Py_ssize_t q, vecu* W, Py_ssize_t n, vecu* Y, Py_ssize_t k, vecu* D, vecu* inverse
                          ) noexcept nogil:
    """Cholesky factor of W (q, q), right-looking, with two right-hand sides carried along; the determinant of W.

    W = M M': the lower triangle of W holds M below the diagonal; 1 / M_aa go to `inverse` (q,) unless that is NULL.
    Y (q, n) becomes M^-1 Y, D (q, k) M^-1 D.
    """
    cdef Py_ssize_t a, b, l
    cdef vec t, u
    cdef vec one = VEC_SET(1.0)
    cdef vec product = one
    for a in range(q):
        t = W[a * q + a]
        product = product * t
        u = one / VEC_SQRT(t)
        if inverse != NULL:
            inverse[a] = u
        for l in range(n):
            Y[a * n + l] = Y[a * n + l] * u
        for l in range(k):
            D[a * k + l] = D[a * k + l] * u
        for b in range(a + 1, q):
            W[b * q + a] = W[b * q + a] * u
        for b in range(a + 1, q):
            t = W[b * q + a]
            for l in range(a + 1, b + 1):
                W[b * q + l] = W[b * q + l] - t * W[l * q + a]
            for l in range(n):
                Y[b * n + l] = Y[b * n + l] - t * Y[a * n + l]
            for l in range(k):
                D[b * k + l] = D[b * k + l] - t * D[a * k + l]
    return product


cdef inline void set_crossed(Py_ssize_t q, const vecu* Y, vecu* N) noexcept nogil:
    """N = Y'Y for Y (q, q), packed lower triangle."""
    cdef Py_ssize_t a, b, l, pos = 0
    cdef vec t
    for a in range(q):
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + Y[l * q + a] * Y[l * q + b]
            N[pos] = t
            pos = pos + 1


cdef inline void set_product(Py_ssize_t q, Py_ssize_t k, const vecu* Y, const vecu* D, vecu* E) noexcept nogil:
    """E = Y'D for Y (q, q), D (q, k)."""
    cdef Py_ssize_t a, j, l
    cdef vec t
    for a in range(q):
        for j in range(k):
            t = VEC_SET(0.0)
            for l in range(q):
                t = t + Y[l * q + a] * D[l * k + j]
            E[a * k + j] = t


cdef inline void add_crossed(Py_ssize_t q, Py_ssize_t k, const vecu* D, vecu* H) noexcept nogil:
    """H += D'D for D (q, k), packed lower triangle."""
    cdef Py_ssize_t a, j, l, pos = 0
    cdef vec t
    for j in range(k):
        for l in range(j + 1):
            t = H[pos]
            for a in range(q):
                t = t + D[a * k + j] * D[a * k + l]
            H[pos] = t
            pos = pos + 1


cdef inline void add_outer(Py_ssize_t n, const vecu* v, vecu* out) noexcept nogil:
    """out += v v' for v (n,), packed lower triangle."""
    cdef Py_ssize_t a, b, pos = 0
    cdef vec t
    for a in range(n):
        t = v[a]
        for b in range(a + 1):
            out[pos + b] = out[pos + b] + t * v[b]
        pos = pos + a + 1


cdef enum:
    SIDE = 4            # rows and columns of a tile: what is summed stays in registers
    OUTERS = 16         # vectors that are taken together: they stay in the first cache


cdef inline void add_tile(Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t a, Py_ssize_t b, Py_ssize_t count,
                          Py_ssize_t stride, const vecu* v, vecu* out) noexcept nogil:
    """Rows a .. and columns b .. of `add_outers`; no column lies beyond the first row.  Sizes are constants."""
    cdef Py_ssize_t i, j, c
    cdef vec acc[16]
    cdef vec t
    for i in range(rows):
        for j in range(columns):
            acc[i * SIDE + j] = out[(a + i) * (a + i + 1) // 2 + b + j] if a != b or j <= i else VEC_SET(0.0)
    for c in range(count):
        for i in range(rows):
            t = v[a + i]
            for j in range(columns):
                acc[i * SIDE + j] = acc[i * SIDE + j] + t * v[b + j]
        v = v + stride
    for i in range(rows):
        for j in range(columns):
            if a != b or j <= i:
                out[(a + i) * (a + i + 1) // 2 + b + j] = acc[i * SIDE + j]


cdef inline void add_rows(Py_ssize_t rows, Py_ssize_t a, Py_ssize_t count, Py_ssize_t stride, const vecu* v, vecu* out
                          ) noexcept nogil:
    """Rows a .. of `add_outers`."""
    cdef Py_ssize_t i
    for i in range(a // SIDE):
        add_tile(rows, SIDE, a, i * SIDE, count, stride, v, out)
    add_tile(rows, rows, a, a, count, stride, v, out)


cdef inline void add_outers(Py_ssize_t n, Py_ssize_t count, Py_ssize_t stride, const vecu* v, vecu* out) noexcept nogil:
    """out += sum of v v' for `count` vectors v (n,), `stride` apart: packed lower triangle."""
    cdef Py_ssize_t some, i, rest = n % SIDE, a = n - n % SIDE
    while count > 0:
        some = count if count < OUTERS else OUTERS
        for i in range(n // SIDE):
            add_rows(SIDE, i * SIDE, some, stride, v, out)
        if rest == 1:
            add_rows(1, a, some, stride, v, out)
        elif rest == 2:
            add_rows(2, a, some, stride, v, out)
        elif rest == 3:
            add_rows(3, a, some, stride, v, out)
        v = v + some * stride
        count = count - some
