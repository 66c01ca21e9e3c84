# cython: language_level=3
"""The criterion of factors nested in each other, by sweeps over the families of their levels (lanes/families.pxi).

`FamilySums` sweeps over levels that are in memory; `NestedEngine` makes the criterion of the sums,
wherever they come from.
"""
from cpython.exc cimport PyErr_SetObject
from libc.math cimport isfinite
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset

import numpy as np

from fastlmm_core.kernels._criterion cimport kernels
from fastlmm_core.kernels._newton cimport RAISED, reraise
from fastlmm_core.kernels._profiled cimport ProfiledEngine, copied, hold, hold_index
from fastlmm_core.lanes.kernels cimport ChainColumns, ChainStage, ChainSums, Shape, make_shape

cdef enum:
    MAX_STAGES = 16


def aligned_zeros(Py_ssize_t size):
    """(size,) array of zeros that begins on a cache line."""
    cdef double[::1] view = np.zeros(size + 8)
    cdef Py_ssize_t skip = (-(<uintptr_t> &view[0]) & 63) // 8
    return np.asarray(view)[skip : skip + size]


def pack(const double[:, ::1] raw, const Py_ssize_t[::1] order, const double[:, ::1] z_map,
         const double[:, ::1] xy_map):
    """Factored cross-products of groups in a given order.

    Parameters
    ----------
    raw : (m, K) array
        As `accumulate` gives them.
    order : (n_vectors * lanes,) array
        Group in each place, -1 for none.
    z_map, xy_map : upper triangular (r, r), (k, k) arrays

    Returns
    -------
    packed : (n_vectors, r(r+1)/2 + r k + 1, lanes) array
        R, c and a count.
    between : (k(k+1)/2,) array
        sum c'c.
    """
    cdef Shape shape = make_shape(z_map.shape[0], xy_map.shape[0])
    cdef Py_ssize_t n_vectors = order.shape[0] // kernels.lanes, n_h = shape.k * (shape.k + 1) // 2
    cdef Py_ssize_t size = shape.q * shape.q + shape.n_c + 2 * shape.q + n_h + shape.stride
    out = aligned_zeros(n_vectors * shape.stride * kernels.lanes)
    between = np.zeros(n_h)
    cdef double[::1] packed = out, total = between, scratch = aligned_zeros(size * kernels.lanes)
    cdef ChainColumns columns = ChainColumns(&z_map[0, 0], &xy_map[0, 0])
    with nogil:
        kernels.chain_pack(&shape, n_vectors, &order[0], &raw[0, 0], &columns, &packed[0], &total[0], &scratch[0])
    return out.reshape(n_vectors, shape.stride, kernels.lanes), between


include "levels.pxi"


cdef int set_aside(raised) noexcept:
    """The status of what ended with an exception, or with None."""
    if raised is None:
        return 0
    PyErr_SetObject(type(raised), raised)
    return RAISED


cdef class NestedEngine(ProfiledEngine):
    """The criterion as a function of the free elements of L: all factors in the same r columns, b_s = T_s b_o.

    Parameters
    ----------
    levels : FamilySums, or an object with its `values` and `derivatives`
        The levels, or what asks for sums where they are.
    within, gram : (k, k) arrays
        [X y]'[X y] less what the finest levels explain, and all of it.
    n_rows : int
    parts : list of (int, (r, q_s) array)
        First column of each factor in G^, and T_s; finest first.
    structure : CovarianceStructure
    """

    cdef readonly Py_ssize_t r, n_stages
    cdef FamilySums here        # None where the levels are elsewhere
    cdef object levels
    cdef Shape shape
    cdef Py_ssize_t width[MAX_STAGES]       # q_s
    cdef Py_ssize_t column[MAX_STAGES]      # first column in G^
    cdef double* T[MAX_STAGES]              # T_s (r, q_s)
    cdef double* factors                    # T_s L_s (n_stages, r, r), columns of zeros where q_s < r
    cdef double* within
    cdef double* total                      # sum of D'D, packed
    cdef double* stage_n                    # sum N and sum f f' (n_stages, n_a)
    cdef double* stage_f
    cdef double* gram_e                     # sum vec(E) vec(E)' (n_stages, n_g), packed
    cdef double* stage_curve                # tr(B D N F) over the unit directions of every stage (d, d)
    cdef Py_ssize_t n_sums                  # these four lie one after the other
    cdef double* spread                     # (d, n_free): T_s D T_s' in the unit directions of its stage
    cdef double* J                          # sum E'D E (n_free, k, k), for the directions D of `chain`
    cdef double* copy_J
    cdef double* u                          # J b (n_free, k)
    cdef double* half                       # (d, n_free)

    def __cinit__(self, levels, within, gram, Py_ssize_t n_rows, parts, structure, *rest):
        cdef Py_ssize_t s, d, n_c, n_g, k, r = parts[0][1].shape[0]
        # inference asks for all directions within factors
        ranges = [(place, place + T.shape[1]) for place, T in sorted(parts, key=lambda part: part[0])]
        self.set_up(gram, n_rows, structure, ranges, True)
        k = self.k
        self.r = r
        self.n_stages = len(parts)
        if self.n_stages > MAX_STAGES:
            raise ValueError(f"more than {MAX_STAGES} grouping factors")
        self.shape = make_shape(r, k)
        self.levels, self.here = levels, levels if isinstance(levels, FamilySums) else None
        for s, (place, T) in enumerate(parts):
            self.width[s], self.column[s], self.T[s] = T.shape[1], place, self.take(T)
        n_c = self.shape.n_c
        n_g = n_c * (n_c + 1) // 2
        d = self.n_stages * self.shape.n_a
        n_free = self.chain.n_free
        self.factors = self.take(np.zeros(self.n_stages * r * r))
        self.within = self.take(within)
        self.total = self.take(np.zeros(k * (k + 1) // 2))
        self.n_sums = 2 * d + self.n_stages * n_g + d * d
        self.stage_n = self.take(np.zeros(self.n_sums))
        self.stage_f = self.stage_n + d
        self.gram_e = self.stage_f + d
        self.stage_curve = self.gram_e + self.n_stages * n_g
        self.J = self.take(np.zeros(n_free * k * k))
        self.copy_J = self.take(np.zeros(n_free * k * k))
        self.u = self.take(np.zeros(n_free * k))
        self.spread = self.take(np.zeros(d * n_free))
        self.spread_directions()
        self.half = self.take(np.zeros(d * n_free))

    cdef void spread_directions(self) noexcept nogil:
        """T_s D T_s' in the unit directions of (r, r) matrices, for the directions D within factors."""
        cdef Py_ssize_t f, s, i, j, a, b, q, n = self.chain.n_free, pos
        cdef double t
        cdef const double* T
        for f in range(n):
            for s in range(self.n_stages):
                q = self.width[s]
                i = self.chain.free_row[f] - self.column[s]
                j = self.chain.free_col[f] - self.column[s]
                if i < 0 or j < 0 or i >= q or j >= q:
                    continue
                T = self.T[s]
                pos = s * self.shape.n_a
                for a in range(self.r):
                    for b in range(a + 1):
                        t = T[a * q + i] * T[b * q + j]
                        self.spread[pos * n + f] = t if i == j else t + T[a * q + j] * T[b * q + i]
                        pos += 1

    # --- evaluation

    cdef int reduce_(self) noexcept nogil:
        cdef Py_ssize_t s, a, i, j, q, r = self.r, k = self.k, pos = 0
        cdef int status
        cdef double t
        memset(self.factors, 0, self.n_stages * r * r * sizeof(double))
        for s in range(self.n_stages):
            q = self.width[s]
            for a in range(r):
                for i in range(q):
                    t = 0.0
                    for j in range(q):
                        t += self.T[s][a * q + j] * self.factor[(self.column[s] + j) * self.q + self.column[s] + i]
                    self.factors[(s * r + a) * r + i] = t
        if self.here is not None:
            self.logdet = self.here.up(self.factors, self.total)
        else:
            with gil:
                status = self.ask_values()
            if status != 0:
                return status
        for i in range(k):
            for j in range(i + 1):
                self.H[pos] = self.within[i * k + j] + self.total[pos]
                pos += 1
        return 0 if isfinite(self.logdet) else -1

    cdef int sweep(self, const double* weight, Py_ssize_t first, bint second, bint traces, Py_ssize_t forms
                   ) noexcept nogil:
        """Down the stages: sums N, f f' and, by `second`, vec(E) vec(E)' and the curvature; the status is returned.

        Parameters
        ----------
        weight : upper triangular (k, k)
            w: f = E w.
        first : int
            First column of w that is not zero.
        traces : bool
            Whether B has the part -N.
        forms : int
            First column of f that counts in B.
        """
        cdef ChainSums sums = ChainSums(first, second, traces, forms, weight, self.stage_n, self.stage_f, self.gram_e,
                                        self.stage_curve)
        if self.here is not None:
            self.here.down(self.factors, &sums)
            return 0
        with gil:
            return self.ask_derivatives(&sums)

    cdef object factors_there(self):
        return copied(self.factors, self.n_stages * self.r, self.r).reshape(self.n_stages, self.r, self.r)

    cdef int ask_values(self) noexcept:
        """`FamilySums.up` of levels elsewhere."""
        cdef const double[::1] found
        raised = None
        try:
            self.logdet, total = self.levels.values(self.factors_there())
            found = total
            memcpy(self.total, &found[0], found.shape[0] * sizeof(double))
        except BaseException as error:
            raised = error
        return set_aside(raised)

    cdef int ask_derivatives(self, const ChainSums* sums) noexcept:
        """`FamilySums.down` of levels elsewhere."""
        cdef const double[::1] found
        raised = None
        try:
            weight = copied(sums.weight, self.k, self.k)
            asked = sums.first, bool(sums.second), bool(sums.traces), sums.forms
            found = self.levels.derivatives(self.factors_there(), weight, asked)
            memcpy(self.stage_n, &found[0], found.shape[0] * sizeof(double))
        except BaseException as error:
            raised = error
        return set_aside(raised)

    cdef void join_curve(self, double scale, double* out) noexcept nogil:
        """out (n_free, n_free) = scale spread' stage_curve spread."""
        cdef Py_ssize_t d = self.n_stages * self.shape.n_a, n = self.chain.n_free, i, j, f, h
        cdef double* half = self.half
        cdef double t
        for i in range(d):
            for f in range(n):
                t = 0.0
                for j in range(d):
                    t += self.stage_curve[i * d + j] * self.spread[j * n + f]
                half[i * n + f] = scale * t
        for f in range(n):
            for h in range(n):
                t = 0.0
                for i in range(d):
                    t += self.spread[i * n + f] * half[i * n + h]
                out[f * n + h] = t

    cdef int differentiate_(self, int done, int order) noexcept nogil:
        cdef Py_ssize_t k = self.k, p = k - 1, first = 0 if self.reml else p, n = self.chain.n_free, i, j
        cdef bint second = order >= 2, exact = not self.average_
        cdef int status = self.sweep(self.gls.weight, first, second, exact, first if exact else p)
        if status != 0:
            return status
        self.join_slope()
        if not second:
            return 0
        self.join_products()
        for i in range(n * k):
            self.u[i] = 0.0
            for j in range(k):
                self.u[i] += self.J[i * k + j] * self.gls.b[j]
        memcpy(self.copy_J, self.J, n * k * k * sizeof(double))
        self.join_curve(1.0 if exact else 0.5, self.curve)
        self.profile_curve(2.0 if exact else 1.0, self.u, self.copy_J if self.reml and exact else NULL)
        return 0

    cdef void join_slope(self) noexcept nogil:
        """sum_n = T'N T and slope = T'(N - f f' / 2) T of every stage."""
        cdef Py_ssize_t s, a, b, i, j, q, at, pos
        cdef double t, N, S
        memset(self.sum_n, 0, self.q * self.q * sizeof(double))
        memset(self.slope, 0, self.q * self.q * sizeof(double))
        for s in range(self.n_stages):
            q = self.width[s]
            for i in range(q):
                for j in range(i + 1):
                    N = 0.0
                    S = 0.0
                    pos = s * self.shape.n_a
                    for a in range(self.r):
                        for b in range(a + 1):
                            t = self.T[s][a * q + i] * self.T[s][b * q + j]
                            if a != b:
                                t += self.T[s][b * q + i] * self.T[s][a * q + j]
                            N += t * self.stage_n[pos]
                            S += t * (self.stage_n[pos] - 0.5 * self.stage_f[pos])
                            pos += 1
                    at = (self.column[s] + i) * self.q + self.column[s] + j
                    self.sum_n[at] = N
                    self.slope[at] = S
                    at = (self.column[s] + j) * self.q + self.column[s] + i
                    self.sum_n[at] = N
                    self.slope[at] = S

    cdef void join_products(self) noexcept nogil:
        """J = sum E'D E for all directions, from sum vec(E) vec(E)' of every stage."""
        cdef Py_ssize_t f, s, i, j, l, a, b, m, q, k = self.k, row, column, n_c = self.shape.n_c
        cdef double t
        cdef const double* T
        cdef const double* gram
        cdef double* J
        memset(self.J, 0, self.chain.n_free * k * k * sizeof(double))
        for f in range(self.chain.n_free):
            J = self.J + f * k * k
            for s in range(self.n_stages):
                q = self.width[s]
                i = self.chain.free_row[f] - self.column[s]
                j = self.chain.free_col[f] - self.column[s]
                if i < 0 or j < 0 or i >= q or j >= q:
                    continue
                T = self.T[s]
                gram = self.gram_e + s * (n_c * (n_c + 1) // 2)
                for a in range(self.r):
                    for b in range(self.r):
                        t = T[a * q + i] * T[b * q + j]
                        if t == 0.0:
                            continue
                        for l in range(k):
                            for m in range(k):
                                row = max(a * k + l, b * k + m)
                                column = min(a * k + l, b * k + m)
                                J[l * k + m] += t * gram[row * (row + 1) // 2 + column]
            if self.chain.free_row[f] != self.chain.free_col[f]:
                for l in range(k):
                    for m in range(l + 1):
                        t = J[l * k + m] + J[m * k + l]
                        J[l * k + m] = t
                        J[m * k + l] = t

    # --- what inference needs, along the unit directions of vech(G^)

    def _complete(self, bint exact):
        """Second derivatives at the last point, exact ones if asked for."""
        self._require(1)
        if self.last_order < 2 or (exact and self.last_average):
            average, self.average = self.average, self.average and not exact
            self.evaluate(copied(self.last, self.n_par, 1)[:, 0], 2)
            self.average = average

    def _placed(self, free):
        """Whole matrices, or stacks, over vech(G^) from those over the directions within factors."""
        n_a = self.q * (self.q + 1) // 2
        rows = np.asarray(<Py_ssize_t[:self.chain.n_free]> <Py_ssize_t*> self.chain.free_row)
        columns = np.asarray(<Py_ssize_t[:self.chain.n_free]> <Py_ssize_t*> self.chain.free_col)
        which = rows * (rows + 1) // 2 + columns
        if free.ndim == 3:
            out = np.zeros((n_a, *free.shape[1:]))
            out[which] = free
        else:
            out = np.zeros((n_a, n_a))
            out[np.ix_(which, which)] = free
        return out

    def curvature(self):
        """Exact second derivatives of the criterion in vech(G^), (n_a, n_a), zero between factors."""
        self._complete(True)
        return self._placed(copied(self.curve, self.chain.n_free, self.chain.n_free))

    def cross(self):
        """sum E_a'D E_a (n_a, k, k) for the unit directions D of vech(G^)."""
        self._complete(False)
        n, k = self.chain.n_free, self.k
        return self._placed(copied(self.J, n * k, k).reshape(n, k, k))

    def traces(self, weight=None):
        """tr(B D N F) (n_a, n_a) for the unit directions, B = N, or (E w)(E w)' for an upper triangular w (k, k)."""
        self._require(1)
        cdef Py_ssize_t k = self.k
        cdef bint plain = weight is None
        cdef double[:, ::1] w = np.ascontiguousarray(np.zeros((k, k)) if plain else weight, dtype=float)
        found = np.empty((self.chain.n_free, self.chain.n_free))
        cdef double[:, ::1] out = found
        cdef int status
        with nogil:
            status = self.sweep(&w[0, 0], k if plain else 0, True, plain, k if plain else 0)
            if status == 0:
                self.join_curve(-1.0 if plain else 1.0, &out[0, 0])
        if status != 0:
            reraise()
        return self._placed(found)

    def sandwich(self, weight):
        """sum_kl w_kl E'D_k N D_l E (k, k) over the unit directions, for a symmetric w (n_a, n_a)."""
        k = self.k
        single = np.empty(k)
        out = np.zeros((k, k))
        for j in range(k):
            for i in range(j + 1):
                column = np.zeros((k, k))
                column[i, j] = column[j, j] = 1.0
                total = float(np.sum(self.traces(column) * weight))
                if i == j:
                    single[j] = out[j, j] = total
                else:
                    out[i, j] = total
        for j in range(k):
            for i in range(j):
                out[i, j] = out[j, i] = 0.5 * (out[i, j] - single[i] - single[j])
        return out
