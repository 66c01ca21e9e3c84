"""Where the criteria of many responses on one design may have other minima: the screen of `estimation.search`.

V of every point of the screen is the same for all responses, so that the values are products of two tables with what
the lanes know of a response (see lanes/screen.pxi); the tables are made here.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ... import kernels
from ...engines.one_factor.problem import DOMINATED, SIX, TELLING, OneFactorProblem, one_factor
from ...engines.protocol import CAREFUL, HARD, ORDINARY, linear_engine, linear_problem
from ...engines.starts import ENOUGH
from ...kernels.records.batches import BatchPatterns, BatchScreen
from ...support.types import Array, Index
from ..search import (
    CLOSE_SPREAD,
    CLOSE_VALLEYS,
    DESCENTS,
    LOWEST_POINTS,
    NARROWED,
    NEAR,
    SPREAD,
    VANISHING,
    close_points,
    nearest,
    screen_of,
)  # fmt: skip

if TYPE_CHECKING:
    from ...covariance.parameters import CovarianceStructure
    from ..model import Model

__all__ = [
    "Ended", "enough_worth", "group_basis", "narrowed_starts", "next_lowest", "response_screen", "screened_design",
]  # fmt: skip


GROUPS = 256
"""Groups of which the criterion is screened where there are more."""

CORRELATION = 5.0
"""Weight of a correlation beside logarithms of variances, in the distance of covariance matrices."""

RIDGE, ROUNDING = 1e-8, 1e-13
"""Share of X'X that keeps the coefficients defined where the groups screened leave them open, and where all are."""

WIDE = (4, 12, 16)
"""Neighbours that a valley lies lower than where the variation is that of many groups: of one effect, two, more."""

MANY = 0.1
"""Share of the groups that the variation is worth where it is that of many groups: a third for normal effects, a half
for normal errors alone, a few hundredths where some groups make up most of it."""

EIGHT = 8
"""Rows of a table that lie side by side."""

EQUAL = 1e-7
"""Relative difference of values that two searches may leave at one minimum."""


class Ended(NamedTuple):
    """Where searches ended: the response of each, the value and theta (count, n_par)."""

    responses: Index
    values: Array
    thetas: Array


def enough_worth(model: Model) -> float:
    """Groups that the variation of a response is worth if it has no more minima than others of its design.

    Zero where all are searched as much as can be; made once per model.
    """

    def make() -> float:
        problem = one_factor(model.problem)
        if not model.structure.one_full or _effort(problem) == HARD:
            return 0.0
        return DOMINATED * min(problem.m, ENOUGH * model.structure.q)

    return model.once("groups that the variation is worth", make)


def _effort(problem: OneFactorProblem) -> int:
    """The effort of looking for other minima, whatever the response of the model is."""
    if not problem.structure.one_full:
        return ORDINARY
    if not problem.not_many:
        # with coefficients within groups that are not those between, many groups have two minima, too
        return HARD if problem.within_differs else ORDINARY
    # of few groups that tell alike most minima are those of regular data, wherever they lie: the rest is soon searched
    if problem.few:
        return HARD
    return ORDINARY if problem.nearly_balanced else CAREFUL


def screened_design(model: Model, shared: kernels.BatchDesign) -> kernels.BatchDesign:
    """A design with the screen of few groups; made once per model."""
    name = "shared by responses of which few groups make up the variation"
    return model.once(name, lambda: shared.with_screen(_screen(model, shared.patterns, HARD)))


def response_screen(model: Model, patterns: BatchPatterns) -> BatchScreen | None:
    """The screen of a design with one grouping factor, None where there is one minimum.

    Parameters
    ----------
    model : Model
    patterns : BatchPatterns
    """
    problem = one_factor(model.problem)
    if linear_problem(problem).elsewhere().kind != "search":
        return None
    return _screen(model, patterns, _effort(problem))


def _screen(model: Model, patterns: BatchPatterns, effort: int) -> BatchScreen:
    """The screen of one effort."""
    problem, structure = one_factor(model.problem), model.structure
    q, r, m = structure.q, problem.rank, problem.m
    # values are cheap here, descents are not: many close points, and their valleys, in place of few and many starts
    near_by = close_points(structure.blocks) if effort == HARD or q == 1 else None
    close = near_by if effort == HARD else None
    points = near_by or screen_of(linear_engine(problem.criterion()), structure, effort)
    unit = np.sqrt(problem.levels / problem.n)
    factors = structure.factors(points.thetas)
    factors = unit[:, None] * factors
    sizes, widths = np.diff(patterns.groups), np.diff(patterns.columns)
    chosen = np.arange(0, len(sizes), -(-len(sizes) // GROUPS))
    owner = np.repeat(np.arange(len(chosen)), widths[chosen])
    columns = np.concatenate([np.arange(*patterns.columns[i : i + 2]) for i in chosen])
    share = float(sizes[chosen].sum() / m)

    upper = np.zeros((len(chosen), q, q))
    upper[:, *np.triu_indices(q)] = patterns.R[chosen]
    spread = upper @ factors[:, None]
    inner = np.eye(q) + spread @ spread.transpose(0, 1, 3, 2)
    inverse = np.linalg.inv(inner)
    cx = patterns.cx[columns]
    turned = inverse[:, owner] @ cx
    within = kernels.unpack(patterns.within_xx, r)
    within = within + (ROUNDING if len(chosen) == len(sizes) else RIDGE) * np.eye(r)
    tall = cx.reshape(len(columns) * q, r)
    H = share * within + tall.T @ turned.reshape(len(factors), *tall.shape)
    half = np.linalg.inv(np.linalg.cholesky(H))
    length = len(columns) * q
    linear = np.empty((len(factors), r, length + r))
    linear[:, :, :length] = half @ turned.reshape(len(factors), length, r).transpose(0, 2, 1)
    linear[:, :, length:] = half
    lower, upper_half = np.tril_indices(q)
    weights = inverse[:, :, lower, upper_half] * np.where(lower == upper_half, 1.0, 2.0)
    square = np.column_stack([weights.reshape(len(factors), -1), np.ones(len(factors))])
    log_v = np.linalg.slogdet(inner)[1] @ sizes[chosen]
    log_h = np.linalg.slogdet(H)[1]
    n_below = 0
    if effort < HARD:
        order, n_below = _in_order(factors / unit[:, None], log_v + log_h)
        factors, linear, square, log_v, log_h = factors[order], linear[order], square[order], log_v[order], log_h[order]
    thetas = np.ascontiguousarray(factors[:, *structure.positions])
    count = problem.n if len(chosen) == len(sizes) else round(problem.n * share)
    # on a grid of standard deviations, of effects that are independent, both neighbours along each
    near = max(NEAR, 2 * q) if not structure.one_full else points.neighbours.shape[1]
    # minima of independent effects may lie apart whatever the response, and of few groups next to each other
    apart_only = structure.one_full and effort < HARD
    if effort == HARD and near == points.neighbours.shape[1]:
        # these points are those of every design, in their order
        neighbours = points.neighbours
    else:
        wide = min(WIDE[min(q, 3) - 1] if apart_only else near, len(factors) - 1 - n_below)
        around = nearest(factors / unit[:, None], wide + n_below)
        neighbours = np.ascontiguousarray(around[:, :wide])
        # of the first point none that may not be looked at where it is, see `_in_order`
        neighbours[0] = around[0][around[0] < len(factors) - n_below][:wide]
    return BatchScreen(
        thetas=thetas,
        alone=effort == HARD and problem.unalike,
        pattern=chosen.astype(np.int64),
        n_columns=len(columns),
        apart=bool((sizes[chosen] == 1).all()),
        share=share,
        nu=(float(count - r), float(count)),
        square=_side_by_side(square),
        linear=_side_by_side(linear.reshape(len(factors) * r, length + r)),
        constant=(log_v + log_h, log_v),
        origin=(float(np.linalg.slogdet(share * within + tall.T @ tall)[1]), 0.0),
        half=np.linalg.inv(np.linalg.cholesky(within)),
        n_below=n_below,
        near=near,
        neighbours=np.asarray(neighbours, dtype=np.int64),
        features=_features(structure, factors, unit),
        unit=unit,
        vanishing=VANISHING**2,
        correlation=CORRELATION,
        many=MANY * len(chosen) if apart_only else inf,
        lowest=1 if close else LOWEST_POINTS[effort],
        limit=CLOSE_VALLEYS if close else DESCENTS[effort],
        # the narrowest basins have no valley of their own even so
        spread=CLOSE_SPREAD if close else SPREAD[effort],
        of_regular=effort >= CAREFUL and structure.one_full and m >= SIX * q and problem.telling >= TELLING * m,
    )


def _in_order(factors: Array, bound: Array) -> tuple[Index, int]:
    """Points as the bound of the criterion rises, but for those below the least multiple of I, which is the first.

    Whether these, so many at the end, are looked at, that one tells; see lanes/screen.pxi.
    """
    order = np.argsort(bound, kind="stable")
    size = np.linalg.norm(factors, 2, axis=(1, 2))
    off = factors - size[:, None, None] * np.eye(factors.shape[1])
    multiples = np.flatnonzero((np.abs(off) <= 1e-9 * size[:, None, None]).all(axis=(1, 2)))
    if not len(multiples):
        return order, 0
    first = multiples[np.argmin(size[multiples])]
    below = size[order] <= size[first] * (1.0 + 1e-9)
    others = order[~below]
    return np.concatenate([[first], others, order[below & (order != first)]]), len(order) - len(others) - 1


def narrowed_starts(model: Model, theta: Array) -> Array:
    """Theta (count, n_par) with the least principal standard deviation next to none.

    Parameters
    ----------
    model : Model
        With one block of correlated effects.
    theta : (count, n_par) array
    """
    structure = model.structure
    unit = float(np.sqrt(model.problem.levels / model.problem.n)[0])
    factors = np.zeros((len(theta), structure.q, structure.q))
    factors[:, *structure.positions] = theta / unit
    axes, sizes = _pairs_of_axes(factors) if structure.q == 2 else np.linalg.svd(factors)[:2]
    sizes[:, -1] = VANISHING
    narrow = unit * axes * sizes[:, None]
    return np.ascontiguousarray(structure.canonical_many(narrow)[:, *structure.positions])


def _pairs_of_axes(factors: Array) -> tuple[Array, Array]:
    """Principal axes (count, 2, 2) and standard deviations (count, 2) of two effects, the largest first."""
    a, b, c = factors[:, 0, 0], factors[:, 1, 0], factors[:, 1, 1]
    first, second = a * a, b * b + c * c
    angle = 0.5 * np.arctan2(2.0 * a * b, first - second)
    cosine, sine = np.cos(angle), np.sin(angle)
    axes = np.stack([cosine, -sine, sine, cosine], axis=1).reshape(-1, 2, 2)
    large = np.sqrt(0.5 * (first + second + np.hypot(first - second, 2.0 * a * b)))
    small = np.divide(np.abs(a * c), large, out=np.zeros_like(large), where=large > 0.0)
    return axes, np.column_stack([large, small])


def next_lowest(ended: Ended, known: Array) -> tuple[Index, Array]:
    """The lowest minima of each response beside that with the value known[i], so many as `NARROWED` leaves.

    Returns
    -------
    responses : (count,) array
    thetas : (count, n_par) array
    """
    responses, values, thetas = ended
    here = known[responses]
    apart = np.flatnonzero(np.abs(values - here) > EQUAL * (1.0 + np.abs(here)))
    order = apart[np.lexsort((values[apart], responses[apart]))]
    step = np.diff(values[order], prepend=-np.inf) > EQUAL * (1.0 + np.abs(values[order]))
    order = order[step | (np.diff(responses[order], prepend=-1) > 0)]
    _, begin = np.unique(responses[order], return_index=True)
    rank = np.arange(len(order)) - np.repeat(begin, np.diff(begin, append=len(order)))
    order = order[rank < NARROWED - 1]
    return responses[order], thetas[order]


def _side_by_side(rows: Array) -> Array:
    """Rows (count, length), eight side by side: (ceil(count / 8), length, 8)."""
    tiles = -(-len(rows) // EIGHT)
    padded = np.zeros((tiles * EIGHT, rows.shape[1]))
    padded[: len(rows)] = rows
    return np.ascontiguousarray(padded.reshape(tiles, EIGHT, rows.shape[1]).transpose(0, 2, 1))


def _features(structure: CovarianceStructure, factors: Array, unit: Array) -> Array:
    """Logarithms of variances, and correlations, which vary as much (count, q(q+1)/2)."""
    scaled = factors / unit[:, None]
    G = scaled @ scaled.transpose(0, 2, 1) + VANISHING**2 * np.eye(structure.q)
    variances = np.diagonal(G, axis1=1, axis2=2)
    out = CORRELATION * G / np.sqrt(variances[:, :, None] * variances[:, None, :])
    diagonal = np.arange(structure.q)
    out[:, diagonal, diagonal] = np.log(variances)
    return np.ascontiguousarray(out[:, *np.tril_indices(structure.q)])


def group_basis(z: Array, upper: Array) -> Array:
    """Rows of Z_i R_i^-1 from rows of Z and R_i of their groups; a column that Z_i lacks is zero.

    Parameters
    ----------
    z : (n, q) array
    upper : (n, q, q) array
        Upper triangular.
    """
    out = np.zeros_like(z)
    for a in range(z.shape[1]):
        rest = z[:, a] - (out[:, :a] * upper[:, :a, a]).sum(axis=1)
        pivot = upper[:, a, a]
        out[:, a] = np.divide(rest, pivot, out=np.zeros(len(z)), where=pivot > 0.0)
    return out
