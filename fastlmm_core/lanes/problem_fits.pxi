# Fits of problems of their own: first searches of all, then those from other valleys and beside the boundary.
#
# Searches of any problems stand side by side.  All are pursued for a few iterations, those that have not ended go on
# together, and once more without a limit (see settling.pxi); starts elsewhere are gathered on the way, and the minimum
# of a problem is exchanged where one of these searches ends lower.  A screen is evaluated for all lanes of a block:
# where few of them are to be screened, these wait, and are so side by side.

# What becomes of the problems of a call.
cdef struct ProblemFits:
    Searches now, next
    Searches wait           # minima of problems that are still to be screened
    int* kind               # (count,) by which of the screens
    double* lowest          # (count,) value of the lowest minimum, in units of the conditioned problem
    double* theta           # (count, n_par) there, where it is another one than the first
    double* decrement       # (count,)
    int* fate               # (count,) OTHER, LEFT_ALONE, or 0

cdef enum:
    OTHER = 1               # another minimum than the first is lower


cdef void lay_searches(const Batch* d, Py_ssize_t room, Searches* searches, Arena* arena) noexcept nogil:
    searches.count = 0
    searches.problem = <Py_ssize_t*> take(arena, room)
    searches.theta = take(arena, room * d.n_par)


cdef void lay_fits(const Batch* d, Py_ssize_t count, ProblemFits* fits, Arena* arena) noexcept nogil:
    """Take the space of the fits of so many problems."""
    lay_searches(d, count * (MOST_DESCENTS + BESIDE), &fits.now, arena)
    lay_searches(d, count * (MOST_DESCENTS + BESIDE), &fits.next, arena)
    lay_searches(d, count, &fits.wait, arena)
    fits.kind = <int*> take(arena, count)
    fits.lowest = take(arena, count)
    fits.theta = take(arena, count * d.n_par)
    fits.decrement = take(arena, count)
    fits.fate = <int*> take(arena, count)


cdef Py_ssize_t problems_size(const Batch* d, const Screen* screen, Py_ssize_t m, Py_ssize_t count) noexcept nogil:
    """Doubles of work space that `problems_fit` needs for `count` problems with up to m groups."""
    cdef Lanes s
    cdef OwnGroups own
    cdef Minima found
    cdef ProblemFits fits
    cdef Arena arena = Arena(NULL, 0)
    lay_fits(d, count, &fits, &arena)
    lay_problems(d, screen, m, &s, &own, &found, &arena)
    return arena.used


# A block of problems side by side, and its work space.
cdef struct ProblemBlock:
    Lanes s
    OwnGroups own
    Minima found
    Fates f
    ProblemSums sums[8]
    double* work            # of this block


cdef void load_block(const Batch* d, const ProblemSums* sums, const Py_ssize_t* problem, Py_ssize_t count,
                     ProblemBlock* b) noexcept nogil:
    """The first of `count` problems to the lanes; lanes beyond the last one repeat it."""
    cdef Py_ssize_t lane
    b.s.used = min(count, LANES)
    for lane in range(LANES):
        b.s.place[lane] = problem[min(lane, b.s.used - 1)]
        b.sums[lane] = sums[b.s.place[lane]]
    load_problems(d, b.sums, &b.s, &b.own, &b.f)
    b.s.f.chain.axes = NULL


cdef void take_theta(const Batch* d, Lanes* s, const double* theta, bint by_place) noexcept nogil:
    """s.theta of the lanes in use: the first rows of theta (., n_par), or those of their problems."""
    cdef Py_ssize_t lane, i, row
    for lane in range(LANES):
        row = s.place[lane] if by_place else min(lane, s.used - 1)
        for i in range(d.n_par):
            s.theta[i * LANES + lane] = theta[row * d.n_par + i]


cdef void come_to(const Batch* d, Lanes* s, const vecu* theta) noexcept nogil:
    """Evaluate at theta, in the caller's axes, which becomes that of the lanes."""
    cdef Py_ssize_t i
    for i in range(d.n_par):
        (<vecu*> s.trial)[i] = (<vecu*> s.natural)[i] = theta[i]
    s.f.chain.axes = NULL
    set_factor(d, s, <vecu*> s.trial)
    evaluate_responses(d, s, 2)


cdef void settle_problems(const Batch* d, ProblemBlock* b, int round_, const double* minima, const double* lowest
                          ) noexcept nogil:
    """A round of the search of a block from s.theta, which ends where it goes to the minimum that is known: `minima` of
    all problems and the criterion there, or NULL."""
    cdef Py_ssize_t lane, length = ROUND_LENGTH
    if round_ > 0 and can_turn(d):
        turn_all(d, &b.s)
    b.s.known = NULL
    if minima != NULL:
        turn_known(d, &b.s, minima)
        for lane in range(LANES):
            (<double*> &b.s.known_value)[lane] = lowest[b.s.place[lane]]
    if round_ == 0 and minima == NULL and d.lines != NULL and d.lines.spanned:
        # from next to the optimum one step will do, but for the few at the boundary (see balanced_lines.pxi)
        length = 1
    settle_lanes(d, &b.s, &b.f, d.max_iterations if round_ == ROUNDS - 1 else min(d.max_iterations, length))


cdef inline bint is_open(const Fates* f, Py_ssize_t lane, int round_) noexcept nogil:
    """Whether a search is to go on in the next round."""
    return (round_ < ROUNDS - 1 and f.status[lane] == 0 and not (<double*> &f.finished)[lane] > 0.0
            and (<double*> &f.decrement)[lane] < INFINITY)


cdef void find_kinds(const Batch* d, const Screen* screen, ProblemBlock* b) noexcept nogil:
    """How other minima of a block are to be looked for."""
    if d.lines != NULL:
        kinds_of_lines(d, &b.s, &b.own, &b.f, &b.found)
    else:
        kinds_of(d, b.sums, screen, &b.s, &b.f, &b.found)


cdef bint wait_for_screens(const Batch* d, ProblemBlock* b, ProblemFits* fits) noexcept nogil:
    """Let the minima of a block wait where no more than half of its lanes are to be screened, and whether they do."""
    cdef Lanes* s = &b.s
    cdef Py_ssize_t lane, wanted = 0
    for lane in range(s.used):
        wanted += 0 <= b.found.kind[lane] < 2 and not b.found.only[lane]
    if 2 * wanted > s.used:
        return False
    for lane in range(s.used):
        if 0 <= b.found.kind[lane] < 2 and not b.found.only[lane]:
            add_search(&fits.wait, d.n_par, s.place[lane], b.found.theta + lane, LANES)
            fits.kind[s.place[lane]] = b.found.kind[lane]
    return True


cdef void screen_waiting(const Batch* d, const ProblemSums* sums, const Screen* screen, ProblemBlock* b,
                         ProblemFits* fits) noexcept nogil:
    """Screen the minima that wait."""
    cdef Lanes* s = &b.s
    cdef Py_ssize_t at = 0, lane, i
    while at < fits.wait.count:
        load_block(d, sums, fits.wait.problem + at, fits.wait.count - at, b)
        take_theta(d, s, fits.wait.theta + at * d.n_par, False)
        for i in range(d.n_par):
            (<vecu*> b.found.theta)[i] = (<vecu*> s.theta)[i]
        for lane in range(LANES):
            (<double*> &b.found.value)[lane] = fits.lowest[s.place[lane]]
            b.found.kind[lane], b.found.only[lane], b.found.count[lane] = fits.kind[s.place[lane]], False, 0
        start_valleys(d, screen, s, &b.found, &fits.next)
        at += s.used


cdef void end_first(const Batch* d, const Screen* screen, ProblemBlock* b, int round_, ProblemFits* fits,
                    const Outcome* out) noexcept nogil:
    """Write what the first searches that have ended have come to, and where else they are to start."""
    cdef Lanes* s = &b.s
    cdef Py_ssize_t lane, i, place
    for lane in range(s.used):
        b.f.evaluations[lane] += out.evaluations[s.place[lane]]
        if is_open(&b.f, lane, round_):
            b.f.status[lane] = GOES_ON
    if s.f.chain.axes != NULL:
        come_to(d, s, <vecu*> s.natural)
    else:
        for i in range(d.n_par):
            (<vecu*> s.trial)[i] = (<vecu*> s.natural)[i]
    write_searches(d, s, &b.f, out, 0, s.used)
    write_own_coefficients(d, b.sums, s, &b.f, out, 0, s.used)
    find_kinds(d, screen, b)
    b.found.value = (<vecu*> s.f.gls.value)[0]
    for i in range(d.n_par):
        (<vecu*> b.found.theta)[i] = (<vecu*> s.trial)[i]
    for lane in range(s.used):
        place = s.place[lane]
        fits.lowest[place] = (<double*> &b.found.value)[lane]
        if b.f.status[lane] == LEFT_ALONE:
            out.status[place] = 0
    start_beside(d, s, &b.found, &fits.next)
    if not wait_for_screens(d, b, fits):
        start_valleys(d, screen, s, &b.found, &fits.next)
    for lane in range(s.used):
        if b.found.kind[lane] == 2 and out.status[s.place[lane]] > 0:
            look_closer(d, b.sums + lane, screen, s.place[lane], out, b.work)


cdef void end_other(const Batch* d, ProblemBlock* b, int round_, ProblemFits* fits, const Outcome* out) noexcept nogil:
    """Keep what is lower than the minimum that is known; what is lower and not certified leaves the problem alone."""
    cdef Lanes* s = &b.s
    cdef Py_ssize_t lane, i, place
    for lane in range(s.used):
        place = s.place[lane]
        out.evaluations[place] += b.f.evaluations[lane]
        if is_open(&b.f, lane, round_) or not fits.lowest[place] - s.f.gls.value[lane] > LOWER_MINIMUM:
            continue
        if not ((<double*> &b.f.finished)[lane] > 0.0 and (<double*> &b.f.decrement)[lane] <= 1e-4
                and status_of(d, s, lane) > 0):
            fits.fate[place] = LEFT_ALONE
            continue
        fits.lowest[place] = s.f.gls.value[lane]
        fits.decrement[place] = (<double*> &b.f.decrement)[lane]
        if fits.fate[place] == 0:
            fits.fate[place] = OTHER
        for i in range(d.n_par):
            fits.theta[place * d.n_par + i] = s.natural[i * LANES + lane]


cdef double LOWER_MINIMUM = 1e-9
"""Units by which a minimum must be lower to be another one."""


cdef void make_searches(const Batch* d, const ProblemSums* sums, const Screen* screen, ProblemBlock* b, bint first,
                        ProblemFits* fits, const Outcome* out) noexcept nogil:
    """All searches that are to be made now; others are gathered on the way where these are the first.

    A search that goes to the minimum that is known tells nothing new: it ends on the way.
    """
    cdef Searches* now = &fits.now
    cdef Py_ssize_t at, used, left
    cdef int round_
    for round_ in range(ROUNDS):
        at = left = 0
        while at < now.count:
            load_block(d, sums, now.problem + at, now.count - at, b)
            used = b.s.used
            if first and round_ == 0:
                start_problems(d, b.sums, &b.s, &b.own)
            else:
                take_theta(d, &b.s, now.theta + at * d.n_par, False)
            # where another minimum is lower than the first, which stands in the outcome, that is no longer known
            settle_problems(d, b, round_, NULL if first else out.theta, fits.lowest)
            at += used
            left = keep_open(d, b, round_, left, now)
            if first:
                end_first(d, screen, b, round_, fits, out)
            else:
                end_other(d, b, round_, fits, out)
        now.count = left


cdef Py_ssize_t keep_open(const Batch* d, const ProblemBlock* b, int round_, Py_ssize_t left,
                          Searches* now) noexcept nogil:
    """Searches of a block that go on, behind the `left` that do so before it; how many do so then."""
    cdef Py_ssize_t lane, kept = now.count
    now.count = left
    for lane in range(b.s.used):
        if is_open(&b.f, lane, round_):
            add_search(now, d.n_par, b.s.place[lane], b.s.natural + lane, LANES)
    left = now.count
    now.count = kept
    return left


cdef void exchange(const Batch* d, const ProblemSums* sums, const Screen* screen, Py_ssize_t count, ProblemBlock* b,
                   bint further, ProblemFits* fits, const Outcome* out) noexcept nogil:
    """Write the minima that are lower than the first; `further`: searches beside them are to be made."""
    cdef Searches* now = &fits.now
    cdef Lanes* s = &b.s
    cdef Py_ssize_t i, at = 0, lane
    now.count = 0
    for i in range(count):
        if fits.fate[i] == LEFT_ALONE:
            out.status[i] = 0
        elif fits.fate[i] == OTHER:
            add_search(now, d.n_par, i, fits.theta + i * d.n_par, 1)
            fits.fate[i] = 0
    while at < now.count:
        load_block(d, sums, now.problem + at, now.count - at, b)
        take_theta(d, s, now.theta + at * d.n_par, False)
        come_to(d, s, <vecu*> s.theta)
        b.f.finished = VEC_SET(1.0)
        for lane in range(LANES):
            b.f.evaluations[lane] = out.evaluations[s.place[lane]] + 1
            (<double*> &b.f.decrement)[lane] = fits.decrement[s.place[lane]]
        write_searches(d, s, &b.f, out, 0, s.used)
        write_own_coefficients(d, b.sums, s, &b.f, out, 0, s.used)
        if further:
            find_kinds(d, screen, b)
            start_beside(d, s, &b.found, &fits.next)
        at += s.used


cdef void problems_fit(const Batch* d, const ProblemSums* sums, const Screen* screen, Py_ssize_t count,
                       const Outcome* out, double* work) noexcept nogil:
    """Fit problems; results go to the rows of the outcome (see also Outcome.rows)."""
    cdef ProblemBlock b
    cdef ProblemFits fits
    cdef Arena arena = Arena(work, 0)
    cdef Py_ssize_t i, m = 0
    cdef int stage
    for i in range(count):
        m = max(m, sums[i].m)
    lay_fits(d, count, &fits, &arena)
    b.work = work + arena.used
    lay_problems(d, screen, m, &b.s, &b.own, &b.found, &arena)
    b.s.own = &b.own
    for i in range(count):
        fits.now.problem[i] = i
        fits.fate[i] = 0
    fits.now.count = count
    if out.rows != NULL:
        tell_problems(d, sums, &b, &fits.now, out)
        return
    for i in range(count):
        out.evaluations[i] = 0
    fits.wait.count = 0
    make_searches(d, sums, screen, &b, True, &fits, out)
    screen_waiting(d, sums, screen, &b, &fits)
    for stage in range(2):
        fits.now, fits.next = fits.next, fits.now
        fits.next.count = 0
        if fits.now.count == 0:
            break
        make_searches(d, sums, screen, &b, False, &fits, out)
        exchange(d, sums, screen, count, &b, stage == 0, &fits, out)


cdef void tell_problems(const Batch* d, const ProblemSums* sums, ProblemBlock* b, const Searches* all_of_them,
                        const Outcome* out) noexcept nogil:
    """What tests need at the theta of each problem."""
    cdef Py_ssize_t at = 0
    while at < all_of_them.count:
        load_block(d, sums, all_of_them.problem + at, all_of_them.count - at, b)
        take_theta(d, &b.s, out.theta, True)
        set_factor(d, &b.s, <vecu*> b.s.theta)
        evaluate_responses(d, &b.s, 2)
        write_contrasts(d, &b.s, out, 0, b.s.used)
        at += b.s.used


offered.problems_size = &problems_size
offered.problems_fit = &problems_fit
