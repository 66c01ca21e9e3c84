"""BLUPs where the residuals have a structure, from V^-1 by rows: b = G Z'V^-1 (y - X beta), with G - G Z'V^-1Z G."""

from __future__ import annotations

import numpy as np

from ..design.independence import cluster_labels
from ..engines.protocol import Engine
from ..kernels.records.rows import ConditionedRows
from ..support.types import Array, Index
from .model import Model

__all__ = ["coefficient_errors", "effects", "effects_covariances", "errorless_covariances"]


def effects(model: Model, engine: Engine, G: Array, rest: Array) -> tuple[Array, ...]:
    """Conditional means of the random effects given y, an (m, q) array per grouping factor, in natural units.

    Parameters
    ----------
    model : Model
    engine : Engine
        At the parameters.
    G : (q, q) array
        Covariance of the random effects relative to sigma^2.
    rest : (n,) array
        y - X beta.
    """
    solved = _solved(model, engine, rest)
    out = []
    for f in model.factors:
        Z, index, m = model.exog_re[:, f.columns], f.grouping.index, f.grouping.m
        scores = np.column_stack([np.bincount(index, z * solved, m) for z in Z.T]) if Z.shape[1] else np.zeros((m, 0))
        out.append(scores @ G[f.columns, f.columns])
    return tuple(out)


def effects_covariances(model: Model, engine: Engine, G: Array) -> tuple[Array, ...]:
    """Conditional covariances of the random effects given y relative to sigma^2: (m, q, q) per grouping factor."""
    labels = cluster_labels(model.design)
    out = []
    for f in model.factors:
        own, m, q = G[f.columns, f.columns], f.grouping.m, f.stop - f.start
        inner = np.zeros((m, q, q))
        Z, index = model.exog_re[:, f.columns], f.grouping.index
        rank = _rank_within(index, labels, m)
        for r in range(int(rank.max()) + 1 if q else 0):
            # one level in each cluster at a time
            mine = rank[index] == r
            solved = _solved(model, engine, np.where(mine[:, None], Z, 0.0))
            for a in range(q):
                for b in range(q):
                    products = np.bincount(index[mine], (Z[:, a] * solved[:, b])[mine], m)
                    inner[rank == r, a, b] = products[rank == r]
        out.append(own - own @ inner @ own)
    return tuple(out)


def errorless_covariances(
    model: Model, engine: Engine, G: Array, conditional: Array, at: int, chol: Array | None
) -> Array:
    """Covariances of the BLUPs of one grouping factor relative to sigma^2 (m, q, q): G Z'V^-1Z G less what X takes.

    Parameters
    ----------
    model : Model
    engine : Engine
        At the parameters.
    G : (q, q) array
        Covariance of the random effects relative to sigma^2.
    conditional : (m, q, q) array
        Of the effects given y, relative to sigma^2: G - G Z'V^-1Z G.
    at : int
        Position of the factor.
    chol : (r, r) array or None
        Factor of X_o'V^-1X_o; None for coefficients that are known.
    """
    own = G[model.factors[at].columns, model.factors[at].columns]
    out = own - conditional
    if chol is None or not len(chol):
        return out
    half = coefficient_errors(model, engine, G, at, chol)
    return np.asarray(out - half @ half.transpose(0, 2, 1))


def coefficient_errors(model: Model, engine: Engine, G: Array, at: int, chol: Array) -> Array:
    """What the errors of the coefficients add to those of the BLUPs of one grouping factor.

    Parameters
    ----------
    model, engine, G, at
        See `errorless_covariances`.
    chol : (r, r) array
        Factor of X_o'V^-1X_o.

    Returns
    -------
    (m, q, r) array
        G Z'V^-1X (X'V^-1X)^(-1/2) of each level, whose products with themselves are covariances relative to sigma^2.
    """
    f, problem = model.factors[at], model.problem
    m = f.grouping.m
    turned = np.linalg.solve(chol, (_solved(model, engine, model.exog) @ problem.x_map).T).T
    Z, index = model.exog_re[:, f.columns], f.grouping.index
    E = np.empty((m, f.stop - f.start, len(chol)))
    for a, z in enumerate(Z.T):
        for j, column in enumerate(turned.T):
            E[:, a, j] = np.bincount(index, z * column, m)
    return np.asarray(G[f.columns, f.columns] @ E)


def _solved(model: Model, engine: Engine, v: Array) -> Array:
    """V^-1 v, V relative to sigma^2."""
    return engine.solve(v, ConditionedRows((), (), model.weights))


def _rank_within(index: Index, clusters: Index, m: int) -> Index:
    """Number of each level among those of its cluster."""
    cluster = np.empty(m, dtype=np.intp)
    cluster[index] = clusters
    order = np.argsort(cluster, kind="stable")
    sizes = np.bincount(cluster)
    out = np.empty(m, dtype=np.intp)
    out[order] = np.arange(m) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return out
