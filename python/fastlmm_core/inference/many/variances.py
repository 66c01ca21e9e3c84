"""Variance parameters of many responses with standard errors, and the shares of the variance.

The covariance of theta and log sigma^2 is twice the inverse of the Hessian of the (restricted) deviance in both
together, of which the profiled Hessian, that the lanes give, is the Schur complement (see `variance_components`):

    d_tt = d_p,tt + nu s s',    d_ts = nu s,    d_ss = nu,    s = -(1 / r^2) d r^2 / d theta.

The delta method gives the rest; on the boundary along the covariance matrices of the rank found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...covariance.elements import sd_and_cor
from ...errors import LMMError
from ...estimation.column_moments import mean_residual_variance
from ...estimation.statements import residual_names
from ...formula.coding import FixedTerm, fixed_terms
from ...support.arguments import checked
from ...support.checks import check_level
from ...support.display import Cells, Shown
from ...support.distributions import quantile
from ...support.types import Array
from ...tables.columns import native_frame
from ...tables.rows import FitLabels
from ..residual_parameters import kind_of
from ..variance_components import AT_ONE, variance_components
from .contrasts import CHUNK_BYTES, curvatures

if TYPE_CHECKING:
    from ...design.design import Design
    from ...estimation.fit import Fit
    from ...estimation.many.batch_fit import BatchFit

__all__ = [
    "BatchFractions", "BatchVariances", "Estimated", "Shared", "components", "delta_errors", "fill_alone",
    "leave_boundary",
]  # fmt: skip

_Columns: TypeAlias = "tuple[list[str], list[str], Array]"
"""Names, kinds and values (n, k) of some parameters."""


@checked
@dataclass(frozen=True, repr=False)
class BatchVariances(Shown):
    """Variance parameters of every response.

    Attributes
    ----------
    names, kinds : tuple of str
        Of the k parameters: standard deviations and correlations with sigma, then variances and covariances with
        sigma2; kinds are "sd", "cor", "var" and "cov".  Parameters of structured residuals stand last, in place of
        sigma and sigma2, of their own kinds: "var", "sd", "cor", "cov", "range" or "other".
    estimate, std_error : (n_responses, k) arrays
        By the observed information; NaN where a parameter is at its boundary, or the response was not fitted.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    estimate: Array
    std_error: Array
    _labels: FitLabels = field(repr=False)

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
                if kind in ("sd", "var", "range"):
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
        limits = self.conf_int(level)
        return native_frame(
            self._labels.library,
            {
                self._labels.name: np.repeat(self._labels.known(n), k), "term": list(self.names) * n,
                "kind": list(self.kinds) * n,
                "estimate": self.estimate.ravel(), "std_error": self.std_error.ravel(),
                "conf_low": limits[..., 0].ravel(), "conf_high": limits[..., 1].ravel(),
            },
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


class Estimated(NamedTuple):
    """Variances of fits, of whatever they are.

    Attributes
    ----------
    design : Design
        With the names of the random effects.
    covariance, sigma2 : (n, q, q) and (n,) arrays
    """

    design: Design
    covariance: Array
    sigma2: Array

    def table(self, labels: FitLabels, phi: Array | None = None) -> BatchVariances:
        """Their names and values, with standard errors that are yet to be found.

        `phi` (n, k): parameters of structured residuals, without constraints.
        """
        elements, G, part = self.design.random.elements, self.covariance, self.design.residual
        entries = G[:, [e.i for e in elements], [e.j for e in elements]].reshape(len(G), len(elements))
        deviations: _Columns = (
            [e.name("sd") for e in elements],
            [e.kind("sd") for e in elements],
            sd_and_cor(elements, G),
        )
        variances: _Columns = [e.name("var") for e in elements], [e.kind("var") for e in elements], entries
        if part is None:
            sigma2 = self.sigma2[:, None]
            groups = [deviations, (["sigma"], ["sd"], np.sqrt(sigma2)), variances, (["sigma2"], ["var"], sigma2)]
        else:
            assert phi is not None
            own = list(residual_names(part))
            natural = np.full((len(G), len(own)), np.nan)
            for at in np.flatnonzero(np.isfinite(self.sigma2)).tolist():
                natural[at] = part.natural(phi[at], float(self.sigma2[at]))
            groups = [deviations, variances, (own, [kind_of(name) for name in own], natural)]
        names, kinds, found = zip(*groups, strict=True)
        estimate = np.column_stack(found)
        return BatchVariances(
            tuple(chain(*names)), tuple(chain(*kinds)), estimate, np.full(estimate.shape, np.nan), labels
        )


def components(batch: BatchFit) -> BatchVariances:
    """See `BatchResult.variance_components`."""
    model = batch.model
    if batch.responses is None and (batch.curvature is None or model.residual is not None):
        raise LMMError(f"{batch.gone}: fit an array to have standard errors of variances")
    if model.residual is not None:
        known = Estimated(model.design, batch.covariance, np.where(batch.status >= 0, batch.sigma2, np.nan))
        out = known.table(FitLabels(model.library, batch.labels), batch.phi)
        fill_alone(out, np.flatnonzero(batch.status >= 0), batch.one)
        return out
    out = Estimated(model.design, batch.covariance, batch.sigma2).table(FitLabels(model.library, batch.labels))
    by_lanes = (batch.status > 0) & ~batch.alone
    size = max(8, CHUNK_BYTES // (8 * model.nobs))
    some = np.flatnonzero(by_lanes)
    for begin in range(0, len(some), size):
        part = some[begin : begin + size]
        nu = np.full(len(part), float(model.df_resid if batch.reml else model.nobs))
        at = model.problem.z_map, batch.factor_o[part], batch.sigma2[part]
        out.std_error[part] = delta_errors(model.design, (*curvatures(batch, part), nu), at)
    leave_boundary(model.design, out)
    fill_alone(out, np.flatnonzero((batch.status >= 0) & ~by_lanes), batch.one)
    return out


def leave_boundary(design: Design, out: BatchVariances) -> None:
    """Give no standard errors of what is at its boundary: variances of zero and theirs, correlations of one."""
    elements = design.random.elements
    place = {e.i: at for at, e in enumerate(elements) if e.i == e.j}
    dead = {i: out.estimate[:, at] == 0.0 for i, at in place.items()}
    for at, e in enumerate(elements):
        lost = dead[e.i] | dead[e.j]
        out.std_error[lost, at] = out.std_error[lost, len(elements) + 1 + at] = np.nan
        if e.i != e.j:
            out.std_error[1.0 - np.abs(out.estimate[:, at]) <= AT_ONE, at] = np.nan


def fill_alone(out: BatchVariances, which: NDArray[np.intp], one: Callable[[int], Fit]) -> None:
    """Take the standard errors of some of the responses from their single fits."""
    for i in which.tolist():
        table = variance_components(one(i), method="wald")
        by_name = dict(zip(list(table["term"]), np.asarray(table["std_error"], dtype=float).tolist(), strict=True))
        out.std_error[i] = [by_name[name] for name in out.names]


def delta_errors(design: Design, curvature: tuple[Array, Array, Array], at: tuple[Array, Array, Array]) -> Array:
    """Standard errors of n fits, in the order of the names, along the covariance matrices of the rank found.

    A column of Lambda that is zero stays so: the criterion is even in it, and G does not depend on it to first order.

    Parameters
    ----------
    design : Design
    curvature : tuple
        -d r^2 / r^2 (n, k), the profiled Hessian (n, k, k) and the degrees of freedom nu (n,).
    at : tuple
        z_map (q, q) or (n, q, q), Lambda in conditioned units (n, q, q) and sigma^2 (n,).
    """
    structure, elements = design.structure, design.random.elements
    shift, hess, nu = curvature
    n, k = shift.shape
    dead = ~np.any(at[1], axis=1)[:, structure.positions[1]]
    shift = np.where(dead, 0.0, shift)
    hess = np.where(dead[:, :, None] | dead[:, None, :], np.eye(k), hess)
    hessian = np.empty((n, k + 1, k + 1))
    hessian[:, :k, :k] = hess + nu[:, None, None] * shift[:, :, None] * shift[:, None, :]
    hessian[:, :k, k] = hessian[:, k, :k] = nu[:, None] * shift
    hessian[:, k, k] = nu
    covariance = _twice_inverses(hessian)
    # G = sigma^2 M M', M = z_map L
    rows, columns = structure.positions
    z_map, factor, sigma2 = at
    M = z_map @ factor
    outer = np.swapaxes(z_map[..., rows], -1, -2)[..., :, None] * M[:, :, columns].transpose(0, 2, 1)[:, :, None, :]
    of_g = np.empty((n, k + 1, structure.q, structure.q))
    of_g[:, :k] = sigma2[:, None, None, None] * (outer + outer.swapaxes(2, 3))
    of_g[:, k] = G = sigma2[:, None, None] * (M @ M.swapaxes(1, 2))
    of_sigma2 = np.zeros((n, k + 1))
    of_sigma2[:, k] = sigma2
    variance = np.einsum("nii->ni", G)
    variance = np.where(variance > 0.0, variance, np.nan)
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


NO_EFFECTS = (
    "icc: the model has no random effects; batch[i].marginal_correlation(subject) has the correlations of residuals of "
    "one response"
)
"""Where there is no intraclass correlation."""


def _mean_variance(batch: BatchFit, sigma2: Array) -> Array:
    """Residual variance (n,), averaged over the observations."""
    if batch.model.residual is None:
        return sigma2 * mean_residual_variance(batch.model, np.zeros(0))
    out = sigma2.copy()
    for i in np.flatnonzero(np.isfinite(sigma2)).tolist():
        out[i] *= mean_residual_variance(batch.model, batch.phi[i])
    return out


class Shared(NamedTuple):
    """What shares of the variance are made of.

    Attributes
    ----------
    design : Design
    params : (n, p) array
    covariance, sigma2 : (n, q, q) and (n,) arrays
        NaN for fits that there are not.
    of_z : (q, q) or (n, q, q) array
        Mean of zz' over the observations.
    of_x : (p, p) or (n, p, p) array
        Covariance of the columns of X over them.
    residual : (n,) array
        Residual variance, averaged over the observations.
    """

    design: Design
    params: Array
    covariance: Array
    sigma2: Array
    of_z: Array
    of_x: Array
    residual: Array

    @classmethod
    def of(cls, batch: BatchFit) -> Shared:
        """Of responses on one design."""
        model = batch.model
        X, Z = model.exog, model.exog_re
        spread = X - X.mean(axis=0)
        of_z, of_x = Z.T @ Z / len(Z), spread.T @ spread / max(len(X) - 1, 1)
        known = np.where(batch.status >= 0, batch.sigma2, np.nan)
        return cls(model.design, batch.params, batch.covariance, known, of_z, of_x, _mean_variance(batch, known))

    def random(self, columns: slice) -> Array:
        """Variance z'Gz of some of the random effects, averaged over the observations (n,)."""
        gram = np.broadcast_to(self.of_z, self.covariance.shape)[:, columns, columns]
        return np.asarray(np.einsum("nij,nij->n", gram, self.covariance[:, columns, columns]))

    def factors(self) -> dict[str, Array]:
        """That of each factor."""
        design = self.design
        return {f.grouping.name: self.random(f.columns) for f in design.factors}

    def fixed(self, columns: Any = slice(None)) -> Array:
        """Variance over the observations of what some columns of X add to the mean (n,)."""
        beta = np.nan_to_num(self.params[:, columns])
        p = self.params.shape[1]
        gram = np.broadcast_to(self.of_x, (len(beta), p, p))[:, columns][:, :, columns]
        return np.asarray(np.einsum("ni,nij,nj->n", beta, gram, beta) + 0.0 * self.sigma2)

    def icc(self) -> Any:
        """See `BatchResult.icc`."""
        if not self.design.structure.q:
            raise LMMError(NO_EFFECTS)
        random = self.factors()
        total = sum(random.values()) + self.residual
        shares = {name: value / total for name, value in random.items()}
        return shares if len(shares) > 1 else next(iter(shares.values()))

    def r2(self) -> dict[str, Array]:
        """See `BatchResult.r2`."""
        fixed, random = self.fixed(), sum(self.factors().values())
        total = fixed + random + self.residual
        return {"marginal": fixed / total, "conditional": (fixed + random) / total}

    def fractions(self, labels: FitLabels, terms: Sequence[FixedTerm] | None = None) -> BatchFractions:
        """See `BatchResult.variance_fractions`."""
        terms = [term for term in terms or fixed_terms(self.design) if not term.is_intercept]
        own = [self.fixed(list(term.columns)) for term in terms]
        each = sum(own) if own else np.zeros(len(self.params))
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.where(each > 0.0, self.fixed() / each, 0.0)
        names = [term.name for term in terms]
        parts = [part * scale for part in own]
        for name, block in zip(self.design.term_names, self.design.structure.blocks, strict=True):
            parts.append(self.random(slice(block.start, block.stop)))
            names.append(name)
        stacked = np.column_stack([*parts, self.residual])
        return BatchFractions((*names, "Residual"), stacked / stacked.sum(axis=1, keepdims=True), labels)


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
    _labels: FitLabels = field(repr=False)

    def __len__(self) -> int:
        return len(self.fractions)

    def to_frame(self) -> Any:
        """One row per response, one column per term."""
        return self._labels.table({name: self.fractions[:, j] for j, name in enumerate(self.names)})

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
