# Elimination of all levels of a wide factor at a time, where nearly all of them meet nearly all of a tail of one core:
# their products with the tail, filled up with zeros, are one matrix, and BLAS takes products of it as a whole.
#
# uses   M_a, P_a of elimination.pxi; gemm (curvature.pxi), close_level (posterior.pxi)
# gives  eliminate_together, reach_together, cover_together; lower_product

cdef Py_ssize_t STRIP = 64
"""Rows of a symmetric product that are taken at a time, as far as the diagonal."""


cdef void lower_product(Py_ssize_t n, Py_ssize_t inner, double* A, double* B, double beta, double* out) noexcept nogil:
    """out (n, n) = beta out - A (inner, n)' B (inner, n), which is symmetric: its lower triangle, and a little more."""
    cdef Py_ssize_t first = 0
    cdef int rows, columns, depth = <int> inner, ld = <int> n
    cdef double minus = -1.0
    cdef char plain = b'N', trans = b'T'
    while first < n:
        columns = <int> min(STRIP, n - first)
        rows = <int> (first + columns)
        dgemm(&plain, &trans, &rows, &columns, &depth, &minus, B, &ld, A + first, &ld, &beta, out + first * n, &ld)
        first += STRIP


cdef void eliminate_together(Elimination* e, const Stage* f) noexcept nogil:
    """K -= sum B_a'M_a B_a."""
    cdef Py_ssize_t a, q = f.q, w = e.core_size[0]
    for a in range(f.m):
        gemm(1.0, Matrix(f.mid + a * q * q, q, q, q), Matrix(f.whole + a * q * w, q, w, w), False, 0.0,
             Matrix(f.product + a * q * w, q, w, w))
    lower_product(w, f.m * q, f.product, f.whole, 1.0, e.K)


cdef void reach_together(Elimination* e, const Stage* f) noexcept nogil:
    """product (m q, w) = B Q of all levels, Q the covariances of the core."""
    cdef Py_ssize_t w = e.core_size[0]
    memset(f.product, 0, f.m * f.q * w * sizeof(double))
    add_symmetric(w, f.m * f.q, e.cov, f.whole, f.product)


cdef void cover_together(Elimination* e, const Stage* f, Py_ssize_t a, double* N, double* post) noexcept nogil:
    """`cover_level` once B Q of all levels is there."""
    cdef Py_ssize_t q = f.q, w = e.core_size[0]
    cdef double* quad = e.scratch
    gemm(1.0, Matrix(f.product + a * q * w, q, w, w), Matrix(f.whole + a * q * w, q, w, w), True, 0.0,
         Matrix(quad, q, q, q))
    close_level(q, f.mid + a * q * q, f.proj + a * q * q, f.own + a * q * q, quad, quad + q * q, N, post)
