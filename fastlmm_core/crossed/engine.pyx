# cython: language_level=3
"""The criterion of several grouping factors as a function of theta.

The same profiled criterion as for one factor (see lanes/profile.pxi), with sums over groups replaced by sums over the
levels of all factors: with N = Z'V^-1 Z, E = Z'V^-1 [X y], e = E b, b = (-beta, 1) and K = H_xx^-1

    d = log|V| + nu (1 + log(2 pi r^2 / nu)) [+ log|H_xx|]
    d_D d     = tr D (N - (nu / r^2) e e' [- E_x K E_x'])
    d_D d_F d = -tr(D N F N) + (2 nu / r^2) (e'D N F e - u_D'K u_F) - (nu / r^4) s_D s_F
                [+ 2 tr(K E_x'D N F E_x) - tr(K J_D K J_F)],     u_D = E_x'D e, s_D = e'D e, J_D = E_x'D E_x

where a direction D of G^ acts on every level of its factor.  Leaving out the two traces of matrices and halving what
remains of the second derivative but its rank one term gives the average information (Gilmour, Thompson and Cullis
1995, Biometrics 51, 1440-1450): as good for Newton's steps, for the price of one solution per parameter.
"""
from libc.math cimport M_PI, NAN, fabs, isfinite, log, sqrt
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from cpython.exc cimport PyErr_Occurred
from scipy.linalg.cython_blas cimport dgemm, dsymm, dsyrk, dtrmm, dtrsm
from scipy.linalg.cython_lapack cimport dlauum, dpotrf, dpotri, dtrtri

import numpy as np

from fastlmm_core.kernels._matrices cimport jacobi
from fastlmm_core.kernels._newton cimport Objective, failed, reraise

from fastlmm_core.kernels._levels import sort_rows

cdef extern from "Python.h":
    void* set_no_memory "PyErr_NoMemory"() noexcept     # NULL

include "elimination.pxi"
include "dense.pxi"
include "substitution.pxi"
include "posterior.pxi"
include "sparse.pxi"
include "curvature.pxi"


cdef struct Level:
    # the levels of one factor
    Py_ssize_t m, q, column
    const Py_ssize_t* at        # (m,) first slot

cdef double NEARLY_SINGULAR = 1e-3
"""L^2 K below which N of the tail is not taken from I - S^-1, which would cancel."""

cdef class BlockedEngine(Objective):
    """The criterion as a function of the free elements of L; `blocked.BlockedCriterion` adds what inference needs.

    Parameters
    ----------
    layout : layout.Layout
        Levels, neighbours and products.
    cross : (n_slots, k) array
        Z'[X y], in the layout's order.
    gram : (k, k) array
        [X y]'[X y].
    n_rows, q : int
    rows, columns : int arrays
        Positions of the free elements of L (rows >= columns).
    average : bool
        Whether the Hessian is the average information; exact otherwise.
    """

    cdef readonly Py_ssize_t q, k, n_rows, n_slots
    cdef public bint reml
    cdef bint average_
    cdef public Py_ssize_t n_evaluations
    cdef Elimination e
    cdef list kept                  # arrays that the pointers of e lead to
    cdef readonly object layout
    cdef object given_array, V_array, U_array, X_array
    cdef double* given              # Z'[X y]
    cdef double* gram
    cdef double* V                  # E (n_slots, k)
    cdef double* U
    cdef double* X
    cdef double* R                  # (n_slots, n_free): D e, then N D e
    cdef double* NR
    cdef Py_ssize_t n_free
    cdef Py_ssize_t* free_row       # free elements of G^
    cdef Py_ssize_t* free_col
    cdef Py_ssize_t* row
    cdef Py_ssize_t* col
    cdef double* H
    cdef double* chol
    cdef double* inverse
    cdef double* b
    cdef double* weight
    cdef double* factor
    cdef double* sum_n
    cdef double* slope
    cdef double* curve
    cdef double* jac
    cdef double* small
    cdef double* turn
    cdef bint turned
    cdef double r2, logdet, log_h, nu
    cdef Py_ssize_t wide            # columns that `apply` takes at a time
    cdef Level level[2 * MAX_FACTORS]
    cdef Py_ssize_t n_factors
    cdef double* normal             # N (n_slots, n_slots), and work space; NULL until it is wanted
    cdef double* spare
    cdef double* last
    cdef int last_order
    cdef int kept_order             # what is known about G^ at the last point before a rotation, -1 where none was since
    cdef bint last_reml, last_average, full

    def __cinit__(self, layout, cross, gram, Py_ssize_t n_rows, Py_ssize_t q, rows, columns, bint average=True):
        cdef Py_ssize_t i, n_par = len(rows), k = cross.shape[1], n_tail, wide, largest
        self.kept = []
        self.layout = layout
        self.q = q
        self.k = k
        self.n_rows = n_rows
        self.n_par = n_par
        self.reml = True
        self.average = average
        self.kept_order = -1
        self.last_order = -1
        free = np.zeros((q, q), dtype=bool)
        free[rows, columns] = True
        for start, stop in blocks_of(rows, columns, q):
            free[start:stop, start:stop] = np.tri(stop - start, dtype=bool)
        free_row, free_col = np.nonzero(free)
        self.n_free = len(free_row)
        self.full = False
        self.row = self.take_index(rows)
        self.col = self.take_index(columns)
        self.free_row = self.take_index(free_row)
        self.free_col = self.take_index(free_col)
        wide = max(k, self.n_free) if average else max(k, self.n_free, 32)
        self.wide = wide
        self.staged = True
        self.lay_out(layout)
        n_tail = self.n_slots - self.e.tail_slot
        self.V_array = np.zeros((self.n_slots, k))
        self.given_array = np.ascontiguousarray(cross, dtype=float)
        self.given = self.take(self.given_array)
        self.gram = self.take(gram)
        self.V = self.take(self.V_array)
        self.U = self.take(np.zeros(self.n_slots * wide))
        self.X = self.take(np.zeros(2 * n_tail * wide))
        self.R = self.take(np.zeros(self.n_slots * wide))
        self.NR = self.take(np.zeros(self.n_slots * wide))
        self.H = self.take(np.zeros(k * k))
        self.chol = self.take(np.zeros(k * k))
        self.inverse = self.take(np.zeros(k * k))
        self.b = self.take(np.zeros(k))
        self.weight = self.take(np.zeros(k * k))
        self.factor = self.take(np.zeros(q * q))
        self.sum_n = self.take(np.zeros(q * q))
        self.slope = self.take(np.zeros(q * q))
        self.curve = self.take(np.zeros(self.n_free * self.n_free))
        self.jac = self.take(np.zeros(2 * self.n_free * n_par))
        self.small = self.take(np.zeros(4 * q * q + 2 * k + self.n_free * k + 8))
        self.turn = self.take(np.eye(q))
        self.last = self.take(np.zeros(n_par))
        self.grad_ = self.take(np.zeros(n_par))
        self.hess_ = self.take(np.zeros(n_par * n_par))

    cdef double* take(self, array) except? NULL:
        """Pointer to an array that lives as long as the criterion."""
        cdef double[::1] view
        array = np.ascontiguousarray(array, dtype=float)
        flat = array.reshape(-1) if array.size else np.zeros(1)
        if not flat.flags.writeable:
            flat = flat.copy()
        self.kept.append(flat)
        view = flat
        return &view[0]

    cdef Py_ssize_t* take_index(self, array) except? NULL:
        cdef const Py_ssize_t[::1] view
        flat = np.ascontiguousarray(array, dtype=np.intp).reshape(-1)
        flat = flat if flat.size else np.zeros(1, dtype=np.intp)
        self.kept.append(flat)
        view = flat
        return <Py_ssize_t*> &view[0]

    cdef int* take_slots(self, array) except? NULL:
        cdef const int[::1] view
        flat = np.ascontiguousarray(array, dtype=np.intc).reshape(-1)
        flat = flat if flat.size else np.zeros(1, dtype=np.intc)
        self.kept.append(flat)
        view = flat
        return <int*> &view[0]

    cdef lay_out(self, layout):
        cdef Elimination* e = &self.e
        cdef Stage* f
        cdef Tail* g
        cdef Py_ssize_t i, slot = 0, widest = 1, largest = 1
        if len(layout.stages) > MAX_FACTORS or len(layout.tails) > MAX_FACTORS:
            raise ValueError(f"more than {MAX_FACTORS} grouping factors")
        e.n_stages = len(layout.stages)
        e.n_tails = len(layout.tails)
        for i, stage in enumerate(layout.stages):
            f = &e.stage[i]
            f.m, f.q, f.qc, f.column, f.slot = stage.m, stage.q, stage.chain.shape[2], stage.column, slot
            slot += f.m * f.q
            largest = max(largest, f.q)
            f.parent = self.take_index(stage.parent) if stage.parent is not None else NULL
            f.own0 = self.take(stage.own)
            f.chain0 = self.take(stage.chain)
            if e.n_tails:
                f.comp = self.take_index(stage.comp)
                f.start = self.take_index(stage.start)
                f.nbr = self.take_slots(stage.slots)
                f.up = self.take_slots(stage.up) if stage.up is not None else NULL
                f.panel0 = self.take(stage.panel)
                widest = max(widest, int(np.diff(stage.start).max()))
            f.own, f.chain, f.panel = f.own0, f.chain0, f.panel0
            if i > 0:
                f.own = self.take(np.array(stage.own))
                f.chain = self.take(np.array(stage.chain))
                f.cov = self.take(np.zeros(f.m * f.q * f.q))
                f.cov_chain = self.take(np.zeros(f.m * f.q * f.qc))
                if e.n_tails:
                    f.panel = self.take(np.array(stage.panel))
                    f.cov_panel = self.take(np.zeros(len(stage.panel)))
            f.mid = self.take(np.zeros(f.m * f.q * f.q))
            f.proj = self.take(np.zeros(f.m * f.q * f.q))
            f.factor = self.take(np.zeros(f.q * f.q))
            f.G = self.take(np.zeros(f.q * f.q))
        e.tail_slot = slot
        for i, tail in enumerate(layout.tails):
            g = &e.tail[i]
            g.m, g.q, g.column = tail.m, tail.q, tail.column
            slot += g.m * g.q
            largest = max(largest, g.q)
            g.slot = self.take_index(tail.slot)
            g.comp = self.take_index(tail.comp)
            g.start = self.take_index(tail.start)
            g.nbr = self.take_slots(tail.slots)
            g.own0 = self.take(tail.own)
            g.panel0 = self.take(tail.panel)
            g.factor = self.take(np.zeros(g.q * g.q))
            g.G = self.take(np.zeros(g.q * g.q))
            g.lift = self.take(np.zeros(g.q * g.q))
            g.rest = self.take(np.zeros(g.q * g.q))
        e.n_slots = slot
        self.n_slots = slot
        self.n_factors = e.n_stages + e.n_tails
        for i in range(e.n_stages):
            f = &e.stage[i]
            self.level[i] = Level(f.m, f.q, f.column, self.take_index(f.slot + f.q * np.arange(f.m)))
        for i, tail in enumerate(layout.tails):
            first = e.tail_slot + np.asarray(layout.comp_slot)[tail.comp] + tail.slot
            self.level[e.n_stages + i] = Level(tail.m, tail.q, tail.column, self.take_index(first))
        comp_slot, core_slot = np.asarray(layout.comp_slot), np.asarray(layout.core_slot)
        core_first = core_slot - comp_slot[: len(core_slot)]
        for i, stage in enumerate(layout.stages if e.n_tails else ()):
            f = &e.stage[i]
            level = np.repeat(np.arange(stage.m), np.diff(stage.start))
            core = stage.slots >= core_first[stage.comp[level]]
            f.skip = self.take_index(np.bincount(level[~core], minlength=stage.m))
            f.rowwise = e.n_stages == 1 and f.q == 1
            chosen = slice(None) if f.rowwise else np.flatnonzero(~core)
            if f.rowwise or layout.sparse is not None:
                back, entry = sort_rows((stage.slots + comp_slot[stage.comp[level]])[chosen], slot - e.tail_slot)
                entry = entry if f.rowwise else chosen[entry]
                f.back = self.take_index(back)
                f.entry = self.take_index(entry)
                f.level = self.take_index(level[entry])
                if e.n_stages == 1:
                    f.quad = self.take(np.zeros(f.m * f.q * f.q))
                else:
                    f.reach = self.take(np.zeros(len(stage.panel)))
        owner = np.concatenate([np.full(tail.m, i) for i, tail in enumerate(layout.tails)] + [np.zeros(0, dtype=int)])
        comps = np.concatenate([tail.comp for tail in layout.tails] + [np.zeros(0, dtype=np.intp)])
        places = np.concatenate([tail.slot for tail in layout.tails] + [np.zeros(0, dtype=np.intp)]) - core_first[comps]
        for i, tail in enumerate(layout.tails):
            e.tail[i].core = self.take_index(np.maximum(tail.slot - core_first[tail.comp], -1))
        owner, comps, places = owner[places >= 0], comps[places >= 0], places[places >= 0]
        order = np.lexsort((places, comps))
        e.block_tail = self.take_index(owner[order])
        e.block_slot = self.take_index(places[order])
        e.comp_block = self.take_index(np.searchsorted(comps[order], np.arange(len(comp_slot))))
        sizes = comp_slot[1:] - core_slot
        e.n_comps = len(sizes)
        e.comp_slot = self.take_index(comp_slot)
        e.core_slot = self.take_index(core_slot)
        e.core_size = self.take_index(sizes)
        e.sparse.n = 0
        if layout.sparse is not None:
            self.lay_out_sparse(layout.sparse, core_first)
        squares = np.concatenate([[0], np.cumsum(sizes * sizes)]).astype(np.intp)
        e.comp_start = self.take_index(squares)
        e.n_dense = int(squares.max())
        e.K = self.take(np.empty(e.n_dense))
        e.S = self.take(np.empty(e.n_dense))
        e.cov = self.take(np.empty(e.n_dense))
        e.work = NULL
        e.width = largest * (widest + sum(stage.q for stage in layout.stages) + 4 * largest)
        wide = self.wide
        scratch = max(e.width + 2 * largest * largest, largest * wide, slot - e.tail_slot, 3 * largest * largest)
        e.scratch = self.take(np.empty(scratch))
        e.wide = wide
        e.block = NULL
        if e.n_tails and max(stage.q for stage in layout.stages) >= WIDE:
            e.block = self.take(np.empty(widest * max(widest, wide)))
        e.partial = self.take(np.zeros(self.k * self.k))
        e.place = self.take_slots(np.zeros(widest, dtype=np.intc))

    cdef lay_out_sparse(self, sparse, core_first):
        cdef Sparse* f = &self.e.sparse
        f.n = len(sparse.slot)
        f.tail = self.take_index(sparse.tail)
        f.comp = self.take_index(sparse.comp)
        f.slot = self.take_index(sparse.slot)
        f.start = self.take_index(sparse.start)
        f.nbr = self.take_slots(sparse.slots)
        f.own_at = self.take_index(sparse.own_at)
        f.panel_at = self.take_index(sparse.panel_at)
        f.n_own = len(sparse.own)
        f.n_panel = len(sparse.panel)
        f.own0 = self.take(sparse.own)
        f.panel0 = self.take(sparse.panel)
        f.own = self.take(np.zeros(f.n_own))
        f.mid = self.take(np.zeros(f.n_own))
        f.proj = self.take(np.zeros(f.n_own))
        f.cov = self.take(np.zeros(f.n_own))
        f.panel = self.take(np.zeros(f.n_panel))
        f.cov_panel = self.take(np.zeros(f.n_panel))
        node = np.repeat(np.arange(f.n), np.diff(sparse.start))
        early = sparse.slots < core_first[sparse.comp[node]]
        f.skip = self.take_index(np.bincount(node[early], minlength=f.n))
        slots = sparse.slots + np.asarray(self.layout.comp_slot)[sparse.comp[node]]
        chosen = np.flatnonzero(early)
        back, entry = sort_rows(slots[chosen], self.e.n_slots - self.e.tail_slot)
        f.back = self.take_index(back)
        f.entry = self.take_index(chosen[entry])
        f.level = self.take_index(node[chosen[entry]])
        f.where = self.take_slots(np.zeros(int(np.diff(self.layout.comp_slot).max()), dtype=np.intc))

    @property
    def average(self):
        """Whether the Hessian is the average information."""
        return self.average_

    @average.setter
    def average(self, bint value):
        self.average_ = value
        self.approximate = value

    def __dealloc__(self):
        free(self.e.work)
        free(self.normal)
        free(self.spare)

    # --- evaluation

    cdef void set_lambda(self, const double* x) noexcept nogil:
        """L over all factors from theta."""
        cdef Py_ssize_t i, j, q = self.q
        memset(self.factor, 0, q * q * sizeof(double))
        for i in range(self.n_par):
            if not self.turned:
                self.factor[self.row[i] * q + self.col[i]] = x[i]
            else:
                for j in range(q):
                    self.factor[j * q + self.col[i]] += self.turn[self.row[i] * q + j] * x[i]

    cdef void set_factors(self) noexcept nogil:
        """L of each factor, and which of its directions are nearly singular."""
        cdef Py_ssize_t i, j, s
        cdef Elimination* e = &self.e
        cdef Tail* g
        cdef double mean
        for s in range(e.n_stages):
            self.set_factor(e.stage[s].q, e.stage[s].column, e.stage[s].factor, e.stage[s].G)
        for s in range(e.n_tails):
            g = &e.tail[s]
            self.set_factor(g.q, g.column, g.factor, g.G)
            mean = 0.0
            for i in range(g.m):
                for j in range(g.q):
                    mean += g.own0[(i * g.q + j) * g.q + j]
            split(g, mean / (g.m * g.q), self.small)

    cdef void set_factor(self, Py_ssize_t q, Py_ssize_t column, double* L, double* G) noexcept nogil:
        cdef Py_ssize_t i, j, r
        cdef double t
        for i in range(q):
            for j in range(q):
                L[i * q + j] = self.factor[(column + i) * self.q + column + j]
        for i in range(q):
            for j in range(q):
                t = 0.0
                for r in range(q):
                    t += L[i * q + r] * L[j * q + r]
                G[i * q + j] = t

    cdef int evaluate_(self, const double* x, int order) noexcept nogil:
        cdef Py_ssize_t i
        cdef int done = self.last_order
        cdef bint same = done >= 0 and self.last_reml == self.reml
        for i in range(self.n_par):
            same = same and x[i] == self.last[i]
        if not same:
            done = self.turned_point(x) if self.kept_order >= 0 and self.last_reml == self.reml else -1
        self.kept_order = -1
        if done == 2 and self.last_average != self.average_:
            done = 1
        if done >= order:
            return 0
        self.last_order = -1
        if done < 0:
            self.n_evaluations += 1
            if not self.value_at(x):
                return failed()
            memcpy(self.last, x, self.n_par * sizeof(double))
            self.last_reml = self.reml
        if done < 1 and order >= 1:
            if not self.gradient_at():
                return failed()
        if order >= 2:
            self.last_order = 1
            if self.average_:
                self.average_information()
            else:
                if not self.exact_information():
                    return failed()
            self.last_average = self.average_
            self.chain_hessian()
        self.last_order = order if order > done else done
        return 0

    cdef int turned_point(self, const double* x) noexcept nogil:
        """Order of what is known at theta in new coordinates: that of before where G^ is the same to rounding."""
        cdef Py_ssize_t i, j, l, r, f, q = self.q
        cdef int done = self.kept_order
        cdef double t, change, size
        cdef const double* before
        self.set_lambda(x)
        for f in range(self.n_factors):
            before = self.e.stage[f].G if f < self.e.n_stages else self.e.tail[f - self.e.n_stages].G
            l = self.level[f].column
            change = 0.0
            size = 0.0
            for i in range(self.level[f].q):
                for j in range(self.level[f].q):
                    t = 0.0
                    for r in range(q):
                        t += self.factor[(l + i) * q + r] * self.factor[(l + j) * q + r]
                    change = max(change, fabs(t - before[i * self.level[f].q + j]))
                    size = max(size, t)
            if not change <= 1e-14 * size:
                return -1
        memcpy(self.last, x, self.n_par * sizeof(double))
        if done >= 1:
            self.chain_gradient()
        if done >= 2:
            self.chain_hessian()
        self.last_order = done
        return done

    cdef bint value_at(self, const double* x) noexcept nogil:
        cdef Py_ssize_t k = self.k, p = k - 1, i, j
        cdef Elimination* e = &self.e
        cdef double logdet, t
        self.set_lambda(x)
        self.set_factors()
        restore(e)
        logdet = eliminate(e)
        if not isfinite(logdet):
            return False
        memcpy(self.H, self.gram, k * k * sizeof(double))
        memcpy(self.V, self.given, self.n_slots * k * sizeof(double))
        forward(e, k, self.V, self.H)
        if not factor_tail(e, &logdet):
            return False
        solve_tail(e, k, self.V, self.U, self.X, self.H)
        # profile
        self.nu = <double> (self.n_rows - p if self.reml else self.n_rows)
        memcpy(self.chol, self.H, k * k * sizeof(double))
        if not cholesky(k, self.chol):
            return False
        self.r2 = self.chol[p * k + p] * self.chol[p * k + p]
        self.log_h = 0.0
        for i in range(p):
            self.log_h += 2.0 * log(self.chol[i * k + i])
        for i in range(p - 1, -1, -1):
            t = self.chol[p * k + i]
            for j in range(i + 1, p):
                t += self.chol[j * k + i] * self.b[j]
            self.b[i] = -t / self.chol[i * k + i]
        self.b[p] = 1.0
        t = self.nu * (1.0 + log(2.0 * M_PI * self.r2 / self.nu))
        self.logdet = logdet
        self.value_ = logdet + t + (self.log_h if self.reml else 0.0)
        # H is what remains of [X y]'[X y]: its relative error grows by as much as it has shrunk
        self.noise_ = fabs(logdet) + fabs(t) + fabs(self.log_h) + self.nu * self.gram[p * k + p] / self.r2
        for i in range(p if self.reml else 0):
            self.noise_ += self.gram[i * k + i] / (self.chol[i * k + i] * self.chol[i * k + i])
        self.noise_ *= 2.3e-16
        return isfinite(self.value_)

    cdef bint need_work(self) noexcept nogil:
        cdef Py_ssize_t t
        if self.e.work == NULL:
            for t in range(self.e.n_tails):
                if self.e.tail[t].exact:
                    self.e.work = <double*> calloc(max(self.e.n_dense, 1), sizeof(double))
                    return self.e.work != NULL or out_of_memory()
        return True

    cdef bint gradient_at(self) noexcept nogil:
        cdef Py_ssize_t k = self.k, p = k - 1, q = self.q, i, j, l, s, first
        cdef Elimination* e = &self.e
        cdef double t, root
        if not self.need_work():
            return False
        backward(e, k, self.V, self.U)
        memset(self.sum_n, 0, q * q * sizeof(double))
        if not covariances(e, self.sum_n, q, NULL, NULL):
            return False
        # w: 2 M = w w', M = (nu / r^2) b b' [+ K]
        for j in range(p):
            self.inverse[j * k + j] = 1.0 / self.chol[j * k + j]
            for i in range(j + 1, p):
                t = 0.0
                for l in range(j, i):
                    t += self.chol[i * k + l] * self.inverse[l * k + j]
                self.inverse[i * k + j] = -t / self.chol[i * k + i]
        root = sqrt(2.0 * self.nu / self.r2)
        for j in range(k):
            for l in range(p):
                self.weight[j * k + l] = self.inverse[l * k + j] * 1.4142135623730951 if j <= l else 0.0
            self.weight[j * k + p] = root * self.b[j]
        memcpy(self.slope, self.sum_n, q * q * sizeof(double))
        first = 0 if self.reml else p
        for s in range(e.n_stages):
            self.subtract_effects(e.stage[s].slot, e.stage[s].m, e.stage[s].q, e.stage[s].column, first)
        for s in range(e.n_tails):
            for i in range(e.tail[s].m):
                self.subtract_effects(e.tail_slot + e.comp_slot[e.tail[s].comp[i]] + e.tail[s].slot[i], 1,
                                      e.tail[s].q, e.tail[s].column, first)
        self.chain_gradient()
        return True

    cdef void chain_gradient(self) noexcept nogil:
        """2 (Q slope Q'L) for the free elements of L."""
        cdef Py_ssize_t i, j, l, q = self.q
        cdef double t
        for l in range(self.n_par):
            t = 0.0
            for i in range(q):
                if not self.turned:
                    t += self.slope[self.row[l] * q + i] * self.factor[i * q + self.col[l]]
                    continue
                for j in range(q):
                    t += self.turn[self.row[l] * q + j] * self.slope[j * q + i] * self.factor[i * q + self.col[l]]
            self.grad_[l] = 2.0 * t

    cdef void subtract_effects(self, Py_ssize_t slot, Py_ssize_t m, Py_ssize_t q, Py_ssize_t column, Py_ssize_t first
                               ) noexcept nogil:
        """slope -= sum E_a M E_a'."""
        cdef Py_ssize_t a, i, j, l, k = self.k
        cdef double t
        cdef double* F = self.small
        cdef const double* E
        for a in range(m):
            for l in range(first, k):
                for i in range(q):
                    E = self.V + (slot + a * q + i) * k
                    t = 0.0
                    for j in range(l + 1):
                        t += E[j] * self.weight[j * k + l]
                    F[i] = t
                for i in range(q):
                    for j in range(q):
                        self.slope[(column + i) * self.q + column + j] -= 0.5 * F[i] * F[j]

    cdef void apply(self, Py_ssize_t c, double* R, double* out) noexcept nogil:
        """out = N R for (n_slots, c) arrays, c at most the larger of k and the free elements of G^."""
        cdef Elimination* e = &self.e
        products(e, c, R, out)
        forward(e, c, out, NULL)
        solve_tail(e, c, out, self.U, self.X, NULL)
        backward(e, c, out, self.U)

    cdef void spread_direction(self, Py_ssize_t slot, Py_ssize_t m, Py_ssize_t q, Py_ssize_t column) noexcept nogil:
        """R = (D e) for the free elements of G^."""
        cdef Py_ssize_t a, i, j, l, f, k = self.k, n = self.n_free
        cdef double t
        cdef double* e = self.small
        for a in range(m):
            for i in range(q):
                t = 0.0
                for j in range(k):
                    t += self.V[(slot + a * q + i) * k + j] * self.b[j]
                e[i] = t
            for f in range(n):
                i = self.free_row[f] - column
                j = self.free_col[f] - column
                if i < 0 or j < 0 or i >= q or j >= q:
                    continue
                self.R[(slot + a * q + i) * n + f] = e[j]
                self.R[(slot + a * q + j) * n + f] = e[i]

    cdef void average_information(self) noexcept nogil:
        """curve = (nu / r^2) (g_D'N g_F - u_D'K u_F) - (nu / r^4) s_D s_F, g_D = D e."""
        cdef Py_ssize_t k = self.k, p = k - 1, n = self.n_free, f, h, i, j, s
        cdef Elimination* e = &self.e
        cdef double t, scale = self.nu / self.r2
        cdef double* u = self.small + 4 * self.q * self.q      # (n, k): E'D e in the coordinates of H's factor
        memset(self.R, 0, self.n_slots * n * sizeof(double))
        for s in range(e.n_stages):
            self.spread_direction(e.stage[s].slot, e.stage[s].m, e.stage[s].q, e.stage[s].column)
        for s in range(e.n_tails):
            for i in range(e.tail[s].m):
                self.spread_direction(e.tail_slot + e.comp_slot[e.tail[s].comp[i]] + e.tail[s].slot[i], 1, e.tail[s].q,
                                      e.tail[s].column)
        self.apply(n, self.R, self.NR)
        memset(u, 0, n * k * sizeof(double))
        memset(self.curve, 0, n * n * sizeof(double))
        for s in range(self.n_slots):
            for f in range(n):
                t = self.R[s * n + f]
                if t == 0.0:
                    continue
                for j in range(k):
                    u[f * k + j] += t * self.V[s * k + j]
                for h in range(n):
                    self.curve[f * n + h] += t * self.NR[s * n + h]
        for f in range(n):
            # s_D = b'E'D e; then u_D <- R_xx^-1 u_D
            t = 0.0
            for j in range(k):
                t += self.b[j] * u[f * k + j]
            u[f * k + p] = t
            for i in range(p):
                t = u[f * k + i]
                for j in range(i):
                    t -= self.chol[i * k + j] * u[f * k + j]
                u[f * k + i] = t / self.chol[i * k + i]
        for f in range(n):
            for h in range(n):
                t = self.curve[f * n + h]
                for j in range(p):
                    t -= u[f * k + j] * u[h * k + j]
                self.curve[f * n + h] = scale * (t - u[f * k + p] * u[h * k + p] / self.r2)

    cdef bint form_normal(self) noexcept nogil:
        """All of N, into `normal`; False where there is no memory for it."""
        cdef Elimination* e = &self.e
        cdef Py_ssize_t size = self.n_slots, n_tail = size - e.tail_slot, i, j, first, c, largest = 1
        if self.normal == NULL:
            for i in range(e.n_stages):
                largest = max(largest, e.stage[i].m * e.stage[i].q)
            for i in range(e.n_tails):
                largest = max(largest, e.tail[i].m * e.tail[i].q)
            # work space: two arrays (slots, n_tail); or two (m, q q) and one (q q, q q) for the traces
            i = max((e.tail_slot + max(e.tail_slot, n_tail)) * n_tail, 2 * largest * self.q * self.q + self.q * self.q * self.q * self.q)
            self.normal = <double*> calloc(size * size, sizeof(double))
            self.spare = <double*> calloc(i, sizeof(double))
            if self.normal == NULL or self.spare == NULL:
                free(self.normal)
                free(self.spare)
                self.normal = NULL
                self.spare = NULL
                return out_of_memory()
        if e.n_stages == 1 and e.n_comps == 1 and e.sparse.n == 0:
            normal_of_one(e, self.normal, self.spare, self.spare + e.tail_slot * n_tail)
            return True
        first = 0
        while first < size:
            c = min(self.wide, size - first)
            memset(self.R, 0, size * c * sizeof(double))
            for j in range(c):
                self.R[(first + j) * c + j] = 1.0
            self.apply(c, self.R, self.NR)
            for i in range(size):
                for j in range(c):
                    self.normal[i * size + first + j] = self.NR[i * c + j]
            first += c
        return True

    cdef bint exact_information(self) noexcept nogil:
        """curve = -tr(D N F N) [N less E_x K E_x' for REML] + (2 nu / r^2) g_D'(N - E_x K E_x')g_F - (nu / r^4) s_D s_F."""
        cdef Py_ssize_t size = self.n_slots, n = self.n_free, k = self.k, p = k - 1, i, j, l, f, h
        cdef double t, scale = 2.0 * self.nu / self.r2
        cdef double* x = self.R
        cdef double* s = self.small + 4 * self.q * self.q
        if not self.form_normal():
            return False
        for i in range(size):
            x[i] = 0.0
            for j in range(k):
                x[i] += self.V[i * k + j] * self.b[j]
        memset(self.curve, 0, n * n * sizeof(double))
        if not self.reml:
            self.gather_traces(x, -1.0, 0.0)
        # E_x K E_x' = F F'
        for i in range(size):
            for l in range(p):
                t = 0.0
                for j in range(l + 1):
                    t += self.V[i * k + j] * self.inverse[l * k + j]
                self.NR[i * p + l] = t
        if p > 0:
            gemm(size, p, size, -1.0, self.NR, p, self.NR, p, True, 1.0, self.normal, size)
        self.gather_traces(x, -1.0 if self.reml else 0.0, scale)
        for f in range(n):
            s[f] = self.along(x, self.free_row[f], self.free_col[f])
        for f in range(n):
            for h in range(n):
                self.curve[f * n + h] -= 0.5 * scale / self.r2 * s[f] * s[h]
        return True

    cdef double along(self, const double* x, Py_ssize_t row, Py_ssize_t column) noexcept nogil:
        """x'D x for the unit direction of an element of G^."""
        cdef Py_ssize_t f, a
        cdef Level* v
        cdef double t = 0.0
        for f in range(self.n_factors):
            v = &self.level[f]
            if v.column <= column and row < v.column + v.q:
                for a in range(v.m):
                    t += x[v.at[a] + row - v.column] * x[v.at[a] + column - v.column]
        return t if row == column else 2.0 * t

    cdef void gather_traces(self, const double* x, double share, double weight) noexcept nogil:
        """curve += tr(D N F B), B = share N + weight x x', for the free elements of G^ and N in `normal`."""
        cdef Py_ssize_t n = self.n_free, f, g, d, h, i, j, r, c, q, wide
        cdef Level* v
        cdef Level* u
        cdef double t
        cdef double* left = self.spare
        cdef double* right
        cdef double* T
        for f in range(self.n_factors):
            for g in range(f, self.n_factors):
                v = &self.level[f]
                u = &self.level[g]
                q = u.q
                wide = v.q * q
                right = left + u.m * wide
                T = right + u.m * wide
                add_traces(self.n_slots, self.normal, x, share, weight, v.at, v.m, v.q, u.at, u.m, q, left, right, T)
                for d in range(n):
                    i = self.free_row[d] - v.column
                    j = self.free_col[d] - v.column
                    if j < 0 or i >= v.q:
                        continue
                    for h in range(n):
                        r = self.free_row[h] - u.column
                        c = self.free_col[h] - u.column
                        if c < 0 or r >= q:
                            continue
                        t = T[(j * q + r) * wide + i * q + c]
                        if i != j:
                            t += T[(i * q + r) * wide + j * q + c]
                        if r != c:
                            t += T[(j * q + c) * wide + i * q + r]
                            if i != j:
                                t += T[(i * q + c) * wide + j * q + r]
                        self.curve[d * n + h] += t
                        if f != g:
                            self.curve[h * n + d] += t

    cdef void chain_hessian(self) noexcept nogil:
        """Jac'curve Jac plus 2 Q slope Q' between elements of one column of L."""
        cdef Py_ssize_t n = self.n_free, m = self.n_par, q = self.q, f, h, i, j, a, b
        cdef double t
        cdef double* work = self.jac + n * m
        for f in range(n):
            a = self.free_row[f]
            b = self.free_col[f]
            for i in range(m):
                if self.turned:
                    t = (self.turn[self.row[i] * q + a] * self.factor[b * q + self.col[i]]
                         + self.turn[self.row[i] * q + b] * self.factor[a * q + self.col[i]])
                else:
                    t = 0.0
                    if a == self.row[i]:
                        t += self.factor[b * q + self.col[i]]
                    if b == self.row[i]:
                        t += self.factor[a * q + self.col[i]]
                # the direction of an element of the diagonal has one 1 only
                self.jac[f * m + i] = t
        for f in range(n):
            for i in range(m):
                t = 0.0
                for h in range(n):
                    t += self.curve[f * n + h] * self.jac[h * m + i]
                work[f * m + i] = t
        for i in range(m):
            for j in range(i + 1):
                t = 0.0
                for f in range(n):
                    t += self.jac[f * m + i] * work[f * m + j]
                if self.col[i] == self.col[j]:
                    if not self.turned:
                        t += 2.0 * self.slope[self.row[i] * q + self.row[j]]
                    else:
                        for a in range(q):
                            for b in range(q):
                                t += (2.0 * self.turn[self.row[i] * q + a] * self.turn[self.row[j] * q + b]
                                      * self.slope[a * q + b])
                self.hess_[i * m + j] = t
                self.hess_[j * m + i] = t

    # --- the face that it shares with ClusterCriterion

    def rotate(self, turn=None):
        """Let theta be the free elements of L in G^ = Q'L L'Q from now on.

        Parameters
        ----------
        turn : (q, q) orthogonal array or None
            Q, block diagonal like G^; None for the identity.
        """
        cdef double[:, ::1] view
        cdef Py_ssize_t i, q = self.q
        if self.last_order >= 0:
            self.kept_order = self.last_order
        self.last_order = -1
        self.turned = turn is not None
        if turn is None:
            return
        view = np.array(turn, dtype=float, order="C").reshape(q, q)
        for i in range(q * q):
            self.turn[i] = view[i // q, i % q]

    def respond(self, const double[::1] cross, double square):
        """Take another response from now on; the arrays that the criterion was made of are overwritten.

        Parameters
        ----------
        cross : (n_slots,) array
            Z'y in the layout's order, y orthogonal to X.
        square : float
            y'y.

        Raises
        ------
        ValueError
            For a cross-product of another length.
        """
        cdef Py_ssize_t i, k = self.k, p = k - 1
        if cross.shape[0] != self.n_slots:
            raise ValueError(f"cross has {cross.shape[0]} elements, there are {self.n_slots} random effects")
        for i in range(self.n_slots):
            self.given[i * k + p] = cross[i]
        for i in range(p):
            self.gram[p * k + i] = 0.0
            self.gram[i * k + p] = 0.0
        self.gram[p * k + p] = square
        # what is known belongs to another response
        self.last_order = -1
        self.kept_order = -1
        self.turned = False

    def _require(self, int order):
        if self.last_order < order:
            raise ValueError(f"evaluate with order={order} first")

    cdef object copied(self, const double* place, Py_ssize_t n, Py_ssize_t m):
        return np.array(<double[:n * m]> place).reshape(n, m)

    def solution(self):
        """Coefficients, r^2, Cholesky factor of H_xx, and the derivative in G^ at the last point of order 1 or more.

        Returns
        -------
        beta : (p,) array
        r2 : float
        chol : (p, p) lower triangular array
        gradient : (q, q) array
            As a symmetric matrix; zero between factors.
        """
        k = self.k
        chol = np.tril(self.copied(self.chol, k, k))[: k - 1, : k - 1]
        return -self.copied(self.b, k, 1)[: k - 1, 0], self.r2, chol, self.copied(self.slope, self.q, self.q)

    @property
    def remainder(self):
        """r^2 relative to y'y, at the last point: what the fixed and the random effects leave of y."""
        return self.r2 / self.gram[self.k * self.k - 1]

    def precision(self):
        """sum N_aa (q, q) over the levels of each factor, at the last point of order 1 or more."""
        self._require(1)
        return self.copied(self.sum_n, self.q, self.q)

    def gram_times(self, columns):
        """Z'Z columns for (n_slots, c) columns."""
        cdef double[:, ::1] part = np.array(columns, dtype=float, order="C")
        out = np.empty((self.n_slots, part.shape[1]))
        cdef double[:, ::1] result = out
        if part.shape[1]:
            with nogil:
                products(&self.e, part.shape[1], &part[0, 0], &result[0, 0])
        return out

    def scores(self):
        """E = Z'V^-1 [X y] (n_slots, k) in the layout's order, at the last point of order 1 or more."""
        self._require(1)
        return self.V_array.copy()

    def multiply(self, columns):
        """N columns for (n_slots, c) columns, at the last point of order 1 or more."""
        self._require(1)
        cdef double[:, ::1] part
        cdef double[:, ::1] result
        cdef Py_ssize_t c
        wide = self.wide
        out = np.empty((self.n_slots, columns.shape[1]))
        for start in range(0, columns.shape[1], wide):
            block = np.array(columns[:, start : start + wide], dtype=float, order="C")
            product = np.empty_like(block)
            part, result, c = block, product, block.shape[1]
            with nogil:
                self.apply(c, &part[0, 0], &result[0, 0])
            out[:, start : start + wide] = product
        return out

    def conditional(self, bint precision=False):
        """Posterior covariance of each level relative to sigma^2, or N_aa, at the last point of order 1 or more.

        Returns
        -------
        (n_slots, q) array
            The (q_f, q_f) block of each level, left-justified, in the layout's order.
        """
        self._require(1)
        cdef Py_ssize_t q = self.q
        out = np.zeros((self.n_slots, q))
        other = np.zeros((self.n_slots, q))
        sums = np.zeros((q, q))
        cdef double[:, ::1] N = other, post = out, total = sums
        cdef bint done
        with nogil:
            done = covariances(&self.e, &total[0, 0], q, &N[0, 0], &post[0, 0])
        if not done:
            reraise()
        return other if precision else out

    def state(self):
        """What the derivatives in G^ are made of, at the last point of order 1 or more.

        Returns
        -------
        theta : (n_par,) array
        factor : (q, q) array
            F = Q'L.
        nu, r2 : float
        b : (k,) array
            (-beta, 1).
        inverse : (p, p) lower triangular array
            Inverse of the Cholesky factor of H_xx.
        """
        self._require(1)
        k, q = self.k, self.q
        inverse = np.tril(self.copied(self.inverse, k, k))[: k - 1, : k - 1]
        theta = self.copied(self.last, self.n_par, 1)[:, 0]
        return theta, self.copied(self.factor, q, q), self.nu, self.r2, self.copied(self.b, k, 1)[:, 0], inverse

    def recall(self, theta, int order):
        """Evaluate again where the state has been before, without counting it."""
        self.evaluate(theta, order)
        self.n_evaluations -= 1

    def precision_at(self, factor):
        """sum N_aa (q, q) at another G^ = F F' for a (q, q) F; leaves the state there."""
        cdef double[:, ::1] F = np.ascontiguousarray(factor)
        cdef Elimination* e = &self.e
        cdef double logdet = 0.0
        cdef bint valid
        cdef Py_ssize_t q = self.q
        self.last_order = -1
        self.kept_order = -1
        memcpy(self.factor, &F[0, 0], q * q * sizeof(double))
        with nogil:
            self.set_factors()
            restore(e)
            valid = isfinite(eliminate(e)) and factor_tail(e, &logdet) and self.need_work()
            if valid:
                memset(self.sum_n, 0, q * q * sizeof(double))
                valid = covariances(e, self.sum_n, q, NULL, NULL)
        if PyErr_Occurred() != NULL:
            reraise()
        if not valid:
            raise FloatingPointError("no second derivatives: the tail of the elimination could not be factored")
        return self.copied(self.sum_n, q, q)


cdef bint out_of_memory() noexcept nogil:
    """Set MemoryError; False."""
    with gil:
        return set_no_memory() != NULL


def blocks_of(rows, columns, q):
    """Ranges of columns that have free elements of L outside the diagonal among them, and single ones."""
    reach = list(range(q))
    for row, column in zip(rows, columns):
        reach[column] = max(reach[column], row)
    out = []
    start = 0
    while start < q:
        out.append((start, reach[start] + 1))
        start = reach[start] + 1
    return out


cdef void split(Tail* g, double size, double* work) noexcept nogil:
    """lift = L^-T on the directions of L that are not nearly singular, rest = projector on the others."""
    cdef Py_ssize_t q = g.q, i, j, r
    cdef double* A = work
    cdef double* Q = A + q * q
    cdef double* w = Q + q * q
    cdef double* y = w + q
    cdef double largest = 0.0, t
    g.exact = False
    if q == 1:
        g.exact = not g.factor[0] * g.factor[0] * size > NEARLY_SINGULAR
        g.lift[0] = 0.0 if g.exact else 1.0 / g.factor[0]
        g.rest[0] = 1.0 if g.exact else 0.0
        return
    memcpy(A, g.G, q * q * sizeof(double))
    jacobi(q, A, Q, w)
    for i in range(q * q):
        g.lift[i] = 0.0
        g.rest[i] = 0.0
    for i in range(q):
        largest = max(largest, w[i])
    for r in range(q):
        t = 0.0
        for j in range(q):
            y[j] = 0.0
            for i in range(q):
                y[j] += Q[i * q + r] * g.factor[i * q + j]
            t += y[j] * y[j]
        if t * size > NEARLY_SINGULAR and t > 1e-10 * largest:
            for i in range(q):
                for j in range(q):
                    g.lift[i * q + j] += Q[i * q + r] * y[j] / t
        else:
            g.exact = True
            for i in range(q):
                for j in range(q):
                    g.rest[i * q + j] += Q[i * q + r] * Q[j * q + r]
