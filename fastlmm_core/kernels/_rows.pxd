from libc.stdint cimport int64_t

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

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
    double x_value, z_value, y_value
    double* raw
    double* S               # packed S, then the sum of A_g
    double* work            # (work_size(p, q),)
    # Of a piece of the rows: the group of which sums go to lines of `carry`, one for each run of rows, and the distance
    # from the sums of a block of rows to those of the next in S.  See `whole`.
    Py_ssize_t lead, s_step
    double* carry
    Py_ssize_t top, limit   # lines of raw that are yet to be set to zero: near the rows, they are still in the cache

# Columns of a matrix, whose scales are looked for.  Strides are in elements.
cdef struct Columns:
    const double* first
    Py_ssize_t n, k, row, column

cdef inline void whole(Pass* d) noexcept nogil:
    """All rows in one piece, to be added to sums that are there."""
    d.lead, d.s_step, d.carry = -1, 0, NULL
    d.top = d.limit = PY_SSIZE_T_MAX

cdef inline Py_ssize_t work_size(Py_ssize_t p, Py_ssize_t q) noexcept nogil:
    cdef Py_ssize_t k = p + 1, n_a = q * (q + 1) // 2
    return k + q + n_a + q * k + 1 + k * (k + 1) // 2 + n_a

cdef void probe_column(const double* column, Py_ssize_t n, Py_ssize_t row, Py_ssize_t n_sample, double* mean_out,
                       double* deviation, bint* constant) noexcept nogil
cdef Py_ssize_t find_scales(const Columns* c, Py_ssize_t n_sample, bint may_shift, bint coarse, double* out,
                            double* uneven) noexcept nogil
cdef int add_pass(Pass* d, bint narrow) noexcept nogil
