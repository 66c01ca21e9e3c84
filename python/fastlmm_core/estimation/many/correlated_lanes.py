"""Many responses with several grouping factors whose effects may be correlated: what the lanes read.

The levels of one factor, the leaves, are eliminated first; the effects of the others, the core, fall apart into parts
that share no leaf (see lanes/correlated.pxi).  That factor leads which leaves least to do.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...covariance.directions import free_directions
from ...covariance.parameters import vech_positions
from ...engines.crossed.problem import CrossedProblem
from ...engines.protocol import EASY, HARD
from ...kernels.hierarchies import CorrelatedBatch, FactorBatch, leaf_products
from ...kernels.records.factors import CorrelatedLeaves, CorrelatedParts, CorrelatedRows, CorrelatedSearch, FactorScreen
from ...support.types import Array, Int64
from ..model import Model
from ..optimum import close_enough
from ..refinement import LARGE
from ..search import DESCENTS, LOWEST_POINTS, SPREAD, VANISHING, screen_of
from .factor_lanes import MAX_ITERATIONS, conditioned_z, leaves_apart, moved_starts

__all__ = ["correlated_batch", "further_starts"]


MOST_WIDE = 4
"""Random effects of a level that the lanes take at most."""

WORK_UP_TO = 3e7
"""Products of an evaluation up to which vectors over responses are faster than BLAS."""

AT_ONCE = 1e6
"""Numbers of a table of the screen of which so many points are worked on at once."""


class _Order(NamedTuple):
    """The levels of one factor as leaves, and the core's effects by part.

    Attributes
    ----------
    factors : list of int
        In the order of the lanes: that of the leaves last.
    leaf : (n,) int array
        Leaves are numbered part by part.
    level : (n, n_factors - 1) int array
        First effect of the core of each row's levels.
    of : (n_core,) int array
        Factor, by its place in `factors`, of each effect of the core.
    tail : (n_core,) int array
        Where the level of each effect ends, in its part.
    core, leaves : (n_parts + 1,) int arrays
    work : float
    """

    factors: list[int]
    leaf: Int64
    level: Int64
    of: Int64
    tail: Int64
    core: Int64
    leaves: Int64
    work: float


def correlated_batch(model: Model) -> CorrelatedBatch | None:
    """What the responses of a model share, None where covariances have a structure, or are too many for vectors.

    Parameters
    ----------
    model : Model
        With several grouping factors.
    """
    structure, problem = model.structure, cast("CrossedProblem", model.problem)
    widths = [f.stop - f.start for f in model.factors]
    if structure.restricted or max(widths) > MOST_WIDE:
        return None
    codes = [np.asarray(f.grouping.index, dtype=np.int64) for f in model.factors]
    orders = [_order(codes, widths, f, problem.rank + 1) for f in range(len(codes))]
    order = min(orders, key=lambda one: one.work)
    if order.work > WORK_UP_TO:
        return None
    columns = np.concatenate([np.arange(model.factors[f].start, model.factors[f].stop) for f in order.factors])
    unit = np.sqrt(problem.levels / problem.n)[columns]
    Z = np.column_stack([conditioned_z(model, model.factors[f].columns) for f in order.factors]) * unit
    root = None if model.weights is None else np.sqrt(model.weights)
    X = problem.conditioned_x(model.exog)
    X = np.ascontiguousarray(X if root is None else X * root[:, None])
    search = _search(model, order, columns, unit)
    rows, leaves, parts = _products(order, Z, X, [widths[f] for f in order.factors])
    rows = rows._replace(root=root, offset=model.offset, centre=problem.x_constant)
    screen = _screen(_thetas(model), rows, leaves, parts, search)
    x_map = np.ascontiguousarray(problem.x_map)
    return CorrelatedBatch(rows, leaves, parts, search, screen, x_map, model.coefficients_of_one)


def _order(codes: list[Int64], widths: list[int], leading: int, k: int) -> _Order:
    """The order of elimination that begins with the levels of a factor."""
    others, level, factor, leaf_part, level_part, count = leaves_apart(codes, leading)
    place = np.empty(len(leaf_part), dtype=np.int64)
    place[np.argsort(leaf_part, kind="stable")] = np.arange(len(leaf_part))
    width = np.array(widths)[others][factor]
    order = np.lexsort((np.arange(len(factor)), factor, level_part))
    first_effect = np.empty(len(order), dtype=np.int64)
    first_effect[order] = np.cumsum(np.append(0, width[order]))[:-1]
    sizes = np.bincount(level_part, width, minlength=count).astype(np.int64)
    core = np.append(0, np.cumsum(sizes)).astype(np.int64)
    ends = np.cumsum(width[order]) - core[level_part[order]]
    n_leaves = np.bincount(leaf_part, minlength=count)
    J, N = sizes.astype(float), sizes + n_leaves * float(widths[leading])
    work = J**3 / 3.0 + J**2 * N / 2.0 + J * N**2 / 2.0 + (k + 4.0) * N**2 / 2.0
    return _Order(
        factors=[*others.tolist(), leading], leaf=place[codes[leading]], level=first_effect[level],
        of=np.repeat(factor[order], width[order]).astype(np.int64),
        tail=np.repeat(ends, width[order]).astype(np.int64), core=core,
        leaves=np.append(0, np.cumsum(n_leaves)).astype(np.int64), work=float(work.sum()),
    )  # fmt: skip


def _search(model: Model, order: _Order, columns: NDArray[np.intp], unit: Array) -> CorrelatedSearch:
    """Theta, and the directions of G^, in the order of the lanes."""
    structure, problem = model.structure, model.problem
    place = np.empty(structure.q, dtype=np.int64)
    place[columns] = np.arange(structure.q)
    rows, cols = (place[part] for part in structure.positions)
    terms = np.lexsort((rows, cols))
    lower, upper = (place[part[free_directions(structure)]] for part in vech_positions(structure.q))
    starts = np.sort(
        [place[i] for b in structure.blocks for i in ([b.start] if b.correlated else range(b.start, b.stop))]
    )
    widths = [model.factors[f].stop - model.factors[f].start for f in order.factors]
    return CorrelatedSearch(
        terms=terms,
        unit=unit[rows[terms]],
        rows=rows[terms],
        columns=cols[terms],
        blocks=None if structure.n_parameters == structure.q else np.append(starts, structure.q),
        column=np.cumsum([0, *widths]),
        directions=np.stack([lower, upper]),
        scale=1.0 / (unit[lower] * unit[upper]),
        large=LARGE,
        tolerance=close_enough(problem.m),
        max_iterations=MAX_ITERATIONS,
    )


def _products(
    order: _Order, Z: Array, X: Array, widths: list[int]
) -> tuple[CorrelatedRows, CorrelatedLeaves, CorrelatedParts]:
    """Cross-products of the leaves and of what they leave, part by part."""
    q = widths[-1]
    slots = np.concatenate([order.level[:, [f]] + np.arange(width) for f, width in enumerate(widths[:-1])], axis=1)
    value = np.ascontiguousarray(Z[:, :-q])
    start = np.append(0, np.cumsum(np.bincount(order.leaf)))
    unit, R, of_core, of_x, within_cc, within_cx, within_xx = leaf_products(
        start, np.argsort(order.leaf, kind="stable"), slots, value, np.ascontiguousarray(Z[:, -q:]), X, order.core,
        order.leaves,
    )  # fmt: skip
    sizes, count = np.diff(order.core), np.diff(order.leaves)
    effects = sizes + q * count
    rows = CorrelatedRows(
        x=X, root=None, offset=None, centre=False, leaf=order.leaf, unit=unit, slot=slots, value=value
    )
    at = np.append(0, np.cumsum(np.repeat(q * sizes, count)))[:-1]
    leaves = CorrelatedLeaves(R=R[:, *np.triu_indices(q)], at=at, core=of_core, x=of_x, within_xx=within_xx)
    parts = CorrelatedParts(
        core=order.core, leaves=order.leaves, effects=np.append(0, np.cumsum(effects)),
        square=np.append(0, np.cumsum(effects * sizes)), factor=order.of, tail=order.tail,
        square_at=np.append(0, np.cumsum(sizes * (sizes + 1) // 2))[:-1], within_cc=within_cc, within_cx=within_cx,
    )  # fmt: skip
    return rows, leaves, parts


# ------------------------------------------------------------------------------------------------------------- starts


def further_starts(batch: FactorBatch | CorrelatedBatch, theta: Array) -> tuple[NDArray[np.intp], Array]:
    """Where else to search of responses whose minima lie on the boundary or near it.

    Parameters
    ----------
    batch : FactorBatch or CorrelatedBatch
    theta : (count, n_par) array
        Their minima.

    Returns
    -------
    responses : int array
        Positions in theta.
    starts : (., n_par) array
    """
    if isinstance(batch, FactorBatch) or batch.search.blocks is None:
        return moved_starts(batch, theta)
    return narrowed_starts(batch, theta)


def narrowed_starts(batch: CorrelatedBatch, theta: Array) -> tuple[NDArray[np.intp], Array]:
    """Starts with the least principal standard deviation of one block next to none, for all blocks; see `search`.

    Parameters
    ----------
    batch : CorrelatedBatch
    theta : (count, n_par) array

    Returns
    -------
    responses : int array
        Positions in theta.
    starts : (., n_par) array
    """
    search = batch.search
    q = int(search.column[-1])
    factors = np.zeros((len(theta), q, q))
    factors[:, search.rows, search.columns] = theta[:, search.terms] / search.unit
    found, blocks = [], [] if search.blocks is None else list(pairwise(search.blocks.tolist()))
    for first, last in blocks:
        if last - first == 1:
            continue
        changed = factors.copy()
        axes, sizes, _ = np.linalg.svd(factors[:, first:last, first:last])
        # where it is none, what has no variance may lie in another direction
        low = sizes[:, -1] <= 2.0 * VANISHING
        sizes[low, -1] = np.maximum(sizes[low, -2], VANISHING)
        sizes[low, -2] = VANISHING
        sizes[~low, -1] = VANISHING
        upper = np.linalg.qr((axes * sizes[:, None, :]).transpose(0, 2, 1))[1]
        signs = np.where(np.diagonal(upper, axis1=1, axis2=2) < 0.0, -1.0, 1.0)
        changed[:, first:last, first:last] = (signs[:, :, None] * upper).transpose(0, 2, 1)
        found.append(changed[:, search.rows, search.columns] * search.unit)
    out = np.empty((len(theta) * len(found), theta.shape[1]))
    out[:, search.terms] = np.concatenate(found) if found else np.zeros_like(out)
    return np.tile(np.arange(len(theta)), len(found)), out


# ------------------------------------------------------------------------------------------------------------- screen


def _thetas(model: Model) -> tuple[Array, NDArray[np.intp], int]:
    """Points of the screen (n_points, n_par) in the caller's units, their neighbours, and the effort they are for."""
    problem = cast("CrossedProblem", model.problem)
    elsewhere = problem.elsewhere()
    wanted = elsewhere.kind == "search" and elsewhere.effort > EASY and elsewhere.scout is None
    effort = elsewhere.effort if wanted else EASY
    # independent effects of one factor may be large and cancel each other
    points = screen_of(problem.criterion(), model.structure, HARD if elsewhere.always else effort)
    unit = np.sqrt(problem.levels / problem.n)
    return points.thetas * unit[model.structure.positions[0]], points.neighbours, effort


def _screen(
    points: tuple[Array, NDArray[np.intp], int], rows: CorrelatedRows, leaves: CorrelatedLeaves, parts: CorrelatedParts,
    search: CorrelatedSearch,
) -> FactorScreen:  # fmt: skip
    """The tables by which the criteria of all responses are evaluated at the points."""
    thetas, neighbours, effort = points
    factors = np.zeros((len(thetas), search.column[-1], search.column[-1]))
    factors[:, search.rows, search.columns] = thetas[:, search.terms] / search.unit
    sizes = np.diff(parts.core)
    width = int(sizes @ (sizes + leaves.x.shape[1] * np.diff(parts.leaves)))
    step = max(1, int(AT_ONCE / max(1, width)))
    tables = [
        _tables(factors[first : first + step], leaves, parts, search, rows.x.shape[1])
        for first in range(0, len(factors), step)
    ]
    share, half, half_xx, log_v, log_h = (np.concatenate(one) for one in zip(*tables, strict=True))
    known = np.where(np.isfinite(log_h), log_v, np.inf)
    return FactorScreen(
        thetas=np.ascontiguousarray(thetas), neighbours=neighbours.astype(np.int64), share=share,
        half=half, half_x=np.zeros(0), half_xx=half_xx,
        constant=(known + np.where(np.isfinite(log_h), log_h, 0.0), known),
        limit=DESCENTS[effort], lowest=LOWEST_POINTS[effort], spread=SPREAD[effort],
    )  # fmt: skip


def _tables(
    F: Array, leaves: CorrelatedLeaves, parts: CorrelatedParts, search: CorrelatedSearch, p: int
) -> tuple[NDArray[Any], ...]:
    """Weights of the leaves, rows of the parts and of X, log|V| and log|H_xx| at factors (count, q, q) of a level."""
    count, (m, q, _), n_core = len(F), leaves.x.shape, len(parts.factor)
    R = np.zeros((m, q, q))
    R[:, *np.triu_indices(q)] = leaves.R
    U = R @ F[:, None, -q:, -q:]
    inverse = np.linalg.inv(np.eye(q) + U @ U.transpose(0, 1, 3, 2))
    log_v = -np.linalg.slogdet(inverse)[1].sum(axis=1)
    lower = np.tril_indices(q)
    weights = (inverse[:, :, *lower] * np.where(lower[0] == lower[1], 1.0, 2.0)).reshape(count, -1)
    weighted = (inverse @ leaves.x).reshape(count, m * q, p)
    H = kernels.unpack(leaves.within_xx, p) + leaves.x.reshape(-1, p).T @ weighted
    x_rows = np.zeros((count, p, n_core + m * q + p))
    x_rows[:, :, n_core : n_core + m * q] = weighted.transpose(0, 2, 1)
    x_rows[:, :, n_core + m * q :] = np.eye(p)
    tables = []
    for part in range(len(parts.core) - 1):
        core, own = slice(*parts.core[part : part + 2]), slice(*parts.leaves[part : part + 2])
        J, of_leaves = core.stop - core.start, slice(own.start * q, own.stop * q)
        c = leaves.core[leaves.at[own.start] :][: (own.stop - own.start) * q * J].reshape(-1, q, J)
        turned = (inverse[:, own] @ c).reshape(count, -1, J)
        across = c.reshape(-1, J).T
        B = kernels.unpack(parts.within_cc[parts.square_at[part] :], J) + across @ turned
        Bx = parts.within_cx[core] + across @ weighted[:, of_leaves]
        L2 = np.zeros((count, J, J))
        at_level = 0
        while at_level < J:
            end = parts.tail[core.start + at_level]
            f = parts.factor[core.start + at_level]
            inside = slice(search.column[f], search.column[f + 1])
            L2[:, at_level:end, at_level:end] = F[:, inside, inside]
            at_level = end
        M = np.linalg.cholesky(np.eye(J) + L2.transpose(0, 2, 1) @ B @ L2)
        log_v += _log_det(M)
        S = np.linalg.solve(M, L2.transpose(0, 2, 1))
        of_y = np.concatenate([S, S @ turned.transpose(0, 2, 1)], axis=2)
        tables.append(of_y.reshape(count, -1))
        Sx = S @ Bx
        H -= Sx.transpose(0, 2, 1) @ Sx
        change = Sx.transpose(0, 2, 1) @ of_y
        x_rows[:, :, core] -= change[:, :, :J]
        x_rows[:, :, n_core + of_leaves.start : n_core + of_leaves.stop] -= change[:, :, J:]
    chol, log_h = np.tile(np.eye(p), (count, 1, 1)), np.full(count, np.inf)
    for i in range(count):
        try:
            chol[i] = np.linalg.cholesky(H[i])
        except np.linalg.LinAlgError:
            x_rows[i] = 0.0
            continue
        log_h[i] = _log_det(chol[i])
    return weights, np.concatenate(tables, axis=1), np.linalg.solve(chol, x_rows), log_v, log_h


def _log_det(lower: NDArray[Any]) -> Array:
    """log|L L'| of triangular matrices (..., n, n)."""
    return np.asarray(2.0 * np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(axis=-1))
