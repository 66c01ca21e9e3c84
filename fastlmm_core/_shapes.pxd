# Types shared by the lane kernels and their callers.

cdef extern from "vector.h":
    ctypedef double v8
    enum: LANES

# What the lane kernels need to know of a model's shape.
cdef struct Shape:
    Py_ssize_t q        # random effects per group
    Py_ssize_t k        # columns of [X y]: p + 1
    Py_ssize_t n_a      # q (q + 1) / 2
    Py_ssize_t n_c      # q k
    Py_ssize_t stride   # vectors per block of packed groups: n_a + n_c + 1

ctypedef void (*factor_t)(
    const Shape*, Py_ssize_t, const double*, const double*, const double*, double*, double*, double*) noexcept nogil
ctypedef double (*moments_t)(
    const Shape*, Py_ssize_t, bint, const double*, const double*, double*, double*, double*, double*, double*
    ) noexcept nogil
ctypedef void (*curvature_t)(
    const Shape*, Py_ssize_t, Py_ssize_t, const double*, const double*, const double*, double*, double*) noexcept nogil
ctypedef void (*effects_t)(
    const Shape*, Py_ssize_t, const double*, const double*, const double*, double*, double*, double*) noexcept nogil

cdef struct LaneKernels:
    factor_t factor
    moments_t moments
    curvature_t curvature
    effects_t effects
