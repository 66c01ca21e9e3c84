from fastlmm_core.kernels._newton cimport Objective
from fastlmm_core.small.chain cimport Chain, Gls

cdef class ProfiledEngine(Objective):
    cdef readonly Py_ssize_t q, k, n_rows
    cdef public bint reml
    cdef public Py_ssize_t n_evaluations
    cdef bint average_
    cdef Chain chain
    cdef Gls gls
    cdef double nu, logdet, r2
    cdef list kept              # arrays that the pointers lead to
    cdef double* gram           # [X y]'[X y] (k, k)
    cdef double* before         # its diagonal
    cdef double* H              # [X y]'V^-1[X y], packed
    cdef double* basis          # B (q, q)
    cdef double* factor         # F = B L at the last point (q, q)
    cdef double* G              # F F', (q, q)
    cdef double* sum_n          # sum N_aa (q, q)
    cdef double* slope          # derivative in G^ (q, q)
    cdef double* curve          # second derivatives along the directions of `chain` (n_free, n_free)
    cdef double* work
    cdef double* last           # the last point, its highest derivative and kind
    cdef int last_order
    cdef int kept_order         # what is known about G^ at the last point before a rotation, -1 where none was since
    cdef bint last_reml, last_average
    cdef Py_ssize_t n_blocks
    cdef Py_ssize_t* block      # (n_blocks + 1,) ranges of columns: G^ is zero between them

    cdef set_up(self, gram, Py_ssize_t n_rows, structure, ranges, bint average)
    cdef double* take(self, array) except? NULL
    cdef Py_ssize_t* take_index(self, array) except? NULL
    cdef int known(self, const double* x) noexcept nogil
    cdef bint same_covariance(self) noexcept nogil
    cdef void square(self, double* G) noexcept nogil
    cdef void profile_curve(self, double share, double* u, double* J) noexcept nogil
    # what an engine has to give, at F: log|V| and H; then slope and sum_n, and by order 2 also curve.  They return the
    # status of the evaluation (Objective.evaluate_)
    cdef int reduce_(self) noexcept nogil
    cdef int differentiate_(self, int done, int order) noexcept nogil
cdef double* hold(list kept, array) except? NULL
cdef Py_ssize_t* hold_index(list kept, array) except? NULL
cdef object copied(const double* place, Py_ssize_t n, Py_ssize_t m)
