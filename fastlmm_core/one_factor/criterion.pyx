# cython: language_level=3
"""The criterion of one grouping factor as a function of theta: sweeps over groups, then the algebra of their sums.

The loops over groups are in lanes/lanes.pyx, the formulas of criterion, gradient and Hessian in lanes/profile.pxi; here
they are joined, with the sums of all groups in every lane.
"""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport isfinite
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from functools import lru_cache

import numpy as np

from fastlmm_core.kernels._matrices import MANY
from fastlmm_core.kernels._patterns import stand_for
from fastlmm_core.kernels._whiten import solve_groups

from fastlmm_core.kernels._matrices cimport place, raise_floor
from fastlmm_core.kernels._newton cimport Objective, square, vector
from fastlmm_core.lanes.kernels cimport (
    PART, LaneKernels, PackedGroups, Profile, RawGroups, Shape, Sums, lane_kernels_name, lay_profile, make_shape)
from fastlmm_core.small.arena cimport CACHE_LINE, Arena, furnish, take
from fastlmm_core.small.chain cimport chain_factor

include "parts.pxi"


def use_kernels(table):
    """Take the lane kernels of a variant (see `kernels` of lanes/lanes.pyx); before anything is packed."""
    global kernels
    kernels = (<LaneKernels*> PyCapsule_GetPointer(table, lane_kernels_name()))[0]


def lanes():
    """Groups in a block of packed ones: the lanes of the variant in use."""
    return kernels.lanes


include "groups.pxi"


cdef inline void spread(const double* values, Py_ssize_t n, double* vectors) noexcept nogil:
    """Each value to all lanes of a vector."""
    cdef Py_ssize_t i, lane
    for i in range(n):
        for lane in range(kernels.lanes):
            vectors[i * kernels.lanes + lane] = values[i]


cdef inline void gather(const double* vectors, Py_ssize_t n, double* values) noexcept nogil:
    """The first lane of each vector."""
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = vectors[i * kernels.lanes]


cdef class ClusterCriterion(Objective):
    """The criterion as a function of the free elements of L.

    Parameters
    ----------
    packed : (blocks, K, lanes) array
        Factored groups, possibly compressed.
    within : ((p+1)(p+2)/2,) array
        [X y]'[X y] less its part between groups, packed lower triangle by rows.
    n_rows, q, k : int
    rows, columns : int arrays
        Positions of the free elements of L (rows >= columns).
    uniform : bool
        Whether every group stands for itself (not compressed).
    """

    cdef readonly Py_ssize_t q, k, n_rows
    cdef public bint reml
    cdef Shape shape
    cdef PackedGroups groups
    cdef object owner_packed
    cdef Py_ssize_t* row
    cdef Py_ssize_t* col
    cdef double* buffer
    cdef double* within
    cdef double* basis       # B = Q' (q x q)
    cdef double* factor      # Q'L (q x q)
    cdef double* sum_n
    cdef double* H           # packed
    cdef double* gram
    cdef double* weight      # w of lanes/profile.pxi (k x k)
    cdef double* tensor
    cdef Profile f           # the same in lanes, and what follows from it
    cdef double* scratch
    cdef double* store_buffer
    cdef double* store
    cdef Workshop shop
    cdef double* last        # the last point, its highest derivative and kind
    cdef int last_order
    cdef bint last_reml
    cdef public Py_ssize_t n_evaluations

    def __cinit__(self, packed, within, Py_ssize_t n_rows, Py_ssize_t q, Py_ssize_t k, rows, columns, bint uniform):
        cdef Py_ssize_t n_par = len(rows)
        cdef Arena arena = Arena(NULL, 0)
        self.shape = make_shape(q, k)
        self.q = q
        self.k = k
        self.n_rows = n_rows
        self.n_par = n_par
        self.reml = True
        self.owner_packed = packed
        self.groups = PackedGroups(self.shape, len(packed), uniform, <const double*> place(packed))
        self.last_order = -1
        self.shop = Workshop(1, 0, NULL)
        self.row = <Py_ssize_t*> calloc(2 * n_par, sizeof(Py_ssize_t))
        self.lay(&arena)
        self.buffer = furnish(&arena)
        if self.row == NULL or self.buffer == NULL:
            raise MemoryError()
        self.lay(&arena)
        self.col = self.row + n_par
        memcpy(self.row, place(rows), n_par * sizeof(Py_ssize_t))
        memcpy(self.col, place(columns), n_par * sizeof(Py_ssize_t))
        self.f.chain.row = self.row
        self.f.chain.col = self.col
        memcpy(self.within, place(within), k * (k + 1) // 2 * sizeof(double))

    cdef void lay(self, Arena* arena) noexcept:
        """Take the work space."""
        cdef Py_ssize_t q = self.q, k = self.k, n_a = self.shape.n_a, n_c = self.shape.n_c, n_h = k * (k + 1) // 2
        cdef Py_ssize_t n_g = n_c * (n_c + 1) // 2
        self.within = take(arena, n_h)
        self.basis = take(arena, q * q)
        self.factor = take(arena, q * q)
        self.sum_n = take(arena, n_a)
        self.H = take(arena, n_h)
        self.gram = take(arena, n_g)
        self.weight = take(arena, k * k)
        self.tensor = take(arena, n_a * n_a)
        self.last = take(arena, self.n_par)
        self.grad_ = take(arena, self.n_par)
        self.hess_ = take(arena, self.n_par * self.n_par)
        self.scratch = take(arena, self.n_scratch())
        self.f.chain.q = q
        self.f.chain.n_par = self.n_par
        self.f.gls.k = k
        lay_profile(&self.f, arena, kernels.lanes)

    def __dealloc__(self):
        free(self.row)
        free(self.buffer)
        free(self.store_buffer)
        free(self.shop.memory)

    @property
    def jobs(self):
        """Threads at most; the numbers do not depend on them."""
        return self.shop.jobs

    @jobs.setter
    def jobs(self, Py_ssize_t jobs):
        self.shop.jobs = jobs

    cdef Py_ssize_t n_scratch(self) noexcept nogil:
        cdef Py_ssize_t q = self.q, k = self.k, n_a = self.shape.n_a, n_c = self.shape.n_c
        return kernels.lanes * (
            3 * q * q + 2 * n_c + 2 * n_a + n_a * n_a + k * (k + 1) // 2 + n_c * (n_c + 1) // 2)

    cdef int provide(self, Sweep* sweep) noexcept nogil:
        """Room for sweeps in parts, where there are several."""
        cdef Py_ssize_t n_a = self.shape.n_a, k = self.k, n_c = self.shape.n_c
        cdef Py_ssize_t most = max(1 + n_a + k * (k + 1) // 2 + n_c * (n_c + 1) // 2, n_a * n_a)
        if self.groups.n_blocks <= PART:
            return 0
        return equip(&self.shop, sweep, self.groups.n_blocks, most, self.n_scratch())

    cdef int evaluate_(self, const double* x, int order) noexcept nogil:
        cdef Py_ssize_t q = self.q, k = self.k, p = k - 1, n_h = k * (k + 1) // 2, n_a = self.shape.n_a, i
        cdef Py_ssize_t n_c = self.shape.n_c
        cdef double logdet, nu
        cdef Sums sums
        cdef Sweep sweep
        cdef bint same = self.last_order >= order and self.last_reml == self.reml
        cdef Profile* f = &self.f
        for i in range(self.n_par):
            same = same and x[i] == self.last[i]
        if same:
            return 0
        self.n_evaluations += 1
        self.last_order = -1
        if order >= 2 and self.store == NULL:
            # written before it is read: nothing to set to zero
            self.store_buffer = <double*> malloc(
                (self.groups.n_blocks * (n_a + n_c) * kernels.lanes + CACHE_LINE) * sizeof(double))
            if self.store_buffer == NULL:
                return -1
            self.store = <double*> ((<uintptr_t> self.store_buffer + 63) & ~(<uintptr_t> 63))
        if self.provide(&sweep) < 0:
            return -1
        chain_factor(&f.chain, x, self.factor)
        memcpy(self.H, self.within, n_h * sizeof(double))
        sums.sum_n = self.sum_n
        sums.sum_h = self.H
        sums.gram = self.gram if order >= 1 else NULL
        sums.store = self.store if order >= 2 else NULL
        sums.root = NULL
        logdet = sum_moments(&self.groups, self.factor, &sums, self.scratch, &self.shop, &sweep)
        f.gls.reml = self.reml
        nu = <double> (self.n_rows - p if self.reml else self.n_rows)
        spread(&nu, 1, f.gls.nu)
        spread(&logdet, 1, f.gls.logdet)
        spread(self.H, n_h, f.gls.H)
        spread(self.factor, q * q, f.factor)
        if order >= 1:
            spread(self.sum_n, n_a, f.sum_n)
            spread(self.gram, n_c * (n_c + 1) // 2, f.gram)
        kernels.profile_value(f, order)
        self.value_ = f.gls.value[0]
        self.noise_ = f.gls.noise[0]
        if not isfinite(self.value_):
            return -1
        if order >= 2:
            gather(f.gls.weight, k * k, self.weight)
            sum_curvature(&self.groups, 0 if self.reml else p, self.weight, self.store, self.tensor, self.scratch,
                          &self.shop, &sweep)
            spread(self.tensor, n_a * n_a, f.tensor)
            kernels.profile_second(f, order)
            gather(f.hess, self.n_par * self.n_par, self.hess_)
        if order >= 1:
            gather(f.grad, self.n_par, self.grad_)
        memcpy(self.last, x, self.n_par * sizeof(double))
        self.last_order = order
        self.last_reml = self.reml
        return 0

    def rotate(self, turn=None):
        """Let theta be the free elements of L in G^ = Q'L L'Q from now on.

        Parameters
        ----------
        turn : (q, q) orthogonal array or None
            Q, block diagonal like G^; None for the identity.
        """
        cdef double[:, ::1] q_view
        cdef Py_ssize_t i, q = self.q
        self.last_order = -1
        self.f.chain.basis = NULL
        if turn is None:
            return
        q_view = np.array(np.transpose(turn), dtype=float, order="C").reshape(q, q)
        for i in range(q * q):
            self.basis[i] = q_view[i // q, i % q]
        self.f.chain.basis = self.basis

    def solution(self):
        """Coefficients, r^2, Cholesky factor of H_xx, and the derivatives in vech(G^) at the last point of order 2.

        Returns
        -------
        beta : (p,) array
        r2 : float
        chol : (p, p) lower triangular array
        gradient : (q, q) array
            Derivative of the criterion in G^, as a symmetric matrix.
        """
        cdef Py_ssize_t k = self.k, q = self.q, p = self.k - 1
        cdef Py_ssize_t i, j
        chol_array = np.zeros((p, p))
        beta_array = np.empty(p)
        cdef double* chol = <double*> place(chol_array)
        cdef double* beta = <double*> place(beta_array)
        for i in range(p):
            beta[i] = -self.f.gls.b[i * kernels.lanes]
            for j in range(i + 1):
                chol[i * p + j] = self.f.gls.chol[(i * k + j) * kernels.lanes]
        return beta_array, self.f.gls.r2[0], chol_array, square(self.f.g, q, kernels.lanes)

    def of_rank(self, Py_ssize_t rank):
        """The criterion as a function of L with so many columns, a lower trapezium:
        of all G^ = L L' of that rank at most."""
        cdef Py_ssize_t n_h = self.k * (self.k + 1) // 2
        rows, columns = np.tril_indices(self.q, 0, rank)
        within = vector(self.within, n_h)
        out = ClusterCriterion(
            self.owner_packed, within, self.n_rows, self.q, self.k, rows, columns, self.groups.uniform)
        out.reml = self.reml
        return out

    def moment_start(self, double n, double n_groups, double sigma2, double floor):
        """Free elements of L from the second moments of Z_i'(y_i - X_i beta), as if all groups had the same Z_i'Z_i.

        At L = 0 the gradient in G^ holds sum_i Z_i'r_i r_i'Z_i.  With a = n / m rows to a group it is expected to be
        m (a^2 G^ + a I) sigma^2.  By REML m and the degrees of freedom of sigma^2 are less what X explains between
        groups and within them: the start is then the optimum where all groups are alike and X is constant
        or the same in all.

        Parameters
        ----------
        n, n_groups : float
        sigma2 : float
            Residual variance; not positive: take half of the variation.
        floor : float
            Least eigenvalue of G^.

        Returns
        -------
        (n_par,) array or None
            None where the criterion is not finite at L = 0.
        """
        cdef Py_ssize_t q = self.q, i
        cdef double a = n / n_groups, rest = n - n_groups * q, share, explained = 0.0, between
        cdef bint reml = self.reml
        cdef int status
        cdef Arena arena = Arena(NULL, 0)
        take(&arena, self.n_par + 4 * q * q + q)
        cdef double* memory = furnish(&arena)
        if memory == NULL:
            raise MemoryError()
        cdef double* slope = arena.base + self.n_par
        cdef double* factor = slope + q * q
        # arena.base: theta = 0
        self.reml = False
        with nogil:
            status = self.evaluate_(arena.base, 1)
        self.reml = reml
        try:
            if status != 0:
                return None
            for i in range(self.k - 1 if reml else 0):
                between = min(max(1.0 - self.within[i * (i + 3) // 2], 0.0), 1.0)
                explained += between
                rest -= 1.0 - between
            if not sigma2 > 0.0:
                sigma2 = 0.5 * self.f.gls.r2[0] / n
            elif rest > 1.0:
                sigma2 *= (n - n_groups * q) / rest
            gather(self.f.g, q * q, slope)
            share = self.f.gls.r2[0] / (n * max(n_groups - explained / q, 1.0) * sigma2 * (a * a))
            raise_floor(q, slope, floor, -share, n * share - 1.0 / a, factor + q * q, factor)
            for i in range(self.n_par):
                arena.base[i] = factor[self.row[i] * q + self.col[i]]
            return vector(arena.base, self.n_par)
        finally:
            free(memory)

    def curvature(self):
        """Second derivatives of the criterion in vech(G^) (lower triangle by rows) at the last point of order 2."""
        cdef Py_ssize_t n_a = self.shape.n_a
        return square(self.f.curve, n_a, kernels.lanes)

    def _require(self, int order):
        if self.last_order < order:
            raise ValueError(f"evaluate with order={order} first")

    def solve(self, v, rows):
        """V^-1 v by rows at the last point, V relative to sigma^2.

        Parameters
        ----------
        v : (n,) or (n, k) array
        rows : engines.rows.Rows
            The rows that v belongs to.

        Returns
        -------
        array like v
        """
        self._require(0)
        return solve_rows(v, rows, square(self.factor, self.q))

    def precision(self):
        """sum N_i (q, q), N_i = Z_i'V_i^-1 Z_i, at the last point of order 1 or more."""
        self._require(1)
        n_a = self.shape.n_a
        return vector(self.sum_n, n_a)[unpacking(self.q)]

    def cross(self):
        """sum E_i'D E_i for the unit directions D of vech(G^), E_i = Z_i'V_i^-1 [X_i y_i],
        at the last point of order 1.

        Returns
        -------
        (n_a, k, k) array
            Minus the derivative of [X y]'V^-1[X y].
        """
        self._require(1)
        cdef Py_ssize_t q = self.q, k = self.k, a, b, i, j, l, r, pos = 0
        cdef double t
        found = np.empty((self.shape.n_a, k, k))
        cdef double[:, :, ::1] out = found
        for a in range(q):
            for b in range(a + 1):
                for i in range(k):
                    for j in range(k):
                        l = a * k + i
                        r = b * k + j
                        t = self.gram[l * (l + 1) // 2 + r] if l >= r else self.gram[r * (r + 1) // 2 + l]
                        if a != b:
                            l = a * k + j
                            r = b * k + i
                            t += self.gram[l * (l + 1) // 2 + r]
                        out[pos, i, j] = t
                pos += 1
        return found

    def traces(self, weight=None):
        """tr(sum B_i D N_i F) for the unit directions D, F of vech(G^) at the last point of order 2.

        Parameters
        ----------
        weight : upper triangular (k, k) array or None
            B_i = (E_i w)(E_i w)'; without a weight B_i = N_i.

        Returns
        -------
        (n_a, n_a) array
        """
        self._require(2)
        cdef Py_ssize_t n_a = self.shape.n_a, k = self.k
        cdef double[:, ::1] w = np.ascontiguousarray(np.zeros((k, k)) if weight is None else weight, dtype=float)
        cdef double[:, ::1] out
        counted = np.empty((n_a, n_a))
        out = counted
        cdef Sweep sweep
        if self.provide(&sweep) < 0:
            raise MemoryError()
        with nogil:
            sum_curvature(&self.groups, k, &w[0, 0], self.store, &out[0, 0], self.scratch, &self.shop, &sweep)
        if weight is None:
            return contracted(-counted, self.q)
        both = np.empty((n_a, n_a))
        out = both
        with nogil:
            sum_curvature(&self.groups, 0, &w[0, 0], self.store, &out[0, 0], self.scratch, &self.shop, &sweep)
        return contracted(both - counted, self.q)

    def sandwich(self, weight):
        """sum_kl w_kl E_i'D_k N_i D_l E_i over groups and the unit directions of vech(G^),
        at the last point of order 2.

        Parameters
        ----------
        weight : symmetric (n_a, n_a) array

        Returns
        -------
        (k, k) array
        """
        self._require(2)
        cdef Py_ssize_t n_a = self.shape.n_a, n_c = self.shape.n_c, q = self.q, k = self.k
        total = self.groups.n_blocks * (n_a + n_c) * kernels.lanes
        store = np.asarray(<double[:total]> self.store).reshape(self.groups.n_blocks, n_a + n_c, kernels.lanes)
        parts = store.transpose(1, 0, 2).reshape(n_a + n_c, -1)
        omega = sandwich_map(weight, q) @ parts[:n_a]
        E = parts[n_a:].reshape(q, k, -1)
        out = np.zeros((k, k))
        for a in range(q):
            out += (omega[a][:, None] * E).sum(axis=0) @ E[a].T
        return 0.5 * (out + out.T)


def solve_rows(v, rows, factor):
    """V^-1 v by rows for G^ = L L', V relative to sigma^2.

    Parameters
    ----------
    v : (n,) or (n, k) array
    rows : engines.rows.Rows
        The rows that v belongs to.
    factor : (q, q) array
        L.

    Returns
    -------
    array like v
    """
    v = np.asarray(v, dtype=float)
    index = np.ascontiguousarray(rows.codes[0], dtype=np.int64)
    columns = np.ascontiguousarray(v.reshape(len(v), -1))
    n_groups = int(index.max(initial=-1)) + 1
    return solve_groups(columns, rows.Z[0], index, n_groups, factor, rows.weights).reshape(v.shape)


def sandwich_map(weight, q):
    """sum_kl w_kl D_k N D_l as a linear map of vech(N), over the unit directions of vech(G^): (q, q, n_a)."""
    directions = unit_directions(q)
    n_a = len(directions)
    right = (weight @ directions.reshape(n_a, -1)).reshape(n_a, 1, q, q)
    return (directions[:, None] @ directions @ right).sum(axis=0).transpose(1, 2, 0)


@lru_cache(maxsize=32)
def unpacking(n):
    """Place of each element of a symmetric matrix in its lower triangle packed by rows."""
    rows, columns = np.tril_indices(n)
    out = np.empty((n, n), dtype=np.intp)
    out[rows, columns] = out[columns, rows] = np.arange(len(rows))
    return out


@lru_cache(maxsize=8)
def unit_directions(q):
    """(n_a, q, q): the symmetric unit directions of vech(G^), lower triangle by rows; not to be written to."""
    rows, columns = np.tril_indices(q)
    out = np.zeros((len(rows), q, q))
    out[np.arange(len(rows)), rows, columns] = 1.0
    out[np.arange(len(rows)), columns, rows] = 1.0
    out.setflags(write=False)
    return out


def contracted(tensor, q):
    """tr(B D N F) for unit directions D, F from sum B[ab] N[cd], both by lower triangles."""
    if q > 4:
        return traces_of(tensor, q)
    # for small q as one product with a table
    return (contraction(q) @ tensor.ravel()).reshape(tensor.shape)


@lru_cache(maxsize=4)
def contraction(q):
    n = q * (q + 1) // 2
    return np.array([traces_of(unit.reshape(n, n), q).ravel() for unit in np.eye(n * n)]).T.copy()


def traces_of(tensor, q):
    place = unpacking(q)
    directions = unit_directions(q)
    half = np.tensordot(directions, tensor[place[:, :, None, None], place], axes=((1, 2), (1, 2)))
    return np.einsum("kad,lda->kl", half, directions)
