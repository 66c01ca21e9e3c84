# cython: language_level=3
"""Fits of many responses on one design with several grouping factors: owns what the lanes read.

Independent effects: lanes/factors.pxi; others: lanes/correlated.pxi.
"""
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

import numpy as np

from fastlmm_core.kernels._criterion cimport kernels
from fastlmm_core.lanes.kernels cimport (
    MOST_POINTS, Batch, CorrelatedDesign, CorrelatedMoments, DesignMoments, FactorDesign, FactorScreen, Outcome)
from fastlmm_core.lanes.outcome cimport look_at, start_from, tell_coefficients, tell_contrasts, write_to
from fastlmm_core.small.arena cimport Arena, furnish, take


cdef enum:
    MOST_STARTS = 48    # see lanes/factors.pxi


# What a search is given beside the responses: constants of its screen, and minima that are known, or NULL.
cdef struct Given:
    const double* constant
    const double* known         # theta (., n_par)
    const double* known_value


cdef class Shared:
    """What all responses share; the interface is that of `BatchDesign`.

    Parameters
    ----------
    rows, leaves, parts, search, screen
        Of a design, see `FactorBatch` and `CorrelatedBatch`.
    x_map : (p_full, p) array
        From conditioned to the caller's coefficients.
    ones : (p_full,) array
        X ones = 1, where the rows may be centred.
    """

    cdef Batch b
    cdef list kept
    cdef readonly Py_ssize_t n, n_par, p_full, rank
    cdef readonly object screen, search

    def __cinit__(self, rows, leaves, parts, search, screen, const double[:, ::1] x_map, const double[::1] ones):
        cdef Batch* b = &self.b
        self.kept = [x_map, ones]
        self.search, self.screen = search, screen
        b.p_full, b.p = x_map.shape[0], x_map.shape[1]
        b.x_map = &x_map[0, 0] if x_map.shape[0] * x_map.shape[1] > 0 else NULL
        b.ones = &ones[0] if ones.shape[0] > 0 else NULL
        b.n_par = len(search.terms)
        b.m = b.n_patterns = b.n_columns = b.loading_width = 0
        b.per_group = 1.0
        b.tolerance = search.tolerance
        b.max_iterations = search.max_iterations
        b.screen.n_points = 0
        b.spread = NULL
        b.order = NULL
        b.block = NULL
        self.n, self.n_par, self.p_full, self.rank = len(rows.leaf), b.n_par, b.p_full, b.p
        b.n = self.n
        b.weights = b.offset = NULL
        if rows.offset is not None:
            b.offset = self.numbers(rows.offset)
        b.centre = rows.centre

    cdef const double* numbers(self, array) except? NULL:
        """The place of an array of doubles, which is kept."""
        cdef const double[::1] view = np.ascontiguousarray(array, dtype=np.float64).reshape(-1)
        self.kept.append(view)
        return &view[0] if view.shape[0] > 0 else NULL

    cdef const Py_ssize_t* places(self, array) except? NULL:
        cdef const int64_t[::1] view = np.ascontiguousarray(array, dtype=np.int64).reshape(-1)
        self.kept.append(view)
        return <const Py_ssize_t*> &view[0] if view.shape[0] > 0 else NULL

    cdef int take_screen(self, FactorScreen* into, screen) except -1:
        into.n_points, into.near = np.shape(screen.neighbours)
        into.limit, into.lowest, into.spread = screen.limit, screen.lowest, screen.spread
        into.n_half = np.shape(screen.half)[1]
        if screen.width >= MOST_STARTS or into.n_points > MOST_POINTS:
            raise ValueError("a screen of another design")
        into.theta = self.numbers(self.inside(screen.thetas))
        into.neighbours = self.places(screen.neighbours)
        into.share = self.numbers(screen.share)
        into.half = self.numbers(screen.half)
        into.half_x = self.numbers(screen.half_x)
        into.half_xx = self.numbers(screen.half_xx)
        return 0

    cdef double* furnished(self, Py_ssize_t size, Arena* arena) except NULL:
        """Work space, to be freed by the caller."""
        cdef double* work
        take(arena, size)
        work = furnish(arena)
        if work == NULL:
            raise MemoryError()
        return work

    cdef int run(self, const Batch* b, const Given* given, const double[:, ::1] Y, Py_ssize_t first, const Outcome* out
                 ) except -1:
        """Run the lanes over the rows of Y without the interpreter's lock."""
        raise NotImplementedError

    def fit(self, const double[:, ::1] Y, Py_ssize_t first, criterion, start, into, look=None, known=None):
        """Fit the rows of Y; results go to rows first, first + 1, ... of the arrays.

        Parameters
        ----------
        Y : (count, n) array
        first : int
        criterion : BatchCriterion
        start : (n_par,) or (count, n_par) array, or None
            Theta to start from, of all or of each; None: the lowest point of the screen.
        into : BatchResults
            Overwritten.
        look : BatchLook or None
            Overwritten with the other points of the screen from which a search may end at another minimum.
        known : tuple of arrays, optional
            Theta (count, n_par) and criterion (count,) of minima: a search that goes to one is broken off there, where
            effects of a factor may be correlated.  Theta, the criterion and what tells of the search are then all that
            is wanted.
        """
        cdef Batch b = self.b
        cdef Given given = Given(NULL, NULL, NULL)
        cdef const double[:, ::1] theta
        cdef const double[::1] known_value
        cdef Outcome out
        cdef Py_ssize_t count = Y.shape[0]
        cdef bint reml = criterion.reml
        cdef const double[::1] constant = self.screen.constant[0 if reml else 1]
        cdef const double[:, ::1] starts
        if Y.shape[1] != self.n:
            raise ValueError(f"Y has {Y.shape[1]} columns, the design has {self.n} rows")
        write_to(&out, into, first, count, self.p_full, known is not None)
        if count == 0:
            return
        b.reml = reml
        b.nu = <double> (b.n - b.p if reml else b.n)
        b.criterion_offset = criterion.offset
        b.first_theta = NULL
        if start is not None:
            starts = self.inside(np.atleast_2d(start))
            start_from(&b, starts, count)
        if look is not None and start is None:
            look_at(&out, look, count, self.screen.width, len(self.screen.thetas))
        given.constant = &constant[0]
        if known is not None:
            theta, known_value = self.inside(known[0]), known[1]
            if theta.shape[0] != count or known_value.shape[0] != count:
                raise ValueError("known minima of other responses")
            given.known, given.known_value = &theta[0, 0], &known_value[0]
        self.run(&b, &given, Y, first, &out)
        rows = into.theta[first : first + count]
        rows[:, self.search.terms] = rows * self.search.unit

    cdef inside(self, theta):
        """Theta in the order and units of the lanes."""
        return np.ascontiguousarray(np.asarray(theta)[:, self.search.terms] / self.search.unit)

    def contrasts(self, const double[:, ::1] Y, bint reml, theta, const double[:, ::1] rows, coefficients=None):
        """What tests of rows beta_o need, at a given theta of each response; see `BatchDesign.contrasts`."""
        cdef Batch b = self.b
        cdef Given given = Given(NULL, NULL, NULL)
        cdef Outcome out
        cdef Py_ssize_t count = Y.shape[0], m = rows.shape[0], n_par = self.n_par
        cdef double[:, ::1] inner = self.inside(theta)
        if Y.shape[1] != self.n or rows.shape[1] != b.p or inner.shape[0] != count or inner.shape[1] != n_par:
            raise ValueError("Y, theta and rows do not fit each other or the design")
        arrays = (np.empty((count, m, m)), np.empty((count, n_par, m, m)), np.empty((count, n_par)),
                  np.empty((count, n_par, n_par)))
        if count == 0 or m == 0:
            return arrays
        b.reml = reml
        b.nu = <double> (b.n - b.p if reml else b.n)
        b.first_theta = NULL
        tell_contrasts(&out, &b, inner, rows, arrays)
        if coefficients is not None:
            tell_coefficients(&out, coefficients, count, self.p_full)
        self.run(&b, &given, Y, 0, &out)
        unit, place = self.search.unit, np.argsort(self.search.terms)
        return (arrays[0], (arrays[1] / unit[:, None, None])[:, place], (arrays[2] / unit)[:, place],
                (arrays[3] / (unit[:, None] * unit))[:, place[:, None], place])


cdef tuple empty_moments(Py_ssize_t count, Py_ssize_t n, Py_ssize_t p, DesignMoments* out):
    """Arrays for the moments of `count` points along n parameters, to which `out` points afterwards."""
    cdef Py_ssize_t pairs = n * (n + 1) // 2
    cdef double[:, :, ::1] half
    cdef double[:, ::1] trace, square
    cdef double[:, :, :, ::1] cross, both
    arrays = (np.empty((count, p, p)), np.empty((count, n)), np.empty((count, pairs)), np.empty((count, n, p, p)),
              np.empty((count, pairs, p, p)))
    if count > 0:
        half, trace, square, cross, both = arrays
        if p > 0:
            out.half, out.cross, out.both = &half[0, 0, 0], &cross[0, 0, 0, 0], &both[0, 0, 0, 0]
        out.trace, out.square = &trace[0, 0], &square[0, 0]
    return arrays


cdef class FactorBatch(Shared):
    """The part of a batch that all responses share where all effects are independent.

    Parameters
    ----------
    rows : FactorRows
    leaves : FactorLeaves
    parts : FactorParts
    search : FactorSearch
    screen : FactorScreen
    x_map, ones
        As for `Shared`.
    """

    cdef FactorDesign d
    cdef Py_ssize_t* positions

    def __cinit__(self, rows, leaves, parts, search, screen, const double[:, ::1] x_map, const double[::1] ones):
        cdef Py_ssize_t i
        self.positions = <Py_ssize_t*> malloc((self.n_par + 1) * sizeof(Py_ssize_t))
        if self.positions == NULL:
            raise MemoryError()
        for i in range(self.n_par):
            self.positions[i] = i
        self.b.q = self.d.n_terms = self.n_par
        self.b.row = self.b.col = self.positions
        self.take_rows(rows)
        self.take_leaves(leaves)
        self.take_parts(parts)
        self.take_screen(&self.d.screen, screen)
        if np.shape(screen.share)[1] != self.d.n_patterns:
            raise ValueError("a screen of another design")

    cdef take_rows(self, rows):
        cdef FactorDesign* d = &self.d
        d.n = self.n
        if np.shape(rows.x) != (d.n, self.b.p) or len(rows.unit) != d.n or len(rows.entry) != d.n + 1:
            raise ValueError("rows of another design")
        d.x = self.numbers(rows.x)
        d.leaf = self.places(rows.leaf)
        d.unit = self.numbers(rows.unit)
        d.entry = self.places(rows.entry)
        d.slot = self.places(rows.slot)
        d.value = self.numbers(rows.value)
        d.root = NULL
        if rows.root is not None:
            d.root = self.numbers(rows.root)

    cdef take_leaves(self, leaves):
        cdef FactorDesign* d = &self.d
        d.n_leaves, d.n_patterns = len(leaves.part), len(leaves.size)
        if np.shape(leaves.x) != (d.n_leaves, self.b.p):
            raise ValueError("leaves of another design")
        d.leaf_part = self.places(leaves.part)
        d.leaf_piece = self.places(leaves.piece)
        d.leaf_at = self.places(leaves.at)
        d.leaf_core = self.numbers(leaves.core)
        d.leaf_x = self.numbers(leaves.x)
        d.size = self.numbers(leaves.size)
        d.count = self.numbers(leaves.number)
        d.within_xx = self.numbers(leaves.within_xx)
        d.pattern_xx = self.numbers(leaves.pattern_xx)

    cdef take_parts(self, parts):
        cdef FactorDesign* d = &self.d
        d.n_parts, d.n_core = len(parts.core) - 1, len(parts.term)
        d.widest = int(np.diff(parts.core).max(initial=1))
        d.core = self.places(parts.core)
        d.term = self.places(parts.term)
        d.piece = self.places(parts.piece)
        d.pattern = self.places(parts.pattern)
        d.square_at = self.places(parts.square_at)
        d.within_cc = self.numbers(parts.within_cc)
        d.cc_at = self.places(parts.cc_at)
        d.piece_cc = self.numbers(parts.piece_cc)
        d.within_cx = self.numbers(parts.within_cx)
        d.piece_at = self.places(parts.piece_at)
        d.piece_cx = self.numbers(parts.piece_cx)

    def __dealloc__(self):
        free(self.positions)

    cdef int run(self, const Batch* b, const Given* given, const double[:, ::1] Y, Py_ssize_t first, const Outcome* out
                 ) except -1:
        cdef FactorDesign d = self.d
        cdef Arena arena = Arena(NULL, 0)
        cdef double* work = self.furnished(kernels.factors_size(b, &d), &arena)
        cdef Py_ssize_t count = Y.shape[0]
        d.screen.constant = given.constant
        with nogil:
            kernels.factors_fit(b, &d, &Y[0, 0], count, first, out, arena.base)
        free(work)
        return 0

    def moments(self, theta):
        """What tests of fixed effects need of the design at thetas,
        along the variances of the terms relative to sigma^2.

        Parameters
        ----------
        theta : (count, n_par) array

        Returns
        -------
        half : (count, p, p) array
            L_xx^-1, with L_xx L_xx' = X_o'V^-1X_o.
        trace : (count, n_par) array
            tr(V^-1 D_kV).
        square : (count, k) array
            tr(V^-1 D_kV V^-1 D_lV) for k >= l, lower triangle by rows.
        cross : (count, n_par, p, p) array
            X_o'V^-1 D_kV V^-1X_o.
        both : (count, k, p, p) array
            X_o'V^-1 D_kV V^-1 D_lV V^-1X_o, or its transpose.
        """
        cdef Batch b = self.b
        cdef DesignMoments out
        cdef double[:, ::1] inner = self.inside(theta)
        cdef Py_ssize_t count = inner.shape[0], n = self.n_par
        cdef Arena arena = Arena(NULL, 0)
        cdef double* work
        arrays = empty_moments(count, n, b.p, &out)
        if count == 0:
            return arrays
        b.reml = True
        b.nu = <double> (b.n - b.p)
        work = self.furnished(kernels.factors_size(&b, &self.d), &arena)
        with nogil:
            kernels.factors_moments(&b, &self.d, &inner[0, 0], count, &out, arena.base)
        free(work)
        lower, upper = np.tril_indices(n)
        scale, place = self.search.unit ** -2, np.argsort(self.search.terms)
        pair = scale[lower] * scale[upper]
        i, j = place[lower], place[upper]
        low = np.minimum(i, j)
        at = (i + j - low) * (i + j - low + 1) // 2 + low
        return (arrays[0], (arrays[1] * scale)[:, place], (arrays[2] * pair)[:, at],
                (arrays[3] * scale[:, None, None])[:, place], (arrays[4] * pair[:, None, None])[:, at])


cdef class CorrelatedBatch(Shared):
    """The part of a batch that all responses share where effects of a factor may be correlated.

    Parameters
    ----------
    rows : CorrelatedRows
    leaves : CorrelatedLeaves
    parts : CorrelatedParts
    search : CorrelatedSearch
    screen : FactorScreen
    x_map, ones
        As for `Shared`.
    """

    cdef CorrelatedDesign d
    cdef const Py_ssize_t* direction

    def __cinit__(self, rows, leaves, parts, search, screen, const double[:, ::1] x_map, const double[::1] ones):
        cdef Batch* b = &self.b
        cdef CorrelatedDesign* d = &self.d
        d.n, d.n_factors = self.n, len(search.column) - 1
        b.q = search.column[d.n_factors]
        b.row = self.places(search.rows)
        b.col = self.places(search.columns)
        d.column = self.places(search.column)
        d.large = search.large
        if search.blocks is not None:
            b.n_blocks = len(search.blocks) - 1
            b.block = self.places(search.blocks)
        self.direction = self.places(search.directions)
        self.take_rows(rows)
        self.take_parts(leaves, parts)
        self.take_screen(&d.screen, screen)
        if np.shape(screen.share)[1] != d.n_leaves * (d.q_leaf * (d.q_leaf + 1) // 2):
            raise ValueError("a screen of another design")

    cdef take_rows(self, rows):
        cdef CorrelatedDesign* d = &self.d
        d.q_leaf, d.n_slots = np.shape(rows.unit)[1], np.shape(rows.slot)[1]
        if np.shape(rows.x) != (d.n, self.b.p) or d.q_leaf + d.n_slots != self.b.q:
            raise ValueError("rows of another design")
        d.x = self.numbers(rows.x)
        d.leaf = self.places(rows.leaf)
        d.unit = self.numbers(rows.unit)
        d.slot = self.places(rows.slot)
        d.value = self.numbers(rows.value)
        d.root = NULL
        if rows.root is not None:
            d.root = self.numbers(rows.root)

    cdef take_parts(self, leaves, parts):
        cdef CorrelatedDesign* d = &self.d
        d.n_leaves, d.n_parts, d.n_core = len(leaves.R), len(parts.core) - 1, len(parts.factor)
        if np.shape(leaves.x) != (d.n_leaves, d.q_leaf, self.b.p):
            raise ValueError("leaves of another design")
        d.R = self.numbers(leaves.R)
        d.leaf_at = self.places(leaves.at)
        d.leaf_core = self.numbers(leaves.core)
        d.leaf_x = self.numbers(leaves.x)
        d.within_xx = self.numbers(leaves.within_xx)
        d.widest = int(np.diff(parts.core).max())
        d.most = int(np.diff(parts.effects).max())
        d.core = self.places(parts.core)
        d.leaves = self.places(parts.leaves)
        d.effects = self.places(parts.effects)
        d.square = self.places(parts.square)
        d.factor = self.places(parts.factor)
        d.tail = self.places(parts.tail)
        d.square_at = self.places(parts.square_at)
        d.within_cc = self.numbers(parts.within_cc)
        d.within_cx = self.numbers(parts.within_cx)

    cdef int run(self, const Batch* b, const Given* given, const double[:, ::1] Y, Py_ssize_t first, const Outcome* out
                 ) except -1:
        cdef CorrelatedDesign d = self.d
        cdef Arena arena = Arena(NULL, 0)
        cdef double* work = self.furnished(kernels.correlated_size(b, &d, False), &arena)
        cdef Py_ssize_t count = Y.shape[0]
        d.screen.constant = given.constant
        d.known, d.known_value = given.known, given.known_value
        with nogil:
            kernels.correlated_fit(b, &d, &Y[0, 0], count, first, out, arena.base)
        free(work)
        return 0

    def moments(self, theta):
        """What tests of fixed effects need of the design at thetas, along the free directions of G^.

        Parameters
        ----------
        theta : (count, n_par) array

        Returns
        -------
        half, trace, square, cross, both : arrays
            As `FactorBatch.moments` gives them.
        """
        cdef Batch b = self.b
        cdef CorrelatedMoments out
        cdef double[:, ::1] inner = self.inside(theta)
        cdef Py_ssize_t count = inner.shape[0], n = len(self.search.directions[0])
        cdef Arena arena = Arena(NULL, 0)
        cdef double* work
        arrays = empty_moments(count, n, b.p, &out.of)
        if count == 0:
            return arrays
        b.reml = True
        b.nu = <double> (b.n - b.p)
        out.n = n
        out.row, out.col = self.direction, self.direction + n
        work = self.furnished(kernels.correlated_size(&b, &self.d, True), &arena)
        with nogil:
            kernels.correlated_moments(&b, &self.d, &inner[0, 0], count, &out, arena.base)
        free(work)
        lower, upper = np.tril_indices(n)
        scale = self.search.scale
        pair = scale[lower] * scale[upper]
        return (arrays[0], arrays[1] * scale, arrays[2] * pair, arrays[3] * scale[:, None, None],
                arrays[4] * pair[:, None, None])
