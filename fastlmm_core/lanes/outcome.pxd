# What a batch hands to the lanes beside its design, whatever that is: starts, and the arrays that take the results.
#
# gives  start_from, write_to, look_at, tell_contrasts, tell_coefficients
from fastlmm_core.lanes.kernels cimport Batch, Outcome


cdef inline int start_from(Batch* b, const double[:, ::1] starts, Py_ssize_t count) except -1:
    """Let each of `count` responses start from its row, or all from the only one."""
    if starts.shape[1] != b.n_par or starts.shape[0] not in (1, count):
        raise ValueError(f"start has {starts.shape[1]} elements, the model has {b.n_par}")
    b.first_theta = &starts[0, 0]
    b.stride_theta = 0 if starts.shape[0] == 1 else b.n_par
    return 0


cdef inline int write_to(Outcome* out, into, Py_ssize_t first, Py_ssize_t count, Py_ssize_t p_full,
                         bint brief) except -1:
    """Let fits of `count` responses be written to the arrays of a BatchResults from row `first` on,
    and nothing else."""
    cdef double[:, ::1] theta = into.theta, params = into.params, bse = into.bse, df = into.df
    cdef double[::1] sigma2 = into.sigma2, value = into.value, decrement = into.decrement
    cdef int[::1] status = into.status, evaluations = into.evaluations
    if first < 0 or first + count > theta.shape[0]:
        raise IndexError("the results do not hold so many responses")
    if count == 0:
        return 0
    out.theta = &theta[0, 0]
    out.params = &params[0, 0] if p_full > 0 else NULL
    out.bse = &bse[0, 0] if p_full > 0 else NULL
    out.sigma2 = &sigma2[0]
    out.value = &value[0]
    out.decrement = &decrement[0]
    out.status = &status[0]
    out.evaluations = &evaluations[0]
    out.df = &df[0, 0] if p_full > 0 else NULL
    out.brief = brief
    out.rows = NULL
    out.chosen = NULL
    out.rise = NULL
    out.values = NULL
    out.worth = NULL
    return 0


cdef inline int look_at(Outcome* out, look, Py_ssize_t count, Py_ssize_t width, Py_ssize_t n_points) except -1:
    """Let what a screen of `n_points`, if there is one, and the Hessian tell be written to the
    arrays of a BatchLook."""
    cdef int[:, ::1] chosen
    cdef double[::1] rise, worth
    cdef double[:, ::1] values
    if n_points > 0:
        chosen = look.chosen
        if chosen.shape[0] != count or chosen.shape[1] != width:
            raise ValueError("the arrays do not fit the responses and the screen")
        out.chosen = &chosen[0, 0]
    if look.worth is not None:
        worth = look.worth
        if worth.shape[0] != count:
            raise ValueError("the arrays do not fit the responses and the screen")
        out.worth = &worth[0]
    if look.rise is not None:
        rise = look.rise
        if rise.shape[0] != count:
            raise ValueError("the arrays do not fit the responses and the screen")
        out.rise = &rise[0]
    if look.values is not None and n_points > 0:
        values = look.values
        if values.shape[0] != count or values.shape[1] != n_points:
            raise ValueError("the values do not fit the responses and the screen")
        out.values = &values[0, 0]
    return 0


cdef inline int tell_contrasts(Outcome* out, const Batch* b, double[:, ::1] theta, const double[:, ::1] rows, arrays
                               ) except -1:
    """Let what tests of rows need at given thetas be written to (covariance, slope, shift, hess), and nothing else."""
    cdef double[:, :, ::1] covariance = arrays[0], hess = arrays[3]
    cdef double[:, :, :, ::1] slope = arrays[1]
    cdef double[:, ::1] shift = arrays[2]
    out.theta = &theta[0, 0]
    out.params = NULL
    out.df = NULL
    out.chosen = NULL
    out.brief = False
    out.m = rows.shape[0]
    out.rows = &rows[0, 0] if b.p > 0 else &theta[0, 0]  # not read without columns
    out.covariance = &covariance[0, 0, 0]
    out.slope = &slope[0, 0, 0, 0]
    out.shift = &shift[0, 0]
    out.hess = &hess[0, 0, 0]
    return 0


cdef inline int tell_coefficients(Outcome* out, coefficients, Py_ssize_t count, Py_ssize_t p_full) except -1:
    """Let coefficients, their standard errors and sigma^2 be written as well, after `tell_contrasts`."""
    cdef double[:, ::1] params, bse
    cdef double[::1] sigma2
    params, bse, sigma2 = coefficients
    if params.shape[0] != count or params.shape[1] != p_full or p_full == 0:
        raise ValueError("the arrays of coefficients do not fit the design")
    out.params, out.bse, out.sigma2 = &params[0, 0], &bse[0, 0], &sigma2[0]
    return 0
