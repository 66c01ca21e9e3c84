cdef enum:
    RAISED = -2             # status of an evaluation that ended with an exception set: an interrupt, no memory

cdef int failed() noexcept nogil
cdef int reraise() except -1

cdef class Objective:
    # A function of n_par free parameters that is evaluated without the GIL.
    cdef readonly Py_ssize_t n_par
    cdef bint staged        # derivatives at the last point cost no more than with its value, so that they can wait
    cdef bint approximate   # whether hess_ is not exact
    cdef double value_      # at the last point evaluated
    cdef double noise_      # rounding error expected in value_
    cdef double* grad_      # (n_par,)
    cdef double* hess_      # (n_par, n_par), both triangles
    cdef int evaluate_(self, const double* x, int order) noexcept nogil  # free of cost at the point of the last call
cdef object vector(const double* values, Py_ssize_t n, Py_ssize_t step=*)
cdef object square(const double* values, Py_ssize_t n, Py_ssize_t step=*)
