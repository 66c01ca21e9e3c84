"""Rubin's rules for estimates of imputed data sets.

Of m estimates Q_k with variances U_k the mean Q is the estimate, and T = U + (1 + 1/m) B its variance, with U the mean
of the variances and B the variance of the estimates (Rubin 1987, Multiple Imputation for Nonresponse in Surveys, ch.
3).  With the share lambda = (1 + 1/m) B / T, and nu degrees of freedom if nothing were missing, Q is taken for t with

    1 / (1 / nu_m + 1 / nu_obs),    nu_m = (m - 1) / lambda^2,    nu_obs = (nu + 1) / (nu + 3) nu (1 - lambda)

degrees of freedom (Barnard and Rubin 1999, Biometrika 86, 948-955).  nu is the mean over the imputations of what a fit
has by itself, by Satterthwaite's formula unless told otherwise: of each coefficient, contrast and mean its own.

Several rows are tested together by the F of Li, Raghunathan and Rubin (1991, JASA 86, 1065-1073), with the degrees of
freedom of Reiter (2007, Biometrika 94, 502-508).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...support.types import Array
from .. import wald as inference
from ..wald_test import method

if TYPE_CHECKING:
    from ...estimation.fit import Fit
    from ..sandwich import Sandwich

__all__ = ["Imputed", "Rubin", "joint_df", "rubin"]


SAME = 1e-20
"""Variance between imputations, relative to that within them, that is due to rounding."""


@dataclass(frozen=True, eq=False)
class Imputed:
    """Fits of imputed data sets, and how each is evaluated.

    Attributes
    ----------
    results : tuple of LMMResult
    ddf, information : str
    robust : tuple of Sandwich or None
        One for each fit; None for the covariance of the model.
    """

    results: tuple[Fit, ...]
    ddf: str
    information: str
    robust: tuple[Sandwich | None, ...]

    def options(self, k: int) -> tuple[str, str, Sandwich | None]:
        """How fit k is evaluated."""
        return self.ddf, self.information, self.robust[k]

    def covariance(self, k: int) -> Array:
        """Covariance matrix of the coefficients of fit k (p, p)."""
        return inference.covariance(self.results[k], *self.options(k))

    @property
    def vcov(self) -> str:
        """ "model", or the kind of the robust covariances."""
        return "model" if self.robust[0] is None else self.robust[0].kind

    @property
    def method(self) -> str:
        """How estimates are put together, in words."""
        clusters = "" if self.robust[0] is None else self.robust[0].clusters
        return method(self.ddf, self.vcov, clusters, len(self.results))


class Rubin(NamedTuple):
    """Estimates over imputations.

    Attributes
    ----------
    estimate, std_error, df : (n,) arrays
    within, between : (n,) arrays
        Mean of the variances, and variance of the estimates.
    fraction_missing : (n,) array
        Fraction of information about the estimate that is missing.
    """

    estimate: Array
    std_error: Array
    df: Array
    within: Array
    between: Array
    fraction_missing: Array


def rubin(estimates: Array, variances: Array, complete: Array) -> Rubin:
    """Put estimates together.

    Parameters
    ----------
    estimates, variances, complete : (m, n) arrays
        Of each imputation: the estimates, their variances, and their degrees of freedom if nothing were missing.

    Returns
    -------
    Rubin
        NaN where an imputation has no estimate.
    """
    m = len(estimates)
    within, between = variances.mean(axis=0), estimates.var(axis=0, ddof=1)
    added = (1.0 + 1.0 / m) * between
    total = within + added
    with np.errstate(divide="ignore", invalid="ignore"):
        share = added / total
        df = _small_sample((m - 1.0) / share**2, complete.mean(axis=0), share)
        increase = added / within
        fraction = (increase + 2.0 / (df + 3.0)) / (increase + 1.0)
    fraction = np.where(between <= SAME * within, 0.0, fraction)
    return Rubin(estimates.mean(axis=0), np.sqrt(total), df, within, between, fraction)


def _small_sample(large: Any, complete: Any, share: Any) -> Any:
    """Barnard and Rubin's degrees of freedom from those for infinitely many complete data, and for complete data."""
    with np.errstate(divide="ignore", invalid="ignore"):
        known = np.isinf(complete)
        observed = np.where(known, np.inf, (complete + 1.0) / (complete + 3.0) * complete * (1.0 - share))
        return 1.0 / (1.0 / large + 1.0 / observed)


def joint_df(m: int, k: int, increase: float, complete: float) -> float:
    """Denominator degrees of freedom of Li, Raghunathan and Rubin's F for k rows and m imputations.

    Parameters
    ----------
    m, k : int
    increase : float
        r, the relative increase of variance through what is missing, the mean over the rows.
    complete : float
        Degrees of freedom if nothing were missing; infinite for Li, Raghunathan and Rubin's own formula.

    Returns
    -------
    float
        By Reiter's formula.  Where it has no value (few imputations, or hardly more complete degrees of freedom than
        four) as for one row, with the k (m - 1) degrees of freedom that B has for k rows.
    """
    t = k * (m - 1)
    if increase <= 0.0:
        return complete
    a = increase * t / (t - 2.0) if t > 2 else np.inf
    if t > 4 and np.isinf(complete):
        return float(4.0 + (t - 4.0) * (1.0 + 1.0 / a) ** 2)
    star = complete * (complete + 1.0) / (complete + 3.0) if np.isfinite(complete) else np.inf
    first, second = star - 2.0 * (1.0 + a), star - 4.0 * (1.0 + a)
    if t > 4 and second > 0.0:
        # Reiter (2007), eq. 4: the variance of the denominator, to second order
        b = a / (1.0 + a)
        inner = b * b * first / second + 8.0 * b * a * first / second**2 + 4.0 * b * a / second
        inner += 4.0 * a * a / (first * second) + 16.0 * a * a * first / second**3 + 8.0 * a * a / second**2
        return float(4.0 + 1.0 / (1.0 / second + inner / (t - 4.0)))
    share = increase / (1.0 + increase)
    return float(_small_sample(t / share**2, complete, share))
