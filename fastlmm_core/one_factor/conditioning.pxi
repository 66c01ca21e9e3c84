# A problem of one grouping factor conditioned, without the interpreter: what engines/one_factor/conditioning.py does
# for problems that need no second look at their rows.  What does is left alone, for a single fit to see to.
#
# x~ = (x - shift) scale, one pass over the rows, then X_o = X~ T, Z_o = Z~ T_z with Z_o'Z_o = m I, and y_o, what X
# leaves of y, of squared length PROBLEM_SIZE.  A column of X without variation beside the constant is scaled by 0 and
# takes no part in anything.

cdef enum:
    SAMPLE = 1000               # rows from which offsets and scales are taken

cdef double WELL_CONDITIONED = 1e-5
"""Smallest 1 - R^2 of a column on its predecessors for which cross-products are exact enough."""

cdef double MOSTLY_EXPLAINED = 1e-7
"""Share of y'y that X leaves below which its residual is to be taken from the rows."""

cdef double ALIKE = 0.996
"""Squared correlation of columns of independent effects up to which one screen of their variances will do."""

# Rows of one problem.  Strides are in elements.
cdef struct ProblemRows:
    Py_ssize_t n, m
    const double* X
    const double* Z
    const double* y
    const double* weights       # or NULL
    const double* offset        # or NULL
    const int64_t* codes        # (n,) 0 .. m - 1
    Py_ssize_t x_row, x_column, z_row, z_column, y_row

# Which elements of G are free: blocks of effects, correlated or not.
cdef struct Blocks:
    Py_ssize_t n_blocks
    Py_ssize_t* start           # (n_blocks + 1,)
    int* correlated             # (n_blocks,)
    bint one_full

# Work space, and what comes of a problem; the arrays of `sums` lead here.
cdef struct Conditioned:
    Py_ssize_t p, q
    ProblemSums sums
    double* x_scale             # (2, p)
    double* z_scale             # (2, q)
    double* beta0               # (p,)
    double* raw
    double* S                   # packed
    double* gram                # sum of A_g, packed
    double* T                   # (p, p)
    double* Tx                  # (k, k)
    double* Tz                  # (q, q)
    double* x_map               # (p, p)
    double* z_map               # (q, q)
    double* beta                # (p,)
    double* base                # (p,)
    int* left_out               # (p,) 1 for columns of X left out
    double* work                # of a pass, and of the algebra


cdef Py_ssize_t line_length(Py_ssize_t p, Py_ssize_t q) noexcept nogil:
    return q * (q + 1) // 2 + q * (p + 1) + 1


cdef void lay_conditioned(Py_ssize_t p, Py_ssize_t q, Py_ssize_t m, Conditioned* c, Arena* arena) noexcept nogil:
    """Take the space of a problem with up to m groups."""
    cdef Py_ssize_t k = p + 1, n_s = k * (k + 1) // 2, n_a = q * (q + 1) // 2
    c.p, c.q = p, q
    c.x_scale = take(arena, 2 * p)
    c.z_scale = take(arena, 2 * q)
    c.beta0 = take(arena, p)
    c.raw = take(arena, m * line_length(p, q))
    c.S = take(arena, n_s + n_a)
    c.gram = c.S + n_s
    c.T = take(arena, p * p)
    c.Tx = take(arena, k * k)
    c.Tz = take(arena, q * q)
    c.x_map = take(arena, p * p)
    c.z_map = take(arena, q * q)
    c.beta = take(arena, p)
    c.base = take(arena, p)
    c.left_out = <int*> take(arena, p)
    c.work = take(arena, max(work_size(p, q), max(2 * p * p + p, 3 * q * q)))


cdef void probe(const double* column, Py_ssize_t n, Py_ssize_t row, double* mean_out, double* deviation, bint* constant
                ) noexcept nogil:
    """`probe_column`; for a few rows in four sums at a time, which need not wait for each other."""
    cdef Py_ssize_t i, j, whole = n - n % 4
    cdef double first = column[0], mean, x
    cdef double sums[4]
    cdef bint equal = True
    if n > SAMPLE:
        probe_column(column, n, row, SAMPLE, mean_out, deviation, constant)
        return
    for j in range(4):
        sums[j] = 0.0
    for i in range(0, whole, 4):
        for j in range(4):
            x = column[(i + j) * row] - first
            sums[j] += x
            equal = equal and x == 0.0
    for i in range(whole, n):
        x = column[i * row] - first
        sums[0] += x
        equal = equal and x == 0.0
    mean = first + ((sums[0] + sums[1]) + (sums[2] + sums[3])) / n
    for j in range(4):
        sums[j] = 0.0
    for i in range(0, whole, 4):
        for j in range(4):
            x = column[(i + j) * row] - mean
            sums[j] += x * x
    for i in range(whole, n):
        x = column[i * row] - mean
        sums[0] += x * x
    mean_out[0] = mean
    deviation[0] = sqrt(((sums[0] + sums[1]) + (sums[2] + sums[3])) / n)
    constant[0] = equal


# Columns of the caller, wherever they stand.
cdef struct Columns:
    const double* first
    Py_ssize_t n, k             # rows, columns
    Py_ssize_t row, column      # from one row, one column to the next


cdef bint scale_columns(Columns c, bint may_shift, double* out, Py_ssize_t* constant_out, int* still) noexcept nogil:
    """Shift and scale (2, k) as `column_scales` gives them, the constant column, and 1 for columns that are nothing.

    False where a sample of the rows does not tell.
    """
    cdef Py_ssize_t j, i, k = c.k, constant = -1
    cdef double size
    cdef const double* values
    cdef bint equal
    for j in range(k):
        values = c.first + j * c.column
        probe(values, c.n, c.row, out + j, out + k + j, &equal)
        still[j] = equal
        if equal and c.n > SAMPLE:
            for i in range(c.n):
                if values[i * c.row] != values[0]:
                    return False
        if may_shift and constant < 0 and equal and out[j] != 0.0:
            constant = j
    for j in range(k):
        # a column that does not vary is a multiple of the constant, if there is one
        still[j] = still[j] and j != constant and (constant >= 0 or out[j] == 0.0)
        size = out[k + j]
        if constant < 0:
            size = sqrt(size * size + out[j] * out[j])
            out[j] = 0.0
        out[k + j] = 1.0 / size if size > 0.0 and isfinite(size) else 1.0
        if j == constant:
            out[k + j] = 1.0 / out[j]
            out[j] = 0.0
        if still[j]:
            out[k + j] = 0.0
    constant_out[0] = constant
    return True


cdef bint turn_effects(const Blocks* b, double m, Conditioned* c) noexcept nogil:
    """T_z, block by block: T'gram T = m I, diagonal blocks to unit diagonal only.

    False for dependent columns, and for independent effects of nearly dependent ones, whose variances may be told apart
    in several ways far from each other.
    """
    cdef Py_ssize_t q = c.q, block, i, j, size, at
    cdef double t, root = sqrt(m)
    cdef double* inner = c.work
    cdef double* T = c.work + q * q
    memset(c.Tz, 0, q * q * sizeof(double))
    for i in range(q if not b.one_full else 0):
        for j in range(i):
            t = c.gram[i * (i + 1) // 2 + j]
            if not t * t <= ALIKE * c.gram[i * (i + 3) // 2] * c.gram[j * (j + 3) // 2]:
                return False
    for block in range(b.n_blocks):
        at = b.start[block]
        size = b.start[block + 1] - at
        for i in range(size):
            for j in range(i + 1):
                t = c.gram[(at + i) * (at + i + 1) // 2 + at + j]
                inner[i * size + j] = t
                inner[j * size + i] = t
        if b.correlated[block]:
            if not triangle(size, inner, size, 1, c.work + 2 * q * q, T) >= WELL_CONDITIONED:
                return False
            for i in range(size):
                for j in range(size):
                    c.Tz[(at + i) * q + at + j] = T[i * size + j] * root
            continue
        for i in range(size):
            if not inner[i * size + i] > 0.0:
                return False
            c.Tz[(at + i) * (q + 1)] = root / sqrt(inner[i * size + i])
    return True


cdef void lean_map(Py_ssize_t k, const double* shift_scale, Py_ssize_t constant, const double* T, double* out
                   ) noexcept nogil:
    """out (k, k) = M T, (columns - shift) scale = columns M, the constant column becoming 1."""
    cdef Py_ssize_t i, j
    cdef double lean
    for i in range(k):
        for j in range(k):
            out[i * k + j] = shift_scale[k + i] * T[i * k + j]
    for i in range(k if constant >= 0 else 0):
        if i != constant:
            lean = -shift_scale[i] * shift_scale[k + i] * shift_scale[k + constant]
            for j in range(k):
                out[constant * k + j] += lean * T[i * k + j]


cdef bint finite_sums(const Conditioned* c) noexcept nogil:
    cdef Py_ssize_t i
    for i in range((c.p + 1) * (c.p + 2) // 2 + c.q * (c.q + 1) // 2):
        if not isfinite(c.S[i]):
            return False
    return True


cdef bint sum_problem(const ProblemRows* rows, Conditioned* c, Py_ssize_t x_constant, Py_ssize_t z_constant
                      ) noexcept nogil:
    """The pass over the rows; False for sums that are not finite, y constant, or a constant column that is not."""
    cdef Py_ssize_t p = c.p, q = c.q, k = p + 1
    cdef Pass d
    cdef int flags
    d.n, d.p, d.q = rows.n, p, q
    d.codes, d.c_row, d.base = rows.codes, 1, 0
    d.X, d.Z, d.y = rows.X, rows.Z, rows.y
    d.weights, d.offset, d.w_row, d.o_row = rows.weights, rows.offset, 1, 1
    d.x_row, d.x_column, d.z_row, d.z_column, d.y_row = (
        rows.x_row, rows.x_column, rows.z_row, rows.z_column, rows.y_row)
    d.x_shift, d.x_scale, d.z_shift, d.z_scale = c.x_scale, c.x_scale + p, c.z_scale, c.z_scale + q
    d.beta0, d.x_transform, d.z_transform = c.beta0, NULL, NULL
    d.x_constant, d.z_constant = x_constant, z_constant
    d.x_value = rows.X[x_constant * rows.x_column] if x_constant >= 0 else 0.0
    d.z_value = rows.Z[z_constant * rows.z_column] if z_constant >= 0 else 0.0
    d.y_value = rows.y[0]
    d.raw, d.S, d.work = c.raw, c.S, c.work
    whole(&d)
    memset(c.raw, 0, rows.m * line_length(p, q) * sizeof(double))
    memset(c.S, 0, (k * (k + 1) // 2 + q * (q + 1) // 2) * sizeof(double))
    flags = add_pass(&d, False)
    return flags == 2 and finite_sums(c)


cdef inline bint moderate(double x) noexcept nogil:
    """Whether products of three such numbers are numbers of full precision."""
    return 1e-100 < x < 1e100


cdef double sum_logarithms(const double* values, Py_ssize_t n) noexcept nogil:
    """Sum of log(value): logarithms of products that are neither too large nor too small, of four values at a time."""
    cdef Py_ssize_t i = 0, j
    cdef double total = 0.0, product = 1.0, one, other
    while i < n:
        one = values[i] * values[i + 1] if i + 4 <= n else 0.0
        other = values[i + 2] * values[i + 3] if i + 4 <= n else 0.0
        if moderate(one) and moderate(other):
            product *= one * other
            i += 4
        else:
            for j in range(i, min(i + 4, n)):
                total += log(values[j])
            i += 4
        if not moderate(product):
            total += log(product)
            product = 1.0
    return total + log(product)


cdef bint condition_problem(const ProblemRows* rows, const Blocks* blocks, bint reml, Conditioned* c) noexcept nogil:
    """Everything of `c` from the rows; False where it takes a second look at them, or cannot be fitted."""
    cdef Py_ssize_t p = c.p, j, x_constant = -1, z_constant = -1
    cdef double mean, deviation
    cdef bint equal
    cdef int* still = <int*> c.work
    if rows.n < 2 or not scale_columns(
            Columns(rows.X, rows.n, p, rows.x_row, rows.x_column), True, c.x_scale, &x_constant, c.left_out):
        return False
    if (blocks.one_full and rows.Z == rows.X and c.q <= p and x_constant < c.q and rows.z_row == rows.x_row
            and rows.z_column == rows.x_column):
        # Z has the first columns of X, the constant among them unless there is none
        memcpy(c.z_scale, c.x_scale, c.q * sizeof(double))
        memcpy(c.z_scale + c.q, c.x_scale + p, c.q * sizeof(double))
        memcpy(still, c.left_out, c.q * sizeof(int))
        z_constant = x_constant
    elif not scale_columns(
            Columns(rows.Z, rows.n, c.q, rows.z_row, rows.z_column), blocks.one_full, c.z_scale, &z_constant, still):
        return False
    for j in range(c.q):
        if still[j]:
            return False
    memset(c.beta0, 0, p * sizeof(double))
    if x_constant >= 0:
        probe(rows.y, rows.n, rows.y_row, &mean, &deviation, &equal)
        c.beta0[x_constant] = mean
    if not sum_problem(rows, c, x_constant, z_constant):
        return False
    return condition_sums(rows.n, rows.m, x_constant, z_constant,
                          sum_logarithms(rows.weights, rows.n) if rows.weights != NULL else 0.0, blocks, reml, c)


cdef bint condition_sums(Py_ssize_t n, Py_ssize_t m, Py_ssize_t x_constant, Py_ssize_t z_constant, double log_weights,
                         const Blocks* blocks, bint reml, Conditioned* c) noexcept nogil:
    """Everything of `c` from the sums over n rows in m groups; False where it takes a second look at the rows."""
    cdef Py_ssize_t p = c.p, k = p + 1, j
    cdef double jacobian = 0.0
    cdef Regression fit
    c.sums.rank = p
    for j in range(p):
        if c.left_out[j]:
            c.sums.rank -= 1
            c.S[j * (j + 1) // 2 + j] = 1.0
    fit.T, fit.xy, fit.beta = c.T, c.Tx, c.beta
    regress(p, c.S, c.beta0, n, c.work, &fit)
    if not (fit.margin >= WELL_CONDITIONED and fit.rest > MOSTLY_EXPLAINED * c.S[p * k // 2 + p]
            and fit.rest > 1e-30 * fit.total and n > c.sums.rank):
        return False
    if not turn_effects(blocks, m, c):
        return False
    # from unit variance of y to PROBLEM_SIZE
    c.sums.scale = sqrt(fit.rest / PROBLEM_SIZE)
    for j in range(k):
        c.Tx[j * k + p] *= fit.scale / c.sums.scale
    for j in range(p):
        if c.left_out[j]:
            c.T[j * (p + 1)] = 0.0
            c.Tx[j * (k + 1)] = 0.0
            c.S[j * (j + 1) // 2 + j] = 0.0
        else:
            jacobian += log(fabs(c.x_scale[p + j] * c.T[j * (p + 1)]))
    lean_map(p, c.x_scale, x_constant, c.T, c.x_map)
    lean_map(c.q, c.z_scale, z_constant, c.Tz, c.z_map)
    for j in range(p):
        c.base[j] = c.x_scale[p + j] * c.beta[j]
    for j in range(p if x_constant >= 0 else 0):
        if j != x_constant:
            c.base[x_constant] -= c.x_scale[j] * c.x_scale[p + j] * c.x_scale[p + x_constant] * c.beta[j]
    c.sums.m, c.sums.n = m, n
    c.sums.nu = n - c.sums.rank if reml else n
    c.sums.offset = c.sums.nu * 2.0 * log(c.sums.scale) - log_weights - (2.0 * jacobian if reml else 0.0)
    c.sums.raw, c.sums.Tz, c.sums.Tx, c.sums.S = c.raw, c.Tz, c.Tx, c.S
    c.sums.x_map, c.sums.base = c.x_map, c.base
    return True
