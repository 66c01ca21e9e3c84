"""Where the optimiser starts: second moments, and other points where there may be several minima."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..kernels import floored_factor

if TYPE_CHECKING:
    from ..covariance.parameters import CovarianceStructure
    from .crossed.cores import Tail
    from .crossed.order import Layout, Stage
    from .crossed.problem import CrossedProblem
    from .protocol import Engine

__all__ = ["factors_start", "few_groups", "moment_start", "other_starts", "shrunk_start"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

SHRINK = 400
"""Powers of ten by which a start that is too large is divided at most."""

ENOUGH = 14
"""Groups for each random effect from which the criterion is nearly convex about the truth: Zwiernik, Uhler and Richards
(2017), J. R. Stat. Soc. B 79, 1269-1292, for a linear covariance model of as many dimensions."""

TINY = 50
"""Observations up to which several terms are started from large variances too."""

EXACT_UP_TO = 2000
"""Random effects of nested factors up to which the moments of several factors allow for the fixed effects."""


def few_groups(structure: CovarianceStructure, levels: Array) -> bool:
    """Whether so few groups bear so many random effects that there may be minima close to each other."""
    sizes = levels.tolist()
    return any(m < ENOUGH * sizes.count(m) for m in set(sizes))


def moment_start(criterion: Engine, structure: CovarianceStructure, n: int, m: int, within: float) -> Array:
    """Theta from the second moments of Z_i'(y_i - X_i beta_OLS), as if all groups had the same Z_i'Z_i.

    At Lambda = 0 the gradient in G holds sum_i Z_i'r_i r_i'Z_i; for balanced data without further
    covariates the result is close to the optimum.  Eigenvalues are kept away from 0, which is stationary.

    Parameters
    ----------
    within : float
        Residual sum of squares within groups; zero where there are as many random effects as rows and columns of X
        leave, so that half of the variation is taken for residual.
    """
    q = structure.q
    reml, criterion.reml = criterion.reml, False
    value, _, _ = criterion.evaluate(np.zeros(structure.n_parameters), 1)
    _, r2, _, gradient = criterion.solution()
    criterion.reml = reml
    if value == np.inf:
        return structure.theta(np.eye(q))
    sigma2 = within / max(n - m * q, 1) if within > 0.0 else 0.5 * r2 / n
    per_group = n / m
    # sum of squares (n I - gradient) r^2 / n; expectation m (per_group^2 G + per_group I) sigma^2
    share = r2 / (n * m * sigma2 * per_group**2)
    shift = n * share - 1.0 / per_group
    floor = 0.1 / per_group
    if structure.one_full:
        return structure.theta(floored_factor(gradient, floor, -share, shift))
    factor = np.zeros((q, q))
    for block in structure.blocks:
        part = slice(block.start, block.stop)
        if block.correlated:
            factor[part, part] = floored_factor(gradient[part, part], floor, -share, shift)
        else:
            factor[part, part] = np.diag(np.sqrt(np.maximum(shift - share * np.diag(gradient[part, part]), floor)))
    return structure.theta(factor)


def shrunk_start(engine: Engine, theta: Array) -> Array:
    """A start divided by a power of ten as long as the criterion falls, or is not defined.

    Far out the criterion grows with log|Lambda| and is nearly flat in everything else, so that a search from there
    takes long steps to nowhere.
    """
    least = engine.evaluate(theta, 0)[0]
    for _ in range(SHRINK):
        smaller = 0.1 * theta
        value = engine.evaluate(smaller, 0)[0]
        if not (value < least or not isfinite(least)):
            break
        theta, least = smaller, value
    return theta


def _tiny(structure: CovarianceStructure, n: int) -> bool:
    """Several terms for so few observations that the shares of each in their variation may be had in several ways."""
    return n <= TINY and len(structure.blocks) > 1


def other_starts(structure: CovarianceStructure, levels: Array, n: int) -> list[Array]:
    """Theta to start from where there may be several minima, as at the boundary.

    Multiples of the identity; from three random effects on also a small one, near optima of low rank, and points where
    one effect prevails.  For several terms of few observations also large variances, of all terms and of each: they may
    leave hardly any residual variance, as the moments do not.
    """
    unit = np.sqrt(levels / n)
    q = structure.q
    sizes = [np.ones(q), 4.0 * unit]
    if q >= 3:
        sizes.append(0.3 * unit)
        sizes += [unit * np.where(np.arange(q) == j, 4.0, 0.3) for j in range(q)]
    if _tiny(structure, n):
        sizes.append(1000.0 * unit)
        for block in structure.blocks:
            size = 0.1 * unit
            size[block.start : block.stop] *= 1000.0
            sizes.append(size)
    return [structure.theta(np.diag(size)) for size in sizes]


def factors_start(problem: CrossedProblem, engine: Any) -> Array:
    """Theta from second moments: MINQUE(0) with one variance per factor, then the shape of each block.

    The sums of squares of Z_f'r, r the residual of y, are set to their expectations where each G^_f is a multiple of
    the identity (Rao 1971, J. Multivar. Anal. 1, 257-275); negative estimates are kept away from 0, a stationary point.
    `engine` is one of the problem.
    """
    layout, structure = problem.layout, problem.structure
    count = len(problem.columns)
    moments = problem.cross[:, -1]
    observed = np.array([float(np.sum(moments[places] ** 2)) for places in layout.places] + [problem.gram[-1, -1]])
    expected = np.zeros((count + 1, count + 1))
    of = {column: f for f, column in enumerate(problem.columns)}
    for s, stage in enumerate(layout.stages):
        f = of[stage.column]
        expected[f, f] += np.sum(stage.own**2)
        expected[f, -1] = expected[-1, f] = np.einsum("aii->", stage.own)
        at = 0
        for coarser in layout.stages[s + 1 :]:
            g = of[coarser.column]
            expected[f, g] = expected[g, f] = np.sum(stage.chain[:, :, at : at + coarser.q] ** 2)
            at += coarser.q
        _add_panels(expected, f, stage, stage.comp, layout, of)
    for tail in layout.tails:
        f = of[tail.column]
        expected[f, f] += np.sum(tail.own**2)
        expected[f, -1] = expected[-1, f] = np.einsum("aii->", tail.own)
        _add_panels(expected, f, tail, tail.comp, layout, of)
    expected[-1, -1] = problem.n - problem.rank
    # X is taken out: Z_f'Q Z_g = K_fg - C_f C_g', C = Z'X_o; not where a pilot follows
    C = problem.cross[:, :-1] if layout.tails or problem.n_effects < EXACT_UP_TO else problem.cross[:, :0]
    inner = [C[places.ravel()].T @ C[places.ravel()] for places in layout.places]
    for g, places in enumerate(layout.places):
        only = np.zeros_like(C)
        only[places.ravel()] = C[places.ravel()]
        turned = engine.gram_times(only) * C
        for f, other in enumerate(layout.places):
            expected[f, g] += np.sum(inner[f] * inner[g]) - 2.0 * np.sum(turned[other.ravel()])
        expected[g, -1] -= np.trace(inner[g])
        expected[-1, g] -= np.trace(inner[g])
    try:
        variances = np.linalg.solve(expected, observed)
    except np.linalg.LinAlgError:
        variances = np.ones(count + 1)
    sigma2 = max(float(variances[-1]), 0.05 * observed[-1] / problem.n)
    factor = np.zeros((structure.q, structure.q))
    for f, places in enumerate(layout.places):
        q_f = places.shape[1]
        per_level = problem.n / len(places)
        floor = 0.1 / per_level
        size = max(float(variances[f]) / sigma2, floor)
        own = moments[places]
        part = slice(problem.columns[f], problem.columns[f] + q_f)
        second = own.T @ own / (len(places) * per_level**2 * sigma2)
        shape = second + np.eye(q_f) * (size - np.trace(second) / q_f)
        for block in structure.blocks:
            if not part.start <= block.start < part.stop:
                continue
            whole = slice(block.start, block.stop)
            inner = shape[
                block.start - part.start : block.stop - part.start, block.start - part.start : block.stop - part.start
            ]
            if block.correlated:
                factor[whole, whole] = floored_factor(inner, max(floor, 0.05 * size))
            else:
                factor[whole, whole] = np.diag(np.sqrt(np.maximum(np.diag(inner), max(floor, 0.05 * size))))
    return structure.theta(factor)


def _add_panels(
    expected: Array, f: int, item: Stage | Tail, comp: Index | None, layout: Layout, of: dict[int, int]
) -> None:
    """Sums of squares of the products with the tail, by the factor of the neighbour."""
    if item.start is None or item.slots is None or item.panel is None or comp is None or not len(item.slots):
        return
    owner = np.zeros(int(layout.comp_slot[-1]), dtype=np.intp)
    for tail in layout.tails:
        for i in range(tail.q):
            owner[layout.comp_slot[tail.comp] + tail.slot + i] = of[tail.column]
    widths = np.diff(item.start)
    squares = item.panel**2
    if item.q > 1:
        level = np.repeat(np.arange(item.m), widths * item.q)
        place = np.arange(len(squares)) - item.q * item.start[level]
        place = item.start[level] + place % widths[level]
        slots = item.slots[place] + layout.comp_slot[comp[level]]
    else:
        slots = item.slots + layout.comp_slot[np.repeat(comp, widths)]
    sums = np.bincount(owner[slots], weights=squares, minlength=len(expected) - 1)
    for g in range(len(expected) - 1):
        if g != f and sums[g]:
            expected[f, g] += sums[g]
            expected[g, f] = expected[f, g]
