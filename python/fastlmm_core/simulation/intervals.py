"""Limits of bootstrap intervals (Davison and Hinkley 1997, Bootstrap Methods and their Application, ch. 5).

Which of them hold what they promise depends on the statistic.  Studentised intervals are for fixed effects, which have
standard errors.  The BCa interval (Efron 1987, J. Am. Statist. Assoc. 82, 171-185, eq. 2.3 and 6.6) is for standard
deviations, whose replicates are biased and skew: it corrects for both, but needs an estimate inside, where the
replicates have no atom.  A basic interval reflects the replicates at the estimate, which makes no sense for what cannot
be negative or beyond +-1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np

from ..errors import LMMError
from ..support.distributions import quantile
from ..support.types import Array

__all__ = ["Limits", "Method", "Sample", "limits"]

Method = Literal["auto", "percentile", "basic", "normal", "bca", "studentized"]

MANY_GROUPS = 1000
"""Groups from which "auto" leaves out the deletions of BCa: the acceleration falls with the root of their number."""


class Sample(NamedTuple):
    """What intervals are made of.

    Attributes
    ----------
    names : tuple of str
    kinds : tuple of str
        What each statistic is: "fixed", "sd", "cor", "sigma" or "statistic".
    estimate : (k,) array
    replicates : (n, k) array
    errors : (k,) array or None
        Standard errors of the fit.
    replicate_errors : (n, k) array or None
    n_groups : int
    deleted : callable
        The statistics without each of the independent groups (m, k); raises LMMError where there are none.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    estimate: Array
    replicates: Array
    errors: Array | None
    replicate_errors: Array | None
    n_groups: int
    deleted: Callable[[], Array]


class Limits(NamedTuple):
    """Limits (k, 2), the method that each was made by, and why there are none, by name."""

    bounds: Array
    methods: tuple[str, ...]
    reasons: dict[str, str]


def limits(sample: Sample, level: float, method: str) -> Limits:
    """Limits of all statistics.

    Parameters
    ----------
    sample : Sample
    level : float
    method : {"auto", "percentile", "basic", "normal", "bca", "studentized"}

    Raises
    ------
    LMMError
        For an unknown method, or one that the statistics do not allow.
    """
    if method not in get_args(Method):
        known = ", ".join(map(repr, get_args(Method)[:-1]))
        raise LMMError(f"method={method!r} is unknown: use {known} or {get_args(Method)[-1]!r}")
    tails = np.array([0.5 - 0.5 * level, 0.5 + 0.5 * level])
    chosen = (method,) * len(sample.names)
    reasons: dict[str, str] = {}
    if method == "auto":
        return _auto(sample, tails)
    if method == "percentile":
        bounds = _percentile(sample, tails)
    elif method == "normal":
        half = float(quantile(tails[1], None)) * np.nanstd(sample.replicates, axis=0, ddof=1)
        centre = 2.0 * sample.estimate - np.nanmean(sample.replicates, axis=0)
        bounds = np.column_stack([centre - half, centre + half])
    elif method == "basic":
        bounds = _basic(sample, tails)
    elif method == "studentized":
        bounds = _studentized(sample, tails)
    else:
        bounds, reasons = _bca(sample, tails)
    return Limits(bounds, chosen, reasons)


def _auto(sample: Sample, tails: Array) -> Limits:
    """Studentised for fixed effects, BCa for standard deviations inside, percentiles for the rest."""
    bounds = _percentile(sample, tails)
    methods = ["percentile"] * len(sample.names)

    def take(kinds: tuple[str, ...], name: str, found: Array) -> None:
        for j, kind in enumerate(sample.kinds):
            if kind in kinds and np.isfinite(found[j]).all():
                bounds[j], methods[j] = found[j], name

    if sample.errors is not None:
        take(("fixed",), "studentized", _studentized(sample, tails))
        if sample.n_groups <= MANY_GROUPS:
            try:
                found = _bca(sample, tails)[0]
            except LMMError:  # no group is independent of the others
                found = np.full_like(bounds, np.nan)
            take(("sd", "sigma"), "bca", found)
    return Limits(bounds, tuple(methods), {})


def _percentile(sample: Sample, tails: Array) -> Array:
    return np.asarray(np.nanquantile(sample.replicates, tails, axis=0).T)


def _basic(sample: Sample, tails: Array) -> Array:
    bounded = [name for name, kind in zip(sample.names, sample.kinds, strict=True) if kind in ("sd", "cor")]
    if bounded:
        raise LMMError(
            f"method='basic' reflects the replicates at the estimate, which makes no sense for {bounded[0]} (its 95 % "
            "intervals cover .46 to .86): use method='auto' or 'bca', profile(), or names='fixed'"
        )
    return np.asarray(2.0 * sample.estimate[:, None] - _percentile(sample, tails)[:, ::-1])


def _studentized(sample: Sample, tails: Array) -> Array:
    if sample.errors is None or sample.replicate_errors is None:
        raise LMMError("method='studentized' needs standard errors, which a user's statistic does not have")
    out = np.full((len(sample.estimate), 2), np.nan)
    for j in np.flatnonzero(np.isfinite(sample.errors)):
        t = (sample.replicates[:, j] - sample.estimate[j]) / sample.replicate_errors[:, j]
        low, high = np.nanquantile(t, tails)
        out[j] = sample.estimate[j] - np.array([high, low]) * sample.errors[j]
    return out


def _bca(sample: Sample, tails: Array) -> tuple[Array, dict[str, str]]:
    """Limits, NaN with a reason where there are none."""
    from scipy.special import ndtr, ndtri

    if sample.errors is None:
        raise LMMError("method='bca' needs deletions of groups, which a user's statistic does not have")
    deleted = sample.deleted()
    centred = np.nanmean(deleted, axis=0) - deleted
    with np.errstate(invalid="ignore", divide="ignore"):
        acceleration = np.nansum(centred**3, axis=0) / (6.0 * np.nansum(centred**2, axis=0) ** 1.5)
    out = np.full((len(sample.estimate), 2), np.nan)
    reasons: dict[str, str] = {}
    for j, (name, estimate) in enumerate(zip(sample.names, sample.estimate.tolist(), strict=True)):
        values = sample.replicates[:, j]
        values = values[np.isfinite(values)]
        reasons[name] = _no_bca(values, estimate, float(acceleration[j]))
        if reasons[name]:
            continue
        z0 = ndtri(np.mean(values < estimate))
        z = z0 + ndtri(tails)
        if (acceleration[j] * z >= 1.0).any():
            reasons[name] = f"the acceleration, {acceleration[j]:.2g}, is too large for this level"
            continue
        out[j] = np.quantile(values, ndtr(z0 + z / (1.0 - acceleration[j] * z)))
    return out, {name: reason for name, reason in reasons.items() if reason}


def _no_bca(values: Array, estimate: float, acceleration: float) -> str:
    """Why there is no BCa interval, or nothing."""
    if not np.isfinite(estimate):
        return "it is not defined at the estimate"
    ties = float(np.mean(values == estimate)) if len(values) else 1.0
    if ties:
        return f"the estimate, {estimate:g}, lies on the boundary, as {100.0 * ties:.0f} % of the replicates do"
    below = float(np.mean(values < estimate))
    if not 0.0 < below < 1.0:
        return f"all replicates lie {'above' if below == 0.0 else 'below'} the estimate"
    return "" if np.isfinite(acceleration) else "no deletion of a group changes it"
