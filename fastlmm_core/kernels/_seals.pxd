from libc.stdint cimport int64_t, uint64_t

cdef void seal_lines(const double* values, Py_ssize_t width, const int64_t* at, Py_ssize_t n, const int64_t* lines,
                     Py_ssize_t count, uint64_t* out) noexcept nogil
