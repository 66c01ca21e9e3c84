# Products of rows less what the columns of Z of their group explain: for data that hardly vary within groups, where the
# difference of two sums would have no digits.

cdef void solve_lines(const double[:, :, ::1] packed, double[:, :, ::1] B) noexcept nogil:
    """B_i = R_i^-1 c_i of all groups."""
    cdef Py_ssize_t q = B.shape[1], k = B.shape[2], n_a = q * (q + 1) // 2, lanes = packed.shape[2]
    cdef Py_ssize_t g, a, b, j, at
    cdef double t
    for g in range(B.shape[0]):
        for a in range(q - 1, -1, -1):
            at = a * q - a * (a - 1) // 2
            if packed[g // lanes, at, g % lanes] == 0.0:
                continue
            for j in range(k):
                t = packed[g // lanes, n_a + a * k + j, g % lanes]
                for b in range(a + 1, q):
                    t -= packed[g // lanes, at + b - a, g % lanes] * B[g, b, j]
                B[g, a, j] = t / packed[g // lanes, at, g % lanes]


cdef void within_sweep(const Pass* d, const int64_t[::1] position, const double[:, :, ::1] B, bint by_group,
                       double[:, ::1] s, code_t kind) noexcept nogil:
    """Sums of w e e'; x_transform takes [x y] to conditioned columns, z_transform z."""
    cdef Py_ssize_t p = d.p, q = d.q, k = p + 1, i, j, l, a, g, pos
    cdef const code_t* codes = <const code_t*> d.codes
    cdef double w = 1.0, t
    cdef double* x = d.work
    cdef double* z = d.work + k
    for i in range(d.n):
        g = position[<Py_ssize_t> (codes[i * d.c_row] - d.base)]
        if d.weights != NULL:
            w = d.weights[i * d.w_row]
        t = d.y[i * d.y_row]
        if d.offset != NULL:
            t -= d.offset[i * d.o_row]
        for j in range(p):
            x[j] = (d.X[i * d.x_row + j * d.x_column] - d.x_shift[j]) * d.x_scale[j]
            t -= d.beta0[j] * x[j]
        x[p] = t
        for a in range(q):
            z[a] = (d.Z[i * d.z_row + a * d.z_column] - d.z_shift[a]) * d.z_scale[a]
        turn_columns(q, d.z_transform, z)
        turn_columns(k, d.x_transform, x)
        for j in range(k):
            for a in range(q):
                x[j] -= z[a] * B[g, a, j]
        pos = 0
        for j in range(k):
            for l in range(j + 1):
                s[g if by_group else 0, pos] += w * x[j] * x[l]
                pos += 1


def within_rows(rows, columns, const int64_t[::1] position, const double[:, :, ::1] packed, bint by_group=False,
                double[:, ::1] more=None):
    """Sum over rows of w e e', e = [x_o y_o] - z_o'B_i: the part within groups without subtraction of sums.

    Needed where nearly all variation lies between groups, so that S - sum c'c would lose its digits.

    Parameters
    ----------
    rows : Rows
    columns : RowColumns
        Their transformations lead all the way to the conditioned columns: `x_transform` (p+1, p+1) that of [x y],
        `z_transform` (q, q) that of z.
    position : (n_slots,) int64 array
        Position of each slot's group in `packed`.
    packed : (blocks, K, lanes) array
        Factored groups (R, c, count); B_i = R_i^-1 c_i.
    by_group : bool
        Give each group's own sum.
    more : (1 or places, (p+1)(p+2)/2) array, optional
        Sums over rows before these, to which theirs are added.

    Returns
    -------
    ((p+1)(p+2)/2,) array, or one such row for every position of `packed`
    """
    cdef _Reading reading = _Reading(rows, columns)
    cdef Pass* d = &reading.d
    cdef Py_ssize_t k = d.p + 1, places = packed.shape[0] * packed.shape[2]
    cdef const double[:, ::1] xy_transform = columns.x_transform, z_transform = columns.z_transform
    cdef double[:, :, ::1] B = np.zeros((places, d.q, k))
    cdef double[::1] work = np.empty(k + d.q)
    s_array = np.zeros((places if by_group else 1, k * (k + 1) // 2)) if more is None else np.asarray(more)
    cdef double[:, ::1] s = s_array
    d.x_transform = &xy_transform[0, 0]
    d.z_transform = &z_transform[0, 0]
    d.work = &work[0]
    with nogil:
        solve_lines(packed, B)
        if reading.narrow:
            within_sweep(d, position, B, by_group, s, <int32_t> 0)
        else:
            within_sweep(d, position, B, by_group, s, <int64_t> 0)
    return s_array if by_group else s_array[0]
