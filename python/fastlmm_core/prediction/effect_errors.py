"""Errors of predicted random effects.

For the effects b of one level, c = Z'(y - X beta) and M as in `predict`, the BLUP at the estimated coefficients is off
by

    b^ - b  =  (M c - b)  -  M Z'X (beta^ - beta),

two terms that are uncorrelated (Henderson 1975, Biometrics 31, eq. 3), so that its covariance is

    sigma^2 (M + J H^-1 J'),    J = M Z'X,    H = X'V^-1X,

in which M is the conditional covariance at known coefficients, lme4's condVar, and the whole what SAS prints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..engines.protocol import linear_problem
from ..errors import LMMError
from ..estimation.structured_effects import coefficient_errors
from ..support.types import Array

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["effect_covariances"]


def effect_covariances(result: Fit, kind: str) -> tuple[Array, ...]:
    """Covariances of the random effects of each level, an (m, q, q) array per grouping factor.

    Parameters
    ----------
    result : LMMResult
    kind : {"conditional", "prediction"}
        Given y, at the parameters of the fit; or of the errors of the BLUPs, with that of the coefficients.  The same
        where the coefficients are stated.

    Raises
    ------
    LMMError
        For another kind.
    """
    if kind not in ("conditional", "prediction"):
        raise LMMError(f"kind={kind!r} is unknown: use 'conditional' or 'prediction'")
    if kind == "conditional" or result.stated is not None or not result.model.problem.rank:
        return result.blup_covariances
    return result.once("prediction errors of effects", lambda: _with_coefficients(result))


def _with_coefficients(result: Fit) -> tuple[Array, ...]:
    model = result.model
    if model.residual is not None:
        G, chol = result.relative_covariance, result.solution.chol
        halves = (coefficient_errors(model, result.engine, G, at, chol) for at in range(len(model.factors)))
        return tuple(
            conditional + result.sigma2 * (half @ half.transpose(0, 2, 1))
            for conditional, half in zip(result.blup_covariances, halves, strict=True)
        )
    problem = linear_problem(result.model.problem)
    factor, beta = result.optimum.factor, result.solution.beta
    half = np.linalg.inv(result.solution.chol)
    # BLUPs are linear in the coefficients: M Z'X column by column
    at = problem.effects(factor, beta)
    moved = [problem.effects(factor, beta + unit) for unit in np.eye(problem.rank)]
    out = []
    for i, (f, conditional) in enumerate(zip(result.model.factors, result.blup_covariances, strict=True)):
        J = np.stack([at[i] - other[i] for other in moved], axis=2)
        turned = (problem.z_map[f.columns, f.columns] @ J) @ half.T
        out.append(conditional + result.sigma2 * (turned @ turned.transpose(0, 2, 1)))
    return tuple(out)
