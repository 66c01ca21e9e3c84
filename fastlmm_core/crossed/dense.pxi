# The dense cores of the tail's components (see elimination.pxi): factorisation, triangular solutions, inverses.
#
# Matrices are row by row; of symmetric ones only the lower triangle counts, which is LAPACK's upper one.
#
# A core of 9,000 columns takes LAPACK half a minute, during which no signal is served: large ones are worked on in
# parts of less than a second, and signals are asked for between them.  What an interrupt raises stays set while
# the functions return that they have not finished; whoever takes the GIL back raises it (Objective.require_).
#
# uses   Elimination, Tail; in_tiles (tiles.pxi); gemm, times_right (curvature.pxi)
# gives  factor_tail: S = R R' of the cores; half_solve, inverse_of, symmetric_product, times_symmetric, mirror;
#        scale_tail, sandwich_tail; interrupted

cdef Py_ssize_t LARGE = 2048
"""Columns from which signals are asked for during the work on a core."""

cdef double PANEL_WORK = 4e9
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


cdef void half_solve(const Elimination* e, Py_ssize_t comp, Py_ssize_t c, double* B, bint back) noexcept nogil:
    """B (n, c) <- R^-1 B, or R^-T B, of a core."""
    cdef Py_ssize_t i, j, r, n = e.core_size[comp]
    cdef int rows = <int> c, columns = <int> n
    cdef double t, one = 1.0
    cdef double* R = e.S + e.comp_start[comp]
    cdef char right = b'R', upper = b'U', trans = b'T' if back else b'N', unit = b'N'
    if e.inverted:
        half_solve_beside(n, c, R, e.pivot + e.core_slot[comp], B, back)
        return
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


cdef void half_solve_beside(Py_ssize_t n, Py_ssize_t c, double* A, const double* pivot, double* B, bint back
                            ) noexcept nogil:
    """`half_solve` by what `set_aside` has left above the diagonal."""
    cdef Py_ssize_t i, j, r
    cdef int rows = <int> c, columns = <int> n
    cdef double t, one = 1.0
    cdef char right = b'R', lower = b'L', trans = b'N' if back else b'T', unit = b'U'
    for i in range(n if back else 0):
        for j in range(c):
            B[i * c + j] *= pivot[i]
    if n > SMALL:
        dtrsm(&right, &lower, &trans, &unit, &rows, &columns, &one, A, &columns, B, &rows)
    elif back:
        for i in range(n - 1, -1, -1):
            for r in range(i):
                t = A[r * n + i]
                for j in range(c):
                    B[r * c + j] -= t * B[i * c + j]
    else:
        for i in range(n):
            for r in range(i):
                t = A[r * n + i]
                for j in range(c):
                    B[i * c + j] -= t * B[r * c + j]
    for i in range(0 if back else n):
        for j in range(c):
            B[i * c + j] *= pivot[i]


cdef void set_aside(Py_ssize_t n, double* A, double* pivot) noexcept nogil:
    """R_ij / R_jj above the diagonal, by tiles, and 1 / R_jj: solutions need no more of R."""
    cdef Py_ssize_t i, j, ib, jb
    for i in range(n):
        pivot[i] = 1.0 / A[i * n + i]
    for ib in range(0, n, 32):
        for jb in range(0, ib + 1, 32):
            for i in range(ib, min(ib + 32, n)):
                for j in range(jb, min(jb + 32, i)):
                    A[j * n + i] = A[i * n + j] * pivot[j]


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
    """`times_symmetric` of any number of columns; False where a signal has raised an exception."""
    cdef Py_ssize_t j = 0, step = c if n < LARGE else <Py_ssize_t> max(64.0, PANEL_WORK / (<double> n * n))
    while j < c:
        if c > step and interrupted():
            return False
        times_symmetric(n, min(step, c - j), c, A, B + j, out + j)
        j += step
    return True


cdef void times_symmetric(Py_ssize_t n, Py_ssize_t c, Py_ssize_t ld, double* A, double* B, double* out) noexcept nogil:
    """out (n, c) = A B with the lower triangle of a symmetric A; `ld`: from row to row of B and out."""
    cdef Py_ssize_t i, j, r
    cdef int rows = <int> c, columns = <int> n, stride = <int> ld
    cdef double t, one = 1.0, zero = 0.0
    cdef char right = b'R', upper = b'U'
    if n > SMALL:
        dsymm(&right, &upper, &rows, &columns, &one, A, &columns, B, &stride, &zero, out, &stride)
        return
    for i in range(n):
        for j in range(c):
            out[i * ld + j] = 0.0
        for r in range(i + 1):
            t = A[i * n + r]
            for j in range(c):
                out[i * ld + j] += t * B[r * ld + j]
            if r < i:
                for j in range(c):
                    out[r * ld + j] += t * B[i * ld + j]


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
    cdef Py_ssize_t c, n, t, a, i
    cdef double* S
    cdef Tail* g
    cdef double* scale = e.scratch
    cdef bint scalar = True
    if not find_place(e):
        return False
    for t in range(e.n_tails):
        scalar = scalar and e.tail[t].q == 1
    if not scalar:
        if e.S != e.K:
            memcpy(e.S, e.K, e.n_dense * sizeof(double))
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


cdef bint find_place(Elimination* e) noexcept nogil:
    """Where S and the covariances go; False where there is no memory for them."""
    cdef Py_ssize_t t
    cdef bint exact = False
    for t in range(e.n_tails):
        exact = exact or e.tail[t].exact
    e.inverted = False
    e.S = e.K
    if exact and e.second == NULL:
        e.second = <double*> calloc(e.n_dense, sizeof(double))
        if e.second == NULL:
            return out_of_memory()
    if exact:
        e.S = e.second
    e.cov = e.S
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


cdef void sandwich_tail(Elimination* e, double* A, bint transposed) noexcept nogil:
    """A <- L'A L, or L A L', of the lower triangles of symmetric cores, in place."""
    cdef Py_ssize_t c, n, l, i, j, q, at
    cdef Tail* g
    cdef double* core
    cdef double* M = e.scratch
    cdef double* other
    cdef double* work
    for c in range(e.n_comps):
        n = e.core_size[c]
        core = A + e.comp_start[c]
        for l in range(e.comp_block[c], e.comp_block[c + 1]):
            g = &e.tail[e.block_tail[l]]
            q, at = g.q, e.block_slot[l]
            other, work = M + q * q, M + 2 * q * q
            for i in range(q):
                for j in range(q):
                    M[i * q + j] = g.factor[j * q + i] if transposed else g.factor[i * q + j]
                    other[j * q + i] = M[i * q + j]
            times_left(q, at, M, core + at * n, n, work)
            sandwich_level(q, M, core + at * (n + 1), n, work)
            times_right(n - at - q, q, core + (at + q) * n + at, n, other, work)


cdef void times_left(Py_ssize_t q, Py_ssize_t columns, double* M, double* A, Py_ssize_t ld,
                     double* work) noexcept nogil:
    """A (q, columns) <- M A, in place; work: (q, columns)."""
    cdef Py_ssize_t i, j, r
    if columns > SMALL:
        gemm(1.0, Matrix(M, q, q, q), Matrix(A, q, columns, ld), False, 0.0, Matrix(work, q, columns, columns))
    else:
        for i in range(q):
            for j in range(columns):
                work[i * columns + j] = 0.0
            for r in range(q):
                for j in range(columns):
                    work[i * columns + j] += M[i * q + r] * A[r * ld + j]
    for i in range(q):
        memcpy(A + i * ld, work + i * columns, columns * sizeof(double))


cdef void sandwich_level(Py_ssize_t q, const double* M, double* A, Py_ssize_t ld, double* work) noexcept nogil:
    """A <- M A M' of the lower triangle of a block on the diagonal; work: (2, q, q)."""
    cdef Py_ssize_t i, j, r
    cdef double* half = work + q * q
    cdef double t
    for i in range(q):
        for j in range(q):
            work[i * q + j] = A[i * ld + j] if i >= j else A[j * ld + i]
    multiply(q, q, q, M, work, half)
    for i in range(q):
        for j in range(i + 1):
            t = 0.0
            for r in range(q):
                t += half[i * q + r] * M[j * q + r]
            A[i * ld + j] = t
