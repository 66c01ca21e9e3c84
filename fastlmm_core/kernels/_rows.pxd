from libc.stdint cimport int64_t

# What one pass reads and where it writes.  Strides are in elements.
cdef struct Pass:
    Py_ssize_t n, p, q
    const void* codes       # int32 or int64
    Py_ssize_t c_row
    int64_t base
    const double* X
    const double* Z
    const double* y
    const double* weights
    const double* offset
    Py_ssize_t x_row, x_column, z_row, z_column, y_row, w_row, o_row
    const double* x_shift
    const double* x_scale
    const double* z_shift
    const double* z_scale
    const double* beta0
    const double* x_transform
    const double* z_transform
    Py_ssize_t x_constant, z_constant
    double x_value, z_value
    double* raw
    double* S
    double* work            # (k + q + line of raw + packed S,)

cdef void probe_column(const double* column, Py_ssize_t n, Py_ssize_t row, Py_ssize_t n_sample, double* mean_out,
                       double* deviation, bint* constant) noexcept nogil
cdef int sum_rows(Pass* d, Py_ssize_t n_groups, double* gram) noexcept nogil
