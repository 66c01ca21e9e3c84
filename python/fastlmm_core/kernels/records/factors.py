"""Responses on one design with several grouping factors: independent effects, correlated effects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...support.types import Array, Int64

__all__ = [
    "CorrelatedLeaves", "CorrelatedParts", "CorrelatedRows", "CorrelatedSearch", "FactorLeaves", "FactorParts",
    "FactorRows", "FactorScreen", "FactorSearch",
]  # fmt: skip


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
