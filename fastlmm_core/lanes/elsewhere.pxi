# Other minima of the criteria of problems of their own: the screen of estimation/search.py, in lanes.
#
# The criterion is evaluated at points spread over the covariance matrices.  Where a point that is lower than its neighbours
# is not joined to the minimum found by a straight path along which the criterion falls, a search starts from it.

cdef enum:
    MOST_DESCENTS = 6       # searches from other valleys
    BESIDE = 3              # beside a minimum next to the boundary
    LEFT_ALONE = -9         # status until a search has ended: to be left to a single fit

cdef double HALF = 0.5
"""Least information in a group, of any effect, relative to the largest, of nearly balanced data."""

cdef enum:
    FEW_GROUPS = 14         # for each random effect, see `few_groups` of engines/starts.py; or as many as tell as much
    SIX_GROUPS = 6          # for each random effect: of fewer, minima lie close together whatever the groups tell
    MANY_GROUPS = 56        # for each random effect: the criterion is then nearly convex about the truth

cdef double DOMINATED = 0.28
"""Share of the groups, or of as many as are enough, that the variation is worth, (sum s)^2 / sum s^2 of their squares s,
below which few of them make up most of it: a half for normal errors alone, a third for normal effects."""

cdef double TELLING = 0.5
"""Share of the groups that their information on the effects is worth where they tell alike."""

cdef double UNALIKE = 0.6
"""That share of fewer than six groups for each effect below which every rank is searched by itself."""

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
    bint only[8]            # whether the minimum that is known is the only one
    bint beside[8]          # whether searches start beside a minimum on the boundary or next to it, whatever the screen says
    double* values          # (n_points,) of a screen
    double* runs            # (MOST_RUNS, n_par) see closer.pxi
    double* theta           # (n_par,) the minimum that is known
    vec value


# Searches that are to be made.
cdef struct Searches:
    Py_ssize_t count
    Py_ssize_t* problem
    double* theta           # (., n_par) where each starts


cdef inline Py_ssize_t most_points(const Screen* screen) noexcept nogil:
    return max(max(screen.n_points[0], screen.n_points[1]), screen.n_points[2])


# What the groups of a block tell of the effects, and how they vary.
cdef struct GroupInformation:
    double least[8]         # bounds of the eigenvalues of all A = R'R, exact for q <= 2
    double most[8]
    bint whole[8]           # whether each group tells something of every effect
    vec traces, squares     # sums of tr A and |A|^2
    vec variation, fourth   # sums of s and s^2, s the squares of a group


cdef inline void add_variation(Py_ssize_t q, Py_ssize_t k, const vecu* R, GroupInformation* w) noexcept nogil:
    """The squares of a group."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, a
    cdef vec t = VEC_SET(0.0)
    for a in range(q):
        t = t + R[n_a + (a + 1) * k - 1] * R[n_a + (a + 1) * k - 1]
    w.variation = w.variation + t
    w.fourth = w.fourth + t * t


cdef inline void add_information(Py_ssize_t q, const vecu* R, Py_ssize_t g, const ProblemSums* sums, GroupInformation* w
                                 ) noexcept nogil:
    """What group g tells of the effects: row a of R begins at a q - a (a - 1) / 2.

    Eigenvalues lie within their mean by sqrt((q - 1) / q) of what they spread, |A|^2 - (tr A)^2 / q.
    """
    cdef Py_ssize_t a, b, i, lane
    cdef vec t, trace, square, pivots, mean, off
    trace = square = VEC_SET(0.0)
    pivots = VEC_SET(1.0)
    for a in range(q):
        pivots = pivots * R[a * q - a * (a - 1) // 2]
        for b in range(a + 1):
            t = VEC_SET(0.0)
            for i in range(b + 1):
                t = t + R[i * q - i * (i - 1) // 2 - i + a] * R[i * q - i * (i - 1) // 2 - i + b]
            if a == b:
                trace = trace + t
                square = square + t * t
            else:
                square = square + VEC_SET(2.0) * t * t
    w.traces = w.traces + trace
    w.squares = w.squares + square
    mean = trace * (1.0 / q)
    off = (square - trace * mean) * (1.0 - 1.0 / q)
    off = VEC_WHERE_POSITIVE(off, off, VEC_SET(0.0))
    off = VEC_SQRT(off)
    for lane in range(LANES):
        if g >= sums[lane].m:
            continue
        if (<double*> &pivots)[lane] == 0.0:
            w.whole[lane] = False
        # groups that tell nothing at all do no harm
        if (<double*> &trace)[lane] > 0.0:
            w.least[lane] = min(w.least[lane], (<double*> &mean)[lane] - (<double*> &off)[lane])
            w.most[lane] = max(w.most[lane], (<double*> &mean)[lane] + (<double*> &off)[lane])


cdef void inform(const Batch* d, const ProblemSums* sums, const Lanes* s, GroupInformation* w) noexcept nogil:
    """What the groups of all problems of a block tell."""
    cdef Py_ssize_t q = d.q, k = d.p + 1, stride = q * (q + 1) // 2 + q * k, lane, g
    cdef const vecu* R
    w.variation = w.traces = w.squares = VEC_SET(0.0)
    w.fourth = VEC_SET(1e-300)
    for lane in range(LANES):
        w.least[lane], w.most[lane], w.whole[lane] = 1e300, 0.0, True
    for g in range(s.own.m):
        R = (<const vecu*> s.own.packed) + g * stride
        add_variation(q, k, R, w)
        add_information(q, R, g, sums, w)


cdef void kinds_of(const Batch* d, const ProblemSums* sums, const Screen* screen, Lanes* s, Fates* f, Minima* found
                   ) noexcept nogil:
    """Nearly balanced data, or many groups (0), others (1), few groups (2), and what is not to be screened (-1)."""
    cdef Py_ssize_t q = d.q, lane, m
    cdef vec regular = VEC_SET(-1.0), differ = VEC_SET(0.0)
    cdef GroupInformation w
    cdef bint balanced, worthy, few, alike, unalike, conflict
    cdef double telling, worth
    if screen.one_full:
        differ_within(d, s, &differ)
        regular_problems(d, sums, s, &regular)
    inform(d, sums, s, &w)
    for lane in range(LANES):
        m = sums[lane].m
        found.kind[lane] = 1
        found.only[lane] = False
        found.count[lane] = 0
        # of many groups too few are known to tell how much they may differ
        conflict = (<double*> &differ)[lane] > (CONFLICT * m if m < MANY_GROUPS * q else 0.0)
        balanced = (sums[lane].n - sums[lane].rank >= 2 * m * q and w.least[lane] >= HALF * w.most[lane]
                    and not conflict)
        telling = (<double*> &w.traces)[lane] ** 2 / (q * (<double*> &w.squares)[lane])
        alike = screen.one_full and (<double*> &regular)[lane] > 0.0 and w.whole[lane] and (
            m >= SIX_GROUPS * q and telling >= TELLING * m)
        if screen.one_full and (m >= MANY_GROUPS * q and not conflict or balanced):
            found.kind[lane] = 0
        few = m < MANY_GROUPS * q and (m < FEW_GROUPS * q or telling < FEW_GROUPS * q)
        unalike = q > 2 and telling < (UNALIKE if m < SIX_GROUPS * q else TELLING) * m
        worth = (<double*> &w.variation)[lane] * ((<double*> &w.variation)[lane] / (<double*> &w.fourth)[lane])
        worthy = worth >= DOMINATED * min(m, FEW_GROUPS * q)
        balanced = balanced and worthy and m >= SIX_GROUPS * q
        few = few or not worthy or conflict
        found.beside[lane] = screen.one_full and balanced and m < FEW_GROUPS * q
        if screen.one_full and few and not balanced and not alike:
            # minima may lie close together: no screen of a few points tells them apart
            found.kind[lane] = 2
            # single fits search every rank by itself
            if unalike or screen.n_points[2] == 0:
                f.status[lane] = LEFT_ALONE
        # the minimum of regular data is the only one
        if f.status[lane] <= 0 or alike:
            found.kind[lane] = -1


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
            wanted = wanted or (found.kind[lane] == kind and not found.only[lane])
        if not wanted:
            continue
        for i in range(screen.n_points[kind]):
            for j in range(n):
                (<vecu*> s.trial)[j] = VEC_SET(screen.thetas[kind][i * n + j])
            set_factor(d, s, <vecu*> s.trial)
            evaluate_responses(d, s, 0)
            (<vecu*> found.values)[i] = (<vecu*> s.f.gls.value)[0]
        for lane in range(LANES):
            if found.kind[lane] == kind and not found.only[lane]:
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


cdef inline void add_search(Searches* next, Py_ssize_t n, Py_ssize_t problem, const double* theta, Py_ssize_t step
                            ) noexcept nogil:
    """A search that starts from theta (n,), `step` apart."""
    cdef Py_ssize_t i
    next.problem[next.count] = problem
    for i in range(n):
        next.theta[next.count * n + i] = theta[i * step]
    next.count += 1


cdef void start_valleys(const Batch* d, const Screen* screen, Lanes* s, Minima* found, Searches* next) noexcept nogil:
    """Searches from other valleys than that of the minimum of each lane."""
    cdef Py_ssize_t lane, i, n = d.n_par
    screen_lanes(d, screen, s, found)
    leave_joined(d, screen, s, found)
    for lane in range(s.used):
        for i in range(found.count[lane]):
            add_search(next, n, s.place[lane], screen.thetas[found.kind[lane]] + found.starts[lane][i] * n, 1)


cdef void start_beside(const Batch* d, Lanes* s, Minima* found, Searches* next) noexcept nogil:
    """Searches beside minima that lie on the boundary or next to it: from inside, and from next to it.

    Minima are looked for where all directions have as much variance, little or much (EVEN of estimation/search.py), and,
    from a minimum inside, where the least principal standard deviation is next to none.  Reads the evaluation at s.trial.
    """
    cdef Py_ssize_t n = d.n_par, i, lane
    cdef int size
    cdef bint inside
    cdef vec rise
    cdef double* one = found.runs
    cdef double* start = found.runs + n
    boundary_near(d, s, &rise)
    for lane in range(s.used):
        if not (found.beside[lane] and 0 <= found.kind[lane] < 2):
            continue
        inside = True
        for i in range(n):
            one[i] = s.trial[i * LANES + lane]
            inside = inside and not (d.row[i] == d.col[i] and one[i] == 0.0)
        if inside and (<double*> &rise)[lane] > NEAR_BOUNDARY:
            continue
        if inside and narrow_theta(d, s.small, one, False, start):
            add_search(next, n, s.place[lane], start, 1)
        for size in range(2):
            for i in range(n):
                start[i] = 0.0 if d.row[i] != d.col[i] else 17.0 if size else 2.0
            add_search(next, n, s.place[lane], start, 1)
