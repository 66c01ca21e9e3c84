# Problems of one design of which Z has the columns of X: sums over the rows where nothing is missing.
#
# The columns of the design are shifted and scaled once for all problems, x~ = (x - shift) scale, so that what is left
# of a problem is a line of values for each of its covariates and y.  In a group Z'Z = X'X;
# only what is beside X is summed anew.

cdef extern from *:
    """
    /* two numbers side by side, which every target can hold */
    typedef double pair __attribute__((vector_size(16)));
    typedef double pair_in_memory __attribute__((vector_size(16), aligned(8), may_alias));
    #define PAIR(x) ((pair){(x), (x)})
    #define PAIR_AT(x) (*(const pair_in_memory *)(x))
    #define PAIR_TURNED(x) ((pair){(x)[1], (x)[0]})
    #define PAIR_FIRST(x) ((x)[0])
    #define PAIR_SECOND(x) ((x)[1])
    """
    ctypedef double pair
    pair PAIR(double) nogil
    pair PAIR_AT(const double*) nogil
    pair PAIR_TURNED(pair) nogil
    double PAIR_FIRST(pair) nogil
    double PAIR_SECOND(pair) nogil


cdef void lay_design_rows(const Stacked* rows, DesignRows* r, Arena* arena) noexcept nogil:
    r.scale = take(arena, 2 * rows.p)
    r.x = take(arena, rows.n * rows.p)
    r.place = <int64_t*> take(arena, rows.n)
    r.there = take(arena, rows.n)
    r.weight = take(arena, rows.n)
    r.value = take(arena, rows.n * (rows.n_extra + 1))


cdef void know_design(const Stacked* rows, Desk* desk, int* still, DesignRows* r) noexcept nogil:
    """Scale the columns of the design and number its groups; still: (p,) work space."""
    cdef Py_ssize_t p = rows.p, i, j
    cdef int64_t slot
    r.known = scale_columns(Columns(rows.X, rows.n, p, rows.x_row, rows.x_column), True, r.scale, &r.constant, still)
    r.known = r.known and r.constant >= 0
    for j in range(p):
        r.known = r.known and not still[j]
    r.m = 0
    for i in range(rows.n):
        slot = rows.codes[i] - rows.base
        if desk.seen[slot] == 0:
            desk.seen[slot] = 1
            desk.place[slot] = r.m
            r.m += 1
        r.place[i] = desk.place[slot]
        for j in range(p):
            r.x[i * p + j] = (rows.X[i * rows.x_row + j * rows.x_column] - r.scale[j]) * r.scale[p + j]
    memset(desk.seen, 0, rows.n_slots * sizeof(int64_t))


cdef void mark_present(const double* values, Py_ssize_t n, double* there) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        there[i] = there[i] if values[i] == values[i] else 0.0


cdef double sum_values(const double* values, Py_ssize_t n) noexcept nogil:
    """A sum in four parts, which need not wait for each other."""
    cdef Py_ssize_t i, j, whole = n - n % 4
    cdef double sums[4]
    for j in range(4):
        sums[j] = 0.0
    for i in range(0, whole, 4):
        for j in range(4):
            sums[j] += values[i + j]
    for i in range(whole, n):
        sums[0] += values[i]
    return (sums[0] + sums[1]) + (sums[2] + sums[3])


cdef bint vary(double* values, const double* there, Py_ssize_t n) noexcept nogil:
    """Whether values differ where they are; those that are not become 0."""
    cdef Py_ssize_t i, first = 0, other
    while there[first] == 0.0:
        first += 1
    # the next one differs from the first as a rule
    other = first + 1
    while other < n and (there[other] == 0.0 or values[other] == values[first]):
        other += 1
    for i in range(n):
        values[i] = values[i] if there[i] != 0.0 else 0.0
    return other < n


cdef void centre(double* values, const double* there, Py_ssize_t n, double count, double* mean, double* deviation
                 ) noexcept nogil:
    """Take the mean from values that are there."""
    cdef Py_ssize_t i
    mean[0] = sum_values(values, n) / count
    for i in range(n):
        values[i] = (values[i] - mean[0]) * there[i]
    if deviation == NULL:
        return
    deviation[0] = 0.0
    for i in range(n):
        deviation[0] += values[i] * values[i]
    deviation[0] = sqrt(deviation[0] / count)


cdef double weight_present(const double* weights, const double* there, Py_ssize_t n, double* out) noexcept nogil:
    """Weights of the rows that are there; the sum of their logarithms."""
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = weights[i] if there[i] != 0.0 else 1.0
    cdef double total = sum_logarithms(out, n)
    for i in range(n):
        out[i] *= there[i]
    return total


cdef bint take_values(const Stacked* rows, Py_ssize_t problem, DesignRows* r, double* count, double* log_weights,
                      Conditioned* c) noexcept nogil:
    """A problem's own values, shifted and scaled, and what is there of its rows;
    False where some of them do not vary."""
    cdef Py_ssize_t n = rows.n, p = rows.p, i, j
    cdef const double* y = rows.y + problem * rows.y_step
    cdef const double* w = rows.weights + problem * rows.w_step if rows.weights != NULL else NULL
    cdef const double* o = rows.offset + problem * rows.o_step if rows.offset != NULL else NULL
    cdef const double* extra
    cdef double* value
    cdef double mean, deviation
    # the next response is on its way while this one is summed
    for i in range(0, n if problem + 1 < rows.n_problems else 0, 8):
        FETCH(y + rows.y_step + i)
    for i in range(n):
        r.there[i] = 1.0 if y[i] == y[i] else 0.0
    if w != NULL:
        mark_present(w, n, r.there)
    if o != NULL:
        mark_present(o, n, r.there)
    for j in range(rows.n_extra):
        mark_present(rows.extra[j] + problem * rows.extra_step[j], n, r.there)
    count[0] = sum_values(r.there, n)
    if count[0] < 2.0:
        return False
    log_weights[0] = weight_present(w, r.there, n, r.weight) if w != NULL else 0.0
    memcpy(c.x_scale, r.scale, p * sizeof(double))
    memcpy(c.x_scale + c.p, r.scale + p, p * sizeof(double))
    memset(c.left_out, 0, c.p * sizeof(int))
    memset(c.beta0, 0, c.p * sizeof(double))
    for j in range(rows.n_extra):
        value = r.value + j * n
        extra = rows.extra[j] + problem * rows.extra_step[j]
        for i in range(n):
            value[i] = extra[i]
            if rows.factor[j] >= 0:
                value[i] *= rows.X[i * rows.x_row + rows.factor[j] * rows.x_column]
        if not vary(value, r.there, n):
            return False
        centre(value, r.there, n, count[0], &mean, &deviation)
        c.x_scale[p + j], c.x_scale[c.p + p + j] = mean, 1.0 / deviation
        for i in range(n):
            value[i] *= c.x_scale[c.p + p + j]
    value = r.value + rows.n_extra * n
    for i in range(n):
        value[i] = y[i]
    if not vary(value, r.there, n):
        return False
    if o != NULL:
        for i in range(n):
            value[i] = (value[i] - o[i]) if r.there[i] != 0.0 else 0.0
    # the coefficient of the constant, which is 1 in x~
    centre(value, r.there, n, count[0], c.beta0 + r.constant, NULL)
    return True


cdef inline void add_lines(Py_ssize_t q, Py_ssize_t k, bint weighted, Py_ssize_t n, const DesignRows* r, double* raw,
                           double* rest) noexcept nogil:
    """Add to the sums of the groups, raw (m, q (q + 1) / 2 + q k + 1) without the columns of Z among
    those of [X y]; rest: sums of the others with each other, packed."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, e = k - q, n_b = n_a + q * e, i, a, b, j, l, pos
    cdef int64_t group, current = r.place[0]
    cdef const double* x = r.x
    cdef double* target
    cdef double wx[8]
    cdef double v[8]
    cdef double acc[101]        # A, then C beside the columns of Z, then the rows
    cdef double sums[36]
    cdef double t
    for pos in range(e * (e + 1) // 2):
        sums[pos] = 0.0
    for pos in range(n_b + 1):
        acc[pos] = 0.0
    for i in range(n + 1):
        group = r.place[i] if i < n else -1
        if group != current:
            target = raw + current * (n_a + q * k + 1)
            for pos in range(n_a):
                target[pos] += acc[pos]
            for a in range(q):
                for j in range(e):
                    target[n_a + a * k + q + j] += acc[n_a + a * e + j]
            target[n_a + q * k] += acc[n_b]
            for pos in range(n_b + 1):
                acc[pos] = 0.0
            if group < 0:
                break
            current = group
        for j in range(e):
            v[j] = r.value[j * n + i]
        t = r.weight[i] if weighted else r.there[i]
        acc[n_b] += r.there[i]
        pos = 0
        for a in range(q):
            wx[a] = t * x[a]
            for b in range(a + 1):
                acc[pos] += wx[a] * x[b]
                pos = pos + 1
        for a in range(q):
            for j in range(e):
                acc[pos] += wx[a] * v[j]
                pos = pos + 1
        pos = 0
        for j in range(e):
            for l in range(j + 1):
                if weighted:
                    sums[pos] += t * v[j] * v[l]
                else:
                    sums[pos] += v[j] * v[l]
                pos = pos + 1
        x = x + q
    for pos in range(e * (e + 1) // 2):
        rest[pos] = sums[pos]


cdef inline void add_pair_lines(bint weighted, Py_ssize_t n, const DesignRows* r, double* raw, double* rest
                                ) noexcept nogil:
    """`add_lines` for two columns and y alone, with sums that stay in registers, two beside each other."""
    cdef Py_ssize_t i = 0
    cdef int64_t group
    cdef double* target
    cdef pair x, p, own, across, of_y, zero
    cdef double count, square = 0.0, t, v
    zero = PAIR(0.0)
    while i < n:
        group = r.place[i]
        own = across = of_y = zero
        count = 0.0
        while i < n and r.place[i] == group:
            v = r.value[i]
            t = r.weight[i] if weighted else r.there[i]
            x = PAIR_AT(r.x + 2 * i)
            p = x * PAIR(t)
            count += r.there[i]
            own = own + p * x
            across = across + p * PAIR_TURNED(x)
            of_y = of_y + p * PAIR(v)
            square += t * v * v if weighted else v * v
            i += 1
        target = raw + group * 10
        target[0] += PAIR_FIRST(own)
        target[1] += PAIR_SECOND(across)
        target[2] += PAIR_SECOND(own)
        target[5] += PAIR_FIRST(of_y)
        target[8] += PAIR_SECOND(of_y)
        target[9] += count
    rest[0] = square


cdef void add_values(Py_ssize_t q, Py_ssize_t k, bint weighted, Py_ssize_t n, const DesignRows* r, double* raw,
                     double* rest) noexcept nogil:
    """`add_lines` with constant sizes where nearly everyone has them."""
    if q == 2 and k == 3 and weighted:
        add_pair_lines(True, n, r, raw, rest)
    elif q == 2 and k == 3:
        add_pair_lines(False, n, r, raw, rest)
    elif q == 2 and k == 4 and not weighted:
        add_lines(2, 4, False, n, r, raw, rest)
    else:
        add_lines(q, k, weighted, n, r, raw, rest)


cdef void complete_lines(Py_ssize_t q, Py_ssize_t k, Py_ssize_t m, const double* rest, Conditioned* c) noexcept nogil:
    """What Z and X share in the lines of c.raw, and their sums, S and gram."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, line = n_a + q * k + 1, g, a, b, j, l, pos
    cdef double* target
    memset(c.S, 0, (k * (k + 1) // 2 + n_a) * sizeof(double))
    for g in range(m):
        target = c.raw + g * line
        for a in range(q):
            for b in range(q):
                target[n_a + a * k + b] = target[a * (a + 1) // 2 + b] if a >= b else target[b * (b + 1) // 2 + a]
            for j in range(q, k):
                c.S[j * (j + 1) // 2 + a] += target[n_a + a * k + j]
        for pos in range(n_a):
            c.S[pos] += target[pos]
    for pos in range(n_a):
        c.gram[pos] = c.S[pos]
    pos = 0
    for j in range(k - q):
        for l in range(j + 1):
            c.S[(q + j) * (q + j + 1) // 2 + q + l] = rest[pos]
            pos += 1


cdef Py_ssize_t close_up(Py_ssize_t m, Py_ssize_t line, double* raw) noexcept nogil:
    """Leave out the lines of groups of which no row is there; how many are left."""
    cdef Py_ssize_t g, kept = 0
    for g in range(m):
        if raw[g * line + line - 1] > 0.0:
            if kept < g:
                memcpy(raw + kept * line, raw + g * line, line * sizeof(double))
            kept += 1
    return kept


cdef bint condition_values(const Stacked* rows, Py_ssize_t problem, DesignRows* r, const Blocks* blocks, bint reml,
                           ProblemRows* one, Conditioned* c) noexcept nogil:
    """`condition_problem` for values of a problem on one design; `one` gets the numbers of its rows and groups."""
    cdef Py_ssize_t p = c.p, q = c.q, k = p + 1, i, line = line_length(p, q)
    cdef double count, log_weights
    cdef double rest[36]
    one.n = one.m = 0
    cdef bint varied = take_values(rows, problem, r, &count, &log_weights, c)
    one.n = <Py_ssize_t> count
    memset(c.raw, 0, r.m * line * sizeof(double))
    if varied:
        add_values(q, k, rows.weights != NULL, rows.n, r, c.raw, rest)
    else:
        for i in range(rows.n):
            c.raw[r.place[i] * line + line - 1] += r.there[i]
    one.m = close_up(r.m, line, c.raw)
    if not varied:
        return False
    memcpy(c.z_scale, r.scale, q * sizeof(double))
    memcpy(c.z_scale + q, r.scale + q, q * sizeof(double))
    complete_lines(q, k, one.m, rest, c)
    return finite_sums(c) and condition_sums(one.n, one.m, r.constant, r.constant, log_weights, blocks, reml, c)
