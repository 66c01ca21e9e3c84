# cython: language_level=3
"""Fits of many problems, each with a design of its own: rows in, estimates out, without the interpreter.

Problems are conditioned one by one (conditioning.pxi), then searched several at a time (lanes/problems.pxi).  Those
that need more than this are left alone, with status 0, to a single fit.
"""
from libc.math cimport NAN, fabs, isfinite, log, sqrt
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import numpy as np

from fastlmm_core.kernels._batch cimport BatchDesign
from fastlmm_core.kernels._criterion cimport kernels
from fastlmm_core.kernels._matrices cimport Regression, regress, triangle
from fastlmm_core.kernels._rows cimport Pass, add_pass, probe_column, whole, work_size
from fastlmm_core.lanes.kernels cimport (
    PROBLEM_SIZE, Batch, DesignMoments, LinesToRead, Outcome, ProblemSums, Screen, SharedLines)
from fastlmm_core.simd.prefetch cimport FETCH
from fastlmm_core.small.arena cimport Arena, furnish, refurnish, take

include "conditioning.pxi"

cdef enum:
    CHUNK = 256                 # problems that are conditioned before they are searched, those of like size together
    CHUNK_ROWS = 32768          # of these problems together

# Rows of all problems.  Strides are in elements.
#
# Those of a problem stand one after the other or, where there is no `start`, all problems have the rows of one design
# and a response each: rows where that, its weight, offset or a covariate is NaN are left out, and a covariate, or its
# product with a column of X, is a further column.
cdef struct Stacked:
    const int64_t* start        # (n_problems + 1,) or NULL
    const int64_t* codes
    Py_ssize_t base
    const double* X
    const double* Z
    const double* y
    const double* weights
    const double* offset
    Py_ssize_t x_row, x_column, z_row, z_column, y_row
    # of one design: rows, groups, problems; steps of y, weights and offset between these; columns of its own X
    Py_ssize_t n, n_slots, n_problems, y_step, w_step, o_step, p
    bint z_is_x
    Py_ssize_t n_extra
    const double** extra        # (n_extra,) covariates (n_problems, n)
    Py_ssize_t* extra_step      # (n_extra,) from problem to problem
    Py_ssize_t* factor          # (n_extra,) column of X by which it is multiplied, -1 for none

# Where results go, a row (or an element) for each problem.
cdef struct Into:
    double* theta
    double* params
    double* bse
    double* df
    double* sigma2
    double* value
    double* decrement
    double* z_map               # (., q, q)
    int* status
    int* evaluations
    int* rank
    int* groups
    int* nobs
    int* lanes                  # 1 where the lanes have fitted
    bint given                  # whether theta is read and not found, for what follows
    # or NULL; its rows, and those of x_map (., p, p), are problems from `zero` on
    const DesignMoments* moments
    double* x_map
    Py_ssize_t zero
    # tests, see Outcome
    Py_ssize_t m
    const double* rows          # (m, p), or NULL
    double* covariance
    double* slope
    double* shift
    double* hess

# What the problems of a call share where Z has the columns of X, and a problem's own values; see design_rows.pxi.
cdef struct DesignRows:
    bint known                  # whether problems are to be read in this way
    Py_ssize_t constant         # the constant column
    Py_ssize_t m                # groups
    double* scale               # (2, p) shifts and scales of the columns of X, see `scale_columns`
    double* x                   # (n, p) x~
    int64_t* place              # (n,) group of each row, in the order of their first ones
    double* there               # (n,) 1 where nothing is missing, 0 elsewhere
    double* weight              # (n,) the same, weighted
    double* value               # (n_extra + 1, n) covariates, then y less its offset; 0 where something is missing

# Work space of a call.
cdef struct Desk:
    int64_t* seen               # (n_slots,) problem that had this group last, counted from 1
    int64_t* place              # (n_slots,) its place there
    int64_t* codes              # rows of a chunk: places of groups
    double* values              # of one design: rows of a problem, column by column of y, weights and offset, X,
                                # Z by rows
    ProblemRows rows[256]
    Conditioned c[256]
    Py_ssize_t sequence[256]    # problems of a chunk that are to be searched, by number of groups
    ProblemSums sums[264]       # in this order; room for a block beyond the last
    DesignRows design
    double* memory              # of `c`
    double* work                # of the lanes
    Py_ssize_t work_size
    Outcome out                 # of a chunk
    bint further                # whether some problems have been fitted already
    int status[264]
    int evaluations[264]


include "design_rows.pxi"
include "stacked_rows.pxi"
include "chunks.pxi"
include "covariate_rows.pxi"


cdef class ProblemStack:
    """Many problems of one grouping factor, with as many columns in each.

    Parameters
    ----------
    rows : StackedRows or RowsOfDesign
    search : StackSearch
    """

    cdef Batch d
    cdef Blocks blocks
    cdef Screen screen
    cdef Stacked rows
    cdef object kept
    cdef Py_ssize_t* places
    cdef const double** extra
    cdef readonly Py_ssize_t n_problems, p, q, n_par

    def __cinit__(self, rows, search):
        self.kept = (rows, search)
        self.q = rows.Z.shape[1]
        self.rows.n_slots = rows.n_slots
        self.take_rows(rows)
        if hasattr(rows, "start"):
            self.take_stack(rows)
        else:
            self.take_design(rows)
        self.take_search(search)
        self.d.q, self.d.p, self.d.p_full, self.d.n_par = self.q, self.p, self.p, self.n_par
        self.d.n, self.d.per_group = PROBLEM_SIZE, 1.0
        self.d.tolerance, self.d.max_iterations = 4e-9, 40
        self.d.first_theta = NULL
        self.d.spread = NULL
        self.d.n_patterns = self.d.n_columns = self.d.m = 0

    def __reduce__(self):
        return ProblemStack, self.kept

    cdef take_rows(self, rows):
        """What both kinds of rows have."""
        cdef const double[:, :] X = rows.X, Z = rows.Z
        cdef const int64_t[::1] codes = rows.codes
        self.p = X.shape[1]
        self.rows.codes, self.rows.base = &codes[0], rows.base
        self.rows.X = &X[0, 0] if self.p > 0 else &Z[0, 0]
        self.rows.Z = &Z[0, 0]
        self.rows.x_row, self.rows.x_column = X.strides[0] // 8, X.strides[1] // 8
        self.rows.z_row, self.rows.z_column = Z.strides[0] // 8, Z.strides[1] // 8

    cdef take_stack(self, rows):
        cdef const double[:] y = rows.y
        cdef const double[::1] weights = rows.weights, offset = rows.offset
        cdef const int64_t[::1] start = rows.start
        self.n_problems = start.shape[0] - 1
        self.rows.start, self.rows.y, self.rows.y_row = &start[0], &y[0], y.strides[0] // 8
        self.rows.weights = &weights[0] if weights is not None else NULL
        self.rows.offset = &offset[0] if offset is not None else NULL

    cdef take_design(self, rows):
        cdef const double[:, ::1] Y = rows.Y, weights = rows.weights, offset = rows.offset, one
        cdef Py_ssize_t i, n = len(rows.extra)
        self.n_problems, self.rows.n = Y.shape[0], Y.shape[1]
        self.rows.n_problems = self.n_problems
        self.rows.start, self.rows.y, self.rows.y_step = NULL, &Y[0, 0] if Y.shape[0] > 0 else NULL, Y.shape[1]
        self.rows.weights = &weights[0, 0] if weights is not None and weights.shape[0] > 0 else NULL
        self.rows.offset = &offset[0, 0] if offset is not None and offset.shape[0] > 0 else NULL
        # one row serves all problems
        self.rows.w_step = self.rows.n if weights is not None and weights.shape[0] > 1 else 0
        self.rows.o_step = self.rows.n if offset is not None and offset.shape[0] > 1 else 0
        self.rows.p = self.p
        self.rows.z_is_x = rows.Z is rows.X
        self.rows.n_extra = n
        self.extra = <const double**> malloc((3 * n + 1) * sizeof(void*))
        if self.extra == NULL:
            raise MemoryError()
        self.rows.extra = self.extra
        self.rows.extra_step = <Py_ssize_t*> (self.extra + n)
        self.rows.factor = self.rows.extra_step + n
        for i in range(n):
            one = rows.extra[i]
            self.extra[i] = &one[0, 0] if one.shape[0] > 0 else NULL
            self.rows.extra_step[i] = self.rows.n if one.shape[0] > 1 else 0
            self.rows.factor[i] = rows.factor[i]
        self.p += n

    cdef take_search(self, search):
        cdef Py_ssize_t i, n_par = len(search.rows), n_blocks = len(search.blocks)
        cdef const int[:, ::1] free_elements = search.structure
        cdef const double[:, ::1] points
        cdef const Py_ssize_t[:, ::1] near
        self.n_par = n_par
        self.places = <Py_ssize_t*> malloc((2 * n_par + 2 * n_blocks + 1) * sizeof(Py_ssize_t))
        if self.places == NULL:
            raise MemoryError()
        for i in range(n_par):
            self.places[i], self.places[n_par + i] = search.rows[i], search.columns[i]
        self.blocks.start = self.places + 2 * n_par
        self.blocks.correlated = <int*> (self.blocks.start + n_blocks + 1)
        self.blocks.n_blocks = n_blocks
        for i in range(n_blocks):
            self.blocks.start[i], self.blocks.start[i + 1], self.blocks.correlated[i] = search.blocks[i]
        self.blocks.one_full = n_blocks == 1 and self.blocks.correlated[0]
        self.d.row, self.d.col, self.d.structure = self.places, self.places + n_par, &free_elements[0, 0]
        self.screen.one_full = self.blocks.one_full
        self.screen.limit, self.screen.lowest, self.screen.spread, self.screen.narrowed = search.starts
        for i in range(3):
            points, near = search.points[i], search.neighbours[i]
            self.screen.n_points[i], self.screen.n_near[i] = points.shape[0], near.shape[1]
            self.screen.thetas[i], self.screen.near[i] = &points[0, 0], &near[0, 0]

    def __dealloc__(self):
        free(self.places)
        free(self.extra)

    cdef int share(self, lines, bint reml, Common* common) except -1:
        """What responses with covariates have in common."""
        cdef BatchDesign design = lines.design
        cdef const double[:, ::1] R = lines.R, z_map = lines.z_map
        cdef const int[::1] kept = lines.kept
        cdef const double[::1] times
        cdef SharedLines* w = &common.lines
        cdef Py_ssize_t l, e = self.rows.n_extra + 1
        common.base = design.of_kind(reml)
        if (e > 4 or design.p_full != design.d.p or design.p_full + e - 1 != self.p or design.d.q != self.q
                or design.n != self.rows.n or design.n_par != self.n_par or kept.shape[0] != self.p):
            raise ValueError("a design of other responses")
        w.base, w.n_lines, w.R, w.unit = &common.base, e, &R[0, 0], lines.unit
        w.constant = lines.constant[0 if reml else 1]
        w.balanced, w.few, w.alike, w.spanned = lines.balanced, lines.few, lines.alike, lines.spanned
        for l in range(e):
            w.factor[l], w.times[l] = -1, NULL
            if l < e - 1 and self.rows.factor[l] >= 0:
                times = lines.times[l]
                w.factor[l], w.times[l] = self.rows.factor[l], &times[0]
        common.z_map, common.kept = <double*> &z_map[0, 0], <int*> &kept[0]
        return 0

    cdef int run(self, Py_ssize_t first, Py_ssize_t last, bint reml, const Into* into, lines=None) except -1:
        """Fit problems first .. last - 1 without the interpreter's lock; how many have finite values, to be sure."""
        cdef Batch d = self.d
        cdef Desk desk
        cdef Common common
        cdef Py_ssize_t at = first, end, i
        cdef int status = 0, sound = 0
        cdef Arena arena = Arena(NULL, 0)
        cdef double* memory
        d.reml = reml
        desk.further = lines is not None
        if desk.further:
            self.share(lines, reml, &common)
        desk.codes, desk.memory, desk.values, desk.work, desk.work_size = NULL, NULL, NULL, NULL, 0
        desk.out.m, desk.out.rows = into.m, into.rows
        desk.out.status, desk.out.evaluations = desk.status, desk.evaluations
        self.lay_outcome(&desk.out, &arena)
        desk.design.known = (self.rows.start == NULL and self.rows.z_is_x and self.blocks.one_full
                             and self.q <= 8 and self.rows.n_extra < 8)
        if desk.design.known:
            lay_design_rows(&self.rows, &desk.design, &arena)
        memory = furnish(&arena)
        self.lay_outcome(&desk.out, &arena)
        if desk.design.known:
            lay_design_rows(&self.rows, &desk.design, &arena)
        desk.seen = <int64_t*> calloc(2 * self.rows.n_slots, sizeof(int64_t))
        desk.place = desk.seen + self.rows.n_slots
        if memory == NULL or desk.seen == NULL:
            status = -1
        elif desk.design.known:
            know_design(&self.rows, &desk, <int*> desk.design.value, &desk.design)
        with nogil:
            if desk.further:
                d.lines = &common.lines
                while at < last and status == 0:
                    end = min(at + CHUNK, last)
                    status = fit_together(&d, &self.rows, &self.screen, into, &common, &desk, at, end - at)
                    at = end
                d.lines, at = NULL, first
                for i in range(first, last):
                    sound += into.lanes[i]
            while at < last and status == 0:
                end = chunk_end(&self.rows, at, last)
                if not desk.further or any_left(into, at, end):
                    status = fit_chunk(&d, &self.rows, &self.blocks, &self.screen, into, &desk, at, end - at)
                at = end
            # of a stack no value is left out
            for i in range(first, last if self.rows.start != NULL else first):
                sound += into.lanes[i]
        free(memory)
        free(desk.seen)
        free(desk.codes)
        free(desk.values)
        free(desk.memory)
        free(desk.work)
        if status != 0:
            raise MemoryError()
        return sound

    cdef void lay_outcome(self, Outcome* out, Arena* arena) noexcept:
        """Take the results of a chunk."""
        cdef Py_ssize_t count = CHUNK + kernels.lanes, p = self.p, n = self.n_par, m = out.m
        out.theta = take(arena, count * n)
        out.params = take(arena, count * p)
        out.bse = take(arena, count * p)
        out.df = take(arena, count * p)
        out.sigma2 = take(arena, count)
        out.value = take(arena, count)
        out.decrement = take(arena, count)
        out.covariance = take(arena, count * m * m)
        out.slope = take(arena, count * n * m * m)
        out.shift = take(arena, count * n)
        out.hess = take(arena, count * n * n)

    def fit(self, Py_ssize_t first, Py_ssize_t last, bint reml, into, lines=None):
        """Fit problems first .. last - 1; theta is in the coordinates of z_map, b = z_map b_o.

        Parameters
        ----------
        first, last : int
        reml : bool
        into : StackResults
            Rows first .. last - 1 are overwritten.  Of problems with status 0 only `groups` and `nobs`
            are to be relied on.
        lines : SharedLines or None
            What the problems have in common that are responses on one design with covariates.

        Returns
        -------
        int
            How many problems have finite values, to be sure: those that the lanes have fitted by sums of all values.
            Of responses on one design these are fitted by what they have in common; elsewhere NaN is left out.
        """
        cdef Into to
        cdef double[:, ::1] theta = into.theta, params = into.params, bse = into.bse, df = into.df
        cdef double[::1] sigma2 = into.sigma2, value = into.value, decrement = into.decrement
        cdef double[:, :, ::1] z_map = into.z_map
        cdef int[::1] status = into.status, evaluations = into.evaluations, rank = into.rank, groups = into.groups
        cdef int[::1] nobs = into.nobs, lanes = into.lanes
        self.check(first, last, theta.shape[0])
        if last == first:
            return 0
        to.theta, to.sigma2, to.value, to.decrement = &theta[0, 0], &sigma2[0], &value[0], &decrement[0]
        to.params = &params[0, 0] if self.p > 0 else NULL
        to.bse = &bse[0, 0] if self.p > 0 else NULL
        to.df = &df[0, 0] if self.p > 0 else NULL
        to.z_map = &z_map[0, 0, 0]
        to.status, to.evaluations, to.rank, to.groups, to.nobs, to.lanes = (
            &status[0], &evaluations[0], &rank[0], &groups[0], &nobs[0], &lanes[0])
        to.m, to.rows, to.given, to.moments = 0, NULL, False, NULL
        return self.run(first, last, reml, &to, lines)

    def contrasts(self, Py_ssize_t first, Py_ssize_t last, bint reml, double[:, ::1] theta, int[::1] lanes,
                  const double[:, ::1] rows, arrays):
        """What tests of rows beta need, at the theta of each problem that the lanes have fitted.

        Parameters
        ----------
        first, last : int
        reml : bool
        theta : (n_problems, n_par) array
        lanes : (n_problems,) int array
            1 where the lanes have fitted.
        rows : (m, p) array
        arrays : tuple of arrays
            covariance (n_problems, m, m), slope (n_problems, n_par, m, m), shift (n_problems, n_par) and hess
            (n_problems, n_par, n_par), as `BatchDesign.contrasts` returns them; overwritten.
        """
        cdef Into to
        cdef double[:, :, ::1] covariance = arrays[0], hess = arrays[3]
        cdef double[:, :, :, ::1] slope = arrays[1]
        cdef double[:, ::1] shift = arrays[2]
        self.check(first, last, theta.shape[0])
        if rows.shape[1] != self.p or rows.shape[0] == 0 or self.p == 0:
            raise ValueError(f"rows need {self.p} columns")
        if last == first:
            return
        to.theta, to.lanes, to.m, to.rows = &theta[0, 0], &lanes[0], rows.shape[0], &rows[0, 0]
        to.given, to.moments = True, NULL
        to.covariance, to.slope, to.shift, to.hess = (
            &covariance[0, 0, 0], &slope[0, 0, 0, 0], &shift[0, 0], &hess[0, 0, 0])
        self.run(first, last, reml, &to)

    def moments(self, Py_ssize_t first, Py_ssize_t last, double[:, ::1] theta, int[::1] lanes):
        """What tests of fixed effects need along the free elements of G^, of problems first .. last - 1, by REML.

        Parameters
        ----------
        first, last : int
        theta : (n_problems, n_par) array
        lanes : (n_problems,) int array
            1 where the lanes have fitted.

        Returns
        -------
        x_map : (count, p, p) array
            From conditioned coefficients to those of X; zero, as the other results, where the lanes have not fitted.
        half, trace, square, cross, both : arrays
            As `FactorBatch.moments` returns them.
        """
        cdef Into to
        cdef DesignMoments out
        cdef Py_ssize_t count = last - first, n = self.n_par, p = self.p, pairs = n * (n + 1) // 2
        cdef double[:, :, ::1] x_map, half
        cdef double[:, ::1] trace, square
        cdef double[:, :, :, ::1] cross, both
        self.check(first, last, theta.shape[0])
        arrays = (np.zeros((count, p, p)), np.zeros((count, p, p)), np.zeros((count, n)), np.zeros((count, pairs)),
                  np.zeros((count, n, p, p)), np.zeros((count, pairs, p, p)))
        if count == 0 or p == 0:
            return arrays
        x_map, half, trace, square, cross, both = arrays
        out.half, out.cross, out.both = &half[0, 0, 0], &cross[0, 0, 0, 0], &both[0, 0, 0, 0]
        out.trace, out.square = &trace[0, 0], &square[0, 0]
        to.theta, to.lanes, to.m, to.rows = &theta[0, 0], &lanes[0], 0, NULL
        to.given, to.moments, to.x_map, to.zero = True, &out, &x_map[0, 0, 0], first
        self.run(first, last, True, &to)
        return arrays

    cdef check(self, Py_ssize_t first, Py_ssize_t last, Py_ssize_t room):
        if not 0 <= first <= last <= self.n_problems or room != self.n_problems:
            raise IndexError(f"the stack holds {self.n_problems} problems")
