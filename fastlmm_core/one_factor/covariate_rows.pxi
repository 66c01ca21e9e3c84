# Responses on one design with covariates of their own: what all share is that of a batch of responses
# without covariates.
#
# Those with all of their rows are summed and searched several at a time (lanes/responses_with_covariates.pxi).  What
# takes a second look at its rows, or a search of few groups, is left with status 0 to be conditioned by itself.

# What the responses of a call share.
cdef struct Common:
    Batch base
    SharedLines lines
    double* z_map               # (q, q)
    int* kept                   # (p,) zeros: no column of X is left out


cdef bint is_constant(const double* y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 1
    while i < n and y[i] == y[0]:
        i += 1
    return i == n


cdef void note_response(const Into* into, Py_ssize_t problem, const Batch* d, bint settled) noexcept nogil:
    """What is known of a response before its search."""
    into.groups[problem], into.nobs[problem] = <int> d.lines.base.m, <int> d.lines.base.n
    into.status[problem] = into.evaluations[problem] = into.lanes[problem] = 0
    into.rank[problem] = <int> d.p if settled else 0


cdef int fit_together(const Batch* d, const Stacked* rows, const Screen* screen, const Into* into, const Common* common,
                      Desk* desk, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """Sum and search `count` responses from `first` on; -1 where memory is short."""
    cdef Py_ssize_t n = kernels.lines_moments(d) * kernels.lanes, p = d.p, e = d.lines.n_lines
    cdef Py_ssize_t at, lane, l, found = 0, turn
    cdef Arena arena = Arena(NULL, 0)
    cdef LinesToRead given
    cdef ProblemSums sums[8]
    cdef int fit[8]
    cdef double* moments
    cdef double* maps
    cdef double* betas
    cdef double* work
    for turn in range(2):
        # one size for all chunks, which follow each other in the same memory
        moments = take(&arena, (CHUNK + kernels.lanes - 1) // kernels.lanes * n)
        maps = take(&arena, CHUNK * p * p)
        betas = take(&arena, CHUNK * p)
        work = take(&arena, kernels.lines_size(d))
        if turn == 0 and desk.memory != NULL:
            refurnish(&arena, desk.memory)
        elif turn == 0:
            desk.memory = furnish(&arena)
            if desk.memory == NULL:
                return -1
    at = 0
    while at < count:
        given.count = min(kernels.lanes, count - at)
        given.moments, given.map, given.beta = moments + at // kernels.lanes * n, maps + at * p * p, betas + at * p
        for l in range(e):
            given.source[l] = rows.y if l == e - 1 else rows.extra[l]
            given.step[l] = rows.y_step if l == e - 1 else rows.extra_step[l]
            given.source[l] += (first + at) * given.step[l]
        kernels.lines_read(d, &given, sums, fit, work)
        for lane in range(given.count):
            # a constant response is refused even where X cannot reproduce it
            if not common.base.centre or common.base.offset != NULL:
                fit[lane] = fit[lane] and not is_constant(given.source[e - 1] + lane * given.step[e - 1], rows.n)
            note_response(into, first + at + lane, d, fit[lane])
            if fit[lane]:
                desk.c[at + lane].sums = sums[lane]
                desk.c[at + lane].left_out, desk.c[at + lane].z_map = common.kept, common.z_map
                desk.sequence[found] = at + lane
                found += 1
        at += kernels.lanes
    return search_chunk(d, screen, into, desk, first, found) if found else 0


cdef bint any_left(const Into* into, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Whether some problems have not been fitted by the lanes."""
    cdef Py_ssize_t i
    for i in range(first, last):
        if not into.lanes[i]:
            return True
    return False
