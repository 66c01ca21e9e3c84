"""What one can do with a fit or an assumed model: the methods whose work is done in modules of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .simulation.draws import Simulating

if TYPE_CHECKING:
    from .diagnostics.influence import Influence
    from .diagnostics.marginal import LeastVariance, MarginalCovariance
    from .diagnostics.pooling import DesignEffect, Pooling
    from .formula.group_means import ContextualEffect
    from .inference.likelihood_ratio.table import Comparison
    from .inference.means.means import MarginalMeans
    from .inference.profile.profile import ProfileResult
    from .inference.wald_test import WaldTest
    from .result import LMMResult
    from .simulation.bootstrap import BootstrapResult
    from .support.seeds import Seed

__all__ = ["Ddf", "Information", "Methods"]

Array = NDArray[np.float64]
Ddf = Literal["satterthwaite", "kenward-roger", "residual", "normal"]
Information = Literal["expected", "observed"]


def _fit(result: Methods) -> LMMResult:
    return cast("LMMResult", result)


class Methods(Simulating):
    """Inference, prediction, diagnostics and resampling of a fit."""

    # ---- tests and intervals -------------------------------------------------------------------

    def test(
        self,
        hypothesis: Any,
        rhs: ArrayLike | None = None,
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "expected",
    ) -> WaldTest:
        """Test linear hypotheses on the fixed effects.

        Parameters
        ----------
        hypothesis : str, sequence of str, mapping or (r, p) array
            ``"Days = 0"``, ``"recipe[T.B] - recipe[T.C] = 0"``, several separated by commas, names of coefficients,
            or L in L beta = rhs.
        rhs : (r,) array, optional
            Values under the hypothesis; zeros by default.
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
            Denominator degrees of freedom.
        information : {"expected", "observed"}
            Of the variance parameters, for Kenward-Roger: expected as in Kenward and Roger (1997) and pbkrtest, or
            observed as in SAS and mmrm.

        Returns
        -------
        WaldTest

        Raises
        ------
        LMMError
            For unknown coefficients, inestimable hypotheses or unknown options.
        """
        from .inference.wald import test

        return test(_fit(self), hypothesis, rhs, ddf, information)

    def anova(
        self,
        type: Literal["III", "II", "I"] = "III",
        *,
        ddf: Ddf = "satterthwaite",
        information: Information = "expected",
    ) -> Any:
        """Analysis of variance: one F test per term of the fixed part.

        Parameters
        ----------
        type : {"III", "II", "I"}
            Each term given all others whatever the coding of factors; given all that do not contain it; in order.
        ddf, information
            See `test`.

        Returns
        -------
        AnovaTable
        """
        from .inference.anova import anova

        return anova(_fit(self), type, ddf, information)

    def emmeans(
        self,
        factors: str | Sequence[str],
        *,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        contrasts: Any = None,
        adjust: str | None = None,
        level: float = 0.95,
        ddf: Ddf = "satterthwaite",
        information: Information = "expected",
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
        adjust : {"none", "tukey", "mvt", "dunnett", "scheffe", "sidak", "bonferroni", "holm", "fdr"}, optional
            For multiplicity: by default "tukey" for pairwise contrasts, "mvt" against a reference or in sequence, "fdr"
            for effects, "none" otherwise.
        level : float
        ddf, information
            See `test`.

        Returns
        -------
        MarginalMeans
        """
        from .inference.means.means import emmeans

        return emmeans(
            _fit(self), factors, by=by, at=at, contrasts=contrasts, adjust=adjust, level=level, ddf=ddf,
            information=information,
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
        level: float = 0.95,
        ddf: Ddf = "satterthwaite",
        information: Information = "expected",
    ) -> MarginalMeans:
        """Slopes of a numeric variable within the levels of factors, and contrasts of them.

        Parameters
        ----------
        variable : str
        factors : str or sequence of str, optional
            By default the slope averaged over all factors.
        by, at, contrasts, adjust, level, ddf, information
            See `emmeans`.

        Returns
        -------
        MarginalMeans
        """
        from .inference.means.means import slopes

        return slopes(
            _fit(self), variable, factors, by=by, at=at, contrasts=contrasts, adjust=adjust, level=level, ddf=ddf,
            information=information,
        )  # fmt: skip

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
        """
        from .inference.likelihood_ratio.random_effects import random_effect_test

        return random_effect_test(_fit(self), term, **options)

    def variance_components(self, level: float = 0.95) -> Any:
        """Variance parameters with standard errors and intervals.

        Parameters
        ----------
        level : float
            Of the intervals: Wald on the log scale for variances, on Fisher's z scale for correlations.

        Returns
        -------
        frame or dict of arrays
        """
        from .inference.variance_components import variance_components

        return variance_components(_fit(self), level)

    def profile(
        self, parameters: str | Sequence[str] | None = None, level: float = 0.99, *, progress: bool | None = None
    ) -> ProfileResult:
        """Profile likelihood of fixed effects, standard deviations and correlations.

        Parameters
        ----------
        parameters : str or sequence of str, optional
            By default all.
        level : float
            The profiles reach the limits of intervals of this level.
        progress : bool, optional
            Show a progress bar (needs tqdm); by default in interactive sessions.

        Returns
        -------
        ProfileResult
        """
        from .inference.profile.profile import profile

        return profile(_fit(self), parameters, level, progress)

    # ---- diagnostics ---------------------------------------------------------------------------

    def influence(self, by: str = "group") -> Influence:
        """Exact refits without each group or observation, and what they change.

        Parameters
        ----------
        by : {"group", "observation"}, or name of a grouping factor
            Of several nested factors "group" is the coarsest; where they are crossed, name one.

        Returns
        -------
        Influence
        """
        from .diagnostics.influence import influence

        return influence(_fit(self), by)

    def residual_tests(self, max_lag: int = 3, time: Any = None) -> Any:
        """Tests of normality, equal variance, independence and outlying groups.

        Parameters
        ----------
        max_lag : int
            Of the autocorrelations tested.
        time : (nobs,) array, optional
            By which to order the rows of a group; by default as they stand.

        Returns
        -------
        frame or dict of arrays
        """
        from .diagnostics.assumptions import residual_tests

        return residual_tests(_fit(self), max_lag, time)

    def mahalanobis(self, factor: str | None = None) -> Any:
        """Distance of each group's random effects from zero, and whether it is an outlier.

        Parameters
        ----------
        factor : str, optional
            Grouping factor, where there are several.

        Returns
        -------
        frame or dict of arrays
        """
        from .diagnostics.assumptions import mahalanobis

        return mahalanobis(_fit(self), factor)

    def autocorrelation(self, max_lag: int = 5, time: Any = None, factor: str | None = None) -> Any:
        """Autocorrelation of the whitened residuals within groups, by lag.

        Parameters
        ----------
        max_lag : int
        time : (nobs,) array, optional
            Time of each row used, on a grid within groups: lags count its steps.  By default lags count rows.
        factor : str, optional
            Grouping factor, where there are several.

        Returns
        -------
        frame or dict of arrays
        """
        from .diagnostics.assumptions import autocorrelation

        return autocorrelation(_fit(self), max_lag, time, factor)

    def pooling(self, term: str | None = None) -> Pooling:
        """No, complete and partial pooling of each group's coefficients, their shrinkage and reliability.

        Parameters
        ----------
        term : str, optional
            A random-effects term; by default all terms of the first grouping factor.

        Returns
        -------
        Pooling
        """
        from .diagnostics.pooling import pooling

        return pooling(_fit(self), term)

    def design_effect(self) -> DesignEffect:
        """How much the grouping inflates the variance of a mean and of the fixed effects.

        Returns
        -------
        DesignEffect
        """
        from .diagnostics.pooling import design_effect

        return design_effect(_fit(self))

    def marginal_covariance_at(self, at: Any) -> MarginalCovariance:
        """Covariance and correlation of a new subject's observations at given values.

        Parameters
        ----------
        at : frame, (k, q) array, or values of the only variable of the random part

        Returns
        -------
        MarginalCovariance
        """
        from .diagnostics.marginal import marginal_covariance_at

        return marginal_covariance_at(_fit(self), at)

    def icc_at(self, at: Any) -> Array:
        """Intraclass correlation of two observations at given values, by the random effects.

        Parameters
        ----------
        at : frame, (k, q) array, or values of the only variable of the random part

        Returns
        -------
        (k,) array
        """
        from .diagnostics.marginal import icc_at

        return icc_at(_fit(self), at)

    def least_variance_time(self) -> LeastVariance:
        """Where subjects with random slopes differ least, and whether they fan out or in from there.

        Returns
        -------
        LeastVariance
        """
        from .diagnostics.marginal import least_variance_time

        return least_variance_time(_fit(self))

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
        """
        from .formula.group_means import contextual_effect

        return contextual_effect(_fit(self), x, factor=factor, ddf=ddf)

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
        offset: Any = None,
        weights: Any = None,
        ddf: Ddf = "satterthwaite",
        information: Information = "expected",
    ) -> Any:
        """Predicted means, for the population or for subjects.

        Parameters
        ----------
        data : frame, or mapping with "X" and (for subjects) "Z" and "groups", optional
            New rows: a table for a model from a formula, arrays for a model from arrays (with several grouping factors
            "Z" and "groups" are mappings by factor).  By default the rows used.
        effects : {"population", "all"}, or name of a grouping factor or several
            X beta, or X beta + Z b with the BLUPs b of the row's groups: of all factors, or of those named.
        new_levels : {"error", "population"}
            What to do with groups that are not in the data: refuse, or use b = 0.
        interval : {"confidence", "prediction"}, optional
            Also give limits: for the mean, or for a new observation.  Uncertainty in beta and b is included (Henderson
            1975, Biometrics 31, 423-447), that in the variance parameters by the degrees of freedom.
        level : float
            Of the intervals.
        observed : frame, or mapping with "y", "X", "Z" and "groups", optional
            A few observations of subjects that are not in the data: their BLUPs follow from the fitted parameters.
            With several factors these rows may have old levels of some and new levels of others.
        offset, weights : arrays, optional
            Of the new rows (an offset given by column name is taken from `data`).
        ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
            Degrees of freedom of the intervals.  Satterthwaite: those of the estimated variance of the mean or, for a
            new observation, of its total variance (for a new subject x' var(beta^) x + z'Gz + sigma^2), by the delta
            method; with several grouping factors normal quantiles for rows of known levels.  Kenward-Roger, for the
            population only: the variance of beta^ is adjusted too.
        information : {"expected", "observed"}
            For Kenward-Roger, see `test`.

        Returns
        -------
        (n,) array
            Without interval.
        dict of arrays or frame
            With interval: ``mean``, ``std_error`` (of the mean, or of a new observation), ``df``, ``conf_low``,
            ``conf_high``.

        Raises
        ------
        LMMError
            For unknown groups (named), unknown options, or arrays that do not fit the model.
        """
        from .prediction.predict import prediction

        return prediction(
            _fit(self), data, effects, new_levels, interval, level, observed, offset, weights, ddf, information
        )

    def bootstrap(
        self,
        n: int = 1000,
        kind: Literal["parametric", "conditional", "residual", "cases"] = "parametric",
        statistic: Callable[[LMMResult], Any] | None = None,
        seed: Seed = None,
        *,
        n_jobs: int | None = None,
        progress: bool | None = None,
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
            Of an LMMResult, returning numbers; by default all parameters.  Slower, as each replicate becomes a result.
        seed : int, sequence of int, SeedSequence or Generator, optional
        n_jobs : int, optional
        progress : bool, optional

        Returns
        -------
        BootstrapResult
        """
        from .simulation.bootstrap import bootstrap

        return bootstrap(_fit(self), n, kind, statistic, seed, n_jobs, progress)
