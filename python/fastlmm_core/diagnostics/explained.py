"""Explained variance: semi-partial R^2 of the terms, and intervals of the shares of fixed and random part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LMMError
from ..estimation.column_moments import mean_residual_variance
from ..formula.coding import fixed_terms
from ..inference import wald
from ..inference.anova import anova, estimable_part, f_statistic
from ..simulation.draws import simulate_fit
from ..support.checks import check_count, check_level
from ..support.seeds import Seed
from ..tables.rows import named_rows
from .marginal import r2

if TYPE_CHECKING:
    from ..estimation.fit import Fit

__all__ = ["partial_r2", "r2_intervals"]


def partial_r2(result: Fit, level: float = 0.95, ddf: str = "satterthwaite", information: str = "auto") -> Any:
    """See `LMMResult.partial_r2`."""
    result.require_estimates("partial_r2", "fit the response: result.model.fit()")
    check_level(level)
    if ddf == "normal":
        raise LMMError("ddf='normal' has no denominator degrees of freedom, which this R^2 is made of; use another")
    model = result.model
    table = anova(result, "III", ddf, information)
    names, num = ["model", *table.terms], [0, *table.df_num.tolist()]
    denom, statistic = [np.nan, *table.df_denom.tolist()], [np.nan, *table.statistic.tolist()]
    intercept = {j for term in fixed_terms(model.design) if term.is_intercept for j in term.columns}
    slopes = [j for j in range(model.exog.shape[1]) if j not in intercept]
    L = estimable_part(result, np.eye(model.exog.shape[1])[slopes]) if slopes else np.zeros((0, 0))
    if len(L):
        whole = wald.wald(result, L, None, ddf, information)
        num[0], denom[0], statistic[0] = whole.df_num, whole.df_denom, f_statistic(whole)
    limits = [_limits(f, a, b, level) for f, a, b in zip(statistic, num, denom, strict=True)]
    top = np.array(statistic) * num
    with np.errstate(invalid="ignore"):
        share = top / (top + np.array(denom))
    columns = {
        "estimate": share, "conf_low": np.array([low for low, _ in limits]),
        "conf_high": np.array([high for _, high in limits]), "statistic": np.array(statistic),
        "df_num": np.array(num), "df_denom": np.array(denom),
    }  # fmt: skip
    return model.table({"term": names, **columns})


def _limits(statistic: float, df_num: float, df_denom: float, level: float) -> tuple[float, float]:
    """Limits of lambda / (lambda + df_num + df_denom + 1) by inversion of the non-central F distribution."""
    if not np.isfinite(statistic) or not np.isfinite(df_denom):
        return np.nan, np.nan
    total = df_num + df_denom + 1.0
    found = [_noncentrality(0.5 + side * 0.5 * level, df_num, df_denom, statistic) for side in (1.0, -1.0)]
    low, high = (value / (value + total) for value in found)
    return low, high


def _noncentrality(probability: float, df_num: float, df_denom: float, statistic: float) -> float:
    """The non-centrality at which P(F <= statistic) is as given; 0 where that is smaller for the central F."""
    from scipy.optimize import brentq
    from scipy.special import betainc, gammaln

    share = df_num * statistic / (df_num * statistic + df_denom)

    def away(value: float) -> float:
        # a mixture of central ones by Poisson weights (Johnson, Kotz and Balakrishnan 1995, Continuous Univariate
        # Distributions 2, ch. 30): scipy's own function has four digits before version 1.15
        mean = 0.5 * value
        spread = 12.0 * np.sqrt(mean + 1.0) + 30.0
        j = np.arange(max(0.0, np.floor(mean - spread)), mean + spread)
        weights = np.exp(j * np.log(mean) - mean - gammaln(j + 1.0)) if mean > 0.0 else j == 0.0
        return float(np.sum(weights * betainc(0.5 * df_num + j, 0.5 * df_denom, share))) - probability

    if away(0.0) <= 0.0:
        return 0.0
    high = 1.0 + df_num * statistic
    while away(high) > 0.0:
        high *= 2.0
    return float(brentq(away, 0.0, high, xtol=1e-10 * high, rtol=1e-12))


def r2_intervals(result: Fit, level: float = 0.95, n_sim: int = 1000, seed: Seed = None) -> Any:
    """See `LMMResult.r2_intervals`."""
    result.require_estimates("r2_intervals", "draw responses with simulate_fit() and look at their estimates")
    check_level(level)
    check_count(n_sim, "n_sim", 2)
    model = result.model
    model.needs_independent_residuals("r2_intervals()")
    fits = simulate_fit(result, n_sim, seed, reml=result.reml, kind=type(result))
    good = fits.converged
    X = model.exog - model.exog.mean(axis=0)
    params = np.nan_to_num(fits.params[good])
    fixed = np.einsum("ij,jk,ik->i", params, X.T @ X / (model.nobs - 1), params, optimize=True)
    squares, covariance = model.exog_re.T @ model.exog_re / model.nobs, fits.covariance[good]
    random = np.zeros(len(fixed))
    for f in model.factors:
        random += np.einsum("jk,ijk->i", squares[f.columns, f.columns], covariance[:, f.columns, f.columns])
    total = fixed + random + fits.sigma2[good] * mean_residual_variance(model, result.phi)
    tails = [0.5 - 0.5 * level, 0.5 + 0.5 * level]
    limits = np.array([np.quantile(part / total, tails) for part in (fixed, fixed + random)])
    estimate = np.array(list(r2(result).values()))
    columns = {"estimate": estimate, "conf_low": limits[:, 0], "conf_high": limits[:, 1]}
    return named_rows(model.library, "share", np.array(["marginal", "conditional"]), columns)
