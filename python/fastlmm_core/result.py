"""The result of one fit.

As long as its texts: a method calls one function, and what users read of it stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from .errors import LMMError
from .estimation.fit import Fit
from .estimation.stated import needs_estimates
from .inference.options import Ddf, Information, Vcov
from .support.arguments import checked
from .support.hints import missing_attribute, option
from .support.types import Array
from .tables.rows import limits_table

if TYPE_CHECKING:
    from .batch_result import BatchResult
    from .diagnostics.conditional_aic import ConditionalAIC
    from .diagnostics.context import ContextualEffect
    from .diagnostics.design_effect import DesignEffect
    from .diagnostics.influence import Influence
    from .diagnostics.marginal import LeastVariance, MarginalCovariance
    from .diagnostics.pooling import Pooling
    from .diagnostics.principal_components import PrincipalComponents
    from .estimation.fit import Fit
    from .estimation.model import Model
    from .inference.likelihood_ratio.selection import Selection
    from .inference.likelihood_ratio.table import Comparison
    from .inference.many.masked import MaskedBatch
    from .inference.means.means import MarginalMeans
    from .inference.profile.profile import ProfileResult
    from .inference.sandwich import Sandwich
    from .inference.wald_test import WaldTest
    from .report.summary import Summary
    from .simulation.dropout import Dropout
    from .simulation.replicates import BootstrapResult
    from .support.seeds import Seed

__all__ = ["LMMResult"]


_TESTS = "flc.power gives the power of a test on this design, bse the standard errors that estimates would have"
_ESTIMATES = "simulate_fit shows how estimates on this design are distributed"


@needs_estimates(
    dict.fromkeys(
        (
            "tvalues",
            "df",
            "pvalues",
            "conf_int",
            "test",
            "anova",
            "emmeans",
            "slopes",
            "contextual_effect",
            "partial_r2",
        ),
        _TESTS,
    )
    | dict.fromkeys(("variance_components", "profile", "bootstrap", "r2_intervals"), _ESTIMATES)
    | dict.fromkeys(
        ("random_effect_test", "drop1", "simplify", "step", "update", "influence", "optima"),
        "fit the response: result.model.fit()",
    )
    | dict.fromkeys(("aic", "bic", "conditional_aic"), "compare the log-likelihoods, llf")
)
@checked
class LMMResult(Fit):
    """Estimates of a linear mixed model and everything that follows from them, or stated parameters and what follows.

    Parameters are stated by `fastlmm_core.assume`, or by `at` for a model that has been fitted.  They are then taken as
    known: predictions have no uncertainty from them, and what speaks of estimates is refused.

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
    stated : Stated or None
        The parameters, where they were stated.
    """

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            missing_attribute(self, name)

    # ---- fixed effects -------------------------------------------------------------------------

    @property
    def params(self) -> Any:
        """Fixed effects (p,); NaN for dropped columns."""
        return self.model.labelled(self.beta.copy())

    @property
    def bse(self) -> Any:
        """Standard errors of the fixed effects (p,).

        At stated parameters those that generalised least squares estimates would have on this design.
        """
        return self.model.labelled(np.sqrt(np.diag(self.cov)))

    @property
    def tvalues(self) -> Any:
        """Fixed effects divided by their standard errors (p,)."""
        return self.model.labelled(self.beta / np.sqrt(np.diag(self.cov)))

    @property
    def df(self) -> Any:
        """Satterthwaite's degrees of freedom of the t tests that each fixed effect is zero (p,).

        `test`, `tidy` and `summary` offer others.
        """
        return self.model.labelled(self._table()["df"])

    @property
    def df_resid(self) -> int:
        """Observations less estimable fixed effects: the degrees of freedom of ``ddf="residual"``."""
        return self.model.df_resid

    @property
    def pvalues(self) -> Any:
        """Two-sided p-values of the t tests that each fixed effect is zero (p,), with Satterthwaite's df.

        `test`, `tidy` and `summary` offer others.
        """
        return self.model.labelled(self._table()["p_value"])

    def _table(self, ddf: Ddf = "satterthwaite", information: Information = "auto") -> dict[str, Array]:
        from .inference.wald import coefficient_table

        return coefficient_table(self, ddf, information)

    def cov_params(self, *, vcov: Vcov = "model", cluster: Any = None) -> Any:
        """Covariance matrix of the fixed effects (p, p), by default sigma^2 (X'V^-1 X)^-1; a DataFrame for pandas.

        Parameters
        ----------
        vcov, cluster
            For robust covariances, see `test`.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.cov_params().round(3)
                   Intercept   Days
        Intercept     46.575 -1.451
        Days          -1.451  2.389
        """
        from .inference.wald import covariance

        found = covariance(self, robust=self._robust(vcov, cluster))
        if self.model.library != "pandas":
            return found
        import pandas as pd

        names = list(self.model.exog_names)
        return pd.DataFrame(found, index=names, columns=names)

    def _robust(self, vcov: Vcov, cluster: Any) -> Sandwich | None:
        if vcov == "model" and cluster is None:
            return None
        from .inference.sandwich import sandwich

        return sandwich(self, vcov, cluster)

    def conf_int(
        self,
        level: float = 0.95,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        method: Literal["wald", "profile"] = "wald",
        vcov: Vcov = "model",
        cluster: Any = None,
    ) -> Any:
        """Confidence intervals of the fixed effects, or by the profile likelihood of all parameters.

        Parameters
        ----------
        level : float
            Between 0 and 1.
        ddf : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "between-within", "residual", "normal"}
            Degrees of freedom of the Wald intervals.
        information : {"auto", "expected", "observed"}
            For Kenward-Roger, see `test`.
        method : {"wald", "profile"}
            Estimate and t quantile times standard error, or the values at which the profile deviance rises by the
            chi-square quantile: then of standard deviations and correlations too, of which the criterion of the fit
            (REML or ML) is profiled, while fixed effects are by ML; ``profile(reml=False).conf_int()`` has all by ML.
        vcov, cluster
            For robust Wald intervals, see `test`.

        Returns
        -------
        (p, 2) array or a frame with columns conf_low, conf_high
            By profile of all parameters, in the order of ``profile().names``.

        Raises
        ------
        LMMError
            For a level outside (0, 1) or unknown options.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.conf_int().round(2)
                   conf_low  conf_high
        Intercept    237.01     265.80
        Days           7.21      13.73
        """
        if method == "profile":
            if vcov != "model" or cluster is not None:
                raise LMMError("method='profile' is by the likelihood: vcov and cluster go with method='wald'")
            from .inference.profile.profile import confidence_limits

            limits = confidence_limits(self, level)
            return self._limits(tuple(limits), np.array(list(limits.values())))
        if method != "wald":
            raise LMMError(
                f"method={method!r} is unknown: use 'wald' or 'profile'"
                f"{option('method of intervals', method, ('wald', 'profile'))}"
            )
        from .inference.wald import coefficient_intervals

        table = coefficient_intervals(self, level, ddf, information, self._robust(vcov, cluster))
        return self._limits(self.model.exog_names, np.column_stack([table["conf_low"], table["conf_high"]]))

    def _limits(self, names: tuple[str, ...], limits: Array) -> Any:
        model = self.model
        return limits_table(model.library if model.design.labelled else None, names, limits)

    # ---- covariance parameters -----------------------------------------------------------------

    def information_criteria(self) -> Any:
        """AIC and BIC in the ways in which other programs count.

        Returns
        -------
        table of convention, parameters, n, aic, bic
            "lme4": fixed effects and variance parameters, log of the observations, as `aic` and `bic` have them;
            "nlme": by REML log of the observations less the rank of X; "mmrm": variance parameters only, log of the
            independent clusters (subjects); "SAS": as mmrm by REML, with the fixed effects by ML.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.information_criteria().round(1)
          convention  parameters    n     aic     bic
        0       lme4           6  180  1755.6  1774.8
        1       nlme           6  178  1755.6  1774.7
        2       mmrm           4   18  1751.6  1755.2
        3        SAS           4   18  1751.6  1755.2
        """
        from .inference.information_criteria import information_criteria

        return information_criteria(self)

    def residual_parameters(self) -> Any:
        """The parameters of structured residuals in natural units, with standard errors.

        Returns
        -------
        table of term, estimate, std_error
            Variances and covariances of us and cs, standard deviations or variances and correlations of others; by the
            delta method from the observed information.

        Raises
        ------
        LMMError
            Where residuals are independent.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fev = flc.lmm("FEV1 ~ ARMCD * AVISIT", flc.datasets.load("fev"), residual="cs(AVISIT | USUBJID)").fit()
        >>> fev.residual_parameters().round(2)
                     term  estimate  std_error
        0  sigma2|USUBJID     49.35       3.21
        1     cov|USUBJID     12.21       2.85
        """
        from .inference.residual_parameters import residual_parameters_table

        return residual_parameters_table(self)

    def residual_covariance(self) -> Any:
        """The estimated covariance matrix of structured residuals over the visits (m, m).

        Returns
        -------
        DataFrame for pandas, otherwise array; a dict by level of ``by`` where there is one

        Raises
        ------
        LMMError
            Where residuals are independent, or have coordinates instead of visits.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fev = flc.lmm("FEV1 ~ ARMCD * AVISIT", flc.datasets.load("fev"), residual="cs(AVISIT | USUBJID)").fit()
        >>> fev.residual_covariance().round(1)
              VIS1  VIS2  VIS3  VIS4
        VIS1  49.4  12.2  12.2  12.2
        VIS2  12.2  49.4  12.2  12.2
        VIS3  12.2  12.2  49.4  12.2
        VIS4  12.2  12.2  12.2  49.4
        """
        from .inference.residual_parameters import residual_covariance

        return residual_covariance(self)

    # ---- random effects ------------------------------------------------------------------------

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
        model, factor, effects = self.model, self.model.factors[i], self.blups[i]
        if not model.design.labelled:
            return effects
        names = self.effect_names[factor.columns]
        grouping = factor.grouping
        return model.table({grouping.name: grouping.labels, **{n: effects[:, j] for j, n in enumerate(names)}})

    def random_effects_covariance(self, kind: Literal["conditional", "prediction"] = "conditional") -> Any:
        """Covariance of each group's random effects (m, q, q); a dict by factor where there are several.

        Parameters
        ----------
        kind : {"conditional", "prediction"}
            Given y, at the estimated parameters, as lme4's condVar; or of the errors of the BLUPs, with the uncertainty
            of the fixed effects (Henderson 1975, Biometrics 31, 423-447), as SAS prints: what an interval for a
            group's effect needs.  Stated coefficients have none: then both are the same.

        Raises
        ------
        LMMError
            For another kind.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.random_effects_covariance("prediction")[0].round(1)
        array([[171.6, -19.7],
               [-19.7,   7. ]])
        """
        from .prediction.effect_errors import effect_covariances

        return self._by_factor(effect_covariances(self, kind))

    # ---- fitted values -------------------------------------------------------------------------

    @property
    def fittedvalues(self) -> Any:
        """Conditional means X beta + Z b (+ offset) of the rows used (n,): for pandas a Series with their index."""
        return self.model.design.caller_rows.series(self.fitted_mean, "fitted")

    @property
    def marginal_mean(self) -> Any:
        """Means X beta (+ offset) of the rows used (n,): for pandas a Series with their index."""
        return self.model.design.caller_rows.series(self.population_mean, "fitted_population")

    @property
    def resid(self) -> Any:
        """Conditional residuals y - fittedvalues (n,): for pandas a Series with the index of the rows used."""
        return self.model.design.caller_rows.series(self.rest, "resid")

    def residuals(
        self,
        kind: Literal["conditional", "marginal", "pearson", "whitened", "studentized", "within-groups"] = "conditional",
    ) -> Any:
        """Residuals of the rows used.

        Parameters
        ----------
        kind : {"conditional", "marginal", "pearson", "whitened", "studentized", "within-groups"}
            y - X beta - Z b; y - X beta; conditional times sqrt(weights) / sigma; marginal times the inverse Cholesky
            factor of its covariance V_i, which are independent with unit variance under the model; conditional
            divided by its own standard deviation; or what least squares on the columns of X and Z leaves in each group
            alone, of the factor with most levels, whatever the variances are.

        Returns
        -------
        (n,) array
            For pandas a Series with the index of the rows used.

        Raises
        ------
        LMMError
            For another kind.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.residuals("pearson").head(3).round(2)
        0   -0.16
        1   -0.57
        2   -1.65
        Name: resid_pearson, dtype: float64
        """
        from .diagnostics.residuals import residuals

        values = residuals(self, kind)
        return self.model.design.caller_rows.series(values, "resid" if kind == "conditional" else f"resid_{kind}")

    # ---- marginal moments ----------------------------------------------------------------------

    def marginal_covariance(self, subject: Any, factor: str | None = None) -> Array:
        """Covariance matrix V_i = Z_i G Z_i' + sigma^2 / weights of the observations of one subject.

        Parameters
        ----------
        subject : label
        factor : str, optional
            The grouping factor of which it is a level, where there are several; by default the one with fewest levels
            that has it.

        Returns
        -------
        (n_i, n_i) array
            Rows in the order in which they stand in the data.

        Raises
        ------
        LMMError
            For a label that is not in the data.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.marginal_covariance("308")[:2, :2].round(0)
        array([[1267.,  622.],
               [ 622., 1321.]])
        """
        from .diagnostics.marginal import marginal_covariance

        return marginal_covariance(self, subject, factor)

    def marginal_correlation(self, subject: Any, factor: str | None = None) -> Array:
        """Correlation matrix of the observations of one subject (n_i, n_i).

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.marginal_correlation("308")[:2, :2].round(2)
        array([[1.  , 0.48],
               [0.48, 1.  ]])
        """
        from .diagnostics.marginal import marginal_correlation

        return marginal_correlation(self, subject, factor)

    def principal_components(self, correlation: bool = True) -> dict[str, PrincipalComponents]:
        """In how many directions the random effects of each grouping factor vary, and in which.

        Parameters
        ----------
        correlation : bool
            Components of the correlations, which do not depend on units; otherwise of the covariances, as rePCA of lme4
            has them.

        Returns
        -------
        dict of str to PrincipalComponents
            By grouping factor, over all its terms.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("score ~ Machine + (Machine | Worker)", flc.datasets.load("machines")).fit()
        >>> fit.principal_components()["Worker"].rank
        3
        """
        from .diagnostics.principal_components import principal_components

        return principal_components(self, correlation)

    def icc(self) -> Any:
        """Intraclass correlation: share of the random effects in the variance around the fixed part.

        With random slopes the variance z'Gz is averaged over the observations (Johnson 2014, Methods Ecol. Evol.
        5, 944-946), and so is that of the residuals where it differs by weights or structure.

        Returns
        -------
        float
            For one grouping factor.
        dict of str to float
            The share of each factor where there are several.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> round(fit.icc(), 3)
        0.722
        """
        from .diagnostics.marginal import icc

        return icc(self)

    def r2(self) -> dict[str, float]:
        """Marginal and conditional R^2 (Nakagawa and Schielzeth 2013; Johnson 2014 for random slopes).

        Variances of the random effects and of the residuals are averaged over the observations.

        Returns
        -------
        dict
            ``marginal``: share of the fixed part; ``conditional``: of fixed and random part together.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> {name: round(value, 3) for name, value in fit.r2().items()}
        {'marginal': 0.279, 'conditional': 0.799}
        """
        from .diagnostics.marginal import r2

        return r2(self)

    def r2_intervals(self, level: float = 0.95, n_sim: int = 1000, seed: Seed = None) -> Any:
        """Marginal and conditional R^2 with percentile limits of a parametric bootstrap.

        Parameters
        ----------
        level : float
        n_sim : int
            Responses that are drawn from the fit and fitted.
        seed : int, sequence of int, SeedSequence or Generator, optional

        Returns
        -------
        table
            ``estimate``, ``conf_low`` and ``conf_high``.

        Raises
        ------
        LMMError
            For stated parameters, structured residuals, or fewer than two draws.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> bool(fit.r2_intervals(n_sim=200, seed=1)["conf_low"].min() > 0.1)
        True
        """
        from .diagnostics.explained import r2_intervals

        return r2_intervals(self, level, n_sim, seed)

    def partial_r2(self, level: float = 0.95, *, ddf: Ddf = "satterthwaite", information: Information = "auto") -> Any:
        """Semi-partial R^2 of the fixed part and of each term (Edwards et al. 2008, Statist. Med. 27, 6137-6157).

        R^2 = a F / (a F + b), F being the type III test of the term with a and b degrees of freedom: that of a linear
        model in which the test has this outcome.  Edwards used those of Kenward and Roger.

        Parameters
        ----------
        level : float
            Of the limits, which come from the non-central F distribution with the degrees of freedom taken as known
            (Steiger 2004, Psychol. Methods 9, 164-182).
        ddf, information
            See `test`.

        Returns
        -------
        table
            Rows "model" (all terms but the intercept) and each term: ``estimate``, ``conf_low``, ``conf_high``,
            ``statistic``, ``df_num``, ``df_denom``.

        Raises
        ------
        LMMError
            As `anova`, and for ddf="normal".

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> teeth = flc.lmm("distance ~ age + Sex + (1 | Subject)", flc.datasets.load("orthodont")).fit()
        >>> teeth.partial_r2()[["term", "estimate", "conf_low", "conf_high"]].round(2)
            term  estimate  conf_low  conf_high
        0  model      0.77      0.60       0.83
        1    age      0.59      0.45       0.68
        2    Sex      0.27      0.03       0.50
        """
        from .diagnostics.explained import partial_r2

        return partial_r2(self, level, ddf, information)

    def conditional_aic(self) -> ConditionalAIC:
        """The conditional AIC of Greven and Kneib (2010, Biometrika 97, 773-789): of predictions for the same groups.

        Its degrees of freedom count how the data move the fitted values, through the estimated variances as well, so
        that an effect whose variance is estimated as zero costs nothing.  AIC is about new groups.

        Returns
        -------
        ConditionalAIC

        Raises
        ------
        LMMError
            For stated parameters, structured residuals or structured random effects.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> data = flc.datasets.load("sleepstudy")
        >>> flc.lmm("Reaction ~ Days + (Days | Subject)", data).fit().conditional_aic()
        Conditional AIC: 1711.52 (log-likelihood -824.51, 31.25 degrees of freedom, 1.23 of them for variances)
        """
        from .diagnostics.conditional_aic import conditional_aic

        return conditional_aic(self)

    # ---- tests and intervals -------------------------------------------------------------------

    def test(
        self,
        hypothesis: Any,
        rhs: ArrayLike | None = None,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        vcov: Vcov = "model",
        cluster: Any = None,
    ) -> WaldTest:
        """Test linear hypotheses on the fixed effects.

        Parameters
        ----------
        hypothesis : str, sequence of str, mapping or (r, p) array
            ``"Days = 0"``, ``"recipe[T.B] - recipe[T.C] = 0"``, several separated by commas, names of coefficients,
            or L in L beta = rhs.
        rhs : (r,) array, optional
            Values under the hypothesis; zeros by default.
        ddf : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "between-within", "residual", "normal"}
            Denominator degrees of freedom.
        information : {"auto", "expected", "observed"}
            Of the variance parameters, for Kenward-Roger.  "expected": as in Kenward and Roger (1997) and pbkrtest.
            "observed": as in SAS and mmrm.  "auto": expected; where the estimate lies on the boundary (`singular`),
            that of the parameters that are left when what is at the boundary is taken for known.  With a variance of
            0 this is Kenward and Roger's test in the model without it.  There the expected information, which has
            errors of either sign about an estimate that cannot be negative, hardly ever rejects; inside both agree
            in level, and no distance from the boundary makes a difference.  So p jumps as a variance reaches 0, as by
            Satterthwaite's method.
        vcov : {"model", "CR0", "CR1", "CR2", "CR3"}
            Covariance of the coefficients: the model's, or a robust one that holds whatever the covariance within
            clusters is.  CR2 (Bell and McCaffrey) is unbiased where the model is right, and the one to take; CR0 is
            the plain sandwich, CR1 that times m / (m - 1) for m clusters, CR3 about the jackknife's.  Degrees of
            freedom are Satterthwaite's for that estimate, and several rows are tested by Hotelling's T^2 (Pustejovsky
            and Tipton 2018, J. Bus. Econ. Stat. 36, 672-683), which is NaN where clusters are too few for it.
        cluster : str or (n,) array, optional
            What is independent, for a robust covariance: a grouping factor, a column of the data, or a label for each
            row.  By default the rows that share no random effect with others: the levels of the coarsest factor.

        Returns
        -------
        WaldTest

        Raises
        ------
        LMMError
            For unknown coefficients, inestimable hypotheses or unknown options; for a robust covariance without
            independent clusters, as crossed factors have none.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> print(fit.test("Days = 10"))
        Wald test, Satterthwaite's degrees of freedom
        <BLANKLINE>
        Hypothesis  Estimate     SE     df      t      p
        Days = 10    10.4673  1.546  17.00  0.302  0.766
        """
        from .inference.wald import test

        return test(self, hypothesis, rhs, ddf, information, self._robust(vcov, cluster))

    def anova(
        self,
        type: Literal["III", "II", "I"] = "III",
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        vcov: Vcov = "model",
        cluster: Any = None,
    ) -> Any:
        """Analysis of variance: one F test per term of the fixed part.

        Parameters
        ----------
        type : {"III", "II", "I"}
            Each term given all others whatever the coding of factors; given all that do not contain it; in order.
        ddf, information, vcov, cluster
            See `test`.

        Returns
        -------
        AnovaTable

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> teeth = flc.lmm("distance ~ age * Sex + (age | Subject)", flc.datasets.load("orthodont")).fit()
        >>> print(teeth.anova())
        Type III analysis of variance, Satterthwaite's degrees of freedom
        <BLANKLINE>
                    Sum Sq    Mean Sq  NumDF  DenDF      F       p
        age      151.02     151.02         1  25.00  88.00  <0.001
        Sex        0.71795    0.71795      1  25.00   0.42   0.524
        age:Sex    8.7846     8.7846       1  25.00   5.12   0.033
        """
        from .inference.anova import anova

        return anova(self, type, ddf, information, self._robust(vcov, cluster))

    def emmeans(
        self,
        factors: str | Sequence[str],
        *,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        contrasts: Any = None,
        adjust: str | None = None,
        ref: Any = None,
        weights: Literal["equal", "proportional", "cells", "flat"] = "equal",
        transform: Literal["none", "response", "median", "mean"] = "none",
        level: float = 0.95,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        vcov: Vcov = "model",
        cluster: Any = None,
    ) -> MarginalMeans:
        """Estimated marginal means of factors and contrasts of them.

        Parameters
        ----------
        factors : str or sequence of str
            Categorical columns whose means are wanted; numeric ones too where `at` gives their values.
        by : str or sequence of str, optional
            Columns within whose levels contrasts are taken.
        at : mapping, optional
            Values of covariates; by default their means.
        contrasts : {"pairwise", "revpairwise", "reference", "sequential", "effects", "polynomial"} or mapping, optional
            Or names to weights; a mapping of each factor to one of these gives contrasts of contrasts:
            ``{"arm": "pairwise", "week": "consecutive"}``.
        adjust : {"none", "tukey", "mvt", "dunnett", "scheffe", "sidak", "bonferroni", "holm", "fdr"}, optional
            For multiplicity: by default "tukey" for pairwise contrasts, "mvt" against a reference or in sequence, "fdr"
            for effects, "none" otherwise.
        ref : label or tuple of labels, optional
            With what ``contrasts="reference"`` compares: by default with the reference level of the formula's coding.
        weights : {"equal", "proportional", "cells", "flat"}
            Of the levels that are averaged over: equal; by their rows in all data; by the rows of each mean; or equal
            where there are rows and zero elsewhere, for nested factors and empty cells.
        transform : {"none", "response", "median", "mean"}
            For responses like ``log(y)`` and ``sqrt(y)``: medians of y ("response" too), or its means under normal
            errors; comparisons of logarithms are ratios.
        level : float
        ddf, information, vcov, cluster
            See `test`.

        Returns
        -------
        MarginalMeans

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> teeth = flc.lmm("distance ~ age * Sex + (age | Subject)", flc.datasets.load("orthodont")).fit()
        >>> print(teeth.emmeans("Sex", contrasts="pairwise"))
        Sex     Estimate      SE     df   95% CI
        Female   22.6477  0.5861  25.00  21.4406  23.8549
        Male     24.9688  0.4860  25.00  23.9678  25.9697
        <BLANKLINE>
        At age = 11 (mean).
        Interaction of Sex with age: means and their differences depend on it.
        <BLANKLINE>
        contrast       Estimate      SE     df   95% CI               t      p
        Female - Male   -2.3210  0.7614  25.00  -3.8892  -0.7529  -3.05  0.005
        """
        from .inference.means.means import emmeans

        return emmeans(
            self, factors, by=by, at=at, contrasts=contrasts, adjust=adjust, ref=ref, weights=weights,
            transform=transform, level=level, ddf=ddf, information=information, robust=self._robust(vcov, cluster),
        )  # fmt: skip

    def slopes(
        self,
        variable: str,
        factors: str | Sequence[str] | None = None,
        *,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        contrasts: Any = None,
        adjust: str | None = None,
        ref: Any = None,
        weights: Literal["equal", "proportional", "cells", "flat"] = "equal",
        level: float = 0.95,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        vcov: Vcov = "model",
        cluster: Any = None,
    ) -> MarginalMeans:
        """Slopes of a numeric variable within the levels of factors, and contrasts of them.

        Parameters
        ----------
        variable : str
        factors : str or sequence of str, optional
            By default the slope averaged over all factors.
        at : mapping, optional
            Values of covariates, by default their means; several values give a slope each.
        by, contrasts, adjust, ref, weights, level, ddf, information, vcov, cluster
            See `emmeans`.

        Returns
        -------
        MarginalMeans

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> teeth = flc.lmm("distance ~ age * Sex + (age | Subject)", flc.datasets.load("orthodont")).fit()
        >>> print(teeth.slopes("age", "Sex"))
        Sex     Estimate       SE     df   95% CI
        Female   0.4795   0.1037   25.00  0.2659   0.6932
        Male     0.78438  0.08600  25.00  0.60726  0.96149
        <BLANKLINE>
        Slopes along age.
        """
        from .inference.means.means import slopes

        return slopes(
            self, variable, factors, by=by, at=at, contrasts=contrasts, adjust=adjust, ref=ref, weights=weights,
            level=level, ddf=ddf, information=information, robust=self._robust(vcov, cluster),
        )  # fmt: skip

    def update(self, formula: str = ". ~ .", data: Any = None, **options: Any) -> LMMResult:
        """The fit of a changed formula, or of other data, by the same criterion.

        Parameters
        ----------
        formula : str
            Dots stand for the parts of the old formula: ``". ~ . + z"``; see `LinearMixedModel.update`.
        data : table, optional
            By default the same.
        **options
            Of `lmm`: ``weights``, ``offset``, ``residual``, ``variance``, ``fallback``, ``missing``.

        Returns
        -------
        LMMResult

        Raises
        ------
        LMMError
            As `LinearMixedModel.update`.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.update(". ~ . + I(Days**2)").params.round(2)
        Intercept       255.45
        Days              7.43
        I(Days ** 2)      0.34
        dtype: float64
        """
        model: Any = self.model
        other = model.update(formula, data, **options)
        fitted: LMMResult = other.fit(reml=self.reml, **self.way(other))
        return fitted

    def drop1(self, term: str | None = None, **options: Any) -> Comparison:
        """Tests of the terms of the fixed part, by fits without each of them.

        Parameters
        ----------
        term : str, optional
            By default each term that is part of no interaction in the model.
        **options
            ``test``: "lrt", or the F tests "kenward-roger" and "satterthwaite" of the fit by REML, which suit few
            groups; ``null="bootstrap"`` with ``n_sim`` and ``seed``: ratios by the parametric bootstrap.  See
            `inference.likelihood_ratio.drop1.drop1`.

        Returns
        -------
        Comparison
            By maximum likelihood: the model first, then each model without one of the terms.

        Raises
        ------
        LMMError
            For a term that is unknown or part of an interaction, and unknown options.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> teeth = flc.lmm("distance ~ age + Sex + (1 | Subject)", flc.datasets.load("orthodont")).fit()
        >>> found = teeth.drop1(test="kenward-roger").to_frame()
        >>> found[["model", "statistic", "df", "df_denom", "p_value"]].round(3)
                 model  statistic   df  df_denom  p_value
        0    all terms        NaN  NaN       NaN      NaN
        1  without age    114.838  1.0      80.0    0.000
        2  without Sex      9.292  1.0      25.0    0.005
        """
        from .inference.likelihood_ratio.drop1 import drop1

        return drop1(self, term, **options)

    def simplify(self, alpha: float = 0.2, **options: Any) -> Selection:
        """Leave out what the random part does not need, the least needed first, and say what each step costs.

        Each step tries every model with one thing less: the correlations of a term, an effect, a term.  The one with
        the largest p-value, by tests that respect the boundary, is taken as long as that is above `alpha`.

        Parameters
        ----------
        alpha : float
            Matuschek et al. (2017, J. Mem. Lang. 94, 305) recommend 0.2 for random effects.
        **options
            ``null``, ``n_sim`` and ``seed``, see `compare`.

        Returns
        -------
        Selection
            With the steps, and the fit that remains as ``result``.

        Raises
        ------
        LMMError
            For a model from arrays, structured random effects or residuals, or unknown options.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.simplify().formula
        'Reaction ~ Days + (Days || Subject)'
        """
        from .inference.likelihood_ratio.selection import simplify

        return simplify(self, self._same_rows, alpha=alpha, **options)

    def step(self, alpha: float = 0.1, **options: Any) -> Selection:
        """Backward elimination: the random part by tests, as `simplify`, then terms of the fixed part by AIC (ML).

        Parameters
        ----------
        alpha : float
            Of the tests of random effects.
        **options
            ``null``, ``n_sim`` and ``seed``, see `compare`.

        Returns
        -------
        Selection

        Raises
        ------
        LMMError
            As `simplify`.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> print(fit.step())
        Backward elimination
        <BLANKLINE>
           Left out                          Parameters      AIC  Change   LRT  df      p
        1  correlations of (Days | Subject)           5  1753.67   -1.96  0.04   1  0.839
        <BLANKLINE>
        Remaining: Reaction ~ Days + (Days || Subject)
        <BLANKLINE>
        Random effects by likelihood ratio tests at alpha = 0.1, REML; then terms by AIC, by ML.
        <BLANKLINE>
        p-values, standard errors and intervals of what remains do not know that it was selected.
        """
        from .inference.likelihood_ratio.selection import step

        return step(self, self._same_rows, alpha=alpha, **options)

    def _same_rows(self, formula: str) -> LMMResult:
        """The fit of another formula to the rows of this one, though others may be complete for it."""
        from .tables.rows import rows_of_table

        design = self.model.design
        if design.kept is None:
            return self.update(formula)
        given = {"weights": design.weights, "offset": design.offset}
        known = design.origin().options
        kept = {name: values for name, values in given.items() if not isinstance(known.get(name), str)}
        return self.update(formula, rows_of_table(design.origin().table, design.kept), **kept)

    def random_effect_test(self, term: str | None = None, **options: Any) -> Comparison:
        """Test whether each random effect is needed, with the null distribution that is right on the boundary.

        Parameters
        ----------
        term : str, optional
            A random effect, term or grouping factor; by default every effect that can be tested alone.
        **options
            ``null``, ``n_sim`` and ``seed``, see `fastlmm_core.random_effect_test`.

        Returns
        -------
        Comparison

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.random_effect_test("Days").rows[1].null
        '0.5 chi2(1) + 0.5 chi2(2)'
        """
        from .inference.likelihood_ratio.random_effects import random_effect_test

        return random_effect_test(self, term, **options)

    def variance_components(self, level: float = 0.95, *, method: Literal["profile", "wald"] = "profile") -> Any:
        """Variance parameters with standard errors and intervals.

        Standard errors are by the delta method from the observed information of all variance parameters together;
        what lies on the boundary has none (NaN), and those of the others are for the rank found.

        Parameters
        ----------
        level : float
            Of the intervals.
        method : {"profile", "wald"}
            Intervals of standard deviations, correlations and variances: where the profile of the criterion of the fit
            rises by the chi-square quantile, with 0 as the lower limit of a standard deviation where it does not rise
            so far; or symmetric on the scale of the logarithm (Fisher's z for correlations; Pinheiro and Bates 2000,
            sec. 2.4.3, as nlme::intervals), which takes less time, has none on the boundary, and means nothing near
            it.  Those of covariances, of theta, and of all parameters of restricted covariances or beside structured
            residuals are always of this kind: covariances and the off-diagonal theta symmetric, the diagonal of the
            relative Cholesky factor by logarithms.

        Returns
        -------
        frame or dict of arrays
            Columns group, term, kind, estimate, std_error, conf_low, conf_high: first standard deviations and
            correlations (``sd_x|g``, ``cor_x.y|g``, ``sigma``), then variances and covariances (``var_x|g``,
            ``cov_x.y|g``, ``sigma2``), then theta (``theta_x|g``, ``theta_x.y|g``).  The kind is "sd", "cor", "var",
            "cov" or "theta".  Structured residuals have their parameters (see `residual_parameters`) last, in the place
            of sigma, with the kind "range" or "other" besides.

        Raises
        ------
        LMMError
            For a level outside (0, 1) or an unknown method.

        Warns
        -----
        RuntimeWarning
            For profile limits that could not be found, with the reason; they are NaN.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.variance_components()[["term", "estimate", "conf_low", "conf_high"]].head(4).round(2)
                                 term  estimate  conf_low  conf_high
        0        sd_Intercept|Subject     24.74     15.03      39.52
        1  cor_Intercept.Days|Subject      0.07     -0.50       0.67
        2             sd_Days|Subject      5.92      3.93       9.15
        3                       sigma     25.59     22.90      28.86
        """
        from .inference.variance_components import variance_components

        return variance_components(self, level, method)

    def profile(
        self,
        parameters: str | Sequence[str] | None = None,
        level: float = 0.99,
        *,
        reml: bool | None = None,
        progress: bool | None = None,
    ) -> ProfileResult:
        """Profile likelihood of fixed effects, standard deviations and correlations, and of structures.

        Of structured residuals, and of random effects with restricted covariances, the parameters are profiled that
        are reported, as in `residual_parameters`.

        Parameters
        ----------
        parameters : str or sequence of str, optional
            By default all.
        level : float
            The profiles reach the limits of intervals of this level.
        reml : bool, optional
            Of standard deviations, correlations and sigma: profile the REML criterion, or the ML deviance as lme4 does;
            by default as the model was fitted.  Fixed effects are always profiled by ML.
        progress : bool, optional
            Show a progress bar (needs tqdm); by default in interactive sessions.

        Returns
        -------
        ProfileResult

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.profile("sigma", level=0.95).conf_int().round(2)
            term  estimate  conf_low  conf_high note
        0  sigma     25.59      22.9      28.86
        """
        from .inference.profile.profile import profile

        return profile(self, parameters, level, progress, reml)

    # ---- diagnostics ---------------------------------------------------------------------------

    def influence(self, by: str | ArrayLike = "group", *, source: Any = None) -> Influence:
        """Exact refits without each group or observation, and what they change.

        Parameters
        ----------
        by : {"group", "observation"}, name of a grouping factor, or (n,) array
            Of several nested factors "group" is the coarsest; where they are crossed, name one. Subjects of structured
            residuals are groups too.  An array has the label of each row, of the rows used or of the data: rows with
            the same label are left out together, such as all patients of a site.
        source : optional
            The rows once more, for a fit that does not hold them (`fastlmm_core.scan`, with one grouping factor):
            anything that can be scanned.  They are read once, and groups are left out by their sums.

        Returns
        -------
        Influence

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> print(fit.influence())
        Influence of each Subject: 18 exact refits
        <BLANKLINE>
        unit  Cook's D  MDFFITS  COVRATIO     largest DFBETAS         largest rel. variance change
        309     0.1485   0.1878    0.8897  -0.411 (Intercept)    -2.6 (cov_Intercept.Days|Subject)
        335     0.1295   0.1553    0.9379       -0.556 (Days)   +1.08 (cov_Intercept.Days|Subject)
        337      0.126   0.1497    0.9467  +0.334 (Intercept)   -2.32 (cov_Intercept.Days|Subject)
        310     0.1105   0.1261    0.9859  -0.428 (Intercept)   -1.44 (cov_Intercept.Days|Subject)
        308    0.09242   0.1008     1.032       +0.449 (Days)  -0.152 (cov_Intercept.Days|Subject)
        <BLANKLINE>
        0 singular, 0 not certified or without a fit
        """
        from .diagnostics.influence import influence

        return influence(self, by, source)

    def residual_tests(self, max_lag: int = 3, time: Any = None) -> Any:
        """Tests of normality, equal variance, independence and outlying groups.

        Parameters
        ----------
        max_lag : int
            Of the autocorrelations tested.
        time : str or (nobs,) array, optional
            By which to order the rows of a group; by default as they stand.  A Series is aligned by its index; values
            for all rows of the data serve too.

        Returns
        -------
        frame or dict of arrays

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.residual_tests()[["test", "p_value"]].head(3).round(3)
                   test  p_value
        0  Shapiro-Wilk    0.000
        1  Shapiro-Wilk    0.428
        2  Shapiro-Wilk    0.898
        """
        from .diagnostics.assumptions import residual_tests

        return residual_tests(self, max_lag, time)

    def mahalanobis(self, factor: str | None = None) -> Any:
        """Distance of each group's random effects from zero, and whether it is an outlier.

        Parameters
        ----------
        factor : str, optional
            Grouping factor, where there are several.

        Returns
        -------
        frame or dict of arrays

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.mahalanobis().head(3).round(2)
          Subject  distance  df  p_value
        0     308      3.14   2     0.21
        1     309      5.05   2     0.08
        2     310      3.76   2     0.15
        """
        from .diagnostics.assumptions import mahalanobis

        return mahalanobis(self, factor)

    def autocorrelation(self, max_lag: int = 5, time: Any = None, factor: str | None = None) -> Any:
        """Autocorrelation of the whitened residuals within groups, by lag.

        Parameters
        ----------
        max_lag : int
        time : str or (nobs,) array, optional
            Time of each row, used or of the data, on a grid within groups: lags count its steps.  By default lags count
            rows.  A Series is aligned by its index.
        factor : str, optional
            Grouping factor, where there are several.

        Returns
        -------
        frame or dict of arrays

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.autocorrelation(2).round(2)
           lag  pairs  autocorrelation     z  p_value
        0    1    162             0.26  3.26     0.00
        1    2    144             0.01  0.10     0.92
        """
        from .diagnostics.autocorrelation import autocorrelation

        return autocorrelation(self, max_lag, time, factor)

    def pooling(self, term: str | None = None) -> Pooling:
        """No, complete and partial pooling of each group's coefficients, their shrinkage and reliability.

        Parameters
        ----------
        term : str, optional
            A random-effects term; by default all terms of the first grouping factor.

        Returns
        -------
        Pooling

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> print(fit.pooling())
        Pooling of 18 levels of Subject, 18 with estimates of their own
        <BLANKLINE>
        Subject          n  Intercept: own  pooled  shrinkage  reliability  Days: own    pooled  shrinkage  reliability
        308             10          244.19  253.66    0.75129      0.73012    21.765   19.666      0.83824      0.81542
        309             10          205.05  211.01    0.75129      0.73012     2.2618   1.8476     0.83824      0.81542
        310             10          203.48  212.44    0.75129      0.73012     6.1149   5.0184     0.83824      0.81542
        330             10          289.69  275.10    0.75129      0.73012     3.0081   5.6530     0.83824      0.81542
        331             10          285.74  273.67    0.75129      0.73012     5.2660   7.3974     0.83824      0.81542
        332             10          264.25  260.44    0.75129      0.73012     9.5668  10.195      0.83824      0.81542
        333             10          275.02  268.25    0.75129      0.73012     9.1420  10.244      0.83824      0.81542
        334             10          240.16  244.17    0.75129      0.73012    12.253   11.542      0.83824      0.81542
        335             10          263.03  251.07    0.75129      0.73012    -2.8810  -0.28487    0.83824      0.81542
        337             10          290.10  286.30    0.75129      0.73012    19.026   19.096      0.83824      0.81542
        ... and 8 more
        <BLANKLINE>
        Mean reliability: Intercept 0.730, Days 0.815
        """
        from .diagnostics.pooling import pooling

        return pooling(self, term)

    def design_effect(self) -> DesignEffect:
        """How much the grouping inflates the variance of a mean and of the fixed effects.

        Returns
        -------
        DesignEffect

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> print(fit.design_effect())
        Design effect of the mean 6.265, effective sample size 31.4
        <BLANKLINE>
                 Rows per level    ICC   Kish
        Subject            10.0  0.722  7.495
        <BLANKLINE>
                   Variance ratio
        Intercept           1.612
        Days                1.552
        """
        from .diagnostics.design_effect import design_effect

        return design_effect(self)

    def marginal_covariance_at(self, at: Any) -> MarginalCovariance:
        """Covariance and correlation of a new subject's observations at given values.

        Parameters
        ----------
        at : frame, (k, q) array, or values of the only variable of the random part

        Returns
        -------
        MarginalCovariance

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> print(fit.marginal_covariance_at([0, 9]))
        Standard deviations and correlations of observations of one group at 2 points
        <BLANKLINE>
        z        SD    ICC   1, 0   1, 9
        1, 0   35.6  0.483  1.000  0.300
        1, 9  65.43  0.847  0.300  1.000
        """
        from .diagnostics.marginal import marginal_covariance_at

        return marginal_covariance_at(self, at)

    def icc_at(self, at: Any) -> Array:
        """Intraclass correlation of two observations at given values, by the random effects.

        Parameters
        ----------
        at : frame, (k, q) array, or values of the only variable of the random part

        Returns
        -------
        (k,) array

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.icc_at([0, 9]).round(3)
        array([0.483, 0.847])
        """
        from .diagnostics.marginal import icc_at

        return icc_at(self, at)

    def least_variance_time(self) -> LeastVariance:
        """Where subjects with random slopes differ least, and whether they fan out or in from there.

        Returns
        -------
        LeastVariance

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.least_variance_time()
        The lines fan out: the variance is smallest at Days = -0.2738 (1264.4), below the observed range 0 to 9.
        """
        from .diagnostics.marginal import least_variance_time

        return least_variance_time(self)

    def contextual_effect(
        self, x: str | Sequence[str] | None = None, *, factor: str | None = None, ddf: Ddf = "satterthwaite"
    ) -> ContextualEffect:
        """Test whether a covariate acts alike within and between groups (Mundlak 1978, Econometrica 46, 69-85).

        Parameters
        ----------
        x : str or sequence of str, optional
            A coefficient; by default all that vary within groups, jointly.
        factor : str, optional
            Grouping factor of the means, where there are several.
        ddf : str
            See `test`.

        Returns
        -------
        ContextualEffect

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> data = flc.datasets.load("machines")
        >>> data["x"] = data.score.rank()
        >>> flc.lmm("score ~ x + (1 | Worker)", data).fit().contextual_effect()
        Effects within groups and between their means
        <BLANKLINE>
           Within  Between  Difference      SE   df      p
        x  0.4927   0.5224     0.02968  0.0426  5.5  0.514
        """
        from .diagnostics.context import contextual_effect

        return contextual_effect(self, x, factor=factor, ddf=ddf)

    # ---- other parameters, other rows ----------------------------------------------------------

    def at(
        self,
        params: Any = None,
        G: Any = None,
        sigma2: float | None = None,
        *,
        R: Any = None,
        data: Any = None,
        weights: Any = None,
        offset: Any = None,
    ) -> LMMResult:
        """The same model at other parameters, on other rows, or both; nothing is estimated.

        Parameters
        ----------
        params : mapping of coefficient name to value, (p,) array, or "gls", optional
            Those that a mapping does not name stay.  "gls": the generalised least squares estimates of the response at
            these variances.
        G : mapping of term to matrix, (q, q) array, or number, optional
            Covariance matrix of the random effects; terms that a mapping does not name stay.
        sigma2 : float, optional
            Residual variance.
        R : mapping of parameter to value, array in their order, or matrix, optional
            Of structured residuals, instead of sigma2: those that a mapping does not name stay.  See
            `fastlmm_core.assume`.
        data : frame, or mapping with "X", "Z", "groups" and perhaps "y", optional
            Rows in the place of those of this result, coded as they were (arrays with "residual", a `Residual`, where
            the residuals have a structure).  Without a response there are no random
            effects, residuals and log-likelihood.  Groups are those of these rows, whatever they are called.
        weights, offset : arrays, optional
            Of the rows of `data`.

        Returns
        -------
        LMMResult
            With ``stated`` set.

        Raises
        ------
        LMMError
            For parameters or rows that do not fit the model.

        Examples
        --------
        The log-likelihood of some subjects at the estimates from the others:

        >>> import fastlmm_core as flc
        >>> sleep = flc.datasets.load("sleepstudy")
        >>> held_out = sleep.Subject > "360"
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", sleep[~held_out]).fit()
        >>> round(fit.at(data=sleep[held_out]).llf, 2)
        -187.62

        How the random effects would be shrunken if subjects differed less:

        >>> half = fit.at(G=fit.G["Subject"] / 4.0)
        >>> bool(half.random_effects.Days.std() < fit.random_effects.Days.std())
        True
        """
        from .estimation.stated import moved
        from .prediction.other_rows import on_rows

        if data is None and (weights is not None or offset is not None):
            raise LMMError("weights and offset are those of data: give data too")
        model = None if data is None else on_rows(self.model, data, weights, offset)
        return moved(self, params, G, sigma2, model, R)

    def log_likelihood(self, reml: bool = False) -> float:
        """Log-likelihood of the response at the parameters of this result.

        Parameters
        ----------
        reml : bool
            The restricted one, of the variance parameters only.

        Returns
        -------
        float
            For a fit its ``llf`` by the criterion that was maximised; by the other its value at the same parameters.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> round(fit.log_likelihood(), 3), round(fit.log_likelihood(reml=True), 3)
        (-875.999, -871.814)
        """
        from .estimation.likelihood import log_likelihood

        return log_likelihood(self, reml)

    # ---- prediction and resampling -------------------------------------------------------------

    def predict(
        self,
        data: Any = None,
        effects: str | Sequence[str] = "population",
        new_levels: Literal["error", "population"] = "error",
        interval: Literal["confidence", "prediction"] | None = None,
        *,
        level: float = 0.95,
        observed: Any = None,
        random_effects: Any = None,
        offset: Any = None,
        weights: Any = None,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        missing: Literal["raise", "nan"] = "raise",
        transform: Literal["none", "response"] = "none",
    ) -> Any:
        """Predicted means, for the population or for subjects.

        Parameters
        ----------
        data : frame, or mapping with "X" and (for subjects) "Z" and "groups", optional
            New rows: a table for a model from a formula, arrays for a model from arrays (with several grouping factors
            "Z" and "groups" are mappings by factor; "residual" is a `Residual` where the residuals have a structure).
            By default the rows used.
        effects : {"population", "all"}, or name of a grouping factor or several
            X beta, or X beta + Z b with the BLUPs b of the row's groups: of all factors, or of those named.  Where the
            residuals have a structure, "all" is the mean of a new row given the rows observed of its subject, such as
            that of a missed visit given the others (a row that was observed is then itself); the rows used have
            residuals of their own, and the mean X beta + Z b.
        new_levels : {"error", "population"}
            What to do with groups that are not in the data: refuse, or use b = 0.
        interval : {"confidence", "prediction"}, optional
            Also give limits: for the mean, or for a new observation.  Uncertainty in beta and b is included (Henderson
            1975, Biometrics 31, 423-447), that in the variance parameters by the degrees of freedom; those of rows of
            known groups are at least 1.  With structured residuals the mean of a new row is that given the random
            effects and the residuals observed, an observation has what these leave of its own residual.
        level : float
            Of the intervals.
        observed : frame, or mapping with "y", "X", "Z" and "groups", optional
            A few observations of subjects that are not in the data: their BLUPs follow from the parameters.
            With several factors these rows may have old levels of some and new levels of others.  Structured residuals
            need subjects that are not in the data.
        random_effects : frame, array, or mapping of grouping factor to either, optional
            Values to be added instead of BLUPs, in the form of `random_effects`, taken as known: with a column set to
            0, a part of the effects.
        offset, weights : arrays, optional
            Of the new rows.  An offset given by column name is taken from `data`; so are weights, where `data` have the
            column, and are 1 otherwise, those of a plain observation.
        ddf : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "between-within", "residual", "normal"}
            Degrees of freedom of the intervals.  Satterthwaite: those of the estimated variance of the mean or, for a
            new observation, of its total variance (for a new subject x' var(beta^) x + z'Gz + sigma^2), by the delta
            method; with several grouping factors normal quantiles for rows of known levels.  Kenward-Roger: the
            variance is adjusted too, for rows of known groups of one factor by what the estimation of G adds to the
            error of the prediction (Kackar and Harville 1984, J. Am. Statist. Assoc. 79, 853-862; Prasad and Rao 1990,
            ibid. 85, 163-171), with at least the degrees of freedom of the stratum between groups; the one to take for
            known groups where groups are few.  With structured residuals Satterthwaite's are those of any rows, and
            Kenward and Roger's those of populations.  Stated parameters are known: normal quantiles.
        information : {"auto", "expected", "observed"}
            For Kenward-Roger, see `test`; "auto" is the expected one for known groups, so that a variance estimated as
            0 is not taken for known.
        missing : {"raise", "nan"}
            Rows of a table with missing values in columns that the prediction needs: refused, or NaN.
        transform : {"none", "response"}
            "response": of a model of log(y), log2, log10, log1p or sqrt, medians of y, with limits that are those of
            the model transformed, and standard errors by the delta method.

        Returns
        -------
        (n,) array
            Without interval; for pandas a Series.
        dict of arrays or frame
            With interval: ``mean`` (``median`` with ``transform="response"``), ``std_error`` (of the mean, or of a new
            observation), ``df``, ``conf_low``, ``conf_high``.

        In the library of `data`, for pandas with its index (without `data` that of the rows used; other libraries have
        a column ``row`` with their positions where rows were dropped).

        Warns
        -----
        UserWarning
            Where rows depend on dropped columns of X (a cell without data, an aliased covariate at values of its own):
            they cannot be estimated and are NaN.

        Raises
        ------
        LMMError
            For unknown groups (named), unknown options, or arrays that do not fit the model.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> new = {"Subject": ["308", "335"], "Days": [10, 10]}
        >>> fit.predict(new).round(1)
        0    356.1
        1    356.1
        Name: mean, dtype: float64
        >>> fit.predict(new, "all").round(1)
        0    450.3
        1    248.2
        Name: mean, dtype: float64
        >>> found = fit.predict(new, "all", interval="prediction")
        >>> [round(float(limit), 1) for limit in found["conf_low"]]
        [390.9, 188.8]
        """
        from .prediction.predict import prediction

        return prediction(
            self,
            data,
            effects,
            new_levels=new_levels,
            interval=interval,
            level=level,
            observed=observed,
            offset=offset,
            weights=weights,
            ddf=ddf,
            information=information,
            random_effects=random_effects,
            missing=missing,
            transform=transform,
        )

    def predict_along(
        self,
        x: str,
        points: int = 51,
        *,
        low: float | None = None,
        high: float | None = None,
        factor: str | None = None,
        data: Any = None,
    ) -> Any:
        """Predictions for each group along a range of one variable, the others at the group's own values.

        Parameters
        ----------
        x : str
            A numeric variable of the model.
        points : int
            Values of it, evenly spaced.
        low, high : float, optional
            By default the range of the data.
        factor : str, optional
            The grouping factor; by default that with most levels.
        data : table, optional
            The data of the fit, where a result from a file has lost them.

        Returns
        -------
        table
            With the group, x, ``fitted_population`` and ``fitted``.  Other numeric variables are at the mean of the
            group, factors at its most frequent level (of several the first), as in nlme's augPred.

        Raises
        ------
        LMMError
            For a model from arrays, an unknown or categorical variable, or a range that is none.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.predict_along("Days", points=3).head(3).round(1)
           Subject  Days  fitted_population  fitted
        0      308   0.0              251.4   253.7
        1      308   4.5              298.5   342.2
        2      308   9.0              345.6   430.7
        """
        from .prediction.along import predictions_along

        return predictions_along(self, x, points, low, high, factor, data)

    def bootstrap(
        self,
        n: int = 1000,
        kind: Literal["parametric", "conditional", "residual", "cases"] = "parametric",
        statistic: Callable[[Fit], Any] | None = None,
        seed: Seed = None,
        *,
        n_jobs: int | None = None,
        progress: bool | None = None,
        first: int = 0,
    ) -> BootstrapResult:
        """Bootstrap the fit.

        Parameters
        ----------
        n : int
            Replicates.
        kind : {"parametric", "conditional", "residual", "cases"}
            New random effects and errors from the fitted distributions; new errors only, the BLUPs kept
            (understates the uncertainty: intervals condition on these very subjects); BLUPs and residuals resampled
            after rescaling to the estimated covariances (Carpenter, Goldstein and Rasbash 2003, Appl. Statist. 52,
            431-443); whole groups (the coarsest, where factors
            are nested) resampled.
        statistic : callable, optional
            Of an LMMResult, returning a number, an array, or numbers by name (dict or Series, whose names are kept); by
            default all parameters.  Slower, as each replicate becomes a result.
        seed : int, sequence of int, SeedSequence or Generator, optional
        n_jobs : int, optional
        progress : bool, optional
        first : int
            Place in the stream of the seed of the first replicate: a run can be split over processes, of which each
            makes a part of it with the same seed, and joined again by `BootstrapResult.join`.

        Returns
        -------
        BootstrapResult

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.bootstrap(200, seed=1)
        Parametric bootstrap: 200 replicates, 2.0 % singular, 0 not certified
        <BLANKLINE>
                                    Estimate     SE    Bias    2.5 %   97.5 %
        Intercept                    251.41   6.7     0.38   237.84   263.80
        Days                          10.47   1.65    0.16     6.82    13.59
        sd_Intercept|Subject          24.74   5.44   -0.44    14.24    34.09
        cor_Intercept.Days|Subject     0.066  0.366   0.039   -0.560    0.931
        sd_Days|Subject                5.92   1.29   -0.40     3.58     8.79
        sigma                         25.59   1.46   -0.22    23.48    28.95
        """
        from .simulation.bootstrap import bootstrap

        return bootstrap(self, n, kind, statistic, seed, n_jobs, progress, first)

    def simulate(
        self,
        n: int = 1,
        seed: Seed = None,
        first: int = 0,
        *,
        data: Any = None,
        effects: str | Sequence[str] = "population",
        random_effects: Any = None,
        weights: Any = None,
        offset: Any = None,
        draw: Any = "normal",
        dropout: Dropout | None = None,
    ) -> Array:
        """Responses with new random effects and errors: those of `simulate_fit` for the same seed.

        Parameters
        ----------
        n : int
            Number of responses.
        seed : int, sequence of int, SeedSequence or Generator, optional
        first : int
            Place of the first of them in the stream of the seed.
        data : frame, or mapping with "X", "Z" and "groups", optional
            Other rows than those of the fit, as for `predict`.
        effects : {"population", "all"}, or name of a grouping factor or several
            Of which factors the BLUPs are kept; the effects of all others, and of levels without data, are drawn anew.
            With structured residuals and `data`, "all" draws residuals given those observed of a subject.
        random_effects : frame, array, or mapping of grouping factor to either, optional
            Values that are kept instead of BLUPs, in the form of `random_effects`; those of levels that are not given
            are drawn.
        weights, offset : arrays, optional
            Of the rows of `data`; those given by column name for the model are taken from there.
        draw : str or callable
            As for `simulate_fit`.
        dropout : Dropout, optional
            Who leaves before the end, of the rows of the model: NaN where a response is not observed.

        Returns
        -------
        (n, nobs) array
            With as many columns as there are rows of `data`, if given.

        Raises
        ------
        LMMError
            For rows or effects that do not fit the model.

        Examples
        --------
        What the next day may be like for two drivers, one of whom has been observed:

        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> draws = fit.simulate(1000, 1, data={"Subject": ["335", "new"], "Days": [10, 10]}, effects="all")
        >>> draws.std(axis=0).round(-1)
        array([30., 70.])
        """
        from .simulation.draws import simulate

        if data is None and random_effects is None and isinstance(effects, str) and effects == "population":
            if dropout is not None:
                from .simulation.dropout import simulate_with_dropout

                return simulate_with_dropout(self, n, seed, first, draw, dropout)
            return simulate(self, n, seed, first, how=draw)
        if dropout is not None:
            raise LMMError("dropout is of the rows of the model; leave out data=, effects= and random_effects=")
        from .prediction.kept_effects import keeping

        source, fresh = keeping(self, data, effects, random_effects, weights, offset)
        return simulate(source, n, seed, first, fresh, draw)

    @overload
    def simulate_fit(
        self,
        n: int,
        seed: Seed = None,
        *,
        reml: bool | None = None,
        n_jobs: int | None = None,
        progress: bool | None = None,
        fit: Model | None = None,
        first: int = 0,
        draw: Any = "normal",
        dropout: None = None,
    ) -> BatchResult: ...

    @overload
    def simulate_fit(
        self,
        n: int,
        seed: Seed = None,
        *,
        reml: bool | None = None,
        n_jobs: int | None = None,
        progress: bool | None = None,
        fit: Model | None = None,
        first: int = 0,
        draw: Any = "normal",
        dropout: Dropout,
    ) -> MaskedBatch: ...

    def simulate_fit(
        self,
        n: int,
        seed: Seed = None,
        *,
        reml: bool | None = None,
        n_jobs: int | None = None,
        progress: bool | None = None,
        fit: Model | None = None,
        first: int = 0,
        draw: Any = "normal",
        dropout: Dropout | None = None,
    ) -> BatchResult | MaskedBatch:
        """Draw n responses and fit each, without storing the responses.

        Parameters
        ----------
        n : int
        seed : int, sequence of int, SeedSequence or Generator, optional
            Streams are counter-based: the same seed gives the same result for any number of threads.
        reml : bool, optional
            By default as this fit.
        n_jobs : int, optional
            Threads; by default one per processor.
        progress : bool, optional
            Show a progress bar (needs tqdm); by default in interactive sessions.
        fit : LinearMixedModel, optional
            A model of the same observations to fit instead of this one, e.g. a reduced one.
        first : int
            Place in the stream of the seed of the first response drawn: parts of a run made with the same seed, in one
            process or in several, are those of the whole.  A part that begins with a block (of 64 to 2,048 responses)
            draws nothing in vain.
        draw : str or callable
            Distribution of the random effects, before they are given their covariance, and of the errors: "normal";
            "t(5)", of so many degrees of freedom; "skewed(1)", gamma of so much skewness; all scaled to the variances
            of this model.  Or a function (rng, count) that returns (count, nobs) responses: the same for the same
            state of the generator, and the first rows of a larger draw for a smaller count.
        dropout : Dropout, optional
            Who leaves before the end; each draw is then fitted on the responses that are observed, and they are stored.

        Returns
        -------
        BatchResult
            Or a `MaskedBatch`, with dropout.

        Raises
        ------
        LMMError
            For an unknown distribution, or a function that returns something else.

        Examples
        --------
        How the intervals of a slope fare where all effects are heavy-tailed:

        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> study = fit.simulate_fit(4000, seed=1, draw="t(3)").summarise(fit)
        >>> bool(abs(study.cover[1] - 0.95) < 0.02)
        True
        """
        from .batch_result import BatchResult
        from .simulation.draws import drawn_model, simulate_into

        by_reml = self.reml if reml is None else reml
        if dropout is not None:
            from .inference.many.values import Run, fit_with_holes

            model = drawn_model(self, fit)
            observed = self.simulate(n, seed, first=first, draw=draw, dropout=dropout)

            def empty(own: Model, count: int, responses: Any) -> BatchResult:
                return BatchResult(own, type(self), by_reml, count, responses)

            return fit_with_holes(model, empty, type(self), by_reml, observed, Run(n_jobs, progress))
        return simulate_into(
            BatchResult, self, n, seed, reml=by_reml, n_jobs=n_jobs, progress=progress, fit=fit, kind=type(self),
            first=first, how=draw,
        )  # fmt: skip

    # ---- files ---------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write this result to a file, from which `fastlmm_core.load` makes it again.

        The file is a zip archive of a JSON document and arrays: it needs no pickle, and can be read without this
        library (see the page on the file format).  It holds the rows of the model, not the caller's table.

        Parameters
        ----------
        path : str or path
            A file that is there is replaced.

        Raises
        ------
        LMMError
            For transforms that keep objects other than numbers and text, or a file that cannot be written.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     fit.save(Path(folder) / "sleep.flc")
        ...     again = flc.load(Path(folder) / "sleep.flc")
        >>> again
        <LMMResult: REML criterion 1743.628272, certified>
        """
        from .archive.results import write

        write(self, path)

    # ---- presentation --------------------------------------------------------------------------

    def summary(
        self,
        level: float = 0.95,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        vcov: Vcov = "model",
        cluster: Any = None,
    ) -> Summary:
        """Tables of the fit as text and HTML.

        Parameters
        ----------
        level : float
            Of the confidence intervals.
        ddf, information, vcov, cluster
            Degrees of freedom and covariance of tests and intervals, see `test`.

        Returns
        -------
        Summary
            Prints as text; shows as HTML in notebooks.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> teeth = flc.lmm("distance ~ age + Sex + (1 | Subject)", flc.datasets.load("orthodont")).fit()
        >>> print(teeth.summary())
        Linear mixed model fit by REML
        distance ~ age + Sex + (1 | Subject)
        <BLANKLINE>
        Observations: 108                                  REML criterion:  437.513
        Groups:       27 (Subject)                         Log-likelihood: -218.756
        ICC:          0.614                                AIC:             447.513
        R2:           0.398 marginal, 0.768 conditional    BIC:             460.923
        <BLANKLINE>
        Random effects
        Group     Name       Variance  Std.dev.
        Subject   Intercept    3.2668    1.8074
        Residual               2.0495    1.4316
        <BLANKLINE>
        Fixed effects
        Name         Estimate       SE    df      t       p   95% CI
        Intercept    15.3857   0.8960   87.6  17.17  <0.001  13.605   17.166
        age           0.66019  0.06161  80.0  10.72  <0.001   0.5376   0.7828
        Sex[T.Male]   2.3210   0.7614   25.0   3.05   0.005   0.753    3.889
        <BLANKLINE>
        t tests and intervals with Satterthwaite's degrees of freedom.
        Optimum certified after 1 evaluation (gradient ...).
        """
        from .report.summary import Summary

        return Summary.of(self, level, ddf, information, self._robust(vcov, cluster))

    def tidy(
        self,
        effects: Literal["fixed", "ran_pars", "ran_vals"] = "fixed",
        level: float = 0.95,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        vcov: Vcov = "model",
        cluster: Any = None,
    ) -> Any:
        """One row per estimate, in the caller's own frame library (a dict of arrays for models from arrays).

        Parameters
        ----------
        effects : {"fixed", "ran_pars", "ran_vals"}
            Coefficients; standard deviations and correlations; BLUPs with conditional standard errors.
        level : float
        ddf, information, vcov, cluster
            Degrees of freedom and covariance of tests and intervals, see `test`.

        Returns
        -------
        frame or dict of arrays

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.tidy()[["term", "estimate", "std_error", "df"]].round(2)
                term  estimate  std_error    df
        0  Intercept    251.41       6.82  17.0
        1       Days     10.47       1.55  17.0
        """
        from .report.tidy import tidy_columns

        return self.model.table(tidy_columns(self, effects, level, ddf, information, self._robust(vcov, cluster)))

    def _augment_pieces(self, data: Any, path: Any, prefix: str) -> Any:
        from .design.streamed import refuse_rows
        from .streams.rows import augmented, write_augmented
        from .streams.source import scan

        if data is None:
            refuse_rows("the table")
        design: Any = self.model.design
        tables = augmented(design, self.beta, self.blups, scan(data), prefix)
        if path is None:
            return tables
        write_augmented(tables, path)
        return None

    def augment(self, data: Any = None, path: str | PathLike[str] | None = None, *, prefix: str = "") -> Any:
        """The rows of the data with what the fit says of each, as broom's.

        Of a fit whose rows are not held (`fastlmm_core.scan`), `data` is anything that can be scanned: it is read once
        more, and its rows come with ``fitted``, ``fitted_population``, ``resid`` and ``resid_marginal``, null where
        values are missing, as an iterator over tables of pyarrow, or in the Parquet file `path`.

        Parameters
        ----------
        data : table, optional
            The data of the fit, whose columns are wanted too: for pandas rows are found by label, otherwise the table
            has the rows of the data or those used.  By default the response, the columns of X and Z and the groups.
        path : str or path, optional
            File to be written, for rows that are not held.
        prefix : str
            Of the names of the columns that are added.

        Returns
        -------
        frame in the library of the data, or dict of arrays
            Nothing where a file is written.  One row per row used, for pandas with its index (other libraries have a
            column ``row`` with the positions where rows were dropped).  Added are ``fitted`` and
            ``fitted_population`` (with and without the random
            effects), ``resid`` and ``resid_marginal``, ``resid_pearson``, ``resid_whitened``, ``resid_studentized``
            (see `residuals`), ``leverage`` and its parts ``leverage_fixed`` and ``leverage_random``, ``cooks_distance``
            of the coefficients at the variance parameters of the fit (`influence` estimates these anew), and each
            random effect of the group of the row as ``effect|factor``.  Models with structured residuals have neither
            studentised residuals nor leverage and Cook's distance.

        Raises
        ------
        LMMError
            Where the data have a column of such a name, or are not those of the fit.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> sleep = flc.datasets.load("sleepstudy", "pandas")
        >>> rows = flc.lmm("Reaction ~ Days + (Days | Subject)", sleep).fit().augment(sleep)
        >>> rows[["Subject", "Days", "fitted", "resid", "Days|Subject"]].round(1).head(2)
          Subject  Days  fitted  resid  Days|Subject
        0     308     0   253.7   -4.1           9.2
        1     308     1   273.3  -14.6           9.2
        """
        if self.model.streamed:
            return self._augment_pieces(data, path, prefix)
        if path is not None:
            raise LMMError("path is for rows that are not held; write the table that augment() returns")
        from .diagnostics.augment import augment

        return augment(self, data, prefix)

    def glance(self) -> Any:
        """One row about the fit, to be stacked with those of other fits, as broom's.

        Returns
        -------
        frame in the library of the data, or dict of arrays
            ``nobs``, the levels of each factor ``n_groups_factor``, ``df_resid``, ``n_parameters``, ``sigma``, ``llf``,
            ``criterion``, ``aic``, ``bic``, ``r2_marginal``, ``r2_conditional`` (see `r2`), ``reml``, ``converged``,
            ``singular``.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy", "pandas")).fit()
        >>> fit.glance()[["nobs", "n_groups_Subject", "criterion", "aic"]].round(2)
           nobs  n_groups_Subject  criterion      aic
        0   180                18    1743.63  1755.63
        """
        from .report.glance import glance_columns

        return self.model.table(glance_columns(self))

    def report(
        self,
        level: float = 0.95,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "auto",
        vcov: Vcov = "model",
        cluster: Any = None,
    ) -> str:
        """One paragraph about the fit as one writes it in a paper: design, estimation, estimates, variances.

        Parameters
        ----------
        level : float
            Of the confidence intervals.
        ddf, information, vcov, cluster
            Degrees of freedom and covariance of tests and intervals, see `test`.

        Returns
        -------
        str
            Terms of one column with estimate, standard error, interval and t test, terms of several by their type III
            F test.

        Raises
        ------
        LMMError
            At stated parameters, a level outside (0, 1) or unknown options.

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.report().partition(" with ")[0]
        'Reaction was analysed by a linear mixed model'
        """
        from .report.paragraph import paragraph

        return paragraph(self, level, ddf, information, self._robust(vcov, cluster))

    def plot(self, x: str | None = None, by: str | None = None, *, data: bool = False) -> Any:
        """Four plots: data and fit, random effects, residuals against fitted values, quantiles (extra ``plot``).

        Parameters
        ----------
        x, by : str, optional
            Variable and colours of the first plot, chosen from the model by default; see `plots.overview`.
        data : bool
            Return what would be drawn, a tidy table for each plot by its title, and draw nothing.

        Returns
        -------
        (2, 2) array of Axes, or dict of tables

        Examples
        --------
        >>> import fastlmm_core as flc
        >>> fit = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy")).fit()
        >>> fit.plot().shape
        (2, 2)
        """
        from .plots.overview import overview

        return overview(self, x, by, data=data)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    # what the package maketables asks for, see `report.maketables`

    @property
    def __maketables_coef_table__(self) -> Any:
        return self.summary().__maketables_coef_table__

    def __maketables_stat__(self, key: str) -> Any:
        return self.summary().__maketables_stat__(key)

    @property
    def __maketables_depvar__(self) -> str:
        return self.model.response_name

    def __str__(self) -> str:
        return str(self.summary())

    def __repr__(self) -> str:
        if self.stated is not None:
            values = ", ".join(f"{n}={v:g}" for n, v in zip(self.model.exog_names, self.beta.tolist(), strict=True))
            seen = "" if self.model.has_response else ", without a response"
            return f"<LMMResult at stated parameters: {values}; {self.model!r}{seen}>"
        kind = "REML" if self.reml else "ML"
        state = "certified" if self.converged else "NOT certified"
        return f"<LMMResult: {kind} criterion {self.criterion:.6f}, {state}{', singular' if self.singular else ''}>"
