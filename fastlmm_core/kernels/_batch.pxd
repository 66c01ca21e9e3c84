from libc.stdint cimport int64_t

from fastlmm_core.lanes.kernels cimport Batch

cdef class BatchDesign:
    cdef Batch d
    cdef readonly object rows, patterns, search
    cdef object kept
    cdef int64_t[::1] ahead
    cdef Py_ssize_t* positions
    cdef readonly Py_ssize_t n, n_par, p_full
    cdef readonly object screen

    cdef take_rows(self, rows)
    cdef take_patterns(self, patterns)
    cdef take_search(self, search)
    cdef take_start(self, Batch* d, start, int way)
    cdef take_screen(self, screen)
    cdef Py_ssize_t take_scores(self, Batch* d, scores) except -1
    cdef Batch of_kind(self, bint reml)
