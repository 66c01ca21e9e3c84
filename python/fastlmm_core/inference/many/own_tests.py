"""Tests of the fixed effects of fits of which each has a design of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...covariance.directions import inverse_hessian
from ...errors import LMMError
from ...estimation.information import Moments
from ...estimation.many.stack_fit import StackFit
from ...support.blas_threads import one_blas_thread
from ...support.threads import map_in_threads, thread_count
from ...support.types import Array
from ..hypotheses import Hypothesis
from ..wald import coefficient_table, wald
from .contrasts import Asked, stacks, tell_kenward_roger, tell_of_variance, tell_satterthwaite
from .tests import BatchTest, check_ddf, joint_pvalues

__all__ = ["PART", "coefficient_errors", "tested", "tested_alone"]


PART = 256
"""Problems of which the moments, or the rows, are looked at together."""


def tested_alone(fits: StackFit) -> list[int]:
    """Problems that are tested by themselves: fitted so, or with columns dropped."""
    apart = (fits.by_lanes == 0) | (fits.rank < fits.params.shape[1])
    return np.flatnonzero(apart & (fits.status >= 0)).tolist()


def coefficient_errors(fits: StackFit, ddf: str, information: str) -> tuple[Array, Array]:
    """Standard errors and degrees of freedom (n, p)."""
    _check(fits, ddf, information)
    if ddf == "satterthwaite":
        return fits.bse, fits.satterthwaite
    if ddf == "kenward-roger":
        return _adjusted(fits, information)
    known = np.full(len(fits), np.inf) if ddf == "normal" else fits.nobs - fits.rank
    return fits.bse, np.where(np.isnan(fits.params), np.nan, known[:, None])


def tested(fits: StackFit, asked: Sequence[Hypothesis], ddf: str, information: str) -> list[BatchTest]:
    """Tests of several hypotheses of every problem.

    Parameters
    ----------
    fits : StackFit
    asked : sequence of Hypothesis
    ddf, information
        As for `EachResult.tests`.
    """
    _check(fits, ddf, information)
    stack = fits.stack
    found = [Asked.along(parsed, parsed.L, fits.params, fits.status < 0) for parsed in asked]
    lost = np.isin(np.arange(len(fits)), tested_alone(fits))
    some = np.flatnonzero((fits.by_lanes == 1) & ~lost)
    if ddf == "satterthwaite":
        _satterthwaite(fits, found, some)
    elif ddf == "kenward-roger":
        lost |= _kenward_roger(fits, found, some, information)
    else:
        covariance = fits.contrasts(np.eye(fits.params.shape[1]))[0]
        known = np.full(len(fits), np.inf) if ddf == "normal" else fits.nobs - fits.rank
        for one in found:
            one.freedom[some] = known[some]
            tell_of_variance(one, some, fits.sigma2[some], covariance[some], ddf)
    for i in np.flatnonzero(lost).tolist():
        fit = fits.one(i)
        for one in found:
            try:
                one.take(i, wald(fit, one.L, one.rhs, ddf, information))
            except LMMError:  # not estimable there
                one.estimate[i] = np.nan
    return [
        BatchTest(
            one.estimate, one.error, one.statistic, len(one.basis), one.freedom,
            joint_pvalues(one.statistic, one.freedom, len(one.L), len(one.basis), ddf), one.L, one.rhs,
            one.parsed.names, ddf, "model", stack.design.library, stack.labels, stack.one,
        )
        for one in found
    ]  # fmt: skip


def _adjusted(fits: StackFit, information: str) -> tuple[Array, Array]:
    """`coefficient_errors` by Kenward and Roger's method."""
    error, freedom = np.full_like(fits.bse, np.nan), np.full_like(fits.bse, np.nan)
    apart = tested_alone(fits)

    def use(part: NDArray[np.intp], root: Array, found: Moments) -> None:
        error[part] = np.sqrt(fits.sigma2[part, None] * np.einsum("nii->ni", found.inner(root)))
        freedom[part] = found.df(root)

    _with_moments(fits, np.setdiff1d(np.flatnonzero(fits.by_lanes), apart), information, use)
    for i in apart:
        table = coefficient_table(fits.one(i), "kenward-roger", information)
        error[i], freedom[i] = table["std_error"], table["df"]
    return error, freedom


def _check(fits: StackFit, ddf: str, information: str) -> None:
    check_ddf(ddf, information)
    if ddf == "kenward-roger" and not fits.reml:
        raise LMMError("ddf='kenward-roger' needs REML fits: fit with reml=True, or use ddf='satterthwaite'")


def _satterthwaite(fits: StackFit, asked: Sequence[Asked], some: NDArray[np.intp]) -> None:
    """Fill in what Satterthwaite's formula says of problems that the lanes have fitted."""
    nu = np.asarray(fits.nobs - (fits.rank if fits.reml else 0), dtype=np.float64)[some, None]
    for part in stacks(asked):
        covariance, slope, shift, hess = fits.contrasts(np.concatenate([one.rows for one in part]))
        inverse = inverse_hessian(fits.stack.design.structure, fits.theta_o[some], hess[some])
        found = (covariance[some], slope[some], shift[some], inverse)
        tell_satterthwaite(part, some, fits.sigma2[some], nu, found)


def _with_moments(
    fits: StackFit,
    some: NDArray[np.intp],
    information: str,
    use: Callable[[NDArray[np.intp], Array, Moments], None],
) -> None:
    """Let Kenward and Roger's moments of problems be used, some at a time, by several threads."""
    observed = fits.observed() if information == "observed" else None

    def run(part: NDArray[np.intp]) -> None:
        use(part, *fits.moments(part, information, observed))

    parts = [part for part in np.split(some, np.searchsorted(some, np.arange(PART, len(fits), PART))) if len(part)]
    jobs = min(thread_count(None), len(parts))
    with one_blas_thread(jobs > 1):
        map_in_threads(run, ((part,) for part in parts), jobs)


def _kenward_roger(
    fits: StackFit, asked: Sequence[Asked], some: NDArray[np.intp], information: str
) -> NDArray[np.bool_]:
    """Fill in what Kenward and Roger's method says; where it has no joint test of one of the hypotheses (n,)."""
    fallen = np.zeros(len(fits), dtype=bool)

    def use(part: NDArray[np.intp], root: Array, found: Moments) -> None:
        for one in asked:
            fallen[part] |= tell_kenward_roger(one, part, fits.sigma2[part], root, found)

    _with_moments(fits, some, information, use)
    return fallen
