"""The record of one fit: what inference, prediction and diagnostics read.

As long as the list of what they read: properties of a line or two, each with its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..engines.protocol import Engine, Problem, Solution, linear_problem
from ..engines.scaling import criterion_offset
from ..errors import LMMError
from ..support.blas_threads import one_blas_thread, quiet_product
from ..support.records import at_once
from ..support.types import Array
from . import structured_effects
from .estimate import estimate
from .likelihood import Stated, log_likelihood
from .model import Model
from .optimum import SINGULAR, LocalMinimum, Optimum

if TYPE_CHECKING:
    from ..engines.crossed.problem import CrossedProblem

__all__ = ["Fit"]

T = TypeVar("T")

_EFFECTS_NAMED = 3
"""So many random effects of a covariance matrix without full rank are named, more are counted."""


@at_once
@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A model at its estimates, or at parameters that were stated.

    Attributes
    ----------
    model : Model
    optimum : Optimum
        The record of the optimisation, in conditioned units.
    reml : bool
    solution : Solution
        What profiling out the coefficients left at the optimum, in conditioned units.
    stated : Stated or None
        The parameters, where they were stated; then `optimum` and `solution` are those of no search, but at them.
    """

    model: Model
    optimum: Optimum
    reml: bool
    solution: Solution
    stated: Stated | None = None

    # ---- likelihood ----------------------------------------------------------------------------

    @property
    def nobs(self) -> int:
        """Number of observations."""
        return self.model.nobs

    @property
    def rows_used(self) -> NDArray[np.intp]:
        """Positions in the caller's table of the rows used (nobs,): for pandas they are ``data.iloc[rows_used]``."""
        return self.model.rows_used

    @property
    def n_groups(self) -> dict[str, int]:
        """Number of levels of each grouping factor."""
        return {f.grouping.name: f.grouping.m for f in self.model.factors}

    @property
    def nu(self) -> int:
        """Divisor of the residual variance: observations, by REML less the rank of X."""
        problem = self.model.problem
        return problem.n - problem.rank if self.reml else problem.n

    @cached_property
    def criterion(self) -> float:
        """REML criterion or deviance: -2 times the maximised (restricted) log-likelihood.

        At stated parameters -2 times the log-likelihood of all of them.
        """
        if self.stated is not None:
            return -2.0 * log_likelihood(self)
        return self.optimum.value + criterion_offset(self.model.problem, self.reml)

    @property
    def converged(self) -> bool:
        """Whether the optimum is certified."""
        return self.optimum.converged

    @property
    def singular(self) -> bool:
        """Whether the covariance of the random effects lies on the boundary."""
        return self.optimum.singular

    @property
    def gradient_norm(self) -> float:
        """Scale-free gradient: square root of twice the decrease of the criterion still to be had."""
        return self.optimum.gradient_norm

    @property
    def n_evaluations(self) -> int:
        """Evaluations of the criterion."""
        return self.optimum.n_evaluations

    @property
    def n_parameters(self) -> int:
        """Fixed effects, covariance parameters and the residual variance unless it is known, as lme4 counts them."""
        return self.model.problem.rank + self.model.n_covariance_parameters + (self.model.sigma is None)

    @property
    def llf(self) -> float:
        """Maximised log-likelihood (restricted by REML); at stated parameters the log-likelihood of all of them."""
        return -0.5 * self.criterion

    @property
    def aic(self) -> float:
        """Akaike's information criterion."""
        return self.criterion + 2.0 * self.n_parameters

    @property
    def bic(self) -> float:
        """Schwarz's information criterion with log(nobs)."""
        return self.criterion + float(np.log(self.nobs)) * self.n_parameters

    @cached_property
    def problem(self) -> Problem:
        """The problem of the model, or that of a fit by iterations."""
        drawn = self.optimum.monte_carlo
        if drawn is None:
            return self.model.problem
        from ..engines.crossed.iterative import IterativeProblem

        return IterativeProblem.of(cast("CrossedProblem", self.model.problem), drawn.probes, drawn.seed)

    def require_exact(self, what: str) -> None:
        """Refuse what compares values of the criterion, where they have Monte Carlo errors."""
        if self.optimum.monte_carlo is not None:
            raise LMMError(
                f"{what}: values of the criterion of this fit, by method='iterative', have Monte Carlo errors; take "
                "intervals by method='wald', or fit with method='newton', or a part of the data"
            )

    @cached_property
    def engine(self) -> Engine:
        """An engine at the optimum, evaluated to second order; its work space serves one thread at a time."""
        if self.optimum.monte_carlo is not None:
            engine = self.problem.criterion()
            engine.reml = self.reml
            engine.evaluate(self.optimum.theta, 2)
            return engine
        engine = self.model.criterion() if self.stated is None else self.model.problem.criterion()
        # stated parameters do without the digits that REML needs: more rows than columns
        engine.reml = self.reml and self.stated is None
        with one_blas_thread(engine.serial):
            engine.evaluate(self.optimum.theta, 2)
        return engine

    # ---- fixed effects -------------------------------------------------------------------------

    @cached_property
    def beta(self) -> Array:
        """Coefficients of the columns of X (p,); NaN for dropped columns."""
        if self.stated is not None:
            return self.stated.params
        problem = self.model.problem
        beta = problem.beta_base + problem.scale * (problem.x_map @ self.solution.beta)
        if problem.rank < len(beta):
            beta[problem.dropped] = np.nan
        return beta

    @cached_property
    def cov(self) -> Array:
        """Covariance of the coefficients (p, p), sigma^2 (X'V^-1 X)^-1; NaN for dropped columns."""
        problem = self.model.problem
        half = np.linalg.solve(self.solution.chol, problem.x_map.T) if problem.rank else problem.x_map.T
        cov: Array = self.sigma2 * (half.T @ half)
        if problem.rank < len(cov):
            cov[problem.dropped] = np.nan
            cov[:, problem.dropped] = np.nan
        return cov

    @property
    def dropped_columns(self) -> tuple[str, ...]:
        """Names of the columns of X dropped because they are combinations of those before them."""
        names = self.model.exog_names
        return tuple(names[i] for i in self.model.problem.dropped)

    @cached_property
    def population_mean(self) -> Array:
        """X beta plus offset (nobs,)."""
        model = self.model
        mean = quiet_product(model.exog, np.nan_to_num(self.beta))
        return np.asarray(mean if model.offset is None else mean + model.offset)

    # ---- covariance parameters -----------------------------------------------------------------

    @cached_property
    def sigma2(self) -> float:
        """Residual variance (of an observation of weight 1)."""
        if self.stated is not None:
            return self.stated.sigma2
        if self.model.sigma is not None:
            return float(self.model.sigma) ** 2
        return self.model.problem.scale**2 * self.solution.r2 / self.nu

    @cached_property
    def relative_factor(self) -> Array:
        """Lambda in natural units (q, q): the random effects have covariance sigma2 Lambda Lambda'."""
        if self.stated is not None:
            return self.stated.factor
        problem, optimum = self.model.problem, self.optimum
        # the negligible directions that the optimiser set to zero leave rounding errors in natural units
        negligible = SINGULAR * np.sqrt(problem.levels / problem.n) if optimum.singular else None
        return self.model.structure.natural(problem.z_map, optimum.factor, negligible)

    @property
    def optima(self) -> tuple[LocalMinimum, ...]:
        """The optimum, and the other certified minima of the criterion that are at most 2 units higher: value, theta.

        Where there are several, the data do not tell the parameters apart by more than that.
        """
        problem, structure = self.model.problem, self.model.structure
        offset = self.criterion - self.optimum.value
        others = [
            LocalMinimum(value + offset, structure.theta(structure.natural(problem.z_map, structure.factor(theta))))
            for value, theta in self.optimum.others
        ]
        return (LocalMinimum(self.criterion, self.theta), *others)

    @cached_property
    def theta(self) -> Array:
        """Relative covariance parameters in natural units, in lme4's order (k,)."""
        theta = self.model.structure.theta(self.relative_factor)
        return theta if self.model.residual is None else np.concatenate([theta, self.phi])

    @property
    def phi(self) -> Array:
        """Parameters of the residual structure, without constraints; empty where residuals are independent."""
        return self.optimum.theta[self.model.structure.n_parameters :]

    @cached_property
    def residual_variances(self) -> Array:
        """Residual variance of each row used (nobs,)."""
        model, part = self.model, self.model.residual
        out = np.full(self.nobs, self.sigma2)
        if part is not None:
            out *= part.variances(self.phi)
        return out if model.weights is None else out / model.weights

    @cached_property
    def relative_covariance(self) -> Array:
        """Covariance of the random effects of all terms relative to sigma2 (q, q)."""
        return self.relative_factor @ self.relative_factor.T

    @cached_property
    def covariance(self) -> Array:
        """Covariance of the random effects of all terms (q, q)."""
        return self.sigma2 * self.relative_covariance

    @property
    def G(self) -> dict[str, Array]:
        """Covariance matrix of the random effects in natural units, by term."""
        return {
            name: self.covariance[block.start : block.stop, block.start : block.stop].copy()
            for name, block in zip(self.model.term_names, self.model.structure.blocks, strict=True)
        }

    @property
    def sigma(self) -> float:
        """Residual standard deviation."""
        return float(np.sqrt(self.sigma2))

    @cached_property
    def random_effects_sd(self) -> dict[str, Array]:
        """Standard deviations of the random effects, by term."""
        return {name: np.sqrt(np.diag(g)) for name, g in self.G.items()}

    @cached_property
    def random_effects_corr(self) -> dict[str, Array]:
        """Correlation matrix of the random effects, by term; NaN where a variance is zero."""
        out = {}
        for name, g in self.G.items():
            sd = np.sqrt(np.diag(g))
            with np.errstate(invalid="ignore", divide="ignore"):
                corr = np.clip(g / np.outer(sd, sd), -1.0, 1.0)
            corr[np.arange(len(sd)), np.arange(len(sd))] = np.where(sd > 0.0, 1.0, np.nan)
            out[name] = corr
        return out

    @cached_property
    def random_effects_rank(self) -> dict[str, int]:
        """Rank of the covariance matrix of the random effects, by term: in how many directions they vary."""
        factor, blocks = self.optimum.factor, self.model.structure.blocks
        parts = [slice(block.start, block.stop) for block in blocks]
        # what the optimiser found at the boundary it has set to zero
        ranks = [int(np.linalg.matrix_rank(factor[part, part], tol=1e-10)) for part in parts]
        return dict(zip(self.model.term_names, ranks, strict=True))

    @cached_property
    def singular_components(self) -> tuple[str, ...]:
        """What is at the boundary: variances that are 0, correlations that are +-1, and ranks, in words."""
        found: list[str] = []
        if not self.singular:
            return ()
        if self.optimum.restricted is not None:
            from .restricted import limits

            return limits(self.model, np.concatenate((self.optimum.restricted, self.phi)))
        if self.model.residual is not None:
            found += self.model.residual.boundaries(self.phi)
        for (name, g), block in zip(self.G.items(), self.model.structure.blocks, strict=True):
            names = self.model.exog_re_names[block.start : block.stop]
            zero = np.diag(g) == 0.0
            found += [f"sd of {names[i]} | {name} is 0" for i in np.flatnonzero(zero)]
            live = np.flatnonzero(~zero)
            corr = self.random_effects_corr[name]
            pairs = [(i, j) for k, i in enumerate(live) for j in live[k + 1 :] if 1.0 - abs(corr[i, j]) < 1e-8]
            found += [
                f"correlation of {names[i]} and {names[j]} | {name} is {'+' if corr[i, j] > 0 else '-'}1"
                for i, j in pairs
            ]
            # effects that repeat an earlier one add nothing to the rank, and were named
            own = len(live) - len({j for _, j in pairs})
            if self.random_effects_rank[name] < own and block.correlated:
                what = ", ".join(names[i] for i in live) if len(live) <= _EFFECTS_NAMED else f"{len(names)} effects"
                size = len(live) if len(live) <= _EFFECTS_NAMED else len(names)
                found.append(f"covariance of {what} | {name} has rank {self.random_effects_rank[name]} of {size}")
        return tuple(found)

    @property
    def message(self) -> str:
        """What the optimiser found, with the components at the boundary."""
        parts = [self.optimum.message, *self.singular_components]
        return "; ".join(parts)

    # ---- random effects ------------------------------------------------------------------------

    @cached_property
    def blups(self) -> tuple[Array, ...]:
        """Conditional means of the random effects given y, an (m, q) array per grouping factor."""
        problem = self.problem
        if not self.model.streamed:
            self.model.require_response()
        if self.model.residual is not None:
            return structured_effects.effects(self.model, self.engine, self.relative_covariance, self.marginal_rest)
        found = linear_problem(problem).effects(self.optimum.factor, self.solution.beta)
        return tuple(
            problem.scale * (b @ problem.z_map[f.columns, f.columns].T)
            for b, f in zip(found, self.model.factors, strict=True)
        )

    @cached_property
    def blup_covariances(self) -> tuple[Array, ...]:
        """Conditional covariances of the random effects given y, an (m, q, q) array per grouping factor."""
        problem = self.problem
        if self.model.residual is not None:
            inner = structured_effects.effects_covariances(self.model, self.engine, self.relative_covariance)
            return tuple(self.sigma2 * c for c in inner)
        found = linear_problem(problem).effects_covariance(self.optimum.factor)
        maps = [problem.z_map[f.columns, f.columns] for f in self.model.factors]
        return tuple(self.sigma2 * (t @ c @ t.T) for c, t in zip(found, maps, strict=True))

    @property
    def effect_names(self) -> tuple[str, ...]:
        """Names of the random effects, with their terms where one factor has two of a name."""
        return self.model.effect_names

    @cached_property
    def fitted_mean(self) -> Array:
        """Conditional means X beta + Z b plus offset of the rows used (nobs,)."""
        model, mean = self.model, self.population_mean
        for b, f in zip(self.blups, model.factors, strict=True):
            mean = mean + np.einsum("ij,ij->i", model.exog_re[:, f.columns], b[f.grouping.index])
        return np.asarray(mean)

    @property
    def rest(self) -> Array:
        """Conditional residuals y - X beta - Z b (less the offset) of the rows used (nobs,)."""
        return self.model.endog - self.fitted_mean

    @property
    def marginal_rest(self) -> Array:
        """Marginal residuals y - X beta (less the offset) of the rows used (nobs,)."""
        return self.model.endog - self.population_mean

    def require_estimates(self, what: str, remedy: str) -> None:
        """Refuse what says something of estimates, where parameters were stated."""
        if self.stated is not None:
            raise LMMError(f"{what}: the parameters of this result are stated, not estimated; {remedy}")

    # ---- other fits, and what is kept with this one --------------------------------------------

    def again(self, model: Model, *, reml: bool | None = None, start: ArrayLike | None = None) -> Self:
        """The fit of another model by the same criterion, unless told otherwise, and by iterations where this one is.

        Raises
        ------
        LMMError
            As `estimate`.
        """
        return estimate(type(self), model, self.reml if reml is None else reml, start=start, **self.way(model))

    def way(self, model: Model) -> dict[str, Any]:
        """Method and options by which other models are fitted: with the probes of this fit, if it has any."""
        drawn = self.optimum.monte_carlo
        if drawn is None:
            return {}
        from .iterative import refusal

        if refusal(model):  # nested ones are fitted exactly
            return {}
        return {"method": "iterative", "options": {"probes": drawn.probes, "seed": drawn.seed}}

    @cached_property
    def _made(self) -> dict[Hashable, Any]:
        return {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made at the first call with this key and kept with the fit."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    def __getstate__(self) -> dict[str, Any]:
        # an engine is a work space in memory; what was found at the optimum travels
        return {name: value for name, value in self.__dict__.items() if name not in ("engine", "problem")}
