"""Fits of imputed data sets, put together: coefficients and tests of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ...errors import LMMError
from ...support.arguments import checked
from ...support.checks import check_level
from ...support.display import Cells, Line, Part, Shown
from ...support.distributions import f_tail, quantile, two_sided_p
from ...support.types import Array
from .. import wald as inference
from ..hypotheses import parse_hypothesis
from ..options import Ddf, Information, Vcov, check_options
from ..sandwich import sandwich
from ..wald_test import WaldTest
from .rubin import Imputed, joint_df, rubin

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from .means import PooledMeans

__all__ = ["PooledResult", "pool"]


# ---- results -------------------------------------------------------------------------------------


@checked
@dataclass(frozen=True, eq=False, repr=False)
class PooledResult(Shown):
    """Coefficients of fits of imputed data sets by Rubin's rules; prints as text and shows as HTML in notebooks.

    Attributes
    ----------
    results : tuple of LMMResult
        The fits, one for each imputed data set.
    estimate, std_error, df : (p,) arrays
        Of the coefficients; NaN for dropped columns.
    within, between : (p,) arrays
        Mean of the variances, and variance over the imputations of the estimates.
    fraction_missing : (p,) array
        Fraction of the information about each coefficient that is missing.
    """

    results: tuple[Fit, ...]
    estimate: Array
    std_error: Array
    df: Array
    within: Array
    between: Array
    fraction_missing: Array
    _imputed: Imputed = field(repr=False)

    @property
    def n_imputations(self) -> int:
        """Number of imputed data sets."""
        return len(self.results)

    @property
    def method(self) -> str:
        """How estimates are put together, in words."""
        return self._imputed.method

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coefficients."""
        return self.results[0].model.exog_names

    @property
    def params(self) -> Any:
        """Fixed effects (p,), labelled as those of a fit."""
        return self.results[0].model.labelled(self.estimate.copy())

    @property
    def bse(self) -> Any:
        """Standard errors of the fixed effects (p,), labelled as those of a fit."""
        return self.results[0].model.labelled(self.std_error.copy())

    @property
    def pvalues(self) -> Any:
        """Two-sided p-values of the t tests that each fixed effect is zero (p,), labelled as those of a fit."""
        return self.results[0].model.labelled(self._pvalues())

    def _pvalues(self) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(two_sided_p(self.estimate / self.std_error, self.df))

    def cov_params(self) -> Array:
        """Covariance matrix of the pooled coefficients (p, p): within, and between imputations times 1 + 1/m."""
        within = np.mean([self._imputed.covariance(k) for k in range(self.n_imputations)], axis=0)
        beta = np.array([r.beta for r in self.results])
        return np.asarray(within + (1.0 + 1.0 / len(beta)) * np.atleast_2d(np.cov(beta, rowvar=False)))

    def conf_int(self, level: float = 0.95) -> Any:
        """Confidence intervals of the coefficients.

        Parameters
        ----------
        level : float

        Returns
        -------
        (p, 2) array or a frame with columns conf_low and conf_high, as of a fit
        """
        from ...tables.rows import limits_table

        model = self.results[0].model
        low, high = self._limits(level)
        library = model.library if model.design.labelled else None
        return limits_table(library, self.names, np.column_stack([low, high]))

    def _limits(self, level: float) -> tuple[Array, Array]:
        check_level(level)
        half = quantile(0.5 + 0.5 * level, self.df) * self.std_error
        return self.estimate - half, self.estimate + half

    def tidy(self, level: float = 0.95) -> Any:
        """One row per coefficient, in the caller's own frame library (a dict of arrays for models from arrays).

        Parameters
        ----------
        level : float
            Of the confidence limits.

        Returns
        -------
        frame or dict of arrays
            term, estimate, std_error, df, statistic, p_value, conf_low, conf_high, fraction_missing.
        """
        return self.results[0].model.table(self.columns(level))

    def columns(self, level: float) -> dict[str, Any]:
        """The columns of `tidy`."""
        low, high = self._limits(level)
        with np.errstate(invalid="ignore", divide="ignore"):
            statistic = self.estimate / self.std_error
        return {
            "term": list(self.names),
            "estimate": self.estimate,
            "std_error": self.std_error,
            "df": self.df,
            "statistic": statistic,
            "p_value": self._pvalues(),
            "conf_low": low,
            "conf_high": high,
            "fraction_missing": self.fraction_missing,
        }

    def test(self, hypothesis: Any, rhs: ArrayLike | None = None) -> WaldTest:
        """Test linear hypotheses on the fixed effects.

        Parameters
        ----------
        hypothesis, rhs
            See `LMMResult.test`.

        Returns
        -------
        WaldTest
            Rows by t with Barnard and Rubin's degrees of freedom, all together by the F of Li, Raghunathan and Rubin.
        """
        parsed = parse_hypothesis(hypothesis, self.names, rhs)
        return _wald(self._imputed, parsed.L, parsed.rhs, parsed.names)

    def emmeans(self, factors: str | Sequence[str], **options: Any) -> PooledMeans:
        """Estimated marginal means and contrasts of them.

        Parameters
        ----------
        factors : str or sequence of str
        **options
            ``by``, ``at``, ``contrasts``, ``adjust``, ``level``, ``ref`` and ``weights``, see `LMMResult.emmeans`.

        Returns
        -------
        PooledMeans
        """
        from .means import pooled_means

        return pooled_means(self._imputed, factors, None, **options)

    def slopes(self, variable: str, factors: str | Sequence[str] | None = None, **options: Any) -> PooledMeans:
        """Slopes of a numeric variable, and contrasts of them.

        Parameters
        ----------
        variable : str
        factors : str or sequence of str, optional
        **options
            As for `emmeans`.

        Returns
        -------
        PooledMeans
        """
        from .means import pooled_means

        return pooled_means(self._imputed, factors, variable, **options)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        from ...support.text_tables import aligned_cells, degrees_cell, estimate_cells, p_value_cell, statistic_cell

        keep = np.flatnonzero(~np.isnan(self.estimate))
        low, high = (v[keep].tolist() for v in self._limits(0.95))
        value, error = self.estimate[keep].tolist(), self.std_error[keep].tolist()
        cells = [
            [self.names[j] for j in keep],
            estimate_cells(value, error, 4),
            estimate_cells(error, error, 4),
            [degrees_cell(v) for v in self.df[keep].tolist()],
            aligned_cells([statistic_cell(v / e) for v, e in zip(value, error, strict=True)]),
            [p_value_cell(v) for v in self._pvalues()[keep].tolist()],
            estimate_cells(low, error, 3),
            estimate_cells(high, error, 3),
            [f"{v:.3f}" for v in self.fraction_missing[keep].tolist()],
        ]
        header = ["Name", "Estimate", "SE", "df", "t", "p", "95% CI", "", "Missing"]
        return header, [list(row) for row in zip(*cells, strict=True)]

    def _notes(self) -> list[str]:
        bad = sum(not r.converged for r in self.results)
        notes = [
            f"{self._imputed.method}.",
            "Missing: fraction of the information about the coefficient that is missing.",
        ]
        return [*notes, f"{bad} of the fits are NOT certified."] if bad else notes

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"Linear mixed model fitted to {self.n_imputations} imputed data sets"

    def __str__(self) -> str:
        from ...support.text_tables import text_table

        spec = self.results[0].model.spec
        head = [self.title] if spec is None else [self.title, spec.formula]
        return "\n".join([*head, "", *text_table(*self._cells(), left=1), "", *self._notes()])

    def _shown(self) -> Iterator[Part]:
        spec = self.results[0].model.spec
        yield Line(self.title, "title")
        if spec is not None:
            yield Line(spec.formula, "code")
        yield Cells(*self._cells())
        yield from self._notes()


def _wald(imputed: Imputed, L: Array, right: Array, names: tuple[str, ...]) -> WaldTest:
    tests = [
        inference.wald(result, L, right, *imputed.options(k), names=names) for k, result in enumerate(imputed.results)
    ]
    m = len(tests)
    found = rubin(
        np.array([t.estimate for t in tests]),
        np.array([t.std_error for t in tests]) ** 2,
        np.array([t.row_df for t in tests]),
    )
    statistic = (found.estimate - right) / found.std_error
    p_rows = two_sided_p(statistic, found.df)
    single = float(statistic[0]), float(found.df[0]), float(p_rows[0])
    rank = tests[0].df_num
    if len(L) > 1:
        covariances = [np.nan_to_num(imputed.covariance(k)) for k in range(m)]
        within = np.mean([L @ C @ L.T for C in covariances], axis=0)
        # coordinates of the rows in which U is the identity
        size = np.sqrt(np.diag(within))
        values, vectors = np.linalg.eigh(within / np.outer(size, size))
        turn = vectors[:, -rank:] / np.sqrt(values[-rank:])
        z = (np.array([t.estimate for t in tests]) - right) / size @ turn
        increase = float((1.0 + 1.0 / m) * z.var(axis=0, ddof=1).sum() / rank)
        f = float((z.mean(axis=0) ** 2).sum() / (rank * (1.0 + increase)))
        freedom = joint_df(m, rank, increase, float(np.mean([t.df_denom for t in tests])))
        single = f, freedom, float(f_tail(f, rank, freedom))
    return WaldTest(
        found.estimate, found.std_error, statistic, found.df, p_rows, single[0], rank, single[1], single[2], L, right,
        names, imputed.ddf, vcov=imputed.vcov, clusters=tests[0].clusters, imputations=m, _library=tests[0].library,
    )  # fmt: skip


def _residual(fit: Fit) -> str:
    residual = fit.model.residual
    return "independent" if residual is None else residual.term


@checked
def pool(
    results: Sequence[Any],
    *,
    ddf: Ddf = "satterthwaite",
    information: Information = "auto",
    vcov: Vcov = "model",
    cluster: Any = None,
) -> PooledResult:
    """Put fits of imputed data sets together by Rubin's rules.

    Parameters
    ----------
    results : sequence of LMMResult
        Fits of one model to each of the imputed data sets.
    ddf, information, vcov, cluster
        How each fit is evaluated, see `LMMResult.test`: its standard errors, and the degrees of freedom that it would
        have if nothing were missing.

    Returns
    -------
    PooledResult
        Coefficients; its methods `test`, `emmeans` and `slopes` pool contrasts and means.

    Raises
    ------
    LMMError
        For fewer than two fits, and fits of different models or numbers of rows.

    Notes
    -----
    Estimates are averaged; to their mean variance comes the variance between imputations, and degrees of freedom are
    those of Barnard and Rubin (1999, Biometrika 86, 948-955).

    Examples
    --------
    >>> import numpy as np
    >>> import fastlmm_core as flc
    >>> data = flc.datasets.load("sleepstudy")
    >>> rng = np.random.default_rng(1)
    >>> imputed = [data.assign(Reaction=data.Reaction + rng.normal(0, 5, 180)) for _ in range(10)]
    >>> fits = [flc.lmm("Reaction ~ Days + (Days | Subject)", d).fit() for d in imputed]
    >>> pooled = flc.pool(fits)
    >>> round(float(pooled.df[1]), 1) < 17.0
    True
    """
    check_options(ddf, information, None if vcov == "model" else vcov)
    fits = tuple(results)
    if len(fits) < 2:
        raise LMMError(f"pool needs the fits of at least two imputed data sets, not {len(fits)}")
    for k, fit in enumerate(fits):
        if not (hasattr(fit, "model") and hasattr(fit, "optimum")):
            raise LMMError(f"results[{k}] is of type {type(fit).__name__!r}, not a fit: give results of fit()")
        fit.require_estimates("pool", "fit the model to each imputed data set")
        for what, first, own in (
            ("coefficients", fits[0].model.exog_names, fit.model.exog_names),
            ("random part", fits[0].model.term_names, fit.model.term_names),
            ("residual structure", _residual(fits[0]), _residual(fit)),
            ("number of rows", fits[0].nobs, fit.nobs),
            ("criterion (REML or ML)", fits[0].reml, fit.reml),
        ):
            if first != own:
                raise LMMError(
                    f"results[{k}] has another {what} than results[0] ({own} and {first}): pool fits of one model to "
                    "imputations of one data set"
                )
    robust = tuple(sandwich(fit, vcov, cluster) for fit in fits)
    tables = [inference.coefficient_table(fit, ddf, information, r) for fit, r in zip(fits, robust, strict=True)]
    found = rubin(
        *(np.array([t["estimate"] for t in tables]), np.array([t["std_error"] for t in tables]) ** 2),
        np.array([t["df"] for t in tables]),
    )
    return PooledResult(
        fits, found.estimate, found.std_error, found.df, found.within, found.between, found.fraction_missing,
        Imputed(fits, ddf, information, robust),
    )  # fmt: skip
