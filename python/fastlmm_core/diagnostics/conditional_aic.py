"""The conditional AIC: how well the same groups would be predicted, not new ones.

Greven and Kneib 2010, Biometrika 97, 773-789: -2 log f(y | b) + 2 (rho + 1), where rho = sum dy^_i / dy_i counts how
the data move the fitted values, through the variance parameters as well.  With V relative to sigma^2, P = V^-1 - V^-1 X
(X'V^-1X)^-1 X'V^-1, u = P y and V_k = dV / d theta_k, fitted values are y - W^-1 u, so that

    rho = tr(I - W^-1 P) + sum_k (W^-1 a_k)' d theta_k / dy,        a_k = P V_k u,
    d theta / dy = -B^-1 C,       C_k = 2 nu / r^2 (u'V_k u / r^2 u - a_k),

where B is the Hessian of the profiled criterion and r^2 = nu sigma^2 (theorem 3 there, for REML and ML).  A parameter
on the boundary does not move with y: its V_k vanishes there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..engines.rows import conditioned_rows
from ..support.arguments import checked
from ..support.display import Shown
from ..support.types import Array
from .leverage import leverage_parts, row_variances

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["ConditionalAIC", "conditional_aic"]


@checked
@dataclass(frozen=True, repr=False)
class ConditionalAIC(Shown):
    """The conditional AIC of a fit and its parts.

    Attributes
    ----------
    aic : float
        -2 llf + 2 df.
    llf : float
        Log-likelihood of the observations given the random effects.
    df : float
        Degrees of freedom, rho + 1, with what the estimation of the variance parameters adds.
    df_known : float
        As if these were known: the trace of the hat matrix and 1 (Vaida and Blanchard 2005, Biometrika 92, 351-370),
        which prefers models with more random effects.
    """

    aic: float
    llf: float
    df: float
    df_known: float

    def _shown(self) -> list[str]:
        return [
            f"Conditional AIC: {self.aic:.2f} (log-likelihood {self.llf:.2f}, {self.df:.2f} degrees of freedom, "
            f"{self.df - self.df_known:.2f} of them for variances)"
        ]


def conditional_aic(result: Fit) -> ConditionalAIC:
    """See `LMMResult.conditional_aic`."""
    model = result.model
    result.require_estimates("conditional_aic", "compare the log-likelihoods, llf")
    model.needs_independent_residuals("conditional_aic()")
    model.needs_free_covariances("conditional_aic()")
    model.needs_unknown_variance("conditional_aic()", "compare models by aic")
    n = result.nobs
    weights = np.ones(n) if model.weights is None else model.weights
    known = float(np.sum(leverage_parts(row_variances(result))["overall"]))
    llf = -0.5 * float(
        n * np.log(2.0 * np.pi * result.sigma2) - np.log(weights).sum() + weights @ result.rest**2 / result.sigma2
    )
    df = known + _movement(result, weights) + 1.0
    return ConditionalAIC(-2.0 * llf + 2.0 * df, llf, df, known + 1.0)


def _movement(result: Fit, weights: Array) -> float:
    """What the variance parameters add to the trace of d y^ / dy."""
    model = result.model
    u = weights * result.rest
    slopes = _slopes(result, u)
    moved = _projected(result, slopes.T).T
    curves = np.asarray(model.evaluate(result.theta, result.reml, 2).hessian)
    squares = slopes @ u
    total = result.nu * result.sigma2
    coupling = (2.0 * result.nu / total) * ((moved / weights) @ (moved - np.outer(squares / total, u)).T)
    size = np.sqrt(np.abs(np.diag(curves)))
    live = (np.abs(moved).max(axis=1) > 1e-12 * np.abs(u).max()) & (size > 0.0)
    if not live.any():
        return 0.0
    scaled = curves[np.ix_(live, live)] / np.outer(size[live], size[live])
    inverse = np.linalg.pinv(scaled, rcond=1e-12, hermitian=True) / np.outer(size[live], size[live])
    return float(np.sum(inverse * coupling[np.ix_(live, live)]))


def _slopes(result: Fit, u: Array) -> Array:
    """V_k u of each parameter (k, n): with Lambda' = Lambda + e_r e_c', Z (e_r l_c' + l_c e_r') Z'u."""
    model, root = result.model, result.relative_factor
    out = []
    for r, c in zip(*model.structure.positions, strict=True):
        factor = next(f for f in model.factors if f.start <= r < f.stop)
        index, levels = factor.grouping.index, len(factor.grouping.labels)
        row, along = model.exog_re[:, r], model.exog_re @ root[:, c]
        own = np.bincount(index, row * u, levels)
        other = np.bincount(index, along * u, levels)
        out.append(row * other[index] + along * own[index])
    return np.array(out)


def _projected(result: Fit, columns: Array) -> Array:
    """P times columns (n, k)."""
    model, problem = result.model, result.model.problem
    factors = model.factors
    rows = conditioned_rows(
        [model.exog_re[:, f.columns] for f in factors], [f.grouping.index for f in factors], model.weights,
        problem.z_map,
    )  # fmt: skip
    X = problem.conditioned_x(model.exog)
    solved = result.engine.solve(np.column_stack([X, columns]), rows)
    within, rest = solved[:, : problem.rank], solved[:, problem.rank :]
    return np.asarray(rest - within @ np.linalg.solve(X.T @ within, X.T @ rest))
