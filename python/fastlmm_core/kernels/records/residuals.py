"""Rows of subjects with structured residuals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...support.types import Array

__all__ = ["ChainLinks", "ClusterRows", "VisitPatterns", "VisitResponses"]


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
