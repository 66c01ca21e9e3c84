# cython: language_level=3
"""Trust-region Newton with exact Hessians, for criteria of a few dozen parameters.

Each step minimises the quadratic model within a ball by the eigendecomposition of the Hessian
(Conn, Gould and Toint 2000, sec. 7.3; the hard case is taken along the lowest eigenvector), so
a saddle point is left along its negative curvature even where the gradient is zero.

The measure of convergence is free of scale: the decrement

    sqrt(sum_i (q_i'g)^2 / |w_i|)      (w_i, q_i: eigenvalues and eigenvectors of the Hessian)

is the distance to the optimum in units of the criterion: half its square is the decrease still to be had.
"""
from libc.math cimport fabs, isfinite, sqrt, INFINITY
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import numpy as np

from fastlmm_core._algebra cimport jacobi


cdef class Objective:
    """A function of n_par parameters with value, gradient and Hessian."""

    cdef int evaluate_(self, const double* x, int order) noexcept nogil:
        """Fill value_, and grad_ (order >= 1), hess_ (order >= 2); return 0, or -1 where x is outside the domain."""
        return -1


cdef object vector(const double* values, Py_ssize_t n, Py_ssize_t step=1):
    """A new array of n of the values, `step` apart."""
    out_array = np.empty(n)
    cdef double[::1] out = out_array
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = values[i * step]
    return out_array


cdef double spectrum(Objective f, double* work, double* Q, double* w, double* c) noexcept nogil:
    """Eigendecomposition of the Hessian and c = Q'g at the current point; returns the decrement."""
    cdef Py_ssize_t n = f.n_par, i, j
    cdef double floor = 0.0, total = 0.0, size
    memcpy(work, f.hess_, n * n * sizeof(double))
    jacobi(n, work, Q, w)
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


def minimize_newton(Objective f, const double[::1] start, double tolerance=1e-8, Py_ssize_t max_iterations=200,
                    double radius=1.0):
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
    trace : list of tuples
        Value, decrement and radius at each accepted point.
    finished : bool
        False where the limit on iterations ended the search.
    """
    cdef Py_ssize_t n = f.n_par, i, iteration, n_evaluations = 0
    cdef double value, gain, change, ratio, norm, decrement, best_decrement, noise, largest = 0.0, smallest = INFINITY
    cdef bint inside = False, accept, stop = False, finished = False
    x_array = np.empty(n)
    trace = []
    cdef double[::1] x = x_array
    cdef double* work = <double*> malloc((2 * n * n + 5 * n) * sizeof(double))
    if work == NULL:
        raise MemoryError()
    cdef double* Q = work + n * n
    cdef double* w = Q + n * n
    cdef double* c = w + n
    cdef double* coefs = c + n
    cdef double* step = coefs + n
    cdef double* trial = step + n
    cdef int status
    for i in range(n):
        x[i] = start[i]
    try:
        with nogil:
            status = f.evaluate_(&x[0], 2)
        n_evaluations = 1
        if status != 0:
            raise FloatingPointError("the criterion is not finite at the start")
        value = f.value_
        with nogil:
            decrement = spectrum(f, work, Q, w, c)
        trace.append((value, decrement, radius))
        for iteration in range(max_iterations):
            with nogil:
                largest = 0.0
                smallest = INFINITY
                for i in range(n):
                    largest = max(largest, fabs(w[i]))
                    smallest = min(smallest, w[i])
                stop = decrement <= tolerance and smallest >= -1e-9 * largest
                if not stop:
                    gain = ball_step(n, Q, w, c, radius, coefs, step, &inside)
                    norm = 0.0
                    for i in range(n):
                        trial[i] = x[i] + step[i]
                        norm += step[i] * step[i]
                    norm = sqrt(norm)
                    status = f.evaluate_(trial, 2)
            if stop:
                finished = True
                break
            n_evaluations += 1
            noise = 10.0 * f.noise_
            change = value - f.value_ if status == 0 else -INFINITY
            ratio = change / gain if gain > 0.0 else -1.0
            accept = ratio > 1e-4
            if status == 0 and not accept and fabs(change) <= noise and gain <= noise:
                # below the rounding error of the value only the gradient can judge
                best_decrement = decrement
                with nogil:
                    decrement = spectrum(f, work, Q, w, c)
                accept = decrement < 0.5 * best_decrement
                if not accept:
                    stop = True
                ratio = 1.0
            if accept:
                value = f.value_
                for i in range(n):
                    x[i] = trial[i]
                with nogil:
                    decrement = spectrum(f, work, Q, w, c)
                trace.append((value, decrement, radius))
                if ratio > 0.75 and not inside:
                    radius = max(radius, 2.0 * norm)
                    if ratio > 0.95:
                        radius = 2.0 * radius
                elif ratio < 0.25:
                    radius = 0.5 * norm
            else:
                # Q, w and c still belong to x
                radius = 0.25 * norm
                if stop or radius <= 1e-14 * (1.0 + max(map(abs, x_array))):
                    finished = True
                    break
        with nogil:
            f.evaluate_(&x[0], 2)
            decrement = spectrum(f, work, Q, w, c)
        largest = 0.0
        smallest = INFINITY
        for i in range(n):
            largest = max(largest, fabs(w[i]))
            smallest = min(smallest, w[i])
        return (x_array, vector(f.grad_, n), vector(f.hess_, n * n).reshape(n, n), value, decrement, smallest / largest if largest > 0.0 else 0.0,
                n_evaluations, trace, finished)
    finally:
        free(work)
