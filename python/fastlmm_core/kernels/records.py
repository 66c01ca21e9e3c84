"""Arguments of kernels that take many: named fields, read by name on the other side.

As long as the list of fields, each with its shape: there is no code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..support.types import Array, Index

__all__ = [
    "NOT_FINITE",
    "BatchLook",
    "BatchPatterns",
    "BatchResults",
    "BatchRows",
    "BatchScores",
    "BatchScreen",
    "BatchSearch",
    "BatchStart",
    "BatchSums",
    "ChainLinks",
    "ClusterRows",
    "ConditionedRows",
    "CorrelatedLeaves",
    "CorrelatedParts",
    "CorrelatedRows",
    "CorrelatedSearch",
    "DeletedLines",
    "DeletionSums",
    "Evaluated",
    "FactorLeaves",
    "FactorParts",
    "FactorRows",
    "FactorScreen",
    "FactorSearch",
    "Positions",
    "RowColumns",
    "Rows",
    "RowsOfDesign",
    "SharedColumns",
    "SharedLines",
    "StackResults",
    "StackSearch",
    "StackedRows",
    "VisitPatterns",
    "VisitResponses",
]  # fmt: skip

Int64 = NDArray[np.int64]
Int = NDArray[np.intc]


class Evaluated(Protocol):
    """What Newton minimises, an `Objective`, by what callers see of it."""

    def evaluate(self, theta: Array, order: int = 0) -> tuple[float, Array | None, Array | None]:
        """Value, gradient and Hessian."""


class Positions(Protocol):
    """Where the parameters of a covariance matrix of random effects stand in Lambda."""

    @property
    def q(self) -> int:
        """Random effects."""

    @property
    def positions(self) -> tuple[Index, Index]:
        """Row and column of each parameter."""


class Rows(NamedTuple):
    """The rows of a model with one grouping factor, in the caller's order and memory."""

    X: Array
    """(n, p)."""
    y: Array
    """(n,)."""
    Z: Array
    """(n, q)."""
    codes: NDArray[np.int32] | Int64
    """(n,) group of each row, counted from `base`."""
    base: int
    n_slots: int
    """Groups, of which some may have no rows."""
    weights: Array | None
    """(n,)."""
    offset: Array | None
    """(n,)."""


class ConditionedRows(NamedTuple):
    """Rows of the random part in the conditioned columns of a problem.

    Attributes
    ----------
    Z : tuple of (n, q_f) arrays
        Z_o of each factor.
    codes : tuple of (n,) intp arrays
        Level of each row, as the problem numbers them.
    weights : (n,) array or None
        V = diag(1 / weights) + sum Z_f (I x G_f) Z_f'.
    """

    Z: tuple[Array, ...]
    codes: tuple[Index, ...]
    weights: Array | None


class RowColumns(NamedTuple):
    """What is done to the columns of rows before they are summed: x~ = (x - shift) * scale times a transformation."""

    x_scale: Array
    """(2, p) shift, scale."""
    z_scale: Array
    """(2, q)."""
    beta0: Array
    """(p,) provisional coefficients of the transformed columns, taken from y."""
    x_constant: int = -1
    """Column taken to be constant (so that the others may be shifted), -1 for none."""
    z_constant: int = -1
    x_transform: Array | None = None
    """(p, p) upper triangular."""
    z_transform: Array | None = None
    """(q, q) upper triangular."""


class SharedColumns(NamedTuple):
    """What X, Z, the groups and weights say by themselves of a problem with one grouping factor, for any response."""

    z_transform: Array
    """(q, q) from scaled columns to orthonormal ones."""
    z_scale: Array
    """(2, q) shift, scale."""
    x_scale: Array
    """(2, p)."""
    x_transform: Array
    """(p, p)."""
    z_map: Array
    """(q, q) from the caller's columns to orthonormal ones."""
    x_map: Array
    """(p, p)."""
    x_constant: int
    """Constant column, -1 for none."""
    z_constant: int
    present: Index | None
    """(m,) slots that have rows, None for all."""
    log_det: float
    """log|det| of x_map."""
    free: bool
    """Whether it shows already that all covariance parameters are identified."""
    balanced: bool
    """Whether the criterion is known to have one minimum only."""
    log_constant: float
    """Minus the sum of the logarithms of the weights."""


class BatchRows(NamedTuple):
    """Rows that all responses of a batch share, sorted by group."""

    order: Int64 | None
    """(n,) row of the caller at each position; None where they are sorted."""
    start: Int64
    """(m + 1,) first position of each group, groups sorted by pattern."""
    basis: Array
    """(n, q) w R^-T z_o."""
    x: Array | None
    """(n, p) w x_o; None where X_o'y follows from the groups."""
    weights: Array | None
    offset: Array | None
    centre: bool
    """Whether X spans a constant."""


class BatchPatterns(NamedTuple):
    """Groups of a batch, by patterns that share one Z'WZ."""

    groups: Int64
    """(n_patterns + 1,) first group of each."""
    columns: Int64
    """(n_patterns + 1,) first column of each."""
    loading: Array
    """(m, width) see `pattern_bases`."""
    R: Array
    """(n_patterns, q(q+1)/2) rows of the upper triangle."""
    cx: Array
    """(n_columns, q, p)."""
    within_xx: Array
    """(p(p+1)/2,) X_o'X_o less its part between groups, packed."""
    exact: Int
    """(p,) 1 where a column of X does not vary within groups."""


class BatchStart(NamedTuple):
    """A point from which the searches of all responses take their first step, with W = I + R L L'R' of each pattern.

    What stands twice is by REML and by ML, with P = V^-1 in the second.  Traces are those of the unit directions of G^,
    in the order of vech; where sigma^2 comes before these they are directions of sigma^2 G^.
    """

    first: Array
    """(q, q) L."""
    along: Array
    """(q(q+1)/2,) vech(L L')."""
    inverse: Array
    """(n_patterns, q, q) W^-1."""
    solved: Array
    """(n_patterns, q, q) R'W^-1."""
    N: Array
    """(n_patterns, q, q) R'W^-1 R."""
    turned: Array
    """(n_columns, q, p) W^-1 c_x."""
    E: Array
    """(n_columns, q, p) R'W^-1 c_x."""
    half: Array
    """(p, p) inverse of the Cholesky factor of X'V^-1 X."""
    trace: tuple[Array, Array]
    """(q(q+1)/2,) tr(P V_a)."""
    square: tuple[Array, Array]
    """(q(q+1)/2, q(q+1)/2) tr(P V_a P V_b)."""
    scoring: tuple[Array, Array]
    """(1 + q(q+1)/2, 1 + q(q+1)/2) inverse of the expected information of sigma^2 and vech(sigma^2 G^)."""
    bend: tuple[Array, Array] | None
    """Three indices of the same: tr(P V_a P V_b P V_c); None where no more than scoring is done."""


class BatchSearch(NamedTuple):
    """How the optimum of each response of a batch is looked for."""

    structure: Int
    """(q, q) 1 where an element of G is free."""
    rows: Sequence[int] | NDArray[np.intp]
    """Free elements of L."""
    columns: Sequence[int] | NDArray[np.intp]
    start: BatchStart
    per_group: float
    tolerance: float
    max_iterations: int


class BatchScores(NamedTuple):
    """What lines of scores mean, in place of responses: see lanes/scores.pxi."""

    spread: Array
    """(n_patterns, q(q+1)/2) lower triangles S by rows, S S' = sigma^2 (I + R L L' R')."""
    within_root: Array
    """(p, n_within) root of sigma^2 within_xx."""
    variance: float
    """sigma^2."""
    width: int
    """Numbers in a line."""


class BatchSums(NamedTuple):
    """That lines hold what fits need of responses, as `BatchDesign.sums` has them: see lanes/sums.pxi."""


class BatchScreen(NamedTuple):
    """Points at which the criterion of every response of a batch is evaluated, to see whether it has other minima."""

    thetas: Array
    """(n_points, n_par)."""
    always: Array
    """(., n_par) other points from which searches start, whatever the values are."""
    pattern: Int64
    """(n_patterns,) patterns that are screened."""
    n_columns: int
    """Columns of these."""
    apart: bool
    """Whether each of them is one group."""
    share: float
    """Of all groups."""
    nu: tuple[float, float]
    """Degrees of freedom of these groups, by REML and by ML."""
    square: Array
    """(ceil(n_points / 8), n_patterns q(q+1)/2 + 1, 8) see lanes/screen.pxi."""
    linear: Array
    """(ceil(n_points p / 8), n_columns q + p, 8)."""
    constant: tuple[Array, Array]
    """(n_points,) log|V|, with log|H_xx| by REML, and without."""
    near: int
    neighbours: Int64
    """(n_points, .) the nearest points of each; `near` of them count where few groups make up the variation."""
    features: Array
    """(n_points, q(q+1)/2) logarithms of variances, and correlations times `correlation`, in the order of vech."""
    unit: Array
    """(q,) standard deviations are divided by these."""
    vanishing: float
    """Variance that is nearly none."""
    correlation: float
    many: float
    """Groups' worth of variation from which the variation is that of many groups."""
    lowest: int
    """Points that are looked at whether they mark a valley or not."""
    limit: int
    """Valleys and lowest points at most."""
    spread: int
    """Others, spread evenly over the order of values."""
    of_regular: bool
    """Whether responses are not screened of which a minimum shows that it is the only one, see lanes/regular.pxi."""

    @property
    def width(self) -> int:
        """Points to start from at most."""
        return self.limit + self.spread


class BatchLook(NamedTuple):
    """What is told of other minima of each response of a batch; `BatchDesign.fit` overwrites it."""

    chosen: Int | None
    """(count, limit + spread) points of the screen from which to look for other minima, then -1; None without one."""
    rise: Array | None
    """(count,) how much higher the criterion is on the boundary, as its Hessian has it, if that is wanted."""
    values: Array | None
    """(count, n_points) of the screen, for y of unit residual variance, if they are wanted."""
    worth: Array | None = None
    """(count,) groups that the variation is worth, if that is wanted."""


NOT_FINITE = -1
"""Status of a response with values that are missing or not finite."""


class BatchCriterion(NamedTuple):
    """What the fits of a batch minimise."""

    reml: bool
    offset: float
    """Added to the criterion for the caller's units (the part without the scale of y)."""


class BatchResults(NamedTuple):
    """Arrays that `BatchDesign.fit` overwrites, a row (or an element) per response."""

    theta: Array
    params: Array
    bse: Array
    sigma2: Array
    value: Array
    decrement: Array
    status: Int
    """1 certified, 2 certified at the boundary, 0 not certified, -1 response not finite, -2 no variation."""
    evaluations: Int
    df: Array
    """Satterthwaite's degrees of freedom of the coefficients."""

    def part(self, rows: slice) -> BatchResults:
        """The results of some responses."""
        return BatchResults._make(array[rows] for array in self)


class FactorRows(NamedTuple):
    """Whitened rows that all responses share where there are several grouping factors, in the caller's order."""

    x: Array
    """(n, p)."""
    root: Array | None
    """(n,) square roots of the weights."""
    offset: Array | None
    centre: bool
    """Whether X spans a constant."""
    leaf: Int64
    """(n,) leaf of each row: level of the term that is eliminated first."""
    unit: Array
    """(n,) its column of Z, of length 1 within each leaf."""
    entry: Int64
    """(n + 1,) first place of each row in the next two: the other effects that it has."""
    slot: Int64
    value: Array


class FactorLeaves(NamedTuple):
    """Leaves, and their patterns: those with the same z'z; see lanes/factors.pxi."""

    part: Int64
    """(n_leaves,) part of the core that each belongs to."""
    piece: Int64
    """(n_leaves,) its pattern, by the place among the patterns of the part."""
    at: Int64
    """(n_leaves,) first place in `core`."""
    core: Array
    """Products of each leaf's unit vector with the core of its part."""
    x: Array
    """(n_leaves, p) and with X_o."""
    size: Array
    """(n_patterns,) z'z."""
    number: Array
    """(n_patterns,) leaves."""
    within_xx: Array
    """(p(p+1)/2,) X_o'X_o less what the leaves have of it."""
    pattern_xx: Array
    """(p(p+1)/2, n_patterns) what they have."""


class FactorParts(NamedTuple):
    """Parts of the core, which share no leaf and no row."""

    core: Int64
    """(n_parts + 1,) first effect of each."""
    term: Int64
    """(n_core,) term of each effect."""
    piece: Int64
    """(n_parts + 1,) first piece of each in `pattern`."""
    pattern: Int64
    square_at: Int64
    """(n_parts + 1,) first place in `within_cc`."""
    within_cc: Array
    """Lower triangles: products of the core less what the leaves have of them."""
    cc_at: Int64
    piece_cc: Array
    """What the leaves of each piece have, (J(J+1)/2, pieces) by part."""
    within_cx: Array
    """(n_core, p)."""
    piece_at: Int64
    """(n_parts + 1,) first place in rows of J pieces."""
    piece_cx: Array
    """(J, p, pieces) by part."""


class FactorSearch(NamedTuple):
    """How the optimum of each response is looked for where there are several grouping factors."""

    terms: NDArray[np.intp]
    """(n_terms,) place in theta of each term, that of the leaves first."""
    unit: Array
    """(n_terms,) theta of the lanes is in units of these."""
    tolerance: float
    max_iterations: int


class CorrelatedRows(NamedTuple):
    """Rows where effects of several grouping factors may be correlated; see lanes/correlated.pxi."""

    x: Array
    """(n, p) X_o, whitened."""
    root: Array | None
    """(n,) square roots of the weights."""
    offset: Array | None
    centre: bool
    leaf: Int64
    """(n,)"""
    unit: Array
    """(n, q_leaf) orthonormal columns of each leaf's Z."""
    slot: Int64
    """(n, n_slots) effects of the core."""
    value: Array
    """(n, n_slots) Z_o of these."""


class CorrelatedLeaves(NamedTuple):
    """Leaves, those of a part one after the other."""

    R: Array
    """(n_leaves, q_leaf (q_leaf + 1) / 2) rows of the upper triangles."""
    at: Int64
    """(n_leaves,) first place in `core`."""
    core: Array
    """Products (q_leaf, J) of each leaf's columns with the core of its part."""
    x: Array
    """(n_leaves, q_leaf, p) and with X_o."""
    within_xx: Array
    """(p(p+1)/2,) X_o'X_o less what the leaves have of it."""


class CorrelatedParts(NamedTuple):
    """Parts of the core, which share no leaf and no row."""

    core: Int64
    """(n_parts + 1,) first effect of each."""
    leaves: Int64
    """(n_parts + 1,) first leaf."""
    effects: Int64
    """(n_parts + 1,) effects of all parts before."""
    square: Int64
    """(n_parts + 1,) sums of effects J of all parts before."""
    factor: Int64
    """(n_core,) of each effect of the core."""
    tail: Int64
    """(n_core,) where its level ends, in the part."""
    square_at: Int64
    """(n_parts,) first place in `within_cc`."""
    within_cc: Array
    """Lower triangles: products of the core less what the leaves have of them."""
    within_cx: Array
    """(n_core, p)."""


class CorrelatedSearch(NamedTuple):
    """How the optimum of each response is looked for where effects of several grouping factors may be correlated."""

    terms: NDArray[np.intp]
    """(n_par,) place in theta of each element of the lanes."""
    unit: Array
    """(n_par,) theta of the lanes is in units of these."""
    rows: Int64
    """(n_par,) and columns: positions in the factor of the lanes."""
    columns: Int64
    blocks: Int64 | None
    """First effect of each free block of G, and q; None where all effects are independent."""
    column: Int64
    """(n_factors + 1,) first effect of each factor, that of the leaves last."""
    directions: Int64
    """(2, n) effects of the free directions of G^, in the caller's order."""
    scale: Array
    """(n,) a direction of the lanes is so many of the caller's."""
    large: float
    """Variance of the mean of a level above which a response is left to a single fit."""
    tolerance: float
    max_iterations: int


class FactorScreen(NamedTuple):
    """Points at which the criterion of every response is evaluated where there are several grouping factors."""

    thetas: Array
    """(n_points, n_terms)."""
    neighbours: Int64
    """(n_points, near) the nearest points of each."""
    share: Array
    """(n_points, n_patterns), and what follows: see lanes/factors.pxi."""
    half: Array
    half_x: Array
    half_xx: Array
    constant: tuple[Array, Array]
    """(n_points,) log|V|, with log|H_xx| by REML, and without."""
    limit: int
    """Valleys and lowest points beside the lowest from which a search starts, at most."""
    lowest: int
    """Lowest points from which a search starts whether they mark a valley or not."""
    spread: int
    """Other points from which a search starts, spread evenly over the order of values."""

    @property
    def width(self) -> int:
        """Points to start from at most."""
        return self.limit + self.spread


class StackedRows(NamedTuple):
    """Rows of many problems, those of a problem one after the other."""

    X: Array
    """(n, p)."""
    y: Array
    """(n,)."""
    Z: Array
    """(n, q)."""
    start: Int64
    """(n_problems + 1,) first row of each problem."""
    codes: Int64
    """(n,) group of each row, counted from `base`; the same code in two problems is another group in each."""
    base: int
    n_slots: int
    weights: Array | None
    """(n,)."""
    offset: Array | None
    """(n,)."""


class RowsOfDesign(NamedTuple):
    """Rows of one design, and values for each of many problems; rows where one of them is NaN are left out there."""

    X: Array
    """(n, p)."""
    Z: Array
    """(n, q)."""
    codes: Int64
    """(n,) group of each row, counted from `base`."""
    base: int
    n_slots: int
    Y: Array
    """(n_problems, n)."""
    weights: Array | None
    """(n_problems, n), or (1, n) for all."""
    offset: Array | None
    """The same."""
    extra: Sequence[Array]
    """Values of further columns of X, (n_problems, n) each."""
    factor: Sequence[int]
    """The column of X by which each is to be multiplied, -1 for none."""


class SharedLines(NamedTuple):
    """What responses with covariates of their own share, see lanes/responses_with_covariates.pxi.

    Problems are conditioned so that Z_o'Z_o = m I, the design without covariates so that it is n I.
    """

    design: Any
    """The BatchDesign without covariates."""
    R: Array
    """(n_patterns, q(q+1)/2) rows of the upper triangle, as those of problems."""
    unit: float
    """Theta of the problems relative to that of the design."""
    z_map: Array
    """(q, q) from conditioned to the caller's effects, as that of problems."""
    kept: Int
    """(p,) zeros."""
    times: Sequence[Array | None]
    """(n,) the column of X by which each covariate is multiplied, rows in the order of the design; () for none."""
    constant: tuple[float, float]
    """Criterion in the caller's units less that of the conditioned design, by REML and ML."""
    balanced: bool
    """Whether each group tells as much of all effects."""
    few: bool
    """Whether groups are few, or tell no more than few."""
    alike: bool
    """Whether they tell enough where data are regular."""


class StackSearch(NamedTuple):
    """How the optimum of each problem is looked for."""

    blocks: Sequence[tuple[int, int, bool]]
    """Random effects: start, stop, whether they are correlated."""
    rows: NDArray[np.intp]
    """Free elements of L."""
    columns: NDArray[np.intp]
    structure: Int
    """(q, q) 1 where an element of G is free."""
    points: Sequence[Array]
    """Screens (count, n_par) for nearly balanced data, others, and few groups, where each sqrt(levels / n) is 1."""
    neighbours: Sequence[NDArray[np.intp]]
    """(count, near) the points nearest to each."""
    starts: tuple[int, int, int, int]
    """Of searches of few groups: from valleys and lowest points at most, lowest points, others, minima narrowed."""


class StackResults(NamedTuple):
    """Arrays that `ProblemStack.fit` overwrites, a row (or an element) per problem."""

    theta: Array
    params: Array
    """NaN for columns left out."""
    bse: Array
    df: Array
    """Satterthwaite's degrees of freedom of the coefficients."""
    sigma2: Array
    value: Array
    decrement: Array
    z_map: Array
    """(., q, q) Z_o = Z z_map."""
    status: Int
    """1 certified, 2 certified at the boundary, 0 left to a single fit."""
    evaluations: Int
    rank: Int
    groups: Int
    nobs: Int
    lanes: Int
    """1 where the lanes have fitted."""


class DeletionSums(NamedTuple):
    """Sums over all groups as polynomials of S, G^ = F (I + S) F'."""

    table: Array
    """(n_terms, (1 + n_par) (1 + n_h)) coefficients of the monomials of S / radius in log|W| and H (packed lower
    triangle by rows, n_h = k (k + 1) / 2), then in their derivatives in each free element of S."""
    parent: Int64
    """(n_terms,) monomial t is monomial parent[t] times S[variable[t]] / radius; the first is 1."""
    variable: Int64
    n_lower: int
    """Terms, the first ones, of the derivatives."""
    second: Array
    """(n_par * n_par, 1 + n_h) second derivatives at S = 0: enough for the steps, the gradient is exact."""
    rows: Int64
    """(n_par,) positions of the free elements."""
    columns: Int64
    factor: Array
    """(q, q) F."""
    k: int
    reml: bool
    radius: float
    """Of the ball |S| <= radius in which the polynomials hold."""
    rank_tolerance: float
    """A pivot of H_xx smaller than this, relative to its diagonal element, is a loss of rank."""


class DeletedLines(NamedTuple):
    """What each deletion takes away, as lines of R, c and w (q q + q k + n_h,)."""

    less: Array
    """(m, .) the groups that lose rows."""
    owner: Int64
    """(n_deletions,) line of `less` of each deletion."""
    more: Array | None
    """(n_deletions, .) what is left of the group; None where it is nothing."""
    removed: Int64
    """(n_deletions,) number of rows."""


class VisitPatterns(NamedTuple):
    """Subjects by their pattern of visits."""

    rows: Array
    """Rows of [X y] of all patterns, one pattern after the other: visit, row of the pattern, column."""
    size: NDArray[np.intp]
    """(n_patterns,) visits n_k."""
    members: NDArray[np.intp]
    """(n_patterns,) rows N'_k that stand for the subjects: any with the same sums of products, but for `outside`."""
    counts: Array
    """(n_patterns,) subjects N_k."""
    visits: NDArray[np.intp]
    """Positions of the visits of each pattern in its table, increasing."""
    table: NDArray[np.intp]
    """(n_patterns,)."""
    table_size: NDArray[np.intp]
    """(n_tables,) visits of each table."""
    columns: int
    """c of [X y]."""
    outside: Array
    """G_k (n_k, n_k) of all patterns, one after the other: G G' is what subjects have of y y' beside the rows."""


class VisitResponses(NamedTuple):
    """What many responses over the same visits share."""

    patterns: VisitPatterns
    """With rows (n_k, d_k, c) of R_k, their last column to be filled in."""
    order: NDArray[np.intp]
    """(n,) row of the caller at each place: pattern, visit, subject."""
    basis: Array
    """Q_k (N_k, d_k) of all patterns, one after the other."""
    root_weights: Array | None
    """(n,) at each place."""
    offset: Array | None
    x_map: Array
    """(p, r)."""
    tolerance: float
    max_iterations: int
    nearly: float
    """Share of a standard deviation that the positions before leave, below which a point is left to others."""


class ChainLinks(NamedTuple):
    """What leads from each row of a Markov chain to the one before it."""

    factors: Array
    """(1 + v + v (v + 1) / 2, n) by what columns are multiplied: 1 / s, and its derivatives in v parameters, the second
    ones in pairs a >= b by rows; (1, 0) where all s are 1."""
    n_variance: int
    """v."""
    gap: NDArray[np.intp]
    """(n,) gap before each row: a place in what follows."""
    rho: Array
    """(U,) correlation with the row before; 0 for the first row of a subject."""
    root: Array
    """(U,) sqrt(1 - rho^2)."""
    tau1: Array
    """(U,) first derivative of artanh(rho) in the parameter of the correlation."""
    tau2: Array
    """(U,) second derivative."""


class ClusterRows(NamedTuple):
    """Rows sorted by independent cluster, then by subject, and the tables that subjects have their residuals from."""

    rows: Array
    """(n, c) [X y]."""
    Z: Array
    """(n, q) columns of all factors side by side."""
    start: NDArray[np.intp]
    """(n_clusters + 1,) first row of each cluster."""
    levels: NDArray[np.intp]
    """(n_factors, n) level of each row."""
    unit: NDArray[np.intp]
    """(n_g, 3) unit directions of G: factor, and the two columns of Z."""
    block: NDArray[np.intp]
    """(n_blocks + 1,) first row of each subject."""
    table: NDArray[np.intp]
    """(n_blocks,) table of each subject."""
    place: NDArray[np.intp]
    """(n,) place of each row in its table."""
    size: NDArray[np.intp]
    """(n_tables,) places s_t."""
    first: NDArray[np.intp]
    """(n_tables,) the first element of phi that is a table's own."""
    counts: NDArray[np.intp]
    """(n_tables,) such elements k_t."""
    n_phi: int
