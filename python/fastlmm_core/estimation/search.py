"""Where else a criterion may have minima: a screen of its values, and descents from its valleys.

The criterion is evaluated, without derivatives, at points spread over the covariance matrices on a logarithmic scale.
A point that lies lower than the points nearest to it marks a valley.  Where a straight path leads from there down to a
minimum that is known, the valley is that of this minimum; from the others a Newton search descends.  Where minima may
lie close together, all valleys and the lowest points are descended from.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, product
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..engines.protocol import EASY, HARD, ORDINARY
from ..kernels import falls, minimize_newton, screen
from ..support.types import Array, Index

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..covariance.parameters import Block, CovarianceStructure
    from ..engines.protocol import LinearEngine, Relaxed

__all__ = [
    "CLOSE_SPREAD", "CLOSE_VALLEYS", "DESCENTS", "EVEN", "FARTHEST", "ITERATIONS", "LOWEST_POINTS", "NARROWED", "NEAR",
    "NEAR_BOUNDARY", "SPREAD", "TOLERANCE", "VANISHING", "Found", "Points", "close_points", "descend", "is_known",
    "nearest", "primes", "screen_of", "search", "spread_points", "starts_without",
]  # fmt: skip


LOWEST, HIGHEST, FARTHEST = 0.3, 1000.0, 10_000.0
"""Standard deviations screened, relative to that with as much information between groups as within.

The farthest is that of few groups, some of which may tell next to nothing of an effect.
"""

VANISHING = 0.1
"""Standard deviation that is nearly none."""

NEAR = 4
"""Neighbours that a valley lies lower than."""

DESCENTS = (3, 3, 6, 28)
"""Searches that start from other valleys, by effort."""

LOWEST_POINTS = (0, 0, 3, 8)
"""Lowest points from which a search starts whether they mark a valley or not, by effort."""

SPREAD = (0, 0, 4, 12)
"""Points from which a search starts, spread evenly over the order of values, by effort.

Basins that are narrow in every direction have their points anywhere in that order, and no valley of the screen.
"""

NARROWED = 3
"""Lowest minima from which, with the least standard deviation nearly zero or in another direction, a search starts."""

NEAR_BOUNDARY = 4.0
"""Rise of the criterion to the boundary, by its Hessian, up to which there may be a lower minimum on it."""

EVEN = (2.0, 17.0)
"""Standard deviations, equal in every direction, from which a search starts where the known minimum has next to none in
one: about those of ordinary data, and in the middle of the screen on a logarithmic scale."""

WITHOUT = (300.0, 30.0)
"""Standard deviations, equal in every other direction, from which a search starts without variance along one or two:
the first, and of two directions also the other."""

CLOSE_VALLEYS = 28
"""Valleys of a screen of close points from which a search starts at most."""

CLOSE_SPREAD = 2
"""Other close points from which a search starts: the lowest, and that in the middle of the order of values."""

MANY_EFFECTS = 5
"""Random effects from which a few points cannot be spread over the directions of nearly balanced data."""

PATH = np.array([0.3, 0.1, 0.03])
"""Shares of the way from a minimum to a valley at which the criterion is evaluated."""

ITERATIONS, TOLERANCE = 60, 1e-6
"""Of a descent; what it finds is settled like any other optimum if it is lower."""

FIRST_STEP = 0.3
"""Length of the first step of a descent, relative to theta, at most."""

SAME = 0.02
"""Relative difference of elements of G^ that two searches may leave at one minimum on the boundary."""

CLOSE = 1e-4
"""Relative difference of elements of Lambda up to which that of elements of G^ is less than `SAME`."""

COLUMNS = 1e4
"""Standard deviation of independent effects up to which nearly dependent columns extend the screen."""


class Points(NamedTuple):
    """A screen: theta (S, n_par) where each sqrt(levels / n) is 1, and the nearest neighbours (S, NEAR) of each."""

    thetas: Array
    neighbours: Index


class Found(NamedTuple):
    """What a search found.

    Attributes
    ----------
    minima : list
        Values and thetas of other minima than the known ones.
    screened : int
        Points screened.
    ends : array
        The value where each search ended, and that of the known minimum.
    doubt : str
        Why it is not certain that the lowest minimum is among them; empty where it is.
    """

    minima: list[tuple[float, Array]]
    screened: int
    ends: Array
    doubt: str = ""


def search(
    criterion: LinearEngine,
    structure: CovarianceStructure,
    unit: Array,
    known: tuple[float, Array],
    effort: int,
    relaxed: Relaxed | None = None,
    beside: bool = False,
    foremost: Array | None = None,
) -> Found:
    """Other minima of a criterion.

    Parameters
    ----------
    criterion : LinearEngine
    structure : CovarianceStructure
    unit : (q,) array
        Standard deviation of each random effect, relative to that of the residuals, that makes half of the variance of
        the mean of a group: sqrt(levels / n).
    known : tuple
        Value and theta of a minimum; an infinite value where it is not certified.
    effort : int
        EASY, ORDINARY, CAREFUL or HARD.
    relaxed : Relaxed, optional
        Of the same data: its minimum is where another search starts.
    beside : bool
        Whether searches start beside a minimum that lies on the boundary, or next to it, whatever the screen says.
    foremost : (count, q) array, optional
        Directions along which effects may not vary, see `starts_without`.

    Returns
    -------
    Found
    """
    evaluations = criterion.n_evaluations
    points = screen_of(criterion, structure, effort)
    # minima that lie close together may all be reached by straight paths
    joined = effort <= ORDINARY
    thetas, values, valleys = screen(
        criterion, points.thetas, unit[structure.positions[0]], points.neighbours,
        known[1] if joined else None, known[0], PATH,
    )  # fmt: skip
    criterion.n_evaluations = evaluations
    minima, ends = [known], [known[0]]

    def go_from(start: Array, radius: float = 1.0) -> None:
        end = descend(criterion, structure, start, radius)
        if end is not None:
            ends.append(end[0])
            if not is_known(minima, structure, unit, end):
                minima.append(end)

    left = DESCENTS[effort] + SPREAD[effort]
    for i in _starts(values, valleys, effort):
        if not left:
            break
        if joined and any(_leads_to(criterion, float(values[i]), thetas[i], minimum) for minimum in minima[1:]):
            continue
        left -= 1
        # the only way into a valley must not lead out of it again by a long step
        radius = FIRST_STEP * float(np.linalg.norm(thetas[i])) if joined else 1.0
        go_from(thetas[i], radius)
    for start in () if foremost is None else starts_without(structure, unit, foremost):
        go_from(start)
    if relaxed is not None:
        relaxed.engine.reml = criterion.reml
        theta = _relaxed_minimum(relaxed, structure, unit, known[1])
        if theta is not None:
            go_from(theta)
    if beside:
        _, theta = min(minima, key=lambda minimum: minimum[0])
        for start in _beside_boundary(criterion, structure, unit, theta):
            go_from(start)
    if effort > ORDINARY:
        for minimum in sorted(minima, key=lambda minimum: minimum[0])[:NARROWED]:
            for theta in _narrowed(structure, unit, minimum[1]):
                go_from(theta)
    return Found(sorted(minima[1:], key=lambda minimum: minimum[0]), len(thetas), np.array(ends))


def _starts(values: Array, valleys: Index, effort: int) -> list[int]:
    """Points to descend from: valleys, then the lowest points, then points spread over the order of values."""
    order = [i for i in np.argsort(values, kind="stable").tolist() if np.isfinite(values[i])]
    starts: list[int] = valleys.tolist()
    starts += [i for i in order[: LOWEST_POINTS[effort]] if i not in starts]
    if not SPREAD[effort]:
        return starts
    starts = starts[: DESCENTS[effort]]
    others = [i for i in order if i not in starts]
    return starts + others[:: max(1, len(others) // SPREAD[effort])][: SPREAD[effort]]


def descend(
    criterion: LinearEngine, structure: CovarianceStructure, theta: Array, radius: float = 1.0
) -> tuple[float, Array] | None:
    """Value and canonical theta where a Newton search from theta ends, None where the criterion is not defined."""
    try:
        x, _, _, value, *_ = minimize_newton(criterion, theta, TOLERANCE, ITERATIONS, radius)
    except FloatingPointError:
        return None
    return (value, structure.theta(structure.canonical(structure.factor(x)))) if isfinite(value) else None


def _relaxed_minimum(relaxed: Relaxed, structure: CovarianceStructure, unit: Array, known: Array) -> Array | None:
    """Theta with the variances, and the covariances within blocks, of a minimum of the relaxed criterion."""
    factor, whole = structure.factor(known), relaxed.structure
    # away from the boundary, where the gradient vanishes
    start: Array = np.linalg.cholesky(factor @ factor.T + np.diag(unit**2)).astype(np.float64, copy=False)
    found = descend(relaxed.engine, whole, whole.theta(start))
    if found is None:
        return None
    factor = whole.factor(found[1])
    G = factor @ factor.T + np.diag((VANISHING * unit) ** 2)
    out = np.zeros_like(G)
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        out[part, part] = np.linalg.cholesky(G[part, part] if block.correlated else np.diag(np.diag(G[part, part])))
    return structure.theta(out)


def is_known(
    minima: list[tuple[float, Array]], structure: CovarianceStructure, unit: Array, end: tuple[float, Array]
) -> bool:
    """Whether the end of a search is one of the minima."""
    return any(_same(structure, unit, end, other) for other in minima)


def _narrowed(structure: CovarianceStructure, unit: Array, theta: Array) -> list[Array]:
    """Theta with the least principal standard deviation of each full block next to none.

    Where it is, the next one is in its place: what has no variance may lie in another direction.
    """
    factor = structure.factor(theta) / unit[:, None]
    out = []
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        axes, sizes, _ = np.linalg.svd(factor[part, part])
        if not block.correlated or len(sizes) == 1:
            continue
        changed = factor.copy()
        if sizes[-1] > 2.0 * VANISHING:
            changed[part, part] = axes * [*sizes[:-1], VANISHING]
        else:
            changed[part, part] = axes * [*sizes[:-2], VANISHING, max(sizes[-2], VANISHING)]
        out.append(structure.theta(structure.canonical(changed * unit[:, None])))
    return out


def _beside_boundary(criterion: LinearEngine, structure: CovarianceStructure, unit: Array, theta: Array) -> list[Array]:
    """Where to search beside a minimum that lies on the boundary or next to it; nowhere beside others.

    That is inside, where all directions have as much variance, and from a minimum inside also next to the boundary.
    """
    diagonal = structure.positions[0] == structure.positions[1]
    inside = bool((theta[diagonal] != 0.0).all())
    if inside:
        hessian = criterion.evaluate(theta, 2)[2]
        assert hessian is not None
        try:
            variance = np.diag(np.linalg.inv(hessian))[diagonal]
        except np.linalg.LinAlgError:
            variance = np.full(structure.q, np.inf)
        if (theta[diagonal] ** 2 > 2.0 * NEAR_BOUNDARY * variance).all():
            return []
    starts = _narrowed(structure, unit, theta) if inside else []
    return starts + [structure.theta(np.diag(size * unit)) for size in EVEN]


def starts_without(structure: CovarianceStructure, unit: Array, directions: Array) -> list[Array]:
    """Theta where effects hardly vary along each of some directions (count, q), and along each two of them.

    Where single rows tell much more than others, those of a direction along which G^ is small, z'G^ z = 0, have no part
    in log|V|, and a minimum may lie there whatever the rest of the data says; no screen hits such directions by chance.
    """
    single = [(directions[[i]], WITHOUT[0]) for i in range(len(directions))]
    pairs = [(directions[[i, j]], size) for size in WITHOUT for i, j in combinations(range(len(directions)), 2)]
    out = []
    for rows, size in single + pairs:
        base = np.linalg.qr(rows.T)[0]
        factor = size * np.eye(structure.q) - (size - VANISHING) * base @ base.T
        out.append(structure.theta(structure.canonical(factor * unit[:, None])))
    return out


def _leads_to(criterion: LinearEngine, value: float, theta: Array, minimum: tuple[float, Array]) -> bool:
    """Whether the criterion falls all the way from a point to a minimum."""
    evaluations = criterion.n_evaluations
    found = falls(criterion, theta, value, minimum[1], minimum[0], PATH)
    criterion.n_evaluations = evaluations
    return found


def _same(structure: CovarianceStructure, unit: Array, one: tuple[float, Array], other: tuple[float, Array]) -> bool:
    """Whether two searches ended at one minimum; a lower value is another one."""
    if not isfinite(other[0]) or one[0] < other[0] - 1e-9 * (1.0 + abs(other[0])):
        return False
    # nearly all that are one are so close that elements of G^ need not be compared
    least = min(unit.tolist())
    pairs = zip(one[1].tolist(), other[1].tolist(), strict=True)
    if all(abs(a - b) <= CLOSE * (abs(b) + least) for a, b in pairs):
        return True
    a, b = (structure.factor(theta) / unit[:, None] for theta in (one[1], other[1]))
    G, H = a @ a.T, b @ b.T
    return bool((np.abs(G - H) <= SAME * (np.sqrt(np.outer(H.diagonal(), H.diagonal())) + 1.0)).all())


def _stretch(criterion: LinearEngine, structure: CovarianceStructure) -> float:
    """How much larger effects of different blocks may be than any that rows can tell from noise one by one.

    Columns of Z of one factor that are nearly dependent, as 1 and a time far from its origin, and whose effects are
    independent, can give a moderate variance of rows by large ones that cancel.  Powers of 10 of the reciprocal of the
    least singular value of the columns, each of length 1.
    """
    if structure.one_full or structure.q == 1:
        return 1.0
    evaluations = criterion.n_evaluations
    criterion.evaluate(np.zeros(structure.n_parameters), 1)
    gram = criterion.precision()
    criterion.n_evaluations = evaluations
    size = np.sqrt(gram.diagonal())
    least = float(np.linalg.eigvalsh(gram / np.outer(size, size))[0])
    return float(10.0 ** np.ceil(np.log10(min(1.0 / np.sqrt(max(least, COLUMNS**-2)), COLUMNS)) - 0.5))


# ------------------------------------------------------------------------------------------------------------ points


def screen_of(criterion: LinearEngine, structure: CovarianceStructure, effort: int) -> Points:
    """The points at which a criterion is screened; rows of Lambda are still to be multiplied by sqrt(levels / n)."""
    return spread_points(structure.blocks, effort, max(1.0, _stretch(criterion, structure) / 10.0))


@lru_cache(maxsize=64)
def spread_points(blocks: tuple[Block, ...], effort: int, stretch: float) -> Points:
    """The screen of a structure: a grid of standard deviations, and of directions, where it is small enough."""
    from ..covariance.parameters import CovarianceStructure

    structure = CovarianceStructure(blocks)
    q, highest = structure.q, (FARTHEST if effort == HARD else HIGHEST) * stretch
    single = all(not b.correlated or b.stop - b.start == 1 for b in blocks)
    if q == 1:
        factors = [np.array([[size]]) for size in _sizes((6, 12, 12, 14)[effort], highest)]
    elif single and q <= 3:
        count = ((3, 6, 9, 9), (3, 4, 5, 6))[q - 2][effort] + round(np.log10(stretch) / np.log10(5.0))
        factors = [np.diag(sizes) for sizes in product(_sizes(count, highest), repeat=q)]
        factors = factors if len(factors) <= 216 else _sequence(blocks, 216, highest)
    elif q == 2:
        count, angles = ((3, 2), (4, 3), (4, 3), (7, 5))[effort]
        factors = _plane(_sizes(count, highest), lambda ratio: angles)
    elif effort == EASY and q >= MANY_EFFECTS:
        factors = [np.eye(q) * size for size in _sizes(NEAR, highest)]
    else:
        factors = _sequence(blocks, (16, 48, 64, 216)[effort], highest)
    thetas = np.array([structure.theta(structure.canonical(factor)) for factor in factors])
    return Points(thetas, nearest(np.array(factors), NEAR))


@lru_cache(maxsize=64)
def close_points(blocks: tuple[Block, ...]) -> Points | None:
    """A screen of one or two correlated effects, so close that each minimum has a valley of its own; None of more.

    In logarithms of variances the criterion is analytic in a strip of half width pi / 2, so that what it does within
    less than 1 is slight.  The larger one variance is beside the other, the narrower are its valleys in the direction.
    """
    from ..covariance.parameters import CovarianceStructure

    structure = CovarianceStructure(blocks)
    if not structure.one_full or structure.q > 2:
        return None
    if structure.q == 1:
        factors, near = [np.array([[size]]) for size in _sizes(27, FARTHEST)], 2
    else:
        factors, near = _plane(_sizes(11, FARTHEST), lambda ratio: int(min(16.0, max(4.0, 3.5 * ratio**0.5)))), NEAR
    thetas = np.array([structure.theta(structure.canonical(factor)) for factor in factors])
    return Points(thetas, nearest(np.array(factors), near))


def _sizes(count: int, highest: float) -> Array:
    return np.geomspace(LOWEST, highest, count)


def _turned(angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def _plane(sizes: Array, angles: Callable[[float], int]) -> list[Array]:
    """Factors of matrices of order 2: principal standard deviations, equal or not, and so many directions by ratio."""
    factors = []
    for i, large in enumerate(sizes):
        factors.append(np.eye(2) * large)
        for small in (VANISHING, *sizes[:i]):
            turns = angles(large / small)
            factors += [_turned(np.pi * k / turns) * [large, small] for k in range(turns)]
    return factors


def _sequence(blocks: tuple[Block, ...], count: int, highest: float) -> list[Array]:
    """Factors spread evenly: principal standard deviations and angles of rotations from multiples of square roots."""
    q = blocks[-1].stop
    widths = [b.stop - b.start if b.correlated else 1 for b in blocks]
    dimensions = q + sum(w * (w - 1) // 2 for w in widths)
    steps = np.sqrt(np.array(primes(dimensions), dtype=float))
    factors = []
    for i in range(1, count + 1):
        place = (0.5 + i * steps) % 1.0
        sizes = VANISHING * (highest / VANISHING) ** place[:q]
        factor, at = np.diag(sizes), q
        for block, width in zip(blocks, widths, strict=True):
            for a in range(block.start, block.start + width):
                for b in range(a + 1, block.start + width):
                    turned = _turned(np.pi * place[at])
                    factor[[a, b]] = turned @ factor[[a, b]]
                    at += 1
        factors.append(factor)
    return factors


def primes(count: int) -> list[int]:
    """The first of all."""
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found


def nearest(factors: Array, near: int) -> Index:
    """So many nearest of each, by the Frobenius distance of the logarithms of G^ + VANISHING^2 I."""
    values, vectors = np.linalg.eigh(factors @ factors.transpose(0, 2, 1))
    sizes = np.log(np.maximum(values, 0.0) + VANISHING**2)
    logs = ((vectors * sizes[:, None, :]) @ vectors.transpose(0, 2, 1)).reshape(len(factors), -1)
    squares = (logs * logs).sum(axis=1)
    distance = squares[:, None] + squares - 2.0 * (logs @ logs.T)
    np.fill_diagonal(distance, np.inf)
    found = np.argsort(distance, axis=1, kind="stable")[:, : min(near, len(factors) - 1)]
    return np.ascontiguousarray(found, dtype=np.intp)
