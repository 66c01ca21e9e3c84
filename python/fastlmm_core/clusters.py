"""Covariances of rows and of the clusters that they form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import LMMError

if TYPE_CHECKING:
    from .results import LMMResult

__all__ = ["cluster_labels", "of_equal_size", "rows_covariance", "whitened"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

LARGEST = 10_000
"""Rows of a cluster whose covariance matrix is still formed."""

HELD = 1 << 22
"""Numbers in the covariance matrices of clusters that are formed at a time."""

TOGETHER = 64
"""Rows of a cluster up to which those of equal size are factored together."""


def rows_covariance(result: LMMResult, rows: Index) -> Array:
    """Covariance matrix of some rows: sum_f Z_f G_f Z_f' where they share a level of f, and sigma^2 / weights.

    Parameters
    ----------
    result : LMMResult
    rows : (..., s) int array

    Returns
    -------
    (..., s, s) array
    """
    model = result.model
    size = rows.shape[-1]
    noise = result.sigma2 * (np.ones(rows.shape) if model.weights is None else 1.0 / model.weights[rows])
    out = np.zeros((*rows.shape, size))
    out[..., np.arange(size), np.arange(size)] = noise
    for factor in model.factors:
        part = factor.columns
        Z, level = model.exog_re[rows, part], factor.grouping.index[rows]
        product = (Z @ result._covariance[part, part]) @ np.swapaxes(Z, -1, -2)
        product *= level[..., :, None] == level[..., None, :]
        out += product
    return out


def cluster_labels(result: LMMResult) -> Index:
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


def of_equal_size(labels: Index, held: int = HELD) -> Iterator[Index]:
    """Rows of the clusters (c, s), in stretches of c clusters of s rows with about `held` squares of rows in each.

    Rows of a cluster stay in their order.
    """
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes[sizes > 0]).tolist():
        members = np.flatnonzero(sizes == size)
        step = max(1, held // size**2)
        for begin in range(0, len(members), step):
            yield order[starts[members[begin : begin + step], None] + np.arange(size)]


def whitened(result: LMMResult, values: Array, order: Index | None = None) -> Array:
    """L_c^-1 values for the covariance matrix L_c L_c' of each cluster.

    Parameters
    ----------
    result : LMMResult
    values : (n,) array
    order : (n,) int array, optional
        The order in which the rows of a cluster are taken; by default their own.

    Returns
    -------
    (n,) array
        By rows, whatever the order.

    Raises
    ------
    LMMError
        Where crossed factors join more rows than a covariance matrix can be formed of.
    """
    from scipy.linalg import solve_triangular

    labels = cluster_labels(result)
    widest = int(np.bincount(labels).max())
    if widest > LARGEST:
        raise LMMError(
            f"whitened residuals need the covariance matrix of {widest} rows that the grouping factors join, more than "
            f"{LARGEST}; use kind='conditional' or 'pearson'"
        )
    place = np.arange(len(labels)) if order is None else order
    out = np.empty(len(values))
    for local in of_equal_size(labels[place]):
        rows = place[local]
        lower = np.linalg.cholesky(rows_covariance(result, rows))
        if rows.shape[1] > TOGETHER:
            for mine, triangle in zip(rows, lower, strict=True):
                out[mine] = solve_triangular(triangle, values[mine], lower=True, check_finite=False)
            continue
        found = values[rows]
        for j in range(rows.shape[1]):
            found[:, j] -= np.einsum("ci,ci->c", lower[:, j, :j], found[:, :j])
            found[:, j] /= lower[:, j, j]
        out[rows] = found
    return out
