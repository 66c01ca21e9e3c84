# The fits of many responses, from the first point to what is reported: the lanes are responses.
#
# All are searched for a few iterations, those that have not ended go on together, and once more without a limit.  What ends
# is snapped to the boundary beside it and judged there; then status, theta, variance and coefficients are written.

cdef enum:
    GOES_ON = -8        # status of a search that has not ended
    ROUNDS = 3          # of all responses, of those that go on, and again
    ROUND_LENGTH = 7    # iterations of a round but the last

# What has become of the responses of a block.
cdef struct Fates:
    int status[8]           # see Outcome
    int evaluations[8]
    vec total               # y'y less what X_o explains
    vec size                # by which y was divided
    vec finished            # positive where the search has ended
    vec decrement
    vec value               # of the criterion at the last point that was evaluated on the way


cdef void set_aside(const Batch* d, Lanes* s, Fates* f) noexcept nogil:
    """Find the responses that are not finite or do not vary, and put neutral numbers in their lanes."""
    cdef Py_ssize_t q = d.q, p = d.p, lane, i
    for lane in range(LANES):
        f.evaluations[lane] = 0
        f.status[lane] = 0
        if not isfinite((<double*> &f.total)[lane]):
            f.status[lane] = -1
        elif not (<double*> &f.total)[lane] > 0.0:
            f.status[lane] = -2
        if f.status[lane] == 0:
            continue
        (<double*> &f.total)[lane] = d.n
        for i in range(d.n_columns * q):
            s.cy[i * LANES + lane] = 0.0
        for i in range(d.n_patterns * (q * (q + 1) // 2)):
            s.rest[i * LANES + lane] = 0.0
        for i in range(p):
            s.within[i * LANES + lane] = 0.0
        s.within[p * LANES + lane] = d.n


cdef vec snap(const Batch* d, Lanes* s) noexcept nogil:
    """trial = theta with the columns of L by sign and negligible ones at zero; positive where something went to zero."""
    cdef Py_ssize_t n = d.n_par, i, j, at
    cdef vecu* theta = <vecu*> s.theta
    cdef vecu* trial = <vecu*> s.trial
    cdef vec zero, one, minus, sign, negligible, changed
    cdef double limit = VANISHED / sqrt(d.per_group)
    zero = VEC_SET(0.0)
    one = VEC_SET(1.0)
    minus = VEC_SET(-1.0)
    changed = minus
    for i in range(n):
        trial[i] = theta[i]
    for i in range(n):
        if d.row[i] == d.col[i]:
            sign = VEC_WHERE_POSITIVE(zero - theta[i], minus, one)
            negligible = VEC_WHERE_POSITIVE(VEC_SET(limit) - VEC_ABS(theta[i]), one, minus)
            changed = VEC_WHERE_POSITIVE(negligible, one, changed)
            for j in range(n):
                if d.col[j] == d.col[i]:
                    trial[j] = trial[j] * sign
            trial[i] = VEC_WHERE_POSITIVE(negligible, zero, trial[i])
    for i in range(n):
        # a column without its diagonal is left to the single-fit path unless it vanishes altogether
        if d.row[i] != d.col[i]:
            at = 0
            for j in range(n):
                if d.row[j] == d.col[i] and d.col[j] == d.col[i]:
                    at = j
            negligible = VEC_WHERE_POSITIVE(VEC_SET(limit) - VEC_ABS(trial[i]), zero, trial[i])
            trial[i] = VEC_WHERE_POSITIVE(trial[at], trial[i], negligible)
    return changed


cdef void judge_snapped(const Batch* d, Lanes* s, Fates* f, vec changed) noexcept nogil:
    """Evaluate at `trial`; where that raises the criterion, or its Hessian is not definite, the search has not ended."""
    cdef Py_ssize_t n = d.n_par, lane
    cdef vecu* small = <vecu*> s.small
    cdef vec value, decrement, definite
    cdef double before
    value = (<vecu*> s.f.gls.value)[0]
    set_factor(d, s, <vecu*> s.trial)
    evaluate_responses(d, s, 2)
    newton_step(n, <vecu*> s.f.hess, <vecu*> s.f.grad, small, small + n * n, <vecu*> s.f.work, &decrement, &definite)
    # a lane that was not snapped repeats its point up to signs
    for lane in range(LANES):
        if (<double*> &changed)[lane] > 0.0:
            before = (<double*> &value)[lane]
            (<double*> &f.decrement)[lane] = (<double*> &decrement)[lane]
            f.evaluations[lane] += 1
            if not (s.f.gls.value[lane] <= before + 1e-11 * (before if before > 0.0 else -before) + 1e-11 * d.n
                    and (<double*> &definite)[lane] > 0.0):
                (<double*> &f.finished)[lane] = -1.0


cdef int status_of(const Batch* d, Lanes* s, Py_ssize_t lane) noexcept nogil:
    """Status of a search that has ended: 1, 2 at the boundary, 0 where it does not show every direction."""
    cdef Py_ssize_t i, j
    cdef int status = 1
    for i in range(d.n_par):
        if d.row[i] == d.col[i] and s.trial[i * LANES + lane] == 0.0:
            status = 2
            # Where the diagonal is zero but its column is not, the triangular form does not show every direction in
            # which G may grow; a zero column shows all of them that are not in its range.
            for j in range(d.n_par):
                if d.col[j] == d.col[i] and s.trial[j * LANES + lane] != 0.0:
                    status = 0
    # nearly all variation between groups: the sums have lost digits
    if s.f.gls.r2[lane] < 1e-6 * d.n:
        status = 0
    return status


cdef void write_searches(const Batch* d, Lanes* s, Fates* f, const Outcome* out, Py_ssize_t first, Py_ssize_t count
                         ) noexcept nogil:
    """Status, theta, variance and criterion of a block; of a search that goes on its status and evaluations."""
    cdef Py_ssize_t lane, where, i
    for lane in range(count):
        where = first + s.place[lane]
        if f.status[lane] == 0 and (<double*> &f.finished)[lane] > 0.0 and (<double*> &f.decrement)[lane] <= 1e-4:
            f.status[lane] = status_of(d, s, lane)
        out.status[where] = f.status[lane]
        out.evaluations[where] = f.evaluations[lane]
        if f.status[lane] == GOES_ON:
            continue
        out.decrement[where] = (<double*> &f.decrement)[lane]
        for i in range(d.n_par):
            out.theta[where * d.n_par + i] = s.natural[i * LANES + lane]
        out.value[where] = s.f.gls.value[lane]
        if s.own != NULL:
            out.value[where] += s.own.offset[lane]
        else:
            out.value[where] += d.nu * log((<double*> &f.total)[lane] / d.n) + d.criterion_offset


cdef void write_arrivals(const Batch* d, Lanes* s, Fates* f, const Outcome* out, Py_ssize_t first) noexcept nogil:
    """Searches that go to the minimum that is known of their response have ended there."""
    cdef Py_ssize_t lane, i, place
    for lane in range(s.used):
        if not (<double*> &s.arrived)[lane] > 0.0:
            continue
        place = s.place[lane]
        f.status[lane] = out.status[first + place] = 1
        out.value[first + place] = d.known_value[place]
        for i in range(d.n_par):
            out.theta[(first + place) * d.n_par + i] = d.known[place * d.n_par + i]


cdef void write_coefficients(const Batch* d, Lanes* s, Fates* f, const Outcome* out, const double* shift,
                             Py_ssize_t stride, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """Variance, coefficients and standard errors of a block, but those of searches that go on.

    shift: what was taken from each response, `stride` apart (own designs: coefficients taken out of it, lane by lane).
    """
    cdef Py_ssize_t p = d.p, k = p + 1, i, j, l, lane, at
    cdef vecu* inverse = <vecu*> s.f.gls.inverse
    cdef vecu* x_map = <vecu*> s.x_map
    cdef vec sigma2, value, error, t
    sigma2 = (<vecu*> s.f.gls.r2)[0] * f.size * f.size * (VEC_SET(1.0) / (<vecu*> s.f.gls.nu)[0])
    for lane in range(count):
        if f.status[lane] != GOES_ON:
            out.sigma2[first + s.place[lane]] = (<double*> &sigma2)[lane]
    for i in range(d.p_full):
        value = VEC_SET(0.0)
        for j in range(p):
            value = value + x_map[i * p + j] * ((<vecu*> s.beta)[j] - f.size * (<vecu*> s.f.gls.b)[j])
        error = VEC_SET(0.0)
        for j in range(p):
            t = VEC_SET(0.0)
            for l in range(j + 1):
                t = t + inverse[j * k + l] * x_map[i * p + l]
            error = error + t * t
        error = VEC_SQRT(error * sigma2)
        for lane in range(count):
            if f.status[lane] == GOES_ON:
                continue
            at = (first + s.place[lane]) * d.p_full + i
            out.params[at] = (<double*> &value)[lane]
            if s.own != NULL:
                out.params[at] += shift[lane * stride + i]
            elif d.centre and d.spread == NULL:
                out.params[at] += shift[s.place[lane] * stride] * d.ones[i]
            out.bse[at] = (<double*> &error)[lane]
        if out.df == NULL:
            continue
        degrees_of_freedom(d, s, x_map + i * p, &value)
        for lane in range(count):
            if f.status[lane] != GOES_ON:
                out.df[(first + s.place[lane]) * d.p_full + i] = (<double*> &value)[lane]


include "axes.pxi"
include "regular.pxi"
include "screen.pxi"
include "sums.pxi"


cdef void settle_lanes(const Batch* d, Lanes* s, Fates* f, Py_ssize_t limit) noexcept nogil:
    """Search from s.theta; theta of what has been found, or of where to go on, to s.natural."""
    cdef Py_ssize_t lane, i
    cdef vec changed
    minimize_lanes(d, s, limit, &f.finished, &f.decrement, f.evaluations)
    f.value = (<vecu*> s.f.gls.value)[0]
    for i in range(d.n_par):
        (<vecu*> s.after)[i] = (<vecu*> s.trial)[i]
    changed = snap(d, s)
    changed = VEC_WHERE_POSITIVE(f.finished, changed, VEC_SET(-1.0))
    changed = VEC_WHERE_POSITIVE(s.arrived, VEC_SET(-1.0), changed)
    if vec_max(<vecu*> &changed) > 0.0:
        judge_snapped(d, s, f, changed)
    for lane in range(LANES):
        natural_theta(d, s, s.trial if (<double*> &f.finished)[lane] > 0.0 else s.after, lane, s.natural + lane)


cdef inline bint waits(const Batch* d, const Outcome* out, Py_ssize_t at) noexcept nogil:
    """Whether a response is still to be screened."""
    return out.chosen != NULL and out.chosen[at * (d.screen.limit + d.screen.spread)] == WAITS


cdef void find_places(const Batch* d, const Outcome* out, Py_ssize_t first, Py_ssize_t n_responses, int round_, Lanes* s,
                      Py_ssize_t* at) noexcept nogil:
    """The next responses of a round from position `at` on: all, then those whose searches have not ended, or that wait."""
    cdef Py_ssize_t lane
    s.used = 0
    while s.used < LANES and at[0] < n_responses:
        if round_ == 0 or (waits(d, out, at[0]) if round_ == ROUNDS else out.status[first + at[0]] == GOES_ON):
            s.place[s.used] = at[0]
            s.used += 1
        at[0] += 1
    for lane in range(s.used if s.used > 0 else LANES, LANES):
        s.place[lane] = s.place[s.used - 1]


cdef void fit_places(const Batch* d, Lanes* s, const Outcome* out, Fates* f, const double* shift, Py_ssize_t stride,
                     Py_ssize_t first, int round_) noexcept nogil:
    """Fit the responses at s.place; those whose searches are to go on get the status GOES_ON unless it is the last round.

    shift: what was taken from each response, `stride` apart.
    """
    cdef Py_ssize_t lane, i
    cdef bint last = round_ == ROUNDS - 1, some
    s.f.chain.axes = NULL
    if round_ == 0:
        first_theta(d, s)
    else:
        for lane in range(LANES):
            f.evaluations[lane] = out.evaluations[first + s.place[lane]]
            for i in range(d.n_par):
                s.theta[i * LANES + lane] = out.theta[(first + s.place[lane]) * d.n_par + i]
        if can_turn(d):
            turn_all(d, s)
    s.known = NULL
    if d.known != NULL:
        turn_known(d, s, d.known)
        for lane in range(LANES):
            (<double*> &s.known_value)[lane] = (
                d.known_value[s.place[lane]] - d.criterion_offset - d.nu * log((<double*> &f.total)[lane] / d.n))
    settle_lanes(d, s, f, d.max_iterations if last else min(d.max_iterations, ROUND_LENGTH))
    write_searches(d, s, f, out, first, s.used)
    if s.known != NULL:
        write_arrivals(d, s, f, out, first)
    for lane in range(s.used if not last else 0):
        if f.status[lane] == 0 and out.decrement[first + s.place[lane]] < INFINITY:
            out.status[first + s.place[lane]] = GOES_ON
    if not out.brief:
        write_coefficients(d, s, f, out, shift, stride, first, s.used)
    tell_boundary(d, s, out, s.used)
    some = out.chosen != NULL and let_wait(d, s, f, out, s.used)
    # the few that are screened where regular data are not are so by themselves, although they are read again for it
    if out.values != NULL or some and not d.screen.of_regular:
        screen_responses(d, s, f, out, s.used)


cdef void screen_places(const Batch* d, Lanes* s, const Outcome* out, Fates* f, Py_ssize_t first) noexcept nogil:
    """Screen the responses at s.place, all of which wait, at the minimum that is known."""
    cdef Py_ssize_t lane, i
    s.f.chain.axes = NULL
    for lane in range(LANES):
        f.status[lane] = out.status[first + s.place[lane]]
        for i in range(d.n_par):
            s.theta[i * LANES + lane] = s.natural[i * LANES + lane] = out.theta[(first + s.place[lane]) * d.n_par + i]
    set_factor(d, s, <vecu*> s.theta)
    evaluate_responses(d, s, 1)
    screen_responses(d, s, f, out, s.used)


cdef void batch_fit(
    const Batch* d, const double* Y, Py_ssize_t stride, Py_ssize_t n_responses, Py_ssize_t first, const Outcome* out,
    double* work,
) noexcept nogil:
    """Fit n_responses rows of Y (see scores.pxi where they are scores, and sums.pxi where they are sums); results go to
    rows first, first + 1, ... of the outcome (see also Outcome.rows)."""
    cdef Lanes s
    cdef Fates f
    cdef Arena arena = Arena(work, 0)
    cdef Py_ssize_t at, lane, i
    cdef const double* shift = Y + (stride - 1 if d.summed else d.anchor)
    cdef int round_
    lay_lanes(d, &s, &arena)
    (<vecu*> s.f.gls.nu)[0] = VEC_SET(d.nu)
    for i in range(d.p_full * d.p):
        (<vecu*> s.x_map)[i] = VEC_SET(d.x_map[i])
    # lanes that need long would keep the others waiting: they go on together
    for round_ in range(ROUNDS + 1 if out.rows == NULL else 1):
        at = 0
        while at < n_responses:
            find_places(d, out, first, n_responses, round_, &s, &at)
            if s.used == 0:
                break
            if d.summed:
                read_sums(d, &s, Y, stride, &f.total)
            elif d.spread != NULL:
                read_scores(d, &s, Y, stride, &f.total)
            else:
                read_responses(d, &s, Y, stride, &f.total)
            set_aside(d, &s, &f)
            f.size = VEC_SQRT(f.total * (1.0 / <double> d.n))
            rescale_responses(d, &s, &f.size)
            if out.rows == NULL:
                if round_ < ROUNDS:
                    fit_places(d, &s, out, &f, shift, stride, first, round_)
                else:
                    screen_places(d, &s, out, &f, first)
                continue
            s.f.chain.axes = NULL
            for lane in range(LANES):
                for i in range(d.n_par):
                    s.theta[i * LANES + lane] = out.theta[(first + s.place[lane]) * d.n_par + i]
            set_factor(d, &s, <vecu*> s.theta)
            evaluate_responses(d, &s, 2)
            if out.params != NULL:
                write_coefficients(d, &s, &f, out, shift, stride, first, s.used)
            write_contrasts(d, &s, out, first, s.used)


offered.batch_size = &batch_size
offered.batch_fit = &batch_fit
