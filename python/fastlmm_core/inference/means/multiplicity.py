"""Adjustment of p-values and confidence limits for several tests, with the distributions that this takes.

The studentized range is integrated by the trapezoidal rule, which for these smooth integrands converges faster than any
power of the step; the tail is summed directly, so that small p-values keep their digits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...errors import LMMError
from ...support.distributions import f_tail, quantile, two_sided_p
from ...support.hints import option
from ...support.types import Array
from .largest import max_t_sf
from .scale import over_scale

__all__ = [
    "ADJUSTMENTS",
    "adjusted_p",
    "correlations",
    "critical_values",
    "method_name",
    "studentized_range_quantile",
    "studentized_range_sf",
]


ADJUSTMENTS = ("none", "bonferroni", "holm", "sidak", "fdr", "tukey", "scheffe", "mvt")
"""Names of the adjustments; "bh" stands for "fdr" and "dunnett" for "mvt"."""

_ALIASES = {"bh": "fdr", "dunnett": "mvt"}
_INNER = 0.1  # step of the trapezoidal rule over the smallest of k normals


def method_name(adjust: str) -> str:
    """The adjustment that a name stands for.

    Raises
    ------
    LMMError
        For an unknown name.
    """
    name = _ALIASES.get(adjust, adjust) if isinstance(adjust, str) else adjust
    if name not in ADJUSTMENTS:
        known = (*ADJUSTMENTS, *_ALIASES)
        raise LMMError(f"adjust={adjust!r} is unknown: use one of {', '.join(known)}{option('adjust', adjust, known)}")
    return name


# ---- studentized range -------------------------------------------------------------------------


def _range_sf(width: Array, k: int) -> Array:
    """P(range of k standard normals > width), for an array of widths."""
    from scipy.special import log_ndtr

    # k phi(z) S(z)^(k-1) [1 - (1 - S(z+w)/S(z))^(k-1)], z the smallest: no difference of nearly equal numbers
    low = -0.5 * float(width.max(initial=0.0)) - 9.5
    z = np.arange(low, 9.5, _INNER)
    log_upper = log_ndtr(-z)
    ratio = np.exp(np.minimum(log_ndtr(-(z + width[:, None])) - log_upper, 0.0))
    with np.errstate(divide="ignore"):
        some = -np.expm1((k - 1) * np.log1p(-ratio))
    density = k * np.exp(-0.5 * z * z + (k - 1) * log_upper) / np.sqrt(2.0 * np.pi)
    return np.asarray(np.minimum(_INNER * (some @ density), 1.0))


@lru_cache(maxsize=1024)
def _studentized_sf(q: float, k: int, df: float) -> float:
    if np.isnan(q) or np.isnan(df):
        return float("nan")
    if q <= 0.0:
        return 1.0
    if k == 2:
        return float(two_sided_p(q / np.sqrt(2.0), None if np.isinf(df) else df))
    if np.isinf(df):
        return float(_range_sf(np.array([q]), k)[0])
    log_pairs = np.log(k * (k - 1.0))  # P(range > w) <= k (k-1) P(N > w / sqrt 2)
    return over_scale(q, df, lambda w: _range_sf(w, k), lambda w: log_pairs - 0.25 * w * w)


def studentized_range_sf(q: ArrayLike, k: int, df: ArrayLike) -> Array:
    """Upper tail of the studentized range.

    Parameters
    ----------
    q : array_like
        Range divided by an independent estimate of the standard deviation.
    k : int
        Number of normal variables, at least 2.
    df : array_like
        Degrees of freedom of the estimate; inf for a known standard deviation.

    Returns
    -------
    ndarray
        Accurate to about 12 digits, for small probabilities too.

    Notes
    -----
    Tukey (1953); as an integral over the smallest value and the scale, e.g. Copenhaver and Holland (1988), J. Stat.
    Comput. Simul. 30, 1-15.
    """
    q, df = np.broadcast_arrays(np.asarray(q, dtype=float), np.asarray(df, dtype=float))
    flat = [_studentized_sf(float(a), k, float(b)) for a, b in zip(q.ravel(), df.ravel(), strict=True)]
    return np.array(flat, dtype=float).reshape(q.shape)


def studentized_range_quantile(probability: float, k: int, df: float) -> float:
    """Quantile of the studentized range.

    Parameters
    ----------
    probability : float
        Of values below the quantile.
    k : int
        Number of normal variables, at least 2.
    df : float
        Degrees of freedom; inf for a known standard deviation.

    Returns
    -------
    float
    """
    if not df > 0.0:
        return float("nan")
    # Bonferroni's limit, which is a little too large
    pairs = 0.5 * k * (k - 1)
    start = float(np.sqrt(2.0) * -quantile(0.5 * (1.0 - probability) / pairs, df))
    return _solved(lambda q: _studentized_sf(q, k, df), 1.0 - probability, start)


def _solved(tail: Callable[[float], float], alpha: float, start: float) -> float:
    """Where a falling tail probability is alpha."""
    from scipy.optimize import brentq

    def excess(x: float) -> float:  # of logarithms, in which the tail is nearly straight
        return float(np.log(max(tail(x), 1e-300)) - np.log(alpha))

    low, high = 0.8 * start, start
    while excess(high) > 0.0:
        low, high = high, 1.5 * high
    while excess(low) < 0.0:
        low, high = 0.5 * low, low
    return float(brentq(excess, low, high, xtol=1e-11, rtol=1e-11))


# ---- adjustment --------------------------------------------------------------------------------


def adjusted_p(
    statistic: ArrayLike,
    df: ArrayLike,
    method: str,
    *,
    n_means: int = 0,
    correlation: Array | None = None,
    rank: int = 0,
) -> Array:
    """Two-sided p-values of a family of t tests, adjusted for their number.

    Parameters
    ----------
    statistic, df : (k,) array_like
        t statistics and degrees of freedom (inf for z tests).  Tests that are NaN are not counted.
    method : str
        One of `ADJUSTMENTS`.
    n_means : int
        "tukey": number of means that are compared in pairs.
    correlation : (k, k) array, optional
        "mvt": correlations of the estimates.
    rank : int
        "scheffe": dimension of the space of contrasts.

    Returns
    -------
    (k,) array
    """
    t, nu = np.broadcast_arrays(np.abs(np.asarray(statistic, dtype=float)), np.asarray(df, dtype=float))
    raw = two_sided_p(t, nu)
    valid = np.isfinite(raw)
    count = int(valid.sum())
    if method == "none" or count == 0 or (count == 1 and method != "scheffe"):
        return raw
    if method == "bonferroni":
        return np.minimum(1.0, count * raw)
    if method == "sidak":
        return np.asarray(-np.expm1(count * np.log1p(-raw)))
    if method in ("holm", "fdr"):
        out = raw.copy()
        out[valid] = _holm(raw[valid]) if method == "holm" else _fdr(raw[valid])
        return out
    if method == "tukey":
        return studentized_range_sf(np.sqrt(2.0) * t, n_means, nu)
    if method == "scheffe":
        return f_tail(t * t / rank, rank, nu)
    assert correlation is not None
    inner = correlation[np.ix_(valid, valid)]
    out = raw.copy()
    out[valid] = [max_t_sf(float(a), float(b), inner) for a, b in zip(t[valid], nu[valid], strict=True)]
    return out


def critical_values(
    level: float,
    df: ArrayLike,
    method: str,
    *,
    n_means: int = 0,
    correlation: Array | None = None,
    rank: int = 0,
) -> Array:
    """What to multiply standard errors with for simultaneous confidence limits.

    Parameters
    ----------
    level : float
    df : (k,) array_like
        Degrees of freedom of the k estimates; NaN for those that are not to be counted.
    method : str
        One of `ADJUSTMENTS`; the stepwise methods "holm" and "fdr" have no limits of their own and take Bonferroni's.
    n_means, correlation, rank
        As for `adjusted_p`.

    Returns
    -------
    (k,) array
    """
    nu = np.asarray(df, dtype=float)
    valid = ~np.isnan(nu)
    count = int(valid.sum())
    if method == "none" or count == 0 or (count == 1 and method != "scheffe"):
        return -quantile(0.5 * (1.0 - level), nu)
    if method == "sidak":
        return -quantile(-0.5 * float(np.expm1(np.log(level) / count)), nu)
    if method not in ("tukey", "scheffe", "mvt"):
        return -quantile(0.5 * (1.0 - level) / count, nu)
    if method == "mvt":
        assert correlation is not None
        correlation = correlation[np.ix_(valid, valid)]
    solved: dict[float, float] = {}
    for value in np.unique(nu[valid]).tolist():
        # degrees of freedom that differ by rounding are solved for once
        key = float(f"{value:.11g}")
        if key not in solved:
            solved[key] = _simultaneous(level, key, method, n_means, correlation, rank)
    return np.array([solved[float(f"{value:.11g}")] if value == value else np.nan for value in nu.tolist()])


def _simultaneous(level: float, df: float, method: str, n_means: int, correlation: Array | None, rank: int) -> float:
    if method == "tukey":
        return studentized_range_quantile(level, n_means, df) / float(np.sqrt(2.0))
    if method == "scheffe":
        return _solved(lambda c: float(f_tail(c * c / rank, rank, df)), 1.0 - level, 2.0)
    assert correlation is not None
    # secant steps on the logarithm of the tail, between the limits of one test and of Bonferroni
    low, high = (float(-quantile(0.5 * (1.0 - level) / k, df)) for k in (1.0, len(correlation)))
    x, before = high, low
    gap, gap_before = (float(np.log(max_t_sf(c, df, correlation) / (1.0 - level))) for c in (x, before))
    for _ in range(20):
        if abs(gap) < 1e-7 or gap == gap_before:
            break
        x, before = min(max(x - gap * (x - before) / (gap - gap_before), low), high), x
        gap, gap_before = float(np.log(max_t_sf(x, df, correlation) / (1.0 - level))), gap
    return x


def _holm(p: Array) -> Array:
    """Holm (1979), Scand. J. Stat. 6, 65-70."""
    order = np.argsort(p)
    out = np.empty_like(p)
    out[order] = np.minimum(1.0, np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]))
    return out


def _fdr(p: Array) -> Array:
    """Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57, 289-300."""
    order = np.argsort(p)[::-1]
    out = np.empty_like(p)
    out[order] = np.minimum(1.0, np.minimum.accumulate(len(p) / np.arange(len(p), 0, -1) * p[order]))
    return out


def correlations(covariance: Any) -> Array:
    """Correlation matrix of a covariance matrix; rows without variance are NaN."""
    sd = np.sqrt(np.diag(covariance))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(covariance / np.outer(sd, sd))
