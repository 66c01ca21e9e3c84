# The search of many responses: Newton's steps in lockstep, each lane within a trust region of its own.
#
# H is factored as L D L'; where a pivot is not positive its size stands for it.  A lane that has converged repeats its
# last point.  What the columns of L do at the boundary, and in which axes they are taken, stands in axes.pxi.


cdef inline void solve_step(Py_ssize_t n, const vecu* hess, const vecu* grad, vecu* L, vecu* d, vecu* step,
                            vec* decrement, vec* definite) noexcept nogil:
    """step = -H^-1 g by a modified L D L'; pivots that are not positive are replaced by their size.

    decrement: sqrt(g'H^-1 g); definite: positive where no pivot was modified.  Overwrites L (n, n) and d (2 n,).
    """
    cdef Py_ssize_t i, j, l
    cdef vecu* z = d + n
    cdef vec t, largest, floor, total, one
    one = VEC_SET(1.0)
    largest = VEC_SET(0.0)
    definite[0] = one
    total = VEC_SET(0.0)
    for i in range(n):
        t = VEC_ABS(hess[i * n + i])
        largest = VEC_WHERE_POSITIVE(t - largest, t, largest)
    floor = 1e-9 * largest + 1e-300
    for j in range(n):
        t = hess[j * n + j]
        for l in range(j):
            t = t - L[j * n + l] * L[j * n + l] * d[l]
        definite[0] = VEC_WHERE_POSITIVE(t - floor, definite[0], VEC_SET(-1.0))
        t = VEC_ABS(t)
        t = VEC_WHERE_POSITIVE(t - floor, t, floor)
        d[j] = t
        for i in range(j + 1, n):
            t = hess[i * n + j]
            for l in range(j):
                t = t - L[i * n + l] * L[j * n + l] * d[l]
            L[i * n + j] = t / d[j]
        t = grad[j]
        for l in range(j):
            t = t - L[j * n + l] * z[l]
        z[j] = t
        total = total + t * t / d[j]
    for i in range(n - 1, -1, -1):
        t = VEC_SET(0.0) - z[i] / d[i]
        for l in range(i + 1, n):
            t = t - L[l * n + i] * step[l]
        step[i] = t
    decrement[0] = VEC_SQRT(total)


cdef void newton_step(Py_ssize_t n, const vecu* hess, const vecu* grad, vecu* L, vecu* d, vecu* step, vec* decrement,
                      vec* definite) noexcept nogil:
    """`solve_step` with constant sizes for one effect, and two correlated ones."""
    if n == 1:
        solve_step(1, hess, grad, L, d, step, decrement, definite)
    elif n == 3:
        solve_step(3, hess, grad, L, d, step, decrement, definite)
    else:
        solve_step(n, hess, grad, L, d, step, decrement, definite)


cdef void set_factor(const Batch* d, Lanes* s, const vecu* theta) noexcept nogil:
    cdef Py_ssize_t i, a
    cdef vecu* F = <vecu*> s.f.factor
    cdef vecu* B = <vecu*> s.f.chain.axes
    for i in range(d.q * d.q):
        F[i] = VEC_SET(0.0)
    for i in range(d.n_par):
        if B == NULL:
            F[d.row[i] * d.q + d.col[i]] = theta[i]
            continue
        for a in range(d.q):
            F[a * d.q + d.col[i]] = F[a * d.q + d.col[i]] + B[a * d.q + d.row[i]] * theta[i]


# Where the searches of the lanes are.
cdef struct March:
    vec value       # at theta
    vec radius      # of the next step
    vec done        # positive where a search has ended
    vec decrement   # at theta


cdef double CLOSE_BY = 0.5, FORETOLD = 0.1
"""Decrement up to which the fall of the criterion is foretold, and by which share of it that may be wrong."""

cdef double PLAY_OF_VALUES = 1e-9
"""Rounding error of the difference of two values of a criterion."""


cdef inline vec foretold(const Batch* d, const Lanes* s, vec value, vec decrement, vec definite,
                         const vecu* step) noexcept nogil:
    """Positive where a Newton step from s.trial leads to the minimum that is known, by its value and its place.

    The criterion is to fall by half the square of the decrement, and what is left of the way, measured by the Hessian,
    is to be a small part of the step.  Columns of theta count up to their signs.
    """
    cdef Py_ssize_t n = d.n_par, i, j, at
    cdef const vecu* trial = <const vecu*> s.trial
    cdef const vecu* known = <const vecu*> s.known
    cdef const vecu* hess = <const vecu*> s.f.hess
    cdef vecu* left = <vecu*> s.f.g
    cdef vec fall, above, out, total, minus
    minus = VEC_SET(-1.0)
    fall = 0.5 * decrement * decrement
    above = value - s.known_value
    out = VEC_WHERE_POSITIVE(VEC_SET(CLOSE_BY) - decrement, definite, minus)
    out = VEC_WHERE_POSITIVE(above + PLAY_OF_VALUES, out, minus)
    out = VEC_WHERE_POSITIVE(FORETOLD * fall + PLAY_OF_VALUES - VEC_ABS(above - fall), out, minus)
    if not vec_max(<const vecu*> &out) > 0.0:
        return out
    total = VEC_SET(0.0)
    for i in range(n):
        at = i
        for j in range(n):
            if d.row[j] == d.col[i] and d.col[j] == d.col[i]:
                at = j
        above = trial[at] + step[at]
        left[i] = trial[i] + step[i] - VEC_WHERE_POSITIVE(above, known[i], VEC_SET(0.0) - known[i])
    for i in range(n):
        for j in range(n):
            total = total + left[i] * left[j] * hess[i * n + j]
    return VEC_WHERE_POSITIVE(FORETOLD * fall + PLAY_OF_VALUES - total, out, minus)


cdef void begin_march(const Batch* d, Lanes* s, March* m) noexcept nogil:
    """Start from s.theta."""
    cdef Py_ssize_t n = d.n_par, i
    cdef vecu* theta = <vecu*> s.theta
    cdef vec norm
    m.value = VEC_SET(1e300) * 1e300
    m.radius = VEC_SET(1.0)
    if s.reach > 0.0:
        norm = VEC_SET(0.0)
        for i in range(n):
            norm = norm + theta[i] * theta[i]
        norm = s.reach * VEC_SQRT(norm)
        m.radius = VEC_WHERE_POSITIVE(norm - m.radius, norm, m.radius)
    m.done = VEC_SET(-1.0)
    s.arrived = VEC_SET(-1.0)
    m.decrement = VEC_SET(1e300)
    for i in range(n):
        (<vecu*> s.trial)[i] = theta[i]
        (<vecu*> s.step)[i] = VEC_SET(0.0)


cdef void advance(const Batch* d, Lanes* s, March* m, vec young, int* evaluations) noexcept nogil:
    """Evaluate at s.trial, and set the next one; `young`: positive where columns may be set to zero.

    Where a search has ended, s.trial is s.theta.
    """
    cdef Py_ssize_t n = d.n_par, i, lane
    cdef vecu* theta = <vecu*> s.theta
    cdef vecu* trial = <vecu*> s.trial
    cdef vecu* step = <vecu*> s.step
    cdef vecu* L = <vecu*> s.small
    cdef vecu* fresh = <vecu*> s.f.work
    cdef vec accept, decrement, definite, norm, t, f_value, one, minus, shrink, near, settled
    one = VEC_SET(1.0)
    minus = VEC_SET(-1.0)
    set_factor(d, s, trial)
    evaluate_responses(d, s, 2)
    f_value = (<vecu*> s.f.gls.value)[0]
    newton_step(n, <vecu*> s.f.hess, <vecu*> s.f.grad, L, L + n * n, fresh, &decrement, &definite)
    # accept what does not raise the criterion beyond rounding; the first point if it is finite
    t = m.value + 10.0 * (<vecu*> s.f.gls.noise)[0] - f_value
    accept = VEC_WHERE_POSITIVE(t, one, minus)
    accept = VEC_WHERE_POSITIVE(m.done, minus, accept)
    near = VEC_WHERE_POSITIVE(VEC_SET(d.tolerance) - decrement, one, minus)
    # below 1e-5 a decrement that no longer falls has met the rounding error of the gradient
    settled = VEC_WHERE_POSITIVE(VEC_SET(1e-5) - decrement, one, minus)
    settled = VEC_WHERE_POSITIVE(decrement - 0.5 * m.decrement, settled, minus)
    near = VEC_WHERE_POSITIVE(settled, one, near)
    near = VEC_WHERE_POSITIVE(definite, near, minus)
    near = VEC_WHERE_POSITIVE(accept, near, minus)
    if s.known != NULL:
        t = VEC_WHERE_POSITIVE(accept, foretold(d, s, f_value, decrement, definite, fresh), minus)
        s.arrived = VEC_WHERE_POSITIVE(t, one, s.arrived)
        near = VEC_WHERE_POSITIVE(t, one, near)
    t = VEC_WHERE_POSITIVE(definite, minus, accept)
    if vec_max(<vecu*> &t) > 0.0:
        raise_columns(d, s, trial, t, fresh, &decrement)
    norm = VEC_SET(0.0)
    for i in range(n):
        theta[i] = VEC_WHERE_POSITIVE(accept, trial[i], theta[i])
        norm = norm + fresh[i] * fresh[i]
    norm = VEC_SQRT(norm)
    m.value = VEC_WHERE_POSITIVE(accept, f_value, m.value)
    m.decrement = VEC_WHERE_POSITIVE(accept, decrement, m.decrement)
    t = m.radius / (norm + 1e-300)
    shrink = VEC_WHERE_POSITIVE(t - one, one, t)
    for i in range(n):
        step[i] = VEC_WHERE_POSITIVE(accept, fresh[i] * shrink, 0.25 * step[i])
    # after a rejected step the next radius is a quarter of it; after an accepted one it may grow
    m.radius = VEC_WHERE_POSITIVE(accept, 2.0 * m.radius, 0.25 * m.radius)
    for lane in range(LANES):
        if (<double*> &m.done)[lane] < 0.0:
            evaluations[lane] += 1
    m.done = VEC_WHERE_POSITIVE(near, one, m.done)
    for i in range(n):
        trial[i] = VEC_WHERE_POSITIVE(m.done, theta[i], theta[i] + step[i])
    accept = VEC_WHERE_POSITIVE(m.done, minus, VEC_WHERE_POSITIVE(young, accept, minus))
    if vec_max(<vecu*> &accept) > 0.0:
        drop_columns(d, s, theta, trial, step, accept)


cdef void minimize_lanes(const Batch* d, Lanes* s, Py_ssize_t limit, vec* finished, vec* decrement_out, int* evaluations
                         ) noexcept nogil:
    """Newton in lockstep from s.theta, up to `limit` times; leaves the evaluation at s.theta in s.f
    where it has ended."""
    cdef Py_ssize_t iteration, lane, ended
    cdef March m
    begin_march(d, s, &m)
    for iteration in range(limit):
        advance(d, s, &m, VEC_SET(1.0 if iteration < SNAPPED_BEFORE else -1.0), evaluations)
        ended = 0
        for lane in range(LANES):
            if (<double*> &m.done)[lane] > 0.0:
                ended += 1
        if ended == LANES:
            break
    finished[0] = m.done
    decrement_out[0] = m.decrement
