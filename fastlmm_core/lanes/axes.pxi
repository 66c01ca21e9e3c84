# Principal axes of G^ as coordinates of a lane: F = B L(theta), B orthogonal.
#
# Beside a singular optimum the elements of a triangular L are bad coordinates: where an early pivot is small but its
# column is not, the optimum lies in a narrow curved valley.  In the principal axes, largest first,
# what vanishes is the end of L:
#
#     column j of L zero, its rows from j on free:   d f / d L_ij = 0,   d^2 f / d L_ij d L_kj = 2 (B'S B)_ik
#
# so that the Hessian in theta is definite exactly where the slope S is so along what vanishes: a singular optimum is
# settled where it lies, and left where it is none.  A lane whose axes are the identity moves as it would without any.

cdef double VANISHED = 1e-4
"""Standard deviation, times the root of the rows of a group, that counts as none beside an optimum."""

cdef double VANISHING = 0.05
"""The same on the way to it, where Newton's step goes on to halve it at least."""

cdef enum:
    SNAPPED_BEFORE = 10     # iterations in which a column may be set to zero
    SWEEPS = 12             # of Jacobi's method


cdef void principal_axes(Py_ssize_t q, double* A, double* V) noexcept nogil:
    """Jacobi's method: A (q, q) symmetric becomes diagonal, the largest first; V (q, q) its eigenvectors in columns."""
    cdef Py_ssize_t a, b, i, sweep, best
    cdef double off, whole, t, c, r, x, y
    for i in range(q * q):
        V[i] = 0.0
    for a in range(q):
        V[a * q + a] = 1.0
    for sweep in range(SWEEPS):
        off = 0.0
        whole = 0.0
        for a in range(q):
            whole += A[a * q + a] * A[a * q + a]
            for b in range(a):
                off += A[a * q + b] * A[a * q + b]
        if not off > 1e-30 * whole:
            break
        for a in range(1, q):
            for b in range(a):
                if A[a * q + b] == 0.0:
                    continue
                t = 0.5 * (A[a * q + a] - A[b * q + b]) / A[a * q + b]
                t = 1.0 / (t + sqrt(1.0 + t * t)) if t >= 0.0 else 1.0 / (t - sqrt(1.0 + t * t))
                c = 1.0 / sqrt(1.0 + t * t)
                r = t * c
                for i in range(q):
                    x = A[i * q + b]
                    y = A[i * q + a]
                    A[i * q + b] = c * x - r * y
                    A[i * q + a] = r * x + c * y
                    x = V[i * q + b]
                    y = V[i * q + a]
                    V[i * q + b] = c * x - r * y
                    V[i * q + a] = r * x + c * y
                for i in range(q):
                    x = A[b * q + i]
                    y = A[a * q + i]
                    A[b * q + i] = c * x - r * y
                    A[a * q + i] = r * x + c * y
    for a in range(q):
        best = a
        for b in range(a + 1, q):
            if A[b * q + b] > A[best * q + best]:
                best = b
        if best != a:
            t = A[a * q + a]
            A[a * q + a] = A[best * q + best]
            A[best * q + best] = t
            for i in range(q):
                t = V[i * q + a]
                V[i * q + a] = V[i * q + best]
                V[i * q + best] = t


cdef inline bint can_turn(const Batch* d) noexcept nogil:
    """Whether all elements of G, or of each block of it, are free, so that any axes will do."""
    return d.block != NULL or (d.q > 1 and 2 * d.n_par == d.q * (d.q + 1))


cdef void block_axes(const Batch* d, double* A, double* V, double* room) noexcept nogil:
    """`principal_axes` block by block of G; room: 2 q^2 numbers."""
    cdef Py_ssize_t q = d.q, block, first, width, a, b
    cdef double* own = room + q * q
    for a in range(q * q):
        V[a] = 0.0
    for block in range(d.n_blocks):
        first = d.block[block]
        width = d.block[block + 1] - first
        for a in range(width):
            for b in range(width):
                room[a * width + b] = A[(first + a) * q + first + b]
        principal_axes(width, room, own)
        for a in range(width):
            A[(first + a) * (q + 1)] = room[a * (width + 1)]
            for b in range(width):
                V[(first + a) * q + first + b] = own[a * width + b]


cdef void straighten(const Batch* d, Lanes* s) noexcept nogil:
    """The identity for the axes of all lanes."""
    cdef Py_ssize_t i
    for i in range(d.q * d.q):
        (<vecu*> s.axes)[i] = VEC_SET(1.0 if i % (d.q + 1) == 0 else 0.0)
    s.f.chain.axes = s.axes


cdef void turn_lane(const Batch* d, Lanes* s, Py_ssize_t lane, double floor) noexcept nogil:
    """Axes and theta of a lane from G^ in s.plain (q, q), with all below `floor` raised to it but for what is none."""
    cdef Py_ssize_t q = d.q, i
    cdef double* A = s.plain
    cdef double* V = s.plain + q * q
    cdef double t
    if d.block != NULL:
        block_axes(d, A, V, V + q * q)
    else:
        principal_axes(q, A, V)
    for i in range(q * q):
        s.axes[i * LANES + lane] = V[i]
    for i in range(d.n_par):
        t = 0.0
        if d.row[i] == d.col[i]:
            t = A[d.row[i] * (q + 1)]
            t = sqrt(max(t, floor)) if t > 0.0 else 0.0
        s.theta[i * LANES + lane] = t


cdef void turn_all(const Batch* d, Lanes* s) noexcept nogil:
    """Turn s.theta, in the caller's axes, to the principal axes of each lane."""
    cdef Py_ssize_t q = d.q, lane, i, a, b, l
    cdef double none = VANISHED * VANISHED / d.per_group
    cdef double* A = s.plain
    cdef double t
    s.f.chain.axes = NULL
    set_factor(d, s, <vecu*> s.theta)
    straighten(d, s)
    for lane in range(LANES):
        for a in range(q):
            for b in range(q):
                t = 0.0
                for l in range(q):
                    t += s.f.factor[(a * q + l) * LANES + lane] * s.f.factor[(b * q + l) * LANES + lane]
                A[a * q + b] = t
        turn_lane(d, s, lane, 0.0)
        for i in range(d.n_par):
            if d.row[i] == d.col[i] and s.theta[i * LANES + lane] * s.theta[i * LANES + lane] < none:
                s.theta[i * LANES + lane] = 0.0


cdef void natural_theta(const Batch* d, Lanes* s, const double* theta, Py_ssize_t lane, double* out) noexcept nogil:
    """out (n_par,), LANES apart: elements of the triangular root of B L L'B', the diagonal not negative.

    Columns that are zero stay behind those that are not.
    """
    cdef Py_ssize_t q = d.q, i, a, b, l, j
    cdef double* F = s.plain
    cdef double t, c, r, x, y
    if s.f.chain.axes == NULL:
        for i in range(d.n_par):
            out[i * LANES] = theta[i * LANES + lane]
        return
    for i in range(q * q):
        F[i] = 0.0
    for i in range(d.n_par):
        t = theta[i * LANES + lane]
        for a in range(q):
            F[a * q + d.col[i]] += s.axes[(a * q + d.row[i]) * LANES + lane] * t
    for a in range(q):
        for b in range(a + 1, q):
            # a rotation of columns a and b that leaves nothing of row a in column b
            x = F[a * q + a]
            y = F[a * q + b]
            if y == 0.0:
                continue
            t = sqrt(x * x + y * y)
            c = x / t
            r = y / t
            for l in range(a, q):
                x = F[l * q + a]
                y = F[l * q + b]
                F[l * q + a] = c * x + r * y
                F[l * q + b] = c * y - r * x
            F[a * q + b] = 0.0
        if F[a * q + a] < 0.0:
            for l in range(a, q):
                F[l * q + a] = -F[l * q + a]
    for i in range(d.n_par):
        out[i * LANES] = F[d.row[i] * q + d.col[i]]


cdef void turn_known(const Batch* d, Lanes* s, const double* minima) noexcept nogil:
    """s.known: of `minima` (., n_par) those of the responses at s.place, in the axes of each lane."""
    cdef Py_ssize_t q = d.q, lane, i, a, b, l
    cdef double* F = s.plain
    cdef double* A = s.plain + q * q
    cdef const double* theta
    cdef double t
    s.known = s.known_room
    for lane in range(LANES):
        theta = minima + s.place[lane] * d.n_par
        if s.f.chain.axes == NULL:
            for i in range(d.n_par):
                s.known[i * LANES + lane] = theta[i]
            continue
        # rows of B'L, then the triangular root of what they multiply to
        for i in range(q * q):
            F[i] = 0.0
        for i in range(d.n_par):
            for a in range(q):
                F[a * q + d.col[i]] += s.axes[(d.row[i] * q + a) * LANES + lane] * theta[i]
        for a in range(q):
            for b in range(a + 1):
                t = 0.0
                for l in range(q):
                    t += F[a * q + l] * F[b * q + l]
                A[a * q + b] = t
        for a in range(q):
            for b in range(a + 1):
                t = A[a * q + b]
                for l in range(b):
                    t -= A[a * q + l] * A[b * q + l]
                if b < a:
                    A[a * q + b] = t / A[b * q + b] if A[b * q + b] > 0.0 else 0.0
                else:
                    A[a * q + a] = sqrt(max(t, 0.0))
        for i in range(d.n_par):
            s.known[i * LANES + lane] = A[d.row[i] * q + d.col[i]]


cdef double bend_along(const Batch* d, Lanes* s, Py_ssize_t lane, const double* v) noexcept nogil:
    """Second derivative of the criterion of a lane along v v' of G^, v (q,)."""
    cdef Py_ssize_t q = d.q, n_a = q * (q + 1) // 2, a, b, c, e, i = 0, j
    cdef double t = 0.0
    for a in range(q):
        for b in range(a + 1):
            j = 0
            for c in range(q):
                for e in range(c + 1):
                    t += v[a] * v[b] * v[c] * v[e] * s.f.curve[(i * n_a + j) * LANES + lane]
                    j += 1
            i += 1
    return t


cdef bint raise_column(const Batch* d, Lanes* s, const double* trial, Py_ssize_t j, Py_ssize_t lane, double* step
                       ) noexcept nogil:
    """Let column j of a lane, if it is zero, go where the criterion falls; whether there is such a way.

    With x^2 along the lowest axis u of B'S B among the rows of the column, x^2 = -f' / f'' along B u u'B'.
    """
    cdef Py_ssize_t q = d.q, n = d.n_par, i, l, a, count = 0
    cdef double* A = s.plain
    cdef double* V = s.plain + q * q
    cdef double* v = s.plain + 2 * q * q
    cdef double t, slope
    cdef double* rows = v + q
    for i in range(n):
        if d.col[i] == j:
            if trial[i * LANES + lane] != 0.0:
                return False
            rows[count] = i
            count += 1
    for i in range(count):
        for l in range(count):
            A[i * count + l] = s.f.hess[(<Py_ssize_t> rows[i] * n + <Py_ssize_t> rows[l]) * LANES + lane]
    principal_axes(count, A, V)
    slope = 0.5 * A[count * count - 1]
    if not slope < 0.0:
        return False
    for a in range(q):
        v[a] = 0.0
        for i in range(count):
            l = d.row[<Py_ssize_t> rows[i]]
            t = s.axes[(a * q + l) * LANES + lane] if s.f.chain.axes != NULL else 1.0 if a == l else 0.0
            v[a] += t * V[i * count + count - 1]
    t = bend_along(d, s, lane, v)
    t = sqrt(-slope / t if t > 0.0 else 0.1 / d.per_group)
    if V[count - 1] < 0.0:
        t = -t
    for i in range(count):
        step[<Py_ssize_t> rows[i] * LANES + lane] = t * V[i * count + count - 1]
    return True


cdef void raise_columns(const Batch* d, Lanes* s, const vecu* trial, vec wanted, vecu* step,
                        vec* decrement) noexcept nogil:
    """Leave columns that are zero where the criterion falls along them, in lanes where `wanted` is positive.

    There Newton's step is none, and its decrement nothing to compare the next one with.
    """
    cdef Py_ssize_t lane, j
    for lane in range(LANES):
        if (<double*> &wanted)[lane] > 0.0:
            for j in range(d.q):
                if raise_column(d, s, <const double*> trial, j, lane, <double*> step):
                    (<double*> decrement)[lane] = 1e300


cdef void drop_columns(const Batch* d, Lanes* s, const vecu* theta, vecu* trial, vecu* step, vec before) noexcept nogil:
    """Set to zero columns of the trial that vanish, where the criterion had let them; `before`: where that may be."""
    cdef Py_ssize_t n = d.n_par, i, j
    cdef double limit = VANISHING / sqrt(d.per_group)
    cdef vec zero, one, minus, goes, t
    zero = VEC_SET(0.0)
    one = VEC_SET(1.0)
    minus = VEC_SET(-1.0)
    for i in range(n):
        if d.row[i] != d.col[i]:
            continue
        goes = VEC_WHERE_POSITIVE((<vecu*> s.f.hess)[i * n + i], before, minus)
        t = 0.5 * VEC_ABS(theta[i]) - VEC_ABS(trial[i])
        goes = VEC_WHERE_POSITIVE(t, goes, minus)
        for j in range(n):
            if d.col[j] == d.col[i]:
                goes = VEC_WHERE_POSITIVE(VEC_SET(limit) - VEC_ABS(trial[j]), goes, minus)
        if not vec_max(<vecu*> &goes) > 0.0:
            continue
        for j in range(n):
            if d.col[j] == d.col[i]:
                trial[j] = VEC_WHERE_POSITIVE(goes, zero, trial[j])
                step[j] = VEC_WHERE_POSITIVE(goes, zero - theta[j], step[j])
