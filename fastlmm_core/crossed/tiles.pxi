# Factorisation and inversion of a large core, tile by tile, on several threads.
#
# Tiles do not depend on the number of threads, and each is worked on by one thread with one BLAS thread: results are
# the same to the last bit for any number.  The calling thread asks for signals between the columns of tiles; what an
# interrupt raises stays set (see dense.pxi).
#
# uses   parts.h; interrupted, LARGE, out_of_memory
# gives  TILED, in_tiles: A = R R', or A <- (R R')^-1 from R

cdef extern from "parts.h":
    void run_parts(void (*run)(void*, Py_ssize_t, Py_ssize_t) noexcept nogil, void* job, Py_ssize_t parts,
                   Py_ssize_t jobs) noexcept nogil

cdef enum:
    FACTOR = 1
    INVERT = 2

cdef Py_ssize_t TILED = 384
"""Columns from which a core is worked on in tiles."""


# A core, and the column of tiles that is worked on.
cdef struct Tiles:
    Py_ssize_t n, tile          # columns of the core, of a tile
    Py_ssize_t jobs             # threads at most
    double* A
    double* spare               # (n, tile): INVERT
    Py_ssize_t at               # first column
    int width                   # columns
    int rest                    # columns after them


cdef bint in_tiles(int what, Py_ssize_t n, double* A, Py_ssize_t jobs) noexcept nogil:
    """FACTOR or INVERT a core; False where it is not positive definite or an exception is set."""
    cdef Tiles s
    cdef bint done
    s.n, s.A, s.jobs, s.spare = n, A, jobs, NULL
    s.tile = 128 if n < 2048 else 256
    if what == FACTOR:
        return factor_tiles(&s)
    s.spare = <double*> malloc(n * s.tile * sizeof(double))
    if s.spare == NULL:
        return out_of_memory()
    done = invert_tiles(&s) and square_tiles(&s)
    free(s.spare)
    return done


cdef bint next_column(Tiles* s) noexcept nogil:
    """The column of tiles that begins at `at`; False behind the last one, or where a signal has raised an exception."""
    if s.at >= s.n or (s.n >= LARGE and interrupted()):
        return False
    s.width = <int> min(s.tile, s.n - s.at)
    s.rest = <int> (s.n - s.at - s.width)
    return True


cdef bint factor_tiles(Tiles* s) noexcept nogil:
    """R of A = R R', by columns of tiles: factor of the diagonal, what is below, what is to the right."""
    cdef Py_ssize_t tiles
    cdef int size = <int> s.n, info = 0
    cdef char upper = b'U'
    s.at = 0
    while next_column(s):
        tiles = (s.rest + s.tile - 1) // s.tile
        dpotrf(&upper, &s.width, s.A + s.at * (s.n + 1), &size, &info)
        if info != 0:
            return False
        run_parts(below_tile, s, tiles, s.jobs)
        run_parts(to_the_right, s, tiles, s.jobs)
        s.at += s.width
    return s.at >= s.n


cdef void below_tile(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    """A tile below the factor of the diagonal."""
    cdef Tiles* s = <Tiles*> job
    cdef int size = <int> s.n, count = <int> min(s.tile, s.rest - part * s.tile)
    cdef double one = 1.0
    cdef double* D = s.A + s.at * (s.n + 1)
    cdef char upper = b'U', left = b'L', trans = b'T', unit = b'N'
    dtrsm(&left, &upper, &trans, &unit, &s.width, &count, &one, D, &size, D + (s.width + part * s.tile) * s.n, &size)


cdef void to_the_right(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    """A row of tiles less the products of what stands in this column."""
    cdef Tiles* s = <Tiles*> job
    cdef Py_ssize_t n = s.n, last = (s.rest + s.tile - 1) // s.tile - 1
    cdef int size = <int> n, before = <int> ((last - part) * s.tile)     # the largest first
    cdef int count = <int> min(s.tile, s.rest - before)
    cdef double one = 1.0, minus = -1.0
    cdef double* B = s.A + s.at * (n + 1) + s.width * n
    cdef double* C = B + s.width + before * n
    cdef char upper = b'U', trans = b'T', plain = b'N'
    if before > 0:
        dgemm(&trans, &plain, &before, &count, &s.width, &minus, B, &size, B + before * n, &size, &one, C, &size)
    dsyrk(&upper, &trans, &count, &s.width, &minus, B + before * n, &size, &one, C + before, &size)


cdef bint invert_tiles(Tiles* s) noexcept nogil:
    """R <- R^-1: above each inverted tile of the diagonal stands minus the inverse so far times the column times it."""
    s.at = 0
    while next_column(s):
        run_parts(inverse_times_column, s, s.at // s.tile + 1, s.jobs)
        run_parts(times_diagonal, s, s.at // s.tile, s.jobs)
        s.at += s.width
    return s.at >= s.n


cdef void inverse_times_column(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    """A tile of the product, in `spare`; the last part: the tile of the diagonal."""
    cdef Tiles* s = <Tiles*> job
    cdef Py_ssize_t n = s.n, i = part * s.tile, j
    cdef int size = <int> n, rows = <int> s.tile, below = <int> (s.at - i - s.tile), info = 0
    cdef double one = 1.0
    cdef double* B = s.A + s.at * n
    cdef double* V = s.spare + i
    cdef char upper = b'U', left = b'L', plain = b'N', unit = b'N'
    if i == s.at:
        dtrtri(&upper, &unit, &s.width, B + s.at, &size, &info)
        return
    for j in range(s.width):
        memcpy(V + j * n, B + j * n + i, rows * sizeof(double))
    dtrmm(&left, &upper, &plain, &unit, &rows, &s.width, &one, s.A + i * (n + 1), &size, V, &size)
    if below > 0:
        dgemm(&plain, &plain, &rows, &s.width, &below, &one, s.A + (i + rows) * n + i, &size, B + i + rows, &size, &one,
              V, &size)


cdef void times_diagonal(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    """A tile of the column, from its product in `spare`."""
    cdef Tiles* s = <Tiles*> job
    cdef Py_ssize_t n = s.n, i = part * s.tile, j
    cdef int size = <int> n, rows = <int> s.tile
    cdef double minus = -1.0
    cdef double* B = s.A + s.at * n
    cdef char upper = b'U', right = b'R', plain = b'N', unit = b'N'
    for j in range(s.width):
        memcpy(B + j * n + i, s.spare + j * n + i, rows * sizeof(double))
    dtrmm(&right, &upper, &plain, &unit, &rows, &s.width, &minus, B + s.at, &size, B + i, &size)


cdef bint square_tiles(Tiles* s) noexcept nogil:
    """R^-1 <- R^-T R^-1, by columns of tiles, each of which needs what is to the right as it was."""
    cdef Py_ssize_t j
    cdef double* D
    s.at = 0
    while next_column(s):
        run_parts(square_tile, s, s.at // s.tile + 1, s.jobs)
        D = s.A + s.at * (s.n + 1)
        for j in range(s.width):
            memcpy(D + j * s.n, s.spare + j * s.width, (j + 1) * sizeof(double))
        s.at += s.width
    return s.at >= s.n


cdef void square_tile(void* job, Py_ssize_t part, Py_ssize_t worker) noexcept nogil:
    """A tile of the column; the first part: that of the diagonal, in `spare`, as the others need what it was."""
    cdef Tiles* s = <Tiles*> job
    cdef Py_ssize_t n = s.n, i = (part - 1) * s.tile, j
    cdef int size = <int> n, rows = <int> s.tile, ld = s.width, info = 0
    cdef double one = 1.0
    cdef double* B = s.A + s.at * n
    cdef double* D = B + s.at
    cdef char upper = b'U', right = b'R', trans = b'T', plain = b'N', unit = b'N'
    if part == 0:
        for j in range(s.width):
            memcpy(s.spare + j * s.width, D + j * n, (j + 1) * sizeof(double))
        dlauum(&upper, &s.width, s.spare, &ld, &info)
        if s.rest > 0:
            dsyrk(&upper, &plain, &s.width, &s.rest, &one, D + s.width * n, &size, &one, s.spare, &ld)
        return
    dtrmm(&right, &upper, &trans, &unit, &rows, &s.width, &one, D, &size, B + i, &size)
    if s.rest > 0:
        dgemm(&plain, &trans, &rows, &s.width, &s.rest, &one, B + s.width * n + i, &size, D + s.width * n, &size, &one,
              B + i, &size)
