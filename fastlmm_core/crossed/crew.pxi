# Factorisation and inversion of a large core by a crew of threads, tile by tile.
#
# Tiles do not depend on the number of threads, and each is worked on by one thread with one BLAS thread: results are the
# same to the last bit for any number.  The first member is the thread that evaluates the criterion; it asks for signals,
# and what an interrupt raises stays set (see dense.pxi).
#
# uses   crew.h; interrupted, LARGE, out_of_memory
# gives  TILED, in_tiles: A = R R', or A <- (R R')^-1 from R

cdef extern from "crew.h":
    ctypedef struct Crew:
        int size
    void crew_begin(Crew* crew, int size) noexcept nogil
    int crew_task(Crew* crew) noexcept nogil
    void crew_fail(Crew* crew) noexcept nogil
    int crew_wait(Crew* crew) noexcept nogil


cdef enum:
    FACTOR = 1
    INVERT = 2

cdef Py_ssize_t TILED = 384
"""Columns from which a core is worked on in tiles."""


cdef struct Job:
    int what
    Py_ssize_t n, tile          # columns of the core, of a tile
    double* A
    double* spare               # (n, tile) and (tile, tile): INVERT
    Crew crew


cdef bint work_on(Job* job, bint first) noexcept nogil:
    """A member's part of a job, in step with the others; `first` for one of them.  False where it was broken off."""
    if job.what == FACTOR:
        return factor_tiles(job, first)
    return invert_tiles(job, first) and square_tiles(job, first)


cdef bint factor_tiles(Job* job, bint first) noexcept nogil:
    """R of A = R R', by columns of tiles: factor of the diagonal, what is below, what is to the right."""
    cdef Crew* crew = &job.crew
    cdef Py_ssize_t n = job.n, at = 0, before, t
    cdef int size = <int> n, width, rest, count, tiles, info = 0
    cdef double one = 1.0, minus = -1.0
    cdef double* D
    cdef double* B
    cdef double* C
    cdef char upper = b'U', left = b'L', trans = b'T', plain = b'N', unit = b'N'
    while at < n:
        width = <int> min(job.tile, n - at)
        rest = <int> (n - at - width)
        tiles = <int> ((rest + job.tile - 1) // job.tile)
        D = job.A + at * (n + 1)
        B = D + width * n
        if first:
            dpotrf(&upper, &width, D, &size, &info)
            if info != 0 or (n >= LARGE and interrupted()):
                crew_fail(crew)
        if crew_wait(crew):
            return False
        t = crew_task(crew)
        while t < tiles:
            count = <int> min(job.tile, rest - t * job.tile)
            dtrsm(&left, &upper, &trans, &unit, &width, &count, &one, D, &size, B + t * job.tile * n, &size)
            t = crew_task(crew)
        if crew_wait(crew):
            return False
        t = crew_task(crew)
        while t < tiles:
            before = (tiles - 1 - t) * job.tile     # the largest first
            count = <int> min(job.tile, rest - before)
            C = B + width + before * n
            if before > 0:
                info = <int> before
                dgemm(&trans, &plain, &info, &count, &width, &minus, B, &size, B + before * n, &size, &one, C, &size)
                info = 0
            dsyrk(&upper, &trans, &count, &width, &minus, B + before * n, &size, &one, C + before, &size)
            t = crew_task(crew)
        if crew_wait(crew):
            return False
        at += width
    return True


cdef bint invert_tiles(Job* job, bint first) noexcept nogil:
    """R <- R^-1: above each inverted tile of the diagonal stands minus the inverse so far times the column times it."""
    cdef Crew* crew = &job.crew
    cdef Py_ssize_t n = job.n, at = 0, i, j, t, tiles
    cdef int size = <int> n, width, rows, below, info = 0
    cdef double one = 1.0, minus = -1.0
    cdef double* B
    cdef double* D
    cdef double* V
    cdef double* A = job.A
    cdef char upper = b'U', left = b'L', right = b'R', plain = b'N', unit = b'N'
    while at < n:
        width = <int> min(job.tile, n - at)
        tiles = at // job.tile
        B = A + at * n
        D = B + at
        t = crew_task(crew)
        while t <= tiles:
            if t == tiles:
                dtrtri(&upper, &unit, &width, D, &size, &info)
            else:
                i = t * job.tile
                rows = <int> job.tile
                below = <int> (at - i - rows)
                V = job.spare + i
                for j in range(width):
                    memcpy(V + j * n, B + j * n + i, rows * sizeof(double))
                dtrmm(&left, &upper, &plain, &unit, &rows, &width, &one, A + i * (n + 1), &size, V, &size)
                if below > 0:
                    dgemm(&plain, &plain, &rows, &width, &below, &one, A + (i + rows) * n + i, &size, B + i + rows, &size,
                          &one, V, &size)
            t = crew_task(crew)
        if first and n >= LARGE and interrupted():
            crew_fail(crew)
        if crew_wait(crew):
            return False
        t = crew_task(crew)
        while t < tiles:
            i = t * job.tile
            rows = <int> job.tile
            for j in range(width):
                memcpy(B + j * n + i, job.spare + j * n + i, rows * sizeof(double))
            dtrmm(&right, &upper, &plain, &unit, &rows, &width, &minus, D, &size, B + i, &size)
            t = crew_task(crew)
        if crew_wait(crew):
            return False
        at += width
    return True


cdef bint square_tiles(Job* job, bint first) noexcept nogil:
    """R^-1 <- R^-T R^-1, by columns of tiles, each of which needs what is to the right as it was."""
    cdef Crew* crew = &job.crew
    cdef Py_ssize_t n = job.n, at = 0, i, j, t, tiles
    cdef int size = <int> n, width, rows, rest, ld, info = 0
    cdef double one = 1.0
    cdef double* A = job.A
    cdef double* B
    cdef double* D
    cdef double* own = job.spare
    cdef char upper = b'U', right = b'R', trans = b'T', plain = b'N', unit = b'N'
    while at < n:
        width = <int> min(job.tile, n - at)
        rest = <int> (n - at - width)
        tiles = at // job.tile
        B = A + at * n
        D = B + at
        ld = width
        t = crew_task(crew)
        while t <= tiles:
            if t == 0:
                for j in range(width):
                    memcpy(own + j * width, D + j * n, (j + 1) * sizeof(double))
                dlauum(&upper, &width, own, &ld, &info)
                if rest > 0:
                    dsyrk(&upper, &plain, &width, &rest, &one, D + width * n, &size, &one, own, &ld)
            else:
                i = (t - 1) * job.tile
                rows = <int> job.tile
                dtrmm(&right, &upper, &trans, &unit, &rows, &width, &one, D, &size, B + i, &size)
                if rest > 0:
                    dgemm(&plain, &trans, &rows, &width, &rest, &one, B + width * n + i, &size, D + width * n, &size, &one,
                          B + i, &size)
            t = crew_task(crew)
        if first and n >= LARGE and interrupted():
            crew_fail(crew)
        if crew_wait(crew):
            return False
        if first:
            for j in range(width):
                memcpy(D + j * n, own + j * width, (j + 1) * sizeof(double))
        if crew_wait(crew):
            return False
        at += width
    return True


cdef class Work:
    """A job as a crew of Python's threads takes part in it; valid while `in_tiles` runs."""

    cdef Job* job
    cdef bint done

    def begin(self, int members):
        """Told how many there are, before any of them starts."""
        crew_begin(&self.job.crew, members)

    def fail(self):
        """All members end where they wait."""
        crew_fail(&self.job.crew)

    def __call__(self, bint first):
        """One member's part; the first one raises what a signal has raised."""
        cdef bint done
        with nogil:
            done = work_on(self.job, first)
        if first:
            self.done = done
            if PyErr_Occurred() != NULL:
                reraise()


cdef bint in_tiles(Elimination* e, int what, Py_ssize_t n, double* A) noexcept nogil:
    """FACTOR or INVERT a core; False where it is not positive definite or an exception is set."""
    cdef Job job
    cdef bint done
    job.what, job.n, job.A, job.spare = what, n, A, NULL
    job.tile = 128 if n < 2048 else 256
    if what == INVERT:
        job.spare = <double*> malloc((n + job.tile) * job.tile * sizeof(double))
        if job.spare == NULL:
            return out_of_memory()
    if e.crew == NULL:
        crew_begin(&job.crew, 1)
        done = work_on(&job, True)
    else:
        with gil:
            done = by_crew(<object> e.crew, &job)
    free(job.spare)
    return done


cdef bint by_crew(crew, Job* job) noexcept:
    """The job done by the threads that `crew` starts."""
    cdef Work work = Work()
    work.job = job
    try:
        crew(work)
    except BaseException as error:
        PyErr_SetObject(type(error), error)
        return False
    return work.done
