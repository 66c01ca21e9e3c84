# Second derivatives along the unit directions of G^: the average information, and the exact ones from all of N (see
# engine.pyx).
#
# uses   CrossedEngine (engine.pyx); whole_levels, normal_of_one, add_traces, gemm (curvature.pxi)
# gives  average_information, exact_information

cdef void spread_directions(CrossedEngine engine) noexcept nogil:
    """R = (D e) for the free elements of G^."""
    cdef Py_ssize_t g, a, i, j, f, k = engine.k, n = engine.chain.n_free
    cdef Level* v
    cdef double t
    cdef double* e = engine.small
    memset(engine.R, 0, engine.n_slots * n * sizeof(double))
    for g in range(engine.n_factors):
        v = &engine.level[g]
        for a in range(v.m):
            for i in range(v.q):
                t = 0.0
                for j in range(k):
                    t += engine.V[(v.at[a] + i) * k + j] * engine.gls.b[j]
                e[i] = t
            for f in range(n):
                i = engine.chain.free_row[f] - v.column
                j = engine.chain.free_col[f] - v.column
                if j >= 0 and i < v.q:
                    engine.R[(v.at[a] + i) * n + f] = e[j]
                    engine.R[(v.at[a] + j) * n + f] = e[i]


cdef void average_information(CrossedEngine engine) noexcept nogil:
    """curve = (nu / r^2) (g_D'N g_F - u_D'K u_F) - (nu / r^4) s_D s_F, g_D = D e."""
    cdef Py_ssize_t k = engine.k, n = engine.chain.n_free, f, h, j, s
    cdef double t, scale = engine.nu / engine.r2
    spread_directions(engine)
    engine.apply(n, engine.R, engine.NR)
    memset(engine.u, 0, n * k * sizeof(double))
    memset(engine.curve, 0, n * n * sizeof(double))
    for s in range(engine.n_slots):
        for f in range(n):
            t = engine.R[s * n + f]
            if t == 0.0:
                continue
            for j in range(k):
                engine.u[f * k + j] += t * engine.V[s * k + j]
            for h in range(n):
                engine.curve[f * n + h] += t * engine.NR[s * n + h]
    for f in range(n * n):
        engine.curve[f] *= scale
    engine.profile_curve(1.0, engine.u, NULL)


cdef bint form_normal(CrossedEngine engine) noexcept nogil:
    """N, into `normal`, as far as the traces need it; False where there is no memory for it."""
    cdef Elimination* e = &engine.e
    cdef Py_ssize_t size = engine.n_slots, n_tail = size - e.tail_slot, i, j, first, c, largest = 1
    if engine.normal == NULL:
        for i in range(e.n_stages):
            largest = max(largest, e.stage[i].m * e.stage[i].q)
        for i in range(e.n_tails):
            largest = max(largest, e.tail[i].m * e.tail[i].q)
        # work space: two arrays (slots, n_tail); or two (m, q q) and one (q q, q q) for the traces
        i = max(2 * max(e.tail_slot, n_tail) * n_tail, 2 * largest * engine.q**2 + engine.q**4)
        engine.normal = <double*> calloc(size * size, sizeof(double))
        engine.spare = <double*> calloc(i, sizeof(double))
        if engine.normal == NULL or engine.spare == NULL:
            free(engine.normal)
            free(engine.spare)
            engine.normal = NULL
            engine.spare = NULL
            return out_of_memory()
    if engine.whole:
        normal_of_one(e, engine.normal, engine.spare, engine.spare + max(e.tail_slot, n_tail) * n_tail)
        return True
    first = 0
    while first < size:
        c = min(engine.wide, size - first)
        memset(engine.R, 0, size * c * sizeof(double))
        for j in range(c):
            engine.R[(first + j) * c + j] = 1.0
        engine.apply(c, engine.R, engine.NR)
        for i in range(size):
            for j in range(c):
                engine.normal[i * size + first + j] = engine.NR[i * c + j]
        first += c
    return True


cdef bint exact_information(CrossedEngine engine) noexcept nogil:
    """curve = -tr(D N F N) [N less E_x K E_x' for REML] + (2 nu / r^2) g_D'(N - E_x K E_x')g_F - (nu / r^4) s_D s_F."""
    cdef Py_ssize_t size = engine.n_slots, n = engine.chain.n_free, k = engine.k, p = k - 1, i, j, l, f, h
    cdef double t, scale = 2.0 * engine.nu / engine.r2
    cdef double* x = engine.R
    cdef double* s = engine.u
    if not form_normal(engine):
        return False
    for i in range(size):
        x[i] = 0.0
        for j in range(k):
            x[i] += engine.V[i * k + j] * engine.gls.b[j]
    memset(engine.curve, 0, n * n * sizeof(double))
    if not engine.reml:
        gather_traces(engine, x, -1.0, 0.0)
    # E_x K E_x' = F F'
    for i in range(size):
        for l in range(p):
            t = 0.0
            for j in range(l + 1):
                t += engine.V[i * k + j] * engine.gls.inverse[l * k + j]
            engine.NR[i * p + l] = t
    if p > 0:
        take_from_normal(engine, p, engine.NR)
    gather_traces(engine, x, -1.0 if engine.reml else 0.0, scale)
    for f in range(n):
        s[f] = along(engine, x, engine.chain.free_row[f], engine.chain.free_col[f])
    for f in range(n):
        for h in range(n):
            engine.curve[f * n + h] -= 0.5 * scale / engine.r2 * s[f] * s[h]
    return True


cdef void take_from_normal(CrossedEngine engine, Py_ssize_t p, double* F) noexcept nogil:
    """N -= F F' (n_slots, p), as far as the traces need it: of the chain what stands from the diagonal on."""
    cdef Elimination* e = &engine.e
    cdef Py_ssize_t size = engine.n_slots, at = e.tail_slot, rows = size - at, s, stop, step
    if rows > 0:
        gemm(-1.0, Matrix(F + at * p, rows, p, p), Matrix(F + at * p, rows, p, p), True, 1.0,
             Matrix(engine.normal + at * (size + 1), rows, rows, size))
    for s in range(e.n_stages):
        at = e.stage[s].slot
        stop = at + e.stage[s].m * e.stage[s].q
        step = whole_levels(e.stage[s].q)
        while at < stop:
            rows = min(step, stop - at)
            gemm(-1.0, Matrix(F + at * p, rows, p, p), Matrix(F + at * p, size - at, p, p), True, 1.0,
                 Matrix(engine.normal + at * (size + 1), rows, size - at, size))
            at += rows


cdef double along(CrossedEngine engine, const double* x, Py_ssize_t row, Py_ssize_t column) noexcept nogil:
    """x'D x for the unit direction of an element of G^."""
    cdef Py_ssize_t f, a
    cdef Level* v
    cdef double t = 0.0
    for f in range(engine.n_factors):
        v = &engine.level[f]
        if v.column <= column and row < v.column + v.q:
            for a in range(v.m):
                t += x[v.at[a] + row - v.column] * x[v.at[a] + column - v.column]
    return t if row == column else 2.0 * t


cdef void gather_traces(CrossedEngine engine, const double* x, double share, double weight) noexcept nogil:
    """curve += tr(D N F B), B = share N + weight x x', for the free elements of G^ and N in `normal`."""
    cdef Py_ssize_t f, g
    cdef Pairs pairs
    cdef double* T
    pairs.size = engine.n_slots
    pairs.N = engine.normal
    pairs.x = x
    pairs.left = engine.spare
    for f in range(engine.n_factors):
        for g in range(f, engine.n_factors):
            pairs.f = &engine.level[f]
            pairs.g = &engine.level[g]
            pairs.right = pairs.left + pairs.g.m * pairs.f.q * pairs.g.q
            T = pairs.right + pairs.g.m * pairs.f.q * pairs.g.q
            add_traces(&pairs, share, weight, T)
            add_curve(engine, &pairs, T, f != g)


cdef void add_curve(CrossedEngine engine, const Pairs* pairs, const double* T, bint both) noexcept nogil:
    """Elements of `curve` from T = sum_ab vec(N_ab) vec(B_ab)' of two factors; `both`: of its two triangles."""
    cdef Py_ssize_t n = engine.chain.n_free, d, h, i, j, r, c, q = pairs.g.q, wide = pairs.f.q * q
    cdef double t
    for d in range(n):
        i = engine.chain.free_row[d] - pairs.f.column
        j = engine.chain.free_col[d] - pairs.f.column
        if j < 0 or i >= pairs.f.q:
            continue
        for h in range(n):
            r = engine.chain.free_row[h] - pairs.g.column
            c = engine.chain.free_col[h] - pairs.g.column
            if c < 0 or r >= q:
                continue
            t = T[(j * q + r) * wide + i * q + c]
            if i != j:
                t += T[(i * q + r) * wide + j * q + c]
            if r != c:
                t += T[(j * q + c) * wide + i * q + r]
                if i != j:
                    t += T[(i * q + c) * wide + j * q + r]
            engine.curve[d * n + h] += t
            if both:
                engine.curve[h * n + d] += t
