# cython: language_level=3
"""Rows to cross-products: the only code that reads the data.

With x~ = (x - shift) * scale (optionally times an upper triangular T), z~ alike, and
r = y - offset - x~ beta0, one pass over the rows computes, for every group g,

    A_g = sum w z~ z~',   C_g = sum w z~ [x~ r],   n_g       (raw, one line per group)
    S   = sum w [x~ r] [x~ r]',   sum A_g

Layout of a line of `raw` (K = q(q+1)/2 + q(p+1) + 1 doubles): lower triangle of A_g by rows,
C_g by rows (q x (p+1)), number of rows.  S is packed as a lower triangle by rows, and sum A_g follows it.
Indices are proven by the caller: 0 <= codes - base < n_groups, shapes agree.

Sums are put away after each run of rows of one group, and at multiples of FLUSH rows.  Threads take pieces that begin
there and put away the very sums in the very order, whatever the number of pieces: S block by block, and what a piece
adds to the group that the piece before it may have begun, line by line, until the piece before it is done.
"""
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport frexp, isfinite, ldexp, rint, sqrt
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

import numpy as np

from fastlmm_core.kernels._matrices import MANY

from fastlmm_core.kernels._criterion cimport kernels
from fastlmm_core.simd.prefetch cimport FETCH_TO_CHANGE

cdef extern from "parts.h":
    void run_parts(void (*run)(void*, Py_ssize_t, Py_ssize_t) noexcept nogil, void* job, Py_ssize_t parts,
                   Py_ssize_t jobs) noexcept nogil

ctypedef fused code_t:
    int32_t
    int64_t

# Partial sums of S are flushed after so many rows: rounding grows with the root of the
# number of blocks, not with the number of rows.
cdef Py_ssize_t FLUSH = 2048

# Changes of group ahead of which the sums of a group are fetched into the cache, where groups come in any order.
cdef Py_ssize_t AHEAD = 24

# Lines of raw that are set to zero at a time.
cdef Py_ssize_t LINES = 64

# Rows of which BLAS takes the products at a time, where X has many columns.
cdef Py_ssize_t PANEL = 512


include "probes.pxi"


# Where a pass keeps a row and its sums.
cdef struct Desk:
    double* x               # (p + 1,)
    double* z               # (q,)
    double* acc             # a line of raw
    double* s               # packed S


cdef inline void turn_columns(Py_ssize_t n, const double* T, double* x) noexcept nogil:
    """x <- x T for an upper triangular T (n, n)."""
    cdef Py_ssize_t j, l
    cdef double t
    for j in range(n - 1, -1, -1):
        t = 0.0
        for l in range(j + 1):
            t = t + x[l] * T[l * n + j]
        x[j] = t


cdef inline void add_shared(Py_ssize_t q, double w, const double* x, double* acc, double* rest) noexcept nogil:
    """Add a row where Z is X: A and C_y, which `put_shared` puts in their places."""
    cdef Py_ssize_t n_a = q * (q + 1) // 2, a, b, pos = 0
    cdef double t, r = x[q]
    for a in range(q):
        t = w * x[a]
        for b in range(a + 1):
            acc[pos] += t * x[b]
            pos = pos + 1
    for a in range(q):
        acc[n_a + a] += w * x[a] * r
    rest[0] += w * r * r


cdef inline void add_row(Py_ssize_t k, Py_ssize_t q, double w, const Desk* at) noexcept nogil:
    """Add a row to A, C and S."""
    cdef Py_ssize_t a, b, j, l, pos = 0
    cdef double t
    for a in range(q):
        t = w * at.z[a]
        for b in range(a + 1):
            at.acc[pos] += t * at.z[b]
            pos = pos + 1
    for a in range(q):
        t = w * at.z[a]
        for j in range(k):
            at.acc[pos] += t * at.x[j]
            pos = pos + 1
    pos = 0
    for j in range(k):
        t = w * at.x[j]
        for l in range(j + 1):
            at.s[pos] += t * at.x[l]
            pos = pos + 1


cdef inline void flush(Py_ssize_t n, double* sums, double* target) noexcept nogil:
    """Add partial sums to what they are parts of."""
    cdef Py_ssize_t pos
    for pos in range(n):
        target[pos] += sums[pos]
        sums[pos] = 0.0


# How far a pass has got with the lines of raw, and of `carry`.
cdef struct Reach:
    Py_ssize_t top
    double* carry


cdef void clear_lines(const Pass* d, Py_ssize_t stop, Py_ssize_t line, Reach* reach) noexcept nogil:
    """Set lines of raw to zero, as far as `stop` and some beyond."""
    stop = min(max(stop, reach.top + LINES), d.limit)
    memset(d.raw + reach.top * line, 0, (stop - reach.top) * line * sizeof(double))
    reach.top = stop


cdef inline double* line_of(const Pass* d, Py_ssize_t group, Py_ssize_t line, Reach* reach) noexcept nogil:
    """Where the sums of a run of rows go."""
    if group == d.lead:
        reach.carry = reach.carry + line
        return reach.carry - line
    if group >= reach.top:
        clear_lines(d, group + 1, line, reach)
    return d.raw + group * line


cdef inline void clear_rest(const Pass* d, Py_ssize_t line, Reach* reach) noexcept nogil:
    """Set the lines to zero that no row has come to."""
    if reach.top < d.limit:
        clear_lines(d, d.limit, line, reach)


cdef inline void put_shared(Py_ssize_t q, double count, double* acc, double* target, double* s) noexcept nogil:
    """Put the sums of a run of rows away where Z is X: C_x = A, and S_xx and S_xy are sums of A and C_y."""
    cdef Py_ssize_t k = q + 1, n_a = q * (q + 1) // 2, a, b, pos = 0
    for a in range(q):
        for b in range(a + 1):
            target[pos] += acc[pos]
            target[n_a + a * k + b] += acc[pos]
            if a != b:
                target[n_a + b * k + a] += acc[pos]
            s[pos] += acc[pos]
            acc[pos] = 0.0
            pos = pos + 1
    for a in range(q):
        target[n_a + a * k + q] += acc[pos + a]
        s[pos + a] += acc[pos + a]
        acc[pos + a] = 0.0
    target[n_a + q * k] += count


cdef inline void put_line(Py_ssize_t n_a, Py_ssize_t line, double count, double* acc, double* target, double* gram
                          ) noexcept nogil:
    """Put the sums of a run of rows away."""
    cdef Py_ssize_t pos
    for pos in range(n_a):
        gram[pos] += acc[pos]
    flush(line - 1, acc, target)
    target[line - 1] += count


cdef inline void put_block(bint shared, Py_ssize_t n_s, Py_ssize_t n_a, double* s, double* target) noexcept nogil:
    """Put the sums of a block of rows away; where Z is X, those of A are S_xx."""
    cdef Py_ssize_t pos
    for pos in range(n_a):
        target[n_s + pos] += s[pos] if shared else s[n_s + pos]
        s[n_s + pos] = 0.0
    flush(n_s, s, target)


cdef inline int sweep(const Pass* d, Py_ssize_t p, Py_ssize_t q, bint shared, bint plain, code_t kind, const Desk* at
                      ) noexcept nogil:
    """The pass over the rows; bit 0 of the result: a constant column varies, bit 1: the response varies.

    p, q, the flags and the work arrays are arguments of their own so that for the common sizes the compiler can unroll
    the loops and keep the arrays in registers.
    `shared`: Z is X, with the same shifts and scales.  `plain`: no weights, offset or transformations.
    `kind`: of the type of the codes.
    """
    cdef Py_ssize_t k = p + 1, n_a = q * (q + 1) // 2, line = n_a + q * k + 1, n_s = k * (k + 1) // 2
    cdef Py_ssize_t i, j, a, group, current = -1, start = 0
    cdef const code_t* codes = <const code_t*> d.codes
    cdef double w = 1.0, r
    cdef bint broken = False, varies = False, edge
    cdef const double* row
    cdef const double* next_one
    cdef Reach reach = Reach(d.top, d.carry)
    cdef double* S = d.S
    memset(at.acc, 0, line * sizeof(double))
    memset(at.s, 0, (n_s + n_a) * sizeof(double))
    for i in range(d.n + 1):
        edge = (i & (FLUSH - 1)) == 0 or i == d.n
        group = <Py_ssize_t> (codes[i * d.c_row] - d.base) if i < d.n else -1
        if group != current or edge:
            if current >= 0:
                if shared:
                    put_shared(q, <double> (i - start), at.acc, line_of(d, current, line, &reach), at.s)
                else:
                    put_line(n_a, line, <double> (i - start), at.acc, line_of(d, current, line, &reach), at.s + n_s)
                if edge:
                    put_block(shared, n_s, n_a, at.s, S)
                    S = S + d.s_step
            if i == d.n:
                break
            current, start = group, i
            # all of the line that follows, which may begin anywhere in one of the cache
            next_one = d.raw + <Py_ssize_t> (codes[(i + AHEAD if i + AHEAD < d.n else i) * d.c_row] - d.base) * line
            for j in range(0, line, 8):
                FETCH_TO_CHANGE(next_one + j)
            FETCH_TO_CHANGE(next_one + line - 1)
        row = d.X + i * d.x_row
        if d.x_constant >= 0 and row[d.x_constant * d.x_column] != d.x_value:
            broken = True
        for j in range(p):
            at.x[j] = (row[j * d.x_column] - d.x_shift[j]) * d.x_scale[j]
        if not shared:
            row = d.Z + i * d.z_row
            if d.z_constant >= 0 and row[d.z_constant * d.z_column] != d.z_value:
                broken = True
            for a in range(q):
                at.z[a] = (row[a * d.z_column] - d.z_shift[a]) * d.z_scale[a]
        if not plain:
            if d.weights != NULL:
                w = d.weights[i * d.w_row]
            if d.x_transform != NULL:
                turn_columns(p, d.x_transform, at.x)
            if d.z_transform != NULL:
                turn_columns(q, d.z_transform, at.z)
        r = d.y[i * d.y_row]
        if r != d.y_value:
            varies = True
        if not plain and d.offset != NULL:
            r = r - d.offset[i * d.o_row]
        for j in range(p):
            r = r - d.beta0[j] * at.x[j]
        at.x[p] = r
        if shared:
            add_shared(q, w, at.x, at.acc, at.s + n_s - 1)
        else:
            add_row(k, q, w, at)
    clear_rest(d, line, &reach)
    return (1 if broken else 0) + (2 if varies else 0)


include "unrolled.pxi"


include "scales.pxi"


cdef int whole_sweep(const Pass* d, bint shared, bint plain, code_t kind) noexcept nogil:
    """`sweep` for all sizes; d.work has room for `work_size` numbers."""
    cdef Py_ssize_t p = d.p, q = d.q, k = p + 1
    cdef int flags = sweep_small(d, shared, plain, kind)
    cdef Desk at
    if flags < 0:
        # general sizes: p and q at run time, work arrays in memory
        at.x, at.z, at.acc = d.work, d.work + k, d.work + k + q
        at.s = at.acc + q * (q + 1) // 2 + q * k + 1
        flags = sweep(d, p, q, shared, plain, kind, &at)
    return flags


cdef class _Reading:
    """A pass over rows: `Rows` and `RowColumns` of kernels/records/rows.py, held while pointers to them are in use."""

    cdef Pass d
    cdef const double[:, :] X
    cdef const double[:] y
    cdef const double[:, :] Z
    cdef const double[:] weights
    cdef const double[:] offset
    cdef const double[:, ::1] x_scale
    cdef const double[:, ::1] z_scale
    cdef const double[::1] beta0
    cdef Py_buffer index
    cdef bint narrow            # codes are int32

    def __cinit__(self, rows, columns):
        cdef Pass* d = &self.d
        cdef Py_ssize_t p, q
        self.X, self.y, self.Z, codes, d.base, _, self.weights, self.offset = rows
        self.x_scale, self.z_scale, self.beta0, d.x_constant, d.z_constant, _, _ = columns
        code_buffer(codes, &self.index)
        self.narrow = self.index.itemsize == sizeof(int32_t)
        p, q = self.X.shape[1], self.Z.shape[1]
        d.n, d.p, d.q = self.X.shape[0], p, q
        d.codes = self.index.buf
        d.c_row = self.index.strides[0] // self.index.itemsize
        d.X = &self.X[0, 0] if p > 0 else &self.y[0]
        d.Z = &self.Z[0, 0]
        d.y = &self.y[0]
        d.weights = &self.weights[0] if self.weights is not None else NULL
        d.offset = &self.offset[0] if self.offset is not None else NULL
        d.x_row, d.x_column = self.X.strides[0] // 8, self.X.strides[1] // 8
        d.z_row, d.z_column = self.Z.strides[0] // 8, self.Z.strides[1] // 8
        d.y_row = self.y.strides[0] // 8
        d.w_row = self.weights.strides[0] // 8 if self.weights is not None else 0
        d.o_row = self.offset.strides[0] // 8 if self.offset is not None else 0
        d.x_shift = &self.x_scale[0, 0] if p > 0 else NULL
        d.x_scale = &self.x_scale[1, 0] if p > 0 else NULL
        d.z_shift = &self.z_scale[0, 0]
        d.z_scale = &self.z_scale[1, 0]
        d.beta0 = &self.beta0[0] if p > 0 else NULL
        d.x_transform = NULL
        d.z_transform = NULL
        d.x_value = self.X[0, d.x_constant] if d.x_constant >= 0 else 0.0
        d.z_value = self.Z[0, d.z_constant] if d.z_constant >= 0 else 0.0
        d.y_value = self.y[0]
        whole(d)

    def __dealloc__(self):
        PyBuffer_Release(&self.index)


include "panels.pxi"
include "pieces.pxi"


def accumulate(rows, columns, Py_ssize_t jobs=1):
    """One pass over the rows.

    Parameters
    ----------
    rows : Rows
    columns : RowColumns
    jobs : int
        Threads at most.

    Returns
    -------
    raw : (n_slots, K) array
    S : ((p+1)(p+2)/2,) array
    z_gram : (q(q+1)/2,) array
        Sum of A_g, packed like S.
    constant : bool
        False if a column taken to be constant is not: the result is then not usable.
    varies : bool
        Whether the response takes more than one value.
    finite : bool
        Whether all sums are finite.
    """
    cdef Py_ssize_t p = rows.X.shape[1], q = rows.Z.shape[1], n_s = (p + 1) * (p + 2) // 2, n_a = q * (q + 1) // 2
    raw = (np.zeros if p + 1 >= MANY else np.empty)((rows.n_slots, n_a + q * (p + 1) + 1))
    sums = np.zeros(n_s + n_a)
    constant, varies = read_rows(rows, columns, raw, sums, jobs, p + 1 < MANY)
    return raw, sums[:n_s], sums[n_s:], constant, varies, bool(np.isfinite(sums).all())


def add_rows(rows, columns, double[:, ::1] raw, double[::1] sums, Py_ssize_t jobs=1):
    """Add rows to sums.

    Pieces of a multiple of 2048 rows, but for the last, give the very numbers of all rows at once.

    Parameters
    ----------
    rows : Rows
    columns : RowColumns
    raw : (n_slots or more, K) array
        Overwritten.
    sums : ((p+1)(p+2)/2 + q(q+1)/2,) array
        S and the sum of A_g.  Overwritten.
    jobs : int
        Threads at most.

    Returns
    -------
    constant : bool
        False if a column taken to be constant is not, within these rows.
    varies : bool
        Whether the response takes more than one value in these rows.
    """
    return read_rows(rows, columns, raw, sums, jobs, False)


cdef object read_rows(rows, columns, double[:, ::1] raw, double[::1] sums, Py_ssize_t jobs, bint fresh):
    """`add_rows`; fresh: whether raw is yet to be set to zero."""
    cdef _Reading reading = _Reading(rows, columns)
    cdef Pass* d = &reading.d
    cdef const double[:, ::1] x_transform = columns.x_transform, z_transform = columns.z_transform
    cdef int flags
    cdef double[::1] work
    if x_transform is not None and d.p > 0:
        d.x_transform = &x_transform[0, 0]
    if z_transform is not None:
        d.z_transform = &z_transform[0, 0]
    d.raw = &raw[0, 0]
    d.S = &sums[0]
    if fresh:
        d.top, d.limit = 0, raw.shape[0]
    if d.p + 1 < MANY:
        with nogil:
            flags = add_in_parts(d, reading.narrow, jobs)
        if flags >= 0:
            return not flags & 1, bool(flags & 2)
    work = np.empty(work_size(d.p, d.q))
    d.work = &work[0]
    if d.p + 1 >= MANY:
        flags = sweep_panels(reading, columns.x_transform)
    else:
        with nogil:
            flags = add_pass(d, reading.narrow)
    return not flags & 1, bool(flags & 2)


cdef int add_pass(Pass* d, bint narrow) noexcept nogil:
    """Add the rows to raw and S; the flags of `sweep`.  `narrow`: codes are int32."""
    cdef bint plain = d.weights == NULL and d.offset == NULL and d.x_transform == NULL and d.z_transform == NULL
    cdef bint shared = same_columns(d)
    if narrow:
        return whole_sweep(d, shared, plain, <int32_t> 0)
    return whole_sweep(d, shared, plain, <int64_t> 0)


cdef bint same_columns(const Pass* d) noexcept nogil:
    """Whether Z is X, with the same shifts and scales."""
    cdef Py_ssize_t j
    if not (d.p == d.q and d.X == d.Z and d.x_row == d.z_row and d.x_column == d.z_column and d.x_transform == NULL
            and d.z_transform == NULL and d.x_constant == d.z_constant):
        return False
    for j in range(d.p):
        if d.x_shift[j] != d.z_shift[j] or d.x_scale[j] != d.z_scale[j]:
            return False
    return True


include "within.pxi"
