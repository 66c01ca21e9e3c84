"""What deletions take from the cross-products of the groups of a model, and what they leave of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...kernels.deletions import others_in_group
from ...kernels.records.rows import Rows
from ...support.types import Array

if TYPE_CHECKING:
    from ...engines.one_factor.problem import OneFactorProblem
    from ..model import Model

__all__ = [
    "Pieces",
    "all_but_one",
    "conditioned_rows",
    "group_pieces",
    "pieces_of_groups",
    "square_lines",
    "within_groups",
]


class Pieces(NamedTuple):
    """What each deletion takes away and leaves of its group: lines of R (q q), c (q k) and the part within.

    `owner` is the group, `others` the part within of all other groups.
    """

    less: Array
    more: Array | None
    owner: NDArray[np.int64]
    removed: NDArray[np.int64]
    vanishes: NDArray[np.bool_]
    log_weights: Array
    others: Array
    counts: NDArray[np.int64]


def all_but_one(values: Array) -> Array:
    """Sums over all lines but each one, without subtraction."""
    zero = np.zeros((1, values.shape[1]))
    before = np.cumsum(np.vstack([zero, values[:-1]]), axis=0)
    after = np.cumsum(np.vstack([zero, values[:0:-1]]), axis=0)[::-1]
    return np.asarray(before + after)


def square_lines(packed: Array, count: int, q: int) -> tuple[Array, Array]:
    """Square R (count, q, q) and c (count, q * k) of packed groups."""
    flat = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:count]
    n_a = q * (q + 1) // 2
    R = np.zeros((count, q, q))
    R[(slice(None), *np.triu_indices(q))] = flat[:, :n_a]
    return R, flat[:, n_a:-1]


def conditioned_rows(model: Model, problem: OneFactorProblem) -> tuple[Array, Array, Array]:
    """X_o, y_o and Z_o."""
    y = model.endog if model.offset is None else model.endog - model.offset
    return problem.conditioned_rows(model.exog, y, model.exog_re)


def within_groups(model: Model, problem: OneFactorProblem, rows: tuple[Array, Array, Array], packed: Array) -> Array:
    """The part of [X_o y_o]'[X_o y_o] within each group, packed (m, (r+1)(r+2)/2); `rows` by `conditioned_rows`."""
    X, y, Z = rows
    m = problem.m
    within = np.zeros((packed.shape[0] * packed.shape[2], len(problem.within)))
    read = Rows(X, y, Z, model.grouping.index.astype(np.int64), 0, m, model.weights, None)
    problem.add_within(read, np.arange(m, dtype=np.int64), packed, within)
    return within[:m]


def pieces_of_groups(problem: OneFactorProblem, within: Array, log_weights: Array) -> Pieces:
    """What the deletion of each group takes away.

    Parameters
    ----------
    problem : OneFactorProblem
    within : (m, (r+1)(r+2)/2) array
        The part of [X_o y_o]'[X_o y_o] within each group.
    log_weights : (m,) array
        Sums of the logarithms of the weights of each.
    """
    m = problem.m
    R, c = square_lines(problem.unpatterned(), m, problem.structure.q)
    less = np.column_stack([R.reshape(m, -1), c, within])
    counts = problem.raw[:, -1].astype(np.int64)
    return Pieces(
        less, None, np.arange(m), counts, np.ones(m, dtype=bool), log_weights, all_but_one(within), counts
    )  # fmt: skip


def group_pieces(model: Model, problem: OneFactorProblem, by: str) -> Pieces:
    """What the deletion of each group, or of each observation, takes away and leaves.

    Parameters
    ----------
    model : LinearMixedModel
        With one grouping factor.
    problem : OneFactorProblem
        Of the model.
    by : {"group", "observation"}
    """
    q, r, m = model.structure.q, problem.rank, problem.m
    k = r + 1
    X, y, Z = conditioned_rows(model, problem)
    index = model.grouping.index.astype(np.int64)
    within = within_groups(model, problem, (X, y, Z), problem.unpatterned())
    log_weights: Array = np.zeros(len(index)) if model.weights is None else np.log(model.weights)
    of_groups = pieces_of_groups(problem, within, np.bincount(index, log_weights, minlength=m).astype(float))
    if by == "group":
        return of_groups
    counts = of_groups.counts
    R, c = of_groups.less[:, : q * q].reshape(m, q, q), of_groups.less[:, q * q : q * q + q * k]
    starts = np.concatenate([[0], np.cumsum(counts)])
    xy = np.ascontiguousarray(np.column_stack([X, y]))
    order = np.argsort(index, kind="stable")
    raw, outer = others_in_group(Z, xy, model.weights, order, starts)
    downdated = _downdated(xy, Z, model.weights, index, R, c.reshape(m, q, k), within)
    R, c = square_lines(kernels.factor_groups(raw, np.eye(q), np.eye(k))[0], len(index), q)
    lower = np.tril_indices(k)
    c = c.reshape(-1, q, k)
    rest = outer - np.sum(c.take(lower[0], axis=2) * c.take(lower[1], axis=2), axis=1)
    # the first loses digits where most of the variation lies between groups, the second where it lies in the row
    diagonal = np.flatnonzero(lower[0] == lower[1])
    size = outer[:, diagonal] - within[index][:, diagonal]
    rest = np.where(size.take(lower[0], axis=1) + size.take(lower[1], axis=1) > 0.0, downdated, rest)
    rest[:, diagonal] = np.maximum(rest[:, diagonal], 0.0)
    rest[:, problem.within == 0.0] = 0.0
    # as many rows as Z has independent columns leave nothing over
    rest[(np.diagonal(R, axis1=1, axis2=2) != 0.0).sum(axis=1) == counts[index] - 1] = 0.0
    more = np.column_stack([R.reshape(len(index), -1), c.reshape(len(index), -1), rest])
    return Pieces(
        of_groups.less,
        more,
        index,
        np.ones(len(index), dtype=np.int64),
        counts[index] == 1,
        log_weights,
        of_groups.others,
        counts,
    )


def _downdated(
    xy: Array, Z: Array, weights: Array | None, index: NDArray[np.int64], R: Array, c: Array, within: Array
) -> Array:
    """Part within each row's group without the row: w_i - w e e' / (1 - h), e and h the row's residual and leverage."""
    q, k = Z.shape[1], xy.shape[1]
    B, v = np.zeros_like(c), np.zeros_like(Z)
    pivot = np.diagonal(R, axis1=1, axis2=2)
    inverse = np.where(pivot != 0.0, 1.0 / np.where(pivot != 0.0, pivot, 1.0), 0.0)
    for a in range(q - 1, -1, -1):
        B[:, a] = (c[:, a] - np.einsum("ib,ibj->ij", R[:, a, a + 1 :], B[:, a + 1 :])) * inverse[:, a, None]
    for a in range(q):
        v[:, a] = (Z[:, a] - np.sum(R[index, :a, a] * v[:, :a], axis=1)) * inverse[index, a]
    w = np.ones(len(Z)) if weights is None else weights
    residual = xy - np.einsum("ia,iaj->ij", Z, B[index])
    left = 1.0 - w * np.sum(v**2, axis=1)
    # a row that alone determines a direction of Z leaves no residual
    share = np.where(left > 1e-10, w / np.where(left > 1e-10, left, 1.0), 0.0)
    rows, columns = np.tril_indices(k)
    return np.asarray(within[index] - share[:, None] * residual[:, rows] * residual[:, columns])
