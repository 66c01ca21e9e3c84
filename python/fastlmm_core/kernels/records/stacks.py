"""Problems with designs, or with values, of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...support.types import Array, Int, Int64

__all__ = ["RowsOfDesign", "SharedLines", "StackResults", "StackSearch", "StackedRows"]


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
    spanned: bool
    """Whether all groups have the same Z_i'Z_i and X spans the columns that carry it, see lanes/balanced_lines.pxi."""


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
