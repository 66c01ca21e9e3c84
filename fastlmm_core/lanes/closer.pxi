# Other minima of the criterion of one problem of few groups: the greatest effort of estimation/search.py, in lanes.
#
# Minima may lie close together, so that searches start from all valleys of a screen, from its lowest points, from some of
# all others, and from the lowest minima with their least principal standard deviation next to none.  The lanes are points:
# the groups of the problem stand in all of them.

cdef enum:
    MOST_RUNS = 48          # searches
    STAGES = 5              # after which those that have not ended go on together
    STAGE_LENGTH = 6        # iterations of a stage but the last

cdef double NARROW = 0.1
"""Standard deviation that is nearly none, where 1 makes half of the variance of the mean of a group."""

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
    double* theta               # (MOST_RUNS, n_par) where each is, or has ended
    double value[48]        # of the minimum
    int status[48]              # of the minimum, see Outcome; GOES_ON


cdef int choose_starts(const Screen* screen, const double* values, int* chosen) noexcept nogil:
    """Valleys, the lowest points, and points spread over the order of values; how many."""
    cdef Py_ssize_t n_points = screen.n_points[2], limit = screen.limit, i, step, rest = 0
    cdef int order[MOST_POINTS]
    cdef bint taken[MOST_POINTS]
    cdef int count = 0, found = choose_valleys(screen.near[2], screen.n_near[2], n_points, values, limit, chosen)
    for i in range(n_points):
        taken[i] = False
        if isfinite(values[i * LANES]):
            order[count] = <int> i
            count += 1
    order_points(values, count, order)
    for i in range(found):
        taken[chosen[i]] = True
    for i in range(min(screen.lowest, count)):
        if not taken[order[i]] and found < limit:
            taken[order[i]] = True
            chosen[found] = order[i]
            found += 1
    step = max(1, (count - found) // screen.spread)
    for i in range(count):
        if not taken[order[i]]:
            if rest % step == 0 and rest // step < screen.spread:
                chosen[found] = order[i]
                found += 1
            rest += 1
    return found


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


cdef void run_some(const Batch* d, Lanes* s, Fates* f, Runs* runs, const Py_ssize_t* which, Py_ssize_t used,
                   Py_ssize_t limit, bint turned) noexcept nogil:
    """Up to LANES searches, up to `limit` iterations on from where they are; `turned`: along the axes of G^ there."""
    cdef Py_ssize_t n = d.n_par, lane, j, run
    cdef double decrement
    for lane in range(LANES):
        # lanes beyond the last repeat it
        run = which[min(lane, used - 1)]
        f.status[lane] = 0
        for j in range(n):
            s.theta[j * LANES + lane] = runs.theta[run * n + j]
    s.f.chain.axes = NULL
    if turned:
        turn_all(d, s)
    settle_lanes(d, s, f, limit)
    for lane in range(used):
        run = which[lane]
        runs.value[run] = s.f.gls.value[lane]
        if (<double*> &f.finished)[lane] > 0.0:
            decrement = (<double*> &f.decrement)[lane]
            runs.status[run] = status_of(d, s, lane) if decrement <= d.tolerance else 0
            runs.value[run] -= 0.5 * decrement * decrement
        for j in range(n):
            runs.theta[run * n + j] = s.natural[j * LANES + lane]


cdef void run_all(const Batch* d, Lanes* s, Fates* f, Runs* runs) noexcept nogil:
    """All searches from `begin` on; lanes that need long would keep the others waiting: they go on together."""
    cdef Py_ssize_t stage, run, used
    cdef Py_ssize_t which[8]
    for run in range(runs.begin, runs.count):
        runs.status[run] = GOES_ON
    for stage in range(STAGES):
        used = 0
        for run in range(runs.begin, runs.count):
            if runs.status[run] == GOES_ON:
                which[used] = run
                used += 1
            if used == LANES or (used > 0 and run == runs.count - 1):
                run_some(d, s, f, runs, which, used, d.max_iterations if stage == STAGES - 1 else STAGE_LENGTH,
                         stage > 0 and can_turn(d))
                used = 0
    s.f.chain.axes = NULL
    runs.begin = runs.count


cdef bint narrow_theta(const Batch* d, double* A, const double* theta, double* out) noexcept nogil:
    """theta with the least principal standard deviation next to none; False where it is small already.

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
    if q == 1 or not A[q * q - 1] > 4.0 * NARROW * NARROW:
        return False
    A[q * q - 1] = NARROW * NARROW
    # the triangular root of V A V'
    for a in range(q):
        for b in range(a + 1):
            t = 0.0
            for l in range(q):
                t += V[a * q + l] * A[l * q + l] * V[b * q + l]
            for l in range(b):
                t -= F[a * q + l] * F[b * q + l]
            F[a * q + b] = t / F[b * q + b] if b < a else sqrt(max(t, 1e-300))
    for i in range(n):
        out[i] = F[d.row[i] * q + d.col[i]]
    return True


cdef void add_narrowed(const Batch* d, Lanes* s, Py_ssize_t run, Runs* runs) noexcept nogil:
    """A search that starts beside the minimum of another one."""
    if runs.count < MOST_RUNS and narrow_theta(
            d, s.small, runs.theta + run * d.n_par, runs.theta + runs.count * d.n_par):
        runs.count += 1


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
            add_narrowed(d, s, best, runs)


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
    cdef Py_ssize_t n = d.n_par, lane, i, run, best = 0, evaluations = out.evaluations[at]
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
    add_narrowed(d, &s, 0, &runs)
    for lane in range(LANES):
        f.evaluations[lane] = 0
    brief.tolerance, s.reach = NEAR_END, REACH
    run_all(&brief, &s, &f, &runs)
    add_lowest(d, screen, &s, &runs)
    run_all(&brief, &s, &f, &runs)
    for run in range(1, runs.count):
        if runs.value[run] < min(runs.value[best], runs.value[0] - LOWER):
            best = run
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
        write_searches(d, &s, &f, out, at, 1)
        write_own_coefficients(d, copies, &s, &f, out, at, 1)
    out.evaluations[at] = <int> evaluations
