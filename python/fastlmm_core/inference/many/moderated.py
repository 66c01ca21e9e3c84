"""Variances that the responses of a batch lend each other: the empirical Bayes of limma.

Smyth, G. K. (2004), Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments, Stat. Appl. Genet. Mol. Biol. 3, Article 3.  Estimates s_g^2 with d_g degrees of freedom of variances whose
inverses are drawn from s_0^-2 chi^2_{d_0} / d_0 are distributed as s_0^2 F(d_g, d_0) (section 4); with e_g =
log s_g^2 - psi(d_g / 2) + log(d_g / 2) the moments are (section 6.2)

    E e_g = log s_0^2 - psi(d_0 / 2) + log(d_0 / 2),    var e_g = psi'(d_g / 2) + psi'(d_0 / 2),

and the posterior mean of the inverse variance is 1 / s~_g^2, s~_g^2 = (d_0 s_0^2 + d_g s_g^2) / (d_0 + d_g).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...errors import LMMError
from ...support.arguments import checked
from ...support.display import Cells, Shown
from ...support.distributions import two_sided_p
from ...support.types import Array
from ...tables.columns import native_frame
from ...tables.rows import FitLabels
from .t_tests import TTests

__all__ = ["ModeratedTests", "moderate", "prior_of", "trigamma_inverse"]


@checked
@dataclass(frozen=True, repr=False)
class ModeratedTests(Shown, TTests):
    """t tests with moderated variances for every response and coefficient.

    Attributes
    ----------
    names : tuple of str
        The p coefficients.
    df_prior : (p,) array
        d_0: how many degrees of freedom the others lend; inf where the variances differ by no more than chance.
    scale_prior : (p,) array
        s_0: the standard error towards which those of the responses are drawn.
    estimate, std_error, df, statistic, pvalues : (n_responses, p) arrays
        df is d_g + d_0, at most the sum of all d_g.
    """

    names: tuple[str, ...]
    df_prior: Array
    scale_prior: Array
    estimate: Array
    std_error: Array
    df: Array
    statistic: Array
    pvalues: Array
    _called: FitLabels = field(repr=False)

    def to_frame(self) -> Any:
        """One row per response and coefficient.

        Returns
        -------
        frame in the library of the model's data, or dict of arrays
            response (its label or position; ``problem`` of `fit_each` and `fit_by`), term, estimate, std_error, df,
            statistic, p_value, fdr (by "bh").
        """
        columns = {
            "estimate": self.estimate, "std_error": self.std_error, "df": self.df, "statistic": self.statistic,
            "p_value": self.pvalues, "fdr": self.fdr(),
        }  # fmt: skip
        labels = self._called.known(len(self))
        known = {self._called.name: np.repeat(labels, len(self.names)), "term": list(self.names) * len(self)}
        values = {name: np.array(array).ravel() for name, array in columns.items()}
        return native_frame(self._called.library, known | values)

    def _shown(self) -> Iterator[str | Cells]:
        yield f"t tests of {len(self):,} {self._called.name}s with moderated variances"
        found = zip(self.df_prior, self.scale_prior, self.pvalues.T, self.fdr().T, strict=True)
        rows = [
            [name, f"{d:.4g}", f"{s:.4g}", str(int((p < 0.05).sum())), str(int((q < 0.05).sum()))]
            for name, (d, s, p, q) in zip(self.names, found, strict=True)
        ]
        yield Cells(["", "prior df", "prior std. error", "p < 0.05", "fdr < 0.05"], rows)

    def __repr__(self) -> str:
        lent = ", ".join(f"{name} {d:.4g}" for name, d in zip(self.names, self.df_prior, strict=True))
        return f"<ModeratedTests: {len(self)} responses; prior df: {lent}>"


def moderate(
    names: Sequence[str], params: Array, bse: Array, satterthwaite: Array, called: FitLabels
) -> ModeratedTests:
    """See `BatchResult.moderate`.

    Parameters
    ----------
    names : (p,) sequence of str
    params, bse, satterthwaite : (n, p) arrays
        NaN for what could not be estimated.
    called : FitLabels
    """
    p = len(names)
    error, df = bse.copy(), satterthwaite.copy()
    df_prior, scale = np.full(p, np.nan), np.full(p, np.nan)
    for j in range(p):
        good = np.isfinite(error[:, j]) & (error[:, j] > 0.0) & (df[:, j] > 0.0)
        if np.isnan(params[:, j]).all() and not np.isnan(params).all():
            continue  # a column that is dropped
        if good.sum() < 3:
            raise LMMError(
                f"moderate() needs three responses or more that were fitted; of {names[j]} {good.sum()} were"
            )
        variance, d = error[good, j] ** 2, df[good, j]
        d0, s0 = prior_of(variance, d)
        weight = 1.0 if np.isinf(d0) else d0 / (d0 + d)
        error[good, j] = np.sqrt(weight * s0 + (1.0 - weight) * variance)
        df[good, j] = np.minimum(d + d0, d.sum())
        df_prior[j], scale[j] = d0, np.sqrt(s0)
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = params / error
    return ModeratedTests(
        tuple(names), df_prior, scale, params.copy(), error, df, statistic, two_sided_p(statistic, df), called
    )


def prior_of(variance: Array, df: Array) -> tuple[float, float]:
    """d_0 and s_0^2 by the moments of the logarithms.

    Parameters
    ----------
    variance, df : (n,) arrays
        s_g^2 and d_g, above zero.

    Returns
    -------
    (float, float)
        Where the variances differ by no more than chance d_0 is infinite and s_0^2 is their mean, weighted by d_g: its
        maximum likelihood estimate then.
    """
    from scipy.special import digamma, polygamma

    e = np.log(variance) - digamma(0.5 * df) + np.log(0.5 * df)
    excess = float(e.var(ddof=1) - polygamma(1, 0.5 * df).mean())
    if excess <= 0.0:
        return float("inf"), float(np.average(variance, weights=df))
    d0 = 2.0 * float(trigamma_inverse(excess))
    return d0, float(np.exp(e.mean() + digamma(0.5 * d0) - np.log(0.5 * d0)))


def trigamma_inverse(x: ArrayLike) -> Array:
    """The y > 0 at which psi'(y) = x, by Newton's method for 1 / psi', which is convex (Smyth 2004, appendix)."""
    from scipy.special import polygamma

    value = np.asarray(x, dtype=float)
    y = 0.5 + 1.0 / value
    for _ in range(50):
        trigamma = polygamma(1, y)
        step = trigamma * (1.0 - trigamma / value) / polygamma(2, y)
        y = y + step
        if np.all(np.abs(step) <= 1e-14 * y):
            break
    return np.asarray(y)
