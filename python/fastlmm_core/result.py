"""The result of one fit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .diagnostics.marginal import MarginalMoments
from .errors import LMMError
from .estimation.optimize import SINGULAR, Optimum
from .methods import Ddf, Information, Methods
from .support.checks import check_share
from .support.distributions import quantile
from .tables.columns import limits_table

if TYPE_CHECKING:
    from .model import LinearMixedModel
    from .report.summary import Summary

__all__ = ["LMMResult"]

Array = NDArray[np.float64]


class LMMResult(MarginalMoments, Methods):
    """Estimates of a linear mixed model and everything that follows from them.

    Frames and labelled values come in the library of the caller's data (for pandas a Series, otherwise a
    dict of name to value); a model from arrays gives arrays.  Coefficients of dropped columns are NaN.

    Attributes
    ----------
    model : LinearMixedModel
    optimum : Optimum
        The record of the optimisation.
    reml : bool
    sigma2 : float
        Residual variance (of an observation of weight 1).
    theta : (k,) array
        Relative covariance parameters in natural units, in lme4's order.
    criterion : float
        REML criterion or deviance: -2 times the maximised (restricted) log-likelihood.
    converged, singular : bool
    gradient_norm : float
        Scale-free gradient: square root of twice the decrease of the criterion still to be had.
    n_evaluations : int
    message : str
    """

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            from .support.words import missing_attribute

            missing_attribute(self, name)

    def __init__(
        self, model: LinearMixedModel, optimum: Optimum, solution: tuple[Array, float, Array, Array], reml: bool
    ) -> None:
        problem = model.problem
        beta, r2, chol, _ = solution
        nu = problem.n - problem.rank if reml else problem.n
        self.model = model
        self.optimum = optimum
        self.reml = reml
        self.sigma2 = problem.scale**2 * r2 / nu
        self.criterion = optimum.value + problem.offset(reml)
        self.converged = optimum.converged
        self.singular = optimum.singular
        self.gradient_norm = optimum.gradient_norm
        self.n_evaluations = optimum.n_evaluations
        self._beta_o = beta
        self._chol = chol
        # the negligible directions that the optimiser set to zero leave rounding errors in natural units
        negligible = SINGULAR * np.sqrt(problem.levels / problem.n) if optimum.singular else None
        self._factor = model.structure.natural(problem.z_map, optimum.factor, negligible)
        self.theta = model.structure.theta(self._factor)

    # ---- fixed effects -------------------------------------------------------------------------

    @cached_property
    def _params(self) -> Array:
        problem = self.model.problem
        beta = problem.beta_base + problem.scale * (problem.x_map @ self._beta_o)
        if problem.rank < len(beta):
            beta[np.setdiff1d(np.arange(len(beta)), problem.kept)] = np.nan
        return beta

    @cached_property
    def _cov(self) -> Array:
        problem = self.model.problem
        half = np.linalg.solve(self._chol, problem.x_map.T) if problem.rank else problem.x_map.T
        cov: Array = self.sigma2 * (half.T @ half)
        if problem.rank < len(cov):
            dropped = np.setdiff1d(np.arange(len(cov)), problem.kept)
            cov[dropped] = np.nan
            cov[:, dropped] = np.nan
        return cov

    def _labelled(self, values: Array, names: tuple[str, ...] | None = None) -> Any:
        spec = self.model.spec
        if spec is None:
            return values
        names = self.model.exog_names if names is None else names
        if spec.library == "pandas":
            import pandas as pd

            return pd.Series(values, index=list(names))
        return dict(zip(names, values.tolist(), strict=True))

    @property
    def params(self) -> Any:
        """Fixed effects (p,); NaN for dropped columns."""
        return self._labelled(self._params.copy())

    @property
    def bse(self) -> Any:
        """Standard errors of the fixed effects (p,)."""
        return self._labelled(np.sqrt(np.diag(self._cov)))

    @property
    def tvalues(self) -> Any:
        """Fixed effects divided by their standard errors (p,)."""
        return self._labelled(self._params / np.sqrt(np.diag(self._cov)))

    @property
    def df(self) -> Any:
        """Satterthwaite's degrees of freedom of the t tests that each fixed effect is zero (p,).

        `test`, `tidy` and `summary` offer others.
        """
        return self._labelled(self._table()["df"])

    @property
    def df_resid(self) -> int:
        """Observations less estimable fixed effects: the degrees of freedom of ``ddf="residual"``."""
        return self.model.df_resid

    @property
    def pvalues(self) -> Any:
        """Two-sided p-values of the t tests that each fixed effect is zero (p,), with Satterthwaite's df.

        `test`, `tidy` and `summary` offer others.
        """
        return self._labelled(self._table()["p_value"])

    def _table(self, ddf: Ddf = "satterthwaite", information: Information = "expected") -> dict[str, Array]:
        from .inference.wald import coefficient_table

        return coefficient_table(self, ddf, information)

    def cov_params(self) -> Any:
        """Covariance matrix of the fixed effects (p, p), sigma^2 (X'V^-1 X)^-1; a DataFrame for pandas."""
        if self.model.spec is None or self.model.spec.library != "pandas":
            return self._cov.copy()
        import pandas as pd

        names = list(self.model.exog_names)
        return pd.DataFrame(self._cov.copy(), index=names, columns=names)

    def conf_int(
        self,
        level: float = 0.95,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "expected",
        method: Literal["wald", "profile"] = "wald",
    ) -> Any:
        """Confidence intervals of the fixed effects, or by the profile likelihood of all parameters.

        Parameters
        ----------
        level : float
            Between 0 and 1.
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
            Degrees of freedom of the Wald intervals.
        information : {"expected", "observed"}
            For Kenward-Roger, see `test`.
        method : {"wald", "profile"}
            Estimate and t quantile times standard error, or the values at which the profile deviance rises by the
            chi-square quantile: then of standard deviations and correlations too.

        Returns
        -------
        (p, 2) array or a frame with columns conf_low, conf_high
            By profile of all parameters, in the order of ``profile().names``.

        Raises
        ------
        LMMError
            For a level outside (0, 1) or unknown options.
        """
        if method == "profile":
            from .inference.profile.profile import confidence_limits

            limits = confidence_limits(self, level)
            return self._limits(tuple(limits), np.array(list(limits.values())))
        if method != "wald":
            raise LMMError(f"method={method!r} is unknown: use 'wald' or 'profile'")
        table = self._intervals(level, ddf, information)
        return self._limits(self.model.exog_names, np.column_stack([table["conf_low"], table["conf_high"]]))

    def _intervals(self, level: float, ddf: Ddf, information: Information) -> dict[str, Array]:
        check_share(level, "level")
        table = self._table(ddf, information)
        half = quantile(0.5 + 0.5 * level, table["df"]) * table["std_error"]
        return table | {"conf_low": table["estimate"] - half, "conf_high": table["estimate"] + half}

    def _limits(self, names: tuple[str, ...], limits: Array) -> Any:
        spec = self.model.spec
        return limits_table(None if spec is None else spec.library, names, limits)

    @property
    def dropped_columns(self) -> tuple[str, ...]:
        """Names of the columns of X dropped because they are combinations of those before them."""
        names = self.model.exog_names
        return tuple(names[i] for i in np.setdiff1d(np.arange(len(names)), self.model.problem.kept))

    # ---- covariance parameters -----------------------------------------------------------------

    @cached_property
    def _relative(self) -> Array:
        return self._factor @ self._factor.T

    @cached_property
    def _covariance(self) -> Array:
        return self.sigma2 * self._relative

    @property
    def G(self) -> dict[str, Array]:
        """Covariance matrix of the random effects in natural units, by term."""
        return {
            name: self._covariance[block.start : block.stop, block.start : block.stop].copy()
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
    def singular_components(self) -> tuple[str, ...]:
        """What is at the boundary: variances that are 0 and correlations that are +-1, in words."""
        found: list[str] = []
        if not self.singular:
            return ()
        for (name, g), block in zip(self.G.items(), self.model.structure.blocks, strict=True):
            names = self.model.exog_re_names[block.start : block.stop]
            zero = np.diag(g) == 0.0
            found += [f"sd of {names[i]} | {name} is 0" for i in np.flatnonzero(zero)]
            part = slice(block.start, block.stop)
            rank = np.linalg.matrix_rank(self.optimum.factor[part, part], tol=1e-10)
            live = np.flatnonzero(~zero)
            corr = self.random_effects_corr[name]
            pairs = [(i, j) for k, i in enumerate(live) for j in live[k + 1 :] if 1.0 - abs(corr[i, j]) < 1e-8]
            found += [
                f"correlation of {names[i]} and {names[j]} | {name} is {'+' if corr[i, j] > 0 else '-'}1"
                for i, j in pairs
            ]
            if not pairs and rank < len(live) and block.structure == "full":
                found.append(f"a combination of {', '.join(names[i] for i in live)} | {name} has variance 0")
        return tuple(found)

    @property
    def message(self) -> str:
        """What the optimiser found, with the components at the boundary."""
        parts = [self.optimum.message, *self.singular_components]
        return "; ".join(parts)

    # ---- likelihood ----------------------------------------------------------------------------

    @property
    def nobs(self) -> int:
        """Number of observations."""
        return self.model.nobs

    @property
    def n_groups(self) -> dict[str, int]:
        """Number of levels of each grouping factor."""
        return {f.grouping.name: len(f.grouping.labels) for f in self.model.factors}

    @property
    def llf(self) -> float:
        """Maximised log-likelihood (restricted by REML)."""
        return -0.5 * self.criterion

    @property
    def n_parameters(self) -> int:
        """Fixed effects, covariance parameters and the residual variance, as lme4 counts them."""
        return self.model.problem.rank + self.model.structure.n_parameters + 1

    @property
    def aic(self) -> float:
        """Akaike's information criterion."""
        return self.criterion + 2.0 * self.n_parameters

    @property
    def bic(self) -> float:
        """Schwarz's information criterion with log(nobs)."""
        return self.criterion + float(np.log(self.nobs)) * self.n_parameters

    # ---- random effects ------------------------------------------------------------------------

    @cached_property
    def _effects_by_factor(self) -> tuple[Array, ...]:
        problem = self.model.problem
        found = problem.effects(self.optimum.factor, self._beta_o)
        return tuple(
            problem.scale * (b @ problem.z_map[f.columns, f.columns].T)
            for b, f in zip(found, self.model.factors, strict=True)
        )

    @property
    def group_labels(self) -> Any:
        """Labels of the groups in the order of the random effects; a dict by factor where there are several."""
        return self._by_factor([f.grouping.labels for f in self.model.factors])

    def _by_factor(self, values: Sequence[Any]) -> Any:
        if len(values) == 1:
            return values[0]
        return {f.grouping.name: value for f, value in zip(self.model.factors, values, strict=True)}

    @cached_property
    def random_effects(self) -> Any:
        """BLUPs: conditional means of the random effects given y (m, q); a dict by factor where there are several."""
        return self._by_factor([self._effects_table(i) for i in range(len(self.model.factors))])

    def _effects_table(self, i: int) -> Any:
        spec, factor, effects = self.model.spec, self.model.factors[i], self._effects_by_factor[i]
        if spec is None:
            return effects
        names = self._unique_re_names[factor.columns]
        grouping = factor.grouping
        return self.model.table({grouping.name: grouping.labels, **{n: effects[:, j] for j, n in enumerate(names)}})

    @cached_property
    def _unique_re_names(self) -> tuple[str, ...]:
        names = self.model.exog_re_names
        if all(len(set(names[f.columns])) == f.stop - f.start for f in self.model.factors):
            return names
        return tuple(
            f"{names[i]} ({term})"
            for term, block in zip(self.model.term_names, self.model.structure.blocks, strict=True)
            for i in range(block.start, block.stop)
        )

    @cached_property
    def random_effects_covariance(self) -> Any:
        """Conditional covariance of each group's random effects given y, at the estimated parameters (m, q, q).

        A dict by factor where there are several.
        """
        problem = self.model.problem
        found = problem.effects_covariance(self.optimum.factor)
        maps = [problem.z_map[f.columns, f.columns] for f in self.model.factors]
        return self._by_factor([self.sigma2 * (t @ c @ t.T) for c, t in zip(found, maps, strict=True)])

    # ---- fitted values -------------------------------------------------------------------------

    @cached_property
    def _marginal_mean(self) -> Array:
        model = self.model
        mean = model.exog @ np.nan_to_num(self._params)
        return np.asarray(mean if model.offset is None else mean + model.offset)

    @cached_property
    def fittedvalues(self) -> Array:
        """Conditional means X beta + Z b (+ offset) of the rows used (n,)."""
        model, mean = self.model, self._marginal_mean
        for b, f in zip(self._effects_by_factor, model.factors, strict=True):
            mean = mean + np.einsum("ij,ij->i", model.exog_re[:, f.columns], b[f.grouping.index])
        return np.asarray(mean)

    @property
    def resid(self) -> Array:
        """Conditional residuals y - fittedvalues (n,)."""
        return self.model.endog - self.fittedvalues

    def residuals(
        self, kind: Literal["conditional", "marginal", "pearson", "whitened", "studentized"] = "conditional"
    ) -> Array:
        """Residuals of the rows used.

        Parameters
        ----------
        kind : {"conditional", "marginal", "pearson", "whitened", "studentized"}
            y - X beta - Z b; y - X beta; conditional times sqrt(weights) / sigma; marginal times the inverse Cholesky
            factor of its covariance V_i, which are independent with unit variance under the model; or conditional
            divided by its own standard deviation.

        Returns
        -------
        (n,) array

        Raises
        ------
        LMMError
            For another kind.
        """
        if kind == "conditional":
            return self.resid
        if kind == "marginal":
            return self.model.endog - self._marginal_mean
        if kind == "pearson":
            weights = self.model.weights
            return self.resid / self.sigma * (1.0 if weights is None else np.sqrt(weights))
        if kind == "whitened":
            model = self.model
            if len(model.factors) > 1:
                from .design.independence import whitened

                return whitened(self, self.residuals("marginal"))
            values = kernels.whiten_residuals(
                self.residuals("marginal"), model.exog_re, model.grouping.index.astype(np.int64), model.problem.m,
                self._relative, model.weights,
            )  # fmt: skip
            return np.asarray(values / self.sigma)
        if kind == "studentized":
            from .diagnostics.leverage import studentized_residuals

            return studentized_residuals(self)
        raise LMMError(
            f"kind={kind!r} is unknown: use 'conditional', 'marginal', 'pearson', 'whitened' or 'studentized'"
        )

    # ---- what simulation needs -----------------------------------------------------------------

    @property
    def relative_factor(self) -> Array:
        """Lambda in natural units (q, q): the random effects have covariance sigma2 Lambda Lambda'."""
        return self._factor

    @property
    def marginal_mean(self) -> Array:
        """X beta plus offset (nobs,)."""
        return self._marginal_mean

    # ---- presentation --------------------------------------------------------------------------

    def summary(
        self, level: float = 0.95, *, ddf: Ddf = "satterthwaite", information: Information = "expected"
    ) -> Summary:
        """Tables of the fit as text and HTML.

        Parameters
        ----------
        level : float
            Of the confidence intervals.
        ddf, information
            Degrees of freedom of tests and intervals, see `test`.

        Returns
        -------
        Summary
            Prints as text; shows as HTML in notebooks.
        """
        from .report.summary import Summary

        return Summary.of(self, level, ddf, information)

    def tidy(
        self,
        effects: Literal["fixed", "ran_pars", "ran_vals"] = "fixed",
        level: float = 0.95,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "expected",
    ) -> Any:
        """One row per estimate, in the caller's own frame library (a dict of arrays for models from arrays).

        Parameters
        ----------
        effects : {"fixed", "ran_pars", "ran_vals"}
            Coefficients; standard deviations and correlations; BLUPs with conditional standard errors.
        level : float
        ddf, information
            Degrees of freedom of tests and intervals, see `test`.

        Returns
        -------
        frame or dict of arrays
        """
        from .report.summary import tidy_columns

        return self.model.table(tidy_columns(self, effects, level, ddf, information))

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def __repr__(self) -> str:
        kind = "REML" if self.reml else "ML"
        state = "certified" if self.converged else "NOT certified"
        return f"<LMMResult: {kind} criterion {self.criterion:.6f}, {state}{', singular' if self.singular else ''}>"
