"""Fits whose residual variance runs to zero: no optimum, but an infimum at G / sigma^2 -> infinity.

Where the columns of X and Z span all rows, sigma^2 -> 0 leaves a model without residual errors, y = X beta + Z b.  Its
restricted likelihood is finite: d(c Lambda) tends to a limit as c -> infinity, since log|V| + log|X'V^-1 X| grows as
nu log c^2 and nu log r^2 falls as much.  The estimate is then a point with sigma^2 > 0 or that limit, by the data.  The
full likelihood is unbounded unless the columns of Z span all rows by themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..engines.protocol import UNASKED
from ..errors import LMMError
from ..support.types import Array
from .optimize import optimize
from .optimum import Optimum

if TYPE_CHECKING:
    from ..covariance.parameters import CovarianceStructure
    from ..engines.protocol import LinearEngine

__all__ = ["refuse_unbounded", "with_residual_variance", "without_maximum"]


LARGE = (30.0, 1000.0)
"""Standard deviations of the random effects, relative to what a group tells of them, from which the limit is sought."""

FEW, DRAWS = 200, 8
"""Observations up to which the limit is sought in other shapes of G too, and how many: it may be lowest where G is
nearly singular."""

SMALL = 1e-6
"""Share of y'y in r^2 below which a point may be on its way to the limit."""

FAR = 10.0
"""Multiple of Lambda at which the criterion is no higher if it falls towards the limit."""

FLAT = 1e-6
"""Difference of the criterion that counts as none."""


def refuse_unbounded(outside: int) -> None:
    """Refuse the full likelihood of a design that X and Z span, where Z by itself does not.

    Parameters
    ----------
    outside : int
        Dimensions of the rows that are not in the span of Z.

    Raises
    ------
    LMMError
    """
    if outside:
        raise LMMError(
            "the fixed and random effects together reproduce any y exactly, and the full likelihood has no maximum: it "
            "grows without bound as the residual variance goes to zero; use reml=True or fewer random effects"
        )


def with_residual_variance(
    criterion: LinearEngine, structure: CovarianceStructure, levels: Array, n: int, best: Optimum, saturated: bool
) -> Optimum:
    """The optimum, or a better one with residual variance.

    Parameters
    ----------
    criterion : LinearEngine
    structure : CovarianceStructure
    levels : (q,) array
        Number of groups of each random effect.
    n : int
        Observations.
    best : Optimum
        What was found; the criterion is in its state there.
    saturated : bool
        Whether X and Z span all rows, so that the limit is sought too; otherwise r^2 is below `SMALL` of y'y there.

    Returns
    -------
    Optimum

    Raises
    ------
    LMMError
        Where the criterion has its infimum at the residual variance of zero.
    """
    spent = best.n_evaluations
    lowest = criterion.evaluate(FAR * best.theta)[0]
    for start in _large_starts(structure, levels, n) if saturated else ():
        try:
            other = optimize(criterion, structure, levels, n, start, elsewhere=UNASKED)
        except LMMError:
            # no residual variance is left to an engine that takes r^2 from y'y
            continue
        spent += other.n_evaluations
        lowest = min(lowest, criterion.evaluate(FAR * other.theta)[0])
        if other.converged >= best.converged and other.value < best.value - 1e-9:
            best = other
        if lowest <= best.value - FLAT:
            # a search for other minima has been made before
            break
    # on other axes no residual variance may be left to rounding at a point that was reached on its own
    vanishing = not np.isfinite(criterion.evaluate(best.theta, 1)[0])
    vanishing = vanishing or (saturated and not best.converged and criterion.solution()[1] < SMALL * n)
    # r^2 falls by FAR^2 on the way to the limit, and with it the digits of an engine that takes it from y'y
    lost = 0.0 if criterion.remainder == 1.0 else 1e-15 * FAR**2 / criterion.remainder
    if vanishing or lowest <= best.value + FLAT + n * lost:
        raise without_maximum(criterion.reml)
    return best._replace(n_evaluations=spent)


def without_maximum(reml: bool) -> LMMError:
    """What is raised where the infimum is at the residual variance of zero."""
    kind = "restricted" if reml else "full"
    return LMMError(
        f"the {kind} likelihood has no maximum with a positive residual variance: it grows up to a limit as the "
        "residual variance goes to zero, because the fixed and random effects together reproduce y exactly; use "
        "fewer random effects"
    )


def _large_starts(structure: CovarianceStructure, levels: Array, n: int) -> list[Array]:
    """Theta from which the limit is sought."""
    unit = np.diag(np.sqrt(levels / n))
    starts = [structure.theta(size * unit) for size in LARGE]
    if n <= FEW:
        # the same for every run
        shapes = np.random.default_rng(0).standard_normal((DRAWS, structure.q, structure.q))
        starts += [structure.theta(structure.canonical(LARGE[-1] * unit @ shape)) for shape in shapes]
    return starts
