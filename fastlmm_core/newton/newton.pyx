# cython: language_level=3
"""Trust-region Newton with exact Hessians, for criteria of a few dozen parameters.

Each step minimises the quadratic model within a ball by the eigendecomposition of the Hessian
(Conn, Gould and Toint 2000, sec. 7.3; the hard case is taken along the lowest eigenvector), so
a saddle point is left along its negative curvature even where the gradient is zero.

The measure of convergence is free of scale: the decrement

    sqrt(sum_i (q_i'g)^2 / |w_i|)      (w_i, q_i: eigenvalues and eigenvectors of the Hessian)

is the distance to the optimum in units of the criterion: half its square is the decrease still to be had.
"""
from libc.math cimport fabs, hypot, isfinite, sqrt, INFINITY
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from libc.time cimport time, time_t

from cpython.exc cimport PyErr_CheckSignals, PyErr_Occurred

import numpy as np

from fastlmm_core.kernels._matrices cimport jacobi, place
from fastlmm_core.small.arena cimport Arena, furnish, take

cdef Py_ssize_t SWEEPS_UP_TO = 16
"""Parameters up to which Jacobi's sweeps are faster than a tridiagonal form."""

cdef double ROUNDED = 1e-11
"""Share of the value below which a change of it does not speak against a Newton step that the gradient speaks for."""


cdef int failed() noexcept nogil:
    """Status of an evaluation that was not finished: RAISED where an exception is set,
    -1 where x is outside the domain."""
    with gil:
        return RAISED if PyErr_Occurred() != NULL else -1


cdef int reraise() except -1:
    """Raise the exception that an evaluation left set."""
    return -1


cdef class Objective:
    """A function of n_par parameters with value, gradient and Hessian."""

    cdef int evaluate_(self, const double* x, int order) noexcept nogil:
        """Fill value_, and grad_ (order >= 1), hess_ (order >= 2).

        Returns 0, -1 where x is outside the domain, or RAISED.
        """
        return -1

    @property
    def costly(self):
        """Whether the search for other minima than a certified one takes too long."""
        return False

    @property
    def remainder(self):
        """r^2 relative to y'y at the last point, where it may be lost in rounding errors; 1 elsewhere."""
        return 1.0

    @property
    def averaged(self):
        """Whether `hess_` is an approximation, as exact second derivatives of so many effects take too long."""
        return self.approximate

    @property
    def serial(self):
        """Whether an evaluation calls BLAS for matrices so small that its threads cost more than they gain."""
        return False

    def evaluate(self, theta, int order=0):
        """Evaluate at theta.

        Parameters
        ----------
        theta : (n_par,) array
        order : {0, 1, 2}
            Highest derivative wanted.

        Returns
        -------
        value : float
            Infinite where the criterion is not defined.
        gradient : (n_par,) array or None
        hessian : (n_par, n_par) array or None
            Exact unless the criterion was asked for an approximation.

        Raises
        ------
        ValueError
            For a theta of another length.
        """
        cdef double[::1] x = np.array(theta, dtype=float)
        cdef int status
        cdef Py_ssize_t n = self.n_par
        if x.shape[0] != n:
            raise ValueError(f"theta has {x.shape[0]} elements, the model has {n}")
        with nogil:
            status = self.evaluate_(&x[0] if n > 0 else NULL, order)
        if status == RAISED:
            reraise()
        if status != 0:
            return (np.inf, np.zeros(n) if order >= 1 else None, np.eye(n) if order >= 2 else None)
        return (
            self.value_,
            vector(self.grad_, n) if order >= 1 else None,
            square(self.hess_, n) if order >= 2 else None,
        )


cdef object square(const double* values, Py_ssize_t n, Py_ssize_t step=1):
    """A new (n, n) array of the values, `step` apart."""
    out_array = np.empty((n, n))
    cdef double* out = <double*> place(out_array)
    cdef Py_ssize_t i
    for i in range(n * n):
        out[i] = values[i * step]
    return out_array


cdef object vector(const double* values, Py_ssize_t n, Py_ssize_t step=1):
    """A new array of n of the values, `step` apart."""
    out_array = np.empty(n)
    cdef double* out = <double*> place(out_array)
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = values[i * step]
    return out_array


include "eigen.pxi"


cdef double spectrum(Objective f, const double* correction, double* work, double* Q, double* w, double* c
                     ) noexcept nogil:
    """Eigendecomposition of the Hessian plus `correction` (unless NULL), c = Q'g at the current point;
    the decrement."""
    cdef Py_ssize_t n = f.n_par, i, j
    cdef double floor = 0.0, total = 0.0, size
    memcpy(work, f.hess_, n * n * sizeof(double))
    if correction != NULL:
        for i in range(n * n):
            work[i] += correction[i]
    eigen(n, work, Q, w)
    for i in range(n):
        if fabs(w[i]) > floor:
            floor = fabs(w[i])
    floor = 1e-12 * floor
    for i in range(n):
        c[i] = 0.0
        for j in range(n):
            c[i] += Q[j * n + i] * f.grad_[j]
        size = fabs(w[i])
        if size < floor:
            size = floor
        if c[i] != 0.0:
            total += c[i] * c[i] / size
    return sqrt(total)


cdef double ball_step(Py_ssize_t n, const double* Q, const double* w, const double* c, double radius,
                      double* coefs, double* step, bint* inside) noexcept nogil:
    """Minimise c's + s'diag(w)s/2 over |s| <= radius; returns the predicted decrease, step = Q s."""
    cdef Py_ssize_t i, j, lowest = 0, it
    cdef double low, high, lam, norm, derivative, gain, largest = 0.0
    for i in range(n):
        if w[i] < w[lowest]:
            lowest = i
        if fabs(w[i]) > largest:
            largest = fabs(w[i])
    inside[0] = False
    if w[lowest] > 1e-13 * largest:
        norm = 0.0
        for i in range(n):
            coefs[i] = -c[i] / w[i]
            norm += coefs[i] * coefs[i]
        inside[0] = norm <= radius * radius
    if not inside[0]:
        # |s(lam)| falls from the pole at -w_min; bracket, then Newton on 1/|s| (secular equation)
        low = -w[lowest] if w[lowest] < 0.0 else 0.0
        norm = 0.0
        for i in range(n):
            norm += c[i] * c[i]
        high = low + sqrt(norm) / radius + largest + 1e-300
        lam = low + 1e-3 * (high - low)
        for it in range(200):
            norm = 0.0
            derivative = 0.0
            for i in range(n):
                if c[i] != 0.0:
                    norm += (c[i] / (w[i] + lam)) ** 2
                    derivative += c[i] * c[i] / (w[i] + lam) ** 3
            norm = sqrt(norm)
            if norm > radius:
                low = lam
            else:
                high = lam
            if fabs(norm - radius) <= 1e-3 * radius or high - low <= 1e-15 * (fabs(high) + fabs(w[lowest])):
                break
            if derivative > 0.0 and norm > 0.0:
                lam = lam + (norm - radius) / radius * (norm * norm / derivative)
            if not (low < lam < high):
                lam = 0.5 * (low + high)
        norm = 0.0
        for i in range(n):
            coefs[i] = -c[i] / (w[i] + lam) if c[i] != 0.0 else 0.0
            norm += coefs[i] * coefs[i]
        if w[lowest] < 0.0 and norm < 0.99 * radius * radius:
            # hard case: the gradient has no part along the lowest eigenvector
            coefs[lowest] += sqrt(radius * radius - norm) * (-1.0 if c[lowest] > 0.0 else 1.0)
    gain = 0.0
    for i in range(n):
        gain -= c[i] * coefs[i] + 0.5 * w[i] * coefs[i] * coefs[i]
    for j in range(n):
        step[j] = 0.0
        for i in range(n):
            step[j] += Q[j * n + i] * coefs[i]
    return gain


cdef void learn(Py_ssize_t n, const double* step, const double* gradient, const double* hessian, Objective f,
                double* v, double* r, double* correction) noexcept nogil:
    """Correct an approximate Hessian by what it missed on an accepted step from (gradient, hessian) to the point of f.

    The least change, in the metric of the Hessian itself, by which (H_0 + H_1) / 2 + correction takes the step to the
    change of the gradient (Dennis and Schnabel 1983, sec. 9.3).
    """
    cdef Py_ssize_t i, j
    cdef double sv = 0.0, sr = 0.0
    for i in range(n):
        v[i] = 0.0
        r[i] = f.grad_[i] - gradient[i]
        for j in range(n):
            v[i] += 0.5 * (hessian[i * n + j] + f.hess_[i * n + j]) * step[j]
            r[i] -= correction[i * n + j] * step[j]
        r[i] -= v[i]
        sv += step[i] * v[i]
        sr += step[i] * r[i]
    if not sv > 0.0:
        return
    for i in range(n):
        for j in range(n):
            correction[i * n + j] += (r[i] * v[j] + v[i] * r[j] - sr / sv * v[i] * v[j]) / sv


# State of a minimisation.
cdef struct Search:
    Py_ssize_t n
    double* x           # (n,) the best point
    double* Q           # (n, n) eigenvectors of the Hessian there, and its eigenvalues
    double* w
    double* c           # (n,) Q'g
    double* coefs
    double* step        # (n,) the last step, and the point to which it leads
    double* trial
    double* gradient    # (n,), (n, n) at x, where the Hessian is approximate
    double* hessian
    double* correction  # (n, n) what it has been found to lack; NULL where it is exact
    double* work        # (n, n)
    double value, decrement, radius
    double norm, ratio  # of the last step: its length, and decrease beside the predicted one
    bint inside         # whether the last step was Newton's own
    bint stuck          # whether nothing but rounding error is left
    int status          # of the last evaluation


cdef void lay_search(Search* s, bint approximate, Arena* arena) noexcept nogil:
    cdef Py_ssize_t n = s.n
    s.x = take(arena, n)
    s.work = take(arena, n * n)
    s.Q = take(arena, n * n)
    s.w = take(arena, n)
    s.c = take(arena, n)
    s.coefs = take(arena, n)
    s.step = take(arena, n)
    s.trial = take(arena, n)
    s.correction = NULL
    if approximate:
        s.gradient = take(arena, n)
        s.hessian = take(arena, n * n)
        s.correction = take(arena, n * n)


cdef inline void extremes(Py_ssize_t n, const double* w, double* smallest, double* largest) noexcept nogil:
    """Smallest eigenvalue and largest absolute one."""
    cdef Py_ssize_t i
    largest[0] = 0.0
    smallest[0] = INFINITY
    for i in range(n):
        largest[0] = max(largest[0], fabs(w[i]))
        smallest[0] = min(smallest[0], w[i])


cdef bint propose(Objective f, Search* s) noexcept nogil:
    """Step to the minimum of the model within the ball, and whether to accept it."""
    cdef Py_ssize_t i
    cdef double gain, noise, change, before
    cdef bint accept, level
    gain = ball_step(s.n, s.Q, s.w, s.c, s.radius, s.coefs, s.step, &s.inside)
    s.norm = 0.0
    for i in range(s.n):
        s.trial[i] = s.x[i] + s.step[i]
        s.norm += s.step[i] * s.step[i]
    s.norm = sqrt(s.norm)
    s.status = f.evaluate_(s.trial, 0 if f.staged else 2)
    noise = 10.0 * f.noise_
    if s.inside:
        # cross-products of columns far from zero may lose more than sums of so many terms do
        noise = max(noise, ROUNDED * fabs(s.value))
    change = s.value - f.value_ if s.status == 0 else -INFINITY
    s.ratio = change / gain if gain > 0.0 else -1.0
    accept = s.ratio > 1e-4
    level = fabs(change) <= noise and gain <= noise
    if f.staged and s.status == 0 and (accept or level):
        s.status = f.evaluate_(s.trial, 2)
        accept = accept and s.status == 0
    if s.status == 0 and not accept and level:
        # below the rounding error of the value only the gradient can judge
        before = s.decrement
        s.decrement = spectrum(f, s.correction, s.work, s.Q, s.w, s.c)
        accept = s.decrement < 0.5 * before
        s.stuck = not accept
        s.ratio = 1.0
    return accept


cdef void remember(Objective f, Search* s) noexcept nogil:
    """Derivatives at the point of f, by which an approximate Hessian is corrected after the next step."""
    if s.correction != NULL:
        memcpy(s.gradient, f.grad_, s.n * sizeof(double))
        memcpy(s.hessian, f.hess_, s.n * s.n * sizeof(double))


cdef void move(Objective f, Search* s) noexcept nogil:
    """To the point of an accepted step."""
    cdef Py_ssize_t i, n = s.n
    cdef double smallest, largest
    s.value = f.value_
    for i in range(n):
        s.x[i] = s.trial[i]
    if s.correction != NULL:
        # a long step tells more of the third derivatives than of what the Hessian lacks
        if s.inside and s.decrement <= 1.0:
            learn(n, s.step, s.gradient, s.hessian, f, s.work, s.Q, s.correction)
        else:
            memset(s.correction, 0, n * n * sizeof(double))
        remember(f, s)
    s.decrement = spectrum(f, s.correction, s.work, s.Q, s.w, s.c)
    extremes(n, s.w, &smallest, &largest)
    if s.correction != NULL and smallest <= 0.0:
        memset(s.correction, 0, n * n * sizeof(double))
        s.decrement = spectrum(f, s.correction, s.work, s.Q, s.w, s.c)


cdef void widen(Search* s) noexcept nogil:
    """The radius after an accepted step."""
    if s.ratio > 0.75 and not s.inside:
        s.radius = max(s.radius, 2.0 * s.norm)
        if s.ratio > 0.95:
            s.radius = 2.0 * s.radius
    elif s.ratio < 0.25:
        s.radius = 0.5 * s.norm


cdef bint shrink(Search* s) noexcept nogil:
    """The radius after a step that was not accepted (Q, w and c still belong to x), and whether this is the end."""
    cdef Py_ssize_t i
    cdef double largest = 0.0
    s.radius = 0.25 * s.norm
    for i in range(s.n):
        largest = max(largest, fabs(s.x[i]))
    return s.stuck or s.radius <= 1e-14 * (1.0 + largest)


cdef inline void note_point(const Search* s, double* trace) noexcept nogil:
    """Value, decrement and radius at an accepted point."""
    trace[0], trace[1], trace[2] = s.value, s.decrement, s.radius


def minimize_newton(Objective f, start, double tolerance=1e-8, Py_ssize_t max_iterations=200, double radius=1.0):
    """Minimise `f` from `start`.

    Parameters
    ----------
    f : Objective
    start : (n_par,) array
    tolerance : float
        Decrement (square root of twice the expected decrease) at which to stop.
    max_iterations : int
    radius : float
        First radius of the trust region.

    Returns
    -------
    x, gradient, hessian : arrays
    value, decrement : float
    lowest : float
        Smallest eigenvalue of the Hessian divided by the largest absolute one.
    n_evaluations : int
    trace : tuple of tuples
        Value, decrement and radius at each accepted point.
    finished : bool
        False where the limit on iterations ended the search.
    radius : float
        Of the trust region at the end, with which a search from there goes on.
    """
    cdef Py_ssize_t n = f.n_par, iteration, n_evaluations = 1, accepted = 0, i
    cdef double smallest = INFINITY, largest = 0.0
    cdef bint finished = False, defined
    cdef Search s
    cdef Arena arena = Arena(NULL, 0)
    cdef time_t asked = time(NULL)
    cdef double* trace
    # a typed view would take as long as an evaluation of few groups
    start = np.ascontiguousarray(start, dtype=float)
    if len(start) != n:
        raise ValueError(f"the start has {len(start)} elements, the function has {n}")
    s.n = n
    s.radius = radius
    s.stuck = False
    lay_search(&s, f.approximate, &arena)
    take(&arena, 3 * (max(max_iterations, 0) + 1))
    cdef double* memory = furnish(&arena)
    if memory == NULL:
        raise MemoryError()
    lay_search(&s, f.approximate, &arena)
    trace = take(&arena, 3 * (max(max_iterations, 0) + 1))
    memcpy(s.x, place(start), n * sizeof(double))
    # other threads run while this one minimises; about once a second it asks whether the user has lost patience
    try:
        with nogil:
            s.status = f.evaluate_(s.x, 2)
            defined = s.status == 0
            if defined:
                s.value = f.value_
                remember(f, &s)
                s.decrement = spectrum(f, s.correction, s.work, s.Q, s.w, s.c)
                note_point(&s, trace)
                accepted = 1
            for iteration in range(max_iterations if defined else 0):
                extremes(n, s.w, &smallest, &largest)
                if s.decrement <= tolerance and smallest >= -1e-9 * largest:
                    finished = True
                    break
                if time(NULL) != asked:
                    asked = time(NULL)
                    with gil:
                        PyErr_CheckSignals()
                n_evaluations += 1
                if propose(f, &s):
                    move(f, &s)
                    note_point(&s, trace + 3 * accepted)
                    accepted += 1
                    widen(&s)
                elif s.status == RAISED:
                    break
                elif shrink(&s):
                    finished = True
                    break
            if defined and s.status != RAISED:
                s.status = f.evaluate_(s.x, 2)
                if s.correction != NULL or s.stuck:
                    s.decrement = spectrum(f, NULL, s.work, s.Q, s.w, s.c)
            extremes(n if defined else 0, s.w, &smallest, &largest)
        if s.status == RAISED:
            reraise()
        if not defined:
            raise FloatingPointError("the criterion is not finite at the start")
        return (
            vector(s.x, n), vector(f.grad_, n), square(f.hess_, n), s.value, s.decrement,
            smallest / largest if largest > 0.0 else 0.0, n_evaluations,
            tuple([(trace[3 * i], trace[3 * i + 1], trace[3 * i + 2]) for i in range(accepted)]), finished,
            s.radius,
        )
    finally:
        free(memory)
