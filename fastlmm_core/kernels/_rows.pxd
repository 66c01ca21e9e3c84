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

# Columns of a matrix, whose scales are looked for.  Strides are in elements.
cdef struct Columns:
    const double* first
    Py_ssize_t n, k, row, column

# Sums over all rows, to be completed.
cdef struct Totals:
    Py_ssize_t q, n_s, line, n_groups   # n_s: numbers in packed S; line: numbers in a line of raw
    double* raw
    double* S
    double* gram            # sum of A_g, packed
    double* work            # (n_s + q(q+1)/2,)

cdef void probe_column(const double* column, Py_ssize_t n, Py_ssize_t row, Py_ssize_t n_sample, double* mean_out,
                       double* deviation, bint* constant) noexcept nogil
cdef Py_ssize_t find_scales(const Columns* c, Py_ssize_t n_sample, bint may_shift, bint coarse, double* out,
                            double* uneven) noexcept nogil
cdef int add_pass(Pass* d, bint narrow, bint* shared) noexcept nogil
cdef bint complete(const Totals* t, bint shared) noexcept nogil
cdef int sum_rows(Pass* d, Py_ssize_t n_groups, double* gram) noexcept nogil
