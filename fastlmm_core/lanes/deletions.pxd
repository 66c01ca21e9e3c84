# Types shared by the refits after deletions and their lane kernel.
from libc.stdint cimport int64_t

from fastlmm_core.small.arena cimport Arena, take

cdef enum:
    FOUND = 0        # certified
    FAR = 1          # outside the ball in which the polynomials hold, or not a minimum
    DEFICIENT = 2    # X has lost rank, or nothing is left
    OPEN = 3         # on the way
    TILE = 8         # sums of polynomials taken at a time


# What the refits after deletions have in common, see one_factor/deletion.pyx.
cdef struct Deletions:
    Py_ssize_t q, k, n_h, n_par, line, n_terms, n_lower, n_tiles
    const int64_t* row
    const int64_t* col
    const int64_t* parent
    const int64_t* variable
    const double* tiles         # (n_tiles, n_terms, TILE) coefficients
    const double* second        # (n_par n_par, 1 + n_h)
    const double* factor        # (q, q)
    bint reml
    double radius, rank_tolerance
    double tolerance            # decrement at which to stop
    Py_ssize_t max_iterations


# What the lanes work on; all of vectors.
cdef struct DeletionWork:
    double* less                # (line,) U, c and w of the group before the deletion
    double* more                # (line,) and after it
    double* x                   # (n_par,)
    double* mono                # (n_terms,)
    double* sums                # (n_tiles TILE,) log|W|, H, then their derivatives
    double* S                   # (q, q)
    double* N                   # (2, q, q)
    double* E                   # (2, q, k)
    double* chol                # (k, k) Cholesky factor of H
    double* inverse             # (k, k) inverse of that of H_xx (p x p used)
    double* b                   # (k,) (-beta, 1)
    double* half                # (k, k) M = half half', upper triangle
    double* M                   # (n_h,) packed, off-diagonal elements doubled
    double* vectors             # (n_par, k) L^-1 J_x b, b'J b
    double* turned              # (n_par, p (p + 1) / 2) L^-1 J_xx L^-T, off-diagonal elements times sqrt(2)
    double* grad                # (n_par,)
    double* hess                # (n_par, n_par) Cholesky factor of the Hessian
    double* step                # (n_par,)
    double* scratch             # (4 q q + q k + k,)
    double* nu                  # (1,)
    double* r2                  # (1,)
    double* value               # (1,)
    double* full                # (1,) 1 where H is positive definite, -1 elsewhere
    double* convex              # (1,) the same of the Hessian
    double* decrement           # (1,)


cdef inline void lay_deletions(const Deletions* d, DeletionWork* w, Arena* arena, Py_ssize_t lanes) noexcept nogil:
    """Take the arrays that the lanes work on."""
    cdef Py_ssize_t q = d.q, k = d.k, p = k - 1, n = d.n_par
    w.less = take(arena, lanes * d.line)
    w.more = take(arena, lanes * d.line)
    w.x = take(arena, lanes * n)
    w.mono = take(arena, lanes * d.n_terms)
    w.sums = take(arena, lanes * d.n_tiles * TILE)
    w.S = take(arena, lanes * q * q)
    w.N = take(arena, lanes * 2 * q * q)
    w.E = take(arena, lanes * 2 * q * k)
    w.chol = take(arena, lanes * k * k)
    w.inverse = take(arena, lanes * k * k)
    w.b = take(arena, lanes * k)
    w.half = take(arena, lanes * k * k)
    w.M = take(arena, lanes * d.n_h)
    w.vectors = take(arena, lanes * n * k)
    w.turned = take(arena, lanes * n * (p * (p + 1) // 2))
    w.grad = take(arena, lanes * n)
    w.hess = take(arena, lanes * n * n)
    w.step = take(arena, lanes * n)
    w.scratch = take(arena, lanes * (4 * q * q + q * k + k))
    w.nu = take(arena, lanes)
    w.r2 = take(arena, lanes)
    w.value = take(arena, lanes)
    w.full = take(arena, lanes)
    w.convex = take(arena, lanes)
    w.decrement = take(arena, lanes)


# Refits of as many deletions as there are lanes: R, c and w of each group before the deletion and after it (or NULL),
# and where to start.  Status, and results in the work space, of each lane.
ctypedef void (*refit_t)(
    const Deletions*, const double* const*, const double* const*, const double* const*, const DeletionWork*, int*
    ) noexcept nogil
