"""Tests of fixed effects for many responses on one design.

The coefficients' degrees of freedom by Satterthwaite's formula are a by-product of each fit; see `contrasts` for
the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import LMMError
from ...estimation.many.patterns import patterns_of
from ...support.arguments import checked
from ...support.checks import check_level
from ...support.display import LINES, Cells, Shown, first_lines
from ...support.distributions import chi2_tail, f_tail, quantile, two_sided_p
from ...support.log_tails import log10_f_tail
from ...support.text_tables import p_value_cell
from ...support.types import Array
from ...tables.rows import named_rows
from ..false_discoveries import false_discovery_rates
from ..hypotheses import Hypothesis, parse_hypothesis
from ..options import check_options
from .contrasts import (
    Asked,
    chunks,
    kenward_roger,
    kenward_roger_coefficients,
    of_variance,
    robust,
    satterthwaite,
)  # fmt: skip
from .robust import robust_coefficients

if TYPE_CHECKING:
    from ...estimation.many.batch_fit import BatchFit

__all__ = [
    "DDF", "BatchTest", "check_ddf", "coefficients", "covariances", "df", "joint_pvalues", "pvalues", "t_columns",
    "test", "tests", "tidy_columns",
]  # fmt: skip


DDF = ("satterthwaite", "kenward-roger", "residual", "normal")
"""Degrees of freedom of fits of many responses."""


@checked
@dataclass(frozen=True, repr=False)
class BatchTest(Shown):
    """Test of L beta = rhs for every response.

    Attributes
    ----------
    estimate, std_error : (n_responses, m) arrays
        L beta and its standard error, row by row.
    statistic : (n_responses,) array
        t (z for ddf="normal") for one row; otherwise F (chi-square for ddf="normal").
    df_num : int
        Number of independent rows.
    df_denom, pvalues : (n_responses,) arrays
        NaN for responses that could not be fitted, and for those of a stream where Kenward and Roger's method has no
        joint test.
    L : (m, p) array
    rhs : (m,) array
    names : tuple of str
    ddf, vcov : str
    """

    estimate: Array
    std_error: Array
    statistic: Array
    df_num: int
    df_denom: Array
    pvalues: Array
    L: Array
    rhs: Array
    names: tuple[str, ...]
    ddf: str
    vcov: str = "model"
    _library: str = "dict"
    _labels: NDArray[Any] | None = None
    _one: str = "response"

    def __len__(self) -> int:
        return len(self.statistic)

    @property
    def log10p(self) -> Array:
        """log10 of the p-values (n_responses,), however small they are."""
        if len(self.L) == 1:
            return log10_f_tail(self.statistic**2, 1.0, self.df_denom)
        if self.ddf == "normal":
            return log10_f_tail(self.statistic / self.df_num, self.df_num, np.inf)
        return log10_f_tail(self.statistic, self.df_num, self.df_denom)

    def fdr(self, method: str = "bh") -> Array:
        """p-values adjusted for the number of responses (n_responses,).

        Parameters
        ----------
        method : {"bh", "by"}
            Benjamini and Hochberg (1995), or Benjamini and Yekutieli (2001) for any dependence.
        """
        return false_discovery_rates(self.pvalues, method)

    def to_frame(self) -> Any:
        """One row per response: statistic, df_num, df_denom, p_value.

        Returns
        -------
        frame in the library of the model's data, or dict of arrays
            With the labels of the responses as index, in other libraries than pandas as a column ``response``
            (``problem`` of `fit_each` and `fit_by`).
        """
        columns = {
            "statistic": self.statistic.copy(),
            "df_num": np.full(len(self), self.df_num),
            "df_denom": self.df_denom.copy(),
            "p_value": self.pvalues.copy(),
        }
        return named_rows(self._library, self._one, self._labels, columns)

    def _shown(self) -> Iterator[str | Cells]:
        yield repr(self)[1:-1]
        labels = range(len(self)) if self._labels is None else self._labels
        header = ["", "statistic", "df", "p"]
        some = zip(labels, self.statistic[:LINES], self.df_denom[:LINES], self.pvalues[:LINES], strict=False)
        rows = [[str(label), f"{value:.3f}", f"{df:.1f}", p_value_cell(p)] for label, value, df, p in some]
        yield Cells(header, first_lines(rows, count=len(self)))

    def __repr__(self) -> str:
        said = ", ".join(f"{name} = {value:g}" for name, value in zip(self.names, self.rhs, strict=True))
        below = int((self.pvalues < 0.05).sum())
        return f"<BatchTest: {said}; {len(self)} responses, {below} with p < 0.05 ({self.ddf})>"


def check_ddf(ddf: str, information: str) -> None:
    """Refuse unknown options, and degrees of freedom of single fits only."""
    check_options(ddf, information)
    if ddf not in DDF:
        raise LMMError(f"ddf={ddf!r} is for single fits: use {', '.join(map(repr, DDF[:-1]))} or {DDF[-1]!r} for many")


def df(batch: BatchFit, ddf: str = "satterthwaite", information: str = "auto") -> Array:
    """Degrees of freedom of the t tests of the coefficients.

    Parameters
    ----------
    batch : BatchResult
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
    information : {"auto", "expected", "observed"}
        For Kenward-Roger, see `LMMResult.test`.

    Returns
    -------
    (n_responses, p) array
        Infinite for "normal"; NaN for dropped columns and responses that could not be fitted.

    Raises
    ------
    LMMError
        For unknown options, Kenward-Roger after fits by ML, or with the observed information where a pickle has left
        the responses out.
    """
    check_ddf(ddf, information)
    if ddf == "satterthwaite":
        return batch.satterthwaite.copy()
    if ddf == "kenward-roger":
        return coefficients(batch, ddf, information)[1]
    known = np.inf if ddf == "normal" else float(batch.model.df_resid)
    return np.where(np.isnan(batch.params), np.nan, known)


def pvalues(batch: BatchFit, ddf: str = "satterthwaite", information: str = "auto") -> Array:
    """Two-sided p-values of the coefficients.

    Parameters
    ----------
    batch : BatchResult
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        Kenward-Roger: with the adjusted standard errors.
    information : {"auto", "expected", "observed"}

    Returns
    -------
    (n_responses, p) array
        NaN for dropped columns and responses that could not be fitted.

    Raises
    ------
    LMMError
        As `df`.
    """
    error, freedom = coefficients(batch, ddf, information)
    with np.errstate(invalid="ignore"):
        return two_sided_p(batch.params / error, freedom)


def coefficients(batch: BatchFit, ddf: str, information: str) -> tuple[Array, Array]:
    """Standard errors and degrees of freedom (n, p) of the coefficients, for options of `df`."""
    check_ddf(ddf, information)
    if ddf == "kenward-roger":
        if _structured(batch, information):
            return robust_coefficients(batch, ddf, "model", None)
        return kenward_roger_coefficients(batch, information)
    return batch.bse, df(batch, ddf)


def covariances(batch: BatchFit) -> Array:
    """Covariance matrices of the coefficients (n, p, p); NaN for dropped columns and responses that were not fitted."""
    model = batch.model
    out = np.full((*batch.params.shape, batch.params.shape[1]), np.nan)
    if model.one_by_one:
        for i in np.flatnonzero(batch.status >= 0).tolist():
            out[i] = batch.one(i).cov
        return out
    patterns, factors, kept = patterns_of(model), batch.factor_o, model.problem.kept
    for part in chunks(patterns.chunk(), batch.status >= 0):
        rows = model.problem.x_map[kept] @ np.swapaxes(patterns.half(factors[part]), 1, 2)
        found = batch.sigma2[part, None, None] * (rows @ np.swapaxes(rows, 1, 2))
        out[np.ix_(part, kept, kept)] = found
    return out


def _structured(batch: BatchFit, information: str) -> bool:
    """Whether residuals or random effects have a structure, so that each response is tested by itself."""
    if not batch.model.one_by_one:
        return False
    if information == "expected":
        raise LMMError(
            "information='expected' is for single fits where residuals or random effects have a structure: use "
            "'observed'"
        )
    return True


def tidy_columns(
    batch: BatchFit,
    level: float,
    ddf: str,
    information: str = "auto",
    vcov: str = "model",
    cluster: Any = None,
) -> dict[str, Any]:
    """Columns of a table with one row per response and coefficient.

    Parameters
    ----------
    batch : BatchResult
    level : float
        Of the confidence limits.
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
    information : {"auto", "expected", "observed"}
    vcov, cluster
        Robust covariances, as for `test`.

    Returns
    -------
    dict
        response (its label or position), term, estimate, std_error, df, statistic, p_value, conf_low, conf_high.

    Raises
    ------
    LMMError
        As `df`, and for a level outside (0, 1).
    """
    check_level(level)
    if vcov == "model" and cluster is None:
        error, freedom = coefficients(batch, ddf, information)
    else:
        error, freedom = robust_coefficients(batch, ddf, vcov, cluster)
    names = batch.model.exog_names
    labels = np.arange(len(batch)) if batch.labels is None else batch.labels
    return {"response": np.repeat(labels, len(names)), "term": list(names) * len(batch)} | {
        name: values.ravel() for name, values in t_columns(batch.params, error, freedom, level).items()
    }


def t_columns(estimate: Array, error: Array, freedom: Array, level: float) -> dict[str, Array]:
    """t tests and confidence limits of estimates, arrays of one shape each.

    Parameters
    ----------
    estimate, error, freedom : arrays
        With standard errors and degrees of freedom.
    level : float
    """
    with np.errstate(invalid="ignore"):
        statistic = estimate / error
        half = quantile(0.5 + 0.5 * level, freedom) * error
    return {
        "estimate": estimate.copy(), "std_error": error.copy(), "df": freedom.copy(), "statistic": statistic,
        "p_value": two_sided_p(statistic, freedom), "conf_low": estimate - half, "conf_high": estimate + half,
    }  # fmt: skip


def test(
    batch: BatchFit,
    hypothesis: Any,
    rhs: Any = None,
    ddf: str = "satterthwaite",
    information: str = "auto",
    vcov: str = "model",
    cluster: Any = None,
) -> BatchTest:
    """Test a linear hypothesis about the fixed effects for every response.

    Parameters
    ----------
    batch : BatchResult
    hypothesis : str, sequence of str, mapping or array
        See `hypotheses.parse_hypothesis`.
    rhs : float or (m,) array, optional
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
    information : {"auto", "expected", "observed"}
        As for single fits (`inference.wald`).
    vcov, cluster
        Robust covariances, as `sandwich.sandwich` takes them; each response is then fitted once more by itself.

    Returns
    -------
    BatchTest

    Raises
    ------
    LMMError
        For hypotheses that cannot be tested, Kenward-Roger after fits by ML, or Satterthwaite's formula for other
        than single coefficients, or the observed information, where a pickle has left the responses out.
    """
    return tests(batch, [parse_hypothesis(hypothesis, batch.model.exog_names, rhs)], ddf, information, vcov, cluster)[0]


def tests(
    batch: BatchFit, hypotheses: Sequence[Hypothesis], ddf: str = "satterthwaite", information: str = "auto",
    vcov: str = "model", cluster: Any = None,
) -> list[BatchTest]:  # fmt: skip
    """Tests of several hypotheses, each as `test` has it, in one pass over the responses."""
    check_ddf(ddf, information)
    asked = [Asked.of(batch, parsed) for parsed in hypotheses]
    if vcov != "model" or cluster is not None or _structured(batch, information):
        robust(batch, asked, ddf, vcov, cluster)
    elif ddf == "kenward-roger":
        kenward_roger(batch, asked, information)
    elif ddf != "satterthwaite":
        of_variance(batch, asked, ddf)
    else:
        rest = []
        for one in asked:
            j = one.coefficient()
            if j is None:
                rest.append(one)
                continue
            one.error = np.abs(one.L[0, j]) * batch.bse[:, [j]]
            one.statistic, one.freedom = one.gap[:, 0] / one.error[:, 0], batch.satterthwaite[:, j].copy()
        satterthwaite(batch, rest)
    return [_tested(batch, one, ddf, vcov) for one in asked]


def joint_pvalues(statistic: Array, freedom: Array, m: int, rank: int, ddf: str) -> Array:
    """p-values of the statistics of a hypothesis of m rows of a rank; see `BatchTest`."""
    if m == 1:
        return two_sided_p(statistic, freedom)
    return chi2_tail(statistic, rank) if ddf == "normal" else f_tail(statistic, rank, freedom)


def _tested(batch: BatchFit, one: Asked, ddf: str, vcov: str) -> BatchTest:
    """With p-values."""
    rank = len(one.basis)
    found = joint_pvalues(one.statistic, one.freedom, len(one.rows), rank, ddf)
    return BatchTest(
        one.estimate, one.error, one.statistic, rank, one.freedom, found, one.L, one.rhs, one.parsed.names, ddf, vcov,
        batch.model.library, batch.labels,
    )  # fmt: skip
