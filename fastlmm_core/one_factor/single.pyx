# cython: language_level=3
"""A problem of one grouping factor, conditioned in one call where its rows need no second look.

What engines/one_factor/conditioning.py does step by step, with the very numbers of its steps: shifts and scales from
the first rows, the pass over all of them, orthonormal columns, factored groups, the way back to the caller's units.
With a few hundred rows the steps cost more than their arithmetic.  What X, Z and the groups say by themselves is found
with the first response of a design, and taken for the others.
"""
from cpython.buffer cimport PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport isfinite, sqrt
from libc.stdint cimport int32_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

import numpy as np

from fastlmm_core.kernels._criterion cimport kernels
from fastlmm_core.kernels._matrices cimport (
    Regression, drop_exact, map_columns, place, regress, regress_on, regress_within, triangle, within_products)
from fastlmm_core.kernels._rows cimport Columns, Pass, add_pass, find_scales, probe_column, whole, work_size
from fastlmm_core.lanes.kernels cimport RawGroups, Shape, make_shape
from fastlmm_core.small.arena cimport Arena, furnish, take

cdef object empty = np.empty

# The caller's arrays while pointers to them are in use.
cdef struct Held:
    Py_buffer X, Z, y, codes, weights, offset

# Work space, and what is found.
cdef struct Desk:
    Pass d
    Columns x, z
    Py_ssize_t n_slots, line, n_s
    double* raw
    double* S                   # packed S, then Z'Z
    double* work
    Regression fit
    Py_ssize_t p, q, k, m
    bint narrow                 # codes are int32
    bint known                  # scales, to_z, x_map, z_map and fit.T have been found before
    double* beta0
    double* uneven
    double* L
    double* between
    double* scratch
    double* half

# Where results go: arrays of numpy.
cdef struct Into:
    double* x_scale             # (2, p)
    double* z_scale             # (2, q)
    double* to_z                # (q, q)
    double* within              # (k(k+1)/2,)
    double* x_map               # (p, p)
    double* base                # (p,)
    double* z_map               # (q, q)


cdef int hold(rows, Held* held, Pass* d) except -1:
    """Pointers to the rows."""
    PyObject_GetBuffer(rows.X, &held.X, PyBUF_STRIDES)
    PyObject_GetBuffer(rows.y, &held.y, PyBUF_STRIDES)
    PyObject_GetBuffer(rows.Z, &held.Z, PyBUF_STRIDES)
    PyObject_GetBuffer(rows.codes, &held.codes, PyBUF_STRIDES)
    d.n, d.p, d.q, d.base = held.y.shape[0], held.X.shape[1], held.Z.shape[1], rows.base
    d.y, d.y_row = <const double*> held.y.buf, held.y.strides[0] // 8
    d.X, d.x_row, d.x_column = <const double*> held.X.buf, held.X.strides[0] // 8, held.X.strides[1] // 8
    d.Z, d.z_row, d.z_column = <const double*> held.Z.buf, held.Z.strides[0] // 8, held.Z.strides[1] // 8
    d.codes, d.c_row = held.codes.buf, held.codes.strides[0] // held.codes.itemsize
    d.weights = d.offset = NULL
    d.w_row = d.o_row = 0
    if rows.weights is not None:
        PyObject_GetBuffer(rows.weights, &held.weights, PyBUF_STRIDES)
        d.weights, d.w_row = <const double*> held.weights.buf, held.weights.strides[0] // 8
    if rows.offset is not None:
        PyObject_GetBuffer(rows.offset, &held.offset, PyBUF_STRIDES)
        d.offset, d.o_row = <const double*> held.offset.buf, held.offset.strides[0] // 8
    return 0


cdef void release(Held* held) noexcept:
    PyBuffer_Release(&held.X)
    PyBuffer_Release(&held.y)
    PyBuffer_Release(&held.Z)
    PyBuffer_Release(&held.codes)
    PyBuffer_Release(&held.weights)
    PyBuffer_Release(&held.offset)


cdef void lay(Desk* desk, Py_ssize_t n_slots, Arena* arena) noexcept nogil:
    """Take the work space of problems with room for `n_slots` groups."""
    cdef Py_ssize_t p = desk.p, q = desk.q, k = desk.k, n_s = k * (k + 1) // 2, n_a = q * (q + 1) // 2, n_c = q * k
    cdef Py_ssize_t line = n_a + n_c + 1
    desk.n_s, desk.line, desk.n_slots = n_s, line, n_slots
    desk.raw = take(arena, n_slots * line)
    desk.S = take(arena, n_s + n_a)
    desk.work = take(arena, 2 * p * p + p)
    desk.d.work = take(arena, work_size(p, q))
    desk.beta0 = take(arena, p)
    desk.fit.beta = take(arena, p)
    desk.uneven = take(arena, max(p, q))
    desk.L = take(arena, max(k * k + k, 2 * q * q))
    desk.between = take(arena, n_s)
    desk.half = take(arena, k * k)
    desk.scratch = take(arena, (q * q + n_c + 2 * q + n_s) * kernels.lanes)


cdef bint sum_up(Desk* desk, Py_ssize_t head, Into* into) noexcept nogil:
    """Shifts, scales and sums; False where they are not to be used."""
    cdef Pass* d = &desk.d
    cdef Columns x = Columns(d.X, min(d.n, head), d.p, d.x_row, d.x_column)
    cdef Columns z = Columns(d.Z, x.n, d.q, d.z_row, d.z_column)
    cdef double deviation
    cdef bint equal
    cdef int flags
    cdef Py_ssize_t p = d.p, q = d.q, i
    if not desk.known:
        d.x_constant = find_scales(&x, x.n, True, True, into.x_scale, desk.uneven)
        if d.Z == d.X and q == p and d.z_row == d.x_row and d.z_column == d.x_column:
            memcpy(into.z_scale, into.x_scale, 2 * p * sizeof(double))
            d.z_constant = d.x_constant
        else:
            d.z_constant = find_scales(&z, z.n, True, True, into.z_scale, desk.uneven)
    if d.x_constant >= 0:
        probe_column(d.y, x.n, d.y_row, x.n, desk.beta0 + d.x_constant, &deviation, &equal)
    d.x_shift, d.x_scale, d.z_shift, d.z_scale = into.x_scale, into.x_scale + p, into.z_scale, into.z_scale + q
    d.beta0 = desk.beta0
    d.x_transform = d.z_transform = NULL
    d.x_value = d.X[d.x_constant * d.x_column] if d.x_constant >= 0 else 0.0
    d.z_value = d.Z[d.z_constant * d.z_column] if d.z_constant >= 0 else 0.0
    d.y_value = d.y[0]
    d.raw, d.S = desk.raw, desk.S
    whole(d)
    flags = add_pass(d, desk.narrow)
    for i in range(desk.n_s + q * (q + 1) // 2):
        if not isfinite(desk.S[i]):
            return False
    return flags == 2


cdef bint turn_columns(Desk* desk, double well, double explained, double* to_z) noexcept nogil:
    """Orthonormal columns and the regression of y; False where they are not well conditioned."""
    cdef Py_ssize_t q = desk.q, i, j, pos = 0
    cdef double* gram = desk.L
    cdef double root = sqrt(<double> desk.d.n)
    cdef Regression* fit = &desk.fit
    if desk.known:
        regress_on(desk.p, desk.S, desk.beta0, <double> desk.d.n, desk.work, fit)
    else:
        regress(desk.p, desk.S, desk.beta0, <double> desk.d.n, desk.work, fit)
        for i in range(q):
            for j in range(i + 1):
                gram[i * q + j] = desk.S[desk.n_s + pos]
                pos += 1
        if not (fit.margin >= well and triangle(q, gram, q, 1, gram + q * q, to_z) >= well):
            return False
        for i in range(q * q):
            to_z[i] *= root
    return fit.rest > explained * desk.S[desk.n_s - 1] and fit.rest > 1e-30 * fit.total


cdef object present_lines(Desk* desk):
    """Lines of the groups that have rows, and their slots, None for all."""
    cdef Py_ssize_t g, m = 0, line = desk.line
    cdef Py_ssize_t* slot
    cdef double* target
    for g in range(desk.n_slots):
        m += desk.raw[(g + 1) * line - 1] != 0.0
    desk.m = m
    raw = empty((m, line))
    target = <double*> place(raw)
    if m == desk.n_slots:
        memcpy(target, desk.raw, m * line * sizeof(double))
        return raw, None
    present = empty(m, np.intp)
    slot = <Py_ssize_t*> place(present)
    for g in range(desk.n_slots):
        if desk.raw[(g + 1) * line - 1] != 0.0:
            memcpy(target, desk.raw + g * line, line * sizeof(double))
            target += line
            slot[0] = g
            slot += 1
    return raw, present


cdef double finish(Desk* desk, const double* raw, double* packed, Into* into) noexcept nogil:
    """Factored groups and what is left within them; the variation of y that X leaves there."""
    cdef Py_ssize_t p = desk.p, q = desk.q, k = desk.k
    cdef Shape shape = make_shape(q, k)
    cdef RawGroups groups = RawGroups(desk.m, raw, into.to_z, desk.fit.xy)
    memset(desk.between, 0, desk.n_s * sizeof(double))
    kernels.factor(&shape, &groups, packed, desk.between, desk.scratch)
    within_products(k, desk.S, desk.fit.xy, desk.between, desk.half, into.within)
    if not desk.known:
        map_columns(q, into.z_scale, desk.d.z_constant, into.to_z, into.z_map, NULL, NULL)
    return map_columns(p, into.x_scale, desk.d.x_constant, desk.fit.T, desk.work if desk.known else into.x_map,
                       desk.fit.beta, into.base)


def condition_once(rows, limits, known=None):
    """Condition a problem with one term of correlated effects.

    Parameters
    ----------
    rows : Rows
        Of fewer than MANY - 1 columns in X.
    limits : tuple
        Rows that tell shifts and scales; least margin of the columns, share of y'y that X leaves, and variation of y
        within groups by row, with which no second look is needed; share of a column within groups that is none.
    known : SharedColumns, optional
        What has been found of the same X, Z, groups and weights with another response.

    Returns
    -------
    tuple of tuples, or None
        (raw, packed, within), (xy_transform, beta_base, scale, exact), and the fields of `SharedColumns` up to
        `log_det`, None where they are known.  None where a second look is needed, or nothing can be fitted.
    """
    cdef Held held
    cdef Desk desk
    cdef Into into
    cdef Arena arena = Arena(NULL, 0)
    cdef double* memory = NULL
    cdef Py_ssize_t head, p, q, k, n_slots = rows.n_slots
    cdef double well, explained, between, nothing, log_det
    cdef bint good
    head, well, explained, between, nothing = limits
    memset(&held, 0, sizeof(Held))
    memset(&into, 0, sizeof(Into))
    try:
        hold(rows, &held, &desk.d)
        desk.narrow = held.codes.itemsize == sizeof(int32_t)
        p, q = desk.d.p, desk.d.q
        k = p + 1
        desk.p, desk.q, desk.k, desk.known = p, q, k, known is not None
        lay(&desk, n_slots, &arena)
        memory = furnish(&arena)
        if memory == NULL:
            raise MemoryError()
        lay(&desk, n_slots, &arena)
        if known is None:
            x_scale, z_scale, to_z, to_x = empty((2, p)), empty((2, q)), empty((q, q)), empty((p, p))
            x_map, z_map = empty((p, p)), empty((q, q))
            into.x_map, into.z_map = <double*> place(x_map), <double*> place(z_map)
        else:
            to_z, z_scale, x_scale, to_x, _, _, desk.d.x_constant, desk.d.z_constant, *_ = known
        xy, base = empty((k, k)), empty(p)
        into.x_scale, into.z_scale = <double*> place(x_scale), <double*> place(z_scale)
        into.to_z, into.base = <double*> place(to_z), <double*> place(base)
        desk.fit.T, desk.fit.xy = <double*> place(to_x), <double*> place(xy)
        with nogil:
            good = sum_up(&desk, head, &into) and turn_columns(&desk, well, explained, into.to_z)
        if not good:
            return None
        raw, present = present_lines(&desk)
        within = empty(desk.n_s)
        into.within = <double*> place(within)
        packed = empty(((desk.m + kernels.lanes - 1) // kernels.lanes, desk.line, kernels.lanes))
        log_det = finish(&desk, <double*> place(raw), <double*> place(packed), &into)
        if regress_within(k, into.within, nothing, desk.L, desk.L + k * k) < between * desk.d.n:
            return None
        exact = drop_exact(into.within, k, <double> desk.d.n, nothing)
    finally:
        free(memory)
        release(&held)
    return (
        (raw, packed, within), (xy, base, desk.fit.scale, exact),
        (to_z, z_scale, x_scale, to_x, z_map, x_map, desk.d.x_constant, desk.d.z_constant, present, log_det)
        if known is None else None,
    )
