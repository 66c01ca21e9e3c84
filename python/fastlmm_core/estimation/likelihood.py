"""The likelihood at the parameters of a fit, estimated or stated, and generalised least squares there.

What is asked of a fit here is in `AtParameters`, as the record itself is made with these functions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np

from ..engines.protocol import Engine, Solution, linear_problem
from ..engines.scaling import criterion_constant
from ..kernels.records.rows import ConditionedRows
from ..support.blas_threads import quiet_product
from ..support.types import Array

if TYPE_CHECKING:
    from .model import Model
    from .optimum import Optimum

__all__ = ["STATED", "AtParameters", "Stated", "conditioned_coefficients", "least_squares", "log_likelihood"]


STATED = "stated"
"""The method of an optimum that no search has found."""


class Stated(NamedTuple):
    """Parameters that were stated, not estimated.

    Attributes
    ----------
    params : (p,) array
        Fixed effects; NaN for columns that a fit had dropped.
    factor : (q, q) array
        Lambda in natural units: the random effects have covariance sigma2 Lambda Lambda'.
    sigma2 : float
        Residual variance (of an observation of weight 1).
    """

    params: Array
    factor: Array
    sigma2: float


class AtParameters(Protocol):
    """What the likelihood needs of a fit; see `Fit`."""

    @property
    def model(self) -> Model:
        """Design and response."""

    @property
    def optimum(self) -> Optimum:
        """The record of the search, or of none."""

    @property
    def reml(self) -> bool:
        """The criterion."""

    @property
    def solution(self) -> Solution:
        """What profiling leaves."""

    @property
    def beta(self) -> Array:
        """Coefficients (p,)."""

    @property
    def sigma2(self) -> float:
        """Residual variance."""

    @property
    def relative_factor(self) -> Array:
        """Lambda in natural units (q, q)."""

    @property
    def engine(self) -> Engine:
        """The engine at the parameters."""

    @property
    def rest(self) -> Array:
        """Conditional residuals (nobs,)."""

    @property
    def marginal_rest(self) -> Array:
        """Marginal residuals (nobs,)."""


def log_likelihood(fit: AtParameters, reml: bool = False) -> float:
    """Log-likelihood of the response at the parameters of a fit; restricted: at its variances.

    With v = y - X beta, e = v - Z b the residual from the BLUPs and u = Lambda'Z'We for each level,

        v'V^-1 v = (e'We + u'u) / sigma^2,

    a sum of squares; with structured residuals v'V^-1 v from V^-1 v by rows.  The restricted likelihood has the
    generalised least squares estimates for beta, and log|X'V^-1X|.
    """
    model, problem, r = fit.model, fit.model.problem, fit.model.problem.rank
    if reml:
        params = least_squares(fit)
        solution = fit.solution._replace(beta=conditioned_coefficients(model, params))
        there = Stated(params, fit.relative_factor, fit.sigma2)
        fit = cast("AtParameters", replace(cast("Any", fit), stated=there, solution=solution))
    nu = problem.n - r if reml else problem.n
    weighted = _weighted_rest(fit)
    independent = model.design.residual is None
    squares = float((fit.rest if independent else fit.marginal_rest) @ weighted)
    for f in model.factors if independent else ():
        turned = model.exog_re[:, f.columns] @ fit.relative_factor[f.columns, f.columns]
        sums = [np.bincount(f.grouping.index, column * weighted, f.grouping.m) for column in turned.T]
        squares += float(np.sum(np.square(sums)))
    value = nu * float(np.log(2.0 * np.pi * fit.sigma2)) + _log_det(fit) + squares / fit.sigma2
    if reml:
        value += 2.0 * float(np.sum(np.log(np.diag(fit.solution.chol))))
    return -0.5 * (value + criterion_constant(problem, reml))


def _log_det(fit: AtParameters) -> float:
    """log|I + Lambda'Z'WZ Lambda|, from the criterion."""
    value, r2, chol = fit.optimum.value, fit.solution.r2, fit.solution.chol
    # stated parameters come with the deviance
    reml = fit.reml and fit.optimum.method != STATED
    nu = fit.model.problem.n - fit.model.problem.rank if reml else fit.model.problem.n
    variance, quotient = r2 / nu, float(nu)
    if fit.model.sigma is not None and fit.optimum.method != STATED:
        problem = linear_problem(fit.model.problem)
        variance = (fit.model.sigma / problem.scale) ** 2
        quotient = (r2 - problem.alone) / variance
    value -= nu * float(np.log(2.0 * np.pi * variance)) + quotient
    return value - 2.0 * float(np.sum(np.log(np.diag(chol)))) if reml else value


def least_squares(fit: AtParameters) -> Array:
    """Generalised least squares estimates of the coefficients (p,) at the variances of a fit.

    Columns that depend on those before them keep their coefficients.
    """
    model, problem = fit.model, fit.model.problem
    score = problem.conditioned_x(model.exog).T @ _weighted_rest(fit)
    chol = fit.solution.chol
    step = np.linalg.solve(chol.T, np.linalg.solve(chol, score)) if problem.rank else score
    return np.asarray(fit.beta + problem.x_map @ step)


def _weighted_rest(fit: AtParameters) -> Array:
    """V^-1 v relative to sigma^2 (n,): We with the residual e from the BLUPs, where residuals are independent."""
    weights = fit.model.weights
    if fit.model.design.residual is not None:
        return fit.engine.solve(fit.marginal_rest, ConditionedRows((), (), weights))
    return fit.rest if weights is None else fit.rest * weights


def conditioned_coefficients(model: Model, params: Array) -> Array:
    """beta_o (r,) with X beta = X beta_base + scale X_o beta_o."""
    problem = model.problem
    rest = np.nan_to_num(params) - problem.beta_base
    if not len(problem.dropped):
        return np.asarray(np.linalg.solve(problem.x_map, rest) / problem.scale) if problem.rank else rest
    X = problem.conditioned_x(model.exog)
    weighted = X if model.weights is None else X * model.weights[:, None]
    return np.asarray(weighted.T @ quiet_product(model.exog, rest) / problem.scale)
