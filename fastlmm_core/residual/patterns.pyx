# cython: language_level=3
"""Subjects by their pattern of visits: rows that stand for them in all sums of products.

For the N_k subjects of pattern k let M_k hold a row vec(X_i) for each and Y_k one of y_i.  Subjects differ in few
columns of X, so that M_k has few dimensions d_k.  Gram and Schmidt's method as it was modified, with the longest
remaining column of M_k first (Björck 1996, Numerical Methods for Least Squares Problems, sec. 2.4),
takes them out one by one,

    M_k = Q_k R_k + E,   Y_k = Q_k T_k + F,     R'R + E'E = M'M,  R'T + E'F = M'Y,  T'T + F'F = Y'Y

to rounding however far from orthogonal Q_k has become.  Where nothing is left of E, the d_k rows of [R_k T_k] stand for
the subjects, and beside them G_k with G_k G_k' = F'F for what is left of y alone.

Shapes: c columns in [X y], r = c - 1; M_k (N_k, n_k r), Y_k (n_k, N_k); rows of pattern k at its place as
(n_k, d_k, c): visit, row of the pattern, column; G_k (n_k, n_k).
"""
from libc.math cimport sqrt
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import numpy as np

from fastlmm_core.residual.loops cimport rooted_rows
from scipy.linalg.cython_lapack cimport dgeqrf

cdef enum:
    FEW = 24                    # dimensions that are looked for among many subjects before their triangular factor is
    MANY = 2                    # subjects, in numbers of one of them, that are many

cdef double NEGLIGIBLE = 1e-13
"""Length of what is left of a column of X, of length 1, that counts as nothing."""


cdef struct Pattern:
    Py_ssize_t n, N, c          # visits, subjects, columns
    Py_ssize_t held             # rows of X and Y: N, or those of their triangular factor
    double* X                   # (held, n r), its columns of length 1
    double* Y                   # (n, held)
    double* scale               # (n r,)
    double* lengths             # (n r,) squared, of what is left of the columns
    double* line                # (n c,)


def visit_keys(const Py_ssize_t[::1] starts, const Py_ssize_t[::1] where, const Py_ssize_t[::1] table, Py_ssize_t m):
    """An integer for each subject that tells tables and sets of visits apart, of up to 62 bits.

    Parameters
    ----------
    starts : (subjects + 1,) array
        First row of each subject; n.
    where : (n,) array
        Positions of the rows of subjects in their tables.
    table : (subjects,) array
    m : int
        Positions of the largest table.
    """
    cdef Py_ssize_t i, a
    cdef long long key, one = 1
    out_array = np.empty(starts.shape[0] - 1, dtype=np.int64)
    cdef long long[::1] out = out_array
    for i in range(out.shape[0]):
        key = table[i] << m
        for a in range(starts[i], starts[i + 1]):
            key |= one << where[a]
        out[i] = key
    return out_array


def positions_of(const Py_ssize_t[::1] where, const Py_ssize_t[::1] starts, const Py_ssize_t[::1] subjects):
    """The positions of some subjects, one subject after the other; see `visit_keys`."""
    cdef Py_ssize_t i, a, total = 0
    for i in range(subjects.shape[0]):
        total += starts[subjects[i] + 1] - starts[subjects[i]]
    out_array = np.empty(total, dtype=np.intp)
    cdef Py_ssize_t[::1] out = out_array
    total = 0
    for i in range(subjects.shape[0]):
        for a in range(starts[subjects[i]], starts[subjects[i] + 1]):
            out[total] = where[a]
            total += 1
    return out_array


def pattern_rows(const double[:, ::1] xy, const Py_ssize_t[::1] rows, const Py_ssize_t[::1] starts,
                 const Py_ssize_t[::1] subjects, const Py_ssize_t[::1] begins):
    """Rows [R_k T_k] of all patterns, and what is left of y.

    Parameters
    ----------
    xy : (n, c) array
    rows : (n,) array
        Of xy, by subject and visit.
    starts : (m + 1,) array
        First of the rows of each subject; n.
    subjects : (m,) array
        By pattern.
    begins : (n_patterns + 1,) array
        First of the subjects of each pattern; m.

    Returns
    -------
    rows : array
        Of all patterns, one after the other; those given where X has no fewer dimensions.
    members : (n_patterns,) intp array
        Rows of each pattern, d_k.
    outside : array
        G_k of all patterns, one after the other.
    """
    cdef Py_ssize_t k, n, N, d, to = 0, square = 0, squares = 0, most = 1, longest = 1, total = 0, c = xy.shape[1]
    cdef Py_ssize_t n_patterns = begins.shape[0] - 1
    cdef Pattern p
    for k in range(n_patterns):
        N, n = begins[k + 1] - begins[k], starts[subjects[begins[k]] + 1] - starts[subjects[begins[k]]]
        most, longest = max(most, N * n * c), max(longest, n)
        squares += n * n
        total += N * n * c
    # what many subjects leave is hardly ever more than a few rows of them: memory that is not touched is not there
    out_array, outside_array = np.empty(max(total, 1)), np.zeros(max(squares, 1))
    members_array = np.zeros(n_patterns, dtype=np.intp)
    cdef double[::1] out = out_array, outside = outside_array
    cdef Py_ssize_t[::1] members = members_array
    cdef double[::1] work = np.empty(most + 3 * longest * c)
    p.c, p.scale = c, &work[most]
    p.lengths = p.scale + longest * c
    p.line = p.lengths + longest * c
    cdef bint enough = True
    with nogil:
        for k in range(n_patterns):
            N = begins[k + 1] - begins[k]
            n = starts[subjects[begins[k]] + 1] - starts[subjects[begins[k]]]
            p.n, p.N, p.X, p.Y = n, N, &work[0], &work[N * n * (c - 1)]
            take_apart(&p, xy, &rows[0], &starts[0], &subjects[begins[k]])
            if N > MANY * n * c:
                d = spanned(&p, FEW, &out[to])
                if d < 0:
                    take_apart(&p, xy, &rows[0], &starts[0], &subjects[begins[k]])
                    enough = squeeze(&p)
                    if not enough:
                        break
                    d = spanned(&p, p.held - 1, &out[to])
            else:
                d = spanned(&p, N - 1 if N <= FEW else N // 2, &out[to])
            if d < 0:
                give(&p, xy, &rows[0], &starts[0], &subjects[begins[k]], &out[to])
                d = N
            else:
                rooted_rows(n, p.held, p.Y, &outside[square])
                by_visit(n, d, c, &out[to], &work[0])
            members[k] = d
            to += n * d * c
            square += n * n
    if not enough:
        raise MemoryError
    return out_array[:to].copy(), members_array, outside_array[:squares]


def pair_moments(const double[:] residuals, const Py_ssize_t[:] where, const Py_ssize_t[:] subjects, Py_ssize_t m):
    """Moments over the subjects that have both of two positions, and over those that have all.

    Parameters
    ----------
    residuals, where, subjects : (n,) arrays
        Residual, position and subject of each row; the rows of a subject stand together.
    m : int

    Returns
    -------
    counts, products, squares : (m, m) arrays
        Over the subjects that have a and b: their number, the sums of r_a r_b and of r_a^2.
    whole : (m, m) array
        The sums of r_a r_b over the subjects that have all positions.
    n_subjects, n_whole : int
    """
    cdef Py_ssize_t n = residuals.shape[0], at = 0, end, i, j, a, b, n_subjects = 0, n_whole = 0
    cdef double r
    made = np.zeros((4, m, m))
    cdef double[:, :, ::1] out = made
    with nogil:
        while at < n:
            end = at + 1
            while end < n and subjects[end] == subjects[at]:
                end += 1
            n_subjects += 1
            for i in range(at, end):
                a, r = where[i], residuals[i]
                for j in range(at, end):
                    b = where[j]
                    out[0, a, b] += 1.0
                    out[1, a, b] += r * residuals[j]
                    out[2, a, b] += r * r
            if end - at == m:
                n_whole += 1
                for i in range(at, end):
                    for j in range(at, end):
                        out[3, where[i], where[j]] += residuals[i] * residuals[j]
            at = end
    return made[0], made[1], made[2], made[3], n_subjects, n_whole


cdef void take_apart(Pattern* p, const double[:, ::1] xy, const Py_ssize_t* rows, const Py_ssize_t* starts,
                     const Py_ssize_t* subjects) noexcept nogil:
    """X of the subjects, its columns of length 1, and Y."""
    cdef Py_ssize_t a, i, j, r = p.c - 1, wide = p.n * r
    cdef const double* given
    cdef double* X
    p.held = p.N
    for j in range(wide):
        p.scale[j] = 0.0
    for i in range(p.N):
        for a in range(p.n):
            given = &xy[rows[starts[subjects[i]] + a], 0]
            X = p.X + i * wide + a * r
            for j in range(r):
                X[j] = given[j]
                p.scale[a * r + j] += given[j] * given[j]
            p.Y[a * p.N + i] = given[r]
    for j in range(wide):
        p.lengths[j] = 1.0 if p.scale[j] > 0.0 else 0.0
        p.scale[j] = sqrt(p.scale[j]) if p.scale[j] > 0.0 else 1.0
        p.line[j] = 1.0 / p.scale[j]
    for i in range(p.N):
        X = p.X + i * wide
        for j in range(wide):
            X[j] *= p.line[j]


cdef void give(Pattern* p, const double[:, ::1] xy, const Py_ssize_t* rows, const Py_ssize_t* starts,
               const Py_ssize_t* subjects, double* out) noexcept nogil:
    """The rows of the subjects as they are."""
    cdef Py_ssize_t a, i
    for a in range(p.n):
        for i in range(p.N):
            memcpy(out + (a * p.N + i) * p.c, &xy[rows[starts[subjects[i]] + a], 0], p.c * sizeof(double))


cdef Py_ssize_t spanned(Pattern* p, Py_ssize_t most, double* out) noexcept nogil:
    """[R T] (d, n, c) of X and Y, of which what is left stays in their places; d,
    or -1 where it is larger than most."""
    cdef Py_ssize_t d = 0, a, j, longest, r = p.c - 1, wide = p.n * r
    while True:
        longest = 0
        for j in range(1, wide):
            if p.lengths[j] > p.lengths[longest]:
                longest = j
        if wide == 0 or sqrt(p.lengths[longest]) <= NEGLIGIBLE:
            return d
        if d == most:
            return -1
        take_out(p, longest)
        for a in range(p.n):
            for j in range(r):
                out[(d * p.n + a) * p.c + j] = p.line[a * r + j] * p.scale[a * r + j]
            out[(d * p.n + a) * p.c + r] = p.line[wide + a]
        d += 1


cdef void by_visit(Py_ssize_t n, Py_ssize_t d, Py_ssize_t c, double* rows, double* work) noexcept nogil:
    """Rows (d, n, c) to (n, d, c)."""
    cdef Py_ssize_t a, i
    if d < 2 or n < 2:
        return
    memcpy(work, rows, n * d * c * sizeof(double))
    for a in range(n):
        for i in range(d):
            memcpy(rows + (a * d + i) * c, work + (i * n + a) * c, c * sizeof(double))


cdef void take_out(Pattern* p, Py_ssize_t longest) noexcept nogil:
    """Take the direction of a column of X out of X and Y; what both have of it goes to the line,
    and lengths are new."""
    cdef Py_ssize_t i, j, a, wide = p.n * (p.c - 1)
    cdef double q, t, length = 1.0 / sqrt(p.lengths[longest])
    cdef double* X
    for j in range(wide + p.n):
        p.line[j] = 0.0
    for i in range(p.held):
        X = p.X + i * wide
        q = X[longest] * length
        if q == 0.0:
            continue
        for j in range(wide):
            p.line[j] += q * X[j]
        for a in range(p.n):
            p.line[wide + a] += q * p.Y[a * p.held + i]
    for j in range(wide):
        p.lengths[j] = 0.0
    for i in range(p.held):
        X = p.X + i * wide
        q = X[longest] * length
        for a in range(p.n):
            p.Y[a * p.held + i] -= q * p.line[wide + a]
        for j in range(wide):
            t = X[j] - q * p.line[j]
            X[j] = t
            p.lengths[j] += t * t


cdef bint squeeze(Pattern* p) noexcept nogil:
    """The triangular factor of [X Y] in their places, as wide as it is long; False where memory is short."""
    cdef Py_ssize_t i, j, wide = p.n * (p.c - 1), K = p.n * p.c
    cdef int rows = <int> p.N, columns = <int> K, room = 64 * columns, info
    cdef double* A = <double*> malloc(p.N * K * sizeof(double))
    cdef double* work = <double*> malloc((room + K) * sizeof(double))
    cdef bint enough = A != NULL and work != NULL
    if enough:
        for i in range(p.N):
            for j in range(wide):
                A[j * p.N + i] = p.X[i * wide + j]
        memcpy(A + wide * p.N, p.Y, p.n * p.N * sizeof(double))
        dgeqrf(&rows, &columns, A, &rows, work + room, work, &room, &info)
        for i in range(K):
            for j in range(wide):
                p.X[i * wide + j] = A[j * p.N + i] if i <= j else 0.0
        p.Y = p.X + K * wide
        for j in range(p.n):
            for i in range(K):
                p.Y[j * K + i] = A[(wide + j) * p.N + i] if i <= wide + j else 0.0
        p.held = K
    free(A)
    free(work)
    return enough
