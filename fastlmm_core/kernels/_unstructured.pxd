# `us` over visits, evaluated without the interpreter: work space of one thread.
cdef enum:
    ELSEWHERE = 1           # status of an evaluation that must be left to the general criterion

cdef class UnstructuredSums:
    cdef readonly Py_ssize_t n_patterns, n_tables, c, n_par, n_rows
    cdef Py_ssize_t n_v, largest, widest, total, n_x
    cdef const double[::1] given, counts
    cdef const Py_ssize_t[::1] size, members, visits, table, table_size
    cdef Py_ssize_t[::1] first, square, place, root, pair, own
    cdef double[::1] rows, held, lower, inverse, moment_e, moment_x, work, buffer, products
    cdef double[::1] roots, change, slope, curve, J, T, Sx, Se, St
    cdef double[::1] full, half_, turn, beta_, gradient_, hessian_, point, outside, spare
    cdef double value, noise, r2, log_det
    cdef int done
    cdef bint kind
    cdef bint fresh             # whether the last evaluation was at another point than that before
    # outside: G (n, n) by pattern, G G' what subjects of it have of y y' beside the rows

    cdef double* response(self) noexcept nogil
    cdef int at_(self, const double* x, int order, bint reml, double nearly) noexcept nogil
    cdef bint take_roots(self, const double* x, double nearly) noexcept nogil
    cdef bint reduce_(self) noexcept nogil
    cdef int profile_(self, bint reml) noexcept nogil
    cdef void first_(self, bint reml) noexcept nogil
    cdef void directions_(self) noexcept nogil
    cdef void second_(self, bint reml) noexcept nogil
    cdef void pairs_(self) noexcept nogil
    cdef void chain_(self) noexcept nogil
