"""Tests of fixed effects for many responses on one design; the formulas are those of `information`.

What depends on the responses (the Hessian of the criterion, the derivative of r^2) comes from the compiled lanes; the
coefficients' degrees of freedom by Satterthwaite's formula are a by-product of each fit.  What depends on theta and the
design only (all of Kenward-Roger with the expected information) is taken here over patterns of groups, vectorised over
responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..covariance.directions import free_directions, inverse_hessian
from ..engines.one_factor.problem import one_factor
from ..errors import LMMError
from ..estimation.information import combined_df, scaled_f
from ..estimation.many.one_factor import shared_design
from ..support.arguments import checked
from ..support.checks import check_level
from ..support.distributions import chi2_tail, f_tail, quantile, two_sided_p
from ..tables.rows import named_rows
from .hypotheses import Hypothesis, parse_hypothesis
from .options import DDF, check_options
from .sandwich import sandwich
from .wald import check_estimable, independent_rows, wald

if TYPE_CHECKING:
    from ..estimation.many.batch_fit import BatchFit
    from ..estimation.many.several_factors import HierarchyDesign, HierarchyPatterns
    from ..estimation.model import Model

__all__ = ["DDF", "BatchTest", "df", "pvalues", "test", "tidy_columns"]

Array = NDArray[np.float64]


CHUNK_BYTES = 2**24
"""Size of the intermediate arrays over responses."""


@checked
@dataclass(frozen=True, repr=False)
class BatchTest:
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

    def __repr__(self) -> str:
        said = ", ".join(f"{name} = {value:g}" for name, value in zip(self.names, self.rhs, strict=True))
        below = int((self.pvalues < 0.05).sum())
        return f"<BatchTest: {said}; {len(self)} responses, {below} with p < 0.05 ({self.ddf})>"


def df(batch: BatchFit, ddf: str = "satterthwaite") -> Array:
    """Degrees of freedom of the t tests of the coefficients.

    Parameters
    ----------
    batch : BatchResult
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        Kenward-Roger with the expected information.

    Returns
    -------
    (n_responses, p) array
        Infinite for "normal"; NaN for dropped columns and responses that could not be fitted.

    Raises
    ------
    LMMError
        For another `ddf`, or Kenward-Roger after fits by ML.
    """
    check_options(ddf)
    if ddf == "satterthwaite":
        return batch.satterthwaite.copy()
    if ddf == "kenward-roger":
        return _kenward_roger_coefficients(batch)[1]
    known = np.inf if ddf == "normal" else float(batch.model.df_resid)
    return np.where(np.isnan(batch.params), np.nan, known)


def pvalues(batch: BatchFit, ddf: str = "satterthwaite") -> Array:
    """Two-sided p-values of the coefficients.

    Parameters
    ----------
    batch : BatchResult
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}
        Kenward-Roger: with the adjusted standard errors, and the expected information.

    Returns
    -------
    (n_responses, p) array
        NaN for dropped columns and responses that could not be fitted.

    Raises
    ------
    LMMError
        As `df`.
    """
    error, freedom = _coefficients(batch, ddf)
    with np.errstate(invalid="ignore"):
        return two_sided_p(batch.params / error, freedom)


def _coefficients(batch: BatchFit, ddf: str) -> tuple[Array, Array]:
    """Standard errors and degrees of freedom (n, p) of the coefficients."""
    check_options(ddf)
    return _kenward_roger_coefficients(batch) if ddf == "kenward-roger" else (batch.bse, df(batch, ddf))


def tidy_columns(batch: BatchFit, level: float, ddf: str) -> dict[str, Any]:
    """Columns of a table with one row per response and coefficient.

    Parameters
    ----------
    batch : BatchResult
    level : float
        Of the confidence limits.
    ddf : {"satterthwaite", "kenward-roger", "residual", "normal"}

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
    error, freedom = _coefficients(batch, ddf)
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
        As for single fits (`inference.wald`); Kenward-Roger with the expected information.
    vcov, cluster
        Robust covariances, as `sandwich.sandwich` takes them; each response is then fitted once more by itself.

    Returns
    -------
    BatchTest

    Raises
    ------
    LMMError
        For hypotheses that cannot be tested, Kenward-Roger after fits by ML, or Satterthwaite's formula for other
        than single coefficients where the responses were given as a stream and are gone.
    """
    check_options(ddf)
    model = batch.model
    parsed = parse_hypothesis(hypothesis, model.exog_names, rhs)
    check_estimable(model, parsed.L, parsed.names)
    rows = parsed.L @ model.problem.x_map
    basis, combine = independent_rows(rows, parsed.rhs, parsed.names)
    rank = len(basis)
    estimate = np.nan_to_num(batch.params) @ parsed.L.T
    estimate[batch.status < 0] = np.nan
    gap = estimate - parsed.rhs
    if vcov != "model" or cluster is not None:
        error, statistic, freedom = _robust(batch, parsed, ddf, vcov, cluster)
    elif ddf != "satterthwaite":
        error, statistic, freedom = _of_theta(batch, parsed, rows, basis, gap, gap @ combine.T, ddf)
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


def _robust(batch: BatchFit, parsed: Hypothesis, ddf: str, vcov: str, cluster: Any) -> tuple[Array, Array, Array]:
    """Standard errors (n, m), statistics (n,) and denominator degrees of freedom (n,), one response after the other."""
    if batch.responses is None:
        raise LMMError(
            "the responses were given as a stream and are not kept, but robust covariances are made of residuals: fit "
            "an array, or use vcov='model'"
        )
    n = len(batch)
    error, statistic, freedom = np.full((n, len(parsed.L)), np.nan), np.full(n, np.nan), np.full(n, np.nan)
    for i in _fitted(batch).tolist():
        fit = batch.one(i)
        found = wald(fit, parsed.L, parsed.rhs, ddf, robust=sandwich(fit, vcov, cluster))
        error[i], statistic[i], freedom[i] = found.std_error, found.statistic, found.df_denom
    return error, statistic, freedom


# ---- Satterthwaite -----------------------------------------------------------------------------


def _satterthwaite(
    batch: BatchFit, parsed: Hypothesis, rows: Array, gap: Array, rank: int
) -> tuple[Array, Array, Array]:
    """Standard errors (n, m), statistics (n,) and denominator degrees of freedom (n,)."""
    if batch.responses is None:
        raise LMMError(
            "the responses were given as a stream and are not kept: fit an array, test single coefficients, or use "
            "ddf='kenward-roger' or 'residual'"
        )
    n, m = gap.shape
    error, statistic, freedom = np.full((n, m), np.nan), np.full(n, np.nan), np.full(n, np.nan)
    model = batch.model
    nu = float(model.df_resid if batch.reml else model.nobs)
    regular = np.flatnonzero((batch.status >= 0) & ~batch.alone)
    rows = np.ascontiguousarray(rows)
    size = max(8, CHUNK_BYTES // (8 * model.nobs))
    for begin in range(0, len(regular), size):
        part = regular[begin : begin + size]
        Y = np.ascontiguousarray(batch.responses[part], dtype=np.float64)
        theta = np.ascontiguousarray(batch.theta_o[part])
        covariance, slope, shift, hess = shared_design(model).contrasts(Y, batch.reml, theta, rows)
        inverse = inverse_hessian(model.structure, theta, hess)
        variance = batch.sigma2[part, None] * np.einsum("nii->ni", covariance)
        error[part] = np.sqrt(variance)
        if m == 1:
            u = slope[:, :, 0, 0] / covariance[:, 0] - shift
            statistic[part] = gap[part, 0] / error[part, 0]
            freedom[part] = 1.0 / (1.0 / nu + np.einsum("nk,nkl,nl->n", u, inverse, u))
            continue
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[:, m - rank :], vectors[:, :, m - rank :]
        contrast = np.einsum("nir,ni->nr", vectors, gap[part])
        statistic[part] = (contrast**2 / values).sum(axis=1) / (rank * batch.sigma2[part])
        turned = np.einsum("nkij,nir,njr->nkr", slope, vectors, vectors, optimize=True)
        u = turned / values[:, None] - shift[:, :, None]
        each = 1.0 / (1.0 / nu + np.einsum("nkr,nkl,nlr->nr", u, inverse, u, optimize=True))
        freedom[part] = combined_df(each)
    for i in np.flatnonzero((batch.status >= 0) & batch.alone):
        found = wald(batch.one(int(i)), parsed.L, parsed.rhs)
        error[i], statistic[i], freedom[i] = found.std_error, found.statistic, found.df_denom
    return error, statistic, freedom


# ---- what depends on theta only ----------------------------------------------------------------


class _Patterns:
    """Sums over groups as functions of theta, for many thetas: groups with the same Z_i'Z_i share everything but X."""

    def __init__(self, model: Model) -> None:
        problem = one_factor(model.problem)
        m, q, r = problem.m, model.structure.q, problem.rank
        packed, _ = kernels.factor_groups(problem.raw, problem.z_transform, problem.xy_transform)
        lines = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:m]
        labels = kernels.pattern_labels(packed, m, q, r + 1)
        labels = np.arange(m) if labels is None else labels
        lines = lines[np.argsort(labels, kind="stable")]
        n_a = q * (q + 1) // 2
        cx = np.ascontiguousarray(lines[:, n_a:-1].reshape(m, q, r + 1)[:, :, :r])
        bounds = np.append(0, np.cumsum(np.bincount(labels))).astype(np.int64)
        columns, _, self.cx = kernels.pattern_bases(cx, bounds)
        self.owner = np.repeat(np.arange(len(bounds) - 1), np.diff(columns))
        self.counts = np.diff(bounds).astype(float)
        upper = np.triu_indices(q)
        self.R = np.zeros((len(bounds) - 1, q, q))
        self.R[:, upper[0], upper[1]] = lines[bounds[:-1], :n_a]
        self.within = kernels.unpack(problem.within[: r * (r + 1) // 2], r)
        self.directions = kernels.unit_directions(q)
        self.free = free_directions(model.structure)
        self.nu = float(problem.n - r)

    def half(self, factors: Array) -> Array:
        """L_xx^-1 (n, r, r)."""
        return self.whitening(factors)[0]

    def chunk(self) -> int:
        """Responses whose intermediate arrays have about CHUNK_BYTES."""
        _, q, r = self.cx.shape
        per_response = len(self.cx) * q * (r + 1) * 2 * (len(self.directions) + 2) + len(self.R) * 8 * q**2
        return max(1, int(CHUNK_BYTES // (8 * per_response)))

    def whitening(self, factors: Array) -> tuple[Array, Array, Array]:
        """L_xx^-1 (n, r, r), N by pattern (n, patterns, q, q), E_x by column (n, columns, q, r)."""
        U = self.R @ factors[:, None]
        inverse = np.linalg.inv(np.eye(U.shape[-1]) + U @ np.swapaxes(U, 2, 3))
        half_n = np.swapaxes(self.R, 1, 2) @ inverse
        N = half_n @ self.R
        solved = inverse[:, self.owner] @ self.cx
        H = self.within + np.einsum("cqi,ncqj->nij", self.cx, solved, optimize=True)
        E = np.swapaxes(self.R, 1, 2)[self.owner] @ solved
        return np.linalg.inv(np.linalg.cholesky(H)), N, E

    def kenward_roger(self, factors: Array) -> tuple[Array, Array, Array, Array, Array]:
        """L_xx^-1, U (n, a, r, r), shift m / nu (n, a), inverse information (n, a, a), adjustment (n, r, r)."""
        half, N, E = self.whitening(factors)
        E = E @ np.swapaxes(half, 1, 2)[:, None]
        D = self.directions[self.free]
        turned = np.einsum("kab,ncbi->nkcai", D, E, optimize=True)
        slopes = np.einsum("ncai,nkcaj->nkij", E, turned, optimize=True)
        DN = np.einsum("kab,npbc->npkac", D, N, optimize=True)
        plain = np.einsum("p,npkab,nplba->nkl", self.counts, DN, DN, optimize=True)
        across = N[:, None, self.owner] @ turned
        both = np.einsum("nkcai,nlcaj->nklij", turned, across, optimize=True)
        expected = plain - 2.0 * np.einsum("nklii->nkl", both) + np.einsum("nkij,nlji->nkl", slopes, slopes)
        shift = np.einsum("p,npkaa->nk", self.counts, DN, optimize=True) - np.einsum("nkii->nk", slopes)
        shift /= self.nu
        inverse = np.linalg.inv(expected - self.nu * shift[:, :, None] * shift[:, None, :])
        middle = np.einsum("nkl,nklij->nij", inverse, both, optimize=True)
        middle -= np.einsum("nkl,nkij,nljm->nim", inverse, slopes, slopes, optimize=True)
        middle = 2.0 * middle
        return half, slopes, shift, inverse, middle + np.swapaxes(middle, 1, 2)


def _fitted(batch: BatchFit) -> NDArray[np.intp]:
    return np.flatnonzero(batch.status >= 0)


def _patterns(model: Model) -> _Patterns | HierarchyPatterns:
    if len(model.factors) == 1:
        return _Patterns(model)
    from ..estimation.many.several_factors import HierarchyPatterns

    return HierarchyPatterns(cast("HierarchyDesign", shared_design(model)))


def _chunks(batch: BatchFit, patterns: _Patterns | HierarchyPatterns) -> Iterator[tuple[NDArray[np.intp], Array]]:
    """Responses that were fitted, and their factors."""
    fitted, factors, size = _fitted(batch), batch.factor_o, patterns.chunk()
    for begin in range(0, len(fitted), size):
        part = fitted[begin : begin + size]
        yield part, factors[part]


def _refuse_ml(batch: BatchFit) -> None:
    if not batch.reml:
        raise LMMError("ddf='kenward-roger' needs REML fits: fit with reml=True, or use ddf='satterthwaite'")


def _kenward_roger_coefficients(batch: BatchFit) -> tuple[Array, Array]:
    """Adjusted standard errors and degrees of freedom (n, p) of the coefficients."""
    _refuse_ml(batch)
    patterns = _patterns(batch.model)
    x_map, kept = batch.model.problem.x_map, batch.model.problem.kept
    error, freedom = np.full(batch.params.shape, np.nan), np.full(batch.params.shape, np.nan)
    for part, factors in _chunks(batch, patterns):
        half, slopes, shift, inverse, adjustment = patterns.kenward_roger(factors)
        rows = x_map[kept] @ np.swapaxes(half, 1, 2)
        variance = (rows * rows).sum(axis=2)
        total = variance + np.einsum("nri,nij,nrj->nr", rows, adjustment, rows, optimize=True)
        error[part[:, None], kept] = np.sqrt(batch.sigma2[part, None] * total)
        freedom[part[:, None], kept] = _single_df(rows, variance, slopes, shift, inverse, patterns.nu)
    return error, freedom


def _single_df(rows: Array, variance: Array, slopes: Array, shift: Array, inverse: Array, nu: float) -> Array:
    u = np.einsum("nri,nkij,nrj->nkr", rows, slopes, rows, optimize=True) / variance[:, None] - shift[:, :, None]
    return np.asarray(1.0 / (1.0 / nu + np.einsum("nkr,nkl,nlr->nr", u, inverse, u, optimize=True)))


def _of_theta(
    batch: BatchFit, parsed: Hypothesis, rows: Array, basis: Array, gap: Array, z: Array, ddf: str
) -> tuple[Array, Array, Array]:
    """Standard errors (n, m), statistics (n,) and df (n,) by "kenward-roger", "residual" or "normal"."""
    n, m = gap.shape
    if ddf == "kenward-roger":
        _refuse_ml(batch)
    error, statistic, freedom = np.full((n, m), np.nan), np.full(n, np.nan), np.full(n, np.nan)
    fallen = np.zeros(n, dtype=bool)
    known = np.inf if ddf == "normal" else float(batch.model.df_resid)
    patterns = _patterns(batch.model)
    rank = len(basis)
    for part, factors in _chunks(batch, patterns):
        if ddf == "kenward-roger":
            half, slopes, shift, inverse, adjustment = patterns.kenward_roger(factors)
            inner = np.eye(half.shape[1]) + adjustment
        else:
            half = patterns.half(factors)
            inner = np.broadcast_to(np.eye(half.shape[1]), half.shape)
        turned = np.swapaxes(half, 1, 2)
        whitened = rows @ turned
        total = np.einsum("nri,nij,nrj->nr", whitened, inner, whitened, optimize=True)
        error[part] = np.sqrt(batch.sigma2[part, None] * total)
        if m == 1:
            statistic[part] = gap[part, 0] / error[part, 0]
            freedom[part] = known
            if ddf == "kenward-roger":
                variance = (whitened * whitened).sum(axis=2)
                freedom[part] = _single_df(whitened, variance, slopes, shift, inverse, patterns.nu)[:, 0]
            continue
        spanned = basis @ turned
        solved = np.linalg.solve(spanned @ inner @ np.swapaxes(spanned, 1, 2), z[part][..., None])[..., 0]
        chi2 = (z[part] * solved).sum(axis=1) / batch.sigma2[part]
        statistic[part] = chi2 if ddf == "normal" else chi2 / rank
        freedom[part] = known
        if ddf == "kenward-roger":
            orthonormal = np.swapaxes(np.linalg.qr(np.swapaxes(spanned, 1, 2))[0], 1, 2)
            U = orthonormal[:, None] @ slopes @ np.swapaxes(orthonormal, 1, 2)[:, None]
            U -= shift[:, :, None, None] * np.eye(rank)
            traces = np.einsum("nkii->nk", U)
            a1 = 2.0 * (np.einsum("nk,nkl,nl->n", traces, inverse, traces) + rank**2 / patterns.nu)
            a2 = 2.0 * (np.einsum("nkl,nkij,nlji->n", inverse, U, U, optimize=True) + rank / patterns.nu)
            scale, freedom[part] = scaled_f(rank, a1, a2)
            statistic[part] *= scale
            fallen[part] = np.isnan(scale)
    for i in np.flatnonzero(fallen & (batch.status >= 0)) if batch.responses is not None else ():
        found = wald(batch.one(int(i)), parsed.L, parsed.rhs)
        statistic[i], freedom[i] = found.statistic, found.df_denom
    return error, statistic, freedom
