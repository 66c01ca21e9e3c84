"""What tests of fixed effects need of many responses, for several hypotheses in one pass over them.

What depends on the responses (the Hessian of the criterion, the derivative of r^2) comes from the compiled lanes.  What
depends on theta and the design only (all of Kenward-Roger with the expected information) comes from
`estimation.many.patterns`.  The formulas are those of `information`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...covariance.directions import inverse_hessian
from ...errors import LMMError
from ...estimation.information import Moments, combined_df, delta_df, kenward_roger_f
from ...estimation.many.one_factor import shared_design
from ...estimation.many.patterns import Observed, patterns_of
from ...support.blas_threads import one_blas_thread
from ...support.threads import map_in_threads, thread_count
from ...support.types import Array
from ..hypotheses import Hypothesis
from ..wald import check_estimable, coefficient_table, independent_rows, wald
from .robust import robust_fits

if TYPE_CHECKING:
    from ...estimation.many.batch_fit import BatchFit
    from ..wald_test import WaldTest

__all__ = [
    "Asked", "chunks", "contrasts", "curvatures", "kenward_roger", "kenward_roger_coefficients", "of_variance",
    "robust", "satterthwaite", "stacks", "tell_kenward_roger", "tell_of_variance", "tell_satterthwaite",
]  # fmt: skip


CHUNK_BYTES = 2**24
"""Size of the intermediate arrays over responses."""

STACKED = 12
"""Rows of hypotheses that are looked at together."""


@dataclass
class Asked:
    """A hypothesis about many responses, and the test of each.

    Attributes
    ----------
    parsed : Hypothesis
    rows : (m, r) array
        L in the coordinates of the conditioned problem, or as it is where each response has a design of its own.
    basis : (rank, r) array
        Independent combinations of its rows.
    estimate, gap : (n, m) arrays
        L beta, and less the right-hand side.
    z : (n, rank) array
        The gap along the basis.
    error, statistic, freedom : (n, m), (n,) and (n,) arrays
        To be filled in; NaN for responses that could not be fitted.
    """

    parsed: Hypothesis
    rows: Array
    basis: Array
    estimate: Array
    gap: Array
    z: Array
    error: Array
    statistic: Array
    freedom: Array

    @classmethod
    def of(cls, batch: BatchFit, parsed: Hypothesis) -> Asked:
        """A hypothesis that nothing is known of yet.

        Raises
        ------
        LMMError
            For what cannot be estimated, or contradictions.
        """
        model = batch.model
        check_estimable(model, parsed.L, parsed.names)
        return cls.along(parsed, parsed.L @ model.problem.x_map, batch.params, batch.status < 0)

    @classmethod
    def along(cls, parsed: Hypothesis, rows: Array, params: Array, failed: NDArray[np.bool_]) -> Asked:
        """A hypothesis along some rows, about coefficients (n, p) of which those that failed are not known.

        Raises
        ------
        LMMError
            For contradictions.
        """
        basis, combine = independent_rows(rows, parsed.rhs, parsed.names)
        estimate = np.nan_to_num(params) @ parsed.L.T
        estimate[failed] = np.nan
        gap, n = estimate - parsed.rhs, len(params)
        return cls(
            parsed, rows, basis, estimate, gap, gap @ combine.T, np.full(gap.shape, np.nan), np.full(n, np.nan),
            np.full(n, np.nan),
        )  # fmt: skip

    @property
    def L(self) -> Array:
        """(m, p)."""
        return self.parsed.L

    @property
    def rhs(self) -> Array:
        """(m,)."""
        return self.parsed.rhs

    def take(self, i: int, found: WaldTest) -> None:
        """The test of one response, from its own fit."""
        self.error[i], self.statistic[i], self.freedom[i] = found.std_error, found.statistic, found.df_denom

    def coefficient(self) -> int | None:
        """The coefficient that is asked for, where it is a single one."""
        return int(np.flatnonzero(self.L[0])[0]) if len(self.L) == 1 and np.count_nonzero(self.L) == 1 else None


# ---- Satterthwaite -----------------------------------------------------------------------------


def satterthwaite(batch: BatchFit, asked: Sequence[Asked]) -> None:
    """Fill in standard errors, statistics and degrees of freedom by Satterthwaite's formula."""
    if not asked:
        return
    _need_responses(batch, "test single coefficients, or ddf='kenward-roger' or 'residual'")
    model = batch.model
    regular = np.flatnonzero((batch.status >= 0) & ~batch.alone)
    size = max(8, CHUNK_BYTES // (8 * model.nobs))
    for begin in range(0, len(regular), size):
        part = regular[begin : begin + size]
        nu = np.full((len(part), 1), float(model.df_resid if batch.reml else model.nobs))
        for some in stacks(asked):
            rows = np.ascontiguousarray(np.concatenate([one.rows for one in some]))
            covariance, slope, shift, hess, theta = contrasts(batch, part, rows)
            inverse = inverse_hessian(model.structure, theta, hess)
            tell_satterthwaite(some, part, batch.sigma2[part], nu, (covariance, slope, shift, inverse))
    for i in _alone(batch):
        fit = batch.one(i)
        for one in asked:
            one.take(i, wald(fit, one.L, one.rhs))


def stacks(asked: Sequence[Asked]) -> Iterator[list[Asked]]:
    """Hypotheses of which the rows are looked at together: all pairs of rows are."""
    some: list[Asked] = []
    for one in asked:
        if some and sum(len(other.rows) for other in some) + len(one.rows) > STACKED:
            yield some
            some = []
        some.append(one)
    if some:
        yield some


def tell_satterthwaite(
    asked: Sequence[Asked], part: NDArray[np.intp], sigma2: Array, nu: Array, found: tuple[Array, ...]
) -> None:
    """Fill in what Satterthwaite's formula says of some responses.

    Parameters
    ----------
    asked : sequence of Asked
    part : (n,) int array
        These responses.
    sigma2, nu : (n,) and (n, 1) arrays
    found : tuple of arrays
        covariance (n, m, m), slope (n, k, m, m), shift (n, k) and the inverse Hessian (n, k, k) of the rows of all
        hypotheses, one after the other.
    """
    covariance, slope, shift, inverse = found
    at = 0
    for one in asked:
        own = slice(at, at + len(one.rows))
        _tell_satterthwaite(one, part, sigma2, nu, (covariance[:, own, own], slope[:, :, own, own], shift, inverse))
        at = own.stop


def _tell_satterthwaite(one: Asked, part: NDArray[np.intp], sigma2: Array, nu: Array, found: tuple[Array, ...]) -> None:
    covariance, slope, shift, inverse = found
    m, rank = len(one.rows), len(one.basis)
    one.error[part] = np.sqrt(sigma2[:, None] * np.einsum("nii->ni", covariance))
    if m == 1:
        u = slope[:, :, :, 0] / covariance - shift[:, :, None]
        one.statistic[part] = one.gap[part, 0] / one.error[part, 0]
        one.freedom[part] = delta_df(u, inverse, nu)[:, 0]
        return
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[:, m - rank :], vectors[:, :, m - rank :]
    contrast = np.einsum("nir,ni->nr", vectors, one.gap[part])
    one.statistic[part] = (contrast**2 / values).sum(axis=1) / (rank * sigma2)
    turned = np.einsum("nkij,nir,njr->nkr", slope, vectors, vectors, optimize=True)
    u = turned / values[:, None] - shift[:, :, None]
    one.freedom[part] = combined_df(delta_df(u, inverse, nu))


# ---- Kenward and Roger, and what takes the variances for known -----------------------------------


def chunks(size: int, which: NDArray[np.bool_]) -> Iterator[NDArray[np.intp]]:
    """Positions of some responses, so many at a time."""
    chosen = np.flatnonzero(which)
    for begin in range(0, len(chosen), size):
        yield chosen[begin : begin + size]


def _with_moments(batch: BatchFit, information: str, use: Callable[[NDArray[np.intp], Moments], None]) -> None:
    """Let the moments of the responses that were fitted be used, some at a time, of one factor by several threads.

    With the observed information they are those of the responses that were fitted by lanes.
    """
    if not batch.reml:
        raise LMMError("ddf='kenward-roger' needs REML fits: fit with reml=True, or use ddf='satterthwaite'")
    which = batch.status >= 0
    if information == "observed":
        _need_responses(batch, "information='expected'")
        which = which & ~batch.alone
    edge = (batch.singular | (batch.status == 0)) & (information == "auto")
    patterns, factors = patterns_of(batch.model), batch.factor_o

    def run(part: NDArray[np.intp]) -> None:
        observed = _observed(batch, part) if information == "observed" else None
        use(part, patterns.moments(factors[part], edge[part], observed))

    parts = list(chunks(patterns.chunk(), which))
    jobs = min(thread_count(None), len(parts)) if patterns.apart else 1
    with one_blas_thread(jobs > 1):
        map_in_threads(run, ((part,) for part in parts), jobs)


def _observed(batch: BatchFit, part: NDArray[np.intp]) -> Observed:
    """The observed information of some responses."""
    shift, hess = curvatures(batch, part)
    return Observed(shift, inverse_hessian(batch.model.structure, batch.theta_o[part], hess))


def curvatures(batch: BatchFit, part: NDArray[np.intp]) -> tuple[Array, Array]:
    """The shift and the Hessian at the estimates of some responses; see `contrasts`."""
    if batch.responses is None and batch.curvature is not None:
        return batch.curvature.shift[part], batch.curvature.hessians(part)
    _, _, shift, hess, _ = contrasts(batch, part, np.eye(1, batch.model.problem.rank))
    return shift, hess


def contrasts(batch: BatchFit, part: NDArray[np.intp], rows: Array) -> tuple[Array, ...]:
    """K = rows H_xx^-1 rows', its slope, the shift and the Hessian at the estimates of some responses; and those."""
    theta = np.ascontiguousarray(batch.theta_o[part])
    if batch.responses is None and batch.curvature is not None:
        # K and its slope are those of the design: any response will do
        any_y = np.random.default_rng(0).standard_normal(batch.model.nobs)
        lines = np.ascontiguousarray(np.broadcast_to(any_y, (len(part), len(any_y))))
        K, slope, _, _ = shared_design(batch.model).contrasts(lines, batch.reml, theta, rows)
        return K, slope, *curvatures(batch, part), theta
    lines, scores = batch.seen(part)
    more = () if scores is None else (scores,)
    return *shared_design(batch.model).contrasts(lines, batch.reml, theta, rows, *more), theta


def _need_responses(batch: BatchFit, remedy: str) -> None:
    if batch.responses is None and batch.curvature is None:
        raise LMMError(f"{batch.gone}: fit an array, or use {remedy}")


def _alone(batch: BatchFit) -> list[int]:
    """Responses that were fitted one by one."""
    return np.flatnonzero((batch.status >= 0) & batch.alone).tolist()


def kenward_roger_coefficients(batch: BatchFit, information: str) -> tuple[Array, Array]:
    """Adjusted standard errors and degrees of freedom (n, p) of the coefficients."""
    x_map, kept = batch.model.problem.x_map, batch.model.problem.kept
    error, freedom = np.full(batch.params.shape, np.nan), np.full(batch.params.shape, np.nan)

    def use(part: NDArray[np.intp], found: Moments) -> None:
        rows = x_map[kept] @ np.swapaxes(found.half, 1, 2)
        total = np.einsum("nii->ni", found.inner(rows))
        error[part[:, None], kept] = np.sqrt(batch.sigma2[part, None] * total)
        freedom[part[:, None], kept] = found.df(rows)

    _with_moments(batch, information, use)
    for i in _alone(batch) if information == "observed" else ():
        table = coefficient_table(batch.one(i), "kenward-roger", information)
        error[i], freedom[i] = table["std_error"], table["df"]
    return error, freedom


def kenward_roger(batch: BatchFit, asked: Sequence[Asked], information: str) -> None:
    """Fill in adjusted standard errors, statistics and degrees of freedom by Kenward and Roger's method."""
    fallen = np.zeros((len(asked), len(batch)), dtype=bool)

    def use(part: NDArray[np.intp], found: Moments) -> None:
        turned = np.swapaxes(found.half, 1, 2)
        for one, lost in zip(asked, fallen, strict=True):
            lost[part] = tell_kenward_roger(one, part, batch.sigma2[part], turned, found)

    _with_moments(batch, information, use)
    if information == "observed":
        fallen |= batch.alone
    fallen &= batch.status >= 0
    for i in np.flatnonzero(fallen.any(axis=0)).tolist() if batch.responses is not None else ():
        fit = batch.one(i)
        for one, lost in zip(asked, fallen, strict=True):
            if lost[i]:
                one.take(i, wald(fit, one.L, one.rhs, "kenward-roger", information))


def tell_kenward_roger(
    one: Asked, part: NDArray[np.intp], sigma2: Array, root: Array, found: Moments
) -> NDArray[np.bool_]:
    """Fill in what Kenward and Roger's method says of some responses; where it has no joint test.

    Parameters
    ----------
    one : Asked
    part : (n,) int array
        These responses.
    sigma2 : (n,) array
    root : (n, ., r) array
        Phi = sigma^2 root root' in the coordinates of the rows, before it is adjusted.
    found : Moments
    """
    whitened = one.rows @ root
    one.error[part] = np.sqrt(sigma2[:, None] * np.einsum("nii->ni", found.inner(whitened)))
    if len(one.rows) == 1:
        one.statistic[part] = one.gap[part, 0] / one.error[part, 0]
        one.freedom[part] = found.df(whitened)[:, 0]
        return np.zeros(len(part), dtype=bool)
    spanned = one.basis @ root
    chi2 = _quadratic(found.inner(spanned), one.z[part]) / sigma2
    orthonormal = np.swapaxes(np.linalg.qr(np.swapaxes(spanned, 1, 2))[0], 1, 2)
    scale, one.freedom[part] = kenward_roger_f(found, orthonormal)
    one.statistic[part] = scale * chi2 / len(one.basis)
    return np.isnan(scale)


def of_variance(batch: BatchFit, asked: Sequence[Asked], ddf: str) -> None:
    """Fill in standard errors, statistics and degrees of freedom by "residual" or "normal"."""
    known = np.inf if ddf == "normal" else float(batch.model.df_resid)
    patterns, factors = patterns_of(batch.model), batch.factor_o
    for part in chunks(patterns.chunk(), batch.status >= 0):
        half = patterns.half(factors[part])
        for one in asked:
            one.freedom[part] = known
            tell_of_variance(one, part, batch.sigma2[part], np.swapaxes(half, 1, 2) @ half, ddf)


def tell_of_variance(one: Asked, part: NDArray[np.intp], sigma2: Array, covariance: Array, ddf: str) -> None:
    """Fill in standard errors and statistics of some responses, of which the degrees of freedom are known.

    Parameters
    ----------
    one : Asked
    part : (n,) int array
        These responses.
    sigma2 : (n,) array
    covariance : (n, ., .) array
        Of the coefficients in the coordinates of the rows, relative to sigma^2.
    ddf : {"residual", "normal"}
    """
    one.error[part] = np.sqrt(sigma2[:, None] * ((one.rows @ covariance) * one.rows).sum(axis=2))
    if len(one.rows) == 1:
        one.statistic[part] = one.gap[part, 0] / one.error[part, 0]
        return
    chi2 = _quadratic(one.basis @ covariance @ one.basis.T, one.z[part]) / sigma2
    one.statistic[part] = chi2 if ddf == "normal" else chi2 / len(one.basis)


def robust(batch: BatchFit, asked: Sequence[Asked], ddf: str, vcov: str, cluster: Any) -> None:
    """Fill in robust standard errors, statistics and degrees of freedom, response by response."""
    for i, fit, own in robust_fits(batch, vcov, cluster):
        for one in asked:
            one.take(i, wald(fit, one.L, one.rhs, ddf, robust=own))


def _quadratic(matrix: Array, z: Array) -> Array:
    """z'A^-1 z (n,)."""
    return np.asarray((z * np.linalg.solve(matrix, z[..., None])[..., 0]).sum(axis=1))
