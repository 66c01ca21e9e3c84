"""Where the optimiser starts: second moments, and other points where there may be several minima."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from ..kernels import ClusterCriterion, floored_factor
from ..support.types import Array

if TYPE_CHECKING:
    from ..covariance.parameters import CovarianceStructure
    from .protocol import Engine

__all__ = ["ENOUGH", "few_groups", "moment_start", "other_starts", "shrunk_start"]


SHRINK = 400
"""Powers of ten by which a start that is too large is divided at most."""

ENOUGH = 14
"""Groups for each random effect from which the criterion is nearly convex about the truth: Zwiernik, Uhler and Richards
(2017), J. R. Stat. Soc. B 79, 1269-1292, for a linear covariance model of as many dimensions."""

TINY = 50
"""Observations up to which several terms are started from large variances too."""


def few_groups(levels: Array) -> bool:
    """Whether so few groups bear so many random effects that there may be minima close to each other."""
    sizes = levels.tolist()
    return any(m < ENOUGH * sizes.count(m) for m in set(sizes))


def moment_start(criterion: Engine, structure: CovarianceStructure, n: int, m: int, within: float) -> Array:
    """Theta from the second moments of Z_i'(y_i - X_i beta_OLS), as if all groups had the same Z_i'Z_i.

    At Lambda = 0 the gradient in G holds sum_i Z_i'r_i r_i'Z_i; for balanced data without further
    covariates the result is close to the optimum.  Eigenvalues are kept away from 0, which is stationary.

    Parameters
    ----------
    criterion : Engine
    structure : CovarianceStructure
    n, m : int
        Rows, and groups.
    within : float
        Residual sum of squares within groups; zero where there are as many random effects as rows and columns of X
        leave, so that half of the variation is taken for residual.
    """
    q = structure.q
    per_group = n / m
    sigma2 = within / max(n - m * q, 1)
    if structure.one_full and isinstance(criterion, ClusterCriterion):
        found = criterion.moment_start(n, m, sigma2, 0.1 / per_group)
        return structure.theta(np.eye(q)) if found is None else found
    reml, criterion.reml = criterion.reml, False
    value, _, _ = criterion.evaluate(np.zeros(structure.n_parameters), 1)
    _, r2, _, gradient = criterion.solution()
    criterion.reml = reml
    if value == np.inf:
        return structure.theta(np.eye(q))
    if not sigma2 > 0.0:
        sigma2 = 0.5 * r2 / n
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
