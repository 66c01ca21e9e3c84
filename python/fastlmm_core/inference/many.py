"""Tests of fixed effects for many responses on one design; the formulas are those of `information`.

What depends on the responses (the Hessian of the criterion, the derivative of r^2) comes from the compiled lanes; the
coefficients' degrees of freedom by Satterthwaite's formula are a by-product of each fit.  What depends on theta and the
design only (all of Kenward-Roger with the expected information) comes from `estimation.many.patterns`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..covariance.directions import inverse_hessian
from ..errors import LMMError
from ..estimation.information import Moments, combined_df, delta_df, kenward_roger_f
from ..estimation.many.one_factor import shared_design
from ..estimation.many.patterns import Observed, Patterns, patterns_of
from ..support.arguments import checked
from ..support.checks import check_level
from ..support.display import LINES, Cells, Shown, first_lines
from ..support.distributions import chi2_tail, f_tail, quantile, two_sided_p
from ..support.log_tails import log10_f_tail
from ..support.text_tables import p_value_cell
from ..tables.rows import named_rows
from .false_discoveries import false_discovery_rates
from .hypotheses import Hypothesis, parse_hypothesis
from .many_robust import robust_coefficients, robust_rows
from .options import check_options
from .wald import check_estimable, coefficient_table, independent_rows, wald

if TYPE_CHECKING:
    from ..estimation.many.batch_fit import BatchFit

__all__ = ["DDF", "BatchTest", "covariances", "df", "pvalues", "test", "tidy_columns"]

Array = NDArray[np.float64]

DDF = ("satterthwaite", "kenward-roger", "residual", "normal")
"""Degrees of freedom of fits of many responses."""


CHUNK_BYTES = 2**24
"""Size of the intermediate arrays over responses."""


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
            With the labels of the responses as index, in other libraries than pandas as a column ``response``.
        """
        columns = {
            "statistic": self.statistic.copy(),
            "df_num": np.full(len(self), self.df_num),
            "df_denom": self.df_denom.copy(),
            "p_value": self.pvalues.copy(),
        }
        return named_rows(self._library, "response", self._labels, columns)

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


def _check_ddf(ddf: str, information: str) -> None:
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
        For unknown options, Kenward-Roger after fits by ML, or with the observed information where the responses
        were given as a stream and are gone.
    """
    _check_ddf(ddf, information)
    if ddf == "satterthwaite":
        return batch.satterthwaite.copy()
    if ddf == "kenward-roger":
        return _coefficients(batch, ddf, information)[1]
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
    error, freedom = _coefficients(batch, ddf, information)
    with np.errstate(invalid="ignore"):
        return two_sided_p(batch.params / error, freedom)


def _coefficients(batch: BatchFit, ddf: str, information: str) -> tuple[Array, Array]:
    """Standard errors and degrees of freedom (n, p) of the coefficients."""
    _check_ddf(ddf, information)
    if ddf == "kenward-roger":
        if _structured(batch, information):
            return robust_coefficients(batch, ddf, "model", None)
        return _kenward_roger_coefficients(batch, information)
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
    for part in _chunks(batch, patterns.chunk(), batch.status >= 0):
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
        error, freedom = _coefficients(batch, ddf, information)
    else:
        error, freedom = robust_coefficients(batch, ddf, vcov, cluster)
    estimate, names = batch.params, batch.model.exog_names
    with np.errstate(invalid="ignore"):
        statistic = estimate / error
        half = quantile(0.5 + 0.5 * level, freedom) * error
    columns = {
        "estimate": estimate, "std_error": error, "df": freedom, "statistic": statistic,
        "p_value": two_sided_p(statistic, freedom), "conf_low": estimate - half, "conf_high": estimate + half,
    }  # fmt: skip
    labels = np.arange(len(batch)) if batch.labels is None else batch.labels
    return {"response": np.repeat(labels, len(names)), "term": list(names) * len(batch)} | {
        name: np.array(values).ravel() for name, values in columns.items()
    }


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
        than single coefficients, or the observed information, where the responses were given as a stream and are gone.
    """
    _check_ddf(ddf, information)
    model = batch.model
    parsed = parse_hypothesis(hypothesis, model.exog_names, rhs)
    check_estimable(model, parsed.L, parsed.names)
    rows = parsed.L @ model.problem.x_map
    basis, combine = independent_rows(rows, parsed.rhs, parsed.names)
    rank = len(basis)
    estimate = np.nan_to_num(batch.params) @ parsed.L.T
    estimate[batch.status < 0] = np.nan
    gap = estimate - parsed.rhs
    if vcov != "model" or cluster is not None or _structured(batch, information):
        error, statistic, freedom = robust_rows(batch, parsed, ddf, vcov, cluster)
    elif ddf == "kenward-roger":
        z = gap @ combine.T
        error, statistic, freedom = _kenward_roger(batch, parsed, rows, basis, gap, z, information)
    elif ddf != "satterthwaite":
        error, statistic, freedom = _of_variance(batch, rows, basis, gap, gap @ combine.T, ddf)
    elif len(rows) == 1 and np.count_nonzero(parsed.L) == 1:
        j = int(np.flatnonzero(parsed.L[0])[0])
        error = np.abs(parsed.L[0, j]) * batch.bse[:, [j]]
        statistic, freedom = gap[:, 0] / error[:, 0], batch.satterthwaite[:, j].copy()
    else:
        error, statistic, freedom = _satterthwaite(batch, parsed, rows, gap, rank)
    if len(rows) == 1:
        pvalues = two_sided_p(statistic, freedom)
    elif ddf == "normal":
        pvalues = chi2_tail(statistic, rank)
    else:
        pvalues = f_tail(statistic, rank, freedom)
    return BatchTest(
        estimate, error, statistic, rank, freedom, pvalues, parsed.L, parsed.rhs, parsed.names, ddf,
        vcov, model.library, batch.labels,
    )  # fmt: skip


# ---- Satterthwaite -----------------------------------------------------------------------------


def _satterthwaite(
    batch: BatchFit, parsed: Hypothesis, rows: Array, gap: Array, rank: int
) -> tuple[Array, Array, Array]:
    """Standard errors (n, m), statistics (n,) and denominator degrees of freedom (n,)."""
    _need_responses(batch, "test single coefficients, or ddf='kenward-roger' or 'residual'")
    n, m = gap.shape
    error, statistic, freedom = np.full((n, m), np.nan), np.full(n, np.nan), np.full(n, np.nan)
    model = batch.model
    nu = float(model.df_resid if batch.reml else model.nobs)
    regular = np.flatnonzero((batch.status >= 0) & ~batch.alone)
    rows = np.ascontiguousarray(rows)
    size = max(8, CHUNK_BYTES // (8 * model.nobs))
    for begin in range(0, len(regular), size):
        part = regular[begin : begin + size]
        covariance, slope, shift, hess, theta = _contrasts(batch, part, rows)
        inverse = inverse_hessian(model.structure, theta, hess)
        variance = batch.sigma2[part, None] * np.einsum("nii->ni", covariance)
        error[part] = np.sqrt(variance)
        if m == 1:
            u = slope[:, :, :, 0] / covariance - shift[:, :, None]
            statistic[part] = gap[part, 0] / error[part, 0]
            freedom[part] = delta_df(u, inverse, nu)[:, 0]
            continue
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[:, m - rank :], vectors[:, :, m - rank :]
        contrast = np.einsum("nir,ni->nr", vectors, gap[part])
        statistic[part] = (contrast**2 / values).sum(axis=1) / (rank * batch.sigma2[part])
        turned = np.einsum("nkij,nir,njr->nkr", slope, vectors, vectors, optimize=True)
        u = turned / values[:, None] - shift[:, :, None]
        freedom[part] = combined_df(delta_df(u, inverse, nu))
    for i in _alone(batch):
        found = wald(batch.one(i), parsed.L, parsed.rhs)
        error[i], statistic[i], freedom[i] = found.std_error, found.statistic, found.df_denom
    return error, statistic, freedom


# ---- Kenward and Roger, and what takes the variances for known -----------------------------------


def _chunks(batch: BatchFit, size: int, which: NDArray[np.bool_]) -> Iterator[NDArray[np.intp]]:
    """Positions of some responses, so many at a time."""
    chosen = np.flatnonzero(which)
    for begin in range(0, len(chosen), size):
        yield chosen[begin : begin + size]


def _kenward_roger_moments(
    batch: BatchFit, information: str, patterns: Patterns
) -> Iterator[tuple[NDArray[np.intp], Moments]]:
    """Moments of the responses that were fitted, some at a time; with the observed information, of those by lanes."""
    if not batch.reml:
        raise LMMError("ddf='kenward-roger' needs REML fits: fit with reml=True, or use ddf='satterthwaite'")
    which = batch.status >= 0
    if information == "observed":
        _need_responses(batch, "information='expected'")
        which = which & ~batch.alone
    edge = (batch.singular | (batch.status == 0)) & (information == "auto")
    factors = batch.factor_o
    for part in _chunks(batch, patterns.chunk(), which):
        observed = _observed(batch, part) if information == "observed" else None
        yield part, patterns.moments(factors[part], edge[part], observed)


def _observed(batch: BatchFit, part: NDArray[np.intp]) -> Observed:
    """The observed information of some responses."""
    model = batch.model
    _, _, shift, hess, theta = _contrasts(batch, part, np.eye(1, model.problem.rank))
    return Observed(shift, inverse_hessian(model.structure, theta, hess))


def _contrasts(batch: BatchFit, part: NDArray[np.intp], rows: Array) -> tuple[Array, ...]:
    """K = rows H_xx^-1 rows', its slope, the shift and the Hessian at the estimates of some responses; and those."""
    lines, scores = batch.seen(part)
    theta = np.ascontiguousarray(batch.theta_o[part])
    more = () if scores is None else (scores,)
    return *shared_design(batch.model).contrasts(lines, batch.reml, theta, rows, *more), theta


def _need_responses(batch: BatchFit, remedy: str) -> None:
    if batch.responses is None:
        raise LMMError(f"{batch.gone}: fit an array, or use {remedy}")


def _alone(batch: BatchFit) -> list[int]:
    """Responses that were fitted one by one."""
    return np.flatnonzero((batch.status >= 0) & batch.alone).tolist()


def _kenward_roger_coefficients(batch: BatchFit, information: str) -> tuple[Array, Array]:
    """Adjusted standard errors and degrees of freedom (n, p) of the coefficients."""
    x_map, kept = batch.model.problem.x_map, batch.model.problem.kept
    error, freedom = np.full(batch.params.shape, np.nan), np.full(batch.params.shape, np.nan)
    for part, found in _kenward_roger_moments(batch, information, patterns_of(batch.model)):
        rows = x_map[kept] @ np.swapaxes(found.half, 1, 2)
        total = np.einsum("nii->ni", found.inner(rows))
        error[part[:, None], kept] = np.sqrt(batch.sigma2[part, None] * total)
        freedom[part[:, None], kept] = found.df(rows)
    for i in _alone(batch) if information == "observed" else ():
        table = coefficient_table(batch.one(i), "kenward-roger", information)
        error[i], freedom[i] = table["std_error"], table["df"]
    return error, freedom


def _kenward_roger(
    batch: BatchFit, parsed: Hypothesis, rows: Array, basis: Array, gap: Array, z: Array, information: str
) -> tuple[Array, Array, Array]:
    """Standard errors (n, m), statistics (n,) and df (n,)."""
    n, m = gap.shape
    error, statistic, freedom = np.full((n, m), np.nan), np.full(n, np.nan), np.full(n, np.nan)
    fallen = np.zeros(n, dtype=bool)
    rank = len(basis)
    for part, found in _kenward_roger_moments(batch, information, patterns_of(batch.model)):
        turned = np.swapaxes(found.half, 1, 2)
        whitened = rows @ turned
        error[part] = np.sqrt(batch.sigma2[part, None] * np.einsum("nii->ni", found.inner(whitened)))
        if m == 1:
            statistic[part] = gap[part, 0] / error[part, 0]
            freedom[part] = found.df(whitened)[:, 0]
            continue
        spanned = basis @ turned
        chi2 = _quadratic(found.inner(spanned), z[part]) / batch.sigma2[part]
        orthonormal = np.swapaxes(np.linalg.qr(np.swapaxes(spanned, 1, 2))[0], 1, 2)
        scale, freedom[part] = kenward_roger_f(found, orthonormal)
        statistic[part] = scale * chi2 / rank
        fallen[part] = np.isnan(scale)
    if information == "observed":
        fallen |= batch.alone
    for i in np.flatnonzero(fallen & (batch.status >= 0)) if batch.responses is not None else ():
        one = wald(batch.one(int(i)), parsed.L, parsed.rhs, "kenward-roger", information)
        error[i], statistic[i], freedom[i] = one.std_error, one.statistic, one.df_denom
    return error, statistic, freedom


def _of_variance(batch: BatchFit, rows: Array, basis: Array, gap: Array, z: Array, ddf: str) -> tuple[Array, ...]:
    """Standard errors (n, m), statistics (n,) and df (n,) by "residual" or "normal"."""
    n, m = gap.shape
    error, statistic = np.full((n, m), np.nan), np.full(n, np.nan)
    known = np.inf if ddf == "normal" else float(batch.model.df_resid)
    freedom = np.where(batch.status >= 0, known, np.nan)
    patterns, factors = patterns_of(batch.model), batch.factor_o
    for part in _chunks(batch, patterns.chunk(), batch.status >= 0):
        turned = np.swapaxes(patterns.half(factors[part]), 1, 2)
        whitened = rows @ turned
        error[part] = np.sqrt(batch.sigma2[part, None] * (whitened * whitened).sum(axis=2))
        if m == 1:
            statistic[part] = gap[part, 0] / error[part, 0]
            continue
        spanned = basis @ turned
        chi2 = _quadratic(spanned @ np.swapaxes(spanned, 1, 2), z[part]) / batch.sigma2[part]
        statistic[part] = chi2 if ddf == "normal" else chi2 / len(basis)
    return error, statistic, freedom


def _quadratic(matrix: Array, z: Array) -> Array:
    """z'A^-1 z (n,)."""
    return np.asarray((z * np.linalg.solve(matrix, z[..., None])[..., 0]).sum(axis=1))
