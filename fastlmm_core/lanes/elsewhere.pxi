# Other minima of the criteria of problems of their own: the screen of estimation/search.py, in lanes.
#
# The criterion is evaluated at points spread over the covariance matrices.  Where a point that is lower than its neighbours
# is not joined to the minimum found by a straight path along which the criterion falls, a search starts from it.

cdef enum:
    MOST_DESCENTS = 6       # searches from other valleys
    LEFT_ALONE = -9         # status until a search has ended: to be left to a single fit

cdef double REGULAR = 0.2
"""Least information in a group, relative to the mean, of nearly balanced data."""

cdef enum:
    FEW_GROUPS = 14         # for each random effect, see `few_groups` of engines/starts.py; or as many as tell as much
    SIX_GROUPS = 6          # for each random effect: of fewer, minima lie close together whatever the groups tell
    MANY_GROUPS = 56        # for each random effect: the criterion is then nearly convex about the truth

cdef double DOMINATED = 0.28
"""Share of the groups, or of as many as are enough, that the variation is worth, (sum s)^2 / sum s^2 of their squares s,
below which few of them make up most of it: a half for normal errors alone, a third for normal effects."""

cdef double TELLING = 0.5
"""Share of the groups that their information on the effects is worth where they tell alike."""

cdef double NEAR_BOUNDARY = 4.0
"""Rise of the criterion to the boundary, by its Hessian, up to which there may be a lower minimum on it."""

cdef double PLAY = 1e-9
"""Relative rounding error by which the criterion may rise along a path that falls."""


# What is known of the minima of a block.
cdef struct Minima:
    int kind[8]             # which of the screens is looked at, 2 when all else is done; -1 for none
    int starts[8][6]        # points from which a search is to start, and the values there
    double heights[8][6]
    int count[8]
    bint beside[8]          # whether searches start beside a minimum on the boundary or next to it, whatever the screen says
    double* values          # (n_points,) of a screen
    double* runs            # (MOST_RUNS, n_par) see closer.pxi
    double* theta           # (n_par,) the lowest minimum
    vec value
    vec finished
    vec decrement


cdef inline Py_ssize_t most_points(const Screen* screen) noexcept nogil:
    return max(max(screen.n_points[0], screen.n_points[1]), screen.n_points[2])


cdef void kinds_of(const Batch* d, const ProblemSums* sums, const Screen* screen, Lanes* s, Fates* f, Minima* found
                   ) noexcept nogil:
    """Nearly balanced or regular data, or many groups (0), others (1), few groups (2), and what is not to be screened (-1)."""
    cdef Py_ssize_t q = d.q, k = d.p + 1, n_a = q * (q + 1) // 2, stride = n_a + q * k, lane, g, a, b, i, row
    cdef vecu* column = <vecu*> s.small
    cdef vecu* R
    cdef vec total, t, least, square, fourth, traces, squares, regular
    cdef bint balanced, worthy, few, alike
    cdef bint whole[8]
    cdef double here
    if screen.one_full:
        regular_problems(d, sums, s, &regular)
    least = VEC_SET(1e300)
    square = VEC_SET(0.0)
    fourth = VEC_SET(1e-300)
    traces = VEC_SET(0.0)
    squares = VEC_SET(0.0)
    for lane in range(LANES):
        whole[lane] = True
    for g in range(s.own.m):
        R = (<vecu*> s.own.packed) + g * stride
        total = VEC_SET(0.0)
        # columns of R^-1 from the last row up; row a of R begins at a q - a (a - 1) / 2
        for b in range(q):
            for a in range(b, -1, -1):
                row = a * q - a * (a - 1) // 2 - a
                t = VEC_SET(1.0 if a == b else 0.0)
                for i in range(a + 1, b + 1):
                    t = t - R[row + i] * column[i]
                column[a] = t / R[row + a]
                total = total + column[a] * column[a]
        t = VEC_SET(0.0)
        for a in range(q):
            t = t + R[n_a + (a + 1) * k - 1] * R[n_a + (a + 1) * k - 1]
        square = square + t
        fourth = fourth + t * t
        # what the group tells of the effects, A = R'R
        for a in range(q):
            for b in range(a + 1):
                t = VEC_SET(0.0)
                for i in range(b + 1):
                    t = t + R[i * q - i * (i - 1) // 2 - i + a] * R[i * q - i * (i - 1) // 2 - i + b]
                if a == b:
                    traces = traces + t
                    squares = squares + t * t
                else:
                    squares = squares + VEC_SET(2.0) * t * t
        for lane in range(LANES):
            if g >= sums[lane].m:
                continue
            here = q / (<double*> &total)[lane]
            if not (<double*> &total)[lane] < 1e300:
                # a pivot is zero: of that effect the group tells nothing, however large its variance
                whole[lane] = False
            elif here < (<double*> &least)[lane]:
                (<double*> &least)[lane] = here
    for lane in range(LANES):
        found.kind[lane] = 1
        # groups that tell nothing at all of an effect do no harm
        balanced = sums[lane].n - sums[lane].rank >= 2 * sums[lane].m * q and (<double*> &least)[lane] >= REGULAR
        here = (<double*> &traces)[lane] ** 2 / (q * (<double*> &squares)[lane])
        alike = screen.one_full and (<double*> &regular)[lane] > 0.0 and whole[lane] and (
            sums[lane].m >= SIX_GROUPS * q and here >= TELLING * sums[lane].m)
        if screen.one_full and (sums[lane].m >= MANY_GROUPS * q or (balanced and whole[lane]) or alike):
            found.kind[lane] = 0
        few = sums[lane].m < MANY_GROUPS * q and (sums[lane].m < FEW_GROUPS * q or here < FEW_GROUPS * q)
        here = (<double*> &square)[lane] * ((<double*> &square)[lane] / (<double*> &fourth)[lane])
        worthy = here >= DOMINATED * min(sums[lane].m, FEW_GROUPS * q)
        balanced = balanced and worthy and sums[lane].m >= SIX_GROUPS * q or alike
        few = few or not worthy
        found.beside[lane] = screen.one_full and balanced and sums[lane].m < FEW_GROUPS * q
        if screen.one_full and few and not balanced:
            # minima may lie close together: no screen of a few points tells them apart
            found.kind[lane] = 2
            if screen.n_points[2] == 0:
                f.status[lane] = LEFT_ALONE
        if f.status[lane] < 0 or not (<double*> &f.finished)[lane] > 0.0:
            found.kind[lane] = -1
        found.count[lane] = 0


cdef void find_valleys(const Screen* screen, int kind, Py_ssize_t lane, Minima* found) noexcept nogil:
    """The lowest valleys of a lane, and the values there."""
    cdef Py_ssize_t i
    found.count[lane] = choose_valleys(screen.near[kind], screen.n_near[kind], screen.n_points[kind], found.values + lane,
                                       MOST_DESCENTS, found.starts[lane])
    for i in range(found.count[lane]):
        found.heights[lane][i] = found.values[found.starts[lane][i] * LANES + lane]


cdef void screen_lanes(const Batch* d, const Screen* screen, Lanes* s, Minima* found) noexcept nogil:
    """Values at all points of the screens that are wanted, and the valleys of each lane."""
    cdef Py_ssize_t n = d.n_par, i, j, lane
    cdef int kind
    cdef bint wanted
    for kind in range(2):
        wanted = False
        for lane in range(LANES):
            wanted = wanted or found.kind[lane] == kind
        if not wanted:
            continue
        for i in range(screen.n_points[kind]):
            for j in range(n):
                (<vecu*> s.trial)[j] = VEC_SET(screen.thetas[kind][i * n + j])
            set_factor(d, s, <vecu*> s.trial)
            evaluate_responses(d, s, 0)
            (<vecu*> found.values)[i] = (<vecu*> s.f.gls.value)[0]
        for lane in range(LANES):
            if found.kind[lane] == kind:
                find_valleys(screen, kind, lane, found)


cdef void leave_joined(const Batch* d, const Screen* screen, Lanes* s, Minima* found) noexcept nogil:
    """Leave out the valleys from which the criterion falls all the way to the minimum."""
    cdef Py_ssize_t n = d.n_par, round_, i, j, lane
    cdef int kept[8]
    cdef double before[8]
    cdef bint falls[8]
    cdef double share, here, end
    cdef bint some
    for lane in range(LANES):
        kept[lane] = 0
    for round_ in range(MOST_DESCENTS):
        some = False
        for lane in range(LANES):
            falls[lane] = round_ < found.count[lane]
            before[lane] = found.heights[lane][round_] if falls[lane] else 0.0
            some = some or falls[lane]
        if not some:
            break
        for i in range(3):
            share = 0.3 if i == 0 else 0.1 if i == 1 else 0.03
            for j in range(n):
                (<vecu*> s.trial)[j] = (<vecu*> found.theta)[j]
                for lane in range(LANES):
                    if round_ < found.count[lane]:
                        end = screen.thetas[found.kind[lane]][found.starts[lane][round_] * n + j]
                        s.trial[j * LANES + lane] += share * (end - found.theta[j * LANES + lane])
            set_factor(d, s, <vecu*> s.trial)
            evaluate_responses(d, s, 0)
            for lane in range(LANES):
                here = s.f.gls.value[lane]
                falls[lane] = falls[lane] and before[lane] >= here - PLAY * fabs(here) and isfinite(here)
                before[lane] = here
        for lane in range(LANES):
            if round_ < found.count[lane]:
                end = (<double*> &found.value)[lane]
                if not (falls[lane] and before[lane] >= end - PLAY * fabs(end)):
                    found.starts[lane][kept[lane]] = found.starts[lane][round_]
                    kept[lane] += 1
    for lane in range(LANES):
        found.count[lane] = kept[lane]


cdef void descend_once(const Batch* d, Lanes* s, Fates* f, Minima* found, const bint* wanted) noexcept nogil:
    """Search from s.theta where it is wanted, and keep what is lower; what is lower and not certified leaves the lane alone."""
    cdef Py_ssize_t n = d.n_par, j, lane
    cdef int evaluations[8]
    cdef double margin
    cdef vec changed
    for lane in range(LANES):
        evaluations[lane] = f.evaluations[lane]
    minimize_lanes(d, s, d.max_iterations, &f.finished, &f.decrement, f.evaluations)
    changed = snap(d, s)
    if vec_max(<vecu*> &changed) > 0.0:
        judge_snapped(d, s, f, changed)
    for lane in range(LANES):
        if not wanted[lane]:
            # it has only waited for the others
            f.evaluations[lane] = evaluations[lane]
            continue
        margin = (<double*> &found.value)[lane] - s.f.gls.value[lane]
        if not margin > 1e-9:
            continue
        if not ((<double*> &f.finished)[lane] > 0.0 and (<double*> &f.decrement)[lane] <= 1e-4
                and status_of(d, s, lane) > 0):
            f.status[lane] = LEFT_ALONE
            continue
        (<double*> &found.value)[lane] = s.f.gls.value[lane]
        (<double*> &found.finished)[lane] = (<double*> &f.finished)[lane]
        (<double*> &found.decrement)[lane] = (<double*> &f.decrement)[lane]
        for j in range(n):
            found.theta[j * LANES + lane] = s.trial[j * LANES + lane]


cdef void descend_lanes(const Batch* d, const Screen* screen, Lanes* s, Fates* f, Minima* found) noexcept nogil:
    """Search from the valleys that are left."""
    cdef Py_ssize_t n = d.n_par, round_, j, lane
    cdef bint wanted[8]
    cdef bint some
    for round_ in range(MOST_DESCENTS):
        some = False
        for lane in range(LANES):
            wanted[lane] = round_ < found.count[lane]
            some = some or wanted[lane]
        if not some:
            break
        for j in range(n):
            (<vecu*> s.theta)[j] = (<vecu*> found.theta)[j]
            for lane in range(LANES):
                if wanted[lane]:
                    s.theta[j * LANES + lane] = screen.thetas[found.kind[lane]][found.starts[lane][round_] * n + j]
        descend_once(d, s, f, found, wanted)


cdef void descend_beside(const Batch* d, Lanes* s, Fates* f, Minima* found) noexcept nogil:
    """Search beside minima that lie on the boundary or next to it: from inside, and from next to it.

    Minima are looked for where all directions have as much variance, little or much (EVEN of estimation/search.py), and,
    from a minimum inside, where the least principal standard deviation is next to none.
    """
    cdef Py_ssize_t n = d.n_par, round_, i, j, lane
    cdef bint wanted[8]
    cdef bint inside[8]
    cdef bint some = False
    cdef vec rise
    cdef double* one = found.runs
    cdef double* narrow = found.runs + n
    for lane in range(LANES):
        wanted[lane] = found.kind[lane] >= 0 and found.kind[lane] < 2 and found.beside[lane] and f.status[lane] == 0
        some = some or wanted[lane]
    if not some:
        return
    for j in range(n):
        (<vecu*> s.trial)[j] = (<vecu*> found.theta)[j]
    set_factor(d, s, <vecu*> s.trial)
    evaluate_responses(d, s, 2)
    boundary_near(d, s, &rise)
    some = False
    for lane in range(LANES):
        inside[lane] = True
        for i in range(n):
            if d.row[i] == d.col[i] and found.theta[i * LANES + lane] == 0.0:
                inside[lane] = False
        wanted[lane] = wanted[lane] and not (inside[lane] and (<double*> &rise)[lane] > NEAR_BOUNDARY)
        some = some or wanted[lane]
    if not some:
        return
    for round_ in range(3):
        for i in range(n):
            (<vecu*> s.theta)[i] = (<vecu*> found.theta)[i]
        for lane in range(LANES):
            if not wanted[lane]:
                continue
            for i in range(n):
                one[i] = found.theta[i * LANES + lane]
            if round_ == 0:
                # nothing is lower from where the minimum is
                if not (inside[lane] and narrow_theta(d, s.small, one, narrow)):
                    continue
            for i in range(n):
                s.theta[i * LANES + lane] = narrow[i] if round_ == 0 else (
                    0.0 if d.row[i] != d.col[i] else 2.0 if round_ == 1 else 17.0)
        descend_once(d, s, f, found, wanted)


cdef void look_elsewhere(const Batch* d, const ProblemSums* sums, const Screen* screen, Lanes* s, Fates* f, Minima* found
                         ) noexcept nogil:
    """Look for lower minima than that at `trial`, and evaluate at the lowest one."""
    cdef Py_ssize_t n = d.n_par, j
    kinds_of(d, sums, screen, s, f, found)
    found.value = (<vecu*> s.f.gls.value)[0]
    found.finished = f.finished
    found.decrement = f.decrement
    for j in range(n):
        (<vecu*> found.theta)[j] = (<vecu*> s.trial)[j]
    screen_lanes(d, screen, s, found)
    leave_joined(d, screen, s, found)
    descend_lanes(d, screen, s, f, found)
    descend_beside(d, s, f, found)
    f.finished = found.finished
    f.decrement = found.decrement
    for j in range(n):
        (<vecu*> s.trial)[j] = (<vecu*> found.theta)[j]
        (<vecu*> s.theta)[j] = (<vecu*> found.theta)[j]
    set_factor(d, s, <vecu*> s.trial)
    evaluate_responses(d, s, 2)
