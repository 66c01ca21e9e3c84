# What a look at the rows tells before they are summed: means and deviations of a sample, which columns are constant,
# and the range of the codes.
#
# gives  probe_column, probe_rows, sample_mean; code_buffer, bounds, code_range

cdef void probe_column(const double* column, Py_ssize_t n, Py_ssize_t row, Py_ssize_t n_sample, double* mean_out,
                       double* deviation, bint* constant) noexcept nogil:
    """Mean, deviation and constancy of every ceil(n / n_sample)-th element of a column, its elements `row` apart."""
    cdef Py_ssize_t i = 0, used = 0, step = (n + n_sample - 1) // n_sample
    cdef double first = column[0], mean = 0.0, ss = 0.0, x
    if step < 1:
        step = 1
    constant[0] = True
    while i < n:
        x = column[i * row]
        mean += x - first
        if x != first:
            constant[0] = False
        used += 1
        i += step
    mean = first + mean / used
    i = 0
    while i < n:
        x = column[i * row] - mean
        ss += x * x
        i += step
    mean_out[0] = mean
    deviation[0] = sqrt(ss / used)


cdef void probe_rows(const double* first, Py_ssize_t n, Py_ssize_t k, Py_ssize_t row, Py_ssize_t n_sample,
                     double* means, double* deviations, double* uneven) noexcept nogil:
    """`probe_column` of k columns side by side, with the same sums, row by row; uneven: 0 where constant."""
    cdef Py_ssize_t i = 0, j, used = 0, step = (n + n_sample - 1) // n_sample
    cdef const double* x
    cdef double t
    if step < 1:
        step = 1
    for j in range(k):
        means[j], deviations[j], uneven[j] = 0.0, 0.0, 0.0
    while i < n:
        x = first + i * row
        for j in range(k):
            t = x[j] - first[j]
            means[j] += t
            # not of t: infinity less itself is not 0
            uneven[j] = uneven[j] if x[j] == first[j] else 1.0
        used += 1
        i += step
    for j in range(k):
        means[j] = first[j] + means[j] / used
    i = 0
    while i < n:
        x = first + i * row
        for j in range(k):
            t = x[j] - means[j]
            deviations[j] += t * t
        i += step
    for j in range(k):
        deviations[j] = sqrt(deviations[j] / used)


def sample_mean(const double[:] values, Py_ssize_t n_sample):
    """Mean of every ceil(n / n_sample)-th of n values."""
    cdef double mean, deviation
    cdef bint constant
    with nogil:
        probe_column(&values[0], values.shape[0], values.strides[0] // 8, n_sample, &mean, &deviation, &constant)
    return mean


cdef int code_buffer(codes, Py_buffer* index) except -1:
    """Buffer of a vector of int32 or int64: Cython's dispatch on the type takes longer than a small problem's sums."""
    PyObject_GetBuffer(codes, index, PyBUF_STRIDES | PyBUF_FORMAT)
    if index.ndim != 1 or index.format[0] not in (b"i", b"l", b"q"):
        PyBuffer_Release(index)
        raise TypeError("codes must be a vector of int32 or int64")
    return 0


cdef void bounds(const code_t* codes, Py_ssize_t n, Py_ssize_t row, int64_t* low, int64_t* high) noexcept nogil:
    cdef Py_ssize_t i
    cdef code_t small = codes[0], large = codes[0], x
    for i in range(n):
        x = codes[i * row]
        small = x if x < small else small
        large = x if x > large else large
    low[0] = small
    high[0] = large


def code_range(codes):
    """Smallest and largest of a vector of int32 or int64, not empty."""
    cdef int64_t low, high
    cdef Py_buffer index
    code_buffer(codes, &index)
    with nogil:
        if index.itemsize == sizeof(int64_t) and index.strides[0] == sizeof(int64_t):
            kernels.find_range(<const int64_t*> index.buf, index.shape[0], &low, &high)
        elif index.itemsize == sizeof(int32_t):
            bounds(<const int32_t*> index.buf, index.shape[0], index.strides[0] // 4, &low, &high)
        else:
            bounds(<const int64_t*> index.buf, index.shape[0], index.strides[0] // 8, &low, &high)
    PyBuffer_Release(&index)
    return low, high
