# A chunk of problems: conditioned one by one, searched side by side in the order of their numbers of groups,
# and handed out.
#
# uses   take_rows, take_of_design, most_groups (stacked_rows.pxi), condition_values (design_rows.pxi),
#        condition_problem (conditioning.pxi); Stacked, Into, Desk (each.pyx)
# gives  chunk_end, search_chunk, fit_chunk


cdef void sort_by_groups(Desk* desk, Py_ssize_t count) noexcept nogil:
    """Those with as many groups side by side; insertion keeps the order of equals."""
    cdef Py_ssize_t i, j, one
    for i in range(1, count):
        one = desk.sequence[i]
        j = i
        while j > 0 and desk.c[desk.sequence[j - 1]].sums.m > desk.c[one].sums.m:
            desk.sequence[j] = desk.sequence[j - 1]
            j -= 1
        desk.sequence[j] = one


cdef void hand_out(const Batch* d, const Into* into, Desk* desk, Py_ssize_t row, Py_ssize_t place, Py_ssize_t problem
                   ) noexcept nogil:
    """A row of the results of a chunk to that of its problem."""
    cdef Outcome* out = &desk.out
    cdef Py_ssize_t i, p = d.p_full, n = d.n_par, m = into.m
    if into.given:
        for i in range(m * m):
            into.covariance[problem * m * m + i] = out.covariance[row * m * m + i]
        for i in range(n * m * m):
            into.slope[problem * n * m * m + i] = out.slope[row * n * m * m + i]
        for i in range(n):
            into.shift[problem * n + i] = out.shift[row * n + i]
        for i in range(n * n):
            into.hess[problem * n * n + i] = out.hess[row * n * n + i]
        return
    for i in range(n):
        into.theta[problem * n + i] = out.theta[row * n + i]
    into.evaluations[problem] = out.evaluations[row]
    for i in range(p):
        if desk.c[place].left_out[i]:
            into.params[problem * p + i] = into.bse[problem * p + i] = into.df[problem * p + i] = NAN
        else:
            into.params[problem * p + i] = out.params[row * p + i]
            into.bse[problem * p + i] = out.bse[row * p + i]
            into.df[problem * p + i] = out.df[row * p + i]
    for i in range(d.q * d.q):
        into.z_map[problem * d.q * d.q + i] = desk.c[place].z_map[i]
    into.sigma2[problem] = out.sigma2[row]
    into.value[problem] = out.value[row]
    into.decrement[problem] = out.decrement[row]
    into.status[problem] = out.status[row]
    into.lanes[problem] = out.status[row] > 0


cdef void give_moments(const Batch* d, const Screen* screen, const Into* into, Desk* desk, Py_ssize_t first,
                       Py_ssize_t at, Py_ssize_t filled, double* work) noexcept nogil:
    """What tests of fixed effects need of a block."""
    cdef Py_ssize_t place[8]
    cdef Py_ssize_t lane, p = d.p
    for lane in range(filled):
        place[lane] = first - into.zero + desk.sequence[at + lane]
        memcpy(into.x_map + place[lane] * p * p, desk.c[desk.sequence[at + lane]].x_map, p * p * sizeof(double))
    kernels.problems_moments(
        d, desk.sums + at, screen, desk.out.theta + at * d.n_par, place, filled, into.moments, work)


cdef int search_chunk(const Batch* d, const Screen* screen, const Into* into, Desk* desk, Py_ssize_t first,
                      Py_ssize_t count) noexcept nogil:
    """Search the conditioned problems of a chunk; -1 where memory is short."""
    cdef Py_ssize_t at = 0, i, j, place, size
    cdef double* work
    sort_by_groups(desk, count)
    size = kernels.problems_size(d, screen, desk.c[desk.sequence[count - 1]].sums.m, count)
    if size > desk.work_size:
        free(desk.work)
        desk.work = <double*> malloc((size + 8) * sizeof(double))
        desk.work_size = size if desk.work != NULL else 0
        if desk.work == NULL:
            return -1
    work = <double*> ((<uintptr_t> desk.work + 63) & ~(<uintptr_t> 63))
    for i in range(count + kernels.lanes):
        # lanes beyond the last problem repeat it
        place = desk.sequence[min(i, count - 1)]
        desk.sums[i] = desk.c[place].sums
        for j in range(d.n_par if into.given else 0):
            desk.out.theta[i * d.n_par + j] = into.theta[(first + place) * d.n_par + j]
    while at < count and into.moments != NULL:
        give_moments(d, screen, into, desk, first, at, min(count - at, kernels.lanes), work)
        at += kernels.lanes
    if into.moments == NULL:
        kernels.problems_fit(d, desk.sums, screen, count, &desk.out, work)
        for i in range(count):
            hand_out(d, into, desk, i, desk.sequence[i], first + desk.sequence[i])
    return 0


cdef Py_ssize_t chunk_end(const Stacked* rows, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Where a chunk of problems ends that begins at `first`."""
    cdef Py_ssize_t end = first + 1, n = rows.n
    while end < last and end - first < CHUNK:
        if (n * (end + 1 - first) if rows.start == NULL else rows.start[end + 1] - rows.start[first]) > CHUNK_ROWS:
            break
        end += 1
    return end


cdef int fit_chunk(const Batch* d, const Stacked* rows, const Blocks* blocks, const Screen* screen, const Into* into,
                   Desk* desk, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """Condition and search `count` problems from `first` on; -1 where memory is short."""
    cdef Py_ssize_t i, problem, found = 0
    cdef Arena arena = Arena(NULL, 0)
    cdef Conditioned* c
    cdef bint settled
    free(desk.memory)
    desk.memory = NULL
    if take_rows(rows, d.p_full, d.q, desk, first, count) != 0:
        return -1
    for i in range(count):
        lay_conditioned(d.p_full, d.q, most_groups(rows, desk, i), &desk.c[i], &arena)
    desk.memory = furnish(&arena)
    if desk.memory == NULL:
        return -1
    for i in range(count):
        problem = first + i
        c = &desk.c[i]
        lay_conditioned(d.p_full, d.q, most_groups(rows, desk, i), c, &arena)
        if into.given and not into.lanes[problem] or desk.further and into.lanes[problem]:
            continue
        if rows.start == NULL and not desk.design.known:
            take_of_design(rows, problem, d.p_full, d.q, desk, desk.codes, desk.values, &desk.rows[i])
        if desk.design.known:
            settled = condition_values(rows, problem, &desk.design, blocks, d.reml, &desk.rows[i], c)
        else:
            settled = condition_problem(&desk.rows[i], blocks, d.reml, c)
        if not into.given:
            into.groups[problem] = <int> desk.rows[i].m
            into.nobs[problem] = <int> desk.rows[i].n
            into.status[problem] = into.evaluations[problem] = into.lanes[problem] = into.rank[problem] = 0
        if settled:
            desk.sequence[found] = i
            found += 1
            if not into.given:
                into.rank[problem] = <int> c.sums.rank
    return search_chunk(d, screen, into, desk, first, found) if found else 0
