# The pass over rows for the sizes that nearly everyone uses: all sums in registers, or loops unrolled.
#
# uses   Pass, Desk, Reach, sweep, line_of, clear_rest, FLUSH, AHEAD
# gives  sweep_small

cdef inline void fetch_ahead(const Pass* d, Py_ssize_t i, Py_ssize_t line, code_t kind) noexcept nogil:
    """Fetch the line of raw that the row AHEAD of row i is added to, one of up to 16 numbers."""
    cdef const code_t* codes = <const code_t*> d.codes
    cdef const double* start = d.raw
    start = start + <Py_ssize_t> (codes[(i + AHEAD if i + AHEAD < d.n else i) * d.c_row] - d.base) * line
    FETCH_TO_CHANGE(start)
    FETCH_TO_CHANGE(start + 8)


cdef int sweep_line(const Pass* d, code_t kind) noexcept nogil:
    """`sweep` for a random line of which X has the columns too, plain: all sums in registers."""
    cdef const code_t* codes = <const code_t*> d.codes
    cdef const double* x = d.X
    cdef const double* y = d.y
    cdef double* target
    cdef Reach reach = Reach(d.top, d.carry)
    cdef double* S = d.S
    cdef Py_ssize_t n = d.n, c_row = d.c_row, x_row = d.x_row, x_column = d.x_column, y_row = d.y_row
    cdef Py_ssize_t i, end, stop = 0, start = 0, group, current = <Py_ssize_t> codes[0] - d.base, base = d.base
    cdef double s0 = d.x_shift[0], s1 = d.x_shift[1], f0 = d.x_scale[0], f1 = d.x_scale[1]
    cdef double b0 = d.beta0[0], b1 = d.beta0[1], first = d.y_value, value = d.x_value
    cdef double a00 = 0.0, a10 = 0.0, a11 = 0.0, c0 = 0.0, c1 = 0.0, rest = 0.0, x0, x1, r
    cdef double s00 = 0.0, s10 = 0.0, s11 = 0.0, s20 = 0.0, s21 = 0.0
    cdef const double* constant = x + (d.x_constant if d.x_constant >= 0 else 0) * x_column
    cdef int broken = 0, varies = 0
    while stop < n:
        stop = stop + FLUSH
        end = stop if stop < n else n
        for i in range(stop - FLUSH, end + 1):
            group = <Py_ssize_t> codes[i * c_row] - base if i < end else -1
            if group != current:
                target = line_of(d, current, 10, &reach)
                target[0] += a00
                target[1] += a10
                target[2] += a11
                target[3] += a00
                target[4] += a10
                target[5] += c0
                target[6] += a10
                target[7] += a11
                target[8] += c1
                target[9] += <double> (i - start)
                s00, s10, s11, s20, s21 = s00 + a00, s10 + a10, s11 + a11, s20 + c0, s21 + c1
                a00, a10, a11, c0, c1 = 0.0, 0.0, 0.0, 0.0, 0.0
                if group < 0:
                    break
                current, start = group, i
                fetch_ahead(d, i, 10, kind)
            broken |= constant[i * x_row] != value
            x0 = (x[i * x_row] - s0) * f0
            x1 = (x[i * x_row + x_column] - s1) * f1
            r = y[i * y_row]
            varies |= r != first
            r = r - b0 * x0 - b1 * x1
            a00 = a00 + x0 * x0
            a10 = a10 + x1 * x0
            a11 = a11 + x1 * x1
            c0 = c0 + x0 * r
            c1 = c1 + x1 * r
            rest = rest + r * r
        add_six(S, s00, s10, s11, s20, s21, rest)
        S[6] += s00
        S[7] += s10
        S[8] += s11
        S = S + d.s_step
        s00, s10, s11, s20, s21, rest = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        if stop < n:
            current, start = <Py_ssize_t> codes[stop * c_row] - base, stop
    clear_rest(d, 10, &reach)
    return (1 if broken and d.x_constant >= 0 else 0) + (2 if varies else 0)


cdef int sweep_intercept(const Pass* d, code_t kind) noexcept nogil:
    """`sweep` for one random effect and two columns of X, plain: all sums in registers."""
    cdef const code_t* codes = <const code_t*> d.codes
    cdef const double* x = d.X
    cdef const double* z = d.Z
    cdef const double* y = d.y
    cdef double* target
    cdef Reach reach = Reach(d.top, d.carry)
    cdef double* S = d.S
    cdef Py_ssize_t n = d.n, c_row = d.c_row, x_row = d.x_row, x_column = d.x_column, z_row = d.z_row, y_row = d.y_row
    cdef Py_ssize_t i, end, stop = 0, start = 0, group, current = <Py_ssize_t> codes[0] - d.base, base = d.base
    cdef double s0 = d.x_shift[0], s1 = d.x_shift[1], f0 = d.x_scale[0], f1 = d.x_scale[1]
    cdef double b0 = d.beta0[0], b1 = d.beta0[1], first = d.y_value, shift = d.z_shift[0], scale = d.z_scale[0]
    cdef double a = 0.0, c0 = 0.0, c1 = 0.0, c2 = 0.0, x0, x1, r, u, sum_a = 0.0
    cdef double s00 = 0.0, s10 = 0.0, s11 = 0.0, s20 = 0.0, s21 = 0.0, s22 = 0.0
    cdef const double* constant = x + (d.x_constant if d.x_constant >= 0 else 0) * x_column
    cdef int broken = 0, uneven = 0, varies = 0
    while stop < n:
        stop = stop + FLUSH
        end = stop if stop < n else n
        for i in range(stop - FLUSH, end + 1):
            group = <Py_ssize_t> codes[i * c_row] - base if i < end else -1
            if group != current:
                target = line_of(d, current, 5, &reach)
                target[0] += a
                target[1] += c0
                target[2] += c1
                target[3] += c2
                target[4] += <double> (i - start)
                sum_a = sum_a + a
                a, c0, c1, c2 = 0.0, 0.0, 0.0, 0.0
                if group < 0:
                    break
                current, start = group, i
                fetch_ahead(d, i, 5, kind)
            broken |= constant[i * x_row] != d.x_value
            uneven |= z[i * z_row] != d.z_value
            x0 = (x[i * x_row] - s0) * f0
            x1 = (x[i * x_row + x_column] - s1) * f1
            u = (z[i * z_row] - shift) * scale
            r = y[i * y_row]
            varies |= r != first
            r = r - b0 * x0 - b1 * x1
            a = a + u * u
            c0 = c0 + u * x0
            c1 = c1 + u * x1
            c2 = c2 + u * r
            s00 = s00 + x0 * x0
            s10 = s10 + x1 * x0
            s11 = s11 + x1 * x1
            s20 = s20 + r * x0
            s21 = s21 + r * x1
            s22 = s22 + r * r
        add_six(S, s00, s10, s11, s20, s21, s22)
        S[6] += sum_a
        S = S + d.s_step
        s00, s10, s11, s20, s21, s22, sum_a = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        if stop < n:
            current, start = <Py_ssize_t> codes[stop * c_row] - base, stop
    clear_rest(d, 5, &reach)
    broken = (broken and d.x_constant >= 0) or (uneven and d.z_constant >= 0)
    return (1 if broken else 0) + (2 if varies else 0)


cdef inline void add_six(double* S, double a, double b, double c, double d, double e, double f) noexcept nogil:
    S[0] += a
    S[1] += b
    S[2] += c
    S[3] += d
    S[4] += e
    S[5] += f


cdef int sweep_small(const Pass* d, bint shared, bint plain, code_t kind) noexcept nogil:
    """`sweep` for one or two random effects and up to five columns of X; -1 for other sizes."""
    cdef double x[6]
    cdef double z[2]
    cdef double acc[16]
    cdef double s[24]           # packed S of six columns, and A of two
    cdef Desk at
    at.x, at.z, at.acc, at.s = &x[0], &z[0], &acc[0], &s[0]
    if not plain:
        return -1
    if shared:
        if d.p == 2:
            return sweep_line(d, kind)
        return sweep(d, 1, 1, True, True, kind, &at) if d.p == 1 else -1
    if d.q == 1:
        if d.p == 2:
            return sweep_intercept(d, kind)
        if d.p == 3:
            return sweep(d, 3, 1, False, True, kind, &at)
        if d.p == 4:
            return sweep(d, 4, 1, False, True, kind, &at)
        return sweep(d, 5, 1, False, True, kind, &at) if d.p == 5 else -1
    if d.q == 2:
        if d.p == 2:
            return sweep(d, 2, 2, False, True, kind, &at)
        if d.p == 3:
            return sweep(d, 3, 2, False, True, kind, &at)
        if d.p == 4:
            return sweep(d, 4, 2, False, True, kind, &at)
        return sweep(d, 5, 2, False, True, kind, &at) if d.p == 5 else -1
    return -1
