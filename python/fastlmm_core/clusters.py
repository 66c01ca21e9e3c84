"""Covariances of rows and of the clusters that they form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import LMMError

if TYPE_CHECKING:
    from .results import LMMResult

__all__ = ["cluster_labels", "rows_covariance", "whitened"]

Array = NDArray[np.float64]

LARGEST = 10_000
"""Rows of a cluster whose covariance matrix is still formed."""


def rows_covariance(result: LMMResult, rows: NDArray[np.intp]) -> Array:
    """Covariance matrix of some rows: sum_f Z_f G_f Z_f' where they share a level of f, and sigma^2 / weights."""
    model = result.model
    weights = model.weights
    noise = np.full(len(rows), result.sigma2) if weights is None else result.sigma2 / weights[rows]
    out = np.diag(noise)
    for factor in model.factors:
        part = factor.columns
        Z, level = model.exog_re[rows, part], factor.grouping.index[rows]
        out += (Z @ result._covariance[part, part] @ Z.T) * (level[:, None] == level)
    return out


def cluster_labels(result: LMMResult) -> NDArray[np.intp]:
    """Cluster of each row: rows of different clusters share no level of any factor, so that they are independent."""
    factors = result.model.factors
    if len(factors) == 1:
        return factors[0].grouping.index
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    base = 0
    nodes = []
    for factor in factors:
        nodes.append(factor.grouping.index + base)
        base += len(factor.grouping.labels)
    first = np.concatenate([nodes[0]] * (len(nodes) - 1))
    graph = coo_array((np.ones(len(first), dtype=bool), (first, np.concatenate(nodes[1:]))), shape=(base, base))
    _, component = connected_components(graph, directed=False)
    _, labels = np.unique(component[nodes[0]], return_inverse=True)
    return np.asarray(labels, dtype=np.intp)


def whitened(result: LMMResult, values: Array) -> Array:
    """L_c^-1 values for the covariance matrix L_c L_c' of each cluster, rows in their order.

    Raises
    ------
    LMMError
        Where crossed factors join more rows than a covariance matrix can be formed of.
    """
    from scipy.linalg import solve_triangular

    labels = cluster_labels(result)
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    out = np.empty(len(values))
    for rows in np.split(order, starts[1:]):
        if len(rows) > LARGEST:
            raise LMMError(
                f"kind='whitened' needs the covariance matrix of {len(rows)} rows that the crossed factors join, more "
                f"than {LARGEST}; use kind='conditional' or 'pearson'"
            )
        lower = np.linalg.cholesky(rows_covariance(result, rows))
        out[rows] = solve_triangular(lower, values[rows], lower=True, check_finite=False)
    return out
