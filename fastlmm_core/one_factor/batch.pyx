# cython: language_level=3
"""Fits of many responses on one design: owns the arrays that the lanes over responses read (see lanes/responses.pxi)."""
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

import numpy as np

from fastlmm_core.kernels._criterion cimport kernels
from fastlmm_core.lanes.kernels cimport Batch, Outcome
from fastlmm_core.small.arena cimport Arena, furnish, take


cdef int run(const Batch* d, const double* Y, Py_ssize_t count, Py_ssize_t first, const Outcome* out) except -1:
    """Run the lanes over the rows of Y without the interpreter's lock."""
    cdef Arena arena = Arena(NULL, 0)
    take(&arena, kernels.batch_size(d))
    cdef double* work = furnish(&arena)
    if work == NULL:
        raise MemoryError()
    with nogil:
        kernels.batch_fit(d, Y, d.n, count, first, out, arena.base)
    free(work)
    return 0


cdef class BatchDesign:
    """The part of a batch that all responses share.

    Parameters
    ----------
    order : (n,) int64 array or None
        Row of the caller at each position, rows sorted by group.
    start : (m + 1,) int64 array
        First position of each group, groups sorted by pattern.
    basis : (n, q) array
        w R^-T z_o of the sorted rows.
    x : (n, p) array or None
        w x_o of the sorted rows; None where X_o'y follows from the groups.
    weights, offset : (n,) arrays or None
        Of the sorted rows.
    centre : bool
        Whether X spans a constant.
    groups, columns : (n_patterns + 1,) int64 arrays
        First group and first column of each pattern.
    loading : (m, width) array
    R : (n_patterns, q(q+1)/2) array
    cx : (n_columns, q, p) array
    within_xx : (p(p+1)/2,) array
    exact : (p,) int32 array
    structure : (q, q) int32 array
    rows, columns_of : int arrays
        Free elements of L.
    first : (q, q) array
    scoring : (q(q+1)/2, q(q+1)/2) array
    x_map : (p_full, p) array
    ones : (p_full,) array
    per_group, tolerance : float
    max_iterations : int
    """

    cdef Batch d
    cdef object kept
    cdef Py_ssize_t* positions
    cdef readonly Py_ssize_t n, n_par, p_full

    def __cinit__(self, order, const int64_t[::1] start, const double[:, ::1] basis, x, weights, offset, bint centre,
                  const int64_t[::1] groups, const int64_t[::1] columns, const double[:, ::1] loading,
                  const double[:, ::1] R, const double[:, :, ::1] cx, const double[::1] within_xx,
                  const int[::1] exact, const int[:, ::1] structure, rows, columns_of, const double[:, ::1] first,
                  const double[:, ::1] scoring, const double[:, ::1] x_map, const double[::1] ones, double per_group,
                  double tolerance, Py_ssize_t max_iterations):
        cdef Py_ssize_t i, n_par = len(rows)
        cdef const int64_t[::1] order_view
        cdef const double[:, ::1] x_view
        cdef const double[::1] weights_view, offset_view
        cdef Batch* d = &self.d
        self.kept = (order, start, basis, x, weights, offset, groups, columns, loading, R, cx, within_xx, exact,
                     structure, first, scoring, x_map, ones)
        self.positions = <Py_ssize_t*> malloc((2 * n_par + 1) * sizeof(Py_ssize_t))
        if self.positions == NULL:
            raise MemoryError()
        for i in range(n_par):
            self.positions[i] = rows[i]
            self.positions[n_par + i] = columns_of[i]
        self.n = basis.shape[0]
        self.n_par = n_par
        self.p_full = x_map.shape[0]
        d.n = basis.shape[0]
        d.q = basis.shape[1]
        d.p = x_map.shape[1]
        d.p_full = x_map.shape[0]
        d.m = start.shape[0] - 1
        d.n_patterns = groups.shape[0] - 1
        d.n_columns = cx.shape[0]
        d.n_par = n_par
        d.row = self.positions
        d.col = self.positions + n_par
        d.structure = &structure[0, 0]
        d.order = NULL
        if order is not None:
            order_view = order
            d.order = <const Py_ssize_t*> &order_view[0]
        d.start = <const Py_ssize_t*> &start[0]
        d.basis = &basis[0, 0]
        d.x = NULL
        if x is not None:
            x_view = x
            d.x = &x_view[0, 0]
        d.weights = NULL
        if weights is not None:
            weights_view = weights
            d.weights = &weights_view[0]
        d.offset = NULL
        if offset is not None:
            offset_view = offset
            d.offset = &offset_view[0]
        d.centre = centre
        d.groups = <const Py_ssize_t*> &groups[0]
        d.columns = <const Py_ssize_t*> &columns[0]
        d.loading = &loading[0, 0] if loading.shape[1] > 0 else NULL
        d.loading_width = loading.shape[1]
        d.R = &R[0, 0]
        d.cx = &cx[0, 0, 0] if cx.shape[0] * cx.shape[2] > 0 else NULL
        d.within_xx = &within_xx[0] if within_xx.shape[0] > 0 else NULL
        d.exact = &exact[0] if exact.shape[0] > 0 else NULL
        d.per_group = per_group
        d.first = &first[0, 0]
        d.scoring = &scoring[0, 0]
        d.tolerance = tolerance
        d.max_iterations = max_iterations
        d.x_map = &x_map[0, 0] if x_map.shape[0] * x_map.shape[1] > 0 else NULL
        d.ones = &ones[0] if ones.shape[0] > 0 else NULL

    def __dealloc__(self):
        free(self.positions)

    def fit(self, const double[:, ::1] Y, Py_ssize_t first, bint reml, double criterion_offset, start,
            double[:, ::1] theta, double[:, ::1] params, double[:, ::1] bse, double[::1] sigma2, double[::1] value,
            double[::1] decrement, int[::1] status, int[::1] evaluations, df=None):
        """Fit the rows of Y; results go to rows first, first + 1, ... of the arrays.

        Parameters
        ----------
        Y : (count, n) array
        first : int
        reml : bool
        criterion_offset : float
            Added to the criterion for the caller's units (the part without the scale of y).
        start : (n_par,) array or None
            Theta to start from; None: start by a step of scoring.
        theta, params, bse, sigma2, value, decrement, status, evaluations, df : arrays
            Overwritten; status: 1 certified, 2 certified at the boundary, 0 not certified, -1 response not
            finite, -2 no variation; df: Satterthwaite's degrees of freedom of the coefficients (optional).
        """
        cdef Batch d = self.d
        cdef Outcome out
        cdef Py_ssize_t count = Y.shape[0]
        cdef const double[::1] start_view
        cdef double[:, ::1] df_view
        if Y.shape[1] != self.n:
            raise ValueError(f"Y has {Y.shape[1]} columns, the design has {self.n} rows")
        if first < 0 or first + count > theta.shape[0]:
            raise IndexError("the results do not hold so many responses")
        if count == 0:
            return
        d.reml = reml
        d.nu = <double> (d.n - d.p if reml else d.n)
        d.criterion_offset = criterion_offset
        d.first_theta = NULL
        if start is not None:
            start_view = start
            if start_view.shape[0] != self.n_par:
                raise ValueError(f"start has {start_view.shape[0]} elements, the model has {self.n_par}")
            d.first_theta = &start_view[0]
        out.theta = &theta[0, 0]
        out.params = &params[0, 0] if self.p_full > 0 else NULL
        out.bse = &bse[0, 0] if self.p_full > 0 else NULL
        out.sigma2 = &sigma2[0]
        out.value = &value[0]
        out.decrement = &decrement[0]
        out.status = &status[0]
        out.evaluations = &evaluations[0]
        out.df = NULL
        if df is not None and self.p_full > 0:
            df_view = df
            out.df = &df_view[0, 0]
        out.rows = NULL
        run(&d, &Y[0, 0], count, first, &out)

    def contrasts(self, const double[:, ::1] Y, bint reml, double[:, ::1] theta, const double[:, ::1] rows):
        """What tests of rows beta_o need, at a given theta of each response.

        Parameters
        ----------
        Y : (count, n) array
        reml : bool
        theta : (count, n_par) array
        rows : (m, p) array
            In the coordinates of the conditioned problem.

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
        cdef Py_ssize_t count = Y.shape[0], m = rows.shape[0], n_par = self.n_par
        cdef double[:, :, ::1] covariance, hess
        cdef double[:, :, :, ::1] slope
        cdef double[:, ::1] shift
        if Y.shape[1] != self.n or rows.shape[1] != d.p or theta.shape[0] != count or theta.shape[1] != n_par:
            raise ValueError("Y, theta and rows do not fit each other or the design")
        arrays = (np.empty((count, m, m)), np.empty((count, n_par, m, m)), np.empty((count, n_par)),
                  np.empty((count, n_par, n_par)))
        if count == 0 or m == 0:
            return arrays
        covariance, slope, shift, hess = arrays
        d.reml = reml
        d.nu = <double> (d.n - d.p if reml else d.n)
        out.theta = &theta[0, 0]
        out.m = m
        out.rows = &rows[0, 0]
        out.covariance = &covariance[0, 0, 0]
        out.slope = &slope[0, 0, 0, 0]
        out.shift = &shift[0, 0]
        out.hess = &hess[0, 0, 0]
        run(&d, &Y[0, 0], count, 0, &out)
        return arrays
