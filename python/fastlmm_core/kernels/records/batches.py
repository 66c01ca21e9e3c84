"""Responses on one design."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...support.types import Array, Int, Int64

__all__ = [
    "NOT_FINITE", "BatchCriterion", "BatchLook", "BatchPatterns", "BatchResults", "BatchRows", "BatchScores",
    "BatchScreen", "BatchSearch", "BatchStart", "BatchSums",
]  # fmt: skip


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
    alone: bool
    """Whether single fits look for other minima: within every rank, of few groups that tell unalike."""
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
    origin: tuple[float, float]
    """Those where G is zero."""
    half: Array
    """(p, p) inverse of the factor of X'X within groups, lower triangular."""
    n_below: int
    """The last points, of which G is less than that of the first."""
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
