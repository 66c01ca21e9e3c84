# cython: language_level=3
"""Fits of many responses on one design: owns the arrays that the lanes over responses read
(see lanes/responses.pxi)."""
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc

import numpy as np

from fastlmm_core.kernels._criterion cimport kernels
from fastlmm_core.kernels._seals cimport seal_lines
from fastlmm_core.lanes.kernels cimport (
    MOST_FEATURES, MOST_POINTS, Batch, CommonPoint, Outcome, SharedScreen, sums_width)
from fastlmm_core.lanes.outcome cimport look_at, start_from, tell_coefficients, tell_contrasts, write_to
from fastlmm_core.small.arena cimport Arena, furnish, take


cdef int run(const Batch* d, const double* Y, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t first,
             const Outcome* out) except -1:
    """Run the lanes over the rows of Y without the interpreter's lock."""
    cdef Arena arena = Arena(NULL, 0)
    take(&arena, kernels.batch_size(d))
    cdef double* work = furnish(&arena)
    if work == NULL:
        raise MemoryError()
    with nogil:
        kernels.batch_fit(d, Y, stride, count, first, out, arena.base)
    free(work)
    return 0


cdef enum:
    CACHED = 32768      # numbers of responses that a processor's own cache holds


cdef int64_t[::1] runs_ahead(const int64_t[::1] order):
    """How many places follow each other from each one on."""
    cdef Py_ssize_t i, n = order.shape[0]
    cdef int64_t[::1] out = np.ones(n, dtype=np.int64)
    for i in range(n - 2, -1, -1):
        if order[i + 1] == order[i] + 1:
            out[i] = out[i + 1] + 1
    return out


cdef class BatchDesign:
    """The part of a batch that all responses share.

    Parameters
    ----------
    rows : BatchRows
    patterns : BatchPatterns
    search : BatchSearch
    screen : BatchScreen or None
        None where one minimum only is looked for.
    x_map : (p_full, p) array
        From conditioned to the caller's coefficients.
    ones : (p_full,) array
        X ones = 1, where the rows may be centred.
    """

    def __cinit__(self, rows, patterns, search, screen, const double[:, ::1] x_map, const double[::1] ones):
        self.rows, self.patterns, self.search = rows, patterns, search
        self.kept = (x_map, ones)
        self.d.spread = NULL
        self.d.within_root = NULL
        self.d.n_within = 0
        self.d.summed = False
        self.d.p_full, self.d.p = x_map.shape[0], x_map.shape[1]
        self.d.x_map = &x_map[0, 0] if x_map.shape[0] * x_map.shape[1] > 0 else NULL
        self.d.ones = &ones[0] if ones.shape[0] > 0 else NULL
        self.take_rows(rows)
        self.take_patterns(patterns)
        self.take_search(search)
        self.screen = screen
        self.d.screen.n_points = 0
        if screen is not None:
            self.take_screen(screen)
        self.n = self.d.n
        self.n_par = self.d.n_par
        self.p_full = self.d.p_full

    cdef take_rows(self, rows):
        cdef Batch* d = &self.d
        cdef const int64_t[::1] start = rows.start, order
        cdef const double[:, ::1] basis = rows.basis, x
        cdef const double[::1] weights, offset
        d.n = basis.shape[0]
        d.q = basis.shape[1]
        d.m = start.shape[0] - 1
        d.start = <const Py_ssize_t*> &start[0]
        d.basis = &basis[0, 0]
        d.length = d.n
        d.anchor = 0
        d.order = d.ahead = NULL
        if rows.order is not None:
            order = rows.order
            self.ahead = runs_ahead(order)
            d.order = <const Py_ssize_t*> &order[0]
            d.ahead = <const Py_ssize_t*> &self.ahead[0]
        d.x = NULL
        if rows.x is not None:
            x = rows.x
            d.x = &x[0, 0]
        d.weights = NULL
        if rows.weights is not None:
            weights = rows.weights
            d.weights = &weights[0]
        d.offset = NULL
        if rows.offset is not None:
            offset = rows.offset
            d.offset = &offset[0]
        d.centre = rows.centre

    cdef take_patterns(self, patterns):
        cdef Batch* d = &self.d
        cdef const int64_t[::1] groups = patterns.groups, columns = patterns.columns
        cdef const double[:, ::1] loading = patterns.loading, R = patterns.R
        cdef const double[:, :, ::1] cx = patterns.cx
        cdef const double[::1] within_xx = patterns.within_xx
        cdef const int[::1] exact = patterns.exact
        d.n_patterns = groups.shape[0] - 1
        d.n_columns = cx.shape[0]
        d.groups = <const Py_ssize_t*> &groups[0]
        d.columns = <const Py_ssize_t*> &columns[0]
        d.loading = &loading[0, 0] if loading.shape[1] > 0 else NULL
        d.loading_width = loading.shape[1]
        d.R = &R[0, 0]
        d.cx = &cx[0, 0, 0] if cx.shape[0] * cx.shape[2] > 0 else NULL
        d.within_xx = &within_xx[0] if within_xx.shape[0] > 0 else NULL
        d.exact = &exact[0] if exact.shape[0] > 0 else NULL

    cdef take_search(self, search):
        cdef Batch* d = &self.d
        cdef Py_ssize_t i, n_par = len(search.rows)
        cdef const int[:, ::1] structure = search.structure
        self.positions = <Py_ssize_t*> malloc((2 * n_par + 1) * sizeof(Py_ssize_t))
        if self.positions == NULL:
            raise MemoryError()
        for i in range(n_par):
            self.positions[i] = search.rows[i]
            self.positions[n_par + i] = search.columns[i]
        d.n_par = n_par
        d.row = self.positions
        d.col = self.positions + n_par
        d.structure = &structure[0, 0]
        d.per_group = search.per_group
        d.tolerance = search.tolerance
        d.max_iterations = search.max_iterations

    cdef take_start(self, Batch* d, start, int way):
        """The common point, by REML (way 0) or ML."""
        cdef CommonPoint* at = &d.common
        cdef const double[::1] along = start.along, trace = start.trace[way]
        cdef const double[:, ::1] half = start.half, square = start.square[way], scoring = start.scoring[way]
        cdef const double[:, :, ::1] inverse = start.inverse, solved = start.solved, N = start.N
        cdef const double[:, :, ::1] turned = start.turned, E = start.E, bend
        at.along = &along[0]
        at.inverse, at.solved, at.N = &inverse[0, 0, 0], &solved[0, 0, 0], &N[0, 0, 0]
        at.turned = at.E = at.half = NULL
        if d.p > 0:
            at.turned, at.E, at.half = &turned[0, 0, 0], &E[0, 0, 0], &half[0, 0]
        at.trace, at.square, at.scoring = &trace[0], &square[0, 0], &scoring[0, 0]
        at.bend = NULL
        if start.bend is not None:
            bend = start.bend[way]
            at.bend = &bend[0, 0, 0]

    cdef take_screen(self, screen):
        cdef SharedScreen* s = &self.d.screen
        cdef const int64_t[::1] pattern = screen.pattern
        cdef const int64_t[:, ::1] neighbours = screen.neighbours
        cdef const double[:, :, ::1] square = screen.square, linear = screen.linear
        cdef const double[:, ::1] features = screen.features
        cdef const double[:, ::1] half = screen.half
        cdef const double[::1] unit = screen.unit
        cdef Py_ssize_t count = neighbours.shape[0], q = self.d.q, n_a = q * (q + 1) // 2
        s.n_patterns = pattern.shape[0]
        s.n_columns = screen.n_columns
        s.near, s.wide = screen.near, neighbours.shape[1]
        if count > MOST_POINTS or n_a > MOST_FEATURES or square.shape[1] != s.n_patterns * n_a + 1 or (
                linear.shape[1] != s.n_columns * q + self.d.p or features.shape[1] != n_a or half.shape[0] != self.d.p):
            raise ValueError("a screen of another design")
        s.n_points = count
        s.pattern = <const Py_ssize_t*> &pattern[0]
        s.apart = screen.apart
        s.share = screen.share
        s.square = &square[0, 0, 0]
        s.linear = &linear[0, 0, 0] if linear.shape[0] > 0 else NULL
        s.half = &half[0, 0] if half.shape[0] > 0 else NULL
        s.n_below = screen.n_below
        s.neighbours = <const Py_ssize_t*> &neighbours[0, 0]
        s.features = &features[0, 0]
        s.unit = &unit[0]
        s.vanishing, s.correlation, s.many = screen.vanishing, screen.correlation, screen.many
        s.lowest, s.limit, s.spread = screen.lowest, screen.limit, screen.spread
        s.of_regular = screen.of_regular

    def __dealloc__(self):
        free(self.positions)

    cdef Batch of_kind(self, bint reml):
        """What the lanes read, by REML or ML."""
        cdef Batch d = self.d
        d.reml = reml
        d.nu = <double> (d.n - d.p if reml else d.n)
        d.first_theta = NULL
        self.take_start(&d, self.search.start, 0 if reml else 1)
        return d

    def with_screen(self, screen):
        """The same design with a screen of other minima."""
        return BatchDesign(self.rows, self.patterns, self.search, screen, *self.kept)

    cdef Py_ssize_t take_scores(self, Batch* d, scores) except -1:
        """Let the rows of Y be scores or sums, if they are; the length of a row."""
        cdef const double[:, ::1] spread, within_root
        if scores is None:
            return self.n
        if not hasattr(scores, "spread"):
            d.summed = True
            return sums_width(d)
        spread, within_root = scores.spread, scores.within_root
        if spread.shape[0] != d.n_patterns or 2 * spread.shape[1] != d.q * (d.q + 1) or within_root.shape[0] != d.p:
            raise ValueError("the roots of the scores do not fit the design")
        d.spread = &spread[0, 0]
        d.n_within = within_root.shape[1]
        d.within_root = &within_root[0, 0] if d.p * d.n_within > 0 else NULL
        d.variance = scores.variance
        return scores.width

    def sums(self, const double[:, ::1] Y, columns=None, which=None, uint64_t[:, ::1] seals=None):
        """What fits need of responses, in lines of sums (see lanes/sums.pxi): responses are read once.

        Parameters
        ----------
        Y : (., .) array
        columns : (n,) array or None
            Which columns of Y the rows of the design are, in their order; None: Y has these and no others.
        which : (count,) array or None
            Rows of Y; None: all.
        seals : (count, 2) array or None
            Takes their `line_seals`, while they are at hand; only where `columns` and `which` are given.

        Returns
        -------
        (count, width) array
        """
        cdef Batch d = self.d
        cdef int64_t[::1] order, ahead
        cdef const int64_t[::1] chosen
        cdef const int64_t[::1] at
        cdef const Py_ssize_t* places = NULL
        cdef Py_ssize_t count = Y.shape[0], begin = 0, part, width = Y.shape[1]
        cdef double[:, ::1] lines
        cdef double* work
        cdef Arena arena = Arena(NULL, 0)
        d.length = Y.shape[1]
        if columns is None:
            if d.length != d.n:
                raise ValueError(f"Y has {d.length} columns, the design has {d.n} rows")
        else:
            if len(columns) != d.n or columns.min() < 0 or columns.max() >= d.length:
                raise ValueError("the columns are not those of the design in Y")
            order = np.array(columns if self.rows.order is None else columns[self.rows.order], dtype=np.int64)
            ahead = runs_ahead(order)
            d.order, d.ahead, d.anchor = <const Py_ssize_t*> &order[0], <const Py_ssize_t*> &ahead[0], columns[0]
        if which is not None:
            chosen = np.ascontiguousarray(which, dtype=np.int64)
            count = chosen.shape[0]
            if count and (which.min() < 0 or which.max() >= Y.shape[0]):
                raise IndexError("which: Y does not have so many rows")
        if seals is not None:
            if columns is None or which is None or seals.shape[0] != count or seals.shape[1] != 2:
                raise ValueError("seals are those of the columns and rows given")
            at = np.ascontiguousarray(columns, dtype=np.int64)
        out = np.empty((count, sums_width(&d)))
        if count == 0:
            return out
        if which is not None:
            places = <const Py_ssize_t*> &chosen[0]
        lines = out
        take(&arena, kernels.batch_size(&d))
        work = furnish(&arena)
        if work == NULL:
            raise MemoryError()
        part = count if seals is None else max(8, CACHED // width // 8 * 8)
        with nogil:
            while begin < count:
                part = min(part, count - begin)
                if seals is not None:
                    seal_lines(&Y[0, 0], width, &at[0], d.n, &chosen[begin], part, &seals[begin, 0])
                kernels.batch_sum(
                    &d, &Y[0, 0], width, places + begin if places != NULL else NULL, part, &lines[begin, 0], arena.base)
                begin += part
        free(work)
        return out

    def fit(self, const double[:, ::1] Y, Py_ssize_t first, criterion, start, into,
            scores=None, look=None, known=None):
        """Fit the rows of Y; results go to rows first, first + 1, ... of the arrays.

        Parameters
        ----------
        Y : (count, n) array
            Or (count, width) lines of scores or sums.
        first : int
        criterion : BatchCriterion
        start : (n_par,) or (count, n_par) array, or None
            Theta to start from, of all or of each; None: start by a step of scoring.
        into : BatchResults
            Overwritten.
        scores : BatchScores, BatchSums or None
            What the rows of Y mean where they are scores or sums.
        look : BatchLook or None
            Overwritten with what the screen tells of other minima.
        known : tuple of arrays, optional
            Theta (count, n_par) and criterion (count,) of a minimum of each response, where a search that goes to it
            ends.  Theta, criterion, status and evaluations are then all that is overwritten.
        """
        cdef bint reml = criterion.reml
        cdef Batch d = self.of_kind(reml)
        cdef Outcome out
        cdef Py_ssize_t count = Y.shape[0], width = self.take_scores(&d, scores)
        cdef const double[:, ::1] starts, minima
        cdef const double[::1] constant, values
        if Y.shape[1] != width:
            raise ValueError(f"Y has {Y.shape[1]} columns, the design has {width} rows")
        write_to(&out, into, first, count, self.p_full, known is not None)
        if count == 0:
            return
        d.criterion_offset = criterion.offset
        if start is not None:
            starts = np.atleast_2d(start)
            start_from(&d, starts, count)
        d.known = d.known_value = NULL
        if known is not None:
            minima, values = known
            if minima.shape[0] != count or minima.shape[1] != d.n_par or values.shape[0] != count:
                raise ValueError("known minima of other responses")
            d.known, d.known_value = &minima[0, 0], &values[0]
        if look is not None:
            if d.screen.n_points > 0:
                constant = self.screen.constant[0 if reml else 1]
                d.screen.constant = &constant[0]
                d.screen.origin = self.screen.origin[0 if reml else 1]
                d.screen.nu = self.screen.nu[0 if reml else 1]
            look_at(&out, look, count, d.screen.limit + d.screen.spread, d.screen.n_points)
        run(&d, &Y[0, 0], width, count, first, &out)

    def contrasts(self, const double[:, ::1] Y, bint reml, double[:, ::1] theta, const double[:, ::1] rows, scores=None,
                  coefficients=None):
        """What tests of rows beta_o need, at a given theta of each response.

        Parameters
        ----------
        Y : (count, n) array
            Or (count, width) lines of scores or sums.
        reml : bool
        theta : (count, n_par) array
        rows : (m, p) array
            In the coordinates of the conditioned problem.
        scores : BatchScores, BatchSums or None
            As for `fit`.
        coefficients : three arrays or None
            Coefficients and standard errors (count, p_full) and sigma^2 (count,) at theta, overwritten.

        Returns
        -------
        covariance : (count, m, m) array
            K = rows H_xx^-1 rows', relative to sigma^2.
        slope : (count, n_par, m, m) array
            Derivative of K in theta.
        shift : (count, n_par) array
            -(1 / r^2) d r^2 / d theta.
        hess : (count, n_par, n_par) array
            Second derivatives of the criterion.
        """
        cdef Batch d = self.d
        cdef Outcome out
        cdef Py_ssize_t count = Y.shape[0], m = rows.shape[0], n_par = self.n_par, width = self.take_scores(&d, scores)
        if Y.shape[1] != width or rows.shape[1] != d.p or theta.shape[0] != count or theta.shape[1] != n_par:
            raise ValueError("Y, theta and rows do not fit each other or the design")
        arrays = (np.empty((count, m, m)), np.empty((count, n_par, m, m)), np.empty((count, n_par)),
                  np.empty((count, n_par, n_par)))
        if count == 0 or m == 0:
            return arrays
        d.reml = reml
        d.nu = <double> (d.n - d.p if reml else d.n)
        tell_contrasts(&out, &d, theta, rows, arrays)
        if coefficients is not None:
            tell_coefficients(&out, coefficients, count, self.p_full)
        run(&d, &Y[0, 0], width, count, 0, &out)
        return arrays
