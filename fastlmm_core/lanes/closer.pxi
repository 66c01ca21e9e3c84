# Other minima of the criterion of one problem of few groups: the greatest effort of estimation/search.py, in lanes.
#
# Minima may lie close together, so that searches start from all valleys of a screen, from its lowest points, from some of
# all others, and from the lowest minima with their least principal standard deviation next to none.  The lanes are points:
# the groups of the problem stand in all of them.

cdef enum:
    MOST_RUNS = 64          # searches
    STAGES = 5              # of a search, each along the axes of G^ where the one before has come to
    STAGE_LENGTH = 6        # iterations of a stage but the last

cdef double NARROW = 0.1
"""Standard deviation that is nearly none, where 1 makes half of the variance of the mean of a group."""

cdef double RAISED = 17.0
"""Standard deviation in place of one that is nearly none, in the middle of the screen on a logarithmic scale."""

cdef double REACH = 0.3, NEAR_END = 0.01
"""Length of the first step of a search, relative to theta, where that is more than 1; decrement d at which it ends, with
a minimum about d^2 / 2 below, which is then known to d^3."""

cdef double LOWER = 1e-6
"""Units by which a minimum must be lower to be another one."""

cdef double EQUAL = 1e-7
"""Relative difference of values that two searches may leave at one minimum."""


# Searches of one problem.
cdef struct Runs:
    Py_ssize_t count, begin     # all, and the first that is still to be made
    Py_ssize_t left             # those from here on have begun
    Py_ssize_t raised           # those from here on take short first steps
    double* theta               # (MOST_RUNS, n_par) where each is, or has ended
    double value[MOST_RUNS]        # of the minimum
    int status[MOST_RUNS]              # of the minimum, see Outcome; GOES_ON


cdef int choose_starts(const Screen* screen, const double* values, int* chosen) noexcept nogil:
    """Valleys, the lowest points, and points spread over the order of values; how many."""
    cdef int found = choose_valleys(screen.near[2], screen.n_near[2], screen.n_points[2], values, screen.limit, chosen)
    return add_points(values, screen.n_points[2], PointsWanted(screen.limit, screen.lowest, screen.spread), found, chosen)


cdef void screen_alone(const Batch* d, const Screen* screen, Lanes* s, double* values) noexcept nogil:
    """The criterion at all points, LANES of them at a time; values (n_points,), LANES apart."""
    cdef Py_ssize_t n = d.n_par, at = 0, lane, j, count = screen.n_points[2]
    while at < count:
        for lane in range(LANES):
            for j in range(n):
                s.trial[j * LANES + lane] = screen.thetas[2][min(at + lane, count - 1) * n + j]
        set_factor(d, s, <vecu*> s.trial)
        evaluate_responses(d, s, 0)
        for lane in range(min(LANES, count - at)):
            values[(at + lane) * LANES] = s.f.gls.value[lane]
        at += LANES


# Searches under way, one in each lane: what has ended makes room for the next one, so that none waits for another.
cdef struct Rush:
    March m
    Py_ssize_t run[8]       # -1 for none
    Py_ssize_t age[8]       # iterations in this stage
    Py_ssize_t stage[8]


cdef void enter_lane(const Batch* d, Lanes* s, Rush* r, Py_ssize_t lane, const double* theta, bint turned) noexcept nogil:
    """A stage of a search from theta (n_par,), in the caller's axes; `turned`: along those of G^ there."""
    cdef Py_ssize_t n = d.n_par, q = d.q, i, j, l
    cdef double* A = s.plain
    cdef double none = VANISHED * VANISHED / d.per_group, t, size = 0.0
    if can_turn(d):
        for i in range(q * q):
            s.axes[i * LANES + lane] = 1.0 if i % (q + 1) == 0 else 0.0
    for i in range(n):
        s.theta[i * LANES + lane] = theta[i]
    if turned:
        for i in range(q * q):
            A[i] = 0.0
        for i in range(n):
            for j in range(n):
                if d.col[i] == d.col[j]:
                    A[d.row[i] * q + d.row[j]] += theta[i] * theta[j]
        turn_lane(d, s, lane, 0.0)
        for i in range(n):
            t = s.theta[i * LANES + lane]
            if d.row[i] == d.col[i] and t * t < none:
                s.theta[i * LANES + lane] = 0.0
    for i in range(n):
        t = s.theta[i * LANES + lane]
        s.trial[i * LANES + lane] = t
        s.step[i * LANES + lane] = 0.0
        size += t * t
    (<double*> &r.m.value)[lane] = INFINITY
    (<double*> &r.m.radius)[lane] = max(1.0, s.reach * sqrt(size))
    (<double*> &r.m.done)[lane] = -1.0
    (<double*> &r.m.decrement)[lane] = 1e300
    r.age[lane] = 0


cdef void leave_lane(const Batch* d, Lanes* s, Rush* r, Runs* runs, Py_ssize_t lane, bint ended) noexcept nogil:
    """The end of a search, near enough to a minimum to tell its value, or of patience with it."""
    cdef Py_ssize_t run = r.run[lane]
    cdef double decrement = (<double*> &r.m.decrement)[lane]
    runs.value[run] = (<double*> &r.m.value)[lane]
    if ended:
        runs.value[run] -= 0.5 * decrement * decrement
        runs.status[run] = 1 if decrement <= d.tolerance and s.f.gls.r2[lane] >= 1e-6 * d.n else 0


cdef void move_on(const Batch* d, Lanes* s, Rush* r, Runs* runs, Py_ssize_t lane) noexcept nogil:
    """What becomes of a lane after an iteration: a new stage of its search, or another search."""
    cdef Py_ssize_t n = d.n_par, run = r.run[lane], i
    cdef bint ended = (<double*> &r.m.done)[lane] > 0.0
    r.age[lane] += 1
    if not ended and r.age[lane] < (STAGE_LENGTH if r.stage[lane] < STAGES - 1 else d.max_iterations):
        return
    natural_theta(d, s, s.trial, lane, s.natural + lane)
    for i in range(n):
        runs.theta[run * n + i] = s.natural[i * LANES + lane]
    if not ended and r.stage[lane] < STAGES - 1:
        r.stage[lane] += 1
        s.reach = REACH if run < runs.raised else 0.0
        enter_lane(d, s, r, lane, runs.theta + run * n, can_turn(d))
        return
    leave_lane(d, s, r, runs, lane, ended)
    start_lane(d, s, r, runs, lane)


cdef void start_lane(const Batch* d, Lanes* s, Rush* r, Runs* runs, Py_ssize_t lane) noexcept nogil:
    """The next search in a lane, the last one of the list first: these start highest and take longest."""
    r.run[lane] = -1
    (<double*> &r.m.done)[lane] = 1.0
    if runs.left > runs.begin:
        runs.left -= 1
        r.run[lane] = runs.left
        r.stage[lane] = 0
        s.reach = REACH if runs.left < runs.raised else 0.0
        enter_lane(d, s, r, lane, runs.theta + runs.left * d.n_par, False)


cdef void run_all(const Batch* d, Lanes* s, Fates* f, Runs* runs) noexcept nogil:
    """All searches from `begin` on."""
    cdef Py_ssize_t run, lane, under_way = runs.count - runs.begin
    cdef vec young = VEC_SET(1.0)
    cdef Rush r
    for run in range(runs.begin, runs.count):
        runs.status[run] = GOES_ON
    if can_turn(d):
        straighten(d, s)
    for run in range(d.n_par):
        (<vecu*> s.theta)[run] = VEC_SET(runs.theta[run])
    begin_march(d, s, &r.m)
    runs.left = runs.count
    for lane in range(LANES):
        start_lane(d, s, &r, runs, lane)
    while under_way > 0:
        for lane in range(LANES):
            (<double*> &young)[lane] = 1.0 if r.age[lane] < SNAPPED_BEFORE else -1.0
        advance(d, s, &r.m, young, f.evaluations)
        under_way = 0
        for lane in range(LANES):
            if r.run[lane] >= 0:
                move_on(d, s, &r, runs, lane)
            under_way += r.run[lane] >= 0
    s.f.chain.axes = NULL
    runs.begin = runs.count


cdef bint narrow_theta(const Batch* d, double* A, const double* theta, bint raised, double* out) noexcept nogil:
    """theta with the least principal standard deviation next to none, or `raised` where it is small already; else False.

    A : work space of 3 q^2 doubles
    """
    cdef Py_ssize_t q = d.q, n = d.n_par, i, j, a, b, l
    cdef double* V = A + q * q
    cdef double* F = V + q * q
    cdef double t
    for i in range(q * q):
        F[i] = 0.0
    for i in range(n):
        F[d.row[i] * q + d.col[i]] = theta[i]
    for a in range(q):
        for b in range(q):
            t = 0.0
            for l in range(q):
                t += F[a * q + l] * F[b * q + l]
            A[a * q + b] = t
    principal_axes(q, A, V)
    if q == 1 or (A[q * q - 1] > 4.0 * NARROW * NARROW) == raised:
        return False
    A[q * q - 1] = RAISED * RAISED if raised else NARROW * NARROW
    for a in range(q):
        for b in range(a + 1):
            t = 0.0
            for l in range(q):
                t += V[a * q + l] * A[l * q + l] * V[b * q + l]
            F[a * q + b] = t
    triangular_theta(d, F, out)
    return True


cdef void triangular_theta(const Batch* d, double* G, double* out) noexcept nogil:
    """theta (n_par,) of the triangular root of G, of which the lower triangle becomes that root."""
    cdef Py_ssize_t q = d.q, i, a, b, l
    cdef double t
    for a in range(q):
        for b in range(a + 1):
            t = G[a * q + b]
            for l in range(b):
                t -= G[a * q + l] * G[b * q + l]
            G[a * q + b] = t / G[b * q + b] if b < a else sqrt(max(t, 1e-300))
    for i in range(d.n_par):
        out[i] = G[d.row[i] * q + d.col[i]]


cdef void add_narrowed(const Batch* d, Lanes* s, Py_ssize_t run, bint raised, Runs* runs) noexcept nogil:
    """A search that starts beside the minimum of another one."""
    if runs.count < MOST_RUNS and narrow_theta(
            d, s.small, runs.theta + run * d.n_par, raised, runs.theta + runs.count * d.n_par):
        runs.count += 1


cdef Py_ssize_t lowest_run(const Runs* runs) noexcept nogil:
    """The search that has ended lowest; the first where none is clearly lower than that."""
    cdef Py_ssize_t run, best = 0
    for run in range(1, runs.count):
        if runs.value[run] < min(runs.value[best], runs.value[0] - LOWER):
            best = run
    return best


cdef void add_lowest(const Batch* d, const Screen* screen, Lanes* s, Runs* runs) noexcept nogil:
    """Searches that start beside the lowest minima; that of run 0 has one."""
    cdef Py_ssize_t round_, run, best, count = runs.count
    cdef double last = -1e300
    for round_ in range(screen.narrowed):
        best = -1
        for run in range(count):
            if runs.status[run] > 0 and runs.value[run] > last and (best < 0 or runs.value[run] < runs.value[best]):
                best = run
        if best < 0:
            break
        last = runs.value[best] + EQUAL * (1.0 + fabs(runs.value[best]))
        if fabs(runs.value[best] - runs.value[0]) > EQUAL * (1.0 + fabs(runs.value[0])):
            add_narrowed(d, s, best, False, runs)


cdef void look_closer(const Batch* d, const ProblemSums* one, const Screen* screen, Py_ssize_t at, const Outcome* out,
                      double* work) noexcept nogil:
    """Look for minima lower than that in row `at` of the outcome, which is exchanged for one, or has status 0 where a
    lower point is known and no minimum."""
    cdef Lanes s
    cdef OwnGroups own
    cdef Fates f
    cdef Minima found
    cdef Runs runs
    cdef ProblemSums copies[8]
    cdef int starts[MOST_RUNS]
    cdef Arena arena = Arena(work, 0)
    cdef Batch brief = d[0]
    cdef Py_ssize_t n = d.n_par, lane, i, run, best, evaluations = out.evaluations[at]
    for lane in range(LANES):
        copies[lane] = one[0]
        s.place[lane] = 0
    lay_problems(d, screen, one.m, &s, &own, &found, &arena)
    load_problems(d, copies, &s, &own, &f)
    s.own = &own
    s.f.chain.axes = NULL
    screen_alone(d, screen, &s, found.values)
    runs.theta = found.runs
    runs.count = 1
    for i in range(n):
        runs.theta[i] = out.theta[at * n + i]
    runs.count += choose_starts(screen, found.values, starts)
    for run in range(1, runs.count):
        for i in range(n):
            runs.theta[run * n + i] = screen.thetas[2][starts[run - 1] * n + i]
    runs.begin = 1
    runs.value[0], runs.status[0] = out.value[at] - own.offset[0], out.status[at]
    add_narrowed(d, &s, 0, False, &runs)
    runs.raised = runs.count
    for lane in range(LANES):
        f.evaluations[lane] = 0
    brief.tolerance = NEAR_END
    run_all(&brief, &s, &f, &runs)
    best = lowest_run(&runs)
    add_lowest(d, screen, &s, &runs)
    # a minimum on the boundary may share its valley with one further inside, which short steps tell apart
    runs.raised = runs.count
    add_narrowed(d, &s, best, True, &runs)
    run_all(&brief, &s, &f, &runs)
    best = lowest_run(&runs)
    for lane in range(LANES):
        evaluations += f.evaluations[lane]
    if runs.status[best] <= 0:
        out.status[at] = 0
        return
    if best > 0:
        for i in range(n):
            (<vecu*> s.theta)[i] = VEC_SET(runs.theta[best * n + i])
        for lane in range(LANES):
            f.status[lane] = 0
        s.reach = 0.0
        settle_lanes(d, &s, &f, d.max_iterations)
        if not s.f.gls.value[0] < runs.value[0] + LOWER:
            # it has gone elsewhere
            out.status[at] = 0
            return
        write_searches(d, &s, &f, out, at, 1)
        write_own_coefficients(d, copies, &s, &f, out, at, 1)
    out.evaluations[at] = <int> evaluations
