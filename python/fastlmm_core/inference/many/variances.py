"""Variance parameters of many responses with standard errors, and the shares of the variance.

The covariance of theta and log sigma^2 is twice the inverse of the Hessian of the (restricted) deviance in both
together, of which the profiled Hessian, that the lanes give, is the Schur complement (see `variance_components`):

    d_tt = d_p,tt + nu s s',    d_ts = nu s,    d_ss = nu,    s = -(1 / r^2) d r^2 / d theta.

Inside the parameter space the delta method gives the rest.  On the boundary a response is looked at by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...covariance.elements import Element, sd_and_cor
from ...errors import LMMError
from ...formula.coding import fixed_terms
from ...support.arguments import checked
from ...support.checks import check_level
from ...support.display import Cells, Shown
from ...support.distributions import quantile
from ...support.types import Array
from ...tables.rows import named_rows
from ..variance_components import variance_components
from .contrasts import CHUNK_BYTES, contrasts

if TYPE_CHECKING:
    from ...estimation.many.batch_fit import BatchFit

__all__ = ["BatchFractions", "BatchVariances", "components", "fractions", "icc", "r2"]


@checked
@dataclass(frozen=True, repr=False)
class BatchVariances(Shown):
    """Variance parameters of every response.

    Attributes
    ----------
    names, kinds : tuple of str
        Of the k parameters: standard deviations and correlations with sigma, then variances and covariances with
        sigma2; kinds are "sd", "cor", "var" and "cov".
    estimate, std_error : (n_responses, k) arrays
        By the observed information; NaN where a parameter is at its boundary, or the response was not fitted.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    estimate: Array
    std_error: Array
    _batch: BatchFit = field(repr=False)

    def __len__(self) -> int:
        return len(self.estimate)

    def conf_int(self, level: float = 0.95) -> Array:
        """Wald intervals (n_responses, k, 2): of logarithms of standard deviations and variances, of Fisher's z of
        correlations, as ``variance_components(method="wald")`` of one fit has them.
        """
        check_level(level)
        z = float(quantile(0.5 + 0.5 * level, None))
        out = np.empty((*self.estimate.shape, 2))
        with np.errstate(all="ignore"):
            for j, kind in enumerate(self.kinds):
                estimate, half = self.estimate[:, j], z * self.std_error[:, j]
                if kind in ("sd", "var"):
                    factor = np.exp(half / estimate)
                    out[:, j] = np.column_stack([estimate / factor, estimate * factor])
                elif kind == "cor":
                    centre, reach = np.arctanh(estimate), half / (1.0 - estimate**2)
                    out[:, j] = np.tanh(np.column_stack([centre - reach, centre + reach]))
                else:
                    out[:, j] = np.column_stack([estimate - half, estimate + half])
        return out

    def to_frame(self, level: float = 0.95) -> Any:
        """One row per response and parameter: response, term, kind, estimate, std_error, conf_low, conf_high."""
        n, k = self.estimate.shape
        labels = np.arange(n) if self._batch.labels is None else self._batch.labels
        limits = self.conf_int(level)
        return self._batch.model.table(
            {
                "response": np.repeat(labels, k), "term": list(self.names) * n, "kind": list(self.kinds) * n,
                "estimate": self.estimate.ravel(), "std_error": self.std_error.ravel(),
                "conf_low": limits[..., 0].ravel(), "conf_high": limits[..., 1].ravel(),
            }
        )  # fmt: skip

    def _shown(self) -> Iterator[str | Cells]:
        yield f"Variance parameters of {len(self)} responses"
        with np.errstate(invalid="ignore"):
            middle = np.nanmedian(self.estimate, axis=0) if len(self) else np.full(len(self.names), np.nan)
        known = np.isfinite(self.std_error).sum(axis=0)
        rows = [[n, f"{v:.4g}", str(k)] for n, v, k in zip(self.names, middle.tolist(), known.tolist(), strict=True)]
        yield Cells(["", "median", "with a standard error"], rows)

    def __repr__(self) -> str:
        return f"<BatchVariances: {', '.join(self.names)}; {len(self)} responses>"


def components(batch: BatchFit) -> BatchVariances:
    """See `BatchResult.variance_components`."""
    model = batch.model
    model.needs_independent_residuals("variance_components() of many responses (of batch[i] it does not)")
    if batch.responses is None:
        raise LMMError(f"{batch.gone}: fit an array to have standard errors of variances")
    elements = model.random.elements
    names = [e.name("sd") for e in elements] + ["sigma"] + [e.name("var") for e in elements] + ["sigma2"]
    kinds = [e.kind("sd") for e in elements] + ["sd"] + [e.kind("var") for e in elements] + ["var"]
    i, j = [e.i for e in elements], [e.j for e in elements]
    G = batch.covariance
    estimate = np.column_stack(
        [sd_and_cor(elements, G), np.sqrt(batch.sigma2), G[:, i, j].reshape(len(batch), -1), batch.sigma2]
    )
    error = np.full(estimate.shape, np.nan)
    inside = (batch.status == 1) & ~batch.alone
    size = max(8, CHUNK_BYTES // (8 * model.nobs))
    regular = np.flatnonzero(inside)
    for begin in range(0, len(regular), size):
        part = regular[begin : begin + size]
        error[part] = _errors(batch, part, elements)
    k = len(names)
    for one in np.flatnonzero((batch.status >= 0) & ~inside).tolist():
        table = variance_components(batch.one(one), method="wald")
        by_name = dict(zip(list(table["term"]), np.asarray(table["std_error"], dtype=float).tolist(), strict=True))
        error[one] = [by_name[name] for name in names[:k]]
    return BatchVariances(tuple(names), tuple(kinds), estimate, error, batch)


def _errors(batch: BatchFit, part: NDArray[np.intp], elements: tuple[Element, ...]) -> Array:
    """Standard errors of responses inside the parameter space, in the order of the names."""
    model, structure = batch.model, batch.model.structure
    _, _, shift, hess, _ = contrasts(batch, part, np.eye(1, model.problem.rank))
    n, k = shift.shape
    nu = float(model.df_resid if batch.reml else model.nobs)
    hessian = np.empty((n, k + 1, k + 1))
    hessian[:, :k, :k] = hess + nu * shift[:, :, None] * shift[:, None, :]
    hessian[:, :k, k] = hessian[:, k, :k] = nu * shift
    hessian[:, k, k] = nu
    covariance = _twice_inverses(hessian)
    # G = sigma^2 M M', M = z_map L
    rows, columns = structure.positions
    sigma2, z_map = batch.sigma2[part], model.problem.z_map
    M = z_map @ batch.factor_o[part]
    outer = z_map[:, rows].T[None, :, :, None] * M[:, :, columns].transpose(0, 2, 1)[:, :, None, :]
    of_g = np.empty((n, k + 1, structure.q, structure.q))
    of_g[:, :k] = sigma2[:, None, None, None] * (outer + outer.swapaxes(2, 3))
    of_g[:, k] = G = sigma2[:, None, None] * (M @ M.swapaxes(1, 2))
    of_sigma2 = np.zeros((n, k + 1))
    of_sigma2[:, k] = sigma2
    variance = np.einsum("nii->ni", G)
    sd = np.sqrt(variance)
    slopes, own = [], []
    for e in elements:
        i, j = e.i, e.j
        own.append(of_g[:, :, i, j])
        if i == j:
            slopes.append(of_g[:, :, i, i] / (2.0 * sd[:, i, None]))
            continue
        cor = G[:, i, j] / (sd[:, i] * sd[:, j])
        ends = of_g[:, :, i, i] / variance[:, i, None] + of_g[:, :, j, j] / variance[:, j, None]
        slopes.append(of_g[:, :, i, j] / (sd[:, i] * sd[:, j])[:, None] - 0.5 * cor[:, None] * ends)
    slopes += [of_sigma2 / (2.0 * np.sqrt(sigma2))[:, None], *own, of_sigma2]
    stacked = np.stack(slopes, axis=1)
    return np.asarray(np.sqrt(np.einsum("nai,nij,naj->na", stacked, covariance, stacked)))


def _twice_inverses(hessian: Array) -> Array:
    """2 H^-1 (n, k, k); NaN where the estimate is no minimum."""
    size = np.sqrt(np.abs(np.einsum("nii->ni", hessian)))
    size[size == 0.0] = 1.0
    outer = size[:, :, None] * size[:, None, :]
    scaled = hessian / outer
    values = np.linalg.eigvalsh(scaled)
    good = values[:, 0] > 1e-12 * values[:, -1]
    out = np.full_like(hessian, np.nan)
    out[good] = 2.0 * np.linalg.inv(scaled[good]) / outer[good]
    return out


# ---- shares of the variance --------------------------------------------------------------------


def _random_variances(batch: BatchFit) -> dict[str, Array]:
    """Variance z'Gz of each factor, averaged over the observations (n_responses,)."""
    model = batch.model
    model.needs_independent_residuals("shares of the variance of many responses")
    G, Z = batch.covariance, model.exog_re
    out = {}
    for f in model.factors:
        gram = Z[:, f.columns].T @ Z[:, f.columns] / len(Z)
        out[f.grouping.name] = np.asarray(np.einsum("ij,nij->n", gram, G[:, f.columns, f.columns]))
    return out


def _fixed_variance(batch: BatchFit, columns: Any = slice(None)) -> Array:
    """Variance over the observations of what some columns of X add to the mean (n_responses,)."""
    X = batch.model.exog[:, columns]
    spread = X - X.mean(axis=0)
    gram = spread.T @ spread / max(len(X) - 1, 1)
    beta = np.nan_to_num(batch.params[:, columns])
    found = np.einsum("ni,ij,nj->n", beta, gram, beta)
    return np.where(batch.status >= 0, found, np.nan)


def icc(batch: BatchFit) -> Any:
    """See `BatchResult.icc`."""
    if not batch.model.structure.q:
        raise LMMError("icc: the model has no random effects")
    random = _random_variances(batch)
    total = sum(random.values()) + batch.sigma2
    shares = {name: value / total for name, value in random.items()}
    return shares if len(shares) > 1 else next(iter(shares.values()))


def r2(batch: BatchFit) -> dict[str, Array]:
    """See `BatchResult.r2`."""
    fixed, random = _fixed_variance(batch), sum(_random_variances(batch).values())
    total = fixed + random + batch.sigma2
    return {"marginal": fixed / total, "conditional": (fixed + random) / total}


@checked
@dataclass(frozen=True, repr=False)
class BatchFractions(Shown):
    """Shares of the variance of every response.

    Attributes
    ----------
    names : tuple of str
        Terms of the fixed part, random effects by term and "Residual".
    fractions : (n_responses, k) array
        Rows sum to one; NaN for responses that were not fitted.
    """

    names: tuple[str, ...]
    fractions: Array
    _batch: BatchFit = field(repr=False)

    def __len__(self) -> int:
        return len(self.fractions)

    def to_frame(self) -> Any:
        """One row per response, one column per term."""
        batch = self._batch
        columns = {name: self.fractions[:, j] for j, name in enumerate(self.names)}
        return named_rows(batch.model.library, "response", batch.labels, columns)

    def _shown(self) -> Iterator[str | Cells]:
        yield f"Shares of the variance of {len(self)} responses"
        points = [5, 25, 50, 75, 95]
        found = np.nanpercentile(self.fractions, points, axis=0) if len(self) else np.full((5, len(self.names)), np.nan)
        rows = [
            [name, *(f"{v:.3f}" for v in column)] for name, column in zip(self.names, found.T.tolist(), strict=True)
        ]
        yield Cells(["", *(f"{p} %" for p in points)], rows)

    def __repr__(self) -> str:
        return f"<BatchFractions: {', '.join(self.names)}; {len(self)} responses>"


def fractions(batch: BatchFit) -> BatchFractions:
    """See `BatchResult.variance_fractions`."""
    model = batch.model
    model.needs_independent_residuals("shares of the variance of many responses")
    terms = [term for term in fixed_terms(model.design) if not term.is_intercept]
    own = [_fixed_variance(batch, list(term.columns)) for term in terms]
    total = _fixed_variance(batch)
    each = sum(own) if own else np.zeros(len(batch))
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(each > 0.0, total / each, 0.0)
    names = [term.name for term in terms]
    parts = [part * scale for part in own]
    G, Z = batch.covariance, model.exog_re
    for name, block in zip(model.term_names, model.structure.blocks, strict=True):
        span = slice(block.start, block.stop)
        gram = Z[:, span].T @ Z[:, span] / len(Z)
        parts.append(np.einsum("ij,nij->n", gram, G[:, span, span]))
        names.append(name)
    parts.append(batch.sigma2)
    stacked = np.column_stack(parts)
    return BatchFractions((*names, "Residual"), stacked / stacked.sum(axis=1, keepdims=True), batch)
