# Shifts and scales of columns, from a sample of their rows.

cdef void coarsen(double size, double* shift, double* scale) noexcept nogil:
    """A power of two that brings the size below 1, and the shift in sixteenths of the size so reached."""
    cdef int exponent = 0
    scale[0] = 1.0
    if size > 0.0 and isfinite(size):
        frexp(size, &exponent)
        if exponent > 1000 or exponent < -1000:
            scale[0] = 1.0 / size
            return
        scale[0] = ldexp(1.0, -exponent)
        if isfinite(shift[0] * scale[0] * 16.0):
            shift[0] = ldexp(rint(shift[0] * scale[0] * 16.0), exponent - 4)


def column_scales(const double[:, :] columns, Py_ssize_t n_sample, bint may_shift, bint coarse=False):
    """Shift and scale of each column from a sample of rows.

    Parameters
    ----------
    columns : (n, k) array
    n_sample : int
    may_shift : bool
        Whether shifts are allowed where a column is constant and not zero.
    coarse : bool
        Take powers of two as scales and shifts of few digits: the mean is then near 0, and the variance or mean square
        between 1/4 and 1.  Numbers that have few digits themselves are not rounded by either, so that sums over whole
        numbers do not depend on their order.

    Returns
    -------
    shift_scale : (2, k) array
        (column - shift) * scale has mean 0 and variance 1 if shifted, mean square 1 if not; the constant column
        becomes 1.
    constant : int
        That column; -1 if there is none or `may_shift` is false, and then nothing is shifted.
    """
    cdef Columns c = Columns(
        NULL, columns.shape[0], columns.shape[1], columns.strides[0] // 8, columns.strides[1] // 8)
    cdef Py_ssize_t constant = -1
    out_array = np.empty((2, c.k))
    cdef double[:, ::1] out = out_array
    cdef double[::1] uneven = np.empty(c.k)
    if c.k > 0:
        c.first = &columns[0, 0]
        with nogil:
            constant = find_scales(&c, n_sample, may_shift, coarse, &out[0, 0], &uneven[0])
    return out_array, constant


cdef Py_ssize_t find_scales(const Columns* c, Py_ssize_t n_sample, bint may_shift, bint coarse, double* out,
                            double* uneven) noexcept nogil:
    """`column_scales` into out (2, k); uneven: work space (k,)."""
    cdef Py_ssize_t k = c.k, j, constant = -1
    cdef double* scale = out + k
    cdef double size
    cdef bint equal, by_rows = k > 3 and c.column == 1
    if by_rows:
        probe_rows(c.first, c.n, k, c.row, n_sample, out, scale, uneven)
    for j in range(k):
        if by_rows:
            equal = uneven[j] == 0.0
        else:
            probe_column(c.first + j * c.column, c.n, c.row, n_sample, out + j, scale + j, &equal)
        if may_shift and constant < 0 and equal and out[j] != 0.0:
            constant = j
    for j in range(k):
        size = scale[j]
        if constant < 0:
            size = sqrt(size * size + out[j] * out[j])
            out[j] = 0.0
        if coarse:
            coarsen(size, out + j, scale + j)
        else:
            scale[j] = 1.0 / size if size > 0.0 and isfinite(size) else 1.0
        if j == constant:
            scale[j] = 1.0 / out[j]
            out[j] = 0.0
    return constant
