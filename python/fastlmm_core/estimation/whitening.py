"""Covariances of rows, and what is left of rows when those before them have told what they know."""

from __future__ import annotations

import numpy as np

from ..design.independence import cluster_labels, of_equal_size
from ..engines.crossed.sparse_cholesky import sparse_cholesky
from ..errors import LMMError
from ..support.types import Array, Index
from .fit import Fit
from .model import Model

__all__ = ["by_residuals", "rows_covariance", "whitened"]


LARGEST = 3_000
"""Rows of a cluster whose covariance matrix is still formed."""

TOGETHER = 64
"""Rows of a cluster up to which those of equal size are factored together."""


def rows_covariance(result: Fit, rows: Index) -> Array:
    """Covariance matrix of some rows: sum_f Z_f G_f Z_f' where they share a level of f, and that of the
    residuals: sigma^2 / weights, or W^-1/2 R W^-1/2 within subjects.

    Parameters
    ----------
    result : LMMResult
    rows : (..., s) int array

    Returns
    -------
    (..., s, s) array
    """
    return marginal_rows(result.model, (result.covariance, float(result.sigma2), result.phi), rows)


def marginal_rows(model: Model, parameters: tuple[Array, float, Array], rows: Index) -> Array:
    """`rows_covariance` at G, sigma^2 and the parameters of structured residuals."""
    G, sigma2, phi = parameters
    size = rows.shape[-1]
    residual = model.residual
    if residual is None:
        noise = sigma2 * (np.ones(rows.shape) if model.weights is None else 1.0 / model.weights[rows])
        out = np.zeros((*rows.shape, size))
        out[..., np.arange(size), np.arange(size)] = noise
    else:
        out = sigma2 * residual.covariance(phi, rows)
        if model.weights is not None:
            root = np.sqrt(model.weights[rows])
            out /= root[..., :, None] * root[..., None, :]
    for factor in model.factors:
        part = factor.columns
        Z, level = model.exog_re[rows, part], factor.grouping.index[rows]
        product = (Z @ G[part, part]) @ np.swapaxes(Z, -1, -2)
        product *= level[..., :, None] == level[..., None, :]
        out += product
    return out


def by_residuals(result: Fit, values: Array) -> Array:
    """R^-1/2 values by rows (n, k): L^-1 times those of each subject, of residuals R = sigma^2 L L', weighted.

    Parameters
    ----------
    result : LMMResult
        With structured residuals.
    values : (n, k) array
    """
    model, part = result.model, result.model.residual
    assert part is not None
    out = values if model.weights is None else values * np.sqrt(model.weights)[:, None]
    out = np.array(out, dtype=float)
    for own, where, members in part.alike():
        out[members] = np.linalg.solve(np.linalg.cholesky(own.matrix(result.phi, where)), out[members])
    return out


def whitened(result: Fit, values: Array, order: Index | None = None) -> Array:
    """Values less what the rows before them in their cluster tell, over the standard deviation of what is left.

    That is L_c^-1 values for the covariance matrix L_c L_c' of each cluster.  Clusters of more rows than such matrices
    are formed for are multiplied by another root of V^-1, one that does not depend on the order of the rows.

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
    """
    from scipy.linalg import solve_triangular

    labels = cluster_labels(result.model.design)
    place = np.arange(len(labels)) if order is None else order
    out = np.empty(len(values))
    large = np.bincount(labels)[labels] > LARGEST
    if large.any() and result.model.residual is not None:
        raise LMMError(
            f"clusters of more than {LARGEST:,} rows with structured residuals are not whitened: their covariance "
            "matrix would take too much memory"
        )
    if large.any():
        out[large] = _turned(result, values[large], np.flatnonzero(large))
        place = place[~large[place]]
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


def _turned(result: Fit, values: Array, rows: Index) -> Array:
    """(I - A (R + I)^-T R^-1 A') values / sigma, A = Z Lambda of all factors and R R' = I + A'A (weighted rows).

    Its transpose times itself is (I + A A')^-1 (Andrews 1968, AIAA J. 6, 1165-1166), and as near to the identity as
    few, large random effects leave it: each value stays that of its row.
    """
    from scipy.sparse import csr_array, eye_array
    from scipy.sparse.linalg import spsolve_triangular

    model = result.model
    root = np.ones(len(rows)) if model.weights is None else np.sqrt(model.weights[rows])
    inner, places = [], []
    first = 0
    for factor in model.factors:
        part = factor.columns
        width = part.stop - part.start
        inner.append(model.exog_re[rows, part] @ result.relative_factor[part, part] * root[:, None])
        places.append(first + factor.grouping.index[rows][:, None] * width + np.arange(width))
        first += len(factor.grouping.labels) * width
    columns = np.concatenate(places, axis=1)
    begin = np.arange(len(rows) + 1) * columns.shape[1]
    A = csr_array((np.concatenate(inner, axis=1).ravel(), columns.ravel(), begin), shape=(len(rows), first))
    R, order = sparse_cholesky(A.T @ A + eye_array(first))
    mine = values / np.sqrt(result.sigma2) * root
    half = spsolve_triangular(R, (A.T @ mine)[order], lower=True)
    back = np.empty(first)
    back[order] = spsolve_triangular((R + eye_array(first)).T.tocsr(), half, lower=False)
    return np.asarray(mine - A @ back)
