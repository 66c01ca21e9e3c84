# The dense cores of the tail's components (see elimination.pxi): factorisation, triangular solutions, inverses.
#
# Matrices are row by row; of symmetric ones only the lower triangle counts, which is LAPACK's upper one.
#
# A core of 9,000 columns takes LAPACK half a minute, during which no signal is served: large ones are worked on in
# parts of less than a second, and signals are asked for between them.  What an interrupt raises stays set while
# the functions return that they have not finished; whoever takes the GIL back raises it (Objective.require_).
#
# uses   Elimination, Tail; in_tiles (tiles.pxi); gemm, times_right (curvature.pxi)
# gives  factor_tail: S = R R' of the cores; half_solve, inverse_of, symmetric_product, mirror; scale_tail, sandwich_tail;
#        interrupted

cdef Py_ssize_t LARGE = 3000
"""Columns from which signals are asked for during the work on a core."""

cdef double PANEL_WORK = 1.2e10
"""Multiplications between two questions for signals."""


cdef extern from "Python.h":
    int ask_for_signals "PyErr_CheckSignals"() noexcept


cdef bint interrupted() noexcept nogil:
    """Whether a signal has raised an exception, which stays set."""
    with gil:
        return ask_for_signals() != 0


cdef bint cholesky(Elimination* e, Py_ssize_t n, double* A) noexcept nogil:
    """Lower triangle R with A = R R', in place; False where A is not positive definite, or an exception is set."""
    cdef Py_ssize_t i, j, r
    cdef int size = <int> n, info = 0
    cdef double t
    cdef char upper = b'U'
    if n >= TILED:
        return in_tiles(FACTOR, n, A, e.jobs)
    if n > SMALL:
        dpotrf(&upper, &size, A, &size, &info)
        return info == 0
    for i in range(n):
        for j in range(i + 1):
            t = A[i * n + j]
            for r in range(j):
                t -= A[i * n + r] * A[j * n + r]
            if j < i:
                A[i * n + j] = t / A[j * n + j]
            else:
                if not t > 0.0:
                    return False
                A[i * n + i] = sqrt(t)
    return True


cdef void half_solve(Py_ssize_t n, Py_ssize_t c, double* R, double* B, bint back) noexcept nogil:
    """B (n, c) <- R^-1 B, or R^-T B."""
    cdef Py_ssize_t i, j, r
    cdef int rows = <int> c, columns = <int> n
    cdef double t, one = 1.0
    cdef char right = b'R', upper = b'U', trans = b'T' if back else b'N', unit = b'N'
    if n > SMALL:
        dtrsm(&right, &upper, &trans, &unit, &rows, &columns, &one, R, &columns, B, &rows)
        return
    if not back:
        for i in range(n):
            for r in range(i):
                t = R[i * n + r]
                for j in range(c):
                    B[i * c + j] -= t * B[r * c + j]
            t = 1.0 / R[i * n + i]
            for j in range(c):
                B[i * c + j] *= t
    else:
        for i in range(n - 1, -1, -1):
            t = 1.0 / R[i * n + i]
            for j in range(c):
                B[i * c + j] *= t
            for r in range(i):
                t = R[i * n + r]
                for j in range(c):
                    B[r * c + j] -= t * B[i * c + j]


cdef bint inverse_of(Elimination* e, Py_ssize_t n, double* A) noexcept nogil:
    """A <- (R R')^-1 from R, lower triangle; False where an exception is set."""
    cdef Py_ssize_t i, j, r
    cdef int size = <int> n, info = 0
    cdef double t
    cdef char upper = b'U'
    if n >= TILED:
        return in_tiles(INVERT, n, A, e.jobs)
    if n > SMALL:
        dpotri(&upper, &size, A, &size, &info)
        return True
    for j in range(n):
        A[j * n + j] = 1.0 / A[j * n + j]
        for i in range(j + 1, n):
            t = 0.0
            for r in range(j, i):
                t += A[i * n + r] * A[r * n + j]
            A[i * n + j] = -t / A[i * n + i]
    for i in range(n):
        for j in range(i + 1):
            t = 0.0
            for r in range(i, n):
                t += A[r * n + i] * A[r * n + j]
            A[i * n + j] = t
    return True


cdef bint symmetric_product(Py_ssize_t n, Py_ssize_t c, double* A, double* B, double* out) noexcept nogil:
    """out (n, c) = A B with the lower triangle of a symmetric A; False where a signal has raised an exception."""
    cdef Py_ssize_t i, j, r, step = c if n < LARGE else <Py_ssize_t> max(64.0, PANEL_WORK / (<double> n * n))
    cdef int rows, columns = <int> n, ld = <int> c
    cdef double t, one = 1.0, zero = 0.0
    cdef char right = b'R', upper = b'U'
    if n > SMALL:
        j = 0
        while j < c:
            if c > step and interrupted():
                return False
            rows = <int> min(step, c - j)
            dsymm(&right, &upper, &rows, &columns, &one, A, &columns, B + j, &ld, &zero, out + j, &ld)
            j += step
        return True
    for i in range(n * c):
        out[i] = 0.0
    for i in range(n):
        for r in range(i + 1):
            t = A[i * n + r]
            for j in range(c):
                out[i * c + j] += t * B[r * c + j]
            if r < i:
                for j in range(c):
                    out[r * c + j] += t * B[i * c + j]
    return True


cdef void mirror(Py_ssize_t n, double* A) noexcept nogil:
    """Upper triangle from the lower one, by tiles."""
    cdef Py_ssize_t i, j, ib, jb
    for ib in range(0, n, 32):
        for jb in range(0, ib + 1, 32):
            for i in range(ib, min(ib + 32, n)):
                for j in range(jb, min(jb + 32, i)):
                    A[j * n + i] = A[i * n + j]


cdef bint factor_tail(Elimination* e, double* logdet) noexcept nogil:
    """S = I + L'K L = R R' for each core; adds log|S|."""
    cdef Py_ssize_t c, n, t, u, a, b, i, j, r, l
    cdef double* K
    cdef double* S
    cdef Tail* g
    cdef double x
    cdef double* scale = e.scratch
    cdef bint scalar = True
    for t in range(e.n_tails):
        scalar = scalar and e.tail[t].q == 1
    if not scalar:
        memcpy(e.S, e.K, e.n_dense * sizeof(double))
        for c in range(e.n_comps):
            mirror(e.core_size[c], e.S + e.comp_start[c])
        sandwich_tail(e, e.S, True)
    else:
        for t in range(e.n_tails):
            g = &e.tail[t]
            for a in range(g.m):
                scale[e.comp_slot[g.comp[a]] + g.slot[a]] = g.factor[0]
        scale_tail(e, e.K, e.S, scale)
    for c in range(e.n_comps):
        n = e.core_size[c]
        S = e.S + e.comp_start[c]
        for i in range(n):
            S[i * n + i] += 1.0
        if not cholesky(e, n, S):
            return False
        for i in range(n):
            logdet[0] += 2.0 * log(S[i * n + i])
    return True


cdef void scale_tail(Elimination* e, const double* A, double* out, const double* scale) noexcept nogil:
    """Lower triangles of A times scale by rows and by columns; `out` may be A."""
    cdef Py_ssize_t c, n, i, j
    cdef const double* x
    cdef const double* given
    cdef double* row
    cdef double t
    for c in range(e.n_comps):
        n = e.core_size[c]
        x = scale + e.core_slot[c]
        for i in range(n):
            given = A + e.comp_start[c] + i * n
            row = out + e.comp_start[c] + i * n
            t = x[i]
            for j in range(i + 1):
                row[j] = given[j] * (t * x[j])


cdef void copy_lower(Elimination* e, const double* A, double* out) noexcept nogil:
    """Lower triangles of the cores."""
    cdef Py_ssize_t c, n, i, at
    for c in range(e.n_comps):
        n = e.core_size[c]
        for i in range(n):
            at = e.comp_start[c] + i * n
            memcpy(out + at, A + at, (i + 1) * sizeof(double))


cdef void sandwich_tail(Elimination* e, double* A, bint transposed) noexcept nogil:
    """A <- L'A L, or L A L', of full symmetric cores, in place."""
    cdef Py_ssize_t c, n, l, i, j, q
    cdef Tail* g
    cdef double* block
    cdef double* M = e.scratch
    cdef double* other
    cdef double* work
    for c in range(e.n_comps):
        n = e.core_size[c]
        for l in range(e.comp_block[c], e.comp_block[c + 1]):
            g = &e.tail[e.block_tail[l]]
            q = g.q
            other, work = M + q * q, M + 2 * q * q
            for i in range(q):
                for j in range(q):
                    M[i * q + j] = g.factor[j * q + i] if transposed else g.factor[i * q + j]
                    other[j * q + i] = M[i * q + j]
            block = A + e.comp_start[c] + e.block_slot[l] * n
            multiply_rows(q, n, M, block, work)
            memcpy(block, work, q * n * sizeof(double))
            times_right(n, q, A + e.comp_start[c] + e.block_slot[l], n, other, work)


cdef void multiply_rows(Py_ssize_t q, Py_ssize_t n, double* M, double* B, double* out) noexcept nogil:
    """out (q, n) = M (q, q) B."""
    if n > SMALL:
        gemm(1.0, Matrix(M, q, q, q), Matrix(B, q, n, n), False, 0.0, Matrix(out, q, n, n))
    else:
        multiply(q, q, n, M, B, out)
