"""Rows of X and Z in coordinates that are well-conditioned, and their sums over groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..support.types import Array

if TYPE_CHECKING:
    from ..design.grouping import Factor, Grouping
    from ..estimation.model import Model

__all__ = ["conditional_covariances", "conditioned_rows", "fixed_rows", "grams_of", "sums_of"]


def conditioned_rows(model: Model, factor: Factor) -> tuple[Array, Array]:
    """Well-conditioned rows of one factor's Z (n, q), and the map of their coefficients to those of Z."""
    turn = model.problem.z_map[factor.columns, factor.columns]
    return model.problem.conditioned_z(model.exog_re)[:, factor.columns], turn


def grams_of(rows: Array, weights: Array | None, grouping: Grouping) -> Array:
    """Weighted sums of the outer products of the rows (n, q) over each group (m, q, q)."""
    m, q = len(grouping.labels), rows.shape[1]
    weighted = rows if weights is None else rows * weights[:, None]
    out = np.empty((m, q, q))
    for j in range(q):
        for k in range(j + 1):
            products = weighted[:, j] * rows[:, k]
            out[:, j, k] = out[:, k, j] = np.bincount(grouping.index, weights=products, minlength=m)
    return out


def sums_of(rows: Array, grouping: Grouping) -> Array:
    """Sums of the rows (n, q) over each group (m, q)."""
    m = len(grouping.labels)
    return np.column_stack([np.bincount(grouping.index, weights=column, minlength=m) for column in rows.T])


def conditional_covariances(factor: Array, grams: Array) -> Array:
    """M_i = Lambda (I + Lambda'A_iLambda)^-1 Lambda' (m, q, q)."""
    inner = np.eye(len(factor)) + factor.T @ grams @ factor
    return np.asarray(factor @ np.linalg.solve(inner, np.broadcast_to(factor.T, inner.shape)))


def fixed_rows(model: Model) -> Array:
    """Well-conditioned rows of the columns of X that were kept (n, r); x_map takes their coefficients to those of X."""
    problem = model.problem
    return problem.conditioned_x(model.exog) if len(model.factors) == 1 else model.exog @ problem.x_map
