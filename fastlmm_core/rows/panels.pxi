# The pass over rows for many columns of X: some hundred rows at a time are shifted and scaled, added to their groups,
# and left to BLAS for the products of all columns.
#
# uses   Pass, _Reading, turn_columns, put_line, PANEL
# gives  sweep_panels

cdef int fill_panel(const Pass* d, Py_ssize_t start, Py_ssize_t stop, double[:, ::1] panel) noexcept nogil:
    """Shifted and scaled rows of X; the result as that of `sweep`."""
    cdef Py_ssize_t i, j
    cdef const double* row
    cdef bint broken = False, varies = False
    for i in range(start, stop):
        row = d.X + i * d.x_row
        if d.x_constant >= 0 and row[d.x_constant * d.x_column] != d.x_value:
            broken = True
        if d.y[i * d.y_row] != d.y_value:
            varies = True
        for j in range(d.p):
            panel[i - start, j] = (row[j * d.x_column] - d.x_shift[j]) * d.x_scale[j]
    return (1 if broken else 0) + (2 if varies else 0)


cdef int add_panel(const Pass* d, Py_ssize_t start, Py_ssize_t stop, double[:, ::1] panel, code_t kind) noexcept nogil:
    """Take beta0 and the offset from the response of a panel, add its rows to `raw` and weigh them; as `sweep`."""
    cdef Py_ssize_t p = d.p, q = d.q, k = p + 1, n_a = q * (q + 1) // 2, line = n_a + q * k + 1, i, j, a, b, pos
    cdef Py_ssize_t group, current = -1, first = start
    cdef double* gram = d.S + k * (k + 1) // 2
    cdef const code_t* codes = <const code_t*> d.codes
    cdef const double* row
    cdef double* z = d.work
    cdef double* acc = z + q
    cdef double* x
    cdef const double* next_one
    cdef double w = 1.0, t
    cdef bint broken = False
    memset(acc, 0, line * sizeof(double))
    for i in range(start, stop):
        x = &panel[i - start, 0]
        group = <Py_ssize_t> (codes[i * d.c_row] - d.base)
        if group != current:
            if current >= 0:
                put_line(n_a, line, <double> (i - first), acc, d.raw + current * line, gram)
            current, first = group, i
            next_one = d.raw + <Py_ssize_t> (codes[min(i + 4, stop - 1) * d.c_row] - d.base) * line
            for j in range(0, line, 8):
                FETCH_TO_CHANGE(next_one + j)
        row = d.Z + i * d.z_row
        if d.z_constant >= 0 and row[d.z_constant * d.z_column] != d.z_value:
            broken = True
        for a in range(q):
            z[a] = (row[a * d.z_column] - d.z_shift[a]) * d.z_scale[a]
        if d.z_transform != NULL:
            turn_columns(q, d.z_transform, z)
        t = d.y[i * d.y_row]
        if d.offset != NULL:
            t -= d.offset[i * d.o_row]
        for j in range(p):
            t -= d.beta0[j] * x[j]
        x[p] = t
        if d.weights != NULL:
            w = d.weights[i * d.w_row]
        pos = 0
        for a in range(q):
            t = w * z[a]
            for b in range(a + 1):
                acc[pos] += t * z[b]
                pos += 1
        for a in range(q):
            t = w * z[a]
            for j in range(k):
                acc[pos + j] += t * x[j]
            pos += k
        if d.weights != NULL:
            t = sqrt(w)
            for j in range(k):
                x[j] *= t
    put_line(n_a, line, <double> (stop - first), acc, d.raw + current * line, gram)
    return 1 if broken else 0


cdef void add_triangle(const double[:, ::1] matrix, double* packed) noexcept nogil:
    """Add the lower triangle to one packed by rows."""
    cdef Py_ssize_t i, j, pos = 0
    for i in range(matrix.shape[0]):
        for j in range(i + 1):
            packed[pos] += matrix[i, j]
            pos += 1


cdef int sweep_panels(_Reading reading, x_transform) except -1:
    """`sweep` for many columns, of which BLAS takes the products."""
    cdef Pass* d = &reading.d
    cdef Py_ssize_t start, stop, k = d.p + 1
    cdef int flags = 0
    panel_array = np.empty((min(PANEL, d.n), k))
    cdef double[:, ::1] panel
    for start in range(0, d.n, PANEL):
        stop = min(start + PANEL, d.n)
        part = panel_array[:stop - start]
        panel = part
        with nogil:
            flags |= fill_panel(d, start, stop, panel)
        if x_transform is not None:
            part[:, :-1] = part[:, :-1] @ x_transform
        with nogil:
            if reading.narrow:
                flags |= add_panel(d, start, stop, panel, <int32_t> 0)
            else:
                flags |= add_panel(d, start, stop, panel, <int64_t> 0)
        add_triangle(part.T @ part, d.S)
    return flags
