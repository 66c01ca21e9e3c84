# cython: language_level=3
"""Per-group Cholesky factors, log-determinants and quadratic forms, several groups at a time.

The packed form of a group i is (R_i, c_i, n_i): A_i = Z_i'Z_i = R_i'R_i with R_i upper
triangular (a row of zeros where a column adds nothing), c_i = R_i^-T Z_i'[X_i y_i] (q x k),
and a count n_i.  Groups stand in blocks of LANES (the doubles in a register of the variant), structure of
arrays: block b holds n_a + q k + 1 vectors: R by rows, c by rows, count.

For a relative covariance factor L (q x q), with U = R L and
W = I + U U' = M M' (M lower triangular):

    log|V_i| = log|W|                         Y = M^-1 R,  D = M^-1 c
    N_i = Z_i'V_i^-1 Z_i      = Y'Y
    E_i = Z_i'V_i^-1 [X_i y_i] = Y'D
    [X_i y_i]'V_i^-1 [X_i y_i] = S_i - c'c + D'D

Every term is a sum of squares: nothing cancels, however large L is.  (The form follows
Bates et al. 2015, J. Stat. Softw. 67(1), sec. 3.6, written from the other side of Woodbury's
identity.)  A count differing from 1 stands for that many groups with the same A_i, a count of
0 for a further column of their cross-products (see rows/patterns.pyx).

This file is compiled once per instruction set under different module names; it holds no
policy, and no state but the table of its functions, to which each chapter adds its own.

Its chapters are included, not imported, so that all of them are one translation unit: what runs in lanes is inlined
with constant sizes, which modules of their own, or declarations shared between them, could not be.

    algebra                         small dense matrices, one in every lane
    packing, moments                cross-products to the packed form; sums over packed groups
    profile                         the criterion and its derivatives from the sums over groups
    responses, response_sweeps      what many responses of one design contribute; their criterion
    start, scores                   where their searches start, drawn ones
    sums                            the same, kept
    newton, axes, screen            their searches in lockstep, the axes of the steps, other minima
    contrasts, settling             functions of their coefficients; their fits from the first point to the report
    problems, pairs                 problems of their own designs, those with two effects
    problem_fits, problem_moments   their fits, and moments
    responses_with_covariates, sweeps_with_covariates   those that share a design but for covariates
    balanced_lines                  those of balanced designs: where searches start, and which minima are the only ones
    elsewhere, closer               their other minima, and those of few groups
    factors, factor_sweeps, factor_fits     several grouping factors: sums, criterion, fits
    correlated, correlated_sweeps, correlated_curves, correlated_fits
                                    the same where effects of a factor may be correlated
    families, family_curves         factors nested in each other, and second derivatives
    deletions, series               fits without some groups; residuals that are correlated in time
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY, M_LN2, M_PI, NAN, fabs, isfinite, log, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastlmm_core.lanes.deletions cimport DEFICIENT, FAR, FOUND, OPEN, TILE, DeletionWork, Deletions
from fastlmm_core.lanes.kernels cimport (
    MOST_FEATURES, MOST_POINTS, PART, PROBLEM_SIZE, SAME, Batch, ChainColumns, ChainStage, ChainSums, CommonPoint,
    CorrelatedDesign, CorrelatedMoments, DesignMoments, FactorDesign, FactorScreen, LaneKernels, LinesToRead, Outcome,
    OwnGroups, PackedGroups, ProblemSums, Profile, RawGroups, Screen, SeriesSums, SeriesWork, Shape, SharedLines,
    SharedScreen, Sums, lane_kernels_name, lay_profile, sums_width, vec, vecu)
from fastlmm_core.simd.prefetch cimport FETCH
from fastlmm_core.small.arena cimport Arena, take
from fastlmm_core.small.chain cimport Chain, Gls

cdef extern from "vector.h":
    enum: LANES
    vec VEC_SET(double) nogil
    vec VEC_SQRT(vec) nogil
    vec VEC_RSQRT_ABOVE(vec, vec) nogil
    vec VEC_LOG(vec) nogil
    vec VEC_ABS(vec) nogil
    void VEC_SPLIT(vec, vec) nogil
    vec VEC_WHERE_POSITIVE(vec, vec, vec) nogil
    void vec_transpose(const double* const*, long, const double*, double*) nogil
    double vec_sum(const vecu*) nogil
    double vec_max(const vecu*) nogil

cdef LaneKernels offered
offered.lanes = LANES


cdef void find_range(const int64_t* values, Py_ssize_t n, int64_t* low, int64_t* high) noexcept nogil:
    """Smallest and largest of n whole numbers, n > 0."""
    cdef int64_t small = values[0], large = values[0]
    cdef Py_ssize_t i
    for i in range(n):
        small = values[i] if values[i] < small else small
        large = values[i] if values[i] > large else large
    low[0] = small
    high[0] = large


offered.find_range = &find_range

include "algebra.pxi"
include "packing.pxi"
include "moments.pxi"
include "profile.pxi"
include "responses.pxi"
include "response_sweeps.pxi"
include "newton.pxi"
include "contrasts.pxi"
include "settling.pxi"
include "start.pxi"
include "scores.pxi"
include "elsewhere.pxi"
include "responses_with_covariates.pxi"
include "balanced_lines.pxi"
include "sweeps_with_covariates.pxi"
include "problems.pxi"
include "factors.pxi"
include "factor_sweeps.pxi"
include "factor_fits.pxi"
include "correlated.pxi"
include "correlated_sweeps.pxi"
include "correlated_curves.pxi"
include "correlated_fits.pxi"
include "families.pxi"
include "family_curves.pxi"
include "deletions.pxi"
include "series.pxi"


def kernels():
    """The functions of this variant, a capsule of a LaneKernels."""
    return PyCapsule_New(&offered, lane_kernels_name(), NULL)
