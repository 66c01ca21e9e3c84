"""Many responses with several grouping factors of one random effect each: what the lanes read.

The levels of one term, the leaves, are eliminated first; the effects of the others, the core, fall apart into parts
that share no leaf (see lanes/factors.pxi).  That term leads which leaves least to do.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ...covariance.parameters import CovarianceStructure
from ...engines.crossed.problem import CrossedProblem
from ...engines.protocol import CAREFUL, EASY, HARD
from ...kernels.hierarchies import CorrelatedBatch, FactorBatch
from ...kernels.records.factors import FactorLeaves, FactorParts, FactorRows, FactorScreen, FactorSearch
from ...problem.columns import condition_z, factor_structure
from ...support.types import Array, Int64
from ..model import Model
from ..optimum import close_enough
from ..search import (
    DESCENTS,
    HIGHEST,
    LOWEST,
    LOWEST_POINTS,
    SPREAD,
    VANISHING,
    nearest,
    spread_points,
)  # fmt: skip

__all__ = ["MAX_ITERATIONS", "LeavesApart", "conditioned_z", "factor_batch", "leaves_apart", "moved_starts"]


WORK_UP_TO, PART_UP_TO = 4e6, 8e5
"""Products of an evaluation, and of one part of the core, up to which vectors over responses are faster than BLAS."""

MAX_ITERATIONS = 60
"""Newton steps in lanes before a response is left to the single-fit path."""

SIZES = {2: 11, 3: 5}
"""Standard deviations of each of so many terms that are screened, beside next to none."""

TABLE = 2**18
"""Numbers of a screen that a processor's cache holds; where there are more, fewer standard deviations are screened."""

FEW_ROWS, NEARLY_ALIKE = 3.0, 0.75
"""Rows for each random effect, and cosine between Z Z' of two terms, below and above which minima may lie together."""

ALIKE, ROUNDING = 1e-12, 1e-13
"""Relative difference of z'z of leaves of one pattern; share of a number that is its rounding error."""


class _Tree(NamedTuple):
    """One term's levels as leaves, and the core's effects by part.

    Attributes
    ----------
    term : int
        Column of Z of the leaves.
    leaf : (n,) int array
    slots : (n, n_terms - 1) int array
        Effects of the core that each row has, by the order of `of`.
    of : (n_core,) int array
        Column of Z of each effect.
    core : (n_parts + 1,) int array
    leaf_part : (n_leaves,) int array
    work, most : float
        Products of an evaluation, and those of the part that has most.
    """

    term: int
    leaf: Int64
    slots: Int64
    of: Int64
    core: Int64
    leaf_part: Int64
    work: float
    most: float


def conditioned_z(model: Model, part: slice) -> Array:
    """Z_o of one factor, weighted."""
    local = factor_structure(model.structure, part.start, part.stop - part.start)
    Z, own = condition_z(model.exog_re[:, part], model.weights, local)
    z_map = model.problem.z_map[part, part]
    # the problem may have been conditioned by one pass over the rows
    return Z if np.array_equal(own, z_map) else np.asarray(Z @ np.linalg.solve(own, z_map))


def factor_batch(model: Model) -> FactorBatch | None:
    """What the responses of a model share, None where effects are correlated, or too many for vectors.

    Parameters
    ----------
    model : Model
        With several grouping factors.
    """
    structure, problem = model.structure, cast("CrossedProblem", model.problem)
    if structure.restricted or structure.n_parameters != structure.q:
        return None
    codes = [np.asarray(f.grouping.index, dtype=np.int64) for f in model.factors for _ in range(f.start, f.stop)]
    p = problem.rank
    trees = [_tree(codes, term, p + 1) for term in range(structure.q)]
    tree = min(trees, key=lambda tree: tree.work)
    if tree.work > WORK_UP_TO or tree.most > PART_UP_TO:
        return None
    terms = np.array([tree.term, *(t for t in range(structure.q) if t != tree.term)], dtype=np.intp)
    unit = np.sqrt(problem.levels / problem.n)[terms]
    Z = np.column_stack([conditioned_z(model, f.columns) for f in model.factors])[:, terms] * unit
    root = None if model.weights is None else np.sqrt(model.weights)
    X = problem.conditioned_x(model.exog)
    X = X if root is None else X * root[:, None]

    m = len(tree.leaf_part)
    size = np.bincount(tree.leaf, Z[:, 0] ** 2, minlength=m)
    lengths = np.sqrt(size)[tree.leaf]
    u = np.divide(Z[:, 0], lengths, out=np.zeros(problem.n), where=lengths > 0.0)
    rows = FactorRows(
        x=np.ascontiguousarray(X), root=root, offset=model.offset, centre=problem.x_constant, leaf=tree.leaf, unit=u,
        entry=np.arange(problem.n + 1, dtype=np.int64) * (structure.q - 1), slot=tree.slots.ravel(),
        value=Z[:, 1:].ravel(),
    )  # fmt: skip
    leaves, parts = _products(tree, rows, np.asarray(size, dtype=np.float64), terms)
    search = FactorSearch(terms, unit, close_enough(problem.m), MAX_ITERATIONS)
    effort = _effort(problem, Z, [codes[t] for t in terms])
    screen = _screen(_points(structure, terms, leaves, parts), leaves, parts, effort)
    thetas = np.empty_like(screen.thetas)
    thetas[:, terms] = screen.thetas * unit
    screen = screen._replace(thetas=thetas)
    x_map = np.ascontiguousarray(problem.x_map)
    return FactorBatch(rows, leaves, parts, search, screen, x_map, model.coefficients_of_one)


class LeavesApart(NamedTuple):
    """The levels of one term or factor as leaves, those of the others, and the parts of them that share no row.

    Attributes
    ----------
    others : (n_others,) int array
    level : (n, n_others) int array
        Of each row, those of all others numbered one after the other.
    of : (n_levels,) int array
        Place in `others` of each level.
    leaf_part, level_part : int arrays
    n_parts : int
    """

    others: Int64
    level: Int64
    of: Int64
    leaf_part: Int64
    level_part: Int64
    n_parts: int


def leaves_apart(codes: list[Int64], leading: int) -> LeavesApart:
    """What falls apart where the levels of `codes[leading]` (n,) are eliminated first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    leaf = codes[leading]
    m = int(leaf.max()) + 1
    others = np.array([f for f in range(len(codes)) if f != leading], dtype=np.int64)
    counts = [int(codes[f].max()) + 1 for f in others]
    firsts = np.cumsum([0, *counts])
    level = np.column_stack([codes[f] + first for f, first in zip(others, firsts[:-1], strict=True)])
    edges = (np.repeat(leaf, len(others)), m + level.ravel())
    graph = coo_array((np.ones(level.size), edges), shape=(m + firsts[-1],) * 2)
    count, label = connected_components(graph, directed=False)
    part = label.astype(np.int64)
    return LeavesApart(others, level, np.repeat(np.arange(len(others)), counts), part[:m], part[m:], int(count))


def _tree(codes: list[Int64], term: int, k: int) -> _Tree:
    """The order of elimination that begins with the levels of a term."""
    apart = leaves_apart(codes, term)
    order = np.lexsort((np.arange(len(apart.of)), apart.of, apart.level_part))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    sizes = np.bincount(apart.level_part, minlength=apart.n_parts)
    pieces = np.minimum(np.bincount(apart.leaf_part, minlength=apart.n_parts), 16)
    J = sizes.astype(float)
    work = (1.5 * J**2 + 3.0 * J * k) * pieces + 2.5 * J**3 + 6.0 * J**2 * k + 6.0 * J * k**2
    core = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    of = apart.others[apart.of[order]]
    return _Tree(term, codes[term], place[apart.level], of, core, apart.leaf_part, float(work.sum()), float(work.max()))


def _products(tree: _Tree, rows: FactorRows, size: Array, terms: NDArray[np.intp]) -> tuple[FactorLeaves, FactorParts]:
    """Cross-products of the leaves and of what they leave, part by part."""
    m, p, n_parts = len(size), rows.x.shape[1], len(tree.core) - 1
    J = np.diff(tree.core)
    lengths = J[tree.leaf_part]
    at = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    local = tree.slots - tree.core[tree.leaf_part[tree.leaf]][:, None]
    value = rows.value.reshape(tree.slots.shape)
    leaf_core = np.zeros(int(lengths.sum()))
    np.add.at(leaf_core, at[tree.leaf][:, None] + local, rows.unit[:, None] * value)
    leaf_x = np.zeros((m, p))
    np.add.at(leaf_x, tree.leaf, rows.unit[:, None] * rows.x)
    rest = _left(rows.x, rows.unit[:, None] * leaf_x[tree.leaf])

    with np.errstate(divide="ignore"):
        pattern = np.unique(np.round(np.log(size) / ALIKE), return_inverse=True)[1].reshape(-1)
    n_patterns = int(pattern.max()) + 1
    count = np.bincount(pattern).astype(float)
    pairs, piece = np.unique(tree.leaf_part * n_patterns + pattern, return_inverse=True)
    first = np.searchsorted(pairs, np.arange(n_parts + 1) * n_patterns)
    piece = piece.reshape(-1) - first[tree.leaf_part]

    lower = np.tril_indices(p)
    within_cc, within_cx, piece_cc, piece_cx = [], [], [], []
    by_part = np.argsort(tree.leaf_part[tree.leaf], kind="stable")
    row_ends = np.cumsum(np.bincount(tree.leaf_part[tree.leaf], minlength=n_parts))
    leaf_order = np.argsort(tree.leaf_part, kind="stable")
    leaf_ends = np.cumsum(np.bincount(tree.leaf_part, minlength=n_parts))
    for part in range(n_parts):
        own = by_part[row_ends[part - 1] if part else 0 : row_ends[part]]
        some = leaf_order[leaf_ends[part - 1] if part else 0 : leaf_ends[part]]
        width = int(J[part])
        triangle = np.tril_indices(width)
        c = leaf_core[at[some][:, None] + np.arange(width)]
        wide = np.zeros((len(own), width))
        np.add.at(wide, (np.arange(len(own))[:, None], local[own]), value[own])
        of_leaf = rows.unit[own, None] * leaf_core[at[tree.leaf[own]][:, None] + np.arange(width)]
        wide = _left(wide, of_leaf)
        within_cc.append((wide.T @ wide)[triangle])
        within_cx.append(wide.T @ rest[own])
        chosen = [piece[some] == i for i in range(first[part + 1] - first[part])]
        piece_cc.append(np.array([(c[one].T @ c[one])[triangle] for one in chosen]).T)
        piece_cx.append(np.array([c[one].T @ leaf_x[some[one]] for one in chosen]).transpose(1, 2, 0))
    by_pattern = [leaf_x[pattern == i] for i in range(n_patterns)]
    leaves = FactorLeaves(
        part=tree.leaf_part, piece=piece, at=at, core=leaf_core, x=leaf_x, size=np.bincount(pattern, size) / count,
        number=count, within_xx=(rest.T @ rest)[lower],
        pattern_xx=np.array([(x.T @ x)[lower] for x in by_pattern]).T.reshape(len(lower[0]), n_patterns),
    )  # fmt: skip
    triangles = J * (J + 1) // 2
    n_pieces = np.diff(first)
    place = np.empty(int(terms.max()) + 1, dtype=np.int64)
    place[terms] = np.arange(len(terms))
    parts = FactorParts(
        core=tree.core, term=place[tree.of], piece=first, pattern=pairs % n_patterns,
        square_at=np.concatenate([[0], np.cumsum(triangles)]), within_cc=np.concatenate(within_cc),
        cc_at=np.concatenate([[0], np.cumsum(triangles * n_pieces)[:-1]]),
        piece_cc=np.concatenate([part.ravel() for part in piece_cc]), within_cx=np.concatenate(within_cx),
        piece_at=np.concatenate([[0], np.cumsum(J * n_pieces)]),
        piece_cx=np.concatenate([part.ravel() for part in piece_cx]),
    )  # fmt: skip
    return leaves, parts


def _left(columns: Array, explained: Array) -> Array:
    """Columns less what is explained of them; what is left by rounding is nothing."""
    rest = columns - explained
    rest[np.abs(rest) <= ROUNDING * np.abs(explained)] = 0.0
    return rest


# ------------------------------------------------------------------------------------------------------------- starts


def moved_starts(batch: FactorBatch | CorrelatedBatch, theta: Array) -> tuple[NDArray[np.intp], Array]:
    """Starts at which the variance of one term has gone to another, for all pairs of terms.

    Terms that hardly differ may have a minimum each where one of them has all variance, so close to each other that the
    screen sees one valley.

    Parameters
    ----------
    batch : FactorBatch or CorrelatedBatch
        Of independent effects.
    theta : (count, n_terms) array
        Minima on the boundary or near it.

    Returns
    -------
    responses : int array
        Positions in theta.
    starts : (., n_terms) array
    """
    inner = theta[:, batch.search.terms] / batch.search.unit
    pairs = ~np.eye(inner.shape[1], dtype=bool)
    responses, giving, taking = np.nonzero((inner > 0.0)[:, :, None] & pairs)
    starts = np.maximum(inner[responses], VANISHING)
    at = np.arange(len(responses))
    starts[at, taking] = np.hypot(starts[at, taking], starts[at, giving])
    starts[at, giving] = VANISHING
    out = np.empty_like(starts)
    out[:, batch.search.terms] = starts * batch.search.unit
    return responses, out


# ------------------------------------------------------------------------------------------------------------- screen


def _points(structure: CovarianceStructure, terms: NDArray[np.intp], leaves: FactorLeaves, parts: FactorParts) -> Array:
    """Points of the screen (n_points, n_terms), in the order of the terms; each sqrt(levels / n) is 1."""
    q = structure.q
    if q not in SIZES:
        return spread_points(structure.blocks, HARD, 1.0).thetas[:, terms]
    p = leaves.x.shape[1]
    numbers = len(leaves.size) + len(parts.within_cc) + len(parts.term) * p + p * (p + 1) // 2
    count = SIZES[q] if numbers * (SIZES[q] + 1) ** q <= TABLE else 5
    sizes = np.concatenate([[VANISHING], np.geomspace(LOWEST, HIGHEST, count)])
    return np.stack(np.meshgrid(*[sizes] * q, indexing="ij"), axis=-1).reshape(-1, q)


def _effort(problem: CrossedProblem, Z: Array, codes: list[Int64]) -> int:
    """CAREFUL where two minima may lie in one valley of the screen; otherwise EASY.

    So they may where its points are few for the terms, where there are few rows for each effect, and where two terms
    divide the rows nearly alike.
    """
    if Z.shape[1] > 2 or problem.n < FEW_ROWS * problem.levels.sum():
        return CAREFUL
    return CAREFUL if _likeness(Z, *codes) > NEARLY_ALIKE else EASY


def _likeness(z: Array, one: Int64, other: Int64) -> float:
    """Cosine of the angle between the matrices Z Z' of two terms, with the columns z (n, 2)."""
    both = np.unique(one * (int(other.max()) + 1) + other, return_inverse=True)[1].reshape(-1)
    sums = [np.bincount(both, z.prod(axis=1)), np.bincount(one, z[:, 0] ** 2), np.bincount(other, z[:, 1] ** 2)]
    common, first, second = (float(np.sum(part**2)) for part in sums)
    return common / sqrt(first * second)


def _screen(thetas: Array, leaves: FactorLeaves, parts: FactorParts, effort: int) -> FactorScreen:
    """The tables by which the criteria of all responses are evaluated at the points."""
    n_points, q = thetas.shape
    p = leaves.x.shape[1]
    lower = np.tril_indices(p)
    share = 1.0 / (1.0 + thetas[:, :1] ** 2 * leaves.size)
    log_v = -np.log(share) @ leaves.number
    H = np.zeros((n_points, p, p))
    H[:, lower[0], lower[1]] = leaves.within_xx + share @ leaves.pattern_xx.T
    H[:, lower[1], lower[0]] = H[:, lower[0], lower[1]]
    half, half_x = [], []
    for part in range(len(parts.core) - 1):
        core = slice(*parts.core[part : part + 2])
        J, piece = core.stop - core.start, slice(*parts.piece[part : part + 2])
        pieces = piece.stop - piece.start
        own = share[:, parts.pattern[piece]]
        triangle = np.tril_indices(J)
        square = slice(*parts.square_at[part : part + 2])
        cc = parts.piece_cc[parts.cc_at[part] :][: len(triangle[0]) * pieces].reshape(-1, pieces)
        cx = parts.piece_cx[parts.piece_at[part] * p :][: J * p * pieces].reshape(J * p, pieces)
        B = np.zeros((n_points, J, J))
        B[:, triangle[0], triangle[1]] = parts.within_cc[square] + own @ cc.T
        B[:, triangle[1], triangle[0]] = B[:, triangle[0], triangle[1]]
        Bx = parts.within_cx[core] + (own @ cx.T).reshape(n_points, J, p)
        sd = thetas[:, parts.term[core]]
        M = np.linalg.cholesky(np.eye(J) + sd[:, :, None] * B * sd[:, None, :])
        log_v += 2.0 * np.log(np.diagonal(M, axis1=1, axis2=2)).sum(axis=1)
        inverse = np.linalg.inv(M) * sd[:, None, :]
        turned = inverse @ Bx
        H -= turned.transpose(0, 2, 1) @ turned
        half.append(inverse[:, triangle[0], triangle[1]])
        half_x.append(turned)
    half_xx, log_h = np.zeros((n_points, len(lower[0]))), np.full(n_points, np.inf)
    for i in range(n_points):
        try:
            chol = np.linalg.cholesky(H[i])
        except np.linalg.LinAlgError:
            continue
        half_xx[i] = np.linalg.inv(chol)[lower]
        log_h[i] = 2.0 * np.log(np.diag(chol)).sum()
    known = np.where(np.isfinite(log_h), log_v, np.inf)
    return FactorScreen(
        thetas=np.ascontiguousarray(thetas),
        neighbours=nearest(thetas[:, :, None] * np.eye(q), 2 * q).astype(np.int64),
        share=share,
        half=np.concatenate(half, axis=1),
        half_x=np.concatenate(half_x, axis=1),
        half_xx=half_xx,
        constant=(known + np.where(np.isfinite(log_h), log_h, 0.0), known),
        limit=DESCENTS[CAREFUL],
        lowest=LOWEST_POINTS[effort],
        spread=SPREAD[effort],
    )
