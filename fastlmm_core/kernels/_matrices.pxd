cdef void jacobi(Py_ssize_t n, double* A, double* Q, double* w) noexcept nogil
