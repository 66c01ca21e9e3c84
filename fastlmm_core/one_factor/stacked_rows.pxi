# The rows of one problem among those of many: where they stand,
# or copied from one design where a problem has all values.
#
# uses   Stacked, Desk (each.pyx), ProblemRows (conditioning.pxi)
# gives  take_rows, take_of_design, most_groups


cdef Py_ssize_t place_groups(const Stacked* rows, Py_ssize_t problem, Desk* desk, int64_t* codes) noexcept nogil:
    """Number the groups of a problem in the order of their first rows; how many there are."""
    cdef Py_ssize_t i, found = 0
    cdef int64_t slot
    for i in range(rows.start[problem], rows.start[problem + 1]):
        slot = rows.codes[i] - rows.base
        if desk.seen[slot] != problem + 1:
            desk.seen[slot] = problem + 1
            desk.place[slot] = found
            found += 1
        codes[i - rows.start[problem]] = desk.place[slot]
    return found


cdef Py_ssize_t row_size(Py_ssize_t p, Py_ssize_t q) noexcept nogil:
    """Numbers that are copied from a row of one design."""
    return p + q + 3


cdef void take_stacked(const Stacked* rows, Py_ssize_t problem, Desk* desk, int64_t* codes,
                       ProblemRows* one) noexcept nogil:
    """The rows of a problem where they stand."""
    cdef Py_ssize_t begin = rows.start[problem]
    one.n = rows.start[problem + 1] - begin
    one.m = place_groups(rows, problem, desk, codes)
    one.x_row, one.x_column, one.z_row, one.z_column, one.y_row = (
        rows.x_row, rows.x_column, rows.z_row, rows.z_column, rows.y_row)
    one.X, one.Z, one.y = rows.X + begin * rows.x_row, rows.Z + begin * rows.z_row, rows.y + begin * rows.y_row
    one.weights = rows.weights + begin if rows.weights != NULL else NULL
    one.offset = rows.offset + begin if rows.offset != NULL else NULL
    one.codes = codes


cdef void take_of_design(const Stacked* rows, Py_ssize_t problem, Py_ssize_t p, Py_ssize_t q, Desk* desk,
                         int64_t* codes, double* values, ProblemRows* one) noexcept nogil:
    """Copy the rows of the design for which a problem has all values."""
    cdef Py_ssize_t i, j, kept = 0, found = 0, n = rows.n
    cdef int64_t slot
    cdef int present, fresh
    cdef double t
    cdef double* y = values
    cdef double* w = y + n
    cdef double* o = w + n
    cdef double* X = o + n
    cdef double* Z = X + n * p
    cdef const double* source
    for i in range(n):
        y[kept] = rows.y[problem * rows.y_step + i]
        # infinite values are there: they are met when they are summed
        present = y[kept] == y[kept]
        if rows.weights != NULL:
            w[kept] = rows.weights[problem * rows.w_step + i]
            present &= w[kept] == w[kept]
        if rows.offset != NULL:
            o[kept] = rows.offset[problem * rows.o_step + i]
            present &= o[kept] == o[kept]
        source = rows.X + i * rows.x_row
        for j in range(rows.p):
            X[kept * p + j] = source[j * rows.x_column]
        for j in range(rows.n_extra):
            t = rows.extra[j][problem * rows.extra_step[j] + i]
            present &= t == t
            X[kept * p + rows.p + j] = t * (1.0 if rows.factor[j] < 0 else source[rows.factor[j] * rows.x_column])
        if not rows.z_is_x:
            source = rows.Z + i * rows.z_row
            for j in range(q):
                Z[kept * q + j] = source[j * rows.z_column]
        # no branches: which rows are missing cannot be foretold.  The next row overwrites what is
        slot = rows.codes[i] - rows.base
        fresh = present & (desk.seen[slot] != problem + 1)
        desk.place[slot] = found if fresh else desk.place[slot]
        desk.seen[slot] = problem + 1 if present else desk.seen[slot]
        codes[kept] = desk.place[slot]
        found += fresh
        kept += present
    one.n, one.m = kept, found
    one.X, one.Z, one.y, one.codes = X, X if rows.z_is_x else Z, y, codes
    one.weights = w if rows.weights != NULL else NULL
    one.offset = o if rows.offset != NULL else NULL
    one.x_row, one.x_column, one.y_row, one.z_column = p, 1, 1, 1
    one.z_row = p if rows.z_is_x else q


cdef int take_rows(const Stacked* rows, Py_ssize_t p, Py_ssize_t q, Desk* desk, Py_ssize_t first, Py_ssize_t count
                   ) noexcept nogil:
    """The rows of the problems of a chunk, where each has its own; -1 where memory is short."""
    cdef Py_ssize_t i, n
    if rows.start == NULL:
        if desk.values == NULL:
            desk.values = <double*> malloc((rows.n * row_size(p, q) + 1) * sizeof(double))
            desk.codes = <int64_t*> malloc((rows.n + 1) * sizeof(int64_t))
        return 0 if desk.values != NULL and desk.codes != NULL else -1
    n = rows.start[first + count] - rows.start[first]
    free(desk.codes)
    desk.codes = <int64_t*> malloc((n + 1) * sizeof(int64_t))
    if desk.codes == NULL:
        return -1
    for i in range(count):
        take_stacked(rows, first + i, desk, desk.codes + (rows.start[first + i] - rows.start[first]), &desk.rows[i])
    return 0


cdef Py_ssize_t most_groups(const Stacked* rows, const Desk* desk, Py_ssize_t i) noexcept nogil:
    """Groups that a problem of a chunk has at most."""
    return desk.rows[i].m if rows.start != NULL else min(rows.n, rows.n_slots)
