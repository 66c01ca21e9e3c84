"""Where else a criterion may have minima: a screen of its values, and descents from its valleys.

The criterion is evaluated, without derivatives, at points spread over the covariance matrices on a logarithmic scale.
A point that lies lower than the points nearest to it marks a valley.  Where a straight path leads from there down to a
minimum that is known, the valley is that of this minimum; from the others a Newton search descends.  Where few groups
bear the random effects minima lie close together, and all valleys and the lowest points are descended from.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..kernels import minimize_newton, screen

if TYPE_CHECKING:
    from ..covariance.parameters import Block, CovarianceStructure
    from ..engines.protocol import Engine
    from ..kernels import Objective

__all__ = ["Found", "few_groups", "search"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

LOWEST, HIGHEST = 0.3, 1000.0
"""Standard deviations screened, relative to that with as much information between groups as within."""

VANISHING = 0.1
"""Standard deviation that is nearly none."""

NEAR = 4
"""Neighbours that a valley lies lower than."""

ENOUGH = 14
"""Groups for each random effect from which the criterion is nearly convex about the truth: Zwiernik, Uhler and Richards
(2017), J. R. Stat. Soc. B 79, 1269-1292, for a linear covariance model of as many dimensions."""

DESCENTS, FEW_DESCENTS = 3, 24
"""Searches that start from other valleys, where there are many groups, and few."""

LOWEST_POINTS = 4
"""Points from which a search starts where there are few groups, whether they mark a valley or not."""

PATH = (0.3, 0.1, 0.03)
"""Shares of the way from a minimum to a valley at which the criterion is evaluated."""

ITERATIONS, TOLERANCE = 60, 1e-6
"""Of a descent; what it finds is settled like any other optimum if it is lower."""

SAME = 0.02
"""Relative difference of elements of G^ that two searches may leave at one minimum on the boundary."""

COLUMNS = 1e4
"""Standard deviation of independent effects up to which nearly dependent columns extend the screen."""


class Points(NamedTuple):
    """A screen: theta (S, n_par) where each sqrt(levels / n) is 1, and the nearest neighbours (S, NEAR) of each."""

    thetas: Array
    neighbours: Index


class Found(NamedTuple):
    """What a search found: values and thetas of other minima than the known ones, and the number of points screened."""

    minima: list[tuple[float, Array]]
    screened: int


def few_groups(structure: CovarianceStructure, levels: Array) -> bool:
    """Whether so few groups bear so many random effects that there may be minima close to each other."""
    sizes = levels.tolist()
    return any(m < ENOUGH * sizes.count(m) for m in set(sizes))


def search(
    criterion: Engine, structure: CovarianceStructure, levels: Array, n: int, known: tuple[float, Array]
) -> Found:
    """Other minima of a criterion.

    Parameters
    ----------
    criterion : Engine
    structure : CovarianceStructure
    levels : (q,) array
        Number of groups of each random effect.
    n : int
        Observations.
    known : tuple
        Value and theta of a minimum.

    Returns
    -------
    Found
    """
    few = few_groups(structure, levels)
    objective = cast("Objective", criterion)
    unit = np.sqrt(levels / n)
    evaluations = criterion.n_evaluations
    points = _points(structure, few, _stretch(criterion, structure))
    scale = unit[structure.positions[0]]
    thetas = points.thetas * scale
    values, valleys = screen(objective, thetas, points.neighbours)
    criterion.n_evaluations = evaluations
    starts = valleys.tolist()
    if few:
        starts += [i for i in np.argsort(values, kind="stable")[:LOWEST_POINTS].tolist() if i not in starts]
    minima = [known]
    left = FEW_DESCENTS if few else DESCENTS
    for i in starts:
        if not left or not np.isfinite(values[i]):
            break
        if not few and any(_leads_to(objective, float(values[i]), thetas[i], minimum) for minimum in minima):
            continue
        left -= 1
        try:
            x, _, _, value, *_ = minimize_newton(objective, thetas[i], tolerance=TOLERANCE, max_iterations=ITERATIONS)
        except FloatingPointError:
            continue
        theta = structure.theta(structure.canonical(structure.factor(x)))
        if np.isfinite(value) and not any(_same(structure, unit, (value, theta), other) for other in minima):
            minima.append((value, theta))
    return Found(sorted(minima[1:], key=lambda minimum: minimum[0]), len(thetas))


def _leads_to(objective: Objective, value: float, theta: Array, minimum: tuple[float, Array]) -> bool:
    """Whether the criterion falls all the way from a point to a minimum."""
    evaluations = cast("Engine", objective).n_evaluations
    path = np.array([minimum[1] + share * (theta - minimum[1]) for share in PATH])
    along, _ = screen(objective, path, np.zeros((len(path), 0), dtype=np.intp))
    cast("Engine", objective).n_evaluations = evaluations
    heights = [value, *along.tolist(), minimum[0]]
    return all(a >= b - 1e-9 * abs(b) for a, b in pairwise(heights))


def _same(structure: CovarianceStructure, unit: Array, one: tuple[float, Array], other: tuple[float, Array]) -> bool:
    """Whether two searches ended at one minimum; a lower value is another one."""
    if one[0] < other[0] - 1e-9 * (1.0 + abs(other[0])):
        return False
    a, b = (structure.factor(theta) / unit[:, None] for theta in (one[1], other[1]))
    G, H = a @ a.T, b @ b.T
    return bool((np.abs(G - H) <= SAME * (np.sqrt(np.outer(H.diagonal(), H.diagonal())) + 1.0)).all())


def _stretch(criterion: Engine, structure: CovarianceStructure) -> float:
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


def _points(structure: CovarianceStructure, few: bool, stretch: float) -> Points:
    return _spread(structure.blocks, few, max(1.0, stretch / 10.0))


@lru_cache(maxsize=64)
def _spread(blocks: tuple[Block, ...], few: bool, stretch: float) -> Points:
    """The screen of a structure: a grid of standard deviations, and of directions, where it is small enough."""
    from ..covariance.parameters import CovarianceStructure

    structure = CovarianceStructure(blocks)
    q, highest = structure.q, HIGHEST * stretch
    single = all(b.structure != "full" or b.stop - b.start == 1 for b in blocks)
    if q == 1:
        factors = [np.array([[size]]) for size in _sizes(12, highest)]
    elif single and q <= 3:
        count = ((6, 8), (4, 6))[q - 2][few] + round(np.log10(stretch) / np.log10(5.0))
        factors = [np.diag(sizes) for sizes in product(_sizes(count, highest), repeat=q)]
        factors = factors if len(factors) <= 512 else _sequence(blocks, 216, highest)
    elif q == 2:
        factors = _plane(6, 5) if few else _plane(4, 3)
    else:
        factors = _sequence(blocks, 216 if few else 48, highest)
    thetas = np.array([structure.theta(structure.canonical(factor)) for factor in factors])
    return Points(thetas, _nearest(factors))


def _sizes(count: int, highest: float) -> Array:
    return np.geomspace(LOWEST, highest, count)


def _turned(angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def _plane(count: int, angles: int) -> list[Array]:
    """Factors of matrices of order 2: principal standard deviations, equal or not, and directions."""
    factors = []
    sizes = _sizes(count, HIGHEST)
    for i, large in enumerate(sizes):
        factors.append(np.eye(2) * large)
        factors += [
            _turned(np.pi * k / angles) * [large, small] for small in (VANISHING, *sizes[:i]) for k in range(angles)
        ]
    return factors


def _sequence(blocks: tuple[Block, ...], count: int, highest: float) -> list[Array]:
    """Factors spread evenly: principal standard deviations and angles of rotations from multiples of square roots."""
    q = blocks[-1].stop
    widths = [b.stop - b.start if b.structure == "full" else 1 for b in blocks]
    dimensions = q + sum(w * (w - 1) // 2 for w in widths)
    steps = np.sqrt(np.array(_primes(dimensions), dtype=float))
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


def _primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found


def _nearest(factors: list[Array]) -> Index:
    """The NEAR nearest of each, by the Frobenius distance of the logarithms of G^ + VANISHING^2 I."""
    stack = np.array(factors)
    values, vectors = np.linalg.eigh(stack @ stack.transpose(0, 2, 1))
    logs = (vectors * np.log(np.maximum(values, 0.0) + VANISHING**2)[:, None, :]) @ vectors.transpose(0, 2, 1)
    flat = logs.reshape(len(stack), -1)
    squares = (flat * flat).sum(axis=1)
    distance = squares[:, None] + squares - 2.0 * (flat @ flat.T)
    np.fill_diagonal(distance, np.inf)
    return np.ascontiguousarray(np.argsort(distance, axis=1, kind="stable")[:, :NEAR].astype(np.intp))
