cdef void* place(object array) except NULL
cdef void jacobi(Py_ssize_t n, double* A, double* Q, double* w) noexcept nogil
cdef double triangle(Py_ssize_t k, const double* gram, Py_ssize_t row, Py_ssize_t column, double* L,
                     double* T) noexcept nogil

# Regression on orthonormal columns; see `least_squares`.
cdef struct Regression:
    double* T       # (p, p)
    double* xy      # (p + 1, p + 1)
    double* beta    # (p,)
    double margin, rest, total, scale

cdef void regress(Py_ssize_t p, const double* packed, const double* before, double n, double* work, Regression* out
                  ) noexcept nogil
cdef void regress_on(Py_ssize_t p, const double* packed, const double* before, double n, double* work, Regression* out
                     ) noexcept nogil
cdef void within_products(Py_ssize_t k, const double* packed, const double* T, const double* between, double* half,
                          double* out) noexcept nogil
cdef void lower(Py_ssize_t q, Py_ssize_t r, double* A, double* L) noexcept nogil
cdef double map_columns(Py_ssize_t k, const double* shift_scale, Py_ssize_t constant, const double* T, double* out,
                        const double* beta, double* b) noexcept nogil
cdef double regress_within(Py_ssize_t k, const double* packed, double exact, double* L, double* slope) noexcept nogil
cdef bint drop_exact(double* packed, Py_ssize_t k, double last, double exact) noexcept nogil
cdef void raise_floor(Py_ssize_t q, const double* matrix, double floor, double scale, double shift, double* work,
                      double* L) noexcept nogil
