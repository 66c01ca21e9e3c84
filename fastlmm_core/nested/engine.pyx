# cython: language_level=3
"""Sweeps over the levels of factors nested in each other (see lanes/families.pxi), for `chain.ChainCriterion`."""
from libc.math cimport isfinite
from libc.stdint cimport uintptr_t
from libc.string cimport memset

from cpython.exc cimport PyErr_SetObject

import numpy as np

from fastlmm_core.kernels._criterion cimport kernels
from fastlmm_core.kernels._newton cimport Objective, RAISED
from fastlmm_core.lanes.kernels cimport ChainStage, Shape, make_shape

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
    with nogil:
        kernels.chain_pack(&shape, n_vectors, &order[0], &raw[0, 0], &z_map[0, 0], &xy_map[0, 0], &packed[0], &total[0],
                           &scratch[0])
    return out.reshape(n_vectors, shape.stride, kernels.lanes), between


cdef class ChainEngine(Objective):
    """Sums over the levels of a chain of nested factors, all written in the same r columns.

    Parameters
    ----------
    packed : (n_vectors, r(r+1)/2 + r k + 1, lanes) array
        The levels of the finest factor.
    r, k : int
    starts : list of intp arrays
        For each stage, finest first, the first vector of each block of families.
    parents : list of intp arrays
        For each stage but the last, (n_blocks, lanes): place of the parent, -1 for none.
    n_par : int
        Parameters of the criterion that a subclass makes of the sums by its method
        ``at(theta, order) -> (value, noise, gradient, hessian)``.
    """

    cdef readonly Py_ssize_t r, k, n_stages
    cdef Shape shape
    cdef ChainStage stage[MAX_STAGES]
    cdef list kept
    cdef double[::1] scratch, grad_view, hess_view

    def __cinit__(self, packed, Py_ssize_t r, Py_ssize_t k, starts, parents, Py_ssize_t n_par, *args, **options):
        cdef Py_ssize_t s, n_vectors, n_a, n_c, base, lanes = kernels.lanes, d
        cdef ChainStage* stage
        cdef const Py_ssize_t[::1] index
        cdef double[::1] values
        cdef const double[:, :, ::1] finest = packed
        self.r = r
        self.k = k
        self.n_par = n_par
        self.n_stages = len(starts)
        self.staged = True
        if self.n_stages > MAX_STAGES:
            raise ValueError(f"more than {MAX_STAGES} grouping factors")
        self.shape = make_shape(r, k)
        self.kept = [finest]
        n_a, n_c = self.shape.n_a, self.shape.n_c
        base = 3 * (n_a + n_c) + n_a + r * r
        for s in range(self.n_stages):
            stage = &self.stage[s]
            index = starts[s]
            self.kept.append(index)
            stage.level = s
            stage.n_blocks = index.shape[0] - 1
            stage.start = &index[0]
            n_vectors = index[index.shape[0] - 1]
            stage.packed = &finest[0, 0, 0] if s == 0 else NULL
            stage.stride = n_a + n_c if s == 0 else base + n_a + 2 * n_c + s * n_a * (n_a + n_c)
            # one more for the children that fill up a vector
            values = aligned_zeros((n_vectors + 1) * stage.stride * lanes)
            self.kept.append(values)
            stage.record = &values[0]
            stage.parent = NULL
        for s in range(self.n_stages - 1):
            stage = &self.stage[s]
            places = np.asarray(parents[s], dtype=np.intp)
            places = np.where(places < 0, self.stage[s + 1].start[self.stage[s + 1].n_blocks] * lanes, places)
            stride = self.stage[s + 1].stride
            index = np.ascontiguousarray((places // lanes * stride * lanes + places % lanes).reshape(-1))
            self.kept.append(index)
            stage.parent = &index[0]
            stage.above = self.stage[s + 1].record
            stage.above_q = base
            stage.above_sums = base + n_a + 2 * n_c
        d = self.n_stages * n_a
        self.scratch = aligned_zeros(lanes * (
            15 * r * r + 5 * n_c + 5 * n_a + n_c * (n_c + 1) + k * (k + 1) + d * d + d * (n_a + n_c) + 64))
        self.grad_view = np.zeros(n_par)
        self.hess_view = np.zeros(n_par * n_par)
        self.grad_ = &self.grad_view[0]
        self.hess_ = &self.hess_view[0]

    @property
    def average(self):
        """Whether the Hessian is the average information; exact otherwise."""
        return self.approximate

    @average.setter
    def average(self, bint value):
        self.approximate = value

    cdef void clear(self, Py_ssize_t field, Py_ssize_t width) noexcept nogil:
        """Set a field of all records but the finest stage's to zero; width < 0: up to the end of the record."""
        cdef Py_ssize_t s, v, lanes = kernels.lanes
        cdef ChainStage* stage
        for s in range(1, self.n_stages):
            stage = &self.stage[s]
            for v in range(stage.start[stage.n_blocks]):
                memset(stage.record + (v * stage.stride + field) * lanes, 0,
                       (width if width >= 0 else stage.stride - field) * lanes * sizeof(double))

    def up(self, const double[:, :, ::1] factors):
        """Sums of all levels.

        Parameters
        ----------
        factors : (n_stages, r, r) array
            L_s in the columns that all stages share.

        Returns
        -------
        logdet : float
            log|V|.
        quadratic : (k(k+1)/2,) array
            [X y]'V^-1[X y] less what is left of it within the levels of the finest factor.
        """
        cdef Py_ssize_t s
        cdef double logdet = 0.0
        out = np.zeros(self.k * (self.k + 1) // 2)
        cdef double[::1] total = out
        with nogil:
            self.clear(0, self.shape.n_a + self.shape.n_c)
            for s in range(self.n_stages):
                logdet += kernels.chain_up(&self.shape, &self.stage[s], &factors[s, 0, 0], &total[0], &self.scratch[0])
        return logdet, out

    def down(self, const double[:, :, ::1] factors, const double[:, ::1] weight, Py_ssize_t first, bint second=False,
             bint traces=True, Py_ssize_t forms=0):
        """Sums over the levels of each stage, after `up` with the same factors.

        Parameters
        ----------
        factors : (n_stages, r, r) array
        weight : upper triangular (k, k) array
            w: f = E w.
        first : int
            First column of w that is not zero.
        second : bool
            Also the last two results.
        traces : bool
            Whether B has the part -N.
        forms : int
            First column of F that counts in B.

        Returns
        -------
        sum_n, sum_f : (n_stages, r(r+1)/2) arrays
            sum N and sum f f', lower triangles by rows.
        gram : (n_stages, r k (r k + 1)/2) array
            sum vec(E) vec(E)', packed.
        curve : (n_stages r(r+1)/2, n_stages r(r+1)/2) array
            tr(B D N F), B = F F' [- N], for the unit directions D and F of every stage.
        """
        cdef Py_ssize_t s, i, j, d, n_a = self.shape.n_a, n_c = self.shape.n_c, field
        sum_n = np.zeros((self.n_stages, n_a))
        sum_f = np.zeros((self.n_stages, n_a))
        gram = np.zeros((self.n_stages, n_c * (n_c + 1) // 2))
        curve = np.zeros((self.n_stages * n_a, self.n_stages * n_a))
        part = np.zeros(curve.size)
        cdef double[:, ::1] N = sum_n, f = sum_f, G = gram, total = curve
        cdef double[::1] some = part
        with nogil:
            if second:
                self.clear(self.stage[0].above_sums if self.n_stages > 1 else 0, -1)
            for s in range(self.n_stages - 1, -1, -1):
                kernels.chain_down(&self.shape, &self.stage[s], first, second, traces, forms, &factors[s, 0, 0],
                                   &weight[0, 0], &N[s, 0], &f[s, 0], &G[s, 0], &some[0], &self.scratch[0])
            for s in range(self.n_stages if second else 0):
                d = (s + 1) * n_a
                if s > 0:
                    kernels.chain_second(&self.shape, &self.stage[s], forms, traces, &some[0], &self.scratch[0])
                for i in range(d):
                    for j in range(i + 1):
                        total[i, j] += some[i * d + j]
            for i in range(self.n_stages * n_a):
                for j in range(i):
                    total[j, i] = total[i, j]
        return sum_n, sum_f, gram, curve

    cdef int evaluate_(self, const double* x, int order) noexcept nogil:
        cdef Py_ssize_t i, n = self.n_par
        cdef double[::1] gradient
        cdef double[:, ::1] hessian
        with gil:
            try:
                theta = np.empty(n)
                for i in range(n):
                    theta[i] = x[i]
                self.value_, self.noise_, grad, hess = self.at(theta, order)
                if not isfinite(self.value_):
                    return -1
                if grad is not None:
                    gradient = np.ascontiguousarray(grad)
                    for i in range(n):
                        self.grad_[i] = gradient[i]
                if hess is not None:
                    hessian = np.ascontiguousarray(hess)
                    for i in range(n * n):
                        self.hess_[i] = hessian[i // n, i % n]
            except (FloatingPointError, np.linalg.LinAlgError):
                return -1
            except BaseException as error:
                PyErr_SetObject(type(error), error)
                return RAISED
        return 0
